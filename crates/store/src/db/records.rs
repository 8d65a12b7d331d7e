use std::{
    collections::BTreeSet,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use types::Digest;

use super::Table;
use crate::{
    content::kind_of,
    error::{Error, Result},
    found,
};

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

/// A record's file that says nothing that this version knows.
#[derive(Debug)]
pub(crate) struct DamagedRecord {
    /// What has to be kept: the file, or all of its snapshot.
    pub(crate) path: PathBuf,
    /// For where it is kept.
    pub(crate) name: String,
    pub(crate) why: String,
}

/// What is in the place of a record's file.
enum Found {
    Nothing,
    Record(RecordFile),
    /// Not even its first bytes: the power went before they were written.
    Unwritten,
    Damaged(String),
}

/// Of a snapshot, in its directory.
pub(crate) const RECORD: &str = "record.json";

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
        let (path, may_be_gone) = match place(table, value) {
            Place::None => return Ok(()),
            Place::Hashed => (self.hashed(table, key), false),
            Place::Snapshot(id) => (snapshot_file(&self.root, id), true),
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
        replace_file(&path, &text, may_be_gone)
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
    ///
    /// # Errors
    /// When that cannot be told.
    pub(super) fn paths(&self) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for table in Table::ALL {
            paths.extend(self.files_of(table)?.into_iter().filter(|path| is_json(path)));
        }
        for entry in found::entries(&self.root.join("snapshots"))? {
            let path = entry.path().join(RECORD);
            if found::metadata(&path)?.is_some() {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    fn files_of(&self, table: Table) -> Result<Vec<PathBuf>> {
        let entries = found::entries(&self.root.join("records").join(table.name()))?;
        Ok(entries.iter().map(std::fs::DirEntry::path).collect())
    }

    /// Makes every file below the root durable: records, layers and blobs in one call.
    pub(super) fn sync(&self) -> Result<()> {
        let root = std::fs::File::open(&self.root).map_err(Error::io("open", &self.root))?;
        faults::write("records.sync")
            .and_then(|()| Ok(rustix::fs::syncfs(&root)?))
            .map_err(Error::io("syncfs", &self.root))
    }

    /// All records, and the files that are none.
    ///
    /// # Errors
    /// When one cannot be read: the others alone would be a wrong state.
    pub(super) fn read_all(&self) -> Result<(Vec<RecordFile>, Vec<DamagedRecord>)> {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for table in Table::ALL {
            for path in self.files_of(table)?.into_iter().filter(|path| is_json(path)) {
                match look(&path)? {
                    Found::Record(record) => records.push(record),
                    Found::Damaged(why) => damaged.push(self.damaged(path, why)),
                    Found::Nothing | Found::Unwritten => {}
                }
            }
        }
        for entry in found::entries(&self.root.join("snapshots"))? {
            match look(&entry.path().join(RECORD))? {
                Found::Record(record) => records.push(record),
                Found::Damaged(why) => {
                    let name = format!("snapshot-{}", entry.file_name().display());
                    damaged.push(DamagedRecord { path: entry.path(), name, why });
                }
                Found::Nothing | Found::Unwritten => {}
            }
        }
        Ok((records, damaged))
    }

    fn damaged(&self, path: PathBuf, why: String) -> DamagedRecord {
        let inside = path.strip_prefix(self.root.join("records")).unwrap_or(&path);
        let name = inside.display().to_string().replace('/', "-");
        DamagedRecord { path, name, why }
    }

    /// Removes what lies among the record files of a table and is none of these keys'. What is damaged is
    /// left and answered: it may be the only copy of another record.
    ///
    /// # Errors
    /// When one cannot be read or removed.
    pub(super) fn remove_others(
        &self,
        table: Table,
        keys: &[String],
    ) -> Result<Vec<DamagedRecord>> {
        let wanted: BTreeSet<PathBuf> = keys.iter().map(|key| self.hashed(table, key)).collect();
        let mut damaged = Vec::new();
        for path in self.files_of(table)?.into_iter().filter(|path| !wanted.contains(path)) {
            match if is_json(&path) { look(&path)? } else { Found::Unwritten } {
                Found::Damaged(why) => damaged.push(self.damaged(path, why)),
                Found::Nothing | Found::Record(_) | Found::Unwritten => {
                    crate::strays::remove_file(&path)?;
                }
            }
        }
        Ok(damaged)
    }

    fn hashed(&self, table: Table, key: &str) -> PathBuf {
        let name = format!("{}.json", Digest::sha256(key).hex());
        self.root.join("records").join(table.name()).join(name)
    }
}

fn snapshot_file(root: &Path, id: u64) -> PathBuf {
    root.join("snapshots").join(id.to_string()).join(RECORD)
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

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// Is there something at the place of a record's file that is none?
///
/// # Errors
/// When it cannot be read.
pub(crate) fn is_damaged(path: &Path) -> Result<bool> {
    Ok(matches!(look(path)?, Found::Damaged(_)))
}

fn look(path: &Path) -> Result<Found> {
    if let Some(metadata) = found::metadata(path)?
        && !metadata.is_file()
    {
        return Ok(Found::Damaged(format!("it is {}", kind_of(metadata.file_type()))));
    }
    let Some(text) = found::content(path)? else { return Ok(Found::Nothing) };
    if text.iter().all(|byte| *byte == 0) {
        return Ok(Found::Unwritten);
    }
    Ok(match serde_json::from_slice::<RecordFile>(&text) {
        Ok(record) if Table::from_name(&record.table).is_some() => Found::Record(record),
        Ok(record) => Found::Damaged(format!("no table {:?} is known", record.table)),
        Err(error) => Found::Damaged(error.to_string()),
    })
}

/// Puts `text` at `path` by a rename. A snapshot may be gone already, and its directory with it; those of the
/// tables are made at start.
fn replace_file(path: &Path, text: &[u8], may_be_gone: bool) -> Result<()> {
    let temporary = path.with_extension("json.new");
    let is_gone = |error: &std::io::Error| {
        may_be_gone
            && error.kind() == std::io::ErrorKind::NotFound
            && path.parent().is_some_and(|directory| {
                std::fs::symlink_metadata(directory)
                    .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
            })
    };
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = match options.open(&temporary) {
        Err(error) if is_gone(&error) => return Ok(()),
        other => other.map_err(Error::io("create record", &temporary))?,
    };
    faults::write("record.write")
        .and_then(|()| file.write_all(text))
        .map_err(Error::io("write record", &temporary))?;
    match faults::write("record.rename").and_then(|()| std::fs::rename(&temporary, path)) {
        // It took the file with it to the trash.
        Err(error) if is_gone(&error) => Ok(()),
        other => other.map_err(Error::io("rename record", path)),
    }
}
