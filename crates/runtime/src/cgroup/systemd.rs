//! The systemd cgroup driver: a container's cgroup is a transient scope (or slice) that systemd
//! makes around its first process. Limits are told to systemd, so that it does not undo them, and
//! then written by us as ever.
//!
//! ```text
//!  cgroupsPath                cgroup below the hierarchy's root, or the user manager's cgroup
//!  system.slice:docker:1f2e   /system.slice/docker-1f2e.scope
//!  a-b.slice:docker:1f2e      /a.slice/a-b.slice/docker-1f2e.scope
//!  a-b.slice::x.slice         /a.slice/a-b.slice/x.slice
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::v2::cpu_weight;
use crate::dbus::{ANSWER_LIMIT, Bus, Method, Value};
use crate::error::{Error, Result, Step};
use crate::spec::Resources;
use crate::surroundings::number_list;

const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
const PRIVATE: &str = "/run/systemd/private";
/// systemd's own limit for unit names.
const NAME_LIMIT_BYTES: usize = 255;
const CPU_LIMIT: usize = 8192;
/// Annotations with this prefix are properties of the unit.
const PROPERTY: &str = "org.systemd.property.";
/// The kernel's period where none is given.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// A container's unit; part of the state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    name: String,
    slice: String,
    /// With the user's own systemd.
    user: bool,
}

/// What the unit is made with beside limits.
pub(crate) struct Launch<'a> {
    pub(crate) id: &'a str,
    pub(crate) pid: i32,
    pub(crate) v2: bool,
    pub(crate) annotations: &'a BTreeMap<String, String>,
}

