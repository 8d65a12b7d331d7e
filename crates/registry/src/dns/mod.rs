//! Host names to addresses without the C library.
//!
//! A static glibc would load the host's name service modules for `getaddrinfo`; this reads
//! `/etc/hosts` and `/etc/resolv.conf` (hosts(5), resolv.conf(5)) and asks the name servers
//! itself, by UDP and, for truncated answers, TCP (RFC 1035).

mod config;
mod message;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{sleep, timeout},
};

use config::ResolvConf;
use message::{Answer, RecordType};

/// A connection attempt to the next address begins after this long (RFC 8305 section 5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// Addresses tried for one host.
const ADDRESSES_MAX: usize = 16;
/// The largest answer by UDP that is asked for: fits an IPv6 packet of 1280 bytes (RFC 9715).
const UDP_BYTES: usize = 1232;
/// Datagrams with a foreign id or question that are skipped while waiting for the answer.
const FOREIGN_DATAGRAMS_MAX: usize = 64;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("lookup {host}: no such host")]
    NotFound { host: String },
    #[error("lookup {host}: not a host name")]
    Name { host: String },
    #[error("lookup {host} on {server}: the server answered with code {code}")]
    Server { host: String, server: SocketAddr, code: u8 },
    #[error("lookup {host} on {server}: i/o timeout")]
    Timeout { host: String, server: SocketAddr },
    #[error("lookup {host} on {server}: malformed answer")]
    Malformed { host: String, server: SocketAddr },
    #[error("lookup {host} on {server}")]
    Io { host: String, server: SocketAddr, source: io::Error },
    #[error("reading {}", path.display())]
    Config { path: PathBuf, source: io::Error },
}

/// Why there is no connection to a host.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("dial tcp")]
    Resolve(#[from] DnsError),
    #[error("dial tcp {address}: connect")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("dial tcp: connect to {host}: i/o timeout")]
    Timeout { host: String },
}

/// Resolves names by the files and servers of the system, read anew for each name.
#[derive(Clone, Debug)]
pub struct Resolver {
    hosts: PathBuf,
    resolv_conf: PathBuf,
}

impl Resolver {
    /// By `/etc/hosts` and `/etc/resolv.conf`.
    pub fn system() -> Self {
        Self::with_files("/etc/hosts".into(), "/etc/resolv.conf".into())
    }

    pub fn with_files(hosts: PathBuf, resolv_conf: PathBuf) -> Self {
        Self { hosts, resolv_conf }
    }

    /// The addresses of a host: a literal address itself, loopback for `localhost` and its
    /// subdomains (RFC 6761), then the hosts file, then the name servers.
    ///
    /// # Errors
    /// [`DnsError::NotFound`] when no source knows the name; others when a source fails.
    pub async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse() {
            return Ok(vec![address]);
        }
        let name = host.to_ascii_lowercase();
        let trimmed = name.strip_suffix('.').unwrap_or(&name);
        if trimmed == "localhost" || trimmed.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        if !message::is_name(trimmed) {
            return Err(DnsError::Name { host: host.into() });
        }
        let found = config::in_hosts(&self.hosts, trimmed).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        let conf = ResolvConf::read(&self.resolv_conf).await?;
        for candidate in conf.candidates(&name) {
            let (v4, v6) = tokio::join!(
                query(&conf, &candidate, RecordType::A),
                query(&conf, &candidate, RecordType::Aaaa)
            );
            let (mut found, error) = match (v4, v6) {
                (Ok(a), Ok(b)) => (interleave(b, a), None),
                (Ok(a), Err(e)) | (Err(e), Ok(a)) => (a, Some(e)),
                (Err(e), Err(_)) => return Err(e),
            };
            found.truncate(ADDRESSES_MAX);
            match error {
                _ if !found.is_empty() => return Ok(found),
                Some(error) => return Err(error),
                None => {}
            }
        }
        Err(DnsError::NotFound { host: host.into() })
    }
}

fn interleave(first: Vec<IpAddr>, second: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut out = Vec::with_capacity(first.len() + second.len());
    let (mut a, mut b) = (first.into_iter(), second.into_iter());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return out,
            (x, y) => out.extend(x.into_iter().chain(y)),
        }
    }
}

