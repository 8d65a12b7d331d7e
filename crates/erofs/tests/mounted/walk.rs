use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{ErrorKind::NotFound, Read as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _},
        },
    },
    path::{Path, PathBuf},
};

/// Later than all that the tests write: the moment of something that nobody gave a time.
const NOW: i64 = 1_700_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    /// `None`: the present.
    mtime: Option<(i64, i64)>,
    size: u64,
    contents: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first name of the same inode.
    pub(crate) first: PathBuf,
}

impl Seen {
    pub(crate) fn is_directory(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    pub(crate) fn take_mode_and_time(&mut self, other: &Self) {
        (self.mode, self.mtime) = (other.mode, other.mtime);
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walked(pub(crate) BTreeMap<PathBuf, Seen>);

pub(crate) fn walk(root: &OwnedFd) -> Walked {
    let root = PathBuf::from(format!("/proc/self/fd/{}/.", root.as_raw_fd()));
    let mut seen = BTreeMap::new();
    let mut firsts = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    let mut all = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            // What readdir says and what lookup finds must be the same.
            let looked = fs::symlink_metadata(root.join(&path));
            if looked.as_ref().is_err_and(|error| error.kind() == NotFound)
                && entry.file_type().unwrap().is_char_device()
            {
                // overlay lists a whiteout where there is nothing to hide.
                continue;
            }
            let kind = looked.unwrap().file_type();
            assert_eq!(entry.file_type().unwrap(), kind, "{}", path.display());
            if kind.is_dir() {
                open.push(path.clone());
            }
            all.push(path);
        }
    }
    all.sort();
    for path in all {
        let one = look(&root, &path, &mut firsts);
        seen.insert(path, one);
    }
    Walked(seen)
}

fn look(root: &Path, path: &Path, firsts: &mut BTreeMap<(u64, u64), PathBuf>) -> Seen {
    let full = root.join(path);
    let metadata = fs::symlink_metadata(&full).unwrap();
    let kind = metadata.file_type();
    let mut contents = Vec::new();
    if kind.is_file() {
        File::open(&full).unwrap().read_to_end(&mut contents).unwrap();
        assert_eq!(contents.len() as u64, metadata.size(), "{}", path.display());
    } else if kind.is_symlink() {
        contents = fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec();
    }
    let mtime = (metadata.mtime(), metadata.mtime_nsec());
    let first = firsts.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.into());
    Seen {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        device: metadata.rdev(),
        mtime: (mtime.0 < NOW).then_some(mtime),
        size: if kind.is_dir() { 0 } else { metadata.size() },
        contents,
        xattrs: if path.as_os_str().is_empty() { BTreeMap::new() } else { xattrs(&full) },
        first: first.clone(),
    }
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut found = BTreeMap::new();
    for name in names {
        let name = std::ffi::OsStr::from_bytes(name);
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(len);
        found.insert(name.to_owned(), value);
    }
    found
}

/// Fails with the first differences.
#[track_caller]
pub(crate) fn assert_same(expected: &Walked, found: &Walked) {
    let mut wrong = Vec::new();
    let paths: std::collections::BTreeSet<_> = expected.0.keys().chain(found.0.keys()).collect();
    for path in paths {
        let (want, have) = (expected.0.get(path), found.0.get(path));
        let same = match (want, have) {
            (Some(want), Some(have)) => {
                let mut have = have.clone();
                if want.mtime.is_none() {
                    have.mtime = None;
                }
                *want == have
            }
            _ => false,
        };
        if !same {
            wrong.push(format!(
                "{}:\n  expected {}\n  found    {}",
                path.display(),
                brief(want),
                brief(have)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong[..wrong.len().min(5)].join("\n"));
}

fn brief(seen: Option<&Seen>) -> String {
    let Some(seen) = seen else { return "nothing".into() };
    let contents: Vec<u8> = seen.contents.iter().take(24).copied().collect();
    format!("{:?}", Seen { contents, ..seen.clone() })
}
