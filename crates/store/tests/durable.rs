//! The store after its process was killed, after a power cut, and with its database lost or damaged.
#![allow(clippy::unwrap_used)]

mod suite;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};
use store::{Config, Store};
use store_api::{Descriptor, Namespaces as _, Services};
use suite::{labels, transfer};
use testkit::random;

const ROOT: &str = "STORE_VICTIM_ROOT";
const NAMESPACE: &str = "moby";

fn config(root: &Path) -> Config {
    suite::config(&root.join("root"), &root.join("state"))
}

async fn open(root: &Path) -> (Arc<Store>, Services) {
    let store = Store::open(config(root)).await.unwrap();
    let services = store.open(NAMESPACE).unwrap();
    (store, services)
}

/// Not a test of its own: the process that the others kill. It makes images and containers for as
/// long as it lives, and names each one only once the store has acknowledged it.
#[test]
fn victim() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (_store, services) = open(&PathBuf::from(root)).await;
        loop {
            let image = transfer::image();
            let name = format!("docker.io/library/{}:v1", random::name("img"));
            let found = transfer::import(&services, image.oci_archive(&name)).await.unwrap();
            say("image", &name);
            let unpacked = services.extras.unpack(&found[0].target, None).await.unwrap();
            let top = unpacked.chain_ids.last().unwrap().to_string();
            for (kind, marks) in [("kept", ""), ("volatile", "true")] {
                let id = random::name(kind);
                let marks = labels(&[("gantry.io/volatile", marks), ("x", "y")]);
                services.snapshots.prepare(&id, Some(&top), marks.clone()).await.unwrap();
                services.containers.create(suite::container(&id, marks)).await.unwrap();
                say(kind, &id);
            }
            let gone = random::name("gone");
            services.snapshots.prepare(&gone, None, labels(&[])).await.unwrap();
            services.snapshots.remove(&gone).await.unwrap();
            say("gone", &gone);
        }
    });
}

#[allow(clippy::print_stdout)]
fn say(kind: &str, name: &str) {
    println!("\nsaid {kind} {name}");
}

struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts a victim, kills it after it has said `count` things; answers all that it said.
fn killed_after(root: &Path, count: usize) -> Vec<(String, String)> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["victim", "--exact", "--nocapture"])
        .env(ROOT, root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut victim = Victim(child);
    let mut output = BufReader::new(victim.0.stdout.take().unwrap());
    let mut said = Vec::new();
    let mut line = String::new();
    while said.len() < count {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the victim ended by itself");
        said.extend(parse(&line));
    }
    victim.0.kill().unwrap();
    victim.0.wait().unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    // The last line may be cut short.
    let whole = rest.rfind('\n').map_or("", |end| &rest[..end]);
    said.extend(whole.lines().filter_map(parse));
    said
}

fn parse(line: &str) -> Option<(String, String)> {
    let (kind, name) = line.trim().strip_prefix("said ")?.split_once(' ')?;
    Some((kind.to_string(), name.to_string()))
}

/// The image is there with all its content, and its layers are snapshots or become so.
async fn assert_whole(services: &Services, name: &str) {
    let image = services.images.get(name).await.unwrap();
    let unpacked = services.extras.unpack(&image.target, None).await.unwrap();
    for blob in unpacked.layers.iter().chain([&unpacked.manifest, &unpacked.config]) {
        assert_content(services, blob).await;
    }
    let tree = transfer::shown(services, &unpacked).await;
    assert!(tree.contains_key(Path::new("old/b")) && !tree.contains_key(Path::new("old/a")));
}

async fn assert_content(services: &Services, blob: &Descriptor) {
    let bytes = suite::get(services, &blob.digest).await;
    assert_eq!(types::Digest::sha256(bytes), blob.digest);
}

/// A snapshot and its container are there, or neither is.
async fn assert_container(services: &Services, id: &str, there: bool) {
    assert_eq!(services.containers.get(id).await.is_ok(), there, "container {id}");
    assert_eq!(services.snapshots.stat(id).await.is_ok(), there, "snapshot {id}");
    if there {
        let mounts = services.snapshots.mounts(id).await.unwrap();
        assert!(suite::snapshots::tree(&mounts).contains_key(Path::new("old/b")));
    }
}

fn directories(root: &Path) -> usize {
    std::fs::read_dir(root.join("root/snapshots")).unwrap().count()
}

/// Garbage collection leaves exactly as many directories as snapshots.
async fn assert_no_leak(root: &Path, services: &Services) {
    services.extras.collect_garbage().await.unwrap();
    let snapshots = services.snapshots.list(&[]).await.unwrap().len();
    assert_eq!(directories(root), snapshots);
    assert_eq!(std::fs::read_dir(root.join("root/tmp")).unwrap().count(), 0);
}

