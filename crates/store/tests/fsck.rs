//! Every kind of file is damaged: it is found by name, and made again byte for byte.
#![allow(clippy::unwrap_used)]

mod suite;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use store::{LayerForm, Store};
use store_api::{FsckReport, FsckRequest, Labels, Namespaces as _, Services, UnpackedImage};
use suite::{
    registry::{Registry, push_and_pull},
    transfer,
};
use tempfile::TempDir;
use testkit::random;
use types::Digest;

const NAMESPACE: &str = "moby";

struct Ground {
    _registry: Registry,
    directory: TempDir,
    _store: Arc<Store>,
    services: Services,
    name: String,
    image: UnpackedImage,
}

impl Ground {
    /// A store with an image that a registry has.
    async fn new() -> Self {
        let registry = Registry::start();
        let directory = tempfile::tempdir().unwrap();
        let config = suite::config(&directory.path().join("root"), &directory.path().join("state"));
        let store = Store::open(config).await.unwrap();
        let services = store.open(NAMESPACE).unwrap();
        let local = format!("docker.io/library/{}:v1", random::name("img"));
        transfer::import(&services, transfer::image().oci_archive(&local)).await.unwrap();
        let reference = registry.reference();
        push_and_pull(&services, &local, &reference).await;
        let name = reference.to_string();
        let target = services.images.get(&name).await.unwrap().target;
        let image = services.extras.unpack(&target, None).await.unwrap();
        transfer::shown(&services, &image).await;
        store.flush().await.unwrap();
        Self { _registry: registry, directory, _store: store, services, name, image }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root().join("content/blobs/sha256").join(digest.hex())
    }

    /// Directories of the image's layers, with the snapshots' names.
    fn layers(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root().join("snapshots")).unwrap() {
            let path = entry.unwrap().path();
            let record: serde_json::Value =
                serde_json::from_slice(&fs::read(path.join("record.json")).unwrap()).unwrap();
            found.push((path, record["name"].as_str().unwrap().to_string()));
        }
        assert_eq!(found.len(), self.image.layers.len());
        found
    }

    async fn look(&self, repair: bool) -> FsckReport {
        let request = FsckRequest { repair, ..FsckRequest::default() };
        self.services.extras.fsck(request).await.unwrap()
    }

    /// Something was damaged: it is told by this name, and afterwards all is as it was.
    async fn found_and_repaired(&self, objects: &[String], before: &Files, what: &str) {
        let found = self.look(false).await;
        for object in objects {
            assert!(
                found.findings.iter().any(|f| f.object == *object && !f.remedy.is_empty()),
                "{what}: {object} is not among {:#?}",
                found.findings
            );
        }
        assert!(!found.is_clean());
        let repaired = self.look(true).await;
        assert!(repaired.is_clean(), "{what}: {:#?}", repaired.findings);
        for object in objects {
            assert!(
                repaired.findings.iter().any(|f| f.object == *object && f.repaired),
                "{what}: {object} is not among {:#?}",
                repaired.findings
            );
        }
        assert_eq!(self.look(false).await.findings, [], "{what}");
        let after = files(&self.root());
        for (path, seen) in before {
            assert!(after.get(path) == Some(seen), "{what}: {} is not as it was", path.display());
        }
        assert_eq!(after.len(), before.len(), "{what}: there are other files now");
    }
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
    let report = ground.look(false).await;
    assert_eq!(report.findings, []);
    assert_eq!((report.blobs, report.snapshots, report.images), (5, 3, 1));
    assert!(report.bytes > 1000 && report.is_clean());
    // A container's own layer, a build's, and what is in work are nothing wrong.
    let top = ground.image.chain_ids.last().unwrap().to_string();
    let snapshots = &ground.services.snapshots;
    let mounts = snapshots.prepare("work", Some(&top), Labels::new()).await.unwrap();
    suite::snapshots::mounted(&mounts, suite::snapshots::scramble);
    assert_eq!(ground.look(false).await.findings, []);
    snapshots.commit("made", "work", Labels::new()).await.unwrap();
    snapshots.prepare("more", Some("made"), Labels::new()).await.unwrap();
    assert_eq!(ground.look(true).await.findings, []);
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
    let shown = transfer::shown(&ground.services, image).await;
    assert!(shown.contains_key(Path::new("old/b")));
}

