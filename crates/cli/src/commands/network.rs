//! Networks.

use api_types::*;

use crate::commands::{confirm_prune, list_format, prune_filters, short_id};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::rows::{Columns, Row, labels_text, render};
use crate::values;

const COLUMNS: Columns = Columns {
    headers: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
    default: &["ID", "Name", "Driver", "Scope"],
};

pub(crate) async fn ls(ctx: &Ctx, m: Matches) -> Result<()> {
    let mut networks = ctx.client()?.network_list(&m.filters("filter")).await?;
    networks.sort_by(|a, b| natural(&a.name, &b.name));
    let trunc = !m.flag("no-trunc");
    let rows: Vec<Row> = networks
        .iter()
        .map(|n| {
            Row::new([
                ("ID", if trunc { short_id(&n.id) } else { n.id.as_str() }.into()),
                ("Name", n.name.as_str().into()),
                ("Driver", n.driver.as_str().into()),
                ("Scope", n.scope.as_str().into()),
                ("IPv4", n.enable_ipv4.to_string().into()),
                ("IPv6", n.enable_ipv6.to_string().into()),
                ("Internal", n.internal.to_string().into()),
                ("Labels", labels_text(&n.labels).into()),
                ("CreatedAt", n.created.as_str().into()),
            ])
            .with_labels(n.labels.clone())
        })
        .collect();
    let format = list_format(ctx, &m, "networksFormat");
    let quiet = m.flag("quiet") && (!m.changed("format") || format == "table");
    ctx.out(&render(if quiet { "{{.ID}}" } else { &format }, COLUMNS, &rows)?)
}

/// Numbers inside names count as numbers.
pub(crate) fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(x), Some(y)) = (a.first(), b.first()) else { return a.len().cmp(&b.len()) };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
            let ((na, ra), (nb, rb)) = (a.split_at(digits(a)), b.split_at(digits(b)));
            let strip =
                |s: &[u8]| s.iter().copied().skip_while(|c| *c == b'0').collect::<Vec<u8>>();
            let (va, vb) = (strip(na), strip(nb));
            match va
                .len()
                .cmp(&vb.len())
                .then_with(|| va.cmp(&vb))
                .then_with(|| na.len().cmp(&nb.len()))
            {
                std::cmp::Ordering::Equal => (a, b) = (ra, rb),
                other => return other,
            }
        } else if x == y {
            (a, b) = (&a[1..], &b[1..]);
        } else {
            return x.cmp(y);
        }
    }
}

/// Does `ip` lie in `net`, in CIDR form?
fn contains(net: &str, ip: &str) -> Option<bool> {
    use std::net::IpAddr;
    let (base, bits) = net.split_once('/')?;
    let bits: u32 = bits.parse().ok()?;
    let ip = ip.split('/').next()?;
    let shifted = |n: u128, width: u32| if bits == 0 { 0 } else { n >> (width - bits.min(width)) };
    match (base.parse().ok()?, ip.parse().ok()?) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            Some(shifted(u32::from(a).into(), 32) == shifted(u32::from(b).into(), 32))
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => Some(shifted(a.into(), 128) == shifted(b.into(), 128)),
        _ => Some(false),
    }
}

/// Brings subnets, ranges, gateways and auxiliary addresses together.
fn ipam_config(m: &Matches) -> Result<Vec<IpamConfig>> {
    let subnets = m.slice("subnet");
    let (ranges, gateways) = (m.slice("ip-range"), m.slice("gateway"));
    if subnets.len() < ranges.len() || subnets.len() < gateways.len() {
        return Err("every ip-range or gateway must have a corresponding subnet".into());
    }
    let mut configs: Vec<IpamConfig> = Vec::new();
    for subnet in &subnets {
        if contains(subnet, subnet.split('/').next().unwrap_or_default()).is_none() {
            return Err(Error::Invalid(format!("invalid CIDR address: {subnet}")));
        }
        for other in &configs {
            let overlap = contains(&other.subnet, subnet) == Some(true)
                || contains(subnet, &other.subnet) == Some(true);
            if overlap {
                return Err("multiple overlapping subnet configuration is not supported".into());
            }
        }
        configs.push(IpamConfig { subnet: subnet.clone(), ..IpamConfig::default() });
    }
    for range in &ranges {
        let config = configs.iter_mut().find(|c| contains(&c.subnet, range) == Some(true));
        let config = config
            .ok_or_else(|| Error::Invalid(format!("no matching subnet for range {range}")))?;
        if !config.ip_range.is_empty() {
            return Err(Error::Invalid(format!(
                "cannot configure multiple ranges ({range}, {}) on the same subnet ({})",
                config.ip_range, config.subnet
            )));
        }
        config.ip_range = range.clone();
    }
    for gateway in &gateways {
        let config = configs.iter_mut().find(|c| contains(&c.subnet, gateway) == Some(true));
        let config = config
            .ok_or_else(|| Error::Invalid(format!("no matching subnet for gateway {gateway}")))?;
        if !config.gateway.is_empty() {
            return Err(Error::Invalid(format!(
                "cannot configure multiple gateways ({gateway}, {}) for the same subnet ({})",
                config.gateway, config.subnet
            )));
        }
        config.gateway = gateway.clone();
    }
    for (name, address) in m.map("aux-address") {
        let config = configs.iter_mut().find(|c| contains(&c.subnet, &address) == Some(true));
        let config = config.ok_or_else(|| {
            Error::Invalid(format!("no matching subnet for aux-address {address}"))
        })?;
        config.auxiliary_addresses.insert(name, address);
    }
    Ok(configs)
}

