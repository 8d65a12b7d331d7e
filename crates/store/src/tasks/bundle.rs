//! Bundles: the directory of a task, and the facts in it that outlive the store.
//!
//! `STATE/io.containerd.runtime.v2.task/NAMESPACE/ID` (0700; 0710 and of the group that is root's in the
//! container where its user namespace maps ids): `config.json`, `rootfs/`, `task.json`
//! (what the store knows; versioned), `exit.json` (the shim's record of the exit; the store writes it
//! for shims that do not), `address` (written by the shim); for other shims `log` (their FIFO for
//! messages) and `work` (a link to their directory below the store's root).

use std::{
    collections::BTreeMap,
    io::{ErrorKind as Io, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use store_api::{Error, Exit, Result, Stdio, Timestamp};

/// Directory below state and root; containerd's name.
pub(super) const DIRECTORY: &str = "io.containerd.runtime.v2.task";
/// Version of `task.json` and `exit.json`.
const VERSION: u32 = 1;

/// `task.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TaskFile {
    pub(super) version: u32,
    /// Program of a foreign shim; `None`: our own.
    pub(super) program: Option<PathBuf>,
    /// The shim's ttrpc socket; empty until it was started.
    pub(super) socket: PathBuf,
    /// Of the first process; 0 until Create succeeded.
    pub(super) pid: u32,
    pub(super) stdio: Stdio,
    /// Exec id → streams of the execs that were not deleted.
    pub(super) execs: BTreeMap<String, Stdio>,
    /// The exit was published.
    pub(super) exit_told: bool,
}

/// `exit.json`, the shim's format.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ExitFile {
    version: u32,
    pid: u32,
    status: u32,
    exited_seconds: i64,
    exited_nanos: i32,
}

impl TaskFile {
    pub(super) fn new(program: Option<PathBuf>, stdio: Stdio) -> Self {
        Self {
            version: VERSION,
            program,
            socket: PathBuf::new(),
            pid: 0,
            stdio,
            execs: BTreeMap::new(),
            exit_told: false,
        }
    }

    pub(super) fn write(&self, bundle: &Path) -> Result<()> {
        write_json(&task_file(bundle), self)
    }

    /// `None`: no store made this bundle, or it got no further.
    pub(super) fn read(bundle: &Path) -> Result<Option<Self>> {
        let file: Option<Self> = read_json(&task_file(bundle))?;
        check_version(bundle, file.as_ref().map(|f| f.version))?;
        Ok(file)
    }
}

pub(super) fn task_file(bundle: &Path) -> PathBuf {
    bundle.join("task.json")
}

/// The recorded exit of the first process.
pub(super) fn read_exit(bundle: &Path) -> Result<Option<(u32, Exit)>> {
    let file: Option<ExitFile> = read_json(&bundle.join("exit.json"))?;
    check_version(bundle, file.as_ref().map(|f| f.version))?;
    Ok(file.map(|f| {
        let nanos = u32::try_from(f.exited_nanos).unwrap_or(0);
        let exited_at = Timestamp { seconds: f.exited_seconds, nanos };
        (f.pid, Exit { status: f.status, exited_at })
    }))
}

/// Records an exit that the shim did not record.
pub(super) fn write_exit(bundle: &Path, pid: u32, exit: Exit) -> Result<()> {
    let file = ExitFile {
        version: VERSION,
        pid,
        status: exit.status,
        exited_seconds: exit.exited_at.seconds,
        exited_nanos: i32::try_from(exit.exited_at.nanos).unwrap_or(0),
    };
    write_json(&bundle.join("exit.json"), &file)
}

/// Makes the bundle exclusively.
///
/// # Errors
/// `AlreadyExists`.
pub(super) fn create(bundle: &Path, spec: &[u8]) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    if let Some(parent) = bundle.parent() {
        builder
            .mode(0o711)
            .recursive(true)
            .create(parent)
            .map_err(|e| failed("make", parent, &e))?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(bundle) {
        Err(error) if error.kind() == Io::AlreadyExists => {
            let name = bundle.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(Error::already_exists("task", name));
        }
        other => other.map_err(|e| failed("make", bundle, &e))?,
    }
    let_root_pass(bundle, spec)?;
    let rootfs = bundle.join("rootfs");
    std::fs::DirBuilder::new()
        .mode(0o711)
        .create(&rootfs)
        .map_err(|e| failed("make", &rootfs, &e))?;
    write(&bundle.join("config.json"), spec)
}

