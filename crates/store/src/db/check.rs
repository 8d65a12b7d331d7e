//! The records' files against the database.

use std::{collections::BTreeSet, path::PathBuf};

use redb::ReadableTable as _;

use super::{Db, Key, RecordFile, Table, lock, read};
use crate::error::{Error, Result};

/// A record and its file that do not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// The file is missing, cannot be read, or says something else than the database.
    Differs { table: Table, key: String, path: PathBuf, why: &'static str },
    /// A file of a record that the database does not have.
    Stray(PathBuf),
}

impl Db {
    /// Compares every durable record with its file. What only the journal has yet has none.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub(crate) fn mismatches(&self) -> Result<Vec<Mismatch>> {
        self.flush()?;
        // Between two flushes the files and the database on disk say the same.
        let _one = lock(&self.flushing);
        let mut found = Vec::new();
        let mut known = BTreeSet::new();
        // Of what cannot be flushed a flush that was interrupted may have written some.
        let pending: BTreeSet<Key> = {
            let overlay = read(&self.overlay);
            for ((table, key), pending) in &overlay.entries {
                let value = pending.value.as_deref();
                known.extend(value.and_then(|value| self.records.path(*table, key, value)));
            }
            overlay.entries.keys().cloned().collect()
        };
        for table in Table::ALL {
            for (key, value) in self.main_list(table)? {
                let Some(path) = self.records.path(table, &key, &value) else { continue };
                known.insert(path.clone());
                if pending.contains(&(table, key.clone())) {
                    continue;
                }
                let why = match std::fs::read(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => "it is missing",
                    Err(_) => "it cannot be read",
                    Ok(text) if says(&text, table, &key, &value) => continue,
                    Ok(_) => "it says something else than the database",
                };
                found.push(Mismatch::Differs { table, key, path, why });
            }
        }
        let strays = self.records.paths()?.into_iter().filter(|path| !known.contains(path));
        found.extend(strays.map(Mismatch::Stray));
        Ok(found)
    }

    /// Writes a record's file anew, as the database has it.
    ///
    /// # Errors
    /// When either cannot be read or written.
    pub(crate) fn rewrite_file(&self, table: Table, key: &str) -> Result<()> {
        let _one = lock(&self.flushing);
        let Some(value) = self.main_get(table, key)? else { return Ok(()) };
        self.records.write(table, key, Some(&value))?;
        self.records.sync()
    }

    fn main_list(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>> {
        let tx = self.main.begin_read()?;
        let open = match tx.open_table(table.definition()) {
            Ok(open) => open,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(Error::db("open table")(error)),
        };
        let mut list = Vec::new();
        for item in open.iter().map_err(Error::db("list"))? {
            let (key, value) = item.map_err(Error::db("list"))?;
            list.push((key.value().to_string(), value.value().to_vec()));
        }
        Ok(list)
    }
}

fn says(text: &[u8], table: Table, key: &str, value: &[u8]) -> bool {
    let file = serde_json::from_slice::<RecordFile>(text);
    let value = serde_json::from_slice::<serde_json::Value>(value);
    let (Ok(file), Ok(value)) = (file, value) else { return false };
    file.table == table.name()
        && key.split_once('\0') == Some((&file.namespace, &file.name))
        && file.value == value
}
