//! Interface counters, read from inside a namespace.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::link::LinkInfo;
use crate::ns::Namespace;

/// Counters of one interface since its creation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStats {
    /// Interface name.
    pub name: String,
    /// Received bytes.
    pub rx_bytes: u64,
    /// Received packets.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Received packets dropped.
    pub rx_dropped: u64,
    /// Sent bytes.
    pub tx_bytes: u64,
    /// Sent packets.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets to send that were dropped.
    pub tx_dropped: u64,
}

/// Counters of every interface but `lo`, in index order.
///
/// # Errors
/// When the namespace cannot be entered or the dump fails.
pub fn read(ns: &Namespace) -> Result<Vec<InterfaceStats>, Error> {
    let links = ns.with_route(|route| route.links())?;
    Ok(links.iter().filter(|l| l.name != "lo").map(from_link).collect())
}

/// `struct rtnl_link_stats64` begins with these eight.
fn from_link(link: &LinkInfo) -> InterfaceStats {
    let value = |position: usize| {
        link.stats64
            .get(position * 8..position * 8 + 8)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_ne_bytes)
    };
    InterfaceStats {
        name: link.name.clone(),
        rx_packets: value(0),
        tx_packets: value(1),
        rx_bytes: value(2),
        tx_bytes: value(3),
        rx_errors: value(4),
        tx_errors: value(5),
        rx_dropped: value(6),
        tx_dropped: value(7),
    }
}
