//! `containerd.services.transfer.v1`, `containerd.services.streaming.v1` and what they carry,
//! `containerd.types.transfer`; of containerd 1.7 and 2.x.

use std::collections::BTreeMap;

use super::types::Platform;

/// Names of the types, as in the URLs of an `Any`.
pub const OCI_REGISTRY: &str = "containerd.types.transfer.OCIRegistry";
pub const IMAGE_STORE: &str = "containerd.types.transfer.ImageStore";
pub const IMAGE_IMPORT_STREAM: &str = "containerd.types.transfer.ImageImportStream";
pub const IMAGE_EXPORT_STREAM: &str = "containerd.types.transfer.ImageExportStream";
pub const DATA: &str = "containerd.types.transfer.Data";
pub const WINDOW_UPDATE: &str = "containerd.types.transfer.WindowUpdate";
pub const PROGRESS: &str = "containerd.types.transfer.Progress";
pub const AUTH_REQUEST: &str = "containerd.types.transfer.AuthRequest";
pub const AUTH_RESPONSE: &str = "containerd.types.transfer.AuthResponse";
pub const STREAM_INIT: &str = "containerd.services.streaming.v1.StreamInit";
pub const EMPTY: &str = "google.protobuf.Empty";

/// `containerd.services.transfer.v1.TransferRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TransferRequest {
    #[prost(message, optional, tag = "1")]
    pub source: Option<prost_types::Any>,
    #[prost(message, optional, tag = "2")]
    pub destination: Option<prost_types::Any>,
    #[prost(message, optional, tag = "3")]
    pub options: Option<TransferOptions>,
}

/// `containerd.services.transfer.v1.TransferOptions`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TransferOptions {
    #[prost(string, tag = "1")]
    pub progress_stream: String,
}

/// `containerd.services.streaming.v1.StreamInit`, the first message of a stream.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamInit {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `containerd.types.transfer.OCIRegistry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OciRegistry {
    #[prost(string, tag = "1")]
    pub reference: String,
    #[prost(message, optional, tag = "2")]
    pub resolver: Option<RegistryResolver>,
}

/// `containerd.types.transfer.RegistryResolver`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistryResolver {
    #[prost(string, tag = "1")]
    pub auth_stream: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub headers: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    pub host_dir: String,
    #[prost(string, tag = "4")]
    pub default_scheme: String,
    /// Since containerd 2.0; see [`http_debug`].
    #[prost(int32, tag = "5")]
    pub http_debug: i32,
    /// Since containerd 2.0: the stream that takes the requests' dump.
    #[prost(string, tag = "6")]
    pub logs_stream: String,
}

/// Values of `HTTPDebug`.
pub mod http_debug {
    pub const DISABLED: i32 = 0;
    pub const DEBUG: i32 = 1;
    pub const TRACE: i32 = 2;
    pub const BOTH: i32 = 3;
}

/// `containerd.types.transfer.AuthRequest`, asked on the stream that the resolver names.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthRequest {
    #[prost(string, tag = "1")]
    pub host: String,
    #[prost(string, tag = "2")]
    pub reference: String,
    #[prost(string, repeated, tag = "3")]
    pub wwwauthenticate: Vec<String>,
}

/// `containerd.types.transfer.AuthResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthResponse {
    /// See [`auth_type`].
    #[prost(int32, tag = "1")]
    pub auth_type: i32,
    #[prost(string, tag = "2")]
    pub secret: String,
    #[prost(string, tag = "3")]
    pub username: String,
    #[prost(message, optional, tag = "4")]
    pub expire_at: Option<prost_types::Timestamp>,
}

/// Values of `AuthType`.
pub mod auth_type {
    pub const NONE: i32 = 0;
    pub const CREDENTIALS: i32 = 1;
    pub const REFRESH: i32 = 2;
    pub const HEADER: i32 = 3;
}

/// `containerd.types.transfer.ImageStore`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageStore {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "3")]
    pub platforms: Vec<Platform>,
    #[prost(bool, tag = "4")]
    pub all_metadata: bool,
    #[prost(uint32, tag = "5")]
    pub manifest_limit: u32,
    #[prost(message, repeated, tag = "6")]
    pub extra_references: Vec<ImageReference>,
    #[prost(message, repeated, tag = "10")]
    pub unpacks: Vec<UnpackConfiguration>,
}

/// `containerd.types.transfer.UnpackConfiguration`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnpackConfiguration {
    #[prost(message, optional, tag = "1")]
    pub platform: Option<Platform>,
    #[prost(string, tag = "2")]
    pub snapshotter: String,
}

/// `containerd.types.transfer.ImageReference`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageReference {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bool, tag = "2")]
    pub is_prefix: bool,
    #[prost(bool, tag = "3")]
    pub allow_overwrite: bool,
    #[prost(bool, tag = "4")]
    pub add_digest: bool,
    #[prost(bool, tag = "5")]
    pub skip_named_digest: bool,
}

/// `containerd.types.transfer.ImageImportStream`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageImportStream {
    #[prost(string, tag = "1")]
    pub stream: String,
    #[prost(string, tag = "2")]
    pub media_type: String,
    #[prost(bool, tag = "3")]
    pub force_compress: bool,
}

/// `containerd.types.transfer.ImageExportStream`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageExportStream {
    #[prost(string, tag = "1")]
    pub stream: String,
    #[prost(string, tag = "2")]
    pub media_type: String,
    #[prost(message, repeated, tag = "3")]
    pub platforms: Vec<Platform>,
    #[prost(bool, tag = "4")]
    pub all_platforms: bool,
    #[prost(bool, tag = "5")]
    pub skip_compatibility_manifest: bool,
    #[prost(bool, tag = "6")]
    pub skip_non_distributable: bool,
}

/// `containerd.types.transfer.Data`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Data {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: prost::bytes::Bytes,
}

/// `containerd.types.transfer.WindowUpdate`: bytes that the receiver takes beyond those before.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WindowUpdate {
    #[prost(int32, tag = "1")]
    pub update: i32,
}

/// `containerd.types.transfer.Progress`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Progress {
    #[prost(string, tag = "1")]
    pub event: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, repeated, tag = "3")]
    pub parents: Vec<String>,
    #[prost(int64, tag = "4")]
    pub progress: i64,
    #[prost(int64, tag = "5")]
    pub total: i64,
    /// Since containerd 2.0.
    #[prost(message, optional, tag = "6")]
    pub target: Option<super::types::Descriptor>,
}
