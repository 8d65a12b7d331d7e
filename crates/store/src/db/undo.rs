//! A write that could not be made as durable as was promised is taken back.

use std::{collections::BTreeMap, sync::PoisonError};

use super::{Change, Db, Key, Pending, lock, read};
use crate::error::{Error, Result};

/// The numbers that a write's changes have in the overlay; `None`: it has nothing of them.
pub(super) type Applied = BTreeMap<Key, Option<u64>>;

/// What the keys of `changes` hold now, in the overlay or on the disk.
pub(super) fn before(db: &Db, changes: &BTreeMap<Key, Change>) -> Result<BTreeMap<Key, Change>> {
    let mut before = BTreeMap::new();
    for key in changes.keys() {
        let pending = read(&db.overlay).entries.get(key).cloned();
        let change = match pending {
            Some(Pending { value, ephemeral, .. }) => Change { value, ephemeral },
            None => Change { value: db.main_get(key.0, &key.1)?, ephemeral: false },
        };
        before.insert(key.clone(), change);
    }
    Ok(before)
}

impl Db {
    /// Puts `before` in place of what `applied` still has in the overlay. It is written over it, not only
    /// left away: the failed flush may have got as far as a record's file, or the disk.
    ///
    /// # Errors
    /// `error`, unless all was made durable after all, by another's flush or before this one failed.
    pub(super) fn undo(
        &self,
        applied: Applied,
        mut before: BTreeMap<Key, Change>,
        error: Error,
    ) -> Result<()> {
        // No flush is under way that could commit what is taken back, and no write comes in between.
        let _one = lock(&self.flushing);
        let mut journal = lock(&self.writer);
        let overlay = read(&self.overlay);
        let number = |key: &Key| overlay.entries.get(key).map(|pending| pending.sequence);
        let is_there = applied.iter().any(|(key, own)| own.is_some() && number(key) == *own);
        if !is_there {
            drop((overlay, journal));
            tracing::warn!(error = %error, "what follows a commit is not done; trying again");
            self.mark_dirty();
            return Ok(());
        }
        // What somebody else has written since is theirs.
        before.retain(|key, _| applied.get(key).is_some_and(|own| number(key) == *own));
        drop(overlay);
        let journaled = journal.as_mut().map_or(Ok(()), |journal| journal.append(&before));
        let mut overlay = self.overlay.write().unwrap_or_else(PoisonError::into_inner);
        for (key, Change { value, ephemeral }) in before {
            overlay.sequence += 1;
            let sequence = overlay.sequence;
            overlay.entries.insert(key, Pending { value, ephemeral, sequence });
        }
        drop((overlay, journal));
        if journaled.is_err()
            && let Err(error) = self.rewrite_journal()
        {
            tracing::warn!(
                error = %error,
                "a write that failed is in the journal until this can be rewritten; the next start would take it for done"
            );
        }
        self.mark_dirty();
        Err(error)
    }
}
