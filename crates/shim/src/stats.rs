//! cgroup figures as containerd's messages.

use protos::Any;
use protos::shim::{self as api, cgroups_v1 as v1, cgroups_v2 as v2};
use runtime::Stats;

/// Nanoseconds of a microsecond: cgroup v2's figures are in microseconds.
const MICRO: u64 = 1000;

/// The message for the host's cgroup version.
pub(crate) fn pack(stats: &Stats) -> Any {
    if stats.v2 {
        api::pack(api::METRICS_V2, &unified(stats))
    } else {
        api::pack(api::METRICS_V1, &legacy(stats))
    }
}

fn legacy(stats: &Stats) -> v1::Metrics {
    let (cpu, memory) = (&stats.cpu, &stats.memory);
    let entry = |limit, usage, max, failcnt| v1::MemoryEntry { limit, usage, max, failcnt };
    let mut of_memory = v1::MemoryStat {
        usage: Some(entry(memory.limit, memory.usage, memory.max_usage, memory.failcnt)),
        swap: Some(entry(memory.swap_limit, memory.swap_usage, 0, 0)),
        kernel: Some(entry(0, memory.kernel_usage, 0, 0)),
        ..Default::default()
    };
    for (key, value) in &memory.stat {
        of_memory.set(key, *value);
    }
    let blkio = |table: &str| {
        let wanted = stats.blkio.iter().filter(|e| e.table == table);
        wanted
            .map(|e| v1::BlkIoEntry {
                op: e.op.clone(),
                device: String::new(),
                major: e.major,
                minor: e.minor,
                value: e.value,
            })
            .collect()
    };
    v1::Metrics {
        hugetlb: stats
            .hugetlb
            .iter()
            .map(|(size, h)| v1::HugetlbStat {
                usage: h.usage,
                max: h.max_usage,
                failcnt: h.failcnt,
                pagesize: size.clone(),
            })
            .collect(),
        pids: Some(v1::PidsStat { current: stats.pids.current, limit: stats.pids.limit }),
        cpu: Some(v1::CpuStat {
            usage: Some(v1::CpuUsage {
                total: cpu.usage_ns,
                kernel: cpu.kernel_ns,
                user: cpu.user_ns,
                per_cpu: cpu.percpu_ns.clone(),
            }),
            throttling: Some(v1::Throttle {
                periods: cpu.periods,
                throttled_periods: cpu.throttled_periods,
                throttled_time: cpu.throttled_ns,
            }),
        }),
        memory: Some(of_memory),
        blkio: Some(v1::BlkIoStat {
            io_service_bytes_recursive: blkio("io_service_bytes_recursive"),
            io_serviced_recursive: blkio("io_serviced_recursive"),
        }),
        memory_oom_control: Some(v1::MemoryOomControl {
            oom_kill: memory.oom_kills,
            ..Default::default()
        }),
    }
}

fn unified(stats: &Stats) -> v2::Metrics {
    let (cpu, memory) = (&stats.cpu, &stats.memory);
    let mut of_memory = v2::MemoryStat {
        usage: memory.usage,
        usage_limit: memory.limit,
        swap_usage: memory.swap_usage,
        swap_limit: memory.swap_limit,
        ..Default::default()
    };
    for (key, value) in &memory.stat {
        of_memory.set(key, *value);
    }
    v2::Metrics {
        pids: Some(v2::PidsStat { current: stats.pids.current, limit: stats.pids.limit }),
        cpu: Some(v2::CpuStat {
            usage_usec: cpu.usage_ns / MICRO,
            user_usec: cpu.user_ns / MICRO,
            system_usec: cpu.kernel_ns / MICRO,
            nr_periods: cpu.periods,
            nr_throttled: cpu.throttled_periods,
            throttled_usec: cpu.throttled_ns / MICRO,
        }),
        memory: Some(of_memory),
        io: Some(v2::IoStat { usage: io_entries(stats) }),
        hugetlb: stats
            .hugetlb
            .iter()
            .map(|(size, h)| v2::HugeTlbStat {
                current: h.usage,
                max: h.max_usage,
                pagesize: size.clone(),
            })
            .collect(),
        memory_events: Some(v2::MemoryEvents {
            oom_kill: memory.oom_kills,
            max: memory.failcnt,
            ..Default::default()
        }),
    }
}

fn io_entries(stats: &Stats) -> Vec<v2::IoEntry> {
    let mut entries: Vec<v2::IoEntry> = Vec::new();
    for e in &stats.blkio {
        let at = entries.iter().position(|i| (i.major, i.minor) == (e.major, e.minor));
        let at = at.unwrap_or_else(|| {
            entries.push(v2::IoEntry { major: e.major, minor: e.minor, ..Default::default() });
            entries.len() - 1
        });
        let Some(entry) = entries.get_mut(at) else { continue };
        let bytes = e.table == "io_service_bytes_recursive";
        match e.op.to_ascii_lowercase().as_str() {
            "read" if bytes => entry.rbytes = e.value,
            "read" => entry.rios = e.value,
            "write" if bytes => entry.wbytes = e.value,
            "write" => entry.wios = e.value,
            _ => {}
        }
    }
    entries
}
