mod metadata;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use registry::{Blob, Repository, Target};
use store_api::{
    Descriptor, Error, Image, Labels, PULL_NAMES_MAX, ProgressSender, ProgressState, PullRecords,
    PullRequest, Pulled, ResourceKind, Result, UnpackedImage, WriteRequest, media_type,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use types::{Digest, ErrorKind, ImageRef, Platform, limits};

use super::{WRITE_BYTES, descriptor, refused, remember_source, repository, resolve};
use crate::{
    Local,
    content::Writer,
    error::Error as Fail,
    guard::Pins,
    manifest::{self, Document, Manifest},
    progress::{Reporter, Subject},
    unpack::{Ahead, Crew, Grower, Growth, Source},
};

/// Blobs downloaded at once where the caller has no wish: a registry's per-connection limits are what
/// more connections get around, memory is one write buffer each.
const AT_ONCE: usize = 8;

/// One image of a pull: its manifest, and whether its layers are wanted as snapshots.
struct Part {
    descriptor: Descriptor,
    bytes: Bytes,
    manifest: Manifest,
}

/// The layers of one image, as a pull finds them.
struct Layers {
    /// The image is here with all of them.
    whole: bool,
    /// Those to download.
    wanted: Vec<Wanted>,
    /// In order: whether each was downloaded.
    arrivals: Vec<oneshot::Receiver<bool>>,
}

/// A layer to download: the image's `i`-th.
struct Wanted {
    i: usize,
    layer: Descriptor,
    subject: Subject,
    arrived: oneshot::Sender<bool>,
}

/// What is made of a layer's bytes while they come: by whom, and as which layer.
type Reader<'a> = Option<(&'a Ahead<Arc<crate::Core>>, usize)>;

/// What is known of a download that failed.
#[derive(Default)]
struct Attempt {
    /// It went on where an earlier one, from whomever, ended.
    resumed: bool,
    /// The servers that sent some of it.
    sources: Vec<String>,
}

struct Pull {
    local: Local,
    /// As docker's commands name it.
    image: String,
    repository: Repository,
    reporter: Reporter,
    slots: Arc<Semaphore>,
    /// Everything that the image will lead to.
    pins: Pins,
}

pub(crate) async fn pull(
    local: &Local,
    request: PullRequest,
    progress: ProgressSender,
) -> Result<Pulled> {
    let reference = request.reference.clone().with_default_tag();
    let name = reference.to_string();
    let records = checked(request.records.clone(), &name)?;
    let _alone = local.core.async_flights.enter(&format!("pull {} {name}", local.ns)).await;
    let at_once = match request.access.max_concurrent {
        0 => AT_ONCE,
        n => n,
    };
    let local = &local.for_operation();
    let pull = Arc::new(Pull {
        local: local.clone(),
        image: reference.familiar(),
        repository: repository(local, &reference, &request.access).await?,
        reporter: Reporter::new(progress),
        slots: Arc::new(Semaphore::new(at_once)),
        pins: local.core.guard.pins(&local.ns),
    });
    let whole = Subject::default();
    pull.reporter.state(&whole, ProgressState::Resolving, &name);
    let (document, parts) = pull.manifests(&request, &reference).await?;
    let top = descriptor(&document.descriptor);
    faults::pass("pull.resolved");
    pull.pin(&top, &parts);
    pull.reporter.state(&whole, ProgressState::Resolved, &top.digest.to_string());
    let images = async {
        let mut downloaded = false;
        for part in &parts {
            // Of several platforms only this machine's is worth unpacking.
            downloaded |= pull.part(part, &reference, request.unpack && parts.len() == 1).await?;
        }
        Ok(downloaded)
    };
    let others = async {
        match request.all_metadata && !request.all_platforms {
            true => pull.metadata(document, &parts).await,
            false => Ok(false),
        }
    };
    let (images, others) = tokio::try_join!(images, others)?;
    let downloaded = images || others;
    if request.unpack && parts.len() > 1 {
        pull.unpack_own(&top).await?;
    }
    let name = records.names[0].clone();
    let up_to_date = pull.finish(records, &top).await? && !downloaded;
    if let Some(operation) = &local.operation {
        operation.succeeded();
    }
    pull.reporter.state(&whole, ProgressState::Complete, &top.digest.to_string());
    Ok(Pulled { name, target: top, up_to_date })
}

