//! What the daemon is told at its start, already parsed. dockerd's flags and daemon.json keys become
//! this in the binary; nothing here is text that has to be parsed again.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

/// The engine's settings. `Default` is dockerd's, with Gantry's places.
#[derive(Clone, Debug)]
pub struct Config {
    /// Persistent state, mode 0710: dockerd's `--data-root`.
    pub data_root: PathBuf,
    /// State that dies with the host: dockerd's `--exec-root`.
    pub exec_root: PathBuf,
    /// Name of the default bridge.
    pub bridge: String,
    /// Address and prefix of the default bridge (`--bip`); `None`: the first free pool.
    pub bridge_address: Option<(IpAddr, u8)>,
    /// `--bridge=none`: no default network.
    pub bridge_disabled: bool,
    /// `--icc`
    pub icc: bool,
    /// `--ip-masq`
    pub masquerade: bool,
    /// `--ip`: where ports are published when no address is given.
    pub default_host_ip: Option<IpAddr>,
    /// `--iptables=false`: no packet filter rules are made.
    pub firewall: bool,
    pub ip_forward: bool,
    pub mtu: Option<u32>,
    pub dns: Vec<String>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
    pub address_pools: Vec<(String, u8)>,
    pub labels: Vec<String>,
    pub debug: bool,
    pub experimental: bool,
    /// `--log-driver`, `--log-opt`
    pub log_driver: String,
    pub log_options: BTreeMap<String, String>,
    /// `--cgroup-parent`; empty: `/docker` (`/gantry` under Gantry's own name).
    pub cgroup_parent: String,
    pub default_shm_bytes: i64,
    pub default_stop_timeout: Duration,
    pub default_ulimits: Vec<(String, i64, i64)>,
    /// `--init`
    pub init: bool,
    /// `--init-path`: the program for it; `None` is this one, which knows the part under the name
    /// `docker-init`.
    pub init_path: Option<PathBuf>,
    pub no_new_privileges: bool,
    /// `--registry-mirror`, `--insecure-registry`
    pub registry_mirrors: Vec<String>,
    pub insecure_registries: Vec<String>,
    /// `--http-proxy`, `--https-proxy`, `--no-proxy`; what is empty is the environment's.
    pub http_proxy: String,
    pub https_proxy: String,
    pub no_proxy: String,
    pub max_download_attempts: u32,
    pub max_concurrent_downloads: usize,
    pub max_concurrent_uploads: usize,
    pub shutdown_timeout: Duration,
    /// `private` or `host`; `None`: private on cgroup v2, host on v1.
    pub default_cgroupns: Option<String>,
    /// `private` or `shareable`
    pub default_ipc: String,
    /// Path of the store's socket, as `info` tells it.
    pub store_address: String,
    /// OCI runtimes by name: path, arguments.
    pub runtimes: BTreeMap<String, Runtime>,
    pub default_runtime: String,
    /// The product's version.
    pub version: String,
    /// From what it was built, by what and when (RFC 3339); empty is unknown.
    pub commit: String,
    pub compiler: String,
    pub build_time: String,
    /// A client started this daemon: nothing starts it at the next boot.
    pub on_demand: bool,
}

/// An OCI runtime beside our own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Empty: our own.
    pub path: String,
    pub arguments: Vec<String>,
}

/// The name under which our own runtime is known; `runc` means it too.
pub const OWN_RUNTIME: &str = "gantry";

impl Default for Config {
    fn default() -> Self {
        let own = |name: &str| (name.to_string(), Runtime::default());
        Self {
            data_root: "/var/lib/gantry".into(),
            exec_root: "/run/gantry".into(),
            bridge: "gantry0".into(),
            bridge_address: None,
            bridge_disabled: false,
            icc: true,
            masquerade: true,
            default_host_ip: None,
            firewall: true,
            ip_forward: true,
            mtu: None,
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
            address_pools: Vec::new(),
            labels: Vec::new(),
            debug: false,
            experimental: true,
            log_driver: "json-file".into(),
            log_options: BTreeMap::new(),
            cgroup_parent: String::new(),
            default_shm_bytes: 64 << 20,
            default_stop_timeout: Duration::from_secs(10),
            default_ulimits: Vec::new(),
            init: false,
            init_path: None,
            no_new_privileges: false,
            registry_mirrors: Vec::new(),
            insecure_registries: Vec::new(),
            http_proxy: String::new(),
            https_proxy: String::new(),
            no_proxy: String::new(),
            max_download_attempts: 5,
            max_concurrent_downloads: 3,
            max_concurrent_uploads: 5,
            shutdown_timeout: Duration::from_secs(15),
            default_cgroupns: None,
            default_ipc: "private".into(),
            store_address: String::new(),
            runtimes: BTreeMap::from([own(OWN_RUNTIME), own("runc"), own("io.containerd.runc.v2")]),
            default_runtime: "runc".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: String::new(),
            compiler: String::new(),
            build_time: String::new(),
            on_demand: false,
        }
    }
}
