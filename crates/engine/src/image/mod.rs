//! Images as the API means them: records of the store, seen by id, tag and digest. An image's id is the
//! digest of its manifest or index, as with dockerd 29's containerd store.

pub(crate) mod auth;
mod changes;
mod commit;
mod layers;
mod list;
mod platforms;
mod remove;
mod squash;
mod transfer;

use std::collections::BTreeMap;

use api_types::{AuthConfig, ImageConfig};
use serde::Deserialize;
use store_api::{Descriptor, Image, ProxyAccess, RegistryAccess, Timestamp};
use types::{Digest, ImageRef, Platform, limits};

pub use commit::CommitOptions;
pub use squash::SquashOptions;
pub use transfer::{Failure, Messages};
pub(crate) use transfer::{MessageSender, Teller};

use crate::{
    Engine, Error, Result,
    container::{ImageForContainer, record::ImageUse},
    error::chain,
};

/// Name of the record of an image without a tag: this and its digest.
pub(crate) use build::DANGLING_PREFIX;

/// An image's configuration (image-spec 1.1), as far as the engine reads it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct OciConfig {
    #[serde(default)]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) author: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) config: ImageConfig,
    #[serde(default)]
    pub(crate) rootfs: RootFs,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) history: Vec<History>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct History {
    #[serde(default)]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) created_by: String,
    #[serde(default)]
    pub(crate) comment: String,
    #[serde(default)]
    pub(crate) empty_layer: bool,
}

/// All records of one image.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) target: Descriptor,
    /// Tagged and digested references.
    pub(crate) names: Vec<ImageRef>,
    /// Every record's name, dangling ones too.
    pub(crate) records: Vec<String>,
    pub(crate) updated: Timestamp,
}

impl Known {
    pub(crate) fn repo_tags(&self) -> Vec<String> {
        self.names.iter().filter(|name| name.tag().is_some()).map(ImageRef::familiar).collect()
    }

    /// The same image under fewer names.
    fn only(mut self, wanted: impl Fn(&ImageRef) -> bool) -> Self {
        self.names.retain(wanted);
        self
    }

    pub(crate) fn repo_digests(&self) -> Vec<String> {
        let mut list: Vec<String> = self
            .names
            .iter()
            .map(|name| format!("{}@{}", name.familiar_name(), self.target.digest))
            .collect();
        list.sort();
        list.dedup();
        list
    }
}

impl Engine {
    /// Every image, by id.
    pub(crate) async fn known_images(&self) -> Result<BTreeMap<Digest, Known>> {
        let mut known: BTreeMap<Digest, Known> = BTreeMap::new();
        for image in self.services.images.list(&[]).await? {
            let entry = known.entry(image.target.digest.clone()).or_insert_with(|| Known {
                target: image.target.clone(),
                names: Vec::new(),
                records: Vec::new(),
                updated: image.updated_at,
            });
            entry.updated = entry.updated.max(image.updated_at);
            if let Ok(reference) = image.name.parse::<ImageRef>()
                && !image.name.starts_with(DANGLING_PREFIX)
            {
                entry.names.push(reference);
            }
            entry.records.push(image.name);
        }
        Ok(known)
    }

    /// An image by reference, id, or prefix of an id.
    pub(crate) async fn find_image(&self, text: &str) -> Result<Known> {
        find_in(&self.known_images().await?, text).cloned()
    }

