//! Work in a container, which may take as long as the container wants, in a short-lived process of
//! its own: the loop must go on when somebody inside stops what joins the container.
//!
//! ```text
//!  shim                         helper
//!    | clone ------------------->| has the descriptors of its work alone
//!    |                           | the runtime makes processes: the helper's children, or orphans
//!    |                           |   that come to it, for it is a subreaper
//!    |<-- Made or Failed --------|
//!    |--- Taken ---------------->| ends; its children are now the shim's, the next subreaper
//! ```
//! Whatever breaks this talk (an error, the shim's end, a deadline) makes the helper kill what it
//! has made.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::error::{Context, Error, Result, ignore};
use crate::oci::Made;

/// Longest error text that is passed on; a longer one is cut.
const TEXT_BYTES_MAX: usize = 16 << 10;
const MESSAGE_BYTES_MAX: usize = 1 + 4 + TEXT_BYTES_MAX;
const TAG_MADE: u8 = 0;
const TAG_FAILED: u8 = 1;
const SIGKILL: i32 = 9;

/// A helper, from the shim's side.
#[derive(Debug)]
pub(crate) struct Helper {
    pid: i32,
    pidfd: OwnedFd,
    talk: OwnedFd,
}

impl Helper {
    /// Runs `work` in a process of its own, which keeps of the shim's descriptors 0, 1, 2 and
    /// `keep`.
    ///
    /// # Errors
    /// No process could be made. What the work itself fails with comes from [`Helper::receive`].
    pub(crate) fn start(keep: &[i32], work: impl FnOnce() -> Result<Made>) -> Result<Helper> {
        let (talk, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("socketpair", || "helper")?;
        let options = sys::clone::CloneOptions::default();
        let child = sys::clone::clone_process(&options, || child(&theirs, keep, work))
            .context("clone", || "helper")?;
        Ok(Helper { pid: child.pid, pidfd: child.pidfd, talk })
    }

    /// Readable when there is something to receive.
    pub(crate) fn talk(&self) -> BorrowedFd<'_> {
        self.talk.as_fd()
    }

    pub(crate) fn is(&self, pid: u32) -> bool {
        u32::try_from(self.pid) == Ok(pid)
    }

    /// How the work ended; `None` while it goes on. What was made is the shim's from here on,
    /// and its child as soon as the helper has ended.
    pub(crate) fn receive(&self) -> Option<Result<Made>> {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let length = match rustix::net::recvmsg(&self.talk, &mut parts, &mut control, flags) {
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Err(_) => 0,
            Ok(message) => message.bytes,
        };
        let fds = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let answer = parse(&buffer[..length], fds);
        if answer.is_ok() {
            // If it is gone, its children are here already.
            ignore(rustix::net::send(&self.talk, &[1], SendFlags::NOSIGNAL));
        }
        Some(answer)
    }

    /// Ends the talk and kills everything that the helper has made. It then ends by itself,
    /// unless it does something else than waiting for those.
    pub(crate) fn abandon(self) -> Abandoned {
        let Helper { pid, pidfd, talk } = self;
        drop(talk);
        kill_below(pid);
        Abandoned { pid, pidfd }
    }
}

/// A helper that nobody waits for any more.
#[derive(Debug)]
pub(crate) struct Abandoned {
    pid: i32,
    pidfd: OwnedFd,
}

impl Abandoned {
    pub(crate) fn is(&self, pid: u32) -> bool {
        u32::try_from(self.pid) == Ok(pid)
    }

    /// Kills what it has made since, and itself. Only for one that was not reaped yet.
    pub(crate) fn kill(self) {
        kill_below(self.pid);
        // ESRCH: it has ended.
        ignore(sys::shim::pidfd_kill(&self.pidfd, SIGKILL));
    }
}

