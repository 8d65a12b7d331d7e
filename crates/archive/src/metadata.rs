//! What an extracted object gets besides its content.

use std::{collections::BTreeMap, ffi::OsString, os::fd::BorrowedFd, path::Path};

use rustix::{
    fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::{
    entry::Time,
    error::Error,
    extract::Whiteouts,
    node::{Node, proc_path},
};

pub(crate) fn mark_opaque(
    whiteouts: Whiteouts,
    directory: BorrowedFd<'_>,
    path: &Path,
) -> Result<(), Error> {
    let name = match whiteouts {
        Whiteouts::Overlay { userxattr: true } => "user.overlay.opaque",
        _ => "trusted.overlay.opaque",
    };
    rustix::fs::setxattr(proc_path(directory), name, b"y", XattrFlags::empty())
        .map_err(|e| Error::file("mark as opaque", path, e))
}

/// Owner, mode and attributes of a directory of a lower layer; gives its time.
pub(crate) fn copy_metadata(lower: &Node, node: &Node, path: &Path) -> Result<Time, Error> {
    let stat = lower.stat();
    let uid = Some(Uid::from_raw(stat.stx_uid));
    let gid = Some(Gid::from_raw(stat.stx_gid));
    let proc = proc_path(node.fd());
    rustix::fs::chownat(node.fd(), "", uid, gid, AtFlags::EMPTY_PATH)
        .map_err(|e| Error::file("change owner of", path, e))?;
    rustix::fs::chmod(&proc, Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o7777))
        .map_err(|e| Error::file("change mode of", path, e))?;
    for (name, value) in lower.portable_xattrs(path)? {
        rustix::fs::setxattr(&proc, name.as_os_str(), &value, XattrFlags::empty())
            .map_err(|e| Error::file("set attribute of", path, e))?;
    }
    Ok(Time { secs: stat.stx_mtime.tv_sec, nanos: stat.stx_mtime.tv_nsec })
}

pub(crate) fn timestamps(mtime: Time) -> Timestamps {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// What a layer's directory is that no entry describes and no layer below has: owned by `owner`, mode 0755,
/// no attributes, the time 0. What the kernel makes of it (the umask, a parent's set-group-ID bit, the
/// present time) would depend on who extracts, and where.
pub(crate) fn make_plain(
    owner: Option<(u32, u32)>,
    node: &Node,
    path: &Path,
) -> Result<Time, Error> {
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(node.fd(), "", uid, gid, AtFlags::EMPTY_PATH)
            .map_err(|e| Error::file("change owner of", path, e))?;
    }
    rustix::fs::chmod(proc_path(node.fd()), Mode::from_raw_mode(0o755))
        .map_err(|e| Error::file("change mode of", path, e))?;
    drop_xattrs(&BTreeMap::new(), node, path)?;
    Ok(Time::default())
}

/// Takes away the attributes of an existing directory that are not among `kept`.
pub(crate) fn drop_xattrs(
    kept: &BTreeMap<OsString, Vec<u8>>,
    node: &Node,
    path: &Path,
) -> Result<(), Error> {
    let proc = proc_path(node.fd());
    for (name, _) in node.portable_xattrs(path)? {
        if kept.contains_key(&name) {
            continue;
        }
        match rustix::fs::removexattr(&proc, name.as_os_str()) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => return Err(Error::file("remove attribute of", path, e)),
        }
    }
    Ok(())
}
