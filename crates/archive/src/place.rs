//! Where names go: parents resolved below the root, made where they are missing; removal.

use std::{
    cell::OnceCell,
    ffi::{OsStr, OsString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

use crate::{
    error::Error,
    extract::ExtractOptions,
    node::{Node, open_in_root, sorted_names},
    whiteout,
};

/// As the kernel follows at most this many links in one path.
const LINKS_MAX: usize = 40;
/// Levels that removal descends; each holds a descriptor.
const DEPTH_MAX: usize = 2048;

/// A directory in which something is about to be made.
#[derive(Clone)]
pub(crate) struct Parent {
    pub(crate) fd: Rc<OwnedFd>,
    pub(crate) inode: u64,
}

impl Parent {
    pub(crate) fn of(directory: Node) -> Self {
        let inode = directory.stat().stx_ino;
        Self { fd: Rc::new(directory.into_fd()), inode }
    }

    /// Identifies a name in this directory as long as the directory exists.
    pub(crate) fn key(&self, name: &OsStr) -> (u64, OsString) {
        (self.inode, name.to_owned())
    }
}

/// Told of each directory that had to be made: its parent, its name, its path below the root
/// (which has ".." in it where a link led there).
pub(crate) type Made<'m> = dyn FnMut(BorrowedFd<'_>, &OsStr, &Path) -> Result<(), Error> + 'm;

/// Resolves the parents of names below `dest` below `root`.
pub(crate) struct Place<'r> {
    root: BorrowedFd<'r>,
    dest: PathBuf,
    /// A whiteout device in the way of a directory is replaced.
    overlay: bool,
    /// The parent used last. Making something where nothing was cannot change what a path
    /// leads to; removing can, and empties this.
    last: Option<(PathBuf, Parent)>,
}

impl<'r> Place<'r> {
    pub(crate) fn new(root: BorrowedFd<'r>, dest: &Path, overlay: bool) -> Self {
        Self { root, dest: dest.to_owned(), overlay, last: None }
    }

    /// The directory `relative` below the destination, made with all its parents if missing.
    pub(crate) fn directory(
        &mut self,
        relative: &Path,
        made: &mut Made<'_>,
    ) -> Result<Parent, Error> {
        if let Some((path, parent)) = &self.last
            && path == relative
        {
            return Ok(parent.clone());
        }
        let full = self.dest.join(relative);
        let fd = self.ensure(&full, made, 0)?;
        let parent = self.keep(fd, relative)?;
        Ok(parent)
    }

    /// As [`Place::directory`], but an error if it is missing.
    pub(crate) fn existing(&mut self, relative: &Path) -> Result<Parent, Error> {
        let full = self.dest.join(relative);
        let fd = open_in_root(self.root, &full, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|e| Error::file("open directory", full, e))?;
        self.keep(fd, relative)
    }

    /// Is this the directory that was asked for last?
    pub(crate) fn is_last(&self, relative: &Path) -> bool {
        self.last.as_ref().is_some_and(|(path, _)| path == relative)
    }

    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    fn keep(&mut self, fd: OwnedFd, relative: &Path) -> Result<Parent, Error> {
        let stat = rustix::fs::fstat(&fd).map_err(|e| Error::file("stat", relative, e))?;
        let parent = Parent { fd: Rc::new(fd), inode: stat.st_ino };
        self.last = Some((relative.to_owned(), parent.clone()));
        Ok(parent)
    }

    fn ensure(&self, full: &Path, made: &mut Made<'_>, links: usize) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let open = |path: &Path| open_in_root(self.root, path, flags);
        match open(full) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            other => return other.map_err(|e| Error::file("open directory", full, e)),
        }
        let mut prefix = PathBuf::new();
        let mut parent = open(&prefix).map_err(|e| Error::file("open directory", "/", e))?;
        for component in full.components() {
            let name = match component {
                Component::Normal(name) => name,
                // Links may have put ".." here; it exists wherever its child does.
                Component::ParentDir => OsStr::new(".."),
                _ => continue,
            };
            prefix.push(name);
            parent = match open(&prefix) {
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    self.make(&parent, name, &prefix, made, links)?
                }
                other => other.map_err(|e| Error::file("open directory", &prefix, e))?,
            };
        }
        Ok(parent)
    }

    /// Makes the missing directory `prefix`, or the one that a dangling link there points to.
    fn make(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        prefix: &Path,
        made: &mut Made<'_>,
        links: usize,
    ) -> Result<OwnedFd, Error> {
        let error = |e: Errno| Error::file("create directory", prefix, e);
        let create = || rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755));
        match create() {
            Ok(()) => return self.open_made(parent, name, prefix, made),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(error(e)),
        }
        let Some(node) = Node::open(parent.as_fd(), name, prefix)? else {
            return Err(error(Errno::AGAIN));
        };
        if self.overlay && node.is_whiteout_device() {
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(error)?;
            create().map_err(error)?;
            return self.open_made(parent, name, prefix, made);
        }
        if node.file_type() != FileType::Symlink {
            return Err(error(Errno::NOTDIR));
        }
        if links >= LINKS_MAX {
            return Err(error(Errno::LOOP));
        }
        // An absolute target replaces the prefix; both are resolved below the root.
        let target = prefix.parent().unwrap_or(Path::new("")).join(node.read_link(prefix)?);
        self.ensure(&target, made, links + 1)
    }

    fn open_made(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        prefix: &Path,
        made: &mut Made<'_>,
    ) -> Result<OwnedFd, Error> {
        made(parent.as_fd(), name, prefix)?;
        open_in_root(self.root, prefix, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|e| Error::file("open directory", prefix, e))
    }
}

