//! gantry-client: an asynchronous client of the Docker Engine API.
//!
//! Owns: how an engine is reached (unix socket, tcp, tcp with TLS, ssh), the negotiation of the
//! API version, requests and replies, streams (JSON lines, multiplexed output, tar, hijacked
//! connections).
//!
//! Does not own: where the host comes from (flags, environment, contexts), credentials, output.
//!
//! Tasks: one per open connection, which drives it and ends with it. Connections that are idle are
//! kept in a list behind a mutex that is never held across an await. Nothing is kept on disk.

mod body;
mod client;
mod conn;
mod containers;
mod error;
mod hosts;
mod images;
mod misc;
mod mux;
mod stream;
mod tls;

pub use body::Body;
pub use client::{Client, Hijacked, Options, Ping, Query, Request};
pub use conn::{Endpoint, HostError, Lookup};
pub use containers::{AttachOptions, LogsOptions, StartExec};
pub use error::Error;
pub use images::{CommitOptions, ImportOptions, SquashOptions};
pub use mux::{Channel, Demux, DemuxError};
pub use stream::{ByteStream, JsonLines};
pub use tls::{TlsFiles, TlsOptions};

/// The result of every call.
pub type Result<T> = std::result::Result<T, Error>;
