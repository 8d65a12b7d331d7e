use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::error::{Error, Result};

/// Levels of directories at most: the kernel's paths end far below.
const DEPTH: usize = 2048;
/// Bytes of a list of extended attributes, and of one value (the kernel's limit is 64 KiB).
const XATTR_BYTES: usize = 64 << 10;

/// Overlay's own attributes: they are made anew where the merged tree needs them.
fn is_overlay_mark(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Merges overlay layers into one: what an overlay mount of `layers` (topmost first) on `base` shows
/// differently from `base`, as a directory in overlay's form. Files are hard-linked, not copied, so
/// that `out` must lie on the layers' file system; hard links among them stay hard links.
///
/// With `base` empty the result has neither whiteouts nor opaque directories.
pub(super) fn merge(
    layers: &[BorrowedFd<'_>],
    base: &[BorrowedFd<'_>],
    out: BorrowedFd<'_>,
    userxattr: bool,
) -> Result<()> {
    let opaque = if userxattr { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
    let merger = Merger { opaque };
    merger.directory(layers, base, out, 0)?;
    if let Some(top) = layers.first() {
        copy_metadata(*top, out)?;
    }
    Ok(())
}

struct Merger {
    opaque: &'static str,
}

/// One name in one layer.
struct Found<'a> {
    layer: BorrowedFd<'a>,
    stat: Stat,
}

impl Found<'_> {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    fn is_whiteout(&self) -> bool {
        self.kind() == FileType::CharacterDevice && self.stat.st_rdev == 0
    }
}

impl Merger {
    fn directory(
        &self,
        layers: &[BorrowedFd<'_>],
        base: &[BorrowedFd<'_>],
        out: BorrowedFd<'_>,
        depth: usize,
    ) -> Result<()> {
        if depth > DEPTH {
            return Err(Error::invalid(format!("merge: more than {DEPTH} levels of directories")));
        }
        let mut names: BTreeMap<OsString, Vec<Found<'_>>> = BTreeMap::new();
        for layer in layers {
            for name in list(*layer)? {
                let stat = stat(*layer, &name)?;
                names.entry(name).or_default().push(Found { layer: *layer, stat });
            }
        }
        for (name, found) in names {
            self.name(&name, &found, base, out, depth)?;
        }
        Ok(())
    }

    fn name(
        &self,
        name: &OsStr,
        found: &[Found<'_>],
        base: &[BorrowedFd<'_>],
        out: BorrowedFd<'_>,
        depth: usize,
    ) -> Result<()> {
        // Every name of the map was found somewhere.
        let Some(top) = found.first() else { return Ok(()) };
        if top.is_whiteout() {
            return if in_base(base, name)? { whiteout(out, name) } else { Ok(()) };
        }
        if top.kind() != FileType::Directory {
            return rustix::fs::linkat(top.layer, name, out, name, AtFlags::empty())
                .map_err(failed("link", name));
        }
        let mut parts: Vec<OwnedFd> = Vec::new();
        let mut hides_base = false;
        for one in found {
            if one.kind() != FileType::Directory {
                hides_base = true;
                break;
            }
            let part = open(one.layer, name)?;
            let is_opaque = self.is_opaque(part.as_fd())?;
            parts.push(part);
            if is_opaque {
                hides_base = true;
                break;
            }
        }
        rustix::fs::mkdirat(out, name, Mode::from_raw_mode(0o700))
            .map_err(failed("create", name))?;
        let made = open(out, name)?;
        let below = if hides_base { Vec::new() } else { base_directories(base, name)? };
        if hides_base && in_base(base, name)? {
            rustix::fs::fsetxattr(&made, self.opaque, b"y", XattrFlags::empty())
                .map_err(failed("mark as opaque", name))?;
        }
        let borrowed: Vec<_> = parts.iter().map(|part| part.as_fd()).collect();
        let below: Vec<_> = below.iter().map(|part| part.as_fd()).collect();
        self.directory(&borrowed, &below, made.as_fd(), depth + 1)?;
        // Last, since filling a directory changes its times.
        copy_metadata(borrowed[0], made.as_fd())
    }

    fn is_opaque(&self, directory: BorrowedFd<'_>) -> Result<bool> {
        let mut value = [0; 4];
        match rustix::fs::fgetxattr(directory, self.opaque, &mut value) {
            Ok(1) => Ok(value[0] == b'y'),
            Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
            Err(errno) => Err(failed("read the attributes of", OsStr::new("a directory"))(errno)),
        }
    }
}

/// Does an overlay of the base show this name?
fn in_base(base: &[BorrowedFd<'_>], name: &OsStr) -> Result<bool> {
    for layer in base {
        match rustix::fs::statat(*layer, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => return Ok(!Found { layer: *layer, stat }.is_whiteout()),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(failed("stat", name)(errno)),
        }
    }
    Ok(false)
}

/// The directories of this name that an overlay of the base would merge.
fn base_directories(base: &[BorrowedFd<'_>], name: &OsStr) -> Result<Vec<OwnedFd>> {
    let mut directories = Vec::new();
    for layer in base {
        match rustix::fs::statat(*layer, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                directories.push(open(*layer, name)?);
            }
            Ok(_) => break,
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(failed("stat", name)(errno)),
        }
    }
    Ok(directories)
}

fn whiteout(out: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    rustix::fs::mknodat(out, name, FileType::CharacterDevice, Mode::empty(), 0)
        .map_err(failed("make a whiteout for", name))?;
    // The same image squashes to the same layer, whenever that is.
    let epoch = Timespec { tv_sec: 0, tv_nsec: 0 };
    let times = Timestamps { last_access: epoch, last_modification: epoch };
    rustix::fs::utimensat(out, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set the times of", name))
}

fn open(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed("open", name))
}

fn stat(layer: BorrowedFd<'_>, name: &OsStr) -> Result<Stat> {
    rustix::fs::statat(layer, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat", name))
}

fn list(directory: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    let failed = || failed("list", OsStr::new("a directory"));
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_os_string());
        }
    }
    Ok(names)
}

fn copy_metadata(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let failed = |op| failed(op, OsStr::new("a directory"));
    let stat = rustix::fs::fstat(from).map_err(failed("stat"))?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid)).map_err(failed("chown"))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(failed("chmod"))?;
    let mut names = vec![0; XATTR_BYTES];
    let len = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(failed("list the attributes of")(errno)),
    };
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if is_overlay_mark(name) {
            continue;
        }
        let mut value = vec![0; XATTR_BYTES];
        let len = rustix::fs::fgetxattr(from, name, &mut value[..])
            .map_err(failed("read attribute of"))?;
        rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::empty())
            .map_err(failed("set attribute of"))?;
    }
    let time = |seconds: i64, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::futimens(to, &times).map_err(failed("set the times of"))
}

fn failed(op: &'static str, name: &OsStr) -> impl FnOnce(Errno) -> Error + use<> {
    let path = std::path::PathBuf::from(name);
    move |errno| Error::sys(op, path)(errno)
}
