//! A write that could not be made as durable as was promised is taken back.

use std::{collections::BTreeMap, sync::PoisonError};

use super::{Change, Db, Journal, Key, Pending, lock, read};
use crate::error::{Error, Result};

/// What a write has put in the place of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    /// Its number in the overlay; `None`: it has left nothing there.
    pub(super) sequence: Option<u64>,
    pub(super) ephemeral: bool,
}

pub(super) type Applied = BTreeMap<Key, Own>;

/// What a key held.
#[derive(Clone, Debug)]
pub(super) struct Old {
    change: Change,
    /// `None`: it was not in the overlay.
    sequence: Option<u64>,
}

pub(super) type Olds = BTreeMap<Key, Old>;

/// What the writes that may still be taken back would put back, in their order.
#[derive(Default)]
pub(super) struct Before {
    last: u64,
    writes: BTreeMap<u64, Olds>,
}

/// What the keys of `changes` hold now, in the overlay or on the disk.
pub(super) fn before(db: &Db, changes: &BTreeMap<Key, Change>) -> Result<Olds> {
    let mut before = Olds::new();
    for key in changes.keys() {
        let pending = read(&db.overlay).entries.get(key).cloned();
        let old = match pending {
            Some(Pending { value, ephemeral, sequence }) => {
                Old { change: Change { value, ephemeral }, sequence: Some(sequence) }
            }
            None => {
                let value = db.main_get(key.0, &key.1)?;
                Old { change: Change { value, ephemeral: false }, sequence: None }
            }
        };
        before.insert(key.clone(), old);
    }
    Ok(before)
}

/// A write until it is known whether it stays.
pub(super) struct Promised<'d> {
    db: &'d Db,
    /// In [`Before`].
    id: u64,
    applied: Applied,
}

impl Drop for Promised<'_> {
    fn drop(&mut self) {
        lock(&self.db.promised).writes.remove(&self.id);
    }
}

impl<'d> Promised<'d> {
    /// Of a write that was just applied; the caller is still the only writer. Without `before` it cannot be
    /// taken back.
    pub(super) fn new(db: &'d Db, applied: Applied, before: Olds) -> Self {
        let mut promised = lock(&db.promised);
        promised.last += 1;
        let id = promised.last;
        if !before.is_empty() {
            promised.writes.insert(id, before);
        }
        drop(promised);
        Self { db, id, applied }
    }

    /// Puts what was before in place of what the write still has in the overlay. It is written over it, not
    /// only left away: the failed flush may have got as far as a record's file, or the disk. What another
    /// write has put over it stays, and is given what was before this one: were it taken back as well, it
    /// would else bring back what was refused here.
    ///
    /// # Errors
    /// `error`, unless all was made durable after all, by another's flush or before this one failed.
    pub(super) fn undo(self, error: Error) -> Result<()> {
        let db = self.db;
        // No flush is under way that could commit what is taken back, and no write comes in between.
        let _one = lock(&db.flushing);
        let mut journal = lock(&db.writer);
        // Only the journal has an ephemeral change, and that one left nothing.
        let is_lost = journal.as_ref().is_some_and(Journal::is_broken);
        let committed = read(&db.overlay).committed;
        let fails = |own: &Own| match own {
            Own { ephemeral: true, .. } | Own { sequence: None, .. } => is_lost,
            Own { sequence: Some(sequence), .. } => *sequence > committed,
        };
        if !self.applied.values().any(fails) {
            drop(journal);
            tracing::warn!(error = %error, "what follows a commit is not done; trying again");
            db.mark_dirty();
            return Ok(());
        }
        let back = self.take_before();
        let changes = back.iter().map(|(key, old)| (key.clone(), old.change.clone())).collect();
        let journaled = journal.as_mut().map_or(Ok(()), |journal| journal.append(&changes));
        let mut overlay = db.overlay.write().unwrap_or_else(PoisonError::into_inner);
        for (key, Old { change: Change { value, ephemeral }, sequence }) in back {
            overlay.sequence += 1;
            // Under its own number, by which the write that put it there knows it, if that is under way too.
            let sequence = sequence.unwrap_or(overlay.sequence);
            overlay.entries.insert(key, Pending { value, ephemeral, sequence });
        }
        drop((overlay, journal));
        if journaled.is_err()
            && let Err(error) = db.rewrite_journal()
        {
            tracing::warn!(
                error = %error,
                "a write that failed is in the journal until this can be rewritten; the next start would take it for done"
            );
        }
        db.mark_dirty();
        Err(error)
    }

    /// What is to be put back now; what others have written over since is handed on to them.
    fn take_before(&self) -> Olds {
        let overlay = read(&self.db.overlay);
        let mut promised = lock(&self.db.promised);
        let mut back = promised.writes.remove(&self.id).unwrap_or_default();
        back.retain(|key, old| {
            let own = self.applied.get(key).and_then(|own| own.sequence);
            if overlay.entries.get(key).map(|pending| pending.sequence) == own {
                return true;
            }
            let later =
                promised.writes.range_mut(self.id..).filter_map(|(_, olds)| olds.get_mut(key));
            for later in later.filter(|later| later.sequence == own) {
                *later = old.clone();
            }
            false
        });
        back
    }
}
