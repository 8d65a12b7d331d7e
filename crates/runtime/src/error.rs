//! Errors of the runtime, and the form in which a child process sends them home.

use std::path::PathBuf;

/// What the runtime's operations fail with. `Display` is one step of the chain; the causes are
/// in `source()`. [`Error::chain`] gives the one line that runc would print.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The id has characters that a directory name must not have.
    #[error("invalid container ID format: {0:?}")]
    InvalidId(String),
    /// `create` of an id that is there already.
    #[error("container with given ID already exists: {0}")]
    Exists(String),
    /// No state under the root for this id.
    #[error("container does not exist: {0}")]
    NotFound(String),
    /// The operation does not fit the container's status. The text is runc's.
    #[error("{0}")]
    WrongStatus(String),
    /// A system call or file operation failed.
    #[error("{op} {object}")]
    Sys {
        /// The operation: a system call's name or a short phrase.
        op: &'static str,
        /// What it was done to: a path, id, or spec field.
        object: String,
        /// The kernel's answer.
        #[source]
        source: rustix::io::Errno,
    },
    /// A process could not be started (hooks).
    #[error("{op} {object}")]
    Io {
        /// The operation.
        op: &'static str,
        /// Its object.
        object: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file does not parse.
    #[error("parse {path}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A field of the spec (or an option) has a value that cannot be.
    #[error("{field}: {problem}")]
    Config {
        /// The field's path in config.json.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Asked for, known, and not offered.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The program cannot be executed; runc's words, on which clients match.
    #[error("{0}")]
    Exec(String),
    /// The container's process failed on its way; the text is its own chain.
    #[error("unable to start container process: {0}")]
    Init(String),
    /// A D-Bus service answered a call with an error.
    #[error("D-Bus: {method}: {name}: {text}")]
    Dbus {
        /// Interface and method.
        method: String,
        /// The error's name.
        name: String,
        /// Its text.
        text: String,
    },
    /// A hook ended badly.
    #[error("error running {kind} hook #{index}: {problem}")]
    Hook {
        /// Which of the six kinds.
        kind: &'static str,
        /// Position in the spec, from 0.
        index: usize,
        /// Exit status, timeout, with the hook's own output.
        problem: String,
    },
    /// A step with a cause of this same type.
    #[error("{step}")]
    Step {
        /// What was being done.
        step: String,
        /// Why it failed.
        #[source]
        source: Box<Error>,
    },
}

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The whole chain in one line: `outer: inner: cause`.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(self);
        while let Some(e) = cause {
            text.push_str(": ");
            // Errno's and io::Error's own texts end in "(os error N)"; the peers' do not.
            let part = e.to_string();
            text.push_str(part.split(" (os error").next().unwrap_or(&part).trim());
            cause = e.source();
        }
        lower_errno(text)
    }

    /// The errno at the end of the chain, if a system call failed.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            Error::Sys { source, .. } => Some(*source),
            Error::Io { source, .. } => rustix::io::Errno::from_io_error(source),
            Error::Step { source, .. } => source.errno(),
            _ => None,
        }
    }

    pub(crate) fn config(field: &'static str, problem: impl Into<String>) -> Error {
        Error::Config { field, problem: problem.into() }
    }
}

/// glibc's strerror starts with a capital letter, Go's texts do not, and clients match on Go's.
fn lower_errno(text: String) -> String {
    /// Linux has no errno above this.
    const ERRNO_MAX: i32 = 133;
    let Some(at) = text.rfind(": ") else { return text };
    let (head, tail) = text.split_at(at + 2);
    let is_errno = (1..=ERRNO_MAX).any(|n| {
        let full = std::io::Error::from_raw_os_error(n).to_string();
        full.split(" (os error").next() == Some(tail)
    });
    let mut chars = tail.chars();
    match chars.next() {
        Some(first) if is_errno => format!("{head}{}{}", first.to_lowercase(), chars.as_str()),
        _ => text,
    }
}

/// Adds operation and object to a failed call.
pub(crate) trait Context<T> {
    /// `object` is only built on failure.
    fn ctx<O: Into<String>>(self, op: &'static str, object: impl FnOnce() -> O) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, rustix::io::Errno> {
    fn ctx<O: Into<String>>(self, op: &'static str, object: impl FnOnce() -> O) -> Result<T> {
        self.map_err(|source| Error::Sys { op, object: object().into(), source })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn ctx<O: Into<String>>(self, op: &'static str, object: impl FnOnce() -> O) -> Result<T> {
        self.map_err(|source| Error::Io { op, object: object().into(), source })
    }
}

/// Adds an outer step to an error of this crate.
pub(crate) trait Step<T> {
    /// `step` is only built on failure.
    fn step<O: Into<String>>(self, step: impl FnOnce() -> O) -> Result<T>;
}

impl<T> Step<T> for Result<T> {
    fn step<O: Into<String>>(self, step: impl FnOnce() -> O) -> Result<T> {
        self.map_err(|source| Error::Step { step: step().into(), source: Box::new(source) })
    }
}
