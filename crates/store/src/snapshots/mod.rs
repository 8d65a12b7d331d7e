//! Snapshots: overlay on extracted directories, `ROOT/snapshots/N/{fs,work,record.json}`, and on layers
//! that are never unpacked (`packed`), or whole directories copied from each other (`copies`).

mod copies;
mod disk;
mod in_use;
mod layers;
mod mounts;
mod packed;
mod sparse;
mod trees;
mod verify;

use std::{borrow::Cow, collections::BTreeSet, path::PathBuf};

use serde::{Deserialize, Serialize};
use store_api::{Event, Labels, Mount, ResourceKind, SnapshotInfo, SnapshotKind, Timestamp, Usage};
use types::{Digest, limits};

pub(crate) use self::{
    disk::{Disk, Lower, Trash, make_root},
    mounts::{Directories, borrow, open_all, open_directory},
    packed::Place,
    verify::{Damage, LayerSource},
};
use crate::{
    Core,
    db::{self, Durable, Opened, RECORD, Table, Tx},
    error::{Error, Result},
    filters::{Fields, Filters, label},
    labels,
};

/// The name under which clients of containerd know overlay snapshots.
pub(crate) const SNAPSHOTTER: &str = "overlayfs";
/// Bytes of a key or name.
const KEY_BYTES: usize = 4096;
/// Parents of a snapshot at most: an image's layers, a container's own, and one for a build step.
const PARENTS: usize = limits::LAYERS + 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    View,
    Active,
    Committed,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// The directory's number.
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) parent: Option<String>,
    #[serde(default)]
    pub(crate) labels: Labels,
    created: Timestamp,
    updated: Timestamp,
    /// Bytes and inodes, once committed.
    pub(crate) usage: Option<(u64, u64)>,
    /// A layer that is kept as its tar. What it lies on is so too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) packed: Option<PackedLayer>,
    /// Its directory has all that it shows: nothing of its parents is needed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) full: bool,
}

/// The files of a layer that is never unpacked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PackedLayer {
    /// What the tar's bytes are.
    pub(crate) diff_id: Digest,
    pub(crate) tar_bytes: u64,
    pub(crate) extra_bytes: u64,
}

impl SnapshotRecord {
    fn info(self, name: String) -> SnapshotInfo {
        let kind = match self.kind {
            Kind::View => SnapshotKind::View,
            Kind::Active => SnapshotKind::Active,
            Kind::Committed => SnapshotKind::Committed,
        };
        SnapshotInfo {
            kind,
            name,
            parent: self.parent,
            labels: self.labels,
            created_at: self.created,
            updated_at: self.updated,
        }
    }

    /// Of a layer whose files are there in full.
    pub(crate) fn committed(
        id: u64,
        parent: Option<&str>,
        usage: Usage,
        packed: Option<PackedLayer>,
    ) -> Self {
        let now = Timestamp::now();
        Self {
            id,
            kind: Kind::Committed,
            parent: parent.map(Into::into),
            labels: Labels::new(),
            created: now,
            updated: now,
            usage: Some((usage.bytes, usage.inodes)),
            packed,
            full: false,
        }
    }

    fn durable(&self) -> Durable {
        let ephemeral = self.kind != Kind::Committed && labels::is_volatile(&self.labels);
        if ephemeral { Durable::Ephemeral } else { Durable::Soon }
    }
}

