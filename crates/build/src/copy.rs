//! Writing selected files into a root filesystem.
//!
//! The destination is resolved within the root; each entry is then made in an open directory, new
//! (`O_EXCL`) and without following links.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    },
    io::Errno,
};

use crate::{
    error::{Error, Result},
    hashes,
    select::{Entry, Group, Place, Root, Selection},
    tree::{self, Kind, Node},
    users::{Chmod, Owner},
};

const COPY_BYTES: usize = 1 << 20;

/// Unpacks a file into the destination if it is an archive; false if it is none.
pub(crate) type Unpack<'a> = dyn Fn(&Root, &Entry, &Path) -> Result<bool> + 'a;

/// How entries are written.
pub(crate) struct Writing<'a> {
    pub(crate) command: &'static str,
    /// The root filesystem.
    pub(crate) root: BorrowedFd<'a>,
    /// Absolute; a slash at the end means a directory.
    pub(crate) dest: &'a str,
    /// Of all that is made; `None`: that of each source, and root for what is made in between.
    pub(crate) owner: Option<Owner>,
    pub(crate) chmod: Option<&'a Chmod>,
    /// Archives are not copied but unpacked by this.
    pub(crate) unpack: Option<&'a Unpack<'a>>,
    pub(crate) cancelled: &'a dyn Fn() -> bool,
    /// Sources of the instruction beside this selection.
    pub(crate) others: usize,
}

/// Directories made, whose metadata is set when all is in them.
struct Made {
    path: PathBuf,
    mode: u32,
    owner: Owner,
    mtime: Option<(i64, i64)>,
}

struct Writer<'a> {
    how: &'a Writing<'a>,
    made: Vec<Made>,
    /// The directory that was written to last.
    last: Option<(PathBuf, OwnedFd)>,
    /// Where files that have several names were written first, by device and inode of the source.
    linked: HashMap<(u64, u64), PathBuf>,
}

/// Copies everything.
///
/// # Errors
/// Conflicts between files and directories, files that changed since they were selected, and what the
/// file system refuses.
pub(crate) fn copy(selection: &Selection, root: &Root, how: &Writing<'_>) -> Result<()> {
    let dest = tree::inside(how.dest);
    let count = selection.groups.len() + how.others;
    let is_dir = dest_is_dir(how, &dest, count)?;
    let mut writer = Writer::new(how);
    for group in &selection.groups {
        let base = match &group.place {
            Place::Contents => dest.clone(),
            Place::Named(name) if is_dir => dest.join(name),
            Place::Named(_) => dest.clone(),
            Place::Under(path) => dest.join(path),
        };
        writer.group(group, root, &base, &dest)?;
    }
    writer.finish()
}

/// Must what is copied go into `dest`, or become it?
///
/// # Errors
/// [`Error::DestinationNotDirectory`] for several sources and a destination that is not written as a
/// directory.
pub(crate) fn dest_is_dir(how: &Writing<'_>, dest: &Path, count: usize) -> Result<bool> {
    let written = how.dest.ends_with('/') || how.dest.ends_with("/.") || how.dest == ".";
    let exists = match tree::resolve(how.root, dest, true) {
        Ok((_, node)) => node.kind == Kind::Dir,
        Err(_) => false,
    };
    if count > 1 && !written && !exists {
        return Err(Error::DestinationNotDirectory { command: how.command });
    }
    Ok(written || exists)
}

/// Writes one new file of the builder's own making: a heredoc, or what an URL gave.
pub(crate) fn write_new(
    how: &Writing<'_>,
    path: &Path,
    mode: u32,
    contents: &mut dyn Read,
    mtime: Option<i64>,
) -> Result<()> {
    let mut writer = Writer::new(how);
    let (parent, name) = writer.parent(path)?;
    let mode = how.chmod.map_or(mode, |chmod| chmod.apply(mode, false));
    let file = writer.create(&parent, &name, path)?;
    let mut file = std::fs::File::from(file);
    std::io::copy(contents, &mut file).map_err(Error::io("write", path))?;
    let look = (mode, how.owner.unwrap_or_default(), mtime.map(|seconds| (seconds, 0)));
    attributes(file.as_fd(), look, path)?;
    writer.finish()
}

