//! Connections: direct or through a proxy, plain or TLS, kept for the next request.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout, timeout_at},
};

use crate::{
    config::{Config, HostPort, Insecure, Proxies, ProxyServer, Timeouts},
    dns,
    error::{Error, TransportError},
    hosts::Settings,
    tls::Trust,
};

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Idle connections kept for one server, and for how long; servers close theirs after a minute.
const IDLE_MAX: usize = 16;
const IDLE_FOR: Duration = Duration::from_secs(45);
/// Servers with idle connections or known TLS settings.
const SERVERS_MAX: usize = 256;
/// TLS settings are read anew after this time.
const TLS_FOR: Duration = Duration::from_secs(60);
/// A server that may not know TLS, and waits for more of what it takes for a request, gets this
/// long to greet.
const PROBE: Duration = Duration::from_secs(3);
/// Bytes of a proxy's answer to CONNECT.
const PROXY_HEAD_MAX: usize = 8 << 10;
/// Bytes read at once, and so the limit of an answer's head.
const READ_BUFFER_MAX: usize = 256 << 10;

/// A server and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Origin {
    pub(crate) fn of(uri: &Uri) -> Result<Self, TransportError> {
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(TransportError::Address("neither http nor https")),
        };
        let at = HostPort::of(uri).ok_or(TransportError::Address("no valid host"))?;
        let port = at.port.unwrap_or(if https { 443 } else { 80 });
        Ok(Self { https, host: at.host, port })
    }

    fn host_port(&self) -> HostPort {
        HostPort { host: self.host.clone(), port: Some(self.port) }
    }
}

/// On whose behalf a server is spoken to, and so how. Connections are shared only where it is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Via {
    /// The registry whose own authorities hold wherever it leads, as with dockerd.
    pub(crate) home: Option<Origin>,
    pub(crate) settings: Option<Arc<Settings>>,
    /// If this is not TLS, plain HTTP is tried: so it gets little time to greet.
    pub(crate) plain_too: bool,
}

impl Via {
    /// For another server to which this one leads: whom to trust and the way there are the same, but our
    /// certificate is for this one.
    pub(crate) fn elsewhere(&self) -> Self {
        let anonymous = |settings: &Arc<Settings>| {
            Arc::new(Settings { client: Vec::new(), ..settings.as_ref().clone() })
        };
        let settings = self.settings.as_ref().map(anonymous);
        Self { home: self.home.clone(), settings, plain_too: false }
    }
}

/// What a request sends. A stream can be sent once only.
pub(crate) enum Payload {
    Empty,
    Bytes(Bytes),
    Stream(Body, Arc<Progress>),
}

/// How far the sending of a stream is.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) bytes: AtomicU64,
    pub(crate) done: AtomicBool,
}

/// A connection, and since when it is idle.
type Idle = (SendRequest<Body>, Instant);
/// TLS settings, and when their files were read.
type KnownTls = (Arc<rustls::ClientConfig>, Instant);
/// A server, and on whose behalf it is spoken to.
type Way<'a> = (&'a Origin, &'a Via);

pub(crate) struct Transport {
    trust: Arc<Trust>,
    insecure: Insecure,
    proxies: Proxies,
    resolver: dns::Resolver,
    pub(crate) timeouts: Timeouts,
    user_agent: HeaderValue,
    idle: Mutex<HashMap<(Origin, Via), Vec<Idle>>>,
    tls: Mutex<HashMap<(Origin, Via), KnownTls>>,
}

