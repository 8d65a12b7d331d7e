//! The one error type of the commands, and how it ends the process.

use std::io;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The engine, or the way to it.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// Something the user wrote cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// As the text says; the process ends with this code.
    #[error("{text}")]
    Status { code: i32, text: String },
    /// Everything was said already, or there is nothing to say.
    #[error("exit status {0}")]
    Exit(i32),
    /// A file or directory of ours.
    #[error("{op} {path}: {}", plain(source))]
    File { op: &'static str, path: String, source: io::Error },
    /// A tar could not be packed or unpacked.
    #[error("{op}: {source}")]
    Archive { op: &'static str, source: archive::Error },
    /// Our own input or output broke.
    #[error("{what}: {}", plain(source))]
    Stream { what: &'static str, source: io::Error },
}

/// The words of an error of the system, without its number, as Go writes them.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error ").next().unwrap_or_default();
    let mut chars = words.chars();
    match (error.raw_os_error(), chars.next()) {
        (Some(_), Some(first)) => first.to_lowercase().chain(chars).collect(),
        _ => text,
    }
}

impl From<String> for Error {
    fn from(text: String) -> Error {
        Error::Invalid(text)
    }
}

impl From<&str> for Error {
    fn from(text: &str) -> Error {
        Error::Invalid(text.to_owned())
    }
}

impl Error {
    pub(crate) fn file(
        op: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.display().to_string();
        move |source| Error::File { op, path, source }
    }

    /// Output that nobody reads any more is no failure.
    pub(crate) fn output(source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Error::Exit(0),
            _ => Error::Stream { what: "write output", source },
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;
