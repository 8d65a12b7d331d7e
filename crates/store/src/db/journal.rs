use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Change, Key, Table};
use crate::error::{Error, Result};

/// Bytes of a journal that is read at start. It is rewritten long before it has so many: a larger one is
/// refused, since a part of it would be a wrong state.
const MAX_BYTES: u64 = 256 << 20;
/// The journal is rewritten when it exceeds this, and twice what the last rewriting left in it.
const FULL_BYTES: u64 = 1 << 20;

/// A change as it is read back.
pub(super) struct Replayed {
    pub(super) table: Table,
    pub(super) key: String,
    pub(super) value: Option<Arc<[u8]>>,
    pub(super) ephemeral: bool,
}

/// Changes that the database on disk does not have, one frame per write:
/// `length u32, checksum u32, payload`; the first frame holds the kernel's boot id. A frame that is
/// cut short or does not match its checksum ends the journal: its write never returned.
///
/// It lies in the state directory. Where that survives a reboot, the boot id tells, and the
/// journal is dropped: it may speak of files whose bytes never reached the disk.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// After the last rewriting.
    rewritten_bytes: u64,
    boot_id: String,
    /// There was none of this boot.
    new: bool,
    /// A write into it failed: it lacks a change, or is no journal any more, until it is rewritten.
    broken: bool,
}

impl Journal {
    pub(super) fn open(path: PathBuf) -> Result<(Self, Vec<Replayed>)> {
        let boot_id = boot_id();
        let mut file = options().open(&path).map_err(Error::io("open journal", &path))?;
        let content = read(&mut file, &path)?;
        let (changes, valid) = replay(&content, &boot_id);
        let new = valid == 0;
        let mut journal =
            Self { path, file, bytes: valid, rewritten_bytes: 0, boot_id, new, broken: false };
        if new {
            journal.rewrite(&BTreeMap::new())?;
        } else {
            journal.truncate(valid)?;
        }
        Ok((journal, changes))
    }

    /// Is it the first since the host's start?
    pub(super) fn is_new(&self) -> bool {
        self.new
    }

    /// Would rewriting it pay?
    pub(super) fn is_full(&self) -> bool {
        self.broken || self.bytes > FULL_BYTES.max(self.rewritten_bytes.saturating_mul(2))
    }

    /// Appends one frame with all of `changes`; on failure the journal is as it was, and takes nothing more
    /// until it was rewritten.
    ///
    /// # Errors
    /// Also when it would have more bytes than are read at a start.
    pub(super) fn append(&mut self, changes: &BTreeMap<Key, Change>) -> Result<()> {
        let frame = frame(&payload(changes));
        let bytes = self.bytes.saturating_add(u64::try_from(frame.len()).unwrap_or(u64::MAX));
        if self.broken || bytes > MAX_BYTES {
            self.broken = true;
            return Err(Error::io("append to journal", &self.path)(no_room()));
        }
        let written = faults::write("journal.append").and_then(|()| self.file.write_all(&frame));
        if let Err(error) = written {
            self.broken = true;
            self.truncate(self.bytes)?;
            return Err(Error::io("write journal", &self.path)(error));
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Replaces the whole by `changes`, in one step if there is room, else in place.
    ///
    /// # Errors
    /// Then it is broken: nothing is appended until this has succeeded.
    pub(super) fn rewrite(&mut self, changes: &BTreeMap<Key, Change>) -> Result<()> {
        let mut content = frame(self.boot_id.as_bytes());
        self.broken = true;
        if !changes.is_empty() {
            content.extend_from_slice(&frame(&payload(changes)));
        }
        if u64::try_from(content.len()).map_or(true, |bytes| bytes > MAX_BYTES) {
            return Err(Error::io("rewrite journal", &self.path)(no_room()));
        }
        let temporary = self.path.with_extension("new");
        let replaced = options().truncate(true).open(&temporary).and_then(|mut file| {
            faults::write("journal.rewrite")?;
            file.write_all(&content)?;
            faults::write("journal.rename")?;
            std::fs::rename(&temporary, &self.path)?;
            Ok(file)
        });
        match replaced {
            Ok(file) => self.file = file,
            Err(_) => {
                self.truncate(0)?;
                faults::pass("journal.emptied");
                faults::write("journal.in-place")
                    .and_then(|()| self.file.write_all(&content))
                    .map_err(Error::io("rewrite journal", &self.path))?;
            }
        }
        self.bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        self.rewritten_bytes = self.bytes;
        self.broken = false;
        Ok(())
    }

    fn truncate(&mut self, bytes: u64) -> Result<()> {
        self.file
            .set_len(bytes)
            .and_then(|()| self.file.seek(SeekFrom::Start(bytes)))
            .map_err(Error::io("truncate journal", &self.path))?;
        Ok(())
    }
}

/// The changes in a journal that stays as it is; none, if there is no journal.
pub(super) fn look(path: &Path) -> Result<Vec<Replayed>> {
    match File::open(path) {
        Ok(mut file) => Ok(replay(&read(&mut file, path)?, &boot_id()).0),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("open journal", path)(error)),
    }
}

fn no_room() -> std::io::Error {
    rustix::io::Errno::NOSPC.into()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_string())
        .unwrap_or_default()
}

