//! Are the files of a snapshot what they were? And how they are made again.

use std::{
    fs::{self, File},
    io::{BufReader, ErrorKind, Read},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use archive::{Below, PackOptions};
use erofs::{Base, Layer, Tree};
use rustix::fs::RenameFlags;
use store_api::{Descriptor, Timestamp};
use tempfile::TempDir;
use types::Digest;

use super::{
    Disk, Kind, PackedLayer, SnapshotRecord, borrow, in_use, open_all, open_directory,
    packed::{CONTENTS, EXTRA, INDEX, TAR, read_regular, scan, write_index},
    trees,
};
use crate::{
    Core,
    content::{BUFFER_BYTES, open_regular},
    error::{Error, Result},
    hashing::Hashing,
};

/// What is wrong with the files of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// All of it is gone.
    Gone,
    /// A layer's tar is not what its digest says.
    Tar(String),
    /// What is made of the tar: `layer.toc`, `layer.extra`, `index`.
    Made(&'static str),
    /// An extracted directory is not what its layer holds.
    Directory(String),
}

/// The blob that a layer's files are made of.
#[derive(Clone, Debug)]
pub(crate) struct LayerSource {
    pub(crate) layer: Descriptor,
    pub(crate) diff_id: Digest,
}

fn scratch(core: &Core) -> Result<TempDir> {
    let tmp = core.root.join("tmp");
    let tmp = if tmp.is_dir() { tmp } else { core.root.clone() };
    tempfile::Builder::new()
        .prefix("fsck-")
        .tempdir_in(&tmp)
        .map_err(Error::io("create a directory in", tmp))
}

/// Do two files hold the same? Two that are not there do.
fn same(one: &Path, other: &Path) -> Result<bool> {
    let open = |path: &Path| match open_regular(path) {
        Ok(file) => Ok(Some(BufReader::with_capacity(BUFFER_BYTES, file))),
        // Nothing, or no file.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => {
            Ok(None)
        }
        Err(error) => Err(Error::io("open", path)(error)),
    };
    let (Some(mut a), Some(mut b)) = (open(one)?, open(other)?) else {
        let is_nothing = |path: &Path| path.symlink_metadata().is_err();
        return Ok(is_nothing(one) && is_nothing(other));
    };
    let (mut left, mut right) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    loop {
        let n = a.read(&mut left).map_err(Error::io("read", one))?;
        if n == 0 {
            return Ok(matches!(b.read(&mut right), Ok(0)));
        }
        // What cannot be read is not the same.
        if b.read_exact(&mut right[..n]).is_err() || left[..n] != right[..n] {
            return Ok(false);
        }
    }
}

impl Disk {
    /// Compares a packed layer's tar with its digest, and what is made of it with what is made of it now.
    fn packed_damage(&self, id: u64, packed: &PackedLayer, scratch: &Path) -> Result<Vec<Damage>> {
        let directory = self.directory(id);
        let tar = directory.join(TAR);
        let broken = |why: String| Ok(vec![Damage::Tar(why)]);
        let file = match open_regular(&tar) {
            Ok(file) => BufReader::with_capacity(BUFFER_BYTES, file),
            Err(error) => return broken(format!("layer.tar: {error}")),
        };
        // What is wrong with the tar may keep it from being read to its end: it is damaged all the same.
        let found = match scan(Hashing::new(file), scratch) {
            Ok((_, tar)) => tar.finish().0,
            Err(error) if is_full(&error) => {
                return Err(Error::index("read", tar.display())(error));
            }
            Err(error) => return broken(format!("layer.tar: {error}")),
        };
        if found != packed.diff_id {
            return broken(format!("layer.tar: its bytes are {found}, not {}", packed.diff_id));
        }
        let mut wrong = Vec::new();
        for name in [CONTENTS, EXTRA] {
            if !same(&scratch.join(name), &directory.join(name))? {
                wrong.push(Damage::Made(name));
            }
        }
        Ok(wrong)
    }

    /// The tar of a packed layer, if its bytes should be those of a digest.
    pub(crate) fn tar_of(&self, record: &SnapshotRecord, digest: &Digest) -> Option<PathBuf> {
        record.packed.as_ref().filter(|packed| packed.diff_id == *digest)?;
        Some(self.directory(record.id).join(TAR))
    }

