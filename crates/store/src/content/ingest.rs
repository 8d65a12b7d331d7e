use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use store_api::{IngestStatus, Labels, ResourceKind, Timestamp, WriteRequest};
use types::{Algorithm, Digest, Digester};

use super::{BUFFER_BYTES, ContentRecord};
use crate::{
    Core,
    db::lock,
    error::{Error, Result},
    filters::{Fields, Filters},
    found, labels,
};

/// An ingest that nobody touched for this long is garbage (containerd's rule).
const EXPIRES: Duration = Duration::from_secs(24 * 3600);
/// Beginning of the references of writes that nobody can go on with.
const ANONYMOUS: &str = "gantry-anonymous-";
/// What an ingest's directory holds: what it is, and the bytes.
const DESCRIPTION: &str = "ref.json";
const DATA: &str = "data";
/// Bytes of an ingest's reference.
const REFERENCE_BYTES: usize = 4096;

/// The unfinished writes: `ROOT/content/ingest/HASH/{ref.json,data}`, each describing itself, so that
/// a download goes on after a restart.
#[derive(Default)]
pub(crate) struct Ingests(Mutex<HashMap<Name, Arc<Mutex<Ingest>>>>);

/// Who opens an ingest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// The store itself, which keeps it by a pin while it works on it.
    Store,
    /// A client, of whom nobody knows whether it goes on.
    Client,
}

/// Namespace and reference.
type Name = (String, String);

#[derive(Clone, Serialize, Deserialize)]
struct Meta {
    namespace: String,
    reference: String,
    total: u64,
    expected: Option<Digest>,
    started: Timestamp,
}

struct Ingest {
    meta: Meta,
    directory: PathBuf,
    /// Open while the store itself writes, and during a client's write: unfinished writes hold no
    /// descriptors.
    file: Option<File>,
    offset: u64,
    /// `None`: what was written must be read again to be hashed.
    digester: Option<Digester>,
    /// The blob is there already, brought by another namespace.
    shared: bool,
    updated: Timestamp,
    finished: bool,
    /// Who opened it last in this run.
    by: Writer,
}

impl Fields for IngestStatus {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["ref"] => Some(self.reference.as_str().into()),
            _ => None,
        }
    }
}

impl Ingest {
    fn algorithm(&self) -> Algorithm {
        self.meta.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm)
    }

    fn data(&self) -> PathBuf {
        self.directory.join(DATA)
    }

    fn status(&self) -> IngestStatus {
        IngestStatus {
            reference: self.meta.reference.clone(),
            offset: self.offset,
            total: self.meta.total,
            expected: self.meta.expected.clone(),
            started_at: self.meta.started,
            updated_at: self.updated,
        }
    }

    /// The file, at the end of what was written.
    fn file(&mut self) -> Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let path = self.data();
                let mut file = options().open(&path).map_err(Error::io("open", &path))?;
                let end = if self.shared { 0 } else { self.offset };
                file.seek(SeekFrom::Start(end)).map_err(Error::io("seek", path))?;
                file
            }
        };
        Ok(self.file.insert(file))
    }

    fn seek(&mut self, offset: u64) -> Result<()> {
        if offset == self.offset {
            return Ok(());
        }
        if offset > self.offset || (self.shared && offset > 0) {
            return Err(Error::invalid(format!(
                "write to ingest {:?} at {offset}: its end is at {}",
                self.meta.reference, self.offset
            )));
        }
        let path = self.data();
        let file = self.file()?;
        faults::write("ingest.truncate")
            .and_then(|()| file.set_len(offset))
            .map_err(Error::io("truncate", path))?;
        // It is opened anew at the end.
        self.file = None;
        self.shared = false;
        self.offset = offset;
        self.digester = (offset == 0).then(|| Digester::new(self.algorithm()));
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.shared && !bytes.is_empty() {
            return Err(Error::invalid(format!(
                "write to ingest {:?}: its content is complete",
                self.meta.reference
            )));
        }
        let end = self.offset;
        let file = self.file()?;
        if let Err(error) = faults::write("ingest.write").and_then(|()| file.write_all(bytes)) {
            // What reached the file of a failed write is cut off again; if even that fails, the
            // content is hashed anew before it counts.
            let back = file.set_len(end);
            if back.and_then(|()| file.seek(SeekFrom::Start(end))).is_err() {
                self.digester = None;
            }
            return Err(Error::io("write", self.data())(error));
        }
        if let Some(digester) = &mut self.digester {
            digester.update(bytes);
        }
        self.offset += u64::try_from(bytes.len()).unwrap_or(0);
        self.updated = Timestamp::now();
        Ok(())
    }

    fn digest(&mut self) -> Result<Digest> {
        if let Some(digester) = &self.digester {
            return Ok(digester.clone().finish());
        }
        let path = self.data();
        let mut digester = Digester::new(self.algorithm());
        let mut file = super::open_regular(&path).map_err(Error::io("open", &path))?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match file.read(&mut buffer).map_err(Error::io("read", &path))? {
                0 => break,
                n => digester.update(&buffer[..n]),
            }
        }
        self.digester = Some(digester.clone());
        Ok(digester.finish())
    }
}

