//! Blobs by digest: `ROOT/content/blobs/ALGORITHM/HEX`, one file for all namespaces; a record per
//! namespace makes it visible there.

mod damaged;
mod ingest;

use std::{
    borrow::Cow,
    fs::File,
    io::{ErrorKind, Read as _},
    os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::MutexGuard,
};

use bytes::Bytes;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use store_api::{ContentInfo, Event, Labels, ResourceKind, Timestamp};
use types::Digest;

pub(crate) use self::{
    damaged::{Damaged, digest_of_file},
    ingest::{Ingests, Writer},
};
use crate::{
    Core,
    db::{Durable, Table, lock},
    error::{Error, Result},
    filters::{Fields, Filters, label},
    labels,
};

/// Below the root: what was found damaged and may be the only copy of something.
pub(crate) const DAMAGED: &str = "damaged";
/// Bytes that one read answers at most: gRPC messages are bounded, and so is memory.
const READ_BYTES: usize = 4 << 20;
/// Bytes of a buffer for hashing and copying.
pub(crate) const BUFFER_BYTES: usize = 256 << 10;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContentRecord {
    pub(crate) size: u64,
    pub(crate) created: Timestamp,
    pub(crate) updated: Timestamp,
    #[serde(default)]
    pub(crate) labels: Labels,
}

impl ContentRecord {
    pub(crate) fn new(size: u64, labels: Labels) -> Self {
        let now = Timestamp::now();
        Self { size, created: now, updated: now, labels }
    }

    fn info(self, digest: Digest) -> ContentInfo {
        ContentInfo {
            digest,
            size: self.size,
            created_at: self.created,
            updated_at: self.updated,
            labels: self.labels,
        }
    }
}

