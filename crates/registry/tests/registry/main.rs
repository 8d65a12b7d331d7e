#![allow(clippy::unwrap_used)]
//! Against Debian's docker-registry, and against servers that misbehave on purpose.

mod dns;
mod hostile;
mod hosts;
mod real;
mod server;
mod token;
