//! Whiteouts: layers applied in both ways, and differences turned back into layers.

use std::{
    collections::BTreeSet,
    fs, io,
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use archive::{
    Below, Change, ChangeKind, Entry, ExtractOptions, Kind, PackOptions, Source, TarWriter, Time,
    Verdict, Whiteouts, changes_directories, changes_overlay, diff_directories, diff_overlay,
    extract, pack,
};
use proptest::prelude::*;
use rustix::fs::{FileType, Mode, XattrFlags};

use crate::tree::{contents, look, make, open};

const OVERLAY: Whiteouts = Whiteouts::Overlay { userxattr: false };

fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn layer(names: &[&str]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for name in names {
        let kind = if name.ends_with('/') { Kind::Directory } else { Kind::File { sparse: None } };
        writer.append(&Entry::new(*name, kind), io::empty()).unwrap();
    }
    writer.finish().unwrap()
}

fn apply(root: &Path, tar: &[u8], whiteouts: Whiteouts) {
    let mut options = ExtractOptions { whiteouts, ..Default::default() };
    extract(tar, open(root).as_fd(), &mut options).unwrap();
}

fn paths(root: &Path) -> BTreeSet<String> {
    look(root).into_keys().map(|p| p.to_str().unwrap().to_owned()).collect()
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn is_opaque(root: &Path, path: &str) -> bool {
    look(root)[Path::new(path)].xattrs.get("trusted.overlay.opaque").is_some_and(|v| v == b"y")
}

#[test]
fn removal_spares_the_layers_own() {
    let dir = tempdir();
    apply(dir.path(), &layer(&["d/", "d/old", "d/sub/", "d/sub/old", "x", "y/", "y/z"]), OVERLAY);
    apply(dir.path(), &layer(&["d/new", "d/.wh..wh..opq", ".wh.x", ".wh.y"]), Whiteouts::Remove);
    assert_eq!(paths(dir.path()), ["d", "d/new"].map(String::from).into());
    // The order within a layer does not matter.
    apply(
        dir.path(),
        &layer(&["d/sub/", "d/sub/mine", "d/.wh.sub", "d/.wh.mine-too", "d/mine-too", ".wh.d"]),
        Whiteouts::Remove,
    );
    let left = ["d", "d/mine-too", "d/sub", "d/sub/mine"];
    assert_eq!(paths(dir.path()), left.map(String::from).into());
}

#[test]
fn marks_for_overlay() {
    let dir = tempdir();
    let root = dir.path();
    let names =
        ["a/", "a/.wh..wh..opq", "a/kept", ".wh.gone", ".wh.swapped", "swapped/", "implied/x"];
    apply(root, &layer(&names), OVERLAY);
    assert!(is_opaque(root, "a"));
    assert!(is_whiteout(&root.join("gone")));
    assert!(is_opaque(root, "swapped"));
    apply(root, &layer(&["b/", ".wh.b", ".wh.c", "c/d", ".wh.f", "f"]), OVERLAY);
    assert!(is_opaque(root, "b"));
    assert!(is_opaque(root, "c"), "a directory that only a file's name implies");
    assert!(fs::symlink_metadata(root.join("f")).unwrap().is_file());
}

#[test]
fn implied_directories_look_as_below() {
    let lower = tempdir();
    apply(lower.path(), &layer(&["a/", "a/b/"]), OVERLAY);
    fs::set_permissions(lower.path().join("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(lower.path().join("a"), Some(33), Some(44)).unwrap();
    let below = look(lower.path());
    let over = |names: &[&str]| {
        let upper = tempdir();
        let lower = open(lower.path());
        let lowers = [lower.as_fd()];
        let mut options =
            ExtractOptions { whiteouts: OVERLAY, lowers: &lowers, ..Default::default() };
        extract(&layer(names)[..], open(upper.path()).as_fd(), &mut options).unwrap();
        (look(upper.path()), upper)
    };
    let (above, _upper) = over(&["a/b/c", "new/c"]);
    assert_eq!(above[Path::new("a")].owner, (33, 44));
    assert_eq!(above[Path::new("a/b")].mode, 0o1777);
    assert_eq!(above[Path::new("a/b")].mtime, below[Path::new("a/b")].mtime);
    let plain = |path: &str, seen: &crate::tree::Listing| {
        let seen = &seen[Path::new(path)];
        assert_eq!((seen.mode, seen.owner, seen.mtime), (0o755, (0, 0), (0, 0)), "{path}");
    };
    plain("new", &above);
    // Those of layers below that this one hides are no example, wherever it says so.
    for names in [["a/b/c", ".wh..wh..opq"], [".wh..wh..opq", "a/b/c"], ["a/b/c", ".wh.a"]] {
        let (above, upper) = over(&names);
        assert!(is_opaque(upper.path(), "a"), "{names:?}");
        plain("a", &above);
        plain("a/b", &above);
    }
    for names in [["a/b/c", "a/.wh..wh..opq"], ["a/.wh.b", "a/b/c"]] {
        let (above, _upper) = over(&names);
        assert_eq!(above[Path::new("a")].owner, (33, 44), "{names:?}");
        plain("a/b", &above);
    }
}

/// The whole tree at once: an overlay of the layers would show the same.
#[test]
fn what_lies_below_keeps_its_time_and_gives_way_to_directories() {
    let root = tempdir();
    let base = ["d/", "d/old", "e/", "e/sub/", "e/sub/x", "file"];
    apply(root.path(), &layer(&base), Whiteouts::Remove);
    for (path, secs) in [("d", 1000), ("e/sub", 2000), ("e", 3000)] {
        let time = rustix::fs::Timespec { tv_sec: secs, tv_nsec: 5 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, root.path().join(path), &times, flags).unwrap();
    }
    std::os::unix::fs::symlink("d", root.path().join("link")).unwrap();
    let upper = ["d/new", "e/sub/.wh.x", "file/is/now", "link/too"];
    apply(root.path(), &layer(&upper), Whiteouts::Remove);
    let seen = look(root.path());
    for (path, time) in [("d", (1000, 5)), ("e/sub", (2000, 5)), ("e", (3000, 5)), ("file", (0, 0))]
    {
        assert_eq!(seen[Path::new(path)].mtime, time, "{path}");
    }
    assert_eq!(seen[Path::new("link")].kind, "dir", "a link of a lower layer is not followed");
    assert!(!seen.contains_key(Path::new("d/too")));
}

/// One layer's whiteouts applied to a full tree and to an overlay directory agree, and the
/// overlay directory turns back into the same layer.
#[test]
fn overlay_directory_back_to_layer() {
    let upper = tempdir();
    let original = layer(&[".wh.gone", "d/", "d/.wh..wh..opq", "d/.wh.x", "d/new", "file"]);
    apply(upper.path(), &original, OVERLAY);
    let mut options = PackOptions::default();
    let fd = open(upper.path());
    let (tar, _) = diff_overlay(fd.as_fd(), Below::Unknown, &mut options, Vec::new()).unwrap();
    let mut reader = archive::TarReader::new(&tar[..], archive::Limits::default());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(entry.name.to_str().unwrap().to_owned());
    }
    assert_eq!(names, ["d/", "d/.wh..wh..opq", "d/new", "d/.wh.x", "file", ".wh.gone"]);

    let lower = tempdir();
    fs::create_dir(lower.path().join("d")).unwrap();
    for name in ["d/new", "d/old", "gone", "stays"] {
        fs::write(lower.path().join(name), name).unwrap();
    }
    let lower_fd = open(lower.path());
    let lowers = [lower_fd.as_fd()];
    let below = Below::Layers(&lowers);
    let (tar, _) = diff_overlay(fd.as_fd(), below, &mut options, Vec::new()).unwrap();
    apply(lower.path(), &tar, Whiteouts::Remove);
    let left = ["d", "d/new", "file", "stays"];
    assert_eq!(paths(lower.path()), left.map(String::from).into());
}

#[test]
fn changes_as_docker_diff_lists_them() {
    let (bottom, middle, upper) = (tempdir(), tempdir(), tempdir());
    for dir in ["etc", "gone", "opaque", "etc/deep"] {
        fs::create_dir_all(bottom.path().join(dir)).unwrap();
    }
    for name in ["etc/a", "etc/b", "gone/x", "opaque/1", "opaque/2", "hidden"] {
        fs::write(bottom.path().join(name), name).unwrap();
    }
    apply(middle.path(), &layer(&[".wh.hidden", "etc/m"]), OVERLAY);
    fs::set_permissions(middle.path().join("etc"), fs::Permissions::from_mode(0o711)).unwrap();
    apply(
        upper.path(),
        &layer(&[
            "etc/",
            "etc/a",
            "etc/new",
            "etc/.wh.b",
            ".wh.gone",
            "opaque/",
            "opaque/.wh..wh..opq",
            "opaque/2",
            ".wh.hidden",
            "hidden",
            "etc/m",
        ]),
        OVERLAY,
    );
    let (b, m, u) = (open(bottom.path()), open(middle.path()), open(upper.path()));
    let got = changes_overlay(u.as_fd(), &[m.as_fd(), b.as_fd()]).unwrap();
    let change = |kind, path: &str| Change { path: PathBuf::from(path), kind };
    use ChangeKind::{Add, Delete, Modify};
    assert_eq!(
        got,
        [
            change(Modify, "/etc"),
            change(Modify, "/etc/a"),
            change(Delete, "/etc/b"),
            change(Add, "/etc/new"),
            change(Delete, "/gone"),
            change(Add, "/hidden"),
            change(Modify, "/opaque"),
            change(Delete, "/opaque/1"),
            change(Modify, "/opaque/2"),
        ]
    );
}

#[test]
fn overlay_features_are_refused_by_name() {
    let upper = tempdir();
    fs::create_dir(upper.path().join("moved")).unwrap();
    rustix::fs::setxattr(
        upper.path().join("moved"),
        "trusted.overlay.redirect",
        b"/old",
        XattrFlags::empty(),
    )
    .unwrap();
    let fd = open(upper.path());
    let error = diff_overlay(fd.as_fd(), Below::Unknown, &mut PackOptions::default(), Vec::new())
        .unwrap_err();
    assert!(error.to_string().contains("redirect"), "{error}");
}

#[test]
fn pack_options_are_honoured() {
    let dir = tempdir();
    let root = dir.path();
    for d in ["keep", "skip", "through"] {
        fs::create_dir(root.join(d)).unwrap();
        fs::write(root.join(d).join("f"), d).unwrap();
    }
    std::os::unix::fs::symlink("keep", root.join("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("sock"), FileType::Socket, Mode::RUSR, 0)
        .unwrap();
    let mut filter = |name: &Path, entry: &Entry| {
        assert_eq!((entry.uid, entry.mtime.secs), (7, 1000));
        match name.to_str().unwrap() {
            "out/skip" => Verdict::Skip,
            "out/through" => Verdict::SkipSelf,
            _ => Verdict::Keep,
        }
    };
    let mut options = PackOptions {
        sources: vec![
            Source { path: "".into(), name: "out".into() },
            Source { path: "link/f".into(), name: "renamed".into() },
        ],
        owner: archive::Owner::Fixed { uid: 7, gid: 8 },
        clamp_mtime: Some(1000),
        filter: Some(&mut filter),
        ..Default::default()
    };
    let (tar, stats) = pack(open(root).as_fd(), &mut options, Vec::new()).unwrap();
    assert_eq!(stats.skipped_sockets, 1);
    let to = tempdir();
    apply(to.path(), &tar, Whiteouts::None);
    let expected = ["out", "out/keep", "out/keep/f", "out/link", "out/through/f", "renamed"];
    let mut got = paths(to.path());
    assert!(got.remove("out/through"), "implied");
    assert_eq!(got, expected.map(String::from).into());
    assert_eq!(look(to.path())[Path::new("renamed")].owner, (7, 8));
}

#[test]
fn extraction_into_a_directory_that_a_link_leads_to() {
    let dir = tempdir();
    fs::create_dir_all(dir.path().join("usr/share")).unwrap();
    std::os::unix::fs::symlink("/usr/share", dir.path().join("opt")).unwrap();
    let mut options = ExtractOptions { dest: "/opt/new".into(), ..Default::default() };
    let mut writer = TarWriter::new(Vec::new());
    writer.append(&Entry::new("f", Kind::File { sparse: None }), io::empty()).unwrap();
    let link = Kind::HardLink { target: "f".into() };
    writer.append(&Entry::new("g", link), io::empty()).unwrap();
    extract(&writer.finish().unwrap()[..], open(dir.path()).as_fd(), &mut options).unwrap();
    assert!(dir.path().join("usr/share/new/g").exists());

    let mut options = ExtractOptions { no_overwrite_dir_non_dir: true, ..Default::default() };
    let error = extract(&layer(&["usr"])[..], open(dir.path()).as_fd(), &mut options).unwrap_err();
    assert!(error.to_string().contains("cannot overwrite directory with non-directory"));
    let error = extract(&layer(&["opt/"])[..], open(dir.path()).as_fd(), &mut options).unwrap_err();
    assert!(error.to_string().contains("cannot overwrite non-directory with directory"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..Default::default() })]

    /// lower + diff(lower, upper) = upper, for unrelated trees; and no change gives no entry.
    #[test]
    fn difference_of_two_trees(before in contents(), after in contents()) {
        let (lower, upper, copy) = (tempdir(), tempdir(), tempdir());
        make(lower.path(), &before);
        // Most of the lower tree is in the upper one too.
        make(upper.path(), &after);
        make(upper.path(), &before);
        let mut options = PackOptions { subsecond: true, ..Default::default() };
        let (all, _) = pack(open(lower.path()).as_fd(), &mut options, Vec::new()).unwrap();
        apply(copy.path(), &all, Whiteouts::None);
        let (same, stats) =
            diff_directories(open(lower.path()).as_fd(), open(copy.path()).as_fd(), &mut options, Vec::new())
                .unwrap();
        prop_assert_eq!((same.len(), stats.entries), (1024, 0));
        let changes =
            changes_directories(open(lower.path()).as_fd(), open(copy.path()).as_fd()).unwrap();
        prop_assert!(changes.is_empty());
        let (diff, _) =
            diff_directories(open(copy.path()).as_fd(), open(upper.path()).as_fd(), &mut options, Vec::new())
                .unwrap();
        apply(copy.path(), &diff, Whiteouts::Remove);
        let strip = |root: &Path| {
            let mut seen = look(root);
            // Whether two names that did not change are one file is not looked at.
            seen.values_mut().for_each(|s| s.same_as = None);
            seen
        };
        prop_assert_eq!(strip(copy.path()), strip(upper.path()));
    }
}

/// File systems give the number of an inode that went to the next one that comes.
#[test]
fn what_replaces_a_directory_has_its_own_time_and_mode() {
    let entry = |name: String, kind: Kind, secs: i64, mode: u32| {
        let mut entry = Entry::new(name, kind);
        entry.mtime = Time { secs, nanos: 7 };
        entry.mode = mode;
        entry
    };
    let mut writer = TarWriter::new(Vec::new()).subsecond(true);
    let mut put = |entry: &Entry| writer.append(entry, io::empty()).unwrap();
    const COUNT: i64 = 50;
    for i in 0..COUNT {
        // A mode that is set at the end only.
        put(&entry(format!("d{i}"), Kind::Directory, 1000 + i, 0o444));
        put(&entry(format!("d{i}/below"), Kind::Directory, 2000 + i, 0o555));
    }
    for i in 0..COUNT {
        put(&entry(format!("d{i}"), Kind::File { sparse: None }, 3000 + i, 0o640));
        put(&entry(format!("e{i}"), Kind::Fifo, 4000 + i, 0o600));
    }
    let tar = writer.finish().unwrap();
    for whiteouts in [Whiteouts::None, Whiteouts::Remove, OVERLAY] {
        let dir = tempdir();
        apply(dir.path(), &tar, whiteouts);
        for i in 0..COUNT {
            for (name, secs, mode) in [("d", 3000, 0o640), ("e", 4000, 0o600)] {
                let found = fs::symlink_metadata(dir.path().join(format!("{name}{i}"))).unwrap();
                assert_eq!((found.mtime(), found.mtime_nsec()), (secs + i, 7), "{name}{i}");
                assert_eq!(found.permissions().mode() & 0o7777, mode, "{name}{i}");
            }
        }
    }
}
