//! A configuration as docker writes it, and what may happen to one.

use std::path::Path;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

/// A mutated configuration's text.
pub(super) fn mutated(rng: &mut StdRng, bundle: &Path) -> Vec<u8> {
    let mut config = valid();
    for _ in 0..rng.random_range(1..6) {
        mutate(rng, &mut config, bundle);
    }
    without_idmaps(&mut config);
    let mut text = serde_json::to_vec(&config).unwrap();
    if rng.random_bool(0.1) {
        break_text(rng, &mut text);
    }
    text
}

/// Id-mapped mounts need a process with the mapping; no processes are made here.
fn without_idmaps(config: &mut Value) {
    for m in config.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(m) = m.as_object_mut() {
            m.retain(|key, _| key != "uidMappings" && key != "gidMappings");
            if let Some(options) = m.get_mut("options").and_then(Value::as_array_mut) {
                options.retain(|o| o.as_str().is_none_or(|o| !o.contains("idmap")));
            }
        }
    }
}

fn one<T: Clone>(rng: &mut StdRng, of: &[T]) -> T {
    of.choose(rng).unwrap().clone()
}

/// Pointers (RFC 6901) of all values below this one.
fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, v)| pointers(v, &format!("{at}/{i}"), out))
        }
        Value::Object(map) => map.iter().for_each(|(key, v)| {
            let key = key.replace('~', "~0").replace('/', "~1");
            pointers(v, &format!("{at}/{key}"), out);
        }),
        _ => {}
    }
}

fn mutate(rng: &mut StdRng, config: &mut Value, bundle: &Path) {
    let mut all = Vec::new();
    pointers(config, "", &mut all);
    // Not the whole, most of the time.
    let place =
        if rng.random_bool(0.995) && all.len() > 1 { one(rng, &all[1..]) } else { all[0].clone() };
    let other = config.pointer(&one(rng, &all)).unwrap().clone();
    let value = config.pointer_mut(&place).unwrap();
    match rng.random_range(0..10) {
        0 => *value = other,
        1 | 2 => *value = odd(rng, bundle),
        _ => match value {
            Value::Array(list) => change_list(rng, list, bundle),
            Value::Object(map) => change_map(rng, map, other, bundle),
            Value::String(text) => change_text(rng, text, bundle),
            Value::Number(n) => *value = near(rng, n.as_i64().unwrap_or(0)),
            Value::Bool(b) => *value = Value::Bool(!*b),
            Value::Null => *value = odd(rng, bundle),
        },
    }
}

fn change_list(rng: &mut StdRng, list: &mut Vec<Value>, bundle: &Path) {
    let at = if list.is_empty() { 0 } else { rng.random_range(0..list.len()) };
    match rng.random_range(0..6) {
        0 if !list.is_empty() => drop(list.remove(at)),
        1 => list.clear(),
        2 if !list.is_empty() => {
            // What grows here is the test's own memory.
            let small = serde_json::to_vec(&list[at]).unwrap().len() < 200;
            let times = if small { one(rng, &[1, 2, 50, 2000]) } else { 1 };
            list.extend(std::iter::repeat_n(list[at].clone(), times));
        }
        3 => list.reverse(),
        _ => list.insert(at, odd(rng, bundle)),
    }
}

fn change_map(
    rng: &mut StdRng,
    map: &mut serde_json::Map<String, Value>,
    other: Value,
    bundle: &Path,
) {
    let keys: Vec<String> = map.keys().cloned().collect();
    let key = keys.choose(rng).cloned().unwrap_or_default();
    match rng.random_range(0..6) {
        0 | 1 => drop(map.remove(&key)),
        2 => {
            if let Some(value) = map.remove(&key) {
                map.insert(text(rng, bundle), value);
            }
        }
        3 => drop(map.insert(key, other)),
        4 => {
            let small = serde_json::to_vec(&other).unwrap().len() < 200;
            for n in 0..if small { one(rng, &[1, 30, 1000]) } else { 1 } {
                map.insert(format!("{key}{n}"), other.clone());
            }
        }
        _ => drop(map.insert(key, odd(rng, bundle))),
    }
}