async fn killed() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path();
    let mut all = Vec::new();
    for _ in 0..6 {
        let count = usize::try_from(random::number(1..14)).unwrap();
        all.extend(killed_after(root, count));
        let (_store, services) = open(root).await;
        for (kind, name) in &all {
            match kind.as_str() {
                "image" => assert_whole(&services, name).await,
                "kept" | "volatile" => assert_container(&services, name, true).await,
                _ => assert!(services.snapshots.stat(name).await.is_err()),
            }
        }
        assert_no_leak(root, &services).await;
    }
}

/// What a power cut leaves: the state directory is gone, and with it what was not yet durable.
async fn power_cut() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path();
    for _ in 0..3 {
        let count = usize::try_from(random::number(4..14)).unwrap();
        let said = killed_after(root, count);
        // Mounts go with the power too.
        for entry in std::fs::read_dir(root.join("state/layers")).into_iter().flatten() {
            let point = entry.unwrap().path();
            assert!(Command::new("umount").arg("-l").arg(point).status().unwrap().success());
        }
        std::fs::remove_dir_all(root.join("state")).unwrap();
        let (_store, services) = open(root).await;
        for (kind, name) in &said {
            match kind.as_str() {
                "image" => assert_whole(&services, name).await,
                "volatile" => assert_container(&services, name, false).await,
                _ => {}
            }
        }
        assert_no_leak(root, &services).await;
    }
}

async fn database_lost_or_damaged() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path();
    let database = root.join("root/meta.db");
    for round in 0..3 {
        let said = killed_after(root, 8);
        {
            // A clean end makes everything durable, so that nothing hangs on the journal.
            let (store, _) = open(root).await;
            store.flush().await.unwrap();
        }
        match round {
            0 => std::fs::remove_file(&database).unwrap(),
            1 => std::fs::write(&database, random::bytes(50_000)).unwrap(),
            _ => {
                let mut bytes = std::fs::read(&database).unwrap();
                let quarter = bytes.len() / 4;
                bytes[quarter..].fill(0xa5);
                std::fs::write(&database, bytes).unwrap();
            }
        }
        let (_store, services) = open(root).await;
        for (kind, name) in &said {
            match kind.as_str() {
                "image" => assert_whole(&services, name).await,
                "kept" => assert_container(&services, name, true).await,
                _ => {}
            }
        }
        assert_no_leak(root, &services).await;
    }
}

/// A record that cannot be read as one, of a lost database the only copy: it, and all of its snapshot, are
/// kept, and `fsck` tells where.
async fn damaged_records_are_kept() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path();
    let name = |kind: &str| (random::name(kind), random::name(kind));
    let ((whole, broken), (kept, lost)) = (name("lease"), name("work"));
    let text = random::name("data");
    let id = {
        let (store, services) = open(root).await;
        for lease in [&whole, &broken] {
            services.leases.create(lease, labels(&[])).await.unwrap();
        }
        let mut ids = Vec::new();
        for key in [&kept, &lost] {
            let marks = labels(&[("gantry.io/container", key)]);
            services.snapshots.prepare(key, None, marks).await.unwrap();
            let names = std::fs::read_dir(root.join("root/snapshots")).unwrap();
            let id = names.map(|entry| entry.unwrap().file_name()).find(|id| !ids.contains(id));
            std::fs::write(upper(root, id.as_ref().unwrap()).join("file"), &text).unwrap();
            ids.push(id.unwrap());
        }
        store.flush().await.unwrap();
        ids.pop().unwrap()
    };
    let hash = types::Digest::sha256(format!("{NAMESPACE}\0{broken}"));
    let lease_file = format!("{}.json", hash.hex());
    let files = [
        root.join("root/records/leases").join(&lease_file),
        upper(root, &id).with_file_name("record.json"),
    ];
    for file in &files {
        let mut bytes = std::fs::read(file).unwrap();
        let half = bytes.len() / 2;
        bytes.truncate(half);
        std::fs::write(file, bytes).unwrap();
    }
    std::fs::remove_file(root.join("root/meta.db")).unwrap();
    std::fs::remove_file(root.join("state/journal")).unwrap();
    for _ in 0..3 {
        let (_store, services) = open(root).await;
        let leases = services.leases.list(&[]).await.unwrap();
        let leases: Vec<&str> = leases.iter().map(|lease| lease.id.as_str()).collect();
        assert_eq!(leases, [whole.as_str()]);
        services.snapshots.stat(&kept).await.unwrap();
        services.extras.collect_garbage().await.unwrap();
    }
    let aside = root.join("root/damaged");
    let data = aside.join(format!("snapshot-{}", id.display()));
    assert_eq!(std::fs::read_to_string(data.join("fs/file")).unwrap(), text);
    let file = aside.join(format!("leases-{lease_file}"));
    assert!(std::fs::metadata(&file).unwrap().len() > 0);
    let config = Config { purpose: store::Purpose::Check, ..config(root) };
    let store = Store::open(config).await.unwrap();
    let services = store.open(NAMESPACE).unwrap();
    let report = services.extras.fsck(store_api::FsckRequest::default()).await.unwrap();
    for path in [data, file] {
        let object = path.display().to_string();
        assert!(report.findings.iter().any(|finding| finding.object == object), "{report:#?}");
    }
}

