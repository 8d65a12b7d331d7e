//! tmpcopyup: what is in a directory is copied into the tmpfs that is about to cover it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, Stat, chmodat, chownat, fstat, mkdirat, mknodat,
    openat, readlinkat, statat, symlinkat,
};
use rustix::fs::{Gid, Uid};

use crate::error::{Context, Error, Result};

/// Directories inside one another that are followed; deeper ones are an error.
const DEPTH_LIMIT: usize = 64;

pub(super) fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    tree(from.as_fd(), to.as_fd(), 0)
}

fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> Result<()> {
    if depth > DEPTH_LIMIT {
        return Err(Error::config("tmpcopyup", "directories are nested too deeply"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(from, c".", flags, Mode::empty()).ctx("open", || "directory")?;
    let mut buf = Vec::with_capacity(8192);
    let mut names = Vec::new();
    let mut entries = RawDir::new(&dir, buf.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let name = entry.ctx("read", || "directory")?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in names {
        entry(dir.as_fd(), to, &name, depth)?;
    }
    Ok(())
}

fn entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<()> {
    let text = || name.to_string_lossy().into_owned();
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).ctx("stat", text)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, mode).ctx("mkdir", text)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = openat(from, name, flags, Mode::empty()).ctx("open", text)?;
            let made = openat(to, name, flags, Mode::empty()).ctx("open", text)?;
            tree(below.as_fd(), made.as_fd(), depth + 1)?;
        }
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new()).ctx("readlink", text)?;
            symlinkat(target.as_c_str(), to, name).ctx("symlink", text)?;
        }
        FileType::RegularFile => file(from, to, name)?,
        kind => mknodat(to, name, kind, mode, stat.st_rdev).ctx("mknod", text)?,
    }
    owner(to, name, &stat).ctx("chown", text)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        chmodat(to, name, mode, AtFlags::empty()).ctx("chmod", text)?;
    }
    Ok(())
}

fn owner(to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let text = || name.to_string_lossy().into_owned();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = openat(from, name, flags, Mode::empty()).ctx("open", text)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(to, name, flags, Mode::from_raw_mode(0o600)).ctx("create", text)?;
    if FileType::from_raw_mode(fstat(&source).ctx("stat", text)?.st_mode) != FileType::RegularFile {
        return Err(Error::config(
            "tmpcopyup",
            format!("{:?} changed while it was copied", text()),
        ));
    }
    /// Bytes per sendfile call.
    const CHUNK_BYTES: usize = 1 << 24;
    while rustix::fs::sendfile(&made, &source, None, CHUNK_BYTES).ctx("copy", text)? > 0 {}
    Ok(())
}
