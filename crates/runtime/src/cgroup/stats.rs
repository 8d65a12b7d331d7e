//! Figures of a cgroup.

use std::path::Path;

use super::{Cgroup, V1Dir, files, v1};
use crate::error::Result;
use crate::stats::{
    BLKIO_TABLES, BlkioEntry, CpuStats, CpusetStats, HugetlbStats, MemoryStats, PidsStats, Psi,
    Stats,
};
use crate::surroundings::number_list;

/// cpuacct.stat counts in ticks of 1/100 s on every architecture that runs here.
const TICK_NS: u64 = 10_000_000;

pub(super) fn read(cgroup: &Cgroup) -> Result<Stats> {
    match cgroup {
        Cgroup::None => Ok(Stats::default()),
        Cgroup::V2 { dir } => version_2(dir),
        Cgroup::V1 { dirs, unified } => {
            let mut stats = version_1(dirs)?;
            if let Some(dir) = unified {
                hugetlb(dir, &mut stats, "current", "max_missing")?;
            }
            Ok(stats)
        }
    }
}

fn version_1(dirs: &[V1Dir]) -> Result<Stats> {
    let mut out = Stats::default();
    if let Some(dir) = v1::dir(dirs, "cpuacct") {
        cpuacct(dir, &mut out.cpu)?;
    }
    if let Some(dir) = v1::dir(dirs, "cpu") {
        let text = files::read_optional(dir, "cpu.stat")?.unwrap_or_default();
        for (key, n) in files::pairs(&text) {
            match key {
                "nr_periods" => out.cpu.periods = n,
                "nr_throttled" => out.cpu.throttled_periods = n,
                "throttled_time" => out.cpu.throttled_ns = n,
                _ => {}
            }
        }
    }
    if let Some(dir) = v1::dir(dirs, "memory") {
        memory_1(dir, &mut out.memory)?;
    }
    if let Some(dir) = v1::dir(dirs, "cpuset") {
        out.cpuset = cpuset(dir)?;
    }
    if let Some(dir) = v1::dir(dirs, "pids") {
        out.pids = pids(dir)?;
    }
    if let Some(dir) = v1::dir(dirs, "blkio") {
        blkio_1(dir, &mut out.blkio)?;
    }
    if let Some(dir) = v1::dir(dirs, "hugetlb") {
        hugetlb(dir, &mut out, "usage_in_bytes", "max_usage_in_bytes")?;
    }
    Ok(out)
}

fn cpuacct(dir: &Path, cpu: &mut CpuStats) -> Result<()> {
    cpu.usage_ns = files::number(dir, "cpuacct.usage")?;
    let text = files::read_optional(dir, "cpuacct.stat")?.unwrap_or_default();
    for (key, n) in files::pairs(&text) {
        match key {
            "user" => cpu.user_ns = n.saturating_mul(TICK_NS),
            "system" => cpu.kernel_ns = n.saturating_mul(TICK_NS),
            _ => {}
        }
    }
    let text = files::read_optional(dir, "cpuacct.usage_percpu")?.unwrap_or_default();
    cpu.percpu_ns = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // "cpu user system", then a line for each.
    let text = files::read_optional(dir, "cpuacct.usage_all")?.unwrap_or_default();
    for line in text.lines().skip(1) {
        let mut numbers = line.split(' ').skip(1).filter_map(|n| n.parse().ok());
        if let (Some(user), Some(kernel)) = (numbers.next(), numbers.next()) {
            cpu.percpu_user_ns.push(user);
            cpu.percpu_kernel_ns.push(kernel);
        }
    }
    Ok(())
}

