//! Commands started in a running container.

use crate::wire::{StrSlice, nil, zero};

wire! {
    /// Body of `POST /containers/{id}/exec`.
    #[derive(Eq)]
    pub struct ExecCreate {
        pub user: String,
        pub privileged: bool,
        pub tty: bool,
        /// Height, width in cells.
        #[serde(skip_serializing_if = "zero")]
        pub console_size: Option<[u32; 2]>,
        pub attach_stdin: bool,
        pub attach_stderr: bool,
        pub attach_stdout: bool,
        #[serde(skip_serializing_if = "zero")]
        pub detach: bool,
        pub detach_keys: String,
        #[serde(serialize_with = "nil")]
        pub env: Vec<String>,
        pub working_dir: String,
        pub cmd: StrSlice,
    }

    /// Body of `POST /exec/{id}/start`.
    #[derive(Eq)]
    pub struct ExecStart {
        pub detach: bool,
        pub tty: bool,
        #[serde(skip_serializing_if = "zero")]
        pub console_size: Option<[u32; 2]>,
    }

    /// Reply of `GET /exec/{id}/json`.
    #[derive(Eq)]
    pub struct ExecInspect {
        #[serde(rename = "ID")]
        pub id: String,
        pub running: bool,
        /// `None` while it runs.
        pub exit_code: Option<i64>,
        pub process_config: ExecProcessConfig,
        pub open_stdin: bool,
        pub open_stderr: bool,
        pub open_stdout: bool,
        pub can_remove: bool,
        #[serde(rename = "ContainerID")]
        pub container_id: String,
        /// Base64.
        pub detach_keys: String,
        pub pid: i64,
    }

    #[derive(Eq)]
    pub struct ExecProcessConfig {
        #[serde(rename = "tty")]
        pub tty: bool,
        #[serde(rename = "entrypoint")]
        pub entrypoint: String,
        #[serde(rename = "arguments")]
        pub arguments: Vec<String>,
        #[serde(rename = "privileged", skip_serializing_if = "zero")]
        pub privileged: Option<bool>,
        #[serde(rename = "user", skip_serializing_if = "zero")]
        pub user: String,
    }
}
