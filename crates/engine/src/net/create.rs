//! Making networks: checks of what was asked, address ranges, the bridge itself.

use std::{collections::BTreeMap, net::IpAddr};

use api_types::{IpamConfig, NetworkCreate};
use network::{
    ipam::{PoolRequest, parse_ip_range, parse_subnet},
    link::{BridgeConfig, Rtnl},
};
use store_api::Timestamp;

use super::{Driver, Network, Networks, Pool, setup::host_subnets};
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
    pub(super) fn make_predefined(&self, config: &Config) -> Result<()> {
        for (name, driver) in [("host", Driver::Host), ("none", Driver::Null)] {
            if self.find(name).is_err() {
                let network = blank(name, driver);
                self.save(&network)?;
                self.lock().networks.insert(network.id.clone(), network);
            }
        }
        if config.bridge_disabled {
            return Ok(());
        }
        let old = self.find("bridge").ok();
        // What the configuration says now holds, whatever an earlier daemon was told.
        let changed = old.as_ref().is_none_or(|old| {
            old.link != config.bridge
                || config
                    .bridge_address
                    .is_some_and(|(ip, _)| !old.pools.iter().any(|pool| pool.gateway == Some(ip)))
        });
        if let Some(mut old) = old {
            if !changed {
                old.icc = config.icc;
                old.masquerade = config.masquerade;
                old.mtu = config.mtu;
                self.bring_up(&old)?;
                self.lock().networks.insert(old.id.clone(), old);
                return Ok(());
            }
            let mut state = self.lock();
            state.ipam.release_network(&old.id);
            state.networks.remove(&old.id);
            drop(state);
            self.delete_bridge(&old)?;
            self.delete_record(&old)?;
        }
        self.make_default_bridge(config)
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
            let subnet = network::Subnet::new(gateway, prefix)
                .map_err(|e| Error::invalid(format!("bip {gateway}/{prefix}: {e}")))?;
            request.subnet = Some(subnet);
            request.gateway = Some(gateway);
        }
        self.take_pool(&mut network, &request)?;
        self.bring_up(&network)?;
        self.save(&network)?;
        self.lock().networks.insert(network.id.clone(), network);
        Ok(())
    }

    fn take_pool(&self, network: &mut Network, request: &PoolRequest) -> Result<()> {
        // Our own bridges of earlier runs are not in the way.
        let known: Vec<network::Subnet> =
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

    /// Makes what the network needs on the host: nothing twice, so that it serves a restart as well.
    pub(super) fn bring_up(&self, network: &Network) -> Result<()> {
        if network.driver != Driver::Bridge {
            return Ok(());
        }
        {
            let mut state = self.lock();
            for pool in &network.pools {
                if state.ipam.pool(&pool.subnet).is_some() {
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
        }
        if network.ipv6 {
            network::sysctl::enable_ip_forward(true)?;
        }
        let addresses = network
            .pools
            .iter()
            .filter_map(|pool| pool.gateway.map(|gateway| (gateway, pool.subnet.prefix())))
            .collect();
        Rtnl::open()?.bridge_ensure(&BridgeConfig {
            name: network.link.clone(),
            owner: network.id.clone(),
            mac: None,
            mtu: network.mtu,
            addresses,
            ipv6: network.ipv6,
        })?;
        Ok(())
    }

    pub(super) fn delete_record(&self, network: &Network) -> Result<()> {
        let path = self.root.join(format!("{}.json", network.id));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    /// Makes a user network: blocking.
    pub(super) fn create(&self, body: &NetworkCreate) -> Result<Network> {
        let mut network = check(body)?;
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
        self.bring_up(network)?;
        let added = self.add_rules(network).and_then(|()| self.save(network));
        if let Err(error) = added {
            self.take_down(network)?;
            return Err(error);
        }
        self.lock().networks.insert(network.id.clone(), network.clone());
        Ok(())
    }

    fn add_rules(&self, network: &Network) -> Result<()> {
        let Some(firewall) = &self.firewall else { return Ok(()) };
        let mut firewall = firewall.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
            let mut firewall = firewall.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            firewall.remove_network(&network.link)?;
        }
        self.delete_bridge(network)
    }

    pub(super) fn delete_bridge(&self, network: &Network) -> Result<()> {
        if network.driver == Driver::Bridge {
            Rtnl::open()?.bridge_delete(&network.link, &network.id)?;
        }
        Ok(())
    }

    pub(super) fn remove(&self, network: &Network) -> Result<()> {
        self.take_down(network)?;
        self.delete_record(network)?;
        let mut state = self.lock();
        state.ipam.release_network(&network.id);
        state.networks.remove(&network.id);
        Ok(())
    }
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
