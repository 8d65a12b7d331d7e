//! Namespaces: of its own, the caller's, another's by path; and what belongs to them.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Failure, Ground, Property, has, read, same, skip, want};
use crate::random;
use serde_json::json;

pub(super) const ALL: &[Property] = &[
    p("namespaces/own-pid", |g| own(g, "pid")),
    p("namespaces/own-network", |g| own(g, "network")),
    p("namespaces/own-ipc", |g| own(g, "ipc")),
    p("namespaces/own-uts", |g| own(g, "uts")),
    p("namespaces/own-mount", |g| own(g, "mount")),
    p("namespaces/own-cgroup", own_cgroup),
    p("namespaces/own-time", |g| own(g, "time")),
    p("namespaces/of-the-caller-pid", |g| inherited(g, "pid")),
    p("namespaces/of-the-caller-network", |g| inherited(g, "network")),
    p("namespaces/of-the-caller-ipc", |g| inherited(g, "ipc")),
    p("namespaces/of-the-caller-uts", |g| inherited(g, "uts")),
    p("namespaces/of-the-caller-cgroup", |g| inherited(g, "cgroup")),
    p("namespaces/joined-pid", |g| joined(g, "pid")),
    p("namespaces/joined-network", |g| joined(g, "network")),
    p("namespaces/joined-ipc", |g| joined(g, "ipc")),
    p("namespaces/joined-uts", |g| joined(g, "uts")),
    p("namespaces/joined-cgroup", |g| joined(g, "cgroup")),
    p("namespaces/joined-time", |g| joined(g, "time")),
    p("namespaces/joined-by-a-bound-file", bound),
    p("namespaces/joined-of-another-kind", wrong_kind),
    p("namespaces/loopback-is-up", loopback),
    p("namespaces/time-offsets", time_offsets),
    p("namespaces/hostname", hostname),
    p("namespaces/hostname-unset", hostname_unset),
    p("namespaces/domainname", domainname),
    p("namespaces/sysctl-network", sysctl_network),
    p("namespaces/sysctl-ipc", sysctl_ipc),
    p("namespaces/sysctl-uts", sysctl_uts),
    p("namespaces/sysctl-with-slashes", sysctl_slashes),
    p("namespaces/sysctl-unknown", sysctl_unknown),
    p("namespaces/mqueue-is-the-container-s", mqueue),
    p("namespaces/net-devices", net_devices),
];

fn file(kind: &str) -> &str {
    match kind {
        "network" => "net",
        "mount" => "mnt",
        other => other,
    }
}

fn link(pid: &str, kind: &str) -> Checked<String> {
    let path = format!("/proc/{pid}/ns/{}", file(kind));
    match std::fs::read_link(&path) {
        Ok(target) => Ok(target.display().to_string()),
        Err(_) if !std::path::Path::new(&format!("/proc/self/ns/{}", file(kind))).exists() => {
            skip(format!("no {kind} namespaces in this kernel"))
        }
        Err(error) => Err(Failure::Violated(format!("read {path}: {error}"))),
    }
}

fn asks(kind: &str) -> String {
    format!("readlink /proc/self/ns/{}", file(kind))
}

fn own(g: &Ground, kind: &str) -> Checked {
    let mut b = Bundle::new(g, &asks(kind))?;
    b.namespace(json!({"type": kind}));
    let (first, second) = (b.output()?, b.output()?);
    want(first.starts_with(file(kind)), "the namespace", &first)?;
    want(first != link("self", kind)?, "the namespace is the caller's", &first)?;
    // Numbers of what is gone may come again, but not while the first container lives.
    let mut held = Bundle::new(g, "sleep 1000")?;
    held.namespace(json!({"type": kind}));
    held.start()?;
    let third = link(&held.pid()?.to_string(), kind)?;
    want(b.output()? != third, "two containers share it", (second, third))
}

fn own_cgroup(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "readlink /proc/self/ns/cgroup; cat /proc/self/cgroup")?;
    b.namespace(json!({"type": "cgroup"}));
    let got = b.output()?;
    want(!got.starts_with(&link("self", "cgroup")?), "the namespace is the caller's", &got)?;
    for line in got.lines().skip(1) {
        want(line.ends_with(":/"), "its root is the container's cgroup", line)?;
    }
    Ok(())
}

fn inherited(g: &Ground, kind: &str) -> Checked {
    let mut b = Bundle::new(g, &asks(kind))?;
    b.without_namespace(kind);
    if kind == "uts" {
        b.config.as_object_mut().expect("an object").remove("hostname");
    }
    if kind == "network" {
        // A new sysfs needs a network namespace of one's own only in a user namespace.
        b.unmount("/sys");
    }
    same("the namespace", b.output()?, link("self", kind)?)
}

fn joined(g: &Ground, kind: &str) -> Checked {
    let mut first = Bundle::new(g, "exec sleep 1000")?;
    first.namespace(json!({"type": kind}));
    first.start()?;
    let pid = first.pid()?.to_string();
    let mut b = Bundle::new(g, &asks(kind))?;
    b.namespace(json!({"type": kind, "path": format!("/proc/{pid}/ns/{}", file(kind))}));
    if kind == "uts" {
        b.config.as_object_mut().expect("an object").remove("hostname");
    }
    same("the namespace", b.output()?, link(&pid, kind)?)?;
    first.end()
}

