//! The rarer parts of the specification and of the command line.

mod host;
mod joined;
mod rootless;
mod service;
mod systemd;
