//! The seam's traits for one namespace: each call goes to the sync core through the pool.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use store_api::{
    AnalysisRequest, Any, AttachPoint, ByteStream, Container, ContainerPatch, Containers, Content,
    ContentInfo, Descriptor, DiffRequest, Diffs, Error, Event, EventStream, Events, ExportRequest,
    Extras, Fetched, FsckReport, FsckRequest, Image, ImageAnalysis, ImagePlatform, Images,
    ImportRequest, Imported, IngestStatus, Labels, Lease, Leases, Mount, ProcessId, ProgressSender,
    PullRequest, Pulled, PushRequest, RegistryAccess, Resource, Result, SnapshotInfo, Snapshots,
    SquashRequest, Timestamp, Transfer, UnpackedImage, Usage, WriteRequest,
};
use types::{Digest, ErrorKind, ImageRef, Platform};

use crate::{
    Core,
    content::Writer,
    error::Result as CoreResult,
    extras,
    guard::Operation,
    pool::Pool,
    progress::Reporter,
    snapshots::{Kind, SNAPSHOTTER},
    tasks::ShimManager,
    transfer,
};

/// One namespace of the store in this process.
#[derive(Clone)]
pub(crate) struct Local {
    pub(crate) core: Arc<Core>,
    pub(crate) ns: Arc<str>,
    pub(crate) pool: Pool,
    pub(crate) tasks: Arc<ShimManager>,
    /// What all work is a step of.
    pub(crate) operation: Option<Operation>,
}

impl Local {
    /// The same namespace for one operation of many steps.
    pub(crate) fn for_operation(&self) -> Self {
        Self { operation: Some(self.core.guard.operation()), ..self.clone() }
    }

    /// `work` as a step of the operation, which lasts until this has ended.
    fn step<T>(
        &self,
        work: impl FnOnce(&Core, &str) -> CoreResult<T> + Send + 'static,
    ) -> impl FnOnce(&Arc<Core>) -> CoreResult<T> + Send + 'static {
        let (ns, operation) = (Arc::clone(&self.ns), self.operation.clone());
        move |core| match operation {
            Some(operation) => operation.run(|| work(core, &ns)),
            None => work(core, &ns),
        }
    }

    /// Work that takes a moment.
    pub(crate) async fn quick<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core, &str) -> CoreResult<T> + Send + 'static,
    ) -> Result<T> {
        self.pool.quick(&self.core, self.step(work)).await
    }

    /// Work that hashes, compresses or extracts.
    pub(crate) async fn heavy<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core, &str) -> CoreResult<T> + Send + 'static,
    ) -> Result<T> {
        self.pool.heavy(&self.core, self.step(work)).await
    }

    /// The same at the pace of a client, whose stream it reads or writes.
    pub(crate) async fn transfer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core, &str) -> CoreResult<T> + Send + 'static,
    ) -> Result<T> {
        self.pool.transfer(&self.core, self.step(work)).await
    }
}

#[async_trait]
impl Content for Local {
    async fn info(&self, digest: &Digest) -> Result<ContentInfo> {
        let digest = digest.clone();
        self.quick(move |core, ns| core.content_info(ns, &digest)).await
    }

    async fn list(&self, filters: &[String]) -> Result<Vec<ContentInfo>> {
        let filters = filters.to_vec();
        self.quick(move |core, ns| core.content_list(ns, &filters)).await
    }

    async fn update(
        &self,
        digest: &Digest,
        labels: Labels,
        keys: &[String],
    ) -> Result<ContentInfo> {
        let (digest, keys) = (digest.clone(), keys.to_vec());
        self.quick(move |core, ns| core.content_update(ns, &digest, &labels, &keys)).await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let digest = digest.clone();
        self.quick(move |core, ns| core.content_delete(ns, &digest)).await
    }

    async fn read_at(&self, digest: &Digest, offset: u64, limit_bytes: usize) -> Result<Bytes> {
        let digest = digest.clone();
        self.quick(move |core, ns| core.read_at(ns, &digest, offset, limit_bytes)).await
    }

    async fn open_writer(&self, request: WriteRequest) -> Result<IngestStatus> {
        self.quick(move |core, ns| core.open_writer(ns, &request, Writer::Client)).await
    }

