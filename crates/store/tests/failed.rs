//! What work that failed leaves: nothing that is kept for nobody, all that a next try goes on with, and
//! nothing of anybody else's.
#![allow(clippy::unwrap_used)]

mod suite;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

use serde_json::json;
use store::Store;
use store_api::{
    ImportRequest, Labels, Namespaces as _, Pulled, RegistryAccess, Services, WriteRequest,
};
use suite::{assert_kind, registry, transfer, until};
use testkit::{
    fixtures::{
        oci::{Image, Layer, MANIFEST_TYPE},
        tar::TarStream,
    },
    random,
};
use tokio::sync::mpsc;
use types::{Digest, ErrorKind, ImageRef};

const LARGE_BYTES: usize = 4 << 20;

/// A small layer, and above it a large one.
fn image() -> Image {
    let small = TarStream::new().file("small", 0o644, &random::bytes(2000)).finish();
    let large = TarStream::new().file("large", 0o644, &random::bytes(LARGE_BYTES)).finish();
    Image::new(vec![Layer::gzipped(small), Layer::plain(large)], &json!({}))
}

fn digest(layer: &Layer) -> Digest {
    Digest::sha256(&layer.blob)
}

async fn open(ground: &Path) -> (Arc<Store>, Services) {
    let config = suite::config(&ground.join("root"), &ground.join("state"));
    let mut opened = None;
    until("the store before lets go of its files", async || {
        opened = Store::open(config.clone()).await.ok();
        opened.is_some()
    })
    .await;
    let store = opened.unwrap();
    let services = store.open("here").unwrap();
    (store, services)
}

/// What an image's large layer gets from its registry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Large {
    /// Half of it, and an end.
    Half,
    /// An answer waits until this is something else.
    Held,
    Unknown,
    Whole,
}

/// A registry of one image.
#[derive(Clone)]
struct Registry {
    address: SocketAddr,
    large: Arc<(Mutex<Large>, Condvar)>,
    /// First bytes of the ranges of the large layer that were asked for.
    ranges: Arc<Mutex<Vec<usize>>>,
}

impl Registry {
    fn start(image: &Image) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self {
            address: listener.local_addr().unwrap(),
            large: Arc::new((Mutex::new(Large::Half), Condvar::new())),
            ranges: Arc::default(),
        };
        let (all, image) = (registry.clone(), image.clone());
        // It ends with the process, as those it makes do with their connections.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (all, image) = (all.clone(), image.clone());
                std::thread::spawn(move || all.serve(stream.unwrap(), &image));
            }
        });
        registry
    }

    fn set(&self, large: Large) {
        *self.large.0.lock().unwrap() = large;
        self.large.1.notify_all();
    }

    fn reference(&self) -> ImageRef {
        format!("{}/some/repo:v1", self.address).parse().unwrap()
    }

    fn serve(&self, mut stream: TcpStream, image: &Image) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
        let mut from = 0;
        for line in lines {
            let line = line.ok()?.to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(range) = line.strip_prefix("range: bytes=") {
                from = range.trim_end_matches('-').parse().unwrap();
            }
        }
        let mut answer = |status: u16, headers: &str, bytes: &[u8], all: usize| {
            let head = format!(
                "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {all}\r\n{headers}\r\n"
            );
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(bytes).ok()?;
            stream.shutdown(std::net::Shutdown::Write).ok()?;
            stream.read_to_end(&mut Vec::new()).ok().map(drop)
        };
        if path.contains("/manifests/") {
            let kind = format!("Content-Type: {MANIFEST_TYPE}\r\n");
            return answer(200, &kind, &image.manifest, image.manifest.len());
        }
        let large = &image.layers[1];
        let small = [&image.config, &image.layers[0].blob];
        let of = |blob: &[u8]| path.contains(&Digest::sha256(blob).to_string());
        if let Some(blob) = small.into_iter().find(|blob| of(blob)) {
            return answer(200, "", blob, blob.len());
        }
        if !of(&large.blob) {
            return answer(404, "", b"", 0);
        }
        self.ranges.lock().unwrap().push(from);
        let state = {
            let mut state = self.large.0.lock().unwrap();
            while *state == Large::Held {
                state = self.large.1.wait(state).unwrap();
            }
            let now = *state;
            if now == Large::Half {
                // The next one waits for the test.
                *state = Large::Held;
            }
            now
        };
        let (rest, all) = (&large.blob[from..], large.blob.len());
        let range = format!("Content-Range: bytes {from}-{}/{all}\r\n", all - 1);
        let (status, range) = if from > 0 { (206, range.as_str()) } else { (200, "") };
        match state {
            Large::Half => answer(status, range, &rest[..rest.len() / 2], rest.len()),
            Large::Unknown => answer(404, "", b"", 0),
            Large::Whole | Large::Held => answer(status, range, rest, rest.len()),
        }
    }
}

