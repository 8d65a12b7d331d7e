//! The store in this process, run through the suite of its traits.
#![allow(clippy::unwrap_used)]

mod suite;

use std::sync::Arc;

use store::Store;
use store_api::{Namespaces as _, Services};
use tempfile::TempDir;

struct Ground {
    _directory: TempDir,
    store: Arc<Store>,
}

impl Ground {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = suite::config(&directory.path().join("root"), &directory.path().join("state"));
        Self { store: Store::open(config).await.unwrap(), _directory: directory }
    }

    fn services(&self) -> Services {
        self.store.open(&testkit::random::name("ns")).unwrap()
    }
}

macro_rules! suite {
    ($($name:ident: $($path:ident)::+),* $(,)?) => {
        $(async fn $name() {
            let ground = Ground::new().await;
            $($path)::+(&ground.services()).await;
        })*
        in_every_form! { content_isolated, $($name),* }
    };
}

suite! {
    content_round_trip: suite::content::round_trip,
    content_resumed: suite::content::resumed,
    content_refused: suite::content::refused,
    content_labelled: suite::content::labelled,
    content_collected: suite::content::collected,
    leases: suite::content::leases,
    image_records: suite::images::records,
    containers: suite::images::containers,
    snapshots_life: suite::snapshots::life,
    snapshots_diffs: suite::snapshots::diffs,
    snapshots_deep: suite::snapshots::deep,
    archives: suite::transfer::archives,
    based: suite::transfer::based,
    many_layers: suite::transfer::many_layers,
    compressed: suite::transfer::compressed,
    old_archives: suite::transfer::old_archives,
    renamed: suite::transfer::renamed,
    hostile: suite::transfer::hostile,
    squashed: suite::transfer::squashed,
    other_layouts: suite::bad_archives::other_layouts,
    other_content: suite::bad_archives::other_content,
    other_layers: suite::bad_archives::other_layers,
    old_names: suite::bad_archives::old_names,
    names_twice: suite::bad_archives::names_twice,
    lost_content: suite::bad_archives::lost_content,
    foreign: suite::platforms::foreign,
    chosen: suite::platforms::chosen,
    exported: suite::platforms::exported,
    no_stand_ins: suite::platforms::no_stand_ins,
    squashed_index: suite::platforms::squashed,
    squashed_onto: suite::platforms::squashed_onto,
    analysed: suite::analysis::analysed,
    analysed_links: suite::analysis::analysed_links,
    made_here: suite::transfer::made_here,
    collected_meanwhile: suite::transfer::collected_meanwhile,
}

async fn content_isolated() {
    let ground = Ground::new().await;
    suite::content::isolated(&ground.services(), &ground.services()).await;
}
