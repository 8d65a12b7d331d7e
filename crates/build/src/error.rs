use std::{io, path::PathBuf};

use types::ErrorKind;

/// Why a build failed. Texts that clients show are docker's; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Dockerfile(#[from] dockerfile::ParseError),
    #[error("Cannot locate specified Dockerfile: {0}")]
    NoDockerfile(String),
    #[error("the Dockerfile ({0}) cannot be read")]
    DockerfileText(String),
    #[error("target stage {0:?} could not be found")]
    NoTarget(String),
    #[error("dockerfile parse error on line {line}")]
    Expand {
        line: u32,
        #[source]
        source: dockerfile::ParseErrorKind,
    },
    #[error("base name ({0}) should not be blank")]
    BlankBase(String),
    #[error("error checking context: {0}")]
    Ignore(String, #[source] dockerfile::ignore::IgnoreError),
    #[error("{op} {}", path.display())]
    Io {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{op} {}", path.display())]
    Archive {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: archive::Error,
    },
    #[error("{op}")]
    Store {
        op: String,
        #[source]
        source: store_api::Error,
    },
    /// What the engine says of an image or a command is docker's own words already.
    #[error("{}", .0.message)]
    Host(store_api::Error),
    #[error(
        "{command} failed: file not found in build context or excluded by .dockerignore: stat {path}: file does not exist"
    )]
    NotInContext { command: &'static str, path: String },
    #[error("{command} failed: stat {path}: file does not exist in {from}")]
    NotInStage { command: &'static str, path: String, from: String },
    #[error("{command} failed: no source files were specified")]
    NoSources { command: &'static str },
    #[error("{0} failed: forbidden path: {1} leads outside of its root or into a loop of links")]
    BadPath(&'static str, String),
    #[error(
        "When using {command} with more than one source file, the destination must be a directory and end with a /"
    )]
    DestinationNotDirectory { command: &'static str },
    #[error("{command} failed: cannot copy {path}: {problem}")]
    Copy { command: &'static str, path: String, problem: String },
    #[error("{command} failed: invalid pattern {pattern:?}")]
    Pattern {
        command: &'static str,
        pattern: String,
        #[source]
        source: dockerfile::glob::BadPattern,
    },
    #[error("invalid from flag value {0}: refers to current or later build stage")]
    LaterStage(String),
    #[error("unable to convert uid/gid chown string to host mapping: can't find {what} for {name}")]
    NoSuchUser { what: &'static str, name: String },
    #[error("{path} of the image cannot be used: {problem}")]
    UserFile { path: &'static str, problem: String },
    #[error("invalid chmod parameter: '{0}'. it should be octal up to 7777, or like u=rwX,go=rX")]
    Mode(String),
    #[error("The command '{command}' returned a non-zero code: {code}")]
    Exit { command: String, code: i32 },
    #[error("{0} is not built yet")]
    Unsupported(String),
    #[error("{0} is not allowed in this build")]
    Denied(String),
    #[error("{0}")]
    Invalid(String),
    #[error("build is limited to {what}: {limit}")]
    Limit { what: &'static str, limit: u64 },
    #[error("{0} is damaged in the store: pull or load its image again")]
    Damaged(types::Digest),
    #[error("{0}: its JSON is malformed")]
    Json(String, #[source] serde_json::Error),
    #[error("build was cancelled")]
    Cancelled,
    /// Of a stage that several wait for.
    #[error(transparent)]
    Stage(std::sync::Arc<Error>),
    #[error("a task of the build ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For the status of the answer.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store { source, .. } | Self::Host(source) => source.kind,
            Self::Stage(source) => source.kind(),
            Self::Unsupported(_) => ErrorKind::NotImplemented,
            Self::Denied(_) => ErrorKind::PermissionDenied,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Limit { .. } => ErrorKind::ResourceExhausted,
            Self::Io { .. } | Self::Exit { .. } | Self::Task(_) => ErrorKind::Internal,
            Self::Json(..) | Self::Damaged(_) => ErrorKind::DataLoss,
            Self::NoSuchUser { .. } | Self::UserFile { .. } | Self::Archive { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::NotInContext { .. } | Self::NotInStage { .. } | Self::NoSources { .. } => {
                ErrorKind::NotFound
            }
            Self::Dockerfile(_)
            | Self::NoDockerfile(_)
            | Self::DockerfileText(_)
            | Self::NoTarget(_)
            | Self::Expand { .. }
            | Self::BlankBase(_)
            | Self::Ignore(..)
            | Self::BadPath(..)
            | Self::DestinationNotDirectory { .. }
            | Self::Copy { .. }
            | Self::Pattern { .. }
            | Self::LaterStage(_)
            | Self::Mode(_)
            | Self::Invalid(_) => ErrorKind::InvalidArgument,
        }
    }

    /// The exit status of a RUN that failed.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exit { code, .. } => Some(*code),
            Self::Stage(source) => source.exit_code(),
            _ => None,
        }
    }

    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { op, path, source }
    }

    pub(crate) fn errno(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |errno| Self::Io { op, path, source: errno.into() }
    }

    pub(crate) fn host(source: store_api::Error) -> Self {
        match source.kind {
            ErrorKind::Cancelled => Self::Cancelled,
            _ => Self::Host(source),
        }
    }

    pub(crate) fn store(op: impl Into<String>) -> impl FnOnce(store_api::Error) -> Self {
        let op = op.into();
        move |source| match source.kind {
            ErrorKind::Cancelled => Self::Cancelled,
            _ => Self::Store { op, source },
        }
    }
}
