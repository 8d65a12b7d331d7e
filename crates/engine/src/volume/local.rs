//! File systems behind volumes: the options `type`, `device` and `o` of the `local` driver, as
//! mount(8) reads them. Such a volume's `_data` is mounted while a container uses it.

use std::{ffi::CString, net::IpAddr, path::Path};

use api_types::Map;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::{Error, Result};

/// Mounts that may lie on top of each other at one place.
const STACKED_MAX: usize = 16;

/// What a volume's options ask to be mounted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LocalMount {
    device: String,
    kind: String,
    flags: MountFlags,
    propagation: MountPropagationFlags,
    /// For the file system itself.
    data: Vec<String>,
}

/// Checks options as moby `volume/local/local_unix.go` does.
///
/// # Errors
/// An option that there is not, or one that lacks another that it needs.
pub(super) fn parse(options: &Map<String>) -> Result<Option<LocalMount>> {
    for key in options.keys() {
        match key.as_str() {
            "type" | "device" | "o" => {}
            "size" => {
                return Err(Error::not_implemented(
                    "volume option \"size\" (quotas of the file system)",
                ));
            }
            _ => return Err(Error::invalid(format!("invalid option: \"{key}\""))),
        }
    }
    let get = |key: &str| options.get(key).map_or("", String::as_str);
    if options.is_empty() {
        return Ok(None);
    }
    for needed in ["device", "type"] {
        if get(needed).is_empty() {
            return Err(Error::invalid(format!("missing required option: \"{needed}\"")));
        }
    }
    let mut mount = LocalMount {
        device: get("device").into(),
        kind: get("type").into(),
        flags: MountFlags::empty(),
        propagation: MountPropagationFlags::empty(),
        data: Vec::new(),
    };
    for word in get("o").split(',').map(str::trim).filter(|word| !word.is_empty()) {
        mount.add(word)?;
    }
    Ok(Some(mount))
}

