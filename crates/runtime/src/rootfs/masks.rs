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
    if !is_null(&fd)? {
        return Err(Error::config("/dev/null", "is not the null device"));
    }
    clone_tree(&fd, false).ctx("open_tree", || "/dev/null")
}

fn is_null(fd: &OwnedFd) -> Result<bool> {
    let stat = fstat(fd).ctx("stat", || "/dev/null")?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(1, 3))
}

/// The container's own /dev/null, where that is what it should be.
fn own_null(root: &Root<'_>) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let path = Path::new("/dev/null");
    match open_in(root.fd(), path, flags, ResolveFlags::NO_SYMLINKS) {
        Ok(fd) => Ok(is_null(&fd)?.then_some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e).ctx("open", || "/dev/null"),
    }
}

/// Covers files with the null device and directories with an empty read-only tmpfs. What is not
/// there needs no cover.
///
/// The device is the container's own where it has one, and read-only in any case: a cover is a
/// path to its inode, whose mode and owner the container's root could change, and the host's
/// /dev/null is the host's.
pub(super) fn mask(root: &Root<'_>, paths: &[String]) -> Result<()> {
    let mut covers = Covers { own_null: own_null(root)?, null_used: false, empty: None };
    for path in paths {
        mask_one(root, path, &mut covers).step(|| format!("mask path {path:?}"))?;
    }
    Ok(())
}

/// One null device and one empty tmpfs serve all paths: the first use attaches them, later ones
/// are copies of what is attached.
struct Covers {
    own_null: Option<OwnedFd>,
    null_used: bool,
    empty: Option<OwnedFd>,
}

fn mask_one(root: &Root<'_>, path: &str, covers: &mut Covers) -> Result<()> {
    let text = || path.to_owned();
    let Some(target) = open(root, path)? else { return Ok(()) };
    let kind = FileType::from_raw_mode(fstat(&target).ctx("stat", text)?.st_mode);
    if kind != FileType::Directory {
        let source = match &covers.own_null {
            None if !covers.null_used => {
                covers.null_used = true;
                return attach_read_only(&root.null, &target, text);
            }
            None => &root.null,
            Some(own) => own,
        };
        let copy = clone_tree(source, false).ctx("open_tree", || "/dev/null")?;
        return attach_read_only(&copy, &target, text);
    }
    let cover = match &covers.empty {
        Some(first) => clone_tree(first, false).ctx("open_tree", || "empty tmpfs")?,
        None => {
            let options = ["nr_blocks=1", "nr_inodes=1", "mode=0555"].map(str::to_owned);
            let data: Vec<String> = options.into_iter().chain(root.context()).collect();
            detached("tmpfs", "tmpfs", &["ro"], &data, ATTR_RDONLY)?
        }
    };
    attach(&cover, &target).ctx("move_mount", text)?;
    covers.empty.get_or_insert(cover);
    Ok(())
}

/// Attaches one mount, which is made read-only.
fn attach_read_only(mount: &OwnedFd, target: &OwnedFd, text: impl Fn() -> String) -> Result<()> {
    let attr = MountAttr { set: ATTR_RDONLY, ..MountAttr::default() };
    let early = match mount_setattr(mount, &attr) {
        Err(Errno::NOSYS) => false,
        other => other.map(|()| true).ctx("mount_setattr", &text)?,
    };
    attach(mount, target).ctx("move_mount", &text)?;
    if !early {
        super::remount_read_only(mount).ctx("remount", &text)?;
    }
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