fn read(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let bytes = file.metadata().map_err(Error::io("stat journal", path))?.len();
    if bytes > MAX_BYTES {
        return Err(Error::invalid(format!(
            "journal {}: {bytes} bytes, more than the {MAX_BYTES} that can be its own; the store does not open with a part of it",
            path.display()
        )));
    }
    let mut content = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut content).map_err(Error::io("read journal", path))?;
    Ok(content)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    options
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 8);
    push_len(&mut frame, payload.len());
    frame.extend_from_slice(&checksum(payload).to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn payload(changes: &BTreeMap<Key, Change>) -> Vec<u8> {
    let mut out = Vec::new();
    for ((table, key), change) in changes {
        let flags = u8::from(change.ephemeral) | (u8::from(change.value.is_some()) << 1);
        out.push(flags);
        let name = table.name();
        push_len(&mut out, name.len());
        out.extend_from_slice(name.as_bytes());
        push_len(&mut out, key.len());
        out.extend_from_slice(key.as_bytes());
        let value = change.value.as_deref().unwrap_or_default();
        push_len(&mut out, value.len());
        out.extend_from_slice(value);
    }
    out
}

fn push_len(out: &mut Vec<u8>, len: usize) {
    // Records are bounded by the limits on requests, far below 4 GiB.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_le_bytes());
}

/// FNV-1a, 32 bits: it finds a torn write, nothing more is asked of it.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The changes, and how many bytes of the journal are whole frames (0: not this boot's).
fn replay(content: &[u8], boot_id: &str) -> (Vec<Replayed>, u64) {
    let mut rest = Cursor(content);
    match rest.frame() {
        Some(first) if first == boot_id.as_bytes() => {}
        _ => return (Vec::new(), 0),
    }
    let mut changes = Vec::new();
    let mut valid = content.len() - rest.0.len();
    while let Some(frame) = rest.frame() {
        let mut cursor = Cursor(frame);
        while let Some(change) = cursor.change() {
            changes.push(change);
        }
        valid = content.len() - rest.0.len();
    }
    (changes, u64::try_from(valid).unwrap_or(0))
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn number(&mut self) -> Option<u32> {
        self.take(4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        self.take(len)
    }

    fn frame(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let sum = self.number()?;
        let payload = self.take(len)?;
        (checksum(payload) == sum).then_some(payload)
    }

    fn change(&mut self) -> Option<Replayed> {
        let flags = *self.take(1)?.first()?;
        let table = Table::from_name(std::str::from_utf8(self.bytes()?).ok()?)?;
        let key = String::from_utf8(self.bytes()?.to_vec()).ok()?;
        let value = self.bytes()?;
        let value = (flags & 2 != 0).then(|| Arc::from(value));
        Some(Replayed { table, key, value, ephemeral: flags & 1 != 0 })
    }
}
