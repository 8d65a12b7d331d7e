//! The metadata: one redb database on disk, and above it, in memory, what has changed since.
//!
//! Every write goes into the overlay and into a journal in the state directory (tmpfs): it survives
//! the daemon's death at once and without any fsync. A flush carries the overlay into redb with one
//! durable commit, after the files that the records speak of were synced; many writes share a flush.
//! Ephemeral records (`run --rm`) are never flushed: they live and die with the host's state.
//!
//! Beside the database lies a self-describing file for each record whose loss a user would notice;
//! a database that is lost or damaged is rebuilt from them (`rebuild.rs`).

mod check;
mod frozen;
mod journal;
mod main_file;
mod opening;
mod records;
#[cfg(test)]
mod tests;
mod undo;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redb::TableDefinition;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::journal::Journal;
pub(crate) use self::{
    check::Mismatch,
    opening::{DAMAGED, finish_rebuild},
    records::{DamagedRecord, RECORD, RecordFile, is_damaged},
};
use crate::error::{Error, Result};

/// How long a write that nobody waits for may stay without a durable commit.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// The format of every record's value.
const RECORD_VERSION: u32 = 1;

/// The tables. Keys are `NAMESPACE\0NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    Namespaces,
    Images,
    Containers,
    Content,
    Snapshots,
    /// Index `NAMESPACE\0PARENT\0CHILD` of snapshots.
    Children,
    Leases,
}

impl Table {
    pub(crate) const ALL: [Self; 7] = [
        Self::Namespaces,
        Self::Images,
        Self::Containers,
        Self::Content,
        Self::Snapshots,
        Self::Children,
        Self::Leases,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Images => "images",
            Self::Containers => "containers",
            Self::Content => "content",
            Self::Snapshots => "snapshots",
            Self::Children => "children",
            Self::Leases => "leases",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

/// What a write promises by the time it returns. Each survives the daemon's death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// Survives a power cut.
    Now,
    /// Survives a power cut a second later, or with the next [`Durable::Now`].
    Soon,
    /// Ends with the host's state directory.
    Ephemeral,
}

type Key = (Table, String);

#[derive(Clone, Debug)]
struct Pending {
    /// `None`: deleted.
    value: Option<Arc<[u8]>>,
    ephemeral: bool,
    sequence: u64,
}

#[derive(Default)]
struct Overlay {
    entries: BTreeMap<Key, Pending>,
    sequence: u64,
    /// What has a number up to this and is not ephemeral is on the disk, or something newer is.
    committed: u64,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u32,
    r: T,
}

#[derive(Default)]
struct FlusherState {
    dirty: bool,
    stop: bool,
}

pub(crate) struct Db {
    main: main_file::MainFile,
    overlay: RwLock<Overlay>,
    /// Held for the whole of a write: there is one writer. `None`: nothing is written but to memory.
    writer: Mutex<Option<Journal>>,
    frozen: bool,
    /// The host may have lost its power since the database was open.
    after_boot: bool,
    flushing: Mutex<()>,
    /// Writes that may still be taken back.
    promised: Mutex<undo::Before>,
    flusher: Mutex<FlusherState>,
    wake: Condvar,
    records: records::Records,
    /// Files have changed that have to be durable before what the next flush commits.
    files_first: AtomicBool,
    /// No fsync at all, for tests that only look at behaviour.
    unsynced: AtomicBool,
}

/// Was the database there, and whole?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    Existing,
    /// New, moved aside and made anew, or left by a rebuild that did not reach its end.
    Created,
}

impl Db {
    /// Opens `ROOT/meta.db`, moving a damaged one aside, and replays `STATE/journal`.
    pub(crate) fn open(root: &Path, state: &Path) -> Result<(Self, Opened)> {
        let (main, opened) = opening::open(root)?;
        let (journal, changes) = Journal::open(state.join("journal"))?;
        Ok((Self::new(root, main, Some(journal), changes), opened))
    }

    /// Opens both for a look that changes neither: what is written stays in memory, and is lost.
    ///
    /// # Errors
    /// When another process has the database open, or something cannot be read.
    pub(crate) fn open_frozen(root: &Path, state: &Path) -> Result<(Self, Opened)> {
        let (main, opened) = frozen::open(root)?;
        let changes = journal::look(&state.join("journal"))?;
        Ok((Self::new(root, main, None, changes), opened))
    }

