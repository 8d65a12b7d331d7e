//! Requests: to which server, as whom, along which redirects, how often.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use serde::Deserialize;
use types::{DEFAULT_DOMAIN, Digest, ImageRef};

use crate::{
    auth::{Challenge, transport_error},
    config::{Config, Credentials, Timeouts},
    dns,
    endpoint::{Asking, Endpoint, HUB_HOST, Purpose},
    error::{Error, TransportError, capital},
    repository::Repository,
    transport::{Origin, Payload, Transport, read_small, text},
};

/// Redirects followed for one request.
pub(crate) const REDIRECTS_MAX: usize = 5;
/// Bytes of an error's body that are looked at.
const ERROR_BODY_MAX: usize = 64 << 10;
/// Characters of a registry's own words that go into an error.
const MESSAGE_MAX: usize = 1000;
/// The longest pause between attempts that the registry did not ask for.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A client of all registries; clones share connections.
#[derive(Clone)]
pub struct Client(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) transport: Transport,
    pub(crate) mirrors: Vec<Uri>,
    pub(crate) certs_dirs: Vec<PathBuf>,
    attempts: u32,
    /// By host and port: whether HTTPS was spoken, and when.
    pub(crate) schemes: Mutex<HashMap<String, (bool, Instant)>>,
    /// The unknown keys of each `hosts.toml` that were warned of.
    pub(crate) warned: Mutex<HashMap<PathBuf, Vec<String>>>,
}

/// What a successful login gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// To be kept in place of the password, if the registry gives one.
    pub identity_token: Option<String>,
}

/// What a request is about, for the words of its error.
pub(crate) enum Context<'a> {
    Manifest { reference: &'a str },
    Blob { digest: &'a Digest },
    Login,
    Other,
}

/// One request of a repository.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    /// `None`: no body.
    pub(crate) body: Option<Bytes>,
    pub(crate) context: Context<'a>,
    /// Push or pull, and the name that errors use.
    pub(crate) push: bool,
    pub(crate) name: &'a str,
}

impl Client {
    /// # Errors
    /// [`Error::Config`] for a mirror, proxy or list of insecure registries that makes no sense.
    pub fn new(config: Config) -> Result<Self, Error> {
        let mirror = |text: &String| {
            let error = || Error::Config { what: "registry mirror", text: text.clone() };
            let uri: Uri = text.parse().map_err(|_| error())?;
            Origin::of(&uri).map_err(|_| error())?;
            if uri.query().is_some() { Err(error()) } else { Ok(uri) }
        };
        Ok(Self(Arc::new(Shared {
            transport: Transport::new(&config)?,
            mirrors: config.mirrors.iter().map(mirror).collect::<Result<_, _>>()?,
            certs_dirs: config.certs_dirs,
            attempts: config.attempts.max(1),
            schemes: Mutex::default(),
            warned: Mutex::default(),
        })))
    }

    /// The repository of an image, to read from. Reads the registry's `hosts.toml`.
    ///
    /// # Errors
    /// [`Error::Hosts`] and [`Error::File`] when that file is no good.
    pub async fn pull(
        &self,
        image: &ImageRef,
        credentials: Credentials,
    ) -> Result<Repository, Error> {
        let scopes = [format!("repository:{}:pull", image.path())];
        self.repository(image, &credentials, &scopes, Purpose::Pull).await
    }

    /// The repository of an image, to write to. Reads the registry's `hosts.toml`.
    ///
    /// # Errors
    /// As [`Client::pull`]; [`Error::NotCapable`] when no server may be pushed to.
    pub async fn push(
        &self,
        image: &ImageRef,
        credentials: Credentials,
    ) -> Result<Repository, Error> {
        let scopes = [format!("repository:{}:pull,push", image.path())];
        self.repository(image, &credentials, &scopes, Purpose::Push).await
    }

    async fn repository(
        &self,
        image: &ImageRef,
        credentials: &Credentials,
        scopes: &[String],
        purpose: Purpose,
    ) -> Result<Repository, Error> {
        let asking = Asking { registry: image.domain(), credentials, scopes, purpose };
        let endpoints = self.0.endpoints(asking).await?;
        Ok(Repository::new(self.0.clone(), image, endpoints, purpose == Purpose::Push))
    }

