//! `events`: figures of a container, and its OOM events, in runc's shape.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value, json};

use super::flags::{Flag, parse};
use super::{Context, Outcome, one_id, say};
use crate::ContainerId;
use crate::state::Container;
use crate::stats::{BLKIO_TABLES, Psi, Stats};

pub(super) fn print(cx: &Context, args: &[String]) -> Outcome {
    let parsed = parse(args, &[Flag(&["interval"], true), Flag(&["stats"], false)])?;
    let id = one_id(&parsed, "events")?;
    if parsed.is_set("stats") {
        return Ok(say(&stats_line(&id, &crate::stats(&cx.options, &id)?)));
    }
    let interval = duration(parsed.value("interval").unwrap_or("5s"))?;
    let stopped = || format!("container with id {id} is not running");
    let pidfd = Container::load(&cx.options, &id)?.pidfd()?.ok_or_else(stopped)?;
    let mut oom = crate::oom_watch(&cx.options, &id)?;
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next {
            say(&stats_line(&id, &crate::stats(&cx.options, &id)?));
            next += interval;
        }
        let left = next.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|e| e.to_string())?;
        let fd = oom.fd();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(format!("poll: {e}").into()),
        }
        let (ended, rang) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if rang && oom.drain()? {
            say(&format!("{}\n", json!({"type": "oom", "id": id.as_str()})));
        }
        if ended {
            return Ok(0);
        }
    }
}

/// Go's durations, as far as they are useful here: `500ms`, `5s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let n: u64 = number.parse().map_err(|_| format!("invalid duration {text:?}"))?;
    let d = match unit {
        "ms" => Duration::from_millis(n),
        "s" => Duration::from_secs(n),
        "m" => Duration::from_secs(n.saturating_mul(60)),
        _ => return Err(format!("invalid duration {text:?}")),
    };
    if d.is_zero() { Err("duration interval must be greater than 0".into()) } else { Ok(d) }
}

fn stats_line(id: &ContainerId, s: &Stats) -> String {
    format!("{}\n", json!({"type": "stats", "id": id.as_str(), "data": stats_data(s)}))
}

/// runc's shape, which leaves out zeroes and empty tables where Go's `omitempty` does.
fn stats_data(s: &Stats) -> Value {
    let mut blkio = Map::new();
    for (name, key) in BLKIO_TABLES {
        let of = s.blkio.iter().filter(|e| e.table == name);
        let list: Vec<Value> = of
            .map(|e| {
                without_zeroes(
                    json!({"major": e.major, "minor": e.minor, "op": e.op, "value": e.value}),
                )
            })
            .collect();
        if !list.is_empty() {
            blkio.insert(key.to_owned(), list.into());
        }
    }
    let mut cpu = json!({
        "usage": without_zeroes(json!({
            "total": s.cpu.usage_ns, "percpu": s.cpu.percpu_ns,
            "percpu_kernel": s.cpu.percpu_kernel_ns, "percpu_user": s.cpu.percpu_user_ns,
        })),
        "throttling": without_zeroes(json!({
            "periods": s.cpu.periods, "throttledPeriods": s.cpu.throttled_periods,
            "throttledTime": s.cpu.throttled_ns,
        })),
    });
    cpu["usage"]["kernel"] = json!(s.cpu.kernel_ns);
    cpu["usage"]["user"] = json!(s.cpu.user_ns);
    let mut data = json!({
        "cpu": cpu,
        "cpuset": cpuset(s),
        "memory": memory(s),
        "pids": without_zeroes(json!({"current": s.pids.current, "limit": s.pids.limit})),
        "blkio": blkio,
        "hugetlb": hugetlb(s),
        "intel_rdt": {},
        "network_interfaces": null,
    });
    for (part, psi) in [("cpu", &s.cpu.psi), ("memory", &s.memory.psi), ("blkio", &s.io_psi)] {
        if let Some(psi) = psi {
            data[part]["psi"] = pressure(psi);
        }
    }
    data
}

fn memory(s: &Stats) -> Value {
    let m = &s.memory;
    let entry = |limit: u64, usage: u64, max: u64, failcnt: u64| {
        let mut entry = without_zeroes(json!({"limit": limit, "usage": usage, "max": max}));
        entry["failcnt"] = json!(failcnt);
        entry
    };
    let cache = m.stat.get("cache").or(m.stat.get("file")).copied().unwrap_or(0);
    let mut out = without_zeroes(json!({"cache": cache}));
    out["usage"] = entry(m.limit, m.usage, m.max_usage, m.failcnt);
    out["swap"] = entry(m.swap_limit, m.swap_usage, m.swap_max_usage, m.swap_failcnt);
    let [limit, usage, max, failcnt] = m.kernel;
    out["kernel"] = entry(limit, usage, max, failcnt);
    let [limit, usage, max, failcnt] = m.kernel_tcp;
    out["kernelTCP"] = entry(limit, usage, max, failcnt);
    if !m.stat.is_empty() {
        out["raw"] = json!(m.stat);
    }
    out
}

fn hugetlb(s: &Stats) -> Map<String, Value> {
    let one = |h: &crate::HugetlbStats| {
        let mut entry = without_zeroes(json!({"usage": h.usage, "max": h.max_usage}));
        entry["failcnt"] = json!(h.failcnt);
        entry
    };
    s.hugetlb.iter().map(|(size, h)| (size.clone(), one(h))).collect()
}

fn cpuset(s: &Stats) -> Value {
    let mut out = Map::new();
    for (key, list) in [("cpus", &s.cpuset.cpus), ("mems", &s.cpuset.mems)] {
        if !list.is_empty() {
            out.insert(key.to_owned(), json!(list));
        }
    }
    for (key, n) in &s.cpuset.flags {
        out.insert((*key).to_owned(), json!(n));
    }
    out.into()
}

fn pressure(psi: &Psi) -> Value {
    let one = |p: &crate::stats::Pressure| json!({"avg10": p.avg10, "avg60": p.avg60, "avg300": p.avg300, "total": p.total_us});
    json!({"some": one(&psi.some), "full": one(&psi.full)})
}

/// Go's `omitempty` for numbers, strings and lists.
fn without_zeroes(mut value: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, v| match v {
            Value::Number(n) => n.as_u64() != Some(0),
            Value::String(s) => !s.is_empty(),
            Value::Array(list) => !list.is_empty(),
            _ => true,
        });
    }
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert!(duration("0s").is_err());
    }

    #[test]
    fn pressure_is_told_where_the_kernel_has_it() {
        let mut s = Stats::default();
        assert!(stats_data(&s)["cpu"].get("psi").is_none());
        let text = "some avg10=1.50 avg60=0.00 avg300=0.25 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        s.cpu.psi = Psi::parse(text);
        let got = stats_data(&s);
        assert_eq!(got["cpu"]["psi"]["some"]["avg10"], 1.5);
        assert_eq!(got["cpu"]["psi"]["full"]["total"], 5);
        assert_eq!(got["cpu"]["usage"], json!({"kernel": 0, "user": 0}));
    }
}
