//! Running a program with a time limit and both of its outputs kept.

use crate::error::IoContext;
use crate::{Error, Result, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Without another word a command may take this long.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long output may stay open after the program's end before it is told as `held_open`: a
/// background process has inherited it.
const HELD_OPEN_AFTER: Duration = Duration::from_secs(2);

/// Of each output at most this much is kept; a test that needs more reads a file.
const OUTPUT_LIMIT_BYTES: usize = 64 << 20;

/// Held for writing while a file is written that is a program, and for reading while a process is
/// started: a child that is forked in between has the file open until it becomes its own program, and
/// for so long the kernel refuses to run the file ("text file busy").
pub(crate) static PROGRAM_FILES: RwLock<()> = RwLock::new(());

/// A program to run, on the machine or in a sandbox.
#[derive(Debug, Clone)]
pub struct Cmd {
    /// What stands before the program: how to get into a sandbox.
    prefix: Vec<String>,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    clear_env: bool,
    cwd: Option<PathBuf>,
    stdin: Option<Vec<u8>>,
    keep_stdin: bool,
    timeout: Duration,
}

impl Cmd {
    /// A program on the machine itself.
    pub fn host<A: Into<String>>(program: &str, args: impl IntoIterator<Item = A>) -> Self {
        let mut argv = vec![program.to_owned()];
        argv.extend(args.into_iter().map(Into::into));
        Self {
            prefix: Vec::new(),
            argv,
            env: Vec::new(),
            clear_env: false,
            cwd: None,
            stdin: None,
            keep_stdin: false,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// A program behind `prefix`, with the environment `env` and nothing else.
    pub(crate) fn behind(mut self, prefix: Vec<String>, env: Vec<(String, String)>) -> Self {
        self.prefix = prefix;
        self.env = env;
        self.clear_env = true;
        self
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.argv.push(arg.into());
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// What the program reads; without it, its standard input is empty.
    #[must_use]
    pub fn stdin(mut self, data: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(data.into());
        self
    }

    /// Keeps standard input open for [`Running::write`].
    #[must_use]
    pub fn open_stdin(mut self) -> Self {
        self.keep_stdin = true;
        self
    }

    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// The command as a person would type it.
    pub fn shown(&self) -> String {
        self.argv.join(" ")
    }

    fn build(&self, own_group: bool) -> std::process::Command {
        self.build_behind(&[], own_group)
    }

    /// The command with `way`, a program that starts another, before everything else.
    pub(crate) fn build_behind(&self, way: &[&str], own_group: bool) -> std::process::Command {
        let inside = !self.prefix.is_empty();
        let mut line: Vec<String> = way.iter().map(|&word| word.to_owned()).collect();
        line.extend(self.prefix.iter().cloned());
        if inside || self.clear_env {
            line.push("/usr/bin/env".to_owned());
            line.push("-i".to_owned());
            if let Some(dir) = &self.cwd {
                line.push(format!("--chdir={}", dir.display()));
            }
            line.extend(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        }
        line.extend(self.argv.iter().cloned());
        let mut command = std::process::Command::new(&line[0]);
        command.args(&line[1..]);
        if own_group {
            command.process_group(0);
        }
        if !inside {
            command.envs(self.env.iter().map(|(name, value)| (name, value)));
            if let Some(dir) = &self.cwd {
                command.current_dir(dir);
            }
        }
        command
    }

    /// Runs it on this process's own terminal or files, without a time limit; its exit code.
    pub fn inherited(self) -> Result<i32> {
        let status = self.build(false).status();
        let status = status.context("run", self.shown())?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// How long it may take, and a [`crate::terminal::Terminal`] may be waited on.
    pub(crate) fn limit(&self) -> Duration {
        self.timeout
    }

    /// Starts it and comes back at once.
    pub fn spawn(self) -> Result<Running> {
        let mut command = self.build(true);
        let piped = self.keep_stdin || self.stdin.is_some();
        let lock = PROGRAM_FILES.read().unwrap_or_else(PoisonError::into_inner);
        let mut child = command
            .stdin(if piped { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start", self.shown())?;
        drop(lock);
        let stdout = Collected::from(child.stdout.take());
        let stderr = Collected::from(child.stderr.take());
        let mut stdin = child.stdin.take();
        if let Some(data) = self.stdin.clone() {
            feed(stdin.take(), data);
        }
        Ok(Running { shown: self.shown(), limit: self.timeout, child, stdin, stdout, stderr })
    }

    /// Runs it to its end, whatever its exit code.
    pub fn output(self) -> Result<Output> {
        let limit = self.timeout;
        self.spawn()?.wait(limit)
    }

    /// Runs it to its end and wants exit code 0.
    pub fn ok(self) -> Result<Output> {
        let shown = self.shown();
        let output = self.output()?;
        if output.status.success() {
            return Ok(output);
        }
        Err(Error::Failed {
            command: shown,
            status: output.status.to_string(),
            output: output.both(),
        })
    }
}

/// Writes from a thread, so that a program that writes before it has read all cannot block us.
fn feed(stdin: Option<ChildStdin>, data: Vec<u8>) {
    if let Some(mut stdin) = stdin {
        std::thread::spawn(move || {
            // A program may well end without having read all of its input.
            drop(stdin.write_all(&data));
        });
    }
}

/// What a program that has ended left.
#[derive(Debug, Clone)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Some process that outlives the program still has its outputs open.
    pub held_open: bool,
}

impl Output {
    /// The exit code; 128 and the signal's number where a signal ended it, as shells have it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Standard output as text, without white space at its ends.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }

    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.stdout).map_err(|_| Error::Parse {
            what: "standard output".to_owned(),
            wanted: "JSON",
            found: self.both(),
        })
    }

    /// Both outputs, for messages.
    pub fn both(&self) -> String {
        format!("stdout: {}\nstderr: {}", self.text(), self.stderr_text())
    }
}

/// One output of a running program, read by a thread of its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Collected {
    state: Arc<Mutex<(Vec<u8>, bool)>>,
}

impl Collected {
    pub(crate) fn from(source: Option<impl Read + Send + 'static>) -> Self {
        let collected = Self::default();
        let Some(mut source) = source else { return collected };
        let state = Arc::clone(&collected.state);
        std::thread::spawn(move || {
            let mut chunk = [0; 8192];
            while let Ok(count) = source.read(&mut chunk) {
                if count == 0 {
                    break;
                }
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let room = OUTPUT_LIMIT_BYTES - state.0.len();
                state.0.extend_from_slice(&chunk[..count.min(room)]);
            }
            state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        });
        collected
    }

    pub(crate) fn so_far(&self) -> Vec<u8> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn ended(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// A program that was started and has not been waited for. Dropping it kills its process group.
#[derive(Debug)]
pub struct Running {
    shown: String,
    limit: Duration,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Collected,
    stderr: Collected,
}

impl Running {
    /// The process that was started. For a command in a sandbox that is the way in; see
    /// [`Running::program_pid`].
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The program itself, seen from the machine: the child of the way into the sandbox.
    pub fn program_pid(&self) -> Result<u32> {
        let way = self.child.id();
        let found =
            wait::until(&format!("the process of {}", self.shown), DEFAULT_TIMEOUT, || {
                child_of(way).map(Some).or_else(|| has_died(way).then_some(None))
            })?;
        found.ok_or_else(|| Error::Failed {
            command: self.shown.clone(),
            status: "has ended".to_owned(),
            output: String::new(),
        })
    }

    pub fn stdout_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stdout.so_far()).into_owned()
    }

    pub fn stderr_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Waits until standard output contains `text` and gives all of it.
    pub fn wait_for_stdout(&self, text: &str) -> Result<String> {
        wait::until_ok(&format!("{text:?} on stdout of {}", self.shown), self.limit, || {
            let seen = self.stdout_so_far();
            if seen.contains(text) { Ok(seen) } else { Err(seen + &self.stderr_so_far()) }
        })
    }

    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().ok_or_else(|| Error::Io {
            operation: "write to",
            object: self.shown.clone(),
            source: std::io::Error::other("standard input is not open"),
        })?;
        stdin.write_all(data).and_then(|()| stdin.flush()).context("write to", &self.shown)
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal to the program, not to the way into the sandbox.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = raw_pid(self.program_pid().unwrap_or_else(|_| self.pid()))?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).context("open pidfd of", &self.shown)?;
        rustix::process::pidfd_send_signal(&fd, signal).context("signal", &self.shown)
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("wait for", &self.shown)?.is_some())
    }

    /// Waits for the end, at most `limit`; then the whole process group is killed, and that is an
    /// error which has the output so far.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        self.stdin = None;
        if !self.ends_within(limit)? {
            self.kill_group();
            return Err(Error::Timeout {
                command: self.shown.clone(),
                limit,
                output: format!("{}\n{}", self.stdout_so_far(), self.stderr_so_far()),
            });
        }
        let status = self.child.wait().context("wait for", &self.shown)?;
        let closed = wait::until("end of output", HELD_OPEN_AFTER, || {
            (self.stdout.ended() && self.stderr.ended()).then_some(())
        });
        Ok(Output {
            status,
            stdout: self.stdout.so_far(),
            stderr: self.stderr.so_far(),
            held_open: closed.is_err(),
        })
    }

    fn ends_within(&mut self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        if self.has_ended()? {
            return Ok(true);
        }
        let fd = pidfd_open(raw_pid(self.child.id())?, PidfdFlags::empty())
            .context("open pidfd of", &self.shown)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(|_| Error::Parse {
                what: "time limit".to_owned(),
                wanted: "seconds",
                found: format!("{left:?}"),
            })?;
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("poll pidfd of", &self.shown),
            }
        }
    }

    fn kill_group(&mut self) {
        if let Ok(pid) = raw_pid(self.child.id()) {
            // Gone already is as good as killed.
            kill_process_group(pid, Signal::KILL).ok();
        }
        drop(self.child.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.kill_group();
        }
    }
}

