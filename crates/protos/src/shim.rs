//! containerd's shim API v2 over ttrpc, its events, runc's options and cgroup figures.
//!
//! Field numbers are those of containerd's `shim.proto`, `events/task.proto`, `oci.proto` and of
//! containerd/cgroups' `metrics.proto`; messages are written by hand for prost.

use prost_types::{Any, Timestamp};

/// The shim's service.
pub const TASK_SERVICE: &str = "containerd.task.v2.Task";
/// containerd's service that takes events from shims; its one method is `Forward`.
pub const EVENTS_SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// Type URL of [`RuncOptions`].
pub const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
/// Type URL of [`GantryOptions`].
pub const GANTRY_OPTIONS: &str = "gantry.shim.v1.Options";
/// Type URL of [`ProcessDetails`].
pub const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";
/// Type URL of [`cgroups_v1::Metrics`].
pub const METRICS_V1: &str = "io.containerd.cgroups.v1.Metrics";
/// Type URL of [`cgroups_v2::Metrics`].
pub const METRICS_V2: &str = "io.containerd.cgroups.v2.Metrics";

/// `containerd.v1.types.Status`, as it stands in [`StateResponse::status`].
pub mod status {
    pub const UNKNOWN: i32 = 0;
    pub const CREATED: i32 = 1;
    pub const RUNNING: i32 = 2;
    pub const STOPPED: i32 = 3;
    pub const PAUSED: i32 = 4;
    pub const PAUSING: i32 = 5;
}

/// The present moment by the system's clock.
pub fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

/// Wraps a message in an `Any`.
pub fn pack(type_url: &str, message: &impl prost::Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

/// Whether `any` holds a message of this type; URLs may have a prefix up to a slash.
pub fn is_type(any: &Any, type_url: &str) -> bool {
    any.type_url.rsplit('/').next() == Some(type_url)
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateTaskRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub bundle: String,
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<Mount>,
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    #[prost(string, tag = "5")]
    pub stdin: String,
    #[prost(string, tag = "6")]
    pub stdout: String,
    #[prost(string, tag = "7")]
    pub stderr: String,
    #[prost(string, tag = "8")]
    pub checkpoint: String,
    #[prost(string, tag = "9")]
    pub parent_checkpoint: String,
    #[prost(message, optional, tag = "10")]
    pub options: Option<Any>,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateTaskResponse {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteResponse {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(uint32, tag = "2")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "3")]
    pub exited_at: Option<Timestamp>,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecProcessRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(bool, tag = "3")]
    pub terminal: bool,
    #[prost(string, tag = "4")]
    pub stdin: String,
    #[prost(string, tag = "5")]
    pub stdout: String,
    #[prost(string, tag = "6")]
    pub stderr: String,
    #[prost(message, optional, tag = "7")]
    pub spec: Option<Any>,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResizePtyRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub width: u32,
    #[prost(uint32, tag = "4")]
    pub height: u32,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateResponse {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub bundle: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    #[prost(int32, tag = "4")]
    pub status: i32,
    #[prost(string, tag = "5")]
    pub stdin: String,
    #[prost(string, tag = "6")]
    pub stdout: String,
    #[prost(string, tag = "7")]
    pub stderr: String,
    #[prost(bool, tag = "8")]
    pub terminal: bool,
    #[prost(uint32, tag = "9")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "10")]
    pub exited_at: Option<Timestamp>,
    #[prost(string, tag = "11")]
    pub exec_id: String,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KillRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    #[prost(bool, tag = "4")]
    pub all: bool,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseIoRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(bool, tag = "3")]
    pub stdin: bool,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PidsRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PidsResponse {
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<ProcessInfo>,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckpointTaskRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub path: String,
    #[prost(message, optional, tag = "3")]
    pub options: Option<Any>,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateTaskRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub resources: Option<Any>,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartResponse {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitResponse {
    #[prost(uint32, tag = "1")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "2")]
    pub exited_at: Option<Timestamp>,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsResponse {
    #[prost(message, optional, tag = "1")]
    pub stats: Option<Any>,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectResponse {
    #[prost(uint32, tag = "1")]
    pub shim_pid: u32,
    #[prost(uint32, tag = "2")]
    pub task_pid: u32,
    #[prost(string, tag = "3")]
    pub version: String,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub now: bool,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PauseRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Messages of `containerd.task.v2`, the API between containerd and a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResumeRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `containerd.types.Mount`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub source: String,
    #[prost(string, tag = "3")]
    pub target: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// `containerd.v1.types.ProcessInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessInfo {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(message, optional, tag = "2")]
    pub info: Option<Any>,
}

/// `containerd.runc.v1.Options`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuncOptions {
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    #[prost(bool, tag = "2")]
    pub no_new_keyring: bool,
    #[prost(string, tag = "3")]
    pub shim_cgroup: String,
    #[prost(uint32, tag = "4")]
    pub io_uid: u32,
    #[prost(uint32, tag = "5")]
    pub io_gid: u32,
    #[prost(string, tag = "6")]
    pub binary_name: String,
    #[prost(string, tag = "7")]
    pub root: String,
    #[prost(string, tag = "8")]
    pub criu_path: String,
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
    #[prost(string, tag = "10")]
    pub criu_image_path: String,
    #[prost(string, tag = "11")]
    pub criu_work_path: String,
}

/// `containerd.runc.v1.ProcessDetails`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessDetails {
    #[prost(string, tag = "1")]
    pub exec_id: String,
}

/// Options of our own shim, type URL [`GANTRY_OPTIONS`]: the runtime's options and what containerd's API has no field for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GantryOptions {
    #[prost(message, optional, tag = "1")]
    pub runtime: Option<Any>,
    #[prost(bytes = "vec", tag = "2")]
    pub ports: Vec<u8>,
}

/// Events, `containerd.events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskCreate {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub bundle: String,
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<Mount>,
    #[prost(message, optional, tag = "4")]
    pub io: Option<TaskIo>,
    #[prost(string, tag = "5")]
    pub checkpoint: String,
    #[prost(uint32, tag = "6")]
    pub pid: u32,
}

/// Events, `containerd.events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskStart {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

/// Events, `containerd.events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskDelete {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    #[prost(uint32, tag = "3")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "4")]
    pub exited_at: Option<Timestamp>,
    #[prost(string, tag = "5")]
    pub id: String,
}

