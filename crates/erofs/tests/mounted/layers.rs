//! Random layers: an index of all of them against overlay on what extraction makes of each.

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use archive::{Entry, ExtractOptions, Kind, TarWriter, Time, Whiteouts};
use erofs::Base;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{image, index, mount, overlay, spec, walk};

/// What one entry of a layer is drawn from.
#[derive(Clone, Debug)]
struct Draw {
    path: Vec<u8>,
    kind: u8,
    other: Vec<u8>,
    size: usize,
    number: u32,
}

fn draw() -> impl Strategy<Value = Draw> {
    let path = || proptest::collection::vec(0..6_u8, 1..4);
    let size = prop_oneof![Just(0), 1..600_usize, Just(512), Just(4096), 4000..9000_usize];
    (path(), 0..24_u8, path(), size, any::<u32>())
        .prop_map(|(path, kind, other, size, number)| Draw { path, kind, other, size, number })
}

fn name(parts: &[u8]) -> PathBuf {
    let long = "l".repeat(200);
    parts.iter().map(|n| ["a", "b", "c", "Z.z", &long, "\u{e9}"][usize::from(*n)]).collect()
}

fn entry(draw: &Draw, files: &mut Vec<PathBuf>) -> Option<(Entry, Vec<u8>)> {
    let path = name(&draw.path);
    let last = path.file_name()?.to_str()?.to_string();
    let n = draw.number;
    let mut data = Vec::new();
    let file = || Kind::File { sparse: None };
    let (path, kind) = match draw.kind {
        0..=6 => {
            data = (0..draw.size).map(|i| (i as u32).wrapping_mul(n | 1) as u8).collect();
            files.push(path.clone());
            (path, file())
        }
        7..=11 => (path, Kind::Directory),
        12 | 13 => {
            let target = name(&draw.other);
            let target = match n % 4 {
                0 => Path::new("/").join(target),
                1 => Path::new("..").join(target),
                2 => PathBuf::from("t".repeat(n as usize % 900 + 1)),
                _ => target,
            };
            (path, Kind::Symlink { target })
        }
        14 | 15 => {
            let target = files.get(n as usize % files.len().max(1))?.clone();
            (path, Kind::HardLink { target })
        }
        16 => (path, Kind::Fifo),
        17 => (path, Kind::CharDevice { major: n % 4096, minor: n >> 12 | 1 }),
        18 => (path, Kind::BlockDevice { major: n % 4096, minor: n >> 12 }),
        19..=21 => (path.with_file_name(format!(".wh.{last}")), file()),
        // Of an opaque root extraction makes whiteouts, one by one.
        22 if draw.path.len() == 1 => return None,
        22 => (path.with_file_name(".wh..wh..opq"), file()),
        _ => (PathBuf::from("./"), Kind::Directory),
    };
    let mut entry = Entry::new(path, kind);
    // A directory that is only implied would inherit the bit 2000 where it is extracted.
    entry.mode = if entry.kind == Kind::Directory { n & 0o5777 | 0o300 } else { n & 0o7777 };
    entry.uid = n % 70_000;
    entry.gid = n % 7;
    entry.mtime = Time { secs: i64::from(n % 1_600_000_000) - 1000, nanos: n % 1_000_000_000 };
    entry.size = data.len() as u64;
    if matches!(entry.kind, Kind::File { .. } | Kind::Directory) && n.is_multiple_of(3) {
        let value = vec![b'v'; n as usize % 700];
        entry.xattrs.insert(format!("user.{}", "x".repeat(n as usize % 40 + 1)).into(), value);
    }
    if matches!(entry.kind, Kind::File { .. }) && n.is_multiple_of(5) {
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
        entry.xattrs.insert("security.capability".into(), capability);
    }
    Some((entry, data))
}

fn tar(draws: &[Draw]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new()).subsecond(true);
    let mut files = Vec::new();
    for draw in draws {
        if let Some((entry, data)) = entry(draw, &mut files) {
            writer.append(&entry, &data[..]).unwrap();
        }
    }
    writer.finish().unwrap()
}

