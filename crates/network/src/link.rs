//! Links, addresses and routes over rtnetlink.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::netlink::{Batch, Socket, flags};
use crate::ns::Namespace;
use crate::subnet::{Mac, Subnet};
use crate::sysctl;

pub use crate::link_info::{AddressInfo, LinkInfo, RouteInfo};
use crate::link_info::{parse_address, parse_link, parse_route};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_SETLINK: u16 = 19;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_GETADDR: u16 = 22;
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_GETROUTE: u16 = 26;

pub(crate) const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
pub(crate) const IFLA_LINK: u16 = 5;
pub(crate) const IFLA_MASTER: u16 = 10;
pub(crate) const IFLA_LINKINFO: u16 = 18;
pub(crate) const IFLA_IFALIAS: u16 = 20;
pub(crate) const IFLA_NET_NS_FD: u16 = 28;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
pub(crate) const IFLA_INFO_SLAVE_KIND: u16 = 4;
pub(crate) const IFLA_INFO_SLAVE_DATA: u16 = 5;
pub(crate) const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_FLAGS: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// No duplicate address detection: the address is ours by allocation, and
/// detection would keep it unusable for a second.
const IFA_F_NODAD: u8 = 0x02;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
pub(crate) const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
/// How long links on a bridge that has to go are waited for, and how often they are looked at.
const PORTS_SETTLE: Duration = Duration::from_secs(2);
const PORTS_STEP: Duration = Duration::from_millis(50);
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// IFNAMSIZ without its terminating zero.
const MAX_NAME: usize = 15;
/// What the alias of a bridge of ours begins with.
pub(crate) const ALIAS_PREFIX: &str = "gantry:";

/// A bridge that is wanted.
#[derive(Debug, Clone)]
pub struct BridgeConfig {
    /// Interface name.
    pub name: String,
    /// Whose it is (a network's id); kept in the link's alias.
    pub owner: String,
    /// Its MAC; random when not given. Fixed either way, so that it does not
    /// change as ports come and go.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Addresses with prefix lengths (the gateways).
    pub addresses: Vec<(IpAddr, u8)>,
    /// Whether IPv6 stays on; without it the bridge has no link-local address.
    pub ipv6: bool,
}

/// A bridge that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    /// Interface index.
    pub index: u32,
    /// Whether this call created it.
    pub created: bool,
}

/// Mode of a macvlan link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacvlanMode {
    /// No traffic between links of one parent.
    Private,
    /// Traffic between them goes out and is sent back by the switch.
    Vepa,
    /// Traffic between them is switched here.
    Bridge,
    /// One link takes over the parent.
    Passthru,
}

/// Mode of an ipvlan link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpvlanMode {
    /// Switches on addresses, with broadcast.
    L2,
    /// Routes, without broadcast.
    L3,
    /// Routes, through netfilter of the host.
    L3s,
}

/// Which neighbours an ipvlan link may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpvlanFlag {
    /// All of the same parent.
    Bridge,
    /// None of them.
    Private,
    /// Through the external switch.
    Vepa,
}

/// What kind of link to put on a parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubKind {
    /// macvlan.
    Macvlan(MacvlanMode),
    /// ipvlan.
    Ipvlan(IpvlanMode, IpvlanFlag),
}

/// A macvlan or ipvlan link, made directly inside the target namespace.
#[derive(Debug, Clone)]
pub struct SubLinkConfig {
    /// Name inside the namespace.
    pub ifname: String,
    /// The parent's name on the host.
    pub parent: String,
    /// Kind and mode.
    pub kind: SubKind,
    /// MAC (macvlan only).
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
}

/// Checks an interface name by the kernel's rules.
///
/// # Errors
/// [`Error::LinkName`].
pub fn check_name(name: &str) -> Result<(), Error> {
    let bad_byte = |b: u8| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace();
    if name.is_empty()
        || name.len() > MAX_NAME
        || name == "."
        || name == ".."
        || name.bytes().any(bad_byte)
    {
        return Err(Error::LinkName { name: name.to_owned() });
    }
    Ok(())
}

