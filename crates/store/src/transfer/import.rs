use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Component, Path, PathBuf},
};

use archive::{Kind, Limits, TarReader};
use serde::Deserialize;
use store_api::{
    ByteStream, Descriptor, ImagePlatform, ImportRequest, Imported, Labels, ResourceKind,
    media_type,
};
use types::{Digest, ErrorKind, ImageRef, Platform, limits};

use super::count::Count;
use super::verify::{in_words, incomplete, last_of_each_name, layout_version, went_away};
use crate::{
    Core,
    content::BUFFER_BYTES,
    error::{Error, Result},
    guard::Pins,
    manifest::{Config, Document, Index},
    platforms::{all_best, listed},
    progress::Reporter,
    streams::StreamReader,
};

/// All `ID/json` of an archive together with their names, at most: each has some 2 KB.
const DESCRIPTION_BYTES: usize = 64 << 20;
/// Images of one archive at most, with each name of one counted.
pub(super) const IMAGES: usize = 1024;
/// containerd's and OCI's annotations for an image's name.
const NAME: &str = "io.containerd.image.name";
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What an archive held, once it was read through: every file went into the content store as it came
/// by, under the digest that it turned out to have.
#[derive(Default)]
pub(super) struct Archive {
    files: BTreeMap<PathBuf, Blob>,
    links: BTreeMap<PathBuf, PathBuf>,
    index: Option<Vec<u8>>,
    manifest: Option<Vec<u8>>,
    pub(super) repositories: Option<Vec<u8>>,
    /// `ID/json` of docker's old layout, by id.
    pub(super) descriptions: BTreeMap<String, Vec<u8>>,
    description_bytes: usize,
}

#[derive(Clone)]
pub(super) struct Blob {
    digest: Digest,
    size: u64,
    compression: archive::Compression,
}

/// An entry of docker's manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: PathBuf,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<PathBuf>>,
}

pub(crate) fn import(
    core: &Core,
    ns: &str,
    request: &ImportRequest,
    stream: ByteStream,
    reporter: &Reporter,
) -> Result<Vec<Imported>> {
    let pins = core.guard.pins(ns);
    let archive = read(core, ns, stream, &pins)?;
    let saved: Vec<Saved> = match &archive.manifest {
        Some(bytes) => serde_json::from_slice(bytes)
            .map_err(Error::json("read", "manifest.json of the archive"))?,
        None => Vec::new(),
    };
    if saved.len() > IMAGES {
        return Err(Error::invalid(format!("the archive has more than {IMAGES} images")));
    }
    let mut found = match &archive.index {
        Some(index) => from_layout((core, ns), request, index, &saved, (&archive, &pins))?,
        None if archive.manifest.is_some() => from_docker(core, ns, &saved, &archive, &pins)?,
        None if !archive.descriptions.is_empty() => {
            super::old_docker::load(core, ns, &archive, &pins)?
        }
        None => {
            return Err(Error::invalid(
                "the archive holds no image: neither index.json nor manifest.json is in it",
            ));
        }
    };
    let elsewhere = |name: &str| !name.is_empty() && !is_of(name, &request.base_name);
    for image in found.iter_mut().filter(|image| request.base_only && elsewhere(&image.name)) {
        if image.name != request.index_name {
            image.name.clear();
        }
    }
    let named = found.iter().filter(|image| !image.name.is_empty()).count();
    if named > IMAGES {
        return Err(Error::invalid(format!(
            "the archive names images {named} times, at most {IMAGES} is possible"
        )));
    }
    faults::pass("import.read");
    last_of_each_name(&mut found);
    let unwanted = choose(core, ns, &request.platforms, &mut found)?;
    for image in &found {
        core.label_tree_but(ns, &image.target, &unwanted)?;
        if request.unpack {
            unpack(core, ns, &request.platforms, &image.target, reporter)?;
        }
    }
    for image in found.iter().filter(|image| !image.name.is_empty()) {
        faults::pass("import.name");
        core.image_take_name(ns, &image.name, image.target.clone(), Labels::new())?;
    }
    Ok(found)
}

