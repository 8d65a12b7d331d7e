//! Mount points that running a container leaves behind in its root filesystem.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Timespec, Timestamps},
    io::Errno,
};

use crate::{
    copy::open_in_root,
    tree::{self, Kind},
};

/// What every container gets mounted.
const ALWAYS: &[&str] =
    &["etc/hosts", "etc/hostname", "etc/resolv.conf", "dev", "proc", "sys", "run/secrets"];

/// A path that was not there before, and when its directory was last changed.
#[derive(Debug)]
pub(crate) struct Missing {
    path: PathBuf,
    parent_mtime: Option<(i64, i64)>,
}

/// Which mount points, or directories above them, are missing: shortest first.
pub(crate) fn missing(root: BorrowedFd<'_>, targets: &[String]) -> Vec<Missing> {
    let mut found: Vec<Missing> = Vec::new();
    let wanted = ALWAYS.iter().copied().chain(targets.iter().map(String::as_str));
    for target in wanted {
        let target = tree::inside(target);
        for path in target.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            let known = found.iter().any(|missing| missing.path == path);
            if !known && matches!(tree::resolve(root, path, false), Err(Errno::NOENT)) {
                let parent = path.parent().unwrap_or(Path::new(""));
                let parent_mtime = match tree::resolve(root, parent, true) {
                    Ok((_, node)) => Some(node.mtime),
                    Err(_) => None,
                };
                found.push(Missing { path: path.to_path_buf(), parent_mtime });
            }
        }
    }
    found.sort_by_key(|missing| missing.path.components().count());
    found
}

/// Removes those that are there now and are empty, and gives their directories the old times.
///
/// # Errors
/// What the file system refuses, other than that something is in a directory.
pub(crate) fn remove(root: BorrowedFd<'_>, missing: &[Missing]) -> Result<(), Errno> {
    for stub in missing.iter().rev() {
        let parent = stub.path.parent().unwrap_or(Path::new(""));
        let Some(name) = stub.path.file_name() else { continue };
        let Ok(dir) = open_in_root(root, parent) else { continue };
        let flags = match tree::node_at(dir.as_fd(), name) {
            Ok(node) if node.kind == Kind::Dir => AtFlags::REMOVEDIR,
            Ok(node) if node.kind == Kind::File && node.size == 0 => AtFlags::empty(),
            _ => continue,
        };
        match rustix::fs::unlinkat(&dir, name, flags) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => continue,
            Err(errno) => return Err(errno),
        }
        if let Some((tv_sec, tv_nsec)) = stub.parent_mtime {
            let time = Timespec { tv_sec, tv_nsec };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(&dir, &times)?;
        }
    }
    Ok(())
}