impl Core {
    /// Reads back the unfinished writes of an earlier run.
    pub(crate) fn load_ingests(&self) -> Result<()> {
        let entries = found::entries(&self.root.join("content/ingest"))?;
        let mut ingests = lock(&self.ingests.0);
        for entry in entries {
            let is_own = |meta: &Meta| {
                !meta.reference.starts_with(ANONYMOUS)
                    && entry.path() == self.ingest_directory(&meta.namespace, &meta.reference)
            };
            match load(&entry.path()) {
                Ok(Some(ingest)) if is_own(&ingest.meta) => {
                    let key = (ingest.meta.namespace.clone(), ingest.meta.reference.clone());
                    ingests.insert(key, Arc::new(Mutex::new(ingest)));
                }
                Ok(_) => remove_directory(&entry.path()),
                // Only a part of a download: no reason not to start.
                Err(error) => {
                    let error = store_api::Error::from(error);
                    tracing::warn!(path = %entry.path().display(), %error, "an unfinished write is left alone");
                }
            }
        }
        Ok(())
    }

    pub(crate) fn open_writer(
        &self,
        ns: &str,
        request: &WriteRequest,
        by: Writer,
    ) -> Result<IngestStatus> {
        if request.reference.is_empty() || request.reference.len() > REFERENCE_BYTES {
            return Err(Error::invalid(format!(
                "an ingest's reference has 1 to {REFERENCE_BYTES} bytes"
            )));
        }
        if let Some(expected) = &request.expected {
            // Protected first and looked at then: garbage collection cannot come between.
            self.guard.refresh(ns, ResourceKind::Content, &expected.to_string());
            if self.has_whole_content(ns, expected)? {
                return Err(Error::already_exists("content", expected));
            }
        }
        let ingest = self.ingest(ns, request)?;
        let mut ingest = lock(&ingest);
        if ingest.finished {
            // Committed or aborted while it was waited for, and no longer among them.
            drop(ingest);
            return self.open_writer(ns, request, by);
        }
        ingest.by = by;
        match (&ingest.meta.expected, &request.expected) {
            (Some(have), Some(want)) if have != want => {
                return Err(Error::precondition(format!(
                    "ingest {:?} expects {have}, not {want}",
                    request.reference
                )));
            }
            _ => {}
        }
        if let Some(expected) = &request.expected {
            let size = self.shareable(expected, request.total);
            if ingest.shared && size.is_none() {
                ingest.shared = false;
                ingest.offset = 0;
            }
            if let (0, Some(size)) = (ingest.offset, size) {
                ingest.shared = true;
                ingest.offset = size;
                ingest.meta.total = size;
            }
        }
        Ok(ingest.status())
    }

