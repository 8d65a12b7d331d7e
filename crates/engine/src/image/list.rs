use std::collections::BTreeMap;

use api_types::{
    Filters, GraphDriverData, HistoryItem, ImageInspect, ImageMetadata, ImageSummary, RootFs,
};
use store_api::{Descriptor, UnpackedImage};
use types::{Digest, ImageRef, Platform};

use super::{Known, OciConfig};
use crate::{
    Engine, Error, Result,
    container::descriptor_shape,
    util::{parse_time, rfc3339, unix_nanos},
};

/// moby `daemon/images` and `daemon/containerd`: accepted filters.
const FILTERS: &[&str] = &["before", "dangling", "label", "label!", "reference", "since", "until"];

impl Engine {
    pub async fn image_list(&self, filters: &Filters) -> Result<Vec<ImageSummary>> {
        filters.validate(FILTERS)?;
        let dangling = filters.get_bool("dangling")?;
        let patterns: Vec<&str> = filters.get("reference").collect();
        let until = match filters.get("until").next() {
            Some(text) => Some(parse_time(text)?),
            None => None,
        };
        let mut bounds = Vec::new();
        for (key, after) in [("before", false), ("since", true)] {
            if let Some(name) = filters.get(key).next() {
                let known = self.find_image(name).await?;
                bounds.push((self.created_seconds(&known).await, after));
            }
        }
        let mut list = Vec::new();
        for known in self.known_images().await?.into_values() {
            let tagged = !known.repo_tags().is_empty();
            // Of an image's names those are shown that were asked for.
            let known = match patterns.as_slice() {
                [] => known,
                patterns => known.only(|name| patterns.iter().any(|p| matches(p, name))),
            };
            let named = patterns.is_empty() || !known.names.is_empty();
            if dangling.is_some_and(|want| want == tagged) || !named {
                continue;
            }
            let (unpacked, config) = self.details(&known, None).await;
            let created = config.created.as_deref().map_or(0, seconds);
            let unwanted =
                filters.contains("label!") && filters.match_labels("label!", &config.config.labels);
            if unwanted
                || !filters.match_labels("label", &config.config.labels)
                || until.is_some_and(|until| created * 1_000_000_000 > unix_nanos(until))
                || bounds.iter().any(
                    |(bound, after)| {
                        if *after { created <= *bound } else { created >= *bound }
                    },
                )
            {
                continue;
            }
            let id = known.target.digest.to_string();
            let used = self
                .containers
                .all()
                .iter()
                .filter(|c| c.record().image.id == known.target.digest)
                .count();
            list.push(ImageSummary {
                containers: i64::try_from(used).unwrap_or(-1),
                created,
                id,
                labels: config.config.labels.clone(),
                descriptor: Some(descriptor_shape(&known.target)),
                repo_digests: known.repo_digests(),
                repo_tags: known.repo_tags(),
                shared_size: -1,
                size: self.image_size(unpacked.as_ref()).await,
                ..ImageSummary::default()
            });
        }
        list.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        Ok(list)
    }

    /// By image id, the bytes of the layers that other images have too.
    pub async fn image_shared_sizes(&self) -> Result<BTreeMap<String, i64>> {
        let mut images = Vec::new();
        let mut users: BTreeMap<Digest, (u64, usize)> = BTreeMap::new();
        for known in self.known_images().await?.into_values() {
            let found = self.resolve_any(&known.target, None).await;
            let Ok(unpacked) = found else { continue };
            for (chain, layer) in unpacked.chain_ids.iter().zip(&unpacked.layers) {
                if let Some((_, users)) = users.get_mut(chain) {
                    *users += 1;
                    continue;
                }
                users.insert(chain.clone(), (self.layer_size(chain, layer).await, 1));
            }
            images.push((known.target.digest.to_string(), unpacked.chain_ids));
        }
        let shared = |chains: Vec<Digest>| {
            let bytes = chains.iter().filter_map(|chain| users.get(chain));
            let bytes: u64 = bytes.filter(|(_, users)| *users > 1).map(|(bytes, _)| bytes).sum();
            i64::try_from(bytes).unwrap_or(i64::MAX)
        };
        Ok(images.into_iter().map(|(id, chains)| (id, shared(chains))).collect())
    }

    /// Bytes of a layer as it lies unpacked, or of its blob where it does not.
    async fn layer_size(&self, chain: &Digest, layer: &Descriptor) -> u64 {
        match self.services.snapshots.usage(&chain.to_string()).await {
            Ok(usage) => usage.bytes,
            Err(_) => layer.size,
        }
    }

    async fn created_seconds(&self, known: &Known) -> i64 {
        let (_, config) = self.details(known, None).await;
        config.created.as_deref().map_or(0, seconds)
    }