impl LocalMount {
    fn add(&mut self, word: &str) -> Result<()> {
        let (on, flag) = match word {
            "defaults" => return Ok(()),
            "ro" => (true, MountFlags::RDONLY),
            "rw" => (false, MountFlags::RDONLY),
            "nosuid" => (true, MountFlags::NOSUID),
            "suid" => (false, MountFlags::NOSUID),
            "nodev" => (true, MountFlags::NODEV),
            "dev" => (false, MountFlags::NODEV),
            "noexec" => (true, MountFlags::NOEXEC),
            "exec" => (false, MountFlags::NOEXEC),
            "sync" => (true, MountFlags::SYNCHRONOUS),
            "async" => (false, MountFlags::SYNCHRONOUS),
            "dirsync" => (true, MountFlags::DIRSYNC),
            "mand" => (true, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
            "nomand" => (false, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
            "noatime" => (true, MountFlags::NOATIME),
            "atime" => (false, MountFlags::NOATIME),
            "nodiratime" => (true, MountFlags::NODIRATIME),
            "diratime" => (false, MountFlags::NODIRATIME),
            "relatime" => (true, MountFlags::RELATIME),
            "norelatime" => (false, MountFlags::RELATIME),
            "strictatime" => (true, MountFlags::STRICTATIME),
            "nostrictatime" => (false, MountFlags::STRICTATIME),
            "bind" => (true, MountFlags::BIND),
            "rbind" => (true, MountFlags::BIND.union(MountFlags::REC)),
            "private" => return self.propagate(MountPropagationFlags::PRIVATE, false),
            "rprivate" => return self.propagate(MountPropagationFlags::PRIVATE, true),
            "shared" => return self.propagate(MountPropagationFlags::SHARED, false),
            "rshared" => return self.propagate(MountPropagationFlags::SHARED, true),
            "slave" => return self.propagate(MountPropagationFlags::DOWNSTREAM, false),
            "rslave" => return self.propagate(MountPropagationFlags::DOWNSTREAM, true),
            "unbindable" => return self.propagate(MountPropagationFlags::UNBINDABLE, false),
            "runbindable" => return self.propagate(MountPropagationFlags::UNBINDABLE, true),
            other => {
                self.check_data(other)?;
                self.data.push(other.into());
                return Ok(());
            }
        };
        self.flags.set(flag, on);
        Ok(())
    }

    fn propagate(&mut self, how: MountPropagationFlags, recursive: bool) -> Result<()> {
        self.propagation = how;
        self.propagation.set(MountPropagationFlags::REC, recursive);
        Ok(())
    }

    /// The kernel's network file systems take addresses, not names.
    fn check_data(&self, word: &str) -> Result<()> {
        let remote = self.kind.starts_with("nfs") || self.kind == "cifs";
        match word.strip_prefix("addr=") {
            Some(name) if remote && name.parse::<IpAddr>().is_err() => Err(Error::not_implemented(
                format!("volume option \"o=addr={name}\" with a name: give an IP address"),
            )),
            _ => Ok(()),
        }
    }

    /// Mounts it on `dir`, where nothing is mounted.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is mounted then.
    pub(super) fn mount(&self, dir: &Path) -> Result<()> {
        let mounted = self.mount_all(dir);
        if mounted.is_err() {
            unmount(dir)?;
        }
        mounted
    }

    fn mount_all(&self, dir: &Path) -> Result<()> {
        let failed = |error: rustix::io::Errno| {
            Error::internal(format!(
                "failed to mount local volume: mount {}:{}, type {}, data {}: {error}",
                self.device,
                dir.display(),
                self.kind,
                self.shown_data(),
            ))
        };
        let data = CString::new(self.data.join(","))
            .map_err(|_| Error::invalid("volume option \"o\" has a zero byte"))?;
        let is_bind = self.flags.contains(MountFlags::BIND);
        let first = match is_bind {
            true => self.flags & (MountFlags::BIND | MountFlags::REC),
            false => self.flags,
        };
        rustix::mount::mount(&self.device, dir, &self.kind, first, Some(data.as_c_str()))
            .map_err(failed)?;
        let rest = self.flags - (MountFlags::BIND | MountFlags::REC);
        if is_bind && !rest.is_empty() {
            rustix::mount::mount_remount(dir, MountFlags::BIND | rest, c"").map_err(failed)?;
        }
        if !self.propagation.is_empty() {
            rustix::mount::mount_change(dir, self.propagation).map_err(failed)?;
        }
        Ok(())
    }

    /// Without passwords.
    fn shown_data(&self) -> String {
        let words = self.data.iter().map(|word| match word.split_once('=') {
            Some((key @ ("password" | "pass" | "passwd"), _)) => format!("{key}=********"),
            _ => word.clone(),
        });
        words.collect::<Vec<_>>().join(",")
    }
}

/// Takes away what is mounted on `dir`, if anything is.
pub(super) fn unmount(dir: &Path) -> Result<()> {
    for _ in 0..STACKED_MAX {
        match rustix::mount::unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or there is no such place.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Error::io("unmount", dir, &error.into())),
        }
    }
    Err(Error::internal(format!("too much is mounted on {}", dir.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(list: &[(&str, &str)]) -> Map<String> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn options_as_mount_reads_them() {
        let parsed =
            parse(&options(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,ro,nosuid")]));
        let mount = parsed.unwrap().unwrap();
        assert_eq!(mount.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(mount.data, ["size=1m"]);
        let parsed = parse(&options(&[("type", "none"), ("device", "/a"), ("o", "rbind,rslave")]));
        let mount = parsed.unwrap().unwrap();
        assert_eq!(mount.flags, MountFlags::BIND | MountFlags::REC);
        assert_eq!(
            mount.propagation,
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC
        );
        assert_eq!(parse(&options(&[])).unwrap(), None);
    }

    #[test]
    fn refused_options() {
        let refused = |list: &[(&str, &str)]| parse(&options(list)).unwrap_err().message;
        assert_eq!(refused(&[("foo", "x")]), "invalid option: \"foo\"");
        assert_eq!(refused(&[("type", "tmpfs")]), "missing required option: \"device\"");
        assert_eq!(
            refused(&[("o", "bind"), ("device", "/a")]),
            "missing required option: \"type\""
        );
        let named = [("type", "nfs"), ("device", ":/x"), ("o", "addr=server,rw")];
        assert!(refused(&named).contains("give an IP address"));
    }

    #[test]
    fn passwords_are_not_shown() {
        let list = [("type", "cifs"), ("device", "//a/b"), ("o", "username=u,password=secret")];
        let mount = parse(&options(&list)).unwrap().unwrap();
        assert_eq!(mount.shown_data(), "username=u,password=********");
    }
}
