//! The systemd cgroup driver against a systemd of the test's own: a socket that speaks D-Bus and
//! makes the cgroup as systemd would.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Bundle, random, text};

/// Where the v2 hierarchy of this host is.
fn unified() -> PathBuf {
    let hybrid = PathBuf::from("/sys/fs/cgroup/unified");
    if hybrid.exists() { hybrid } else { PathBuf::from("/sys/fs/cgroup") }
}

/// What was called, and with what.
type Calls = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

struct Systemd {
    calls: Calls,
    /// Every unit is there already.
    taken: Arc<AtomicBool>,
    version: Arc<AtomicU32>,
    slice: PathBuf,
}

/// The slice in every v1 hierarchy of this host.
fn in_v1(slice: &Path) -> Vec<PathBuf> {
    let name = slice.file_name().unwrap();
    let all = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let dirs = all.map(|e| e.path().join(name)).filter(|d| d.is_dir() && d != slice);
    dirs.collect()
}

impl Systemd {
    fn new(socket: &Path, slice: &str) -> Systemd {
        let listener = UnixListener::bind(socket).unwrap();
        let calls = Calls::default();
        let slice = unified().join(slice);
        std::fs::create_dir(&slice).unwrap();
        let taken = Arc::new(AtomicBool::new(false));
        let version = Arc::new(AtomicU32::new(255));
        let (seen, parent, is_taken) = (calls.clone(), slice.clone(), taken.clone());
        let told = version.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &seen, &parent, &is_taken, &told);
            }
        });
        Systemd { calls, taken, version, slice }
    }

    fn names(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }

    fn count(&self, name: &str) -> usize {
        self.names().iter().filter(|n| *n == name).count()
    }

    /// Of the last call.
    fn body(&self, name: &str) -> Vec<u8> {
        let calls = self.calls.lock().unwrap();
        calls.iter().rev().find(|(n, _)| n == name).map(|(_, b)| b.clone()).unwrap()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        for slice in in_v1(&self.slice).into_iter().chain([self.slice.clone()]) {
            for entry in std::fs::read_dir(&slice).into_iter().flatten().flatten() {
                drop(std::fs::remove_dir(entry.path()));
            }
            drop(std::fs::remove_dir(&slice));
        }
    }
}

fn serve(
    mut stream: UnixStream,
    calls: &Calls,
    slice: &Path,
    taken: &AtomicBool,
    version: &AtomicU32,
) {
    let mut hello = Vec::new();
    let mut byte = [0u8];
    let mut until = |stream: &mut UnixStream, end: &[u8]| {
        while !hello.ends_with(end) {
            if stream.read_exact(&mut byte).is_err() {
                return;
            }
            hello.push(byte[0]);
        }
    };
    until(&mut stream, b"DATA\r\n");
    stream.write_all(b"DATA\r\nOK 0123456789abcdef\r\n").unwrap();
    until(&mut stream, b"BEGIN\r\n");
    let mut fixed = [0u8; 16];
    while stream.read_exact(&mut fixed).is_ok() {
        let word = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().unwrap());
        let (body, serial, fields) = (word(4) as usize, word(8), word(12) as usize);
        let padded = fields.next_multiple_of(8);
        let mut rest = vec![0u8; padded + body];
        stream.read_exact(&mut rest).unwrap();
        let (head, body) = rest.split_at(padded);
        let names = [
            "Hello",
            "AddMatch",
            "StartTransientUnit",
            "StopUnit",
            "ResetFailedUnit",
            "SetUnitProperties",
            "Get",
        ];
        let name = names.iter().find(|n| find(head, format!("{n}\0").as_bytes()).is_some());
        let name = *name.unwrap();
        calls.lock().unwrap().push((name.to_owned(), body.to_vec()));
        let unit = string(body);
        let job = format!("/org/freedesktop/systemd1/job/{serial}");
        match name {
            "StartTransientUnit" if taken.load(Ordering::Relaxed) => {
                refuse(&mut stream, serial, "org.freedesktop.systemd1.UnitExists");
            }
            "StartTransientUnit" => {
                let at = find(body, b"PIDs\0").unwrap();
                // Signature "au", then padding, the length, the one pid.
                let at = (at + 5 + 4).next_multiple_of(4) + 4;
                let pid = u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
                std::fs::create_dir(slice.join(&unit)).unwrap();
                std::fs::write(slice.join(&unit).join("cgroup.procs"), pid.to_string()).unwrap();
                answer(&mut stream, serial, Some(&job));
                removed(&mut stream, &job, &unit);
            }
            "StopUnit" => {
                // Killed ones leave it soon.
                let procs = slice.join(&unit).join("cgroup.procs");
                let left = || std::fs::read_to_string(&procs).is_ok_and(|p| !p.is_empty());
                let deadline = Instant::now() + Duration::from_secs(5);
                while left() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if left() {
                    calls.lock().unwrap().push(("waits for processes".to_owned(), Vec::new()));
                }
                drop(std::fs::remove_dir(slice.join(&unit)));
                answer(&mut stream, serial, Some(&job));
                removed(&mut stream, &job, &unit);
            }
            "SetUnitProperties" => {
                forget_devices(calls, slice, &unit);
                answer(&mut stream, serial, None);
            }
            "Get" => tell(&mut stream, serial, version.load(Ordering::Relaxed)),
            _ => answer(&mut stream, serial, None),
        }
    }
}

