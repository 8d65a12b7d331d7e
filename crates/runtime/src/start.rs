//! start: the created container's process goes on to the user's program.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::exec::JOIN_LIMIT;
use crate::procfs::read_bytes;
use crate::spec::Hook;
use crate::state::{Container, DirLock, FIFO, Status};
use crate::{ContainerId, Options, hooks};

/// How long another start may take to write one byte.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

const STOPPED: &str = "cannot start a container that has stopped";

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

/// What `start` writes into the fifo: the process goes on with the first byte, and takes the second when
/// its startContainer hooks are done. What it fails with comes after [`FAILED`].
const GO: &[u8] = b"00";
const FAILED: u8 = b'!';
/// Longest error text that the process leaves in the fifo: PIPE_BUF, so that it is written at once.
const TEXT_LIMIT_BYTES: usize = 4096;

/// In the container's process: waits for the next byte of [`GO`].
pub(crate) fn await_go(fifo: &OwnedFd) -> Result<()> {
    loop {
        match rustix::io::read(fifo, &mut [0u8; 1][..]) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e).ctx("read", || "exec.fifo"),
        }
    }
}

/// In the container's process: leaves its error to a `start` that waits for the program. If none does, it
/// goes with the fifo.
pub(crate) fn leave_error(fifo: &OwnedFd, error: &Error) {
    let text = error.chain();
    let text = &text.as_bytes()[..text.len().min(TEXT_LIMIT_BYTES - 1)];
    // The exit status says the rest.
    let _nobody = rustix::io::write(fifo, &[&[FAILED], text].concat());
}

/// Waits until the process has let go of its end of the fifo: startContainer hooks are done, and the
/// program is executed (or the process has ended). What it has left there.
fn until_executed(fifo: &OwnedFd, limit: Duration) -> Result<Vec<u8>> {
    let name = || "for the program's start";
    let deadline = Instant::now().checked_add(limit);
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let timeout = left.map(Timespec::try_from).transpose();
        let timeout = timeout.map_err(|_| Errno::INVAL).ctx("wait", name)?;
        // The end of writers is told without being asked for.
        let mut fds = [PollFd::new(fifo, PollFlags::empty())];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => {
                return read_bytes(fifo, GO.len() + TEXT_LIMIT_BYTES).ctx("read", || FIFO);
            }
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

/// Whether the program was executed, by what is `left` in the fifo and what the kernel knows of the process.
/// If its parent has waited for it already (`None`), it counts as executed once its hooks were done.
fn check_executed(left: &[u8], known: Option<bool>) -> Result<()> {
    if let Some(at) = left.iter().position(|byte| *byte == FAILED) {
        return Err(Error::Init(String::from_utf8_lossy(&left[at + 1..]).into_owned()));
    }
    match known.unwrap_or(left.is_empty()) {
        true => Ok(()),
        false => Err(Error::Init("its process ended before the program was executed".into())),
    }
}

/// After the program's start. Since 1.3 of the specification a failed poststart hook stops the container;
/// so does a program that does not start, and then there is nothing for these hooks to come after.
fn poststart(opts: &Options, container: &Container, fifo: &OwnedFd) -> Result<()> {
    let r = &container.record;
    let mut spec = container.spec()?;
    hooks::limit(&mut spec.hooks, opts.hook_limit);
    let left = until_executed(fifo, limit(&spec.hooks.start_container))?;
    check_executed(&left, container.proc.has_executed(r.pid, r.start_time)?)?;
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
        Status::Stopped => return wrong(STOPPED),
        Status::Paused => {
            return wrong("cannot start a container in the paused state: resume it first");
        }
        _ => return wrong("cannot start an already running container"),
    }
    let path = container.dir.join(FIFO);
    let name = || path.display().to_string();
    let open =
        |mode| rustix::fs::open(&path, mode | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let fifo = match open(OFlags::WRONLY) {
        Ok(fd) => fd,
        Err(Errno::NXIO) => return wrong(STOPPED),
        Err(e) => return Err(e).ctx("open", name),
    };
    // Before anything is in it, and while it is there.
    let reader = match container.record.poststart.is_empty() {
        true => None,
        false => Some(open(OFlags::RDONLY).ctx("open", name)?),
    };
    let prepared = before(&container)?;
    match rustix::io::write(&fifo, GO) {
        Err(Errno::PIPE) => return wrong(STOPPED),
        written => written.ctx("write", name)?,
    };
    // A fifo without a reader says the same: the process has gone on.
    rustix::fs::unlink(&path).ctx("unlink", name)?;
    drop((lock, fifo));
    let Some(reader) = reader else { return Ok(prepared) };
    poststart(opts, &container, &reader).map(|()| prepared).inspect_err(|_| {
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
        let open = |flags| rustix::fs::open(&path, flags, Mode::empty()).unwrap();
        let process = open(OFlags::RDWR);
        let start = open(OFlags::RDONLY | OFlags::NONBLOCK);
        rustix::io::write(&process, GO).unwrap();
        await_go(&process).unwrap();
        let e = until_executed(&start, Duration::from_millis(50)).unwrap_err().chain();
        assert!(e.contains("was not executed"), "{e}");
        await_go(&process).unwrap();
        leave_error(&process, &Error::Exec("x".repeat(2 * TEXT_LIMIT_BYTES)));
        let closing = std::thread::spawn(move || drop(process));
        let left = until_executed(&start, Duration::MAX).unwrap();
        assert_eq!(left, [b"!", "x".repeat(TEXT_LIMIT_BYTES - 1).as_bytes()].concat());
        closing.join().unwrap();
    }

    #[test]
    fn what_is_left_and_what_is_known_tell_whether_it_was_executed() {
        let what = |left: &[u8], known| check_executed(left, known).map_err(|e| e.chain());
        for (left, known) in [(&b""[..], Some(true)), (b"0", Some(true)), (b"", None)] {
            what(left, known).unwrap();
        }
        for (left, known) in [(&b""[..], Some(false)), (b"00", Some(false)), (b"0", None)] {
            assert!(what(left, known).unwrap_err().contains("ended before the program was"));
        }
        for (left, known) in [(&b"!why"[..], Some(false)), (b"0!why", Some(false)), (b"!why", None)]
        {
            let want = "unable to start container process: why";
            assert_eq!(what(left, known).unwrap_err(), want);
        }
    }

    #[test]
    fn hooks_have_their_own_time() {
        let hooks = |json: &str| limit(&serde_json::from_str::<Vec<Hook>>(json).unwrap());
        assert_eq!(hooks("[]"), JOIN_LIMIT);
        let two = r#"[{"path": "/a", "timeout": 7}, {"path": "/b"}]"#;
        assert_eq!(hooks(two), JOIN_LIMIT + HOOK_LIMIT + Duration::from_secs(7));
    }
}
