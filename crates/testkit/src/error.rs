use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong in a fixture. `Debug` prints the message and its causes, because that is what a
/// test's `unwrap` shows.
#[derive(thiserror::Error)]
pub enum Error {
    #[error("{operation} {object}")]
    Io {
        operation: &'static str,
        object: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{command}: {status}\n{output}")]
    Failed { command: String, status: String, output: String },
    #[error("{command}: no end within {limit:?}\n{output}")]
    Timeout { command: String, limit: Duration, output: String },
    #[error("waited {limit:?} for {what}; last seen: {last}")]
    Wait { what: String, limit: Duration, last: String },
    #[error("{what} holds what cannot be read as {wanted}: {found}")]
    Parse { what: String, wanted: &'static str, found: String },
    #[error("a peer is missing: {path} (run `make deps`)", path = path.display())]
    MissingPeer { path: PathBuf },
    #[error("left behind by {what}:\n{difference}")]
    Leak { what: String, difference: String },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Adds what was done to what to an I/O error.
pub(crate) trait IoContext<T> {
    fn context(self, operation: &'static str, object: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn context(self, operation: &'static str, object: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Io {
            operation,
            object: object.to_string(),
            source: error.into(),
        })
    }
}
