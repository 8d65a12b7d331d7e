//! What systemd hands to a service whose program is this one: sockets (`LISTEN_FDS`) and the place
//! where readiness is told (`NOTIFY_SOCKET`). Both are passed on to the container.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::error::{Context, Result};
use crate::{ContainerId, Options};

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
    /// Makes the container's socket, where `create` has made a place for it.
    pub(super) fn new(options: &Options, id: &ContainerId) -> Result<Option<Notify>> {
        let Some(manager) = notify_socket() else { return Ok(None) };
        let path = options.root.join(id.as_str()).join(crate::NOTIFY_FILE);
        let name = || path.display().to_string();
        if !path.parent().is_some_and(Path::exists) {
            // Created without NOTIFY_SOCKET.
            return Ok(None);
        }
        let container = UnixDatagram::bind(&path).ctx("bind", name)?;
        // Every user of the container may tell.
        let mode = rustix::fs::Mode::from_raw_mode(0o777);
        rustix::fs::chmod(&path, mode).ctx("chmod", name)?;
        Ok(Some(Notify { container, manager, done: false }))
    }

    /// To wait on; none once readiness has been told.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.done).then(|| self.container.as_fd())
    }

    /// Reads one message; readiness, and nothing else that a container says, goes to the manager.
    /// `main`: whom the manager is to watch from then on.
    pub(super) fn forward(&mut self, main: Option<i32>) -> Result<()> {
        let name = || "NOTIFY_SOCKET";
        let mut buf = [0u8; MESSAGE_LIMIT_BYTES];
        let n = self.container.recv(&mut buf).ctx("receive", name)?;
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
            if told {
                self.forward(Some(main))?;
            } else if ended {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn send(to: &Path, message: &[u8]) -> Result<()> {
    use rustix::net::{
        AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with,
    };
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
    sendto(&socket, message, SendFlags::NOSIGNAL, &address).ctx("send", name).map(drop)
}
