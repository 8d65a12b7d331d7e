use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use types::{Digest, Platform};

use crate::{
    AnalysisRequest, ByteStream, Credentials, Descriptor, Error, ImageAnalysis, ProcessId,
    RegistryAccess, Result, Usage,
};

/// Where an attach client connects: a unix socket of the shim, mode 0600.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachPoint {
    pub socket: PathBuf,
}

/// An image whose layers are all there as committed snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpackedImage {
    pub manifest: Descriptor,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    pub diff_ids: Vec<Digest>,
    /// Snapshot name of each layer, bottom first; the last is what containers have as their parent.
    /// Empty for an image without layers.
    pub chain_ids: Vec<Digest>,
}

/// One platform's image below a manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlatform {
    /// As the index names it.
    pub manifest: Descriptor,
    /// What the index says, else the configuration. Empty fields: neither says it, or is here.
    pub platform: Platform,
    /// All of its content is here.
    pub whole: bool,
}

/// Which layers a squash leaves as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SquashBase {
    /// So many of the lowest ones.
    Layers(usize),
    /// Those of this image (manifest or index) for the same platform, which must be the lowest ones.
    Image(Digest),
}

#[derive(Clone, Debug)]
pub struct SquashRequest {
    /// Manifest or index.
    pub target: Digest,
    /// The layers above these become one.
    pub base: SquashBase,
    /// Of an index: squash this platform's image alone. Without it every image of the index that is
    /// wholly here is squashed.
    pub platform: Option<Platform>,
    /// Of the entry in the history; empty: `merge MANIFEST to BASE`.
    pub comment: String,
}

/// Whose credentials are meant for which registry, asked when one is about to be spoken to.
pub trait Logins: Send + Sync + std::fmt::Debug {
    /// What a registry (`HOST[:PORT]`, `docker.io`) is told; `None`: nothing. It may block.
    ///
    /// # Errors
    /// When it cannot be told, as of a credential helper that fails.
    fn of(&self, registry: &str) -> Result<Option<Credentials>>;
}

/// What a check of the whole store is asked to do.
#[derive(Clone, Debug, Default)]
pub struct FsckRequest {
    /// Make what is damaged whole again: from what else is here, or from the registry that it came from.
    /// What cannot be had is moved aside, so that the next pull brings it; nothing is deleted.
    pub repair: bool,
    /// How registries are reached. Its credentials would go to all of them: see `logins`.
    pub access: RegistryAccess,
    /// Of each registry its own credentials, in place of those of `access`.
    pub logins: Option<Arc<dyn Logins>>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// `content sha256:…`, `snapshot NAMESPACE/KEY`, `image NAMESPACE/NAME`, `record TABLE/…`, a path.
    pub object: String,
    pub problem: String,
    /// The way out.
    pub remedy: String,
    /// It was wrong, and a second look found it whole.
    pub repaired: bool,
}

/// What a check looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    pub blobs: u64,
    /// Bytes of all blobs.
    pub bytes: u64,
    pub snapshots: u64,
    pub images: u64,
    /// At most [`FsckReport::FINDINGS`].
    pub findings: Vec<Finding>,
    /// How many more there were.
    pub more: u64,
}

impl FsckReport {
    /// Findings that one report holds.
    pub const FINDINGS: usize = 10_000;

    /// Is nothing wrong any more?
    pub fn is_clean(&self) -> bool {
        self.more == 0 && self.findings.iter().all(|finding| finding.repaired)
    }
}

/// What containerd's services do not know.
#[async_trait]
pub trait Extras: Send + Sync {
    async fn attach_point(&self, process: &ProcessId) -> Result<AttachPoint>;
    /// Chooses the platform's manifest and extracts the layers that are not yet snapshots.
    async fn unpack(
        &self,
        target: &Descriptor,
        platform: Option<&Platform>,
    ) -> Result<UnpackedImage>;
    /// The same without extracting: `NotFound` when content is missing.
    async fn resolve_image(
        &self,
        target: &Descriptor,
        platform: Option<&Platform>,
    ) -> Result<UnpackedImage>;
    /// The images below a manifest or an index, in its order: what is here of which platform.
    async fn platforms(&self, target: &Descriptor) -> Result<Vec<ImagePlatform>>;
    /// Makes a new image with the upper layers merged into one; the original stays. Answers a manifest,
    /// or an index where an index was squashed and no platform chosen.
    ///
    /// # Errors
    /// `NotFound` when the platform, or every one, is not wholly here; `InvalidArgument` when there is
    /// no layer above the base, or the image does not stand on it.
    async fn squash(&self, request: SquashRequest) -> Result<Descriptor>;
    /// Makes the image that is embedded in the binary (`gantry/hello`) if `name` is one.
    /// `NotFound` otherwise.
    async fn embedded_image(&self, name: &str) -> Result<Descriptor>;
    /// Disk use of a committed layer or a writable snapshot, and of all its parents.
    async fn usage_with_parents(&self, key: &str) -> Result<(Usage, Usage)>;
    /// Makes an image of one layer out of a root filesystem's tar, compressed or not, as
    /// `docker import` does. `config`: the image configuration as JSON, without `rootfs`.
    /// Answers the manifest; with a `name` (not empty) an image record is put there too.
    async fn import_rootfs(
        &self,
        archive: ByteStream,
        config: Vec<u8>,
        name: &str,
    ) -> Result<Descriptor> {
        drop((archive, config, name));
        Err(Error::not_implemented("importing a root filesystem"))
    }
    /// Looks at everything in the store, of all namespaces: every blob's and tar's bytes against their
    /// digest, what is made of them, extracted layers against their blobs, records against each other and
    /// against the disk. It reads all of it; the store can be used meanwhile.
    async fn fsck(&self, request: FsckRequest) -> Result<FsckReport> {
        drop(request);
        Err(Error::not_implemented("checking the store"))
    }
    /// Reads all layers of an image through, in whatever form they are here.
    async fn analyse(&self, request: AnalysisRequest) -> Result<ImageAnalysis> {
        drop(request);
        Err(Error::not_implemented("the analysis of an image's layers"))
    }
    /// How many directories of snapshots are there that no record names: after the records had to be made
    /// anew they stay until the next start, so that what is in them can be saved.
    async fn unrecorded_snapshots(&self) -> Result<usize>;
    /// Collects garbage now and waits for it; unfinished writes that nobody works on go too. Answers the
    /// bytes freed.
    async fn collect_garbage(&self) -> Result<u64>;
    /// The bytes that [`Extras::collect_garbage`] would free now.
    async fn reclaimable(&self) -> Result<u64>;
}