/// Lets the container's root go through the bundle to its `rootfs` where it is mapped to another user of
/// the host: as its group, and no further. containerd 1.6 does so (`prepareBundleDirectoryPermissions`).
fn let_root_pass(bundle: &Path, spec: &[u8]) -> Result<()> {
    // The runtime tells what is wrong with a specification.
    let gid = serde_json::from_slice(spec).ok().and_then(|spec: Spec| spec.root_gid());
    let Some(gid) = gid.filter(|gid| *gid != 0) else { return Ok(()) };
    std::os::unix::fs::chown(bundle, None, Some(gid))
        .and_then(|()| std::fs::set_permissions(bundle, std::fs::Permissions::from_mode(0o710)))
        .map_err(|e| failed("open to the container's root", bundle, &e))
}

/// Of a specification, whose ids the container's are (runtime-spec, config-linux.md).
#[derive(Deserialize)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    gid_mappings: Option<Vec<Mapping>>,
}

#[derive(Deserialize)]
struct Mapping {
    #[serde(rename = "containerID")]
    container: u32,
    #[serde(rename = "hostID")]
    host: u32,
}

impl Spec {
    /// The host's group for the container's group 0.
    fn root_gid(self) -> Option<u32> {
        let mappings = self.linux?.gid_mappings?;
        mappings.iter().find(|mapping| mapping.container == 0).map(|mapping| mapping.host)
    }
}

/// Removes the bundle. What is mounted on `rootfs` must be gone; never deletes through a mount.
pub(super) fn remove(bundle: &Path) -> Result<()> {
    let rootfs = bundle.join("rootfs");
    match std::fs::remove_dir(&rootfs) {
        Ok(()) => {}
        Err(error) if error.kind() == Io::NotFound => {}
        Err(_) => {
            // A mount of a shim that died: detached by itself, then an empty directory again.
            use rustix::mount::{UnmountFlags, unmount};
            while unmount(&rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
            std::fs::remove_dir(&rootfs).map_err(|e| failed("remove", &rootfs, &e))?;
        }
    }
    if let Ok(work) = std::fs::read_link(bundle.join("work")) {
        remove_tree(&work)?;
    }
    remove_tree(bundle)
}

fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != Io::NotFound => Err(failed("remove", path, &error)),
        _ => Ok(()),
    }
}

/// What a foreign shim expects beside the bundle's own: `log` and `work`.
pub(super) fn prepare_foreign(bundle: &Path, work: &Path) -> Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let log = bundle.join("log");
    mknodat(CWD, &log, FileType::Fifo, Mode::from_raw_mode(0o700), 0)
        .map_err(|e| failed("make", &log, &e.into()))?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(work)
        .map_err(|e| failed("make", work, &e))?;
    let link = bundle.join("work");
    std::os::unix::fs::symlink(work, &link).map_err(|e| failed("make", &link, &e))
}

pub(super) fn failed(operation: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::internal(format!("{operation} {}: {error}", path.display()))
}

fn check_version(bundle: &Path, version: Option<u32>) -> Result<()> {
    match version {
        Some(version) if version != VERSION => Err(Error::new(
            types::ErrorKind::FailedPrecondition,
            format!("{} has version {version}, this store knows {VERSION}", bundle.display()),
        )),
        _ => Ok(()),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value)
        .map_err(|error| Error::internal(format!("write {}: {error}", path.display())))?;
    write(path, &text)
}

/// Replaces a file, for root alone; not synced, because state lies on tmpfs.
fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(&temporary)
        .and_then(|mut file| file.write_all(contents))
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| failed("write", path, &error))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == Io::NotFound => return Ok(None),
        other => other.map_err(|error| failed("read", path, &error))?,
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::internal(format!("parse {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// Needs root.
    #[test]
    fn the_mapped_root_comes_through_and_reads_nothing() {
        let ground = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        for (name, spec, wanted) in [
            ("plain", "{}", (0o700, 0)),
            ("own", r#"{"linux":{"gidMappings":null}}"#, (0o700, 0)),
            ("other", r#"{"linux":{"gidMappings":[{"containerID":1,"hostID":7}]}}"#, (0o700, 0)),
            (
                "mapped",
                r#"{"linux":{"gidMappings":[{"containerID":0,"hostID":4242,"size":9}]}}"#,
                (0o710, 4242),
            ),
        ] {
            let bundle = ground.path().join(name);
            create(&bundle, spec.as_bytes()).unwrap();
            assert_eq!((mode(&bundle), bundle.metadata().unwrap().gid()), wanted, "{name}");
            assert_eq!(mode(&bundle.join("rootfs")), 0o711);
            assert_eq!(mode(&bundle.join("config.json")), 0o600);
            TaskFile::new(None, Stdio::default()).write(&bundle).unwrap();
            assert_eq!(mode(&bundle.join("task.json")), 0o600);
            remove(&bundle).unwrap();
        }
    }
}
