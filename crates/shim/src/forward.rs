//! Published ports: the shim holds the listening sockets and forwards what reaches them.
//!
//! Most traffic never comes here, because firewall rules send it to the container before it
//! reaches a socket; what does come is loopback, hairpin, and hosts without such rules. As the
//! sockets are real, a port is really taken, and stays so while the daemons are away.
//!
//! Connections that are open when their container is deleted are closed with it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, ipproto, sockopt,
};
use serde::{Deserialize, Serialize};
use types::ErrorKind;

use crate::error::{Context, Error, Result, ignore};
use crate::poll::{Kind, OutBuf, Poller};

/// Ports of one container: docker users publish ranges, a thousand is many.
const PORTS_MAX: usize = 4096;
/// Connections of one shim; each has two descriptors.
const CONNECTIONS_MAX: usize = 4096;
/// UDP clients of one port; the longest idle one makes room.
const SESSIONS_MAX: usize = 1024;
/// A UDP client that is silent for so long is forgotten (docker-proxy's value).
const SESSION_IDLE: Duration = Duration::from_secs(90);
const SWEEP: Duration = Duration::from_secs(10);
/// When descriptors ran out: time until accepting is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes that one side of a connection may be behind.
const BEHIND_BYTES_MAX: usize = 64 << 10;
const CHUNK_BYTES: usize = 16 << 10;
/// No UDP datagram is larger.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
const BACKLOG: i32 = 1024;

/// Transport of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    Tcp,
    Udp,
    Sctp,
}

/// One published port, as it stands in the JSON list of a Create request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Transport.
    pub proto: Proto,
    /// Address of the host; `0.0.0.0` and `::` mean all of that family.
    pub host_ip: IpAddr,
    /// Never 0: the engine has chosen one.
    pub host_port: u16,
    /// Address of the container, reachable from the shim's network namespace.
    pub container_ip: IpAddr,
    /// Port there.
    pub container_port: u16,
}

#[derive(Debug)]
enum Entry {
    Listener { owner: u64, fd: OwnedFd, target: SocketAddr, proto: Proto, paused: bool },
    Half(Half),
    Udp { owner: u64, fd: OwnedFd, target: SocketAddr, sessions: HashMap<SocketAddr, u64> },
    Session(Session),
}

/// One UDP client of a port.
#[derive(Debug)]
struct Session {
    port: u64,
    fd: OwnedFd,
    client: SocketAddr,
    /// The address that it asked, from which it is answered.
    asked: Option<IpAddr>,
    used: Instant,
}

/// One side of a connection.
#[derive(Debug)]
struct Half {
    owner: u64,
    fd: OwnedFd,
    peer: u64,
    /// For this side, from the other.
    output: OutBuf,
    connecting: bool,
    /// It will send nothing more.
    read_end: bool,
    /// The other side's end was passed on.
    write_end: bool,
    registered: EventFlags,
}

/// All published ports of a shim.
#[derive(Debug, Default)]
pub(crate) struct Forwarder {
    entries: BTreeMap<u64, Entry>,
    next: u64,
    connections: usize,
    deadline: Option<Instant>,
}

impl Forwarder {
    /// Opens the sockets of `owner`'s ports: all or none.
    pub(crate) fn open(&mut self, poller: &Poller, owner: u64, ports: &[Port]) -> Result<()> {
        if ports.len() > PORTS_MAX {
            return Err(Error::exhausted(format!("more than {PORTS_MAX} published ports")));
        }
        for port in ports {
            let opened = self.open_one(poller, owner, port);
            if opened.is_err() {
                self.close(poller, owner);
            }
            opened?;
        }
        Ok(())
    }

    fn open_one(&mut self, poller: &Poller, owner: u64, port: &Port) -> Result<()> {
        if port.host_port == 0 || port.container_port == 0 {
            return Err(Error::invalid("published port 0"));
        }
        let fd = listen(port)?;
        let target = SocketAddr::new(port.container_ip, port.container_port);
        self.next += 1;
        let id = self.next;
        poller.add(&fd, Kind::Forward, id, EventFlags::IN)?;
        let entry = match port.proto {
            Proto::Udp => Entry::Udp { owner, fd, target, sessions: HashMap::new() },
            proto => Entry::Listener { owner, fd, target, proto, paused: false },
        };
        self.entries.insert(id, entry);
        Ok(())
    }

