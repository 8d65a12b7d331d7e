//! A stream's digest, on a thread of its own where there is much to hash: what inflates, writes or
//! compresses the same bytes does not wait for it.

use std::{
    io::{self, Read, Write},
    sync::mpsc::{Receiver, SyncSender, channel, sync_channel},
    thread::{Builder, JoinHandle, available_parallelism},
};

use types::{Digest, Digester};

/// So many bytes are hashed where they pass; only a longer stream gets a thread.
const APART_AFTER_BYTES: u64 = 8 << 20;
/// Bytes handed to the thread at once.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces of a stream that are being filled or hashed, or wait.
const PIECES: usize = 5;

/// Hashes and counts what is read or written through it.
pub(crate) struct Hashing<T> {
    pub(crate) inner: T,
    digester: State,
    bytes: u64,
}

enum State {
    Here(Digester),
    Apart(Apart),
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, digester: State::Here(Digester::sha256()), bytes: 0 }
    }

    pub(crate) fn finish(self) -> (Digest, u64, T) {
        let digester = match self.digester {
            State::Here(digester) => digester,
            State::Apart(apart) => apart.finish(),
        };
        (digester.finish(), self.bytes, self.inner)
    }

    fn count(&mut self, bytes: &[u8]) {
        let before = self.bytes;
        self.bytes += u64::try_from(bytes.len()).unwrap_or(0);
        match &mut self.digester {
            State::Apart(apart) => apart.update(bytes),
            State::Here(digester) => {
                digester.update(bytes);
                // Once: where no thread is to be had, or no second core, it goes on here.
                if before < APART_AFTER_BYTES && self.bytes >= APART_AFTER_BYTES {
                    let taken = std::mem::replace(digester, Digester::sha256());
                    self.digester =
                        Apart::start(taken).map_or_else(|back| State::Here(*back), State::Apart);
                }
            }
        }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count(&buffer[..n]);
        Ok(n)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.count(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The thread, and the pieces on the way to and from it. It ends when this is dropped.
struct Apart {
    piece: Vec<u8>,
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<Digester>,
}

impl Apart {
    /// Goes on with a digester on a thread of its own; gives it back if there is none to be had.
    fn start(digester: Digester) -> Result<Self, Box<Digester>> {
        if !available_parallelism().is_ok_and(|cores| cores.get() > 1) {
            return Err(Box::new(digester));
        }
        let (give, digesters) = sync_channel::<Digester>(1);
        let (full, to_hash) = sync_channel::<Vec<u8>>(PIECES);
        let (hashed, empty) = channel();
        for _ in 1..PIECES {
            // They are allocated when they are first filled. The receiver is here.
            drop(hashed.send(Vec::new()));
        }
        let hash = move || {
            let mut digester = digesters.recv().unwrap_or_else(|_| Digester::sha256());
            for mut piece in to_hash {
                digester.update(&piece);
                piece.clear();
                // Nobody takes it at the end.
                drop(hashed.send(piece));
            }
            digester
        };
        match Builder::new().name("store-hash".into()).spawn(hash) {
            Ok(thread) => {
                // There is room for one.
                drop(give.send(digester));
                Ok(Self { piece: Vec::new(), full, empty, thread })
            }
            Err(_) => Err(Box::new(digester)),
        }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.piece.reserve_exact(PIECE_BYTES - self.piece.len());
            let n = bytes.len().min(PIECE_BYTES - self.piece.len());
            self.piece.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.piece.len() == PIECE_BYTES {
                self.send();
            }
        }
    }

    /// Hands the piece over, and takes an empty one as soon as there is one.
    fn send(&mut self) {
        // Either fails only if the thread panicked, which `finish` passes on.
        let empty = self.empty.recv().unwrap_or_default();
        drop(self.full.send(std::mem::replace(&mut self.piece, empty)));
    }

    fn finish(mut self) -> Digester {
        if !self.piece.is_empty() {
            self.send();
        }
        drop(self.full);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read as _, Write as _};

    use super::*;

    /// Bytes of a stream, which do not repeat with a piece.
    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    #[test]
    fn the_digest_is_the_same_wherever_it_is_made() {
        let after = usize::try_from(APART_AFTER_BYTES).unwrap();
        for bytes in [0, 1, after - 1, after, after + 1, after + PIECE_BYTES, 3 * after + 7] {
            let content = content(bytes);
            let mut digester = Digester::sha256();
            digester.update(&content);
            let expected = digester.finish();
            let mut out = Hashing::new(Vec::new());
            for part in content.chunks(100_003) {
                out.write_all(part).unwrap();
            }
            let apart = matches!(out.digester, State::Apart(_));
            let cores = available_parallelism().unwrap().get();
            assert_eq!(apart, bytes >= after && cores > 1, "{bytes}");
            let (digest, count, out) = out.finish();
            assert!(out == content && digest == expected, "{bytes} written");
            assert_eq!(count, u64::try_from(bytes).unwrap());
            let mut input = Hashing::new(&content[..]);
            let mut found = Vec::new();
            input.read_to_end(&mut found).unwrap();
            assert!(found == content && input.finish().0 == expected, "{bytes} read");
        }
    }

    #[test]
    fn a_stream_that_is_given_up_leaves_no_thread() {
        let mut out = Hashing::new(std::io::sink());
        out.write_all(&content(usize::try_from(APART_AFTER_BYTES).unwrap())).unwrap();
        out.write_all(&content(10 * PIECE_BYTES)).unwrap();
        let State::Apart(apart) = out.digester else { return };
        let Apart { full, empty, thread, .. } = apart;
        drop((full, empty));
        thread.join().unwrap();
    }
}