/// Is this a name in or below a repository, as containerd sees it?
fn is_of(name: &str, repository: &str) -> bool {
    let rest = name.strip_prefix(repository);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

/// Keeps the images that are for one of the wanted platforms, and of each what fits each platform best.
/// Answers the manifests of others below them, which are not held.
fn choose(
    core: &Core,
    ns: &str,
    wanted: &[Platform],
    found: &mut Vec<Imported>,
) -> Result<BTreeSet<Digest>> {
    let mut unwanted = BTreeSet::new();
    if found.is_empty() {
        return Err(Error::not_found("image", "in the archive: its index names none"));
    }
    if wanted.is_empty() {
        return Ok(unwanted);
    }
    let mut below: BTreeMap<Digest, Vec<ImagePlatform>> = BTreeMap::new();
    for image in &*found {
        if !below.contains_key(&image.target.digest) {
            let images = core.platforms_of(ns, &image.target)?;
            below.insert(image.target.digest.clone(), images);
        }
    }
    let mut chosen: BTreeMap<&Digest, BTreeSet<&Digest>> = BTreeMap::new();
    for platform in wanted {
        let mut is_here = false;
        for (target, images) in &below {
            let best = all_best(images, platform);
            if !best.is_empty() {
                is_here = true;
                let of = chosen.entry(target).or_default();
                of.extend(best.into_iter().map(|image| &image.manifest.digest));
            }
        }
        if !is_here {
            let whole = below.values().flatten().filter(|image| image.whole);
            let text = format!("the archive has no image for {platform}: it has {}", listed(whole));
            return Err(Error::Api(store_api::Error::new(ErrorKind::NotFound, text)));
        }
    }
    found.retain(|image| chosen.contains_key(&image.target.digest));
    let kept: BTreeSet<&Digest> = chosen.into_values().flatten().collect();
    for image in below.values().flatten() {
        if !kept.contains(&image.manifest.digest) {
            unwanted.insert(image.manifest.digest.clone());
        }
    }
    Ok(unwanted)
}

/// Makes an image ready to run for the wanted platforms, else for this machine's, or the only one that it
/// has. One that has none of these is kept as it is, as containerd and dockerd do.
fn unpack(
    core: &Core,
    ns: &str,
    platforms: &[Platform],
    target: &Descriptor,
    reporter: &Reporter,
) -> Result<()> {
    let wanted: Vec<Option<&Platform>> = match platforms {
        [] => vec![None],
        some => some.iter().map(Some).collect(),
    };
    for platform in wanted {
        let image = match core.resolve_image(ns, target, platform) {
            Err(error) if error.is_not_found() => continue,
            other => other?,
        };
        // The manifest may have come without its layers.
        if core.whole_images(ns, &image.manifest)? > 0 {
            core.unpack_image(ns, &image, reporter)?;
        }
    }
    Ok(())
}

fn read(core: &Core, ns: &str, stream: ByteStream, pins: &Pins) -> Result<Archive> {
    let failed = || Error::archive("read", "the archive");
    let tar = archive::decompress(StreamReader::new(stream))
        .map_err(Error::stream("inflate", "the archive"))?;
    let mut reader = TarReader::new(tar, Limits::default());
    let (mut archive, mut count) = (Archive::default(), Count::default());
    while let Some(entry) = reader.next_entry().map_err(failed())? {
        let path = entry.relative_path().map_err(failed())?;
        count.add(&path, &entry.kind)?;
        match &entry.kind {
            Kind::File { sparse } => {
                let sparse = sparse.is_some();
                if sparse {
                    return Err(Error::invalid(format!(
                        "the archive's {} is a sparse file",
                        path.display()
                    )));
                }
                let mut data = reader.data();
                let source = Source { path: &path, size: entry.size, data: &mut data };
                file(core, ns, source, &mut archive, pins)?;
            }
            // docker saved a layer that came twice as a link to the first.
            Kind::Symlink { target } => {
                let parent = path.parent().unwrap_or(Path::new(""));
                archive.links.insert(path.clone(), normal(&parent.join(target)));
            }
            Kind::HardLink { target } => {
                archive.links.insert(path, normal(target));
            }
            _ => {}
        }
    }
    reader.finish().map_err(failed())?;
    Ok(archive)
}

/// A file as it comes by.
struct Source<'a> {
    path: &'a Path,
    size: u64,
    data: &'a mut dyn Read,
}

