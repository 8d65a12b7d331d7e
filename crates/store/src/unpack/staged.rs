//! Layers whose files are made before what they stand on is there: `snapshots/N` without a record,
//! which nobody sees, and which goes to the trash at the next start.

use std::{
    io::{self, BufReader, Read},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use archive::{ExtractOptions, Whiteouts};
use store_api::{Descriptor, Event, ResourceKind};
use types::Digest;

use super::{
    ahead::{Ahead, CoreRef, Source, WINDOW_BYTES},
    growth::GrowingReader,
};
use crate::{
    Core,
    content::BUFFER_BYTES,
    db::{Durable, Table},
    diffs::is_layer,
    error::{Error, Result},
    hashing::Hashing,
    snapshots::{
        PackedLayer, Place, SnapshotRecord, child_key, make_root, open_all, open_directory,
    },
    streams::Watched,
};

/// A layer whose content is what its image says, but for its commit.
pub(crate) enum Staged {
    /// Kept as its tar. `blob`: what it was made of; another image's may be compressed in another way.
    Packed { id: u64, packed: PackedLayer, blob: Digest },
    /// Extracted. `has_root`: it says itself how its root looks.
    Extracted { id: u64, has_root: bool, blob: Digest },
    /// An index cannot express it, and it was not extracted yet.
    MustExtract,
}

impl Staged {
    /// What it was made of.
    pub(super) fn blob(&self) -> Option<&Digest> {
        match self {
            Self::Packed { blob, .. } | Self::Extracted { blob, .. } => Some(blob),
            Self::MustExtract => None,
        }
    }
}

/// Bytes of the tar that are written of a download, whose digest is not known yet, per byte that came:
/// layers of programs and texts have 2 to 10. gzip reaches 1000, with which whoever is between a registry
/// and this machine could fill the disk.
const INFLATED_PER_BYTE: u64 = 32;
/// And so many in any case: a small layer may be nothing but zeros.
const INFLATED_ANYWAY: u64 = 64 << 20;

/// A tar that is made of an input of which `read` bytes were read.
struct Inflated<'a, R> {
    inner: R,
    read: &'a AtomicU64,
    bytes: u64,
    is_verified: bool,
    /// Why there is no more of it lies in the input, not in what is made of the tar.
    failed: &'a AtomicBool,
}

impl<R: Read> Read for Inflated<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer).inspect_err(|error| {
            // Who reads begins again.
            if error.kind() != io::ErrorKind::Interrupted {
                self.failed.store(true, Ordering::Relaxed);
            }
        })?;
        self.bytes += u64::try_from(n).unwrap_or(0);
        let read = self.read.load(Ordering::Relaxed);
        let limit = read.saturating_mul(INFLATED_PER_BYTE).saturating_add(INFLATED_ANYWAY);
        if !self.is_verified && self.bytes > limit {
            self.failed.store(true, Ordering::Relaxed);
            return Err(io::Error::other(format!(
                "{read} bytes of a download became more than {limit}: it is verified first"
            )));
        }
        Ok(n)
    }
}

/// Ends with an error when nobody wants the rest.
struct Until<'a, R> {
    inner: R,
    stopped: &'a (dyn Fn() -> bool + Sync),
}

impl<R: Read> Read for Until<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.stopped)() {
            return Err(io::Error::other("the unpacking was given up"));
        }
        self.inner.read(buffer)
    }
}

