//! start: the created container's process goes on to the user's program.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::exec::JOIN_LIMIT;
use crate::spec::Hook;
use crate::state::{Container, DirLock, FIFO, Status};
use crate::{ContainerId, Options, hooks};

/// How long another start may take to write one byte.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// What a startContainer hook without a timeout of its own may take, if poststart hooks wait for it.
const HOOK_LIMIT: Duration = Duration::from_secs(300);

/// How long the process may take from its start to its program.
fn limit(start_container: &[Hook]) -> Duration {
    let of = |hook: &Hook| match hook.timeout.map(u64::try_from) {
        Some(Ok(seconds)) => Duration::from_secs(seconds),
        _ => HOOK_LIMIT,
    };
    start_container.iter().map(of).fold(JOIN_LIMIT, Duration::saturating_add)
}

/// Waits until the process has let go of its end of the fifo: startContainer hooks are done, and the
/// program is executed (or the process has ended).
fn until_executed(fifo: &OwnedFd, limit: Duration) -> Result<()> {
    let name = || "for the program's start";
    let deadline = Instant::now().checked_add(limit);
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let timeout = left.map(Timespec::try_from).transpose();
        let timeout = timeout.map_err(|_| Errno::INVAL).ctx("wait", name)?;
        // Errors are told without being asked for.
        let mut fds = [PollFd::new(fifo, PollFlags::empty())];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).ctx("wait", name),
        }
        if left.is_some_and(|left| left.is_zero()) {
            let text = format!(
                "the program was not executed within {} s of its start: a startContainer hook goes on, the container is paused, or another process of it holds this one (ptrace)",
                limit.as_secs()
            );
            return Err(Error::Init(text));
        }
    }
}

/// After the program's start. Since 1.3 of the specification a failed poststart hook stops the container;
/// so does a program that does not start.
fn poststart(opts: &Options, container: &Container, fifo: &OwnedFd) -> Result<()> {
    let r = &container.record;
    let mut spec = container.spec()?;
    hooks::limit(&mut spec.hooks, opts.hook_limit);
    until_executed(fifo, limit(&spec.hooks.start_container))?;
    let state = r.hook_state("running", r.pid);
    hooks::run("poststart", &r.poststart, &state, Some(&r.bundle))
}

/// See [`crate::start`].
pub(crate) fn start(opts: &Options, id: &ContainerId) -> Result<()> {
    start_with(opts, id, |_| Ok(()))
}

/// As [`start`]; `before` is done when it is certain that this start is the one.
pub(crate) fn start_with<T>(
    opts: &Options,
    id: &ContainerId,
    before: impl FnOnce(&Container) -> Result<T>,
) -> Result<T> {
    let mut container = Container::load(opts, id)?;
    let wrong = |text: &str| Err(Error::WrongStatus(text.into()));
    if container.is_cut_short() {
        return wrong("cannot start a container whose create was cut short: delete it");
    }
    if container.status()? == Status::Creating {
        return wrong("cannot start a container that is being created");
    }
    // One start at a time; a killed one lets go, and leaves a container that can still be started.
    let lock = DirLock::take(&container.dir, LOCK_LIMIT)?;
    let lock = lock.ok_or_else(|| Error::NotFound(id.to_string()))?;
    // Another of this id may be there by now.
    container = Container::load_locked(opts, id, &lock)?;
    match container.status()? {
        Status::Created => {}
        Status::Stopped => return wrong("cannot start a container that has stopped"),
        Status::Paused => {
            return wrong("cannot start a container in the paused state: resume it first");
        }
        _ => return wrong("cannot start an already running container"),
    }
    let path = container.dir.join(FIFO);
    let name = || path.display().to_string();
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NXIO) => return wrong("cannot start a container that has stopped"),
        Err(e) => return Err(e).ctx("open", name),
    };
    let prepared = before(&container)?;
    rustix::io::write(&fifo, b"0").ctx("write", name)?;
    // A fifo without a reader says the same: the process has gone on.
    rustix::fs::unlink(&path).ctx("unlink", name)?;
    drop(lock);
    if container.record.poststart.is_empty() {
        return Ok(prepared);
    }
    poststart(opts, &container, &fifo).map(|()| prepared).inspect_err(|_| {
        // The error under way counts.
        if let Ok(Some(pidfd)) = container.pidfd() {
            let _gone = sys::process::pidfd_kill(&pidfd, 9);
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_program_that_does_not_start_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FIFO);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, Mode::from(0o600), 0).unwrap();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let reader = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
        let writer = rustix::fs::open(&path, OFlags::WRONLY, Mode::empty()).unwrap();
        let e = until_executed(&writer, Duration::from_millis(50)).unwrap_err().chain();
        assert!(e.contains("was not executed"), "{e}");
        let closing = std::thread::spawn(move || drop(reader));
        until_executed(&writer, Duration::MAX).unwrap();
        closing.join().unwrap();
    }

    #[test]
    fn hooks_have_their_own_time() {
        let hooks = |json: &str| limit(&serde_json::from_str::<Vec<Hook>>(json).unwrap());
        assert_eq!(hooks("[]"), JOIN_LIMIT);
        let two = r#"[{"path": "/a", "timeout": 7}, {"path": "/b"}]"#;
        assert_eq!(hooks(two), JOIN_LIMIT + HOOK_LIMIT + Duration::from_secs(7));
    }
}
