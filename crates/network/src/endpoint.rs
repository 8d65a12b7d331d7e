//! Attaching a namespace to a bridge: one message to the host's namespace makes
//! the veth pair with its peer inside, one batch inside sets addresses and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use serde::{Deserialize, Serialize};

use crate::error::{Error, system};
use crate::link::{
    self, IFF_UP, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO,
    IFLA_MASTER, IFLA_MTU, IFLA_NET_NS_FD, PortFlags, RTM_NEWLINK, Rtnl, SubLinkConfig,
    VETH_INFO_PEER, ifinfo, put_address, put_port_flags, put_route,
};
use crate::netlink::flags;
use crate::ns::Namespace;
use crate::subnet::{Mac, Subnet};

/// How often a random host name is drawn again when it is taken.
const NAME_ATTEMPTS: usize = 8;
/// Interface numbers that [`free_ifname`] tries.
const MAX_INTERFACES: usize = 1024;

/// Addresses and routes of an interface inside a namespace.
#[derive(Debug, Clone, Default)]
pub struct IpConfig {
    /// IPv4 address and prefix length.
    pub v4: Option<(Ipv4Addr, u8)>,
    /// IPv6 address and prefix length; none leaves IPv6 off on the interface.
    pub v6: Option<(Ipv6Addr, u8)>,
    /// More addresses (`--link-local-ip`), with prefix lengths.
    pub extra: Vec<(IpAddr, u8)>,
    /// IPv4 default route; none for internal networks and secondary interfaces.
    pub gateway4: Option<Ipv4Addr>,
    /// IPv6 default route.
    pub gateway6: Option<Ipv6Addr>,
    /// Default routes straight out of the interface (ipvlan L3).
    pub default_on_link: bool,
    /// Further routes.
    pub routes: Vec<(Subnet, Option<IpAddr>)>,
}

/// An interface on a bridge that is wanted.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// The bridge's name on the host.
    pub bridge: String,
    /// The interface's name inside (`eth0`).
    pub ifname: String,
    /// The veth's name on the host; random `veth…` when not given.
    pub host_ifname: Option<String>,
    /// MAC inside; derived from the IPv4 address, or random without one.
    pub mac: Option<Mac>,
    /// MTU in bytes of both ends.
    pub mtu: Option<u32>,
    /// Addresses and routes.
    pub ip: IpConfig,
    /// Bridge port flags: `isolated` for ICC off; `hairpin` for an endpoint with
    /// published ports, which it may then use itself even where br_netfilter
    /// makes the bridge switch such packets instead of routing them.
    pub port: PortFlags,
}

/// An interface that was attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The veth's name on the host (for macvlan and ipvlan: empty).
    pub host_ifname: String,
    /// The interface's name inside.
    pub ifname: String,
    /// MAC inside; none for ipvlan, which has its parent's.
    pub mac: Option<Mac>,
}

/// Attaches `ns` to a bridge of the namespace that `host` works in.
///
/// On failure nothing is left behind.
///
/// # Errors
/// [`Error::NoSuchLink`] without the bridge; EEXIST when a name is taken.
pub fn attach(host: &mut Rtnl, ns: &Namespace, config: &EndpointConfig) -> Result<Endpoint, Error> {
    link::check_name(&config.ifname)?;
    let bridge = host
        .link(&config.bridge)?
        .ok_or_else(|| Error::NoSuchLink { name: config.bridge.clone() })?;
    let mac = match (config.mac, config.ip.v4) {
        (Some(mac), _) => mac,
        (None, Some((ip, _))) => Mac::from_ipv4(ip),
        (None, None) => Mac::random().map_err(system("make", "a random MAC"))?,
    };
    let wanted = Pair { bridge: bridge.index, mac, mtu: config.mtu.unwrap_or(bridge.mtu) };
    let host_ifname = create_pair(host, ns, config, &wanted)?;
    if let Err(error) = configure(ns, &config.ifname, &config.ip) {
        // The cause is returned; should this fail too, the veth goes with the
        // namespace.
        host.link_delete(&host_ifname).ok();
        return Err(error);
    }
    Ok(Endpoint { host_ifname, ifname: config.ifname.clone(), mac: Some(mac) })
}

