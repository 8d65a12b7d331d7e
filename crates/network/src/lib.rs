//! The network library of the engine: namespaces, links, addresses, nftables
//! transactions, address management, port map and embedded DNS. Everything
//! speaks netlink (or the legacy x_tables socket options); no program is run.
//!
//! **Owns**: the nftables table `inet gantry` (`inet gantry-NAME` for a default
//! bridge of another name, see [`firewall::table_name`]), the accept rules that
//! it puts into other firewalls' forward chains, bridges whose alias starts with
//! `gantry:`, the veth pairs on them, the bind mounts it is told to make.
//!
//! **Several daemons** of one network namespace do not meet: each has claims on
//! the names of its bridges while it runs ([`claim`]), a table of its own, and
//! accepts marked with that table's name. What another daemon made is neither
//! changed nor removed, but for a bridge without links whose daemon has ended.
//!
//! **Does not own**: which network a container is in, what is published, where
//! state is kept: the engine passes plain structs and stores [`ipam::Ipam`].
//!
//! **On disk**: nothing but the namespace bind mounts.
//!
//! **Locks**: [`ns::Pool`]'s list (moments); [`firewall::Watch`] shares the
//! `Mutex<Firewall>` with the engine and holds it for one transaction. The
//! legacy tables are edited under `/run/xtables.lock`.
//!
//! **Tasks and threads**: `netns-pool` refills the pool; `netns` threads live
//! for one call inside a namespace; `firewall-watch` listens to nftables'
//! events; [`dns::serve`] spawns tokio tasks, the only async code here.

pub mod claim;
#[cfg(feature = "dns")]
pub mod dns;
pub mod endpoint;
mod error;
pub mod firewall;
pub mod hosts;
pub mod ipam;
pub mod link;
mod link_info;
mod netlink;
pub mod ns;
pub mod portmap;
pub mod resolv;
pub mod stats;
pub mod subnet;
pub mod sysctl;
mod util;

pub use error::Error;
pub use subnet::{Mac, Subnet};
