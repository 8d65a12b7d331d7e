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

/// The rank of an architecture that another one runs too: behind every variant of its own.
const OTHER_ARCHITECTURE: u8 = 64;

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let (architecture, variant) = normalize(std::env::consts::ARCH, "");
        Self { os: "linux".into(), architecture, variant }
    }

    /// How well an image made for `other` runs where this platform was asked for: `None` not at
    /// all, otherwise smaller is better. As containerd's `platforms.Only` has it (ctr and dockerd pull and
    /// choose by that): variants fall back downwards (arm/v7 runs v6 and v5; amd64/v3 runs v2 and v1),
    /// and behind all of these amd64 falls back to 386, arm64 to arm/v8 and what that falls back to.
    pub fn rank(&self, other: &Self) -> Option<u8> {
        let (arch, variant) = normalize(&self.architecture, &self.variant);
        let (other_arch, other_variant) = normalize(&other.architecture, &other.variant);
        if self.os != other.os {
            return None;
        }
        match (arch.as_str(), other_arch.as_str()) {
            ("amd64", "386") => return Some(OTHER_ARCHITECTURE),
            ("arm64", "arm") => {
                let below = 8_u8.checked_sub(level("arm", &other_variant)?)?;
                return Some(OTHER_ARCHITECTURE + below);
            }
            (one, other) if one != other => return None,
            _ => {}
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
        let plain: Platform = "linux/arm64/v8".parse().unwrap();
        assert_eq!(arm64.rank(&plain), Some(0));
    }

    #[test]
    fn what_an_architecture_runs_too_is_behind_its_own() {
        fn order<'t>(wanted: &str, offered: &[&'t str]) -> Vec<&'t str> {
            let wanted: Platform = wanted.parse().unwrap();
            let rank = |text: &str| wanted.rank(&text.parse().unwrap());
            let mut ranked: Vec<_> =
                offered.iter().filter_map(|text| Some((rank(text)?, *text))).collect();
            ranked.sort_unstable();
            ranked.into_iter().map(|(_, text)| text).collect()
        }
        // The order of containerd's platformVector, whatever the index's.
        let offered =
            ["linux/386", "linux/arm64", "linux/amd64/v2", "windows/amd64", "linux/amd64/v4"];
        assert_eq!(order("linux/amd64/v3", &offered), ["linux/amd64/v2", "linux/386"]);
        assert_eq!(order("linux/amd64", &offered), ["linux/386"]);
        let offered =
            ["linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/amd64", "linux/arm/v8"];
        let arms = ["linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"];
        assert_eq!(order("linux/arm64", &offered), arms);
        assert_eq!(order("linux/arm64/v8", &["linux/arm/v7", "linux/arm64"])[0], "linux/arm64");
        // Not upwards.
        assert!(order("linux/386", &["linux/amd64"]).is_empty());
        assert!(order("linux/arm/v7", &["linux/arm64", "linux/arm/v8"]).is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "/", "linux//v7", "a/b/c/d", "linux/amd 64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
