//! Mounts that nobody else sees: made in a mount namespace of a short-lived thread, kept by a
//! descriptor, gone when the descriptor is closed.
//!
//! Wraps unshare(2), mount(2), umount2(2), openat2(2), open_tree(2), mount_setattr(2), move_mount(2).

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount,
    },
};

use crate::{
    mount::{ATTR_RDONLY, MountAttr, mount_setattr},
    overlay,
};

/// openat2 answers EAGAIN when something was renamed while ".." was resolved.
const RESOLVE_TRIES: usize = 128;

/// A mount in mount(8)'s words.
#[derive(Clone, Debug)]
pub struct MountSpec {
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// What of a bind cannot be written through it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadOnly {
    #[default]
    No,
    /// The mount itself; mounts below it keep their flags.
    Mount,
    /// With every mount below it.
    Tree,
}

/// A directory or file shown at a path inside the mounted tree. The path is resolved inside the tree.
#[derive(Clone, Debug)]
pub struct BindSpec {
    pub source: PathBuf,
    pub target: PathBuf,
    /// With the mounts below the source.
    pub recursive: bool,
    pub read_only: ReadOnly,
}

/// A root file system with what is mounted into it.
#[derive(Clone, Debug, Default)]
pub struct TreeSpec {
    /// Mounted over each other; must not be empty.
    pub mounts: Vec<MountSpec>,
    /// In this order, over the mounts.
    pub binds: Vec<BindSpec>,
    /// The root cannot be written; binds have flags of their own.
    pub read_only_root: bool,
}

/// Mounts `mounts` over each other on `scratch`, an existing directory that stays empty for everyone
/// else, and answers a descriptor of the root (`O_RDONLY | O_DIRECTORY`).
///
/// # Errors
/// Those of the system calls.
pub fn open_tree(mounts: Vec<MountSpec>, scratch: PathBuf) -> io::Result<OwnedFd> {
    on_thread(move || {
        for spec in &mounts {
            mount_one(spec, &scratch)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&scratch, flags, Mode::empty())?;
        if !mounts.is_empty() {
            rustix::mount::unmount(&scratch, UnmountFlags::DETACH)?;
        }
        Ok(root)
    })
}

/// Mounts a tree with its binds on `scratch`, an existing directory that stays empty for everyone else,
/// and answers a descriptor of its root (`O_PATH | O_DIRECTORY`). The binds are part of the tree for as
/// long as this very descriptor is open: a copy that was opened through it keeps the root alone.
///
/// Mount points that are missing are made, as docker does. A read-only bind is so from before it can be
/// reached.
///
/// # Errors
/// Those of the system calls; a bind's names it.
pub fn open_bound_tree(spec: TreeSpec, scratch: PathBuf) -> io::Result<OwnedFd> {
    on_thread(move || {
        for mount in &spec.mounts {
            mount_one(mount, &scratch)?;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&scratch, flags, Mode::empty())?;
        for bind in &spec.binds {
            bind_one(&root, bind).map_err(|error| {
                let (source, target) = (bind.source.display(), bind.target.display());
                io::Error::new(error.kind(), format!("bind {source} at {target}: {error}"))
            })?;
        }
        if spec.read_only_root {
            mount_setattr(&root, &MountAttr { set: ATTR_RDONLY, ..MountAttr::default() })?;
        }
        // A lazy unmount would take the binds apart; a detached copy keeps them together.
        let tree = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let copy = rustix::mount::open_tree(CWD, &scratch, tree)?;
        rustix::mount::unmount(&scratch, UnmountFlags::DETACH)?;
        Ok(copy)
    })
}

/// Runs `work` on a thread of its own in a mount namespace of its own, from which nothing propagates.
///
/// # Errors
/// Those of making the namespace, and of `work`.
pub fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("mounts".into()).spawn(move || {
        // SAFETY: CLONE_FS and CLONE_NEWNS do not touch the table of descriptors, which is what makes
        // unshare unsafe; they change this thread alone, and it ends here.
        #[allow(unsafe_code)]
        unsafe {
            rustix::thread::unshare_unsafe(
                rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS,
            )?;
        }
        let slave = MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM;
        rustix::mount::mount_change("/", slave)?;
        work()
    })?;
    thread.join().map_err(|_| io::Error::other("the mounting thread panicked"))?
}

/// `target`: an absolute path.
fn mount_one(spec: &MountSpec, target: &Path) -> io::Result<()> {
    let (flags, options) = parse_options(&spec.options);
    let mut data = options.join(",");
    if data.len() > overlay::OPTIONS_BYTES_MAX && spec.kind == "overlay" {
        let Some((base, short)) = overlay::shortened(&options) else {
            let what = (spec.kind.as_str(), spec.source.as_str());
            return Ok(overlay::mount_long(what, flags, &options, target)?);
        };
        // This thread's alone: it has unshared that.
        rustix::process::chdir(base)?;
        data = short;
    }
    let data = CString::new(data)?;
    rustix::mount::mount(
        spec.source.as_str(),
        target,
        spec.kind.as_str(),
        flags,
        Some(data.as_c_str()),
    )?;
    // A bind takes its flags only when it is mounted again.
    let extra = flags - MountFlags::BIND - MountFlags::REC;
    if flags.contains(MountFlags::BIND) && !extra.is_empty() {
        rustix::mount::mount_remount(target, extra | MountFlags::BIND, "")?;
    }
    Ok(())
}

