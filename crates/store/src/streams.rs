use std::{
    io::{self, Read, Write},
    time::Duration,
};

use bytes::Bytes;
use store_api::ByteStream;
use tokio::{runtime::Handle, sync::mpsc, time::timeout};

use crate::pool::for_client;

/// Bytes of one piece of a stream.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// A client that neither sends nor takes a byte for so long is given up.
const IDLE: Duration = Duration::from_secs(600);

fn idle<T>(_: T) -> io::Error {
    let minutes = IDLE.as_secs() / 60;
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("the transfer was cancelled: the client stood still for {minutes} minutes"),
    )
}

/// Tells a listener how far a reader has come.
pub(crate) struct Watched<'a, R> {
    inner: R,
    bytes: u64,
    tell: &'a (dyn Fn(u64) + Sync),
}

impl<'a, R> Watched<'a, R> {
    pub(crate) fn new(inner: R, tell: &'a (dyn Fn(u64) + Sync)) -> Self {
        Self { inner, bytes: 0, tell }
    }
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes += u64::try_from(n).unwrap_or(0);
        (self.tell)(self.bytes);
        Ok(n)
    }
}

/// A client's stream, read by a blocking thread.
pub(crate) struct StreamReader {
    stream: ByteStream,
    piece: Bytes,
}

impl StreamReader {
    pub(crate) fn new(stream: ByteStream) -> Self {
        Self { stream, piece: Bytes::new() }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let next = match self.stream.try_recv() {
                Ok(item) => Some(item),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
                Err(mpsc::error::TryRecvError::Empty) => for_client(|| {
                    let client = async { timeout(IDLE, self.stream.recv()).await };
                    Handle::current().block_on(client).map_err(idle)
                })?,
            };
            match next {
                None => return Ok(0),
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Err(io::Error::other(error)),
            }
        }
        let n = buffer.len().min(self.piece.len());
        buffer[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

/// A stream to a client, written by a blocking thread in pieces of [`PIECE_BYTES`].
pub(crate) struct StreamWriter {
    stream: mpsc::Sender<store_api::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl StreamWriter {
    pub(crate) fn new(stream: mpsc::Sender<store_api::Result<Bytes>>) -> Self {
        Self { stream, buffer: Vec::with_capacity(PIECE_BYTES) }
    }
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(PIECE_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        if self.buffer.len() == PIECE_BYTES {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES));
        let away = || io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads the stream");
        match self.stream.try_send(Ok(piece.into())) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(away()),
            Err(mpsc::error::TrySendError::Full(piece)) => for_client(|| {
                let client = async { timeout(IDLE, self.stream.send(piece)).await };
                Handle::current().block_on(client).map_err(idle)?.map_err(|_| away())
            }),
        }
    }
}