impl Transport {
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let agent = &config.user_agent;
        Ok(Self {
            trust: Arc::new(Trust::new(config)),
            insecure: Insecure::parse(&config.insecure)?,
            proxies: Proxies::parse(&config.proxy)?,
            resolver: config.resolver.clone(),
            timeouts: config.timeouts,
            user_agent: HeaderValue::from_str(agent)
                .map_err(|_| Error::Config { what: "user agent", text: agent.clone() })?,
            idle: Mutex::default(),
            tls: Mutex::default(),
        })
    }

    pub(crate) fn is_insecure(&self, host: &HostPort) -> bool {
        self.insecure.contains(host)
    }

    /// Sends one request and waits for the head of the answer; follows nothing.
    pub(crate) async fn send(
        &self,
        via: &Via,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        payload: Payload,
    ) -> Result<Response<Incoming>, TransportError> {
        let origin = Origin::of(uri)?;
        let way = (&origin, via);
        let again = match &payload {
            Payload::Empty => Some(Payload::Empty),
            Payload::Bytes(bytes) => Some(Payload::Bytes(bytes.clone())),
            Payload::Stream(..) => None,
        };
        // A stream cannot be repeated, so it does not gamble on an old connection.
        if let Some(again) = again
            && let Some(sender) = self.take_idle(way)
        {
            match self.exchange(sender, way, method, uri, headers, payload).await {
                Err(TransportError::Http(_)) => {}
                other => return other,
            }
            let sender = self.connect(way).await?;
            return self.exchange(sender, way, method, uri, headers, again).await;
        }
        let sender = self.connect(way).await?;
        self.exchange(sender, way, method, uri, headers, payload).await
    }

    fn take_idle(&self, (origin, via): Way<'_>) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let waiting = idle.get_mut(&(origin.clone(), via.clone()))?;
        waiting.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE_FOR);
        let ready = waiting.iter().position(|(sender, _)| sender.is_ready())?;
        Some(waiting.swap_remove(ready).0)
    }

    fn keep(&self, (origin, via): Way<'_>, sender: SendRequest<Body>) {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if idle.len() >= SERVERS_MAX {
            idle.clear();
        }
        let waiting = idle.entry((origin.clone(), via.clone())).or_default();
        waiting.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE_FOR);
        if waiting.len() < IDLE_MAX {
            waiting.push((sender, Instant::now()));
        }
    }

    async fn exchange(
        &self,
        mut sender: SendRequest<Body>,
        way: Way<'_>,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        payload: Payload,
    ) -> Result<Response<Incoming>, TransportError> {
        let (body, progress) = match payload {
            Payload::Empty => (Empty::new().map_err(|e| match e {}).boxed_unsync(), None),
            Payload::Bytes(b) => (Full::new(b).map_err(|e| match e {}).boxed_unsync(), None),
            Payload::Stream(body, progress) => (body, Some(progress)),
        };
        let request = self.request(way, method, uri, headers, body)?;
        let watch = self.watch(progress);
        let answer = tokio::select! {
            answer = sender.send_request(request) => {
                answer.map_err(|error| self.broken(way.0, error))?
            }
            error = watch => return Err(error),
        };
        self.keep(way, sender);
        Ok(answer)
    }

    /// With TLS 1.3 a server that wants a certificate of ours says so only after the handshake.
    fn broken(&self, origin: &Origin, error: hyper::Error) -> TransportError {
        let cause = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<io::Error>());
        let inner = cause.and_then(|cause| cause.get_ref()?.downcast_ref::<rustls::Error>());
        match inner {
            Some(alert @ rustls::Error::AlertReceived(_)) => {
                let source = io::Error::new(io::ErrorKind::InvalidData, alert.clone());
                TransportError::tls(&registry_of(origin), self.trust.directory(), source)
            }
            _ => TransportError::Http(error),
        }
    }

    fn request(
        &self,
        way: Way<'_>,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Request<Body>, TransportError> {
        let address = |_| TransportError::Address("not a valid request");
        let proxy = self.proxy(way).filter(|_| !way.0.https);
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        // To a proxy, the whole address; to a server, the path (RFC 9112 section 3.2).
        let target =
            if proxy.is_some() { uri.clone() } else { path.parse().map_err(|_| address(()))? };
        let authority = uri.authority().ok_or(TransportError::Address("no host"))?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| address(()))?;
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = target;
        let all = request.headers_mut();
        all.insert(header::HOST, host);
        // One that is given takes the place of ours.
        if !headers.contains_key(header::USER_AGENT) {
            all.insert(header::USER_AGENT, self.user_agent.clone());
        }
        all.extend(headers.iter().map(|(k, v)| (k.clone(), v.clone())));
        if let Some(authorization) = proxy.and_then(|p| p.authorization.clone()) {
            all.insert(header::PROXY_AUTHORIZATION, authorization);
        }
        Ok(request)
    }

    /// Ends when the other side takes too long: to read while we send, then to answer.
    async fn watch(&self, progress: Option<Arc<Progress>>) -> TransportError {
        if let Some(progress) = progress {
            let mut last = 0;
            while !progress.done.load(Ordering::Acquire) {
                sleep(self.timeouts.stall).await;
                let now = progress.bytes.load(Ordering::Acquire);
                if now - last < self.timeouts.stall_bytes && !progress.done.load(Ordering::Acquire)
                {
                    return self.stalled();
                }
                last = now;
            }
        }
        sleep(self.timeouts.response).await;
        TransportError::NoAnswer { seconds: self.timeouts.response.as_secs() }
    }

    pub(crate) fn stalled(&self) -> TransportError {
        let Timeouts { stall, stall_bytes, .. } = self.timeouts;
        TransportError::Stalled { bytes: stall_bytes, seconds: stall.as_secs() }
    }

    fn proxy<'a>(&'a self, (origin, via): Way<'a>) -> Option<&'a ProxyServer> {
        // One that is named for this very server is taken, whatever NO_PROXY says.
        let own = via.settings.as_ref().and_then(|settings| settings.proxy.as_ref());
        own.or_else(|| self.proxies.find(origin.https, &origin.host_port(), origin.port))
    }

    /// A new connection.
    async fn connect(&self, way: Way<'_>) -> Result<SendRequest<Body>, TransportError> {
        let limit = self.timeouts.connect;
        let host = way.0.host.clone();
        timeout(limit, self.connect_unlimited(way))
            .await
            .unwrap_or_else(|_| Err(dns::ConnectError::Timeout { host }.into()))
    }

    async fn connect_unlimited(&self, way: Way<'_>) -> Result<SendRequest<Body>, TransportError> {
        let (origin, via) = way;
        let proxy = self.proxy(way);
        let (host, port) = match proxy {
            Some(proxy) => (proxy.host.as_str(), proxy.port),
            None => (origin.host.as_str(), origin.port),
        };
        let dial = via.settings.as_ref().and_then(|settings| settings.dial_timeout);
        let limit = dial.map_or(self.timeouts.connect, |dial| dial.min(self.timeouts.connect));
        let mut tcp = dns::connect(&self.resolver, host, port, limit).await?;
        tcp.set_nodelay(true)?;
        if !origin.https {
            return handshake(tcp).await;
        }
        if let Some(proxy) = proxy {
            tunnel(&mut tcp, proxy, origin).await?;
        }
        let config = self.tls_config(way).await.map_err(|e| TransportError::Setup(Box::new(e)))?;
        let name = ServerName::try_from(origin.host.clone())
            .map_err(|_| TransportError::Address("not a valid server name"))?;
        let greeting = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
        let limit = if via.plain_too || self.is_insecure_server(origin) {
            PROBE.min(self.timeouts.connect)
        } else {
            self.timeouts.connect
        };
        let stream = timeout(limit, greeting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| {
                self.forget_tls(way);
                TransportError::tls(&registry_of(origin), self.trust.directory(), source)
            })?;
        handshake(stream).await
    }

    /// Whether the server was declared insecure, so that it may not know TLS at all.
    fn is_insecure_server(&self, origin: &Origin) -> bool {
        // An entry of the list may or may not name the default port.
        let bare = HostPort { host: origin.host.clone(), port: None };
        self.insecure.contains(&origin.host_port())
            || (origin.port == 443 && self.insecure.contains(&bare))
    }

    /// Certificates that are put in place after a failure count at the next attempt.
    fn forget_tls(&self, (origin, via): Way<'_>) {
        self.trust.forget();
        let mut known = self.tls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        known.remove(&(origin.clone(), via.clone()));
    }

    async fn tls_config(&self, (origin, via): Way<'_>) -> Result<Arc<rustls::ClientConfig>, Error> {
        let key = (origin.clone(), via.clone());
        let lock = || self.tls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((config, since)) = lock().get(&key)
            && since.elapsed() < TLS_FOR
        {
            return Ok(config.clone());
        }
        let registry = registry_of(origin);
        let home = via.home.as_ref().map(registry_of).filter(|home| *home != registry);
        let settings = via.settings.clone().unwrap_or_default();
        let verify = match settings.skip_verify {
            Some(skip) => !skip,
            // Who names an authority wants it to be looked at, on loopback too.
            None => !settings.ca.is_empty() || !self.is_insecure_server(origin),
        };
        let (trust, name) = (self.trust.clone(), registry.clone());
        let load = move || trust.for_registry(&name, home.as_deref(), &settings, verify);
        let config = tokio::task::spawn_blocking(load).await.unwrap_or_else(|e| {
            let source = rustls::Error::General(e.to_string());
            Err(Error::Certificates { host: registry, source })
        })?;
        let mut known = lock();
        if known.len() >= SERVERS_MAX {
            known.clear();
        }
        known.insert(key, (config.clone(), Instant::now()));
        Ok(config)
    }
}

