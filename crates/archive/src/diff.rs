//! What a directory changes about the ones below it: as a layer tar, or as a list.

use std::{
    collections::HashSet,
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, OFlags};

use crate::{
    entry::{Entry, Kind},
    error::Error,
    node::{Node, open_in_root},
    pack::{PackOptions, PackStats, Packer, sibling},
    walk::{Contents, Difference, Next, Relation, Visit, walk, walk_comparing},
    whiteout,
    writer::TarWriter,
};

/// What is known of the layers below an overlay's upper directory.
#[derive(Clone, Copy, Debug)]
pub enum Below<'a> {
    /// Nothing: the directory is written as it is, with its whiteouts, and with an entry `.wh..wh..opq` in
    /// each directory that is marked as opaque.
    Unknown,
    /// The roots of all of them, topmost first. What is written is what [`diff_directories`] writes for the
    /// trees that overlays with and without the upper directory show: nothing that is the same below,
    /// and one whiteout for each name that is hidden.
    Layers(&'a [BorrowedFd<'a>]),
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
    below: Below<'_>,
    options: &mut PackOptions<'_>,
    writer: W,
) -> Result<(W, PackStats), Error> {
    let start = Node::resolve(upper, Path::new(""))?;
    match below {
        Below::Layers(lowers) => write_changes(&start, lowers, Relation::Overlay, options, writer),
        Below::Unknown => write_marks(&start, options, writer),
    }
}

/// Writes the layer that turns `lower` into `upper`, both complete trees. Files count as the same when
/// their metadata, times (to the nanosecond) and contents are. `options.sources` is not used.
///
/// Equal trees give equal bytes. A directory that is the same is written where something in it is not.
/// So are unchanged names of a file of which another name is a change: as hard links. Whiteouts have the
/// time 0 and no owner.
///
/// # Errors
/// As [`crate::pack`].
pub fn diff_directories<W: Write>(
    lower: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    options: &mut PackOptions<'_>,
    writer: W,
) -> Result<(W, PackStats), Error> {
    let start = Node::resolve(upper, Path::new(""))?;
    write_changes(&start, &[lower], Relation::Complete, options, writer)
}

/// An overlay's marks in the words of a layer.
fn write_marks<W: Write>(
    start: &Node,
    options: &mut PackOptions<'_>,
    writer: W,
) -> Result<(W, PackStats), Error> {
    let mut out = TarWriter::new(writer).subsecond(options.subsecond);
    let mut packer = Packer::new(&mut out, options);
    walk(start, Vec::new(), Relation::Overlay, &mut |visit| {
        if visit.difference == Difference::Deleted {
            return write_whiteout(&mut packer, visit.path);
        }
        let Some(node) = visit.node else { return Ok(Next::Skip) };
        let next = packer.object(visit.path, node)?;
        if next == Next::Descend
            && visit.opaque
            && let Some(entry) = packer.entry(&visit.path.join(whiteout::OPAQUE), node)?
        {
            packer.emit(marker_entry(entry), None)?;
        }
        Ok(next)
    })?;
    let stats = packer.stats;
    Ok((out.finish()?, stats))
}

fn write_changes<W: Write>(
    start: &Node,
    lowers: &[BorrowedFd<'_>],
    relation: Relation,
    options: &mut PackOptions<'_>,
    writer: W,
) -> Result<(W, PackStats), Error> {
    let linked = changed_links(start, reopen(lowers)?, relation)?;
    let mut out = TarWriter::new(writer).subsecond(options.subsecond);
    let packer = Packer::new(&mut out, options);
    let mut changes = Changes { packer, around: Vec::new(), linked };
    walk(start, reopen(lowers)?, relation, &mut |visit| changes.visit(visit))?;
    let stats = changes.packer.stats;
    Ok((out.finish()?, stats))
}

/// The files with several names of which one at least is a change: by what they are.
fn changed_links(
    start: &Node,
    lowers: Vec<OwnedFd>,
    relation: Relation,
) -> Result<HashSet<(u32, u32, u64)>, Error> {
    let mut found = HashSet::new();
    // A file has the same contents by all of its names: what is not seen here is not seen of any.
    walk_comparing(start, lowers, (relation, Contents::Assume), &mut |visit| {
        if let Some(node) = visit.node
            && matches!(visit.difference, Difference::Added | Difference::Modified)
            && !node.is_dir()
            && node.stat().stx_nlink > 1
        {
            found.insert(node.identity());
        }
        Ok(Next::Descend)
    })?;
    Ok(found)
}

/// Writes what a walk finds to be changed.
struct Changes<'p, 'a, W> {
    packer: Packer<'p, 'a, W>,
    /// The unchanged directories on the way to what is visited, which are written when something in them is.
    around: Vec<Entry>,
    linked: HashSet<(u32, u32, u64)>,
}

impl<W: Write> Changes<'_, '_, W> {
    fn visit(&mut self, visit: &Visit<'_>) -> Result<Next, Error> {
        self.around.retain(|dir| visit.path.starts_with(&dir.name));
        match (visit.difference, visit.node) {
            (Difference::Same, Some(node)) if node.is_dir() => {
                if !visit.path.as_os_str().is_empty()
                    && let Some(entry) = self.packer.entry(visit.path, node)?
                {
                    self.around.push(entry);
                }
                Ok(Next::Descend)
            }
            (Difference::Same, Some(node)) if !self.linked.contains(&node.identity()) => {
                Ok(Next::Descend)
            }
            // A mark for something that no lower layer has.
            (Difference::Deleted, _) if !visit.in_lower => Ok(Next::Skip),
            (Difference::Deleted, _) | (_, None) => self.deleted(visit.path),
            (_, Some(node)) if node.file_type() == FileType::Socket => {
                self.packer.stats.skipped_sockets += 1;
                if visit.in_lower { self.deleted(visit.path) } else { Ok(Next::Skip) }
            }
            (_, Some(node)) => match self.write_around()? {
                Next::Descend => self.packer.object(visit.path, node),
                Next::Skip => Ok(Next::Skip),
            },
        }
    }

    fn deleted(&mut self, path: &Path) -> Result<Next, Error> {
        match self.write_around()? {
            Next::Descend => write_whiteout(&mut self.packer, path),
            Next::Skip => Ok(Next::Skip),
        }
    }

    fn write_around(&mut self) -> Result<Next, Error> {
        for dir in self.around.drain(..) {
            if self.packer.emit(dir, None)? == Next::Skip {
                return Ok(Next::Skip);
            }
        }
        Ok(Next::Descend)
    }
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

/// When something was deleted, and by whom, does not belong to what a layer is.
fn write_whiteout<W: Write>(packer: &mut Packer<'_, '_, W>, path: &Path) -> Result<Next, Error> {
    let Some(last) = path.file_name() else { return Ok(Next::Skip) };
    let name = sibling(path, &whiteout::name_for(last));
    let mut entry = Entry::new(name, Kind::File { sparse: None });
    entry.mode = 0;
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
