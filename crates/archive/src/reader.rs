//! Strict, streaming reading of tar archives, entry by entry.
//!
//! Where GNU tar 1.34 and Go's archive/tar agree, so does this; where they do not, the archive
//! is refused. In particular: a PAX `size` replaces the header's for both the data and the
//! position of the next header; types without data must not have a size (hard links may: both
//! ignore it).

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, Read},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
};

use crate::{
    entry::{Chunk, Entry, Kind, Limits, Position, Time},
    error::{Error, Problem},
    header::{self, BLOCK, BLOCK_U64, Block, Format, Header},
    pax::Pax,
    sparse,
};

const BUFFER_BYTES: usize = 64 << 10;
const ZERO: Block = [0; BLOCK];

/// Reads the entries of an uncompressed tar, in order, in one pass.
pub struct TarReader<R> {
    input: BufReader<R>,
    limits: Limits,
    offset: u64,
    /// Data of the current entry that was not read yet.
    remaining: u64,
    padding: u64,
    entries: u64,
    total_bytes: u64,
    global: Pax,
    ended: bool,
}

/// Extension headers that wait for their entry.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<R: Read> TarReader<R> {
    pub fn new(reader: R, limits: Limits) -> Self {
        Self {
            input: BufReader::with_capacity(BUFFER_BYTES, reader),
            limits,
            offset: 0,
            remaining: 0,
            padding: 0,
            entries: 0,
            total_bytes: 0,
            global: Pax::default(),
            ended: false,
        }
    }

    /// The next entry, past whatever data of the current one was not read; `None` at the end.
    ///
    /// # Errors
    /// For malformed, ambiguous or truncated archives and for ones above the limits. After an
    /// error the reader is of no further use.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.remaining)?;
        self.remaining = 0;
        if !self.skip_padding()? {
            self.ended = true;
            return Ok(None);
        }
        let mut pending = Pending::default();
        loop {
            let at = self.offset;
            let Some(block) = self.block()? else {
                self.ended = true;
                return if pending.is_empty() {
                    Ok(None)
                } else {
                    Err(Error::Header { offset: at, problem: Problem::DanglingExtension })
                };
            };
            let step = if block == ZERO {
                self.end_of_archive(&pending)
            } else {
                self.header(&block, at, &mut pending)
            };
            match step {
                Ok(Step::Entry(entry)) => return Ok(Some(*entry)),
                Ok(Step::Extension) => {}
                Ok(Step::End) => {
                    self.ended = true;
                    return Ok(None);
                }
                Err(Fault::Problem(problem)) => return Err(Error::Header { offset: at, problem }),
                Err(Fault::Error(error)) => return Err(error),
            }
        }
    }

    /// The current entry's data as it is stored: for a sparse file its chunks alone.
    pub fn data(&mut self) -> Data<'_, R> {
        Data { reader: self }
    }

    /// The current entry's contents, holes as zeros. `entry` must be the one returned last.
    pub fn contents(&mut self, entry: &Entry) -> Contents<'_, R> {
        let chunks = match &entry.kind {
            Kind::File { sparse: Some(chunks) } => chunks.clone(),
            Kind::File { sparse: None } => vec![Chunk { offset: 0, len: entry.size }],
            _ => Vec::new(),
        };
        Contents { data: self.data(), chunks, next: 0, position: 0, size: entry.size }
    }

    /// Bytes of the stream that were consumed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads to the end of the stream, beyond the end of the archive, and gives the stream back.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn finish(mut self) -> Result<R, Error> {
        loop {
            let n = self.fill()?.len();
            if n == 0 {
                return Ok(self.input.into_inner());
            }
            self.input.consume(n);
            self.offset += n as u64;
        }
    }

    fn fill(&mut self) -> Result<&[u8], Error> {
        let offset = self.offset;
        loop {
            match self.input.fill_buf() {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Read { offset, source }),
            }
        }
        Ok(self.input.buffer())
    }

    /// Answers whether the stream goes on. One that ends right after an entry's data is whole: docker's
    /// client leaves the padding out behind the last file that it adds to a build context, and Go's reader
    /// takes that for the end.
    fn skip_padding(&mut self) -> Result<bool, Error> {
        let padding = std::mem::take(&mut self.padding);
        if padding > 0 && self.fill()?.is_empty() {
            return Ok(false);
        }
        self.skip(padding)?;
        Ok(true)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), Error> {
        while count > 0 {
            let available = self.fill()?.len();
            if available == 0 {
                return Err(Error::Truncated { offset: self.offset });
            }
            let step = usize::try_from(count).unwrap_or(usize::MAX).min(available);
            self.input.consume(step);
            self.offset += step as u64;
            count -= step as u64;
        }
        Ok(())
    }

    fn exact(&mut self, buf: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < buf.len() {
            let available = self.fill()?;
            if available.is_empty() {
                return Err(Error::Truncated { offset: self.offset });
            }
            let n = available.len().min(buf.len() - done);
            buf[done..done + n].copy_from_slice(&available[..n]);
            self.input.consume(n);
            self.offset += n as u64;
            done += n;
        }
        Ok(())
    }

    /// One block, or `None` when the stream ends where a block would begin.
    fn block(&mut self) -> Result<Option<Block>, Error> {
        if self.fill()?.is_empty() {
            return Ok(None);
        }
        let mut block = ZERO;
        self.exact(&mut block)?;
        Ok(Some(block))
    }

    /// A zero block was read: the archive ends here, if another one or nothing follows.
    fn end_of_archive(&mut self, pending: &Pending) -> Result<Step, Fault> {
        if !pending.is_empty() {
            return Err(Problem::DanglingExtension.into());
        }
        match self.block()? {
            Some(block) if block != ZERO => Err(Problem::LoneZeroBlock.into()),
            _ => Ok(Step::End),
        }
    }

    fn header(&mut self, block: &Block, at: u64, pending: &mut Pending) -> Result<Step, Fault> {
        let header = Header::parse(block)?;
        match header.typeflag() {
            b'x' => {
                let data = self.extension(header.size()?)?;
                let mut pax = self.global.clone();
                pax.parse(&data, self.limits.sparse_chunks)?;
                set_once(&mut pending.pax, pax)?;
            }
            b'g' => {
                let data = self.extension(header.size()?)?;
                let mut global = self.global.clone();
                global.parse_global(&data)?;
                self.global = global;
            }
            b'L' => {
                let data = self.extension(header.size()?)?;
                set_once(&mut pending.long_name, header::text(&data).to_vec())?;
            }
            b'K' => {
                let data = self.extension(header.size()?)?;
                set_once(&mut pending.long_link, header::text(&data).to_vec())?;
            }
            // A volume label describes the archive and has no data.
            b'V' if pending.is_empty() && header.size()? == 0 => {}
            _ => {
                let entry = self.entry(&header, at, std::mem::take(pending))?;
                return Ok(Step::Entry(Box::new(entry)));
            }
        }
        Ok(Step::Extension)
    }

    /// The data of an extension header, with its padding consumed.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        if size > self.limits.extension {
            let limit = self.limits.extension;
            return Err(Error::Limit { what: "bytes in an extension header", limit }.into());
        }
        let mut data =
            vec![0; usize::try_from(size).map_err(|_| Problem::Range("extension size"))?];
        self.exact(&mut data)?;
        let padding = header::padded(size).ok_or(Problem::Range("extension size"))? - size;
        self.skip(padding)?;
        Ok(data)
    }

    fn entry(&mut self, header: &Header<'_>, at: u64, pending: Pending) -> Result<Entry, Fault> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::Limit { what: "entries", limit: self.limits.entries }.into());
        }
        let Pending { pax, long_name, long_link } = pending;
        let mut pax = pax.unwrap_or_else(|| self.global.clone());
        let name = pax.sparse.name.take().or(pax.path.take()).or(long_name);
        let name = name.unwrap_or_else(|| header.name());
        let link = pax.linkpath.take().or(long_link).unwrap_or_else(|| header.link().to_vec());
        self.check_name(&name, Problem::EmptyName)?;
        let tape_size = match pax.size {
            Some(size) => size,
            None if header.typeflag() == b'1' => 0,
            None => header.size()?,
        };
        let (kind, size, stored) = self.kind(header, &name, link, &mut pax, tape_size)?;
        self.begin_data(stored)?;
        let id = |pax: Option<u64>, told: Result<i128, Problem>, what| {
            let id = pax.map_or(told, |n| Ok(i128::from(n)))?;
            u32::try_from(id).ok().filter(|n| *n != u32::MAX).ok_or(Problem::Range(what))
        };
        Ok(Entry {
            name: path(name),
            kind,
            mode: header.mode()?,
            uid: id(pax.uid, header.uid(), "uid")?,
            gid: id(pax.gid, header.gid(), "gid")?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Time { secs: header.mtime()?, nanos: 0 },
            },
            size,
            xattrs: pax.xattrs,
            user: OsString::from_vec(pax.user.unwrap_or_else(|| header.user().to_vec())),
            group: OsString::from_vec(pax.group.unwrap_or_else(|| header.group().to_vec())),
            position: Position { header: at, data: self.offset, stored },
        })
    }

    fn check_name(&self, name: &[u8], empty: Problem) -> Result<(), Fault> {
        if name.is_empty() {
            return Err(empty.into());
        }
        if name.contains(&0) {
            return Err(Problem::NulInName.into());
        }
        if name.len() > self.limits.name {
            let limit = self.limits.name as u64;
            return Err(Error::Limit { what: "bytes in a name", limit }.into());
        }
        Ok(())
    }

    /// Accounts for the data that follows.
    fn begin_data(&mut self, stored: u64) -> Result<(), Fault> {
        self.total_bytes = self.total_bytes.saturating_add(stored);
        if self.total_bytes > self.limits.total_bytes {
            let limit = self.limits.total_bytes;
            return Err(Error::Limit { what: "bytes of data", limit }.into());
        }
        self.remaining = stored;
        self.padding = header::padded(stored).ok_or(Problem::Range("size"))? - stored;
        Ok(())
    }

    /// The entry's kind, logical size and stored bytes. Reads sparse maps that follow the header.
    fn kind(
        &mut self,
        header: &Header<'_>,
        name: &[u8],
        link: Vec<u8>,
        pax: &mut Pax,
        tape_size: u64,
    ) -> Result<(Kind, u64, u64), Fault> {
        let typeflag = header.typeflag();
        let regular = matches!(typeflag, b'0' | 0 | b'7');
        if pax.sparse.is_used() {
            if !regular || name.ends_with(b"/") {
                return Err(Problem::Sparse.into());
            }
            return self.pax_sparse(pax, tape_size);
        }
        if typeflag == b'S' {
            return self.gnu_sparse(header, tape_size);
        }
        let kind = match typeflag {
            // The convention of archives that know no directories.
            b'0' | 0 | b'7' if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => return Ok((Kind::File { sparse: None }, tape_size, tape_size)),
            b'5' => Kind::Directory,
            b'1' | b'2' => {
                self.check_name(&link, Problem::EmptyLink)?;
                let target = path(link);
                if typeflag == b'1' { Kind::HardLink { target } } else { Kind::Symlink { target } }
            }
            b'6' => Kind::Fifo,
            b'3' | b'4' => {
                let (major, minor) = header.device()?;
                if typeflag == b'3' {
                    Kind::CharDevice { major, minor }
                } else {
                    Kind::BlockDevice { major, minor }
                }
            }
            b'D' => return Err(Problem::Unsupported("GNU incremental dump").into()),
            b'M' => return Err(Problem::Unsupported("multi-volume").into()),
            b'N' => return Err(Problem::Unsupported("old GNU long name").into()),
            b'V' => return Err(Problem::Unsupported("volume label").into()),
            b'X' => return Err(Problem::Unsupported("Solaris extended header").into()),
            other => return Err(Problem::Type(other).into()),
        };
        if tape_size != 0 {
            return Err(Problem::SizeOfDataless.into());
        }
        Ok((kind, 0, 0))
    }

    fn gnu_sparse(&mut self, header: &Header<'_>, tape: u64) -> Result<(Kind, u64, u64), Fault> {
        if header.format() != Format::Gnu {
            return Err(Problem::Type(b'S').into());
        }
        let max = self.limits.sparse_chunks;
        let mut chunks = Vec::new();
        let (real_size, mut more) = sparse::gnu_header(header.0, &mut chunks, max)?;
        while more {
            let mut block = ZERO;
            self.exact(&mut block)?;
            more = sparse::gnu_extension(&block, &mut chunks, max)?;
        }
        finish_sparse(chunks, real_size, tape)
    }

    fn pax_sparse(&mut self, pax: &mut Pax, tape: u64) -> Result<(Kind, u64, u64), Fault> {
        let map = std::mem::take(&mut pax.sparse);
        let real_size = map.real_size.ok_or(Problem::Sparse)?;
        match (map.major.unwrap_or(0), map.minor.unwrap_or(0)) {
            (1, 0) => {
                if map.chunks.is_some() {
                    return Err(Problem::Sparse.into());
                }
                let mut parser = sparse::MapParser::default();
                let mut left = tape;
                loop {
                    left = left.checked_sub(BLOCK_U64).ok_or(Problem::Sparse)?;
                    let mut block = ZERO;
                    self.exact(&mut block)?;
                    if parser.feed(&block, self.limits.sparse_chunks)? {
                        break;
                    }
                }
                finish_sparse(parser.into_chunks(), real_size, left)
            }
            (0, 0 | 1) => {
                let chunks = map.chunks.unwrap_or_default();
                if map.blocks.is_some_and(|n| n != chunks.len() as u64) {
                    return Err(Problem::Sparse.into());
                }
                finish_sparse(chunks, real_size, tape)
            }
            _ => Err(Problem::Unsupported("sparse files of an unknown version: such").into()),
        }
    }
}

