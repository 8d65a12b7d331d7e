//! Every kind of file is damaged while no daemon runs: `fsck`, opened as the command does, names it and
//! changes nothing, and with a repair makes it again byte for byte.
#![allow(clippy::unwrap_used)]

#[path = "fsck/displaced.rs"]
mod displaced;
mod suite;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use self::displaced::{displaced, displaced_parts};
use store::{Config, LayerForm, Purpose, Store};
use store_api::{
    Finding, FsckReport, FsckRequest, Labels, Namespaces as _, Services, UnpackedImage,
};
use suite::{
    registry::{Registry, push_and_pull},
    transfer,
};
use tempfile::TempDir;
use testkit::random;
use types::Digest;

const NAMESPACE: &str = "moby";

/// A store that nothing has open.
struct Ground {
    _registry: Registry,
    directory: TempDir,
    name: String,
    image: UnpackedImage,
}

/// The database's lock is free once the last thread of the store before has ended.
async fn open(config: Config) -> (Arc<Store>, Services) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match Store::open(config.clone()).await {
            Err(error) if error.message.contains("another daemon") && Instant::now() < end => {
                tokio::task::yield_now().await;
            }
            opened => {
                let store = opened.unwrap();
                let services = store.open(NAMESPACE).unwrap();
                return (store, services);
            }
        }
    }
}

/// What `gantry containerd fsck` does.
async fn fsck(directory: &Path, repair: bool) -> store_api::Result<FsckReport> {
    let purpose = if repair { Purpose::Repair } else { Purpose::Check };
    let (root, state) = (directory.join("root"), directory.join("state"));
    let (_store, services) = open(Config { purpose, ..Config::new(root, state) }).await;
    services.extras.fsck(FsckRequest { repair, ..FsckRequest::default() }).await
}

fn finding<'r>(report: &'r FsckReport, object: &str) -> &'r Finding {
    let found = report.findings.iter().find(|finding| finding.object == object);
    found.unwrap_or_else(|| panic!("{object} is not among {:#?}", report.findings))
}

impl Ground {
    /// A store with an image that a registry has.
    async fn new() -> Self {
        let registry = Registry::start();
        let directory = tempfile::tempdir().unwrap();
        let config = suite::config(&directory.path().join("root"), &directory.path().join("state"));
        let (_store, services) = open(config).await;
        let local = format!("docker.io/library/{}:v1", random::name("img"));
        transfer::import(&services, transfer::image().oci_archive(&local)).await.unwrap();
        let reference = registry.reference();
        push_and_pull(&services, &local, &reference).await;
        let name = reference.to_string();
        let target = services.images.get(&name).await.unwrap().target;
        let image = services.extras.unpack(&target, None).await.unwrap();
        transfer::shown(&services, &image).await;
        Self { _registry: registry, directory, name, image }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Opens it as the daemon does.
    async fn serve(&self) -> (Arc<Store>, Services) {
        open(suite::config(&self.root(), &self.directory.path().join("state"))).await
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root().join("content/blobs/sha256").join(digest.hex())
    }

    /// Directories of the snapshots with their names.
    fn snapshots(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root().join("snapshots")).unwrap() {
            let path = entry.unwrap().path();
            let record: serde_json::Value =
                serde_json::from_slice(&fs::read(path.join("record.json")).unwrap()).unwrap();
            found.push((path, record["name"].as_str().unwrap().to_string()));
        }
        found
    }

    /// Directories of the image's layers, the lowest first, with the snapshots' names.
    fn layers(&self) -> Vec<(PathBuf, String)> {
        let all = self.snapshots();
        let of = |id: &Digest| all.iter().find(|(_, name)| *name == id.to_string()).unwrap();
        self.image.chain_ids.iter().map(|id| of(id).clone()).collect()
    }

    /// Without a repair nothing on disk is changed, nor is anything mounted.
    async fn look(&self) -> FsckReport {
        let all = || (everything(self.directory.path()), fs::read("/proc/self/mountinfo").unwrap());
        let before = all();
        let report = fsck(self.directory.path(), false).await.unwrap();
        let after = all();
        for (path, seen) in &before.0 {
            assert_eq!(after.0.get(path), Some(seen), "{} was changed", path.display());
        }
        assert!(before == after, "a look leaves something behind");
        report
    }

