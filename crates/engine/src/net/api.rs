//! Networks as the API shows and changes them.

use std::sync::{Arc, PoisonError};

use api_types::{
    EndpointResource, Filters, Ipam, IpamConfig, Map, NetworkConnect, NetworkCreate,
    NetworkCreateResponse, NetworkDisconnect, NetworksPruneReport,
};
use types::ErrorKind;

use super::{Driver, Network};
use crate::{
    Engine, Error, Result,
    container::{
        Container, attachment,
        record::{Attachment, Record},
    },
    util::{blocking, parse_time, rfc3339, unix_nanos},
};

/// moby `daemon/network/filter.go`.
const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];
const PRUNE_FILTERS: &[&str] = &["label", "label!", "until"];

impl Engine {
    pub(crate) fn network_event(&self, network: &Network, action: &str, record: Option<&Record>) {
        let mut attributes = Map::from([
            ("name".to_string(), network.name.clone()),
            ("type".to_string(), network.driver.name().to_string()),
        ]);
        if let Some(record) = record {
            attributes.insert("container".into(), record.id.to_string());
        }
        self.events.publish("network", action, &network.id, attributes);
    }

    fn network_shape_of(&self, network: &Network, containers: bool) -> api_types::Network {
        let mut shown = Map::new();
        if containers {
            for container in self.containers.all() {
                let record = container.snapshot();
                let attachment =
                    record.networks.values().find(|a| a.settings.network_id == network.id);
                let Some(attachment) = attachment.filter(|_| record.status.pid().is_some()) else {
                    continue;
                };
                shown.insert(record.id.to_string(), endpoint_shape(&record, attachment));
            }
        }
        let config = network.pools.iter().map(|pool| IpamConfig {
            subnet: pool.subnet.to_string(),
            ip_range: pool.ip_range.map(|range| range.to_string()).unwrap_or_default(),
            gateway: pool.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
            auxiliary_addresses: pool
                .aux
                .iter()
                .map(|(name, address)| (name.clone(), address.to_string()))
                .collect(),
        });
        api_types::Network {
            name: network.name.clone(),
            id: network.id.clone(),
            created: rfc3339(Some(network.created)),
            scope: "local".into(),
            driver: network.driver.name().into(),
            enable_ipv4: network.pools.iter().any(|pool| pool.subnet.is_ipv4()),
            enable_ipv6: network.ipv6,
            ipam: Ipam { driver: "default".into(), options: Map::new(), config: config.collect() },
            internal: network.internal,
            attachable: network.attachable,
            containers: shown,
            options: network.options.clone(),
            labels: network.labels.clone(),
            ..api_types::Network::default()
        }
    }

    pub fn network_list(&self, filters: &Filters) -> Result<Vec<api_types::Network>> {
        filters.validate(FILTERS)?;
        let dangling = filters.get_bool("dangling")?;
        for kind in filters.get("type") {
            if !matches!(kind, "custom" | "builtin") {
                return Err(Error::invalid(format!("invalid filter: 'type'='{kind}'")));
            }
        }
        let any = |key: &str, test: &dyn Fn(&str) -> bool| {
            !filters.contains(key) || filters.get(key).any(test)
        };
        let mut networks = self.networks.all();
        networks.retain(|network| {
            any("driver", &|want| network.driver.name() == want)
                && any("id", &|want| network.id.starts_with(want))
                && any("name", &|want| crate::util::expression_matches(&network.name, want))
                && any("scope", &|want| want == "local")
                && any("type", &|want| (want == "builtin") == network.is_predefined())
                && filters.match_labels("label", &network.labels)
                && dangling.is_none_or(|want| {
                    (!network.is_predefined() && self.network_users(network).is_empty()) == want
                })
        });
        Ok(networks.iter().map(|network| self.network_shape_of(network, false)).collect())
    }

    pub fn network_inspect(&self, name: &str) -> Result<api_types::Network> {
        Ok(self.network_shape_of(&self.networks.find(name)?, true))
    }

    pub async fn network_create(
        self: &Arc<Self>,
        body: NetworkCreate,
    ) -> Result<NetworkCreateResponse> {
        let engine = self.clone();
        let network = blocking(move || engine.networks.create(&body)).await?;
        self.network_event(&network, "create", None);
        Ok(NetworkCreateResponse { id: network.id, warning: String::new() })
    }

    /// Containers that run on a network or are being started on it.
    fn network_users(&self, network: &Network) -> Vec<Record> {
        let has_namespace = |container: &Container| {
            let running = container.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.namespace.is_some()
        };
        let containers = self.containers.all().into_iter();
        containers
            .map(|container| (has_namespace(&container), container.snapshot()))
            .filter(|(has_namespace, record)| {
                (*has_namespace || record.status.pid().is_some())
                    && record.networks.values().any(|a| a.settings.network_id == network.id)
            })
            .map(|(_, record)| record)
            .collect()
    }

