//! What the kernel tells about links, addresses and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::link::{
    ALIAS_PREFIX, IFF_UP, IFLA_ADDRESS, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO,
    IFLA_MASTER, IFLA_MTU,
};
use crate::netlink::{attributes, ne32, text};
use crate::subnet::{Mac, Subnet};

/// `IFLA_STATS64`.
pub(crate) const IFLA_STATS64: u16 = 23;

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `bridge`, `veth`, …; none for physical devices and `lo`.
    pub kind: Option<String>,
    /// MAC, if it is an Ethernet-like device.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Its alias.
    pub alias: Option<String>,
    pub(crate) stats64: Vec<u8>,
}

impl LinkInfo {
    /// Whether it is a bridge that a gantry daemon made.
    pub fn is_owned_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
            && self.alias.as_deref().is_some_and(|alias| alias.starts_with(ALIAS_PREFIX))
    }
}

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressInfo {
    /// Index of the link.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
}

/// A unicast route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteInfo {
    /// Destination; the default route is `0.0.0.0/0` or `::/0`.
    pub dst: Subnet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Index of the outgoing link (none for multipath).
    pub oif: Option<u32>,
    /// Routing table; 254 is main.
    pub table: u32,
}

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RTN_UNICAST: u8 = 1;

pub(crate) fn parse_link(payload: &[u8]) -> Option<LinkInfo> {
    let index = ne32(payload.get(4..)?)?;
    let link_flags = ne32(payload.get(8..)?)?;
    let all = attributes(payload.get(16..)?);
    let kind =
        all.get(IFLA_LINKINFO).and_then(|info| attributes(info).get(IFLA_INFO_KIND)).map(text);
    Some(LinkInfo {
        index,
        name: text(all.get(IFLA_IFNAME)?),
        kind,
        mac: all.get(IFLA_ADDRESS).and_then(|a| a.try_into().ok()).map(Mac),
        mtu: all.get(IFLA_MTU).and_then(ne32).unwrap_or(0),
        up: link_flags & IFF_UP != 0,
        master: all.get(IFLA_MASTER).and_then(ne32),
        alias: all.get(IFLA_IFALIAS).map(text),
        stats64: all.get(IFLA_STATS64).unwrap_or_default().to_vec(),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|b| IpAddr::V4(Ipv4Addr::from(b))),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|b| IpAddr::V6(Ipv6Addr::from(b))),
        _ => None,
    }
}

pub(crate) fn parse_address(payload: &[u8]) -> Option<AddressInfo> {
    let prefix = *payload.get(1)?;
    let index = ne32(payload.get(4..)?)?;
    let all = attributes(payload.get(8..)?);
    let ip = all.get(IFA_LOCAL).or_else(|| all.get(IFA_ADDRESS)).and_then(address)?;
    Some(AddressInfo { index, ip, prefix })
}

pub(crate) fn parse_route(payload: &[u8]) -> Option<RouteInfo> {
    let (family, prefix, kind) = (*payload.first()?, *payload.get(1)?, *payload.get(7)?);
    if kind != RTN_UNICAST {
        return None;
    }
    let all = attributes(payload.get(12..)?);
    let any = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let dst = match all.get(RTA_DST) {
        Some(bytes) => address(bytes)?,
        None => any,
    };
    Some(RouteInfo {
        dst: Subnet::new(dst, prefix).ok()?,
        gateway: all.get(RTA_GATEWAY).and_then(address),
        oif: all.get(RTA_OIF).and_then(ne32),
        table: all
            .get(RTA_TABLE)
            .and_then(ne32)
            .or_else(|| payload.get(4).map(|t| u32::from(*t)))?,
    })
}
