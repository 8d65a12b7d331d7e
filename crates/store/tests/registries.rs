//! Pull and push against Debian's docker-registry on loopback.
#![allow(clippy::unwrap_used)]

mod suite;

use store::Store;
use store_api::{
    Namespaces as _, Progress, ProgressState, PullRequest, Pulled, PushRequest, RegistryAccess,
    Services,
};
use suite::{
    assert_kind,
    registry::{self, Registry},
    transfer,
};
use testkit::random;
use tokio::sync::mpsc;
use types::{Digest, ErrorKind, ImageRef};

async fn pull(
    services: &Services,
    reference: &ImageRef,
) -> (store_api::Result<Pulled>, Vec<Progress>) {
    pull_as(services, reference, true).await
}

async fn pull_as(
    services: &Services,
    reference: &ImageRef,
    unpack: bool,
) -> (store_api::Result<Pulled>, Vec<Progress>) {
    registry::pull(services, reference, RegistryAccess::default(), unpack).await
}

async fn push(
    services: &Services,
    name: &str,
    reference: &ImageRef,
) -> (store_api::Result<store_api::Descriptor>, Vec<ProgressState>) {
    let (progress, mut reports) = mpsc::channel::<Progress>(64);
    let collected = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(report) = reports.recv().await {
            all.push(report.state);
        }
        all
    });
    let request = PushRequest {
        name: name.into(),
        reference: reference.clone(),
        platform: None,
        access: RegistryAccess::default(),
    };
    let pushed = services.transfer.push(request, progress).await;
    (pushed, collected.await.unwrap())
}

fn count(states: &[ProgressState], state: ProgressState) -> usize {
    states.iter().filter(|one| **one == state).count()
}

/// A store of this test alone, and a namespace of it.
async fn opened(ground: &tempfile::TempDir) -> (std::sync::Arc<Store>, Services) {
    let config = suite::config(&ground.path().join("root"), &ground.path().join("state"));
    let store = Store::open(config).await.unwrap();
    let here = store.open("here").unwrap();
    (store, here)
}

async fn there_and_back() {
    let registry = Registry::start();
    let ground = tempfile::tempdir().unwrap();
    let (_store, here) = opened(&ground).await;
    let image = transfer::image();
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let found = transfer::import(&here, image.oci_archive(&name)).await.unwrap();
    let unpacked = here.extras.unpack(&found[0].target, None).await.unwrap();
    let tree = transfer::shown(&here, &unpacked).await;

    let reference = registry.reference();
    let (pushed, states) = push(&here, &name, &reference).await;
    let pushed = pushed.unwrap();
    assert_eq!(pushed.digest.to_string(), image.manifest_digest());
    assert_eq!(count(&states, ProgressState::Uploaded), 4);
    // Once more: everything is there; elsewhere on the registry: mounted.
    let (again, states) = push(&here, &name, &reference).await;
    assert_eq!(again.unwrap(), pushed);
    assert_eq!(count(&states, ProgressState::Exists), 4);
    let elsewhere = registry.reference();
    let (_, states) = push(&here, &name, &elsewhere).await;
    assert_eq!(count(&states, ProgressState::Mounted), 4, "{states:?}");

    let access = RegistryAccess::default();
    let resolved = here.transfer.resolve(&reference, &access).await.unwrap();
    assert_eq!(resolved.digest, pushed.digest);
    let tags = here.transfer.tags(&reference, &access).await.unwrap();
    assert_eq!(tags, [reference.tag().unwrap()]);

    // Another store: everything is downloaded, once.
    let other_ground = tempfile::tempdir().unwrap();
    let config =
        suite::config(&other_ground.path().join("root"), &other_ground.path().join("state"));
    let other_store = Store::open(config).await.unwrap();
    let there = other_store.open("there").unwrap();
    let (one, two) = tokio::join!(pull(&there, &reference), pull(&there, &reference));
    let downloads = |reports: &[Progress]| {
        reports.iter().filter(|report| report.state == ProgressState::Downloaded).count()
    };
    assert_eq!(downloads(&one.1) + downloads(&two.1), 3);
    let (one, two) = (one.0.unwrap(), two.0.unwrap());
    assert_eq!(one.target.digest, pushed.digest);
    assert!(one.up_to_date != two.up_to_date, "{one:?} {two:?}");
    assert_eq!(one.name, reference.to_string());
    let (again, reports) = pull(&there, &reference).await;
    assert!(again.unwrap().up_to_date);
    assert!(!reports.iter().any(|report| report.is_layer), "{reports:?}");
    let target = there.images.get(&one.name).await.unwrap().target;
    let pulled = there.extras.resolve_image(&target, None).await.unwrap();
    assert_eq!(transfer::shown(&there, &pulled).await, tree);
    there.images.delete(&one.name, true).await.unwrap();
    assert_kind(there.content.info(&pushed.digest).await, ErrorKind::NotFound);

    // By digest too; what is not there says so and leaves nothing.
    let by_digest = reference.with_digest(pushed.digest.clone());
    assert_eq!(pull(&there, &by_digest).await.0.unwrap().target.digest, pushed.digest);
    let missing = reference.with_tag("nope").unwrap();
    assert_kind(pull(&there, &missing).await.0, ErrorKind::NotFound);
    assert_kind(there.images.get(&missing.to_string()).await, ErrorKind::NotFound);
}

