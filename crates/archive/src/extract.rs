//! A tar as a directory.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashSet},
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags},
    io::Errno,
};

use crate::{
    entry::{Entry, Kind, Limits, Owner, Time, portable_xattr},
    error::{Error, Problem},
    implied::Hidden,
    metadata::{drop_xattrs, mark_opaque, timestamps},
    node::{Node, proc_path, sorted_names},
    place::{self, Keep, Parent, Place},
    reader::TarReader,
    whiteout::{self, Meaning},
};

const COPY_BYTES: usize = 128 << 10;
/// A name that another process makes again each time it is removed is given up on.
const REPLACE_TRIES: usize = 8;
/// What one remembered name takes beside its text.
pub(crate) const REMEMBERED_OVERHEAD: usize = 128;

/// What names beginning with `.wh.` mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whiteouts {
    /// Nothing: a plain tar.
    #[default]
    None,
    /// The root is one layer of an overlay, empty at the beginning: deletions become marks.
    /// `userxattr`: as the mount option, marks are in `user.overlay.` instead of
    /// `trusted.overlay.`.
    Overlay { userxattr: bool },
    /// The root is the whole tree: deletions delete what earlier layers made.
    Remove,
}

/// What to do with block and character devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Devices {
    #[default]
    Create,
    Skip,
    Refuse,
}

/// A filter sees each entry first, may change it (its name, say), and leaves it out by `false`.
pub type EntryFilter<'a> = dyn FnMut(&mut Entry) -> bool + 'a;

/// Answers the roots of the layers below, topmost first, once they are there.
pub type LateLowers<'a> = dyn Fn() -> std::io::Result<Vec<OwnedFd>> + 'a;

/// Where to extract, and how.
pub struct ExtractOptions<'a> {
    /// A directory below the root, resolved within the root (links are followed within it) and
    /// made if it is missing. Empty for the root.
    pub dest: PathBuf,
    pub whiteouts: Whiteouts,
    pub owner: Owner,
    pub devices: Devices,
    pub limits: Limits,
    /// Restore file capabilities and `user.*` attributes. All others are left out in any case.
    pub xattrs: bool,
    /// Whether an entry for "." sets the destination's own owner, mode and times.
    pub root_metadata: bool,
    /// Refuse to replace a directory by something else, and the reverse (as `docker cp` does).
    pub no_overwrite_dir_non_dir: bool,
    /// [`Whiteouts::Overlay`]: the roots of all layers below, topmost first. Directories that
    /// the tar implies without an entry look as they do there; an opaque root hides their names.
    pub lowers: &'a [BorrowedFd<'a>],
    /// Asked once for these roots when they are first needed, in place of `lowers`: a layer can be
    /// extracted before those below it are there. What it answers as an error ends the extraction.
    pub late_lowers: Option<&'a LateLowers<'a>>,
    pub filter: Option<&'a mut EntryFilter<'a>>,
}

impl Default for ExtractOptions<'_> {
    fn default() -> Self {
        Self {
            dest: PathBuf::new(),
            whiteouts: Whiteouts::None,
            owner: Owner::Keep,
            devices: Devices::Create,
            limits: Limits::default(),
            xattrs: true,
            root_metadata: false,
            no_overwrite_dir_non_dir: false,
            lowers: &[],
            late_lowers: None,
            filter: None,
        }
    }
}

/// What was extracted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtractStats {
    pub entries: u64,
    /// Data written to files.
    pub bytes: u64,
    pub whiteouts: u64,
    pub skipped_devices: u64,
    /// Attributes that do not belong into an archive, or that the file system has no room for.
    pub skipped_xattrs: u64,
}

