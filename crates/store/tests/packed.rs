//! What only layers have that are never unpacked. Each test runs in a process and a mount namespace of its
//! own, so that no mount is seen outside.
#![allow(clippy::unwrap_used)]

mod suite;

use std::{path::Path, process::Command, sync::Arc};

use store::{Config, LayerForm, Store};
use store_api::{Descriptor, Labels, Mount, Namespaces as _, Services, media_type};
use suite::{labels, snapshots::tree, transfer};
use tempfile::TempDir;
use testkit::{
    fixtures::{
        oci::{Image, Layer},
        tar::TarStream,
    },
    random,
};
use types::Digest;

fn config(root: &Path, layers: LayerForm) -> Config {
    Config { layers, ..Config::new(root.join("root"), root.join("state")) }
}

struct Ground {
    store: Arc<Store>,
    directory: TempDir,
}

impl Ground {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(config(directory.path(), LayerForm::Index)).await.unwrap();
        Self { store, directory }
    }

    fn services(&self) -> Services {
        self.store.open(&random::name("ns")).unwrap()
    }
}

/// Runs a test of this file in a mount namespace of its own.
fn alone(name: &str, work: impl AsyncFnOnce()) {
    suite::forms::in_form("index", name, work);
}

const NAMESPACE: &str = "moby";

/// The tars of packed layers, and how many snapshots have a directory.
fn files(root: &Path) -> (Vec<std::path::PathBuf>, usize) {
    let mut tars = Vec::new();
    let mut directories = 0;
    for entry in std::fs::read_dir(root.join("root/snapshots")).unwrap() {
        let path = entry.unwrap().path();
        if path.join("layer.tar").exists() {
            tars.push(path.join("layer.tar"));
        }
        directories += usize::from(path.join("fs").exists());
    }
    (tars, directories)
}

fn mounts_below(root: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(root.to_str().unwrap())).count()
}

async fn load(services: &Services) -> Descriptor {
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let found = transfer::import(services, transfer::image().oci_archive(&name)).await.unwrap();
    found[0].target.clone()
}

async fn view(services: &Services, parent: Option<&Digest>) -> Vec<Mount> {
    let parent = parent.map(ToString::to_string);
    services.snapshots.view(&random::name("v"), parent.as_deref(), labels(&[])).await.unwrap()
}

#[test]
fn layers_stay_what_they_are() {
    alone("layers_stay_what_they_are", async || {
        let ground = Ground::new().await;
        let services = ground.services();
        let target = load(&services).await;
        let (tars, directories) = files(ground.directory.path());
        assert_eq!((tars.len(), directories), (3, 0));
        let unpacked = services.extras.unpack(&target, None).await.unwrap();
        let mut digests: Vec<String> = tars
            .iter()
            .map(|tar| Digest::sha256(std::fs::read(tar).unwrap()).to_string())
            .collect();
        let mut expected: Vec<String> = unpacked.diff_ids.iter().map(Digest::to_string).collect();
        digests.sort();
        expected.sort();
        assert_eq!(digests, expected);
        // A layer's difference from what it lies on is its tar, byte for byte.
        for (i, diff_id) in unpacked.diff_ids.iter().enumerate().skip(1) {
            let request = store_api::DiffRequest {
                lower: view(&services, Some(&unpacked.chain_ids[i - 1])).await,
                upper: view(&services, Some(&unpacked.chain_ids[i])).await,
                media_type: media_type::OCI_LAYER.into(),
                ..store_api::DiffRequest::default()
            };
            assert_eq!(services.diffs.diff(request).await.unwrap().digest, *diff_id);
        }
        let top = unpacked.chain_ids.last().unwrap().to_string();
        let (own, below) = services.extras.usage_with_parents(&top).await.unwrap();
        assert!(own.bytes > 0 && below.bytes > 0);
    });
}

