//! Between asynchronous streams of bytes and blocking readers and writers, always with bounded queues.

use std::io::{self, Read, Write};

use bytes::Bytes;
use store_api::ByteStream;
use tokio::sync::mpsc;

/// Chunks in flight.
pub(crate) const QUEUE: usize = 8;
/// Bytes of a chunk.
const CHUNK_BYTES: usize = 64 << 10;

/// Reads a stream from a blocking thread.
pub(crate) struct StreamReader {
    stream: ByteStream,
    chunk: Bytes,
}

impl StreamReader {
    pub(crate) fn new(stream: ByteStream) -> Self {
        Self { stream, chunk: Bytes::new() }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.stream.blocking_recv() {
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
}

impl StreamWriter {
    pub(crate) fn new(sender: mpsc::Sender<store_api::Result<Bytes>>) -> Self {
        Self { sender, buffer: Vec::with_capacity(CHUNK_BYTES) }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk =
            Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES)));
        self.sender
            .blocking_send(Ok(chunk))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client went away"))
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

/// Runs `work` on a blocking thread with a writer whose bytes are the stream that is answered; its error
/// becomes the stream's last item.
pub(crate) fn produce(
    work: impl FnOnce(StreamWriter) -> crate::Result<()> + Send + 'static,
) -> ByteStream {
    let (sender, stream) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = work(StreamWriter::new(sender.clone())) {
            // A client that went away needs no telling.
            drop(sender.blocking_send(Err(store_api::Error::new(error.kind, error.message))));
        }
    });
    stream
}