/// What a damaged record alone led to is there until somebody has moved the record away.
async fn what_damaged_records_led_to_is_kept() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path();
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let (layers, blobs) = {
        let (store, services) = open(root).await;
        let image = transfer::image();
        let found = transfer::import(&services, image.oci_archive(&name)).await.unwrap();
        let unpacked = services.extras.unpack(&found[0].target, None).await.unwrap();
        store.flush().await.unwrap();
        (unpacked.chain_ids, blobs(root))
    };
    assert!(blobs > 2);
    let hash = types::Digest::sha256(format!("{NAMESPACE}\0{name}"));
    let file = format!("{}.json", hash.hex());
    std::fs::write(root.join("root/records/images").join(&file), "{").unwrap();
    std::fs::remove_file(root.join("root/meta.db")).unwrap();
    std::fs::remove_file(root.join("state/journal")).unwrap();
    for _ in 0..3 {
        let (_store, services) = open(root).await;
        assert_eq!(services.images.list(&[]).await.unwrap(), []);
        assert_eq!(services.extras.reclaimable().await.unwrap(), 0);
        assert_eq!(services.extras.collect_garbage().await.unwrap(), 0);
        for layer in &layers {
            services.snapshots.stat(&layer.to_string()).await.unwrap();
        }
        assert_eq!(self::blobs(root), blobs);
    }
    std::fs::remove_file(root.join("root/damaged").join(format!("images-{file}"))).unwrap();
    let (_store, services) = open(root).await;
    services.extras.collect_garbage().await.unwrap();
    assert_eq!(services.snapshots.list(&[]).await.unwrap(), []);
    assert_eq!(self::blobs(root), 0);
}

/// Others may pass through the state's directory, also where an earlier version closed it.
async fn a_state_that_was_closed_is_opened() {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let ground = tempfile::tempdir().unwrap();
    let state = ground.path().join("state");
    std::fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
    let _opened = open(ground.path()).await;
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o711);
}

/// The number of blobs' files.
fn blobs(root: &Path) -> usize {
    std::fs::read_dir(root.join("root/content/blobs/sha256")).unwrap().count()
}

fn upper(root: &Path, id: &std::ffi::OsStr) -> PathBuf {
    root.join("root/snapshots").join(id).join("fs")
}

/// A rebuild that is interrupted anywhere is done again by the next start, and nothing is lost: neither
/// what it had not come to, nor by a power cut, which takes the journal.
async fn rebuild_interrupted() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path();
    let said = killed_after(root, 12);
    {
        let (store, _) = open(root).await;
        store.flush().await.unwrap();
    }
    // Where a rebuild is cut off is told by what it has written by then; it must happen a few times.
    let mut interrupted = 0;
    for round in 0.. {
        if interrupted == 4 {
            break;
        }
        assert!(round < 100, "only {interrupted} of {round} rebuilds could be interrupted");
        if !root.join("root/meta.rebuilding").exists() {
            std::fs::remove_file(root.join("root/meta.db")).unwrap();
        }
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["victim", "--exact", "--nocapture"])
            .env(ROOT, root)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let victim = Victim(child);
        let bytes = |name: &str| std::fs::metadata(root.join(name)).map_or(0, |file| file.len());
        let written = u64::from(random::number(0..30_000));
        // The database is made before anything is in it: from here on any instant is one to die at.
        suite::until("the rebuild goes on", async || {
            bytes("root/meta.db") > 0
                && (bytes("state/journal") >= written
                    || !root.join("root/meta.rebuilding").exists())
        })
        .await;
        drop(victim);
        interrupted += usize::from(root.join("root/meta.rebuilding").exists());
        drop(std::fs::remove_file(root.join("state/journal")));
    }
    let (_store, services) = open(root).await;
    for (kind, name) in &said {
        match kind.as_str() {
            "image" => assert_whole(&services, name).await,
            "kept" => assert_container(&services, name, true).await,
            _ => {}
        }
    }
}

