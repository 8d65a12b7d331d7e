//! Archives that nobody would make, and sizes that most never have.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use archive::{Entry, Kind, TarWriter};
use erofs::{Base, Layer, Tree};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{index, mount, mounted, spec, walk};

fn file(writer: &mut TarWriter<Vec<u8>>, name: &str, data: &[u8]) {
    let mut entry = Entry::new(name, Kind::File { sparse: None });
    entry.size = data.len() as u64;
    writer.append(&entry, data).unwrap();
}

#[test]
fn thousands_of_names_in_a_directory() {
    let ground = TempDir::new().unwrap();
    let mut writer = TarWriter::new(Vec::new());
    for i in 0..20_000_u32 {
        let name = format!("d/{}{}", i.wrapping_mul(2_654_435_761), "n".repeat(i as usize % 100));
        file(&mut writer, &name, &i.to_le_bytes());
    }
    let walked = walk::walk(&mounted(&[writer.finish().unwrap()], ground.path()));
    assert_eq!(walked.0.len(), 20_002);
}

#[test]
fn a_file_beyond_four_gigabytes() {
    let ground = TempDir::new().unwrap();
    let size = (5_u64 << 30) + 77;
    // A hole on the disk, an ordinary file in the tar: only its header is written.
    let mut header = TarWriter::new(Vec::new());
    let mut entry = Entry::new("big", Kind::File { sparse: None });
    entry.size = size;
    assert!(header.append(&entry, std::io::empty()).is_err());
    let bare = {
        struct First<'a>(&'a mut Vec<u8>);
        impl std::io::Write for First<'_> {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                if self.0.len() < 4096 {
                    self.0.extend_from_slice(bytes);
                }
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut kept = Vec::new();
        let mut writer = TarWriter::new(First(&mut kept));
        drop(writer.append(&entry, std::io::repeat(0).take(8192)));
        kept.truncate(kept.len() / 512 * 512);
        kept
    };
    let data_at = (0..bare.len() / 512).rev().find(|n| bare[n * 512..][..3] == *b"big").unwrap();
    let data_at = (data_at as u64 + 1) * 512;
    let path = ground.path().join("0.tar");
    let mut tar = File::create(&path).unwrap();
    tar.write_all(&bare[..data_at as usize]).unwrap();
    tar.set_len(data_at + size.next_multiple_of(512) + 1024).unwrap();
    tar.write_at(b"the end", data_at + size - 7).unwrap();
    let layer = erofs::scan(File::open(&path).unwrap(), &mut std::io::sink()).unwrap().layer;
    let mut tree = Tree::new(Base::Nothing);
    tree.add(layer).unwrap();
    erofs::write(&tree, &mut File::create(ground.path().join("index")).unwrap()).unwrap();
    let root = mount(vec![spec(&tree, ground.path())]);
    let seen = File::open(format!("/proc/self/fd/{}/big", root.as_raw_fd())).unwrap();
    assert_eq!(seen.metadata().unwrap().len(), size);
    let mut end = [1; 9];
    let n = seen.read_at(&mut end, size - 8).unwrap();
    assert_eq!(&end[..n], b"\0the end");
}

#[test]
fn an_archive_that_ends_with_its_data() {
    let ground = TempDir::new().unwrap();
    let mut writer = TarWriter::new(Vec::new());
    file(&mut writer, "last", b"word");
    let mut tar = writer.finish().unwrap();
    tar.truncate(1024);
    let root = mounted(&[tar.clone()], ground.path());
    let read = fs::read(format!("/proc/self/fd/{}/last", root.as_raw_fd())).unwrap();
    assert_eq!(read, b"word");
    // Without its padding the kernel could not read the last block.
    tar.truncate(512 + 4);
    assert!(matches!(index(&tar, ground.path(), 0), Err(erofs::Error::Unsupported { .. })));
}

#[test]
fn damaged_contents_are_told() {
    let ground = TempDir::new().unwrap();
    let mut writer = TarWriter::new(Vec::new());
    file(&mut writer, "a/b", b"c");
    let layer = index(&writer.finish().unwrap(), ground.path(), 0).unwrap();
    let mut bytes = Vec::new();
    layer.encode(&mut bytes).unwrap();
    for i in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[i] ^= 1;
        assert!(Layer::decode(&bad).is_err());
        assert!(Layer::decode(&bytes[..i]).is_err());
    }
}

fn valid() -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (name, kind) in [
        ("d/", Kind::Directory),
        ("s", Kind::Symlink { target: "d".into() }),
        ("s/.wh.x", Kind::File { sparse: None }),
        ("s/p", Kind::Fifo),
        ("d/.wh..wh..opq", Kind::File { sparse: None }),
    ] {
        writer.append(&Entry::new(name, kind), std::io::empty()).unwrap();
    }
    file(&mut writer, "d/f", &[7; 700]);
    let link = Entry::new("l", Kind::HardLink { target: "d/f".into() });
    writer.append(&link, std::io::empty()).unwrap();
    writer.finish().unwrap()
}

/// Puts the sum of a header's bytes where it belongs, so that a change is not merely a wrong sum.
fn seal(tar: &mut [u8], block: usize) {
    let Some(header) = tar.chunks_exact_mut(512).nth(block) else { return };
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_archive_fails_or_mounts(
        changes in proptest::collection::vec((0..9_usize, 0..512_usize, any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let ground = TempDir::new().unwrap();
        let mut tar = valid();
        for (block, at, byte) in changes {
            if let Some(slot) = tar.get_mut(block * 512 + at) {
                *slot = byte;
            }
            seal(&mut tar, block);
        }
        if !whole {
            tar.truncate(cut.index(tar.len()));
        }
        if let Ok(layer) = index(&tar, ground.path(), 0) {
            let tree = crate::image(&[layer], Base::Nothing, ground.path()).unwrap();
            walk::walk(&mount(vec![spec(&tree, ground.path())]));
        }
    }
}