/// Asks each server in turn, the whole list `attempts` times. No such name is an empty answer.
async fn query(conf: &ResolvConf, name: &str, record: RecordType) -> Result<Vec<IpAddr>, DnsError> {
    let mut last = None;
    for _ in 0..conf.attempts {
        for server in &conf.servers {
            match ask(*server, name, record, conf.timeout).await {
                Ok(answer) if answer.code == message::NO_ERROR => return Ok(answer.addresses),
                Ok(answer) if answer.code == message::NAME_ERROR => return Ok(Vec::new()),
                Ok(answer) => {
                    let (host, code) = (name.to_owned(), answer.code);
                    last = Some(DnsError::Server { host, server: *server, code });
                }
                Err(error) => last = Some(error),
            }
        }
    }
    Err(last.unwrap_or_else(|| DnsError::NotFound { host: name.into() }))
}

async fn ask(
    server: SocketAddr,
    name: &str,
    record: RecordType,
    limit: Duration,
) -> Result<Answer, DnsError> {
    let id = random_id();
    let request = message::encode(id, name, record, UDP_BYTES)
        .ok_or_else(|| DnsError::Name { host: name.into() })?;
    let work = async {
        let answer = by_udp(server, &request, id, name, record).await?;
        match answer {
            Some(answer) if !answer.truncated => Ok(Some(answer)),
            _ => by_tcp(server, &request, id, name, record).await,
        }
    };
    let host = || name.to_owned();
    match timeout(limit, work).await {
        Err(_) => Err(DnsError::Timeout { host: host(), server }),
        Ok(Err(source)) => Err(DnsError::Io { host: host(), server, source }),
        Ok(Ok(None)) => Err(DnsError::Malformed { host: host(), server }),
        Ok(Ok(Some(answer))) => Ok(answer),
    }
}

/// The answer, or `None` if only foreign datagrams came.
async fn by_udp(
    server: SocketAddr,
    request: &[u8],
    id: u16,
    name: &str,
    record: RecordType,
) -> io::Result<Option<Answer>> {
    let local: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(local).await?;
    // Connected: the kernel drops what comes from elsewhere.
    socket.connect(server).await?;
    socket.send(request).await?;
    let mut buffer = [0; UDP_BYTES];
    for _ in 0..FOREIGN_DATAGRAMS_MAX {
        let n = socket.recv(&mut buffer).await?;
        if let Some(answer) = message::decode(&buffer[..n], id, name, record) {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

async fn by_tcp(
    server: SocketAddr,
    request: &[u8],
    id: u16,
    name: &str,
    record: RecordType,
) -> io::Result<Option<Answer>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(request.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let framed = [&length.to_be_bytes()[..], request].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(message::decode(&answer, id, name, record))
}

fn random_id() -> u16 {
    u16::from_ne_bytes(random_bytes())
}

/// Bytes from the kernel.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Up to 256 bytes cannot be interrupted or cut short once the pool is ready (getrandom(2));
    // without them the id is 0, and the kernel's choice of port still guards the answer.
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    debug_assert!(got.is_ok());
    bytes
}

/// Connects to a host, by whichever of its addresses answers first; a further address is tried
/// when the ones before failed or took a quarter of a second.
///
/// # Errors
/// The look-up's error, the last address's error, or [`ConnectError::Timeout`] when `limit` ran
/// out.
pub async fn connect(
    resolver: &Resolver,
    host: &str,
    port: u16,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    let work = async {
        let addresses = resolver.lookup(host).await?;
        let mut waiting = addresses.into_iter().take(ADDRESSES_MAX);
        let mut running = FuturesUnordered::new();
        let mut last = None;
        loop {
            if let Some(address) = waiting.next() {
                let address = SocketAddr::new(address, port);
                running.push(async move { (address, TcpStream::connect(address).await) });
            }
            let next = tokio::select! {
                next = running.next() => next,
                () = sleep(NEXT_ADDRESS_AFTER), if waiting.len() > 0 => continue,
            };
            match next {
                Some((_, Ok(stream))) => return Ok(stream),
                Some((address, Err(source))) => last = Some(ConnectError::Tcp { address, source }),
                None => {
                    let none = || DnsError::NotFound { host: host.into() };
                    return Err(last.unwrap_or_else(|| none().into()));
                }
            }
        }
    };
    timeout(limit, work).await.unwrap_or_else(|_| Err(ConnectError::Timeout { host: host.into() }))
}
