//! Archives that want out of their root, or to be understood in two ways.

use std::{
    fs,
    io::{self, Read},
    os::fd::AsFd,
    path::Path,
};

use archive::{
    Devices, Entry, Error, ExtractOptions, ExtractStats, Kind, Limits, Owner, Problem, TarReader,
    TarWriter, Whiteouts, extract,
};

use crate::{
    gnu::run,
    tree::{look, open},
};

/// A root beside a canary that must not change.
struct Cage {
    dir: tempfile::TempDir,
    before: String,
}

impl Cage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("canary")).unwrap();
        fs::write(dir.path().join("canary/file"), b"alive").unwrap();
        let before = format!("{:?}", look(&dir.path().join("canary")));
        Self { dir, before }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }

    fn canary(&self) -> std::path::PathBuf {
        self.dir.path().join("canary")
    }

    fn try_extract(&self, tar: &[u8], whiteouts: Whiteouts) -> Result<ExtractStats, Error> {
        let mut options = ExtractOptions { whiteouts, ..Default::default() };
        let result = extract(tar, open(&self.root()).as_fd(), &mut options);
        assert_eq!(format!("{:?}", look(&self.canary())), self.before, "the canary changed");
        let mut names: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["canary", "root"], "something escaped");
        result
    }
}

fn tar(entries: &[(&str, Kind, &[u8])]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (name, kind, data) in entries {
        let mut entry = Entry::new(*name, kind.clone());
        entry.size = data.len() as u64;
        writer.append(&entry, *data).unwrap();
    }
    writer.finish().unwrap()
}

fn file() -> Kind {
    Kind::File { sparse: None }
}

fn symlink(target: impl AsRef<Path>) -> Kind {
    Kind::Symlink { target: target.as_ref().to_owned() }
}

fn hard_link(target: impl AsRef<Path>) -> Kind {
    Kind::HardLink { target: target.as_ref().to_owned() }
}

const MODES: [Whiteouts; 3] =
    [Whiteouts::None, Whiteouts::Overlay { userxattr: false }, Whiteouts::Remove];

#[test]
fn parent_names_are_refused() {
    for name in ["../canary/file", "a/../../canary/file", "..", "a/..", "/../canary/x"] {
        for mode in MODES {
            let cage = Cage::new();
            let error = cage.try_extract(&tar(&[(name, file(), b"dead")]), mode).unwrap_err();
            assert!(
                matches!(error, Error::Entry { problem: Problem::ParentInName, .. }),
                "{error:?}"
            );
        }
    }
    let cage = Cage::new();
    let evil = tar(&[("x", hard_link("../canary/file"), b"")]);
    assert!(cage.try_extract(&evil, Whiteouts::None).is_err());
}

#[test]
fn absolute_names_and_links_stay_inside() {
    for mode in MODES {
        let cage = Cage::new();
        let canary = cage.canary();
        let out = canary.join("new");
        let entries = [
            (out.to_str().unwrap(), file(), &b"in"[..]),
            ("abs", symlink(&canary), b""),
            ("abs/file", file(), b"in"),
            ("rel", symlink("../../../../../../../../../../../../tmp"), b""),
            ("rel/through-relative-link", file(), b"in"),
            ("dangling", symlink("/not/yet/there"), b""),
            ("dangling/file", file(), b"in"),
        ];
        cage.try_extract(&tar(&entries), mode).unwrap();
        let inner = cage.root().join(canary.strip_prefix("/").unwrap());
        assert_eq!(fs::read(inner.join("new")).unwrap(), b"in");
        assert_eq!(fs::read(inner.join("file")).unwrap(), b"in");
        assert_eq!(fs::read(cage.root().join("tmp/through-relative-link")).unwrap(), b"in");
        assert_eq!(fs::read(cage.root().join("not/yet/there/file")).unwrap(), b"in");
        assert!(!Path::new("/tmp/through-relative-link").exists());
    }
}

#[test]
fn links_in_the_place_of_the_target_are_replaced_not_followed() {
    let cage = Cage::new();
    let canary = cage.canary();
    let entries = [
        ("a", symlink(canary.join("file")), &b""[..]),
        ("a", file(), b"mine"),
        ("d", symlink(&canary), b""),
        ("d", Kind::Directory, b""),
        ("d/file", file(), b"mine"),
        ("h", symlink(canary.join("file")), b""),
        ("hh", hard_link("h"), b""),
        ("hh", file(), b"mine"),
    ];
    cage.try_extract(&tar(&entries), Whiteouts::None).unwrap();
    assert_eq!(fs::read(cage.root().join("a")).unwrap(), b"mine");
    assert!(fs::symlink_metadata(cage.root().join("d")).unwrap().is_dir());
    assert!(fs::symlink_metadata(cage.root().join("h")).unwrap().is_symlink());
}

