use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use store_api::{DiffRequest, Mount, Services, SnapshotKind};
use testkit::random;
use types::ErrorKind;

use super::{assert_kind, labels};

/// What a tree shows: kind, mode, owner and contents by path.
pub type Tree = BTreeMap<PathBuf, (u32, u32, Vec<u8>)>;

/// Runs `work` on the mounted root, in a mount namespace of its own.
pub fn mounted<T: Send + 'static>(
    mounts: &[Mount],
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> T {
    let specs = mounts
        .iter()
        .map(|mount| sys::private_mount::MountSpec {
            kind: mount.kind.clone(),
            source: mount.source.clone(),
            options: mount.options.clone(),
        })
        .collect();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().to_path_buf();
    let root = sys::private_mount::open_tree(specs, path).unwrap();
    let outcome = std::thread::spawn(move || work(&sys::private_mount::proc_path(&root)));
    // The descriptor's path is the thread's own: /proc/thread-self/fd.
    outcome.join().unwrap().unwrap()
}

pub fn tree(mounts: &[Mount]) -> Tree {
    mounted(mounts, |root| {
        let mut tree = Tree::new();
        walk(root, Path::new(""), &mut tree)?;
        Ok(tree)
    })
}

fn walk(root: &Path, below: &Path, tree: &mut Tree) -> io::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let path = below.join(entry?.file_name());
        let full = root.join(&path);
        let metadata = std::fs::symlink_metadata(&full)?;
        let content = if metadata.is_file() {
            std::fs::read(&full)?
        } else if metadata.is_symlink() {
            std::fs::read_link(&full)?.into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        tree.insert(path.clone(), (metadata.mode(), metadata.uid(), content));
        if metadata.is_dir() {
            walk(root, &path, tree)?;
        }
    }
    Ok(())
}

/// Removes whatever is there, if anything is.
fn clear(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        clear(path)?;
        std::fs::create_dir(path)?;
    }
    Ok(())
}

/// Some random changes to a tree: files, directories, removals, replacements, links.
pub fn scramble(root: &Path) -> io::Result<()> {
    for _ in 0..12 {
        let directory = root.join(format!("d{}", random::number(0..4)));
        let path = directory.join(format!("f{}", random::number(0..5)));
        match random::number(0..8) {
            0 => clear(&directory)?,
            1 => {
                make_directory(&directory)?;
                clear(&path)?;
            }
            2 => {
                clear(&directory)?;
                std::fs::create_dir(&directory)?;
                let mode = 0o700 + random::number(0..0o100);
                std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode))?;
            }
            3 => {
                make_directory(&directory)?;
                clear(&path)?;
                std::os::unix::fs::symlink(random::token(5), &path)?;
            }
            4 => {
                clear(&directory)?;
                std::fs::write(&directory, random::token(4))?;
            }
            5 => {
                make_directory(&directory)?;
                clear(&path)?;
                std::fs::create_dir(&path)?;
                std::fs::write(path.join("deep"), random::token(4))?;
            }
            _ => {
                make_directory(&directory)?;
                clear(&path)?;
                std::fs::write(&path, random::bytes(300))?;
            }
        }
    }
    Ok(())
}

/// Prepares, writes and commits one layer.
async fn layer(services: &Services, parent: Option<&str>, name: &str) {
    let key = random::name("work");
    let mounts = services.snapshots.prepare(&key, parent, labels(&[])).await.unwrap();
    mounted(&mounts, scramble);
    services.snapshots.commit(name, &key, labels(&[("layer", name)])).await.unwrap();
}

