//! `-p` and `--expose`.

use api_types::{Empty, Map, PortBinding, PortMap};

use crate::values;

/// Ports of one side: first and last.
type Range = (u16, u16);

fn range(text: &str) -> Result<Range, String> {
    let port = |t: &str| {
        t.parse::<u16>().map_err(|_| format!("strconv.ParseUint: parsing {t:?}: invalid syntax"))
    };
    match text.split_once('-') {
        None => port(text).map(|p| (p, p)),
        Some((a, b)) => {
            let (a, b) = (port(a)?, port(b)?);
            if b < a {
                return Err(format!("invalid range specified for port: {text}"));
            }
            Ok((a, b))
        }
    }
}

/// Splits `ip:host:container` from the right, with the brackets of IPv6 addresses.
fn split(text: &str) -> (&str, &str, &str) {
    let Some((rest, container)) = text.rsplit_once(':') else { return ("", "", text) };
    // `[::1]` alone before the container's port, without a host port, is `[::1]::80`.
    match rest.rsplit_once(':') {
        Some((ip, host)) if !host.contains(']') => (ip, host, container),
        _ => ("", rest, container),
    }
}

/// `[[ip:][host[-end]]:]container[-end][/proto]`, added to what was published so far.
pub(crate) fn publish(
    text: &str,
    exposed: &mut Map<Empty>,
    ports: &mut PortMap,
) -> Result<(), String> {
    let short;
    let text = if text.contains('=') {
        short = long_form(text)?;
        &short
    } else {
        text
    };
    let (spec, proto) = match text.split_once('/') {
        Some((spec, proto)) => (spec, proto.to_ascii_lowercase()),
        None => (text, "tcp".to_owned()),
    };
    let (ip, host, container) = split(spec);
    if container.is_empty() {
        return Err(format!("no port specified: {text}<empty>"));
    }
    if !matches!(proto.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid proto: {proto}"));
    }
    let ip = match ip.strip_prefix('[').and_then(|i| i.strip_suffix(']')) {
        Some(inner) => inner,
        None => ip,
    };
    if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
        return Err(format!("invalid IP address: {ip}"));
    }
    let invalid = |which: &str, value: &str| format!("invalid {which}: {value}");
    let (first, last) = range(container).map_err(|_| invalid("containerPort", container))?;
    let host_range = match host {
        "" => None,
        host => Some(range(host).map_err(|_| invalid("hostPort", host))?),
    };
    if let Some((h1, h2)) = host_range {
        // A range of host ports may stand before one container port: any free one of them.
        if h2 - h1 != last - first && first != last {
            return Err(format!(
                "invalid ranges specified for container and host Ports: {container} and {host}"
            ));
        }
    }
    for offset in 0..=(last - first) {
        let host_port = match host_range {
            None => String::new(),
            Some((h1, h2)) if first == last && h1 != h2 => format!("{h1}-{h2}"),
            Some((h1, _)) => (h1 + offset).to_string(),
        };
        let port = format!("{}/{proto}", first + offset);
        exposed.insert(port.clone(), Empty {});
        let binding = PortBinding { host_ip: ip.to_owned(), host_port };
        ports.entry(port).or_default().get_or_insert_default().push(binding);
    }
    Ok(())
}

/// `target=80,published=8080,protocol=tcp` as the short form.
fn long_form(text: &str) -> Result<String, String> {
    let (mut target, mut published, mut proto) = (String::new(), String::new(), "tcp".to_owned());
    for field in values::csv(text)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("invalid field {field}: must be a key=value pair"))?;
        match key.trim() {
            "target" => target = value.to_owned(),
            "published" => published = value.to_owned(),
            "protocol" => proto = value.to_owned(),
            "mode" if matches!(value, "host" | "ingress") => {}
            "mode" => {
                return Err(format!(
                    "invalid publish mode value ({value}): must be either ingress or host"
                ));
            }
            other => return Err(format!("invalid field key {other}")),
        }
    }
    if target.is_empty() {
        return Err("missing mandatory field \"target\"".to_owned());
    }
    Ok(format!("{published}:{target}/{proto}"))
}

/// `port[-end][/proto]`.
pub(crate) fn expose(text: &str, exposed: &mut Map<Empty>) -> Result<(), String> {
    if text.contains(':') {
        return Err(format!("invalid port format for --expose: {text}"));
    }
    let (ports, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    let proto = proto.to_ascii_lowercase();
    let (first, last) = range(ports)
        .map_err(|e| format!("invalid range format for --expose: {ports}, error: {e}"))?;
    if !matches!(proto.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid proto: {proto}"));
    }
    exposed.extend((first..=last).map(|port| (format!("{port}/{proto}"), Empty {})));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn all(specs: &[&str]) -> Result<Vec<String>, String> {
        let (mut exposed, mut ports) = (Map::new(), PortMap::new());
        for spec in specs {
            publish(spec, &mut exposed, &mut ports)?;
        }
        assert_eq!(exposed.len(), ports.len());
        Ok(ports
            .iter()
            .flat_map(|(p, b)| {
                b.iter().flatten().map(move |b| format!("{}:{}:{p}", b.host_ip, b.host_port))
            })
            .collect())
    }

    #[test]
    fn published() {
        for (spec, want) in [
            ("80", vec!["::80/tcp"]),
            ("8080:80/UDP", vec![":8080:80/udp"]),
            ("127.0.0.1:8080:80", vec!["127.0.0.1:8080:80/tcp"]),
            ("127.0.0.1::80", vec!["127.0.0.1::80/tcp"]),
            ("[::1]:8080:80", vec!["::1:8080:80/tcp"]),
            ("[::1]::80", vec!["::1::80/tcp"]),
            ("8000-8001:80-81", vec![":8000:80/tcp", ":8001:81/tcp"]),
            ("8000-8010:80", vec![":8000-8010:80/tcp"]),
            ("target=80,published=8080,protocol=udp", vec![":8080:80/udp"]),
        ] {
            assert_eq!(all(&[spec]).unwrap(), want, "{spec}");
        }
        assert_eq!(all(&["1.1.1.1:1:80", "2.2.2.2:2:80"]).unwrap().len(), 2);
        for bad in
            ["", "x", "80:", "1-3:80-81", "a:b:c:d", "80/what", "70000", "81-80", "published=1"]
        {
            assert!(all(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(all(&["a:b:c:d"]).unwrap_err(), "invalid IP address: a:b");
    }

    #[test]
    fn exposed() {
        let mut map = Map::new();
        expose("80-82/udp", &mut map).unwrap();
        assert_eq!(map.keys().collect::<Vec<_>>(), ["80/udp", "81/udp", "82/udp"]);
        assert!(expose("1:2", &mut map).is_err());
    }
}
