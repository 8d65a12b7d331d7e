//! `ctr run` and its kin, with real containers under our own shim (played by this very program).
//! Needs root, busybox-static and containerd's `ctr`.
//!
//! Not a libtest binary: the shim's role must be taken before there is a second thread.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use common::{Served, client::Client};
use prost::Message as _;
use protos::{containerd::introspection, shim as shim_api};
use store::LayerForm;
use testkit::fixtures::{
    busybox::Busybox,
    oci::{Image, Layer},
    tar::TarStream,
};
use tokio::io::AsyncWriteExt as _;

const NAMESPACE: &str = "STORE_GRPC_RUN_TEST_NAMESPACE";
/// Only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.first().is_some_and(|name| name == shim::PROGRAM_NAME) {
        std::process::exit(shim::main(arguments.split_off(1)));
    }
    if testkit::single::is_answered("run") {
        return;
    }
    let Ok(namespace) = std::env::var(NAMESPACE) else { std::process::exit(in_namespaces()) };
    // `ctr` makes its FIFOs there.
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).status().unwrap();
    assert!(mounted.success());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let ground = Ground::new(namespace).await;
        run("output, input, exit status", streams(&ground)).await;
        run("terminal", terminal(&ground)).await;
        run("detached", detached(&ground)).await;
        run("failed start", failed(&ground)).await;
        run("changes", changes(&ground)).await;
        run("runtime", runtime(&ground)).await;
        run("many layers", many_layers(&ground)).await;
        let namespace = ground.namespace.clone();
        ground.end().await;
        // As far as this kernel has it.
        let ground = Ground::of(namespace, LayerForm::Best).await;
        run("many layers that are not unpacked", many_layers(&ground)).await;
        ground.end().await;
    });
}

/// Runs this program again where nothing that it does is seen; then removes its cgroups.
fn in_namespaces() -> i32 {
    let namespace = testkit::random::name("gantry-grpc-test");
    let status = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"])
        .arg(std::env::current_exe().unwrap())
        .env(NAMESPACE, &namespace)
        .status()
        .unwrap();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        remove_group(&hierarchy.path().join(&namespace));
    }
    remove_group(&Path::new("/sys/fs/cgroup").join(&namespace));
    status.code().unwrap_or(1)
}

fn remove_group(path: &Path) {
    let Ok(entries) = std::fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|e| e.path().is_dir()) {
        remove_group(&entry.path());
    }
    std::fs::remove_dir(path).unwrap();
}

async fn run(name: &str, test: impl Future<Output = ()>) {
    tokio::time::timeout(PATIENCE, test).await.unwrap_or_else(|_| panic!("{name}: hangs"));
    eprintln!("test {name} ... ok");
}

struct Ground {
    served: Served,
    namespace: String,
    image: String,
    busybox: Busybox,
}

impl Ground {
    async fn new(namespace: String) -> Self {
        Self::of(namespace, LayerForm::default()).await
    }

    async fn of(namespace: String, layers: LayerForm) -> Self {
        let served = Served::of(layers).await;
        let busybox = Busybox::new().unwrap();
        let image = format!("docker.io/library/{}", busybox.reference);
        let archive = served.write("in.tar", &busybox.image.oci_archive(&image));
        served.ctr(&namespace, &["images", "import", &archive]).await;
        Self { served, namespace, image, busybox }
    }

    fn command(&self, args: &[&str]) -> tokio::process::Command {
        let args: Vec<&str> =
            args.iter().map(|arg| if *arg == "IMAGE" { &*self.image } else { arg }).collect();
        let mut command = self.served.command(&self.namespace, &args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Exit status, standard output and standard error. Standard input ends with `input`.
    async fn ctr(&self, args: &[&str], input: &[u8]) -> (i32, String, String) {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input).await.unwrap();
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    async fn nothing_is_left(&self) {
        let ns = &self.namespace;
        assert_eq!(self.served.ctr(ns, &["tasks", "ls", "-q"]).await, "");
        assert_eq!(self.served.ctr(ns, &["containers", "ls", "-q"]).await, "");
        let snapshots = self.served.ctr(ns, &["snapshots", "ls"]).await;
        assert!(!snapshots.contains("Active"), "{snapshots}");
    }

    async fn end(self) {
        self.served.end().await;
    }
}

/// What a client of containerd 2 asks before it uses a runtime.
async fn runtime(ground: &Ground) {
    let mut client = Client::connect(&ground.served.socket()).await;
    let options =
        prost_types::Any { type_url: "some.Options".into(), value: testkit::random::bytes(9) };
    let mut ask = async |runtime_path: String| {
        let request =
            introspection::RuntimeRequest { runtime_path, options: Some(options.clone()) };
        let request = introspection::PluginInfoRequest {
            kind: "io.containerd.runtime.v2".into(),
            id: "task".into(),
            options: Some(shim_api::pack("containerd.types.RuntimeRequest", &request)),
        };
        let path = "/containerd.services.introspection.v1.Introspection/PluginInfo";
        client.unary::<_, introspection::PluginInfoResponse>(path, request).await
    };
    let extra = ask("io.containerd.runc.v2".into()).await.unwrap().extra.unwrap();
    assert!(shim_api::is_type(&extra, "containerd.types.RuntimeInfo"), "{extra:?}");
    let info = shim_api::RuntimeInfo::decode(&extra.value[..]).unwrap();
    assert_eq!(info.name, "io.containerd.gantry.v2");
    assert_eq!(info.options.unwrap().value, options.value);
    let absent = format!("io.containerd.{}.v9", testkit::random::token(5));
    let error = ask(absent).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound, "{error}");
    client.close().await;
}

/// A container on more layers than dockerd takes, which by their paths are more than a page of options.
async fn many_layers(ground: &Ground) {
    let count = 200 + testkit::random::number(0..50);
    let mut layers = ground.busybox.image.layers.clone();
    for n in 0..count {
        let path = format!("d/{n}");
        let tar = TarStream::new().dir("d/").file(&path, 0o644, path.as_bytes());
        layers.push(Layer::plain(tar.finish()));
    }
    let name = format!("docker.io/library/{}:1", testkit::random::name("many"));
    let run = serde_json::json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] });
    let archive = ground.served.write("many.tar", &Image::new(layers, &run).oci_archive(&name));
    ground.served.ctr(&ground.namespace, &["images", "import", &archive]).await;
    let script = "ls /d | wc -l; cat /d/0; touch /d/own; rm /d/1; ls /d | wc -l";
    let (code, out, err) =
        ground.ctr(&["run", "--rm", &name, "many", "sh", "-c", script], b"").await;
    assert_eq!((code, out), (0, format!("{count}\nd/0{count}\n")), "{err}");
    ground.nothing_is_left().await;
}

