//! What every implementation of the store's traits must do, in this process or across a socket. Each
//! function takes the services of a namespace of its own, which it leaves with rubbish in it.
// Each test binary is a crate of its own and uses some of it.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod analysis;
pub mod bad_archives;
pub mod content;
pub mod forms;
pub mod images;
pub mod platforms;
pub mod registry;
pub mod snapshots;
pub mod transfer;

use bytes::Bytes;
use store_api::{Container, Labels, RuntimeInfo, Services, Timestamp, WriteRequest};
use types::{Digest, ErrorKind};

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect()
}

/// A store's configuration, with layers of the form that this process tests.
pub fn config(root: &std::path::Path, state: &std::path::Path) -> store::Config {
    store::Config { layers: forms::form(), ..store::Config::new(root, state) }
}

/// A container's record, whose snapshot has its name.
pub fn container(id: &str, labels: Labels) -> Container {
    Container {
        id: id.into(),
        labels,
        image: "img".into(),
        runtime: RuntimeInfo { name: "io.containerd.gantry.v2".into(), options: None },
        spec: None,
        snapshotter: "overlayfs".into(),
        snapshot_key: id.into(),
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        extensions: std::collections::BTreeMap::new(),
        sandbox_id: String::new(),
    }
}

/// Looks again and again until it is so.
///
/// # Panics
/// After a minute.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !done().await {
        assert!(std::time::Instant::now() < end, "waited a minute: {what}");
        tokio::task::yield_now().await;
    }
}

#[track_caller]
pub fn assert_kind<T: std::fmt::Debug>(outcome: store_api::Result<T>, kind: ErrorKind) {
    match outcome {
        Err(error) => assert_eq!(error.kind, kind, "{error}"),
        Ok(value) => panic!("{kind:?} was expected, not {value:?}"),
    }
}

/// Writes a blob the way a client does.
pub async fn put(services: &Services, bytes: &[u8], labels: Labels) -> Digest {
    let reference = testkit::random::name("put");
    let expected = Digest::sha256(bytes);
    let total = u64::try_from(bytes.len()).unwrap();
    let request = WriteRequest { reference: reference.clone(), total, expected: Some(expected) };
    match services.content.open_writer(request).await {
        Ok(_) => {}
        Err(error) if error.is_already_exists() => return Digest::sha256(bytes),
        Err(error) => panic!("{error}"),
    }
    let end = services.content.write(&reference, 0, Bytes::copy_from_slice(bytes)).await.unwrap();
    services.content.commit(&reference, end, None, labels).await.unwrap()
}

/// Reads a whole blob in pieces of odd size.
pub async fn get(services: &Services, digest: &Digest) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let offset = u64::try_from(all.len()).unwrap();
        let piece = services.content.read_at(digest, offset, 777).await.unwrap();
        if piece.is_empty() {
            return all;
        }
        all.extend_from_slice(&piece);
    }
}
