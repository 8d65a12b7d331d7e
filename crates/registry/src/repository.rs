//! One repository: manifests, tags, referrers, and what blobs there are.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::Deserialize;
use types::{Digest, ImageRef, limits::MANIFEST_BYTES};

use crate::{
    auth::{encode, transport_error},
    blob::Blob,
    client::{Call, Context, Shared, resolve},
    endpoint::{Endpoint, Endpoints},
    error::{Error, Problem},
    hosts::Capabilities,
    manifest::{self, ACCEPT, Descriptor, INDEX_TYPES, Manifest, Target},
    transport::{read_small, text},
};

/// Tags that one repository may have, and referrers of one manifest.
const LISTED_MAX: usize = 100_000;
const PAGES_MAX: usize = 1000;
const PAGE_BYTES_MAX: usize = 4 << 20;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A repository of a registry, with the credentials to use. Clones share tokens.
#[derive(Clone)]
pub struct Repository {
    pub(crate) shared: Arc<Shared>,
    pub(crate) image: ImageRef,
    endpoints: Vec<Arc<Endpoint>>,
    /// The `hosts.toml` that names them.
    file: Option<PathBuf>,
    pub(crate) push: bool,
    /// Mirrors that sent something damaged or cannot be reached, by their base.
    avoided: Arc<Mutex<BTreeSet<String>>>,
    /// As docker's errors name it.
    pub(crate) name: String,
}

/// The endpoints that are left to try.
pub(crate) struct Route {
    shared: Arc<Shared>,
    avoided: Arc<Mutex<BTreeSet<String>>>,
    left: std::vec::IntoIter<Arc<Endpoint>>,
}

impl Route {
    pub(crate) fn next(&mut self) -> Option<Arc<Endpoint>> {
        self.left.find(|endpoint| self.shared.may_answer(endpoint))
    }

    /// An error that another endpoint may mend, or one that is the end.
    pub(crate) fn failed(&self, endpoint: &Endpoint, error: Error) -> Result<Error, Error> {
        if self.shared.falls_through(endpoint, &error) {
            if endpoint.mirror {
                let error = error.with_causes();
                tracing::info!(error, server = endpoint.base, "the next server is tried");
            }
            if endpoint.mirror && error.is_unreachable() {
                // Its time-out is waited for once in a pull, not for each blob.
                lock(&self.avoided).insert(endpoint.base.clone());
            }
            if !matches!(error, Error::Transport { .. }) {
                self.shared.learn(endpoint);
            }
            return Ok(error);
        }
        if matches!(error, Error::Transport { .. }) {
            self.shared.forget(endpoint);
        }
        Err(error)
    }
}

/// Runs an operation on one endpoint after the other, of those that have the capability for it.
macro_rules! route {
    ($self:ident, $able:ident, $endpoint:ident => $operation:expr) => {{
        let mut route = $self.route(|may| may.$able);
        let mut last = None;
        loop {
            let Some($endpoint) = route.next() else {
                break Err(last.unwrap_or_else(|| $self.no_endpoint(stringify!($able))));
            };
            match $operation.await {
                Ok(value) => {
                    $self.shared.learn(&$endpoint);
                    break Ok(value);
                }
                Err(error) => match route.failed(&$endpoint, error) {
                    Ok(error) => last = Some(error),
                    Err(error) => break Err(error),
                },
            }
        }
    }};
}
pub(crate) use route;

impl Repository {
    pub(crate) fn new(
        shared: Arc<Shared>,
        image: &ImageRef,
        endpoints: Endpoints,
        push: bool,
    ) -> Self {
        let name = image.familiar_name();
        let Endpoints { all, file } = endpoints;
        let avoided = Arc::default();
        Self { shared, image: image.clone(), endpoints: all, file, avoided, push, name }
    }

    /// The endpoints that may be asked for something.
    pub(crate) fn route(&self, able: fn(&Capabilities) -> bool) -> Route {
        let avoided = lock(&self.avoided);
        let able = self.endpoints.iter().filter(|endpoint| able(&endpoint.may)).cloned();
        let able: Vec<_> = able.collect();
        let mut left = able.clone();
        left.retain(|endpoint| !avoided.contains(&endpoint.base));
        // If there is nobody else, their error is the one to tell.
        let left = if left.is_empty() { able } else { left };
        let (shared, left) = (self.shared.clone(), left.into_iter());
        Route { shared, avoided: self.avoided.clone(), left }
    }

