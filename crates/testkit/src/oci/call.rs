//! Running the runtime: its outputs go to files, so that a container that lives on holds nothing
//! open that anybody waits for.

use super::{Checked, Failure};
use crate::command::{PROGRAM_FILES, raw_pid};
use crate::error::IoContext;
use crate::{Error, Result, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A runtime that takes longer hangs. They need some tens of milliseconds.
pub const LIMIT: Duration = Duration::from_secs(15);

/// How a program ended and what it wrote.
#[derive(Debug, Clone)]
pub struct Ran {
    /// 128 and the signal's number where a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// Standard output as it was written.
    pub raw: Vec<u8>,
}

impl Ran {
    /// Standard output, if it ended well.
    pub fn ok(self) -> Checked<String> {
        match self.code {
            0 => Ok(self.stdout),
            _ => Err(Failure::Violated(format!("it failed: {self}"))),
        }
    }

    /// Standard error, if it failed.
    pub fn fails(self) -> Checked<String> {
        match self.code {
            0 => Err(Failure::Violated(format!("it succeeded: {self}"))),
            _ => Ok(self.stderr),
        }
    }

    pub fn line(&self) -> &str {
        self.stdout.trim_end()
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit {}, stdout {:?}, stderr {:?}", self.code, self.stdout, self.stderr)
    }
}

/// A program to run.
#[derive(Debug, Clone)]
pub struct Call {
    argv: Vec<String>,
    dir: PathBuf,
    redirects: String,
    env: Vec<(String, String)>,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

impl Call {
    /// `argv` in the directory `dir`, which also takes its outputs.
    pub fn new(dir: &Path, argv: Vec<String>) -> Self {
        let redirects = String::new();
        Self { argv, dir: dir.to_owned(), redirects, env: Vec::new(), stdin: None, limit: LIMIT }
    }

    /// Redirections in the shell's words, for example `9</`.
    #[must_use]
    pub fn redirects(mut self, words: &str) -> Self {
        self.redirects = words.to_owned();
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What it reads; without it, its standard input is /dev/null.
    #[must_use]
    pub fn stdin(mut self, data: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(data.into());
        self
    }

    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Pending> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let shown = self.argv.join(" ");
        let (out, err) =
            (self.dir.join(format!("out.{number}")), self.dir.join(format!("err.{number}")));
        let open = |path: &Path| {
            File::options().create(true).append(true).open(path).context("open", path.display())
        };
        let mut command = if self.redirects.is_empty() {
            let mut command = Command::new(&self.argv[0]);
            command.args(&self.argv[1..]);
            command
        } else {
            let mut command = Command::new("/bin/bash");
            command.args(["-c", &format!("exec \"$@\" {}", self.redirects), "sh"]);
            command.args(&self.argv);
            command
        };
        let lock = PROGRAM_FILES.read().unwrap_or_else(PoisonError::into_inner);
        let mut child = command
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.dir)
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(open(&out)?)
            .stderr(open(&err)?)
            .process_group(0)
            .spawn()
            .context("start", &shown)?;
        drop(lock);
        if let (Some(mut pipe), Some(data)) = (child.stdin.take(), self.stdin) {
            // It may well end without having read all; the inputs fit into a pipe.
            drop(pipe.write_all(&data));
        }
        Ok(Pending { shown, child, out, err, limit: self.limit })
    }

    /// Runs it to its end.
    pub fn go(self) -> Result<Ran> {
        self.start()?.wait()
    }
}

/// A started program; killed when it is dropped unfinished.
#[derive(Debug)]
pub struct Pending {
    shown: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
    limit: Duration,
}

impl Pending {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it, and what it started, wrote to standard output so far.
    pub fn stdout(&self) -> String {
        lossy(&self.out)
    }

    pub fn stderr(&self) -> String {
        lossy(&self.err)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("wait for", &self.shown)?.is_some())
    }

    /// Waits until standard output has this text.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        wait::until_ok(&format!("{text:?} of {}", self.shown), self.limit, || {
            let seen = self.stdout();
            if seen.contains(text) { Ok(seen) } else { Err(format!("{seen} {}", self.stderr())) }
        })
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<Ran> {
        self.wait_here()
    }

    /// Like [`Pending::wait`], and the outputs can be looked at later: a container may still write.
    pub fn wait_here(&mut self) -> Result<Ran> {
        let deadline = Instant::now() + self.limit;
        if matches!(self.child.try_wait(), Ok(None)) {
            let fd = pidfd_open(raw_pid(self.child.id())?, PidfdFlags::empty())
                .context("open pidfd of", &self.shown)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: 0 };
            let ready = loop {
                match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
                    Err(rustix::io::Errno::INTR) => {}
                    other => break other.context("poll pidfd of", &self.shown)?,
                }
            };
            if ready == 0 {
                return Err(Error::Timeout {
                    command: self.shown.clone(),
                    limit: self.limit,
                    output: format!("{}\n{}", self.stdout(), self.stderr()),
                });
            }
        }
        let status = self.child.wait().context("wait for", &self.shown)?;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let raw = std::fs::read(&self.out).context("read", self.out.display())?;
        let stdout = String::from_utf8_lossy(&raw).into_owned();
        Ok(Ran { code, stdout, stderr: self.stderr(), raw })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            if let Ok(pid) = raw_pid(self.child.id()) {
                // Gone already is as good as killed.
                kill_process_group(pid, Signal::KILL).ok();
            }
            drop(self.child.wait());
        }
    }
}

fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
