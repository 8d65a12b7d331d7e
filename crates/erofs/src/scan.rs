//! A layer's tar as a tree. It means the same as extraction into one layer of an overlay does
//! (`archive::extract`): parents are resolved inside the layer with its links followed, missing ones are
//! made, a later entry replaces an earlier one, whiteouts and opaque marks hide what lies below.
//!
//! Whatever extraction refuses is refused here too; what it would do in a way of its own is
//! [`Error::Unsupported`].

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::OsStr,
    io::{Read, Write},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use archive::{Chunk, Entry, Kind, Limits, TarReader};

use crate::{
    BLOCK_BYTES,
    error::{Error, Result},
    tree::{Body, Bytes, DEPTH, Data, Directory, Layer, Meta, Node, Part},
};

/// Entries of one layer: they are in memory all at once, some 200 bytes each.
const NODES: usize = 2_000_000;
/// As the kernel follows at most this many links in one path.
const LINKS: usize = 40;
/// Pieces of one sparse file: 8 bytes of index each.
const CHUNKS: u64 = 1 << 16;
/// Pieces of a sparse file have at least a page.
const CHUNK_BITS: u8 = 12;
/// Zeros that a layer's sparse files may cost in the extra file, in bytes.
const PADDING_BYTES: u64 = 1 << 30;
/// The kernel's limits (linux/kdev_t.h).
const MAJORS: u32 = 1 << 12;
const MINORS: u32 = 1 << 20;
/// An attribute's value is counted in 16 bits, all of an inode's in units of 4 bytes likewise.
const XATTR_BYTES: usize = 65_535;
const XATTRS_BYTES: usize = 4 * 65_000;
const COPY_BYTES: usize = 128 << 10;

/// What [`scan`] found, with the reader at the stream's end.
#[derive(Debug)]
pub struct Scanned<R> {
    pub layer: Layer,
    pub reader: R,
}

/// Reads an uncompressed tar to the very end of its stream. `extra` gets what cannot be pointed at in
/// the tar; nothing is written for most layers.
///
/// # Errors
/// [`Error::Archive`] for a malformed tar or a failed read, [`Error::Write`] when `extra` fails,
/// [`Error::Unsupported`] for what must be extracted.
pub fn scan<R: Read>(tar: R, extra: &mut dyn Write) -> Result<Scanned<R>> {
    let mut reader = TarReader::new(Counted { inner: tar, bytes: 0 }, Limits::default());
    let mut scan = Scan::new(extra);
    while let Some(entry) = reader.next_entry().map_err(Error::Archive)? {
        scan.entry(&entry, &mut reader)?;
    }
    let Counted { inner, bytes } = reader.finish().map_err(Error::Archive)?;
    // The kernel reads whole blocks.
    if scan.end > bytes {
        return Err(Error::unsupported("data without its padding", "the last file"));
    }
    let layer = Layer { nodes: scan.nodes, tar_bytes: bytes, extra_bytes: scan.extra_bytes };
    Ok(Scanned { layer, reader: inner })
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes += n as u64;
        Ok(n)
    }
}

/// What the last component of a name says (image-spec, "Whiteouts"; names of AUFS' own books mean
/// nothing).
enum Meaning<'a> {
    Plain,
    Remove(&'a [u8]),
    Opaque,
    Ignore,
    Wrong,
}

fn meaning(name: &[u8]) -> Meaning<'_> {
    if name == b".wh..wh..opq" {
        return Meaning::Opaque;
    }
    if name.starts_with(b".wh..wh.") {
        return Meaning::Ignore;
    }
    match name.strip_prefix(b".wh.") {
        None => Meaning::Plain,
        Some(b"" | b"." | b"..") => Meaning::Wrong,
        Some(rest) => Meaning::Remove(rest),
    }
}

struct Scan<'e> {
    nodes: Vec<Node>,
    /// How deep each directory lies; 0 for what is none.
    depths: Vec<u16>,
    /// Names that this layer deletes from the ones below.
    deleted: BTreeSet<(u32, Bytes)>,
    /// The parent looked up last. Making something where nothing was cannot change what a path leads
    /// to; replacing can, and empties this.
    last: Option<(PathBuf, u32)>,
    extra: &'e mut dyn Write,
    extra_bytes: u64,
    padding_bytes: u64,
    /// Where the last block that is pointed at ends in the tar.
    end: u64,
}