    async fn write(&self, reference: &str, offset: u64, bytes: Bytes) -> Result<u64> {
        let reference = reference.to_string();
        self.heavy(move |core, ns| core.ingest_write(ns, &reference, offset, &bytes)).await
    }

    async fn digest(&self, reference: &str) -> Result<Digest> {
        let reference = reference.to_string();
        self.heavy(move |core, ns| core.ingest_digest(ns, &reference)).await
    }

    async fn commit(
        &self,
        reference: &str,
        size: u64,
        expected: Option<&Digest>,
        labels: Labels,
    ) -> Result<Digest> {
        let (reference, expected) = (reference.to_string(), expected.cloned());
        self.heavy(move |core, ns| {
            core.ingest_commit(ns, &reference, size, expected.as_ref(), labels)
        })
        .await
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        let reference = reference.to_string();
        self.quick(move |core, ns| core.ingest_abort(ns, &reference)).await
    }

    async fn ingests(&self, filters: &[String]) -> Result<Vec<IngestStatus>> {
        let filters = filters.to_vec();
        self.quick(move |core, ns| core.ingests(ns, &filters)).await
    }
}

#[async_trait]
impl Images for Local {
    async fn get(&self, name: &str) -> Result<Image> {
        let name = name.to_string();
        self.quick(move |core, ns| core.image_get(ns, &name)).await
    }

    async fn list(&self, filters: &[String]) -> Result<Vec<Image>> {
        let filters = filters.to_vec();
        self.quick(move |core, ns| core.image_list(ns, &filters)).await
    }

    async fn create(&self, image: Image, at: Option<Timestamp>) -> Result<Image> {
        self.quick(move |core, ns| core.image_create(ns, image, at)).await
    }

    async fn update(
        &self,
        image: Image,
        field_paths: &[String],
        at: Option<Timestamp>,
    ) -> Result<Image> {
        let paths = field_paths.to_vec();
        self.quick(move |core, ns| core.image_update(ns, image, &paths, at)).await
    }

    async fn put(&self, image: Image) -> Result<Image> {
        self.quick(move |core, ns| core.image_put(ns, image)).await
    }

    async fn delete(&self, name: &str, sync: bool) -> Result<()> {
        let name = name.to_string();
        self.quick(move |core, ns| core.image_delete(ns, &name, sync)).await
    }
}

#[async_trait]
impl Snapshots for Local {
    fn name(&self) -> &str {
        SNAPSHOTTER
    }

    fn root(&self) -> std::path::PathBuf {
        self.core.root.join("snapshots")
    }

    async fn stat(&self, key: &str) -> Result<SnapshotInfo> {
        let key = key.to_string();
        self.quick(move |core, ns| core.snapshot_stat(ns, &key)).await
    }

    async fn update(&self, key: &str, labels: Labels, keys: &[String]) -> Result<SnapshotInfo> {
        let (key, keys) = (key.to_string(), keys.to_vec());
        self.quick(move |core, ns| core.snapshot_update(ns, &key, &labels, &keys)).await
    }

    async fn usage(&self, key: &str) -> Result<Usage> {
        let key = key.to_string();
        self.heavy(move |core, ns| core.snapshot_usage(ns, &key)).await
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let key = key.to_string();
        self.quick(move |core, ns| core.snapshot_mounts(ns, &key)).await
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let (key, parent) = (key.to_string(), parent.map(String::from));
        let prepare = move |core: &Core, ns: &str| {
            core.snapshot_prepare(ns, &key, parent.as_deref(), Kind::Active, labels)
        };
        // A copy takes as long as its parent is large.
        if self.core.disk.copies { self.heavy(prepare).await } else { self.quick(prepare).await }
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let (key, parent) = (key.to_string(), parent.map(String::from));
        self.quick(move |core, ns| {
            core.snapshot_prepare(ns, &key, parent.as_deref(), Kind::View, labels)
        })
        .await
    }

    async fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<()> {
        let (name, key) = (name.to_string(), key.to_string());
        self.heavy(move |core, ns| core.snapshot_commit(ns, &name, &key, labels)).await
    }

