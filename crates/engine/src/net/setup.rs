//! A container's namespace: made and attached at start, adopted after a restart of the daemon, taken
//! down at the end.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError},
};

use api_types::{EndpointSettings, PortMap};
use network::{
    Mac, Subnet,
    endpoint::{self, EndpointConfig, IpConfig},
    firewall::PublishedPort,
    link::{PortFlags, Rtnl},
    ns,
};

use super::{Driver, Network, Networks, Running};
use crate::{
    Engine, Error, Result,
    container::{
        Container,
        record::{Attachment, Record},
    },
    util::{blocking, random_id},
};

impl Networks {
    /// Makes the namespace, attaches every network, takes the ports. What was made is taken down again
    /// when a step fails.
    pub(crate) async fn set_up(
        &self,
        engine: &Arc<Engine>,
        container: &Arc<Container>,
    ) -> Result<()> {
        let record = container.snapshot();
        if !record.has_own_network() {
            return container.update(|record| record.ports.clear());
        }
        let (engine, container) = (engine.clone(), container.clone());
        blocking(move || {
            let networks = &engine.networks;
            let result = networks.set_up_now(&engine, &container, record);
            if result.is_err() {
                networks.tear_down_now(&engine, &container);
            }
            result
        })
        .await
    }

    fn set_up_now(&self, engine: &Engine, container: &Container, mut record: Record) -> Result<()> {
        let _turn = self.shape.read().unwrap_or_else(PoisonError::into_inner);
        let path = self.namespace_file(engine, &record);
        ns::remove(&path)?;
        let namespace = Arc::new(self.namespaces.take(&path)?);
        container.running.lock().unwrap_or_else(PoisonError::into_inner).namespace =
            Some(namespace.clone());
        let names = in_order(&record);
        let gateway = self.first_way_out(&names);
        for (index, name) in names.iter().enumerate() {
            let network = self.find(name)?;
            let attachment = record.networks.get_mut(name).expect("the name is one of its keys");
            attachment.gateway = Some(name) == gateway.as_ref();
            let made = self.attach(&namespace, &network, attachment, index);
            // Also after a failure: the address was taken and has to be given back.
            container.update(|saved| saved.networks = record.networks.clone())?;
            made?;
            if network.driver == Driver::Bridge && self.has_dns(name) {
                self.names.put(&network.id, name, &record, &record.networks[name].settings);
            }
            engine.network_event(&network, "connect", Some(&record));
        }
        if let Some(name) = gateway {
            let network = self.find(&name)?;
            let (published, map) = self.publish(&network, &record)?;
            container.running.lock().unwrap_or_else(PoisonError::into_inner).published = published;
            container.update(|record| record.ports = map)?;
        }
        Ok(())
    }

    /// The network that leads out of the host: the first bridge that is not internal.
    fn first_way_out(&self, names: &[String]) -> Option<String> {
        let leads_out = |name: &&String| {
            self.find(name).is_ok_and(|n| n.driver == Driver::Bridge && !n.internal)
        };
        names.iter().find(leads_out).cloned()
    }

    fn attach(
        &self,
        namespace: &ns::Namespace,
        network: &Network,
        attachment: &mut Attachment,
        index: usize,
    ) -> Result<()> {
        match network.driver {
            Driver::Null | Driver::Host => {
                attachment.settings.network_id.clone_from(&network.id);
                attachment.settings.endpoint_id = random_id();
                return Ok(());
            }
            Driver::Bridge => {}
            Driver::Macvlan | Driver::Ipvlan => {
                return Err(Error::not_implemented(format!(
                    "network driver {}",
                    network.driver.name()
                )));
            }
        }
        let ip = self.take_addresses(network, &mut attachment.settings, attachment.gateway)?;
        let wanted = &attachment.wanted_mac;
        let mac: Option<Mac> = if wanted.is_empty() {
            None
        } else {
            let bad = |_| Error::invalid(format!("invalid MAC address: {wanted}"));
            Some(wanted.parse().map_err(bad)?)
        };
        let settings = &mut attachment.settings;
        let config = EndpointConfig {
            bridge: network.link.clone(),
            ifname: format!("eth{index}"),
            host_ifname: None,
            mac,
            mtu: network.mtu,
            ip,
            port: PortFlags { isolated: !network.icc, hairpin: true },
        };
        let mut host = Rtnl::open()?;
        let made = endpoint::attach(&mut host, namespace, &config)?;
        settings.mac_address = made.mac.map(|mac| mac.to_string()).unwrap_or_default();
        settings.endpoint_id = random_id();
        attachment.ifname = made.ifname;
        attachment.host_ifname = made.host_ifname;
        Ok(())
    }

