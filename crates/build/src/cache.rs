//! The cache on disk: results by key, the inputs of each, and which step had which key last.
//!
//! ```text
//! ROOT/salt               random, for fingerprints of values that must not be kept
//! ROOT/records/KEY.json   inputs (redacted), result, use
//! ROOT/manifests/KEY      files that the step read
//! ROOT/slots/NAME         the key that this place in a Dockerfile had last
//! ROOT/states/DIGEST      empty: a stage has come to this image by an instruction without files
//! ROOT/hashes/NAME        contents of a local context's files by inode and times
//! ROOT/mounts/NAME/       cache mounts of RUN
//! ROOT/tmp/ID/            of builds that run now
//! ```
//! The layers themselves are the store's, held by one lease per record.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use store_api::{Descriptor, Timestamp};
use types::Digest;

use crate::{
    error::{Error, Result},
    files,
    key::{self, Inputs},
};

/// Bytes of one record that are read: inputs with a large environment.
const RECORD_BYTES: u64 = 16 << 20;

/// What a step made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) descriptor: Descriptor,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) key: String,
    pub(crate) inputs: Inputs,
    /// `None`: it changed nothing, as a WORKDIR that exists.
    pub(crate) layer: Option<Layer>,
    pub(crate) description: String,
    pub(crate) created: Timestamp,
    pub(crate) last_used: Timestamp,
    pub(crate) uses: u64,
    /// Of the compressed layer.
    pub(crate) bytes: u64,
    /// Only the inputs are left.
    #[serde(default)]
    pub(crate) pruned: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    salt: String,
    pub(crate) memory: key::Memory,
}

/// The places in a Dockerfile under which a step is remembered, best first.
#[derive(Clone, Debug)]
pub(crate) struct Slots(Vec<String>);

impl Slots {
    /// - the instruction after the same instructions on the same base;
    /// - the same instruction in this stage of this project, wherever it stands;
    /// - whatever stands at this position of this stage.
    pub(crate) fn new(lineage: &str, project: &str, stage: &str, index: usize, text: &str) -> Self {
        Self(vec![
            key::fingerprint(&["lineage", lineage]),
            key::fingerprint(&["text", project, stage, text]),
            key::fingerprint(&["place", project, stage, &index.to_string()]),
        ])
    }
}

impl Cache {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        for name in ["", "records", "manifests", "slots", "states", "hashes", "mounts", "tmp"] {
            let dir = root.join(name);
            files::private_dir(&dir).map_err(Error::io("create", dir))?;
        }
        let path = root.join("salt");
        let salt = match std::fs::read_to_string(&path) {
            Ok(salt) => salt,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let salt = files::random_hex(32);
                files::replace(&path, salt.as_bytes()).map_err(Error::io("write", path))?;
                salt
            }
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        Ok(Self { root: root.into(), salt, memory: key::Memory::default() })
    }

    pub(crate) fn salt(&self) -> &str {
        &self.salt
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn record_path(&self, key: &str) -> PathBuf {
        self.root.join("records").join(format!("{key}.json"))
    }

    /// A record, if it is there and readable.
    pub(crate) fn get(&self, key: &str) -> Option<Record> {
        let path = self.record_path(key);
        if std::fs::metadata(&path).ok()?.len() > RECORD_BYTES {
            return None;
        }
        let record: Record = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (record.key == key).then_some(record)
    }

    /// Writes a record with its manifest and makes it what its slots had last.
    pub(crate) fn put(&self, record: &Record, manifest: Option<&str>, slots: &Slots) -> Result<()> {
        if let Some(manifest) = manifest {
            let path = self.root.join("manifests").join(&record.key);
            files::replace(&path, manifest.as_bytes()).map_err(Error::io("write", path))?;
        }
        self.write(record)?;
        self.remember(&record.key, slots)
    }

    fn write(&self, record: &Record) -> Result<()> {
        let path = self.record_path(&record.key);
        let json = serde_json::to_vec(record)
            .map_err(|source| Error::Json(format!("record of step {}", record.key), source))?;
        files::replace(&path, &json).map_err(Error::io("write", path))
    }

    /// Counts a use.
    pub(crate) fn touch(&self, mut record: Record, slots: &Slots) -> Result<()> {
        record.uses += 1;
        record.last_used = Timestamp::now();
        self.write(&record)?;
        self.remember(&record.key, slots)
    }

    fn remember(&self, key: &str, slots: &Slots) -> Result<()> {
        for slot in &slots.0 {
            let path = self.root.join("slots").join(slot);
            let same = std::fs::read_to_string(&path).is_ok_and(|present| present == key);
            if !same {
                files::replace(&path, key.as_bytes()).map_err(Error::io("write", path))?;
            }
        }
        Ok(())
    }

    /// Has a stage come to this image before? It has from now on.
    pub(crate) fn reached(&self, state: &Digest) -> Result<bool> {
        let path = self.root.join("states").join(state.hex());
        match std::fs::File::create_new(&path) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
            Err(error) => Err(Error::io("write", path)(error)),
        }
    }

    /// Removes the files of one of its directories but for the newest.
    pub(crate) fn forget(&self, name: &str, keep: usize) -> Result<()> {
        let dir = self.root.join(name);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(Error::io("read directory", &dir))? {
            let entry = entry.map_err(Error::io("read directory", &dir))?;
            let made = entry.metadata().and_then(|metadata| metadata.modified());
            files.push((made.unwrap_or(std::time::UNIX_EPOCH), entry.path()));
        }
        files.sort();
        let surplus = files.len().saturating_sub(keep);
        for (_, path) in files.into_iter().take(surplus) {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The record that a step at this place had before, with its manifest.
    pub(crate) fn predecessor(&self, slots: &Slots) -> Option<(Record, Option<String>)> {
        slots.0.iter().find_map(|slot| {
            let key = std::fs::read_to_string(self.root.join("slots").join(slot)).ok()?;
            let record = self.get(key.trim())?;
            Some((record, self.manifest(key.trim())))
        })
    }

    fn manifest(&self, key: &str) -> Option<String> {
        // Keys come from file names of ours: hexadecimal digits.
        std::fs::read_to_string(self.root.join("manifests").join(key)).ok()
    }

    /// Forgets a result but keeps its inputs, which explain why the step runs again.
    pub(crate) fn forget_result(&self, mut record: Record) -> Result<()> {
        record.pruned = true;
        record.layer = None;
        self.write(&record)
    }

    pub(crate) fn remove(&self, key: &str) -> Result<()> {
        for path in [self.record_path(key), self.root.join("manifests").join(key)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn all(&self) -> Result<Vec<Record>> {
        let dir = self.root.join("records");
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(Error::io("read directory", &dir))? {
            let entry = entry.map_err(Error::io("read directory", &dir))?;
            let name = entry.file_name();
            let key = name.to_str().and_then(|name| name.strip_suffix(".json"));
            records.extend(key.and_then(|key| self.get(key)));
        }
        records.sort_by_key(|record| record.created);
        Ok(records)
    }
}
