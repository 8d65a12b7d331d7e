//! Messages of containerd's gRPC API v1, and of gRPC's health service, by hand for prost.
//!
//! Field numbers are those of containerd 1.6's `api/services/*/v1/*.proto`, with the fields that
//! containerd 1.7 added where clients send them.

pub mod containers;
pub mod content;
pub mod diff;
pub mod events;
pub mod health;
pub mod images;
pub mod introspection;
pub mod leases;
pub mod namespaces;
pub mod notices;
pub mod snapshots;
pub mod tasks;
pub mod transfer;
pub mod types;
pub mod version;
