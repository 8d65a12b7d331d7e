//! What of a container belongs to the host: `HostConfig`, its limits, mounts, ports.

use serde::{Deserialize, Serialize};

use crate::wire::{Map, nil, zero};

/// `80/tcp` → where it is published; `None` is written as `null` (exposed, not published).
pub type PortMap = Map<Option<Vec<PortBinding>>>;

wire! {
    /// The host-dependent part of a container's configuration.
    pub struct HostConfig {
        /// `src:dst[:options]`.
        #[serde(serialize_with = "nil")]
        pub binds: Vec<String>,
        #[serde(rename = "ContainerIDFile")]
        pub container_id_file: String,
        pub log_config: LogConfig,
        pub network_mode: String,
        pub port_bindings: PortMap,
        pub restart_policy: RestartPolicy,
        pub auto_remove: bool,
        pub volume_driver: String,
        #[serde(serialize_with = "nil")]
        pub volumes_from: Vec<String>,
        #[serde(skip_serializing_if = "zero")]
        pub mounts: Vec<Mount>,
        /// Height, width in cells.
        pub console_size: [u32; 2],
        #[serde(skip_serializing_if = "zero")]
        pub annotations: Map<String>,
        #[serde(serialize_with = "nil")]
        pub cap_add: Vec<String>,
        #[serde(serialize_with = "nil")]
        pub cap_drop: Vec<String>,
        pub cgroupns_mode: String,
        pub dns: Vec<String>,
        pub dns_options: Vec<String>,
        pub dns_search: Vec<String>,
        #[serde(serialize_with = "nil")]
        pub extra_hosts: Vec<String>,
        #[serde(serialize_with = "nil")]
        pub group_add: Vec<String>,
        pub ipc_mode: String,
        pub cgroup: String,
        #[serde(serialize_with = "nil")]
        pub links: Vec<String>,
        pub oom_score_adj: i64,
        pub pid_mode: String,
        pub privileged: bool,
        pub publish_all_ports: bool,
        pub readonly_rootfs: bool,
        #[serde(serialize_with = "nil")]
        pub security_opt: Vec<String>,
        #[serde(skip_serializing_if = "zero")]
        pub storage_opt: Map<String>,
        /// Path → mount options.
        #[serde(skip_serializing_if = "zero")]
        pub tmpfs: Map<String>,
        #[serde(rename = "UTSMode")]
        pub uts_mode: String,
        pub userns_mode: String,
        /// Bytes; 0 means the daemon's default.
        pub shm_size: i64,
        #[serde(skip_serializing_if = "zero")]
        pub sysctls: Map<String>,
        #[serde(skip_serializing_if = "zero")]
        pub runtime: String,
        pub isolation: String,
        /// `None`: the daemon's list; `Some([])`: nothing is masked.
        pub masked_paths: Option<Vec<String>>,
        /// `None`: the daemon's list; `Some([])`: nothing is read-only.
        pub readonly_paths: Option<Vec<String>>,
        #[serde(skip_serializing_if = "zero")]
        pub init: Option<bool>,
    } + {
        pub resources: Resources,
    }

    /// Limits; also the body of `POST /containers/{id}/update`. 0 means unset.
    pub struct Resources {
        pub cpu_shares: i64,
        /// Bytes.
        pub memory: i64,
        /// Billionths of one CPU.
        pub nano_cpus: i64,
        pub cgroup_parent: String,
        /// 10 to 1000.
        pub blkio_weight: u16,
        pub blkio_weight_device: Vec<WeightDevice>,
        pub blkio_device_read_bps: Vec<ThrottleDevice>,
        pub blkio_device_write_bps: Vec<ThrottleDevice>,
        #[serde(rename = "BlkioDeviceReadIOps")]
        pub blkio_device_read_iops: Vec<ThrottleDevice>,
        #[serde(rename = "BlkioDeviceWriteIOps")]
        pub blkio_device_write_iops: Vec<ThrottleDevice>,
        /// Microseconds.
        pub cpu_period: i64,
        /// Microseconds per period.
        pub cpu_quota: i64,
        pub cpu_realtime_period: i64,
        pub cpu_realtime_runtime: i64,
        pub cpuset_cpus: String,
        pub cpuset_mems: String,
        pub devices: Vec<DeviceMapping>,
        #[serde(serialize_with = "nil")]
        pub device_cgroup_rules: Vec<String>,
        #[serde(serialize_with = "nil")]
        pub device_requests: Vec<DeviceRequest>,
        /// Bytes; gone from the API in 1.42, refused by the engine when set.
        #[serde(skip_serializing_if = "zero")]
        pub kernel_memory: i64,
        #[serde(skip_serializing_if = "zero", rename = "KernelMemoryTCP")]
        pub kernel_memory_tcp: i64,
        pub memory_reservation: i64,
        /// Memory and swap together, bytes; -1 unlimited.
        pub memory_swap: i64,
        /// 0 to 100; -1 and `None` are unset.
        pub memory_swappiness: Option<i64>,
        pub oom_kill_disable: Option<bool>,
        /// 0, -1 and `None` are unlimited.
        pub pids_limit: Option<i64>,
        pub ulimits: Vec<Ulimit>,
        /// Windows.
        pub cpu_count: i64,
        /// Windows.
        pub cpu_percent: i64,
        /// Windows.
        #[serde(rename = "IOMaximumIOps")]
        pub io_maximum_iops: u64,
        /// Windows.
        #[serde(rename = "IOMaximumBandwidth")]
        pub io_maximum_bandwidth: u64,
    }

    /// Body of `POST /containers/{id}/update`.
    pub struct UpdateBody {
        pub restart_policy: RestartPolicy,
    } + {
        pub resources: Resources,
    }

    /// Reply of `POST /containers/{id}/update`.
    #[derive(Eq)]
    pub struct UpdateResponse {
        #[serde(serialize_with = "nil")]
        pub warnings: Vec<String>,
    }

    #[derive(Eq)]
    pub struct LogConfig {
        /// `""` means the daemon's default driver.
        pub r#type: String,
        pub config: Map<String>,
    }

    #[derive(Eq)]
    pub struct RestartPolicy {
        /// `""`, `no`, `always`, `unless-stopped`, `on-failure`.
        pub name: String,
        pub maximum_retry_count: i64,
    }

    #[derive(Eq)]
    pub struct PortBinding {
        pub host_ip: String,
        /// A port, a range `8000-8010`, or `""` for any free one.
        pub host_port: String,
    }

    #[derive(Eq)]
    pub struct WeightDevice {
        pub path: String,
        pub weight: u16,
    }

    #[derive(Eq)]
    pub struct ThrottleDevice {
        pub path: String,
        /// Bytes or operations per second.
        pub rate: u64,
    }

    #[derive(Eq)]
    pub struct DeviceMapping {
        pub path_on_host: String,
        pub path_in_container: String,
        /// Out of `rwm`.
        pub cgroup_permissions: String,
    }

    #[derive(Eq)]
    pub struct DeviceRequest {
        pub driver: String,
        /// -1 means all.
        pub count: i64,
        #[serde(rename = "DeviceIDs", serialize_with = "nil")]
        pub device_ids: Vec<String>,
        /// Any of (all of …).
        #[serde(serialize_with = "nil")]
        pub capabilities: Vec<Vec<String>>,
        #[serde(serialize_with = "nil")]
        pub options: Map<String>,
    }

    #[derive(Eq)]
    pub struct Ulimit {
        pub name: String,
        /// -1 unlimited.
        pub hard: i64,
        /// -1 unlimited.
        pub soft: i64,
    }

    /// One entry of `HostConfig.Mounts`.
    #[derive(Eq)]
    pub struct Mount {
        #[serde(skip_serializing_if = "MountType::is_unset")]
        pub r#type: MountType,
        #[serde(skip_serializing_if = "zero")]
        pub source: String,
        #[serde(skip_serializing_if = "zero")]
        pub target: String,
        #[serde(skip_serializing_if = "zero")]
        pub read_only: bool,
        #[serde(skip_serializing_if = "zero")]
        pub consistency: String,
        #[serde(skip_serializing_if = "zero")]
        pub bind_options: Option<BindOptions>,
        #[serde(skip_serializing_if = "zero")]
        pub volume_options: Option<VolumeOptions>,
        #[serde(skip_serializing_if = "zero")]
        pub image_options: Option<ImageOptions>,
        #[serde(skip_serializing_if = "zero")]
        pub tmpfs_options: Option<TmpfsOptions>,
    }

    #[derive(Eq)]
    pub struct BindOptions {
        #[serde(skip_serializing_if = "zero")]
        pub propagation: String,
        #[serde(skip_serializing_if = "zero")]
        pub non_recursive: bool,
        #[serde(skip_serializing_if = "zero")]
        pub create_mountpoint: bool,
        #[serde(skip_serializing_if = "zero")]
        pub read_only_non_recursive: bool,
        #[serde(skip_serializing_if = "zero")]
        pub read_only_force_recursive: bool,
    }

    #[derive(Eq)]
    pub struct VolumeOptions {
        #[serde(skip_serializing_if = "zero")]
        pub no_copy: bool,
        #[serde(skip_serializing_if = "zero")]
        pub labels: Map<String>,
        #[serde(skip_serializing_if = "zero")]
        pub subpath: String,
        #[serde(skip_serializing_if = "zero")]
        pub driver_config: Option<DriverConfig>,
    }

    #[derive(Eq)]
    pub struct DriverConfig {
        #[serde(skip_serializing_if = "zero")]
        pub name: String,
        #[serde(skip_serializing_if = "zero")]
        pub options: Map<String>,
    }

    #[derive(Eq)]
    pub struct ImageOptions {
        #[serde(skip_serializing_if = "zero")]
        pub subpath: String,
    }

    #[derive(Eq)]
    pub struct TmpfsOptions {
        #[serde(skip_serializing_if = "zero")]
        pub size_bytes: i64,
        /// Permission bits.
        #[serde(skip_serializing_if = "zero")]
        pub mode: u32,
        /// `[flag]` or `[key, value]`.
        #[serde(skip_serializing_if = "zero")]
        pub options: Vec<Vec<String>>,
    }
}

/// The kind of a mount. Names that are not known are kept, so that the engine can refuse them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountType {
    /// Not given.
    #[default]
    #[serde(rename = "")]
    Unset,
    Bind,
    Volume,
    Tmpfs,
    Image,
    Npipe,
    Cluster,
    #[serde(untagged)]
    Unknown(String),
}

impl MountType {
    pub(crate) fn is_unset(&self) -> bool {
        *self == MountType::Unset
    }

    /// The wire name.
    pub fn as_str(&self) -> &str {
        match self {
            MountType::Unset => "",
            MountType::Bind => "bind",
            MountType::Volume => "volume",
            MountType::Tmpfs => "tmpfs",
            MountType::Image => "image",
            MountType::Npipe => "npipe",
            MountType::Cluster => "cluster",
            MountType::Unknown(name) => name,
        }
    }
}

impl From<&str> for MountType {
    fn from(name: &str) -> Self {
        match name {
            "" => MountType::Unset,
            "bind" => MountType::Bind,
            "volume" => MountType::Volume,
            "tmpfs" => MountType::Tmpfs,
            "image" => MountType::Image,
            "npipe" => MountType::Npipe,
            "cluster" => MountType::Cluster,
            other => MountType::Unknown(other.to_owned()),
        }
    }
}
