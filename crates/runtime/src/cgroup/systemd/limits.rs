//! Limits and device rules in systemd's terms, as runc's `docs/systemd.md` (1.4) has them.

use std::path::Path;

use super::super::v2::{cpu_weight, pids_limit, swap_limit};
use super::super::{Cgroup, files, v1};
use crate::dbus::Value;
use crate::error::{Error, Result};
use crate::spec::{Cpu, DeviceRule, Memory, Resources};
use crate::surroundings::number_list;

const CPU_LIMIT: usize = 8192;
/// The period of the kernel and of systemd where none is given.
const DEFAULT_PERIOD_US: u64 = 100_000;
/// The kernel takes no shorter quota.
const MIN_QUOTA_US: i64 = 1_000;
const SECOND_US: u64 = 1_000_000;
/// systemd keeps whole percents: 10 ms in a second.
const PERCENT_US: u64 = 10_000;
/// The first systemd that knows CPUQuotaPeriodUSec.
const HAS_PERIOD: u32 = 242;
/// The first that knows AllowedCPUs and AllowedMemoryNodes.
const HAS_CPUSETS: u32 = 244;
/// The first for which CPUWeight 0 is the idle class.
const HAS_IDLE: u32 = 252;

/// Of systemd's `Version` ("v245.4-1.fc32", "249"); 0 if there is none.
pub(super) fn version(text: &str) -> u32 {
    let digits = text.trim_start_matches('v');
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// What a change of one value needs to know of the others. `None`: unknown, or not needed.
#[derive(Debug, Default, PartialEq)]
pub(super) struct InForce {
    /// Below 0: no limit.
    quota_us: Option<i64>,
    period_us: Option<u64>,
    memory: Option<i64>,
}

impl InForce {
    /// Reads what a change to `wanted` needs.
    pub(super) fn read(cgroup: &Cgroup, wanted: &Resources) -> Result<InForce> {
        let mut out = InForce::default();
        let cpu = wanted.cpu.as_ref().is_some_and(|c| of_cpu(c) != (None, None))
            || wanted.unified.contains_key("cpu.max");
        match cgroup {
            Cgroup::None => {}
            Cgroup::V2 { dir } => {
                if cpu && let Some(text) = files::read_optional(dir, "cpu.max")? {
                    (out.quota_us, out.period_us) = cpu_max(&text).unwrap_or_default();
                }
                if wanted.memory.is_some() {
                    let limit = files::number(dir, "memory.max")?;
                    out.memory = i64::try_from(limit).ok().filter(|l| *l > 0);
                }
            }
            Cgroup::V1 { dirs, .. } => {
                if cpu && let Some(dir) = v1::dir(dirs, "cpu") {
                    let read = |file| files::read_optional(dir, file);
                    out.quota_us = read("cpu.cfs_quota_us")?.and_then(|t| t.trim().parse().ok());
                    out.period_us = read("cpu.cfs_period_us")?.and_then(|t| t.trim().parse().ok());
                }
            }
        }
        Ok(out)
    }
}

fn of_cpu(c: &Cpu) -> (Option<i64>, Option<u64>) {
    (c.quota.filter(|q| *q != 0), c.period.filter(|p| *p != 0))
}

/// `quota [period]` in µs; -1 for `max`.
fn cpu_max(text: &str) -> Option<(Option<i64>, Option<u64>)> {
    let mut words = text.split_whitespace();
    let quota = match words.next()? {
        "max" => -1,
        n => n.parse().ok().filter(|n| *n > 0)?,
    };
    let period = match words.next() {
        None => None,
        Some(n) => Some(n.parse().ok().filter(|n| *n > 0)?),
    };
    words.next().is_none().then_some((Some(quota), period))
}

/// The resources with what follows from those in force, and with a quota that is the same for systemd
/// and the kernel.
pub(super) fn agreed(r: &Resources, now: &InForce) -> Resources {
    let mut out = r.clone();
    // systemd need not be told of its own default.
    let period = now.period_us.filter(|p| *p != DEFAULT_PERIOD_US);
    if let Some(c) = &mut out.cpu
        && of_cpu(c) != (None, None)
    {
        let (quota, given) = of_cpu(c);
        c.period = given.or(period);
        let quota = quota.or(now.quota_us);
        c.quota = quota.map(|q| rounded(q, c.period.unwrap_or(DEFAULT_PERIOD_US)));
    }
    if let (Some(text), Some(period)) = (out.unified.get_mut("cpu.max"), period)
        && let Some((_, None)) = cpu_max(text)
    {
        *text = format!("{} {period}", text.trim());
    }
    if let Some(m) = &mut out.memory
        && m.swap.is_some_and(|s| s > 0)
        && m.limit.is_none_or(|l| l == 0)
        && now.memory.is_some()
    {
        m.limit = now.memory;
    }
    out
}

/// µs in a second of what is a quota in a period, in whole percents; no limit: the largest number.
fn per_second(quota: i64, period: u64) -> u64 {
    let Ok(quota) = u64::try_from(quota) else { return u64::MAX };
    let share = u128::from(quota) * u128::from(SECOND_US) / u128::from(period.max(1));
    let share = u64::try_from(share).unwrap_or(u64::MAX);
    share.checked_next_multiple_of(PERCENT_US).unwrap_or(u64::MAX)
}

/// The quota that systemd makes of it. One that the kernel would refuse stays what it is.
fn rounded(quota: i64, period: u64) -> i64 {
    if quota < MIN_QUOTA_US {
        return quota;
    }
    let share = u128::from(per_second(quota, period));
    let quota = share * u128::from(period) / u128::from(SECOND_US);
    i64::try_from(quota).unwrap_or(i64::MAX).max(MIN_QUOTA_US)
}

/// Limits in systemd's terms; those that a systemd of this version knows.
pub(super) fn limits(r: &Resources, v2: bool, version: u32) -> Result<Vec<(String, Value)>> {
    let mut out: Vec<(String, Value)> = Vec::new();
    if let Some(m) = &r.memory {
        memory(&mut out, m, v2)?;
    }
    if let Some(c) = &r.cpu {
        cpu(&mut out, c, v2, version)?;
    }
    if let Some(limit) = r.pids.as_ref().and_then(|p| p.limit) {
        put(&mut out, "TasksMax", size(pids_limit(limit)));
    }
    if !v2 && let Some(w) = r.block_io.as_ref().and_then(|b| b.weight).filter(|w| *w != 0) {
        put(&mut out, "BlockIOWeight", Value::U64(w.into()));
    }
    // They come last, as when they are written.
    if v2 {
        let is_idle = r.unified.get("cpu.idle").is_some_and(|t| t.trim() == "1");
        for (file, text) in &r.unified {
            // Of both, runc tells systemd of the idle class.
            if !(is_idle && version >= HAS_IDLE && file == "cpu.weight") {
                unified(&mut out, file, text, version)?;
            }
        }
    }
    Ok(out)
}

fn put(out: &mut Vec<(String, Value)>, name: &str, value: Value) {
    out.push((name.to_owned(), value));
}

/// Below 0 is "no limit", which to systemd is the largest number.
fn size(n: i64) -> Value {
    Value::U64(u64::try_from(n).unwrap_or(u64::MAX))
}

fn memory(out: &mut Vec<(String, Value)>, m: &Memory, v2: bool) -> Result<()> {
    if let Some(limit) = m.limit.filter(|l| *l != 0) {
        put(out, if v2 { "MemoryMax" } else { "MemoryLimit" }, size(limit));
    }
    if v2 && let Some(low) = m.reservation.filter(|l| *l != 0) {
        put(out, "MemoryLow", size(low));
    }
    if v2 && let Some(swap) = swap_limit(m)? {
        put(out, "MemorySwapMax", size(swap));
    }
    Ok(())
}

fn cpu(out: &mut Vec<(String, Value)>, c: &Cpu, v2: bool, version: u32) -> Result<()> {
    let is_idle = v2 && c.idle == Some(1) && version >= HAS_IDLE;
    if is_idle {
        put(out, "CPUWeight", Value::U64(0));
    }
    if let Some(shares) = c.shares.filter(|s| *s != 0) {
        match v2 {
            // As the kernel: an idle cgroup has no weight.
            true if c.idle == Some(1) => {}
            true => put(out, "CPUWeight", Value::U64(cpu_weight(shares))),
            false => put(out, "CPUShares", Value::U64(shares)),
        }
    }
    let (quota_us, period_us) = of_cpu(c);
    quota(out, quota_us, period_us, version);
    if v2 {
        cpuset(out, "AllowedCPUs", &c.cpus, "linux.resources.cpu.cpus", version)?;
        cpuset(out, "AllowedMemoryNodes", &c.mems, "linux.resources.cpu.mems", version)?;
    }
    Ok(())
}

fn cpuset(
    out: &mut Vec<(String, Value)>,
    name: &str,
    list: &str,
    field: &'static str,
    version: u32,
) -> Result<()> {
    // A list that cannot be is an error with every systemd.
    if !list.is_empty() {
        let mask = mask(list, field)?;
        if version >= HAS_CPUSETS {
            put(out, name, Value::Bytes(mask));
        }
    }
    Ok(())
}

/// A period without a quota means no quota, as in runc.
fn quota(
    out: &mut Vec<(String, Value)>,
    quota_us: Option<i64>,
    period_us: Option<u64>,
    version: u32,
) {
    if let Some(period) = period_us
        && version >= HAS_PERIOD
    {
        put(out, "CPUQuotaPeriodUSec", Value::U64(period));
    }
    if quota_us.is_some() || period_us.is_some() {
        let share = per_second(quota_us.unwrap_or(-1), period_us.unwrap_or(DEFAULT_PERIOD_US));
        put(out, "CPUQuotaPerSecUSec", Value::U64(share));
    }
}

/// One file of `linux.resources.unified`, if systemd has a property for it.
fn unified(out: &mut Vec<(String, Value)>, file: &str, text: &str, version: u32) -> Result<()> {
    const FIELD: &str = "linux.resources.unified";
    let bad = || Error::config(FIELD, format!("{file}: {text:?} is no value for it"));
    let text = text.trim();
    let number = || match text {
        "max" => Ok(Value::U64(u64::MAX)),
        n => with_suffix(n).map(Value::U64).ok_or_else(bad),
    };
    match file {
        "cpu.max" => {
            let (quota_us, period_us) = cpu_max(text).ok_or_else(bad)?;
            quota(out, quota_us, period_us, version);
        }
        "cpu.weight" => put(out, "CPUWeight", text.parse().map(Value::U64).map_err(|_| bad())?),
        "cpu.idle" if text == "1" && version >= HAS_IDLE => put(out, "CPUWeight", Value::U64(0)),
        "cpuset.cpus" => cpuset(out, "AllowedCPUs", text, FIELD, version)?,
        "cpuset.mems" => cpuset(out, "AllowedMemoryNodes", text, FIELD, version)?,
        "memory.min" => put(out, "MemoryMin", number()?),
        "memory.low" => put(out, "MemoryLow", number()?),
        "memory.high" => put(out, "MemoryHigh", number()?),
        "memory.max" => put(out, "MemoryMax", number()?),
        "memory.swap.max" => put(out, "MemorySwapMax", number()?),
        "pids.max" => put(out, "TasksMax", number()?),
        _ => {}
    }
    Ok(())
}

/// A number as the kernel reads it for memory: K, M, G and T are powers of 1024.
fn with_suffix(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, c) if c.is_ascii_alphabetic() => {
            (&text[..at], "KMGT".find(c.to_ascii_uppercase())? + 1)
        }
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << (10 * shift))
}