    /// Checks credentials. `registry` is a host and port or, as docker's clients send it, a URL.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] when they are wrong.
    pub async fn login(&self, registry: &str, credentials: Credentials) -> Result<Login, Error> {
        let host = registry.split_once("://").map_or(registry, |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default();
        let host = match host {
            "" | "index.docker.io" | HUB_HOST => DEFAULT_DOMAIN,
            host => host,
        };
        let purpose = Purpose::Login;
        let asking = Asking { registry: host, credentials: &credentials, scopes: &[], purpose };
        let endpoints = self.0.endpoints(asking).await?.all;
        let mut last = Error::Config { what: "registry", text: registry.to_owned() };
        for endpoint in endpoints.iter().filter(|e| self.0.may_answer(e)) {
            let call = Call {
                method: Method::GET,
                uri: endpoint.uri("/")?,
                headers: HeaderMap::new(),
                body: None,
                context: Context::Login,
                push: true,
                name: host,
            };
            match self.0.call(endpoint, &call).await {
                Ok(response) => {
                    drop(response);
                    self.0.learn(endpoint);
                    let identity_token = endpoint.identity_token().await;
                    return Ok(Login { identity_token });
                }
                Err(error) if self.0.falls_through(endpoint, &error) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}

impl Shared {
    /// Sends a request until it succeeds, fails for good, or was tried often enough.
    pub(crate) async fn call(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
    ) -> Result<Response<Incoming>, Error> {
        let mut backoff = self.backoff(endpoint);
        loop {
            let (error, after) = match self.once(endpoint, call).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => self.refused(endpoint, call, response).await,
                Err(error) => (error, None),
            };
            backoff.pause(error, after).await?;
        }
    }

    pub(crate) fn backoff(&self, endpoint: &Endpoint) -> Backoff {
        let attempts = if self.has_next(endpoint) { 1 } else { self.attempts };
        Backoff { attempts, failed: 0, timeouts: self.transport.timeouts }
    }

    /// One attempt, with the authentication that it takes.
    pub(crate) async fn once(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
    ) -> Result<Response<Incoming>, Error> {
        let mut renewed = false;
        loop {
            let (value, generation) = endpoint.authorization().await;
            let (response, at_home) = self.follow(endpoint, call, value).await?;
            let is_final = renewed || endpoint.has_own_authorization();
            if response.status() != StatusCode::UNAUTHORIZED || !at_home || is_final {
                return Ok(response);
            }
            let Some(challenge) = Challenge::find(response.headers()) else {
                return Ok(response);
            };
            let renewal = endpoint.renew(&self.transport, challenge, generation).await;
            renewal.map_err(|error| at_request(call, error))?;
            renewed = true;
        }
    }

    /// Follows redirects of requests without a body. False: the answer is another server's.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<(Response<Incoming>, bool), Error> {
        let mut uri = call.uri.clone();
        for _ in 0..=REDIRECTS_MAX {
            let error = |source| transport_error(&call.method, &uri, source);
            let origin = Origin::of(&uri).map_err(error)?;
            let at_home = origin == endpoint.origin;
            let mut headers = call.headers.clone();
            if let Some(value) = authorization.as_ref().filter(|_| at_home) {
                headers.insert(header::AUTHORIZATION, value.clone());
            }
            if at_home {
                endpoint.own_headers(&mut headers);
            }
            let payload = call.body.clone().map_or(Payload::Empty, Payload::Bytes);
            let via = endpoint.via(&origin);
            let sent = self.transport.send(&via, &call.method, &uri, &headers, payload);
            let response = sent.await.map_err(error)?;
            let Some(target) = redirect(&uri, &response).map_err(error)? else {
                return Ok((response, at_home));
            };
            if !matches!(call.method, Method::GET | Method::HEAD) {
                return Err(error(TransportError::Redirect("a write was redirected")));
            }
            uri = target;
        }
        Err(transport_error(&call.method, &uri, TransportError::Redirect("too many redirects")))
    }

    /// The error that a refusal is, and how long the registry wants us to wait.
    pub(crate) async fn refused(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        response: Response<Incoming>,
    ) -> (Error, Option<Duration>) {
        let status = response.status().as_u16();
        let after = text(response.headers(), header::RETRY_AFTER).and_then(retry_after);
        let scope = matches!(
            Challenge::find(response.headers()),
            Some(Challenge::Bearer { error: Some(e), .. }) if e == "insufficient_scope"
        );
        let body = read_small(response.into_body(), ERROR_BODY_MAX, &self.transport.timeouts).await;
        let body = body.ok().flatten().unwrap_or_default();
        (refusal(endpoint, call, status, scope, &body), after)
    }
}

/// Docker names the request for which it has no credentials or gets no token, but not while it pushes.
/// It asks for a manifest with HEAD first; scripts know the message by that.
fn at_request(call: &Call<'_>, error: Error) -> Error {
    match (error, &call.context) {
        (Error::Unauthorized { registry, message }, context)
            if !call.push || matches!(context, Context::Login) =>
        {
            let method = match context {
                Context::Manifest { .. } => "Head".into(),
                _ => capital(call.method.as_str()),
            };
            let message = format!("{method} {:?}: {message}", shown(&call.uri));
            Error::Unauthorized { registry, message }
        }
        (error, _) => error,
    }
}

fn refusal(endpoint: &Endpoint, call: &Call<'_>, status: u16, scope: bool, body: &[u8]) -> Error {
    let code = error_code(body).unwrap_or_default();
    let told = error_text(body);
    let registry = endpoint.registry.clone();
    let denied = || "denied: requested access to the resource is denied".to_owned();
    let is_denied = scope || status == 403 || code == "DENIED";
    if status == 429 || code == "TOOMANYREQUESTS" {
        let message = told.unwrap_or_else(|| "toomanyrequests: too many requests".into());
        return Error::TooManyRequests { registry, message, after: None };
    }
    if is_denied && call.push {
        let message = told.filter(|_| !scope).unwrap_or_else(denied);
        return Error::PushDenied { repository: call.name.into(), message };
    }
    if is_denied {
        let message = told.filter(|_| !scope).unwrap_or_else(denied);
        return Error::PullDenied { repository: call.name.into(), message };
    }
    if code == "NAME_UNKNOWN" && !call.push {
        let message = told.unwrap_or_else(|| "name unknown: repository name not known".into());
        return Error::RepositoryUnknown { repository: call.name.into(), message };
    }
    if status == 401 && matches!(call.context, Context::Login) {
        return Error::Login { url: shown(&call.uri), status: StatusCode::UNAUTHORIZED };
    }
    if status == 401 {
        let message = told.unwrap_or_else(|| "unauthorized: authentication required".into());
        return Error::Unauthorized { registry, message };
    }
    match &call.context {
        Context::Manifest { reference } if status == 404 => Error::ManifestUnknown {
            reference: (*reference).to_owned(),
            message: told.unwrap_or_else(|| "manifest unknown: manifest unknown".into()),
        },
        Context::Blob { digest } if status == 404 => {
            Error::BlobUnknown { repository: call.name.into(), digest: (*digest).clone() }
        }
        _ => Error::Status {
            method: call.method.to_string(),
            url: shown(&call.uri),
            status,
            message: told.unwrap_or_else(|| {
                let text = String::from_utf8_lossy(body);
                text.trim().chars().take(MESSAGE_MAX).collect()
            }),
        },
    }
}

impl Error {
    /// Whether another server, or plain HTTP, may do better.
    pub(crate) fn is_other_way_possible(&self) -> bool {
        matches!(self, Self::Transport { source, .. } if source.allows_plain_http())
    }
}

/// Counts failures and waits between them.
pub(crate) struct Backoff {
    attempts: u32,
    failed: u32,
    timeouts: Timeouts,
}

impl Backoff {
    /// Waits before the next attempt, or gives the error back if there is to be none.
    pub(crate) async fn pause(
        &mut self,
        error: Error,
        after: Option<Duration>,
    ) -> Result<(), Error> {
        let transient = error.is_transient();
        self.pause_if(transient, error, after).await
    }

    /// The same where it is known whether another attempt makes sense.
    pub(crate) async fn pause_if(
        &mut self,
        transient: bool,
        error: Error,
        after: Option<Duration>,
    ) -> Result<(), Error> {
        self.failed += 1;
        if self.failed >= self.attempts || !transient {
            return Err(error);
        }
        let told = match &error {
            Error::TooManyRequests { after, .. } => *after,
            _ => None,
        };
        let pause = match after.or(told) {
            Some(after) if after > self.timeouts.retry_after_max => return Err(error),
            Some(after) => after,
            None => self.next_pause(),
        };
        tracing::debug!(%error, ?pause, "a registry request is tried again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Progress was made: failures count anew.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }

    /// Doubles each time; between half and the whole of it, so that clients spread.
    fn next_pause(&self) -> Duration {
        let doubled = self.timeouts.backoff.saturating_mul(1 << (self.failed - 1).min(16));
        let full = doubled.min(BACKOFF_MAX);
        let random = u32::from(u16::from_ne_bytes(dns::random_bytes()));
        full / 2 + full / 2 * random / 65_536
    }
}

/// Seconds, or a date (RFC 9110 section 10.2.3).
pub(crate) fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = http_date(text.trim())?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(date).saturating_sub(now))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split([' ', ':']).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = words.as_slice() else { return None };
    let month = u64::try_from(MONTHS.iter().position(|m| m == month)?).ok()? + 1;
    let number = |text: &str| text.parse::<u64>().ok();
    let (day, year) = (number(day)?, number(year).filter(|y| (1970..10_000).contains(y))?);
    // Days from civil, the year beginning in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day;
    let days = days.checked_sub(719_469)?;
    Some(days * 86_400 + number(hour)? * 3600 + number(minute)? * 60 + number(second)?)
}

/// Where an answer sends who asked for `uri`; `None` for an answer that is none.
pub(crate) fn redirect(
    uri: &Uri,
    response: &Response<Incoming>,
) -> Result<Option<Uri>, TransportError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let target = text(response.headers(), header::LOCATION).and_then(|to| resolve(uri, to));
    let target = target.ok_or(TransportError::Redirect("redirect to nowhere"))?;
    if uri.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
        return Err(TransportError::Redirect("redirect from https to http"));
    }
    Ok(Some(target))
}

