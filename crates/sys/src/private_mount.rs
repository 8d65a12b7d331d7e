//! Mounts that nobody else sees: made in a mount namespace of a short-lived thread, kept by a
//! descriptor, gone when the descriptor is closed.
//!
//! Wraps unshare(2), mount(2), umount2(2), openat2(2).

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
};

/// A mount in mount(8)'s words.
#[derive(Clone, Debug)]
pub struct MountSpec {
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// A directory or file shown at a path inside the mounted tree. The path is resolved inside the tree.
#[derive(Clone, Debug)]
pub struct BindSpec {
    pub source: PathBuf,
    pub target: PathBuf,
}

/// Mounts `mounts` over each other on `scratch`, an existing directory that stays empty for everyone
/// else, and answers a descriptor of the tree's root (`O_RDONLY | O_DIRECTORY`).
///
/// # Errors
/// Those of the system calls; binds whose target is missing inside the tree are left out, as a
/// container that was never started lacks them too.
pub fn open_tree(
    mounts: Vec<MountSpec>,
    binds: Vec<BindSpec>,
    scratch: PathBuf,
) -> io::Result<OwnedFd> {
    on_thread(move || {
        for spec in &mounts {
            mount_one(spec, &scratch)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&scratch, flags, Mode::empty())?;
        for bind in &binds {
            bind_one(&root, bind)?;
        }
        if !mounts.is_empty() {
            // The mounts stay connected to each other and live as long as the descriptor.
            rustix::mount::unmount(&scratch, UnmountFlags::DETACH)?;
        }
        Ok(root)
    })
}

/// Runs `work` on a thread of its own in a mount namespace of its own, from which nothing propagates.
///
/// # Errors
/// Those of making the namespace, and of `work`.
pub fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("mounts".into()).spawn(move || {
        // SAFETY: CLONE_FS and CLONE_NEWNS do not touch the table of descriptors, which is what makes
        // unshare unsafe; they change this thread alone, and it ends here.
        #[allow(unsafe_code)]
        unsafe {
            rustix::thread::unshare_unsafe(
                rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS,
            )?;
        }
        let slave = MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM;
        rustix::mount::mount_change("/", slave)?;
        work()
    })?;
    thread.join().map_err(|_| io::Error::other("the mounting thread panicked"))?
}

fn mount_one(spec: &MountSpec, target: &Path) -> io::Result<()> {
    let (flags, data) = parse_options(&spec.options);
    let data = CString::new(data.join(","))?;
    rustix::mount::mount(
        spec.source.as_str(),
        target,
        spec.kind.as_str(),
        flags,
        Some(data.as_c_str()),
    )?;
    // A bind takes its flags only when it is mounted again.
    let extra = flags - MountFlags::BIND - MountFlags::REC;
    if flags.contains(MountFlags::BIND) && !extra.is_empty() {
        rustix::mount::mount_remount(target, extra | MountFlags::BIND, "")?;
    }
    Ok(())
}

fn bind_one(root: &impl AsFd, bind: &BindSpec) -> io::Result<()> {
    let target = bind.target.strip_prefix("/").unwrap_or(&bind.target);
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let target = match rustix::fs::openat2(root, target, flags, Mode::empty(), resolve) {
        Ok(target) => target,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let target = crate::private_mount::proc_path(&target);
    rustix::mount::mount_bind_recursive(&bind.source, &target)?;
    Ok(())
}

/// `/proc/self/fd/N`, through which a call that takes a path acts on a descriptor.
pub fn proc_path(fd: &impl std::os::fd::AsRawFd) -> PathBuf {
    format!("/proc/thread-self/fd/{}", fd.as_raw_fd()).into()
}

/// Splits mount(8)'s words into flags and what the file system itself reads.
pub fn parse_options(options: &[String]) -> (MountFlags, Vec<&str>) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" | "" => {}
            "bind" => flags |= MountFlags::BIND,
            "rbind" => flags |= MountFlags::BIND | MountFlags::REC,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            other => data.push(other),
        }
    }
    (flags, data)
}
