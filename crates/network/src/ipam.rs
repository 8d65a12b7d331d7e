//! Address management: pools for networks, addresses in pools. Pure: no I/O;
//! the engine stores [`Ipam`] with serde.
//!
//! The texts of [`IpamError`] are Docker's, as clients match on them
//! (libnetwork's ipamapi errors and the API's IPAM validation).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::subnet::{Subnet, parse_cidr};

/// More pools than a kernel could have bridges for.
const MAX_POOLS: usize = 4096;

/// Why a pool or an address is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// The text is not a CIDR.
    #[error("invalid subnet {0}: invalid CIDR block notation")]
    Syntax(String),
    /// The text has host bits.
    #[error("invalid {what} {given}: it should be {wanted}")]
    HostBits {
        /// `subnet` or `ip-range`.
        what: &'static str,
        /// What was given.
        given: String,
        /// The same without host bits.
        wanted: Subnet,
    },
    /// Subnet and range, gateway or address are of different families.
    #[error("invalid {what} {given}: parent subnet is an IPv{family} block")]
    Family {
        /// `ip-range`, `gateway` or `auxiliary address`.
        what: &'static str,
        /// What was given.
        given: String,
        /// The subnet's family, 4 or 6.
        family: u8,
    },
    /// The range is larger than the subnet.
    #[error("invalid ip-range {range}: CIDR block is bigger than its parent subnet {subnet}")]
    RangeTooBig {
        /// The range.
        range: Subnet,
        /// The subnet.
        subnet: Subnet,
    },
    /// The range, gateway or address lies outside.
    #[error("invalid {what} {given}: parent subnet {subnet} doesn't contain {}", pronoun(.what))]
    Outside {
        /// `ip-range`, `gateway` or `auxiliary address`.
        what: &'static str,
        /// What was given.
        given: String,
        /// The subnet.
        subnet: Subnet,
    },
    /// A range without its subnet.
    #[error("no matching subnet for range {0}")]
    RangeWithoutSubnet(Subnet),
    /// A gateway without its subnet.
    #[error("no matching subnet for gateway {0}")]
    GatewayWithoutSubnet(IpAddr),
    /// An auxiliary address without its subnet.
    #[error("no matching subnet for aux-address {0}")]
    AuxWithoutSubnet(IpAddr),
    /// Another network has it.
    #[error("invalid pool request: Pool overlaps with other one on this address space")]
    Overlap {
        /// The pool that is in the way.
        other: Subnet,
    },
    /// The host itself uses it.
    #[error("invalid pool request: subnet {subnet} overlaps with the host's route to {route}")]
    HostOverlap {
        /// The subnet that was asked for.
        subnet: Subnet,
        /// The host's.
        route: Subnet,
    },
    /// Every default pool is in use.
    #[error("all predefined address pools have been fully subnetted")]
    NoPoolLeft,
    /// No such pool.
    #[error("Address space does not contain specified address pool {0}")]
    NoSuchPool(Subnet),
    /// Every address is in use.
    #[error("no available IPv{family} addresses on this network's address pools: {subnet}")]
    NoAddressLeft {
        /// The pool.
        subnet: Subnet,
        /// 4 or 6.
        family: u8,
    },
    /// The address is in use.
    #[error("Address already in use")]
    InUse(IpAddr),
    /// The address does not lie in the pool, or is its network or broadcast address.
    #[error("Requested address is out of range")]
    OutOfRange(IpAddr),
    /// A default pool that cannot be cut.
    #[error("invalid default address pool {base} with size {size}")]
    BadPoolSpec {
        /// Its base.
        base: Subnet,
        /// The wanted prefix length.
        size: u8,
    },
    /// Too many pools.
    #[error("too many address pools (limit {MAX_POOLS})")]
    TooMany,
}

fn pronoun(what: &str) -> &'static str {
    if what == "ip-range" { "ip-range" } else { "this address" }
}

/// A default pool: networks of prefix length `size` are cut from `base`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// The block.
    pub base: Subnet,
    /// Prefix length of each network.
    pub size: u8,
}

