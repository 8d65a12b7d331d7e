//! The mounts that make a container's root file system, as containerd describes them.

use std::ffi::CString;
use std::path::Path;

use protos::shim::Mount;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use sys::overlay::{OPTIONS_BYTES_MAX, mount_long, shortened};

use crate::error::{Context, Error, Result};

/// Mounts of one request; containerd sends one, rarely a few.
const MOUNTS_MAX: usize = 64;
/// Options of mount(8) that are flags: (name, flag, whether it sets the flag).
const FLAGS: [(&str, MountFlags, bool); 24] = [
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("remount", MountFlags::empty(), true),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("lazytime", MountFlags::LAZYTIME, true),
    ("nolazytime", MountFlags::LAZYTIME, false),
    ("silent", MountFlags::SILENT, true),
    ("defaults", MountFlags::empty(), true),
];

const PROPAGATION: [(&str, MountPropagationFlags); 8] = [
    ("private", MountPropagationFlags::PRIVATE),
    ("rprivate", MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC)),
    ("shared", MountPropagationFlags::SHARED),
    ("rshared", MountPropagationFlags::SHARED.union(MountPropagationFlags::REC)),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    ("rslave", MountPropagationFlags::DOWNSTREAM.union(MountPropagationFlags::REC)),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
    ("runbindable", MountPropagationFlags::UNBINDABLE.union(MountPropagationFlags::REC)),
];

struct Parsed<'a> {
    flags: MountFlags,
    bind: Option<bool>,
    propagation: Option<MountPropagationFlags>,
    data: Vec<&'a str>,
}

/// Mounts all of them on `target`, in order; on failure none stays.
///
/// # Errors
/// The first mount that failed; options that are known and not offered (`loop`, `remount`).
pub(crate) fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    if mounts.len() > MOUNTS_MAX {
        return Err(Error::exhausted(format!("more than {MOUNTS_MAX} rootfs mounts")));
    }
    std::fs::create_dir_all(target).context("mkdir", || target.display().to_string())?;
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(mount, target) {
            if done > 0 {
                // The mount's own error is the one to tell.
                drop(unmount_all(target));
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Detaches everything that is mounted on `target`.
///
/// # Errors
/// umount2(2), other than that nothing is mounted there or it is gone.
pub(crate) fn unmount_all(target: &Path) -> Result<()> {
    loop {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        match rustix::mount::unmount(target, flags) {
            Ok(()) | Err(Errno::INTR) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).context("unmount", || target.display().to_string()),
        }
    }
}

fn parse(mount: &Mount) -> Result<Parsed<'_>> {
    let mut parsed =
        Parsed { flags: MountFlags::empty(), bind: None, propagation: None, data: Vec::new() };
    for option in &mount.options {
        let option = option.as_str();
        if let Some((_, flag, set)) = FLAGS.iter().find(|(name, ..)| *name == option) {
            if option == "remount" {
                return Err(Error::unsupported("rootfs mount option remount"));
            }
            parsed.flags.set(*flag, *set);
        } else if let Some((_, flag)) = PROPAGATION.iter().find(|(name, _)| *name == option) {
            parsed.propagation = Some(*flag);
        } else {
            match option {
                "bind" => parsed.bind = Some(false),
                "rbind" => parsed.bind = Some(true),
                // Overlay would be given them as its own, and answer "invalid argument".
                _ if option.starts_with("uidmap=") || option.starts_with("gidmap=") => {
                    return Err(Error::unsupported(format!("rootfs mount option {option}")));
                }
                "loop" => return Err(Error::unsupported("rootfs mount option loop")),
                "" => {}
                _ => parsed.data.push(option),
            }
        }
    }
    if mount.kind == "bind" && parsed.bind.is_none() {
        parsed.bind = Some(false);
    }
    Ok(parsed)
}

