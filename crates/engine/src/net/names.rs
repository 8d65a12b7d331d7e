//! Names of containers on user networks, for the embedded name server.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{PoisonError, RwLock},
};

use api_types::EndpointSettings;
use network::dns::{Answer, EndpointScope, Resolver};

use crate::container::{links, record::Record};

/// A container's place on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    container: String,
    /// `container.network`, the answer to a reverse look-up.
    canonical: String,
    names: BTreeSet<String>,
    addresses: Vec<IpAddr>,
    /// Names that only this container has for others: alias, and the other's name or id.
    links: BTreeMap<String, String>,
}

/// Entries by network id.
#[derive(Default)]
pub(crate) struct Table(RwLock<BTreeMap<String, Vec<Entry>>>);

/// Names under which a container is known on a network: its own, its aliases, its short id, its host
/// name (dockerd 25 and later).
pub(crate) fn dns_names(record: &Record, settings: &EndpointSettings) -> Vec<String> {
    let mut names = vec![record.name.clone()];
    names.extend(settings.aliases.iter().cloned());
    names.push(record.id.short().to_string());
    if !record.config.hostname.is_empty() {
        names.push(record.config.hostname.clone());
    }
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

impl Table {
    /// Makes a container known, or known anew, on a network.
    pub(super) fn put(
        &self,
        network_id: &str,
        network_name: &str,
        record: &Record,
        settings: &EndpointSettings,
    ) {
        let parse = |text: &String| text.parse::<IpAddr>().ok();
        let addresses =
            [&settings.ip_address, &settings.global_ipv6_address].into_iter().filter_map(parse);
        let entry = Entry {
            container: record.id.to_string(),
            canonical: format!("{}.{network_name}", record.name),
            names: dns_names(record, settings).iter().map(|n| n.to_ascii_lowercase()).collect(),
            addresses: addresses.collect(),
            links: settings
                .links
                .iter()
                .filter_map(|link| {
                    let (other, alias) = links::parse(link).ok()?;
                    Some((alias.to_ascii_lowercase(), other.to_ascii_lowercase()))
                })
                .collect(),
        };
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let entries = table.entry(network_id.into()).or_default();
        entries.retain(|have| have.container != entry.container);
        entries.push(entry);
    }

    pub(super) fn remove(&self, network_id: &str, container: &str) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entries) = table.get_mut(network_id) {
            entries.retain(|entry| entry.container != container);
            if entries.is_empty() {
                table.remove(network_id);
            }
        }
    }
}

impl Resolver for Table {
    fn lookup(&self, scope: &EndpointScope, name: &str) -> Answer {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        let mut known = false;
        for network in &scope.networks {
            let entries = table.get(network).map_or(&[][..], Vec::as_slice);
            let own = entries.iter().find(|entry| entry.container == scope.container);
            // A link comes before whoever has that name.
            let name = own.and_then(|own| own.links.get(name)).map_or(name, String::as_str);
            for entry in entries {
                let is_meant = entry.names.contains(name)
                    || entry.canonical.eq_ignore_ascii_case(name)
                    || entry.container == name;
                if !is_meant {
                    continue;
                }
                known = true;
                for address in &entry.addresses {
                    match address {
                        IpAddr::V4(address) => v4.push(*address),
                        IpAddr::V6(address) => v6.push(*address),
                    }
                }
            }
        }
        if known { Answer::Addresses { v4, v6 } } else { Answer::Unknown }
    }

    fn reverse(&self, scope: &EndpointScope, address: IpAddr) -> Option<String> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        scope.networks.iter().find_map(|network| {
            let entries = table.get(network)?;
            let entry = entries.iter().find(|entry| entry.addresses.contains(&address))?;
            Some(entry.canonical.clone())
        })
    }
}
