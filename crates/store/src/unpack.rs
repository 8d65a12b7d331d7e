//! An image's layers become committed snapshots, named by their chain ids: made at once, as far as there
//! are helpers, and committed from the bottom up.

mod ahead;
mod growth;
mod inflate;
mod staged;

use std::sync::Arc;

use store_api::{Descriptor, Labels, ProgressState, ResourceKind, UnpackedImage};
use types::{Digest, Platform};

pub use self::inflate::InflationLimit;
pub(crate) use self::{
    ahead::{Ahead, CoreRef, Crew, Slots, Source},
    growth::{Grower, Growth},
    inflate::Inflation,
};
use self::{
    ahead::{Found, given_up},
    staged::Staged,
};
use crate::{
    Core, Local,
    error::{Error, Result},
    progress::{Reporter, Subject},
    snapshots::{Kind, Place},
};

impl Local {
    /// Heavy work on a layer in its turn. Who makes it already, for whichever image, is waited for without a
    /// place among the heavy operations.
    pub(crate) async fn heavy_in_turn<T: Send + 'static>(
        &self,
        (ahead, i): (&Ahead<Arc<Core>>, usize),
        work: impl FnOnce(&Core, &str) -> Result<T> + Send + 'static,
    ) -> store_api::Result<T> {
        let name = format!("unpack {} {}", self.ns, ahead.image.chain_ids[i]);
        let _alone = self.core.async_flights.enter(&name).await;
        ahead.made(i).await;
        self.heavy(work).await
    }
}

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
        let have = self.layers_there(ns, image)?;
        let ahead = Ahead::new(self, ns, image, have);
        for i in have..image.layers.len() {
            ahead.comes(i, Source::Blob);
        }
        let subjects: Vec<Subject> = (0..image.layers.len()).map(|i| subject(image, i)).collect();
        let tell = |i: usize, bytes| {
            reporter.amount(&subjects[i], ProgressState::Extracting, bytes);
        };
        self.with_helpers(&ahead, &tell, || {
            for i in have..image.layers.len() {
                let unpacked = self.unpack_layer(ns, image, i, reporter, &ahead);
                // What a helper found is why this one was given up.
                unpacked.map_err(|error| ahead.failure().unwrap_or(error))?;
                if let Some(error) = ahead.failure() {
                    return Err(error);
                }
            }
            Ok(())
        })?;
        faults::pass("unpack.label");
        self.label_snapshot(ns, image)
    }

    /// How many layers are there, from below. They are protected from now on.
    pub(crate) fn layers_there(&self, ns: &str, image: &UnpackedImage) -> Result<usize> {
        // From the top down: what stands, stands on everything below it.
        for (i, chain_id) in image.chain_ids.iter().enumerate().rev() {
            let name = chain_id.to_string();
            self.guard.refresh(ns, ResourceKind::Snapshot, &name);
            if self.has_snapshot(ns, &name)? {
                return Ok(i + 1);
            }
        }
        Ok(0)
    }

    /// Commits layer `i`, whose parent is there: what a helper made of it, or what is made now. The same
    /// layer in flight is made once.
    pub(crate) fn unpack_layer<C: CoreRef>(
        &self,
        ns: &str,
        image: &UnpackedImage,
        i: usize,
        reporter: &Reporter,
        ahead: &Ahead<C>,
    ) -> Result<()> {
        let layer = &image.layers[i];
        let chain_id = image.chain_ids[i].to_string();
        let parent = i.checked_sub(1).map(|below| image.chain_ids[below].to_string());
        let subject = subject(image, i);
        let place =
            Place { expected: &image.diff_ids[i], parent: parent.as_deref(), chain_id: &chain_id };
        self.flights.alone(&format!("{ns} {chain_id}"), || {
            self.guard.refresh(ns, ResourceKind::Snapshot, &chain_id);
            let found = ahead.take(i);
            let is_there = self.has_snapshot(ns, &chain_id);
            let is_wanted = matches!(is_there, Ok(false)) && !ahead.is_stopped();
            if let (Found::Staged(staged, _), false) = (&found, is_wanted) {
                self.discard_staged(staged);
            }
            let is_there = is_there?;
            if ahead.is_stopped() {
                return Err(given_up());
            }
            if is_there {
                // Whoever committed it may not have told.
                self.flights.layers.tell();
                reporter.state(&subject, ProgressState::Complete, "");
                return Ok(());
            }
            let (is_packable, made, _turn) = match found {
                Found::Staged(Staged::MustExtract, turn) => (false, Ok(false), Some(turn)),
                Found::Staged(staged, turn) => {
                    reporter.full(&subject, ProgressState::Extracting);
                    (true, self.commit_staged(ns, layer, &place, staged), Some(turn))
                }
                Found::Nothing(turn) => (true, Ok(false), turn),
            };
            let made = made.and_then(|is_done| {
                if is_done {
                    return Ok(());
                }
                reporter.state(&subject, ProgressState::Extracting, "");
                let tell = |bytes| reporter.amount(&subject, ProgressState::Extracting, bytes);
                let extracted = self.extract_to(ns, layer, &place, is_packable, &tell);
                extracted.map_err(|error| match error.is_already_exists() {
                    true => error,
                    false => self.blame(&layer.digest, error),
                })
            });
            match made {
                // A client of the store, or a build, was first.
                Err(error) if error.is_already_exists() && self.has_snapshot(ns, &chain_id)? => {}
                other => other?,
            }
            self.flights.layers.tell();
            reporter.state(&subject, ProgressState::Complete, "");
            Ok(())
        })
    }

    fn extract_to(
        &self,
        ns: &str,
        layer: &Descriptor,
        place: &Place<'_>,
        is_packable: bool,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let Place { expected, parent, chain_id } = *place;
        if is_packable
            && self.takes_packed(ns, parent)?
            && self.pack_layer(ns, layer, place, progress)?
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
        self.label_uncompressed(ns, &layer.digest, expected)
    }

    /// Says on a blob what its content is.
    fn label_uncompressed(&self, ns: &str, blob: &Digest, diff_id: &Digest) -> Result<()> {
        let label = (crate::diffs::UNCOMPRESSED.to_string(), diff_id.to_string());
        self.content_add_labels(ns, blob, &Labels::from([label]))
    }
}

fn subject(image: &UnpackedImage, i: usize) -> Subject {
    Subject {
        digest: Some(image.layers[i].digest.clone()),
        diff_id: Some(image.diff_ids[i].clone()),
        is_layer: true,
        total: image.layers[i].size,
    }
}
