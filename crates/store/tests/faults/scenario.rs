//! What the victim does, step by step, and how each step's outcome looks: whole or absent.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use store_api::{
    ExportRequest, Image, ImportRequest, Labels, PullRequest, PushRequest, RegistryAccess,
    Resource, ResourceKind, Services, SquashBase, SquashRequest, Timestamp,
};
use testkit::{
    fixtures::{oci, tar::TarStream},
    random,
};
use tokio::sync::mpsc;
use types::{Digest, ImageRef};

use crate::suite::{self, labels, transfer};

const GC_ROOT: &str = "containerd.io/gc.root";
const CONTAINER: &str = "gantry.io/container";

/// What victim and checker both know.
#[derive(Serialize, Deserialize)]
pub struct Input {
    /// OCI archives and a root file system's tar, as files.
    pub loaded: PathBuf,
    pub removed: PathBuf,
    pub rootfs: PathBuf,
    pub loaded_digest: Digest,
    pub removed_config: Digest,
    pub pulled: String,
    pub pulled_digest: Digest,
    /// A repository to push to.
    pub pushed: String,
    pub blob: Vec<u8>,
    pub leased: Vec<u8>,
    pub mark: String,
}

pub const LOADED: &str = "docker.io/library/loaded:v1";
const TAGGED: &str = "docker.io/library/tagged:v1";
const SQUASHED: &str = "docker.io/library/squashed:v1";
const REMOVED: &str = "docker.io/library/removed:v1";
const ROOTFS: &str = "docker.io/library/rootfs:v1";

/// In this order; each is acknowledged when it has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Step {
    Load,
    Pull,
    Tag,
    Blob,
    Lease,
    LeasedBlob,
    Prepare,
    Commit,
    Squash,
    Container,
    Gone,
    Remove,
    Export,
    Push,
    Rootfs,
    Collect,
}

impl Step {
    pub const ALL: [Self; 16] = [
        Self::Load,
        Self::Pull,
        Self::Tag,
        Self::Blob,
        Self::Lease,
        Self::LeasedBlob,
        Self::Prepare,
        Self::Commit,
        Self::Squash,
        Self::Container,
        Self::Gone,
        Self::Remove,
        Self::Export,
        Self::Push,
        Self::Rootfs,
        Self::Collect,
    ];
}

type Outcome<T = ()> = store_api::Result<T>;

