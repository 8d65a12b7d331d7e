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

/// A change's first byte.
const EPHEMERAL: u8 = 1;
/// It is no deletion.
const HAS_VALUE: u8 = 2;
/// Begins a frame after which nothing counts that stands in front of it.
const ALL_BEFORE_IS_VOID: u8 = 0x80;

/// A change as it is read back.
pub(super) struct Replayed {
    pub(super) table: Table,
    pub(super) key: String,
    pub(super) value: Option<Arc<[u8]>>,
    pub(super) ephemeral: bool,
}

/// Changes that the database on disk does not have, one frame per write:
/// `length u32, checksum u32, payload`; the first frame holds the kernel's boot id. A frame that is
/// cut short or does not match its checksum ends the journal: its write never returned. A whole one that says
/// what this version does not know is an error.
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
        let (changes, valid) = replay(&content, &boot_id).map_err(|what| unknown(&path, &what))?;
        let new = valid == 0;
        let mut journal =
            Self { path, file, bytes: valid, rewritten_bytes: 0, boot_id, new, broken: new };
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

    /// Does it lack a change, until it is rewritten?
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// As a write into it that failed would.
    #[cfg(test)]
    pub(super) fn break_for_test(&mut self) {
        self.broken = true;
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

    /// Replaces the whole by `changes`: by another file, or, where none can be made, by a frame behind all
    /// others that says so. A kill in between leaves one or the other.
    ///
    /// # Errors
    /// Then it is what it was. One that is broken stays so: nothing is appended until this has succeeded.
    pub(super) fn rewrite(&mut self, changes: &BTreeMap<Key, Change>) -> Result<()> {
        let mut content = frame(self.boot_id.as_bytes());
        if !changes.is_empty() {
            content.extend_from_slice(&frame(&payload(changes)));
        }
        if !fits(0, &content) {
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
        if replaced.is_err() {
            // What there is of it would take room from the other way; the next try makes it again.
            drop(std::fs::remove_file(&temporary));
        }
        match replaced {
            Ok(file) => {
                self.file = file;
                self.bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
            }
            // It can take more as it is.
            Err(error) if !self.broken => {
                return Err(Error::io("rewrite journal", temporary)(error));
            }
            Err(_) => self.rewrite_behind(changes)?,
        }
        self.rewritten_bytes = self.bytes;
        self.broken = false;
        Ok(())
    }

    /// Writes all of `changes` behind what is there, which counts no more from then on.
    fn rewrite_behind(&mut self, changes: &BTreeMap<Key, Change>) -> Result<()> {
        self.truncate(self.bytes)?;
        let mut content = Vec::new();
        if self.bytes == 0 {
            content = frame(self.boot_id.as_bytes());
        }
        let all = [&[ALL_BEFORE_IS_VOID][..], &payload(changes)].concat();
        content.extend_from_slice(&frame(&all));
        if !fits(self.bytes, &content) {
            return Err(Error::io("rewrite journal", &self.path)(no_room()));
        }
        let written =
            faults::write("journal.in-place").and_then(|()| self.file.write_all(&content));
        if let Err(error) = written {
            self.truncate(self.bytes)?;
            return Err(Error::io("rewrite journal", &self.path)(error));
        }
        self.bytes += u64::try_from(content.len()).unwrap_or(u64::MAX);
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
        Ok(mut file) => {
            let content = read(&mut file, path)?;
            let replayed = replay(&content, &boot_id()).map_err(|what| unknown(path, &what))?;
            Ok(replayed.0)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("open journal", path)(error)),
    }
}

/// A journal that another version has written: a part of it would be a wrong state.
fn unknown(path: &Path, what: &str) -> Error {
    Error::precondition(format!(
        "journal {}: {what}, which version {} of the store does not know; it was left as it is: start the version that wrote it and stop that cleanly, or start this one after the host's next start",
        path.display(),
        env!("CARGO_PKG_VERSION")
    ))
}

/// Is a journal of so many bytes with `more` behind them one that is read at start?
fn fits(bytes: u64, more: &[u8]) -> bool {
    let more = u64::try_from(more.len()).unwrap_or(u64::MAX);
    bytes.saturating_add(more) <= MAX_BYTES
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
        let mut flags = 0;
        if change.ephemeral {
            flags |= EPHEMERAL;
        }
        if change.value.is_some() {
            flags |= HAS_VALUE;
        }
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
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The changes, and how many bytes of the journal are whole frames (0: not this boot's).
///
/// # Errors
/// What a whole frame has that is not known.
fn replay(content: &[u8], boot_id: &str) -> Result<(Vec<Replayed>, u64), String> {
    let mut rest = Cursor(content);
    match rest.frame() {
        Some(first) if first == boot_id.as_bytes() => {}
        _ => return Ok((Vec::new(), 0)),
    }
    let mut changes = Vec::new();
    let mut valid = content.len() - rest.0.len();
    while let Some(frame) = rest.frame() {
        let mut cursor = Cursor(frame);
        if frame.first() == Some(&ALL_BEFORE_IS_VOID) {
            cursor.take(1);
            changes.clear();
        }
        while !cursor.0.is_empty() {
            changes.push(cursor.change()?);
        }
        valid = content.len() - rest.0.len();
    }
    Ok((changes, u64::try_from(valid).unwrap_or(0)))
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

    fn change(&mut self) -> Result<Replayed, String> {
        let cut = || "a change that ends in its middle".to_string();
        let flags = *self.take(1).and_then(<[u8]>::first).ok_or_else(cut)?;
        if flags & !(EPHEMERAL | HAS_VALUE) != 0 {
            return Err(format!("a change of the kind {flags:#04x}"));
        }
        let name = String::from_utf8_lossy(self.bytes().ok_or_else(cut)?);
        let table =
            Table::from_name(&name).ok_or_else(|| format!("a change of the table {name:?}"))?;
        let key = String::from_utf8(self.bytes().ok_or_else(cut)?.to_vec());
        let key = key.map_err(|_| format!("a key of the table {name:?} that is no UTF-8"))?;
        let value = self.bytes().ok_or_else(cut)?;
        let value = (flags & HAS_VALUE != 0).then(|| Arc::from(value));
        Ok(Replayed { table, key, value, ephemeral: flags & EPHEMERAL != 0 })
    }
}
