//! Message types of the public protocols that Gantry speaks.
//!
//! Owns: containerd's shim API and ttrpc (always; free of tokio, so that the shim can use them).
//! gRPC services stand behind the feature `grpc`. Does not own: transports, state, policy.

#[cfg(feature = "grpc")]
pub mod containerd;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod shim;
pub mod ttrpc;

pub use prost_types::{Any, Timestamp};
