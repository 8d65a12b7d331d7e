//! Masked and read-only paths.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, makedev, openat};
use rustix::io::Errno;
use sys::mount::{ATTR_RDONLY, MountAttr, mount_setattr};

use super::Root;
use super::mounts::{attach, clone_tree, detached};
use super::resolve::{clean, open_in};
use crate::error::{Context, Error, Result, Step};

/// A detached copy of the host's /dev/null, which is made sure to be the null device. Taken in the
/// container's mount namespace and before the root is entered: no copy can be made of a mount
/// that is not in the caller's namespace.
pub(super) fn null_device() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = openat(CWD, c"/dev/null", flags, Mode::empty()).ctx("open", || "/dev/null")?;
    let stat = fstat(&fd).ctx("stat", || "/dev/null")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
        || stat.st_rdev != makedev(1, 3)
    {
        return Err(Error::config("/dev/null", "is not the null device"));
    }
    clone_tree(&fd, false).ctx("open_tree", || "/dev/null")
}

/// Covers files with the null device and directories with an empty read-only tmpfs. What is not
/// there needs no cover.
pub(super) fn mask(root: &Root<'_>, paths: &[String]) -> Result<()> {
    let mut covers = Covers { null_used: false, empty: None };
    for path in paths {
        mask_one(root, path, &mut covers).step(|| format!("mask path {path:?}"))?;
    }
    Ok(())
}

/// One null device and one empty tmpfs serve all paths: the first use attaches them, later ones
/// are copies of what is attached.
struct Covers {
    null_used: bool,
    empty: Option<OwnedFd>,
}

fn mask_one(root: &Root<'_>, path: &str, covers: &mut Covers) -> Result<()> {
    let text = || path.to_owned();
    let Some(target) = open(root, path)? else { return Ok(()) };
    let kind = FileType::from_raw_mode(fstat(&target).ctx("stat", text)?.st_mode);
    if kind != FileType::Directory {
        if covers.null_used {
            let copy = clone_tree(&root.null, false).ctx("open_tree", || "/dev/null")?;
            return attach(&copy, &target).ctx("move_mount", text);
        }
        covers.null_used = true;
        return attach(&root.null, &target).ctx("move_mount", text);
    }
    let cover = match &covers.empty {
        Some(first) => clone_tree(first, false).ctx("open_tree", || "empty tmpfs")?,
        None => {
            let data = ["nr_blocks=1".to_owned(), "nr_inodes=1".to_owned(), "mode=0555".to_owned()];
            detached("tmpfs", "tmpfs", &["ro"], &data, ATTR_RDONLY)?
        }
    };
    attach(&cover, &target).ctx("move_mount", text)?;
    covers.empty.get_or_insert(cover);
    Ok(())
}

/// Makes paths read-only, with everything mounted below them.
pub(super) fn read_only(root: &Root<'_>, paths: &[String]) -> Result<()> {
    for path in paths {
        let step = || format!("make {path:?} read-only");
        let text = || path.to_owned();
        let Some(target) = open(root, path).step(step)? else { continue };
        let copy = clone_tree(&target, true).ctx("open_tree", text).step(step)?;
        let attr = MountAttr { set: ATTR_RDONLY, recursive: true, ..MountAttr::default() };
        let early = match mount_setattr(&copy, &attr) {
            Err(Errno::NOSYS) => false,
            other => other.map(|()| true).ctx("mount_setattr", text).step(step)?,
        };
        attach(&copy, &target).ctx("move_mount", text).step(step)?;
        if !early {
            super::remount_read_only(&copy).ctx("remount", text).step(step)?;
        }
    }
    Ok(())
}

fn open(root: &Root<'_>, path: &str) -> Result<Option<OwnedFd>> {
    let clean = clean(path);
    if clean == Path::new("/") {
        return Err(Error::config("linux.maskedPaths", "holds the root itself"));
    }
    match open_in(root.fd(), &clean, OFlags::PATH, ResolveFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e).ctx("open", || path),
    }
}
