use http::{Response, StatusCode};
use types::ErrorKind;

use crate::body::{Body, full};

/// A reply that is an error: docker's `{"message": …}`.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

pub(crate) type Reply = Result<Response<Body>, ApiError>;

impl ApiError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let status =
            StatusCode::from_u16(kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub(crate) fn not_implemented(what: &str) -> Self {
        Self::new(ErrorKind::NotImplemented, format!("{what} is not supported by this engine yet"))
    }

    /// What moby's router answers for an unknown path or method.
    pub(crate) fn page_not_found() -> Self {
        Self { status: StatusCode::NOT_FOUND, message: "page not found".into() }
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        if self.status == StatusCode::NOT_MODIFIED {
            return empty(StatusCode::NOT_MODIFIED);
        }
        let body = api_types::ErrorBody { message: self.message };
        let mut bytes = serde_json::to_vec(&body).unwrap_or_default();
        bytes.push(b'\n');
        let mut response = Response::new(full(bytes));
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        response
    }
}

impl From<engine::Error> for ApiError {
    fn from(error: engine::Error) -> Self {
        Self::new(error.kind, error.message)
    }
}

impl From<api_types::FiltersError> for ApiError {
    fn from(error: api_types::FiltersError) -> Self {
        Self::bad(error.to_string())
    }
}

impl From<types::ReferenceError> for ApiError {
    fn from(error: types::ReferenceError) -> Self {
        Self::bad(error.to_string())
    }
}

pub(crate) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Vec::new()));
    *response.status_mut() = status;
    response
}
