//! `containerd.services.images.v1`.

use std::collections::BTreeMap;

/// `containerd.services.images.v1.Image`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Image {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "3")]
    pub target: Option<super::types::Descriptor>,
    #[prost(message, optional, tag = "7")]
    pub created_at: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "8")]
    pub updated_at: Option<prost_types::Timestamp>,
}

/// `containerd.services.images.v1.GetImageRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetImageRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `containerd.services.images.v1.GetImageResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetImageResponse {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
}

/// `containerd.services.images.v1.CreateImageRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateImageRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
    /// Since containerd 1.7: the times of the record.
    #[prost(message, optional, tag = "2")]
    pub source_date_epoch: Option<prost_types::Timestamp>,
}

/// `containerd.services.images.v1.CreateImageResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateImageResponse {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
}

/// `containerd.services.images.v1.UpdateImageRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateImageRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<prost_types::FieldMask>,
    /// Since containerd 1.7: the time of the change.
    #[prost(message, optional, tag = "3")]
    pub source_date_epoch: Option<prost_types::Timestamp>,
}

/// `containerd.services.images.v1.UpdateImageResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateImageResponse {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
}

/// `containerd.services.images.v1.ListImagesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListImagesRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// `containerd.services.images.v1.ListImagesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListImagesResponse {
    #[prost(message, repeated, tag = "1")]
    pub images: Vec<Image>,
}

/// `containerd.services.images.v1.DeleteImageRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteImageRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bool, tag = "2")]
    pub sync: bool,
    /// Since containerd 1.7: the record is deleted only while it points there.
    #[prost(message, optional, tag = "3")]
    pub target: Option<super::types::Descriptor>,
}
