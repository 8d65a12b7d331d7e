//! The mending of what is not a blob from a registry.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read as _},
    sync::atomic::Ordering,
};

use store_api::Labels;
use types::Digest;

use super::{
    Fault, Origin,
    check::{SnapshotName, Sources},
};
use crate::{
    Core,
    content::{BUFFER_BYTES, ContentRecord, open_regular},
    db::{self, Durable, Table, lock},
    error::{Error, Result},
    snapshots::{Damage, SnapshotRecord, child_key},
};

impl Core {
    pub(super) fn fsck_mend(
        &self,
        fault: &Fault,
        sources: &Sources,
        busy: &BTreeSet<SnapshotName>,
    ) -> Result<()> {
        match fault {
            Fault::Snapshot { ns, key, damage } => {
                let record = self.snapshot_record(ns, key)?;
                if matches!(damage, Damage::Directory(_)) {
                    self.refuse_busy(ns, key, busy)?;
                }
                let sources = self.sources_of(sources, ns, key, &record)?;
                self.mend_snapshot(ns, (key, &record), damage, &sources)
            }
            Fault::Record { table, key } => self.db.rewrite_file(*table, key),
            Fault::Child { ns, parent, child } => self.db.write(Durable::Soon, |tx| {
                let key = child_key(parent, child);
                let now = tx.get::<SnapshotRecord>(Table::Snapshots, ns, child)?;
                if now.is_some_and(|record| record.parent.as_deref() == Some(parent)) {
                    return tx.put(Table::Children, ns, &key, &());
                }
                tx.delete(Table::Children, ns, &key);
                Ok(())
            }),
            Fault::Link(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(Error::io("remove", path)(error))
                }
                _ => Ok(()),
            },
            Fault::Database => {
                self.db.flush()?;
                db::finish_rebuild(&self.root)?;
                self.rebuilt.store(false, Ordering::Relaxed);
                Ok(())
            }
            Fault::Blob(_) | Fault::Other => Ok(()),
        }
    }

    /// A directory must not be exchanged below those that have it mounted: overlay knows no such thing.
    fn refuse_busy(&self, ns: &str, key: &str, busy: &BTreeSet<SnapshotName>) -> Result<()> {
        for (_, user) in busy.iter().filter(|(of, _)| of == ns) {
            let stands =
                user == key || self.snapshot_parents(ns, user)?.iter().any(|parent| parent == key);
            if stands {
                return Err(Error::precondition(format!(
                    "snapshot \"{key}\" is in use by \"{user}\": stop that first"
                )));
            }
        }
        Ok(())
    }

    /// Makes do with what is here: the blob's own file, if it is whole and only records are wrong about
    /// it, or a layer's tar with the same digest. A file with other bytes counts as missing from now on.
    ///
    /// # Errors
    /// When the blob cannot be read for a reason that is not the disk's, and may be gone the next time.
    pub(super) fn blob_from_here(&self, digest: &Digest, origin: &Origin) -> Result<bool> {
        match self.verify_blob(digest) {
            Ok(()) => self.show_blob(digest, origin).map(|()| true),
            Err(error) if error.is_bad_medium() => {
                drop(self.is_damaged(digest));
                self.blob_from_tar(digest, origin)
            }
            Err(error) if error.is_not_found() || error.is_data_loss() => {
                self.blob_from_tar(digest, origin)
            }
            Err(error) => Err(error),
        }
    }

    /// Sees to it that all that should see a whole blob do, with its size.
    fn show_blob(&self, digest: &Digest, origin: &Origin) -> Result<()> {
        let _blobs = lock(&self.blobs);
        let path = self.blob_path(digest);
        let size = fs::metadata(&path).map_err(Error::io("stat blob", path))?.len();
        let name = digest.to_string();
        for ns in &origin.namespaces {
            self.db.write(Durable::Soon, |tx| {
                let record = match tx.get::<ContentRecord>(Table::Content, ns, &name)? {
                    Some(record) if record.size == size => return Ok(()),
                    Some(record) => ContentRecord { size, ..record },
                    None => ContentRecord::new(size, Labels::new()),
                };
                tx.put(Table::Content, ns, &name, &record)
            })?;
        }
        Ok(())
    }

    fn blob_from_tar(&self, digest: &Digest, origin: &Origin) -> Result<bool> {
        for ns in self.namespaces() {
            for (_, record) in self.db.list::<SnapshotRecord>(Table::Snapshots, &ns)? {
                let Some(tar) = self.disk.tar_of(&record, digest) else { continue };
                let mut file = match open_regular(&tar) {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    other => other.map_err(Error::io("open", &tar))?,
                };
                let owner = origin.namespaces.first().unwrap_or(&ns);
                let mut writer = self.ingest_anonymous_as(owner, digest)?;
                let mut buffer = vec![0; BUFFER_BYTES];
                loop {
                    match file.read(&mut buffer).map_err(Error::io("read", &tar))? {
                        0 => break,
                        n => writer.write_all(&buffer[..n])?,
                    }
                }
                match writer.commit(Some(digest), Labels::new()) {
                    // The tar is damaged too.
                    Err(error) if error.is_data_loss() => {}
                    Err(error) if !error.is_already_exists() => return Err(error),
                    _ => return self.show_blob(digest, origin).map(|()| true),
                }
            }
        }
        Ok(false)
    }

    /// Moves a blob with other bytes than its digest says to `ROOT/damaged`, so that nothing takes it for
    /// content and the next pull brings it. One that is whole, not there, or cannot be read stays.
    pub(super) fn set_aside(&self, digest: &Digest) -> Result<()> {
        // Nobody brings it meanwhile.
        let _blobs = lock(&self.blobs);
        if self.is_whole(digest).unwrap_or(true) {
            return Ok(());
        }
        self.move_aside(digest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A snapshot that went or came after the look is not put down wrongly.
    #[test]
    fn children_are_looked_at_again() {
        let directory = tempfile::tempdir().unwrap();
        let (root, state) = (directory.path().join("root"), directory.path().join("state"));
        let core = Core::open(&crate::Config::new(root, state)).unwrap();
        let active = crate::snapshots::Kind::Active;
        core.snapshot_prepare("ns", "one", None, active, Labels::new()).unwrap();
        core.snapshot_commit("ns", "parent", "one", Labels::new()).unwrap();
        let mend = |child: &str| {
            let fault =
                Fault::Child { ns: "ns".into(), parent: "parent".into(), child: child.into() };
            core.fsck_mend(&fault, &Sources::new(), &BTreeSet::new()).unwrap();
            core.db.names(Table::Children, "ns", "").unwrap()
        };
        assert_eq!(mend("gone"), Vec::<String>::new());
        core.snapshot_prepare("ns", "child", Some("parent"), active, Labels::new()).unwrap();
        assert_eq!(mend("child"), ["parent\0child"]);
        let lost = |tx: &mut crate::db::Tx<'_>| {
            tx.delete(Table::Children, "ns", "parent\0child");
            tx.put(Table::Children, "ns", "parent\0no", &())
        };
        core.db.write(Durable::Soon, lost).unwrap();
        assert_eq!(mend("child"), ["parent\0child", "parent\0no"]);
        assert_eq!(mend("no"), ["parent\0child"]);
    }
}
