//! Which layer a snapshot is made of, by its name and its parent's: chain ids (image-spec, config.md).

use std::path::{Path, PathBuf};

use types::Digest;

use super::{Kind, SnapshotRecord};
use crate::{
    Core,
    db::Table,
    diffs::UNCOMPRESSED,
    error::{Error, Result},
};

impl Core {
    /// The blob that is all the difference between two sets of directories, topmost first: an image's
    /// extracted or copied layer and its parent. `None`: they are none, or the blob is gone.
    pub(crate) fn layer_between(
        &self,
        ns: &str,
        below: &[PathBuf],
        above: &[PathBuf],
    ) -> Result<Option<Digest>> {
        let Some(id) = above.first().map(|top| self.disk.id_of(top)).transpose()?.flatten() else {
            return Ok(None);
        };
        let all = self.db.list::<SnapshotRecord>(Table::Snapshots, ns)?;
        let Some((name, record)) = all.into_iter().find(|(_, record)| record.id == id) else {
            return Ok(None);
        };
        if record.kind != Kind::Committed || name.parse::<Digest>().is_err() {
            return Ok(None);
        }
        let lies_below = match (&record.parent, below.first()) {
            (None, None) => true,
            (Some(parent), Some(below)) => self.is_root_of(ns, parent, below)?,
            _ => false,
        };
        if !lies_below {
            return Ok(None);
        }
        for info in self.content_list(ns, &[])? {
            let Some(diff_id) = info.labels.get(UNCOMPRESSED) else { continue };
            let chain_id = match &record.parent {
                None => diff_id.clone(),
                Some(parent) => Digest::sha256(format!("{parent} {diff_id}")).to_string(),
            };
            if chain_id == name {
                return Ok(Some(info.digest));
            }
        }
        Ok(None)
    }

    /// Is this what a snapshot shows, as the topmost of its directories?
    fn is_root_of(&self, ns: &str, key: &str, path: &Path) -> Result<bool> {
        let record = self.snapshot_record(ns, key)?;
        let found = match record.packed {
            Some(_) => self.disk.packed.id_of(path),
            None => self.disk.id_of(path)?,
        };
        Ok(found == Some(record.id))
    }
}

impl super::Disk {
    /// The snapshot whose directory a path without links is.
    fn id_of(&self, path: &Path) -> Result<Option<u64>> {
        let number = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let Some(id) = number.and_then(|number| number.parse().ok()) else { return Ok(None) };
        let own = self.fs(id);
        match own.canonicalize() {
            Ok(own) => Ok((own == path).then_some(id)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("resolve", own)(error)),
        }
    }
}
