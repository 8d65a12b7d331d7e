//! `events`: figures of a container, and its OOM events, in runc's shape.

use std::io::Write;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value, json};

use super::flags::{Parsed, decimal_times};
use super::{Context, Outcome, one_id, say};
use crate::ContainerId;
use crate::state::Container;
use crate::stats::{BLKIO_TABLES, Psi, Stats};

pub(super) fn print(cx: &Context, parsed: &Parsed) -> Outcome {
    let id = one_id(parsed)?;
    let interval = duration(parsed.last("interval").unwrap_or("5s"))?;
    let stopped = || format!("container with id {id} is not running");
    let pidfd = Container::load(&cx.options, &id)?.pidfd()?.ok_or_else(stopped)?;
    if parsed.is_set("stats") {
        return Ok(say(&stats_line(&id, &crate::stats(&cx.options, &id)?)));
    }
    let mut oom = crate::oom_watch(&cx.options, &id)?;
    let mut next = Instant::now();
    let too_long = || "--interval is too long".to_owned();
    loop {
        let now = Instant::now();
        if now >= next {
            if !tell(&stats_line(&id, &crate::stats(&cx.options, &id)?))? {
                return Ok(0);
            }
            next = next.checked_add(interval).ok_or_else(too_long)?.max(now);
        }
        let left = next.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|e| e.to_string())?;
        let fd = oom.fd();
        let stdout = rustix::stdio::stdout();
        let mut fds = [
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::new(&fd, PollFlags::IN),
            // Nothing but its end.
            PollFd::new(&stdout, PollFlags::empty()),
        ];
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(format!("poll: {e}").into()),
        }
        let [ended, rang, unread] = fds.map(|fd| !fd.revents().is_empty());
        let oom_line = format!("{}\n", json!({"type": "oom", "id": id.as_str()}));
        if unread || (rang && oom.drain()? && !tell(&oom_line)?) || ended {
            return Ok(0);
        }
    }
}

/// Whether somebody still reads standard output.
fn tell(line: &str) -> Result<bool, String> {
    match std::io::stdout().write_all(line.as_bytes()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(format!("standard output: {e}")),
    }
}

/// A duration as Go's `time.ParseDuration` reads it (`1h`, `1m30.5s`), to the nanosecond and below 293
/// years; it must be positive.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("invalid value {text:?} for flag -interval: parse error");
    let mut total_ns = 0i64;
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest.is_empty() {
        return Err(bad());
    }
    if rest == "0" {
        rest = "";
    }
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(at);
        let at = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(at);
        let unit_ns: i64 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(bad()),
        };
        let part = decimal_times(number, unit_ns).ok_or_else(bad)?;
        total_ns = total_ns.checked_add(part).ok_or_else(bad)?;
        rest = tail;
    }
    match u64::try_from(total_ns) {
        Ok(ns) if ns > 0 && !text.starts_with('-') => Ok(Duration::from_nanos(ns)),
        _ => Err("duration interval must be greater than 0".into()),
    }
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
        for (text, ns) in [
            ("250ms", 250_000_000),
            ("1h", 3_600_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h0.25s", 5_400_250_000_000),
            (".5s", 500_000_000),
            ("2.s", 2_000_000_000),
            ("+3us", 3000),
            ("3\u{b5}s4\u{3bc}s5ns", 7005),
            ("9223372036854775807ns", i64::MAX.unsigned_abs()),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_nanos(ns), "{text}");
        }
        for text in ["0", "0s", "-5s", "0.1ns", "-1h30m"] {
            assert_eq!(duration(text).unwrap_err(), "duration interval must be greater than 0");
        }
        for text in [
            "",
            "-",
            "+",
            "5",
            "s",
            ".s",
            "1.2.3s",
            "1x",
            "1s5",
            "1 s",
            "--5s",
            "+-5s",
            "1d",
            "99999999999999999m",
            "9223372036854775808ns",
            "2562048h",
        ] {
            let got = duration(text).unwrap_err();
            assert!(got.ends_with("for flag -interval: parse error"), "{text}: {got}");
        }
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