async fn streams(ground: &Ground) {
    let script = format!("cat {}; echo wrong >&2; exit 3", ground.busybox.marker_path);
    let (code, out, err) =
        ground.ctr(&["run", "--rm", "IMAGE", "c1", "sh", "-c", &script], b"").await;
    assert_eq!((code, out.trim()), (3, ground.busybox.marker.as_str()), "{err}");
    assert!(err.contains("wrong"), "{err}");
    // What lies in the FIFO when the end is told is input as well.
    let input = vec![b'x'; 1 << 20];
    for _ in 0..10 {
        let (code, out, err) =
            ground.ctr(&["run", "--rm", "IMAGE", "c2", "wc", "-c"], &input).await;
        assert_eq!((code, out.trim()), (0, "1048576"), "{err}");
    }
    ground.nothing_is_left().await;
}

async fn terminal(ground: &Ground) {
    let inner = format!(
        "ctr --address {} --namespace {} run --rm -t {} t1 sh -c 'test -t 0 && echo on a tty; exit 4'",
        ground.served.socket().display(),
        ground.namespace,
        ground.image
    );
    let output = tokio::process::Command::new("script")
        .args(["-qec", &inner, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("on a tty"), "{said}");
    assert_eq!(output.status.code(), Some(4), "{said}");
    ground.nothing_is_left().await;
}

async fn detached(ground: &Ground) {
    let (ns, served) = (&ground.namespace, &ground.served);
    let (code, _, err) = ground.ctr(&["run", "-d", "IMAGE", "d1", "sleep", "1000"], b"").await;
    assert_eq!(code, 0, "{err}");
    let tasks = served.ctr(ns, &["tasks", "ls"]).await;
    assert!(tasks.lines().any(|l| l.starts_with("d1") && l.contains("RUNNING")), "{tasks}");
    let processes = served.ctr(ns, &["tasks", "ps", "d1"]).await;
    assert_eq!(processes.lines().count(), 2, "{processes}");
    let exec = ["tasks", "exec", "--exec-id", "e1", "d1", "sh", "-c", "echo inside; exit 5"];
    let (code, out, err) = ground.ctr(&exec, b"").await;
    assert_eq!((code, out.trim()), (5, "inside"), "{err}");
    served.ctr(ns, &["tasks", "pause", "d1"]).await;
    assert!(served.ctr(ns, &["tasks", "ls"]).await.contains("PAUSED"));
    served.ctr(ns, &["tasks", "resume", "d1"]).await;
    let figures = served.ctr(ns, &["tasks", "metrics", "d1"]).await;
    assert!(figures.contains("pids.current"), "{figures}");
    let busy = served.fails(ns, &["tasks", "rm", "d1"]).await;
    assert!(busy.contains("must be stopped"), "{busy}");
    let busy = served.fails(ns, &["containers", "rm", "d1"]).await;
    assert!(busy.contains("cannot delete a non stopped container"), "{busy}");
    served.ctr(ns, &["tasks", "kill", "--signal", "KILL", "d1"]).await;
    while !served.ctr(ns, &["tasks", "ls"]).await.contains("STOPPED") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let gone = served.fails(ns, &["tasks", "kill", "d1"]).await;
    assert!(gone.contains("process already finished"), "{gone}");
    let (code, _, err) = ground.ctr(&["tasks", "rm", "d1"], b"").await;
    assert!(code == 0 && err.contains("137"), "{err}");
    served.ctr(ns, &["containers", "rm", "d1"]).await;
    ground.nothing_is_left().await;
}

async fn failed(ground: &Ground) {
    let (code, _, err) = ground.ctr(&["run", "--rm", "IMAGE", "f1", "/no/such"], b"").await;
    assert_ne!(code, 0);
    assert!(err.contains("/no/such") && err.contains("no such file"), "{err}");
    ground.nothing_is_left().await;
}

async fn changes(ground: &Ground) {
    let (ns, served) = (&ground.namespace, &ground.served);
    let script = "echo new > /tmp/new; mkdir /fresh";
    let (code, _, err) = ground.ctr(&["run", "IMAGE", "w1", "sh", "-c", script], b"").await;
    assert_eq!(code, 0, "{err}");
    let layer = served.output(ns, &["snapshots", "diff", "w1"]).await.stdout;
    let file = served.write("layer.tgz", &layer);
    let listed = Command::new("tar").args(["-tzf", &file]).output().unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    assert!(listed.contains("tmp/new") && listed.contains("fresh/"), "{listed}");
    served.ctr(ns, &["containers", "rm", "w1"]).await;
    ground.nothing_is_left().await;
}
