//! A layer's tree on disk: the mark, the two sizes, the nodes, and a SHA-256 of all that. Numbers are
//! of variable length, seven bits a byte, the lowest first.

use std::io::Write;

use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    tree::{Body, Bytes, Data, Directory, Layer, Meta, Node, Part},
};

const MARK: &[u8; 8] = b"GTYTOC\0\x01";
const HASH_BYTES: usize = 32;

impl Layer {
    /// Writes the layer's table of contents, from which [`Layer::decode`] makes the same layer.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn encode(&self, out: &mut dyn Write) -> Result<()> {
        let mut bytes = MARK.to_vec();
        for n in [self.tar_bytes, self.extra_bytes, self.nodes.len() as u64] {
            number(&mut bytes, n);
        }
        for one in &self.nodes {
            node(&mut bytes, one);
        }
        let hash = Sha256::digest(&bytes);
        bytes.extend_from_slice(&hash);
        out.write_all(&bytes).map_err(Error::write("a layer's table of contents"))
    }

    /// Reads back what [`Layer::encode`] wrote.
    ///
    /// # Errors
    /// [`Error::Contents`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let split =
            bytes.len().checked_sub(HASH_BYTES).ok_or(Error::Contents("it is cut short"))?;
        let (body, hash) = bytes.split_at(split);
        if Sha256::digest(body)[..] != *hash {
            return Err(Error::Contents("its hash does not match"));
        }
        let body = body.strip_prefix(MARK).ok_or(Error::Contents("it is of another version"))?;
        let mut reader = Reader { bytes: body };
        let (tar_bytes, extra_bytes) = (reader.number()?, reader.number()?);
        let count = usize::try_from(reader.number()?).unwrap_or(usize::MAX);
        // Every node has some bytes.
        if count == 0 || count > body.len() {
            return Err(Error::Contents("it has so many nodes"));
        }
        let mut nodes = Vec::with_capacity(count);
        for _ in 0..count {
            nodes.push(reader.node(count)?);
        }
        if !reader.bytes.is_empty() || !matches!(nodes[0].body, Body::Directory(_)) {
            return Err(Error::Contents("it is malformed"));
        }
        Ok(Self { nodes, tar_bytes, extra_bytes })
    }
}

fn number(out: &mut Vec<u8>, mut n: u64) {
    loop {
        let low = u8::try_from(n & 0x7f).unwrap_or(0);
        n >>= 7;
        if n == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn node(out: &mut Vec<u8>, node: &Node) {
    let meta = &node.meta;
    for n in [meta.mode.into(), meta.uid.into(), meta.gid.into(), meta.nanos.into()] {
        number(out, n);
    }
    out.extend_from_slice(&meta.seconds.to_le_bytes());
    number(out, meta.xattrs.len() as u64);
    for (name, value) in &meta.xattrs {
        bytes(out, name);
        bytes(out, value);
    }
    match &node.body {
        Body::Directory(directory) => {
            out.push(0);
            let flags = [directory.opaque, directory.implied];
            out.push(flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag)));
            number(out, directory.children.len() as u64);
            for (name, id) in &directory.children {
                bytes(out, name);
                number(out, (*id).into());
            }
        }
        Body::File { size, data: Data::Run { part, block }, .. } => {
            out.push(if *part == Part::Tar { 1 } else { 2 });
            number(out, *size);
            number(out, (*block).into());
        }
        Body::File { size, data: Data::Chunks { bits, blocks }, .. } => {
            out.extend_from_slice(&[3, *bits]);
            number(out, *size);
            number(out, blocks.len() as u64);
            for block in blocks {
                number(out, block.map_or(0, |block| u64::from(block) + 1));
            }
        }
        Body::Symlink(target) => {
            out.push(4);
            bytes(out, target);
        }
        Body::Fifo => out.push(5),
        Body::Character(device) => {
            out.push(6);
            number(out, (*device).into());
        }
        Body::Block(device) => {
            out.push(7);
            number(out, (*device).into());
        }
        Body::Whiteout => out.push(8),
    }
}

struct Reader<'b> {
    bytes: &'b [u8],
}

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8]> {
        let (head, rest) =
            self.bytes.split_at_checked(count).ok_or(Error::Contents("it is cut short"))?;
        self.bytes = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u64> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(Error::Contents("a number is too large"))
    }

    fn small(&mut self) -> Result<u32> {
        u32::try_from(self.number()?).map_err(|_| Error::Contents("a number is too large"))
    }

    fn text(&mut self) -> Result<Bytes> {
        let len = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        Ok(self.take(len)?.into())
    }

    fn node(&mut self, count: usize) -> Result<Node> {
        let large = |_| Error::Contents("a number is too large");
        let mut meta = Meta {
            mode: u16::try_from(self.number()?).map_err(large)?,
            uid: self.small()?,
            gid: self.small()?,
            nanos: self.small()?,
            ..Meta::default()
        };
        let mut seconds = [0; 8];
        seconds.copy_from_slice(self.take(8)?);
        meta.seconds = i64::from_le_bytes(seconds);
        for _ in 0..self.number()? {
            let name = self.text()?;
            meta.xattrs.insert(name, self.text()?);
        }
        let body = match self.byte()? {
            0 => Body::Directory(self.directory(count)?),
            kind @ (1 | 2) => {
                let part = if kind == 1 { Part::Tar } else { Part::Extra };
                let size = self.number()?;
                Body::File { size, data: Data::Run { part, block: self.small()? }, layer: 0 }
            }
            3 => self.chunks()?,
            4 => Body::Symlink(self.text()?),
            5 => Body::Fifo,
            6 => Body::Character(self.small()?),
            7 => Body::Block(self.small()?),
            8 => Body::Whiteout,
            _ => return Err(Error::Contents("a node is of no known kind")),
        };
        Ok(Node { meta, body })
    }

    fn directory(&mut self, count: usize) -> Result<Directory> {
        let flags = self.byte()?;
        let mut directory =
            Directory { opaque: flags & 1 != 0, implied: flags & 2 != 0, ..Directory::default() };
        for _ in 0..self.number()? {
            let name = self.text()?;
            let id = self.small()?;
            if id == 0 || id as usize >= count || name.is_empty() || name.len() > 255 {
                return Err(Error::Contents("a name leads nowhere"));
            }
            directory.children.insert(name, id);
        }
        Ok(directory)
    }

    fn chunks(&mut self) -> Result<Body> {
        let bits = self.byte()?;
        let size = self.number()?;
        let count = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        let fits = (9..=40).contains(&bits) && count as u64 == size.div_ceil(1 << bits);
        if !fits || count > self.bytes.len() {
            return Err(Error::Contents("a sparse file's map is wrong"));
        }
        let mut blocks = Vec::with_capacity(count);
        for _ in 0..count {
            blocks.push(self.small()?.checked_sub(1));
        }
        Ok(Body::File { size, data: Data::Chunks { bits, blocks }, layer: 0 })
    }
}
