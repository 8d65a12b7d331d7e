//! containerd's streaming service: streams that a client opens under a name of its own, and that a
//! transfer then takes by this name.
//!
//! The first message is a `StreamInit`; the answer to it is an empty message, which says that the
//! stream is known. What flows then is the transfer's: progress, credentials, or an archive in pieces
//! with a window that the receiver opens (containerd's "transfer binary stream protocol").

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use prost::Message;
use protos::{containerd::transfer as proto, shim};
use store_api::{ByteStream, Error};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming as Incoming};
use types::ErrorKind;

use crate::{
    context::{Context, status},
    grpc::BoxStream,
    services::streaming as api,
};

/// Streams that no transfer has taken yet, in all namespaces.
const WAITING_MAX: usize = 1024;
/// Messages that wait for a slow client.
const QUEUE: usize = 64;
/// Bytes that a sender of an archive may be ahead.
const WINDOW_BYTES: i32 = 1 << 20;
/// Bytes of one piece that is sent.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces of an archive that wait for the store.
const PIECES: usize = 4;
/// How long a client may take to answer or to open its window.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);

pub(crate) struct Streaming(pub(crate) Arc<Context>);

/// One stream as a transfer holds it. Dropping it ends the stream.
pub(crate) struct Stream {
    id: String,
    incoming: Incoming<prost_types::Any>,
    outgoing: mpsc::Sender<Result<prost_types::Any, Status>>,
}

/// Streams by namespace and name.
#[derive(Default)]
pub(crate) struct Streams(Mutex<HashMap<(String, String), Stream>>);

impl Streams {
    fn insert(&self, namespace: &str, stream: Stream) -> Result<(), Status> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|_, stream| !stream.outgoing.is_closed());
        let key = (namespace.to_owned(), stream.id.clone());
        if streams.contains_key(&key) {
            let text = format!("stream {:?}: already exists", stream.id);
            return Err(Status::already_exists(text));
        }
        if streams.len() >= WAITING_MAX {
            let text = format!("{WAITING_MAX} streams wait for a transfer already");
            return Err(Status::resource_exhausted(text));
        }
        streams.insert(key, stream);
        Ok(())
    }

    /// The stream of this name, which is then no longer known.
    pub(crate) fn take(&self, namespace: &str, id: &str) -> Result<Stream, Status> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = streams.remove(&(namespace.to_owned(), id.to_owned()));
        found.ok_or_else(|| status(Error::not_found("stream", id)))
    }
}

impl api::Streaming for Streaming {
    async fn stream(
        &self,
        request: Request<Incoming<prost_types::Any>>,
    ) -> Result<Response<BoxStream<prost_types::Any>>, Status> {
        let services = self.0.services(request.metadata())?;
        let mut incoming = request.into_inner();
        let first = incoming.message().await?;
        let first =
            first.filter(|any| shim::is_type(any, proto::STREAM_INIT)).ok_or_else(|| {
                Status::invalid_argument("a stream begins with a StreamInit: invalid argument")
            })?;
        let id = decode::<proto::StreamInit>(&first)?.id;
        if id.is_empty() {
            return Err(Status::invalid_argument("a stream needs an id: invalid argument"));
        }
        let (outgoing, messages) = mpsc::channel(QUEUE);
        let known = prost_types::Any { type_url: proto::EMPTY.to_owned(), value: Vec::new() };
        let acknowledged = outgoing.try_send(Ok(known));
        acknowledged.map_err(|_| Status::internal("a new stream takes no message"))?;
        self.0.streams.insert(&services.namespace, Stream { id, incoming, outgoing })?;
        let shutdown = self.0.shutdown.clone();
        let answers = stream::unfold(messages, |mut messages| async move {
            messages.recv().await.map(|message| (message, messages))
        });
        Ok(Response::new(answers.take_until(shutdown.cancelled_owned()).boxed()))
    }
}

fn decode<T: Message + Default>(any: &prost_types::Any) -> Result<T, Status> {
    T::decode(&any.value[..])
        .map_err(|error| Status::invalid_argument(format!("{}: {error}", any.type_url)))
}

impl Stream {
    /// Sends a message; `false` when the client is gone.
    pub(crate) async fn send(&self, kind: &str, message: &impl Message) -> bool {
        self.outgoing.send(Ok(shim::pack(kind, message))).await.is_ok()
    }

