//! The daemon's process, from its start to its end.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use engine::Engine;
use engine_api::{Listener, Prepared};
use rustix::fs::Mode;
use store_api::Namespaces;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::config::{self, Daemon, Group, Places};
use super::file::Settings;
use super::hosts::{self, Host, Passed};
use super::locks::{self, Manner, Note, Stage};
use super::notify::{State, notify};
use super::{Start, host_shutdown, log, program, tls};
use crate::{cgroups, on_demand, store_role};

/// The daemon waits most of the time; what is long (disk, checksums) runs on the blocking threads.
const WORKERS: usize = 2;
/// The store bounds its own work; beside it there are name look-ups and files of containers.
const BLOCKING_THREADS: usize = 64;
/// Threads that have nothing to do end after so long, and with them go their stacks.
const THREAD_KEEP: Duration = Duration::from_secs(2);
/// Arenas of the allocator: more of them keep more memory that nobody uses.
const ARENAS: u16 = 2;
/// How long tasks that still run are waited for at the end.
pub(crate) const LAST_TASKS: Duration = Duration::from_secs(1);
/// How often an on-demand daemon looks whether it has work.
const IDLE_STEP: Duration = Duration::from_secs(1);
/// How often memory that a burst of work took and freed is given back to the kernel.
const TRIM_EVERY: Duration = Duration::from_secs(20);
/// When that is done for the first time: the start has taken some.
const FIRST_TRIM: Duration = Duration::from_secs(2);

/// Runs until a signal or idleness ends it; the exit code.
pub(super) fn main(start: Start, settings: Settings, daemon: Daemon) -> i32 {
    let passed = Passed::adopt();
    let program = program(start.persona);
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "{program} needs to be started with root privileges; rootless mode is not supported by \
             gantry yet"
        );
        return 1;
    }
    prepare_process();
    if daemon.idle_after.is_some() {
        on_demand::settle_in();
    }
    let control = log::start(daemon.log_level, daemon.log_format);
    for note in &daemon.notes {
        tracing::info!("{note}");
    }
    let reload = Reload { start, settings, control };
    match supervise(daemon, passed, reload) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("failed to start daemon: {error:#}");
            1
        }
    }
}

/// What every daemon does before it has a second thread.
pub(crate) fn prepare_process() {
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    sys::heap::limit_arenas(ARENAS);
}

/// Bytes of an exec root below which the shims' sockets still have room: a socket's path has 107
/// (unix(7)), theirs is `EXEC_ROOT/containerd/s/`, 24 digits and `.attach`.
const EXEC_ROOT_BYTES: usize = 107 - 14 - 24 - 7;

/// Holds the locks around the asynchronous part.
fn supervise(daemon: Daemon, passed: Passed, reload: Reload) -> anyhow::Result<()> {
    let exec_root = &daemon.engine.exec_root;
    if exec_root.as_os_str().len() > EXEC_ROOT_BYTES {
        bail!(
            "exec root {}: longer than {EXEC_ROOT_BYTES} bytes, no socket below it could be named; \
             choose a shorter --exec-root",
            exec_root.display()
        );
    }
    let manner = Manner {
        on_demand: daemon.idle_after.is_some(),
        exec_root: daemon.engine.exec_root.clone(),
    };
    let pid_file = locks::pid_file(&daemon.pidfile, &manner)?;
    let held = locked(daemon, &manner, passed, reload);
    pid_file.remove();
    held
}

fn locked(daemon: Daemon, manner: &Manner, passed: Passed, reload: Reload) -> anyhow::Result<()> {
    let engine = &daemon.engine;
    let persona = reload.start.persona;
    let cgroup_parent = engine.cgroup_parent.clone();
    let data_root = locks::directory("data root", &engine.data_root, 0o710, manner)?;
    let exec_root = locks::directory("exec root", &engine.exec_root, 0o711, manner)?;
    let runtime = runtime()?;
    let note = Note {
        pid: std::process::id(),
        stage: Stage::Starting,
        on_demand: manner.on_demand,
        addresses: Vec::new(),
    };
    exec_root.tell(&note);
    let result = if daemon.stop_containers {
        runtime.block_on(stop_only(&daemon, reload))
    } else {
        runtime.block_on(serve(daemon, passed, reload, Told { note, lock: &exec_root }))
    };
    runtime.shutdown_timeout(LAST_TASKS);
    // One of the user's own choice stays.
    if cgroup_parent == Places::of(persona).cgroup_parent {
        cgroups::remove_empty(Path::new(&cgroup_parent));
    }
    exec_root.remove();
    drop(data_root);
    result
}

pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(THREAD_KEEP)
        .thread_name("gantry")
        .enable_all()
        .build()
        .context("start the threads of the daemon")
}

/// How far we are, for clients and for other daemons.
struct Told<'a> {
    note: Note,
    lock: &'a locks::Held,
}

impl Told<'_> {
    fn now(&mut self, stage: Stage) {
        self.note.stage = stage;
        self.lock.tell(&self.note);
    }
}

/// The parts that do the work.
struct Parts {
    store: Arc<store::Store>,
    engine: Arc<Engine>,
}

/// All parts of the daemon, wired.
async fn serve(
    daemon: Daemon,
    mut passed: Passed,
    mut reload: Reload,
    mut told: Told<'_>,
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    // First, so that an address that is taken is told before anything has changed.
    let listeners = listen(&daemon, &mut passed).await?;
    let (parts, ended) = while_starting(open(&daemon), &mut signals, &mut reload).await;
    let Parts { store, engine } = parts?;
    if let Some(end) = ended {
        told.now(Stage::Ending);
        notify(State::Stopping);
        return finish(&engine, &store, end, &mut signals).await;
    }

    let shutdown = CancellationToken::new();
    let clients = Arc::new(AtomicUsize::new(0));
    let address = Path::new(&daemon.engine.store_address);
    let store_socket = store_role::Socket::bind(address).await?;
    let grpc = store_socket.serve(store.clone(), shutdown.clone(), clients.clone());
    let grpc = tokio::spawn(grpc);
    // Only now do clients find us: who sees the socket gets answers.
    let listeners = listeners.into_iter().map(Prepared::publish).collect::<Result<Vec<_>, _>>()?;
    for listener in &listeners {
        tracing::info!("API listen on {}", listener.address());
        told.note.addresses.push(listener.address().to_owned());
    }
    let api = engine_api::serve(engine.clone(), listeners, shutdown.clone(), clients.clone());
    let api = tokio::spawn(api);
    told.now(Stage::Ready);
    notify(State::Ready);
    tracing::info!(version = daemon.engine.version, "Daemon has completed initialization");

    let work = Work {
        clients: &|| clients.load(Ordering::Relaxed) > 0,
        containers: &|| engine.running_containers() > 0 || store.running_tasks() > 0,
    };
    let end = wait_for_end(&mut signals, &mut reload, daemon.idle_after, work).await;
    told.now(Stage::Ending);
    notify(State::Stopping);
    if matches!(end, End::HostShutdown) {
        stop_containers(&engine, &mut signals).await;
    }
    engine.shut_down();
    shutdown.cancel();
    let servers = async {
        api.await.context("the API's server")?;
        grpc.await.context("the store's server")?
    };
    tokio::select! {
        ended = servers => ended?,
        () = signals.end() => forced(),
    }
    finish(&engine, &store, End::Asked, &mut signals).await
}

/// The host goes down and no daemon runs: its containers are stopped by us.
async fn stop_only(daemon: &Daemon, mut reload: Reload) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    if open_store(daemon).await?.running_tasks() == 0 {
        return Ok(());
    }
    let (parts, _) = while_starting(open(daemon), &mut signals, &mut reload).await;
    let Parts { store, engine } = parts?;
    finish(&engine, &store, End::HostShutdown, &mut signals).await
}

async fn open_store(daemon: &Daemon) -> anyhow::Result<Arc<store::Store>> {
    let state = daemon.engine.exec_root.join("containerd");
    let address = Path::new(&daemon.engine.store_address);
    let root = daemon.engine.data_root.join("store");
    store_role::open(&root, &state, address, daemon.layers).await
}

async fn open(daemon: &Daemon) -> anyhow::Result<Parts> {
    let store = open_store(daemon).await?;
    let services = store.open(&daemon.namespace).map_err(failed("open the store's namespace"))?;
    let engine = Engine::open(daemon.engine.clone(), services)
        .await
        .map_err(|error| anyhow!("{}", crate::chain(&error)))?;
    Ok(Parts { store, engine })
}

