//! Events, forwarded to containerd: its ttrpc service `Events.Forward` at `TTRPC_ADDRESS`.
//!
//! One call at a time, so that events arrive in order. While containerd is away they wait in a
//! bounded queue and the connection is tried again; one that was sent but not answered is sent
//! again, so that a receiver may see it twice but never misses it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use prost::Message;
use protos::shim::{EVENTS_SERVICE, EventEnvelope, ForwardRequest};
use protos::ttrpc;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::poll::{Kind, OutBuf, Poller};

/// Events that wait at most; the oldest goes first. Readers learn of lost exits by asking.
const QUEUE_MAX: usize = 512;
/// An answer is a status and little else.
const ANSWER_BYTES_MAX: usize = 64 << 10;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The queue and its connection.
#[derive(Debug)]
pub(crate) struct Publisher {
    address: Option<PathBuf>,
    namespace: String,
    queue: VecDeque<Vec<u8>>,
    fd: Option<OwnedFd>,
    output: OutBuf,
    input: Vec<u8>,
    in_flight: bool,
    stream: u32,
    backoff: Duration,
    /// When to try again, or to give up waiting for an answer.
    deadline: Option<Instant>,
}

impl Publisher {
    pub(crate) fn new(address: Option<PathBuf>, namespace: String) -> Publisher {
        Publisher {
            address,
            namespace,
            queue: VecDeque::new(),
            fd: None,
            output: OutBuf::default(),
            input: Vec::new(),
            in_flight: false,
            stream: 1,
            backoff: RETRY_FIRST,
            deadline: None,
        }
    }

    /// Sends `message`, of type `containerd.events.NAME`, on `topic`.
    pub(crate) fn publish(
        &mut self,
        poller: &Poller,
        topic: &str,
        name: &str,
        message: &impl Message,
    ) {
        if self.address.is_none() {
            return;
        }
        let envelope = EventEnvelope {
            timestamp: Some(protos::shim::now()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(protos::shim::pack(&format!("containerd.events.{name}"), message)),
        };
        if self.queue.len() == QUEUE_MAX {
            // Not the one that is being sent.
            self.queue.remove(usize::from(self.in_flight));
        }
        self.queue.push_back(ForwardRequest { envelope: Some(envelope) }.encode_to_vec());
        if self.deadline.is_none() || self.fd.is_some() {
            self.advance(poller);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// To be called when the deadline has passed.
    pub(crate) fn on_deadline(&mut self, poller: &Poller) {
        if self.fd.is_some() {
            self.disconnect(poller);
        } else {
            self.deadline = None;
            self.advance(poller);
        }
    }

    pub(crate) fn on_ready(&mut self, poller: &Poller, flags: EventFlags) {
        let Some(fd) = &self.fd else { return };
        if flags.contains(EventFlags::OUT) {
            match self.output.flush(fd) {
                Ok(true) => poller.modify(fd, Kind::Events, 0, EventFlags::IN),
                Ok(false) => {}
                Err(_) => return self.disconnect(poller),
            }
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            let mut chunk = [0; 4096];
            match rustix::io::read(fd, &mut chunk) {
                Ok(0) => return self.disconnect(poller),
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return self.disconnect(poller),
            }
            self.take_answers(poller);
        }
    }

    fn take_answers(&mut self, poller: &Poller) {
        while let Some(header) = self.input.first_chunk::<{ ttrpc::HEADER_BYTES }>() {
            let header = ttrpc::Header::decode(*header);
            let length = usize::try_from(header.length).unwrap_or(usize::MAX);
            if length > ANSWER_BYTES_MAX {
                return self.disconnect(poller);
            }
            let end = ttrpc::HEADER_BYTES + length;
            if self.input.len() < end {
                return;
            }
            self.input.drain(..end);
            if self.in_flight && header.stream == self.stream {
                // An error answer is final too: sending it again would not change it.
                self.in_flight = false;
                self.stream = self.stream.wrapping_add(2);
                self.queue.pop_front();
                self.backoff = RETRY_FIRST;
                self.deadline = None;
            }
        }
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        self.advance(poller);
    }

    fn advance(&mut self, poller: &Poller) {
        if self.in_flight {
            return;
        }
        let Some(payload) = self.queue.front() else { return };
        let request = ttrpc::Request {
            service: EVENTS_SERVICE.to_owned(),
            method: "Forward".to_owned(),
            payload: payload.clone(),
            ..Default::default()
        };
        let Some(frame) = ttrpc::frame(self.stream, ttrpc::TYPE_REQUEST, &request) else {
            self.queue.pop_front();
            return;
        };
        if self.fd.is_none() && !self.connect(poller) {
            self.retry_later();
            return;
        }
        let Some(fd) = &self.fd else { return };
        if self.output.send(fd, [&frame, &[]]).is_err() {
            return self.disconnect(poller);
        }
        if self.output.len() > 0 {
            poller.modify(fd, Kind::Events, 0, EventFlags::IN | EventFlags::OUT);
        }
        self.in_flight = true;
        self.deadline = Some(Instant::now() + ANSWER_TIMEOUT);
    }

    fn connect(&mut self, poller: &Poller) -> bool {
        let Some(address) = &self.address else { return false };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connected = SocketAddrUnix::new(address).and_then(|target| {
            let fd =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::connect(&fd, &target)?;
            Ok(fd)
        });
        let Ok(fd) = connected else { return false };
        if poller.add(&fd, Kind::Events, 0, EventFlags::IN).is_err() {
            return false;
        }
        self.fd = Some(fd);
        true
    }

    fn disconnect(&mut self, poller: &Poller) {
        if let Some(fd) = self.fd.take() {
            poller.remove(&fd);
        }
        self.output = OutBuf::default();
        self.input = Vec::new();
        self.in_flight = false;
        self.retry_later();
    }

    fn retry_later(&mut self) {
        self.deadline = None;
        if !self.queue.is_empty() {
            self.deadline = Some(Instant::now() + self.backoff);
            self.backoff = (self.backoff * 2).min(RETRY_MAX);
        }
    }
}
