//! One TCP connection: two sockets, a pipe for each direction.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use super::{Core, Side};

/// Bytes that one splice may move: the size of a pipe.
const CHUNK: usize = 64 << 10;
/// Splices in one turn and direction before others get theirs.
const BURST: usize = 16;

/// Where a connection stands after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing to do until an event.
    Waiting,
    /// The turn is over but there is more to do.
    More,
    /// Finished or broken.
    Done,
}

/// One direction.
#[derive(Debug)]
struct Flow {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in the pipe.
    held: usize,
    /// The source has ended.
    ended: bool,
    /// The end was passed on.
    closed: bool,
}

/// A client and its target.
#[derive(Debug)]
pub(super) struct Connection {
    sockets: [OwnedFd; 2],
    connected: bool,
    /// Flow 0 goes from client to target, flow 1 back.
    flows: [Flow; 2],
    broken: bool,
}

pub(super) fn accept(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}

impl Flow {
    fn new() -> Result<Self, Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { read, write, held: 0, ended: false, closed: false })
    }

    fn pump(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<Progress, Errno> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        for _ in 0..BURST {
            let mut moved = false;
            if !self.ended && self.held < CHUNK {
                match splice(from, None, &self.write, None, CHUNK - self.held, flags) {
                    Ok(0) => self.ended = true,
                    Ok(n) => {
                        self.held += n;
                        moved = true;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            if self.held > 0 {
                match splice(&self.read, None, to, None, self.held, flags) {
                    Ok(n) => {
                        self.held -= n;
                        moved |= n > 0;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            if self.ended && self.held == 0 {
                if !self.closed {
                    self.closed = true;
                    match rustix::net::shutdown(to, Shutdown::Write) {
                        Ok(()) | Err(Errno::NOTCONN) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                return Ok(Progress::Done);
            }
            if !moved {
                return Ok(Progress::Waiting);
            }
        }
        Ok(Progress::More)
    }
}

impl Connection {
    /// Begins to connect to `target` and registers both sockets, edge-triggered.
    pub(super) fn open(
        core: &Core,
        slot: usize,
        generation: u16,
        client: OwnedFd,
        target: SocketAddr,
    ) -> Result<Self, Errno> {
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let outgoing = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        for socket in [&client, &outgoing] {
            rustix::net::sockopt::set_tcp_nodelay(socket, true)?;
        }
        let connected = match rustix::net::connect(&outgoing, &target) {
            Ok(()) => true,
            Err(Errno::INPROGRESS) => false,
            Err(errno) => return Err(errno),
        };
        let flows = [Flow::new()?, Flow::new()?];
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        core.register(&client, slot, generation, 0, events)?;
        core.register(&outgoing, slot, generation, 1, events)?;
        Ok(Self { sockets: [client, outgoing], connected, flows, broken: false })
    }

    /// Takes note of an event before [`Connection::pump`].
    pub(super) fn note(&mut self, side: Side, flags: EventFlags) {
        if side == 1
            && !self.connected
            && flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP)
        {
            match rustix::net::sockopt::socket_error(&self.sockets[1]) {
                Ok(Ok(())) => self.connected = true,
                Ok(Err(_)) | Err(_) => self.broken = true,
            }
        }
        // A client that is reset while its target is still being connected.
        if side == 0 && flags.contains(EventFlags::ERR) {
            self.broken = true;
        }
    }

    pub(super) fn pump(&mut self) -> Progress {
        if self.broken {
            return Progress::Done;
        }
        if !self.connected {
            return Progress::Waiting;
        }
        let [client, target] = &self.sockets;
        let [out, back] = &mut self.flows;
        match (out.pump(client, target), back.pump(target, client)) {
            (Err(_), _) | (_, Err(_)) => Progress::Done,
            (Ok(Progress::Done), Ok(Progress::Done)) => Progress::Done,
            (Ok(Progress::More), _) | (_, Ok(Progress::More)) => Progress::More,
            _ => Progress::Waiting,
        }
    }
}
