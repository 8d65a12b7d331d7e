//! Hooks: programs of the engine or its operator, with the container's state on stdin.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Context, Error, Result};
use crate::process::{abandon, open_child};
use crate::spec::{Hook, Hooks};

/// How much of a failed hook's output goes into the error.
const OUTPUT_LIMIT_BYTES: u64 = 4096;

/// Gives the hooks that have no timeout of their own this one, in whole seconds ([`crate::Options`]).
pub(crate) fn limit(hooks: &mut Hooks, limit: Option<Duration>) {
    let Some(limit) = limit else { return };
    let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX).max(1);
    let Hooks { prestart, create_runtime, create_container, start_container, poststart, poststop } =
        hooks;
    for kind in [prestart, create_runtime, create_container, start_container, poststart, poststop] {
        for hook in kind {
            hook.timeout.get_or_insert(seconds);
        }
    }
}

/// Runs the hooks of one kind in order; the first that fails ends it.
pub(crate) fn run(
    kind: &'static str,
    hooks: &[Hook],
    state: &[u8],
    dir: Option<&Path>,
) -> Result<()> {
    run_for(None, kind, hooks, state, dir)
}

/// As [`run`], for a process (its pidfd) without which they have nothing to do: a hook is killed when it
/// ends, and fails.
pub(crate) fn run_for(
    process: Option<&OwnedFd>,
    kind: &'static str,
    hooks: &[Hook],
    state: &[u8],
    dir: Option<&Path>,
) -> Result<()> {
    for (index, hook) in hooks.iter().enumerate() {
        one(process, kind, index, hook, state, dir)?;
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
    let one = |(index, hook)| one(None, kind, index, hook, state, dir).err();
    hooks.iter().enumerate().filter_map(one).collect()
}

fn one(
    process: Option<&OwnedFd>,
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
    let timeout = match hook.timeout {
        None => None,
        Some(s) => match u64::try_from(s) {
            Ok(s) if s > 0 => Some(Duration::from_secs(s)),
            _ => return Err(failed(format!("timeout {s} is not positive"))),
        },
    };
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
    if timeout.is_some() || process.is_some() {
        let cut_short = match wait(&child, process, timeout) {
            Ok(Waited::Hook) => None,
            Ok(Waited::TimeOver(limit)) => {
                let text =
                    format!("hook ran past specified timeout of {:.1}s", limit.as_secs_f64());
                Some(failed(text))
            }
            Ok(Waited::Process) => Some(failed("the container's process has ended".to_owned())),
            Err(e) => Err::<(), _>(e).ctx("wait for", name).err(),
        };
        if let Some(error) = cut_short {
            child.kill().ctx("kill", name)?;
            // One that hangs in the kernel is not waited for.
            if let Ok(pidfd) = open_child(i32::try_from(child.id()).unwrap_or(i32::MAX)) {
                abandon(&pidfd);
            }
            return Err(error);
        }
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

/// What has ended first.
enum Waited {
    Hook,
    /// The process that the hook is for.
    Process,
    TimeOver(Duration),
}

fn wait(
    hook: &Child,
    process: Option<&OwnedFd>,
    timeout: Option<Duration>,
) -> Result<Waited, Errno> {
    let hook = pidfd_open(Pid::from_child(hook), PidfdFlags::empty())?;
    let mut fds = vec![PollFd::new(&hook, PollFlags::IN)];
    fds.extend(process.map(|pidfd| PollFd::new(pidfd, PollFlags::IN)));
    let in_time = poll_within(&mut fds, timeout)?;
    Ok(match (fds[0].revents().is_empty(), timeout) {
        (false, _) => Waited::Hook,
        (true, Some(timeout)) if !in_time => Waited::TimeOver(timeout),
        _ => Waited::Process,
    })
}

/// Whether the process ends within the time.
pub(crate) fn ended(pidfd: &OwnedFd, timeout: Duration) -> Result<bool, Errno> {
    poll_within(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(timeout))
}

/// poll(2), again after signals; without a timeout, or with one beyond the clock's end, for ever.
fn poll_within(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<bool, Errno> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose().map_err(|_| Errno::INVAL)?;
        match poll(fds, left.as_ref()) {
            Ok(n) => return Ok(n > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_timeout_that_cannot_be_starts_nothing() {
        for timeout in [0, -1, i64::MIN] {
            let hook =
                Hook { path: "/nothing".into(), timeout: Some(timeout), ..Default::default() };
            let e = run("prestart", &[hook], b"", None).unwrap_err().chain();
            assert_eq!(
                e,
                format!("error running prestart hook #0: timeout {timeout} is not positive")
            );
        }
    }

    #[test]
    fn the_limit_is_for_hooks_without_a_timeout() {
        let text = r#"{"prestart": [{"path": "/a"}], "createRuntime": [{"path": "/a"}],
            "createContainer": [{"path": "/a"}], "startContainer": [{"path": "/a"}],
            "poststart": [{"path": "/a"}], "poststop": [{"path": "/a"}, {"path": "/a", "timeout": 7}]}"#;
        let mut hooks: Hooks = serde_json::from_str(text).unwrap();
        limit(&mut hooks, None);
        assert_eq!(hooks, serde_json::from_str(text).unwrap());
        limit(&mut hooks, Some(Duration::from_millis(90)));
        let limited = text.replace(r#""/a"}"#, r#""/a", "timeout": 1}"#);
        assert_eq!(hooks, serde_json::from_str(&limited).unwrap());
    }

    #[test]
    fn a_hook_ends_with_what_it_is_for() {
        let shell = |line: &str| Hook {
            path: "/bin/sh".into(),
            args: vec!["sh".to_owned(), "-c".to_owned(), line.to_owned()],
            ..Default::default()
        };
        let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).unwrap();
        let run = |line: &str| run_for(Some(&pidfd), "prestart", &[shell(line)], b"", None);
        run("exit 0").unwrap();
        let e = run(&format!("kill {}; exec sleep 1000", process.id())).unwrap_err().chain();
        assert!(e.ends_with("#0: the container's process has ended"), "{e}");
        process.wait().unwrap();
    }
}
