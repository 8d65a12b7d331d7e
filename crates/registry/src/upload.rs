//! Uploads: mounted, in one request, or in pieces that go on after an interruption.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use types::Digest;

use crate::{
    auth::{encode, transport_error},
    client::{Call, Context, resolve},
    endpoint::Endpoint,
    error::{Error, Problem, TransportError},
    repository::{Repository, route},
    transport::{Origin, Payload, Progress, text},
};

/// Blobs up to this size go up in the request that also completes them.
const MONOLITHIC_MAX: u64 = 1 << 20;
const COPY_BYTES: usize = 128 << 10;
/// After this many bytes an upload counts as getting on, and failures count anew.
const PROGRESS_BYTES: u64 = 64 << 10;
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// A reader of what is uploaded.
pub type SourceReader = Box<dyn AsyncRead + Send + Unpin>;

/// Bytes that can be read again from anywhere, as a resumed upload has to.
pub trait BlobSource: Send + Sync {
    /// A reader that begins `offset` bytes after the start.
    fn open(&self, offset: u64) -> BoxFuture<'_, io::Result<SourceReader>>;
}

/// A file.
#[derive(Clone, Debug)]
pub struct FileSource(pub PathBuf);

impl BlobSource for FileSource {
    fn open(&self, offset: u64) -> BoxFuture<'_, io::Result<SourceReader>> {
        async move {
            let mut file = tokio::fs::File::open(&self.0).await?;
            file.seek(io::SeekFrom::Start(offset)).await?;
            Ok(Box::new(file) as SourceReader)
        }
        .boxed()
    }
}

/// Bytes in memory.
#[derive(Clone, Debug)]
pub struct BytesSource(pub Bytes);

impl BlobSource for BytesSource {
    fn open(&self, offset: u64) -> BoxFuture<'_, io::Result<SourceReader>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let rest = io::Cursor::new(self.0.slice(start..));
        async move { Ok(Box::new(rest) as SourceReader) }.boxed()
    }
}

/// How to upload.
#[derive(Clone, Copy, Default)]
pub struct UploadOptions<'a> {
    /// Bytes of one piece. `None`: all in one piece, however large. A registry that wants larger
    /// pieces gets them.
    pub chunk_bytes: Option<u64>,
    /// Told now and then how many bytes went to the registry; may go back after a failure.
    pub progress: Option<&'a (dyn Fn(u64) + Send + Sync)>,
}

/// How a blob came to be in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    AlreadyThere,
    Mounted { from: String },
    Uploaded,
}

/// An upload that the registry has begun.
struct Session {
    location: Uri,
    offset: u64,
    chunk_min: u64,
}

enum Started {
    Mounted,
    Session(Session),
}

type Failure = (Error, Option<Duration>);

/// What is uploaded.
struct Job<'a> {
    digest: &'a Digest,
    size: u64,
    source: &'a dyn BlobSource,
    options: &'a UploadOptions<'a>,
}