    /// Asks, and waits for an answer of type `wanted`.
    pub(crate) async fn ask<T: Message + Default>(
        &mut self,
        kind: &str,
        question: &impl Message,
        wanted: &str,
    ) -> Result<T, Status> {
        let gone = format!("stream {:?} ended before its answer: unavailable", self.id);
        if !self.send(kind, question).await {
            return Err(Status::unavailable(gone));
        }
        let answer = tokio::time::timeout(ANSWER_LIMIT, self.incoming.message()).await;
        let answer = answer.map_err(|_| {
            let text = format!("stream {:?}: no answer within {ANSWER_LIMIT:?}", self.id);
            Status::deadline_exceeded(text)
        })??;
        let answer = answer.ok_or_else(|| Status::unavailable(gone))?;
        if !shim::is_type(&answer, wanted) {
            let text = format!("stream {:?}: {} in place of {wanted}", self.id, answer.type_url);
            return Err(Status::invalid_argument(text));
        }
        decode(&answer)
    }

    /// The archive that the client sends. Memory: the window and [`PIECES`].
    pub(crate) fn receive(self) -> ByteStream {
        let (sender, bytes) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            let ended = self.pass_on(&sender).await;
            if let Err(status) = ended {
                let text = format!("the archive's stream broke off: {}", status.message());
                // The import may have ended by an error of its own.
                drop(sender.send(Err(Error::new(ErrorKind::Unavailable, text))).await);
            }
        });
        bytes
    }

    async fn pass_on(mut self, to: &mpsc::Sender<store_api::Result<Bytes>>) -> Result<(), Status> {
        let mut window: i32 = 0;
        loop {
            if window < WINDOW_BYTES {
                // A client that has sent all may be gone already; what it sent is still to be read.
                let update = proto::WindowUpdate { update: WINDOW_BYTES };
                self.send(proto::WINDOW_UPDATE, &update).await;
                window += WINDOW_BYTES;
            }
            let message = tokio::select! {
                message = self.incoming.message() => message?,
                // The import has ended.
                () = to.closed() => return Ok(()),
            };
            let Some(message) = message else { return Ok(()) };
            if !shim::is_type(&message, proto::DATA) {
                let text = format!("stream {:?}: {} is no data", self.id, message.type_url);
                return Err(Status::invalid_argument(text));
            }
            let data = decode::<proto::Data>(&message)?.data;
            let length = i32::try_from(data.len()).unwrap_or(i32::MAX);
            if length > window {
                let text = format!("stream {:?}: more data than its window takes", self.id);
                return Err(Status::resource_exhausted(text));
            }
            window -= length;
            if to.send(Ok(data)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Sends an archive to its end, as fast as the client opens its window.
    ///
    /// # Errors
    /// That of the archive, which also ends the stream, or that the client does not take it.
    pub(crate) async fn send_all(mut self, mut archive: ByteStream) -> Result<(), Status> {
        let mut window = 0_usize;
        while let Some(piece) = archive.recv().await {
            let mut piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    let status = status(error);
                    // Without it the client would take what it has for the whole.
                    drop(self.outgoing.send(Err(status.clone())).await);
                    return Err(status);
                }
            };
            while !piece.is_empty() {
                while window == 0 {
                    window += self.window_update().await?;
                }
                let data = piece.split_to(piece.len().min(window).min(PIECE_BYTES));
                window -= data.len();
                if !self.send(proto::DATA, &proto::Data { data }).await {
                    return Err(self.not_taken());
                }
            }
        }
        Ok(())
    }

    async fn window_update(&mut self) -> Result<usize, Status> {
        let update = tokio::time::timeout(ANSWER_LIMIT, self.incoming.message()).await;
        let update = update.map_err(|_| {
            let text = format!("stream {:?}: no window within {ANSWER_LIMIT:?}", self.id);
            Status::deadline_exceeded(text)
        })??;
        let update = update.ok_or_else(|| self.not_taken())?;
        if !shim::is_type(&update, proto::WINDOW_UPDATE) {
            let text = format!("stream {:?}: {} is no window", self.id, update.type_url);
            return Err(Status::invalid_argument(text));
        }
        let update = decode::<proto::WindowUpdate>(&update)?.update;
        usize::try_from(update).map_err(|_| {
            Status::invalid_argument(format!("stream {:?}: a window of {update}", self.id))
        })
    }

    fn not_taken(&self) -> Status {
        Status::unavailable(format!("stream {:?} ended before the archive: unavailable", self.id))
    }
}