/// A reference to another address, seen from `base` (RFC 3986 section 5, without `..`).
pub(crate) fn resolve(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next().unwrap_or_default();
    if reference.contains("://") {
        let uri: Uri = reference.parse().ok()?;
        return (!uri.authority()?.as_str().contains('@')).then_some(uri);
    }
    let scheme = base.scheme_str()?;
    if let Some(rest) = reference.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    let authority = base.authority()?;
    if reference.starts_with('/') {
        return format!("{scheme}://{authority}{reference}").parse().ok();
    }
    let path = base.path();
    let joined = match reference.strip_prefix('?') {
        Some(query) => format!("{path}?{query}"),
        None => format!("{}/{reference}", path.rsplit_once('/').map_or("", |(dir, _)| dir)),
    };
    format!("{scheme}://{authority}{joined}").parse().ok()
}

/// An address without its query, which may hold signatures.
pub(crate) fn shown(uri: &Uri) -> String {
    let (scheme, authority) = (uri.scheme_str().unwrap_or(""), uri.authority());
    let host = authority.map_or("", |a| a.as_str());
    format!("{scheme}://{}{}", host.rsplit('@').next().unwrap_or_default(), uri.path())
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    code: String,
    #[serde(default)]
    message: String,
}

fn first_error(body: &[u8]) -> Option<OneError> {
    serde_json::from_slice::<Errors>(body).ok()?.errors.into_iter().next()
}

