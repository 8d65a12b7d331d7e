//! The engine itself: info, version, disk usage, prune reports.

use crate::wire::{Map, nil, zero};
use crate::{ContainerSummary, ImageDeleteItem, ImageSummary, Volume};

wire! {
    /// Reply of `GET /version`.
    pub struct Version {
        pub platform: VersionPlatform,
        pub components: Vec<VersionComponent>,
        pub version: String,
        pub api_version: String,
        #[serde(rename = "MinAPIVersion")]
        pub min_api_version: String,
        pub git_commit: String,
        pub go_version: String,
        pub os: String,
        pub arch: String,
        #[serde(skip_serializing_if = "zero")]
        pub kernel_version: String,
        #[serde(skip_serializing_if = "zero")]
        pub experimental: bool,
        #[serde(skip_serializing_if = "zero")]
        pub build_time: String,
    }

    #[derive(Eq)]
    pub struct VersionPlatform {
        pub name: String,
    }

    #[derive(Eq)]
    pub struct VersionComponent {
        pub name: String,
        pub version: String,
        #[serde(serialize_with = "nil")]
        pub details: Map<String>,
    }

    /// Reply of `GET /info`.
    pub struct Info {
        #[serde(rename = "ID")]
        pub id: String,
        pub containers: i64,
        pub containers_running: i64,
        pub containers_paused: i64,
        pub containers_stopped: i64,
        pub images: i64,
        pub driver: String,
        /// Pairs of name and value.
        pub driver_status: Vec<[String; 2]>,
        #[serde(skip_serializing_if = "zero")]
        pub system_status: Vec<[String; 2]>,
        pub plugins: PluginsInfo,
        pub memory_limit: bool,
        pub swap_limit: bool,
        #[serde(skip_serializing_if = "zero")]
        pub kernel_memory: bool,
        #[serde(rename = "KernelMemoryTCP", skip_serializing_if = "zero")]
        pub kernel_memory_tcp: bool,
        pub cpu_cfs_period: bool,
        pub cpu_cfs_quota: bool,
        #[serde(rename = "CPUShares")]
        pub cpu_shares: bool,
        #[serde(rename = "CPUSet")]
        pub cpu_set: bool,
        pub pids_limit: bool,
        #[serde(rename = "IPv4Forwarding")]
        pub ipv4_forwarding: bool,
        pub debug: bool,
        pub n_fd: i64,
        pub oom_kill_disable: bool,
        pub n_goroutines: i64,
        pub system_time: String,
        pub logging_driver: String,
        pub cgroup_driver: String,
        #[serde(skip_serializing_if = "zero")]
        pub cgroup_version: String,
        pub n_events_listener: i64,
        pub kernel_version: String,
        pub operating_system: String,
        #[serde(rename = "OSVersion")]
        pub os_version: String,
        #[serde(rename = "OSType")]
        pub os_type: String,
        pub architecture: String,
        pub index_server_address: String,
        pub registry_config: Option<RegistryServiceConfig>,
        #[serde(rename = "NCPU")]
        pub ncpu: i64,
        /// Bytes.
        pub mem_total: i64,
        #[serde(serialize_with = "nil")]
        pub generic_resources: Vec<serde_json::Value>,
        pub docker_root_dir: String,
        pub http_proxy: String,
        pub https_proxy: String,
        pub no_proxy: String,
        pub name: String,
        pub labels: Vec<String>,
        pub experimental_build: bool,
        pub server_version: String,
        pub runtimes: Map<RuntimeInfo>,
        pub default_runtime: String,
        pub swarm: SwarmInfo,
        pub live_restore_enabled: bool,
        pub isolation: String,
        pub init_binary: String,
        pub containerd_commit: Commit,
        pub runc_commit: Commit,
        pub init_commit: Commit,
        pub security_options: Vec<String>,
        #[serde(skip_serializing_if = "zero")]
        pub product_license: String,
        #[serde(skip_serializing_if = "zero")]
        pub default_address_pools: Vec<AddressPool>,
        /// Since 1.49.
        #[serde(skip_serializing_if = "zero")]
        pub firewall_backend: Option<FirewallInfo>,
        #[serde(rename = "CDISpecDirs")]
        pub cdi_spec_dirs: Vec<String>,
        /// Since 1.50.
        #[serde(skip_serializing_if = "zero")]
        pub discovered_devices: Vec<DeviceInfo>,
        #[serde(skip_serializing_if = "zero")]
        pub containerd: Option<ContainerdInfo>,
        #[serde(serialize_with = "nil")]
        pub warnings: Vec<String>,
    }

    #[derive(Eq)]
    pub struct PluginsInfo {
        pub volume: Vec<String>,
        pub network: Vec<String>,
        #[serde(serialize_with = "nil")]
        pub authorization: Vec<String>,
        pub log: Vec<String>,
    }

    #[derive(Eq)]
    pub struct Commit {
        #[serde(rename = "ID")]
        pub id: String,
        /// Below 1.49.
        #[serde(skip_serializing_if = "zero")]
        pub expected: String,
    }

    pub struct RuntimeInfo {
        #[serde(rename = "path", skip_serializing_if = "zero")]
        pub path: String,
        #[serde(rename = "runtimeArgs", skip_serializing_if = "zero")]
        pub runtime_args: Vec<String>,
        #[serde(rename = "runtimeType", skip_serializing_if = "zero")]
        pub runtime_type: String,
        #[serde(rename = "status", skip_serializing_if = "zero")]
        pub status: Map<String>,
    }

    /// What an engine outside a swarm says, by default.
    #[derive(Eq)]
    pub struct SwarmInfo {
        #[serde(rename = "NodeID")]
        pub node_id: String,
        pub node_addr: String,
        /// inactive, pending, active, error, locked.
        pub local_node_state: String,
        pub control_available: bool,
        pub error: String,
        #[serde(serialize_with = "nil")]
        pub remote_managers: Vec<serde_json::Value>,
    }

    #[derive(Eq)]
    pub struct AddressPool {
        pub base: String,
        pub size: i64,
    }

    #[derive(Eq)]
    pub struct FirewallInfo {
        pub driver: String,
        #[serde(skip_serializing_if = "zero")]
        pub info: Vec<[String; 2]>,
    }

    #[derive(Eq)]
    pub struct DeviceInfo {
        pub source: String,
        #[serde(rename = "ID")]
        pub id: String,
    }

    #[derive(Eq)]
    pub struct ContainerdInfo {
        pub address: String,
        pub namespaces: ContainerdNamespaces,
    }

    #[derive(Eq)]
    pub struct ContainerdNamespaces {
        pub containers: String,
        pub plugins: String,
    }

    #[derive(Eq)]
    pub struct RegistryServiceConfig {
        #[serde(rename = "IndexConfigs")]
        pub index_configs: Map<IndexInfo>,
        #[serde(rename = "InsecureRegistryCIDRs")]
        pub insecure_registry_cidrs: Vec<String>,
        #[serde(serialize_with = "nil")]
        pub mirrors: Vec<String>,
    }

    #[derive(Eq)]
    pub struct IndexInfo {
        pub mirrors: Vec<String>,
        pub name: String,
        pub official: bool,
        pub secure: bool,
    }

    /// Reply of `GET /system/df`.
    pub struct DiskUsage {
        pub layers_size: i64,
        #[serde(serialize_with = "nil")]
        pub images: Vec<ImageSummary>,
        #[serde(serialize_with = "nil")]
        pub containers: Vec<ContainerSummary>,
        #[serde(serialize_with = "nil")]
        pub volumes: Vec<Volume>,
        #[serde(serialize_with = "nil")]
        pub build_cache: Vec<BuildCacheRecord>,
    }

    #[derive(Eq)]
    pub struct BuildCacheRecord {
        #[serde(rename = "ID")]
        pub id: String,
        #[serde(skip_serializing_if = "zero")]
        pub parents: Vec<String>,
        pub r#type: String,
        pub description: String,
        pub in_use: bool,
        pub shared: bool,
        pub size: i64,
        pub created_at: String,
        pub last_used_at: Option<String>,
        pub usage_count: i64,
    }

    #[derive(Eq)]
    pub struct ContainersPruneReport {
        #[serde(serialize_with = "nil")]
        pub containers_deleted: Vec<String>,
        /// Bytes.
        pub space_reclaimed: u64,
    }

    #[derive(Eq)]
    pub struct ImagesPruneReport {
        #[serde(serialize_with = "nil")]
        pub images_deleted: Vec<ImageDeleteItem>,
        pub space_reclaimed: u64,
    }

    #[derive(Eq)]
    pub struct VolumesPruneReport {
        pub volumes_deleted: Vec<String>,
        pub space_reclaimed: u64,
    }

    #[derive(Eq)]
    pub struct NetworksPruneReport {
        #[serde(serialize_with = "nil")]
        pub networks_deleted: Vec<String>,
    }

    #[derive(Eq)]
    pub struct BuildCachePruneReport {
        #[serde(serialize_with = "nil")]
        pub caches_deleted: Vec<String>,
        pub space_reclaimed: u64,
    }
}