fn change_text(rng: &mut StdRng, value: &mut String, bundle: &Path) {
    let places: Vec<usize> = (0..=value.len()).filter(|i| value.is_char_boundary(*i)).collect();
    let at = one(rng, &places);
    match rng.random_range(0..6) {
        0 => value.truncate(at),
        1 => value.insert(at, rng.random()),
        2 => value.insert_str(
            at,
            one(rng, &["\0", "/", "..", ":", ",", "-", " ", "=", "\n", "%s", "99999999999"]),
        ),
        3 => *value = value.to_uppercase(),
        4 if value.len() < 2000 => *value = value.repeat(one(rng, &[2, 3, 500])),
        _ => *value = text(rng, bundle),
    }
}

fn near(rng: &mut StdRng, n: i64) -> Value {
    match rng.random_range(0..5) {
        0 => json!(n.wrapping_add(1)),
        1 => json!(n.wrapping_sub(1)),
        2 => json!(n.wrapping_neg()),
        3 => json!(n.wrapping_mul(1 << 32)),
        _ => number(rng),
    }
}

fn number(rng: &mut StdRng) -> Value {
    match rng.random_range(0..16) {
        0 => json!(0),
        1 => json!(-1),
        2 => json!(u32::MAX),
        3 => json!(u64::from(u32::MAX) + 1),
        4 => json!(i32::MAX),
        5 => json!(i32::MIN),
        6 => json!(i64::MAX),
        7 => json!(i64::MIN),
        8 => json!(u64::MAX),
        9 => json!(1e308),
        10 => json!(0.5),
        11 => json!(-0.0),
        12 => json!(rng.random::<u64>()),
        13 => json!(rng.random::<u16>()),
        14 => json!(4095),
        _ => json!(rng.random::<i64>()),
    }
}

fn text(rng: &mut StdRng, bundle: &Path) -> String {
    const ODD: [&str; 44] = [
        "",
        "/",
        ".",
        "..",
        "../../../../etc",
        "//",
        "a",
        "\0",
        "a\0b",
        "\u{feff}",
        "\u{202e}txt",
        "0-",
        "-1",
        "0-99999999999",
        "5-2",
        "0,,1",
        "0-3,1",
        ":",
        "::",
        "a:b:c",
        "/a:b",
        "none",
        "rbind",
        "ro",
        "bind",
        "tmpfs",
        "proc",
        "cgroup",
        "cgroup2",
        "propagation",
        "rshared",
        "unbindable",
        "size=99999999999999999999",
        "mode=99999",
        "host",
        "/proc/self/ns/net",
        "/proc/self/ns/mnt",
        "/dev/null",
        "/nonexistent",
        "net.ipv4.ip_forward",
        "kernel.shmmax",
        "RLIMIT_NOFILE",
        "SCMP_ACT_ALLOW",
        "CAP_SYS_ADMIN",
    ];
    match rng.random_range(0..8) {
        0 => (0..rng.random_range(0..40)).map(|_| rng.random::<char>()).collect(),
        1 => "x".repeat(one(rng, &[300, 5000, 70_000])),
        2 => "../".repeat(3000),
        3 => bundle.join(one(rng, &["fifo", "rootfs", "missing"])).display().to_string(),
        _ => one(rng, &ODD).to_owned(),
    }
}

fn odd(rng: &mut StdRng, bundle: &Path) -> Value {
    match rng.random_range(0..12) {
        0 => Value::Null,
        1 => json!(rng.random::<bool>()),
        2..5 => number(rng),
        5..9 => json!(text(rng, bundle)),
        9 => json!([]),
        10 => json!({}),
        _ => nested(rng.random_range(1..200)),
    }
}

fn nested(depth: u32) -> Value {
    (0..depth).fold(
        json!(1),
        |inner, level| {
            if level % 2 == 0 { json!([inner]) } else { json!({ "a": inner }) }
        },
    )
}

