use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::{Any, Exit, Labels, Mount, ProcessId, Result, RuntimeInfo, Stdio, Timestamp};

/// What happened. The gRPC adapter turns each into containerd's event message and topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    TaskCreate {
        container_id: String,
        bundle: String,
        /// What the container's root is made of.
        rootfs: Vec<Mount>,
        stdio: Stdio,
        pid: u32,
    },
    TaskStart {
        container_id: String,
        pid: u32,
    },
    TaskExecAdded {
        process: ProcessId,
    },
    TaskExecStarted {
        process: ProcessId,
        pid: u32,
    },
    /// Topic `/tasks/exit`, for the first process and for every exec.
    TaskExit {
        process: ProcessId,
        pid: u32,
        exit: Exit,
    },
    TaskDelete {
        process: ProcessId,
        pid: u32,
        exit: Exit,
    },
    TaskOom {
        container_id: String,
    },
    TaskPaused {
        container_id: String,
    },
    TaskResumed {
        container_id: String,
    },
    ImageCreate {
        name: String,
        labels: Labels,
    },
    ImageUpdate {
        name: String,
        labels: Labels,
    },
    ImageDelete {
        name: String,
    },
    ContainerCreate {
        id: String,
        image: String,
        runtime: RuntimeInfo,
    },
    ContainerUpdate {
        id: String,
        image: String,
        labels: Labels,
        snapshot_key: String,
    },
    ContainerDelete {
        id: String,
    },
    SnapshotPrepare {
        key: String,
        parent: String,
    },
    SnapshotCommit {
        key: String,
        name: String,
    },
    SnapshotRemove {
        key: String,
    },
    ContentCreate {
        digest: String,
        size: u64,
    },
    ContentDelete {
        digest: String,
    },
    NamespaceCreate {
        name: String,
        labels: Labels,
    },
    NamespaceUpdate {
        name: String,
        labels: Labels,
    },
    NamespaceDelete {
        name: String,
    },
    /// Published or forwarded by a client, in its own words.
    Foreign {
        topic: String,
        event: Any,
    },
}

impl Event {
    /// containerd's topic, `/tasks/exit`.
    pub fn topic(&self) -> &str {
        match self {
            Self::TaskCreate { .. } => "/tasks/create",
            Self::TaskStart { .. } => "/tasks/start",
            Self::TaskExecAdded { .. } => "/tasks/exec-added",
            Self::TaskExecStarted { .. } => "/tasks/exec-started",
            Self::TaskExit { .. } => "/tasks/exit",
            Self::TaskDelete { .. } => "/tasks/delete",
            Self::TaskOom { .. } => "/tasks/oom",
            Self::TaskPaused { .. } => "/tasks/paused",
            Self::TaskResumed { .. } => "/tasks/resumed",
            Self::ImageCreate { .. } => "/images/create",
            Self::ImageUpdate { .. } => "/images/update",
            Self::ImageDelete { .. } => "/images/delete",
            Self::ContainerCreate { .. } => "/containers/create",
            Self::ContainerUpdate { .. } => "/containers/update",
            Self::ContainerDelete { .. } => "/containers/delete",
            Self::SnapshotPrepare { .. } => "/snapshot/prepare",
            Self::SnapshotCommit { .. } => "/snapshot/commit",
            Self::SnapshotRemove { .. } => "/snapshot/remove",
            Self::ContentCreate { .. } => "/content/create",
            Self::ContentDelete { .. } => "/content/delete",
            Self::NamespaceCreate { .. } => "/namespaces/create",
            Self::NamespaceUpdate { .. } => "/namespaces/update",
            Self::NamespaceDelete { .. } => "/namespaces/delete",
            Self::Foreign { topic, .. } => topic,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub timestamp: Timestamp,
    pub namespace: String,
    pub event: Event,
}

/// Events in order. The channel is bounded; a subscriber that falls behind by more than the bound is
/// cut off (the channel ends) and must subscribe and read the state anew.
pub type EventStream = mpsc::Receiver<Envelope>;

/// containerd's events service.
#[async_trait]
pub trait Events: Send + Sync {
    async fn publish(&self, topic: &str, event: Any) -> Result<()>;
    /// Events of this namespace; with `all_namespaces` of every one.
    async fn subscribe(&self, filters: &[String], all_namespaces: bool) -> Result<EventStream>;
}
