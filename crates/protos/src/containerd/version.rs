//! `containerd.services.version.v1`.

crate::grpc::service! {
    /// containerd's version service.
    pub trait Version, VersionServer = "containerd.services.version.v1.Version" {
        unary version = "Version": () => VersionResponse;
    }
}

/// `containerd.services.version.v1.VersionResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub revision: String,
}
