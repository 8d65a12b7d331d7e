//! `features`: what this runtime can do, in the specification's document. Engines ask at start.

use serde_json::json;

use super::flags::Parsed;
use super::{Context, Outcome, say};
use crate::{caps, namespaces, rootfs, seccomp, spec, surroundings};

pub(super) fn print(_: &Context, _: &Parsed) -> Outcome {
    let text = serde_json::to_string_pretty(&document()).map_err(|e| e.to_string())?;
    Ok(say(&format!("{text}\n")))
}

fn document() -> serde_json::Value {
    let mut kinds: Vec<&str> = namespaces::KINDS.iter().map(|(word, _, _)| *word).collect();
    kinds.sort_unstable();
    let mut options: Vec<&str> = rootfs::options::KNOWN.to_vec();
    options.extend(["idmap", "ridmap"]);
    options.sort_unstable();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec::OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": options,
        "linux": {
            "namespaces": kinds,
            "capabilities": caps::NAMES.to_vec(),
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": seccomp::known_actions(),
                "operators": seccomp::known_operators(),
                "archs": seccomp::known_archs(),
                "knownFlags": seccomp::known_flags(),
                "supportedFlags": seccomp::known_flags(),
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {
                "modes": surroundings::MODES.map(|(word, _)| word),
                "flags": surroundings::FLAGS.map(|(word, _)| word),
            },
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."],
        "annotations": {"dev.gantry.runtime.version": env!("CARGO_PKG_VERSION")},
    })
}
