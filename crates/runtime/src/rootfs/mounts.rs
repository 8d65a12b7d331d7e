//! The spec's mounts, made on descriptors: the target is opened below the root's descriptor, the
//! mount is made detached (fsopen or open_tree), its attributes are set, then it is attached.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, OFlags, ResolveFlags, fstat, fstatfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, fspick, move_mount, open_tree,
};
use sys::mount::{ATTR_ATIME_MASK, MountAttr, mount_setattr};

use super::options::{self, Change, Options};
use super::resolve::{Leaf, clean, ensure_in, open_in};
use super::{Root, cgroup, copyup};
use crate::error::{Context, Error, Result, Step};
use crate::spec::Mount;

const PROC_SUPER_MAGIC: u64 = 0x9fa0;
/// fsconfig(2) takes values up to this length, its NUL included; longer ones need mount(2).
const FSCONFIG_VALUE_LIMIT_BYTES: usize = 256;
/// What may be bind-mounted inside /proc (runc's list: lxcfs and the like).
const INSIDE_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Makes one mount of the spec.
pub(super) fn mount(root: &mut Root<'_>, m: &Mount) -> Result<()> {
    let options = options::parse(&m.options);
    let text = || format!("error mounting {:?} to rootfs at {:?}", m.source, m.destination);
    if options.remount {
        return remount(root, m, &options).step(text);
    }
    match m.kind.as_str() {
        "cgroup" | "cgroup2" if !options.bind => cgroup::mount(root, m, &options),
        "bind" => bind(root, m, &options),
        _ if options.bind => bind(root, m, &options),
        "" => Err(Error::config("mounts.type", "is missing")),
        _ => file_system(root, m, &options),
    }
    .step(text)
}

/// Attaches a detached mount.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// A detached copy of the mount (tree) at `fd`.
pub(crate) fn clone_tree(fd: impl AsFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd, c"", flags)
}

/// A new, detached instance of a file system. `attrs` are `MOUNT_ATTR_*`.
pub(super) fn detached(
    kind: &str,
    source: &str,
    flags: &[&str],
    data: &[String],
    attrs: u64,
) -> Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).ctx("fsopen", || kind)?;
    let make = || -> Result<(), Errno> {
        if !source.is_empty() {
            fsconfig_set_string(fs.as_fd(), "source", source)?;
        }
        configure(&fs, flags, data)?;
        fsconfig_create(fs.as_fd())
    };
    make().ctx("mount", || format!("{kind}{}", kernel_message(&fs)))?;
    let attrs = MountAttrFlags::from_bits_retain(u32::try_from(attrs).unwrap_or(0));
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attrs).ctx("fsmount", || kind)
}

/// What the file system had to say about its options, if anything.
fn kernel_message(fs: &OwnedFd) -> String {
    let mut buf = [0u8; 512];
    match rustix::io::read(fs, &mut buf) {
        Ok(n) => {
            let text = String::from_utf8_lossy(&buf[..n]);
            // Before each line stands its level: e, w or i.
            let text = text.trim();
            let text = ["e ", "w ", "i "].iter().find_map(|l| text.strip_prefix(l)).unwrap_or(text);
            format!(" ({text})")
        }
        Err(_) => String::new(),
    }
}

