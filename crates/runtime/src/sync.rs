//! The talk between the caller and the process it makes, over one SOCK_SEQPACKET pair.
//!
//! ```text
//!  caller                        (intermediate)            container process
//!    | clone3 ------------------------->| or directly ----------->|
//!    |<-- Pid(pid) ---------------------|                         |
//!    | cgroup, id maps                                            | mounts
//!    |--- Go ---------------------------------------------------->| (waits where it needs them)
//!    |<-- Source(mount) ------------------------------------------| only in a user namespace, if it may not
//!    |--- Opened + descriptor, or Refused(errno) ---------------->| reach a bind source
//!    |<-- Hooks --------------------------------------------------| only with such hooks
//!    |--- Go ---------------------------------------------------->|
//!    |<-- Console + descriptor -----------------------------------| only with a terminal
//!    |<-- Listener(descriptor, or its number) --------------------| only with seccomp NOTIFY
//!    |--- Go ---------------------------------------------------->|
//!    |<-- Ready --------------------------------------------------| create: waits at the fifo
//!    |<-- end of file --------------------------------------------| exec: the program runs
//!    |<-- Failed(text) -------------------------------------------| instead of any of the above
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_passcred, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with, socketpair,
};

use crate::error::{Context, Error, Result, Step};

/// Longest error text that is sent; longer ones are cut.
const MESSAGE_LIMIT_BYTES: usize = 8192;

/// What a process tells its maker.
#[derive(Debug)]
pub(crate) enum Message {
    /// The intermediate made this process.
    Pid(i32),
    /// The bind source of the mount of this index in the specification is to be opened for the sender.
    Source(i32),
    /// The answer to that.
    Opened(OwnedFd),
    /// The same.
    Refused(Errno),
    /// Namespaces and mounts are there: run prestart and createRuntime hooks.
    Hooks,
    /// The pty's master.
    Console(OwnedFd),
    /// The seccomp listener; the sender waits until it is taken.
    Listener(Handle),
    /// Everything is set up.
    Ready,
    /// The sender gives up.
    Failed(String),
    /// The socket is closed.
    End,
}

/// A descriptor of the sender's.
#[derive(Debug)]
pub(crate) enum Handle {
    Descriptor(OwnedFd),
    /// Its number there, where a filter forbids sendmsg(2).
    Number(i32),
}

impl Handle {
    /// Takes it from the sender, which waits meanwhile and which nobody else may have in his hands.
    pub(crate) fn take(self, sender: &OwnedFd) -> Result<OwnedFd> {
        use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
        match self {
            Handle::Descriptor(fd) => Ok(fd),
            Handle::Number(number) => pidfd_getfd(sender, number, PidfdGetfdFlags::empty())
                .ctx("pidfd_getfd", || "seccomp listener"),
        }
    }
}

/// What [`Sync::wait`] has waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// There is a message, or the end of file.
    Message,
    /// The process has ended.
    Ended,
    TimeOver,
}

/// One end of the pair.
#[derive(Debug)]
pub(crate) struct Sync(OwnedFd);

impl AsFd for Sync {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Sync {
    pub(crate) fn pair() -> Result<(Sync, Sync)> {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .ctx("socketpair", || "for the container process")?;
        // The kernel says who has sent a message.
        set_socket_passcred(&a, true).ctx("setsockopt", || "SO_PASSCRED")?;
        Ok((Sync(a), Sync(b)))
    }

