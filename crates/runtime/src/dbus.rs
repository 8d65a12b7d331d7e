//! A small D-Bus client: method calls and the signals that follow, over one Unix socket.
//!
//! What is spoken is the D-Bus specification's wire format, version 1, little-endian, with EXTERNAL
//! authentication by the socket's credentials (no user id is sent, so that it also works from
//! within a user namespace). Types beyond those that systemd's manager is asked with are refused.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::sync::connect_by;

/// A message of systemd's manager is below 64 KiB; the specification allows 128 MiB.
const MESSAGE_LIMIT_BYTES: usize = 1 << 20;
/// How long all of a connection may take, from connecting to the end of the job that was asked for;
/// runc's value for the job alone.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Signals that are kept for [`Bus::wait_signal`]; the oldest gives way to a new one.
const SIGNAL_LIMIT: usize = 16;
const AUTHENTICATION: &[u8] = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";
const AUTH_LINE_LIMIT_BYTES: usize = 512;

const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// A value in a message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Str(String),
    Bool(bool),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(f64),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    U32s(Vec<u32>),
    /// `as`
    Strs(Vec<String>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
    /// `a(sv)`
    Properties(Vec<(String, Value)>),
    /// `a(sa(sv))` without elements.
    NoAux,
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Str(_) => "s",
            Value::Bool(_) => "b",
            Value::I32(_) => "i",
            Value::U32(_) => "u",
            Value::I64(_) => "x",
            Value::U64(_) => "t",
            Value::F64(_) => "d",
            Value::Bytes(_) => "ay",
            Value::U32s(_) => "au",
            Value::Strs(_) => "as",
            Value::Pairs(_) => "a(ss)",
            Value::Properties(_) => "a(sv)",
            Value::NoAux => "a(sa(sv))",
        }
    }
}

/// What is called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method<'a> {
    pub(crate) destination: &'a str,
    pub(crate) path: &'a str,
    pub(crate) interface: &'a str,
    pub(crate) member: &'a str,
}

/// What came.
#[derive(Debug, Default)]
pub(crate) struct Message {
    kind: u8,
    reply_to: u32,
    error: String,
    member: String,
    signature: String,
    body: Vec<u8>,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Bus {
    stream: UnixStream,
    path: PathBuf,
    serial: u32,
    is_bus: bool,
    /// When everything has to be over.
    deadline: Instant,
    /// What the deadline was, for the error.
    limit: Duration,
    listened: Option<Listened>,
    /// Signals of that kind that came while an answer was waited for.
    signals: VecDeque<Message>,
}

/// Signals that are waited for; others are not kept.
#[derive(Debug)]
struct Listened {
    member: &'static str,
    /// One of the arguments.
    argument: String,
}

impl Bus {
    /// Connects and authenticates. `bus`: a message bus, which wants to be greeted, and not a
    /// service's private socket. `limit`: for this and all that follows on the connection.
    pub(crate) fn connect(path: &Path, bus: bool, limit: Duration) -> Result<Bus> {
        let deadline = Instant::now() + limit;
        let stream = match connect_by(path, deadline) {
            Err(Errno::TIMEDOUT) => return Err(late(path, limit)),
            other => other.ctx("connect to D-Bus", || path.display().to_string())?,
        };
        let mut bus_ = Bus {
            stream: stream.into(),
            path: path.to_owned(),
            serial: 0,
            is_bus: bus,
            deadline,
            limit,
            listened: None,
            signals: VecDeque::new(),
        };
        bus_.authenticate()?;
        if bus {
            let hello = Method {
                destination: "org.freedesktop.DBus",
                path: "/org/freedesktop/DBus",
                interface: "org.freedesktop.DBus",
                member: "Hello",
            };
            bus_.call(hello, &[])?;
        }
        Ok(bus_)
    }

