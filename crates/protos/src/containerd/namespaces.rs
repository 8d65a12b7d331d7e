//! `containerd.services.namespaces.v1`.

use std::collections::BTreeMap;

/// `containerd.services.namespaces.v1.Namespace`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Namespace {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

/// `containerd.services.namespaces.v1.GetNamespaceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetNamespaceRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `containerd.services.namespaces.v1.GetNamespaceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetNamespaceResponse {
    #[prost(message, optional, tag = "1")]
    pub namespace: Option<Namespace>,
}

/// `containerd.services.namespaces.v1.ListNamespacesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListNamespacesRequest {
    #[prost(string, tag = "1")]
    pub filter: String,
}

/// `containerd.services.namespaces.v1.ListNamespacesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListNamespacesResponse {
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<Namespace>,
}

/// `containerd.services.namespaces.v1.CreateNamespaceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateNamespaceRequest {
    #[prost(message, optional, tag = "1")]
    pub namespace: Option<Namespace>,
}

/// `containerd.services.namespaces.v1.CreateNamespaceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateNamespaceResponse {
    #[prost(message, optional, tag = "1")]
    pub namespace: Option<Namespace>,
}

/// `containerd.services.namespaces.v1.UpdateNamespaceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateNamespaceRequest {
    #[prost(message, optional, tag = "1")]
    pub namespace: Option<Namespace>,
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<prost_types::FieldMask>,
}

/// `containerd.services.namespaces.v1.UpdateNamespaceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateNamespaceResponse {
    #[prost(message, optional, tag = "1")]
    pub namespace: Option<Namespace>,
}

/// `containerd.services.namespaces.v1.DeleteNamespaceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteNamespaceRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}