    fn new(
        root: &Path,
        main: redb::Database,
        journal: Option<Journal>,
        changes: Vec<journal::Replayed>,
    ) -> Self {
        let mut overlay = Overlay::default();
        for change in changes {
            overlay.sequence += 1;
            if change.ephemeral && change.value.is_none() {
                overlay.entries.remove(&(change.table, change.key));
                continue;
            }
            let pending = Pending {
                value: change.value,
                ephemeral: change.ephemeral,
                sequence: overlay.sequence,
            };
            overlay.entries.insert((change.table, change.key), pending);
        }
        Self {
            main: main_file::MainFile::new(root.join("meta.db"), main),
            overlay: RwLock::new(overlay),
            frozen: journal.is_none(),
            after_boot: journal.as_ref().is_some_and(Journal::is_new),
            writer: Mutex::new(journal),
            flushing: Mutex::new(()),
            promised: Mutex::default(),
            flusher: Mutex::new(FlusherState::default()),
            wake: Condvar::new(),
            records: records::Records::new(root),
            files_first: AtomicBool::new(false),
            unsynced: AtomicBool::new(false),
        }
    }

    /// The record under `namespace` and `name`, whatever kind of write put it there.
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        table: Table,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>> {
        self.get_raw(table, &key_of(namespace, name))?
            .map(|value| decode(table, name, &value))
            .transpose()
    }

    /// Every record of a namespace in the order of their names.
    pub(crate) fn list<T: DeserializeOwned>(
        &self,
        table: Table,
        namespace: &str,
    ) -> Result<Vec<(String, T)>> {
        let prefix = key_of(namespace, "");
        let raw = self.list_raw(table, &prefix)?;
        let mut list = Vec::with_capacity(raw.len());
        for (key, value) in raw {
            let name = key[prefix.len()..].to_string();
            let record = decode(table, &name, &value)?;
            list.push((name, record));
        }
        Ok(list)
    }

    /// Names alone, of which `prefix` is the beginning.
    pub(crate) fn names(&self, table: Table, namespace: &str, prefix: &str) -> Result<Vec<String>> {
        let skip = namespace.len() + 1;
        let raw = self.list_raw(table, &key_of(namespace, prefix))?;
        Ok(raw.into_keys().map(|key| key[skip..].to_string()).collect())
    }

