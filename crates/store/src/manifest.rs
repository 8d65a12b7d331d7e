//! What an image consists of: indexes, manifests and configurations, read strictly.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use store_api::{Descriptor, Labels, UnpackedImage, media_type};
use types::{Digest, Digester, ErrorKind, Platform, limits};

use crate::{
    Core,
    error::{Error, Result},
    gc,
    snapshots::SNAPSHOTTER,
};

/// Indexes within indexes at most.
pub(crate) const INDEX_LEVELS: usize = 4;
/// Entries of an index at most: the largest official images have some dozens.
const INDEX_ENTRIES: usize = 2048;
/// BuildKit's mark of a manifest that is no image but says something of one.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    pub(crate) config: Descriptor,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub(crate) annotations: Labels,
}

impl Manifest {
    pub(crate) fn oci(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            config,
            layers,
            annotations: Labels::new(),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub(crate) annotations: Labels,
}

impl Index {
    pub(crate) fn oci(manifests: Vec<Descriptor>, annotations: Labels) -> Self {
        let media_type = Some(media_type::OCI_INDEX.into());
        Self { schema_version: 2, media_type, manifests, annotations }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
}

impl Document {
    /// Everything that it names, in order.
    pub(crate) fn children(&self) -> Vec<&Descriptor> {
        match self {
            Self::Index(index) => index.manifests.iter().collect(),
            Self::Manifest(manifest) => {
                std::iter::once(&manifest.config).chain(&manifest.layers).collect()
            }
        }
    }

    /// containerd's labels that lead garbage collection to those of its children that `keep` names.
    pub(crate) fn gc_labels(&self, keep: impl Fn(&Descriptor) -> bool) -> Labels {
        let entry = |name: String, child: &Descriptor| {
            (format!("{}.{name}", gc::REF_CONTENT), child.digest.to_string())
        };
        match self {
            Self::Index(index) => {
                let all = index.manifests.iter().enumerate();
                all.filter(|(_, child)| keep(child))
                    .map(|(i, child)| entry(format!("m.{i}"), child))
                    .collect()
            }
            Self::Manifest(manifest) => {
                let layers = manifest.layers.iter().enumerate();
                std::iter::once(entry("config".into(), &manifest.config))
                    .chain(
                        layers
                            .filter(|(_, layer)| keep(layer))
                            .map(|(i, layer)| entry(format!("l.{i}"), layer)),
                    )
                    .collect()
            }
        }
    }
}

/// Reads an index or a manifest.
///
/// A document that could be taken for both, or says of itself something else than its descriptor, is
/// refused: what one reader takes for an image another must not take for something else.
pub(crate) fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Document> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: Option<u32>,
        media_type: Option<String>,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        manifests: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let digest = &descriptor.digest;
    let refuse = |why: &str| Error::invalid(format!("manifest {digest}: {why}"));
    let shape: Shape =
        serde_json::from_slice(bytes).map_err(Error::json("read manifest", digest))?;
    if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
        return Err(refuse("schema version 1 is not supported; push the image anew"));
    }
    let index = media_type::is_index(&descriptor.media_type);
    if !index && !media_type::is_manifest(&descriptor.media_type) {
        return Err(refuse(&format!("{:?} is no image", descriptor.media_type)));
    }
    if shape.media_type.as_ref().is_some_and(|own| *own != descriptor.media_type) {
        return Err(refuse("its media type is not the one it was announced with"));
    }
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(refuse("it is an index and a manifest at once"));
    }
    if index {
        let index: Index =
            serde_json::from_slice(bytes).map_err(Error::json("read index", digest))?;
        if index.manifests.len() > INDEX_ENTRIES {
            return Err(refuse(&format!("more than {INDEX_ENTRIES} entries")));
        }
        Ok(Document::Index(index))
    } else {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(Error::json("read manifest", digest))?;
        if manifest.layers.len() > limits::LAYERS {
            return Err(refuse(&format!("more than {} layers", limits::LAYERS)));
        }
        Ok(Document::Manifest(manifest))
    }
}

/// The media type of a document that came without one.
pub(crate) fn guess_media_type(bytes: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    match value.get("mediaType").and_then(|own| own.as_str()) {
        Some(own) => Some(own.to_string()),
        None if value.get("manifests").is_some() => Some(media_type::OCI_INDEX.into()),
        None if value.get("layers").is_some() => Some(media_type::OCI_MANIFEST.into()),
        None => None,
    }
}

/// What the store needs to know of a configuration.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

