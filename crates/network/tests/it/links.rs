use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use network::endpoint::{EndpointConfig, IpConfig, attach, attach_sublink, detach, free_ifname};
use network::link::{
    BridgeConfig, IpvlanFlag, IpvlanMode, MacvlanMode, PortFlags, Rtnl, SubKind, SubLinkConfig,
};
use network::ns::{self, Namespace, Pool};
use network::portmap::{Allocator, PortChoice, ephemeral_range};
use network::{Error, Mac, Subnet, firewall::Proto, stats, sysctl};

use crate::bed::{World, host_of, isolated, program, random_port, random_subnet, wait_until};

#[test]
fn the_pool_gives_bound_namespaces_and_leaves_nothing() {
    isolated(|| {
        let own = Namespace::current().unwrap().id().unwrap();
        let pool = Pool::new(2).unwrap();
        wait_until("the pool is full", || pool.ready() == 2);
        let mut ids = vec![own];
        for n in 0..4 {
            let path = format!("/run/gantry/netns/c{n}");
            let ns = pool.take(Path::new(&path)).unwrap();
            ids.push(ns.id().unwrap());
            assert_eq!(Namespace::open(Path::new(&path)).unwrap().id().unwrap(), ns.id().unwrap());
            assert!(pool.take(Path::new(&path)).unwrap_err().is_exists());
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 5, "all are different, and none is the caller's");
        assert_eq!(Namespace::current().unwrap().id().unwrap(), own);
        wait_until("the pool is filled again", || pool.ready() == 2);
        let ns = Namespace::open(Path::new("/run/gantry/netns/c0")).unwrap();
        let lo = Rtnl::open_in(&ns).unwrap().link("lo").unwrap().unwrap();
        assert!(lo.up);
        let value = ns.run(|| sysctl::read("ipv6/conf/default/accept_ra")).unwrap().unwrap();
        assert_eq!(value, "0");
        for n in 0..4 {
            ns::remove(Path::new(&format!("/run/gantry/netns/c{n}"))).unwrap();
        }
        ns::remove(Path::new("/run/gantry/netns/c0")).unwrap();
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains("/run/gantry"));
        assert!(Namespace::open(Path::new("/etc/passwd")).is_err());
    });
}

#[test]
fn attach_configures_the_interface_and_detach_takes_it_away() {
    isolated(|| {
        let mut world = World::new();
        let bridge = world.bridge("br-a", 2);
        let ns = Namespace::create_unbound().unwrap();
        let ip = host_of(&bridge.subnet, 7);
        let config = EndpointConfig {
            bridge: "br-a".to_owned(),
            ifname: free_ifname(&ns, "eth").unwrap(),
            host_ifname: None,
            mac: None,
            mtu: Some(1400),
            ip: IpConfig {
                v4: Some((ip, 24)),
                v6: Some(("fd00:1::7".parse().unwrap(), 64)),
                gateway4: Some(bridge.gateway()),
                gateway6: Some("fd00:1::1".parse().unwrap()),
                ..IpConfig::default()
            },
            port: PortFlags { isolated: true, hairpin: true },
        };
        let endpoint = attach(&mut world.route, &ns, &config).unwrap();
        assert_eq!(endpoint.mac, Some(Mac::from_ipv4(ip)));
        let mut inside = Rtnl::open_in(&ns).unwrap();
        let link = inside.link("eth0").unwrap().unwrap();
        assert!(link.up && link.mtu == 1400 && link.mac == endpoint.mac);
        let mut addresses: Vec<IpAddr> = inside
            .addresses()
            .unwrap()
            .iter()
            .filter(|a| a.index == link.index)
            .map(|a| a.ip)
            .collect();
        addresses.retain(|a| !matches!(a, IpAddr::V6(a) if a.is_unicast_link_local()));
        assert_eq!(addresses, [IpAddr::V4(ip), IpAddr::V6("fd00:1::7".parse().unwrap())]);
        let default: Vec<_> = inside
            .routes()
            .unwrap()
            .into_iter()
            .filter(|r| r.dst.prefix() == 0)
            .filter_map(|r| r.gateway)
            .collect();
        assert!(default.contains(&IpAddr::V4(bridge.gateway())));
        assert!(default.contains(&IpAddr::V6("fd00:1::1".parse().unwrap())));
        let flag = |name: &str| {
            std::fs::read_to_string(format!(
                "/sys/class/net/{}/brport/{name}",
                endpoint.host_ifname
            ))
        };
        // /sys may show another namespace here; then the flags are seen by what they do.
        if let Ok(value) = flag("isolated") {
            assert_eq!(value.trim(), "1");
            assert_eq!(flag("hairpin_mode").unwrap().trim(), "1");
        }
        assert_eq!(free_ifname(&ns, "eth").unwrap(), "eth1");
        let counters = stats::read(&ns).unwrap();
        assert_eq!(counters.len(), 1);
        assert_eq!(counters[0].name, "eth0");
        assert!(detach(&mut world.route, &ns, &endpoint).unwrap());
        assert!(!detach(&mut world.route, &ns, &endpoint).unwrap());
        assert!(inside.link("eth0").unwrap().is_none());
    });
}

