//! The rules and sets of our table.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::nft::{
    Base, Element, Family, Field, Hook, Meta, REG, Rule, SetSpec, Transaction, Verdict, ifname_key,
    proto_port_key,
};
use super::{BridgeNetwork, Desired, GatewayMode, PublishedPort};
use crate::link::octets;
use crate::subnet::Subnet;

const NAT_DST_PRIORITY: i32 = -100;
const NAT_SRC_PRIORITY: i32 = 100;
const RAW_PRIORITY: i32 = -300;

const fn ifnames(name: &'static str) -> SetSpec {
    SetSpec { name, key: &[Field::Ifname], data: &[], interval: false }
}

/// All our bridges.
const BRIDGES: SetSpec = ifnames("bridges");
/// Bridges of internal networks.
const INTERNAL: SetSpec = ifnames("internal");
/// Pairs between which traffic passes: a bridge with itself, for ICC.
const LINKS: SetSpec =
    SetSpec { name: "links", key: &[Field::Ifname, Field::Ifname], data: &[], interval: false };
/// Bridges without ICC: their ports are isolated. With br_netfilter a translated
/// packet that stays on its bridge is switched, not routed, and isolation would
/// stop it. So what comes from there is left to the listeners' forwarders.
const PARTED: SetSpec = ifnames("parted");

/// Names of a family's sets, and the sets.
struct FamilySets {
    family: Family,
    /// Published on any address: protocol and port to address and port.
    any: SetSpec,
    /// Published on one address.
    one: SetSpec,
    /// Published on a loopback address.
    loopback: SetSpec,
    /// Container ports that may be reached directly (routed mode).
    direct: SetSpec,
    /// Subnets of our bridges.
    local: SetSpec,
    /// Subnets that are masqueraded.
    masquerade: SetSpec,
    /// Subnets with a source address of their own.
    snat: SetSpec,
    /// Bridges whose containers may be reached at every port.
    open: SetSpec,
    /// Bridges in routed mode.
    routed: SetSpec,
}

impl FamilySets {
    fn all(&self) -> [&SetSpec; 9] {
        [
            &self.any,
            &self.one,
            &self.loopback,
            &self.direct,
            &self.local,
            &self.masquerade,
            &self.snat,
            &self.open,
            &self.routed,
        ]
    }
}

const fn subnets(name: &'static str, key: &'static [Field], data: &'static [Field]) -> SetSpec {
    SetSpec { name, key, data, interval: true }
}

const fn exact(name: &'static str, key: &'static [Field], data: &'static [Field]) -> SetSpec {
    SetSpec { name, key, data, interval: false }
}

const SETS4: FamilySets = {
    use Field::{Ip4, Port, Proto};
    FamilySets {
        family: Family::Ip,
        any: exact("any4", &[Proto, Port], &[Ip4, Port]),
        one: exact("one4", &[Ip4, Proto, Port], &[Ip4, Port]),
        loopback: exact("loopback4", &[Ip4, Proto, Port], &[]),
        direct: exact("direct4", &[Ip4, Proto, Port], &[]),
        local: subnets("local4", &[Ip4], &[]),
        masquerade: subnets("masquerade4", &[Ip4], &[]),
        snat: subnets("snat4", &[Ip4], &[Ip4]),
        open: ifnames("open4"),
        routed: ifnames("routed4"),
    }
};

const SETS6: FamilySets = {
    use Field::{Ip6, Port, Proto};
    FamilySets {
        family: Family::Ip6,
        any: exact("any6", &[Proto, Port], &[Ip6, Port]),
        one: exact("one6", &[Ip6, Proto, Port], &[Ip6, Port]),
        loopback: exact("loopback6", &[Ip6, Proto, Port], &[]),
        direct: exact("direct6", &[Ip6, Proto, Port], &[]),
        local: subnets("local6", &[Ip6], &[]),
        masquerade: subnets("masquerade6", &[Ip6], &[]),
        snat: subnets("snat6", &[Ip6], &[Ip6]),
        open: ifnames("open6"),
        routed: ifnames("routed6"),
    }
};

fn sets_of(ipv4: bool) -> &'static FamilySets {
    if ipv4 { &SETS4 } else { &SETS6 }
}

/// Elements by set.
pub(crate) type Elements = BTreeMap<&'static str, Vec<Element>>;

/// Replaces the table by what `desired` says.
pub(crate) fn replace_table(t: &mut Transaction<'_>, desired: &Desired) {
    t.add_table();
    t.delete_table();
    t.add_table();
    for set in
        [&BRIDGES, &INTERNAL, &LINKS, &PARTED].into_iter().chain(SETS4.all()).chain(SETS6.all())
    {
        t.add_set(set);
    }
    chains(t, desired.drop_foreign_forward);
    raw_rules(t);
    forward_rules(t);
    nat_rules(t);
    let mut elements = Elements::new();
    for network in &desired.networks {
        network_elements(&mut elements, network);
    }
    for (set, list) in &elements {
        t.elements(set, list, true);
    }
    for (set, list) in &port_elements(desired.ports.iter(), desired) {
        t.elements(set, list, true);
    }
}

