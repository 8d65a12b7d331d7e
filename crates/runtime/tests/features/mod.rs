//! The rarer parts of the specification and of the command line.

mod command_line;
mod cut_short;
mod hooks;
mod host;
mod joined;
mod lifecycle;
mod like_runc;
mod rootless;
mod service;
mod systemd;
