//! One object of a tree, held by an `O_PATH` descriptor: inspected without being opened, and
//! opened only through that descriptor, so that what was inspected is what is used.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags},
    io::Errno,
};

use crate::{
    entry::{Entry, Kind, Time, portable_xattr},
    error::Error,
};

/// The longest value that the kernel stores (XATTR_SIZE_MAX), and the longest list of names.
const XATTR_MAX_BYTES: usize = 64 << 10;
/// openat2 answers EAGAIN when something was renamed while ".." was resolved.
const RESOLVE_TRIES: usize = 128;

const SAFE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens `path` with every component, the last one's link included unless `O_NOFOLLOW` is set,
/// resolved below `root`.
pub(crate) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), SAFE) {
            Err(Errno::AGAIN) if tries < RESOLVE_TRIES => tries += 1,
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The path under which procfs shows a descriptor of ours.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

pub(crate) struct Node {
    fd: OwnedFd,
    stat: Statx,
}

impl Node {
    /// The object `name` of a directory, itself and not what it may link to; `None` if there is
    /// none. `path` is for the error.
    pub(crate) fn open(
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> Result<Option<Self>, Error> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(fd) => Self::from_fd(fd, path).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::file("open", path, e)),
        }
    }

    /// The object at `path`, its parents resolved below `root`.
    pub(crate) fn resolve(root: BorrowedFd<'_>, path: &Path) -> Result<Self, Error> {
        let fd = open_in_root(root, path, OFlags::PATH | OFlags::NOFOLLOW)
            .map_err(|e| Error::file("open", path, e))?;
        Self::from_fd(fd, path)
    }

    /// The object that an `O_PATH` descriptor is of.
    pub(crate) fn from_fd(fd: OwnedFd, path: &Path) -> Result<Self, Error> {
        let stat = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
            .map_err(|e| Error::file("stat", path, e))?;
        Ok(Self { fd, stat })
    }

    pub(crate) fn stat(&self) -> &Statx {
        &self.stat
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.stx_mode.into())
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Identifies the object among all that exist at this moment.
    pub(crate) fn identity(&self) -> (u32, u32, u64) {
        (self.stat.stx_dev_major, self.stat.stx_dev_minor, self.stat.stx_ino)
    }

    pub(crate) fn device(&self) -> (u32, u32) {
        (self.stat.stx_dev_major, self.stat.stx_dev_minor)
    }

    /// overlayfs' mark for a name that the layer deletes.
    pub(crate) fn is_whiteout_device(&self) -> bool {
        self.file_type() == FileType::CharacterDevice
            && (self.stat.stx_rdev_major, self.stat.stx_rdev_minor) == (0, 0)
    }

    /// The directory, opened for reading.
    pub(crate) fn open_dir(&self, path: &Path) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, ".", flags, Mode::empty())
            .map_err(|e| Error::file("open directory", path, e))
    }

    /// The regular file, opened for reading. Must not be called for anything else.
    pub(crate) fn open_file(&self, path: &Path) -> Result<File, Error> {
        debug_assert_eq!(self.file_type(), FileType::RegularFile);
        let proc = proc_path(self.fd());
        let open = |flags: OFlags| {
            rustix::fs::open(proc.as_str(), flags | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        };
        // Reading a tree must not change it; only an owner or root may ask for that.
        let fd = match open(OFlags::NOATIME) {
            Err(Errno::PERM) => open(OFlags::empty()),
            other => other,
        };
        fd.map(File::from).map_err(|e| Error::file("open", path, e))
    }

    pub(crate) fn read_link(&self, path: &Path) -> Result<PathBuf, Error> {
        rustix::fs::readlinkat(&self.fd, "", Vec::new())
            .map(|target| PathBuf::from(OsString::from_vec(target.into_bytes())))
            .map_err(|e| Error::file("read link", path, e))
    }

    /// The names of all extended attributes; none where the file system has no such thing.
    pub(crate) fn xattr_names(&self, path: &Path) -> Result<Vec<OsString>, Error> {
        let proc = proc_path(self.fd());
        let mut buffer = Vec::with_capacity(256);
        let result = match rustix::fs::listxattr(&proc, rustix::buffer::spare_capacity(&mut buffer))
        {
            Err(Errno::RANGE) => {
                buffer = Vec::with_capacity(XATTR_MAX_BYTES);
                rustix::fs::listxattr(&proc, rustix::buffer::spare_capacity(&mut buffer))
            }
            other => other,
        };
        match result {
            Ok(_) => {}
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(e) => return Err(Error::file("list attributes of", path, e)),
        }
        let names = buffer.split(|b| *b == 0).filter(|n| !n.is_empty());
        Ok(names.map(|n| OsStr::from_bytes(n).to_owned()).collect())
    }

    /// The value of an attribute; `None` if it is not there.
    pub(crate) fn xattr(&self, name: &OsStr, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        let proc = proc_path(self.fd());
        let mut value = Vec::with_capacity(256);
        let result =
            match rustix::fs::getxattr(&proc, name, rustix::buffer::spare_capacity(&mut value)) {
                Err(Errno::RANGE) => {
                    value = Vec::with_capacity(XATTR_MAX_BYTES);
                    rustix::fs::getxattr(&proc, name, rustix::buffer::spare_capacity(&mut value))
                }
                other => other,
            };
        match result {
            Ok(_) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
            Err(e) => Err(Error::file("read attribute of", path, e)),
        }
    }

    /// The attributes that belong into an archive.
    pub(crate) fn portable_xattrs(
        &self,
        path: &Path,
    ) -> Result<BTreeMap<OsString, Vec<u8>>, Error> {
        let mut found = BTreeMap::new();
        for name in self.xattr_names(path)? {
            if portable_xattr(&name)
                && let Some(value) = self.xattr(&name, path)?
            {
                found.insert(name, value);
            }
        }
        Ok(found)
    }

    /// The archive entry for this object; `None` for a socket, which no archive can hold.
    pub(crate) fn entry(
        &self,
        name: &Path,
        path: &Path,
        xattrs: bool,
    ) -> Result<Option<Entry>, Error> {
        let stat = &self.stat;
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let kind = match self.file_type() {
            FileType::RegularFile => Kind::File { sparse: None },
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink { target: self.read_link(path)? },
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharDevice { major, minor },
            FileType::BlockDevice => Kind::BlockDevice { major, minor },
            _ => return Ok(None),
        };
        let mut entry = Entry::new(name, kind);
        entry.mode = u32::from(stat.stx_mode) & 0o7777;
        entry.uid = stat.stx_uid;
        entry.gid = stat.stx_gid;
        entry.mtime = Time { secs: stat.stx_mtime.tv_sec, nanos: stat.stx_mtime.tv_nsec };
        if self.file_type() == FileType::RegularFile {
            entry.size = stat.stx_size;
        }
        if xattrs {
            entry.xattrs = self.portable_xattrs(path)?;
        }
        Ok(Some(entry))
    }
}

