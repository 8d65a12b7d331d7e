//! Standard streams: opening them, and moving bytes between a process, its log, sinks and clients.
//!
//! Output is read only while every reader keeps up: the log is written first (it never blocks),
//! then sinks and clients get a copy into a bounded buffer; while one of those is full the pipe is
//! not read, and so the process waits, as it does for a terminal. Input waits in one bounded
//! buffer; while that is full, clients and FIFO are not read.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::error::{Context, Error, Result};
use crate::logfile::JsonLog;
use crate::oci::ChildStdio;
use crate::poll::{Kind, OutBuf};
use crate::process::{Io, OutputStream, Sink, Stage, Stdin};
use crate::shim::Shim;
use crate::stdio::{Input, Output, StdioTexts};

/// A client or sink with this many bytes waiting stops the process's output.
pub(crate) const READER_BYTES_HIGH: usize = 64 << 10;
/// Input that waits for the process.
pub(crate) const STDIN_BYTES_HIGH: usize = 64 << 10;
/// Reads of one stream before others have their turn.
const READS_PER_TURN: usize = 4;
/// After the exit, output up to this many bytes is taken without regard to slow readers: a pipe
/// holds 64 KiB, and the log should be whole before the exit is told.
const EXIT_BYTES_MAX: usize = 128 << 10;
/// How long output of processes that outlive the one asked for is waited for (dockerd: 2 s).
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a `binary://` logger may take to say that it is ready (containerd: 10 s).
const LOGGER_TIMEOUT: Duration = Duration::from_secs(10);

/// The names that a logger is told.
pub(crate) struct Names<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) container: &'a str,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The parsed forms of the three texts.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) input: Input,
    pub(crate) outputs: [Output; 2],
}

impl Parsed {
    /// # Errors
    /// A form that is not known, or combinations that make no sense.
    pub(crate) fn new(texts: &StdioTexts) -> Result<Parsed> {
        let input = Input::parse(&texts.stdin)?;
        let stdout = Output::parse("stdout", &texts.stdout)?;
        let stderr = match Output::parse("stderr", &texts.stderr)? {
            _ if texts.terminal => Output::Null,
            // One log has both streams; an empty stderr follows stdout there.
            Output::Null if matches!(stdout, Output::JsonFile(_) | Output::Clients) => {
                stdout.clone()
            }
            other => other,
        };
        let mixed = |output: &Output| match output {
            Output::JsonFile(_) => *output != stdout,
            _ => false,
        };
        if mixed(&stderr) {
            return Err(Error::invalid("stderr: a json-file log that is not stdout's"));
        }
        Ok(Parsed { input, outputs: [stdout, stderr] })
    }

    /// Standard input's state before the process has one: what clients send waits in it.
    pub(crate) fn stdin(&self, terminal: bool) -> Option<Stdin> {
        let (attach, once) = match self.input {
            Input::Null => (false, false),
            Input::Fifo(_) => (false, false),
            Input::Attach { once } => (true, once),
        };
        (self.input != Input::Null).then(|| Stdin {
            fd: None,
            pending: OutBuf::default(),
            closing: false,
            fifo: None,
            fifo_paused: false,
            attach,
            once,
            owner: None,
            terminal,
        })
    }
}

/// Our side and the child's side of the streams.
pub(crate) struct Opened {
    pub(crate) child: ChildStdio,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) fifo: Option<OwnedFd>,
    pub(crate) outputs: [Option<OutputStream>; 2],
    pub(crate) log: Option<JsonLog>,
    /// The terminal's output goes here once there is a terminal.
    pub(crate) terminal_sink: Option<Sink>,
}

