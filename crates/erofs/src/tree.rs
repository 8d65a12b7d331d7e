use std::collections::BTreeMap;

/// A name or a link's target.
pub(crate) type Bytes = Box<[u8]>;

/// Levels of directories at most: what a path of 4096 bytes can have.
pub(crate) const DEPTH: usize = 2048;

/// Which of a layer's two files data lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The tar itself.
    Tar,
    /// What could not be pointed at in the tar.
    Extra,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permission bits, 0o7777.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Since 1970; may be negative.
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
    pub(crate) xattrs: BTreeMap<Bytes, Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Consecutive blocks.
    Run { part: Part, block: u32 },
    /// Pieces of `1 << bits` bytes in the extra file; `None` is a hole.
    Chunks { bits: u8, blocks: Vec<Option<u32>> },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) children: BTreeMap<Bytes, u32>,
    /// Hides what the layers below have here.
    pub(crate) opaque: bool,
    /// Without an entry of its own: it looks as it does in the layers below.
    pub(crate) implied: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Directory(Directory),
    File {
        size: u64,
        data: Data,
        /// Which layer of a merged tree has the data; 0 in a layer's own.
        layer: u32,
    },
    Symlink(Bytes),
    Fifo,
    /// The device's number as the kernel encodes it in 32 bits.
    Character(u32),
    Block(u32),
    /// Hides this name of the layers below.
    Whiteout,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) body: Body,
}

impl Node {
    /// A directory that nobody described.
    pub(crate) fn implied() -> Self {
        Self {
            meta: Meta { mode: 0o755, ..Meta::default() },
            body: Body::Directory(Directory { implied: true, ..Directory::default() }),
        }
    }

    pub(crate) fn whiteout() -> Self {
        Self { meta: Meta::default(), body: Body::Whiteout }
    }
}

/// What one layer's tar holds. Hard links are names of the same node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The root is the first. A node that has no name any more is left out of everything.
    pub(crate) nodes: Vec<Node>,
    /// Bytes of the tar.
    pub(crate) tar_bytes: u64,
    /// Bytes of the extra file; 0: it is not needed.
    pub(crate) extra_bytes: u64,
}

impl Layer {
    /// Bytes of the layer's tar.
    pub fn tar_bytes(&self) -> u64 {
        self.tar_bytes
    }

    /// Bytes of the extra file; 0 for a layer that does without.
    pub fn extra_bytes(&self) -> u64 {
        self.extra_bytes
    }
}