    async fn repair(&self) -> FsckReport {
        fsck(self.directory.path(), true).await.unwrap()
    }

    /// Something was damaged: it is told by this name, and repaired.
    async fn found_and_mended(&self, objects: &[String], what: &str) {
        let found = self.look().await;
        for object in objects {
            assert!(!finding(&found, object).remedy.is_empty(), "{what}");
        }
        assert!(!found.is_clean());
        let repaired = self.repair().await;
        assert!(repaired.is_clean(), "{what}: {:#?}", repaired.findings);
        for object in objects {
            assert!(finding(&repaired, object).repaired, "{what}");
        }
        assert_eq!(self.look().await.findings, [], "{what}");
    }

    /// The same, and afterwards all is as it was.
    async fn found_and_repaired(&self, objects: &[String], before: &Files, what: &str) {
        self.found_and_mended(objects, what).await;
        let after = files(&self.root());
        for (path, seen) in before {
            assert!(after.get(path) == Some(seen), "{what}: {} is not as it was", path.display());
        }
        assert_eq!(after.len(), before.len(), "{what}: there are other files now");
    }
}

/// Each file of a store and its state as stat(2) and read(2) tell it, but for access times.
fn everything(directory: &Path) -> BTreeMap<PathBuf, (Vec<i64>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(path) = open.pop() {
        let stat = path.symlink_metadata().unwrap();
        let mut contents = Vec::new();
        if stat.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if stat.is_file() {
            contents = fs::read(&path).unwrap();
        }
        let whose = [stat.mode(), stat.uid(), stat.gid()].map(i64::from);
        let mut told = vec![i64::try_from(stat.ino()).unwrap()];
        told.extend(whose);
        // What was compared lay there for a while.
        if path != directory.join("root/tmp") {
            told.extend([stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()]);
        }
        all.insert(path, (told, contents));
    }
    all
}

type Files = BTreeMap<PathBuf, (u32, u32, i64, Vec<u8>)>;

/// Everything of a store's that is not in motion: mode, owner, time of files, and contents.
fn files(root: &Path) -> Files {
    let mut all = Files::new();
    let mut open =
        ["content/blobs", "snapshots", "records", "l"].map(|name| root.join(name)).to_vec();
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let mut contents = Vec::new();
            if metadata.is_dir() {
                open.push(path.clone());
            } else if metadata.is_file() {
                contents = fs::read(&path).unwrap();
            }
            // The time of what is in a layer is the layer's.
            let inside = path.components().any(|part| part.as_os_str() == "fs");
            let time = if inside && metadata.is_file() { metadata.mtime() } else { 0 };
            all.insert(path, (metadata.mode(), metadata.uid(), time, contents));
        }
    }
    all
}

/// Changes a byte, cuts the file, or (where that shows) removes it.
fn damage(path: &Path, may_go: bool) -> &'static str {
    let mut bytes = fs::read(path).unwrap();
    let end = u32::try_from(bytes.len()).unwrap();
    let at = usize::try_from(random::number(0..end)).unwrap();
    match random::number(0..if may_go { 3 } else { 2 }) {
        0 => {
            bytes[at] ^= u8::try_from(random::number(1..256)).unwrap();
            // In place: names of the same file see it too.
            fs::write(path, bytes).unwrap();
            "changed"
        }
        1 => {
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(at as u64).unwrap();
            "cut"
        }
        _ => {
            fs::remove_file(path).unwrap();
            "removed"
        }
    }
}

async fn nothing_wrong() {
    let ground = Ground::new().await;
    let report = ground.look().await;
    assert_eq!(report.findings, []);
    assert_eq!((report.blobs, report.snapshots, report.images), (5, 3, 1));
    assert!(report.bytes > 1000 && report.is_clean());
    // A container's own layer, a build's, and what is in work are nothing wrong.
    let top = ground.image.chain_ids.last().unwrap().to_string();
    let (store, services) = ground.serve().await;
    let snapshots = &services.snapshots;
    let mounts = snapshots.prepare("work", Some(&top), Labels::new()).await.unwrap();
    suite::snapshots::mounted(&mounts, suite::snapshots::scramble);
    let request = FsckRequest::default();
    assert_eq!(services.extras.fsck(request.clone()).await.unwrap().findings, []);
    snapshots.commit("made", "work", Labels::new()).await.unwrap();
    snapshots.prepare("more", Some("made"), Labels::new()).await.unwrap();
    assert_eq!(services.extras.fsck(request).await.unwrap().findings, []);
    drop((store, services));
    assert_eq!(ground.look().await.findings, []);
    assert_eq!(ground.repair().await.findings, []);
}