    pub(crate) async fn read_config(&self, descriptor: &Descriptor) -> Result<OciConfig> {
        let bytes = self.read_blob(&descriptor.digest, limits::IMAGE_CONFIG_BYTES).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Error::internal(format!("image configuration {} is damaged: {e}", descriptor.digest))
        })
    }

    pub(crate) async fn read_blob(&self, digest: &Digest, limit_bytes: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let offset = bytes.len() as u64;
            let chunk = self.services.content.read_at(digest, offset, limit_bytes).await?;
            if chunk.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&chunk);
            if bytes.len() > limit_bytes {
                return Err(Error::invalid(format!(
                    "{digest} is larger than the {limit_bytes} bytes that are read of it"
                )));
            }
        }
    }

    /// The image for a new container: its layers extracted, its configuration read.
    pub(crate) async fn image_for_container(
        &self,
        text: &str,
        platform: Option<&Platform>,
    ) -> Result<ImageForContainer> {
        let known = match self.find_image(text).await {
            Ok(known) => known,
            Err(error) if error.is_not_found() => self.embedded(text).await?.ok_or(error)?,
            Err(error) => return Err(error),
        };
        let unpacked = self.unpack_for(text, &known.target, platform).await?;
        let config = self.read_config(&unpacked.config).await?;
        platforms::check_system(&config)?;
        Ok(ImageForContainer {
            warning: platforms::warning(&config, platform),
            image: ImageUse {
                id: known.target.digest.clone(),
                target: known.target,
                manifest: unpacked.manifest,
                parent: unpacked.chain_ids.last().cloned(),
            },
            config: config.config,
        })
    }

    /// The image that the binary carries, made when it is first asked for.
    async fn embedded(&self, text: &str) -> Result<Option<Known>> {
        let Ok(reference) = text.parse::<ImageRef>() else { return Ok(None) };
        let reference = reference.with_default_tag();
        if reference.digest().is_some() || reference.tag() != Some("latest") {
            return Ok(None);
        }
        let target = match self.services.extras.embedded_image(&reference.familiar_name()).await {
            Ok(target) => target,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let now = Timestamp::now();
        self.services
            .images
            .put(Image {
                name: reference.to_string(),
                target: target.clone(),
                labels: store_api::Labels::new(),
                created_at: now,
                updated_at: now,
            })
            .await?;
        Ok(Some(Known {
            target,
            records: vec![reference.to_string()],
            names: vec![reference],
            updated: now,
        }))
    }

    /// How a registry is reached, with what the client knows of it.
    pub(crate) fn registry_access(&self, auth: Option<&AuthConfig>) -> RegistryAccess {
        RegistryAccess {
            credentials: auth.map(auth::credentials),
            insecure: self.config.insecure_registries.clone(),
            mirrors: self.config.registry_mirrors.clone(),
            // The first with a hosts.toml for a registry wins; certificates of all count.
            certs_dirs: ["gantry", "docker", "containerd"]
                .map(|name| format!("/etc/{name}/certs.d").into())
                .into(),
            plain_http: false,
            headers: Vec::new(),
            max_concurrent: self.config.max_concurrent_downloads,
            attempts: self.config.max_download_attempts,
            proxy: ProxyAccess {
                http: self.config.http_proxy.clone(),
                https: self.config.https_proxy.clone(),
                except: self.config.no_proxy.clone(),
            },
        }
    }

    pub(crate) fn image_event(&self, action: &str, id: &str, name: &str) {
        let attributes = api_types::Map::from([("name".to_string(), name.to_string())]);
        self.events.publish("image", action, id, attributes);
    }
}

/// As docker names what it did not find.
fn with_latest(text: &str) -> String {
    match text.parse::<ImageRef>() {
        Ok(reference) => reference.with_default_tag().familiar(),
        Err(_) => text.into(),
    }
}

/// An image by reference, id, or prefix of an id, among those known.
pub(crate) fn find_in<'a>(known: &'a BTreeMap<Digest, Known>, text: &str) -> Result<&'a Known> {
    if let Ok(digest) = text.parse::<Digest>() {
        return known.get(&digest).ok_or_else(|| Error::no_such_image(text));
    }
    let prefix = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_hexdigit());
    match text.parse::<ImageRef>() {
        Ok(reference) => {
            if let Some(digest) = reference.digest() {
                let same = |name: &ImageRef| name.name() == reference.name();
                return known
                    .get(digest)
                    .filter(|image| image.names.iter().any(same))
                    .ok_or_else(|| Error::no_such_image(text));
            }
            let wanted = reference.with_default_tag();
            if let Some(image) = known.values().find(|image| image.names.contains(&wanted)) {
                return Ok(image);
            }
        }
        Err(error) if !is_hex => {
            return Err(Error::invalid(format!("no such image: {text}: {error}")));
        }
        Err(_) => {}
    }
    let mut matches =
        known.values().filter(|i| is_hex && i.target.digest.hex().starts_with(prefix));
    match (matches.next(), matches.next()) {
        (Some(image), None) => Ok(image),
        (Some(_), Some(_)) => Err(Error::invalid(format!(
            "ambiguous reference: {text} is the beginning of several image IDs"
        ))),
        (None, _) => Err(Error::no_such_image(&with_latest(text))),
    }
}

/// The text of a registry or store failure with its causes.
pub(crate) fn failure(error: &dyn std::error::Error) -> String {
    chain(error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn configurations_with_nulls_are_read() {
        let config: OciConfig = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","config":null,"history":null,"rootfs":{"type":"layers","diff_ids":null}}"#,
        )
        .unwrap();
        assert!(config.rootfs.diff_ids.is_empty());
    }

    #[test]
    fn an_image_is_seen_by_the_names_that_are_wanted() {
        let known = Known {
            target: Descriptor::new("", Digest::sha256("x"), 1),
            names: ["aa:1", "aa:2", "bb:1"].map(|name| name.parse().unwrap()).into(),
            records: Vec::new(),
            updated: Timestamp::now(),
        };
        let known = known.only(|name| name.familiar_name() == "aa");
        assert_eq!(known.repo_tags(), ["aa:1", "aa:2"]);
        assert_eq!(known.repo_digests(), [format!("aa@{}", Digest::sha256("x"))]);
    }

    #[test]
    fn missing_images_are_named_with_their_tag() {
        assert_eq!(with_latest("alpine"), "alpine:latest");
        assert_eq!(with_latest("localhost:5000/x:1"), "localhost:5000/x:1");
    }
}
