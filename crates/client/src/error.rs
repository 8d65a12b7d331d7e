//! What can go wrong between us and the engine.

use http::StatusCode;

/// An error of a call. `Display` is docker's wording where docker has one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing listens there.
    #[error("Cannot connect to the Docker daemon at {host}. Is the docker daemon running?")]
    NotRunning {
        host: String,
        #[source]
        source: std::io::Error,
    },
    /// The socket may not be opened by this user.
    #[error(
        "permission denied while trying to connect to the Docker daemon socket at {host}: {source}"
    )]
    Permission { host: String, source: std::io::Error },
    /// Another failure to reach the host.
    #[error("error during connect: {host}: {source}")]
    Connect { host: String, source: std::io::Error },
    /// The engine answered with an error.
    #[error("Error response from daemon: {message}")]
    Api { status: StatusCode, message: String },
    /// The connection failed in the middle of a call.
    #[error("error during connect: {method} {path}: {}", chain(source))]
    Http { method: String, path: String, source: hyper::Error },
    /// A request that cannot be put into words.
    #[error("cannot build the request {method} {path}: {source}")]
    Request { method: String, path: String, source: http::Error },
    /// The reply is not what the API promises.
    #[error("cannot read the reply to {what}: {source}")]
    Decode { what: String, source: serde_json::Error },
    /// The reply is larger than any honest one.
    #[error("the reply to {what} is larger than {limit_bytes} bytes")]
    TooLarge { what: String, limit_bytes: usize },
    /// A header of the reply cannot be read.
    #[error("cannot read the header {header} of the reply to {what}")]
    Header { what: String, header: &'static str },
    /// A connection that should have become a raw one did not.
    #[error("unable to upgrade to tcp, received {status}")]
    NotUpgraded { status: u16 },
    /// The body of a reply broke off.
    #[error("the stream broke off: {}", chain(source))]
    Stream { source: hyper::Error },
    /// A file to send or to receive into failed.
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

/// hyper tells little without its causes.
fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl Error {
    /// The status of an engine's answer.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Error::Api { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The engine answered 404.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND)
    }

    /// The engine's text, without the prefix.
    pub fn message(&self) -> Option<&str> {
        match self {
            Error::Api { message, .. } => Some(message),
            _ => None,
        }
    }

    /// No engine could be reached at all.
    pub fn is_connect(&self) -> bool {
        matches!(self, Error::NotRunning { .. } | Error::Permission { .. } | Error::Connect { .. })
    }
}
