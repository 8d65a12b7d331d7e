//! A write, from the caller's work to what was promised of it.

use std::{collections::BTreeMap, sync::PoisonError};

use super::{
    Change, Db, Durable, Key, Pending, Tx, lock, read,
    undo::{self, Promised},
};
use crate::error::Result;

/// A write that everybody sees, and of which the rest of the promise is still to be kept.
pub(super) struct Staged<'d> {
    pub(super) promised: Promised<'d>,
    journaled: Result<()>,
    journal_full: bool,
    only_ephemeral: bool,
}

impl Db {
    /// Runs `work` as the only writer. What it changes becomes visible at once, together.
    ///
    /// # Errors
    /// Then nothing of it is written, or it was taken back: a write that cannot keep what `durable` promises
    /// is undone, in the state's journal too, and was visible to others until then; what they have written
    /// over it since is theirs. One that the journal has and that asks for no more stays, whatever the disk
    /// does; the flusher tries again.
    pub(crate) fn write<T>(
        &self,
        durable: Durable,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        let (value, staged) = self.stage(durable, work)?;
        if let Some(staged) = staged {
            self.keep_promise(durable, staged)?;
        }
        Ok(value)
    }

    /// The part of a write in which no other one is under way. `None`: there is nothing more to do.
    pub(super) fn stage<T>(
        &self,
        durable: Durable,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<(T, Option<Staged<'_>>)> {
        let mut journal = lock(&self.writer);
        let mut tx = Tx { db: self, changes: BTreeMap::new(), ephemeral: false };
        tx.ephemeral = durable == Durable::Ephemeral;
        let value = work(&mut tx)?;
        let changes = tx.changes;
        if changes.is_empty() {
            return Ok((value, None));
        }
        let Some(to) = journal.as_mut() else {
            self.apply(changes);
            return Ok((value, None));
        };
        let mut before = undo::Olds::new();
        if durable == Durable::Now {
            before = undo::before(self, &changes)?;
        }
        let journaled = to.append(&changes);
        faults::pass("db.journaled");
        if journaled.is_err() && before.is_empty() {
            before = undo::before(self, &changes)?;
        }
        let only_ephemeral = changes.values().all(|change| change.ephemeral);
        let applied = self.apply(changes);
        let journal_full = to.is_full();
        let promised = Promised::new(self, applied, before);
        Ok((value, Some(Staged { promised, journaled, journal_full, only_ephemeral })))
    }

    fn keep_promise(&self, durable: Durable, staged: Staged<'_>) -> Result<()> {
        let Staged { promised, journaled, journal_full, only_ephemeral } = staged;
        match journaled {
            Ok(()) if durable == Durable::Now => {
                self.flush().or_else(|error| promised.undo(error))?;
            }
            Ok(()) if journal_full => self.make_room(),
            Ok(()) if only_ephemeral => {}
            Ok(()) => self.mark_dirty(),
            Err(error) => {
                // The state directory is full: the disk has to do.
                tracing::warn!(error = %error, "the journal cannot be written; committing to disk");
                let kept = match (self.flush(), durable) {
                    (Ok(()), _) => self.rewrite_journal(),
                    // What is left in the journal may leave room for this.
                    (Err(_), Durable::Soon | Durable::Ephemeral) => self.rewrite_journal(),
                    (error, Durable::Now) => error,
                };
                kept.or_else(|error| promised.undo(error))?;
                self.mark_dirty();
            }
        }
        Ok(())
    }

    /// After a write that the journal holds, which has grown too long.
    fn make_room(&self) {
        let Err(error) = self.flush() else { return };
        let error = store_api::Error::from(error);
        tracing::warn!(error = %error, "metadata is not durable yet; trying again");
        // At least what it has twice goes.
        if let Err(error) = self.rewrite_journal() {
            tracing::warn!(error = %error, "the journal is not rewritten");
        }
        self.mark_dirty();
    }

    /// Answers under which number each change is in the overlay; `None` where it left nothing there.
    fn apply(&self, changes: BTreeMap<Key, Change>) -> undo::Applied {
        let mut gone = Vec::new();
        {
            // A deletion of what the disk never had needs no tombstone.
            let overlay = read(&self.overlay);
            for (key, change) in &changes {
                let ephemeral_there = overlay.entries.get(key).is_some_and(|p| p.ephemeral);
                if change.value.is_none() && ephemeral_there {
                    gone.push(key.clone());
                }
            }
        }
        gone.retain(|(table, key)| !matches!(self.main_get(*table, key), Ok(Some(_)) | Err(_)));
        let mut overlay = self.overlay.write().unwrap_or_else(PoisonError::into_inner);
        let mut applied = undo::Applied::new();
        for (key, change) in changes {
            overlay.sequence += 1;
            let sequence = overlay.sequence;
            if gone.contains(&key) {
                overlay.entries.remove(&key);
                applied.insert(key, undo::Own { sequence: None, ephemeral: true });
            } else {
                let Change { value, ephemeral } = change;
                let own = undo::Own { sequence: Some(sequence), ephemeral };
                applied.insert(key.clone(), own);
                overlay.entries.insert(key, Pending { value, ephemeral, sequence });
            }
        }
        applied
    }
}
