//! One sorted walk over a directory and, beside it, over what lies below it.

use std::{
    ffi::OsString,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::FileType;

use crate::{
    error::Error,
    node::{Node, same_contents, sorted_names},
    whiteout,
};

/// A walk holds one descriptor per level; deeper trees are refused before descriptors run out.
/// (PATH_MAX allows 2048 levels in one path.)
const DEPTH_MAX: usize = 2048;

/// How the upper directory relates to the lower ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// The upper directory is the whole new state: what is not in it is gone.
    Complete,
    /// The upper directory is an overlay's: it holds changes, with marks for deletions.
    Overlay,
}

/// Of files that are the same in all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    Read,
    /// They count as the same.
    Assume,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    Same,
    Modified,
    Added,
    Deleted,
}

/// One object on the way. Directories come before what is in them.
pub(crate) struct Visit<'a> {
    /// Relative to the start; empty for the start itself.
    pub(crate) path: &'a Path,
    pub(crate) difference: Difference,
    /// The upper object; for a deletion its mark, if there is one.
    pub(crate) node: Option<&'a Node>,
    /// Whether a lower layer has something of this name.
    pub(crate) in_lower: bool,
    /// An overlay directory that hides what is below it.
    pub(crate) opaque: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Descend,
    Skip,
}

pub(crate) type Visitor<'v> = dyn FnMut(&Visit<'_>) -> Result<Next, Error> + 'v;

struct Frame {
    dir: OwnedFd,
    names: std::vec::IntoIter<OsString>,
    /// The same directory in the lower layers, topmost first.
    lowers: Vec<OwnedFd>,
    /// What is in a lower one and not in `dir` is deleted.
    complete: bool,
}

/// Walks from `start`, a directory or not, with the directories `lowers` below it.
pub(crate) fn walk(
    start: &Node,
    lowers: Vec<OwnedFd>,
    relation: Relation,
    visitor: &mut Visitor<'_>,
) -> Result<(), Error> {
    walk_comparing(start, lowers, (relation, Contents::Read), visitor)
}

/// As [`walk`]; whether contents of files are read to compare them is for the caller to say.
pub(crate) fn walk_comparing(
    start: &Node,
    lowers: Vec<OwnedFd>,
    (relation, contents): (Relation, Contents),
    visitor: &mut Visitor<'_>,
) -> Result<(), Error> {
    let mut path = PathBuf::new();
    let opaque =
        relation == Relation::Overlay && start.is_dir() && whiteout::marks(start, &path)?.opaque;
    let in_lower = !lowers.is_empty();
    let difference = match lowers.first() {
        None => Difference::Added,
        Some(lower) => {
            let lower = Node::resolve(lower.as_fd(), &path)?;
            compare(start, &lower, &path, contents)?
        }
    };
    let visit = Visit { path: &path, difference, node: Some(start), in_lower, opaque };
    if visitor(&visit)? == Next::Skip || !start.is_dir() {
        return Ok(());
    }
    let complete = relation == Relation::Complete || opaque;
    let mut stack = vec![Frame::open(start, lowers, complete, &path)?];
    while let Some(frame) = stack.last_mut() {
        let Some(name) = frame.names.next() else {
            stack.pop();
            path.pop();
            continue;
        };
        path.push(&name);
        let child = step(frame, &name, &path, (relation, contents), visitor)?;
        match child {
            Some(frame) if stack.len() < DEPTH_MAX => stack.push(frame),
            Some(_) => {
                return Err(Error::Limit {
                    what: "levels of directories",
                    limit: DEPTH_MAX as u64,
                });
            }
            None => {
                path.pop();
            }
        }
    }
    Ok(())
}

impl Frame {
    fn open(node: &Node, lowers: Vec<OwnedFd>, complete: bool, path: &Path) -> Result<Self, Error> {
        let dir = node.open_dir(path)?;
        let mut names = sorted_names(dir.as_fd(), path)?;
        if complete && !lowers.is_empty() {
            for lower in &lowers {
                names.extend(sorted_names(lower.as_fd(), path)?);
            }
            names.sort_unstable();
            names.dedup();
        }
        Ok(Self { dir, names: names.into_iter(), lowers, complete })
    }
}

