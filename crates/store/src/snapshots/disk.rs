use std::{
    collections::{BTreeSet, HashSet},
    fs,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::FileType;
use store_api::{Mount, Usage};

use super::{Kind, packed::Packed};
use crate::{
    Config, LayerForm,
    db::lock,
    error::{Error, Result},
    found,
};

/// Bytes of mount options that fit into the page mount(2) copies, with room for what a caller adds.
const OPTIONS_BYTES: usize = 3800;

/// The directories of snapshots.
pub(crate) struct Disk {
    root: PathBuf,
    next: AtomicU64,
    /// Directories that have no record yet.
    in_work: Mutex<BTreeSet<u64>>,
    /// Directories that are no snapshot's any more and could not be put into the trash.
    left: Mutex<BTreeSet<u64>>,
    trash: Arc<Trash>,
    /// What every overlay mount on this host needs.
    options: Vec<String>,
    /// Overlay's own marks are `user.overlay.*`: this is not the initial user namespace.
    pub(crate) userxattr: bool,
    pub(crate) packed: Packed,
    /// New snapshots are copies of their parents ([`LayerForm::Copy`]).
    pub(crate) copies: bool,
}

/// What lies below a snapshot: a layer's directory, or the root of several that are never unpacked.
pub(crate) struct Lower {
    pub(crate) path: PathBuf,
    /// The snapshot whose directory it is.
    id: Option<u64>,
}

impl Lower {
    pub(crate) fn mounted(path: PathBuf) -> Self {
        Self { path, id: None }
    }
}

impl Disk {
    pub(crate) fn open(config: &Config, trash: Arc<Trash>) -> Result<Self> {
        let userxattr = archive::in_user_namespace();
        let disk = Self {
            root: config.root.clone(),
            next: AtomicU64::new(1),
            in_work: Mutex::default(),
            left: Mutex::default(),
            trash,
            options: host_options(userxattr),
            userxattr,
            packed: Packed::open(config)?,
            copies: config.layers == LayerForm::Copy,
        };
        let highest = disk.present()?.into_iter().max().unwrap_or(0);
        disk.next.store(highest + 1, Ordering::Relaxed);
        Ok(disk)
    }

    pub(crate) fn directory(&self, id: u64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }

    pub(crate) fn fs(&self, id: u64) -> PathBuf {
        self.directory(id).join("fs")
    }

    pub(crate) fn lower(&self, id: u64) -> Lower {
        Lower { path: self.fs(id), id: Some(id) }
    }

    /// The numbers of all directories that there are.
    ///
    /// # Errors
    /// When they cannot all be told.
    pub(crate) fn present(&self) -> Result<BTreeSet<u64>> {
        let entries = found::entries(&self.root.join("snapshots"))?;
        Ok(entries.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Makes an empty directory for a new snapshot.
    pub(crate) fn create_empty(&self) -> Result<u64> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.in_work).insert(id);
        let directory = self.directory(id);
        let made = faults::write("snapshot.mkdir")
            .and_then(|()| fs::DirBuilder::new().mode(0o700).create(&directory));
        made.map_err(Error::io("create", directory))?;
        Ok(id)
    }

    /// A record names the directory from now on.
    pub(crate) fn recorded(&self, id: u64) {
        lock(&self.in_work).remove(&id);
    }

    pub(crate) fn is_in_work(&self, id: u64) -> bool {
        lock(&self.in_work).contains(&id)
    }

    /// Makes the directory of a new snapshot on `below`, whose owner and mode its root takes.
    pub(crate) fn create(&self, kind: Kind, below: Option<&Path>) -> Result<u64> {
        let id = self.create_empty()?;
        let directory = self.directory(id);
        if kind == Kind::Active && !self.copies {
            let work = directory.join("work");
            let made = fs::DirBuilder::new().mode(0o711).create(&work);
            made.map_err(Error::io("create", work))?;
        }
        make_root(&directory.join("fs"), below)?;
        Ok(id)
    }

    /// What only a writable snapshot needs goes once it is committed.
    pub(crate) fn finish(&self, id: u64) -> Result<()> {
        let work = self.directory(id).join("work");
        faults::write("snapshot.finish")
            .and_then(|()| Ok(sys::tree::remove(&work)?))
            .map_err(Error::io("remove", work))
    }

    /// What is no regular file at a path goes to the trash.
    pub(super) fn clear_way(&self, path: &Path) -> Result<()> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.is_file() => self.trash.put(path),
            _ => Ok(()),
        }
    }

    /// Puts a snapshot's directory into the trash.
    ///
    /// # Errors
    /// When it stays; then the next collection of garbage tries again.
    pub(crate) fn discard(&self, id: u64) -> Result<()> {
        let discarded = self.try_discard(id);
        let mut left = lock(&self.left);
        if discarded.is_ok() {
            left.remove(&id);
        } else {
            left.insert(id);
        }
        discarded
    }

    /// Directories that are to be discarded once more.
    pub(crate) fn leave(&self, ids: impl Iterator<Item = u64>) {
        lock(&self.left).extend(ids);
    }

    pub(crate) fn left(&self) -> BTreeSet<u64> {
        lock(&self.left).clone()
    }

    fn try_discard(&self, id: u64) -> Result<()> {
        self.packed.release(id)?;
        self.trash.put(&self.directory(id))?;
        lock(&self.in_work).remove(&id);
        let link = self.root.join("l").join(id.to_string());
        match fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", link)(error))
            }
            _ => Ok(()),
        }
    }

    /// Blocks and inodes in the snapshot's own directory; a file with several names counts once.
    pub(crate) fn usage(&self, id: u64) -> Result<Usage> {
        let mut usage = Usage::default();
        let mut linked = HashSet::new();
        let path = self.fs(id);
        sys::tree::walk(&path, &mut |stat| {
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory || stat.st_nlink == 1 || linked.insert((stat.st_dev, stat.st_ino)) {
                usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
                usage.inodes += 1;
            }
        })
        .map_err(Error::sys("read", path))?;
        Ok(usage)
    }

    /// The mounts of a snapshot as containerd's overlay snapshotter answers them.
    pub(crate) fn mounts(
        &self,
        id: u64,
        kind: Kind,
        lowers: &[Lower],
        volatile: bool,
    ) -> Result<Vec<Mount>> {
        let bind = |path: &Path, mode: &str| {
            vec![Mount {
                kind: "bind".into(),
                source: text(path),
                options: vec![mode.into(), "rbind".into()],
            }]
        };
        match (kind, lowers) {
            (Kind::Active, []) => return Ok(bind(&self.fs(id), "rw")),
            (_, []) => return Ok(bind(&self.fs(id), "ro")),
            (Kind::View, [only]) => return Ok(bind(&only.path, "ro")),
            _ => {}
        }
        let mut options = self.options.clone();
        if volatile && kind == Kind::Active {
            self.allow_remount(id)?;
            options.push("volatile".into());
        }
        if lowers.iter().any(|lower| lower.id.is_none()) {
            // On two file systems every file would be on a device of its own, where `du -x` and the like
            // do not go. An index's inode numbers leave room to tell the file systems apart.
            options.push("xino=on".into());
        }
        if kind == Kind::Active {
            options.push(format!("workdir={}", text(&self.directory(id).join("work"))));
            options.push(format!("upperdir={}", text(&self.fs(id))));
        }
        let used: usize = options.iter().map(|option| option.len() + 1).sum();
        let mut lower = join(lowers.iter().map(|lower| lower.path.clone()));
        if used + lower.len() > OPTIONS_BYTES {
            let short = |lower: &Lower| match lower.id {
                Some(id) => self.link(id),
                None => Ok(lower.path.clone()),
            };
            let links: Vec<PathBuf> = lowers.iter().map(short).collect::<Result<_>>()?;
            lower = join(links.into_iter());
        }
        // containerd's clients mount from the directory that all have in common where it takes less, as our
        // own shim does. The few that lie on layers which are never unpacked have none, but a kernel that
        // takes a layer at a time.
        let links = lowers.iter().map(|lower| lower.id);
        let names: Option<usize> = links.map(|id| Some(id?.to_string().len() + 1)).sum();
        if names.is_some_and(|names| used + names > OPTIONS_BYTES) {
            return Err(Error::precondition(format!(
                "mount of snapshot {id}: the names of {} layers are more than a page of mount options takes",
                lowers.len(),
            )));
        }
        options.push(format!("lowerdir={lower}"));
        Ok(vec![Mount { kind: "overlay".into(), source: "overlay".into(), options }])
    }

    /// A volatile overlay leaves a mark with which the kernel refuses to mount it again, since a crash
    /// of the host may have come between. Records of volatile snapshots do not outlive the host: while
    /// there is one, no crash came between.
    fn allow_remount(&self, id: u64) -> Result<()> {
        let mark = self.directory(id).join("work/work/incompat/volatile");
        sys::tree::remove(&mark).map_err(Error::sys("remove", mark))
    }

    /// A short name for a layer: `ROOT/l/N`.
    fn link(&self, id: u64) -> Result<PathBuf> {
        let directory = self.root.join("l");
        let path = directory.join(id.to_string());
        let target = format!("../snapshots/{id}/fs");
        let linked =
            faults::write("snapshot.link").and_then(|()| std::os::unix::fs::symlink(target, &path));
        match linked {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(Error::io("link", path)(error))
            }
            _ => Ok(path),
        }
    }
}

