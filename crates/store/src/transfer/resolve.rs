//! What a reference leads to in a registry, through indexes within indexes.

use std::{future::Future, pin::Pin};

use registry::{Repository, Target};
use store_api::{Descriptor, Error, Result, media_type};
use types::{ErrorKind, Platform, limits};

use super::{descriptor, refused};
use crate::manifest::{self, Config, Document, INDEX_LEVELS, Manifest, is_artifact};

/// Documents below one index that a pull reads at most.
const DOCUMENTS: usize = 256;

/// The documents that a pull is to keep.
pub(super) struct Found {
    /// The index or manifest that the reference names.
    pub(super) top: registry::Manifest,
    /// Every index that leads to the images, `top` among them.
    pub(super) indexes: Vec<registry::Manifest>,
    pub(super) images: Vec<registry::Manifest>,
}

/// Reads what `target` leads to: the image that fits `platform` best, chosen among what the indexes say
/// as [`crate::Core::choose_manifest`] chooses it among what is here, or every manifest.
pub(super) async fn find(
    repository: &Repository,
    target: Target<'_>,
    platform: Option<&Platform>,
) -> Result<Found> {
    let top = repository.get_manifest(target).await.map_err(refused)?;
    below(repository, top, platform).await
}

/// The same for a document that was read already.
pub(super) async fn below(
    repository: &Repository,
    top: registry::Manifest,
    platform: Option<&Platform>,
) -> Result<Found> {
    let mut search =
        Search { repository, platform, read: 0, indexes: Vec::new(), images: Vec::new() };
    if !search.below(top.clone(), 0).await?
        && let Some(platform) = platform
    {
        return Err(refused(registry::Error::NoPlatform { platform: platform.clone() }));
    }
    Ok(Found { top, indexes: search.indexes, images: search.images })
}

struct Search<'a> {
    repository: &'a Repository,
    /// `None`: all of them.
    platform: Option<&'a Platform>,
    read: usize,
    indexes: Vec<registry::Manifest>,
    images: Vec<registry::Manifest>,
}

impl Search<'_> {
    /// Was anything found in a document or below it?
    fn below(
        &mut self,
        document: registry::Manifest,
        level: usize,
    ) -> Pin<Box<dyn Future<Output = Result<bool>> + Send + '_>> {
        Box::pin(async move {
            let own = descriptor(&document.descriptor);
            let index = match manifest::parse(&own, &document.bytes)? {
                Document::Manifest(manifest) => {
                    let fits = self.fits(&own, &manifest, level).await?;
                    if fits {
                        self.images.push(document);
                    }
                    return Ok(fits);
                }
                Document::Index(index) => index,
            };
            if level >= INDEX_LEVELS {
                return Err(Error::invalid(format!(
                    "index {}: nested more than {INDEX_LEVELS} levels deep",
                    own.digest
                )));
            }
            let entries: Vec<&Descriptor> = match self.platform {
                Some(platform) => manifest::matching(&index, platform),
                None => index.manifests.iter().filter(|entry| is_document(entry)).collect(),
            };
            let before = self.indexes.len();
            self.indexes.push(document);
            let mut found = false;
            for entry in entries {
                let next = self.get(entry, &own).await?;
                found |= self.below(next, level + 1).await?;
                if found && self.platform.is_some() {
                    break;
                }
            }
            if !found && self.platform.is_some() {
                self.indexes.truncate(before);
            }
            Ok(found)
        })
    }

    async fn get(&mut self, entry: &Descriptor, index: &Descriptor) -> Result<registry::Manifest> {
        self.read += 1;
        if self.read > DOCUMENTS {
            return Err(Error::invalid(format!(
                "index {}: more than {DOCUMENTS} platforms",
                index.digest
            )));
        }
        let got = self.repository.get_manifest(Target::Digest(&entry.digest)).await;
        let mut got = got.map_err(refused)?;
        let of = &got.descriptor;
        if of.size != entry.size || of.media_type != entry.media_type {
            let text = format!(
                "manifest {}: it is {} bytes of {:?}, index {} says {} bytes of {:?}",
                entry.digest, of.size, of.media_type, index.digest, entry.size, entry.media_type
            );
            return Err(Error::new(ErrorKind::DataLoss, text));
        }
        got.descriptor.platform.clone_from(&entry.platform);
        Ok(got)
    }

    /// A manifest that does not say its platform in the index must say it in its configuration.
    async fn fits(&self, own: &Descriptor, manifest: &Manifest, level: usize) -> Result<bool> {
        let Some(platform) = self.platform else { return Ok(true) };
        if level == 0 || own.platform.is_some() {
            return Ok(true);
        }
        if is_artifact(own, manifest, level) {
            return Ok(false);
        }
        let digest = &manifest.config.digest;
        let bytes = self.repository.fetch_blob(digest, limits::IMAGE_CONFIG_BYTES).await;
        let config: Config = serde_json::from_slice(&bytes.map_err(refused)?)
            .map_err(|error| Error::invalid(format!("read image config {digest}: {error}")))?;
        Ok(config.os.is_empty() || platform.rank(&config.platform()).is_some())
    }
}

fn is_document(entry: &Descriptor) -> bool {
    media_type::is_manifest(&entry.media_type) || media_type::is_index(&entry.media_type)
}
