//! Host ports: chosen, and really taken by binding a socket that the caller
//! hands on, so that a conflict with anyone on the host is found at once.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

use crate::error::{Error, system};
use crate::firewall::Proto;
use crate::util;

/// Docker's range where the kernel's cannot be read.
const FALLBACK_RANGE: (u16, u16) = (49153, 65535);
const LISTEN_BACKLOG: i32 = 4096;

/// Which host port is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortChoice {
    /// Any of the kernel's ephemeral range.
    Ephemeral,
    /// Exactly this one.
    Exact(u16),
    /// The first free one from first to last, both included.
    Range(u16, u16),
}

/// A port that was taken on one address.
#[derive(Debug)]
pub struct Reservation {
    /// Protocol.
    pub proto: Proto,
    /// The address as asked for.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The bound socket (TCP and SCTP: listening); non-blocking. None for SCTP
    /// on a kernel without it, where only the translation rules serve the port.
    pub socket: Option<OwnedFd>,
}

/// Chooses ports. Ephemeral ones go round, so that a port that was just given
/// back is not used again at once.
#[derive(Debug, Default)]
pub struct Allocator {
    last: BTreeMap<Proto, u16>,
}

/// The kernel's ephemeral range (`net.ipv4.ip_local_port_range`), else Docker's
/// 49153–65535. Both ends belong to it.
pub fn ephemeral_range() -> (u16, u16) {
    let read = || -> Option<(u16, u16)> {
        let path = Path::new("/proc/sys/net/ipv4/ip_local_port_range");
        let text = util::read_text(path).ok()?;
        let mut words = text.split_whitespace();
        let range = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        (range.0 > 0 && range.0 <= range.1).then_some(range)
    };
    read().unwrap_or(FALLBACK_RANGE)
}

impl Allocator {
    /// Takes the same port on all of `ips`. `::` is left out where the host has
    /// no IPv6 and another address is there.
    ///
    /// # Errors
    /// [`Error::PortAllocated`] for an exact port, [`Error::PortsExhausted`] for
    /// a range; [`Error::System`] when an address is not the host's.
    pub fn reserve(
        &mut self,
        proto: Proto,
        ips: &[IpAddr],
        choice: PortChoice,
    ) -> Result<Vec<Reservation>, Error> {
        let (first, last, start) = match choice {
            PortChoice::Exact(port) => (port, port, port),
            PortChoice::Range(first, last) => (first, last, first),
            PortChoice::Ephemeral => {
                let (first, last) = ephemeral_range();
                let start = match self.last.get(&proto) {
                    Some(port) if (first..last).contains(port) => port + 1,
                    _ => first,
                };
                (first, last, start)
            }
        };
        for port in (start..=last).chain(first..start) {
            match reserve_all(proto, ips, port) {
                Err(Error::PortAllocated { .. }) if !matches!(choice, PortChoice::Exact(_)) => {}
                Err(error) => return Err(error),
                Ok(found) => {
                    if choice == PortChoice::Ephemeral {
                        self.last.insert(proto, port);
                    }
                    return Ok(found);
                }
            }
        }
        let ip = ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        Err(Error::PortsExhausted { ip, first, last })
    }
}

fn reserve_all(proto: Proto, ips: &[IpAddr], port: u16) -> Result<Vec<Reservation>, Error> {
    let mut found = Vec::with_capacity(ips.len());
    for ip in ips {
        match bind(proto, *ip, port) {
            Ok(socket) => found.push(Reservation { proto, ip: *ip, port, socket }),
            Err(Errno::ADDRINUSE) => return Err(Error::PortAllocated { ip: *ip, port }),
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
                if ip.is_ipv6() && ip.is_unspecified() && ips.len() > 1 => {}
            Err(errno) => {
                let object = format!("{}/{}", SocketAddr::new(*ip, port), proto.as_str());
                return Err(system("bind host port", object)(errno.into()));
            }
        }
    }
    Ok(found)
}

fn bind(proto: Proto, ip: IpAddr, port: u16) -> Result<Option<OwnedFd>, Errno> {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, protocol) = match proto {
        Proto::Tcp => (SocketType::STREAM, ipproto::TCP),
        Proto::Udp => (SocketType::DGRAM, ipproto::UDP),
        Proto::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = match rustix::net::socket_with(family, kind, flags, Some(protocol)) {
        Ok(socket) => socket,
        Err(Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT) if proto == Proto::Sctp => {
            return Ok(None);
        }
        Err(errno) => return Err(errno),
    };
    if ip.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if proto != Proto::Udp {
        // Connections of an earlier listener in TIME_WAIT do not block it; two
        // listeners still exclude each other. For UDP it would let two bind.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if proto == Proto::Udp {
        // Before the first packet: the forwarder answers from where it was asked.
        sys::packet::enable_info(&socket, ip.is_ipv6())
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::INVAL))?;
    }
    rustix::net::bind(&socket, &SocketAddr::new(ip, port))?;
    if proto != Proto::Udp {
        rustix::net::listen(&socket, LISTEN_BACKLOG)?;
    }
    Ok(Some(socket))
}
