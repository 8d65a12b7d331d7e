//! The image. First every inode gets its place, in the order of a walk from the root, then all is
//! written from the first byte to the last.

use std::{collections::BTreeMap, io::Write};

use crate::{
    BLOCK_BYTES,
    error::{Error, Result},
    merge::Tree,
    tree::{Body, Data, Directory, Meta, Node, Part},
};

const MAGIC: u32 = 0xE0F5_E1E2;
const SUPER_OFFSET: u64 = 1024;
const SUPER_BYTES: u64 = 128;
const SLOT_BYTES: u64 = 128;
const BLOCK_BITS: u8 = 9;
/// Files by chunk index; a table of devices.
const INCOMPATIBLE: u32 = 0x4 | 0x8;
/// `MTIME`: an inode's time is when it was modified.
const COMPATIBLE: u32 = 0x2;
const INODE_BYTES: u64 = 64;
/// An inode's number counts these.
const SLOT: u64 = 32;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const CHUNK_BASED: u16 = 4;
/// A chunk's index has 8 bytes and names a device.
const CHUNK_INDEXES: u16 = 0x20;
const HOLE: u32 = u32::MAX;
const DIRENT_BYTES: usize = 12;
const XATTR_HEADER_BYTES: u64 = 12;
const OVERLAY_OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");
/// Prefixes of attributes' names, by their numbers in the format.
const PREFIXES: &[(u8, &[u8])] = &[(1, b"user."), (4, b"trusted."), (6, b"security.")];

/// Where a node lies.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    offset: u64,
    xattr_bytes: u64,
    /// Contents of a directory or link: bytes, and the block where they begin if not inline.
    size: u64,
    block: Option<u32>,
    links: u32,
    parent: u32,
}

/// Writes a tree as an EROFS image, a whole number of blocks. The same tree gives the same bytes.
///
/// # Errors
/// [`Error::Write`] when `out` fails, [`Error::Unsupported`] for a tree beyond the format's limits.
pub fn write(tree: &Tree, out: &mut dyn Write) -> Result<()> {
    let devices: BTreeMap<(usize, Part), u16> = tree.devices().into_iter().zip(1..).collect();
    let layout = Layout::new(tree, devices.len() as u64)?;
    let mut out = Out { out, offset: 0 };
    superblock(tree, &layout, &mut out)?;
    for id in &layout.order {
        inode(tree, &layout, *id, &devices, &mut out)?;
    }
    for id in &layout.order {
        let place = layout.places[*id as usize];
        if let Some(block) = place.block {
            out.pad_to(u64::from(block) * BLOCK_BYTES)?;
            out.bytes(&contents(tree, &layout, *id))?;
        }
    }
    out.pad_to(layout.blocks * BLOCK_BYTES)
}

struct Layout {
    order: Vec<u32>,
    places: Vec<Place>,
    blocks: u64,
}

impl Layout {
    fn new(tree: &Tree, devices: u64) -> Result<Self> {
        let mut layout =
            Self { order: Vec::new(), places: vec![Place::default(); tree.nodes.len()], blocks: 0 };
        let far = || Error::unsupported("an index of such a size", "/");
        let mut next = SUPER_OFFSET + SUPER_BYTES + devices * SLOT_BYTES;
        let mut open = vec![0_u32];
        let mut blocks = Vec::new();
        while let Some(id) = open.pop() {
            layout.order.push(id);
            let node = &tree.nodes[id as usize];
            let mut place = layout.places[id as usize];
            place.xattr_bytes = xattr_bytes(node);
            next = place_one(node, &mut place, next);
            let inline = inline_bytes(node, &place);
            if inline.is_none() && place.size > 0 && has_contents(node) {
                blocks.push(id);
            }
            if id == 0 {
                place.links = 2;
            }
            layout.places[id as usize] = place;
            if let Body::Directory(directory) = &node.body {
                layout.children(tree, id, directory, &mut open);
            }
        }
        let mut block = next.div_ceil(BLOCK_BYTES);
        for id in blocks {
            let place = &mut layout.places[id as usize];
            place.block = Some(u32::try_from(block).map_err(|_| far())?);
            block += place.size.div_ceil(BLOCK_BYTES);
        }
        u32::try_from(block).map_err(|_| far())?;
        layout.blocks = block;
        Ok(layout)
    }

