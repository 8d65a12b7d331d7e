//! What is on the disk, where it depends on it what counts as lost: only what is certainly not there does.

use std::{
    fs::{DirEntry, Metadata},
    io::{self, ErrorKind, Read as _},
    path::Path,
};

use crate::{
    content::open_regular,
    error::{Error, Result},
};

/// All that is in a directory; nothing, if there is no such directory.
///
/// # Errors
/// When it cannot be told, in whole or in part.
pub(crate) fn entries(directory: &Path) -> Result<Vec<DirEntry>> {
    let listed = faults::read("found.list").and_then(|()| std::fs::read_dir(directory)).and_then(
        |entries| {
            entries
                .map(|entry| faults::read("found.entry").and(entry))
                .collect::<io::Result<Vec<_>>>()
        },
    );
    known(listed, "not taken for lost, see to the disk and try again: list", directory)
        .map(Option::unwrap_or_default)
}

/// Of what is at a path itself; `None`, if nothing is.
///
/// # Errors
/// When it cannot be told.
pub(crate) fn metadata(path: &Path) -> Result<Option<Metadata>> {
    let found = faults::read("found.stat").and_then(|()| std::fs::symlink_metadata(path));
    known(found, "not taken for lost, see to the disk and try again: stat", path)
}

/// The bytes of a regular file; `None`, if it is not there. Nothing else is waited for.
///
/// # Errors
/// When they cannot be told.
pub(crate) fn content(path: &Path) -> Result<Option<Vec<u8>>> {
    let read = || {
        let mut bytes = Vec::new();
        open_regular(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let found = faults::read("found.read").and_then(|()| read());
    known(found, "not taken for lost, see to the disk and try again: read", path)
}

fn known<T>(found: io::Result<T>, op: &'static str, path: &Path) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(Error::io(op, path)(error)),
    }
}
