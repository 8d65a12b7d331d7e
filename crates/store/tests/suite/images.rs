use store_api::{
    Any, Container, ContainerPatch, Descriptor, Event, Image, RuntimeInfo, Services, Timestamp,
    media_type,
};
use testkit::random;
use types::{Digest, ErrorKind};

use super::{assert_kind, labels, put};

pub fn image(name: &str, digest: &Digest) -> Image {
    Image {
        name: name.into(),
        target: Descriptor::new(media_type::OCI_MANIFEST, digest.clone(), 10),
        labels: labels(&[("l", "1")]),
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
    }
}

/// Records come, change and go, and each is told of once.
pub async fn records(services: &Services) {
    let images = &services.images;
    let mut events = services.events.subscribe(&["topic~=/images/".into()], false).await.unwrap();
    let first = put(services, &random::bytes(10), labels(&[])).await;
    let second = put(services, &random::bytes(10), labels(&[])).await;
    let name = format!("docker.io/library/{}:1", random::name("image"));
    assert_kind(images.get(&name).await, ErrorKind::NotFound);
    let created = images.create(image(&name, &first), None).await.unwrap();
    assert!(created.created_at.seconds > 0);
    assert_eq!(images.get(&name).await.unwrap(), created);
    assert_kind(images.create(image(&name, &second), None).await, ErrorKind::AlreadyExists);
    let mut change = image(&name, &second);
    change.labels = labels(&[("new", "2")]);
    let paths = ["labels.new".to_string()];
    let updated = images.update(change.clone(), &paths, None).await.unwrap();
    assert_eq!(updated.target.digest, first);
    assert_eq!(updated.labels, labels(&[("l", "1"), ("new", "2")]));
    let put_again = images.put(change).await.unwrap();
    assert_eq!(put_again.target.digest, second);
    assert_eq!(put_again.created_at, created.created_at);
    assert_eq!(images.list(&[format!("name=={name}")]).await.unwrap().len(), 1);
    assert_eq!(images.list(&["name==nothing".into()]).await.unwrap().len(), 0);
    images.delete(&name, true).await.unwrap();
    assert_kind(services.content.info(&second).await, ErrorKind::NotFound);
    assert_kind(services.content.info(&first).await, ErrorKind::NotFound);
    assert_kind(images.delete(&name, false).await, ErrorKind::NotFound);
    assert_kind(images.update(image(&name, &first), &[], None).await, ErrorKind::NotFound);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let envelope = events.recv().await.unwrap();
        assert_eq!(envelope.namespace, services.namespace);
        seen.push(envelope.event);
    }
    assert_eq!(
        seen,
        [
            Event::ImageCreate { name: name.clone(), labels: labels(&[("l", "1")]) },
            Event::ImageUpdate { name: name.clone(), labels: labels(&[("l", "1"), ("new", "2")]) },
            Event::ImageUpdate { name: name.clone(), labels: labels(&[("new", "2")]) },
            Event::ImageDelete { name },
        ]
    );
}

fn container(id: &str) -> Container {
    let spec = random::bytes(100);
    Container {
        id: id.into(),
        labels: labels(&[("a", "b")]),
        image: "img".into(),
        runtime: RuntimeInfo { name: "io.containerd.gantry.v2".into(), options: None },
        spec: Some(Any { type_url: "types.containerd.io/x".into(), value: spec.into() }),
        snapshotter: "overlayfs".into(),
        snapshot_key: id.into(),
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        extensions: [("e".to_string(), Any::default())].into(),
        sandbox_id: String::new(),
    }
}

/// Containers' records; their snapshots are kept for them.
pub async fn containers(services: &Services) {
    let (containers, snapshots) = (&services.containers, &services.snapshots);
    let id = random::name("c");
    snapshots.prepare(&id, None, labels(&[])).await.unwrap();
    let made = containers.create(container(&id)).await.unwrap();
    assert_eq!(containers.get(&id).await.unwrap(), made);
    assert_kind(containers.create(container(&id)).await, ErrorKind::AlreadyExists);
    assert_kind(containers.create(container("../x")).await, ErrorKind::InvalidArgument);
    services.extras.collect_garbage().await.unwrap();
    snapshots.stat(&id).await.unwrap();
    let mut change = container(&id);
    change.labels = labels(&[("a", "c")]);
    change.image = "other".into();
    let patch = ContainerPatch { container: change, field_paths: vec!["labels.a".into()] };
    let patched = containers.update(patch).await.unwrap();
    assert_eq!(patched.labels, labels(&[("a", "c")]));
    assert_eq!(patched.image, "img");
    assert_eq!(patched.spec, made.spec);
    assert_eq!(containers.list(&[format!("id=={id}")]).await.unwrap(), [patched]);
    containers.delete(&id).await.unwrap();
    assert_kind(containers.delete(&id).await, ErrorKind::NotFound);
    services.extras.collect_garbage().await.unwrap();
    assert_kind(snapshots.stat(&id).await, ErrorKind::NotFound);
}