fn chains(t: &mut Transaction<'_>, drop_foreign: bool) {
    let base = |kind, hook, priority, drop| Some(Base { kind, hook, priority, drop });
    t.add_chain("raw", base("filter", Hook::Prerouting, RAW_PRIORITY, false));
    t.add_chain("ours", None);
    t.add_chain("forward", base("filter", Hook::Forward, 0, drop_foreign));
    t.add_chain("published", None);
    t.add_chain("prerouting", base("nat", Hook::Prerouting, NAT_DST_PRIORITY, false));
    t.add_chain("output", base("nat", Hook::Output, NAT_DST_PRIORITY, false));
    t.add_chain("postrouting", base("nat", Hook::Postrouting, NAT_SRC_PRIORITY, false));
}

/// Loads `daddr . l4proto . dport`, for packets of this family alone.
fn destination_key(r: &mut Rule<'_>, family: Family) {
    let width = if family == Family::Ip6 { 4 } else { 1 };
    r.family(family).address(family, false, REG).proto_port(REG + width);
}

fn raw_rules(t: &mut Transaction<'_>) {
    for sets in [&SETS4, &SETS6] {
        t.rule("raw", |r| {
            r.ifname_is(Meta::Iifname, "lo", false);
            destination_key(r, sets.family);
            r.lookup(sets.loopback.name, false).counter().verdict(Verdict::Drop);
        });
    }
}

fn forward_rules(t: &mut Transaction<'_>) {
    for key in [Meta::Iifname, Meta::Oifname] {
        t.rule("forward", |r| {
            r.ifname_in(key, BRIDGES.name, true).verdict(Verdict::Jump("ours"));
        });
    }
    t.rule("ours", |r| {
        r.established().verdict(Verdict::Accept);
    });
    t.rule("ours", |r| {
        r.meta(Meta::Iifname, REG).meta(Meta::Oifname, REG + 4);
        r.lookup(LINKS.name, false).verdict(Verdict::Accept);
    });
    for key in [Meta::Iifname, Meta::Oifname] {
        t.rule("ours", |r| {
            r.ifname_in(key, INTERNAL.name, true).counter().verdict(Verdict::Drop);
        });
    }
    t.rule("ours", |r| {
        r.was_dnat().ifname_in(Meta::Oifname, BRIDGES.name, true).verdict(Verdict::Accept);
    });
    for sets in [&SETS4, &SETS6] {
        direct_rules(t, sets);
    }
    t.rule("ours", |r| {
        r.ifname_in(Meta::Iifname, BRIDGES.name, true);
        r.ifname_in(Meta::Oifname, BRIDGES.name, false).verdict(Verdict::Accept);
    });
    t.rule("ours", |r| {
        r.counter().verdict(Verdict::Drop);
    });
}

/// Ways to a container without translation: modes `nat-unprotected` and `routed`.
fn direct_rules(t: &mut Transaction<'_>, sets: &FamilySets) {
    t.rule("ours", |r| {
        r.family(sets.family).ifname_in(Meta::Oifname, sets.open.name, true);
        r.verdict(Verdict::Accept);
    });
    t.rule("ours", |r| {
        destination_key(r, sets.family);
        r.lookup(sets.direct.name, false).verdict(Verdict::Accept);
    });
    let icmp: u8 = if sets.family == Family::Ip6 { 58 } else { 1 };
    t.rule("ours", |r| {
        r.family(sets.family).ifname_in(Meta::Oifname, sets.routed.name, true);
        r.meta(Meta::L4proto, REG).cmp(REG, true, &[icmp]).verdict(Verdict::Accept);
    });
}

fn nat_rules(t: &mut Transaction<'_>) {
    t.rule("prerouting", |r| {
        r.ifname_in(Meta::Iifname, PARTED.name, true).verdict(Verdict::Return);
    });
    t.rule("prerouting", |r| {
        r.local_destination().verdict(Verdict::Jump("published"));
    });
    // What the host sends to its loopback is the forwarders' business.
    t.rule("output", |r| {
        r.family(Family::Ip).loopback4_destination().verdict(Verdict::Return);
    });
    t.rule("output", |r| {
        r.family(Family::Ip6).address(Family::Ip6, false, REG);
        r.cmp(REG, true, &Ipv6Addr::LOCALHOST.octets()).verdict(Verdict::Return);
    });
    t.rule("output", |r| {
        r.local_destination().verdict(Verdict::Jump("published"));
    });
    for sets in [&SETS4, &SETS6] {
        let width = if sets.family == Family::Ip6 { 4 } else { 1 };
        t.rule("published", |r| {
            destination_key(r, sets.family);
            r.lookup_map(sets.one.name).nat(false, sets.family, REG, Some(REG + width));
        });
        t.rule("published", |r| {
            r.family(sets.family).proto_port(REG);
            r.lookup_map(sets.any.name).nat(false, sets.family, REG, Some(REG + width));
        });
        t.rule("postrouting", |r| {
            r.family(sets.family).ifname_in(Meta::Oifname, BRIDGES.name, false);
            r.address(sets.family, true, REG).lookup_map(sets.snat.name);
            r.nat(true, sets.family, REG, None);
        });
        t.rule("postrouting", |r| {
            r.family(sets.family).ifname_in(Meta::Oifname, BRIDGES.name, false);
            r.address(sets.family, true, REG).lookup(sets.masquerade.name, false).masquerade();
        });
        // From a container through a published port to a container (itself
        // perhaps): without this the answer would not come back this way.
        t.rule("postrouting", |r| {
            r.family(sets.family).was_dnat().ifname_in(Meta::Oifname, BRIDGES.name, true);
            r.address(sets.family, true, REG).lookup(sets.local.name, false).masquerade();
        });
    }
}

