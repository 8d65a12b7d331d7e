//! The embedded DNS server: at 127.0.0.11 inside a container's namespace, served
//! by the engine. Names that the engine knows are answered here; others are
//! asked of the host's servers from the host's namespace.
//!
//! Its sockets are opened inside ([`open`]) on a free port, and nftables rules
//! of that namespace lead port 53 of 127.0.0.11 there, so that a container may
//! have a DNS server of its own on port 53. After the engine restarts, opening
//! again replaces the rules.
//!
//! Tasks: one per served namespace, which owns one per query that is being
//! forwarded and one per TCP connection; all end with [`Server`].

mod message;
mod server;
mod upstream;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use crate::error::{Error, system};
use crate::firewall::nft::{self, Base, Family, Hook, Transaction};
use crate::netlink::Socket;
use crate::ns::Namespace;
use crate::resolv::EMBEDDED;

pub use server::{Server, ServerConfig, serve};

/// Seconds that our answers may be kept; Docker's.
pub const TTL_SECONDS: u32 = 600;
/// The table inside containers' namespaces.
const TABLE: &str = "gantry_dns";
const PORT: u16 = 53;

/// Who asks: what the engine needs to decide which names it sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointScope {
    /// The container's id.
    pub container: String,
    /// Ids of the networks that it is on.
    pub networks: Vec<String>,
}

/// What the engine knows about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The name is one of ours. A family without addresses is answered with
    /// nothing, and never asked of others.
    Addresses {
        /// IPv4 addresses.
        v4: Vec<Ipv4Addr>,
        /// IPv6 addresses.
        v6: Vec<Ipv6Addr>,
    },
    /// Not ours.
    Unknown,
}

/// The engine's knowledge. Called on the runtime's threads, so it must not block.
pub trait Resolver: Send + Sync + 'static {
    /// Looks a name up: lower case, without the final dot.
    fn lookup(&self, scope: &EndpointScope, name: &str) -> Answer;

    /// The name of an address (`container.network`), if it is one of ours.
    fn reverse(&self, scope: &EndpointScope, address: IpAddr) -> Option<String>;
}

/// The server's sockets inside a container's namespace.
#[derive(Debug)]
pub struct DnsSockets {
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
}

/// Opens the sockets inside `ns` and leads port 53 of 127.0.0.11 to them. On a
/// kernel without nftables they are on port 53 itself.
///
/// # Errors
/// When the namespace cannot be entered, or neither way works.
pub fn open(ns: &Namespace) -> Result<DnsSockets, Error> {
    ns.run(|| {
        let sockets = bind(0)?;
        match redirect(&sockets) {
            Ok(()) => Ok(sockets),
            Err(error)
                if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT)) =>
            {
                bind(PORT)
            }
            Err(error) => Err(error),
        }
    })?
}

fn bind(port: u16) -> Result<DnsSockets, Error> {
    let address = SocketAddr::from((EMBEDDED, port));
    let object = format!("for DNS on {address}");
    let udp = UdpSocket::bind(address).map_err(system("bind UDP socket", object.as_str()))?;
    let tcp = TcpListener::bind(address).map_err(system("bind TCP socket", object.as_str()))?;
    udp.set_nonblocking(true).map_err(system("configure UDP socket", object.as_str()))?;
    tcp.set_nonblocking(true).map_err(system("configure TCP socket", object))?;
    Ok(DnsSockets { udp, tcp })
}

fn redirect(sockets: &DnsSockets) -> Result<(), Error> {
    let port = |address: std::io::Result<SocketAddr>| {
        address.map(|a| a.port()).map_err(system("name", "DNS socket"))
    };
    let targets = [(17, port(sockets.udp.local_addr())?), (6, port(sockets.tcp.local_addr())?)];
    let mut socket = Socket::netfilter(0)?;
    let mut batch = socket.batch();
    nft::begin(&mut batch);
    let mut t = Transaction::new(&mut batch, Family::Ip, TABLE);
    t.add_table();
    t.delete_table();
    t.add_table();
    let base = Base { kind: "nat", hook: Hook::Output, priority: -100, drop: false };
    t.add_chain("output", Some(base));
    for (proto, port) in targets {
        t.rule("output", |r| {
            r.destination(Family::Ip, proto, IpAddr::V4(EMBEDDED), PORT);
            r.dnat_to(Family::Ip, IpAddr::V4(EMBEDDED), port);
        });
    }
    nft::end(&mut batch);
    socket.commit(&mut batch)
}
