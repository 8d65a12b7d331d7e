//! The OCI runtime specification of a container: docker's defaults, and over them what was asked
//! (moby `oci/defaults.go`, `daemon/oci_linux.go`).

use std::path::{Path, PathBuf};

use api_types::{HostConfig, Resources};
use serde_json::{Map, Value, json};

use super::{
    devices::{device_number, device_rules, devices},
    merge,
    record::{MountKind, MountUse, Record},
    seccomp,
    users::User,
};
use crate::{Error, Result};

/// moby `oci/caps.DefaultCapabilities`.
const DEFAULT_CAPS: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability of capabilities(7), in the order of their numbers.
const ALL_CAPS: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// moby `oci.DefaultSpec` `MaskedPaths`, with those of 2024 and later.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Gives a container docker's masked and read-only paths, unless it has its own or is to have none;
/// `inspect` tells them.
pub(super) fn fill_masked_paths(host: &mut HostConfig) {
    let none = host.privileged
        || host.security_opt.iter().any(|option| {
            matches!(option.as_str(), "systempaths=unconfined" | "systempaths:unconfined")
        });
    let or_default = |own: &mut Option<Vec<String>>, default: &[&str]| {
        if none {
            *own = Some(Vec::new());
        } else if own.is_none() {
            *own = Some(default.iter().map(|path| (*path).to_string()).collect());
        }
    };
    or_default(&mut host.masked_paths, MASKED);
    or_default(&mut host.readonly_paths, READ_ONLY);
}

/// What the specification needs beside the record.
pub(crate) struct SpecInput<'a> {
    pub(crate) record: &'a Record,
    pub(crate) user: User,
    /// Directory with hosts, hostname and resolv.conf.
    pub(crate) files: &'a Path,
    /// `None`: the host's network.
    pub(crate) network_namespace: Option<PathBuf>,
    /// Of the container whose namespaces are shared.
    pub(crate) ipc_pid: Option<u32>,
    /// Directory that is its /dev/shm, where that is shared with others.
    pub(crate) shm: Option<PathBuf>,
    pub(crate) pid_pid: Option<u32>,
    pub(crate) cgroup_path: String,
    pub(crate) cgroup_v2: bool,
    pub(crate) cgroupns_private: bool,
    pub(crate) default_shm_bytes: i64,
    pub(crate) default_ulimits: &'a [(String, i64, i64)],
    pub(crate) no_new_privileges: bool,
    /// The static init that becomes pid 1 with `--init`.
    pub(crate) init: Option<PathBuf>,
    /// Variables that tell of linked containers.
    pub(crate) link_env: Vec<String>,
}

/// What `--security-opt` says.
struct Security {
    no_new_privileges: bool,
    seccomp: SeccompChoice,
    masked: bool,
    writable_cgroups: bool,
}

enum SeccompChoice {
    Default,
    Unconfined,
    Profile(Value),
}

/// Builds the specification.
pub(crate) fn build(input: &SpecInput<'_>) -> Result<Value> {
    let record = input.record;
    let host = &record.host_config;
    let security = security(host, input.no_new_privileges)?;
    let capabilities = capabilities(host)?;
    let mut linux = Map::new();
    linux.insert("namespaces".into(), namespaces(input)?);
    linux.insert("cgroupsPath".into(), json!(input.cgroup_path));
    let mut resources = resources(&host.resources, input.cgroup_v2)?;
    resources.insert("devices".into(), device_rules(host)?);
    linux.insert("resources".into(), Value::Object(resources));
    linux.insert("devices".into(), devices(host)?);
    linux.insert("sysctl".into(), sysctls(input)?);
    if !host.privileged && security.masked {
        let list = |own: &Option<Vec<String>>, default: &[&str]| match own {
            Some(own) => json!(own),
            None => json!(default),
        };
        linux.insert("maskedPaths".into(), list(&host.masked_paths, MASKED));
        linux.insert("readonlyPaths".into(), list(&host.readonly_paths, READ_ONLY));
    }
    if !host.privileged {
        match &security.seccomp {
            SeccompChoice::Default => {
                linux.insert("seccomp".into(), seccomp::default_profile(&capabilities));
            }
            SeccompChoice::Profile(profile) => {
                linux.insert("seccomp".into(), profile.clone());
            }
            SeccompChoice::Unconfined => {}
        }
    }
    linux.insert("rootfsPropagation".into(), json!(root_propagation(&record.mounts)));
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": first_process(input, &capabilities, &security)?,
        "root": { "path": "rootfs", "readonly": host.readonly_rootfs },
        "hostname": hostname(record),
        "domainname": record.config.domainname,
        "mounts": mounts(input, &security)?,
        "linux": linux,
        "annotations": host.annotations,
    });
    if (record.config.domainname.is_empty() || host.uts_mode == "host")
        && let Some(object) = spec.as_object_mut()
    {
        object.remove("domainname");
    }
    Ok(spec)
}

