#![allow(clippy::unwrap_used)]
use std::{
    sync::{Arc, Barrier, mpsc},
    time::{Duration, Instant},
};

use super::*;
use crate::Config;

const LIMIT: Duration = Duration::from_secs(60);

fn core(ground: &tempfile::TempDir) -> Arc<Core> {
    Core::open(&Config::new(ground.path().join("root"), ground.path().join("state"))).unwrap()
}

/// Does a thread of this process wait for something?
fn sleeps(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().starts_with('S')
}

/// Of two that bring the same content at once the second takes the place of what may be durable by then.
#[test]
fn what_takes_the_place_of_a_blob_is_durable_first() {
    let ground = tempfile::tempdir().unwrap();
    let core = core(&ground);
    core.ensure_namespace("ns").unwrap();
    let digest = Digest::sha256("content");
    // It cannot be synced, which is told in these words.
    let finished = ground.path().join("finished");
    std::os::unix::fs::symlink("nowhere", &finished).unwrap();
    let blobs = lock(&core.blobs);
    let (begin, begun) = mpsc::channel();
    let (theirs, of) = (Arc::clone(&core), digest.clone());
    let second = std::thread::spawn(move || {
        begin.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let record = ContentRecord::new(7, Labels::new());
        theirs.adopt_blob("ns", "ref", &of, Some(&finished), &record)
    });
    let thread = begun.recv_timeout(LIMIT).unwrap();
    let limit = Instant::now() + LIMIT;
    while !sleeps(thread) {
        assert!(Instant::now() < limit, "it does not wait for the lock");
        std::thread::yield_now();
    }
    std::fs::write(core.blob_path(&digest), "content").unwrap();
    drop(blobs);
    let error = store_api::Error::from(second.join().unwrap().unwrap_err());
    assert!(error.message.contains("sync ingest"), "{error}");
    assert_eq!(std::fs::read(core.blob_path(&digest)).unwrap(), b"content");
}

/// Who begins anew while another's write of the same name ends has a directory that stays.
#[test]
fn the_end_of_a_write_leaves_its_successor_alone() {
    let ground = tempfile::tempdir().unwrap();
    let core = core(&ground);
    let (of, bytes) = ("write", vec![7; 4 << 20]);
    for round in 0..200 {
        assert_eq!(ingest::begin(&core, "ns", of), 0);
        core.ingest_write("ns", of, 0, &bytes).unwrap();
        let gate = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                gate.wait();
                core.ingest_abort("ns", of).unwrap();
            });
            gate.wait();
            let limit = Instant::now() + LIMIT;
            // Until it has one of its own: the other's is larger, or gone.
            while ingest::begin(&core, "ns", of) > 0 {
                assert!(Instant::now() < limit, "round {round}");
            }
            core.ingest_write("ns", of, 0, b"own").unwrap();
            core.ingest_file("ns", of).unwrap();
            assert_eq!(core.ingest_digest("ns", of).unwrap(), Digest::sha256("own"));
        });
        let digest = Digest::sha256("own");
        core.ingest_commit("ns", of, 3, Some(&digest), Labels::new()).unwrap();
        let left = std::fs::read_dir(core.root.join("content/ingest")).unwrap().count();
        assert_eq!(left, 0, "round {round}: a directory stays");
        core.content_delete("ns", &digest).unwrap();
    }
}

/// What is known of a write that has ended meanwhile is not used any more.
#[test]
fn a_write_that_has_ended_is_not_found() {
    let ground = tempfile::tempdir().unwrap();
    let core = core(&ground);
    let (of, digest) = ("write", Digest::sha256("own"));
    assert_eq!(ingest::begin(&core, "ns", of), 0);
    core.ingest_write("ns", of, 0, b"own").unwrap();
    ingest::end_in_the_map_alone(&core, "ns", of);
    let ended = [
        core.ingest_write("ns", of, 3, b"more").map(drop),
        core.ingest_file("ns", of).map(drop),
        core.ingest_digest("ns", of).map(drop),
        core.ingest_commit("ns", of, 3, Some(&digest), Labels::new()).map(drop),
        core.ingest_abort("ns", of),
    ];
    for (i, ended) in ended.into_iter().enumerate() {
        assert!(ended.is_err_and(|error| error.is_not_found()), "{i}");
    }
}
