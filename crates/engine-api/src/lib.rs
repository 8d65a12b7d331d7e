//! The Engine REST API: routes, streams, version negotiation. It decides nothing.
//!
//! Owns: listeners, HTTP, the shape of replies per API version. Does not own: what any of it means
//! (engine). Locks: none. Tasks: one a connection, two a hijacked stream. Channels: bodies in both
//! directions are bounded.

mod body;
mod containers;
mod error;
mod images;
mod listen;
mod networks;
mod request;
mod route;
mod server;
mod streams;
mod system;

pub use listen::{Bound, Error as ListenError, Listener, Prepared};
pub use server::serve;
