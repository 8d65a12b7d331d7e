//! `ps`.

use api_types::{ContainerSummary, PortSummary};
use serde_json::Value as Json;

use crate::commands::{ellipsis, list_format, short_id};
use crate::ctx::Ctx;
use crate::error::Result;
use crate::flags::Matches;
use crate::fmt::rows::{Columns, Row, labels_text, render};
use crate::fmt::units;

const HEADERS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
];
const PLAIN: Columns = Columns {
    headers: HEADERS,
    default: &["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"],
};
const WITH_SIZE: Columns = Columns {
    headers: HEADERS,
    default: &["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names", "Size"],
};

pub(crate) async fn ls(ctx: &Ctx, m: Matches) -> Result<()> {
    let format = list_format(ctx, &m, "psFormat");
    let quiet = m.flag("quiet");
    let last = if m.flag("latest") { 1 } else { m.int("last") };
    // Sizes cost: they are computed only if they are shown.
    let size =
        m.flag("size") || format.contains(".Size") || format.trim() == "json" && m.flag("size");
    let client = ctx.client()?;
    let limit = (last > 0).then_some(last);
    let containers =
        client.container_list(m.flag("all") || last > 0, limit, size, &m.filters("filter")).await?;
    let trunc = !m.flag("no-trunc");
    let rows: Vec<Row> = containers.iter().map(|c| row(c, trunc)).collect();
    let text = match (quiet, format.as_str()) {
        (true, "" | "table") => render("{{.ID}}", PLAIN, &rows),
        (true, _) if !m.changed("format") => render("{{.ID}}", PLAIN, &rows),
        _ if m.flag("size") => render(&format, WITH_SIZE, &rows),
        _ => render(&format, PLAIN, &rows),
    };
    ctx.out(&text?)
}

fn row(c: &ContainerSummary, trunc: bool) -> Row {
    let text = |t: &str| Json::from(t);
    let names: Vec<&str> = c.names.iter().map(|n| n.strip_prefix('/').unwrap_or(n)).collect();
    // With `--no-trunc` the names that links give are shown as well.
    let names: Vec<&str> = names.into_iter().filter(|n| !trunc || !n.contains('/')).collect();
    let command = if trunc { ellipsis(&c.command, 20) } else { c.command.clone() };
    let mounts: Vec<String> = c
        .mounts
        .iter()
        .map(|mount| {
            let name = if mount.name.is_empty() { &mount.source } else { &mount.name };
            if trunc { ellipsis(name, 15) } else { name.clone() }
        })
        .collect();
    let local = c.mounts.iter().filter(|mount| mount.driver == "local").count();
    let networks: Vec<&str> = c.network_settings.networks.keys().map(String::as_str).collect();
    let image = match c.image.as_str() {
        "" => "<no image>".to_owned(),
        image if trunc && image.starts_with("sha256:") => short_id(image).to_owned(),
        // A reference that was resolved by its digest shows its name.
        image if trunc => image.split("@sha256:").next().unwrap_or_default().to_owned(),
        image => image.to_owned(),
    };
    let mut size = units::size3(c.size_rw);
    if c.size_root_fs > 0 {
        size = format!("{size} (virtual {})", units::size3(c.size_root_fs));
    }
    Row::new([
        ("ID", text(if trunc { short_id(&c.id) } else { &c.id })),
        ("Names", names.join(",").into()),
        ("Image", image.into()),
        ("Command", format!("{command:?}").into()),
        ("CreatedAt", units::go_time(c.created).into()),
        ("RunningFor", units::ago(c.created).into()),
        ("Ports", ports(&c.ports).into()),
        ("State", text(&c.state)),
        ("Status", text(&c.status)),
        ("Size", size.into()),
        ("Labels", labels_text(&c.labels).into()),
        ("Mounts", mounts.join(",").into()),
        ("LocalVolumes", local.to_string().into()),
        ("Networks", networks.join(",").into()),
        ("Platform", Json::Null),
    ])
    .with_labels(c.labels.clone())
}

/// Ports as docker lists them: neighbours with equal bindings are joined to ranges.
pub(crate) fn ports(all: &[PortSummary]) -> String {
    let mut sorted: Vec<&PortSummary> = all.iter().collect();
    sorted.sort_by(|a, b| {
        (a.private_port, &a.ip, a.public_port, &a.r#type).cmp(&(
            b.private_port,
            &b.ip,
            b.public_port,
            &b.r#type,
        ))
    });
    let mut exposed = Vec::new();
    let mut groups: Vec<(String, (u16, u16))> = Vec::new();
    let mut open: std::collections::BTreeMap<String, (u16, u16)> =
        std::collections::BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    for port in sorted {
        let current = port.private_port;
        let mut key = port.r#type.clone();
        if !port.ip.is_empty() {
            if port.public_port != current {
                let ip = address(&port.ip);
                exposed.push(format!("{ip}:{}->{current}/{}", port.public_port, port.r#type));
                continue;
            }
            key = format!("{}/{}", port.ip, port.r#type);
        }
        match open.get_mut(&key) {
            None => {
                open.insert(key.clone(), (current, current));
                order.push(key);
            }
            Some((_, last)) if current == *last + 1 => *last = current,
            Some((_, last)) if current == *last => {}
            Some(range) => {
                groups.push((key.clone(), *range));
                *range = (current, current);
            }
        }
    }
    for key in order {
        if let Some(range) = open.get(&key) {
            groups.push((key, *range));
        }
    }
    let mut out: Vec<(u16, String)> =
        groups.iter().map(|(key, range)| (range.0, group(key, *range))).collect();
    out.extend(exposed.into_iter().map(|text| {
        let private =
            text.rsplit("->").next().and_then(|t| t.split('/').next()).and_then(|t| t.parse().ok());
        (private.unwrap_or(0), text)
    }));
    out.sort_by_key(|a| a.0);
    out.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", ")
}

fn address(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}

fn group(key: &str, (first, last): (u16, u16)) -> String {
    let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
    match key.split_once('/') {
        Some((ip, proto)) => format!("{}:{range}->{range}/{proto}", address(ip)),
        None => format!("{range}/{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: &str, private_port: u16, public_port: u16) -> PortSummary {
        PortSummary { ip: ip.into(), private_port, public_port, r#type: "tcp".into() }
    }

    #[test]
    fn port_lists() {
        assert_eq!(ports(&[]), "");
        assert_eq!(
            ports(&[port("0.0.0.0", 80, 8080), port("::", 80, 8080)]),
            "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"
        );
        assert_eq!(
            ports(&[port("", 80, 0), port("", 81, 0), port("", 90, 0)]),
            "80-81/tcp, 90/tcp"
        );
        assert_eq!(
            ports(&[port("0.0.0.0", 80, 80), port("0.0.0.0", 81, 81)]),
            "0.0.0.0:80-81->80-81/tcp"
        );
    }
}
