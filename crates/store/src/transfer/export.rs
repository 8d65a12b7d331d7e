use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use archive::{Entry, Kind, TarWriter};
use serde_json::{Value, json};
use store_api::{ByteStream, Descriptor, ExportRequest, ResourceKind, Result, media_type};
use tokio::sync::mpsc;
use types::{Digest, ImageRef, Platform};

use super::import::REF_NAME;
use crate::{
    Core, Local,
    error::{Error, Result as CoreResult},
    guard::Pins,
    manifest::{Document, INDEX_LEVELS},
    platforms::{all_best, best_here, not_here},
    streams::StreamWriter,
};

/// Pieces that wait for a slow reader.
const PIECES: usize = 4;
/// Names and targets of one export.
const IMAGES: usize = 1024;

/// What goes into an archive, everything in a fixed order: the same images give the same bytes.
struct Plan {
    /// With the names it is known under.
    images: Vec<(Descriptor, Vec<String>)>,
    blobs: BTreeMap<Digest, u64>,
    manifest_json: Vec<Value>,
    repositories: BTreeMap<String, BTreeMap<String, String>>,
    /// All of it stays until the end, whatever happens to the images.
    pins: Pins,
}

pub(crate) async fn export(local: &Local, request: ExportRequest) -> Result<ByteStream> {
    let with_docker = request.docker_compatible;
    // What is missing is said before the first byte.
    let plan = local.heavy(move |core, ns| plan(core, ns, &request)).await?;
    let (sender, stream) = mpsc::channel(PIECES);
    let local = local.clone();
    tokio::spawn(async move {
        let errors = sender.clone();
        let written =
            local.transfer(move |core, ns| write(core, ns, &plan, with_docker, sender)).await;
        if let Err(error) = written {
            // The reader may be gone, which is then also the error.
            drop(errors.send(Err(error)).await);
        }
    });
    Ok(stream)
}

fn plan(core: &Core, ns: &str, request: &ExportRequest) -> CoreResult<Plan> {
    if request.names.is_empty() && request.targets.is_empty() {
        return Err(Error::invalid("export: no image is named"));
    }
    if request.names.len() + request.targets.len() > IMAGES {
        return Err(Error::invalid(format!("export: more than {IMAGES} images are named")));
    }
    let mut named: BTreeMap<Digest, (Descriptor, Vec<String>)> = BTreeMap::new();
    for name in &request.names {
        let image = core.image_get(ns, name)?;
        let entry = named.entry(image.target.digest.clone()).or_insert((image.target, Vec::new()));
        entry.1.push(name.clone());
    }
    for digest in &request.targets {
        let target = core.descriptor_of(ns, digest)?;
        named.entry(digest.clone()).or_insert((target, Vec::new()));
    }
    let mut plan = Plan {
        images: Vec::new(),
        blobs: BTreeMap::new(),
        manifest_json: Vec::new(),
        repositories: BTreeMap::new(),
        pins: core.guard.pins(ns),
    };
    for (mut target, mut names) in named.into_values() {
        names.sort();
        names.dedup();
        let unwanted = chosen(core, ns, &mut target, &request.platforms)?;
        let name = names.first().map_or_else(|| target.digest.to_string(), |name| familiar(name));
        let explain = |error| core.explain(ns, &target, &name, error);
        let of = Collect { core, ns, pins: &plan.pins, unwanted: &unwanted };
        if of.add(&target, &mut plan.blobs, 0).map_err(explain)? == 0 {
            let images = core.platforms_of(ns, &target)?;
            return Err(explain(not_here(&target, None, &images)));
        }
        describe(core, ns, &target, &names, request, &mut plan)?;
        plan.images.push((target, names));
    }
    for (digest, size) in &plan.blobs {
        let (_, real) = core.open_blob(ns, digest)?;
        same_size(digest, real, *size)?;
    }
    Ok(plan)
}

/// As docker's commands name an image.
fn familiar(name: &str) -> String {
    name.parse::<ImageRef>().map_or_else(|_| name.to_string(), |name| name.familiar())
}

