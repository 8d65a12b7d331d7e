//! The client: requests, replies, negotiation, hijacking.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, OnceLock};
use std::task::{Context, Poll};

use api_types::{ApiVersion, ErrorBody};
use bytes::{Buf, Bytes};
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, UPGRADE, USER_AGENT};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::{Body, HyperBody};
use crate::conn::{self, Conn, Endpoint, Lookup};
use crate::stream::ByteStream;
use crate::tls::TlsOptions;
use crate::{Error, Result};

/// A reply that is read as a whole may not be larger (a `ps` of 10,000 containers is ~20 MB).
const MAX_REPLY_BYTES: usize = 256 << 20;
/// An error reply is a sentence.
const MAX_ERROR_BYTES: usize = 1 << 20;
/// Idle connections kept for the next request.
const MAX_IDLE: usize = 8;

/// How to make a client.
#[derive(Debug, Clone)]
pub struct Options {
    pub endpoint: Endpoint,
    pub tls: Option<TlsOptions>,
    /// Fixed API version (`DOCKER_API_VERSION`): no negotiation.
    pub api_version: Option<ApiVersion>,
    pub user_agent: String,
    /// Sent with every request (`HttpHeaders` of config.json).
    pub headers: BTreeMap<String, String>,
    /// For names of tcp hosts that are not in `/etc/hosts`.
    pub lookup: Option<Lookup>,
}

/// One engine. Cheap to share by reference; every call takes a connection of its own.
#[derive(Debug)]
pub struct Client {
    options: Options,
    ping: OnceLock<Ping>,
    idle: Mutex<Vec<SendRequest<HyperBody>>>,
}

/// What `/_ping` says.
#[derive(Debug, Clone, Default)]
pub struct Ping {
    pub api_version: Option<ApiVersion>,
    pub os_type: String,
    pub experimental: bool,
    /// `1` classic, `2` BuildKit, empty unknown.
    pub builder_version: String,
}

/// Query parameters, not yet encoded.
pub type Query = Vec<(&'static str, String)>;

/// One request; `path` has no version and is already escaped.
#[derive(Debug)]
pub struct Request {
    pub method: Method,
    pub path: String,
    pub query: Query,
    pub headers: Vec<(HeaderName, String)>,
    pub body: Body,
}

impl Request {
    pub fn new(method: Method, path: impl Into<String>) -> Request {
        Request {
            method,
            path: path.into(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Body::Empty,
        }
    }

    pub fn get(path: impl Into<String>) -> Request {
        Request::new(Method::GET, path)
    }

    pub fn post(path: impl Into<String>) -> Request {
        Request::new(Method::POST, path)
    }

    pub fn delete(path: impl Into<String>) -> Request {
        Request::new(Method::DELETE, path)
    }

    pub fn query(mut self, name: &'static str, value: impl Into<String>) -> Request {
        self.query.push((name, value.into()));
        self
    }

    /// Adds `name=1` if `on`.
    pub fn flag(self, name: &'static str, on: bool) -> Request {
        if on { self.query(name, "1") } else { self }
    }

    /// Adds the parameter if there is a value.
    pub fn maybe(self, name: &'static str, value: Option<String>) -> Request {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    pub fn header(mut self, name: HeaderName, value: impl Into<String>) -> Request {
        self.headers.push((name, value.into()));
        self
    }

    pub fn json<T: serde::Serialize>(mut self, body: &T) -> Request {
        self.body = Body::json(body);
        self
    }

    pub fn body(mut self, body: Body) -> Request {
        self.body = body;
        self
    }
}

/// A raw connection after `101 Switching Protocols`; shutting it down half-closes it.
#[derive(Debug)]
pub struct Hijacked {
    conn: Conn,
    /// What came together with the reply's header.
    read: Bytes,
    /// `application/vnd.docker.multiplexed-stream` or `…raw-stream`.
    pub content_type: String,
}

impl AsyncRead for Hijacked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.has_remaining() {
            let n = self.read.len().min(buf.remaining());
            buf.put_slice(&self.read.split_to(n));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.conn).poll_read(cx, buf)
    }
}

impl AsyncWrite for Hijacked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.conn).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_shutdown(cx)
    }
}

impl Client {
    pub fn new(options: Options) -> Client {
        Client { options, ping: OnceLock::new(), idle: Mutex::new(Vec::new()) }
    }

