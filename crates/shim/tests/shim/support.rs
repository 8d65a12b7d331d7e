//! A bundle of busybox, the real shim, and small clients of its two protocols.
//!
//! Every test runs in a process of its own, in mount and pid namespaces of its own: whatever it
//! leaves behind ends with it. Its cgroups have a parent of their own, removed from outside.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use prost::Message;
use protos::shim as api;
use protos::ttrpc;
use serde_json::{Value, json};

/// Another build of the shim can be given, to measure it.
fn program() -> String {
    let built = env!("CARGO_BIN_EXE_containerd-shim-gantry-v2");
    std::env::var("SHIM_TEST_PROGRAM").unwrap_or_else(|_| built.to_owned())
}
/// Far beyond what anything here takes; only a hang meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn random_name(prefix: &str) -> String {
    format!("{prefix}{:08x}", rand::random::<u32>())
}

/// Runs `body` in this test's own namespaces, once per runtime: the linked one, and runc as the
/// peer that proves the test.
pub(crate) fn isolated(test: &str, body: impl Fn(&str)) {
    if let Ok(runtime) = std::env::var("SHIM_TEST_RUNTIME") {
        body(&runtime);
        return;
    }
    for runtime in runtimes() {
        let group = random_name("gantry-shim-test-");
        let status = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env("SHIM_TEST_RUNTIME", runtime)
            .env("SHIM_TEST_CGROUP", &group)
            .status()
            .unwrap();
        remove_cgroups(&group);
        assert!(status.success(), "{test} with runtime {runtime:?}");
    }
}

fn runtimes() -> Vec<&'static str> {
    match std::env::var("SHIM_TEST_RUNTIMES").as_deref() {
        Ok("runc") => vec!["runc"],
        Ok("linked") => vec![""],
        _ => vec!["", "runc"],
    }
}

fn remove_cgroups(group: &str) {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        remove_tree(&hierarchy.path().join(group));
    }
    remove_tree(&Path::new("/sys/fs/cgroup").join(group));
}

fn remove_tree(path: &Path) {
    let Ok(entries) = std::fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|e| e.path().is_dir()) {
        remove_tree(&entry.path());
    }
    std::fs::remove_dir(path).unwrap();
}

/// Something to wait for.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !check() {
        assert!(std::time::Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) runtime: String,
    pub(crate) events: mpsc::Receiver<api::EventEnvelope>,
}

