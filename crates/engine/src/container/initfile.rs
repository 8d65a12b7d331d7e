//! The program that becomes a container's first process with `--init`.
//!
//! It is this very binary, which plays docker-init under that name. What is mounted into the container
//! is a copy on the data root, made once: the running binary's own path may be gone after an upgrade, or
//! be the file that the host runs, which a container that may mount (CAP_SYS_ADMIN) could make writable
//! in its own mount namespace and change. The copy is never run on the host; one that was changed is
//! seen by its change time and replaced by a new file.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{Error, Result, util::make_dir_mode};

const CHUNK_BYTES: usize = 64 << 10;

/// A copy that was seen to be right, and what would show that it was touched since.
pub(crate) struct InitCopy {
    path: PathBuf,
    identity: [i64; 6],
}

/// The copy of `program` in `dir`, made or replaced where it is not there or not the same. `known` is what
/// the last call left.
///
/// # Errors
/// What the file system says.
pub(super) fn copy_of(program: &Path, dir: &Path, known: &mut Option<InitCopy>) -> Result<PathBuf> {
    if let Some(copy) = known
        && identity(&copy.path).is_ok_and(|now| now == copy.identity)
    {
        return Ok(copy.path.clone());
    }
    let path = dir.join("docker-init");
    if !same(program, &path).unwrap_or(false) {
        make(program, dir, &path)?;
    }
    let identity = identity(&path).map_err(|e| Error::io("look at", &path, &e))?;
    *known = Some(InitCopy { path: path.clone(), identity });
    Ok(path)
}

fn make(program: &Path, dir: &Path, path: &Path) -> Result<()> {
    make_dir_mode(dir, 0o711)?;
    let new = dir.join("docker-init.new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("remove", &new, &error));
        }
        _ => {}
    }
    let copied = || -> io::Result<()> {
        let mut to = File::create_new(&new)?;
        io::copy(&mut File::open(program)?, &mut to)?;
        to.set_permissions(std::fs::Permissions::from_mode(0o555))?;
        to.sync_all()?;
        std::fs::rename(&new, path)
    };
    copied().map_err(|e| Error::io("copy the init program to", path, &e))
}

fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

fn identity(path: &Path) -> io::Result<[i64; 6]> {
    let meta = std::fs::metadata(path)?;
    let number = |n: u64| i64::from_ne_bytes(n.to_ne_bytes());
    Ok([
        number(meta.dev()),
        number(meta.ino()),
        number(meta.size()),
        i64::from(meta.mode()),
        meta.ctime(),
        meta.ctime_nsec(),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_copy_is_made_once_and_again_when_it_was_changed() {
        let root = std::env::temp_dir().join(format!("init-{}", crate::util::random_id()));
        std::fs::create_dir(&root).unwrap();
        let program = root.join("program");
        std::fs::write(&program, crate::util::random_id()).unwrap();
        let dir = root.join("init");
        let mut known = None;
        let path = copy_of(&program, &dir, &mut known).unwrap();
        assert!(same(&program, &path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o555);
        let inode = std::fs::metadata(&path).unwrap().ino();
        // Known, and by a daemon that starts anew.
        copy_of(&program, &dir, &mut known).unwrap();
        copy_of(&program, &dir, &mut None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
        let mut evil = std::fs::read(&path).unwrap();
        evil[3] ^= 1;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(&path, evil).unwrap();
        let held = File::open(&path).unwrap();
        copy_of(&program, &dir, &mut known).unwrap();
        assert!(same(&program, &path).unwrap());
        // Who has the changed one mounted keeps it; nobody else sees it.
        assert_ne!(std::fs::metadata(&path).unwrap().ino(), held.metadata().unwrap().ino());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
