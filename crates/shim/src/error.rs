//! What the shim's operations fail with, and how that is told over ttrpc.

use rustix::io::Errno;
use types::ErrorKind;

/// gRPC code 2, `UNKNOWN`: what containerd's shim answers for a runtime's failure.
const CODE_UNKNOWN: i32 = 2;

/// An operation's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be met in this state, or is wrong in itself; the text is containerd's.
    #[error("{text}")]
    Refused {
        /// Decides the status code.
        kind: ErrorKind,
        /// What is told.
        text: String,
    },
    /// The OCI runtime failed.
    #[error("OCI runtime {operation} failed: {text}")]
    Runtime {
        /// `create`, `exec`, …
        operation: &'static str,
        /// The runtime's own chain.
        text: String,
    },
    /// A helper process has failed, and this is what it said.
    #[error("{text}")]
    Told {
        /// gRPC status code.
        code: i32,
        /// Its chain.
        text: String,
    },
    /// A system call failed.
    #[error("{operation} {object}")]
    Sys {
        /// The call or a short phrase.
        operation: &'static str,
        /// What it was done to.
        object: String,
        #[source]
        source: Errno,
    },
    /// A file operation failed, or a program could not be started.
    #[error("{operation} {object}")]
    Io {
        /// A short phrase.
        operation: &'static str,
        /// What it was done to.
        object: String,
        #[source]
        source: std::io::Error,
    },
    /// JSON that does not parse.
    #[error("parse {object}")]
    Json {
        /// File or field.
        object: String,
        #[source]
        source: serde_json::Error,
    },
    /// A protobuf message that does not parse.
    #[error("decode {object}")]
    Decode {
        /// The message.
        object: &'static str,
        #[source]
        source: prost::DecodeError,
    },
}

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn not_found(text: impl Into<String>) -> Error {
        Error::Refused { kind: ErrorKind::NotFound, text: text.into() }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Error {
        Error::Refused { kind: ErrorKind::InvalidArgument, text: text.into() }
    }

    pub(crate) fn precondition(text: impl Into<String>) -> Error {
        Error::Refused { kind: ErrorKind::FailedPrecondition, text: text.into() }
    }

    pub(crate) fn exhausted(text: impl Into<String>) -> Error {
        Error::Refused { kind: ErrorKind::ResourceExhausted, text: text.into() }
    }

    pub(crate) fn unsupported(what: impl std::fmt::Display) -> Error {
        Error::Refused {
            kind: ErrorKind::NotImplemented,
            text: format!("{what} is not implemented"),
        }
    }

    pub(crate) fn exists(id: &str) -> Error {
        Error::Refused { kind: ErrorKind::AlreadyExists, text: format!("id {id}: already exists") }
    }

    pub(crate) fn runtime(operation: &'static str, error: &runtime::Error) -> Error {
        Error::Runtime { operation, text: error.chain() }
    }

    /// The gRPC status code.
    pub(crate) fn code(&self) -> i32 {
        match self {
            Error::Refused { kind, .. } => kind.grpc_code(),
            Error::Told { code, .. } => *code,
            Error::Json { .. } | Error::Decode { .. } => ErrorKind::InvalidArgument.grpc_code(),
            Error::Runtime { .. } | Error::Sys { .. } | Error::Io { .. } => CODE_UNKNOWN,
        }
    }

    /// The whole chain in one line. System errors are worded as Go words them, because clients
    /// match on that: `no such file or directory`.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let part = error.to_string();
            match part.split_once(" (os error") {
                Some((words, _)) => {
                    text.push_str(": ");
                    text.push_str(&words.to_lowercase());
                }
                None => {
                    text.push_str(": ");
                    text.push_str(&part);
                }
            }
            cause = error.source();
        }
        text
    }
}

/// Adds operation and object to a failed call.
pub(crate) trait Context<T> {
    /// `object` is only built on failure.
    fn context<O: Into<String>>(
        self,
        operation: &'static str,
        object: impl FnOnce() -> O,
    ) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, Errno> {
    fn context<O: Into<String>>(
        self,
        operation: &'static str,
        object: impl FnOnce() -> O,
    ) -> Result<T> {
        self.map_err(|source| Error::Sys { operation, object: object().into(), source })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context<O: Into<String>>(
        self,
        operation: &'static str,
        object: impl FnOnce() -> O,
    ) -> Result<T> {
        self.map_err(|source| Error::Io { operation, object: object().into(), source })
    }
}

/// Drops a result whose failure changes nothing; the reason stands beside each call.
pub(crate) fn ignore<T, E>(_: std::result::Result<T, E>) {}