/// What a network asks for.
#[derive(Debug, Clone, Default)]
pub struct PoolRequest {
    /// The network's id.
    pub network: String,
    /// A fixed subnet; else one of the defaults.
    pub subnet: Option<Subnet>,
    /// Where addresses are handed out, inside the subnet.
    pub ip_range: Option<Subnet>,
    /// The gateway; else the first free address (none for `no_gateway`).
    pub gateway: Option<IpAddr>,
    /// Addresses that other machines use, by name.
    pub aux: BTreeMap<String, IpAddr>,
    /// IPv6 when no subnet is given.
    pub ipv6: bool,
    /// No gateway address is taken.
    pub no_gateway: bool,
    /// A fixed subnet may overlap with the host's (macvlan and ipvlan live in it).
    pub allow_host_overlap: bool,
}

/// A network's pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// The network's id.
    pub network: String,
    /// Its subnet.
    pub subnet: Subnet,
    /// Where addresses are handed out.
    pub ip_range: Option<Subnet>,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// Reserved addresses, by name.
    pub aux: BTreeMap<String, IpAddr>,
    /// All taken addresses, gateway and reserved ones included.
    allocated: BTreeSet<IpAddr>,
}

impl PoolInfo {
    /// How many addresses are taken, gateway and reserved ones included.
    pub fn allocated(&self) -> usize {
        self.allocated.len()
    }
}

/// The whole state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    defaults: Vec<PoolSpec>,
    pools: BTreeMap<Subnet, PoolInfo>,
}

/// Parses a subnet and refuses host bits, as Docker does.
///
/// # Errors
/// [`IpamError::Syntax`], [`IpamError::HostBits`].
pub fn parse_subnet(text: &str) -> Result<Subnet, IpamError> {
    parse_strict("subnet", text)
}

/// Parses an `ip-range` and refuses host bits, as Docker does.
///
/// # Errors
/// [`IpamError::Syntax`], [`IpamError::HostBits`].
pub fn parse_ip_range(text: &str) -> Result<Subnet, IpamError> {
    parse_strict("ip-range", text)
}

fn parse_strict(what: &'static str, text: &str) -> Result<Subnet, IpamError> {
    let (address, prefix) = parse_cidr(text).map_err(|_| IpamError::Syntax(text.to_owned()))?;
    let wanted = Subnet::new(address, prefix).map_err(|_| IpamError::Syntax(text.to_owned()))?;
    if wanted.network() != address {
        return Err(IpamError::HostBits { what, given: text.to_owned(), wanted });
    }
    Ok(wanted)
}

/// Docker's default pools: 172.17/16 to 172.31/16, then 192.168/16 cut to /20;
/// for IPv6 a /48 of unique local addresses from `ula`, 40 random bits that the
/// engine keeps, cut to /64.
pub fn docker_defaults(ula: [u8; 5]) -> Vec<PoolSpec> {
    let v4 = |a, b, prefix, size| {
        let base = Subnet::new(IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), prefix);
        PoolSpec { base: base.expect("prefixes up to 20 are valid"), size }
    };
    let mut pools: Vec<PoolSpec> = [(17, 16), (18, 16), (19, 16), (20, 14), (24, 14), (28, 14)]
        .into_iter()
        .map(|(b, prefix)| v4(172, b, prefix, 16))
        .collect();
    pools.push(v4(192, 168, 16, 20));
    let mut bytes = [0u8; 16];
    bytes[0] = 0xfd;
    bytes[1..6].copy_from_slice(&ula);
    let base = Subnet::new(IpAddr::V6(Ipv6Addr::from(bytes)), 48).expect("48 is a valid length");
    pools.push(PoolSpec { base, size: 64 });
    pools
}

impl Ipam {
    /// Empty state with these default pools (`default-address-pools`).
    ///
    /// # Errors
    /// [`IpamError::BadPoolSpec`] when a size does not fit its base.
    pub fn new(defaults: Vec<PoolSpec>) -> Result<Self, IpamError> {
        for spec in &defaults {
            let width = if spec.base.is_ipv4() { 32 } else { 128 };
            if spec.size < spec.base.prefix() || spec.size > width {
                return Err(IpamError::BadPoolSpec { base: spec.base, size: spec.size });
            }
        }
        Ok(Self { defaults, pools: BTreeMap::new() })
    }