/// A start that is asked to end comes to its end first, so that nothing is left half made; asked
/// once more, it ends where it is.
async fn while_starting<T>(
    opening: impl Future<Output = T>,
    signals: &mut Signals,
    reload: &mut Reload,
) -> (T, Option<End>) {
    tokio::pin!(opening);
    let mut ended = None;
    loop {
        tokio::select! {
            opened = &mut opening => return (opened, ended),
            caught = signals.next() => match caught {
                Caught::End(_) if ended.is_some() => forced(),
                Caught::End(name) => {
                    tracing::info!("Processing signal '{name}' when the start is complete");
                    ended = Some(End::Asked);
                }
                Caught::HostShutdown => ended = Some(End::HostShutdown),
                Caught::Reload => reload.run(),
                Caught::GiveWay => {}
            }
        }
    }
}

/// The last acts, when nobody is served any longer.
async fn finish(
    engine: &Arc<Engine>,
    store: &store::Store,
    end: End,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    if matches!(end, End::HostShutdown) {
        stop_containers(engine, signals).await;
    }
    engine.shut_down();
    engine.close().await;
    store.flush().await.map_err(failed("flush the store"))?;
    tracing::info!("Daemon shutdown complete");
    Ok(())
}

/// All containers end with the host.
async fn stop_containers(engine: &Arc<Engine>, signals: &mut Signals) {
    tracing::info!("the host goes down: containers are stopped");
    tokio::select! {
        () = engine.stop_all() => {}
        () = signals.end() => tracing::warn!("asked to end: containers are no longer waited for"),
    }
}

/// A second signal while stopping.
pub(crate) fn forced() {
    tracing::warn!("asked to end once more: not waiting any longer");
    std::process::exit(1);
}

/// Errors of the store have their cause in their text.
pub(crate) fn failed(doing: &'static str) -> impl Fn(store_api::Error) -> anyhow::Error {
    move |error| anyhow!("{doing}: {}", crate::chain(&error))
}

/// What may keep a daemon from ending by itself.
struct Work<'a> {
    clients: &'a dyn Fn() -> bool,
    containers: &'a dyn Fn() -> bool,
}

/// Why the daemon ends.
enum End {
    /// By a signal or by itself: containers stay.
    Asked,
    HostShutdown,
}

/// Until a signal, or until nothing was to do for so long.
async fn wait_for_end(
    signals: &mut Signals,
    reload: &mut Reload,
    idle_after: Option<Duration>,
    work: Work<'_>,
) -> End {
    let mut quiet_since = Instant::now();
    let mut gives_way = false;
    let first = tokio::time::Instant::now() + FIRST_TRIM;
    let mut trim = tokio::time::interval_at(first, TRIM_EVERY);
    loop {
        tokio::select! {
            caught = signals.next() => match caught {
                Caught::End(name) => {
                    tracing::info!("Processing signal '{name}'");
                    return End::Asked;
                }
                Caught::HostShutdown => return End::HostShutdown,
                Caught::Reload => reload.run(),
                Caught::GiveWay => gives_way = idle_after.is_some(),
            },
            _ = trim.tick() => sys::heap::trim(),
            () = tokio::time::sleep(IDLE_STEP), if idle_after.is_some() => {
                if (work.clients)() {
                    quiet_since = Instant::now();
                } else if gives_way {
                    tracing::info!("another daemon takes over");
                    return End::Asked;
                } else if (work.containers)() {
                    quiet_since = Instant::now();
                } else if idle_after.is_some_and(|limit| quiet_since.elapsed() >= limit) {
                    tracing::info!("no container runs and no client came: the daemon ends");
                    return End::Asked;
                }
            }
        }
    }
}

pub(crate) struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr1: Signal,
    pwr: Signal,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("handle signals");
        Ok(Self {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: on(SignalKind::hangup())?,
            usr1: on(SignalKind::from_raw(locks::GIVE_WAY))?,
            pwr: on(SignalKind::from_raw(host_shutdown::SIGNAL))?,
        })
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.term.recv() => Caught::End("terminated"),
            _ = self.int.recv() => Caught::End("interrupt"),
            _ = self.hup.recv() => Caught::Reload,
            _ = self.usr1.recv() => Caught::GiveWay,
            _ = self.pwr.recv() => Caught::HostShutdown,
        }
    }

    /// The next one that asks to end.
    pub(crate) async fn end(&mut self) {
        while !matches!(self.next().await, Caught::End(_)) {}
    }
}

