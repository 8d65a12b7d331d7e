//! Plain downloads from web servers that are no registries (`ADD` of an URL).

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use hyper::body::Incoming;

use crate::{
    auth::transport_error,
    client::{Client, REDIRECTS_MAX, http_date, redirect},
    error::{Error, TransportError},
    transport::{Pace, Payload, Via, text},
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
    pace: Pace,
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
            let sent =
                transport.send(&Via::default(), &Method::GET, &uri, &headers, Payload::Empty).await;
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
                    pace: Pace::new(&transport.timeouts),
                });
            }
            let Some(target) = redirect(&uri, &response).map_err(error)? else {
                return Err(Error::Status {
                    method: Method::GET.to_string(),
                    url: uri.to_string(),
                    status: status.as_u16(),
                    message: status.canonical_reason().unwrap_or_default().to_owned(),
                });
            };
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
        let left = self.size.map(|size| size.saturating_sub(self.got));
        let data = self.pace.next(&mut self.body, left, &self.client.0.transport).await?;
        let length = data.as_ref().map_or(0, |data| data.len() as u64);
        self.got = self.got.saturating_add(length);
        match self.size {
            Some(size) if data.is_none() && self.got < size => {
                Err(TransportError::ShortBody { got: self.got })
            }
            _ => Ok(data),
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
