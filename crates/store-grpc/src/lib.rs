//! containerd's gRPC API v1 on the traits of `store-api`: what `ctr`, nerdctl and dockerd speak.
//!
//! Owns: connections and their limits, the translation of messages and errors, and the rule that a
//! content reference has one writer at a time. Does not own: the socket's path and mode (the
//! caller's), any state of the store, decisions.
//!
//! Served: Version, Namespaces, Containers, Content, Diff, Events, Images, Introspection, Leases,
//! Snapshots, Tasks, and gRPC's Health. Not served, and refused by name: Transfer, Streaming, Sandbox.
//!
//! Locks: [`context::Writers`], held for the look-up alone. Tasks: one per connection (hyper adds one
//! per call); calls that change tasks run in one of their own, so that a client that goes away does
//! not leave them half done. No channels: streams are pulled by the client's reading.

mod containers;
mod content;
mod context;
mod convert;
mod diff;
mod events;
mod grpc;
mod health;
mod images;
mod introspection;
mod leases;
mod metrics;
mod namespaces;
mod server;
mod services;
mod snapshots;
mod streaming;
mod tasks;
mod transfer;
mod version;
mod writer;

pub use server::{Error, serve};
