//! The engine: containers, networks, volumes and images as the Engine API means them.
//!
//! Owns: lifecycle, restart policies, health checks, events, names, the default configuration of
//! containers. Does not own: HTTP (engine-api), layers and content (the store, behind store-api), how a
//! process is made (shim and runtime), how an image is built (build).
//!
//! On disk, below `Config::data_root`:
//! - `containers/ID/{gantry.json,state.json,hosts,hostname,resolv.conf,ID-json.log}`
//! - `networks/ID.json`, `volumes/NAME/{_data,volume.json}`, `build/`, `tmp/`, `engine-id`
//!
//! Below `Config::exec_root`: `netns/`, `mounts/` (an empty directory under which private mounts are
//! made), `build/`, `containers/`.
//!
//! Locks: [`container::Container::lifecycle`], asynchronous, one a container, taken before anything
//! else of that container; all other locks are plain, short, and never held across an await.
//!
//! Tasks: one a running container (waits for its end), one a health check, one an exec, those of
//! attached clients. Channels are bounded; events are a broadcast that drops the oldest for a slow
//! listener.

mod builds;
mod config;
mod container;
mod detach;
mod disk;
mod error;
mod events;
mod health;
mod image;
mod leftovers;
mod names;
mod net;
mod pipe;
mod rootfs;
mod system;
mod top;
mod util;
mod volume;

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use config::{Config, OWN_RUNTIME, Runtime};
pub use container::{
    ArchivePut, AttachOptions, AttachSession, Created, Input, ListOptions, LogLine, LogOptions,
    LogStream, Output, PathTar, RemoveOptions, StatsStream, WaitCondition, Waiter,
};
use container::{Container, Registry, StartBy, record::Record, record::Status};
pub use error::{Error, Result};
use events::EventLog;
pub use events::EventSubscription;
pub use image::{CommitOptions, Failure, Messages, SquashOptions};
/// Bytes in flight between a client and the engine, and why they break off.
pub use store_api::{ByteStream, Error as StreamError};
use store_api::{Exit, ProcessId, ProcessStatus, Services, Timestamp};
use types::{ContainerId, ErrorKind};
pub use util::parse_time;

use crate::util::{Durability, make_dir_mode, random_id, read_limited, write_file};

/// How long to wait before the store's events are listened to anew; doubles while that fails.
const LISTEN_AGAIN_FIRST: Duration = Duration::from_millis(100);
const LISTEN_AGAIN_MOST: Duration = Duration::from_secs(10);
/// What a container may take at the host's shutdown beyond its own timeout.
const AFTER_STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of the daemon waits for a container whose end is being dealt with.
const LAST_EXIT: Duration = Duration::from_secs(2);

/// The engine of one daemon.
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) services: Services,
    pub(crate) events: EventLog,
    pub(crate) containers: Registry,
    pub(crate) networks: net::Networks,
    pub(crate) volumes: volume::Volumes,
    pub(crate) facts: system::HostFacts,
    pub(crate) id: String,
    builder: OnceLock<Arc<build::Builder>>,
    shutting_down: AtomicBool,
    /// The init program, once a container has asked for it.
    pub(crate) init_copy: Mutex<Option<container::InitCopy>>,
}

impl Engine {
    /// Opens the engine on what is on disk: containers that run are adopted, those that ended while no
    /// daemon ran get their exit codes, restart policies act.
    ///
    /// # Errors
    /// Directories that cannot be used, a default network that cannot be made.
    pub async fn open(config: Config, services: Services) -> Result<Arc<Self>> {
        make_dir_mode(&config.data_root, 0o710)?;
        make_dir_mode(&config.exec_root, 0o711)?;
        make_dir_mode(&config.data_root.join("containers"), 0o710)?;
        let engine = Arc::new(Self {
            id: engine_id(&config)?,
            networks: net::Networks::open(&config)?,
            volumes: volume::Volumes::open(&config.data_root)?,
            facts: system::HostFacts::read(),
            events: EventLog::new(),
            containers: Registry::default(),
            builder: OnceLock::new(),
            shutting_down: false.into(),
            init_copy: Mutex::default(),
            config,
            services,
        });
        let host = Arc::new(builds::BuildHost { engine: Arc::downgrade(&engine) });
        let root = engine.config.data_root.join("build");
        let builder = build::Builder::new(engine.services.clone(), host, root)
            .map_err(|e| Error::new(e.kind(), image::failure(&e)))?;
        let builder = Arc::new(builder);
        engine.end_cut_off_builds().await;
        if let Err(error) = builder.recover().await {
            tracing::warn!(error = image::failure(&error), "leftovers of a build stay");
        }
        // Set once, here.
        drop(engine.builder.set(builder));
        engine.restore().await?;
        engine.follow_store().await?;
        Ok(engine)
    }

