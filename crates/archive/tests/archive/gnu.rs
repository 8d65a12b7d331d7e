//! Against GNU tar, both ways.

use std::{
    fs,
    io::{Cursor, Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use archive::{
    Compression, Encoding, ExtractOptions, Kind, Limits, PackOptions, TarReader, compress,
    decompress, extract, pack,
};
use proptest::prelude::*;

use crate::tree::{Listing, contents, look, make, open, sparse_file};

/// Runs a program with `input` and gives its output.
pub(crate) fn run(program: &str, args: &[&str], dir: &Path, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(output.status.success(), "{program} {args:?}");
    output.stdout
}

fn whole_seconds(mut listing: Listing) -> Listing {
    for seen in listing.values_mut() {
        seen.mtime.1 = 0;
    }
    listing
}

fn pack_bytes(root: &Path, subsecond: bool) -> Vec<u8> {
    let mut options = PackOptions { subsecond, ..Default::default() };
    pack(std::os::fd::AsFd::as_fd(&open(root)), &mut options, Vec::new()).unwrap().0
}

fn extract_bytes(root: &Path, tar: &[u8]) {
    let fd = open(root);
    extract(tar, std::os::fd::AsFd::as_fd(&fd), &mut ExtractOptions::default()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..Default::default() })]

    #[test]
    fn ours_to_ours_and_to_gnu(tree in contents()) {
        let (from, to, gnu) = (tempdir(), tempdir(), tempdir());
        make(from.path(), &tree);
        let expected = look(from.path());
        let tar = pack_bytes(from.path(), true);
        prop_assert_eq!(&tar, &pack_bytes(from.path(), true), "not deterministic");
        extract_bytes(to.path(), &tar);
        prop_assert_eq!(&look(to.path()), &expected);
        run("tar", &["-xpf", "-", "--xattrs", "--xattrs-include=*", "--numeric-owner"],
            gnu.path(), &tar);
        prop_assert_eq!(&look(gnu.path()), &expected);
        // A second time onto what is there.
        extract_bytes(to.path(), &tar);
        prop_assert_eq!(&look(to.path()), &expected);
        let coarse = tempdir();
        extract_bytes(coarse.path(), &pack_bytes(from.path(), false));
        prop_assert_eq!(look(coarse.path()), whole_seconds(expected));
    }

    #[test]
    fn gnu_to_ours(tree in contents(), format in 0..2) {
        let (from, to) = (tempdir(), tempdir());
        make(from.path(), &tree);
        let expected = look(from.path());
        let tar = if format == 0 {
            run("tar", &["-cf", "-", "--format=posix", "--xattrs", "--xattrs-include=*", "."],
                from.path(), b"")
        } else {
            run("tar", &["-cf", "-", "--format=gnu", "."], from.path(), b"")
        };
        extract_bytes(to.path(), &tar);
        let mut got = look(to.path());
        let mut expected = expected;
        if format == 1 {
            expected = whole_seconds(expected);
            for seen in expected.values_mut() { seen.xattrs.clear(); }
            got = whole_seconds(got);
        }
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn compression_round_trips(data in proptest::collection::vec(any::<u8>(), 0..5000), split in 0usize..5000) {
        let split = split.min(data.len());
        for (encoding, kind) in [
            (Encoding::Gzip { level: 6 }, Compression::Gzip),
            (Encoding::Zstd { level: 3 }, Compression::Zstd),
        ] {
            // Two members in a row are one stream.
            let mut packed = Vec::new();
            for part in [&data[..split], &data[split..]] {
                let mut w = compress(Vec::new(), encoding).unwrap();
                w.write_all(part).unwrap();
                packed.extend(w.finish().unwrap());
            }
            let mut reader = decompress(Cursor::new(&packed)).unwrap();
            prop_assert_eq!(reader.compression(), kind);
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            prop_assert_eq!(&got, &data);
            // Every truncation is an error or, between the members, shorter data.
            let cut = packed.len() - 1;
            let mut reader = decompress(Cursor::new(&packed[..cut])).unwrap();
            prop_assert!(reader.read_to_end(&mut Vec::new()).is_err());
        }
    }
}

fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn foreign_compressors_are_read_and_truncation_is_seen() {
    let data: Vec<u8> = (0..300_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
    let dir = tempdir();
    for (program, kind) in [
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
        ("xz", Compression::Xz),
        ("bzip2", Compression::Bzip2),
    ] {
        let packed = run(program, &["-c"], dir.path(), &data);
        let mut reader = decompress(&packed[..]).unwrap();
        assert_eq!(reader.compression(), kind);
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert!(got == data, "{program}");
        for cut in [packed.len() - 1, packed.len() / 2, 20] {
            let mut reader = decompress(&packed[..cut]).unwrap();
            assert!(reader.read_to_end(&mut Vec::new()).is_err(), "{program} cut at {cut}");
        }
        let twice = [&packed[..], &packed[..]].concat();
        let mut got = Vec::new();
        decompress(&twice[..]).unwrap().read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), 2 * data.len(), "{program} twice");
    }
    let big_window = run("zstd", &["-c", "--ultra", "--long=30"], dir.path(), &data);
    let mut got = Vec::new();
    let result = decompress(&big_window[..]).unwrap().read_to_end(&mut got);
    // zstd shrinks the window of data whose size it knows; a stream it does not.
    assert!(result.is_err() || got == data);
}

#[test]
fn sparse_files_of_all_formats() {
    let dir = tempdir();
    let file = dir.path().join("sparse");
    let mut pieces: Vec<(u64, &[u8])> = vec![(0, b"begin"), (1 << 20, b"middle")];
    for i in 2..60 {
        pieces.push((i << 20, b"one of many"));
    }
    sparse_file(&file, &pieces, 64 << 20);
    sparse_file(&dir.path().join("hole"), &[], 3 << 20);
    let expected = look(dir.path());
    for args in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let mut all = vec!["-cSf", "-"];
        all.extend(args);
        all.push(".");
        let tar = run("tar", &all, dir.path(), b"");
        assert!(tar.len() < 2 << 20, "{args:?}: GNU tar did not make it sparse");
        let to = tempdir();
        extract_bytes(to.path(), &tar);
        assert_eq!(whole_seconds(look(to.path())), whole_seconds(expected.clone()), "{args:?}");
        use std::os::unix::fs::MetadataExt;
        assert!(fs::metadata(to.path().join("sparse")).unwrap().blocks() < 4096, "holes filled");
        // The contents with zeros, as a reader.
        let mut reader = TarReader::new(&tar[..], Limits::default());
        while let Some(entry) = reader.next_entry().unwrap() {
            if matches!(entry.kind, Kind::File { .. }) {
                assert!(matches!(entry.kind, Kind::File { sparse: Some(_) }));
                let mut data = Vec::new();
                reader.contents(&entry).read_to_end(&mut data).unwrap();
                assert!(data == fs::read(dir.path().join(&entry.name)).unwrap());
            }
        }
    }
}

#[test]
fn positions_lead_to_the_data() {
    let dir = tempdir();
    fs::write(dir.path().join("a"), b"first").unwrap();
    fs::write(dir.path().join("b".repeat(200)), b"second").unwrap();
    let tar = pack_bytes(dir.path(), true);
    let mut reader = TarReader::new(&tar[..], Limits::default());
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let at = usize::try_from(entry.position.data).unwrap();
        let len = usize::try_from(entry.position.stored).unwrap();
        found.push(tar[at..at + len].to_vec());
    }
    assert_eq!(found, [b"first".to_vec(), b"second".to_vec()]);
    assert!(reader.finish().unwrap().is_empty());
}
