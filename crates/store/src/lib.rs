//! The store: containerd's part. Images in and out, content, snapshots, containers' records, tasks.
//!
//! Owns: the content store, snapshots, the metadata database, garbage collection, the event bus, and
//! (in `tasks`) the shims. Does not own: any wire format (store-grpc), what a container means to a
//! user (engine), builds (build), the reading and writing of tar (archive), registries' protocol
//! (registry).
//!
//! On disk, below `Config::root` (0700):
//! - `meta.db`: redb, all records; moved to `meta.damaged-TIME` and rebuilt if it cannot be read
//! - `meta.rebuilding`: there while the database is not complete; a start that finds it rebuilds again
//! - `records/TABLE/HASH.json`, `snapshots/N/record.json`: the same records, one file each, from
//!   which it is rebuilt
//! - `content/blobs/ALGORITHM/HEX`, `content/ingest/HASH/{ref.json,data}`
//! - `snapshots/N/{fs,work}`, `l/N` (short links for many layers), `trash/`, `tmp/`
//! - `snapshots/N/fs` alone, with all that the snapshot shows: a copy ([`LayerForm::Copy`])
//! - `snapshots/N/{layer.tar,layer.toc,layer.extra,index}`: a layer that is never unpacked
//!
//! Below `Config::state` (tmpfs): `journal`, what the database does not have yet, and what shall not
//! outlive the host's uptime; `layers/N`, the mounts of such layers, each with all those below it.
//!
//! Locks, in the order in which they are taken: a name's in [`flights`] (one layer or one mount is made
//! once), an ingest's own, `Core::blobs` (a blob file and its records), the database's writer, the
//! database's flush. Those of `unpack` (slots, a slot, what moved; in this order) are held over none of
//! the others, and none is held across an await but the places in [`flights::AsyncFlights`], which are
//! taken first. redb's file lock keeps a second store away.
//!
//! Threads: `store-flush` (durable commits, a second after the write), `store-trash` (deletes what
//! was removed), `store-gc`; for a while `store-unpack` (layers ahead of their turn, 8 at most),
//! `store-discard` (those that nobody wants), `store-transfer` (a client's stream). Async callers reach the sync core through [`pool::Pool`], bounded.
//! Channels: the event bus, a bounded queue per subscriber; the streams of import and export.

mod containers;
mod content;
mod db;
mod diffs;
mod error;
mod events;
mod extras;
mod filters;
mod flights;
mod found;
mod fsck;
mod gc;
mod guard;
mod hashing;
mod images;
mod labels;
mod leases;
mod local;
mod manifest;
mod namespaces;
mod platforms;
mod pool;
mod progress;
mod rebuild;
mod snapshots;
mod strays;
mod streams;
pub mod tasks;
mod transfer;
mod unpack;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

pub(crate) use self::local::Local;
use self::{
    content::{Damaged, Ingests},
    db::{Db, Opened, lock},
    error::{Error, Result},
    flights::{AsyncFlights, Flights},
    gc::Schedule,
    guard::Guard,
    pool::Pool,
    snapshots::{Disk, Trash},
    tasks::{ShimManager, TaskHost, TasksConfig},
};
pub use self::{events::EventBus, unpack::InflationLimit};

/// Where a store lives and how it starts shims.
#[derive(Clone, Debug)]
pub struct Config {
    /// Data: `/var/lib/gantry/store`. Made 0700.
    pub root: PathBuf,
    /// State, on a tmpfs where there is one: `/run/gantry/containerd`. Made 0700.
    pub state: PathBuf,
    /// Path of the store's own gRPC socket: shims are told it.
    pub grpc_address: String,
    /// Socket on which shims report their events; the store binds it.
    pub ttrpc_socket: PathBuf,
    /// Program and leading arguments of our own shim.
    pub shim_command: Vec<OsString>,
    /// State of the OCI runtime; the namespace is appended.
    pub runtime_root: PathBuf,
    /// What an image's layers become. Those that are here stay as they are.
    pub layers: LayerForm,
    /// How large a layer may become when it is inflated.
    pub inflation: InflationLimit,
    pub purpose: Purpose,
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To be used: what the last run left undone is finished or undone, and shims that run are adopted.
    #[default]
    Serve,
    /// For `fsck` with repair, and nothing else: everything is left as it was found, however damaged, no
    /// shim is spoken to, and nothing is collected.
    Repair,
    /// For `fsck` without: nothing on disk is changed, not even the database's file. What is written
    /// stays in memory, but for scratch files that are removed again.
    Check,
}