impl<'e> Scan<'e> {
    fn new(extra: &'e mut dyn Write) -> Self {
        Self {
            nodes: vec![Node::implied()],
            depths: vec![0],
            deleted: BTreeSet::new(),
            last: None,
            extra,
            extra_bytes: 0,
            padding_bytes: 0,
            end: 0,
        }
    }

    fn entry<R: Read>(&mut self, entry: &Entry, reader: &mut TarReader<R>) -> Result<()> {
        let path = entry.relative_path().map_err(Error::Archive)?;
        let Some(name) = path.file_name().map(OsStr::as_bytes) else {
            if entry.kind != Kind::Directory {
                return Err(Error::unsupported("a root that is no directory", &entry.name));
            }
            return self.describe(0, entry);
        };
        let dir = path.parent().unwrap_or(Path::new(""));
        for component in dir {
            match meaning(component.as_bytes()) {
                Meaning::Plain => {}
                Meaning::Ignore => return Ok(()),
                _ => return Err(Error::unsupported("a whiteout with contents", &entry.name)),
            }
        }
        match meaning(name) {
            Meaning::Plain => {}
            Meaning::Ignore => return Ok(()),
            Meaning::Remove(target) => return self.whiteout(dir, target),
            Meaning::Opaque => {
                let parent = self.parent(dir)?;
                self.directory(parent, dir)?.opaque = true;
                return Ok(());
            }
            Meaning::Wrong => return Err(Error::unsupported("this whiteout", &entry.name)),
        }
        if name.len() > 255 {
            return Err(Error::unsupported("a name of more than 255 bytes", &entry.name));
        }
        let parent = self.parent(dir)?;
        match &entry.kind {
            Kind::Directory => self.directory_entry(parent, name, entry),
            Kind::HardLink { target } => self.hard_link(parent, name, entry, target),
            _ => {
                let node = self.node(entry, reader)?;
                self.replace(parent, name, node)
            }
        }
    }

    fn directory(&mut self, id: u32, path: &Path) -> Result<&mut Directory> {
        match self.nodes.get_mut(id as usize).map(|node| &mut node.body) {
            Some(Body::Directory(directory)) => Ok(directory),
            _ => Err(Error::unsupported("a name below what is no directory", path)),
        }
    }

