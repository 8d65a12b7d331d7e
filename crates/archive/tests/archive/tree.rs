//! Random trees, and what a tree looks like.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};

pub(crate) fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .unwrap()
}

#[derive(Clone, Debug)]
pub(crate) enum Shape {
    File(Vec<u8>),
    Directory(Vec<(OsString, Item)>),
    Symlink(Vec<u8>),
    Fifo,
    Device(u32, u32),
    /// Another name for some file made before.
    Link(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) shape: Shape,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, i64),
    pub(crate) xattr: Option<Vec<u8>>,
}

fn name() -> impl Strategy<Value = OsString> {
    prop_oneof![
        6 => "[a-z]{1,3}".prop_map(OsString::from),
        1 => "[a-zA-Z0-9 ._=%-]{90,255}".prop_map(OsString::from),
        1 => proptest::collection::vec(any::<u8>(), 1..40).prop_map(OsString::from_vec),
    ]
    .prop_filter("a file name", |n| {
        let b = n.as_bytes();
        !b.contains(&0) && !b.contains(&b'/') && b != b"." && b != b".." && !b.starts_with(b".wh.")
    })
}

fn item() -> impl Strategy<Value = Item> {
    let leaf = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..2000).prop_map(Shape::File),
        1 => (1usize..200_000).prop_map(|n| Shape::File(vec![7; n])),
        2 => proptest::collection::vec(1u8..255, 1..200).prop_map(Shape::Symlink),
        1 => Just(Shape::Fifo),
        1 => (1u32..250, 0u32..200_000).prop_map(|(a, b)| Shape::Device(a, b)),
        2 => any::<usize>().prop_map(Shape::Link),
        1 => Just(Shape::Directory(Vec::new())),
    ];
    let meta = || {
        (
            0u32..0o10000,
            prop_oneof![0u32..3, 60_000u32..70_000, 2_097_000u32..4_000_000_000],
            prop_oneof![0u32..3, 2_097_000u32..4_000_000_000],
            prop_oneof![0i64..2_000_000_000, -1000i64..0],
            prop_oneof![Just(0i64), 0i64..1_000_000_000],
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
        )
    };
    let build = |shape, m: (u32, u32, u32, i64, i64, Option<Vec<u8>>)| Item {
        shape,
        mode: m.0,
        uid: m.1,
        gid: m.2,
        mtime: (m.3, m.4),
        xattr: m.5,
    };
    (leaf, meta()).prop_map(move |(s, m)| build(s, m)).prop_recursive(4, 40, 6, move |inner| {
        (proptest::collection::vec((name(), inner), 0..6), meta())
            .prop_map(move |(children, m)| build(Shape::Directory(children), m))
    })
}

/// The contents of a root directory.
pub(crate) fn contents() -> impl Strategy<Value = Vec<(OsString, Item)>> {
    proptest::collection::vec((name(), item()), 0..6)
}

/// Makes the tree; a name that is taken already is left out.
pub(crate) fn make(root: &Path, contents: &[(OsString, Item)]) {
    make_in(root, contents, &mut Vec::new());
}

fn make_in(dir: &Path, contents: &[(OsString, Item)], files: &mut Vec<PathBuf>) {
    for (name, item) in contents {
        let path = dir.join(name);
        if path.symlink_metadata().is_ok() {
            continue;
        }
        let cwd = rustix::fs::CWD;
        match &item.shape {
            Shape::File(data) => {
                fs::write(&path, data).unwrap();
                files.push(path.clone());
            }
            Shape::Directory(children) => {
                fs::create_dir(&path).unwrap();
                make_in(&path, children, files);
            }
            Shape::Symlink(target) => {
                std::os::unix::fs::symlink(OsString::from_vec(target.clone()), &path).unwrap();
            }
            Shape::Fifo => {
                rustix::fs::mknodat(cwd, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
            }
            Shape::Device(major, minor) => {
                let dev = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(cwd, &path, FileType::CharacterDevice, Mode::RUSR, dev)
                    .unwrap();
            }
            Shape::Link(which) => {
                if !files.is_empty() {
                    fs::hard_link(&files[which % files.len()], &path).unwrap();
                }
                continue;
            }
        }
        dress(&path, item);
    }
}

fn dress(path: &Path, item: &Item) {
    std::os::unix::fs::lchown(path, Some(item.uid), Some(item.gid)).unwrap();
    let meta = path.symlink_metadata().unwrap();
    if !meta.is_symlink() {
        rustix::fs::chmod(path, Mode::from_raw_mode(item.mode)).unwrap();
    }
    if let Some(value) = &item.xattr
        && (meta.is_file() || meta.is_dir())
    {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(path, "user.test", value, flags).unwrap();
    }
    let time = Timespec { tv_sec: item.mtime.0, tv_nsec: item.mtime.1 as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: String,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path with the same inode, for files with several names.
    pub(crate) same_as: Option<PathBuf>,
}

pub(crate) type Listing = BTreeMap<PathBuf, Seen>;

/// Everything below `root`, by relative path.
pub(crate) fn look(root: &Path) -> Listing {
    let mut listing = Listing::new();
    look_in(root, Path::new(""), &mut listing);
    let mut first = BTreeMap::new();
    for (path, seen) in &mut listing {
        let meta = root.join(path).symlink_metadata().unwrap();
        if !meta.is_dir() && meta.nlink() > 1 {
            seen.same_as =
                Some(first.entry((meta.dev(), meta.ino())).or_insert(path.clone()).clone());
        }
    }
    listing
}

fn look_in(root: &Path, dir: &Path, listing: &mut Listing) {
    for item in fs::read_dir(root.join(dir)).unwrap() {
        let path = dir.join(item.unwrap().file_name());
        let full = root.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let kind = if meta.is_dir() {
            look_in(root, &path, listing);
            "dir".to_owned()
        } else if meta.is_symlink() {
            format!("link {:?}", fs::read_link(&full).unwrap())
        } else if meta.is_file() {
            let data = fs::read(&full).unwrap();
            format!("file {} {:x}", data.len(), checksum(&data))
        } else if meta.file_type().is_fifo() {
            "fifo".to_owned()
        } else {
            format!("device {} {:x}", meta.file_type().is_char_device(), meta.rdev())
        };
        listing.insert(
            path,
            Seen {
                kind,
                mode: if meta.is_symlink() { 0 } else { meta.mode() & 0o7777 },
                owner: (meta.uid(), meta.gid()),
                mtime: (meta.mtime(), meta.mtime_nsec()),
                xattrs: xattrs(&full),
                same_as: None,
            },
        );
    }
}

fn checksum(data: &[u8]) -> u64 {
    data.iter()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let n = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut found = BTreeMap::new();
    for name in names[..n].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 65_536];
        let n = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        value.truncate(n);
        found.insert(String::from_utf8(name.to_vec()).unwrap(), value);
    }
    found
}

/// A file with holes: data at each offset.
pub(crate) fn sparse_file(path: &Path, pieces: &[(u64, &[u8])], size: u64) {
    use std::os::unix::fs::FileExt;
    let file = File::create(path).unwrap();
    for (offset, data) in pieces {
        file.write_all_at(data, *offset).unwrap();
    }
    file.set_len(size).unwrap();
}