    /// Counts the names of what is in a directory, and queues what is seen for the first time.
    fn children(&mut self, tree: &Tree, id: u32, directory: &Directory, open: &mut Vec<u32>) {
        let mut here = Vec::new();
        for child in directory.children.values() {
            let place = &mut self.places[*child as usize];
            if place.links == 0 {
                here.push(*child);
            }
            place.links += 1;
            if let Body::Directory(_) = tree.nodes[*child as usize].body {
                place.links = 2;
                place.parent = id;
                self.places[id as usize].links += 1;
            }
        }
        open.extend(here.into_iter().rev());
    }

    fn number(&self, id: u32) -> u64 {
        self.places[id as usize].offset / SLOT
    }
}

/// Gives a node the next place that suits it; answers the end of it.
fn place_one(node: &Node, place: &mut Place, next: u64) -> u64 {
    place.offset = next.next_multiple_of(INODE_BYTES);
    let head = INODE_BYTES + place.xattr_bytes;
    match &node.body {
        Body::Directory(directory) => place.size = directory_bytes(directory),
        Body::Symlink(target) => place.size = target.len() as u64,
        Body::File { size: 1.., data, .. } => {
            let count = match data {
                Data::Run { .. } => 1,
                Data::Chunks { blocks, .. } => blocks.len() as u64,
            };
            return (place.offset + head).next_multiple_of(8) + 8 * count;
        }
        _ => {}
    }
    // Inline data lies in one block; it may be worth to begin a new one for that.
    let fits_somewhere = head + place.size <= BLOCK_BYTES;
    if has_contents(node) && fits_somewhere && inline_bytes(node, place).is_none() {
        place.offset = place.offset.next_multiple_of(BLOCK_BYTES);
    }
    place.offset + head + inline_bytes(node, place).unwrap_or(0)
}

fn has_contents(node: &Node) -> bool {
    matches!(node.body, Body::Directory(_) | Body::Symlink(_))
}

/// How many bytes of contents follow the inode at its place, if they can: in the same block.
fn inline_bytes(node: &Node, place: &Place) -> Option<u64> {
    if !has_contents(node) || place.size == 0 {
        return None;
    }
    let begin = place.offset + INODE_BYTES + place.xattr_bytes;
    let end = begin + place.size;
    (begin / BLOCK_BYTES == (end - 1) / BLOCK_BYTES).then_some(place.size)
}

/// A node's attributes, overlay's mark included.
fn xattrs(node: &Node) -> impl Iterator<Item = (&[u8], &[u8])> {
    let opaque = matches!(&node.body, Body::Directory(directory) if directory.opaque);
    let mark = opaque.then_some(OVERLAY_OPAQUE);
    mark.into_iter().chain(node.meta.xattrs.iter().map(|(name, value)| (&**name, &**value)))
}

/// The prefix's number and the rest of a name; a name that the format has no prefix for does not come
/// this far.
fn prefixed(name: &[u8]) -> (u8, &[u8]) {
    PREFIXES
        .iter()
        .find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)))
        .unwrap_or((0, name))
}

fn xattr_bytes(node: &Node) -> u64 {
    let mut bytes = 0;
    for (name, value) in xattrs(node) {
        let (_, rest) = prefixed(name);
        bytes += (4 + rest.len() as u64 + value.len() as u64).next_multiple_of(4);
    }
    if bytes == 0 { 0 } else { XATTR_HEADER_BYTES + bytes }
}

/// The entries of a directory in their order, each with the node's id (`None` for its parent).
enum Link {
    Own,
    Parent,
    Child(u32),
}

fn entries(directory: &Directory) -> Vec<(&[u8], Link)> {
    let mut all: Vec<(&[u8], Link)> = vec![(b".", Link::Own), (b"..", Link::Parent)];
    all.extend(directory.children.iter().map(|(name, id)| (&**name, Link::Child(*id))));
    all.sort_by(|a, b| a.0.cmp(b.0));
    all
}

/// How many of `entries` fit into the next block, and their bytes.
fn fill(entries: &[(&[u8], Link)]) -> (usize, usize) {
    let (mut count, mut used) = (0, 0);
    let block = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
    for (name, _) in entries {
        let more = DIRENT_BYTES + name.len();
        if used + more > block {
            break;
        }
        (count, used) = (count + 1, used + more);
    }
    (count, used)
}

fn directory_bytes(directory: &Directory) -> u64 {
    let all = entries(directory);
    let (mut rest, mut full) = (&all[..], 0);
    loop {
        let (count, used) = fill(rest);
        rest = &rest[count..];
        if rest.is_empty() || count == 0 {
            return full + used as u64;
        }
        full += BLOCK_BYTES;
    }
}

