//! Values of query parameters.

/// A boolean query value, by dockerd's rule: everything but `""`, `0`, `no`, `false` and `none`
/// (any case, blanks trimmed) is true.
pub fn query_bool(value: &str) -> bool {
    !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
}

/// A dotted API version, comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    pub major: u16,
    pub minor: u16,
}

impl ApiVersion {
    /// The newest version spoken.
    pub const MAX: ApiVersion = ApiVersion { major: 1, minor: 50 };
    /// The oldest version spoken.
    pub const MIN: ApiVersion = ApiVersion { major: 1, minor: 40 };

    /// Parses `1.43`; `None` for anything else.
    pub fn parse(text: &str) -> Option<ApiVersion> {
        let (major, minor) = text.split_once('.')?;
        Some(ApiVersion { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// This version is `1.minor` or newer.
    pub fn at_least(self, minor: u16) -> bool {
        self >= ApiVersion { major: 1, minor }
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl std::str::FromStr for ApiVersion {
    type Err = InvalidApiVersion;
    fn from_str(text: &str) -> Result<Self, InvalidApiVersion> {
        ApiVersion::parse(text).ok_or_else(|| InvalidApiVersion(text.to_owned()))
    }
}

/// Not `major.minor`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid API version {0:?}: must be of the form major.minor")]
pub struct InvalidApiVersion(pub String);
