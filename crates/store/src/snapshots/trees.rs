//! Trees of files, copied and compared. Both go below descriptors and follow no links; neither goes into
//! other file systems that are mounted in a tree.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        self as f, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec,
        Timestamps, Uid, XattrFlags,
    },
    io::Errno,
};

use crate::error::{Error, Result};

/// Directories within directories at most: each takes two descriptors while it is worked on.
const DEPTH: usize = 2048;
/// Bytes of a file's list of attributes, and of one of them (kernel: `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES: usize = 65_536;
/// Bytes read at once of two files that are compared.
const COMPARE_BYTES: usize = 64 << 10;

type Xattrs = Vec<(CString, Vec<u8>)>;

/// One directory of each tree, and what is still to be looked at in it.
struct Level {
    from: OwnedFd,
    to: OwnedFd,
    /// Sorted, the last first.
    names: Vec<CString>,
    /// Bytes of the path with which this directory begins.
    path_bytes: usize,
}

fn failed(op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    let path = String::from_utf8_lossy(path).into_owned();
    move |errno| Error::Stream { op, object: format!("/{path}"), source: errno.into() }
}

fn too_deep(path: &[u8]) -> Error {
    Error::precondition(format!(
        "/{}: directories lie in each other more than {DEPTH} deep",
        String::from_utf8_lossy(path)
    ))
}

/// Names in a directory, the last first.
fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in f::Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

fn open(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    f::openat2(directory, name, flags, Mode::empty(), resolve)
}

