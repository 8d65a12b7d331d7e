//! From host names to addresses without the C library: literals, `localhost`, `/etc/hosts`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// No sane hosts file is larger.
const MAX_HOSTS_BYTES: usize = 4 << 20;

/// The addresses that a literal, `localhost` or `/etc/hosts` give for `host`; empty if none.
pub(crate) fn lookup(host: &str) -> io::Result<Vec<IpAddr>> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![ip]);
    }
    let text = match std::fs::read("/etc/hosts") {
        Ok(bytes) => {
            let end = bytes.len().min(MAX_HOSTS_BYTES);
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e),
    };
    let found = in_hosts_file(&text, host);
    if found.is_empty() && host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    }
    Ok(found)
}

fn in_hosts_file(text: &str, host: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(ip) = words.next().and_then(|w| w.parse::<IpAddr>().ok()) else { continue };
        if words.any(|name| name.eq_ignore_ascii_case(host)) && !found.contains(&ip) {
            found.push(ip);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts_file() {
        let text = "# c\n10.1.2.3 one two # three\n::1 TWO\nbad line\n10.1.2.3 two\n";
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert_eq!(in_hosts_file(text, "two"), [ip("10.1.2.3"), ip("::1")]);
        assert!(in_hosts_file(text, "three").is_empty());
        assert_eq!(lookup("[fe80::1]").unwrap(), [ip("fe80::1")]);
    }
}
