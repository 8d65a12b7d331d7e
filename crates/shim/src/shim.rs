//! The shim's state and its one loop.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::process::WaitOptions;

use crate::bundle::Exit;
use crate::diagnostics::Diagnostics;
use crate::error::{Context, Error, Result};
use crate::events::Publisher;
use crate::forward::Forwarder;
use crate::poll::{Kind, Poller, Ready};
use crate::process::{Client, Conn, Container, Process, Stage};
use crate::start::Starts;

/// One read of a stream or socket.
const SCRATCH_BYTES: usize = 32 << 10;
/// After Shutdown: how long without any byte of progress output to clients and events are still
/// attempted.
const LINGER: Duration = Duration::from_secs(10);
/// SIGCHLD says that something is to be reaped. The others are read and passed over: a shim ends
/// by Shutdown, not with the session or the host's first round of signals.
const SIGNALS: [i32; 4] = [SIGCHLD, 1, 2, 15];
const SIGCHLD: i32 = 17;
const SIGKILL: i32 = 9;

/// How long a shim without a container waits for a connection. Whoever starts one connects at once.
const LONELY: Duration = Duration::from_secs(10);

/// What the shim was started with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) namespace: String,
    pub(crate) ttrpc_address: Option<PathBuf>,
    /// Path of the ttrpc socket; the attach socket is the same with `.attach`.
    pub(crate) socket: PathBuf,
}

/// Everything a shim holds.
pub(crate) struct Shim {
    pub(crate) setup: Setup,
    pub(crate) poller: Poller,
    pub(crate) listener: OwnedFd,
    pub(crate) attach_listener: OwnedFd,
    pub(crate) spare: crate::server::Spare,
    signals: OwnedFd,
    pub(crate) conns: BTreeMap<u64, Conn>,
    pub(crate) clients: BTreeMap<u64, Client>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) processes: BTreeMap<u64, Process>,
    pub(crate) events: Publisher,
    pub(crate) forwarder: Forwarder,
    pub(crate) starts: Starts,
    pub(crate) diagnostics: Diagnostics,
    pub(crate) scratch: Vec<u8>,
    next_id: u64,
    shutdown: Option<Instant>,
    /// Until when a shim without a container waits for somebody to connect.
    lonely: Option<Instant>,
}

impl Shim {
    pub(crate) fn new(
        setup: Setup,
        listener: OwnedFd,
        attach_listener: OwnedFd,
        diagnostics: Diagnostics,
    ) -> Result<Shim> {
        let poller = Poller::new()?;
        let signals = sys::process::signal_fd(&SIGNALS).context("signalfd", || "shim")?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("prctl", || "child subreaper")?;
        poller.add(&listener, Kind::Listener, 0, EventFlags::IN)?;
        poller.add(&attach_listener, Kind::AttachListener, 0, EventFlags::IN)?;
        poller.add(&signals, Kind::Signal, 0, EventFlags::IN)?;
        let events = Publisher::new(setup.ttrpc_address.clone(), setup.namespace.clone());
        Ok(Shim {
            setup,
            poller,
            listener,
            attach_listener,
            spare: crate::server::Spare::new(),
            signals,
            conns: BTreeMap::new(),
            clients: BTreeMap::new(),
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            events,
            forwarder: Forwarder::default(),
            starts: Starts::default(),
            diagnostics,
            scratch: vec![0; SCRATCH_BYTES],
            next_id: 1,
            shutdown: None,
            lonely: None,
        })
    }

    /// Serves until Shutdown.
    ///
    /// # Errors
    /// epoll fails, which it does not.
    pub(crate) fn run(&mut self) -> Result<()> {
        let mut ready = Vec::new();
        while !self.is_over() {
            self.note_loneliness();
            let deadline = self.next_deadline();
            self.poller.wait(&mut ready, deadline)?;
            for one in &ready {
                self.dispatch(*one);
            }
            self.on_deadlines();
        }
        Ok(())
    }