fn file(
    core: &Core,
    ns: &str,
    source: Source<'_>,
    archive: &mut Archive,
    pins: &Pins,
) -> Result<()> {
    let Source { path, size, data } = source;
    let failed = || Error::stream("read", path.display());
    match path.to_str() {
        Some("oci-layout") => return layout_version(size, data),
        Some(name @ ("index.json" | "manifest.json" | "repositories")) => {
            if usize::try_from(size).map_or(true, |size| size > limits::MANIFEST_BYTES) {
                return Err(Error::invalid(format!(
                    "the archive's {name} has {size} bytes, at most {} are possible",
                    limits::MANIFEST_BYTES
                )));
            }
            let mut bytes = Vec::new();
            data.read_to_end(&mut bytes).map_err(failed())?;
            let slot = match name {
                "index.json" => &mut archive.index,
                "manifest.json" => &mut archive.manifest,
                _ => &mut archive.repositories,
            };
            *slot = Some(bytes);
            return Ok(());
        }
        // Files of docker's old layout: of one with a manifest, too.
        Some(name) if name.ends_with("/VERSION") => return Ok(()),
        Some(name) if name.ends_with("/json") => {
            return description(name, size, data, archive);
        }
        _ => {}
    }
    let expected = expected_digest(path)?;
    if let Some(digest) = &expected {
        pins.add(ResourceKind::Content, digest);
    }
    let mut writer = match &expected {
        Some(digest) => core.ingest_anonymous_as(ns, digest)?,
        None => core.ingest_anonymous(ns)?,
    };
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut compression = None;
    loop {
        let n = data.read(&mut buffer).map_err(failed())?;
        compression.get_or_insert_with(|| archive::sniff(&buffer[..n.min(6)]));
        if n == 0 {
            break;
        }
        writer.write_all(&buffer[..n])?;
    }
    let digest = writer.commit(expected.as_ref(), Labels::new()).map_err(|e| in_words(path, e))?;
    if expected.is_none() {
        pins.add(ResourceKind::Content, &digest);
    }
    let compression = compression.unwrap_or(archive::Compression::None);
    archive.files.insert(path.to_path_buf(), Blob { digest, size, compression });
    Ok(())
}

/// `ID/json` of docker's old layout.
fn description(name: &str, size: u64, data: &mut dyn Read, archive: &mut Archive) -> Result<()> {
    if usize::try_from(size).map_or(true, |size| size > limits::IMAGE_CONFIG_BYTES) {
        return Err(Error::invalid(format!(
            "the archive's {name} has more than {} bytes",
            limits::IMAGE_CONFIG_BYTES
        )));
    }
    let mut bytes = Vec::new();
    data.read_to_end(&mut bytes).map_err(Error::stream("read", name))?;
    archive.description_bytes += bytes.len() + name.len();
    if archive.description_bytes > DESCRIPTION_BYTES {
        return Err(Error::invalid(format!(
            "the archive's descriptions of layers have more than {DESCRIPTION_BYTES} bytes"
        )));
    }
    archive.descriptions.insert(name.trim_end_matches("/json").to_string(), bytes);
    Ok(())
}

/// The digest that the path `blobs/ALGORITHM/HEX` says.
fn expected_digest(path: &Path) -> Result<Option<Digest>> {
    let Ok(rest) = path.strip_prefix("blobs") else { return Ok(None) };
    let parts: Vec<_> = rest.components().map(|c| c.as_os_str().to_string_lossy()).collect();
    let [algorithm, hex] = parts.as_slice() else { return Ok(None) };
    format!("{algorithm}:{hex}")
        .parse()
        .map(Some)
        .map_err(|error| Error::invalid(format!("the archive's {}: {error}", path.display())))
}

/// Without `.` and `..`, as text: a link's target is only looked up among the archive's names.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

impl Archive {
    pub(super) fn blob(&self, path: &Path) -> Result<&Blob> {
        let mut path = normal(path);
        for _ in 0..8 {
            if let Some(blob) = self.files.get(&path) {
                return Ok(blob);
            }
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => break,
            }
        }
        Err(Error::invalid(format!(
            "the archive's manifest.json names {}, which is not in the archive",
            path.display()
        )))
    }
}

