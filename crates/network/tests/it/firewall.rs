use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use network::endpoint::{EndpointConfig, IpConfig, attach};
use network::firewall::{
    BridgeNetwork, Desired, Firewall, GatewayMode, Proto, PublishedPort, TABLE,
};
use network::link::{BridgeConfig, PortFlags, Rtnl};
use network::ns::Namespace;
use network::sysctl;

use crate::bed::{
    Bridge, Container, PATIENCE, REFUSED, World, ask, host_of, isolated, program, random_port,
    serve_on, wait_until,
};

fn network(bridge: &Bridge) -> BridgeNetwork {
    BridgeNetwork::new(bridge.name.clone(), vec![bridge.subnet])
}

fn published(host_ip: Ipv4Addr, host_port: u16, to: &Container, port: u16) -> PublishedPort {
    PublishedPort {
        proto: Proto::Tcp,
        host_ip: IpAddr::V4(host_ip),
        host_port,
        container_ip: IpAddr::V4(to.ip),
        container_port: port,
    }
}

fn ensure(networks: Vec<BridgeNetwork>, ports: &[PublishedPort]) -> Firewall {
    let mut firewall = Firewall::open(TABLE).unwrap();
    let desired =
        Desired { networks, ports: ports.iter().cloned().collect(), drop_foreign_forward: false };
    let report = firewall.ensure(desired).unwrap();
    assert!(report.blockers.is_empty(), "{report:?}");
    firewall
}

/// Lets the neighbour send packets for `bridge`'s subnet to the host, and back.
fn route_to(world: &World, bridge: &Bridge) {
    let (subnet, host) = (bridge.subnet, world.outside.gateway());
    let added = world.neighbour.ns.run(|| {
        let mut route = network::link::Rtnl::open().unwrap();
        let eth0 = route.link("eth0").unwrap().unwrap();
        route.route_add(subnet, Some(IpAddr::V4(host)), eth0.index)
    });
    added.unwrap().unwrap();
}

#[test]
fn published_ports_masquerade_and_hairpin() {
    isolated(|| {
        let mut world = World::new();
        let mut bridge = world.bridge("br-a", 2);
        let mut second = world.bridge("br-b", 3);
        let hairpin = PortFlags { hairpin: true, ..PortFlags::default() };
        let web = bridge.container(&mut world.route, hairpin);
        let other = bridge.container(&mut world.route, PortFlags::default());
        let stranger = second.container(&mut world.route, PortFlags::default());
        let (inner, any, one) = (random_port(), random_port() + 30_000, random_port() + 30_000);
        let host = world.outside.gateway();
        web.serve(inner);
        let mut firewall = ensure(vec![network(&bridge), network(&second)], &[]);
        assert_eq!(world.neighbour.ask(host, any, REFUSED), None, "not published yet");
        firewall
            .publish(&[
                published(Ipv4Addr::UNSPECIFIED, any, &web, inner),
                published(host, one, &web, inner),
            ])
            .unwrap();
        for port in [any, one] {
            let seen = world.neighbour.ask(host, port, PATIENCE);
            assert_eq!(
                seen,
                Some(IpAddr::V4(world.neighbour.ip)),
                "the client's own address is seen"
            );
            assert_eq!(
                other.ask(host, port, PATIENCE),
                Some(IpAddr::V4(bridge.gateway())),
                "same bridge"
            );
            assert_eq!(web.ask(host, port, PATIENCE), Some(IpAddr::V4(bridge.gateway())), "itself");
            assert_eq!(
                stranger.ask(host, port, PATIENCE),
                Some(IpAddr::V4(bridge.gateway())),
                "other bridge"
            );
            assert_eq!(ask(host, port, PATIENCE), Some(IpAddr::V4(host)), "the host itself");
        }
        assert_eq!(ask(bridge.gateway(), one, REFUSED), None, "published on another address only");
        assert_eq!(
            other.ask(web.ip, inner, PATIENCE),
            Some(IpAddr::V4(other.ip)),
            "directly, unchanged"
        );
        let outer = random_port();
        world.neighbour.serve(outer);
        let seen = web.ask(world.neighbour.ip, outer, PATIENCE);
        assert_eq!(seen, Some(IpAddr::V4(host)), "what leaves is masqueraded");
        firewall.unpublish(&[published(Ipv4Addr::UNSPECIFIED, any, &web, inner)]).unwrap();
        firewall.unpublish(&[published(Ipv4Addr::UNSPECIFIED, any, &web, inner)]).unwrap();
        assert_eq!(world.neighbour.ask(host, any, REFUSED), None);
        assert!(world.neighbour.ask(host, one, PATIENCE).is_some());
        firewall.remove_all().unwrap();
        assert_eq!(program(&["nft", "list", "ruleset"]), "");
    });
}

