//! The engine's packet filter: one nftables table, every change one transaction.
//!
//! Each daemon has a table of its own, so that several work side by side:
//! [`table_name`] of its default bridge, `inet gantry` for `gantry0` and
//! `inet gantry-NAME` for others. Its accepts in other firewalls are marked with
//! that name, and those of other daemons are left alone. The tables do not
//! disturb each other: each looks only at packets from or to its own bridges,
//! and what is translated in one is accepted in the other.
//!
//! What it does: masquerades what leaves a bridge; sends published ports to
//! their containers (one map element each); lets traffic within a bridge pass
//! and nothing between bridges; keeps `internal` networks in; drops what comes
//! from outside straight to a container's address (only connections that went
//! through a published port are let in); closes ports published on loopback
//! to the neighbours.
//!
//! An accept here cannot override a drop elsewhere, so [`Firewall::ensure`]
//! also looks at other firewalls' forward chains; see [`foreign`](self::Blocker).

mod conntrack;
mod foreign;
mod legacy;
mod legacy_table;
pub(crate) mod nft;
mod rules;
mod watch;

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::netlink::Socket;
use crate::subnet::Subnet;

pub use foreign::{Blocker, BlockerKind};
pub use nft::Family;
pub use watch::Watch;

use nft::{Transaction, msg};

/// The table's name for the default bridge [`MAIN_BRIDGE`], and the beginning of
/// all others.
pub const TABLE: &str = "gantry";
/// The bridge of a daemon that was told of none.
pub const MAIN_BRIDGE: &str = "gantry0";

/// The name of the table of the daemon with this default bridge. No two bridges
/// have the same: bytes that nft(8) does not take in a name are `/` and two
/// hexadecimal digits.
pub fn table_name(bridge: &str) -> String {
    if bridge == MAIN_BRIDGE {
        return TABLE.to_owned();
    }
    let mut name = format!("{TABLE}-");
    for byte in bridge.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("/{byte:02x}"));
        }
    }
    name
}

/// Whether a table is some gantry daemon's.
fn is_gantry_table(name: &str) -> bool {
    name.strip_prefix(TABLE).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '/']))
}

/// How containers on a bridge are reached, per address family (Docker's
/// `gateway_mode_ipv4` and `gateway_mode_ipv6`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayMode {
    /// Through published ports only; what leaves is masqueraded.
    #[default]
    Nat,
    /// Like `Nat`, and every port of a container may be reached directly.
    NatUnprotected,
    /// No NAT; published ports may be reached at the container's address.
    Routed,
    /// For internal networks: the bridge has no address, nothing passes.
    Isolated,
}

/// A bridge and what may pass it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeNetwork {
    /// The bridge's interface name.
    pub bridge: String,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// Nothing goes out or in.
    pub internal: bool,
    /// Containers on it reach each other. Without it, also attach endpoints
    /// with `PortFlags::isolated`: switched frames do not pass here.
    pub icc: bool,
    /// What leaves has the host's address (`enable_ip_masquerade`).
    pub masquerade: bool,
    /// Mode for IPv4.
    pub mode4: GatewayMode,
    /// Mode for IPv6.
    pub mode6: GatewayMode,
    /// Source address of what leaves, instead of the outgoing interface's
    /// (`com.docker.network.host_ipv4`, `host_ipv6`).
    pub host_addresses: Vec<IpAddr>,
}

impl BridgeNetwork {
    /// A network with Docker's defaults.
    pub fn new(bridge: impl Into<String>, subnets: Vec<Subnet>) -> Self {
        Self {
            bridge: bridge.into(),
            subnets,
            internal: false,
            icc: true,
            masquerade: true,
            mode4: GatewayMode::Nat,
            mode6: GatewayMode::Nat,
            host_addresses: Vec::new(),
        }
    }

