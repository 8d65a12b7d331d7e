//! What the engine tells about containers.

use serde_json::Value;

use crate::wire::{Map, nil, zero};
use crate::{Config, EndpointSettings, HostConfig, MountType, OciDescriptor, PortMap};

wire! {
    /// Reply of `GET /containers/{id}/json`.
    pub struct ContainerInspect {
        pub id: String,
        /// RFC 3339 with nanoseconds, UTC.
        pub created: String,
        pub path: String,
        pub args: Vec<String>,
        pub state: State,
        /// The image's id.
        pub image: String,
        pub resolv_conf_path: String,
        pub hostname_path: String,
        pub hosts_path: String,
        pub log_path: String,
        /// With a leading `/`.
        pub name: String,
        pub restart_count: i64,
        pub driver: String,
        pub platform: String,
        pub mount_label: String,
        pub process_label: String,
        pub app_armor_profile: String,
        #[serde(rename = "ExecIDs", serialize_with = "nil")]
        pub exec_ids: Vec<String>,
        pub host_config: HostConfig,
        pub graph_driver: GraphDriverData,
        /// Bytes; only with `size=1`.
        #[serde(skip_serializing_if = "zero")]
        pub size_rw: Option<i64>,
        /// Bytes; only with `size=1`.
        #[serde(skip_serializing_if = "zero")]
        pub size_root_fs: Option<i64>,
        /// Since 1.48.
        #[serde(skip_serializing_if = "zero")]
        pub image_manifest_descriptor: Option<OciDescriptor>,
        pub mounts: Vec<MountPoint>,
        pub config: Config,
        pub network_settings: NetworkSettings,
    }

    pub struct GraphDriverData {
        #[serde(serialize_with = "nil")]
        pub data: Map<String>,
        pub name: String,
    }

    /// A container's state; the booleans are derived by the engine.
    #[derive(Eq)]
    pub struct State {
        /// created, running, paused, restarting, removing, exited, dead.
        pub status: String,
        pub running: bool,
        pub paused: bool,
        pub restarting: bool,
        #[serde(rename = "OOMKilled")]
        pub oom_killed: bool,
        pub dead: bool,
        pub pid: i64,
        pub exit_code: i64,
        pub error: String,
        /// `crate::ZERO_TIME` when never.
        pub started_at: String,
        pub finished_at: String,
        #[serde(skip_serializing_if = "zero")]
        pub health: Option<Health>,
    }

    #[derive(Eq)]
    pub struct Health {
        /// none, starting, healthy, unhealthy.
        pub status: String,
        pub failing_streak: i64,
        /// The newest last.
        #[serde(serialize_with = "nil")]
        pub log: Vec<HealthcheckResult>,
    }

    #[derive(Eq)]
    pub struct HealthcheckResult {
        pub start: String,
        pub end: String,
        pub exit_code: i64,
        pub output: String,
    }

    /// A mount as the container has it.
    #[derive(Eq)]
    pub struct MountPoint {
        #[serde(skip_serializing_if = "MountType::is_unset")]
        pub r#type: MountType,
        #[serde(skip_serializing_if = "zero")]
        pub name: String,
        pub source: String,
        pub destination: String,
        #[serde(skip_serializing_if = "zero")]
        pub driver: String,
        pub mode: String,
        #[serde(rename = "RW")]
        pub rw: bool,
        pub propagation: String,
    }

    /// The network side of `ContainerInspect`; the flat address fields repeat the default
    /// network's and end with API 1.52.
    pub struct NetworkSettings {
        pub bridge: String,
        #[serde(rename = "SandboxID")]
        pub sandbox_id: String,
        pub sandbox_key: String,
        pub ports: PortMap,
        pub hairpin_mode: bool,
        #[serde(rename = "LinkLocalIPv6Address")]
        pub link_local_ipv6_address: String,
        #[serde(rename = "LinkLocalIPv6PrefixLen")]
        pub link_local_ipv6_prefix_len: i64,
        #[serde(rename = "SecondaryIPAddresses", serialize_with = "nil")]
        pub secondary_ip_addresses: Vec<Value>,
        #[serde(rename = "SecondaryIPv6Addresses", serialize_with = "nil")]
        pub secondary_ipv6_addresses: Vec<Value>,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub gateway: String,
        #[serde(rename = "GlobalIPv6Address")]
        pub global_ipv6_address: String,
        #[serde(rename = "GlobalIPv6PrefixLen")]
        pub global_ipv6_prefix_len: i64,
        #[serde(rename = "IPAddress")]
        pub ip_address: String,
        #[serde(rename = "IPPrefixLen")]
        pub ip_prefix_len: i64,
        #[serde(rename = "IPv6Gateway")]
        pub ipv6_gateway: String,
        pub mac_address: String,
        pub networks: Map<EndpointSettings>,
    }

    /// One row of `GET /containers/json`.
    pub struct ContainerSummary {
        pub id: String,
        /// With a leading `/`.
        pub names: Vec<String>,
        pub image: String,
        #[serde(rename = "ImageID")]
        pub image_id: String,
        #[serde(skip_serializing_if = "zero")]
        pub image_manifest_descriptor: Option<OciDescriptor>,
        pub command: String,
        /// Unix seconds.
        pub created: i64,
        pub ports: Vec<PortSummary>,
        #[serde(skip_serializing_if = "zero")]
        pub size_rw: i64,
        #[serde(skip_serializing_if = "zero")]
        pub size_root_fs: i64,
        pub labels: Map<String>,
        pub state: String,
        pub status: String,
        pub host_config: SummaryHostConfig,
        pub network_settings: SummaryNetworkSettings,
        pub mounts: Vec<MountPoint>,
    }

    #[derive(Eq)]
    pub struct PortSummary {
        #[serde(rename = "IP", skip_serializing_if = "zero")]
        pub ip: String,
        pub private_port: u16,
        #[serde(skip_serializing_if = "zero")]
        pub public_port: u16,
        pub r#type: String,
    }

    #[derive(Eq)]
    pub struct SummaryHostConfig {
        #[serde(skip_serializing_if = "zero")]
        pub network_mode: String,
        #[serde(skip_serializing_if = "zero")]
        pub annotations: Map<String>,
    }

    pub struct SummaryNetworkSettings {
        pub networks: Map<EndpointSettings>,
    }

    /// Reply of `GET /containers/{id}/top`.
    #[derive(Eq)]
    pub struct TopResponse {
        pub titles: Vec<String>,
        pub processes: Vec<Vec<String>>,
    }

    /// One row of `GET /containers/{id}/changes`.
    #[derive(Eq)]
    pub struct Change {
        pub path: String,
        /// 0 modified, 1 added, 2 deleted.
        pub kind: u8,
    }

    /// Reply of `POST /containers/{id}/wait`.
    #[derive(Eq)]
    pub struct WaitResponse {
        pub status_code: i64,
        #[serde(skip_serializing_if = "zero")]
        pub error: Option<WaitError>,
    }

    #[derive(Eq)]
    pub struct WaitError {
        #[serde(skip_serializing_if = "zero")]
        pub message: String,
    }

    /// `X-Docker-Container-Path-Stat`, base64 of this JSON.
    #[derive(Eq)]
    pub struct PathStat {
        #[serde(rename = "name")]
        pub name: String,
        #[serde(rename = "size")]
        pub size: i64,
        /// Go's `fs.FileMode` bits: permissions, directory 1<<31, symlink 1<<27, …
        #[serde(rename = "mode")]
        pub mode: u32,
        #[serde(rename = "mtime")]
        pub mtime: String,
        #[serde(rename = "linkTarget")]
        pub link_target: String,
    }
}