    /// Where this client connects to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.options.endpoint
    }

    /// Opens a raw stream to the engine, without any HTTP (`system dial-stdio`).
    pub async fn dial(&self) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        self.connect().await
    }

    async fn connect(&self) -> Result<Conn> {
        let endpoint = &self.options.endpoint;
        conn::connect(endpoint, self.options.tls.as_ref(), self.options.lookup.as_ref())
            .await
            .map_err(|source| {
                let host = endpoint.to_string();
                match source.kind() {
                    io::ErrorKind::PermissionDenied => Error::Permission { host, source },
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        Error::NotRunning { host, source }
                    }
                    _ => Error::Connect { host, source },
                }
            })
    }

    async fn handshake(&self) -> Result<SendRequest<HyperBody>> {
        let conn = self.connect().await?;
        let (sender, driver) =
            http1::handshake(TokioIo::new(conn)).await.map_err(|source| Error::Http {
                method: "connect".into(),
                path: self.options.endpoint.to_string(),
                source,
            })?;
        tokio::spawn(async move {
            // The error also reaches whoever waits for the reply or its body.
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(%error, "a connection to the engine ended");
            }
        });
        Ok(sender)
    }

    fn take_idle(&self) -> Option<SendRequest<HyperBody>> {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        let at = idle.iter().position(SendRequest::is_ready)?;
        Some(idle.swap_remove(at))
    }

    fn put_idle(&self, sender: SendRequest<HyperBody>) {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(sender);
        }
    }

    /// The first `/_ping`'s answer; asked once per client.
    pub async fn ping(&self) -> Result<&Ping> {
        if let Some(ping) = self.ping.get() {
            return Ok(ping);
        }
        let mut reply = self.send_raw(Request::new(Method::HEAD, "/_ping")).await?;
        if !reply.status().is_success() {
            reply = self.send_raw(Request::get("/_ping")).await?;
        }
        let header = |name: &str| {
            reply.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
        };
        let ping = Ping {
            api_version: ApiVersion::parse(&header("api-version")),
            os_type: header("ostype"),
            experimental: header("docker-experimental") == "true",
            builder_version: header("builder-version"),
        };
        if !reply.status().is_success() {
            return Err(read_error(reply).await);
        }
        Ok(self.ping.get_or_init(|| ping))
    }

    /// The version that calls are made with, after negotiation.
    pub async fn api_version(&self) -> Result<ApiVersion> {
        if let Some(fixed) = self.options.api_version {
            return Ok(fixed);
        }
        let server = self.ping().await?.api_version;
        Ok(server.unwrap_or(ApiVersion::MIN).min(ApiVersion::MAX))
    }

    /// The version without asking the engine: what was negotiated, or the newest one.
    pub fn known_api_version(&self) -> ApiVersion {
        let negotiated = self.ping.get().and_then(|p| p.api_version);
        let fixed = self.options.api_version;
        fixed.or(negotiated).unwrap_or(ApiVersion::MAX).min(ApiVersion::MAX)
    }

    /// Sends a request and gives its successful reply's body, whatever it is.
    pub async fn send(&self, request: Request) -> Result<Response<Incoming>> {
        let version = self.api_version().await?;
        let request = Request { path: format!("/v{version}{}", request.path), ..request };
        let reply = self.send_raw(request).await?;
        // 304 is how "already so" is said; 101 is for hijacking.
        let status = reply.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED || status.is_informational() {
            return Ok(reply);
        }
        Err(read_error(reply).await)
    }

    async fn send_raw(&self, request: Request) -> Result<Response<Incoming>> {
        let (method, path) = (request.method.to_string(), request.path.clone());
        let http_error =
            |source| Error::Http { method: method.clone(), path: path.clone(), source };
        let replayable = !request.body.is_stream();
        let mut request = self.http_request(request)?;
        if replayable {
            // A kept connection may have been closed by the engine meanwhile.
            while let Some(mut sender) = self.take_idle() {
                match sender.try_send_request(request).await {
                    Ok(reply) => {
                        self.put_idle(sender);
                        return Ok(reply);
                    }
                    Err(mut e) => match e.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(http_error(e.into_error())),
                    },
                }
            }
        }
        let mut sender = self.handshake().await?;
        let reply = sender.send_request(request).await.map_err(http_error)?;
        self.put_idle(sender);
        Ok(reply)
    }

    fn http_request(&self, request: Request) -> Result<http::Request<HyperBody>> {
        let Request { method, path, query, headers, body } = request;
        let mut uri = path.clone();
        for (i, (name, value)) in query.iter().enumerate() {
            uri.push(if i == 0 { '?' } else { '&' });
            uri.push_str(name);
            uri.push('=');
            escape_into(&mut uri, value, b"-_.~");
        }
        let host = match &self.options.endpoint {
            Endpoint::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Endpoint::Tcp { host, port } => format!("{host}:{port}"),
            // Go's client says the same for sockets.
            Endpoint::Unix(_) | Endpoint::Ssh { .. } => "api.moby.localhost".to_owned(),
        };
        let mut builder = http::Request::builder()
            .method(method.clone())
            .uri(uri)
            .header(HOST, host)
            .header(USER_AGENT, &self.options.user_agent);
        for (name, value) in &self.options.headers {
            builder = builder.header(name, value);
        }
        if body.is_json() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        builder.body(body.into_hyper()).map_err(|source| Error::Request {
            method: method.to_string(),
            path,
            source,
        })
    }

    /// Sends a request and reads the JSON of the reply.
    pub async fn json<T: DeserializeOwned>(&self, request: Request) -> Result<T> {
        let what = format!("{} {}", request.method, request.path);
        let bytes = self.bytes(request).await?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Decode { what, source })
    }

    /// Sends a request and reads the whole reply.
    pub async fn bytes(&self, request: Request) -> Result<Bytes> {
        let what = format!("{} {}", request.method, request.path);
        let reply = self.send(request).await?;
        read_all(reply.into_body(), MAX_REPLY_BYTES, &what).await
    }

    /// Sends a request whose reply does not matter beyond its status.
    pub async fn done(&self, request: Request) -> Result<()> {
        self.bytes(request).await.map(|_| ())
    }

    /// Sends a request and gives the reply's body as it comes.
    pub async fn stream(&self, request: Request) -> Result<ByteStream> {
        Ok(ByteStream::new(self.send(request).await?))
    }

    /// Sends a request that takes the connection over.
    pub async fn hijack(&self, request: Request) -> Result<Hijacked> {
        let request = request
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, HeaderValue::from_static("tcp").to_str().unwrap_or("tcp"));
        let mut reply = self.send(request).await?;
        if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::NotUpgraded { status: reply.status().as_u16() });
        }
        let content_type = reply
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let upgraded =
            hyper::upgrade::on(&mut reply).await.map_err(|source| Error::Stream { source })?;
        let parts = upgraded
            .downcast::<TokioIo<Conn>>()
            .map_err(|_| Error::NotUpgraded { status: StatusCode::SWITCHING_PROTOCOLS.as_u16() })?;
        Ok(Hijacked { conn: parts.io.into_inner(), read: parts.read_buf, content_type })
    }
}

