//! What a directory changes about the ones below it: as a layer tar, or as a list.

use std::{
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::{
    entry::{Entry, Kind, Time},
    error::Error,
    node::{Node, open_in_root},
    pack::{PackOptions, PackStats, Packer, sibling},
    walk::{Difference, Next, Relation, Visit, walk},
    whiteout,
    writer::TarWriter,
};

/// How a directory that replaces one below it is written.
#[derive(Clone, Copy, Debug)]
pub enum Opaque<'a> {
    /// With an entry `.wh..wh..opq` in it.
    Marker,
    /// With one whiteout for each name that it hides. `lowers`: the roots of the layers below,
    /// topmost first.
    Explicit { lowers: &'a [BorrowedFd<'a>] },
}

/// `docker diff`'s three letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    Modify,
    Add,
    Delete,
}

/// A changed path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// With a leading "/", which stands for the compared root.
    pub path: PathBuf,
    pub kind: ChangeKind,
}

/// Writes the layer that an overlay's upper directory is. `options.sources` is not used.
///
/// # Errors
/// As [`crate::pack`]; also for directories that use overlay's `redirect_dir` or `metacopy`.
pub fn diff_overlay<W: Write>(
    upper: BorrowedFd<'_>,
    opaque: Opaque<'_>,
    options: &mut PackOptions<'_>,
    writer: W,
) -> Result<(W, PackStats), Error> {
    let lowers = match opaque {
        Opaque::Marker => Vec::new(),
        Opaque::Explicit { lowers } => reopen(lowers)?,
    };
    let marker = matches!(opaque, Opaque::Marker);
    let mut out = TarWriter::new(writer).subsecond(options.subsecond);
    let mut packer = Packer::new(&mut out, options);
    let start = Node::resolve(upper, Path::new(""))?;
    walk(&start, lowers, Relation::Overlay, &mut |visit| {
        if visit.difference == Difference::Deleted {
            return whiteout_entry(&mut packer, visit);
        }
        let Some(node) = visit.node else { return Ok(Next::Skip) };
        let next = packer.object(visit.path, node)?;
        if next == Next::Descend
            && visit.opaque
            && marker
            && let Some(entry) = packer.entry(&visit.path.join(whiteout::OPAQUE), node)?
        {
            packer.emit(marker_entry(entry), None)?;
        }
        Ok(next)
    })?;
    let stats = packer.stats;
    Ok((out.finish()?, stats))
}

/// Writes the layer that turns `lower` into `upper`, both complete trees. Files of the same
/// size, metadata and time (to the nanosecond, if it has any) count as the same.
/// `options.sources` is not used.
///
/// # Errors
/// As [`crate::pack`].
pub fn diff_directories<W: Write>(
    lower: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    options: &mut PackOptions<'_>,
    writer: W,
) -> Result<(W, PackStats), Error> {
    let mut out = TarWriter::new(writer).subsecond(options.subsecond);
    let mut packer = Packer::new(&mut out, options);
    let start = Node::resolve(upper, Path::new(""))?;
    // Directories that did not change, which are written when something in them did.
    let mut waiting: Vec<Entry> = Vec::new();
    walk(&start, reopen(&[lower])?, Relation::Complete, &mut |visit| {
        waiting.retain(|dir| visit.path.starts_with(&dir.name));
        if visit.difference == Difference::Same {
            if let Some(node) = visit.node
                && node.is_dir()
                && !visit.path.as_os_str().is_empty()
                && let Some(entry) = packer.entry(visit.path, node)?
            {
                waiting.push(entry);
            }
            return Ok(Next::Descend);
        }
        for dir in waiting.drain(..) {
            if packer.emit(dir, None)? == Next::Skip {
                return Ok(Next::Skip);
            }
        }
        match visit.node {
            None => whiteout_entry(&mut packer, visit),
            Some(node) => packer.object(visit.path, node),
        }
    })?;
    let stats = packer.stats;
    Ok((out.finish()?, stats))
}

/// What an overlay's upper directory changes about the directories below it (topmost first),
/// sorted by path.
///
/// # Errors
/// When something cannot be read, or for overlay features as in [`diff_overlay`].
pub fn changes_overlay(
    upper: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
) -> Result<Vec<Change>, Error> {
    changes(upper, reopen(lowers)?, Relation::Overlay)
}

/// What turns the tree `lower` into the tree `upper`, sorted by path.
///
/// # Errors
/// When something cannot be read.
pub fn changes_directories(
    lower: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
) -> Result<Vec<Change>, Error> {
    changes(upper, reopen(&[lower])?, Relation::Complete)
}

fn changes(
    upper: BorrowedFd<'_>,
    lowers: Vec<OwnedFd>,
    relation: Relation,
) -> Result<Vec<Change>, Error> {
    let mut found = Vec::new();
    let start = Node::resolve(upper, Path::new(""))?;
    walk(&start, lowers, relation, &mut |visit| {
        let kind = match visit.difference {
            Difference::Same => None,
            // A mark for something that no lower layer has changes nothing.
            Difference::Deleted if !visit.in_lower => None,
            Difference::Deleted => Some(ChangeKind::Delete),
            Difference::Modified => Some(ChangeKind::Modify),
            Difference::Added => Some(ChangeKind::Add),
        };
        if let Some(kind) = kind
            && !visit.path.as_os_str().is_empty()
        {
            found.push(Change { path: Path::new("/").join(visit.path), kind });
        }
        Ok(Next::Descend)
    })?;
    found.sort_unstable_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
    Ok(found)
}

/// Readable descriptors of our own for directories that may have been opened with `O_PATH`.
fn reopen(dirs: &[BorrowedFd<'_>]) -> Result<Vec<OwnedFd>, Error> {
    let open = |dir: &BorrowedFd<'_>| {
        open_in_root(dir.as_fd(), Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| Error::file("open lower directory", "/", e))
    };
    dirs.iter().map(open).collect()
}

fn whiteout_entry<W: Write>(
    packer: &mut Packer<'_, '_, W>,
    visit: &Visit<'_>,
) -> Result<Next, Error> {
    let Some(last) = visit.path.file_name() else { return Ok(Next::Skip) };
    let name = sibling(visit.path, &whiteout::name_for(last));
    let mut entry = Entry::new(name, Kind::File { sparse: None });
    entry.mode = 0;
    if let Some(node) = visit.node {
        let mtime = node.stat().stx_mtime;
        entry.mtime = packer.clamp(Time { secs: mtime.tv_sec, nanos: mtime.tv_nsec });
    }
    packer.emit(entry, None)?;
    Ok(Next::Skip)
}

/// The opaque mark takes owner, time and permissions of its directory.
fn marker_entry(directory: Entry) -> Entry {
    let mut entry = directory;
    entry.kind = Kind::File { sparse: None };
    entry.mode &= 0o777;
    entry.size = 0;
    entry.xattrs.clear();
    entry
}
