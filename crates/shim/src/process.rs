//! What the shim knows of containers, their processes and attached clients. Plain data; the
//! operations on it are in `service`, `streams` and `attach`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use crate::bundle::Exit;
use crate::logfile::JsonLog;
use crate::oci::Oci;
use crate::poll::OutBuf;
use crate::stdio::StdioTexts;

/// A container of this shim.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) bundle: PathBuf,
    pub(crate) oci: Oci,
    /// Key of its first process.
    pub(crate) init: u64,
    /// Keys of exec'd processes, by exec id.
    pub(crate) execs: BTreeMap<String, u64>,
    pub(crate) paused: bool,
    /// Mounts were made on the bundle's `rootfs`.
    pub(crate) mounted: bool,
    /// Processes die with the first one by themselves (it has a pid namespace of its own).
    pub(crate) private_pids: bool,
    pub(crate) io_uid: u32,
    pub(crate) io_gid: u32,
    pub(crate) oom: Option<runtime::OomWatch>,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The first process waits for Start; or an exec was added (without a pid yet).
    Created,
    /// A helper makes the exec'd process.
    Starting,
    Running,
    Stopped(Exit),
}

/// A process, living or not yet deleted.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) container: String,
    /// Empty: the container's first process.
    pub(crate) exec_id: String,
    /// 0 before an exec is started.
    pub(crate) pid: u32,
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) stage: Stage,
    pub(crate) texts: StdioTexts,
    /// The OCI process object of an exec that was not started.
    pub(crate) spec: Vec<u8>,
    /// Calls of Wait: (connection, stream).
    pub(crate) waiters: Vec<(u64, u32)>,
    pub(crate) io: Io,
    /// Deleted, but its output is still on the way to clients.
    pub(crate) gone: bool,
}

/// A process's streams, on the shim's side.
#[derive(Debug, Default)]
pub(crate) struct Io {
    pub(crate) stdin: Option<Stdin>,
    /// stdout (or the terminal), stderr. `None`: nothing is read.
    pub(crate) outputs: [Option<OutputStream>; 2],
    pub(crate) log: Option<JsonLog>,
    /// The terminal, for its size.
    pub(crate) master: Option<OwnedFd>,
    /// For the terminal that is yet to come.
    pub(crate) size: Option<rustix::termios::Winsize>,
    /// Attached clients.
    pub(crate) clients: Vec<u64>,
    /// After the exit: until when output of processes left behind is waited for.
    pub(crate) drain_until: Option<Instant>,
}

impl Io {
    /// All output was read, logged, and given to the clients' buffers and sinks.
    pub(crate) fn drained(&self) -> bool {
        self.outputs.iter().all(Option::is_none)
    }
}

/// An output that is read.
#[derive(Debug)]
pub(crate) struct OutputStream {
    pub(crate) fd: OwnedFd,
    /// Not registered with epoll: somebody is slow.
    pub(crate) paused: bool,
    /// At its end; waits for the sink alone.
    pub(crate) ended: bool,
    pub(crate) sink: Option<Sink>,
}

/// Where output goes beside log and clients.
#[derive(Debug)]
pub(crate) enum Sink {
    Fifo { fd: OwnedFd, pending: OutBuf },
    File(File),
}

/// A process's standard input.
#[derive(Debug)]
pub(crate) struct Stdin {
    /// Pipe or terminal. `None`: an exec that was not started.
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) pending: OutBuf,
    /// Close as soon as nothing is pending.
    pub(crate) closing: bool,
    pub(crate) fifo: Option<OwnedFd>,
    pub(crate) fifo_paused: bool,
    /// Clients may write to it.
    pub(crate) attach: bool,
    /// Closed when `owner` goes.
    pub(crate) once: bool,
    pub(crate) owner: Option<u64>,
    pub(crate) terminal: bool,
}

/// A client of the attach socket.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) fd: OwnedFd,
    pub(crate) input: Vec<u8>,
    pub(crate) output: OutBuf,
    /// The process; `None` before the hello.
    pub(crate) process: Option<u64>,
    pub(crate) stdin: bool,
    /// Wants stdout, stderr.
    pub(crate) wants: [bool; 2],
    /// Close once the output is sent.
    pub(crate) closing: bool,
    /// Not read, because the process does not take its input; not registered for reading.
    pub(crate) held: bool,
    /// Has sent its last byte.
    pub(crate) read_end: bool,
}

/// A ttrpc client.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) fd: OwnedFd,
    pub(crate) input: Vec<u8>,
    pub(crate) output: OutBuf,
    /// Ids of its calls that wait.
    pub(crate) waiting: usize,
    pub(crate) closing: bool,
}
