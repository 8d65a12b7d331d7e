//! cgroup v2 limits.

use std::path::Path;

use rustix::io::Errno;

use super::files;
use crate::error::{Context, Error, Result};
use crate::spec::{BlockIo, Cpu, HugepageLimit, Memory, Resources};

const BASE: &str = "/sys/fs/cgroup";

/// Makes the directory, with every controller that its parents can give, systemd's too, which enables only
/// those that it sets itself (as runc 1.1). `true` if it was missing.
pub(super) fn make(dir: &Path) -> Result<bool> {
    let mut ancestors: Vec<&Path> = dir.ancestors().skip(1).collect();
    ancestors.reverse();
    for parent in ancestors.into_iter().filter(|p| p.starts_with(BASE)) {
        // The directories of a hybrid host that lie above the v2 mount point.
        if parent == Path::new(BASE) && !parent.join("cgroup.controllers").exists() {
            continue;
        }
        files::make(parent)?;
        enable_controllers(parent)?;
    }
    files::make(dir)
}

fn enable_controllers(parent: &Path) -> Result<()> {
    let have = files::read(&parent.join("cgroup.controllers"))?;
    let on = files::read(&parent.join("cgroup.subtree_control"))?;
    let missing: Vec<String> = have
        .split_whitespace()
        .filter(|c| !on.split_whitespace().any(|o| o == *c))
        .map(|c| format!("+{c}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if files::write(parent, "cgroup.subtree_control", &missing.join(" ")).is_ok() {
        return Ok(());
    }
    // One that cannot be enabled here (a threaded domain, real-time processes) must not take the
    // others with it. Whether it is needed shows when its limit is written.
    for one in &missing {
        match files::write(parent, "cgroup.subtree_control", one) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.errno(),
                    Some(
                        Errno::INVAL
                            | Errno::BUSY
                            | Errno::OPNOTSUPP
                            | Errno::NOENT
                            | Errno::ACCESS
                            | Errno::PERM
                            | Errno::ROFS
                    )
                ) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// See [`super::Cgroup::delegate`].
pub(super) fn delegate(dir: &Path, uid: u32) -> Result<()> {
    /// What kernels without a list of their own would have in it.
    const USUAL: &str = "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n";
    let list = files::read_optional(Path::new("/sys/kernel/cgroup"), "delegate")?;
    let list = list.unwrap_or_else(|| USUAL.to_owned());
    for name in std::iter::once("").chain(list.lines()) {
        let path = if name.is_empty() { dir.to_owned() } else { dir.join(name) };
        match rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(uid)), None) {
            // A controller that this cgroup does not have.
            Err(Errno::NOENT) if !name.is_empty() => {}
            other => other.ctx("chown", || path.display().to_string())?,
        }
    }
    Ok(())
}

pub(super) fn set(dir: &Path, r: &Resources) -> Result<()> {
    if let Some(m) = &r.memory {
        memory(dir, m)?;
    }
    if let Some(c) = &r.cpu {
        cpu(dir, c)?;
    }
    if let Some(limit) = r.pids.as_ref().and_then(|p| p.limit) {
        files::write(dir, "pids.max", &max(pids_limit(limit)))?;
    }
    if let Some(b) = &r.block_io {
        io(dir, b)?;
    }
    for h in &r.hugepage_limits {
        hugetlb(dir, h)?;
    }
    rdma(dir, r)?;
    if let Some(n) = &r.network
        && (n.class_id.is_some_and(|c| c != 0) || !n.priorities.is_empty())
    {
        return Err(Error::config("linux.resources.network", "is cgroup v1 only"));
    }
    unified(dir, r)
}

/// 0 is a limit since specification 1.3; runc 1.4 tells systemd and the kernel 1, which systemd takes and
/// which is the same for the one process that is there.
pub(super) fn pids_limit(limit: i64) -> i64 {
    if limit == 0 { 1 } else { limit }
}

pub(super) fn max(n: i64) -> String {
    if n < 0 { "max".into() } else { n.to_string() }
}

