use types::ErrorKind;

/// What went wrong in the store: a kind that both HTTP and gRPC have a status for, and a text that
/// names the operation and its object.
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

    /// `WHAT "NAME": not found`, containerd's words.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("{what} \"{name}\": not found"))
    }

    /// `WHAT "NAME": already exists`, containerd's words.
    pub fn already_exists(what: &str, name: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::AlreadyExists, format!("{what} \"{name}\": already exists"))
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Names something that this store does not offer yet.
    pub fn not_implemented(what: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::NotImplemented, format!("{what} is not implemented"))
    }

    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }

    pub fn is_already_exists(&self) -> bool {
        self.kind == ErrorKind::AlreadyExists
    }
}
