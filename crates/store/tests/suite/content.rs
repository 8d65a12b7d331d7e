use bytes::Bytes;
use store_api::{Resource, ResourceKind, Services, WriteRequest};
use testkit::random;
use types::{Digest, ErrorKind};

use super::{assert_kind, get, labels, put};

fn request(reference: &str, expected: Option<&Digest>) -> WriteRequest {
    WriteRequest { reference: reference.into(), total: 0, expected: expected.cloned() }
}

/// A blob comes back as it went in, in whatever pieces.
pub async fn round_trip(services: &Services) {
    for length in [0_usize, 1, 776, 777, 100_000] {
        let bytes = random::bytes(length);
        let digest = put(services, &bytes, labels(&[("a", "1")])).await;
        assert_eq!(digest, Digest::sha256(&bytes));
        assert_eq!(get(services, &digest).await, bytes);
        let info = services.content.info(&digest).await.unwrap();
        assert_eq!(info.size, u64::try_from(length).unwrap());
        assert_eq!(info.labels, labels(&[("a", "1")]));
    }
}

/// A write can be given up and taken up again; it is hashed over all of its parts.
pub async fn resumed(services: &Services) {
    let content = &services.content;
    let bytes = random::bytes(50_000);
    let digest = Digest::sha256(&bytes);
    let name = random::name("resume");
    content.open_writer(request(&name, Some(&digest))).await.unwrap();
    assert_eq!(content.write(&name, 0, bytes[..20_000].to_vec().into()).await.unwrap(), 20_000);
    let status = content.open_writer(request(&name, Some(&digest))).await.unwrap();
    assert_eq!(status.offset, 20_000);
    assert_eq!(content.ingests(&[format!("ref=={name}")]).await.unwrap().len(), 1);
    // Beyond the end is refused, below it cuts off.
    assert_kind(
        content.write(&name, 20_001, Bytes::from_static(b"x")).await,
        ErrorKind::InvalidArgument,
    );
    content.write(&name, 10_000, bytes[10_000..].to_vec().into()).await.unwrap();
    assert_eq!(content.commit(&name, 50_000, None, labels(&[])).await.unwrap(), digest);
    assert_eq!(get(services, &digest).await, bytes);
    assert_kind(content.abort(&name).await, ErrorKind::NotFound);
    assert_kind(content.open_writer(request(&name, Some(&digest))).await, ErrorKind::AlreadyExists);
}

/// Nothing wrong ever becomes visible.
pub async fn refused(services: &Services) {
    let content = &services.content;
    let bytes = random::bytes(1000);
    let wrong = Digest::sha256(random::bytes(10));
    let name = random::name("wrong");
    content.open_writer(request(&name, None)).await.unwrap();
    content.write(&name, 0, bytes.clone().into()).await.unwrap();
    assert_kind(content.commit(&name, 999, None, labels(&[])).await, ErrorKind::DataLoss);
    assert_kind(content.commit(&name, 0, Some(&wrong), labels(&[])).await, ErrorKind::DataLoss);
    assert_kind(content.info(&wrong).await, ErrorKind::NotFound);
    assert_kind(content.info(&Digest::sha256(&bytes)).await, ErrorKind::NotFound);
    content.abort(&name).await.unwrap();
    assert_kind(content.commit(&name, 0, None, labels(&[])).await, ErrorKind::NotFound);
    assert_kind(content.open_writer(request("", None)).await, ErrorKind::InvalidArgument);
    assert_kind(content.delete(&wrong).await, ErrorKind::NotFound);
    assert_kind(content.read_at(&wrong, 0, 1).await, ErrorKind::NotFound);
}

/// Labels are set, removed and filtered by.
pub async fn labelled(services: &Services) {
    let content = &services.content;
    let digest = put(services, &random::bytes(10), labels(&[("keep", "1"), ("go", "2")])).await;
    let keys = ["go".to_string(), "new".to_string()];
    let info = content.update(&digest, labels(&[("new", "3")]), &keys).await.unwrap();
    assert_eq!(info.labels, labels(&[("keep", "1"), ("new", "3")]));
    let value = random::token(8);
    content.update(&digest, labels(&[("a.b/c", &value)]), &[]).await.unwrap();
    let found = content.list(&[format!("labels.\"a.b/c\"=={value}")]).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].digest, digest);
    assert_kind(content.list(&["labels.x==\"".into()]).await, ErrorKind::InvalidArgument);
    let long = "x".repeat(5000);
    assert_kind(
        content.update(&digest, labels(&[("k", &long)]), &[]).await,
        ErrorKind::InvalidArgument,
    );
}

