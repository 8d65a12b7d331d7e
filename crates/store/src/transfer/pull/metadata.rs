//! What an index says of images that a pull leaves out: containerd's `all_metadata`.

use store_api::{ResourceKind, Result};

use super::{Part, Pull, is_image_config, part, put_exact};
use crate::{manifest::Document, transfer::resolve};

impl Pull {
    /// Keeps manifests and configurations of all other images below `top`, without their layers, so that
    /// the index can be told of and pushed on as a whole. Answers whether a configuration was downloaded.
    pub(super) async fn metadata(&self, top: registry::Manifest, wanted: &[Part]) -> Result<bool> {
        let found = resolve::below(&self.repository, top, None).await?;
        for index in &found.indexes {
            self.keep_index(index).await?;
        }
        let mut downloaded = false;
        for image in &found.images {
            let Part { descriptor, bytes, manifest } = part(image)?;
            if wanted.iter().any(|part| part.descriptor.digest == descriptor.digest) {
                continue;
            }
            self.pins.add(ResourceKind::Content, &descriptor.digest);
            if is_image_config(&manifest.config) {
                self.pins.add(ResourceKind::Content, &manifest.config.digest);
                downloaded |= self.config(&manifest.config).await?;
            }
            let document = Document::Manifest(manifest);
            self.local
                .quick(move |core, ns| {
                    core.check_sizes(ns, &document)?;
                    put_exact(core, ns, &descriptor.digest, &bytes)
                })
                .await?;
        }
        Ok(downloaded)
    }
}