/// Makes a directory and those above it, as WORKDIR does. Answers whether anything was made.
pub(crate) fn make_dir(root: BorrowedFd<'_>, path: &Path) -> Result<bool> {
    let how = Writing {
        command: "WORKDIR",
        root,
        dest: "/",
        owner: None,
        chmod: None,
        unpack: None,
        cancelled: &|| false,
        others: 0,
    };
    let mut writer = Writer::new(&how);
    writer.ensure_dir(path, None)?;
    let made = !writer.made.is_empty();
    writer.finish()?;
    Ok(made)
}

impl<'a> Writer<'a> {
    fn new(how: &'a Writing<'a>) -> Self {
        Self { how, made: Vec::new(), last: None, linked: HashMap::new() }
    }

    fn group(&mut self, group: &Group, root: &Root, base: &Path, dest: &Path) -> Result<()> {
        if group.place == Place::Contents || group.is_dir {
            self.ensure_dir(dest, None)?;
        }
        for entry in &group.entries {
            if (self.how.cancelled)() {
                return Err(Error::Cancelled);
            }
            let target = if entry.relative.as_os_str().is_empty() {
                base.to_path_buf()
            } else {
                base.join(&entry.relative)
            };
            if entry.node.kind == Kind::Dir {
                // A copied directory stands for its contents: the destination keeps its own look.
                let look = (group.place != Place::Contents
                    || !entry.relative.as_os_str().is_empty())
                .then_some(&entry.node);
                let was_there = open_in_root(self.how.root, &target).is_ok();
                self.ensure_dir(&target, look)?;
                // Below the top it is as the source has it (BuildKit's fsutil `copyDirectory`).
                if was_there
                    && !entry.relative.as_os_str().is_empty()
                    && let Some(node) = look
                {
                    self.made.push(self.made_as(&target, node));
                }
                continue;
            }
            if let Some(unpack) = self.how.unpack
                && entry.node.kind == Kind::File
                && !group.is_dir
                && unpack(root, entry, dest)?
            {
                continue;
            }
            self.entry(entry, root, &target, &group.written)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, root: &Root, target: &Path, written: &str) -> Result<()> {
        let (parent, name) = self.parent(target)?;
        let node = &entry.node;
        match &node.kind {
            Kind::File => return self.file(entry, root, (&parent, &name), target),
            Kind::Symlink(to) => {
                self.clear(&parent, &name, target)?;
                rustix::fs::symlinkat(Path::new(to), &parent, &name)
                    .map_err(Error::errno("make link", target))?;
            }
            Kind::Fifo => self.make_node(&parent, &name, (FileType::Fifo, 0), target)?,
            Kind::Device { char, rdev } => {
                let kind = if *char { FileType::CharacterDevice } else { FileType::BlockDevice };
                self.make_node(&parent, &name, (kind, *rdev), target)?;
            }
            Kind::Dir | Kind::Socket => {
                let problem = "it is a socket".into();
                return Err(Error::Copy {
                    command: self.how.command,
                    path: written.into(),
                    problem,
                });
            }
        }
        self.node_attributes(&parent, &name, node, target)
    }

    fn make_node(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        (kind, rdev): (FileType, u64),
        target: &Path,
    ) -> Result<()> {
        self.clear(parent, name, target)?;
        rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), rdev)
            .map_err(Error::errno("make node", target))
    }

    /// Owner, mode and time of what cannot be opened.
    fn node_attributes(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        node: &Node,
        target: &Path,
    ) -> Result<()> {
        let (uid, gid) = ids(self.owner(node));
        rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(Error::errno("change owner of", target))?;
        if !matches!(node.kind, Kind::Symlink(_)) {
            let mode = self.how.chmod.map_or(node.mode, |chmod| chmod.apply(node.mode, false));
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(Error::errno("change mode of", target))?;
        }
        let times = timestamps(node.mtime);
        rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(Error::errno("set times of", target))
    }

    fn file(
        &mut self,
        entry: &Entry,
        root: &Root,
        (parent, name): (&OwnedFd, &OsStr),
        target: &Path,
    ) -> Result<()> {
        let source = tree::open_file(root.fd.as_fd(), &entry.source)
            .map_err(Error::errno("open", &entry.source))?;
        let stat = rustix::fs::fstat(&source).map_err(Error::errno("stat", &entry.source))?;
        let inode = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && entry.node.same_as(&stat)
            && let Some(first) = self.linked.get(&inode)
            && self.link(first, (parent, name), target)?
        {
            return Ok(());
        }
        let file = self.create(parent, name, target)?;
        copy_data(&source, &file, target)?;
        let stat = rustix::fs::fstat(&source).map_err(Error::errno("stat", &entry.source))?;
        if !entry.node.same_as(&stat) {
            return Err(hashes::changed(&entry.source));
        }
        let mode = entry.node.mode;
        let mode = self.how.chmod.map_or(mode, |chmod| chmod.apply(mode, false));
        let look = (mode, self.owner(&entry.node), Some(entry.node.mtime));
        attributes(file.as_fd(), look, target)?;
        let attributes = tree::xattrs(source.as_fd())
            .map_err(Error::errno("read attributes of", &entry.source))?;
        for (key, value) in attributes {
            match rustix::fs::fsetxattr(&file, key.as_str(), &value, XattrFlags::empty()) {
                // The layer's file system has no room for them; docker goes on as well.
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(errno) => return Err(Error::errno("set attributes of", target)(errno)),
            }
        }
        if stat.st_nlink > 1 {
            self.linked.insert(inode, target.to_path_buf());
        }
        Ok(())
    }

    /// A new file in place of whatever non-directory has its name.
    fn create(&self, parent: &OwnedFd, name: &OsStr, target: &Path) -> Result<OwnedFd> {
        self.clear(parent, name, target)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(Error::errno("create", target))
    }

    /// Removes a file or link of that name.
    fn clear(&self, parent: &OwnedFd, name: &OsStr, target: &Path) -> Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => Err(Error::Copy {
                command: self.how.command,
                path: target.to_string_lossy().into_owned(),
                problem: "a directory is there, and a file cannot replace it".into(),
            }),
            Err(errno) => Err(Error::errno("replace", target)(errno)),
        }
    }

    fn owner(&self, node: &Node) -> Owner {
        self.how.owner.unwrap_or(Owner { uid: node.uid, gid: node.gid })
    }

    /// The open directory above `target`, and its last name.
    fn parent(&mut self, target: &Path) -> Result<(OwnedFd, std::ffi::OsString)> {
        let Some(name) = target.file_name() else {
            return Err(Error::Copy {
                command: self.how.command,
                path: "/".into(),
                problem: "a file cannot replace the root directory".into(),
            });
        };
        let dir = target.parent().unwrap_or(Path::new(""));
        let cached = self.last.as_ref().filter(|(path, _)| path == dir);
        let fd = match cached {
            Some((_, fd)) => fd.try_clone(),
            None => {
                let fd = self.ensure_dir(dir, None)?;
                let copy = fd.try_clone();
                self.last = Some((dir.to_path_buf(), fd));
                copy
            }
        };
        Ok((fd.map_err(Error::io("open directory", dir))?, name.to_os_string()))
    }

    /// Opens a directory, making it and those above it where they are missing. Links are followed
    /// within the root. A new directory gets `look`, or mode 0755.
    fn ensure_dir(&mut self, path: &Path, look: Option<&Node>) -> Result<OwnedFd> {
        match open_in_root(self.how.root, path) {
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => {
                return Err(Error::Copy {
                    command: self.how.command,
                    path: format!("/{}", path.display()),
                    problem: "a file is there, and a directory cannot replace it".into(),
                });
            }
            other => return other.map_err(Error::errno("open directory", path)),
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        let above = self.ensure_dir(parent, None)?;
        let name = path.file_name().unwrap_or(OsStr::new("."));
        match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            // A link that leads to nothing.
            Err(Errno::EXIST) => return Err(Error::BadPath(self.how.command, display(path))),
            Err(errno) => return Err(Error::errno("make directory", path)(errno)),
        }
        let made = match look {
            Some(node) => self.made_as(path, node),
            None => Made {
                path: path.to_path_buf(),
                mode: 0o755,
                owner: self.how.owner.unwrap_or_default(),
                mtime: None,
            },
        };
        self.made.push(made);
        open_in_root(self.how.root, path).map_err(Error::errno("open directory", path))
    }

    fn made_as(&self, path: &Path, node: &Node) -> Made {
        Made {
            path: path.to_path_buf(),
            mode: self.how.chmod.map_or(node.mode, |chmod| chmod.apply(node.mode, true)),
            owner: self.owner(node),
            mtime: Some(node.mtime),
        }
    }

    /// Gives a file that was written under one name another one. `false` where that cannot be.
    fn link(
        &self,
        first: &Path,
        (parent, name): (&OwnedFd, &OsStr),
        target: &Path,
    ) -> Result<bool> {
        let above = first.parent().unwrap_or(Path::new(""));
        let Some(first) = first.file_name() else { return Ok(false) };
        let above =
            open_in_root(self.how.root, above).map_err(Error::errno("open directory", above))?;
        self.clear(parent, name, target)?;
        match rustix::fs::linkat(&above, first, parent, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            // It was replaced since, or has as many names as the file system allows.
            Err(Errno::NOENT | Errno::MLINK | Errno::XDEV | Errno::PERM) => Ok(false),
            Err(errno) => Err(Error::errno("make link", target)(errno)),
        }
    }

    fn finish(self) -> Result<()> {
        for made in self.made.iter().rev() {
            let dir = open_in_root(self.how.root, &made.path)
                .map_err(Error::errno("open directory", &made.path))?;
            attributes(dir.as_fd(), (made.mode, made.owner, made.mtime), &made.path)?;
        }
        Ok(())
    }
}

