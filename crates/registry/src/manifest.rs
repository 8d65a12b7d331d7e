//! Manifests and indexes, as much of them as a registry's client has to understand.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use types::{Digest, ImageRef, Platform};

use crate::error::{Error, Problem};

pub(crate) const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1";
/// The value of `Accept`.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// What is asked for in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    Tag(&'a str),
    Digest(&'a Digest),
}

impl<'a> Target<'a> {
    /// A reference's digest, else its tag, else `latest`.
    pub fn of(image: &'a ImageRef) -> Self {
        match (image.digest(), image.tag()) {
            (Some(digest), _) => Self::Digest(digest),
            (None, tag) => Self::Tag(tag.unwrap_or("latest")),
        }
    }
}

impl std::fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A piece of content, by digest (image-spec, "Content Descriptors").
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub artifact_type: Option<String>,
    #[serde(default, deserialize_with = "or_null")]
    pub annotations: BTreeMap<String, String>,
}

fn or_null<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A manifest or index whose bytes have the digest that the descriptor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub descriptor: Descriptor,
    /// Exactly as the registry sent them.
    pub bytes: Bytes,
}

impl Manifest {
    /// Whether this is an index (or Docker's manifest list) of manifests.
    pub fn is_index(&self) -> bool {
        INDEX_TYPES.contains(&self.descriptor.media_type.as_str())
    }

    /// The manifests that an index lists.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not an index's JSON.
    pub fn entries(&self, repository: &str) -> Result<Vec<Descriptor>, Error> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(default, deserialize_with = "or_null")]
            manifests: Vec<Descriptor>,
        }
        let malformed = |e: serde_json::Error| Error::Malformed {
            what: format!("image index {}", self.descriptor.digest),
            from: repository.to_owned(),
            problem: e.into(),
        };
        serde_json::from_slice::<Index>(&self.bytes).map(|i| i.manifests).map_err(malformed)
    }
}

/// The media type of a manifest, from the header and the body, which must agree.
pub(crate) fn media_type(header: Option<&str>, body: &[u8]) -> Result<String, Problem> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        schema_version: u32,
        #[serde(default)]
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        layers: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        config: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(body)?;
    let header = header.and_then(|h| h.split(';').next()).map(str::trim).unwrap_or_default();
    if header.starts_with(SCHEMA_1) || shape.schema_version == 1 || shape.fs_layers.is_some() {
        return Err(Problem::MediaType(format!("{SCHEMA_1}+json")));
    }
    // CVE-2021-41190: one document that is an index to some and a manifest to others.
    let is_index = shape.manifests.is_some();
    let is_manifest = shape.layers.is_some() || shape.config.is_some();
    if is_index && is_manifest {
        return Err(Problem::Text("it is an index and a manifest at once"));
    }
    let known = |t: &str| INDEX_TYPES.contains(&t) || MANIFEST_TYPES.contains(&t);
    let told = match shape.media_type {
        Some(body) if known(header) && body != header => {
            return Err(Problem::TwoMediaTypes { header: header.to_owned(), body });
        }
        Some(body) => body,
        None if known(header) => header.to_owned(),
        None if is_index => INDEX_TYPES[0].to_owned(),
        None => MANIFEST_TYPES[0].to_owned(),
    };
    if !known(&told) {
        return Err(Problem::MediaType(told));
    }
    let says_index = INDEX_TYPES.contains(&told.as_str());
    if (says_index && is_manifest) || (!says_index && is_index) {
        return Err(Problem::Text("its contents do not fit its media type"));
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ambiguous_manifests_are_refused() {
        let index = INDEX_TYPES[0];
        let manifest = MANIFEST_TYPES[0];
        let ok = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
        assert_eq!(media_type(Some(manifest), ok).unwrap(), manifest);
        assert_eq!(media_type(Some("application/json; charset=x"), ok).unwrap(), manifest);
        assert!(media_type(Some(index), ok).is_err());
        for bad in [
            r#"{"manifests":[],"layers":[]}"#.to_owned(),
            r#"{"manifests":[],"config":{}}"#.to_owned(),
            format!(r#"{{"mediaType":"{index}","layers":[]}}"#),
            format!(r#"{{"mediaType":"{index}","mediaType":"{manifest}","layers":[]}}"#),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
            r#"{"mediaType":"text/html"}"#.to_owned(),
            "null".to_owned(),
            "[".repeat(100_000),
        ] {
            assert!(media_type(None, bad.as_bytes()).is_err(), "{}", &bad[..bad.len().min(80)]);
        }
        let body = format!(r#"{{"mediaType":"{index}","manifests":[]}}"#);
        assert!(media_type(Some(manifest), body.as_bytes()).is_err());
    }
}
