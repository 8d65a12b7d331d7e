//! What the protocol promises beyond what `ctr` shows: refusals, locks, waiting, the end.
#![allow(clippy::unwrap_used)]

mod common;
mod second;
mod streams;

use common::{Served, client::Client, until};
use protos::containerd::{
    content::{self, WriteContentRequest, write_action},
    events, health, images, namespaces, tasks, types, version,
};
use tonic::Code;

const LIST: &str = "/containerd.services.images.v1.Images/List";

pub(crate) async fn client(served: &Served, namespace: &str) -> Client {
    let mut client = Client::connect(&served.socket()).await;
    client.header("containerd-namespace", namespace);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals() {
    let served = Served::new().await;
    let mut bare = Client::connect(&served.socket()).await;
    let list = images::ListImagesRequest::default();
    let error = bare.unary::<_, images::ListImagesResponse>(LIST, list.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("namespace is required"), "{error}");

    bare.header("containerd-namespace", "not/a/name");
    let error = bare.unary::<_, images::ListImagesResponse>(LIST, list).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);

    let path = "/containerd.services.frobnicate.v1.Frobnicator/Frobnicate";
    let error = bare.unary::<(), ()>(path, ()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert_eq!(error.message(), "unknown service containerd.services.frobnicate.v1.Frobnicator");
    let path = "/containerd.services.sandbox.v1.Controller/Create";
    let error = bare.unary::<(), ()>(path, ()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("sandboxes are not implemented"), "{error}");
    let path = "/containerd.services.images.v1.Images/Paint";
    let error = bare.unary::<(), ()>(path, ()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("Paint"), "{error}");

    let path = "/grpc.health.v1.Health/Check";
    let check = health::HealthCheckRequest::default();
    let answer: health::HealthCheckResponse = bare.unary(path, check).await.unwrap();
    assert_eq!(answer.status, health::serving_status::SERVING);
    let path = "/containerd.services.version.v1.Version/Version";
    let answer: version::VersionResponse = bare.unary(path, ()).await.unwrap();
    assert!(!answer.version.is_empty());
    bare.close().await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_their_codes() {
    let served = Served::new().await;
    let ns = testkit::random::name("ns");
    let mut client = client(&served, &ns).await;
    // dockerd asks so before it ever writes there.
    let get = namespaces::GetNamespaceRequest { name: ns.clone() };
    let path = "/containerd.services.namespaces.v1.Namespaces/Get";
    let answer: namespaces::GetNamespaceResponse = client.unary(path, get).await.unwrap();
    assert!(answer.namespace.unwrap().labels.is_empty());

    let get = images::GetImageRequest { name: "none".into() };
    let path = "/containerd.services.images.v1.Images/Get";
    let error = client.unary::<_, images::GetImageResponse>(path, get).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "image \"none\": not found"));

    let info = content::InfoRequest { digest: "sha256:../../etc/passwd".into() };
    let path = "/containerd.services.content.v1.Content/Info";
    let error = client.unary::<_, content::InfoResponse>(path, info).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);

    let digest = client.write_blob("r", b"0123456789").await.unwrap();
    let read = content::ReadContentRequest { digest: digest.clone(), offset: 4, size: 3 };
    let path = "/containerd.services.content.v1.Content/Read";
    let mut answers = client.stream::<_, content::ReadContentResponse>(path, read).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.offset, &answer.data[..]), (4, &b"456"[..]));
    assert!(answers.message().await.unwrap().is_none());
    let read = content::ReadContentRequest { digest, offset: 4, size: 7 };
    let error = client.stream::<_, content::ReadContentResponse>(path, read).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);

    let create = tasks::CreateTaskRequest {
        container_id: "c".into(),
        checkpoint: Some(types::Descriptor::default()),
        ..Default::default()
    };
    let path = "/containerd.services.tasks.v1.Tasks/Create";
    let error = client.unary::<_, tasks::CreateTaskResponse>(path, create).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("checkpoint"), "{error}");
    client.close().await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes() {
    let served = Served::new().await;
    let ns = testkit::random::name("ns");
    let mut first = client(&served, &ns).await;
    let write = |offset: i64, data: &'static [u8]| WriteContentRequest {
        action: write_action::WRITE,
        reference: "r".into(),
        offset,
        data: data.into(),
        ..Default::default()
    };
    // Broken off, taken up again, and begun anew by an offset of 0.
    let answers = first.write(vec![write(0, b"01234")]).await.unwrap();
    assert_eq!(answers[0].offset, 5);
    let error = first.write(vec![write(7, b"x")]).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
    let answers = first.write(vec![write(5, b"56789")]).await.unwrap();
    assert_eq!(answers[0].offset, 10);
    let statuses = "/containerd.services.content.v1.Content/Status";
    let status = content::StatusRequest { reference: "r".into() };
    let answer: content::StatusResponse = first.unary(statuses, status).await.unwrap();
    assert_eq!(answer.status.unwrap().offset, 10);
    let answers = first.write(vec![write(0, b"abc")]).await.unwrap();
    assert_eq!(answers[0].offset, 3);
    let commit = WriteContentRequest {
        action: write_action::COMMIT,
        reference: "r".into(),
        offset: 3,
        total: 3,
        expected: testkit::fixtures::digest(b"abc"),
        ..Default::default()
    };
    let answers = first.write(vec![commit]).await.unwrap();
    assert_eq!(answers[0].digest, testkit::fixtures::digest(b"abc"));
    let again = WriteContentRequest {
        reference: "s".into(),
        expected: testkit::fixtures::digest(b"abc"),
        ..Default::default()
    };
    let error = first.write(vec![again]).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    told_so_far(&mut first).await;
    first.close().await;
    served.end().await;
}

