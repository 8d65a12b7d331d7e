//! One netlink socket: requests with acknowledgements, dumps, events.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force,
    set_socket_timeout,
};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::flags;
use super::message::{Batch, HEADER, align, attributes, ne16, ne32, text};
use crate::error::{Error, system};

const SOL_NETLINK: i32 = 270;
const NETLINK_CAP_ACK: i32 = 10;
const NETLINK_EXT_ACK: i32 = 11;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The kernel sends dumps in parts of at most 32 KiB; twice that is room.
const RECV_BYTES: usize = 64 << 10;
/// A whole rule set goes out in one send; the kernel charges it against this.
const SEND_BUFFER_BYTES: usize = 8 << 20;
/// Events wait here while their reader is busy; overflow is told as ENOBUFS.
const EVENT_BUFFER_BYTES: usize = 2 << 20;
/// The kernel answers at once; this only keeps a lost answer from hanging us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an interrupted dump is tried again before its result is used.
const DUMP_ATTEMPTS: usize = 8;

/// A received message without its header.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) kind: u16,
    /// Port of the socket whose request caused the event.
    pub(crate) port: u32,
    pub(crate) payload: Vec<u8>,
}

/// A netlink socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    seq: u32,
    port: u32,
    buf: Vec<u8>,
}

/// How a batch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acks {
    /// Every message is acknowledged (rtnetlink).
    Each,
    /// Only the last is; errors of any may come before it; an error for the
    /// first (the batch's own begin message) ends it (nfnetlink).
    Last,
}

impl Socket {
    /// A routing socket in the calling thread's namespace.
    pub(crate) fn route() -> Result<Self, Error> {
        Self::open(None, 0)
    }

    /// A netfilter socket; `groups` is the mask of multicast groups.
    pub(crate) fn netfilter(groups: u32) -> Result<Self, Error> {
        Self::open(Some(rustix::net::netlink::NETFILTER), groups)
    }

