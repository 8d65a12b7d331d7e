//! Files of a container: copy out, copy in, export, changes, commit. Every path is resolved inside the
//! container's root by descriptor, whether it runs or not.

use std::{
    io::{BufReader, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use api_types::{Change, PathStat};
use archive::{ExtractOptions, Owner, PackOptions, Source};
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use store_api::{ByteStream, Mount, Timestamp};
use types::ErrorKind;

use super::{
    Container,
    record::{MountKind, Record},
    users,
};
use crate::{
    Engine, Error, Result,
    error::chain,
    pipe::{StreamReader, produce, receive},
    rootfs::{self, InitProcess, Tree},
    util::{blocking, rfc3339},
};

/// Attempts at opening the root of a container that starts and ends meanwhile.
const ROOT_TRIES: u32 = 100;
const ROOT_PAUSE: Duration = Duration::from_millis(20);

/// A path in a container and what is there.
pub struct PathTar {
    pub stat: PathStat,
    pub tar: ByteStream,
}

/// Query of `PUT /containers/{id}/archive`.
#[derive(Clone, Debug, Default)]
pub struct ArchivePut {
    pub path: String,
    /// Refuse to replace a directory by something else, or the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// What is copied belongs to the container's user.
    pub copy_uid_gid: bool,
}

impl Engine {
    /// The root of a container: of its process or, where it has none, mounted for this use alone, with
    /// its volumes if `bound`. A start and a removal wait until it is dropped.
    async fn container_root(
        self: &Arc<Self>,
        container: &Arc<Container>,
        bound: bool,
    ) -> Result<(Record, Tree)> {
        for _ in 0..ROOT_TRIES {
            let record = container.snapshot();
            if let Some(process) = InitProcess::of(&record) {
                let lease = container.rootfs.share().await;
                match blocking(move || process.open_root()).await {
                    Ok(root) => return Ok((record, Tree::new(root, lease))),
                    // It ended, which the record tells in a moment.
                    Err(error) if error.kind == ErrorKind::Conflict => {
                        tokio::time::sleep(ROOT_PAUSE).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            // Never waited for with the lifecycle lock held: a start could not end what stands still.
            container.rootfs.free().await;
            let _lifecycle = container.lifecycle.lock().await;
            if container.progress.borrow().removed {
                return Err(Error::no_such_container(container.id.as_str()));
            }
            let record = container.snapshot();
            if record.status.pid().is_some() {
                continue;
            }
            let Some(lease) = container.rootfs.take() else { continue };
            let mounts = self.services.snapshots.mounts(record.id.as_str()).await?;
            let scratch = self.config.exec_root.join("mounts");
            // The tree that is opened keeps what is mounted.
            let user = format!("files of {}", record.id);
            let mounted = match bound {
                true => self.mount_volumes(&record, &user).await,
                false => Ok(()),
            };
            if let Err(error) = mounted {
                self.unmount_volumes(&user).await;
                return Err(error);
            }
            let root = blocking(move || {
                let root = if bound {
                    rootfs::open_bound(&mounts, &record, &scratch)?
                } else {
                    rootfs::open(&mounts, &scratch)?
                };
                Ok((record, Tree::new(root, lease)))
            });
            let root = root.await;
            self.unmount_volumes(&user).await;
            return root;
        }
        Err(Error::conflict(format!(
            "the files of container {} are in use, or it starts and ends without pause; try again",
            container.id
        )))
    }

    pub async fn archive_stat(self: &Arc<Self>, name: &str, path: &str) -> Result<PathStat> {
        let container = self.containers.find(name)?;
        let path = checked(path)?;
        let (record, root) = self.container_root(&container, true).await?;
        let stat = blocking(move || stat_in(&root, &path, &record.name)).await?;
        Ok(stat)
    }

    pub async fn archive_get(self: &Arc<Self>, name: &str, path: &str) -> Result<PathTar> {
        let container = self.containers.find(name)?;
        let path = checked(path)?;
        let (record, root) = self.container_root(&container, true).await?;
        let (stat, root, path) =
            blocking(move || Ok((stat_in(&root, &path, &record.name)?, root, path))).await?;
        let name = PathBuf::from(base_name(&path));
        let source = if stat.is_dir() {
            // The directory itself, under its last name; `/.` at the end means what is in it. A link that
            // the path ends in was followed to get here: `.` behind it does that again.
            Source { path: relative(&path).join("."), name }
        } else {
            Source { path: relative(&path), name }
        };
        let tar = produce(root.lease.activity.clone(), move |writer| {
            let mut options =
                PackOptions { sources: vec![source], include_root: true, ..PackOptions::default() };
            let (mut writer, _) = archive::pack(root.as_fd(), &mut options, writer)
                .map_err(|e| Error::internal(chain(&e)))?;
            writer.flush().map_err(|e| Error::internal(e.to_string()))
        })?;
        self.container_event(&container, "archive-path");
        Ok(PathTar { stat, tar })
    }

    pub async fn archive_put(
        self: &Arc<Self>,
        name: &str,
        put: ArchivePut,
        body: ByteStream,
    ) -> Result<()> {
        let container = self.containers.find(name)?;
        let path = checked(&put.path)?;
        let (record, root) = self.container_root(&container, true).await?;
        receive(root.lease.activity.clone(), body, move |body| {
            extract_into(&root, &record, &path, &put, body)
        })
        .await?;
        self.container_event(&container, "extract-to-dir");
        Ok(())
    }

    pub async fn container_export(self: &Arc<Self>, name: &str) -> Result<ByteStream> {
        let container = self.containers.find(name)?;
        // Without its volumes, as docker does.
        let (_, root) = self.container_root(&container, false).await?;
        let stream = produce(root.lease.activity.clone(), move |writer| {
            let mut options = PackOptions { one_file_system: true, ..PackOptions::default() };
            let (mut writer, _) = archive::pack(root.as_fd(), &mut options, writer)
                .map_err(|e| Error::internal(chain(&e)))?;
            writer.flush().map_err(|e| Error::internal(e.to_string()))
        })?;
        self.container_event(&container, "export");
        Ok(stream)
    }

    pub async fn container_changes(self: &Arc<Self>, name: &str) -> Result<Vec<Change>> {
        let container = self.containers.find(name)?;
        let snapshots = &self.services.snapshots;
        let key = container.id.as_str();
        let mounts = snapshots.mounts(key).await?;
        // One that is mounted without layers below it, although it has a parent, is a copy of that.
        let whole = mounts.iter().all(|mount| mount.kind != "overlay");
        let parent = snapshots.stat(key).await?.parent.filter(|_| whole);
        let view = format!("changes-{key}-{}", crate::util::random_id());
        let below = match &parent {
            Some(parent) => {
                Some(snapshots.view(&view, Some(parent), store_api::Labels::new()).await?)
            }
            None => None,
        };
        let changes = blocking(move || {
            let layers = Layers::of(&mounts)?;
            if let Some(below) = below {
                let below = Layers::of(&below)?;
                return archive::changes_directories(below.upper.as_fd(), layers.upper.as_fd())
                    .map_err(|e| Error::internal(chain(&e)));
            }
            let lowers: Vec<_> = layers.lowers.iter().map(AsFd::as_fd).collect();
            archive::changes_overlay(layers.upper.as_fd(), &lowers)
                .map_err(|e| Error::internal(chain(&e)))
        })
        .await;
        if parent.is_some()
            && let Err(error) = snapshots.remove(&view).await
        {
            tracing::warn!(view, %error, "a temporary view was left behind");
        }
        let changes = changes?;
        let shape = |change: archive::Change| Change {
            path: change.path.to_string_lossy().into_owned(),
            kind: match change.kind {
                archive::ChangeKind::Modify => 0,
                archive::ChangeKind::Add => 1,
                archive::ChangeKind::Delete => 2,
            },
        };
        let mut list: Vec<Change> = changes.into_iter().map(shape).collect();
        leave_out_own(&mut list);
        Ok(list)
    }

    /// Fills empty volumes with what the image has at their targets, on the first start.
    pub(super) fn fill_volumes(&self, root: &OwnedFd, record: &Record) -> Result<()> {
        for mount in &record.mounts {
            if mount.kind != MountKind::Volume || mount.no_copy || !mount.subpath.is_empty() {
                continue;
            }
            let empty = std::fs::read_dir(&mount.source)
                .map_err(|e| Error::io("list", &mount.source, &e))?
                .next()
                .is_none();
            if !empty {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let Ok(source) = rootfs::open_in(root, &mount.target, flags) else { continue };
            copy_tree(&source, &mount.source)?;
        }
        Ok(())
    }
}

/// Copies a tree with everything that it has, and the metadata of its root.
fn copy_tree(source: &OwnedFd, target: &Path) -> Result<()> {
    let target_fd = rustix::fs::open(
        target,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|e| Error::io("open", target, &e.into()))?;
    let (reader, writer) =
        std::io::pipe().map_err(|e| Error::internal(format!("make a pipe: {e}")))?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || {
            let mut options =
                PackOptions { include_root: true, subsecond: true, ..PackOptions::default() };
            archive::pack(source.as_fd(), &mut options, writer).map(drop)
        });
        let mut options = ExtractOptions { root_metadata: true, ..ExtractOptions::default() };
        let extracted = archive::extract(BufReader::new(reader), target_fd.as_fd(), &mut options);
        let packed = packing
            .join()
            .map_err(|_| Error::internal("the thread that reads a volume's content panicked"))?;
        extracted.map_err(|e| Error::internal(chain(&e)))?;
        packed.map_err(|e| Error::internal(chain(&e)))
    })
}

/// Directories of an overlay mount, or of a bind for an image without layers.
pub(crate) struct Layers {
    pub(crate) upper: OwnedFd,
    pub(crate) lowers: Vec<OwnedFd>,
}

impl Layers {
    pub(crate) fn of(mounts: &[Mount]) -> Result<Self> {
        let open = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, rustix::fs::Mode::empty())
                .map_err(|e| Error::io("open layer", Path::new(path), &e.into()))
        };
        let [mount] = mounts else {
            return Err(Error::internal("a snapshot of several mounts has no layers to compare"));
        };
        if mount.kind != "overlay" {
            return Ok(Self { upper: open(&mount.source)?, lowers: Vec::new() });
        }
        let option = |key: &str| {
            mount.options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
        };
        let upper = option("upperdir")
            .ok_or_else(|| Error::internal("a read-only snapshot has no layer of its own"))?;
        let lowers = option("lowerdir").unwrap_or_default().split(':');
        Ok(Self {
            upper: open(upper)?,
            lowers: lowers.filter(|path| !path.is_empty()).map(open).collect::<Result<_>>()?,
        })
    }
}

/// What the engine puts into every container (moby `initlayer.Setup`).
const OWN_PLACES: &[&str] = &[
    "/.dockerenv",
    "/dev",
    "/dev/console",
    "/dev/pts",
    "/dev/shm",
    "/etc",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/proc",
    "/sbin",
    "/sbin/docker-init",
    "/sys",
];

/// Those are not the container's doing; a directory among them is, where something else below it is.
fn leave_out_own(list: &mut Vec<Change>) {
    let own = |change: &Change| OWN_PLACES.contains(&change.path.as_str()) && change.kind != 2;
    let others: Vec<String> =
        list.iter().filter(|change| !own(change)).map(|change| change.path.clone()).collect();
    let below = |path: &str| {
        let prefix = format!("{path}/");
        others.iter().any(|other| other.starts_with(&prefix))
    };
    list.retain(|change| !own(change) || below(&change.path));
}

fn checked(path: &str) -> Result<String> {
    if path.is_empty() {
        return Err(Error::invalid("bad parameter: path cannot be empty"));
    }
    if path.contains('\0') {
        return Err(Error::invalid("bad parameter: path holds a zero byte"));
    }
    Ok(path.to_string())
}

fn relative(path: &str) -> PathBuf {
    let trimmed = path.trim_matches('/');
    let trimmed = trimmed.strip_suffix("/.").unwrap_or(trimmed);
    if trimmed == "." { PathBuf::new() } else { trimmed.into() }
}

/// The last name of a path as docker sees it: `.` for the root and for a path that ends in `/.`.
fn base_name(path: &str) -> String {
    if path.ends_with("/.") || path == "." {
        return ".".into();
    }
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("") => ".".into(),
        Some(name) => name.into(),
    }
}

