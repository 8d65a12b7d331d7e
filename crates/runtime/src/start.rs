//! start: the created container's process goes on to the user's program.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::state::{Container, DirLock, FIFO, Status};
use crate::{ContainerId, Options, hooks};

/// How long another start may take to write one byte.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Waits until the process has let go of its end of the fifo: startContainer hooks are done, and the
/// program is executed (or the process has ended).
fn until_executed(fifo: &OwnedFd) -> Result<(), Errno> {
    loop {
        // Errors are told without being asked for.
        let mut fds = [PollFd::new(fifo, PollFlags::empty())];
        match poll(&mut fds, None) {
            Ok(_) if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// See [`crate::start`].
pub(crate) fn start(opts: &Options, id: &ContainerId) -> Result<()> {
    let container = Container::load(opts, id)?;
    let wrong = |text: &str| Err(Error::WrongStatus(text.into()));
    if container.is_cut_short() {
        return wrong("cannot start a container whose create was cut short: delete it");
    }
    if container.status()? == Status::Creating {
        return wrong("cannot start a container that is being created");
    }
    // One start at a time; a killed one lets go, and leaves a container that can still be started.
    let lock = DirLock::take(&container.dir, LOCK_LIMIT)?;
    match container.status()? {
        Status::Created => {}
        Status::Stopped => return wrong("cannot start a container that has stopped"),
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
    rustix::io::write(&fifo, b"0").ctx("write", name)?;
    // A fifo without a reader says the same: the process has gone on.
    rustix::fs::unlink(&path).ctx("unlink", name)?;
    drop(lock);
    let r = &container.record;
    if !r.poststart.is_empty() {
        until_executed(&fifo).ctx("wait", || "for the program's start")?;
        let state = r.hook_state("running", r.pid);
        if let Err(e) = hooks::run("poststart", &r.poststart, &state, Some(&r.bundle)) {
            // Since 1.3 of the specification a failed poststart hook stops the container.
            if let Some(pidfd) = container.pidfd()? {
                sys::process::pidfd_kill(&pidfd, 9).ctx("kill", || r.pid.to_string())?;
            }
            return Err(e);
        }
    }
    Ok(())
}