impl Unit {
    /// From `linux.cgroupsPath`: `slice:prefix:name`; empty: a scope of the default slice.
    pub(crate) fn parse(path: &str, id: &str, user: bool) -> Result<Unit> {
        let default = if user { "user.slice" } else { "system.slice" };
        let bad = |problem: String| Error::config("linux.cgroupsPath", problem);
        if path.is_empty() {
            let name = format!("runc-{id}.scope");
            return Ok(Unit { name, slice: default.into(), user });
        }
        let [slice, prefix, name] = path.split(':').collect::<Vec<_>>()[..] else {
            return Err(bad(format!(
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
            )));
        };
        let slice = if slice.is_empty() { default } else { slice };
        let name = match (name.ends_with(".slice"), prefix) {
            (true, _) => name.to_owned(),
            (false, "") => format!("{name}.scope"),
            (false, prefix) => format!("{prefix}-{name}.scope"),
        };
        let letters =
            |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b));
        if !letters(&name) || name.len() > NAME_LIMIT_BYTES || name.starts_with('.') {
            return Err(bad(format!("{name:?} is no name of a systemd unit")));
        }
        expand(slice).ok_or_else(|| bad(format!("{slice:?} is no systemd slice")))?;
        Ok(Unit { name, slice: slice.to_owned(), user })
    }

    /// Path of the unit's cgroup, absolute from the hierarchy's root.
    pub(crate) fn path(&self) -> Result<String> {
        let base = if self.user { self.user_manager()? } else { PathBuf::from("/") };
        let slice = expand(&self.slice).unwrap_or_default();
        Ok(base.join(slice).join(&self.name).display().to_string())
    }

    /// Cgroup of the user's systemd.
    fn user_manager(&self) -> Result<PathBuf> {
        let method = Method {
            destination: "org.freedesktop.systemd1",
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
        };
        let arguments = [
            Value::Str("org.freedesktop.systemd1.Manager".into()),
            Value::Str("ControlGroup".into()),
        ];
        let answer = self.connect()?.call(method, &arguments)?;
        let path = answer.strings().and_then(|s| s.into_iter().next());
        path.map(PathBuf::from)
            .ok_or_else(|| Error::config("D-Bus", "the user's systemd does not tell its cgroup"))
    }

    fn connect(&self) -> Result<Bus> {
        let way_out = || "the systemd cgroup driver (--systemd-cgroup) needs a running systemd; without it there is the cgroupfs driver";
        if self.user {
            return Bus::connect(&user_bus()?, true, ANSWER_LIMIT).step(way_out);
        }
        let bus = match std::env::var("DBUS_SYSTEM_BUS_ADDRESS") {
            Ok(address) => unix_path(&address)?,
            Err(_) => SYSTEM_BUS.into(),
        };
        // Early in the boot and in small systems there is no bus, but systemd's own socket.
        let begun = Instant::now();
        match Bus::connect(&bus, true, ANSWER_LIMIT) {
            Ok(bus) => Ok(bus),
            Err(first) => {
                let left = ANSWER_LIMIT.saturating_sub(begun.elapsed());
                Bus::connect(Path::new(PRIVATE), false, left).map_err(|_| first)
            }
        }
        .step(way_out)
    }

    fn listen_for_jobs(&self, bus: &mut Bus) -> Result<()> {
        let rule = format!(
            "type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved',arg2='{}'",
            self.name
        );
        bus.listen(&rule, "JobRemoved", &self.name)
    }

    /// Has the unit made with the process in it. It is ours once this returns; there is a cgroup when
    /// the job has ended.
    pub(crate) fn start(&self, launch: &Launch<'_>, resources: &Resources) -> Result<Job<'_>> {
        let mut properties = self.properties(launch)?;
        properties.extend(limits(resources, launch.v2)?);
        if !launch.v2 {
            let known = std::fs::read_to_string("/proc/devices").unwrap_or_default();
            properties.extend(devices(resources, &known)?);
        }
        for (key, text) in launch.annotations {
            if let Some(name) = key.strip_prefix(PROPERTY) {
                properties.push(annotation(name, text)?);
            }
        }
        let mut bus = self.connect()?;
        self.listen_for_jobs(&mut bus)?;
        let arguments = |properties| {
            [
                Value::Str(self.name.clone()),
                Value::Str("replace".into()),
                Value::Properties(properties),
                Value::NoAux,
            ]
        };
        let call = |bus: &mut Bus, properties| {
            bus.call(manager("StartTransientUnit"), &arguments(properties))
        };
        let job = match call(&mut bus, properties.clone()) {
            Err(Error::Dbus { name, .. }) if name.ends_with(".UnitExists") => {
                // A failed unit of the same name that systemd still remembers.
                bus.call(manager("ResetFailedUnit"), &[Value::Str(self.name.clone())])?;
                call(&mut bus, properties)
            }
            other => other,
        };
        let job = job.step(|| format!("start systemd unit {}", self.name))?;
        Ok(Job { unit: self, path: job.strings(), bus })
    }

    fn properties(&self, launch: &Launch<'_>) -> Result<Vec<(String, Value)>> {
        let yes = |name: &str| (name.to_owned(), Value::Bool(true));
        let slice = self.name.ends_with(".slice");
        let mut out = vec![
            ("Description".to_owned(), Value::Str(format!("container {}", launch.id))),
            (
                if slice { "Wants" } else { "Slice" }.to_owned(),
                if slice {
                    Value::Strs(vec![self.slice.clone()])
                } else {
                    Value::Str(self.slice.clone())
                },
            ),
        ];
        if !slice {
            out.push(yes("Delegate"));
            let pid = u32::try_from(launch.pid)
                .map_err(|_| Error::config("systemd", "no process for the unit"))?;
            out.push(("PIDs".to_owned(), Value::U32s(vec![pid])));
        }
        let io = if launch.v2 { "IOAccounting" } else { "BlockIOAccounting" };
        out.extend(["MemoryAccounting", "CPUAccounting", "TasksAccounting", io].map(yes));
        out.push(("DefaultDependencies".to_owned(), Value::Bool(false)));
        Ok(out)
    }

    /// Tells systemd of changed limits; what it does not know of is written by us alone.
    pub(crate) fn set(&self, resources: &Resources, v2: bool) -> Result<()> {
        let properties = limits(resources, v2)?;
        if properties.is_empty() {
            return Ok(());
        }
        let arguments = [
            Value::Str(self.name.clone()),
            // Until the next boot.
            Value::Bool(true),
            Value::Properties(properties),
        ];
        let mut bus = self.connect()?;
        let set = bus.call(manager("SetUnitProperties"), &arguments);
        set.step(|| format!("change systemd unit {}", self.name)).map(drop)
    }

    /// Stops the unit, and makes systemd forget it if it failed. One that is gone is fine.
    pub(crate) fn stop(&self) -> Result<()> {
        let mut bus = self.connect()?;
        self.listen_for_jobs(&mut bus)?;
        let arguments = [Value::Str(self.name.clone()), Value::Str("replace".into())];
        match bus.call(manager("StopUnit"), &arguments) {
            Ok(job) => bus = Job { unit: self, path: job.strings(), bus }.wait()?,
            Err(Error::Dbus { name, .. }) if name.ends_with(".NoSuchUnit") => {}
            Err(e) => return Err(e).step(|| format!("stop systemd unit {}", self.name)),
        }
        match bus.call(manager("ResetFailedUnit"), &[Value::Str(self.name.clone())]) {
            // Not failed, which is as it should be: then it is not loaded any more.
            Ok(_) | Err(Error::Dbus { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// What systemd is doing with a unit.
#[must_use]
pub(crate) struct Job<'a> {
    unit: &'a Unit,
    /// The answer that names it.
    path: Option<Vec<String>>,
    bus: Bus,
}

impl Job<'_> {
    /// Waits for its end; the connection, for what follows.
    pub(crate) fn wait(self) -> Result<Bus> {
        let Job { unit, path, mut bus } = self;
        let bad = || Error::config("D-Bus", "systemd's answer names no job");
        let job = path.and_then(|j| j.into_iter().next()).ok_or_else(bad)?;
        let result = bus
            .wait_signal(|m| match m.strings()?.as_slice() {
                [_, path, _, result] if *path == job => Some(result.clone()),
                _ => None,
            })
            .step(|| format!("wait for systemd unit {}", unit.name))?;
        match result.as_str() {
            "done" => Ok(bus),
            other => Err(Error::config(
                "systemd",
                format!("the job for unit {} ended as {other:?}", unit.name),
            )),
        }
    }
}

fn manager(member: &str) -> Method<'_> {
    Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member,
    }
}

fn user_bus() -> Result<PathBuf> {
    if let Ok(address) = std::env::var("DBUS_SESSION_BUS_ADDRESS") {
        return unix_path(&address);
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => Ok(Path::new(&dir).join("bus")),
        _ => Err(Error::config(
            "--systemd-cgroup",
            "neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set (no session of the user's)",
        )),
    }
}

/// `unix:path=…`, the first of a list.
fn unix_path(address: &str) -> Result<PathBuf> {
    let unix = address.split(';').find_map(|a| a.strip_prefix("unix:")).unwrap_or_default();
    let path = unix.split(',').find_map(|part| part.strip_prefix("path="));
    path.map(PathBuf::from)
        .ok_or_else(|| Error::config("D-Bus", format!("address {address:?} is not unix:path=…")))
}

/// `a-b.slice` is below `a.slice`; `-.slice` is the root.
fn expand(slice: &str) -> Option<PathBuf> {
    let stem = slice.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(PathBuf::new());
    }
    let mut out = PathBuf::new();
    let mut name = String::new();
    for part in stem.split('-') {
        if part.is_empty() || part.contains(['/', '\0']) {
            return None;
        }
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(part);
        out.push(format!("{name}.slice"));
    }
    Some(out)
}

