//! Between asynchronous streams of bytes and blocking readers and writers, always with bounded queues.
//!
//! Such work goes at the pace of a client, so it has threads of its own, at most [`TRANSFERS`]: those that
//! the engine's short work runs on are never kept waiting by a client. A client that stands still for
//! [`IDLE`] is given up.

use std::{
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use store_api::ByteStream;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, oneshot, watch},
};
use types::ErrorKind;

use crate::{Error, Result};

/// Chunks in flight.
pub(crate) const QUEUE: usize = 8;
/// Bytes of a chunk.
const CHUNK_BYTES: usize = 64 << 10;
/// Transfers at once.
const TRANSFERS: usize = 256;
/// Address space of a transfer's stack, bytes; the kernel gives memory to what is touched of it.
const STACK_BYTES: usize = 1 << 20;
/// A client that neither sends nor takes a byte for so long is given up.
const IDLE: Duration = Duration::from_secs(600);

static SLOTS: Semaphore = Semaphore::const_new(TRANSFERS);

/// Whether a transfer waits for its client, and a way to end it while it does.
pub(crate) struct Activity {
    waiting_since: Mutex<Option<Instant>>,
    cancelled: watch::Sender<Option<String>>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { waiting_since: Mutex::default(), cancelled: watch::channel(None).0 }
    }
}

impl Activity {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.waiting_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long the client has not sent or taken a byte that the transfer waits for.
    pub(crate) fn stalled(&self) -> Duration {
        self.waiting().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Ends the transfer, because the container is being `what`.
    pub(crate) fn cancel(&self, what: &str) {
        let text = format!("the transfer was cancelled: the container is being {what}");
        self.cancelled.send_if_modified(|cancelled| {
            let first = cancelled.is_none();
            cancelled.get_or_insert(text);
            first
        });
    }

    #[cfg(test)]
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.borrow().is_some()
    }

    /// Waits from a blocking thread for the client.
    fn wait_for<T>(&self, handle: &Handle, client: impl Future<Output = T>) -> io::Result<T> {
        *self.waiting() = Some(Instant::now());
        let mut cancelled = self.cancelled.subscribe();
        let waited = handle.block_on(async {
            tokio::select! {
                done = client => Ok(done),
                text = cancelled.wait_for(Option::is_some) => {
                    let text = text.ok().and_then(|text| text.clone()).unwrap_or_default();
                    Err(io::Error::other(text))
                }
                () = tokio::time::sleep(IDLE) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "the transfer was cancelled: the client stood still for {} minutes",
                        IDLE.as_secs() / 60
                    ),
                )),
            }
        });
        *self.waiting() = None;
        waited
    }

    fn check(&self) -> io::Result<()> {
        match &*self.cancelled.borrow() {
            Some(text) => Err(io::Error::other(text.clone())),
            None => Ok(()),
        }
    }
}

/// Reads a stream from a blocking thread.
pub(crate) struct StreamReader {
    stream: ByteStream,
    chunk: Bytes,
    activity: Arc<Activity>,
    handle: Handle,
}

