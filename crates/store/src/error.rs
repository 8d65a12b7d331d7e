use std::{io, path::PathBuf};

use rustix::io::Errno;
use types::ErrorKind;

/// What goes wrong inside the store. At its edge it becomes a [`store_api::Error`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{op} {}", path.display())]
    Io {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{op} in the metadata database")]
    Database {
        op: &'static str,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("{op} {object}")]
    Archive {
        op: &'static str,
        object: String,
        #[source]
        source: Box<archive::Error>,
    },
    #[error("{op} {object}")]
    Index {
        op: &'static str,
        object: String,
        #[source]
        source: Box<erofs::Error>,
    },
    #[error("{op} {object}")]
    Json {
        op: &'static str,
        object: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{op} {object}")]
    Stream {
        op: &'static str,
        object: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Api(#[from] store_api::Error),
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { op, path, source }
    }

    /// The same for rustix's errors.
    pub(crate) fn sys(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |errno| Self::Io { op, path, source: errno.into() }
    }

    pub(crate) fn db<E: Into<redb::Error>>(op: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Database { op, source: Box::new(source.into()) }
    }

    pub(crate) fn archive(
        op: &'static str,
        object: impl ToString,
    ) -> impl FnOnce(archive::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Archive { op, object, source: Box::new(source) }
    }

    pub(crate) fn index(
        op: &'static str,
        object: impl ToString,
    ) -> impl FnOnce(erofs::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Index { op, object, source: Box::new(source) }
    }

    pub(crate) fn json(
        op: &'static str,
        object: impl ToString,
    ) -> impl FnOnce(serde_json::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Json { op, object, source }
    }

    pub(crate) fn stream(
        op: &'static str,
        object: impl ToString,
    ) -> impl FnOnce(io::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Stream { op, object, source }
    }

    /// Content that is not what its digest, size or diffID says.
    pub(crate) fn data_loss(message: impl Into<String>) -> Self {
        Self::Api(store_api::Error::new(ErrorKind::DataLoss, message))
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::Api(store_api::Error::new(ErrorKind::FailedPrecondition, message))
    }

    pub(crate) fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        store_api::Error::not_found(what, name).into()
    }

    pub(crate) fn already_exists(what: &str, name: impl std::fmt::Display) -> Self {
        store_api::Error::already_exists(what, name).into()
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        store_api::Error::invalid(message).into()
    }

    pub(crate) fn is_data_loss(&self) -> bool {
        matches!(self, Self::Api(error) if error.kind == ErrorKind::DataLoss)
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_not_found())
    }

    pub(crate) fn is_already_exists(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_already_exists())
    }

    /// Does the disk say that it cannot give what was written there? Another try may not help, and this
    /// is not for want of memory or descriptors.
    pub(crate) fn is_bad_medium(&self) -> bool {
        let bad = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NODATA];
        let Self::Io { source, .. } = self else { return false };
        Errno::from_io_error(source).is_some_and(|errno| bad.contains(&errno))
    }

    /// Is there no room for more, or no quota?
    pub(crate) fn is_full_disk(&self) -> bool {
        self.io_source().is_some_and(|source| {
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        })
    }

    /// Is a layer or a file larger than it may be?
    pub(crate) fn is_too_large(&self) -> bool {
        self.io_source().is_some_and(|source| source.kind() == io::ErrorKind::FileTooLarge)
    }

    fn io_source(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } | Self::Stream { source, .. } => Some(source),
            Self::Archive { source, .. } => source.io(),
            Self::Index { source, .. } => source.io(),
            Self::Database { source, .. } => match source.as_ref() {
                redb::Error::Io(source) => Some(source),
                _ => None,
            },
            Self::Json { .. } | Self::Api(_) => None,
        }
    }

    fn kind(&self) -> ErrorKind {
        let of_io = |source: &io::Error| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                ErrorKind::ResourceExhausted
            }
            io::ErrorKind::FileTooLarge => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        };
        match self {
            Self::Io { source, .. } | Self::Stream { source, .. } => of_io(source),
            Self::Index { source, .. } => source.io().map_or(ErrorKind::Internal, of_io),
            Self::Archive { .. } if self.is_full_disk() => ErrorKind::ResourceExhausted,
            Self::Archive { .. } | Self::Json { .. } => ErrorKind::InvalidArgument,
            Self::Database { source, .. } => match source.as_ref() {
                redb::Error::Io(source) => of_io(source),
                _ => ErrorKind::Internal,
            },
            Self::Api(error) => error.kind,
        }
    }
}

impl From<Error> for store_api::Error {
    fn from(error: Error) -> Self {
        if let Error::Api(error) = error {
            return error;
        }
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            message.push_str(": ");
            message.push_str(&source.to_string());
            cause = source.source();
        }
        Self::new(error.kind(), message)
    }
}