impl Fields for ContentInfo {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["digest"] => Some(self.digest.to_string().into()),
            ["size"] => Some(self.size.to_string().into()),
            ["labels", rest @ ..] => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Core {
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("content/blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    pub(crate) fn content_record(&self, ns: &str, digest: &Digest) -> Result<ContentRecord> {
        self.db
            .get(Table::Content, ns, &digest.to_string())?
            .ok_or_else(|| Error::not_found("content", digest))
    }

    pub(crate) fn has_content(&self, ns: &str, digest: &Digest) -> Result<bool> {
        match self.content_record(ns, digest) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn content_info(&self, ns: &str, digest: &Digest) -> Result<ContentInfo> {
        Ok(self.content_record(ns, digest)?.info(digest.clone()))
    }

    pub(crate) fn content_list(&self, ns: &str, filters: &[String]) -> Result<Vec<ContentInfo>> {
        let filters = Filters::parse(filters)?;
        let mut list = Vec::new();
        for (name, record) in self.db.list::<ContentRecord>(Table::Content, ns)? {
            let Ok(digest) = name.parse::<Digest>() else { continue };
            let info = record.info(digest);
            if filters.matches(&info) {
                list.push(info);
            }
        }
        Ok(list)
    }

    pub(crate) fn content_update(
        &self,
        ns: &str,
        digest: &Digest,
        new: &Labels,
        keys: &[String],
    ) -> Result<ContentInfo> {
        labels::validate(new)?;
        let name = digest.to_string();
        self.db.write(Durable::Soon, |tx| {
            let mut record: ContentRecord = tx
                .get(Table::Content, ns, &name)?
                .ok_or_else(|| Error::not_found("content", digest))?;
            labels::merge(&mut record.labels, new, keys);
            record.updated = Timestamp::now();
            tx.put(Table::Content, ns, &name, &record)?;
            Ok(record.info(digest.clone()))
        })
    }

    /// Adds labels to what is there.
    pub(crate) fn content_add_labels(&self, ns: &str, digest: &Digest, new: &Labels) -> Result<()> {
        let present = self.content_record(ns, digest)?.labels;
        if new.iter().all(|(key, value)| present.get(key) == Some(value)) {
            return Ok(());
        }
        let keys: Vec<String> = new.keys().cloned().collect();
        self.content_update(ns, digest, new, &keys).map(drop)
    }

    pub(crate) fn content_delete(&self, ns: &str, digest: &Digest) -> Result<()> {
        let name = digest.to_string();
        let _blobs = lock(&self.blobs);
        self.db.write(Durable::Soon, |tx| {
            if tx.get::<ContentRecord>(Table::Content, ns, &name)?.is_none() {
                return Err(Error::not_found("content", digest));
            }
            tx.delete(Table::Content, ns, &name);
            Ok(())
        })?;
        self.guard.forget(ns, ResourceKind::Content, &name);
        self.before_unlinking()?;
        self.remove_unused_blob(digest)?;
        self.bus.publish(ns, Event::ContentDelete { digest: name });
        Ok(())
    }

    /// Removes the file if no namespace sees it any more; answers the bytes freed. The caller holds
    /// the blobs' lock.
    pub(crate) fn remove_unused_blob(&self, digest: &Digest) -> Result<u64> {
        let name = digest.to_string();
        for ns in self.namespaces() {
            if self.db.get::<ContentRecord>(Table::Content, &ns, &name)?.is_some() {
                return Ok(0);
            }
        }
        let path = self.blob_path(digest);
        let size = match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return self.move_aside(digest).map(|()| 0),
            found => found.map_or(0, |metadata| metadata.len()),
        };
        match faults::write("blob.remove").and_then(|()| std::fs::remove_file(&path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove blob", path)(error))
            }
            _ => Ok(size),
        }
    }

    /// Opens a blob that the namespace sees.
    pub(crate) fn open_blob(&self, ns: &str, digest: &Digest) -> Result<(File, u64)> {
        let record = self.content_record(ns, digest)?;
        let path = self.blob_path(digest);
        match open_regular(&path) {
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(self.is_damaged(digest)),
            other => Ok((other.map_err(Error::io("open blob", path))?, record.size)),
        }
    }

    pub(crate) fn read_at(
        &self,
        ns: &str,
        digest: &Digest,
        offset: u64,
        limit_bytes: usize,
    ) -> Result<Bytes> {
        let (file, size) = self.open_blob(ns, digest)?;
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut buffer = vec![0; left.min(limit_bytes).min(READ_BYTES)];
        file.read_exact_at(&mut buffer, offset)
            .map_err(Error::io("read blob", self.blob_path(digest)))?;
        Ok(buffer.into())
    }

    /// A whole small blob, verified against its digest: manifests and configurations.
    pub(crate) fn read_blob(
        &self,
        ns: &str,
        digest: &Digest,
        limit_bytes: usize,
    ) -> Result<Vec<u8>> {
        let (file, size) = self.open_blob(ns, digest)?;
        if usize::try_from(size).map_or(true, |size| size > limit_bytes) {
            return Err(Error::invalid(format!(
                "content {digest} has {size} bytes, more than the limit of {limit_bytes}"
            )));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(size)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read blob", self.blob_path(digest)))?;
        if digest_of(digest, &bytes) != *digest {
            return Err(self.is_damaged(digest));
        }
        Ok(bytes)
    }

    /// Stores bytes that are in memory; what is there already only gets its labels.
    pub(crate) fn put_blob(&self, ns: &str, bytes: &[u8], new: Labels) -> Result<Digest> {
        let digest = Digest::sha256(bytes);
        self.put_blob_as(ns, &digest, bytes, new)?;
        Ok(digest)
    }

    /// The same under a digest of any algorithm, which must be theirs.
    pub(crate) fn put_blob_as(
        &self,
        ns: &str,
        digest: &Digest,
        bytes: &[u8],
        new: Labels,
    ) -> Result<()> {
        // Protected first and looked at then: garbage collection cannot come between.
        self.guard.refresh(ns, ResourceKind::Content, &digest.to_string());
        if self.has_content(ns, digest)? && self.read_blob(ns, digest, bytes.len()).is_ok() {
            return self.content_add_labels(ns, digest, &new);
        }
        let mut writer = self.ingest_anonymous_as(ns, digest)?;
        writer.write_all(bytes)?;
        writer.commit(Some(digest), new).map(drop)
    }

    /// Moves a finished, verified file into place, also over what may be damaged there, and makes it
    /// visible. Without a file the blob of another namespace is made visible. `Ok(false)`: the
    /// namespace saw it already.
    fn adopt_blob(
        &self,
        ns: &str,
        reference: &str,
        digest: &Digest,
        finished: Option<&std::path::Path>,
        record: &ContentRecord,
    ) -> Result<bool> {
        let name = digest.to_string();
        self.ensure_namespace(ns)?;
        let path = self.blob_path(digest);
        let _blobs = self.lock_blobs_for(&path, finished)?;
        let takes_a_place = std::fs::symlink_metadata(&path).is_ok();
        match finished {
            Some(finished) => {
                if std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                    // No file can take a directory's place.
                    self.move_aside(digest)?;
                }
                let mode = std::fs::Permissions::from_mode(0o444);
                faults::write("blob.rename")
                    .and_then(|()| std::fs::set_permissions(finished, mode))
                    .and_then(|()| std::fs::rename(finished, &path))
                    .map_err(Error::io("commit blob", &path))?;
                faults::pass("blob.renamed");
                self.damaged.repaired(digest);
            }
            // Under the lock: its last namespace may have removed it since it was looked at.
            None if !path.exists() => return Err(ingest::shared_is_gone(reference)),
            None => {}
        }
        self.guard.refresh(ns, ResourceKind::Content, &name);
        let written = self.db.write(Durable::Soon, |tx| {
            let (from, to) = ((ResourceKind::Ingest, reference), (ResourceKind::Content, &*name));
            let leased = self.inherit_leases(tx, ns, from, to)?;
            let added = tx.get::<ContentRecord>(Table::Content, ns, &name)?.is_none();
            if added {
                tx.put(Table::Content, ns, &name, record)?;
            }
            Ok((added, leased))
        });
        if let (Err(_), Some(finished), false) = (&written, finished, takes_a_place) {
            // Nobody else's record leads there: the next try has its bytes again.
            put_back(&path, finished);
        }
        let (added, leased) = written?;
        if leased {
            self.guard.forget(ns, ResourceKind::Content, &name);
        }
        if added {
            self.bus.publish(ns, Event::ContentCreate { digest: name, size: record.size });
        }
        Ok(added)
    }

    /// Locks the blobs. Where `finished` will take the place of what is at `path`, which may be durable
    /// already, and durably a record's, it is durable itself then.
    fn lock_blobs_for(&self, path: &Path, finished: Option<&Path>) -> Result<MutexGuard<'_, ()>> {
        let mut unsynced = finished;
        loop {
            let blobs = lock(&self.blobs);
            // Looked at under the lock: somebody else may have brought the same just now.
            let Some(finished) = unsynced.take_if(|_| path.exists()) else { return Ok(blobs) };
            // The disk is not waited for with it.
            drop(blobs);
            faults::write("blob.sync")
                .and_then(|()| File::open(finished)?.sync_all())
                .map_err(Error::io("sync ingest", finished))?;
        }
    }
}

