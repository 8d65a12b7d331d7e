//! Capabilities by name, and giving a process exactly the sets that it is to have.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use crate::error::{Context, Error, Result};
use crate::spec;

/// Names by number.
pub(crate) const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The five sets, as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) inheritable: u64,
    pub(crate) permitted: u64,
    pub(crate) ambient: u64,
}

fn bit(name: &str) -> Option<u64> {
    NAMES.iter().position(|n| *n == name).map(|at| 1 << at)
}

/// Names that nobody knows are skipped, as runc does: a newer engine may name newer capabilities. So is what
/// cannot be ambient: the kernel takes only what is permitted and inheritable. See [`warnings`].
pub(crate) fn parse(c: &spec::Capabilities) -> Sets {
    let mask = |names: &[String]| names.iter().filter_map(|n| bit(n)).fold(0, |a, b| a | b);
    let (inheritable, permitted) = (mask(&c.inheritable), mask(&c.permitted));
    Sets {
        bounding: mask(&c.bounding),
        effective: mask(&c.effective),
        inheritable,
        permitted,
        ambient: mask(&c.ambient) & inheritable & permitted,
    }
}

fn names(bits: u64) -> Vec<&'static str> {
    NAMES.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, name)| *name).collect()
}

/// Lines for a log, if a section names capabilities that are skipped (runc 1.4 has the second).
pub(crate) fn warnings(c: Option<&spec::Capabilities>) -> Vec<String> {
    let Some(c) = c else { return Vec::new() };
    let sets = [&c.bounding, &c.effective, &c.inheritable, &c.permitted, &c.ambient];
    let unknown: std::collections::BTreeSet<&str> =
        sets.into_iter().flatten().map(String::as_str).filter(|n| bit(n).is_none()).collect();
    let mut out = Vec::new();
    if !unknown.is_empty() {
        let names: Vec<&str> = unknown.into_iter().collect();
        let names = names.join(" ");
        out.push(format!("ignoring unknown or unavailable capabilities: [{names}]"));
    }
    let asked = c.ambient.iter().filter_map(|n| bit(n)).fold(0, |a, b| a | b);
    out.extend(names(asked & !parse(c).ambient).iter().map(|name| {
        format!("can't raise ambient capability {name}: it is not both permitted and inheritable")
    }));
    out
}

/// Takes out of the bounding set what is not in it. Needs CAP_SETPCAP, so it comes first.
pub(crate) fn bound(sets: &Sets) -> Result<()> {
    for number in 0..64 {
        let one = 1u64 << number;
        if sets.bounding & one != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(one)) {
            Ok(()) => {}
            // Past the last capability of this kernel.
            Err(Errno::INVAL) => return Ok(()),
            Err(e) => return Err(e).ctx("drop from the bounding set", || number.to_string()),
        }
    }
    Ok(())
}

/// Sets permitted, effective and inheritable; `extra` stays permitted and effective for now.
pub(crate) fn set(sets: &Sets, extra: u64) -> Result<()> {
    let wanted = sets.permitted | extra;
    let bits = CapabilitySet::from_bits_retain;
    let new = CapabilitySets {
        effective: bits(sets.effective | extra),
        permitted: bits(wanted),
        inheritable: bits(sets.inheritable),
    };
    match set_capabilities(None, new) {
        Err(Errno::PERM) => {
            let have = capabilities(None).map_or(0, |c| c.permitted.bits());
            let (field, problem, which) = match (wanted & !have, sets.effective & !wanted) {
                (0, 0) => (
                    "process.capabilities.inheritable",
                    "neither in the bounding set nor held by the runtime itself",
                    sets.inheritable & !sets.bounding,
                ),
                (0, more) => ("process.capabilities.effective", "not permitted", more),
                (missing, _) => ("process.capabilities", "not held by the runtime itself", missing),
            };
            Err(Error::config(field, format!("{problem}: {}", names(which).join(" "))))
        }
        other => other.ctx("capset", || "process.capabilities"),
    }
}

/// Clears the ambient set and raises what is in it.
pub(crate) fn ambient(sets: &Sets) -> Result<()> {
    match clear_ambient_capability_set() {
        Ok(()) => {}
        Err(Errno::INVAL) if sets.ambient == 0 => return Ok(()),
        Err(e) => return Err(e).ctx("clear", || "ambient capabilities"),
    }
    for number in (0..64).filter(|n| sets.ambient >> n & 1 == 1) {
        let one = CapabilitySet::from_bits_retain(1 << number);
        configure_capability_in_ambient_set(one, true)
            .ctx("raise ambient capability", || number.to_string())?;
    }
    Ok(())
}