fn file_system(root: &mut Root<'_>, m: &Mount, options: &Options) -> Result<()> {
    let kernel = m.kind == "proc" || m.kind == "sysfs";
    let (target, existed) =
        if kernel { ordinary_directory(root, m)? } else { open_target(root, m, Leaf::Directory)? };
    if !kernel {
        check_not_inside_proc(m, &target, None)?;
    }
    let mut data = options.data.clone();
    if m.kind == "tmpfs" && existed && !data.iter().any(|d| d.starts_with("mode=")) {
        let mode = fstat(&target).ctx("stat", || m.destination.as_str())?.st_mode & 0o7777;
        data.push(format!("mode={mode:o}"));
    }
    // No policy labels proc and sysfs; mqueue has its label on its root alone.
    if !kernel && m.kind != "mqueue" {
        data.extend(root.context());
    }
    let mut flags = options.flags.clone();
    // A superblock that others share (cgroup, sysfs of a net namespace) is never made read-only.
    if options.one.set & sys::mount::ATTR_RDONLY != 0 && !kernel && m.kind != "mqueue" {
        flags.push("ro");
    }
    // What is copied up has to be written first.
    let late = if options.copy_up { options.one.set & sys::mount::ATTR_RDONLY } else { 0 };
    if late != 0 {
        flags.retain(|f| *f != "ro");
    }
    let attrs = options.one.set & !late;
    let long = data.iter().any(|d| d.len() >= FSCONFIG_VALUE_LIMIT_BYTES);
    let made = if long {
        None
    } else {
        match detached(&m.kind, &m.source, &flags, &data, attrs) {
            Ok(mount) => Some(mount),
            // No mount API (a sandboxed kernel).
            Err(e) if e.errno() == Some(Errno::NOSYS) => None,
            Err(e) => return Err(e),
        }
    };
    let Some(mount) = made else {
        legacy(&target, m, options, &data)?;
        let again = open_target(root, m, Leaf::Directory)?.0;
        return finish(&again, options).ctx("set mount attributes", || m.destination.as_str());
    };
    if m.kind == "mqueue" && !root.label.is_empty() {
        let at = format!("/proc/self/fd/{}", mount.as_raw_fd());
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(at.as_str(), "security.selinux", root.label.as_bytes(), flags)
            .ctx("set linux.mountLabel of", || m.destination.as_str())?;
    }
    if options.copy_up {
        if m.kind != "tmpfs" {
            return Err(Error::config("mounts.options", "tmpcopyup is for tmpfs"));
        }
        copyup::copy(&target, &mount).step(|| "tmpcopyup")?;
        change(&mount, Change { set: late, clear: 0 }, false)
            .ctx("mount_setattr", || m.destination.as_str())?;
    }
    attach(&mount, &target).ctx("move_mount", || m.destination.as_str())?;
    finish(&mount, options).ctx("set mount attributes", || m.destination.as_str())
}

/// mount(2), through the target's descriptor: for long option strings and kernels (sandboxes)
/// without the mount API.
fn legacy(target: &OwnedFd, m: &Mount, options: &Options, data: &[String]) -> Result<()> {
    let at = format!("/proc/self/fd/{}", target.as_raw_fd());
    // A label may have commas in it; mount(2) takes quotes for that, fsconfig(2) would keep them.
    let quoted = |item: &String| match item.strip_prefix(super::CONTEXT) {
        Some(label) => format!("{}\"{label}\"", super::CONTEXT),
        None => item.clone(),
    };
    let data: Vec<String> = data.iter().map(quoted).collect();
    let data = std::ffi::CString::new(data.join(","))
        .map_err(|_| Error::config("mounts.options", "NUL inside"))?;
    let flags = ms_flags(options.one.set);
    rustix::mount::mount(m.source.as_str(), at.as_str(), m.kind.as_str(), flags, data.as_c_str())
        .ctx("mount", || m.kind.as_str())
}

fn ms_flags(attrs: u64) -> MountFlags {
    let mut flags = MountFlags::empty();
    for (bit, flag) in [
        (sys::mount::ATTR_RDONLY, MountFlags::RDONLY),
        (sys::mount::ATTR_NOSUID, MountFlags::NOSUID),
        (sys::mount::ATTR_NODEV, MountFlags::NODEV),
        (sys::mount::ATTR_NOEXEC, MountFlags::NOEXEC),
        (sys::mount::ATTR_NOATIME, MountFlags::NOATIME),
        (sys::mount::ATTR_STRICTATIME, MountFlags::STRICTATIME),
        (sys::mount::ATTR_NODIRATIME, MountFlags::NODIRATIME),
    ] {
        if attrs & bit != 0 {
            flags |= flag;
        }
    }
    flags
}

