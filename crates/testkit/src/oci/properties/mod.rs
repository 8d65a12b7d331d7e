//! The properties, by area.

mod capabilities;
mod cgroups;
mod command_line;
mod devices;
mod errors;
mod exec;
mod hooks;
mod lifecycle;
mod manage;
mod mounts;
mod namespaces;
mod options;
mod paths;
mod process;
mod seccomp;
mod sockets;
mod terminal;
mod unified;
mod userns;

use super::{Checked, Ground, Property};

/// A container on a terminal: what it showed until its end.
pub(super) fn session(bundle: &mut super::bundle::Bundle<'_>) -> Checked<String> {
    terminal::session(bundle, "")
}

const fn p(name: &'static str, check: fn(&Ground) -> Checked) -> Property {
    Property { name, check }
}

/// Every property.
pub fn all() -> Vec<Property> {
    [
        lifecycle::ALL,
        errors::ALL,
        command_line::ALL,
        process::ALL,
        capabilities::ALL,
        namespaces::ALL,
        userns::ALL,
        mounts::ALL,
        options::ALL,
        paths::ALL,
        devices::ALL,
        cgroups::ALL,
        unified::ALL,
        seccomp::ALL,
        sockets::ALL,
        hooks::ALL,
        terminal::ALL,
        exec::ALL,
        manage::ALL,
    ]
    .concat()
}