    pub(crate) fn builder(&self) -> Result<Arc<build::Builder>> {
        self.builder.get().cloned().ok_or_else(|| Error::internal("the engine is still starting"))
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::Relaxed)
    }

    /// Containers that run, for a daemon that ends by itself when it is idle.
    pub fn running_containers(&self) -> usize {
        self.containers.all().iter().filter(|c| c.record().status.is_running()).count()
    }

    pub fn events(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
        filters: api_types::Filters,
    ) -> Result<EventSubscription> {
        self.events.subscribe(since, until, filters)
    }

    /// The daemon ends; containers do not.
    pub fn shut_down(&self) {
        self.shutting_down.store(true, Ordering::Relaxed);
    }

    /// Stops every container, as the host's shutdown does: their own signals and timeouts, all at once.
    pub async fn stop_all(self: &Arc<Self>) {
        self.shut_down();
        let mut stops = tokio::task::JoinSet::new();
        // As dockerd: `--shutdown-timeout`, or longer where a container has a longer timeout itself.
        let mut limit = Some(self.config.shutdown_timeout);
        for container in self.containers.all() {
            if !container.record().status.is_running() {
                continue;
            }
            let own = self.stop_timeout(&container, None);
            limit = limit.and_then(|limit| own.map(|own| limit.max(own + AFTER_STOP_TIMEOUT)));
            let engine = self.clone();
            stops.spawn(async move {
                if let Err(error) = engine.stop_running(&container, None, None).await {
                    tracing::warn!(container = %container.id, %error, "a container did not stop");
                }
            });
        }
        let all = async { while stops.join_next().await.is_some() {} };
        match limit {
            None => all.await,
            Some(limit) => {
                if tokio::time::timeout(limit, all).await.is_err() {
                    tracing::warn!("containers still run after {} s", limit.as_secs());
                }
            }
        }
    }

    /// The daemon's last act, after [`Engine::shut_down`]. When no container runs, the bridges and the
    /// packet filter's rules go too; the next start makes them anew from their records.
    pub async fn close(self: &Arc<Self>) {
        for container in self.containers.all() {
            // An exit that is being dealt with comes first.
            let lifecycle = tokio::time::timeout(LAST_EXIT, container.lifecycle.lock()).await;
            if lifecycle.is_err() {
                tracing::warn!(container = %container.id, "still changing; the network is left as it is");
                return;
            }
        }
        if self.running_containers() > 0 {
            return;
        }
        let engine = self.clone();
        let closed = util::blocking(move || {
            engine.networks.close();
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::warn!(%error, "the network was not taken down");
        }
    }

    pub(crate) fn container_event(&self, container: &Container, action: &str) {
        let attributes = container.record().attributes();
        self.events.publish("container", action, container.id.as_str(), attributes);
    }

    /// Loads every container and brings its state up to the present.
    async fn restore(self: &Arc<Self>) -> Result<()> {
        let root = self.config.data_root.join("containers");
        let mut loaded = Vec::new();
        for entry in util::list(&root)? {
            let dir = entry.path();
            if entry.file_name().to_string_lossy().parse::<types::ContainerId>().is_err() {
                tracing::warn!(path = %dir.display(), "no container has such a name; it is left alone");
                continue;
            }
            match Record::load(&dir) {
                Ok(record) => {
                    let container = Container::new(dir, record);
                    self.containers.insert(container.clone());
                    loaded.push(container);
                }
                Err(error) if error.kind == ErrorKind::Unavailable => return Err(error),
                // The rest of the directory is kept: its log may be all that is left of someone's work.
                Err(error) => {
                    if !self.removed_half(&dir).await {
                        tracing::error!(dir = %dir.display(), %error, "a container is not loaded");
                    }
                }
            }
        }
        self.renew_snapshots(&loaded).await;
        let mut ports = Vec::new();
        let mut ended = Vec::new();
        for container in &loaded {
            self.finish_start(container).await;
            let record = container.snapshot();
            if !matches!(record.status, Status::Running { .. }) {
                continue;
            }
            ports.extend(self.networks.adopt(self, container));
            self.volumes.adopt_mounts(record.volume_names(), record.id.as_str());
            match self.task_state(&record.id).await {
                None => {}
                Some(exit) => ended.push((container.clone(), exit)),
            }
        }
        self.remove_stale_namespaces(&loaded).await;
        self.remove_orphaned_containers().await;
        self.remove_orphaned_snapshots().await;
        self.settle_volumes().await;
        self.networks.assert_rules(ports)?;
        for (container, exit) in ended {
            self.on_exit(&container, exit).await;
        }
        for container in loaded {
            self.resume(container).await;
        }
        Ok(())
    }

    /// A daemon that was killed between a task's start and the record of it: the container counts as
    /// running since now. A task that was made and not started goes.
    async fn finish_start(self: &Arc<Self>, container: &Arc<Container>) {
        if container.record().status.pid().is_some() {
            return;
        }
        let init = ProcessId::init(container.id.as_str());
        let process = match self.services.tasks.get(&init).await {
            Ok(process) => process,
            Err(error) => {
                if !error.is_not_found() {
                    tracing::warn!(container = %container.id, %error, "a container's state is unknown");
                }
                return;
            }
        };
        if process.status != ProcessStatus::Created {
            container.update_or_log(|record| {
                record.status = Status::Running {
                    pid: process.pid,
                    started_at: Timestamp::now(),
                    paused: process.status == ProcessStatus::Paused,
                };
            });
            return;
        }
        tracing::info!(container = %container.id, "a start that was cut off is undone");
        self.undo_task(&init).await;
        self.networks.tear_down(self, container).await;
    }

    /// `None` while it runs, otherwise how it ended.
    async fn task_state(&self, id: &ContainerId) -> Option<Exit> {
        let process = ProcessId::init(id.as_str());
        match self.services.tasks.get(&process).await {
            Ok(process) if process.status != ProcessStatus::Stopped => None,
            Ok(process) => Some(process.exit.unwrap_or_else(lost)),
            Err(error) if error.is_not_found() => Some(lost()),
            Err(error) => {
                tracing::warn!(container = %id, %error, "a container's state is unknown");
                None
            }
        }
    }

    /// Goes on with a container as its record says.
    async fn resume(self: &Arc<Self>, container: Arc<Container>) {
        let record = container.snapshot();
        match record.status {
            Status::Running { .. } => {
                let upstreams = match self.upstreams(&record) {
                    Ok(upstreams) => upstreams,
                    Err(error) => {
                        tracing::warn!(container = %record.id, %error, "no upstream name servers");
                        Vec::new()
                    }
                };
                if let Err(error) = self.networks.start_dns(&container, &record, upstreams).await {
                    tracing::warn!(container = %record.id, %error, "names do not resolve");
                }
                self.start_health(&container);
                self.watch_exit(container);
            }
            Status::Restarting { .. } => self.restart_soon(container),
            Status::Exited { .. } => {
                let policy = record.host_config.restart_policy.name.as_str();
                // docker: `always` starts with the daemon even after a stop by hand, `unless-stopped`
                // does not.
                // `on-failure` does where the host's shutdown, and nobody else, has ended it.
                let failed = record.status.ended().is_some_and(|ended| {
                    ended.error.is_empty() && container::wants_restart(&record, ended.code)
                });
                let wanted = policy == "always"
                    || (policy == "unless-stopped" && !record.manually_stopped)
                    || (policy == "on-failure" && failed);
                if wanted {
                    self.restart_soon(container);
                } else if record.host_config.auto_remove {
                    let _lifecycle = container.lifecycle.lock().await;
                    if let Err(error) = self.remove_locked(&container, true).await {
                        tracing::warn!(container = %record.id, %error, "a container could not be removed");
                    }
                }
            }
            Status::Created | Status::Dead { .. } => {}
        }
    }

    fn restart_soon(self: &Arc<Self>, container: Arc<Container>) {
        let engine = self.clone();
        tokio::spawn(async move {
            let Ok(_lifecycle) = container.lock_live(container.id.as_str()).await else { return };
            if container.record().status.pid().is_some() {
                return;
            }
            if let Err(error) = engine.start_locked(&container, StartBy::Request).await {
                tracing::warn!(container = %container.id, %error, "a container did not start again");
            }
        });
    }

    /// Listens to what the store tells of tasks.
    async fn follow_store(self: &Arc<Self>) -> Result<()> {
        let mut stream = self.services.events.subscribe(&[], false).await?;
        let engine = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut pause = LISTEN_AGAIN_FIRST;
            loop {
                while let Some(envelope) = stream.recv().await {
                    let Some(engine) = engine.upgrade() else { return };
                    engine.on_store_event(&envelope.event);
                }
                // Cut off for being slow, or the store is away: listen anew.
                tokio::time::sleep(pause).await;
                let Some(engine) = engine.upgrade() else { return };
                match engine.services.events.subscribe(&[], false).await {
                    Ok(again) => {
                        pause = LISTEN_AGAIN_FIRST;
                        stream = again;
                    }
                    Err(error) => {
                        pause = pause.saturating_mul(2).min(LISTEN_AGAIN_MOST);
                        tracing::warn!(%error, "the store's events are not heard");
                    }
                }
            }
        });
        Ok(())
    }
}

/// Nobody knows how it ended: the host went down, or its shim was killed.
fn lost() -> Exit {
    Exit { status: 255, exited_at: Timestamp::now() }
}

/// Kept on disk, so that a daemon is the same after every start.
fn engine_id(config: &Config) -> Result<String> {
    let path = config.data_root.join("engine-id");
    let kept = read_limited(&path, 128).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some(id) = kept.filter(|id| !id.trim().is_empty()) {
        return Ok(id.trim().into());
    }
    let hex = random_id();
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().to_string();
    let id = [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-");
    write_file(&path, id.as_bytes(), 0o600, Durability::Synced)?;
    Ok(id)
}