    async fn remove(&self, key: &str) -> Result<()> {
        let key = key.to_string();
        self.quick(move |core, ns| core.snapshot_remove(ns, &key)).await
    }

    async fn list(&self, filters: &[String]) -> Result<Vec<SnapshotInfo>> {
        let filters = filters.to_vec();
        self.quick(move |core, ns| core.snapshot_list(ns, &filters)).await
    }
}

#[async_trait]
impl Diffs for Local {
    async fn apply(&self, layer: &Descriptor, mounts: &[Mount]) -> Result<Descriptor> {
        let (layer, mounts) = (layer.clone(), mounts.to_vec());
        self.heavy(move |core, ns| core.apply(ns, &layer, &mounts)).await
    }

    async fn sync(&self, mounts: &[Mount]) -> Result<()> {
        let mounts = mounts.to_vec();
        self.heavy(move |core, _| core.sync_mounts(&mounts)).await
    }

    async fn diff(&self, request: DiffRequest) -> Result<Descriptor> {
        self.heavy(move |core, ns| core.diff(ns, &request)).await
    }
}

#[async_trait]
impl Leases for Local {
    async fn create(&self, id: &str, labels: Labels) -> Result<Lease> {
        let id = id.to_string();
        self.quick(move |core, ns| core.lease_create(ns, &id, labels)).await
    }

    async fn delete(&self, id: &str, sync: bool) -> Result<()> {
        let id = id.to_string();
        self.quick(move |core, ns| core.lease_delete(ns, &id, sync)).await
    }

    async fn list(&self, filters: &[String]) -> Result<Vec<Lease>> {
        let filters = filters.to_vec();
        self.quick(move |core, ns| core.lease_list(ns, &filters)).await
    }

    async fn add_resource(&self, id: &str, resource: Resource) -> Result<()> {
        let id = id.to_string();
        self.quick(move |core, ns| core.lease_change(ns, &id, resource, true)).await
    }

    async fn delete_resource(&self, id: &str, resource: Resource) -> Result<()> {
        let id = id.to_string();
        self.quick(move |core, ns| core.lease_change(ns, &id, resource, false)).await
    }

    async fn resources(&self, id: &str) -> Result<Vec<Resource>> {
        let id = id.to_string();
        self.quick(move |core, ns| core.lease_resources(ns, &id)).await
    }
}

#[async_trait]
impl Containers for Local {
    async fn get(&self, id: &str) -> Result<Container> {
        let id = id.to_string();
        self.quick(move |core, ns| core.container_get(ns, &id)).await
    }

    async fn list(&self, filters: &[String]) -> Result<Vec<Container>> {
        let filters = filters.to_vec();
        self.quick(move |core, ns| core.container_list(ns, &filters)).await
    }

    async fn create(&self, container: Container) -> Result<Container> {
        self.quick(move |core, ns| core.container_create(ns, container)).await
    }

    async fn update(&self, patch: ContainerPatch) -> Result<Container> {
        self.quick(move |core, ns| core.container_update(ns, &patch)).await
    }

    async fn delete(&self, id: &str) -> Result<()> {
        if self.tasks.has_task(&self.ns, id) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("cannot delete container \"{id}\": it has a task"),
            ));
        }
        let id = id.to_string();
        self.quick(move |core, ns| core.container_delete(ns, &id)).await
    }
}

#[async_trait]
impl Events for Local {
    async fn publish(&self, topic: &str, event: Any) -> Result<()> {
        let parts: Vec<&str> = topic.split('/').collect();
        if parts.len() < 2 || !parts[0].is_empty() || parts[1..].iter().any(|p| p.is_empty()) {
            return Err(Error::invalid(format!("event topic {topic:?} is not of the form /a/b")));
        }
        self.core.bus.publish(&self.ns, Event::Foreign { topic: topic.into(), event });
        Ok(())
    }

    async fn subscribe(&self, filters: &[String], all_namespaces: bool) -> Result<EventStream> {
        let namespace = (!all_namespaces).then_some(&*self.ns);
        Ok(self.core.bus.subscribe(namespace, filters)?)
    }
}

