//! `linux.sysctl`: only what belongs to a namespace that the container does not share with its
//! caller may be written; everything else would change the host.

use rustix::fs::{fstat, stat};
use sys::clone as flag;

use crate::error::{Context, Error, Result};
use crate::namespaces::Namespaces;
use crate::procfs::ProcFs;

/// Of the ipc namespace, beside everything in fs.mqueue.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Refuses a key, in runc's words, unless its namespace is the container's own.
pub(crate) fn check(key: &str, namespaces: &Namespaces) -> Result<()> {
    let refuse = |why: &str| Err(Error::config("linux.sysctl", format!("sysctl {key:?} {why}")));
    let path = path(key)?;
    let own = |flag: u64, name: &str| is_apart(namespaces, flag, name);
    if path.starts_with("net/") {
        return match own(flag::CLONE_NEWNET, "net")? {
            true => Ok(()),
            false => refuse("not allowed in host network namespace"),
        };
    }
    if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
        return match own(flag::CLONE_NEWIPC, "ipc")? {
            true => Ok(()),
            false => refuse("is not allowed in the hosts ipc namespace"),
        };
    }
    if path == "kernel/hostname" && namespaces.has(flag::CLONE_NEWUTS) {
        return refuse("is not allowed as it conflicts with the OCI \"hostname\" field");
    }
    if path == "kernel/domainname" && own(flag::CLONE_NEWUTS, "uts")? {
        return Ok(());
    }
    refuse("is not in a separate kernel namespace")
}

/// Writes it, through the host's procfs: what is below /proc/sys follows the writer's namespaces.
pub(crate) fn write(proc: &ProcFs, key: &str, value: &str) -> Result<()> {
    proc.write(&format!("sys/{}", path(key)?), value.as_bytes())
}

/// The path below /proc/sys. As in sysctl(8) the first separator of the key, a dot or a slash, is
/// the one that separates; the other one then is part of names (`net.ipv4.conf.eth0/100.mtu`).
fn path(key: &str) -> Result<String> {
    let path = match key.find(['.', '/']) {
        Some(at) if key.as_bytes().get(at) == Some(&b'.') => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => key.to_owned(),
    };
    if path.split('/').any(|p| p.is_empty() || p == "." || p == "..") || path.contains('\0') {
        return Err(Error::config("linux.sysctl", format!("no such key: {key:?}")));
    }
    Ok(path)
}

/// Whether the container is in a namespace of this kind that is not the caller's.
fn is_apart(namespaces: &Namespaces, flag: u64, name: &str) -> Result<bool> {
    if namespaces.new & flag != 0 {
        return Ok(true);
    }
    let Some(join) = namespaces.join.iter().find(|j| j.flag == flag) else { return Ok(false) };
    let own = format!("/proc/self/ns/{name}");
    let own = stat(&own).ctx("stat", || own)?;
    let other = fstat(&join.fd).ctx("stat", || join.path.display().to_string())?;
    Ok((own.st_dev, own.st_ino) != (other.st_dev, other.st_ino))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::spec::Namespace;

    fn namespaces(kinds: &[&str]) -> Namespaces {
        let list: Vec<Namespace> =
            kinds.iter().map(|k| Namespace { kind: (*k).to_owned(), path: None }).collect();
        Namespaces::parse(&list).unwrap()
    }

    #[test]
    fn keys_of_namespaces_that_are_not_there() {
        let all = namespaces(&["mount", "network", "ipc", "uts"]);
        let none = namespaces(&["mount"]);
        for key in [
            "net.ipv4.ip_forward",
            "net/ipv4/ip_forward",
            "net.ipv4.conf.eth0/100.forwarding",
            "kernel.shmmax",
            "kernel/sem",
            "fs.mqueue.msg_max",
            "kernel.domainname",
        ] {
            assert!(check(key, &all).is_ok(), "{key}");
            assert!(check(key, &none).is_err(), "{key}");
        }
        for key in [
            "kernel.panic",
            "kernel/core_pattern",
            "kernel.hostname",
            "vm.swappiness",
            "fs.mqueue",
            "fs.mqueuex.y",
            "network.x",
            "net",
            "net/../kernel/panic",
            "net.//.kernel.panic",
            "net/./../kernel/panic",
            "",
            "net.",
        ] {
            assert!(check(key, &all).is_err(), "{key}");
        }
        let text = check("kernel.panic", &all).unwrap_err().to_string();
        assert!(text.ends_with("sysctl \"kernel.panic\" is not in a separate kernel namespace"));
    }

    #[test]
    fn both_forms_of_keys() {
        assert_eq!(path("net.ipv4.conf.eth0/100.mtu").unwrap(), "net/ipv4/conf/eth0.100/mtu");
        assert_eq!(path("net/ipv4/conf/eth0.100/mtu").unwrap(), "net/ipv4/conf/eth0.100/mtu");
    }

    #[test]
    fn the_callers_own_namespace_by_its_path_is_the_hosts() {
        let list: Vec<Namespace> = serde_json::from_str(
            r#"[{"type":"mount"},{"type":"network","path":"/proc/self/ns/net"},{"type":"ipc","path":"/proc/self/ns/ipc"}]"#,
        )
        .unwrap();
        let joined = Namespaces::parse(&list).unwrap();
        assert!(check("net.ipv4.ip_forward", &joined).is_err());
        assert!(check("kernel.shmmax", &joined).is_err());
    }
}
