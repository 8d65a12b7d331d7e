//! A read that fails at a start: nothing is taken for lost because of it, by this start or a later one.

use std::{collections::BTreeSet, path::Path};

use store::Store;

use crate::{
    check, config,
    ground::{Ground, Kind, copy},
    scenario::Step,
    suite::{registry::Registry, until},
};

/// Each read of a start, of what a whole run has left and `damage` was done to, fails once.
pub fn at_start(ground: &Ground, damage: fn(&Path)) {
    let registry = Registry::start();
    let input = crate::prepare(ground, &registry);
    ground.trace("whole", false, |_| {});
    let before = move |path: &Path| {
        copy(&path.with_file_name("whole"), path);
        damage(path);
    };
    let passes = ground.trace("trace", true, before);
    let reads: Vec<_> = passes.into_iter().filter(|pass| pass.kind == Kind::Read).collect();
    assert!(reads.len() > 20, "{reads:?}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut refused, mut fired) = (0, 0);
    let chosen = ground.chosen(&reads);
    for pass in &chosen {
        let path = ground.path.join("victim");
        before(&path);
        let at = format!("{}:{}:eio", pass.name, pass.nth);
        eprintln!("{at}");
        runtime.block_on(async {
            faults::arm(&at).unwrap();
            let opened = Store::open(config(&path, ground.layers)).await;
            fired += faults::disarm();
            if let Err(error) = &opened {
                refused += 1;
                let says = error.message.contains("Input/output error")
                    && error.message.contains(&path.display().to_string())
                    && error.message.contains("not taken for lost");
                assert!(says, "{error}");
            }
            drop(opened);
            // All is there at the next one, and has not lost what leads to it by the one after that. What
            // a lost database held by a label alone is not found again.
            let aside = path.join("root/damaged");
            let bad_blob = pass.name == "rebuild.blob";
            for _ in 0..2 {
                let (store, services) = crate::open(&path, ground.layers).await;
                for step in Step::ALL.into_iter().filter(|step| *step != Step::Blob && !bad_blob) {
                    assert!(input.is_whole(&services, step).await, "{step:?} is lost after {at}");
                }
                assert_eq!(aside.exists(), bad_blob, "{}", aside.display());
                if bad_blob {
                    assert_eq!(check::names(&aside).len(), 1, "the blob is kept, and told of");
                }
                drop((store, services));
            }
            let (store, services) = crate::open(&path, ground.layers).await;
            if !bad_blob {
                check::whole(&services, &input, &BTreeSet::new()).await;
                check::clean(&path, &store, &services).await;
            }
            drop((store, services));
            // Its collector may still be at work, which keeps its mounts.
            until("the store lets go of its files", async || {
                std::fs::remove_dir_all(&path).is_ok() || !path.exists()
            })
            .await;
        });
    }
    eprintln!(
        "{} of {} failing reads, {fired} were reached, {refused} starts refused, seed {}",
        chosen.len(),
        reads.len(),
        ground.seed
    );
    assert!(fired * 2 > chosen.len() as u64, "too few reads are reached");
}