impl<C: CoreRef> Ahead<C> {
    /// Makes the files of layer `i`, whatever is below it. `None`: its bytes end too early, are not what
    /// they should be, or need too much to be read here.
    pub(super) fn stage(
        &self,
        i: usize,
        source: &Source,
        tell: &(dyn Fn(u64) + Sync),
    ) -> Result<Option<Staged>> {
        let core: &Core = &self.core;
        let (layer, expected) = (&self.image.layers[i], &self.image.diff_ids[i]);
        if !is_layer(&layer.media_type) {
            return Err(Error::invalid(format!(
                "layer {}: media type {:?} is not supported",
                layer.digest, layer.media_type
            )));
        }
        let stopped = || self.is_stopped();
        let mut blob_bytes = layer.size;
        let input: Box<dyn Read + Send + '_> = match source {
            Source::Blob => {
                let (blob, bytes) = core.open_blob(&self.ns, &layer.digest)?;
                blob_bytes = bytes;
                Box::new(BufReader::with_capacity(BUFFER_BYTES, blob))
            }
            Source::Download(growth) => Box::new(GrowingReader::new(std::sync::Arc::clone(growth))),
        };
        let (read, failed) = (AtomicU64::new(0), AtomicBool::new(false));
        let count = |bytes| {
            read.store(bytes, Ordering::Relaxed);
            tell(bytes);
        };
        let input = Watched::new(Until { inner: input, stopped: &stopped }, &count);
        let inflate = |input| {
            let inner = archive::decompress_within(input, WINDOW_BYTES)?;
            let is_verified = matches!(source, Source::Blob);
            let tar = Inflated { inner, read: &read, bytes: 0, is_verified, failed: &failed };
            Ok(Box::new(core.inflation.bounded(tar, blob_bytes)) as Box<dyn Read + '_>)
        };
        let id = core.disk.create_empty()?;
        let staged = if core.disk.packed.is_enabled() {
            let directory = core.disk.directory(id);
            // What is not compressed may be shared with its blob, once that is here.
            let share = matches!(source, Source::Blob);
            let packed = core.pack_stream(layer, expected, input, inflate, share, &directory);
            packed.and_then(|packed| match packed {
                Some(packed) => {
                    faults::pass("packed.written");
                    check(layer, &packed.diff_id, expected)?;
                    Ok(Staged::Packed { id, packed, blob: layer.digest.clone() })
                }
                None => Ok(Staged::MustExtract),
            })
        } else {
            let tar = inflate(input).map_err(Error::stream("inflate layer", &layer.digest));
            tar.and_then(|tar| self.extract_ahead(i, id, tar))
        };
        if !matches!(staged, Ok(Staged::Packed { .. } | Staged::Extracted { .. })) {
            core.disk.discard(id)?;
            if failed.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        staged.map(Some)
    }

    fn extract_ahead(&self, i: usize, id: u64, tar: impl Read) -> Result<Staged> {
        let core: &Core = &self.core;
        let (layer, expected) = (&self.image.layers[i], &self.image.diff_ids[i]);
        let path = core.disk.fs(id);
        make_root(&path, None)?;
        faults::pass("unpack.prepared");
        let root = open_directory(&path)?;
        let parent = i.checked_sub(1).map(|below| &self.image.chain_ids[below]);
        let below = || {
            let Some(parent) = parent else { return Ok(Vec::new()) };
            let opened = self.wait_for_parent(i, parent).and_then(|()| {
                let mut chain = vec![parent.to_string()];
                chain.extend(core.snapshot_parents(&self.ns, &chain[0])?);
                let lowers = core.lowers_of(&self.ns, &chain)?;
                open_all(&lowers.into_iter().map(|lower| lower.path).collect::<Vec<_>>())
            });
            opened.map_err(|error| io::Error::other(store_api::Error::from(error)))
        };
        let mut has_root = false;
        let mut look = |entry: &mut archive::Entry| {
            has_root |= entry.relative_path().is_ok_and(|path| path.file_name().is_none());
            true
        };
        let whiteouts = match parent {
            None => Whiteouts::Remove,
            Some(_) => Whiteouts::Overlay { userxattr: core.disk.userxattr },
        };
        let mut options = ExtractOptions {
            whiteouts,
            root_metadata: true,
            late_lowers: Some(&below),
            filter: Some(&mut look),
            ..ExtractOptions::default()
        };
        let mut tar = Hashing::new(tar);
        archive::extract(&mut tar, root.as_fd(), &mut options)
            .map_err(Error::archive("extract layer", &layer.digest))?;
        faults::pass("unpack.extracted");
        check(layer, &tar.finish().0, expected)?;
        Ok(Staged::Extracted { id, has_root, blob: layer.digest.clone() })
    }
}

/// Is a layer's content what its image says?
fn check(layer: &Descriptor, found: &Digest, expected: &Digest) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::data_loss(format!(
        "layer {}: its content is {found}, its image's configuration says {expected}",
        layer.digest
    )))
}

impl Core {
    /// An error of a layer: is it the image that is wrong, or what the disk made of its blob?
    pub(super) fn blame(&self, digest: &Digest, error: Error) -> Error {
        if error.is_full_disk() {
            return error;
        }
        self.verify_blob(digest).err().unwrap_or(error)
    }

    /// Removes what will not be committed.
    pub(super) fn discard_staged(&self, staged: &Staged) {
        let (Staged::Packed { id, .. } | Staged::Extracted { id, .. }) = staged else { return };
        if let Err(error) = self.disk.discard(*id) {
            let error = store_api::Error::from(error);
            tracing::warn!(id, error = %error, "a layer that is not wanted stays behind");
        }
    }

