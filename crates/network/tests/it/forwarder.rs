use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use network::firewall::Proto;
use network::forward::{Forwarder, Limits};
use network::portmap::{Allocator, PortChoice};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::bed::{PATIENCE, isolated, random, random_port, wait_until};

const TAG: u16 = 0xf0;

struct Running {
    stop: Arc<AtomicBool>,
    udp_clients: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<(usize, usize)>>,
}

impl Running {
    /// Serves sockets on a thread, as a shim's loop would.
    fn start(sockets: Vec<(Proto, OwnedFd, SocketAddr)>, limits: Limits) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let udp_clients = Arc::new(AtomicUsize::new(0));
        let count_of_clients = Arc::clone(&udp_clients);
        let thread = std::thread::spawn(move || {
            let poll = epoll::create(CreateFlags::CLOEXEC).unwrap();
            let mut forwarder = Forwarder::new(poll.try_clone().unwrap(), TAG, limits);
            for (proto, socket, target) in sockets {
                match proto {
                    Proto::Tcp => forwarder.add_tcp(socket, target).unwrap(),
                    _ => forwarder.add_udp(socket, target).unwrap(),
                }
            }
            let mut events =
                [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 64];
            while !stopped.load(Ordering::Relaxed) {
                let wait = forwarder
                    .next_timeout()
                    .unwrap_or(Duration::from_millis(20))
                    .min(Duration::from_millis(20));
                let wait = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
                let count = epoll::wait(&poll, &mut events[..], Some(&wait)).unwrap();
                for event in &events[..count] {
                    let (token, flags) = (event.data.u64(), event.flags);
                    assert!(forwarder.owns(token));
                    forwarder.on_ready(token, flags);
                }
                forwarder.on_tick();
                count_of_clients.store(forwarder.load().1, Ordering::Relaxed);
            }
            forwarder.load()
        });
        Self { stop, udp_clients, thread: Some(thread) }
    }

    fn finish(mut self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn listen(proto: Proto, ip: IpAddr) -> (OwnedFd, SocketAddr) {
    let held =
        Allocator::default().reserve(proto, &[ip], PortChoice::Exact(random_port())).unwrap();
    let one = held.into_iter().next().unwrap();
    (one.socket.unwrap(), SocketAddr::new(one.ip, one.port))
}

#[test]
fn tcp_both_ways_with_half_close() {
    isolated(|| {
        // Reads all, then answers with it turned around: needs half-close.
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = server.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in server.incoming() {
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).unwrap();
                    all.reverse();
                    stream.write_all(&all).unwrap();
                });
            }
        });
        let (v4, at4) = listen(Proto::Tcp, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let (v6, at6) = listen(Proto::Tcp, IpAddr::V6(Ipv6Addr::LOCALHOST));
        let sockets = vec![(Proto::Tcp, v4, target), (Proto::Tcp, v6, target)];
        // Fewer connections at once than clients: the others wait their turn.
        let running = Running::start(sockets, Limits { connections: 3, ..Limits::default() });
        let clients: Vec<_> = (0..12)
            .map(|n| {
                let at = if n % 2 == 0 { at4 } else { at6 };
                std::thread::spawn(move || {
                    let len = usize::try_from(random(3_000_000)).unwrap();
                    let data: Vec<u8> =
                        (0..len).map(|i| u8::try_from((i * 7 + n) % 251).unwrap()).collect();
                    let mut stream = TcpStream::connect(at).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.write_all(&data).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                    let mut back = Vec::new();
                    stream.read_to_end(&mut back).unwrap();
                    back.reverse();
                    assert!(back == data, "what came back is what was sent");
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        // A target that refuses closes the client.
        let (dead, at) = listen(Proto::Tcp, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let refused = Running::start(vec![(Proto::Tcp, dead, nobody)], Limits::default());
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        assert!(matches!(stream.read_to_end(&mut rest), Ok(0) | Err(_)));
        assert_eq!(refused.finish().0, 0);
        assert_eq!(running.finish().0, 0, "no connection is left");
    });
}

#[test]
fn udp_clients_are_told_apart_and_forgotten() {
    isolated(|| {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = server.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buf = [0u8; 2000];
            loop {
                let (len, peer) = server.recv_from(&mut buf).unwrap();
                buf[..len].reverse();
                server.send_to(&buf[..len], peer).unwrap();
            }
        });
        let (socket, at) = listen(Proto::Udp, IpAddr::V6(Ipv6Addr::LOCALHOST));
        let limits = Limits { udp_idle: Duration::from_millis(50), ..Limits::default() };
        let running = Running::start(vec![(Proto::Udp, socket, target)], limits);
        for n in 0..20u8 {
            let client = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.connect(at).unwrap();
            client.send(&[n, 1, 2]).unwrap();
            let mut buf = [0u8; 10];
            assert_eq!(client.recv(&mut buf).unwrap(), 3);
            assert_eq!(buf[..3], [2, 1, n]);
        }
        let clients = Arc::clone(&running.udp_clients);
        wait_until("silent clients are forgotten", || clients.load(Ordering::Relaxed) == 0);
        assert_eq!(running.finish().1, 0);
    });
}

#[test]
fn udp_answers_come_from_the_address_that_was_asked() {
    isolated(|| {
        let mut route = network::link::Rtnl::open().unwrap();
        let second = Ipv4Addr::new(10, 77, 0, 1);
        route.address_add(1, IpAddr::V4(second), 24).unwrap();
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = server.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buf = [0u8; 100];
            loop {
                let (len, peer) = server.recv_from(&mut buf).unwrap();
                server.send_to(&buf[..len], peer).unwrap();
            }
        });
        let (v4, at4) = listen(Proto::Udp, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let (v6, at6) = listen(Proto::Udp, IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        let sockets = vec![(Proto::Udp, v4, target), (Proto::Udp, v6, target)];
        let running = Running::start(sockets, Limits::default());
        let cases = [
            (IpAddr::V4(second), at4, IpAddr::V4(Ipv4Addr::LOCALHOST)),
            (IpAddr::V4(Ipv4Addr::new(127, 9, 9, 9)), at4, IpAddr::V4(Ipv4Addr::LOCALHOST)),
            (IpAddr::V6(Ipv6Addr::LOCALHOST), at6, IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ];
        for (to, at, from) in cases {
            let client = UdpSocket::bind((from, 0)).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            // A connected socket takes answers from that address alone.
            client.connect((to, at.port())).unwrap();
            client.send(b"hello").unwrap();
            let mut buf = [0u8; 10];
            assert_eq!(client.recv(&mut buf).unwrap_or_else(|e| panic!("{to}: {e}")), 5);
        }
        assert_eq!(running.finish().1, 3);
    });
}
