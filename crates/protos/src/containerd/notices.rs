//! Event messages, beside those of tasks in [`crate::shim`]: `containerd.events`, and for images
//! `containerd.services.images.v1`, which is the package that containerd has declared those in.

use std::collections::BTreeMap;

use prost_types::Any;

/// `containerd.services.images.v1.ImageCreate`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageCreate {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

/// `containerd.services.images.v1.ImageUpdate`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageUpdate {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

/// `containerd.services.images.v1.ImageDelete`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageDelete {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `containerd.events.ContainerCreate`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerCreate {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub image: String,
    #[prost(message, optional, tag = "3")]
    pub runtime: Option<ContainerRuntime>,
}

/// `containerd.events.ContainerUpdate`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerUpdate {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub image: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: BTreeMap<String, String>,
    #[prost(string, tag = "4")]
    pub snapshot_key: String,
}

/// `containerd.events.ContainerDelete`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerDelete {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `containerd.events.SnapshotPrepare`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotPrepare {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub parent: String,
    #[prost(string, tag = "5")]
    pub snapshotter: String,
}

/// `containerd.events.SnapshotCommit`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotCommit {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "5")]
    pub snapshotter: String,
}

/// `containerd.events.SnapshotRemove`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotRemove {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "5")]
    pub snapshotter: String,
}

/// `containerd.events.ContentCreate`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContentCreate {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub size: i64,
}

/// `containerd.events.ContentDelete`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContentDelete {
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// `containerd.events.NamespaceCreate`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespaceCreate {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

/// `containerd.events.NamespaceUpdate`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespaceUpdate {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

/// `containerd.events.NamespaceDelete`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespaceDelete {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `containerd.events.ContainerCreate.Runtime`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRuntime {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub options: Option<Any>,
}