/// Zeros after an archive's end are a part of the layer, byte for byte, and take no room.
#[test]
fn zeros_after_the_end() {
    alone("zeros_after_the_end", async || {
        const ZEROS: usize = 48 << 20;
        let ground = Ground::new().await;
        let services = ground.services();
        let mut tar = TarStream::new().file("a", 0o644, &random::bytes(70_000)).finish();
        tar.extend(vec![0; ZEROS + usize::try_from(random::number(0..9000)).unwrap()]);
        let diff_id = Digest::sha256(&tar);
        let bytes = u64::try_from(tar.len()).unwrap();
        let below = Layer::gzipped(TarStream::new().file("b", 0o644, b"b").finish());
        let image = Image::new(vec![below, Layer::gzipped(tar)], &serde_json::json!({}));
        let name = format!("docker.io/library/{}:v1", random::name("img"));
        transfer::import(&services, image.oci_archive(&name)).await.unwrap();
        let tars = files(ground.directory.path()).0;
        let all = tars.iter().map(|path| path.metadata().unwrap());
        let metadata = all.max_by_key(|metadata| metadata.len()).unwrap();
        assert_eq!(metadata.len(), bytes);
        let used = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert!(used < 1 << 20, "{used} bytes for 70 KB");
        let target = services.images.get(&name).await.unwrap().target;
        let unpacked = services.extras.unpack(&target, None).await.unwrap();
        assert_eq!(unpacked.diff_ids[1], diff_id);
        let top = unpacked.chain_ids[1].to_string();
        assert!(services.extras.usage_with_parents(&top).await.unwrap().0.bytes < 1 << 20);
        let request = store_api::DiffRequest {
            lower: view(&services, Some(&unpacked.chain_ids[0])).await,
            upper: view(&services, Some(&unpacked.chain_ids[1])).await,
            media_type: media_type::OCI_LAYER.into(),
            ..store_api::DiffRequest::default()
        };
        assert_eq!(services.diffs.diff(request).await.unwrap().digest, diff_id);
        assert!(transfer::shown(&services, &unpacked).await.contains_key(Path::new("a")));
        let report = services.extras.fsck(store_api::FsckRequest::default()).await.unwrap();
        assert_eq!(report.findings, []);
    });
}

#[test]
fn mounts_come_and_go_with_the_store() {
    alone("mounts_come_and_go_with_the_store", async || {
        let Ground { store, directory } = Ground::new().await;
        let root = directory.path().to_path_buf();
        let services = store.open(NAMESPACE).unwrap();
        let target = load(&services).await;
        let image = services.extras.unpack(&target, None).await.unwrap();
        assert_eq!(mounts_below(&root), 0, "nothing is used yet");
        let shown = transfer::shown(&services, &image).await;
        assert_eq!(mounts_below(&root), 1);
        let top = image.chain_ids.last().unwrap().to_string();
        services.snapshots.prepare("c", Some(&top), labels(&[])).await.unwrap();
        services
            .snapshots
            .update("c", labels(&[("containerd.io/gc.root", "x")]), &[])
            .await
            .unwrap();
        drop((services, store));
        assert_eq!(mounts_below(&root), 0);

        // What can be made again is, whatever happened to it.
        for (file, damage) in
            [("layer.toc", true), ("layer.toc", false), ("index", true), ("index", false)]
        {
            for (tar, _) in files(&root).0.iter().zip(0..) {
                let path = tar.with_file_name(file);
                if damage && path.exists() {
                    let mut bytes = std::fs::read(&path).unwrap();
                    let last = u32::try_from(bytes.len()).unwrap();
                    let at = usize::try_from(random::number(0..last)).unwrap();
                    bytes[at] ^= 0x55;
                    std::fs::write(&path, bytes).unwrap();
                } else if path.exists() {
                    std::fs::remove_file(&path).unwrap();
                }
                if file == "layer.toc" && tar.with_file_name("index").exists() {
                    std::fs::remove_file(tar.with_file_name("index")).unwrap();
                }
            }
            let store = Store::open(config(&root, LayerForm::Best)).await.unwrap();
            let services = store.open(NAMESPACE).unwrap();
            assert_eq!(transfer::shown(&services, &image).await, shown, "{file}");
        }

        // What a killed store left mounted is taken away by the next, which mounts what is used.
        let left = root.join("state/layers/77");
        std::fs::create_dir(&left).unwrap();
        let status = Command::new("mount").arg("--bind").args([&root, &left]).status().unwrap();
        assert!(status.success());
        assert_eq!(mounts_below(&root), 1);
        let store = Store::open(config(&root, LayerForm::Index)).await.unwrap();
        assert_eq!(mounts_below(&root), 0);
        let services = store.open(NAMESPACE).unwrap();
        let mounts = services.snapshots.mounts("c").await.unwrap();
        assert_eq!(tree(&mounts), shown);
    });
}

#[test]
fn a_lost_tar_is_a_lost_layer() {
    alone("a_lost_tar_is_a_lost_layer", async || {
        let Ground { store, directory } = Ground::new().await;
        let root = directory.path().to_path_buf();
        let services = store.open(NAMESPACE).unwrap();
        let target = load(&services).await;
        let image = services.extras.unpack(&target, None).await.unwrap();
        let shown = transfer::shown(&services, &image).await;
        let top = image.chain_ids.last().unwrap().to_string();
        let labels = labels(&[("containerd.io/gc.root", "1")]);
        let mounts = services.snapshots.prepare("c", Some(&top), labels).await.unwrap();
        let written = random::name("text");
        let text = written.clone();
        suite::snapshots::mounted(&mounts, move |root| std::fs::write(root.join("etc/mine"), text));
        drop((services, store));
        let tar = &files(&root).0[0];
        let file = std::fs::OpenOptions::new().write(true).open(tar).unwrap();
        // A blob that it is a link of is cut with it: the image goes as a whole.
        let links = std::os::unix::fs::MetadataExt::nlink(&file.metadata().unwrap());
        if links == 1 {
            file.set_len(600).unwrap();
        } else {
            std::fs::remove_file(tar).unwrap();
        }
        let store = Store::open(config(&root, LayerForm::Index)).await.unwrap();
        let services = store.open(NAMESPACE).unwrap();
        // What was written on it waits for it.
        suite::assert_kind(services.snapshots.mounts("c").await, types::ErrorKind::NotFound);
        services.extras.collect_garbage().await.unwrap();
        let again = services.extras.unpack(&target, None).await.unwrap();
        assert_eq!(again, image);
        assert_eq!(transfer::shown(&services, &image).await, shown);
        let mounts = services.snapshots.mounts("c").await.unwrap();
        suite::snapshots::mounted(&mounts, move |root| {
            assert_eq!(std::fs::read_to_string(root.join("etc/mine"))?, written);
            Ok(())
        });
    });
}