fn memory(dir: &Path, m: &Memory) -> Result<()> {
    let limit = m.limit.filter(|l| *l != 0);
    if m.swap.is_some_and(|s| s > 0) && limit.is_none() {
        // An update of swap alone: what is in force counts.
        let now = files::number(dir, "memory.max")?;
        let limit = i64::try_from(now).ok().filter(|l| *l > 0);
        if limit.is_some() {
            return memory(dir, &Memory { limit, ..m.clone() });
        }
    }
    let swap = swap_limit(m)?;
    if let Some(swap) = swap {
        match files::write(dir, "memory.swap.max", &max(swap)) {
            // No swap accounting: fine if the container is to have no limit of its own.
            Err(e) if e.errno() == Some(Errno::NOENT) && swap < 0 => {}
            other => other?,
        }
    }
    if let Some(limit) = limit {
        check_usage(dir, m)?;
        files::write(dir, "memory.max", &max(limit))?;
    }
    if let Some(r) = m.reservation.filter(|r| *r != 0) {
        files::write(dir, "memory.low", &max(r))?;
    }
    if m.disable_oom_killer == Some(true) {
        return Err(Error::config("linux.resources.memory.disableOOMKiller", "is cgroup v1 only"));
    }
    // Kernel memory is part of memory, and its own limit was without effect in v1 already.
    for (set, field) in [
        (m.swappiness.is_some(), "linux.resources.memory.swappiness"),
        (m.kernel_tcp.is_some_and(|t| t != 0), "linux.resources.memory.kernelTCP"),
    ] {
        if set {
            return Err(Error::config(field, "is cgroup v1 only"));
        }
    }
    Ok(())
}

/// `memory.checkBeforeUpdate`: refuses a limit below what is in use, for which processes would be killed.
pub(super) fn check_usage(dir: &Path, m: &Memory) -> Result<()> {
    let Some(limit) = m.limit.filter(|l| *l > 0 && m.check_before_update == Some(true)) else {
        return Ok(());
    };
    let usage = files::number(dir, "memory.current")?;
    match i64::try_from(usage) {
        Ok(now) if now > limit => Err(Error::config(
            "linux.resources.memory.limit",
            format!("{limit} is below the current usage {usage}"),
        )),
        _ => Ok(()),
    }
}

/// v1 counts memory and swap together, v2 swap alone; the spec speaks v1.
pub(super) fn swap_limit(m: &Memory) -> Result<Option<i64>> {
    let bad = |problem: &str| Error::config("linux.resources.memory.swap", problem.to_owned());
    let limit = m.limit.filter(|l| *l != 0);
    match m.swap.filter(|s| *s != 0) {
        None if limit == Some(-1) => Ok(Some(-1)),
        None => Ok(None),
        Some(-1) => Ok(Some(-1)),
        Some(swap) if swap < 0 => Err(bad("is negative")),
        Some(swap) => match limit {
            None => Err(bad("needs a memory limit")),
            Some(-1) => Err(bad("is set, but memory is not limited")),
            Some(limit) if swap < limit => Err(bad("is below the memory limit")),
            Some(limit) => Ok(Some(swap - limit)),
        },
    }
}

/// v1's cpu.shares (2 to 262144, 1024 usual) as cpu.weight (1 to 10000, 100 usual): runc's curve
/// since 1.4, on which the usual values, minima and maxima meet.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    // 262144 is far within what an f64 holds exactly.
    let l = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    let weight = 10f64.powf(exponent).ceil();
    // The formula's range is 1 to 10000; counting up avoids a lossy cast.
    (1..=10_000u32).find(|w| f64::from(*w) >= weight).map_or(10_000, u64::from)
}

fn cpu(dir: &Path, c: &Cpu) -> Result<()> {
    if let Some(idle) = c.idle {
        files::write(dir, "cpu.idle", &idle.to_string())?;
    }
    if let Some(shares) = c.shares.filter(|s| *s != 0)
        && c.idle != Some(1)
    {
        files::write(dir, "cpu.weight", &cpu_weight(shares).to_string())?;
    }
    // The kernel wants a burst within the quota: a smaller one goes first, a larger one afterwards.
    if let Some(burst) = c.burst {
        match files::write(dir, "cpu.max.burst", &burst.to_string()) {
            Err(e) if e.errno() == Some(Errno::INVAL) => {}
            other => other?,
        }
    }
    let (quota, period) = (c.quota.filter(|q| *q != 0), c.period.filter(|p| *p != 0));
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(q) if q > 0 => q.to_string(),
            Some(_) => "max".to_owned(),
            // The period alone: the quota stays.
            None => {
                let now = files::read(&dir.join("cpu.max"))?;
                now.split_whitespace().next().unwrap_or("max").to_owned()
            }
        };
        let text = match period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        files::write(dir, "cpu.max", &text)?;
    }
    if let Some(burst) = c.burst {
        files::write(dir, "cpu.max.burst", &burst.to_string())?;
    }
    if c.realtime_period.is_some_and(|p| p != 0) || c.realtime_runtime.is_some_and(|r| r != 0) {
        return Err(Error::config("linux.resources.cpu.realtimeRuntime", "is cgroup v1 only"));
    }
    if !c.cpus.is_empty() {
        files::write(dir, "cpuset.cpus", &c.cpus)?;
    }
    if !c.mems.is_empty() {
        files::write(dir, "cpuset.mems", &c.mems)?;
    }
    Ok(())
}