fn cpuset(dir: &Path) -> Result<CpusetStats> {
    const FLAGS: [(&str, &str); 9] = [
        ("cpu_exclusive", "cpuset.cpu_exclusive"),
        ("mem_hardwall", "cpuset.mem_hardwall"),
        ("mem_exclusive", "cpuset.mem_exclusive"),
        ("memory_migrate", "cpuset.memory_migrate"),
        ("memory_spread_page", "cpuset.memory_spread_page"),
        ("memory_spread_slab", "cpuset.memory_spread_slab"),
        ("memory_pressure", "cpuset.memory_pressure"),
        ("sched_load_balance", "cpuset.sched_load_balance"),
        ("sched_relax_domain_level", "cpuset.sched_relax_domain_level"),
    ];
    let mut out = CpusetStats::default();
    for (file, into) in [("cpuset.cpus", &mut out.cpus), ("cpuset.mems", &mut out.mems)] {
        let text = files::read_optional(dir, file)?.unwrap_or_default();
        let list = number_list(text.trim(), usize::from(u16::MAX)).unwrap_or_default();
        into.extend(list.into_iter().filter_map(|n| u16::try_from(n).ok()));
    }
    for (name, file) in FLAGS {
        let text = files::read_optional(dir, file)?.unwrap_or_default();
        out.flags.extend(text.trim().parse().ok().map(|n: i64| (name, n)));
    }
    Ok(out)
}

/// `memory.KIND.…` of v1: limit, use, highest use, failed charges.
fn counter(dir: &Path, kind: &str) -> Result<[u64; 4]> {
    let number = |what: &str| files::number(dir, &format!("memory.{kind}.{what}"));
    Ok([
        number("limit_in_bytes")?,
        number("usage_in_bytes")?,
        number("max_usage_in_bytes")?,
        number("failcnt")?,
    ])
}

fn memory_1(dir: &Path, m: &mut MemoryStats) -> Result<()> {
    m.usage = files::number(dir, "memory.usage_in_bytes")?;
    m.max_usage = files::number(dir, "memory.max_usage_in_bytes")?;
    m.limit = files::number(dir, "memory.limit_in_bytes")?;
    m.failcnt = files::number(dir, "memory.failcnt")?;
    m.swap_usage = files::number(dir, "memory.memsw.usage_in_bytes")?;
    m.swap_limit = files::number(dir, "memory.memsw.limit_in_bytes")?;
    m.swap_max_usage = files::number(dir, "memory.memsw.max_usage_in_bytes")?;
    m.swap_failcnt = files::number(dir, "memory.memsw.failcnt")?;
    m.kernel = counter(dir, "kmem")?;
    m.kernel_usage = m.kernel[1];
    m.kernel_tcp = counter(dir, "kmem.tcp")?;
    let text = files::read_optional(dir, "memory.stat")?.unwrap_or_default();
    m.stat = files::pairs(&text).map(|(k, n)| (k.to_owned(), n)).collect();
    let text = files::read_optional(dir, "memory.oom_control")?.unwrap_or_default();
    m.oom_kills = files::pairs(&text).find(|(k, _)| *k == "oom_kill").map_or(0, |(_, n)| n);
    Ok(())
}

fn pids(dir: &Path) -> Result<PidsStats> {
    let limit = files::number(dir, "pids.max")?;
    let limit = if limit == u64::MAX { 0 } else { limit };
    Ok(PidsStats { current: files::number(dir, "pids.current")?, limit })
}

fn blkio_1(dir: &Path, out: &mut Vec<BlkioEntry>) -> Result<()> {
    for (table, _) in BLKIO_TABLES {
        // Which of them there are depends on the kernel and its scheduler.
        for file in [
            format!("blkio.bfq.{table}"),
            format!("blkio.{table}"),
            format!("blkio.throttle.{table}"),
        ] {
            let text = files::read_optional(dir, &file)?.unwrap_or_default();
            let before = out.len();
            out.extend(text.lines().filter_map(|l| blkio_line(table, l)));
            if out.len() > before {
                break;
            }
        }
    }
    Ok(())
}

/// `8:0 Read 4096`, or `8:0 4096` for tables without operations; the closing `Total 4096` has no
/// device and is left out.
fn blkio_line(table: &'static str, line: &str) -> Option<BlkioEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let (op, value) = match (words.next()?, words.next()) {
        (op, Some(value)) => (op, value),
        (value, None) => ("", value),
    };
    Some(BlkioEntry {
        table,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        op: op.to_owned(),
        value: value.parse().ok()?,
    })
}