    fn child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        match &self.nodes.get(parent as usize)?.body {
            Body::Directory(directory) => directory.children.get(name).copied(),
            _ => None,
        }
    }

    fn body(&self, id: u32) -> &Body {
        &self.nodes[id as usize].body
    }

    fn add(&mut self, node: Node, depth: u16) -> Result<u32> {
        let id = u32::try_from(self.nodes.len()).ok().filter(|n| (*n as usize) < NODES);
        let id = id.ok_or_else(|| Error::unsupported("so many entries", "/"))?;
        self.nodes.push(node);
        self.depths.push(depth);
        Ok(id)
    }

    fn name(&mut self, parent: u32, name: &[u8], id: u32) -> Result<()> {
        self.directory(parent, Path::new(OsStr::from_bytes(name)))?
            .children
            .insert(name.into(), id);
        Ok(())
    }

    /// Gives a name to a new node, which may have had another.
    fn replace(&mut self, parent: u32, name: &[u8], node: Node) -> Result<()> {
        if self.child(parent, name).is_some() || matches!(node.body, Body::Symlink(_)) {
            self.last = None;
        }
        let id = self.add(node, 0)?;
        self.name(parent, name, id)
    }

    fn new_directory(&mut self, parent: u32, name: &[u8]) -> Result<u32> {
        let depth = self.depths[parent as usize] + 1;
        if usize::from(depth) > DEPTH {
            let name = OsStr::from_bytes(name);
            return Err(Error::unsupported("so many levels of directories", name));
        }
        let mut node = Node::implied();
        if let Body::Directory(directory) = &mut node.body {
            directory.opaque = self.deleted.contains(&(parent, name.into()));
            directory.implied = !directory.opaque;
        }
        let id = self.add(node, depth)?;
        self.name(parent, name, id)?;
        Ok(id)
    }

    fn parent(&mut self, path: &Path) -> Result<u32> {
        if let Some((last, id)) = &self.last
            && last == path
        {
            return Ok(*id);
        }
        let id = self.resolve(path, true)?;
        self.last = Some((path.to_owned(), id));
        Ok(id)
    }

    /// The directory at `path`, links followed inside the layer; made with its parents if wished.
    fn resolve(&mut self, path: &Path, make: bool) -> Result<u32> {
        let wrong = |what| move || Error::unsupported(what, path);
        let mut open: VecDeque<Bytes> = parts(path.as_os_str().as_bytes());
        let mut above: Vec<u32> = vec![0];
        let mut links = 0;
        while let Some(name) = open.pop_front() {
            let here = above.last().copied().unwrap_or(0);
            if *name == *b".." {
                if above.len() > 1 {
                    above.pop();
                }
                continue;
            }
            if name.len() > 255 {
                return Err(wrong("a name of more than 255 bytes")());
            }
            let found = self.child(here, &name);
            match found.map(|id| (id, self.body(id))) {
                Some((id, Body::Directory(_))) => above.push(id),
                Some((_, Body::Symlink(target))) => {
                    links += 1;
                    if links > LINKS {
                        return Err(wrong("a loop of links")());
                    }
                    if target.starts_with(b"/") {
                        above.truncate(1);
                    }
                    for part in parts(target).into_iter().rev() {
                        open.push_front(part);
                    }
                }
                None | Some((_, Body::Whiteout)) if make => {
                    above.push(self.new_directory(here, &name)?);
                }
                None | Some((_, Body::Whiteout)) => return Err(wrong("a missing directory")()),
                Some(_) => return Err(wrong("a name below what is no directory")()),
            }
        }
        Ok(above.last().copied().unwrap_or(0))
    }

    fn directory_entry(&mut self, parent: u32, name: &[u8], entry: &Entry) -> Result<()> {
        let id = match self.child(parent, name) {
            Some(id) if matches!(self.body(id), Body::Directory(_)) => id,
            other => {
                if other.is_some() {
                    self.last = None;
                }
                self.new_directory(parent, name)?
            }
        };
        if self.deleted.contains(&(parent, name.into())) {
            self.directory(id, &entry.name)?.opaque = true;
        }
        self.describe(id, entry)
    }

    /// Gives a directory what its entry says, and nothing else.
    fn describe(&mut self, id: u32, entry: &Entry) -> Result<()> {
        let meta = meta(entry);
        self.directory(id, &entry.name)?.implied = false;
        check_xattrs(&meta, entry)?;
        self.nodes[id as usize].meta = meta;
        Ok(())
    }

    fn hard_link(&mut self, parent: u32, name: &[u8], entry: &Entry, target: &Path) -> Result<()> {
        let unclear = |what| move || Error::unsupported(what, &entry.name);
        let cleaned = parts(target.as_os_str().as_bytes());
        let Some((last, dirs)) = cleaned.iter().collect::<Vec<_>>().split_last().map(|(l, d)| {
            let joined: Vec<&[u8]> = d.iter().map(|part| &***part).collect();
            ((**l).clone(), joined.join(&b'/'))
        }) else {
            return Err(unclear("a link to the root")());
        };
        if cleaned.iter().any(|part| **part == *b"..") {
            return Err(unclear("a link's target with \"..\"")());
        }
        let from = self.resolve(Path::new(OsStr::from_bytes(&dirs)), false)?;
        let id = self.child(from, &last).ok_or_else(unclear("a link to what is not there"))?;
        if matches!(self.body(id), Body::Directory(_) | Body::Whiteout) {
            return Err(unclear("a link to a directory")());
        }
        match self.child(parent, name) {
            Some(old) if old == id => return Err(unclear("a link to itself")()),
            // The target may be in it.
            Some(old) if matches!(self.body(old), Body::Directory(_)) => {
                return Err(unclear("a link in the place of a directory")());
            }
            Some(_) => self.last = None,
            None if matches!(self.body(id), Body::Symlink(_)) => self.last = None,
            None => {}
        }
        self.name(parent, name, id)
    }

    fn whiteout(&mut self, dir: &Path, name: &[u8]) -> Result<()> {
        if name.len() > 255 {
            return Err(Error::unsupported("a name of more than 255 bytes", dir));
        }
        let parent = self.parent(dir)?;
        self.deleted.insert((parent, name.into()));
        match self.child(parent, name) {
            None => {
                let id = self.add(Node::whiteout(), 0)?;
                self.name(parent, name, id)?;
            }
            // What this layer itself has stays; a directory must not show what was below it.
            Some(id) => {
                if let Some(Body::Directory(directory)) =
                    self.nodes.get_mut(id as usize).map(|node| &mut node.body)
                {
                    directory.opaque = true;
                    directory.implied = false;
                }
            }
        }
        Ok(())
    }

    /// Anything but directories and hard links.
    fn node<R: Read>(&mut self, entry: &Entry, reader: &mut TarReader<R>) -> Result<Node> {
        let body = match &entry.kind {
            Kind::File { sparse } => {
                let data = match sparse {
                    Some(chunks) => self.sparse(entry, chunks, reader)?,
                    None => self.run(entry, reader)?,
                };
                Body::File { size: entry.size, data, layer: 0 }
            }
            Kind::Symlink { target } => Body::Symlink(target.as_os_str().as_bytes().into()),
            Kind::Fifo => Body::Fifo,
            Kind::CharDevice { major: 0, minor: 0 } => {
                return Err(Error::unsupported("a device 0:0, overlay's whiteout,", &entry.name));
            }
            Kind::CharDevice { major, minor } => Body::Character(device(*major, *minor, entry)?),
            Kind::BlockDevice { major, minor } => Body::Block(device(*major, *minor, entry)?),
            Kind::Directory | Kind::HardLink { .. } => {
                return Err(Error::unsupported("this entry", &entry.name));
            }
        };
        let meta = meta(entry);
        check_xattrs(&meta, entry)?;
        Ok(Node { meta, body })
    }

    /// The blocks in which an ordinary file's data lies.
    fn run<R: Read>(&mut self, entry: &Entry, reader: &mut TarReader<R>) -> Result<Data> {
        let far = || Error::unsupported("data beyond 2 TiB", &entry.name);
        if entry.size == 0 {
            return Ok(Data::Run { part: Part::Tar, block: 0 });
        }
        if !entry.position.data.is_multiple_of(BLOCK_BYTES) {
            let whole = [Chunk { offset: 0, len: entry.size }];
            return self.sparse(entry, &whole, reader);
        }
        let end = entry.position.data.checked_add(entry.size).ok_or_else(far)?;
        // The last number stands for a hole.
        u32::try_from(end / BLOCK_BYTES + 2).map_err(|_| far())?;
        let block = u32::try_from(entry.position.data / BLOCK_BYTES).map_err(|_| far())?;
        self.end = self.end.max(end.next_multiple_of(BLOCK_BYTES));
        Ok(Data::Run { part: Part::Tar, block })
    }

    /// Writes a sparse file's data to the extra file, in pieces of one size; holes stay holes.
    fn sparse<R: Read>(
        &mut self,
        entry: &Entry,
        chunks: &[Chunk],
        reader: &mut TarReader<R>,
    ) -> Result<Data> {
        let mut bits = CHUNK_BITS;
        while entry.size >> bits > CHUNKS {
            bits += 1;
        }
        if bits > 40 {
            return Err(Error::unsupported("a file of such a size", &entry.name));
        }
        let piece = 1_u64 << bits;
        let count = usize::try_from(entry.size.div_ceil(piece)).unwrap_or(usize::MAX);
        let mut blocks = vec![None; count];
        let mut buffer = vec![0; COPY_BYTES];
        // Where the piece that is being written begins in the file, and how much of it is written.
        let mut open: Option<(u64, u64)> = None;
        for chunk in chunks {
            let (mut at, mut left) = (chunk.offset, chunk.len);
            while left > 0 {
                let begin = at & !(piece - 1);
                if open.is_none_or(|(start, _)| start != begin) {
                    self.close_piece(open, piece, entry)?;
                    let block = u32::try_from(self.extra_bytes / BLOCK_BYTES).ok();
                    let block = block.filter(|block| *block < u32::MAX - (1 << 24));
                    let slot = usize::try_from(begin >> bits).ok().and_then(|i| blocks.get_mut(i));
                    match (slot, block) {
                        (Some(slot), Some(block)) => *slot = Some(block),
                        _ => return Err(Error::unsupported("data beyond 2 TiB", &entry.name)),
                    }
                    open = Some((begin, 0));
                }
                let done = open.map_or(0, |(_, done)| done);
                self.zeros(at - begin - done, entry)?;
                let n = left.min(begin + piece - at);
                self.copy(n, &mut buffer, reader)?;
                (at, left) = (at + n, left - n);
                open = Some((begin, at - begin));
            }
        }
        self.close_piece(open, piece, entry)?;
        Ok(Data::Chunks { bits, blocks })
    }

    /// Fills up the piece that was being written.
    fn close_piece(&mut self, open: Option<(u64, u64)>, piece: u64, entry: &Entry) -> Result<()> {
        let Some((begin, done)) = open else { return Ok(()) };
        let len = piece.min((entry.size - begin).next_multiple_of(BLOCK_BYTES));
        self.zeros(len - done, entry)
    }

    fn zeros(&mut self, mut count: u64, entry: &Entry) -> Result<()> {
        self.padding_bytes += count;
        if self.padding_bytes > PADDING_BYTES {
            return Err(Error::unsupported("a file with so many holes", &entry.name));
        }
        let zeros = [0; 4096];
        while count > 0 {
            let n = count.min(4096);
            let piece = usize::try_from(n).unwrap_or(0);
            self.extra.write_all(&zeros[..piece]).map_err(Error::write("a layer's extra data"))?;
            self.extra_bytes += n;
            count -= n;
        }
        Ok(())
    }

    fn copy<R: Read>(
        &mut self,
        mut count: u64,
        buffer: &mut [u8],
        reader: &mut TarReader<R>,
    ) -> Result<()> {
        while count > 0 {
            let want = usize::try_from(count).unwrap_or(usize::MAX).min(buffer.len());
            let offset = reader.offset();
            let n = match reader.data().read(&mut buffer[..want]) {
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(Error::Archive(archive::Error::Truncated { offset }));
                }
                Err(source) => {
                    return Err(Error::Archive(archive::Error::Read { offset, source }));
                }
            };
            self.extra.write_all(&buffer[..n]).map_err(Error::write("a layer's extra data"))?;
            self.extra_bytes += n as u64;
            count -= n as u64;
        }
        Ok(())
    }
}

