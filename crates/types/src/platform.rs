use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An image's platform, in the words of image-spec 1.1 (`GOOS`, `GOARCH` values).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// Why a text is not a platform.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid platform {0:?}: it must be OS[/ARCHITECTURE[/VARIANT]] such as linux/arm64/v8")]
pub struct PlatformError(String);

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let (architecture, variant) = normalize(std::env::consts::ARCH, "");
        Self { os: "linux".into(), architecture, variant }
    }

    /// How well an image made for `other` runs where this platform was asked for: `None` not at
    /// all, otherwise smaller is better. Variants fall back downwards as containerd's
    /// `platforms.Only` does (arm/v7 runs v6 and v5; amd64/v3 runs v2 and v1).
    pub fn rank(&self, other: &Self) -> Option<u8> {
        let (arch, variant) = normalize(&self.architecture, &self.variant);
        let (other_arch, other_variant) = normalize(&other.architecture, &other.variant);
        if self.os != other.os || arch != other_arch {
            return None;
        }
        let want = level(&arch, &variant);
        let have = level(&arch, &other_variant);
        match (want, have) {
            (Some(want), Some(have)) if have <= want => Some(want - have),
            _ if variant == other_variant => Some(0),
            _ => None,
        }
    }
}

/// The number of a variant, with the architecture's default where none is named.
fn level(architecture: &str, variant: &str) -> Option<u8> {
    match (architecture, variant) {
        ("arm64", "") => Some(8),
        ("arm", "") => Some(7),
        ("amd64", "") => Some(1),
        (_, variant) => variant.strip_prefix('v')?.split('.').next()?.parse().ok(),
    }
}

/// containerd `platforms.normalizeArch`.
fn normalize(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = match (architecture.to_ascii_lowercase().as_str(), variant) {
        ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64".to_string(), ""),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64".to_string(), variant),
        ("aarch64" | "arm64", "8" | "v8" | "") => ("arm64".to_string(), ""),
        ("aarch64" | "arm64", variant) => ("arm64".to_string(), variant),
        ("armhf", _) => ("arm".to_string(), "v7"),
        ("armel", _) => ("arm".to_string(), "v6"),
        ("i386" | "i686" | "x86", _) => ("386".to_string(), ""),
        (other, variant) => (other.to_string(), variant),
    };
    (architecture, variant.to_string())
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// `linux/arm64/v8`, `linux/amd64`, or an architecture or system alone, as `--platform` takes.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let host = Self::host();
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        if !parts.iter().all(word) {
            return Err(PlatformError(text.into()));
        }
        let (os, architecture, variant) = match parts.as_slice() {
            ["linux" | "windows" | "darwin" | "freebsd"] => {
                (parts[0].to_string(), host.architecture, host.variant)
            }
            [architecture] => ("linux".to_string(), (*architecture).to_string(), String::new()),
            [os, architecture] => {
                (os.to_ascii_lowercase(), (*architecture).to_string(), String::new())
            }
            [os, architecture, variant] => {
                (os.to_ascii_lowercase(), (*architecture).to_string(), (*variant).to_string())
            }
            _ => return Err(PlatformError(text.into())),
        };
        let (architecture, variant) = normalize(&architecture, &variant);
        Ok(Self { os, architecture, variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn variants_fall_back_downwards() {
        let v7: Platform = "linux/arm/v7".parse().unwrap();
        let v6: Platform = "linux/arm/v6".parse().unwrap();
        assert_eq!(v7.rank(&v6), Some(1));
        assert_eq!(v6.rank(&v7), None);
        let arm64: Platform = "aarch64".parse().unwrap();
        assert_eq!(arm64.to_string(), "linux/arm64");
        assert_eq!(arm64.rank(&v7), None);
        let plain: Platform = "linux/arm64/v8".parse().unwrap();
        assert_eq!(arm64.rank(&plain), Some(0));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "/", "linux//v7", "a/b/c/d", "linux/amd 64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
