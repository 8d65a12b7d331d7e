//! Bytes between our stdio and the engine: attached containers, logs, signals, terminal sizes.

use std::io::{self, Read, Write};
use std::time::Duration;

use bytes::Bytes;
use client::{Channel, Client, Demux, Hijacked};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use crate::term::{Escape, Raw};

/// Size of one read, from either side.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks waiting for a slow reader or writer.
const QUEUE_CHUNKS: usize = 8;

/// A thread that writes to stdout and stderr, so that a slow reader of ours does not keep signals
/// from being forwarded.
#[derive(Debug)]
pub(crate) struct Output {
    queue: Option<mpsc::Sender<(bool, Bytes)>>,
    result: Option<oneshot::Receiver<io::Result<()>>>,
}

impl Output {
    pub(crate) fn start() -> Output {
        let (queue, mut chunks) = mpsc::channel::<(bool, Bytes)>(QUEUE_CHUNKS);
        let (done, result) = oneshot::channel();
        std::thread::spawn(move || {
            let mut write = || -> io::Result<()> {
                while let Some((stderr, chunk)) = chunks.blocking_recv() {
                    if stderr {
                        io::stderr().lock().write_all(&chunk)?;
                    } else {
                        let mut stdout = io::stdout().lock();
                        stdout.write_all(&chunk)?;
                        stdout.flush()?;
                    }
                }
                Ok(())
            };
            let result = write();
            chunks.close();
            // Nobody waits any more when the command was given up.
            drop(done.send(result));
        });
        Output { queue: Some(queue), result: Some(result) }
    }

    pub(crate) async fn write(&mut self, stderr: bool, chunk: Bytes) -> Result<()> {
        let sent = match &self.queue {
            Some(queue) => queue.send((stderr, chunk)).await.is_ok(),
            None => false,
        };
        if sent { Ok(()) } else { self.finish().await }
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        self.queue = None;
        match self.result.take() {
            Some(result) => match result.await {
                Ok(result) => result.map_err(Error::output),
                Err(_) => Ok(()),
            },
            None => Ok(()),
        }
    }
}

/// A thread that reads. It lives until the process ends or the reader does.
fn chunks_of(mut reader: impl Read + Send + 'static) -> mpsc::Receiver<io::Result<Bytes>> {
    let (queue, chunks) = mpsc::channel(QUEUE_CHUNKS);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let item = match reader.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => Ok(Bytes::copy_from_slice(&buffer[..n])),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let failed = item.is_err();
            if queue.blocking_send(item).is_err() || failed {
                return;
            }
        }
    });
    chunks
}

/// Stdin as a request body.
pub(crate) fn stdin_body() -> client::Body {
    reader_body(io::stdin())
}

/// What a reader gives, read in a thread of its own, as a request body.
pub(crate) fn reader_body(reader: impl Read + Send + 'static) -> client::Body {
    receiver_body(chunks_of(reader))
}

pub(crate) fn receiver_body(chunks: mpsc::Receiver<io::Result<Bytes>>) -> client::Body {
    client::Body::Stream(Box::pin(futures_util::stream::unfold(chunks, |mut chunks| async move {
        chunks.recv().await.map(|item| (item, chunks))
    })))
}

/// What of an attached container goes where.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// The container has a terminal: its output is not framed.
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) detach_keys: Vec<u8>,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The other side closed the output.
    Closed,
    /// The user typed the detach keys.
    Detached,
}

