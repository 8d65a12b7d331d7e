//! Directory trees that others wrote: of any depth, with any names, changing meanwhile. Nothing here
//! recurses, builds paths or holds more than [`LEVELS`] descriptors; symbolic links are not followed and
//! mounts not entered (`openat2` with `RESOLVE_NO_XDEV`).

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::{Errno, Result},
};

/// Directories that are open at once; what lies deeper in a removed tree is moved up first.
const LEVELS: usize = 32;
/// How often a directory is read again that others fill while it is removed.
const PASSES: usize = 16;

/// Removes `path` with all below it, a file or link too. What is gone already is fine.
///
/// Unlike the standard library's it needs no more stack and descriptors for a deep tree than for a flat
/// one.
///
/// # Errors
/// The first that occurred; what can be removed is removed nevertheless.
pub fn remove(path: &Path) -> Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let top = match rustix::fs::openat(CWD, path, flags(), Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    empty(top)?;
    match rustix::fs::rmdir(path) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

struct Level {
    dir: Dir,
    name: CString,
    /// It has something that this pass did not see.
    again: bool,
    passes: usize,
    /// Something below it stays.
    failed: bool,
}

impl Level {
    fn new(fd: OwnedFd, name: &CStr) -> Result<Self> {
        let dir = Dir::new(fd)?;
        Ok(Self { dir, name: name.into(), again: false, passes: 0, failed: false })
    }
}

fn empty(top: OwnedFd) -> Result<()> {
    let root = top.try_clone().map_err(|_| Errno::MFILE)?;
    let mut stack = vec![Level::new(top, c"")?];
    let mut moved = 0_u64;
    let mut first: Option<Errno> = None;
    while let Some(level) = stack.last_mut() {
        let step = match level.dir.read() {
            Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => continue,
            Some(Ok(entry)) => {
                remove_entry(&mut stack, entry.file_name(), root.as_fd(), &mut moved)
            }
            Some(Err(errno)) => {
                level.failed = true;
                level.again = false;
                leave(&mut stack).and(Err(errno))
            }
            None if level.again => {
                level.again = false;
                level.dir.rewind();
                Ok(())
            }
            None => leave(&mut stack),
        };
        if let Err(errno) = step {
            first.get_or_insert(errno);
            if let Some(level) = stack.last_mut() {
                level.failed = true;
            }
        }
    }
    first.map_or(Ok(()), Err)
}

fn remove_entry(
    stack: &mut Vec<Level>,
    name: &CStr,
    root: BorrowedFd<'_>,
    moved: &mut u64,
) -> Result<()> {
    let deepest = stack.len() >= LEVELS;
    let Some(level) = stack.last_mut() else { return Ok(()) };
    let parent = level.dir.fd()?;
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    if deepest {
        move_up(parent, name, root, moved)?;
        if let Some(top) = stack.first_mut() {
            top.again = true;
        }
        return Ok(());
    }
    match open_below(parent, name) {
        Ok(child) => stack.push(Level::new(child, name)?),
        Err(Errno::NOENT) => {}
        // No directory, then, but a file that may not be removed.
        Err(Errno::NOTDIR | Errno::LOOP) => return Err(Errno::PERM),
        Err(errno) => return Err(errno),
    }
    Ok(())
}

/// Renames a directory into the top one under a name that is free there.
fn move_up(
    parent: BorrowedFd<'_>,
    name: &CStr,
    root: BorrowedFd<'_>,
    moved: &mut u64,
) -> Result<()> {
    loop {
        *moved += 1;
        match rustix::fs::renameat(parent, name, root, format!(".removed-{moved}")) {
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(Errno::NOENT) => return Ok(()),
            other => return other,
        }
    }
}

/// The end of a directory: it is removed from the one above it.
fn leave(stack: &mut Vec<Level>) -> Result<()> {
    let Some(mut level) = stack.pop() else { return Ok(()) };
    let Some(above) = stack.last_mut() else { return Ok(()) };
    if level.failed {
        above.failed = true;
        return Ok(());
    }
    match rustix::fs::unlinkat(above.dir.fd()?, &level.name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) if level.passes < PASSES => {
            level.passes += 1;
            level.dir.rewind();
            stack.push(level);
            Ok(())
        }
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn open_below(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    rustix::fs::openat2(parent, name, flags(), Mode::empty(), ResolveFlags::NO_XDEV)
}

/// One directory on the way down.
struct Place {
    /// `None`: so deep that it is found again through `..`.
    fd: Option<OwnedFd>,
    id: (u64, u64),
    /// Directories in it that are still to be looked at.
    open: Vec<CString>,
}

/// Calls `see` for `path` and everything below it. What is removed or moved away meanwhile may be
/// missing.
///
/// # Errors
/// When a directory cannot be read.
pub fn walk(path: &Path, see: &mut dyn FnMut(&Stat)) -> Result<()> {
    let top = rustix::fs::openat(CWD, path, flags(), Mode::empty())?;
    let mut current = top.try_clone().map_err(|_| Errno::MFILE)?;
    let mut stack = vec![read(top, see)?];
    while let Some(place) = stack.last_mut() {
        if let Some(name) = place.open.pop() {
            let child = match open_below(current.as_fd(), &name) {
                // It went, is no directory any more, or somebody mounted there.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
                other => other?,
            };
            current = child.try_clone().map_err(|_| Errno::MFILE)?;
            let mut below = read(child, see)?;
            if stack.len() >= LEVELS {
                below.fd = None;
            }
            stack.push(below);
            continue;
        }
        stack.pop();
        let Some(above) = stack.last() else { break };
        let parent = match &above.fd {
            Some(fd) => Some(fd.try_clone().map_err(|_| Errno::MFILE)?),
            None => rustix::fs::openat(&current, c"..", flags(), Mode::empty())
                .ok()
                .filter(|fd| rustix::fs::fstat(fd).is_ok_and(|stat| id(&stat) == above.id)),
        };
        match parent {
            Some(parent) => current = parent,
            None => {
                // The tree was moved under us: the next directory that is still at hand goes on.
                while stack.last().is_some_and(|place| place.fd.is_none()) {
                    stack.pop();
                }
                let Some(fd) = stack.last().and_then(|place| place.fd.as_ref()) else { break };
                current = fd.try_clone().map_err(|_| Errno::MFILE)?;
            }
        }
    }
    Ok(())
}

fn read(fd: OwnedFd, see: &mut dyn FnMut(&Stat)) -> Result<Place> {
    let own = rustix::fs::fstat(&fd)?;
    see(&own);
    let mut open = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            open.push(name.into());
        } else {
            see(&stat);
        }
    }
    Ok(Place { fd: Some(fd), id: id(&own), open })
}

fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    /// Directories in each other, a file in each.
    fn deep(top: &Path, levels: usize) {
        std::fs::create_dir(top).unwrap();
        let mut at = rustix::fs::open(top, flags(), Mode::empty()).unwrap();
        for _ in 1..levels {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            let flags = OFlags::CREATE | OFlags::WRONLY;
            rustix::fs::openat(&at, c"f", flags, Mode::RUSR).unwrap();
            at = rustix::fs::openat(&at, c"d", self::flags(), Mode::empty()).unwrap();
        }
    }

    /// On the 2 MiB of a thread's stack, as where it is used.
    #[test]
    fn deep_trees() {
        std::thread::spawn(|| {
            let ground = tempfile::tempdir().unwrap();
            let top = ground.path().join("top");
            deep(&top, 30_000);
            let mut seen = 0;
            walk(&top, &mut |_| seen += 1).unwrap();
            assert_eq!(seen, 30_000 + 29_999);
            remove(&top).unwrap();
            assert!(!top.exists());
            remove(&top).unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn wide_trees_and_links() {
        let ground = tempfile::tempdir().unwrap();
        let kept = ground.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), b"x").unwrap();
        let top = ground.path().join("top");
        std::fs::create_dir(&top).unwrap();
        for i in 0..3000 {
            std::fs::write(top.join(i.to_string()), b"").unwrap();
            if i % 3 == 0 {
                std::fs::create_dir_all(top.join(format!("d{i}/x/y"))).unwrap();
                std::os::unix::fs::symlink(&kept, top.join(format!("d{i}/link"))).unwrap();
            }
        }
        remove(&top).unwrap();
        assert!(!top.exists() && kept.join("file").exists());
    }
}
