//! What systemd hands to a service whose program is this one: sockets (`LISTEN_FDS`) and the place
//! where readiness is told (`NOTIFY_SOCKET`). Both are passed on to the container.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::umask;

use crate::error::{Context, Result};
use crate::state::Container;

/// Longest message of sd_notify(3) that is read.
const MESSAGE_LIMIT_BYTES: usize = 4096;

/// How many descriptors from 3 on are meant for this process.
pub(super) fn listen_fds() -> u32 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => 0,
    }
}

/// The service manager's socket: a path, or an abstract name.
pub(super) fn notify_socket() -> Option<PathBuf> {
    std::env::var_os("NOTIFY_SOCKET").filter(|s| !s.is_empty()).map(PathBuf::from)
}

/// Between the container's socket and the service manager's.
pub(super) struct Notify {
    container: UnixDatagram,
    manager: PathBuf,
    done: bool,
}

impl Notify {
    /// Makes the container's socket, where `create` has made a place for it. Only for the one start that
    /// goes through: what is there already was left by one that failed or was killed.
    pub(super) fn new(container: &Container) -> Result<Option<Notify>> {
        let Some(manager) = notify_socket() else { return Ok(None) };
        let path = container.dir.join(crate::NOTIFY_FILE);
        let name = || path.display().to_string();
        if !path.parent().is_some_and(Path::exists) {
            // Created without NOTIFY_SOCKET.
            return Ok(None);
        }
        match rustix::fs::unlink(&path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e).ctx("unlink", name),
        }
        // Every user of the container may tell. A chmod afterwards would follow a link that the
        // container may have put there; this process has one thread, and the mask is its own.
        let mask = umask(Mode::empty());
        let container = UnixDatagram::bind(&path);
        umask(mask);
        let container = container.ctx("bind", name)?;
        Ok(Some(Notify { container, manager, done: false }))
    }

    /// To wait on; none once readiness has been told.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.done).then(|| self.container.as_fd())
    }

    /// Reads one message; readiness, and nothing else that a container says, goes to the manager.
    /// `main`: whom the manager is to watch from then on. An error means that it was not told, and will
    /// not be; the container is none the worse for it.
    pub(super) fn forward(&mut self, main: Option<i32>) -> Result<()> {
        let name = || "NOTIFY_SOCKET";
        let mut buf = [0u8; MESSAGE_LIMIT_BYTES];
        let n = match self.container.recv(&mut buf) {
            Ok(n) => n,
            // It is polled again.
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(e) => {
                // Any other would come again, and at once.
                self.done = e.kind() != std::io::ErrorKind::WouldBlock;
                return Err(e).ctx("receive", name);
            }
        };
        let text = String::from_utf8_lossy(&buf[..n]);
        let Some(ready) = text.lines().find(|l| l.starts_with("READY=")) else { return Ok(()) };
        self.done = true;
        let mut message = format!("{ready}\n");
        if let Some(pid) = main {
            message.push_str(&format!("MAINPID={pid}\n"));
        }
        send(&self.manager, message.as_bytes())
    }

    /// Waits until the container is ready, or has ended.
    pub(super) fn wait(mut self, pidfd: BorrowedFd<'_>, main: i32) -> Result<()> {
        while let Some(fd) = self.fd() {
            let mut fds = [PollFd::new(&fd, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).ctx("poll", || "NOTIFY_SOCKET"),
            }
            let (told, ended) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if ended {
                return self.last_words(main);
            }
            if told {
                self.forward(Some(main))?;
            }
        }
        Ok(())
    }

    /// What is in the socket when the container has ended, and no more: others may go on writing.
    fn last_words(&mut self, main: i32) -> Result<()> {
        /// Above what a queue holds (net.unix.max_dgram_qlen, 10 to 512 on common systems).
        const LIMIT: usize = 4096;
        self.container.set_nonblocking(true).ctx("fcntl", || "NOTIFY_SOCKET")?;
        for _ in 0..LIMIT {
            match self.forward(Some(main)) {
                Err(e) if e.errno() == Some(Errno::AGAIN) && !self.done => return Ok(()),
                other => other?,
            }
            if self.done {
                break;
            }
        }
        Ok(())
    }
}

fn send(to: &Path, message: &[u8]) -> Result<()> {
    use rustix::net::{
        AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    };
    /// How long the manager may take to read what it has got so far.
    const LIMIT: Duration = Duration::from_secs(10);
    let name = || format!("NOTIFY_SOCKET {}", to.display());
    let text = to.as_os_str().as_encoded_bytes();
    let address = match text.strip_prefix(b"@") {
        Some(abstract_name) => SocketAddrUnix::new_abstract_name(abstract_name),
        None => SocketAddrUnix::new(to),
    }
    .ctx("send", name)?;
    let kind = SocketType::DGRAM;
    let socket =
        socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).ctx("socket", name)?;
    set_socket_timeout(&socket, Timeout::Send, Some(LIMIT)).ctx("setsockopt", name)?;
    sendto(&socket, message, SendFlags::NOSIGNAL, &address).ctx("send", name).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ended() -> (std::process::Child, std::os::fd::OwnedFd) {
        let child = std::process::Command::new("true").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        assert!(crate::hooks::ended(&pidfd, Duration::from_secs(10)).unwrap());
        (child, pidfd)
    }

    #[test]
    fn a_container_that_has_ended_is_heard_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let manager = dir.path().join("manager");
        let listener = UnixDatagram::bind(&manager).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (mut child, pidfd) = ended();
        let inside = dir.path().join("inside");
        let notify = || {
            drop(std::fs::remove_file(&inside));
            let container = UnixDatagram::bind(&inside).unwrap();
            Notify { container, manager: manager.clone(), done: false }
        };
        let program = UnixDatagram::unbound().unwrap();
        let mut buf = [0u8; 64];

        // Ready, and ended.
        let heard = notify();
        program.send_to(b"STATUS=x", &inside).unwrap();
        program.send_to(b"READY=1", &inside).unwrap();
        heard.wait(pidfd.as_fd(), 42).unwrap();
        let n = listener.recv(&mut buf).unwrap();
        assert_eq!(&buf[..n], b"READY=1\nMAINPID=42\n");

        // Nothing was said.
        notify().wait(pidfd.as_fd(), 42).unwrap();

        // Somebody does not stop talking.
        let flooded = notify();
        let others =
            std::thread::spawn(move || while program.send_to(b"STATUS=x", &inside).is_ok() {});
        flooded.wait(pidfd.as_fd(), 42).unwrap();
        others.join().unwrap();
        assert!(listener.recv(&mut buf).is_err());
        child.wait().unwrap();
    }
}