    /// What the caller gets nobody takes for unused while it has it.
    fn ingest(&self, ns: &str, request: &WriteRequest) -> Result<Arc<Mutex<Ingest>>> {
        self.ensure_namespace(ns)?;
        let key = (ns.to_string(), request.reference.clone());
        let mut ingests = lock(&self.ingests.0);
        if let Some(ingest) = ingests.get(&key) {
            return Ok(Arc::clone(ingest));
        }
        let meta = Meta {
            namespace: ns.into(),
            reference: request.reference.clone(),
            total: request.total,
            expected: request.expected.clone(),
            started: Timestamp::now(),
        };
        let ingest = create(self.ingest_directory(ns, &request.reference), meta)?;
        let ingest = Arc::new(Mutex::new(ingest));
        ingests.insert(key, Arc::clone(&ingest));
        Ok(ingest)
    }

    fn find_ingest(&self, ns: &str, reference: &str) -> Result<Arc<Mutex<Ingest>>> {
        lock(&self.ingests.0)
            .get(&(ns.to_string(), reference.to_string()))
            .cloned()
            .ok_or_else(|| Error::not_found("ingest", reference))
    }

    pub(crate) fn ingest_write(
        &self,
        ns: &str,
        reference: &str,
        offset: u64,
        bytes: &[u8],
    ) -> Result<u64> {
        let ingest = self.find_ingest(ns, reference)?;
        let mut ingest = lock_unfinished(&ingest)?;
        let written = ingest.seek(offset).and_then(|()| ingest.append(bytes));
        ingest.file = None;
        written.map(|()| ingest.offset)
    }

    /// The digest of what was written so far: a clone of the running hash, but for what an earlier run
    /// left, which is read once.
    pub(crate) fn ingest_digest(&self, ns: &str, reference: &str) -> Result<Digest> {
        let ingest = self.find_ingest(ns, reference)?;
        let mut ingest = lock_unfinished(&ingest)?;
        match &ingest.meta.expected {
            Some(digest) if ingest.shared => Ok(digest.clone()),
            _ => ingest.digest(),
        }
    }

    /// The file that an ingest writes, to be read.
    pub(crate) fn ingest_file(&self, ns: &str, reference: &str) -> Result<File> {
        let ingest = self.find_ingest(ns, reference)?;
        let ingest = lock_unfinished(&ingest)?;
        let path = ingest.data();
        super::open_regular(&path).map_err(Error::io("open", path))
    }

    pub(crate) fn ingest_commit(
        &self,
        ns: &str,
        reference: &str,
        size: u64,
        expected: Option<&Digest>,
        new: Labels,
    ) -> Result<Digest> {
        labels::validate(&new)?;
        let shared = self.find_ingest(ns, reference)?;
        let mut ingest = lock_unfinished(&shared)?;
        if size != 0 && size != ingest.offset {
            return Err(Error::data_loss(format!(
                "commit of ingest {reference:?}: {} bytes were written, {size} expected",
                ingest.offset
            )));
        }
        let wanted = expected.cloned().or_else(|| ingest.meta.expected.clone());
        let (digest, finished) = match (ingest.shared, &ingest.meta.expected) {
            (true, Some(digest)) => {
                match self.verify_blob(digest) {
                    Err(error) if error.is_not_found() => return Err(shared_is_gone(reference)),
                    other => other?,
                }
                (digest.clone(), None)
            }
            (true, None) => return Err(shared_is_gone(reference)),
            (false, _) => (ingest.digest()?, Some(ingest.data())),
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
            return Err(Error::data_loss(format!(
                "commit of ingest {reference:?}: content is {digest}, not {wanted} as expected"
            )));
        }
        let record = ContentRecord::new(ingest.offset, new);
        faults::pass("ingest.verified");
        let adopted = self.adopt_blob(ns, reference, &digest, finished.as_deref(), &record);
        if let (Err(_), Some(data)) = (&adopted, &finished)
            && std::fs::symlink_metadata(data).is_err_and(|e| e.kind() == ErrorKind::NotFound)
        {
            // It took another blob's place, and stays there: nothing is left to go on with.
            ingest.finished = true;
            self.drop_ingest(ns, reference, &ingest.directory);
        }
        let added = adopted?;
        faults::pass("ingest.adopted");
        ingest.finished = true;
        self.drop_ingest(ns, reference, &ingest.directory);
        if added { Ok(digest) } else { Err(Error::already_exists("content", &digest)) }
    }

