use std::{io, pin::Pin, sync::Arc};

use bytes::Bytes;
use registry::{BlobSource, Pushed, Repository, SourceReader, Target, UploadOptions};
use store_api::{
    Descriptor, ProgressSender, ProgressState, PushRequest, RegistryAccess, ResourceKind, Result,
    media_type,
};
use tokio::{io::AsyncSeekExt as _, sync::Semaphore, task::JoinSet};
use types::{Digest, ErrorKind, ImageRef, limits};

use super::{SOURCE, credentials, refused, remember_source};
use crate::{
    Core, Local,
    error::{Error as Fail, Result as CoreResult},
    guard::Pins,
    manifest::Document,
    progress::{Reporter, Subject},
};

/// Blobs uploaded at once where the caller has no wish (dockerd's `max-concurrent-uploads`).
const AT_ONCE: usize = 5;

/// A manifest or index to put once everything that it names is there.
struct Put {
    descriptor: Descriptor,
    bytes: Bytes,
}

/// What is to be pushed, in the order in which it may be: blobs in any, documents from below.
struct Plan {
    target: Descriptor,
    blobs: Vec<(Descriptor, bool, Vec<String>)>,
    documents: Vec<Put>,
    /// Said to the client: not all of an index was here.
    note: Option<String>,
    /// All of it stays until the end, whatever happens to the image.
    pins: Pins,
}

pub(crate) async fn push(
    local: &Local,
    request: PushRequest,
    progress: ProgressSender,
) -> Result<Descriptor> {
    let reference = request.reference.clone().with_default_tag();
    let plan = {
        let (request, reference) = (request.clone(), reference.clone());
        local.quick(move |core, ns| plan(core, ns, &request, &reference)).await?
    };
    let reporter = Arc::new(Reporter::new(progress));
    let whole = Subject::default();
    if let Some(note) = &plan.note {
        reporter.state(&whole, ProgressState::Resolved, note);
    }
    let client = local.client(&request.access, Some(&reference))?;
    let repository =
        client.push(&reference, credentials(&request.access)).await.map_err(refused)?;
    blobs(local, &repository, &reporter, &plan, &request.access).await?;
    for document in &plan.documents {
        let top = document.descriptor.digest == plan.target.digest;
        let target = match reference.tag() {
            Some(tag) if top => Target::Tag(tag),
            _ => Target::Digest(&document.descriptor.digest),
        };
        let media_type = &document.descriptor.media_type;
        let put = repository.put_manifest(target, media_type, document.bytes.clone());
        faults::pass("push.manifest");
        let answered = put.await.map_err(refused)?;
        if answered != document.descriptor.digest {
            return Err(store_api::Error::new(
                ErrorKind::DataLoss,
                format!(
                    "push {reference}: the registry took manifest {} for {answered}",
                    document.descriptor.digest
                ),
            ));
        }
    }
    let pushed: Vec<Digest> = plan.blobs.iter().map(|(blob, _, _)| blob.digest.clone()).collect();
    local.quick(move |core, ns| remember_source(core, ns, &reference, &pushed)).await?;
    reporter.state(&whole, ProgressState::Complete, &plan.target.digest.to_string());
    Ok(plan.target)
}

/// A blob of the store as what is uploaded.
struct BlobFile {
    local: Local,
    digest: Digest,
}

impl BlobSource for BlobFile {
    fn open(
        &self,
        offset: u64,
    ) -> Pin<Box<dyn Future<Output = io::Result<SourceReader>> + Send + '_>> {
        let digest = self.digest.clone();
        Box::pin(async move {
            let opened = self.local.quick(move |core, ns| Ok(core.open_blob(ns, &digest)?.0)).await;
            let mut file = tokio::fs::File::from_std(opened.map_err(io::Error::other)?);
            file.seek(io::SeekFrom::Start(offset)).await?;
            Ok(Box::new(file) as SourceReader)
        })
    }
}