fn from_layout(
    (core, ns): (&Core, &str),
    request: &ImportRequest,
    index: &[u8],
    saved: &[Saved],
    (archive, pins): (&Archive, &Pins),
) -> Result<Vec<Imported>> {
    let parsed: Index =
        serde_json::from_slice(index).map_err(Error::json("read", "index.json of the archive"))?;
    if parsed.manifests.len() > IMAGES {
        return Err(Error::invalid(format!("the archive has more than {IMAGES} images")));
    }
    let own_names: BTreeMap<String, &Digest> = parsed
        .manifests
        .iter()
        .filter_map(|entry| Some((names_of(entry, request)?, &entry.digest)))
        .collect();
    let mut found = Vec::new();
    for entry in &parsed.manifests {
        if !core.has_content(ns, &entry.digest)? {
            return Err(incomplete(core, ns, entry));
        }
        // Only what is verified as an image counts. It stays until its name leads to it.
        let document = core.document(ns, entry)?;
        if core.whole_images_pinned(ns, entry, pins)? == 0 {
            return Err(incomplete(core, ns, entry));
        }
        core.check_archived(ns, entry)?;
        let mut target = entry.clone();
        target.annotations.retain(|key, _| !is_name(key));
        let mut names: Vec<String> = names_of(entry, request).into_iter().collect();
        for name in &names {
            own_digest(name, &entry.digest)?;
        }
        // Of two images with one configuration manifest.json does not say whose name it is.
        let of_saved = saved_names(core, ns, entry, &document, saved, archive)?.into_iter();
        names.extend(
            of_saved.filter(|name| own_names.get(name).is_none_or(|of| **of == entry.digest)),
        );
        names.sort();
        names.dedup();
        if names.is_empty() {
            found.push(Imported { name: String::new(), target });
        } else {
            let named = names.into_iter().map(|name| Imported { name, target: target.clone() });
            found.extend(named);
        }
    }
    if !request.index_name.is_empty() {
        let digest = core.put_blob(ns, index, Labels::new())?;
        let size = u64::try_from(index.len()).unwrap_or(u64::MAX);
        let kind = parsed.media_type.as_deref().unwrap_or(media_type::OCI_INDEX);
        let target = Descriptor::new(kind, digest, size);
        found.push(Imported { name: request.index_name.clone(), target });
    }
    Ok(found)
}

/// Is this annotation an image's name?
pub(crate) fn is_name(key: &str) -> bool {
    key == NAME || key == REF_NAME
}

/// The names that an index entry's annotations give.
fn names_of(entry: &Descriptor, request: &ImportRequest) -> Option<String> {
    if let Some(name) = entry.annotations.get(NAME) {
        return Some(full_name(name));
    }
    let name = entry.annotations.get(REF_NAME)?;
    // By the specification it may be a tag alone, which names nothing without a repository.
    let of_index = request.index_name.rsplit_once(':').map_or(request.index_name.as_str(), |s| s.0);
    let prefix = if request.base_name.is_empty() { of_index } else { &request.base_name };
    if name.contains(['/', ':']) {
        Some(full_name(name))
    } else if prefix.is_empty() {
        None
    } else {
        Some(format!("{prefix}:{name}"))
    }
}

/// The names under which docker's manifest.json knows the same image.
fn saved_names(
    core: &Core,
    ns: &str,
    entry: &Descriptor,
    document: &Document,
    saved: &[Saved],
    archive: &Archive,
) -> Result<Vec<String>> {
    if saved.is_empty() {
        return Ok(Vec::new());
    }
    let config = match document {
        Document::Manifest(manifest) => manifest.config.digest.clone(),
        Document::Index(_) => match core.choose_manifest(ns, entry, None) {
            Ok((_, manifest)) => manifest.config.digest,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        },
    };
    let mut names = Vec::new();
    for image in saved {
        if archive.blob(&image.config)?.digest == config {
            let tags = image.repo_tags.iter().flatten();
            for tag in tags {
                names.push(tagged(tag, "manifest.json", &entry.digest)?);
            }
        }
    }
    Ok(names)
}

/// `alpine:3` → `docker.io/library/alpine:3`; a client's own names stay as they are.
pub(super) fn full_name(name: &str) -> String {
    name.parse::<ImageRef>()
        .map_or_else(|_| name.to_string(), |reference| reference.with_default_tag().to_string())
}

/// A name in docker's `file` has a tag: as dockerd, nothing of the archive is named where one has none.
pub(super) fn tagged(name: &str, file: &str, target: &Digest) -> Result<String> {
    if !name.parse::<ImageRef>().is_ok_and(|of| of.with_default_tag().tag().is_some()) {
        return Err(Error::invalid(format!(
            "invalid tag {name:?} in {file} of the archive: it must be NAME:TAG"
        )));
    }
    let name = full_name(name);
    own_digest(&name, target)?;
    Ok(name)
}