fn bound(g: &Ground) -> Checked {
    let name = random::name("ns");
    let ip = |words: &[&str]| {
        crate::command::Cmd::host("ip", words.iter().map(|w| (*w).to_owned())).ok()
    };
    ip(&["netns", "add", &name])?;
    let look = || -> Checked {
        let mut b = Bundle::new(g, "ip link show marker0 | head -n 1; readlink /proc/self/ns/net")?;
        ip(&["-n", &name, "link", "add", "marker0", "type", "veth", "peer", "name", "marker1"])?;
        b.namespace(json!({"type": "network", "path": format!("/run/netns/{name}")}));
        has("its link", &b.output()?, "marker0")
    };
    let looked = look();
    ip(&["netns", "delete", &name])?;
    looked
}

fn wrong_kind(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.namespace(json!({"type": "network", "path": "/proc/self/ns/uts"}));
    b.refused().map(drop)
}

fn loopback(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "ip address show lo")?;
    let got = b.output()?;
    has("lo", &got, "127.0.0.1/8")?;
    has("lo", &got, "UP")
}

fn time_offsets(g: &Ground) -> Checked {
    link("self", "time")?;
    let (boot, mono) = (random::number(100_000..900_000), random::number(100_000..900_000));
    let mut b = Bundle::new(g, "cat /proc/self/timens_offsets /proc/uptime")?;
    b.namespace(json!({"type": "time"}));
    b.config["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": boot}, "monotonic": {"secs": mono, "nanosecs": 17}});
    let got = b.output()?;
    let words: Vec<&str> = got.split_whitespace().collect();
    let wanted = ["monotonic", &mono.to_string(), "17", "boottime", &boot.to_string(), "0"];
    same("offsets", &words[..6.min(words.len())], wanted)?;
    let up: f64 = words.get(6).and_then(|word| word.parse().ok()).unwrap_or(0.0);
    want(up > f64::from(boot), "uptime", up)
}

fn hostname(g: &Ground) -> Checked {
    let name = random::name("host");
    let mut b = Bundle::new(g, "hostname; cat /proc/sys/kernel/hostname")?;
    b.config["hostname"] = json!(name);
    same("name", b.output()?, format!("{name}\n{name}"))
}

fn hostname_unset(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "cat /proc/sys/kernel/hostname")?;
    b.config.as_object_mut().expect("an object").remove("hostname");
    same("name", b.output()?, read("/proc/sys/kernel/hostname")?)
}

fn domainname(g: &Ground) -> Checked {
    let name = random::name("domain");
    let mut b = Bundle::new(g, "cat /proc/sys/kernel/domainname")?;
    b.config["domainname"] = json!(name);
    same("name", b.output()?, name)
}

fn sysctl_network(g: &Ground) -> Checked {
    let port = random::number(20..1000);
    let mut b = Bundle::new(
        g,
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ip_forward",
    )?;
    let name = "net.ipv4.ip_unprivileged_port_start";
    b.config["linux"]["sysctl"] = json!({name: port.to_string(), "net.ipv4.ip_forward": "1"});
    same("values", b.output()?, format!("{port}\n1"))
}

fn sysctl_ipc(g: &Ground) -> Checked {
    let (shm, queue) = (random::number(100..4000), random::number(10..200));
    let mut b = Bundle::new(g, "cat /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max")?;
    b.config["linux"]["sysctl"] =
        json!({"kernel.shmmni": shm.to_string(), "fs.mqueue.msg_max": queue.to_string()});
    same("values", b.output()?, format!("{shm}\n{queue}"))
}

fn sysctl_uts(g: &Ground) -> Checked {
    let name = random::name("domain");
    let mut b = Bundle::new(g, "cat /proc/sys/kernel/domainname")?;
    b.config["linux"]["sysctl"] = json!({"kernel.domainname": name});
    same("name", b.output()?, name)
}

fn sysctl_slashes(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "cat /proc/sys/net/ipv4/conf/lo/forwarding")?;
    b.config["linux"]["sysctl"] = json!({"net/ipv4/conf/lo/forwarding": "1"});
    same("value", b.output()?, "1")
}

fn sysctl_unknown(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let name = random::token(7);
    b.config["linux"]["sysctl"] = json!({format!("net.{name}"): "1"});
    has("run", &b.refused()?, &name)
}

fn mqueue(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /dev/mqueue/one; ls /dev/mqueue")?;
    same("queues", b.output()?, "one")?;
    same("queues of another", Bundle::new(g, "ls /dev/mqueue")?.output()?, "")
}

/// An interface of the host moves into the container, with a new name and its addresses.
fn net_devices(g: &Ground) -> Checked {
    let (name, peer) = (format!("d{}", random::token(6)), format!("p{}", random::token(6)));
    let ip = |words: &str| crate::command::Cmd::host("ip", words.split(' ')).ok();
    ip(&format!("link add {name} type veth peer name {peer}"))?;
    let look = || -> Checked {
        ip(&format!("address add 192.0.2.7/24 dev {name}"))?;
        let mut b = Bundle::new(g, "ip address show moved0")?;
        b.config["linux"]["netDevices"] = json!({&name: {"name": "moved0"}});
        let got = b.output()?;
        has("the link", &got, "moved0")?;
        has("its address", &got, "192.0.2.7/24")
    };
    let looked = look();
    // The pair is gone with the container's namespace, or still here.
    drop(ip(&format!("link delete {peer}")));
    looked
}
