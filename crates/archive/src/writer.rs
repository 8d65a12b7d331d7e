//! Deterministic writing: ustar headers, with a PAX header only where ustar has no room.

use std::{
    io::{Read, Write},
    os::unix::ffi::OsStrExt,
};

use crate::{
    entry::{Entry, Kind, Time},
    error::{Error, Problem},
    header::{self, BLOCK, Block},
    pax,
};

const COPY_BYTES: usize = 128 << 10;
/// The largest id that seven octal digits hold.
const USTAR_ID_MAX: u32 = 0o7_777_777;
/// The largest size and time that eleven octal digits hold.
const USTAR_SIZE_MAX: u64 = 0o77_777_777_777;

/// Writes a tar. Equal entries give equal bytes.
pub struct TarWriter<W> {
    writer: W,
    subsecond: bool,
    buffer: Vec<u8>,
}

impl<W: Write> TarWriter<W> {
    pub fn new(writer: W) -> Self {
        Self { writer, subsecond: false, buffer: vec![0; COPY_BYTES] }
    }

    /// Whether times keep their fraction of a second (costs a PAX header each). Default: no.
    #[must_use]
    pub fn subsecond(mut self, keep: bool) -> Self {
        self.subsecond = keep;
        self
    }

    /// Writes one entry; `entry.size` bytes are taken from `data` for a file, none otherwise.
    /// Sparse files are written in full: `data` must be their contents with zeros in the holes.
    ///
    /// # Errors
    /// When the sink or `data` fails, `data` ends early, or the entry cannot be stored.
    pub fn append(&mut self, entry: &Entry, data: impl Read) -> Result<(), Error> {
        let entry_error = |problem| Error::entry(&entry.name, problem);
        let (block, records) = self.encode(entry).map_err(entry_error)?;
        if !records.is_empty() {
            self.write_pax(&block, &records)?;
        }
        self.write(&block)?;
        if let Kind::File { .. } = entry.kind {
            self.copy(entry, data)?;
        }
        Ok(())
    }

    /// Writes the end of the archive and gives the sink back.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn finish(mut self) -> Result<W, Error> {
        self.write(&[0; 2 * BLOCK])?;
        self.writer.flush().map_err(|source| Error::Write { source })?;
        Ok(self.writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.writer.write_all(bytes).map_err(|source| Error::Write { source })
    }

    fn copy(&mut self, entry: &Entry, mut data: impl Read) -> Result<(), Error> {
        let mut left = entry.size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let n = match data.read(&mut self.buffer[..want]) {
                Ok(0) => return Err(Error::entry(&entry.name, Problem::DataLength)),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Data { name: entry.name.clone(), source }),
            };
            let written = self.writer.write_all(&self.buffer[..n]);
            written.map_err(|source| Error::Write { source })?;
            left -= n as u64;
        }
        self.pad(entry.size)
    }

    fn pad(&mut self, size: u64) -> Result<(), Error> {
        let padded = header::padded(size).unwrap_or(size);
        let padding = usize::try_from(padded - size).expect("less than a block");
        self.write(&[0; BLOCK][..padding])
    }

    fn write_pax(&mut self, main: &Block, records: &[u8]) -> Result<(), Error> {
        let mut block = [0; BLOCK];
        let base = header::text(&main[..100]);
        let base = base.strip_suffix(b"/").unwrap_or(base);
        let base = base.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let name = [b"PaxHeaders/", &base[..base.len().min(80)]].concat();
        block[..name.len()].copy_from_slice(&name);
        fill_common(&mut block, 0o644, b'x');
        header::put_octal(&mut block[124..136], records.len() as u64);
        header::seal(&mut block);
        self.write(&block)?;
        self.write(records)?;
        self.pad(records.len() as u64)
    }

    /// The header block, and the PAX records that it needs.
    fn encode(&self, entry: &Entry) -> Result<(Block, Vec<u8>), Problem> {
        let mut block: Block = [0; BLOCK];
        let mut records = Vec::new();
        let (typeflag, link) = match &entry.kind {
            Kind::File { .. } => (b'0', None),
            Kind::HardLink { target } => (b'1', Some(target)),
            Kind::Symlink { target } => (b'2', Some(target)),
            Kind::CharDevice { .. } => (b'3', None),
            Kind::BlockDevice { .. } => (b'4', None),
            Kind::Directory => (b'5', None),
            Kind::Fifo => (b'6', None),
        };
        fill_common(&mut block, entry.mode & 0o7777, typeflag);
        // In the order of the keywords' names, for whoever compares.
        put_id(&mut block[116..124], b"gid", entry.gid, &mut records);
        put_text(&mut block[297..329], b"gname", entry.group.as_bytes(), &mut records)?;
        if let Some(link) = link {
            let link = link.as_os_str().as_bytes();
            if link.is_empty() {
                return Err(Problem::EmptyLink);
            }
            put_text(&mut block[157..257], b"linkpath", link, &mut records)?;
        }
        self.put_mtime(&mut block, entry.mtime, &mut records);
        put_name(&mut block, entry, &mut records)?;
        let size = if typeflag == b'0' { entry.size } else { 0 };
        if size > USTAR_SIZE_MAX {
            pax::write_record(&mut records, b"size", size.to_string().as_bytes());
        }
        header::put_octal(&mut block[124..136], if size > USTAR_SIZE_MAX { 0 } else { size });
        put_id(&mut block[108..116], b"uid", entry.uid, &mut records);
        put_text(&mut block[265..297], b"uname", entry.user.as_bytes(), &mut records)?;
        for (name, value) in &entry.xattrs {
            if name.as_bytes().contains(&b'=') {
                return Err(Problem::Range("extended attribute's name"));
            }
            let key = [b"SCHILY.xattr.", name.as_bytes()].concat();
            pax::write_record(&mut records, &key, value);
        }
        if let Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } = entry.kind {
            let fits = header::put_octal(&mut block[329..337], u64::from(major))
                && header::put_octal(&mut block[337..345], u64::from(minor));
            if !fits {
                return Err(Problem::Range("device number"));
            }
        }
        header::seal(&mut block);
        Ok((block, records))
    }

    fn put_mtime(&self, block: &mut Block, mtime: Time, records: &mut Vec<u8>) {
        let time = if self.subsecond { mtime } else { Time { secs: mtime.secs, nanos: 0 } };
        let in_header = u64::try_from(time.secs).ok().filter(|s| *s <= USTAR_SIZE_MAX);
        if in_header.is_none() || time.nanos != 0 {
            pax::write_record(records, b"mtime", pax::time_text(time).as_bytes());
        }
        header::put_octal(&mut block[136..148], in_header.unwrap_or(0));
    }
}