fn version_2(dir: &Path) -> Result<Stats> {
    let mut out = Stats { v2: true, ..Stats::default() };
    let text = files::read_optional(dir, "cpu.stat")?.unwrap_or_default();
    for (key, n) in files::pairs(&text) {
        let ns = n.saturating_mul(1000);
        match key {
            "usage_usec" => out.cpu.usage_ns = ns,
            "user_usec" => out.cpu.user_ns = ns,
            "system_usec" => out.cpu.kernel_ns = ns,
            "nr_periods" => out.cpu.periods = n,
            "nr_throttled" => out.cpu.throttled_periods = n,
            "throttled_usec" => out.cpu.throttled_ns = ns,
            _ => {}
        }
    }
    let m = &mut out.memory;
    m.usage = files::number(dir, "memory.current")?;
    m.max_usage = files::number(dir, "memory.peak")?;
    m.limit = files::number(dir, "memory.max")?;
    m.swap_usage = files::number(dir, "memory.swap.current")?;
    m.swap_limit = files::number(dir, "memory.swap.max")?;
    let text = files::read_optional(dir, "memory.stat")?.unwrap_or_default();
    m.stat = files::pairs(&text).map(|(k, n)| (k.to_owned(), n)).collect();
    let text = files::read_optional(dir, "memory.events")?.unwrap_or_default();
    for (key, n) in files::pairs(&text) {
        match key {
            "oom_kill" => m.oom_kills = n,
            "max" => m.failcnt = n,
            _ => {}
        }
    }
    for (file, into) in [
        ("cpu.pressure", &mut out.cpu.psi),
        ("memory.pressure", &mut out.memory.psi),
        ("io.pressure", &mut out.io_psi),
    ] {
        *into = Psi::parse(&files::read_optional(dir, file)?.unwrap_or_default());
    }
    out.pids = pids(dir)?;
    let text = files::read_optional(dir, "io.stat")?.unwrap_or_default();
    out.blkio = text.lines().flat_map(io_line).collect();
    hugetlb(dir, &mut out, "current", "max_missing")?;
    Ok(out)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io_line(line: &str) -> Vec<BlkioEntry> {
    let mut words = line.split_whitespace();
    let device = words.next().and_then(|d| d.split_once(':'));
    let Some((major, minor)) = device else { return Vec::new() };
    let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { return Vec::new() };
    words
        .filter_map(|w| {
            let (key, value) = w.split_once('=')?;
            let (table, op) = match key {
                "rbytes" => ("io_service_bytes_recursive", "Read"),
                "wbytes" => ("io_service_bytes_recursive", "Write"),
                "dbytes" => ("io_service_bytes_recursive", "Discard"),
                "rios" => ("io_serviced_recursive", "Read"),
                "wios" => ("io_serviced_recursive", "Write"),
                "dios" => ("io_serviced_recursive", "Discard"),
                _ => return None,
            };
            Some(BlkioEntry { table, major, minor, op: op.into(), value: value.parse().ok()? })
        })
        .collect()
}

/// `hugetlb.2MB.current` (v2) or `hugetlb.2MB.usage_in_bytes` (v1), for every page size there is.
fn hugetlb(dir: &Path, out: &mut Stats, usage: &str, max: &str) -> Result<()> {
    for size in page_sizes() {
        let file = |what: &str| format!("hugetlb.{size}.{what}");
        if files::read_optional(dir, &file(usage))?.is_none() {
            continue;
        }
        let events = files::read_optional(dir, &file("events"))?.unwrap_or_default();
        let failures = files::pairs(&events).find(|(k, _)| *k == "max").map_or(0, |(_, n)| n);
        let entry = HugetlbStats {
            usage: files::number(dir, &file(usage))?,
            max_usage: files::number(dir, &file(max))?,
            failcnt: failures.max(files::number(dir, &file("failcnt"))?),
        };
        out.hugetlb.insert(size, entry);
    }
    Ok(())
}

/// As cgroup files spell them: `2MB`, `1GB`.
fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    entries
        .filter_map(|e| {
            let name = e.ok()?.file_name().into_string().ok()?;
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            Some(match kib {
                k if k >= 1 << 20 => format!("{}GB", k >> 20),
                k if k >= 1 << 10 => format!("{}MB", k >> 10),
                k => format!("{k}KB"),
            })
        })
        .collect()
}
