//! The ttrpc server: frames in, calls of `service`, frames out.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use prost::Message;
use protos::shim::TASK_SERVICE;
use protos::ttrpc;
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use types::ErrorKind;

use crate::error::{Error, Result};
use crate::poll::{Kind, OutBuf};
use crate::process::Conn;
use crate::service::Call;
use crate::shim::Shim;

/// Clients at once.
const CONNS_MAX: usize = 256;
/// Time until accepting is tried again when it could not be done.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client that does not take its answers is cut off at this many bytes.
const ANSWERS_BYTES_MAX: usize = 8 << 20;
/// Calls of one client that wait (Wait); the rest is refused.
const WAITING_MAX: usize = 1024;

/// Whether the process at the other end has our own user, or is root. The sockets' mode says the
/// same; this holds where the file's mode does not count.
pub(crate) fn is_ours(fd: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_peercred(fd).is_ok_and(|peer| {
        peer.uid.is_root() || peer.uid.as_raw() == rustix::process::geteuid().as_raw()
    })
}

/// A descriptor that is given up when there are no others, so that a client who cannot be served is
/// turned away: in the queue it would wake the loop without end.
#[derive(Debug)]
pub(crate) struct Spare {
    spare: Option<OwnedFd>,
    /// Until when no listener is to be asked.
    pub(crate) paused: Option<Instant>,
}

fn spare() -> Option<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

impl Spare {
    pub(crate) fn new() -> Self {
        Self { spare: spare(), paused: None }
    }

    /// The next client of a listener that does not block.
    pub(crate) fn accept(&mut self, listener: &OwnedFd) -> Option<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            match rustix::net::accept_with(listener, flags) {
                Ok(fd) => return Some(fd),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::MFILE | Errno::NFILE) if self.spare.is_some() => {
                    self.spare = None;
                    let turned_away = rustix::net::accept_with(listener, flags).map(drop);
                    self.spare = spare();
                    match turned_away {
                        Ok(()) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                        Err(Errno::AGAIN) => return None,
                        Err(_) => return self.pause(),
                    }
                }
                Err(Errno::AGAIN) => return None,
                // No memory, or no spare to give up: the queue is left alone for a moment.
                Err(_) => return self.pause(),
            }
        }
    }

    fn pause(&mut self) -> Option<OwnedFd> {
        self.paused = Some(Instant::now() + ACCEPT_PAUSE);
        None
    }
}

impl Shim {
    /// After [`Spare::accept`] could not even turn clients away: they wait, unheard, for a moment.
    pub(crate) fn pause_listeners(&mut self) {
        if self.spare.paused.is_some() {
            self.listen(EventFlags::empty());
        }
    }

    pub(crate) fn resume_listeners(&mut self) {
        self.spare.paused = None;
        if self.spare.spare.is_none() {
            self.spare.spare = spare();
        }
        self.listen(EventFlags::IN);
    }

    /// At the shim's end they are not registered any more, which is as well.
    fn listen(&self, flags: EventFlags) {
        self.poller.modify(&self.listener, Kind::Listener, 0, flags);
        // Asked once more than needed if all its places are taken.
        self.poller.modify(&self.attach_listener, Kind::AttachListener, 0, flags);
    }

    /// Takes new clients in.
    pub(crate) fn on_listener(&mut self) {
        while let Some(fd) = self.spare.accept(&self.listener) {
            if self.conns.len() >= CONNS_MAX || !is_ours(&fd) {
                continue;
            }
            let id = self.fresh_id();
            if self.poller.add(&fd, Kind::Conn, id, EventFlags::IN).is_ok() {
                let conn = Conn {
                    fd,
                    input: Vec::new(),
                    output: OutBuf::default(),
                    waiting: 0,
                    closing: false,
                };
                self.conns.insert(id, conn);
            }
        }
    }

