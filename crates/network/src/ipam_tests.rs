#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

fn net(text: &str) -> Subnet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ipam() -> Ipam {
    Ipam::new(docker_defaults([1, 2, 3, 4, 5])).unwrap()
}

fn auto(network: &str) -> PoolRequest {
    PoolRequest { network: network.to_owned(), ..PoolRequest::default() }
}

fn fixed(subnet: &str) -> PoolRequest {
    PoolRequest { network: "n".to_owned(), subnet: Some(net(subnet)), ..PoolRequest::default() }
}

#[test]
fn defaults_in_dockers_order() {
    let mut ipam = ipam();
    let mut got = Vec::new();
    while let Ok(pool) = ipam.request_pool(&auto("n"), &[]) {
        got.push(pool.subnet.to_string());
    }
    let mut want: Vec<String> = (17..32).map(|b| format!("172.{b}.0.0/16")).collect();
    want.extend((0..16).map(|n| format!("192.168.{}.0/20", n * 16)));
    assert_eq!(got, want);
    assert_eq!(ipam.request_pool(&auto("n"), &[]).unwrap_err(), IpamError::NoPoolLeft);
    let v6 = ipam.request_pool(&PoolRequest { ipv6: true, ..auto("n") }, &[]).unwrap();
    assert_eq!(v6.subnet, net("fd01:203:405::/64"));
    assert_eq!(v6.gateway, Some(ip("fd01:203:405::1")));
}

#[test]
fn the_hosts_subnets_are_avoided() {
    let host = [net("172.16.0.0/12"), net("192.168.0.0/19"), net("192.168.40.0/24")];
    let mut ipam = ipam();
    let pool = ipam.request_pool(&auto("n"), &host).unwrap();
    assert_eq!(pool.subnet, net("192.168.48.0/20"));
    let error = ipam.request_pool(&fixed("172.20.0.0/16"), &host).unwrap_err();
    assert!(matches!(error, IpamError::HostOverlap { .. }));
    let macvlan = PoolRequest { allow_host_overlap: true, ..fixed("192.168.40.0/24") };
    ipam.request_pool(&macvlan, &host).unwrap();
}

#[test]
fn dockers_words() {
    let mut ipam = ipam();
    ipam.request_pool(&fixed("10.5.0.0/16"), &[]).unwrap();
    let text = |e: IpamError| e.to_string();
    assert_eq!(
        text(ipam.request_pool(&fixed("10.5.6.0/24"), &[]).unwrap_err()),
        "invalid pool request: Pool overlaps with other one on this address space"
    );
    assert_eq!(
        text(parse_subnet("10.6.0.1/16").unwrap_err()),
        "invalid subnet 10.6.0.1/16: it should be 10.6.0.0/16"
    );
    let bad = PoolRequest { gateway: Some(ip("10.8.0.1")), ..fixed("10.7.0.0/16") };
    assert_eq!(
        text(ipam.request_pool(&bad, &[]).unwrap_err()),
        "invalid gateway 10.8.0.1: parent subnet 10.7.0.0/16 doesn't contain this address"
    );
    let bad = PoolRequest { ip_range: Some(net("10.0.0.0/8")), ..fixed("10.7.0.0/16") };
    assert_eq!(
        text(ipam.request_pool(&bad, &[]).unwrap_err()),
        "invalid ip-range 10.0.0.0/8: CIDR block is bigger than its parent subnet 10.7.0.0/16"
    );
    let bad = PoolRequest { ip_range: Some(net("10.9.0.0/24")), ..auto("n") };
    assert_eq!(
        text(ipam.request_pool(&bad, &[]).unwrap_err()),
        "no matching subnet for range 10.9.0.0/24"
    );
    assert_eq!(ipam.pools().count(), 1, "a refused request leaves nothing");
}

#[test]
fn addresses_of_a_small_pool() {
    let mut ipam = ipam();
    let request = PoolRequest {
        aux: BTreeMap::from([("router".to_owned(), ip("10.1.1.3"))]),
        ..fixed("10.1.1.0/29")
    };
    let subnet = ipam.request_pool(&request, &[]).unwrap().subnet;
    let mut got = Vec::new();
    while let Ok(address) = ipam.request_address(&subnet, None) {
        got.push(address.to_string());
    }
    assert_eq!(got, ["10.1.1.2", "10.1.1.4", "10.1.1.5", "10.1.1.6"]);
    ipam.release_address(&subnet, ip("10.1.1.1"));
    ipam.release_address(&subnet, ip("10.1.1.3"));
    assert!(ipam.request_address(&subnet, None).is_err(), "gateway and aux stay taken");
    ipam.release_address(&subnet, ip("10.1.1.5"));
    assert_eq!(ipam.request_address(&subnet, None).unwrap(), ip("10.1.1.5"));
    assert_eq!(
        ipam.request_address(&subnet, Some(ip("10.1.1.4"))).unwrap_err().to_string(),
        "Address already in use"
    );
    for out in ["10.1.1.0", "10.1.1.7", "10.1.2.1", "fd00::1"] {
        assert_eq!(
            ipam.request_address(&subnet, Some(ip(out))),
            Err(IpamError::OutOfRange(ip(out)))
        );
    }
}

