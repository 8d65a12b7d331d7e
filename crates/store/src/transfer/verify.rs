//! Whether an image is here with all that it names, and whether what is here is what it says.

use std::{collections::BTreeSet, io::Read, path::Path};

use serde::Deserialize;
use store_api::{Descriptor, Imported, media_type};
use types::{Digest, ErrorKind};

use crate::{
    Core,
    error::{Error, Result},
    manifest::{Document, INDEX_LEVELS, Manifest, is_image_entry},
};

/// Bytes of `oci-layout` at most: it has some thirty.
const LAYOUT_BYTES: usize = 4096;
/// The way out where content of an image that has a record is missing.
const WAY_OUT: &str = "pull the image again, or mend the store with `gantry fsck --repair`";

/// What of an image is not here.
pub(super) struct Missing {
    what: &'static str,
    pub(super) digest: Digest,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.what, self.digest)
    }
}

impl Core {
    /// The first content that an image lacks; of an index, that its first incomplete image lacks.
    ///
    /// # Errors
    /// When a document that is here cannot be read as one.
    pub(super) fn missing(&self, ns: &str, target: &Descriptor) -> Result<Option<Missing>> {
        let mut open = vec![(target.clone(), 0)];
        while let Some((descriptor, level)) = open.pop() {
            if !self.has_content(ns, &descriptor.digest)? {
                let digest = descriptor.digest;
                return Ok(Some(Missing { what: "manifest", digest }));
            }
            match self.document(ns, &descriptor)? {
                Document::Index(index) if level < INDEX_LEVELS => {
                    let mut entries: Vec<_> =
                        index.manifests.into_iter().filter(is_image_entry).collect();
                    let mut here = Vec::new();
                    for entry in &entries {
                        here.push(self.has_content(ns, &entry.digest)?);
                    }
                    // A platform that nobody pulled is not what is missing, if there is another.
                    if here.contains(&true) {
                        let mut here = here.into_iter();
                        entries.retain(|_| here.next().unwrap_or(false));
                    }
                    open.extend(entries.into_iter().rev().map(|entry| (entry, level + 1)));
                }
                Document::Index(_) => {}
                Document::Manifest(manifest) => {
                    let layers = manifest.layers.iter().map(|layer| ("layer", layer));
                    for (what, child) in
                        [("configuration", &manifest.config)].into_iter().chain(layers)
                    {
                        if !self.has_content(ns, &child.digest)? {
                            return Ok(Some(Missing { what, digest: child.digest.clone() }));
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    /// An image that has a record lacks something: what, and what helps. Any other error stays as it is.
    pub(super) fn explain(&self, ns: &str, target: &Descriptor, name: &str, error: Error) -> Error {
        if !error.is_not_found() {
            return error;
        }
        match self.missing(ns, target) {
            Ok(Some(missing)) => store_api::Error::new(
                ErrorKind::NotFound,
                format!("{missing} of image {name} is missing: {WAY_OUT}"),
            )
            .into(),
            _ => error,
        }
    }

    /// Is everything that is here of an archive's image what the image says: of the sizes that it names
    /// (image-spec "Descriptors"), and as many layers as its configuration knows (as dockerd)?
    ///
    /// # Errors
    /// `InvalidArgument` that names the content.
    pub(super) fn check_archived(&self, ns: &str, target: &Descriptor) -> Result<()> {
        let mut open = vec![(target.clone(), 0)];
        while let Some((descriptor, level)) = open.pop() {
            self.archived_size(ns, &descriptor)?;
            match self.document(ns, &descriptor)? {
                Document::Index(index) => {
                    if level >= INDEX_LEVELS {
                        return Err(Error::invalid(format!(
                            "index {}: nested more than {INDEX_LEVELS} levels deep",
                            target.digest
                        )));
                    }
                    for entry in index.manifests.into_iter().filter(is_image_entry) {
                        if self.has_content(ns, &entry.digest)? {
                            open.push((entry, level + 1));
                        }
                    }
                }
                Document::Manifest(manifest) => self.check_manifest(ns, &descriptor, &manifest)?,
            }
        }
        Ok(())
    }

    fn check_manifest(&self, ns: &str, own: &Descriptor, manifest: &Manifest) -> Result<()> {
        for child in std::iter::once(&manifest.config).chain(&manifest.layers) {
            if self.has_content(ns, &child.digest)? {
                self.archived_size(ns, child)?;
            }
        }
        let known = [media_type::OCI_CONFIG, media_type::DOCKER_CONFIG];
        if !known.contains(&manifest.config.media_type.as_str())
            || !self.has_content(ns, &manifest.config.digest)?
        {
            return Ok(());
        }
        let (config, _) = self.image_config(ns, &manifest.config.digest)?;
        // An artifact with an image's type of configuration, but an empty one.
        if config.is_empty() {
            return Ok(());
        }
        config.check_layers(&own.digest, manifest.layers.len())
    }

    fn archived_size(&self, ns: &str, descriptor: &Descriptor) -> Result<()> {
        let bytes = self.content_record(ns, &descriptor.digest)?.size;
        if bytes == descriptor.size {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the archive's blob {} has {bytes} bytes, the archive says {} of it: the archive is damaged or badly made",
            descriptor.digest, descriptor.size
        )))
    }
}

/// Why a file did not become content, without the store's own names.
pub(super) fn in_words(path: &Path, error: Error) -> Error {
    let Error::Api(store_api::Error { kind, .. }) = &error else { return error };
    let why = match kind {
        ErrorKind::DataLoss => {
            "does not have the digest that it is named by: the archive is damaged"
        }
        ErrorKind::FailedPrecondition => "was removed while the archive was read: load it again",
        _ => return error,
    };
    let text = format!("the archive's {} {why}", path.display());
    store_api::Error::new(*kind, text).into()
}

/// image-spec "oci-layout file": what another major version means is not known.
pub(super) fn layout_version(size: u64, data: &mut dyn Read) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: String,
    }
    if usize::try_from(size).map_or(true, |size| size > LAYOUT_BYTES) {
        return Err(Error::invalid(format!(
            "the archive's oci-layout has {size} bytes, at most {LAYOUT_BYTES} are possible"
        )));
    }
    let mut bytes = Vec::new();
    data.read_to_end(&mut bytes).map_err(Error::stream("read", "oci-layout"))?;
    let layout: Layout =
        serde_json::from_slice(&bytes).map_err(Error::json("read", "oci-layout of the archive"))?;
    let version = layout.image_layout_version;
    if version.split_once('.').is_some_and(|(major, _)| major == "1") {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the archive's oci-layout says version {version:?}: only versions 1.x of OCI image layouts are known"
    )))
}

