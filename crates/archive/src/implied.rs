//! Directories that the names of an archive imply without an entry of their own.

use std::{
    collections::HashSet,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use crate::{
    entry::Time,
    error::Error,
    extract::{Deferred, ExtractOptions, Extractor, REMEMBERED_OVERHEAD, Whiteouts},
    metadata::{copy_metadata, make_plain, mark_opaque},
    node::Node,
    place::{self, Parent},
};

/// What a layer hides of the layers below, by path.
#[derive(Default)]
pub(crate) struct Hidden {
    pub(crate) deleted: HashSet<PathBuf>,
    pub(crate) opaque: HashSet<PathBuf>,
}

impl Hidden {
    /// Does the layer show nothing of what the ones below have at this path?
    fn covers(&self, path: &Path) -> bool {
        path.ancestors().any(|above| self.deleted.contains(above))
            || path.ancestors().skip(1).any(|above| self.opaque.contains(above))
    }
}

impl Extractor<'_, '_> {
    /// The directory for a name, with implied directories made like the ones below them.
    pub(crate) fn parent(&mut self, dir: &Path) -> Result<Parent, Error> {
        if self.options.whiteouts == Whiteouts::Remove && !self.place.is_last(dir) {
            self.lower_parents(dir)?;
        }
        let (options, directories, deleted) = (self.options, &mut self.directories, &self.deleted);
        let (hidden, late, implied) = (&self.hidden, &self.late, &mut self.implied);
        let mut remembered = 0;
        let parent = self.place.directory(dir, &mut |parent, name, path| {
            if options.whiteouts == Whiteouts::None {
                return Ok(());
            }
            let Some(node) = Node::open(parent, name, path)? else { return Ok(()) };
            let inode = rustix::fs::fstat(parent).map_err(|e| Error::file("stat", path, e))?.st_ino;
            if deleted.contains(&(inode, name.to_owned())) {
                mark_opaque(options.whiteouts, node.fd(), path)?;
            }
            if options.whiteouts == Whiteouts::Remove {
                remembered += name.len() + REMEMBERED_OVERHEAD;
                implied.insert((inode, name.to_owned()));
            }
            let lower = match hidden.covers(path) {
                true => None,
                false => place::find_in_lowers(&place::lowers(options, late)?, path)?,
            };
            let mtime = match &lower {
                Some(lower) => copy_metadata(lower, &node, path)?,
                None => make_plain(plain_owner(options, path)?, &node, path)?,
            };
            remembered += path.as_os_str().len() + REMEMBERED_OVERHEAD;
            let (identity, like_lower) = (node.identity(), lower.is_some());
            let deferred = Deferred { identity, mtime, mode: None, like_lower };
            directories.insert(path.to_owned(), deferred);
            Ok(())
        })?;
        self.remembered += remembered;
        Ok(parent)
    }

    /// [`Whiteouts::Remove`]: the directories of lower layers on the way to `dir` keep their times, whatever
    /// is made in them. What stands there and is none goes, as an overlay of the layers would hide it.
    fn lower_parents(&mut self, dir: &Path) -> Result<(), Error> {
        let Some(mut at) = self.dest.clone() else { return Ok(()) };
        let mut path = PathBuf::new();
        for name in dir {
            path.push(name);
            let Some(node) = Node::open(at.fd.as_fd(), name, &path)? else { return Ok(()) };
            if !node.is_dir() {
                // A link of this layer leads on.
                if self.made.contains(&at.key(name)) {
                    return Ok(());
                }
                return self.remove(&at, name, &path, false);
            }
            if self.implied.insert(at.key(name)) {
                self.remember(name)?;
            }
            if !self.directories.contains_key(&path) {
                self.remember(path.as_os_str())?;
                let mtime = node.stat().stx_mtime;
                let mtime = Time { secs: mtime.tv_sec, nanos: mtime.tv_nsec };
                let (identity, like_lower) = (node.identity(), true);
                let deferred = Deferred { identity, mtime, mode: None, like_lower };
                self.directories.insert(path.clone(), deferred);
            }
            at = Parent::of(node);
        }
        Ok(())
    }

    /// What was implied like a directory of the layers below, and turns out to be hidden, is like none.
    pub(crate) fn forget_lower(&mut self, path: &Path, itself: bool) -> Result<(), Error> {
        let below = self.directories.range(path.to_owned()..);
        let implied: Vec<PathBuf> = below
            .take_while(|(dir, _)| dir.starts_with(path))
            .filter(|(dir, deferred)| deferred.like_lower && (itself || dir.as_path() != path))
            .map(|(dir, _)| dir.clone())
            .collect();
        implied.into_iter().try_for_each(|dir| self.make_plain(&dir))
    }

    pub(crate) fn make_plain(&mut self, path: &Path) -> Result<(), Error> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let parent = self.place.existing(dir)?;
        let Some(node) = Node::open(parent.fd.as_fd(), name, path)? else { return Ok(()) };
        if let Some(deferred) = self.directories.get_mut(path)
            && deferred.identity == node.identity()
        {
            deferred.mtime = make_plain(plain_owner(self.options, path)?, &node, path)?;
            deferred.like_lower = false;
        }
        Ok(())
    }
}

/// Whose a directory is that nobody describes.
fn plain_owner(options: &ExtractOptions<'_>, path: &Path) -> Result<Option<(u32, u32)>, Error> {
    options.owner.apply(0, 0).map_err(|problem| Error::entry(path, problem))
}