#[test]
fn a_range_at_the_end_leaves_out_broadcast() {
    let mut ipam = ipam();
    let request = PoolRequest {
        ip_range: Some(net("10.1.1.252/30")),
        gateway: Some(ip("10.1.1.1")),
        ..fixed("10.1.1.0/24")
    };
    let subnet = ipam.request_pool(&request, &[]).unwrap().subnet;
    let got: Vec<_> = std::iter::from_fn(|| ipam.request_address(&subnet, None).ok()).collect();
    assert_eq!(got, [ip("10.1.1.252"), ip("10.1.1.253"), ip("10.1.1.254")]);
}

#[test]
fn state_survives_serde() {
    let mut ipam = ipam();
    let subnet = ipam.request_pool(&auto("n"), &[]).unwrap().subnet;
    ipam.request_address(&subnet, None).unwrap();
    let text = serde_json::to_string(&ipam).unwrap();
    assert_eq!(serde_json::from_str::<Ipam>(&text).unwrap(), ipam);
}

#[derive(Debug, Clone)]
enum Op {
    Next,
    Fixed(u8),
    Release(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![Just(Op::Next), any::<u8>().prop_map(Op::Fixed), any::<u8>().prop_map(Op::Release)]
}

proptest! {
    #[test]
    fn addresses_match_a_model(ops in proptest::collection::vec(op(), 0..200), prefix in 24u8..=32) {
        let mut ipam = ipam();
        let subnet = Subnet::new(ip("10.20.30.0"), prefix).unwrap();
        let request = PoolRequest { subnet: Some(subnet), no_gateway: true, ..auto("n") };
        ipam.request_pool(&request, &[]).unwrap();
        let all: Vec<IpAddr> = (0..256u128)
            .filter_map(|n| subnet.nth(n))
            .filter(|a| is_host(&subnet, *a))
            .collect();
        let mut model = BTreeSet::new();
        for op in ops {
            match op {
                Op::Next => {
                    let want = all.iter().find(|a| !model.contains(*a)).copied();
                    prop_assert_eq!(ipam.request_address(&subnet, None).ok(), want);
                    model.extend(want);
                }
                Op::Fixed(n) => {
                    let address = IpAddr::V4(Ipv4Addr::new(10, 20, 30, n));
                    let free = all.contains(&address) && !model.contains(&address);
                    prop_assert_eq!(ipam.request_address(&subnet, Some(address)).is_ok(), free);
                    if free {
                        model.insert(address);
                    }
                }
                Op::Release(n) => {
                    let address = IpAddr::V4(Ipv4Addr::new(10, 20, 30, n));
                    ipam.release_address(&subnet, address);
                    model.remove(&address);
                }
            }
        }
    }

    #[test]
    fn pools_never_overlap(
        fixed in proptest::collection::vec((any::<u32>(), 8u8..=30), 0..12),
        host in proptest::collection::vec((any::<u32>(), 4u8..=30), 0..6),
        autos in 0usize..40,
    ) {
        let subnet = |(bits, prefix)| Subnet::new(IpAddr::V4(Ipv4Addr::from_bits(bits)), prefix).unwrap();
        let host: Vec<Subnet> = host.into_iter().map(subnet).collect();
        let mut ipam = ipam();
        for one in fixed {
            let request = PoolRequest { subnet: Some(subnet(one)), ..auto("f") };
            ipam.request_pool(&request, &host).ok();
        }
        for _ in 0..autos {
            ipam.request_pool(&auto("a"), &host).ok();
        }
        let all: Vec<Subnet> = ipam.pools().map(|p| p.subnet).collect();
        for (n, a) in all.iter().enumerate() {
            prop_assert!(all[n + 1..].iter().all(|b| !a.overlaps(b)));
            prop_assert!(host.iter().all(|h| !a.overlaps(h)));
        }
    }
}
