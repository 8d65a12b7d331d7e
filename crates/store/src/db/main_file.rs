//! `ROOT/meta.db`, opened again after a failed write.
//!
//! redb answers nothing any more once the disk was full or failed under it; what it had committed is
//! whole all the same. So it is closed and opened again, as after a crash, and the store goes on.

use std::{
    ops::{Deref, DerefMut},
    path::PathBuf,
    sync::{PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use redb::{DatabaseError, ReadTransaction, ReadableDatabase as _, WriteTransaction};

use super::opening;
use crate::error::{Error, Result};

/// The file's lock is free when the last transaction has ended: these are short.
const LOCKED: Duration = Duration::from_secs(2);

pub(super) struct MainFile {
    path: PathBuf,
    /// `None`: it could not be opened again yet.
    open: RwLock<Option<redb::Database>>,
}

/// A transaction, during which the file stays open.
pub(super) struct Using<'a, T> {
    tx: T,
    _open: RwLockReadGuard<'a, Option<redb::Database>>,
}

impl<T> Deref for Using<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.tx
    }
}

impl<T> DerefMut for Using<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.tx
    }
}

impl<T> Using<'_, T> {
    /// The transaction, to be ended; the second part has to live as long.
    pub(super) fn split(self) -> (T, impl Sized) {
        (self.tx, self._open)
    }
}

impl MainFile {
    pub(super) fn new(path: PathBuf, main: redb::Database) -> Self {
        Self { path, open: RwLock::new(Some(main)) }
    }

    pub(super) fn begin_read(&self) -> Result<Using<'_, ReadTransaction>> {
        self.using(|main| main.begin_read().map_err(Error::db("begin read")))
    }

    pub(super) fn begin_write(&self) -> Result<Using<'_, WriteTransaction>> {
        self.using(|main| main.begin_write().map_err(Error::db("begin")))
    }

    fn using<T>(&self, begin: impl Fn(&redb::Database) -> Result<T>) -> Result<Using<'_, T>> {
        loop {
            let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(main) = open.as_ref() {
                let tx = begin(main)?;
                return Ok(Using { tx, _open: open });
            }
            drop(open);
            self.open_again()?;
        }
    }

    /// Closes the file after a failure. The next use opens it again.
    pub(super) fn close(&self) {
        drop(self.open.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn open_again(&self) -> Result<()> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let end = Instant::now() + LOCKED;
        while open.is_none() {
            match opening::create(&self.path) {
                Ok(main) => *open = Some(main),
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < end => {
                    std::thread::yield_now();
                }
                Err(error) => return Err(Error::db("open again")(error)),
            }
        }
        Ok(())
    }
}