/// Where there is no store none is made, whatever else is there.
async fn no_store() {
    let directory = tempfile::tempdir().unwrap();
    let (root, state) = (directory.path().join("root"), directory.path().join("state"));
    let config = Config { purpose: Purpose::Check, ..Config::new(&root, &state) };
    let refused = async |told: &str| {
        let before = everything(directory.path());
        for purpose in [Purpose::Check, Purpose::Repair] {
            let opened = Store::open(Config { purpose, ..config.clone() }).await;
            let error = opened.err().unwrap();
            assert!(error.is_not_found() && error.message.contains(told), "{error}");
            assert!(error.message.contains(root.to_str().unwrap()), "{error}");
        }
        assert!(everything(directory.path()) == before, "something was changed");
    };
    refused("no store is in").await;
    // Somebody else's things.
    for name in ["tmp", "content/blobs/sha256", "snapshots", "records"] {
        fs::create_dir_all(root.join(name)).unwrap();
        refused("no store is in").await;
    }
    fs::remove_dir_all(root.join("content")).unwrap();
    fs::write(root.join("meta.db"), random::bytes(100)).unwrap();
    refused("no store is in").await;
    // A daemon's data root.
    drop(open(suite::config(&root.join("store"), &directory.path().join("of"))).await);
    refused(&format!("one is in {}", root.join("store").display())).await;
    // Nor is one repaired that was opened for a look.
    fs::remove_dir_all(&root).unwrap();
    drop(open(suite::config(&root, &state)).await);
    let (_store, services) = open(config).await;
    let request = FsckRequest { repair: true, ..FsckRequest::default() };
    suite::assert_kind(services.extras.fsck(request).await, types::ErrorKind::FailedPrecondition);
}

async fn blobs() {
    let ground = Ground::new().await;
    let before = files(&ground.root());
    let image = &ground.image;
    for blob in image.layers.iter().chain([&image.manifest, &image.config]) {
        for _ in 0..3 {
            let how = damage(&ground.blob(&blob.digest), true);
            let what = format!("a blob of type {} {how}", blob.media_type);
            let object = format!("content {}", blob.digest);
            ground.found_and_repaired(&[object], &before, &what).await;
        }
    }
    // All at once.
    let mut objects = Vec::new();
    for blob in image.layers.iter().chain([&image.manifest, &image.config]) {
        damage(&ground.blob(&blob.digest), true);
        objects.push(format!("content {}", blob.digest));
    }
    ground.found_and_repaired(&objects, &before, "all blobs").await;
    let (_store, services) = ground.serve().await;
    let shown = transfer::shown(&services, image).await;
    assert!(shown.contains_key(Path::new("old/b")));
}

/// The records of blobs that were lost at a start: the image tells what is missing.
async fn lost_content() {
    let ground = Ground::new().await;
    let lost = ground.image.layers[0].digest.clone();
    let (store, services) = ground.serve().await;
    services.content.delete(&lost).await.unwrap();
    drop((store, services));
    let report = ground.look().await;
    let image = finding(&report, &format!("image {NAMESPACE}/{}", ground.name));
    assert!(image.problem.contains(&lost.to_string()), "{image:?}");
    assert!(ground.repair().await.is_clean());
    let (store, services) = ground.serve().await;
    services.extras.collect_garbage().await.unwrap();
    assert_eq!(Digest::sha256(suite::get(&services, &lost).await), lost);
    drop((store, services));
    assert_eq!(ground.look().await.findings, []);
}