/// Extracts a layer as the store does those that lie on others; `lowers` topmost first.
fn extract(tar: &[u8], directory: &Path, lowers: &[PathBuf]) -> Result<(), archive::Error> {
    fs::create_dir(directory).unwrap();
    let like = lowers.first().map(|path| fs::metadata(path).unwrap());
    let mode = like.as_ref().map_or(0o755, |like| like.permissions().mode() & 0o7777);
    if let Some(like) = like {
        use std::os::unix::fs::MetadataExt as _;
        std::os::unix::fs::chown(directory, Some(like.uid()), Some(like.gid())).unwrap();
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
    let root: OwnedFd = fs::File::open(directory).unwrap().into();
    let below: Vec<OwnedFd> =
        lowers.iter().map(|path| fs::File::open(path).unwrap().into()).collect();
    let below: Vec<_> = below.iter().map(|fd| fd.as_fd()).collect();
    let mut options = ExtractOptions {
        whiteouts: Whiteouts::Overlay { userxattr: false },
        root_metadata: true,
        lowers: &below,
        ..ExtractOptions::default()
    };
    archive::extract(tar, root.as_fd(), &mut options).map(drop)
}

#[test]
fn an_opaque_root_hides_everything() {
    let ground = TempDir::new().unwrap();
    let draw =
        |path: &[u8], kind| Draw { path: path.into(), kind, other: vec![0], size: 5, number: 7 };
    let lower = tar(&[draw(&[0, 1], 0), draw(&[2], 0)]);
    let upper = tar(&[draw(&[0], 22), draw(&[1, 0], 0)]);
    let mut upper_opaque = TarWriter::new(Vec::new());
    let mark = Entry::new(".wh..wh..opq", Kind::File { sparse: None });
    upper_opaque.append(&mark, std::io::empty()).unwrap();
    let mut upper_opaque = upper_opaque.finish().unwrap();
    upper_opaque.truncate(512);
    upper_opaque.extend(upper);
    let found = walk::walk(&crate::mounted(&[lower, upper_opaque], ground.path()));
    let names: Vec<_> = found.0.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(names, ["", "b", "b/a"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn layers_look_as_extracted(
        layers in proptest::collection::vec(proptest::collection::vec(draw(), 0..24), 1..6),
    ) {
        let ground = TempDir::new().unwrap();
        let empty = ground.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let mut directories: Vec<PathBuf> = Vec::new();
        let mut indexes = Vec::new();
        for draws in &layers {
            let tar = tar(draws);
            let n = indexes.len();
            let directory = ground.path().join(format!("dir{n}-{}", directories.len()));
            let lowers: Vec<PathBuf> = directories.iter().rev().cloned().collect();
            let extracted = extract(&tar, &directory, &lowers);
            match (extracted, index(&tar, ground.path(), n)) {
                (Ok(()), Ok(layer)) => {
                    directories.push(directory);
                    indexes.push(layer);
                }
                // An index may refuse what extraction can do, but not the reverse.
                (Err(error), Ok(_)) => panic!("only extraction fails: {error}"),
                _ => fs::remove_dir_all(directory).unwrap(),
            }
        }
        let tree = image(&indexes, Base::Nothing, ground.path()).unwrap();
        let found = walk::walk(&mount(vec![spec(&tree, ground.path())]));
        let mut lowers: Vec<&Path> = directories.iter().rev().map(PathBuf::as_path).collect();
        // An overlay without an upper directory has two below at least.
        lowers.push(&empty);
        if directories.is_empty() {
            return Ok(());
        }
        let expected = walk::walk(&mount(vec![overlay(&lowers)]));
        walk::assert_same(&without_reused(&layers, &expected, &found), &found);
        upper_part(&indexes, &directories, ground.path(), &expected);
    }
}

/// Extraction takes what replaces a directory for it where it gets the same inode number, and gives it
/// the directory's mode and time: where that can be, these are not compared.
fn without_reused(
    layers: &[Vec<Draw>],
    expected: &walk::Walked,
    found: &walk::Walked,
) -> walk::Walked {
    let mut directories = std::collections::BTreeSet::new();
    for draw in layers.iter().flatten() {
        let is_directory = (7..=11).contains(&draw.kind);
        let parents = &draw.path[..draw.path.len() - usize::from(!is_directory)];
        for part in parents.iter().chain(&draw.other) {
            directories.insert(name(&[*part]));
        }
    }
    let mut same = expected.clone();
    for seen in same.0.values_mut().filter(|seen| !seen.is_directory()) {
        let last = PathBuf::from(seen.first.file_name().unwrap());
        if directories.contains(&last)
            && let Some(found) = found.0.get(&seen.first).filter(|found| !found.is_directory())
        {
            seen.take_mode_and_time(found);
        }
    }
    same
}

/// The upper half of the layers as one index on the lower half's directories.
fn upper_part(
    indexes: &[erofs::Layer],
    directories: &[PathBuf],
    ground: &Path,
    expected: &walk::Walked,
) {
    let half = indexes.len() / 2;
    if half == 0 {
        return;
    }
    let upper = TempDir::new().unwrap();
    for (n, from) in (half..indexes.len()).enumerate() {
        for part in ["tar", "extra"] {
            let (from, to) = (format!("{from}.{part}"), format!("{n}.{part}"));
            fs::copy(ground.join(from), upper.path().join(to)).unwrap();
        }
    }
    // Directories that are only implied, and an opaque root, need the layers below.
    let Ok(tree) = image(&indexes[half..], Base::Layers, upper.path()) else { return };
    let index = spec(&tree, upper.path());
    let scratch = TempDir::new().unwrap();
    let at = TempDir::new().unwrap();
    let (at_path, scratch_path) = (at.path().to_path_buf(), scratch.path().to_path_buf());
    let mut lowers = vec![at_path.clone()];
    lowers.extend(directories[..half].iter().rev().cloned());
    let root = sys::private_mount::on_thread(move || {
        let options: Vec<&str> = index.options.iter().map(String::as_str).collect();
        let data = std::ffi::CString::new(options[1..].join(",")).unwrap();
        let flags = rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount(&index.source, &at_path, "erofs", flags, data.as_c_str())?;
        let lowers: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
        let over = overlay(&lowers);
        let data = std::ffi::CString::new(over.options[1].clone()).unwrap();
        rustix::mount::mount("overlay", &scratch_path, "overlay", flags, data.as_c_str())?;
        Ok(OwnedFd::from(fs::File::open(&scratch_path)?))
    });
    let found = walk::walk(&root.unwrap());
    let names = |walked: &walk::Walked| walked.0.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(expected), names(&found));
}