/// Takes what waits in the FIFO that feeds standard input. What is written while this reads may come
/// too or not; a FIFO without data, or without a writer, ends it, so it never waits.
fn drain_fifo(fifo: &OwnedFd, pending: &mut OutBuf, scratch: &mut [u8]) {
    // A FIFO that cannot tell has nothing to give.
    let mut left = rustix::io::ioctl_fionread(fifo).ok().and_then(|n| usize::try_from(n).ok());
    while let Some(bytes) = left.filter(|bytes| *bytes > 0) {
        match rustix::io::read(fifo, &mut *scratch) {
            Ok(read @ 1..) => {
                pending.queue(&scratch[..read]);
                left = bytes.checked_sub(read);
            }
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

/// Opens what the texts ask for.
pub(crate) fn open(parsed: &Parsed, terminal: bool, names: &Names<'_>) -> Result<Opened> {
    let fifo = match &parsed.input {
        Input::Fifo(path) => Some(open_fifo(path, OFlags::RDONLY)?),
        _ => None,
    };
    let log = match &parsed.outputs[0] {
        Output::JsonFile(options) => Some(JsonLog::open(options.clone())?),
        _ => None,
    };
    if terminal {
        let terminal_sink = sink(&parsed.outputs[0])?;
        if matches!(parsed.outputs[0], Output::Binary { .. }) {
            return Err(Error::unsupported("stdout binary:// with a terminal"));
        }
        let child = ChildStdio::Console;
        let outputs = [None, None];
        return Ok(Opened { child, stdin: None, fifo, outputs, log, terminal_sink });
    }
    let (child_in, stdin) = match parsed.input {
        Input::Null => (null(OFlags::RDONLY)?, None),
        _ => {
            let (read, write) = pipe(names)?;
            set_nonblocking(&write)?;
            (read, Some(write))
        }
    };
    let (child_out, child_err, outputs) = open_outputs(parsed, names)?;
    let child = ChildStdio::Fds { stdin: child_in, stdout: child_out, stderr: child_err };
    Ok(Opened { child, stdin, fifo, outputs, log, terminal_sink: None })
}

type Outputs = (OwnedFd, OwnedFd, [Option<OutputStream>; 2]);

fn open_outputs(parsed: &Parsed, names: &Names<'_>) -> Result<Outputs> {
    if let Output::Binary { program, arguments } = &parsed.outputs[0] {
        let (out_read, out_write) = pipe(names)?;
        let (err_read, err_write) = pipe(names)?;
        start_logger(program, arguments, names, out_read, err_read)?;
        return Ok((out_write, err_write, [None, None]));
    }
    let one = |output: &Output| -> Result<(OwnedFd, Option<OutputStream>)> {
        if *output == Output::Null {
            return Ok((null(OFlags::WRONLY)?, None));
        }
        let (read, write) = pipe(names)?;
        set_nonblocking(&read)?;
        let sink = sink(output)?;
        Ok((write, Some(OutputStream { fd: read, paused: true, ended: false, sink })))
    };
    let (child_out, out) = one(&parsed.outputs[0])?;
    let (child_err, err) = one(&parsed.outputs[1])?;
    Ok((child_out, child_err, [out, err]))
}

fn sink(output: &Output) -> Result<Option<Sink>> {
    match output {
        Output::Fifo(path) => {
            let is_fifo = std::fs::metadata(path)
                .context("stat", || path.display().to_string())?
                .file_type()
                .is_fifo();
            if !is_fifo {
                return open_file(path).map(Some);
            }
            // Reading and writing: readers may go and come without an error for the process.
            let fd = open_fifo(path, OFlags::RDWR)?;
            Ok(Some(Sink::Fifo { fd, pending: OutBuf::default() }))
        }
        Output::File(path) => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)
                    .context("mkdir", || parent.display().to_string())?;
            }
            open_file(path).map(Some)
        }
        Output::Null | Output::Clients | Output::JsonFile(_) => Ok(None),
        Output::Binary { .. } => {
            Err(Error::unsupported("a binary:// logger for one stream only, or for a terminal"))
        }
    }
}

fn open_file(path: &Path) -> Result<Sink> {
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
        .map(Sink::File)
        .context("open", || path.display().to_string())
}