async fn layers() {
    let ground = Ground::new().await;
    let before = files(&ground.root());
    let names: &[&str] = match suite::forms::form() {
        LayerForm::Index => &["layer.tar", "layer.toc", "index"],
        _ => &[],
    };
    for (directory, key) in ground.layers() {
        let object = format!("snapshot {NAMESPACE}/{key}");
        for name in names {
            let path = directory.join(name);
            if path.exists() {
                let how = damage(&path, *name != "index");
                let what = format!("{name} {how}");
                ground.found_and_repaired(std::slice::from_ref(&object), &before, &what).await;
            }
        }
        if !names.is_empty() {
            continue;
        }
        for round in 0..8 {
            let Some(what) = spoil(&directory.join("fs"), round) else { continue };
            ground.found_and_repaired(std::slice::from_ref(&object), &before, what).await;
        }
        fs::remove_dir_all(directory.join("fs")).unwrap();
        ground.found_and_repaired(&[object], &before, "fs removed").await;
    }
}

/// Damages an extracted layer.
fn spoil(root: &Path, round: u32) -> Option<&'static str> {
    let mut all = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_dir() {
                open.push(path);
            } else if metadata.is_file() && metadata.len() > 0 {
                all.push(path);
            }
        }
    }
    let n = u32::try_from(all.len()).unwrap();
    let file = &all[usize::try_from(random::number(0..n)).unwrap()];
    let mtime = file.metadata().unwrap().modified().unwrap();
    let mode = file.metadata().unwrap().permissions().mode();
    match round {
        6 | 7 => {
            let directory = file.parent().filter(|parent| *parent != root)?;
            let mode = directory.metadata().unwrap().permissions().mode();
            if round == 7 {
                std::os::unix::fs::chown(directory, None, Some(4711)).unwrap();
                return Some("a directory's group changed");
            }
            fs::set_permissions(directory, fs::Permissions::from_mode(mode ^ 0o1001)).unwrap();
            Some("a directory's mode changed")
        }
        0 => {
            let mut bytes = fs::read(file).unwrap();
            bytes[0] ^= 1;
            fs::write(file, bytes).unwrap();
            fs::File::open(file).unwrap().set_modified(mtime).unwrap();
            Some("a file's data changed")
        }
        1 => {
            fs::set_permissions(file, fs::Permissions::from_mode(mode ^ 0o11)).unwrap();
            Some("a file's mode changed")
        }
        2 => {
            fs::remove_file(file).unwrap();
            Some("a file removed")
        }
        3 => {
            fs::write(file.with_file_name(random::name("new")), "x").unwrap();
            Some("a file added")
        }
        4 => {
            std::os::unix::fs::chown(file, Some(12345), None).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
            Some("a file's owner changed")
        }
        _ => {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(7);
            if mtime == time {
                return None;
            }
            fs::File::open(file).unwrap().set_modified(time).unwrap();
            Some("a file's time changed")
        }
    }
}

/// Directories that are gone, with all that is in them, and all blobs.
async fn gone() {
    let ground = Ground::new().await;
    let before = files(&ground.root());
    let layers = ground.layers();
    let objects: Vec<String> =
        layers.iter().map(|(_, key)| format!("snapshot {NAMESPACE}/{key}")).collect();
    for ((directory, _), object) in layers.iter().zip(&objects) {
        fs::remove_dir_all(directory).unwrap();
        let object = std::slice::from_ref(object);
        // An index is made when it is needed.
        let before: Files = before.clone().into_iter().filter(|(p, _)| !is_index(p)).collect();
        let what = directory.display().to_string();
        ground.found_and_mended(object, &what).await;
        let after: Files =
            files(&ground.root()).into_iter().filter(|(p, _)| !is_index(p)).collect();
        assert!(before == after, "{what}");
    }
    for (directory, _) in &layers {
        fs::remove_dir_all(directory).unwrap();
    }
    fs::remove_dir_all(ground.root().join("content/blobs/sha256")).unwrap();
    ground.found_and_mended(&objects, "all layers and blobs").await;
    let (_store, services) = ground.serve().await;
    let shown = transfer::shown(&services, &ground.image).await;
    assert!(shown.contains_key(Path::new("old/b")));
}

fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "index")
}