impl Fields for SnapshotInfo {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["kind"] => Some(match self.kind {
                SnapshotKind::View => "view".into(),
                SnapshotKind::Active => "active".into(),
                SnapshotKind::Committed => "committed".into(),
            }),
            ["name"] => Some(self.name.as_str().into()),
            ["parent"] => Some(self.parent.as_deref().unwrap_or_default().into()),
            ["labels", rest @ ..] => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Core {
    pub(crate) fn snapshot_record(&self, ns: &str, key: &str) -> Result<SnapshotRecord> {
        self.db.get(Table::Snapshots, ns, key)?.ok_or_else(|| Error::not_found("snapshot", key))
    }

    pub(crate) fn has_snapshot(&self, ns: &str, key: &str) -> Result<bool> {
        Ok(self.db.get::<SnapshotRecord>(Table::Snapshots, ns, key)?.is_some())
    }

    pub(crate) fn snapshot_stat(&self, ns: &str, key: &str) -> Result<SnapshotInfo> {
        Ok(self.snapshot_record(ns, key)?.info(key.into()))
    }

    pub(crate) fn snapshot_list(&self, ns: &str, filters: &[String]) -> Result<Vec<SnapshotInfo>> {
        let filters = Filters::parse(filters)?;
        let all = self.db.list::<SnapshotRecord>(Table::Snapshots, ns)?;
        let infos = all.into_iter().map(|(key, record)| record.info(key));
        Ok(infos.filter(|info| filters.matches(info)).collect())
    }

    pub(crate) fn snapshot_update(
        &self,
        ns: &str,
        key: &str,
        new: &Labels,
        keys: &[String],
    ) -> Result<SnapshotInfo> {
        labels::validate(new)?;
        let durable = self.snapshot_record(ns, key)?.durable();
        self.db.write(durable, |tx| {
            let mut record: SnapshotRecord = tx
                .get(Table::Snapshots, ns, key)?
                .ok_or_else(|| Error::not_found("snapshot", key))?;
            labels::merge(&mut record.labels, new, keys);
            record.updated = Timestamp::now();
            tx.put(Table::Snapshots, ns, key, &record)?;
            Ok(record.info(key.into()))
        })
    }

    /// The snapshot's ancestors, the nearest first.
    pub(crate) fn snapshot_parents(&self, ns: &str, key: &str) -> Result<Vec<String>> {
        let mut parents = Vec::new();
        let mut next = match self.db.get::<SnapshotRecord>(Table::Snapshots, ns, key)? {
            Some(record) => record.parent,
            None => None,
        };
        while let Some(parent) = next {
            if parents.len() > PARENTS {
                return Err(Error::invalid(format!(
                    "snapshot {key:?} has more than {PARENTS} parents"
                )));
            }
            next = self.snapshot_record(ns, &parent)?.parent;
            parents.push(parent);
        }
        Ok(parents)
    }

    /// What the snapshot lies on, the topmost first.
    pub(crate) fn lowers(&self, ns: &str, key: &str) -> Result<Vec<Lower>> {
        if self.snapshot_record(ns, key)?.full {
            return Ok(Vec::new());
        }
        let parents = self.snapshot_parents(ns, key)?;
        self.lowers_of(ns, &parents)
    }

    /// The same for a snapshot with these ancestors, the nearest first.
    pub(crate) fn lowers_of(&self, ns: &str, parents: &[String]) -> Result<Vec<Lower>> {
        let mut lowers = Vec::new();
        for (i, parent) in parents.iter().enumerate() {
            let record = self.snapshot_record(ns, parent)?;
            if record.packed.is_some() {
                lowers.push(Lower::mounted(self.packed_root(ns, &parents[i..])?));
                break;
            }
            lowers.push(self.disk.lower(record.id));
            if record.full {
                break;
            }
        }
        Ok(lowers)
    }

    pub(crate) fn snapshot_fs(&self, ns: &str, key: &str) -> Result<PathBuf> {
        Ok(self.disk.fs(self.snapshot_record(ns, key)?.id))
    }

    pub(crate) fn snapshot_mounts(&self, ns: &str, key: &str) -> Result<Vec<Mount>> {
        let record = self.snapshot_record(ns, key)?;
        if record.kind == Kind::Committed {
            return Err(Error::precondition(format!(
                "mounts of snapshot \"{key}\": it is committed, only an active snapshot or a view has any"
            )));
        }
        self.mounts_of(ns, key, &record)
    }

    fn mounts_of(&self, ns: &str, key: &str, record: &SnapshotRecord) -> Result<Vec<Mount>> {
        let lowers = self.lowers(ns, key)?;
        let volatile = labels::is_volatile(&record.labels);
        self.disk.mounts(record.id, record.kind, &lowers, volatile)
    }

    pub(crate) fn snapshot_prepare(
        &self,
        ns: &str,
        key: &str,
        parent: Option<&str>,
        kind: Kind,
        new: Labels,
    ) -> Result<Vec<Mount>> {
        validate_key(key)?;
        labels::validate(&new)?;
        self.ensure_namespace(ns)?;
        let parent = parent.filter(|parent| !parent.is_empty());
        if self.has_snapshot(ns, key)? {
            return Err(Error::already_exists("snapshot", key));
        }
        let full = self.disk.copies && kind == Kind::Active;
        let id = match parent {
            Some(parent) if full => self.copy_of(ns, parent)?,
            _ => {
                let below = parent.map(|parent| self.root_of(ns, parent)).transpose()?;
                self.disk.create(kind, below.as_deref())?
            }
        };
        let now = Timestamp::now();
        let record = SnapshotRecord {
            id,
            kind,
            parent: parent.map(Into::into),
            labels: new,
            created: now,
            updated: now,
            usage: None,
            packed: None,
            full,
        };
        faults::pass("snapshot.created");
        self.guard.refresh(ns, ResourceKind::Snapshot, key);
        let written = self.db.write(record.durable(), |tx| {
            if tx.get::<SnapshotRecord>(Table::Snapshots, ns, key)?.is_some() {
                return Err(Error::already_exists("snapshot", key));
            }
            if let Some(parent) = parent {
                // It may have gone since.
                if tx.get::<SnapshotRecord>(Table::Snapshots, ns, parent)?.is_none() {
                    return Err(Error::not_found("parent snapshot", parent));
                }
                tx.put(Table::Children, ns, &child_key(parent, key), &())?;
            }
            tx.put(Table::Snapshots, ns, key, &record)
        });
        if let Err(error) = written {
            self.disk.discard(id)?;
            return Err(error);
        }
        self.disk.recorded(id);
        self.bus.publish(
            ns,
            Event::SnapshotPrepare { key: key.into(), parent: parent.unwrap_or_default().into() },
        );
        self.mounts_of(ns, key, &record)
    }

    /// The topmost directory that a child of `parent` has below it.
    pub(crate) fn root_of(&self, ns: &str, parent: &str) -> Result<PathBuf> {
        let record = self.committed(ns, parent)?;
        if record.packed.is_none() {
            return Ok(self.disk.fs(record.id));
        }
        let mut chain = vec![parent.to_string()];
        chain.extend(self.snapshot_parents(ns, parent)?);
        self.packed_root(ns, &chain)
    }

    pub(crate) fn committed(&self, ns: &str, parent: &str) -> Result<SnapshotRecord> {
        let record = match self.snapshot_record(ns, parent) {
            Err(error) if error.is_not_found() => {
                return Err(Error::not_found("parent snapshot", parent));
            }
            other => other?,
        };
        if record.kind != Kind::Committed {
            return Err(Error::invalid(format!("parent \"{parent}\" is not a committed snapshot")));
        }
        if self.snapshot_parents(ns, parent)?.len() >= PARENTS {
            return Err(Error::invalid(format!(
                "snapshot on \"{parent}\": at most {PARENTS} layers can be stacked"
            )));
        }
        Ok(record)
    }

    pub(crate) fn snapshot_commit(
        &self,
        ns: &str,
        name: &str,
        key: &str,
        new: Labels,
    ) -> Result<()> {
        validate_key(name)?;
        labels::validate(&new)?;
        // First, as with containerd: a client that commits once more learns that it is done.
        if self.has_snapshot(ns, name)? {
            return Err(Error::already_exists("snapshot", name));
        }
        let active = self.snapshot_record(ns, key)?;
        if active.kind != Kind::Active {
            return Err(Error::precondition(format!("snapshot \"{key}\" is not active")));
        }
        let usage = self.disk.usage(active.id)?;
        self.guard.refresh(ns, ResourceKind::Snapshot, name);
        let leased = self.db.write(Durable::Soon, |tx| {
            let active: SnapshotRecord = tx
                .get(Table::Snapshots, ns, key)?
                .ok_or_else(|| Error::not_found("snapshot", key))?;
            if tx.get::<SnapshotRecord>(Table::Snapshots, ns, name)?.is_some() {
                return Err(Error::already_exists("snapshot", name));
            }
            delete_record(tx, ns, key, &active);
            if let Some(parent) = &active.parent {
                tx.put(Table::Children, ns, &child_key(parent, name), &())?;
            }
            let now = Timestamp::now();
            let committed = SnapshotRecord {
                kind: Kind::Committed,
                labels: new,
                updated: now,
                usage: Some((usage.bytes, usage.inodes)),
                ..active
            };
            tx.put(Table::Snapshots, ns, name, &committed)?;
            let (from, to) = ((ResourceKind::Snapshot, key), (ResourceKind::Snapshot, name));
            self.inherit_leases(tx, ns, from, to)
        })?;
        if leased {
            self.guard.forget(ns, ResourceKind::Snapshot, name);
        }
        self.guard.forget(ns, ResourceKind::Snapshot, key);
        faults::pass("snapshot.committed");
        self.flights.layers.tell();
        if let Err(error) = self.disk.finish(active.id) {
            // It is committed all the same; the directory goes with it.
            let error = store_api::Error::from(error);
            tracing::warn!(name, error = %error, "a work directory stays behind");
        }
        self.bus.publish(ns, Event::SnapshotCommit { key: key.into(), name: name.into() });
        Ok(())
    }

    pub(crate) fn snapshot_remove(&self, ns: &str, key: &str) -> Result<()> {
        if self.snapshot_record(ns, key)?.durable() != Durable::Ephemeral {
            // Its user's own record has gone, and may not come back without it.
            self.db.files_first();
        }
        let record = self.db.write(Durable::Soon, |tx| {
            let record: SnapshotRecord = tx
                .get(Table::Snapshots, ns, key)?
                .ok_or_else(|| Error::not_found("snapshot", key))?;
            if !tx.names(Table::Children, ns, &child_key(key, ""))?.is_empty() {
                return Err(Error::precondition(format!(
                    "cannot remove snapshot \"{key}\": another snapshot has it as its parent"
                )));
            }
            delete_record(tx, ns, key, &record);
            Ok(record)
        })?;
        self.guard.forget(ns, ResourceKind::Snapshot, key);
        faults::pass("snapshot.removed");
        self.flights.layers.tell();
        self.disk.discard(record.id)?;
        self.bus.publish(ns, Event::SnapshotRemove { key: key.into() });
        Ok(())
    }

    pub(crate) fn snapshot_usage(&self, ns: &str, key: &str) -> Result<Usage> {
        let record = self.snapshot_record(ns, key)?;
        match record.usage {
            Some((bytes, inodes)) => Ok(Usage { bytes, inodes }),
            None => self.disk.usage(record.id),
        }
    }

    /// Own use, and that of all parents together.
    pub(crate) fn usage_with_parents(&self, ns: &str, key: &str) -> Result<(Usage, Usage)> {
        let own = self.snapshot_usage(ns, key)?;
        let mut parents = Usage::default();
        for parent in self.snapshot_parents(ns, key)? {
            let usage = self.snapshot_usage(ns, &parent)?;
            parents.bytes += usage.bytes;
            parents.inodes += usage.inodes;
        }
        Ok((own, parents))
    }

    /// Brings records and directories together after a start: a record without its directory (the
    /// power went before it was synced) goes, with the layers that stand on it. What somebody writes on
    /// them stays: it is there again with the layers below it, and refused until then. A directory
    /// without a record (an ephemeral one, or one whose record never became durable) goes into the
    /// trash, unless the records were just rebuilt: what those miss stays until the next start. One with a
    /// record that is damaged is moved aside, with all that it has.
    ///
    /// # Errors
    /// When it cannot be told what is there; then nothing was taken for lost.
    pub(crate) fn reconcile_snapshots(&self, opened: Opened) -> Result<()> {
        let present = self.disk.present()?;
        let mut used = BTreeSet::new();
        for ns in self.namespaces() {
            let records = self.db.list::<SnapshotRecord>(Table::Snapshots, &ns)?;
            let (mut lost, mut waiting) = (BTreeSet::new(), BTreeSet::new());
            loop {
                let before = lost.len();
                for (key, record) in &records {
                    let parent_lost = record.parent.as_ref().is_some_and(|parent| {
                        lost.contains(parent) || !records.iter().any(|(name, _)| name == parent)
                    });
                    let here = present.contains(&record.id)
                        && record.is_whole(&self.disk.directory(record.id))?;
                    let waits = parent_lost && here && record.kind == Kind::Active;
                    if waits {
                        waiting.insert(key);
                    } else if parent_lost || !here {
                        lost.insert(key.clone());
                    }
                }
                if lost.len() == before {
                    break;
                }
            }
            if !lost.is_empty() {
                tracing::warn!(namespace = ns, snapshots = ?lost, "snapshots were lost");
            }
            if !waiting.is_empty() {
                tracing::warn!(
                    namespace = ns, snapshots = ?waiting,
                    "layers below these writable ones were lost: pull or load their images again"
                );
            }
            self.db.write(Durable::Soon, |tx| {
                for (key, record) in &records {
                    if lost.contains(key) {
                        delete_record(tx, &ns, key, record);
                    } else {
                        used.insert(record.id);
                    }
                }
                Ok(())
            })?;
        }
        if opened == Opened::Created {
            return Ok(());
        }
        if self.has_records_aside()? {
            return Ok(());
        }
        for id in present.difference(&used) {
            if let Err(error) = self.discard_stray(*id) {
                let error = store_api::Error::from(error);
                tracing::warn!(snapshot = id, error = %error, "a directory that nothing leads to stays until the next start");
            }
        }
        Ok(())
    }

    fn discard_stray(&self, id: u64) -> Result<()> {
        let directory = self.disk.directory(id);
        if db::is_damaged(&directory.join(RECORD))? {
            tracing::error!(
                snapshot = id,
                "the record of a snapshot is damaged; it is moved aside"
            );
            self.keep_aside(&directory, &format!("snapshot-{id}"))
        } else {
            self.disk.discard(id)
        }
    }
}

/// Takes a snapshot's record and its place in the index out; its directory is the caller's.
pub(crate) fn delete_record(tx: &mut Tx<'_>, ns: &str, key: &str, record: &SnapshotRecord) {
    tx.delete(Table::Snapshots, ns, key);
    if let Some(parent) = &record.parent {
        tx.delete(Table::Children, ns, &child_key(parent, key));
    }
}

pub(crate) fn child_key(parent: &str, child: &str) -> String {
    format!("{parent}\0{child}")
}

fn validate_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > KEY_BYTES || key.contains('\0') {
        return Err(Error::invalid(format!(
            "a snapshot's key has 1 to {KEY_BYTES} bytes and no zero byte"
        )));
    }
    Ok(())
}
