use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

/// A container's identifier as the store and the runtime know it.
///
/// containerd 1.6 `identifiers.Validate`: at most 76 characters of letters, digits and `_.-`, each
/// run of separators between two letters or digits. The engine's own are 64 hexadecimal digits. Being
/// valid it is safe as a file name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ContainerId(Box<str>);

/// Why a text is not an identifier or a name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    #[error("identifier must not be empty")]
    Empty,
    #[error("identifier {text:?} is longer than {limit} characters")]
    TooLong { text: String, limit: usize },
    #[error(
        "identifier {0:?} must be letters and digits, with single '.', '_' or '-' between them"
    )]
    Characters(String),
    /// The words of dockerd 20.10 and later.
    #[error("Invalid container name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    ContainerName(String),
}

/// containerd's limit for every identifier.
const ID_CHARS: usize = 76;

impl ContainerId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 characters, as docker's tables show an id.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > ID_CHARS {
            return Err(IdError::TooLong { text: text.into(), limit: ID_CHARS });
        }
        let bytes = text.as_bytes();
        let edges =
            bytes[0].is_ascii_alphanumeric() && bytes[bytes.len() - 1].is_ascii_alphanumeric();
        let inner = bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b));
        let doubled = bytes.windows(2).any(|pair| pair.iter().all(|b| !b.is_ascii_alphanumeric()));
        if !edges || !inner || doubled {
            return Err(IdError::Characters(text.into()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for ContainerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for ContainerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Checks a name that a user gives to a container, volume or network:
/// `[a-zA-Z0-9][a-zA-Z0-9_.-]+` (moby `names.RestrictedNamePattern`).
///
/// # Errors
/// [`IdError::ContainerName`] with docker's words.
pub fn validate_name(name: &str) -> Result<(), IdError> {
    let bytes = name.as_bytes();
    let valid = bytes.len() >= 2
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b));
    if valid { Ok(()) } else { Err(IdError::ContainerName(name.into())) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn identifiers() {
        for good in ["a", "web_1", "k8s.io", "a-b.c"] {
            assert_eq!(good.parse::<ContainerId>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "-a", "a-", "a..b", &"a".repeat(77), "ä"] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
    }
}
