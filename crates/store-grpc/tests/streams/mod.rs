//! The streaming service, and the transfers that take its streams.

use prost_types::Any;
use protos::{
    containerd::transfer::{
        DATA, Data, EMPTY, IMAGE_IMPORT_STREAM, IMAGE_STORE, ImageImportStream, ImageReference,
        ImageStore, OCI_REGISTRY, OciRegistry, STREAM_INIT, StreamInit, TransferRequest,
        WINDOW_UPDATE, WindowUpdate,
    },
    shim,
};
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use crate::{
    client,
    common::{Served, client::Client},
};

const STREAM: &str = "/containerd.services.streaming.v1.Streaming/Stream";
const TRANSFER: &str = "/containerd.services.transfer.v1.Transfer/Transfer";

/// Opens a stream with a first message; fails as the first answer does.
async fn open(
    client: &mut Client,
    first: Any,
) -> Result<(mpsc::Sender<Any>, Streaming<Any>), Status> {
    let (sender, messages) = mpsc::channel(4);
    sender.send(first).await.unwrap();
    let mut answers = client.both::<Any, Any>(STREAM, messages).await?;
    let known = answers.message().await?.unwrap();
    assert!(shim::is_type(&known, EMPTY), "{known:?}");
    Ok((sender, answers))
}

fn init(id: &str) -> Any {
    shim::pack(STREAM_INIT, &StreamInit { id: id.to_owned() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_with_its_name() {
    let served = Served::new().await;
    let mut client = client(&served, &testkit::random::name("ns")).await;
    for (first, words) in [
        (shim::pack(WINDOW_UPDATE, &WindowUpdate { update: 1 }), "begins with a StreamInit"),
        (Any { type_url: STREAM_INIT.to_owned(), value: vec![0xff; 8] }, "StreamInit"),
        (init(""), "1 to 1024 bytes, not 0"),
        (init(&"x".repeat(1025)), "1 to 1024 bytes, not 1025"),
    ] {
        let error = open(&mut client, first).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(words), "{error}");
    }
    let first = open(&mut client, init(&"x".repeat(1024))).await.unwrap();
    let error = open(&mut client, init(&"x".repeat(1024))).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    drop(first);
    client.close().await;
    served.end().await;
}

/// What a client sends on the stream of an import in place of an archive, and what comes of it.
async fn import(message: Any) -> Status {
    let served = Served::new().await;
    let ns = testkit::random::name("ns");
    let (mut client, mut other) = (client(&served, &ns).await, client(&served, &ns).await);
    let id = testkit::random::name("stream");
    let (sender, mut answers) = open(&mut client, init(&id)).await.unwrap();
    let request = TransferRequest {
        source: Some(shim::pack(
            IMAGE_IMPORT_STREAM,
            &ImageImportStream { stream: id, ..Default::default() },
        )),
        destination: Some(shim::pack(IMAGE_STORE, &ImageStore::default())),
        options: None,
    };
    let sending = async move {
        let window = answers.message().await.unwrap().unwrap();
        assert!(shim::is_type(&window, WINDOW_UPDATE), "{window:?}");
        let update: WindowUpdate = prost::Message::decode(&window.value[..]).unwrap();
        assert_eq!(update.update, 1 << 20);
        sender.send(message).await.unwrap();
        // That was all.
        drop(sender);
        answers
    };
    let (outcome, answers) = tokio::join!(other.unary::<_, ()>(TRANSFER, request), sending);
    drop(answers);
    client.close().await;
    other.close().await;
    served.end().await;
    outcome.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_keeps_to_its_window() {
    let data = |length: usize| shim::pack(DATA, &Data { data: vec![0; length].into() });
    let error = import(data((1 << 20) + 1)).await;
    assert!(error.message().contains("more data than its window takes"), "{error}");
    let error = import(shim::pack(WINDOW_UPDATE, &WindowUpdate { update: 1 })).await;
    assert!(error.message().contains("WindowUpdate is no data"), "{error}");
    // Zeros within the window: the end of an archive with nothing in it.
    let error = import(data(1 << 20)).await;
    assert!(error.message().contains("holds no image"), "{error}");
}

/// Names are looked at before the registry is asked, which here would take its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_names_an_image_properly_or_not_at_all() {
    let served = Served::new().await;
    let mut client = client(&served, &testkit::random::name("ns")).await;
    let reference = format!("127.0.0.1:{}/some/image:1", testkit::random::port());
    let extra = ImageReference { name: "x".repeat(1025), ..Default::default() };
    let store =
        ImageStore { name: reference.clone(), extra_references: vec![extra], ..Default::default() };
    let request = TransferRequest {
        source: Some(shim::pack(OCI_REGISTRY, &OciRegistry { reference, resolver: None })),
        destination: Some(shim::pack(IMAGE_STORE, &store)),
        options: None,
    };
    let error = client.unary::<_, ()>(TRANSFER, request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("1 to 1024 bytes"), "{error}");
    client.close().await;
    served.end().await;
}