#[test]
fn hard_links_through_links_stay_inside() {
    let cage = Cage::new();
    let entries = [("up", symlink(cage.canary()), &b""[..]), ("stolen", hard_link("up/file"), b"")];
    assert!(cage.try_extract(&tar(&entries), Whiteouts::None).is_err());
    assert!(!cage.root().join("stolen").exists());
    let cage = Cage::new();
    let entries = [("up", symlink("../canary"), &b""[..]), ("stolen", hard_link("up/file"), b"")];
    assert!(cage.try_extract(&tar(&entries), Whiteouts::None).is_err());
}

#[test]
fn the_root_cannot_become_something_else() {
    for kind in [symlink("/etc"), file(), hard_link("x"), Kind::Fifo] {
        for name in [".", "./", "/", "././"] {
            if name.ends_with('/') {
                // Only a directory's name is written with a slash at its end.
                continue;
            }
            let cage = Cage::new();
            let error =
                cage.try_extract(&tar(&[(name, kind.clone(), b"")]), Whiteouts::None).unwrap_err();
            assert!(
                matches!(error, Error::Entry { problem: Problem::RootNotDirectory, .. }),
                "{error:?}"
            );
        }
    }
}

#[test]
fn odd_whiteouts_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh...", ".wh.a/b", ".wh..wh..opq/x"] {
        for mode in &MODES[1..] {
            let cage = Cage::new();
            let error = cage.try_extract(&tar(&[(name, file(), b"")]), *mode).unwrap_err();
            assert!(
                matches!(error, Error::Entry { problem: Problem::WhiteoutName, .. }),
                "{name}: {error:?}"
            );
        }
    }
    let cage = Cage::new();
    let entries = [("up", symlink(cage.canary()), &b""[..]), ("up/.wh.file", file(), b"")];
    cage.try_extract(&tar(&entries), Whiteouts::Remove).unwrap();
    let entries = [("up/.wh..wh..opq", file(), &b""[..])];
    cage.try_extract(&tar(&entries), Whiteouts::Remove).unwrap();
}

#[test]
fn overlay_attributes_are_left_out() {
    let mut writer = TarWriter::new(Vec::new());
    let mut entry = Entry::new("d", Kind::Directory);
    for name in [
        "trusted.overlay.opaque",
        "user.overlay.opaque",
        "trusted.overlay.redirect",
        "security.selinux",
        "user.kept",
    ] {
        entry.xattrs.insert(name.into(), b"y".to_vec());
    }
    writer.append(&entry, io::empty()).unwrap();
    let tar = writer.finish().unwrap();
    for mode in MODES {
        let cage = Cage::new();
        let stats = cage.try_extract(&tar, mode).unwrap();
        assert_eq!(stats.skipped_xattrs, 4);
        let seen = look(&cage.root());
        let names: Vec<_> = seen[Path::new("d")].xattrs.keys().cloned().collect();
        assert_eq!(names, ["user.kept"]);
    }
}

#[test]
fn devices_follow_the_policy() {
    let null = Kind::CharDevice { major: 1, minor: 3 };
    let bytes = tar(&[("null", null, b""), ("after", file(), b"x")]);
    let with = |devices| {
        let cage = Cage::new();
        let mut options = ExtractOptions { devices, ..Default::default() };
        let result = extract(&bytes[..], open(&cage.root()).as_fd(), &mut options);
        (look(&cage.root()).len(), result)
    };
    assert_eq!(with(Devices::Create).0, 2);
    let (count, result) = with(Devices::Skip);
    assert_eq!((count, result.unwrap().skipped_devices), (1, 1));
    assert!(with(Devices::Refuse).1.is_err());
    let cage = Cage::new();
    let zero = tar(&[("w", Kind::CharDevice { major: 0, minor: 0 }, b"")]);
    assert!(cage.try_extract(&zero, Whiteouts::Overlay { userxattr: false }).is_err());
}

