//! Tar streams to directories and back.
//!
//! Owns: the tar format (a strict streaming reader and a deterministic writer), compression
//! sniffing, extraction of a tar below a root descriptor, packing of a directory, and the
//! differences of directories as layers with whiteouts.
//!
//! Does not own: digests, blobs, mounts, or what a layer belongs to.
//!
//! Invariants:
//! - Every path of a tree is resolved with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`
//!   from the caller's root descriptor; the last component is handled with `*at` calls that do
//!   not follow links. No path string of an archive ever reaches a plain `open`.
//! - What GNU tar and this reader could understand differently is refused, not guessed.
//! - A device node of a tree is never opened; regular files are opened through the descriptor
//!   that was inspected.
//! - All sizes that a stream names are held against [`Limits`] before memory is reserved.
//!
//! Locks, tasks, channels: none; everything is synchronous and re-entrant. `/proc` must be
//! mounted (`/proc/self/fd/N` is how a descriptor of a path is reopened or labelled).

mod compression;
mod diff;
mod entry;
mod error;
mod extract;
mod frames;
mod header;
mod implied;
mod metadata;
mod node;
mod pack;
mod pax;
mod place;
mod reader;
mod sparse;
mod walk;
mod whiteout;
mod writer;

pub use compression::{
    AskLeave, Compression, Compressor, Decompressor, Encoding, compress, decompress, decompress_as,
    decompress_with_leave, decompress_within, sniff,
};
pub use diff::{
    Below, Change, ChangeKind, changes_directories, changes_overlay, diff_directories, diff_overlay,
};
pub use entry::{Chunk, Entry, IdRange, Kind, Limits, Owner, Position, Time};
pub use error::{Error, Problem};
pub use extract::{
    Devices, EntryFilter, ExtractOptions, ExtractStats, LateLowers, Whiteouts, extract,
};
pub use pack::{Filter, PackOptions, PackStats, Source, Verdict, pack, pack_into};
pub use reader::{Contents, Data, TarReader};
pub use whiteout::{Meaning, in_user_namespace, meaning};
pub use writer::TarWriter;
