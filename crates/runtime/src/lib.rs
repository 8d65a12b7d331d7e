//! The OCI runtime: from a bundle to a running process (what runc does).
//!
//! Owns: namespaces, root file systems, cgroups, seccomp programs, capabilities, hooks, and the
//! state directory of its containers. Does not own: bundles (the caller's), stdio beyond handing
//! it to the process, logs, exit statuses (the caller is the process's parent and waits for it).
//!
//! The caller of [`create`] and [`exec`] is the parent of the process that they return, also
//! where an intermediate process joined namespaces (it clones with CLONE_PARENT). The calling
//! process never changes its own namespaces, cgroup or credentials. It must have a single
//! thread: the children are made with clone3 and run ordinary code until they exec.
//!
//! On disk, below [`Options::root`] (0711), one directory per container (0700):
//! `state.json` (versioned), `config.json` (the spec as it was at create), `seccomp.bpf`
//! (compiled, loaded again by exec), `exec.fifo` (from create to start). `root/<id>` is made
//! exclusively by create; beside it there is one lock, flock(2) on that directory, by which
//! create, start and delete take turns. No tasks, no channels, no tokio.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

mod caps;
mod cgroup;
pub mod cli;
mod console;
mod create;
mod dbus;
pub mod error;
mod exec;
mod hooks;
mod init;
mod jsonpath;
mod namespaces;
mod netdev;
mod objects;
mod operate;
mod process;
mod procfs;
mod rdt;
mod rootfs;
pub mod seccomp;
pub mod selfexe;
pub mod spec;
mod start;
mod state;
mod stats;
mod surroundings;
mod sync;
mod sysctl;

pub use cgroup::OomWatch;
pub use error::{Error, Result};
pub use state::{State, Status};
pub use stats::{
    BlkioEntry, CpuStats, CpusetStats, HugetlbStats, MemoryStats, PidsStats, Pressure, Psi, Stats,
};

/// Where state is kept and how the host is used; the same for every operation.
#[derive(Debug, Clone)]
pub struct Options {
    /// State root, e.g. `/run/gantry/runtime/<namespace>`. Made (0711) if missing.
    pub root: PathBuf,
    /// Make cgroups through systemd, over D-Bus; `linux.cgroupsPath` is `slice:prefix:name` then.
    pub systemd_cgroup: bool,
    /// Whether cgroup failures for lack of permission are let pass. `None`: decided by the
    /// effective uid.
    pub rootless: Option<bool>,
    /// Timeout of hooks that have none of their own, in whole seconds, at least one; given to them by
    /// [`create`] for the container's whole life. `None`: they are waited for without end.
    pub hook_limit: Option<Duration>,
}

/// Standard streams of a process. A pty is used exactly if the process's `terminal` is true.
#[derive(Debug)]
pub enum Stdio {
    /// Descriptors 0, 1, 2 of the caller.
    Inherit,
    /// These; they are closed in the caller when the call returns.
    Fds {
        /// Becomes descriptor 0.
        stdin: OwnedFd,
        /// Becomes descriptor 1.
        stdout: OwnedFd,
        /// Becomes descriptor 2.
        stderr: OwnedFd,
    },
    /// A new pty of the container's devpts; its master is sent to the Unix socket at this path.
    ConsoleSocket(PathBuf),
    /// A new pty of the container's devpts; its master is returned to the caller.
    Console,
}

/// What [`create`] takes beside the bundle's `config.json`.
#[derive(Debug)]
pub struct CreateOptions {
    /// Directory with `config.json`; relative `root.path` and bind sources start here.
    pub bundle: PathBuf,
    /// Standard streams.
    pub stdio: Stdio,
    /// Written atomically with the process's pid, in decimal.
    pub pid_file: Option<PathBuf>,
    /// Unix socket that gets the process's pidfd.
    pub pidfd_socket: Option<PathBuf>,
    /// Descriptors 3..3+n of the caller are kept open in the process.
    pub preserve_fds: u32,
    /// chroot and MS_MOVE in place of pivot_root (ramfs roots).
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Of the descriptors that [`CreateOptions::preserve_fds`] counts, the first so many are sockets
    /// of the caller's service manager: the process is told by `LISTEN_FDS` and `LISTEN_PID`.
    pub listen_fds: u32,
    /// Make a place for a socket, `/run/notify/notify.sock` to the container, and name it to the
    /// process as `NOTIFY_SOCKET`. The caller binds the socket before `start`.
    pub notify: bool,
}

