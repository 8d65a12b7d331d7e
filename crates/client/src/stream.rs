//! Bodies of replies that are read while they come.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response};
use hyper::body::{Body as _, Incoming};
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// One JSON message of a stream may not be larger.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The bytes of a reply, as they come.
#[derive(Debug)]
pub struct ByteStream {
    headers: HeaderMap,
    body: Incoming,
}

impl ByteStream {
    pub(crate) fn new(reply: Response<Incoming>) -> ByteStream {
        let (parts, body) = reply.into_parts();
        ByteStream { headers: parts.headers, body }
    }

    /// The reply's header of that name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// The output of several channels is framed (`logs` without a terminal, from 1.42 on).
    pub fn is_multiplexed(&self) -> bool {
        self.header(CONTENT_TYPE.as_str()) == Some("application/vnd.docker.multiplexed-stream")
    }

    /// Reads the stream as JSON messages, one per line.
    pub fn json_lines<T: DeserializeOwned>(self) -> JsonLines<T> {
        JsonLines {
            stream: self,
            buffer: BytesMut::new(),
            scanned: 0,
            done: false,
            item: std::marker::PhantomData,
        }
    }
}

impl Stream for ByteStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        loop {
            let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame {
                None => return Poll::Ready(None),
                Some(Err(source)) => return Poll::Ready(Some(Err(Error::Stream { source }))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}

/// JSON messages separated by line ends.
#[derive(Debug)]
pub struct JsonLines<T> {
    stream: ByteStream,
    buffer: BytesMut,
    /// So much of the buffer has no line end.
    scanned: usize,
    done: bool,
    item: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    /// The next message; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(line) = self.take_line() {
                let line = line.trim_ascii();
                if line.is_empty() {
                    continue;
                }
                return serde_json::from_slice(line).map(Some).map_err(|source| Error::Decode {
                    what: "a message of the stream".to_owned(),
                    source,
                });
            }
            if self.done {
                return Ok(None);
            }
            match self.stream.next().await {
                Some(chunk) => self.buffer.extend_from_slice(&chunk?),
                None => self.done = true,
            }
            if self.buffer.len() > MAX_MESSAGE_BYTES {
                return Err(Error::TooLarge {
                    what: "a message of the stream".to_owned(),
                    limit_bytes: MAX_MESSAGE_BYTES,
                });
            }
        }
    }

    fn take_line(&mut self) -> Option<BytesMut> {
        match self.buffer[self.scanned..].iter().position(|&b| b == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.scanned + at + 1);
                self.scanned = 0;
                Some(line)
            }
            None => {
                self.scanned = self.buffer.len();
                (self.done && !self.buffer.is_empty()).then(|| {
                    self.scanned = 0;
                    self.buffer.split()
                })
            }
        }
    }
}
