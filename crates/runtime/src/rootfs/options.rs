//! Mount options of the spec, as the mount API wants them.

use rustix::mount::MountPropagationFlags as P;
use sys::mount as attr;

/// Bits to set and to clear (`MOUNT_ATTR_*`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

/// A mount's options, parsed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) bind: bool,
    pub(crate) recursive_bind: bool,
    pub(crate) remount: bool,
    pub(crate) copy_up: bool,
    pub(crate) idmap: bool,
    pub(crate) recursive_idmap: bool,
    /// For this mount alone.
    pub(crate) one: Change,
    /// For the whole tree.
    pub(crate) tree: Change,
    /// In the order given: (flags, recursive).
    pub(crate) propagation: Vec<(P, bool)>,
    /// Superblock flags by the name that fsconfig knows.
    pub(crate) flags: Vec<&'static str>,
    /// What the file system itself is to read: `key` or `key=value`.
    pub(crate) data: Vec<String>,
}

/// Every option that is not passed to the file system, for `features`. Sorted.
pub(crate) const KNOWN: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// Parses the options. `idmap` and `ridmap` are the specification's own, beside `KNOWN`.
pub(crate) fn parse(options: &[String]) -> Options {
    let mut out = Options::default();
    for option in options {
        one(&mut out, option);
    }
    out
}

fn one(out: &mut Options, option: &str) {
    if let Some((bits, on)) = attribute(option) {
        apply(&mut out.one, bits, on);
        return;
    }
    if let Some((bits, on)) = option.strip_prefix('r').and_then(attribute) {
        apply(&mut out.tree, bits, on);
        return;
    }
    if let Some(flags) = propagation(option) {
        out.propagation.push((flags, false));
        return;
    }
    if let Some(flags) = option.strip_prefix('r').and_then(propagation) {
        out.propagation.push((flags, true));
        return;
    }
    match option {
        "bind" => out.bind = true,
        "rbind" => (out.bind, out.recursive_bind) = (true, true),
        "remount" => out.remount = true,
        "tmpcopyup" => out.copy_up = true,
        "idmap" => out.idmap = true,
        "ridmap" => (out.idmap, out.recursive_idmap) = (true, true),
        "" | "defaults" | "loud" | "silent" => {}
        "sync" => flag(out, "sync", true),
        "async" => flag(out, "sync", false),
        "dirsync" => flag(out, "dirsync", true),
        "mand" => flag(out, "mand", true),
        "nomand" => flag(out, "mand", false),
        "lazytime" => flag(out, "lazytime", true),
        "nolazytime" => flag(out, "lazytime", false),
        "iversion" => flag(out, "iversion", true),
        "noiversion" => flag(out, "iversion", false),
        other => out.data.push(other.to_owned()),
    }
}

fn flag(out: &mut Options, name: &'static str, on: bool) {
    out.flags.retain(|f| *f != name);
    if on {
        out.flags.push(name);
    }
}

/// `atime` values replace each other: they are one field, not bits.
fn apply(change: &mut Change, bits: u64, on: bool) {
    let field = if bits & !attr::ATTR_ATIME_MASK == 0 { attr::ATTR_ATIME_MASK } else { bits };
    change.set &= !field;
    change.clear &= !field;
    if field == attr::ATTR_ATIME_MASK {
        change.clear |= field;
        if on {
            change.set |= bits;
        }
    } else if on {
        change.set |= bits;
    } else {
        change.clear |= bits;
    }
}

fn attribute(option: &str) -> Option<(u64, bool)> {
    Some(match option {
        "ro" => (attr::ATTR_RDONLY, true),
        "rw" => (attr::ATTR_RDONLY, false),
        "nosuid" => (attr::ATTR_NOSUID, true),
        "suid" => (attr::ATTR_NOSUID, false),
        "nodev" => (attr::ATTR_NODEV, true),
        "dev" => (attr::ATTR_NODEV, false),
        "noexec" => (attr::ATTR_NOEXEC, true),
        "exec" => (attr::ATTR_NOEXEC, false),
        "nosymfollow" => (attr::ATTR_NOSYMFOLLOW, true),
        "symfollow" => (attr::ATTR_NOSYMFOLLOW, false),
        "nodiratime" => (attr::ATTR_NODIRATIME, true),
        "diratime" => (attr::ATTR_NODIRATIME, false),
        "noatime" => (attr::ATTR_NOATIME, true),
        "atime" => (attr::ATTR_NOATIME, false),
        "relatime" => (attr::ATTR_RELATIME, true),
        "norelatime" => (attr::ATTR_RELATIME, false),
        "strictatime" => (attr::ATTR_STRICTATIME, true),
        "nostrictatime" => (attr::ATTR_STRICTATIME, false),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<P> {
    Some(match option {
        "shared" => P::SHARED,
        "slave" => P::DOWNSTREAM,
        "private" => P::PRIVATE,
        "unbindable" => P::UNBINDABLE,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_known_option_is_taken_here_and_not_given_to_the_file_system() {
        for option in KNOWN {
            assert!(parse(&[(*option).to_owned()]).data.is_empty(), "{option}");
        }
        assert!(KNOWN.is_sorted());
        let o = parse(&["size=1m".into(), "nosuid".into(), "rro".into(), "rprivate".into()]);
        assert_eq!(o.data, ["size=1m"]);
        assert_eq!((o.one.set, o.tree.set), (attr::ATTR_NOSUID, attr::ATTR_RDONLY));
        assert_eq!(o.propagation, [(P::PRIVATE, true)]);
    }

    #[test]
    fn the_last_word_counts() {
        let o = parse(&["ro".into(), "rw".into(), "strictatime".into(), "noatime".into()]);
        assert_eq!(o.one.set, attr::ATTR_NOATIME);
        assert_eq!(o.one.clear, attr::ATTR_RDONLY | attr::ATTR_ATIME_MASK);
    }
}
