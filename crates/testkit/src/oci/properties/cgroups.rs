//! `linux.cgroupsPath` and `linux.resources`, read back from the hierarchies.

use super::p;
use crate::oci::bundle::{Bundle, cgroups_named};
use crate::oci::{Checked, Ground, Property, has, read, same, skip, want};
use crate::random;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub(super) const ALL: &[Property] = &[
    p("cgroups/every-hierarchy", every_hierarchy),
    p("cgroups/path-nested", path_nested),
    p("cgroups/path-absent", path_absent),
    p("cgroups/removed-with-the-container", removed),
    p("cgroups/failed-limit-leaves-nothing", failed_limit),
    p("cgroups/memory", memory),
    p("cgroups/memory-and-swap", memory_swap),
    p("cgroups/memory-swappiness", swappiness),
    p("cgroups/memory-oom-killer", oom_killer),
    p("cgroups/memory-limit-holds", memory_holds),
    p("cgroups/cpu-shares", cpu_shares),
    p("cgroups/cpu-quota", cpu_quota),
    p("cgroups/cpu-burst", cpu_burst),
    p("cgroups/cpu-idle", cpu_idle),
    p("cgroups/cpuset", cpuset),
    p("cgroups/cpuset-holds", cpuset_holds),
    p("cgroups/pids", pids),
    p("cgroups/pids-limit-zero", pids_zero),
    p("cgroups/pids-limit-holds", pids_hold),
    p("cgroups/block-io-weight", weight),
    p("cgroups/block-io-throttle", throttle),
    p("cgroups/huge-pages", huge_pages),
    p("cgroups/unified-on-v1", unified_v1),
    p("cgroups/zero-means-unset", zero),
    p("cgroups/no-resources", no_resources),
    p("cgroups/exec-is-in-it", exec_in_it),
];

fn needs(g: &Ground) -> Checked {
    if g.runtime.cgroups { Ok(()) } else { skip("without cgroups") }
}

/// For what v2 does not have, and a runtime may refuse there.
fn needs_v1(g: &Ground) -> Checked {
    needs(g)?;
    if Path::new("/sys/fs/cgroup/memory").is_dir() { Ok(()) } else { skip("v2 alone") }
}

/// A running container with these resources.
fn limited<'a>(g: &'a Ground, area: &str, resources: Value) -> Checked<Bundle<'a>> {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["linux"]["resources"][area] = resources;
    b.start()?;
    Ok(b)
}

fn hierarchies(pid: u32) -> Checked<Vec<(String, String)>> {
    let text = read(format!("/proc/{pid}/cgroup"))?;
    let pair = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1).map(str::to_owned);
        Some((fields.next()?, fields.next()?))
    };
    Ok(text.lines().filter_map(pair).collect())
}

fn every_hierarchy(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    let name = format!("/conformance-{}", b.id);
    for (controllers, path) in hierarchies(b.pid()?)? {
        // v2 beside v1 may be left out where no controller is wanted of it.
        if !controllers.is_empty() {
            want(path == name, "the container's cgroup", (controllers, path))?;
        }
    }
    b.end()
}

fn path_nested(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let top = format!("conformance-{}", b.id);
    b.config["linux"]["cgroupsPath"] = json!(format!("/{top}/a/b"));
    b.config["linux"]["resources"]["pids"] = json!({"limit": 77});
    b.start()?;
    let paths: Vec<String> = hierarchies(b.pid()?)?.into_iter().map(|(_, path)| path).collect();
    want(paths.iter().any(|path| *path == format!("/{top}/a/b")), "cgroup", paths)?;
    let inner = Path::new("/sys/fs/cgroup/pids").join(&top).join("a/b");
    if inner.parent().is_some_and(Path::is_dir) {
        same("limit", read(inner.join("pids.max"))?, "77")?;
    }
    b.ok(&["delete", "-f", &b.id])?;
    want(!inner.exists(), "the container's cgroup is left", inner)?;
    // What is above it was made on the way, and may stay.
    for cgroup in cgroups_named(&top) {
        drop(std::fs::remove_dir(cgroup.join("a")));
        drop(std::fs::remove_dir(cgroup));
    }
    Ok(())
}

fn path_absent(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["linux"].as_object_mut().expect("an object").remove("cgroupsPath");
    b.start()?;
    let paths: Vec<String> = hierarchies(b.pid()?)?.into_iter().map(|(_, path)| path).collect();
    let id = b.id.clone();
    want(paths.iter().any(|path| path.ends_with(&id)), "named after the container", paths)?;
    b.ok(&["delete", "-f", &id])?;
    same("cgroups left", cgroups_named(&id), Vec::<PathBuf>::new())
}