/// A path's components, without empty ones and ".".
fn parts(path: &[u8]) -> VecDeque<Bytes> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(Into::into)
        .collect()
}

fn device(major: u32, minor: u32, entry: &Entry) -> Result<u32> {
    if major >= MAJORS || minor >= MINORS {
        return Err(Error::unsupported("a device of such a number", &entry.name));
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

fn meta(entry: &Entry) -> Meta {
    let mode = match entry.kind {
        // Links have no mode of their own.
        Kind::Symlink { .. } => 0o777,
        _ => u16::try_from(entry.mode & 0o7777).unwrap_or(0),
    };
    // Links and devices cannot have user attributes.
    let user = matches!(entry.kind, Kind::Directory | Kind::File { .. });
    let xattrs = entry.xattrs.iter().filter(|(name, _)| {
        let name = name.as_bytes();
        name == b"security.capability"
            || (user && name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
    });
    Meta {
        mode,
        uid: entry.uid,
        gid: entry.gid,
        seconds: entry.mtime.secs,
        nanos: entry.mtime.nanos,
        xattrs: xattrs
            .map(|(name, value)| (name.as_bytes().into(), value.as_slice().into()))
            .collect(),
    }
}

fn check_xattrs(meta: &Meta, entry: &Entry) -> Result<()> {
    let mut all = 0;
    for (name, value) in &meta.xattrs {
        // The kernel's own limit on a name is 255 bytes, and an attribute without a name is none.
        let named = name.len() <= 255 && **name != *b"user.";
        all += name.len() + value.len() + 8;
        if !named || value.len() > XATTR_BYTES || all > XATTRS_BYTES {
            return Err(Error::unsupported("an attribute of such a size", &entry.name));
        }
    }
    Ok(())
}