/// What a signal asks for.
enum Caught {
    /// Its name.
    End(&'static str),
    Reload,
    GiveWay,
    HostShutdown,
}

/// What SIGHUP does.
struct Reload {
    start: Start,
    settings: Settings,
    control: log::Control,
}

impl Reload {
    /// Reads the file again. The log's level changes at once; the rest is named in the log.
    fn run(&mut self) {
        notify(State::Reloading);
        match self.start.settle() {
            Err(error) => tracing::error!("the configuration is not reloaded: {error}"),
            Ok((settings, daemon)) => {
                for key in settings.changed(&self.settings) {
                    match key {
                        "debug" | "log-level" => tracing::info!("{key} has changed"),
                        _ => tracing::warn!(
                            "{key} has changed in {}: it takes effect when the daemon starts again",
                            self.start.config_file.display()
                        ),
                    }
                }
                self.control.set(daemon.log_level);
                // What waits for a restart is told at each reload, until there is one.
                let level = ["debug", "log-level"];
                self.settings.take_from(&settings, &level);
                tracing::info!("Reloaded configuration");
            }
        }
        notify(State::Ready);
    }
}

/// Binds every host, in order.
async fn listen(daemon: &Daemon, passed: &mut Passed) -> anyhow::Result<Vec<Prepared>> {
    let tls = daemon.tls.as_ref().map(tls::server_config).transpose()?;
    let verified = daemon.tls.as_ref().is_some_and(|tls| tls.verify);
    let mut bound = Vec::new();
    for host in &daemon.hosts {
        let listeners = match host {
            Host::Unix(path) => {
                vec![Listener::Unix { path: path.clone(), group: group(&daemon.group)? }]
            }
            Host::Fd(wanted) => {
                let sockets = passed.take(wanted.as_deref()).map_err(|e| anyhow!(e))?;
                let listeners = sockets.into_iter().map(|fd| passed_socket(fd, tls.as_ref()));
                listeners.collect::<anyhow::Result<_>>()?
            }
            Host::Tcp { name, port } => {
                let address = hosts::addresses(name, *port).await.map_err(|e| anyhow!(e))?;
                if !verified {
                    tracing::warn!(
                        host = %address,
                        "Binding to IP address without --tlsverify is insecure and gives root access \
                         on this machine to everyone who has access to your network."
                    );
                }
                vec![match &tls {
                    Some(config) => Listener::TcpTls(address, config.clone()),
                    None => Listener::Tcp(address),
                }]
            }
        };
        for listener in listeners {
            bound.push(listener.prepare().await?);
        }
    }
    Ok(bound)
}

/// A unix or tcp socket that the service manager listens at.
fn passed_socket(fd: OwnedFd, tls: Option<&Arc<rustls::ServerConfig>>) -> anyhow::Result<Listener> {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let family = sockopt::socket_domain(&fd).context("a passed descriptor")?;
    let kind = sockopt::socket_type(&fd).context("a passed descriptor")?;
    let listens = sockopt::socket_acceptconn(&fd).context("a passed descriptor")?;
    if kind != SocketType::STREAM || !listens {
        bail!("a passed socket does not listen for streams: use ListenStream= and Accept=no");
    }
    match family {
        AddressFamily::UNIX => Ok(Listener::UnixFd(fd)),
        AddressFamily::INET | AddressFamily::INET6 => Ok(Listener::TcpFd(fd, tls.cloned())),
        _ => bail!("a passed socket is of the address family {family:?}: use unix or tcp"),
    }
}

/// The gid that gets the socket. dockerd warns where its own default is missing.
fn group(group: &Group) -> anyhow::Result<Option<u32>> {
    let file = Path::new("/etc/group");
    let found = config::find_group(file, &group.name);
    match found {
        Ok(Some(gid)) => Ok(Some(gid)),
        Ok(None) if group.explicit => bail!("group {} not found", group.name),
        Ok(None) => {
            tracing::warn!(
                "could not change group of the socket to {}: group not found",
                group.name
            );
            Ok(None)
        }
        Err(error) if group.explicit => Err(error).context("read /etc/group"),
        Err(error) => {
            tracing::warn!(%error, "could not read /etc/group");
            Ok(None)
        }
    }
}