fn bind_one(root: &OwnedFd, bind: &BindSpec) -> io::Result<()> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if bind.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(CWD, &bind.source, flags)?;
    let private =
        MountAttr { propagation: libc::MS_PRIVATE, recursive: true, ..MountAttr::default() };
    mount_setattr(&tree, &private)?;
    if bind.read_only != ReadOnly::No {
        let recursive = bind.read_only == ReadOnly::Tree;
        mount_setattr(&tree, &MountAttr { set: ATTR_RDONLY, recursive, ..MountAttr::default() })?;
    }
    let target = match open_in_root(root, &bind.target, OFlags::PATH) {
        Err(Errno::NOENT) => make_target(root, &bind.target, &tree)?,
        other => other?,
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &target, "", flags)?;
    Ok(())
}

/// Opens a path inside a root; symbolic links are followed inside it, magic ones not at all.
///
/// # Errors
/// The errno of openat2(2); `EAGAIN` only where the tree is renamed without end.
pub fn open_in_root(root: &impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries < RESOLVE_TRIES => tries += 1,
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Makes a mount point of the kind of `source`, with the directories above it. A link that leads nowhere
/// is an error.
fn make_target(root: &OwnedFd, target: &Path, source: &OwnedFd) -> Result<OwnedFd, Errno> {
    let is_dir = {
        let mode = rustix::fs::fstat(source)?.st_mode;
        rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Directory
    };
    let parts: Vec<_> = target.strip_prefix("/").unwrap_or(target).iter().collect();
    let mut above = PathBuf::new();
    let mut dir = open_in_root(root, &above, OFlags::PATH | OFlags::DIRECTORY)?;
    for (index, part) in parts.iter().enumerate() {
        let path = above.join(part);
        let last = index + 1 == parts.len();
        dir = match open_in_root(root, &path, OFlags::PATH) {
            Err(Errno::NOENT) if last && !is_dir => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                rustix::fs::openat(&dir, *part, flags, Mode::from_raw_mode(0o755))?
            }
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&dir, *part, Mode::from_raw_mode(0o755))?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&dir, *part, flags, Mode::empty())?
            }
            other => other?,
        };
        above = path;
    }
    Ok(dir)
}

/// `/proc/self/fd/N`, through which a call that takes a path acts on a descriptor.
pub fn proc_path(fd: &impl std::os::fd::AsRawFd) -> PathBuf {
    format!("/proc/thread-self/fd/{}", fd.as_raw_fd()).into()
}

/// Splits mount(8)'s words into flags and what the file system itself reads.
pub fn parse_options(options: &[String]) -> (MountFlags, Vec<&str>) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" | "" => {}
            "bind" => flags |= MountFlags::BIND,
            "rbind" => flags |= MountFlags::BIND | MountFlags::REC,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            other => data.push(other),
        }
    }
    (flags, data)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    fn write_in(root: &OwnedFd, path: &str) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let dir = open_in_root(root, Path::new(path).parent().unwrap(), OFlags::PATH)?;
        let name = Path::new(path).file_name().unwrap();
        rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    }

    /// Needs the right to mount; without it there is nothing to see.
    #[test]
    fn read_only_binds_are_so_through_links() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = std::env::temp_dir().join(format!("bound-{}", std::process::id()));
        for name in ["root/etc", "ro/below", "rw", "scratch"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("/made/ro", dir.join("root/way")).unwrap();
        let bind = |source: &str, target: &str, read_only| BindSpec {
            source: dir.join(source),
            target: target.into(),
            recursive: true,
            read_only,
        };
        let mut spec = TreeSpec {
            mounts: vec![MountSpec {
                kind: "none".into(),
                source: dir.join("root").to_str().unwrap().into(),
                options: vec!["rbind".into(), "rw".into()],
            }],
            binds: vec![
                bind("ro", "/made/ro", ReadOnly::Tree),
                bind("rw", "/made/rw", ReadOnly::No),
            ],
            read_only_root: false,
        };
        let tree = open_bound_tree(spec.clone(), dir.join("scratch")).unwrap();
        for path in ["/way/x", "/made/ro/x", "/way/below/x"] {
            assert_eq!(write_in(&tree, path), Err(Errno::ROFS), "{path}");
        }
        write_in(&tree, "/made/rw/x").unwrap();
        write_in(&tree, "/etc/x").unwrap();
        assert!(dir.join("rw/x").exists() && dir.join("root/etc/x").exists());
        drop(tree);
        spec.read_only_root = true;
        let tree = open_bound_tree(spec, dir.join("scratch")).unwrap();
        assert_eq!(write_in(&tree, "/etc/y"), Err(Errno::ROFS));
        write_in(&tree, "/made/rw/y").unwrap();
        drop(tree);
        fs::remove_dir_all(&dir).unwrap();
    }
}
