//! Downloads that go on after whatever interrupted them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use types::{Digest, Digester};

use crate::{
    auth::transport_error,
    client::{Backoff, Call, Context},
    endpoint::Endpoint,
    error::{Error, Problem, TransportError},
    repository::Repository,
    transport::{Pace, text},
};

/// After this many bytes a connection counts as having worked, and failures count anew.
const PROGRESS_BYTES: u64 = 64 << 10;

/// A blob on its way. Dropping it ends the download.
pub struct Blob {
    repository: Repository,
    endpoint: Arc<Endpoint>,
    /// Who is asked for the rest when a mirror fails in the middle.
    later: VecDeque<Arc<Endpoint>>,
    /// A registry that has sent something and is not there now comes back.
    has_answered: bool,
    /// The servers that sent some of it.
    sources: Vec<String>,
    digest: Digest,
    size: Option<u64>,
    offset: u64,
    body: Option<Incoming>,
    digester: Option<Digester>,
    backoff: Backoff,
    /// Bytes that come again because the registry cannot begin in the middle.
    repeated: u64,
    /// Not asked to begin in the middle: it answered that with something else.
    from_start: bool,
    /// Bytes since the last failure.
    progress: u64,
    pace: Pace,
    done: bool,
}

impl Blob {
    pub(crate) async fn open(
        repository: &Repository,
        endpoint: Arc<Endpoint>,
        digest: &Digest,
        size: Option<u64>,
        offset: u64,
    ) -> Result<Self, Error> {
        let mut blob = Self {
            repository: repository.clone(),
            backoff: repository.shared.backoff(&endpoint),
            later: repository.after(&endpoint).into(),
            has_answered: false,
            endpoint,
            sources: Vec::new(),
            digest: digest.clone(),
            size,
            offset,
            body: None,
            digester: None,
            repeated: 0,
            from_start: false,
            progress: 0,
            pace: Pace::new(&repository.shared.transport.timeouts),
            done: size.is_some_and(|size| size == offset),
        };
        if !blob.done {
            blob.connect().await?;
        }
        Ok(blob)
    }

    /// The whole blob's size in bytes, if anyone said it.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Where the next chunk begins, in bytes from the blob's start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The servers that sent some of it, for [`Repository::distrust`].
    pub fn sources(&self) -> &[String] {
        &self.sources
    }

    /// Also checks the digest at the end. Without effect if bytes were skipped or read already.
    #[must_use]
    pub fn verified(mut self) -> Self {
        if self.offset == 0 {
            self.digester = Some(Digester::new(self.digest.algorithm()));
        }
        self
    }

