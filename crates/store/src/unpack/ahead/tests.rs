#![allow(clippy::unwrap_used)]
use std::{
    sync::{Barrier, mpsc},
    time::Instant,
};

use store_api::{Descriptor, media_type};

use super::*;
use crate::{Config, LayerForm};

const LIMIT: Duration = Duration::from_secs(60);

fn image(layers: u8) -> UnpackedImage {
    let digest = |kind: &str, i: u8| Digest::sha256(format!("{kind} {i}").as_bytes());
    let blob = |i| Descriptor::new(media_type::OCI_LAYER_GZIP, digest("blob", i), 1);
    UnpackedImage {
        manifest: blob(100),
        config: blob(101),
        layers: (0..layers).map(blob).collect(),
        diff_ids: (0..layers).map(|i| digest("tar", i)).collect(),
        chain_ids: (0..layers).map(|i| digest("chain", i)).collect(),
    }
}

fn core(ground: &tempfile::TempDir) -> Arc<Core> {
    Core::open(&Config::new(ground.path().join("root"), ground.path().join("state"))).unwrap()
}

/// A layer below that is gone again before the helper above it looks: both it and who waits for it end.
#[test]
fn a_parent_that_is_gone_ends_the_wait_for_it() {
    let ground = tempfile::tempdir().unwrap();
    let (core, image) = (core(&ground), image(2));
    let ours = Arc::new(Ahead::new(Arc::clone(&core), "ns", &image, 0));
    let theirs = Arc::new(Ahead::new(core, "ns", &image, 0));
    let (begun, has_begun) = mpsc::channel();
    let (end, ended) = mpsc::channel();
    let (helper, parent, done) = (Arc::clone(&ours), image.chain_ids[0].clone(), end.clone());
    std::thread::spawn(move || {
        let turn = helper.slots[1].begin(None).unwrap();
        begun.send(()).unwrap();
        let waited = helper.wait_for_parent(1, &parent);
        drop(turn);
        done.send(waited.is_err_and(|error| error.is_not_found())).unwrap();
    });
    has_begun.recv_timeout(LIMIT).unwrap();
    // Another image's turn for it has come.
    std::thread::spawn(move || {
        let found = theirs.take(1);
        end.send(matches!(found, Found::Nothing(Some(_)))).unwrap();
    });
    for _ in 0..2 {
        assert!(ended.recv_timeout(LIMIT).expect("somebody waits for ever"));
    }
}

/// How long a turn goes on that waits for another image's helper when it is given up.
fn given_up_after(core: &Arc<Core>, image: &UnpackedImage) -> Duration {
    let ours = Ahead::new(Arc::clone(core), "ns", image, 0);
    let theirs = Arc::new(Ahead::new(Arc::clone(core), "ns", image, 0));
    let _turn = ours.slots[0].begin(None).unwrap();
    let (end, ended) = mpsc::channel();
    let taker = Arc::clone(&theirs);
    std::thread::spawn(move || end.send(matches!(taker.take(0), Found::Nothing(None))).unwrap());
    let limit = Instant::now() + LIMIT;
    while !ours.slots[0].is_due.load(Ordering::Acquire) {
        assert!(Instant::now() < limit, "it never looks");
        std::thread::yield_now();
    }
    // It has looked, and lets go of this by its wait alone.
    drop(lock(&ours.slots[0].state));
    assert!(ended.try_recv().is_err(), "it does not wait");
    let stopped = Instant::now();
    theirs.stop();
    assert!(ended.recv_timeout(LIMIT).expect("it waits for ever"));
    stopped.elapsed()
}

/// It is woken, and not only looks again some time: of several that are given up one is quick at least.
#[test]
fn a_turn_that_is_given_up_waits_for_nobody() {
    let ground = tempfile::tempdir().unwrap();
    let (core, image) = (core(&ground), image(1));
    let mut took = (0..5).map(|_| given_up_after(&core, &image));
    assert!(took.any(|took| took < LOOK_AGAIN / 4), "nobody wakes it");
}

