//! `containerd.services.diff.v1`.

use std::collections::BTreeMap;

/// `containerd.services.diff.v1.ApplyRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ApplyRequest {
    #[prost(message, optional, tag = "1")]
    pub diff: Option<super::types::Descriptor>,
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<super::types::Mount>,
    #[prost(btree_map = "string, message", tag = "3")]
    pub payloads: BTreeMap<String, prost_types::Any>,
    /// Since containerd 1.7.
    #[prost(bool, tag = "4")]
    pub sync_fs: bool,
}

/// `containerd.services.diff.v1.ApplyResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ApplyResponse {
    #[prost(message, optional, tag = "1")]
    pub applied: Option<super::types::Descriptor>,
}

/// `containerd.services.diff.v1.DiffRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DiffRequest {
    #[prost(message, repeated, tag = "1")]
    pub left: Vec<super::types::Mount>,
    #[prost(message, repeated, tag = "2")]
    pub right: Vec<super::types::Mount>,
    #[prost(string, tag = "3")]
    pub media_type: String,
    #[prost(string, tag = "4")]
    pub reference: String,
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
    /// Since containerd 1.7.
    #[prost(message, optional, tag = "6")]
    pub source_date_epoch: Option<prost_types::Timestamp>,
}

/// `containerd.services.diff.v1.DiffResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DiffResponse {
    #[prost(message, optional, tag = "3")]
    pub diff: Option<super::types::Descriptor>,
}
