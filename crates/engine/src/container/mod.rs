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
pub(crate) mod links;
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
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

pub use archive::{ArchivePut, PathTar};
pub use attach::{AttachOptions, AttachSession, Input, Output};
pub(crate) use attach::{session, wanted_outputs};
pub use create::Created;
pub(crate) use create::{CONTAINER_LABEL, ImageForContainer, attachment, snapshot_labels};
pub(crate) use exec::Exec;
pub(crate) use exit::wants_restart;
pub(crate) use files::host_name;
pub(crate) use initfile::InitCopy;
pub(crate) use inspect::descriptor_shape;
pub use list::ListOptions;
pub use logs::{LogLine, LogOptions, LogStream};
pub(crate) use merge::merge;
use record::Record;
pub use remove::RemoveOptions;
pub(crate) use signal::SIGKILL;
pub(crate) use start::{StartBy, create_failed};
pub use stats::StatsStream;
pub(crate) use stats::online_cpus;
use tokio::sync::watch;
use types::ContainerId;
pub use wait::{WaitCondition, Waiter};

use crate::{Error, Result};

/// What waiters see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Runs that ended.
    pub(crate) exits: u64,
    pub(crate) running: bool,
    pub(crate) removed: bool,
    pub(crate) code: i64,
    /// Why the last start failed, or empty.
    pub(crate) error: String,
}

impl Progress {
    /// Takes over what the record says: the only place where these are set.
    fn follow(&mut self, status: &record::Status) {
        self.running = status.is_running();
        match status.ended() {
            Some(ended) => {
                self.code = ended.code;
                self.error.clone_from(&ended.error);
            }
            None if self.running => self.error.clear(),
            None => {}
        }
    }
}

/// A container that the engine knows.
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    /// Its directory below the data root: record, log, files that are mounted into it.
    pub(crate) dir: PathBuf,
    record: Mutex<Record>,
    /// Serialises start, exit, removal and the like.
    pub(crate) lifecycle: tokio::sync::Mutex<()>,
    /// Who has its root file system open.
    pub(crate) rootfs: crate::rootfs::Uses,
    pub(crate) progress: watch::Sender<Progress>,
    /// Set to end waiting for the next restart.
    pub(crate) cancel_restart: tokio::sync::Notify,
    /// Restarts by request that are under way.
    restarts: AtomicUsize,
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
        let mut progress = Progress::default();
        progress.follow(&record.status);
        Arc::new(Self {
            id: record.id.clone(),
            dir,
            record: Mutex::new(record),
            lifecycle: tokio::sync::Mutex::default(),
            rootfs: crate::rootfs::Uses::default(),
            progress: watch::channel(progress).0,
            cancel_restart: tokio::sync::Notify::new(),
            restarts: 0.into(),
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

    /// Where the shim writes the log.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.dir.join(format!("{}-json.log", self.id))
    }

    /// Takes the lifecycle lock of a container that is still there; `name` is what the user called it.
    ///
    /// # Errors
    /// `NotFound` when it was removed while others held the lock.
    pub(crate) async fn lock_live(&self, name: &str) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let lifecycle = self.lifecycle.lock().await;
        if self.is_removed() {
            return Err(Error::no_such_container(name));
        }
        Ok(lifecycle)
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.progress.borrow().removed
    }

    /// Changes the record, saves what has changed, and wakes those who wait for the new state. When it
    /// cannot be saved nothing changes.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<T> {
        let mut record = self.record();
        if self.is_removed() {
            return Err(Error::no_such_container(self.id.as_str()));
        }
        let mut changed = record.clone();
        let value = change(&mut changed);
        changed.save_changes(&record, &self.dir)?;
        *record = changed;
        self.follow(&record, 0);
        Ok(value)
    }

    /// The same where the change itself must not fail: an error of saving is logged.
    pub(crate) fn update_or_log(&self, change: impl FnOnce(&mut Record)) {
        self.update_end(change, |_| {}, 0);
    }

    /// The same at the end of `exits` runs; `tell` comes before those who wait for the end are woken. The
    /// record is locked while it runs.
    pub(crate) fn update_end(
        &self,
        change: impl FnOnce(&mut Record),
        tell: impl FnOnce(&Record),
        exits: u64,
    ) {
        let mut record = self.record();
        let before = record.clone();
        change(&mut record);
        if let Err(error) = record.save_changes(&before, &self.dir) {
            tracing::error!(container = %self.id, %error, "a container's record was not saved");
        }
        tell(&record);
        self.follow(&record, exits);
    }

    fn follow(&self, record: &Record, exits: u64) {
        self.progress.send_if_modified(|progress| {
            let before = progress.clone();
            progress.follow(&record.status);
            progress.exits = progress.exits.saturating_add(exits);
            *progress != before
        });
    }

    /// Until it is dropped, the end of a run does not remove a container that goes with its run.
    pub(crate) fn hold_for_restart(&self) -> RestartHold<'_> {
        self.restarts.fetch_add(1, Ordering::SeqCst);
        RestartHold(&self.restarts)
    }

    pub(crate) fn is_restarted(&self) -> bool {
        self.restarts.load(Ordering::SeqCst) > 0
    }
}

