//! Runs as root, each test on a thread with a mount and a network namespace of
//! its own. Programs (`nft`, `iptables-legacy`) are oracles only.
#![allow(clippy::unwrap_used)]

mod bed;
mod dns;
mod firewall;
mod links;
mod others;
