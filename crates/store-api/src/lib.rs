//! The seam between the store and those who use it: engine, build, and the gRPC adapter.
//!
//! Owns: the traits, which mirror containerd's services, and their plain structs. Does not own: any
//! implementation. No closure, guard or descriptor crosses this seam, so that every trait has a local
//! and a gRPC form; one handle serves one namespace, so that namespaces are isolated by construction.

mod analysis;
mod containers;
mod content;
mod descriptor;
mod error;
mod events;
mod extras;
pub mod filters;
mod images;
mod leases;
mod snapshots;
mod tasks;
mod transfer;

use std::{collections::BTreeMap, sync::Arc};

pub use analysis::{
    AnalysisRequest, Cache, EXAMPLES_MAX, Fate, ImageAnalysis, LayerAnalysis, LayerFile, Waste,
    WasteKind, WastedFile,
};
pub use containers::{Any, Container, ContainerPatch, Containers, RuntimeInfo};
pub use content::{Content, ContentInfo, IngestStatus, WriteRequest};
pub use descriptor::{Descriptor, media_type};
pub use error::{Error, Result};
pub use events::{Envelope, Event, EventStream, Events};
pub use extras::{
    AttachPoint, Extras, Finding, FsckReport, FsckRequest, ImagePlatform, Logins, SquashBase,
    SquashRequest, UnpackedImage,
};
pub use images::{IMAGE_NAME_BYTES, Image, Images};
pub use leases::{Lease, Leases, Resource, ResourceKind};
pub use snapshots::{DiffRequest, Diffs, Mount, SnapshotInfo, SnapshotKind, Snapshots, Usage};
pub use tasks::{
    CreateTask, ExecTask, Exit, Metrics, Process, ProcessId, ProcessInfo, ProcessStatus, Stdio,
    Tasks, labels_task,
};
pub use transfer::{
    ByteStream, Credentials, ExportRequest, Fetched, ImportRequest, Imported, PULL_NAMES_MAX,
    Progress, ProgressSender, ProgressState, ProxyAccess, PullRecords, PullRequest, Pulled,
    PushRequest, RegistryAccess, Transfer,
};

/// Labels as containerd keeps them. A key and its value together have at most 4096 bytes
/// (containerd 1.6 `labels.Validate`).
pub type Labels = BTreeMap<String, String>;

/// Seconds and nanoseconds since 1970, UTC.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanos: u32,
}

impl Timestamp {
    /// The present moment by the system's clock.
    pub fn now() -> Self {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        }
    }
}

/// All of containerd's services for one namespace.
#[derive(Clone)]
pub struct Services {
    pub namespace: String,
    pub content: Arc<dyn Content>,
    pub images: Arc<dyn Images>,
    pub snapshots: Arc<dyn Snapshots>,
    pub diffs: Arc<dyn Diffs>,
    pub leases: Arc<dyn Leases>,
    pub containers: Arc<dyn Containers>,
    pub tasks: Arc<dyn Tasks>,
    pub events: Arc<dyn Events>,
    pub transfer: Arc<dyn Transfer>,
    /// What containerd does not know.
    pub extras: Arc<dyn Extras>,
}

/// Opens namespaces. The store implements it in-process, the gRPC client across a socket.
#[async_trait::async_trait]
pub trait Namespaces: Send + Sync {
    /// The services of `namespace`; it is made known when something is first written to it.
    fn open(&self, namespace: &str) -> Result<Services>;
    async fn list(&self) -> Result<Vec<(String, Labels)>>;
    async fn create(&self, namespace: &str, labels: Labels) -> Result<()>;
    /// Replaces the labels of an existing namespace.
    async fn update(&self, namespace: &str, labels: Labels) -> Result<()>;
    /// Fails with `FailedPrecondition` while the namespace holds anything.
    async fn delete(&self, namespace: &str) -> Result<()>;
}