/// The form of layers that are unpacked from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerForm {
    /// Extracted into directories.
    #[default]
    Directories,
    /// Kept as the tar that they are, with an EROFS index beside it that the kernel mounts (6.12, root):
    /// opening a store fails where it does not.
    Index,
    /// [`LayerForm::Index`] where that works, else [`LayerForm::Directories`].
    Best,
    /// Every snapshot a directory with all that it shows, copied from its parent (dockerd's `vfs`,
    /// containerd's `native`): for file systems on which overlay does not stand.
    Copy,
}

impl Config {
    /// A store whose sockets and runtime state lie below `state`, with this executable as its shim.
    pub fn new(root: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        let state = state.into();
        let socket = state.join("containerd.sock");
        Self {
            root: root.into(),
            grpc_address: socket.to_string_lossy().into_owned(),
            ttrpc_socket: state.join("containerd.sock.ttrpc"),
            shim_command: TasksConfig::default_shim_command(),
            runtime_root: state.join("runtime"),
            layers: LayerForm::default(),
            inflation: InflationLimit::default(),
            purpose: Purpose::default(),
            state,
        }
    }
}

/// The store in this process. It implements [`store_api::Namespaces`]; dropping it (and all handles
/// it gave) leaves running containers alone.
pub struct Store {
    core: Arc<Core>,
    pool: Pool,
    tasks: Arc<ShimManager>,
}

impl Store {
    /// Opens the store whatever it finds: unfinished work is finished or undone, a damaged or lost
    /// database is rebuilt, shims that still run are adopted again. Less is done for another
    /// [`Purpose`] than serving. Call it in a tokio runtime.
    ///
    /// # Errors
    /// When another process has the store open, or its directories cannot be made or read; `NotFound`
    /// when there is no store, for all purposes but to serve, which makes one.
    pub async fn open(config: Config) -> store_api::Result<Arc<Self>> {
        let opening = config.clone();
        let core = tokio::task::spawn_blocking(move || Core::open(&opening))
            .await
            .map_err(|_| store_api::Error::internal("opening the store was given up"))??;
        let pool = Pool::new();
        let host = Arc::new(Host { core: Arc::clone(&core), pool: pool.clone() });
        let tasks = TasksConfig {
            state_dir: config.state,
            root_dir: config.root,
            grpc_address: config.grpc_address,
            ttrpc_socket: config.ttrpc_socket,
            shim_command: config.shim_command,
            runtime_root: config.runtime_root,
        };
        let tasks = match config.purpose {
            Purpose::Serve => ShimManager::open(tasks, host).await?,
            Purpose::Repair | Purpose::Check => ShimManager::idle(tasks, host),
        };
        Ok(Arc::new(Self { core, pool, tasks }))
    }

    /// The bus that carries every event of every namespace.
    pub fn events(&self) -> EventBus {
        self.core.bus.clone()
    }

