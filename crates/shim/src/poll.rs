//! The epoll loop's basics: tokens that name what a descriptor is for, and output buffers.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::error::{Context, Result, ignore};

/// What a ready descriptor is for. The id that goes with it is an index of that kind's own map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The ttrpc socket.
    Listener,
    /// The attach socket.
    AttachListener,
    /// The signalfd.
    Signal,
    /// A ttrpc client.
    Conn,
    /// An attach client.
    Attach,
    /// Output of a process: id = process × 2 + stream.
    Output,
    /// Where output goes on to (a FIFO with a full buffer): id as above.
    Sink,
    /// A process's standard input, which was full.
    Stdin,
    /// A FIFO that feeds standard input.
    StdinFifo,
    /// Out-of-memory notices; id = the first process of the container.
    Oom,
    /// The connection to containerd.
    Events,
    /// Port forwarding.
    Forward,
    /// A helper that starts an exec; id = the process.
    Helper,
}

const KINDS: [Kind; 13] = [
    Kind::Listener,
    Kind::AttachListener,
    Kind::Signal,
    Kind::Conn,
    Kind::Attach,
    Kind::Output,
    Kind::Sink,
    Kind::Stdin,
    Kind::StdinFifo,
    Kind::Oom,
    Kind::Events,
    Kind::Forward,
    Kind::Helper,
];

/// Bits of a token that are the id.
const ID_BITS: u32 = 56;

/// One epoll instance.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

/// A descriptor is ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
    pub(crate) flags: EventFlags,
}

impl Poller {
    pub(crate) fn new() -> Result<Poller> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("epoll_create", || "shim")?;
        Ok(Poller { epoll })
    }

    pub(crate) fn add(&self, fd: impl AsFd, kind: Kind, id: u64, flags: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, fd, data(kind, id), flags)
            .context("epoll_ctl add", || format!("{kind:?} {id}"))
    }

    pub(crate) fn modify(&self, fd: impl AsFd, kind: Kind, id: u64, flags: EventFlags) {
        // Fails only for a descriptor that is not registered, which then needs no events.
        ignore(epoll::modify(&self.epoll, fd, data(kind, id), flags));
    }

    pub(crate) fn remove(&self, fd: impl AsFd) {
        // As above.
        ignore(epoll::delete(&self.epoll, fd));
    }

    /// Waits until something is ready or `deadline`; fills `ready`.
    pub(crate) fn wait(&self, ready: &mut Vec<Ready>, deadline: Option<Instant>) -> Result<()> {
        /// Events taken at once; more stay in the kernel.
        const EVENTS: usize = 32;
        ready.clear();
        let mut events =
            [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS];
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        // epoll rounds down to milliseconds: never wake just before the deadline, over and over.
        let left = left.map(|d| if d.is_zero() { d } else { d + Duration::from_millis(1) });
        let timeout = left.and_then(|d| rustix::time::Timespec::try_from(d).ok());
        let count = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Err(Errno::INTR) => 0,
            other => other.context("epoll_wait", || "shim")?,
        };
        for event in events.get(..count).unwrap_or_default() {
            let (bits, flags) = (event.data, event.flags);
            let token = bits.u64();
            let kind = usize::try_from(token >> ID_BITS).ok().and_then(|k| KINDS.get(k));
            if let Some(kind) = kind {
                ready.push(Ready { kind: *kind, id: token & ((1 << ID_BITS) - 1), flags });
            }
        }
        Ok(())
    }
}

fn data(kind: Kind, id: u64) -> EventData {
    let kind = KINDS.iter().zip(0u64..).find(|(k, _)| **k == kind).map_or(0, |(_, n)| n);
    EventData::new_u64(kind << ID_BITS | id)
}

/// Bytes that a descriptor did not take yet.
#[derive(Debug, Default)]
pub(crate) struct OutBuf {
    data: Vec<u8>,
    at: usize,
}

impl OutBuf {
    /// Bytes waiting.
    pub(crate) fn len(&self) -> usize {
        self.data.len() - self.at
    }

    /// Adds without writing.
    pub(crate) fn queue(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
    }

    /// Writes the parts, or keeps what does not fit now.
    ///
    /// # Errors
    /// The descriptor is broken.
    pub(crate) fn send(&mut self, fd: impl AsFd, parts: [&[u8]; 2]) -> Result<(), Errno> {
        let mut written = 0;
        if self.len() == 0 {
            let slices = parts.map(std::io::IoSlice::new);
            written = match rustix::io::writev(&fd, &slices) {
                Ok(n) => n,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(error) => return Err(error),
            };
        }
        for part in parts {
            let skip = written.min(part.len());
            written -= skip;
            self.data.extend_from_slice(&part[skip..]);
        }
        Ok(())
    }

    /// Writes what waits; true once nothing does.
    ///
    /// # Errors
    /// The descriptor is broken.
    pub(crate) fn flush(&mut self, fd: impl AsFd) -> Result<bool, Errno> {
        while self.at < self.data.len() {
            match rustix::io::write(&fd, &self.data[self.at..]) {
                Ok(n) => self.at += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.compact();
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        // Buffers are for the slow moments only: idle shims hold none.
        *self = OutBuf::default();
        Ok(true)
    }

    fn compact(&mut self) {
        if self.at > self.data.len() / 2 {
            self.data.drain(..self.at);
            self.at = 0;
        }
    }
}
