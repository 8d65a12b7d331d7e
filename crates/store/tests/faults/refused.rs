//! Content whose commit fails for another reason than its bytes: these are not lost, nor anybody else's.

use store_api::{Labels, Namespaces as _, Progress, ProgressState, RegistryAccess, WriteRequest};
use testkit::{
    fixtures::{
        oci::{Image, Layer},
        tar::TarStream,
    },
    random,
};
use types::{Digest, ImageRef};

use crate::{
    ground::Ground,
    open,
    suite::{self, registry, transfer},
};

/// Neither the journal nor the disk takes a record.
const NO_RECORD: &str = "journal.append:1+:enospc,journal.rewrite:1+:enospc,journal.in-place:1+:enospc,db.commit:1+:enospc";

/// No room for the record once the blob is in its place: the next commit needs no new bytes, unless they
/// took the place of another namespace's, which has its content still.
pub fn record(ground: &Ground) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (store, here) = open(&ground.path.join("store"), ground.layers).await;
        let there = store.open("there").unwrap();
        there.images.list(&[]).await.unwrap();
        let bytes = random::bytes(50_000);
        let digest = Digest::sha256(&bytes);
        let total = u64::try_from(bytes.len()).unwrap();
        for (services, takes_a_place) in [(&here, false), (&there, true)] {
            let request = WriteRequest { reference: "write".into(), total, expected: None };
            services.content.open_writer(request.clone()).await.unwrap();
            services.content.write("write", 0, bytes.clone().into()).await.unwrap();
            // The namespace's own record is there already.
            suite::put(services, &random::bytes(10), Labels::new()).await;
            let commit = || services.content.commit("write", total, Some(&digest), Labels::new());
            faults::arm(NO_RECORD).unwrap();
            let error = commit().await.unwrap_err();
            assert!(faults::disarm() > 0);
            assert!(error.message.contains("No space left"), "{error}");
            assert!(services.content.info(&digest).await.unwrap_err().is_not_found());
            let open = services.content.open_writer(request).await.unwrap().offset;
            assert_eq!(open, if takes_a_place { 0 } else { total });
            if takes_a_place {
                assert_eq!(suite::get(&here, &digest).await, bytes);
                services.content.write("write", 0, bytes.clone().into()).await.unwrap();
            }
            commit().await.unwrap();
            assert_eq!(suite::get(services, &digest).await, bytes);
        }
    });
}

/// A layer that was downloaded and is right is not downloaded again where it could not be put in its place.
pub fn place(ground: &Ground) {
    let registry = registry::Registry::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (store, here) = open(&ground.path.join("store"), ground.layers).await;
        let tar = TarStream::new().file("f", 0o644, &random::bytes(50_000)).finish();
        let image = Image::new(vec![Layer::gzipped(tar)], &serde_json::json!({}));
        let source = store.open("source").unwrap();
        let reference = registry.reference();
        let name = reference.to_string();
        transfer::import(&source, image.oci_archive(&name)).await.unwrap();
        registry::push_and_pull(&source, &name, &reference).await;
        source.images.delete(&name, true).await.unwrap();
        let pull =
            async |of: &ImageRef| registry::pull(&here, of, RegistryAccess::default(), true).await;
        // After configuration and manifest.
        faults::arm("blob.rename:3:enospc").unwrap();
        let (pulled, reports) = pull(&reference).await;
        assert_eq!(faults::disarm(), 1);
        let error = pulled.unwrap_err();
        assert!(error.message.contains("No space left"), "{error}");
        let downloads = |reports: &[Progress]| {
            let of_it = |report: &&Progress| report.state == ProgressState::Downloading;
            reports.iter().filter(of_it).count()
        };
        assert!(downloads(&reports) > 0, "{reports:?}");
        let (pulled, reports) = pull(&reference).await;
        pulled.unwrap();
        assert_eq!(downloads(&reports), 0, "{reports:?}");
    });
}