impl Config {
    pub(crate) fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }

    /// How many layers it names.
    pub(crate) fn layers(&self) -> usize {
        self.rootfs.diff_ids.len()
    }

    /// Does it say nothing that makes an image of it?
    pub(crate) fn is_empty(&self) -> bool {
        self.os.is_empty() && self.rootfs.diff_ids.is_empty()
    }

    /// Has it as many layers as the manifest that names it?
    ///
    /// # Errors
    /// `InvalidArgument` with both numbers.
    pub(crate) fn check_layers(&self, manifest: &Digest, layers: usize) -> Result<()> {
        let known = self.layers();
        if known == layers {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "image {manifest}: its configuration names {known} layers, its manifest {layers}"
        )))
    }
}

/// image-spec "Layer ChainID" of every layer, bottom first.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => {
                let mut digester = Digester::sha256();
                digester.update(format!("{below} {diff_id}").as_bytes());
                digester.finish()
            }
        };
        chain.push(next);
    }
    chain
}

/// Is this entry of an index an image, as far as the entry tells?
pub(crate) fn is_image_entry(entry: &Descriptor) -> bool {
    !entry.annotations.contains_key(REFERENCE_TYPE)
        && (media_type::is_manifest(&entry.media_type) || media_type::is_index(&entry.media_type))
}

/// Is this something in an index that names no platform, nor has a configuration that could?
pub(crate) fn is_artifact(entry: &Descriptor, manifest: &Manifest, level: usize) -> bool {
    let known = [media_type::OCI_CONFIG, media_type::DOCKER_CONFIG];
    level > 0 && entry.platform.is_none() && !known.contains(&manifest.config.media_type.as_str())
}

/// The entries of an index that fit the platform, the best first.
pub(crate) fn matching<'a>(index: &'a Index, platform: &Platform) -> Vec<&'a Descriptor> {
    let mut ranked: Vec<(u8, &Descriptor)> = index
        .manifests
        .iter()
        .filter(|entry| is_image_entry(entry))
        .filter_map(|entry| match &entry.platform {
            Some(of_entry) => platform.rank(of_entry).map(|rank| (rank, entry)),
            // It does not say; it may fit, but one that says so goes first.
            None => Some((u8::MAX, entry)),
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, entry)| entry).collect()
}

pub(crate) fn no_platform(digest: &Digest, platform: &Platform) -> Error {
    Error::Api(store_api::Error::new(
        ErrorKind::NotFound,
        format!("no match for platform in manifest {digest}: {platform}: not found"),
    ))
}

/// image-spec "Descriptors": content of another size than was announced is not to be trusted.
pub(crate) fn child_size(child: &Descriptor, bytes: u64) -> Result<()> {
    if bytes == child.size {
        return Ok(());
    }
    Err(Error::data_loss(format!(
        "content {} has {bytes} bytes, its image says {}: build and push the image anew",
        child.digest, child.size
    )))
}

impl Core {
    pub(crate) fn document(&self, ns: &str, descriptor: &Descriptor) -> Result<Document> {
        let bytes = self.read_blob(ns, &descriptor.digest, limits::MANIFEST_BYTES)?;
        parse(descriptor, &bytes)
    }

    /// Has what is here of a manifest's configuration and layers the sizes that it says?
    pub(crate) fn check_sizes(&self, ns: &str, document: &Document) -> Result<()> {
        for child in document.children() {
            match self.content_record(ns, &child.digest) {
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
                Ok(record) => child_size(child, record.size)?,
            }
        }
        Ok(())
    }

    /// A descriptor for content of which only the digest is known.
    pub(crate) fn descriptor_of(&self, ns: &str, digest: &Digest) -> Result<Descriptor> {
        let bytes = self.read_blob(ns, digest, limits::MANIFEST_BYTES)?;
        let media_type = guess_media_type(&bytes)
            .ok_or_else(|| Error::invalid(format!("content {digest} is no manifest or index")))?;
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(Descriptor::new(&media_type, digest.clone(), size))
    }

    pub(crate) fn image_config(&self, ns: &str, digest: &Digest) -> Result<(Config, Vec<u8>)> {
        let bytes = self.read_blob(ns, digest, limits::IMAGE_CONFIG_BYTES)?;
        let config =
            serde_json::from_slice(&bytes).map_err(Error::json("read image config", digest))?;
        Ok((config, bytes))
    }

    /// Chooses the manifest for a platform among those that are here. Without a platform: this
    /// machine's, or else the only one there is.
    pub(crate) fn choose_manifest(
        &self,
        ns: &str,
        target: &Descriptor,
        platform: Option<&Platform>,
    ) -> Result<(Descriptor, Manifest)> {
        let found = self.choose(ns, target, platform, 0)?;
        found.ok_or_else(|| {
            no_platform(&target.digest, &platform.cloned().unwrap_or_else(Platform::host))
        })
    }

