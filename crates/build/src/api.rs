//! What a build is asked for, what it tells, and what it needs from its host.

use std::{collections::BTreeMap, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use store_api::{Credentials, Descriptor, Progress};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use types::{Digest, ImageRef, Platform};

/// Name of the record of an image without a tag: this and its digest.
pub const DANGLING_PREFIX: &str = "moby-dangling@";

/// Where COPY and ADD read from.
#[derive(Clone, Debug, Default)]
pub enum Context {
    #[default]
    None,
    /// A local directory; it is only read.
    Dir(PathBuf),
    /// An open directory; it is only read.
    Fd(Arc<OwnedFd>),
    /// A tar file, compressed or not. The caller removes it.
    Tar(PathBuf),
}

/// Limits of each RUN, in the API's units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: Option<i64>,
    /// Memory and swap together; -1: no limit.
    pub memory_swap_bytes: Option<i64>,
    pub cpu_shares: Option<u64>,
    /// Microseconds per period.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// How RUN's containers are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Empty: the default network.
    pub network_mode: String,
    /// `name:address`
    pub extra_hosts: Vec<String>,
    pub shm_bytes: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    pub cgroup_parent: String,
    pub limits: Limits,
}

#[derive(Clone, Debug, Default)]
pub struct BuildRequest {
    pub context: Context,
    /// Path within the context; empty: `Dockerfile`.
    pub dockerfile: String,
    pub tags: Vec<ImageRef>,
    /// `None`: named without a value.
    pub build_args: BTreeMap<String, Option<String>>,
    pub labels: BTreeMap<String, String>,
    pub target: Option<String>,
    pub no_cache: bool,
    pub pull: bool,
    pub platform: Option<Platform>,
    pub squash: bool,
    /// Not built yet: anything but an empty list is refused.
    pub cache_from: Vec<String>,
    /// For base images, by registry as the caller knows it; handed on to [`Host::resolve_base`].
    pub credentials: Arc<BTreeMap<String, Credentials>>,
    pub run: RunOptions,
    /// `RUN --security=insecure` may be used.
    pub allow_insecure: bool,
    /// `RUN --network=host` may be used where the build as a whole is not on the host's network.
    pub allow_host_network: bool,
}

/// What a build tells while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent {
    /// Text as docker's classic builder prints it, with its newlines.
    Stream(String),
    /// Of a pull.
    Progress(Progress),
    /// The image's id, once.
    Aux { id: Digest },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The manifest.
    pub target: Descriptor,
    pub config: Digest,
    /// Image records that were put.
    pub names: Vec<String>,
}

/// An image that a Dockerfile names.
#[derive(Clone, Debug)]
pub struct BaseRequest {
    /// As in the Dockerfile, variables replaced.
    pub name: String,
    pub platform: Platform,
    /// Ask the registry even if the image is here.
    pub pull: bool,
    /// The build's own.
    pub credentials: Arc<BTreeMap<String, Credentials>>,
}

#[derive(Clone, Debug)]
pub struct Base {
    /// What the name means, normalised; `None` for an image given by id.
    pub reference: Option<ImageRef>,
    /// Manifest or index.
    pub target: Descriptor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StdStream {
    Stdout,
    Stderr,
}

/// A piece of a command's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub stream: StdStream,
    pub bytes: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepMountSource {
    /// A directory or file of the builder's on the host.
    Bind(PathBuf),
    Tmpfs {
        size_bytes: Option<u64>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepMount {
    /// Absolute, in the container; to be resolved within its root.
    pub target: String,
    pub read_only: bool,
    pub source: StepMountSource,
}

/// One command to run as a container.
#[derive(Clone, Debug)]
pub struct RunStep {
    /// 64 hexadecimal digits: a container id.
    pub id: String,
    /// The active snapshot that is its root filesystem. The builder owns it: it is neither committed
    /// nor removed by the host, and mounted only while the container runs.
    pub snapshot_key: String,
    pub args: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    /// Absolute; it exists.
    pub cwd: String,
    /// As USER says it; empty: root.
    pub user: String,
    pub hostname: String,
    pub platform: Platform,
    /// Empty: the default network; `none`, `host`, or a network's name.
    pub network_mode: String,
    /// `--security=insecure`: privileged.
    pub insecure: bool,
    pub mounts: Vec<StepMount>,
    pub options: RunOptions,
}

#[derive(Clone, Debug)]
pub struct FetchRequest {
    pub url: String,
    /// A file to make.
    pub to: PathBuf,
    pub limit_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// Unix seconds.
    pub last_modified: Option<i64>,
    /// From the answer's headers.
    pub file_name: Option<String>,
}

/// What the engine does for a build.
#[async_trait]
pub trait Host: Send + Sync {
    /// Finds an image here, or pulls it. Its layers need not be unpacked.
    async fn resolve_base(
        &self,
        request: BaseRequest,
        progress: mpsc::Sender<Progress>,
        cancel: CancellationToken,
    ) -> store_api::Result<Base>;

    /// Runs one command; answers its exit status when the container, its mounts and its network are
    /// gone and all output has been sent. On `cancel` it kills, cleans up, and answers `Cancelled`.
    async fn run_step(
        &self,
        step: RunStep,
        output: mpsc::Sender<Output>,
        cancel: CancellationToken,
    ) -> store_api::Result<i32>;

    /// Fetches an URL for ADD.
    async fn fetch(&self, request: FetchRequest) -> store_api::Result<Fetched> {
        Err(store_api::Error::not_implemented(format!("ADD of the URL {}", request.url)))
    }
}

/// What of the cache to remove.
#[derive(Clone, Debug, Default)]
pub struct PruneRequest {
    /// Also what images still use (their layers then stay for the images' sake).
    pub all: bool,
    /// Stop when no more than this is left; 0: remove everything that qualifies.
    pub keep_bytes: u64,
    pub unused_for: Option<std::time::Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub ids: Vec<String>,
    /// By the entries' own sizes.
    pub bytes: u64,
}

/// One entry of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    pub id: String,
    pub parent: Option<String>,
    /// `regular` or `exec.cachemount`
    pub kind: String,
    pub description: String,
    pub in_use: bool,
    pub shared: bool,
    pub bytes: u64,
    pub created: store_api::Timestamp,
    pub last_used: store_api::Timestamp,
    pub uses: u64,
}