/// The socket of [`CreateOptions::notify`], below the container's state directory.
pub const NOTIFY_FILE: &str = "notify/notify.sock";

impl CreateOptions {
    /// Defaults of `runc create`: inherited stdio, nothing else.
    pub fn new(bundle: impl Into<PathBuf>) -> CreateOptions {
        CreateOptions {
            bundle: bundle.into(),
            stdio: Stdio::Inherit,
            pid_file: None,
            pidfd_socket: None,
            preserve_fds: 0,
            no_pivot: false,
            no_new_keyring: false,
            listen_fds: 0,
            notify: false,
        }
    }
}

/// A process that was made, and is the caller's child.
#[derive(Debug)]
pub struct Created {
    /// Pid in the caller's pid namespace.
    pub pid: i32,
    /// The same process; wait on it with this.
    pub pidfd: OwnedFd,
    /// The pty's master, for [`Stdio::Console`].
    pub console_master: Option<OwnedFd>,
    /// What was asked for and left out, for a log: capabilities that are not known here.
    pub warnings: Vec<String>,
}

/// What [`exec`] takes.
#[derive(Debug)]
pub struct ExecOptions {
    /// The process. Where it says nothing of labels, capabilities, limits, umask, scheduling and
    /// `oomScoreAdj`, it gets what the container's own process has.
    pub process: spec::Process,
    /// Standard streams.
    pub stdio: Stdio,
    /// Written atomically with the process's pid, in decimal.
    pub pid_file: Option<PathBuf>,
    /// Unix socket that gets the process's pidfd.
    pub pidfd_socket: Option<PathBuf>,
    /// Descriptors 3..3+n of the caller are kept open in the process.
    pub preserve_fds: u32,
    /// Sub-cgroup (relative to the container's) to run in; for v1 also `controller:path`, several
    /// a line each.
    pub cgroup: Option<String>,
    /// Do not refuse a paused container.
    pub ignore_paused: bool,
}

