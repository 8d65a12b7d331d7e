//! `spec`: a config.json to start from, runc's.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::flags::Parsed;
use super::{Context, Failure, Outcome};
use crate::process::write_atomically;
use crate::spec::OCI_VERSION;

pub(super) fn write(_: &Context, parsed: &Parsed) -> Outcome {
    let path = PathBuf::from(parsed.value("bundle").unwrap_or(".")).join("config.json");
    if path.exists() {
        return Err("File config.json exists. Remove it first".to_owned().into());
    }
    let mut document = document();
    if parsed.is_set("rootless") {
        rootless(&mut document);
    }
    let text =
        serde_json::to_string_pretty(&document).map_err(|e| Failure::Usage(e.to_string()))?;
    write_atomically(&path, text.replace("  ", "\t").as_bytes(), 0o666)?;
    Ok(0)
}

fn document() -> Value {
    let caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |to: &str, kind: &str, from: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": from, "options": options});
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "gantry",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// What an ordinary user may do: a user namespace, no network namespace, no limits, no gid=5.
fn rootless(document: &mut Value) {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let linux = &mut document["linux"];
    linux["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    linux["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
    linux["namespaces"] = json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "user"}]);
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    let Some(mounts) = document["mounts"].as_array_mut() else { return };
    for m in mounts {
        if let Some(options) = m["options"].as_array_mut() {
            options.retain(|o| o != "gid=5");
        }
        // A sysfs of one's own needs a network namespace of one's own.
        if m["destination"] == "/sys" {
            *m = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
        }
    }
}
