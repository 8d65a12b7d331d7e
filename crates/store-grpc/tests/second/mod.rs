//! What clients of containerd 2 ask beyond those of 1.x, message by message.

use std::time::{Duration, SystemTime};

use prost_types::{Any, Timestamp};
use protos::{
    containerd::{
        diff, images, introspection, snapshots,
        transfer::{
            IMAGE_STORE, ImageStore, OCI_REGISTRY, OciRegistry, RegistryResolver, TransferRequest,
            http_debug,
        },
        types,
    },
    shim,
};
use testkit::random;
use tonic::Code;

use crate::{client, common::Served};

const SNAPSHOTTER: &str = "overlayfs";

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_tells_of_itself() {
    let served = Served::new().await;
    let mut client = client(&served, &random::name("ns")).await;
    let path = "/containerd.services.introspection.v1.Introspection/PluginInfo";
    let of = |kind: &str, id: &str| introspection::PluginInfoRequest {
        kind: kind.into(),
        id: id.into(),
        options: None,
    };
    let wanted = of("io.containerd.snapshotter.v1", SNAPSHOTTER);
    let told: introspection::PluginInfoResponse = client.unary(path, wanted).await.unwrap();
    let plugin = told.plugin.unwrap();
    let root = served.path("root/snapshots").display().to_string();
    assert_eq!(plugin.exports.get("root"), Some(&root));
    assert!(plugin.platforms.len() == 1 && plugin.init_err.is_none() && told.extra.is_none());
    let absent = of("io.containerd.snapshotter.v1", &random::name("absent"));
    let error =
        client.unary::<_, introspection::PluginInfoResponse>(path, absent).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    let mut strange = of("io.containerd.runtime.v2", "task");
    strange.options = Some(Any { type_url: "some.Thing".into(), value: Vec::new() });
    let error =
        client.unary::<_, introspection::PluginInfoResponse>(path, strange).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("some.Thing"), "{error}");
    client.close().await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_another_time() {
    let served = Served::new().await;
    let mut client = client(&served, &random::name("ns")).await;
    let digest = client.write_blob("r", b"{}").await.unwrap();
    let target = types::Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest,
        size: 2,
        ..Default::default()
    };
    // The very first second is a time as any.
    for seconds in [0, i64::from(random::number(1..2_000_000_000))] {
        let image = images::Image {
            name: random::name("image"),
            target: Some(target.clone()),
            ..Default::default()
        };
        let create = images::CreateImageRequest {
            image: Some(image.clone()),
            source_date_epoch: Some(Timestamp { seconds, nanos: 0 }),
        };
        let path = "/containerd.services.images.v1.Images/Create";
        let made: images::CreateImageResponse = client.unary(path, create).await.unwrap();
        let made = made.image.unwrap();
        let at = Some(Timestamp { seconds, nanos: 0 });
        assert_eq!((&made.created_at, &made.updated_at), (&at, &at));
        let later = Some(Timestamp { seconds: seconds + 5, nanos: 7 });
        let update = images::UpdateImageRequest {
            image: Some(image),
            update_mask: None,
            source_date_epoch: later,
        };
        let path = "/containerd.services.images.v1.Images/Update";
        let changed: images::UpdateImageResponse = client.unary(path, update).await.unwrap();
        let changed = changed.image.unwrap();
        assert_eq!((&changed.created_at, &changed.updated_at), (&at, &later));
    }
    client.close().await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_time() {
    let served = Served::new().await;
    let ns = random::name("ns");
    let mut client = client(&served, &ns).await;
    let services = served.services(&ns);
    let mounts = services.snapshots.prepare("work", None, Default::default()).await.unwrap();
    let root = std::path::PathBuf::from(&mounts[0].source);
    let epoch = u64::from(random::number(1_000_000..1_000_000_000));
    let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    for (name, seconds) in [("early", epoch - 99), ("late", epoch + 99)] {
        let file = std::fs::File::create(root.join(name)).unwrap();
        file.set_modified(at(seconds)).unwrap();
    }
    let right: Vec<types::Mount> = mounts
        .iter()
        .map(|mount| types::Mount {
            kind: mount.kind.clone(),
            source: mount.source.clone(),
            target: String::new(),
            options: mount.options.clone(),
        })
        .collect();
    let request = diff::DiffRequest {
        right: right.clone(),
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        source_date_epoch: Some(Timestamp { seconds: epoch.try_into().unwrap(), nanos: 0 }),
        ..Default::default()
    };
    let path = "/containerd.services.diff.v1.Diff/Diff";
    let made: diff::DiffResponse = client.unary(path, request).await.unwrap();
    let layer = made.diff.unwrap();
    let digest = layer.digest.parse().unwrap();
    let size = usize::try_from(layer.size).unwrap();
    let tar = services.content.read_at(&digest, 0, size).await.unwrap();
    let mut times: Vec<(String, u64)> = tar
        .chunks(512)
        .filter(|header| header.get(257..262) == Some(b"ustar"))
        .map(|header| {
            let text = |from: usize, to: usize| {
                let bytes = &header[from..to];
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                String::from_utf8(bytes[..end].to_vec()).unwrap()
            };
            (text(0, 100), u64::from_str_radix(text(136, 148).trim(), 8).unwrap())
        })
        .collect();
    times.sort();
    assert_eq!(times, [("early".into(), epoch - 99), ("late".into(), epoch)]);

    // Back onto another snapshot, to the disk at once.
    let empty = services.snapshots.prepare("applied", None, Default::default()).await.unwrap();
    let apply = diff::ApplyRequest {
        diff: Some(layer),
        mounts: vec![types::Mount { source: empty[0].source.clone(), ..right[0].clone() }],
        sync_fs: true,
        ..Default::default()
    };
    let path = "/containerd.services.diff.v1.Diff/Apply";
    let applied: diff::ApplyResponse = client.unary(path, apply).await.unwrap();
    assert_eq!(applied.applied.unwrap().digest, digest.to_string());
    let file = std::path::Path::new(&empty[0].source).join("late");
    assert_eq!(file.metadata().unwrap().modified().unwrap(), at(epoch));
    client.close().await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_refused_by_name() {
    let served = Served::new().await;
    let mut client = client(&served, &random::name("ns")).await;
    let commit = snapshots::CommitSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        name: "n".into(),
        key: "k".into(),
        parent: random::name("parent"),
        ..Default::default()
    };
    let path = "/containerd.services.snapshots.v1.Snapshots/Commit";
    let error = client.unary::<_, ()>(path, commit.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains(&commit.parent), "{error}");

    // A stream for a dump that was not asked for is no reason to refuse; the dump is.
    let reference = format!("127.0.0.1:{}/some/image:1", random::port());
    for (http_debug, code) in
        [(http_debug::TRACE, Code::Unimplemented), (http_debug::DISABLED, Code::Unavailable)]
    {
        let resolver = RegistryResolver {
            default_scheme: "http".into(),
            http_debug,
            logs_stream: random::name("stream"),
            ..Default::default()
        };
        let registry =
            OciRegistry { reference: reference.clone(), resolver: Some(resolver.clone()) };
        let store = ImageStore {
            name: reference.clone(),
            all_metadata: true,
            platforms: vec![
                types::Platform {
                    os: "linux".into(),
                    architecture: "amd64".into(),
                    ..Default::default()
                },
                types::Platform {
                    os: "linux".into(),
                    architecture: "arm64".into(),
                    ..Default::default()
                },
            ],
            ..Default::default()
        };
        let request = TransferRequest {
            source: Some(shim::pack(OCI_REGISTRY, &registry)),
            destination: Some(shim::pack(IMAGE_STORE, &store)),
            options: None,
        };
        let path = "/containerd.services.transfer.v1.Transfer/Transfer";
        let error = client.unary::<_, ()>(path, request).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_eq!(error.message().contains("http_debug"), code == Code::Unimplemented, "{error}");
    }
    client.close().await;
    served.end().await;
}