fn hostname(record: &Record) -> Value {
    if record.host_config.uts_mode == "host" { Value::Null } else { json!(record.hostname()) }
}

/// What a process of a container is made of, its first one or an exec's.
pub(super) struct ProcessInput<'a> {
    pub(super) host: &'a HostConfig,
    pub(super) default_ulimits: &'a [(String, i64, i64)],
    pub(super) no_new_privileges: bool,
    pub(super) user: &'a User,
    pub(super) capabilities: &'a [String],
    pub(super) args: &'a [String],
    pub(super) env: &'a [String],
    pub(super) cwd: &'a str,
    pub(super) terminal: bool,
    /// Height and width; zeros are none.
    pub(super) console_size: [u32; 2],
}

/// The process object of the specification.
pub(super) fn process(input: &ProcessInput<'_>) -> Result<Value> {
    let user = input.user;
    let mut process = json!({
        "terminal": input.terminal,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "args": input.args,
        "env": input.env,
        "cwd": input.cwd,
        "capabilities": capability_sets(input.capabilities, user.uid),
        "noNewPrivileges": input.no_new_privileges,
        "oomScoreAdj": input.host.oom_score_adj,
        "rlimits": rlimits(input.host, input.default_ulimits)?,
    });
    let [height, width] = input.console_size;
    if input.terminal && [height, width] != [0, 0] {
        process["consoleSize"] = json!({ "height": height, "width": width });
    }
    Ok(process)
}

/// Whether a container's processes get no new privileges: its own word, else the daemon's.
pub(super) fn no_new_privileges(host: &HostConfig, default: bool) -> Result<bool> {
    Ok(security(host, default)?.no_new_privileges)
}

fn first_process(
    input: &SpecInput<'_>,
    capabilities: &[String],
    security: &Security,
) -> Result<Value> {
    let record = input.record;
    let config = &record.config;
    let mut args = vec![record.path.clone()];
    args.extend(record.args.iter().cloned());
    if input.init.is_some() {
        let mut with_init = vec!["/sbin/docker-init".to_string(), "--".into()];
        with_init.append(&mut args);
        args = with_init;
    }
    let mut env = merge::process_env(config, &record.hostname(), input.link_env.clone());
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        let home = if input.user.home.is_empty() { "/" } else { &input.user.home };
        env.push(format!("HOME={home}"));
    }
    let cwd = if config.working_dir.is_empty() { "/" } else { &config.working_dir };
    process(&ProcessInput {
        host: &record.host_config,
        default_ulimits: input.default_ulimits,
        no_new_privileges: security.no_new_privileges,
        user: &input.user,
        capabilities,
        args: &args,
        env: &env,
        cwd,
        terminal: config.tty,
        console_size: record.host_config.console_size,
    })
}

/// Bounding, and for root permitted and effective; inheritable and ambient stay empty
/// (CVE-2022-24769).
pub(crate) fn capability_sets(capabilities: &[String], uid: u32) -> Value {
    let own: &[String] = if uid == 0 { capabilities } else { &[] };
    json!({ "bounding": capabilities, "effective": own, "permitted": own })
}

/// Every capability that this process has itself: no more can be given (moby `caps.GetAllCapabilities`).
pub(crate) fn all_capabilities() -> Vec<String> {
    let status = crate::util::read_limited(Path::new("/proc/self/status"), 1 << 16);
    let status = status.unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(u64::MAX);
    let known = ALL_CAPS.iter().enumerate().filter(|(bit, _)| held >> bit & 1 == 1);
    known.map(|(_, name)| format!("CAP_{name}")).collect()
}

/// moby `oci/caps.TweakCapabilities`.
pub(crate) fn capabilities(host: &HostConfig) -> Result<Vec<String>> {
    if host.privileged {
        return Ok(all_capabilities());
    }
    tweak(host, &all_capabilities())
}