fn same_size(digest: &Digest, real: u64, said: u64) -> CoreResult<()> {
    if real == said {
        return Ok(());
    }
    Err(Error::data_loss(format!(
        "content {digest} has {real} bytes, its image says {said}: pull or build the image anew"
    )))
}

/// Leaves of an image what fits each of the wanted platforms best: of one its manifest, of several the
/// manifests of the index that are not among them are the answer.
fn chosen(
    core: &Core,
    ns: &str,
    target: &mut Descriptor,
    wanted: &[Platform],
) -> CoreResult<BTreeSet<Digest>> {
    if wanted.is_empty() {
        return Ok(BTreeSet::new());
    }
    let images = core.platforms_of(ns, target)?;
    if let [only] = wanted {
        let best =
            best_here(&images, Some(only)).ok_or_else(|| not_here(target, Some(only), &images))?;
        *target = best.manifest.clone();
        return Ok(BTreeSet::new());
    }
    let mut unwanted: BTreeSet<_> =
        images.iter().map(|image| image.manifest.digest.clone()).collect();
    for platform in wanted {
        let best = all_best(&images, platform);
        if best.is_empty() {
            return Err(not_here(target, Some(platform), &images));
        }
        for image in best {
            unwanted.remove(&image.manifest.digest);
        }
    }
    Ok(unwanted)
}

/// What is gone through to find what an image consists of.
struct Collect<'a> {
    core: &'a Core,
    ns: &'a str,
    /// What was found stays while they live.
    pins: &'a Pins,
    /// Manifests that are left out.
    unwanted: &'a BTreeSet<Digest>,
}

impl Collect<'_> {
    /// Adds a document and what it names; answers how many whole images are below. Of an index those
    /// count whose content is here.
    fn add(
        &self,
        descriptor: &Descriptor,
        blobs: &mut BTreeMap<Digest, u64>,
        level: usize,
    ) -> CoreResult<usize> {
        if level > INDEX_LEVELS {
            return Err(Error::invalid(format!(
                "index {}: nested more than {INDEX_LEVELS} levels deep",
                descriptor.digest
            )));
        }
        let Self { core, ns, pins, unwanted } = self;
        pins.add(ResourceKind::Content, &descriptor.digest);
        let document = core.document(ns, descriptor)?;
        let mut own = BTreeMap::from([(descriptor.digest.clone(), descriptor.size)]);
        let mut images = 0;
        match &document {
            Document::Index(index) => {
                for entry in &index.manifests {
                    pins.add(ResourceKind::Content, &entry.digest);
                    if !unwanted.contains(&entry.digest) && core.has_content(ns, &entry.digest)? {
                        images += self.add(entry, &mut own, level + 1)?;
                    }
                }
            }
            Document::Manifest(_) => {
                for child in document.children() {
                    pins.add(ResourceKind::Content, &child.digest);
                    if !core.has_content(ns, &child.digest)? {
                        if level == 0 {
                            return Err(Error::not_found("content", &child.digest));
                        }
                        // Another platform's, of which only the manifest is here.
                        return Ok(0);
                    }
                    own.insert(child.digest.clone(), child.size);
                }
                images = 1;
            }
        }
        if images > 0 {
            blobs.extend(own);
        }
        Ok(images)
    }
}

/// docker's own description of an image, where it has this machine's (or the wanted) platform.
fn describe(
    core: &Core,
    ns: &str,
    target: &Descriptor,
    names: &[String],
    request: &ExportRequest,
    plan: &mut Plan,
) -> CoreResult<()> {
    // Of an index docker knows this machine's image, or the first of those that were wanted.
    // Without a wish one that has none for this machine counts as its first that is wholly here, as
    // for `inspect` and `run`.
    let image = match core.resolve_image(ns, target, request.platforms.first()) {
        Err(error) if error.is_not_found() => {
            let images = core.platforms_of(ns, target)?;
            let first = images.iter().find(|image| image.whole);
            // Of an index of artifacts there is nothing that docker could load.
            let Some(first) = first.filter(|_| request.platforms.is_empty()) else { return Ok(()) };
            core.resolve_image(ns, &first.manifest, None)?
        }
        other => other?,
    };
    let path = |digest: &Digest| format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
    let layers: Vec<String> = image.layers.iter().map(|layer| path(&layer.digest)).collect();
    let mut tags = Vec::new();
    for name in names {
        let Ok(reference) = name.parse::<ImageRef>() else { continue };
        let Some(tag) = reference.tag() else { continue };
        tags.push(reference.familiar());
        if let Some(top) = image.layers.last() {
            let of_name = plan.repositories.entry(reference.familiar_name()).or_default();
            of_name.insert(tag.to_string(), top.digest.hex().to_string());
        }
    }
    let tags = if tags.is_empty() { Value::Null } else { json!(tags) };
    plan.manifest_json.push(json!({
        "Config": path(&image.config.digest),
        "RepoTags": tags,
        "Layers": layers,
    }));
    Ok(())
}

