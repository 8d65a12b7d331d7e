//! Streams that a container writes and reads: attach, exec, logs; and those that wait: stats, wait.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use engine::{AttachOptions, AttachSession, Input, LogLine, LogOptions, Output, WaitCondition};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, server::conn::auto};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

use crate::{
    body::{Body, stream},
    error::{ApiError, Reply, empty},
    listen::Connection,
    request::Context,
    route::Route,
    server::misrouted,
};

const RAW: &str = "application/vnd.docker.raw-stream";
const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
/// How long a client that still sends is listened to once everything was said.
const LINGER: Duration = Duration::from_secs(5);
/// How often a client that sends no more is looked for.
const GONE_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes read from a client at once.
const INPUT_BYTES: usize = 32 << 10;

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const SYSTEM_ERROR: u8 = 3;

pub(crate) async fn dispatch(route: Route, context: &mut Context) -> Reply {
    match route {
        Route::ContainerLogs => logs(context),
        Route::ContainerStats => stats(context).await,
        Route::ContainerAttach => attach(context).await,
        Route::ContainerAttachWs => Err(ApiError::not_implemented("attaching by websocket")),
        Route::ContainerWait => wait(context),
        Route::ExecStart => exec_start(context).await,
        other => misrouted(other),
    }
}

/// stdcopy's framing: stream, three zeros, length in big endian.
fn framed(kind: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(payload.len() + 8);
    frame.put_slice(&[kind, 0, 0, 0]);
    frame.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    frame.put_slice(payload);
    frame.freeze()
}

fn encode(item: Output, terminal: bool) -> Bytes {
    let (kind, bytes) = match item {
        Output::Stdout(bytes) => (STDOUT, bytes),
        Output::Stderr(bytes) => (STDERR, bytes),
        Output::Failure(text) => (SYSTEM_ERROR, Bytes::from(text)),
    };
    if terminal { bytes } else { framed(kind, &bytes) }
}

async fn attach(context: &mut Context) -> Reply {
    let query = &context.query;
    let options = AttachOptions {
        logs: query.flag("logs"),
        stream: query.flag("stream"),
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        detach_keys: query.get("detachKeys").into(),
    };
    let session = context.engine.container_attach(&context.name, options).await?;
    hijack(context, session)
}

/// The stream is there before the process: clients that read the reply's head through a buffer would lose
/// what comes in the same segment.
async fn exec_start(context: &mut Context) -> Reply {
    let start: api_types::ExecStart = context.json().await?;
    let exec = context.engine.exec_inspect(&context.name)?;
    // Told by the status while there still is one.
    context.engine.exec_ready(&context.name)?;
    if start.detach {
        context.engine.exec_start(&context.name, start).await?;
        return Ok(empty(StatusCode::OK));
    }
    let Some(upgrade) = upgrade_of(context) else {
        return match context.engine.exec_start(&context.name, start).await? {
            Some(session) => Ok(plain_session(session, context.body.take())),
            None => Ok(empty(StatusCode::OK)),
        };
    };
    let terminal = exec.process_config.tty;
    let (engine, name) = (context.engine.clone(), context.name.clone());
    let client = context.client.clone();
    tokio::spawn(async move {
        if let Some(mut raw) = upgraded(upgrade).await {
            match engine.exec_start(&name, start).await {
                Ok(Some(session)) => raw.carry(session).await,
                Ok(None) => {}
                Err(error) => {
                    let text = Output::Stdout(format!("{}\r\n", error.message).into());
                    drop(raw.connection.write_all(&encode(text, terminal)).await);
                    drop(raw.connection.shutdown().await);
                }
            }
        }
        drop(client);
    });
    Ok(switching(!terminal && context.version.at_least(42)))
}

/// A connection that is no longer HTTP's.
struct Raw {
    connection: Connection,
    /// What the client sent behind its request.
    early: Bytes,
}

