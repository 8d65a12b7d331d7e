//! What goes on while others remove, collect and commit the same things.
#![allow(clippy::unwrap_used)]

mod suite;

use std::{path::Path, sync::Arc};

use serde_json::json;
use store::Store;
use store_api::{
    ExportRequest, Labels, Namespaces as _, Resource, ResourceKind, Services, SquashBase,
    SquashRequest, WriteRequest,
};
use suite::transfer;
use tempfile::TempDir;
use testkit::{
    fixtures::{
        oci::{Image, Layer},
        tar::TarStream,
    },
    random,
};
use types::ErrorKind;

async fn open() -> (TempDir, Arc<Store>) {
    let ground = tempfile::tempdir().unwrap();
    let config = suite::config(&ground.path().join("root"), &ground.path().join("state"));
    let store = Store::open(config).await.unwrap();
    (ground, store)
}

/// Layers that cannot be read or packed in no time.
fn large_image() -> Image {
    let layer = || {
        let tar =
            TarStream::new().file(&random::name("f"), 0o644, &random::bytes(1 << 20)).finish();
        Layer::plain(tar)
    };
    Image::new(vec![layer(), layer(), layer()], &json!({ "Cmd": ["/x"] }))
}

async fn imported(services: &Services, image: &Image) -> (String, store_api::Descriptor) {
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let found = transfer::import(services, image.oci_archive(&name)).await.unwrap();
    (name, found[0].target.clone())
}

/// `docker rmi` while `docker save` waits for its reader: the archive is whole, and then all goes.
async fn saved_while_removed() {
    let (_ground, store) = open().await;
    let services = store.open("here").unwrap();
    let image = large_image();
    let (name, _) = imported(&services, &image).await;
    let request = ExportRequest { names: vec![name.clone()], ..ExportRequest::default() };
    let mut stream = services.transfer.export(request).await.unwrap();
    let mut archive = stream.recv().await.unwrap().unwrap().to_vec();
    services.images.delete(&name, true).await.unwrap();
    services.extras.collect_garbage().await.unwrap();
    archive.extend(transfer::collect(stream).await.unwrap());
    // The export's thread ends after its last piece.
    suite::until("the removed image's content goes", async || {
        services.extras.collect_garbage().await.unwrap();
        services.content.list(&[]).await.unwrap().is_empty()
    })
    .await;
    let found = transfer::import(&services, archive).await.unwrap();
    assert_eq!(found[0].target.digest.to_string(), image.manifest_digest());
}

/// When the image goes of which a squash is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removed {
    Before,
    /// Once the squash writes its layer.
    Meanwhile,
    /// At the same moment as it begins.
    Together,
}

/// `docker rmi` during a squash: it says that the image is gone, or makes a whole one; once it writes,
/// it makes one.
async fn squashed_while_removed() {
    let (_ground, store) = open().await;
    let services = store.open("here").unwrap();
    let mut rounds = vec![Removed::Before, Removed::Meanwhile];
    rounds.extend([Removed::Together; 4]);
    for removed in rounds {
        let (name, target) = imported(&services, &large_image()).await;
        let before = services.extras.unpack(&target, None).await.unwrap();
        let tree = transfer::shown(&services, &before).await;
        let keep_layers = usize::try_from(random::number(0..3)).unwrap();
        let request = SquashRequest {
            target: target.digest,
            base: SquashBase::Layers(keep_layers),
            platform: None,
            comment: String::new(),
        };
        if removed == Removed::Before {
            services.images.delete(&name, true).await.unwrap();
        }
        let gate = Arc::new(tokio::sync::Barrier::new(2));
        let (other, there) = (services.clone(), Arc::clone(&gate));
        let squash = tokio::spawn(async move {
            there.wait().await;
            other.extras.squash(request).await
        });
        gate.wait().await;
        if removed == Removed::Meanwhile {
            suite::until("the squash writes", async || {
                squash.is_finished() || !services.content.ingests(&[]).await.unwrap().is_empty()
            })
            .await;
        }
        if removed != Removed::Before {
            services.images.delete(&name, true).await.unwrap();
        }
        match squash.await.unwrap() {
            Ok(squashed) => {
                assert!(removed != Removed::Before, "an image was made of one that is gone");
                services.extras.collect_garbage().await.unwrap();
                let after = services.extras.unpack(&squashed, None).await.unwrap();
                assert_eq!(transfer::shown(&services, &after).await, tree);
                for blob in &after.layers {
                    suite::get(&services, &blob.digest).await;
                }
            }
            Err(error) => {
                assert!(removed != Removed::Meanwhile, "{error}");
                assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
            }
        }
    }
}