    /// Every namespace that has a record in some table.
    pub(crate) fn namespaces(&self) -> Result<Vec<String>> {
        let mut found = BTreeSet::new();
        for table in Table::ALL {
            for key in self.list_raw(table, "")?.into_keys() {
                let namespace = key.split_once('\0').map_or(key.as_str(), |(ns, _)| ns);
                if !found.contains(namespace) {
                    found.insert(namespace.to_string());
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Makes everything written so far durable, but for ephemeral records.
    ///
    /// # Errors
    /// When something is not durable, and stays to be flushed; or when it is, and what has to follow failed:
    /// then it is out of the overlay, but for files that are still to be removed.
    pub(crate) fn flush(&self) -> Result<()> {
        if self.frozen {
            return Ok(());
        }
        let _one = lock(&self.flushing);
        let overlay = read(&self.overlay);
        let upto = overlay.sequence;
        let lasting = overlay.entries.iter().filter(|(_, pending)| !pending.ephemeral);
        let batch: Vec<(Key, Pending)> =
            lasting.map(|(key, pending)| (key.clone(), pending.clone())).collect();
        drop(overlay);
        if batch.is_empty() {
            // Ephemeral records alone fill the journal too.
            let full = lock(&self.writer).as_ref().is_some_and(Journal::is_full);
            return if full { self.rewrite_journal() } else { Ok(()) };
        }
        // After the batch was taken: a flush that has seen this for another one syncs after it was said.
        let files_first = self.files_first.swap(false, Ordering::SeqCst);
        if let Err(error) = self.write_files(&batch, files_first) {
            self.files_first.fetch_or(files_first, Ordering::SeqCst);
            return Err(error);
        }
        faults::pass("db.synced");
        if let Err(error) = self.commit_main(&batch) {
            self.main.close();
            return Err(error);
        }
        faults::pass("db.committed");
        let removed = self.after_commit(batch, upto);
        let rewritten = self.rewrite_journal();
        removed.and(rewritten)
    }

    /// Removes the files of records that are gone, and from the overlay what the database has: what has
    /// a number up to `upto`.
    fn after_commit(&self, batch: Vec<(Key, Pending)>, upto: u64) -> Result<()> {
        // Not before: a power cut in between would leave a record without its file. A file without a
        // record goes at the next start.
        let mut outcome = Ok(());
        let mut kept = BTreeSet::new();
        for ((table, key), _) in batch.iter().filter(|(_, pending)| pending.value.is_none()) {
            if let Err(error) = self.records.write(*table, key, None) {
                kept.insert((*table, key.clone()));
                outcome = outcome.and(Err(error));
            }
        }
        let mut overlay = self.overlay.write().unwrap_or_else(PoisonError::into_inner);
        overlay.committed = overlay.committed.max(upto);
        for (key, flushed) in batch {
            let Entry::Occupied(entry) = overlay.entries.entry(key) else { continue };
            // A file that is still to be removed is tried again.
            if entry.get().sequence == flushed.sequence && !kept.contains(entry.key()) {
                entry.remove();
            }
        }
        outcome
    }

    /// Writes the files of the records that a batch puts; all files are durable where they, or what the
    /// records speak of, have to be.
    fn write_files(&self, batch: &[(Key, Pending)], files_first: bool) -> Result<()> {
        let mut sync = files_first;
        for ((table, key), pending) in batch.iter().filter(|(_, pending)| pending.value.is_some()) {
            self.records.write(*table, key, pending.value.as_deref())?;
            sync |= matches!(table, Table::Content | Table::Snapshots | Table::Images);
        }
        if sync && !self.unsynced.load(Ordering::Relaxed) {
            self.records.sync()?;
        }
        Ok(())
    }

    fn commit_main(&self, batch: &[(Key, Pending)]) -> Result<()> {
        let failed = |op| move |error| Error::db(op)(redb::Error::Io(error));
        faults::write("db.begin").map_err(failed("begin"))?;
        let (mut tx, _open) = self.main.begin_write()?.split();
        tx.set_quick_repair(true);
        if self.unsynced.load(Ordering::Relaxed) {
            tx.set_durability(redb::Durability::None).map_err(Error::db("begin"))?;
        }
        for ((table, key), pending) in batch {
            let mut open = tx.open_table(table.definition()).map_err(Error::db("open table"))?;
            match &pending.value {
                Some(value) => {
                    open.insert(key.as_str(), value.as_ref()).map_err(Error::db("insert"))?;
                }
                None => {
                    open.remove(key.as_str()).map_err(Error::db("remove"))?;
                }
            }
        }
        faults::write("db.commit").map_err(failed("commit"))?;
        tx.commit().map_err(Error::db("commit"))
    }

    /// Leaves in the journal what redb does not have.
    fn rewrite_journal(&self) -> Result<()> {
        let mut journal = lock(&self.writer);
        let rest: BTreeMap<Key, Change> = read(&self.overlay)
            .entries
            .iter()
            .map(|(key, p)| {
                (key.clone(), Change { value: p.value.clone(), ephemeral: p.ephemeral })
            })
            .collect();
        journal.as_mut().map_or(Ok(()), |journal| journal.rewrite(&rest))
    }

    /// What has happened to files below the root, and beside it, is durable before any write that follows
    /// this: redb's own sync says nothing of other files.
    pub(crate) fn files_first(&self) {
        self.files_first.store(true, Ordering::SeqCst);
    }

    /// Makes durable what was written to files below the root, whatever records say.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub(crate) fn sync_files(&self) -> Result<()> {
        if self.frozen { Ok(()) } else { self.records.sync() }
    }

    fn mark_dirty(&self) {
        let mut state = lock(&self.flusher);
        if !state.dirty {
            state.dirty = true;
            self.wake.notify_all();
        }
    }

    /// The body of the flusher's thread: it ends after [`Db::stop`].
    pub(crate) fn run_flusher(&self) {
        loop {
            let mut state = lock(&self.flusher);
            while !state.dirty && !state.stop {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let waited = self.wake.wait_timeout_while(state, FLUSH_AFTER, |state| !state.stop);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            state.dirty = false;
            let stop = state.stop;
            drop(state);
            if let Err(error) = self.flush() {
                let error = store_api::Error::from(error);
                tracing::warn!(error = %error, "metadata is not durable yet; trying again");
                if !stop {
                    self.mark_dirty();
                }
            }
            if stop {
                return;
            }
        }
    }

    pub(crate) fn stop(&self) {
        lock(&self.flusher).stop = true;
        self.wake.notify_all();
    }

    /// Every record file that lies beside the database, and those that say nothing that is known.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn record_files(&self) -> Result<(Vec<RecordFile>, Vec<DamagedRecord>)> {
        self.records.read_all()
    }

    fn get_raw(&self, table: Table, key: &str) -> Result<Option<Arc<[u8]>>> {
        if let Some(pending) = read(&self.overlay).entries.get(&(table, key.to_string())) {
            return Ok(pending.value.clone());
        }
        self.main_get(table, key)
    }

    fn main_get(&self, table: Table, key: &str) -> Result<Option<Arc<[u8]>>> {
        let tx = self.main.begin_read()?;
        let open = match tx.open_table(table.definition()) {
            Ok(open) => open,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(Error::db("open table")(error)),
        };
        let found = open.get(key).map_err(Error::db("read"))?;
        Ok(found.map(|guard| Arc::from(guard.value())))
    }

    fn list_raw(&self, table: Table, prefix: &str) -> Result<BTreeMap<String, Arc<[u8]>>> {
        // The read transaction begins under the overlay's lock, so that a flush cannot move
        // records from one to the other between the two looks.
        let overlay = read(&self.overlay);
        let tx = self.main.begin_read()?;
        let from = (table, prefix.to_string());
        let recent: Vec<(String, Option<Arc<[u8]>>)> = overlay
            .entries
            .range(from..)
            .take_while(|((t, key), _)| *t == table && key.starts_with(prefix))
            .map(|((_, key), pending)| (key.clone(), pending.value.clone()))
            .collect();
        drop(overlay);
        let mut all = BTreeMap::new();
        match tx.open_table(table.definition()) {
            Ok(open) => {
                for item in open.range(prefix..).map_err(Error::db("list"))? {
                    let (key, value) = item.map_err(Error::db("list"))?;
                    if !key.value().starts_with(prefix) {
                        break;
                    }
                    all.insert(key.value().to_string(), Arc::from(value.value()));
                }
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(Error::db("open table")(error)),
        }
        for (key, value) in recent {
            match value {
                Some(value) => all.insert(key, value),
                None => all.remove(&key),
            };
        }
        Ok(all)
    }
}

#[derive(Clone, Debug)]
struct Change {
    value: Option<Arc<[u8]>>,
    ephemeral: bool,
}

/// A write in progress. It sees its own changes.
pub(crate) struct Tx<'a> {
    db: &'a Db,
    changes: BTreeMap<Key, Change>,
    ephemeral: bool,
}

impl Tx<'_> {
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        table: Table,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>> {
        match self.changes.get(&(table, key_of(namespace, name))) {
            Some(change) => {
                change.value.as_ref().map(|value| decode(table, name, value)).transpose()
            }
            None => self.db.get(table, namespace, name),
        }
    }

    pub(crate) fn put<T: Serialize>(
        &mut self,
        table: Table,
        namespace: &str,
        name: &str,
        record: &T,
    ) -> Result<()> {
        let value = serde_json::to_vec(&Versioned { v: RECORD_VERSION, r: record })
            .map_err(Error::json("encode the record of", name))?;
        let change = Change { value: Some(value.into()), ephemeral: self.ephemeral };
        self.changes.insert((table, key_of(namespace, name)), change);
        Ok(())
    }

    /// Puts a record as its file had it.
    pub(crate) fn put_value(
        &mut self,
        table: Table,
        namespace: &str,
        name: &str,
        value: &serde_json::Value,
    ) -> Result<()> {
        let value = serde_json::to_vec(value).map_err(Error::json("encode the record of", name))?;
        let change = Change { value: Some(value.into()), ephemeral: self.ephemeral };
        self.changes.insert((table, key_of(namespace, name)), change);
        Ok(())
    }

    /// Was this record written or deleted since the last flush?
    pub(crate) fn is_recent(&self, table: Table, namespace: &str, name: &str) -> bool {
        read(&self.db.overlay).entries.contains_key(&(table, key_of(namespace, name)))
    }

    pub(crate) fn delete(&mut self, table: Table, namespace: &str, name: &str) {
        let key = (table, key_of(namespace, name));
        let ephemeral =
            read(&self.db.overlay).entries.get(&key).is_some_and(|pending| pending.ephemeral)
                && matches!(self.db.main_get(table, &key.1), Ok(None));
        self.changes.insert(key, Change { value: None, ephemeral });
    }

    /// Names with `prefix`, with this write's own changes.
    pub(crate) fn names(&self, table: Table, namespace: &str, prefix: &str) -> Result<Vec<String>> {
        let skip = namespace.len() + 1;
        let mut names: BTreeSet<String> =
            self.db.names(table, namespace, prefix)?.into_iter().collect();
        let from = key_of(namespace, prefix);
        for ((t, key), change) in &self.changes {
            if *t == table && key.starts_with(&from) {
                let name = key[skip..].to_string();
                if change.value.is_some() {
                    names.insert(name)
                } else {
                    names.remove(&name)
                };
            }
        }
        Ok(names.into_iter().collect())
    }
}

fn decode<T: DeserializeOwned>(table: Table, name: &str, value: &[u8]) -> Result<T> {
    let record: Versioned<T> = serde_json::from_slice(value).map_err(Error::json(
        "decode the record",
        format_args!("{name:?} of table {}", table.name()),
    ))?;
    Ok(record.r)
}

fn key_of(namespace: &str, name: &str) -> String {
    format!("{namespace}\0{name}")
}

/// The lock whatever happened to its last holder: every value behind these locks is valid at every
/// instant, since changes are made in single steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
