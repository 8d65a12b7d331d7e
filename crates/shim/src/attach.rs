//! The attach socket: clients that take part in a process's streams.
//!
//! Frames: eight bytes of header, `[kind, 0, 0, 0, length_be32]`, and at most 64 KiB of payload;
//! kinds 1 and 2 are what docker's stdcopy has.
//!
//! client → shim: 7 hello, JSON `{"version":1,"container_id","exec_id","stdin","stdout","stderr"}`;
//! 0 input; 4 end of input; 5 size of the terminal (width, height, each u16 big endian).
//! shim → client: 7 hello answer `{"version":1,"terminal":bool}`, sent once the client is
//! registered; 1 stdout; 2 stderr; 3 an error's text, then the connection closes; 6 exit: status
//! u32 big endian, sent after all output, then the connection closes.

use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::poll::{Kind, OutBuf};
use crate::process::{Client, Stage};
use crate::shim::Shim;

/// Version of the protocol.
pub const VERSION: u32 = 1;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;
/// Bytes of a frame's payload.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Clients of one shim at once, as many as there may be execs; more wait until one goes. An idle one costs
/// a descriptor and little memory.
const CLIENTS_MAX: usize = 1024;

/// Kinds of frames.
pub mod kind {
    /// Input, client to shim.
    pub const STDIN: u8 = 0;
    /// Output.
    pub const STDOUT: u8 = 1;
    /// Output.
    pub const STDERR: u8 = 2;
    /// A text, then the end.
    pub const ERROR: u8 = 3;
    /// End of input, client to shim.
    pub const STDIN_END: u8 = 4;
    /// Width and height, client to shim.
    pub const RESIZE: u8 = 5;
    /// The exit status, then the end.
    pub const EXIT: u8 = 6;
    /// The first frame in each direction.
    pub const HELLO: u8 = 7;
}

/// What a client sends first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// Whose streams.
    pub container_id: String,
    /// Empty: the container's first process.
    #[serde(default)]
    pub exec_id: String,
    /// Will send input.
    #[serde(default)]
    pub stdin: bool,
    /// Wants stdout (of a terminal: everything).
    #[serde(default)]
    pub stdout: bool,
    /// Wants stderr.
    #[serde(default)]
    pub stderr: bool,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAnswer {
    /// [`VERSION`].
    pub version: u32,
    /// The process has a terminal: one output stream.
    pub terminal: bool,
}

/// A frame's header.
pub fn header(kind: u8, length: usize) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

/// Kind and length of a frame.
pub fn parse_header(header: [u8; HEADER_BYTES]) -> (u8, usize) {
    let [kind, _, _, _, a, b, c, d] = header;
    (kind, usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX))
}

impl Shim {
    /// Takes new clients in.
    pub(crate) fn on_attach_listener(&mut self) {
        while self.clients.len() < CLIENTS_MAX {
            let Some(fd) = self.spare.accept(&self.attach_listener) else { return };
            if crate::server::is_ours(&fd) {
                self.add_client(fd);
            }
        }
        self.poller.modify(&self.attach_listener, Kind::AttachListener, 0, EventFlags::empty());
    }

    fn add_client(&mut self, fd: OwnedFd) {
        let id = self.fresh_id();
        if self.poller.add(&fd, Kind::Attach, id, EventFlags::IN).is_err() {
            return;
        }
        let client = Client {
            fd,
            input: Vec::new(),
            output: OutBuf::default(),
            process: None,
            stdin: false,
            wants: [false, false],
            closing: false,
            held: false,
            read_end: false,
        };
        self.clients.insert(id, client);
    }

