//! A file in which long runs of zeros are holes: they read the same and take no room.

use std::{
    fs::File,
    io::{Result, Seek as _, SeekFrom, Write},
};

/// A shorter run is written: a hole has whole blocks of a file system, and costs a system call.
const HOLE_BYTES: u64 = 64 << 10;
const ZEROS: [u8; 4096] = [0; 4096];

/// Writes a new file from its beginning. It has its length after [`Sparse::finish`].
pub(super) struct Sparse<'f> {
    file: &'f mut File,
    /// Zeros that come after what is written.
    pending: u64,
    bytes: u64,
}

impl<'f> Sparse<'f> {
    pub(super) fn new(file: &'f mut File) -> Self {
        Self { file, pending: 0, bytes: 0 }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += u64::try_from(bytes.len()).unwrap_or(0);
        // All of a piece: one that begins or ends with some costs no more than it has.
        if bytes.iter().all(|byte| *byte == 0) {
            self.pending += u64::try_from(bytes.len()).unwrap_or(0);
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        if let Ok(ahead) = i64::try_from(pending)
            && pending >= HOLE_BYTES
        {
            self.file.seek(SeekFrom::Current(ahead))?;
        } else {
            self.fill(pending)?;
        }
        self.file.write_all(bytes)
    }

    fn fill(&mut self, mut zeros: u64) -> Result<()> {
        while zeros > 0 {
            let n = zeros.min(ZEROS.len() as u64);
            self.file.write_all(&ZEROS[..usize::try_from(n).unwrap_or(0)])?;
            zeros -= n;
        }
        Ok(())
    }

    /// Gives the file its length.
    ///
    /// # Errors
    /// When the disk is full, or the file larger than its file system takes.
    pub(super) fn finish(self) -> Result<()> {
        if self.pending > 0 { self.file.set_len(self.bytes) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn zeros_are_holes_and_nothing_else_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let zeros = |bytes: usize| vec![0; bytes];
        let hole = usize::try_from(HOLE_BYTES).unwrap();
        for parts in [
            vec![],
            vec![zeros(1)],
            vec![vec![1], zeros(511), zeros(513), vec![2]],
            vec![zeros(hole), vec![3]],
            vec![zeros(hole - 1), vec![4], zeros(3)],
            vec![vec![5; 1000], zeros(16 << 20), vec![6; 10], zeros(16 << 20)],
        ] {
            let mut file = File::create(&path).unwrap();
            let mut sparse = Sparse::new(&mut file);
            for part in &parts {
                for piece in part.chunks(100_000) {
                    sparse.put(piece).unwrap();
                }
            }
            sparse.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == parts.concat());
            let used = file.metadata().unwrap().blocks() * 512;
            assert!(used < 4 * HOLE_BYTES, "{used} bytes for {} parts", parts.len());
        }
    }
}
