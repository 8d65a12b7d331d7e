//! Networks: their records, address management, and how containers are put on them.
//!
//! On disk: `DATA_ROOT/networks/ID.json`, one record a network. Addresses are not stored: they belong to
//! running containers, whose records name them. `EXEC_ROOT/netns/ID` is a container's namespace.

mod api;
mod create;
mod names;
mod ports;
mod setup;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

pub(crate) use names::dns_names;
use network::{
    Subnet,
    claim::Claim,
    firewall::{BridgeNetwork, Desired, Firewall, PublishedPort, Watch, table_name},
    ipam::{Ipam, PoolSpec, docker_defaults},
    ns,
    portmap::Allocator,
};
pub(crate) use ports::validate as validate_ports;
use serde::{Deserialize, Serialize};
use store_api::Timestamp;

use crate::{
    Config, Error, Result,
    container::record::Record,
    error::chain,
    util::{Durability, list, make_dir, read_limited, unreadable, write_file},
};

/// Network namespaces kept ready; a burst of more is made on the spot.
const READY_NAMESPACES: usize = 4;
const RECORD_LIMIT_BYTES: u64 = 1 << 20;
/// Identity of the default networks, fixed so that they are the same after every start.
const DEFAULT_BRIDGE: &str = "bridge";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    Bridge,
    Host,
    Null,
    Macvlan,
    Ipvlan,
}

impl Driver {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Null => "null",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }
}

/// A range of addresses of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pool {
    pub(crate) subnet: Subnet,
    pub(crate) ip_range: Option<Subnet>,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) aux: BTreeMap<String, IpAddr>,
}

/// A network's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    version: u32,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) driver: Driver,
    /// Interface name of the bridge, or the parent of a macvlan.
    pub(crate) link: String,
    pub(crate) pools: Vec<Pool>,
    pub(crate) has_user_subnet: bool,
    pub(crate) internal: bool,
    pub(crate) attachable: bool,
    pub(crate) ipv6: bool,
    pub(crate) icc: bool,
    pub(crate) masquerade: bool,
    pub(crate) mtu: Option<u32>,
    /// Where ports are published when no address is given.
    pub(crate) host_binding: Option<IpAddr>,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Network {
    /// bridge, host and none: made by the engine, never removed.
    pub(crate) fn is_predefined(&self) -> bool {
        matches!(self.name.as_str(), "bridge" | "host" | "none")
    }

    fn firewall_shape(&self) -> BridgeNetwork {
        BridgeNetwork {
            internal: self.internal,
            icc: self.icc,
            masquerade: self.masquerade,
            ..BridgeNetwork::new(&self.link, self.pools.iter().map(|pool| pool.subnet).collect())
        }
    }
}

struct State {
    networks: BTreeMap<String, Network>,
    ipam: Ipam,
    ports: Allocator,
}

/// What a running container holds of the network.
#[derive(Default)]
pub(crate) struct Running {
    pub(crate) namespace: Option<Arc<ns::Namespace>>,
    /// Taken for published ports, translated by the packet filter.
    pub(crate) published: Vec<PublishedPort>,
    /// Name server of the namespace; ends when dropped.
    pub(crate) dns: Option<network::dns::Server>,
}

pub(crate) struct Networks {
    root: PathBuf,
    state: Mutex<State>,
    names: Arc<names::Table>,
    firewall: Option<Arc<Mutex<Firewall>>>,
    /// Name of the packet filter's table, a daemon's own.
    table: String,
    /// On the names of our bridges, so that other daemons leave them alone.
    claims: Mutex<BTreeMap<String, Claim>>,
    /// Puts the rules back when something flushes them.
    watch: Mutex<Option<Watch>>,
    /// What keeps containers from the network, as text; empty when nothing does.
    blockers: Arc<Mutex<Vec<String>>>,
    namespaces: ns::Pool,
    /// Where the namespaces are bound.
    namespace_dir: PathBuf,
    /// Names there that running containers have, until all of those are adopted.
    adopted: Mutex<BTreeSet<OsString>>,
    /// Read: a container is being attached. Write: a network is made or removed. Taken before all
    /// other locks here.
    shape: RwLock<()>,
    default_host_ip: Option<IpAddr>,
}