/// A registry as references and `certs.d` name it.
fn registry_of(origin: &Origin) -> String {
    let host =
        if origin.host.contains(':') { format!("[{}]", origin.host) } else { origin.host.clone() };
    if origin.port == 443 { host } else { format!("{host}:{}", origin.port) }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Body>, TransportError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(READ_BUFFER_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    // Ends with the sender and the last answer; its error is the request's error as well.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a registry connection ended");
        }
    });
    Ok(sender)
}

/// Asks a proxy for a connection to the server (RFC 9110 section 9.3.6).
async fn tunnel(
    tcp: &mut TcpStream,
    proxy: &ProxyServer,
    origin: &Origin,
) -> Result<(), TransportError> {
    let shown = || format!("{}:{}", proxy.host, proxy.port);
    let problem = |problem| TransportError::Proxy { proxy: shown(), problem };
    let host =
        if origin.host.contains(':') { format!("[{}]", origin.host) } else { origin.host.clone() };
    let target = format!("{host}:{}", origin.port);
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(authorization) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    tcp.write_all(&request).await?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head is the server's.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= PROXY_HEAD_MAX {
            return Err(problem("its answer is too long"));
        }
        head.push(tcp.read_u8().await?);
    }
    let status = head.get(9..12).and_then(|s| std::str::from_utf8(s).ok()?.parse::<u16>().ok());
    match status {
        Some(200..=299) if head.starts_with(b"HTTP/1.") => Ok(()),
        Some(status) => Err(TransportError::ProxyStatus { proxy: shown(), status }),
        None => Err(problem("its answer is not HTTP")),
    }
}

