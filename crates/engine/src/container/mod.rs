//! Containers: their records, the registry that finds them by id, prefix or name, and what is done
//! with them.
//!
//! Operations on one container that change its state are serialised by [`Container::lifecycle`], an
//! asynchronous lock; the record itself is behind a plain lock that is never held across an await.

mod archive;
mod attach;
mod create;
mod devices;
mod exec;
mod exit;
mod files;
mod initfile;
mod inspect;
mod list;
mod logopts;
mod logs;
mod merge;
mod mounts;
pub(crate) mod record;
mod remove;
mod seccomp;
mod shm;
mod signal;
pub(crate) mod spec;
mod start;
mod stats;
mod stop;
mod users;
mod validate;
mod wait;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

pub use archive::{ArchivePut, PathTar};
pub use attach::{AttachOptions, AttachSession, Input, Output};
pub(crate) use attach::{session, wanted_outputs};
pub use create::Created;
pub(crate) use create::{ImageForContainer, attachment};
pub(crate) use exec::Exec;
pub(crate) use files::host_name;
pub(crate) use initfile::InitCopy;
pub(crate) use inspect::descriptor_shape;
pub use list::ListOptions;
pub use logs::{LogLine, LogOptions, LogStream};
use record::Record;
pub use remove::RemoveOptions;
pub(crate) use signal::SIGKILL;
pub(crate) use start::create_failed;
pub use stats::StatsStream;
pub(crate) use stats::online_cpus;
use tokio::sync::watch;
use types::ContainerId;
pub use wait::{WaitCondition, Waiter};

use crate::{Error, Result, util::Durability};

/// What waiters see.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Runs that ended.
    pub(crate) exits: u64,
    pub(crate) running: bool,
    pub(crate) removed: bool,
    pub(crate) code: i64,
    /// Why the last start failed, or empty.
    pub(crate) error: String,
}

/// A container that the engine knows.
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    /// Its directory below the data root: record, log, files that are mounted into it.
    pub(crate) dir: PathBuf,
    record: Mutex<Record>,
    /// Serialises start, exit, removal and the like.
    pub(crate) lifecycle: tokio::sync::Mutex<()>,
    pub(crate) progress: watch::Sender<Progress>,
    /// Set to end waiting for the next restart.
    pub(crate) cancel_restart: tokio::sync::Notify,
    /// Attach clients that came before the first start.
    pub(crate) pending_attach: Mutex<Vec<attach::Pending>>,
    /// Execs by id.
    pub(crate) execs: Mutex<HashMap<String, Arc<Exec>>>,
    pub(crate) health: Mutex<crate::health::HealthState>,
    pub(crate) oom_killed: std::sync::atomic::AtomicBool,
    /// Sockets and tasks that live as long as the container runs.
    pub(crate) running: Mutex<crate::net::Running>,
}

impl Container {
    pub(crate) fn new(dir: PathBuf, record: Record) -> Arc<Self> {
        let progress = Progress {
            running: record.status.is_running(),
            code: record.status.ended().map_or(0, |ended| ended.code),
            error: record.status.ended().map(|ended| ended.error.clone()).unwrap_or_default(),
            ..Progress::default()
        };
        Arc::new(Self {
            id: record.id.clone(),
            dir,
            record: Mutex::new(record),
            lifecycle: tokio::sync::Mutex::default(),
            progress: watch::channel(progress).0,
            cancel_restart: tokio::sync::Notify::new(),
            pending_attach: Mutex::default(),
            execs: Mutex::default(),
            health: Mutex::default(),
            oom_killed: false.into(),
            running: Mutex::default(),
        })
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy, for work that takes longer than a look.
    pub(crate) fn snapshot(&self) -> Record {
        self.record().clone()
    }

    pub(crate) fn record_file(&self) -> PathBuf {
        self.dir.join("gantry.json")
    }

    /// Where the shim writes the log.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.dir.join(format!("{}-json.log", self.id))
    }

    /// Changes the record and saves it. A container that goes with its run (`--rm`) is not worth a
    /// sync; its state changes never are, since the shim knows the truth.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<T> {
        let mut record = self.record();
        let value = change(&mut record);
        record.save(&self.record_file(), Durability::Atomic)?;
        Ok(value)
    }

    /// The same where the change itself must not fail: the error is logged.
    pub(crate) fn update_or_log(&self, change: impl FnOnce(&mut Record)) {
        if let Err(error) = self.update(change) {
            tracing::error!(container = %self.id, %error, "a container's record was not saved");
        }
    }
}

/// All containers, found by id, unique prefix, or name.
#[derive(Default)]
pub(crate) struct Registry {
    inner: RwLock<Index>,
}

#[derive(Default)]
struct Index {
    by_id: HashMap<ContainerId, Arc<Container>>,
    by_name: HashMap<String, ContainerId>,
}

impl Registry {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name for a container that is about to be made.
    pub(crate) fn reserve_name(&self, name: &str, id: &ContainerId) -> Result<()> {
        let mut index = self.write();
        if let Some(owner) = index.by_name.get(name) {
            return Err(Error::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to remove (or rename) that container to be able to reuse that name."
            )));
        }
        index.by_name.insert(name.into(), id.clone());
        Ok(())
    }

    /// Gives back a name, if it is that container's.
    pub(crate) fn release_name(&self, name: &str, id: &ContainerId) {
        let mut index = self.write();
        if index.by_name.get(name) == Some(id) {
            index.by_name.remove(name);
        }
    }

    pub(crate) fn insert(&self, container: Arc<Container>) {
        let name = container.record().name.clone();
        let mut index = self.write();
        index.by_name.insert(name, container.id.clone());
        index.by_id.insert(container.id.clone(), container);
    }

    pub(crate) fn remove(&self, id: &ContainerId) {
        let mut index = self.write();
        index.by_id.remove(id);
        index.by_name.retain(|_, owner| owner != id);
    }

    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        self.read().by_id.values().cloned().collect()
    }

    /// By full id, then name (with or without `/`), then unique prefix of an id
    /// (moby `daemon.GetContainer`).
    pub(crate) fn find(&self, text: &str) -> Result<Arc<Container>> {
        if text.is_empty() {
            return Err(Error::invalid("no container name or ID supplied"));
        }
        let index = self.read();
        if let Ok(id) = text.parse::<ContainerId>()
            && let Some(container) = index.by_id.get(&id)
        {
            return Ok(container.clone());
        }
        let name = text.strip_prefix('/').unwrap_or(text);
        if let Some(container) = index.by_name.get(name).and_then(|id| index.by_id.get(id)) {
            return Ok(container.clone());
        }
        let mut matches = index.by_id.iter().filter(|(id, _)| id.as_str().starts_with(text));
        match (matches.next(), matches.next()) {
            (Some((_, container)), None) => Ok(container.clone()),
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("Multiple IDs found with provided prefix: {text}")))
            }
            (None, _) => Err(Error::no_such_container(text)),
        }
    }
}

/// The directory of a container below the data root.
pub(crate) fn dir_of(data_root: &Path, id: &ContainerId) -> PathBuf {
    data_root.join("containers").join(id.as_str())
}