/// `0,9` as bytes of bits, lowest first.
fn mask(list: &str, field: &'static str) -> Result<Vec<u8>> {
    let bad = || Error::config(field, format!("{list:?} is no list of numbers"));
    let numbers = number_list(list, CPU_LIMIT).ok_or_else(bad)?;
    let mut out = vec![0u8; numbers.iter().max().map_or(0, |n| n / 8 + 1)];
    for n in numbers {
        out[n / 8] |= 1 << (n % 8);
    }
    Ok(out)
}

/// The device rules, as far as systemd can say them: on v1 it writes them again at every reload. (On
/// v2 our program stays beside systemd's, and both must allow.) What it cannot say, our own rules
/// forbid. `known`: /proc/devices.
pub(super) fn devices(rules: &[DeviceRule], known: &str) -> Result<Vec<(String, Value)>> {
    let rules = super::super::devices::effective(rules)?;
    let open = rules.iter().rev().find(|r| r.is_default()).is_some_and(|r| r.allow);
    let allowed = rules.iter().filter(|r| r.allow && !open);
    let mut list = Vec::new();
    for rule in allowed {
        for (kind, heading) in [("block", "Block devices:"), ("char", "Character devices:")] {
            if rule.kind != 'a' && !kind.starts_with(rule.kind) {
                continue;
            }
            let name = match (rule.major, rule.minor) {
                (None, _) => Some(format!("{kind}-*")),
                (Some(major), None) => group(known, heading, major).map(|g| format!("{kind}-{g}")),
                // systemd looks the node up.
                (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}"))
                    .filter(|path| Path::new(path).exists()),
            };
            list.extend(name.map(|name| (name, rule.letters())));
        }
    }
    let policy = if open { "auto" } else { "strict" };
    Ok(vec![
        ("DevicePolicy".to_owned(), Value::Str(policy.into())),
        // A list is added to the one that is there, but for an empty one, which clears it.
        ("DeviceAllow".to_owned(), Value::Pairs(Vec::new())),
        ("DeviceAllow".to_owned(), Value::Pairs(list)),
    ])
}

