use std::{
    fs::File,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use redb::{DatabaseError, StorageError};

use super::{DamagedRecord, Db, Mismatch, Opened, Table};
use crate::error::{Error, Result};

/// Bytes of redb's page cache: the daemon's memory budget is small, the kernel caches too.
const CACHE_BYTES: usize = 2 << 20;
/// How the name of a damaged database begins that was moved aside; the time follows, in seconds since 1970.
pub(crate) const DAMAGED: &str = "meta.damaged-";
/// Lies beside the database from before it is made until all records are in it.
const MARKER: &str = "meta.rebuilding";

/// Opens `ROOT/meta.db`. A damaged one is moved aside; one that merely cannot be opened now is an error,
/// since nothing is wrong with it.
pub(super) fn open(root: &Path) -> Result<(redb::Database, Opened)> {
    let path = root.join("meta.db");
    let marker = root.join(MARKER);
    let bytes = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(Error::io("stat the database", path)(error)),
    };
    if bytes == 0 {
        mark(root, &marker)?;
        faults::pass("db.marked");
        return Ok((create(&path).map_err(Error::db("create"))?, Opened::Created));
    }
    match create(&path) {
        Ok(main) if is_rebuilding(root) => Ok((main, Opened::Created)),
        Ok(main) => Ok((main, Opened::Existing)),
        // The power went while it was made: there is nothing in it to be looked at.
        Err(error) if is_damage(&error) && is_rebuilding(root) => {
            std::fs::remove_file(&path)
                .map_err(Error::io("remove the unfinished database", &path))?;
            Ok((create(&path).map_err(Error::db("create"))?, Opened::Created))
        }
        Err(error) if is_damage(&error) => {
            mark(root, &marker)?;
            let aside = move_aside(&path)?;
            faults::pass("db.moved-aside");
            tracing::error!(
                error = %error,
                moved_to = %aside.display(),
                "the metadata database is damaged; it is rebuilt from the records beside it"
            );
            Ok((create(&path).map_err(Error::db("create"))?, Opened::Created))
        }
        Err(error @ DatabaseError::DatabaseAlreadyOpen) => {
            Err(Error::db("open: another daemon uses it: lock")(error))
        }
        Err(error) => Err(Error::db("open")(error)),
    }
}

impl Db {
    /// Removes record files that have no record, and what was to become one. Answers those that are damaged
    /// and stay.
    pub(crate) fn remove_strays(&self) -> Result<Vec<DamagedRecord>> {
        let mut damaged = Vec::new();
        for table in Table::ALL {
            let keys: Vec<String> = self.list_raw(table, "")?.into_keys().collect();
            damaged.extend(self.records.remove_others(table, &keys)?);
        }
        Ok(damaged)
    }

    /// Writes the files of records anew that say something else than the database: they are written in
    /// front of it, and after the host's start the power may have gone in between.
    pub(crate) fn correct_files(&self) -> Result<()> {
        if !self.after_boot {
            return Ok(());
        }
        for mismatch in self.mismatches()? {
            if let Mismatch::Differs { table, key, path, why } = mismatch {
                tracing::info!(path = %path.display(), why, "a record's file is written anew");
                self.rewrite_file(table, &key)?;
            }
        }
        Ok(())
    }
}

/// All records are in the database, and durably so.
pub(crate) fn finish_rebuild(root: &Path) -> Result<()> {
    let marker = root.join(MARKER);
    match faults::write("db.unmark").and_then(|()| std::fs::remove_file(&marker)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", marker)(error)),
        Ok(()) => sync(root),
    }
}

fn mark(root: &Path, marker: &Path) -> Result<()> {
    faults::write("db.mark")
        .and_then(|()| File::create(marker))
        .and_then(|file| file.sync_all())
        .map_err(Error::io("create", marker))?;
    sync(root)
}

fn sync(root: &Path) -> Result<()> {
    File::open(root).and_then(|file| file.sync_all()).map_err(Error::io("sync", root))
}

/// Do the bytes of the file say that it is no whole database? redb says so of a bad header by an error
/// of this kind too.
pub(super) fn is_damage(error: &DatabaseError) -> bool {
    match error {
        DatabaseError::Storage(StorageError::Corrupted(_)) => true,
        DatabaseError::Storage(StorageError::Io(error)) => {
            matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

pub(super) fn create(path: &Path) -> std::result::Result<redb::Database, DatabaseError> {
    builder().create(path)
}

pub(super) fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// Did a rebuild not reach its end?
pub(super) fn is_rebuilding(root: &Path) -> bool {
    root.join(MARKER).exists()
}

/// Renames a damaged database so that it can be looked at; answers its new name.
fn move_aside(path: &Path) -> Result<PathBuf> {
    let now = store_api::Timestamp::now().seconds;
    let mut aside = path.with_file_name(format!("{DAMAGED}{now}"));
    let mut n = 0;
    while aside.exists() {
        n += 1;
        aside = path.with_file_name(format!("{DAMAGED}{now}-{n}"));
    }
    std::fs::rename(path, &aside).map_err(Error::io("move aside the damaged database", path))?;
    Ok(aside)
}