    /// The next bytes, `None` at the end. Waits, connects anew and asks for the rest as often as
    /// it takes while there is progress. After an error only the same error, or the end of a
    /// connection, can come: the blob is to be dropped.
    ///
    /// # Errors
    /// When attempts run out, the registry refuses, or sends more or less than the blob's size;
    /// [`Error::DigestMismatch`] after [`Blob::verified`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.done {
                return self.end();
            }
            if self.body.is_none() {
                if let Err(error) = self.connect().await {
                    self.go_on_elsewhere(error)?;
                }
                continue;
            }
            match self.receive().await {
                Ok(Some(chunk)) => {
                    let chunk = self.new_part(chunk);
                    if chunk.is_empty() {
                        continue;
                    }
                    self.account(&chunk)?;
                    return Ok(Some(chunk));
                }
                Ok(None) => match self.size {
                    Some(size) if self.offset < size => {
                        let got = self.offset;
                        self.interrupted(TransportError::ShortBody { got }).await?;
                    }
                    _ => self.done = true,
                },
                Err(source) => self.interrupted(source).await?,
            }
        }
    }

    /// The blob as a stream; it ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        stream::try_unfold(self, |mut blob| async move {
            Ok(blob.chunk().await?.map(|chunk| (chunk, blob)))
        })
    }

    fn end(&mut self) -> Result<Option<Bytes>, Error> {
        self.body = None;
        if let Some(digester) = self.digester.take() {
            let actual = digester.finish();
            if actual != self.digest {
                return Err(self.repository.mismatch("blob", self.digest.clone(), actual));
            }
        }
        Ok(None)
    }

    fn account(&mut self, chunk: &Bytes) -> Result<(), Error> {
        let len = chunk.len() as u64;
        self.offset += len;
        self.progress += len;
        if self.progress >= PROGRESS_BYTES {
            self.backoff.reset();
        }
        if let Some(size) = self.size
            && self.offset > size
        {
            self.body = None;
            return Err(self.size_mismatch(size, self.offset));
        }
        if self.size == Some(self.offset) {
            self.done = true;
        }
        if let Some(digester) = &mut self.digester {
            digester.update(chunk);
        }
        Ok(())
    }

    /// One piece of the body, within the progress deadline.
    async fn receive(&mut self) -> Result<Option<Bytes>, TransportError> {
        let Some(body) = &mut self.body else { return Ok(None) };
        let left = self.size.map(|size| size.saturating_sub(self.offset));
        self.pace.next(body, left, &self.repository.shared.transport).await
    }

    /// Takes note of a failure, and waits if there is to be another attempt.
    async fn interrupted(&mut self, source: TransportError) -> Result<(), Error> {
        self.body = None;
        self.progress = 0;
        let uri = self.endpoint.uri(&self.path())?;
        let error = transport_error(&Method::GET, &uri, source);
        match self.backoff.pause(error, None).await {
            Ok(()) => Ok(()),
            Err(error) => self.go_on_elsewhere(error),
        }
    }

    /// The next endpoint sends the rest of what a mirror has begun.
    fn go_on_elsewhere(&mut self, error: Error) -> Result<(), Error> {
        let next = if self.endpoint.mirror { self.later.pop_front() } else { None };
        let Some(next) = next else { return Err(error) };
        let error = error.with_causes();
        tracing::info!(error, offset = self.offset, "a blob goes on at the next server");
        self.body = None;
        self.has_answered = false;
        self.from_start = false;
        self.backoff = self.repository.shared.backoff(&next);
        self.endpoint = next;
        Ok(())
    }

    fn path(&self) -> String {
        self.repository.path(&format!("blobs/{}", self.digest))
    }

    /// Asks for the rest, with retries.
    async fn connect(&mut self) -> Result<(), Error> {
        loop {
            match self.try_connect().await {
                Ok(()) => return Ok(()),
                // RFC 9110 (section 14.2) lets a server ignore a range; one that gets it wrong is asked for
                // the whole, once.
                Err((error, _)) if self.offset > 0 && !self.from_start && is_of_range(&error) => {
                    let error = error.with_causes();
                    tracing::info!(
                        error,
                        offset = self.offset,
                        "a blob is asked for from its start"
                    );
                    self.from_start = true;
                }
                Err((error, after)) => {
                    let transient =
                        error.is_transient() || (self.has_answered && error.is_unreachable());
                    self.backoff.pause_if(transient, error, after).await?;
                }
            }
        }
    }

    async fn try_connect(&mut self) -> Result<(), (Error, Option<Duration>)> {
        let repository = self.repository.clone();
        let digest = self.digest.clone();
        let call = self.call(&repository, &digest).map_err(|e| (e, None))?;
        let shared = &repository.shared;
        let response = shared.once(&self.endpoint, &call).await.map_err(|e| (e, None))?;
        let status = response.status();
        let body = match status {
            StatusCode::PARTIAL_CONTENT if self.offset > 0 && !self.from_start => {
                self.check_range(&response).map_err(|e| (e, None))?;
                self.repeated = 0;
                response.into_body()
            }
            StatusCode::OK => {
                let told = text(response.headers(), header::CONTENT_LENGTH);
                let told = told.and_then(|s| s.parse::<u64>().ok());
                self.check_size(told).map_err(|e| (e, None))?;
                // No ranges here: what we have already comes again.
                self.repeated = self.offset;
                response.into_body()
            }
            _ if status.is_success() => {
                let problem = Problem::Text("a part of it came where the whole was asked for");
                return Err((repository.malformed(format!("blob {digest}"), problem), None));
            }
            _ => return Err(shared.refused(&self.endpoint, &call, response).await),
        };
        self.body = Some(body);
        self.has_answered = true;
        if !self.sources.contains(&self.endpoint.base) {
            self.sources.push(self.endpoint.base.clone());
        }
        self.pace = Pace::new(&shared.transport.timeouts);
        Ok(())
    }

    fn call<'a>(&self, repository: &'a Repository, digest: &'a Digest) -> Result<Call<'a>, Error> {
        let rest = format!("blobs/{digest}");
        let mut call =
            repository.request(&self.endpoint, Method::GET, &rest, Context::Blob { digest })?;
        // The bytes that have the digest, not a compressed form of them.
        call.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if self.offset > 0 && !self.from_start {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.offset));
            call.headers.insert(header::RANGE, range.expect("digits and ASCII"));
        }
        Ok(call)
    }

    /// `Content-Range: bytes FIRST-LAST/SIZE` must begin where we are.
    fn check_range(&mut self, response: &Response<Incoming>) -> Result<(), Error> {
        let parsed = text(response.headers(), header::CONTENT_RANGE).and_then(|range| {
            let (span, size) = range.strip_prefix("bytes ")?.split_once('/')?;
            let first = span.split_once('-')?.0.parse::<u64>().ok()?;
            Some((first, size.parse::<u64>().ok()))
        });
        match parsed {
            Some((first, size)) if first == self.offset => self.check_size(size),
            _ => {
                let what = format!("blob {}", self.digest);
                Err(self.repository.malformed(what, Problem::Header("Content-Range")))
            }
        }
    }

    fn size_mismatch(&self, expected: u64, actual: u64) -> Error {
        Error::SizeMismatch {
            what: "blob",
            repository: self.repository.name.clone(),
            digest: self.digest.clone(),
            expected,
            actual,
        }
    }

    fn check_size(&mut self, told: Option<u64>) -> Result<(), Error> {
        match (self.size, told) {
            (Some(expected), Some(actual)) if expected != actual => {
                Err(self.size_mismatch(expected, actual))
            }
            (None, told) => {
                self.size = told;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What of a chunk was not received before.
    fn new_part(&mut self, mut chunk: Bytes) -> Bytes {
        let known = usize::try_from(self.repeated).unwrap_or(usize::MAX).min(chunk.len());
        self.repeated -= known as u64;
        chunk.split_off(known)
    }
}

/// Is this what comes of asking for a part: another part, or none (416)?
fn is_of_range(error: &Error) -> bool {
    matches!(
        error,
        Error::Malformed { problem: Problem::Header("Content-Range"), .. }
            | Error::Status { status: 416, .. }
    )
}