/// Visits one name; gives the frame to go on with if it is a directory to descend into.
fn step(
    frame: &Frame,
    name: &OsString,
    path: &Path,
    (relation, contents): (Relation, Contents),
    visitor: &mut Visitor<'_>,
) -> Result<Option<Frame>, Error> {
    let (lower, lower_dirs) = find_lower(&frame.lowers, name, path, relation)?;
    let in_lower = lower.is_some();
    let Some(node) = Node::open(frame.dir.as_fd(), name, path)? else {
        // Only listed by a lower layer, or gone since the directory was read.
        if in_lower && frame.complete {
            let difference = Difference::Deleted;
            visitor(&Visit { path, difference, node: None, in_lower, opaque: false })?;
        }
        return Ok(None);
    };
    let marks = match relation {
        Relation::Overlay => whiteout::marks(&node, path)?,
        Relation::Complete => whiteout::Marks::default(),
    };
    let difference = match &lower {
        _ if marks.whiteout => Difference::Deleted,
        None => Difference::Added,
        Some(lower) => compare(&node, lower, path, contents)?,
    };
    let visit = Visit { path, difference, node: Some(&node), in_lower, opaque: marks.opaque };
    let next = visitor(&visit)?;
    if next == Next::Skip || !node.is_dir() {
        return Ok(None);
    }
    let complete = frame.complete || marks.opaque;
    Frame::open(&node, lower_dirs, complete, path).map(Some)
}

/// What the lower layers show under a name: the object, and the directories that merge into it.
fn find_lower(
    lowers: &[OwnedFd],
    name: &OsString,
    path: &Path,
    relation: Relation,
) -> Result<(Option<Node>, Vec<OwnedFd>), Error> {
    let mut top = None;
    let mut dirs = Vec::new();
    for lower in lowers {
        let Some(node) = Node::open(lower.as_fd(), name, path)? else { continue };
        let marks = match relation {
            Relation::Overlay => whiteout::marks(&node, path)?,
            Relation::Complete => whiteout::Marks::default(),
        };
        if marks.whiteout {
            break;
        }
        if !node.is_dir() {
            if top.is_none() {
                top = Some(node);
            }
            break;
        }
        dirs.push(node.open_dir(path)?);
        if top.is_none() {
            top = Some(node);
        }
        if marks.opaque {
            break;
        }
    }
    Ok((top, dirs))
}

/// Same or modified. Equal sizes and times prove nothing about contents: archives have times of whole
/// seconds, and whoever builds reproducibly sets them all to one.
fn compare(
    upper: &Node,
    lower: &Node,
    path: &Path,
    contents: Contents,
) -> Result<Difference, Error> {
    if upper.identity() == lower.identity() {
        return Ok(Difference::Same);
    }
    let (u, l) = (upper.stat(), lower.stat());
    let key = |s: &rustix::fs::Statx| {
        (s.stx_mode, s.stx_uid, s.stx_gid, s.stx_rdev_major, s.stx_rdev_minor)
    };
    let times = |s: &rustix::fs::Statx| (s.stx_mtime.tv_sec, s.stx_mtime.tv_nsec);
    let file_type = upper.file_type();
    if key(u) != key(l) || times(u) != times(l) {
        return Ok(Difference::Modified);
    }
    if upper.portable_xattrs(path)? != lower.portable_xattrs(path)? {
        return Ok(Difference::Modified);
    }
    let same = match file_type {
        FileType::RegularFile => {
            u.stx_size == l.stx_size
                && (contents == Contents::Assume || same_contents(upper, lower, path)?)
        }
        FileType::Symlink => upper.read_link(path)? == lower.read_link(path)?,
        _ => true,
    };
    Ok(if same { Difference::Same } else { Difference::Modified })
}
