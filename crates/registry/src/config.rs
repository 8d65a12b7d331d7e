//! What the daemon's configuration says about registries.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use http::Uri;

use crate::error::Error;

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// `registry-mirrors`: URLs that are asked first when pulling from docker.io, without
    /// credentials.
    pub mirrors: Vec<String>,
    /// `insecure-registries`: `host[:port]`, or networks as `address/bits`. Loopback addresses
    /// and `localhost` always are. Such a registry's certificate is not checked, and plain HTTP
    /// is tried when HTTPS does not work.
    pub insecure: Vec<String>,
    /// Directories with a `HOST[:PORT]` (or `HOST_PORT_`) directory for each registry in need of one:
    /// `*.crt` are further authorities, `NAME.cert` and `NAME.key` our certificate for it, and
    /// `hosts.toml` names the servers that answer for it, as containerd has it; `_default/hosts.toml`
    /// those of registries without a directory. The first directory with a file wins.
    pub certs_dirs: Vec<PathBuf>,
    /// Files with further authorities for all registries.
    pub extra_ca_files: Vec<PathBuf>,
    pub proxy: Proxy,
    pub user_agent: String,
    /// Attempts for each request, and for a download without progress; `max-download-attempts`.
    pub attempts: u32,
    pub timeouts: Timeouts,
    pub resolver: crate::dns::Resolver,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mirrors: Vec::new(),
            insecure: Vec::new(),
            certs_dirs: ["gantry", "docker", "containerd"]
                .map(|name| format!("/etc/{name}/certs.d").into())
                .into(),
            extra_ca_files: Vec::new(),
            proxy: Proxy::from_env(),
            user_agent: concat!("gantry/", env!("CARGO_PKG_VERSION")).into(),
            attempts: 5,
            timeouts: Timeouts::default(),
            resolver: crate::dns::Resolver::system(),
        }
    }
}

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// From a request's end to the head of its answer, and for the whole of a small answer.
    pub response: Duration,
    /// In each such span at least `stall_bytes` of a blob must move, in either direction.
    pub stall: Duration,
    pub stall_bytes: u64,
    /// Before the second attempt; doubles for each further one.
    pub backoff: Duration,
    /// A longer `Retry-After` counts as a refusal.
    pub retry_after_max: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            response: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            stall_bytes: 1024,
            backoff: Duration::from_millis(500),
            retry_after_max: Duration::from_secs(60),
        }
    }
}

/// Proxies by the scheme of what is reached through them.
#[derive(Clone, Debug, Default)]
pub struct Proxy {
    /// `http://[user:password@]host[:port]`, or without the scheme.
    pub http: Option<String>,
    pub https: Option<String>,
    /// Comma-separated: `*`, names (with all below them), addresses, networks, each with an
    /// optional port.
    pub no_proxy: String,
}

impl Proxy {
    /// From HTTP_PROXY, HTTPS_PROXY and NO_PROXY, in capitals or not.
    pub fn from_env() -> Self {
        let get = |name: &str| {
            let value = std::env::var(name).or_else(|_| std::env::var(name.to_lowercase()));
            value.ok().filter(|v| !v.is_empty())
        };
        Self {
            http: get("HTTP_PROXY"),
            https: get("HTTPS_PROXY"),
            no_proxy: get("NO_PROXY").unwrap_or_default(),
        }
    }
}

/// Who asks.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    #[default]
    Anonymous,
    Password {
        username: String,
        password: String,
    },
    /// A refresh token, as `docker login` keeps it.
    IdentityToken {
        token: String,
    },
    /// A bearer token that is used as it is.
    RegistryToken {
        token: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Password { .. } => "Password(hidden)",
            Self::IdentityToken { .. } => "IdentityToken(hidden)",
            Self::RegistryToken { .. } => "RegistryToken(hidden)",
        })
    }
}

/// A registry's host and port as a reference has it, split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// Without brackets.
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

impl HostPort {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let authority: http::uri::Authority = text.parse().ok()?;
        if text.contains('@') {
            return None;
        }
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = authority.port_u16();
        if authority.port().is_some() && port.is_none() {
            return None;
        }
        Some(Self { host: bare.to_ascii_lowercase(), port })
    }

    pub(crate) fn of(uri: &Uri) -> Option<Self> {
        Self::parse(uri.authority()?.as_str())
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }
}

/// One item of a list of hosts and networks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    All,
    Network {
        address: IpAddr,
        bits: u32,
    },
    /// The host itself; `below`: and all names below it.
    Host {
        at: HostPort,
        itself: bool,
        below: bool,
    },
}

fn network(text: &str) -> Option<Pattern> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u32 = bits.parse().ok()?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    (bits <= max).then_some(Pattern::Network { address, bits })
}

fn in_network(ip: IpAddr, address: IpAddr, bits: u32) -> bool {
    match (ip, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let shift = 32 - bits;
            a.to_bits().checked_shr(shift) == b.to_bits().checked_shr(shift)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let shift = 128 - bits;
            a.to_bits().checked_shr(shift) == b.to_bits().checked_shr(shift)
        }
        _ => false,
    }
}

impl Pattern {
    fn matches(&self, host: &HostPort, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Network { address, bits } => {
                host.ip().is_some_and(|ip| in_network(ip, *address, *bits))
            }
            Self::Host { at, itself, below } => {
                let inside = host
                    .host
                    .strip_suffix(&at.host)
                    .is_some_and(|rest| rest.ends_with('.') && rest.len() > 1);
                at.port.is_none_or(|p| p == port)
                    && ((*itself && host.host == at.host) || (*below && inside))
            }
        }
    }
}

/// Registries whose certificates are not checked.
#[derive(Clone, Debug)]
pub(crate) struct Insecure(Vec<Pattern>);

