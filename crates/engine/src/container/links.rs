//! Links: other containers under names of one's own. On the default bridge they are lines of `hosts`
//! and variables that tell the other's ports (moby `daemon/links`, `links/links.go`); on user networks
//! the name server knows them.
//!
//! A record keeps `HostConfig.Links` as `ID:ALIAS`.

use std::{collections::BTreeMap, net::IpAddr};

use api_types::HostConfig;

use super::{Container, record::Record};
use crate::{Engine, Error, Result};

/// Variables of the linked container that are not passed on.
const OWN_VARIABLES: &[&str] = &["HOME", "PATH"];

/// `NAME`, `NAME:ALIAS`, or as inspect shows it `/NAME:/SELF/ALIAS` (moby `opts.ParseLink`).
pub(crate) fn parse(text: &str) -> Result<(&str, &str)> {
    let bad = || Error::invalid(format!("bad format for links: {text}"));
    let (name, alias) = text.split_once(':').unwrap_or((text, text));
    if name.is_empty() || alias.is_empty() || alias.contains(':') {
        return Err(bad());
    }
    match name.strip_prefix('/') {
        Some(name) => Ok((name, alias.rsplit('/').next().unwrap_or(alias))),
        None => Ok((name, alias)),
    }
}

impl Engine {
    /// Resolves the links of a container that is being made. Those that are not of the default bridge
    /// are answered: they belong to the user network.
    pub(super) fn settle_links(&self, host: &mut HostConfig) -> Result<Vec<String>> {
        if host.links.is_empty() {
            return Ok(Vec::new());
        }
        let conflict = |kind: &str| {
            Err(Error::invalid(format!(
                "conflicting options: {kind} can't be used with links. This would result in undefined behavior"
            )))
        };
        match host.network_mode.as_str() {
            "host" => return conflict("host type networking"),
            mode if mode.starts_with("container:") => return conflict("container type network"),
            _ => {}
        }
        let mut settled = Vec::new();
        for link in &host.links {
            let (name, alias) = parse(link)?;
            let child = self.containers.find(name).map_err(|e| {
                Error::invalid(format!("could not get container for {name}: {}", e.message))
            })?;
            settled.push(format!("{}:{alias}", child.id));
        }
        host.links.clone_from(&settled);
        Ok(if host.network_mode == "bridge" { Vec::new() } else { settled })
    }

    /// The linked containers of the default bridge with their addresses and aliases.
    fn linked(&self, record: &Record) -> Result<Vec<(Record, IpAddr, String)>> {
        if record.host_config.network_mode != "bridge" {
            return Ok(Vec::new());
        }
        let mut linked = Vec::new();
        for link in &record.host_config.links {
            let (id, alias) = parse(link)?;
            // A container that was removed takes its links along.
            let Ok(child) = self.containers.find(id) else { continue };
            let child = child.snapshot();
            let address = child.networks.get("bridge").map(|a| a.settings.ip_address.as_str());
            let address = address.and_then(|text| text.parse().ok());
            let running = child.status.pid().is_some();
            let Some(address) = address.filter(|_| running) else {
                return Err(Error::conflict(format!(
                    "Cannot link to a non running container: /{} AS /{}/{alias}",
                    child.name, record.name
                )));
            };
            linked.push((child, address, alias.to_owned()));
        }
        Ok(linked)
    }

    /// Lines for `hosts`: address and names.
    pub(super) fn link_hosts(&self, record: &Record) -> Result<Vec<(IpAddr, String)>> {
        let linked = self.linked(record)?.into_iter();
        Ok(linked
            .map(|(child, address, alias)| {
                let mut names = format!("{alias} {}", child.hostname());
                if alias != child.name {
                    names = format!("{names} {}", child.name);
                }
                (address, names)
            })
            .collect())
    }

    /// Variables that tell where the linked containers listen.
    pub(super) fn link_env(&self, record: &Record) -> Result<Vec<String>> {
        let linked = self.linked(record)?.into_iter();
        Ok(linked
            .flat_map(|(child, address, alias)| variables(&record.name, &child, address, &alias))
            .collect())
    }

