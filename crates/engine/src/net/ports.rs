//! Published ports: from what was asked for to what is taken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api_types::{PortBinding, PortMap};
use network::{
    firewall::{Proto, PublishedPort},
    portmap::PortChoice,
};

use super::{Driver, Network, Networks};
use crate::{Error, Result, container::record::Record};

/// A published port as the container's own address has it.
struct Target {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

fn parse_proto(text: &str) -> Result<Proto> {
    match text {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        "sctp" => Ok(Proto::Sctp),
        _ => Err(Error::invalid(format!("invalid proto: {text}"))),
    }
}

/// `80/tcp`
fn parse_port(text: &str) -> Result<(u16, Proto)> {
    let (number, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = number
        .parse()
        .ok()
        .filter(|n| *n != 0)
        .ok_or_else(|| Error::invalid(format!("invalid port specification: \"{text}\"")))?;
    Ok((number, parse_proto(proto)?))
}

fn parse_choice(text: &str) -> Result<PortChoice> {
    let bad = || Error::invalid(format!("invalid port specification: \"{text}\""));
    if text.is_empty() || text == "0" {
        return Ok(PortChoice::Ephemeral);
    }
    match text.split_once('-') {
        None => Ok(PortChoice::Exact(text.parse().map_err(|_| bad())?)),
        Some((first, last)) => {
            let first: u16 = first.parse().map_err(|_| bad())?;
            let last = last.parse().map_err(|_| bad())?;
            if first == 0 || last < first { Err(bad()) } else { Ok(PortChoice::Range(first, last)) }
        }
    }
}

impl Networks {
    /// Takes every port that a container publishes. The sockets that prove a port free are given back
    /// here, and the shim listens on them for as long as the container runs.
    pub(super) fn publish(
        &self,
        network: &Network,
        record: &Record,
    ) -> Result<(Vec<PublishedPort>, PortMap)> {
        let mut published = Vec::new();
        let mut map = PortMap::new();
        let Some(attachment) = record.networks.get(&network.name) else {
            return Ok((published, map));
        };
        let parse = |text: &String| text.parse::<IpAddr>().ok();
        let target = Target {
            v4: parse(&attachment.settings.ip_address),
            v6: parse(&attachment.settings.global_ipv6_address),
        };
        for port in record.config.exposed_ports.keys() {
            map.insert(normal(port)?, None);
        }
        if network.driver != Driver::Bridge || network.internal {
            return Ok((published, map));
        }
        for (port, bindings) in wanted(record) {
            let (number, proto) = parse_port(&port)?;
            let mut taken = Vec::new();
            for binding in bindings {
                for one in self.take(network, &target, (number, proto), &binding)? {
                    taken.push(PortBinding {
                        host_ip: one.host_ip.to_string(),
                        host_port: one.host_port.to_string(),
                    });
                    published.push(one);
                }
            }
            map.insert(normal(&port)?, Some(taken));
        }
        if let Some(firewall) = &self.firewall {
            let mut firewall = firewall.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // A port that is free to bind may have been promised to a container that is about to.
            refuse_twice(firewall.desired().ports.iter(), &published)?;
            firewall.publish(&published)?;
        }
        Ok((published, map))
    }

    /// Puts ports that the container holds onto another address of it.
    pub(super) fn publish_again(&self, published: &[PublishedPort]) -> Result<()> {
        if let Some(firewall) = &self.firewall {
            let mut firewall = firewall.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            firewall.publish(published)?;
        }
        Ok(())
    }

    fn take(
        &self,
        network: &Network,
        target: &Target,
        (number, proto): (u16, Proto),
        binding: &PortBinding,
    ) -> Result<Vec<PublishedPort>> {
        let given = binding.host_ip.trim_matches(['[', ']']);
        let ips: Vec<IpAddr> = if !given.is_empty() {
            let bad = |_| Error::invalid(format!("invalid IP address: {}", binding.host_ip));
            vec![given.parse().map_err(bad)?]
        } else if let Some(ip) = network.host_binding.or(self.default_host_ip) {
            vec![ip]
        } else {
            vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
        };
        let choice = parse_choice(&binding.host_port)?;
        let reserved = self.lock().ports.reserve(proto, &ips, choice)?;
        let one = |reservation: network::portmap::Reservation| {
            // Only IPv4 inside: the shim carries IPv6 over.
            let own = if reservation.ip.is_ipv6() {
                target.v6.or(target.v4)
            } else {
                target.v4.or(target.v6)
            };
            own.map(|container_ip| PublishedPort {
                proto,
                host_ip: reservation.ip,
                host_port: reservation.port,
                container_ip,
                container_port: number,
            })
        };
        Ok(reserved.into_iter().filter_map(one).collect())
    }

    pub(super) fn unpublish(&self, ports: &[PublishedPort]) {
        let Some(firewall) = &self.firewall else { return };
        if ports.is_empty() {
            return;
        }
        let mut firewall = firewall.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = firewall.unpublish(ports) {
            tracing::warn!(%error, "rules of published ports were left behind");
        }
    }
}

fn refuse_twice<'a>(
    taken: impl Iterator<Item = &'a PublishedPort> + Clone,
    wanted: &'a [PublishedPort],
) -> Result<()> {
    for (index, one) in wanted.iter().enumerate() {
        let clashes = |other: &PublishedPort| {
            other.proto == one.proto
                && other.host_port == one.host_port
                && other.host_ip.is_ipv4() == one.host_ip.is_ipv4()
                && (other.host_ip == one.host_ip
                    || other.host_ip.is_unspecified()
                    || one.host_ip.is_unspecified())
        };
        if taken.clone().chain(&wanted[..index]).any(clashes) {
            let (ip, port) = (one.host_ip, one.host_port);
            return Err(network::Error::PortAllocated { ip, port }.into());
        }
    }
    Ok(())
}

fn normal(port: &str) -> Result<String> {
    let (number, proto) = parse_port(port)?;
    Ok(format!("{number}/{}", proto.as_str()))
}

/// Port bindings, and with `-P` any port for what is exposed.
fn wanted(record: &Record) -> Vec<(String, Vec<PortBinding>)> {
    let mut list: Vec<(String, Vec<PortBinding>)> = Vec::new();
    for (port, bindings) in &record.host_config.port_bindings {
        let mut bindings = bindings.clone().unwrap_or_default();
        if bindings.is_empty() {
            bindings.push(PortBinding::default());
        }
        list.push((port.clone(), bindings));
    }
    if record.host_config.publish_all_ports {
        for port in record.config.exposed_ports.keys() {
            if !list.iter().any(|(have, _)| have == port) {
                list.push((port.clone(), vec![PortBinding::default()]));
            }
        }
    }
    list
}

/// Refuses port texts that cannot be, when the container is created.
pub(crate) fn validate(host: &api_types::HostConfig, config: &api_types::Config) -> Result<()> {
    for port in config.exposed_ports.keys() {
        parse_port(port)?;
    }
    for (port, bindings) in &host.port_bindings {
        parse_port(port)?;
        for binding in bindings.iter().flatten() {
            parse_choice(&binding.host_port)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let port = |ip: &str, host_port| PublishedPort {
            proto: Proto::Tcp,
            host_ip: ip.parse().unwrap(),
            host_port,
            container_ip: "172.17.0.2".parse().unwrap(),
            container_port: 80,
        };
        let taken = [port("0.0.0.0", 80), port("127.0.0.1", 81)];
        let refused = |wanted: &[PublishedPort]| refuse_twice(taken.iter(), wanted).is_err();
        assert!(refused(&[port("127.0.0.1", 80)]));
        assert!(refused(&[port("0.0.0.0", 81)]));
        assert!(!refused(&[port("127.0.0.2", 81), port("::", 80)]));
        assert!(refused(&[port("0.0.0.0", 90), port("0.0.0.0", 90)]));
    }

    #[test]
    fn port_texts() {
        assert_eq!(parse_port("80").unwrap(), (80, Proto::Tcp));
        assert_eq!(parse_port("53/udp").unwrap(), (53, Proto::Udp));
        for text in ["", "0/tcp", "80/xyz", "70000", "a"] {
            assert!(parse_port(text).is_err(), "{text}");
        }
        assert_eq!(parse_choice("8000-8010").unwrap(), PortChoice::Range(8000, 8010));
        assert_eq!(parse_choice("").unwrap(), PortChoice::Ephemeral);
        assert!(parse_choice("9-8").is_err());
    }
}