/// A name that says a digest is only for what has that digest: nobody would find another by it.
fn own_digest(name: &str, target: &Digest) -> Result<()> {
    match name.parse::<ImageRef>() {
        Ok(of) if of.digest().is_some_and(|said| said != target) => Err(Error::invalid(format!(
            "the archive's image {target} has the name {name:?}, which is another image's: give it one with a tag"
        ))),
        _ => Ok(()),
    }
}

/// docker's archive: the manifest that it lacks is made.
fn from_docker(
    core: &Core,
    ns: &str,
    saved: &[Saved],
    archive: &Archive,
    pins: &Pins,
) -> Result<Vec<Imported>> {
    let mut found = Vec::new();
    let mut known = Layers::new();
    for image in saved {
        let config_blob = archive.blob(&image.config)?;
        let (config_of, config) = core.image_config(ns, &config_blob.digest)?;
        let mut layers = Vec::new();
        for path in image.layers.iter().flatten() {
            if layers.len() >= limits::LAYERS {
                return Err(Error::invalid(format!(
                    "an image of the archive has more than {} layers",
                    limits::LAYERS
                )));
            }
            let blob = archive.blob(path)?;
            let layer = layer_of(core, ns, blob, &mut known)?;
            pins.add(ResourceKind::Content, &layer.digest);
            layers.push(layer);
        }
        let (known, manifest) = (config_of.layers(), layers.len());
        if known != manifest {
            // dockerd's words (moby `image/tarexport/load.go`), and whose layers they are.
            return Err(Error::invalid(format!(
                "invalid manifest, layers length mismatch: expected {manifest}, got {known} in {} of the archive",
                image.config.display()
            )));
        }
        let target = core.put_image(ns, &config, layers)?;
        pins.add(ResourceKind::Content, &target.digest);
        if core.whole_images(ns, &target)? == 0 {
            // Removed by a garbage collection between its arrival and its pin.
            return Err(went_away(core, ns, &target));
        }
        verify_layers(core, ns, &target)?;
        let tags: Vec<&String> = image.repo_tags.iter().flatten().collect();
        if tags.is_empty() {
            found.push(Imported { name: String::new(), target: target.clone() });
        }
        for tag in tags {
            let name = tagged(tag, "manifest.json", &target.digest)?;
            found.push(Imported { name, target: target.clone() });
        }
    }
    Ok(found)
}

/// The layers that an archive's files became, by the files' digests.
pub(super) type Layers = BTreeMap<Digest, Descriptor>;

/// A file of an archive as a layer.
pub(super) fn layer_of(
    core: &Core,
    ns: &str,
    blob: &Blob,
    known: &mut Layers,
) -> Result<Descriptor> {
    let kind = match blob.compression {
        archive::Compression::Gzip => media_type::OCI_LAYER_GZIP,
        archive::Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        archive::Compression::None => media_type::OCI_LAYER,
        // No engine's layers may have these.
        archive::Compression::Xz | archive::Compression::Bzip2 => {
            if let Some(layer) = known.get(&blob.digest) {
                return Ok(layer.clone());
            }
            let layer = recoded(core, ns, &blob.digest)?;
            known.insert(blob.digest.clone(), layer.clone());
            return Ok(layer);
        }
    };
    Ok(Descriptor::new(kind, blob.digest.clone(), blob.size))
}

/// The same layer as gzip.
fn recoded(core: &Core, ns: &str, digest: &Digest) -> Result<Descriptor> {
    let failed = || Error::stream("inflate layer", digest);
    let (blob, _) = core.open_blob(ns, digest)?;
    let mut tar = archive::decompress(blob).map_err(failed())?;
    core.write_layer(ns, media_type::OCI_LAYER_GZIP, "", &mut Labels::new(), |writer| {
        std::io::copy(&mut tar, writer).map_err(failed())?;
        Ok(())
    })
}

/// A plain layer's digest is its diffID: a wrong one is found before the image has a name. That of a
/// compressed one is found when it is extracted.
fn verify_layers(core: &Core, ns: &str, target: &Descriptor) -> Result<()> {
    let image = core.resolve_image(ns, target, None)?;
    let (config, _): (Config, _) = core.image_config(ns, &image.config.digest)?;
    for (layer, diff_id) in image.layers.iter().zip(&image.diff_ids) {
        if layer.media_type == media_type::OCI_LAYER && layer.digest != *diff_id {
            return Err(Error::data_loss(format!(
                "layer {} of a {} image: its configuration says {diff_id}",
                layer.digest,
                config.platform()
            )));
        }
    }
    Ok(())
}
