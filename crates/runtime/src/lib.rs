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
//! exclusively by create; there are no locks beside it and the atomic unlink of `exec.fifo`,
//! which makes one `start` the winner. No tasks, no channels, no tokio.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub mod error;
pub mod spec;

pub use error::{Error, Result};

/// Where state is kept and how the host is used; the same for every operation.
#[derive(Debug, Clone)]
pub struct Options {
    /// State root, e.g. `/run/gantry/runtime/<namespace>`. Made (0711) if missing.
    pub root: PathBuf,
    /// Make cgroups through systemd. Refused by name for now.
    pub systemd_cgroup: bool,
    /// Whether cgroup failures for lack of permission are let pass. `None`: decided by the
    /// effective uid.
    pub rootless: Option<bool>,
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
}

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
}

/// What [`exec`] takes.
#[derive(Debug)]
pub struct ExecOptions {
    /// The process; absent parts are not filled from the container's own process.
    pub process: spec::Process,
    /// Standard streams.
    pub stdio: Stdio,
    /// Written atomically with the process's pid, in decimal.
    pub pid_file: Option<PathBuf>,
    /// Unix socket that gets the process's pidfd.
    pub pidfd_socket: Option<PathBuf>,
    /// Descriptors 3..3+n of the caller are kept open in the process.
    pub preserve_fds: u32,
    /// Sub-cgroup (relative to the container's) to run in.
    pub cgroup: Option<String>,
    /// Do not refuse a paused container.
    pub ignore_paused: bool,
}

/// Reserved for the container's own id type: `[A-Za-z0-9_+.-]`, 1 to 1024 bytes, not `.`/`..`.
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

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is under way.
    Creating,
    /// Set up, waiting for `start`.
    Created,
    /// The user's process runs.
    Running,
    /// Frozen.
    Paused,
    /// The first process has ended.
    Stopped,
}

/// Creates the container: everything is set up, its process waits for [`start`].
///
/// # Errors
/// [`Error::Exists`], and whatever failed; nothing is left behind then.
pub fn create(opts: &Options, id: &ContainerId, create: CreateOptions) -> Result<Created> {
    Err(Error::Unsupported(format!(
        "create {id} {} {}",
        opts.root.display(),
        create.bundle.display()
    )))
}

/// Lets a created container's process go on to the user's program; runs poststart hooks.
pub fn start(opts: &Options, id: &ContainerId) -> Result<()> {
    Err(Error::Unsupported(format!("start {id} {}", opts.root.display())))
}

/// Runs one more process in a container.
pub fn exec(opts: &Options, id: &ContainerId, exec: ExecOptions) -> Result<Created> {
    Err(Error::Unsupported(format!("exec {id} {} {}", opts.root.display(), exec.preserve_fds)))
}

/// Sends a signal to the first process, or with `all` to every process of the container's cgroup.
pub fn kill(opts: &Options, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
    Err(Error::Unsupported(format!("kill {id} {} {signal} {all}", opts.root.display())))
}

/// Removes a stopped container (with `force`, kills it first): cgroups, state, poststop hooks.
pub fn delete(opts: &Options, id: &ContainerId, force: bool) -> Result<()> {
    Err(Error::Unsupported(format!("delete {id} {} {force}", opts.root.display())))
}

/// Freezes every process of the container.
pub fn pause(opts: &Options, id: &ContainerId) -> Result<()> {
    Err(Error::Unsupported(format!("pause {id} {}", opts.root.display())))
}

/// Thaws them.
pub fn resume(opts: &Options, id: &ContainerId) -> Result<()> {
    Err(Error::Unsupported(format!("resume {id} {}", opts.root.display())))
}

/// Changes limits; absent values stay as they are.
pub fn update(opts: &Options, id: &ContainerId, resources: &spec::Resources) -> Result<()> {
    Err(Error::Unsupported(format!("update {id} {} {resources:?}", opts.root.display())))
}

/// Pids (in the caller's pid namespace) of every process in the container's cgroup and below.
pub fn pids(opts: &Options, id: &ContainerId) -> Result<Vec<i32>> {
    Err(Error::Unsupported(format!("pids {id} {}", opts.root.display())))
}

