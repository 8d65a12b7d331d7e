//! Bodies in both directions, through bounded channels.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use engine::ByteStream;
use futures_util::StreamExt;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::{ApiError, Reply};

/// A body that is cut off by this error tells the client that it is not whole.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CutOff(String);

pub(crate) type Body = BoxBody<Bytes, CutOff>;

/// What is read of an upload that was refused.
const DRAIN_BYTES: usize = 1 << 30;
const DRAIN_TIME: Duration = Duration::from_secs(30);
/// Chunks in flight.
const QUEUE: usize = 8;

fn never(error: Infallible) -> CutOff {
    match error {}
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(never).boxed()
}

pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Reply {
    let mut bytes = serde_json::to_vec(value)
        .map_err(|e| ApiError::new(types::ErrorKind::Internal, format!("encode the reply: {e}")))?;
    bytes.push(b'\n');
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

pub(crate) fn ok<T: Serialize>(value: &T) -> Reply {
    json(StatusCode::OK, value)
}

/// A streamed reply: what the sender is given is sent on at once; the headers go first.
pub(crate) fn stream(
    content_type: &'static str,
) -> (mpsc::Sender<Result<Bytes, String>>, Response<Body>) {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, String>>(QUEUE);
    let frames = ReceiverStream::new(receiver).map(|chunk| chunk.map(Frame::data).map_err(CutOff));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    (sender, response)
}

/// A tar, or whatever the engine produces as bytes.
pub(crate) fn bytes_reply(content_type: &'static str, stream: ByteStream) -> Response<Body> {
    let frames = ReceiverStream::new(stream)
        .map(|chunk| chunk.map(Frame::data).map_err(|e| CutOff(e.message)));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The request's body as the engine reads it.
pub(crate) fn upload(mut body: Incoming) -> ByteStream {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            let item = match frame {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => Ok(data),
                    Err(_) => continue,
                },
                Err(error) => Err(engine::StreamError::new(
                    types::ErrorKind::Cancelled,
                    format!("the client's upload broke off: {error}"),
                )),
            };
            let failed = item.is_err();
            if sender.send(item).await.is_err() {
                return drain(body).await;
            }
            if failed {
                return;
            }
        }
    });
    receiver
}

/// Reads what nobody wants: with it unread the connection would be reset, and the client never see why it
/// was refused.
pub(crate) async fn drain(mut body: Incoming) {
    let rest = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // A client that goes on for longer has to do without the reason.
    drop(tokio::time::timeout(DRAIN_TIME, rest).await);
}