/// What a client that does not know the digest makes a descriptor of when the blob is there already:
/// every answer before COMMIT tells it, as containerd's does.
async fn told_so_far(client: &mut Client) {
    let (begin, end) = (testkit::random::bytes(1000), testkit::random::bytes(77));
    let whole = [begin.as_slice(), &end].concat();
    client.write_blob("one", &whole).await.unwrap();
    let request = |action, offset, data: &[u8]| WriteContentRequest {
        action,
        reference: "other".into(),
        offset,
        data: data.to_vec().into(),
        ..Default::default()
    };
    let written = client.write(vec![
        request(write_action::STAT, 0, b""),
        request(write_action::WRITE, 0, &begin),
        request(write_action::WRITE, 1000, &end),
        request(write_action::STAT, 0, b""),
    ]);
    let digests: Vec<_> = written.await.unwrap().into_iter().map(|a| a.digest).collect();
    let wanted = [b"".as_slice(), &begin, &whole, &whole].map(testkit::fixtures::digest);
    assert_eq!(digests, wanted);
    let commit = vec![request(write_action::COMMIT, 1077, b"")];
    assert_eq!(client.write(commit).await.unwrap_err().code(), Code::AlreadyExists);
}

/// The largest message is containerd's; what is larger ends the call and not the connection.
#[tokio::test(flavor = "multi_thread")]
async fn message_limit() {
    let served = Served::new().await;
    let mut client = client(&served, &testkit::random::name("ns")).await;
    let blob = vec![7; 15 << 20];
    client.write_blob("large", &blob).await.unwrap();
    let blob = vec![7; 17 << 20];
    let error = client.write_blob("larger", &blob).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    client.write_blob("small", b"x").await.unwrap();
    client.close().await;
    served.end().await;
}

/// Streams that would never end do so with the server, and say why.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_streams() {
    let served = Served::new().await;
    let mut client = client(&served, "default").await;
    let path = "/containerd.services.events.v1.Events/Subscribe";
    let subscribe = events::SubscribeRequest { filters: vec!["topic==/namespaces/create".into()] };
    let mut heard = client.stream::<_, events::Envelope>(path, subscribe).await.unwrap();
    let ns = testkit::random::name("ns");
    let path = "/containerd.services.namespaces.v1.Namespaces/Create";
    let namespace = Some(namespaces::Namespace { name: ns.clone(), ..Default::default() });
    let create = namespaces::CreateNamespaceRequest { namespace };
    let _: namespaces::CreateNamespaceResponse = client.unary(path, create).await.unwrap();
    let envelope = heard.message().await.unwrap().unwrap();
    assert_eq!(
        (envelope.namespace.as_str(), envelope.topic.as_str()),
        (&*ns, "/namespaces/create")
    );
    assert_eq!(envelope.event.unwrap().type_url, "containerd.events.NamespaceCreate");
    let ending = tokio::spawn(served.end());
    let error = heard.message().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    ending.await.unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_counted() {
    use std::sync::atomic::Ordering;
    let served = Served::new().await;
    let one = client(&served, "default").await;
    let two = client(&served, "default").await;
    until("two clients", || served.clients.load(Ordering::Relaxed) == 2).await;
    two.close().await;
    until("one client", || served.clients.load(Ordering::Relaxed) == 1).await;
    one.close().await;
    until("no client", || served.clients.load(Ordering::Relaxed) == 0).await;
    // A peer that speaks no HTTP/2 at all.
    let mut stream = tokio::net::UnixStream::connect(served.socket()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // It is told so, or simply cut off.
    let mut rest = Vec::new();
    drop(tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await);
    until("no client", || served.clients.load(Ordering::Relaxed) == 0).await;
    served.end().await;
}