fn open_fifo(path: &Path, access: OFlags) -> Result<OwnedFd> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).context("open", || path.display().to_string())
}

fn null(access: OFlags) -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", access | OFlags::CLOEXEC, Mode::empty())
        .context("open", || "/dev/null")
}

fn pipe(names: &Names<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("pipe", || "stdio")?;
    if names.uid != 0 || names.gid != 0 {
        use rustix::fs::{Gid, Uid, fchown};
        for fd in [&read, &write] {
            fchown(fd, Some(Uid::from_raw(names.uid)), Some(Gid::from_raw(names.gid)))
                .context("chown", || "stdio pipe")?;
        }
    }
    Ok((read, write))
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd).context("fcntl", || "stdio")?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).context("fcntl", || "stdio")
}

/// containerd's logging binary: descriptors 3 and 4 are the streams, 5 says "ready" by a byte or
/// by being closed; it ends by itself at the end of both streams.
fn start_logger(
    program: &Path,
    arguments: &[String],
    names: &Names<'_>,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let name = || program.display().to_string();
    let (ready, told) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("pipe", || "logger")?;
    let mut command = std::process::Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("CONTAINER_ID", names.container)
        .env("CONTAINER_NAMESPACE", names.namespace)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    sys::shim::pass_fds(&mut command, vec![stdout, stderr, told]);
    sys::process::unblock_signals_in(&mut command);
    // Reaped with all other children.
    let started = command.spawn().context("execute", name);
    drop(command);
    started?;
    let timeout = rustix::time::Timespec::try_from(LOGGER_TIMEOUT).ok();
    let ready = poll(&mut [PollFd::new(&ready, PollFlags::IN)], timeout.as_ref());
    match ready.context("poll", name)? {
        0 => Err(Error::precondition(format!("logger {} is not ready", program.display()))),
        _ => Ok(()),
    }
}

impl Shim {
    /// Registers opened streams of a process that now exists.
    pub(crate) fn adopt_streams(
        &mut self,
        key: u64,
        mut opened: AdoptedStreams,
        master: Option<OwnedFd>,
    ) -> Result<()> {
        if let Some(master) = master {
            set_nonblocking(&master)?;
            if let Some(size) = self.processes.get_mut(&key).and_then(|p| p.io.size.take()) {
                rustix::termios::tcsetwinsize(&master, size).context("resize", || "terminal")?;
            }
            let clone = |fd: &OwnedFd| fd.try_clone().context("dup", || "terminal");
            let fd = clone(&master)?;
            opened.stdin = Some(clone(&master)?);
            let sink = opened.terminal_sink.take();
            opened.outputs[0] = Some(OutputStream { fd, paused: true, ended: false, sink });
            if let Some(process) = self.processes.get_mut(&key) {
                process.io.master = Some(master);
            }
        }
        let Some(process) = self.processes.get_mut(&key) else { return Ok(()) };
        process.io.outputs = opened.outputs;
        process.io.log = opened.log;
        if let Some(stdin) = &mut process.io.stdin {
            stdin.fd = opened.stdin;
            stdin.fifo = opened.fifo;
            if stdin.closing
                && let Some(fifo) = stdin.fifo.take()
            {
                // The end was asked for before the process was there.
                drain_fifo(&fifo, &mut stdin.pending, &mut self.scratch);
            } else if let Some(fifo) = &stdin.fifo {
                self.poller.add(fifo, Kind::StdinFifo, key, EventFlags::IN)?;
            }
        }
        self.push_stdin(key, &[]);
        self.resume_outputs(key);
        Ok(())
    }

    /// An output can be read.
    pub(crate) fn on_output(&mut self, id: u64) {
        let (key, stream) = (id / 2, usize::from(id % 2 == 1));
        for _ in 0..READS_PER_TURN {
            if self.is_blocked(key, stream) {
                self.pause_output(key, stream);
                return;
            }
            if self.read_output(key, stream).is_none() {
                return;
            }
        }
    }

