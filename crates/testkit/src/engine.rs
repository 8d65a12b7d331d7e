//! A daemon in a sandbox: the engine under test, or a peer.

use crate::command::{Cmd, DEFAULT_TIMEOUT, Output, Running};
use crate::error::IoContext;
use crate::sandbox::Sandbox;
use crate::{Error, Result, source_dir, wait};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a daemon may take until it answers; a foreign one starts containerd first.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// The binary under test: `$GANTRY_BIN`, or what cargo built last in this tree.
pub fn gantry_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GANTRY_BIN") {
        return Ok(PathBuf::from(path));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| source_dir().join("target"), PathBuf::from);
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let path = target.join(triple).join(profile).join("gantry");
    if path.exists() { Ok(path) } else { Err(Error::MissingPeer { path }) }
}

/// A daemon that answers on a unix socket of its sandbox.
#[derive(Debug)]
pub struct Daemon<'a> {
    sandbox: &'a Sandbox,
    argv: Vec<String>,
    socket: String,
    running: Option<Running>,
    former_log: String,
}

impl<'a> Daemon<'a> {
    /// Starts `argv` and waits until `socket` (a path in the sandbox) takes connections and, if it
    /// speaks HTTP, answers `GET /_ping`.
    pub fn start<A: Into<String>>(
        sandbox: &'a Sandbox,
        argv: impl IntoIterator<Item = A>,
        socket: &str,
    ) -> Result<Self> {
        let mut daemon = Self {
            sandbox,
            argv: argv.into_iter().map(Into::into).collect(),
            socket: socket.to_owned(),
            running: None,
            former_log: String::new(),
        };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// `gantry daemon` with its defaults and `args`; `gantry` is in the sandbox's search
    /// path.
    pub fn gantry(sandbox: &'a Sandbox, args: &[&str]) -> Result<Self> {
        let binary = gantry_binary()?;
        sandbox.link("gantry", &binary)?;
        let argv = ["gantry", "daemon"].into_iter().chain(args.iter().copied());
        Self::start(sandbox, argv, "/run/gantry/gantry.sock")
    }

    /// Starts it with the same arguments once more, after it has ended.
    pub fn start_again(&mut self) -> Result<()> {
        let (program, args) = self.argv.split_first().ok_or_else(|| Error::Parse {
            what: "a daemon's command line".to_owned(),
            wanted: "a program",
            found: String::new(),
        })?;
        self.running =
            Some(self.sandbox.command(program, args.iter().cloned()).timeout(START_LIMIT).spawn()?);
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let socket = self.sandbox.path(&self.socket);
        let what = format!("{} to answer on {}", self.argv[0], self.socket);
        let mut died = false;
        let ready = wait::until(&what, START_LIMIT, || {
            died = self.running.as_mut().is_some_and(|r| r.has_ended().unwrap_or(true));
            (died || answers(&socket)).then_some(())
        });
        if !died && ready.is_ok() {
            return Ok(());
        }
        Err(Error::Failed {
            command: self.argv.join(" "),
            status: if died { "ended at its start" } else { "does not answer" }.to_owned(),
            output: self.log(),
        })
    }

    /// The machine's pid of the daemon.
    pub fn pid(&self) -> Result<u32> {
        self.running()?.program_pid()
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().ok_or_else(|| Error::Failed {
            command: self.argv.join(" "),
            status: "is not running".to_owned(),
            output: String::new(),
        })
    }

    /// All that it has written, over all its starts.
    pub fn log(&self) -> String {
        let now = self
            .running
            .as_ref()
            .map_or(String::new(), |running| running.stdout_so_far() + &running.stderr_so_far());
        format!("{}{now}", self.former_log)
    }

    /// SIGKILL to the daemon alone, and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::KILL).map(drop)
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self) -> Result<Output> {
        self.end(Signal::TERM)
    }

    fn end(&mut self, signal: Signal) -> Result<Output> {
        self.running()?.signal(signal)?;
        self.former_log = self.log();
        match self.running.take() {
            Some(running) => running.wait(DEFAULT_TIMEOUT),
            None => Err(Error::Failed {
                command: self.argv.join(" "),
                status: "is not running".to_owned(),
                output: String::new(),
            }),
        }
    }

    pub fn sandbox(&self) -> &'a Sandbox {
        self.sandbox
    }

    /// The socket as a path on the machine.
    pub fn socket_path(&self) -> PathBuf {
        self.sandbox.path(&self.socket)
    }

    /// What clients take as `DOCKER_HOST`.
    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.socket)
    }

    /// The real docker CLI, pointed at this daemon.
    pub fn docker<A: Into<String>>(&self, args: impl IntoIterator<Item = A>) -> Cmd {
        self.client("docker", args)
    }

    /// Any program, with `DOCKER_HOST` pointing at this daemon.
    pub fn client<A: Into<String>>(&self, program: &str, args: impl IntoIterator<Item = A>) -> Cmd {
        self.sandbox.command(program, args).env("DOCKER_HOST", self.docker_host())
    }
}

/// Takes a connection, and answers `GET /_ping` with 200 unless it does not speak HTTP/1.
fn answers(socket: &Path) -> bool {
    if !socket.file_name().is_some_and(|name| {
        let name = name.to_string_lossy();
        name.starts_with("docker") || name.starts_with("gantry")
    }) {
        return UnixStream::connect(socket).is_ok();
    }
    ping(socket).is_ok_and(|status| status == 200)
}

/// The status of `GET /_ping` on a unix socket.
pub fn ping(socket: &Path) -> Result<u16> {
    /// Of the answer only its first line is of interest.
    const STATUS_LINE_BYTES: usize = 12;
    let limit = Some(Duration::from_secs(5));
    let mut stream = UnixStream::connect(socket).context("connect to", socket.display())?;
    stream
        .set_read_timeout(limit)
        .and_then(|()| {
            stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        })
        .context("write to", socket.display())?;
    let mut head = [0; STATUS_LINE_BYTES];
    stream.read_exact(&mut head).context("read from", socket.display())?;
    let text = String::from_utf8_lossy(&head);
    text.strip_prefix("HTTP/1.1 ").and_then(|code| code.parse().ok()).ok_or_else(|| Error::Parse {
        what: socket.display().to_string(),
        wanted: "an HTTP status",
        found: text.into_owned(),
    })
}