    /// Compares an index, if there is one, with the tables of contents of the layers below it.
    fn index_damage(&self, records: &[SnapshotRecord], scratch: &Path) -> Result<bool> {
        let Some(top) = records.first() else { return Ok(false) };
        let path = self.directory(top.id).join(INDEX);
        if path.symlink_metadata().is_err() {
            return Ok(false);
        }
        let mut tree = Tree::new(Base::Nothing);
        for record in records.iter().rev() {
            let contents = self.directory(record.id).join(CONTENTS);
            let layer = read_regular(&contents).ok().and_then(|bytes| Layer::decode(&bytes).ok());
            // That one is told of by itself; the index is looked at again once it is whole.
            let Some(layer) = layer else { return Ok(false) };
            tree.add(layer).map_err(Error::index("index", record.id))?;
        }
        let fresh = scratch.join(INDEX);
        write_index(&tree, &fresh)?;
        Ok(!same(&fresh, &path)?)
    }
}

fn is_full(error: &erofs::Error) -> bool {
    let full = |io: &std::io::Error| {
        matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
    };
    error.io().is_some_and(full)
}

impl Core {
    /// What is wrong with a snapshot's files. `sources`: the layer's blob, against which an extracted
    /// directory is compared (of a whole one those of all layers, the lowest first); without it only that
    /// the directory is there can be told.
    pub(crate) fn snapshot_damage(
        &self,
        ns: &str,
        key: &str,
        record: &SnapshotRecord,
        sources: &[&LayerSource],
    ) -> Result<Vec<Damage>> {
        if !self.disk.directory(record.id).is_dir() {
            return Ok(vec![Damage::Gone]);
        }
        let scratch = scratch(self)?;
        if let Some(packed) = &record.packed {
            let mut wrong = self.disk.packed_damage(record.id, packed, scratch.path())?;
            if wrong.is_empty() {
                let records = self.packed_chain(ns, key)?;
                if self.disk.index_damage(&records, scratch.path())? {
                    wrong.push(Damage::Made(INDEX));
                }
            }
            return Ok(wrong);
        }
        if !self.disk.fs(record.id).is_dir() {
            return Ok(vec![Damage::Gone]);
        }
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let began = Timestamp::now().seconds - 1;
        let path = scratch.path().join("fs");
        self.extract_fresh(ns, record, sources, &path)?;
        let (wanted, found) = (open_directory(&path)?, open_directory(&self.disk.fs(record.id))?);
        let mut difference = trees::difference(&wanted, &found, began)?;
        if difference.is_some() && !record.full {
            let lowers = open_all(&self.directories_below(ns, record)?)?;
            if shown_sum(&wanted, &lowers)? == shown_sum(&found, &lowers)? {
                difference = None;
            }
        }
        drop((wanted, found));
        sys::tree::remove(&path).map_err(Error::sys("remove", &path))?;
        Ok(difference.map(Damage::Directory).into_iter().collect())
    }

    fn packed_chain(&self, ns: &str, key: &str) -> Result<Vec<SnapshotRecord>> {
        let mut chain = vec![key.to_string()];
        chain.extend(self.snapshot_parents(ns, key)?);
        self.packed_records(ns, &chain)
    }

    /// What a layer lies on, topmost first.
    fn directories_below(&self, ns: &str, record: &SnapshotRecord) -> Result<Vec<PathBuf>> {
        let Some(parent) = record.parent.as_deref().filter(|_| !record.full) else {
            return Ok(Vec::new());
        };
        let mut chain = vec![parent.to_string()];
        chain.extend(self.snapshot_parents(ns, parent)?);
        Ok(self.lowers_of(ns, &chain)?.into_iter().map(|lower| lower.path).collect())
    }

    /// Extracts a layer as it was when its snapshot was made, to a directory that is not there yet.
    fn extract_fresh(
        &self,
        ns: &str,
        record: &SnapshotRecord,
        sources: &[&LayerSource],
        path: &Path,
    ) -> Result<()> {
        let below = self.directories_below(ns, record)?;
        super::disk::make_root(path, below.first().map(PathBuf::as_path))?;
        let root = open_directory(path)?;
        let lowers = open_all(&below)?;
        for LayerSource { layer, diff_id } in sources {
            let done = self.extract_at(ns, layer, root.as_fd(), &borrow(&lowers), &|_| {})?;
            if done.diff_id != *diff_id {
                return Err(self.is_damaged(&layer.digest));
            }
        }
        Ok(())
    }

