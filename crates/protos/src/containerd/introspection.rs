//! `containerd.services.introspection.v1`.

use std::collections::BTreeMap;

/// `containerd.services.introspection.v1.Plugin`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Plugin {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(string, repeated, tag = "3")]
    pub requires: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    pub platforms: Vec<super::types::Platform>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub exports: BTreeMap<String, String>,
    #[prost(string, repeated, tag = "6")]
    pub capabilities: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub init_err: Option<super::types::RpcStatus>,
}

/// `containerd.services.introspection.v1.PluginsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginsRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// `containerd.services.introspection.v1.PluginsResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginsResponse {
    #[prost(message, repeated, tag = "1")]
    pub plugins: Vec<Plugin>,
}

/// `containerd.services.introspection.v1.ServerResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerResponse {
    #[prost(string, tag = "1")]
    pub uuid: String,
    /// Since containerd 1.7.
    #[prost(uint64, tag = "2")]
    pub pid: u64,
    /// Since containerd 1.7: inode of the pid namespace.
    #[prost(uint64, tag = "3")]
    pub pidns: u64,
}