fn fill_common(block: &mut Block, mode: u32, typeflag: u8) {
    header::put_octal(&mut block[100..108], u64::from(mode));
    header::put_octal(&mut block[108..116], 0);
    header::put_octal(&mut block[116..124], 0);
    header::put_octal(&mut block[124..136], 0);
    header::put_octal(&mut block[136..148], 0);
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    header::put_octal(&mut block[329..337], 0);
    header::put_octal(&mut block[337..345], 0);
}

fn put_id(field: &mut [u8], key: &[u8], id: u32, records: &mut Vec<u8>) {
    if id > USTAR_ID_MAX {
        pax::write_record(records, key, id.to_string().as_bytes());
    }
    header::put_octal(field, if id > USTAR_ID_MAX { 0 } else { u64::from(id) });
}

fn put_text(
    field: &mut [u8],
    key: &[u8],
    text: &[u8],
    records: &mut Vec<u8>,
) -> Result<(), Problem> {
    if text.contains(&0) {
        return Err(Problem::NulInName);
    }
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text[..n]);
    if text.len() > field.len() {
        pax::write_record(records, key, text);
    }
    Ok(())
}

/// The name, split into ustar's prefix and name where it is too long for the name alone.
fn put_name(block: &mut Block, entry: &Entry, records: &mut Vec<u8>) -> Result<(), Problem> {
    let mut name = entry.name.as_os_str().as_bytes().to_vec();
    if name.is_empty() {
        return Err(Problem::EmptyName);
    }
    if entry.kind == Kind::Directory && !name.ends_with(b"/") {
        name.push(b'/');
    } else if entry.kind != Kind::Directory && name.ends_with(b"/") {
        return Err(Problem::Range("name: only a directory's ends in a slash; this one"));
    }
    if name.len() > 100 {
        // The rightmost slash that leaves a prefix of at most 155 bytes and a non-empty name.
        let split = name[..name.len() - 1].iter().rposition(|b| *b == b'/');
        let candidates = name.iter().take(156).enumerate();
        let best = candidates.filter(|(_, b)| **b == b'/').map(|(i, _)| i).next_back();
        let best = best.filter(|i| *i > 0).and_then(|i| split.map(|s| i.min(s)));
        if let Some(at) = best.filter(|at| name[*at] == b'/' && name.len() - at - 1 <= 100) {
            block[345..345 + at].copy_from_slice(&name[..at]);
            let rest = &name[at + 1..];
            block[..rest.len()].copy_from_slice(rest);
            return Ok(());
        }
    }
    put_text(&mut block[..100], b"path", &name, records)
}
