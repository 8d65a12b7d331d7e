use types::ErrorKind;

/// What an engine operation answers when it fails: the kind that becomes the HTTP status, and the text
/// that users read. Clients match on some texts, so they are dockerd's where dockerd has one.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Already in the state that was asked for: HTTP 304.
    pub fn not_modified(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotModified, message)
    }

    /// A field or feature that exists in docker and is not built here yet, named.
    pub fn not_implemented(what: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::NotImplemented, format!("{what} is not supported by this engine yet"))
    }

    pub fn no_such_container(name: &str) -> Self {
        Self::not_found(format!("No such container: {name}"))
    }

    pub fn no_such_image(name: &str) -> Self {
        Self::not_found(format!("No such image: {name}"))
    }

    /// An I/O failure with the operation and the path that it was about.
    pub fn io(operation: &str, path: &std::path::Path, source: &std::io::Error) -> Self {
        Self::internal(format!("{operation} {}: {source}", path.display()))
    }

    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }
}

impl From<store_api::Error> for Error {
    fn from(error: store_api::Error) -> Self {
        Self { kind: error.kind, message: error.message }
    }
}

impl From<types::ReferenceError> for Error {
    fn from(error: types::ReferenceError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<types::IdError> for Error {
    fn from(error: types::IdError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<api_types::FiltersError> for Error {
    fn from(error: api_types::FiltersError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<network::Error> for Error {
    fn from(error: network::Error) -> Self {
        let kind = if error.is_not_found() {
            ErrorKind::NotFound
        } else if error.is_conflict() || error.is_exists() {
            ErrorKind::Conflict
        } else {
            ErrorKind::Internal
        };
        Self::new(kind, chain(&error))
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.ends_with(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}