    /// Replaces the default pools; pools in use stay.
    ///
    /// # Errors
    /// [`IpamError::BadPoolSpec`].
    pub fn set_defaults(&mut self, defaults: Vec<PoolSpec>) -> Result<(), IpamError> {
        self.defaults = Self::new(defaults)?.defaults;
        Ok(())
    }

    /// The pools in use, by subnet.
    pub fn pools(&self) -> impl Iterator<Item = &PoolInfo> {
        self.pools.values()
    }

    /// The pool with this subnet.
    pub fn pool(&self, subnet: &Subnet) -> Option<&PoolInfo> {
        self.pools.get(subnet)
    }

    /// Takes a pool. `host` are the subnets that the host uses
    /// ([`Rtnl::host_subnets`](crate::link::Rtnl::host_subnets)): a pool chosen
    /// here avoids them, a fixed one that overlaps with them is refused unless
    /// the request allows it.
    ///
    /// # Errors
    /// [`IpamError`] in Docker's words; the state is then unchanged.
    pub fn request_pool(
        &mut self,
        request: &PoolRequest,
        host: &[Subnet],
    ) -> Result<&PoolInfo, IpamError> {
        if self.pools.len() >= MAX_POOLS {
            return Err(IpamError::TooMany);
        }
        let subnet = match request.subnet {
            Some(subnet) => {
                check_request(request, &subnet)?;
                self.check_free(&subnet, request, host)?;
                subnet
            }
            None => {
                check_no_subnet(request)?;
                self.next_default(request.ipv6, host)?
            }
        };
        let mut pool = PoolInfo {
            network: request.network.clone(),
            subnet,
            ip_range: request.ip_range,
            gateway: None,
            aux: request.aux.clone(),
            allocated: BTreeSet::new(),
        };
        for address in request.aux.values() {
            take(&mut pool, *address)?;
        }
        pool.gateway = match request.gateway {
            Some(gateway) => Some(take(&mut pool, gateway)?),
            None if request.no_gateway => None,
            None => Some(take_next(&mut pool)?),
        };
        Ok(self.pools.entry(subnet).or_insert(pool))
    }

    /// Gives a pool back. One that is not there is fine.
    pub fn release_pool(&mut self, subnet: &Subnet) {
        self.pools.remove(subnet);
    }

    /// Gives back all pools of a network.
    pub fn release_network(&mut self, network: &str) {
        self.pools.retain(|_, pool| pool.network != network);
    }

    /// Takes an address: `wanted`, or the lowest free one of the range.
    ///
    /// # Errors
    /// [`IpamError::InUse`], [`IpamError::OutOfRange`], [`IpamError::NoAddressLeft`],
    /// [`IpamError::NoSuchPool`].
    pub fn request_address(
        &mut self,
        subnet: &Subnet,
        wanted: Option<IpAddr>,
    ) -> Result<IpAddr, IpamError> {
        let pool = self.pools.get_mut(subnet).ok_or(IpamError::NoSuchPool(*subnet))?;
        match wanted {
            Some(address) => take(pool, address),
            None => take_next(pool),
        }
    }

    /// Gives an address back. Gateway and reserved addresses stay taken; an
    /// address that is not taken is fine.
    pub fn release_address(&mut self, subnet: &Subnet, address: IpAddr) {
        if let Some(pool) = self.pools.get_mut(subnet)
            && pool.gateway != Some(address)
            && pool.aux.values().all(|a| *a != address)
        {
            pool.allocated.remove(&address);
        }
    }

    fn check_free(
        &self,
        subnet: &Subnet,
        request: &PoolRequest,
        host: &[Subnet],
    ) -> Result<(), IpamError> {
        if let Some(other) = self.pools.keys().find(|p| p.overlaps(subnet)) {
            return Err(IpamError::Overlap { other: *other });
        }
        if !request.allow_host_overlap
            && let Some(route) = host.iter().find(|h| h.overlaps(subnet))
        {
            return Err(IpamError::HostOverlap { subnet: *subnet, route: *route });
        }
        Ok(())
    }

