//! Garbage collection by containerd's rules: roots are image records, leases, containers' snapshots
//! and what carries `containerd.io/gc.root` (a snapshot also with `gantry.io/container`); `containerd.io/gc.ref.content*` and
//! `containerd.io/gc.ref.snapshot.NAME*` labels and snapshot parents lead on. What is in flight is
//! protected by [`crate::guard::Guard`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use store_api::{Event, Labels, ResourceKind};
use types::Digest;

use crate::{
    Core,
    containers::ContainerRecord,
    content::{ContentRecord, DAMAGED},
    db::{Durable, Table, lock},
    error::Result,
    images::ImageRecord,
    leases::LeaseRecord,
    snapshots::{SNAPSHOTTER, SnapshotRecord},
};

const ROOT: &str = "containerd.io/gc.root";
/// Marks the snapshot of one of the engine's containers with the container's id. The store's own record
/// of a container begins with its first start, so that nothing else leads there before.
const ENGINE_CONTAINER: &str = "gantry.io/container";
pub(crate) const REF_CONTENT: &str = "containerd.io/gc.ref.content";
pub(crate) const REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot";
const FLAT: &str = "containerd.io/gc.flat";
/// After the removal of an image or lease: soon, but once for many.
pub(crate) const AFTER_IMAGE: Duration = Duration::from_millis(100);
/// After that of a container, whose snapshot the engine removes itself.
pub(crate) const AFTER_CONTAINER: Duration = Duration::from_secs(30);

/// What could not be removed is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(60);
/// After a start: what the last run had in flight nobody finishes any more.
pub(crate) const AFTER_START: Duration = Duration::from_secs(30);
/// Between collections at most: unfinished writes expire though nothing is removed.
pub(crate) const PERIOD: Duration = Duration::from_secs(3600);

pub(crate) type Node = (ResourceKind, String);

/// When the next collection is due; its thread waits here.
#[derive(Default)]
pub(crate) struct Schedule {
    state: Mutex<Due>,
    wake: Condvar,
    /// Blobs without a record that a collection could not remove. A start finds those of the run before.
    left: Mutex<BTreeSet<Digest>>,
}

#[derive(Default)]
struct Due {
    at: Option<Instant>,
    stop: bool,
}

impl Schedule {
    pub(crate) fn after(&self, delay: Duration) {
        let at = Instant::now() + delay;
        let mut due = lock(&self.state);
        due.at = Some(due.at.map_or(at, |present| present.min(at)));
        self.wake.notify_all();
    }

    pub(crate) fn stop(&self) {
        lock(&self.state).stop = true;
        self.wake.notify_all();
    }