/// Makes a macvlan or ipvlan interface in `ns` and configures it.
///
/// # Errors
/// See [`Rtnl::sublink_create`].
pub fn attach_sublink(
    host: &mut Rtnl,
    ns: &Namespace,
    config: &SubLinkConfig,
    ip: &IpConfig,
) -> Result<Endpoint, Error> {
    host.sublink_create(ns, config)?;
    if let Err(error) = configure(ns, &config.ifname, ip) {
        // The cause is returned; the link goes with the namespace at the latest.
        ns.with_route(|route| route.link_delete(&config.ifname)).ok();
        return Err(error);
    }
    let link = ns.with_route(|route| route.link(&config.ifname))?;
    let mac = link.and_then(|l| l.mac);
    Ok(Endpoint { host_ifname: String::new(), ifname: config.ifname.clone(), mac })
}

/// Takes an interface away from a namespace that lives on (`network
/// disconnect`). Tells whether it was there. A namespace that ends takes its
/// interfaces along, without waiting.
///
/// # Errors
/// When the kernel refuses.
pub fn detach(host: &mut Rtnl, ns: &Namespace, endpoint: &Endpoint) -> Result<bool, Error> {
    if endpoint.host_ifname.is_empty() {
        return ns.with_route(|route| route.link_delete(&endpoint.ifname));
    }
    host.link_delete(&endpoint.host_ifname)
}

/// Gives a namespace its default routes through an interface that it has. A default route that is
/// there stays.
///
/// # Errors
/// [`Error::NoSuchLink`] without the interface; when the kernel refuses.
pub fn add_default_routes(
    ns: &Namespace,
    ifname: &str,
    gateways: impl IntoIterator<Item = IpAddr>,
) -> Result<(), Error> {
    ns.with_route(|route| {
        let link =
            route.link(ifname)?.ok_or_else(|| Error::NoSuchLink { name: ifname.to_owned() })?;
        for gateway in gateways {
            match route.route_add(any_of(gateway), Some(gateway), link.index) {
                Err(error) if error.is_exists() => {}
                done => done?,
            }
        }
        Ok(())
    })
}

/// The first of `prefix0`, `prefix1`, … that is not in use inside.
///
/// # Errors
/// [`Error::LinkName`] when the name would be too long.
pub fn free_ifname(ns: &Namespace, prefix: &str) -> Result<String, Error> {
    let links = ns.with_route(|route| route.links())?;
    let name = (0..MAX_INTERFACES)
        .map(|n| format!("{prefix}{n}"))
        .find(|name| links.iter().all(|l| l.name != *name))
        .unwrap_or_else(|| format!("{prefix}{MAX_INTERFACES}"));
    link::check_name(&name)?;
    Ok(name)
}

struct Pair {
    bridge: u32,
    mac: Mac,
    mtu: u32,
}

