//! The mending of what is not a blob from a registry.

use std::{collections::BTreeSet, fs, io::ErrorKind};

use store_api::Labels;
use types::Digest;

use super::{Fault, Origin, check::Sources};
use crate::{
    Core,
    content::BUFFER_BYTES,
    db::{Durable, Table, lock},
    error::{Error, Result},
    snapshots::{Damage, SnapshotRecord, child_key},
};

impl Core {
    pub(super) fn fsck_mend(
        &self,
        fault: &Fault,
        sources: &Sources,
        busy: &BTreeSet<(String, String)>,
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
            Fault::Child { ns, parent, child, there } => self.db.write(Durable::Soon, |tx| {
                let key = child_key(parent, child);
                if *there {
                    tx.delete(Table::Children, ns, &key);
                    return Ok(());
                }
                tx.put(Table::Children, ns, &key, &())
            }),
            Fault::Link(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(Error::io("remove", path)(error))
                }
                _ => Ok(()),
            },
            Fault::Blob(_) | Fault::Other => Ok(()),
        }
    }

    /// A directory must not be exchanged below those that have it mounted: overlay knows no such thing.
    fn refuse_busy(&self, ns: &str, key: &str, busy: &BTreeSet<(String, String)>) -> Result<()> {
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

    /// Copies a blob from a layer's tar that has the same digest, if there is one that is whole.
    pub(super) fn blob_from_tar(&self, digest: &Digest, origin: &Origin) -> Result<bool> {
        for ns in self.namespaces() {
            for (_, record) in self.db.list::<SnapshotRecord>(Table::Snapshots, &ns)? {
                let Some(tar) = self.disk.tar_of(&record, digest) else { continue };
                let owner = origin.namespaces.first().unwrap_or(&ns);
                if let Ok(mut file) = fs::File::open(&tar) {
                    let mut writer = self.ingest_anonymous_as(owner, digest)?;
                    let mut buffer = vec![0; BUFFER_BYTES];
                    loop {
                        match std::io::Read::read(&mut file, &mut buffer)
                            .map_err(Error::io("read", &tar))?
                        {
                            0 => break,
                            n => writer.write_all(&buffer[..n])?,
                        }
                    }
                    match writer.commit(Some(digest), Labels::new()) {
                        Ok(_) => return Ok(true),
                        Err(error) if error.is_already_exists() => return Ok(true),
                        // The tar is damaged too.
                        Err(_) => {}
                    }
                }
            }
        }
        Ok(false)
    }

    /// Moves a damaged blob to `ROOT/damaged`, so that nothing takes it for content and the next pull
    /// brings it. One that is whole, or not there, stays as it is.
    pub(super) fn set_aside(&self, digest: &Digest) -> Result<()> {
        match self.verify_blob(digest) {
            Ok(()) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(_) => {}
        }
        let directory = self.root.join("damaged");
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
        let _blobs = lock(&self.blobs);
        let path = self.blob_path(digest);
        match fs::rename(&path, directory.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("move aside", path)(error))
            }
            _ => Ok(()),
        }
    }
}