impl StreamReader {
    fn next(&mut self) -> io::Result<Option<store_api::Result<Bytes>>> {
        self.activity.check()?;
        match self.stream.try_recv() {
            Ok(item) => Ok(Some(item)),
            Err(mpsc::error::TryRecvError::Disconnected) => Ok(None),
            Err(mpsc::error::TryRecvError::Empty) => {
                self.activity.wait_for(&self.handle, self.stream.recv())
            }
        }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.next()? {
                None => return Ok(0),
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Err(io::Error::other(error.message)),
            }
        }
        let length = buffer.len().min(self.chunk.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}

/// Writes to a stream from a blocking thread; a reader that went away is a broken pipe.
pub(crate) struct StreamWriter {
    sender: mpsc::Sender<store_api::Result<Bytes>>,
    buffer: Vec<u8>,
    activity: Arc<Activity>,
    handle: Handle,
}

impl StreamWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk =
            Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES)));
        self.activity.check()?;
        let away = || io::Error::new(io::ErrorKind::BrokenPipe, "the client went away");
        match self.sender.try_send(Ok(chunk)) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(away()),
            Err(mpsc::error::TrySendError::Full(item)) => {
                let sent = self.activity.wait_for(&self.handle, self.sender.send(item))?;
                sent.map_err(|_| away())
            }
        }
    }
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES - self.buffer.len();
        let length = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..length]);
        if self.buffer.len() == CHUNK_BYTES {
            self.send()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// Runs `work` on a thread of its own with a writer whose bytes are the stream that is answered; its error
/// becomes the stream's last item.
///
/// # Errors
/// `Unavailable` beyond [`TRANSFERS`].
pub(crate) fn produce(
    activity: Arc<Activity>,
    work: impl FnOnce(StreamWriter) -> Result<()> + Send + 'static,
) -> Result<ByteStream> {
    let (sender, stream) = mpsc::channel(QUEUE);
    let writer = StreamWriter {
        sender: sender.clone(),
        buffer: Vec::with_capacity(CHUNK_BYTES),
        activity: activity.clone(),
        handle: Handle::current(),
    };
    spawn(move |handle| {
        if let Err(error) = work(writer) {
            // A client that went away needs no telling, and one that stands still hears of it when it
            // has read what is there.
            let last = Err(store_api::Error::new(error.kind, error.message));
            if let Err(mpsc::error::TrySendError::Full(last)) = sender.try_send(last) {
                handle.spawn(async move {
                    drop(tokio::time::timeout(IDLE, sender.send(last)).await);
                });
            }
        }
    })?;
    Ok(stream)
}

/// Runs `work` on a thread of its own with a reader of what a client sends.
///
/// # Errors
/// `Unavailable` beyond [`TRANSFERS`], and those of `work`.
pub(crate) async fn receive<T: Send + 'static>(
    activity: Arc<Activity>,
    stream: ByteStream,
    work: impl FnOnce(StreamReader) -> Result<T> + Send + 'static,
) -> Result<T> {
    let reader = StreamReader { stream, chunk: Bytes::new(), activity, handle: Handle::current() };
    let (sender, answer) = oneshot::channel();
    spawn(move |_| drop(sender.send(work(reader))))?;
    answer.await.map_err(|_| Error::internal("the thread of a transfer failed"))?
}

fn spawn(work: impl FnOnce(Handle) + Send + 'static) -> Result<()> {
    let slot = SLOTS.try_acquire().map_err(|_| {
        Error::new(
            ErrorKind::Unavailable,
            format!("too many transfers at once: {TRANSFERS} clients send or take files"),
        )
    })?;
    let handle = Handle::current();
    std::thread::Builder::new()
        .name("transfer".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let _slot = slot;
            work(handle);
        })
        .map_err(|e| Error::internal(format!("start a thread for a transfer: {e}")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_client_that_stands_still_can_be_cancelled() {
        let activity = Arc::new(Activity::default());
        let (client, stream) = mpsc::channel(1);
        client.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
        let received = tokio::spawn(receive(activity.clone(), stream, |mut reader| {
            let mut bytes = Vec::new();
            let end = reader.read_to_end(&mut bytes).map_err(|e| Error::internal(e.to_string()));
            assert_eq!(bytes, b"abc");
            end
        }));
        while activity.stalled().is_zero() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        activity.cancel("started");
        let error = received.await.unwrap().unwrap_err();
        assert!(error.message.contains("the container is being started"), "{error}");
    }

    #[tokio::test]
    async fn what_is_written_comes_out() {
        let mut stream = produce(Arc::default(), |mut writer| {
            writer.write_all(&vec![7; 3 * QUEUE * CHUNK_BYTES]).unwrap();
            writer.flush().unwrap();
            Err(Error::internal("the last word"))
        })
        .unwrap();
        let mut length = 0;
        let mut last = None;
        while let Some(item) = stream.recv().await {
            match item {
                Ok(chunk) => length += chunk.len(),
                Err(error) => last = Some(error.message),
            }
        }
        assert_eq!(length, 3 * QUEUE * CHUNK_BYTES);
        assert_eq!(last.as_deref(), Some("the last word"));
    }

    #[tokio::test]
    async fn an_upload_that_ended_reads_as_its_end() {
        let (client, stream) = mpsc::channel::<store_api::Result<Bytes>>(1);
        drop(client);
        let mut bytes = Vec::new();
        let read = receive(Arc::default(), stream, move |mut reader| {
            reader.read_to_end(&mut bytes).map_err(|e| Error::internal(e.to_string()))
        });
        assert_eq!(read.await.unwrap(), 0);
    }
}