    /// The endpoints that are asked for a blob after this one.
    pub(crate) fn after(&self, endpoint: &Arc<Endpoint>) -> Vec<Arc<Endpoint>> {
        let after = self.route(|may| may.pull).left;
        let mut after = after.skip_while(|other| !Arc::ptr_eq(other, endpoint)).skip(1);
        std::iter::from_fn(|| after.next()).collect()
    }

    /// Asks mirrors no more that have sent something damaged: those among `sources` of a [`Blob`].
    /// False if there was none among them that is still asked.
    pub fn distrust(&self, sources: &[String]) -> bool {
        let mirrors = self.endpoints.iter().filter(|endpoint| endpoint.mirror);
        let bad = mirrors.filter(|mirror| sources.contains(&mirror.base));
        let mut any = false;
        for mirror in bad {
            let is_new = lock(&self.avoided).insert(mirror.base.clone());
            if is_new {
                tracing::warn!(
                    mirror = mirror.base,
                    image = self.name,
                    "a mirror sent wrong bytes"
                );
            }
            any |= is_new;
        }
        any
    }

    pub(crate) fn no_endpoint(&self, wish: &'static str) -> Error {
        let registry = self.image.domain().to_owned();
        match &self.file {
            Some(path) => Error::NotCapable { path: path.clone(), registry, wish },
            None => Error::Config { what: "registry", text: registry },
        }
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/{}/{rest}", self.image.path())
    }