fn finish_sparse(chunks: Vec<Chunk>, real_size: u64, tape: u64) -> Result<(Kind, u64, u64), Fault> {
    let (chunks, stored) = sparse::checked(chunks, real_size)?;
    if stored != tape {
        return Err(Problem::Sparse.into());
    }
    Ok((Kind::File { sparse: Some(chunks) }, real_size, stored))
}

fn path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

fn set_once<T>(slot: &mut Option<T>, value: T) -> Result<(), Problem> {
    if slot.replace(value).is_some() { Err(Problem::DuplicateExtension) } else { Ok(()) }
}

enum Step {
    Entry(Box<Entry>),
    Extension,
    End,
}

/// An error of the stream, or a problem that still lacks its place.
enum Fault {
    Error(Error),
    Problem(Problem),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// The stored bytes of the current entry. A truncated archive is `UnexpectedEof`.
pub struct Data<'a, R> {
    reader: &'a mut TarReader<R>,
}

impl<R> Data<'_, R> {
    /// Bytes that are left.
    pub fn remaining(&self) -> u64 {
        self.reader.remaining
    }
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.reader.remaining).unwrap_or(usize::MAX);
        let want = buf.len().min(left);
        if want == 0 {
            return Ok(0);
        }
        let n = self.reader.input.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.reader.remaining -= n as u64;
        self.reader.offset += n as u64;
        Ok(n)
    }
}

