//! Debian's docker-registry on loopback.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;
use store_api::{Progress, PullRequest, Pulled, PushRequest, RegistryAccess, Services};
use tempfile::TempDir;
use testkit::random;
use tokio::sync::mpsc;
use types::{Digest, ImageRef};

pub struct Registry {
    child: Child,
    pub address: String,
    directory: TempDir,
}

impl Registry {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", random::port());
        let config = json!({
            "version": "0.1",
            "log": { "level": "error" },
            "storage": { "filesystem": { "rootdirectory": directory.path().join("data") } },
            "http": { "addr": address },
        });
        let file = directory.path().join("config.yml");
        std::fs::write(&file, config.to_string()).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let mut registry = Self { child, address, directory };
        let end = Instant::now() + Duration::from_secs(60);
        while !registry.answers() {
            assert!(registry.child.try_wait().unwrap().is_none(), "docker-registry ended");
            assert!(Instant::now() < end, "docker-registry does not listen");
            std::thread::yield_now();
        }
        registry
    }

    /// It takes connections before it answers.
    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(&self.address) else { return false };
        let limit = Some(Duration::from_secs(5));
        let asked = stream
            .set_read_timeout(limit)
            .and_then(|()| stream.write_all(b"GET /v2/ HTTP/1.0\r\n\r\n"));
        let mut answer = String::new();
        asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && answer.contains(" 200 ")
    }

    /// Puts a manifest under a tag, as it is.
    /// Puts other bytes, as many, in a blob's place.
    pub fn damage(&self, digest: &Digest) {
        let hex = digest.hex();
        let blobs = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        let path = blobs.join(&hex[..2]).join(hex).join("data");
        let bytes = usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
        std::fs::write(&path, random::bytes(bytes)).unwrap();
    }

    pub fn put_manifest(&self, reference: &ImageRef, manifest: &[u8]) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let head = format!(
            "PUT /v2/{}/manifests/{} HTTP/1.0\r\nHost: {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
            reference.path(),
            reference.tag().unwrap(),
            self.address,
            testkit::fixtures::oci::MANIFEST_TYPE,
            manifest.len()
        );
        stream.write_all(&[head.as_bytes(), manifest].concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 201 "), "{answer}");
    }

    pub fn reference(&self) -> ImageRef {
        format!("{}/{}:{}", self.address, random::name("img"), random::token(4)).parse().unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Pushes an image record to a reference and pulls that.
pub async fn push_and_pull(services: &Services, name: &str, reference: &ImageRef) {
    let (silent, mut reports) = mpsc::channel(64);
    tokio::spawn(async move { while reports.recv().await.is_some() {} });
    let push = PushRequest {
        name: name.into(),
        reference: reference.clone(),
        platform: None,
        access: RegistryAccess::default(),
    };
    services.transfer.push(push, silent).await.unwrap();
    services.images.delete(name, true).await.unwrap();
    pull(services, reference, RegistryAccess::default(), true).await.0.unwrap();
}

/// Pulls a reference; what came of it, and all that was told meanwhile.
pub async fn pull(
    services: &Services,
    reference: &ImageRef,
    access: RegistryAccess,
    unpack: bool,
) -> (store_api::Result<Pulled>, Vec<Progress>) {
    pull_with(services, reference, access, unpack, |_| ()).await
}

/// The same with other wishes, which `wish` says.
pub async fn pull_with(
    services: &Services,
    reference: &ImageRef,
    access: RegistryAccess,
    unpack: bool,
    wish: impl FnOnce(&mut PullRequest),
) -> (store_api::Result<Pulled>, Vec<Progress>) {
    let (progress, mut reports) = mpsc::channel(64);
    let collected = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(report) = reports.recv().await {
            all.push(report);
        }
        all
    });
    let mut request = PullRequest {
        reference: reference.clone(),
        platform: None,
        all_platforms: false,
        all_metadata: false,
        access,
        unpack,
        records: Default::default(),
    };
    wish(&mut request);
    let pulled = services.transfer.pull(request, progress).await;
    (pulled, collected.await.unwrap())
}
