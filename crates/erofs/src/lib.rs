//! Indexes of layers that are never unpacked.
//!
//! Owns: reading a layer's tar into a tree of what it holds ([`Layer`]), its compact form on disk,
//! the merging of an image's layers into one tree ([`Tree`]), and the writing of that tree as an EROFS
//! image with blocks of 512 bytes that holds metadata alone: every file's data is one run of blocks in
//! the tar, which is one of the image's devices.
//!
//! Does not own: files, mounts, digests, the tar format (archive). Nothing here does I/O but through
//! the caller's `Read` and `Write`.
//!
//! What a tar's data cannot be pointed at for (sparse files) goes to a second device of the layer, the
//! *extra* file, so that merging copies no data. What cannot be expressed at all is
//! [`Error::Unsupported`]: such a layer is to be extracted.
//!
//! Form of an image (kernel, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h): superblock at
//! byte 1024, the table of devices behind it, inodes in their extended form (64 bytes) each followed by
//! its attributes and its chunk index or inline data, then the blocks of directories and links that do
//! not fit inline. `meta_blkaddr` is 0: an inode's number is its byte offset divided by 32. The output
//! depends on the tree alone.
//!
//! Locks, tasks, channels: none.

mod error;
mod merge;
mod scan;
mod toc;
mod tree;
mod write;

pub use error::{Error, Result};
pub use merge::{Base, Tree};
pub use scan::{Scanned, scan};
pub use tree::{Layer, Part};
pub use write::write;

/// Bytes of a block: what a tar's data is aligned to.
pub const BLOCK_BYTES: u64 = 512;