/// The roots of the layers below; those that come late are asked for and kept in `late`.
pub(crate) fn lowers<'o>(
    options: &'o ExtractOptions<'_>,
    late: &'o OnceCell<Vec<OwnedFd>>,
) -> Result<Vec<BorrowedFd<'o>>, Error> {
    let Some(ask) = options.late_lowers else { return Ok(options.lowers.to_vec()) };
    let lowers = match late.get() {
        Some(lowers) => lowers,
        None => {
            let lowers = ask().map_err(|e| Error::file("wait for what lies below", "", e))?;
            late.get_or_init(|| lowers)
        }
    };
    Ok(lowers.iter().map(|lower| lower.as_fd()).collect())
}

/// The directory that the layers below show at `path`: what a directory that a layer only
/// implies must look like. `None` as well for a path with "..".
pub(crate) fn find_in_lowers(
    lowers: &[BorrowedFd<'_>],
    path: &Path,
) -> Result<Option<Node>, Error> {
    if path.components().any(|c| c == Component::ParentDir) {
        return Ok(None);
    }
    'layers: for lower in lowers {
        let mut opaque = false;
        let mut node = Node::resolve(*lower, Path::new(""))?;
        let mut walked = PathBuf::new();
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            walked.push(name);
            let dir = node.open_dir(&walked)?;
            let Some(next) = Node::open(dir.as_fd(), name, &walked)? else {
                if opaque {
                    return Ok(None);
                }
                continue 'layers;
            };
            let marks = whiteout::marks(&next, &walked)?;
            if marks.whiteout || !next.is_dir() {
                return Ok(None);
            }
            opaque |= marks.opaque;
            node = next;
        }
        return Ok(Some(node));
    }
    Ok(None)
}

/// What removal leaves of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    No,
    /// The object as it is, but for what is removed in it.
    Itself,
    /// A directory; what it looks like goes.
    Plain,
}

/// Asked for a name by its directory's inode.
pub(crate) type Kept<'k> = dyn Fn(u64, &OsStr) -> Keep + 'k;

struct Frame {
    dir: OwnedFd,
    inode: u64,
    names: std::vec::IntoIter<OsString>,
    name: OsString,
    keep: Keep,
}

/// Removes `name` and everything below it but for what is kept and the directories around that. It gives the
/// paths of these, and of directories that are kept as plain ones.
pub(crate) fn remove(
    parent: &Parent,
    name: &OsStr,
    path: &Path,
    kept: &Kept<'_>,
) -> Result<Vec<PathBuf>, Error> {
    let keep = kept(parent.inode, name);
    let mut path = path.to_owned();
    let mut around = Vec::new();
    let Some(frame) = unlink(parent.fd.as_fd(), name, keep, &path)? else {
        return Ok(around);
    };
    let mut stack = vec![frame];
    let mut any_kept = false;
    while let Some(frame) = stack.last_mut() {
        if let Some(child) = frame.names.next() {
            path.push(&child);
            let keep = kept(frame.inode, &child);
            any_kept |= keep != Keep::No;
            match unlink(frame.dir.as_fd(), &child, keep, &path)? {
                Some(next) if stack.len() < DEPTH_MAX => stack.push(next),
                Some(_) => {
                    let limit = DEPTH_MAX as u64;
                    return Err(Error::Limit { what: "levels of directories", limit });
                }
                None => {
                    path.pop();
                }
            }
            continue;
        }
        let Some(done) = stack.pop() else { break };
        let above = stack.last().map_or(parent.fd.as_fd(), |f| f.dir.as_fd());
        if done.keep == Keep::Plain {
            around.push(path.clone());
        } else if done.keep == Keep::No {
            match rustix::fs::unlinkat(above, &done.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY) if any_kept => around.push(path.clone()),
                Err(e) => return Err(Error::file("remove directory", path, e)),
            }
        }
        path.pop();
    }
    Ok(around)
}

/// Unlinks what is not a directory, unless it is kept; opens what is one.
fn unlink(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    keep: Keep,
    path: &Path,
) -> Result<Option<Frame>, Error> {
    if keep == Keep::No {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(None),
            Err(Errno::ISDIR) => {}
            Err(e) => return Err(Error::file("remove", path, e)),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) if keep != Keep::No => return Ok(None),
        Err(e) => return Err(Error::file("open directory", path, e)),
    };
    let inode = rustix::fs::fstat(&fd).map_err(|e| Error::file("stat", path, e))?.st_ino;
    let names = sorted_names(fd.as_fd(), path)?.into_iter();
    Ok(Some(Frame { dir: fd, inode, names, name: name.to_owned(), keep }))
}
