//! Tasks through the store's seam, with real shims: our own (played by this very program) and
//! containerd's shim for runc. Needs root, busybox-static, runc and containerd.
//!
//! Not a libtest binary: the shim's role must be taken before there is a second thread.
#![allow(clippy::unwrap_used)]

use std::{
    ffi::OsString,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use store::{Config, Store};
use store_api::{
    Any, Container, CreateTask, Envelope, Event, EventStream, ExecTask, Mount, Namespaces as _,
    ProcessId, ProcessStatus, RuntimeInfo, Services, Stdio, Timestamp,
};

const OWN: &str = "io.containerd.gantry.v2";
const FOREIGN: &str = "/usr/bin/containerd-shim-runc-v2";
const GROUP: &str = "STORE_TASKS_TEST_CGROUP";
/// Only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if std::env::args().next().is_some_and(|name| name == shim::PROGRAM_NAME) {
        std::process::exit(shim::main(arguments));
    }
    if testkit::single::is_answered("tasks") {
        return;
    }
    if std::env::var(GROUP).is_err() {
        let group = testkit::random::name("gantry-store-test-");
        let status = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args(arguments)
            .env(GROUP, &group)
            .status()
            .unwrap();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            remove_group(&hierarchy.path().join(&group));
        }
        remove_group(&Path::new("/sys/fs/cgroup").join(&group));
        std::process::exit(status.code().unwrap_or(1));
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        run("life, own shim", life(OWN)).await;
        run("life, containerd's shim", life(FOREIGN)).await;
        run("exec, own shim", exec(OWN)).await;
        run("exec, containerd's shim", exec(FOREIGN)).await;
        run("store restarts, own shim", restart(OWN)).await;
        run("store restarts, containerd's shim", restart(FOREIGN)).await;
        run("shim dies, own shim", shim_dies(OWN)).await;
        run("shim dies, containerd's shim", shim_dies(FOREIGN)).await;
        run("shim dies while the store is away", shim_dies_unseen()).await;
        run("pause, update, figures", operations()).await;
        run("refusals", refusals()).await;
    });
}

async fn run(name: &str, test: impl Future<Output = ()>) {
    eprintln!("test {name} ...");
    tokio::time::timeout(2 * PATIENCE, test).await.unwrap_or_else(|_| panic!("{name}: hangs"));
    eprintln!("test {name} ... ok");
}

fn remove_group(path: &Path) {
    let Ok(entries) = std::fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|e| e.path().is_dir()) {
        remove_group(&entry.path());
    }
    std::fs::remove_dir(path).unwrap();
}

struct Ground {
    directory: tempfile::TempDir,
    store: Option<Arc<Store>>,
    namespace: String,
    services: Services,
    events: EventStream,
}

impl Ground {
    async fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("st").tempdir().unwrap();
        let namespace = testkit::random::name("ns");
        let (store, services, events) = open(directory.path(), &namespace).await;
        Self { directory, store: Some(store), namespace, services, events }
    }

    async fn restart(&mut self, meanwhile: impl FnOnce()) {
        self.store = None;
        // Handles hold the store too.
        let (_, nothing) = tokio::sync::mpsc::channel(1);
        drop(std::mem::replace(&mut self.events, nothing));
        let directory = tempfile::tempdir().unwrap();
        let (other, services, events) = open(directory.path(), "other").await;
        drop(std::mem::replace(&mut self.services, services));
        self.events = events;
        meanwhile();
        let (store, services, events) = open(self.directory.path(), &self.namespace).await;
        self.store = Some(store);
        self.services = services;
        self.events = events;
        drop(other);
    }

    fn root(&self, id: &str) -> PathBuf {
        self.directory.path().join(format!("{id}.d"))
    }

    /// A container record; its root file system is given with the task.
    async fn container(&self, id: &str, runtime: &str, args: &[&str]) {
        let root = self.root(id);
        for name in ["bin", "proc", "dev", "tmp"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "sleep", "true"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let container = Container {
            id: id.into(),
            labels: Default::default(),
            image: String::new(),
            runtime: RuntimeInfo { name: runtime.into(), options: None },
            spec: Some(spec(args)),
            snapshotter: String::new(),
            snapshot_key: String::new(),
            created_at: Timestamp::default(),
            updated_at: Timestamp::default(),
            extensions: Default::default(),
            sandbox_id: String::new(),
        };
        self.services.containers.create(container).await.unwrap();
    }

    fn request(&self, id: &str, stdout: &str) -> CreateTask {
        CreateTask {
            container_id: id.into(),
            rootfs: vec![Mount {
                kind: "bind".into(),
                source: self.root(id).display().to_string(),
                options: vec!["rbind".into(), "rw".into()],
            }],
            stdio: Stdio { stdout: stdout.into(), ..Stdio::default() },
            ..CreateTask::default()
        }
    }

    async fn running(&self, runtime: &str, args: &[&str]) -> String {
        let id = testkit::random::name("c");
        self.container(&id, runtime, args).await;
        let pid = self.services.tasks.create(self.request(&id, "")).await.unwrap();
        assert_eq!(self.services.tasks.start(&ProcessId::init(&id)).await.unwrap(), pid);
        id
    }

    /// The next event of tasks.
    async fn event(&mut self) -> Event {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            let Envelope { namespace, event, .. } = next.expect("an event").expect("events end");
            assert_eq!(namespace, self.namespace);
            if event.topic().starts_with("/tasks/") {
                return event;
            }
        }
    }

    async fn exit_event(&mut self) -> (ProcessId, u32) {
        loop {
            if let Event::TaskExit { process, exit, .. } = self.event().await {
                return (process, exit.status);
            }
        }
    }

    /// No further exit is told: a task's whole life passes after it, and nothing else is seen.
    async fn no_more_exits(&mut self) {
        let id = self.running(OWN, &["/bin/true"]).await;
        assert_eq!(self.exit_event().await.0, ProcessId::init(&id));
        self.services.tasks.delete(&ProcessId::init(&id)).await.unwrap();
    }
}