fn not_found(path: &str, container: &str) -> Error {
    Error::not_found(format!("Could not find the file {path} in container {container}"))
}

/// The last component is not followed, unless the path ends in `/` or `/.`.
/// statfs(2) magic of proc, sysfs, cgroup, cgroup2, devpts, mqueue.
const KERNEL_FILE_SYSTEMS: [i128; 6] =
    [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x1cd1, 0x1980_0202];

fn stat_in(root: &Tree, path: &str, container: &str) -> Result<PathStat> {
    let follow = path.ends_with('/') || path.ends_with("/.");
    let mut flags = OFlags::PATH;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    let text = relative(path);
    let text = text.to_string_lossy();
    let fd = rootfs::open_in(root, &text, flags).map_err(|error| match error {
        rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => {
            not_found(path, container)
        }
        other => Error::internal(format!("open {path} in container {container}: {other}")),
    })?;
    let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)
        .map_err(|e| Error::internal(format!("look at {path} in container {container}: {e}")))?;
    if follow && FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(not_found(path, container));
    }
    // Of a running container the kernel's own files are in the tree; docker has none of them.
    let kernel = rustix::fs::fstatfs(&fd)
        .is_ok_and(|fs| KERNEL_FILE_SYSTEMS.iter().any(|magic| i128::from(fs.f_type) == *magic));
    let file_type = FileType::from_raw_mode(stat.st_mode);
    let device = matches!(file_type, FileType::CharacterDevice | FileType::BlockDevice);
    if kernel || (device && text.starts_with("dev/")) {
        return Err(not_found(path, container));
    }
    let mut link_target = String::new();
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        link_target = link_target_in(root, &text).unwrap_or_default();
    }
    let name = base_name(path);
    Ok(PathStat {
        name: if name == "." && text.is_empty() { "/".into() } else { name },
        size: stat.st_size,
        mode: PathStat::mode_from_unix(stat.st_mode),
        mtime: rfc3339(Some(Timestamp {
            seconds: stat.st_mtime,
            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        })),
        link_target,
    })
}