/// What of an archive's image is not in the archive.
pub(super) fn incomplete(core: &Core, ns: &str, target: &Descriptor) -> Error {
    let image = &target.digest;
    let text = match core.missing(ns, target) {
        Err(error) => return error,
        Ok(Some(missing)) if missing.digest == *image => {
            format!("the archive is not complete: {missing} is not in it")
        }
        Ok(Some(missing)) => {
            format!("the archive is not complete: {missing} of image {image} is not in it")
        }
        Ok(None) => format!("the archive is not complete: image {image} has no manifest in it"),
    };
    Error::invalid(text)
}

/// Content of an image went while it was being loaded.
pub(super) fn went_away(core: &Core, ns: &str, target: &Descriptor) -> Error {
    match core.missing(ns, target) {
        Err(error) => error,
        Ok(missing) => {
            let what = missing.map_or_else(|| "its content".into(), |missing| missing.to_string());
            let text = format!(
                "load image {}: {what} was removed meanwhile: load it again",
                target.digest
            );
            Error::Api(store_api::Error::new(ErrorKind::NotFound, text))
        }
    }
}

/// A name that an archive gives to several images is the last one's, as with dockerd and containerd, which
/// name them one after the other. The others have none then.
pub(super) fn last_of_each_name(found: &mut Vec<Imported>) {
    let mut taken = BTreeSet::new();
    for image in found.iter_mut().rev() {
        if !image.name.is_empty() && !taken.insert(image.name.clone()) {
            image.name.clear();
        }
    }
    // One that has another name still is told of by that.
    let named = found.iter().filter(|image| !image.name.is_empty());
    let mut told: BTreeSet<Digest> = named.map(|image| image.target.digest.clone()).collect();
    found.retain(|image| !image.name.is_empty() || told.insert(image.target.digest.clone()));
}
