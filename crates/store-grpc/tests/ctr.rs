//! Debian's `ctr` against the store's socket: all that needs no running container.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::Ordering;

use common::{Served, lies_in, until};
use serde_json::json;
use testkit::fixtures::{
    oci::{self, Image, Layer},
    tar::TarStream,
};
use tokio::io::AsyncReadExt as _;

fn image(marker: &[u8]) -> Image {
    let base = TarStream::new().dir("etc").file("etc/base", 0o644, b"base").finish();
    let top = TarStream::new().file("marker", 0o644, marker).whiteout("etc/.wh.base").finish();
    let layers = vec![Layer::gzipped(base), Layer::plain(top)];
    Image::new(layers, &json!({ "Cmd": ["/bin/true"] }))
}

#[tokio::test(flavor = "multi_thread")]
async fn version_and_plugins() {
    let served = Served::new().await;
    let said = served.ctr("default", &["version"]).await;
    assert!(said.contains("+gantry."), "{said}");
    assert!(said.contains("UUID: "), "{said}");
    let plugins = served.ctr("default", &["plugins", "ls"]).await;
    let line = plugins.lines().find(|line| line.contains("overlayfs")).unwrap();
    assert!(line.contains("io.containerd.snapshotter.v1"), "{line}");
    assert!(line.contains(oci::architecture()), "{line}");
    let one = served.ctr("default", &["plugins", "ls", "-q", "id==tasks"]).await;
    assert!(!one.contains("overlayfs"), "{one}");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images() {
    let served = Served::new().await;
    let (ns, name) = (testkit::random::name("ns"), "docker.io/library/tiny:1");
    let image = image(testkit::random::name("m").as_bytes());
    let archive = served.write("in.tar", &image.oci_archive(name));
    let said = served.ctr(&ns, &["images", "import", &archive]).await;
    assert!(said.contains("unpacking"), "{said}");
    let listed = served.ctr(&ns, &["images", "ls"]).await;
    let line = listed.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(line.contains(&image.manifest_digest()), "{line}");
    assert!(line.contains(&format!("linux/{}", oci::architecture())), "{line}");
    let checked = served.ctr(&ns, &["images", "check"]).await;
    assert!(checked.contains("complete (3/3)") && checked.contains("true"), "{checked}");

    let tag = "docker.io/library/tiny:2";
    served.ctr(&ns, &["images", "tag", name, tag]).await;
    let twice = served.fails(&ns, &["images", "tag", name, tag]).await;
    assert!(twice.contains("already exists"), "{twice}");
    served.ctr(&ns, &["images", "label", tag, "colour=blue"]).await;
    let filtered = served.ctr(&ns, &["images", "ls", "-q", "labels.colour==blue"]).await;
    assert_eq!(filtered.trim(), tag);

    let out = served.path("out.tar");
    served.ctr(&ns, &["images", "export", out.to_str().unwrap(), tag]).await;
    served.ctr(&ns, &["images", "rm", "--sync", name, tag]).await;
    assert_eq!(served.ctr(&ns, &["images", "ls", "-q"]).await, "");
    let other = testkit::random::name("ns");
    served.ctr(&other, &["images", "import", out.to_str().unwrap()]).await;
    let listed = served.ctr(&other, &["images", "ls"]).await;
    assert!(listed.contains(&image.manifest_digest()), "{listed}");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content() {
    let served = Served::new().await;
    let ns = testkit::random::name("ns");
    let name = "docker.io/library/tiny:1";
    // Larger than one message of a read.
    let mut big = vec![b'x'; 3 << 20];
    big.extend(testkit::random::name("m").as_bytes());
    let image = image(&big);
    let archive = served.write("in.tar", &image.docker_archive(name));
    served.ctr(&ns, &["images", "import", "--no-unpack", &archive]).await;
    let services = served.services(&ns);
    // The archive's index, which no image leads to, goes once the import's lease is gone.
    services.extras.collect_garbage().await.unwrap();
    let listed = served.ctr(&ns, &["content", "ls", "-q"]).await;
    assert_eq!(listed.lines().count(), 4, "{listed}");
    let mut found = false;
    for digest in listed.lines() {
        let output = served.output(&ns, &["content", "get", digest]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let known = services.content.info(&digest.parse().unwrap()).await.unwrap();
        assert_eq!(known.size, u64::try_from(output.stdout.len()).unwrap());
        assert_eq!(testkit::fixtures::digest(&output.stdout), digest);
        found |= output.stdout.len() > 3 << 20;
    }
    assert!(found);
    let missing = testkit::fixtures::digest(b"no such thing");
    let said = served.fails(&ns, &["content", "get", &missing]).await;
    assert!(said.contains("not found"), "{said}");

    let digest = listed.lines().next().unwrap();
    served.ctr(&ns, &["content", "label", digest, "a.b/c=d"]).await;
    let info = services.content.info(&digest.parse().unwrap()).await.unwrap();
    assert_eq!(info.labels.get("a.b/c").map(String::as_str), Some("d"));
    served.ctr(&ns, &["content", "rm", digest]).await;
    let left = served.ctr(&ns, &["content", "ls", "-q"]).await;
    assert!(!left.contains(digest));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest() {
    let served = Served::new().await;
    let ns = testkit::random::name("ns");
    let blob = testkit::random::name("blob").into_bytes();
    let digest = testkit::fixtures::digest(&blob);
    let write = |expected: String| {
        let mut command =
            served.command(&ns, &["content", "ingest", "--expected-digest", &expected, "ref-1"]);
        command.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let blob = blob.clone();
        async move {
            tokio::io::AsyncWriteExt::write_all(&mut stdin, &blob).await.unwrap();
            drop(stdin);
            child.wait_with_output().await.unwrap()
        }
    };
    let wrong = write(testkit::fixtures::digest(b"another")).await;
    assert!(!wrong.status.success());
    assert!(served.fails(&ns, &["content", "get", &digest]).await.contains("not found"));
    // What the failed write left is in the way of one that expects something else.
    served.services(&ns).content.abort("ref-1").await.unwrap();
    let right = write(digest.clone()).await;
    assert!(right.status.success(), "{}", String::from_utf8_lossy(&right.stderr));
    let got = served.output(&ns, &["content", "get", &digest]).await;
    assert_eq!(got.stdout, blob);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots() {
    let served = Served::new().await;
    let (ns, name) = (testkit::random::name("ns"), "docker.io/library/tiny:1");
    let image = image(b"here");
    let archive = served.write("in.tar", &image.oci_archive(name));
    served.ctr(&ns, &["images", "import", &archive]).await;
    let listed = served.ctr(&ns, &["snapshots", "ls"]).await;
    let committed: Vec<&str> = listed.lines().filter(|line| line.contains("Committed")).collect();
    assert_eq!(committed.len(), 2, "{listed}");
    let top = committed.iter().find(|line| line.matches("sha256:").count() == 2).unwrap();
    let top = top.split_whitespace().next().unwrap();

    served.ctr(&ns, &["snapshots", "prepare", "mine", top]).await;
    let services = served.services(&ns);
    let mounts = services.snapshots.mounts("mine").await.unwrap();
    assert!(lies_in(&mounts, "marker"));
    let shown = served.ctr(&ns, &["snapshots", "mounts", "/mnt", "mine"]).await;
    assert!(shown.contains("mount -t overlay"), "{shown}");
    let info = served.ctr(&ns, &["snapshots", "info", "mine"]).await;
    assert!(info.contains(top) && info.contains("Active"), "{info}");
    let usage = served.ctr(&ns, &["snapshots", "usage", "mine"]).await;
    assert!(usage.contains("mine"), "{usage}");
    served.ctr(&ns, &["snapshots", "label", "mine", "k=v"]).await;
    assert_eq!(services.snapshots.stat("mine").await.unwrap().labels["k"], "v");

    let kept = served.fails(&ns, &["snapshots", "rm", top]).await;
    assert!(kept.contains("cannot remove snapshot"), "{kept}");
    served.ctr(&ns, &["snapshots", "commit", "done", "mine"]).await;
    served.ctr(&ns, &["snapshots", "rm", "done"]).await;
    let said = served.fails(&ns, &["snapshots", "info", "done"]).await;
    assert!(said.contains("not found"), "{said}");
    let said = served.fails(&ns, &["snapshots", "--snapshotter", "btrfs", "ls"]).await;
    assert!(said.contains("snapshotter not loaded: btrfs"), "{said}");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases() {
    let served = Served::new().await;
    let ns = testkit::random::name("ns");
    served.ctr(&ns, &["leases", "create", "--id", "mine", "a=b"]).await;
    let twice = served.fails(&ns, &["leases", "create", "--id", "mine"]).await;
    assert!(twice.contains("already exists"), "{twice}");
    let listed = served.ctr(&ns, &["leases", "ls"]).await;
    assert!(listed.contains("mine") && listed.contains("a=b"), "{listed}");
    served.ctr(&ns, &["leases", "rm", "mine"]).await;
    assert!(!served.ctr(&ns, &["leases", "ls"]).await.contains("mine"));
    let gone = served.fails(&ns, &["leases", "rm", "mine"]).await;
    assert!(gone.contains("not found"), "{gone}");
    served.end().await;
}

/// What a call with a lease in its headers writes is held by the lease, and by it alone.
#[tokio::test(flavor = "multi_thread")]
async fn lease_of_the_header() {
    let served = Served::new().await;
    let ns = testkit::random::name("ns");
    served.ctr(&ns, &["leases", "create", "--id", "mine"]).await;
    let blob = b"leased".to_vec();
    let digest = testkit::fixtures::digest(&blob);
    let mut client = common::client::Client::connect(&served.socket()).await;
    client.header("containerd-namespace", &ns);
    client.header("containerd-lease", "mine");
    client.write_blob("leased", &blob).await.unwrap();
    let services = served.services(&ns);
    let held = services.leases.resources("mine").await.unwrap();
    assert!(held.iter().any(|resource| resource.id == digest), "{held:?}");
    services.extras.collect_garbage().await.unwrap();
    services.content.info(&digest.parse().unwrap()).await.unwrap();
    // One that is there already is held all the same, and nothing but that.
    served.ctr(&ns, &["leases", "create", "--id", "other"]).await;
    client.header("containerd-lease", "other");
    let again = protos::containerd::content::WriteContentRequest {
        reference: "again".into(),
        expected: testkit::fixtures::digest(&blob),
        ..Default::default()
    };
    let error = client.write(vec![again]).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::AlreadyExists, "{error}");
    assert_eq!(services.leases.resources("other").await.unwrap(), held);
    services.leases.delete("other", true).await.unwrap();
    services.leases.delete("mine", true).await.unwrap();
    assert!(services.content.info(&digest.parse().unwrap()).await.is_err());
    client.close().await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces() {
    let served = Served::new().await;
    let ns = testkit::random::name("ns");
    served.ctr("default", &["namespaces", "create", &ns, "k=v"]).await;
    let listed = served.ctr("default", &["namespaces", "ls"]).await;
    assert!(listed.lines().any(|line| line.starts_with(&ns) && line.contains("k=v")), "{listed}");
    let twice = served.fails("default", &["namespaces", "create", &ns]).await;
    assert!(twice.contains("already exists"), "{twice}");
    served.ctr("default", &["namespaces", "label", &ns, "k=", "l=w"]).await;
    let listed = served.ctr("default", &["namespaces", "ls"]).await;
    assert!(listed.contains("l=w") && !listed.contains("k=v"), "{listed}");
    served.ctr(&ns, &["snapshots", "prepare", "mine"]).await;
    let said = served.fails("default", &["namespaces", "rm", &ns]).await;
    let words = format!(
        "namespace \"{ns}\" must be empty, but it still has snapshots on \"overlayfs\" snapshotter: \
         failed precondition"
    );
    assert!(said.contains(&words), "{said}");
    served.ctr(&ns, &["snapshots", "rm", "mine"]).await;
    // A lease alone holds nothing; it goes along.
    served.ctr(&ns, &["leases", "create", "--id", "mine"]).await;
    served.ctr("default", &["namespaces", "rm", &ns]).await;
    assert_eq!(served.ctr(&ns, &["leases", "ls", "-q"]).await, "");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_without_tasks() {
    let served = Served::new().await;
    let (ns, name) = (testkit::random::name("ns"), "docker.io/library/tiny:1");
    let archive = served.write("in.tar", &image(b"x").oci_archive(name));
    served.ctr(&ns, &["images", "import", &archive]).await;
    served.ctr(&ns, &["containers", "create", name, "c1", "/bin/true"]).await;
    let listed = served.ctr(&ns, &["containers", "ls"]).await;
    let line = listed.lines().find(|line| line.starts_with("c1")).unwrap();
    assert!(line.contains(name) && line.contains("io.containerd.runc.v2"), "{line}");
    let info = served.ctr(&ns, &["containers", "info", "c1"]).await;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["SnapshotKey"], "c1");
    assert_eq!(info["Spec"]["process"]["args"][0], "/bin/true");
    served.ctr(&ns, &["containers", "label", "c1", "k=v"]).await;
    let quiet = served.ctr(&ns, &["containers", "ls", "-q", "labels.k==v"]).await;
    assert_eq!(quiet.trim(), "c1");
    assert_eq!(served.ctr(&ns, &["tasks", "ls", "-q"]).await, "");
    let said = served.fails(&ns, &["tasks", "kill", "c1"]).await;
    assert!(said.contains("not found"), "{said}");
    served.ctr(&ns, &["containers", "rm", "c1"]).await;
    assert_eq!(served.ctr(&ns, &["containers", "ls", "-q"]).await, "");
    assert!(served.services(&ns).snapshots.stat("c1").await.is_err());
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events() {
    let served = Served::new().await;
    let ns = testkit::random::name("ns");
    let mut command = served.command("default", &["events"]);
    command.stdout(std::process::Stdio::piped());
    let mut listener = command.spawn().unwrap();
    let mut stdout = listener.stdout.take().unwrap();
    until("ctr listens", || served.clients.load(Ordering::Relaxed) == 1).await;
    let mut said = String::new();
    // It may be connected and not yet subscribed: something happens until it is heard.
    let mut round = 0;
    while !said.contains("/namespaces/create") {
        round += 1;
        let other = format!("{ns}-{round}");
        served.ctr("default", &["namespaces", "create", &other]).await;
        served.ctr("default", &["namespaces", "rm", &other]).await;
        let mut buffer = vec![0; 64 << 10];
        let read = stdout.read(&mut buffer);
        if let Ok(n) = tokio::time::timeout(std::time::Duration::from_millis(200), read).await {
            said.push_str(std::str::from_utf8(&buffer[..n.unwrap()]).unwrap());
        }
        assert!(round < 200, "no event was heard: {said}");
    }
    assert!(said.contains(&format!("{{\"name\":\"{ns}-")), "{said}");
    listener.kill().await.unwrap();
    until("ctr is gone", || served.clients.load(Ordering::Relaxed) == 0).await;
    served.end().await;
}