impl Input {
    pub fn new(directory: &Path, registry: &str) -> Self {
        let file = |name: &str, bytes: Vec<u8>| {
            let path = directory.join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let (loaded, removed) = (transfer::image(), transfer::image());
        let rootfs = TarStream::new().file("r", 0o644, &random::bytes(5000)).finish();
        Self {
            loaded: file("loaded.tar", loaded.oci_archive(LOADED)),
            removed: file("removed.tar", removed.oci_archive(REMOVED)),
            rootfs: file("rootfs.tar", rootfs),
            loaded_digest: loaded.manifest_digest().parse().unwrap(),
            removed_config: removed.config_digest().parse().unwrap(),
            pulled: format!("{registry}/{}:v1", random::name("pulled")),
            pulled_digest: loaded.manifest_digest().parse().unwrap(),
            pushed: format!("{registry}/{}:v1", random::name("pushed")),
            blob: random::bytes(300_000),
            leased: random::bytes(3000),
            mark: random::token(20),
        }
    }

    /// Puts the image to pull into the registry.
    pub async fn fill_registry(&mut self, services: &Services) {
        let image: oci::Image = transfer::image();
        let name = format!("docker.io/library/{}:v1", random::name("img"));
        transfer::import(services, image.oci_archive(&name)).await.unwrap();
        self.pulled_digest = image.manifest_digest().parse().unwrap();
        push(services, &name, &self.pulled).await.unwrap();
    }

    pub async fn run(&self, services: &Services, step: Step) -> Outcome {
        match step {
            Step::Load => import(services, &self.loaded).await,
            Step::Pull => pull(services, &self.pulled).await,
            Step::Tag => {
                let target = services.images.get(LOADED).await?.target.digest;
                name(services, TAGGED, &target).await
            }
            Step::Blob => put(services, &self.blob, labels(&[(GC_ROOT, "x")])).await,
            Step::Lease => {
                exists(services.leases.create("lease", labels(&[])).await)?;
                let id = Digest::sha256(&self.leased).to_string();
                let resource = Resource { kind: ResourceKind::Content, id };
                services.leases.add_resource("lease", resource).await
            }
            Step::LeasedBlob => put(services, &self.leased, labels(&[])).await,
            Step::Prepare => {
                let marks = labels(&[(GC_ROOT, "x")]);
                let top = self.top(services).await?;
                exists(services.snapshots.prepare("work", Some(&top), marks).await)?;
                self.leave_mark(services, "work").await
            }
            Step::Commit => self.commit(services).await,
            Step::Squash => self.squash(services).await,
            Step::Container => self.container(services, "cont").await,
            Step::Gone => self.gone(services).await,
            Step::Remove => {
                import(services, &self.removed).await?;
                services.images.delete(REMOVED, true).await
            }
            Step::Export => {
                let names = vec![LOADED.into()];
                let request = ExportRequest { names, ..ExportRequest::default() };
                let stream = services.transfer.export(request).await?;
                transfer::collect(stream).await.map(drop)
            }
            Step::Push => push(services, LOADED, &self.pushed).await,
            Step::Rootfs => {
                let tar = transfer::stream(read(&self.rootfs)?);
                services.extras.import_rootfs(tar, Vec::new(), ROOTFS).await.map(drop)
            }
            Step::Collect => services.extras.collect_garbage().await.map(drop),
        }
    }

    async fn top(&self, services: &Services) -> Outcome<String> {
        let target = services.images.get(LOADED).await?.target;
        let unpacked = services.extras.unpack(&target, None).await?;
        Ok(unpacked.chain_ids.last().unwrap().to_string())
    }

    async fn leave_mark(&self, services: &Services, key: &str) -> Outcome {
        let mounts = services.snapshots.mounts(key).await?;
        let upper = mounts[0].options.iter().find_map(|o| o.strip_prefix("upperdir="));
        // What a container does, which the store has no part in.
        std::fs::write(Path::new(upper.unwrap()).join("mark"), &self.mark).map_err(|error| {
            store_api::Error::new(types::ErrorKind::ResourceExhausted, error.to_string())
        })
    }

    async fn commit(&self, services: &Services) -> Outcome {
        if services.snapshots.stat("done").await.is_ok() {
            return Ok(());
        }
        let top = self.top(services).await?;
        let marks = labels(&[(GC_ROOT, "x")]);
        exists(services.snapshots.prepare("more", Some(&top), marks.clone()).await)?;
        self.leave_mark(services, "more").await?;
        services.snapshots.commit("done", "more", marks).await
    }

    async fn squash(&self, services: &Services) -> Outcome {
        let request = SquashRequest {
            target: self.loaded_digest.clone(),
            base: SquashBase::Layers(1),
            platform: None,
            comment: String::new(),
        };
        let squashed = services.extras.squash(request).await?;
        let digest = squashed.digest.clone();
        if let Ok(image) = services.images.get(SQUASHED).await {
            assert_eq!(image.target.digest, digest, "squash makes another image of the same");
        }
        services.extras.unpack(&squashed, None).await?;
        name(services, SQUASHED, &digest).await
    }

    async fn container(&self, services: &Services, id: &str) -> Outcome {
        let top = self.top(services).await?;
        let marks = labels(&[(CONTAINER, id)]);
        exists(services.snapshots.prepare(id, Some(&top), marks.clone()).await)?;
        exists(services.containers.create(crate::suite::container(id, marks)).await)
    }

    async fn gone(&self, services: &Services) -> Outcome {
        self.container(services, "gone").await?;
        services.containers.delete("gone").await?;
        services.snapshots.remove("gone").await
    }

    /// Is what a step makes there (`true`), or nothing of it? Half of it is a failure.
    pub async fn is_whole(&self, services: &Services, step: Step) -> bool {
        match step {
            Step::Load => image_is_whole(services, LOADED, Some(&self.loaded_digest)).await,
            Step::Pull => image_is_whole(services, &self.pulled, Some(&self.pulled_digest)).await,
            Step::Tag => image_is_whole(services, TAGGED, Some(&self.loaded_digest)).await,
            Step::Squash => image_is_whole(services, SQUASHED, None).await,
            Step::Rootfs => image_is_whole(services, ROOTFS, None).await,
            Step::Blob => blob_is_whole(services, &self.blob).await,
            Step::LeasedBlob => blob_is_whole(services, &self.leased).await,
            Step::Lease => {
                let leases = services.leases.list(&[]).await.unwrap();
                if !leases.iter().any(|lease| lease.id == "lease") {
                    return false;
                }
                // Two calls: the lease alone is no half one, but an unacknowledged one.
                !services.leases.resources("lease").await.unwrap().is_empty()
            }
            Step::Prepare => self.snapshot_is_whole(services, "work").await,
            Step::Commit => {
                if services.snapshots.stat("done").await.is_err() {
                    return false;
                }
                let marks = labels(&[]);
                let view = services.snapshots.view("look", Some("done"), marks).await.unwrap();
                let tree = suite::snapshots::tree(&view);
                services.snapshots.remove("look").await.unwrap();
                assert_eq!(tree[Path::new("mark")].2, self.mark.as_bytes());
                true
            }
            Step::Container => {
                if services.containers.get("cont").await.is_err() {
                    return false;
                }
                assert!(services.snapshots.stat("cont").await.is_ok(), "it has no snapshot");
                self.shows_base(services, "cont").await;
                true
            }
            Step::Gone => {
                services.containers.get("gone").await.is_err()
                    && services.snapshots.stat("gone").await.is_err()
            }
            Step::Remove => {
                services.images.get(REMOVED).await.is_err()
                    && services.content.info(&self.removed_config).await.is_err()
            }
            Step::Export | Step::Push | Step::Collect => true,
        }
    }

    async fn snapshot_is_whole(&self, services: &Services, key: &str) -> bool {
        if services.snapshots.stat(key).await.is_err() {
            return false;
        }
        let tree = self.shows_base(services, key).await;
        // It is written after the snapshot was acknowledged, and is a part of the step.
        tree.get(Path::new("mark")).is_some_and(|mark| mark.2 == self.mark.as_bytes())
    }

    async fn shows_base(&self, services: &Services, key: &str) -> suite::snapshots::Tree {
        let mounts = services.snapshots.mounts(key).await.unwrap();
        let tree = suite::snapshots::tree(&mounts);
        assert!(tree.contains_key(Path::new("old/b")) && !tree.contains_key(Path::new("old/a")));
        tree
    }
}

/// An image that has its name has all of its content, byte for byte, and shows its files.
async fn image_is_whole(services: &Services, name: &str, digest: Option<&Digest>) -> bool {
    let image = match services.images.get(name).await {
        Ok(image) => image,
        Err(error) if error.is_not_found() => return false,
        Err(error) => panic!("{name}: {error}"),
    };
    assert!(digest.is_none_or(|digest| *digest == image.target.digest), "{name} is another one");
    let unpacked = services.extras.unpack(&image.target, None).await;
    let unpacked = unpacked.unwrap_or_else(|error| panic!("{name} is not whole: {error}"));
    for blob in unpacked.layers.iter().chain([&unpacked.manifest, &unpacked.config]) {
        let bytes = suite::get(services, &blob.digest).await;
        assert_eq!(Digest::sha256(bytes), blob.digest, "content of {name}");
    }
    let tree = transfer::shown(services, &unpacked).await;
    let file = if name == ROOTFS { "r" } else { "old/b" };
    assert!(tree.contains_key(Path::new(file)) && !tree.contains_key(Path::new("old/a")));
    true
}

async fn blob_is_whole(services: &Services, bytes: &[u8]) -> bool {
    let digest = Digest::sha256(bytes);
    if services.content.info(&digest).await.is_err() {
        return false;
    }
    assert_eq!(suite::get(services, &digest).await, bytes);
    true
}

/// What an earlier try has made is there.
fn exists<T>(outcome: Outcome<T>) -> Outcome {
    match outcome {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| store_api::Error::new(types::ErrorKind::Internal, error.to_string()))
}

async fn import(services: &Services, archive: &Path) -> Outcome {
    let (progress, mut reports) = mpsc::channel(16);
    let drain = tokio::spawn(async move { while reports.recv().await.is_some() {} });
    let request = ImportRequest { unpack: true, ..ImportRequest::default() };
    let archive = transfer::stream(read(archive)?);
    let imported = services.transfer.import(request, archive, progress).await;
    drain.await.unwrap();
    imported.map(drop)
}

async fn pull(services: &Services, reference: &str) -> Outcome {
    let (progress, mut reports) = mpsc::channel(16);
    let drain = tokio::spawn(async move { while reports.recv().await.is_some() {} });
    let request = PullRequest {
        reference: reference.parse().unwrap(),
        platform: None,
        all_platforms: false,
        all_metadata: false,
        access: RegistryAccess::default(),
        unpack: true,
        records: Default::default(),
    };
    let pulled = services.transfer.pull(request, progress).await;
    drain.await.unwrap();
    pulled.map(drop)
}

async fn push(services: &Services, name: &str, reference: &str) -> Outcome {
    let (progress, mut reports) = mpsc::channel(16);
    let drain = tokio::spawn(async move { while reports.recv().await.is_some() {} });
    let reference: ImageRef = reference.parse().unwrap();
    let access = RegistryAccess::default();
    let request = PushRequest { name: name.into(), reference, platform: None, access };
    let pushed = services.transfer.push(request, progress).await;
    drain.await.unwrap();
    pushed.map(drop)
}

/// Gives stored content another name.
async fn name(services: &Services, name: &str, target: &Digest) -> Outcome {
    let size = services.content.info(target).await?.size;
    let target =
        store_api::Descriptor::new(store_api::media_type::OCI_MANIFEST, target.clone(), size);
    let now = Timestamp::now();
    let labels = Labels::new();
    let image = Image { name: name.into(), target, labels, created_at: now, updated_at: now };
    services.images.put(image).await.map(drop)
}

/// Writes a blob as a client does, in pieces; one that broke off is gone on with.
async fn put(services: &Services, bytes: &[u8], labels: Labels) -> Outcome {
    let total = u64::try_from(bytes.len()).unwrap();
    let reference = format!("put-{total}");
    let expected = Some(Digest::sha256(bytes));
    let request = store_api::WriteRequest { reference: reference.clone(), total, expected };
    let mut at = match services.content.open_writer(request).await {
        Err(error) if error.is_already_exists() => return Ok(()),
        other => other?.offset,
    };
    while at < total {
        let from = usize::try_from(at).unwrap();
        let piece = &bytes[from..(from + 120_000).min(bytes.len())];
        let piece = bytes::Bytes::copy_from_slice(piece);
        at = services.content.write(&reference, at, piece).await?;
    }
    exists(services.content.commit(&reference, at, None, labels).await)
}
