//! The log that qemu's `blklogwrites` keeps of a disk, in the format of the kernel's dm-log-writes
//! (`Documentation/admin-guide/device-mapper/log-writes.rst`, `block/blklogwrites.c`), and the disks
//! that a power cut may leave.
//!
//! Little-endian, in sectors of a size that the super block says: the super block, then for each request
//! a header of one sector and what it wrote. A request is logged when it is submitted, so that a write
//! that was still under way when another request's flush began counts as flushed: this is more than a
//! disk promises, for writes that nobody waited for.

use crate::error::IoContext;
use crate::{Error, Result};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
/// Bits of an entry's flags.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
/// Magic, version, number of entries (u64 each) and bytes of a sector (u32).
const SUPER_BYTES: usize = 28;
/// Sector, sectors, flags, bytes of data (u64 each).
const ENTRY_BYTES: usize = 32;
/// What a disk writes whole or not at all.
const ATOM_BYTES: u64 = 4096;
/// Bytes of what is copied at once.
const BUFFER_BYTES: usize = 1 << 20;

/// One request to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where on the disk, in bytes.
    pub at: u64,
    pub bytes: u64,
    pub kind: Kind,
    /// What came before it is on the disk when it is answered.
    pub flush: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its data lies at this place in the log. With `fua` it is on the disk when it is answered.
    Write { data: u64, fua: bool },
    /// What is read there from now on is zeros here: the file below has a hole.
    Discard,
    /// A flush, or a mark.
    Nothing,
}

/// How much of what was not flushed reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// None of it.
    All,
    /// All of it, in order: the cut of a disk without a cache.
    Nothing,
    /// A part that this seed chooses, in pieces of 4096 bytes.
    Some(u64),
}

/// A power cut: the first `entries` requests were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub entries: usize,
    pub loss: Loss,
}

impl std::fmt::Display for Cut {
    /// `ENTRIES:all`, `ENTRIES:none` or `ENTRIES:SEED`, as [`Cut::parse`] reads it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.loss {
            Loss::All => write!(f, "{}:all", self.entries),
            Loss::Nothing => write!(f, "{}:none", self.entries),
            Loss::Some(seed) => write!(f, "{}:{seed}", self.entries),
        }
    }
}

impl Cut {
    pub fn parse(text: &str) -> Option<Self> {
        let (entries, loss) = text.split_once(':')?;
        let loss = match loss {
            "all" => Loss::All,
            "none" => Loss::Nothing,
            seed => Loss::Some(seed.parse().ok()?),
        };
        Some(Self { entries: entries.parse().ok()?, loss })
    }
}

/// An opened log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    pub entries: Vec<Entry>,
}