fn contents(tree: &Tree, layout: &Layout, id: u32) -> Vec<u8> {
    let directory = match &tree.nodes[id as usize].body {
        Body::Directory(directory) => directory,
        Body::Symlink(target) => return target.to_vec(),
        _ => return Vec::new(),
    };
    let all = entries(directory);
    let mut rest = &all[..];
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (count, _) = fill(rest);
        // A name has at most 255 bytes: one always fits.
        let (now, later) = rest.split_at(count.max(1));
        let mut names = DIRENT_BYTES * now.len();
        for (name, link) in now {
            let target = match link {
                Link::Own => id,
                Link::Parent => layout.places[id as usize].parent,
                Link::Child(child) => *child,
            };
            out.extend_from_slice(&layout.number(target).to_le_bytes());
            out.extend_from_slice(&u16::try_from(names).unwrap_or(0).to_le_bytes());
            out.extend_from_slice(&[file_type(&tree.nodes[target as usize]), 0]);
            names += name.len();
        }
        for (name, _) in now {
            out.extend_from_slice(name);
        }
        if !later.is_empty() {
            let block = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
            out.resize(out.len().next_multiple_of(block), 0);
        }
        rest = later;
    }
    out
}

fn file_type(node: &Node) -> u8 {
    match node.body {
        Body::File { .. } => 1,
        Body::Directory(_) => 2,
        Body::Character(_) | Body::Whiteout => 3,
        Body::Block(_) => 4,
        Body::Fifo => 5,
        Body::Symlink(_) => 7,
    }
}

fn superblock(tree: &Tree, layout: &Layout, out: &mut Out<'_>) -> Result<()> {
    let far = || Error::unsupported("an index of such a size", "/");
    let devices = tree.devices();
    out.pad_to(SUPER_OFFSET)?;
    out.u32(MAGIC)?;
    out.u32(0)?;
    out.u32(COMPATIBLE)?;
    out.bytes(&[BLOCK_BITS, 0])?;
    out.u16(u16::try_from(layout.number(0)).map_err(|_| far())?)?;
    out.u64(layout.order.len() as u64)?;
    // Time of making: none, so that the output depends on the tree alone.
    out.u64(0)?;
    out.u32(0)?;
    out.u32(u32::try_from(layout.blocks).map_err(|_| far())?)?;
    // Blocks of metadata and of shared attributes; id and name of the volume.
    out.u32(0)?;
    out.u32(0)?;
    out.bytes(&[0; 32])?;
    out.u32(INCOMPATIBLE)?;
    out.u16(0)?;
    out.u16(u16::try_from(devices.len()).map_err(|_| far())?)?;
    out.u16(u16::try_from((SUPER_OFFSET + SUPER_BYTES) / SLOT_BYTES).map_err(|_| far())?)?;
    out.pad_to(SUPER_OFFSET + SUPER_BYTES)?;
    for device in devices {
        let end = out.offset + SLOT_BYTES;
        let part = if device.1 == Part::Tar { "tar" } else { "extra" };
        out.bytes(format!("{}.{part}", device.0).as_bytes())?;
        out.pad_to(end - 64)?;
        let blocks = tree.device_bytes(device).div_ceil(BLOCK_BYTES);
        out.u32(u32::try_from(blocks).map_err(|_| far())?)?;
        out.pad_to(end)?;
    }
    Ok(())
}

