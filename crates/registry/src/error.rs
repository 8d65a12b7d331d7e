use std::{io, path::Path};

use types::{Digest, ErrorKind, Platform};

use crate::dns::ConnectError;

/// Why a registry did not do what it was asked. The texts are docker's where its clients know
/// them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "pull access denied for {repository}, repository does not exist or may require \
         'docker login': {message}"
    )]
    PullDenied { repository: String, message: String },
    #[error("repository {repository} not found: {message}")]
    RepositoryUnknown { repository: String, message: String },
    #[error("{message}")]
    PushDenied { repository: String, message: String },
    #[error("manifest for {reference} not found: {message}")]
    ManifestUnknown { reference: String, message: String },
    #[error("unknown blob {digest} in {repository}")]
    BlobUnknown { repository: String, digest: Digest },
    #[error("no matching manifest for {platform} in the manifest list entries")]
    NoPlatform { platform: Platform },
    #[error("{message}")]
    Unauthorized { registry: String, message: String },
    #[error("login attempt to {url} failed with status: {status}")]
    Login { url: String, status: http::StatusCode },
    #[error("{message}")]
    TooManyRequests {
        registry: String,
        message: String,
        /// How long we are asked to wait.
        after: Option<std::time::Duration>,
    },
    #[error("received unexpected HTTP status {status} from {method} {url}: {message}")]
    Status { method: String, url: String, status: u16, message: String },
    #[error("{} {url:?}", capital(method))]
    Transport { method: String, url: String, source: TransportError },
    #[error("{what} of {repository} has digest {actual}, not {expected}")]
    DigestMismatch { what: &'static str, repository: String, expected: Digest, actual: Digest },
    #[error("{what} {digest} of {repository} has {actual} bytes, {expected} were expected")]
    SizeMismatch {
        what: &'static str,
        repository: String,
        digest: Digest,
        expected: u64,
        actual: u64,
    },
    /// `from` is a repository, of what is one's.
    #[error("{what} from {from} is larger than {limit} bytes")]
    TooLarge { what: String, from: String, limit: usize },
    #[error("{what} from {repository} has more than {limit} entries")]
    TooMany { what: &'static str, repository: String, limit: usize },
    #[error("{what} from {from} is malformed: {problem}")]
    Malformed { what: String, from: String, problem: Problem },
    #[error("reading the data to be uploaded as {digest}")]
    Source { digest: Digest, source: io::Error },
    #[error("invalid {what} {text:?} in the registry configuration")]
    Config { what: &'static str, text: String },
    #[error("reading {}", path.display())]
    File { path: std::path::PathBuf, source: io::Error },
    #[error("invalid {}", path.display())]
    Hosts { path: std::path::PathBuf, source: Box<crate::hosts::HostsError> },
    #[error("{} says that no server of {registry} may be asked to {wish}", path.display())]
    NotCapable { path: std::path::PathBuf, registry: String, wish: &'static str },
    #[error("loading certificates for {host}")]
    Certificates { host: String, source: rustls::Error },
    #[error("reading certificates from {}", path.display())]
    Pem { path: std::path::PathBuf, source: rustls_pki_types::pem::Error },
}

/// `GET` as docker's errors write it: `Get`.
pub(crate) fn capital(method: &str) -> String {
    let (first, rest) = method.split_at(method.len().min(1));
    format!("{first}{}", rest.to_ascii_lowercase())
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("{0}")]
    Text(&'static str),
    #[error("not the expected JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("media type {0:?} is not supported")]
    MediaType(String),
    #[error("it says {body:?} but was sent as {header:?}")]
    TwoMediaTypes { header: String, body: String },
    #[error("invalid {0}")]
    Header(&'static str),
    #[error("invalid digest: {0}")]
    Digest(#[from] types::DigestError),
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("tls: handshake with {host}")]
    Tls { host: String, source: io::Error },
    /// In the words of Go's library, as docker's clients know them.
    #[error("tls: failed to verify certificate: x509: {problem}. {way_out}")]
    Untrusted { problem: String, way_out: String },
    #[error("remote error: tls: {alert}. {way_out}")]
    ClientCertificate { alert: String, way_out: String },
    #[error(
        "http: server gave HTTP response to HTTPS client. If {host} may be used without TLS, name it in \
         insecure-registries"
    )]
    NotTls { host: String },
    #[error("proxy {proxy}: {problem}")]
    Proxy { proxy: String, problem: &'static str },
    #[error("proxy {proxy} refused the connection with status {status}")]
    ProxyStatus { proxy: String, status: u16 },
    #[error("http: {0}")]
    Http(#[from] hyper::Error),
    #[error("i/o")]
    Io(#[from] io::Error),
    #[error("no answer within {} s", seconds)]
    NoAnswer { seconds: u64 },
    #[error("stalled: fewer than {bytes} bytes in {seconds} s")]
    Stalled { bytes: u64, seconds: u64 },
    #[error("the answer ended after {got} bytes")]
    ShortBody { got: u64 },
    #[error("{0}")]
    Redirect(&'static str),
    #[error("invalid address: {0}")]
    Address(&'static str),
    #[error("loading certificates")]
    Setup(#[source] Box<Error>),
}

impl TransportError {
    /// Why TLS did not come about, with the way out where there is one. `host` as `certs.d` names it.
    pub(crate) fn tls(host: &str, dir: Option<&Path>, source: io::Error) -> Self {
        use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as Tls};
        let dir = dir.unwrap_or(Path::new("/etc/docker/certs.d")).join(host);
        let known = source.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
        let untrusted = |problem: String, way_out| Self::Untrusted { problem, way_out };
        let clock = || "Check the clock of this machine and the registry's certificate".to_owned();
        let ask = || "Ask the registry's operator for a certificate with this name".to_owned();
        match known {
            Some(Tls::InvalidCertificate(bad)) => match bad {
                Bad::UnknownIssuer => untrusted(
                    "certificate signed by unknown authority".into(),
                    format!(
                        "Put the authority's certificate into {}",
                        dir.join("ca.crt").display()
                    ),
                ),
                Bad::Expired | Bad::ExpiredContext { .. } => {
                    untrusted("certificate has expired".into(), clock())
                }
                Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                    untrusted("certificate is not yet valid".into(), clock())
                }
                Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                    untrusted(format!("certificate is not valid for {host}"), ask())
                }
                other => untrusted(other.to_string(), ask()),
            },
            Some(Tls::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
                Self::NotTls { host: host.to_owned() }
            }
            Some(Tls::AlertReceived(
                alert @ (Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnknownCA
                | Alert::CertificateUnknown
                | Alert::CertificateExpired
                | Alert::HandshakeFailure),
            )) => Self::ClientCertificate {
                alert: format!("{alert:?}"),
                way_out: format!(
                    "If the registry wants a certificate of ours, put it into {} and its key into {}",
                    dir.join("client.cert").display(),
                    dir.join("client.key").display()
                ),
            },
            _ => Self::Tls { host: host.to_owned(), source },
        }
    }

    /// Whether the same request may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        use crate::dns::DnsError;
        match self {
            Self::Connect(ConnectError::Resolve(e)) => {
                matches!(e, DnsError::Timeout { .. } | DnsError::Server { .. })
            }
            Self::Connect(ConnectError::Tcp { source, .. }) => {
                source.kind() != io::ErrorKind::ConnectionRefused
            }
            // A certificate does not get better; a connection cut in the handshake may.
            Self::Tls { source, .. } => source.kind() != io::ErrorKind::InvalidData,
            Self::Connect(ConnectError::Timeout { .. })
            | Self::Http(_)
            | Self::Io(_)
            | Self::NoAnswer { .. }
            | Self::Stalled { .. }
            | Self::ShortBody { .. } => true,
            Self::Untrusted { .. }
            | Self::ClientCertificate { .. }
            | Self::NotTls { .. }
            | Self::Proxy { .. }
            | Self::ProxyStatus { .. }
            | Self::Redirect(_)
            | Self::Address(_)
            | Self::Setup(_) => false,
        }
    }

    /// Whether the other side may be one that does not speak TLS, or does not listen there.
    pub(crate) fn allows_plain_http(&self) -> bool {
        matches!(
            self,
            Self::Tls { .. }
                | Self::Untrusted { .. }
                | Self::ClientCertificate { .. }
                | Self::NotTls { .. }
                | Self::Connect(_)
                | Self::Io(_)
                | Self::Http(_)
        )
    }
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        match self {
            // dockerd answers "repository does not exist" with 404.
            Self::PullDenied { .. }
            | Self::RepositoryUnknown { .. }
            | Self::ManifestUnknown { .. }
            | Self::BlobUnknown { .. }
            | Self::NoPlatform { .. } => ErrorKind::NotFound,
            Self::PushDenied { .. } => ErrorKind::PermissionDenied,
            Self::Unauthorized { .. } => ErrorKind::Unauthenticated,
            Self::TooManyRequests { .. } => ErrorKind::ResourceExhausted,
            Self::Transport {
                source: TransportError::NoAnswer { .. } | TransportError::Stalled { .. },
                ..
            } => ErrorKind::DeadlineExceeded,
            Self::Status { .. } | Self::Transport { .. } => ErrorKind::Unavailable,
            Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::TooLarge { .. }
            | Self::TooMany { .. }
            | Self::Malformed { .. } => ErrorKind::DataLoss,
            Self::Config { .. } | Self::Hosts { .. } | Self::NotCapable { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::Login { .. }
            | Self::Source { .. }
            | Self::File { .. }
            | Self::Certificates { .. }
            | Self::Pem { .. } => ErrorKind::Internal,
        }
    }

    /// Whether there is no connection to be had at this moment.
    pub(crate) fn is_unreachable(&self) -> bool {
        let Self::Transport { source: TransportError::Connect(source), .. } = self else {
            return false;
        };
        matches!(source, ConnectError::Tcp { .. } | ConnectError::Timeout { .. })
    }

    /// In one line, for the log.
    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(source) = cause {
            text.push_str(&format!(": {source}"));
            cause = source.source();
        }
        text
    }

    /// Whether the same request may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TooManyRequests { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 500 | 502..=504),
            Self::Transport { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    /// Whether a registry's answer for a list of referrers says that it has no such list.
    pub(crate) fn is_without_referrers(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 404 | 405),
            // A registry without the API may say that it knows no such name.
            Self::PullDenied { .. } | Self::RepositoryUnknown { .. } => true,
            _ => false,
        }
    }

    /// Whether the registry, rather than the network, said that it has no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::ManifestUnknown { .. }
                | Self::BlobUnknown { .. }
                | Self::Status { status: 404, .. }
        )
    }
}