    /// Takes an address of every pool and writes it into the settings.
    fn take_addresses(
        &self,
        network: &Network,
        settings: &mut EndpointSettings,
        leads_out: bool,
    ) -> Result<IpConfig> {
        let wanted = settings.ipam_config.clone().unwrap_or_default();
        let mut ip = IpConfig::default();
        settings.network_id.clone_from(&network.id);
        for pool in &network.pools {
            let text =
                if pool.subnet.is_ipv4() { &wanted.ipv4_address } else { &wanted.ipv6_address };
            let fixed: Option<IpAddr> = if text.is_empty() {
                None
            } else {
                let bad = |_| Error::invalid(format!("invalid IP address: {text}"));
                Some(text.parse().map_err(bad)?)
            };
            let address = self
                .lock()
                .ipam
                .request_address(&pool.subnet, fixed)
                .map_err(|e| Error::new(types::ErrorKind::PermissionDenied, e.to_string()))?;
            let prefix = pool.subnet.prefix();
            let gateway = pool.gateway.filter(|_| !network.internal);
            let shown = pool.gateway.map(|g| g.to_string()).unwrap_or_default();
            match address {
                IpAddr::V4(address) => {
                    settings.ip_address = address.to_string();
                    settings.ip_prefix_len = i64::from(prefix);
                    settings.gateway = shown;
                    ip.v4 = Some((address, prefix));
                    if let (Some(IpAddr::V4(gateway)), true) = (gateway, leads_out) {
                        ip.gateway4 = Some(gateway);
                    }
                }
                IpAddr::V6(address) => {
                    settings.global_ipv6_address = address.to_string();
                    settings.global_ipv6_prefix_len = i64::from(prefix);
                    settings.ipv6_gateway = shown;
                    ip.v6 = Some((address, prefix));
                    if let (Some(IpAddr::V6(gateway)), true) = (gateway, leads_out) {
                        ip.gateway6 = Some(gateway);
                    }
                }
            }
        }
        Ok(ip)
    }

    /// Gives addresses back and empties what only a running container has.
    fn release(&self, attachment: &mut Attachment) {
        let settings = &mut attachment.settings;
        if let Ok(network) = self.find(&settings.network_id) {
            let mut state = self.lock();
            for text in [&settings.ip_address, &settings.global_ipv6_address] {
                let Ok(address) = text.parse::<IpAddr>() else { continue };
                if let Some(pool) = network.pools.iter().find(|p| p.subnet.contains(address)) {
                    state.ipam.release_address(&pool.subnet, address);
                }
            }
        }
        let kept = EndpointSettings {
            ipam_config: settings.ipam_config.clone(),
            links: std::mem::take(&mut settings.links),
            aliases: std::mem::take(&mut settings.aliases),
            driver_opts: std::mem::take(&mut settings.driver_opts),
            gw_priority: settings.gw_priority,
            network_id: settings.network_id.clone(),
            ..EndpointSettings::default()
        };
        *settings = kept;
        attachment.ifname.clear();
        attachment.host_ifname.clear();
        attachment.gateway = false;
    }

    /// Takes a stopped container's network down.
    pub(crate) async fn tear_down(&self, engine: &Arc<Engine>, container: &Arc<Container>) {
        let (engine, container) = (engine.clone(), container.clone());
        let done = blocking(move || {
            engine.networks.tear_down_now(&engine, &container);
            Ok(())
        });
        if let Err(error) = done.await {
            tracing::error!(%error, "taking a network down failed");
        }
    }

    fn tear_down_now(&self, engine: &Engine, container: &Container) {
        let running =
            std::mem::take(&mut *container.running.lock().unwrap_or_else(PoisonError::into_inner));
        self.unpublish(&running.published);
        let before = container.snapshot();
        for attachment in before.networks.values() {
            let settings = &attachment.settings;
            self.names.remove(&settings.network_id, container.id.as_str());
            if settings.endpoint_id.is_empty() {
                continue;
            }
            if let Ok(network) = self.find(&settings.network_id) {
                engine.network_event(&network, "disconnect", Some(&before));
            }
        }
        if before.has_own_network()
            && let Err(error) = ns::remove(&self.namespace_file(engine, &before))
        {
            tracing::warn!(container = %container.id, %error, "a network namespace was left behind");
        }
        container.update_or_log(|record| {
            for attachment in record.networks.values_mut() {
                self.release(attachment);
            }
            record.ports.clear();
        });
    }

