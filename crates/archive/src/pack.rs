//! A directory as a tar.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::fs::FileType;

use crate::{
    entry::{Entry, Kind, Owner, Time},
    error::{Error, Problem},
    node::Node,
    walk::{Next, Relation, walk},
    writer::TarWriter,
};

/// A part of the tree, and the name it gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Below the root; links in its parents are followed within the root, its own is not.
    /// Empty for the root.
    pub path: PathBuf,
    /// Its name in the archive; empty to put a directory's contents at the top.
    pub name: PathBuf,
}

/// What a filter says about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Leave it out, and all below it.
    Skip,
    /// Leave it out, but look below it.
    SkipSelf,
}

/// A filter sees the name in the archive and the entry as it would be written.
pub type Filter<'a> = dyn FnMut(&Path, &Entry) -> Verdict + 'a;

/// What to pack, and how.
pub struct PackOptions<'a> {
    /// In this order. Default: the root's contents at the top.
    pub sources: Vec<Source>,
    /// Whether a source without a name has an entry "./" of its own.
    pub include_root: bool,
    pub owner: Owner,
    /// Times after this many seconds since 1970 become it (SOURCE_DATE_EPOCH).
    pub clamp_mtime: Option<i64>,
    /// Keep fractions of seconds, at the price of a PAX header each.
    pub subsecond: bool,
    /// Keep file capabilities and `user.*` attributes.
    pub xattrs: bool,
    /// Do not go into other file systems; their mount points stay as empty directories.
    pub one_file_system: bool,
    pub filter: Option<&'a mut Filter<'a>>,
}

impl Default for PackOptions<'_> {
    fn default() -> Self {
        Self {
            sources: vec![Source::default()],
            include_root: false,
            owner: Owner::Keep,
            clamp_mtime: None,
            subsecond: false,
            xattrs: true,
            one_file_system: false,
            filter: None,
        }
    }
}

/// What was packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackStats {
    pub entries: u64,
    /// Data of files, without headers and padding.
    pub bytes: u64,
    /// Sockets, which no tar can hold.
    pub skipped_sockets: u64,
    /// Files that became shorter while they were read; their ends are zeros.
    pub changed_while_read: u64,
}

/// Packs what the options name below `root` into one complete tar. Entries are sorted by name
/// within their directory; equal trees give equal bytes.
///
/// # Errors
/// When something cannot be read or written, or an owner has no place in the id map.
pub fn pack<W: Write>(
    root: BorrowedFd<'_>,
    options: &mut PackOptions<'_>,
    writer: W,
) -> Result<(W, PackStats), Error> {
    let mut out = TarWriter::new(writer).subsecond(options.subsecond);
    let stats = pack_into(root, options, &mut out)?;
    Ok((out.finish()?, stats))
}

/// As [`pack`], into a tar that goes on. Whether times keep their fractions is the writer's
/// decision then.
///
/// # Errors
/// As [`pack`].
pub fn pack_into<W: Write>(
    root: BorrowedFd<'_>,
    options: &mut PackOptions<'_>,
    out: &mut TarWriter<W>,
) -> Result<PackStats, Error> {
    let sources = std::mem::take(&mut options.sources);
    let mut packer = Packer::new(out, options);
    let mut result = Ok(());
    for source in &sources {
        result = packer.source(root, source);
        if result.is_err() {
            break;
        }
    }
    let stats = packer.stats;
    options.sources = sources;
    result.map(|()| stats)
}

/// Turns objects into entries.
pub(crate) struct Packer<'p, 'a, W> {
    out: &'p mut TarWriter<W>,
    options: &'p mut PackOptions<'a>,
    /// Names of files that have more than one, by what they are.
    links: HashMap<(u32, u32, u64), PathBuf>,
    pub(crate) stats: PackStats,
}

impl<'p, 'a, W: Write> Packer<'p, 'a, W> {
    pub(crate) fn new(out: &'p mut TarWriter<W>, options: &'p mut PackOptions<'a>) -> Self {
        Self { out, options, links: HashMap::new(), stats: PackStats::default() }
    }