/// The device rules, as far as systemd can say them: on v1 it writes them again at every reload. (On
/// v2 our program stays beside systemd's, and both must allow.) What it cannot say, our own rules
/// forbid. `known`: /proc/devices.
fn devices(r: &Resources, known: &str) -> Result<Vec<(String, Value)>> {
    let rules = super::devices::effective(&r.devices)?;
    let open = rules.iter().rev().find(|r| r.is_default()).is_some_and(|r| r.allow);
    let allowed = rules.iter().filter(|r| r.allow && !open);
    let mut list = Vec::new();
    for rule in allowed {
        let (heading, kind) = match rule.kind {
            'b' => ("Block devices:", "block"),
            _ => ("Character devices:", "char"),
        };
        let name = match (rule.major, rule.minor) {
            (None, _) => Some(format!("{kind}-*")),
            (Some(major), None) => group(known, heading, major).map(|g| format!("{kind}-{g}")),
            // systemd looks the node up.
            (Some(major), Some(minor)) => {
                Some(format!("/dev/{kind}/{major}:{minor}")).filter(|path| Path::new(path).exists())
            }
        };
        list.extend(name.map(|name| (name, rule.letters())));
    }
    let policy = if open { "auto" } else { "strict" };
    Ok(vec![
        ("DevicePolicy".to_owned(), Value::Str(policy.into())),
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

/// Limits in systemd's terms.
fn limits(r: &Resources, v2: bool) -> Result<Vec<(String, Value)>> {
    let mut out: Vec<(String, Value)> = Vec::new();
    let mut put = |name: &str, value: Value| out.push((name.to_owned(), value));
    // Below 0 is "no limit", which to systemd is the largest number.
    let size = |n: i64| Value::U64(u64::try_from(n).unwrap_or(u64::MAX));
    if let Some(m) = &r.memory {
        if let Some(limit) = m.limit.filter(|l| *l != 0) {
            put(if v2 { "MemoryMax" } else { "MemoryLimit" }, size(limit));
        }
        if v2 && let Some(low) = m.reservation.filter(|l| *l != 0) {
            put("MemoryLow", size(low));
        }
        if v2 && let Some(swap) = super::v2::swap_limit(m).ok().flatten() {
            put("MemorySwapMax", size(swap));
        }
    }
    if let Some(c) = &r.cpu {
        if let Some(shares) = c.shares.filter(|s| *s != 0) {
            match v2 {
                true => put("CPUWeight", Value::U64(cpu_weight(shares))),
                false => put("CPUShares", Value::U64(shares)),
            }
        }
        quota(c.quota, c.period).into_iter().for_each(|(name, value)| put(name, value));
        if v2 {
            for (name, list, field) in [
                ("AllowedCPUs", &c.cpus, "linux.resources.cpu.cpus"),
                ("AllowedMemoryNodes", &c.mems, "linux.resources.cpu.mems"),
            ] {
                if !list.is_empty() {
                    put(name, Value::Bytes(mask(list, field)?));
                }
            }
        }
    }
    if let Some(limit) = r.pids.as_ref().and_then(|p| p.limit).filter(|l| *l != 0) {
        put("TasksMax", size(limit));
    }
    if !v2 && let Some(w) = r.block_io.as_ref().and_then(|b| b.weight).filter(|w| *w != 0) {
        put("BlockIOWeight", Value::U64(w.into()));
    }
    Ok(out)
}

fn quota(quota: Option<i64>, period: Option<u64>) -> Vec<(&'static str, Value)> {
    /// systemd keeps whole percents: 10 ms in a second.
    const PERCENT_US: u64 = 10_000;
    let period = period.filter(|p| *p != 0);
    let mut out = Vec::new();
    if let Some(period) = period {
        out.push(("CPUQuotaPeriodUSec", Value::U64(period)));
    }
    if let Some(quota) = quota.filter(|q| *q != 0) {
        let per_second = match u64::try_from(quota) {
            Ok(q) => q
                .saturating_mul(1_000_000)
                .checked_div(period.unwrap_or(DEFAULT_PERIOD_US))
                .unwrap_or(u64::MAX)
                .checked_next_multiple_of(PERCENT_US)
                .unwrap_or(u64::MAX),
            Err(_) => u64::MAX,
        };
        out.push(("CPUQuotaPerSecUSec", Value::U64(per_second)));
    }
    out
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

/// A property from an annotation, in GVariant's text form: what systemd's properties of units
/// need of it.
fn annotation(name: &str, text: &str) -> Result<(String, Value)> {
    let bad = |problem: &str| {
        Error::config("annotations", format!("{PROPERTY}{name}={text:?} {problem}"))
    };
    if name.len() <= 3 || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
        return Err(bad("has no name of a property"));
    }
    let value = variant(text.trim()).ok_or_else(|| bad("is no value that is understood here"))?;
    // systemd's files say seconds, its properties microseconds.
    let Some(stem) = name.strip_suffix("Sec").filter(|s| s.ends_with(|c: char| c.is_lowercase()))
    else {
        return Ok((name.to_owned(), value));
    };
    let micro = match value {
        Value::I32(n) => u64::try_from(n).ok().and_then(|n| n.checked_mul(1_000_000)),
        Value::U32(n) => u64::from(n).checked_mul(1_000_000),
        Value::I64(n) => u64::try_from(n).ok().and_then(|n| n.checked_mul(1_000_000)),
        Value::U64(n) => n.checked_mul(1_000_000),
        _ => None,
    };
    let micro = micro.ok_or_else(|| bad("is no number of seconds"))?;
    Ok((format!("{stem}USec"), Value::U64(micro)))
}

fn variant(text: &str) -> Option<Value> {
    let quoted = |t: &str| {
        let inner = ['\'', '"'].iter().find_map(|q| t.strip_prefix(*q)?.strip_suffix(*q))?;
        (!inner.contains(['\'', '"', '\\'])).then(|| inner.to_owned())
    };
    match text {
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        _ => {}
    }
    if let Some(list) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        let items = list.split(',').map(str::trim).filter(|_| !list.trim().is_empty());
        return items.map(quoted).collect::<Option<Vec<_>>>().map(Value::Strs);
    }
    if let Some(text) = quoted(text) {
        return Some(Value::Str(text));
    }
    match text.split_once(' ') {
        Some(("int32", n)) => n.trim().parse().ok().map(Value::I32),
        Some(("uint32", n)) => n.trim().parse().ok().map(Value::U32),
        Some(("int64", n)) => n.trim().parse().ok().map(Value::I64),
        Some(("uint64", n)) => n.trim().parse().ok().map(Value::U64),
        Some(("double", n)) => n.trim().parse().ok().map(Value::F64),
        Some(_) => None,
        None if text.contains('.') => text.parse().ok().map(Value::F64),
        None => text.parse().ok().map(Value::I32),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::spec::{Cpu, Memory, Pids};

    #[test]
    fn names_and_paths() {
        let path = |text: &str| Unit::parse(text, "c1", false).and_then(|u| u.path());
        assert_eq!(path("").unwrap(), "/system.slice/runc-c1.scope");
        assert_eq!(path("a-b.slice:docker:x").unwrap(), "/a.slice/a-b.slice/docker-x.scope");
        assert_eq!(path(":cri:x").unwrap(), "/system.slice/cri-x.scope");
        assert_eq!(path("-.slice::x").unwrap(), "/x.scope");
        assert_eq!(path("a.slice::b.slice").unwrap(), "/a.slice/b.slice");
        for bad in ["/a/b", "a:b", "a.slice:b:c/../d", "a--b.slice:c:d", "a:b:c", "/x.slice:b:c"] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

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
        let got = limits(&r, true).unwrap();
        let find = |name: &str| got.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        assert_eq!(find("MemoryMax"), Some(Value::U64(100)));
        assert_eq!(find("MemorySwapMax"), Some(Value::U64(50)));
        assert_eq!(find("CPUWeight"), Some(Value::U64(100)));
        // 12.345 % is rounded up to 13 %.
        assert_eq!(find("CPUQuotaPerSecUSec"), Some(Value::U64(130_000)));
        assert_eq!(find("AllowedCPUs"), Some(Value::Bytes(vec![1, 2])));
        assert_eq!(find("TasksMax"), Some(Value::U64(u64::MAX)));
        let old = limits(&r, false).unwrap();
        assert!(old.iter().any(|(n, v)| n == "CPUShares" && *v == Value::U64(1024)));
    }

    #[test]
    fn devices_by_group_and_node() {
        let known = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n";
        assert_eq!(group(known, "Character devices:", 136), Some("pts"));
        assert_eq!(group(known, "Character devices:", 8), None);
        let got = devices(&Resources::default(), known).unwrap();
        assert_eq!(got[0].1, Value::Str("strict".into()));
        let Value::Pairs(list) = &got[1].1 else { panic!() };
        assert!(list.contains(&("char-pts".into(), "rwm".into())), "{list:?}");
        assert!(list.contains(&("block-*".into(), "m".into())), "{list:?}");
    }

    #[test]
    fn properties_from_annotations() {
        let get = |name: &str, text: &str| annotation(name, text);
        assert_eq!(get("CollectMode", "'inactive'").unwrap().1, Value::Str("inactive".into()));
        assert_eq!(
            get("TimeoutStopSec", "3").unwrap(),
            ("TimeoutStopUSec".into(), Value::U64(3_000_000))
        );
        assert_eq!(get("After", "['a.service']").unwrap().1, Value::Strs(vec!["a.service".into()]));
        assert_eq!(get("Nice", "uint64 7").unwrap().1, Value::U64(7));
        assert!(get("Nice", "@a{sv} {}").is_err() && get("x/y", "1").is_err());
    }
}