    pub async fn network_remove(self: &Arc<Self>, name: &str) -> Result<()> {
        let network = self.networks.find(name)?;
        if network.is_predefined() {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!("{} is a pre-defined network and cannot be removed", network.name),
            ));
        }
        let (engine, gone) = (self.clone(), network.clone());
        blocking(move || engine.networks.remove(&gone, || engine.refuse_used(&gone))).await?;
        self.network_event(&network, "destroy", None);
        Ok(())
    }

    fn refuse_used(&self, network: &Network) -> Result<()> {
        let users = self.network_users(network);
        if users.is_empty() {
            return Ok(());
        }
        let names: Vec<String> =
            users.iter().map(|r| format!("name:\"{}\" id:\"{}\"", r.name, r.id.short())).collect();
        Err(Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "error while removing network: network {} has active endpoints ({})",
                network.name,
                names.join(", ")
            ),
        ))
    }

    pub async fn network_connect(self: &Arc<Self>, name: &str, body: NetworkConnect) -> Result<()> {
        let network = self.networks.find(name)?;
        let container = self.containers.find(&body.container)?;
        let _lifecycle = container.lock_live(&body.container).await?;
        let record = container.snapshot();
        let forbidden = |text: String| Err(Error::new(ErrorKind::PermissionDenied, text));
        if !record.has_own_network() || network.driver == Driver::Host {
            return forbidden(
                "container cannot be disconnected from host network or connected to host network"
                    .into(),
            );
        }
        let is_none = |name: &String| {
            self.networks.find(name).is_ok_and(|network| network.driver == Driver::Null)
        };
        if (network.driver == Driver::Null && !record.networks.is_empty())
            || record.networks.keys().any(is_none)
        {
            return forbidden(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
                    .into(),
            );
        }
        if record.networks.contains_key(&network.name) {
            return forbidden(format!(
                "endpoint with name {} already exists in network {}",
                record.name, network.name
            ));
        }
        let attachment = attachment(&network, body.endpoint_config.unwrap_or_default())?;
        if record.status.pid().is_some() {
            let (engine, owner, target) = (self.clone(), container.clone(), network.clone());
            blocking(move || engine.networks.connect_live(&owner, &target, attachment)).await?;
        } else {
            container.update(|record| record.networks.insert(network.name.clone(), attachment))?;
        }
        self.follow_networks(&container).await?;
        if record.status.pid().is_some() {
            self.network_event(&network, "connect", Some(&record));
        }
        Ok(())
    }

    pub async fn network_disconnect(
        self: &Arc<Self>,
        name: &str,
        body: NetworkDisconnect,
    ) -> Result<()> {
        let network = self.networks.find(name)?;
        let container = match self.containers.find(&body.container) {
            Err(error) if error.is_not_found() && body.force => return Ok(()),
            found => found?,
        };
        let _lifecycle = container.lock_live(&body.container).await?;
        let record = container.snapshot();
        let Some(mut attachment) = record.networks.get(&network.name).cloned() else {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!("container {} is not connected to network {}", record.id, network.name),
            ));
        };
        if record.status.pid().is_some() {
            let (engine, owner) = (self.clone(), container.clone());
            blocking(move || engine.networks.disconnect_live(&owner, &mut attachment)).await?;
        }
        container.update(|record| record.networks.remove(&network.name))?;
        self.follow_networks(&container).await?;
        self.network_event(&network, "disconnect", Some(&record));
        Ok(())
    }

    /// The name server, the default route and the published ports of a running container follow its
    /// networks.
    async fn follow_networks(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let record = container.snapshot();
        if record.status.pid().is_none() {
            return Ok(());
        }
        let (engine, owner) = (self.clone(), container.clone());
        if blocking(move || engine.networks.lead_out(&owner)).await? {
            let ports = self.networks.shim_ports(container)?;
            let set = self.services.tasks.set_ports(container.id.as_str(), ports).await;
            set.map_err(|e| {
                Error::new(e.kind, format!("publish the ports of container {}: {e}", container.id))
            })?;
        }
        let upstreams = self.upstreams(&record)?;
        self.networks.start_dns(container, &record, upstreams).await
    }

    pub async fn network_prune(self: &Arc<Self>, filters: &Filters) -> Result<NetworksPruneReport> {
        filters.validate(PRUNE_FILTERS)?;
        let until = match filters.get("until").next() {
            Some(text) => Some(parse_time(text)?),
            None => None,
        };
        let mut report = NetworksPruneReport::default();
        for network in self.networks.all() {
            let unwanted =
                filters.contains("label!") && filters.match_labels("label!", &network.labels);
            let referenced = self.containers.all().iter().any(|container| {
                container.record().networks.values().any(|a| a.settings.network_id == network.id)
            });
            if network.is_predefined()
                || unwanted
                || referenced
                || !filters.match_labels("label", &network.labels)
                || until.is_some_and(|until| unix_nanos(network.created) > unix_nanos(until))
            {
                continue;
            }
            if self.network_remove(&network.id).await.is_ok() {
                report.networks_deleted.push(network.name);
            }
        }
        let attributes = Map::from([("reclaimed".into(), "0".into())]);
        self.events.publish("network", "prune", "", attributes);
        Ok(report)
    }
}

fn endpoint_shape(record: &Record, attachment: &Attachment) -> EndpointResource {
    let settings = &attachment.settings;
    let with_prefix = |address: &String, prefix: i64| {
        if address.is_empty() { String::new() } else { format!("{address}/{prefix}") }
    };
    EndpointResource {
        name: record.name.clone(),
        endpoint_id: settings.endpoint_id.clone(),
        mac_address: settings.mac_address.clone(),
        ipv4_address: with_prefix(&settings.ip_address, settings.ip_prefix_len),
        ipv6_address: with_prefix(&settings.global_ipv6_address, settings.global_ipv6_prefix_len),
    }
}
