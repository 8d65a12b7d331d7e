//! Attaching to a container's streams: a client of the shim's attach socket.
//!
//! The shim speaks frames of eight bytes `[kind, 0, 0, 0, length]` and a payload, as docker's own
//! multiplexed stream does: 0 input, 1 output, 2 errors, 3 failure, 4 end of input, 5 resize, 6 exit,
//! 7 hello.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use store_api::ProcessId;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{UnixStream, unix::OwnedReadHalf},
    sync::{mpsc, watch},
};

use super::{
    Container,
    logs::{LogOptions, LogStream},
    record::{Record, Status},
};
use crate::{Engine, Error, Result, detach::DetachKeys};

/// Bytes of a frame's payload, the shim's own limit.
const FRAME_BYTES: usize = 64 << 10;
/// Frames in flight between shim and client: a slow client holds back the container, not the engine.
const QUEUE: usize = 16;
/// How long the exit code may come after the end of the output.
const END_WAIT: Duration = Duration::from_secs(5);
/// Clients that wait for a container's first start.
const PENDING: usize = 64;
/// How long the shim may take to answer a hello, with all that it has to do before; the store gives its
/// calls as long.
const HELLO_WAIT: Duration = Duration::from_secs(60);
/// Pause before a shim is tried again whose queue of connections is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const FAILURE: u8 = 3;
const STDIN_END: u8 = 4;
const EXIT: u8 = 6;
const HELLO: u8 = 7;

/// Query of `POST /containers/{id}/attach`.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    pub logs: bool,
    pub stream: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Empty: docker's ctrl-p ctrl-q.
    pub detach_keys: String,
}

/// What comes out of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The engine's own words; clients show them as an error.
    Failure(String),
}

/// What goes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Data(Bytes),
    End,
}

/// An attached client's two directions. The output ends when the process has ended and everything was
/// delivered, or when the client detached.
pub struct AttachSession {
    pub terminal: bool,
    pub output: mpsc::Receiver<Output>,
    pub input: mpsc::Sender<Input>,
}

/// The engine's ends of a session.
pub(crate) struct Backend {
    pub(crate) output: mpsc::Sender<Output>,
    pub(crate) input: mpsc::Receiver<Input>,
}

/// An attach that waits for the container's first start.
pub(crate) struct Pending {
    backend: Backend,
    wanted: Wanted,
}

/// What the end of a client's input means (moby `stream.(*Config).CopyStreams`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputEnd {
    /// The end of the process's input.
    Closes,
    /// The end of the client's session: others may write on.
    Leaves,
}

/// Which streams, and how a client leaves.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) input_end: InputEnd,
    pub(crate) detach: Option<DetachKeys>,
}

/// Both outputs, no input.
pub(crate) fn wanted_outputs() -> Wanted {
    let input_end = InputEnd::Closes;
    Wanted { stdin: false, stdout: true, stderr: true, input_end, detach: None }
}

pub(crate) fn session(terminal: bool) -> (AttachSession, Backend) {
    let (output, output_end) = mpsc::channel(QUEUE);
    let (input, input_end) = mpsc::channel(QUEUE);
    (AttachSession { terminal, output: output_end, input }, Backend { output, input: input_end })
}