#[test]
fn limits_hold() {
    let entries: Vec<_> = (0..20).map(|i| (format!("f{i}"), file(), vec![1u8; 100])).collect();
    let borrowed: Vec<_> =
        entries.iter().map(|(n, k, d)| (n.as_str(), k.clone(), d.as_slice())).collect();
    let bytes = tar(&borrowed);
    let with = |limits| {
        let cage = Cage::new();
        let mut options = ExtractOptions { limits, ..Default::default() };
        extract(&bytes[..], open(&cage.root()).as_fd(), &mut options)
    };
    let few = Limits { entries: 19, ..Default::default() };
    assert!(matches!(with(few), Err(Error::Limit { what: "entries", .. })));
    let small = Limits { total_bytes: 1999, ..Default::default() };
    assert!(matches!(with(small), Err(Error::Limit { what: "bytes of data", .. })));
    assert!(with(Limits { entries: 20, total_bytes: 2000, ..Default::default() }).is_ok());

    let names: Vec<String> = (0..20).map(|i| format!("{}{i}", "d".repeat(100))).collect();
    let directories: Vec<_> =
        names.iter().map(|name| (name.as_str(), Kind::Directory, &b""[..])).collect();
    let bytes = tar(&directories);
    let cage = Cage::new();
    let limits = Limits { remembered_bytes: 20 * 228, ..Default::default() };
    let mut options = ExtractOptions { limits, ..Default::default() };
    let extracted = extract(&bytes[..], open(&cage.root()).as_fd(), &mut options);
    assert!(matches!(extracted, Err(Error::Limit { what: "bytes of directory names", .. })));

    let long = tar(&[(&"n".repeat(5000), file(), b"")]);
    let error = TarReader::new(&long[..], Limits::default()).next_entry().unwrap_err();
    assert!(matches!(error, Error::Limit { what: "bytes in a name", .. }), "{error:?}");
    let mut huge = Entry::new("x", file());
    huge.xattrs.insert("user.x".into(), vec![0; 2 << 20]);
    let mut writer = TarWriter::new(Vec::new());
    writer.append(&huge, io::empty()).unwrap();
    let bytes = writer.finish().unwrap();
    let error = TarReader::new(&bytes[..], Limits::default()).next_entry().unwrap_err();
    assert!(matches!(error, Error::Limit { what: "bytes in an extension header", .. }));
}

#[test]
fn unmapped_owners_are_refused() {
    let mut entry = Entry::new("x", file());
    entry.uid = 70_000;
    let mut writer = TarWriter::new(Vec::new());
    writer.append(&entry, io::empty()).unwrap();
    let bytes = writer.finish().unwrap();
    let range = vec![archive::IdRange { from: 0, to: 500_000, count: 65_536 }];
    let cage = Cage::new();
    let owner = Owner::Map { uids: range.clone(), gids: range };
    let mut options = ExtractOptions { owner, ..Default::default() };
    let error = extract(&bytes[..], open(&cage.root()).as_fd(), &mut options).unwrap_err();
    assert!(matches!(error, Error::Entry { problem: Problem::UnmappedOwner(70_000), .. }));
}

/// A header block by hand.
fn header(name: &str, typeflag: u8, size: &str) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..124 + size.len()].copy_from_slice(size.as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(mut data: Vec<u8>) -> Vec<u8> {
    data.resize(data.len().div_ceil(512) * 512, 0);
    data
}

fn pax(records: &str) -> Vec<u8> {
    let mut out = header("pax", b'x', &format!("{:011o}", records.len()));
    out.extend(padded(records.as_bytes().to_vec()));
    out
}

fn names(tar: &[u8]) -> Result<Vec<String>, Error> {
    let mut reader = TarReader::new(tar, Limits::default());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        names.push(entry.name.to_str().unwrap().to_owned());
    }
    Ok(names)
}

/// Both views of an archive are equal, or ours is a refusal.
fn like_gnu(tar: &[u8]) -> Option<Vec<String>> {
    let ours = names(tar).ok()?;
    let listed = run("tar", &["-tf", "-"], Path::new("/"), tar);
    let theirs: Vec<_> =
        String::from_utf8(listed).unwrap().lines().map(ToOwned::to_owned).collect();
    assert_eq!(ours, theirs);
    Some(ours)
}

