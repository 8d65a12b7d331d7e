//! Looking into a directory tree that is not trusted: a context, a stage's files, a root filesystem.
//!
//! A path is resolved link by link within the tree; what it came to is then opened with
//! `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`, so that a tree that changes meanwhile leads to an
//! error, never out of the tree. Only directories and regular files are ever opened.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

/// Links followed in one path: the kernel's own limit.
const LINKS: usize = 40;
/// Depth of a walk.
pub(crate) const DEPTH: usize = 200;
/// Attributes of one file.
const XATTR_BYTES: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink(OsString),
    Fifo,
    Device { char: bool, rdev: u64 },
    Socket,
}

/// What a name is, without having opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// Permission bits, 07777.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) ctime: (i64, i64),
}

impl Node {
    fn new(stat: &Stat, link: impl FnOnce() -> Result<OsString, Errno>) -> Result<Self, Errno> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink(link()?),
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::Device { char: true, rdev: stat.st_rdev },
            FileType::BlockDevice => Kind::Device { char: false, rdev: stat.st_rdev },
            _ => Kind::Socket,
        };
        Ok(Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            dev: stat.st_dev,
            ino: stat.st_ino,
            mtime: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            ctime: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
        })
    }

    /// Is it the same file with the same contents, as far as the kernel tells?
    pub(crate) fn same_as(&self, stat: &Stat) -> bool {
        let times = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
        self.dev == stat.st_dev
            && self.ino == stat.st_ino
            && i64::try_from(self.size) == Ok(stat.st_size)
            && self.mtime == times
    }
}

/// `""` stands for the tree's root in the `*at` calls below.
fn at(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// The normal components of a path, `..` resolved as if the root were all there is.
pub(crate) fn inside(path: &str) -> PathBuf {
    let cleaned = dockerfile::glob::clean(&format!("/{path}"));
    PathBuf::from(cleaned.trim_start_matches('/'))
}

fn strict() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// Opens a directory by its resolved path.
pub(crate) fn open_dir(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(root, at(path), flags, Mode::empty(), strict())
}

/// Opens a regular file by its resolved path; anything else is refused before it could block.
pub(crate) fn open_file(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let handle = rustix::fs::openat2(
        root,
        at(path),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        strict(),
    )?;
    let stat = rustix::fs::fstat(&handle)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    // Through /proc, the very file that was looked at is opened.
    let path = sys::private_mount::proc_path(&handle);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// What a name in a directory is; links are not followed.
pub(crate) fn node_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Node, Errno> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Node::new(&stat, || read_link(dir, Path::new(name)))
}

fn read_link(dir: BorrowedFd<'_>, path: &Path) -> Result<OsString, Errno> {
    let target = rustix::fs::readlinkat(dir, path, Vec::new())?;
    Ok(OsStr::from_bytes(target.as_bytes()).to_os_string())
}

/// What a resolved path is.
pub(crate) fn node(root: BorrowedFd<'_>, path: &Path) -> Result<Node, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // With O_PATH and O_NOFOLLOW a link at the end is opened itself, not refused.
    let handle = rustix::fs::openat2(root, at(path), flags, Mode::empty(), strict())?;
    let stat = rustix::fs::fstat(&handle)?;
    Node::new(&stat, || read_link(handle.as_fd(), Path::new("")))
}

/// Resolves all links of `path` within the tree, the last one only with `follow_last`. Answers the
/// path without links and what is there.
///
/// # Errors
/// `ENOENT`, `ENOTDIR`, or `ELOOP` for too many links.
pub(crate) fn resolve(
    root: BorrowedFd<'_>,
    path: &Path,
    follow_last: bool,
) -> Result<(PathBuf, Node), Errno> {
    let mut pending: Vec<OsString> = parts(path).rev().collect();
    let mut done = PathBuf::new();
    let mut last = node(root, &done)?;
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if part == ".." {
            done.pop();
            last = node(root, &done)?;
            continue;
        }
        let next = done.join(&part);
        let found = node(root, &next)?;
        match &found.kind {
            Kind::Symlink(target) if follow_last || !pending.is_empty() => {
                links += 1;
                if links > LINKS {
                    return Err(Errno::LOOP);
                }
                let target = Path::new(target);
                if target.has_root() {
                    done = PathBuf::new();
                }
                pending.extend(parts(target).rev());
                last = node(root, &done)?;
            }
            Kind::Dir => {
                done = next;
                last = found;
            }
            _ if pending.is_empty() => return Ok((next, found)),
            _ => return Err(Errno::NOTDIR),
        }
    }
    Ok((done, last))
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let parts: Vec<OsString> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect();
    parts.into_iter()
}

/// The names in an open directory, sorted by bytes.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_os_string());
        }
    }
    names.sort();
    Ok(names)
}

/// File capabilities and `user.*` attributes of an open file: what an image may carry.
pub(crate) fn xattrs(file: BorrowedFd<'_>) -> Result<Vec<(String, Vec<u8>)>, Errno> {
    let mut list = vec![0_u8; 4096];
    let len = match rustix::fs::flistxattr(file, &mut list[..]) {
        Ok(len) => len,
        Err(Errno::RANGE) => {
            list.resize(XATTR_BYTES, 0);
            rustix::fs::flistxattr(file, &mut list[..])?
        }
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in list[..len].split(|byte| *byte == 0) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name == "security.capability" || name.starts_with("user.") {
            let mut value = vec![0_u8; XATTR_BYTES];
            let len = rustix::fs::fgetxattr(file, name, &mut value[..])?;
            value.truncate(len);
            found.push((name.to_string(), value));
        }
    }
    found.sort();
    Ok(found)
}
