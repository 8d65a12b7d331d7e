//! What is known of a container on disk, and what the kernel says about it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, Unit};
use crate::error::{Context, Error, Result, Step};
use crate::procfs::{self, ProcFs};
use crate::rdt::Rdt;
use crate::seccomp::Filter;
use crate::spec::{self, Hook, Spec};
use crate::surroundings::Surroundings;
use crate::sync::Recipient;
use crate::{ContainerId, Options};

/// The version of `state.json` that this code writes and reads.
const VERSION: u32 = 1;
const STATE_LIMIT_BYTES: usize = 4 << 20;

pub(crate) const STATE: &str = "state.json";
pub(crate) const CONFIG: &str = "config.json";
pub(crate) const FIFO: &str = "exec.fifo";
pub(crate) const FILTER: &str = "seccomp.bpf";

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is under way.
    Creating,
    /// Set up, waiting for `start`.
    Created,
    /// The user's process runs.
    Running,
    /// Frozen.
    Paused,
    /// The first process has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// What `runc state` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Pid of the first process in the caller's namespace; 0 when stopped.
    pub pid: i32,
    /// Status.
    pub status: Status,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The spec's annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Owner's name; empty.
    pub owner: String,
}

/// `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) oci_version: String,
    pub(crate) pid: i32,
    /// With the pid, the process's identity.
    pub(crate) start_time: u64,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) created: String,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) cgroup: Cgroup,
    /// systemd's unit around the cgroup.
    #[serde(default)]
    pub(crate) unit: Option<Unit>,
    /// Its mark on the cgroup, see [`crate::cgroup::claim`]; empty in records of before there were marks.
    #[serde(default)]
    pub(crate) claim: String,
    #[serde(default)]
    pub(crate) rdt: Option<Rdt>,
    /// `CLONE_NEW*` of the namespaces that exec joins.
    pub(crate) namespaces: u64,
    /// The container has a pid namespace of its own: all its processes die with the first.
    pub(crate) own_pidns: bool,
    pub(crate) poststart: Vec<Hook>,
    pub(crate) poststop: Vec<Hook>,
    /// What exec takes on, too.
    #[serde(default)]
    pub(crate) surroundings: Surroundings,
    /// Who gets seccomp listeners, exec's included.
    #[serde(default)]
    pub(crate) listener: Option<Listener>,
    /// From before anything is made outside of the state directory until `create` is done.
    #[serde(default)]
    pub(crate) unfinished: Option<Unfinished>,
}

/// What a create that was cut short may have left beside its process and what the record names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Unfinished {
    /// Directories of the cgroup that were not there before.
    pub(crate) cgroups: Vec<PathBuf>,
}

/// flock(2) on a container's directory: `create` and `delete` hold it until they are done, `start` while
/// it lets the process go. It goes with its holder, however that one ends.
#[derive(Debug)]
pub(crate) struct DirLock(OwnedFd);

impl DirLock {
    /// `None` if the directory is gone, also when another has taken its place in the meantime.
    ///
    /// # Errors
    /// [`Error::WrongStatus`] if it does not get free within the time.
    pub(crate) fn take(dir: &Path, limit: Duration) -> Result<Option<DirLock>> {
        /// The kernel has no wait with a limit.
        const PAUSE: Duration = Duration::from_millis(2);
        let Some(fd) = open_dir(dir)? else { return Ok(None) };
        let deadline = Instant::now() + limit;
        while !try_lock(&fd, dir, FlockOperation::NonBlockingLockExclusive)? {
            if Instant::now() > deadline {
                let text = format!("another create, start or delete holds {}", dir.display());
                return Err(Error::WrongStatus(text));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(is_at(&fd, dir)?.then_some(DirLock(fd)))
    }

    /// In a child: lets go of its copy, which would hold the lock as well.
    pub(crate) fn close_in_child(&self) {
        sys::process::close_inherited(&self.0);
    }
}

/// Whether somebody holds the lock; `None` if there is no such directory. Those who ask do not see each
/// other.
pub(crate) fn is_locked(dir: &Path) -> Result<Option<bool>> {
    let Some(fd) = open_dir(dir)? else { return Ok(None) };
    try_lock(&fd, dir, FlockOperation::NonBlockingLockShared).map(|got| Some(!got))
}

fn open_dir(dir: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        other => other.ctx("open", || dir.display().to_string()).map(Some),
    }
}

/// Whether the path still leads to what was opened.
fn is_at(fd: &OwnedFd, dir: &Path) -> Result<bool> {
    let name = || dir.display().to_string();
    let ours = rustix::fs::fstat(fd).ctx("stat", name)?;
    match rustix::fs::stat(dir) {
        Ok(there) => Ok((there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e).ctx("stat", name),
    }
}

fn try_lock(fd: &OwnedFd, dir: &Path, operation: FlockOperation) -> Result<bool> {
    match flock(fd, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(e) => Err(e).ctx("lock", || dir.display().to_string()),
    }
}

/// `linux.seccomp.listenerPath` and `listenerMetadata`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listener {
    pub(crate) path: PathBuf,
    pub(crate) metadata: String,
}

/// A container that exists on disk.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) dir: PathBuf,
    pub(crate) record: Record,
    pub(crate) proc: ProcFs,
    /// Its create goes on.
    making: bool,
}