    fn open(protocol: Option<Protocol>, groups: u32) -> Result<Self, Error> {
        let wrap = |what: &'static str| {
            move |e: rustix::io::Errno| system(what, "netlink socket")(e.into())
        };
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(wrap("open"))?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups)).map_err(wrap("bind"))?;
        let own = rustix::net::getsockname(&fd).map_err(wrap("name"))?;
        let port = SocketAddrNetlink::try_from(own).map_err(wrap("name"))?.pid();
        for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK] {
            sys::netns::set_int_option(&fd, SOL_NETLINK, option, 1)
                .map_err(system("configure", "netlink socket"))?;
        }
        let size = if groups == 0 {
            set_socket_send_buffer_size_force(&fd, SEND_BUFFER_BYTES)
        } else {
            set_socket_recv_buffer_size_force(&fd, EVENT_BUFFER_BYTES)
        };
        // Without CAP_NET_ADMIN in the initial user namespace the default size
        // stays, which is enough for all but very large rule sets.
        if let Err(errno) = size
            && errno != rustix::io::Errno::PERM
        {
            return Err(wrap("size")(errno));
        }
        set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_TIMEOUT)).map_err(wrap("configure"))?;
        Ok(Self { fd, seq: 1, port, buf: vec![0; RECV_BYTES] })
    }

    /// The port that events caused by this socket carry.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// An empty batch with sequence numbers of this socket.
    pub(crate) fn batch(&mut self) -> Batch {
        // Far more numbers than one batch has messages, so answers to an
        // abandoned batch are never taken for those of the next.
        self.seq = self.seq.wrapping_add(1 << 16);
        Batch::new(self.seq)
    }

    /// Sends rtnetlink messages in one call and waits for every answer. The
    /// kernel treats them one by one; the first error is returned.
    pub(crate) fn request(&mut self, batch: &mut Batch) -> Result<(), Error> {
        self.transact(batch, Acks::Each)
    }

    /// Sends an nfnetlink batch, which is one transaction.
    pub(crate) fn commit(&mut self, batch: &mut Batch) -> Result<(), Error> {
        self.transact(batch, Acks::Last)
    }

    fn transact(&mut self, batch: &mut Batch, acks: Acks) -> Result<(), Error> {
        let (Some(first), Some(last)) = (batch.pending.first(), batch.pending.last()) else {
            return Ok(());
        };
        let (first, last) = (first.seq, last.seq);
        self.send(batch)?;
        let mut left = batch.pending.len();
        let mut failure = None;
        loop {
            for answer in self.receive("read the kernel's answer")? {
                if answer.kind != NLMSG_ERROR {
                    continue;
                }
                let Some(position) = batch.pending.iter().position(|p| p.seq == answer.seq) else {
                    continue;
                };
                left = left.saturating_sub(1);
                let operation = &batch.pending[position].operation;
                if let Some(error) = answer.error(operation) {
                    failure.get_or_insert(error);
                }
                let done = match acks {
                    Acks::Each => left == 0,
                    Acks::Last => answer.seq == last || answer.seq == first,
                };
                if done {
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn send(&self, batch: &mut Batch) -> Result<(), Error> {
        let operation = batch.pending.first().map(|p| p.operation.clone()).unwrap_or_default();
        let bytes = batch.bytes();
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::io::retry_on_intr(|| {
            rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &kernel)
        })
        .map_err(|e| Error::Netlink { operation, message: None, source: e.into() })?;
        Ok(())
    }

    /// Runs a dump: one request whose answer is many messages. An interrupted
    /// dump (the tables changed meanwhile) is repeated.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        fixed: &[u8],
        operation: &str,
        body: impl Fn(&mut Batch),
    ) -> Result<Vec<Event>, Error> {
        for attempt in 1.. {
            let mut batch = self.batch();
            batch.begin(kind, flags::DUMP, fixed, operation);
            body(&mut batch);
            let (events, interrupted) = self.dump_once(&mut batch, operation)?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(events);
            }
        }
        Ok(Vec::new())
    }

    fn dump_once(
        &mut self,
        batch: &mut Batch,
        operation: &str,
    ) -> Result<(Vec<Event>, bool), Error> {
        let seq = batch.pending.first().map(|p| p.seq);
        self.send(batch)?;
        let mut events = Vec::new();
        let mut interrupted = false;
        loop {
            for answer in self.receive(operation)? {
                if Some(answer.seq) != seq {
                    continue;
                }
                interrupted |= answer.flags & flags::DUMP_INTR != 0;
                match answer.kind {
                    NLMSG_DONE => {
                        return match answer.error(operation) {
                            Some(error) => Err(error),
                            None => Ok((events, interrupted)),
                        };
                    }
                    NLMSG_ERROR => {
                        return match answer.error(operation) {
                            Some(error) => Err(error),
                            None => Ok((events, interrupted)),
                        };
                    }
                    _ => events.push(answer.into_event()),
                }
            }
        }
    }

    /// Asks for one object (a get without dump); `None` when it is not there.
    pub(crate) fn get(
        &mut self,
        batch: &mut Batch,
        operation: &str,
    ) -> Result<Option<Event>, Error> {
        let seq = batch.pending.first().map(|p| p.seq);
        self.send(batch)?;
        loop {
            for answer in self.receive(operation)? {
                if Some(answer.seq) != seq {
                    continue;
                }
                if answer.kind != NLMSG_ERROR {
                    return Ok(Some(answer.into_event()));
                }
                return match answer.error(operation) {
                    Some(error) if error.is_not_found() => Ok(None),
                    Some(error) => Err(error),
                    None => Ok(None),
                };
            }
        }
    }

    /// Reads the events that are waiting, without blocking. `Err` with ENOBUFS
    /// says that some were lost.
    pub(crate) fn events(&mut self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        loop {
            let len = match rustix::net::recv(&self.fd, &mut self.buf[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => len,
                Err(rustix::io::Errno::AGAIN) => return Ok(events),
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(system("read", "netlink events")(errno.into())),
            };
            events.extend(split(&self.buf[..len]).into_iter().map(Answer::into_event));
        }
    }

    fn receive(&mut self, operation: &str) -> Result<Vec<Answer>, Error> {
        let (len, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.fd, &mut self.buf[..], RecvFlags::empty())
        })
        .map_err(|e| Error::Netlink {
            operation: operation.to_owned(),
            message: None,
            source: io::Error::from(e),
        })?;
        Ok(split(&self.buf[..len]))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct Answer {
    kind: u16,
    flags: u16,
    seq: u32,
    port: u32,
    payload: Vec<u8>,
}

impl Answer {
    fn into_event(self) -> Event {
        Event { kind: self.kind, port: self.port, payload: self.payload }
    }

    /// The error that an NLMSG_ERROR or NLMSG_DONE carries, if it is not zero.
    fn error(&self, operation: &str) -> Option<Error> {
        let code = i32::from_ne_bytes(self.payload.get(..4)?.try_into().ok()?);
        if code == 0 {
            return None;
        }
        Some(Error::Netlink {
            operation: operation.to_owned(),
            message: self.extended_text(),
            source: io::Error::from_raw_os_error(-code),
        })
    }

    /// The kernel's text for the error: attributes after the echoed header.
    fn extended_text(&self) -> Option<String> {
        if self.flags & flags::ACK_TLVS == 0 || self.kind != NLMSG_ERROR {
            return None;
        }
        let echoed = if self.flags & flags::CAPPED != 0 {
            HEADER
        } else {
            align(usize::try_from(ne32(self.payload.get(4..)?)?).ok()?)
        };
        let message = attributes(self.payload.get(4 + echoed..)?).get(NLMSGERR_ATTR_MSG)?;
        Some(text(message))
    }
}

fn split(mut bytes: &[u8]) -> Vec<Answer> {
    let mut out = Vec::new();
    while let Some(answer) = split_one(&mut bytes) {
        out.push(answer);
    }
    out
}

fn split_one(bytes: &mut &[u8]) -> Option<Answer> {
    let len = usize::try_from(ne32(bytes)?).ok()?;
    let message = bytes.get(..len)?;
    let answer = Answer {
        kind: ne16(message.get(4..)?)?,
        flags: ne16(message.get(6..)?)?,
        seq: ne32(message.get(8..)?)?,
        port: ne32(message.get(12..)?)?,
        payload: message.get(HEADER..)?.to_vec(),
    };
    *bytes = bytes.get(align(len)..).unwrap_or(&[]);
    Some(answer)
}
