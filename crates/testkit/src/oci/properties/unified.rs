//! `linux.resources` where cgroup v2 is all there is, read back from the one hierarchy.

use super::p;
use crate::command::Cmd;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, lacks, read, same, skip, want};
use crate::random;
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(super) const ALL: &[Property] = &[
    p("unified/path", path),
    p("unified/own-namespace", own_namespace),
    p("unified/memory", memory),
    p("unified/memory-unlimited", memory_unlimited),
    p("unified/memory-limit-kills", memory_kills),
    p("unified/cpu-max", cpu_max),
    p("unified/cpu-weight", cpu_weight),
    p("unified/cpu-burst", cpu_burst),
    p("unified/cpu-idle", cpu_idle),
    p("unified/cpuset", cpuset),
    p("unified/pids", pids),
    p("unified/pids-limit-zero", pids_zero),
    p("unified/io-max", io_max),
    p("unified/io-weight", io_weight),
    p("unified/huge-pages", huge_pages),
    p("unified/files-by-name", by_name),
    p("unified/files-by-name-win", by_name_wins),
    p("unified/file-unknown", unknown),
    p("unified/file-outside", outside),
    p("unified/update", update),
    p("unified/devices-after-update", devices_after_update),
    p("unified/exec-without-a-device", exec_device),
    p("unified/frozen-while-paused", frozen),
    p("unified/created-paused-and-killed", killed_paused),
    p("unified/delete-kills-forkers", forkers),
    p("unified/delegated-to-its-root", delegated),
    p("unified/delegated-to-its-user", delegated_to_user),
    p("unified/not-delegated-read-only", not_delegated),
    p("unified/cgroups-below-are-removed", below),
];

const TOP: &str = "/sys/fs/cgroup";

fn needs(g: &Ground) -> Checked {
    if !g.runtime.cgroups {
        return skip("without cgroups");
    }
    if Path::new(TOP).join("cgroup.controllers").exists() {
        Ok(())
    } else {
        skip("not cgroup v2 alone")
    }
}

/// The container's cgroup.
fn at(b: &Bundle<'_>) -> PathBuf {
    Path::new(TOP).join(format!("conformance-{}", b.id))
}

/// A file of the container's cgroup; skipped where the kernel lacks the controller or the file.
fn value(b: &Bundle<'_>, file: &str) -> Checked<String> {
    let path = at(b).join(file);
    let controller = file.split('.').next().unwrap_or_default();
    let kernel = read(Path::new(TOP).join("cgroup.controllers"))?;
    if !kernel.split(' ').any(|name| name == controller) {
        return skip(format!("no controller {controller}"));
    }
    let active = read(at(b).join("cgroup.controllers"))?;
    let active = active.split(' ').any(|name| name == controller);
    if active && !path.exists() {
        return skip(format!("no {file} on this kernel"));
    }
    read(path)
}

/// A running container with these resources.
fn limited<'a>(g: &'a Ground, area: &str, resources: Value) -> Checked<Bundle<'a>> {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["linux"]["resources"][area] = resources;
    b.start()?;
    Ok(b)
}

/// The container has these values in these files.
fn holds(g: &Ground, area: &str, resources: Value, files: &[(&str, String)]) -> Checked {
    let b = limited(g, area, resources)?;
    for (file, wanted) in files {
        same(file, &value(&b, file)?, wanted)?;
    }
    b.end()
}

fn path(g: &Ground) -> Checked {
    let b = limited(g, "pids", json!({"limit": 99}))?;
    let seen = read(format!("/proc/{}/cgroup", b.pid()?))?;
    same("cgroup", seen, format!("0::/conformance-{}", b.id))?;
    b.end()
}

/// Seen from its own namespace, the cgroup is the root.
fn own_namespace(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max")?;
    b.namespace(json!({"type": "cgroup"}));
    mount_cgroup(&mut b, "ro");
    let limit = random::number(20..900);
    b.config["linux"]["resources"]["pids"] = json!({"limit": limit});
    same("cgroup and limit", b.output()?, format!("0::/\n{limit}"))
}

