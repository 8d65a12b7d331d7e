//! A user-space forwarder for published ports: what the translation rules do
//! not serve, that is connections to loopback addresses, and IPv6 clients of an
//! IPv4-only container. Single-threaded and without a runtime of its own: it
//! registers with the caller's epoll and is told what is ready.
//!
//! TCP is spliced through pipes without copying, with half-close; UDP is
//! relayed with one connected socket per client.
//!
//! Limits: [`Limits`]. When they are reached, new TCP connections wait in the
//! listener's backlog and new UDP clients' packets are dropped.

mod tcp;
mod udp;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::AddressFamily;

use crate::error::{Error, system};
use tcp::{Connection, Progress};
use udp::Relay;

/// Bounds on what a forwarder holds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// TCP connections at once. Each has six descriptors and two pipes.
    pub connections: usize,
    /// UDP clients at once, over all ports.
    pub udp_clients: usize,
    /// A UDP client that is silent for this long is forgotten.
    pub udp_idle: Duration,
}

impl Default for Limits {
    /// 512 connections, 512 UDP clients, 90 s (docker-proxy's).
    fn default() -> Self {
        Self { connections: 512, udp_clients: 512, udp_idle: Duration::from_secs(90) }
    }
}

/// After an accept failed for want of descriptors, it is tried again so late.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Connections accepted in one go before others get their turn.
const ACCEPT_BURST: usize = 32;

/// The forwarder. Dropping it closes all it holds.
#[derive(Debug)]
pub struct Forwarder {
    core: Core,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Connections that have more to do than one turn allows.
    again: VecDeque<(usize, u16)>,
    connections: usize,
    udp_clients: usize,
    /// Listeners are unregistered until then (none: until a connection ends).
    accept_paused: Option<Option<Instant>>,
    limits: Limits,
}

/// What slots need from their owner.
#[derive(Debug)]
pub(crate) struct Core {
    epoll: OwnedFd,
    tag: u16,
}

#[derive(Debug)]
struct Slot {
    generation: u16,
    use_: Use,
}

#[derive(Debug)]
enum Use {
    Free,
    Listener {
        socket: OwnedFd,
        target: SocketAddr,
    },
    Connection(Box<Connection>),
    Udp {
        relay: Relay,
    },
    /// The outgoing socket of a UDP client of the relay in slot `relay`.
    UdpClient {
        relay: usize,
        peer: SocketAddr,
    },
}

/// Which of a slot's sockets: 0 or 1.
type Side = u8;

impl Core {
    /// Tag 16 bits, generation 16, slot 31, side 1.
    fn token(&self, slot: usize, generation: u16, side: Side) -> u64 {
        let slot = u64::try_from(slot).unwrap_or(u64::MAX) & 0x7fff_ffff;
        (u64::from(self.tag) << 48) | (u64::from(generation) << 32) | (slot << 1) | u64::from(side)
    }

    pub(crate) fn register(
        &self,
        fd: impl AsFd,
        slot: usize,
        generation: u16,
        side: Side,
        flags: EventFlags,
    ) -> Result<(), Errno> {
        let token = self.token(slot, generation, side);
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)
    }

    fn unregister(&self, fd: impl AsFd) {
        // Only fails for a descriptor that is not registered, which is what is wanted.
        epoll::delete(&self.epoll, fd).ok();
    }
}

fn parse(token: u64) -> (u16, u16, usize, Side) {
    let part = |shift: u32, mask: u64| (token >> shift) & mask;
    (
        u16::try_from(part(48, 0xffff)).expect("masked"),
        u16::try_from(part(32, 0xffff)).expect("masked"),
        usize::try_from(part(1, 0x7fff_ffff)).expect("31 bits"),
        u8::try_from(part(0, 1)).expect("one bit"),
    )
}