    pub(crate) fn on_conn(&mut self, id: u64, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            let Some(conn) = self.conns.get_mut(&id) else { return };
            match conn.output.flush(&conn.fd) {
                Err(_) => return self.drop_conn(id),
                Ok(true) if conn.closing => return self.drop_conn(id),
                Ok(true) => self.poller.modify(&conn.fd, Kind::Conn, id, EventFlags::IN),
                Ok(false) => {}
            }
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.read_conn(id);
        }
    }

    fn read_conn(&mut self, id: u64) {
        let mut chunk = [0; 16 << 10];
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match rustix::io::read(&conn.fd, &mut chunk) {
            Ok(0) => return self.drop_conn(id),
            Ok(n) => conn.input.extend_from_slice(&chunk[..n]),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.drop_conn(id),
        }
        loop {
            let Some(conn) = self.conns.get_mut(&id) else { return };
            if conn.closing {
                conn.input.clear();
                return;
            }
            let Some(head) = conn.input.first_chunk::<{ ttrpc::HEADER_BYTES }>() else { break };
            let head = ttrpc::Header::decode(*head);
            let length = usize::try_from(head.length).unwrap_or(usize::MAX);
            if length > ttrpc::MESSAGE_BYTES_MAX {
                let error = Error::exhausted(format!(
                    "message length {length} exceed maximum message size of {}",
                    ttrpc::MESSAGE_BYTES_MAX
                ));
                self.answer(id, head.stream, Err(error));
                return self.close_conn(id);
            }
            let end = ttrpc::HEADER_BYTES + length;
            if conn.input.len() < end {
                break;
            }
            let request = ttrpc::Request::decode(&conn.input[ttrpc::HEADER_BYTES..end]);
            conn.input.drain(..end);
            if conn.input.is_empty() {
                conn.input = Vec::new();
            }
            if head.kind != ttrpc::TYPE_REQUEST || head.stream.is_multiple_of(2) {
                let error = Error::invalid("not a request on an odd stream");
                self.answer(id, head.stream, Err(error));
                continue;
            }
            match request {
                Ok(request) => self.serve(id, head.stream, &request),
                Err(source) => {
                    let error = Error::Decode { object: "ttrpc request", source };
                    self.answer(id, head.stream, Err(error));
                }
            }
        }
    }

    fn serve(&mut self, conn: u64, stream: u32, request: &ttrpc::Request) {
        if request.service != TASK_SERVICE {
            let error = Error::Refused {
                kind: ErrorKind::NotImplemented,
                text: format!("service {}", request.service),
            };
            return self.answer(conn, stream, Err(error));
        }
        let nanos = u64::try_from(request.timeout_nano).ok().filter(|nanos| *nanos > 0);
        let call = Call { conn, stream, timeout: nanos.map(Duration::from_nanos) };
        match self.call(call, &request.method, &request.payload) {
            Ok(Some(payload)) => self.answer(conn, stream, Ok(payload)),
            Ok(None) => {}
            Err(error) => {
                self.note_failure(&request.method, &error);
                self.answer(conn, stream, Err(error));
            }
        }
    }

    fn note_failure(&mut self, method: &str, error: &Error) {
        self.diagnostics.debug(&format!("{method}: {}", error.chain()));
    }

    /// Notes that a call of this client waits.
    pub(crate) fn begin_waiting(&mut self, conn: u64) -> Result<()> {
        let Some(conn) = self.conns.get_mut(&conn) else { return Ok(()) };
        if conn.waiting == WAITING_MAX {
            return Err(Error::exhausted(format!("more than {WAITING_MAX} calls wait")));
        }
        conn.waiting += 1;
        Ok(())
    }

    /// Notes that a call does not wait any more, without answering it.
    pub(crate) fn cancel_waiting(&mut self, conn: u64) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.waiting = conn.waiting.saturating_sub(1);
        }
    }

    /// Answers a call that waited, as one that is answered at once.
    pub(crate) fn end_call(&mut self, call: &Call, method: &str, answer: Result<Vec<u8>>) {
        if let Err(error) = &answer {
            self.note_failure(method, error);
        }
        self.end_waiting(call.conn, call.stream, answer);
    }

    /// Answers a call that waited.
    pub(crate) fn end_waiting(&mut self, conn: u64, stream: u32, answer: Result<Vec<u8>>) {
        self.cancel_waiting(conn);
        self.answer(conn, stream, answer);
    }

    fn answer(&mut self, id: u64, stream: u32, answer: Result<Vec<u8>>) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let response = match answer {
            Ok(payload) => ttrpc::Response { status: None, payload },
            Err(error) => ttrpc::Response {
                status: Some(ttrpc::Status {
                    code: error.code(),
                    message: error.chain(),
                    details: Vec::new(),
                }),
                payload: Vec::new(),
            },
        };
        let Some(frame) = ttrpc::frame(stream, ttrpc::TYPE_RESPONSE, &response) else {
            let error = Error::exhausted("answer larger than 4 MiB");
            return self.answer(id, stream, Err(error));
        };
        let waited = conn.output.len() > 0;
        if conn.output.send(&conn.fd, [&frame, &[]]).is_err()
            || conn.output.len() > ANSWERS_BYTES_MAX
        {
            return self.drop_conn(id);
        }
        if !waited && conn.output.len() > 0 {
            self.poller.modify(&conn.fd, Kind::Conn, id, EventFlags::IN | EventFlags::OUT);
        }
    }

    /// Closes once the answers are sent.
    pub(crate) fn close_conn(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.closing = true;
        if conn.output.len() == 0 {
            self.drop_conn(id);
        }
    }

    fn drop_conn(&mut self, id: u64) {
        let Some(conn) = self.conns.remove(&id) else { return };
        self.poller.remove(&conn.fd);
        if conn.waiting > 0 {
            for process in self.processes.values_mut() {
                process.waiters.retain(|(waiter, _)| *waiter != id);
            }
        }
    }
}