impl Networks {
    /// Brings everything up that is on record, and the default networks as configured. Nothing is
    /// changed on the host before it is known that the default bridge can be ours.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let root = config.data_root.join("networks");
        make_dir(&root)?;
        make_dir(&config.exec_root.join("netns"))?;
        let ipam = Ipam::new(address_pools(&root, config)?)
            .map_err(|e| Error::invalid(format!("default address pools: {e}")))?;
        let bare_table = create::bare_table(&crate::engine_id(config)?);
        let table = match config.bridge_disabled {
            true => bare_table.clone(),
            false => table_name(&config.bridge),
        };
        let firewall = match config.firewall {
            true => Some(Arc::new(Mutex::new(Firewall::open(&table)?))),
            false => None,
        };
        let networks = Self {
            state: Mutex::new(State {
                networks: BTreeMap::new(),
                ipam,
                ports: Allocator::default(),
            }),
            root,
            names: Arc::default(),
            firewall,
            table,
            claims: Mutex::default(),
            watch: Mutex::default(),
            blockers: Arc::default(),
            namespaces: ns::Pool::new(READY_NAMESPACES)?,
            namespace_dir: config.exec_root.join("netns"),
            adopted: Mutex::default(),
            shape: RwLock::default(),
            default_host_ip: config.default_host_ip,
        };
        let user_networks = networks.load_records()?;
        networks.make_predefined(config, &bare_table)?;
        if config.ip_forward {
            network::sysctl::enable_ip_forward(false)?;
        }
        for network in &user_networks {
            if let Err(error) = networks.bring_up(network) {
                tracing::warn!(network = %network.name, %error, "a network could not be set up");
            }
        }
        Ok(networks)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all records and takes their address ranges. Answers the networks of users.
    fn load_records(&self) -> Result<Vec<Network>> {
        let mut user_networks = Vec::new();
        for entry in list(&self.root)? {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                self.remove_temporary(&path);
                continue;
            }
            let bytes = match read_limited(&path, RECORD_LIMIT_BYTES) {
                // No file of ours, and no record either: it is told of below.
                Err(error)
                    if !matches!(
                        error.kind(),
                        std::io::ErrorKind::FileTooLarge
                            | std::io::ErrorKind::IsADirectory
                            | std::io::ErrorKind::NotFound
                    ) =>
                {
                    return Err(unreadable(&path, &error));
                }
                other => other.map_err(|e| e.to_string()),
            };
            let loaded = bytes.and_then(|bytes| {
                serde_json::from_slice::<Network>(&bytes).map_err(|e| e.to_string())
            });
            match loaded {
                Ok(network) => {
                    if let Err(error) = self.keep_pools(&network) {
                        tracing::warn!(network = %network.name, %error, "a network could not be set up");
                    } else if !network.is_predefined() {
                        user_networks.push(network.clone());
                    }
                    self.lock().networks.insert(network.id.clone(), network);
                }
                Err(error) => {
                    tracing::warn!(file = %path.display(), error, "a network's record is damaged");
                }
            }
        }
        Ok(user_networks)
    }

    /// Asserts the packet filter's whole table and begins to watch it. Called once containers that run
    /// were adopted, so that their ports are in it from the first transaction on.
    pub(crate) fn assert_rules(&self, ports: Vec<PublishedPort>) -> Result<()> {
        self.sweep_namespaces();
        let Some(firewall) = &self.firewall else { return Ok(()) };
        let networks = self
            .lock()
            .networks
            .values()
            .filter(|n| n.driver == Driver::Bridge)
            .map(Network::firewall_shape)
            .collect();
        let desired =
            Desired { networks, ports: ports.into_iter().collect(), drop_foreign_forward: false };
        let report = firewall.lock().unwrap_or_else(PoisonError::into_inner).ensure(desired)?;
        note(&self.blockers, &report);
        let blockers = self.blockers.clone();
        let watch = Watch::start(firewall.clone(), move |report| note(&blockers, report))?;
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
        Ok(())
    }

    /// Removes namespaces of containers that do not run: a daemon that was killed between making one
    /// and starting its container leaves it.
    fn sweep_namespaces(&self) {
        let adopted =
            std::mem::take(&mut *self.adopted.lock().unwrap_or_else(PoisonError::into_inner));
        let entries = match std::fs::read_dir(&self.namespace_dir) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(%error, "namespaces that were left are not looked for");
                return;
            }
        };
        for entry in entries.flatten().filter(|entry| !adopted.contains(&entry.file_name())) {
            if let Err(error) = ns::remove(&entry.path()) {
                tracing::warn!(error = chain(&error), "a namespace that was left stays");
            }
        }
    }

    /// Takes every bridge and all rules away; records stay. Nothing may run on them.
    pub(crate) fn close(&self) {
        // First, or the watch would put the rules back.
        drop(self.watch.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(firewall) = &self.firewall {
            let removed = firewall.lock().unwrap_or_else(PoisonError::into_inner).remove_all();
            if let Err(error) = removed {
                tracing::warn!(error = chain(&error), "the packet filter's rules stay");
            }
        }
        for network in self.all() {
            if let Err(error) = self.delete_bridge(&network) {
                tracing::warn!(network = %network.name, %error, "a bridge stays");
            }
        }
    }

    /// What blocks containers' traffic on this host, in words for `info` and errors.
    pub(crate) fn blockers(&self) -> Vec<String> {
        self.blockers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// By id, name, or unique prefix of an id.
    pub(crate) fn find(&self, text: &str) -> Result<Network> {
        let state = self.lock();
        let text = if text == "default" { DEFAULT_BRIDGE } else { text };
        let by_name = state.networks.values().find(|network| network.name == text);
        if let Some(network) = state.networks.get(text).or(by_name) {
            return Ok(network.clone());
        }
        let mut matches =
            state.networks.values().filter(|n| !text.is_empty() && n.id.starts_with(text));
        match (matches.next(), matches.next()) {
            (Some(network), None) => Ok(network.clone()),
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "network {text} is ambiguous (2 matches found on ID prefix)"
            ))),
            (None, _) => Err(Error::not_found(format!("network {text} not found"))),
        }
    }

    pub(crate) fn all(&self) -> Vec<Network> {
        self.lock().networks.values().cloned().collect()
    }

    /// User networks resolve names; the default bridge does not.
    pub(crate) fn has_dns(&self, name: &str) -> bool {
        !matches!(name, "bridge" | "host" | "none")
    }

    pub(crate) fn needs_dns(&self, record: &Record) -> bool {
        record.networks.keys().any(|name| self.has_dns(name))
    }

    /// The default bridge's address, by which containers reach the host.
    pub(crate) fn host_gateway(&self) -> Option<IpAddr> {
        let bridge = self.find(DEFAULT_BRIDGE).ok()?;
        bridge.pools.iter().find_map(|pool| pool.gateway.filter(IpAddr::is_ipv4))
    }

    pub(crate) fn namespace_file(&self, engine: &crate::Engine, record: &Record) -> PathBuf {
        engine.config.exec_root.join("netns").join(record.id.short())
    }

    /// The namespace that a container's process joins; `None` for the host's.
    pub(crate) fn namespace_path(
        &self,
        engine: &crate::Engine,
        record: &Record,
    ) -> Result<Option<PathBuf>> {
        let mode = record.host_config.network_mode.as_str();
        if mode == "host" {
            return Ok(None);
        }
        if let Some(other) = mode.strip_prefix("container:") {
            let other = engine.containers.find(other)?;
            let other = other.snapshot();
            if other.status.pid().is_none() {
                return Err(Error::conflict(format!(
                    "cannot join network namespace of a non running container: {}",
                    other.id
                )));
            }
            return self.namespace_path(engine, &other);
        }
        Ok(Some(self.namespace_file(engine, record)))
    }

    /// A record that was being written when the power went.
    fn remove_temporary(&self, path: &Path) {
        if path.extension().is_some_and(|extension| extension == "new")
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(file = %path.display(), %error, "a temporary file stays");
        }
    }

    fn save(&self, network: &Network) -> Result<()> {
        let path = self.root.join(format!("{}.json", network.id));
        let bytes = serde_json::to_vec(network)
            .map_err(|e| Error::internal(format!("encode network {}: {e}", network.name)))?;
        write_file(&path, &bytes, 0o600, Durability::Synced)
    }
}

