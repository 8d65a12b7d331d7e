//! What the engine tells of itself and of its host.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use api_types::{
    API_VERSION, BuildCacheRecord, Commit, ContainerdInfo, ContainerdNamespaces, DiskUsage,
    Filters, FirewallInfo, IndexInfo, Info, MIN_API_VERSION, PluginsInfo, RegistryServiceConfig,
    RuntimeInfo, SwarmInfo, Version, VersionComponent, VersionPlatform, VolumeUsage,
};

use crate::{
    Engine, Result,
    container::{ListOptions, host_name, record::Status},
    util::{blocking, read_limited, rfc3339},
};

const LIMIT_BYTES: u64 = 1 << 20;

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub(crate) struct HostFacts {
    pub(crate) cgroup_v2: bool,
    kernel: String,
    architecture: String,
    os_name: String,
    os_version: String,
}

impl HostFacts {
    pub(crate) fn read() -> Self {
        let uname = rustix::system::uname();
        let (os_name, os_version) = os_release();
        Self {
            cgroup_v2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            kernel: uname.release().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            os_name,
            os_version,
        }
    }
}

fn os_release() -> (String, String) {
    let bytes = read_limited(Path::new("/etc/os-release"), LIMIT_BYTES)
        .or_else(|_| read_limited(Path::new("/usr/lib/os-release"), LIMIT_BYTES))
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches(['"', '\'']).to_string()
    };
    let name = value("PRETTY_NAME");
    (if name.is_empty() { "Linux".into() } else { name }, value("VERSION_ID"))
}

/// Bytes of memory of the host.
pub(crate) fn memory_total() -> u64 {
    let info = rustix::system::sysinfo();
    let total: u64 = info.totalram;
    total.saturating_mul(u64::from(info.mem_unit.max(1)))
}

fn go_arch() -> String {
    types::Platform::host().architecture
}

impl Engine {
    /// What every reply tells in its headers: the version, and whether experiments are on.
    pub fn product(&self) -> (&str, bool) {
        (&self.config.version, self.config.experimental)
    }

    pub fn version(&self) -> Version {
        let details = [
            ("ApiVersion", API_VERSION.to_string()),
            ("Arch", go_arch()),
            ("BuildTime", self.config.build_time.clone()),
            ("Experimental", self.config.experimental.to_string()),
            ("GitCommit", self.config.commit.clone()),
            ("GoVersion", self.config.compiler.clone()),
            ("KernelVersion", self.facts.kernel.clone()),
            ("MinAPIVersion", MIN_API_VERSION.to_string()),
            ("Os", "linux".to_string()),
        ];
        let own = |name: &str, details: BTreeMap<String, String>| VersionComponent {
            name: name.into(),
            version: self.config.version.clone(),
            details,
        };
        Version {
            platform: VersionPlatform { name: "Gantry".into() },
            components: vec![
                own("Engine", details.into_iter().map(|(k, v)| (k.to_string(), v)).collect()),
                own("containerd", BTreeMap::new()),
                own("runc", BTreeMap::new()),
            ],
            version: self.config.version.clone(),
            api_version: API_VERSION.into(),
            min_api_version: MIN_API_VERSION.into(),
            os: "linux".into(),
            arch: go_arch(),
            kernel_version: self.facts.kernel.clone(),
            git_commit: self.config.commit.clone(),
            go_version: self.config.compiler.clone(),
            build_time: self.config.build_time.clone(),
            experimental: self.config.experimental,
        }
    }