fn mount_cgroup(b: &mut Bundle<'_>, access: &str) {
    b.unmount("/sys/fs/cgroup");
    b.unmount("/sys");
    b.mount(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro"]}));
    b.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", access]}));
}

fn memory(g: &Ground) -> Checked {
    let limit = u64::from(random::number(16..200)) << 20;
    let (low, swap) = (limit / 2, u64::from(random::number(1..100)) << 20);
    holds(
        g,
        "memory",
        json!({"limit": limit, "reservation": low, "swap": limit + swap}),
        &[
            ("memory.max", limit.to_string()),
            ("memory.low", low.to_string()),
            ("memory.swap.max", swap.to_string()),
        ],
    )
}

fn memory_unlimited(g: &Ground) -> Checked {
    let max = || "max".to_owned();
    let files = [("memory.max", max()), ("memory.swap.max", max())];
    holds(g, "memory", json!({"limit": -1, "swap": -1}), &files)
}

/// What eats more is killed, and the kernel counts it for this cgroup.
fn memory_kills(g: &Ground) -> Checked {
    needs(g)?;
    let mut b =
        Bundle::new(g, "head -c 60000000 /dev/zero | tail > /dev/null; echo on; exec sleep 1000")?;
    b.config["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let pending = b.start()?;
    pending.wait_for("on")?;
    let events = read(at(&b).join("memory.events"))?;
    want(events.lines().any(|line| line.starts_with("oom_kill ")), "oom_kill", &events)?;
    lacks("events", &events, "oom_kill 0")?;
    b.end()
}

fn cpu_max(g: &Ground) -> Checked {
    let (quota, period) = (random::number(20..90) * 1000, random::number(100..900) * 1000);
    let file = |text: String| [("cpu.max", text)];
    let both = json!({"quota": quota, "period": period});
    holds(g, "cpu", both, &file(format!("{quota} {period}")))?;
    holds(g, "cpu", json!({"quota": quota}), &file(format!("{quota} 100000")))?;
    let none = json!({"quota": -1, "period": period});
    holds(g, "cpu", none, &file(format!("max {period}")))
}

/// The ends of the scales are common to all conversions; between them runtimes had two: the straight
/// one, and since 2025 one that gives 100 to 1024.
fn cpu_weight(g: &Ground) -> Checked {
    holds(g, "cpu", json!({"shares": 2}), &[("cpu.weight", "1".to_owned())])?;
    holds(g, "cpu", json!({"shares": 262_144}), &[("cpu.weight", "10000".to_owned())])?;
    let b = limited(g, "cpu", json!({"shares": 1024}))?;
    let seen = value(&b, "cpu.weight")?;
    want(["39", "100"].contains(&seen.as_str()), "weight of 1024 shares", seen)?;
    b.end()
}

fn cpu_burst(g: &Ground) -> Checked {
    let burst = random::number(1..20) * 1000;
    let resources = json!({"quota": 50_000, "period": 100_000, "burst": burst});
    holds(g, "cpu", resources, &[("cpu.max.burst", burst.to_string())])
}

fn cpu_idle(g: &Ground) -> Checked {
    holds(g, "cpu", json!({"idle": 1}), &[("cpu.idle", "1".to_owned())])
}

fn cpuset(g: &Ground) -> Checked {
    let files = [("cpuset.cpus", "0".to_owned()), ("cpuset.mems", "0".to_owned())];
    holds(g, "cpu", json!({"cpus": "0", "mems": "0"}), &files)
}

fn pids(g: &Ground) -> Checked {
    let limit = random::number(20..900);
    holds(g, "pids", json!({"limit": limit}), &[("pids.max", limit.to_string())])?;
    holds(g, "pids", json!({"limit": -1}), &[("pids.max", "max".to_owned())])
}

/// A limit since specification 1.3, not the absence of one. runc tells the kernel 1.
fn pids_zero(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["ociVersion"] = json!("1.3.0");
    b.config["linux"]["resources"]["pids"] = json!({"limit": 0});
    b.start()?;
    let seen = value(&b, "pids.max")?;
    want(seen == "0" || seen == "1", "pids.max", seen)?;
    b.end()
}

/// A disk that takes limits: not a loop device, which may be without a file.
fn disk() -> Option<(u32, u32)> {
    let text = ["vda", "sda", "nvme0n1"]
        .iter()
        .find_map(|name| std::fs::read_to_string(format!("/sys/block/{name}/dev")).ok())?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn io_max(g: &Ground) -> Checked {
    needs(g)?;
    let Some((major, minor)) = disk() else { return skip("no disk") };
    let rates: Vec<u32> = (0..4).map(|_| random::number(1000..90_000)).collect();
    let rate = |at: usize| json!([{"major": major, "minor": minor, "rate": rates[at]}]);
    let resources = json!({"throttleReadBpsDevice": rate(0), "throttleWriteBpsDevice": rate(1),
        "throttleReadIOPSDevice": rate(2), "throttleWriteIOPSDevice": rate(3)});
    let wanted = format!(
        "{major}:{minor} rbps={} wbps={} riops={} wiops={}",
        rates[0], rates[1], rates[2], rates[3]
    );
    holds(g, "blockIO", resources, &[("io.max", wanted)])
}

fn io_weight(g: &Ground) -> Checked {
    needs(g)?;
    let b = limited(g, "blockIO", json!({"weight": 700}))?;
    let file = if at(&b).join("io.bfq.weight").exists() { "io.bfq.weight" } else { "io.weight" };
    // The scale of BFQ is that of v1, 10 to 1000; io.weight goes from 1 to 10000.
    let wanted = if file == "io.bfq.weight" { "default 700" } else { "default 6970" };
    has("weight", &value(&b, file)?, wanted)?;
    b.end()
}

fn huge_pages(g: &Ground) -> Checked {
    let limit = u64::from(random::number(1..9)) << 21;
    let files = [("hugetlb.2MB.max", limit.to_string())];
    holds(g, "hugepageLimits", json!([{"pageSize": "2MB", "limit": limit}]), &files)
}

fn by_name(g: &Ground) -> Checked {
    let (high, oom) = (u64::from(random::number(30..90)) << 20, "1");
    let resources = json!({"memory.high": high.to_string(), "memory.oom.group": oom,
        "cpu.weight": "77", "pids.max": "78"});
    let files = [
        ("memory.high", high.to_string()),
        ("memory.oom.group", oom.to_owned()),
        ("cpu.weight", "77".to_owned()),
        ("pids.max", "78".to_owned()),
    ];
    holds(g, "unified", resources, &files)
}

/// Of a field and a file by name for the same thing, the file counts.
fn by_name_wins(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["linux"]["resources"]["pids"] = json!({"limit": 55});
    b.config["linux"]["resources"]["unified"] = json!({"pids.max": "66"});
    b.start()?;
    same("limit", value(&b, "pids.max")?, "66")?;
    b.end()
}

fn unknown(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "true")?;
    b.config["linux"]["resources"]["unified"] = json!({"memory.no-such-file": "1"});
    has("run", &b.refused()?, "memory.no-such-file")
}

fn outside(g: &Ground) -> Checked {
    needs(g)?;
    let before = read("/proc/sys/kernel/panic")?;
    let mut b = Bundle::new(g, "true")?;
    b.config["linux"]["resources"]["unified"] =
        json!({"../../../../proc/sys/kernel/panic": "12345"});
    b.refused()?;
    same("a file of the machine", read("/proc/sys/kernel/panic")?, before)
}

fn update(g: &Ground) -> Checked {
    let b = limited(g, "pids", json!({"limit": 44}))?;
    let memory = (u64::from(random::number(32..90)) << 20).to_string();
    b.ok(&[
        "update",
        "--memory",
        &memory,
        "--cpu-quota",
        "30000",
        "--cpu-period",
        "200000",
        &b.id,
    ])?;
    same("memory", &value(&b, "memory.max")?, &memory)?;
    same("cpu", value(&b, "cpu.max")?, "30000 200000")?;
    same("pids, as before", value(&b, "pids.max")?, "44")?;
    b.ok(&["update", "--pids-limit", "33", "--cpu-share", "262144", &b.id])?;
    same("pids", value(&b, "pids.max")?, "33")?;
    same("weight", value(&b, "cpu.weight")?, "10000")?;
    same("memory, as before", value(&b, "memory.max")?, memory)?;
    b.end()
}

const OPEN_DISK: &str = "[ -e /dev/kmsg ] && head -c 0 /dev/null && echo null; \
    head -c 1 /dev/kmsg 2>&1 | head -n 1";

fn kmsg(b: &mut Bundle<'_>) {
    b.config["linux"]["devices"] =
        json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}]);
}