    /// A container that ran on while no daemon did: its addresses, names and ports are taken again as
    /// they are. Answers the ports for the packet filter.
    pub(crate) fn adopt(&self, engine: &Engine, container: &Container) -> Vec<PublishedPort> {
        let record = container.snapshot();
        if !record.has_own_network() {
            return Vec::new();
        }
        for (name, attachment) in &record.networks {
            let settings = &attachment.settings;
            let Ok(network) = self.find(&settings.network_id) else { continue };
            for text in [&settings.ip_address, &settings.global_ipv6_address] {
                let Ok(address) = text.parse::<IpAddr>() else { continue };
                let pool = network.pools.iter().find(|pool| pool.subnet.contains(address));
                let Some(pool) = pool else { continue };
                if let Err(error) = self.lock().ipam.request_address(&pool.subnet, Some(address)) {
                    tracing::warn!(container = %container.id, %error, "an address in use could not be noted");
                }
            }
            if network.driver == Driver::Bridge && self.has_dns(name) {
                self.names.put(&network.id, name, &record, settings);
            }
        }
        let published = published_of(&record);
        let path = self.namespace_file(engine, &record);
        if let Some(name) = path.file_name() {
            let mut adopted = self.adopted.lock().unwrap_or_else(PoisonError::into_inner);
            adopted.insert(name.to_owned());
        }
        let namespace = ns::Namespace::open(&path).ok();
        *container.running.lock().unwrap_or_else(PoisonError::into_inner) =
            Running { namespace: namespace.map(Arc::new), published: published.clone(), dns: None };
        published
    }

    /// Starts the embedded name server where a user network is joined.
    pub(crate) async fn start_dns(
        &self,
        container: &Arc<Container>,
        record: &Record,
        upstreams: Vec<SocketAddr>,
    ) -> Result<()> {
        if !record.has_own_network() || !self.needs_dns(record) {
            return Ok(());
        }
        let namespace =
            container.running.lock().unwrap_or_else(PoisonError::into_inner).namespace.clone();
        let Some(namespace) = namespace else { return Ok(()) };
        let sockets = blocking(move || Ok(network::dns::open(&namespace)?)).await?;
        let mut networks = Vec::new();
        let mut forward = false;
        for name in record.networks.keys() {
            let network = self.find(name)?;
            forward |= !network.internal;
            networks.push(network.id);
        }
        let config = network::dns::ServerConfig {
            scope: network::dns::EndpointScope { container: record.id.to_string(), networks },
            upstreams,
            forward,
        };
        let server = network::dns::serve(sockets, config, self.names.clone())?;
        container.running.lock().unwrap_or_else(PoisonError::into_inner).dns = Some(server);
        Ok(())
    }

    /// The ports that the shim listens on, as it reads them.
    pub(crate) fn shim_ports(&self, container: &Container) -> Result<Vec<u8>> {
        let running = container.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.published.is_empty() {
            return Ok(Vec::new());
        }
        let list: Vec<serde_json::Value> = running
            .published
            .iter()
            .filter(|port| port.proto != network::firewall::Proto::Sctp)
            .map(|port| {
                serde_json::json!({
                    "proto": port.proto.as_str(),
                    "host_ip": port.host_ip,
                    "host_port": port.host_port,
                    "container_ip": port.container_ip,
                    "container_port": port.container_port,
                })
            })
            .collect();
        serde_json::to_vec(&list).map_err(|e| Error::internal(format!("encode ports: {e}")))
    }

    /// Attaches a running container to one more network and records it.
    pub(super) fn connect_live(
        &self,
        container: &Container,
        network: &Network,
        mut attachment: Attachment,
    ) -> Result<()> {
        let _turn = self.shape.read().unwrap_or_else(PoisonError::into_inner);
        self.find(&network.id)?;
        let namespace =
            container.running.lock().unwrap_or_else(PoisonError::into_inner).namespace.clone();
        let namespace = namespace.ok_or_else(|| {
            Error::conflict(format!(
                "container {} has no network namespace of its own",
                container.id
            ))
        })?;
        let name = endpoint::free_ifname(&namespace, "eth")?;
        let index = name.trim_start_matches("eth").parse().unwrap_or(0);
        let record = container.snapshot();
        attachment.gateway = network.driver == Driver::Bridge
            && !network.internal
            && self.way_out(&record).is_none();
        let made = self.attach(&namespace, network, &mut attachment, index);
        let made = made.and_then(|()| {
            let attachment = attachment.clone();
            container.update(|record| record.networks.insert(network.name.clone(), attachment))
        });
        if let Err(error) = made {
            self.release(&mut attachment);
            return Err(error);
        }
        if self.has_dns(&network.name) {
            self.names.put(&network.id, &network.name, &record, &attachment.settings);
        }
        Ok(())
    }