fn upgrade_of(context: &mut Context) -> Option<hyper::upgrade::OnUpgrade> {
    if !context.wants_upgrade() {
        return None;
    }
    context.parts.extensions.remove::<hyper::upgrade::OnUpgrade>()
}

async fn upgraded(upgrade: hyper::upgrade::OnUpgrade) -> Option<Raw> {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(%error, "a client left before its stream began");
            return None;
        }
    };
    match auto::upgrade::downcast::<TokioIo<Connection>>(upgraded) {
        Ok(parts) => Some(Raw { connection: parts.io.into_inner(), early: parts.read_buf }),
        Err(_) => {
            tracing::error!("a client's stream is none that was accepted here");
            None
        }
    }
}

fn switching(multiplexed: bool) -> Response<Body> {
    let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
    let kind = if multiplexed { MULTIPLEXED } else { RAW };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    response
}

/// Hands the connection over to a session: after 101 the bytes are the container's. A client that did not
/// ask for an upgrade gets the output as the reply's body, and the request's body is the input.
fn hijack(context: &mut Context, session: AttachSession) -> Reply {
    let Some(upgrade) = upgrade_of(context) else {
        return Ok(plain_session(session, context.body.take()));
    };
    let multiplexed = !session.terminal && context.version.at_least(42);
    let client = context.client.clone();
    tokio::spawn(async move {
        if let Some(raw) = upgraded(upgrade).await {
            raw.carry(session).await;
        }
        drop(client);
    });
    Ok(switching(multiplexed))
}

impl Raw {
    async fn carry(self, session: AttachSession) {
        let watched = match self.connection.as_fd().try_clone_to_owned() {
            Ok(watched) => watched,
            Err(error) => {
                tracing::warn!(%error, "a client's stream cannot be watched");
                return;
            }
        };
        let (read, write) = tokio::io::split(self.connection);
        carry(session, (self.early, read), write, gone(watched)).await;
    }
}