fn denied(seen: &str) -> Checked {
    has("the allowed device", seen, "null")?;
    has("the other device", seen, "/dev/kmsg: Operation not permitted")
}

/// The program that decides on devices is neither lost nor opened by an update.
fn devices_after_update(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    kmsg(&mut b);
    b.start()?;
    denied(&b.exec(OPEN_DISK)?)?;
    for _ in 0..2 {
        b.ok(&["update", "--pids-limit", "50", &b.id])?;
        denied(&b.exec(OPEN_DISK)?)?;
    }
    b.end()
}

fn exec_device(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    kmsg(&mut b);
    let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"});
    b.config["linux"]["resources"]["devices"].as_array_mut().expect("a list").push(rule);
    b.start()?;
    denied(&b.exec(OPEN_DISK)?)?;
    same("writing", b.exec("echo x >> /dev/kmsg && echo written")?, "written")?;
    b.end()
}

fn frozen(g: &Ground) -> Checked {
    let b = limited(g, "pids", json!({"limit": 44}))?;
    let look = |wanted: &str| -> Checked {
        same("cgroup.freeze", read(at(&b).join("cgroup.freeze"))?, wanted)?;
        has("events", &read(at(&b).join("cgroup.events"))?, &format!("frozen {wanted}"))
    };
    look("0")?;
    b.ok(&["pause", &b.id])?;
    look("1")?;
    same("status", b.status()?, "paused")?;
    b.ok(&["resume", &b.id])?;
    look("0")?;
    b.end()
}