/// What a container wrote outlives the loss and the repair of the layers below it.
async fn written_on_lost_layers() {
    let ground = Ground::new().await;
    let top = ground.image.chain_ids.last().unwrap().to_string();
    let (store, services) = ground.serve().await;
    let prepared = services.snapshots.prepare("work", Some(&top), Labels::new()).await.unwrap();
    let text = random::token(40);
    let written = text.clone();
    suite::snapshots::mounted(&prepared, move |root| fs::write(root.join("mine"), written));
    services.snapshots.prepare("bare", Some(&top), Labels::new()).await.unwrap();
    drop((store, services));
    let named = |key: &str| {
        let all = ground.snapshots();
        all.into_iter().find(|(_, name)| name == key).unwrap().0
    };
    let (work, bare) = (named("work"), named("bare"));
    let before = everything(&work);
    for (directory, key) in ground.layers() {
        fs::remove_dir_all(&directory).unwrap();
        let object = format!("snapshot {NAMESPACE}/{key}");
        ground.found_and_mended(&[object], "a layer below").await;
        assert!(everything(&work) == before, "what was written has changed");
    }
    // That itself cannot be had from anywhere.
    fs::remove_dir_all(&bare).unwrap();
    let object = format!("snapshot {NAMESPACE}/bare");
    assert!(finding(&ground.look().await, &object).remedy.contains("remove the container"));
    assert!(!finding(&ground.repair().await, &object).repaired);
    assert!(everything(&work) == before, "what was written has changed");
    let (_store, services) = ground.serve().await;
    let mounts = services.snapshots.mounts("work").await.unwrap();
    let found = suite::snapshots::mounted(&mounts, |root| {
        Ok((fs::read_to_string(root.join("mine"))?, root.join("old/b").exists()))
    });
    assert_eq!(found, (text, true));
}

/// A database that is gone: the records beside it are looked at, and it is made from them.
async fn database() {
    let ground = Ground::new().await;
    let object = format!("database {}", ground.root().join("meta.db").display());
    for (how, damaged) in [("gone", false), ("empty", false), ("garbage", true), ("cut", true)] {
        let path = ground.root().join("meta.db");
        let bytes = path.metadata().unwrap().len();
        match how {
            "gone" => fs::remove_file(&path).unwrap(),
            "garbage" => fs::write(&path, random::bytes(9000)).unwrap(),
            _ => {
                let end = if how == "cut" { bytes / 2 + 7 } else { 0 };
                fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(end).unwrap();
            }
        }
        // It is not for a look to remove it.
        let blob = ground.blob(&ground.image.layers[0].digest);
        let mut bytes = fs::read(&blob).unwrap();
        bytes[9] ^= 1;
        fs::write(&blob, bytes).unwrap();
        ground.look().await;
        let report = ground.look().await;
        assert_eq!((report.snapshots, report.images), (3, 1));
        assert!(!finding(&report, &object).repaired);
        let repaired = ground.repair().await;
        assert!(finding(&repaired, &object).repaired && repaired.is_clean(), "{how}");
        assert_eq!(ground.look().await.findings, [], "{how}");
        assert!(!ground.root().join("meta.rebuilding").exists(), "{how}");
        let aside = |path: &PathBuf| path.to_string_lossy().contains("meta.damaged-");
        let entries = fs::read_dir(ground.root()).unwrap().map(|entry| entry.unwrap().path());
        let aside: Vec<PathBuf> = entries.filter(aside).collect();
        assert_eq!(aside.len(), usize::from(damaged), "{how}");
        for path in aside {
            let problem = &finding(&repaired, &object).problem;
            assert!(problem.contains(path.file_name().unwrap().to_str().unwrap()), "{problem}");
            fs::remove_file(path).unwrap();
        }
        // The daemon has all of it.
        let (store, services) = ground.serve().await;
        services.extras.collect_garbage().await.unwrap();
        assert_eq!(services.images.list(&[]).await.unwrap().len(), 1, "{how}");
        let shown = transfer::shown(&services, &ground.image).await;
        assert!(shown.contains_key(Path::new("old/b")), "{how}");
        drop((store, services));
        assert_eq!(ground.look().await.findings, []);
    }
}

/// A mount in a mount namespace that only another process is in.
struct Elsewhere(Child);