fn inode(
    tree: &Tree,
    layout: &Layout,
    id: u32,
    devices: &BTreeMap<(usize, Part), u16>,
    out: &mut Out<'_>,
) -> Result<()> {
    let node = &tree.nodes[id as usize];
    let place = layout.places[id as usize];
    let inline = inline_bytes(node, &place).is_some();
    let (size, form, value) = match &node.body {
        Body::Directory(_) | Body::Symlink(_) if inline => (place.size, FLAT_INLINE, 0),
        Body::Directory(_) | Body::Symlink(_) => (place.size, FLAT_PLAIN, place.block.unwrap_or(0)),
        Body::File { size: size @ 1.., data, .. } => {
            (*size, CHUNK_BASED, u32::from(chunk_format(*size, data)))
        }
        Body::File { .. } | Body::Fifo | Body::Whiteout => (0, FLAT_PLAIN, 0),
        Body::Character(device) | Body::Block(device) => (0, FLAT_PLAIN, *device),
    };
    out.pad_to(place.offset)?;
    out.u16(1 | form << 1)?;
    let count = match place.xattr_bytes {
        0 => 0,
        bytes => (bytes - XATTR_HEADER_BYTES) / 4 + 1,
    };
    let many = |_| Error::unsupported("attributes of such a size", "/");
    out.u16(u16::try_from(count).map_err(many)?)?;
    out.u16(mode(node))?;
    out.u16(0)?;
    out.u64(size)?;
    out.u32(value)?;
    out.u32(u32::try_from(layout.number(id)).unwrap_or(0))?;
    let Meta { uid, gid, seconds, nanos, .. } = node.meta;
    out.u32(uid)?;
    out.u32(gid)?;
    out.bytes(&seconds.to_le_bytes())?;
    out.u32(nanos)?;
    out.u32(place.links)?;
    out.bytes(&[0; 16])?;
    write_xattrs(node, place.xattr_bytes, out)?;
    match &node.body {
        Body::File { size: 1.., data, layer } => chunk_indexes(data, *layer, devices, out),
        _ if inline => out.bytes(&contents(tree, layout, id)),
        _ => Ok(()),
    }
}

fn mode(node: &Node) -> u16 {
    let kind = match node.body {
        Body::Directory(_) => 0o040_000,
        Body::File { .. } => 0o100_000,
        Body::Symlink(_) => 0o120_000,
        Body::Fifo => 0o010_000,
        Body::Character(_) | Body::Whiteout => 0o020_000,
        Body::Block(_) => 0o060_000,
    };
    kind | node.meta.mode
}

fn write_xattrs(node: &Node, bytes: u64, out: &mut Out<'_>) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    out.bytes(&[0; 12])?;
    for (name, value) in xattrs(node) {
        let (prefix, rest) = prefixed(name);
        let many = |_| Error::unsupported("attributes of such a size", "/");
        out.bytes(&[u8::try_from(rest.len()).map_err(many)?, prefix])?;
        out.u16(u16::try_from(value.len()).map_err(many)?)?;
        out.bytes(rest)?;
        out.bytes(value)?;
        out.pad_to(out.offset.next_multiple_of(4))?;
    }
    Ok(())
}

/// The size of a file's pieces: an ordinary file is one.
fn chunk_format(size: u64, data: &Data) -> u16 {
    let bits = match data {
        Data::Run { .. } => {
            let bits = u64::BITS - size.saturating_sub(1).leading_zeros();
            bits.max(u32::from(BLOCK_BITS)) - u32::from(BLOCK_BITS)
        }
        Data::Chunks { bits, .. } => u32::from(*bits - BLOCK_BITS),
    };
    CHUNK_INDEXES | u16::try_from(bits).unwrap_or(0)
}

fn chunk_indexes(
    data: &Data,
    layer: u32,
    devices: &BTreeMap<(usize, Part), u16>,
    out: &mut Out<'_>,
) -> Result<()> {
    let device = |part| {
        let layer = usize::try_from(layer).unwrap_or(usize::MAX);
        devices.get(&(layer, part)).copied().ok_or(Error::Contents("data lies nowhere"))
    };
    out.pad_to(out.offset.next_multiple_of(8))?;
    let mut index = |device: u16, block: u32| {
        out.u16(0)?;
        out.u16(device)?;
        out.u32(block)
    };
    match data {
        Data::Run { part, block } => index(device(*part)?, *block),
        Data::Chunks { blocks, .. } => {
            for block in blocks {
                match block {
                    Some(block) => index(device(Part::Extra)?, *block)?,
                    None => index(0, HOLE)?,
                }
            }
            Ok(())
        }
    }
}

/// Writes little-endian and knows where it is.
struct Out<'o> {
    out: &'o mut dyn Write,
    offset: u64,
}

impl Out<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::write("an index"))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn u16(&mut self, n: u16) -> Result<()> {
        self.bytes(&n.to_le_bytes())
    }

    fn u32(&mut self, n: u32) -> Result<()> {
        self.bytes(&n.to_le_bytes())
    }

    fn u64(&mut self, n: u64) -> Result<()> {
        self.bytes(&n.to_le_bytes())
    }

    fn pad_to(&mut self, offset: u64) -> Result<()> {
        const ZEROS: [u8; 512] = [0; 512];
        while self.offset < offset {
            let n = usize::try_from(offset - self.offset).unwrap_or(ZEROS.len()).min(ZEROS.len());
            self.bytes(&ZEROS[..n])?;
        }
        Ok(())
    }
}