fn tweak(host: &HostConfig, held: &[String]) -> Result<Vec<String>> {
    let add = host.cap_add.iter().map(|text| normal("CapAdd", text));
    let add: Vec<String> = add.collect::<Result<_>>()?;
    let drop = host.cap_drop.iter().map(|text| normal("CapDrop", text));
    let drop: Vec<String> = drop.collect::<Result<_>>()?;
    let has = |list: &[String], name: &str| list.iter().any(|entry| entry == name);
    let base: Vec<String> = if has(&add, "ALL") {
        held.to_vec()
    } else if has(&drop, "ALL") {
        Vec::new()
    } else {
        DEFAULT_CAPS.iter().map(|name| format!("CAP_{name}")).collect()
    };
    let mut names: Vec<String> = base.into_iter().filter(|name| !has(&drop, name)).collect();
    for name in add {
        if name == "ALL" || names.contains(&name) {
            continue;
        }
        if !has(held, &name) {
            return Err(Error::invalid(format!(
                "invalid CapAdd: capability not supported by your kernel or not available in the current environment: \"{name}\""
            )));
        }
        names.push(name);
    }
    Ok(names)
}

/// `ALL`, or a capability's whole name.
fn normal(field: &str, text: &str) -> Result<String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if name == "ALL" {
        return Ok(name.into());
    }
    if !ALL_CAPS.contains(&name) {
        return Err(Error::invalid(format!("invalid {field}: unknown capability: \"CAP_{name}\"")));
    }
    Ok(format!("CAP_{name}"))
}

fn security(host: &HostConfig, default_no_new_privileges: bool) -> Result<Security> {
    let mut security = Security {
        no_new_privileges: default_no_new_privileges,
        seccomp: SeccompChoice::Default,
        masked: true,
        writable_cgroups: false,
    };
    for option in &host.security_opt {
        let (key, value) =
            option.split_once('=').or_else(|| option.split_once(':')).unwrap_or((option, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("seccomp", "unconfined") => security.seccomp = SeccompChoice::Unconfined,
            ("seccomp", "builtin" | "") => security.seccomp = SeccompChoice::Default,
            ("seccomp", profile) => {
                security.seccomp = SeccompChoice::Profile(user_profile(profile, host)?);
            }
            ("systempaths", "unconfined") => security.masked = false,
            ("writable-cgroups", value) => security.writable_cgroups = value != "false",
            // There is no LSM to switch off on a host without one; a named profile needs it.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("apparmor" | "label", value) => {
                return Err(Error::not_implemented(format!("security option {key}={value}")));
            }
            _ => return Err(Error::invalid(format!("invalid --security-opt 2: {option:?}"))),
        }
    }
    Ok(security)
}