impl Engine {
    /// Attaches to a container, running or about to be started.
    pub async fn container_attach(
        self: &Arc<Self>,
        name: &str,
        options: AttachOptions,
    ) -> Result<AttachSession> {
        let container = self.containers.find(name)?;
        let record = container.snapshot();
        let keys = DetachKeys::parse(&options.detach_keys)?;
        if matches!(record.status, Status::Running { paused: true, .. }) {
            return Err(Error::conflict(format!(
                "Container {} is paused, unpause the container before attach",
                record.id
            )));
        }
        if matches!(record.status, Status::Restarting { .. }) {
            return Err(Error::conflict(format!(
                "Container {} is restarting, wait until the container is running",
                record.id
            )));
        }
        let (session, backend) = session(record.config.tty);
        let wanted = Wanted {
            stdin: options.stdin && record.config.open_stdin,
            stdout: options.stdout,
            stderr: options.stderr,
            input_end: match record.config.stdin_once && !record.config.tty {
                true => InputEnd::Closes,
                false => InputEnd::Leaves,
            },
            // Without a terminal the bytes of the keys are input like any others.
            detach: record.config.tty.then_some(keys),
        };
        if options.logs {
            // What the log has comes first; whatever is written meanwhile is in it too.
            let (engine, container) = (self.clone(), container.clone());
            tokio::spawn(async move {
                let output = backend.output.clone();
                let result = engine.replay_then_attach(&container, backend, wanted, options.stream);
                if let Err(error) = result.await {
                    // A client that left needs no telling.
                    drop(output.send(Output::Failure(error.message)).await);
                }
            });
        } else if options.stream {
            self.attach_stream(&container, backend, wanted).await?;
        }
        self.container_event(&container, "attach");
        Ok(session)
    }

    async fn attach_stream(
        self: &Arc<Self>,
        container: &Arc<Container>,
        backend: Backend,
        wanted: Wanted,
    ) -> Result<()> {
        // A start that is under way has its task before its process runs: wait for it to be over.
        let lifecycle = container.lock_live(container.id.as_str()).await?;
        let running = container.record().status.pid().is_some();
        if !running {
            let mut pending =
                container.pending_attach.lock().unwrap_or_else(PoisonError::into_inner);
            return wait_for_start(&mut pending, Pending { backend, wanted });
        }
        drop(lifecycle);
        let process = ProcessId::init(container.id.as_str());
        let connection = self.connect(&process, &wanted).await?;
        self.pump(container.clone(), connection, backend, wanted, None);
        Ok(())
    }

    async fn replay_then_attach(
        self: &Arc<Self>,
        container: &Arc<Container>,
        backend: Backend,
        wanted: Wanted,
        stream: bool,
    ) -> Result<()> {
        let options =
            LogOptions { stdout: wanted.stdout, stderr: wanted.stderr, ..LogOptions::default() };
        let mut log = LogStream::open(container.clone(), options)?;
        while let Some(line) = log.next().await {
            let line = line?;
            let bytes = Bytes::from(line.text);
            let frame = if line.stderr { Output::Stderr(bytes) } else { Output::Stdout(bytes) };
            if backend.output.send(frame).await.is_err() {
                return Ok(());
            }
        }
        if stream { self.attach_stream(container, backend, wanted).await } else { Ok(()) }
    }

    /// Connects those who attached before the start, now that the task exists and nothing runs yet.
    pub(super) async fn connect_pending(
        self: &Arc<Self>,
        container: &Arc<Container>,
        record: &Record,
    ) {
        let pending = std::mem::take(
            &mut *container.pending_attach.lock().unwrap_or_else(PoisonError::into_inner),
        );
        for Pending { backend, wanted } in pending {
            if backend.output.is_closed() {
                continue;
            }
            let process = ProcessId::init(record.id.as_str());
            match self.connect(&process, &wanted).await {
                Ok(connection) => self.pump(container.clone(), connection, backend, wanted, None),
                Err(error) => {
                    // The client is told; if it left there is nobody to tell.
                    drop(backend.output.send(Output::Failure(error.message)).await);
                }
            }
        }
    }

