//! `--network` and its companions.

use api_types::{EndpointIpamConfig, EndpointSettings, Map};

use crate::flags::Matches;
use crate::values;

/// One `--network`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NetworkAttachment {
    pub(crate) target: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) driver_opts: Map<String>,
    pub(crate) links: Vec<String>,
    pub(crate) ipv4: String,
    pub(crate) ipv6: String,
    pub(crate) link_local_ips: Vec<String>,
    pub(crate) mac_address: String,
    pub(crate) gw_priority: i64,
}

/// A name, or `name=,alias=,ip=,ip6=,mac-address=,link-local-ip=,driver-opt=k=v,gw-priority=`.
pub(crate) fn network_attachment(text: &str) -> Result<NetworkAttachment, String> {
    let mut n = NetworkAttachment::default();
    if !text.contains('=') {
        n.target = text.to_owned();
        return Ok(n);
    }
    for field in values::csv(text)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("invalid field {field}: must be a key=value pair"))?;
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        match key.as_str() {
            "name" => n.target = value.to_owned(),
            "alias" => n.aliases.push(value.to_owned()),
            "ip" => n.ipv4 = checked_ip(value)?,
            "ip6" => n.ipv6 = checked_ip(value)?,
            "mac-address" => n.mac_address = mac_address(value)?,
            "link-local-ip" => n.link_local_ips.push(checked_ip(value)?),
            "gw-priority" => {
                n.gw_priority = values::int(value)
                    .map_err(|e| format!("invalid gw-priority ({value}): {e}"))?;
            }
            "driver-opt" => {
                let (k, v) = value
                    .split_once('=')
                    .ok_or("invalid key value pair format in driver options".to_owned())?;
                n.driver_opts.insert(k.trim().to_ascii_lowercase(), v.trim().to_owned());
            }
            other => return Err(format!("invalid field key {other}")),
        }
    }
    if n.target.is_empty() {
        return Err("network name/id is not specified".to_owned());
    }
    Ok(n)
}

fn checked_ip(text: &str) -> Result<String, String> {
    let ip = values::ip(text).map_err(|_| format!("invalid IP address: {text}"))?;
    Ok(ip.map(|ip| ip.to_string()).unwrap_or_default())
}

/// Six bytes in hexadecimal.
pub(crate) fn mac_address(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let ok = parts.len() == 6
        && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
    if ok { Ok(text.trim().to_owned()) } else { Err(format!("{text} is not a valid mac address")) }
}

/// `host:ip`, `host=ip`, `host:host-gateway`; as `host:ip`.
pub(crate) fn extra_host(text: &str) -> Result<String, String> {
    let bad = || format!("bad format for add-host: {text:?}");
    let (host, ip) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(bad)?;
    if host.is_empty() {
        return Err(bad());
    }
    if ip == "host-gateway" {
        return Ok(format!("{host}:{ip}"));
    }
    let bare = ip.strip_prefix('[').and_then(|i| i.strip_suffix(']')).unwrap_or(ip);
    match values::ip(bare) {
        Ok(Some(_)) => Ok(format!("{host}:{bare}")),
        _ => Err(format!("invalid IP address in add-host: {ip:?}")),
    }
}

fn is_user_defined(mode: &str) -> bool {
    !matches!(mode, "" | "default" | "bridge" | "host" | "none") && !mode.starts_with("container:")
}

fn endpoint(n: &NetworkAttachment) -> EndpointSettings {
    let ipam =
        (!n.ipv4.is_empty() || !n.ipv6.is_empty() || !n.link_local_ips.is_empty()).then(|| {
            EndpointIpamConfig {
                ipv4_address: n.ipv4.clone(),
                ipv6_address: n.ipv6.clone(),
                link_local_ips: n.link_local_ips.clone(),
            }
        });
    EndpointSettings {
        ipam_config: ipam,
        links: n.links.clone(),
        aliases: n.aliases.clone(),
        mac_address: n.mac_address.clone(),
        driver_opts: n.driver_opts.clone(),
        gw_priority: n.gw_priority,
        ..EndpointSettings::default()
    }
}