    pub(crate) fn on_client(&mut self, id: u64, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) && !self.flush_client(id) {
            return;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.read_client(id);
            if flags.intersects(EventFlags::HUP | EventFlags::ERR)
                && self.clients.get(&id).is_some_and(|c| c.read_end || !c.held)
            {
                // Both directions are closed and everything was read.
                self.drop_client(id);
            }
        }
    }

    /// Sends what waits; false if the client is gone.
    fn flush_client(&mut self, id: u64) -> bool {
        let Some(client) = self.clients.get_mut(&id) else { return false };
        let before = client.output.len();
        let process = client.process;
        match client.output.flush(&client.fd) {
            Err(_) => {
                self.output_broken(id);
                return false;
            }
            Ok(true) if client.closing => {
                self.drop_client(id);
                return false;
            }
            Ok(true) if client.held => self.poller.remove(&client.fd),
            Ok(true) => self.set_interest(id),
            Ok(false) => {}
        }
        let after = self.clients.get(&id).map_or(0, |c| c.output.len());
        if before != after {
            self.progress();
        }
        if let Some(key) = process
            && after < crate::streams::READER_BYTES_HIGH / 2
        {
            self.resume_outputs(key);
        }
        true
    }

    /// The client takes nothing any more; what it had sent before is still read.
    fn output_broken(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.output = OutBuf::default();
        client.wants = [false, false];
        let process = client.process;
        if client.closing || client.read_end {
            return self.drop_client(id);
        }
        if client.held {
            self.poller.remove(&client.fd);
        } else {
            self.read_client(id);
            if self.clients.get(&id).is_some_and(|c| !c.held) {
                self.drop_client(id);
            }
        }
        if let Some(key) = process {
            self.resume_outputs(key);
        }
    }

    fn set_interest(&mut self, id: u64) {
        let Some(client) = self.clients.get(&id) else { return };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !client.read_end && !client.held);
        flags.set(EventFlags::OUT, client.output.len() > 0);
        self.poller.modify(&client.fd, Kind::Attach, id, flags);
    }

    /// Input has room again: reads what the client sent meanwhile.
    pub(crate) fn release_client(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if !client.held {
            return;
        }
        client.held = false;
        // It was taken out, because a hang-up cannot be masked; or is in for its output alone.
        self.poller.remove(&client.fd);
        if self.poller.add(&client.fd, Kind::Attach, id, EventFlags::IN).is_err() {
            return self.drop_client(id);
        }
        self.set_interest(id);
        self.take_frames(id);
    }

    fn read_client(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.read_end || client.held {
            return;
        }
        let mut chunk = [0; 16 << 10];
        // Everything there is, for a client that has hung up will not be announced again.
        loop {
            let Some(client) = self.clients.get_mut(&id) else { return };
            if client.held {
                return;
            }
            match rustix::io::read(&client.fd, &mut chunk) {
                Ok(0) => {
                    client.read_end = true;
                    self.set_interest(id);
                    return;
                }
                Ok(n) => client.input.extend_from_slice(&chunk[..n]),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                Err(_) => return self.drop_client(id),
            }
            self.take_frames(id);
        }
    }

    /// Acts on whole frames; stops while the process does not take its input.
    fn take_frames(&mut self, id: u64) {
        loop {
            let Some(client) = self.clients.get_mut(&id) else { return };
            if client.closing {
                client.input.clear();
                return;
            }
            let Some(head) = client.input.first_chunk::<HEADER_BYTES>() else { break };
            let (kind, length) = parse_header(*head);
            if length > PAYLOAD_BYTES_MAX {
                return self.refuse(id, "frame larger than 64 KiB");
            }
            if client.input.len() < HEADER_BYTES + length {
                break;
            }
            if kind == kind::STDIN
                && let Some(key) = client.process
                && self.stdin_full(key)
            {
                return self.hold_client(id);
            }
            let Some(client) = self.clients.get_mut(&id) else { return };
            let payload = client.input[HEADER_BYTES..HEADER_BYTES + length].to_vec();
            client.input.drain(..HEADER_BYTES + length);
            self.frame(id, kind, &payload);
        }
        if let Some(client) = self.clients.get_mut(&id)
            && client.input.is_empty()
        {
            client.input = Vec::new();
        }
    }

    fn hold_client(&mut self, id: u64) {
        if let Some(client) = self.clients.get_mut(&id)
            && !client.held
        {
            client.held = true;
            // Output still has to go out, which a removed descriptor would not tell of; it is
            // kept for that as long as the other side lives.
            self.poller.remove(&client.fd);
            if client.output.len() > 0 {
                let flags = EventFlags::OUT;
                // Fails only for want of memory; the client then waits for its input's turn.
                drop(self.poller.add(&client.fd, Kind::Attach, id, flags));
            }
        }
    }

    fn frame(&mut self, id: u64, kind: u8, payload: &[u8]) {
        let Some(client) = self.clients.get(&id) else { return };
        let (process, sends_input) = (client.process, client.stdin);
        match (kind, process) {
            (kind::HELLO, None) => self.hello(id, payload),
            (_, None) => self.refuse(id, "the first frame must be a hello"),
            (kind::STDIN, Some(key)) if sends_input => self.push_stdin(key, payload),
            (kind::STDIN_END, Some(key)) if sends_input => self.close_stdin(key),
            // Of a process that takes no input: docker drops it too.
            (kind::STDIN | kind::STDIN_END, Some(_)) => {}
            (kind::RESIZE, Some(key)) => match payload.first_chunk::<4>() {
                Some([a, b, c, d]) => {
                    let size = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
                    // Of a process that has no terminal (any more): nobody waits for an answer.
                    drop(self.resize(key, size.0, size.1));
                }
                None => self.refuse(id, "resize frame of less than 4 bytes"),
            },
            (kind, Some(_)) => self.refuse(id, &format!("unknown frame kind {kind}")),
        }
    }

    fn hello(&mut self, id: u64, payload: &[u8]) {
        let hello: Hello = match serde_json::from_slice(payload) {
            Ok(hello) => hello,
            Err(error) => return self.refuse(id, &format!("hello: {error}")),
        };
        if hello.version != VERSION {
            let text = format!("attach protocol {}: this shim speaks {VERSION}", hello.version);
            return self.refuse(id, &text);
        }
        let key = match self.find(&hello.container_id, &hello.exec_id) {
            Ok(key) => key,
            Err(error) => return self.refuse(id, &error.chain()),
        };
        let Some(process) = self.processes.get_mut(&key) else { return };
        let Some(client) = self.clients.get_mut(&id) else { return };
        let terminal = process.texts.terminal;
        client.process = Some(key);
        client.wants = [hello.stdout, hello.stderr && !terminal];
        let takes = process.io.stdin.as_mut().filter(|s| hello.stdin && s.attach);
        client.stdin = takes.is_some();
        if let Some(stdin) = takes
            && stdin.once
            && stdin.owner.is_none()
        {
            stdin.owner = Some(id);
        }
        process.io.clients.push(id);
        let ended = matches!(process.stage, Stage::Stopped(_)) && process.io.drained();
        let answer = HelloAnswer { version: VERSION, terminal };
        let answer = serde_json::to_vec(&answer).unwrap_or_default();
        self.send(id, kind::HELLO, &answer);
        if ended {
            self.after_drain(key);
        }
    }

    /// Passes output on to a client that wants it.
    pub(crate) fn send_output(&mut self, id: u64, stream: usize, bytes: &[u8]) {
        if !self.clients.get(&id).is_some_and(|c| c.wants[stream]) {
            return;
        }
        let kind = if stream == 0 { kind::STDOUT } else { kind::STDERR };
        for part in bytes.chunks(PAYLOAD_BYTES_MAX) {
            self.send(id, kind, part);
        }
    }

    /// Tells the exit, and closes.
    pub(crate) fn send_exit(&mut self, id: u64, status: u32) {
        self.send(id, kind::EXIT, &status.to_be_bytes());
        self.close_after_output(id);
    }

    fn refuse(&mut self, id: u64, text: &str) {
        self.send(id, kind::ERROR, text.as_bytes());
        self.close_after_output(id);
    }

    fn close_after_output(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.closing = true;
        if client.output.len() == 0 {
            self.drop_client(id);
        }
    }

    fn send(&mut self, id: u64, kind: u8, payload: &[u8]) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.closing {
            return;
        }
        let waited = client.output.len() > 0;
        let head = header(kind, payload.len());
        if client.output.send(&client.fd, [&head, payload]).is_err() {
            return self.output_broken(id);
        }
        if waited || client.output.len() == 0 {
            return;
        }
        if client.held {
            // See `hold_client`.
            drop(self.poller.add(&client.fd, Kind::Attach, id, EventFlags::OUT));
        } else {
            self.set_interest(id);
        }
    }

    pub(crate) fn drop_client(&mut self, id: u64) {
        let full = self.clients.len() >= CLIENTS_MAX;
        let Some(client) = self.clients.remove(&id) else { return };
        self.poller.remove(&client.fd);
        if full {
            // Who waits is heard again; at the shim's end the listener is not registered any more.
            self.poller.modify(&self.attach_listener, Kind::AttachListener, 0, EventFlags::IN);
        }
        self.progress();
        let Some(key) = client.process else { return };
        let Some(process) = self.processes.get_mut(&key) else { return };
        process.io.clients.retain(|c| *c != id);
        if process.io.stdin.as_ref().is_some_and(|s| s.owner == Some(id)) {
            self.close_stdin(key);
        }
        self.resume_outputs(key);
        self.forget_if_done(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_stdcopys() {
        assert_eq!(header(kind::STDERR, 0x0102), [2, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(parse_header([5, 0, 0, 0, 0, 1, 0, 0]), (5, 65_536));
    }
}
