//! An image's layers become committed snapshots, named by their chain ids.

use store_api::{Descriptor, Labels, ProgressState, ResourceKind, UnpackedImage};
use types::{Digest, Platform};

use crate::{
    Core,
    error::{Error, Result},
    progress::{Reporter, Subject},
    snapshots::{Kind, Place},
};

impl Core {
    pub(crate) fn unpack(
        &self,
        ns: &str,
        target: &Descriptor,
        platform: Option<&Platform>,
        reporter: &Reporter,
    ) -> Result<UnpackedImage> {
        let pins = self.guard.pins(ns);
        pins.add(ResourceKind::Content, &target.digest);
        let image = self.resolve_image(ns, target, platform)?;
        self.unpack_image(ns, &image, reporter)?;
        Ok(image)
    }

    pub(crate) fn unpack_image(
        &self,
        ns: &str,
        image: &UnpackedImage,
        reporter: &Reporter,
    ) -> Result<()> {
        let pins = self.guard.pins(ns);
        for blob in image.layers.iter().chain([&image.manifest, &image.config]) {
            pins.add(ResourceKind::Content, &blob.digest);
        }
        for chain_id in &image.chain_ids {
            pins.add(ResourceKind::Snapshot, chain_id);
        }
        // From the top down: what stands, stands on everything below it.
        let mut have = 0;
        for (i, chain_id) in image.chain_ids.iter().enumerate().rev() {
            let name = chain_id.to_string();
            self.guard.refresh(ns, ResourceKind::Snapshot, &name);
            if self.has_snapshot(ns, &name)? {
                have = i + 1;
                break;
            }
        }
        for i in have..image.layers.len() {
            self.unpack_layer(ns, image, i, reporter)?;
        }
        faults::pass("unpack.label");
        self.label_snapshot(ns, image)
    }

    /// Extracts layer `i`, whose parent is there. The same layer in flight is extracted once.
    pub(crate) fn unpack_layer(
        &self,
        ns: &str,
        image: &UnpackedImage,
        i: usize,
        reporter: &Reporter,
    ) -> Result<()> {
        let layer = &image.layers[i];
        let chain_id = image.chain_ids[i].to_string();
        let parent = i.checked_sub(1).map(|below| image.chain_ids[below].to_string());
        let subject = Subject {
            digest: Some(layer.digest.clone()),
            diff_id: Some(image.diff_ids[i].clone()),
            is_layer: true,
            total: layer.size,
        };
        self.flights.alone(&format!("{ns} {chain_id}"), || {
            self.guard.refresh(ns, ResourceKind::Snapshot, &chain_id);
            if self.has_snapshot(ns, &chain_id)? {
                reporter.state(&subject, ProgressState::Complete, "");
                return Ok(());
            }
            reporter.state(&subject, ProgressState::Extracting, "");
            let meter = reporter.meter(&subject, ProgressState::Extracting);
            let tell = |bytes| meter.at(bytes);
            let expected = &image.diff_ids[i];
            if let Err(error) =
                self.extract_to(ns, layer, expected, parent.as_deref(), &chain_id, &tell)
            {
                // Is it the image that is wrong, or what the disk made of it?
                return if error.is_full_disk() {
                    Err(error)
                } else {
                    self.verify_blob(&layer.digest).and(Err(error))
                };
            }
            reporter.state(&subject, ProgressState::Complete, "");
            Ok(())
        })
    }

    fn extract_to(
        &self,
        ns: &str,
        layer: &Descriptor,
        expected: &Digest,
        parent: Option<&str>,
        chain_id: &str,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        if self.takes_packed(ns, parent)?
            && self.pack_layer(ns, layer, &Place { expected, parent, chain_id }, progress)?
        {
            return Ok(());
        }
        let key = format!("extract-{} {chain_id}", crate::random_name());
        self.snapshot_prepare(ns, &key, parent, Kind::Active, Labels::new())?;
        faults::pass("unpack.prepared");
        let outcome = self.extract_into(ns, layer, expected, &key, progress);
        faults::pass("unpack.extracted");
        let committed =
            outcome.and_then(|()| self.snapshot_commit(ns, chain_id, &key, Labels::new()));
        if let Err(error) = committed {
            if let Err(cleanup) = self.snapshot_remove(ns, &key) {
                let cleanup = store_api::Error::from(cleanup);
                tracing::warn!(key, error = %cleanup, "an unfinished extraction stays behind");
            }
            return Err(error);
        }
        Ok(())
    }

    fn extract_into(
        &self,
        ns: &str,
        layer: &Descriptor,
        expected: &Digest,
        key: &str,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let upper = self.snapshot_fs(ns, key)?;
        let lowers: Vec<_> = self.lowers(ns, key)?.into_iter().map(|lower| lower.path).collect();
        let done = self.extract(ns, layer, &upper, &lowers, progress)?;
        self.check_layer(ns, layer, &done.diff_id, expected)
    }

    /// Is a layer's content what its image says? It is labelled with that.
    pub(crate) fn check_layer(
        &self,
        ns: &str,
        layer: &Descriptor,
        found: &Digest,
        expected: &Digest,
    ) -> Result<()> {
        if found != expected {
            return Err(Error::data_loss(format!(
                "layer {}: its content is {found}, its image's configuration says {expected}",
                layer.digest
            )));
        }
        self.content_add_labels(
            ns,
            &layer.digest,
            &Labels::from([(crate::diffs::UNCOMPRESSED.to_string(), expected.to_string())]),
        )
    }
}