    fn mode(&self, ipv4: bool) -> GatewayMode {
        if ipv4 { self.mode4 } else { self.mode6 }
    }
}

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Proto {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// `tcp`, `udp` or `sctp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A published port.
///
/// With a host address on loopback nothing is translated: the listener's
/// forwarder serves it, and the rules only keep others from reaching it. The
/// same for a host address of the other family than the container's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Protocol.
    pub proto: Proto,
    /// Address on the host; unspecified for all of its family.
    pub host_ip: IpAddr,
    /// Port on the host.
    pub host_port: u16,
    /// The container's address.
    pub container_ip: IpAddr,
    /// Port in the container.
    pub container_port: u16,
}

/// Everything that is to hold.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Our bridges.
    pub networks: Vec<BridgeNetwork>,
    /// Published ports.
    pub ports: BTreeSet<PublishedPort>,
    /// Drop forwarded traffic that has nothing to do with our bridges. For a
    /// host that was no router before forwarding was turned on for us.
    pub drop_foreign_forward: bool,
}

/// What stands after a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Firewalls of others that drop our traffic and could not be opened.
    pub blockers: Vec<Blocker>,
}

/// The packet filter of one network namespace. It holds what is wanted, so
/// that it can be re-asserted. Use it from threads of the namespace in which it
/// was opened: legacy tables are those of the calling thread's.
#[derive(Debug)]
pub struct Firewall {
    socket: Socket,
    /// Our table's name, which also marks our accepts in others' chains.
    table: String,
    desired: Desired,
    /// Set by the first `ensure`; nothing is asserted before.
    active: bool,
    /// What was last found to block.
    nft_blockers: Vec<Blocker>,
}

impl Firewall {
    /// Opens the one with this table (see [`table_name`]) in the calling thread's
    /// namespace; changes nothing yet. Only one process may have it open.
    ///
    /// # Errors
    /// When the netlink socket cannot be opened.
    pub fn open(table: impl Into<String>) -> Result<Self, Error> {
        Ok(Self {
            socket: Socket::netfilter(0)?,
            table: table.into(),
            desired: Desired::default(),
            active: false,
            nft_blockers: Vec::new(),
        })
    }

    /// What was last asked for.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Makes `desired` hold: our table is replaced as a whole in one
    /// transaction (established connections are not touched), and our accepts
    /// are put into other firewalls that need them.
    ///
    /// # Errors
    /// When the kernel refuses our table. What blocks elsewhere is no error.
    pub fn ensure(&mut self, desired: Desired) -> Result<Report, Error> {
        self.desired = desired;
        self.active = true;
        self.reassert()
    }

    /// Like [`Firewall::ensure`] with what was last asked for.
    ///
    /// # Errors
    /// See [`Firewall::ensure`].
    pub fn reassert(&mut self) -> Result<Report, Error> {
        if !self.active {
            return Ok(Report::default());
        }
        let mut batch = self.socket.batch();
        nft::begin(&mut batch);
        let mut transaction = Transaction::new(&mut batch, Family::Inet, &self.table);
        rules::replace_table(&mut transaction, &self.desired);
        nft::end(&mut batch);
        self.socket.commit(&mut batch)?;
        self.open_others()
    }

    /// Puts our accepts into other firewalls' forward chains where they drop,
    /// and takes away those for bridges that are gone.
    ///
    /// # Errors
    /// When the rule sets cannot be read.
    pub fn open_others(&mut self) -> Result<Report, Error> {
        let bridges = self.bridges();
        self.nft_blockers = foreign::open_nft(&mut self.socket, &self.table, &bridges)?;
        Ok(self.open_legacy())
    }

    /// Like [`Firewall::open_others`] for legacy tables alone, which send no
    /// events: cheap where there are none.
    pub fn open_legacy(&self) -> Report {
        let mut blockers = self.nft_blockers.clone();
        blockers.extend(legacy::open_legacy(&self.table, &self.bridges()));
        Report { blockers }
    }

    fn bridges(&self) -> Vec<String> {
        match self.active {
            true => self.desired.networks.iter().map(|n| n.bridge.clone()).collect(),
            false => Vec::new(),
        }
    }

    /// Adds a network (or replaces the one on the same bridge).
    ///
    /// # Errors
    /// See [`Firewall::ensure`].
    pub fn add_network(&mut self, network: BridgeNetwork) -> Result<Report, Error> {
        self.desired.networks.retain(|n| n.bridge != network.bridge);
        self.desired.networks.push(network);
        self.active = true;
        self.reassert()
    }