impl Forwarder {
    /// A forwarder on the caller's epoll (a duplicate of its descriptor). All
    /// its events carry `tag` in the upper 16 bits of their data.
    pub fn new(epoll: OwnedFd, tag: u16, limits: Limits) -> Self {
        Self {
            core: Core { epoll, tag },
            slots: Vec::new(),
            free: Vec::new(),
            again: VecDeque::new(),
            connections: 0,
            udp_clients: 0,
            accept_paused: None,
            limits,
        }
    }

    /// Serves a listening, non-blocking TCP socket.
    ///
    /// # Errors
    /// When it cannot be registered.
    pub fn add_tcp(&mut self, socket: OwnedFd, target: SocketAddr) -> Result<(), Error> {
        let (slot, generation) = self.allocate();
        self.core
            .register(&socket, slot, generation, 0, EventFlags::IN)
            .map_err(|e| system("watch", "listening socket")(e.into()))?;
        self.slots[slot].use_ = Use::Listener { socket, target };
        Ok(())
    }

    /// Serves a bound, non-blocking UDP socket.
    ///
    /// # Errors
    /// When it cannot be registered.
    pub fn add_udp(&mut self, socket: OwnedFd, target: SocketAddr) -> Result<(), Error> {
        let domain = rustix::net::sockopt::socket_domain(&socket)
            .map_err(|e| system("examine", "UDP socket")(e.into()))?;
        sys::packet::enable_info(&socket, domain == AddressFamily::INET6)
            .map_err(system("configure", "UDP socket"))?;
        let (slot, generation) = self.allocate();
        self.core
            .register(&socket, slot, generation, 0, EventFlags::IN)
            .map_err(|e| system("watch", "UDP socket")(e.into()))?;
        self.slots[slot].use_ = Use::Udp { relay: Relay::new(socket, target) };
        Ok(())
    }

    /// Whether an event's data is one of this forwarder's.
    pub fn owns(&self, token: u64) -> bool {
        parse(token).0 == self.core.tag
    }

    /// Connections and UDP clients right now.
    pub fn load(&self) -> (usize, usize) {
        (self.connections, self.udp_clients)
    }

    /// Handles one event of epoll. Events of sockets that are gone are ignored.
    pub fn on_ready(&mut self, token: u64, flags: EventFlags) {
        let (_, generation, slot, side) = parse(token);
        if self.slots.get(slot).is_none_or(|s| s.generation != generation) {
            return;
        }
        match &mut self.slots[slot].use_ {
            Use::Free => {}
            Use::Listener { .. } => self.accept(slot),
            Use::Connection(connection) => {
                connection.note(side, flags);
                self.pump(slot);
            }
            Use::Udp { .. } => self.relay_packets(slot),
            Use::UdpClient { .. } => self.relay_answers(slot),
        }
    }