    /// Opens the shim's attach socket and says hello.
    pub(crate) async fn connect(&self, process: &ProcessId, wanted: &Wanted) -> Result<UnixStream> {
        let point = self.services.extras.attach_point(process).await?;
        let socket = &point.socket;
        let talk = async {
            let mut stream = connect_patiently(socket).await?;
            let hello = serde_json::json!({
                "version": 1,
                "container_id": process.container_id,
                "exec_id": process.exec_id.as_deref().unwrap_or_default(),
                "stdin": wanted.stdin, "stdout": wanted.stdout, "stderr": wanted.stderr,
            });
            stream.write_all(&frame(HELLO, hello.to_string().as_bytes())).await?;
            let (kind, payload) = read_frame(&mut stream).await?;
            Ok::<_, std::io::Error>((stream, kind, payload))
        };
        let (stream, kind, payload) = tokio::time::timeout(HELLO_WAIT, talk)
            .await
            .map_err(|_| {
                Error::internal(format!("{}: the shim does not answer", socket.display()))
            })?
            .map_err(|e| Error::io("attach to", socket, &e))?;
        match kind {
            HELLO => Ok(stream),
            FAILURE => Err(Error::internal(String::from_utf8_lossy(&payload).into_owned())),
            other => Err(Error::internal(format!(
                "{}: the shim answered hello with a frame of kind {other}",
                socket.display()
            ))),
        }
    }

    /// Moves bytes until the process ends or the client goes. With `ended` the session is over only when
    /// that is true: its client asks for the exit code next.
    pub(crate) fn pump(
        self: &Arc<Self>,
        container: Arc<Container>,
        stream: UnixStream,
        backend: Backend,
        wanted: Wanted,
        ended: Option<watch::Receiver<bool>>,
    ) {
        let (reader, writer) = stream.into_split();
        let engine = self.clone();
        let Backend { output, input } = backend;
        tokio::spawn(async move {
            let mut outward = tokio::spawn(forward_output(reader, output.clone()));
            let detached = tokio::select! {
                left = forward_input(input, writer, &wanted) => left == Left::Detached,
                () = output.closed() => false,
                // The session's output ends with the last sender: this task must not hold one longer.
                _ = &mut outward => return until_known(ended).await,
            };
            outward.abort();
            if detached {
                engine.container_event(&container, "detach");
            }
        });
    }
}

impl Container {
    /// Tells those who wait for a start that it failed: their streams end.
    pub(super) fn fail_pending(&self, message: &str) {
        let pending = std::mem::take(
            &mut *self.pending_attach.lock().unwrap_or_else(PoisonError::into_inner),
        );
        tracing::debug!(clients = pending.len(), message, "attached clients let go");
    }
}

/// Connects; as long as too many others wait to be accepted it tries again.
async fn connect_patiently(socket: &std::path::Path) -> std::io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            other => return other,
        }
    }
}

async fn forward_output(mut reader: OwnedReadHalf, output: mpsc::Sender<Output>) {
    loop {
        let frame = match read_frame(&mut reader).await {
            Ok((STDOUT, payload)) => Output::Stdout(payload),
            Ok((STDERR, payload)) => Output::Stderr(payload),
            Ok((FAILURE, payload)) => {
                Output::Failure(String::from_utf8_lossy(&payload).into_owned())
            }
            Ok((EXIT, _)) | Err(_) => return,
            Ok(_) => continue,
        };
        if output.send(frame).await.is_err() {
            return;
        }
    }
}

/// Waits, with a bound, until the end of a process whose output has ended is known.
async fn until_known(ended: Option<watch::Receiver<bool>>) {
    let Some(mut ended) = ended else { return };
    let known = ended.wait_for(|ended| *ended);
    if tokio::time::timeout(END_WAIT, known).await.is_err() {
        tracing::warn!("a process has closed its output, and how it ended is not known");
    }
}

/// Keeps a place for a client that came before the start.
fn wait_for_start(waiting: &mut Vec<Pending>, client: Pending) -> Result<()> {
    // Clients that left before a start need no place.
    waiting.retain(|pending| !pending.backend.output.is_closed());
    if waiting.len() >= PENDING {
        return Err(Error::conflict(format!(
            "{PENDING} clients are attached to the container before its start, no more are taken"
        )));
    }
    waiting.push(client);
    Ok(())
}

/// How a client left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It typed its detach keys.
    Detached,
    /// Its input ended, and with it its session.
    InputEnded,
}