    fn send(&self, tag: u8, body: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<()> {
        if fd.is_none() {
            // Plain write(2): under a filter that answers this socket's other calls with an error,
            // writing is what is most likely allowed.
            let mut whole = Vec::with_capacity(1 + body.len());
            whole.push(tag);
            whole.extend_from_slice(&body[..body.len().min(MESSAGE_LIMIT_BYTES - 1)]);
            return rustix::io::write(&self.0, &whole)
                .ctx("send", || "message to the container process's other end")
                .map(drop);
        }
        let tag = [tag];
        let cut = &body[..body.len().min(MESSAGE_LIMIT_BYTES - 1)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let parts = [IoSlice::new(&tag), IoSlice::new(cut)];
        sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL)
            .ctx("send", || "message to the container process's other end")
            .map(drop)
    }

    /// In the child: lets go of the caller's end, so that its death is seen as end of file.
    pub(crate) fn close_in_child(&self) {
        sys::process::close_inherited(&self.0);
    }

    pub(crate) fn go(&self) -> Result<()> {
        match self.send(b'G', &[], None) {
            // It has died; why is said by the next message.
            Err(e) if matches!(e.errno(), Some(Errno::PIPE | Errno::CONNRESET)) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn wait_go(&self) -> Result<()> {
        let mut byte = [0u8; 1];
        loop {
            match rustix::io::read(&self.0, &mut byte) {
                Ok(1) => return Ok(()),
                Ok(_) => return Err(Error::config("caller", "is gone")),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).ctx("wait", || "for the caller"),
            }
        }
    }

    pub(crate) fn pid(&self, pid: i32) -> Result<()> {
        self.send(b'P', &pid.to_ne_bytes(), None)
    }

    /// Asks the caller for the source of the mount of this index; its errno if there is none to be had.
    pub(crate) fn ask_for_source(&self, index: usize) -> Result<Result<OwnedFd, Errno>> {
        let index = i32::try_from(index).map_err(|_| Error::config("mounts", "are too many"))?;
        self.send(b'S', &index.to_ne_bytes(), None)?;
        match self.receive()? {
            Message::Opened(fd) => Ok(Ok(fd)),
            Message::Refused(errno) => Ok(Err(errno)),
            _ => Err(Error::config("caller", "is gone")),
        }
    }

    /// Answers [`Sync::ask_for_source`].
    pub(crate) fn answer(&self, source: Result<OwnedFd, Errno>) -> Result<()> {
        let sent = match source {
            Ok(fd) => self.send(b'O', &[], Some(fd.as_fd())),
            Err(errno) => self.send(b'X', &errno.raw_os_error().to_ne_bytes(), None),
        };
        match sent {
            // As in `go`.
            Err(e) if matches!(e.errno(), Some(Errno::PIPE | Errno::CONNRESET)) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn hooks(&self) -> Result<()> {
        self.send(b'H', &[], None)
    }

    pub(crate) fn console(&self, master: impl AsFd) -> Result<()> {
        self.send(b'C', &[], Some(master.as_fd()))
    }

    /// `whole`: the descriptor itself, which takes sendmsg(2), and not only its number.
    pub(crate) fn listener(&self, fd: &OwnedFd, whole: bool) -> Result<()> {
        self.send(b'N', &fd.as_raw_fd().to_ne_bytes(), whole.then(|| fd.as_fd()))
    }

    pub(crate) fn ready(&self) -> Result<()> {
        self.send(b'R', &[], None)
    }

    /// Best effort: the caller may be gone, and there is nobody else to tell.
    pub(crate) fn failed(&self, error: &Error) {
        let text = match error {
            Error::Exec(text) => text.clone(),
            other => format!("error during container init: {}", other.chain()),
        };
        drop(self.send(b'E', text.as_bytes(), None));
    }

    pub(crate) fn receive(&self) -> Result<Message> {
        self.receive_with_sender().map(|(message, _)| message)
    }

    /// Waits until there is something to receive, or the process has ended without having sent it,
    /// or the time is over, however much there still is to receive.
    pub(crate) fn wait(&self, pidfd: &OwnedFd, deadline: Instant) -> Result<Waited> {
        let name = || "message of the container process";
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Waited::TimeOver);
            }
            let limit = Timespec::try_from(left).map_err(|_| Errno::INVAL).ctx("poll", name)?;
            let mut fds = [PollFd::new(&self.0, PollFlags::IN), PollFd::new(pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&limit)) {
                Ok(0) => return Ok(Waited::TimeOver),
                // It may have sent something and ended after the socket was looked at.
                Ok(_) if fds[0].revents().is_empty() && !self.has_message()? => {
                    return Ok(Waited::Ended);
                }
                Ok(_) => return Ok(Waited::Message),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).ctx("poll", name),
            }
        }
    }