/// Of many commits of one name one succeeds; the others' snapshots, leases and work stay as they were.
async fn committed_to_one_name() {
    let (_ground, store) = open().await;
    let services = store.open("here").unwrap();
    let unpacked = imported(&services, &transfer::image()).await.1;
    let unpacked = services.extras.unpack(&unpacked, None).await.unwrap();
    let base = unpacked.chain_ids.last().unwrap().to_string();
    for _ in 0..5 {
        let name = random::name("layer");
        let gate = Arc::new(tokio::sync::Barrier::new(8));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (services, gate) = (services.clone(), Arc::clone(&gate));
            let (name, base) = (name.clone(), base.clone());
            tasks.spawn(async move {
                let key = random::name("active");
                services.snapshots.prepare(&key, Some(&base), Labels::new()).await.unwrap();
                let lease = services.leases.create("", Labels::new()).await.unwrap().id;
                let held = Resource { kind: ResourceKind::Snapshot, id: key.clone() };
                services.leases.add_resource(&lease, held).await.unwrap();
                gate.wait().await;
                let done = services.snapshots.commit(&name, &key, Labels::new()).await;
                let resources = services.leases.resources(&lease).await.unwrap();
                let held: Vec<&str> = resources.iter().map(|one| one.id.as_str()).collect();
                if done.is_ok() {
                    assert_eq!(held, [name.as_str()]);
                    return 1;
                }
                assert_eq!(done.unwrap_err().kind, ErrorKind::AlreadyExists);
                assert_eq!(held, [key.as_str()]);
                let mounts = services.snapshots.mounts(&key).await.unwrap();
                if suite::forms::form() == store::LayerForm::Copy {
                    assert!(Path::new(&mounts[0].source).is_dir());
                    return 0;
                }
                let work = mounts[0].options.iter().find_map(|o| o.strip_prefix("workdir="));
                assert!(Path::new(work.unwrap()).is_dir());
                0
            });
        }
        let done = tasks.join_all().await;
        assert_eq!(done.iter().sum::<i32>(), 1);
    }
}

/// One namespace shares a blob while the other, its last, removes it: what is committed can be read.
async fn shared_while_removed() {
    let (_ground, store) = open().await;
    let (one, other) = (store.open("one").unwrap(), store.open("other").unwrap());
    // Removed between the look and the commit, after the commit, and whenever it happens.
    for round in 0..100 {
        let bytes = random::bytes(2000);
        let digest = suite::put(&one, &bytes, Labels::new()).await;
        let delete = {
            let (one, digest) = (one.clone(), digest.clone());
            async move { one.content.delete(&digest).await.unwrap() }
        };
        let request = WriteRequest {
            reference: random::name("share"),
            total: 2000,
            expected: Some(digest.clone()),
        };
        let commit = || other.content.commit(&request.reference, 2000, None, Labels::new());
        let open = || other.content.open_writer(request.clone());
        let committed = match round {
            0 => {
                assert_eq!(open().await.unwrap().offset, 2000);
                delete.await;
                let committed = commit().await;
                suite::assert_kind(committed.clone(), ErrorKind::FailedPrecondition);
                Some(committed)
            }
            1 => {
                assert_eq!(open().await.unwrap().offset, 2000);
                let committed = commit().await;
                delete.await;
                assert!(committed.is_ok());
                Some(committed)
            }
            _ => {
                let deleting = tokio::spawn(delete);
                let status = open().await.unwrap();
                let committed = if status.offset == 0 { None } else { Some(commit().await) };
                deleting.await.unwrap();
                committed
            }
        };
        match committed {
            Some(Ok(_)) => assert_eq!(suite::get(&other, &digest).await, bytes),
            Some(Err(error)) => assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{error}"),
            None => suite::assert_kind(other.content.info(&digest).await, ErrorKind::NotFound),
        }
        if other.content.info(&digest).await.is_err() {
            // Its bytes can be sent after all.
            let status = open().await.unwrap();
            assert_eq!(status.offset, 0);
            let name = &request.reference;
            other.content.write(name, 0, bytes.clone().into()).await.unwrap();
            commit().await.unwrap();
            assert_eq!(suite::get(&other, &digest).await, bytes);
        }
    }
}

/// Unfinished writes hold no descriptors, go on after a restart, and go with their namespace.
async fn unfinished_writes() {
    let (ground, store) = open().await;
    let name = random::name("ns");
    let services = store.open(&name).unwrap();
    let bytes = random::bytes(1000);
    let references: Vec<String> = (0..50).map(|_| random::name("write")).collect();
    for reference in &references {
        let request = WriteRequest { reference: reference.clone(), total: 1000, expected: None };
        services.content.open_writer(request).await.unwrap();
        let half = bytes[..500].to_vec().into();
        assert_eq!(services.content.write(reference, 0, half).await.unwrap(), 500);
    }
    let ingests = ground.path().join("root/content/ingest");
    let open_files = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
        let targets = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        targets.filter(|target| target.starts_with(&ingests)).count()
    };
    assert_eq!(open_files(), 0);
    drop((services, store));
    let config = suite::config(&ground.path().join("root"), &ground.path().join("state"));
    let store = Store::open(config).await.unwrap();
    let services = store.open(&name).unwrap();
    assert_eq!(open_files(), 0);
    let one = &references[0];
    services.content.write(one, 500, bytes[500..].to_vec().into()).await.unwrap();
    let digest = services.content.commit(one, 1000, None, Labels::new()).await.unwrap();
    assert_eq!(suite::get(&services, &digest).await, bytes);
    // Back to an earlier place.
    let two = &references[1];
    services.content.write(two, 100, bytes[100..].to_vec().into()).await.unwrap();
    assert_eq!(
        services.content.commit(two, 1000, None, Labels::new()).await.unwrap_err().kind,
        ErrorKind::AlreadyExists
    );
    services.content.delete(&digest).await.unwrap();
    assert_eq!(services.content.ingests(&[]).await.unwrap().len(), 48);
    store.delete(&name).await.unwrap();
    assert!(services.content.ingests(&[]).await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(&ingests).unwrap().count(), 0);
}

in_every_form! {
    saved_while_removed,
    squashed_while_removed,
    committed_to_one_name,
    shared_while_removed,
    unfinished_writes,
}