/// As systemd on v1: its device rules are written again, from "nothing" on. What it says is less than
/// what the runtime had written.
fn forget_devices(calls: &Calls, slice: &Path, unit: &str) {
    let hierarchy = |name: &str| {
        let dirs = in_v1(slice).into_iter();
        dirs.map(|d| d.join(unit)).find(|d| d.starts_with(format!("/sys/fs/cgroup/{name}")))
    };
    if let (Some(devices), Some(freezer)) = (hierarchy("devices"), hierarchy("freezer"))
        && devices.is_dir()
    {
        let state = std::fs::read_to_string(freezer.join("freezer.state")).unwrap();
        calls.lock().unwrap().push((state.trim().to_owned(), Vec::new()));
        std::fs::write(devices.join("devices.deny"), "a").unwrap();
    }
}

/// The version, as a property.
fn tell(stream: &mut UnixStream, serial: u32, version: u32) {
    let mut fields = vec![5, 1, b'u', 0];
    fields.extend(serial.to_le_bytes());
    fields.extend([8, 1, b'g', 0, 1, b'v', 0]);
    let mut body = vec![1, b's', 0];
    put(&mut body, &format!("{version}.4-1.test"));
    stream.write_all(&message(2, &fields, &body)).unwrap();
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

/// The first string of a body.
fn string(body: &[u8]) -> String {
    let Some(n) = body.get(..4) else { return String::new() };
    let n = u32::from_le_bytes(n.try_into().unwrap()) as usize;
    body.get(4..4 + n).map(|t| String::from_utf8_lossy(t).into_owned()).unwrap_or_default()
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn message(kind: u8, fields: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = vec![b'l', kind, 1, 1];
    out.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    out.extend(9u32.to_le_bytes());
    out.extend(u32::try_from(fields.len()).unwrap().to_le_bytes());
    out.extend(fields);
    pad(&mut out, 8);
    out.extend(body);
    out
}

fn answer(stream: &mut UnixStream, serial: u32, job: Option<&str>) {
    let mut fields = vec![5, 1, b'u', 0];
    fields.extend(serial.to_le_bytes());
    let mut body = Vec::new();
    if let Some(job) = job {
        fields.extend([8, 1, b'g', 0, 1, b'o', 0]);
        put(&mut body, job);
    }
    stream.write_all(&message(2, &fields, &body)).unwrap();
}

fn refuse(stream: &mut UnixStream, serial: u32, error: &str) {
    let mut fields = vec![5, 1, b'u', 0];
    fields.extend(serial.to_le_bytes());
    fields.extend([4, 1, b's', 0]);
    put(&mut fields, error);
    stream.write_all(&message(3, &fields, &[])).unwrap();
}

fn removed(stream: &mut UnixStream, job: &str, unit: &str) {
    let mut fields = vec![3, 1, b's', 0];
    put(&mut fields, "JobRemoved");
    pad(&mut fields, 8);
    fields.extend([8, 1, b'g', 0, 4, b'u', b'o', b's', b's', 0]);
    let mut body = 7u32.to_le_bytes().to_vec();
    for text in [job, unit, "done"] {
        put(&mut body, text);
    }
    stream.write_all(&message(4, &fields, &body)).unwrap();
}

#[test]
fn a_scope_of_systemd_is_the_containers_cgroup() {
    let mut b = Bundle::new("cat /proc/self/cgroup; sleep 1000");
    b.wrap = Some("mount -t cgroup2 none /sys/fs/cgroup".into());
    let slice = format!("gantrytest{}.slice", random());
    let socket = b.path("bus");
    let systemd = Systemd::new(&socket, &slice);
    b.config["linux"]["cgroupsPath"] = json!(format!("{slice}:pre:{}", b.id));
    b.config["annotations"] = json!({"org.systemd.property.TimeoutStopSec": "uint64 7"});
    b.save();
    let address = format!("unix:path={}", socket.display());
    let sd = |args: &[&str]| {
        let mut all = vec!["--systemd-cgroup"];
        all.extend(args);
        let mut command = b.command(&all);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &address);
        command
    };
    let out = std::fs::File::create(b.path("out")).unwrap();
    let made =
        sd(&["run", "-d", &b.id]).stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
    assert!(made.success(), "{}", b.out());
    let unit = format!("pre-{}.scope", b.id);
    let dir = systemd.slice.join(&unit);
    let pid = b.state()["pid"].to_string();
    // The shell's children as well, while there are any.
    let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
    assert!(procs.lines().any(|line| line == pid), "{pid} is not of {procs:?}");
    assert_eq!(systemd.names(), ["Hello", "AddMatch", "StartTransientUnit"]);
    let call = systemd.body("StartTransientUnit");
    for what in ["Delegate", "MemoryAccounting", &slice, "TimeoutStopUSec"] {
        assert!(find(&call, what.as_bytes()).is_some(), "{what}");
    }
    let o = sd(&["exec", &b.id, "cat", "/proc/self/cgroup"]).output().unwrap();
    assert!(text(&o).contains("0::/\n"), "{}", text(&o));
    // What a hook has left there, and what does not end at systemd's request.
    let mut straggler = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(dir.join("cgroup.procs"), straggler.id().to_string()).unwrap();
    let o = sd(&["delete", "-f", &b.id]).output().unwrap();
    assert!(o.status.success(), "{}", text(&o));
    assert!(!dir.exists());
    assert!(!straggler.wait().unwrap().success());
    assert_eq!(systemd.count("waits for processes"), 0, "{:?}", systemd.names());
    assert!(systemd.names().contains(&"StopUnit".to_owned()));
}

#[test]
fn an_update_tells_systemd_and_keeps_device_rules() {
    let mut b = Bundle::new("sleep 1000");
    let slice = format!("gantrytest{}.slice", random());
    let socket = b.path("bus");
    let systemd = Systemd::new(&socket, &slice);
    b.config["linux"]["cgroupsPath"] = json!(format!("{slice}:pre:{}", b.id));
    b.config["linux"]["resources"]["cpu"] = json!({"quota": 12_345, "period": 50_000});
    b.save();
    // It goes before the slice does.
    let b = b;
    let address = format!("unix:path={}", socket.display());
    let sd = |args: &[&str]| {
        let mut all = vec!["--systemd-cgroup"];
        all.extend(args);
        let mut command = b.command(&all);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &address);
        command
    };
    let out = std::fs::File::create(b.path("out")).unwrap();
    let made =
        sd(&["run", "-d", &b.id]).stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
    assert!(made.success(), "{}", b.out());
    let unit = format!("pre-{}.scope", b.id);
    let read = |controller: &str, file: &str| {
        let dir = Path::new("/sys/fs/cgroup").join(controller).join(&slice).join(&unit);
        std::fs::read_to_string(dir.join(file)).unwrap().trim().to_owned()
    };
    // 24.69 % is 25 % for systemd, and for the kernel.
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "12500");
    assert!(find(&systemd.body("StartTransientUnit"), b"CPUQuotaPeriodUSec").is_some());
    let update = |resources: serde_json::Value| {
        std::fs::write(b.path("r.json"), resources.to_string()).unwrap();
        let o = sd(&["update", "-r", "r.json", &b.id]).output().unwrap();
        assert!(o.status.success(), "{}", text(&o));
    };
    let rules_before = read("devices", "devices.list");
    assert!(rules_before.contains("c 136:* rwm"), "{rules_before}");

    // A limit alone: the period in force counts, and the rules are those that were there.
    update(json!({"cpu": {"quota": 5_000}}));
    let call = systemd.body("SetUnitProperties");
    let value = |call: &[u8], name: &str| {
        let at = find(call, format!("{name}\0\x01t\0").as_bytes()).unwrap() + name.len() + 4;
        // Arrays of 8-byte alignment: the value is at the next boundary of the whole message's body.
        let at = at.next_multiple_of(8);
        u64::from_le_bytes(call[at..at + 8].try_into().unwrap())
    };
    assert_eq!(value(&call, "CPUQuotaPerSecUSec"), 100_000);
    assert_eq!(value(&call, "CPUQuotaPeriodUSec"), 50_000);
    assert!(find(&call, b"DeviceAllow").is_none());
    let quota = || (read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.cfs_period_us"));
    assert_eq!(quota(), ("5000".to_owned(), "50000".to_owned()));
    assert_eq!(read("devices", "devices.list"), rules_before);
    assert_eq!((systemd.count("FROZEN"), systemd.count("THAWED")), (1, 0));
    assert_eq!(read("freezer", "freezer.state"), "THAWED");

    // Other rules: systemd is told, after its list was cleared.
    let fuse = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"});
    update(json!({"devices": [{"allow": false, "access": "rwm"}, fuse]}));
    let call = systemd.body("SetUnitProperties");
    assert!(find(&call, b"DevicePolicy").is_some());
    assert_eq!(call.windows(11).filter(|w| w == b"DeviceAllow").count(), 2);
    assert!(read("devices", "devices.list").contains("c 10:229 rw"));

    // One that is paused stays so. An old systemd is not told of the period.
    systemd.version.store(241, Ordering::Relaxed);
    b.ok(&["pause", &b.id]);
    update(json!({"cpu": {"period": 100_000}}));
    assert_eq!(read("freezer", "freezer.state"), "FROZEN");
    let call = systemd.body("SetUnitProperties");
    assert_eq!(value(&call, "CPUQuotaPerSecUSec"), 50_000);
    assert!(find(&call, b"CPUQuotaPeriodUSec").is_none());
    assert_eq!(quota(), ("5000".to_owned(), "100000".to_owned()));
    assert!(read("devices", "devices.list").contains("c 10:229 rw"));
    b.ok(&["resume", &b.id]);
    let o = sd(&["delete", "-f", &b.id]).output().unwrap();
    assert!(o.status.success(), "{}", text(&o));
}

