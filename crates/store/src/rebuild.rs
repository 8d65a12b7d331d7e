//! After a lost or damaged database, and after every start.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use store_api::{Descriptor, Labels, media_type};
use types::{Algorithm, Digest};

use crate::{
    Core, Purpose,
    content::{ContentRecord, DAMAGED, digest_of_file, kind_of, open_regular},
    db::{DamagedRecord, Durable, Opened, Table, lock},
    error::{Error, Result},
    found,
    images::ImageRecord,
    snapshots::{SnapshotRecord, child_key},
};

/// What kind of file lies in a blob's place.
pub(crate) type Displaced = BTreeMap<Digest, &'static str>;

impl Core {
    /// Fills an empty database from the records beside it, and from the blobs: those that an image or
    /// a lease leads to, and whose bytes are what their digest says. `false`: there are none.
    pub(crate) fn rebuild(&self) -> Result<bool> {
        let (files, damaged) = self.db.record_files()?;
        if self.purpose == Purpose::Serve {
            self.set_records_aside(&damaged)?;
        }
        if files.is_empty() {
            return Ok(false);
        }
        tracing::warn!(records = files.len(), "rebuilding the metadata database");
        let mut namespaces = BTreeSet::new();
        self.db.write(Durable::Soon, |tx| {
            for file in &files {
                let Some(table) = Table::from_name(&file.table) else { continue };
                // Also of what an interrupted rebuild has put: its content may not have come yet.
                namespaces.insert(file.namespace.clone());
                if tx.is_recent(table, &file.namespace, &file.name) {
                    continue;
                }
                tx.put_value(table, &file.namespace, &file.name, &file.value)?;
            }
            Ok(())
        })?;
        faults::pass("rebuild.records");
        let blobs = self.verified_blobs()?;
        for ns in &namespaces {
            self.rebuild_children(ns)?;
            faults::pass("rebuild.children");
            self.rebuild_content(ns, &blobs)?;
            faults::pass("rebuild.content");
        }
        self.db.flush()?;
        Ok(true)
    }

    /// Directories of snapshots that no record names, also those that were set aside, but for those that are
    /// being made.
    pub(crate) fn unrecorded_snapshots(&self) -> Result<usize> {
        let present = self.disk.present()?;
        let mut used = BTreeSet::new();
        for ns in self.namespaces() {
            let records = self.db.list::<SnapshotRecord>(Table::Snapshots, &ns)?;
            used.extend(records.into_iter().map(|(_, record)| record.id));
        }
        let of_none = present.difference(&used).filter(|id| !self.disk.is_in_work(**id));
        let aside = found::entries(&self.root.join(DAMAGED))?;
        Ok(of_none.count() + aside.iter().filter(|entry| entry.path().is_dir()).count())
    }

    /// Is a record aside that alone may lead to content or snapshots? What it led to is unused now, and not
    /// taken away before somebody has moved it out of `ROOT/damaged`.
    pub(crate) fn has_records_aside(&self) -> Result<bool> {
        if self.has_stuck_records.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let leading = [Table::Images, Table::Containers, Table::Leases];
        Ok(found::entries(&self.root.join(DAMAGED))?.iter().any(|entry| {
            let name = entry.file_name();
            let table = name.to_str().and_then(|name| name.split_once('-')).map(|(table, _)| table);
            leading.iter().any(|leading| Some(leading.name()) == table)
        }))
    }

    fn rebuild_children(&self, ns: &str) -> Result<()> {
        let snapshots = self.db.list::<SnapshotRecord>(Table::Snapshots, ns)?;
        self.db.write(Durable::Soon, |tx| {
            for (key, record) in &snapshots {
                if let Some(parent) = &record.parent {
                    tx.put(Table::Children, ns, &child_key(parent, key), &())?;
                }
            }
            Ok(())
        })
    }

