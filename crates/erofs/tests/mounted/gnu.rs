//! Random directories, packed by GNU tar, against its own extraction of the same archive.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use proptest::prelude::*;
use tempfile::TempDir;

use crate::{mounted, walk};

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn populate(root: &Path, draws: &[(u8, u8, u32)]) {
    let mut directories = vec![root.to_path_buf()];
    let mut files = Vec::new();
    for (i, (kind, place, n)) in draws.iter().enumerate() {
        let parent = directories[usize::from(*place) % directories.len()].clone();
        let long = "n".repeat(*n as usize % 230);
        let path = parent.join(format!("{i}-{long}"));
        match kind {
            0..=2 => {
                fs::create_dir(&path).unwrap();
                directories.push(path.clone());
            }
            3 => symlink("x".repeat(*n as usize % 1000 + 1), &path).unwrap(),
            4 if !files.is_empty() => {
                let from: &std::path::PathBuf = &files[*n as usize % files.len()];
                fs::hard_link(from, &path).unwrap();
            }
            5 => run(Command::new("mkfifo").arg(&path)),
            6 => {
                let file = File::create(&path).unwrap();
                file.set_len(u64::from(*n % 3_000_000)).unwrap();
                for k in 0..*n % 5 {
                    let at = u64::from(n.wrapping_mul(k + 7) % 2_000_000);
                    file.write_at(&[k as u8 + 1; 5000], at).unwrap();
                }
            }
            _ => {
                let data: Vec<u8> = (0..*n % 20_000).map(|i| (i * 7 + *n) as u8).collect();
                fs::write(&path, data).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(n & 0o7777)).unwrap();
                files.push(path.clone());
            }
        }
        let time = std::time::UNIX_EPOCH
            + std::time::Duration::new(u64::from(*n % 1_600_000_000), *n % 1_000_000_000);
        if !matches!(kind, 3 | 5) {
            File::open(&path).unwrap().set_modified(time).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn archives_of_gnu_tar(
        draws in proptest::collection::vec((0..12_u8, any::<u8>(), any::<u32>()), 0..60),
        format in prop_oneof![Just("gnu"), Just("posix")],
        sparse in any::<bool>(),
    ) {
        let ground = TempDir::new().unwrap();
        let (from, to) = (ground.path().join("from"), ground.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        populate(&from, &draws);
        let tar = ground.path().join("all.tar");
        let mut pack = Command::new("tar");
        pack.arg("-cf").arg(&tar).arg("--format").arg(format).arg("-C").arg(&from).arg(".");
        if sparse {
            pack.arg("--sparse");
        }
        run(&mut pack);
        run(Command::new("tar").arg("-xpf").arg(&tar).arg("-C").arg(&to));
        let found = walk::walk(&mounted(&[fs::read(&tar).unwrap()], ground.path()));
        let expected = walk::walk(&File::open(&to).unwrap().into());
        walk::assert_same(&expected, &found);
    }
}