impl Repository {
    /// Makes a blob of another repository of the registry appear in this one. False if the
    /// registry does not do that, or has no such blob there.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub async fn mount_blob(&self, digest: &Digest, from: &str) -> Result<bool, Error> {
        route!(self, push, endpoint => async {
            match self.start(&endpoint, Some((digest, from))).await? {
                Started::Mounted => Ok(true),
                Started::Session(session) => {
                    let call = self.call_at(Method::DELETE, session.location);
                    // Left alone, it ends by itself some day.
                    if let Err(error) = self.shared.call(&endpoint, &call).await {
                        tracing::debug!(%error, "an upload was not cancelled");
                    }
                    Ok(false)
                }
            }
        })
    }

    /// Uploads a blob of a known size; resumes after interruptions.
    ///
    /// # Errors
    /// When the source cannot be read or has another size or digest, or the registry refuses.
    pub async fn upload_blob(
        &self,
        digest: &Digest,
        size: u64,
        source: &dyn BlobSource,
        options: &UploadOptions<'_>,
    ) -> Result<(), Error> {
        let job = Job { digest, size, source, options };
        route!(self, push, endpoint => self.upload(&endpoint, &job, None))
    }

    /// Brings a blob into the repository in the cheapest way: not at all if it is there, mounted
    /// from one of `mount_from` (repositories of the same registry), or uploaded.
    ///
    /// # Errors
    /// As [`Repository::upload_blob`].
    pub async fn push_blob(
        &self,
        digest: &Digest,
        size: u64,
        source: &dyn BlobSource,
        mount_from: &[&str],
        options: &UploadOptions<'_>,
    ) -> Result<Pushed, Error> {
        let job = Job { digest, size, source, options };
        route!(self, push, endpoint => async {
            if self.blob_exists_at(&endpoint, digest).await?.is_some() {
                return Ok(Pushed::AlreadyThere);
            }
            let mut session = None;
            for from in mount_from {
                match self.start(&endpoint, Some((digest, from))).await {
                    Ok(Started::Mounted) => {
                        return Ok(Pushed::Mounted { from: (*from).to_owned() });
                    }
                    Ok(Started::Session(begun)) => {
                        session = Some(begun);
                        break;
                    }
                    // Not being allowed to read there is no reason not to upload here.
                    Err(Error::PushDenied { .. } | Error::Unauthorized { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            self.upload(&endpoint, &job, session).await?;
            Ok(Pushed::Uploaded)
        })
    }

    async fn start(
        &self,
        endpoint: &Endpoint,
        mount: Option<(&Digest, &str)>,
    ) -> Result<Started, Error> {
        let mut rest = "blobs/uploads/".to_owned();
        if let Some((digest, from)) = mount {
            let (digest, encoded) = (encode(&digest.to_string()), encode(from));
            rest.push_str(&format!("?mount={digest}&from={encoded}"));
            endpoint.widen(format!("repository:{from}:pull")).await;
        }
        let mut call = self.request(endpoint, Method::POST, &rest, Context::Other)?;
        call.body = Some(Bytes::new());
        let expected = [StatusCode::CREATED, StatusCode::ACCEPTED];
        let response = self.expect(endpoint, &call, &expected).await?;
        if response.status() == StatusCode::CREATED && mount.is_some() {
            return Ok(Started::Mounted);
        }
        let min = text(response.headers(), http::HeaderName::from_static("oci-chunk-min-length"));
        let chunk_min = min.and_then(|m| m.parse().ok()).unwrap_or(0);
        let location = self.location(endpoint, &call.uri, &response)?;
        Ok(Started::Session(Session { location, offset: 0, chunk_min }))
    }

    /// Where the upload goes on. An address of the same host with the wrong scheme, as
    /// registries behind a TLS proxy give it, is put right.
    fn location(
        &self,
        endpoint: &Endpoint,
        base: &Uri,
        response: &Response<Incoming>,
    ) -> Result<Uri, Error> {
        let error = |problem| Error::Malformed {
            what: "upload address".into(),
            from: self.name.clone(),
            problem,
        };
        let location = text(response.headers(), header::LOCATION)
            .and_then(|l| resolve(base, l))
            .ok_or_else(|| error(Problem::Header("Location")))?;
        let origin = Origin::of(&location).map_err(|_| error(Problem::Header("Location")))?;
        if !endpoint.origin.https || origin.https {
            return Ok(location);
        }
        let same_host = origin.host == endpoint.origin.host
            && (origin.port == endpoint.origin.port || origin.port == 80);
        if !same_host {
            return Err(error(Problem::Text("it leaves https for http")));
        }
        let path = location.path_and_query().map_or("/", |p| p.as_str());
        let authority = base.authority().map_or("", |a| a.as_str());
        format!("https://{authority}{path}").parse().map_err(|_| error(Problem::Header("Location")))
    }

    fn call_at(&self, method: Method, uri: Uri) -> Call<'_> {
        Call {
            method,
            uri,
            headers: HeaderMap::new(),
            body: None,
            context: Context::Other,
            push: true,
            name: &self.name,
        }
    }

    async fn upload(
        &self,
        endpoint: &Endpoint,
        job: &Job<'_>,
        mut session: Option<Session>,
    ) -> Result<(), Error> {
        let mut backoff = self.shared.backoff(endpoint);
        let mut reached = 0;
        loop {
            let (error, after) = match self.attempt(endpoint, job, &mut session).await {
                Ok(()) => {
                    job.report(job.size);
                    return Ok(());
                }
                Err(failure) => failure,
            };
            let error = match error {
                // Of an upload that the registry has forgotten, or counts differently.
                Error::Status { status: 404 | 416, .. } if session.is_some() => {
                    session = None;
                    let source = TransportError::ShortBody { got: reached };
                    transport_error(&Method::PATCH, &endpoint.uri("/")?, source)
                }
                error => error,
            };
            backoff.pause(error, after).await?;
            if let Some(begun) = session.take() {
                session = self.status(endpoint, begun).await;
            }
            let offset = session.as_ref().map_or(0, |s| s.offset);
            if offset >= reached + PROGRESS_BYTES {
                backoff.reset();
            }
            reached = reached.max(offset);
            job.report(offset);
        }
    }

    /// How far an interrupted upload is; `None` to begin anew.
    async fn status(&self, endpoint: &Endpoint, session: Session) -> Option<Session> {
        let call = self.call_at(Method::GET, session.location.clone());
        let response = self.shared.once(endpoint, &call).await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let location = match response.headers().contains_key(header::LOCATION) {
            true => self.location(endpoint, &call.uri, &response).ok()?,
            false => session.location,
        };
        let offset = received(response.headers())?;
        Some(Session { location, offset, chunk_min: session.chunk_min })
    }

    /// Sends what the registry does not have yet, and completes the upload.
    async fn attempt(
        &self,
        endpoint: &Endpoint,
        job: &Job<'_>,
        slot: &mut Option<Session>,
    ) -> Result<(), Failure> {
        if slot.is_none() {
            match self.start(endpoint, None).await.map_err(|e| (e, None))? {
                Started::Session(session) => *slot = Some(session),
                Started::Mounted => return Ok(()),
            }
        }
        let Some(session) = slot.as_mut() else { return Ok(()) };
        let whole = job.options.chunk_bytes.is_none() && job.size <= MONOLITHIC_MAX;
        if whole && session.offset == 0 {
            let uri = completion(&session.location, job.digest).map_err(|e| (e, None))?;
            let response = self.send_piece(endpoint, job, Method::PUT, uri, (0, job.size)).await?;
            return self.completed(job, &response).map_err(|e| (e, None));
        }
        while session.offset < job.size {
            let piece = job.options.chunk_bytes.unwrap_or(u64::MAX).max(session.chunk_min).max(1);
            let end = session.offset.saturating_add(piece).min(job.size);
            let uri = session.location.clone();
            let range = (session.offset, end);
            let response = self.send_piece(endpoint, job, Method::PATCH, uri, range).await?;
            let base = session.location.clone();
            session.location = self.location(endpoint, &base, &response).map_err(|e| (e, None))?;
            let got = match received(response.headers()) {
                // 0-0 is one byte as well.
                Some(0) if end == 1 => 1,
                got => got.unwrap_or(end),
            };
            if got <= session.offset || got > end {
                let what = format!("answer to the upload of blob {}", job.digest);
                return Err((self.malformed(what, Problem::Header("Range")), None));
            }
            session.offset = got;
        }
        let uri = completion(&session.location, job.digest).map_err(|e| (e, None))?;
        let mut call = self.call_at(Method::PUT, uri);
        call.body = Some(Bytes::new());
        let response = self.shared.once(endpoint, &call).await.map_err(|e| (e, None))?;
        if response.status() != StatusCode::CREATED {
            return Err(self.shared.refused(endpoint, &call, response).await);
        }
        self.completed(job, &response).map_err(|e| (e, None))
    }

    fn completed(&self, job: &Job<'_>, response: &Response<Incoming>) -> Result<(), Error> {
        let name = http::HeaderName::from_static("docker-content-digest");
        match text(response.headers(), name).and_then(|d| d.parse::<Digest>().ok()) {
            Some(told) if told != *job.digest => {
                Err(self.mismatch("stored blob", job.digest.clone(), told))
            }
            _ => Ok(()),
        }
    }

    /// Streams bytes of the source in one request.
    async fn send_piece(
        &self,
        endpoint: &Endpoint,
        job: &Job<'_>,
        method: Method,
        uri: Uri,
        (start, end): (u64, u64),
    ) -> Result<Response<Incoming>, Failure> {
        let fail = |error| (error, None);
        let source_error = |source| Error::Source { digest: job.digest.clone(), source };
        let mut call = self.call_at(method, uri);
        let origin = Origin::of(&call.uri)
            .map_err(|source| fail(transport_error(&call.method, &call.uri, source)))?;
        let at_home = origin == endpoint.origin;
        if at_home && let Some(value) = self.fresh(endpoint, &call.uri).await.map_err(fail)? {
            call.headers.insert(header::AUTHORIZATION, value);
        }
        if at_home {
            endpoint.own_headers(&mut call.headers);
        }
        let kind = HeaderValue::from_static("application/octet-stream");
        call.headers.insert(header::CONTENT_TYPE, kind);
        call.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
        if call.method == Method::PATCH {
            let range = HeaderValue::from_str(&format!("{start}-{}", end - 1));
            call.headers.insert(header::CONTENT_RANGE, range.expect("digits and ASCII"));
        }
        let reader = job.source.open(start).await.map_err(|e| fail(source_error(e)))?;
        let progress = Arc::new(Progress::default());
        let failed = Arc::new(Mutex::new(None));
        let body = stream(reader, end - start, progress.clone(), failed.clone());
        let payload = Payload::Stream(body, progress.clone());
        let transport = &self.shared.transport;
        let via = endpoint.via(&origin);
        let send = transport.send(&via, &call.method, &call.uri, &call.headers, payload);
        let mut send = std::pin::pin!(send);
        let response = loop {
            tokio::select! {
                response = &mut send => break response,
                () = tokio::time::sleep(REPORT_EVERY), if job.options.progress.is_some() => {
                    job.report(start + progress.bytes.load(Ordering::Acquire));
                }
            }
        };
        let failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(error) = failed {
            return Err(fail(source_error(error)));
        }
        let response =
            response.map_err(|source| fail(transport_error(&call.method, &call.uri, source)))?;
        let status = response.status();
        if status.is_redirection() {
            let source = TransportError::Redirect("a write was redirected");
            return Err(fail(transport_error(&call.method, &call.uri, source)));
        }
        if !status.is_success() {
            return Err(self.shared.refused(endpoint, &call, response).await);
        }
        Ok(response)
    }

    /// The header to send with a body that cannot be sent twice: if the token has run out, a
    /// small request gets a new one first.
    async fn fresh(&self, endpoint: &Endpoint, uri: &Uri) -> Result<Option<HeaderValue>, Error> {
        let (value, generation) = endpoint.authorization().await;
        if value.is_some() || generation == 0 {
            return Ok(value);
        }
        let call = self.call_at(Method::GET, uri.clone());
        drop(self.shared.once(endpoint, &call).await?);
        Ok(endpoint.authorization().await.0)
    }
}

impl Job<'_> {
    fn report(&self, bytes: u64) {
        if let Some(report) = self.options.progress {
            report(bytes);
        }
    }
}

/// `Range: 0-LAST` says how many bytes the registry has. distribution says `0-0` for none.
fn received(headers: &HeaderMap) -> Option<u64> {
    let range = text(headers, header::RANGE)?;
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let last: u64 = range.split_once('-')?.1.parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

fn completion(location: &Uri, digest: &Digest) -> Result<Uri, Error> {
    let separator = if location.query().is_some() { '&' } else { '?' };
    let text = format!("{location}{separator}digest={}", encode(&digest.to_string()));
    text.parse().map_err(|_| Error::Config { what: "upload address", text })
}

/// A body of exactly `len` bytes.
fn stream(
    reader: SourceReader,
    len: u64,
    progress: Arc<Progress>,
    failed: Arc<Mutex<Option<io::Error>>>,
) -> crate::transport::Body {
    let mut left = len;
    progress.done.store(left == 0, Ordering::Release);
    let end = {
        let (progress, failed) = (progress.clone(), failed.clone());
        futures_util::stream::once(async move {
            // Reached only when the reader ended.
            if progress.bytes.load(Ordering::Acquire) < len {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                return Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof)));
            }
            None
        })
        .filter_map(std::future::ready)
    };
    let frames =
        ReaderStream::with_capacity(reader.take(len), COPY_BYTES).map(move |chunk| match chunk {
            Ok(chunk) => {
                left = left.saturating_sub(chunk.len() as u64);
                progress.bytes.fetch_add(chunk.len() as u64, Ordering::AcqRel);
                progress.done.store(left == 0, Ordering::Release);
                Ok(Frame::data(chunk))
            }
            Err(error) => {
                let copy = io::Error::from(error.kind());
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                Err(copy)
            }
        });
    StreamBody::new(frames.chain(end)).boxed_unsync()
}