fn bind(root: &mut Root<'_>, m: &Mount, options: &Options) -> Result<()> {
    let path = root.bundle.join(&m.source);
    let source = match root.idmapped()? {
        Some(made) => made,
        None => match (open_source(root.bundle, m), root.ask_for_source) {
            // The container's root may not go there, but its caller may.
            (Err(Errno::ACCESS), Some(ask)) => ask(root.index)?,
            (other, _) => other,
        }
        .ctx("open_tree", || path.display().to_string())?,
    };
    let kind = fstat(&source).ctx("stat", || path.display().to_string())?.st_mode;
    let leaf = match FileType::from_raw_mode(kind) {
        FileType::Directory => Leaf::Directory,
        _ => Leaf::File,
    };
    let (target, _) = open_target(root, m, leaf)?;
    check_not_inside_proc(m, &target, Some(source.as_fd()))?;
    // Set on the detached copy: the container never sees it without them. What the source mount
    // already has (nosuid, say) stays unless the options name its opposite.
    let early = change(&source, options.one, false);
    let early = match early {
        // Kernel 5.10 and 5.11: no mount_setattr.
        Err(Errno::NOSYS) => false,
        other => other.map(|()| true).ctx("mount_setattr", || m.destination.as_str())?,
    };
    attach(&source, &target).ctx("move_mount", || m.destination.as_str())?;
    if !early && options.one != Change::default() {
        let at = format!("/proc/self/fd/{}", source.as_raw_fd());
        rustix::mount::mount_remount(
            at.as_str(),
            MountFlags::BIND | ms_flags(options.one.set),
            c"",
        )
        .ctx("remount", || m.destination.as_str())?;
    }
    finish(&source, options).ctx("set mount attributes", || m.destination.as_str())
}

/// A detached copy of a bind mount's source, from the mount namespace that one is in.
pub(crate) fn open_source(bundle: &Path, m: &Mount) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if options::parse(&m.options).recursive_bind {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, bundle.join(&m.source), flags)
}

fn change(mount: impl AsFd, change: Change, recursive: bool) -> Result<(), Errno> {
    if change == Change::default() {
        return Ok(());
    }
    // The kernel wants the atime field cleared as a whole whenever a value is set.
    let mut clear = change.clear;
    if change.set & ATTR_ATIME_MASK != 0 {
        clear |= ATTR_ATIME_MASK;
    }
    let attr = MountAttr { set: change.set, clear, recursive, ..MountAttr::default() };
    mount_setattr(mount, &attr)
}

/// Recursive attributes and propagation, on the attached mount.
fn finish(mount: &OwnedFd, options: &Options) -> Result<(), Errno> {
    change(mount, options.tree, true)?;
    for (flags, recursive) in &options.propagation {
        propagate(mount, flags.bits().into(), *recursive)?;
    }
    Ok(())
}

/// Changes propagation, with mount(2) where mount_setattr is missing.
pub(super) fn propagate(mount: impl AsFd, flags: u64, recursive: bool) -> Result<(), Errno> {
    let attr = MountAttr { propagation: flags, recursive, ..MountAttr::default() };
    match mount_setattr(&mount, &attr) {
        Err(Errno::NOSYS) => {
            let at = format!("/proc/self/fd/{}", mount.as_fd().as_raw_fd());
            let bits = u32::try_from(flags).unwrap_or(0);
            let mut flags = rustix::mount::MountPropagationFlags::from_bits_retain(bits);
            if recursive {
                flags |= rustix::mount::MountPropagationFlags::REC;
            }
            rustix::mount::mount_change(at.as_str(), flags)
        }
        other => other,
    }
}

