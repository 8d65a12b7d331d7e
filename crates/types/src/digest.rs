use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// Hash algorithms that Gantry verifies. image-spec 1.1 "Digests" registers these two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The name used in front of the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A content address, `sha256:` and 64 lower-case hexadecimal digits (or sha512 and 128).
///
/// Always valid: there is no way to hold one that names a path or another algorithm.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Why a text is not a [`Digest`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    #[error("invalid digest {0:?}: it must be ALGORITHM:HEX")]
    Format(String),
    #[error("unsupported digest algorithm {algorithm:?} in {text:?}: sha256 and sha512 are known")]
    Algorithm { algorithm: String, text: String },
    #[error("invalid digest {text:?}: {algorithm} takes {expected} lower-case hexadecimal digits")]
    Hex { algorithm: &'static str, expected: usize, text: String },
}

impl Digest {
    /// The SHA-256 of `bytes`.
    pub fn sha256(bytes: impl AsRef<[u8]>) -> Self {
        let mut digester = Digester::new(Algorithm::Sha256);
        digester.update(bytes.as_ref());
        digester.finish()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether these bytes are what the digest says.
    pub fn matches(&self, bytes: impl AsRef<[u8]>) -> bool {
        let mut digester = Digester::new(self.algorithm);
        digester.update(bytes.as_ref());
        digester.finish() == *self
    }

    /// The hexadecimal part.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first 12 hexadecimal digits, as docker's tables show an id.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }
}

/// Computes a [`Digest`] of what it is fed.
#[derive(Clone)]
pub struct Digester(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Digester {
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    pub fn sha256() -> Self {
        Self::new(Algorithm::Sha256)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => from_bytes(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => from_bytes(Algorithm::Sha512, &state.finalize()),
        }
    }
}

impl std::io::Write for Digester {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut hex = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        hex.push(char::from(HEX[usize::from(byte >> 4)]));
        hex.push(char::from(HEX[usize::from(byte & 15)]));
    }
    Digest { algorithm, hex: hex.into_boxed_str() }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some((name, hex)) = text.split_once(':') else {
            return Err(DigestError::Format(text.into()));
        };
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => {
                return Err(DigestError::Algorithm { algorithm: name.into(), text: text.into() });
            }
        };
        let digits = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex.len() != algorithm.hex_len() || !digits {
            return Err(DigestError::Hex {
                algorithm: algorithm.name(),
                expected: algorithm.hex_len(),
                text: text.into(),
            });
        }
        Ok(Self { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn known_vector() {
        // FIPS 180-4 example "abc".
        let digest = Digest::sha256("abc");
        assert_eq!(
            digest.to_string(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn hostile_texts_are_refused() {
        let upper = format!("sha256:{}", "A".repeat(64));
        for text in ["", "sha256", "sha256:", "sha256:xyz", "sha256:../..", "md5:00", &upper] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
