//! `containerd.services.tasks.v1`.

use std::collections::BTreeMap;

/// `containerd.services.tasks.v1.CreateTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateTaskRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<super::types::Mount>,
    #[prost(string, tag = "4")]
    pub stdin: String,
    #[prost(string, tag = "5")]
    pub stdout: String,
    #[prost(string, tag = "6")]
    pub stderr: String,
    #[prost(bool, tag = "7")]
    pub terminal: bool,
    #[prost(message, optional, tag = "8")]
    pub checkpoint: Option<super::types::Descriptor>,
    #[prost(message, optional, tag = "9")]
    pub options: Option<prost_types::Any>,
    #[prost(string, tag = "10")]
    pub runtime_path: String,
}

/// `containerd.services.tasks.v1.CreateTaskResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateTaskResponse {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

/// `containerd.services.tasks.v1.StartRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// `containerd.services.tasks.v1.StartResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartResponse {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// `containerd.services.tasks.v1.DeleteTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteTaskRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `containerd.services.tasks.v1.DeleteResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteResponse {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    #[prost(uint32, tag = "3")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "4")]
    pub exited_at: Option<prost_types::Timestamp>,
}

/// `containerd.services.tasks.v1.DeleteProcessRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// `containerd.services.tasks.v1.GetRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// `containerd.services.tasks.v1.GetResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetResponse {
    #[prost(message, optional, tag = "1")]
    pub process: Option<super::types::Process>,
}

/// `containerd.services.tasks.v1.ListTasksRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListTasksRequest {
    #[prost(string, tag = "1")]
    pub filter: String,
}

/// `containerd.services.tasks.v1.ListTasksResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListTasksResponse {
    #[prost(message, repeated, tag = "1")]
    pub tasks: Vec<super::types::Process>,
}

/// `containerd.services.tasks.v1.KillRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KillRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    #[prost(bool, tag = "4")]
    pub all: bool,
}

/// `containerd.services.tasks.v1.ExecProcessRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub stdin: String,
    #[prost(string, tag = "3")]
    pub stdout: String,
    #[prost(string, tag = "4")]
    pub stderr: String,
    #[prost(bool, tag = "5")]
    pub terminal: bool,
    #[prost(message, optional, tag = "6")]
    pub spec: Option<prost_types::Any>,
    #[prost(string, tag = "7")]
    pub exec_id: String,
}

/// `containerd.services.tasks.v1.ResizePtyRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResizePtyRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub width: u32,
    #[prost(uint32, tag = "4")]
    pub height: u32,
}

/// `containerd.services.tasks.v1.CloseIORequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseIoRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(bool, tag = "3")]
    pub stdin: bool,
}

/// `containerd.services.tasks.v1.PauseTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PauseTaskRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `containerd.services.tasks.v1.ResumeTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResumeTaskRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `containerd.services.tasks.v1.ListPidsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListPidsRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `containerd.services.tasks.v1.ListPidsResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListPidsResponse {
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<super::types::ProcessInfo>,
}

/// `containerd.services.tasks.v1.CheckpointTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckpointTaskRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub parent_checkpoint: String,
    #[prost(message, optional, tag = "3")]
    pub options: Option<prost_types::Any>,
}

/// `containerd.services.tasks.v1.CheckpointTaskResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckpointTaskResponse {
    #[prost(message, repeated, tag = "1")]
    pub descriptors: Vec<super::types::Descriptor>,
}

/// `containerd.services.tasks.v1.UpdateTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateTaskRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(message, optional, tag = "2")]
    pub resources: Option<prost_types::Any>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub annotations: BTreeMap<String, String>,
}

/// `containerd.services.tasks.v1.MetricsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetricsRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// `containerd.services.tasks.v1.MetricsResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetricsResponse {
    #[prost(message, repeated, tag = "1")]
    pub metrics: Vec<super::types::Metric>,
}

/// `containerd.services.tasks.v1.WaitRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// `containerd.services.tasks.v1.WaitResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitResponse {
    #[prost(uint32, tag = "1")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "2")]
    pub exited_at: Option<prost_types::Timestamp>,
}