/// Events, `containerd.events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskIo {
    #[prost(string, tag = "1")]
    pub stdin: String,
    #[prost(string, tag = "2")]
    pub stdout: String,
    #[prost(string, tag = "3")]
    pub stderr: String,
    #[prost(bool, tag = "4")]
    pub terminal: bool,
}

/// Events, `containerd.events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskExit {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    #[prost(uint32, tag = "4")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "5")]
    pub exited_at: Option<Timestamp>,
}

/// Events, `containerd.events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskOom {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Events, `containerd.events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskExecAdded {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// Events, `containerd.events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskExecStarted {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
}

/// Events, `containerd.events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskPaused {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Events, `containerd.events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskResumed {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `containerd.services.events.ttrpc.v1`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForwardRequest {
    #[prost(message, optional, tag = "1")]
    pub envelope: Option<EventEnvelope>,
}

/// `containerd.services.events.ttrpc.v1`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EventEnvelope {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub topic: String,
    #[prost(message, optional, tag = "4")]
    pub event: Option<Any>,
}
/// `io.containerd.cgroups.v1`.
pub mod cgroups_v1 {
    /// `Metrics`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Metrics {
        #[prost(message, repeated, tag = "1")]
        pub hugetlb: Vec<HugetlbStat>,
        #[prost(message, optional, tag = "2")]
        pub pids: Option<PidsStat>,
        #[prost(message, optional, tag = "3")]
        pub cpu: Option<CpuStat>,
        #[prost(message, optional, tag = "4")]
        pub memory: Option<MemoryStat>,
        #[prost(message, optional, tag = "5")]
        pub blkio: Option<BlkIoStat>,
        #[prost(message, optional, tag = "9")]
        pub memory_oom_control: Option<MemoryOomControl>,
    }

    /// `HugetlbStat`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct HugetlbStat {
        #[prost(uint64, tag = "1")]
        pub usage: u64,
        #[prost(uint64, tag = "2")]
        pub max: u64,
        #[prost(uint64, tag = "3")]
        pub failcnt: u64,
        #[prost(string, tag = "4")]
        pub pagesize: String,
    }

    /// `PidsStat`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PidsStat {
        #[prost(uint64, tag = "1")]
        pub current: u64,
        #[prost(uint64, tag = "2")]
        pub limit: u64,
    }

    /// `CpuStat`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CpuStat {
        #[prost(message, optional, tag = "1")]
        pub usage: Option<CpuUsage>,
        #[prost(message, optional, tag = "2")]
        pub throttling: Option<Throttle>,
    }

    /// `CpuUsage`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CpuUsage {
        #[prost(uint64, tag = "1")]
        pub total: u64,
        #[prost(uint64, tag = "2")]
        pub kernel: u64,
        #[prost(uint64, tag = "3")]
        pub user: u64,
        #[prost(uint64, repeated, tag = "4")]
        pub per_cpu: Vec<u64>,
    }

    /// `Throttle`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Throttle {
        #[prost(uint64, tag = "1")]
        pub periods: u64,
        #[prost(uint64, tag = "2")]
        pub throttled_periods: u64,
        #[prost(uint64, tag = "3")]
        pub throttled_time: u64,
    }

    /// `MemoryEntry`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct MemoryEntry {
        #[prost(uint64, tag = "1")]
        pub limit: u64,
        #[prost(uint64, tag = "2")]
        pub usage: u64,
        #[prost(uint64, tag = "3")]
        pub max: u64,
        #[prost(uint64, tag = "4")]
        pub failcnt: u64,
    }

    /// `MemoryOomControl`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct MemoryOomControl {
        #[prost(uint64, tag = "1")]
        pub oom_kill_disable: u64,
        #[prost(uint64, tag = "2")]
        pub under_oom: u64,
        #[prost(uint64, tag = "3")]
        pub oom_kill: u64,
    }

    /// `BlkIoStat`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct BlkIoStat {
        #[prost(message, repeated, tag = "1")]
        pub io_service_bytes_recursive: Vec<BlkIoEntry>,
        #[prost(message, repeated, tag = "2")]
        pub io_serviced_recursive: Vec<BlkIoEntry>,
    }

    /// `BlkIoEntry`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct BlkIoEntry {
        #[prost(string, tag = "1")]
        pub op: String,
        #[prost(string, tag = "2")]
        pub device: String,
        #[prost(uint64, tag = "3")]
        pub major: u64,
        #[prost(uint64, tag = "4")]
        pub minor: u64,
        #[prost(uint64, tag = "5")]
        pub value: u64,
    }

    /// `MemoryStat`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct MemoryStat {
        #[prost(uint64, tag = "1")]
        pub cache: u64,
        #[prost(uint64, tag = "2")]
        pub rss: u64,
        #[prost(uint64, tag = "3")]
        pub rss_huge: u64,
        #[prost(uint64, tag = "4")]
        pub mapped_file: u64,
        #[prost(uint64, tag = "5")]
        pub dirty: u64,
        #[prost(uint64, tag = "6")]
        pub writeback: u64,
        #[prost(uint64, tag = "7")]
        pub pgpgin: u64,
        #[prost(uint64, tag = "8")]
        pub pgpgout: u64,
        #[prost(uint64, tag = "9")]
        pub pgfault: u64,
        #[prost(uint64, tag = "10")]
        pub pgmajfault: u64,
        #[prost(uint64, tag = "11")]
        pub inactive_anon: u64,
        #[prost(uint64, tag = "12")]
        pub active_anon: u64,
        #[prost(uint64, tag = "13")]
        pub inactive_file: u64,
        #[prost(uint64, tag = "14")]
        pub active_file: u64,
        #[prost(uint64, tag = "15")]
        pub unevictable: u64,
        #[prost(uint64, tag = "16")]
        pub hierarchical_memory_limit: u64,
        #[prost(uint64, tag = "17")]
        pub hierarchical_memsw_limit: u64,
        #[prost(uint64, tag = "18")]
        pub total_cache: u64,
        #[prost(uint64, tag = "19")]
        pub total_rss: u64,
        #[prost(uint64, tag = "20")]
        pub total_rss_huge: u64,
        #[prost(uint64, tag = "21")]
        pub total_mapped_file: u64,
        #[prost(uint64, tag = "22")]
        pub total_dirty: u64,
        #[prost(uint64, tag = "23")]
        pub total_writeback: u64,
        #[prost(uint64, tag = "24")]
        pub total_pgpgin: u64,
        #[prost(uint64, tag = "25")]
        pub total_pgpgout: u64,
        #[prost(uint64, tag = "26")]
        pub total_pgfault: u64,
        #[prost(uint64, tag = "27")]
        pub total_pgmajfault: u64,
        #[prost(uint64, tag = "28")]
        pub total_inactive_anon: u64,
        #[prost(uint64, tag = "29")]
        pub total_active_anon: u64,
        #[prost(uint64, tag = "30")]
        pub total_inactive_file: u64,
        #[prost(uint64, tag = "31")]
        pub total_active_file: u64,
        #[prost(uint64, tag = "32")]
        pub total_unevictable: u64,
        #[prost(message, optional, tag = "33")]
        pub usage: Option<MemoryEntry>,
        #[prost(message, optional, tag = "34")]
        pub swap: Option<MemoryEntry>,
        #[prost(message, optional, tag = "35")]
        pub kernel: Option<MemoryEntry>,
        #[prost(message, optional, tag = "36")]
        pub kernel_tcp: Option<MemoryEntry>,
    }

    impl MemoryStat {
        /// The values that come from `memory.stat`, under its keys.
        pub fn entries(&self) -> [(&'static str, u64); 32] {
            [
                ("cache", self.cache),
                ("rss", self.rss),
                ("rss_huge", self.rss_huge),
                ("mapped_file", self.mapped_file),
                ("dirty", self.dirty),
                ("writeback", self.writeback),
                ("pgpgin", self.pgpgin),
                ("pgpgout", self.pgpgout),
                ("pgfault", self.pgfault),
                ("pgmajfault", self.pgmajfault),
                ("inactive_anon", self.inactive_anon),
                ("active_anon", self.active_anon),
                ("inactive_file", self.inactive_file),
                ("active_file", self.active_file),
                ("unevictable", self.unevictable),
                ("hierarchical_memory_limit", self.hierarchical_memory_limit),
                ("hierarchical_memsw_limit", self.hierarchical_memsw_limit),
                ("total_cache", self.total_cache),
                ("total_rss", self.total_rss),
                ("total_rss_huge", self.total_rss_huge),
                ("total_mapped_file", self.total_mapped_file),
                ("total_dirty", self.total_dirty),
                ("total_writeback", self.total_writeback),
                ("total_pgpgin", self.total_pgpgin),
                ("total_pgpgout", self.total_pgpgout),
                ("total_pgfault", self.total_pgfault),
                ("total_pgmajfault", self.total_pgmajfault),
                ("total_inactive_anon", self.total_inactive_anon),
                ("total_active_anon", self.total_active_anon),
                ("total_inactive_file", self.total_inactive_file),
                ("total_active_file", self.total_active_file),
                ("total_unevictable", self.total_unevictable),
            ]
        }

        /// Sets the value of one of `memory.stat`'s keys; others are passed over.
        pub fn set(&mut self, key: &str, value: u64) {
            match key {
                "cache" => self.cache = value,
                "rss" => self.rss = value,
                "rss_huge" => self.rss_huge = value,
                "mapped_file" => self.mapped_file = value,
                "dirty" => self.dirty = value,
                "writeback" => self.writeback = value,
                "pgpgin" => self.pgpgin = value,
                "pgpgout" => self.pgpgout = value,
                "pgfault" => self.pgfault = value,
                "pgmajfault" => self.pgmajfault = value,
                "inactive_anon" => self.inactive_anon = value,
                "active_anon" => self.active_anon = value,
                "inactive_file" => self.inactive_file = value,
                "active_file" => self.active_file = value,
                "unevictable" => self.unevictable = value,
                "hierarchical_memory_limit" => self.hierarchical_memory_limit = value,
                "hierarchical_memsw_limit" => self.hierarchical_memsw_limit = value,
                "total_cache" => self.total_cache = value,
                "total_rss" => self.total_rss = value,
                "total_rss_huge" => self.total_rss_huge = value,
                "total_mapped_file" => self.total_mapped_file = value,
                "total_dirty" => self.total_dirty = value,
                "total_writeback" => self.total_writeback = value,
                "total_pgpgin" => self.total_pgpgin = value,
                "total_pgpgout" => self.total_pgpgout = value,
                "total_pgfault" => self.total_pgfault = value,
                "total_pgmajfault" => self.total_pgmajfault = value,
                "total_inactive_anon" => self.total_inactive_anon = value,
                "total_active_anon" => self.total_active_anon = value,
                "total_inactive_file" => self.total_inactive_file = value,
                "total_active_file" => self.total_active_file = value,
                "total_unevictable" => self.total_unevictable = value,
                _ => {}
            }
        }
    }
}