/// Passes stdin, stdout and stderr until the container's output ends.
pub(crate) async fn pump(conn: Hijacked, session: Session) -> Result<End> {
    let (mut reader, mut writer) = tokio::io::split(conn);
    let raw = (session.tty && session.stdin).then(Raw::enter);
    let wants_output = session.stdout || session.stderr;
    let (tty, stdin) = (session.tty, session.stdin);
    let mut escape = Escape::new(if tty { session.detach_keys.clone() } else { Vec::new() });
    let input = async move {
        if stdin {
            let mut chunks = chunks_of(io::stdin());
            while let Some(chunk) = chunks.recv().await {
                let chunk = chunk.map_err(|source| Error::Stream { what: "read stdin", source })?;
                let mut out = Vec::with_capacity(chunk.len());
                if escape.feed(&chunk, &mut out) {
                    return Ok(End::Detached);
                }
                if writer.write_all(&out).await.is_err() {
                    // The container is gone; its output and status tell the rest.
                    return std::future::pending().await;
                }
            }
            // As above.
            drop(writer.write_all(&escape.rest()).await);
        }
        drop(writer.shutdown().await);
        if !wants_output {
            return Ok(End::Closed);
        }
        // The halves of the connection belong together: keep ours until the output ends.
        let _writer = writer;
        std::future::pending().await
    };
    let output = async move {
        let mut sink = Output::start();
        let mut demux = Demux::default();
        let mut buffer = bytes::BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            match reader.read_buf(&mut buffer).await {
                Ok(0) => break,
                // An engine's end can look like this, over TLS too. What counts is the status,
                // which comes by a connection of its own.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
                    ) =>
                {
                    break;
                }
                Err(source) => return Err(Error::Stream { what: "read output", source }),
                Ok(_) => {}
            }
            let chunk = buffer.split().freeze();
            match tty {
                true => sink.write(false, chunk).await?,
                false => demultiplex(&mut demux, &chunk, &mut sink).await?,
            }
        }
        sink.finish().await?;
        Ok(End::Closed)
    };
    let end = tokio::select! {
        end = input => end,
        end = output => end,
    };
    drop(raw);
    end
}

async fn demultiplex(demux: &mut Demux, chunk: &Bytes, sink: &mut Output) -> Result<()> {
    let mut rest = &chunk[..];
    while let Some((channel, piece)) =
        demux.next(&mut rest).map_err(|e| Error::Invalid(e.to_string()))?
    {
        match channel {
            Channel::Stdout => sink.write(false, chunk.slice_ref(piece)).await?,
            Channel::Stderr => sink.write(true, chunk.slice_ref(piece)).await?,
            Channel::System => {
                let text = String::from_utf8_lossy(piece);
                return Err(Error::Invalid(format!("error from daemon in stream: {text}")));
            }
        }
    }
    Ok(())
}

/// Copies the body of a reply to our stdio; framed output is taken apart.
pub(crate) async fn copy_out(mut body: client::ByteStream, framed: bool) -> Result<()> {
    use futures_util::StreamExt;
    let mut sink = Output::start();
    let mut demux = Demux::default();
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        match framed {
            true => demultiplex(&mut demux, &chunk, &mut sink).await?,
            false => sink.write(false, chunk).await?,
        }
    }
    sink.finish().await
}

/// Whose terminal to resize.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Resize<'a> {
    Container(&'a str),
    Exec(&'a str),
}

async fn resize_once(client: &Client, what: Resize<'_>) -> bool {
    let [height, width] = crate::term::size();
    if height == 0 && width == 0 {
        return true;
    }
    let result = match what {
        Resize::Container(id) => client.container_resize(id, height, width).await,
        Resize::Exec(id) => client.exec_resize(id, height, width).await,
    };
    result.is_ok()
}

/// Keeps the size of a container's terminal the same as ours, for ever.
pub(crate) async fn follow_size(client: &Client, what: Resize<'_>) {
    // The process may not be there yet.
    const RETRIES: u32 = 10;
    for attempt in 0..RETRIES {
        if resize_once(client, what).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10 * u64::from(attempt + 1))).await;
    }
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return std::future::pending().await;
    };
    while changes.recv().await.is_some() {
        resize_once(client, what).await;
    }
}

/// The signals that are passed on, by number on Linux.
const FORWARDED: [(i32, &str); 8] = [
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (10, "USR1"),
    (12, "USR2"),
    (14, "ALRM"),
    (15, "TERM"),
    (18, "CONT"),
];

/// Signals caught from now on.
pub(crate) struct Signals(mpsc::UnboundedReceiver<&'static str>);

impl Signals {
    /// Begins to catch signals. Unbounded, since each entry is one signal from the kernel, which
    /// merges those of a kind that are pending.
    pub(crate) fn catch() -> Signals {
        let (queue, signals) = mpsc::unbounded_channel();
        for (number, name) in FORWARDED {
            let Ok(mut stream) = signal(SignalKind::from_raw(number)) else { continue };
            let queue = queue.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if queue.send(name).is_err() {
                        return;
                    }
                }
            });
        }
        Signals(signals)
    }

    /// Passes them to the container, for ever.
    pub(crate) async fn forward(mut self, client: &Client, id: &str) {
        while let Some(name) = self.0.recv().await {
            // A container that has just ended cannot be signalled; its status tells.
            drop(client.container_kill(id, name).await);
        }
        std::future::pending().await
    }
}
