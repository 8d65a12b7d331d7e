//! A look into root file systems: of images, stopped containers and running ones, always through a
//! descriptor of the root and never through a path that an image could bend.

use std::{
    io::Read,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use store_api::Mount;
use sys::private_mount::{BindSpec, MountSpec, open_tree};

use crate::{Error, Result};

/// Opens the tree that `mounts` show. Blocking; the tree goes when the descriptor is closed.
pub(crate) fn open(mounts: &[Mount], binds: Vec<BindSpec>, scratch: &Path) -> Result<OwnedFd> {
    crate::util::make_dir(scratch)?;
    let specs = mounts
        .iter()
        .map(|mount| MountSpec {
            kind: mount.kind.clone(),
            source: mount.source.clone(),
            options: mount.options.clone(),
        })
        .collect();
    open_tree(specs, binds, scratch.to_path_buf())
        .map_err(|e| Error::internal(format!("mount the root file system: {e}")))
}

/// Makes `/.dockerenv`, by which programs see that they run in a container.
pub(crate) fn mark_as_container(root: &impl AsFd) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // One name right below the root: nothing on the way can be a link.
    match rustix::fs::openat(root, ".dockerenv", flags, Mode::from_raw_mode(0o755)) {
        Ok(_) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(Error::internal(format!("make /.dockerenv: {error}"))),
    }
}

/// The root of a running process.
pub(crate) fn open_of_process(pid: u32) -> Result<OwnedFd> {
    let path = PathBuf::from(format!("/proc/{pid}/root"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| Error::io("open", &path, &e.into()))
}

/// Opens a path inside a root; symbolic links are followed inside it, magic ones not at all.
pub(crate) fn open_in(root: &impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let relative = path.trim_start_matches('/');
    let relative = if relative.is_empty() { "." } else { relative };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Reads a regular file of at most `limit_bytes` inside a root; `None` when there is none.
pub(crate) fn read_in(root: &impl AsFd, path: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_in(root, path, flags) {
        Ok(file) => std::fs::File::from(file),
        Err(
            rustix::io::Errno::NOENT
            | rustix::io::Errno::NOTDIR
            | rustix::io::Errno::LOOP
            | rustix::io::Errno::NXIO,
        ) => return Ok(None),
        Err(error) => return Err(Error::internal(format!("open {path} in the image: {error}"))),
    };
    let meta = file.metadata().map_err(|e| Error::internal(format!("look at {path}: {e}")))?;
    if !meta.is_file() {
        return Err(Error::invalid(format!("{path} in the image is not a regular file")));
    }
    if meta.len() > limit_bytes {
        return Err(Error::invalid(format!(
            "{path} in the image has {} bytes, at most {limit_bytes} are read",
            meta.len()
        )));
    }
    let mut bytes = Vec::new();
    file.take(limit_bytes)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::internal(format!("read {path} in the image: {e}")))?;
    Ok(Some(bytes))
}
