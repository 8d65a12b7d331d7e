//! The host's shutdown: all containers stop, with their own signals and timeouts.
//!
//! ```text
//! systemd stops gantry-shutdown.service ──► gantry daemon --stop-containers
//!                                             │ SIGPWR        waits for the daemon's end
//!                                             ▼
//!                                           daemon: stops all containers, ends
//! ```
//! Where no daemon runs, the command does the daemon's part itself.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::locks::{self, Note};
use super::{Start, program, run};
use super::{config::Daemon, file::Settings};

/// The host goes down: stop all containers, then end.
pub(crate) const SIGNAL: i32 = Signal::POWER.as_raw();

/// `--stop-containers`; the exit code.
pub(super) fn main(start: Start, settings: Settings, daemon: Daemon) -> i32 {
    let program = program(start.persona);
    let lock = locks::of_exec_root(&daemon.engine.exec_root);
    if !rustix::process::geteuid().is_root() {
        eprintln!("{program} --stop-containers needs to be started with root privileges");
        return 1;
    }
    let Some(note) = locks::holder(&lock) else {
        return run::main(start, settings, daemon);
    };
    match ask(&note, || locks::holder(&lock).is_some_and(|now| now.pid == note.pid)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{program}: stop containers by the daemon, process {}: {error}", note.pid);
            1
        }
    }
}

/// Tells the daemon, and waits until it has ended.
fn ask(note: &Note, still: impl Fn() -> bool) -> Result<(), rustix::io::Errno> {
    let pid = i32::try_from(note.pid).ok().and_then(Pid::from_raw);
    let pidfd = match pidfd_open(pid.ok_or(rustix::io::Errno::SRCH)?, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error),
    };
    // Not another process that has its number by now.
    if !still() {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::POWER) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error),
    }
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