    fn has_message(&self) -> Result<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&Timespec::default())) {
                Ok(n) => return Ok(n > 0),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).ctx("poll", || "message of the container process"),
            }
        }
    }

    /// Also the sender's pid in this process's pid namespace (0 at the end of file).
    pub(crate) fn receive_with_sender(&self) -> Result<(Message, i32)> {
        let mut buf = [0u8; MESSAGE_LIMIT_BYTES];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut ended = false;
        let got = loop {
            let mut parts = [IoSliceMut::new(&mut buf)];
            match recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                // The other end died with a message of ours unread: told once, and before what it
                // had sent, which comes next.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                // The kernel looks for messages first and then whether the other end is closed: one
                // that was sent in between is there only when it is asked again.
                Ok(got) if got.bytes == 0 && !ended => ended = true,
                other => break other.ctx("receive", || "from the container process")?,
            }
        };
        let (mut fd, mut sender) = (None, 0);
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fd = fds.next(),
                RecvAncillaryMessage::ScmCredentials(c) => sender = c.pid.as_raw_nonzero().get(),
                _ => {}
            }
        }
        let Some((tag, body)) = buf[..got.bytes].split_first() else {
            return Ok((Message::End, 0));
        };
        let number = || body.try_into().map(i32::from_ne_bytes).unwrap_or(-1);
        let message = match (tag, fd) {
            (b'P', _) => Message::Pid(number()),
            (b'S', _) => Message::Source(number()),
            (b'O', Some(fd)) => Message::Opened(fd),
            (b'X', _) => {
                let known = Some(number()).filter(|number| (1..4096).contains(number));
                Message::Refused(known.map_or(Errno::IO, Errno::from_raw_os_error))
            }
            (b'H', _) => Message::Hooks,
            (b'C', Some(fd)) => Message::Console(fd),
            (b'N', Some(fd)) => Message::Listener(Handle::Descriptor(fd)),
            (b'N', None) => Message::Listener(Handle::Number(number())),
            (b'R', _) => Message::Ready,
            (b'E', _) => Message::Failed(String::from_utf8_lossy(body).into_owned()),
            _ => return Err(Error::config("container process", "sent an unknown message")),
        };
        Ok((message, sender))
    }
}

/// How long the one at the other end of a socket may take to accept and to read.
pub(crate) const SEND_LIMIT: Duration = Duration::from_secs(10);

/// Connects to a Unix stream socket.
///
/// # Errors
/// ETIMEDOUT if the listener's queue was full up to the deadline; those of connect(2).
pub(crate) fn connect_by(path: &Path, deadline: Instant) -> Result<OwnedFd, Errno> {
    connect_until(path, &Until { deadline, process: None })
}

fn connect_until(path: &Path, until: &Until<'_>) -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(path)?;
    loop {
        until.limit_sending(&socket)?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            // What a full queue ends with after SO_SNDTIMEO, or a signal.
            Err(Errno::AGAIN | Errno::INTR) => until.check()?,
            Err(e) => return Err(e),
        }
    }
}

/// How long something is tried.
struct Until<'a> {
    deadline: Instant,
    /// By its pidfd: without it, nobody needs it any more.
    process: Option<&'a OwnedFd>,
}

impl Until<'_> {
    /// SO_SNDTIMEO, which counts for connect(2), too (socket(7)). ETIMEDOUT if no time is left.
    fn limit_sending(&self, socket: &OwnedFd) -> Result<(), Errno> {
        /// How often it is looked whether the process is there: these calls cannot wait for both.
        const ROUND: Duration = Duration::from_millis(50);
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT);
        }
        let limit = if self.process.is_some() { left.min(ROUND) } else { left };
        set_socket_timeout(socket, Timeout::Send, Some(limit))
    }

    /// ESRCH once the process has ended.
    fn check(&self) -> Result<(), Errno> {
        match self.process {
            Some(pidfd) if crate::hooks::ended(pidfd, Duration::ZERO)? => Err(Errno::SRCH),
            _ => Ok(()),
        }
    }
}

/// Who takes a descriptor at a Unix socket (console and pidfd sockets, seccomp agents; containerd reads
/// the descriptor only).
pub(crate) struct Recipient<'a> {
    /// Who named the socket.
    pub(crate) field: &'static str,
    pub(crate) path: &'a Path,
    /// The pidfd of the process that it is for: if it ends, the recipient is not waited for.
    pub(crate) process: Option<&'a OwnedFd>,
}