/// Pulls of whatever images that have a layer in common wait for the one that makes it, and keep nobody
/// else from heavy work meanwhile.
#[tokio::test]
async fn who_waits_for_a_layer_has_no_place_among_the_heavy_operations() {
    let ground = tempfile::tempdir().unwrap();
    let config = Config::new(ground.path().join("root"), ground.path().join("state"));
    let store = crate::Store::open(config).await.unwrap();
    let (local, image) = (store.local("ns"), image(1));
    let making = Ahead::new(Arc::clone(&local.core), "ns", &image, 0);
    let turn = making.slots[0].begin(None).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (local, image) = (local.clone(), image.clone());
        waiting.spawn(async move {
            let ahead = Arc::new(Ahead::new(Arc::clone(&local.core), "ns", &image, 0));
            let taker = Arc::clone(&ahead);
            let work = move |_: &Core, _: &str| {
                drop(taker.take(0));
                Ok(())
            };
            local.heavy_in_turn((&ahead, 0), work).await.unwrap();
        });
    }
    // All of them have come to where they wait.
    tokio::task::yield_now().await;
    let other = tokio::time::timeout(LIMIT / 6, local.heavy(|_, _| Ok(()))).await;
    assert!(waiting.try_join_next().is_none(), "the layer is not made yet");
    drop(turn);
    other.expect("heavy work waits for somebody else's layer").unwrap();
    waiting.join_all().await;
}

/// What was made of a download goes when that turns out to be something else, whichever comes first.
#[test]
fn what_was_made_of_a_wrong_download_is_not_kept() {
    let ground = tempfile::tempdir().unwrap();
    let (core, image) = (core(&ground), image(1));
    for is_first in [true, false] {
        let ahead = Ahead::new(&*core, "ns", &image, 0);
        let growth = Arc::new(Growth::new(tempfile::tempfile().unwrap(), 0));
        ahead.comes(0, Source::Download(Arc::clone(&growth)));
        assert!(ahead.next().is_some());
        let id = core.disk.create_empty().unwrap();
        let blob = image.layers[0].digest.clone();
        let staged = Staged::Extracted { id, has_root: true, blob };
        let turn = ahead.slots[0].begin(Some(Arc::clone(&growth))).unwrap();
        if is_first {
            ahead.reject(0, &growth);
            let back = turn.ready(staged, || growth.is_rejected()).expect("it counts");
            core.discard_staged(&back);
            ahead.again(0);
        } else {
            assert!(turn.ready(staged, || growth.is_rejected()).is_none());
            assert!(core.disk.directory(id).exists());
            ahead.reject(0, &growth);
        }
        assert!(!core.disk.directory(id).exists(), "its files stay");
        // A helper takes the layer once more when its blob is here.
        ahead.comes(0, Source::Blob);
        assert!(matches!(ahead.next(), Some((0, Source::Blob))));
        assert!(matches!(ahead.take(0), Found::Nothing(Some(_))));
    }
}

#[test]
fn the_last_of_several_that_leave_at_once_takes_the_entries_along() {
    let ground = tempfile::tempdir().unwrap();
    let (core, image) = (core(&ground), image(100));
    for round in 0..300 {
        let gate = Barrier::new(3);
        let all: Vec<_> = (0..3).map(|_| Ahead::new(&*core, "ns", &image, 0)).collect();
        std::thread::scope(|scope| {
            for ahead in all {
                scope.spawn(|| {
                    gate.wait();
                    drop(ahead);
                });
            }
        });
        assert_eq!(lock(&core.flights.layers.all).len(), 0, "round {round}");
    }
}

#[test]
fn there_are_so_many_helpers_and_no_more() {
    let slots = Slots::default();
    let taken: Vec<_> = (0..HELPERS).map(|_| slots.helpers(100)).collect();
    assert_eq!(taken.iter().map(|some| some.count).sum::<usize>(), HELPERS);
    assert_eq!(taken[0].count, OF_ONE_IMAGE);
    drop(taken);
    assert_eq!(slots.helpers(1).count, 1);
}

/// Also layers of a load that are extracted are made by more than who commits them; each copy needs the last.
#[test]
fn layers_that_are_here_have_helpers() {
    for (form, wanted) in [(LayerForm::Directories, [0, 2, 2]), (LayerForm::Copy, [0, 0, 0])] {
        let ground = tempfile::tempdir().unwrap();
        let (root, state) = (ground.path().join("root"), ground.path().join("state"));
        let core = Core::open(&Config { layers: form, ..Config::new(root, state) }).unwrap();
        for (layers, wanted) in [1, 2, 7].into_iter().zip(wanted) {
            let ahead = Ahead::new(&*core, "ns", &image(layers), 0);
            let busy = || core.flights.layers.helpers.load(Ordering::Relaxed);
            assert_eq!(core.with_helpers(&ahead, &|_, _| {}, busy), wanted, "{form:?} {layers}");
            assert_eq!(busy(), 0);
        }
    }
}