#[test]
fn bridges_are_isolated_and_unpublished_ports_closed() {
    isolated(|| {
        let mut world = World::new();
        let mut a = world.bridge("br-a", 2);
        let mut b = world.bridge("br-b", 3);
        let mut internal = world.bridge("br-int", 4);
        let in_a = a.container(&mut world.route, PortFlags::default());
        let in_b = b.container(&mut world.route, PortFlags::default());
        let first = internal.container(&mut world.route, PortFlags::default());
        let second = internal.container(&mut world.route, PortFlags::default());
        let port = random_port();
        for container in [&in_a, &in_b, &first, &second, &world.neighbour] {
            container.serve(port);
        }
        for bridge in [&a, &b, &internal] {
            route_to(&world, bridge);
        }
        // The planted defect: without our rules all of this is open.
        assert!(in_a.ask(in_b.ip, port, PATIENCE).is_some());
        assert!(world.neighbour.ask(in_a.ip, port, PATIENCE).is_some());
        assert!(world.neighbour.ask(first.ip, port, PATIENCE).is_some());
        let inner = BridgeNetwork { internal: true, ..network(&internal) };
        let mut firewall = ensure(vec![network(&a), network(&b), inner.clone()], &[]);
        assert_eq!(in_a.ask(in_b.ip, port, REFUSED), None, "between bridges");
        assert_eq!(in_b.ask(in_a.ip, port, REFUSED), None);
        assert_eq!(
            world.neighbour.ask(in_a.ip, port, REFUSED),
            None,
            "from outside, not published"
        );
        assert_eq!(world.neighbour.ask(first.ip, port, REFUSED), None, "into an internal network");
        assert_eq!(
            first.ask(world.neighbour.ip, port, REFUSED),
            None,
            "out of an internal network"
        );
        assert_eq!(first.ask(in_a.ip, port, REFUSED), None);
        assert_eq!(in_a.ask(first.ip, port, REFUSED), None);
        assert!(first.ask(second.ip, port, PATIENCE).is_some(), "within it");
        // A published port is no way around: straight to the container stays closed.
        firewall.publish(&[published(Ipv4Addr::UNSPECIFIED, port + 30_000, &in_a, port)]).unwrap();
        assert_eq!(world.neighbour.ask(in_a.ip, port, REFUSED), None);
        // But modes that open it do.
        let open = BridgeNetwork { mode4: GatewayMode::NatUnprotected, ..network(&a) };
        firewall.add_network(open).unwrap();
        assert!(world.neighbour.ask(in_a.ip, port, PATIENCE).is_some());
        let routed = BridgeNetwork { mode4: GatewayMode::Routed, ..network(&a) };
        firewall.add_network(routed).unwrap();
        assert!(world.neighbour.ask(in_a.ip, port, PATIENCE).is_some(), "published, directly");
        let seen = in_a.ask(world.neighbour.ip, port, PATIENCE);
        assert_eq!(seen, Some(IpAddr::V4(in_a.ip)), "routed is not masqueraded");
        in_a.serve(port + 1);
        assert_eq!(world.neighbour.ask(in_a.ip, port + 1, REFUSED), None, "not published");
    });
}

#[test]
fn icc_off_parts_a_bridge() {
    isolated(|| {
        let mut world = World::new();
        let mut bridge = world.bridge("br-a", 2);
        let parted = PortFlags { isolated: true, ..PortFlags::default() };
        let one = bridge.container(&mut world.route, parted);
        let two = bridge.container(&mut world.route, parted);
        let port = random_port();
        two.serve(port);
        world.neighbour.serve(port);
        let mut firewall = ensure(vec![BridgeNetwork { icc: false, ..network(&bridge) }], &[]);
        assert_eq!(one.ask(two.ip, port, REFUSED), None);
        assert!(one.ask(world.neighbour.ip, port, PATIENCE).is_some(), "out is open");
        // Through the gateway as a router: still closed.
        let (target, gateway) = (two.ip, bridge.gateway());
        let asked = one.ns.run(move || {
            let mut route = network::link::Rtnl::open().unwrap();
            let eth0 = route.link("eth0").unwrap().unwrap();
            let host_route = network::Subnet::new(IpAddr::V4(target), 32).unwrap();
            route.route_add(host_route, Some(IpAddr::V4(gateway)), eth0.index).unwrap();
            ask(target, port, REFUSED)
        });
        assert_eq!(asked.unwrap(), None);
        // A published port is left to its listener on the host.
        let host = world.outside.gateway();
        let outer = port + 30_000;
        firewall.publish(&[published(Ipv4Addr::UNSPECIFIED, outer, &two, port)]).unwrap();
        assert_eq!(one.ask(host, outer, REFUSED), None);
        serve_on(TcpListener::bind((Ipv4Addr::UNSPECIFIED, outer)).unwrap());
        assert_eq!(one.ask(host, outer, PATIENCE), Some(IpAddr::V4(one.ip)));
    });
}