/// Extracts an uncompressed tar below `root` and reads the stream to its very end. A later entry
/// replaces an earlier one of the same name; a directory merges with a directory.
///
/// # Errors
/// For an archive that is malformed, above the limits, or asks for what must not be done, and
/// when the file system fails. What was extracted until then stays.
pub fn extract<R: Read>(
    tar: R,
    root: BorrowedFd<'_>,
    options: &mut ExtractOptions<'_>,
) -> Result<ExtractStats, Error> {
    let mut reader = TarReader::new(tar, options.limits);
    let mut filter = options.filter.take();
    let mut extractor = Extractor::new(root, options);
    let result = (|| {
        let dest = extractor.place.directory(Path::new(""), &mut |_, _, _| Ok(()))?;
        extractor.dest = Some(dest);
        while let Some(mut entry) = reader.next_entry()? {
            if filter.as_mut().is_none_or(|keep| keep(&mut entry)) {
                extractor.entry(&entry, &mut reader)?;
            }
        }
        extractor.finish()
    })();
    let stats = extractor.stats;
    options.filter = filter;
    result?;
    reader.finish()?;
    Ok(stats)
}

/// What a directory gets when everything is in it.
pub(crate) struct Deferred {
    pub(crate) identity: (u32, u32, u64),
    pub(crate) mtime: Time,
    pub(crate) mode: Option<u32>,
    /// Only names imply it: it looks as it does in the layers below.
    pub(crate) like_lower: bool,
}

pub(crate) struct Extractor<'e, 'o> {
    pub(crate) options: &'e ExtractOptions<'o>,
    pub(crate) place: Place<'e>,
    pub(crate) dest: Option<Parent>,
    stats: ExtractStats,
    /// Sorted, so that what lies below a directory stands behind it.
    pub(crate) directories: BTreeMap<PathBuf, Deferred>,
    /// [`Whiteouts::Remove`]: what this archive made, which its own whiteouts do not touch.
    pub(crate) made: HashSet<(u64, OsString)>,
    /// [`Whiteouts::Remove`]: directories that names of this archive imply. They stay as well, but nothing of
    /// what they were below.
    pub(crate) implied: HashSet<(u64, OsString)>,
    /// [`Whiteouts::Overlay`]: names that this layer deletes from the ones below.
    pub(crate) deleted: HashSet<(u64, OsString)>,
    /// Directories whose lower contents are gone already.
    emptied: HashSet<u64>,
    /// [`Whiteouts::Overlay`]: paths that this layer deletes, and directories that it makes opaque.
    pub(crate) hidden: Hidden,
    /// What [`ExtractOptions::late_lowers`] answered.
    pub(crate) late: OnceCell<Vec<OwnedFd>>,
    /// Bytes of these, about.
    pub(crate) remembered: usize,
    buffer: Vec<u8>,
}

impl<'e, 'o> Extractor<'e, 'o> {
    fn new(root: BorrowedFd<'e>, options: &'e ExtractOptions<'o>) -> Self {
        Self {
            options,
            place: Place::new(
                root,
                &options.dest,
                matches!(options.whiteouts, Whiteouts::Overlay { .. }),
            ),
            dest: None,
            stats: ExtractStats::default(),
            directories: BTreeMap::new(),
            made: HashSet::new(),
            implied: HashSet::new(),
            deleted: HashSet::new(),
            emptied: HashSet::new(),
            hidden: Hidden::default(),
            late: OnceCell::new(),
            remembered: 0,
            buffer: vec![0; COPY_BYTES],
        }
    }

    fn entry<R: Read>(&mut self, entry: &Entry, reader: &mut TarReader<R>) -> Result<(), Error> {
        let path = entry.relative_path()?;
        self.stats.entries += 1;
        let Some(name) = path.file_name() else {
            return self.root_entry(entry);
        };
        let dir = path.parent().unwrap_or(Path::new(""));
        if self.options.whiteouts != Whiteouts::None {
            match self.meaning(entry, dir, name)? {
                Meaning::Plain => {}
                Meaning::Ignore => return Ok(()),
                Meaning::Remove(target) => return self.whiteout(dir, target),
                Meaning::Opaque => return self.opaque(dir),
            }
        }
        if self.skip_device(entry)? {
            return Ok(());
        }
        let parent = self.parent(dir)?;
        if self.options.whiteouts == Whiteouts::Remove {
            self.remember(name)?;
            self.made.insert(parent.key(name));
        }
        match &entry.kind {
            Kind::Directory => self.directory(entry, &parent, name, &path),
            Kind::File { .. } => self.file(entry, &parent, name, &path, reader),
            Kind::HardLink { target } => self.hard_link(entry, &parent, name, &path, target),
            _ => self.special(entry, &parent, name, &path),
        }
    }

