//! Tasks: containers that run, each under a shim that outlives the store.
//!
//! Owns: bundles, the connections to shims, the socket on which shims report events, and what is
//! known of processes and their exits. Does not own: stdio, logs, exit statuses (the shim's), the
//! container records and snapshots (asked for through [`TaskHost`]).
//!
//! On disk: bundles, see `bundle.rs`; shims' sockets in `STATE/s`.
//!
//! Locks: `Inner::tasks` (which tasks there are), then a task's `state`; neither is held across an
//! await. Tasks of tokio: one for the events socket and one for each of its connections; for every
//! connection to a shim a reader and a watcher of its end; for every running process one that waits
//! for its exit.

mod adopt;
mod bundle;
mod events;
mod launch;
mod metrics;
mod operations;
mod task;
mod ttrpc;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use store_api::{
    AttachPoint, Container, Envelope, Error, Mount, ProcessId, ProcessStatus, Result, Tasks,
};
use tokio::{sync::watch, task::JoinHandle};
use types::ErrorKind;

use self::task::Task;

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

/// Where tasks live and how shims are started.
#[derive(Clone, Debug)]
pub struct TasksConfig {
    /// Bundles and shims' sockets lie here. Socket paths hold 108 bytes: at most 35 for this one.
    pub state_dir: PathBuf,
    /// Foreign shims' own data.
    pub root_dir: PathBuf,
    /// Path of the store's gRPC socket, which shims are told.
    pub grpc_address: String,
    /// The socket for shims' events; bound here.
    pub ttrpc_socket: PathBuf,
    /// Program and leading arguments of our own shim. It is called under its own name,
    /// `containerd-shim-gantry-v2`, whatever the file's is.
    pub shim_command: Vec<OsString>,
    /// State of the linked OCI runtime; the namespace is appended.
    pub runtime_root: PathBuf,
}

impl TasksConfig {
    /// This executable, which knows its role by the name it is called under.
    pub fn default_shim_command() -> Vec<OsString> {
        vec!["/proc/self/exe".into()]
    }
}

/// All tasks of all namespaces. Dropping it leaves shims and containers alone.
pub struct ShimManager {
    inner: Arc<Inner>,
    /// `None`: no events are received.
    events: Option<JoinHandle<()>>,
}

/// A task's key: namespace, container id.
type Key = (String, String);

struct Inner {
    config: TasksConfig,
    host: Arc<dyn TaskHost>,
    /// `None`: being created.
    tasks: Mutex<BTreeMap<Key, Option<Arc<Task>>>>,
}

impl Drop for ShimManager {
    fn drop(&mut self) {
        if let Some(events) = &self.events {
            events.abort();
        }
    }
}

impl ShimManager {
    /// Binds the events socket and takes over the tasks that are there. Exits that happened while
    /// no store ran are published before it returns. Call it in a tokio runtime.
    ///
    /// # Errors
    /// The state directory or the socket cannot be made, or it cannot be told which tasks there are. A
    /// single task that cannot be taken over is logged and left as it is.
    pub async fn open(config: TasksConfig, host: Arc<dyn TaskHost>) -> Result<Arc<Self>> {
        make_directory(&config.state_dir.join(bundle::DIRECTORY), 0o711)?;
        make_directory(&config.state_dir.join("s"), 0o700)?;
        let listener = events::bind(&config.ttrpc_socket)?;
        let inner = Arc::new(Inner { config, host, tasks: Mutex::default() });
        let (ready, all_known) = watch::channel(false);
        let events = events::serve(listener, Arc::downgrade(&inner), all_known);
        inner.adopt_all().await?;
        ready.send_replace(true);
        Ok(Arc::new(Self { inner, events: Some(events) }))
    }

    /// Leaves alone what runs: no task is known, and nothing is made on disk.
    pub(crate) fn idle(config: TasksConfig, host: Arc<dyn TaskHost>) -> Arc<Self> {
        let inner = Arc::new(Inner { config, host, tasks: Mutex::default() });
        Arc::new(Self { inner, events: None })
    }

    /// The tasks of one namespace.
    pub fn tasks(self: &Arc<Self>, namespace: &str) -> Arc<dyn Tasks> {
        let (manager, namespace) = (self.clone(), namespace.to_owned());
        Arc::new(operations::Handle { manager, namespace })
    }

    /// Where clients attach to a process.
    ///
    /// # Errors
    /// `NotFound`; `NotImplemented` for a foreign shim, which has no such socket.
    pub async fn attach_point(&self, namespace: &str, process: &ProcessId) -> Result<AttachPoint> {
        let task = self.inner.task(namespace, &process.container_id)?;
        let state = task.lock();
        let exec_id = process.exec_id.as_deref().unwrap_or_default();
        if !state.processes.contains_key(exec_id) {
            return Err(no_process(exec_id));
        }
        if let Some(program) = &state.file.program {
            return Err(Error::not_implemented(format!("attach through {}", program.display())));
        }
        let mut socket = state.file.socket.as_os_str().to_owned();
        socket.push(".attach");
        Ok(AttachPoint { socket: socket.into() })
    }

    /// Whether the container has a task, running or not yet deleted.
    pub fn has_task(&self, namespace: &str, container_id: &str) -> bool {
        self.inner.lock().contains_key(&(namespace.to_owned(), container_id.to_owned()))
    }

    /// Whether the namespace has any task.
    pub fn has_tasks(&self, namespace: &str) -> bool {
        self.inner.lock().keys().any(|(ns, _)| ns == namespace)
    }

    /// Tasks of all namespaces that have not ended.
    pub fn running(&self) -> usize {
        let tasks: Vec<_> = self.inner.lock().values().cloned().collect();
        let lives = |task: &Task| {
            let state = task.lock();
            let first = state.processes.get("");
            first.is_none_or(|p| p.status(false) != ProcessStatus::Stopped)
        };
        tasks.iter().filter(|task| task.as_ref().is_none_or(|task| lives(task))).count()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Option<Arc<Task>>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bundle(&self, namespace: &str, id: &str) -> PathBuf {
        self.config.state_dir.join(bundle::DIRECTORY).join(namespace).join(id)
    }

    /// A task that was created.
    fn task(&self, namespace: &str, id: &str) -> Result<Arc<Task>> {
        let tasks = self.lock();
        let found = tasks.get(&(namespace.to_owned(), id.to_owned())).cloned().flatten();
        found.ok_or_else(|| {
            let text = format!("task {id} not found: not found");
            Error::new(ErrorKind::NotFound, text)
        })
    }

    fn insert(&self, task: &Arc<Task>) {
        self.lock().insert((task.namespace.clone(), task.id.clone()), Some(task.clone()));
    }

    fn forget(&self, namespace: &str, id: &str) {
        self.lock().remove(&(namespace.to_owned(), id.to_owned()));
    }
}

fn no_process(exec_id: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("process does not exist {exec_id}: not found"))
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| bundle::failed("make", path, &error))?;
    crate::set_mode(path, mode);
    Ok(())
}