/// Garbage goes; what is labelled, leased, referred to or in flight stays.
pub async fn collected(services: &Services) {
    let (content, leases) = (&services.content, &services.leases);
    let rooted = put(services, &random::bytes(20), labels(&[("containerd.io/gc.root", "x")])).await;
    let child = put(services, &random::bytes(20), labels(&[])).await;
    let refers = labels(&[("containerd.io/gc.ref.content.l.0", &child.to_string())]);
    let leased = put(services, &random::bytes(20), refers).await;
    let in_flight = put(services, &random::bytes(20), labels(&[])).await;
    let lease = leases.create("", labels(&[])).await.unwrap().id;
    let resource = Resource { kind: ResourceKind::Content, id: leased.to_string() };
    leases.add_resource(&lease, resource.clone()).await.unwrap();
    assert_eq!(leases.resources(&lease).await.unwrap(), [resource]);
    services.extras.collect_garbage().await.unwrap();
    for digest in [&rooted, &child, &leased, &in_flight] {
        content.info(digest).await.unwrap();
    }
    leases.delete(&lease, true).await.unwrap();
    assert_kind(content.info(&leased).await, ErrorKind::NotFound);
    assert_kind(content.info(&child).await, ErrorKind::NotFound);
    content.info(&rooted).await.unwrap();
    content.info(&in_flight).await.unwrap();
    assert_kind(leases.delete(&lease, true).await, ErrorKind::NotFound);
}

/// A lease of an ingest becomes one of its blob; an expired lease holds nothing.
pub async fn leases(services: &Services) {
    let (content, leases) = (&services.content, &services.leases);
    let id = random::name("lease");
    leases.create(&id, labels(&[("k", "v")])).await.unwrap();
    assert_kind(leases.create(&id, labels(&[])).await, ErrorKind::AlreadyExists);
    assert_eq!(leases.list(&[format!("id=={id},labels.k==v")]).await.unwrap().len(), 1);
    let name = random::name("leased");
    let resource = Resource { kind: ResourceKind::Ingest, id: name.clone() };
    leases.add_resource(&id, resource).await.unwrap();
    content.open_writer(request(&name, None)).await.unwrap();
    content.write(&name, 0, random::bytes(33).into()).await.unwrap();
    let digest = content.commit(&name, 0, None, labels(&[])).await.unwrap();
    let held = leases.resources(&id).await.unwrap();
    assert_eq!(held, [Resource { kind: ResourceKind::Content, id: digest.to_string() }]);
    services.extras.collect_garbage().await.unwrap();
    content.info(&digest).await.unwrap();
    leases.delete_resource(&id, held[0].clone()).await.unwrap();
    services.extras.collect_garbage().await.unwrap();
    assert_kind(content.info(&digest).await, ErrorKind::NotFound);

    let expired = labels(&[("containerd.io/gc.expire", "2020-01-01T00:00:00Z")]);
    let old = leases.create("", expired).await.unwrap().id;
    let digest = put(services, &random::bytes(9), labels(&[])).await;
    let resource = Resource { kind: ResourceKind::Content, id: digest.to_string() };
    leases.add_resource(&old, resource).await.unwrap();
    services.extras.collect_garbage().await.unwrap();
    assert_kind(content.info(&digest).await, ErrorKind::NotFound);
    assert!(!leases.list(&[]).await.unwrap().iter().any(|lease| lease.id == old));
}

/// A blob of one namespace is not seen in another, but need not be sent again.
pub async fn isolated(one: &Services, other: &Services) {
    let bytes = random::bytes(4000);
    let digest = put(one, &bytes, labels(&[])).await;
    assert_kind(other.content.info(&digest).await, ErrorKind::NotFound);
    assert_kind(other.content.read_at(&digest, 0, 10).await, ErrorKind::NotFound);
    let name = random::name("shared");
    let status = other.content.open_writer(request(&name, Some(&digest))).await.unwrap();
    assert_eq!(status.offset, 4000);
    other.content.commit(&name, 4000, Some(&digest), labels(&[])).await.unwrap();
    one.content.delete(&digest).await.unwrap();
    assert_eq!(get(other, &digest).await, bytes);
    assert_kind(one.content.info(&digest).await, ErrorKind::NotFound);
}