#[test]
fn a_unit_of_others_is_not_stopped() {
    let mut b = Bundle::new("true");
    b.wrap = Some("mount -t cgroup2 none /sys/fs/cgroup".into());
    let slice = format!("gantrytest{}.slice", random());
    let socket = b.path("bus");
    let systemd = Systemd::new(&socket, &slice);
    systemd.taken.store(true, Ordering::Relaxed);
    b.config["linux"]["cgroupsPath"] = json!(format!("{slice}:pre:{}", b.id));
    b.save();
    let mut command = b.command(&["--systemd-cgroup", "run", &b.id]);
    let address = format!("unix:path={}", socket.display());
    let got = text(&command.env("DBUS_SYSTEM_BUS_ADDRESS", address).output().unwrap());
    let want = format!("start systemd unit pre-{}.scope", b.id);
    assert!(got.contains(&want) && got.contains("UnitExists"), "{got}");
    let names = systemd.names();
    let count = |name: &str| names.iter().filter(|n| *n == name).count();
    assert_eq!((count("StartTransientUnit"), count("StopUnit")), (2, 0), "{names:?}");
    assert!(!b.path("state").join(&b.id).exists());
}

#[test]
fn without_systemd_the_driver_says_so() {
    let mut b = Bundle::new("true");
    b.config["linux"]["cgroupsPath"] = json!("/a/b");
    b.save();
    let got = b.fails(&["--systemd-cgroup", "run", &b.id]);
    assert!(got.contains("expected cgroupsPath to be of format"), "{got}");
    b.config["linux"]["cgroupsPath"] = json!(format!("a.slice:b:{}", b.id));
    b.save();
    let mut command = b.command(&["--systemd-cgroup", "run", &b.id]);
    let nowhere = format!("unix:path={}", b.path("nowhere").display());
    let got = text(&command.env("DBUS_SYSTEM_BUS_ADDRESS", nowhere).output().unwrap());
    assert!(got.contains("needs a running systemd") && got.contains("connect to D-Bus"), "{got}");
    let got = b.fails(&["run", &b.id]);
    assert!(got.contains("goes with --systemd-cgroup"), "{got}");
    assert!(!b.path("state").join(&b.id).exists());
}
