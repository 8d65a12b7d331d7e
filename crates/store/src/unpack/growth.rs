//! A file that a download still writes to, read while it grows.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::db::lock;

/// A download of which nothing was written for so long is not read on; its blob is read once it is here.
const STILL: Duration = Duration::from_secs(600);

/// How far a file has grown. What is read of it is not verified yet.
pub(crate) struct Growth {
    file: File,
    state: Mutex<State>,
    changed: Condvar,
    /// Its bytes are no blob's.
    rejected: AtomicBool,
    /// [`STILL`], but for tests.
    still: Duration,
}

struct State {
    len: u64,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// The length is the file's.
    Reached,
    /// Nothing more comes.
    BrokenOff,
}

impl Growth {
    /// `len`: the bytes that are there.
    pub(crate) fn new(file: File, len: u64) -> Self {
        let state = State { len, end: End::Open };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Self { file, state, changed, rejected: AtomicBool::new(false), still: STILL }
    }

    /// The file has so many bytes now. One that became shorter is not read on: its bytes may be others.
    fn grown(&self, len: u64) {
        let mut state = lock(&self.state);
        if len < state.len {
            state.end = End::BrokenOff;
        }
        state.len = len;
        drop(state);
        self.changed.notify_all();
    }

    fn end(&self, end: End) {
        let mut state = lock(&self.state);
        if state.end == End::Open {
            state.end = end;
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn break_off(&self) {
        self.end(End::BrokenOff);
    }

    /// All has come, and is not what it should be.
    pub(super) fn reject(&self) {
        self.rejected.store(true, Ordering::Release);
    }

    pub(super) fn is_rejected(&self) -> bool {
        self.rejected.load(Ordering::Acquire)
    }

    /// Is there more to come?
    pub(crate) fn is_open(&self) -> bool {
        lock(&self.state).end == End::Open
    }

    fn wait(&self, at: u64) -> io::Result<u64> {
        let mut state = lock(&self.state);
        loop {
            match state.end {
                End::BrokenOff => return Err(io::Error::other("the download broke off")),
                End::Open if state.len <= at => {}
                _ => return Ok(state.len),
            }
            let len = state.len;
            let waits = |state: &mut State| state.end == End::Open && state.len == len;
            let waited = self.changed.wait_timeout_while(state, self.still, waits);
            let (now, limit) = waited.unwrap_or_else(PoisonError::into_inner);
            if limit.timed_out() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("nothing came of the download for {} s", self.still.as_secs()),
                ));
            }
            state = now;
        }
    }
}

/// The writer's end: dropped before [`Grower::reached`] it breaks off.
pub(crate) struct Grower(pub(crate) Arc<Growth>);

impl Grower {
    pub(crate) fn grown(&self, len: u64) {
        self.0.grown(len);
    }

    /// Everything has been written.
    pub(crate) fn reached(&self) {
        self.0.end(End::Reached);
    }
}

impl Drop for Grower {
    fn drop(&mut self) {
        self.0.break_off();
    }
}

/// Reads from the beginning to the end, waiting for what is not there yet.
pub(crate) struct GrowingReader {
    growth: Arc<Growth>,
    at: u64,
}

impl GrowingReader {
    pub(crate) fn new(growth: Arc<Growth>) -> Self {
        Self { growth, at: 0 }
    }
}

impl Read for GrowingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.growth.wait(self.at)?.saturating_sub(self.at);
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        let n = self.growth.file.read_at(&mut buffer[..len], self.at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += u64::try_from(n).unwrap_or(0);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    fn grown(bytes: &[u8]) -> (File, Grower) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let growth = Growth::new(file.try_clone().unwrap(), bytes.len() as u64);
        (file, Grower(Arc::new(growth)))
    }

    #[test]
    fn a_reader_waits_for_what_is_not_there_yet() {
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut file, grower) = grown(&bytes[..1000]);
        let mut reader = GrowingReader::new(Arc::clone(&grower.0));
        let reading = std::thread::spawn(move || {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).map(|_| read)
        });
        let mut len = 1000;
        for piece in bytes[1000..].chunks(7777) {
            file.write_all(piece).unwrap();
            len += piece.len();
            grower.grown(len as u64);
        }
        grower.reached();
        drop(grower);
        assert!(reading.join().unwrap().unwrap() == bytes, "other bytes were read");
    }

    #[test]
    fn a_download_that_stands_still_is_not_waited_for() {
        let (_file, grower) = grown(&[7; 1000]);
        let file = grower.0.file.try_clone().unwrap();
        let mut short = Growth::new(file, 1000);
        short.still = Duration::from_millis(20);
        let mut read = Vec::new();
        let error = GrowingReader::new(Arc::new(short)).read_to_end(&mut read).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        assert_eq!(read.len(), 1000);
    }

    #[test]
    fn a_download_that_ends_early_or_begins_anew_ends_its_reader() {
        for anew in [false, true] {
            let (_file, grower) = grown(&[7; 1000]);
            let mut reader = GrowingReader::new(Arc::clone(&grower.0));
            let reading = std::thread::spawn(move || reader.read_to_end(&mut Vec::new()));
            if anew {
                grower.grown(10);
                grower.grown(2000);
                grower.reached();
            } else {
                drop(grower);
            }
            assert!(reading.join().unwrap().is_err(), "taken for the end");
        }
    }
}
