/// The closed set of outcomes that cross a role's boundary.
///
/// Every role's error answers with one of these, so that its HTTP status (moby's
/// `httpstatus.FromError`) and its gRPC code (containerd's `errdefs.ToGRPC`) are total matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    InvalidArgument,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    /// The object exists already.
    AlreadyExists,
    /// The object's state or another object forbids it.
    Conflict,
    /// Already in the state that was asked for.
    NotModified,
    /// A precondition does not hold, as when a task is stopped.
    FailedPrecondition,
    NotImplemented,
    Unavailable,
    DeadlineExceeded,
    Cancelled,
    ResourceExhausted,
    /// Content that does not match its digest or cannot be read.
    DataLoss,
    Internal,
}

impl ErrorKind {
    /// The HTTP status of the Engine API for this kind.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict | Self::FailedPrecondition => 409,
            Self::NotModified => 304,
            Self::NotImplemented => 501,
            Self::Unavailable => 503,
            Self::DeadlineExceeded
            | Self::Cancelled
            | Self::ResourceExhausted
            | Self::DataLoss
            | Self::Internal => 500,
        }
    }

    /// The gRPC status code number for this kind (grpc.io "Status codes").
    pub fn grpc_code(self) -> i32 {
        match self {
            Self::Cancelled => 1,
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::Conflict | Self::FailedPrecondition | Self::NotModified => 9,
            Self::NotImplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::DataLoss => 15,
            Self::Unauthenticated => 16,
        }
    }

    /// The kind of a gRPC status code number; what is not known is [`ErrorKind::Internal`].
    pub fn from_grpc_code(code: i32) -> Self {
        match code {
            1 => Self::Cancelled,
            3 | 11 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Conflict,
            12 => Self::NotImplemented,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => Self::Internal,
        }
    }
}
