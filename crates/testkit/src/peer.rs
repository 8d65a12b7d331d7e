//! The engines to compare with, each in a sandbox with its own default places.

use crate::engine::Daemon;
use crate::sandbox::Sandbox;
use crate::{Error, Result, trixie};
use std::path::{Path, PathBuf};

/// Where Debian's packages and the unpacked ones of trixie are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// docker.io 20.10, containerd 1.6, as installed.
    Bookworm,
    /// docker.io 26.1, containerd 1.7, from the cache; with the installed runc.
    Trixie,
}

impl Release {
    fn file(self, path: &str) -> Result<PathBuf> {
        match self {
            Self::Trixie => trixie(path),
            Self::Bookworm => {
                let file = Path::new("/").join(path);
                if file.exists() { Ok(file) } else { Err(Error::MissingPeer { path: file }) }
            }
        }
    }
}

/// dockerd, which starts its containerd itself. `config` is its `daemon.json`, for example with
/// `runtimes`; the null value stands for none.
pub fn dockerd<'a>(
    sandbox: &'a Sandbox,
    release: Release,
    config: &serde_json::Value,
) -> Result<Daemon<'a>> {
    use_release(sandbox, release)?;
    let mut argv = vec!["dockerd".to_owned()];
    if !config.is_null() {
        sandbox.write("/etc/docker/daemon.json", config.to_string())?;
        argv.push("--config-file=/etc/docker/daemon.json".to_owned());
    }
    Daemon::start(sandbox, argv, "/run/docker.sock")
}

/// containerd with its default places; `ctr` in the sandbox is the same release's.
pub fn containerd(sandbox: &Sandbox, release: Release) -> Result<Daemon<'_>> {
    use_release(sandbox, release)?;
    let argv = ["containerd".to_owned(), "--log-level=warn".to_owned()];
    Daemon::start(sandbox, argv, "/run/containerd/containerd.sock")
}

/// Puts one release's programs first in the sandbox's search path.
pub fn use_release(sandbox: &Sandbox, release: Release) -> Result<()> {
    for (name, path) in [
        ("dockerd", "usr/sbin/dockerd"),
        ("docker-proxy", "usr/sbin/docker-proxy"),
        ("containerd", "usr/bin/containerd"),
        ("containerd-shim-runc-v2", "usr/bin/containerd-shim-runc-v2"),
        ("ctr", "usr/bin/ctr"),
    ] {
        sandbox.link(name, &release.file(path)?)?;
    }
    Ok(())
}