impl Pull {
    /// What the reference names, and the manifests of the images that are wanted. Their indexes are kept.
    async fn manifests(
        &self,
        request: &PullRequest,
        reference: &ImageRef,
    ) -> Result<(registry::Manifest, Vec<Part>)> {
        let host = request.platform.clone().unwrap_or_else(Platform::host);
        let wanted = (!request.all_platforms).then_some(&host);
        let found = resolve::find(&self.repository, Target::of(reference), wanted).await?;
        for index in &found.indexes {
            self.keep_index(index).await?;
        }
        let parts: Result<Vec<Part>> = found.images.iter().map(part).collect();
        Ok((found.top, parts?))
    }

    fn pin(&self, top: &Descriptor, parts: &[Part]) {
        self.pins.add(ResourceKind::Content, &top.digest);
        for part in parts {
            let manifest = &part.manifest;
            for blob in manifest.layers.iter().chain([&part.descriptor, &manifest.config]) {
                self.pins.add(ResourceKind::Content, &blob.digest);
            }
        }
    }

    /// Stores an index; its labels come when its manifests are there.
    async fn keep_index(&self, index: &registry::Manifest) -> Result<()> {
        self.pins.add(ResourceKind::Content, &index.descriptor.digest);
        let bytes = index.bytes.clone();
        let digest = index.descriptor.digest.clone();
        self.local.quick(move |core, ns| put_exact(core, ns, &digest, &bytes)).await
    }

    /// Downloads an image's blobs and makes its layers, all at once; they are committed in order.
    /// Answers whether anything was downloaded.
    async fn part(
        self: &Arc<Self>,
        part: &Part,
        reference: &ImageRef,
        unpack: bool,
    ) -> Result<bool> {
        let config = part.manifest.config.clone();
        let mut downloaded = self.config(&config).await?;
        let is_image = is_image_config(&config);
        // Before anything large is downloaded, and once all is here.
        let document = Document::Manifest(part.manifest.clone());
        let to_check = document.clone();
        self.local.quick(move |core, ns| core.check_sizes(ns, &to_check)).await?;
        let digest = part.descriptor.digest.clone();
        let bytes = part.bytes.clone();
        self.local.quick(move |core, ns| put_exact(core, ns, &digest, &bytes)).await?;
        let image = if is_image {
            let target = part.descriptor.clone();
            Some(self.local.quick(move |core, ns| core.resolve_image(ns, &target, None)).await?)
        } else if unpack {
            return Err(Error::invalid(format!(
                "{reference} is no container image: its configuration is of type {:?}",
                config.media_type
            )));
        } else {
            None
        };
        faults::pass("pull.manifest");
        for chain_id in image.iter().flat_map(|image| &image.chain_ids) {
            self.pins.add(ResourceKind::Snapshot, chain_id);
        }
        downloaded |= self
            .layers(part, image.as_ref().filter(|_| unpack), image.as_ref(), downloaded)
            .await?;
        faults::pass("pull.layers");
        let (reference, layers) = (reference.clone(), part.manifest.layers.clone());
        self.local
            .quick(move |core, ns| {
                core.check_sizes(ns, &document)?;
                if let (true, Some(image)) = (unpack, &image) {
                    core.label_snapshot(ns, image)?;
                }
                let mut blobs: Vec<Digest> = layers.into_iter().map(|l| l.digest).collect();
                blobs.push(config.digest);
                remember_source(core, ns, &reference, &blobs)
            })
            .await?;
        Ok(downloaded)
    }

