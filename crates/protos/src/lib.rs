//! Message types of the public protocols that Gantry speaks.
//!
//! Owns: containerd's shim API and ttrpc (always), the messages of containerd's gRPC API (feature
//! `grpc`). All of it is free of tokio, because the shim uses this crate. Does not own: transports,
//! service glue, state, policy.

#[cfg(feature = "grpc")]
pub mod containerd;
pub mod shim;
pub mod ttrpc;

pub use prost_types::{Any, Timestamp};
