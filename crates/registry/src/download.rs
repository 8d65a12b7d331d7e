//! Plain downloads from web servers that are no registries (`ADD` of an URL).

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use crate::{
    auth::transport_error,
    client::{Client, REDIRECTS_MAX, http_date, resolve},
    error::{Error, TransportError},
    transport::{Payload, text},
};

/// What a web server sends. Dropping it ends the download.
pub struct Download {
    client: Client,
    uri: Uri,
    body: Incoming,
    /// Bytes that are to come, if the server said it.
    pub size: Option<u64>,
    /// Unix seconds.
    pub last_modified: Option<i64>,
    /// Of `Content-Disposition`; as the server wrote it, so not to be used as a path.
    pub file_name: Option<String>,
    got: u64,
    span_end: Instant,
    span_bytes: u64,
}

impl Client {
    /// Asks for an URL, along redirects, without credentials; through the proxy of this client, whose
    /// authorities the certificate is checked against.
    ///
    /// # Errors
    /// [`Error::Config`] for what is no URL of `http` or `https`; [`Error::Status`] when the server
    /// refuses; when it cannot be reached, or leads from https to http.
    pub async fn download(&self, url: &str) -> Result<Download, Error> {
        let bad = || Error::Config { what: "URL", text: url.to_owned() };
        let mut uri: Uri = url.split('#').next().unwrap_or(url).parse().map_err(|_| bad())?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        if !is_web || uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(bad());
        }
        let mut headers = HeaderMap::new();
        // The file itself, not a compressed form of it.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let transport = &self.0.transport;
        for _ in 0..=REDIRECTS_MAX {
            let error = |source| transport_error(&Method::GET, &uri, source);
            let sent = transport.send(&Method::GET, &uri, &headers, Payload::Empty).await;
            let response = sent.map_err(error)?;
            let status = response.status();
            if status == StatusCode::OK {
                let number = |name| text(response.headers(), name)?.parse::<u64>().ok();
                let modified = text(response.headers(), header::LAST_MODIFIED).and_then(http_date);
                let disposition = text(response.headers(), header::CONTENT_DISPOSITION);
                return Ok(Download {
                    client: self.clone(),
                    size: number(header::CONTENT_LENGTH),
                    last_modified: modified.and_then(|seconds| i64::try_from(seconds).ok()),
                    file_name: disposition.and_then(file_name),
                    uri,
                    body: response.into_body(),
                    got: 0,
                    span_end: Instant::now() + transport.timeouts.stall,
                    span_bytes: 0,
                });
            }
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Err(Error::Status {
                    method: Method::GET.to_string(),
                    url: uri.to_string(),
                    status: status.as_u16(),
                    message: status.canonical_reason().unwrap_or_default().to_owned(),
                });
            }
            let target =
                text(response.headers(), header::LOCATION).and_then(|to| resolve(&uri, to));
            let target =
                target.ok_or_else(|| error(TransportError::Redirect("redirect to nowhere")))?;
            if uri.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
                return Err(error(TransportError::Redirect("redirect from https to http")));
            }
            uri = target;
        }
        let source = TransportError::Redirect("too many redirects");
        Err(transport_error(&Method::GET, &uri, source))
    }
}

impl Download {
    /// The next bytes, `None` at the end.
    ///
    /// # Errors
    /// When the connection fails or stalls, or ends before the size that was announced.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let chunk = self.receive().await;
        chunk.map_err(|source| transport_error(&Method::GET, &self.uri, source))
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, TransportError> {
        let transport = &self.client.0.transport;
        loop {
            let frame = match timeout_at(self.span_end, self.body.frame()).await {
                Ok(frame) => frame,
                Err(_) if self.span_bytes < transport.timeouts.stall_bytes => {
                    return Err(transport.stalled());
                }
                Err(_) => {
                    self.span_end = Instant::now() + transport.timeouts.stall;
                    self.span_bytes = 0;
                    continue;
                }
            };
            let Some(frame) = frame else {
                return match self.size {
                    Some(size) if self.got < size => {
                        Err(TransportError::ShortBody { got: self.got })
                    }
                    _ => Ok(None),
                };
            };
            let Ok(data) = frame?.into_data() else { continue };
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            self.got = self.got.saturating_add(length);
            self.span_bytes = self.span_bytes.saturating_add(length);
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }
}

/// `attachment; filename="x"` (RFC 6266), without the encoded form.
fn file_name(disposition: &str) -> Option<String> {
    let parameters = disposition.split(';').skip(1);
    let mut names = parameters.filter_map(|parameter| {
        let (key, value) = parameter.trim().split_once('=')?;
        key.eq_ignore_ascii_case("filename").then(|| value.trim_matches('"').to_owned())
    });
    names.next().filter(|name| !name.is_empty())
}