impl Drop for World {
    /// A shim that was killed, or its container, may have the directory for a moment more.
    fn drop(&mut self) {
        let mut gone = 0;
        for _ in 0..100 {
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let below = mounts.lines().filter_map(|line| line.split(' ').nth(4));
            for target in below.filter(|target| Path::new(target).starts_with(self.dir.path())) {
                drop(Command::new("umount").args(["-l", target]).status());
            }
            drop(std::fs::remove_dir_all(self.dir.path()));
            gone = if self.dir.path().exists() { 0 } else { gone + 1 };
            if gone == 3 {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl World {
    pub(crate) fn new(runtime: &str) -> World {
        let dir = tempfile::Builder::new().prefix("gs").tempdir().unwrap();
        let (sender, events) = mpsc::channel();
        serve_events(&dir.path().join("events.sock"), sender);
        World { dir, runtime: runtime.into(), events }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn any_event(&mut self) -> api::EventEnvelope {
        self.events.recv_timeout(PATIENCE).unwrap()
    }

    /// The event of this topic that comes next.
    pub(crate) fn event<T: Message + Default>(&mut self, topic: &str) -> T {
        loop {
            let envelope = self.events.recv_timeout(PATIENCE).expect(topic);
            assert_eq!(envelope.namespace, "test");
            if envelope.topic == topic {
                return T::decode(&envelope.event.unwrap().value[..]).unwrap();
            }
        }
    }

    /// A bundle whose root file system is `rootfs.d`, to be mounted by the shim.
    pub(crate) fn bundle(
        &self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> PathBuf {
        let bundle = self.path(id);
        let root = self.path(&format!("{id}.d"));
        for name in ["bin", "proc", "dev", "tmp", "sys"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in
            ["sh", "ls", "cat", "sleep", "head", "wc", "stty", "tty", "yes", "true", "md5sum"]
        {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let mut spec = spec(args);
        change(&mut spec);
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    pub(crate) fn rootfs(&self, id: &str) -> Vec<api::Mount> {
        vec![api::Mount {
            kind: "bind".into(),
            source: self.path(&format!("{id}.d")).display().to_string(),
            options: vec!["rbind".into(), "rw".into()],
            ..Default::default()
        }]
    }

    fn shim_command(&self, id: &str, action: &str) -> Command {
        let mut command = Command::new(program());
        command
            .args(["-namespace", "test", "-address", "/nowhere.sock", "-publish-binary", "x"])
            .args(["-id", id, "-bundle"])
            .arg(self.path(id))
            .arg(action)
            .current_dir(self.path(id))
            .env("TTRPC_ADDRESS", self.path("events.sock"))
            .env("GANTRY_SHIM_SOCKET_DIR", self.path("s"))
            .stdin(Stdio::null());
        command
    }

    /// Starts the shim; its socket.
    pub(crate) fn start_shim(&self, id: &str) -> PathBuf {
        let output = self.shim_command(id, "start").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let address = String::from_utf8(output.stdout).unwrap();
        assert_eq!(std::fs::read_to_string(self.path(id).join("address")).unwrap(), address);
        let socket = PathBuf::from(address.strip_prefix("unix://").unwrap());
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        socket
    }

    pub(crate) fn delete_action(&self, id: &str) -> api::DeleteResponse {
        let output = self.shim_command(id, "delete").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        api::DeleteResponse::decode(&output.stdout[..]).unwrap()
    }

    pub(crate) fn create_request(&self, id: &str) -> api::CreateTaskRequest {
        let options = api::RuncOptions {
            binary_name: self.runtime.clone(),
            root: self.path("runtime").display().to_string(),
            ..Default::default()
        };
        api::CreateTaskRequest {
            id: id.into(),
            bundle: self.path(id).display().to_string(),
            rootfs: self.rootfs(id),
            options: Some(api::pack(api::RUNC_OPTIONS, &options)),
            ..Default::default()
        }
    }

    /// A shim and a created container.
    pub(crate) fn create(
        &self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut api::CreateTaskRequest),
    ) -> Task {
        let mut request = self.create_request(id);
        change(&mut request);
        let terminal = request.terminal;
        self.bundle(id, args, |spec| {
            spec["process"]["terminal"] = terminal.into();
        });
        let socket = self.start_shim(id);
        let mut ttrpc = Ttrpc::connect(&socket);
        let pid = ttrpc.create(&request).unwrap();
        Task { id: id.into(), socket, ttrpc, pid }
    }
}

pub(crate) fn spec(args: &[&str]) -> Value {
    let group = std::env::var("SHIM_TEST_CGROUP").unwrap();
    let caps = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{group}/{}", random_name("c")),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
        },
    })
}

pub(crate) fn process(args: &[&str]) -> Value {
    let mut process = spec(args)["process"].clone();
    process["terminal"] = false.into();
    process
}

/// A container and the connection to its shim.
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) socket: PathBuf,
    pub(crate) ttrpc: Ttrpc,
    pub(crate) pid: u32,
}

impl Task {
    pub(crate) fn call<R: Message + Default>(
        &mut self,
        method: &str,
        m: &impl Message,
    ) -> Answer<R> {
        self.ttrpc.call(method, m)
    }

    pub(crate) fn start(&mut self, exec_id: &str) -> Answer<api::StartResponse> {
        let request = api::StartRequest { id: self.id.clone(), exec_id: exec_id.into() };
        self.call("Start", &request)
    }

    pub(crate) fn wait(&mut self, exec_id: &str) -> u32 {
        let request = api::WaitRequest { id: self.id.clone(), exec_id: exec_id.into() };
        self.call::<api::WaitResponse>("Wait", &request).unwrap().exit_status
    }

    pub(crate) fn state(&mut self, exec_id: &str) -> api::StateResponse {
        let request = api::StateRequest { id: self.id.clone(), exec_id: exec_id.into() };
        self.call("State", &request).unwrap()
    }

    pub(crate) fn kill(&mut self, exec_id: &str, signal: u32) -> Answer<()> {
        let (id, exec_id) = (self.id.clone(), exec_id.into());
        self.call("Kill", &api::KillRequest { id, exec_id, signal, all: false })
    }

    pub(crate) fn exec(&mut self, exec_id: &str, process: &Value, stdin: &str, out: &str) {
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            terminal: process["terminal"] == true,
            stdin: stdin.into(),
            stdout: out.into(),
            stderr: String::new(),
            spec: Some(protos::Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process.to_string().into_bytes(),
            }),
        };
        self.call::<()>("Exec", &request).unwrap();
    }

    pub(crate) fn delete(&mut self, exec_id: &str) -> Answer<api::DeleteResponse> {
        let request = api::DeleteRequest { id: self.id.clone(), exec_id: exec_id.into() };
        self.call("Delete", &request)
    }

    /// Deletes the stopped container; the shim ends.
    pub(crate) fn finish(mut self) {
        self.delete("").unwrap();
        self.ttrpc
            .call::<()>("Shutdown", &api::ShutdownRequest { id: self.id, now: false })
            .unwrap();
        let socket = self.socket;
        eventually("the shim ends", || !socket.exists());
    }

    pub(crate) fn attach(&self, exec_id: &str, stdin: bool) -> Attach {
        Attach::connect(&self.socket, &self.id, exec_id, stdin)
    }
}

/// An error answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: i32,
    pub(crate) message: String,
}

pub(crate) type Answer<T> = Result<T, Refusal>;

/// One connection to the shim; one call at a time.
pub(crate) struct Ttrpc {
    stream: UnixStream,
    next: u32,
    /// Told to the shim with every call.
    pub(crate) timeout: Option<Duration>,
}

impl Ttrpc {
    pub(crate) fn connect(socket: &Path) -> Ttrpc {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ttrpc { stream, next: 1, timeout: None }
    }