async fn blobs(
    local: &Local,
    repository: &Repository,
    reporter: &Arc<Reporter>,
    plan: &Plan,
    access: &RegistryAccess,
) -> Result<()> {
    let at_once = if access.max_concurrent == 0 { AT_ONCE } else { access.max_concurrent };
    let slots = Arc::new(Semaphore::new(at_once));
    let subject = |blob: &Descriptor, is_layer| Subject {
        digest: Some(blob.digest.clone()),
        diff_id: None,
        is_layer,
        total: blob.size,
    };
    for (blob, is_layer, _) in &plan.blobs {
        reporter.state(&subject(blob, *is_layer), ProgressState::Waiting, "");
    }
    let mut tasks = JoinSet::new();
    for (blob, is_layer, mount_from) in plan.blobs.clone() {
        let source = BlobFile { local: local.clone(), digest: blob.digest.clone() };
        let (repository, reporter) = (repository.clone(), Arc::clone(reporter));
        let slots = Arc::clone(&slots);
        let subject = subject(&blob, is_layer);
        tasks.spawn(async move {
            let _slot = match slots.try_acquire() {
                Ok(slot) => Ok(slot),
                Err(_) => {
                    reporter.state(&subject, ProgressState::Waiting, "");
                    slots.acquire().await
                }
            };
            let meter = reporter.meter(&subject, ProgressState::Uploading);
            let tell = |bytes| meter.at(bytes);
            let options = UploadOptions { progress: Some(&tell), ..UploadOptions::default() };
            let sources: Vec<&str> = mount_from.iter().map(String::as_str).collect();
            let pushed =
                repository.push_blob(&blob.digest, blob.size, &source, &sources, &options).await;
            faults::pass("push.blob");
            let (state, message) = match pushed.map_err(refused)? {
                Pushed::AlreadyThere => (ProgressState::Exists, String::new()),
                Pushed::Mounted { from } => (ProgressState::Mounted, from),
                Pushed::Uploaded => (ProgressState::Uploaded, String::new()),
            };
            reporter.state(&subject, state, &message);
            Result::<()>::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        // A task that is gone was aborted with the whole runtime.
        done.map_err(|_| store_api::Error::new(ErrorKind::Cancelled, "the push was given up"))??;
    }
    Ok(())
}

fn plan(core: &Core, ns: &str, request: &PushRequest, reference: &ImageRef) -> CoreResult<Plan> {
    let image = core.image_get(ns, &request.name)?;
    let mut target = image.target;
    let mut note = None;
    if let Some(platform) = &request.platform {
        target = core.choose_manifest(ns, &target, Some(platform))?.0;
    } else if let Some(missing) = missing_content(core, ns, &target)? {
        // As dockerd: what is here is pushed, and the client is told.
        target = core.choose_manifest(ns, &target, None)?.0;
        note = Some(format!(
            "Not all multiplatform-content is present ({missing} is missing) and only the available single-platform image was pushed"
        ));
    }
    let mut plan = Plan {
        target: target.clone(),
        blobs: Vec::new(),
        documents: Vec::new(),
        note,
        pins: core.guard.pins(ns),
    };
    collect(core, ns, &target, reference, &mut plan, 0)?;
    Ok(plan)
}

/// Something of an index that is not here, if anything is not.
fn missing_content(core: &Core, ns: &str, target: &Descriptor) -> CoreResult<Option<Digest>> {
    if !media_type::is_index(&target.media_type) {
        return Ok(None);
    }
    let Document::Index(index) = core.document(ns, target)? else { return Ok(None) };
    for entry in &index.manifests {
        if !core.has_content(ns, &entry.digest)? {
            return Ok(Some(entry.digest.clone()));
        }
        if !media_type::is_manifest(&entry.media_type) {
            continue;
        }
        for child in core.document(ns, entry)?.children() {
            if !core.has_content(ns, &child.digest)? {
                return Ok(Some(child.digest.clone()));
            }
        }
    }
    Ok(None)
}

/// Adds a document with all below it, itself last.
fn collect(
    core: &Core,
    ns: &str,
    descriptor: &Descriptor,
    reference: &ImageRef,
    plan: &mut Plan,
    level: usize,
) -> CoreResult<()> {
    if level > 4 {
        return Err(Fail::invalid(format!("index {}: nested too deep", descriptor.digest)));
    }
    if plan.documents.iter().any(|d| d.descriptor.digest == descriptor.digest) {
        return Ok(());
    }
    plan.pins.add(ResourceKind::Content, &descriptor.digest);
    let bytes = core.read_blob(ns, &descriptor.digest, limits::MANIFEST_BYTES)?;
    match crate::manifest::parse(descriptor, &bytes)? {
        Document::Index(index) => {
            for entry in &index.manifests {
                collect(core, ns, entry, reference, plan, level + 1)?;
            }
        }
        document @ Document::Manifest(_) => {
            for (i, child) in document.children().into_iter().enumerate() {
                if plan.blobs.iter().any(|(blob, _, _)| blob.digest == child.digest) {
                    continue;
                }
                plan.pins.add(ResourceKind::Content, &child.digest);
                let record = core.content_record(ns, &child.digest)?;
                let sources = record.labels.get(&format!("{SOURCE}.{}", reference.domain()));
                let mount_from = sources
                    .map(|paths| paths.split(',').filter(|p| *p != reference.path()))
                    .into_iter()
                    .flatten()
                    .map(String::from)
                    .collect();
                plan.blobs.push((child.clone(), i > 0, mount_from));
            }
        }
    }
    plan.documents.push(Put { descriptor: descriptor.clone(), bytes: bytes.into() });
    Ok(())
}