    /// Counts a name that is kept to the end.
    pub(crate) fn remember(&mut self, name: &OsStr) -> Result<(), Error> {
        self.remembered += name.len() + REMEMBERED_OVERHEAD;
        if self.remembered > self.options.limits.remembered_bytes {
            let limit = u64::try_from(self.options.limits.remembered_bytes).unwrap_or(u64::MAX);
            return Err(Error::Limit { what: "bytes of directory names", limit });
        }
        Ok(())
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(Error::entry(&entry.name, Problem::RootNotDirectory));
        }
        let Some(dest) = self.dest.clone() else { return Ok(()) };
        if self.options.root_metadata {
            let path = Path::new("");
            let fd = rustix::io::fcntl_dupfd_cloexec(dest.fd.as_fd(), 0)
                .map_err(|e| Error::file("open directory", path, e))?;
            let node = Node::from_fd(fd, path)?;
            self.directory_metadata(entry, &node, path)?;
        }
        Ok(())
    }

    /// What the name says, with its parents looked at too.
    fn meaning<'n>(
        &self,
        entry: &Entry,
        dir: &Path,
        name: &'n OsStr,
    ) -> Result<Meaning<'n>, Error> {
        let problem = |problem| Error::entry(&entry.name, problem);
        for component in dir {
            match whiteout::meaning(component).map_err(problem)? {
                Meaning::Plain => {}
                Meaning::Ignore => return Ok(Meaning::Ignore),
                Meaning::Remove(_) | Meaning::Opaque => return Err(problem(Problem::WhiteoutName)),
            }
        }
        whiteout::meaning(name).map_err(problem)
    }

    fn skip_device(&mut self, entry: &Entry) -> Result<bool, Error> {
        if !matches!(entry.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. }) {
            return Ok(false);
        }
        match self.options.devices {
            Devices::Create => {}
            Devices::Skip => {
                self.stats.skipped_devices += 1;
                return Ok(true);
            }
            Devices::Refuse => return Err(Error::entry(&entry.name, Problem::DeviceRefused)),
        }
        if matches!(self.options.whiteouts, Whiteouts::Overlay { .. })
            && entry.kind == (Kind::CharDevice { major: 0, minor: 0 })
        {
            return Err(Error::entry(&entry.name, Problem::WhiteoutDevice));
        }
        Ok(false)
    }

    fn directory(
        &mut self,
        entry: &Entry,
        parent: &Parent,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), Error> {
        // Until its contents are there it must be possible to write to it.
        let mode = Mode::from_raw_mode(0o700);
        let node = self.create(entry, parent, name, path, &mut |fd, name| {
            rustix::fs::mkdirat(fd, name, mode)
        })?;
        if let Whiteouts::Overlay { .. } = self.options.whiteouts
            && self.deleted.contains(&parent.key(name))
        {
            mark_opaque(self.options.whiteouts, node.fd(), path)?;
        }
        self.directory_metadata(entry, &node, path)
    }

    fn directory_metadata(&mut self, entry: &Entry, node: &Node, path: &Path) -> Result<(), Error> {
        let defer_mode = entry.mode & 0o300 != 0o300;
        let mode = if defer_mode { 0o700 } else { entry.mode };
        if self.options.whiteouts != Whiteouts::None && self.options.xattrs {
            // What is said last is all that is said.
            drop_xattrs(&entry.xattrs, node, path)?;
        }
        self.metadata(entry, node, path, mode)?;
        self.remember(path.as_os_str())?;
        self.directories.insert(
            path.to_owned(),
            Deferred {
                identity: node.identity(),
                mtime: entry.mtime,
                mode: defer_mode.then_some(entry.mode),
                like_lower: false,
            },
        );
        Ok(())
    }

    fn special(
        &mut self,
        entry: &Entry,
        parent: &Parent,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), Error> {
        let mode = Mode::from_raw_mode(0o600);
        let node = self.create(entry, parent, name, path, &mut |fd, name| match &entry.kind {
            Kind::Symlink { target } => rustix::fs::symlinkat(target, fd, name),
            Kind::Fifo => rustix::fs::mknodat(fd, name, FileType::Fifo, mode, 0),
            Kind::CharDevice { major, minor } => {
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(fd, name, FileType::CharacterDevice, mode, device)
            }
            Kind::BlockDevice { major, minor } => {
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(fd, name, FileType::BlockDevice, mode, device)
            }
            _ => Err(Errno::INVAL),
        })?;
        self.metadata(entry, &node, path, entry.mode)?;
        let times = timestamps(entry.mtime);
        rustix::fs::utimensat(node.fd(), "", &times, AtFlags::EMPTY_PATH)
            .map_err(|e| Error::file("set times of", path, e))
    }

    fn hard_link(
        &mut self,
        entry: &Entry,
        parent: &Parent,
        name: &OsStr,
        path: &Path,
        target: &Path,
    ) -> Result<(), Error> {
        let target = entry.link_path(target)?;
        let Some(target_name) = target.file_name() else {
            return Err(Error::entry(&entry.name, Problem::EmptyLink));
        };
        let from = self.place.existing(target.parent().unwrap_or(Path::new("")))?;
        self.create(entry, parent, name, path, &mut |fd, name| {
            rustix::fs::linkat(from.fd.as_fd(), target_name, fd, name, AtFlags::empty())
        })?;
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        parent: &Parent,
        name: &OsStr,
        path: &Path,
        reader: &mut TarReader<R>,
    ) -> Result<(), Error> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut opened = None;
        self.make_room(entry, parent, name, path, &mut |fd, name| {
            opened = Some(rustix::fs::openat(fd, name, flags, Mode::from_raw_mode(0o600))?);
            Ok(())
        })?;
        let Some(fd) = opened else {
            return Err(Error::file("create", path, Errno::EXIST));
        };
        let mut file = File::from(fd);
        self.write_file(entry, &mut file, path, reader)?;
        if let Some((uid, gid)) = self.owner(entry)? {
            rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|e| Error::file("change owner of", path, e))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))
            .map_err(|e| Error::file("change mode of", path, e))?;
        self.xattrs(entry, path, &|name, value| {
            rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty())
        })?;
        rustix::fs::futimens(&file, &timestamps(entry.mtime))
            .map_err(|e| Error::file("set times of", path, e))
    }

    fn write_file<R: Read>(
        &mut self,
        entry: &Entry,
        file: &mut File,
        path: &Path,
        reader: &mut TarReader<R>,
    ) -> Result<(), Error> {
        let error = |operation| move |e| Error::file(operation, path, e);
        let Kind::File { sparse } = &entry.kind else { return Ok(()) };
        let Some(chunks) = sparse else {
            return self.copy(file, entry.size, path, reader);
        };
        for chunk in chunks {
            file.seek(SeekFrom::Start(chunk.offset)).map_err(error("seek in"))?;
            self.copy(file, chunk.len, path, reader)?;
        }
        file.set_len(entry.size).map_err(error("set size of"))
    }

    fn copy<R: Read>(
        &mut self,
        file: &mut File,
        mut left: u64,
        path: &Path,
        reader: &mut TarReader<R>,
    ) -> Result<(), Error> {
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let offset = reader.offset();
            let n = match reader.data().read(&mut self.buffer[..want]) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(Error::Truncated { offset });
                }
                Err(source) => return Err(Error::Read { offset, source }),
            };
            file.write_all(&self.buffer[..n]).map_err(|e| Error::file("write", path, e))?;
            self.stats.bytes += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    /// Makes something that is not a regular file and opens it, without following it.
    fn create(
        &mut self,
        entry: &Entry,
        parent: &Parent,
        name: &OsStr,
        path: &Path,
        make: &mut MakeNode<'_>,
    ) -> Result<Node, Error> {
        self.make_room(entry, parent, name, path, make)?;
        let node = Node::open(parent.fd.as_fd(), name, path)?;
        let expected = match entry.kind {
            Kind::Directory => Some(FileType::Directory),
            Kind::Symlink { .. } => Some(FileType::Symlink),
            Kind::Fifo => Some(FileType::Fifo),
            Kind::CharDevice { .. } => Some(FileType::CharacterDevice),
            Kind::BlockDevice { .. } => Some(FileType::BlockDevice),
            Kind::HardLink { .. } | Kind::File { .. } => None,
        };
        // Someone who works in the tree at the same time may have swapped it.
        node.filter(|n| expected.is_none_or(|t| n.file_type() == t))
            .ok_or_else(|| Error::file("open", path, Errno::STALE))
    }

    /// Runs `make`, and when the name is taken removes what has it and tries again. An existing
    /// directory is as good as a new one.
    fn make_room(
        &mut self,
        entry: &Entry,
        parent: &Parent,
        name: &OsStr,
        path: &Path,
        make: &mut MakeNode<'_>,
    ) -> Result<(), Error> {
        for _ in 0..REPLACE_TRIES {
            match make(parent.fd.as_fd(), name) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(Error::file("create", path, e)),
            }
            let Some(old) = Node::open(parent.fd.as_fd(), name, path)? else { continue };
            let directory = entry.kind == Kind::Directory;
            if directory && old.is_dir() {
                return Ok(());
            }
            if self.options.no_overwrite_dir_non_dir && directory != old.is_dir() {
                let problem = if directory {
                    Problem::DirectoryOverNonDirectory
                } else {
                    Problem::NonDirectoryOverDirectory
                };
                return Err(Error::entry(&entry.name, problem));
            }
            self.remove(parent, name, path, false)?;
        }
        Err(Error::file("create", path, Errno::EXIST))
    }

    pub(crate) fn remove(
        &mut self,
        parent: &Parent,
        name: &OsStr,
        path: &Path,
        keep_made: bool,
    ) -> Result<(), Error> {
        self.place.forget();
        // What comes in the place of a directory may have its inode number, but not its time and mode.
        if !keep_made {
            let below = self.directories.range(path.to_owned()..).map(|(dir, _)| dir);
            let gone: Vec<PathBuf> =
                below.take_while(|dir| dir.starts_with(path)).cloned().collect();
            for dir in gone {
                self.directories.remove(&dir);
            }
        }
        let (made, implied) = (&self.made, &self.implied);
        let around = place::remove(parent, name, path, &|inode, name| {
            let key = (inode, name.to_owned());
            match keep_made {
                true if made.contains(&key) => Keep::Itself,
                true if implied.contains(&key) => Keep::Plain,
                _ => Keep::No,
            }
        })?;
        // They are there for this layer's sake alone now.
        around.iter().try_for_each(|dir| self.make_plain(dir))
    }

    fn owner(&self, entry: &Entry) -> Result<Option<(u32, u32)>, Error> {
        let owner = self.options.owner.apply(entry.uid, entry.gid);
        owner.map_err(|problem| Error::entry(&entry.name, problem))
    }

    /// Owner, mode, attributes, in this order: a change of owner takes setuid bits and file
    /// capabilities away.
    fn metadata(
        &mut self,
        entry: &Entry,
        node: &Node,
        path: &Path,
        mode: u32,
    ) -> Result<(), Error> {
        if let Some((uid, gid)) = self.owner(entry)? {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(node.fd(), "", uid, gid, AtFlags::EMPTY_PATH)
                .map_err(|e| Error::file("change owner of", path, e))?;
        }
        let proc = proc_path(node.fd());
        if node.file_type() != FileType::Symlink {
            rustix::fs::chmod(&proc, Mode::from_raw_mode(mode))
                .map_err(|e| Error::file("change mode of", path, e))?;
        }
        self.xattrs(entry, path, &|name, value| {
            rustix::fs::setxattr(&proc, name, value, XattrFlags::empty())
        })
    }

    fn xattrs(&mut self, entry: &Entry, path: &Path, set: &SetXattr<'_>) -> Result<(), Error> {
        if !self.options.xattrs {
            return Ok(());
        }
        for (name, value) in &entry.xattrs {
            if !portable_xattr(name) {
                self.stats.skipped_xattrs += 1;
                continue;
            }
            match set(name, value) {
                Ok(()) => {}
                Err(Errno::NOTSUP) => self.stats.skipped_xattrs += 1,
                // Links and devices cannot have user attributes.
                Err(Errno::PERM) if name != "security.capability" => {
                    self.stats.skipped_xattrs += 1;
                }
                Err(e) => return Err(Error::file("set attribute of", path, e)),
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, dir: &Path, name: &OsStr) -> Result<(), Error> {
        self.stats.whiteouts += 1;
        let path = dir.join(name);
        let parent = self.parent(dir)?;
        if self.options.whiteouts == Whiteouts::Remove {
            return self.remove(&parent, name, &path, true);
        }
        self.remember(name)?;
        self.remember(path.as_os_str())?;
        self.deleted.insert(parent.key(name));
        self.hidden.deleted.insert(path.clone());
        match Node::open(parent.fd.as_fd(), name, &path)? {
            None => {
                let mode = Mode::from_raw_mode(0);
                rustix::fs::mknodat(parent.fd.as_fd(), name, FileType::CharacterDevice, mode, 0)
                    .map_err(|e| Error::file("create whiteout", path, e))
            }
            // What this layer itself has stays; a directory must not show what was below it.
            Some(node) if node.is_dir() => {
                mark_opaque(self.options.whiteouts, node.fd(), &path)?;
                self.forget_lower(&path, true)
            }
            Some(_) => Ok(()),
        }
    }

    fn opaque(&mut self, dir: &Path) -> Result<(), Error> {
        self.stats.whiteouts += 1;
        let parent = self.parent(dir)?;
        if !self.emptied.insert(parent.inode) {
            return Ok(());
        }
        if self.options.whiteouts == Whiteouts::Remove {
            for name in sorted_names(parent.fd.as_fd(), dir)? {
                self.remove(&parent, &name, &dir.join(&name), true)?;
            }
            return Ok(());
        }
        self.remember(dir.as_os_str())?;
        self.hidden.opaque.insert(dir.to_owned());
        if !dir.as_os_str().is_empty() {
            mark_opaque(self.options.whiteouts, parent.fd.as_fd(), dir)?;
            return self.forget_lower(dir, false);
        }
        // overlayfs merges the roots whatever their marks say.
        let mut names = Vec::new();
        for lower in place::lowers(self.options, &self.late)? {
            names.extend(sorted_names(lower, dir)?);
        }
        for name in names {
            if !self.deleted.contains(&parent.key(&name)) {
                self.whiteout(dir, &name)?;
            }
        }
        Ok(())
    }

    /// Sets what directories get at the end.
    fn finish(&mut self) -> Result<(), Error> {
        self.place.forget();
        for (path, deferred) in std::mem::take(&mut self.directories) {
            let dir = path.parent().unwrap_or(Path::new(""));
            let node = match path.file_name() {
                None => self.dest_node()?,
                Some(name) => match self.place.existing(dir) {
                    Ok(parent) => Node::open(parent.fd.as_fd(), name, &path)?,
                    // Replaced by a later entry.
                    Err(_) => None,
                },
            };
            let Some(node) = node.filter(|n| n.identity() == deferred.identity) else { continue };
            if let Some(mode) = deferred.mode {
                rustix::fs::chmod(proc_path(node.fd()), Mode::from_raw_mode(mode))
                    .map_err(|e| Error::file("change mode of", &path, e))?;
            }
            let times = timestamps(deferred.mtime);
            rustix::fs::utimensat(node.fd(), "", &times, AtFlags::EMPTY_PATH)
                .map_err(|e| Error::file("set times of", &path, e))?;
        }
        Ok(())
    }

    fn dest_node(&self) -> Result<Option<Node>, Error> {
        let Some(dest) = &self.dest else { return Ok(None) };
        let path = Path::new("");
        let fd = rustix::io::fcntl_dupfd_cloexec(dest.fd.as_fd(), 0)
            .map_err(|e| Error::file("open directory", path, e))?;
        Node::from_fd(fd, path).map(Some)
    }
}

type MakeNode<'m> = dyn FnMut(BorrowedFd<'_>, &OsStr) -> Result<(), Errno> + 'm;
type SetXattr<'s> = dyn Fn(&OsStr, &[u8]) -> Result<(), Errno> + 's;
