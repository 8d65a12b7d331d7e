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

/// `containerd.services.introspection.v1.PluginInfoRequest`; since containerd 2.0.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginInfoRequest {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(message, optional, tag = "3")]
    pub options: Option<prost_types::Any>,
}

/// `containerd.services.introspection.v1.PluginInfoResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginInfoResponse {
    #[prost(message, optional, tag = "1")]
    pub plugin: Option<Plugin>,
    #[prost(message, optional, tag = "2")]
    pub extra: Option<prost_types::Any>,
}

/// `containerd.types.RuntimeRequest`: what the runtime's plugin is asked with.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeRequest {
    /// A runtime's name, or the path of its shim.
    #[prost(string, tag = "1")]
    pub runtime_path: String,
    #[prost(message, optional, tag = "2")]
    pub options: Option<prost_types::Any>,
}
