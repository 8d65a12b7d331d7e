//! The shim: what stands between containerd and a container, and outlives the daemons.
//!
//! Owns: the standard streams of its containers, their json-file logs, exit statuses, exec'd
//! processes, root file system mounts, published ports' sockets, the attach socket. Does not own:
//! namespaces, cgroups and everything else that the OCI runtime (linked, or another program)
//! makes; bundles, which the store makes and removes.
//!
//! On disk: in a bundle `shim.json`, `exit.json`, `address`, `shim.log` (see [`bundle`]); two
//! sockets of mode 0600, `s/HASH` (ttrpc) and `s/HASH.attach`, below the directory that
//! `GANTRY_SHIM_SOCKET_DIR` names, else in `/run/containerd`.
//!
//! One thread, one epoll loop, no tokio, no locks. Nothing in the loop waits for a client: what
//! does not fit into a bounded buffer stops that process's output, and nothing else. What joins a
//! running container (exec) is made by short-lived helper processes (see `helper`), because the
//! container can hold it up; the other calls into the runtime (create, start, delete) are made in
//! the loop and do wait. Every buffer and table has a named limit beside the code that fills it.

pub mod attach;
pub mod bundle;
mod diagnostics;
mod error;
mod events;
pub mod forward;
mod helper;
pub mod init;
mod launch;
mod logfile;
mod oci;
mod poll;
mod process;
mod rootfs;
mod server;
mod service;
mod shim;
mod start;
mod stats;
mod stdio;
mod streams;
mod time;

use std::ffi::OsString;

pub use error::{Error, Result};
pub use launch::SOCKET_DIR_VARIABLE;
pub use oci::RUNTIME_ROOT;
pub use shim::attach_path;

/// The name under which containerd looks for this shim (`io.containerd.gantry.v2`).
pub const PROGRAM_NAME: &str = "containerd-shim-gantry-v2";

/// The shim's command line, containerd's: `-namespace N -id ID -address A -publish-binary P
/// [-debug] [-bundle B] [start|delete]`, without the program's own name. Answers the exit code.
///
/// Must be called before the process has a second thread or any descriptor of its own.
pub fn main(arguments: Vec<OsString>) -> i32 {
    match launch::run(arguments) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{PROGRAM_NAME}: {}", error.chain());
            1
        }
    }
}
