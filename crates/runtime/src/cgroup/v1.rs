//! cgroup v1 limits.

use std::path::Path;

use rustix::io::Errno;

use super::devices::Rule;
use super::{V1Dir, files, v2};
use crate::error::{Error, Result, Step};
use crate::spec::{BlockIo, Cpu, Memory, Resources};

/// The directory that has a controller.
pub(super) fn dir<'a>(dirs: &'a [V1Dir], controller: &str) -> Option<&'a Path> {
    dirs.iter().find(|d| d.controllers.iter().any(|c| c == controller)).map(|d| d.dir.as_path())
}

fn need<'a>(dirs: &'a [V1Dir], controller: &'static str) -> Result<&'a Path> {
    dir(dirs, controller).ok_or_else(|| {
        Error::config("linux.resources", format!("the host has no {controller} cgroup"))
    })
}

/// `true` if it was missing.
pub(super) fn make(d: &V1Dir) -> Result<bool> {
    let new = files::make(&d.dir)?;
    if new && d.controllers.iter().any(|c| c == "cpuset") {
        // A new cpuset is empty and takes no process: it starts with its parent's sets.
        inherit_cpuset(&d.mount, &d.dir)?;
    }
    Ok(new)
}

fn inherit_cpuset(mount: &Path, dir: &Path) -> Result<()> {
    let Some(parent) = dir.parent().filter(|p| p.starts_with(mount)) else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut value = files::read(&parent.join(file))?;
        if value.trim().is_empty() && parent != mount {
            inherit_cpuset(mount, parent)?;
            value = files::read(&parent.join(file))?;
        }
        if files::read(&dir.join(file))?.trim().is_empty() {
            files::write(dir, file, value.trim())?;
        }
    }
    Ok(())
}

pub(super) fn set(dirs: &[V1Dir], unified: Option<&Path>, r: &Resources) -> Result<()> {
    if let Some(m) = &r.memory
        && *m != Memory::default()
    {
        memory(need(dirs, "memory")?, m)?;
    }
    if let Some(c) = &r.cpu {
        let bare = Cpu { cpus: String::new(), mems: String::new(), ..c.clone() };
        if bare != Cpu::default() {
            cpu(need(dirs, "cpu")?, c)?;
        }
        if !c.cpus.is_empty() {
            files::write(need(dirs, "cpuset")?, "cpuset.cpus", &c.cpus)?;
        }
        if !c.mems.is_empty() {
            files::write(need(dirs, "cpuset")?, "cpuset.mems", &c.mems)?;
        }
    }
    if let Some(limit) = r.pids.as_ref().and_then(|p| p.limit) {
        files::write(need(dirs, "pids")?, "pids.max", &v2::max(v2::pids_limit(limit)))?;
    }
    if let Some(b) = &r.block_io
        && *b != BlockIo::default()
    {
        blkio(need(dirs, "blkio")?, b)?;
    }
    network(dirs, r)?;
    rdma(dirs, unified, r)?;
    for h in &r.hugepage_limits {
        match (dir(dirs, "hugetlb"), unified) {
            (Some(dir), _) => {
                let file = format!("hugetlb.{}.limit_in_bytes", h.page_size);
                files::write(dir, &file, &h.limit.to_string())?;
                let reserved = format!("hugetlb.{}.rsvd.limit_in_bytes", h.page_size);
                match files::write(dir, &reserved, &h.limit.to_string()) {
                    // Kernels before 5.7.
                    Err(e) if e.errno() == Some(Errno::NOENT) => {}
                    other => other?,
                }
            }
            (None, Some(dir)) => v2::hugetlb(dir, h)?,
            (None, None) => drop(need(dirs, "hugetlb")?),
        }
    }
    if !r.unified.is_empty() {
        match unified {
            Some(dir) => v2::unified(dir, r)?,
            None => return Err(Error::config("linux.resources.unified", "needs cgroup v2")),
        }
    }
    Ok(())
}

fn network(dirs: &[V1Dir], r: &Resources) -> Result<()> {
    let Some(n) = &r.network else { return Ok(()) };
    if let Some(class) = n.class_id.filter(|c| *c != 0) {
        files::write(need(dirs, "net_cls")?, "net_cls.classid", &class.to_string())?;
    }
    for p in &n.priorities {
        let line = format!("{} {}", p.name, p.priority);
        files::write(need(dirs, "net_prio")?, "net_prio.ifpriomap", &line)?;
    }
    Ok(())
}

fn rdma(dirs: &[V1Dir], unified: Option<&Path>, r: &Resources) -> Result<()> {
    if r.rdma.is_empty() {
        return Ok(());
    }
    let dir = match dir(dirs, "rdma").or(unified) {
        Some(dir) => dir,
        None => need(dirs, "rdma")?,
    };
    v2::rdma(dir, r)
}

fn memory(dir: &Path, m: &Memory) -> Result<()> {
    let limit = m.limit.filter(|l| *l != 0);
    let mut swap = m.swap.filter(|s| *s != 0);
    if limit == Some(-1) && swap.is_none() && dir.join("memory.memsw.limit_in_bytes").exists() {
        swap = Some(-1);
    }
    memory_and_swap(dir, limit, swap)?;
    if let Some(r) = m.reservation.filter(|r| *r != 0) {
        files::write(dir, "memory.soft_limit_in_bytes", &r.to_string())?;
    }
    // memory.kernel has had no effect since Linux 5.16 and is ignored by runc, too.
    if let Some(t) = m.kernel_tcp.filter(|t| *t != 0) {
        files::write(dir, "memory.kmem.tcp.limit_in_bytes", &t.to_string())?;
    }
    if m.disable_oom_killer == Some(true) {
        files::write(dir, "memory.oom_control", "1")?;
    }
    match m.swappiness {
        Some(s) if s <= 100 => files::write(dir, "memory.swappiness", &s.to_string())?,
        Some(s) => {
            return Err(Error::config(
                "linux.resources.memory.swappiness",
                format!("{s} is above 100"),
            ));
        }
        None => {}
    }
    Ok(())
}