    /// How long the caller may wait at most before it calls
    /// [`Forwarder::on_tick`]; none if nothing is due.
    pub fn next_timeout(&self) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let resume = match self.accept_paused {
            Some(Some(at)) => Some(at.saturating_duration_since(Instant::now())),
            _ => None,
        };
        let idle = (self.udp_clients > 0).then_some(self.limits.udp_idle / 4);
        resume.into_iter().chain(idle).min()
    }

    /// Goes on with long transfers, forgets silent UDP clients, accepts again.
    pub fn on_tick(&mut self) {
        for _ in 0..self.again.len() {
            let Some((slot, generation)) = self.again.pop_front() else { break };
            if self.slots[slot].generation == generation {
                self.pump(slot);
            }
        }
        if let Some(Some(at)) = self.accept_paused
            && at <= Instant::now()
        {
            self.resume_accept();
        }
        self.expire();
    }

    fn allocate(&mut self) -> (usize, u16) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, use_: Use::Free });
            self.slots.len() - 1
        });
        (slot, self.slots[slot].generation)
    }

    /// Frees a slot; events that are still under way for it are then stale.
    fn release(&mut self, slot: usize) -> Use {
        let entry = &mut self.slots[slot];
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(slot);
        std::mem::replace(&mut entry.use_, Use::Free)
    }

    fn accept(&mut self, slot: usize) {
        for _ in 0..ACCEPT_BURST {
            if self.connections >= self.limits.connections {
                self.pause_accept(None);
                return;
            }
            let Use::Listener { socket, target } = &self.slots[slot].use_ else { return };
            let target = *target;
            match tcp::accept(socket) {
                Ok(client) => self.connect(client, target),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.pause_accept(Some(Instant::now() + ACCEPT_PAUSE));
                    return;
                }
                // Errors of the connection that was about to be accepted.
                Err(_) => return,
            }
        }
    }

    fn connect(&mut self, client: OwnedFd, target: SocketAddr) {
        let (slot, generation) = self.allocate();
        // A target that cannot be reached closes the client, as docker-proxy does.
        match Connection::open(&self.core, slot, generation, client, target) {
            Ok(connection) => {
                self.slots[slot].use_ = Use::Connection(Box::new(connection));
                self.connections += 1;
                self.pump(slot);
            }
            Err(errno) => {
                tracing::debug!(%errno, %target, "forwarded connection not made");
                self.release(slot);
            }
        }
    }

    fn pump(&mut self, slot: usize) {
        let generation = self.slots[slot].generation;
        let Use::Connection(connection) = &mut self.slots[slot].use_ else { return };
        match connection.pump() {
            Progress::Waiting => {}
            Progress::More => {
                if !self.again.contains(&(slot, generation)) {
                    self.again.push_back((slot, generation));
                }
            }
            Progress::Done => {
                drop(self.release(slot));
                self.connections -= 1;
                if self.accept_paused == Some(None) {
                    self.resume_accept();
                }
            }
        }
    }

    fn pause_accept(&mut self, until: Option<Instant>) {
        if self.accept_paused.is_some() {
            return;
        }
        self.accept_paused = Some(until);
        for slot in &self.slots {
            if let Use::Listener { socket, .. } = &slot.use_ {
                self.core.unregister(socket);
            }
        }
    }

    fn resume_accept(&mut self) {
        self.accept_paused = None;
        for (number, slot) in self.slots.iter().enumerate() {
            if let Use::Listener { socket, .. } = &slot.use_
                && let Err(errno) =
                    self.core.register(socket, number, slot.generation, 0, EventFlags::IN)
            {
                tracing::error!(%errno, "listening socket not watched again");
            }
        }
    }

    fn relay_packets(&mut self, slot: usize) {
        let mut buf = vec![0u8; udp::PACKET];
        for _ in 0..udp::BURST {
            let Use::Udp { relay } = &mut self.slots[slot].use_ else { return };
            let Some(received) = relay.receive(&mut buf) else { return };
            let packet = &buf[..received.len];
            if let Some(client) = relay.client(received.peer) {
                udp::send(&relay.clients[&client].socket, packet);
                continue;
            }
            if self.udp_clients >= self.limits.udp_clients {
                continue;
            }
            let target = relay.target;
            let (client, generation) = self.allocate();
            match udp::connect(&self.core, client, generation, target) {
                Ok(socket) => {
                    udp::send(&socket, packet);
                    self.slots[client].use_ = Use::UdpClient { relay: slot, peer: received.peer };
                    self.udp_clients += 1;
                    if let Use::Udp { relay } = &mut self.slots[slot].use_ {
                        relay.insert(client, &received, socket);
                    }
                }
                Err(errno) => {
                    tracing::debug!(%errno, %target, "forwarded packet dropped");
                    self.release(client);
                }
            }
        }
    }

    fn relay_answers(&mut self, client: usize) {
        let Use::UdpClient { relay, peer } = self.slots[client].use_ else { return };
        if let Use::Udp { relay } = &mut self.slots[relay].use_ {
            relay.answer(client, peer);
        }
    }

    fn expire(&mut self) {
        let limit = self.limits.udp_idle;
        let mut gone = Vec::new();
        for slot in &mut self.slots {
            if let Use::Udp { relay } = &mut slot.use_ {
                gone.extend(relay.expire(limit));
            }
        }
        for client in gone {
            drop(self.release(client));
            self.udp_clients -= 1;
        }
    }
}
