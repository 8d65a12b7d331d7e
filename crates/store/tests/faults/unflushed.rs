//! What is written while nothing can be flushed: an error means that it is not there.

use std::{collections::BTreeSet, path::Path};

use store_api::{Descriptor, Image, Labels, Services};
use types::Digest;

use crate::{
    ground::{Ground, copy},
    open,
};

/// The journal is full at this.
const JOURNAL_BYTES: u64 = 1 << 20;
const IMAGE: &str = "docker.io/library/unflushed:v1";

/// Some 8 KB in each record.
fn labels() -> Labels {
    let one = |i: usize| (format!("test/{i}"), "x".repeat(4000));
    Labels::from([one(0), one(1)])
}

async fn keys(services: &Services) -> BTreeSet<String> {
    let list = services.snapshots.list(&[]).await.unwrap();
    list.into_iter().map(|info| info.name).collect()
}

fn image(bytes: &str) -> Image {
    let target = Descriptor::new(
        store_api::media_type::OCI_MANIFEST,
        Digest::sha256(bytes),
        u64::try_from(bytes.len()).unwrap(),
    );
    let now = store_api::Timestamp::now();
    Image { name: IMAGE.into(), target, labels: Labels::new(), created_at: now, updated_at: now }
}

/// A full disk, and a journal that has room: what needs no more than that is done and stays, the rest is
/// refused and gone.
pub fn full_journal(ground: &Ground) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for point in ["records.sync", "db.commit", "record.write"] {
        eprintln!("{point}");
        let path = ground.path.join("full");
        let killed = ground.path.join("killed");
        runtime.block_on(async {
            let (store, services) = open(&path, ground.layers).await;
            services.images.put(image("before")).await.unwrap();
            store.flush().await.unwrap();
            faults::arm(&format!("{point}:1+:enospc")).unwrap();
            let mut made = BTreeSet::new();
            for i in 0..300 {
                let key = format!("s{i}");
                let prepared = services.snapshots.prepare(&key, None, labels()).await;
                prepared.unwrap_or_else(|error| panic!("{key}: {error}"));
                made.insert(key);
            }
            assert!(faults::fired() > 0, "nothing was to be flushed");
            let journal = path.join("state/journal").metadata().unwrap().len();
            assert!(journal < 8 * JOURNAL_BYTES, "{journal} bytes");
            // What has to be on the disk is not, and is not seen.
            let error = services.images.put(image("after")).await.unwrap_err();
            assert!(error.message.contains("No space left"), "{error}");
            let seen = services.images.get(IMAGE).await.unwrap();
            assert_eq!(seen.target, image("before").target);
            let new = Image { name: "docker.io/library/new:v1".into(), ..image("new") };
            services.images.create(new.clone(), None).await.unwrap_err();
            assert!(services.images.get(&new.name).await.unwrap_err().is_not_found());
            assert_eq!(keys(&services).await, made);
            // Also not after the daemon's death, and when there is room again.
            copy(&path, &killed);
            faults::disarm();
            store.flush().await.unwrap();
            drop((store, services));
            for path in [&path, &killed] {
                let (store, services) = open(path, ground.layers).await;
                assert_eq!(keys(&services).await, made);
                for key in &made {
                    services.snapshots.mounts(key).await.unwrap();
                }
                assert!(services.images.get(&new.name).await.unwrap_err().is_not_found());
                let seen = services.images.get(IMAGE).await.unwrap();
                assert_eq!(seen.target, image("before").target);
                // It can be made now.
                services.images.create(new.clone(), None).await.unwrap();
                drop((store, services));
            }
        });
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::remove_dir_all(&killed).unwrap();
    }
}

/// Neither the journal nor the disk takes anything: every write is refused, and nothing of it is there.
pub fn full_state(ground: &Ground) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let path = ground.path.join("full");
    let full = "journal.append:1+:enospc,journal.rewrite:1+:enospc,journal.in-place:1+:enospc";
    runtime.block_on(async {
        let (store, services) = open(&path, ground.layers).await;
        services.snapshots.prepare("there", None, Labels::new()).await.unwrap();
        // The record of this one is in the journal alone.
        let volatile = Labels::from([("gantry.io/volatile".into(), "true".into())]);
        services.snapshots.prepare("volatile", None, volatile).await.unwrap();
        store.flush().await.unwrap();
        faults::arm(&format!("{full},db.commit:1+:enospc")).unwrap();
        let error = services.snapshots.prepare("s", None, Labels::new()).await.unwrap_err();
        assert!(error.message.contains("No space left"), "{error}");
        let there = BTreeSet::from(["there".to_owned(), "volatile".to_owned()]);
        for key in &there {
            services.snapshots.remove(key).await.unwrap_err();
        }
        assert_eq!(keys(&services).await, there);
        for key in &there {
            services.snapshots.mounts(key).await.unwrap();
        }
        assert_eq!(directories(&path), 2, "what was refused is left");
        // The disk alone does as well.
        faults::arm(full).unwrap();
        services.snapshots.prepare("s", None, Labels::new()).await.unwrap();
        services.snapshots.remove("volatile").await.unwrap_err();
        copy(&path, &ground.path.join("killed"));
        faults::disarm();
        drop((store, services));
        for path in [path, ground.path.join("killed")] {
            let (_store, services) = open(&path, ground.layers).await;
            let there = BTreeSet::from(["s", "there", "volatile"].map(String::from));
            assert_eq!(keys(&services).await, there);
            for key in &there {
                services.snapshots.mounts(key).await.unwrap();
            }
        }
    });
}

fn directories(path: &Path) -> usize {
    std::fs::read_dir(path.join("root/snapshots")).unwrap().count()
}
