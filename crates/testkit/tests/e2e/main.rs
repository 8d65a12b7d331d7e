//! The product from outside: real clients and peers against whole engines, each in a sandbox.
//!
//! Every test makes its engine, its image and its words itself, asserts what comes out, and ends
//! with a look at what is left, in the sandbox and on the machine (see [`ground`]).
#![allow(clippy::unwrap_used)]

mod cli_session;
mod compare;
mod compose;
mod ctr;
mod ctr_compare;
mod docker_py;
mod engines;
mod faults;
mod fsck;
mod ground;
mod interchange;
mod layouts;
mod network;
mod normalise;
mod on_demand;
mod peers;
mod programs;
mod store_peers;
mod survive;
mod trees;
