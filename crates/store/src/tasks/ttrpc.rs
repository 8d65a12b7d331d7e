//! A ttrpc client on a unix socket: many calls at once over one connection.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use prost::Message;
use protos::ttrpc::{self, HEADER_BYTES, Header, MESSAGE_BYTES_MAX};
use store_api::{Error, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{oneshot, watch},
    task::JoinHandle,
};
use types::ErrorKind;

/// gRPC code 2, which [`ErrorKind`] has no name for.
const CODE_UNKNOWN: i32 = 2;

type Pending = Arc<Mutex<HashMap<u32, oneshot::Sender<ttrpc::Response>>>>;

/// A connection; dropping it ends every call.
pub(super) struct Client {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Pending,
    next: AtomicU32,
    closed: watch::Receiver<bool>,
    reader: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Reads one frame; `None` at the end of the stream, or on what is not a frame.
pub(super) async fn read_frame(
    reader: &mut (impl AsyncReadExt + Unpin),
) -> Option<(Header, Vec<u8>)> {
    let mut head = [0; HEADER_BYTES];
    reader.read_exact(&mut head).await.ok()?;
    let head = Header::decode(head);
    let length = usize::try_from(head.length).ok().filter(|n| *n <= MESSAGE_BYTES_MAX)?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

impl Client {
    /// Connects to a socket's path.
    ///
    /// # Errors
    /// `Unavailable`: nobody listens.
    pub(super) async fn connect(socket: &Path) -> Result<Client> {
        let stream = UnixStream::connect(socket).await.map_err(|error| {
            let text = format!("connect to shim at {}: {error}", socket.display());
            Error::new(ErrorKind::Unavailable, text)
        })?;
        let (read, write) = stream.into_split();
        let pending = Pending::default();
        let (close, closed) = watch::channel(false);
        let reader = tokio::spawn(read_answers(read, pending.clone(), close));
        Ok(Client {
            writer: tokio::sync::Mutex::new(write),
            pending,
            next: AtomicU32::new(1),
            closed,
            reader,
        })
    }

    /// Ends when the other side is gone.
    pub(super) async fn closed(&self) {
        // The sender's end means the same.
        drop(self.closed.clone().wait_for(|closed| *closed).await);
    }

    /// Calls the task service; `limit`: how long to wait, `None`: until the connection ends.
    pub(super) async fn call<R: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
        limit: Option<Duration>,
    ) -> Result<R> {
        let answer = self.round_trip(method, message, limit);
        let response = match limit {
            Some(limit) => tokio::time::timeout(limit, answer).await.map_err(|_| {
                let text = format!("shim: no answer to {method} within {limit:?}");
                Error::new(ErrorKind::DeadlineExceeded, text)
            })??,
            None => answer.await?,
        };
        match response.status {
            Some(status) if status.code != 0 => {
                let kind = match status.code {
                    CODE_UNKNOWN => ErrorKind::Internal,
                    code => ErrorKind::from_grpc_code(code),
                };
                Err(Error::new(kind, status.message))
            }
            _ => R::decode(&response.payload[..])
                .map_err(|error| Error::internal(format!("shim: answer to {method}: {error}"))),
        }
    }

    async fn round_trip(
        &self,
        method: &str,
        message: &impl Message,
        limit: Option<Duration>,
    ) -> Result<ttrpc::Response> {
        let lost = || {
            Error::new(ErrorKind::Unavailable, format!("shim: connection closed during {method}"))
        };
        let request = ttrpc::Request {
            service: protos::shim::TASK_SERVICE.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            timeout_nano: limit.and_then(|l| i64::try_from(l.as_nanos()).ok()).unwrap_or(0),
            metadata: Vec::new(),
        };
        let stream = self.next.fetch_add(2, Ordering::Relaxed);
        let frame = ttrpc::frame(stream, ttrpc::TYPE_REQUEST, &request).ok_or_else(|| {
            Error::new(ErrorKind::ResourceExhausted, format!("shim: {method} larger than 4 MiB"))
        })?;
        let (sender, receiver) = oneshot::channel();
        let forget = Forget { pending: &self.pending, stream };
        lock(&self.pending).insert(stream, sender);
        if *self.closed.borrow() {
            return Err(lost());
        }
        self.writer.lock().await.write_all(&frame).await.map_err(|_| lost())?;
        let answer = receiver.await.map_err(|_| lost());
        drop(forget);
        answer
    }
}

/// Removes a call that nobody waits for any more.
struct Forget<'a> {
    pending: &'a Pending,
    stream: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.pending).remove(&self.stream);
    }
}

fn lock(
    pending: &Pending,
) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<ttrpc::Response>>> {
    pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn read_answers(mut read: OwnedReadHalf, pending: Pending, close: watch::Sender<bool>) {
    while let Some((head, body)) = read_frame(&mut read).await {
        let Ok(response) = ttrpc::Response::decode(&body[..]) else { break };
        if let Some(sender) = lock(&pending).remove(&head.stream) {
            // The caller may have stopped waiting.
            drop(sender.send(response));
        }
    }
    close.send_replace(true);
    lock(&pending).clear();
}