impl Core {
    /// How many images below `target` have all their content here.
    pub(super) fn whole_images(&self, ns: &str, target: &Descriptor) -> CoreResult<usize> {
        self.whole_images_pinned(ns, target, &self.guard.pins(ns))
    }

    /// The same, and they stay while `pins` lives.
    pub(super) fn whole_images_pinned(
        &self,
        ns: &str,
        target: &Descriptor,
        pins: &Pins,
    ) -> CoreResult<usize> {
        let of = Collect { core: self, ns, pins, unwanted: &BTreeSet::new() };
        match of.add(target, &mut BTreeMap::new(), 0) {
            Err(error) if error.is_not_found() => Ok(0),
            other => other,
        }
    }
}

fn index_json(plan: &Plan) -> Value {
    let mut manifests = Vec::new();
    for (target, names) in &plan.images {
        let mut entry = target.clone();
        if names.is_empty() {
            manifests.push(entry);
            continue;
        }
        for name in names {
            entry.annotations.insert("io.containerd.image.name".into(), name.clone());
            let tag = name.parse::<ImageRef>().ok();
            let tag = tag.as_ref().and_then(ImageRef::tag).unwrap_or(name);
            entry.annotations.insert(REF_NAME.into(), tag.to_string());
            manifests.push(entry.clone());
        }
    }
    json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests })
}

fn write(
    core: &Core,
    ns: &str,
    plan: &Plan,
    with_docker: bool,
    sender: mpsc::Sender<store_api::Result<bytes::Bytes>>,
) -> CoreResult<()> {
    let failed = || Error::archive("write", "the archive");
    let mut tar = TarWriter::new(StreamWriter::new(sender));
    let mut directories: Vec<String> = vec!["blobs/".into()];
    for digest in plan.blobs.keys() {
        let directory = format!("blobs/{}/", digest.algorithm().name());
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    for directory in directories {
        let mut entry = Entry::new(directory, Kind::Directory);
        entry.mode = 0o755;
        tar.append(&entry, io::empty()).map_err(failed())?;
    }
    for (digest, size) in &plan.blobs {
        let (blob, real) = core.open_blob(ns, digest)?;
        same_size(digest, real, *size)?;
        let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        append(&mut tar, &name, real, blob)?;
    }
    let text = |value: &Value| {
        serde_json::to_vec(value).map_err(Error::json("encode", "an archive's description"))
    };
    let mut files = vec![("index.json", text(&index_json(plan))?)];
    if with_docker {
        files.push(("manifest.json", text(&Value::Array(plan.manifest_json.clone()))?));
    }
    files.push(("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    if with_docker && !plan.repositories.is_empty() {
        files.push(("repositories", text(&json!(plan.repositories))?));
    }
    for (name, bytes) in files {
        let size = u64::try_from(bytes.len()).unwrap_or(0);
        append(&mut tar, name, size, bytes.as_slice())?;
    }
    let mut writer = tar.finish().map_err(failed())?;
    io::Write::flush(&mut writer).map_err(Error::stream("write", "the archive"))
}

fn append<W: io::Write>(
    tar: &mut TarWriter<W>,
    name: &str,
    size: u64,
    data: impl Read,
) -> CoreResult<()> {
    let mut entry = Entry::new(name, Kind::File { sparse: None });
    entry.mode = 0o644;
    entry.size = size;
    tar.append(&entry, data).map_err(Error::archive("write", "the archive"))
}
