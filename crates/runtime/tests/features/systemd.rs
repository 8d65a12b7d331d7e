//! The systemd cgroup driver against a systemd of the test's own: a socket that speaks D-Bus and
//! makes the cgroup as systemd would.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

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
    slice: PathBuf,
}

impl Systemd {
    fn new(socket: &std::path::Path, slice: &str) -> Systemd {
        let listener = UnixListener::bind(socket).unwrap();
        let calls = Calls::default();
        let slice = unified().join(slice);
        std::fs::create_dir(&slice).unwrap();
        let taken = Arc::new(AtomicBool::new(false));
        let (seen, parent, is_taken) = (calls.clone(), slice.clone(), taken.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &seen, &parent, &is_taken);
            }
        });
        Systemd { calls, taken, slice }
    }

    fn names(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }

    fn body(&self, name: &str) -> Vec<u8> {
        let calls = self.calls.lock().unwrap();
        calls.iter().find(|(n, _)| n == name).map(|(_, b)| b.clone()).unwrap()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.slice).into_iter().flatten().flatten() {
            drop(std::fs::remove_dir(entry.path()));
        }
        drop(std::fs::remove_dir(&self.slice));
    }
}

fn serve(mut stream: UnixStream, calls: &Calls, slice: &std::path::Path, taken: &AtomicBool) {
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
        let names = ["Hello", "AddMatch", "StartTransientUnit", "StopUnit", "ResetFailedUnit"];
        let name = names.iter().find(|n| find(head, n.as_bytes()).is_some());
        let name = *name.unwrap_or(&"SetUnitProperties");
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
                drop(std::fs::remove_dir(slice.join(&unit)));
                answer(&mut stream, serial, Some(&job));
                removed(&mut stream, &job, &unit);
            }
            _ => answer(&mut stream, serial, None),
        }
    }
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
    assert_eq!(std::fs::read_to_string(dir.join("cgroup.procs")).unwrap().trim(), pid);
    assert_eq!(systemd.names(), ["Hello", "AddMatch", "StartTransientUnit"]);
    let call = systemd.body("StartTransientUnit");
    for what in ["Delegate", "MemoryAccounting", &slice, "TimeoutStopUSec"] {
        assert!(find(&call, what.as_bytes()).is_some(), "{what}");
    }
    let o = sd(&["exec", &b.id, "cat", "/proc/self/cgroup"]).output().unwrap();
    assert!(text(&o).contains("0::/\n"), "{}", text(&o));
    let o = sd(&["delete", "-f", &b.id]).output().unwrap();
    assert!(o.status.success(), "{}", text(&o));
    assert!(!dir.exists());
    assert!(systemd.names().contains(&"StopUnit".to_owned()));
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