fn note(blockers: &Mutex<Vec<String>>, report: &network::firewall::Report) {
    let texts = report.blockers.iter().map(|blocker| {
        format!(
            "traffic of containers is dropped by {} chain {} (policy {}) of table {}: {}",
            blocker.family.as_str(),
            blocker.chain,
            blocker.policy,
            blocker.table,
            blocker.reason
        )
    });
    *blockers.lock().unwrap_or_else(PoisonError::into_inner) = texts.collect();
}

/// Docker's pools, or those of the configuration. The random part of the IPv6 range is kept, so that
/// addresses are the same after every start.
fn address_pools(root: &Path, config: &Config) -> Result<Vec<PoolSpec>> {
    if config.address_pools.is_empty() {
        let path = root.join("ula");
        let kept = read_limited(&path, 5).ok().and_then(|bytes| bytes.try_into().ok());
        let ula: [u8; 5] = match kept {
            Some(ula) => ula,
            None => {
                let ula: [u8; 5] = rand::random();
                write_file(&path, &ula, 0o600, Durability::Atomic)?;
                ula
            }
        };
        return Ok(docker_defaults(ula));
    }
    let parse = |(base, size): &(String, u8)| -> Result<PoolSpec> {
        let base = base
            .parse()
            .map_err(|e| Error::invalid(format!("default address pool {base}: {}", chain(&e))))?;
        Ok(PoolSpec { base, size: *size })
    };
    config.address_pools.iter().map(parse).collect()
}
