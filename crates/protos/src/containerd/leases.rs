//! `containerd.services.leases.v1`.

use std::collections::BTreeMap;

/// `containerd.services.leases.v1.Lease`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Lease {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub created_at: Option<prost_types::Timestamp>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: BTreeMap<String, String>,
}

/// `containerd.services.leases.v1.CreateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: BTreeMap<String, String>,
}

/// `containerd.services.leases.v1.CreateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateResponse {
    #[prost(message, optional, tag = "1")]
    pub lease: Option<Lease>,
}

/// `containerd.services.leases.v1.DeleteRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub sync: bool,
}

/// `containerd.services.leases.v1.ListRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// `containerd.services.leases.v1.ListResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub leases: Vec<Lease>,
}

/// `containerd.services.leases.v1.Resource`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub kind: String,
}

/// `containerd.services.leases.v1.AddResourceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddResourceRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Resource>,
}

/// `containerd.services.leases.v1.DeleteResourceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteResourceRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Resource>,
}

/// `containerd.services.leases.v1.ListResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListResourcesRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `containerd.services.leases.v1.ListResourcesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListResourcesResponse {
    #[prost(message, repeated, tag = "1")]
    pub resources: Vec<Resource>,
}