async fn open(directory: &Path, namespace: &str) -> (Arc<Store>, Services, EventStream) {
    let mut config = Config::new(directory.join("r"), directory.join("s"));
    config.shim_command = vec![std::env::current_exe().unwrap().into()];
    // A store that was just dropped may still hold its lock for a moment.
    let end = tokio::time::Instant::now() + PATIENCE;
    let store = loop {
        match Store::open(config.clone()).await {
            Ok(store) => break store,
            Err(error) if tokio::time::Instant::now() > end => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let services = store.open(namespace).unwrap();
    let events = services.events.subscribe(&[], false).await.unwrap();
    (store, services, events)
}

fn spec(args: &[&str]) -> Any {
    let group = std::env::var(GROUP).unwrap();
    let caps = ["CAP_KILL"];
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": format!("/{group}/{}", testkit::random::name("c")),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
        },
    });
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
        value: spec.to_string().into(),
    }
}

fn process(args: &[&str]) -> Any {
    let spec: serde_json::Value = serde_json::from_slice(&spec(args).value).unwrap();
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: spec["process"].to_string().into(),
    }
}

fn random_code() -> u32 {
    testkit::random::number(1..120)
}

async fn life(runtime: &str) {
    let mut ground = Ground::new().await;
    let (id, code) = (testkit::random::name("c"), random_code());
    let init = ProcessId::init(&id);
    ground.container(&id, runtime, &["/bin/sh", "-c", &format!("echo hello; exit {code}")]).await;
    let stdout = if runtime == OWN { "gantry://none" } else { "" };
    let request = ground.request(&id, stdout);
    let pid = ground.services.tasks.create(request.clone()).await.unwrap();
    let again = ground.services.tasks.create(ground.request(&id, "")).await.unwrap_err();
    assert!(again.is_already_exists(), "{again}");
    let found = ground.services.tasks.get(&init).await.unwrap();
    assert_eq!((found.pid, found.status), (pid, ProcessStatus::Created));
    let bundle = PathBuf::from(&found.bundle);
    assert!(bundle.join("config.json").exists());
    let attached = if runtime == OWN {
        let point = ground.services.extras.attach_point(&init).await.unwrap();
        Some(attach(&point.socket, &id))
    } else {
        let refused = ground.services.extras.attach_point(&init).await.unwrap_err();
        assert_eq!(refused.kind, types::ErrorKind::NotImplemented);
        None
    };
    ground.services.tasks.start(&init).await.unwrap();
    assert_eq!(ground.services.tasks.wait(&init).await.unwrap().status, code);
    if let Some(mut stream) = attached {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let text = String::from_utf8_lossy(&all).into_owned();
        assert!(text.contains("hello\n"), "{text:?}");
    }
    assert_eq!(ground.services.tasks.list().await.unwrap()[0].status, ProcessStatus::Stopped);
    let (deleted, exit) = ground.services.tasks.delete(&init).await.unwrap();
    assert_eq!((deleted, exit.status), (pid, code));
    assert!(!bundle.exists());
    assert!(ground.root(&id).join("bin/busybox").exists(), "the root file system was deleted");
    let expected = [
        Event::TaskCreate {
            container_id: id.clone(),
            bundle: found.bundle,
            rootfs: request.rootfs,
            stdio: request.stdio,
            pid,
        },
        Event::TaskStart { container_id: id.clone(), pid },
        Event::TaskExit { process: init.clone(), pid, exit },
        Event::TaskDelete { process: init.clone(), pid, exit },
    ];
    for event in expected {
        assert_eq!(ground.event().await, event);
    }
    assert!(ground.services.tasks.get(&init).await.unwrap_err().is_not_found());
    ground.no_more_exits().await;
}