    /// Takes a running container off a network.
    pub(super) fn disconnect_live(
        &self,
        container: &Container,
        attachment: &mut Attachment,
    ) -> Result<()> {
        let namespace =
            container.running.lock().unwrap_or_else(PoisonError::into_inner).namespace.clone();
        self.names.remove(&attachment.settings.network_id, container.id.as_str());
        if let Some(namespace) = namespace.filter(|_| !attachment.host_ifname.is_empty()) {
            let made = endpoint::Endpoint {
                host_ifname: attachment.host_ifname.clone(),
                ifname: attachment.ifname.clone(),
                mac: None,
            };
            let mut host = Rtnl::open()?;
            match endpoint::detach(&mut host, &namespace, &made) {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        self.release(attachment);
        Ok(())
    }

    /// The network that a running container's way out is on; of a record without the mark it is
    /// found as at the start.
    fn way_out(&self, record: &Record) -> Option<String> {
        let marked = record.networks.iter().find(|(_, attachment)| attachment.gateway);
        let marked = marked.map(|(name, _)| name.clone());
        marked.or_else(|| self.first_way_out(&in_order(record)))
    }

    /// Leads a running container's default route and published ports over the networks that it has
    /// left. Host ports that it holds stay the same; ports that it asked for and could not have
    /// without a network are taken now. Whether the list of ports is another one.
    pub(super) fn lead_out(&self, container: &Container) -> Result<bool> {
        let mut record = container.snapshot();
        let way_out = self.way_out(&record);
        for (name, attachment) in &mut record.networks {
            attachment.gateway = Some(name) == way_out.as_ref();
        }
        let running = || container.running.lock().unwrap_or_else(PoisonError::into_inner);
        let (namespace, old) = {
            let running = running();
            (running.namespace.clone(), running.published.clone())
        };
        let (mut published, mut map) = (Vec::new(), PortMap::new());
        if let (Some(name), Some(namespace)) = (way_out, namespace) {
            let attachment = &record.networks[&name];
            let settings = &attachment.settings;
            let gateways = [&settings.gateway, &settings.ipv6_gateway];
            let gateways = gateways.into_iter().filter_map(|text| text.parse().ok());
            endpoint::add_default_routes(&namespace, &attachment.ifname, gateways)?;
            published = published_of(&record);
            if published == old && !old.is_empty() {
                return Ok(false);
            }
            self.unpublish(&old);
            // Whatever fails from here on, these are taken no more.
            running().published.clear();
            if published.is_empty() {
                (published, map) = self.publish(&self.find(&name)?, &record)?;
            } else {
                map.clone_from(&record.ports);
                self.publish_again(&published)?;
            }
        } else {
            self.unpublish(&old);
        }
        let changed = published != old;
        running().published = published;
        container.update(|saved| {
            saved.networks = record.networks;
            saved.ports = map;
        })?;
        Ok(changed)
    }

    /// A removed container's leftovers: nothing, unless it never ran down properly.
    pub(crate) fn forget(&self, record: &Record) {
        for attachment in record.networks.values() {
            self.names.remove(&attachment.settings.network_id, record.id.as_str());
        }
    }

    pub(crate) fn renamed(&self, record: &Record) {
        if record.status.pid().is_none() {
            return;
        }
        for (name, attachment) in &record.networks {
            if self.has_dns(name) {
                self.names.put(&attachment.settings.network_id, name, record, &attachment.settings);
            }
        }
    }
}

/// The names of a container's networks: the one of its mode first.
fn in_order(record: &Record) -> Vec<String> {
    let main = &record.host_config.network_mode;
    let mut names: Vec<String> = record.networks.keys().cloned().collect();
    names.sort_by_key(|name| {
        let attachment = &record.networks[name];
        (name != main && !attachment.settings.network_id.starts_with(main), name.clone())
    });
    names
}

/// What a running container's record says is published.
fn published_of(record: &Record) -> Vec<PublishedPort> {
    let unmarked = !record.networks.values().any(|a| a.gateway);
    let addresses: Vec<IpAddr> = record
        .networks
        .values()
        .filter(|a| a.gateway || unmarked)
        .flat_map(|a| [&a.settings.ip_address, &a.settings.global_ipv6_address])
        .filter_map(|text| text.parse().ok())
        .collect();
    let mut list = Vec::new();
    for (port, bindings) in &record.ports {
        let (number, proto) = port.split_once('/').unwrap_or((port, "tcp"));
        let proto = match proto {
            "udp" => network::firewall::Proto::Udp,
            "sctp" => network::firewall::Proto::Sctp,
            _ => network::firewall::Proto::Tcp,
        };
        let Ok(container_port) = number.parse() else { continue };
        for binding in bindings.iter().flatten() {
            let (Ok(host_ip), Ok(host_port)) =
                (binding.host_ip.parse::<IpAddr>(), binding.host_port.parse())
            else {
                continue;
            };
            let same = addresses.iter().find(|ip| ip.is_ipv4() == host_ip.is_ipv4());
            let Some(container_ip) = same.or(addresses.first()).copied() else { continue };
            list.push(PublishedPort { proto, host_ip, host_port, container_ip, container_port });
        }
    }
    list
}

/// Every subnet that the host uses, which new networks avoid.
pub(super) fn host_subnets() -> Result<Vec<Subnet>> {
    Ok(Rtnl::open()?.host_subnets()?)
}