    /// How many tasks of all namespaces have not exited.
    pub fn running_tasks(&self) -> usize {
        self.tasks.running()
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub async fn flush(&self) -> store_api::Result<()> {
        self.pool.quick(&self.core, |core| core.db.flush()).await
    }

    fn local(&self, namespace: &str) -> Local {
        Local {
            core: Arc::clone(&self.core),
            ns: namespace.into(),
            pool: self.pool.clone(),
            tasks: Arc::clone(&self.tasks),
            operation: None,
        }
    }
}

/// The sync core: everything but tasks, for all namespaces.
pub(crate) struct Core {
    root: PathBuf,
    db: Arc<Db>,
    bus: EventBus,
    ingests: Ingests,
    damaged: Damaged,
    /// Held while a blob's file and its records change together.
    blobs: Mutex<()>,
    guard: Guard,
    disk: Disk,
    trash: Arc<Trash>,
    flights: Flights,
    inflation: unpack::Inflation,
    async_flights: AsyncFlights,
    schedule: Arc<Schedule>,
    clients: transfer::Clients,
    /// Namespaces that have a record.
    known: Mutex<BTreeSet<String>>,
    flusher: Mutex<Option<JoinHandle<()>>>,
    purpose: Purpose,
    /// The database was lost or damaged, its records were found beside it, and `fsck` has to say so.
    rebuilt: AtomicBool,
    /// A damaged record could not be set aside.
    has_stuck_records: AtomicBool,
}

impl Core {
    fn open(config: &Config) -> Result<Arc<Self>> {
        check_root(&config.root)?;
        if config.layers == LayerForm::Index {
            check_root(&config.state)?;
        }
        if config.purpose != Purpose::Serve {
            find_store(&config.root)?;
        }
        let (db, opened) = if config.purpose == Purpose::Check {
            Db::open_frozen(&config.root, &config.state)?
        } else {
            make_directories(&config.root, &config.state)?;
            Db::open(&config.root, &config.state)?
        };
        let trash = Arc::new(Trash::new(&config.root));
        let core = Self {
            root: config.root.clone(),
            db: Arc::new(db),
            bus: EventBus::default(),
            ingests: Ingests::default(),
            damaged: Damaged::default(),
            blobs: Mutex::new(()),
            guard: Guard::default(),
            disk: Disk::open(config, Arc::clone(&trash))?,
            trash,
            flights: Flights::default(),
            inflation: unpack::Inflation::new(config.inflation),
            async_flights: AsyncFlights::default(),
            schedule: Arc::new(Schedule::default()),
            clients: transfer::Clients::default(),
            known: Mutex::new(BTreeSet::new()),
            flusher: Mutex::new(None),
            purpose: config.purpose,
            rebuilt: AtomicBool::new(false),
            has_stuck_records: AtomicBool::new(false),
        };
        let serves = config.purpose == Purpose::Serve;
        if serves {
            core.empty_tmp();
        }
        if opened == Opened::Created {
            let rebuilt = core.rebuild()?;
            core.rebuilt.store(rebuilt && !serves, Ordering::Relaxed);
        }
        faults::pass("open.database");
        core.load_namespaces()?;
        if serves {
            core.bring_in_order(opened)?;
        }
        let core = Arc::new(core);
        core.start_threads()?;
        Ok(core)
    }

    /// Finishes or undoes what the last run left undone.
    fn bring_in_order(&self, opened: Opened) -> Result<()> {
        self.load_ingests()?;
        faults::pass("open.ingests");
        self.reconcile_snapshots(opened)?;
        faults::pass("open.snapshots");
        self.reconcile_content(opened)?;
        faults::pass("open.content");
        self.remove_strays(opened);
        if opened == Opened::Created {
            self.db.flush()?;
            db::finish_rebuild(&self.root)?;
        }
        // What leads to something may be missing of records that were just rebuilt.
        let first = if opened == Opened::Created { gc::PERIOD } else { gc::AFTER_START };
        self.schedule.after(first);
        Ok(())
    }

    fn start_threads(self: &Arc<Self>) -> Result<()> {
        let start = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let builder = std::thread::Builder::new().name(name.into());
            builder.spawn(body).map_err(Error::io("start the thread", name))
        };
        let db = Arc::clone(&self.db);
        let flusher = start("store-flush", Box::new(move || db.run_flusher()))?;
        *lock(&self.flusher) = Some(flusher);
        if self.purpose != Purpose::Serve {
            return Ok(());
        }
        let trash = Arc::clone(&self.trash);
        // Both end by themselves when the core is dropped.
        start("store-trash", Box::new(move || trash.run()))?;
        let (schedule, weak) = (Arc::clone(&self.schedule), Arc::downgrade(self));
        start("store-gc", Box::new(move || gc::run(&schedule, &weak)))?;
        Ok(())
    }