/// A container's id: `[A-Za-z0-9_+.-]`, 1 to 1024 bytes, not `.`/`..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks the characters; runc's rule.
    ///
    /// # Errors
    /// [`Error::InvalidId`].
    pub fn new(id: impl Into<String>) -> Result<ContainerId> {
        /// runc's limit for ids.
        const ID_LIMIT_BYTES: usize = 1024;
        let id = id.into();
        let good = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
        if id.is_empty()
            || id.len() > ID_LIMIT_BYTES
            || id == "."
            || id == ".."
            || !id.bytes().all(good)
        {
            return Err(Error::InvalidId(id));
        }
        Ok(ContainerId(id))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Creates the container: everything is set up, its process waits for [`start`].
///
/// # Errors
/// [`Error::Exists`], [`Error::Init`] with the process's own words, and whatever else failed;
/// nothing is left behind then.
pub fn create(opts: &Options, id: &ContainerId, create: CreateOptions) -> Result<Created> {
    create::create(opts, id, create)
}

/// Lets a created container's process go on to the user's program; runs poststart hooks.
///
/// # Errors
/// [`Error::WrongStatus`] unless the container is in the state created; [`Error::Hook`] (the
/// container is killed then). That the program cannot be executed is said on the container's
/// stderr, and it ends with 255.
pub fn start(opts: &Options, id: &ContainerId) -> Result<()> {
    start::start(opts, id)
}

/// Runs one more process in a container. When it returns, the program runs.
///
/// # Errors
/// [`Error::Init`] with runc's words (`unable to start container process: exec: …`),
/// [`Error::WrongStatus`] for a stopped or paused container.
pub fn exec(opts: &Options, id: &ContainerId, exec: ExecOptions) -> Result<Created> {
    exec::exec(opts, id, exec)
}

/// Sends a signal (by number) to the first process, or with `all` to every process of the
/// container's cgroup. SIGKILL to a container without a pid namespace of its own is for all.
///
/// # Errors
/// [`Error::WrongStatus`] (`container not running`) once the process has ended.
pub fn kill(opts: &Options, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
    operate::kill(opts, id, signal, all)
}

/// Removes a stopped or created container (with `force`, a running one, too): what is left of its
/// processes, cgroups, state; then runs poststop hooks.
///
/// # Errors
/// [`Error::WrongStatus`] for a running container without `force`; what could not be removed.
pub fn delete(opts: &Options, id: &ContainerId, force: bool) -> Result<()> {
    operate::delete(opts, id, force).map(drop)
}

/// As [`delete`]; what went wrong with poststop hooks, which changes nothing and belongs into a log.
///
/// # Errors
/// As [`delete`].
pub fn delete_with_warnings(opts: &Options, id: &ContainerId, force: bool) -> Result<Vec<Error>> {
    operate::delete(opts, id, force)
}

/// Freezes every process of the container.
///
/// # Errors
/// [`Error::WrongStatus`] unless it runs.
pub fn pause(opts: &Options, id: &ContainerId) -> Result<()> {
    operate::pause(opts, id)
}

/// Thaws them.
///
/// # Errors
/// [`Error::WrongStatus`] unless it is paused.
pub fn resume(opts: &Options, id: &ContainerId) -> Result<()> {
    operate::resume(opts, id)
}

/// Changes limits; absent values stay as they are. Device rules, where there are any, replace those
/// that the container has.
///
/// # Errors
/// [`Error::WrongStatus`] for a stopped container; the kernel's refusal of a value.
pub fn update(opts: &Options, id: &ContainerId, resources: &spec::Resources) -> Result<()> {
    operate::update(opts, id, resources)
}

/// Changes the schemata of a container's class of cache and memory bandwidth.
///
/// # Errors
/// [`Error::Config`] for a container that was made without `linux.intelRdt`.
pub fn update_rdt(opts: &Options, id: &ContainerId, rdt: &spec::IntelRdt) -> Result<()> {
    operate::update_rdt(opts, id, rdt)
}

/// Pids (in the caller's pid namespace) of every process in the container's cgroup and below.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Sys`].
pub fn pids(opts: &Options, id: &ContainerId) -> Result<Vec<i32>> {
    state::Container::load(opts, id)?.record.cgroup.processes()
}

/// Current figures of the container's cgroup.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Sys`].
pub fn stats(opts: &Options, id: &ContainerId) -> Result<Stats> {
    state::Container::load(opts, id)?.record.cgroup.stats()
}

/// A descriptor that becomes readable when the container runs out of memory.
///
/// # Errors
/// [`Error::Unsupported`] without a memory cgroup.
pub fn oom_watch(opts: &Options, id: &ContainerId) -> Result<OomWatch> {
    state::Container::load(opts, id)?.record.cgroup.oom_watch()
}

/// The container's state, from disk and kernel.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Json`] for a damaged file.
pub fn state(opts: &Options, id: &ContainerId) -> Result<State> {
    state::Container::load(opts, id)?.state()
}

/// The spec of a container as it was when it was made.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Json`] for a damaged file.
pub fn spec_of(opts: &Options, id: &ContainerId) -> Result<spec::Spec> {
    state::Container::load(opts, id)?.spec()
}

/// States of all containers below the root, by id; damaged ones are left out.
///
/// # Errors
/// [`Error::Io`] if the root cannot be read; a root that does not exist is empty.
pub fn list(opts: &Options) -> Result<Vec<State>> {
    operate::list(opts).map(|(states, _)| states)
}
