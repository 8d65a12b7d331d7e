//! The JSON messages of pull, push, load, import and build, and events.

use serde_json::Value;

use crate::wire::{Map, zero};

wire! {
    /// One message of a progress stream; messages are separated by `\r\n`.
    pub struct JsonMessage {
        #[serde(rename = "stream", skip_serializing_if = "zero")]
        pub stream: String,
        #[serde(rename = "status", skip_serializing_if = "zero")]
        pub status: String,
        /// `Some(default)` is written as `{}`, as dockerd does for layers without counts.
        #[serde(rename = "progressDetail", skip_serializing_if = "zero")]
        pub progress_detail: Option<ProgressDetail>,
        /// Ready-made bar, for old clients.
        #[serde(rename = "progress", skip_serializing_if = "zero")]
        pub progress: String,
        #[serde(rename = "id", skip_serializing_if = "zero")]
        pub id: String,
        #[serde(rename = "from", skip_serializing_if = "zero")]
        pub from: String,
        #[serde(rename = "time", skip_serializing_if = "zero")]
        pub time: i64,
        #[serde(rename = "timeNano", skip_serializing_if = "zero")]
        pub time_nano: i64,
        #[serde(rename = "errorDetail", skip_serializing_if = "zero")]
        pub error_detail: Option<ErrorDetail>,
        /// Repeats `error_detail.message`, for old clients.
        #[serde(rename = "error", skip_serializing_if = "zero")]
        pub error: String,
        #[serde(rename = "aux", skip_serializing_if = "zero")]
        pub aux: Option<Value>,
    }

    #[derive(Eq)]
    pub struct ProgressDetail {
        #[serde(rename = "current", skip_serializing_if = "zero")]
        pub current: i64,
        #[serde(rename = "total", skip_serializing_if = "zero")]
        pub total: i64,
        #[serde(rename = "start", skip_serializing_if = "zero")]
        pub start: i64,
        #[serde(rename = "hidecounts", skip_serializing_if = "zero")]
        pub hide_counts: bool,
        /// Empty means bytes.
        #[serde(rename = "units", skip_serializing_if = "zero")]
        pub units: String,
    }

    #[derive(Eq)]
    pub struct ErrorDetail {
        #[serde(rename = "code", skip_serializing_if = "zero")]
        pub code: i64,
        #[serde(rename = "message", skip_serializing_if = "zero")]
        pub message: String,
    }

    /// `aux` at the end of a push.
    #[derive(Eq)]
    pub struct PushResult {
        pub tag: String,
        pub digest: String,
        pub size: i64,
    }

    /// `aux` at the end of a build.
    #[derive(Eq)]
    pub struct BuildResult {
        #[serde(rename = "ID")]
        pub id: String,
    }

    /// One line of `GET /events`.
    #[derive(Eq)]
    pub struct Event {
        /// Repeats `action`; below 1.52, containers and images only.
        #[serde(rename = "status", skip_serializing_if = "zero")]
        pub status: String,
        /// Repeats `actor.id`; below 1.52, containers and images only.
        #[serde(rename = "id", skip_serializing_if = "zero")]
        pub id: String,
        /// The container's image; below 1.52.
        #[serde(rename = "from", skip_serializing_if = "zero")]
        pub from: String,
        pub r#type: String,
        pub action: String,
        pub actor: Actor,
        #[serde(rename = "scope", skip_serializing_if = "zero")]
        pub scope: String,
        /// Unix seconds.
        #[serde(rename = "time", skip_serializing_if = "zero")]
        pub time: i64,
        /// Unix nanoseconds.
        #[serde(rename = "timeNano", skip_serializing_if = "zero")]
        pub time_nano: i64,
    }

    #[derive(Eq)]
    pub struct Actor {
        #[serde(rename = "ID")]
        pub id: String,
        pub attributes: Map<String>,
    }
}
