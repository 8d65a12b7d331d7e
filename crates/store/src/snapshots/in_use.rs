//! Who has a layer's directory mounted, by what the kernel says: `/proc/PID/mountinfo` (proc(5)) of every
//! mount namespace that a process which this one may look into lives in. A mount that only a descriptor
//! holds is in none of them.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// What a mount says of where it comes from.
struct Mount {
    device: Vec<u8>,
    /// The directory of its file system that is its root.
    root: PathBuf,
    point: PathBuf,
    /// Directories that an overlay consists of; what lies below it may be told relative to a directory
    /// that is not told.
    layers: Vec<PathBuf>,
}

/// The mount, in whatever namespace, that shows `ROOT/snapshots/ID/fs`, if there is one.
///
/// # Errors
/// When this process' own mounts cannot be read.
pub(super) fn mount_of(root: &Path, id: u64) -> Result<Option<String>> {
    let sought = Sought::new(root, id)?;
    let mut seen = BTreeSet::new();
    let entries = fs::read_dir("/proc").map_err(Error::io("list", "/proc"))?;
    let numbers = entries.filter_map(|entry| entry.ok()).map(|entry| entry.file_name());
    let processes = numbers.filter(|name| name.as_bytes().iter().all(u8::is_ascii_digit));
    for process in processes {
        let directory = Path::new("/proc").join(&process);
        // It has ended since, or is not to be looked into.
        let Ok(namespace) = fs::read_link(directory.join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        let Ok(mounts) = read(&directory) else { continue };
        seen.insert(namespace);
        let its_root = directory.join("root");
        if let Some(mount) = mounts.iter().find(|mount| sought.is_shown_by(mount, &its_root)) {
            return Ok(Some(format!(
                "the mount at {} that process {} sees",
                mount.point.display(),
                process.display()
            )));
        }
    }
    Ok(None)
}

struct Sought {
    id: String,
    /// Device and inode of the store's root.
    store: (u64, u64),
    /// Device, as mountinfo writes it, and directory on it: where bind mounts of the layer come from.
    device: Vec<u8>,
    directory: PathBuf,
}

impl Sought {
    fn new(root: &Path, id: u64) -> Result<Self> {
        let path = root.canonicalize().map_err(Error::io("resolve", root))?;
        let metadata = path.metadata().map_err(Error::io("stat", &path))?;
        let own = Path::new("/proc/self");
        let mounts = read(own).map_err(Error::io("read the mounts of", own))?;
        // Of several at one place the last one covers the others.
        let on = mounts.iter().filter(|mount| path.starts_with(&mount.point));
        let on = on.max_by_key(|mount| mount.point.components().count());
        let on = on.ok_or_else(|| Error::not_found("mount of", path.display()))?;
        let inside = path.strip_prefix(&on.point).unwrap_or(&path);
        let directory = on.root.join(inside).join(format!("snapshots/{id}/fs"));
        let store = (metadata.dev(), metadata.ino());
        Ok(Self { id: id.to_string(), store, device: on.device.clone(), directory })
    }

    /// `its_root`: that of a process that sees the mount.
    fn is_shown_by(&self, mount: &Mount, its_root: &Path) -> bool {
        let bound = mount.device == self.device && mount.root.starts_with(&self.directory);
        bound || mount.layers.iter().any(|layer| self.is(layer, its_root))
    }

    /// `ROOT/snapshots/ID/fs` or `ROOT/l/ID`, whatever ROOT is called. In doubt it is: the path is that of who
    /// mounted it, whose root may be ours or that of who sees it; a container may have a store of its own at
    /// the same place.
    fn is(&self, path: &Path, its_root: &Path) -> bool {
        let id = OsStr::new(&self.id);
        let names: Vec<&OsStr> = path.iter().collect();
        let before = match names.as_slice() {
            [before @ .., snapshots, number, fs]
                if *snapshots == "snapshots" && *number == id && *fs == "fs" =>
            {
                before
            }
            [before @ .., links, number] if *links == "l" && *number == id => before,
            [number] => return *number == id,
            [number, fs] => return *number == id && *fs == "fs",
            _ => return false,
        };
        let root: PathBuf = before.iter().collect();
        let Ok(inside) = root.strip_prefix("/") else { return true };
        let found: Vec<_> = [&its_root.join(inside), &root]
            .into_iter()
            .filter_map(|root| root.metadata().ok())
            .map(|found| (found.dev(), found.ino()))
            .collect();
        found.is_empty() || found.contains(&self.store)
    }
}

fn read(process: &Path) -> std::io::Result<Vec<Mount>> {
    let file = BufReader::new(File::open(process.join("mountinfo"))?);
    let mut mounts = Vec::new();
    for line in file.split(b'\n') {
        mounts.extend(parse(&line?));
    }
    Ok(mounts)
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [FIELDS…] - TYPE SOURCE OPTIONS`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?.to_vec();
    let (root, point) = (unescaped(fields.next()?), unescaped(fields.next()?));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = fields.next()?;
    let options = fields.nth(1).unwrap_or_default();
    let mut layers = Vec::new();
    for option in options.split(|byte| *byte == b',').filter(|_| kind == b"overlay") {
        let Some(at) = option.iter().position(|byte| *byte == b'=') else { continue };
        if matches!(&option[..at], b"lowerdir" | b"lowerdir+" | b"upperdir") {
            let all = unescaped(&option[at + 1..]).into_os_string().into_vec();
            let all = all.split(|byte| *byte == b':').filter(|path| !path.is_empty());
            layers.extend(all.map(|path| PathBuf::from(OsString::from_vec(path.to_vec()))));
        }
    }
    Some(Mount { device, root, point, layers })
}

/// What `\ooo` stands for.
fn unescaped(field: &[u8]) -> PathBuf {
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sought(root: &Path) -> Sought {
        let metadata = root.metadata().unwrap();
        Sought {
            id: "7".into(),
            store: (metadata.dev(), metadata.ino()),
            device: b"8:1".to_vec(),
            directory: "/store/snapshots/7/fs".into(),
        }
    }

    #[test]
    fn an_overlay_on_the_layer() {
        let root = tempfile::Builder::new().prefix("a b").tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let link = other.path().join("link");
        std::os::unix::fs::symlink(root.path(), &link).unwrap();
        let sought = sought(root.path());
        let shown = |options: &str| {
            let line = format!("9 1 0:50 / /x rw shared:1 - overlay overlay rw,{options}");
            sought.is_shown_by(&parse(line.as_bytes()).unwrap(), Path::new("/"))
        };
        let at = |root: &Path| root.display().to_string().replace(' ', "\\040");
        let (root, link) = (at(root.path()), at(&link));
        for there in [
            format!("lowerdir={root}/snapshots/9/fs:{root}/snapshots/7/fs,upperdir=/u"),
            format!("lowerdir={root}/l/9:{root}/l/7"),
            format!("lowerdir={link}/snapshots/7/fs"),
            format!("lowerdir+=/a,lowerdir+={root}/snapshots/7/fs,index=off"),
            format!("lowerdir=/a,upperdir={root}/snapshots/7/fs,workdir=/w"),
            "lowerdir=9/fs:7/fs".into(),
            "lowerdir=9:7".into(),
            "lowerdir=/not/here/any/more/snapshots/7/fs".into(),
        ] {
            assert!(shown(&there), "{there}");
        }
        for not in [
            format!("lowerdir={root}/snapshots/77/fs:{root}/l/70"),
            format!("lowerdir={}/snapshots/7/fs", other.path().display()),
            format!("lowerdir={root}/snapshots/9/fs,workdir={root}/snapshots/7/fs"),
            "lowerdir=17/fs".into(),
        ] {
            assert!(!shown(&not), "{not}");
        }
    }

    #[test]
    fn a_store_that_only_who_mounted_it_sees() {
        let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sought = sought(ours.path());
        let shown = |root: &Path| {
            let root = root.display();
            let line =
                format!("9 1 0:50 / /x rw - overlay overlay rw,lowerdir={root}/snapshots/7/fs");
            sought.is_shown_by(&parse(line.as_bytes()).unwrap(), other.path())
        };
        let in_other = |root: &Path| other.path().join(root.strip_prefix("/").unwrap());
        let theirs = Path::new("/of/their/own");
        assert!(shown(theirs), "nobody knows where that is");
        std::fs::create_dir_all(in_other(theirs)).unwrap();
        assert!(!shown(theirs), "another store");
        std::fs::create_dir_all(in_other(ours.path())).unwrap();
        assert!(shown(ours.path()), "a container on ours that has one of its own");
    }

    #[test]
    fn a_bind_mount_of_the_layer() {
        let root = tempfile::tempdir().unwrap();
        let sought = sought(root.path());
        let shown =
            |line: &str| sought.is_shown_by(&parse(line.as_bytes()).unwrap(), Path::new("/"));
        assert!(shown("9 1 8:1 /store/snapshots/7/fs /x rw - ext4 /dev/sda1 rw"));
        assert!(shown("9 1 8:1 /store/snapshots/7/fs/etc /x rw shared:2 - ext4 /dev/sda1 rw"));
        assert!(!shown("9 1 8:2 /store/snapshots/7/fs /x rw - ext4 /dev/sdb1 rw"));
        assert!(!shown("9 1 8:1 /store/snapshots/77/fs /x rw - ext4 /dev/sda1 rw"));
        assert!(!shown("9 1 8:1 / /x rw - ext4 /dev/sda1 rw"));
    }
}
