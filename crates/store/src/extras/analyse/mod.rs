//! What each layer of an image brings, and what of it is of no use.

mod caches;
mod tree;
mod waste;

use std::{
    fs::File,
    io::{BufReader, Read},
    os::fd::AsFd as _,
    sync::{Arc, Weak},
};

use archive::{Below, Kind, Limits, PackOptions, TarReader};
use sha2::{Digest as _, Sha256};
use store_api::{
    AnalysisRequest, EXAMPLES_MAX, Fate, ImageAnalysis, LayerAnalysis, LayerFile, ResourceKind,
    UnpackedImage,
};

use self::tree::{Counts, Hash, Tree};
use crate::{
    Core, Local,
    content::BUFFER_BYTES,
    error::{Error, Result},
    snapshots::open_directory,
};

/// One at a time: it may take minutes among the heavy operations, and [`tree::TREE_BYTES_MAX`] of
/// memory. Ends when nobody waits for it any more.
pub(crate) async fn analyse(
    local: &Local,
    request: AnalysisRequest,
) -> store_api::Result<ImageAnalysis> {
    let flight = local.core.async_flights.enter("analyse").await;
    let caller = Arc::new(());
    let wanted = Wanted(Arc::downgrade(&caller));
    let analysed = local.heavy(move |core, ns| {
        let _flight = flight;
        core.analyse(ns, &request, &wanted)
    });
    let analysed = analysed.await;
    drop(caller);
    analysed
}

/// Knows whether its caller, who holds the other end, still waits.
struct Wanted(Weak<()>);

impl Wanted {
    fn check(&self) -> Result<()> {
        if self.0.strong_count() > 0 {
            return Ok(());
        }
        let text = "the analysis was cancelled: nobody waits for it";
        Err(Error::Api(store_api::Error::new(types::ErrorKind::Cancelled, text)))
    }
}

impl Core {
    fn analyse(
        &self,
        ns: &str,
        request: &AnalysisRequest,
        wanted: &Wanted,
    ) -> Result<ImageAnalysis> {
        let pins = self.guard.pins(ns);
        pins.add(ResourceKind::Content, &request.target);
        let target = self.descriptor_of(ns, &request.target)?;
        let image = self.resolve_image(ns, &target, request.platform.as_ref())?;
        for blob in image.layers.iter().chain([&image.manifest, &image.config]) {
            pins.add(ResourceKind::Content, &blob.digest);
        }
        for chain_id in &image.chain_ids {
            pins.add(ResourceKind::Snapshot, chain_id);
        }
        let digest = request.target.to_string();
        let mut tree = Tree::new(&digest, tree::TREE_BYTES_MAX);
        let mut counts = Vec::new();
        for i in 0..image.layers.len() {
            tree.begin(i);
            self.with_layer(ns, &image, i, &mut |tar| {
                read(tar, &mut tree, wanted)
                    .map_err(Error::archive("read layer", &image.layers[i].digest))?
            })?;
            counts.push(tree.end());
        }
        Ok(report(image, &tree, &counts, request.examples.min(EXAMPLES_MAX)))
    }

