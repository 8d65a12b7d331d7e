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

mod limits;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::limits::{InForce, devices, limits};
use super::{Cgroup, files, v1};
use crate::dbus::{ANSWER_LIMIT, Bus, Method, Value};
use crate::error::{Error, Result, Step};
use crate::spec::{DeviceRule, Resources};

const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
const PRIVATE: &str = "/run/systemd/private";
/// systemd's own limit for unit names.
const NAME_LIMIT_BYTES: usize = 255;
/// Annotations with this prefix are properties of the unit.
const PROPERTY: &str = "org.systemd.property.";

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
        let arguments = property_of_manager("ControlGroup");
        let answer = self.connect()?.call(PROPERTY_OF_MANAGER, &arguments)?;
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
        let mut bus = self.connect()?;
        let mut properties = self.properties(launch)?;
        properties.extend(understood(&mut bus, resources, launch.v2)?);
        if !launch.v2 {
            properties.extend(devices(&resources.devices, &known_devices())?);
        }
        for (key, text) in launch.annotations {
            if let Some(name) = key.strip_prefix(PROPERTY) {
                properties.push(annotation(name, text)?);
            }
        }
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

    /// What is both told to systemd and written by us for a unit that is still to be made: a quota as
    /// systemd will write it.
    pub(crate) fn agreed(resources: &Resources) -> Resources {
        limits::agreed(resources, &InForce::default())
    }

    /// Changes limits: systemd is told, and then they are written by us; what systemd does not know of
    /// is only written. `rules`: the device rules that are to be in force afterwards; `changed`: they
    /// are not those that systemd knows. On v2 they are not systemd's business.
    pub(crate) fn update(
        &self,
        cgroup: &Cgroup,
        resources: &Resources,
        rules: &[DeviceRule],
        changed: bool,
    ) -> Result<()> {
        let v2 = cgroup.is_v2();
        // systemd would not ask.
        if let (Cgroup::V2 { dir }, Some(m)) = (cgroup, &resources.memory) {
            super::v2::check_usage(dir, m)?;
        }
        let resources = limits::agreed(resources, &InForce::read(cgroup, resources)?);
        let changed = changed && !v2;
        if changed || !limits(&resources, v2, u32::MAX)?.is_empty() {
            let mut bus = self.connect()?;
            let mut properties = understood(&mut bus, &resources, v2)?;
            if changed {
                properties.extend(devices(rules, &known_devices())?);
            }
            undisturbed(cgroup, rules, changed, || self.set(&mut bus, properties))?;
        }
        cgroup.set(&resources)
    }

    fn set(&self, bus: &mut Bus, properties: Vec<(String, Value)>) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let arguments = [
            Value::Str(self.name.clone()),
            // Until the next boot.
            Value::Bool(true),
            Value::Properties(properties),
        ];
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

/// The limits, without what this systemd is too old for: that is only written by us.
fn understood(bus: &mut Bus, resources: &Resources, v2: bool) -> Result<Vec<(String, Value)>> {
    let all = limits(resources, v2, u32::MAX)?;
    if limits(resources, v2, 0)? == all {
        return Ok(all);
    }
    let answer = bus.call(PROPERTY_OF_MANAGER, &property_of_manager("Version"))?;
    let text = answer.strings().and_then(|s| s.into_iter().next()).unwrap_or_default();
    limits(resources, v2, limits::version(&text))
}

fn known_devices() -> String {
    std::fs::read_to_string("/proc/devices").unwrap_or_default()
}

/// Has systemd told by `tell`. On v1 it writes its device rules again with every change, beginning with
/// "nothing": the container does not run meanwhile, and then its own rules, which say more, are written
/// again.
fn undisturbed(
    cgroup: &Cgroup,
    rules: &[DeviceRule],
    changed: bool,
    tell: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let Cgroup::V1 { dirs, .. } = cgroup else { return tell() };
    let Some(dir) = v1::dir(dirs, "devices") else { return tell() };
    let is_open = files::read(&dir.join("devices.list"))?.trim() == "a *:* rwm";
    if is_open && !changed {
        return tell();
    }
    let freeze = v1::dir(dirs, "freezer").is_some() && !cgroup.is_frozen()?;
    let result = if freeze { cgroup.freeze(true) } else { Ok(()) }.and_then(|()| {
        let told = tell();
        let rules = super::devices::effective(rules)?;
        let written = v1::set_devices(dirs, &rules);
        told.and(written)
    });
    let thawed = if freeze { cgroup.freeze(false) } else { Ok(()) };
    result.and(thawed)
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

const PROPERTY_OF_MANAGER: Method<'_> = Method {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.DBus.Properties",
    member: "Get",
};

fn property_of_manager(name: &str) -> [Value; 2] {
    [Value::Str("org.freedesktop.systemd1.Manager".into()), Value::Str(name.into())]
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
    fn a_limit_below_the_usage_is_refused_before_systemd_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.current"), "200\n").unwrap();
        let cgroup = Cgroup::V2 { dir: dir.path().to_owned() };
        let text = r#"{"limit": 100, "checkBeforeUpdate": true}"#;
        let memory = serde_json::from_str(text).unwrap();
        let r = Resources { memory, ..Resources::default() };
        let unit = Unit::parse(&format!(":gantry-test:{}", std::process::id()), "c1", false);
        let e = unit.unwrap().update(&cgroup, &r, &[], false).unwrap_err().chain();
        assert!(e.contains("100 is below the current usage 200"), "{e}");
        assert!(!dir.path().join("memory.max").exists());
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
