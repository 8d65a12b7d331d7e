//! The test bed: isolation, a host with an outside neighbour, servers and clients.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use network::endpoint::{EndpointConfig, IpConfig, attach};
use network::link::{BridgeConfig, PortFlags, Rtnl};
use network::ns::Namespace;
use network::{Subnet, sysctl};

/// A connection that must not come about is waited for this long.
pub(crate) const REFUSED: Duration = Duration::from_millis(250);
/// One that must come about may take this long on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `work` in fresh namespaces, with an empty `/run`.
pub(crate) fn isolated(work: impl FnOnce() + Send + 'static) {
    sys::private_mount::on_thread(move || {
        rustix::mount::mount("tmpfs", "/run", "tmpfs", rustix::mount::MountFlags::empty(), None)?;
        sys::netns::unshare_net()?;
        let mut route = Rtnl::open().unwrap();
        route.set_up(1).unwrap();
        work();
        Ok(())
    })
    .unwrap();
}

/// A random number below `n`.
pub(crate) fn random(n: u32) -> u32 {
    let mut bytes = [0u8; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    u32::from_ne_bytes(bytes) % n
}

pub(crate) fn random_port() -> u16 {
    u16::try_from(1024 + random(28_000)).unwrap()
}

/// A random /24, below 10/8; `n` keeps several apart.
pub(crate) fn random_subnet(n: u8) -> Subnet {
    let b = u8::try_from(random(250)).unwrap();
    Subnet::new(IpAddr::V4(Ipv4Addr::new(10, b, n, 0)), 24).unwrap()
}

pub(crate) fn host_of(subnet: &Subnet, n: u128) -> Ipv4Addr {
    match subnet.nth(n).unwrap() {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => panic!("an IPv4 subnet"),
    }
}

/// Runs a program that must succeed; its output.
pub(crate) fn program(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `condition` holds; how long it took.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

/// A bridge on the host and how many containers it has.
pub(crate) struct Bridge {
    pub(crate) name: String,
    pub(crate) subnet: Subnet,
    used: u128,
}

impl Bridge {
    pub(crate) fn new(route: &mut Rtnl, name: &str, subnet: Subnet) -> Self {
        route
            .bridge_ensure(&BridgeConfig {
                name: name.to_owned(),
                owner: format!("test-{name}"),
                mac: None,
                mtu: None,
                addresses: vec![(IpAddr::V4(host_of(&subnet, 1)), subnet.prefix())],
                ipv6: false,
            })
            .unwrap();
        Self { name: name.to_owned(), subnet, used: 1 }
    }

    pub(crate) fn gateway(&self) -> Ipv4Addr {
        host_of(&self.subnet, 1)
    }

    /// A new namespace on it.
    pub(crate) fn container(&mut self, route: &mut Rtnl, port: PortFlags) -> Container {
        self.used += 1;
        let ip = host_of(&self.subnet, self.used);
        let ns = Namespace::create_unbound().unwrap();
        let config = EndpointConfig {
            bridge: self.name.clone(),
            ifname: "eth0".to_owned(),
            host_ifname: None,
            mac: None,
            mtu: None,
            ip: IpConfig {
                v4: Some((ip, self.subnet.prefix())),
                gateway4: Some(self.gateway()),
                ..IpConfig::default()
            },
            port,
        };
        attach(route, &ns, &config).unwrap();
        Container { ns, ip }
    }
}

pub(crate) struct Container {
    pub(crate) ns: Namespace,
    pub(crate) ip: Ipv4Addr,
}

impl Container {
    /// A server that tells each client the address it sees.
    pub(crate) fn serve(&self, port: u16) {
        let address = SocketAddr::from((self.ip, port));
        serve_on(self.ns.run(|| TcpListener::bind(address)).unwrap().unwrap());
    }

    /// The address that the server sees, if it can be reached.
    pub(crate) fn ask(&self, ip: Ipv4Addr, port: u16, patience: Duration) -> Option<IpAddr> {
        self.ns.run(|| ask(ip, port, patience)).unwrap()
    }
}

/// Answers every connection with the client's address, until the test ends.
pub(crate) fn serve_on(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().unwrap().ip().to_string();
            stream.write_all(peer.as_bytes()).ok();
        }
    });
}

/// Asks from the calling thread's namespace.
pub(crate) fn ask(ip: impl Into<IpAddr>, port: u16, patience: Duration) -> Option<IpAddr> {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(ip.into(), port), patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.parse().ok()
}

/// The host with an outside network on which a neighbour is.
pub(crate) struct World {
    pub(crate) route: Rtnl,
    pub(crate) outside: Bridge,
    pub(crate) neighbour: Container,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut route = Rtnl::open().unwrap();
        sysctl::enable_ip_forward(false).unwrap();
        let mut outside = Bridge::new(&mut route, "outside", random_subnet(1));
        let neighbour = outside.container(&mut route, PortFlags::default());
        Self { route, outside, neighbour }
    }

    pub(crate) fn bridge(&mut self, name: &str, number: u8) -> Bridge {
        Bridge::new(&mut self.route, name, random_subnet(number))
    }
}
