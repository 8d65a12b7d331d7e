//! Subnets and MAC addresses: the two small value types of the crate.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text or a number is not a subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// The text is not `ADDRESS/LENGTH`.
    #[error("invalid CIDR address: {0}")]
    Syntax(String),
    /// The prefix is longer than the family's address.
    #[error("prefix length {prefix} is too long for {address}")]
    Prefix {
        /// The address that was given.
        address: IpAddr,
        /// The prefix length that was given, in bits.
        prefix: u8,
    },
}

/// An IPv4 or IPv6 subnet; host bits are always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    network: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The subnet that holds `address`, with its host bits cleared.
    ///
    /// # Errors
    /// [`SubnetError::Prefix`] when `prefix` is above 32 or 128.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, SubnetError> {
        if prefix > width(address) {
            return Err(SubnetError::Prefix { address, prefix });
        }
        Ok(Self { network: mask(address, prefix), prefix })
    }

    /// The lowest address, with all host bits zero.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// The prefix length in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether this is an IPv4 subnet.
    pub fn is_ipv4(&self) -> bool {
        self.network.is_ipv4()
    }

    /// The highest address; for IPv4 the broadcast address.
    pub fn last(&self) -> IpAddr {
        let host = host_mask(self.network, self.prefix);
        from_bits(self.network, to_bits(self.network) | host)
    }

    /// Whether `address` lies inside; never true across families.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && mask(address, self.prefix) == self.network
    }

    /// Whether the whole of `other` lies inside.
    pub fn contains_subnet(&self, other: &Subnet) -> bool {
        other.prefix >= self.prefix && self.contains(other.network)
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.contains_subnet(other) || other.contains_subnet(self)
    }

    /// The address `offset` above the network address, if it lies inside.
    pub fn nth(&self, offset: u128) -> Option<IpAddr> {
        (offset <= host_mask(self.network, self.prefix))
            .then(|| from_bits(self.network, to_bits(self.network) + offset))
    }

    /// How far `address` lies above the network address, if it lies inside.
    pub fn offset(&self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| to_bits(address) - to_bits(self.network))
    }

    /// The subnet of the same size that follows, if the family has one.
    pub fn next(&self) -> Option<Subnet> {
        let size = host_mask(self.network, self.prefix).checked_add(1)?;
        let bits = to_bits(self.network).checked_add(size)?;
        if self.is_ipv4() && bits > u128::from(u32::MAX) {
            return None;
        }
        Some(Self { network: from_bits(self.network, bits), prefix: self.prefix })
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

fn from_bits(family: IpAddr, bits: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => {
            let low = bits & u128::from(u32::MAX);
            IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(low).expect("masked to 32 bits")))
        }
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

fn host_mask(address: IpAddr, prefix: u8) -> u128 {
    let host = width(address).saturating_sub(prefix);
    1u128.checked_shl(u32::from(host)).map_or(u128::MAX, |v| v - 1)
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    from_bits(address, to_bits(address) & !host_mask(address, prefix))
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// Parses `ADDRESS/LENGTH`; the address part alone, host bits kept.
///
/// # Errors
/// [`SubnetError`] naming the text.
pub fn parse_cidr(text: &str) -> Result<(IpAddr, u8), SubnetError> {
    let syntax = || SubnetError::Syntax(text.to_owned());
    let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
    let address: IpAddr = address.parse().map_err(|_| syntax())?;
    let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
    if prefix > width(address) {
        return Err(SubnetError::Prefix { address, prefix });
    }
    Ok((address, prefix))
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let (address, prefix) = parse_cidr(text)?;
        Self::new(address, prefix)
    }
}

impl Serialize for Subnet {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text that is not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid MAC address: {0}")]
pub struct MacError(String);

impl Mac {
    /// The address that Docker derives from an IPv4 address: `02:42:` and the
    /// four bytes.
    pub fn from_ipv4(ip: Ipv4Addr) -> Self {
        let [a, b, c, d] = ip.octets();
        Self([0x02, 0x42, a, b, c, d])
    }

    /// A random, locally administered unicast address.
    ///
    /// # Errors
    /// The errno of getrandom(2).
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = crate::util::random::<6>()?;
        bytes[0] = (bytes[0] & 0xfe) | 0x02;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let bad = || MacError(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edges() {
        let all: Subnet = "::/0".parse().unwrap();
        assert_eq!(
            all.last(),
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse::<IpAddr>().unwrap()
        );
        assert_eq!(all.next(), None);
        assert_eq!("255.255.255.0/24".parse::<Subnet>().unwrap().next(), None);
        assert!("1.2.3.4/33".parse::<Subnet>().is_err());
        assert!("1.2.3.4".parse::<Subnet>().is_err());
        let s: Subnet = "172.17.3.4/16".parse().unwrap();
        assert_eq!(s.to_string(), "172.17.0.0/16");
        assert_eq!(s.nth(65536), None);
        assert_eq!(
            "02:42:ac:11:00:02".parse::<Mac>().unwrap(),
            Mac::from_ipv4(Ipv4Addr::new(172, 17, 0, 2))
        );
    }

    proptest! {
        #[test]
        fn overlap_is_a_shared_address(a: u32, p in 0u8..=32, b: u32, q in 0u8..=32) {
            let s = Subnet::new(IpAddr::V4(Ipv4Addr::from_bits(a)), p).unwrap();
            let t = Subnet::new(IpAddr::V4(Ipv4Addr::from_bits(b)), q).unwrap();
            let shared = s.network() <= t.last() && t.network() <= s.last();
            prop_assert_eq!(s.overlaps(&t), shared);
            prop_assert_eq!(s.to_string().parse::<Subnet>().unwrap(), s);
            prop_assert!(s.contains(s.last()) && s.contains(s.network()));
        }
    }
}