    /// Downloads an image's layers and makes those that are to be unpacked. Answers whether any was
    /// downloaded.
    async fn layers(
        self: &Arc<Self>,
        part: &Part,
        wanted_image: Option<&UnpackedImage>,
        image: Option<&UnpackedImage>,
        is_new: bool,
    ) -> Result<bool> {
        let Layers { whole, wanted, arrivals } = self.announce(part, image, is_new).await?;
        let crew = match wanted_image {
            Some(image) => Some(self.crew(image, whole).await?),
            None => None,
        };
        let ahead = crew.as_ref().map(|crew| Arc::clone(&crew.ahead));
        let mut tasks = JoinSet::new();
        let (failed, mut failures) = mpsc::channel(wanted.len().max(1));
        let mut here: Vec<usize> = (0..part.manifest.layers.len()).collect();
        for Wanted { i, layer, subject, arrived } in wanted {
            here.retain(|other| *other != i);
            let (pull, ahead, failed) = (Arc::clone(self), ahead.clone(), failed.clone());
            tasks.spawn(async move {
                match pull.layer(&layer, &subject, ahead.as_deref().map(|ahead| (ahead, i))).await {
                    Ok(outcome) => {
                        if let Some(ahead) = &ahead {
                            ahead.comes(i, Source::Blob);
                        }
                        // Nobody waits any more when another layer failed first.
                        arrived.send(outcome).ok();
                    }
                    // There is room for one of each.
                    Err(error) => drop(failed.try_send(error)),
                }
            });
        }
        drop(failed);
        for (i, ahead) in here.iter().flat_map(|i| ahead.iter().map(move |ahead| (*i, ahead))) {
            ahead.comes(i, Source::Blob);
        }
        let outcome = {
            let failed = async {
                match &ahead {
                    Some(ahead) => ahead.failed().await.into(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(error) = failures.recv() => Err(error),
                error = failed => Err(error),
                outcome = self.in_order(part, arrivals, image, ahead.as_ref(), whole) => outcome,
            }
        };
        let outcome = outcome.map_err(|error| {
            let helpers = ahead.as_ref().and_then(|ahead| ahead.failure());
            cause(&mut failures, helpers, error)
        });
        // One layer's failure ends the others.
        tasks.shutdown().await;
        drop(ahead);
        if let Some(crew) = crew {
            crew.end().await;
        }
        outcome
    }

    /// Commits the layers as they arrive, from the bottom up. Answers whether any was downloaded.
    async fn in_order(
        self: &Arc<Self>,
        part: &Part,
        arrivals: Vec<oneshot::Receiver<bool>>,
        image: Option<&UnpackedImage>,
        ahead: Option<&Arc<Ahead<Arc<crate::Core>>>>,
        silent: bool,
    ) -> Result<bool> {
        let mut downloaded = false;
        for (i, arrival) in arrivals.into_iter().enumerate() {
            let gone = |_| Error::new(ErrorKind::Cancelled, "the pull was given up");
            downloaded |= arrival.await.map_err(gone)?;
            if let (Some(image), Some(ahead)) = (image, ahead) {
                downloaded |= self.extract_whole(part, image, (i, ahead), silent).await?;
            }
        }
        Ok(downloaded)
    }

    /// Helpers that make the layers' files while they come.
    async fn crew(self: &Arc<Self>, image: &UnpackedImage, silent: bool) -> Result<Crew> {
        let wanted = image.clone();
        let have = self.local.quick(move |core, ns| core.layers_there(ns, &wanted)).await?;
        let ahead = Ahead::new(Arc::clone(&self.local.core), &self.local.ns, image, have);
        let layers = image.layers.iter().enumerate();
        let subjects: Vec<_> = layers.map(|(i, layer)| subject(layer, Some(image), i)).collect();
        let pull = Arc::clone(self);
        Ok(Crew::start(ahead, move |i, bytes| {
            if !silent {
                pull.reporter.amount(&subjects[i], ProgressState::Extracting, bytes);
            }
        }))
    }

    /// Tells of the layers in the image's order, before any of them moves.
    async fn announce(
        &self,
        part: &Part,
        image: Option<&UnpackedImage>,
        is_new: bool,
    ) -> Result<Layers> {
        let mut here = Vec::new();
        for layer in &part.manifest.layers {
            here.push(self.is_here(&layer.digest).await?);
        }
        // As with dockerd there is nothing to tell of the layers of an image that is here.
        let whole = !is_new && here.iter().all(|here| *here);
        let mut layers = Layers { whole, wanted: Vec::new(), arrivals: Vec::new() };
        for (i, layer) in part.manifest.layers.iter().enumerate() {
            let (arrived, arrival) = oneshot::channel();
            layers.arrivals.push(arrival);
            let subject = subject(layer, image, i);
            if !here[i] {
                self.reporter.state(&subject, ProgressState::Waiting, "");
                layers.wanted.push(Wanted { i, layer: layer.clone(), subject, arrived });
                continue;
            }
            if !whole {
                self.reporter.state(&subject, ProgressState::Exists, "");
            }
            // It is waited for only below.
            arrived.send(false).ok();
        }
        Ok(layers)
    }

    /// Extracts a layer; one that was here and turns out to be damaged is downloaded anew first. Answers
    /// whether it was.
    async fn extract_whole(
        self: &Arc<Self>,
        part: &Part,
        image: &UnpackedImage,
        (i, ahead): (usize, &Arc<Ahead<Arc<crate::Core>>>),
        silent: bool,
    ) -> Result<bool> {
        let Err(error) = self.extract(image, (i, ahead), silent).await else { return Ok(false) };
        let layer = &part.manifest.layers[i];
        if self.is_here(&layer.digest).await? {
            return Err(error);
        }
        self.layer(layer, &subject(layer, Some(image), i), None).await?;
        self.extract(image, (i, ahead), silent).await?;
        Ok(true)
    }

    async fn extract(
        self: &Arc<Self>,
        image: &UnpackedImage,
        (i, ahead): (usize, &Arc<Ahead<Arc<crate::Core>>>),
        silent: bool,
    ) -> Result<()> {
        let (pull, image, theirs) = (Arc::clone(self), image.clone(), Arc::clone(ahead));
        let nobody = Reporter::silent();
        let unpack = move |core: &crate::Core, ns: &str| {
            let reporter = if silent { &nobody } else { &pull.reporter };
            core.unpack_layer(ns, &image, i, reporter, &theirs)
        };
        self.local.heavy_in_turn((ahead, i), unpack).await
    }

    /// Is content here already? It is pinned, so if it is, it stays.
    async fn is_here(&self, digest: &Digest) -> Result<bool> {
        let digest = digest.clone();
        self.local.quick(move |core, ns| core.has_whole_content(ns, &digest)).await
    }

    async fn config(&self, config: &Descriptor) -> Result<bool> {
        let digest = config.digest.clone();
        let read = self
            .local
            .quick(move |core, ns| core.read_blob(ns, &digest, limits::IMAGE_CONFIG_BYTES))
            .await;
        if read.is_ok() {
            return Ok(false);
        }
        let fetched = self.repository.fetch_blob(&config.digest, limits::IMAGE_CONFIG_BYTES);
        let bytes = fetched.await.map_err(refused)?;
        let digest = config.digest.clone();
        self.local.quick(move |core, ns| put_exact(core, ns, &digest, &bytes)).await?;
        Ok(true)
    }

    /// Downloads one blob unless it is here; a download of the same blob that is under way is waited
    /// for, one that broke off is resumed.
    async fn layer(
        &self,
        layer: &Descriptor,
        subject: &Subject,
        reader: Reader<'_>,
    ) -> Result<bool> {
        let slot = match self.slots.try_acquire() {
            Ok(slot) => Ok(slot),
            Err(_) => {
                self.reporter.state(subject, ProgressState::Waiting, "");
                self.slots.acquire().await
            }
        };
        let name = format!("{} {}", self.local.ns, layer.digest);
        let _alone = self.local.core.async_flights.enter(&name).await;
        let mut again = true;
        loop {
            let mut attempt = Attempt::default();
            let error = match self.download(layer, subject, reader, &mut attempt).await {
                Err(error)
                    if matches!(
                        error.kind,
                        ErrorKind::DataLoss | ErrorKind::FailedPrecondition
                    ) =>
                {
                    error
                }
                other => {
                    drop(slot);
                    return other;
                }
            };
            // A mirror that sent wrong bytes is not asked again, the next one is. Or what an earlier attempt
            // left was wrong, the whole is not; or what another namespace had is gone.
            let others = !attempt.resumed && self.repository.distrust(&attempt.sources);
            if !others && !std::mem::take(&mut again) {
                drop(slot);
                return Err(error);
            }
            self.reporter.state(subject, ProgressState::Retrying, &error.message);
        }
    }

    async fn download(
        &self,
        layer: &Descriptor,
        subject: &Subject,
        reader: Reader<'_>,
        attempt: &mut Attempt,
    ) -> Result<bool> {
        let reference = format!("layer-{}", layer.digest);
        // Until the end of the pull nobody takes it for given up.
        self.pins.add(ResourceKind::Ingest, &reference);
        let request = WriteRequest {
            reference: reference.clone(),
            total: layer.size,
            expected: Some(layer.digest.clone()),
        };
        let opened =
            self.local.quick(move |core, ns| core.open_writer(ns, &request, Writer::Store)).await;
        let offset = match opened {
            Err(error) if error.is_already_exists() => {
                self.reporter.state(subject, ProgressState::Exists, "");
                return Ok(false);
            }
            other => other?.offset,
        };
        attempt.resumed = offset > 0;
        let mut read = None;
        if offset < layer.size {
            self.reporter.state(subject, ProgressState::Downloading, "");
            let blob = self.repository.get_blob(&layer.digest, Some(layer.size), offset).await;
            let mut blob = blob.map_err(refused)?;
            let grower = self.read_along(layer, &reference, blob.offset(), reader).await;
            read = grower.as_ref().map(|grower| Arc::clone(&grower.0));
            let received = self.receive(&mut blob, subject, &reference, grower).await;
            attempt.sources = blob.sources().to_vec();
            received?;
        }
        faults::pass("pull.received");
        self.reporter.state(subject, ProgressState::Verifying, "");
        let (size, expected) = (layer.size, layer.digest.clone());
        let name = reference.clone();
        let committed = self
            .local
            .heavy(move |core, ns| {
                let outcome = core.ingest_commit(ns, &name, size, Some(&expected), Labels::new());
                match outcome {
                    Err(error) if error.is_already_exists() => Ok(()),
                    Err(error) => {
                        // Else its bytes are right, and the next try goes on with them.
                        if error.is_data_loss()
                            && let Err(kept) = core.ingest_abort(ns, &name)
                        {
                            let kept = Error::from(kept);
                            tracing::debug!(name, error = %kept, "a wrong download went by itself");
                        }
                        Err(error)
                    }
                    Ok(_) => Ok(()),
                }
            })
            .await;
        if let (Err(_), Some((ahead, i)), Some(read)) = (&committed, reader, read) {
            ahead.reject(i, &read);
        }
        committed.map_err(|error| self.in_words(layer, error))?;
        self.reporter.state(subject, ProgressState::Downloaded, "");
        Ok(true)
    }

    /// Why a download did not become content, without the store's own names.
    fn in_words(&self, layer: &Descriptor, error: Error) -> Error {
        let why = match error.kind {
            ErrorKind::DataLoss => "what was received does not have this digest and size",
            ErrorKind::FailedPrecondition => "another namespace's copy of it was removed",
            _ => return error,
        };
        Error::new(error.kind, format!("layer {} of image {}: {why}", layer.digest, self.image))
    }

    /// Lets a helper read what is written of a layer while it comes. Of one that is not compressed the
    /// blob will be the tar, which is not written twice.
    async fn read_along(
        &self,
        layer: &Descriptor,
        reference: &str,
        offset: u64,
        reader: Reader<'_>,
    ) -> Option<Grower> {
        let (ahead, i) = reader.filter(|(ahead, i)| ahead.is_compressed(*i, &layer.digest))?;
        let reference = reference.to_string();
        match self.local.quick(move |core, ns| core.ingest_file(ns, &reference)).await {
            Ok(file) => {
                let grower = Grower(Arc::new(Growth::new(file, offset)));
                ahead.comes(i, Source::Download(Arc::clone(&grower.0)));
                Some(grower)
            }
            Err(error) => {
                // Its blob is read instead.
                tracing::debug!(layer = %layer.digest, error = %error, "a download is not read along");
                None
            }
        }
    }

    /// Writes what arrives.
    async fn receive(
        &self,
        blob: &mut Blob,
        subject: &Subject,
        reference: &str,
        grower: Option<Grower>,
    ) -> Result<()> {
        let meter = self.reporter.meter(subject, ProgressState::Downloading);
        let mut offset = blob.offset();
        let mut buffer = BytesMut::with_capacity(WRITE_BYTES + (64 << 10));
        loop {
            let chunk = blob.chunk().await;
            if let Ok(Some(chunk)) = &chunk {
                buffer.extend_from_slice(chunk);
                meter.at(offset + buffer.len() as u64);
            }
            let is_last = !matches!(chunk, Ok(Some(_)));
            // Also of a download that fails: the next one goes on after it.
            if buffer.len() >= WRITE_BYTES || (is_last && !buffer.is_empty()) {
                let (bytes, name) = (buffer.split().freeze(), reference.to_string());
                offset = self
                    .local
                    .heavy(move |core, ns| core.ingest_write(ns, &name, offset, &bytes))
                    .await?;
                if let Some(grower) = &grower {
                    grower.grown(offset);
                }
                buffer.reserve(WRITE_BYTES);
            }
            if chunk.map_err(refused)?.is_none() {
                if let Some(grower) = &grower {
                    grower.reached();
                }
                return Ok(());
            }
        }
    }

    /// Unpacks what is for this machine of several platforms' images, if anything is.
    async fn unpack_own(self: &Arc<Self>, top: &Descriptor) -> Result<()> {
        let (pull, top) = (Arc::clone(self), top.clone());
        self.local
            .heavy(move |core, ns| match core.resolve_image(ns, &top, None) {
                Err(error) if error.is_not_found() => Ok(()),
                image => core.unpack_image(ns, &image?, &pull.reporter),
            })
            .await
    }

    /// Labels, and the records that make it an image; answers whether they were there already.
    async fn finish(&self, records: PullRecords, top: &Descriptor) -> Result<bool> {
        let top = top.clone();
        self.local
            .quick(move |core, ns| {
                core.label_tree(ns, &top)?;
                faults::pass("pull.labelled");
                let PullRecords { names, labels } = records;
                let mut all_there = true;
                for name in &names {
                    match core.image_get(ns, name) {
                        Ok(image)
                            if image.target.digest == top.digest
                                && (labels.is_empty() || image.labels == labels) =>
                        {
                            continue;
                        }
                        Err(error) if !error.is_not_found() => return Err(error),
                        _ => all_there = false,
                    }
                    core.image_take_name(ns, name, top.clone(), labels.clone())?;
                }
                Ok(all_there)
            })
            .await
    }
}

/// The records to write, at least one; looked at before anything is downloaded.
fn checked(mut records: PullRecords, own_name: &str) -> Result<PullRecords> {
    if records.names.is_empty() {
        records.names.push(own_name.to_string());
    }
    if records.names.len() > PULL_NAMES_MAX {
        return Err(Error::invalid(format!(
            "pull {own_name}: {} image names, at most {PULL_NAMES_MAX} are possible",
            records.names.len()
        )));
    }
    for name in &records.names {
        Image::check_name(name)?;
    }
    crate::labels::validate(&records.labels)?;
    Ok(records)
}

/// Why an image's layers did not come, of which `error` may be what followed: where a download fails,
/// the layers above it are given up, and this may be seen first. `helpers`: what one of them found.
fn cause(failures: &mut mpsc::Receiver<Error>, helpers: Option<Fail>, error: Error) -> Error {
    failures.try_recv().ok().or(helpers.map(Error::from)).unwrap_or(error)
}

fn subject(layer: &Descriptor, image: Option<&UnpackedImage>, i: usize) -> Subject {
    Subject {
        digest: Some(layer.digest.clone()),
        diff_id: image.map(|image| image.diff_ids[i].clone()),
        is_layer: true,
        total: layer.size,
    }
}

fn part(manifest: &registry::Manifest) -> Result<Part> {
    let descriptor = descriptor(&manifest.descriptor);
    match manifest::parse(&descriptor, &manifest.bytes)? {
        Document::Manifest(parsed) => {
            Ok(Part { descriptor, bytes: manifest.bytes.clone(), manifest: parsed })
        }
        Document::Index(_) => Err(Error::invalid(format!(
            "manifest {}: an index where an image was expected",
            descriptor.digest
        ))),
    }
}

fn is_image_config(config: &Descriptor) -> bool {
    matches!(config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG)
}

/// Stores small content under the digest that it must have.
fn put_exact(
    core: &crate::Core,
    ns: &str,
    digest: &Digest,
    bytes: &[u8],
) -> crate::error::Result<()> {
    if crate::content::digest_of(digest, bytes) != *digest {
        return Err(Fail::data_loss(format!("content {digest}: other bytes were received")));
    }
    core.put_blob_as(ns, digest, bytes, Labels::new())
}

#[cfg(test)]
mod tests;