fn error_code(body: &[u8]) -> Option<String> {
    first_error(body).map(|e| e.code)
}

/// The first error of an answer's body as docker words it: `manifest unknown: manifest unknown`.
pub(crate) fn error_text(body: &[u8]) -> Option<String> {
    let error = first_error(body)?;
    let code = error.code.to_lowercase().replace('_', " ");
    let text = if error.message.is_empty() { code } else { format!("{code}: {}", error.message) };
    Some(text.chars().take(MESSAGE_MAX).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_resolved() {
        let base: Uri = "https://a:5/v2/x/blobs?q=1".parse().unwrap();
        for (reference, expected) in [
            ("http://b/c", "http://b/c"),
            ("//b/c", "https://b/c"),
            ("/c?d#e", "https://a:5/c?d"),
            ("c", "https://a:5/v2/x/c"),
            ("?z", "https://a:5/v2/x/blobs?z"),
        ] {
            assert_eq!(resolve(&base, reference).unwrap().to_string(), expected);
        }
        assert!(resolve(&base, "https://u:p@b/").is_none());
    }

    #[test]
    fn dates() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("nonsense"), None);
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
    }

    #[test]
    fn words_of_registries() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        assert_eq!(error_text(body).unwrap(), "manifest unknown: manifest unknown");
        assert_eq!(error_text(b"<html>"), None);
    }
}
