//! `/dev/shm` of containers that share their IPC namespace: a tmpfs below the exec root, which others can
//! have bound into them (`--ipc shareable`, `--ipc container:NAME`).

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use types::ContainerId;

use super::record::Record;
use crate::{Engine, Error, Result, util::make_dir_mode};

const HOST_SHM: &str = "/dev/shm";

impl Engine {
    fn shm_dir(&self, id: &ContainerId) -> PathBuf {
        self.config.exec_root.join("containers").join(id.as_str()).join("shm")
    }

    /// Mounts it, where the container is one to be shared; it goes with the container's end.
    pub(super) fn mount_shm(&self, record: &Record) -> Result<()> {
        let host = &record.host_config;
        if host.ipc_mode != "shareable" {
            return Ok(());
        }
        let dir = self.shm_dir(&record.id);
        // Left by a daemon that ended in between.
        self.unmount_shm(&record.id);
        make_dir_mode(&dir, 0o700)?;
        let bytes = if host.shm_size > 0 { host.shm_size } else { self.config.default_shm_bytes };
        let options = std::ffi::CString::new(format!("mode=1777,size={bytes}"))
            .map_err(|_| Error::internal("mount options with a zero byte"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("shm", &dir, "tmpfs", flags, Some(options.as_c_str()))
            .map_err(|e| Error::io("mount shared memory on", &dir, &e.into()))
    }

    /// Takes it away; who has it bound keeps it.
    pub(super) fn unmount_shm(&self, id: &ContainerId) {
        let dir = self.shm_dir(id);
        if !dir.exists() {
            return;
        }
        match rustix::mount::unmount(&dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It was not mounted.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "shared memory stays mounted");
                return;
            }
        }
        for dir in [Some(dir.as_path()), dir.parent()].into_iter().flatten() {
            remove_empty(dir);
        }
    }

    /// What is bound to `/dev/shm`; `None` for a tmpfs of its own.
    pub(super) fn shm_source(&self, record: &Record) -> Result<Option<PathBuf>> {
        Ok(match record.host_config.ipc_mode.as_str() {
            "host" => Some(HOST_SHM.into()),
            "shareable" => Some(self.shm_dir(&record.id)),
            mode => match mode.strip_prefix("container:") {
                Some(other) => {
                    let other = self.containers.find(other)?.snapshot();
                    Some(match other.host_config.ipc_mode.as_str() {
                        "host" => HOST_SHM.into(),
                        _ => self.shm_dir(&other.id),
                    })
                }
                None => None,
            },
        })
    }
}

fn remove_empty(dir: &Path) {
    if let Err(error) = std::fs::remove_dir(dir)
        && error.kind() != std::io::ErrorKind::DirectoryNotEmpty
    {
        tracing::debug!(dir = %dir.display(), %error, "a directory stays");
    }
}