/// A download that broke off goes on where it stopped, and what it had wrong is fetched anew.
async fn resumed() {
    let registry = Registry::start();
    let ground = tempfile::tempdir().unwrap();
    let (_store, here) = opened(&ground).await;
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let image = transfer::image();
    transfer::import(&here, image.oci_archive(&name)).await.unwrap();
    let reference = registry.reference();
    push(&here, &name, &reference).await.0.unwrap();
    here.images.delete(&name, true).await.unwrap();
    for (layer, right) in image.layers.iter().zip([true, false, true]) {
        let digest = Digest::sha256(&layer.blob);
        let request = store_api::WriteRequest {
            reference: format!("layer-{digest}"),
            total: u64::try_from(layer.blob.len()).unwrap(),
            expected: Some(digest),
        };
        here.content.open_writer(request.clone()).await.unwrap();
        let half = &layer.blob[..layer.blob.len() / 2];
        let part = if right { half.to_vec() } else { random::bytes(half.len()) };
        here.content.write(&request.reference, 0, part.into()).await.unwrap();
    }
    let (pulled, reports) = pull(&here, &reference).await;
    pulled.unwrap();
    let retried = reports.iter().filter(|r| r.state == ProgressState::Retrying).count();
    assert_eq!(retried, 1);
    assert!(here.content.ingests(&[]).await.unwrap().is_empty());
}