/// Where a link leads inside the container, as an absolute path.
fn link_target_in(root: &Tree, path: &str) -> Option<String> {
    let link = rootfs::open_in(root, path, OFlags::PATH | OFlags::NOFOLLOW).ok()?;
    let target = rustix::fs::readlinkat(&link, "", Vec::new()).ok()?;
    let target = target.to_string_lossy().into_owned();
    let joined = if target.starts_with('/') {
        target
    } else {
        let parent = Path::new(path).parent().unwrap_or(Path::new(""));
        format!("/{}", parent.join(target).display())
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

fn extract_into(
    root: &Tree,
    record: &Record,
    path: &str,
    put: &ArchivePut,
    body: StreamReader,
) -> Result<()> {
    let target = rootfs::open_in(root, path, OFlags::PATH).map_err(|error| match error {
        rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => {
            not_found(path, &record.name)
        }
        other => Error::internal(format!("open {path} in container {}: {other}", record.name)),
    })?;
    let stat = rustix::fs::statat(&target, "", AtFlags::EMPTY_PATH)
        .map_err(|e| Error::internal(format!("look at {path}: {e}")))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Error::invalid("extraction point is not a directory"));
    }
    refuse_read_only(root, &target, path)?;
    let owner = if put.copy_uid_gid && !record.config.user.is_empty() {
        let user = users::resolve(root, &record.config.user, &[])?;
        Owner::Fixed { uid: user.uid, gid: user.gid }
    } else {
        Owner::Keep
    };
    let reader = archive::decompress(BufReader::new(body))
        .map_err(|e| Error::invalid(format!("read the archive: {e}")))?;
    let mut options = ExtractOptions {
        dest: relative(path),
        owner,
        no_overwrite_dir_non_dir: put.no_overwrite_dir_non_dir,
        ..ExtractOptions::default()
    };
    archive::extract(reader, root.as_fd(), &mut options)
        .map(drop)
        .map_err(|e| Error::invalid(chain(&e)))
}

/// dockerd's words for what the kernel refuses anyway (moby `checkIfPathIsInAVolume`). Asked of the mount
/// that the path led to, through whatever links.
fn refuse_read_only(root: &Tree, target: &OwnedFd, path: &str) -> Result<()> {
    let look = |e: rustix::io::Errno| Error::internal(format!("look at the mount of {path}: {e}"));
    let flags = rustix::fs::fstatvfs(target).map_err(look)?.f_flag;
    if !flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let mount_of = |fd: BorrowedFd<'_>| {
        let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
        stat.map(|stat| stat.stx_mnt_id).map_err(look)
    };
    let text = if mount_of(root.as_fd())? == mount_of(target.as_fd())? {
        "container rootfs is marked read-only"
    } else {
        "mounted volume is marked read-only"
    };
    Err(Error::new(ErrorKind::PermissionDenied, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_tars() {
        for (path, name) in
            [("/", "."), ("/etc", "etc"), ("/etc/", "etc"), ("/etc/.", "."), ("etc/hosts", "hosts")]
        {
            assert_eq!(base_name(path), name, "{path}");
        }
        assert_eq!(relative("/etc/."), PathBuf::from("etc"));
        assert_eq!(relative("/"), PathBuf::new());
    }
}