    pub(crate) fn ingest_abort(&self, ns: &str, reference: &str) -> Result<()> {
        let ingest = self.find_ingest(ns, reference)?;
        let mut ingest = lock_unfinished(&ingest)?;
        ingest.finished = true;
        self.drop_ingest(ns, reference, &ingest.directory);
        Ok(())
    }

    /// The caller holds the ingest's own lock. Once the map's is free, one of the same name may begin,
    /// in a directory of the same name.
    fn drop_ingest(&self, ns: &str, reference: &str, directory: &Path) {
        let mut ingests = lock(&self.ingests.0);
        ingests.remove(&(ns.to_string(), reference.to_string()));
        let aside = directory.with_extension(crate::random_name());
        match std::fs::rename(directory, &aside) {
            Ok(()) => {
                // Large data takes its time.
                drop(ingests);
                remove_directory(&aside);
            }
            Err(_) => remove_directory(directory),
        }
    }

    /// Where an ingest is. What has another name in there is being removed.
    fn ingest_directory(&self, ns: &str, reference: &str) -> PathBuf {
        let hash = Digest::sha256(format!("{ns}\0{reference}"));
        self.root.join("content/ingest").join(hash.hex())
    }

    pub(crate) fn ingests(&self, ns: &str, filters: &[String]) -> Result<Vec<IngestStatus>> {
        let filters = Filters::parse(filters)?;
        let all: Vec<_> = lock(&self.ingests.0)
            .iter()
            .filter(|((namespace, _), _)| namespace == ns)
            .map(|(_, ingest)| Arc::clone(ingest))
            .collect();
        let mut list: Vec<IngestStatus> = all.iter().map(|ingest| lock(ingest).status()).collect();
        list.retain(|status| filters.matches(status));
        list.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(list)
    }

    /// Drops ingests that nobody touched for a day and no lease holds.
    pub(crate) fn expire_ingests(&self, ns: &str, held: &dyn Fn(&str) -> bool) {
        let Ok(all) = self.ingests(ns, &[]) else { return };
        for status in all {
            let age = Timestamp::now().seconds - status.updated_at.seconds;
            let old = u64::try_from(age).is_ok_and(|age| age > EXPIRES.as_secs());
            if old && !held(&status.reference) && self.ingest_abort(ns, &status.reference).is_err()
            {
                // It was committed or aborted just now, which is what was wanted.
                tracing::debug!(reference = status.reference, "an expired ingest went by itself");
            }
        }
    }

    /// Bytes on disk of the unfinished writes that nobody works on: neither the store nor, since its
    /// start, a client, nor has a lease any of them. With `remove` they go.
    ///
    /// # Errors
    /// When leases cannot be read.
    pub(crate) fn unused_ingests(&self, remove: bool) -> Result<u64> {
        let mut bytes = 0;
        for ns in self.ingest_namespaces() {
            let leased = self.leased_ingests(&ns)?;
            // Whoever comes for one of them, pins it first and waits here then.
            let mut ingests = lock(&self.ingests.0);
            ingests.retain(|(of, reference), ingest| {
                let kept = *of != ns
                    || leased.contains(reference)
                    || self.guard.is_pinned(&ns, ResourceKind::Ingest, reference)
                    // Of those that work on it each has one.
                    || Arc::strong_count(ingest) > 1;
                if kept {
                    return true;
                }
                let ingest = lock(ingest);
                if ingest.by == Writer::Client {
                    return true;
                }
                let used = std::fs::symlink_metadata(ingest.data());
                let used = used.map_or(0, |metadata| metadata.blocks() * 512);
                if !remove {
                    bytes += used;
                    return true;
                }
                // In one step: another of this name may begin at once.
                match self.trash.put(&ingest.directory) {
                    Ok(()) => bytes += used,
                    Err(error) => {
                        let error = store_api::Error::from(error);
                        tracing::warn!(reference, error = %error, "an ingest stays behind");
                        return true;
                    }
                }
                false
            });
        }
        Ok(bytes)
    }

