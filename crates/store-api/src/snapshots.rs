use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Descriptor, Labels, Result, Timestamp};

/// A mount as containerd's API describes it: mount(8)'s words, no descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    #[serde(default)]
    pub options: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Read-only use of a committed snapshot.
    View,
    /// Writable, not yet committed.
    Active,
    Committed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub kind: SnapshotKind,
    /// Key of an active snapshot or view, name of a committed one (a chain id for image layers).
    pub name: String,
    pub parent: Option<String>,
    pub labels: Labels,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Disk use of one snapshot without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// containerd's snapshots service, for the default snapshotter.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// The name under which gRPC clients ask for this snapshotter (`overlayfs`).
    fn name(&self) -> &str;
    /// The directory in which snapshots lie.
    fn root(&self) -> std::path::PathBuf;
    async fn stat(&self, key: &str) -> Result<SnapshotInfo>;
    async fn update(&self, key: &str, labels: Labels, keys: &[String]) -> Result<SnapshotInfo>;
    async fn usage(&self, key: &str) -> Result<Usage>;
    /// The mounts that show an active snapshot or view.
    async fn mounts(&self, key: &str) -> Result<Vec<Mount>>;
    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>>;
    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>>;
    /// Turns the active snapshot `key` into the committed `name`.
    async fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<()>;
    /// `FailedPrecondition` while another snapshot has it as its parent.
    async fn remove(&self, key: &str) -> Result<()>;
    async fn list(&self, filters: &[String]) -> Result<Vec<SnapshotInfo>>;
}

/// What [`Diffs::diff`] makes of two sets of mounts.
#[derive(Clone, Debug, Default)]
pub struct DiffRequest {
    pub lower: Vec<Mount>,
    pub upper: Vec<Mount>,
    /// Media type of the layer; empty: gzip-compressed OCI layer.
    pub media_type: String,
    /// Ingest reference; empty: a random one.
    pub reference: String,
    pub labels: Labels,
    /// Files changed later than this many seconds after 1970 are given that time (SOURCE_DATE_EPOCH).
    pub clamp_mtime: Option<i64>,
}

/// containerd's diff service.
#[async_trait]
pub trait Diffs: Send + Sync {
    /// Extracts a layer onto mounts; answers the uncompressed tar's descriptor.
    async fn apply(&self, layer: &Descriptor, mounts: &[Mount]) -> Result<Descriptor>;
    /// Brings the file systems to disk that writes to these mounts go to. A snapshot's files are synced
    /// with its record in any case; this is for who does not want to wait for that.
    async fn sync(&self, mounts: &[Mount]) -> Result<()>;
    /// Makes a layer of the difference; the label `containerd.io/uncompressed` holds its diffID.
    async fn diff(&self, request: DiffRequest) -> Result<Descriptor>;
}
