//! Snapshots that are whole directories: each a copy of its parent, by which it is mounted with a bind
//! alone. They cost the disk what their contents are, and need nothing of the kernel.

use std::os::fd::OwnedFd;

use super::{Kind, open_directory, trees};
use crate::{Core, error::Result};

impl Core {
    /// Makes the directory of a snapshot that is a copy of what `parent` shows.
    pub(super) fn copy_of(&self, ns: &str, parent: &str) -> Result<u64> {
        let from = self.shown(ns, parent)?;
        let id = self.disk.create(Kind::Active, None)?;
        let copied = open_directory(&self.disk.fs(id)).and_then(|to| trees::copy(&from, &to));
        if let Err(error) = copied {
            self.disk.discard(id)?;
            return Err(error);
        }
        Ok(id)
    }

    /// The root of what a committed snapshot shows. One that stands on others must be mounted for that,
    /// where nobody else sees it.
    pub(crate) fn shown(&self, ns: &str, key: &str) -> Result<OwnedFd> {
        let record = self.committed(ns, key)?;
        if record.full || (record.packed.is_none() && record.parent.is_none()) {
            return open_directory(&self.disk.fs(record.id));
        }
        let mut chain = vec![key.to_string()];
        chain.extend(self.snapshot_parents(ns, key)?);
        let lowers = self.lowers_of(ns, &chain)?;
        self.mounted(&self.disk.mounts(record.id, Kind::View, &lowers, false)?)
    }
}
