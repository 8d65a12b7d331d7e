//! Indexes as the kernel shows them, against directories that hold the same.
//!
//! Mounts are made in a mount namespace of a thread and held by descriptors: nobody else sees them, and
//! nothing stays behind. They need root.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod gnu;
mod layers;
mod odd;
mod walk;

use std::{fs::File, io::Write as _, os::fd::OwnedFd, path::Path};

use erofs::{Base, Layer, Part, Tree};
use sys::private_mount::{MountSpec, open_tree};
use tempfile::TempDir;

/// Reads a tar into `N.tar` and `N.extra` of a directory.
pub(crate) fn index(tar: &[u8], directory: &Path, n: usize) -> erofs::Result<Layer> {
    std::fs::write(directory.join(format!("{n}.tar")), tar).unwrap();
    let mut extra = File::create(directory.join(format!("{n}.extra"))).unwrap();
    let scanned = erofs::scan(tar, &mut extra)?;
    assert_eq!(scanned.layer.tar_bytes(), tar.len() as u64);
    assert_eq!(scanned.layer.extra_bytes(), extra.metadata().unwrap().len());
    let mut bytes = Vec::new();
    scanned.layer.encode(&mut bytes).unwrap();
    let again = Layer::decode(&bytes).unwrap();
    assert_eq!(again, scanned.layer);
    Ok(again)
}

pub(crate) fn image(layers: &[Layer], base: Base, directory: &Path) -> erofs::Result<Tree> {
    let mut tree = Tree::new(base);
    for layer in layers {
        tree.add(layer.clone())?;
    }
    let mut bytes = Vec::new();
    erofs::write(&tree, &mut bytes)?;
    assert_eq!(bytes.len() % 512, 0);
    let mut again = Vec::new();
    erofs::write(&tree, &mut again)?;
    assert!(bytes == again, "the same tree gave two images");
    File::create(directory.join("index")).unwrap().write_all(&bytes).unwrap();
    Ok(tree)
}

/// The words for mount(8).
pub(crate) fn spec(tree: &Tree, directory: &Path) -> MountSpec {
    let mut options = vec!["ro".to_string()];
    for (layer, part) in tree.devices() {
        let part = if part == Part::Tar { "tar" } else { "extra" };
        options.push(format!("device={}/{layer}.{part}", directory.display()));
    }
    let source = directory.join("index").to_str().unwrap().to_string();
    MountSpec { kind: "erofs".into(), source, options }
}

pub(crate) fn mount(specs: Vec<MountSpec>) -> OwnedFd {
    let scratch = TempDir::new().unwrap();
    open_tree(specs, scratch.path().to_path_buf()).unwrap()
}

/// What the kernel shows of the layers, the lowest first.
pub(crate) fn mounted(tars: &[Vec<u8>], directory: &Path) -> OwnedFd {
    let layers: Vec<Layer> =
        tars.iter().enumerate().map(|(n, tar)| index(tar, directory, n).unwrap()).collect();
    let tree = image(&layers, Base::Nothing, directory).unwrap();
    mount(vec![spec(&tree, directory)])
}

pub(crate) fn overlay(lowers: &[&Path]) -> MountSpec {
    let lowers: Vec<&str> = lowers.iter().map(|path| path.to_str().unwrap()).collect();
    MountSpec {
        kind: "overlay".into(),
        source: "overlay".into(),
        options: vec!["ro".into(), format!("lowerdir={}", lowers.join(":"))],
    }
}