fn killed_paused(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.create()?;
    b.ok(&["pause", &b.id])?;
    b.ok(&["delete", "-f", &b.id])?;
    b.nothing_left()
}

/// Processes that go on multiplying, in the machine's pid namespace, are gone when `delete -f` is done.
fn forkers(g: &Ground) -> Checked {
    needs(g)?;
    let seconds = random::number(100_000..900_000).to_string();
    let script = format!(
        "f() {{ while :; do sleep {seconds} & usleep 20000; kill $!; done; }}; f & f & f & \
         echo ready; wait"
    );
    let mut b = Bundle::new(g, &script)?;
    b.without_namespace("pid");
    b.config["linux"]["resources"]["pids"] = json!({"limit": 30});
    let pending = b.start()?;
    pending.wait_for("ready")?;
    b.ok(&["delete", "-f", &b.id])?;
    b.nothing_left()?;
    let found = Cmd::host("pgrep", ["-f", &format!("^sleep {seconds}")]).output()?;
    same("processes left", found.text(), "")
}

/// The owner of the files that `/sys/kernel/cgroup/delegate` names, and of the directory.
fn owners(g: &Ground, access: &str, user: u32) -> Checked<Vec<(String, u32)>> {
    needs(g)?;
    let base = random::number(2..9) << 16;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["process"]["user"] = json!({"uid": user, "gid": user});
    b.user_namespace(base)?;
    b.namespace(json!({"type": "cgroup"}));
    mount_cgroup(&mut b, access);
    b.start()?;
    let mut owners = Vec::new();
    for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "pids.max"] {
        let Ok(meta) = at(&b).join(name).metadata() else { continue };
        owners.push((name.to_owned(), meta.uid().checked_sub(base).unwrap_or(u32::MAX)));
    }
    b.end()?;
    Ok(owners)
}

/// With a cgroup namespace and the hierarchy mounted writable, the container's root owns its cgroup, but
/// not its limits.
fn delegated(g: &Ground) -> Checked {
    check_owners(g, 0)
}

/// The user is the program's (config-linux.md, "Cgroup ownership").
fn delegated_to_user(g: &Ground) -> Checked {
    check_owners(g, random::number(1..60_000))
}

fn check_owners(g: &Ground, user: u32) -> Checked {
    for (name, owner) in owners(g, "rw", user)? {
        let wanted = if name == "pids.max" { u32::MAX } else { user };
        same(&format!("owner of {name:?}"), owner, wanted)?;
    }
    Ok(())
}

fn not_delegated(g: &Ground) -> Checked {
    for (name, owner) in owners(g, "ro", 0)? {
        same(&format!("owner of {name:?}"), owner, u32::MAX)?;
    }
    Ok(())
}

/// Cgroups that the container made below its own go with it.
fn below(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(
        g,
        "mkdir -p /sys/fs/cgroup/a/b /sys/fs/cgroup/c && echo made; exec sleep 1000",
    )?;
    b.namespace(json!({"type": "cgroup"}));
    mount_cgroup(&mut b, "rw");
    let pending = b.start()?;
    pending.wait_for("made")?;
    want(at(&b).join("a/b").is_dir(), "the cgroup below", at(&b))?;
    b.end()
}