fn create_pair(
    host: &mut Rtnl,
    ns: &Namespace,
    config: &EndpointConfig,
    pair: &Pair,
) -> Result<String, Error> {
    for attempt in 1.. {
        let name = match &config.host_ifname {
            Some(name) => name.clone(),
            None => random_name()?,
        };
        match create_named_pair(host, ns, config, pair, &name) {
            Ok(()) => return Ok(name),
            // EEXIST may also mean the name inside: then another host name
            // does not help, and the last attempt reports it.
            Err(error)
                if error.is_exists() && config.host_ifname.is_none() && attempt < NAME_ATTEMPTS => {
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::LinkName { name: config.ifname.clone() })
}

fn random_name() -> Result<String, Error> {
    let [a, b, c, d] = crate::util::random::<4>().map_err(system("make", "a random name"))?;
    Ok(format!("veth{:07x}", u32::from_ne_bytes([a, b, c, d]) & 0x0fff_ffff))
}

fn create_named_pair(
    host: &mut Rtnl,
    ns: &Namespace,
    config: &EndpointConfig,
    pair: &Pair,
    name: &str,
) -> Result<(), Error> {
    link::check_name(name)?;
    let mut batch = host.socket.batch();
    batch.begin(
        RTM_NEWLINK,
        flags::ACK | flags::CREATE | flags::EXCL,
        &ifinfo(0, IFF_UP, IFF_UP),
        format!("create veth {name} with peer {}", config.ifname),
    );
    batch.str(IFLA_IFNAME, name);
    batch.u32(IFLA_MTU, pair.mtu);
    batch.u32(IFLA_MASTER, pair.bridge);
    batch.nest(IFLA_LINKINFO, |b| {
        b.str(IFLA_INFO_KIND, "veth");
        b.nest(IFLA_INFO_DATA, |b| {
            b.nest(VETH_INFO_PEER, |b| {
                b.raw(&ifinfo(0, 0, 0));
                b.str(IFLA_IFNAME, &config.ifname);
                b.attr(IFLA_ADDRESS, &pair.mac.0);
                b.u32(IFLA_MTU, pair.mtu);
                b.attr(IFLA_NET_NS_FD, &ns.as_fd().as_raw_fd().to_ne_bytes());
            });
        });
    });
    if config.port != PortFlags::default() {
        put_port_flags(&mut batch, name, config.port);
    }
    host.socket.request(&mut batch)
}

fn configure(ns: &Namespace, ifname: &str, ip: &IpConfig) -> Result<(), Error> {
    let wants_v6 = ip.v6.is_some() || ip.extra.iter().any(|(a, _)| a.is_ipv6());
    if wants_v6 {
        let key = format!("ipv6/conf/{ifname}/disable_ipv6");
        ns.run(|| crate::sysctl::ensure(&key, "0"))??;
    }
    ns.with_route(|route| {
        let link =
            route.link(ifname)?.ok_or_else(|| Error::NoSuchLink { name: ifname.to_owned() })?;
        let mut batch = route.socket.batch();
        let v4 = ip.v4.map(|(a, p)| (IpAddr::V4(a), p));
        let v6 = ip.v6.map(|(a, p)| (IpAddr::V6(a), p));
        for (address, prefix) in v4.into_iter().chain(v6).chain(ip.extra.iter().copied()) {
            put_address(&mut batch, link.index, address, prefix, flags::REPLACE);
        }
        link::put_up(&mut batch, link.index);
        for (dst, gateway) in default_routes(ip).into_iter().chain(ip.routes.iter().copied()) {
            put_route(&mut batch, dst, gateway, link.index);
        }
        route.socket.request(&mut batch)
    })
}

/// The subnet that is everything of an address's family.
fn any_of(address: IpAddr) -> Subnet {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Subnet::new(any, 0).expect("0 is a valid prefix length")
}

fn default_routes(ip: &IpConfig) -> Vec<(Subnet, Option<IpAddr>)> {
    let any4 = any_of(Ipv4Addr::UNSPECIFIED.into());
    let any6 = any_of(Ipv6Addr::UNSPECIFIED.into());
    let mut routes = Vec::new();
    if let Some(gateway) = ip.gateway4 {
        routes.push((any4, Some(IpAddr::V4(gateway))));
    }
    if let Some(gateway) = ip.gateway6 {
        routes.push((any6, Some(IpAddr::V6(gateway))));
    }
    if ip.default_on_link {
        if ip.v4.is_some() && ip.gateway4.is_none() {
            routes.push((any4, None));
        }
        if ip.v6.is_some() && ip.gateway6.is_none() {
            routes.push((any6, None));
        }
    }
    routes
}
