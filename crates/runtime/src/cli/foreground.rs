//! A process in the foreground: signals go to it, its terminal is ours, its status is ours.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
    // Typed, and not yet taken by the pty: at most one buffer, more stays with who types.
    let mut typed = Vec::new();
    loop {
        let stdin = rustix::stdio::stdin();
        let mut fds = vec![
            PollFd::new(&signals.0, PollFlags::IN),
            PollFd::new(&created.pidfd, PollFlags::IN),
        ];
        let mut add = |fd, events| {
            fds.push(PollFd::from_borrowed_fd(fd, events));
            fds.len() - 1
        };
        let out = if typed.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let output_at = master.filter(|_| !hung_up).map(|fd| add(fd.as_fd(), PollFlags::IN | out));
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
            hung_up = is_ready(output_at) && !copy(master, rustix::stdio::stdout());
            if is_ready(input_at) {
                input = take(stdin, &mut typed);
            }
            if !typed.is_empty() {
                give(master, &mut typed);
            }
        }
        if ready[1] {
            // What the process wrote before it ended is still in the pty.
            if let Some(master) = master {
                drain(master);
            }
            drop(raw);
            return process::reap(&created.pidfd);
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

/// One buffer of what was typed; false at the end.
fn take(from: impl AsFd, typed: &mut Vec<u8>) -> bool {
    let mut buf = [0u8; BUFFER_BYTES];
    match rustix::io::read(from, &mut buf) {
        Ok(n) => {
            typed.extend_from_slice(&buf[..n]);
            n > 0
        }
        Err(e) => matches!(e, Errno::INTR | Errno::AGAIN),
    }
}

/// As much as it takes now. What a pty without a reader does not take is nobody's.
fn give(master: &OwnedFd, typed: &mut Vec<u8>) {
    match rustix::io::write(master, typed) {
        Ok(n) => drop(typed.drain(..n)),
        Err(Errno::INTR | Errno::AGAIN) => {}
        Err(_) => typed.clear(),
    }
}

/// One buffer from one to the other; false at the end. What cannot be written is nobody's: who writes
/// must not wait for that.
fn copy(from: impl AsFd, to: impl AsFd) -> bool {
    let mut buf = [0u8; BUFFER_BYTES];
    match rustix::io::read(from, &mut buf) {
        Ok(0) => false,
        Err(Errno::INTR | Errno::AGAIN) => true,
        Err(_) => false,
        Ok(n) => {
            let mut rest = &buf[..n];
            while !rest.is_empty() {
                match rustix::io::write(to.as_fd(), rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
            true
        }
    }
}

fn drain(master: &OwnedFd) {
    loop {
        let mut fds = [PollFd::new(master, PollFlags::IN)];
        let readable = poll(&mut fds, Some(&Timespec::default())).is_ok_and(|n| n > 0)
            && fds[0].revents().contains(PollFlags::IN);
        if !readable || !copy(master, rustix::stdio::stdout()) {
            return;
        }
    }
}
