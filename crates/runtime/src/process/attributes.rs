//! The parts of `process` that are words and numbers: limits, scheduling, priorities, processors.

use rustix::process::{Resource, Rlimit};

use super::Affinity;
use crate::error::{Error, Result};
use crate::spec;

pub(super) fn rlimits(list: &[spec::Rlimit]) -> Result<Vec<(Resource, Rlimit)>> {
    let mut out: Vec<(Resource, Rlimit)> = Vec::with_capacity(list.len());
    for l in list {
        let resource = match l.kind.strip_prefix("RLIMIT_").unwrap_or_default() {
            "AS" => Resource::As,
            "CORE" => Resource::Core,
            "CPU" => Resource::Cpu,
            "DATA" => Resource::Data,
            "FSIZE" => Resource::Fsize,
            "LOCKS" => Resource::Locks,
            "MEMLOCK" => Resource::Memlock,
            "MSGQUEUE" => Resource::Msgqueue,
            "NICE" => Resource::Nice,
            "NOFILE" => Resource::Nofile,
            "NPROC" => Resource::Nproc,
            "RSS" => Resource::Rss,
            "RTPRIO" => Resource::Rtprio,
            "RTTIME" => Resource::Rttime,
            "SIGPENDING" => Resource::Sigpending,
            "STACK" => Resource::Stack,
            _ => {
                return Err(Error::config(
                    "process.rlimits.type",
                    format!("invalid rlimit type: {}", l.kind),
                ));
            }
        };
        if out.iter().any(|(r, _)| *r == resource) {
            return Err(Error::config("process.rlimits", format!("{} is there twice", l.kind)));
        }
        let value = |n: u64| (n != u64::MAX).then_some(n);
        out.push((resource, Rlimit { current: value(l.soft), maximum: value(l.hard) }));
    }
    Ok(out)
}

pub(super) fn scheduler(s: &spec::Scheduler) -> Result<sys::process::SchedAttr> {
    let bad = |problem: String| Error::config("process.scheduler", problem);
    let policy = match s.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => return Err(bad(format!("policy {other:?}"))),
    };
    let mut flags = 0;
    for word in &s.flags {
        flags |= match word.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => return Err(bad(format!("flag {other:?}"))),
        };
    }
    Ok(sys::process::SchedAttr {
        policy,
        flags,
        nice: s.nice,
        priority: u32::try_from(s.priority).map_err(|_| bad("priority is negative".into()))?,
        runtime_ns: s.runtime,
        deadline_ns: s.deadline,
        period_ns: s.period,
    })
}

pub(super) fn io_priority(p: &spec::IoPriority) -> Result<(u32, u32)> {
    let class = match p.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => return Err(Error::config("process.ioPriority.class", format!("{other:?}"))),
    };
    match u32::try_from(p.priority) {
        Ok(n) if n <= 7 => Ok((class, n)),
        _ => Err(Error::config("process.ioPriority.priority", "is not 0 to 7")),
    }
}

pub(super) fn affinity(a: Option<&spec::CpuAffinity>) -> Result<Affinity> {
    let Some(a) = a else { return Ok(Affinity::default()) };
    Ok(Affinity { initial: cpu_list(&a.initial)?, last: cpu_list(&a.last)? })
}

/// `0-3,7`
fn cpu_list(text: &str) -> Result<Option<rustix::thread::CpuSet>> {
    if text.is_empty() {
        return Ok(None);
    }
    let numbers = crate::surroundings::number_list(text, rustix::thread::CpuSet::MAX_CPU)
        .ok_or_else(|| Error::config("process.execCPUAffinity", format!("{text:?}")))?;
    let mut set = rustix::thread::CpuSet::new();
    numbers.into_iter().for_each(|n| set.set(n));
    Ok(Some(set))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn processor_lists() {
        let set = cpu_list("0-2,5").unwrap().unwrap();
        assert_eq!(set.count(), 4);
        assert!(set.is_set(5) && !set.is_set(4));
        assert!(cpu_list("3-1").is_err() && cpu_list("x").is_err());
    }
}