/// 10 to 1000 (v1) as 1 to 10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.max(10)) - 10) * 9999 / 990
}

fn io(dir: &Path, b: &BlockIo) -> Result<()> {
    let leaf = b.leaf_weight.is_some_and(|w| w != 0)
        || b.weight_device.iter().any(|d| d.leaf_weight.is_some_and(|w| w != 0));
    if leaf {
        return Err(Error::config("linux.resources.blockIO.leafWeight", "is cgroup v1 only"));
    }
    let bfq = dir.join("io.bfq.weight").exists();
    if let Some(w) = b.weight.filter(|w| *w != 0) {
        if bfq {
            files::write(dir, "io.bfq.weight", &w.to_string())?;
        } else {
            files::write(dir, "io.weight", &format!("default {}", io_weight(w)))?;
        }
    }
    for d in &b.weight_device {
        let Some(w) = d.weight.filter(|w| *w != 0) else { continue };
        let (file, w) =
            if bfq { ("io.bfq.weight", u64::from(w)) } else { ("io.weight", io_weight(w)) };
        files::write(dir, file, &format!("{}:{} {w}", d.major, d.minor))?;
    }
    for (key, list) in [
        ("rbps", &b.throttle_read_bps_device),
        ("wbps", &b.throttle_write_bps_device),
        ("riops", &b.throttle_read_iops_device),
        ("wiops", &b.throttle_write_iops_device),
    ] {
        for d in list {
            let rate = if d.rate == 0 { "max".to_owned() } else { d.rate.to_string() };
            files::write(dir, "io.max", &format!("{}:{} {key}={rate}", d.major, d.minor))?;
        }
    }
    Ok(())
}

pub(super) fn hugetlb(dir: &Path, h: &HugepageLimit) -> Result<()> {
    let limit = h.limit.to_string();
    files::write(dir, &format!("hugetlb.{}.max", h.page_size), &limit)?;
    let reserved = format!("hugetlb.{}.rsvd.max", h.page_size);
    match files::write(dir, &reserved, &limit) {
        // Kernels before 5.7.
        Err(e) if e.errno() == Some(Errno::NOENT) => Ok(()),
        other => other,
    }
}

pub(super) fn rdma(dir: &Path, r: &Resources) -> Result<()> {
    for (device, limits) in &r.rdma {
        let word = |n: Option<u32>| n.map_or("max".to_owned(), |n| n.to_string());
        let line = format!(
            "{device} hca_handle={} hca_object={}",
            word(limits.hca_handles),
            word(limits.hca_objects)
        );
        files::write(dir, "rdma.max", &line)?;
    }
    Ok(())
}

/// `unified`: files by name, written as they are.
pub(super) fn unified(dir: &Path, r: &Resources) -> Result<()> {
    for (file, value) in &r.unified {
        if file.contains('/') || file.starts_with('.') {
            return Err(Error::config(
                "linux.resources.unified",
                format!("{file:?} is no file name"),
            ));
        }
        for line in value.lines() {
            files::write(dir, file, line)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn weights_meet_at_the_usual_values() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000), (1, 1), (512, 59)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }

    #[test]
    fn swap_is_counted_alone() {
        let m = |limit, swap| Memory { limit, swap, ..Memory::default() };
        assert_eq!(swap_limit(&m(Some(100), Some(150))).unwrap(), Some(50));
        assert_eq!(swap_limit(&m(Some(100), Some(-1))).unwrap(), Some(-1));
        assert_eq!(swap_limit(&m(Some(100), None)).unwrap(), None);
        assert!(swap_limit(&m(Some(100), Some(50))).is_err());
        assert!(swap_limit(&m(None, Some(50))).is_err());
    }
}