pub(crate) fn raw_pid(pid: u32) -> Result<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Error::Parse {
        what: "process id".to_owned(),
        wanted: "a positive number",
        found: pid.to_string(),
    })
}

/// Whether a child of this process is one that only its exit code is left of.
fn has_died(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// The first child of a process, by a look through /proc.
fn child_of(parent: u32) -> Option<u32> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let after_name = stat.rsplit_once(')')?.1;
        let ppid: u32 = after_name.split_whitespace().nth(1)?.parse().ok()?;
        (ppid == parent).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn output_status_and_input_are_kept() {
        let code = crate::random::exit_code();
        let word = crate::random::token(12);
        let script = format!("cat; echo err-{word} >&2; exit {code}");
        let output = Cmd::host("sh", ["-c", &script]).stdin(word.clone()).output().unwrap();
        assert_eq!(output.code(), code);
        assert_eq!(output.text(), word);
        assert_eq!(output.stderr_text(), format!("err-{word}"));
        assert!(!output.held_open);
    }

    #[test]
    fn a_late_program_is_killed_with_its_children() {
        let name = crate::random::name("late");
        let script = format!("exec -a {name} sleep 1000 & wait");
        let error = Cmd::host("bash", ["-c", &script])
            .timeout(Duration::from_millis(200))
            .output()
            .unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        wait::until("end of the child", DEFAULT_TIMEOUT, || {
            let found = Cmd::host("pgrep", ["-f", &format!("^{name}")]).output().ok()?;
            (!found.status.success()).then_some(())
        })
        .unwrap();
    }

    #[test]
    fn output_held_open_by_a_background_process_is_told() {
        let mut output = Cmd::host("sh", ["-c", "sleep 30 & echo $!"]).output().unwrap();
        assert!(output.held_open);
        output.stdout.truncate(output.text().len());
        Cmd::host("kill", [output.text()]).ok().unwrap();
    }
}
