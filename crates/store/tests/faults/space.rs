//! No room, no descriptors: what is asked for fails and says why, and the store goes on.

use std::{collections::BTreeSet, io::Write as _, path::Path};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use store::LayerForm;
use store_api::Services;
use types::ErrorKind;

use crate::{
    check,
    ground::{Ground, Kind, disk, run},
    open,
    scenario::{Input, Step},
    suite::registry::Registry,
};

/// Bytes of the disk that fills up: the whole scenario needs some 5 MB.
const DISK_BYTES: u64 = 24 << 20;

/// Takes every step; those that succeeded. What failed has to say so: `words`, one of them.
async fn tried(services: &Services, input: &Input, words: &[&str]) -> (BTreeSet<Step>, usize) {
    let (mut done, mut failed) = (BTreeSet::new(), 0);
    for step in Step::ALL {
        match input.run(services, step).await {
            Ok(()) => drop(done.insert(step)),
            // What an earlier step should have made.
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                failed += 1;
                let message = error.message.to_lowercase();
                let says = words.iter().any(|word| message.contains(&word.to_lowercase()));
                assert!(says, "{step:?}: {error}, which does not say what is the matter");
                if words.contains(&"No space left") {
                    assert_eq!(error.kind, ErrorKind::ResourceExhausted, "{step:?}: {error}");
                }
            }
        }
    }
    (done, failed)
}

/// Each write of the scenario fails once, without room and with an error of the disk.
pub fn every_write(ground: &Ground) {
    let registry = Registry::start();
    let input = crate::prepare(ground, &registry);
    let passes = ground.trace("trace", false, |_| {});
    let writes: Vec<_> = passes.into_iter().filter(|pass| pass.kind == Kind::Write).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut fired, mut failed, mut tries) = (0, 0, 0);
    for pass in ground.chosen(&writes) {
        for (action, word) in [("enospc", "No space left"), ("eio", "Input/output error")] {
            let path = ground.path.join("victim");
            let at = format!("{}:{}:{action}", pass.name, pass.nth);
            eprintln!("{at}");
            runtime.block_on(async {
                let (store, services) = open(&path, ground.layers).await;
                faults::arm(&at).unwrap();
                let (done, errors) = tried(&services, &input, &[word]).await;
                fired += faults::disarm();
                failed += errors;
                no_stray_ingest(&path, &services).await;
                check::whole(&services, &input, &done).await;
                drop((store, services));
                clean(ground, &path).await;
            });
            tries += 1;
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
    eprintln!(
        "{tries} failing writes, {fired} were reached, {failed} steps failed, seed {}",
        ground.seed
    );
    assert!(fired * 2 > tries, "too few writes are reached");
}

/// Every directory of an unfinished write is one that can be gone on with.
async fn no_stray_ingest(path: &Path, services: &Services) {
    let known = services.content.ingests(&[]).await.unwrap();
    let found = check::names(&path.join("root/content/ingest"));
    assert_eq!(found.len(), known.len(), "{found:?} are there, {known:?} are known");
}

/// What could not be cleaned up at once is by the next start.
async fn clean(ground: &Ground, path: &Path) {
    let (store, services) = open(path, ground.layers).await;
    check::clean(path, &store, &services).await;
}

/// A disk with ever less room; what is removed makes room again, and then everything works.
pub fn filling(ground: &Ground) {
    let registry = Registry::start();
    let input = crate::prepare(ground, &registry);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let path = ground.path.join("full");
    let (root, filler) = (path.join("root"), path.join("root/content/filler"));
    let mut failed = 0;
    for room in ground.rooms() {
        eprintln!("{room} bytes free");
        if ground.layers == LayerForm::Index {
            std::fs::create_dir_all(&path).unwrap();
            disk(&path, "root", DISK_BYTES);
            // Nothing of the store's.
            std::fs::remove_dir(root.join("lost+found")).unwrap();
        } else {
            std::fs::create_dir_all(&root).unwrap();
            let size = format!("size={DISK_BYTES}");
            run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &root.display().to_string()]);
        }
        runtime.block_on(async {
            let (store, services) = open(&path, ground.layers).await;
            input.run(&services, Step::Load).await.unwrap();
            input.run(&services, Step::Container).await.unwrap();
            store.flush().await.unwrap();
            fill(&filler, room);
            let (mut done, errors) = tried(&services, &input, &["No space left"]).await;
            failed += errors;
            // Not a byte is free, and what is there can go.
            fill(&filler, 0);
            for removed in [crate::scenario::LOADED, "docker.io/library/tagged:v1"] {
                match services.images.delete(removed, true).await {
                    Err(error) if !error.is_not_found() => panic!("{removed}: {error}"),
                    _ => {}
                }
            }
            services.containers.delete("cont").await.unwrap();
            services.snapshots.remove("cont").await.unwrap();
            std::fs::remove_file(&filler).unwrap();
            store.flush().await.unwrap();
            done.retain(|step| ![Step::Load, Step::Tag, Step::Container].contains(step));
            check::whole(&services, &input, &done).await;
            drop((store, services));
            clean(ground, &path).await;
        });
        run("umount", &[&root.display().to_string()]);
        std::fs::remove_dir_all(&path).unwrap();
    }
    assert!(failed > 0, "nothing ever failed");
    eprintln!("{failed} steps failed on a full disk, seed {}", ground.seed);
}

/// Writes until nothing more goes, and gives `room` bytes back.
fn fill(path: &Path, room: u64) {
    let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
    let piece = vec![7; 4096];
    while file.write_all(&piece).is_ok() {}
    let len = file.metadata().unwrap().len();
    file.set_len(len.saturating_sub(room)).unwrap();
}

/// Ever fewer descriptors to open files with.
pub fn descriptors(ground: &Ground) {
    let registry = Registry::start();
    let input = crate::prepare(ground, &registry);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let path = ground.path.join("victim");
    let mut failed = 0;
    for more in 0..ground.tries(12) {
        runtime.block_on(async {
            let (store, services) = open(&path, ground.layers).await;
            let full = getrlimit(Resource::Nofile);
            let used = u64::try_from(check::names(Path::new("/proc/self/fd")).len()).unwrap();
            let low = Rlimit { current: Some(used + more), maximum: full.maximum };
            setrlimit(Resource::Nofile, low).unwrap();
            let (done, errors) = tried(&services, &input, &["Too many open files"]).await;
            setrlimit(Resource::Nofile, full).unwrap();
            failed += errors;
            no_stray_ingest(&path, &services).await;
            check::whole(&services, &input, &done).await;
            drop((store, services));
            clean(ground, &path).await;
        });
        std::fs::remove_dir_all(&path).unwrap();
    }
    assert!(failed > 0, "nothing ever failed");
}
