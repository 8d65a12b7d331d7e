use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use crate::error::{Error, Problem};

/// A point in time, as seconds since 1970 (may be negative) and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub secs: i64,
    /// Below 1,000,000,000.
    pub nanos: u32,
}

/// A piece of a sparse file that has data; everything between chunks is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub offset: u64,
    pub len: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `sparse` lists the chunks of a sparse file in ascending order; their data is stored
    /// one after the other.
    File {
        sparse: Option<Vec<Chunk>>,
    },
    Directory,
    Symlink {
        target: PathBuf,
    },
    /// A further name of an earlier entry; the target is an archive name.
    HardLink {
        target: PathBuf,
    },
    Fifo,
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
}

/// Where an entry lies in its tar, in bytes from the tar's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The entry's own header (extension headers stand before it).
    pub header: u64,
    /// The first byte of the data.
    pub data: u64,
    /// Data bytes in the tar, without padding: the size, or the sum of a sparse file's chunks.
    pub stored: u64,
}

/// One entry of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name exactly as the archive has it.
    pub name: PathBuf,
    pub kind: Kind,
    /// Permission bits, 0o7777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Logical size of a file in bytes, holes included; 0 for everything else.
    pub size: u64,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    pub user: OsString,
    pub group: OsString,
    pub position: Position,
}

impl Entry {
    /// An empty entry, owned by root, with mode 0755 for directories and 0644 otherwise.
    pub fn new(name: impl Into<PathBuf>, kind: Kind) -> Self {
        let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
        Self {
            name: name.into(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            xattrs: BTreeMap::new(),
            user: OsString::new(),
            group: OsString::new(),
            position: Position::default(),
        }
    }

    /// The name as a path below the root: no leading or doubled "/", no "."; empty for the root.
    ///
    /// # Errors
    /// [`Error::Entry`] for a name with a ".." component or with a zero byte.
    pub fn relative_path(&self) -> Result<PathBuf, Error> {
        clean(&self.name).map_err(|problem| Error::entry(&self.name, problem))
    }

    /// The cleaned target of a hard link.
    pub(crate) fn link_path(&self, target: &Path) -> Result<PathBuf, Error> {
        clean(target).map_err(|problem| {
            let problem = match problem {
                Problem::ParentInName => Problem::ParentInLink,
                other => other,
            };
            Error::entry(&self.name, problem)
        })
    }
}

fn clean(name: &Path) -> Result<PathBuf, Problem> {
    let bytes = name.as_os_str().as_bytes();
    if bytes.contains(&0) {
        return Err(Problem::NulInName);
    }
    let mut out = Vec::with_capacity(bytes.len());
    for part in bytes.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Problem::ParentInName),
            part => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    Ok(PathBuf::from(OsString::from_vec(out)))
}

/// What an archive may ask for at most. The defaults bound memory, and are far above real images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries in the archive.
    pub entries: u64,
    /// Data bytes of all files together, holes not counted.
    pub total_bytes: u64,
    /// Bytes of one name or link target; the kernel's PATH_MAX is 4096 with its terminator.
    pub name: usize,
    /// Bytes of one extension header (PAX or GNU long name).
    pub extension: u64,
    /// Chunks in one sparse file's map.
    pub sparse_chunks: usize,
    /// Memory for names that have to be known to the end of an extraction: those of directories,
    /// and of what a layer makes and deletes.
    pub remembered_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 8_000_000,
            total_bytes: 1 << 42,
            name: 4095,
            // An xattr value has at most 64 KiB, and ext4 has room for no more than that in all.
            extension: 1 << 20,
            sparse_chunks: 1 << 18,
            remembered_bytes: 192 << 20,
        }
    }
}

/// A range of ids and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub from: u32,
    pub to: u32,
    pub count: u32,
}

/// Who owns what is extracted or packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// As the source says.
    #[default]
    Keep,
    /// Extraction: whoever extracts. Packing: 0:0.
    Ignore,
    Fixed {
        uid: u32,
        gid: u32,
    },
    /// Each id goes through the ranges (extraction: container to host; packing: host to
    /// container); an id in none of them is an error.
    Map {
        uids: Vec<IdRange>,
        gids: Vec<IdRange>,
    },
}

impl Owner {
    /// The owner that results for `uid:gid`; `None` when it shall not be touched.
    pub(crate) fn apply(&self, uid: u32, gid: u32) -> Result<Option<(u32, u32)>, Problem> {
        match self {
            Self::Keep => Ok(Some((uid, gid))),
            Self::Ignore => Ok(None),
            Self::Fixed { uid, gid } => Ok(Some((*uid, *gid))),
            Self::Map { uids, gids } => Ok(Some((map_id(uids, uid)?, map_id(gids, gid)?))),
        }
    }
}

fn map_id(ranges: &[IdRange], id: u32) -> Result<u32, Problem> {
    ranges
        .iter()
        .find_map(|r| {
            let offset = id.checked_sub(r.from)?;
            if offset < r.count { r.to.checked_add(offset) } else { None }
        })
        .ok_or(Problem::UnmappedOwner(id))
}

/// The attributes that a layer carries: file capabilities and user attributes, none of which
/// belong to overlayfs.
pub(crate) fn portable_xattr(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name == b"security.capability"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_cleaned_or_refused() {
        let path = |n: &str| Entry::new(n, Kind::Directory).relative_path();
        assert_eq!(path("./a//b/./c/").unwrap(), Path::new("a/b/c"));
        assert_eq!(path("/").unwrap(), Path::new(""));
        assert_eq!(path("///etc/passwd").unwrap(), Path::new("etc/passwd"));
        assert!(path("a/../b").is_err());
        assert!(path("..").is_err());
        assert_eq!(path("..a").unwrap(), Path::new("..a"));
    }

    #[test]
    fn ids_map_or_fail() {
        let ranges = vec![IdRange { from: 0, to: 100_000, count: 10 }];
        let owner = Owner::Map { uids: ranges.clone(), gids: ranges };
        assert_eq!(owner.apply(0, 9), Ok(Some((100_000, 100_009))));
        assert_eq!(owner.apply(10, 0), Err(Problem::UnmappedOwner(10)));
    }
}