impl Container {
    pub(crate) fn load(opts: &Options, id: &ContainerId) -> Result<Container> {
        let dir = opts.root.join(id.as_str());
        let mut record = Container::record(&dir, id)?;
        let mut making = false;
        if record.unfinished.is_some() {
            making = is_locked(&dir)?.ok_or_else(|| Error::NotFound(id.to_string()))?;
        }
        if record.unfinished.is_some() && !making {
            // Done in between, perhaps.
            record = Container::record(&dir, id)?;
        }
        Ok(Container { dir, record, proc: ProcFs::open()?, making })
    }

    /// As [`Container::load`], for the holder of the directory's lock: no create goes on.
    pub(crate) fn load_locked(opts: &Options, id: &ContainerId, _: &DirLock) -> Result<Container> {
        let dir = opts.root.join(id.as_str());
        let record = Container::record(&dir, id)?;
        Ok(Container { dir, record, proc: ProcFs::open()?, making: false })
    }

    fn record(dir: &Path, id: &ContainerId) -> Result<Record> {
        let path = dir.join(STATE);
        let bytes = match read_file(&path, STATE_LIMIT_BYTES) {
            Err(e) if e.errno() == Some(Errno::NOENT) => {
                return Err(Error::NotFound(id.to_string()));
            }
            other => other.step(|| damaged(dir, id))?,
        };
        let record: Record = from_json(&bytes, &path).step(|| damaged(dir, id))?;
        if record.version != VERSION {
            return Err(Error::config(
                "state.json",
                format!("has version {}, this runtime reads {VERSION}", record.version),
            ));
        }
        Ok(record)
    }

    /// Its create was killed on its way.
    pub(crate) fn is_cut_short(&self) -> bool {
        self.record.unfinished.is_some() && !self.making
    }

    /// Whether the first process lives: the same pid with the same start time.
    pub(crate) fn alive(&self) -> Result<bool> {
        Ok(self.proc.start_time(self.record.pid)? == Some(self.record.start_time))
    }

