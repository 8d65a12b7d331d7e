use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use types::{Digest, ImageRef, Platform};

use crate::{Descriptor, Labels, Result};

/// Names that one pull may give an image.
pub const PULL_NAMES_MAX: usize = 256;

/// Bytes that arrive bit by bit; an error ends them.
pub type ByteStream = mpsc::Receiver<Result<Bytes>>;

/// What a registry is told of who asks. Debug output hides every secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How registries are reached. The engine fills it from daemon.json.
#[derive(Clone, Debug, Default)]
pub struct RegistryAccess {
    pub credentials: Option<Credentials>,
    /// Hosts, `host:port` or CIDR, that may be spoken to without TLS. 127.0.0.0/8 always may.
    pub insecure: Vec<String>,
    /// Mirrors of docker.io, in order.
    pub mirrors: Vec<String>,
    /// Directories in the manner of `/etc/docker/certs.d`.
    pub certs_dirs: Vec<PathBuf>,
    /// containerd's `--plain-http`.
    pub plain_http: bool,
    /// `X-Meta-*` headers of the client.
    pub headers: Vec<(String, String)>,
    /// Layers downloaded at once; 0: the store's own choice.
    pub max_concurrent: usize,
    /// Attempts for each request and stalled download; 0: the store's own choice.
    pub attempts: u32,
    pub proxy: ProxyAccess,
}

/// Proxies in place of those of the environment; what is empty is the environment's.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyAccess {
    /// `http://[user:password@]host[:port]`, for registries without TLS.
    pub http: String,
    pub https: String,
    /// As `NO_PROXY`.
    pub except: String,
}

impl std::fmt::Debug for ProxyAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The addresses may hold passwords.
        f.debug_struct("ProxyAccess").field("except", &self.except).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
pub struct PullRequest {
    pub reference: ImageRef,
    /// `None`: this machine's.
    pub platform: Option<Platform>,
    /// Every platform of an index (containerd's `--all-platforms`).
    pub all_platforms: bool,
    /// Manifests and configurations of an index's other platforms too, without their layers.
    pub all_metadata: bool,
    pub access: RegistryAccess,
    /// Extract the layers into snapshots too.
    pub unpack: bool,
    pub records: PullRecords,
}

/// The image records that a pull writes once all content is there.
#[derive(Clone, Debug, Default)]
pub struct PullRecords {
    /// At most [`PULL_NAMES_MAX`]; none: the reference's own name. No other record is touched.
    pub names: Vec<String>,
    /// Labels of the records; none: a record that points at the image already keeps its own.
    pub labels: Labels,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub name: String,
    pub target: Descriptor,
    /// The record pointed there already, and all content was present.
    pub up_to_date: bool,
}

#[derive(Clone, Debug)]
pub struct PushRequest {
    /// The image record to push.
    pub name: String,
    /// Where to; mostly the same.
    pub reference: ImageRef,
    /// Only this platform of an index.
    pub platform: Option<Platform>,
    pub access: RegistryAccess,
}

#[derive(Clone, Debug, Default)]
pub struct ImportRequest {
    /// Only these platforms; empty: all that are there.
    pub platforms: Vec<Platform>,
    pub unpack: bool,
    /// containerd's `--index-name`; empty: none.
    pub index_name: String,
    /// The repository of what the archive names by a tag alone (containerd's `--base-name`); empty: that of
    /// `index_name`, if any.
    pub base_name: String,
    /// No names of other repositories than `base_name`.
    pub base_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Empty for an image that the archive does not name.
    pub name: String,
    pub target: Descriptor,
}

#[derive(Clone, Debug, Default)]
pub struct ExportRequest {
    /// Image records, by name.
    pub names: Vec<String>,
    /// Content without a record, by digest of manifest or index.
    pub targets: Vec<Digest>,
    /// Of one its manifest goes out, of several the index with these platforms' content; empty: the index
    /// with all that is here.
    pub platforms: Vec<Platform>,
    /// docker's manifest.json and repositories beside the OCI layout.
    pub docker_compatible: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    Waiting,
    Downloading,
    Verifying,
    Downloaded,
    Extracting,
    /// Content that was here before.
    Exists,
    Complete,
    Uploading,
    Uploaded,
    /// Pushed by mounting from another repository of the registry.
    Mounted,
    Resolving,
    Resolved,
    Retrying,
}

/// A step of a transfer, of one blob or of the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The blob; `None`: the transfer as a whole.
    pub digest: Option<Digest>,
    /// For layers the diffID, where known: docker shows extraction under it.
    pub diff_id: Option<Digest>,
    pub is_layer: bool,
    pub state: ProgressState,
    /// Bytes.
    pub current: u64,
    /// Bytes; 0: unknown.
    pub total: u64,
    pub message: String,
}

/// Bounded; what does not fit is dropped unless it is a change of state.
pub type ProgressSender = mpsc::Sender<Progress>;

/// What a web server told about a download.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Unix seconds.
    pub last_modified: Option<i64>,
    /// As the server wrote it.
    pub file_name: Option<String>,
}

/// containerd's transfer service.
#[async_trait]
pub trait Transfer: Send + Sync {
    async fn pull(&self, request: PullRequest, progress: ProgressSender) -> Result<Pulled>;
    async fn push(&self, request: PushRequest, progress: ProgressSender) -> Result<Descriptor>;
    /// Reads a docker archive (any layout), an OCI layout as a tar, compressed or not.
    async fn import(
        &self,
        request: ImportRequest,
        archive: ByteStream,
        progress: ProgressSender,
    ) -> Result<Vec<Imported>>;
    /// Writes an OCI layout as a tar.
    async fn export(&self, request: ExportRequest) -> Result<ByteStream>;
    /// Asks the registry what a reference means, without fetching layers.
    async fn resolve(&self, reference: &ImageRef, access: &RegistryAccess) -> Result<Descriptor>;
    /// Every tag of the repository.
    async fn tags(&self, reference: &ImageRef, access: &RegistryAccess) -> Result<Vec<String>>;
    /// Downloads an URL of a web server into a new file, without credentials: at most `limit_bytes`.
    async fn fetch(
        &self,
        url: &str,
        to: &std::path::Path,
        limit_bytes: u64,
        access: &RegistryAccess,
    ) -> Result<Fetched>;
    /// Checks credentials against a registry (docker login); answers an identity token if one is given.
    async fn login(&self, server: &str, access: &RegistryAccess) -> Result<Option<String>>;
}