    /// A request for a path below the repository.
    pub(crate) fn request<'a>(
        &'a self,
        endpoint: &Endpoint,
        method: Method,
        rest: &str,
        context: Context<'a>,
    ) -> Result<Call<'a>, Error> {
        Ok(Call {
            method,
            uri: endpoint.uri(&self.path(rest))?,
            headers: HeaderMap::new(),
            body: None,
            context,
            push: self.push,
            name: &self.name,
        })
    }

    fn shown(&self, target: Target<'_>) -> String {
        match target {
            Target::Tag(tag) => format!("{}:{tag}", self.name),
            Target::Digest(digest) => format!("{}@{digest}", self.name),
        }
    }

    pub(crate) fn malformed(&self, what: impl Into<String>, problem: impl Into<Problem>) -> Error {
        Error::Malformed { what: what.into(), from: self.name.clone(), problem: problem.into() }
    }

    fn too_large(&self, what: impl Into<String>, limit: usize) -> Error {
        Error::TooLarge { what: what.into(), from: self.name.clone(), limit }
    }

    /// A manifest's descriptor without its bytes; `None` if there is none. The digest is what
    /// the registry says.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub async fn head_manifest(&self, target: Target<'_>) -> Result<Option<Descriptor>, Error> {
        let found = match target {
            Target::Tag(_) => {
                route!(self, resolve, endpoint => self.head_manifest_at(&endpoint, target))
            }
            Target::Digest(_) => {
                route!(self, pull, endpoint => self.head_manifest_at(&endpoint, target))
            }
        };
        or_none(found)
    }

    async fn head_manifest_at(
        &self,
        endpoint: &Endpoint,
        target: Target<'_>,
    ) -> Result<Descriptor, Error> {
        let reference = self.shown(target);
        let context = Context::Manifest { reference: &reference };
        let rest = format!("manifests/{target}");
        let mut call = self.request(endpoint, Method::HEAD, &rest, context)?;
        call.headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        let response = self.shared.call(endpoint, &call).await?;
        let headers = response.headers();
        let digest = text(headers, CONTENT_DIGEST).and_then(|d| d.parse::<Digest>().ok());
        let size = text(headers, header::CONTENT_LENGTH).and_then(|s| s.parse().ok());
        let kind = text(headers, header::CONTENT_TYPE).map(str::to_owned);
        let (Some(digest), Some(size), Some(media_type)) = (digest, size, kind) else {
            // Not all registries say all of it.
            let manifest = self.get_manifest_at(endpoint, target).await?;
            return Ok(manifest.descriptor);
        };
        if let Target::Digest(expected) = target
            && digest != *expected
        {
            return Err(self.mismatch("manifest", expected.clone(), digest));
        }
        Ok(Descriptor {
            media_type,
            digest,
            size,
            platform: None,
            artifact_type: None,
            annotations: Default::default(),
        })
    }

    pub(crate) fn mismatch(&self, what: &'static str, expected: Digest, actual: Digest) -> Error {
        Error::DigestMismatch { what, repository: self.name.clone(), expected, actual }
    }

    /// A manifest or index, checked against its digest, at most
    /// [`types::limits::MANIFEST_BYTES`].
    ///
    /// # Errors
    /// [`Error::ManifestUnknown`], [`Error::PullDenied`] and others when the registry refuses;
    /// [`Error::DigestMismatch`] and [`Error::Malformed`] when it answers something else.
    pub async fn get_manifest(&self, target: Target<'_>) -> Result<Manifest, Error> {
        match target {
            Target::Tag(_) => {
                route!(self, resolve, endpoint => self.get_manifest_at(&endpoint, target))
            }
            Target::Digest(_) => {
                route!(self, pull, endpoint => self.get_manifest_at(&endpoint, target))
            }
        }
    }

    async fn get_manifest_at(
        &self,
        endpoint: &Endpoint,
        target: Target<'_>,
    ) -> Result<Manifest, Error> {
        let reference = self.shown(target);
        let context = Context::Manifest { reference: &reference };
        let rest = format!("manifests/{target}");
        let mut call = self.request(endpoint, Method::GET, &rest, context)?;
        call.headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        let (headers, bytes) =
            self.read_whole(endpoint, &call, &format!("manifest {target}"), MANIFEST_BYTES).await?;
        let told = text(&headers, CONTENT_DIGEST).and_then(|d| d.parse::<Digest>().ok());
        let expected = match (target, told) {
            (Target::Digest(digest), _) => Some(digest.clone()),
            (Target::Tag(_), told) => told,
        };
        let digest = match expected {
            Some(expected) => {
                let actual = digest_as(&expected, &bytes);
                if actual != expected {
                    return Err(self.mismatch("manifest", expected, actual));
                }
                actual
            }
            None => Digest::sha256(&bytes),
        };
        let kind = text(&headers, header::CONTENT_TYPE);
        let media_type = manifest::media_type(kind, &bytes)
            .map_err(|p| self.malformed(format!("manifest {digest}"), p))?;
        let size = bytes.len() as u64;
        let descriptor = Descriptor {
            media_type,
            digest,
            size,
            platform: None,
            artifact_type: None,
            annotations: Default::default(),
        };
        Ok(Manifest { descriptor, bytes })
    }

    /// Sends a request and reads the whole answer, all of it again if it breaks off.
    async fn read_whole(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        what: &str,
        limit: usize,
    ) -> Result<(HeaderMap, Bytes), Error> {
        let mut backoff = self.shared.backoff(endpoint);
        loop {
            let response = self.shared.call(endpoint, call).await?;
            let (parts, body) = response.into_parts();
            match read_small(body, limit, &self.shared.transport.timeouts).await {
                Ok(Some(bytes)) => return Ok((parts.headers, bytes)),
                Ok(None) => return Err(self.too_large(what, limit)),
                Err(source) => {
                    backoff.pause(transport_error(&call.method, &call.uri, source), None).await?;
                }
            }
        }
    }

    /// A blob's bytes from `offset` on. The download resumes by itself; it is not checked against
    /// the digest unless [`Blob::verified`] is called. `size`, where known, is held to.
    ///
    /// # Errors
    /// [`Error::BlobUnknown`]; others when the registry refuses or cannot be reached.
    pub async fn get_blob(
        &self,
        digest: &Digest,
        size: Option<u64>,
        offset: u64,
    ) -> Result<Blob, Error> {
        route!(self, pull, endpoint => Blob::open(self, endpoint.clone(), digest, size, offset))
    }

    /// A small blob as a whole, checked against its digest.
    ///
    /// # Errors
    /// As [`Repository::get_blob`]; [`Error::TooLarge`] above `limit` bytes.
    pub async fn fetch_blob(&self, digest: &Digest, limit: usize) -> Result<Bytes, Error> {
        route!(self, pull, endpoint => self.fetch_blob_at(endpoint.clone(), digest, limit))
    }

    async fn fetch_blob_at(
        &self,
        endpoint: Arc<Endpoint>,
        digest: &Digest,
        limit: usize,
    ) -> Result<Bytes, Error> {
        let mut blob = Blob::open(self, endpoint, digest, None, 0).await?.verified();
        let mut all = bytes::BytesMut::new();
        loop {
            match blob.chunk().await {
                Ok(None) => return Ok(all.freeze()),
                Ok(Some(chunk)) if all.len() + chunk.len() > limit => {
                    return Err(self.too_large(format!("blob {digest}"), limit));
                }
                Ok(Some(chunk)) => all.extend_from_slice(&chunk),
                Err(error) => {
                    if matches!(error, Error::DigestMismatch { .. }) {
                        self.distrust(blob.sources());
                    }
                    return Err(error);
                }
            }
        }
    }

    /// The size of a blob in bytes; `None` if there is none.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub async fn blob_exists(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        or_none(route!(self, pull, endpoint => self.blob_size_at(&endpoint, digest)))
    }

    pub(crate) async fn blob_exists_at(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        or_none(self.blob_size_at(endpoint, digest).await)
    }

    async fn blob_size_at(&self, endpoint: &Endpoint, digest: &Digest) -> Result<u64, Error> {
        let rest = format!("blobs/{digest}");
        let call = self.request(endpoint, Method::HEAD, &rest, Context::Blob { digest })?;
        let response = self.shared.call(endpoint, &call).await?;
        let size = text(response.headers(), header::CONTENT_LENGTH).and_then(|s| s.parse().ok());
        size.ok_or_else(|| self.malformed(format!("blob {digest}"), Problem::Header("size")))
    }

    /// Stores a manifest under a tag or its digest; gives its digest.
    ///
    /// # Errors
    /// [`Error::PushDenied`] and others when the registry refuses; [`Error::DigestMismatch`] when
    /// `bytes` do not have the digest of the target.
    pub async fn put_manifest(
        &self,
        target: Target<'_>,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, Error> {
        let digest = match target {
            Target::Tag(_) => Digest::sha256(&bytes),
            Target::Digest(expected) => {
                let actual = digest_as(expected, &bytes);
                if actual != *expected {
                    return Err(self.mismatch("manifest", expected.clone(), actual));
                }
                actual
            }
        };
        route!(self, push, endpoint => self.put_manifest_at(&endpoint, target, media_type, &bytes, &digest))
    }

    async fn put_manifest_at(
        &self,
        endpoint: &Endpoint,
        target: Target<'_>,
        media_type: &str,
        bytes: &Bytes,
        digest: &Digest,
    ) -> Result<Digest, Error> {
        let rest = format!("manifests/{target}");
        let mut call = self.request(endpoint, Method::PUT, &rest, Context::Other)?;
        let kind = HeaderValue::from_str(media_type)
            .map_err(|_| self.malformed("manifest", Problem::MediaType(media_type.to_owned())))?;
        call.headers.insert(header::CONTENT_TYPE, kind);
        call.body = Some(bytes.clone());
        let response = self.shared.call(endpoint, &call).await?;
        match text(response.headers(), CONTENT_DIGEST).and_then(|d| d.parse::<Digest>().ok()) {
            Some(told) if told.algorithm() == digest.algorithm() && told != *digest => {
                Err(self.mismatch("stored manifest", digest.clone(), told))
            }
            _ => Ok(digest.clone()),
        }
    }

    /// All tags, as the registry orders them.
    ///
    /// # Errors
    /// When the registry refuses, or has more than 100,000 of them.
    pub async fn list_tags(&self) -> Result<Vec<String>, Error> {
        route!(self, resolve, endpoint => self.list_tags_at(&endpoint))
    }

    async fn list_tags_at(&self, endpoint: &Endpoint) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let mut tags = Vec::new();
        let mut call = self.request(endpoint, Method::GET, "tags/list?n=1000", Context::Other)?;
        for _ in 0..PAGES_MAX {
            let (headers, body) =
                self.read_whole(endpoint, &call, "list of tags", PAGE_BYTES_MAX).await?;
            let page: Page =
                serde_json::from_slice(&body).map_err(|e| self.malformed("list of tags", e))?;
            tags.extend(page.tags.unwrap_or_default());
            if tags.len() > LISTED_MAX {
                break;
            }
            match next_page(&headers).and_then(|next| resolve(&call.uri, next)) {
                None => return Ok(tags),
                Some(next) => call.uri = endpoint.next_page(next)?,
            }
        }
        Err(Error::TooMany {
            what: "list of tags",
            repository: self.name.clone(),
            limit: LISTED_MAX,
        })
    }

    /// What refers to a manifest (signatures, SBOMs), of one artifact type or all; by the
    /// referrers API, or by the tag that stands in for it (distribution-spec 1.1).
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub async fn referrers(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        let found = route!(self, referrers, endpoint => self.referrers_at(&endpoint, digest, artifact_type));
        let mut found = match found {
            Ok(found) => found,
            Err(error) if !error.is_without_referrers() => return Err(error),
            Err(_) => {
                let tag = format!("{}-{}", digest.algorithm().name(), digest.hex());
                match self.get_manifest(Target::Tag(&tag)).await {
                    Ok(index) if index.is_index() => index.entries(&self.name)?,
                    Ok(_) => Vec::new(),
                    Err(error) if error.is_not_found() => Vec::new(),
                    Err(error) => return Err(error),
                }
            }
        };
        // Whether the registry filtered is not always said.
        if let Some(wanted) = artifact_type {
            found.retain(|d| d.artifact_type.as_deref() == Some(wanted));
        }
        Ok(found)
    }

    async fn referrers_at(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        let filter = artifact_type.map(|t| format!("?artifactType={}", encode(t)));
        let rest = format!("referrers/{digest}{}", filter.unwrap_or_default());
        let mut call = self.request(endpoint, Method::GET, &rest, Context::Other)?;
        call.headers.insert(header::ACCEPT, HeaderValue::from_static(INDEX_TYPES[0]));
        let mut found = Vec::new();
        for _ in 0..PAGES_MAX {
            let (headers, bytes) =
                self.read_whole(endpoint, &call, "list of referrers", PAGE_BYTES_MAX).await?;
            let size = bytes.len() as u64;
            let descriptor = Descriptor {
                media_type: INDEX_TYPES[0].into(),
                digest: Digest::sha256(&bytes),
                size,
                platform: None,
                artifact_type: None,
                annotations: Default::default(),
            };
            found.extend(Manifest { descriptor, bytes }.entries(&self.name)?);
            if found.len() > LISTED_MAX {
                break;
            }
            match next_page(&headers).and_then(|next| resolve(&call.uri, next)) {
                None => return Ok(found),
                Some(next) => call.uri = endpoint.next_page(next)?,
            }
        }
        Err(Error::TooMany {
            what: "list of referrers",
            repository: self.name.clone(),
            limit: LISTED_MAX,
        })
    }

    /// Sends a request once; the answer must have one of the expected states.
    pub(crate) async fn expect(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        expected: &[StatusCode],
    ) -> Result<Response<Incoming>, Error> {
        let response = self.shared.call(endpoint, call).await?;
        if expected.contains(&response.status()) {
            return Ok(response);
        }
        Err(self.shared.refused(endpoint, call, response).await.0)
    }
}

/// After the last endpoint was asked: that there is no such thing is no error.
fn or_none<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn lock(set: &Mutex<BTreeSet<String>>) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
    set.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The digest of `bytes` by the algorithm of another.
fn digest_as(like: &Digest, bytes: &[u8]) -> Digest {
    let mut digester = types::Digester::new(like.algorithm());
    digester.update(bytes);
    digester.finish()
}

/// The target of `Link: <…>; rel="next"` (RFC 8288).
fn next_page(headers: &HeaderMap) -> Option<&str> {
    let link = text(headers, header::LINK)?;
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    parameters.contains("next").then_some(target)
}