/// A container's snapshot that only its label holds, as that of one never started, and its parents
/// outlive every collection of every life of the store; what nothing holds goes.
async fn labelled_snapshots_are_not_collected() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path();
    let kept =
        ["gantry.io/container", "containerd.io/gc.root"].map(|label| (label, random::name("k")));
    let (base, loose) = (random::name("base"), random::name("loose"));
    {
        let (store, services) = open(root).await;
        let work = random::name("work");
        services.snapshots.prepare(&work, None, labels(&[])).await.unwrap();
        services.snapshots.commit(&base, &work, labels(&[])).await.unwrap();
        for (label, key) in &kept {
            let marks = labels(&[(label, key)]);
            services.snapshots.prepare(key, Some(&base), marks).await.unwrap();
        }
        services.snapshots.prepare(&loose, Some(&base), labels(&[])).await.unwrap();
        store.flush().await.unwrap();
    }
    for _ in 0..3 {
        let (_store, services) = open(root).await;
        services.extras.collect_garbage().await.unwrap();
        for key in kept.iter().map(|(_, key)| key).chain([&base]) {
            services.snapshots.stat(key).await.unwrap();
        }
        suite::assert_kind(services.snapshots.stat(&loose).await, types::ErrorKind::NotFound);
        assert_no_leak(root, &services).await;
    }
    let (_store, services) = open(root).await;
    for (_, key) in &kept {
        services.snapshots.remove(key).await.unwrap();
    }
    services.extras.collect_garbage().await.unwrap();
    suite::assert_kind(services.snapshots.stat(&base).await, types::ErrorKind::NotFound);
}

const DEEP: u64 = 5000;

/// A container's directories are as deep as it likes: their removal and their size need no more for that.
/// [`DEEP`] is beyond the longest path and the usual limit of descriptors.
async fn deep_directories() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path();
    let (_store, services) = open(root).await;
    services.snapshots.prepare("deep", None, labels(&[])).await.unwrap();
    let upper = std::fs::read_dir(root.join("root/snapshots")).unwrap().next().unwrap().unwrap();
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(upper.path().join("fs"), flags, Mode::empty()).unwrap();
    for _ in 0..DEEP {
        rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, c"d", flags, Mode::empty()).unwrap();
    }
    assert_eq!(services.snapshots.usage("deep").await.unwrap().inodes, DEEP + 1);
    services.snapshots.remove("deep").await.unwrap();
    suite::until("the trash is emptied", async || {
        std::fs::read_dir(root.join("root/trash")).unwrap().count() == 0
    })
    .await;
}

/// A power cut right after a collection does not bring back an image whose content is gone.
async fn collected_is_durably_gone() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path();
    let copy = tempfile::tempdir().unwrap();
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    {
        let (store, services) = open(root).await;
        let archive = transfer::image().oci_archive(&name);
        let target = transfer::import(&services, archive).await.unwrap()[0].target.clone();
        store.flush().await.unwrap();
        services.images.delete(&name, true).await.unwrap();
        assert!(services.content.info(&target.digest).await.is_err());
        // The disk as it is at this instant, without the journal.
        std::fs::create_dir(copy.path().join("root")).unwrap();
        for entry in std::fs::read_dir(root.join("root")).unwrap() {
            let entry = entry.unwrap();
            // What is in the trash goes meanwhile.
            if entry.file_name() != "trash" {
                let mut copying = Command::new("cp");
                copying.arg("-a").arg(entry.path()).arg(copy.path().join("root"));
                assert!(copying.status().unwrap().success(), "{}", entry.path().display());
            }
        }
    }
    let (_store, services) = open(copy.path()).await;
    suite::assert_kind(services.images.get(&name).await, types::ErrorKind::NotFound);
}

/// A second store on the same directories is refused; once the first is gone, it opens.
async fn one_at_a_time() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path();
    let first = Store::open(config(root)).await.unwrap();
    let refused = Store::open(config(root)).await;
    assert!(refused.is_err());
    drop(first);
    Store::open(config(root)).await.unwrap();
}

/// A blob that is damaged on disk is noticed where it is read as a manifest or extracted.
async fn damaged_blob() {
    let ground = tempfile::tempdir().unwrap();
    let (_store, services) = open(ground.path()).await;
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let image = transfer::image();
    transfer::import(&services, image.oci_archive(&name)).await.unwrap();
    let hex = image.manifest_digest().split_off("sha256:".len());
    let path = ground.path().join("root/content/blobs/sha256").join(hex);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[10] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let target = services.images.get(&name).await.unwrap().target;
    let outcome = services.extras.resolve_image(&target, None).await;
    suite::assert_kind(outcome, types::ErrorKind::DataLoss);
}

in_every_form! {
    killed,
    power_cut,
    database_lost_or_damaged,
    damaged_records_are_kept,
    what_damaged_records_led_to_is_kept,
    a_state_that_was_closed_is_opened,
    rebuild_interrupted,
    labelled_snapshots_are_not_collected,
    deep_directories,
    collected_is_durably_gone,
    one_at_a_time,
    damaged_blob,
}