/// Changes that leave no JSON, or unusual JSON.
fn break_text(rng: &mut StdRng, text: &mut Vec<u8>) {
    let at = rng.random_range(0..text.len());
    match rng.random_range(0..7) {
        0 => text.truncate(at),
        1 => text[at] = rng.random(),
        2 => text.insert(at, one(rng, b"{}[]\",:\\\n\0\xff 0-e")),
        3 => drop(text.splice(at..at, std::iter::repeat_n(b'[', 100_000))),
        4 => drop(text.splice(at..at, *b"1e999999999999")),
        5 => drop(text.splice(..0, *b"\xef\xbb\xbf")),
        _ => {
            let copy = text.clone();
            text.extend(copy);
        }
    }
}

/// Every section there is, as docker writes it where docker does.
fn valid() -> Value {
    let mut config = json!({
        "ociVersion": "1.2.1",
        "process": process(),
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "4e8ac1d1d1c2",
        "domainname": "example.org",
        "mounts": mounts(),
        "hooks": {
            "prestart": [{ "path": "/proc/1234/exe", "args": ["libnetwork-setkey", "-exec-root=/var/run/docker", "4e8a"] }],
            "poststop": [{ "path": "/bin/true", "env": ["A=B"], "timeout": 5 }],
        },
        "annotations": { "org.example.key": "value" },
    });
    config["linux"] = linux();
    config["linux"]["resources"] = resources();
    config
}

fn process() -> Value {
    let caps =
        json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_KILL"]);
    json!({
        "terminal": false,
        "consoleSize": { "height": 24, "width": 80 },
        "user": { "uid": 1000, "gid": 1000, "umask": 18, "additionalGids": [10, 20] },
        "args": ["sh", "-c", "echo hello"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=4e8a"],
        "cwd": "/",
        "capabilities": { "bounding": caps, "effective": caps, "permitted": caps, "inheritable": [], "ambient": [] },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        "noNewPrivileges": true,
        "oomScoreAdj": 100,
        "scheduler": { "policy": "SCHED_OTHER", "nice": 5, "priority": 0, "flags": ["SCHED_FLAG_RESET_ON_FORK"] },
        "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 4 },
        "execCPUAffinity": { "initial": "0", "final": "0-1" },
    })
}

fn mounts() -> Value {
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
        { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
          "options": ["ro", "nosuid", "noexec", "nodev"] },
        { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
          "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"] },
        { "destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/resolv.conf",
          "options": ["rbind", "rprivate"] },
    ])
}

fn linux() -> Value {
    json!({
        "sysctl": { "net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "1000000" },
        "cgroupsPath": "/gantry-fuzz/4e8ac1d1d1c2",
        "namespaces": [
            { "type": "mount" }, { "type": "network" }, { "type": "uts" }, { "type": "pid" },
            { "type": "ipc" }, { "type": "cgroup", "path": "/proc/self/ns/cgroup" }, { "type": "time" },
        ],
        "devices": [{ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0 }],
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                { "names": ["read", "write", "execve"], "action": "SCMP_ACT_ALLOW" },
                { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
                  "args": [{ "index": 0, "value": 8, "op": "SCMP_CMP_EQ" }] },
                { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            ],
        },
        "maskedPaths": ["/proc/kcore", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/sys"],
        "rootfsPropagation": "rprivate",
        "personality": { "domain": "LINUX" },
        "timeOffsets": { "monotonic": { "secs": 100, "nanosecs": 5 } },
        "memoryPolicy": { "mode": "MPOL_PREFERRED", "nodes": "0", "flags": [] },
        "netDevices": { "eth7": { "name": "eth0" } },
    })
}

fn resources() -> Value {
    json!({
        "devices": [
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
            { "allow": true, "type": "b", "major": 7, "access": "m" },
        ],
        "memory": { "limit": 268435456, "reservation": 134217728, "swap": 536870912, "swappiness": 60 },
        "cpu": { "shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1", "mems": "0" },
        "pids": { "limit": 100 },
        "blockIO": { "weight": 500, "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1000 }] },
        "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
        "network": { "classID": 5, "priorities": [{ "name": "lo", "priority": 2 }] },
        "rdma": { "mlx5_1": { "hcaHandles": 3, "hcaObjects": 10000 } },
        "unified": { "memory.high": "max" },
    })
}