async fn pull(services: &Services, reference: &ImageRef) -> store_api::Result<Pulled> {
    registry::pull(services, reference, RegistryAccess::default(), true).await.0
}

/// A pull that fails when its small layer is made and half of the large one is here.
async fn failed_pull(
    services: &Services,
    registry: &Registry,
    meanwhile: impl AsyncFnOnce(),
) -> store_api::Error {
    registry.set(Large::Half);
    let pulling = tokio::spawn({
        let (services, reference) = (services.clone(), registry.reference());
        async move { pull(&services, &reference).await }
    });
    until("a layer and a part of the other", async || {
        assert!(!pulling.is_finished(), "the pull has ended already");
        // It comes for the rest, which is held.
        registry.ranges.lock().unwrap().len() > 1
            && services.snapshots.list(&[]).await.unwrap().len() == 1
    })
    .await;
    meanwhile().await;
    registry.set(Large::Unknown);
    pulling.await.unwrap().unwrap_err()
}

/// Files below a directory, and their bytes on disk.
fn used(directory: &Path) -> (usize, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let (mut files, mut bytes) = (0, 0);
    let mut open = vec![directory.to_path_buf()];
    while let Some(path) = open.pop() {
        // The trash is emptied meanwhile.
        for entry in std::fs::read_dir(path).into_iter().flatten() {
            let entry = entry.unwrap();
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                files += 1;
                bytes += metadata.blocks() * 512;
            }
        }
    }
    (files, bytes)
}

async fn nothing_left(services: &Services, root: &Path) {
    assert_eq!(services.content.list(&[]).await.unwrap(), []);
    assert_eq!(services.snapshots.list(&[]).await.unwrap(), []);
    assert_eq!(services.content.ingests(&[]).await.unwrap(), []);
    assert_eq!(services.extras.reclaimable().await.unwrap(), 0);
    until("the files go", async || {
        ["content", "snapshots", "trash"].iter().all(|name| used(&root.join(name)).0 == 0)
    })
    .await;
}

/// While it goes on nothing of a pull is touched; when it has failed all of it can be had back, and is
/// counted until then.
async fn pruned_after_a_failed_pull() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path().join("root");
    let (_store, services) = open(ground.path()).await;
    let registry = Registry::start(&image());
    failed_pull(&services, &registry, async || {
        let before = services.content.list(&[]).await.unwrap();
        assert_eq!(services.extras.reclaimable().await.unwrap(), 0);
        assert_eq!(services.extras.collect_garbage().await.unwrap(), 0);
        // More may have come since.
        let after = services.content.list(&[]).await.unwrap();
        assert!(before.iter().all(|blob| after.iter().any(|other| other.digest == blob.digest)));
        assert_eq!(services.snapshots.list(&[]).await.unwrap().len(), 1);
        assert_eq!(services.content.ingests(&[]).await.unwrap().len(), 1);
    })
    .await;
    let told = services.extras.reclaimable().await.unwrap();
    let on_disk = ["content", "snapshots"].map(|name| used(&root.join(name)).1);
    let ingests = services.content.ingests(&[]).await.unwrap();
    let kept: u64 = ingests.iter().map(|ingest| ingest.offset).sum();
    assert!(kept >= u64::try_from(LARGE_BYTES / 2).unwrap(), "{kept} of the large layer are kept");
    assert!(told >= kept && told <= on_disk.iter().sum(), "{told} of {on_disk:?}");
    assert_eq!(services.extras.collect_garbage().await.unwrap(), told);
    nothing_left(&services, &root).await;
}

