use async_trait::async_trait;
use bytes::Bytes;

use crate::{Labels, Result, Timestamp};

/// A typed value, as protobuf's `Any`: containerd marshals runtime specs as JSON under the URL
/// `types.containerd.io/opencontainers/runtime-spec/1/Spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Any {
    pub type_url: String,
    pub value: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// `io.containerd.gantry.v2`; `io.containerd.runc.v2` is served by the same shim; an absolute
    /// path names another shim.
    pub name: String,
    pub options: Option<Any>,
}

/// containerd's container record: what a task is made from. It says nothing of a running process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    pub labels: Labels,
    pub image: String,
    pub runtime: RuntimeInfo,
    pub spec: Option<Any>,
    pub snapshotter: String,
    pub snapshot_key: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub extensions: std::collections::BTreeMap<String, Any>,
    pub sandbox_id: String,
}

/// A container with the fields to replace, by protobuf path (`labels`, `labels.k`, `spec`, …).
#[derive(Clone, Debug)]
pub struct ContainerPatch {
    pub container: Container,
    pub field_paths: Vec<String>,
}

/// containerd's containers service.
#[async_trait]
pub trait Containers: Send + Sync {
    async fn get(&self, id: &str) -> Result<Container>;
    async fn list(&self, filters: &[String]) -> Result<Vec<Container>>;
    async fn create(&self, container: Container) -> Result<Container>;
    async fn update(&self, patch: ContainerPatch) -> Result<Container>;
    async fn delete(&self, id: &str) -> Result<()>;
}