    pub(crate) fn status(&self) -> Result<Status> {
        if self.record.unfinished.is_some() {
            // What is left of one that was cut short never runs.
            return Ok(if self.making { Status::Creating } else { Status::Stopped });
        }
        if !self.alive()? {
            return Ok(Status::Stopped);
        }
        // One that was paused before its start is paused, as in runc: so it can be resumed.
        if self.record.cgroup.is_frozen()? {
            return Ok(Status::Paused);
        }
        // It waits as long as the fifo has a reader.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if rustix::fs::open(self.dir.join(FIFO), flags, Mode::empty()).is_ok() {
            return Ok(Status::Created);
        }
        Ok(Status::Running)
    }

    /// The first process; `None` if it has ended. The pidfd is opened first and the identity
    /// checked afterwards, so that a recycled pid is never taken for it.
    pub(crate) fn pidfd(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.record.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Ok(self.alive()?.then_some(fd)),
            Err(Errno::SRCH) => Ok(None),
            Err(e) => Err(e).ctx("pidfd_open", || self.record.pid.to_string()),
        }
    }

    pub(crate) fn state(&self) -> Result<State> {
        let status = self.status()?;
        let r = &self.record;
        Ok(State {
            oci_version: r.oci_version.clone(),
            id: r.id.clone(),
            pid: if status == Status::Stopped { 0 } else { r.pid },
            status,
            bundle: r.bundle.clone(),
            rootfs: r.rootfs.clone(),
            created: r.created.clone(),
            annotations: r.annotations.clone(),
            owner: String::new(),
        })
    }

    /// The spec as it was when the container was made.
    pub(crate) fn spec(&self) -> Result<Spec> {
        parse_spec(&self.dir.join(CONFIG)).map(|(spec, _)| spec)
    }

    /// Changes the device rules in the kept spec: what they are compared with at the next update.
    pub(crate) fn save_devices(&self, rules: &[spec::DeviceRule]) -> Result<()> {
        let path = self.dir.join(CONFIG);
        let (mut spec, _) = parse_spec(&path)?;
        let linux = spec.linux.get_or_insert_with(Default::default);
        linux.resources.get_or_insert_with(Default::default).devices = rules.to_vec();
        let bytes = serde_json::to_vec(&spec)
            .map_err(|source| Error::Json { path: path.clone(), source })?;
        crate::process::write_atomically(&path, &bytes, 0o600)
    }

    /// The compiled filter, if the container has one.
    pub(crate) fn filter(&self) -> Result<Option<Filter>> {
        match read_file(&self.dir.join(FILTER), STATE_LIMIT_BYTES) {
            Ok(bytes) => Filter::from_bytes(&bytes).map(Some),
            Err(e) if e.errno() == Some(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Record {
    pub(crate) fn new(id: &ContainerId, spec: &Spec) -> Record {
        Record {
            version: VERSION,
            id: id.to_string(),
            oci_version: spec.oci_version.clone(),
            pid: 0,
            start_time: 0,
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            created: now(),
            annotations: spec.annotations.clone(),
            cgroup: Cgroup::None,
            claim: String::new(),
            unit: None,
            rdt: None,
            namespaces: 0,
            own_pidns: false,
            poststart: spec.hooks.poststart.clone(),
            poststop: spec.hooks.poststop.clone(),
            surroundings: Surroundings::default(),
            unfinished: None,
            listener: spec
                .linux
                .as_ref()
                .and_then(|l| l.seccomp.as_ref())
                .filter(|s| !s.listener_path.is_empty())
                .map(|s| Listener {
                    path: s.listener_path.clone().into(),
                    metadata: s.listener_metadata.clone(),
                }),
        }
    }

    /// Sends a process's seccomp listener to the one who serves it, with the specification's state
    /// document. The process is given by its pid and pidfd.
    pub(crate) fn send_listener(
        &self,
        fd: &OwnedFd,
        status: &str,
        pid: i32,
        process: &OwnedFd,
    ) -> Result<()> {
        let listener = self.listener.as_ref().ok_or_else(|| {
            Error::config("linux.seccomp.listenerPath", "needed for SCMP_ACT_NOTIFY")
        })?;
        let state = self.hook_state(status, self.pid);
        let state: serde_json::Value = serde_json::from_slice(&state)
            .map_err(|source| Error::Json { path: "container state".into(), source })?;
        let text = serde_json::json!({
            "ociVersion": self.oci_version,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": listener.metadata,
            "state": state,
        });
        let field = "linux.seccomp.listenerPath";
        let recipient = Recipient { field, path: &listener.path, process: Some(process) };
        recipient.send(&text.to_string(), fd)
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(STATE);
        let bytes = serde_json::to_vec(self)
            .map_err(|source| Error::Json { path: path.clone(), source })?;
        crate::process::write_atomically(&path, &bytes, 0o600)
    }

    /// The state that hooks get on stdin. Without a process it has no pid, and without annotations none of
    /// them (runtime.md, "State").
    pub(crate) fn hook_state(&self, status: &str, pid: i32) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct State<'a> {
            oci_version: &'a str,
            id: &'a str,
            status: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            pid: Option<i32>,
            bundle: &'a Path,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            annotations: &'a BTreeMap<String, String>,
        }
        let state = State {
            oci_version: &self.oci_version,
            id: &self.id,
            status,
            pid: (pid != 0).then_some(pid),
            bundle: &self.bundle,
            annotations: &self.annotations,
        };
        serde_json::json!(state).to_string().into_bytes()
    }
}

/// What is said of a container whose state cannot be read: nobody knows its process and cgroup then.
fn damaged(dir: &Path, id: &ContainerId) -> String {
    let dir = dir.display();
    format!("load container {id} (end its processes yourself, then remove {dir})")
}

/// Reads and parses a config.json; also its bytes, for the copy.
pub(crate) fn parse_spec(path: &Path) -> Result<(Spec, Vec<u8>)> {
    let limit = usize::try_from(spec::CONFIG_LIMIT_BYTES).unwrap_or(usize::MAX);
    let bytes = match read_file(path, limit) {
        Err(e) if e.errno() == Some(Errno::NOENT) && path.ends_with(CONFIG) => {
            return Err(Error::WrongStatus(format!(
                "JSON specification file {} not found",
                path.display()
            )));
        }
        other => other?,
    };
    Ok((from_json(&bytes, path)?, bytes))
}

/// Parses JSON; an error names the text (`path`) and the field.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T> {
    serde_json::from_slice(bytes).or_else(|source| {
        let field = crate::jsonpath::at(bytes, source.line(), source.column());
        let e = Err(Error::Json { path: path.to_owned(), source });
        if field.is_empty() { e } else { e.step(|| field) }
    })
}