/// Ends when the client leaves by its input.
async fn forward_input(
    mut input: mpsc::Receiver<Input>,
    mut writer: impl AsyncWrite + Unpin,
    wanted: &Wanted,
) -> Left {
    let mut matcher = wanted.detach.clone().map(DetachKeys::matcher);
    while let Some(item) = input.recv().await {
        let sent = match item {
            Input::End if wanted.stdin && wanted.input_end == InputEnd::Leaves => {
                return Left::InputEnded;
            }
            Input::End => writer.write_all(&frame(STDIN_END, &[])).await,
            Input::Data(bytes) => {
                let (bytes, detached) = match &mut matcher {
                    Some(matcher) => matcher.feed(&bytes),
                    None => (bytes.to_vec(), false),
                };
                let mut sent = Ok(());
                for chunk in bytes.chunks(FRAME_BYTES) {
                    sent = writer.write_all(&frame(STDIN, chunk)).await;
                    if sent.is_err() {
                        break;
                    }
                }
                if detached {
                    return Left::Detached;
                }
                sent
            }
        };
        if sent.is_err() {
            break;
        }
    }
    // The connection stays until the output is over.
    std::future::pending().await
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads are cut at FRAME_BYTES");
    let mut bytes = Vec::with_capacity(8 + payload.len());
    bytes.extend_from_slice(&[kind, 0, 0, 0]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

async fn read_frame(reader: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<(u8, Bytes)> {
    let mut header = [0; 8];
    reader.read_exact(&mut header).await?;
    let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > FRAME_BYTES {
        return Err(std::io::Error::other(format!("a frame of {length} bytes from the shim")));
    }
    let mut payload = BytesMut::zeroed(length);
    reader.read_exact(&mut payload).await?;
    Ok((header[0], payload.freeze()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn wanted(input_end: InputEnd) -> Wanted {
        Wanted { stdin: true, stdout: true, stderr: true, input_end, detach: None }
    }

    /// What the shim gets of some input and its end, and whether the client left.
    async fn forwarded(input_end: InputEnd) -> (Vec<u8>, bool) {
        let (sender, input) = mpsc::channel(QUEUE);
        sender.send(Input::Data(Bytes::from_static(b"one"))).await.unwrap();
        sender.send(Input::End).await.unwrap();
        let mut sent = Vec::new();
        let wanted = wanted(input_end);
        let left = {
            let forward = forward_input(input, &mut sent, &wanted);
            // All there is to do is ready: one that goes on waits for the output.
            futures_util::FutureExt::now_or_never(forward)
        };
        (sent, left == Some(Left::InputEnded))
    }

    #[tokio::test]
    async fn the_end_of_input_closes_or_leaves() {
        let data = frame(STDIN, b"one");
        let closed = [data.clone(), frame(STDIN_END, &[])].concat();
        assert_eq!(forwarded(InputEnd::Closes).await, (closed, false));
        assert_eq!(forwarded(InputEnd::Leaves).await, (data, true));
    }

    #[tokio::test]
    async fn a_session_is_over_when_the_exit_code_is_known() {
        let (sender, ended) = watch::channel(false);
        let over = until_known(Some(ended.clone()));
        assert!(futures_util::FutureExt::now_or_never(over).is_none());
        sender.send_replace(true);
        until_known(Some(ended)).await;
        until_known(None).await;
    }

    #[test]
    fn places_before_a_start_are_limited() {
        let mut waiting = Vec::new();
        let mut join = || {
            let (session, backend) = session(false);
            let wanted = wanted(InputEnd::Closes);
            wait_for_start(&mut waiting, Pending { backend, wanted }).map(|()| session)
        };
        let mut sessions: Vec<_> = (0..PENDING).map(|_| join().unwrap()).collect();
        assert_eq!(join().err().unwrap().kind, types::ErrorKind::Conflict);
        // One that left makes room.
        drop(sessions.pop());
        sessions.push(join().unwrap());
        assert!(join().is_err());
    }
}