    /// Closes everything of `owner`.
    pub(crate) fn close(&mut self, poller: &Poller, owner: u64) {
        let ports: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e, Entry::Udp { owner: o, .. } if *o == owner))
            .map(|(id, _)| *id)
            .collect();
        let of_owner = |entry: &Entry| match entry {
            Entry::Listener { owner: o, .. } | Entry::Udp { owner: o, .. } => *o == owner,
            Entry::Half(half) => half.owner == owner,
            Entry::Session(session) => ports.contains(&session.port),
        };
        let ids: Vec<u64> =
            self.entries.iter().filter(|(_, e)| of_owner(e)).map(|(id, _)| *id).collect();
        for id in ids {
            self.remove(poller, id);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn on_deadline(&mut self, poller: &Poller, now: Instant) {
        self.deadline = None;
        let idle: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, e)| {
                matches!(e, Entry::Session(s) if now.duration_since(s.used) >= SESSION_IDLE)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in idle {
            self.remove(poller, id);
        }
        for (id, entry) in &mut self.entries {
            if let Entry::Listener { fd, paused, .. } = entry
                && *paused
            {
                *paused = poller.add(&*fd, Kind::Forward, *id, EventFlags::IN).is_err();
            }
        }
        if self.entries.values().any(|e| matches!(e, Entry::Session(_))) {
            self.wake_in(SWEEP);
        }
    }

    pub(crate) fn on_ready(&mut self, poller: &Poller, id: u64, flags: EventFlags) {
        match self.entries.get(&id) {
            Some(Entry::Listener { .. }) => self.accept(poller, id),
            Some(Entry::Half(_)) => self.on_half(poller, id, flags),
            Some(Entry::Udp { .. }) => self.on_udp(poller, id),
            Some(Entry::Session(_)) => self.on_session(poller, id),
            None => {}
        }
    }

    fn wake_in(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.deadline = Some(self.deadline.map_or(at, |d| d.min(at)));
    }

    fn accept(&mut self, poller: &Poller, id: u64) {
        loop {
            let full = self.connections >= CONNECTIONS_MAX;
            let Some(Entry::Listener { owner, fd, target, proto, paused }) =
                self.entries.get_mut(&id)
            else {
                return;
            };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accepted =
                if full { Err(Errno::MFILE) } else { rustix::net::accept_with(&*fd, flags) };
            match accepted {
                Ok(client) => {
                    let (owner, target, proto) = (*owner, *target, *proto);
                    // A container that does not listen: the client sees its connection closed.
                    ignore(self.connect(poller, owner, client, target, proto));
                }
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                    poller.remove(&*fd);
                    *paused = true;
                    return self.wake_in(ACCEPT_PAUSE);
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    fn connect(
        &mut self,
        poller: &Poller,
        owner: u64,
        client: OwnedFd,
        target: SocketAddr,
        proto: Proto,
    ) -> Result<(), Errno> {
        let server = socket(target.ip(), proto)?;
        // Interactive traffic must not wait for more; sockets without the option live without.
        ignore(sockopt::set_tcp_nodelay(&client, true));
        ignore(sockopt::set_tcp_nodelay(&server, true));
        match rustix::net::connect(&server, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let (a, b) = (self.next + 1, self.next + 2);
        self.next = b;
        let half = |fd, peer, connecting| Half {
            owner,
            fd,
            peer,
            output: OutBuf::default(),
            connecting,
            read_end: false,
            write_end: false,
            registered: EventFlags::empty(),
        };
        self.entries.insert(a, Entry::Half(half(client, b, false)));
        self.entries.insert(b, Entry::Half(half(server, a, true)));
        self.connections += 1;
        self.set_interest(poller, a);
        self.set_interest(poller, b);
        Ok(())
    }

    fn half(&mut self, id: u64) -> Option<&mut Half> {
        match self.entries.get_mut(&id) {
            Some(Entry::Half(half)) => Some(half),
            _ => None,
        }
    }

    fn on_half(&mut self, poller: &Poller, id: u64, flags: EventFlags) {
        let Some(half) = self.half(id) else { return };
        let peer = half.peer;
        if half.connecting {
            if !flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
                return;
            }
            match sockopt::socket_error(&half.fd) {
                Ok(Ok(())) => half.connecting = false,
                _ => return self.remove(poller, id),
            }
        }
        if flags.contains(EventFlags::OUT) && half.output.flush(&half.fd).is_err() {
            return self.remove(poller, id);
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
            && !self.read_half(id, peer)
        {
            return self.remove(poller, id);
        }
        self.pass_end_on(id, peer);
        self.pass_end_on(peer, id);
        if [id, peer].iter().all(|id| self.half(*id).is_some_and(|h| h.read_end && h.write_end)) {
            return self.remove(poller, id);
        }
        self.set_interest(poller, id);
        self.set_interest(poller, peer);
    }

    /// Moves bytes to the peer; false if the connection broke.
    fn read_half(&mut self, id: u64, peer: u64) -> bool {
        let behind = self.half(peer).map_or(0, |p| p.output.len());
        let Some(half) = self.half(id) else { return true };
        if half.read_end || behind >= BEHIND_BYTES_MAX {
            return true;
        }
        let mut chunk = [0; CHUNK_BYTES];
        match rustix::io::read(&half.fd, &mut chunk) {
            Ok(0) => half.read_end = true,
            Ok(n) => {
                let Some(peer) = self.half(peer) else { return false };
                if peer.connecting {
                    peer.output.queue(&chunk[..n]);
                } else if peer.output.send(&peer.fd, [&chunk[..n], &[]]).is_err() {
                    return false;
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return false,
        }
        true
    }

    /// Half-closes `to` once `from` has ended and everything of it was written.
    fn pass_end_on(&mut self, from: u64, to: u64) {
        if !self.half(from).is_some_and(|h| h.read_end) {
            return;
        }
        if let Some(to) = self.half(to)
            && !to.write_end
            && !to.connecting
            && to.output.len() == 0
        {
            to.write_end = true;
            // A peer that is gone already has nothing to be told.
            ignore(rustix::net::shutdown(&to.fd, Shutdown::Write));
        }
    }

    fn set_interest(&mut self, poller: &Poller, id: u64) {
        let Some(peer) = self.half(id).map(|h| h.peer) else { return };
        let behind = self.half(peer).map_or(0, |p| p.output.len());
        let Some(half) = self.half(id) else { return };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !half.connecting && !half.read_end && behind < BEHIND_BYTES_MAX);
        flags.set(EventFlags::OUT, half.connecting || half.output.len() > 0);
        if flags == half.registered {
            return;
        }
        let registered = half.registered;
        half.registered = flags;
        // A hang-up cannot be masked: who waits for nothing is not registered.
        if flags.is_empty() {
            poller.remove(&half.fd);
        } else if registered.is_empty() {
            if poller.add(&half.fd, Kind::Forward, id, flags).is_err() {
                self.remove(poller, id);
            }
        } else {
            poller.modify(&half.fd, Kind::Forward, id, flags);
        }
    }

    fn remove(&mut self, poller: &Poller, id: u64) {
        match self.entries.remove(&id) {
            Some(Entry::Half(half)) => {
                poller.remove(&half.fd);
                self.connections = self.connections.saturating_sub(1);
                if let Some(Entry::Half(peer)) = self.entries.remove(&half.peer) {
                    poller.remove(&peer.fd);
                }
            }
            Some(Entry::Session(Session { port, fd, client, .. })) => {
                poller.remove(&fd);
                if let Some(Entry::Udp { sessions, .. }) = self.entries.get_mut(&port) {
                    sessions.remove(&client);
                }
            }
            Some(Entry::Listener { fd, .. } | Entry::Udp { fd, .. }) => poller.remove(&fd),
            None => {}
        }
    }

    fn on_udp(&mut self, poller: &Poller, id: u64) {
        /// Datagrams before others have their turn.
        const TURN: usize = 32;
        use std::io::ErrorKind::{ConnectionRefused, Interrupted};
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        for _ in 0..TURN {
            let Some(Entry::Udp { fd, target, sessions, .. }) = self.entries.get(&id) else {
                return;
            };
            let received = match sys::packet::receive(fd, &mut datagram) {
                Ok(received) => received,
                // An earlier answer met a closed port; that error is of no use here.
                Err(e) if matches!(e.kind(), ConnectionRefused | Interrupted) => continue,
                Err(_) => return,
            };
            let client = received.peer;
            let (target, known) = (*target, sessions.get(&client).copied());
            let session = match known {
                Some(session) => session,
                None => match self.open_session(poller, id, client, target) {
                    Ok(session) => session,
                    // No descriptors: the datagram is lost, as datagrams may be.
                    Err(_) => continue,
                },
            };
            if let Some(Entry::Session(session)) = self.entries.get_mut(&session) {
                session.used = Instant::now();
                session.asked = received.local;
                let bytes = datagram.get(..received.len).unwrap_or_default();
                // Lost if the container does not take it.
                ignore(rustix::net::send(&session.fd, bytes, SendFlags::DONTWAIT));
            }
        }
    }

    fn open_session(
        &mut self,
        poller: &Poller,
        port: u64,
        client: SocketAddr,
        target: SocketAddr,
    ) -> Result<u64> {
        let oldest = match self.entries.get(&port) {
            Some(Entry::Udp { sessions, .. }) if sessions.len() >= SESSIONS_MAX => {
                let used = |id: &u64| match self.entries.get(id) {
                    Some(Entry::Session(session)) => Some(session.used),
                    _ => None,
                };
                sessions.values().copied().min_by_key(used)
            }
            _ => None,
        };
        if let Some(oldest) = oldest {
            self.remove(poller, oldest);
        }
        let name = || target.to_string();
        let fd = socket(target.ip(), Proto::Udp).context("socket", name)?;
        rustix::net::connect(&fd, &target).context("connect", name)?;
        self.next += 1;
        let id = self.next;
        poller.add(&fd, Kind::Forward, id, EventFlags::IN)?;
        let used = Instant::now();
        self.entries.insert(id, Entry::Session(Session { port, fd, client, asked: None, used }));
        if let Some(Entry::Udp { sessions, .. }) = self.entries.get_mut(&port) {
            sessions.insert(client, id);
        }
        self.wake_in(SWEEP);
        Ok(id)
    }

    fn on_session(&mut self, poller: &Poller, id: u64) {
        let Some(Entry::Session(session)) = self.entries.get(&id) else { return };
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        match rustix::net::recv(&session.fd, &mut datagram[..], RecvFlags::DONTWAIT) {
            Ok((n, _)) => {
                let (client, asked) = (session.client, session.asked);
                if let Some(Entry::Udp { fd, .. }) = self.entries.get(&session.port) {
                    let bytes = datagram.get(..n).unwrap_or_default();
                    if sys::packet::send(fd, bytes, client, asked).is_err() {
                        // It had asked a broadcast address. Lost if the client's way is full, as
                        // datagrams may be.
                        ignore(sys::packet::send(fd, bytes, client, None));
                    }
                }
                if let Some(Entry::Session(session)) = self.entries.get_mut(&id) {
                    session.used = Instant::now();
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The container has no such port: asked anew with the next datagram.
            Err(_) => self.remove(poller, id),
        }
    }
}

fn socket(ip: IpAddr, proto: Proto) -> Result<OwnedFd, Errno> {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, protocol) = match proto {
        Proto::Tcp => (SocketType::STREAM, None),
        Proto::Udp => (SocketType::DGRAM, None),
        Proto::Sctp => (SocketType::STREAM, Some(ipproto::SCTP)),
    };
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, protocol)
}

fn listen(port: &Port) -> Result<OwnedFd> {
    let address = SocketAddr::new(port.host_ip, port.host_port);
    let open = || -> Result<OwnedFd, Errno> {
        let fd = socket(port.host_ip, port.proto)?;
        if port.host_ip.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, true)?;
        }
        if port.proto == Proto::Udp {
            sys::packet::enable_info(&fd, port.host_ip.is_ipv6())
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        }
        if port.proto != Proto::Udp {
            sockopt::set_socket_reuseaddr(&fd, true)?;
        }
        rustix::net::bind(&fd, &address)?;
        if port.proto != Proto::Udp {
            rustix::net::listen(&fd, BACKLOG)?;
        }
        Ok(fd)
    };
    match open() {
        Err(Errno::ADDRINUSE) => Err(Error::Refused {
            kind: ErrorKind::Conflict,
            text: format!("Bind for {address} failed: port is already allocated"),
        }),
        other => other.context("listen", || format!("{:?} {address}", port.proto)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Write};
    use std::net::{Shutdown as How, TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn port(proto: Proto, host_port: u16, container_port: u16) -> Port {
        let ip = "127.0.0.1".parse().unwrap();
        Port { proto, host_ip: ip, host_port, container_ip: ip, container_port }
    }

    /// A forwarder in a thread of its own.
    fn run(ports: Vec<Port>) -> std::sync::mpsc::Sender<()> {
        let (stop, stopped) = std::sync::mpsc::channel();
        let (up, ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let poller = Poller::new().unwrap();
            let mut forwarder = Forwarder::default();
            forwarder.open(&poller, 1, &ports).unwrap();
            up.send(()).unwrap();
            let mut events = Vec::new();
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let soon = Instant::now() + Duration::from_millis(5);
                poller.wait(&mut events, Some(soon)).unwrap();
                for e in &events {
                    forwarder.on_ready(&poller, e.id, e.flags);
                }
            }
        });
        ready.recv().unwrap();
        stop
    }

    #[test]
    fn tcp_both_ways_with_half_close() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = free_port();
        let _stop = run(vec![port(Proto::Tcp, host, server.local_addr().unwrap().port())]);
        let mut client = TcpStream::connect(("127.0.0.1", host)).unwrap();
        let size = 3_000_000;
        let echo = std::thread::spawn(move || {
            let (mut conn, _) = server.accept().unwrap();
            let mut all = Vec::new();
            conn.read_to_end(&mut all).unwrap();
            conn.write_all(&all).unwrap();
        });
        let sent: Vec<u8> = (0..size).map(|n: u32| n.to_le_bytes()[0] ^ 7).collect();
        client.write_all(&sent).unwrap();
        client.shutdown(How::Write).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        assert!(back == sent);
        echo.join().unwrap();
    }

    #[test]
    fn udp_answers_come_back() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let host = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let _stop = run(vec![port(Proto::Udp, host, server.local_addr().unwrap().port())]);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"ping", ("127.0.0.1", host)).unwrap();
        let mut buffer = [0; 16];
        let (n, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"ping");
        server.send_to(b"pong!", from).unwrap();
        let (n, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"pong!");
        assert_eq!(from.port(), host);
    }

    #[test]
    fn udp_answers_come_from_the_address_that_was_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let host = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let mut all = port(Proto::Udp, host, server.local_addr().unwrap().port());
        all.host_ip = "0.0.0.0".parse().unwrap();
        let _stop = run(vec![all]);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for asked in ["127.9.9.9", "127.0.0.1", "127.8.8.8"] {
            client.send_to(b"ping", (asked, host)).unwrap();
            let mut buffer = [0; 16];
            let (_, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"pong!", from).unwrap();
            let (_, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(from.ip().to_string(), asked);
        }
    }

    #[test]
    fn a_taken_port_is_told_in_dockers_words() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let holder = TcpListener::bind(("127.0.0.1", taken)).unwrap();
        let poller = Poller::new().unwrap();
        let mut forwarder = Forwarder::default();
        let error = forwarder.open(&poller, 1, &[port(Proto::Tcp, taken, 1)]).unwrap_err();
        let text = format!("Bind for 127.0.0.1:{taken} failed: port is already allocated");
        assert_eq!(error.chain(), text);
        assert!(forwarder.entries.is_empty());
        drop(holder);
    }
}
