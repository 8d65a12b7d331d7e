//! The container's root file system: built below one descriptor, then made the root.
//!
//! Everything here runs in the container's own process and mount namespace.

mod cgroup;
mod copyup;
mod devices;
mod masks;
pub(crate) mod mounts;
pub(crate) mod options;
pub(crate) mod resolve;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, mount_move,
    mount_remount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};
use sys::mount::{ATTR_IDMAP, ATTR_RDONLY, MountAttr, mount_setattr};

use crate::cgroup::View;
use crate::error::{Context, Error, Result};
use crate::spec::{Mount, Spec};

pub(crate) use devices::DEFAULT as DEFAULT_DEVICES;

/// What the caller found out before the process was made.
pub(crate) struct Plan {
    /// Directory of relative paths.
    pub(crate) bundle: PathBuf,
    /// The root file system, absolute.
    pub(crate) rootfs: PathBuf,
    /// Device nodes cannot be made here, host devices are bound.
    pub(crate) in_userns: bool,
    /// The container has a cgroup namespace.
    pub(crate) cgroupns: bool,
    pub(crate) rootless: bool,
    pub(crate) no_pivot: bool,
    /// Propagation of "/" (`MS_*`), and whether recursive, if the spec names it.
    pub(crate) propagation: Option<(MountPropagationFlags, bool)>,
    /// Where the container's cgroup is.
    pub(crate) view: View,
    /// Id-mapped bind sources by index of the spec's mounts: only the caller, in the host's user
    /// namespace, may make them.
    pub(crate) sources: Vec<Option<OwnedFd>>,
}

/// The option that sets the label of all files.
const CONTEXT: &str = "context=";

/// See [`Root`]; the errno with which the caller has failed, too.
pub(crate) type AskForSource<'a> = &'a dyn Fn(usize) -> Result<Result<OwnedFd, Errno>>;

/// The root while it is being built.
pub(crate) struct Root<'a> {
    fd: OwnedFd,
    bundle: &'a Path,
    in_userns: bool,
    cgroupns: bool,
    rootless: bool,
    view: &'a View,
    sources: &'a [Option<OwnedFd>],
    /// The verified null device.
    null: OwnedFd,
    /// Waits until the caller has made the cgroup, and enters the cgroup namespace, once; needed before a
    /// cgroup file system is mounted.
    cgroup_ready: &'a mut dyn FnMut() -> Result<()>,
    /// Has the caller open the bind source of the mount of this index; in a user namespace of the container.
    ask_for_source: Option<AskForSource<'a>>,
    /// `linux.mountLabel`; empty where there is none.
    label: String,
    index: usize,
}

impl Root<'_> {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The SELinux context of everything in a file system that is made for the container, as its
    /// option.
    fn context(&self) -> Option<String> {
        (!self.label.is_empty()).then(|| format!("{CONTEXT}{}", self.label))
    }

    fn idmapped(&self) -> Result<Option<OwnedFd>> {
        match self.sources.get(self.index) {
            Some(Some(fd)) => fd.try_clone().ctx("dup", || "id-mapped mount").map(Some),
            _ => Ok(None),
        }
    }
}

/// Reads `linux.rootfsPropagation`.
pub(crate) fn propagation(word: &str) -> Result<Option<(MountPropagationFlags, bool)>> {
    let (base, recursive) = match word.strip_prefix('r') {
        Some(base) => (base, true),
        None => (word, false),
    };
    let flags = match base {
        "" if !recursive => return Ok(None),
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "private" => MountPropagationFlags::PRIVATE,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => {
            let problem = format!("rootfsPropagation={word} is not supported");
            return Err(Error::config("linux.rootfsPropagation", problem));
        }
    };
    Ok(Some((flags, recursive)))
}

/// Makes the detached, id-mapped bind source of a mount that asks for one. Called before the
/// process is made. `userns` has the mapping.
pub(crate) fn idmapped_source(bundle: &Path, m: &Mount, userns: &OwnedFd) -> Result<OwnedFd> {
    let options = options::parse(&m.options);
    let text = || bundle.join(&m.source).display().to_string();
    let source = mounts::open_source(bundle, m).ctx("open_tree", text)?;
    let attr = MountAttr {
        set: ATTR_IDMAP,
        userns: Some(userns.as_fd()),
        recursive: options.recursive_idmap,
        ..MountAttr::default()
    };
    mount_setattr(&source, &attr).ctx("idmap", text)?;
    Ok(source)
}