fn attach(socket: &Path, id: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let hello = json!({"version": 1, "container_id": id, "stdout": true}).to_string();
    stream.write_all(&shim::attach::header(shim::attach::kind::HELLO, hello.len())).unwrap();
    stream.write_all(hello.as_bytes()).unwrap();
    // Registered once the answer is there.
    let mut head = [0; shim::attach::HEADER_BYTES];
    stream.read_exact(&mut head).unwrap();
    let mut answer = vec![0; shim::attach::parse_header(head).1];
    stream.read_exact(&mut answer).unwrap();
    stream
}

async fn exec(runtime: &str) {
    let mut ground = Ground::new().await;
    let id = ground.running(runtime, &["/bin/sleep", "1000"]).await;
    let code = random_code();
    let one = ProcessId::exec(&id, "one");
    let request = ExecTask {
        container_id: id.clone(),
        exec_id: "one".into(),
        process: process(&["/bin/sh", "-c", &format!("exit {code}")]),
        stdio: Stdio::default(),
    };
    ground.services.tasks.exec(request.clone()).await.unwrap();
    assert!(ground.services.tasks.exec(request).await.unwrap_err().is_already_exists());
    let pid = ground.services.tasks.start(&one).await.unwrap();
    assert_eq!(ground.services.tasks.wait(&one).await.unwrap().status, code);
    assert_eq!(ground.exit_event().await, (one.clone(), code));
    let (deleted, exit) = ground.services.tasks.delete(&one).await.unwrap();
    assert_eq!((deleted, exit.status), (pid, code));
    assert!(ground.services.tasks.delete(&one).await.unwrap_err().is_not_found());
    let init = ProcessId::init(&id);
    let refused = ground.services.tasks.delete(&init).await.unwrap_err();
    assert_eq!(refused.kind, types::ErrorKind::FailedPrecondition);
    ground.services.tasks.kill(&init, 9, false).await.unwrap();
    assert_eq!(ground.exit_event().await, (init.clone(), 137));
    assert!(ground.services.tasks.kill(&init, 9, false).await.unwrap_err().is_not_found());
    ground.services.tasks.delete(&init).await.unwrap();
    ground.no_more_exits().await;
}

async fn restart(runtime: &str) {
    let mut ground = Ground::new().await;
    let stays = ground.running(runtime, &["/bin/sleep", "1000"]).await;
    let code = random_code();
    let script = format!("while [ ! -e /tmp/go ]; do sleep 0.02; done; exit {code}");
    let ends = ground.running(runtime, &["/bin/sh", "-c", &script]).await;
    let pid = ground.services.tasks.get(&ProcessId::init(&ends)).await.unwrap().pid;
    let go = ground.root(&ends).join("tmp/go");
    ground
        .restart(|| {
            std::fs::write(go, "").unwrap();
            let path = PathBuf::from(format!("/proc/{pid}"));
            while path.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
        })
        .await;
    let tasks = ground.services.tasks.clone();
    let (stays, ends) = (ProcessId::init(&stays), ProcessId::init(&ends));
    let ended = tasks.get(&ends).await.unwrap();
    assert_eq!(ended.status, ProcessStatus::Stopped);
    assert_eq!(tasks.wait(&ends).await.unwrap().status, code);
    assert_eq!(tasks.delete(&ends).await.unwrap().1.status, code);
    assert_eq!(tasks.get(&stays).await.unwrap().status, ProcessStatus::Running);
    tasks.kill(&stays, 15, false).await.ok();
    tasks.kill(&stays, 9, false).await.ok();
    let (process, _) = ground.exit_event().await;
    assert_eq!(process, stays);
    tasks.delete(&stays).await.unwrap();
    ground.no_more_exits().await;
}

