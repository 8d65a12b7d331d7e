use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use store_api::{
    Descriptor, ImagePlatform, Labels, ResourceKind, SquashBase, SquashRequest, UnpackedImage,
    media_type,
};
use types::{Digest, Platform};

use super::merge::merge;
use crate::{
    Core,
    diffs::UNCOMPRESSED,
    error::{Error, Result},
    guard::Pins,
    manifest::{Document, Index, Manifest},
    platforms::{best_here, not_here},
    progress::Reporter,
    snapshots::{borrow, open_all, open_directory},
    transfer::is_name,
};

impl Core {
    /// A manifest, or the chosen platform's image of an index, becomes a manifest; an index of several
    /// becomes one of those of its images that are wholly here.
    pub(crate) fn squash(&self, ns: &str, request: &SquashRequest) -> Result<Descriptor> {
        let pins = self.guard.pins(ns);
        pins.add(ResourceKind::Content, &request.target);
        let target = self.descriptor_of(ns, &request.target)?;
        let platform = request.platform.as_ref();
        let index = match self.document(ns, &target)? {
            Document::Index(index) if platform.is_none() => index,
            _ => {
                let images = self.platforms_of(ns, &target)?;
                let best = best_here(&images, platform)
                    .ok_or_else(|| not_here(&target, platform, &images))?;
                let image = self.resolve_image(ns, &best.manifest, None)?;
                return self.squash_image(ns, &image, request, &pins);
            }
        };
        let images = self.platforms_of(ns, &target)?;
        let mut entries = Vec::new();
        for ImagePlatform { manifest, platform, .. } in images.iter().filter(|image| image.whole) {
            let image = self.resolve_image(ns, manifest, None)?;
            let mut entry = self.squash_image(ns, &image, request, &pins)?;
            pins.add(ResourceKind::Content, &entry.digest);
            entry.platform = Some(platform.clone()).filter(|platform| !platform.os.is_empty());
            // What is said of the image holds for what it became; its names are not its own.
            entry.annotations.clone_from(&manifest.annotations);
            entry.annotations.retain(|key, _| !is_name(key));
            entries.push(entry);
        }
        if entries.is_empty() {
            return Err(not_here(&target, None, &images));
        }
        self.put_index(ns, Index::oci(entries, index.annotations))
    }

    /// Merges the layers of one image that lie above its base.
    fn squash_image(
        &self,
        ns: &str,
        image: &UnpackedImage,
        request: &SquashRequest,
        pins: &Pins,
    ) -> Result<Descriptor> {
        self.keep(ns, image, pins)?;
        let (config_of, config) = self.image_config(ns, &image.config.digest)?;
        let platform = config_of.platform();
        let keep = match &request.base {
            SquashBase::Layers(count) => *count,
            SquashBase::Image(base) => self.base_layers(ns, image, &platform, base)?,
        };
        if keep >= image.layers.len() {
            return Err(Error::invalid(format!(
                "squash {}: the image for {platform} has {} layers, none above the {keep} to keep",
                request.target,
                image.layers.len()
            )));
        }
        self.unpack_image(ns, image, &Reporter::silent())?;
        let (layer, diff_id) = self.merged_layer(ns, image, keep)?;
        faults::pass("squash.merged");
        let config = squashed_config(&config, image, keep, &diff_id, &request.comment)?;
        let mut layers = image.layers[..keep].to_vec();
        layers.push(layer);
        self.put_image(ns, &config, layers)
    }

    /// How many of an image's lowest layers are all those of `base` for the same platform.
    fn base_layers(
        &self,
        ns: &str,
        image: &UnpackedImage,
        platform: &Platform,
        base: &Digest,
    ) -> Result<usize> {
        let target = self.descriptor_of(ns, base)?;
        let images = self.platforms_of(ns, &target)?;
        // Of an image that says no platform the base is the only one there is.
        let wanted = Some(platform).filter(|platform| !platform.os.is_empty());
        let below = best_here(&images, wanted).ok_or_else(|| not_here(&target, wanted, &images))?;
        let below = self.resolve_image(ns, &below.manifest, None)?;
        if image.diff_ids.starts_with(&below.diff_ids) {
            return Ok(below.diff_ids.len());
        }
        Err(Error::invalid(format!(
            "squash {}: its lowest layers are not those of {base} for {platform}",
            image.manifest.digest
        )))
    }

    fn put_index(&self, ns: &str, index: Index) -> Result<Descriptor> {
        let bytes = serde_json::to_vec(&index).map_err(Error::json("encode", "an image index"))?;
        let labels = Document::Index(index).gc_labels(|_| true);
        let digest = self.put_blob(ns, &bytes, labels)?;
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(Descriptor::new(media_type::OCI_INDEX, digest, size))
    }

    /// Pins an image's content and snapshots. All of its content is there.
    fn keep(&self, ns: &str, image: &UnpackedImage, pins: &Pins) -> Result<()> {
        for chain_id in &image.chain_ids {
            pins.add(ResourceKind::Snapshot, chain_id);
        }
        for blob in image.layers.iter().chain([&image.manifest, &image.config]) {
            pins.add(ResourceKind::Content, &blob.digest);
            self.content_record(ns, &blob.digest)?;
        }
        Ok(())
    }