impl Insecure {
    pub(crate) fn parse(list: &[String]) -> Result<Self, Error> {
        let item = |text: &String| {
            let host = || {
                let at = HostPort::parse(text)?;
                Some(Pattern::Host { at, itself: true, below: false })
            };
            let what = "insecure registry";
            network(text).or_else(host).ok_or_else(|| Error::Config { what, text: text.clone() })
        };
        list.iter().map(item).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn contains(&self, host: &HostPort) -> bool {
        host.is_loopback()
            || self.0.iter().any(|p| match p {
                // Without a port, an entry means the default one, as the reference does.
                Pattern::Host { at, .. } => at == host,
                other => other.matches(host, 0),
            })
    }
}

/// A proxy that was understood.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProxyServer {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// A `Proxy-Authorization` value.
    pub(crate) authorization: Option<http::HeaderValue>,
}

#[derive(Clone, Debug)]
pub(crate) struct Proxies {
    http: Option<ProxyServer>,
    https: Option<ProxyServer>,
    except: Vec<Pattern>,
}

impl Proxies {
    pub(crate) fn parse(proxy: &Proxy) -> Result<Self, Error> {
        let server = |url: &Option<String>| url.as_deref().map(proxy_server).transpose();
        let items = proxy.no_proxy.split([',', ' ']).filter(|item| !item.is_empty());
        Ok(Self {
            http: server(&proxy.http)?,
            https: server(&proxy.https)?,
            // What cannot be understood excepts nothing, as everywhere.
            except: items.filter_map(exception).collect(),
        })
    }

    /// The proxy for a host; loopback is always reached directly.
    pub(crate) fn find(&self, https: bool, host: &HostPort, port: u16) -> Option<&ProxyServer> {
        if host.is_loopback() || self.except.iter().any(|p| p.matches(host, port)) {
            return None;
        }
        if https { self.https.as_ref() } else { self.http.as_ref() }
    }
}

fn exception(item: &str) -> Option<Pattern> {
    if item == "*" {
        return Some(Pattern::All);
    }
    if let Some(network) = network(item) {
        return Some(network);
    }
    if let Ok(address) = item.parse::<IpAddr>() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        return Some(Pattern::Network { address, bits });
    }
    let name = item.strip_prefix('*').unwrap_or(item);
    let (name, itself) = match name.strip_prefix('.') {
        Some(below) => (below, false),
        None => (name, true),
    };
    Some(Pattern::Host { at: HostPort::parse(name)?, itself, below: true })
}

pub(crate) fn proxy_server(url: &str) -> Result<ProxyServer, Error> {
    let shown = || url.rsplit('@').next().unwrap_or_default().to_owned();
    let error = |what| Error::Config { what, text: shown() };
    let rest = match url.split_once("://") {
        None => url,
        Some(("http", rest)) => rest,
        Some(("https", _)) => return Err(error("proxy (https to the proxy is not supported):")),
        Some(_) => return Err(error("proxy (only http proxies are supported):")),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, authority),
    };
    let at = HostPort::parse(address).ok_or_else(|| error("proxy"))?;
    let authorization = match user {
        None => None,
        Some(user) => {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let decoded = percent_decode(name).zip(percent_decode(password));
            let (name, password) = decoded.ok_or_else(|| error("proxy"))?;
            Some(crate::auth::basic(&name, &password).ok_or_else(|| error("proxy"))?)
        }
    };
    Ok(ProxyServer { host: at.host, port: at.port.unwrap_or(80), authorization })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let hex = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> HostPort {
        HostPort::parse(text).unwrap()
    }

    #[test]
    fn insecure_registries() {
        let list = ["reg.example:5000", "10.0.0.0/8", "fd00::/8", "plain"].map(String::from);
        let insecure = Insecure::parse(&list).unwrap();
        for yes in ["reg.example:5000", "10.9.9.9", "10.1.1.1:80", "[fd00::1]:5", "plain"] {
            assert!(insecure.contains(&at(yes)), "{yes}");
        }
        for yes in ["localhost", "localhost:1", "127.1.2.3:5000", "[::1]:5000"] {
            assert!(insecure.contains(&at(yes)), "{yes}");
        }
        for no in ["reg.example", "reg.example:5001", "11.0.0.1", "plain:443", "a.plain"] {
            assert!(!insecure.contains(&at(no)), "{no}");
        }
        assert!(Insecure::parse(&["10.0.0.0/33".into()]).is_err());
    }

    #[test]
    fn proxies() {
        let proxy = Proxy {
            http: Some("http://u:p%40@proxy:3128".into()),
            https: Some("proxy2".into()),
            no_proxy: ".below.example,named.example,10.0.0.0/8, 1.2.3.4,port.example:5".into(),
        };
        let proxies = Proxies::parse(&proxy).unwrap();
        let found = proxies.find(false, &at("x.example"), 80).unwrap();
        assert_eq!((found.host.as_str(), found.port), ("proxy", 3128));
        assert!(found.authorization.is_some());
        assert_eq!(proxies.find(true, &at("x.example"), 443).unwrap().port, 80);
        for direct in [
            "a.below.example",
            "named.example",
            "x.named.example",
            "10.1.1.1",
            "1.2.3.4",
            "localhost",
            "127.0.0.1",
        ] {
            assert!(proxies.find(true, &at(direct), 443).is_none(), "{direct}");
        }
        for proxied in ["below.example", "unnamed.example", "port.example"] {
            assert!(proxies.find(true, &at(proxied), 443).is_some(), "{proxied}");
        }
        assert!(proxies.find(true, &at("port.example"), 5).is_none());
        let socks = Proxy { http: Some("socks5://x".into()), ..Default::default() };
        assert!(Proxies::parse(&socks).is_err());
    }
}