/// Puts `--ip`, `--network-alias`, `--link` and the like into the first attachment.
fn apply_flags(n: &mut NetworkAttachment, m: &Matches) -> Result<(), String> {
    let conflict = |what: &str| {
        Err(format!(
            "conflicting options: cannot specify both --{what} and per-network {}",
            match what {
                "ip" => "IPv4 address",
                "ip6" => "IPv6 address",
                "mac-address" => "MAC address",
                "link-local-ip" => "link-local IP addresses",
                "network-alias" => "alias",
                _ => "option",
            }
        ))
    };
    let aliases: Vec<String> = [m.list("network-alias"), m.list("net-alias")].concat();
    if !aliases.is_empty() {
        if !n.aliases.is_empty() {
            return conflict("network-alias");
        }
        n.aliases = aliases;
    }
    if is_user_defined(&n.target) {
        n.links = m.list("link");
    }
    for (flag, slot) in [("ip", &mut n.ipv4), ("ip6", &mut n.ipv6)] {
        if let Some(ip) = m.given(flag) {
            if !slot.is_empty() {
                return conflict(flag);
            }
            *slot = checked_ip(ip)?;
        }
    }
    let link_local = m.list("link-local-ip");
    if !link_local.is_empty() {
        if !n.link_local_ips.is_empty() {
            return conflict("link-local-ip");
        }
        n.link_local_ips = link_local.iter().map(|ip| checked_ip(ip)).collect::<Result<_, _>>()?;
    }
    if let Some(mac) = m.given("mac-address") {
        if !n.mac_address.is_empty() {
            return conflict("mac-address");
        }
        n.mac_address = mac_address(mac)?;
    }
    Ok(())
}

/// The network mode and the endpoints that the flags of `run` and `create` ask for.
pub(crate) fn endpoints(m: &Matches) -> Result<(String, Map<Option<EndpointSettings>>), String> {
    let given: Vec<String> = [m.list("network"), m.list("net")].concat();
    let mut networks: Vec<NetworkAttachment> =
        given.iter().map(|text| network_attachment(text)).collect::<Result<_, _>>()?;
    let mut map = Map::new();
    let alone = networks.len() == 1;
    let implied = networks.is_empty();
    if implied {
        networks.push(NetworkAttachment { target: "default".to_owned(), ..Default::default() });
    }
    let mode = networks[0].target.clone();
    let user_defined = networks.iter().filter(|n| is_user_defined(&n.target)).count();
    if user_defined != 0 && user_defined != networks.len() {
        return Err("conflicting options: cannot attach both user-defined and non-user-defined network-modes".into());
    }
    for (i, n) in networks.iter_mut().enumerate() {
        if i == 0 {
            apply_flags(n, m)?;
        }
        let settings = endpoint(n);
        if map.contains_key(&n.target) {
            return Err(format!("network {:?} is specified multiple times", n.target));
        }
        if alone && settings == EndpointSettings::default() {
            continue;
        }
        map.insert(n.target.clone(), Some(settings));
    }
    Ok((mode, map))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn attachments() {
        assert_eq!(network_attachment("n1").unwrap().target, "n1");
        let n =
            network_attachment("name=n,alias=a,alias=b,ip=10.0.0.1,driver-opt=K=v,gw-priority=-2")
                .unwrap();
        assert_eq!((n.aliases.len(), n.ipv4.as_str(), n.gw_priority), (2, "10.0.0.1", -2));
        assert_eq!(n.driver_opts["k"], "v");
        for bad in
            ["alias=a", "name=n,ip=x", "name=n,what=1", "name=n,foo", "name=n,mac-address=1:2"]
        {
            assert!(network_attachment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts() {
        assert_eq!(extra_host("a:1.2.3.4").unwrap(), "a:1.2.3.4");
        assert_eq!(extra_host("a=[::1]").unwrap(), "a:::1");
        assert_eq!(extra_host("a:host-gateway").unwrap(), "a:host-gateway");
        assert!(
            extra_host("a").is_err()
                && extra_host(":1.2.3.4").is_err()
                && extra_host("a:x").is_err()
        );
    }
}