    fn dispatch(&mut self, ready: Ready) {
        match ready.kind {
            Kind::Listener => {
                self.on_listener();
                self.pause_listeners();
            }
            Kind::AttachListener => {
                self.on_attach_listener();
                self.pause_listeners();
            }
            Kind::Signal => self.on_signal(),
            Kind::Conn => self.on_conn(ready.id, ready.flags),
            Kind::Attach => self.on_client(ready.id, ready.flags),
            Kind::Output => self.on_output(ready.id),
            Kind::Sink => self.on_sink(ready.id),
            Kind::Stdin => self.on_stdin(ready.id),
            Kind::StdinFifo => self.on_stdin_fifo(ready.id),
            Kind::Oom => self.on_oom(ready.id),
            Kind::Events => {
                self.events.on_ready(&self.poller, ready.flags);
                self.progress();
            }
            Kind::Helper => self.on_helper(ready.id),
            Kind::Forward => self.forwarder.on_ready(&self.poller, ready.id, ready.flags),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let drains = self.processes.values().filter_map(|p| p.io.drain_until);
        let others = [
            self.events.deadline(),
            self.forwarder.deadline(),
            self.starts.deadline(),
            self.spare.paused,
            self.shutdown,
            self.lonely,
        ];
        drains.chain(others.into_iter().flatten()).min()
    }

    /// A store that was killed before it made the container, or after it deleted it, never comes back for
    /// a shim that holds nothing.
    fn note_loneliness(&mut self) {
        let lonely = self.shutdown.is_none() && self.containers.is_empty() && self.conns.is_empty();
        if !lonely {
            self.lonely = None;
        } else if self.lonely.is_none() {
            self.lonely = Some(Instant::now() + LONELY);
        }
    }

    fn on_deadlines(&mut self) {
        let now = Instant::now();
        if self.lonely.is_some_and(|at| at <= now) {
            self.begin_shutdown();
        }
        if self.events.deadline().is_some_and(|at| at <= now) {
            self.events.on_deadline(&self.poller);
        }
        if self.forwarder.deadline().is_some_and(|at| at <= now) {
            self.forwarder.on_deadline(&self.poller, now);
        }
        if self.spare.paused.is_some_and(|at| at <= now) {
            self.resume_listeners();
        }
        self.on_start_deadlines(now);
        let due: Vec<u64> = self
            .processes
            .iter()
            .filter(|(_, p)| p.io.drain_until.is_some_and(|at| at <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.drain_timeout(key);
        }
    }

    /// A key for connections, clients and processes that was never used before.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Begins the end: no new clients, and out as soon as everything is said.
    pub(crate) fn begin_shutdown(&mut self) {
        if self.shutdown.is_none() {
            self.poller.remove(&self.listener);
            self.poller.remove(&self.attach_listener);
            for path in [self.setup.socket.clone(), attach_path(&self.setup.socket)] {
                // Gone already is as good.
                drop(std::fs::remove_file(path));
            }
            self.shutdown = Some(Instant::now() + LINGER);
        }
    }

    /// Some byte went out.
    pub(crate) fn progress(&mut self) {
        if let Some(until) = &mut self.shutdown {
            *until = Instant::now() + LINGER;
        }
    }

    fn is_over(&mut self) -> bool {
        let Some(until) = self.shutdown else { return false };
        let idle: Vec<u64> = self.conns.keys().copied().collect();
        for id in idle {
            self.close_conn(id);
        }
        let sending = self.clients.values().any(|c| c.process.is_some());
        let done = self.conns.is_empty()
            && !sending
            && self.events.is_empty()
            && self.processes.is_empty();
        done || Instant::now() >= until
    }

    /// The key of a container's first process, or of an exec.
    pub(crate) fn find(&self, container: &str, exec_id: &str) -> Result<u64> {
        let found = self.container(container)?;
        if exec_id.is_empty() {
            return Ok(found.init);
        }
        found
            .execs
            .get(exec_id)
            .copied()
            .ok_or_else(|| Error::not_found(format!("process does not exist {exec_id}")))
    }

    pub(crate) fn container(&self, id: &str) -> Result<&Container> {
        self.containers
            .get(id)
            .ok_or_else(|| Error::not_found(format!("container {id} not created: not found")))
    }

    pub(crate) fn process(&mut self, key: u64) -> Result<&mut Process> {
        self.processes.get_mut(&key).ok_or_else(|| Error::not_found("process does not exist"))
    }

    fn on_signal(&mut self) {
        let mut reap = false;
        while let Ok(Some(signal)) = sys::process::read_signal(&self.signals) {
            reap |= signal == SIGCHLD;
        }
        if reap {
            self.reap();
        }
    }

    /// Takes the exit of every child, and of every orphan that came to the subreaper.
    pub(crate) fn reap(&mut self) {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or_default();
                    let code = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => code.unsigned_abs(),
                        (None, Some(signal)) => 128 + signal.unsigned_abs(),
                        (None, None) => continue,
                    };
                    self.on_exit(pid, code);
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    pub(crate) fn on_exit(&mut self, pid: u32, status: u32) {
        let living = |p: &Process| p.pid == pid && p.stage != Stage::Created && p.exit().is_none();
        let starting = |p: &Process| p.pid == pid && p.stage == Stage::Created;
        let key =
            self.processes.iter().find(|(_, p)| living(p) || starting(p)).map(|(key, _)| *key);
        match key {
            Some(key) => self.process_ended(key, status),
            None => {
                for process in self.processes.values_mut() {
                    if process.io.log.as_mut().is_some_and(|log| log.owns_child(pid)) {
                        return;
                    }
                }
                if !self.helper_ended(pid) {
                    self.note_stray(pid, status);
                }
            }
        }
    }

    /// Records an exit, then tells it: log, disk, event, Wait, clients; in this order.
    pub(crate) fn process_ended(&mut self, key: u64, status: u32) {
        let Some(process) = self.processes.get(&key) else { return };
        let (container, is_init) = (process.container.clone(), process.exec_id.is_empty());
        if is_init {
            // Memory ran out, then the process was killed: told in that order.
            self.on_oom(key);
            self.kill_rest(&container);
        }
        self.drain_at_exit(key);
        let exit = Exit { status, at: protos::shim::now() };
        let Some(process) = self.processes.get_mut(&key) else { return };
        process.stage = Stage::Stopped(exit);
        let pid = process.pid;
        let waiters = std::mem::take(&mut process.waiters);
        if is_init && let Some(found) = self.containers.get(&container) {
            // Told all the same: the shim's own memory is what counts as long as it lives.
            if let Err(error) = crate::bundle::write_exit(&found.bundle, pid, exit) {
                self.diagnostics.error(&error.chain());
            }
        }
        self.publish_exit(key, exit);
        for (conn, stream) in waiters {
            self.end_waiting(conn, stream, Ok(crate::service::wait_answer(exit)));
        }
        if let Some(process) = self.processes.get_mut(&key)
            && process.io.stdin.is_some()
        {
            self.close_input_of_ended(key);
        }
        self.after_drain(key);
    }

    pub(crate) fn close_input_of_ended(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        if let Some(stdin) = process.io.stdin.take() {
            for fd in [&stdin.fd, &stdin.fifo].into_iter().flatten() {
                self.poller.remove(fd);
            }
        }
        for client in process.io.clients.clone() {
            self.release_client(client);
        }
    }

    /// Where the container shares its pid namespace, the kernel does not end the others.
    fn kill_rest(&mut self, container: &str) {
        let Some(found) = self.containers.get(container) else { return };
        if !found.private_pids
            && let Err(error) = found.oci.kill(container, SIGKILL, true)
        {
            self.diagnostics.debug(&error.chain());
        }
    }

    /// Removes a deleted process once its last byte is out.
    pub(crate) fn forget_if_done(&mut self, key: u64) {
        let done = self
            .processes
            .get(&key)
            .is_some_and(|p| p.gone && p.io.drained() && p.io.clients.is_empty());
        if done && let Some(mut process) = self.processes.remove(&key) {
            self.drop_streams(&mut process.io);
        }
    }
}

impl Process {
    pub(crate) fn exit(&self) -> Option<Exit> {
        match self.stage {
            Stage::Stopped(exit) => Some(exit),
            Stage::Created | Stage::Starting | Stage::Running => None,
        }
    }
}

/// The attach socket that belongs to a ttrpc socket.
pub fn attach_path(socket: &std::path::Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".attach");
    PathBuf::from(path)
}