#[test]
fn a_port_published_on_loopback_is_closed_to_neighbours() {
    isolated(|| {
        let mut world = World::new();
        let mut bridge = world.bridge("br-a", 2);
        let web = bridge.container(&mut world.route, PortFlags::default());
        let port = random_port();
        serve_on(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
        // Another program on the host may have turned this on.
        sysctl::write("ipv4/conf/all/route_localnet", "1").unwrap();
        let host = world.outside.gateway();
        world
            .neighbour
            .ns
            .run(|| {
                sysctl::write("ipv4/conf/all/route_localnet", "1").unwrap();
                let mut route = network::link::Rtnl::open().unwrap();
                let eth0 = route.link("eth0").unwrap().unwrap();
                // Loopback addresses are sent to the host instead.
                route
                    .address_add(eth0.index, IpAddr::V4(Ipv4Addr::new(10, 255, 255, 1)), 32)
                    .unwrap();
                route.link_delete("lo").ok();
                let table =
                    network::Subnet::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1)), 32).unwrap();
                program(&["ip", "addr", "del", "127.0.0.1/8", "dev", "lo"]);
                route.route_add(table, Some(IpAddr::V4(host)), eth0.index).unwrap();
            })
            .unwrap();
        let mut firewall = ensure(vec![network(&bridge)], &[]);
        // The planted defect: without the rule the neighbour gets in.
        assert!(world.neighbour.ask(Ipv4Addr::LOCALHOST, port, PATIENCE).is_some());
        firewall.publish(&[published(Ipv4Addr::LOCALHOST, port, &web, 80)]).unwrap();
        assert_eq!(world.neighbour.ask(Ipv4Addr::LOCALHOST, port, REFUSED), None);
        assert_eq!(world.neighbour.ask(host, port, REFUSED), None);
        assert!(ask(Ipv4Addr::LOCALHOST, port, PATIENCE).is_some(), "the host itself gets in");
    });
}

#[test]
fn the_table_is_what_nft_reads_too() {
    isolated(|| {
        let mut world = World::new();
        let mut bridge = world.bridge("br-a", 2);
        let web = bridge.container(&mut world.route, PortFlags::default());
        let source = host_of(&world.outside.subnet, 1);
        let networks = vec![
            BridgeNetwork { host_addresses: vec![IpAddr::V4(source)], ..network(&bridge) },
            BridgeNetwork::new(
                "br-six",
                vec!["fd00:9::/64".parse().unwrap(), "10.250.0.0/16".parse().unwrap()],
            ),
        ];
        let port = random_port();
        let ports: BTreeSet<PublishedPort> =
            (0..1500).map(|n| published(Ipv4Addr::UNSPECIFIED, 30_000 + n, &web, port)).collect();
        let ports: Vec<PublishedPort> = ports.into_iter().collect();
        let mut firewall = ensure(networks, &ports);
        let text = program(&["nft", "list", "table", "inet", "gantry"]);
        for part in [
            "iifname @bridges jump ours".to_owned(),
            "ct state established,related accept".to_owned(),
            "fib daddr type local jump published".to_owned(),
            "masquerade".to_owned(),
            "10.250.0.0/16".to_owned(),
            "fd00:9::/64".to_owned(),
            format!("tcp . 31000 : {} . {port}", web.ip),
        ] {
            assert!(text.contains(&part), "{part:?} not in\n{text}");
        }
        let start = Instant::now();
        let extra = published(Ipv4Addr::UNSPECIFIED, 29_999, &web, port);
        firewall.publish(std::slice::from_ref(&extra)).unwrap();
        eprintln!("publish one port beside 1500: {:?}", start.elapsed());
        let start = Instant::now();
        firewall.reassert().unwrap();
        eprintln!("re-assert 1501 ports: {:?}", start.elapsed());
        // What is listed can be loaded again by nft.
        let text = program(&["nft", "list", "table", "inet", "gantry"]);
        std::fs::write("/run/table", format!("delete table inet gantry\n{text}")).unwrap();
        program(&["nft", "-f", "/run/table"]);
        assert!(firewall.is_present().unwrap());
    });
}