    fn next_default(&self, ipv6: bool, host: &[Subnet]) -> Result<Subnet, IpamError> {
        for spec in self.defaults.iter().filter(|s| s.base.is_ipv4() != ipv6) {
            let mut candidate = Subnet::new(spec.base.network(), spec.size).ok();
            while let Some(subnet) = candidate.filter(|c| spec.base.contains_subnet(c)) {
                let taken = self.pools.keys().chain(host).filter(|p| p.overlaps(&subnet));
                // Past the largest that is in the way: a host route may cover
                // millions of candidates.
                match taken.max_by_key(|p| p.last()) {
                    None => return Ok(subnet),
                    Some(other) if other.last() <= subnet.last() => candidate = subnet.next(),
                    Some(other) => {
                        candidate =
                            Subnet::new(other.last(), spec.size).ok().and_then(|s| s.next());
                    }
                }
            }
        }
        Err(IpamError::NoPoolLeft)
    }
}

fn check_no_subnet(request: &PoolRequest) -> Result<(), IpamError> {
    if let Some(range) = request.ip_range {
        return Err(IpamError::RangeWithoutSubnet(range));
    }
    if let Some(gateway) = request.gateway {
        return Err(IpamError::GatewayWithoutSubnet(gateway));
    }
    match request.aux.values().next() {
        Some(aux) => Err(IpamError::AuxWithoutSubnet(*aux)),
        None => Ok(()),
    }
}

fn check_request(request: &PoolRequest, subnet: &Subnet) -> Result<(), IpamError> {
    let family = if subnet.is_ipv4() { 4 } else { 6 };
    if let Some(range) = request.ip_range {
        let given = range.to_string();
        if range.is_ipv4() != subnet.is_ipv4() {
            return Err(IpamError::Family { what: "ip-range", given, family });
        }
        if range.prefix() < subnet.prefix() {
            return Err(IpamError::RangeTooBig { range, subnet: *subnet });
        }
        if !subnet.contains_subnet(&range) {
            return Err(IpamError::Outside { what: "ip-range", given, subnet: *subnet });
        }
    }
    let gateway = request.gateway.iter().map(|g| ("gateway", *g));
    let aux = request.aux.values().map(|a| ("auxiliary address", *a));
    for (what, address) in gateway.chain(aux) {
        let given = address.to_string();
        if address.is_ipv4() != subnet.is_ipv4() {
            return Err(IpamError::Family { what, given, family });
        }
        if !subnet.contains(address) {
            return Err(IpamError::Outside { what, given, subnet: *subnet });
        }
    }
    Ok(())
}

/// Network and broadcast address (IPv6: the subnet-router anycast address) are
/// no host's, but in subnets of one or two addresses every address is one.
fn is_host(subnet: &Subnet, address: IpAddr) -> bool {
    if subnet.is_ipv4() {
        subnet.prefix() >= 31 || (address != subnet.network() && address != subnet.last())
    } else {
        subnet.prefix() >= 127 || address != subnet.network()
    }
}

fn take(pool: &mut PoolInfo, address: IpAddr) -> Result<IpAddr, IpamError> {
    if !pool.subnet.contains(address) || !is_host(&pool.subnet, address) {
        return Err(IpamError::OutOfRange(address));
    }
    if pool.allocated.insert(address) { Ok(address) } else { Err(IpamError::InUse(address)) }
}

fn take_next(pool: &mut PoolInfo) -> Result<IpAddr, IpamError> {
    let range = pool.ip_range.unwrap_or(pool.subnet);
    let mut offset = 0u128;
    for taken in pool.allocated.range(range.network()..=range.last()) {
        match lowest_host(pool, &range, offset) {
            Some((address, _)) if address < *taken => break,
            _ => offset = range.offset(*taken).map_or(offset, |o| o + 1),
        }
    }
    let found = lowest_host(pool, &range, offset);
    let (address, _) = found.ok_or(IpamError::NoAddressLeft {
        subnet: pool.subnet,
        family: if pool.subnet.is_ipv4() { 4 } else { 6 },
    })?;
    pool.allocated.insert(address);
    Ok(address)
}

/// The lowest address of the range from `offset` on that a host may have. At
/// most two (network and broadcast) are passed over.
fn lowest_host(pool: &PoolInfo, range: &Subnet, offset: u128) -> Option<(IpAddr, u128)> {
    (offset..offset.saturating_add(3))
        .map_while(|o| range.nth(o).map(|a| (a, o)))
        .find(|(address, _)| is_host(&pool.subnet, *address))
}

#[cfg(test)]
#[path = "ipam_tests.rs"]
mod tests;
