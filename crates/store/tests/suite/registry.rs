//! Debian's docker-registry on loopback.

use std::{
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;
use store_api::{PullRequest, PushRequest, RegistryAccess, Services};
use tempfile::TempDir;
use testkit::random;
use tokio::sync::mpsc;
use types::ImageRef;

pub struct Registry {
    child: Child,
    pub address: String,
    _directory: TempDir,
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
        let mut registry = Self { child, address, _directory: directory };
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(registry.child.try_wait().unwrap().is_none(), "docker-registry ended");
            assert!(Instant::now() < end, "docker-registry does not listen");
            std::thread::yield_now();
        }
        registry
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
    let silent = || {
        let (progress, mut reports) = mpsc::channel(64);
        tokio::spawn(async move { while reports.recv().await.is_some() {} });
        progress
    };
    let push = PushRequest {
        name: name.into(),
        reference: reference.clone(),
        platform: None,
        access: RegistryAccess::default(),
    };
    services.transfer.push(push, silent()).await.unwrap();
    services.images.delete(name, true).await.unwrap();
    let pull = PullRequest {
        reference: reference.clone(),
        platform: None,
        all_platforms: false,
        access: RegistryAccess::default(),
        unpack: true,
        records: Default::default(),
    };
    services.transfer.pull(pull, silent()).await.unwrap();
}