    /// Drops every unfinished write of a namespace that goes.
    pub(crate) fn drop_ingests(&self, ns: &str) {
        for status in self.ingests(ns, &[]).unwrap_or_default() {
            // An error says that it was committed or aborted just now.
            self.ingest_abort(ns, &status.reference).ok();
        }
    }

    /// Namespaces with unfinished writes.
    pub(crate) fn ingest_namespaces(&self) -> BTreeSet<String> {
        lock(&self.ingests.0).keys().map(|(ns, _)| ns.clone()).collect()
    }

    /// A write by the store itself, under a name of its own.
    pub(crate) fn ingest_anonymous(&self, ns: &str) -> Result<IngestWriter<'_>> {
        self.ingest_named(ns, &format!("{ANONYMOUS}{}", crate::random_name()))
    }

    /// A write of content with a known digest.
    pub(crate) fn ingest_anonymous_as(
        &self,
        ns: &str,
        digest: &Digest,
    ) -> Result<IngestWriter<'_>> {
        self.ingest_as(ns, &format!("{ANONYMOUS}{}", crate::random_name()), Some(digest.clone()))
    }

    /// The same under a given name; whatever an earlier run left there is overwritten.
    pub(crate) fn ingest_named(&self, ns: &str, reference: &str) -> Result<IngestWriter<'_>> {
        self.ingest_as(ns, reference, None)
    }

    fn ingest_as(
        &self,
        ns: &str,
        reference: &str,
        expected: Option<Digest>,
    ) -> Result<IngestWriter<'_>> {
        let request = WriteRequest { reference: reference.into(), total: 0, expected };
        let ingest = loop {
            let ingest = self.ingest(ns, &request)?;
            let mut found = lock(&ingest);
            // Committed or aborted while it was waited for, and no longer among them.
            if !found.finished {
                found.seek(0)?;
                drop(found);
                break ingest;
            }
        };
        Ok(IngestWriter { core: self, ns: ns.into(), reference: reference.into(), ingest })
    }
}

/// A write in progress by the store's own threads; dropped without a commit it is aborted.
pub(crate) struct IngestWriter<'a> {
    core: &'a Core,
    ns: String,
    reference: String,
    ingest: Arc<Mutex<Ingest>>,
}

impl IngestWriter<'_> {
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        lock(&self.ingest).append(bytes)
    }

    pub(crate) fn len(&self) -> u64 {
        lock(&self.ingest).offset
    }

    /// Content that the namespace has already is success.
    pub(crate) fn commit(self, expected: Option<&Digest>, labels: Labels) -> Result<Digest> {
        let digest = lock(&self.ingest).digest()?;
        let outcome =
            self.core.ingest_commit(&self.ns, &self.reference, 0, expected, labels.clone());
        match outcome {
            Err(error) if error.is_already_exists() => {
                self.core.content_add_labels(&self.ns, &digest, &labels)?;
                Ok(digest)
            }
            other => other,
        }
    }
}

impl Write for IngestWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match lock(&self.ingest).append(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(Error::Io { source, .. }) => Err(source),
            Err(error) => Err(std::io::Error::other(error.to_string())),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for IngestWriter<'_> {
    fn drop(&mut self) {
        let mut ingest = lock(&self.ingest);
        if !ingest.finished {
            ingest.finished = true;
            self.core.drop_ingest(&self.ns, &self.reference, &ingest.directory);
        }
    }
}