    /// Commits a layer that was made ahead, whose parent is there. `false`: it must be extracted.
    pub(super) fn commit_staged(
        &self,
        ns: &str,
        layer: &Descriptor,
        place: &Place<'_>,
        staged: Staged,
    ) -> Result<bool> {
        let outcome = self.try_commit(ns, layer, place, &staged);
        if !matches!(outcome, Ok(true)) {
            self.discard_staged(&staged);
        }
        outcome
    }

    fn try_commit(
        &self,
        ns: &str,
        layer: &Descriptor,
        place: &Place<'_>,
        staged: &Staged,
    ) -> Result<bool> {
        let (id, packed, blob) = match staged {
            Staged::MustExtract => return Ok(false),
            // On what was extracted nothing can stay packed.
            Staged::Packed { .. } if !self.takes_packed(ns, place.parent)? => return Ok(false),
            Staged::Packed { id, packed, blob } => (*id, Some(packed.clone()), blob),
            Staged::Extracted { id, has_root, blob } => {
                if let (Some(parent), false) = (place.parent, has_root) {
                    look_like(&self.disk.fs(*id), &self.root_of(ns, parent)?)?;
                }
                (*id, None, blob)
            }
        };
        match self.label_uncompressed(ns, blob, place.expected) {
            // Another image's, which did not come or is gone again.
            Err(error) if *blob != layer.digest && error.is_not_found() => {}
            other => other?,
        }
        self.commit_made(ns, place, id, packed)?;
        Ok(true)
    }

    /// Makes the record of a layer whose files are there in full.
    pub(crate) fn commit_made(
        &self,
        ns: &str,
        place: &Place<'_>,
        id: u64,
        packed: Option<PackedLayer>,
    ) -> Result<()> {
        let Place { parent, chain_id, .. } = *place;
        self.ensure_namespace(ns)?;
        if let Some(parent) = parent {
            self.committed(ns, parent)?;
        }
        let usage = match &packed {
            Some(_) => self.disk.usage_packed(id)?,
            None => self.disk.usage(id)?,
        };
        let record = SnapshotRecord::committed(id, parent, usage, packed);
        self.guard.refresh(ns, ResourceKind::Snapshot, chain_id);
        self.db.write(Durable::Soon, |tx| {
            if tx.get::<SnapshotRecord>(Table::Snapshots, ns, chain_id)?.is_some() {
                return Err(Error::already_exists("snapshot", chain_id));
            }
            if let Some(parent) = parent {
                if tx.get::<SnapshotRecord>(Table::Snapshots, ns, parent)?.is_none() {
                    return Err(Error::not_found("parent snapshot", parent));
                }
                tx.put(Table::Children, ns, &child_key(parent, chain_id), &())?;
            }
            tx.put(Table::Snapshots, ns, chain_id, &record)
        })?;
        self.disk.recorded(id);
        faults::pass("unpack.committed");
        let (key, name) = (chain_id.to_string(), chain_id.to_string());
        let parent = parent.unwrap_or_default().to_string();
        self.bus.publish(ns, Event::SnapshotPrepare { key: key.clone(), parent });
        self.bus.publish(ns, Event::SnapshotCommit { key, name });
        Ok(())
    }
}

/// Gives a root the owner and the mode of the one below.
fn look_like(path: &Path, below: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let root = std::fs::symlink_metadata(below).map_err(Error::io("stat", below))?;
    std::os::unix::fs::lchown(path, Some(root.uid()), Some(root.gid()))
        .map_err(Error::io("chown", path))?;
    let mode = std::fs::Permissions::from_mode(root.mode() & 0o7777);
    std::fs::set_permissions(path, mode).map_err(Error::io("chmod", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_download_becomes_so_much_until_it_is_verified() {
        let limit = 1000 * INFLATED_PER_BYTE + INFLATED_ANYWAY;
        for (bytes, is_verified, is_whole) in
            [(limit, false, true), (limit + 1, false, false), (limit + 1, true, true)]
        {
            let (read, failed) = (AtomicU64::new(1000), AtomicBool::new(false));
            let inner = io::repeat(0).take(bytes);
            let mut tar = Inflated { inner, read: &read, bytes: 0, is_verified, failed: &failed };
            let copied = io::copy(&mut tar, &mut io::sink());
            assert_eq!(copied.is_ok(), is_whole, "{bytes} {is_verified}");
            assert_eq!(failed.into_inner(), !is_whole);
        }
    }
}