fn removed(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "sleep 1000 & sleep 1000 & exec sleep 1000")?;
    b.start()?;
    want(!cgroups_named(&format!("conformance-{}", b.id)).is_empty(), "cgroups", "none")?;
    b.ok(&["delete", "-f", &b.id])?;
    b.nothing_left()
}

fn failed_limit(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "true")?;
    b.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swappiness": 101});
    has("run", &b.refused()?, "swappiness")
}

fn megabytes(range: std::ops::Range<u32>) -> u64 {
    u64::from(random::number(range)) << 20
}

fn memory(g: &Ground) -> Checked {
    let limit = megabytes(32..200);
    let b = limited(g, "memory", json!({"limit": limit, "reservation": limit / 2}))?;
    same("limit", b.limit("memory", "memory.limit_in_bytes")?, limit.to_string())?;
    same("soft", b.limit("memory", "memory.soft_limit_in_bytes")?, (limit / 2).to_string())?;
    b.end()
}

fn memory_swap(g: &Ground) -> Checked {
    let limit = megabytes(32..200);
    let b = limited(g, "memory", json!({"limit": limit, "swap": limit * 2}))?;
    same("swap", b.limit("memory", "memory.memsw.limit_in_bytes")?, (limit * 2).to_string())?;
    b.end()
}

fn swappiness(g: &Ground) -> Checked {
    needs_v1(g)?;
    let value = random::number(0..101);
    let b = limited(g, "memory", json!({"limit": 64 << 20, "swappiness": value}))?;
    same("swappiness", b.limit("memory", "memory.swappiness")?, value.to_string())?;
    b.end()
}

fn oom_killer(g: &Ground) -> Checked {
    needs_v1(g)?;
    let b = limited(g, "memory", json!({"limit": 64 << 20, "disableOOMKiller": true}))?;
    has("control", &b.limit("memory", "memory.oom_control")?, "oom_kill_disable 1")?;
    b.end()
}

fn memory_holds(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "head -c 60000000 /dev/zero | tail | wc -c; echo on")?;
    b.config["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let ran = b.run()?;
    want(!ran.stdout.contains("60000000"), "60 MB in 16", ran.to_string())
}

fn cpu_shares(g: &Ground) -> Checked {
    let shares = random::number(2..3000);
    let b = limited(g, "cpu", json!({"shares": shares}))?;
    same("shares", b.limit("cpu", "cpu.shares")?, shares.to_string())?;
    b.end()
}

fn cpu_quota(g: &Ground) -> Checked {
    let (quota, period) = (random::number(20..90) * 1000, random::number(100..900) * 1000);
    let b = limited(g, "cpu", json!({"quota": quota, "period": period}))?;
    same("quota", b.limit("cpu", "cpu.cfs_quota_us")?, quota.to_string())?;
    same("period", b.limit("cpu", "cpu.cfs_period_us")?, period.to_string())?;
    b.end()
}

fn cpu_burst(g: &Ground) -> Checked {
    let burst = random::number(1..20) * 1000;
    let b = limited(g, "cpu", json!({"quota": 50_000, "period": 100_000, "burst": burst}))?;
    same("burst", b.limit("cpu", "cpu.cfs_burst_us")?, burst.to_string())?;
    b.end()
}

fn cpu_idle(g: &Ground) -> Checked {
    let b = limited(g, "cpu", json!({"idle": 1}))?;
    same("idle", b.limit("cpu", "cpu.idle")?, "1")?;
    b.end()
}

/// A limit since specification 1.3, not the absence of one. runc tells the kernel 1.
fn pids_zero(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["ociVersion"] = json!("1.3.0");
    b.config["linux"]["resources"]["pids"] = json!({"limit": 0});
    b.start()?;
    let seen = b.limit("pids", "pids.max")?;
    want(seen == "0" || seen == "1", "pids.max", seen)?;
    b.end()
}

fn cpuset(g: &Ground) -> Checked {
    let b = limited(g, "cpu", json!({"cpus": "0", "mems": "0"}))?;
    same("processors", b.limit("cpuset", "cpuset.cpus")?, "0")?;
    same("memory", b.limit("cpuset", "cpuset.mems")?, "0")?;
    b.end()
}

fn cpuset_holds(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "grep Cpus_allowed_list /proc/self/status")?;
    b.config["linux"]["resources"]["cpu"] = json!({"cpus": "1"});
    if !read("/sys/devices/system/cpu/online")?.contains('1') {
        return skip("one processor");
    }
    same("processors", b.output()?, "Cpus_allowed_list:\t1")
}

