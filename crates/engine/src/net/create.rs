//! Making networks: checks of what was asked, address ranges, the bridge itself.

use std::{collections::BTreeMap, net::IpAddr, sync::PoisonError};

use api_types::{IpamConfig, NetworkCreate};
use network::{
    Subnet,
    claim::Claim,
    firewall::{Firewall, TABLE, table_name},
    ipam::{PoolRequest, parse_ip_range, parse_subnet},
    link::{BridgeConfig, Rtnl},
};
use store_api::Timestamp;

use super::{
    DEFAULT_BRIDGE as DEFAULT_NETWORK, Driver, Network, Networks, Pool, setup::host_subnets,
};
use crate::{Config, Error, Result, util::random_id};

const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const ENABLE_ICC: &str = "com.docker.network.bridge.enable_icc";
const ENABLE_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
const MTU: &str = "com.docker.network.driver.mtu";
/// IPv6 can also be asked for by an option of the driver (docker 28).
const ENABLE_IPV6: &str = "com.docker.network.enable_ipv6";

const VERSION: u32 = 1;

fn blank(name: &str, driver: Driver) -> Network {
    Network {
        version: VERSION,
        id: random_id(),
        name: name.into(),
        created: Timestamp::now(),
        driver,
        link: String::new(),
        pools: Vec::new(),
        has_user_subnet: false,
        internal: false,
        attachable: false,
        ipv6: false,
        icc: true,
        masquerade: true,
        mtu: None,
        host_binding: None,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
    }
}

impl Networks {
    /// The three networks that always are.
    pub(super) fn make_predefined(&self, config: &Config, bare_table: &str) -> Result<()> {
        for (name, driver) in [("host", Driver::Host), ("none", Driver::Null)] {
            if self.find(name).is_err() {
                let network = blank(name, driver);
                self.save(&network)?;
                self.lock().networks.insert(network.id.clone(), network);
            }
        }
        let old = self.find(DEFAULT_NETWORK).ok();
        // What the configuration says now holds, whatever an earlier daemon was told.
        let Some(mut old) = old else {
            if config.bridge_disabled {
                return Ok(());
            }
            self.remove_rules_of(bare_table)?;
            return self.make_default_bridge(config);
        };
        match change(&old, config)? {
            Some(change) => {
                self.retire(&old, &change)?;
                if config.bridge_disabled {
                    return Ok(());
                }
                self.make_default_bridge(config)
            }
            None => {
                old.icc = config.icc;
                old.masquerade = config.masquerade;
                old.mtu = config.mtu;
                self.bring_up(&old)?;
                self.lock().networks.insert(old.id.clone(), old);
                Ok(())
            }
        }
    }