pub(super) fn shared_is_gone(reference: &str) -> Error {
    Error::precondition(format!(
        "commit of ingest {reference:?}: the shared content is gone; write it anew"
    ))
}

/// Locks an ingest that was looked up: it may have been committed or aborted since.
fn lock_unfinished(ingest: &Mutex<Ingest>) -> Result<MutexGuard<'_, Ingest>> {
    let ingest = lock(ingest);
    match ingest.finished {
        true => Err(Error::not_found("ingest", &ingest.meta.reference)),
        false => Ok(ingest),
    }
}

/// Makes the directory of an ingest, or nothing.
fn create(directory: PathBuf, meta: Meta) -> Result<Ingest> {
    remove_directory(&directory);
    if let Err(error) = fill(&directory, &meta) {
        remove_directory(&directory);
        return Err(error);
    }
    let algorithm = meta.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
    Ok(Ingest {
        updated: meta.started,
        meta,
        directory,
        file: None,
        offset: 0,
        digester: Some(Digester::new(algorithm)),
        shared: false,
        finished: false,
        by: Writer::Store,
    })
}

fn fill(directory: &Path, meta: &Meta) -> Result<()> {
    faults::write("ingest.create")
        .and_then(|()| std::fs::DirBuilder::new().mode(0o700).create(directory))
        .map_err(Error::io("create ingest", directory))?;
    let text = serde_json::to_vec(meta).map_err(Error::json("encode ingest", &meta.reference))?;
    let path = directory.join(DESCRIPTION);
    faults::write("ingest.describe")
        .and_then(|()| std::fs::write(&path, text))
        .map_err(Error::io("write", path))?;
    let path = directory.join(DATA);
    faults::write("ingest.data")
        .and_then(|()| options().create_new(true).open(&path))
        .map_err(Error::io("create", path))?;
    Ok(())
}

/// `None`: it cannot be gone on with.
fn load(directory: &Path) -> Result<Option<Ingest>> {
    let text = found::content(&directory.join(DESCRIPTION))?;
    let meta = text.and_then(|text| serde_json::from_slice::<Meta>(&text).ok());
    let data = found::metadata(&directory.join(DATA))?.filter(|data| data.is_file());
    let (Some(meta), Some(data)) = (meta, data) else { return Ok(None) };
    let offset = data.len();
    let since = data.modified().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let Some(since) = since else { return Ok(None) };
    let Ok(seconds) = i64::try_from(since.as_secs()) else { return Ok(None) };
    let updated = Timestamp { seconds, nanos: since.subsec_nanos() };
    Ok(Some(Ingest {
        meta,
        directory: directory.into(),
        file: None,
        offset,
        digester: None,
        shared: false,
        updated,
        finished: false,
        by: Writer::Store,
    }))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Removes an ingest's directory; this needs no descriptor while only what belongs there is in it.
fn remove_directory(directory: &Path) {
    // Whatever cannot be removed is told of below.
    for name in [DATA, DESCRIPTION] {
        std::fs::remove_file(directory.join(name)).ok();
    }
    let removed = match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => std::fs::remove_dir_all(directory),
        other => other,
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %directory.display(), error = %error, "an ingest stays behind");
        }
        _ => {}
    }
}

/// Begins a write, or goes on with one; answers its offset.
#[cfg(test)]
pub(super) fn begin(core: &Core, ns: &str, reference: &str) -> u64 {
    let request = WriteRequest { reference: reference.into(), total: 0, expected: None };
    core.open_writer(ns, &request, Writer::Store).map_or(u64::MAX, |status| status.offset)
}

/// The instant of a write's end at which somebody else has already looked it up.
#[cfg(test)]
pub(super) fn end_in_the_map_alone(core: &Core, ns: &str, reference: &str) {
    if let Ok(ingest) = core.find_ingest(ns, reference) {
        lock(&ingest).finished = true;
    }
}