fn pids(g: &Ground) -> Checked {
    let limit = random::number(20..900);
    let b = limited(g, "pids", json!({"limit": limit}))?;
    same("limit", b.limit("pids", "pids.max")?, limit.to_string())?;
    b.end()?;
    let b = limited(g, "pids", json!({"limit": -1}))?;
    same("no limit", b.limit("pids", "pids.max")?, "max")?;
    b.end()
}

fn pids_hold(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; echo on")?;
    b.config["linux"]["resources"]["pids"] = json!({"limit": 5});
    let ran = b.run()?;
    has("the sixth process", &ran.stderr, "can't fork")
}

fn weight(g: &Ground) -> Checked {
    needs(g)?;
    if !["blkio.weight", "blkio.bfq.weight"]
        .iter()
        .any(|file| Path::new("/sys/fs/cgroup/blkio").join(file).exists())
    {
        return skip("no weights in this kernel");
    }
    let value = random::number(100..900);
    let b = limited(g, "blockIO", json!({"weight": value}))?;
    let file = if b.cgroup("blkio").join("blkio.weight").exists() {
        "blkio.weight"
    } else {
        "blkio.bfq.weight"
    };
    has("weight", &b.limit("blkio", file)?, &value.to_string())?;
    b.end()
}

/// Major and minor number of some disk.
fn disk() -> Option<(u32, u32)> {
    let mut disks: Vec<PathBuf> = std::fs::read_dir("/sys/block")
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| !path.display().to_string().contains("/ram"))
        .collect();
    disks.sort();
    let text = std::fs::read_to_string(disks.first()?.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn throttle(g: &Ground) -> Checked {
    needs(g)?;
    let Some((major, minor)) = disk() else { return skip("no disk") };
    if !Path::new("/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device").exists() {
        return skip("no throttling in this kernel");
    }
    let rates: Vec<u32> = (0..4).map(|_| random::number(1000..90_000)).collect();
    let rate = |at: usize| json!([{"major": major, "minor": minor, "rate": rates[at]}]);
    let b = limited(
        g,
        "blockIO",
        json!({"throttleReadBpsDevice": rate(0), "throttleWriteBpsDevice": rate(1),
            "throttleReadIOPSDevice": rate(2), "throttleWriteIOPSDevice": rate(3)}),
    )?;
    for (at, file) in ["read_bps", "write_bps", "read_iops", "write_iops"].iter().enumerate() {
        let got = b.limit("blkio", &format!("blkio.throttle.{file}_device"))?;
        same(file, got, format!("{major}:{minor} {}", rates[at]))?;
    }
    b.end()
}

fn huge_pages(g: &Ground) -> Checked {
    needs(g)?;
    let b = Bundle::new(g, "true")?;
    if !Path::new("/sys/fs/cgroup/hugetlb").is_dir() {
        return skip("no controller hugetlb of v1");
    }
    drop(b);
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["linux"]["resources"]["hugepageLimits"] =
        json!([{"pageSize": "2MB", "limit": 4 << 20}]);
    b.start()?;
    same("limit", b.limit("hugetlb", "hugetlb.2MB.limit_in_bytes")?, (4 << 20).to_string())?;
    b.end()
}

/// A field that only v2 has is not passed over on v1.
fn unified_v1(g: &Ground) -> Checked {
    needs_v1(g)?;
    let mut b = Bundle::new(g, "true")?;
    b.config["linux"]["resources"]["unified"] = json!({"memory.high": "100000000"});
    has("run", &b.refused()?.to_lowercase(), "unified")
}

fn zero(g: &Ground) -> Checked {
    let b = limited(g, "cpu", json!({"shares": 0, "quota": 0, "period": 0}))?;
    same("shares", b.limit("cpu", "cpu.shares")?, "1024")?;
    same("quota", b.limit("cpu", "cpu.cfs_quota_us")?, "-1")?;
    b.end()
}

fn no_resources(g: &Ground) -> Checked {
    let word = random::token(7);
    let mut b = Bundle::new(g, &format!("echo {word}"))?;
    b.config["linux"].as_object_mut().expect("an object").remove("resources");
    same("output", b.output()?, word)
}

fn exec_in_it(g: &Ground) -> Checked {
    needs(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    let got = b.exec(
        "cat /proc/1/cgroup > /tmp/a; cat /proc/self/cgroup > /tmp/b; cat /tmp/a; echo; cat /tmp/b",
    )?;
    let (one, two) = got.split_once("\n\n").unwrap_or_default();
    same("cgroups of exec and of the container", two, one)?;
    b.end()
}