/// A restart by request that is under way.
pub(crate) struct RestartHold<'a>(&'a AtomicUsize);

impl Drop for RestartHold<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use store_api::Timestamp;

    use super::{
        record::{Ended, Status, tests::record},
        *,
    };

    fn running() -> Status {
        Status::Running { pid: 7, started_at: Timestamp::now(), paused: false }
    }

    fn exited(code: i64) -> Status {
        let ended = Ended { code, at: Timestamp::now(), oom: false, error: String::new() };
        Status::Exited { started_at: Some(Timestamp::now()), ended }
    }

    #[test]
    fn progress_is_what_the_record_says() {
        let dir = tempfile::tempdir().unwrap();
        let container = Container::new(dir.path().into(), record());
        container.update(|record| record.status = running()).unwrap();
        assert!(container.progress.borrow().running);
        let told = std::cell::Cell::new(false);
        let tell = |_: &Record| told.set(container.progress.borrow().running);
        container.update_end(|record| record.status = exited(3), tell, 1);
        assert!(told.get(), "waiters were woken before the end was told");
        let progress = container.progress.borrow().clone();
        assert_eq!((progress.running, progress.code, progress.exits), (false, 3, 1));
    }

    #[test]
    fn what_cannot_be_saved_does_not_change() {
        let dir = tempfile::tempdir().unwrap();
        let container = Container::new(dir.path().join("none"), record());
        let before = container.snapshot();
        assert!(container.update(|record| record.status = running()).is_err());
        assert!(container.update(|record| record.name = "other".into()).is_err());
        assert_eq!(container.snapshot(), before);
        assert!(!container.progress.borrow().running);
        // An end is an end.
        container.update_or_log(|record| record.status = exited(1));
        assert_eq!(container.snapshot().status.name(), "exited");
    }

    #[tokio::test]
    async fn a_removed_container_is_not_found_behind_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let container = Container::new(dir.path().into(), record());
        drop(container.lock_live("some").await.unwrap());
        let lifecycle = container.lifecycle.lock().await;
        let waiting = container.lock_live("some");
        container.progress.send_modify(|progress| progress.removed = true);
        drop(lifecycle);
        let error = waiting.await.unwrap_err();
        assert!(error.is_not_found() && error.message == "No such container: some", "{error}");
        let error = container.update(|record| record.restart_count = 1).unwrap_err();
        assert!(error.is_not_found());
        assert!(!dir.path().join("state.json").exists());
    }

    #[test]
    fn restarts_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let container = Container::new(dir.path().into(), record());
        let (one, two) = (container.hold_for_restart(), container.hold_for_restart());
        drop(one);
        assert!(container.is_restarted());
        drop(two);
        assert!(!container.is_restarted());
    }
}