    fn rebuild_content(&self, ns: &str, blobs: &BTreeMap<Digest, u64>) -> Result<()> {
        for (name, image) in self.db.list::<ImageRecord>(Table::Images, ns)? {
            if let Err(error) = self.rebuild_image(ns, &image.target, blobs) {
                let error = store_api::Error::from(error);
                tracing::warn!(image = name, error = %error, "an image is not whole");
            }
        }
        let leases = self.db.list::<crate::leases::LeaseRecord>(Table::Leases, ns)?;
        for (_, name) in leases.into_iter().flat_map(|(_, lease)| lease.resources) {
            if let Ok(digest) = name.parse() {
                self.restore_blob(ns, &digest, blobs)?;
            }
        }
        Ok(())
    }

    fn rebuild_image(
        &self,
        ns: &str,
        target: &Descriptor,
        blobs: &BTreeMap<Digest, u64>,
    ) -> Result<()> {
        let mut open = vec![target.clone()];
        let mut seen = BTreeSet::new();
        while let Some(descriptor) = open.pop() {
            if !seen.insert(descriptor.digest.clone())
                || !self.restore_blob(ns, &descriptor.digest, blobs)?
            {
                continue;
            }
            let kind = &descriptor.media_type;
            if media_type::is_index(kind) || media_type::is_manifest(kind) {
                let document = self.document(ns, &descriptor)?;
                open.extend(document.children().into_iter().cloned());
            }
        }
        self.label_tree(ns, target)?;
        // Any of an index may have been unpacked, not this machine's alone; also one that lost content since.
        for of in self.platforms_of(ns, target)? {
            match self.resolve_image(ns, &of.manifest, None) {
                Ok(image) => self.label_snapshot(ns, &image)?,
                Err(error) if error.is_not_found() => {}
                // What is no image was never unpacked.
                Err(Error::Api(error)) if error.kind == types::ErrorKind::InvalidArgument => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes a blob visible in a namespace, if its file is there.
    fn restore_blob(
        &self,
        ns: &str,
        digest: &Digest,
        blobs: &BTreeMap<Digest, u64>,
    ) -> Result<bool> {
        let Some(size) = blobs.get(digest) else { return Ok(false) };
        if !self.has_content(ns, digest)? {
            let record = ContentRecord::new(*size, Labels::new());
            self.db.write(Durable::Soon, |tx| {
                tx.put(Table::Content, ns, &digest.to_string(), &record)
            })?;
        }
        Ok(true)
    }

    /// What of a record cannot be read as one goes to `ROOT/damaged`, with all of its snapshot: this may be
    /// the only copy of either.
    pub(crate) fn set_records_aside(&self, damaged: &[DamagedRecord]) -> Result<()> {
        for DamagedRecord { path, name, why } in damaged {
            tracing::error!(path = %path.display(), why, "a record is damaged; it is moved aside");
            if let Err(error) = self.keep_aside(path, name) {
                let error = store_api::Error::from(error);
                tracing::error!(path = %path.display(), error = %error, "it cannot be moved, and stays there");
                self.has_stuck_records.store(true, Ordering::Relaxed);
            }
        }
        if !damaged.is_empty() {
            tracing::error!(
                records = damaged.len(),
                directory = %self.root.join(DAMAGED).display(),
                "records are damaged; they were kept, and `gantry containerd fsck` lists them"
            );
        }
        Ok(())
    }

    /// Every blob with its size; damaged ones are removed, ones that the disk does not give are moved aside.
    /// `fsck` removes none.
    ///
    /// # Errors
    /// When one cannot be read for another reason than its own bytes.
    fn verified_blobs(&self) -> Result<BTreeMap<Digest, u64>> {
        let mut blobs = self.blob_files()?;
        let mut bad = Vec::new();
        for digest in blobs.keys() {
            let path = self.blob_path(digest);
            let found = faults::read("rebuild.blob")
                .and_then(|()| open_regular(&path))
                .and_then(|file| digest_of_file(digest.algorithm(), file));
            match found.map_err(Error::io(
                "not taken for lost, see to the disk and start again: read",
                &path,
            )) {
                Ok(found) if found == *digest => continue,
                Ok(_) if self.purpose != Purpose::Serve => {}
                Ok(_) => {
                    tracing::warn!(digest = %digest, "a damaged blob is removed");
                    faults::write("rebuild.damaged")
                        .and_then(|()| std::fs::remove_file(&path))
                        .map_err(Error::io("remove blob", &path))?;
                }
                Err(error) if self.purpose == Purpose::Check => {
                    let error = store_api::Error::from(error);
                    tracing::warn!(digest = %digest, error = %error, "a blob cannot be read");
                }
                // One bad sector must not keep all other images away.
                Err(error) if error.is_bad_medium() => {
                    let error = store_api::Error::from(error);
                    tracing::error!(digest = %digest, error = %error, "a blob cannot be read; it is moved aside");
                    self.move_aside(digest)?;
                }
                Err(error) => return Err(error),
            }
            bad.push(digest.clone());
        }
        for digest in bad {
            blobs.remove(&digest);
        }
        Ok(blobs)
    }

    /// The sizes of all blobs.
    pub(crate) fn blob_files(&self) -> Result<BTreeMap<Digest, u64>> {
        Ok(self.blob_entries()?.0)
    }

    /// The sizes of all blobs, and what lies in the place of others that is no regular file.
    pub(crate) fn blob_entries(&self) -> Result<(BTreeMap<Digest, u64>, Displaced)> {
        let (mut blobs, mut others) = (BTreeMap::new(), BTreeMap::new());
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            // A directory that is gone has no blobs.
            let directory = self.root.join("content/blobs").join(algorithm.name());
            for entry in found::entries(&directory)? {
                let name = entry.file_name().to_string_lossy().into_owned();
                let digest = format!("{}:{name}", algorithm.name()).parse::<Digest>();
                let Ok(digest) = digest else { continue };
                let Some(metadata) = found::metadata(&entry.path())? else { continue };
                if metadata.is_file() {
                    blobs.insert(digest, metadata.len());
                } else {
                    others.insert(digest, kind_of(metadata.file_type()));
                }
            }
        }
        Ok((blobs, others))
    }

    /// A record whose blob is gone or cut short (the power went before it was synced) goes; a blob
    /// without a record goes too, unless the records were just rebuilt: what those miss stays until the
    /// next start.
    pub(crate) fn reconcile_content(&self, opened: Opened) -> Result<()> {
        let (mut files, others) = self.blob_entries()?;
        for (digest, kind) in others {
            let _blobs = lock(&self.blobs);
            tracing::warn!(digest = %digest, "{kind} in a blob's place is moved aside");
            if let Err(error) = self.move_aside(&digest) {
                let error = store_api::Error::from(error);
                tracing::warn!(digest = %digest, error = %error, "it stays there");
            }
        }
        let mut used = BTreeSet::new();
        let _blobs = lock(&self.blobs);
        for ns in self.namespaces() {
            let records = self.db.list::<ContentRecord>(Table::Content, &ns)?;
            self.db.write(Durable::Soon, |tx| {
                for (name, record) in &records {
                    let Ok(digest) = name.parse::<Digest>() else { continue };
                    if files.get(&digest) == Some(&record.size) {
                        used.insert(digest);
                    } else {
                        tracing::warn!(namespace = ns, digest = name, "content was lost");
                        tx.delete(Table::Content, &ns, name);
                    }
                }
                Ok(())
            })?;
        }
        if opened == Opened::Created || self.has_records_aside()? {
            return Ok(());
        }
        files.retain(|digest, _| !used.contains(digest));
        for digest in files.keys() {
            let path = self.blob_path(digest);
            faults::write("open.stray-blob")
                .and_then(|()| std::fs::remove_file(&path))
                .map_err(Error::io("remove blob", path))?;
        }
        Ok(())
    }
}
