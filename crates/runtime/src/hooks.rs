//! Hooks: programs of the engine or its operator, with the container's state on stdin.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Context, Error, Result};
use crate::spec::Hook;

/// How much of a failed hook's output goes into the error.
const OUTPUT_LIMIT_BYTES: u64 = 4096;

/// Runs the hooks of one kind in order; the first that fails ends it.
pub(crate) fn run(
    kind: &'static str,
    hooks: &[Hook],
    state: &[u8],
    dir: Option<&Path>,
) -> Result<()> {
    for (index, hook) in hooks.iter().enumerate() {
        one(kind, index, hook, state, dir)?;
    }
    Ok(())
}

/// Runs all hooks of one kind whatever becomes of the others; their errors.
pub(crate) fn run_all(
    kind: &'static str,
    hooks: &[Hook],
    state: &[u8],
    dir: Option<&Path>,
) -> Vec<Error> {
    let one = |(index, hook)| one(kind, index, hook, state, dir).err();
    hooks.iter().enumerate().filter_map(one).collect()
}

fn one(
    kind: &'static str,
    index: usize,
    hook: &Hook,
    state: &[u8],
    dir: Option<&Path>,
) -> Result<()> {
    let failed = |problem: String| Error::Hook { kind, index, problem };
    let name = || format!("{kind} hook {}", hook.path.display());
    if !hook.path.is_absolute() {
        return Err(failed(format!("path {:?} is not absolute", hook.path)));
    }
    // Memory files for input and output: no pipe can fill up and no reader is needed.
    let mut input = file("hook-state").ctx("memfd_create", name)?;
    input.write_all(state).ctx("write", name)?;
    input.rewind().ctx("rewind", name)?;
    let mut output = file("hook-output").ctx("memfd_create", name)?;
    let mut command = Command::new(&hook.path);
    if let Some((first, rest)) = hook.args.split_first() {
        command.arg0(first).args(rest);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|e| e.split_once('=')));
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    command
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output.try_clone().ctx("dup", name)?))
        .stderr(Stdio::from(output.try_clone().ctx("dup", name)?));
    let mut child = command.spawn().ctx("start", name)?;
    let timeout = match hook.timeout {
        None => None,
        Some(s) => match u64::try_from(s) {
            Ok(s) if s > 0 => Some(Duration::from_secs(s)),
            _ => return Err(failed(format!("timeout {s} is not positive"))),
        },
    };
    if let Some(timeout) = timeout
        && !ended_within(child.id(), timeout).ctx("wait for", name)?
    {
        child.kill().ctx("kill", name)?;
        child.wait().ctx("wait for", name)?;
        return Err(failed(format!(
            "hook ran past specified timeout of {:.1}s",
            timeout.as_secs_f64()
        )));
    }
    let status = child.wait().ctx("wait for", name)?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    output.rewind().ctx("rewind", name)?;
    output.take(OUTPUT_LIMIT_BYTES).read_to_end(&mut text).ctx("read", name)?;
    let text = String::from_utf8_lossy(&text);
    Err(failed(format!("{status}, stdout/stderr: {}", text.trim())))
}

/// Not to be executed: with `vm.memfd_noexec=2` there are no others. Linux knows that since 6.3.
fn file(name: &str) -> Result<File, Errno> {
    memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, MemfdFlags::CLOEXEC))
        .map(File::from)
}

fn ended_within(pid: u32, timeout: Duration) -> Result<bool, Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    ended(&pidfd, timeout)
}

/// Whether the process ends within the time.
pub(crate) fn ended(pidfd: &std::os::fd::OwnedFd, timeout: Duration) -> Result<bool, Errno> {
    let deadline = Instant::now().checked_add(timeout);
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose().map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(n) => return Ok(n > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}
