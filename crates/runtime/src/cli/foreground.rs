//! A process in the foreground: signals go to it, its terminal is ours, its status is ours.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::activation::Notify;
use crate::error::{Context, Result};
use crate::{Created, process};

const SIGCHLD: i32 = 17;
const SIGWINCH: i32 = 28;
/// Forwarded: every signal that can be caught and is not of our own making (SIGPIPE, SIGURG, the
/// faults) stays out.
const FORWARDED: [i32; 13] = [1, 2, 3, 6, 10, 12, 14, 15, 18, 20, 21, 22, SIGWINCH];
const BUFFER_BYTES: usize = 32 * 1024;
/// What is written at once where poll(2) says that there is room, and where it cannot be said how much: a
/// socket, as a pipe (PIPE_BUF), has that.
const ROOM_BYTES: usize = 4096;
/// Of these one ends the waiting for who reads the output of a process that has ended.
const ENDING: [i32; 4] = [1, 2, 3, 15];
/// How long a terminal that nobody in the container has open is left alone: poll(2) tells of it at once
/// and always. Somebody may open it again.
const HUNG_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Signals that were blocked before the process was made.
pub(super) struct Signals(OwnedFd);

impl Signals {
    pub(super) fn new() -> Result<Signals> {
        let mut list = FORWARDED.to_vec();
        list.push(SIGCHLD);
        sys::process::signal_fd(&list).ctx("signalfd", || "foreground process").map(Signals)
    }
}

/// The caller's terminal in raw mode, until dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn new() -> Raw {
        let stdin = rustix::stdio::stdin();
        let Ok(before) = tcgetattr(stdin) else { return Raw(None) };
        let mut raw = before.clone();
        raw.make_raw();
        match tcsetattr(stdin, OptionalActions::Now, &raw) {
            Ok(()) => Raw(Some(before)),
            Err(_) => Raw(None),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that is gone needs no mode.
            let _gone = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Our standard output. It is shared with others, so that it cannot be made non-blocking itself: terminals
/// and pipes are opened once more. poll(2) says of a terminal that there is room when there is for one byte.
struct Output(Option<OwnedFd>);

impl Output {
    fn new() -> Output {
        let stdout = rustix::stdio::stdout();
        let is_pipe = || {
            rustix::fs::fstat(stdout)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        };
        // A file would be written from its beginning; a socket cannot be opened.
        if !rustix::termios::isatty(stdout) && !is_pipe() {
            return Output(None);
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // Without /proc, or another user's: it is written to as it is.
        Output(rustix::fs::open("/proc/self/fd/1", flags, Mode::empty()).ok())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Some(own) => own.as_fd(),
            None => rustix::stdio::stdout(),
        }
    }

    /// As much as it takes now.
    fn give(&self, bytes: &mut Vec<u8>) {
        give(self.fd(), bytes, if self.0.is_some() { BUFFER_BYTES } else { ROOM_BYTES });
    }
}

/// Hears what became of passing readiness on.
pub(super) type Told<'a> = &'a dyn Fn(Result<()>);

/// Waits for the process; its exit code, 128 + n for signal n. With `notify` comes who hears what became
/// of passing it on, which changes nothing else.
pub(super) fn wait(
    signals: &Signals,
    created: &Created,
    kill: &dyn Fn(i32) -> Result<()>,
    mut notify: Option<(&mut Notify, Told<'_>)>,
) -> Result<i32> {
    let master = created.console_master.as_ref();
    let raw = master.map(|_| Raw::new());
    if let Some(master) = master {
        resize(master);
        // Nobody else has it. A program that does not read must hold up neither its output nor signals.
        rustix::io::ioctl_fionbio(master, true).ctx("ioctl", || "pty master")?;
    }
    let (mut input, mut hung_up) = (master.is_some(), false);
    // Typed, and not yet taken by the pty; printed, and not yet taken by our standard output: at most one
    // buffer of each, more stays with who writes.
    let (mut typed, mut printed) = (Vec::new(), Vec::new());
    let (stdin, output) = (rustix::stdio::stdin(), Output::new());
    loop {
        let mut fds = vec![
            PollFd::new(&signals.0, PollFlags::IN),
            PollFd::new(&created.pidfd, PollFlags::IN),
        ];
        let mut add = |fd, events| {
            fds.push(PollFd::from_borrowed_fd(fd, events));
            fds.len() - 1
        };
        let wanted = |flag, is_wanted| if is_wanted { flag } else { PollFlags::empty() };
        let events =
            wanted(PollFlags::IN, printed.is_empty()) | wanted(PollFlags::OUT, !typed.is_empty());
        let pty = master.filter(|_| !hung_up && !events.is_empty());
        let output_at = pty.map(|fd| add(fd.as_fd(), events));
        let printed_at = (!printed.is_empty()).then(|| add(output.fd(), PollFlags::OUT));
        let input_at = (input && typed.is_empty()).then(|| add(stdin, PollFlags::IN));
        let told_at = notify.as_ref().and_then(|(n, _)| n.fd()).map(|fd| add(fd, PollFlags::IN));
        match poll(&mut fds, hung_up.then_some(&HUNG_UP)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).ctx("poll", || "foreground process"),
        }
        let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
        let is_ready = |at: Option<usize>| at.is_some_and(|at| ready[at]);
        if is_ready(told_at)
            && let Some((notify, told)) = &mut notify
        {
            // The manager is to watch this process.
            told(notify.forward(None));
        }
        if ready[0] {
            forward(signals, master, kill)?;
        }
        if let Some(master) = master {
            hung_up = is_ready(output_at) && printed.is_empty() && !take(master, &mut printed);
            if is_ready(printed_at) {
                output.give(&mut printed);
            }
            if is_ready(input_at) {
                input = take(stdin, &mut typed);
            }
            if !typed.is_empty() {
                give(master, &mut typed, BUFFER_BYTES);
            }
        }
        if ready[1] {
            let status = process::reap(&created.pidfd);
            master.iter().for_each(|master| drain(master, &mut printed, &output, signals));
            drop(raw);
            return status;
        }
    }
}

fn forward(
    signals: &Signals,
    master: Option<&OwnedFd>,
    kill: &dyn Fn(i32) -> Result<()>,
) -> Result<()> {
    while let Some(signal) = sys::process::read_signal(&signals.0).ctx("read", || "signalfd")? {
        match (signal, master) {
            // Orphans of the container, where we are its reaper. Our own child keeps its status
            // until it is asked for by its pidfd.
            (SIGCHLD, _) => {}
            (SIGWINCH, Some(master)) => resize(master),
            (SIGWINCH, None) => {}
            (signal, _) => match kill(signal) {
                // It ended in the meantime; the pidfd says so next.
                Ok(()) | Err(crate::Error::WrongStatus(_)) => {}
                Err(e) if e.errno() == Some(Errno::SRCH) => {}
                Err(e) => return Err(e),
            },
        }
    }
    Ok(())
}

fn resize(master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
        // A size that cannot be set leaves the old one, which is what there is.
        let _kept = tcsetwinsize(master, size);
    }
}