/// Binds the root file system to itself, and makes all mounts, devices and links in it.
pub(crate) fn build<'a>(
    plan: &'a Plan,
    spec: &Spec,
    cgroup_ready: &'a mut dyn FnMut() -> Result<()>,
    ask_for_source: Option<AskForSource<'a>>,
) -> Result<Root<'a>> {
    isolate(plan)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let name = || plan.rootfs.display().to_string();
    let fd = open_tree(CWD, &plan.rootfs, flags).ctx("open_tree", name)?;
    let at = rustix::fs::open(
        &plan.rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ctx("open", name)?;
    if plan
        .propagation
        .is_some_and(|(flags, recursive)| !recursive || !is_cut(flags | MountPropagationFlags::REC))
    {
        // Every mount of the copy; the root gets what the spec wants when all is done.
        let private = MountPropagationFlags::PRIVATE.bits().into();
        mounts::propagate(&fd, private, true).ctx("change propagation", name)?;
    }
    mounts::attach(&fd, &at).ctx("move_mount", name)?;
    let mut root = Root {
        fd,
        bundle: &plan.bundle,
        in_userns: plan.in_userns,
        cgroupns: plan.cgroupns,
        rootless: plan.rootless,
        view: &plan.view,
        sources: &plan.sources,
        null: masks::null_device()?,
        cgroup_ready,
        ask_for_source,
        label: spec.linux.as_ref().map(|l| l.mount_label.clone()).unwrap_or_default(),
        index: 0,
    };
    for (index, m) in spec.mounts.iter().enumerate() {
        root.index = index;
        mounts::mount(&mut root, m)?;
    }
    // A /dev bound from elsewhere is the user's own: nothing is made in it.
    let own_dev = spec.mounts.iter().any(|m| {
        resolve::clean(&m.destination) == Path::new("/dev")
            && (m.kind == "bind" || m.options.iter().any(|o| o == "bind" || o == "rbind"))
    });
    if !own_dev {
        let listed = spec.linux.as_ref().map_or(&[][..], |l| &l.devices);
        devices::populate(&root, listed)?;
    }
    Ok(root)
}

/// Whether nothing that is mounted reaches the host, wherever it is, once "/" is changed so.
fn is_cut(flags: MountPropagationFlags) -> bool {
    let one_way = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::PRIVATE;
    flags.contains(MountPropagationFlags::REC) && flags.intersects(one_way)
}

/// Cuts mount propagation to the host, before anything is mounted.
fn isolate(plan: &Plan) -> Result<()> {
    let (flags, recursive) = plan.propagation.unwrap_or((MountPropagationFlags::DOWNSTREAM, true));
    let flags = if recursive { flags | MountPropagationFlags::REC } else { flags };
    mount_change("/", flags).ctx("change propagation", || "/")?;
    if !is_cut(flags) {
        // What the root is on may still be shared: pivot_root refuses such a parent, and what is
        // mounted in a copy of it would show on the host.
        let mut at = Some(plan.rootfs.as_path());
        while let Some(path) = at {
            match mount_change(path, MountPropagationFlags::PRIVATE) {
                Err(Errno::INVAL) => at = path.parent(),
                other => return other.ctx("change propagation", || path.display().to_string()),
            }
        }
    }
    Ok(())
}

/// Covers /dev/console with the pty's slave.
pub(crate) fn bind_console(root: &Root<'_>, slave: &OwnedFd) -> Result<()> {
    devices::console(root, slave)
}

/// Makes the built tree the process's root and lets go of the host's.
pub(crate) fn enter(plan: &Plan, root: &Root<'_>) -> Result<()> {
    fchdir(&root.fd).ctx("fchdir", || "container root")?;
    if plan.no_pivot {
        return move_root(root);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).ctx("open", || "/")?;
    pivot_root(c".", c".").ctx("pivot_root", || plan.rootfs.display().to_string())?;
    // The old root now lies on top of the new one. Unmounting it must not reach the host.
    fchdir(&old).ctx("fchdir", || "old root")?;
    let private = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change(c".", private).ctx("change propagation", || "old root")?;
    unmount(c".", UnmountFlags::DETACH).ctx("unmount", || "old root")?;
    chdir(c"/").ctx("chdir", || "/")
}