fn shim_pid(task_pid: u32) -> rustix::process::Pid {
    let status = std::fs::read_to_string(format!("/proc/{task_pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap();
    rustix::process::Pid::from_raw(line.trim().parse().unwrap()).unwrap()
}

async fn shim_dies(runtime: &str) {
    let mut ground = Ground::new().await;
    let id = ground.running(runtime, &["/bin/sleep", "1000"]).await;
    let init = ProcessId::init(&id);
    let pid = ground.services.tasks.get(&init).await.unwrap().pid;
    let signal = rustix::process::Signal::KILL;
    rustix::process::kill_process(shim_pid(pid), signal).unwrap();
    assert_eq!(ground.exit_event().await, (init.clone(), 137));
    assert_eq!(ground.services.tasks.wait(&init).await.unwrap().status, 137);
    let ended = ground.services.tasks.get(&init).await.unwrap();
    assert_eq!(ended.status, ProcessStatus::Stopped);
    assert_eq!(ground.services.tasks.delete(&init).await.unwrap().1.status, 137);
    assert!(!Path::new(&ended.bundle).exists());
    assert!(ground.root(&id).join("bin/busybox").exists(), "the root file system was deleted");
    ground.no_more_exits().await;
}

async fn shim_dies_unseen() {
    let mut ground = Ground::new().await;
    let code = random_code();
    let script = format!("exit {code}");
    let id = ground.running(OWN, &["/bin/sh", "-c", &script]).await;
    let init = ProcessId::init(&id);
    assert_eq!(ground.exit_event().await, (init.clone(), code));
    let bundle = ground.services.tasks.get(&init).await.unwrap().bundle;
    let file = std::fs::read(Path::new(&bundle).join("shim.json")).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let pid = i32::try_from(file["shim_pid"].as_i64().unwrap()).unwrap();
    ground
        .restart(|| {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        })
        .await;
    // Its record tells what it cannot.
    assert_eq!(ground.services.tasks.wait(&init).await.unwrap().status, code);
    assert_eq!(ground.services.tasks.delete(&init).await.unwrap().1.status, code);
    ground.no_more_exits().await;
}

async fn operations() {
    let mut ground = Ground::new().await;
    let id = ground.running(OWN, &["/bin/sleep", "1000"]).await;
    let (tasks, init) = (ground.services.tasks.clone(), ProcessId::init(&id));
    assert_eq!(tasks.pids(&id).await.unwrap().len(), 1);
    tasks.pause(&id).await.unwrap();
    assert_eq!(tasks.get(&init).await.unwrap().status, ProcessStatus::Paused);
    tasks.resume(&id).await.unwrap();
    assert_eq!(tasks.get(&init).await.unwrap().status, ProcessStatus::Running);
    let resources = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 123}}).to_string().into(),
    };
    tasks.update(&id, resources).await.unwrap();
    let figures = tasks.metrics(&id).await.unwrap();
    assert_eq!(figures.memory_limit, Some(64 << 20));
    assert_eq!(figures.pids_limit, Some(123));
    assert_eq!(figures.pids_current, 1);
    assert!(figures.memory_usage > 0 && figures.cpu_total_ns > 0);
    tasks.kill(&init, 9, true).await.unwrap();
    assert_eq!(ground.exit_event().await, (init.clone(), 137));
    tasks.delete(&init).await.unwrap();
}

async fn refusals() {
    let ground = Ground::new().await;
    let tasks = &ground.services.tasks;
    let nobody = ProcessId::init("nobody");
    assert!(tasks.start(&nobody).await.unwrap_err().is_not_found());
    assert!(tasks.create(ground.request("nobody", "")).await.unwrap_err().is_not_found());
    ground.container("odd", "io.containerd.nothing.v9", &["/bin/true"]).await;
    let error = tasks.create(ground.request("odd", "")).await.unwrap_err();
    assert!(error.message.contains("containerd-shim-nothing-v9"), "{error}");
    // A failed create leaves nothing, and can be tried again.
    ground.container("bad", OWN, &["/bin/true"]).await;
    let mut request = ground.request("bad", "");
    request.rootfs[0].source = "/nowhere/at/all".into();
    let error = tasks.create(request).await.unwrap_err();
    assert!(error.message.starts_with("failed to create shim task: "), "{error}");
    let state = ground.directory.path().join("s");
    let bundles = state.join("io.containerd.runtime.v2.task").join(&ground.namespace);
    assert_eq!(std::fs::read_dir(bundles).unwrap().count(), 0);
    let pid = tasks.create(ground.request("bad", "")).await.unwrap();
    assert!(pid > 0);
    tasks.delete(&ProcessId::init("bad")).await.unwrap();
}