impl PathStat {
    /// Go's `fs.ModeDir`.
    pub const MODE_DIR: u32 = 1 << 31;
    /// Go's `fs.ModeSymlink`.
    pub const MODE_SYMLINK: u32 = 1 << 27;
    /// Go's `fs.ModeDevice`.
    pub const MODE_DEVICE: u32 = 1 << 26;
    /// Go's `fs.ModeNamedPipe`.
    pub const MODE_NAMED_PIPE: u32 = 1 << 25;
    /// Go's `fs.ModeSocket`.
    pub const MODE_SOCKET: u32 = 1 << 24;
    /// Go's `fs.ModeSetuid`.
    pub const MODE_SETUID: u32 = 1 << 23;
    /// Go's `fs.ModeSetgid`.
    pub const MODE_SETGID: u32 = 1 << 22;
    /// Go's `fs.ModeCharDevice`.
    pub const MODE_CHAR_DEVICE: u32 = 1 << 21;
    /// Go's `fs.ModeSticky`.
    pub const MODE_STICKY: u32 = 1 << 20;

    /// The entry is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & Self::MODE_DIR != 0
    }

    /// The entry is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode & Self::MODE_SYMLINK != 0
    }

    /// Turns `st_mode` of stat(2) into Go's bits.
    pub fn mode_from_unix(st_mode: u32) -> u32 {
        let kind = match st_mode & 0o170_000 {
            0o040_000 => Self::MODE_DIR,
            0o120_000 => Self::MODE_SYMLINK,
            0o060_000 => Self::MODE_DEVICE,
            0o020_000 => Self::MODE_DEVICE | Self::MODE_CHAR_DEVICE,
            0o010_000 => Self::MODE_NAMED_PIPE,
            0o140_000 => Self::MODE_SOCKET,
            _ => 0,
        };
        let mut mode = kind | (st_mode & 0o777);
        for (unix, go) in
            [(0o4000, Self::MODE_SETUID), (0o2000, Self::MODE_SETGID), (0o1000, Self::MODE_STICKY)]
        {
            if st_mode & unix != 0 {
                mode |= go;
            }
        }
        mode
    }
}