/// For roots that pivot_root refuses (a ramfs): the tree is moved over "/". What was reachable
/// through the old root's proc and sysfs mounts is unmounted first.
fn move_root(root: &Root<'_>) -> Result<()> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").ctx("read", || "mountinfo")?;
    let at = rustix::process::getcwd(Vec::new()).ctx("getcwd", || "container root")?;
    let at = at.to_string_lossy().into_owned();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.reverse();
    for line in lines {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4) else { continue };
        let kind = line.split(" - ").nth(1).and_then(|r| r.split(' ').next()).unwrap_or("");
        let inside = point == at || point.strip_prefix(&at).is_some_and(|r| r.starts_with('/'));
        if !inside && (kind == "proc" || kind == "sysfs") {
            // One that cannot be unmounted is covered.
            match unmount(point, UnmountFlags::DETACH) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(_) => {
                    let data = c"size=0,nr_inodes=1";
                    rustix::mount::mount("tmpfs", point, "tmpfs", MountFlags::RDONLY, data)
                        .ctx("cover", || point)?;
                }
            }
        }
    }
    fchdir(&root.fd).ctx("fchdir", || "container root")?;
    mount_move(c".", c"/").ctx("move", || "container root over /")?;
    chroot(c".").ctx("chroot", || "container root")?;
    chdir(c"/").ctx("chdir", || "/")
}

/// After the root was entered and hooks have run: read-only root, masks, read-only paths.
pub(crate) fn seal(plan: &Plan, root: &Root<'_>, spec: &Spec) -> Result<()> {
    let linux = spec.linux.as_ref();
    if let Some((flags, recursive)) = plan.propagation {
        let flags = if recursive { flags | MountPropagationFlags::REC } else { flags };
        mount_change(c"/", flags).ctx("change propagation", || "container root")?;
    }
    if let Some(linux) = linux {
        masks::read_only(root, &linux.readonly_paths)?;
        masks::mask(root, &linux.masked_paths)?;
    }
    if spec.root.as_ref().is_some_and(|r| r.readonly) {
        let attr = MountAttr { set: ATTR_RDONLY, ..MountAttr::default() };
        match mount_setattr(&root.fd, &attr) {
            Err(Errno::NOSYS) => remount_read_only(&root.fd),
            other => other,
        }
        .ctx("make read-only", || "container root")?;
    }
    Ok(())
}

/// mount(2)'s way for kernels without mount_setattr; keeps the flags that are there.
fn remount_read_only(mount: &OwnedFd) -> Result<(), Errno> {
    let now = rustix::fs::fstatvfs(mount)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (have, keep) in [
        (rustix::fs::StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (rustix::fs::StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (rustix::fs::StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (rustix::fs::StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (rustix::fs::StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if now.contains(have) {
            flags |= keep;
        }
    }
    mount_remount(format!("/proc/self/fd/{}", mount.as_raw_fd()).as_str(), flags, c"")
}

/// The working directory, made if the image lacks it.
///
/// The path is resolved below the container's root and never through a magic link, so that
/// `/proc/self/fd/N` cannot lead to a directory of the host.
pub(crate) fn working_directory(cwd: &str, make: bool) -> Result<OwnedFd, Errno> {
    let root =
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = Path::new(cwd);
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match resolve::open_in(root.as_fd(), path, flags, rustix::fs::ResolveFlags::empty()) {
        Err(Errno::NOENT) if make => {
            resolve::ensure_in(root.as_fd(), path, resolve::Leaf::Directory).map(|(fd, _)| fd)
        }
        other => other,
    }
}

pub(crate) fn check(spec: &Spec) -> Result<()> {
    const NO_ID: u32 = crate::process::NO_ID;
    for d in spec.linux.as_ref().map_or(&[][..], |l| &l.devices) {
        if d.uid == Some(NO_ID) || d.gid == Some(NO_ID) {
            return Err(Error::config("linux.devices.uid", format!("{NO_ID} is no id")));
        }
    }
    for m in &spec.mounts {
        if m.destination.is_empty() {
            return Err(Error::config("mounts.destination", "is empty"));
        }
        let o = options::parse(&m.options);
        let is_bind = o.bind || m.kind == "bind";
        if (o.idmap || !m.uid_mappings.is_empty() || !m.gid_mappings.is_empty()) && !is_bind {
            return Err(Error::Unsupported(format!("idmap on a mount of type {:?}", m.kind)));
        }
    }
    Ok(())
}
