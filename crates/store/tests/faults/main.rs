//! The store, killed at every named point that it passes (see the crate `faults`).
//!
//! A first run of the scenario writes down which points it passes, and how often. Then it is run once
//! for each pass and dies there; the store is opened again and everything looked at ([`check`]).
//! `make test` takes a sample, whose seed it prints; `FAULTS=all`, as in `make faults`, takes all,
//! `FAULTS=N` N of each kind; `FAULT_SEED` repeats a sample, `FAULT_AT=NAME:N` one pass.
//!
//! Each test runs itself once more in a mount namespace of its own, on file systems in memory.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod check;
mod collect;
mod ground;
mod reads;
mod refused;
mod scenario;
mod space;
#[path = "../suite/mod.rs"]
mod suite;
mod unflushed;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use ground::Ground;
use scenario::{Input, Step};
use store::{Config, LayerForm, Store};
use store_api::{Namespaces as _, Services};
use suite::registry::Registry;

const NAMESPACE: &str = "moby";

fn config(ground: &Path, layers: LayerForm) -> Config {
    let mut config = Config::new(ground.join("root"), ground.join("state"));
    config.layers = layers;
    config
}

async fn open(ground: &Path, layers: LayerForm) -> (Arc<Store>, Services) {
    let store = Store::open(config(ground, layers)).await.unwrap();
    let services = store.open(NAMESPACE).unwrap();
    (store, services)
}

/// Not a test of its own: the process that dies.
#[test]
fn victim() {
    let Some(order) = ground::Order::of_this_process() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (_store, services) = open(&order.ground, order.layers).await;
        if order.only_open {
            return;
        }
        let input = Input::read(&order.input);
        for step in Step::ALL {
            input.run(&services, step).await.unwrap();
            order.acknowledge(step);
        }
    });
}

/// Kills at the points of the whole scenario.
fn scenario(ground: &Ground) {
    let registry = Registry::start();
    let input = prepare(ground, &registry);
    let passes = ground.trace("trace", false, |_| {});
    ground.killed(&passes, false, |_| {}, &input);
}

/// What a test does beforehand without any fault.
fn prepare(ground: &Ground, registry: &Registry) -> Input {
    let mut input = Input::new(&ground.path, &registry.address);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let path = ground.path.join("fill");
        let (_store, services) = open(&path, ground.layers).await;
        input.fill_registry(&services).await;
    });
    input.write(&ground.path.join("input.json"));
    input
}

fn lose_database(path: &Path) {
    std::fs::remove_file(path.join("root/meta.db")).unwrap();
    std::fs::remove_file(path.join("state/journal")).unwrap();
}

/// Kills at the points of a start that finds `damage` done to what a whole run has left.
fn start(ground: &Ground, damage: fn(&Path)) {
    let registry = Registry::start();
    let input = prepare(ground, &registry);
    ground.trace("whole", false, |_| {});
    let before = move |path: &Path| {
        ground::copy(&path.with_file_name("whole"), path);
        damage(path);
    };
    let passes = ground.trace("trace", true, before);
    ground.killed(&passes, true, before, &input);
}

#[test]
fn killed_in_the_middle_of_work() {
    ground::alone("killed_in_the_middle_of_work", LayerForm::Directories, scenario);
}

#[test]
fn killed_in_the_middle_of_work_on_packed_layers() {
    let test = "killed_in_the_middle_of_work_on_packed_layers";
    ground::alone(test, LayerForm::Index, scenario);
}

#[test]
fn killed_while_it_rebuilds_its_database() {
    ground::alone("killed_while_it_rebuilds_its_database", LayerForm::Directories, |ground| {
        start(ground, lose_database);
    });
}

#[test]
fn killed_while_it_brings_itself_in_order() {
    ground::alone("killed_while_it_brings_itself_in_order", LayerForm::Directories, |ground| {
        start(ground, |path| {
            let root = path.join("root");
            for stray in ["snapshots/999/fs", "tmp/left", "trash/left", "content/ingest/left"] {
                std::fs::create_dir_all(root.join(stray)).unwrap();
            }
            let hex = types::Digest::sha256("stray").hex().to_string();
            std::fs::write(root.join("content/blobs/sha256").join(hex), "stray").unwrap();
            std::fs::write(root.join("records/images/left.json.new"), "{").unwrap();
            std::os::unix::fs::symlink("../snapshots/998/fs", root.join("l/998")).unwrap();
        });
    });
}

#[test]
fn every_write_without_room() {
    ground::alone("every_write_without_room", LayerForm::Directories, space::every_write);
}

#[test]
fn every_write_without_room_on_packed_layers() {
    let test = "every_write_without_room_on_packed_layers";
    ground::alone(test, LayerForm::Index, space::every_write);
}

#[test]
fn a_disk_that_fills_up() {
    ground::alone("a_disk_that_fills_up", LayerForm::Directories, space::filling);
}

#[test]
fn a_disk_that_fills_up_with_packed_layers() {
    let test = "a_disk_that_fills_up_with_packed_layers";
    ground::alone(test, LayerForm::Index, space::filling);
}

#[test]
fn every_read_of_a_start() {
    let test = "every_read_of_a_start";
    ground::alone(test, LayerForm::Directories, |ground| reads::at_start(ground, |_| {}));
}

#[test]
fn every_read_of_a_start_with_packed_layers() {
    let test = "every_read_of_a_start_with_packed_layers";
    ground::alone(test, LayerForm::Index, |ground| reads::at_start(ground, |_| {}));
}

#[test]
fn every_read_of_a_rebuild() {
    let test = "every_read_of_a_rebuild";
    ground::alone(test, LayerForm::Directories, |ground| reads::at_start(ground, lose_database));
}

#[test]
fn no_room_for_a_blobs_record() {
    ground::alone("no_room_for_a_blobs_record", LayerForm::Directories, refused::record);
}

#[test]
fn no_room_for_a_layer_that_was_downloaded() {
    let test = "no_room_for_a_layer_that_was_downloaded";
    ground::alone(test, LayerForm::Directories, refused::place);
}

#[test]
fn a_journal_that_nothing_empties() {
    let test = "a_journal_that_nothing_empties";
    ground::alone(test, LayerForm::Directories, unflushed::full_journal);
}

#[test]
fn no_room_for_the_journal_either() {
    let test = "no_room_for_the_journal_either";
    ground::alone(test, LayerForm::Directories, unflushed::full_state);
}

#[test]
fn a_collection_that_cannot_remove_all() {
    let test = "a_collection_that_cannot_remove_all";
    ground::alone(test, LayerForm::Directories, collect::goes_on);
}

#[test]
fn no_more_descriptors() {
    ground::alone("no_more_descriptors", LayerForm::Directories, space::descriptors);
}

/// Everything that was acknowledged, and nothing by halves; afterwards nothing is left behind.
async fn look(ground: &Path, layers: LayerForm, input: &Input, acknowledged: &BTreeSet<Step>) {
    let (store, services) = open(ground, layers).await;
    check::whole(&services, input, acknowledged).await;
    check::clean(ground, &store, &services).await;
    check::emptied_out(ground, &store, &services).await;
}