/// The next try goes on where a failed one ended; only a prune takes that away, also after a restart.
async fn resumed_after_a_failed_pull() {
    let ground = tempfile::tempdir().unwrap();
    let (store, services) = open(ground.path()).await;
    let image = image();
    let registry = Registry::start(&image);
    failed_pull(&services, &registry, async || {}).await;
    let kept = services.content.ingests(&[]).await.unwrap();
    // A collection by itself leaves it.
    services.leases.create("l", Labels::new()).await.unwrap();
    services.leases.delete("l", true).await.unwrap();
    assert_eq!(services.content.list(&[]).await.unwrap(), []);
    assert_eq!(services.content.ingests(&[]).await.unwrap(), kept);
    drop((services, store));
    let (_store, services) = open(ground.path()).await;
    registry.set(Large::Whole);
    pull(&services, &registry.reference()).await.unwrap();
    let ranges = registry.ranges.lock().unwrap().clone();
    assert!(*ranges.last().unwrap() >= LARGE_BYTES / 2, "{ranges:?}");
    // What succeeded is not given up.
    assert_eq!(services.extras.collect_garbage().await.unwrap(), 0);
    let blob = suite::get(&services, &digest(&image.layers[1])).await;
    assert!(blob == image.layers[1].blob);
    let target = services.images.get(&registry.reference().to_string()).await.unwrap().target;
    let unpacked = services.extras.resolve_image(&target, None).await.unwrap();
    assert!(transfer::shown(&services, &unpacked).await.contains_key(Path::new("small")));
}

/// A client's unfinished write is its own for a day, but not after a restart, which has cut it off.
async fn a_clients_writes() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path().join("root");
    let (store, services) = open(ground.path()).await;
    let reference = random::name("write");
    let request = WriteRequest { reference: reference.clone(), total: 0, expected: None };
    services.content.open_writer(request).await.unwrap();
    services.content.write(&reference, 0, random::bytes(5000).into()).await.unwrap();
    assert_eq!(services.extras.reclaimable().await.unwrap(), 0);
    assert_eq!(services.extras.collect_garbage().await.unwrap(), 0);
    services.content.write(&reference, 5000, random::bytes(5000).into()).await.unwrap();
    drop((services, store));
    let (_store, services) = open(ground.path()).await;
    let told = services.extras.reclaimable().await.unwrap();
    assert!(told >= 10_000, "{told}");
    assert_eq!(services.extras.collect_garbage().await.unwrap(), told);
    nothing_left(&services, &root).await;
}

/// What a load brought goes by itself when it fails, but nothing that a client or another load brought
/// as well.
async fn a_failed_load() {
    let ground = tempfile::tempdir().unwrap();
    let root = ground.path().join("root");
    let (_store, services) = open(ground.path()).await;
    let image = image();
    // The upper layer is not what its configuration says.
    let mut layers = image.layers.clone();
    layers[1].tar = random::bytes(1024);
    let wrong = Image::new(layers, &json!({}));
    let archive = || wrong.oci_archive("docker.io/library/wrong:v1");
    assert_kind(transfer::import(&services, archive()).await, ErrorKind::DataLoss);
    until("it goes by itself", async || {
        services.content.list(&[]).await.unwrap().is_empty()
            && services.snapshots.list(&[]).await.unwrap().is_empty()
    })
    .await;
    nothing_left(&services, &root).await;

    let shared = suite::put(&services, &image.layers[0].blob, Labels::new()).await;
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let whole = image.oci_archive(&name);
    let (pieces, stream) = mpsc::channel(1);
    let (progress, mut reports) = mpsc::channel(16);
    tokio::spawn(async move { while reports.recv().await.is_some() {} });
    let loading = tokio::spawn({
        let services = services.clone();
        async move {
            let request = ImportRequest { unpack: true, ..ImportRequest::default() };
            services.transfer.import(request, stream, progress).await
        }
    });
    // All but its end, which the load waits for.
    let (most, end) = whole.split_at(whole.len() - 1024);
    pieces.send(Ok(most.to_vec().into())).await.unwrap();
    let large = digest(&image.layers[1]);
    until("the large layer is here", async || services.content.info(&large).await.is_ok()).await;
    assert_kind(transfer::import(&services, archive()).await, ErrorKind::DataLoss);
    for _ in 0..2 {
        services.extras.collect_garbage().await.unwrap();
    }
    for digest in [&shared, &large] {
        services.content.info(digest).await.unwrap();
    }
    let manifest: Digest = wrong.manifest_digest().parse().unwrap();
    assert_kind(services.content.info(&manifest).await, ErrorKind::NotFound);
    pieces.send(Ok(end.to_vec().into())).await.unwrap();
    drop(pieces);
    let loaded = loading.await.unwrap().unwrap();
    assert_eq!(loaded[0].name, name);
    services.extras.collect_garbage().await.unwrap();
    assert!(suite::get(&services, &large).await == image.layers[1].blob);
    services.images.delete(&name, true).await.unwrap();
    nothing_left(&services, &root).await;
}

in_every_form! {
    pruned_after_a_failed_pull,
    resumed_after_a_failed_pull,
    a_clients_writes,
    a_failed_load,
}
