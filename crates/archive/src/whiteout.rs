//! The two languages for "deleted": names in a layer tar (image-spec, "Whiteouts") and marks in
//! an overlay directory (kernel, Documentation/filesystems/overlayfs.rst).

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::OnceLock,
};

use rustix::fs::FileType;

use crate::{
    error::{Error, Problem},
    node::Node,
};

pub(crate) const PREFIX: &[u8] = b".wh.";
pub(crate) const OPAQUE: &str = ".wh..wh..opq";
/// Files by which AUFS kept its own books; they mean nothing in a layer.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// What the name of a layer's entry means for the layers below.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// An ordinary entry.
    Plain,
    /// The name is deleted from the layers below.
    Remove(&'a OsStr),
    /// Everything in the directory that came from the layers below is deleted.
    Opaque,
    /// To be left out.
    Ignore,
}

/// What the last component of a name says.
///
/// # Errors
/// For a name that deletes nothing that can be named: ".wh." alone, or with "." or "..".
pub fn meaning(name: &OsStr) -> Result<Meaning<'_>, Problem> {
    let bytes = name.as_bytes();
    if bytes == OPAQUE.as_bytes() {
        return Ok(Meaning::Opaque);
    }
    if bytes.starts_with(AUFS_PREFIX) {
        return Ok(Meaning::Ignore);
    }
    match bytes.strip_prefix(PREFIX) {
        None => Ok(Meaning::Plain),
        Some(b"" | b"." | b"..") => Err(Problem::WhiteoutName),
        Some(rest) => Ok(Meaning::Remove(OsStr::from_bytes(rest))),
    }
}

/// The name that deletes `name`.
pub(crate) fn name_for(name: &OsStr) -> OsString {
    let mut whiteout = OsStr::from_bytes(PREFIX).to_owned();
    whiteout.push(name);
    whiteout
}

/// The marks of overlayfs on an object.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    pub(crate) whiteout: bool,
    pub(crate) opaque: bool,
}

/// Of the attributes that overlay heeds where this process mounts it: containers can set `user.*`
/// themselves, and only mounts in a user namespace (`userxattr`) take those.
fn prefix() -> &'static [u8] {
    if in_user_namespace() { b"user.overlay." } else { b"trusted.overlay." }
}

/// Whether this process's user namespace is not the host's first: overlays are mounted with
/// `userxattr` there. Asked once.
pub fn in_user_namespace() -> bool {
    static IN_USER_NAMESPACE: OnceLock<bool> = OnceLock::new();
    *IN_USER_NAMESPACE.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let words: Vec<&str> = map.split_whitespace().collect();
        !words.is_empty() && words != ["0", "0", "4294967295"]
    })
}

/// Reads the marks of an object in an upper or lower directory.
///
/// # Errors
/// For directories that cannot be understood by themselves: renamed ones (`redirect`) and files
/// whose data is elsewhere (`metacopy`).
pub(crate) fn marks(node: &Node, path: &Path) -> Result<Marks, Error> {
    if node.is_whiteout_device() {
        return Ok(Marks { whiteout: true, opaque: false });
    }
    let mut marks = Marks::default();
    if !matches!(node.file_type(), FileType::Directory | FileType::RegularFile) {
        return Ok(marks);
    }
    for name in node.xattr_names(path)? {
        let Some(mark) = name.as_bytes().strip_prefix(prefix()) else { continue };
        match mark {
            b"opaque" if node.is_dir() => {
                marks.opaque |= node.xattr(&name, path)?.as_deref() == Some(b"y");
            }
            // The form without device nodes, Linux 6.7.
            b"whiteout" if !node.is_dir() && node.stat().stx_size == 0 => marks.whiteout = true,
            b"redirect" => return Err(Error::entry(path, Problem::OverlayFeature("redirect"))),
            b"metacopy" => return Err(Error::entry(path, Problem::OverlayFeature("metacopy"))),
            _ => {}
        }
    }
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_meaning() {
        let of = |n: &'static str| meaning(OsStr::new(n));
        assert_eq!(of("a"), Ok(Meaning::Plain));
        assert_eq!(of(".wh.a"), Ok(Meaning::Remove(OsStr::new("a"))));
        assert_eq!(of(".wh..a"), Ok(Meaning::Remove(OsStr::new(".a"))));
        assert_eq!(of(".wh..wh..opq"), Ok(Meaning::Opaque));
        assert_eq!(of(".wh..wh.plnk"), Ok(Meaning::Ignore));
        for odd in [".wh.", ".wh..", ".wh..."] {
            assert_eq!(of(odd), Err(Problem::WhiteoutName));
        }
    }
}
