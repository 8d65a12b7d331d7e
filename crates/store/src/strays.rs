//! What a killed store left half written beside whole records.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{
    Core,
    db::{Opened, Table},
    error::{Error, Result},
    found,
    snapshots::{Kind, SnapshotRecord},
};

impl Core {
    /// Removes, after records and directories were brought together: temporary files, the work
    /// directories of snapshots that were just being committed, short links to nothing, and record
    /// files without a record; others are corrected. None of it does harm, so that a failure is only told.
    pub(crate) fn remove_strays(&self, opened: Opened) {
        for (what, removed) in [
            ("snapshots", self.remove_stray_parts()),
            // Records that were just rebuilt may be fewer than their files.
            (
                "records",
                if opened == Opened::Created { Ok(()) } else { self.remove_stray_records() },
            ),
            (
                "files of records",
                if opened == Opened::Created { Ok(()) } else { self.db.correct_files() },
            ),
        ] {
            if let Err(error) = removed {
                let error = store_api::Error::from(error);
                tracing::warn!(error = %error, "what was half written of {what} stays behind");
            }
        }
    }

    fn remove_stray_records(&self) -> Result<()> {
        let damaged = self.db.remove_strays()?;
        self.set_records_aside(&damaged)
    }

    fn remove_stray_parts(&self) -> Result<()> {
        let mut used = BTreeSet::new();
        for ns in self.namespaces() {
            for (_, record) in self.db.list::<SnapshotRecord>(Table::Snapshots, &ns)? {
                let directory = self.disk.directory(record.id);
                for name in ["record.json.new", "index.new"] {
                    remove_file(&directory.join(name))?;
                }
                if record.kind == Kind::Committed && directory.join("work").exists() {
                    self.disk.finish(record.id)?;
                }
                used.insert(record.id.to_string());
            }
        }
        let links = self.root.join("l");
        for entry in found::entries(&links)? {
            if !used.contains(&*entry.file_name().to_string_lossy()) {
                remove_file(&entry.path())?;
            }
        }
        Ok(())
    }
}

pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