fn add(elements: &mut Elements, set: &SetSpec, key: Vec<u8>, data: Vec<u8>) {
    elements.entry(set.name).or_default().push(Element { key, data, end: false });
}

fn add_subnet(elements: &mut Elements, set: &SetSpec, subnet: &Subnet, data: Vec<u8>) {
    let list = elements.entry(set.name).or_default();
    list.push(Element { key: octets(subnet.network()), data, end: false });
    // A subnet at the very end of the address space has no element after it.
    if let Some(after) = subnet.next() {
        list.push(Element { key: octets(after.network()), data: Vec::new(), end: true });
    }
}

fn network_elements(elements: &mut Elements, network: &BridgeNetwork) {
    let name = ifname_key(&network.bridge);
    add(elements, &BRIDGES, name.clone(), Vec::new());
    if network.internal {
        add(elements, &INTERNAL, name.clone(), Vec::new());
    }
    if network.icc {
        add(elements, &LINKS, [name.clone(), name.clone()].concat(), Vec::new());
    } else {
        add(elements, &PARTED, name.clone(), Vec::new());
    }
    for ipv4 in [true, false] {
        let sets = sets_of(ipv4);
        match network.mode(ipv4) {
            GatewayMode::NatUnprotected => add(elements, &sets.open, name.clone(), Vec::new()),
            GatewayMode::Routed => add(elements, &sets.routed, name.clone(), Vec::new()),
            GatewayMode::Nat | GatewayMode::Isolated => {}
        }
    }
    for subnet in &network.subnets {
        let sets = sets_of(subnet.is_ipv4());
        add_subnet(elements, &sets.local, subnet, Vec::new());
        let translated =
            !matches!(network.mode(subnet.is_ipv4()), GatewayMode::Routed | GatewayMode::Isolated);
        if network.internal || !network.masquerade || !translated {
            continue;
        }
        let source = network.host_addresses.iter().find(|a| a.is_ipv4() == subnet.is_ipv4());
        match source {
            Some(source) => add_subnet(elements, &sets.snat, subnet, octets(*source)),
            None => add_subnet(elements, &sets.masquerade, subnet, Vec::new()),
        }
    }
}

/// The elements that ports are made of.
pub(crate) fn port_elements<'a>(
    ports: impl Iterator<Item = &'a PublishedPort>,
    desired: &Desired,
) -> Elements {
    let mut elements = Elements::new();
    for port in ports {
        let ipv4 = port.container_ip.is_ipv4();
        let proto_port = proto_port_key(port.proto.number(), port.host_port);
        let host_key = || [octets(port.host_ip), proto_port.to_vec()].concat();
        if port.host_ip.is_loopback() {
            add(&mut elements, &sets_of(port.host_ip.is_ipv4()).loopback, host_key(), Vec::new());
            continue;
        }
        if port.host_ip.is_ipv4() != ipv4 {
            continue;
        }
        let sets = sets_of(ipv4);
        if mode_of(port, desired) == GatewayMode::Routed {
            let inner = proto_port_key(port.proto.number(), port.container_port);
            add(
                &mut elements,
                &sets.direct,
                [octets(port.container_ip), inner.to_vec()].concat(),
                Vec::new(),
            );
            continue;
        }
        let [hi, lo] = port.container_port.to_be_bytes();
        let target = [octets(port.container_ip), vec![hi, lo, 0, 0]].concat();
        if port.host_ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            || port.host_ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        {
            add(&mut elements, &sets.any, proto_port.to_vec(), target);
        } else {
            add(&mut elements, &sets.one, host_key(), target);
        }
    }
    elements
}

fn mode_of(port: &PublishedPort, desired: &Desired) -> GatewayMode {
    let ip = port.container_ip;
    desired
        .networks
        .iter()
        .find(|n| n.subnets.iter().any(|s| s.contains(ip)))
        .map_or(GatewayMode::Nat, |n| n.mode(ip.is_ipv4()))
}