/// The progress deadline of a download: in each span some bytes have to come.
pub(crate) struct Pace {
    span_end: tokio::time::Instant,
    span_bytes: u64,
}

impl Pace {
    pub(crate) fn new(timeouts: &Timeouts) -> Self {
        Self { span_end: tokio::time::Instant::now() + timeouts.stall, span_bytes: 0 }
    }

    fn next_span(&mut self, transport: &Transport, is_last: bool) -> Result<(), TransportError> {
        if self.span_bytes < transport.timeouts.stall_bytes && !is_last {
            return Err(transport.stalled());
        }
        *self = Self::new(&transport.timeouts);
        Ok(())
    }

    /// The next piece of a body of which `left` bytes are to come, if that is known.
    pub(crate) async fn next(
        &mut self,
        body: &mut Incoming,
        left: Option<u64>,
        transport: &Transport,
    ) -> Result<Option<Bytes>, TransportError> {
        loop {
            let Ok(frame) = timeout_at(self.span_end, body.frame()).await else {
                self.next_span(transport, false)?;
                continue;
            };
            let Some(frame) = frame else { return Ok(None) };
            let Ok(data) = frame?.into_data() else { continue };
            let length = data.len() as u64;
            self.span_bytes += length;
            // Ready data never waits, so a span may end without the timer being asked. The rest
            // of a body may be less than a span has to have.
            if tokio::time::Instant::now() >= self.span_end {
                self.next_span(transport, left == Some(length))?;
            }
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }
}

/// The whole of a small body.
pub(crate) async fn read_small(
    mut body: Incoming,
    limit: usize,
    timeouts: &Timeouts,
) -> Result<Option<Bytes>, TransportError> {
    let read = async {
        let mut all = bytes::BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if all.len() + data.len() > limit {
                return Ok(None);
            }
            all.extend_from_slice(&data);
        }
        Ok(Some(all.freeze()))
    };
    let seconds = timeouts.response.as_secs();
    timeout(timeouts.response, read).await.unwrap_or(Err(TransportError::NoAnswer { seconds }))
}

/// A header's value as text, if it is there and is text.
pub(crate) fn text(headers: &HeaderMap, name: impl Into<HeaderName>) -> Option<&str> {
    headers.get(name.into()).and_then(|v| v.to_str().ok())
}
