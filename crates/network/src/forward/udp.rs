//! One published UDP port: a bound socket, a connected socket per client.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use sys::packet::Received;

use super::Core;

/// The largest UDP payload.
pub(super) const PACKET: usize = 65_535;
/// Packets handled per event and socket before others get their turn.
pub(super) const BURST: usize = 64;

#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: OwnedFd,
    peer: SocketAddr,
    /// The address that the client sent to, from which it is answered.
    local: Option<IpAddr>,
    seen: Instant,
}

#[derive(Debug)]
pub(super) struct Relay {
    socket: OwnedFd,
    pub(super) target: SocketAddr,
    /// By slot.
    pub(super) clients: HashMap<usize, Client>,
    peers: HashMap<SocketAddr, usize>,
}

/// A packet that cannot be sent is lost, as packets may be.
pub(super) fn send(socket: &OwnedFd, packet: &[u8]) {
    rustix::net::send(socket, packet, SendFlags::DONTWAIT).ok();
}

pub(super) fn connect(
    core: &Core,
    slot: usize,
    generation: u16,
    target: SocketAddr,
) -> Result<OwnedFd, Errno> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    rustix::net::connect(&socket, &target)?;
    core.register(&socket, slot, generation, 0, EventFlags::IN)?;
    Ok(socket)
}

impl Relay {
    pub(super) fn new(socket: OwnedFd, target: SocketAddr) -> Self {
        Self { socket, target, clients: HashMap::new(), peers: HashMap::new() }
    }

    /// The next packet that waits, if one does.
    pub(super) fn receive(&self, buf: &mut [u8]) -> Option<Received> {
        loop {
            match sys::packet::receive(&self.socket, buf) {
                Ok(received) => return Some(received),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// The slot of this client, now seen.
    pub(super) fn client(&mut self, peer: SocketAddr) -> Option<usize> {
        let slot = *self.peers.get(&peer)?;
        self.clients.get_mut(&slot)?.seen = Instant::now();
        Some(slot)
    }

    pub(super) fn insert(&mut self, slot: usize, from: &Received, socket: OwnedFd) {
        let Received { peer, local, .. } = *from;
        self.clients.insert(slot, Client { socket, peer, local, seen: Instant::now() });
        self.peers.insert(peer, slot);
    }

    /// Sends a client what its target answered.
    pub(super) fn answer(&mut self, slot: usize, peer: SocketAddr) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        client.seen = Instant::now();
        let mut buf = vec![0u8; PACKET];
        for _ in 0..BURST {
            match rustix::net::recv(&client.socket, &mut buf[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    let sent = sys::packet::send(&self.socket, &buf[..len], peer, client.local);
                    if sent.is_err() {
                        // The client asked a broadcast address. Lost when this
                        // does not help, as packets may be.
                        sys::packet::send(&self.socket, &buf[..len], peer, None).ok();
                    }
                }
                // The target's port is closed; the client just hears nothing.
                Err(Errno::CONNREFUSED | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Forgets clients silent for `limit`; returns their slots.
    pub(super) fn expire(&mut self, limit: Duration) -> Vec<usize> {
        let gone: Vec<usize> = self
            .clients
            .iter()
            .filter(|(_, c)| c.seen.elapsed() >= limit)
            .map(|(s, _)| *s)
            .collect();
        for slot in &gone {
            if let Some(client) = self.clients.remove(slot) {
                self.peers.remove(&client.peer);
            }
        }
        gone
    }
}
