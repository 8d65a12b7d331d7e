//! Tasks, until the shims' manager is there: every operation is refused by name.

use std::{ffi::OsString, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use store_api::{
    Any, AttachPoint, Container, CreateTask, Envelope, Error, ExecTask, Exit, Metrics, Mount,
    Process, ProcessId, ProcessInfo, Result, Tasks,
};

/// What tasks need of the rest of the store.
#[async_trait]
pub trait TaskHost: Send + Sync + 'static {
    /// The container record. `NotFound` if none.
    async fn container(&self, namespace: &str, id: &str) -> Result<Container>;
    /// Mounts of a container's snapshot.
    async fn mounts(&self, namespace: &str, snapshotter: &str, key: &str) -> Result<Vec<Mount>>;
    /// Puts the envelope on the event bus. Never blocks.
    fn publish(&self, envelope: Envelope);
}

pub struct TasksConfig {
    pub state_dir: PathBuf,
    pub root_dir: PathBuf,
    pub grpc_address: String,
    pub ttrpc_socket: PathBuf,
    pub shim_command: Vec<OsString>,
    pub runtime_root: PathBuf,
}

impl TasksConfig {
    pub fn default_shim_command() -> Vec<OsString> {
        vec!["/proc/self/exe".into(), "shim".into()]
    }
}

pub struct ShimManager;

fn refused<T>() -> Result<T> {
    Err(Error::not_implemented("running tasks"))
}

impl ShimManager {
    pub async fn open(config: TasksConfig, host: Arc<dyn TaskHost>) -> Result<Arc<Self>> {
        drop((config, host));
        Ok(Arc::new(Self))
    }
    pub fn tasks(self: &Arc<Self>, _namespace: &str) -> Arc<dyn Tasks> {
        Arc::new(Refusing)
    }
    pub async fn attach_point(&self, _ns: &str, _process: &ProcessId) -> Result<AttachPoint> {
        refused()
    }
    pub fn has_task(&self, _namespace: &str, _container_id: &str) -> bool {
        false
    }
    pub fn has_tasks(&self, _namespace: &str) -> bool {
        false
    }
    pub fn running(&self) -> usize {
        0
    }
}

struct Refusing;

#[async_trait]
impl Tasks for Refusing {
    async fn create(&self, _: CreateTask) -> Result<u32> {
        refused()
    }
    async fn start(&self, _: &ProcessId) -> Result<u32> {
        refused()
    }
    async fn delete(&self, _: &ProcessId) -> Result<(u32, Exit)> {
        refused()
    }
    async fn exec(&self, _: ExecTask) -> Result<()> {
        refused()
    }
    async fn get(&self, _: &ProcessId) -> Result<Process> {
        refused()
    }
    async fn list(&self) -> Result<Vec<Process>> {
        Ok(Vec::new())
    }
    async fn kill(&self, _: &ProcessId, _: u32, _: bool) -> Result<()> {
        refused()
    }
    async fn resize(&self, _: &ProcessId, _: u16, _: u16) -> Result<()> {
        refused()
    }
    async fn close_stdin(&self, _: &ProcessId) -> Result<()> {
        refused()
    }
    async fn pids(&self, _: &str) -> Result<Vec<ProcessInfo>> {
        refused()
    }
    async fn pause(&self, _: &str) -> Result<()> {
        refused()
    }
    async fn resume(&self, _: &str) -> Result<()> {
        refused()
    }
    async fn update(&self, _: &str, _: Any) -> Result<()> {
        refused()
    }
    async fn metrics(&self, _: &str) -> Result<Metrics> {
        refused()
    }
    async fn wait(&self, _: &ProcessId) -> Result<Exit> {
        refused()
    }
}