    /// Asks a message bus for the signals that `rule` names (a private socket gives all), and keeps
    /// those of this member with this text among their arguments.
    pub(crate) fn listen(
        &mut self,
        rule: &str,
        member: &'static str,
        argument: &str,
    ) -> Result<()> {
        let add_match = Method {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "AddMatch",
        };
        self.listened = Some(Listened { member, argument: argument.to_owned() });
        match self.is_bus {
            true => self.call(add_match, &[Value::Str(rule.into())]).map(drop),
            false => Ok(()),
        }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn authenticate(&mut self) -> Result<()> {
        // All at once, as systemd's own clients do: its server would leave a message alone that comes
        // together with a BEGIN, until there is another.
        self.write(AUTHENTICATION)?;
        for _ in 0..4 {
            let line = self.line()?;
            if line.starts_with("OK") {
                return Ok(());
            }
            if !line.starts_with("DATA") {
                return Err(self.bad(&format!("authentication was answered by {line:?}")));
            }
        }
        Err(self.bad("authentication does not end"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut byte = [0u8];
        while !line.ends_with(b"\r\n") {
            if line.len() > AUTH_LINE_LIMIT_BYTES {
                return Err(self.bad("a line is too long"));
            }
            self.read(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// What is left of the time; an error if nothing is.
    fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(late(&self.path, self.limit)) } else { Ok(left) }
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let mut at = 0;
        while at < buf.len() {
            let left = self.left()?;
            self.stream.set_read_timeout(Some(left)).ctx("set timeout of D-Bus", || self.name())?;
            match self.stream.read(&mut buf[at..]) {
                Ok(0) => return Err(self.bad("the connection was closed")),
                Ok(n) => at += n,
                Err(e) if is_early(&e) => {}
                Err(e) => return Err(e).ctx("read from D-Bus", || self.name()),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let left = self.left()?;
            self.stream
                .set_write_timeout(Some(left))
                .ctx("set timeout of D-Bus", || self.name())?;
            match self.stream.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if is_early(&e) => {}
                Err(e) => return Err(e).ctx("write to D-Bus", || self.name()),
            }
        }
        Ok(())
    }

    fn bad(&self, problem: &str) -> Error {
        Error::config("D-Bus", format!("{}: {problem}", self.path.display()))
    }

    /// Calls a method and waits for its answer.
    pub(crate) fn call(&mut self, method: Method<'_>, arguments: &[Value]) -> Result<Message> {
        self.serial += 1;
        let message = encode_call(self.serial, method, arguments);
        self.write(&message)?;
        loop {
            let message = self.receive()?;
            match message.kind {
                SIGNAL => self.keep(message),
                RETURN if message.reply_to == self.serial => return Ok(message),
                ERROR if message.reply_to == self.serial => {
                    let text = Reader::new(&message.body).string().unwrap_or_default();
                    return Err(Error::Dbus {
                        method: format!("{}.{}", method.interface, method.member),
                        name: message.error,
                        text,
                    });
                }
                _ => {}
            }
        }
    }

    fn keep(&mut self, signal: Message) {
        if !self.is_listened(&signal) {
            return;
        }
        if self.signals.len() == SIGNAL_LIMIT {
            self.signals.pop_front();
        }
        self.signals.push_back(signal);
    }

    fn is_listened(&self, message: &Message) -> bool {
        self.listened.as_ref().is_some_and(|wanted| {
            message.kind == SIGNAL
                && message.member == wanted.member
                && message.strings().is_some_and(|all| all.contains(&wanted.argument))
        })
    }

    /// Waits for a signal of those listened for whose body `f` takes (`Some`).
    pub(crate) fn wait_signal<T>(&mut self, f: impl Fn(&Message) -> Option<T>) -> Result<T> {
        if let Some(found) = self.signals.iter().find_map(&f) {
            return Ok(found);
        }
        loop {
            let message = self.receive()?;
            if self.is_listened(&message)
                && let Some(found) = f(&message)
            {
                return Ok(found);
            }
        }
    }

    fn receive(&mut self) -> Result<Message> {
        let mut fixed = [0u8; 16];
        self.read(&mut fixed)?;
        if fixed[0] != b'l' || fixed[3] != 1 {
            return Err(self.bad("a message in another byte order or version"));
        }
        let word = |at: usize| {
            let bytes = [fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]];
            usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
        };
        let (body, fields) = (word(4), word(12));
        if body > MESSAGE_LIMIT_BYTES || fields > MESSAGE_LIMIT_BYTES {
            return Err(self.bad("a message is too long"));
        }
        let fields_padded = fields.next_multiple_of(8);
        let mut rest = vec![0u8; fields_padded + body];
        self.read(&mut rest)?;
        let body = rest.split_off(fields_padded);
        decode_fields(fixed[1], &rest[..fields], body)
            .ok_or_else(|| self.bad("a message cannot be read"))
    }
}

fn late(path: &Path, limit: Duration) -> Error {
    let text = format!(
        "{}: no end of the call within {} s (is systemd, or the message bus, held up?)",
        path.display(),
        limit.as_secs_f32()
    );
    Error::config("D-Bus", text)
}

/// To be tried again, while there is time.
fn is_early(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

impl Message {
    /// The arguments as strings; numbers in decimal. `None` for other types.
    pub(crate) fn strings(&self) -> Option<Vec<String>> {
        let mut reader = Reader::new(&self.body);
        let mut out = Vec::new();
        for kind in self.signature.chars() {
            out.push(match kind {
                's' | 'o' => reader.string()?,
                'u' => reader.u32()?.to_string(),
                // A variant of a string, which is what properties are asked for.
                'v' => match reader.signature()?.as_str() {
                    "s" | "o" => reader.string()?,
                    _ => return None,
                },
                _ => return None,
            });
        }
        Some(out)
    }
}

fn encode_call(serial: u32, method: Method<'_>, arguments: &[Value]) -> Vec<u8> {
    let mut body = Writer::default();
    let mut signature = String::new();
    for argument in arguments {
        signature.push_str(argument.signature());
        body.value(argument);
    }
    let mut out = Writer::default();
    out.bytes.extend([b'l', CALL, 0, 1]);
    out.u32(length(&body.bytes));
    out.u32(serial);
    let fields = out.array_start(8);
    for (code, kind, text) in [
        (1u8, "o", method.path),
        (2, "s", method.interface),
        (3, "s", method.member),
        (6, "s", method.destination),
    ] {
        out.pad(8);
        out.bytes.push(code);
        out.signature(kind);
        out.string(text);
    }
    if !signature.is_empty() {
        out.pad(8);
        out.bytes.push(8);
        out.signature("g");
        out.signature(&signature);
    }
    out.array_end(fields);
    out.pad(8);
    out.bytes.extend(body.bytes);
    out.bytes
}

fn decode_fields(kind: u8, fields: &[u8], body: Vec<u8>) -> Option<Message> {
    let mut message = Message { kind, body, ..Message::default() };
    let mut reader = Reader::new(fields);
    while !reader.at_end() {
        reader.pad(8);
        let code = reader.byte()?;
        let signature = reader.signature()?;
        match (code, signature.as_str()) {
            (3, "s") => message.member = reader.string()?,
            (4, "s") => message.error = reader.string()?,
            (5, "u") => message.reply_to = reader.u32()?,
            (8, "g") => message.signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.string()?),
            (_, "u") => drop(reader.u32()?),
            (_, "g") => drop(reader.signature()?),
            _ => return None,
        }
    }
    Some(message)
}

/// Lengths are far below the limit of 2^27 that the specification sets.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, n: u32) {
        self.pad(4);
        self.bytes.extend(n.to_le_bytes());
    }

    fn u64(&mut self, n: u64) {
        self.pad(8);
        self.bytes.extend(n.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.u32(length(text.as_bytes()));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    /// Where the length goes, and where the elements start.
    fn array_start(&mut self, align: usize) -> (usize, usize) {
        self.u32(0);
        let at = self.bytes.len() - 4;
        self.pad(align);
        (at, self.bytes.len())
    }

    fn array_end(&mut self, (at, start): (usize, usize)) {
        let n = length(&self.bytes[start..]);
        self.bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Str(s) => self.string(s),
            Value::Bool(b) => self.u32(u32::from(*b)),
            Value::I32(n) => self.u32(u32::from_le_bytes(n.to_le_bytes())),
            Value::U32(n) => self.u32(*n),
            Value::I64(n) => self.u64(u64::from_le_bytes(n.to_le_bytes())),
            Value::U64(n) => self.u64(*n),
            Value::F64(n) => self.u64(n.to_bits()),
            Value::Bytes(bytes) => {
                let start = self.array_start(1);
                self.bytes.extend(bytes);
                self.array_end(start);
            }
            Value::U32s(list) => {
                let start = self.array_start(4);
                list.iter().for_each(|n| self.u32(*n));
                self.array_end(start);
            }
            Value::Strs(list) => {
                let start = self.array_start(4);
                list.iter().for_each(|s| self.string(s));
                self.array_end(start);
            }
            Value::Pairs(list) => {
                let start = self.array_start(8);
                for (a, b) in list {
                    self.pad(8);
                    self.string(a);
                    self.string(b);
                }
                self.array_end(start);
            }
            Value::Properties(list) => {
                let start = self.array_start(8);
                for (name, value) in list {
                    self.pad(8);
                    self.string(name);
                    self.signature(value.signature());
                    self.value(value);
                }
                self.array_end(start);
            }
            Value::NoAux => {
                let start = self.array_start(8);
                self.array_end(start);
            }
        }
    }
}

/// Reads what [`Writer`] writes; positions are relative to an 8-byte boundary.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    fn at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn pad(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(n)?;
        let part = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(part)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.pad(4);
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn text(&mut self, n: usize) -> Option<String> {
        let text = String::from_utf8(self.take(n)?.to_vec()).ok()?;
        // The closing NUL.
        self.byte()?;
        Some(text)
    }

    fn string(&mut self) -> Option<String> {
        let n = usize::try_from(self.u32()?).ok()?;
        self.text(n)
    }

    fn signature(&mut self) -> Option<String> {
        let n = self.byte()?;
        self.text(n.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let method = Method { destination: "d", path: "/p", interface: "i", member: "m" };
        let bytes = encode_call(7, method, &[Value::Str("ab".into()), Value::U64(5)]);
        assert_eq!(&bytes[..12], [b'l', 1, 0, 1, 16, 0, 0, 0, 7, 0, 0, 0]);
        assert!(bytes.len().is_multiple_of(8));
        let body = &bytes[bytes.len() - 16..];
        assert_eq!(body, [2, 0, 0, 0, b'a', b'b', 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        let fields = usize::from(bytes[12]);
        let decoded = decode_fields(CALL, &bytes[16..16 + fields], Vec::new()).unwrap();
        assert_eq!((decoded.member.as_str(), decoded.signature.as_str()), ("m", "st"));
    }

    #[test]
    fn arrays_count_what_follows_their_padding() {
        let mut w = Writer::default();
        w.value(&Value::Properties(vec![("a".into(), Value::U32s(vec![1, 2]))]));
        // Length 24, padding to 8, "a", signature "au", the array.
        assert_eq!(w.bytes[..8], [24, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(w.bytes.len(), 32);
        assert!(decode_fields(SIGNAL, &[3, 1, b's', 0, 200, 0, 0, 0], Vec::new()).is_none());
    }

    /// A bus at a path of its own: `serve` gets the connection when it is authenticated.
    fn bus<F>(serve: F) -> (PathBuf, std::thread::JoinHandle<()>)
    where
        F: FnOnce(UnixStream) + Send + 'static,
    {
        let path = crate::sync::test_socket();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = [0u8; AUTHENTICATION.len()];
            stream.read_exact(&mut hello).unwrap();
            stream.write_all(b"DATA\r\nOK 1\r\n").unwrap();
            serve(stream);
        });
        (path, thread)
    }

    fn signal(member: &str, unit: &str, job: usize) -> Vec<u8> {
        let mut body = Writer::default();
        body.u32(1);
        for text in [&format!("/job/{job}"), unit, "done"] {
            body.string(text);
        }
        let mut out = Writer::default();
        out.bytes.extend([b'l', SIGNAL, 0, 1]);
        out.u32(length(&body.bytes));
        out.u32(9);
        let fields = out.array_start(8);
        out.bytes.extend([3, 1, b's', 0]);
        out.string(member);
        out.pad(8);
        out.bytes.extend([8, 1, b'g', 0]);
        out.signature("uoss");
        out.array_end(fields);
        out.pad(8);
        out.bytes.extend(body.bytes);
        out.bytes
    }

    const METHOD: Method<'_> = Method { destination: "d", path: "/p", interface: "i", member: "m" };

    #[test]
    fn a_bus_that_talks_on_and_on_gains_no_time() {
        let (path, server) = bus(|mut stream| {
            // Until the other end has had enough.
            while stream.write_all(&signal("UnitNew", "other", 0)).is_ok() {}
        });
        let mut bus = Bus::connect(&path, false, Duration::from_millis(300)).unwrap();
        let e = bus.call(METHOD, &[]).unwrap_err().chain();
        assert!(e.contains("no end of the call within 0.3 s"), "{e}");
        assert!(e.contains(&path.display().to_string()), "{e}");
        drop(bus);
        server.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_bus_that_takes_nobody_is_given_up() {
        let path = crate::sync::test_socket();
        let full = crate::sync::full_listener(&path);
        let e = Bus::connect(&path, false, Duration::from_millis(200)).unwrap_err().chain();
        assert!(e.contains("no end of the call within 0.2 s"), "{e}");
        drop(full);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn only_the_last_signals_of_the_unit_are_kept() {
        let (path, server) = bus(|mut stream| {
            let mut head = [0u8; 16];
            stream.read_exact(&mut head).unwrap();
            for n in 0..SIGNAL_LIMIT * 3 {
                for (member, unit) in
                    [("UnitNew", "u.scope"), ("JobRemoved", "other"), ("JobRemoved", "u.scope")]
                {
                    stream.write_all(&signal(member, unit, n)).unwrap();
                }
            }
            // The answer to call 1.
            let answer =
                [b'l', RETURN, 0, 1, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 5, 1, b'u', 0, 1, 0, 0, 0];
            stream.write_all(&answer).unwrap();
            // Until the other end is closed.
            drop(stream.read_to_end(&mut Vec::new()));
        });
        let mut bus = Bus::connect(&path, false, ANSWER_LIMIT).unwrap();
        bus.listen("", "JobRemoved", "u.scope").unwrap();
        bus.call(METHOD, &[]).unwrap();
        assert_eq!(bus.signals.len(), SIGNAL_LIMIT);
        let last = format!("/job/{}", SIGNAL_LIMIT * 3 - 1);
        let is_last = |m: &Message| m.strings()?.contains(&last).then_some(());
        bus.wait_signal(is_last).unwrap();
        assert!(bus.signals.iter().all(|m| m.strings().unwrap()[2] == "u.scope"));
        drop(bus);
        server.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