#[test]
fn pax_size_and_header_size() {
    let inner = [header("inner", b'0', "00000000000"), vec![0; 1024]].concat();
    let end = vec![0; 1024];
    // PAX says 1536, the header 0: a reader that believes the header finds "inner".
    let one = [
        pax("13 size=1536\n"),
        header("outer", b'0', "00000000000"),
        padded(inner.clone()),
        header("last", b'0', "00000000000"),
        end.clone(),
    ]
    .concat();
    assert_eq!(like_gnu(&one).unwrap(), ["outer", "last"]);
    // PAX says 0, the header 1536: a reader that believes the header skips "inner".
    let two =
        [pax("10 size=0\n"), header("outer", b'0', "00000003000"), padded(inner), end.clone()]
            .concat();
    assert_eq!(like_gnu(&two).unwrap(), ["outer", "inner"]);
    // Types without data that claim some.
    for typeflag in [b'2', b'3', b'4', b'5', b'6'] {
        let mut block = header("x", typeflag, "00000001000");
        if typeflag == b'2' {
            block[157] = b'y';
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let bytes = [block, header("hidden", b'0', "00000000000"), end.clone()].concat();
        assert!(names(&bytes).is_err(), "type {typeflag}");
    }
}

#[test]
fn ambiguous_archives_are_refused() {
    let end = vec![0; 1024];
    let plain = header("a", b'0', "00000000000");
    let refused = [
        ("two pax headers", [pax("10 size=0\n"), pax("10 size=0\n"), plain.clone()].concat()),
        ("pax at the end", [pax("10 size=0\n"), end.clone()].concat()),
        ("lone zero block", [vec![0; 512], plain.clone(), end.clone()].concat()),
        ("bad number", [header("a", b'0', "0000000000x"), end.clone()].concat()),
        ("leading zero byte", [header("a", b'0', "\x000000001000"), end.clone()].concat()),
        ("unknown type", [header("a", b'Z', "00000000000"), end.clone()].concat()),
        ("malformed pax", [pax("99 size=0\n"), plain.clone()].concat()),
        ("negative size", [pax("11 size=-1\n"), plain.clone()].concat()),
        ("zero byte in path", [pax("10 path=\0\n"), plain.clone()].concat()),
        ("empty name", [header("", b'0', "00000000000"), end.clone()].concat()),
        ("data of a slash name", [header("a/", b'0', "00000000001"), vec![0; 512]].concat()),
    ];
    for (what, bytes) in refused {
        assert!(names(&bytes).is_err(), "{what}");
    }
    let mut flipped = [plain, end].concat();
    flipped[0] ^= 1;
    assert!(matches!(names(&flipped), Err(Error::Header { problem: Problem::Checksum, .. })));
}

#[test]
fn every_truncation_is_seen() {
    let bytes = tar(&[("a", file(), &[1; 700]), ("b", file(), b"x")]);
    let whole = names(&bytes).unwrap();
    let read = |bytes: &[u8]| -> Result<usize, Error> {
        let cage = Cage::new();
        cage.try_extract(bytes, Whiteouts::None).map(|s| usize::try_from(s.entries).unwrap())
    };
    assert_eq!(read(&bytes).unwrap(), whole.len());
    for cut in (1..bytes.len() - 1024).step_by(97) {
        // At a header's boundary the archive simply ends, as for GNU tar.
        let at_boundary = cut == 512 + 1024;
        assert_eq!(read(&bytes[..cut]).is_ok(), at_boundary, "cut at {cut}");
    }
}

#[test]
fn a_huge_size_is_refused_before_its_data() {
    let bytes = [header("zeros", b'0', "77777777777"), vec![0; 4096]].concat();
    let limits = Limits { total_bytes: 1 << 20, ..Default::default() };
    let error = TarReader::new(&bytes[..], limits).next_entry().unwrap_err();
    assert!(matches!(error, Error::Limit { .. }));
}

#[test]
fn nested_tars_are_data() {
    let inner = tar(&[("inner", file(), b"x")]);
    let bytes = tar(&[("nested.tar", file(), &inner), ("last", file(), b"y")]);
    assert_eq!(like_gnu(&bytes).unwrap(), ["nested.tar", "last"]);
    let mut reader = TarReader::new(&bytes[..], Limits::default());
    reader.next_entry().unwrap();
    let mut part = [0; 10];
    reader.data().read_exact(&mut part).unwrap();
    assert_eq!(reader.next_entry().unwrap().unwrap().name, Path::new("last"));
}