/// The driver's name by its major number, from /proc/devices.
fn group<'a>(known: &'a str, heading: &str, major: u32) -> Option<&'a str> {
    let lines = known.lines().skip_while(|l| *l != heading).skip(1);
    lines.take_while(|l| !l.is_empty()).find_map(|l| {
        let (number, name) = l.trim().split_once(' ')?;
        (number.parse() == Ok(major)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::spec::{Cpu, Memory, Pids};

    #[test]
    fn limits_in_systemds_terms() {
        let r = Resources {
            memory: Some(Memory { limit: Some(100), swap: Some(150), ..Memory::default() }),
            cpu: Some(Cpu {
                shares: Some(1024),
                quota: Some(12_345),
                cpus: "0,9".into(),
                ..Cpu::default()
            }),
            pids: Some(Pids { limit: Some(-1) }),
            ..Resources::default()
        };
        let got = limits(&r, true, 255).unwrap();
        let find = |name: &str| got.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        assert_eq!(find("MemoryMax"), Some(Value::U64(100)));
        assert_eq!(find("MemorySwapMax"), Some(Value::U64(50)));
        assert_eq!(find("CPUWeight"), Some(Value::U64(100)));
        // 12.345 % is rounded up to 13 %.
        assert_eq!(find("CPUQuotaPerSecUSec"), Some(Value::U64(130_000)));
        assert_eq!(find("AllowedCPUs"), Some(Value::Bytes(vec![1, 2])));
        assert_eq!(find("TasksMax"), Some(Value::U64(u64::MAX)));
        let old = limits(&r, false, 255).unwrap();
        assert!(old.iter().any(|(n, v)| n == "CPUShares" && *v == Value::U64(1024)));
    }

    #[test]
    fn devices_by_group_and_node() {
        let known = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n";
        assert_eq!(group(known, "Character devices:", 136), Some("pts"));
        assert_eq!(group(known, "Character devices:", 8), None);
        let got = devices(&[], known).unwrap();
        assert_eq!(got[0].1, Value::Str("strict".into()));
        let Value::Pairs(list) = &got[2].1 else { panic!() };
        assert!(list.contains(&("char-pts".into(), "rwm".into())), "{list:?}");
        assert!(list.contains(&("block-*".into(), "m".into())), "{list:?}");
    }

    fn find<'a>(got: &'a [(String, Value)], name: &str) -> Option<&'a Value> {
        // The last counts.
        got.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    #[test]
    fn an_old_systemd_is_not_told_what_it_does_not_know() {
        for (text, want) in [("v245.4-1.fc32", 245), ("249", 249), ("255~rc1", 255), ("", 0)] {
            assert_eq!(version(text), want, "{text}");
        }
        let cpu = Cpu {
            quota: Some(20_000),
            period: Some(50_000),
            cpus: "1".into(),
            mems: "0".into(),
            idle: Some(1),
            shares: Some(512),
            ..Cpu::default()
        };
        let r = Resources { cpu: Some(cpu), ..Resources::default() };
        let names = |version| {
            let got = limits(&r, true, version).unwrap();
            assert_eq!(find(&got, "CPUQuotaPerSecUSec"), Some(&Value::U64(400_000)));
            got.iter()
                .map(|(n, _)| n.clone())
                .filter(|n| n != "CPUQuotaPerSecUSec")
                .collect::<Vec<_>>()
        };
        assert_eq!(names(241), Vec::<String>::new());
        assert_eq!(names(242), ["CPUQuotaPeriodUSec"]);
        assert_eq!(names(244), ["CPUQuotaPeriodUSec", "AllowedCPUs", "AllowedMemoryNodes"]);
        assert_eq!(names(252)[0], "CPUWeight");
        let got = limits(&r, true, 252).unwrap();
        assert_eq!(find(&got, "CPUWeight"), Some(&Value::U64(0)));
        let bad = Resources {
            cpu: Some(Cpu { cpus: "x".into(), ..Cpu::default() }),
            ..Resources::default()
        };
        assert!(limits(&bad, true, 0).is_err());
    }

    #[test]
    fn unified_is_told_too() {
        let unified = |list: &[(&str, &str)]| Resources {
            memory: Some(Memory { limit: Some(5), ..Memory::default() }),
            unified: list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Resources::default()
        };
        let r = unified(&[
            ("cpu.max", "50000 200000\n"),
            ("cpu.weight", "7"),
            ("cpuset.cpus", "0,9"),
            ("memory.high", "max"),
            ("memory.max", "3K"),
            ("memory.swap.max", "0"),
            ("pids.max", "9"),
            ("io.max", "8:0 rbps=1"),
        ]);
        let got = limits(&r, true, 255).unwrap();
        for (name, value) in [
            ("CPUQuotaPerSecUSec", 250_000),
            ("CPUQuotaPeriodUSec", 200_000),
            ("CPUWeight", 7),
            ("MemoryHigh", u64::MAX),
            ("MemoryMax", 3 << 10),
            ("MemorySwapMax", 0),
            ("TasksMax", 9),
        ] {
            assert_eq!(find(&got, name), Some(&Value::U64(value)), "{name}");
        }
        assert_eq!(find(&got, "AllowedCPUs"), Some(&Value::Bytes(vec![1, 2])));
        // v1 has no such files.
        assert_eq!(limits(&r, false, 255).unwrap().len(), 1);
        let idle = unified(&[("cpu.idle", "1"), ("cpu.weight", "7")]);
        let weight = |version| limits(&idle, true, version).map(|l| find(&l, "CPUWeight").cloned());
        assert_eq!(weight(252).unwrap(), Some(Value::U64(0)));
        assert_eq!(weight(251).unwrap(), Some(Value::U64(7)));
        for (file, text) in
            [("cpu.max", "1 2 3"), ("cpu.max", "0"), ("memory.low", "-1"), ("pids.max", "many")]
        {
            let e = limits(&unified(&[(file, text)]), true, 255).unwrap_err().to_string();
            assert!(e.contains("linux.resources.unified") && e.contains(file), "{e}");
        }
    }

    #[test]
    fn a_swap_limit_that_cannot_be_is_an_error() {
        let r = |limit, swap| Resources {
            memory: Some(Memory { limit, swap, ..Memory::default() }),
            ..Resources::default()
        };
        let bad = r(Some(200), Some(100));
        assert!(limits(&bad, true, 255).unwrap_err().to_string().contains("memory.swap"));
        // Of swap alone: what is in force counts.
        let alone = r(None, Some(100));
        assert!(limits(&alone, true, 255).is_err());
        let now = InForce { memory: Some(70), ..InForce::default() };
        let got = limits(&agreed(&alone, &now), true, 255).unwrap();
        assert_eq!(find(&got, "MemorySwapMax"), Some(&Value::U64(30)));
    }

    #[test]
    fn a_quota_goes_with_the_period_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::V2 { dir: dir.path().to_owned() };
        let r = |quota, period| Resources {
            cpu: Some(Cpu { quota, period, ..Cpu::default() }),
            ..Resources::default()
        };
        let told = |cgroup: &Cgroup, r: &Resources, now: &str| {
            std::fs::write(dir.path().join("cpu.max"), now).unwrap();
            let r = agreed(r, &InForce::read(cgroup, r).unwrap());
            let got = limits(&r, true, 255).unwrap();
            let number = |name| match find(&got, name) {
                Some(Value::U64(n)) => Some(*n),
                _ => None,
            };
            let cpu = r.cpu.unwrap_or_default();
            (number("CPUQuotaPerSecUSec"), number("CPUQuotaPeriodUSec"), cpu.quota, cpu.period)
        };
        // The quota alone, and the period alone: the quota stays.
        let got = told(&cgroup, &r(Some(25_000), None), "10000 50000\n");
        assert_eq!(got, (Some(500_000), Some(50_000), Some(25_000), Some(50_000)));
        let got = told(&cgroup, &r(None, Some(100_000)), "10000 50000\n");
        assert_eq!(got, (Some(100_000), Some(100_000), Some(10_000), Some(100_000)));
        let got = told(&cgroup, &r(None, Some(200_000)), "max 100000\n");
        assert_eq!(got, (Some(u64::MAX), Some(200_000), Some(-1), Some(200_000)));
        // systemd's own period need not be told; the kernel gets the same rounding as systemd.
        let got = told(&cgroup, &r(Some(12_345), None), "max 100000\n");
        assert_eq!(got, (Some(130_000), None, Some(13_000), None));
        // One that the kernel refuses, and one that would be rounded to such a one.
        assert_eq!((rounded(500, 100_000), rounded(1_000, 99_999)), (500, 1_000));
        let mut unified = Resources::default();
        unified.unified.insert("cpu.max".into(), "25000".into());
        let got = told(&cgroup, &unified, "10000 50000\n");
        assert_eq!((got.0, got.1), (Some(500_000), Some(50_000)));

        for (file, text) in [("cpu.cfs_quota_us", "10000\n"), ("cpu.cfs_period_us", "50000\n")] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let of_cpu = super::super::super::V1Dir {
            name: "cpu".into(),
            controllers: vec!["cpu".into()],
            mount: dir.path().to_owned(),
            dir: dir.path().to_owned(),
        };
        let cgroup = Cgroup::V1 { dirs: vec![of_cpu], unified: None };
        let got = told(&cgroup, &r(Some(25_000), None), "");
        assert_eq!(got, (Some(500_000), Some(50_000), Some(25_000), Some(50_000)));
    }

    #[test]
    fn a_rule_for_both_kinds_is_told_of_both() {
        let rules: Vec<DeviceRule> =
            serde_json::from_str(r#"[{"allow":true,"major":8,"access":"r"}]"#).unwrap();
        let known = "Character devices:\n  8 tape\n\nBlock devices:\n  8 sd\n";
        let got = devices(&rules, known).unwrap();
        assert_eq!(got[1], ("DeviceAllow".into(), Value::Pairs(Vec::new())));
        let Value::Pairs(list) = &got[2].1 else { panic!() };
        for name in ["block-sd", "char-tape"] {
            assert!(list.contains(&(name.into(), "r".into())), "{list:?}");
        }
    }
}
