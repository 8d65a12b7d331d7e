//! A container's `/etc/resolv.conf`, from the host's. Pure but for
//! [`host_file`].
//!
//! On the default bridge the file names the host's servers; those on loopback
//! cannot be reached from the container and are left out. On user networks it
//! names the embedded server, which asks the host's servers from the host's
//! namespace, where loopback ones do work.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::util;

/// The embedded server's address.
pub const EMBEDDED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Where systemd-resolved keeps the servers that it asks itself.
const SYSTEMD_FILE: &str = "/run/systemd/resolve/resolv.conf";
const SYSTEMD_STUBS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];
/// What Docker falls back to.
const FALLBACK4: [Ipv4Addr; 2] = [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(8, 8, 4, 4)];
const FALLBACK6: [&str; 2] = ["2001:4860:4860::8888", "2001:4860:4860::8844"];
/// The embedded server asks this many of them (libc's MAXNS).
pub const MAX_UPSTREAMS: usize = 3;
const DNS_PORT: u16 = 53;

/// A parsed file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// `nameserver` lines. IPv6 ones with a zone keep it out of the address.
    pub nameservers: Vec<IpAddr>,
    /// Domains of the last `search` or `domain` line.
    pub search: Vec<String>,
    /// Words of the last `options` line.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Parses it; lines that are not understood are passed over, as libc does.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let rest = |words: std::str::SplitWhitespace<'_>| words.map(str::to_owned).collect();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|w| w.split('%').next()?.parse().ok());
                    conf.nameservers.extend::<Option<IpAddr>>(address);
                }
                Some("search" | "domain") => conf.search = rest(words),
                Some("options") => conf.options = rest(words),
                _ => {}
            }
        }
        conf
    }
}

/// The host's file that counts: `/etc/resolv.conf`, or systemd-resolved's own
/// when the former names its stub alone.
pub fn host_file() -> PathBuf {
    let etc = Path::new("/etc/resolv.conf");
    let conf = util::read_text(etc).map(|t| ResolvConf::parse(&t)).unwrap_or_default();
    let stub = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if SYSTEMD_STUBS.contains(ip));
    let only_stub = !conf.nameservers.is_empty() && conf.nameservers.iter().all(stub);
    let systemd = Path::new(SYSTEMD_FILE);
    if only_stub && util::read_file(systemd).is_ok() { systemd.to_owned() } else { etc.to_owned() }
}

/// The text of [`host_file`]; empty when there is none.
pub fn host_text() -> String {
    util::read_text(&host_file()).unwrap_or_default()
}

/// What the container asks for.
#[derive(Debug, Clone, Default)]
pub struct ResolvOptions {
    /// `--dns`; none keeps the host's.
    pub dns: Vec<IpAddr>,
    /// `--dns-search`; none keeps the host's, `.` alone clears them.
    pub search: Vec<String>,
    /// `--dns-option`; none keeps the host's.
    pub options: Vec<String>,
    /// On a user network: the embedded server and `ndots:0`.
    pub user_network: bool,
    /// Whether the container has IPv6 (else IPv6 servers are of no use to it).
    pub ipv6: bool,
}

/// The file and whom the embedded server asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvFile {
    /// Its text.
    pub text: String,
    /// At most [`MAX_UPSTREAMS`]; empty on the default bridge.
    pub upstreams: Vec<SocketAddr>,
}

/// Builds a container's file from the host's text.
pub fn build(host: &str, wanted: &ResolvOptions) -> ResolvFile {
    let host = ResolvConf::parse(host);
    let search = match wanted.search.as_slice() {
        [] => host.search.clone(),
        [dot] if dot == "." => Vec::new(),
        some => some.to_vec(),
    };
    let mut options =
        if wanted.options.is_empty() { host.options.clone() } else { wanted.options.clone() };
    let explicit = !wanted.dns.is_empty();
    let servers = if explicit { wanted.dns.clone() } else { host.nameservers.clone() };
    if wanted.user_network {
        if !options.iter().any(|o| o.starts_with("ndots:")) {
            options.push("ndots:0".to_owned());
        }
        let servers = if servers.is_empty() { fallback(false) } else { servers };
        let upstreams =
            servers.iter().take(MAX_UPSTREAMS).map(|ip| SocketAddr::new(*ip, DNS_PORT)).collect();
        let text = render(&[IpAddr::V4(EMBEDDED)], &search, &options, Some(&servers));
        return ResolvFile { text, upstreams };
    }
    let mut servers = servers;
    if !explicit {
        servers.retain(|ip| !ip.is_loopback() && (wanted.ipv6 || ip.is_ipv4()));
        if servers.is_empty() {
            servers = fallback(wanted.ipv6);
        }
    }
    ResolvFile { text: render(&servers, &search, &options, None), upstreams: Vec::new() }
}

