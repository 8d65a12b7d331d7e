//! What a collection of garbage cannot remove keeps it from nothing else, and goes with the next one.

use std::path::Path;

use crate::{
    check,
    ground::Ground,
    open,
    scenario::{LOADED, Step},
    suite::registry::Registry,
};

/// Each of the first removals of a collection fails once, as does the flush in front of them.
pub fn goes_on(ground: &Ground) {
    let registry = Registry::start();
    let input = crate::prepare(ground, &registry);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for at in ["blob.remove:1", "blob.remove:3", "trash.put:1", "trash.put:2", "db.commit:1+"] {
        eprintln!("{at}");
        let path = ground.path.join("victim");
        runtime.block_on(async {
            let (store, services) = open(&path, ground.layers).await;
            input.run(&services, Step::Load).await.unwrap();
            store.flush().await.unwrap();
            let before = left(&path);
            assert!(before.0 > 2 && before.1 > 1, "{before:?}");
            faults::arm(&format!("{at}:eio")).unwrap();
            // It collects before it returns. The image is gone, whatever of it stays for now.
            services.images.delete(LOADED, true).await.unwrap();
            assert!(faults::disarm() > 0, "{at}");
            match at.split_once(':').unwrap().0 {
                "blob.remove" => assert_eq!(left(&path), (1, 0)),
                "trash.put" => assert_eq!(left(&path), (0, 1)),
                _ => assert_eq!(left(&path), before),
            }
            // Also without anything new to be collected.
            services.extras.collect_garbage().await.unwrap();
            assert_eq!(left(&path), (0, 0), "{at}");
            check::clean(&path, &store, &services).await;
        });
        std::fs::remove_dir_all(&path).unwrap();
    }
}

/// Blobs and directories of snapshots.
fn left(path: &Path) -> (usize, usize) {
    let count = |of: &str| check::names(&path.join("root").join(of)).len();
    (count("content/blobs/sha256"), count("snapshots"))
}