fn ids(Owner { uid, gid }: Owner) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

/// Owner, mode and modification time.
type Look = (u32, Owner, Option<(i64, i64)>);

fn attributes(file: BorrowedFd<'_>, (mode, owner, mtime): Look, target: &Path) -> Result<()> {
    let (uid, gid) = ids(owner);
    rustix::fs::fchown(file, uid, gid).map_err(Error::errno("change owner of", target))?;
    // After the owner: changing that clears set-id bits.
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
        .map_err(Error::errno("change mode of", target))?;
    if let Some(mtime) = mtime {
        rustix::fs::futimens(file, &timestamps(mtime))
            .map_err(Error::errno("set times of", target))?;
    }
    Ok(())
}

fn display(path: &Path) -> String {
    String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()
}

pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

fn timestamps((tv_sec, tv_nsec): (i64, i64)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec };
    Timestamps { last_access: time, last_modification: time }
}

/// Within the kernel where that works, else through memory.
fn copy_data(source: &OwnedFd, dest: &OwnedFd, target: &Path) -> Result<()> {
    loop {
        match rustix::fs::copy_file_range(source, None, dest, None, 1 << 30) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // Nothing was copied so far, or the rest goes on from the present offsets.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                break;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::errno("write", target)(errno)),
        }
    }
    let duplicate = |fd: &OwnedFd| fd.try_clone().map(std::fs::File::from);
    let mut from = duplicate(source).map_err(Error::io("open", target))?;
    let mut to = duplicate(dest).map_err(Error::io("open", target))?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let read = from.read(&mut buffer).map_err(Error::io("read for", target))?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).map_err(Error::io("write", target))?;
    }
}