/// Of what is mounted at the place: attributes of the mount, and what the file system itself is to
/// change (`size=`, `sync` …).
fn remount(root: &Root<'_>, m: &Mount, options: &Options) -> Result<()> {
    let path = clean(&m.destination);
    let text = || m.destination.as_str();
    let target =
        open_in(root.fd(), &path, OFlags::PATH, ResolveFlags::empty()).ctx("open", text)?;
    if !options.bind && (!options.data.is_empty() || !options.flags.is_empty()) {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let fs = fspick(&target, c"", flags).ctx("fspick", text)?;
        configure(&fs, &options.flags, &options.data)
            .and_then(|()| fsconfig_reconfigure(fs.as_fd()))
            .ctx("remount", || format!("{}{}", text(), kernel_message(&fs)))?;
    }
    change(&target, options.one, false).ctx("mount_setattr", text)?;
    finish(&target, options).ctx("set mount attributes", text)
}

/// Sets flags and options of a file system that is being made or changed.
fn configure(fs: &OwnedFd, flags: &[&str], data: &[String]) -> Result<(), Errno> {
    for flag in flags {
        match fsconfig_set_flag(fs.as_fd(), *flag) {
            // Read by the file system itself here; with mount(2) one that does not know it passes it over.
            Err(Errno::INVAL) if *flag == "iversion" => {}
            other => other?,
        }
    }
    for item in data {
        match item.split_once('=') {
            Some((key, value)) => fsconfig_set_string(fs.as_fd(), key, value)?,
            None => fsconfig_set_flag(fs.as_fd(), item.as_str())?,
        }
    }
    Ok(())
}

fn open_target(root: &Root<'_>, m: &Mount, leaf: Leaf) -> Result<(OwnedFd, bool)> {
    let path = clean(&m.destination);
    if path == Path::new("/") {
        return Err(Error::config("mounts.destination", "is the root itself"));
    }
    ensure_in(root.fd(), &path, leaf).ctx("create mountpoint", || m.destination.as_str())
}

/// For proc and sysfs: no component may be a symbolic link, or an image could choose what the
/// runtime later takes for the kernel's files.
fn ordinary_directory(root: &Root<'_>, m: &Mount) -> Result<(OwnedFd, bool)> {
    let path = clean(&m.destination);
    let refuse = || {
        Error::config(
            "mounts.destination",
            format!("filesystem {:?} must be mounted on ordinary directory", m.kind),
        )
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open_in(root.fd(), &path, flags, ResolveFlags::NO_SYMLINKS) {
        Ok(fd) => Ok((fd, true)),
        Err(Errno::NOENT) => {
            drop(open_target(root, m, Leaf::Directory)?);
            match open_in(root.fd(), &path, flags, ResolveFlags::NO_SYMLINKS) {
                Ok(fd) => Ok((fd, false)),
                Err(_) => Err(refuse()),
            }
        }
        Err(Errno::LOOP | Errno::NOTDIR) => Err(refuse()),
        Err(e) => Err(e).ctx("open", || m.destination.as_str()),
    }
}

fn is_procfs(fd: impl AsFd) -> bool {
    fstatfs(fd).is_ok_and(|s| u64::try_from(s.f_type) == Ok(PROC_SUPER_MAGIC))
}

/// Nothing but a procfs may cover /proc, and only listed files may be covered inside it.
fn check_not_inside_proc(
    m: &Mount,
    target: &OwnedFd,
    source: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let path = clean(&m.destination);
    let inside = path.starts_with("/proc") || is_procfs(target);
    if !inside || INSIDE_PROC.iter().any(|p| path == Path::new(p)) {
        return Ok(());
    }
    let problem = if path == Path::new("/proc") {
        if source.is_some_and(is_procfs) {
            return Ok(());
        }
        format!("{:?} cannot be mounted because it is not of type proc", m.destination)
    } else {
        format!("{:?} cannot be mounted because it is inside /proc", m.destination)
    };
    Err(Error::config("mounts.destination", problem))
}