pub(crate) async fn create(ctx: &Ctx, m: Matches) -> Result<()> {
    let config_from = m.given("config-from").map(|n| ConfigReference { network: n.to_owned() });
    let body = NetworkCreate {
        name: m.args[0].clone(),
        driver: m.string("driver"),
        scope: m.string("scope"),
        enable_ipv4: m.changed("ipv4").then(|| m.flag("ipv4")),
        enable_ipv6: m.changed("ipv6").then(|| m.flag("ipv6")),
        ipam: Some(Ipam {
            driver: m.string("ipam-driver"),
            options: m.map("ipam-opt"),
            config: ipam_config(&m)?,
        }),
        internal: m.flag("internal"),
        attachable: m.flag("attachable"),
        ingress: m.flag("ingress"),
        config_only: m.flag("config-only"),
        config_from,
        options: m.map("opt"),
        labels: m.map("label"),
        check_duplicate: true,
    };
    let reply = ctx.client()?.network_create(&body).await?;
    if !reply.warning.is_empty() {
        ctx.note(&format!("WARNING: {}", reply.warning));
    }
    ctx.line(&reply.id)
}

pub(crate) async fn rm(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    let mut failed = false;
    for name in &m.args {
        match client.network_remove(name).await {
            Ok(()) => ctx.line(name)?,
            Err(e) if m.flag("force") && e.is_not_found() => {}
            Err(e) => {
                ctx.note(&e.to_string());
                failed = true;
            }
        }
    }
    if failed { Err(Error::Exit(1)) } else { Ok(()) }
}

pub(crate) async fn connect(ctx: &Ctx, m: Matches) -> Result<()> {
    let mut driver_opts = Map::new();
    for opt in m.slice("driver-opt") {
        let (key, value) =
            opt.split_once('=').ok_or("invalid key/value pair format in driver options")?;
        driver_opts.insert(key.to_owned(), value.to_owned());
    }
    let link_local_ips = m.slice("link-local-ip");
    let address = |name: &str| {
        values::ip(m.text(name)).map(|ip| ip.map(|ip| ip.to_string()).unwrap_or_default())
    };
    let ipam = EndpointIpamConfig {
        ipv4_address: address("ip")?,
        ipv6_address: address("ip6")?,
        link_local_ips,
    };
    let endpoint = EndpointSettings {
        ipam_config: Some(ipam).filter(|i| *i != EndpointIpamConfig::default()),
        links: m.list("link"),
        aliases: m.slice("alias"),
        driver_opts,
        gw_priority: m.int("gw-priority"),
        ..EndpointSettings::default()
    };
    let body = NetworkConnect { container: m.args[1].clone(), endpoint_config: Some(endpoint) };
    Ok(ctx.client()?.network_connect(&m.args[0], &body).await?)
}

pub(crate) async fn disconnect(ctx: &Ctx, m: Matches) -> Result<()> {
    let body = NetworkDisconnect { container: m.args[1].clone(), force: m.flag("force") };
    Ok(ctx.client()?.network_disconnect(&m.args[0], &body).await?)
}

pub(crate) async fn prune(ctx: &Ctx, m: Matches) -> Result<()> {
    let warning = "This will remove all custom networks not used by at least one container.";
    if !confirm_prune(&m, warning)? {
        return Ok(());
    }
    let report = ctx.client()?.network_prune(&prune_filters(ctx, &m)).await?;
    ctx.out(&deleted_networks(&report.networks_deleted))
}

/// The list of what a network prune removed.
pub(crate) fn deleted_networks(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!("Deleted Networks:\n{}\n\n", names.join("\n")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::flags::{other, parse};

    #[test]
    fn address_plans() {
        let plan = |line: &str| {
            let args = line.split_whitespace().map(str::to_owned);
            static SETS: crate::flags::FlagSets = &[other::NETWORK_CREATE];
            ipam_config(&parse(SETS, args, false).unwrap())
        };
        let configs = plan("--subnet 10.1.0.0/16,fd00::/64 --gateway 10.1.0.1 --gateway fd00::1 --ip-range 10.1.2.0/24 --aux-address r=10.1.0.9 n").unwrap();
        assert_eq!(configs.len(), 2);
        assert_eq!(
            (configs[0].gateway.as_str(), configs[1].gateway.as_str()),
            ("10.1.0.1", "fd00::1")
        );
        assert_eq!(configs[0].ip_range, "10.1.2.0/24");
        assert_eq!(configs[0].auxiliary_addresses["r"], "10.1.0.9");
        for bad in [
            "--gateway 10.0.0.1 n",
            "--subnet x n",
            "--subnet 10.0.0.0/8 --subnet 10.1.0.0/16 n",
            "--subnet 10.0.0.0/8 --gateway 11.0.0.1 n",
        ] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn natural_order() {
        let mut names = ["n10", "n9", "a", "n1"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a", "n1", "n9", "n10"]);
    }
}
