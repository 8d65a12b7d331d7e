use std::{io, path::PathBuf};

/// Why a layer or an image has no index.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading the layer's tar")]
    Archive(#[source] archive::Error),
    /// The layer may be fine, but an index cannot express it (or is not sure to): extract it.
    #[error("{}: {what} has no place in an index", name.display())]
    Unsupported { what: &'static str, name: PathBuf },
    #[error("the layer's table of contents is damaged: {0}")]
    Contents(&'static str),
    #[error("writing {what}")]
    Write {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn unsupported(what: &'static str, name: impl Into<PathBuf>) -> Self {
        Self::Unsupported { what, name: name.into() }
    }

    pub(crate) fn write(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { what, source }
    }

    /// The failed system call's error, if there is one (for ENOSPC and the like).
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Archive(error) => error.io(),
            Self::Write { source, .. } => Some(source),
            Self::Unsupported { .. } | Self::Contents(_) => None,
        }
    }
}
