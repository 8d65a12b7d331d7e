//! ttrpc: the frame header and the two messages that travel in frames.
//!
//! A frame is ten bytes of header and the message: length of the message (u32, big endian),
//! stream (u32, big endian; odd, chosen by the client), type, flags (0).
//! Source: containerd/ttrpc `PROTOCOL.md`.

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 10;
/// Largest message, in bytes; containerd's `messageLengthMax`.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Type of a frame that holds a [`Request`].
pub const TYPE_REQUEST: u8 = 1;
/// Type of a frame that holds a [`Response`].
pub const TYPE_RESPONSE: u8 = 2;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the message that follows.
    pub length: u32,
    /// Which call it belongs to.
    pub stream: u32,
    /// [`TYPE_REQUEST`] or [`TYPE_RESPONSE`].
    pub kind: u8,
    /// None are defined for unary calls.
    pub flags: u8,
}

impl Header {
    /// Reads the ten bytes.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Header {
        let [a, b, c, d, e, f, g, h, kind, flags] = bytes;
        Header {
            length: u32::from_be_bytes([a, b, c, d]),
            stream: u32::from_be_bytes([e, f, g, h]),
            kind,
            flags,
        }
    }

    /// Writes the ten bytes.
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let [a, b, c, d] = self.length.to_be_bytes();
        let [e, f, g, h] = self.stream.to_be_bytes();
        [a, b, c, d, e, f, g, h, self.kind, self.flags]
    }
}

/// A whole frame around `message`; `None` if that is larger than [`MESSAGE_BYTES_MAX`].
pub fn frame(stream: u32, kind: u8, message: &impl prost::Message) -> Option<Vec<u8>> {
    let size = message.encoded_len();
    if size > MESSAGE_BYTES_MAX {
        return None;
    }
    let header = Header { length: u32::try_from(size).ok()?, stream, kind, flags: 0 };
    let mut out = Vec::with_capacity(HEADER_BYTES + size);
    out.extend_from_slice(&header.encode());
    message.encode(&mut out).ok()?;
    Some(out)
}

/// A call.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Full name of the service, `containerd.task.v2.Task`.
    #[prost(string, tag = "1")]
    pub service: String,
    #[prost(string, tag = "2")]
    pub method: String,
    /// The method's own request message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long the client waits, in nanoseconds; 0: without bound.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// Its answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// Absent or code 0: success.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// One entry of a call's metadata.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// A gRPC status code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<prost_types::Any>,
}