async fn read_all(body: Incoming, limit_bytes: usize, what: &str) -> Result<Bytes> {
    match Limited::new(body, limit_bytes).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) => Err(match e.downcast::<hyper::Error>() {
            Ok(source) => Error::Stream { source: *source },
            Err(_) => Error::TooLarge { what: what.to_owned(), limit_bytes },
        }),
    }
}

async fn read_error(reply: Response<Incoming>) -> Error {
    let status = reply.status();
    let bytes = match read_all(reply.into_body(), MAX_ERROR_BYTES, "an error reply").await {
        Ok(bytes) => bytes,
        Err(e) => return e,
    };
    let message = match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) if !body.message.is_empty() => body.message,
        _ => String::from_utf8_lossy(&bytes).trim().to_owned(),
    };
    let message = if message.is_empty() {
        let reason = status.canonical_reason().unwrap_or("an error without a text");
        format!(
            "request returned {reason} for API route and version, check if the server supports the requested API version"
        )
    } else {
        message
    };
    Error::Api { status, message }
}

fn escape_into(out: &mut String, text: &str, keep: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &b in text.as_bytes() {
        if b.is_ascii_alphanumeric() || keep.contains(&b) {
            out.push(char::from(b));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(b >> 4)]));
            out.push(char::from(HEX[usize::from(b & 15)]));
        }
    }
}

/// A name inside a path; `/` stays, so that image names can be used.
pub(crate) fn escape_path(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    escape_into(&mut out, name, b"-_.~/:@+");
    out
}