fn mount_one(mount: &Mount, root: &Path) -> Result<()> {
    let parsed = parse(mount)?;
    let target = if mount.target.is_empty() {
        root.to_owned()
    } else {
        return Err(Error::unsupported(format!("rootfs mount target {:?}", mount.target)));
    };
    let name = || format!("{} {} at {}", mount.kind, mount.source, target.display());
    if let Some(recursive) = parsed.bind {
        let mut flags = MountFlags::BIND;
        if recursive {
            flags |= MountFlags::REC;
        }
        rustix::mount::mount(&mount.source, &target, "", flags, None).context("mount", name)?;
        if !parsed.flags.is_empty() {
            let flags = MountFlags::BIND | parsed.flags;
            rustix::mount::mount_remount(&target, flags, "").context("remount", name)?;
        }
    } else {
        mount_filesystem(mount, &parsed, &target)?;
    }
    if let Some(propagation) = parsed.propagation {
        rustix::mount::mount_change(&target, propagation).context("set propagation", name)?;
    }
    Ok(())
}

fn mount_filesystem(mount: &Mount, parsed: &Parsed<'_>, target: &Path) -> Result<()> {
    let name = || format!("{} {} at {}", mount.kind, mount.source, target.display());
    let data = parsed.data.join(",");
    if data.len() > OPTIONS_BYTES_MAX {
        let short = (mount.kind == "overlay").then(|| shortened(&parsed.data)).flatten();
        let mounted = match short {
            Some((base, data)) => mount_from(base, mount, parsed.flags, &data, target),
            None => {
                let what = (mount.kind.as_str(), mount.source.as_str());
                mount_long(what, parsed.flags, &parsed.data, target)
            }
        };
        return mounted.context("mount", name);
    }
    let data = CString::new(data).map_err(|_| Error::invalid("NUL in a mount option"))?;
    rustix::mount::mount(
        mount.source.as_str(),
        target,
        mount.kind.as_str(),
        parsed.flags,
        data.as_c_str(),
    )
    .context("mount", name)
}

/// Mounts from within `base`, in a process of its own: the shim's directory stays what it is.
fn mount_from(
    base: &str,
    mount: &Mount,
    flags: MountFlags,
    data: &str,
    target: &Path,
) -> Result<(), Errno> {
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let child = sys::clone::clone_process(&sys::clone::CloneOptions::default(), || {
        let mounted = rustix::process::chdir(base).and_then(|()| {
            let kind = mount.kind.as_str();
            rustix::mount::mount(mount.source.as_str(), target, kind, flags, Some(data.as_c_str()))
        });
        mounted.map_or_else(Errno::raw_os_error, |()| 0)
    })?;
    let id = rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&child.pidfd));
    loop {
        match rustix::process::waitid(id.clone(), rustix::process::WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(status) => {
                return match status.and_then(|status| status.exit_status()) {
                    Some(0) => Ok(()),
                    Some(number) => Err(Errno::from_raw_os_error(number)),
                    None => Err(Errno::INTR),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mount(options: &[&str]) -> Mount {
        Mount {
            kind: "overlay".into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn options_split_into_flags_and_data() {
        let mount = mount(&["ro", "nosuid", "suid", "lowerdir=/a:/b", "rslave", "volatile"]);
        let parsed = parse(&mount).unwrap();
        assert_eq!(parsed.flags, MountFlags::RDONLY);
        assert_eq!(parsed.data, ["lowerdir=/a:/b", "volatile"]);
        assert!(parsed.propagation.unwrap().contains(MountPropagationFlags::REC));
    }

    #[test]
    fn options_that_map_ids_are_refused_by_name() {
        for option in ["uidmap=0:100000:65536", "gidmap=0:100000:65536"] {
            let error = parse(&mount(&[option])).map(drop).unwrap_err();
            assert!(error.to_string().contains(option));
        }
    }

    #[test]
    fn loop_devices_are_refused_by_name() {
        let error = parse(&mount(&["loop"])).map(drop).unwrap_err();
        assert!(error.to_string().contains("loop"));
    }
}
