//! The seam's figures as containerd's cgroup messages.

use protos::shim::{self as api, cgroups_v1 as v1, cgroups_v2 as v2};
use store_api::Metrics;

/// Nanoseconds of a microsecond.
const MICRO: u64 = 1000;

pub(crate) fn metrics_out(metrics: &Metrics) -> prost_types::Any {
    if metrics.unified {
        api::pack(api::METRICS_V2, &unified(metrics))
    } else {
        api::pack(api::METRICS_V1, &legacy(metrics))
    }
}

/// What cgroup v1 answers where there is no limit: the largest count of pages, in bytes.
const V1_NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;
/// What containerd makes of cgroup v2's `max`.
const V2_NO_LIMIT: u64 = u64::MAX;

fn legacy(metrics: &Metrics) -> v1::Metrics {
    let entry = |limit, usage, max, failcnt| v1::MemoryEntry { limit, usage, max, failcnt };
    let mut memory = v1::MemoryStat {
        usage: Some(entry(
            metrics.memory_limit.unwrap_or(V1_NO_LIMIT),
            metrics.memory_usage,
            metrics.memory_max_usage,
            metrics.memory_failcnt,
        )),
        swap: metrics.swap_usage.map(|usage| entry(V1_NO_LIMIT, usage, 0, 0)),
        ..v1::MemoryStat::default()
    };
    for (key, value) in &metrics.memory_stat {
        memory.set(key, *value);
    }
    let entries = |table: &[(u64, u64, String, u64)]| {
        let entry = |(major, minor, op, value): &(u64, u64, String, u64)| v1::BlkIoEntry {
            op: capitalized(op),
            device: String::new(),
            major: *major,
            minor: *minor,
            value: *value,
        };
        table.iter().map(entry).collect()
    };
    v1::Metrics {
        pids: Some(v1::PidsStat {
            current: metrics.pids_current,
            limit: metrics.pids_limit.unwrap_or(0),
        }),
        cpu: Some(v1::CpuStat {
            usage: Some(v1::CpuUsage {
                total: metrics.cpu_total_ns,
                kernel: metrics.cpu_system_ns,
                user: metrics.cpu_user_ns,
                per_cpu: metrics.cpu_percpu_ns.clone(),
            }),
            throttling: Some(v1::Throttle {
                periods: metrics.throttle_periods,
                throttled_periods: metrics.throttled_periods,
                throttled_time: metrics.throttled_ns,
            }),
        }),
        memory: Some(memory),
        blkio: Some(v1::BlkIoStat {
            io_service_bytes_recursive: entries(&metrics.blkio_bytes),
            io_serviced_recursive: entries(&metrics.blkio_ios),
        }),
        ..v1::Metrics::default()
    }
}

/// `read` → `Read`, as cgroup v1 spells operations.
fn capitalized(op: &str) -> String {
    let mut chars = op.chars();
    chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

fn unified(metrics: &Metrics) -> v2::Metrics {
    let mut memory = v2::MemoryStat {
        usage: metrics.memory_usage,
        usage_limit: metrics.memory_limit.unwrap_or(V2_NO_LIMIT),
        swap_usage: metrics.swap_usage.unwrap_or(0),
        ..v2::MemoryStat::default()
    };
    for (key, value) in &metrics.memory_stat {
        memory.set(key, *value);
    }
    v2::Metrics {
        pids: Some(v2::PidsStat {
            current: metrics.pids_current,
            limit: metrics.pids_limit.unwrap_or(0),
        }),
        cpu: Some(v2::CpuStat {
            usage_usec: metrics.cpu_total_ns / MICRO,
            user_usec: metrics.cpu_user_ns / MICRO,
            system_usec: metrics.cpu_system_ns / MICRO,
            nr_periods: metrics.throttle_periods,
            nr_throttled: metrics.throttled_periods,
            throttled_usec: metrics.throttled_ns / MICRO,
        }),
        memory: Some(memory),
        io: Some(v2::IoStat { usage: io_entries(metrics) }),
        memory_events: Some(v2::MemoryEvents {
            max: metrics.memory_failcnt,
            ..v2::MemoryEvents::default()
        }),
        ..v2::Metrics::default()
    }
}

/// One entry per device.
fn io_entries(metrics: &Metrics) -> Vec<v2::IoEntry> {
    let mut devices = std::collections::BTreeMap::<(u64, u64), v2::IoEntry>::new();
    let tables = [(&metrics.blkio_bytes, true), (&metrics.blkio_ios, false)];
    for (table, bytes) in tables {
        for (major, minor, op, value) in table {
            let entry = devices.entry((*major, *minor)).or_default();
            (entry.major, entry.minor) = (*major, *minor);
            match (op.as_str(), bytes) {
                ("read", true) => entry.rbytes = *value,
                ("write", true) => entry.wbytes = *value,
                ("read", false) => entry.rios = *value,
                ("write", false) => entry.wios = *value,
                // The message has no place for the others.
                _ => {}
            }
        }
    }
    devices.into_values().collect()
}
