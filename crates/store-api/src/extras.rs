use std::path::PathBuf;

use async_trait::async_trait;
use types::{Digest, Platform};

use crate::{ByteStream, Descriptor, Error, ProcessId, Result, Usage};

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

#[derive(Clone, Debug)]
pub struct SquashRequest {
    /// Manifest or index.
    pub target: Digest,
    /// Layers above the first `keep_layers` become one.
    pub keep_layers: usize,
    pub platform: Option<Platform>,
    pub comment: String,
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
    /// Makes a new manifest with the upper layers merged into one; the original stays.
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
    /// Collects garbage now and waits for it. Answers the bytes freed.
    async fn collect_garbage(&self) -> Result<u64>;
}
