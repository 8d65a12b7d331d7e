//! Facts about a container that outlive the shim, as files in its bundle.
//!
//! `shim.json`: what `delete` needs after the shim died. `exit.json`: the first process's exit,
//! written before anybody is told. `address`: where the shim listens (containerd's file).
//! Each is written to a temporary name and renamed; none is synced, because bundles lie on tmpfs.

use std::path::{Path, PathBuf};

use protos::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{Context, Error, Result};

/// Version of the files written here; readers refuse newer ones.
pub const VERSION: u32 = 1;
/// Largest state file that is read, in bytes: they hold a few paths.
const STATE_BYTES_MAX: u64 = 64 << 10;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0–255; 128 + n for signal n.
    pub status: u32,
    /// When the shim learnt of it.
    pub at: Timestamp,
}

/// `exit.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExitFile {
    /// [`VERSION`].
    pub version: u32,
    /// Pid that the process had.
    pub pid: u32,
    /// 0–255; 128 + n for signal n.
    pub status: u32,
    /// Since 1970.
    pub exited_seconds: i64,
    /// Of the second.
    pub exited_nanos: i32,
}

/// `shim.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShimFile {
    /// [`VERSION`].
    pub version: u32,
    /// Pid of the shim.
    pub shim_pid: u32,
    /// State root of the OCI runtime.
    pub runtime_root: PathBuf,
    /// OCI runtime that is executed; `None`: the linked one.
    pub binary: Option<String>,
    /// cgroups through systemd.
    pub systemd_cgroup: bool,
    /// Mounts that the shim made on `rootfs`.
    pub mounted: bool,
}

impl ExitFile {
    /// The exit as other code wants it.
    pub fn exit(&self) -> Exit {
        let at = Timestamp { seconds: self.exited_seconds, nanos: self.exited_nanos };
        Exit { status: self.status, at }
    }
}

/// Writes `exit.json`.
pub fn write_exit(bundle: &Path, pid: u32, exit: Exit) -> Result<()> {
    let file = ExitFile {
        version: VERSION,
        pid,
        status: exit.status,
        exited_seconds: exit.at.seconds,
        exited_nanos: exit.at.nanos,
    };
    write_json(&bundle.join("exit.json"), &file)
}

/// Reads `exit.json`; `None` if the process has not ended as far as the shim got to know.
pub fn read_exit(bundle: &Path) -> Result<Option<ExitFile>> {
    let file: Option<ExitFile> = read_json(&bundle.join("exit.json"))?;
    check_version(file, |f| f.version, bundle)
}

/// Writes `shim.json`.
pub fn write_shim(bundle: &Path, file: &ShimFile) -> Result<()> {
    write_json(&bundle.join("shim.json"), file)
}

/// Reads `shim.json`; `None` if there was no successful Create.
pub fn read_shim(bundle: &Path) -> Result<Option<ShimFile>> {
    let file: Option<ShimFile> = read_json(&bundle.join("shim.json"))?;
    check_version(file, |f| f.version, bundle)
}

/// Replaces a small file.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    std::fs::write(&temporary, contents).context("write", || path.display().to_string())?;
    std::fs::rename(&temporary, path).context("replace", || path.display().to_string())
}

fn check_version<T>(file: Option<T>, of: impl Fn(&T) -> u32, bundle: &Path) -> Result<Option<T>> {
    match file {
        Some(file) if of(&file) != VERSION => Err(Error::precondition(format!(
            "state of {} has version {}, this shim knows {VERSION}",
            bundle.display(),
            of(&file),
        ))),
        file => Ok(file),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value)
        .map_err(|source| Error::Json { object: path.display().to_string(), source })?;
    write_atomic(path, &text)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = read_limited(path, STATE_BYTES_MAX)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| Error::Json { object: path.display().to_string(), source })
}

/// A whole file of at most `limit` bytes; `None` if it is not there.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.context("open", || path.display().to_string())?,
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).context("read", || path.display().to_string())?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(Error::exhausted(format!("{} has more than {limit} bytes", path.display())));
    }
    Ok(Some(bytes))
}