    /// Manifest and configuration for a platform; what is not here is empty.
    pub(super) async fn details(
        &self,
        known: &Known,
        platform: Option<&Platform>,
    ) -> (Option<UnpackedImage>, OciConfig) {
        let unpacked = self.resolve_any(&known.target, platform).await.ok();
        let config = match &unpacked {
            Some(unpacked) => self.read_config(&unpacked.config).await.unwrap_or_default(),
            None => OciConfig::default(),
        };
        (unpacked, config)
    }

    /// Bytes of all layers: as they lie unpacked, or of the blobs where they are not.
    pub(super) async fn image_size(&self, unpacked: Option<&UnpackedImage>) -> i64 {
        let Some(unpacked) = unpacked else { return 0 };
        let mut total = 0u64;
        for (chain, layer) in unpacked.chain_ids.iter().zip(&unpacked.layers) {
            total += self.layer_size(chain, layer).await;
        }
        i64::try_from(total).unwrap_or(i64::MAX)
    }

    pub async fn image_inspect(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<ImageInspect> {
        let known = self.find_image(name).await?;
        let unpacked = self.resolve_any(&known.target, platform).await.map_err(|error| {
            if error.is_not_found() { Error::no_such_image(name) } else { error.into() }
        })?;
        let config = self.read_config(&unpacked.config).await?;
        let comment = config.history.last().map(|entry| entry.comment.clone()).unwrap_or_default();
        Ok(ImageInspect {
            id: known.target.digest.to_string(),
            repo_tags: known.repo_tags(),
            repo_digests: known.repo_digests(),
            comment,
            created: config.created.clone().unwrap_or_default(),
            author: config.author.clone(),
            config: config.config.clone(),
            architecture: config.architecture.clone(),
            variant: config.variant.clone(),
            os: config.os.clone(),
            size: self.image_size(Some(&unpacked)).await,
            graph_driver: GraphDriverData {
                data: api_types::Map::new(),
                name: self.services.snapshots.name().into(),
            },
            root_fs: RootFs {
                r#type: "layers".into(),
                layers: config.rootfs.diff_ids.iter().map(ToString::to_string).collect(),
            },
            metadata: ImageMetadata { last_tag_time: rfc3339(Some(known.updated)) },
            descriptor: Some(descriptor_shape(&known.target)),
            ..ImageInspect::default()
        })
    }

    pub async fn image_history(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Vec<HistoryItem>> {
        let known = self.find_image(name).await?;
        let unpacked = self.resolve_any(&known.target, platform).await?;
        let config = self.read_config(&unpacked.config).await?;
        let mut layers = unpacked.chain_ids.iter().zip(&unpacked.layers);
        let mut items = Vec::new();
        for entry in &config.history {
            let size = match (
                entry.empty_layer,
                entry.empty_layer.then_some(()).map_or_else(|| layers.next(), |()| None),
            ) {
                (false, Some((chain, layer))) => self.layer_size(chain, layer).await,
                _ => 0,
            };
            items.push(HistoryItem {
                comment: entry.comment.clone(),
                created: entry.created.as_deref().map_or(0, seconds),
                created_by: entry.created_by.clone(),
                id: "<missing>".into(),
                size: i64::try_from(size).unwrap_or(i64::MAX),
                tags: Vec::new(),
            });
        }
        items.reverse();
        if let Some(newest) = items.first_mut() {
            newest.id = known.target.digest.to_string();
            newest.tags = known.repo_tags();
        }
        Ok(items)
    }
}

fn seconds(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().map_or(0, |stamp| stamp.as_second())
}

/// `reference` patterns: `name`, `name:tag`, with `*` and `?` as in a shell, against the familiar and the
/// full form (distribution/reference `FamiliarMatch`).
fn matches(pattern: &str, name: &ImageRef) -> bool {
    let familiar = name.familiar();
    let candidates = [familiar, name.familiar_name(), name.to_string(), name.name()];
    candidates.iter().any(|text| glob(pattern.as_bytes(), text.as_bytes()))
}

/// Go's `path.Match` without classes: `*` does not cross `/`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => {
            glob(&pattern[1..], text)
                || text.first().is_some_and(|c| *c != b'/') && glob(pattern, &text[1..])
        }
        (Some(b'?'), Some(c)) if *c != b'/' => glob(&pattern[1..], &text[1..]),
        (Some(p), Some(c)) if p == c => glob(&pattern[1..], &text[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reference_patterns() {
        let name: ImageRef = "localhost:5000/a/web:1.2".parse().unwrap();
        for pattern in
            ["localhost:5000/a/web", "localhost:5000/a/*", "localhost:5000/a/web:1.?", "*/a/web"]
        {
            assert!(matches(pattern, &name), "{pattern}");
        }
        assert!(!matches("web", &name));
        assert!(matches("alp*", &"alpine:3".parse().unwrap()));
    }
}