    pub async fn info(self: &Arc<Self>) -> Result<Info> {
        let counts = self.container_counts();
        let images = self.known_images().await?.len();
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_string()).collect();
        Ok(Info {
            id: self.id.clone(),
            containers: counts[0],
            containers_running: counts[1],
            containers_paused: counts[2],
            containers_stopped: counts[3],
            images: i64::try_from(images).unwrap_or(i64::MAX),
            driver: self.services.snapshots.name().into(),
            driver_status: vec![["driver-type".into(), "io.containerd.snapshotter.v1".into()]],
            plugins: PluginsInfo {
                volume: names(&["local"]),
                network: names(&["bridge", "host", "null"]),
                authorization: Vec::new(),
                log: names(&["json-file", "none"]),
            },
            debug: self.config.debug,
            n_fd: std::fs::read_dir("/proc/self/fd")
                .map_or(-1, |dir| i64::try_from(dir.count()).unwrap_or(-1)),
            n_goroutines: tokio_tasks(),
            system_time: rfc3339(Some(store_api::Timestamp::now())),
            logging_driver: self.config.log_driver.clone(),
            n_events_listener: i64::try_from(self.events.listeners()).unwrap_or(0),
            index_server_address: "https://index.docker.io/v1/".into(),
            registry_config: Some(self.registry_shape()),
            docker_root_dir: self.config.data_root.to_string_lossy().into_owned(),
            http_proxy: proxy(&self.config.http_proxy, "HTTP_PROXY"),
            https_proxy: proxy(&self.config.https_proxy, "HTTPS_PROXY"),
            no_proxy: proxy(&self.config.no_proxy, "NO_PROXY"),
            name: host_name(),
            labels: self.config.labels.clone(),
            experimental_build: self.config.experimental,
            server_version: self.config.version.clone(),
            runtimes: self.runtimes_shape(),
            default_runtime: self.config.default_runtime.clone(),
            swarm: SwarmInfo { local_node_state: "inactive".into(), ..SwarmInfo::default() },
            // A daemon's end never touches a container, whatever this setting says.
            live_restore_enabled: true,
            init_binary: "docker-init".into(),
            containerd_commit: self.own_commit(),
            runc_commit: self.own_commit(),
            init_commit: Commit { id: "N/A".into(), ..Commit::default() },
            security_options: self.security_shape(),
            firewall_backend: Some(FirewallInfo {
                driver: if self.config.firewall { "nftables".into() } else { "none".into() },
                info: Vec::new(),
            }),
            containerd: Some(ContainerdInfo {
                address: self.config.store_address.clone(),
                namespaces: ContainerdNamespaces {
                    containers: self.services.namespace.clone(),
                    plugins: String::new(),
                },
            }),
            warnings: self.networks.blockers(),
            ..self.host_info()
        })
    }

    /// All, running, paused, others.
    fn container_counts(&self) -> [i64; 4] {
        let mut counts = [0i64; 4];
        for container in self.containers.all() {
            counts[0] += 1;
            match container.record().status {
                Status::Running { paused: true, .. } => counts[2] += 1,
                Status::Running { .. } | Status::Restarting { .. } => counts[1] += 1,
                _ => counts[3] += 1,
            }
        }
        counts
    }

    /// The part that tells of the host.
    fn host_info(&self) -> Info {
        Info {
            memory_limit: true,
            swap_limit: self.has_swap_limit(),
            cpu_cfs_period: true,
            cpu_cfs_quota: true,
            cpu_shares: true,
            cpu_set: true,
            pids_limit: true,
            ipv4_forwarding: read_limited(Path::new("/proc/sys/net/ipv4/ip_forward"), 16)
                .is_ok_and(|text| text.starts_with(b"1")),
            oom_kill_disable: !self.facts.cgroup_v2,
            cgroup_driver: "cgroupfs".into(),
            cgroup_version: if self.facts.cgroup_v2 { "2".into() } else { "1".into() },
            kernel_version: self.facts.kernel.clone(),
            operating_system: self.facts.os_name.clone(),
            os_version: self.facts.os_version.clone(),
            os_type: "linux".into(),
            architecture: self.facts.architecture.clone(),
            ncpu: i64::from(crate::container::online_cpus()),
            mem_total: i64::try_from(memory_total()).unwrap_or(i64::MAX),
            ..Info::default()
        }
    }

    fn own_commit(&self) -> Commit {
        Commit { id: self.config.version.clone(), ..Commit::default() }
    }

    fn runtimes_shape(&self) -> BTreeMap<String, RuntimeInfo> {
        let shape = |runtime: &crate::config::Runtime| RuntimeInfo {
            path: if runtime.path.is_empty() { "gantry".into() } else { runtime.path.clone() },
            runtime_args: runtime.arguments.clone(),
            ..RuntimeInfo::default()
        };
        self.config.runtimes.iter().map(|(name, runtime)| (name.clone(), shape(runtime))).collect()
    }

    fn security_shape(&self) -> Vec<String> {
        let mut list = vec!["name=seccomp,profile=builtin".to_string()];
        if self.facts.cgroup_v2 {
            list.push("name=cgroupns".into());
        }
        if self.config.no_new_privileges {
            list.push("name=no-new-privileges".into());
        }
        list
    }

    fn has_swap_limit(&self) -> bool {
        self.facts.cgroup_v2
            || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
    }

    fn registry_shape(&self) -> RegistryServiceConfig {
        let mut cidrs = vec!["::1/128".to_string(), "127.0.0.0/8".to_string()];
        let mut index_configs = BTreeMap::from([(
            "docker.io".to_string(),
            IndexInfo {
                mirrors: self.config.registry_mirrors.clone(),
                name: "docker.io".into(),
                official: true,
                secure: true,
            },
        )]);
        for entry in &self.config.insecure_registries {
            if entry.contains('/') {
                cidrs.push(entry.clone());
            } else {
                let info = IndexInfo { name: entry.clone(), ..IndexInfo::default() };
                index_configs.insert(entry.clone(), info);
            }
        }
        RegistryServiceConfig {
            index_configs,
            insecure_registry_cidrs: cidrs,
            mirrors: self.config.registry_mirrors.clone(),
        }
    }

    pub async fn disk_usage(self: &Arc<Self>) -> Result<DiskUsage> {
        let mut images = self.image_list(&Filters::default()).await?;
        let shared = self.image_shared_sizes().await?;
        for image in &mut images {
            image.shared_size = shared.get(&image.id).copied().unwrap_or(0);
        }
        let containers = self
            .container_list(ListOptions { all: true, size: true, ..ListOptions::default() })
            .await?;
        let mut volumes = Vec::new();
        for mut volume in self.volume_list(&Filters::default())? {
            let dir = self.volumes.data_dir(&volume.name);
            let bytes = blocking(move || Ok(crate::disk::usage(&dir))).await?;
            volume.usage_data = Some(VolumeUsage {
                ref_count: i64::try_from(self.volume_users(&volume.name).len()).unwrap_or(-1),
                size: i64::try_from(bytes).unwrap_or(i64::MAX),
            });
            volumes.push(volume);
        }
        let cache = self
            .builder()?
            .usage()
            .await
            .map_err(|e| crate::Error::new(e.kind(), crate::image::failure(&e)))?;
        let mut layers = BTreeMap::new();
        for known in self.known_images().await?.values() {
            let Ok(unpacked) = self.services.extras.resolve_image(&known.target, None).await else {
                continue;
            };
            for chain in unpacked.chain_ids {
                if let Ok(usage) = self.services.snapshots.usage(&chain.to_string()).await {
                    layers.insert(chain, usage.bytes);
                }
            }
        }
        // Of no image, as of a pull that failed: what the next prune frees.
        let left = self.services.extras.reclaimable().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "what the next prune of images frees is not known, and not counted");
            0
        });
        let bytes = layers.values().sum::<u64>().saturating_add(left);
        Ok(DiskUsage {
            layers_size: i64::try_from(bytes).unwrap_or(i64::MAX),
            images,
            containers,
            volumes,
            build_cache: cache
                .into_iter()
                .map(|entry| BuildCacheRecord {
                    id: entry.id,
                    parents: entry.parent.into_iter().collect(),
                    r#type: entry.kind,
                    description: entry.description,
                    in_use: entry.in_use,
                    shared: entry.shared,
                    size: i64::try_from(entry.bytes).unwrap_or(i64::MAX),
                    created_at: rfc3339(Some(entry.created)),
                    last_used_at: Some(rfc3339(Some(entry.last_used))),
                    usage_count: i64::try_from(entry.uses).unwrap_or(i64::MAX),
                })
                .collect(),
        })
    }
}

/// A proxy of the configuration, else of the environment, without its password, as dockerd shows it.
fn proxy(configured: &str, variable: &str) -> String {
    let text = match configured {
        "" => std::env::var(variable).unwrap_or_default(),
        text => text.to_owned(),
    };
    let (scheme, rest) = text.split_once("://").map_or(("", text.as_str()), |(s, rest)| (s, rest));
    match rest.rsplit_once('@') {
        Some((_, host)) if scheme.is_empty() => format!("xxxxx:xxxxx@{host}"),
        Some((_, host)) => format!("{scheme}://xxxxx:xxxxx@{host}"),
        None => text,
    }
}

/// Tasks alive: what dockerd's NGoroutines tells of itself.
fn tokio_tasks() -> i64 {
    let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    i64::try_from(alive).unwrap_or(0)
}
