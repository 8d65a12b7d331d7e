//! What has to hold after any death: see [`whole`] and [`clean`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use store::Store;
use store_api::{Namespaces as _, Services};
use types::Digest;

use crate::{
    NAMESPACE,
    scenario::{Input, Step},
};

/// For what goes on in the background.
const LIMIT: Duration = Duration::from_secs(10);

/// What a directory holds, by name.
pub fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory);
    let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Everything acknowledged is there, and what was not is whole or absent; done again, every step
/// succeeds.
pub async fn whole(services: &Services, input: &Input, acknowledged: &BTreeSet<Step>) {
    for step in Step::ALL {
        let whole = input.is_whole(services, step).await;
        assert!(whole || !acknowledged.contains(&step), "{step:?} was acknowledged and is lost");
    }
    for step in Step::ALL {
        if let Err(error) = input.run(services, step).await {
            panic!("{step:?} fails when it is done again: {error}");
        }
    }
    for step in Step::ALL {
        assert!(input.is_whole(services, step).await, "{step:?}, done again, has left nothing");
    }
}

/// Files and records agree, once garbage is collected: no directory, no blob, no record file, no
/// unfinished write, no link and no mount that nothing leads to.
pub async fn clean(ground: &Path, store: &Store, services: &Services) {
    services.extras.collect_garbage().await.unwrap();
    store.flush().await.unwrap();
    let root = ground.join("root");
    emptied(&root.join("trash"));
    let expected = ["content", "l", "meta.db", "records", "snapshots", "tmp", "trash"];
    assert_eq!(names(&root), expected.map(String::from).into(), "the data root");
    assert_eq!(names(&root.join("tmp")), BTreeSet::new(), "tmp");
    let content = services.content.list(&[]).await.unwrap();
    let blobs: BTreeSet<String> =
        content.iter().map(|info| info.digest.hex().to_string()).collect();
    assert_eq!(names(&root.join("content/blobs/sha256")), blobs, "blobs and their records");
    let ingests = services.content.ingests(&[]).await.unwrap();
    let lost = ingests.iter().find(|ingest| ingest.reference.starts_with("gantry-anonymous-"));
    assert_eq!(lost, None, "nobody can go on with it");
    assert_eq!(names(&root.join("content/ingest")).len(), ingests.len(), "unfinished writes");
    record_files(&root, services).await;
    snapshots(ground, services).await;
}

/// The trash is emptied in the background.
fn emptied(trash: &Path) {
    let end = Instant::now() + LIMIT;
    while !names(trash).is_empty() {
        assert!(Instant::now() < end, "the trash keeps {:?}", names(trash));
        std::thread::yield_now();
    }
}

async fn record_files(root: &Path, services: &Services) {
    let file =
        |name: &str| format!("{}.json", Digest::sha256(format!("{NAMESPACE}\0{name}")).hex());
    let images = services.images.list(&[]).await.unwrap();
    let containers = services.containers.list(&[]).await.unwrap();
    let leases = services.leases.list(&[]).await.unwrap();
    let wanted: BTreeMap<&str, BTreeSet<String>> = [
        ("images", images.iter().map(|image| file(&image.name)).collect()),
        ("containers", containers.iter().map(|container| file(&container.id)).collect()),
        ("leases", leases.iter().map(|lease| file(&lease.id)).collect()),
    ]
    .into();
    for (table, wanted) in wanted {
        assert_eq!(names(&root.join("records").join(table)), wanted, "record files of {table}");
    }
}

async fn snapshots(ground: &Path, services: &Services) {
    let root = ground.join("root");
    let listed = services.snapshots.list(&[]).await.unwrap();
    // The collector's own thread may be about to put some into the trash.
    let end = Instant::now() + LIMIT;
    let present = loop {
        let present = names(&root.join("snapshots"));
        if present.len() == listed.len() {
            break present;
        }
        assert!(Instant::now() < end, "directories of snapshots: {present:?} for {listed:?}");
        tokio::task::yield_now().await;
    };
    for id in &present {
        let found = names(&root.join("snapshots").join(id));
        let text = std::fs::read(root.join("snapshots").join(id).join("record.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let committed = record["value"]["r"]["kind"] == "committed";
        for name in &found {
            let fits = match name.as_str() {
                "record.json" | "fs" => true,
                "work" => !committed,
                "layer.tar" | "layer.toc" | "layer.extra" | "index" => committed,
                _ => false,
            };
            assert!(fits, "snapshot {id} ({record}) has {found:?}");
        }
    }
    let stray = |names: BTreeSet<String>| -> Vec<String> {
        names.into_iter().filter(|name| !present.contains(name)).collect()
    };
    assert_eq!(stray(names(&root.join("l"))), Vec::<String>::new(), "short links");
    let points = ground.join("state/layers");
    assert_eq!(stray(names(&points)), Vec::<String>::new(), "mount points of layers");
    let stray = mounts(&points).into_iter().filter(|name| !present.contains(name));
    assert_eq!(stray.collect::<Vec<_>>(), Vec::<String>::new(), "mounts of layers");
}

/// The names of what is mounted in a directory.
fn mounts(directory: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points
        .filter(|point| point.parent() == Some(directory))
        .map(|point| point.file_name().unwrap().to_string_lossy().into_owned())
        .collect()
}

/// All is removed, and nothing is left of it.
pub async fn emptied_out(ground: &Path, store: &Store, services: &Services) {
    for container in services.containers.list(&[]).await.unwrap() {
        services.containers.delete(&container.id).await.unwrap();
    }
    for image in services.images.list(&[]).await.unwrap() {
        services.images.delete(&image.name, false).await.unwrap();
    }
    for lease in services.leases.list(&[]).await.unwrap() {
        services.leases.delete(&lease.id, false).await.unwrap();
    }
    for key in ["work", "more", "done", "cont", "gone"] {
        match services.snapshots.remove(key).await {
            Err(error) if !error.is_not_found() => panic!("{key}: {error}"),
            _ => {}
        }
    }
    for info in services.content.list(&[]).await.unwrap() {
        // Those that only their images held are collected by now, or about to be.
        if info.labels.contains_key("containerd.io/gc.root") {
            services.content.delete(&info.digest).await.unwrap();
        }
    }
    clean(ground, store, services).await;
    assert_eq!(services.snapshots.list(&[]).await.unwrap(), Vec::new());
    assert_eq!(services.content.list(&[]).await.unwrap(), Vec::new());
    drop(store.list().await.unwrap());
}