    pub(crate) fn call<R: Message + Default>(
        &mut self,
        method: &str,
        message: &impl Message,
    ) -> Answer<R> {
        let request = ttrpc::Request {
            service: api::TASK_SERVICE.into(),
            method: method.into(),
            payload: message.encode_to_vec(),
            timeout_nano: self.timeout.map_or(0, |t| i64::try_from(t.as_nanos()).unwrap()),
            ..Default::default()
        };
        let stream = self.next;
        self.next += 2;
        let frame = ttrpc::frame(stream, ttrpc::TYPE_REQUEST, &request).unwrap();
        self.stream.write_all(&frame).unwrap();
        let (header, body) = read_frame(&mut self.stream).expect(method);
        assert_eq!(header.stream, stream);
        let response = ttrpc::Response::decode(&body[..]).unwrap();
        match response.status {
            Some(status) if status.code != 0 => {
                Err(Refusal { code: status.code, message: status.message })
            }
            _ => Ok(R::decode(&response.payload[..]).unwrap()),
        }
    }

    pub(crate) fn create(&mut self, request: &api::CreateTaskRequest) -> Answer<u32> {
        self.call::<api::CreateTaskResponse>("Create", request).map(|r| r.pid)
    }
}

fn read_frame(stream: &mut UnixStream) -> Option<(ttrpc::Header, Vec<u8>)> {
    let mut header = [0; ttrpc::HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let header = ttrpc::Header::decode(header);
    let mut body = vec![0; usize::try_from(header.length).unwrap()];
    stream.read_exact(&mut body).unwrap();
    Some((header, body))
}

/// Plays containerd: takes events.
fn serve_events(path: &Path, sender: mpsc::Sender<api::EventEnvelope>) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let sender = sender.clone();
            std::thread::spawn(move || {
                while let Some((header, body)) = read_frame(&mut stream) {
                    let request = ttrpc::Request::decode(&body[..]).unwrap();
                    assert_eq!(request.service, api::EVENTS_SERVICE);
                    assert_eq!(request.method, "Forward");
                    let forward = api::ForwardRequest::decode(&request.payload[..]).unwrap();
                    drop(sender.send(forward.envelope.unwrap()));
                    let answer = ttrpc::Response::default();
                    let frame = ttrpc::frame(header.stream, ttrpc::TYPE_RESPONSE, &answer);
                    stream.write_all(&frame.unwrap()).unwrap();
                }
            });
        }
    });
}

/// A client of the attach socket.
pub(crate) struct Attach {
    pub(crate) stream: UnixStream,
    pub(crate) answer: shim::attach::HelloAnswer,
}

impl Attach {
    pub(crate) fn connect(socket: &Path, id: &str, exec_id: &str, stdin: bool) -> Attach {
        let mut stream = UnixStream::connect(shim::attach_path(socket)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let hello = shim::attach::Hello {
            version: 1,
            container_id: id.into(),
            exec_id: exec_id.into(),
            stdin,
            stdout: true,
            stderr: true,
        };
        let hello = serde_json::to_vec(&hello).unwrap();
        write_frame(&mut stream, shim::attach::kind::HELLO, &hello);
        let (kind, answer) = read_attach_frame(&mut stream).unwrap();
        assert_eq!(kind, shim::attach::kind::HELLO, "{}", String::from_utf8_lossy(&answer));
        Attach { stream, answer: serde_json::from_slice(&answer).unwrap() }
    }

    pub(crate) fn send(&mut self, kind: u8, payload: &[u8]) {
        write_frame(&mut self.stream, kind, payload);
    }

    pub(crate) fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        read_attach_frame(&mut self.stream)
    }

    /// Output of both streams until the exit, and its status.
    pub(crate) fn rest(mut self) -> (Vec<u8>, Vec<u8>, u32) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some((kind, payload)) = self.next() {
            match kind {
                1 => out.extend(payload),
                2 => err.extend(payload),
                6 => {
                    let status = u32::from_be_bytes(payload[..4].try_into().unwrap());
                    assert!(self.next().is_none(), "frames after the exit");
                    return (out, err, status);
                }
                kind => panic!("frame {kind}: {}", String::from_utf8_lossy(&payload)),
            }
        }
        panic!("closed before the exit; got {} bytes", out.len());
    }

    /// Reads output until it contains `text`.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let mut all = String::new();
        while !all.contains(text) {
            let (kind, payload) = self.next().unwrap_or_else(|| panic!("closed; got {all:?}"));
            assert!(kind == 1 || kind == 2, "frame {kind}; got {all:?}");
            all.push_str(&String::from_utf8_lossy(&payload));
        }
        all
    }
}

fn write_frame(stream: &mut UnixStream, kind: u8, payload: &[u8]) {
    stream.write_all(&shim::attach::header(kind, payload.len())).unwrap();
    stream.write_all(payload).unwrap();
}

fn read_attach_frame(stream: &mut UnixStream) -> Option<(u8, Vec<u8>)> {
    let mut header = [0; shim::attach::HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let (kind, length) = shim::attach::parse_header(header);
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).unwrap();
    Some((kind, payload))
}