/// A routing socket. It acts in the namespace where it was opened, whichever
/// thread uses it.
#[derive(Debug)]
pub struct Rtnl {
    pub(crate) socket: Socket,
    /// The namespace, when it is not the calling thread's (for sysctls).
    ns: Option<OwnedFd>,
}

impl Rtnl {
    /// Opens one in the calling thread's namespace.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::route()?, ns: None })
    }

    /// Opens one inside `ns`.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the socket not opened.
    pub fn open_in(ns: &Namespace) -> Result<Self, Error> {
        let socket = ns.run(Socket::route)??;
        Ok(Self { socket, ns: Some(ns.duplicate_fd()?) })
    }

    /// All links.
    ///
    /// # Errors
    /// When the dump fails.
    pub fn links(&mut self) -> Result<Vec<LinkInfo>, Error> {
        let events = self.socket.dump(RTM_GETLINK, &ifinfo(0, 0, 0), "list links", |_| {})?;
        Ok(events.iter().filter_map(|e| parse_link(&e.payload)).collect())
    }

    /// The link of this name, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than absence.
    pub fn link(&mut self, name: &str) -> Result<Option<LinkInfo>, Error> {
        check_name(name)?;
        let mut batch = self.socket.batch();
        let operation = format!("look up link {name}");
        batch.begin(RTM_GETLINK, 0, &ifinfo(0, 0, 0), operation.as_str());
        batch.str(IFLA_IFNAME, name);
        let event = self.socket.get(&mut batch, &operation)?;
        event.map(|e| parse_link(&e.payload).ok_or(Error::Reply { operation })).transpose()
    }

    /// All addresses.
    ///
    /// # Errors
    /// When the dump fails.
    pub fn addresses(&mut self) -> Result<Vec<AddressInfo>, Error> {
        let events = self.socket.dump(RTM_GETADDR, &[0; 8], "list addresses", |_| {})?;
        Ok(events.iter().filter_map(|e| parse_address(&e.payload)).collect())
    }

    /// All unicast routes of all tables; a default route is `0.0.0.0/0` or `::/0`.
    ///
    /// # Errors
    /// When the dump fails.
    pub fn routes(&mut self) -> Result<Vec<RouteInfo>, Error> {
        let mut routes = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut fixed = [0u8; 12];
            fixed[0] = family;
            match self.socket.dump(RTM_GETROUTE, &fixed, "list routes", |_| {}) {
                Ok(events) => routes.extend(events.iter().filter_map(|e| parse_route(&e.payload))),
                // A kernel without IPv6.
                Err(error) if family == AF_INET6 && error.errno() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    /// The subnets that the host itself uses: its routes but the default, and
    /// its interfaces' own, without loopback, link-local and multicast. New
    /// pools must not overlap with them.
    ///
    /// # Errors
    /// When a dump fails.
    pub fn host_subnets(&mut self) -> Result<Vec<Subnet>, Error> {
        let mut subnets: Vec<Subnet> = self.routes()?.into_iter().map(|r| r.dst).collect();
        subnets.extend(self.addresses()?.iter().filter_map(|a| Subnet::new(a.ip, a.prefix).ok()));
        subnets.retain(|s| {
            let local = match s.network() {
                IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_multicast(),
                IpAddr::V6(ip) => {
                    ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast()
                }
            };
            s.prefix() > 0 && !local
        });
        subnets.sort_unstable();
        subnets.dedup();
        Ok(subnets)
    }

    /// Creates the bridge, or takes it up again if it is ours: a bridge whose
    /// alias names the same owner. Addresses, MTU and state are brought to what
    /// is wanted; addresses of an earlier configuration are not removed.
    ///
    /// A bridge of another owner of our kind is left over from a daemon that
    /// does not run, since the caller holds the [`Claim`](crate::claim::Claim)
    /// on its name. Without links on it nothing is lost, and a new one takes its
    /// place.
    ///
    /// # Errors
    /// [`Error::BridgeInUse`] when another owner's bridge has links on it,
    /// [`Error::ForeignLink`] when the name belongs to something else.
    pub fn bridge_ensure(&mut self, config: &BridgeConfig) -> Result<Bridge, Error> {
        check_name(&config.name)?;
        let alias = format!("{ALIAS_PREFIX}{}", config.owner);
        let (index, created) = match self.link(&config.name)? {
            Some(found) if found.is_owned_bridge() && found.alias.as_deref() == Some(&alias) => {
                (found.index, false)
            }
            Some(found) if found.is_owned_bridge() => {
                let ports = self.ports(found.index)?;
                if !ports.is_empty() {
                    return Err(Error::BridgeInUse { name: config.name.clone(), ports });
                }
                self.link_delete(&config.name)?;
                (self.bridge_create(config, &alias)?, true)
            }
            Some(found) => {
                let kind = found.kind.unwrap_or_else(|| "device".to_owned());
                let owner = found.alias.map(|a| format!(" with alias {a:?}")).unwrap_or_default();
                return Err(Error::ForeignLink {
                    name: config.name.clone(),
                    found: format!("a {kind}{owner}"),
                });
            }
            None => (self.bridge_create(config, &alias)?, true),
        };
        let finished = self.bridge_finish(config, index, created);
        if finished.is_err() && created {
            // The error that is returned is the cause; a leftover bridge is
            // ours by its alias and is taken up by the next attempt.
            self.link_delete(&config.name).ok();
        }
        finished.map(|()| Bridge { index, created })
    }

    fn bridge_create(&mut self, config: &BridgeConfig, alias: &str) -> Result<u32, Error> {
        let name = &config.name;
        let mac = match config.mac {
            Some(mac) => mac,
            None => Mac::random().map_err(crate::error::system("make", "a random MAC"))?,
        };
        let mut batch = self.socket.batch();
        batch.begin(
            RTM_NEWLINK,
            flags::ACK | flags::CREATE | flags::EXCL,
            &ifinfo(0, 0, 0),
            format!("create bridge {name}"),
        );
        batch.str(IFLA_IFNAME, name);
        batch.attr(IFLA_ADDRESS, &mac.0);
        batch.nest(IFLA_LINKINFO, |b| b.str(IFLA_INFO_KIND, "bridge"));
        batch.begin(RTM_SETLINK, flags::ACK, &ifinfo(0, 0, 0), format!("mark bridge {name}"));
        batch.str(IFLA_IFNAME, name);
        batch.attr(IFLA_IFALIAS, alias.as_bytes());
        self.socket.request(&mut batch)?;
        let link = self.link(name)?.ok_or_else(|| Error::NoSuchLink { name: name.clone() })?;
        Ok(link.index)
    }

    fn bridge_finish(
        &mut self,
        config: &BridgeConfig,
        index: u32,
        created: bool,
    ) -> Result<(), Error> {
        let name = &config.name;
        let disable = if config.ipv6 { "0" } else { "1" };
        for (key, value) in [("accept_ra", "0"), ("disable_ipv6", disable)] {
            match self.sysctl(&format!("ipv6/conf/{name}/{key}"), value) {
                Err(error) if error.is_not_found() && !config.ipv6 => {}
                other => other?,
            }
        }
        let mut batch = self.socket.batch();
        if let Some(mtu) = config.mtu {
            batch.begin(
                RTM_SETLINK,
                flags::ACK,
                &ifinfo(index, 0, 0),
                format!("set the MTU of bridge {name} to {mtu}"),
            );
            batch.u32(IFLA_MTU, mtu);
        }
        if !created && let Some(mac) = config.mac {
            batch.begin(
                RTM_SETLINK,
                flags::ACK,
                &ifinfo(index, 0, 0),
                format!("set the MAC of bridge {name} to {mac}"),
            );
            batch.attr(IFLA_ADDRESS, &mac.0);
        }
        for (ip, prefix) in &config.addresses {
            put_address(&mut batch, index, *ip, *prefix, flags::REPLACE);
        }
        put_up(&mut batch, index);
        self.socket.request(&mut batch)
    }

    /// Uses a bridge that the user named and keeps: nothing about it changes.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`], or [`Error::ForeignLink`] when it is no bridge.
    pub fn bridge_existing(&mut self, name: &str) -> Result<Bridge, Error> {
        let link = self.link(name)?.ok_or_else(|| Error::NoSuchLink { name: name.to_owned() })?;
        match link.kind.as_deref() {
            Some("bridge") => Ok(Bridge { index: link.index, created: false }),
            kind => Err(Error::ForeignLink {
                name: name.to_owned(),
                found: format!("a {}", kind.unwrap_or("device")),
            }),
        }
    }

    /// Deletes a bridge if its alias names `owner`; tells whether it was there.
    ///
    /// # Errors
    /// [`Error::ForeignLink`] when the name belongs to something else.
    pub fn bridge_delete(&mut self, name: &str, owner: &str) -> Result<bool, Error> {
        match self.link(name)? {
            None => Ok(false),
            Some(link)
                if link.alias.as_deref() == Some(format!("{ALIAS_PREFIX}{owner}").as_str()) =>
            {
                self.link_delete(name)
            }
            Some(link) => Err(Error::ForeignLink {
                name: name.to_owned(),
                found: format!("a {}", link.kind.as_deref().unwrap_or("device")),
            }),
        }
    }

    /// Names of the links on a bridge, if it is there and its alias names `owner`; those of namespaces
    /// that end at this moment are waited out for up to two seconds.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bridge_ports(&mut self, name: &str, owner: &str) -> Result<Vec<String>, Error> {
        let alias = format!("{ALIAS_PREFIX}{owner}");
        match self.link(name)? {
            Some(link) if link.alias.as_deref() == Some(&alias) => self.ports(link.index),
            _ => Ok(Vec::new()),
        }
    }

    /// The kernel removes the links of a namespace a while after its last process.
    fn ports(&mut self, bridge: u32) -> Result<Vec<String>, Error> {
        let deadline = Instant::now() + PORTS_SETTLE;
        loop {
            let links = self.links()?.into_iter();
            let ports: Vec<String> =
                links.filter(|l| l.master == Some(bridge)).map(|l| l.name).collect();
            if ports.is_empty() || Instant::now() >= deadline {
                return Ok(ports);
            }
            std::thread::sleep(PORTS_STEP);
        }
    }

    /// The first link with an address whose subnet overlaps with one of these,
    /// and that subnet.
    ///
    /// # Errors
    /// When a dump fails.
    pub fn link_in_subnets(
        &mut self,
        subnets: &[Subnet],
    ) -> Result<Option<(LinkInfo, Subnet)>, Error> {
        let links = self.links()?;
        for address in self.addresses()? {
            let Ok(subnet) = Subnet::new(address.ip, address.prefix) else { continue };
            if !subnets.iter().any(|s| s.overlaps(&subnet)) {
                continue;
            }
            if let Some(link) = links.iter().find(|l| l.index == address.index) {
                return Ok(Some((link.clone(), subnet)));
            }
        }
        Ok(None)
    }

    /// Deletes a link; tells whether it was there. Deleting a veth waits for a
    /// grace period (10 to 30 ms); with its namespace it goes in the background.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn link_delete(&mut self, name: &str) -> Result<bool, Error> {
        check_name(name)?;
        let mut batch = self.socket.batch();
        batch.begin(RTM_DELLINK, flags::ACK, &ifinfo(0, 0, 0), format!("delete link {name}"));
        batch.str(IFLA_IFNAME, name);
        match self.socket.request(&mut batch) {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&mut self, index: u32) -> Result<(), Error> {
        let mut batch = self.socket.batch();
        put_up(&mut batch, index);
        self.socket.request(&mut batch)
    }

    /// Adds an address; one that is there already is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn address_add(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<(), Error> {
        let mut batch = self.socket.batch();
        put_address(&mut batch, index, ip, prefix, flags::REPLACE);
        self.socket.request(&mut batch)
    }

    /// Adds a route of the main table; without a gateway it is on-link.
    ///
    /// # Errors
    /// When the kernel refuses; EEXIST when there is such a route.
    pub fn route_add(
        &mut self,
        dst: Subnet,
        gateway: Option<IpAddr>,
        oif: u32,
    ) -> Result<(), Error> {
        let mut batch = self.socket.batch();
        put_route(&mut batch, dst, gateway, oif);
        self.socket.request(&mut batch)
    }

    /// Makes a macvlan or ipvlan link inside `ns`, up.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the kernel does not have the kind.
    pub fn sublink_create(&mut self, ns: &Namespace, config: &SubLinkConfig) -> Result<(), Error> {
        check_name(&config.ifname)?;
        let parent = self
            .link(&config.parent)?
            .ok_or_else(|| Error::NoSuchLink { name: config.parent.clone() })?;
        let kind = match config.kind {
            SubKind::Macvlan(_) => "macvlan",
            SubKind::Ipvlan(..) => "ipvlan",
        };
        let mut batch = self.socket.batch();
        batch.begin(
            RTM_NEWLINK,
            flags::ACK | flags::CREATE | flags::EXCL,
            &ifinfo(0, IFF_UP, IFF_UP),
            format!("create {kind} {} on {}", config.ifname, config.parent),
        );
        batch.str(IFLA_IFNAME, &config.ifname);
        batch.u32(IFLA_LINK, parent.index);
        batch.attr(IFLA_NET_NS_FD, &ns.as_fd().as_raw_fd().to_ne_bytes());
        if let Some(mac) = config.mac {
            batch.attr(IFLA_ADDRESS, &mac.0);
        }
        if let Some(mtu) = config.mtu {
            batch.u32(IFLA_MTU, mtu);
        }
        batch.nest(IFLA_LINKINFO, |b| {
            b.str(IFLA_INFO_KIND, kind);
            b.nest(IFLA_INFO_DATA, |b| put_sub_kind(b, config.kind));
        });
        self.socket.request(&mut batch).map_err(|e| unsupported(e, kind))
    }

    /// Makes a VLAN sub-interface (`eth0.10`) and sets it up.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the kernel has no VLANs.
    pub fn vlan_create(&mut self, name: &str, parent: &str, id: u16) -> Result<(), Error> {
        check_name(name)?;
        let parent_link =
            self.link(parent)?.ok_or_else(|| Error::NoSuchLink { name: parent.to_owned() })?;
        let mut batch = self.socket.batch();
        batch.begin(
            RTM_NEWLINK,
            flags::ACK | flags::CREATE | flags::EXCL,
            &ifinfo(0, IFF_UP, IFF_UP),
            format!("create VLAN {id} {name} on {parent}"),
        );
        batch.str(IFLA_IFNAME, name);
        batch.u32(IFLA_LINK, parent_link.index);
        batch.nest(IFLA_LINKINFO, |b| {
            b.str(IFLA_INFO_KIND, "vlan");
            b.nest(IFLA_INFO_DATA, |b| b.attr(IFLA_VLAN_ID, &id.to_ne_bytes()));
        });
        self.socket.request(&mut batch).map_err(|e| unsupported(e, "vlan"))
    }

    /// Writes a sysctl of this socket's namespace.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<(), Error> {
        match &self.ns {
            None => sysctl::write(key, value),
            Some(fd) => {
                let fd = fd.try_clone().map_err(crate::error::system("duplicate", "descriptor"))?;
                Namespace::from_fd(fd).run(|| sysctl::write(key, value))?
            }
        }
    }
}

