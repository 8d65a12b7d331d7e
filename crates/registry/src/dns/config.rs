//! The system's files.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    path::Path,
    time::Duration,
};

use super::DnsError;

/// Lists against advertisements in a hosts file have some 100,000 lines.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// resolv.conf(5): MAXNS, and the limits of its options.
const SERVERS_MAX: usize = 3;
const SEARCH_MAX: usize = 6;
const NDOTS_MAX: usize = 15;
const TIMEOUT_MAX_SECS: u64 = 30;
const ATTEMPTS_MAX: u32 = 5;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    pub(super) timeout: Duration,
    pub(super) attempts: u32,
}

impl ResolvConf {
    pub(super) async fn read(path: &Path) -> Result<Self, DnsError> {
        Ok(Self::parse(&read(path).await?))
    }

    fn parse(text: &str) -> Self {
        let mut conf = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next().and_then(server);
                    conf.servers.extend(server.filter(|_| conf.servers.len() < SERVERS_MAX));
                }
                Some("search" | "domain") => {
                    let domain = |d: &str| d.trim_matches('.').to_ascii_lowercase();
                    conf.search = words.map(domain).take(SEARCH_MAX).collect();
                    conf.search.retain(|d| !d.is_empty());
                }
                Some("options") => words.for_each(|option| conf.option(option)),
                _ => {}
            }
        }
        if conf.servers.is_empty() {
            conf.servers.push((Ipv4Addr::LOCALHOST, 53).into());
        }
        conf
    }

    fn option(&mut self, option: &str) {
        let Some((name, value)) = option.split_once(':') else { return };
        let Ok(number) = value.parse::<u32>() else { return };
        match name {
            "ndots" => self.ndots = usize::try_from(number).map_or(NDOTS_MAX, |n| n.min(NDOTS_MAX)),
            "timeout" => {
                self.timeout = Duration::from_secs(u64::from(number).clamp(1, TIMEOUT_MAX_SECS));
            }
            "attempts" => self.attempts = number.clamp(1, ATTEMPTS_MAX),
            _ => {}
        }
    }

    /// The full names to ask for, in order. A name that ends in a dot is full already.
    pub(super) fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(full) = name.strip_suffix('.') {
            return vec![full.to_owned()];
        }
        let searched = self.search.iter().map(|domain| format!("{name}.{domain}"));
        let dots = name.matches('.').count();
        let mut all = Vec::new();
        if dots >= self.ndots {
            all.push(name.to_owned());
            all.extend(searched);
        } else {
            all.extend(searched);
            all.push(name.to_owned());
        }
        all
    }
}

/// A name server, with a scope (`fe80::1%eth0`, or its number) for link-local ones.
fn server(text: &str) -> Option<SocketAddr> {
    match text.split_once('%') {
        None => Some(SocketAddr::new(text.parse().ok()?, 53)),
        Some((address, scope)) => {
            let scope = scope.parse().ok().or_else(|| interface_index(scope))?;
            Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into())
        }
    }
}

fn interface_index(name: &str) -> Option<u32> {
    if name.contains('/') {
        return None;
    }
    std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
}

/// The addresses that a hosts file has for a name (in lower case), in its order.
pub(super) async fn in_hosts(path: &Path, name: &str) -> Result<Vec<IpAddr>, DnsError> {
    Ok(hosts(&read(path).await?, name))
}

fn hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next() else { continue };
        if words.any(|word| word.eq_ignore_ascii_case(name)) {
            found.extend(address.parse::<IpAddr>().ok());
        }
    }
    found
}

/// A file's text; empty if there is no such file.
async fn read(path: &Path) -> Result<String, DnsError> {
    use tokio::io::AsyncReadExt;
    let read = async {
        let mut text = Vec::new();
        let file = tokio::fs::File::open(path).await?;
        file.take(FILE_BYTES_MAX).read_to_end(&mut text).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    match read.await {
        Err(e) if e_is_missing(&e) => Ok(String::new()),
        other => other.map_err(|source| DnsError::Config { path: path.to_owned(), source }),
    }
}

fn e_is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn resolv_conf() {
        let conf = ResolvConf::parse(
            "# c\nnameserver 10.0.0.1\nnameserver ::1\nsearch a.b. c\noptions ndots:2 timeout:0 attempts:99\n",
        );
        assert_eq!(conf.servers.len(), 2);
        assert_eq!((conf.ndots, conf.attempts, conf.timeout.as_secs()), (2, 5, 1));
        assert_eq!(conf.candidates("x"), ["x.a.b", "x.c", "x"]);
        assert_eq!(conf.candidates("x.y.z"), ["x.y.z", "x.y.z.a.b", "x.y.z.c"]);
        assert_eq!(conf.candidates("x."), ["x"]);
        assert_eq!(ResolvConf::parse("").servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn hosts_file() {
        let text = "127.0.0.1 localhost\n10.1.1.1 Reg.example reg # reg2\nbad reg\n::5 reg";
        let expected: Vec<IpAddr> = vec!["10.1.1.1".parse().unwrap(), "::5".parse().unwrap()];
        assert_eq!(hosts(text, "reg"), expected);
        assert_eq!(hosts(text, "reg.example").len(), 1);
        assert!(hosts(text, "reg2").is_empty());
    }
}