    /// Reads once and passes on; how many bytes. `None` when there is nothing now, or nothing more.
    fn read_output(&mut self, key: u64, stream: usize) -> Option<usize> {
        let process = self.processes.get_mut(&key)?;
        let output = process.io.outputs[stream].as_mut()?;
        let mut scratch = std::mem::take(&mut self.scratch);
        let read = rustix::io::read(&output.fd, &mut scratch[..]);
        let more = match read {
            Err(Errno::AGAIN) => None,
            Err(Errno::INTR) => Some(0),
            // A terminal whose last user has closed it answers EIO.
            Ok(0) | Err(_) => {
                self.end_output(key, stream);
                None
            }
            Ok(n) => {
                if let Some(log) = &mut process.io.log {
                    log.write(stream, &scratch[..n]);
                }
                self.pass_on(key, stream, &scratch[..n]);
                Some(n)
            }
        };
        self.scratch = scratch;
        more
    }

    fn pass_on(&mut self, key: u64, stream: usize, bytes: &[u8]) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        if let Some(output) = &mut process.io.outputs[stream] {
            let id = key * 2 + u64::from(stream == 1);
            match &mut output.sink {
                Some(Sink::Fifo { fd, pending }) => {
                    if pending.send(&*fd, [bytes, &[]]).is_err() {
                        output.sink = None;
                    } else if pending.len() > 0 {
                        // Registered already if there was something before.
                        drop(self.poller.add(&*fd, Kind::Sink, id, EventFlags::OUT));
                    }
                }
                Some(Sink::File(file)) => {
                    use std::io::Write;
                    // A full disk must not stop the container.
                    if let Err(error) = file.write_all(bytes) {
                        self.diagnostics.error(&format!("write output of {key}: {error}"));
                    }
                }
                None => {}
            }
        }
        for client in process.io.clients.clone() {
            self.send_output(client, stream, bytes);
        }
    }

    /// A full FIFO has room again.
    pub(crate) fn on_sink(&mut self, id: u64) {
        let (key, stream) = (id / 2, usize::from(id % 2 == 1));
        let Some(process) = self.processes.get_mut(&key) else { return };
        let Some(output) = &mut process.io.outputs[stream] else { return };
        let Some(Sink::Fifo { fd, pending }) = &mut output.sink else { return };
        match pending.flush(&*fd) {
            Ok(false) => return,
            Ok(true) => self.poller.remove(&*fd),
            Err(_) => {
                self.poller.remove(&*fd);
                output.sink = None;
            }
        }
        if output.ended {
            process.io.outputs[stream] = None;
            self.after_drain(key);
        } else {
            self.resume_outputs(key);
        }
    }

    fn is_blocked(&self, key: u64, stream: usize) -> bool {
        let Some(process) = self.processes.get(&key) else { return false };
        let sink_full = process.io.outputs[stream].as_ref().is_some_and(
            |o| matches!(&o.sink, Some(Sink::Fifo { pending, .. }) if pending.len() > 0),
        );
        let slow = |id: &u64| {
            self.clients
                .get(id)
                .is_some_and(|c| c.wants[stream] && c.output.len() >= READER_BYTES_HIGH)
        };
        sink_full || process.io.clients.iter().any(slow)
    }

    fn pause_output(&mut self, key: u64, stream: usize) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        if let Some(output) = &mut process.io.outputs[stream]
            && !output.paused
        {
            output.paused = true;
            self.poller.remove(&output.fd);
        }
    }

    /// Reads again what was paused, unless somebody is still slow.
    pub(crate) fn resume_outputs(&mut self, key: u64) {
        for stream in 0..2 {
            if self.is_blocked(key, stream) {
                continue;
            }
            let Some(process) = self.processes.get_mut(&key) else { return };
            if let Some(output) = &mut process.io.outputs[stream]
                && output.paused
                && !output.ended
            {
                let id = key * 2 + u64::from(stream == 1);
                match self.poller.add(&output.fd, Kind::Output, id, EventFlags::IN) {
                    Ok(()) => output.paused = false,
                    Err(error) => self.diagnostics.error(&error.chain()),
                }
            }
        }
    }

    fn end_output(&mut self, key: u64, stream: usize) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        if let Some(log) = &mut process.io.log {
            log.end(stream);
        }
        if let Some(output) = &mut process.io.outputs[stream] {
            if !output.paused {
                self.poller.remove(&output.fd);
                output.paused = true;
            }
            output.ended = true;
            let sending =
                matches!(&output.sink, Some(Sink::Fifo { pending, .. }) if pending.len() > 0);
            if !sending {
                process.io.outputs[stream] = None;
            }
        }
        self.after_drain(key);
    }

    /// The process has ended: takes what its pipes hold.
    pub(crate) fn drain_at_exit(&mut self, key: u64) {
        for stream in 0..2 {
            let mut left = EXIT_BYTES_MAX;
            // A terminal gives a few KiB a read, whatever is asked for: bytes count, not reads.
            while left > 0
                && let Some(read) = self.read_output(key, stream)
            {
                left = left.saturating_sub(read);
            }
        }
        if let Some(process) = self.processes.get_mut(&key)
            && !process.io.drained()
        {
            process.io.drain_until = Some(Instant::now() + DRAIN_TIMEOUT);
        }
    }

    /// Whoever still holds the pipes open has had its time: takes what is there and ends them,
    /// except where a slow reader is the reason.
    pub(crate) fn drain_timeout(&mut self, key: u64) {
        for stream in 0..2 {
            let open = self
                .processes
                .get(&key)
                .is_some_and(|p| p.io.outputs[stream].as_ref().is_some_and(|o| !o.ended));
            if open && !self.is_blocked(key, stream) {
                let mut budget = READS_PER_TURN;
                while budget > 0 && self.read_output(key, stream).is_some() {
                    budget -= 1;
                }
                if budget > 0 {
                    self.end_output(key, stream);
                }
            }
        }
        if let Some(process) = self.processes.get_mut(&key) {
            process.io.drain_until =
                (!process.io.drained()).then(|| Instant::now() + DRAIN_TIMEOUT / 8);
        }
    }

    /// Tells clients the exit once nothing more comes.
    pub(crate) fn after_drain(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        if !process.io.drained() {
            return;
        }
        let Stage::Stopped(exit) = process.stage else { return };
        process.io.drain_until = None;
        process.io.log = None;
        for client in process.io.clients.clone() {
            self.send_exit(client, exit.status);
        }
        self.forget_if_done(key);
    }

    /// Queues input for the process.
    pub(crate) fn push_stdin(&mut self, key: u64, bytes: &[u8]) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let stopped = matches!(process.stage, Stage::Stopped(_));
        let Some(stdin) = &mut process.io.stdin else { return };
        if stopped || (stdin.closing && !bytes.is_empty()) {
            return;
        }
        let Some(fd) = &stdin.fd else {
            stdin.pending.queue(bytes);
            return;
        };
        let before = stdin.pending.len();
        let sent = if before > 0 && bytes.is_empty() {
            stdin.pending.flush(fd).map(drop)
        } else {
            stdin.pending.send(fd, [bytes, &[]])
        };
        match sent {
            Err(_) => self.close_stdin_now(key),
            Ok(()) if stdin.pending.len() > 0 => {
                // Registered already if there was something before.
                drop(self.poller.add(fd, Kind::Stdin, key, EventFlags::OUT));
            }
            Ok(()) => self.stdin_emptied(key),
        }
    }

    /// A full standard input has room again.
    pub(crate) fn on_stdin(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let Some(stdin) = &mut process.io.stdin else { return };
        let Some(fd) = &stdin.fd else { return };
        match stdin.pending.flush(fd) {
            Ok(false) => {}
            Ok(true) => {
                self.poller.remove(fd);
                self.stdin_emptied(key);
            }
            Err(_) => self.close_stdin_now(key),
        }
    }

    fn stdin_emptied(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let Some(stdin) = &mut process.io.stdin else { return };
        if stdin.closing {
            return self.close_stdin_now(key);
        }
        if stdin.fifo_paused
            && let Some(fifo) = &stdin.fifo
        {
            stdin.fifo_paused =
                self.poller.add(fifo, Kind::StdinFifo, key, EventFlags::IN).is_err();
        }
        for client in process.io.clients.clone() {
            self.release_client(client);
        }
    }

    pub(crate) fn stdin_full(&self, key: u64) -> bool {
        self.processes
            .get(&key)
            .and_then(|p| p.io.stdin.as_ref())
            .is_some_and(|s| s.pending.len() >= STDIN_BYTES_HIGH)
    }

    /// End of input: after what is pending. A terminal stays open.
    pub(crate) fn close_stdin(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let Some(stdin) = &mut process.io.stdin else { return };
        if stdin.terminal {
            return;
        }
        stdin.closing = true;
        if let Some(fifo) = stdin.fifo.take() {
            self.poller.remove(&fifo);
            // What was written before the end was asked for is input.
            drain_fifo(&fifo, &mut stdin.pending, &mut self.scratch);
        }
        match &stdin.fd {
            Some(_) if stdin.pending.len() == 0 => self.close_stdin_now(key),
            // Registered already if there was something before.
            Some(fd) => drop(self.poller.add(fd, Kind::Stdin, key, EventFlags::OUT)),
            None => {}
        }
    }

    fn close_stdin_now(&mut self, key: u64) {
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

    /// The FIFO that feeds standard input has something, or its last writer has gone.
    pub(crate) fn on_stdin_fifo(&mut self, key: u64) {
        for _ in 0..READS_PER_TURN {
            let full = self.stdin_full(key);
            let Some(process) = self.processes.get_mut(&key) else { return };
            let Some(stdin) = &mut process.io.stdin else { return };
            let Some(fifo) = &stdin.fifo else { return };
            if full {
                self.poller.remove(fifo);
                stdin.fifo_paused = true;
                return;
            }
            let mut scratch = std::mem::take(&mut self.scratch);
            let read = rustix::io::read(fifo, &mut scratch[..]);
            match read {
                Err(Errno::AGAIN) => {}
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => {
                    if let Some(fifo) = stdin.fifo.take() {
                        self.poller.remove(&fifo);
                    }
                    self.close_stdin(key);
                }
                Ok(n) => self.push_stdin(key, &scratch[..n]),
            }
            self.scratch = scratch;
            if read != Ok(0) && read.is_err() {
                return;
            }
        }
    }

    /// Takes a process's streams apart.
    pub(crate) fn drop_streams(&mut self, io: &mut Io) {
        for output in io.outputs.iter_mut().filter_map(Option::take) {
            self.poller.remove(&output.fd);
            if let Some(Sink::Fifo { fd, .. }) = &output.sink {
                self.poller.remove(fd);
            }
        }
        if let Some(stdin) = io.stdin.take() {
            for fd in [&stdin.fd, &stdin.fifo].into_iter().flatten() {
                self.poller.remove(fd.as_fd());
            }
        }
        io.log = None;
        io.master = None;
    }
}

/// What [`open`] made, without the child's part.
pub(crate) struct AdoptedStreams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) fifo: Option<OwnedFd>,
    pub(crate) outputs: [Option<OutputStream>; 2],
    pub(crate) log: Option<JsonLog>,
    pub(crate) terminal_sink: Option<Sink>,
}

impl Opened {
    /// Splits off what the child gets.
    pub(crate) fn split(self) -> (ChildStdio, AdoptedStreams) {
        let Opened { child, stdin, fifo, outputs, log, terminal_sink } = self;
        (child, AdoptedStreams { stdin, fifo, outputs, log, terminal_sink })
    }
}