#[test]
fn a_udp_flow_that_was_under_way_gets_to_the_published_port() {
    isolated(|| {
        let mut world = World::new();
        let mut bridge = world.bridge("br-a", 2);
        let server = bridge.container(&mut world.route, PortFlags::default());
        let (outer, inner) = (random_port(), random_port());
        let at = (server.ip, inner);
        let socket = server.ns.run(|| UdpSocket::bind(at)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut firewall = ensure(vec![network(&bridge)], &[]);
        let host = world.outside.gateway();
        let client = world
            .neighbour
            .ns
            .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
            .unwrap()
            .unwrap();
        // A flow into nothing; somebody listens on the host, so no error ends it.
        let silent = UdpSocket::bind((host, outer)).unwrap();
        client.send_to(b"before", (host, outer)).unwrap();
        silent.recv_from(&mut [0u8; 10]).unwrap();
        let port = PublishedPort {
            proto: Proto::Udp,
            ..published(Ipv4Addr::UNSPECIFIED, outer, &server, inner)
        };
        firewall.publish(std::slice::from_ref(&port)).unwrap();
        let mut buf = [0u8; 10];
        wait_until("the flow gets to the container", || {
            client.send_to(b"after", (host, outer)).unwrap();
            socket.recv_from(&mut buf).is_ok()
        });
        firewall.unpublish(&[port]).unwrap();
        silent.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        wait_until("the flow leaves the container", || {
            client.send_to(b"gone", (host, outer)).unwrap();
            silent.recv_from(&mut buf).is_ok()
        });
    });
}

#[test]
fn ipv6_published_masqueraded_and_closed() {
    isolated(|| {
        sysctl::enable_ip_forward(true).unwrap();
        let mut route = Rtnl::open().unwrap();
        let mut side = |bridge: &str, net: &str| {
            let address: Ipv6Addr = format!("{net}::1").parse().unwrap();
            route
                .bridge_ensure(&BridgeConfig {
                    name: bridge.to_owned(),
                    owner: bridge.to_owned(),
                    mac: None,
                    mtu: None,
                    addresses: vec![(IpAddr::V6(address), 64)],
                    ipv6: true,
                })
                .unwrap();
            let ns = Namespace::create_unbound().unwrap();
            let ip: Ipv6Addr = format!("{net}::2").parse().unwrap();
            let config = EndpointConfig {
                bridge: bridge.to_owned(),
                ifname: "eth0".to_owned(),
                host_ifname: None,
                mac: None,
                mtu: None,
                ip: IpConfig { v6: Some((ip, 64)), gateway6: Some(address), ..IpConfig::default() },
                port: PortFlags { hairpin: true, ..PortFlags::default() },
            };
            attach(&mut route, &ns, &config).unwrap();
            (ns, ip, address)
        };
        let (out_ns, out_ip, host) = side("outside", "fd00:1");
        let (in_ns, in_ip, gateway) = side("br-six", "fd00:2");
        let (outer, inner) = (random_port() + 30_000, random_port());
        for (ns, ip) in [(&out_ns, out_ip), (&in_ns, in_ip)] {
            serve_on(ns.run(|| TcpListener::bind((ip, inner))).unwrap().unwrap());
        }
        let from = |ns: &Namespace, ip: Ipv6Addr, port: u16, patience| {
            ns.run(|| ask(ip, port, patience)).unwrap()
        };
        assert!(from(&out_ns, in_ip, inner, PATIENCE).is_some(), "open without rules");
        let network = BridgeNetwork::new("br-six", vec!["fd00:2::/64".parse().unwrap()]);
        let mut firewall = ensure(vec![network], &[]);
        assert_eq!(from(&out_ns, in_ip, inner, REFUSED), None);
        let port = PublishedPort {
            proto: Proto::Tcp,
            host_ip: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            host_port: outer,
            container_ip: IpAddr::V6(in_ip),
            container_port: inner,
        };
        let one = PublishedPort { host_ip: IpAddr::V6(host), host_port: outer + 1, ..port.clone() };
        firewall.publish(&[port, one]).unwrap();
        for port in [outer, outer + 1] {
            assert_eq!(from(&out_ns, host, port, PATIENCE), Some(IpAddr::V6(out_ip)));
            assert_eq!(from(&in_ns, host, port, PATIENCE), Some(IpAddr::V6(gateway)), "itself");
            assert_eq!(ask(host, port, PATIENCE), Some(IpAddr::V6(host)));
        }
        assert_eq!(from(&in_ns, out_ip, inner, PATIENCE), Some(IpAddr::V6(host)), "masqueraded");
    });
}
