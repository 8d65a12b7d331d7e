//! Where the daemon listens: `-H` and `hosts`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// dockerd's ports, without and with TLS.
const PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;
/// The first descriptor that systemd passes (sd_listen_fds(3)).
const LISTEN_FDS_START: i32 = 3;
/// More sockets than any unit passes.
const LISTEN_FDS_MAX: i32 = 64;

/// One place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Unix(PathBuf),
    Tcp {
        name: String,
        port: u16,
    },
    /// Sockets that were passed: all, or that of a number or a name.
    Fd(Option<String>),
}

impl Host {
    /// What dockerd accepts; empty is the default socket.
    ///
    /// # Errors
    /// dockerd's words.
    pub(crate) fn parse(text: &str, default_socket: &Path, tls: bool) -> Result<Self, String> {
        let text = text.trim();
        let (scheme, rest) = match text.split_once("://") {
            Some(parts) => parts,
            None if text.is_empty() => ("unix", ""),
            None => ("tcp", text),
        };
        let refused = |why: String| format!("invalid bind address ({text}): {why}");
        match scheme {
            "unix" if rest.is_empty() => Ok(Self::Unix(default_socket.into())),
            "unix" if rest.contains("://") => Err(refused(format!("invalid unix address: {rest}"))),
            "unix" => Ok(Self::Unix(rest.into())),
            "fd" => Ok(Self::Fd(Some(rest.to_owned()).filter(|r| !r.is_empty() && r != "*"))),
            "tcp" => tcp(rest, tls).map_err(refused),
            other => Err(refused(format!("unsupported proto '{other}'"))),
        }
    }
}

fn tcp(rest: &str, tls: bool) -> Result<Host, String> {
    let default_port = if tls { TLS_PORT } else { PORT };
    if rest.contains('/') {
        return Err("should not contain a path element".into());
    }
    let (name, port) = match rest.strip_prefix('[') {
        Some(v6) => {
            let (address, after) = v6.split_once(']').ok_or("missing ']' in address")?;
            (address, after.strip_prefix(':').or(Some(after)).filter(|p| !p.is_empty()))
        }
        None => match rest.rsplit_once(':') {
            Some((name, _)) if name.contains(':') => {
                return Err("too many colons in address".into());
            }
            Some((name, port)) => (name, Some(port).filter(|p| !p.is_empty())),
            None => (rest, None),
        },
    };
    let port = match port {
        None => default_port,
        Some(text) => text.parse().map_err(|_| format!("invalid port {text}"))?,
    };
    let name = if name.is_empty() { "localhost" } else { name };
    Ok(Host::Tcp { name: name.into(), port })
}

/// The addresses of a tcp host; names are looked up in the hosts file and by DNS.
///
/// # Errors
/// No address.
pub(crate) async fn addresses(name: &str, port: u16) -> Result<SocketAddr, String> {
    let address: IpAddr = match name {
        // Go listens on all addresses of both families at `[::]`, and on one of localhost's.
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        "::" | "*" => Ipv6Addr::UNSPECIFIED.into(),
        name => {
            let found = registry::dns::Resolver::system().lookup(name).await;
            let found =
                found.map_err(|e| format!("-H tcp://{name}:{port}: {}", crate::chain(&e)))?;
            let v4 = found.iter().copied().find(IpAddr::is_ipv4);
            v4.or(found.first().copied())
                .ok_or_else(|| format!("-H tcp://{name}:{port}: no such host"))?
        }
    };
    Ok(SocketAddr::new(address, port))
}

/// Sockets that systemd passed to us.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    sockets: BTreeMap<i32, (String, OwnedFd)>,
}

