use std::{
    collections::BTreeSet,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use types::Digest;

use super::Table;
use crate::error::{Error, Result};

/// The file of one record, which says itself what it is:
/// `ROOT/records/TABLE/HASH.json`, or `ROOT/snapshots/N/record.json`.
#[derive(Serialize, Deserialize)]
pub(crate) struct RecordFile {
    pub(crate) table: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// As it is in the database.
    pub(crate) value: serde_json::Value,
}

/// Where a record's file lies.
enum Place {
    /// No file: the record can be made anew from others, or nobody would miss it.
    None,
    Hashed,
    /// In the directory of this snapshot, with which it comes and goes.
    Snapshot(u64),
}

pub(super) struct Records {
    root: PathBuf,
}

impl Records {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Writes, replaces or (`None`) removes a record's file; durable only after [`Records::sync`].
    pub(super) fn write(&self, table: Table, key: &str, value: Option<&[u8]>) -> Result<()> {
        let Some((namespace, name)) = key.split_once('\0') else { return Ok(()) };
        let path = match place(table, value) {
            Place::None => return Ok(()),
            Place::Hashed => self.hashed(table, key),
            Place::Snapshot(id) => snapshot_file(&self.root, id),
        };
        let Some(value) = value else {
            return match faults::write("record.remove").and_then(|()| std::fs::remove_file(&path)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io("remove record", path)(error))
                }
                _ => Ok(()),
            };
        };
        let value = serde_json::from_slice(value).map_err(Error::json("decode record", name))?;
        let file = RecordFile {
            table: table.name().into(),
            namespace: namespace.into(),
            name: name.into(),
            value,
        };
        let text = serde_json::to_vec(&file).map_err(Error::json("encode record", name))?;
        replace_file(&path, &text)
    }

    /// Where the file of a record is, if it has one.
    pub(super) fn path(&self, table: Table, key: &str, value: &[u8]) -> Option<PathBuf> {
        match place(table, Some(value)) {
            Place::None => None,
            Place::Hashed => Some(self.hashed(table, key)),
            Place::Snapshot(id) => Some(snapshot_file(&self.root, id)),
        }
    }

    /// Every record file there is.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for table in Table::ALL {
            let all = entries(&self.root.join("records").join(table.name()));
            paths.extend(
                all.into_iter().filter(|path| path.extension().is_some_and(|e| e == "json")),
            );
        }
        let snapshots = entries(&self.root.join("snapshots"));
        let files = snapshots.into_iter().map(|path| path.join("record.json"));
        paths.extend(files.filter(|path| path.exists()));
        paths
    }

    /// Makes every file below the root durable: records, layers and blobs in one call.
    pub(super) fn sync(&self) -> Result<()> {
        let root = std::fs::File::open(&self.root).map_err(Error::io("open", &self.root))?;
        faults::write("records.sync")
            .and_then(|()| Ok(rustix::fs::syncfs(&root)?))
            .map_err(Error::io("syncfs", &self.root))
    }

    pub(super) fn read_all(&self) -> Vec<RecordFile> {
        let mut files = Vec::new();
        for table in Table::ALL {
            let directory = self.root.join("records").join(table.name());
            for entry in entries(&directory) {
                if entry.extension().is_some_and(|extension| extension == "json") {
                    files.extend(read_record(&entry));
                }
            }
        }
        for entry in entries(&self.root.join("snapshots")) {
            files.extend(read_record(&entry.join("record.json")));
        }
        files
    }

    /// Removes what lies among the record files of a table and is none of these keys'.
    pub(super) fn remove_others(&self, table: Table, keys: &[String]) -> Result<()> {
        let wanted: BTreeSet<PathBuf> = keys.iter().map(|key| self.hashed(table, key)).collect();
        let found = entries(&self.root.join("records").join(table.name()));
        for path in found.into_iter().filter(|path| !wanted.contains(path)) {
            crate::strays::remove_file(&path)?;
        }
        Ok(())
    }

    fn hashed(&self, table: Table, key: &str) -> PathBuf {
        let name = format!("{}.json", Digest::sha256(key).hex());
        self.root.join("records").join(table.name()).join(name)
    }
}

fn snapshot_file(root: &Path, id: u64) -> PathBuf {
    root.join("snapshots").join(id.to_string()).join("record.json")
}

/// Names that a user chose and what hangs on them; not what is found again by looking (blobs) or by
/// following those (their labels).
fn place(table: Table, value: Option<&[u8]>) -> Place {
    match table {
        Table::Namespaces | Table::Images | Table::Containers | Table::Leases => Place::Hashed,
        Table::Content | Table::Children => Place::None,
        Table::Snapshots => {
            #[derive(Deserialize)]
            struct Id {
                id: u64,
            }
            value
                .and_then(|value| serde_json::from_slice::<super::Versioned<Id>>(value).ok())
                .map_or(Place::None, |record| Place::Snapshot(record.r.id))
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect()
}

fn read_record(path: &Path) -> Option<RecordFile> {
    let text = std::fs::read(path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %error, "a record cannot be read");
            None
        }
    }
}

/// Puts `text` at `path` by a rename; the directory is made if it is missing.
fn replace_file(path: &Path, text: &[u8]) -> Result<()> {
    let temporary = path.with_extension("json.new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = match options.open(&temporary) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // A snapshot's directory may be gone already; those of the tables are made at start.
            return Ok(());
        }
        Err(error) => return Err(Error::io("create record", temporary)(error)),
    };
    faults::write("record.write")
        .and_then(|()| file.write_all(text))
        .map_err(Error::io("write record", &temporary))?;
    match faults::write("record.rename").and_then(|()| std::fs::rename(&temporary, path)) {
        // A snapshot that was removed meanwhile took its directory, and the file in it, to the trash.
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound
                && path.parent().is_some_and(|dir| !dir.exists()) =>
        {
            Ok(())
        }
        other => other.map_err(Error::io("rename record", path)),
    }
}
