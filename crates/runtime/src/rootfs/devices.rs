//! Device nodes, the usual links in /dev, and the console.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, fstat, makedev,
    mknodat, openat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::Root;
use super::mounts::{attach, clone_tree};
use super::resolve::{Leaf, clean, ensure_in, open_in};
use crate::error::{Context, Error, Result, Step};
use crate::spec::Device;

/// (path, major, minor): what every container has.
pub(crate) const DEFAULT: [(&str, i64, i64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/zero", 1, 5),
    ("/dev/urandom", 1, 9),
];

const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Fills a /dev: the spec's devices, the default ones that it does not name, and the usual links.
pub(super) fn populate(root: &Root<'_>, devices: &[Device]) -> Result<()> {
    let (dev, _) = ensure_in(root.fd(), Path::new("/dev"), Leaf::Directory)
        .ctx("mkdir", || "/dev")
        .step(|| "error creating device nodes")?;
    make(root, &dev, devices)?;
    links(root, &dev)
}

/// `dev`: the root's /dev.
fn make(root: &Root<'_>, dev: &OwnedFd, devices: &[Device]) -> Result<()> {
    let listed: Vec<PathBuf> = devices.iter().map(|d| clean(&d.path)).collect();
    for device in devices {
        // The pty multiplexer is the container's own, by the link below.
        if clean(&device.path) == Path::new("/dev/ptmx") {
            continue;
        }
        one(root, dev, device).step(|| format!("error creating device nodes: {}", device.path))?;
    }
    for (path, major, minor) in DEFAULT {
        if listed.iter().any(|p| p == Path::new(path)) {
            continue;
        }
        let device = Device {
            path: path.to_owned(),
            kind: "c".into(),
            major,
            minor,
            file_mode: Some(0o666),
            uid: None,
            gid: None,
        };
        one(root, dev, &device).step(|| format!("error creating device nodes: {path}"))?;
    }
    Ok(())
}

fn one(root: &Root<'_>, dev: &OwnedFd, device: &Device) -> Result<()> {
    let path = clean(&device.path);
    let text = || device.path.clone();
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::config("linux.devices.path", "is the root itself"));
    };
    if root.in_userns {
        return bind(root, device, &path);
    }
    let elsewhere;
    let dir = match parent == Path::new("/dev") {
        true => dev,
        false => {
            (elsewhere, _) = ensure_in(root.fd(), parent, Leaf::Directory).ctx("mkdir", text)?;
            &elsewhere
        }
    };
    let kind = kind(device)?;
    let number = makedev(number(device.major)?, number(device.minor)?);
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match mknodat(dir, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            // There already (an image's own node, or a bind mount): it must be that device.
            drop(open_node(dir, name, device, kind, number)?);
        }
        // A sandbox without mknod.
        Err(Errno::PERM) => return bind(root, device, &path),
        Err(e) => return Err(e).ctx("mknod", text),
    }
    // umask is 0 here, so that mknod has set the mode of a new node.
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if (uid, gid) != (0, 0) {
        let node = open_node(dir, name, device, kind, number)?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        chownat(&node, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH).ctx("chown", text)?;
        // chown clears setuid bits only; devices have none, but a mode may be asked for exactly.
        // fchmod(2) takes no O_PATH descriptor; this link leads to the node itself.
        let at = format!("/proc/self/fd/{}", node.as_raw_fd());
        chmodat(CWD, at.as_str(), mode, AtFlags::empty()).ctx("chmod", text)?;
    }
    Ok(())
}

/// The node, if it is that device: another could have been put in its place, or a link.
fn open_node(
    dir: &OwnedFd,
    name: &OsStr,
    device: &Device,
    kind: FileType,
    number: u64,
) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(dir, name, flags, Mode::empty()).ctx("open", || device.path.as_str())?;
    let stat = fstat(&node).ctx("stat", || device.path.as_str())?;
    let same = FileType::from_raw_mode(stat.st_mode) == kind
        && (kind == FileType::Fifo || stat.st_rdev == number);
    if !same {
        let problem = format!("{:?} exists and is something else", device.path);
        return Err(Error::config("linux.devices", problem));
    }
    Ok(node)
}

fn bind(root: &Root<'_>, device: &Device, path: &Path) -> Result<()> {
    let text = || device.path.clone();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let source = open_tree(CWD, path, flags).ctx("open_tree", text)?;
    let stat = fstat(&source).ctx("stat", text)?;
    if FileType::from_raw_mode(stat.st_mode) != kind(device)?
        || stat.st_rdev != makedev(number(device.major)?, number(device.minor)?)
    {
        return Err(Error::config(
            "linux.devices",
            format!("the host's {:?} is another device", device.path),
        ));
    }
    let (target, _) = ensure_in(root.fd(), path, Leaf::File).ctx("create", text)?;
    attach(&source, &target).ctx("move_mount", text)
}

fn kind(device: &Device) -> Result<FileType> {
    match device.kind.as_str() {
        "c" | "u" => Ok(FileType::CharacterDevice),
        "b" => Ok(FileType::BlockDevice),
        "p" => Ok(FileType::Fifo),
        other => {
            Err(Error::config("linux.devices.type", format!("{other:?} is no type of device")))
        }
    }
}

fn number(n: i64) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::config("linux.devices", format!("{n} is no number")))
}

/// /dev/fd and its kin, /dev/ptmx.
fn links(root: &Root<'_>, dev: &OwnedFd) -> Result<()> {
    let mut links: Vec<(&str, &str)> = LINKS.to_vec();
    if open_in(root.fd(), Path::new("/proc/kcore"), OFlags::PATH, ResolveFlags::empty()).is_ok() {
        links.push(("core", "/proc/kcore"));
    }
    for (name, target) in links {
        match symlinkat(target, dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).ctx("symlink", || format!("/dev/{name}")),
        }
    }
    match unlinkat(dev, c"ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        // Something is mounted there: the spec's own choice.
        Err(Errno::BUSY) => return Ok(()),
        Err(e) => return Err(e).ctx("unlink", || "/dev/ptmx"),
    }
    symlinkat(c"pts/ptmx", dev, c"ptmx").ctx("symlink", || "/dev/ptmx")
}

/// Covers /dev/console with the pty's slave.
pub(super) fn console(root: &Root<'_>, slave: &OwnedFd) -> Result<()> {
    let text = || "/dev/console";
    let (dev, _) =
        ensure_in(root.fd(), Path::new("/dev"), Leaf::Directory).ctx("mkdir", || "/dev")?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let only = OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(&dev, c"console", flags | only, Mode::from_raw_mode(0o666)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e).ctx("create", text),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = openat(&dev, c"console", flags, Mode::empty()).ctx("open", text)?;
    let kind = FileType::from_raw_mode(fstat(&target).ctx("stat", text)?.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::CharacterDevice) {
        return Err(Error::config("/dev/console", "in the image is neither file nor device"));
    }
    let source = clone_tree(slave.as_fd(), false).ctx("open_tree", text)?;
    attach(&source, &target).ctx("move_mount", text)
}