impl Passed {
    /// Takes them over, by `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` (sd_listen_fds(3)). To be
    /// called before any descriptor is opened.
    pub(crate) fn adopt() -> Self {
        let env = |name: &str| std::env::var_os(name).map(OsString::into_string)?.ok();
        let for_us = env("LISTEN_PID").and_then(|pid| pid.parse().ok()) == Some(std::process::id());
        let count = env("LISTEN_FDS").and_then(|n| n.parse::<i32>().ok()).unwrap_or(0);
        if !for_us || count <= 0 {
            return Self::default();
        }
        let names = env("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = BTreeMap::new();
        for number in LISTEN_FDS_START..LISTEN_FDS_START + count.min(LISTEN_FDS_MAX) {
            let name = names.next().unwrap_or_default().to_owned();
            let Some(fd) = sys::process::adopt_fd(number) else { continue };
            // systemd passes them without close-on-exec.
            if rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).is_ok() {
                sockets.insert(number, (name, fd));
            }
        }
        Self { sockets }
    }

    /// The sockets that a host means, each only once.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn take(&mut self, wanted: Option<&str>) -> Result<Vec<OwnedFd>, String> {
        let numbers: Vec<i32> = match wanted {
            None => self.sockets.keys().copied().collect(),
            Some(text) => {
                let number = text.parse().ok();
                let is = |(n, (name, _)): &(&i32, &(String, OwnedFd))| {
                    Some(**n) == number || name == text
                };
                self.sockets.iter().filter(is).map(|(n, _)| *n).collect()
            }
        };
        let taken: Vec<_> =
            numbers.iter().filter_map(|n| self.sockets.remove(n)).map(|(_, fd)| fd).collect();
        if !taken.is_empty() {
            return Ok(taken);
        }
        Err(match wanted {
            None => "no sockets found via socket activation: make sure the service was started by systemd".into(),
            Some(text) => format!("-H fd://{text}: no such socket was passed"),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str, tls: bool) -> Result<Host, String> {
        Host::parse(text, Path::new("/default.sock"), tls)
    }

    fn tcp_host(name: &str, port: u16) -> Result<Host, String> {
        Ok(Host::Tcp { name: name.into(), port })
    }

    #[test]
    fn hosts_as_dockerd_takes_them() {
        assert_eq!(parse("", false), Ok(Host::Unix("/default.sock".into())));
        assert_eq!(parse("unix://", false), Ok(Host::Unix("/default.sock".into())));
        assert_eq!(parse("unix:///a/b", false), Ok(Host::Unix("/a/b".into())));
        assert_eq!(parse("fd://", false), Ok(Host::Fd(None)));
        assert_eq!(parse("fd://*", false), Ok(Host::Fd(None)));
        assert_eq!(parse("fd://3", false), Ok(Host::Fd(Some("3".into()))));
        assert_eq!(parse("tcp://", false), tcp_host("localhost", 2375));
        assert_eq!(parse("tcp://", true), tcp_host("localhost", 2376));
        assert_eq!(parse("tcp://:7777", false), tcp_host("localhost", 7777));
        assert_eq!(parse("0.0.0.0:5555", false), tcp_host("0.0.0.0", 5555));
        assert_eq!(parse("tcp://[::1]:5555", false), tcp_host("::1", 5555));
        assert_eq!(parse("tcp://[::1]", true), tcp_host("::1", 2376));
        assert_eq!(parse("tcp://h.example", false), tcp_host("h.example", 2375));
    }

    #[test]
    fn refused_hosts() {
        let cases = [
            ("npipe://x", "unsupported proto 'npipe'"),
            ("/run/x.sock", "should not contain a path element"),
            ("tcp://a:b", "invalid port b"),
            ("tcp://a:70000", "invalid port 70000"),
            ("tcp://::1:2375", "too many colons"),
            ("tcp://[::1", "missing ']'"),
            ("unix://tcp://x", "invalid unix address"),
        ];
        for (text, wanted) in cases {
            let error = parse(text, false).unwrap_err();
            assert!(error.starts_with(&format!("invalid bind address ({text}): ")), "{error}");
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn passed_sockets_are_taken_once() {
        let fd = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let sockets = [(3, ("a".into(), fd())), (4, ("b".into(), fd())), (5, ("b".into(), fd()))];
        let mut passed = Passed { sockets: sockets.into() };
        assert_eq!(passed.take(Some("3")).unwrap().len(), 1);
        assert!(passed.take(Some("3")).is_err());
        assert_eq!(passed.take(Some("b")).unwrap().len(), 2);
        assert!(passed.take(None).is_err());
    }
}
