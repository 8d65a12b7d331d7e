//! Hooks: programs of the engine or its operator, with the container's state on stdin.
//!
//! A hook's output is read while it runs; the end of it, some KiB, is told if the hook fails. A hook has
//! ended when its own process has: children that it leaves are not waited for, and nobody reads what they
//! write (they get SIGPIPE then).

mod output;

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::spec::{Hook, Hooks};
use output::{Output, Waited};

/// How long a failed hook's children may still write what is told with its failure.
const GRACE: Duration = Duration::from_millis(100);

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
    // A memory file: a hook need not read its state, and nobody waits until it has.
    let mut input = file("hook-state").ctx("memfd_create", name)?;
    input.write_all(state).ctx("write", name)?;
    input.rewind().ctx("rewind", name)?;
    let mut command = Command::new(&hook.path);
    if let Some((first, rest)) = hook.args.split_first() {
        command.arg0(first).args(rest);
    }
    command.env_clear();
    for entry in &hook.env {
        let variable = entry.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) = variable.ok_or_else(|| {
            failed(format!("env: {entry:?} is no environment variable (NAME=value)"))
        })?;
        command.env(key, value);
    }
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    command.stdin(Stdio::from(input)).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::process::unblock_signals_in(&mut command);
    let mut child = command.spawn().map_err(|source| {
        let object = hook.path.display().to_string();
        failed(Error::Io { op: "fork/exec", object, source }.chain())
    })?;
    let mut output = Output::of(&mut child);
    let problem = match output.wait(&mut child, process, timeout) {
        Ok(Waited::Hook(status)) if status.success() => return Ok(()),
        Ok(Waited::Hook(status)) => {
            output.finish(GRACE).ctx("read output of", name)?;
            return Err(failed(format!("{}, {}", in_gos_words(status), output.text())));
        }
        Ok(Waited::TimeOver(limit)) => Ok(format!(
            "hook ran past specified timeout of {:.1}s, {}",
            limit.as_secs_f64(),
            output.text()
        )),
        Ok(Waited::Process) => Ok("the container's process has ended".to_owned()),
        Err(e) => Err(e),
    };
    end(&mut child).ctx("kill", name)?;
    Err(failed(problem.ctx("wait for", name)?))
}

/// Kills a hook. One that hangs in the kernel is not waited for.
fn end(hook: &mut Child) -> std::io::Result<()> {
    const LIMIT: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(1);
    hook.kill()?;
    let deadline = Instant::now() + LIMIT;
    while hook.try_wait()?.is_none() && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// As runc prints how a process has ended.
fn in_gos_words(status: ExitStatus) -> String {
    /// Of Go's package syscall, from SIGHUP on.
    const SIGNALS: [&str; 15] = [
        "hangup",
        "interrupt",
        "quit",
        "illegal instruction",
        "trace/breakpoint trap",
        "aborted",
        "bus error",
        "floating point exception",
        "killed",
        "user defined signal 1",
        "segmentation fault",
        "user defined signal 2",
        "broken pipe",
        "alarm clock",
        "terminated",
    ];
    let Some(number) = status.signal() else {
        return format!("exit status {}", status.code().unwrap_or_default());
    };
    let known = usize::try_from(number).ok().and_then(|n| SIGNALS.get(n.checked_sub(1)?));
    let word = known.map_or_else(|| format!("signal {number}"), |word| (*word).to_owned());
    format!("signal: {word}{}", if status.core_dumped() { " (core dumped)" } else { "" })
}

/// Not to be executed: with `vm.memfd_noexec=2` there are no others. Linux knows that since 6.3.
fn file(name: &str) -> Result<File, Errno> {
    memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, MemfdFlags::CLOEXEC))
        .map(File::from)
}

/// Whether the process ends within the time.
pub(crate) fn ended(pidfd: &OwnedFd, timeout: Duration) -> Result<bool, Errno> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
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
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

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

    fn shell(line: &str) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: vec!["sh".to_owned(), "-c".to_owned(), line.to_owned()],
            env: vec!["PATH=/usr/bin:/bin".to_owned()],
            ..Default::default()
        }
    }

    #[test]
    fn a_hook_ends_with_what_it_is_for() {
        let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).unwrap();
        let run = |line: &str| run_for(Some(&pidfd), "prestart", &[shell(line)], b"", None);
        run("exit 0").unwrap();
        let e = run(&format!("kill {}; exec sleep 1000", process.id())).unwrap_err().chain();
        assert!(e.ends_with("#0: the container's process has ended"), "{e}");
        process.wait().unwrap();
    }

    fn failure(hook: Hook) -> String {
        run("prestart", &[hook], b"{}", None).unwrap_err().chain()
    }

    #[test]
    fn failures_are_told_as_runc_does() {
        let words = "error running prestart hook #0: ";
        for (line, want) in [
            ("echo out; echo err >&2; exit 3", "exit status 3, stdout: out, stderr: err"),
            ("kill -9 $$", "signal: killed, stdout: , stderr: "),
            ("kill -40 $$", "signal: signal 40, stdout: , stderr: "),
        ] {
            assert_eq!(failure(shell(line)), format!("{words}{want}"));
        }
        let nothing = Hook { path: "/no/such".into(), ..Default::default() };
        assert_eq!(
            failure(nothing),
            format!("{words}fork/exec /no/such: no such file or directory")
        );
        for entry in ["A", "=x", ""] {
            let said = failure(Hook { env: vec![entry.to_owned()], ..shell("exit 1") });
            assert!(said.starts_with(&format!("{words}env: {entry:?} is no")), "{said}");
        }
        let said = failure(Hook { timeout: Some(1), ..shell("echo why; exec sleep 1000") });
        let want = "hook ran past specified timeout of 1.0s, stdout: why, stderr: ";
        assert_eq!(said, format!("{words}{want}"));
    }

    #[test]
    fn only_the_end_of_a_long_output_is_kept() {
        let said = failure(shell("head -c 3000000 /dev/zero | tr '\\0' x; echo last; exit 1"));
        assert!(said.ends_with("xxlast, stderr: ") && said.contains("stdout: …xx"), "{said}");
        assert!((4096..4300).contains(&said.len()), "{}", said.len());
        // One that writes without end is not read for longer than its time.
        let said = failure(Hook { timeout: Some(1), ..shell("exec yes") });
        assert!(said.contains("hook ran past specified timeout of 1.0s"), "{said}");
    }

    #[test]
    fn children_that_keep_the_output_are_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("pid");
        let leave = format!("sleep 1000 & echo $! > {}; ", at.display());
        let kill = || {
            let pid = std::fs::read_to_string(&at).unwrap().trim().parse().ok();
            let pid = pid.and_then(Pid::from_raw).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        };
        run("prestart", &[shell(&leave)], b"{}", None).unwrap();
        kill();
        let said = failure(shell(&format!("{leave} echo why; exit 1")));
        kill();
        assert!(said.ends_with("exit status 1, stdout: why, stderr: "), "{said}");
        // A child's last words.
        let said = failure(shell("{ sleep 0.02; echo late; } & exit 1"));
        assert!(said.contains("stdout: late"), "{said}");
    }
}