/// Current figures of the container's cgroup.
pub fn stats(opts: &Options, id: &ContainerId) -> Result<Stats> {
    Err(Error::Unsupported(format!("stats {id} {}", opts.root.display())))
}

/// A descriptor that becomes readable when the container runs out of memory, see [`OomWatch`].
pub fn oom_watch(opts: &Options, id: &ContainerId) -> Result<OomWatch> {
    Err(Error::Unsupported(format!("oom_watch {id} {}", opts.root.display())))
}

/// What `runc state` prints.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Pid of the first process in the caller's namespace; 0 when stopped.
    pub pid: i32,
    /// Status.
    pub status: Status,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The spec's annotations.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Owner's name; empty.
    pub owner: String,
}

/// The container's state, from disk and kernel.
pub fn state(opts: &Options, id: &ContainerId) -> Result<State> {
    Err(Error::Unsupported(format!("state {id} {}", opts.root.display())))
}

/// States of all containers below the root; damaged ones are left out.
pub fn list(opts: &Options) -> Result<Vec<State>> {
    Err(Error::Unsupported(format!("list {}", opts.root.display())))
}

/// cgroup figures, the same for v1 and v2. Times in nanoseconds, sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// CPU.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes.
    pub pids: PidsStats,
    /// Block devices.
    pub blkio: Vec<BlkioEntry>,
    /// Huge pages by page size (`2MB`).
    pub hugetlb: std::collections::BTreeMap<String, HugetlbStats>,
    /// The host runs this container under cgroup v2.
    pub v2: bool,
}

/// CPU figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CpuStats {
    /// Total processor time.
    pub usage_ns: u64,
    /// In user mode.
    pub user_ns: u64,
    /// In kernel mode.
    pub kernel_ns: u64,
    /// Per processor (v1 only).
    pub percpu_ns: Vec<u64>,
    /// Enforcement periods that have passed.
    pub periods: u64,
    /// Of them, throttled.
    pub throttled_periods: u64,
    /// Time throttled.
    pub throttled_ns: u64,
}

/// Memory figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemoryStats {
    /// In use now.
    pub usage: u64,
    /// Highest use (0 where the kernel does not say).
    pub max_usage: u64,
    /// The limit; `u64::MAX` for none.
    pub limit: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
    /// Swap (v1: memory and swap together).
    pub swap_usage: u64,
    /// Swap's limit, `u64::MAX` for none.
    pub swap_limit: u64,
    /// Kernel memory (v1) in use.
    pub kernel_usage: u64,
    /// OOM kills so far.
    pub oom_kills: u64,
    /// `memory.stat` as it is.
    pub stat: std::collections::BTreeMap<String, u64>,
}

/// Process counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// Limit; 0 for none.
    pub limit: u64,
}

/// One line of a blkio table.
#[derive(Debug, Clone, PartialEq)]
pub struct BlkioEntry {
    /// `io_service_bytes_recursive` or `io_serviced_recursive` (containerd's names).
    pub table: &'static str,
    /// Device.
    pub major: u64,
    /// Device.
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`.
    pub op: String,
    /// Bytes or operations.
    pub value: u64,
}

/// Huge page figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HugetlbStats {
    /// In use.
    pub usage: u64,
    /// Highest use.
    pub max_usage: u64,
    /// Failed charges.
    pub failcnt: u64,
}

/// Out-of-memory notice. Poll [`OomWatch::fd`]; when readable, call [`OomWatch::drain`].
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
}

impl OomWatch {
    /// The descriptor to poll for reading.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.fd.as_fd()
    }

    /// Takes the notice; true if there was an OOM kill since the last call.
    pub fn drain(&mut self) -> Result<bool> {
        Err(Error::Unsupported("oom watch".into()))
    }
}

pub mod cli {
    //! runc's command line.

    /// Runs the command line (`args` without the program's name); the exit code.
    pub fn main(args: Vec<std::ffi::OsString>) -> i32 {
        i32::from(args.is_empty()) + 1
    }
}