impl Elsewhere {
    fn mount(options: &str) -> Self {
        let script = "mount -t overlay -o \"$0\" overlay /mnt && echo mounted && read end";
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec", script, options])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n");
        Self(child)
    }

    fn end(mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

/// Nothing is exchanged below those that have it mounted, whoever they are and wherever.
async fn in_use() {
    if suite::forms::form() != LayerForm::Directories {
        return;
    }
    let ground = Ground::new().await;
    let (directory, key) = ground.layers().swap_remove(0);
    let top = ground.image.chain_ids.last().unwrap().to_string();
    let (store, services) = ground.serve().await;
    let mounts = services.snapshots.prepare("user", Some(&top), Labels::new()).await.unwrap();
    spoil(&directory.join("fs"), 2);
    let object = format!("snapshot {NAMESPACE}/{key}");
    // A daemon knows who could mount it.
    let request = FsckRequest { repair: true, ..FsckRequest::default() };
    let report = services.extras.fsck(request).await.unwrap();
    let refused = finding(&report, &object);
    assert!(!refused.repaired && refused.remedy.contains("in use by \"user\""), "{refused:?}");
    drop((store, services));
    let elsewhere = Elsewhere::mount(&mounts[0].options.join(","));
    let inode = directory.join("fs").metadata().unwrap().ino();
    let report = ground.repair().await;
    let refused = finding(&report, &object);
    assert!(!refused.repaired && refused.remedy.contains("the mount at /mnt"), "{refused:?}");
    assert_eq!(directory.join("fs").metadata().unwrap().ino(), inode);
    elsewhere.end();
    ground.found_and_mended(&[object], "nobody uses it any more").await;
}

/// Nothing counts as repaired, and nothing takes the place of anything, before it is on the disk.
async fn sync_fails() {
    let ground = Ground::new().await;
    let (directory, key) = ground.layers().swap_remove(0);
    let path = match suite::forms::form() {
        LayerForm::Index => directory.join("layer.toc"),
        _ => directory.join("fs"),
    };
    if path.is_dir() {
        spoil(&path, 2);
    } else {
        damage(&path, false);
    }
    let inode = path.metadata().unwrap().ino();
    faults::arm("records.sync:1+:eio").unwrap();
    let outcome = fsck(ground.directory.path(), true).await;
    assert!(faults::disarm() > 0);
    let error = outcome.err().unwrap();
    assert!(error.message.contains("syncfs"), "{error}");
    if path.is_dir() {
        assert_eq!(path.metadata().unwrap().ino(), inode);
        ground.found_and_mended(&[format!("snapshot {NAMESPACE}/{key}")], "afterwards").await;
    }
}

/// What cannot be read for want of descriptors is nothing that is damaged.
async fn no_descriptors() {
    let ground = Ground::new().await;
    let before = files(&ground.root());
    faults::arm("blob.verify:1+:emfile").unwrap();
    let report = ground.repair().await;
    assert!(faults::disarm() > 0);
    let blob = finding(&report, &format!("content {}", ground.image.layers[0].digest));
    assert!(blob.problem.contains("cannot be read") && !blob.repaired, "{blob:?}");
    assert!(!ground.root().join("damaged").exists());
    assert!(files(&ground.root()) == before);
    // A sector that is bad is fetched again.
    faults::arm("blob.verify:1:eio,blob.verify:6:eio").unwrap();
    let report = ground.repair().await;
    assert_eq!(faults::disarm(), 2);
    assert_eq!(report.findings.len(), 1);
    assert!(report.findings[0].repaired && report.findings[0].problem.contains("cannot be read"));
    assert_eq!(ground.look().await.findings, []);
}

async fn records() {
    let ground = Ground::new().await;
    let before = files(&ground.root());
    let image: Vec<PathBuf> = fs::read_dir(ground.root().join("records/images"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(image.len(), 1);
    let mut all = vec![(image[0].clone(), format!("record images/{NAMESPACE}/{}", ground.name))];
    for (directory, key) in ground.layers() {
        all.push((directory.join("record.json"), format!("record snapshots/{NAMESPACE}/{key}")));
    }
    for (path, object) in all {
        let how = damage(&path, true);
        ground.found_and_repaired(&[object], &before, &format!("a record {how}")).await;
    }
}

/// What belongs to nothing is named, and left to its owner.
async fn strays() {
    let ground = Ground::new().await;
    let root = ground.root();
    let places = [
        root.join("snapshots/4711"),
        root.join(random::name("mine")),
        root.join("content/blobs/sha256").join(random::name("x")),
        root.join("records/images").join(format!("{}.json", random::name("r"))),
    ];
    fs::create_dir(&places[0]).unwrap();
    for path in &places[1..] {
        fs::write(path, "x").unwrap();
    }
    let link = root.join("l/4711");
    std::os::unix::fs::symlink("../snapshots/4712/fs", &link).unwrap();
    assert_eq!(ground.look().await.findings.len(), places.len() + 1);
    let report = ground.repair().await;
    for path in &places {
        assert!(!finding(&report, &path.display().to_string()).repaired, "{path:?}");
        assert!(path.exists());
    }
    let link_finding = finding(&report, &link.display().to_string());
    assert!(link_finding.repaired && !link.is_symlink());
    assert_eq!(report.findings.len(), places.len() + 1);
}

/// Without a registry that has it, a damaged blob is moved aside, and comes with the image again.
async fn moved_aside() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let config = suite::config(&root, &directory.path().join("state"));
    let name = format!("127.0.0.1:1/{}:v1", random::name("img"));
    let archive = transfer::image().oci_archive(&name);
    let mut copies = Vec::new();
    for round in 0..2 {
        let (store, services) = open(config.clone()).await;
        let target = transfer::import(&services, archive.clone()).await.unwrap()[0].target.clone();
        let image = services.extras.unpack(&target, None).await.unwrap();
        let digest = &image.layers[2].digest;
        assert_eq!(Digest::sha256(suite::get(&services, digest).await), *digest);
        drop((store, services));
        let blob = root.join("content/blobs/sha256").join(digest.hex());
        let mut bytes = fs::read(&blob).unwrap();
        bytes[20 + round] ^= 4;
        fs::write(&blob, &bytes).unwrap();
        let object = format!("content {digest}");
        // One that cannot be read stays, here or nowhere.
        faults::arm("blob.verify:1+:emfile").unwrap();
        fsck(directory.path(), true).await.unwrap();
        assert!(faults::disarm() > 0 && blob.exists());
        let report = fsck(directory.path(), true).await.unwrap();
        assert!(!report.is_clean() && !finding(&report, &object).repaired);
        assert!(!blob.exists());
        let end = ["", ".1"][round];
        copies.push((root.join("damaged").join(format!("sha256-{}{end}", digest.hex())), bytes));
        for (aside, bytes) in &copies {
            assert_eq!(fs::read(aside).unwrap(), *bytes);
        }
    }
    let (store, services) = open(config).await;
    transfer::import(&services, archive).await.unwrap();
    drop((store, services));
    fs::remove_dir_all(root.join("damaged")).unwrap();
    assert_eq!(fsck(directory.path(), false).await.unwrap().findings, []);
}

/// A registry that does not answer costs its time-out once, whatever it should have.
async fn a_dead_registry_is_asked_once() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let (store, services) = open(suite::config(&root, &directory.path().join("state"))).await;
    let name = format!("127.0.0.1:1/{}:v1", random::name("img"));
    let image = transfer::image();
    transfer::import(&services, image.oci_archive(&name)).await.unwrap();
    drop((store, services));
    for layer in &image.layers {
        let digest = Digest::sha256(&layer.blob);
        let blob = root.join("content/blobs/sha256").join(digest.hex());
        let mut bytes = layer.blob.clone();
        bytes[10] ^= 1;
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, bytes).unwrap();
    }
    let report = fsck(directory.path(), true).await.unwrap();
    let told = |text: &str| report.findings.iter().filter(|one| one.remedy.contains(text)).count();
    let all =
        (told("connection refused"), told("127.0.0.1:1 did not answer, and is not asked again"));
    assert_eq!(all.0, 1, "{report:#?}");
    // A packed layer's tar has the one that is not compressed.
    assert!(all.1 >= 1, "{report:#?}");
}

in_every_form! {
    nothing_wrong,
    displaced,
    displaced_parts,
    a_dead_registry_is_asked_once,
    no_store,
    blobs,
    lost_content,
    layers,
    gone,
    written_on_lost_layers,
    database,
    in_use,
    sync_fails,
    no_descriptors,
    records,
    strays,
    moved_aside,
}