/// The records of blobs that were lost at a start: the image tells what is missing.
async fn lost_content() {
    let ground = Ground::new().await;
    let lost = ground.image.layers[0].digest.clone();
    ground.services.content.delete(&lost).await.unwrap();
    let report = ground.look(false).await;
    let object = format!("image {NAMESPACE}/{}", ground.name);
    let finding = report.findings.iter().find(|f| f.object == object).unwrap();
    assert!(finding.problem.contains(&lost.to_string()), "{finding:?}");
    assert!(ground.look(true).await.is_clean());
    ground.services.extras.collect_garbage().await.unwrap();
    assert_eq!(Digest::sha256(suite::get(&ground.services, &lost).await), lost);
    assert_eq!(ground.look(false).await.findings, []);
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
        for round in 0..6 {
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

/// Nothing is exchanged below those that have it mounted.
async fn in_use() {
    if suite::forms::form() != LayerForm::Directories {
        return;
    }
    let ground = Ground::new().await;
    let top = ground.image.chain_ids.last().unwrap().to_string();
    ground.services.snapshots.prepare("user", Some(&top), Labels::new()).await.unwrap();
    let (directory, key) =
        ground.layers_of(&[ground.image.chain_ids[0].to_string()]).pop().unwrap();
    spoil(&directory.join("fs"), 2);
    let report = ground.look(true).await;
    let object = format!("snapshot {NAMESPACE}/{key}");
    let finding = report.findings.iter().find(|f| f.object == object).unwrap();
    assert!(!finding.repaired && finding.remedy.contains("in use by \"user\""), "{finding:?}");
    ground.services.snapshots.remove("user").await.unwrap();
    assert!(ground.look(true).await.is_clean());
}

impl Ground {
    fn layers_of(&self, keys: &[String]) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root().join("snapshots")).unwrap() {
            let path = entry.unwrap().path();
            let Ok(text) = fs::read(path.join("record.json")) else { continue };
            let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let name = record["name"].as_str().unwrap().to_string();
            if keys.contains(&name) {
                found.push((path, name));
            }
        }
        found
    }
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
    let report = ground.look(true).await;
    for path in &places {
        let finding = report.findings.iter().find(|f| f.object == path.display().to_string());
        assert!(finding.is_some_and(|f| !f.repaired), "{path:?} {:#?}", report.findings);
        assert!(path.exists());
    }
    let finding = report.findings.iter().find(|f| f.object == link.display().to_string()).unwrap();
    assert!(finding.repaired && !link.is_symlink());
    assert_eq!(report.findings.len(), places.len() + 1);
}

/// Without a registry that has it, a damaged blob is moved aside, and comes with the image again.
async fn moved_aside() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let store = Store::open(suite::config(&root, &directory.path().join("state"))).await.unwrap();
    let services = store.open(NAMESPACE).unwrap();
    let name = format!("127.0.0.1:1/{}:v1", random::name("img"));
    let archive = transfer::image().oci_archive(&name);
    let target = transfer::import(&services, archive.clone()).await.unwrap()[0].target.clone();
    let image = services.extras.unpack(&target, None).await.unwrap();
    let digest = &image.layers[2].digest;
    let blob = root.join("content/blobs/sha256").join(digest.hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[20] ^= 4;
    fs::write(&blob, &bytes).unwrap();
    let request = FsckRequest { repair: true, ..FsckRequest::default() };
    let report = services.extras.fsck(request.clone()).await.unwrap();
    assert!(!report.is_clean());
    let object = format!("content {digest}");
    let finding = report.findings.iter().find(|f| f.object == object).unwrap();
    assert!(!finding.repaired, "{finding:?}");
    let aside = root.join("damaged").join(format!("sha256-{}", digest.hex()));
    assert_eq!(fs::read(&aside).unwrap(), bytes);
    transfer::import(&services, archive).await.unwrap();
    assert_eq!(Digest::sha256(suite::get(&services, digest).await), *digest);
    fs::remove_file(aside).unwrap();
    assert_eq!(services.extras.fsck(request).await.unwrap().findings, []);
}

in_every_form! {
    nothing_wrong,
    blobs,
    lost_content,
    layers,
    in_use,
    records,
    strays,
    moved_aside,
}
