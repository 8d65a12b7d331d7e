//! The files that every container gets of its own: hosts, hostname, resolv.conf. They are written at
//! each start and mounted into it, so that a change by the user inside stays until the next start.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Container, record::Record};
use crate::{
    Engine, Error, Result,
    util::{Durability, read_limited, write_file},
};

/// Bytes of the host's resolv.conf that are read.
const RESOLV_LIMIT_BYTES: u64 = 1 << 20;

impl Engine {
    /// Writes the three files; answers the upstream name servers of the embedded DNS.
    pub(crate) fn write_files(
        &self,
        container: &Container,
        record: &Record,
    ) -> Result<Vec<std::net::SocketAddr>> {
        if self.network_owner(record)?.is_some() {
            // They are the other container's.
            return Ok(Vec::new());
        }
        let dir = &container.dir;
        let mode = &record.host_config.network_mode;
        let hostname = record.hostname();
        let text = format!("{hostname}\n");
        write_file(&dir.join("hostname"), text.as_bytes(), 0o644, Durability::Atomic)?;
        let hosts = self.hosts_text(record, &hostname)?;
        write_file(&dir.join("hosts"), hosts.as_bytes(), 0o644, Durability::Atomic)?;
        let host_text = network::resolv::host_text();
        let built = self.resolv(record, &host_text)?;
        let plain_host = mode == "host" && record.host_config.dns.is_empty();
        let text = if plain_host { host_text.as_str() } else { built.text.as_str() };
        write_file(&dir.join("resolv.conf"), text.as_bytes(), 0o644, Durability::Atomic)?;
        Ok(built.upstreams)
    }

    /// The container whose network this one uses, where it has none of its own.
    fn network_owner(&self, record: &Record) -> Result<Option<Arc<Container>>> {
        match record.host_config.network_mode.strip_prefix("container:") {
            Some(other) => self.containers.find(other).map(Some),
            None => Ok(None),
        }
    }

    /// Where the three files are: who shares a network shares them too.
    pub(super) fn files_dir(&self, container: &Container, record: &Record) -> Result<PathBuf> {
        let owner = self.network_owner(record)?;
        Ok(owner.map_or_else(|| container.dir.clone(), |owner| owner.dir.clone()))
    }

    /// The host's name and another container's come with its network, as in docker.
    pub(super) fn take_host_name(&self, container: &Container) -> Result<()> {
        let record = container.snapshot();
        let names = match self.network_owner(&record)? {
            Some(owner) => {
                let owner = owner.record();
                (owner.hostname(), owner.config.domainname.clone())
            }
            None if record.host_config.network_mode == "host"
                && record.config.hostname.is_empty() =>
            {
                (host_name(), record.config.domainname.clone())
            }
            None => return Ok(()),
        };
        if names == (record.config.hostname, record.config.domainname) {
            return Ok(());
        }
        container.update(|record| (record.config.hostname, record.config.domainname) = names)
    }

    fn resolv(&self, record: &Record, host_text: &str) -> Result<network::resolv::ResolvFile> {
        let pick = |own: &[String], default: &[String]| {
            if own.is_empty() { default.to_vec() } else { own.to_vec() }
        };
        let options = network::resolv::ResolvOptions {
            dns: addresses(&pick(&record.host_config.dns, &self.config.dns))?,
            search: pick(&record.host_config.dns_search, &self.config.dns_search),
            options: pick(&record.host_config.dns_options, &self.config.dns_options),
            user_network: self.networks.needs_dns(record),
            ..network::resolv::ResolvOptions::default()
        };
        Ok(network::resolv::build(host_text, &options))
    }

    /// Upstream name servers of a container that runs already.
    pub(crate) fn upstreams(&self, record: &Record) -> Result<Vec<std::net::SocketAddr>> {
        Ok(self.resolv(record, &network::resolv::host_text())?.upstreams)
    }

    pub(super) fn hosts_text(&self, record: &Record, hostname: &str) -> Result<String> {
        if record.host_config.network_mode == "host" && record.host_config.extra_hosts.is_empty() {
            let host = read_limited(Path::new("/etc/hosts"), RESOLV_LIMIT_BYTES);
            return Ok(String::from_utf8_lossy(&host.unwrap_or_default()).into_owned());
        }
        let mut addresses = Vec::new();
        for attachment in record.networks.values() {
            let settings = &attachment.settings;
            for text in [&settings.ip_address, &settings.global_ipv6_address] {
                addresses.extend(text.parse::<IpAddr>().ok());
            }
        }
        let mut extra = self.link_hosts(record)?;
        for entry in &record.host_config.extra_hosts {
            extra.push(self.extra_host(entry)?);
        }
        Ok(network::hosts::build(&network::hosts::HostsOptions {
            hostname: hostname.into(),
            domain: (!record.config.domainname.is_empty())
                .then(|| record.config.domainname.clone()),
            addresses,
            extra,
            // The loopback link has ::1 in every container.
            ipv6: true,
        }))
    }

    /// `NAME:ADDRESS`; the address `host-gateway` is that of the default bridge.
    fn extra_host(&self, entry: &str) -> Result<(IpAddr, String)> {
        let bad = || Error::invalid(format!("bad format for add-host: \"{entry}\""));
        let (name, address) = entry.split_once([':', '=']).ok_or_else(bad)?;
        if address == "host-gateway" {
            let gateway = self.networks.host_gateway().ok_or_else(|| {
                Error::invalid(
                    "unable to derive the IP value for host-gateway: there is no default bridge",
                )
            })?;
            return Ok((gateway, name.into()));
        }
        let address = address.trim_start_matches('[').trim_end_matches(']');
        Ok((address.parse().map_err(|_| bad())?, name.into()))
    }
}

fn addresses(list: &[String]) -> Result<Vec<IpAddr>> {
    let parse = |text: &String| {
        text.parse().map_err(|_| Error::invalid(format!("bad nameserver address: {text}")))
    };
    list.iter().map(parse).collect()
}

pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