fn unsupported(error: Error, kind: &str) -> Error {
    match error {
        Error::Netlink { source, .. } if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Error::Unsupported { what: format!("link kind {kind}"), source }
        }
        other => other,
    }
}

fn put_sub_kind(b: &mut Batch, kind: SubKind) {
    match kind {
        SubKind::Macvlan(mode) => {
            let mode: u32 = match mode {
                MacvlanMode::Private => 1,
                MacvlanMode::Vepa => 2,
                MacvlanMode::Bridge => 4,
                MacvlanMode::Passthru => 8,
            };
            b.u32(IFLA_MACVLAN_MODE, mode);
        }
        SubKind::Ipvlan(mode, flag) => {
            let mode: u16 = match mode {
                IpvlanMode::L2 => 0,
                IpvlanMode::L3 => 1,
                IpvlanMode::L3s => 2,
            };
            let flag: u16 = match flag {
                IpvlanFlag::Bridge => 0,
                IpvlanFlag::Private => 1,
                IpvlanFlag::Vepa => 2,
            };
            b.attr(IFLA_IPVLAN_MODE, &mode.to_ne_bytes());
            b.attr(IFLA_IPVLAN_FLAGS, &flag.to_ne_bytes());
        }
    }
}

/// `struct ifinfomsg`.
pub(crate) fn ifinfo(index: u32, link_flags: u32, change: u32) -> [u8; 16] {
    let mut b = [0u8; 16];
    b[4..8].copy_from_slice(&index.to_ne_bytes());
    b[8..12].copy_from_slice(&link_flags.to_ne_bytes());
    b[12..16].copy_from_slice(&change.to_ne_bytes());
    b
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// The address's bytes in network order.
pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub(crate) fn put_up(batch: &mut Batch, index: u32) {
    batch.begin(
        RTM_SETLINK,
        flags::ACK,
        &ifinfo(index, IFF_UP, IFF_UP),
        format!("set link {index} up"),
    );
}

pub(crate) fn put_address(batch: &mut Batch, index: u32, ip: IpAddr, prefix: u8, how: u16) {
    let nodad = if ip.is_ipv4() { 0 } else { IFA_F_NODAD };
    let mut fixed = [family(ip), prefix, nodad, 0, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    batch.begin(
        RTM_NEWADDR,
        flags::ACK | flags::CREATE | how,
        &fixed,
        format!("add address {ip}/{prefix} to link {index}"),
    );
    batch.attr(IFA_LOCAL, &octets(ip));
    batch.attr(IFA_ADDRESS, &octets(ip));
    if let (IpAddr::V4(_), Ok(subnet)) = (ip, Subnet::new(ip, prefix))
        && prefix < 31
    {
        batch.attr(IFA_BROADCAST, &octets(subnet.last()));
    }
}

pub(crate) fn put_route(batch: &mut Batch, dst: Subnet, gateway: Option<IpAddr>, oif: u32) {
    let scope = if gateway.is_some() { 0 } else { RT_SCOPE_LINK };
    let fixed = [
        family(dst.network()),
        dst.prefix(),
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_BOOT,
        scope,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    let via = gateway.map(|g| format!(" via {g}")).unwrap_or_default();
    batch.begin(
        RTM_NEWROUTE,
        flags::ACK | flags::CREATE | flags::EXCL,
        &fixed,
        format!("add route to {dst}{via}"),
    );
    if dst.prefix() > 0 {
        batch.attr(RTA_DST, &octets(dst.network()));
    }
    if let Some(gateway) = gateway {
        batch.attr(RTA_GATEWAY, &octets(gateway));
    }
    batch.u32(RTA_OIF, oif);
}

/// Flags of a bridge port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortFlags {
    /// No traffic to other isolated ports (ICC off).
    pub isolated: bool,
    /// Frames may leave through the port they came from.
    pub hairpin: bool,
}

pub(crate) fn put_port_flags(batch: &mut Batch, ifname: &str, port: PortFlags) {
    batch.begin(
        RTM_NEWLINK,
        flags::ACK,
        &ifinfo(0, 0, 0),
        format!("set bridge port flags of {ifname}"),
    );
    batch.str(IFLA_IFNAME, ifname);
    batch.nest(IFLA_LINKINFO, |b| {
        b.str(IFLA_INFO_SLAVE_KIND, "bridge");
        b.nest(IFLA_INFO_SLAVE_DATA, |b| {
            b.attr(IFLA_BRPORT_MODE, &[u8::from(port.hairpin)]);
            b.attr(IFLA_BRPORT_ISOLATED, &[u8::from(port.isolated)]);
        });
    });
}