/// The kernel wants limit ≤ memory+swap at every moment, so the order depends on the direction.
fn memory_and_swap(dir: &Path, limit: Option<i64>, swap: Option<i64>) -> Result<()> {
    let write_limit = |l: i64| {
        files::write(dir, "memory.limit_in_bytes", &l.to_string()).step(|| {
            let usage = files::number(dir, "memory.usage_in_bytes").unwrap_or(0);
            let peak = files::number(dir, "memory.max_usage_in_bytes").unwrap_or(0);
            format!(
                "unable to set memory limit to {l} (current usage: {usage}, peak usage: {peak})"
            )
        })
    };
    let write_swap = |s: i64| files::write(dir, "memory.memsw.limit_in_bytes", &s.to_string());
    match (limit, swap) {
        (None, None) => Ok(()),
        (Some(l), None) => write_limit(l),
        (None, Some(s)) => write_swap(s),
        (Some(l), Some(s)) => {
            let now = files::number(dir, "memory.limit_in_bytes")?;
            if s == -1 || i64::try_from(now).is_ok_and(|now| now < s) {
                write_swap(s)?;
                write_limit(l)
            } else {
                write_limit(l)?;
                write_swap(s)
            }
        }
    }
}

fn cpu(dir: &Path, c: &Cpu) -> Result<()> {
    if let Some(idle) = c.idle {
        files::write(dir, "cpu.idle", &idle.to_string())?;
    }
    if let Some(shares) = c.shares.filter(|s| *s != 0) {
        files::write(dir, "cpu.shares", &shares.to_string())?;
        // The kernel takes any number and keeps one within its bounds.
        let kept = files::number(dir, "cpu.shares")?;
        if kept != shares {
            let bound = if shares < kept { "minimum" } else { "maximum" };
            let problem = format!("the {bound} allowed cpu-shares is {kept}");
            return Err(Error::config("linux.resources.cpu.shares", problem));
        }
    }
    // The kernel wants a burst within the quota: a smaller one goes first, a larger one afterwards.
    if let Some(burst) = c.burst {
        match files::write(dir, "cpu.cfs_burst_us", &burst.to_string()) {
            Err(e) if e.errno() == Some(Errno::INVAL) => {}
            other => other?,
        }
    }
    let quota = c.quota.filter(|q| *q != 0).map(|q| q.to_string());
    let mut late_period = None;
    if let Some(period) = c.period.filter(|p| *p != 0) {
        let text = period.to_string();
        match files::write(dir, "cpu.cfs_period_us", &text) {
            // The old quota may be too large for the new period until the new quota is set.
            Err(e) if e.errno() == Some(Errno::INVAL) && quota.is_some() => {
                late_period = Some(text);
            }
            other => other?,
        }
    }
    if let Some(quota) = &quota {
        files::write(dir, "cpu.cfs_quota_us", quota)?;
    }
    if let Some(period) = late_period {
        files::write(dir, "cpu.cfs_period_us", &period)?;
    }
    if let Some(burst) = c.burst {
        files::write(dir, "cpu.cfs_burst_us", &burst.to_string())?;
    }
    if let Some(p) = c.realtime_period.filter(|p| *p != 0) {
        files::write(dir, "cpu.rt_period_us", &p.to_string())?;
    }
    if let Some(t) = c.realtime_runtime.filter(|t| *t != 0) {
        files::write(dir, "cpu.rt_runtime_us", &t.to_string())?;
    }
    Ok(())
}

fn blkio(dir: &Path, b: &BlockIo) -> Result<()> {
    let (weight, leaf) = if dir.join("blkio.weight").exists() {
        ("blkio.weight", "blkio.leaf_weight")
    } else {
        ("blkio.bfq.weight", "blkio.bfq.weight")
    };
    if let Some(w) = b.weight.filter(|w| *w != 0) {
        files::write(dir, weight, &w.to_string())?;
    }
    if let Some(w) = b.leaf_weight.filter(|w| *w != 0) {
        files::write(dir, leaf, &w.to_string())?;
    }
    for d in &b.weight_device {
        if let Some(w) = d.weight.filter(|w| *w != 0) {
            let line = format!("{}:{} {w}", d.major, d.minor);
            files::write(dir, &format!("{weight}_device"), &line)?;
        }
        if let Some(w) = d.leaf_weight.filter(|w| *w != 0) {
            let line = format!("{}:{} {w}", d.major, d.minor);
            files::write(dir, &format!("{leaf}_device"), &line)?;
        }
    }
    for (file, list) in [
        ("blkio.throttle.read_bps_device", &b.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &b.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &b.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &b.throttle_write_iops_device),
    ] {
        for d in list {
            files::write(dir, file, &format!("{}:{} {}", d.major, d.minor, d.rate))?;
        }
    }
    Ok(())
}

/// Device rules, one write each: the kernel keeps a default and a list of exceptions.
pub(super) fn set_devices(dirs: &[V1Dir], rules: &[Rule]) -> Result<()> {
    let Some(dir) = dir(dirs, "devices") else {
        return Err(Error::config("linux.resources.devices", "the host has no devices cgroup"));
    };
    for rule in rules {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        files::write(dir, file, &rule.v1_line())?;
    }
    Ok(())
}