/// `io.containerd.cgroups.v2`.
pub mod cgroups_v2 {
    /// `Metrics`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Metrics {
        #[prost(message, optional, tag = "1")]
        pub pids: Option<PidsStat>,
        #[prost(message, optional, tag = "2")]
        pub cpu: Option<CpuStat>,
        #[prost(message, optional, tag = "4")]
        pub memory: Option<MemoryStat>,
        #[prost(message, optional, tag = "6")]
        pub io: Option<IoStat>,
        #[prost(message, repeated, tag = "7")]
        pub hugetlb: Vec<HugeTlbStat>,
        #[prost(message, optional, tag = "8")]
        pub memory_events: Option<MemoryEvents>,
    }

    /// `PidsStat`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PidsStat {
        #[prost(uint64, tag = "1")]
        pub current: u64,
        #[prost(uint64, tag = "2")]
        pub limit: u64,
    }

    /// `CpuStat`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CpuStat {
        #[prost(uint64, tag = "1")]
        pub usage_usec: u64,
        #[prost(uint64, tag = "2")]
        pub user_usec: u64,
        #[prost(uint64, tag = "3")]
        pub system_usec: u64,
        #[prost(uint64, tag = "4")]
        pub nr_periods: u64,
        #[prost(uint64, tag = "5")]
        pub nr_throttled: u64,
        #[prost(uint64, tag = "6")]
        pub throttled_usec: u64,
    }

    /// `MemoryEvents`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct MemoryEvents {
        #[prost(uint64, tag = "1")]
        pub low: u64,
        #[prost(uint64, tag = "2")]
        pub high: u64,
        #[prost(uint64, tag = "3")]
        pub max: u64,
        #[prost(uint64, tag = "4")]
        pub oom: u64,
        #[prost(uint64, tag = "5")]
        pub oom_kill: u64,
    }

    /// `IoStat`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct IoStat {
        #[prost(message, repeated, tag = "1")]
        pub usage: Vec<IoEntry>,
    }

    /// `IoEntry`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct IoEntry {
        #[prost(uint64, tag = "1")]
        pub major: u64,
        #[prost(uint64, tag = "2")]
        pub minor: u64,
        #[prost(uint64, tag = "3")]
        pub rbytes: u64,
        #[prost(uint64, tag = "4")]
        pub wbytes: u64,
        #[prost(uint64, tag = "5")]
        pub rios: u64,
        #[prost(uint64, tag = "6")]
        pub wios: u64,
    }

    /// `HugeTlbStat`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct HugeTlbStat {
        #[prost(uint64, tag = "1")]
        pub current: u64,
        #[prost(uint64, tag = "2")]
        pub max: u64,
        #[prost(string, tag = "3")]
        pub pagesize: String,
    }

    /// `MemoryStat`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct MemoryStat {
        #[prost(uint64, tag = "1")]
        pub anon: u64,
        #[prost(uint64, tag = "2")]
        pub file: u64,
        #[prost(uint64, tag = "3")]
        pub kernel_stack: u64,
        #[prost(uint64, tag = "4")]
        pub slab: u64,
        #[prost(uint64, tag = "5")]
        pub sock: u64,
        #[prost(uint64, tag = "6")]
        pub shmem: u64,
        #[prost(uint64, tag = "7")]
        pub file_mapped: u64,
        #[prost(uint64, tag = "8")]
        pub file_dirty: u64,
        #[prost(uint64, tag = "9")]
        pub file_writeback: u64,
        #[prost(uint64, tag = "10")]
        pub anon_thp: u64,
        #[prost(uint64, tag = "11")]
        pub inactive_anon: u64,
        #[prost(uint64, tag = "12")]
        pub active_anon: u64,
        #[prost(uint64, tag = "13")]
        pub inactive_file: u64,
        #[prost(uint64, tag = "14")]
        pub active_file: u64,
        #[prost(uint64, tag = "15")]
        pub unevictable: u64,
        #[prost(uint64, tag = "16")]
        pub slab_reclaimable: u64,
        #[prost(uint64, tag = "17")]
        pub slab_unreclaimable: u64,
        #[prost(uint64, tag = "18")]
        pub pgfault: u64,
        #[prost(uint64, tag = "19")]
        pub pgmajfault: u64,
        #[prost(uint64, tag = "20")]
        pub workingset_refault: u64,
        #[prost(uint64, tag = "21")]
        pub workingset_activate: u64,
        #[prost(uint64, tag = "22")]
        pub workingset_nodereclaim: u64,
        #[prost(uint64, tag = "23")]
        pub pgrefill: u64,
        #[prost(uint64, tag = "24")]
        pub pgscan: u64,
        #[prost(uint64, tag = "25")]
        pub pgsteal: u64,
        #[prost(uint64, tag = "26")]
        pub pgactivate: u64,
        #[prost(uint64, tag = "27")]
        pub pgdeactivate: u64,
        #[prost(uint64, tag = "28")]
        pub pglazyfree: u64,
        #[prost(uint64, tag = "29")]
        pub pglazyfreed: u64,
        #[prost(uint64, tag = "30")]
        pub thp_fault_alloc: u64,
        #[prost(uint64, tag = "31")]
        pub thp_collapse_alloc: u64,
        #[prost(uint64, tag = "32")]
        pub usage: u64,
        #[prost(uint64, tag = "33")]
        pub usage_limit: u64,
        #[prost(uint64, tag = "34")]
        pub swap_usage: u64,
        #[prost(uint64, tag = "35")]
        pub swap_limit: u64,
    }

    impl MemoryStat {
        /// The values that come from `memory.stat`, under its keys.
        pub fn entries(&self) -> [(&'static str, u64); 31] {
            [
                ("anon", self.anon),
                ("file", self.file),
                ("kernel_stack", self.kernel_stack),
                ("slab", self.slab),
                ("sock", self.sock),
                ("shmem", self.shmem),
                ("file_mapped", self.file_mapped),
                ("file_dirty", self.file_dirty),
                ("file_writeback", self.file_writeback),
                ("anon_thp", self.anon_thp),
                ("inactive_anon", self.inactive_anon),
                ("active_anon", self.active_anon),
                ("inactive_file", self.inactive_file),
                ("active_file", self.active_file),
                ("unevictable", self.unevictable),
                ("slab_reclaimable", self.slab_reclaimable),
                ("slab_unreclaimable", self.slab_unreclaimable),
                ("pgfault", self.pgfault),
                ("pgmajfault", self.pgmajfault),
                ("workingset_refault", self.workingset_refault),
                ("workingset_activate", self.workingset_activate),
                ("workingset_nodereclaim", self.workingset_nodereclaim),
                ("pgrefill", self.pgrefill),
                ("pgscan", self.pgscan),
                ("pgsteal", self.pgsteal),
                ("pgactivate", self.pgactivate),
                ("pgdeactivate", self.pgdeactivate),
                ("pglazyfree", self.pglazyfree),
                ("pglazyfreed", self.pglazyfreed),
                ("thp_fault_alloc", self.thp_fault_alloc),
                ("thp_collapse_alloc", self.thp_collapse_alloc),
            ]
        }

        /// Sets the value of one of `memory.stat`'s keys; others are passed over.
        pub fn set(&mut self, key: &str, value: u64) {
            match key {
                "anon" => self.anon = value,
                "file" => self.file = value,
                "kernel_stack" => self.kernel_stack = value,
                "slab" => self.slab = value,
                "sock" => self.sock = value,
                "shmem" => self.shmem = value,
                "file_mapped" => self.file_mapped = value,
                "file_dirty" => self.file_dirty = value,
                "file_writeback" => self.file_writeback = value,
                "anon_thp" => self.anon_thp = value,
                "inactive_anon" => self.inactive_anon = value,
                "active_anon" => self.active_anon = value,
                "inactive_file" => self.inactive_file = value,
                "active_file" => self.active_file = value,
                "unevictable" => self.unevictable = value,
                "slab_reclaimable" => self.slab_reclaimable = value,
                "slab_unreclaimable" => self.slab_unreclaimable = value,
                "pgfault" => self.pgfault = value,
                "pgmajfault" => self.pgmajfault = value,
                "workingset_refault" => self.workingset_refault = value,
                "workingset_activate" => self.workingset_activate = value,
                "workingset_nodereclaim" => self.workingset_nodereclaim = value,
                "pgrefill" => self.pgrefill = value,
                "pgscan" => self.pgscan = value,
                "pgsteal" => self.pgsteal = value,
                "pgactivate" => self.pgactivate = value,
                "pgdeactivate" => self.pgdeactivate = value,
                "pglazyfree" => self.pglazyfree = value,
                "pglazyfreed" => self.pglazyfreed = value,
                "thp_fault_alloc" => self.thp_fault_alloc = value,
                "thp_collapse_alloc" => self.thp_collapse_alloc = value,
                _ => {}
            }
        }
    }
}