/// The names in a directory, sorted by their bytes.
pub(crate) fn sorted_names(dir: BorrowedFd<'_>, path: &Path) -> Result<Vec<OsString>, Error> {
    let error = |e: Errno| Error::file("read directory", path, e);
    let mut names = Vec::new();
    // A descriptor of its own: `dir` may be O_PATH, and its position is not ours.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, ".", flags, Mode::empty()).map_err(error)?;
    for item in Dir::new(fd).map_err(error)? {
        let item = item.map_err(error)?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// True if both files have the same bytes.
pub(crate) fn same_contents(a: &Node, b: &Node, path: &Path) -> Result<bool, Error> {
    use io::{BufRead, BufReader};
    let mut a = BufReader::with_capacity(XATTR_MAX_BYTES, a.open_file(path)?);
    let mut b = BufReader::with_capacity(XATTR_MAX_BYTES, b.open_file(path)?);
    loop {
        let read_error = |e| Error::file("read", path, e);
        let left = a.fill_buf().map_err(read_error)?;
        let right = b.fill_buf().map_err(read_error)?;
        let n = left.len().min(right.len());
        if n == 0 {
            return Ok(left.len() == right.len());
        }
        if left[..n] != right[..n] {
            return Ok(false);
        }
        a.consume(n);
        b.consume(n);
    }
}