fn fallback(ipv6: bool) -> Vec<IpAddr> {
    let v6 = FALLBACK6.iter().filter(|_| ipv6).filter_map(|t| t.parse().ok());
    FALLBACK4.into_iter().map(IpAddr::V4).chain(v6).collect()
}

fn render(
    servers: &[IpAddr],
    search: &[String],
    options: &[String],
    external: Option<&[IpAddr]>,
) -> String {
    let mut text = String::from("# Generated by Gantry Engine.\n");
    let mut line = |key: &str, value: &str| {
        writeln!(text, "{key} {value}").expect("writing to a string cannot fail");
    };
    for server in servers {
        line("nameserver", &server.to_string());
    }
    if !search.is_empty() {
        line("search", &search.join(" "));
    }
    if !options.is_empty() {
        line("options", &options.join(" "));
    }
    if let Some(external) = external {
        let list: Vec<String> = external.iter().map(|ip| format!("host({ip})")).collect();
        line("# ExtServers:", &format!("[{}]", list.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const HOST: &str = "; comment\nnameserver 127.0.0.53 # stub\nnameserver 10.1.2.3\n\
                        nameserver fe80::1%eth0\ndomain old\nsearch a.example b.example\noptions edns0 ndots:2\n";

    #[test]
    fn parses() {
        let conf = ResolvConf::parse(HOST);
        assert_eq!(conf.nameservers, [ip("127.0.0.53"), ip("10.1.2.3"), ip("fe80::1")]);
        assert_eq!(conf.search, ["a.example", "b.example"]);
        assert_eq!(conf.options, ["edns0", "ndots:2"]);
    }

    #[test]
    fn default_bridge_leaves_loopback_out() {
        let file = build(HOST, &ResolvOptions::default());
        assert_eq!(ResolvConf::parse(&file.text).nameservers, [ip("10.1.2.3")]);
        assert!(file.upstreams.is_empty());
        let file = build("nameserver 127.0.0.1\n", &ResolvOptions::default());
        assert_eq!(ResolvConf::parse(&file.text).nameservers, [ip("8.8.8.8"), ip("8.8.4.4")]);
    }

    #[test]
    fn user_network_names_the_embedded_server() {
        let options = ResolvOptions { user_network: true, ..ResolvOptions::default() };
        let file = build("nameserver 127.0.0.53\nsearch x\n", &options);
        let conf = ResolvConf::parse(&file.text);
        assert_eq!(conf.nameservers, [IpAddr::V4(EMBEDDED)]);
        assert_eq!(conf.options, ["ndots:0"]);
        assert_eq!(conf.search, ["x"]);
        assert_eq!(file.upstreams, ["127.0.0.53:53".parse().unwrap()]);
        let kept = build(HOST, &options);
        assert_eq!(ResolvConf::parse(&kept.text).options, ["edns0", "ndots:2"]);
    }

    #[test]
    fn flags_win() {
        let options = ResolvOptions {
            dns: vec![ip("127.0.0.1"), ip("9.9.9.9")],
            search: vec![".".to_owned()],
            options: vec!["timeout:1".to_owned()],
            ..ResolvOptions::default()
        };
        let conf = ResolvConf::parse(&build(HOST, &options).text);
        assert_eq!(conf.nameservers, [ip("127.0.0.1"), ip("9.9.9.9")]);
        assert!(conf.search.is_empty());
        assert_eq!(conf.options, ["timeout:1"]);
    }
}