    /// Makes the damaged files of a snapshot again: from the layer's blob, or from its tar. What was made
    /// is on the disk before it takes the place of anything.
    ///
    /// # Errors
    /// When that is damaged too, or not here; when a directory to be exchanged is mounted.
    pub(crate) fn mend_snapshot(
        &self,
        ns: &str,
        (key, record): (&str, &SnapshotRecord),
        damage: &Damage,
        sources: &[&LayerSource],
    ) -> Result<()> {
        let directory = self.disk.directory(record.id);
        let scratch = scratch(self)?;
        if record.kind != Kind::Committed {
            return Err(Error::precondition(format!(
                "snapshot \"{key}\" was written to, and has nothing that it could be made from"
            )));
        }
        let needed = || {
            sources
                .last()
                .copied()
                .ok_or_else(|| Error::not_found("the blob of the layer of snapshot", key))
        };
        match damage {
            Damage::Made(INDEX) => {
                self.disk.clear_way(&directory.join(INDEX))?;
                match fs::remove_file(directory.join(INDEX)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(Error::io("remove", directory.join(INDEX))(error));
                    }
                    _ => {}
                }
                let records = self.packed_chain(ns, key)?;
                self.flights
                    .alone(&format!("layers {}", record.id), || self.disk.index(&records))?;
            }
            Damage::Made(_) => {
                let tar = directory.join(TAR);
                let file = open_regular(&tar).map_err(Error::io("open", &tar))?;
                scan(BufReader::with_capacity(BUFFER_BYTES, file), scratch.path())
                    .map_err(Error::index("read", tar.display()))?;
                self.replace(scratch.path(), &directory, &[CONTENTS, EXTRA])?;
            }
            Damage::Tar(_) | Damage::Gone if record.packed.is_some() => {
                let source = needed()?;
                let made =
                    self.pack_into(ns, &source.layer, &source.diff_id, scratch.path(), &|_| {})?;
                if made.is_none() {
                    return Err(self.is_damaged(&source.layer.digest));
                }
                make_private(&directory)?;
                self.replace(scratch.path(), &directory, &[TAR, CONTENTS, EXTRA])?;
            }
            Damage::Tar(_) | Damage::Gone | Damage::Directory(_) => {
                let path = scratch.path().join("fs");
                needed()?;
                self.extract_fresh(ns, record, sources, &path)?;
                self.put_directory(record.id, &path)?;
            }
        }
        // What is mounted shows the old files to those that have it; who comes next gets the new ones.
        self.release_above(ns, key)
    }

    /// Puts an extracted layer into its place; what was there goes to the trash.
    fn put_directory(&self, id: u64, fresh: &Path) -> Result<()> {
        let (directory, target) = (self.disk.directory(id), self.disk.fs(id));
        self.db.sync_files()?;
        if !target.is_dir() {
            make_private(&directory)?;
            fs::rename(fresh, &target).map_err(Error::io("rename", &target))?;
            return sync(&directory);
        }
        // A directory must not be exchanged below an overlay: it knows no such thing.
        if let Some(mount) = in_use::mount_of(&self.root, id)? {
            return Err(Error::precondition(format!(
                "{} is in use by {mount}: stop that first",
                target.display()
            )));
        }
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, fresh, cwd, &target, RenameFlags::EXCHANGE)
            .map_err(Error::sys("exchange", &target))?;
        sync(&directory)?;
        self.trash.put(fresh)
    }

    /// Moves files into place, durably; one that is not among the new ones is removed.
    fn replace(&self, from: &Path, to: &Path, names: &[&str]) -> Result<()> {
        for name in names {
            let (source, target) = (from.join(name), to.join(name));
            let new = match File::open(&source) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(Error::io("open", &source)(error)),
            };
            if let Some(file) = &new {
                file.sync_all().map_err(Error::io("sync", &source))?;
            }
            self.disk.clear_way(&target)?;
            match new {
                Some(_) => fs::rename(&source, &target).map_err(Error::io("rename", &target))?,
                None => match fs::remove_file(&target) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(Error::io("remove", &target)(error));
                    }
                    _ => {}
                },
            }
        }
        sync(to)
    }

    /// Takes away the mounts of which a layer is a part.
    fn release_above(&self, ns: &str, key: &str) -> Result<()> {
        for (other, record) in self.db.list::<SnapshotRecord>(crate::db::Table::Snapshots, ns)? {
            if record.packed.is_some()
                && (other == key || self.snapshot_parents(ns, &other)?.iter().any(|p| p == key))
            {
                self.disk.packed.release(record.id)?;
            }
        }
        Ok(())
    }
}

/// Stands for what a layer's directory changes about those below it. A directory that was written through an
/// overlay hides and repeats in ways of its own what the layer that was made of it says in one.
fn shown_sum(directory: &OwnedFd, lowers: &[OwnedFd]) -> Result<Digest> {
    let lowers = borrow(lowers);
    let (sum, _) = archive::diff_overlay(
        directory.as_fd(),
        Below::Layers(&lowers),
        &mut PackOptions::default(),
        Hashing::new(std::io::sink()),
    )
    .map_err(Error::archive("compare", "a layer's directory"))?;
    Ok(sum.finish().0)
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("sync", directory))
}

/// Makes a snapshot's directory, if it is gone.
fn make_private(directory: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => {
            made.map_err(Error::io("create", directory))?;
            directory.parent().map_or(Ok(()), sync)
        }
    }
}
