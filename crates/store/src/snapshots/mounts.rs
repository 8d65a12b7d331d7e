use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use store_api::Mount;

use crate::error::{Error, Result};

/// The directories behind a set of mounts, so that layers are read and written without mounting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directories {
    /// Where writes go, if anywhere.
    pub(crate) upper: Option<PathBuf>,
    /// What lies below, topmost first.
    pub(crate) lowers: Vec<PathBuf>,
    /// `user.overlay.*` marks.
    pub(crate) userxattr: bool,
}

impl Directories {
    /// Understands what snapshots answer: nothing, one bind mount, or one overlay. `None`: other
    /// mounts, which must be made to be read.
    pub(crate) fn of(mounts: &[Mount]) -> Result<Option<Self>> {
        let mount = match mounts {
            [] => return Ok(Some(Self::default())),
            [mount] => mount,
            _ => return Ok(None),
        };
        let has = |name: &str| mount.options.iter().any(|option| option == name);
        match mount.kind.as_str() {
            "bind" | "rbind" | "none" | ""
                if has("bind") || has("rbind") || mount.kind == "bind" =>
            {
                let source = absolute(&mount.source)?;
                if has("ro") {
                    Ok(Some(Self { lowers: vec![source], ..Self::default() }))
                } else {
                    Ok(Some(Self { upper: Some(source), ..Self::default() }))
                }
            }
            "overlay" => overlay(mount).map(Some),
            _ => Ok(None),
        }
    }

    /// All of them, topmost first.
    pub(crate) fn all(&self) -> Vec<PathBuf> {
        self.upper.iter().chain(&self.lowers).cloned().collect()
    }
}

fn overlay(mount: &Mount) -> Result<Directories> {
    let mut directories = Directories::default();
    for option in &mount.options {
        match option.split_once('=') {
            Some(("upperdir", path)) => directories.upper = Some(absolute(path)?),
            Some(("lowerdir", paths)) => {
                directories.lowers = paths.split(':').map(absolute).collect::<Result<_>>()?;
            }
            None if option == "userxattr" => directories.userxattr = true,
            _ => {}
        }
    }
    Ok(directories)
}

fn absolute(path: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(Error::invalid(format!("mount: {} is not an absolute path", path.display())));
    }
    // `ROOT/l/N` and `ROOT/snapshots/N/fs` are the same layer.
    path.canonicalize().map_err(Error::io("resolve", path))
}

/// A root descriptor as the archive crate wants it.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )
    .map_err(Error::sys("open directory", path))
}

pub(crate) fn open_all(paths: &[PathBuf]) -> Result<Vec<OwnedFd>> {
    paths.iter().map(|path| open_directory(path)).collect()
}

pub(crate) fn borrow(descriptors: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    descriptors.iter().map(|fd| fd.as_fd()).collect()
}