/// Labels belong to the name that has them.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_has_the_labels_that_are_given() {
    let served = Served::new().await;
    let ns = random::name("ns");
    let mut client = client(&served, &ns).await;
    let digest = client.write_blob("r", b"{}").await.unwrap();
    let target = types::Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest,
        size: 2,
        ..Default::default()
    };
    let image = images::Image {
        name: random::name("image"),
        labels: [("own".to_owned(), random::token(5))].into(),
        target: Some(target),
        ..Default::default()
    };
    let create = images::CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
    let path = "/containerd.services.images.v1.Images/Create";
    let _: images::CreateImageResponse = client.unary(path, create).await.unwrap();
    let given = std::collections::BTreeMap::from([("given".to_owned(), random::token(5))]);
    for labels in [given, Default::default()] {
        let name = random::name("tag");
        let store = |name: &str, labels| {
            let store = ImageStore { name: name.to_owned(), labels, ..Default::default() };
            Some(shim::pack(IMAGE_STORE, &store))
        };
        let request = TransferRequest {
            source: store(&image.name, Default::default()),
            destination: store(&name, labels.clone()),
            options: None,
        };
        let path = "/containerd.services.transfer.v1.Transfer/Transfer";
        client.unary::<_, ()>(path, request).await.unwrap();
        let tagged = served.services(&ns).images.get(&name).await.unwrap();
        assert_eq!(tagged.labels, labels);
    }
    client.close().await;
    served.end().await;
}

/// Others may pass through the state's directory to a bundle that lets them in, and to nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_closed_but_for_the_way_to_bundles() {
    use std::os::unix::fs::MetadataExt as _;
    let served = Served::new().await;
    let state = served.path("state");
    let mode = |path: &std::path::Path| path.symlink_metadata().unwrap().mode() & 0o777;
    assert_eq!(mode(&state), 0o711);
    for entry in state.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let wanted = match name {
            "io.containerd.runtime.v2.task" => 0o011,
            // Whoever serves it binds it.
            "containerd.sock" => continue,
            _ => 0,
        };
        assert_eq!(mode(&path) & 0o077, wanted, "{name}");
    }
    served.end().await;
}
