//! containerd's streaming service: streams that a client opens under a name of its own, and that a
//! transfer then takes by this name.
//!
//! The first message is a `StreamInit`; the answer to it is an empty message, which says that the
//! stream is known. What flows then is the transfer's: progress, credentials, or an archive in pieces
//! with a window that the receiver opens (containerd's "transfer binary stream protocol").

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use prost::Message;
use protos::{containerd::transfer as proto, shim};
use store_api::{ByteStream, Error};
use tokio::{sync::mpsc, task::AbortHandle};
use tonic::{Request, Response, Status, Streaming as Incoming};
use types::ErrorKind;

use crate::{
    context::{Context, status},
    grpc::BoxStream,
    services::streaming as api,
};

/// Streams of one namespace that no transfer has taken yet, and of all.
const WAITING_MAX: usize = 256;
const WAITING_ALL_MAX: usize = 4096;
/// How long a stream may wait to be taken: clients ask for the transfer right after they opened it.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// How long a client may take to say the stream's name once it has opened it.
const NAMED_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of a stream's name; containerd's client makes them of some 50.
const ID_BYTES: usize = 1024;
/// Messages that wait for a slow client.
const QUEUE: usize = 64;
/// Bytes that a sender of an archive may be ahead.
const WINDOW_BYTES: i32 = 1 << 20;
/// Bytes of one piece that is sent.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces of an archive that wait for the store.
const PIECES: usize = 4;
/// How long a client may take to answer, to send, to open its window, or to take what is sent.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);

pub(crate) struct Streaming(pub(crate) Arc<Context>);

/// One stream as a transfer holds it. Dropping it ends the stream.
pub(crate) struct Stream {
    id: String,
    incoming: Incoming<prost_types::Any>,
    outgoing: mpsc::Sender<Result<prost_types::Any, Status>>,
}

/// Streams that wait for their transfers.
#[derive(Clone)]
pub(crate) struct Streams {
    waiting: Arc<Mutex<HashMap<Key, Waiting>>>,
    taken_within: Duration,
}

impl Default for Streams {
    fn default() -> Self {
        Self { waiting: Arc::default(), taken_within: TAKEN_WITHIN }
    }
}

/// Namespace and name.
type Key = (String, String);

struct Waiting {
    stream: Stream,
    /// Ends the waiting; is itself ended when the stream is taken.
    end: AbortHandle,
}

impl Streams {
    /// Makes a stream known until it is taken, its client goes, or its time is over.
    fn insert(&self, namespace: &str, stream: Stream) -> Result<(), Status> {
        let key = (namespace.to_owned(), stream.id.clone());
        let mut streams = self.lock();
        if streams.contains_key(&key) {
            let text = format!("stream {:?}: already exists", stream.id);
            return Err(Status::already_exists(text));
        }
        let here = streams.keys().filter(|(other, _)| other == namespace).count();
        for (count, limit, place) in [
            (here, WAITING_MAX, namespace),
            (streams.len(), WAITING_ALL_MAX, "all namespaces together"),
        ] {
            if count >= limit {
                let text = format!("{limit} streams wait for a transfer already in {place}");
                return Err(Status::resource_exhausted(text));
            }
        }
        // Inside the lock: the stream is known before its end can come.
        let ending = self.clone().end(key.clone(), stream.outgoing.clone());
        let end = tokio::spawn(ending).abort_handle();
        streams.insert(key, Waiting { stream, end });
        Ok(())
    }

    async fn end(self, key: Key, outgoing: mpsc::Sender<Result<prost_types::Any, Status>>) {
        let gone = tokio::time::timeout(self.taken_within, outgoing.closed()).await.is_ok();
        let mut streams = self.lock();
        // Taken at the last moment, its name may be another one's now.
        if !streams.get(&key).is_some_and(|known| known.stream.outgoing.same_channel(&outgoing)) {
            return;
        }
        let ended = streams.remove(&key);
        drop(streams);
        if !gone {
            let text =
                format!("stream {:?}: no transfer took it within {:?}", key.1, self.taken_within);
            // With a full queue the client only sees that it ended.
            drop(outgoing.try_send(Err(Status::deadline_exceeded(text))));
        }
        drop(ended);
    }