impl Log {
    /// Reads the headers of all requests.
    ///
    /// # Errors
    /// When it is no such log, or is cut short.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).context("open", path.display())?;
        let mut log = Self { path: path.into(), file, entries: Vec::new() };
        let mut head = [0; SUPER_BYTES];
        log.read(&mut head, 0)?;
        let sector = u64::from(u32_at(&head, 24));
        if u64_at(&head, 0) != MAGIC || u64_at(&head, 8) != VERSION || sector < 512 {
            return Err(Error::Parse {
                what: path.display().to_string(),
                wanted: "a log of block writes, version 1",
                found: format!("{head:?}"),
            });
        }
        let mut at = sector;
        for _ in 0..u64_at(&head, 16) {
            let mut head = [0; ENTRY_BYTES];
            log.read(&mut head, at)?;
            let flags = u64_at(&head, 16);
            let (begin, sectors) = (u64_at(&head, 0), u64_at(&head, 8));
            at += sector;
            let kind = if flags & DISCARD != 0 {
                Kind::Discard
            } else if sectors > 0 {
                Kind::Write { data: at, fua: flags & FUA != 0 }
            } else {
                Kind::Nothing
            };
            let (entry_at, bytes) = (begin * sector, sectors * sector);
            log.entries.push(Entry { at: entry_at, bytes, kind, flush: flags & FLUSH != 0 });
            if matches!(kind, Kind::Write { .. }) {
                at += bytes;
            }
        }
        Ok(log)
    }

    /// What request `i` wrote, at most so many bytes of it; nothing if it wrote nothing.
    pub fn data(&self, i: usize, limit_bytes: usize) -> Result<Vec<u8>> {
        let Some(Entry { kind: Kind::Write { data, .. }, bytes, .. }) = self.entries.get(i) else {
            return Ok(Vec::new());
        };
        let mut buffer = vec![0; usize::try_from(*bytes).unwrap_or(usize::MAX).min(limit_bytes)];
        self.read(&mut buffer, *data)?;
        Ok(buffer)
    }

    /// Makes of a disk as it was at first what it may be after a cut.
    ///
    /// On it is what came before the last flush, what was sent with FUA, and of the rest what
    /// `cut.loss` leaves. Of a piece that was written several times since the flush any of the
    /// writes may be the last one there.
    pub fn replay(&self, disk: &Path, cut: Cut) -> Result<()> {
        let disk_file = File::options().write(true).open(disk).context("open", disk.display())?;
        let sent = &self.entries[..cut.entries.min(self.entries.len())];
        let flushed = sent.iter().rposition(|entry| entry.flush).unwrap_or(0);
        let (mut rng, share) = match cut.loss {
            Loss::All => (None, 0.0),
            Loss::Nothing => (None, 1.0),
            Loss::Some(seed) => {
                let mut rng = StdRng::seed_from_u64(seed);
                let share = rng.random_range(0.05..0.95);
                (Some(rng), share)
            }
        };
        for (i, entry) in sent.iter().enumerate() {
            // The flush goes in front of what its request writes.
            let certain = i < flushed || matches!(entry.kind, Kind::Write { fua: true, .. });
            let mut at = 0;
            while at < entry.bytes {
                let piece = if certain || cut.loss == Loss::Nothing {
                    entry.bytes
                } else {
                    // Up to the next border of the disk's own pieces.
                    (ATOM_BYTES - (entry.at + at) % ATOM_BYTES).min(entry.bytes - at)
                };
                let reaches = certain
                    || match &mut rng {
                        Some(rng) => rng.random_bool(share),
                        None => cut.loss == Loss::Nothing,
                    };
                if reaches {
                    self.apply(&disk_file, disk, entry, at, piece)?;
                }
                at += piece;
            }
        }
        Ok(())
    }

    /// Writes a piece of a request to the disk.
    fn apply(&self, disk: &File, path: &Path, entry: &Entry, at: u64, bytes: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes {
            let step = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(BUFFER_BYTES);
            let mut buffer = vec![0; step];
            match entry.kind {
                Kind::Write { data, .. } => self.read(&mut buffer, data + at + done)?,
                Kind::Discard => {}
                Kind::Nothing => return Ok(()),
            }
            disk.write_all_at(&buffer, entry.at + at + done).context("write", path.display())?;
            done += u64::try_from(step).unwrap_or(u64::MAX);
        }
        Ok(())
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        self.file.read_exact_at(buffer, at).context("read", self.path.display())
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut array = [0; 8];
    array.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(array)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut array = [0; 4];
    array.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(array)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::random;

    /// A log of these requests: place, data, flags.
    fn write_log(path: &Path, requests: &[(u64, Vec<u8>, u64)]) {
        const SECTOR: usize = 512;
        let head = |fields: &[u64], tail: &[u8]| {
            let mut sector: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
            sector.extend(tail);
            sector.resize(SECTOR, 0);
            sector
        };
        let count = u64::try_from(requests.len()).unwrap();
        let mut bytes = head(&[MAGIC, VERSION, count], &512_u32.to_le_bytes());
        for (at, data, flags) in requests {
            let length = u64::try_from(data.len()).unwrap();
            bytes.extend(head(&[at / 512, length / 512, *flags, length], &[]));
            bytes.extend(data);
        }
        std::fs::write(path, bytes).unwrap();
    }

    fn disk_after(log: &Log, directory: &Path, first: &[u8], cut: Cut) -> Vec<u8> {
        let disk = directory.join("disk");
        std::fs::write(&disk, first).unwrap();
        log.replay(&disk, cut).unwrap();
        std::fs::read(&disk).unwrap()
    }

    #[test]
    fn what_is_flushed_stays_and_what_is_not_may_go_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let [a, b, c, d] = [4096, 8192, 4096, 512].map(random::bytes);
        let requests = [
            (0, a.clone(), 0),
            (0, Vec::new(), FLUSH),
            (4096, b.clone(), 0),
            (12_288, c.clone(), FUA),
            (0, d.clone(), 0),
        ];
        write_log(&path, &requests);
        let log = Log::open(&path).unwrap();
        assert_eq!(log.entries.len(), 5);
        assert_eq!(log.data(2, 4).unwrap(), b[..4]);
        let first = random::bytes(16_384);
        let after =
            |entries, loss| disk_after(&log, directory.path(), &first, Cut { entries, loss });

        assert_eq!(after(0, Loss::Nothing), first);
        assert_eq!(after(1, Loss::All), first, "not flushed yet");
        let certain = [&a[..], &first[4096..12_288], &c].concat();
        assert_eq!(after(5, Loss::All), certain);
        let whole = [&d, &a[512..], &b, &c].concat();
        assert_eq!(after(5, Loss::Nothing), whole);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let disk = after(5, Loss::Some(seed));
            assert_eq!(disk[12_288..], c, "sent with FUA");
            let pieces = [(0, &a, &whole), (4096, &first, &whole), (8192, &first, &whole)];
            let mut which = Vec::new();
            for (at, old, new) in pieces {
                let old = if at == 0 { &old[..4096] } else { &old[at..at + 4096] };
                let found = &disk[at..at + 4096];
                assert!(found == old || *found == new[at..at + 4096], "a torn piece at {at}");
                which.push(found == old);
            }
            seen.insert(which);
        }
        assert_eq!(seen.len(), 8, "every combination is seen");
        assert_eq!(after(5, Loss::Some(3)), after(5, Loss::Some(3)));
    }

    #[test]
    fn discards_are_zeros_and_foreign_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        write_log(&path, &[(0, Vec::new(), FLUSH)]);
        // A discard has sectors, but no data.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[512 + 8] = 2;
        bytes[512 + 16] = u8::try_from(DISCARD | FUA).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let log = Log::open(&path).unwrap();
        assert_eq!(log.entries[0].kind, Kind::Discard);
        let first = random::bytes(2048);
        let cut = Cut { entries: 1, loss: Loss::Nothing };
        let disk = disk_after(&log, directory.path(), &first, cut);
        assert_eq!(disk, [&[0; 1024], &first[1024..]].concat());
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = Log::open(&path).unwrap_err().to_string();
        assert!(error.contains("a log of block writes"), "{error}");
    }

    #[test]
    fn cuts_are_read_as_they_are_written() {
        for text in ["0:all", "17:none", "200:99"] {
            assert_eq!(Cut::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Cut::parse("x:all"), None);
    }
}
