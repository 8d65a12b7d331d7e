//! Paths inside a container's root: resolved by the kernel below the root's descriptor, or, where
//! parts are missing, walked one component at a time with O_NOFOLLOW.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

/// Symbolic links followed in one walk; the kernel's own limit.
const LINK_LIMIT: usize = 40;

/// What is made where the last component is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaf {
    Directory,
    File,
}

/// Opens what is there. Symbolic links are followed inside `root`, magic links never.
pub(crate) fn open_in(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    more: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    // The kernel answers EAGAIN when a rename elsewhere makes ".." unsafe to follow.
    for _ in 0..64 {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens (O_PATH) `path` inside `root`, making what is missing; `true` if it was there before.
pub(crate) fn ensure_in(
    root: BorrowedFd<'_>,
    path: &Path,
    leaf: Leaf,
) -> Result<(OwnedFd, bool), Errno> {
    match open_in(root, path, OFlags::PATH, ResolveFlags::empty()) {
        Err(Errno::NOENT) => walk(root, path, leaf).map(|fd| (fd, false)),
        other => other.map(|fd| (fd, true)),
    }
}

fn walk(root: BorrowedFd<'_>, path: &Path, leaf: Leaf) -> Result<OwnedFd, Errno> {
    let mut todo: VecDeque<OsString> = components(path);
    // The way down from the root, so that ".." never leaves it.
    let mut trail: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            trail.pop();
            continue;
        }
        let here = trail.last().map_or(root, |fd| fd.as_fd());
        let last = todo.is_empty();
        let next = match openat(here, &name, OPEN_HERE, Mode::empty()) {
            Err(Errno::NOENT) => {
                if last && leaf == Leaf::File {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OPEN_NEW;
                    match openat(here, &name, flags, Mode::from_raw_mode(0o755)) {
                        Ok(_) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(e),
                    }
                } else {
                    match mkdirat(here, &name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(e),
                    }
                }
                openat(here, &name, OPEN_HERE, Mode::empty())?
            }
            other => other?,
        };
        if FileType::from_raw_mode(fstat(&next)?.st_mode) == FileType::Symlink {
            links += 1;
            if links > LINK_LIMIT {
                return Err(Errno::LOOP);
            }
            let target = rustix::fs::readlinkat(&next, c"", Vec::new())?.into_bytes();
            let target = PathBuf::from(OsString::from_vec(target));
            if target.is_absolute() {
                trail.clear();
            }
            for part in components(&target).into_iter().rev() {
                todo.push_front(part);
            }
            continue;
        }
        trail.push(next);
    }
    trail.pop().ok_or(Errno::BUSY)
}

const OPEN_HERE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const OPEN_NEW: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// The path with `.`, `..` and doubled slashes worked out by text, absolute.
pub(crate) fn clean(path: &str) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    fn open_dir(path: &Path) -> OwnedFd {
        openat(rustix::fs::CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn links_out_of_the_root_stay_inside() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("d")).unwrap();
        symlink("../../..", root.join("up")).unwrap();
        symlink("/abs/gone", root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let fd = open_dir(&root);
        let (_, there) = ensure_in(fd.as_fd(), Path::new("/up/x/y"), Leaf::File).unwrap();
        assert!(!there && root.join("x/y").is_file());
        ensure_in(fd.as_fd(), Path::new("dangling/z"), Leaf::Directory).unwrap();
        assert!(root.join("abs/gone/z").is_dir());
        let looped = ensure_in(fd.as_fd(), Path::new("loop/q"), Leaf::Directory);
        assert_eq!(looped.unwrap_err(), Errno::LOOP);
        let (_, there) = ensure_in(fd.as_fd(), Path::new("../../d"), Leaf::Directory).unwrap();
        assert!(there);
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
    }

    #[test]
    fn magic_links_are_refused() {
        let fd = open_dir(Path::new("/"));
        let e = open_in(
            fd.as_fd(),
            Path::new("/proc/self/fd/0/x"),
            OFlags::PATH,
            ResolveFlags::empty(),
        );
        assert!(matches!(e, Err(Errno::LOOP)));
    }

    #[test]
    fn clean_paths() {
        assert_eq!(clean("dev//./pts/../shm"), Path::new("/dev/shm"));
        assert_eq!(clean("/../.."), Path::new("/"));
    }
}