    /// Gives a layer's tar to `read`: the one that is kept, or out of the blob, or made of the directory
    /// that it was extracted to.
    fn with_layer(
        &self,
        ns: &str,
        image: &UnpackedImage,
        i: usize,
        read: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let layer = &image.layers[i];
        let record = match self.snapshot_record(ns, &image.chain_ids[i].to_string()) {
            Ok(record) => Some(record),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        if let Some(record) = record.as_ref().filter(|record| record.packed.is_some()) {
            let path = self.disk.packed_tar(record.id);
            let tar = File::open(&path).map_err(Error::io("open", &path))?;
            return read(&mut BufReader::with_capacity(BUFFER_BYTES, tar));
        }
        let missing = match (self.open_blob(ns, &layer.digest), &record) {
            (Ok((blob, _)), _) => {
                let blob = BufReader::with_capacity(BUFFER_BYTES, blob);
                let mut tar = archive::decompress(blob)
                    .map_err(Error::stream("inflate layer", &layer.digest))?;
                return read(&mut tar);
            }
            (Err(error), None) => return Err(error),
            (Err(error), Some(_)) if !error.is_not_found() => return Err(error),
            (Err(_), Some(record)) => record,
        };
        let path = self.disk.fs(missing.id);
        let directory = open_directory(&path)?;
        // A directory that is all of what its snapshot shows is compared with its parent's.
        let lower = match &missing.parent {
            Some(parent) if missing.full => Some(self.shown(ns, parent)?),
            _ => None,
        };
        let (tar, writer) = std::io::pipe().map_err(Error::io("make a pipe for", &path))?;
        std::thread::scope(|scope| {
            let packing = scope.spawn(|| {
                let mut options = PackOptions::default();
                let upper = directory.as_fd();
                let packed = match &lower {
                    Some(lower) => {
                        archive::diff_directories(lower.as_fd(), upper, &mut options, writer)
                    }
                    None => archive::diff_overlay(upper, Below::Unknown, &mut options, writer),
                };
                packed.map(drop).map_err(Error::archive("pack", path.display()))
            });
            // The reading end is closed when it has been read, whatever came of that.
            let outcome = { read(&mut BufReader::with_capacity(BUFFER_BYTES, tar)) };
            match packing.join() {
                Ok(Err(error)) if outcome.is_ok() => Err(error),
                Ok(_) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Reads a layer's tar into the tree. The outer error is of the tar, the inner one of the tree.
fn read(
    tar: &mut dyn Read,
    tree: &mut Tree,
    wanted: &Wanted,
) -> Result<Result<()>, archive::Error> {
    let mut reader = TarReader::new(tar, Limits::default());
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Some(entry) = reader.next_entry()? {
        let hash = match &entry.kind {
            Kind::File { .. } => hash(&mut reader, &mut buffer, wanted)?,
            _ => Hash::default(),
        };
        if let Err(error) = wanted.check().and_then(|()| tree.add(&entry, hash)) {
            return Ok(Err(error));
        }
    }
    reader.finish()?;
    Ok(Ok(()))
}

/// Of no use if it is not wanted any more.
fn hash<R: Read>(
    reader: &mut TarReader<R>,
    buffer: &mut [u8],
    wanted: &Wanted,
) -> Result<Hash, archive::Error> {
    let mut sum = Sha256::new();
    while wanted.check().is_ok() {
        let offset = reader.offset();
        match reader.data().read(buffer) {
            Ok(0) => break,
            Ok(n) => sum.update(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(archive::Error::Read { offset, source }),
        }
    }
    let mut hash = Hash::default();
    let sum = sum.finalize();
    hash.iter_mut().zip(sum).for_each(|(to, from)| *to = from);
    Ok(hash)
}

fn report(image: UnpackedImage, tree: &Tree, counts: &[Counts], examples: usize) -> ImageAnalysis {
    let mut layers: Vec<LayerAnalysis> = Vec::new();
    for ((blob, diff_id), counts) in image.layers.iter().zip(&image.diff_ids).zip(counts) {
        layers.push(LayerAnalysis {
            blob: blob.clone(),
            diff_id: diff_id.clone(),
            added_bytes: 0,
            files: 0,
            removals: counts.removals,
            overwritten_bytes: 0,
            deleted_bytes: 0,
            largest: Vec::new(),
        });
    }
    let mut by_size: Vec<usize> = (0..tree.files.len()).collect();
    // Stable: of equal sizes the first in the layer comes first.
    by_size.sort_by_key(|file| std::cmp::Reverse(tree.files[*file].bytes));
    let (mut seen_bytes, mut seen_files) = (0, 0);
    for file in by_size.iter().map(|file| &tree.files[*file]) {
        let layer = &mut layers[file.layer];
        layer.added_bytes += file.bytes;
        layer.files += 1;
        match file.fate {
            Fate::Seen => {
                seen_bytes += file.bytes;
                seen_files += 1;
            }
            Fate::Overwritten { .. } => layer.overwritten_bytes += file.bytes,
            Fate::Deleted { .. } => layer.deleted_bytes += file.bytes,
        }
        if layer.largest.len() < examples {
            layer.largest.push(LayerFile {
                path: tree.path(file),
                bytes: file.bytes,
                fate: file.fate,
            });
        }
    }
    ImageAnalysis {
        manifest: image.manifest,
        config: image.config,
        layers,
        waste: waste::of(tree, &by_size, examples),
        seen_bytes,
        seen_files,
    }
}
