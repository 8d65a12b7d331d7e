//! Volumes.

use serde_json::Value;

use crate::wire::{Map, nil, zero};

wire! {
    /// Reply of `GET /volumes/{name}`; one row of `GET /volumes`.
    pub struct Volume {
        #[serde(skip_serializing_if = "zero")]
        pub created_at: String,
        pub driver: String,
        #[serde(serialize_with = "nil")]
        pub labels: Map<String>,
        pub mountpoint: String,
        pub name: String,
        #[serde(serialize_with = "nil")]
        pub options: Map<String>,
        pub scope: String,
        #[serde(skip_serializing_if = "zero")]
        pub status: Map<Value>,
        /// Only in `GET /system/df`.
        #[serde(skip_serializing_if = "zero")]
        pub usage_data: Option<VolumeUsage>,
    }

    #[derive(Eq)]
    pub struct VolumeUsage {
        /// -1 when not computed.
        pub ref_count: i64,
        /// Bytes; -1 when not computed.
        pub size: i64,
    }

    pub struct VolumeList {
        pub volumes: Vec<Volume>,
        #[serde(serialize_with = "nil")]
        pub warnings: Vec<String>,
    }

    /// Body of `POST /volumes/create`.
    #[derive(Eq)]
    pub struct VolumeCreate {
        /// Empty: the engine makes one up.
        #[serde(skip_serializing_if = "zero")]
        pub name: String,
        #[serde(skip_serializing_if = "zero")]
        pub driver: String,
        #[serde(skip_serializing_if = "zero")]
        pub driver_opts: Map<String>,
        #[serde(skip_serializing_if = "zero")]
        pub labels: Map<String>,
        /// Swarm only; the engine refuses it.
        #[serde(skip_serializing_if = "zero")]
        pub cluster_volume_spec: Option<Value>,
    }
}
