//! `ROOT/meta.db` as it is, for a look that changes nothing: what redb writes while it has a database
//! open (its recovery after a crash, the mark that it is open) goes into memory alone.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Mutex,
};

use redb::{Database, DatabaseError, StorageBackend, backends::InMemoryBackend};

use super::{Opened, lock, opening};
use crate::error::{Error, Result};

/// Bytes of the pieces in which what is written is kept.
const PAGE_BYTES: usize = 4096;

/// A file that is only read. Memory: as many pages as are written, which is what a recovery needs.
#[derive(Debug)]
struct Frozen {
    /// Holds the lock of those that have the database open.
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes: u64,
    /// So much of the file counts: what lies behind was cut off.
    of_file: u64,
    written: BTreeMap<u64, Box<[u8; PAGE_BYTES]>>,
}

/// Opens the database without writing to it. One that is missing or damaged is empty, and in memory.
///
/// # Errors
/// When another process has it open, or it cannot be read.
pub(super) fn open(root: &Path) -> Result<(Database, Opened)> {
    let path = root.join("meta.db");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return empty(),
        Err(error) => return Err(Error::io("open the database", path)(error)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::db("open: another daemon uses it: lock")(
                DatabaseError::DatabaseAlreadyOpen,
            ));
        }
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
    }
    let bytes = file.metadata().map_err(Error::io("stat the database", &path))?.len();
    if bytes == 0 {
        return empty();
    }
    let state = Mutex::new(State { bytes, of_file: bytes, written: BTreeMap::new() });
    match opening::builder().create_with_backend(Frozen { file, state }) {
        Ok(main) if opening::is_rebuilding(root) => Ok((main, Opened::Created)),
        Ok(main) => Ok((main, Opened::Existing)),
        Err(error) if opening::is_damage(&error) => empty(),
        Err(error) => Err(Error::db("open")(error)),
    }
}

fn empty() -> Result<(Database, Opened)> {
    let main = opening::builder().create_with_backend(InMemoryBackend::new());
    Ok((main.map_err(Error::db("create"))?, Opened::Created))
}

impl Frozen {
    /// Reads a page, of which what the file does not have is zero.
    fn page(&self, state: &State, number: u64) -> io::Result<Box<[u8; PAGE_BYTES]>> {
        if let Some(page) = state.written.get(&number) {
            return Ok(page.clone());
        }
        let mut page = Box::new([0; PAGE_BYTES]);
        let at = number * PAGE_BYTES as u64;
        let there = state.of_file.saturating_sub(at).min(PAGE_BYTES as u64);
        let there = usize::try_from(there).unwrap_or(PAGE_BYTES);
        self.file.read_exact_at(&mut page[..there], at)?;
        Ok(page)
    }
}

/// The pieces of a range of bytes: page, where in it, how much.
fn pieces(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= bytes {
            return None;
        }
        let at = offset + done as u64;
        let inside = usize::try_from(at % PAGE_BYTES as u64).unwrap_or(0);
        let n = (PAGE_BYTES - inside).min(bytes - done);
        done += n;
        Some((at / PAGE_BYTES as u64, inside, n))
    })
}

impl StorageBackend for Frozen {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.state).bytes)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = lock(&self.state);
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > state.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        for (number, inside, n) in pieces(offset, out.len()) {
            let page = self.page(&state, number)?;
            out[done..done + n].copy_from_slice(&page[inside..inside + n]);
            done += n;
        }
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        if bytes < state.bytes {
            // What comes after is zero if it grows again.
            state.of_file = state.of_file.min(bytes);
            let (last, inside) = (bytes / PAGE_BYTES as u64, bytes % PAGE_BYTES as u64);
            state.written.retain(|number, _| *number <= last);
            if let Some(page) = state.written.get_mut(&last) {
                page[usize::try_from(inside).unwrap_or(0)..].fill(0);
            }
        }
        state.bytes = bytes;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        let mut done = 0;
        for (number, inside, n) in pieces(offset, data.len()) {
            let mut page = self.page(&state, number)?;
            page[inside..inside + n].copy_from_slice(&data[done..done + n]);
            state.written.insert(number, page);
            done += n;
        }
        state.bytes = state.bytes.max(offset.saturating_add(data.len() as u64));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    /// Behaves as a plain vector of bytes does, whatever is written, cut and read; the file stays.
    #[test]
    fn like_a_file_that_is_not_changed() {
        let mut file = tempfile::tempfile().unwrap();
        let start = testkit::random::bytes(3 * PAGE_BYTES + 777);
        file.write_all(&start).unwrap();
        let bytes = start.len() as u64;
        let state = Mutex::new(State { bytes, of_file: bytes, written: BTreeMap::new() });
        let frozen = Frozen { file: file.try_clone().unwrap(), state };
        let mut like = start.clone();
        for _ in 0..2000 {
            let at = testkit::random::number(0..20_000) as usize;
            let n = testkit::random::number(0..9000) as usize;
            match testkit::random::number(0..4) {
                0 => {
                    frozen.set_len(at as u64).unwrap();
                    like.resize(at, 0);
                }
                1 if at + n <= like.len() => {
                    let data = testkit::random::bytes(n);
                    frozen.write(at as u64, &data).unwrap();
                    like[at..at + n].copy_from_slice(&data);
                }
                _ => {
                    let mut out = vec![1; n];
                    let read = frozen.read(at as u64, &mut out);
                    match like.get(at..at + n) {
                        Some(wanted) => assert_eq!((read.unwrap(), out), ((), wanted.to_vec())),
                        None => assert!(read.is_err()),
                    }
                }
            }
            assert_eq!(frozen.len().unwrap(), like.len() as u64);
        }
        let mut left = vec![0; start.len()];
        file.read_exact_at(&mut left, 0).unwrap();
        assert_eq!(left, start);
        assert_eq!(file.metadata().unwrap().len(), bytes);
    }
}