    /// Stores a configuration and a manifest for it, with their labels.
    pub(crate) fn put_image(
        &self,
        ns: &str,
        config: &[u8],
        layers: Vec<Descriptor>,
    ) -> Result<Descriptor> {
        let size = u64::try_from(config.len()).unwrap_or(u64::MAX);
        let digest = self.put_blob(ns, config, Labels::new())?;
        let config = Descriptor::new(media_type::OCI_CONFIG, digest, size);
        let manifest = Manifest::oci(config, layers);
        let bytes =
            serde_json::to_vec(&manifest).map_err(Error::json("encode", "an image manifest"))?;
        let labels = Document::Manifest(manifest).gc_labels(|_| true);
        faults::pass("image.config");
        let digest = self.put_blob(ns, &bytes, labels)?;
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(Descriptor::new(media_type::OCI_MANIFEST, digest, size))
    }

    fn merged_layer(
        &self,
        ns: &str,
        image: &UnpackedImage,
        keep: usize,
    ) -> Result<(Descriptor, Digest)> {
        // Below the root, since files are linked there and not copied.
        let temporary = tempfile::Builder::new()
            .prefix("squash-")
            .tempdir_in(self.root.join("tmp"))
            .map_err(Error::io("create a directory in", self.root.join("tmp")))?;
        let path = temporary.path().join("merged");
        std::fs::create_dir(&path).map_err(Error::io("create", &path))?;
        let out = open_directory(&path)?;
        let directories = self.layer_directories(ns, image, keep, temporary.path())?;
        let (upper, base) = directories.split_at(image.chain_ids.len() - keep);
        let (upper, base) = (open_all(upper)?, open_all(base)?);
        let out = std::os::fd::AsFd::as_fd(&out);
        let base = borrow(&base);
        merge(&borrow(&upper), &base, out, self.disk.userxattr)?;
        let mut labels = Labels::new();
        let kind = media_type::OCI_LAYER_GZIP;
        let layer = self.write_layer(ns, kind, "", &mut labels, |writer| {
            let mut options = archive::PackOptions::default();
            archive::diff_overlay(out, archive::Below::Layers(&base), &mut options, writer)
                .map_err(Error::archive("pack", "the merged layer"))?;
            Ok(())
        })?;
        let diff_id = labels.get(UNCOMPRESSED).and_then(|text| text.parse().ok());
        let diff_id = diff_id.ok_or_else(|| {
            Error::Api(store_api::Error::internal("squash: the merged layer has no diffID"))
        })?;
        Ok((layer, diff_id))
    }
}

impl Core {
    /// The directories of an image's layers, the topmost first; what lies below the `keep` lowest may
    /// be one. A layer that is never unpacked is extracted below `temporary`.
    fn layer_directories(
        &self,
        ns: &str,
        image: &UnpackedImage,
        keep: usize,
        temporary: &Path,
    ) -> Result<Vec<PathBuf>> {
        let mut directories: Vec<PathBuf> = Vec::new();
        if let Some(base) = keep.checked_sub(1) {
            let chain: Vec<String> =
                image.chain_ids[..=base].iter().rev().map(ToString::to_string).collect();
            let lowers = self.lowers_of(ns, &chain)?;
            directories.extend(lowers.into_iter().map(|lower| lower.path));
        }
        for (i, chain_id) in image.chain_ids.iter().enumerate().skip(keep) {
            let record = self.snapshot_record(ns, &chain_id.to_string())?;
            let mut path = self.disk.fs(record.id);
            if record.packed.is_some() {
                path = temporary.join(i.to_string());
                self.disk.extract_packed(&record, &path, &directories)?;
            } else if record.full {
                // Its directory has all that lies below too: the layer itself is in its blob.
                path = temporary.join(i.to_string());
                crate::snapshots::make_root(&path, directories.first().map(PathBuf::as_path))?;
                self.extract(ns, &image.layers[i], &path, &directories, &|_| {})?;
            }
            directories.insert(0, path);
        }
        Ok(directories)
    }
}

/// The configuration of the squashed image: history stays, its entries for merged layers turn into
/// ones without a layer, and one says what happened. Its times are those of the original, so that the
/// same image squashes to the same digest.
fn squashed_config(
    bytes: &[u8],
    image: &UnpackedImage,
    keep: usize,
    diff_id: &Digest,
    comment: &str,
) -> Result<Vec<u8>> {
    let digest = &image.config.digest;
    let mut config: Value =
        serde_json::from_slice(bytes).map_err(Error::json("read image config", digest))?;
    let mut diff_ids: Vec<Value> =
        image.diff_ids[..keep].iter().map(|id| json!(id.to_string())).collect();
    diff_ids.push(json!(diff_id.to_string()));
    config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
    let mut history = match config.get("history") {
        Some(Value::Array(entries)) => entries.clone(),
        _ => Vec::new(),
    };
    let mut layers = 0;
    for entry in &mut history {
        if entry.get("empty_layer").and_then(Value::as_bool).unwrap_or(false) {
            continue;
        }
        layers += 1;
        if layers > keep {
            entry["empty_layer"] = json!(true);
        }
    }
    let base = match keep.checked_sub(1) {
        Some(top) => image.chain_ids[top].to_string(),
        None => "scratch".to_string(),
    };
    let comment = match comment {
        "" => format!("merge {} to {base}", image.manifest.digest),
        comment => comment.to_string(),
    };
    let mut entry = json!({ "comment": comment });
    if let Some(created) = config.get("created") {
        entry["created"] = created.clone();
    }
    history.push(entry);
    config["history"] = Value::Array(history);
    serde_json::to_vec(&config).map_err(Error::json("encode image config", digest))
}