    fn choose(
        &self,
        ns: &str,
        target: &Descriptor,
        platform: Option<&Platform>,
        level: usize,
    ) -> Result<Option<(Descriptor, Manifest)>> {
        let index = match self.document(ns, target)? {
            Document::Manifest(manifest) if is_artifact(target, &manifest, level) => {
                return Ok(None);
            }
            Document::Manifest(manifest) => {
                if let Some(platform) = platform {
                    let (config, _) = self.image_config(ns, &manifest.config.digest)?;
                    // A configuration without a platform (buildx's provenance, old tools) fits all.
                    if !config.os.is_empty() && platform.rank(&config.platform()).is_none() {
                        return Ok(None);
                    }
                }
                return Ok(Some((target.clone(), manifest)));
            }
            Document::Index(index) => index,
        };
        if level >= INDEX_LEVELS {
            return Err(Error::invalid(format!(
                "index {}: nested more than {INDEX_LEVELS} levels deep",
                target.digest
            )));
        }
        let wanted = platform.cloned().unwrap_or_else(Platform::host);
        let mut missing = None;
        for entry in matching(&index, &wanted) {
            // A manifest that does not say its platform in the index must say it in its config.
            match self.choose(ns, entry, Some(&wanted), level + 1) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) if error.is_not_found() => missing = missing.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        if platform.is_none() {
            let mut here = Vec::new();
            for entry in index.manifests.iter().filter(|entry| is_image_entry(entry)) {
                if self.has_content(ns, &entry.digest)? {
                    match self.choose(ns, entry, None, level + 1) {
                        Err(error) if error.is_not_found() => {}
                        other => here.extend(other?),
                    }
                }
            }
            if here.len() == 1 {
                return Ok(here.pop());
            }
        }
        missing.map_or(Ok(None), Err)
    }

    /// Everything of the chosen platform's image; `NotFound` when content is missing.
    pub(crate) fn resolve_image(
        &self,
        ns: &str,
        target: &Descriptor,
        platform: Option<&Platform>,
    ) -> Result<UnpackedImage> {
        let (descriptor, manifest) = self.choose_manifest(ns, target, platform)?;
        let (config, _) = self.image_config(ns, &manifest.config.digest)?;
        config.check_layers(&descriptor.digest, manifest.layers.len())?;
        let diff_ids = config.rootfs.diff_ids;
        let chain_ids = chain_ids(&diff_ids);
        Ok(UnpackedImage {
            manifest: descriptor,
            config: manifest.config,
            layers: manifest.layers,
            diff_ids,
            chain_ids,
        })
    }

    /// Puts the labels for garbage collection on everything below `target` that is here.
    pub(crate) fn label_tree(&self, ns: &str, target: &Descriptor) -> Result<()> {
        self.label_tree_but(ns, target, &BTreeSet::new())
    }

    /// The same without the manifests in `unwanted`, which nothing then holds.
    pub(crate) fn label_tree_but(
        &self,
        ns: &str,
        target: &Descriptor,
        unwanted: &BTreeSet<Digest>,
    ) -> Result<()> {
        let mut open = vec![(target.clone(), 0)];
        while let Some((descriptor, level)) = open.pop() {
            if level > INDEX_LEVELS {
                return Err(Error::invalid(format!(
                    "index {}: nested more than {INDEX_LEVELS} levels deep",
                    target.digest
                )));
            }
            let document = self.document(ns, &descriptor)?;
            let mut here = Vec::new();
            for child in document.children() {
                if !unwanted.contains(&child.digest) && self.has_content(ns, &child.digest)? {
                    here.push(child.digest.clone());
                }
            }
            let labels = document.gc_labels(|child| here.contains(&child.digest));
            self.content_add_labels(ns, &descriptor.digest, &labels)?;
            if let Document::Index(index) = document {
                let below = index.manifests.into_iter();
                open.extend(
                    below
                        .filter(|child| here.contains(&child.digest))
                        .filter(|child| {
                            media_type::is_manifest(&child.media_type)
                                || media_type::is_index(&child.media_type)
                        })
                        .map(|child| (child, level + 1)),
                );
            }
        }
        Ok(())
    }

    /// The configuration leads to the image's topmost snapshot from now on.
    pub(crate) fn label_snapshot(&self, ns: &str, image: &UnpackedImage) -> Result<()> {
        let Some(top) = image.chain_ids.last() else { return Ok(()) };
        self.prepare_index(ns, &top.to_string())?;
        let key = format!("{}.{SNAPSHOTTER}", gc::REF_SNAPSHOT);
        let labels = Labels::from([(key, top.to_string())]);
        self.content_add_labels(ns, &image.config.digest, &labels)
    }
}
