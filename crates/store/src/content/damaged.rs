use std::{
    collections::BTreeSet,
    fs::File,
    io::{ErrorKind, Read as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::Mutex,
};

use rustix::{fs::RenameFlags, io::Errno};
use types::{Algorithm, Digest, Digester};

use super::{BUFFER_BYTES, open_regular};
use crate::{
    Core,
    db::lock,
    error::{Error, Result},
};

/// Copies of one blob in `ROOT/damaged` at most: each time it was damaged anew.
const COPIES: usize = 100;

/// Blobs whose bytes were found to be others than their digest says: they count as missing where
/// content comes in, so that it takes their place. At most one entry per blob; a restart forgets them
/// and finds them again.
#[derive(Default)]
pub(crate) struct Damaged(Mutex<BTreeSet<Digest>>);

impl Damaged {
    pub(super) fn repaired(&self, digest: &Digest) {
        lock(&self.0).remove(digest);
    }

    fn contains(&self, digest: &Digest) -> bool {
        lock(&self.0).contains(digest)
    }
}

impl Core {
    /// Remembers that a blob is damaged; answers the error that says so.
    pub(crate) fn is_damaged(&self, digest: &Digest) -> Error {
        lock(&self.damaged.0).insert(digest.clone());
        Error::data_loss(format!("content {digest} is damaged on disk"))
    }

    /// Does the namespace see the content, and is its blob whole as far as that can be told without
    /// reading it?
    pub(crate) fn has_whole_content(&self, ns: &str, digest: &Digest) -> Result<bool> {
        let record = match self.content_record(ns, digest) {
            Err(error) if error.is_not_found() => return Ok(false),
            other => other?,
        };
        Ok(self.shareable(digest, record.size).is_some())
    }

    /// The bytes of a blob that is there and not known to be damaged; `total` of 0: any.
    pub(super) fn shareable(&self, digest: &Digest, total: u64) -> Option<u64> {
        if self.damaged.contains(digest) {
            return None;
        }
        let metadata = std::fs::symlink_metadata(self.blob_path(digest)).ok()?;
        let size = metadata.is_file().then_some(metadata.len())?;
        (total == 0 || total == size).then_some(size)
    }

    /// Reads a blob, whoever sees it, and compares it with its digest.
    ///
    /// # Errors
    /// `DataLoss` when it is damaged, `NotFound` when it is not there.
    pub(crate) fn verify_blob(&self, digest: &Digest) -> Result<()> {
        if self.is_whole(digest)? { Ok(()) } else { Err(self.is_damaged(digest)) }
    }

    /// The same, only told: `false`, if its bytes are others.
    ///
    /// # Errors
    /// `NotFound` when it is not there.
    pub(crate) fn is_whole(&self, digest: &Digest) -> Result<bool> {
        let path = self.blob_path(digest);
        let found = faults::write("blob.verify")
            .and_then(|()| open_regular(&path))
            .and_then(|file| digest_of_file(digest.algorithm(), file));
        match found {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(Error::not_found("content", digest))
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => Ok(false),
            other => Ok(other.map_err(Error::io("read blob", &path))? == *digest),
        }
    }

    /// Moves what lies at a blob's path to `ROOT/damaged`, whatever it is. The caller holds the blobs'
    /// lock.
    pub(crate) fn move_aside(&self, digest: &Digest) -> Result<()> {
        let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
        self.keep_aside(&self.blob_path(digest), &name)
    }

    /// Moves what lies at a path to `ROOT/damaged`, durably and under this name, to which a number is added
    /// if it is taken. Nothing of it is read.
    ///
    /// # Errors
    /// When it cannot be moved, or so many copies are there already that somebody has to look at them.
    pub(crate) fn keep_aside(&self, path: &Path, name: &str) -> Result<()> {
        let directory = self.root.join(super::DAMAGED);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(Error::io("create", &directory))?;
        for n in 0..COPIES {
            let name = if n == 0 { name.to_string() } else { format!("{name}.{n}") };
            let (cwd, to) = (rustix::fs::CWD, directory.join(name));
            match rustix::fs::renameat_with(cwd, path, cwd, &to, RenameFlags::NOREPLACE) {
                Ok(()) => return self.db.sync_files(),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::sys("move aside", path)(errno)),
            }
        }
        Err(Error::precondition(format!(
            "{} has {COPIES} damaged copies of {name}: remove them",
            directory.display()
        )))
    }
}

/// The digest of all that a file has.
pub(crate) fn digest_of_file(algorithm: Algorithm, mut file: File) -> std::io::Result<Digest> {
    let mut digester = Digester::new(algorithm);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digester.finish()),
            n => digester.update(&buffer[..n]),
        }
    }
}