/// A profile in docker's format: rules with conditions become the runtime specification's.
fn user_profile(text: &str, host: &HostConfig) -> Result<Value> {
    let mut profile: Value = serde_json::from_str(text)
        .map_err(|e| Error::invalid(format!("decoding seccomp profile failed: {e}")))?;
    let capabilities = capabilities(host)?;
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let holds = |condition: &Value, include: bool| -> bool {
        let list = |key: &str| condition[key].as_array().cloned().unwrap_or_default();
        let (caps, arches) = (list("caps"), list("arches"));
        let has_caps =
            |cap: &Value| capabilities.iter().any(|have| Some(have.as_str()) == cap.as_str());
        if include {
            caps.iter().all(has_caps)
                && (arches.is_empty() || arches.iter().any(|a| a.as_str() == Some(arch)))
        } else {
            !caps.iter().any(has_caps) && !arches.iter().any(|a| a.as_str() == Some(arch))
        }
    };
    if let Some(calls) = profile["syscalls"].as_array_mut() {
        calls.retain(|call| holds(&call["includes"], true) && holds(&call["excludes"], false));
        for call in calls {
            if let Some(object) = call.as_object_mut() {
                if let Some(name) = object.remove("name") {
                    object.insert("names".into(), json!([name]));
                }
                for key in ["includes", "excludes", "comment"] {
                    object.remove(key);
                }
            }
        }
    }
    if let Some(map) = profile["archMap"].as_array().cloned() {
        let own = if arch == "amd64" { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" };
        let entry = map.iter().find(|entry| entry["architecture"] == own);
        let mut names = vec![json!(own)];
        names.extend(
            entry.and_then(|e| e["subArchitectures"].as_array().cloned()).unwrap_or_default(),
        );
        profile["architectures"] = Value::Array(names);
    }
    if let Some(object) = profile.as_object_mut() {
        object.remove("archMap");
    }
    Ok(profile)
}

fn namespaces(input: &SpecInput<'_>) -> Result<Value> {
    let record = input.record;
    let host = &record.host_config;
    let mut list = vec![json!({ "type": "mount" })];
    if let Some(path) = &input.network_namespace {
        list.push(json!({ "type": "network", "path": path }));
    }
    if host.uts_mode != "host" {
        list.push(json!({ "type": "uts" }));
    }
    match (host.ipc_mode.as_str(), input.ipc_pid) {
        ("host", _) => {}
        (_, Some(pid)) => {
            list.push(json!({ "type": "ipc", "path": format!("/proc/{pid}/ns/ipc") }))
        }
        _ => list.push(json!({ "type": "ipc" })),
    }
    match (host.pid_mode.as_str(), input.pid_pid) {
        ("host", _) => {}
        (_, Some(pid)) => {
            list.push(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") }))
        }
        _ => list.push(json!({ "type": "pid" })),
    }
    if input.cgroupns_private {
        list.push(json!({ "type": "cgroup" }));
    }
    Ok(Value::Array(list))
}

fn sysctls(input: &SpecInput<'_>) -> Result<Value> {
    let host = &input.record.host_config;
    let mut values = Map::new();
    if input.record.has_own_network() {
        // moby since 20.10: unprivileged ports and ping need no capability in a namespace of one's own.
        values.insert("net.ipv4.ip_unprivileged_port_start".into(), json!("0"));
        values.insert("net.ipv4.ping_group_range".into(), json!("0 2147483647"));
    }
    for (key, value) in &host.sysctls {
        let namespaced = key.starts_with("net.")
            || key.starts_with("fs.mqueue.")
            || matches!(
                key.as_str(),
                "kernel.msgmax"
                    | "kernel.msgmnb"
                    | "kernel.msgmni"
                    | "kernel.sem"
                    | "kernel.shmall"
                    | "kernel.shmmax"
                    | "kernel.shmmni"
                    | "kernel.shm_rmid_forced"
                    | "kernel.domainname"
                    | "kernel.hostname"
            );
        if !namespaced {
            return Err(Error::invalid(format!("sysctl '{key}' is not allowed")));
        }
        if key.starts_with("net.") && host.network_mode == "host" {
            return Err(Error::invalid(format!(
                "sysctl '{key}' not allowed in host network namespace"
            )));
        }
        if !key.starts_with("net.") && host.ipc_mode == "host" {
            return Err(Error::invalid(format!(
                "sysctl \"{key}\" is not allowed in the hosts ipc namespace"
            )));
        }
        values.insert(key.clone(), json!(value));
    }
    Ok(Value::Object(values))
}

/// docker's default mounts, then the container's, in the order of their depth.
fn mounts(input: &SpecInput<'_>, security: &Security) -> Result<Value> {
    let record = input.record;
    let host = &record.host_config;
    let own: Vec<&str> = record.mounts.iter().map(|mount| mount.target.as_str()).collect();
    let mut list: Vec<Value> = Vec::new();
    let mut add = |target: &str, kind: &str, source: &str, options: &[&str]| {
        if !own.contains(&target) {
            list.push(json!({
                "destination": target, "type": kind, "source": source, "options": options,
            }));
        }
    };
    let sys = if host.privileged { "rw" } else { "ro" };
    let cgroup = if host.privileged || security.writable_cgroups { "rw" } else { "ro" };
    add("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]);
    add("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]);
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    add("/dev/pts", "devpts", "devpts", &pts);
    add("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]);
    add("/sys/fs/cgroup", "cgroup", "cgroup", &[cgroup, "nosuid", "noexec", "nodev"]);
    add("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]);
    let shm_bytes = if host.shm_size > 0 { host.shm_size } else { input.default_shm_bytes };
    let shm = format!("size={shm_bytes}");
    match (host.ipc_mode.as_str(), &input.shm) {
        ("none", _) => {}
        (_, Some(dir)) => {
            add("/dev/shm", "bind", &dir.to_string_lossy(), &["rbind", "rprivate"]);
        }
        _ => add("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
    }
    let defaults = list.len();
    // What is given may lie above the engine's own files (`-v DIR:/etc`): by depth, theirs first.
    list.extend(record.mounts.iter().map(user_mount));
    let mut add = |target: &str, source: &Path, options: &[&str]| {
        if !own.contains(&target) {
            list.push(json!({
                "destination": target, "type": "bind", "source": source, "options": options,
            }));
        }
    };
    for name in ["resolv.conf", "hostname", "hosts"] {
        let source = input.files.join(name);
        if source.exists() {
            add(&format!("/etc/{name}"), &source, &["rbind", "rprivate"]);
        }
    }
    if let Some(init) = &input.init {
        let options = ["bind", "ro", "nosuid", "nodev", "rprivate"];
        add("/sbin/docker-init", init, &options);
    }
    list[defaults..].sort_by_key(|mount| {
        mount["destination"].as_str().unwrap_or_default().matches('/').count()
    });
    Ok(Value::Array(list))
}

fn user_mount(mount: &MountUse) -> Value {
    if mount.kind == MountKind::Tmpfs {
        let mut options: Vec<String> = ["noexec", "nosuid", "nodev"].map(Into::into).to_vec();
        for option in &mount.options {
            // What is said later about the same thing wins.
            let contrary = match option.as_str() {
                "exec" => "noexec",
                "suid" => "nosuid",
                "dev" => "nodev",
                _ => "",
            };
            options.retain(|have| have != contrary && have != option);
            options.push(option.clone());
        }
        if mount.read_only && !options.iter().any(|option| option == "ro") {
            options.push("ro".into());
        }
        return json!({
            "destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options,
        });
    }
    let recursive = !mount.options.iter().any(|option| option == "bind");
    let mut options = vec![if recursive { "rbind" } else { "bind" }.to_string()];
    if mount.read_only {
        // docker 25 and later make the mounts below read-only too.
        let whole = recursive && !mount.read_only_non_recursive;
        options.push(if whole { "rro".into() } else { "ro".into() });
        options.push("ro".into());
    }
    // Without "rw": a source that is mounted read-only stays so.
    let propagation = if mount.propagation.is_empty() { "rprivate" } else { &mount.propagation };
    options.push(propagation.into());
    json!({
        "destination": mount.target, "type": "bind", "source": mount.source, "options": options,
    })
}

fn root_propagation(mounts: &[MountUse]) -> &'static str {
    let any = |names: [&str; 2]| mounts.iter().any(|m| names.contains(&m.propagation.as_str()));
    if any(["shared", "rshared"]) {
        "shared"
    } else if any(["slave", "rslave"]) {
        "rslave"
    } else {
        "rprivate"
    }
}

fn rlimits(host: &HostConfig, defaults: &[(String, i64, i64)]) -> Result<Value> {
    let mut limits: Vec<(String, i64, i64)> = defaults.to_vec();
    for ulimit in &host.resources.ulimits {
        limits.retain(|(name, ..)| *name != ulimit.name);
        limits.push((ulimit.name.clone(), ulimit.soft, ulimit.hard));
    }
    let value = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    let mut list = Vec::new();
    for (name, soft, hard) in limits {
        if !types::ULIMITS.contains(&name.as_str()) {
            return Err(Error::invalid(format!("invalid ulimit type: {name}")));
        }
        if value(soft) > value(hard) {
            return Err(Error::invalid(format!(
                "ulimit {name}: the soft limit {soft} is above the hard limit {hard}"
            )));
        }
        list.push(json!({
            "type": format!("RLIMIT_{}", name.to_ascii_uppercase()),
            "soft": value(soft), "hard": value(hard),
        }));
    }
    Ok(Value::Array(list))
}

/// `linux.resources` without devices.
pub(crate) fn resources(limits: &Resources, cgroup_v2: bool) -> Result<Map<String, Value>> {
    let mut out = Map::new();
    let mut memory = Map::new();
    if limits.memory > 0 {
        memory.insert("limit".into(), json!(limits.memory));
    }
    // docker: swap as much again unless something else is said.
    let swap = match (limits.memory, limits.memory_swap) {
        (memory, 0) if memory > 0 => memory.saturating_mul(2),
        (_, swap) => swap,
    };
    if swap != 0 {
        memory.insert("swap".into(), json!(swap));
    }
    if limits.memory_reservation > 0 {
        memory.insert("reservation".into(), json!(limits.memory_reservation));
    }
    if let Some(swappiness) = limits.memory_swappiness.filter(|s| *s >= 0)
        && !cgroup_v2
    {
        memory.insert("swappiness".into(), json!(swappiness));
    }
    if limits.kernel_memory_tcp != 0 && !cgroup_v2 {
        memory.insert("kernelTCP".into(), json!(limits.kernel_memory_tcp));
    }
    if limits.oom_kill_disable == Some(true) && !cgroup_v2 {
        memory.insert("disableOOMKiller".into(), json!(true));
    }
    if !memory.is_empty() {
        out.insert("memory".into(), Value::Object(memory));
    }
    let cpu = cpu_resources(limits);
    if !cpu.is_empty() {
        out.insert("cpu".into(), Value::Object(cpu));
    }
    if let Some(pids) = limits.pids_limit.filter(|pids| *pids != 0) {
        out.insert("pids".into(), json!({ "limit": pids }));
    }
    let block = block_io(limits)?;
    if !block.is_empty() {
        out.insert("blockIO".into(), Value::Object(block));
    }
    Ok(out)
}

fn cpu_resources(limits: &Resources) -> Map<String, Value> {
    let mut cpu = Map::new();
    let mut set = |key: &str, value: i64| {
        if value != 0 {
            cpu.insert(key.into(), json!(value));
        }
    };
    set("shares", limits.cpu_shares);
    if limits.nano_cpus > 0 {
        // 100 ms periods (moby `daemon_unix.go` `getCPUResources`).
        set("period", 100_000);
        set("quota", limits.nano_cpus / 10_000);
    } else {
        set("period", limits.cpu_period);
        set("quota", limits.cpu_quota);
    }
    set("realtimePeriod", limits.cpu_realtime_period);
    set("realtimeRuntime", limits.cpu_realtime_runtime);
    if !limits.cpuset_cpus.is_empty() {
        cpu.insert("cpus".into(), json!(limits.cpuset_cpus));
    }
    if !limits.cpuset_mems.is_empty() {
        cpu.insert("mems".into(), json!(limits.cpuset_mems));
    }
    cpu
}

fn block_io(limits: &Resources) -> Result<Map<String, Value>> {
    let mut block = Map::new();
    if limits.blkio_weight != 0 {
        block.insert("weight".into(), json!(limits.blkio_weight));
    }
    let mut weights = Vec::new();
    for entry in &limits.blkio_weight_device {
        let (major, minor, _) = device_number(&entry.path)?;
        weights.push(json!({ "major": major, "minor": minor, "weight": entry.weight }));
    }
    if !weights.is_empty() {
        block.insert("weightDevice".into(), Value::Array(weights));
    }
    for (key, list) in [
        ("throttleReadBpsDevice", &limits.blkio_device_read_bps),
        ("throttleWriteBpsDevice", &limits.blkio_device_write_bps),
        ("throttleReadIOPSDevice", &limits.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", &limits.blkio_device_write_iops),
    ] {
        let mut rates = Vec::new();
        for entry in list {
            let (major, minor, _) = device_number(&entry.path)?;
            rates.push(json!({ "major": major, "minor": minor, "rate": entry.rate }));
        }
        if !rates.is_empty() {
            block.insert(key.into(), Value::Array(rates));
        }
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn host(add: &[&str], drop: &[&str]) -> HostConfig {
        HostConfig {
            cap_add: add.iter().map(|c| (*c).to_string()).collect(),
            cap_drop: drop.iter().map(|c| (*c).to_string()).collect(),
            ..HostConfig::default()
        }
    }

    #[test]
    fn capabilities_add_and_drop() {
        let held: Vec<String> = ALL_CAPS.iter().map(|name| format!("CAP_{name}")).collect();
        assert_eq!(tweak(&host(&[], &[]), &held).unwrap().len(), 14);
        assert_eq!(tweak(&host(&["net_admin"], &["ALL"]), &held).unwrap(), ["CAP_NET_ADMIN"]);
        let all_but = tweak(&host(&["ALL"], &["CAP_MKNOD"]), &held).unwrap();
        assert_eq!(all_but.len(), ALL_CAPS.len() - 1);
        let error = tweak(&host(&["NOPE"], &[]), &held).unwrap_err();
        assert_eq!(error.message, "invalid CapAdd: unknown capability: \"CAP_NOPE\"");
        let error = tweak(&host(&["SYS_TIME"], &[]), &held[..20]).unwrap_err();
        assert!(
            error.message.ends_with("not available in the current environment: \"CAP_SYS_TIME\"")
        );
        assert_eq!(tweak(&host(&["ALL"], &[]), &held[..20]).unwrap().len(), 20);
    }

    #[test]
    fn only_root_has_effective_capabilities() {
        let caps = vec!["CAP_KILL".to_string()];
        assert_eq!(capability_sets(&caps, 0)["effective"], json!(["CAP_KILL"]));
        assert_eq!(capability_sets(&caps, 7)["effective"], json!([]));
        assert!(capability_sets(&caps, 0).get("ambient").is_none());
    }
}