#[async_trait]
impl Transfer for Local {
    async fn pull(&self, request: PullRequest, progress: ProgressSender) -> Result<Pulled> {
        transfer::pull(self, request, progress).await
    }

    async fn push(&self, request: PushRequest, progress: ProgressSender) -> Result<Descriptor> {
        transfer::push(self, request, progress).await
    }

    async fn import(
        &self,
        request: ImportRequest,
        archive: ByteStream,
        progress: ProgressSender,
    ) -> Result<Vec<Imported>> {
        self.transfer(move |core, ns| {
            let reporter = Reporter::new(progress);
            core.operation(|| transfer::import(core, ns, &request, archive, &reporter))
        })
        .await
    }

    async fn export(&self, request: ExportRequest) -> Result<ByteStream> {
        transfer::export(self, request).await
    }

    async fn resolve(&self, reference: &ImageRef, access: &RegistryAccess) -> Result<Descriptor> {
        transfer::resolve(self, reference, access).await
    }

    async fn tags(&self, reference: &ImageRef, access: &RegistryAccess) -> Result<Vec<String>> {
        transfer::tags(self, reference, access).await
    }

    async fn fetch(
        &self,
        url: &str,
        to: &std::path::Path,
        limit_bytes: u64,
        access: &RegistryAccess,
    ) -> Result<Fetched> {
        transfer::fetch(self, url, (to, limit_bytes), access).await
    }

    async fn login(&self, server: &str, access: &RegistryAccess) -> Result<Option<String>> {
        transfer::login(self, server, access).await
    }
}

#[async_trait]
impl Extras for Local {
    async fn attach_point(&self, process: &ProcessId) -> Result<AttachPoint> {
        self.tasks.attach_point(&self.ns, process).await
    }

    async fn unpack(
        &self,
        target: &Descriptor,
        platform: Option<&Platform>,
    ) -> Result<UnpackedImage> {
        let (target, platform) = (target.clone(), platform.cloned());
        self.heavy(move |core, ns| {
            core.operation(|| core.unpack(ns, &target, platform.as_ref(), &Reporter::silent()))
        })
        .await
    }

    async fn resolve_image(
        &self,
        target: &Descriptor,
        platform: Option<&Platform>,
    ) -> Result<UnpackedImage> {
        let (target, platform) = (target.clone(), platform.cloned());
        self.quick(move |core, ns| core.resolve_image(ns, &target, platform.as_ref())).await
    }

    async fn platforms(&self, target: &Descriptor) -> Result<Vec<ImagePlatform>> {
        let target = target.clone();
        self.heavy(move |core, ns| core.platforms_of(ns, &target)).await
    }

    async fn squash(&self, request: SquashRequest) -> Result<Descriptor> {
        self.heavy(move |core, ns| core.operation(|| core.squash(ns, &request))).await
    }

    async fn embedded_image(&self, name: &str) -> Result<Descriptor> {
        let name = name.to_string();
        self.quick(move |core, ns| core.embedded_image(ns, &name)).await
    }

    async fn usage_with_parents(&self, key: &str) -> Result<(Usage, Usage)> {
        let key = key.to_string();
        self.heavy(move |core, ns| core.usage_with_parents(ns, &key)).await
    }

    async fn import_rootfs(
        &self,
        archive: ByteStream,
        config: Vec<u8>,
        name: &str,
    ) -> Result<Descriptor> {
        let name = name.to_string();
        self.transfer(move |core, ns| {
            core.operation(|| core.import_rootfs(ns, archive, &config, &name))
        })
        .await
    }

    async fn fsck(&self, request: FsckRequest) -> Result<FsckReport> {
        crate::fsck::fsck(self, request).await
    }

    async fn analyse(&self, request: AnalysisRequest) -> Result<ImageAnalysis> {
        extras::analyse(self, request).await
    }

    async fn unrecorded_snapshots(&self) -> Result<usize> {
        self.heavy(|core, _| core.unrecorded_snapshots()).await
    }

    async fn collect_garbage(&self) -> Result<u64> {
        self.heavy(|core, _| core.prune()).await
    }

    async fn reclaimable(&self) -> Result<u64> {
        self.heavy(|core, _| core.reclaimable()).await
    }
}