    /// Removes the network on this bridge, if there is one.
    ///
    /// # Errors
    /// See [`Firewall::ensure`].
    pub fn remove_network(&mut self, bridge: &str) -> Result<Report, Error> {
        self.desired.networks.retain(|n| n.bridge != bridge);
        self.reassert()
    }

    /// Publishes ports: one map element each, all in one transaction. UDP flows
    /// that were under way to these ports are led to their new place.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is then published.
    pub fn publish(&mut self, ports: &[PublishedPort]) -> Result<(), Error> {
        let new: Vec<PublishedPort> =
            ports.iter().filter(|p| !self.desired.ports.contains(p)).cloned().collect();
        self.desired.ports.extend(new.iter().cloned());
        if self.change_ports(&new, true).is_ok() {
            return conntrack::forget(&mut self.socket, &new);
        }
        // The table is not as it should be (flushed this very moment, or not
        // there yet): the whole of it settles that.
        self.active = true;
        match self.reassert() {
            Ok(_) => conntrack::forget(&mut self.socket, &new),
            Err(error) => {
                for port in &new {
                    self.desired.ports.remove(port);
                }
                Err(error)
            }
        }
    }

    /// Takes ports back. Ports that are not published are fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unpublish(&mut self, ports: &[PublishedPort]) -> Result<(), Error> {
        let old: Vec<PublishedPort> =
            ports.iter().filter(|p| self.desired.ports.contains(p)).cloned().collect();
        for port in &old {
            self.desired.ports.remove(port);
        }
        match self.change_ports(&old, false) {
            Ok(()) => {}
            Err(_) => drop(self.reassert()?),
        }
        conntrack::forget(&mut self.socket, &old)
    }

    fn change_ports(&mut self, ports: &[PublishedPort], add: bool) -> Result<(), Error> {
        let elements = rules::port_elements(ports.iter(), &self.desired);
        if elements.is_empty() {
            return Ok(());
        }
        let mut batch = self.socket.batch();
        nft::begin(&mut batch);
        let mut transaction = Transaction::new(&mut batch, Family::Inet, &self.table);
        for (set, list) in &elements {
            transaction.elements(set, list, add);
        }
        nft::end(&mut batch);
        self.socket.commit(&mut batch)
    }

    /// Whether our table is there.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn is_present(&mut self) -> Result<bool, Error> {
        let mut batch = self.socket.batch();
        let operation = format!("look up nftables table inet {}", self.table);
        let family = Family::Inet.number();
        batch.begin(nft::kind(msg::GETTABLE), 0, &nft::nfgen(family), operation.as_str());
        batch.str(1, &self.table);
        Ok(self.socket.get(&mut batch, &operation)?.is_some())
    }

    /// Removes our table and our accepts everywhere, and nothing of other
    /// daemons. The accepts go even when the table does not.
    ///
    /// # Errors
    /// When the kernel refuses; the first refusal.
    pub fn remove_all(&mut self) -> Result<(), Error> {
        self.active = false;
        self.desired = Desired::default();
        let mut batch = self.socket.batch();
        nft::begin(&mut batch);
        let mut transaction = Transaction::new(&mut batch, Family::Inet, &self.table);
        transaction.add_table();
        transaction.delete_table();
        nft::end(&mut batch);
        let removed = self.socket.commit(&mut batch);
        let closed = self.open_others().map(|_| ());
        removed.and(closed)
    }

    /// Our table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    pub(crate) fn port_id(&self) -> u32 {
        self.socket.port()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_of_tables() {
        for (bridge, table) in [
            ("gantry0", "gantry"),
            ("docker0", "gantry-docker0"),
            ("a.b-c_d", "gantry-a.b-c_d"),
            ("x@2f", "gantry-x/402f"),
        ] {
            assert_eq!(table_name(bridge), table);
            assert!(is_gantry_table(table));
        }
        assert!(!is_gantry_table("gantryx"));
    }
}