    /// `false`: the store closes.
    fn wait(&self) -> bool {
        let mut due = lock(&self.state);
        loop {
            if due.stop {
                return false;
            }
            let now = Instant::now();
            due = match due.at {
                Some(at) if at <= now => {
                    due.at = None;
                    return true;
                }
                Some(at) => {
                    let waited = self.wake.wait_timeout(due, at - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(due).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// The body of the collector's thread. It holds the store only while it works.
pub(crate) fn run(schedule: &Arc<Schedule>, core: &Weak<Core>) {
    while schedule.wait() {
        let Some(core) = core.upgrade() else { return };
        if let Err(error) = core.collect_garbage() {
            let error = store_api::Error::from(error);
            tracing::warn!(error = %error, "garbage collection failed");
        }
        schedule.after(PERIOD);
        if let Some(end) = core.guard.next_end() {
            schedule.after(end.saturating_duration_since(Instant::now()) + AFTER_IMAGE);
        }
    }
}

/// What one namespace lost.
struct Swept {
    content: Vec<String>,
    /// Key, directory, bytes.
    snapshots: Vec<(String, u64, u64)>,
}

impl Core {
    /// Removes what nothing leads to; answers the bytes of the blobs and snapshots that went.
    ///
    /// # Errors
    /// The first one, after everything else was removed. What it was about is tried again by the next
    /// collection, which is in a minute.
    pub(crate) fn collect_garbage(&self) -> Result<u64> {
        let (freed, outcome) = self.collect();
        outcome.map(|()| freed)
    }

    /// The same for those whose own work is done: what cannot be removed is not theirs.
    pub(crate) fn collect_or_warn(&self) -> u64 {
        let (freed, outcome) = self.collect();
        if let Err(error) = outcome {
            let error = store_api::Error::from(error);
            tracing::warn!(error = %error, "some of the garbage stays behind for now");
        }
        freed
    }

    /// The bytes that went, and the first error.
    fn collect(&self) -> (u64, Result<()>) {
        let mut freed = 0;
        let mut outcome = self.collect_left();
        match self.has_records_aside() {
            Ok(false) => {
                for ns in self.namespaces() {
                    let of_one = self.collect_of(&ns, &mut freed);
                    outcome = outcome.and(of_one);
                }
            }
            Ok(true) => tracing::warn!(
                directory = %self.root.join(DAMAGED).display(),
                "nothing is collected: records of images, containers or leases were found damaged, and what \
                 they led to is kept until they are moved away from there"
            ),
            Err(error) => outcome = outcome.and(Err(error)),
        }
        for ns in self.ingest_namespaces() {
            let expired = self.leased_ingests(&ns).map(|leased| {
                self.expire_ingests(&ns, &|reference| {
                    leased.contains(reference)
                        || self.guard.is_pinned(&ns, ResourceKind::Ingest, reference)
                });
            });
            outcome = outcome.and(expired);
        }
        if outcome.is_err() {
            self.schedule.after(AFTER_FAILURE);
        }
        (freed, outcome)
    }

    fn collect_of(&self, ns: &str, freed: &mut u64) -> Result<()> {
        let blobs = lock(&self.blobs);
        let sweeping = self.guard.sweeping();
        let swept = self.sweep(ns)?;
        drop(sweeping);
        faults::pass("gc.swept");
        let mut outcome = Ok(());
        if !swept.content.is_empty() || !swept.snapshots.is_empty() {
            outcome = self.before_unlinking();
            faults::pass("gc.flushed");
        }
        let may_unlink = outcome.is_ok();
        let digests = swept.content.iter().filter_map(|name| name.parse().ok());
        if may_unlink {
            for digest in digests {
                match self.collect_blob(&digest) {
                    Ok(bytes) => *freed += bytes,
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
        } else {
            lock(&self.schedule.left).extend(digests);
            self.disk.leave(swept.snapshots.iter().map(|(_, id, _)| *id));
        }
        drop(blobs);
        for name in swept.content {
            self.bus.publish(ns, Event::ContentDelete { digest: name });
        }
        for (key, id, bytes) in swept.snapshots {
            if may_unlink {
                faults::pass("gc.snapshot");
                match self.disk.discard(id) {
                    Ok(()) => *freed += bytes,
                    Err(error) => {
                        tracing::warn!(snapshot = id, error = %error, "a snapshot's directory stays behind for now");
                        outcome = outcome.and(Err(error));
                    }
                }
            }
            self.bus.publish(ns, Event::SnapshotRemove { key });
        }
        outcome
    }

    /// What earlier collections and removals have left.
    fn collect_left(&self) -> Result<()> {
        let (digests, ids) = (std::mem::take(&mut *lock(&self.schedule.left)), self.disk.left());
        if digests.is_empty() && ids.is_empty() {
            return Ok(());
        }
        let mut outcome = Ok(());
        if let Err(error) = self.before_unlinking() {
            lock(&self.schedule.left).extend(digests);
            return Err(error);
        }
        let blobs = lock(&self.blobs);
        for digest in digests {
            outcome = outcome.and(self.collect_blob(&digest).map(drop));
        }
        drop(blobs);
        for id in ids {
            outcome = outcome.and(self.disk.discard(id));
        }
        outcome
    }

    /// Removes a blob that no record names; the caller holds the blobs' lock.
    fn collect_blob(&self, digest: &Digest) -> Result<u64> {
        self.remove_unused_blob(digest).inspect_err(|error| {
            tracing::warn!(digest = %digest, error = %error, "a blob stays behind for now");
            lock(&self.schedule.left).insert(digest.clone());
        })
    }

    /// An operation that fails leaves nothing that a collection would keep.
    pub(crate) fn operation<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let operation = self.guard.operation();
        let outcome = operation.run(work);
        let failed = outcome.is_err();
        if !failed {
            operation.succeeded();
        }
        drop(operation);
        if failed {
            self.schedule.after(AFTER_IMAGE);
        }
        outcome
    }

    /// Collects garbage and drops unfinished writes that nobody works on; answers the bytes freed. What
    /// cannot be removed is told in the log.
    pub(crate) fn prune(&self) -> Result<u64> {
        Ok(self.collect_or_warn() + self.unused_ingests(true)?)
    }

    /// What [`Core::prune`] would free now.
    pub(crate) fn reclaimable(&self) -> Result<u64> {
        let mut blobs: BTreeMap<String, u64> = BTreeMap::new();
        let mut kept = BTreeSet::new();
        let mut bytes = self.unused_ingests(false)?;
        if self.has_records_aside()? {
            return Ok(bytes);
        }
        for ns in self.namespaces() {
            let marked = self.mark(&ns)?;
            for (name, record) in self.db.list::<ContentRecord>(Table::Content, &ns)? {
                if marked.contains(&(ResourceKind::Content, name.clone())) {
                    kept.insert(name);
                } else {
                    blobs.insert(name, record.size);
                }
            }
            for (key, record) in self.db.list::<SnapshotRecord>(Table::Snapshots, &ns)? {
                if !marked.contains(&(ResourceKind::Snapshot, key)) {
                    bytes += record.usage.map_or(0, |usage| usage.0);
                }
            }
        }
        // The bytes of one that another namespace keeps stay.
        blobs.retain(|name, _| !kept.contains(name));
        Ok(bytes + blobs.into_values().sum::<u64>())
    }

    /// What led to files is durably gone before they go: else a power cut brings back an image without
    /// its content. Only a full disk does not wait for that, since the files are what fills it.
    pub(crate) fn before_unlinking(&self) -> Result<()> {
        match self.db.flush() {
            Err(error) if error.is_full_disk() => {
                tracing::warn!("the disk is full: files go before their records");
                Ok(())
            }
            other => other,
        }
    }

    /// Marks, and removes the records that are not marked, in one write: no other writer comes
    /// between.
    fn sweep(&self, ns: &str) -> Result<Swept> {
        self.db.write(Durable::Soon, |tx| {
            let marked = self.mark(ns)?;
            let mut swept = Swept { content: Vec::new(), snapshots: Vec::new() };
            for (id, lease) in self.db.list::<LeaseRecord>(Table::Leases, ns)? {
                if lease.expired() {
                    tx.delete(Table::Leases, ns, &id);
                }
            }
            for name in self.db.names(Table::Content, ns, "")? {
                if !marked.contains(&(ResourceKind::Content, name.clone())) {
                    tx.delete(Table::Content, ns, &name);
                    swept.content.push(name);
                }
            }
            for (key, record) in self.db.list::<SnapshotRecord>(Table::Snapshots, ns)? {
                if !marked.contains(&(ResourceKind::Snapshot, key.clone())) {
                    crate::snapshots::delete_record(tx, ns, &key, &record);
                    let bytes = record.usage.map_or(0, |usage| usage.0);
                    swept.snapshots.push((key, record.id, bytes));
                }
            }
            Ok(swept)
        })
    }

    fn mark(&self, ns: &str) -> Result<BTreeSet<Node>> {
        let mut roots: Vec<Node> = self.guard.items(ns);
        let mut flat = Vec::new();
        for (_, image) in self.db.list::<ImageRecord>(Table::Images, ns)? {
            roots.push((ResourceKind::Content, image.target.digest.to_string()));
            references(&image.labels, &mut roots);
        }
        for (_, container) in self.db.list::<ContainerRecord>(Table::Containers, ns)? {
            if !container.snapshot_key.is_empty() {
                roots.push((ResourceKind::Snapshot, container.snapshot_key));
            }
            references(&container.labels, &mut roots);
        }
        for (_, lease) in self.db.list::<LeaseRecord>(Table::Leases, ns)? {
            if lease.expired() {
                continue;
            }
            let to = if lease.labels.contains_key(FLAT) { &mut flat } else { &mut roots };
            to.extend(lease.resources.iter().cloned());
        }
        for (name, record) in self.db.list::<ContentRecord>(Table::Content, ns)? {
            if record.labels.contains_key(ROOT) {
                roots.push((ResourceKind::Content, name));
            }
        }
        for (key, record) in self.db.list::<SnapshotRecord>(Table::Snapshots, ns)? {
            if [ROOT, ENGINE_CONTAINER].iter().any(|label| record.labels.contains_key(*label)) {
                roots.push((ResourceKind::Snapshot, key));
            }
        }
        let mut marked = self.closure(ns, roots)?;
        // A snapshot cannot stand without its parents, whatever a flat lease says of references.
        for (kind, name) in flat {
            if kind == ResourceKind::Snapshot {
                let parents = self.snapshot_parents(ns, &name)?;
                marked.extend(parents.into_iter().map(|key| (ResourceKind::Snapshot, key)));
            }
            marked.insert((kind, name));
        }
        Ok(marked)
    }

    /// Everything that `roots` lead to, themselves included.
    pub(crate) fn closure(&self, ns: &str, roots: Vec<Node>) -> Result<BTreeSet<Node>> {
        let mut seen = BTreeSet::new();
        let mut open = roots;
        while let Some(node) = open.pop() {
            if seen.contains(&node) {
                continue;
            }
            match node.0 {
                ResourceKind::Content => {
                    if let Some(record) =
                        self.db.get::<ContentRecord>(Table::Content, ns, &node.1)?
                    {
                        references(&record.labels, &mut open);
                    }
                }
                ResourceKind::Snapshot => {
                    if let Some(record) =
                        self.db.get::<SnapshotRecord>(Table::Snapshots, ns, &node.1)?
                    {
                        references(&record.labels, &mut open);
                        open.extend(record.parent.map(|key| (ResourceKind::Snapshot, key)));
                    }
                }
                ResourceKind::Ingest => {}
            }
            seen.insert(node);
        }
        Ok(seen)
    }

    /// A record leads to `roots` from now on: what they reach is no longer in flight.
    pub(crate) fn settle(&self, ns: &str, roots: Vec<Node>) -> Result<()> {
        if !self.guard.is_empty() {
            self.guard.forget_all(ns, &self.closure(ns, roots)?);
        }
        Ok(())
    }
}

/// containerd's reference labels: `gc.ref.content`, `gc.ref.content.ANY`, `gc.ref.content/ANY`, and
/// `gc.ref.snapshot.NAME` with the same endings.
fn references(labels: &Labels, out: &mut Vec<Node>) {
    for (key, value) in labels {
        if let Some(rest) = key.strip_prefix(REF_CONTENT) {
            if rest.is_empty() || rest.starts_with(['.', '/']) {
                out.push((ResourceKind::Content, value.clone()));
            }
        } else if let Some(rest) = key.strip_prefix(REF_SNAPSHOT).and_then(|r| r.strip_prefix('.'))
        {
            let name = rest.split(['.', '/']).next().unwrap_or_default();
            if name == SNAPSHOTTER {
                out.push((ResourceKind::Snapshot, value.clone()));
            }
        }
    }
}