/// Makes a directory that looks like the root `below`.
pub(crate) fn make_root(path: &Path, below: Option<&Path>) -> Result<()> {
    faults::write("snapshot.fs")
        .and_then(|()| fs::DirBuilder::new().mode(0o755).create(path))
        .map_err(Error::io("create", path))?;
    // The umask must not decide what an image's root looks like.
    let mut mode = 0o755;
    if let Some(below) = below {
        let root = fs::symlink_metadata(below).map_err(Error::io("stat", below))?;
        std::os::unix::fs::lchown(path, Some(root.uid()), Some(root.gid()))
            .map_err(Error::io("chown", path))?;
        mode = root.mode() & 0o7777;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io("chmod", path))
}

fn join(paths: impl Iterator<Item = PathBuf>) -> String {
    paths.map(|path| text(&path)).collect::<Vec<_>>().join(":")
}

/// The data root is checked to be UTF-8 without what overlay's options give a meaning.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Options that make a writable layer independent of this kernel's defaults, so that a diff of its
/// directory tells all: no index, no redirects, no metadata-only copies.
fn host_options(userxattr: bool) -> Vec<String> {
    let parameter = |name: &str| {
        fs::read_to_string(format!("/sys/module/overlay/parameters/{name}"))
            .map(|value| value.trim().to_string())
            .ok()
    };
    let mut options = Vec::new();
    if parameter("index").is_some() {
        options.push("index=off".to_string());
    }
    if userxattr {
        options.push("userxattr".into());
        return options;
    }
    if parameter("redirect_dir").is_some_and(|value| value == "Y") {
        options.push("redirect_dir=off".into());
    }
    if parameter("metacopy").is_some_and(|value| value == "Y") {
        options.push("metacopy=off".into());
    }
    options
}