/// `docker rmi` while a push goes on: it ends well.
#[tokio::test(flavor = "multi_thread")]
async fn pushed_while_removed() {
    let registry = Registry::start();
    let ground = tempfile::tempdir().unwrap();
    let (_store, here) = opened(&ground).await;
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let image = transfer::image();
    transfer::import(&here, image.oci_archive(&name)).await.unwrap();
    // Between the store and the registry: nothing passes before the image is gone.
    let between = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = between.local_addr().unwrap().port();
    let (gone, mut is_gone) = tokio::sync::oneshot::channel::<()>();
    let (asked, mut is_asked) = mpsc::channel::<()>(1);
    let address = registry.address.clone();
    let proxy = tokio::spawn(async move {
        let mut waiting = true;
        loop {
            let (mut client, _) = between.accept().await.unwrap();
            if std::mem::take(&mut waiting) {
                asked.send(()).await.unwrap();
                (&mut is_gone).await.unwrap();
            }
            let mut server = tokio::net::TcpStream::connect(&address).await.unwrap();
            tokio::spawn(async move {
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    let reference: ImageRef =
        format!("127.0.0.1:{port}/{}:v1", random::name("img")).parse().unwrap();
    let pushing = push(&here, &name, &reference);
    let removing = async {
        is_asked.recv().await.unwrap();
        here.images.delete(&name, true).await.unwrap();
        here.extras.collect_garbage().await.unwrap();
        gone.send(()).unwrap();
    };
    let ((pushed, _), ()) = tokio::join!(pushing, removing);
    assert_eq!(pushed.unwrap().digest.to_string(), image.manifest_digest());
    here.extras.collect_garbage().await.unwrap();
    assert!(here.content.list(&[]).await.unwrap().is_empty());
    pull(&here, &reference).await.0.unwrap();
    proxy.abort();
}

/// Whatever is damaged on disk, a new pull repairs it: for the namespace that has it, and for another
/// that would share it.
async fn damage_repaired() {
    let registry = Registry::start();
    let ground = tempfile::tempdir().unwrap();
    let (store, here) = opened(&ground).await;
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let image = transfer::image();
    transfer::import(&here, image.oci_archive(&name)).await.unwrap();
    let reference = registry.reference();
    push(&here, &name, &reference).await.0.unwrap();
    here.images.delete(&name, true).await.unwrap();
    pull_as(&here, &reference, false).await.0.unwrap();
    let blobs = here.content.list(&[]).await.unwrap();
    assert_eq!(blobs.len(), 5);
    let damage = || {
        for (i, blob) in blobs.iter().enumerate() {
            let hex = blob.digest.hex();
            let path = ground.path().join("root/content/blobs/sha256").join(hex);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            // One is too short, the others are of the right size.
            bytes.truncate(if i == 0 { at } else { bytes.len() });
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
        }
    };
    damage();
    pull(&here, &reference).await.0.unwrap();
    for blob in &blobs {
        assert_eq!(Digest::sha256(suite::get(&here, &blob.digest).await), blob.digest);
    }
    damage();
    let there = store.open("there").unwrap();
    pull(&there, &reference).await.0.unwrap();
    for services in [&here, &there] {
        for blob in &blobs {
            assert_eq!(Digest::sha256(suite::get(services, &blob.digest).await), blob.digest);
        }
    }
}

/// A client that stops reading keeps nobody from the same layers, nor its own pull from its end.
async fn stalled_client() {
    let registry = Registry::start();
    let ground = tempfile::tempdir().unwrap();
    let (_store, here) = opened(&ground).await;
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    transfer::import(&here, transfer::image().oci_archive(&name)).await.unwrap();
    let reference = registry.reference();
    push(&here, &name, &reference).await.0.unwrap();
    here.images.delete(&name, true).await.unwrap();
    let (progress, mut unread) = mpsc::channel(1);
    let request = PullRequest {
        reference: reference.clone(),
        platform: None,
        all_platforms: false,
        all_metadata: false,
        access: RegistryAccess::default(),
        unpack: true,
        records: Default::default(),
    };
    let stalled = here.transfer.pull(request, progress);
    let (stalled, (other, _)) = tokio::join!(stalled, pull(&here, &reference));
    stalled.unwrap();
    other.unwrap();
    // It may go on reading: everything is still told.
    let mut last = unread.recv().await.unwrap();
    while let Some(step) = unread.recv().await {
        last = step;
    }
    assert_eq!(last.state, ProgressState::Complete);
}

/// A pull under other names writes these alone, even for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn under_other_names() {
    let registry = Registry::start();
    let ground = tempfile::tempdir().unwrap();
    let (_store, here) = opened(&ground).await;
    let reference = registry.reference();
    let own_name = reference.to_string();
    let first = transfer::import(&here, transfer::image().oci_archive(&own_name)).await.unwrap();
    push(&here, &own_name, &reference).await.0.unwrap();
    // What has the reference's name here is another image than the registry's meanwhile.
    let other = transfer::import(&here, transfer::image().oci_archive(&own_name)).await.unwrap();
    let (target, before) = (first[0].target.clone(), here.images.get(&own_name).await.unwrap());
    assert!(target.digest != other[0].target.digest && before.target == other[0].target);
    let mut events = here.events.subscribe(&["topic~=^/images/".into()], false).await.unwrap();

    let names: Vec<String> = (0..2).map(|_| random::name("other")).collect();
    let labels = store_api::Labels::from([("colour".into(), random::token(5))]);
    let pull = async |names: Vec<String>, labels: store_api::Labels| {
        let (progress, mut reports) = mpsc::channel(64);
        let drain = tokio::spawn(async move { while reports.recv().await.is_some() {} });
        let request = PullRequest {
            reference: reference.clone(),
            platform: None,
            all_platforms: false,
            all_metadata: false,
            access: RegistryAccess::default(),
            unpack: false,
            records: store_api::PullRecords { names, labels },
        };
        let pulled = here.transfer.pull(request, progress).await;
        drain.await.unwrap();
        pulled
    };
    let pulled = pull(names.clone(), labels.clone()).await.unwrap();
    assert_eq!((&pulled.name, pulled.up_to_date), (&names[0], false));
    for name in &names {
        let image = here.images.get(name).await.unwrap();
        assert_eq!((image.target.digest, image.labels), (target.digest.clone(), labels.clone()));
    }
    assert!(pull(names.clone(), labels.clone()).await.unwrap().up_to_date);
    let again = pull(vec![names[0].clone()], store_api::Labels::new()).await.unwrap();
    assert!(again.up_to_date);
    assert_eq!(here.images.get(&names[0]).await.unwrap().labels, labels);

    // Looked at before anything is downloaded or written.
    let bad = vec![random::name("fine"), "x".repeat(1025)];
    assert_kind(pull(bad, labels.clone()).await, ErrorKind::InvalidArgument);
    let long = store_api::Labels::from([("k".into(), "v".repeat(5000))]);
    assert_kind(pull(vec![random::name("fine")], long).await, ErrorKind::InvalidArgument);
    let many = (0..=store_api::PULL_NAMES_MAX).map(|n| format!("n{n}")).collect();
    assert_kind(pull(many, store_api::Labels::new()).await, ErrorKind::InvalidArgument);

    assert_eq!(here.images.get(&own_name).await.unwrap(), before);
    let mut told = Vec::new();
    while let Ok(envelope) = events.try_recv() {
        match envelope.event {
            store_api::Event::ImageCreate { name, .. } => told.push(name),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, names);
}

/// The image is found through an index within the index, behind one that has none for this machine.
#[tokio::test(flavor = "multi_thread")]
async fn nested_indexes() {
    let registry = Registry::start();
    let open = async || {
        let ground = tempfile::tempdir().unwrap();
        let config = suite::config(&ground.path().join("root"), &ground.path().join("state"));
        (Store::open(config).await.unwrap(), ground)
    };
    let (store, _ground) = open().await;
    let (other, _other_ground) = open().await;
    let (here, there) = (store.open("here").unwrap(), other.open("there").unwrap());
    let own_name = format!("docker.io/library/{}:v1", random::name("img"));
    let (archive, wanted) = suite::platforms::nested(&own_name);
    transfer::import(&here, archive).await.unwrap();
    let reference = registry.reference();
    push(&here, &own_name, &reference).await.0.unwrap();
    let pulled = pull(&there, &reference).await.0.unwrap();
    let image = there.extras.resolve_image(&pulled.target, None).await.unwrap();
    assert_eq!(image.manifest.digest.to_string(), wanted);
    let all = there.extras.platforms(&pulled.target).await.unwrap();
    let whole: Vec<_> = all.iter().filter(|image| image.whole).collect();
    assert!(whole.len() == 1 && whole[0].manifest.digest.to_string() == wanted, "{all:?}");
    // Nothing of what it consists of goes.
    there.images.delete(&own_name, true).await.ok();
    there.extras.unpack(&pulled.target, None).await.unwrap();
    assert!(pull(&there, &reference).await.0.unwrap().up_to_date);
}

/// Of the other images manifest and configuration come along where that is asked for, and stay; no layer.
#[tokio::test(flavor = "multi_thread")]
async fn metadata_of_the_other_platforms() {
    let registry = Registry::start();
    let ground = tempfile::tempdir().unwrap();
    let (store, here) = opened(&ground).await;
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let (archive, wanted) = suite::platforms::nested(&name);
    transfer::import(&here, archive).await.unwrap();
    let reference = registry.reference();
    push(&here, &name, &reference).await.0.unwrap();
    let target = here.images.get(&name).await.unwrap().target;
    let all = here.extras.platforms(&target).await.unwrap();
    assert!(all.len() > 1, "{all:?}");
    for all_metadata in [false, true] {
        let there = store.open(&random::name("there")).unwrap();
        let (progress, mut reports) = mpsc::channel(64);
        let drain = tokio::spawn(async move { while reports.recv().await.is_some() {} });
        let request = PullRequest {
            reference: reference.clone(),
            platform: None,
            all_platforms: false,
            all_metadata,
            access: RegistryAccess::default(),
            unpack: true,
            records: Default::default(),
        };
        let pulled = there.transfer.pull(request.clone(), progress).await.unwrap();
        drain.await.unwrap();
        assert!(!pulled.up_to_date);
        there.extras.collect_garbage().await.unwrap();
        for image in &all {
            let own = image.manifest.digest.to_string() == wanted;
            let bytes = suite::get(&here, &image.manifest.digest).await;
            let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            let of = |pointer: &str| -> Digest {
                manifest.pointer(pointer).unwrap().as_str().unwrap().parse().unwrap()
            };
            let config = of("/config/digest");
            for (digest, expected) in [
                (&image.manifest.digest, own || all_metadata),
                (&config, own || all_metadata),
                (&of("/layers/0/digest"), own),
            ] {
                let found = there.content.info(digest).await.is_ok();
                assert_eq!(found, expected, "{digest} of {manifest}, all: {all_metadata}");
            }
        }
    }
}

/// All platforms' images are pulled, and this machine's is wrong: no name leads to it. Of a right one the
/// extraction is told like any other.
#[tokio::test(flavor = "multi_thread")]
async fn all_platforms_are_named_once_this_machines_is_unpacked() {
    let registry = Registry::start();
    let ground = tempfile::tempdir().unwrap();
    let config = suite::config(&ground.path().join("root"), &ground.path().join("state"));
    let store = Store::open(config).await.unwrap();
    for wrong in [false, true] {
        let source = store.open(&random::name("source")).unwrap();
        let there = store.open(&random::name("there")).unwrap();
        let reference = registry.reference();
        let name = reference.to_string();
        let archive = suite::platforms::two(&name, wrong);
        transfer::import_as(&source, archive, false).await.unwrap();
        push(&source, &name, &reference).await.0.unwrap();
        let wish = |request: &mut PullRequest| request.all_platforms = true;
        let access = RegistryAccess::default();
        let (pulled, reports) = registry::pull_with(&there, &reference, access, true, wish).await;
        if wrong {
            assert_kind(pulled, ErrorKind::DataLoss);
            assert_kind(there.images.get(&name).await, ErrorKind::NotFound);
            continue;
        }
        let image = there.extras.resolve_image(&pulled.unwrap().target, None).await.unwrap();
        there.snapshots.stat(&image.chain_ids.last().unwrap().to_string()).await.unwrap();
        for layer in &image.layers {
            let told = |state| {
                let of_it = |r: &&Progress| r.digest.as_ref() == Some(&layer.digest);
                reports.iter().filter(of_it).any(|report| report.state == state)
            };
            assert!(
                told(ProgressState::Extracting) && told(ProgressState::Complete),
                "{reports:?}"
            );
        }
    }
}

/// A manifest that says another size of its configuration or a layer than it has is not pulled, also
/// where the content was here before; nor is a byte sent of an archive of one.
#[tokio::test(flavor = "multi_thread")]
async fn other_sizes() {
    let registry = Registry::start();
    let ground = tempfile::tempdir().unwrap();
    let config = suite::config(&ground.path().join("root"), &ground.path().join("state"));
    let store = Store::open(config).await.unwrap();
    let whole = transfer::image();
    for what in ["/config/size", "/layers/1/size"] {
        let mut image = whole.clone();
        let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        let size = manifest.pointer_mut(what).unwrap();
        *size = (size.as_u64().unwrap() + 1 + u64::from(random::number(0..99))).into();
        image.manifest = manifest.to_string().into_bytes();
        let here = store.open(&random::name("here")).unwrap();
        let name = format!("docker.io/library/{}:v1", random::name("img"));
        // No load takes it.
        let rooted = suite::labels(&[("containerd.io/gc.root", "")]);
        let blobs = image.layers.iter().map(|layer| &layer.blob);
        for blob in blobs.chain([&image.config, &image.manifest]) {
            suite::put(&here, blob, rooted.clone()).await;
        }
        let mut record = suite::images::image(&name, &image.manifest_digest().parse().unwrap());
        record.target.size = u64::try_from(image.manifest.len()).unwrap();
        here.images.put(record).await.unwrap();
        let request = store_api::ExportRequest { names: vec![name.clone()], ..Default::default() };
        let refused = here.transfer.export(request).await.map(drop);
        assert_kind(refused, ErrorKind::DataLoss);
        let (source, reference) = (store.open("source").unwrap(), registry.reference());
        let own_name = reference.to_string();
        transfer::import(&source, whole.oci_archive(&own_name)).await.unwrap();
        push(&source, &own_name, &reference).await.0.unwrap();
        registry.put_manifest(&reference, &image.manifest);
        let empty = store.open(&random::name("there")).unwrap();
        for services in [&empty, &here] {
            let error = pull(services, &reference).await.0.unwrap_err();
            assert_eq!(error.kind, ErrorKind::DataLoss, "{what}: {error:?}");
            let name = reference.to_string();
            assert_kind(services.images.get(&name).await, ErrorKind::NotFound);
        }
    }
}

/// Of a layer that a registry sends damaged it is told which, and of what image, without the store's own
/// names.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_there() {
    let registry = Registry::start();
    let grounds = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [here, there] = grounds
        .each_ref()
        .map(|ground| suite::config(&ground.path().join("root"), &ground.path().join("state")));
    let (here, there) = (Store::open(here).await.unwrap(), Store::open(there).await.unwrap());
    let (here, there) = (here.open("here").unwrap(), there.open("there").unwrap());
    let (image, reference) = (transfer::image(), registry.reference());
    let name = reference.to_string();
    transfer::import(&here, image.oci_archive(&name)).await.unwrap();
    push(&here, &name, &reference).await.0.unwrap();
    let digest = Digest::sha256(&image.layers[1].blob);
    registry.damage(&digest);
    let error = pull(&there, &reference).await.0.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DataLoss, "{error}");
    let wanted = format!(
        "layer {digest} of image {}: what was received does not have this digest and size",
        reference.familiar()
    );
    assert_eq!(error.message, wanted);
    assert_kind(there.images.get(&name).await, ErrorKind::NotFound);
}

// These extract what they download. The others are about names, and about what the registry sees.
in_every_form! {
    there_and_back,
    resumed,
    damage_repaired,
    stalled_client,
}