/// One buffer; false at the end.
fn take(from: impl AsFd, bytes: &mut Vec<u8>) -> bool {
    let mut buf = [0u8; BUFFER_BYTES];
    match rustix::io::read(from, &mut buf) {
        Ok(n) => {
            bytes.extend_from_slice(&buf[..n]);
            n > 0
        }
        Err(e) => matches!(e, Errno::INTR | Errno::AGAIN),
    }
}

/// As much as it takes now, at most so many bytes. What it cannot take (a pty without a reader) is nobody's.
fn give(to: impl AsFd, bytes: &mut Vec<u8>, most: usize) {
    match rustix::io::write(to, &bytes[..bytes.len().min(most)]) {
        Ok(n) => drop(bytes.drain(..n)),
        Err(Errno::INTR | Errno::AGAIN) => {}
        Err(_) => bytes.clear(),
    }
}

/// Writes what is `printed`, and what a process that has ended wrote before and is still in the pty. A reader that takes nothing is waited for, until
/// a signal of [`ENDING`] comes.
fn drain(master: &OwnedFd, printed: &mut Vec<u8>, output: &Output, signals: &Signals) {
    loop {
        while !printed.is_empty() {
            let to = output.fd();
            let mut fds =
                [PollFd::new(&to, PollFlags::OUT), PollFd::new(&signals.0, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let [can_give, is_told] = fds.map(|fd| !fd.revents().is_empty());
            if is_told {
                while let Ok(Some(signal)) = sys::process::read_signal(&signals.0) {
                    if ENDING.contains(&signal) {
                        return;
                    }
                }
            }
            if can_give {
                output.give(printed);
            }
        }
        let mut fds = [PollFd::new(master, PollFlags::IN)];
        let readable = poll(&mut fds, Some(&Timespec::default())).is_ok_and(|n| n > 0)
            && fds[0].revents().contains(PollFlags::IN);
        if !readable || !take(master, printed) {
            return;
        }
    }
}