/// `ROOT/trash`: what was removed lies there until the trash's own thread has emptied it.
pub(crate) struct Trash {
    directory: PathBuf,
    next: AtomicU64,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    full: bool,
    stop: bool,
}

impl Trash {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            directory: root.join("trash"),
            next: AtomicU64::new(0),
            // Whatever an earlier run left.
            state: Mutex::new(State { full: true, stop: false }),
            wake: Condvar::new(),
        }
    }

    /// Renames `path` into the trash. What is gone already is fine.
    pub(crate) fn put(&self, path: &Path) -> Result<()> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{n}", crate::random_name());
        let put =
            faults::write("trash.put").and_then(|()| fs::rename(path, self.directory.join(name)));
        match put {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(Error::io("move to the trash", path))?,
        }
        lock(&self.state).full = true;
        self.wake.notify_all();
        Ok(())
    }

    pub(crate) fn stop(&self) {
        lock(&self.state).stop = true;
        self.wake.notify_all();
    }

    /// The body of the trash's thread.
    pub(crate) fn run(&self) {
        loop {
            let mut state = lock(&self.state);
            while !state.full && !state.stop {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                // What is left is emptied at the next start.
                return;
            }
            state.full = false;
            drop(state);
            let entries = fs::read_dir(&self.directory).into_iter().flatten();
            for entry in entries.filter_map(|entry| entry.ok()) {
                if lock(&self.state).stop {
                    return;
                }
                faults::pass("trash.empty");
                if let Err(error) = sys::tree::remove(&entry.path()) {
                    let path = entry.path();
                    tracing::warn!(path = %path.display(), error = %error, "trash stays behind");
                }
            }
        }
    }
}