fn open_directory(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    open(directory, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

fn look(directory: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    f::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// A path for the calls on attributes, which know no descriptor of a directory.
fn path_of(directory: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/thread-self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    path
}

fn xattrs(directory: BorrowedFd<'_>, name: &CStr) -> Result<Xattrs, Errno> {
    let path = path_of(directory, name);
    let mut list = vec![0_u8; XATTR_BYTES];
    let len = match f::llistxattr(&path, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut found = Vec::new();
    let mut value = vec![0_u8; XATTR_BYTES];
    for key in list[..len].split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
        let key = CString::new(key).map_err(|_| Errno::INVAL)?;
        let len = match f::lgetxattr(&path, &key, &mut value[..]) {
            // It belongs to a module that keeps it to itself.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            other => other?,
        };
        found.push((key, value[..len].to_vec()));
    }
    found.sort();
    Ok(found)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Copies what is in the directory `from`, and its owner, mode, attributes and times, into the empty
/// directory `to`: every kind of file, hard links as such, holes as holes, data shared where the file
/// system can (FICLONE).
///
/// # Errors
/// Those of the file system, by the path below the roots; beyond 2048 directories in each other.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let mut copied = HashMap::new();
    let mut path = Vec::new();
    let clone = |fd: &OwnedFd| fd.try_clone().map_err(|_| Errno::MFILE);
    let start = || -> Result<Level, Errno> {
        Ok(Level { from: clone(from)?, to: clone(to)?, names: names(from.as_fd())?, path_bytes: 0 })
    };
    let mut levels = vec![start().map_err(failed("read directory", b""))?];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.path_bytes);
        let Some(name) = level.names.pop() else {
            let level = levels.pop();
            if let Some(level) = level {
                finish(&level).map_err(failed("copy directory", &path))?;
            }
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let (below, above) = (level.from.as_fd(), level.to.as_fd());
        let stat = look(below, &name).map_err(failed("stat", &path))?;
        if kind(&stat) != FileType::Directory {
            one(below, above, &name, (&stat, to.as_fd(), &path), &mut copied)
                .map_err(failed("copy", &path))?;
            continue;
        }
        let enter = || -> Result<Level, Errno> {
            f::mkdirat(above, &name, Mode::RWXU)?;
            let from = open_directory(below, &name)?;
            let names = names(from.as_fd())?;
            Ok(Level { from, to: open_directory(above, &name)?, names, path_bytes: path.len() })
        };
        let next = enter().map_err(failed("copy directory", &path))?;
        if levels.len() >= DEPTH {
            return Err(too_deep(&path));
        }
        levels.push(next);
    }
    Ok(())
}

/// A directory gets what is its own when everything is in it.
fn finish(level: &Level) -> Result<(), Errno> {
    let stat = f::fstat(&level.from)?;
    f::fchown(&level.to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    f::fchmod(&level.to, Mode::from_raw_mode(stat.st_mode))?;
    for (key, value) in xattrs(level.from.as_fd(), c".")? {
        let path = path_of(level.to.as_fd(), c".");
        f::lsetxattr(&path, &key, &value, XattrFlags::empty())?;
    }
    f::futimens(&level.to, &times(&stat))
}

fn times(stat: &Stat) -> Timestamps {
    let spec = |seconds, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    };
    Timestamps {
        last_access: spec(stat.st_atime, stat.st_atime_nsec),
        last_modification: spec(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Copies what is no directory. `place`: how it looks, the root of the copy, and its path there.
fn one(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    (stat, root, path): (&Stat, BorrowedFd<'_>, &[u8]),
    copied: &mut HashMap<(u64, u64), Vec<u8>>,
) -> Result<(), Errno> {
    if stat.st_nlink > 1 {
        let id = (stat.st_dev, stat.st_ino);
        if let Some(first) = copied.get(&id) {
            return f::linkat(root, first, to, name, AtFlags::empty());
        }
        copied.insert(id, path.to_vec());
    }
    let kind = kind(stat);
    match kind {
        FileType::RegularFile => {
            let source = open(from, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let target = f::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
            data(source, target)?;
        }
        FileType::Symlink => f::symlinkat(f::readlinkat(from, name, Vec::new())?, to, name)?,
        _ => f::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
    }
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    f::chownat(to, name, Some(uid), Some(gid), nofollow)?;
    if kind != FileType::Symlink {
        // The name is ours alone: nobody put a link there.
        f::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    // After the owner, whose change takes capabilities away.
    for (key, value) in xattrs(from, name)? {
        f::lsetxattr(path_of(to, name), &key, &value, XattrFlags::empty())?;
    }
    f::utimensat(to, name, &times(stat), nofollow)
}

fn data(source: OwnedFd, target: OwnedFd) -> Result<(), Errno> {
    if f::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let end = u64::try_from(f::fstat(&source)?.st_size).unwrap_or(0);
    f::ftruncate(&target, end)?;
    let (source, mut target) = (File::from(source), File::from(target));
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut at = 0;
    while at < end {
        let from = match f::seek(&source, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let to = f::seek(&source, SeekFrom::Hole(from))?.min(end);
        f::seek(&source, SeekFrom::Start(from))?;
        f::seek(&target, SeekFrom::Start(from))?;
        // copy_file_range(2) where the file system has it.
        io::copy(&mut (&source).take(to.saturating_sub(from)), &mut target).map_err(errno)?;
        at = to.max(from + 1);
    }
    Ok(())
}

/// The first difference of two trees, as `PATH: WHAT`; `None`: there is none. Times of access and change,
/// inode numbers and blocks do not count, nor do times after `fresh` (seconds since 1970) in `wanted`,
/// which are those of its making. Of the roots only what is in them counts, and owner and mode.
///
/// # Errors
/// As [`copy`].
pub(super) fn difference(wanted: &OwnedFd, found: &OwnedFd, fresh: i64) -> Result<Option<String>> {
    let mut path = Vec::new();
    let clone = |fd: &OwnedFd| fd.try_clone().map_err(|_| Errno::MFILE);
    let start = || -> Result<(Stat, Stat, Level), Errno> {
        let names = names(wanted.as_fd())?;
        let level = Level { from: clone(wanted)?, to: clone(found)?, names, path_bytes: 0 };
        Ok((f::fstat(wanted)?, f::fstat(found)?, level))
    };
    let (one, other, level) = start().map_err(failed("read directory", b""))?;
    if (one.st_mode, one.st_uid, one.st_gid) != (other.st_mode, other.st_uid, other.st_gid) {
        return Ok(Some("/: owner or mode".into()));
    }
    if let Some(name) = extra(&level).map_err(failed("read directory", b""))? {
        return Ok(Some(format!("/{name}: it does not belong there")));
    }
    let mut levels = vec![level];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.path_bytes);
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let show = |what: &str| Ok(Some(format!("/{}: {what}", String::from_utf8_lossy(&path))));
        let (from, to) = (level.from.as_fd(), level.to.as_fd());
        let stat = look(from, &name).map_err(failed("stat", &path))?;
        let other = match look(to, &name) {
            Err(Errno::NOENT) => return show("it is missing"),
            Err(_) => return show("it cannot be read"),
            Ok(other) => other,
        };
        if let Some(what) = metadata(&stat, &other, fresh) {
            return show(what);
        }
        let want = xattrs(from, &name).map_err(failed("read attributes of", &path))?;
        if !same_xattrs(want, xattrs(to, &name).unwrap_or_default()) {
            return show("extended attributes");
        }
        match kind(&stat) {
            FileType::Directory => {
                let next = enter(from, to, &name, path.len());
                let next = next.map_err(failed("read directory", &path))?;
                if let Some(name) = extra(&next).map_err(failed("read directory", &path))? {
                    path.push(b'/');
                    path.extend_from_slice(name.as_bytes());
                    let text = String::from_utf8_lossy(&path).into_owned();
                    return Ok(Some(format!("/{text}: it does not belong there")));
                }
                if levels.len() >= DEPTH {
                    return Err(too_deep(&path));
                }
                levels.push(next);
            }
            other => {
                let what = contents(other, from, to, &name).map_err(failed("read", &path))?;
                if let Some(what) = what {
                    return show(what);
                }
            }
        }
    }
    Ok(None)
}

fn enter(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    path_bytes: usize,
) -> Result<Level, Errno> {
    let from = open_directory(from, name)?;
    let names = names(from.as_fd())?;
    Ok(Level { from, to: open_directory(to, name)?, names, path_bytes })
}

/// How the contents of two files of a kind differ.
fn contents(
    kind: FileType,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
) -> Result<Option<&'static str>, Errno> {
    match kind {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            let want = open(from, name, flags)?;
            let Ok(have) = open(to, name, flags) else { return Ok(Some("it cannot be read")) };
            Ok((!same_data(want.into(), have.into())).then_some("its contents"))
        }
        FileType::Symlink => {
            let want = f::readlinkat(from, name, Vec::new())?;
            let have = f::readlinkat(to, name, Vec::new()).unwrap_or_default();
            Ok((want != have).then_some("where the link leads"))
        }
        _ => Ok(None),
    }
}

/// A name that only the second directory has.
fn extra(level: &Level) -> Result<Option<String>, Errno> {
    let known = |name: &CString| level.names.binary_search_by(|have| name.cmp(have)).is_ok();
    for name in names(level.to.as_fd())? {
        // A socket is what no layer holds.
        if !known(&name) && kind(&look(level.to.as_fd(), &name)?) != FileType::Socket {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

fn metadata(want: &Stat, have: &Stat, fresh: i64) -> Option<&'static str> {
    if kind(want) != kind(have) {
        return Some("another kind of file");
    }
    if want.st_mode != have.st_mode {
        return Some("mode");
    }
    if (want.st_uid, want.st_gid) != (have.st_uid, have.st_gid) {
        return Some("owner");
    }
    let is_directory = kind(want) == FileType::Directory;
    if !is_directory && want.st_size != have.st_size {
        return Some("size");
    }
    if !is_directory && want.st_nlink != have.st_nlink {
        return Some("number of links");
    }
    if want.st_rdev != have.st_rdev {
        return Some("device number");
    }
    // A layer that was written here lost its fractions of seconds on its way into a tar.
    let same_time = want.st_mtime == have.st_mtime
        && (want.st_mtime_nsec == have.st_mtime_nsec || want.st_mtime_nsec == 0);
    (want.st_mtime < fresh && !same_time).then_some("time")
}

/// Are the attributes the same that a layer can hold? Of overlay's own only the mark counts by which a
/// directory hides what lies below; a layer that was written through an overlay has more of them.
fn same_xattrs(mut want: Xattrs, mut have: Xattrs) -> bool {
    let opaque = |key: &CStr| key.to_bytes().ends_with(b".overlay.opaque");
    let hides = |list: &Xattrs| list.iter().any(|(key, _)| opaque(key));
    let hidden = !hides(&want) || hides(&have);
    let portable = |key: &CStr| {
        let key = key.to_bytes();
        key == b"security.capability"
            || (key.starts_with(b"user.") && !key.starts_with(b"user.overlay."))
    };
    want.retain(|(key, _)| portable(key));
    have.retain(|(key, _)| portable(key));
    hidden && want == have
}

fn same_data(mut want: File, mut have: File) -> bool {
    let (mut one, mut other) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    loop {
        let Ok(n) = want.read(&mut one) else { return false };
        if n == 0 {
            return matches!(have.read(&mut other), Ok(0));
        }
        if have.read_exact(&mut other[..n]).is_err() || one[..n] != other[..n] {
            return false;
        }
    }
}