/// Ends once the peer has closed the connection altogether; closing its sending half is no such end.
async fn gone(socket: OwnedFd) {
    loop {
        tokio::time::sleep(GONE_INTERVAL).await;
        let mut watched = [PollFd::new(&socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let polled = rustix::event::poll(&mut watched, Some(&now));
        if polled.is_ok() && watched[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return;
        }
    }
}

/// Both directions until the output has ended or the client has gone; the end of the input alone is
/// passed on and ends nothing.
async fn carry(
    session: AttachSession,
    (early, mut read): (Bytes, impl AsyncRead + Send + Unpin + 'static),
    mut write: impl AsyncWrite + Unpin,
    gone: impl Future<Output = ()>,
) {
    let AttachSession { terminal, mut output, input } = session;
    let (ended, ended_seen) = tokio::sync::oneshot::channel();
    let reader = tokio::spawn(async move {
        let mut open = early.is_empty() || input.send(Input::Data(early)).await.is_ok();
        let mut buffer = BytesMut::with_capacity(INPUT_BYTES);
        while open {
            buffer.reserve(INPUT_BYTES);
            let item = match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => Input::End,
                Ok(_) => Input::Data(buffer.split().freeze()),
            };
            let end = item == Input::End;
            open = input.send(item).await.is_ok() && !end;
        }
        // What still comes is read and let go, so that a client that writes is not stuck.
        while matches!(read.read(&mut [0; 4096]).await, Ok(n) if n > 0) {}
        // Nobody waits when the output has ended first.
        ended.send(()).unwrap_or_default();
    });
    let gone = async {
        // Whoever has not finished sending has not gone.
        if ended_seen.await.is_ok() {
            gone.await;
        } else {
            std::future::pending().await
        }
    };
    let tell = async {
        while let Some(item) = output.recv().await {
            let bytes = encode(item, terminal);
            if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                break;
            }
        }
        drop(write.shutdown().await);
    };
    let mut reader = reader;
    tokio::select! {
        () = tell => {
            // Closed with something unread, the connection would be reset, and what the client has not
            // read yet be lost.
            if tokio::time::timeout(LINGER, &mut reader).await.is_err() {
                reader.abort();
            }
        }
        () = gone => reader.abort(),
    }
}

fn plain_session(session: AttachSession, body: Option<Incoming>) -> Response<Body> {
    let AttachSession { terminal, mut output, input } = session;
    let (sender, response) = stream(RAW);
    tokio::spawn(async move {
        let feed = feed(body, input);
        let tell = async {
            while let Some(item) = next_unless_gone(&sender, &mut output).await {
                if sender.send(Ok(encode(item, terminal))).await.is_err() {
                    break;
                }
            }
        };
        tokio::pin!(tell);
        tokio::select! {
            () = &mut tell => {}
            () = feed => tell.await,
        }
    });
    response
}

async fn feed(body: Option<Incoming>, input: mpsc::Sender<Input>) {
    let mut body = body;
    while let Some(Ok(frame)) = match &mut body {
        Some(body) => body.frame().await,
        None => None,
    } {
        if let Ok(data) = frame.into_data()
            && input.send(Input::Data(data)).await.is_err()
        {
            return;
        }
    }
    drop(input.send(Input::End).await);
}

async fn next_unless_gone<T, S>(
    sender: &mpsc::Sender<S>,
    source: &mut mpsc::Receiver<T>,
) -> Option<T> {
    tokio::select! {
        biased;
        () = sender.closed() => None,
        item = source.recv() => item,
    }
}

fn logs(context: &mut Context) -> Reply {
    let query = &context.query;
    let time = |key: &str| match query.get(key) {
        "" | "0" => Ok(None),
        text => engine::parse_time(text).map(Some),
    };
    let tail = match query.get("tail") {
        "" | "all" => None,
        // docker: what is not a number of lines means all of them.
        text => text.parse::<i64>().ok().and_then(|lines| u64::try_from(lines).ok()),
    };
    let options = LogOptions {
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        follow: query.flag("follow"),
        since: time("since")?,
        until: time("until")?,
        tail,
    };
    let (timestamps, details) = (query.flag("timestamps"), query.flag("details"));
    let (mut lines, terminal) = context.engine.container_logs(&context.name, options)?;
    let multiplexed = !terminal && context.version.at_least(42);
    let (sender, response) = stream(if multiplexed { MULTIPLEXED } else { RAW });
    tokio::spawn(async move {
        loop {
            let line = tokio::select! {
                biased;
                () = sender.closed() => return,
                line = lines.next() => line,
            };
            let bytes = match line {
                None => return,
                Some(Ok(line)) => {
                    let text = log_text(&line, timestamps, details);
                    let kind = if line.stderr { STDERR } else { STDOUT };
                    if terminal { Bytes::from(text) } else { framed(kind, text.as_bytes()) }
                }
                Some(Err(error)) => {
                    let text = format!("Error grabbing logs: {}\n", error.message);
                    let bytes =
                        if terminal { text.into() } else { framed(SYSTEM_ERROR, text.as_bytes()) };
                    drop(sender.send(Ok(bytes)).await);
                    return;
                }
            };
            if sender.send(Ok(bytes)).await.is_err() {
                return;
            }
        }
    });
    Ok(response)
}

/// An entry as `docker logs` shows it: time, attributes, text.
fn log_text(line: &LogLine, timestamps: bool, details: bool) -> String {
    let mut text = String::with_capacity(line.text.len() + 32);
    if timestamps {
        text.push_str(&fixed_nanos(&line.time));
        text.push(' ');
    }
    if details {
        let pairs: Vec<String> = line
            .attrs
            .iter()
            .map(|(key, value)| format!("{}={}", escape(key), escape(value)))
            .collect();
        text.push_str(&pairs.join(","));
        text.push(' ');
    }
    text.push_str(&line.text);
    text
}

/// Query escaping, as moby does for `details`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// The log has times without trailing zeros; replies have nine digits (moby's RFC3339NanoFixed).
fn fixed_nanos(time: &str) -> String {
    let Some(body) = time.strip_suffix('Z') else { return time.to_string() };
    let (seconds, fraction) = body.split_once('.').unwrap_or((body, ""));
    format!("{seconds}.{fraction:0<9}Z")
}

fn json_line<T: Serialize>(value: &T) -> Option<Bytes> {
    let mut line = serde_json::to_vec(value).ok()?;
    line.push(b'\n');
    Some(line.into())
}

async fn stats(context: &mut Context) -> Reply {
    let streaming = context.query.flag_or_yes("stream");
    let one_shot = context.query.flag("one-shot");
    let mut samples = context.engine.container_stats(&context.name, streaming, one_shot)?;
    let (sender, response) = stream("application/json");
    tokio::spawn(async move {
        loop {
            let sample = tokio::select! {
                biased;
                () = sender.closed() => return,
                sample = samples.next() => sample,
            };
            let Some(line) = sample.as_ref().and_then(json_line) else { return };
            if sender.send(Ok(line)).await.is_err() {
                return;
            }
        }
    });
    Ok(response)
}

/// The reply's head goes out once the wait has begun: clients start the container after it.
fn wait(context: &mut Context) -> Reply {
    let condition: WaitCondition = context.query.get("condition").parse()?;
    let waiter = context.engine.wait(&context.name, condition)?;
    let (sender, response) = stream("application/json");
    tokio::spawn(async move {
        let ended = tokio::select! {
            biased;
            () = sender.closed() => return,
            ended = waiter.wait() => ended,
        };
        if let Some(line) = json_line(&ended) {
            drop(sender.send(Ok(line)).await);
        }
    });
    Ok(response)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(&framed(2, b"ab")[..], b"\x02\0\0\0\0\0\0\x02ab");
        assert_eq!(encode(Output::Stdout("x".into()), true), "x");
        assert_eq!(&encode(Output::Failure("no".into()), false)[..], b"\x03\0\0\0\0\0\0\x02no");
    }

    #[test]
    fn log_lines_in_all_dresses() {
        let line = LogLine {
            text: "hi\n".into(),
            stderr: false,
            time: "2024-01-02T03:04:05.1Z".into(),
            attrs: [("a b".to_string(), "c,d".to_string())].into_iter().collect(),
        };
        assert_eq!(log_text(&line, false, false), "hi\n");
        assert_eq!(log_text(&line, true, false), "2024-01-02T03:04:05.100000000Z hi\n");
        assert_eq!(log_text(&line, true, true), "2024-01-02T03:04:05.100000000Z a+b=c%2Cd hi\n");
    }

    #[tokio::test]
    async fn only_a_whole_close_is_an_end() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let watched = ours.as_fd().try_clone_to_owned().unwrap();
        let gone = tokio::spawn(gone(watched));
        let std = theirs.into_std().unwrap();
        std.shutdown(std::net::Shutdown::Write).unwrap();
        tokio::time::sleep(GONE_INTERVAL * 3).await;
        assert!(!gone.is_finished());
        drop(std);
        gone.await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_input_does_not_end_the_output() {
        let (output, received) = mpsc::channel(4);
        let (input, mut fed) = mpsc::channel(4);
        let session = AttachSession { terminal: false, output: received, input };
        let (client, server) = tokio::io::duplex(1024);
        let (read, write) = tokio::io::split(server);
        let carrying =
            tokio::spawn(carry(session, (Bytes::new(), read), write, std::future::pending()));
        let (mut from_server, mut to_server) = tokio::io::split(client);
        to_server.write_all(b"question").await.unwrap();
        to_server.shutdown().await.unwrap();
        assert_eq!(fed.recv().await, Some(Input::Data("question".into())));
        assert_eq!(fed.recv().await, Some(Input::End));
        output.send(Output::Stdout("answer".into())).await.unwrap();
        drop(output);
        let mut text = Vec::new();
        from_server.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"\x01\0\0\0\0\0\0\x06answer");
        carrying.await.unwrap();
    }
}