impl Recipient<'_> {
    /// Connects, and sends one descriptor with a text.
    ///
    /// # Errors
    /// [`Error::Config`] if it takes longer than [`SEND_LIMIT`]; [`Error::Init`] if the process ends.
    pub(crate) fn send(&self, text: &str, fd: impl AsFd) -> Result<()> {
        let path = self.path.display();
        match self.send_within(SEND_LIMIT, text, fd.as_fd()) {
            Err(e) if e.errno() == Some(Errno::TIMEDOUT) => {
                let text = format!(
                    "nobody takes the descriptor at the socket {path} within {} s (is the program that listens there held up?)",
                    SEND_LIMIT.as_secs()
                );
                Err(Error::config(self.field, text))
            }
            Err(e) if e.errno() == Some(Errno::SRCH) => {
                let text = format!("it ended before its descriptor was taken at the socket {path}");
                Err(Error::Init(text))
            }
            other => other.step(|| self.field),
        }
    }

    fn send_within(&self, limit: Duration, text: &str, fd: BorrowedFd<'_>) -> Result<()> {
        let until = Until { deadline: Instant::now() + limit, process: self.process };
        let name = || self.path.display().to_string();
        let socket = connect_until(self.path, &until).ctx("connect", name)?;
        send_fd(&socket, &until, text, fd).ctx("send", name)
    }
}

fn send_fd(
    socket: &OwnedFd,
    until: &Until<'_>,
    text: &str,
    fd: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let mut rest = text.as_bytes();
    let mut fds = Some([fd]);
    // The descriptor goes with the first part.
    while fds.is_some() || !rest.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        until.limit_sending(socket)?;
        match sendmsg(socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
            Ok(n) => {
                rest = &rest[n..];
                fds = None;
            }
            Err(Errno::AGAIN | Errno::INTR) => until.check()?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A path for a socket, of this process and of one caller.
#[cfg(test)]
pub(crate) fn test_socket() -> std::path::PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("gantry-socket-{}-{n}", std::process::id()))
}

/// A listener that accepts nobody, its queue full; with those that wait in it.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) fn full_listener(path: &Path) -> Vec<OwnedFd> {
    use rustix::net::{bind, listen};
    let new = |flags| socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let address = SocketAddrUnix::new(path).unwrap();
    let listener = new(SocketFlags::CLOEXEC);
    bind(&listener, &address).unwrap();
    listen(&listener, 0).unwrap();
    let mut out = vec![listener];
    loop {
        let socket = new(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        match connect(&socket, &address) {
            Ok(()) => out.push(socket),
            Err(e) => {
                assert_eq!(e, Errno::AGAIN);
                return out;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn last_words_come_before_the_end() {
        for round in 0..3000 {
            let (ours, theirs) = Sync::pair().unwrap();
            let sender = std::thread::spawn(move || theirs.failed(&Error::Exec("why".to_owned())));
            match ours.receive().unwrap() {
                Message::Failed(text) => assert_eq!(text, "why"),
                other => panic!("round {round}: {other:?}"),
            }
            assert!(matches!(ours.receive().unwrap(), Message::End));
            sender.join().unwrap();
        }
    }

    #[test]
    fn a_socket_whose_owner_takes_nothing_is_given_up() {
        let path = test_socket();
        let full = full_listener(&path);
        let limit = Duration::from_millis(200);
        let fd = std::fs::File::open("/dev/null").unwrap();
        let recipient = Recipient { field: "field", path: &path, process: None };
        let e = recipient.send_within(limit, "x", fd.as_fd()).unwrap_err();
        assert_eq!(e.errno(), Some(Errno::TIMEDOUT), "{}", e.chain());
        drop(full);
        std::fs::remove_file(&path).unwrap();

        // Accepted, but not read: more than a socket's buffer holds.
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let text = "x".repeat(16 << 20);
        let e = recipient.send_within(limit, &text, fd.as_fd()).unwrap_err();
        assert_eq!(e.errno(), Some(Errno::TIMEDOUT), "{}", e.chain());
        drop(listener);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_long_text_arrives_whole_and_the_error_names_socket_and_field() {
        use std::io::Read;
        let path = test_socket();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
            all.len()
        });
        let fd = std::fs::File::open("/dev/null").unwrap();
        let recipient = Recipient { field: "field", path: &path, process: None };
        recipient.send(&"x".repeat(4 << 20), &fd).unwrap();
        assert_eq!(reader.join().unwrap(), 4 << 20);
        // The listener is gone, its socket is there.
        let e = recipient.send("x", &fd).unwrap_err().chain();
        let want = format!("field: connect {}: connection refused", path.display());
        assert_eq!(e, want);
        std::fs::remove_file(path).unwrap();
    }
}
