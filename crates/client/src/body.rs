//! Bodies of requests.

use std::io;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;

/// What hyper sends.
pub(crate) type HyperBody = BoxBody<Bytes, io::Error>;

/// The body of a request.
#[derive(Default)]
pub enum Body {
    #[default]
    Empty,
    /// `application/json`.
    Json(Vec<u8>),
    /// Bytes whose type the caller names in a header.
    Bytes(Bytes),
    /// Chunked, of unknown length.
    Stream(Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send + Sync>>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Body::Empty => f.write_str("Empty"),
            Body::Json(json) => f.debug_tuple("Json").field(&json.len()).finish(),
            Body::Bytes(bytes) => f.debug_tuple("Bytes").field(&bytes.len()).finish(),
            Body::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl Body {
    /// Serialises `value`.
    pub fn json<T: serde::Serialize>(value: &T) -> Body {
        Body::Json(serde_json::to_vec(value).expect("wire types have string keys and no errors"))
    }

    /// Can be sent a second time.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Body::Stream(_))
    }

    pub(crate) fn is_json(&self) -> bool {
        matches!(self, Body::Json(_))
    }

    pub(crate) fn into_hyper(self) -> HyperBody {
        let full = |bytes: Bytes| Full::new(bytes).map_err(|never| match never {}).boxed();
        match self {
            Body::Empty => Empty::new().map_err(|never| match never {}).boxed(),
            Body::Json(json) => full(Bytes::from(json)),
            Body::Bytes(bytes) => full(bytes),
            Body::Stream(stream) => {
                BodyExt::boxed(StreamBody::new(stream.map(|r| r.map(Frame::data))))
            }
        }
    }
}
