//! The daemon's process, from its start to its end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use engine::Engine;
use engine_api::{Bound, Listener};
use rustix::fs::Mode;
use store_api::Namespaces;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::config::{self, Daemon, Group, Places};
use super::file::Settings;
use super::hosts::{self, Host, Passed};
use super::notify::{State, notify};
use super::{Start, locks, log, program, tls};
use crate::{cgroups, on_demand, store_role};

/// The daemon waits most of the time; what is long (disk, checksums) runs on the blocking threads.
const WORKERS: usize = 2;
/// The store bounds its own work; beside it there are name look-ups and files of containers.
const BLOCKING_THREADS: usize = 64;
/// Threads that have nothing to do end after so long, and with them go their stacks.
const THREAD_KEEP: Duration = Duration::from_secs(2);
/// Arenas of the allocator: more of them keep more memory that nobody uses.
const ARENAS: u16 = 2;
/// How long a daemon that a client starts waits for the one before it to end.
const PREDECESSOR: Duration = Duration::from_secs(10);
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
    let patience = daemon.idle_after.map_or(Duration::ZERO, |_| PREDECESSOR);
    let pid_file = locks::pid_file(&daemon.pidfile, patience)?;
    let held = locked(daemon, patience, passed, reload);
    pid_file.remove();
    held
}

fn locked(
    daemon: Daemon,
    patience: Duration,
    passed: Passed,
    reload: Reload,
) -> anyhow::Result<()> {
    let engine = &daemon.engine;
    let persona = reload.start.persona;
    let cgroup_parent = engine.cgroup_parent.clone();
    let data_root = locks::directory("data root", &engine.data_root, 0o710, patience)?;
    let exec_root = locks::directory("exec root", &engine.exec_root, 0o711, patience)?;
    let runtime = runtime()?;
    let result = runtime.block_on(serve(daemon, passed, reload));
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

/// All parts of the daemon, wired.
async fn serve(daemon: Daemon, mut passed: Passed, mut reload: Reload) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    // First, so that an address that is taken is told before anything has changed. Clients queue.
    let listeners = listen(&daemon, &mut passed).await?;
    let state = daemon.engine.exec_root.join("containerd");
    let address = Path::new(&daemon.engine.store_address);
    let store = store_role::open(&daemon.engine.data_root.join("store"), &state, address).await?;
    let services = store.open(&daemon.namespace).map_err(failed("open the store's namespace"))?;
    let engine = Engine::open(daemon.engine.clone(), services)
        .await
        .map_err(|error| anyhow!("{}", crate::chain(&error)))?;

    let shutdown = CancellationToken::new();
    let clients = Arc::new(AtomicUsize::new(0));
    for listener in &listeners {
        tracing::info!("API listen on {}", listener.address());
    }
    let store_socket = store_role::Socket::bind(address).await?;
    let grpc = store_socket.serve(store.clone(), shutdown.clone(), clients.clone());
    let grpc = tokio::spawn(grpc);
    let api = engine_api::serve(engine.clone(), listeners, shutdown.clone(), clients.clone());
    let api = tokio::spawn(api);
    notify(State::Ready);
    tracing::info!(version = daemon.engine.version, "Daemon has completed initialization");

    let busy = || {
        clients.load(Ordering::Relaxed) > 0
            || engine.running_containers() > 0
            || store.running_tasks() > 0
    };
    let why = wait_for_end(&mut signals, &mut reload, daemon.idle_after, busy).await;
    tracing::info!("{why}");
    notify(State::Stopping);
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
    engine.close().await;
    store.flush().await.map_err(failed("flush the store"))?;
    tracing::info!("Daemon shutdown complete");
    Ok(())
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

/// Until a signal, or until nothing was to do for so long; says which.
async fn wait_for_end(
    signals: &mut Signals,
    reload: &mut Reload,
    idle_after: Option<Duration>,
    busy: impl Fn() -> bool,
) -> String {
    let mut quiet_since = Instant::now();
    let first = tokio::time::Instant::now() + FIRST_TRIM;
    let mut trim = tokio::time::interval_at(first, TRIM_EVERY);
    loop {
        tokio::select! {
            caught = signals.next() => match caught {
                Caught::End(name) => return format!("Processing signal '{name}'"),
                Caught::Reload => reload.run(),
            },
            _ = trim.tick() => sys::heap::trim(),
            () = tokio::time::sleep(IDLE_STEP), if idle_after.is_some() => {
                if busy() {
                    quiet_since = Instant::now();
                } else if idle_after.is_some_and(|limit| quiet_since.elapsed() >= limit) {
                    return "no container runs and no client came: the daemon ends".into();
                }
            }
        }
    }
}

pub(crate) struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("handle signals");
        Ok(Self {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.term.recv() => Caught::End("terminated"),
            _ = self.int.recv() => Caught::End("interrupt"),
            _ = self.hup.recv() => Caught::Reload,
        }
    }

    /// The next one that asks to end.
    pub(crate) async fn end(&mut self) {
        while let Caught::Reload = self.next().await {}
    }
}

/// What a signal asks for.
enum Caught {
    /// Its name.
    End(&'static str),
    Reload,
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
async fn listen(daemon: &Daemon, passed: &mut Passed) -> anyhow::Result<Vec<Bound>> {
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
                sockets.into_iter().map(passed_socket).collect::<anyhow::Result<_>>()?
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
            bound.push(listener.bind().await?);
        }
    }
    Ok(bound)
}

/// Only unix sockets can be served so.
fn passed_socket(fd: std::os::fd::OwnedFd) -> anyhow::Result<Listener> {
    let family = rustix::net::sockopt::socket_domain(&fd).context("a passed socket")?;
    if family != rustix::net::AddressFamily::UNIX {
        bail!("a tcp socket passed by the service manager is not supported by gantry yet");
    }
    Ok(Listener::UnixFd(fd))
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