fn parse(message: &[u8], fds: Vec<OwnedFd>) -> Result<Made> {
    let died = || Error::Runtime {
        operation: "helper",
        text: "the process that joins the container died".into(),
    };
    let Some((tag, rest)) = message.split_first() else { return Err(died()) };
    let Some((number, text)) = rest.split_first_chunk::<4>() else { return Err(died()) };
    if *tag != TAG_MADE {
        let text = String::from_utf8_lossy(text).into_owned();
        return Err(Error::Told { code: i32::from_be_bytes(*number), text });
    }
    let mut fds = fds.into_iter();
    let Some(pidfd) = fds.next() else { return Err(died()) };
    Ok(Made { pid: u32::from_be_bytes(*number), pidfd, master: fds.next() })
}

/// The helper itself; its exit code, which nobody looks at.
fn child(talk: &OwnedFd, keep: &[i32], work: impl FnOnce() -> Result<Made>) -> i32 {
    let made = prepare(talk, keep).and_then(|()| work());
    let told = tell(talk, &made);
    if made.is_ok() && told && is_taken(talk) {
        return 0;
    }
    if let Ok(made) = made {
        // ESRCH: it has ended.
        ignore(sys::shim::pidfd_kill(&made.pidfd, SIGKILL));
    }
    leave_nothing();
    1
}

fn prepare(talk: &OwnedFd, keep: &[i32]) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("prctl", || "parent's death signal")?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("prctl", || "child subreaper")?;
    let mut all = vec![talk.as_raw_fd()];
    all.extend_from_slice(keep);
    sys::process::close_from_except(3, &all).context("close_range", || "the shim's descriptors")
}

fn tell(talk: &OwnedFd, made: &Result<Made>) -> bool {
    let mut fds = Vec::new();
    let (tag, number, text) = match made {
        Ok(made) => {
            fds.push(made.pidfd.as_fd());
            fds.extend(made.master.as_ref().map(AsFd::as_fd));
            (TAG_MADE, made.pid.to_be_bytes(), String::new())
        }
        Err(error) => (TAG_FAILED, error.code().to_be_bytes(), error.chain()),
    };
    let text = &text.as_bytes()[..text.len().min(TEXT_BYTES_MAX)];
    let parts =
        [IoSlice::new(std::slice::from_ref(&tag)), IoSlice::new(&number), IoSlice::new(text)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::net::sendmsg(talk, &parts, &mut control, SendFlags::NOSIGNAL).is_ok()
}

fn is_taken(talk: &OwnedFd) -> bool {
    let mut byte = [0];
    loop {
        match rustix::io::read(talk, &mut byte) {
            Err(Errno::INTR) => {}
            other => return other == Ok(1),
        }
    }
}

/// Kills what the runtime has left of an attempt that failed, which it seldom does.
fn leave_nothing() {
    let mut killed = false;
    loop {
        match rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) if !killed => {
                kill_below(rustix::process::getpid().as_raw_nonzero().get());
                killed = true;
            }
            // What is killed and cannot end yet is the shim's to reap.
            Ok(None) | Err(_) => return,
        }
    }
}

/// Kills every descendant of a process that is not reaped meanwhile.
fn kill_below(root: i32) {
    let Ok(entries) = std::fs::read_dir("/proc") else { return };
    let numbers = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let all: Vec<(i32, i32)> = numbers.filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
    let mut known = BTreeSet::from([root]);
    loop {
        let found: Vec<(i32, i32)> = all
            .iter()
            .filter(|(pid, parent)| known.contains(parent) && !known.contains(pid))
            .copied()
            .collect();
        if found.is_empty() {
            return;
        }
        for (pid, parent) in found {
            known.insert(pid);
            let Some(handle) = Pid::from_raw(pid) else { continue };
            // The number is looked at again: it may have become somebody else's before this.
            if let Ok(pidfd) = rustix::process::pidfd_open(handle, PidfdFlags::empty())
                && parent_of(pid) == Some(parent)
            {
                // ESRCH: it has ended.
                ignore(sys::shim::pidfd_kill(&pidfd, SIGKILL));
            }
        }
    }
}

/// From `/proc/PID/stat`: after the name, which may contain anything, in parentheses.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}