    /// A linked container has another address: the `hosts` of those that link to it follow, in place,
    /// since the file is mounted into them.
    pub(super) fn refresh_links_to(&self, child: &Container) {
        for container in self.containers.all() {
            if container.record().host_config.links.is_empty() {
                continue;
            }
            let record = container.snapshot();
            let links_here = record
                .host_config
                .links
                .iter()
                .any(|link| parse(link).is_ok_and(|(id, _)| id == child.id.as_str()));
            if !links_here || record.status.pid().is_none() || container.id == child.id {
                continue;
            }
            let refreshed = self.hosts_text(&record, &record.hostname()).and_then(|text| {
                let path = container.dir.join("hosts");
                std::fs::write(&path, text).map_err(|e| Error::io("write", &path, &e))
            });
            if let Err(error) = refreshed {
                tracing::warn!(container = %container.id, %error, "the hosts file still has a link's old address");
            }
        }
    }

    /// As inspect shows them.
    pub(super) fn shown_links(&self, record: &Record) -> Vec<String> {
        let links = record.host_config.links.iter();
        links
            .filter_map(|link| {
                let (id, alias) = parse(link).ok()?;
                let child = self.containers.find(id).ok()?;
                let name = child.record().name.clone();
                Some(format!("/{name}:/{}/{alias}", record.name))
            })
            .collect()
    }
}

/// moby `links.(*Link).ToEnv`: the first port, every port, the name, the other's own variables.
fn variables(parent: &str, child: &Record, address: IpAddr, alias: &str) -> Vec<String> {
    let prefix = alias.to_ascii_uppercase().replace('-', "_");
    let ports: BTreeMap<(u16, &str), ()> = child
        .config
        .exposed_ports
        .keys()
        .filter_map(|port| {
            let (number, proto) = port.split_once('/').unwrap_or((port, "tcp"));
            Some(((number.parse().ok()?, proto), ()))
        })
        .collect();
    let mut env = Vec::new();
    if let Some((port, proto)) = ports.keys().next() {
        env.push(format!("{prefix}_PORT={proto}://{address}:{port}"));
    }
    for (port, proto) in ports.keys() {
        let key = format!("{prefix}_PORT_{port}_{}", proto.to_ascii_uppercase());
        env.push(format!("{key}={proto}://{address}:{port}"));
        env.push(format!("{key}_ADDR={address}"));
        env.push(format!("{key}_PORT={port}"));
        env.push(format!("{key}_PROTO={proto}"));
    }
    env.push(format!("{prefix}_NAME=/{parent}/{alias}"));
    for entry in &child.config.env {
        if let Some((name, value)) = entry.split_once('=')
            && !OWN_VARIABLES.contains(&name)
        {
            env.push(format!("{prefix}_ENV_{name}={value}"));
        }
    }
    env
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn link_texts() {
        assert_eq!(parse("db").unwrap(), ("db", "db"));
        assert_eq!(parse("db:store").unwrap(), ("db", "store"));
        assert_eq!(parse("/db:/web/store").unwrap(), ("db", "store"));
        for text in ["", ":a", "a:", "a:b:c"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_of_a_link() {
        let mut child = super::super::record::tests::record();
        for port in ["6379/tcp", "53/udp"] {
            child.config.exposed_ports.insert(port.into(), Default::default());
        }
        child.config.env = vec!["A=b".into(), "PATH=/bin".into()];
        let env = variables("web", &child, "172.17.0.2".parse().unwrap(), "my-db");
        assert_eq!(
            env,
            [
                "MY_DB_PORT=udp://172.17.0.2:53",
                "MY_DB_PORT_53_UDP=udp://172.17.0.2:53",
                "MY_DB_PORT_53_UDP_ADDR=172.17.0.2",
                "MY_DB_PORT_53_UDP_PORT=53",
                "MY_DB_PORT_53_UDP_PROTO=udp",
                "MY_DB_PORT_6379_TCP=tcp://172.17.0.2:6379",
                "MY_DB_PORT_6379_TCP_ADDR=172.17.0.2",
                "MY_DB_PORT_6379_TCP_PORT=6379",
                "MY_DB_PORT_6379_TCP_PROTO=tcp",
                "MY_DB_NAME=/web/my-db",
                "MY_DB_ENV_A=b",
            ]
        );
    }
}
