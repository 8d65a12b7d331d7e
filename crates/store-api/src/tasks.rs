use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Any, Mount, Result, Timestamp};

/// Names of labels and annotations that steer tasks.
pub mod labels_task {
    /// Containers with the same value share one shim (CRI's pod).
    pub const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
}

/// A process of a container: its first, or an exec.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    pub container_id: String,
    /// `None`: the container's first process.
    pub exec_id: Option<String>,
}

impl ProcessId {
    pub fn init(container_id: impl Into<String>) -> Self {
        Self { container_id: container_id.into(), exec_id: None }
    }

    pub fn exec(container_id: impl Into<String>, exec_id: impl Into<String>) -> Self {
        Self { container_id: container_id.into(), exec_id: Some(exec_id.into()) }
    }
}

/// Where a process's streams go.
///
/// Each of the three texts is empty (`/dev/null`), the path of a FIFO, or a URL: `fifo://`,
/// `file://PATH`, `binary://PATH?k=v`, and our own `gantry://` forms:
/// - `stdout = gantry://json-file/ABSOLUTE/PATH?max-size=BYTES&max-file=N&compress=true`: the shim
///   writes docker's json-file log itself (`stderr` the same URL or empty) and serves an attach socket.
/// - `stdout = gantry://none`: no log, attach socket only.
/// - `stdin = gantry://attach`: standard input comes from attached clients and is kept open until one
///   closes it; `gantry://attach?once=true` closes it when the first client that had it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// Creates a task for an existing container record.
#[derive(Clone, Debug, Default)]
pub struct CreateTask {
    pub container_id: String,
    /// Mounts that make the root filesystem; empty: those of the container's snapshot key.
    pub rootfs: Vec<Mount>,
    pub stdio: Stdio,
    /// The runtime's own options (containerd `runc.v1.Options`).
    pub options: Option<Any>,
    /// Listening sockets that the shim opens and forwards: published ports (see the shim's
    /// documentation for the JSON form). Empty: none.
    pub ports: Vec<u8>,
}

/// Adds a process to a running task.
#[derive(Clone, Debug, Default)]
pub struct ExecTask {
    pub container_id: String,
    pub exec_id: String,
    /// The OCI runtime-spec `process` object.
    pub process: Any,
    pub stdio: Stdio,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0–255; 128 + n for signal n.
    pub status: u32,
    pub exited_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessStatus {
    Created,
    Running,
    Stopped,
    Paused,
    Pausing,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub id: ProcessId,
    pub pid: u32,
    pub status: ProcessStatus,
    pub stdio: Stdio,
    /// Set once stopped.
    pub exit: Option<Exit>,
    /// Where the task's bundle lies.
    pub bundle: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    pub pid: u32,
    /// The exec it belongs to, where that is known.
    pub exec_id: Option<String>,
}

/// A sample of a container's cgroup. `None`: the host's cgroups do not tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    pub timestamp: Timestamp,
    /// Nanoseconds of processor time.
    pub cpu_total_ns: u64,
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    pub cpu_percpu_ns: Vec<u64>,
    pub throttle_periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
    /// Bytes.
    pub memory_usage: u64,
    pub memory_max_usage: u64,
    pub memory_limit: Option<u64>,
    /// The keys of `memory.stat`.
    pub memory_stat: std::collections::BTreeMap<String, u64>,
    pub memory_failcnt: u64,
    pub swap_usage: Option<u64>,
    pub pids_current: u64,
    pub pids_limit: Option<u64>,
    /// (major, minor, operation, value): operations read, write, sync, async, discard, total.
    pub blkio_bytes: Vec<(u64, u64, String, u64)>,
    pub blkio_ios: Vec<(u64, u64, String, u64)>,
    /// cgroup v2?
    pub unified: bool,
}

/// containerd's tasks service. Every task is run by a shim that outlives the store.
#[async_trait]
pub trait Tasks: Send + Sync {
    /// Answers the pid of the first process, which waits for [`Tasks::start`].
    async fn create(&self, request: CreateTask) -> Result<u32>;
    async fn start(&self, process: &ProcessId) -> Result<u32>;
    /// Deletes a stopped task with its shim, or a stopped exec. Answers its pid and exit.
    async fn delete(&self, process: &ProcessId) -> Result<(u32, Exit)>;
    async fn exec(&self, request: ExecTask) -> Result<()>;
    async fn get(&self, process: &ProcessId) -> Result<Process>;
    async fn list(&self) -> Result<Vec<Process>>;
    async fn kill(&self, process: &ProcessId, signal: u32, all: bool) -> Result<()>;
    async fn resize(&self, process: &ProcessId, width: u16, height: u16) -> Result<()>;
    async fn close_stdin(&self, process: &ProcessId) -> Result<()>;
    async fn pids(&self, container_id: &str) -> Result<Vec<ProcessInfo>>;
    async fn pause(&self, container_id: &str) -> Result<()>;
    async fn resume(&self, container_id: &str) -> Result<()>;
    /// `resources`: the OCI runtime-spec `linux.resources` object as JSON.
    async fn update(&self, container_id: &str, resources: Any) -> Result<()>;
    /// Puts other published ports in place of those that the task was created with; in the form of
    /// [`CreateTask::ports`], empty for none. Connections through the old ones end.
    async fn set_ports(&self, container_id: &str, ports: Vec<u8>) -> Result<()>;
    async fn metrics(&self, container_id: &str) -> Result<Metrics>;
    /// What the shim of a runtime, by its name or the shim's path, says of itself: a
    /// `containerd.types.RuntimeInfo`. `options`: the runtime's.
    async fn runtime_info(&self, runtime: &str, options: Option<Any>) -> Result<Any>;
    /// Waits without bound; ends with the process or with the shim.
    async fn wait(&self, process: &ProcessId) -> Result<Exit>;
}