/// Makes a blob that got no record the data of its ingest again.
fn put_back(path: &Path, finished: &Path) {
    let mode = std::fs::Permissions::from_mode(0o600);
    let back = std::fs::set_permissions(path, mode).and_then(|()| std::fs::rename(path, finished));
    if let Err(error) = back {
        // The next write of this content takes it from there.
        tracing::debug!(path = %path.display(), error = %error, "a blob without a record stays");
    }
}

/// Opens a regular file to be read. Whatever else lies there is not waited for, as an open of a FIFO
/// would, and no link is followed.
///
/// # Errors
/// `InvalidData` when it is no regular file, and those of open(2).
pub(crate) fn open_regular(path: &Path) -> std::io::Result<File> {
    let refused = |is: &str| {
        std::io::Error::new(ErrorKind::InvalidData, format!("it is {is}, not a regular file"))
    };
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    match std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(file) => Err(refused(kind_of(file.metadata()?.file_type()))),
        // A link's (ELOOP), a socket's (ENXIO).
        Err(error) => match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.is_file() => Err(refused(kind_of(metadata.file_type()))),
            _ => Err(error),
        },
    }
}

pub(crate) fn kind_of(of: std::fs::FileType) -> &'static str {
    if of.is_dir() {
        "a directory"
    } else if of.is_symlink() {
        "a symbolic link"
    } else if of.is_fifo() {
        "a FIFO"
    } else if of.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// The digest of `bytes` by the algorithm of `like`.
pub(crate) fn digest_of(like: &Digest, bytes: &[u8]) -> Digest {
    let mut digester = types::Digester::new(like.algorithm());
    digester.update(bytes);
    digester.finish()
}

#[cfg(test)]
mod tests;