/// The states of snapshots and what each allows.
pub async fn life(services: &Services) {
    let snapshots = &services.snapshots;
    assert_eq!(snapshots.name(), "overlayfs");
    let (base, key) = (random::name("base"), random::name("key"));
    snapshots.prepare(&key, None, labels(&[("x", "1")])).await.unwrap();
    assert_kind(snapshots.prepare(&key, None, labels(&[])).await, ErrorKind::AlreadyExists);
    let info = snapshots.stat(&key).await.unwrap();
    assert_eq!((info.kind, info.parent), (SnapshotKind::Active, None));
    assert_kind(snapshots.prepare("no", Some(&key), labels(&[])).await, ErrorKind::InvalidArgument);
    assert_kind(snapshots.prepare("no", Some("nix"), labels(&[])).await, ErrorKind::NotFound);
    let mounts = snapshots.mounts(&key).await.unwrap();
    let text = random::token(9);
    let content = text.clone();
    mounted(&mounts, move |root| std::fs::write(root.join("file"), content));
    assert!(snapshots.usage(&key).await.unwrap().inodes >= 2);
    snapshots.commit(&base, &key, labels(&[("l", "1")])).await.unwrap();
    assert_kind(snapshots.stat(&key).await, ErrorKind::NotFound);
    assert_kind(snapshots.mounts(&base).await, ErrorKind::FailedPrecondition);
    let info = snapshots.stat(&base).await.unwrap();
    assert_eq!(info.kind, SnapshotKind::Committed);
    assert_eq!(info.labels, labels(&[("l", "1")]));

    let view = random::name("view");
    let mounts = snapshots.view(&view, Some(&base), labels(&[])).await.unwrap();
    assert_eq!(tree(&mounts)[Path::new("file")].2, text.as_bytes());
    assert_kind(snapshots.commit("no", &view, labels(&[])).await, ErrorKind::FailedPrecondition);
    assert_kind(snapshots.remove(&base).await, ErrorKind::FailedPrecondition);
    let above = random::name("above");
    let mounts = snapshots.prepare(&above, Some(&base), labels(&[])).await.unwrap();
    mounted(&mounts, |root| std::fs::remove_file(root.join("file")));
    assert!(tree(&mounts).is_empty());
    let filter = format!("parent=={base},kind==active");
    assert_eq!(snapshots.list(&[filter]).await.unwrap().len(), 1);
    let (own, parents) = services.extras.usage_with_parents(&above).await.unwrap();
    assert!(own.inodes >= 1 && parents.inodes == 2, "{own:?} {parents:?}");
    for key in [&above, &view, &base] {
        snapshots.remove(key).await.unwrap();
    }
    assert_kind(snapshots.remove(&base).await, ErrorKind::NotFound);
}

/// A random stack of layers, each turned into a tar and applied again elsewhere, shows the same.
pub async fn diffs(services: &Services) {
    let snapshots = &services.snapshots;
    let mut below: Option<String> = None;
    let mut copy: Option<String> = None;
    for i in 0..5 {
        let name = random::name("layer");
        layer(services, below.as_deref(), &name).await;
        let lower = match &below {
            Some(parent) => {
                snapshots.view(&random::name("v"), Some(parent), labels(&[])).await.unwrap()
            }
            None => Vec::new(),
        };
        let upper = snapshots.view(&random::name("v"), Some(&name), labels(&[])).await.unwrap();
        let kinds = ["", "application/vnd.oci.image.layer.v1.tar+zstd"];
        let request = DiffRequest {
            lower: lower.clone(),
            upper: upper.clone(),
            media_type: kinds[i % 2].into(),
            ..DiffRequest::default()
        };
        let descriptor = services.diffs.diff(request.clone()).await.unwrap();
        assert_eq!(services.diffs.diff(request).await.unwrap(), descriptor, "not deterministic");
        let info = services.content.info(&descriptor.digest).await.unwrap();
        let diff_id = info.labels["containerd.io/uncompressed"].clone();

        let key = random::name("copy");
        let mounts = snapshots.prepare(&key, copy.as_deref(), labels(&[])).await.unwrap();
        let applied = services.diffs.apply(&descriptor, &mounts).await.unwrap();
        assert_eq!(applied.digest.to_string(), diff_id);
        assert_eq!(tree(&mounts), tree(&upper));
        let committed = random::name("copied");
        snapshots.commit(&committed, &key, labels(&[])).await.unwrap();
        (below, copy) = (Some(name), Some(committed));
    }
}

/// As many layers as overlay takes: their long names do not fit into a page of mount options.
pub async fn deep(services: &Services) {
    let mut below: Option<String> = None;
    let depth = types::limits::LAYERS + 2;
    for i in 0..depth {
        let (key, name) = (random::name("k"), random::name("n"));
        let parent = below.as_deref();
        services.snapshots.prepare(&key, parent, labels(&[])).await.unwrap();
        if i % 100 == 0 {
            let mounts = services.snapshots.mounts(&key).await.unwrap();
            mounted(&mounts, move |root| std::fs::write(root.join(format!("f{i}")), "x"));
        }
        services.snapshots.commit(&name, &key, labels(&[])).await.unwrap();
        below = Some(name);
    }
    let key = random::name("top");
    let mounts = services.snapshots.prepare(&key, below.as_deref(), labels(&[])).await.unwrap();
    let names: Vec<PathBuf> = tree(&mounts).into_keys().collect();
    assert_eq!(names, ["f0", "f100", "f200", "f300", "f400"].map(PathBuf::from));
    mounted(&mounts, |root| std::fs::write(root.join("own"), "x"));
    let name = random::name("n");
    services.snapshots.commit(&name, &key, labels(&[])).await.unwrap();
    let above = services.snapshots.prepare(&random::name("k"), Some(&name), labels(&[])).await;
    assert_kind(above, ErrorKind::InvalidArgument);
}
