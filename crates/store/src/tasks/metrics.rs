//! containerd's cgroup messages as the seam's figures.

use prost::Message;
use protos::shim::{self as api, cgroups_v1 as v1, cgroups_v2 as v2};
use store_api::{Error, Metrics, Result, Timestamp};

/// Nanoseconds of a microsecond.
const MICRO: u64 = 1000;

/// Figures of a Stats answer, of either cgroup version.
pub(super) fn parse(any: Option<&protos::Any>) -> Result<Metrics> {
    let any = any.ok_or_else(|| Error::internal("shim: no figures in the answer to Stats"))?;
    let bad = |error| Error::internal(format!("shim: figures of type {}: {error}", any.type_url));
    if api::is_type(any, api::METRICS_V1) {
        Ok(legacy(&v1::Metrics::decode(&any.value[..]).map_err(bad)?))
    } else if api::is_type(any, api::METRICS_V2) {
        Ok(unified(&v2::Metrics::decode(&any.value[..]).map_err(bad)?))
    } else {
        Err(Error::not_implemented(format!("figures of type {}", any.type_url)))
    }
}

/// The kernel's words for "no limit": the largest page count, in bytes, or all bits.
fn limit(value: u64) -> Option<u64> {
    const UNLIMITED: u64 = 1 << 62;
    (value > 0 && value < UNLIMITED).then_some(value)
}

fn legacy(figures: &v1::Metrics) -> Metrics {
    let mut out = Metrics { timestamp: Timestamp::now(), ..Metrics::default() };
    if let Some(cpu) = &figures.cpu {
        if let Some(usage) = &cpu.usage {
            out.cpu_total_ns = usage.total;
            out.cpu_user_ns = usage.user;
            out.cpu_system_ns = usage.kernel;
            out.cpu_percpu_ns.clone_from(&usage.per_cpu);
        }
        if let Some(throttling) = &cpu.throttling {
            out.throttle_periods = throttling.periods;
            out.throttled_periods = throttling.throttled_periods;
            out.throttled_ns = throttling.throttled_time;
        }
    }
    if let Some(memory) = &figures.memory {
        if let Some(usage) = &memory.usage {
            out.memory_usage = usage.usage;
            out.memory_max_usage = usage.max;
            out.memory_limit = limit(usage.limit);
            out.memory_failcnt = usage.failcnt;
        }
        out.swap_usage = memory.swap.as_ref().map(|s| s.usage);
        out.memory_stat = memory.entries().map(|(key, value)| (key.to_owned(), value)).into();
    }
    if let Some(pids) = &figures.pids {
        out.pids_current = pids.current;
        out.pids_limit = limit(pids.limit);
    }
    if let Some(blkio) = &figures.blkio {
        let entries = |table: &[v1::BlkIoEntry]| {
            table.iter().map(|e| (e.major, e.minor, e.op.to_lowercase(), e.value)).collect()
        };
        out.blkio_bytes = entries(&blkio.io_service_bytes_recursive);
        out.blkio_ios = entries(&blkio.io_serviced_recursive);
    }
    out
}

fn unified(figures: &v2::Metrics) -> Metrics {
    let mut out = Metrics { timestamp: Timestamp::now(), unified: true, ..Metrics::default() };
    if let Some(cpu) = &figures.cpu {
        out.cpu_total_ns = cpu.usage_usec.saturating_mul(MICRO);
        out.cpu_user_ns = cpu.user_usec.saturating_mul(MICRO);
        out.cpu_system_ns = cpu.system_usec.saturating_mul(MICRO);
        out.throttle_periods = cpu.nr_periods;
        out.throttled_periods = cpu.nr_throttled;
        out.throttled_ns = cpu.throttled_usec.saturating_mul(MICRO);
    }
    if let Some(memory) = &figures.memory {
        out.memory_usage = memory.usage;
        out.memory_limit = limit(memory.usage_limit);
        out.swap_usage = Some(memory.swap_usage);
        out.memory_stat = memory.entries().map(|(key, value)| (key.to_owned(), value)).into();
    }
    if let Some(events) = &figures.memory_events {
        out.memory_failcnt = events.max;
    }
    if let Some(pids) = &figures.pids {
        out.pids_current = pids.current;
        out.pids_limit = limit(pids.limit);
    }
    if let Some(io) = &figures.io {
        for e in &io.usage {
            out.blkio_bytes.push((e.major, e.minor, "read".into(), e.rbytes));
            out.blkio_bytes.push((e.major, e.minor, "write".into(), e.wbytes));
            out.blkio_ios.push((e.major, e.minor, "read".into(), e.rios));
            out.blkio_ios.push((e.major, e.minor, "write".into(), e.wios));
        }
    }
    out
}