#[test]
fn ipv4_only_endpoints_have_no_ipv6() {
    isolated(|| {
        let mut world = World::new();
        let mut bridge = world.bridge("br-a", 2);
        let container = bridge.container(&mut world.route, PortFlags::default());
        let mut inside = Rtnl::open_in(&container.ns).unwrap();
        let v6: Vec<IpAddr> =
            inside.addresses().unwrap().iter().map(|a| a.ip).filter(IpAddr::is_ipv6).collect();
        assert_eq!(v6, [IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        assert_eq!(sysctl::read("ipv6/conf/br-a/accept_ra").unwrap(), "0");
        assert_eq!(sysctl::read("ipv6/conf/br-a/disable_ipv6").unwrap(), "1");
    });
}

#[test]
fn a_failed_attach_leaves_nothing() {
    isolated(|| {
        let mut world = World::new();
        let mut bridge = world.bridge("br-a", 2);
        let container = bridge.container(&mut world.route, PortFlags::default());
        let before = world.route.links().unwrap().len();
        let config = EndpointConfig {
            bridge: "br-a".to_owned(),
            ifname: "eth1".to_owned(),
            host_ifname: None,
            mac: None,
            mtu: None,
            ip: IpConfig {
                v4: Some((Ipv4Addr::new(10, 99, 0, 2), 24)),
                // Not on the link: the route is refused.
                gateway4: Some(Ipv4Addr::new(11, 0, 0, 1)),
                ..IpConfig::default()
            },
            port: PortFlags::default(),
        };
        let error = attach(&mut world.route, &container.ns, &config).unwrap_err();
        assert!(error.to_string().contains("add route to 0.0.0.0/0 via 11.0.0.1"), "{error}");
        assert_eq!(world.route.links().unwrap().len(), before);
        let none = EndpointConfig { bridge: "br-none".to_owned(), ..config };
        assert!(attach(&mut world.route, &container.ns, &none).unwrap_err().is_not_found());
    });
}

#[test]
fn foreign_links_are_never_adopted() {
    isolated(|| {
        let mut route = Rtnl::open().unwrap();
        let config = BridgeConfig {
            name: "br-x".to_owned(),
            owner: "one".to_owned(),
            mac: None,
            mtu: Some(1450),
            addresses: vec![(IpAddr::V4(host_of(&random_subnet(3), 1)), 24)],
            ipv6: true,
        };
        let first = route.bridge_ensure(&config).unwrap();
        let again = route.bridge_ensure(&config).unwrap();
        assert!(first.created && !again.created && first.index == again.index);
        let other = BridgeConfig { owner: "two".to_owned(), ..config.clone() };
        assert!(route.bridge_delete("br-x", "two").is_err());
        assert!(route.bridge_existing("br-x").is_ok());
        assert!(route.bridge_existing("lo").is_err());
        assert!(route.bridge_delete("br-x", "one").unwrap());
        assert!(!route.bridge_delete("br-x", "one").unwrap());
        program(&["ip", "link", "add", "br-x", "type", "bridge"]);
        for wanted in [&config, &other] {
            let error = route.bridge_ensure(wanted).unwrap_err();
            assert!(matches!(error, Error::ForeignLink { .. }), "{error}");
        }
        let bad = BridgeConfig { name: "a/b".to_owned(), ..config };
        assert!(matches!(route.bridge_ensure(&bad), Err(Error::LinkName { .. })));
    });
}

#[test]
fn a_bridge_left_over_is_replaced_unless_links_are_on_it() {
    isolated(|| {
        let mut world = World::new();
        let (old, new) = (random_subnet(3), random_subnet(4));
        let config = |owner: &str, subnet: &Subnet| BridgeConfig {
            name: "br-x".to_owned(),
            owner: owner.to_owned(),
            mac: None,
            mtu: None,
            addresses: vec![(IpAddr::V4(host_of(subnet, 1)), 24)],
            ipv6: false,
        };
        world.route.bridge_ensure(&config("one", &old)).unwrap();
        program(&["ip", "link", "add", "t0", "type", "veth", "peer", "name", "t1"]);
        program(&["ip", "link", "set", "t0", "master", "br-x"]);
        assert_eq!(world.route.bridge_ports("br-x", "one").unwrap(), ["t0"]);
        assert!(world.route.bridge_ports("br-x", "two").unwrap().is_empty());
        let error = world.route.bridge_ensure(&config("two", &new)).unwrap_err();
        assert!(matches!(&error, Error::BridgeInUse { ports, .. } if ports == &["t0"]), "{error}");
        assert!(world.route.host_subnets().unwrap().contains(&old));
        program(&["ip", "link", "delete", "t0"]);
        assert!(world.route.bridge_ensure(&config("two", &new)).unwrap().created);
        let subnets = world.route.host_subnets().unwrap();
        assert!(subnets.contains(&new) && !subnets.contains(&old), "{subnets:?}");
        let (link, subnet) = world.route.link_in_subnets(&[old, new]).unwrap().unwrap();
        assert_eq!((link.name.as_str(), subnet), ("br-x", new));
        assert!(link.is_owned_bridge());
        assert_eq!(world.route.link_in_subnets(&[old]).unwrap(), None);
    });
}

#[test]
fn the_hosts_subnets_are_seen() {
    isolated(|| {
        let mut world = World::new();
        let subnets = world.route.host_subnets().unwrap();
        assert_eq!(subnets, [world.outside.subnet]);
    });
}

#[test]
fn macvlan_inside_and_ipvlan_where_the_kernel_has_it() {
    isolated(|| {
        let mut world = World::new();
        let ns = Namespace::create_unbound().unwrap();
        let ip =
            IpConfig { v4: Some((host_of(&world.outside.subnet, 50), 24)), ..IpConfig::default() };
        let macvlan = SubLinkConfig {
            ifname: "eth0".to_owned(),
            parent: "outside".to_owned(),
            kind: SubKind::Macvlan(MacvlanMode::Bridge),
            mac: None,
            mtu: None,
        };
        let endpoint = attach_sublink(&mut world.route, &ns, &macvlan, &ip).unwrap();
        assert!(endpoint.mac.is_some());
        let link = Rtnl::open_in(&ns).unwrap().link("eth0").unwrap().unwrap();
        assert_eq!(link.kind.as_deref(), Some("macvlan"));
        assert!(detach(&mut world.route, &ns, &endpoint).unwrap());
        let ipvlan =
            SubLinkConfig { kind: SubKind::Ipvlan(IpvlanMode::L2, IpvlanFlag::Bridge), ..macvlan };
        match attach_sublink(&mut world.route, &ns, &ipvlan, &ip) {
            Ok(_) => {}
            Err(Error::Unsupported { what, .. }) => eprintln!("SKIP: {what} is not in this kernel"),
            Err(error) => panic!("{error}"),
        }
    });
}

#[test]
fn ports_are_really_taken() {
    isolated(|| {
        let mut allocator = Allocator::default();
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let any6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let port = random_port();
        for proto in [Proto::Tcp, Proto::Udp] {
            let held = allocator.reserve(proto, &[any, any6], PortChoice::Exact(port)).unwrap();
            assert_eq!(held.len(), 2);
            let error = allocator.reserve(proto, &[any], PortChoice::Exact(port)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("Bind for 0.0.0.0:{port} failed: port is already allocated")
            );
            let error = allocator.reserve(proto, &[any6], PortChoice::Exact(port)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("Bind for [::]:{port} failed: port is already allocated")
            );
            let next = allocator.reserve(proto, &[any], PortChoice::Range(port, port + 1)).unwrap();
            assert_eq!(next[0].port, port + 1);
            let error =
                allocator.reserve(proto, &[any], PortChoice::Range(port, port + 1)).unwrap_err();
            assert!(matches!(error, Error::PortsExhausted { .. }));
        }
        let (first, last) = ephemeral_range();
        let one = allocator.reserve(Proto::Tcp, &[any, any6], PortChoice::Ephemeral).unwrap();
        let two = allocator.reserve(Proto::Tcp, &[any, any6], PortChoice::Ephemeral).unwrap();
        assert!((first..=last).contains(&one[0].port));
        assert_eq!(one[0].port, one[1].port);
        assert_ne!(one[0].port, two[0].port);
        let freed = one[0].port;
        drop(one);
        let three = allocator.reserve(Proto::Tcp, &[any], PortChoice::Ephemeral).unwrap();
        assert_ne!(
            three[0].port, freed,
            "a port that was just given back is not used again at once"
        );
        let elsewhere = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
        assert!(allocator.reserve(Proto::Tcp, &[elsewhere], PortChoice::Exact(port + 2)).is_err());
        let sctp = allocator.reserve(Proto::Sctp, &[any], PortChoice::Exact(port)).unwrap();
        if sctp[0].socket.is_none() {
            eprintln!("SKIP: this kernel has no SCTP sockets");
        } else {
            assert!(sctp[0].socket.as_ref().unwrap().as_fd().try_clone_to_owned().is_ok());
        }
    });
}

/// Prints what the steps cost; asserts nothing about time.
#[test]
fn costs() {
    isolated(|| {
        let mut world = World::new();
        let mut bridge = world.bridge("br-a", 2);
        let mut time = Vec::new();
        let mut create = Vec::new();
        for n in 0..20u8 {
            let start = Instant::now();
            let ns = Namespace::create_unbound().unwrap();
            create.push(start.elapsed());
            let config = EndpointConfig {
                bridge: "br-a".to_owned(),
                ifname: "eth0".to_owned(),
                host_ifname: None,
                mac: None,
                mtu: None,
                ip: IpConfig {
                    v4: Some((host_of(&bridge.subnet, u128::from(n) + 100), 24)),
                    gateway4: Some(bridge.gateway()),
                    ..IpConfig::default()
                },
                port: PortFlags::default(),
            };
            let start = Instant::now();
            attach(&mut world.route, &ns, &config).unwrap();
            time.push(start.elapsed());
        }
        time.sort_unstable();
        create.sort_unstable();
        eprintln!("namespace: median {:?}, best {:?}", create[10], create[0]);
        eprintln!("attach: median {:?}, best {:?}", time[10], time[0]);
        bridge.container(&mut world.route, PortFlags::default());
    });
}
