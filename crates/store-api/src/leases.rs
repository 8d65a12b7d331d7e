use async_trait::async_trait;

use crate::{Labels, Result, Timestamp};

/// Protects what it names from garbage collection until it is deleted or expires
/// (label `containerd.io/gc.expire`, RFC 3339).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: String,
    pub created_at: Timestamp,
    pub labels: Labels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    Content,
    Ingest,
    Snapshot,
}

/// Something that a lease protects: a digest, an ingest reference or a snapshot key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub kind: ResourceKind,
    pub id: String,
}

/// containerd's leases service.
#[async_trait]
pub trait Leases: Send + Sync {
    /// An empty `id` gets a random one.
    async fn create(&self, id: &str, labels: Labels) -> Result<Lease>;
    async fn delete(&self, id: &str, sync: bool) -> Result<()>;
    async fn list(&self, filters: &[String]) -> Result<Vec<Lease>>;
    async fn add_resource(&self, id: &str, resource: Resource) -> Result<()>;
    async fn delete_resource(&self, id: &str, resource: Resource) -> Result<()>;
    async fn resources(&self, id: &str) -> Result<Vec<Resource>>;
}