    /// Takes the default bridge of an earlier configuration away, unless containers are on it.
    fn retire(&self, old: &Network, change: &str) -> Result<()> {
        let ports = Rtnl::open()?.bridge_ports(&old.link, &old.id)?;
        if !ports.is_empty() {
            let address = old.pools.iter().find_map(|p| Some((p.gateway?, p.subnet.prefix())));
            let address =
                address.map(|(ip, prefix)| format!(", {ip}/{prefix}")).unwrap_or_default();
            return Err(Error::conflict(format!(
                "{change}, but containers run on the bridge {}{address} ({} of them): start the daemon with the settings that it had and stop them first",
                old.link,
                ports.len()
            )));
        }
        let mut state = self.lock();
        state.ipam.release_network(&old.id);
        state.networks.remove(&old.id);
        drop(state);
        match Rtnl::open()?.bridge_delete(&old.link, &old.id) {
            // Another's since, which is why there is a change, perhaps.
            Ok(_) | Err(network::Error::ForeignLink { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let table = table_name(&old.link);
        if self.table != table
            && let Ok(_claim) = Claim::bridge(&old.link)
        {
            self.remove_rules_of(&table)?;
        }
        self.delete_record(old)
    }

    /// Rules that a daemon on our data left when it was killed.
    fn remove_rules_of(&self, table: &str) -> Result<()> {
        if self.firewall.is_some() && self.table != table {
            Firewall::open(table)?.remove_all()?;
        }
        Ok(())
    }

    fn make_default_bridge(&self, config: &Config) -> Result<()> {
        let mut network = blank("bridge", Driver::Bridge);
        network.link.clone_from(&config.bridge);
        network.icc = config.icc;
        network.masquerade = config.masquerade;
        network.mtu = config.mtu;
        network.options = BTreeMap::from([
            (BRIDGE_NAME.into(), config.bridge.clone()),
            (DEFAULT_BRIDGE.into(), "true".into()),
            (ENABLE_ICC.into(), config.icc.to_string()),
            (ENABLE_MASQUERADE.into(), config.masquerade.to_string()),
            (MTU.into(), config.mtu.unwrap_or(1500).to_string()),
        ]);
        let mut request = PoolRequest { network: network.id.clone(), ..PoolRequest::default() };
        if let Some((gateway, prefix)) = config.bridge_address {
            let subnet = Subnet::new(gateway, prefix)
                .map_err(|e| Error::invalid(format!("bip {gateway}/{prefix}: {e}")))?;
            request.subnet = Some(subnet);
            request.gateway = Some(gateway);
        }
        // The claim first: one who is refused shall not have chosen anything.
        self.claim(&network)?;
        let _turn = Claim::subnets()?;
        self.take_pool(&mut network, &request)?;
        self.bring_up(&network)?;
        self.save(&network)?;
        self.lock().networks.insert(network.id.clone(), network);
        Ok(())
    }

    fn take_pool(&self, network: &mut Network, request: &PoolRequest) -> Result<()> {
        // Our own bridges of earlier runs are not in the way.
        let known: Vec<Subnet> =
            self.lock().networks.values().flat_map(|n| n.pools.iter().map(|p| p.subnet)).collect();
        let host: Vec<_> = host_subnets()?.into_iter().filter(|s| !known.contains(s)).collect();
        let mut state = self.lock();
        let info = state
            .ipam
            .request_pool(request, &host)
            .map_err(|e| Error::new(types::ErrorKind::PermissionDenied, e.to_string()))?;
        network.pools.push(Pool {
            subnet: info.subnet,
            ip_range: info.ip_range,
            gateway: info.gateway,
            aux: info.aux.clone(),
        });
        Ok(())
    }

    /// Notes the network's address ranges as taken.
    pub(super) fn keep_pools(&self, network: &Network) -> Result<()> {
        let mut state = self.lock();
        for pool in &network.pools {
            if state.ipam.pool(&pool.subnet).is_some_and(|have| have.network == network.id) {
                continue;
            }
            let request = PoolRequest {
                network: network.id.clone(),
                subnet: Some(pool.subnet),
                ip_range: pool.ip_range,
                gateway: pool.gateway,
                aux: pool.aux.clone(),
                allow_host_overlap: true,
                no_gateway: pool.gateway.is_none(),
                ..PoolRequest::default()
            };
            state
                .ipam
                .request_pool(&request, &[])
                .map_err(|e| Error::conflict(format!("network {}: {e}", network.name)))?;
        }
        Ok(())
    }

    /// Makes what the network needs on the host: nothing twice, so that it serves a restart as well.
    pub(super) fn bring_up(&self, network: &Network) -> Result<()> {
        if network.driver != Driver::Bridge {
            return Ok(());
        }
        self.claim(network)?;
        let made = self.make_bridge(network);
        if made.is_err() {
            self.give_up(&network.link);
        }
        made
    }

    fn make_bridge(&self, network: &Network) -> Result<()> {
        let mut route = Rtnl::open()?;
        let subnets: Vec<Subnet> = network.pools.iter().map(|pool| pool.subnet).collect();
        if route.link(&network.link)?.is_none()
            && let Some((other, subnet)) = route.link_in_subnets(&subnets)?
            && other.is_owned_bridge()
        {
            let way_out = match network.is_predefined() {
                true => "choose others with --bip",
                false => "remove the network and create it again",
            };
            return Err(Error::conflict(format!(
                "the addresses of network {} are those of the bridge {} ({subnet}) of another gantry daemon: {way_out}",
                network.name, other.name
            )));
        }
        if network.ipv6 {
            network::sysctl::enable_ip_forward(true)?;
        }
        let addresses = network
            .pools
            .iter()
            .filter_map(|pool| pool.gateway.map(|gateway| (gateway, pool.subnet.prefix())))
            .collect();
        let wanted = BridgeConfig {
            name: network.link.clone(),
            owner: network.id.clone(),
            mac: None,
            mtu: network.mtu,
            addresses,
            ipv6: network.ipv6,
        };
        route.bridge_ensure(&wanted).map(drop).map_err(|error| refused(network, error))
    }

    /// Tells other daemons that the bridge is served.
    fn claim(&self, network: &Network) -> Result<()> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if !claims.contains_key(&network.link) {
            let claim = Claim::bridge(&network.link).map_err(|error| refused(network, error))?;
            claims.insert(network.link.clone(), claim);
        }
        Ok(())
    }

    fn give_up(&self, link: &str) {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).remove(link);
    }

    pub(super) fn delete_record(&self, network: &Network) -> Result<()> {
        let path = self.root.join(format!("{}.json", network.id));
        match faults::write("network.remove").and_then(|()| std::fs::remove_file(&path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    /// Makes a user network: blocking.
    pub(super) fn create(&self, body: &NetworkCreate) -> Result<Network> {
        let mut network = check(body)?;
        let _turn = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        if self.lock().networks.values().any(|have| have.name == network.name) {
            return Err(Error::conflict(format!(
                "network with name {} already exists",
                network.name
            )));
        }
        let made = self.create_checked(&mut network, body);
        if made.is_err() {
            self.lock().ipam.release_network(&network.id);
        }
        made.map(|()| network)
    }

    fn create_checked(&self, network: &mut Network, body: &NetworkCreate) -> Result<()> {
        // Until the bridge has its address, and so is seen by other daemons.
        let turn = Claim::subnets()?;
        let configs = body.ipam.as_ref().map(|ipam| ipam.config.clone()).unwrap_or_default();
        for config in &configs {
            let request = pool_request(config, network)?;
            network.has_user_subnet |= request.subnet.is_some();
            self.take_pool(network, &request)?;
        }
        if !network.pools.iter().any(|pool| pool.subnet.is_ipv4())
            && body.enable_ipv4 != Some(false)
        {
            let request = PoolRequest { network: network.id.clone(), ..PoolRequest::default() };
            self.take_pool(network, &request)?;
        }
        if network.ipv6 && !network.pools.iter().any(|pool| !pool.subnet.is_ipv4()) {
            let request =
                PoolRequest { network: network.id.clone(), ipv6: true, ..PoolRequest::default() };
            self.take_pool(network, &request)?;
        }
        // First the record: a bridge without one would be nobody's after a crash.
        self.save(network)?;
        if let Err(error) = self.bring_up_whole(network, turn) {
            self.delete_record(network)?;
            return Err(error);
        }
        self.lock().networks.insert(network.id.clone(), network.clone());
        Ok(())
    }

    fn bring_up_whole(&self, network: &Network, turn: Claim) -> Result<()> {
        self.bring_up(network)?;
        faults::pass("network.bridge");
        drop(turn);
        if let Err(error) = self.add_rules(network) {
            self.take_down(network)?;
            return Err(error);
        }
        Ok(())
    }

    fn add_rules(&self, network: &Network) -> Result<()> {
        let Some(firewall) = &self.firewall else { return Ok(()) };
        let mut firewall = firewall.lock().unwrap_or_else(PoisonError::into_inner);
        let report = firewall.add_network(network.firewall_shape())?;
        super::note(&self.blockers, &report);
        Ok(())
    }

    /// Removes a network's bridge and rules.
    pub(super) fn take_down(&self, network: &Network) -> Result<()> {
        if network.driver != Driver::Bridge {
            return Ok(());
        }
        if let Some(firewall) = &self.firewall {
            let mut firewall = firewall.lock().unwrap_or_else(PoisonError::into_inner);
            firewall.remove_network(&network.link)?;
        }
        self.delete_bridge(network)
    }

    pub(super) fn delete_bridge(&self, network: &Network) -> Result<()> {
        if network.driver == Driver::Bridge {
            Rtnl::open()?.bridge_delete(&network.link, &network.id)?;
            self.give_up(&network.link);
        }
        Ok(())
    }

    /// `check` runs while no container can be attached.
    pub(super) fn remove(
        &self,
        network: &Network,
        check: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let _turn = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        check()?;
        self.take_down(network)?;
        faults::pass("network.down");
        self.delete_record(network)?;
        let mut state = self.lock();
        state.ipam.release_network(&network.id);
        state.networks.remove(&network.id);
        Ok(())
    }
}

/// The table of a daemon without a default bridge. No bridge has a `/` in its name.
pub(super) fn bare_table(engine_id: &str) -> String {
    format!("{TABLE}/{}", engine_id.get(..8).unwrap_or(engine_id))
}

/// How the default bridge differs from the one that is recorded, if it does.
fn change(old: &Network, config: &Config) -> Result<Option<String>> {
    if config.bridge_disabled {
        return Ok(Some("there shall be no default bridge (--bridge=none)".into()));
    }
    if old.link != config.bridge {
        return Ok(Some(format!("the default bridge shall be {}", config.bridge)));
    }
    if let Some((ip, prefix)) = config.bridge_address {
        let same = |pool: &Pool| pool.gateway == Some(ip) && pool.subnet.prefix() == prefix;
        let text = format!("the address of the default bridge shall be {ip}/{prefix}");
        return Ok((!old.pools.iter().any(same)).then_some(text));
    }
    // It was away, and meanwhile the host began to use its addresses for something else.
    let taken = |subnet: &Subnet| old.pools.iter().any(|pool| pool.subnet.overlaps(subnet));
    if Rtnl::open()?.link(&old.link)?.is_none()
        && let Some(subnet) = host_subnets()?.into_iter().find(taken)
    {
        return Ok(Some(format!("{subnet} is in use on this host")));
    }
    Ok(None)
}

/// Says what to do about a default bridge that cannot be ours.
fn refused(network: &Network, error: network::Error) -> Error {
    let is_taken = error.is_conflict();
    let error = Error::from(error);
    if !is_taken || !network.is_predefined() {
        return error;
    }
    Error::conflict(format!("{error}: give this daemon a bridge of its own with --bridge NAME"))
}

fn flag(options: &BTreeMap<String, String>, key: &str, default: bool) -> Result<bool> {
    match options.get(key).map(String::as_str) {
        None => Ok(default),
        Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some("false" | "0" | "f" | "F" | "FALSE" | "False" | "") => Ok(false),
        Some(other) => Err(Error::invalid(format!("failed to parse {key} value: {other}"))),
    }
}

/// What of the request can be refused or understood without looking at the host.
fn check(body: &NetworkCreate) -> Result<Network> {
    if body.name.trim().is_empty() {
        return Err(Error::invalid("network name cannot be empty"));
    }
    if types::validate_name(&body.name).is_err() && body.name.contains(['/', ':', ' ']) {
        return Err(Error::invalid(format!("invalid network name: {}", body.name)));
    }
    if matches!(body.name.as_str(), "bridge" | "host" | "none" | "default" | "nat") {
        return Err(Error::new(
            types::ErrorKind::PermissionDenied,
            format!("operation is not permitted on predefined {} network", body.name),
        ));
    }
    match body.driver.as_str() {
        "" | "bridge" => {}
        "host" | "null" => {
            return Err(Error::new(
                types::ErrorKind::PermissionDenied,
                format!("only one instance of \"{}\" network is allowed", body.driver),
            ));
        }
        "overlay" => {
            return Err(Error::new(
                types::ErrorKind::Unavailable,
                "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
            ));
        }
        "macvlan" | "ipvlan" => {
            return Err(Error::not_implemented(format!("network driver {}", body.driver)));
        }
        other => {
            return Err(Error::not_found(format!(
                "could not find plugin {other} in v1 plugin registry: plugin not found"
            )));
        }
    }
    if !matches!(body.scope.as_str(), "" | "local") {
        return Err(Error::not_implemented(format!("network scope \"{}\"", body.scope)));
    }
    if body.config_only || body.config_from.as_ref().is_some_and(|from| !from.network.is_empty()) {
        return Err(Error::not_implemented("config-only networks"));
    }
    if body.ingress {
        return Err(Error::not_implemented("ingress networks"));
    }
    if let Some(ipam) = &body.ipam
        && !matches!(ipam.driver.as_str(), "" | "default")
    {
        return Err(Error::not_implemented(format!("IPAM driver \"{}\"", ipam.driver)));
    }
    let mut network = blank(&body.name, Driver::Bridge);
    network.internal = body.internal;
    network.attachable = body.attachable;
    network.labels = body.labels.clone();
    apply_options(&mut network, body)?;
    Ok(network)
}

fn apply_options(network: &mut Network, body: &NetworkCreate) -> Result<()> {
    let options = &body.options;
    network.options = options.clone();
    network.ipv6 = body.enable_ipv6.unwrap_or(false) || flag(options, ENABLE_IPV6, false)?;
    network.icc = flag(options, ENABLE_ICC, true)?;
    network.masquerade = flag(options, ENABLE_MASQUERADE, true)?;
    network.link = match options.get(BRIDGE_NAME) {
        Some(name) => name.clone(),
        None => format!("br-{}", &network.id[..12]),
    };
    if let Some(mtu) = options.get(MTU) {
        let bad = |_| Error::invalid(format!("failed to parse {MTU} value: {mtu}"));
        network.mtu = Some(mtu.parse().map_err(bad)?);
    }
    if let Some(ip) = options.get(HOST_BINDING) {
        let bad = |_| Error::invalid(format!("failed to parse {HOST_BINDING} value: {ip}"));
        network.host_binding = Some(ip.parse().map_err(bad)?);
    }
    const KNOWN: &[&str] = &[
        BRIDGE_NAME,
        ENABLE_ICC,
        ENABLE_MASQUERADE,
        HOST_BINDING,
        MTU,
        ENABLE_IPV6,
        DEFAULT_BRIDGE,
    ];
    let unknown = options
        .keys()
        .find(|key| key.starts_with("com.docker.network.") && !KNOWN.contains(&key.as_str()));
    match unknown {
        Some(key) => Err(Error::not_implemented(format!("network option {key}"))),
        None => Ok(()),
    }
}

fn pool_request(config: &IpamConfig, network: &Network) -> Result<PoolRequest> {
    let invalid = |e: network::ipam::IpamError| Error::invalid(e.to_string());
    let address = |text: &str| -> Result<IpAddr> {
        let bad = |_| Error::invalid(format!("invalid address: {text}"));
        text.split('/').next().unwrap_or_default().parse().map_err(bad)
    };
    let optional = |text: &String| (!text.is_empty()).then_some(text.clone());
    let subnet = optional(&config.subnet).map(|t| parse_subnet(&t)).transpose().map_err(invalid)?;
    let ip_range =
        optional(&config.ip_range).map(|t| parse_ip_range(&t)).transpose().map_err(invalid)?;
    let mut aux = BTreeMap::new();
    for (name, text) in &config.auxiliary_addresses {
        aux.insert(name.clone(), address(text)?);
    }
    Ok(PoolRequest {
        network: network.id.clone(),
        ipv6: subnet.is_some_and(|subnet| !subnet.is_ipv4()),
        subnet,
        ip_range,
        gateway: optional(&config.gateway).map(|text| address(&text)).transpose()?,
        aux,
        ..PoolRequest::default()
    })
}