pub(crate) fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|fd| procfs::read_bytes(&fd, limit))
        .ctx("read", || path.display().to_string())
}

/// Now, in UTC, as RFC 3339 with nanoseconds.
pub(crate) fn now() -> String {
    let t = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    rfc3339(t.as_secs(), t.subsec_nanos())
}

/// Seconds since 1970 as a date: days are counted in 400-year eras that begin on 1 March.
pub(crate) fn rfc3339(secs: u64, nanos: u32) -> String {
    let (days, rest) = (secs / 86_400, secs % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn those_who_ask_for_the_lock_do_not_hold_it() {
        let dir = tempfile::tempdir().unwrap();
        let shared = FlockOperation::NonBlockingLockShared;
        let asks = open_dir(dir.path()).unwrap().unwrap();
        assert!(try_lock(&asks, dir.path(), shared).unwrap());
        assert_eq!(is_locked(dir.path()).unwrap(), Some(false));
        let limit = Duration::from_millis(20);
        assert!(DirLock::take(dir.path(), limit).unwrap_err().chain().contains("another create"));
        drop(asks);
        let lock = DirLock::take(dir.path(), limit).unwrap();
        assert!(lock.is_some());
        assert_eq!(is_locked(dir.path()).unwrap(), Some(true));
    }

    #[test]
    fn a_directory_that_goes_meanwhile_is_not_locked() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("c1");
        let take = || DirLock::take(&dir, Duration::from_secs(10));
        assert!(take().unwrap().is_none());
        assert_eq!(is_locked(&dir).unwrap(), None);
        for again in [false, true] {
            std::fs::create_dir(&dir).unwrap();
            let first = take().unwrap().unwrap();
            let fd = open_dir(&dir).unwrap().unwrap();
            std::thread::scope(|scope| {
                let late = scope.spawn(take);
                let is_open = || {
                    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
                    fds.filter(|f| std::fs::read_link(f.path()).is_ok_and(|l| l == dir)).count()
                };
                // The first one's, ours, and the late one's.
                let deadline = Instant::now() + Duration::from_secs(10);
                while is_open() < 3 {
                    assert!(Instant::now() < deadline, "it never waits");
                    std::thread::yield_now();
                }
                std::fs::remove_dir(&dir).unwrap();
                if again {
                    std::fs::create_dir(&dir).unwrap();
                }
                assert!(!is_at(&fd, &dir).unwrap());
                drop(first);
                assert!(late.join().unwrap().unwrap().is_none());
            });
        }
    }

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_782_400, 5), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(rfc3339(1_795_492_800, 0), "2026-11-24T04:00:00.000000000Z");
    }
}