    fn source(&mut self, root: BorrowedFd<'_>, source: &Source) -> Result<(), Error> {
        let start = Node::resolve(root, &source.path)?;
        let device = start.device();
        if source.name.as_os_str().is_empty() && !start.is_dir() {
            return Err(Error::entry(&source.path, Problem::EmptyName));
        }
        walk(&start, Vec::new(), Relation::Complete, &mut |visit| {
            let Some(node) = visit.node else { return Ok(Next::Skip) };
            let name = if visit.path.as_os_str().is_empty() {
                source.name.clone()
            } else {
                source.name.join(visit.path)
            };
            let next = self.object(&name, node)?;
            if self.options.one_file_system && node.device() != device {
                return Ok(Next::Skip);
            }
            Ok(next)
        })
    }

    /// Writes the entry of an object, unless it is the unnamed root and that was not asked for.
    pub(crate) fn object(&mut self, name: &Path, node: &Node) -> Result<Next, Error> {
        if name.as_os_str().is_empty() {
            if !self.options.include_root {
                return Ok(Next::Descend);
            }
            return self.object(Path::new("./"), node);
        }
        match self.entry(name, node)? {
            Some(entry) => self.emit(entry, Some(node)),
            None => Ok(Next::Skip),
        }
    }

    /// The entry of an object with the options applied; `None` (and counted) for a socket.
    pub(crate) fn entry(&mut self, name: &Path, node: &Node) -> Result<Option<Entry>, Error> {
        let Some(mut entry) = node.entry(name, name, self.options.xattrs)? else {
            self.stats.skipped_sockets += 1;
            return Ok(None);
        };
        let owner = self.options.owner.apply(entry.uid, entry.gid);
        let owner = owner.map_err(|problem| Error::entry(name, problem))?;
        (entry.uid, entry.gid) = owner.unwrap_or((0, 0));
        entry.mtime = self.clamp(entry.mtime);
        Ok(Some(entry))
    }

    fn clamp(&self, time: Time) -> Time {
        match self.options.clamp_mtime {
            Some(max) => time.min(Time { secs: max, nanos: 0 }),
            None => time,
        }
    }

    /// Asks the filter and writes the entry, with the data of `node` if it is a file.
    pub(crate) fn emit(&mut self, mut entry: Entry, node: Option<&Node>) -> Result<Next, Error> {
        if let Some(filter) = &mut self.options.filter {
            match filter(&entry.name, &entry) {
                Verdict::Keep => {}
                Verdict::Skip => return Ok(Next::Skip),
                Verdict::SkipSelf => return Ok(Next::Descend),
            }
        }
        self.stats.entries += 1;
        if let Some(node) = node
            && !node.is_dir()
            && node.stat().stx_nlink > 1
        {
            if let Some(first) = self.links.get(&node.identity()) {
                entry.kind = Kind::HardLink { target: first.clone() };
                entry.size = 0;
                entry.xattrs.clear();
                self.out.append(&entry, io::empty())?;
                return Ok(Next::Descend);
            }
            self.links.insert(node.identity(), entry.name.clone());
        }
        match node {
            Some(node) if node.file_type() == FileType::RegularFile => {
                let file = node.open_file(&entry.name)?;
                let mut data = Exactly { file, left: entry.size, short: false };
                self.out.append(&entry, &mut data)?;
                self.stats.changed_while_read += u64::from(data.short);
                self.stats.bytes += entry.size;
            }
            _ => self.out.append(&entry, io::empty())?,
        }
        Ok(Next::Descend)
    }
}

/// A file's first bytes, as many as its header promised, with zeros if it ends early.
struct Exactly<R> {
    file: R,
    left: u64,
    short: bool,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let mut n = if self.short { 0 } else { self.file.read(&mut buf[..want])? };
        if n == 0 {
            self.short = true;
            buf[..want].fill(0);
            n = want;
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// `name`'s parent joined with another last component.
pub(crate) fn sibling(name: &Path, last: &std::ffi::OsStr) -> PathBuf {
    match name.parent() {
        Some(parent) if !parent.as_os_str().as_bytes().is_empty() => parent.join(last),
        _ => PathBuf::from(last),
    }
}