    /// The stream of this name, which is then no longer known.
    pub(crate) fn take(&self, namespace: &str, id: &str) -> Result<Stream, Status> {
        let found = self.lock().remove(&(namespace.to_owned(), id.to_owned()));
        let waiting = found.ok_or_else(|| status(Error::not_found("stream", id)))?;
        waiting.end.abort();
        let Waiting { stream, .. } = waiting;
        Ok(stream)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl api::Streaming for Streaming {
    async fn stream(
        &self,
        request: Request<Incoming<prost_types::Any>>,
    ) -> Result<Response<BoxStream<prost_types::Any>>, Status> {
        let services = self.0.services(request.metadata())?;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(NAMED_WITHIN, incoming.message()).await;
        let first = first.map_err(|_| {
            Status::deadline_exceeded(format!("a stream without a StreamInit for {NAMED_WITHIN:?}"))
        })??;
        let first =
            first.filter(|any| shim::is_type(any, proto::STREAM_INIT)).ok_or_else(|| {
                Status::invalid_argument("a stream begins with a StreamInit: invalid argument")
            })?;
        let id = decode::<proto::StreamInit>(&first)?.id;
        if !(1..=ID_BYTES).contains(&id.len()) {
            let text = format!("a stream's id has 1 to {ID_BYTES} bytes, not {}", id.len());
            return Err(Status::invalid_argument(format!("{text}: invalid argument")));
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
    /// Sends a message; `false` when the client is gone, or has not taken one for [`ANSWER_LIMIT`].
    pub(crate) async fn send(&self, kind: &str, message: &impl Message) -> bool {
        let message = Ok(shim::pack(kind, message));
        self.outgoing.send_timeout(message, ANSWER_LIMIT).await.is_ok()
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
                message = tokio::time::timeout(ANSWER_LIMIT, self.incoming.message()) => {
                    message.map_err(|_| {
                        let text = format!("stream {:?}: no data within {ANSWER_LIMIT:?}", self.id);
                        Status::deadline_exceeded(text)
                    })??
                }
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
                    drop(self.outgoing.send_timeout(Err(status.clone()), ANSWER_LIMIT).await);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tonic::codec::Codec as _;

    use super::*;

    /// For conditions to come true; the machine may be busy.
    const TEST_LIMIT: Duration = Duration::from_secs(30);

    type Answers = mpsc::Receiver<Result<prost_types::Any, Status>>;

    fn stream(id: &str) -> (Stream, Answers) {
        let mut codec = tonic_prost::ProstCodec::<prost_types::Any, prost_types::Any>::default();
        let incoming = Incoming::new_empty(codec.decoder(), tonic::body::Body::empty());
        let (outgoing, answers) = mpsc::channel(QUEUE);
        (Stream { id: id.to_owned(), incoming, outgoing }, answers)
    }

    #[tokio::test]
    async fn what_nobody_takes_ends() {
        let streams = Streams { taken_within: Duration::from_millis(20), ..Default::default() };
        let (late, mut answers) = stream("late");
        streams.insert("a", late).unwrap();
        let ended = tokio::time::timeout(TEST_LIMIT, answers.recv()).await;
        let error = ended.unwrap().unwrap().unwrap_err();
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        assert!(error.message().contains("\"late\""), "{error}");
        assert!(answers.recv().await.is_none());
        assert_eq!(streams.take("a", "late").err().unwrap().code(), tonic::Code::NotFound);

        // One that was taken goes on.
        let streams = Streams::default();
        let (taken, mut answers) = stream("taken");
        streams.insert("a", taken).unwrap();
        let taken = streams.take("a", "taken").unwrap();
        assert!(taken.send(proto::EMPTY, &()).await);
        assert!(answers.recv().await.unwrap().is_ok());
        drop(taken);
        assert!(answers.recv().await.is_none());
    }

    #[tokio::test]
    async fn each_namespace_has_its_limit() {
        let streams = Streams::default();
        let mut clients = Vec::new();
        let mut open = |namespace: &str, id: String| {
            let (stream, answers) = stream(&id);
            clients.push(answers);
            streams.insert(namespace, stream)
        };
        for n in 0..WAITING_MAX {
            open("a", n.to_string()).unwrap();
        }
        let error = open("a", "more".into()).unwrap_err();
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
        assert!(error.message().ends_with("already in a"), "{error}");
        open("b", "0".into()).unwrap();
        assert_eq!(open("b", "0".into()).unwrap_err().code(), tonic::Code::AlreadyExists);
        // With their clients they go too.
        clients.clear();
        let gone = async {
            while !streams.lock().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TEST_LIMIT, gone).await.unwrap();
    }
}