#[test]
fn both_forms_in_one_root() {
    alone("both_forms_in_one_root", async || {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_path_buf();
        let mut seen = Vec::new();
        for (i, form) in
            [LayerForm::Directories, LayerForm::Index, LayerForm::Directories, LayerForm::Index]
                .into_iter()
                .enumerate()
        {
            let store = Store::open(config(&root, form)).await.unwrap();
            let services = store.open(NAMESPACE).unwrap();
            let target = load(&services).await;
            let image = services.extras.unpack(&target, None).await.unwrap();
            seen.push((transfer::shown(&services, &image).await, image));
            for (shown, image) in &seen {
                assert_eq!(transfer::shown(&services, image).await, *shown);
                // A layer that somebody writes, on whatever is below.
                let key = random::name("w");
                let top = image.chain_ids.last().unwrap().to_string();
                let mounts =
                    services.snapshots.prepare(&key, Some(&top), Labels::new()).await.unwrap();
                suite::snapshots::mounted(&mounts, |root| {
                    std::fs::write(root.join("etc/more"), "more")?;
                    std::fs::remove_file(root.join("new"))
                });
                let upper = tree(&mounts);
                assert!(upper.contains_key(Path::new("etc/more")));
                assert!(!upper.contains_key(Path::new("new")));
                let name = random::name("made");
                services.snapshots.commit(&name, &key, Labels::new()).await.unwrap();
                let key = random::name("x");
                let mounts =
                    services.snapshots.prepare(&key, Some(&name), Labels::new()).await.unwrap();
                assert_eq!(tree(&mounts), upper);
            }
            assert_eq!(files(&root).0.len(), i.div_ceil(2) * 3);
        }
    });
}

/// On tmpfs the kernel mounts no EROFS from files: who asks for nothing else is told why, who asks for the
/// best gets directories.
#[test]
fn tmpfs_has_no_indexes() {
    alone("tmpfs_has_no_indexes", async || {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("memory");
        std::fs::create_dir(&root).unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&root).status();
        assert!(status.unwrap().success());
        let config = |layers| config(&root, layers);
        let Err(refused) = Store::open(config(LayerForm::Index)).await else {
            panic!("a store with indexes on tmpfs");
        };
        assert!(refused.message.contains("erofs"), "{refused}");
        let store = Store::open(config(LayerForm::Best)).await.unwrap();
        let services = store.open(NAMESPACE).unwrap();
        let target = load(&services).await;
        assert_eq!(files(&root), (Vec::new(), 3));
        let image = services.extras.unpack(&target, None).await.unwrap();
        assert!(transfer::shown(&services, &image).await.contains_key(Path::new("old/b")));
    });
}

/// A blob that is a layer's tar already is not believed: its bytes are hashed.
#[test]
fn a_damaged_tar_is_not_linked() {
    alone("a_damaged_tar_is_not_linked", async || {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_path_buf();
        let store = Store::open(config(&root, LayerForm::Index)).await.unwrap();
        let services = store.open(NAMESPACE).unwrap();
        let target = load(&services).await;
        let image = services.extras.unpack(&target, None).await.unwrap();
        for key in image.chain_ids.iter().rev() {
            services.snapshots.remove(&key.to_string()).await.unwrap();
        }
        let plain = image.layers.iter().find(|layer| layer.media_type == media_type::OCI_LAYER);
        let digest = &plain.unwrap().digest;
        let path = root.join("root/content/blobs/sha256").join(digest.hex());
        let mut bytes = std::fs::read(&path).unwrap();
        // In a file's data, of which no checksum of the tar's own knows.
        let at = bytes.windows(8).position(|w| w.starts_with(b"ustar")).unwrap() % 512;
        let data = bytes.chunks(512).position(|c| !c[at..].starts_with(b"ustar") && c[0] != 0);
        let place = data.unwrap() * 512;
        bytes[place] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let outcome = services.extras.unpack(&target, None).await;
        suite::assert_kind(outcome, types::ErrorKind::DataLoss);
    });
}