    fn empty_tmp(&self) {
        let entries = std::fs::read_dir(self.root.join("tmp")).into_iter().flatten();
        for entry in entries.filter_map(|entry| entry.ok()) {
            if let Err(error) = self.trash.put(&entry.path()) {
                let error = store_api::Error::from(error);
                tracing::warn!(error = %error, "a temporary directory stays behind");
            }
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.schedule.stop();
        self.trash.stop();
        self.db.stop();
        if let Some(flusher) = lock(&self.flusher).take()
            && flusher.join().is_err()
        {
            tracing::error!("the flusher's thread panicked");
        }
    }
}

/// What tasks need of the store.
struct Host {
    core: Arc<Core>,
    pool: Pool,
}

#[async_trait::async_trait]
impl TaskHost for Host {
    async fn container(
        &self,
        namespace: &str,
        id: &str,
    ) -> store_api::Result<store_api::Container> {
        let (ns, id) = (namespace.to_string(), id.to_string());
        self.pool.quick(&self.core, move |core| core.container_get(&ns, &id)).await
    }

    async fn mounts(
        &self,
        namespace: &str,
        snapshotter: &str,
        key: &str,
    ) -> store_api::Result<Vec<store_api::Mount>> {
        if snapshotter != snapshots::SNAPSHOTTER {
            return Err(store_api::Error::not_found("snapshotter", snapshotter));
        }
        let (ns, key) = (namespace.to_string(), key.to_string());
        self.pool.quick(&self.core, move |core| core.snapshot_mounts(&ns, &key)).await
    }

    fn publish(&self, envelope: store_api::Envelope) {
        self.core.bus.send(envelope);
    }
}

/// Mount options are one text with `,` and `:` as its marks: a data root that has them is refused.
pub(crate) fn check_root(root: &Path) -> Result<()> {
    let text = root.to_str().filter(|text| !text.contains([',', ':', '\\', '\n']));
    if text.is_none() || !root.is_absolute() {
        return Err(Error::invalid(format!(
            "the directory {} must be an absolute path of UTF-8 without comma, colon and backslash",
            root.display()
        )));
    }
    Ok(())
}

/// Is there a store, whatever of it was lost? Names that others use as well are not enough: BuildKit has
/// blobs and snapshots at the same places, containerd a `meta.db`.
fn find_store(root: &Path) -> Result<()> {
    let is_store = |root: &Path| {
        db::Table::ALL.iter().any(|table| root.join("records").join(table.name()).is_dir())
            || (root.join("meta.db").is_file()
                && ["content/blobs", "snapshots"].iter().all(|name| root.join(name).is_dir()))
    };
    if is_store(root) {
        return Ok(());
    }
    let inside = Some(root.join("store")).filter(|inside| is_store(inside));
    let inside = inside.map_or(String::new(), |inside| format!("; one is in {}", inside.display()));
    let text = format!(
        "no store is in {}: it has neither the records of one nor its database, blobs and snapshots{inside}",
        root.display()
    );
    Err(store_api::Error::new(types::ErrorKind::NotFound, text).into())
}

/// The state's directory can be passed through: a container's root that is mapped to another user of the
/// host comes to its bundle that way. What lies in it is closed.
fn make_directories(root: &Path, state: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(state)
        .map_err(Error::io("create", state))?;
    set_mode(state, 0o711);
    let mut all = vec![
        state.join("layers"),
        root.to_path_buf(),
        root.join("content/blobs/sha256"),
        root.join("content/blobs/sha512"),
        root.join("content/ingest"),
    ];
    all.extend(["snapshots", "l", "trash", "tmp"].map(|name| root.join(name)));
    all.extend(db::Table::ALL.map(|table| root.join("records").join(table.name())));
    for path in all {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(Error::io("create", path))?;
    }
    Ok(())
}

/// An earlier version may have made it with another one; that it stays so is only told.
pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    let set = std::fs::metadata(path).and_then(|metadata| {
        if metadata.permissions().mode() & 0o777 == mode {
            return Ok(());
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    });
    if let Err(error) = set {
        tracing::warn!(path = %path.display(), %error, "its mode cannot be set to {mode:03o}");
    }
}

/// 32 random hexadecimal digits.
pub(crate) fn random_name() -> String {
    let mut bytes = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if filled.is_ok_and(|n| n == bytes.len()) {
        return bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    }
    // getrandom(2) always fills so few bytes once the kernel is up; this is only a name.
    let now = store_api::Timestamp::now();
    format!("{:016x}{:08x}{:08x}", now.seconds, now.nanos, std::process::id())
}
