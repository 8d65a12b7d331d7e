//! The client of OCI distribution registries.
//!
//! Owns: finding a registry's servers (mirrors, HTTPS or HTTP, proxies, certificates, names to
//! addresses), proving who asks, manifests, blobs, tags, referrers, in both directions; and plain
//! downloads, which need the same connections.
//!
//! Does not own: what is kept of them, credential files and helpers, choosing what to download.
//!
//! Invariants:
//! - An `Authorization` header goes to the server whose challenge it answers, and nowhere else:
//!   not along a redirect, not to an upload address on another server.
//! - No manifest is returned whose digest was not checked; small blobs likewise. Large blobs are
//!   checked by whoever hashes them on the way to the disk, or with [`Blob::verified`].
//! - Every answer has a size limit, every wait a time limit, every retry a count.
//!
//! Tasks: one for each open connection, which ends with it. Locks: short ones around the idle
//! connections and known servers, never held across an await; one async lock for each
//! repository's token, so that requests that fail together fetch one.

mod auth;
mod blob;
mod client;
mod config;
pub mod dns;
mod download;
mod endpoint;
mod error;
mod hosts;
mod manifest;
mod repository;
mod tls;
mod transport;
mod upload;

pub use blob::Blob;
pub use client::{Client, Login};
pub use config::{Config, Credentials, Proxy, Timeouts};
pub use download::Download;
pub use error::{Error, Problem, TransportError};
pub use hosts::HostsError;
pub use manifest::{Descriptor, Manifest, Target};
pub use repository::Repository;
pub use upload::{BlobSource, BytesSource, FileSource, Pushed, SourceReader, UploadOptions};