/// The contents of the current entry with its holes filled.
pub struct Contents<'a, R> {
    data: Data<'a, R>,
    chunks: Vec<Chunk>,
    next: usize,
    position: u64,
    size: u64,
}

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let clip = |len: u64| usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
        while let Some(chunk) = self.chunks.get(self.next) {
            if self.position < chunk.offset {
                let n = clip(chunk.offset - self.position);
                buf[..n].fill(0);
                self.position += n as u64;
                return Ok(n);
            }
            let left = chunk.offset + chunk.len - self.position;
            if left == 0 {
                self.next += 1;
                continue;
            }
            let n = clip(left);
            let n = self.data.read(&mut buf[..n])?;
            self.position += n as u64;
            return Ok(n);
        }
        let n = clip(self.size - self.position);
        buf[..n].fill(0);
        self.position += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_archive_may_end_with_its_last_entrys_data() {
        let mut archive = crate::TarWriter::new(Vec::new());
        let text = b"FROM scratch\n";
        let mut entry = Entry::new("Dockerfile", Kind::File { sparse: None });
        entry.size = text.len() as u64;
        archive.append(&entry, &text[..]).unwrap();
        let whole = archive.finish().unwrap();
        let end = BLOCK + text.len();
        for length in [end, end + 1, whole.len()] {
            let mut reader = TarReader::new(&whole[..length], Limits::default());
            reader.next_entry().unwrap().unwrap();
            let next = reader.next_entry();
            // In the middle of the padding it was cut off.
            assert_eq!(next.is_err(), length == end + 1, "{length}: {next:?}");
            assert!(next.is_err() || next.unwrap().is_none());
        }
        let mut reader = TarReader::new(&whole[..end - 1], Limits::default());
        reader.next_entry().unwrap().unwrap();
        assert!(reader.next_entry().is_err());
    }
}
