//! Keeping the engine's binary out of a container's reach (CVE-2019-5736).
//!
//! A process that is about to exec the user's program still has the engine's binary as
//! /proc/self/exe, and an image can make its entry point `#!/proc/self/exe`: then the engine's
//! binary itself runs inside the container, dumpable, and can be opened there for writing. Being
//! not dumpable until exec does not help against that, and neither does resolving the program's
//! path without magic links, because the kernel resolves the line `#!…` itself.
//!
//! What is sound: the program that makes containers must not run from a file that can be written
//! at all. [`protect`] executes the program again from a detached, read-only overlay mount of its
//! directory: the file that a container can reach through /proc/<pid>/exe is on a file system
//! that has no upper layer. It is called once per program, before anything else: by the command
//! line for create, run and exec, and by a shim when it starts. Every process cloned from then on
//! inherits the protection; nothing is copied. Where overlay cannot be mounted (rootless without
//! the right, an old kernel, a seccomp sandbox) the program runs from a sealed copy in memory.
//! A container whose user namespace does not map the file's owner could not write to it either,
//! but the caller does not know yet what it will be asked to run.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals,
    fstat, fstatfs, fstatvfs, memfd_create, openat, stat,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use sys::exec::{CStrVec, fexecve};

use crate::error::{Context, Error, Result};

const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
/// Set in the environment of the program that is executed again, and taken out by it: what keeps
/// a failure of the test for protection from executing for ever.
const MARK: &str = "_GANTRY_PROTECTED";

/// Makes sure that this program runs from a file that nobody can write to. Returns if it does;
/// otherwise the program is executed again, with the same arguments, and starts from the
/// beginning. Call it first thing, with one thread.
///
/// # Errors
/// If neither an overlay mount nor a sealed copy is possible; `EBUSY` in the program that was executed
/// again, if it has more than one thread.
pub fn protect() -> Result<()> {
    if is_protected()? {
        // The programs that are started from here have not been protected.
        return match std::env::var_os(MARK) {
            Some(_) => sys::process::unset_env(MARK).ctx("unset", || MARK),
            None => Ok(()),
        };
    }
    if std::env::var_os(MARK).is_some() {
        return Err(Error::config("/proc/self/exe", "is still not protected after a second exec"));
    }
    let path = std::env::current_exe().ctx("read", || "/proc/self/exe")?;
    let binary = match overlay(&path) {
        Ok(fd) => fd,
        Err(_) => sealed_copy()?,
    };
    let args: Vec<_> = std::env::args_os().collect();
    let args = CStrVec::new(args.iter().map(|a| a.as_bytes()))
        .ok_or_else(|| Error::config("arguments", "NUL inside"))?;
    let mut env: Vec<Vec<u8>> =
        std::env::vars_os().map(|(k, v)| [k.as_bytes(), b"=", v.as_bytes()].concat()).collect();
    env.push(format!("{MARK}=1").into_bytes());
    let env = CStrVec::new(env).ok_or_else(|| Error::config("environment", "NUL inside"))?;
    let source = fexecve(&binary, &args, &env);
    Err(Error::Sys { op: "exec", object: path.display().to_string(), source })
}

/// Whether this program runs from a detached read-only overlay or a sealed memory file.
///
/// # Errors
/// If /proc/self/exe cannot be opened.
pub fn is_protected() -> Result<bool> {
    let name = || "/proc/self/exe";
    let exe = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .ctx("open", name)?;
    if fcntl_get_seals(&exe).is_ok_and(|s| s.contains(SEALS)) {
        return Ok(true);
    }
    let fs = fstatfs(&exe).ctx("statfs", name)?;
    let read_only = fstatvfs(&exe).ctx("statfs", name)?.f_flag.contains(StatVfsMountFlags::RDONLY);
    if u64::try_from(fs.f_type) != Ok(OVERLAYFS_SUPER_MAGIC) || !read_only {
        return Ok(false);
    }
    // A detached mount is reachable by no path: what the link says is not this file.
    let path = std::env::current_exe().ctx("read", name)?;
    let here = fstat(&exe).ctx("stat", name)?;
    Ok(stat(&path).map_or(true, |s| (s.st_dev, s.st_ino) != (here.st_dev, here.st_ino)))
}

const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// The second of the two lower layers that overlay wants where there is no upper one. It is there on
/// every machine, and around no program. Nobody gets to see what is in it: of the overlay, which is
/// mounted nowhere, no more is opened than the binary.
const SECOND_LAYER: &str = "/dev";

/// The binary on a read-only overlay of its directory.
fn overlay(path: &Path) -> Result<OwnedFd> {
    layers(path, SECOND_LAYER).or_else(|_| {
        // In a user namespace /dev may have mounts that belong to another. An empty file system that
        // is mounted nowhere does as well, but not before Linux 6.8, which says so in its log.
        let empty = tmpfs().ctx("mount", || "empty tmpfs")?;
        layers(path, &format!("/proc/self/fd/{}", empty.as_raw_fd()))
    })
}

/// The binary on an overlay of its directory and a second one.
fn layers(path: &Path, second: &str) -> Result<OwnedFd> {
    let bad = || Error::config("/proc/self/exe", "has no directory");
    let dir: PathBuf = path.parent().ok_or_else(bad)?.to_owned();
    let name = path.file_name().ok_or_else(bad)?;
    let text =
        dir.to_str().filter(|d| !d.contains([':', '\\', ',']) && d.len() < 120).ok_or_else(bad)?;
    let object = || text.to_owned();
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).ctx("fsopen", || "overlay")?;
    let lower = format!("{text}:{second}");
    let made = fsconfig_set_string(fs.as_fd(), "lowerdir", lower.as_str())
        .and_then(|()| fsconfig_create(fs.as_fd()))
        .and_then(|()| {
            let attrs = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV;
            fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attrs)
        })
        .ctx("mount overlay", object)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(&made, name, flags, Mode::empty()).ctx("open", object)
}

fn tmpfs() -> Result<OwnedFd, rustix::io::Errno> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(fs.as_fd())?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn sealed_copy() -> Result<OwnedFd> {
    let name = || "copy of /proc/self/exe";
    let mut from = File::open("/proc/self/exe").ctx("open", || "/proc/self/exe")?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_EXEC is needed where sysctl vm.memfd_noexec is set, and unknown before 6.3.
    let fd = memfd_create("gantry", flags | MemfdFlags::EXEC)
        .or_else(|_| memfd_create("gantry", flags))
        .ctx("memfd_create", name)?;
    let mut to = File::from(fd);
    std::io::copy(&mut from, &mut to).ctx("copy", || "/proc/self/exe")?;
    fcntl_add_seals(&to, SEALS).ctx("seal", name)?;
    Ok(to.into())
}
