use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::{Duration, Instant},
};

use store_api::ResourceKind;

use crate::db::lock;

/// How long something new is kept that neither a record nor a lease ever named: longer than any pull,
/// build or upload takes between making content and naming it.
const FRESH: Duration = Duration::from_secs(24 * 3600);

type Item = (String, ResourceKind, String);

/// What garbage collection leaves alone although no record leads to it: content and snapshots that
/// were made (or looked for) just now and not named yet. The moment a record leads there, this
/// protection ends and the record's begins.
#[derive(Default)]
pub(crate) struct Guard(Mutex<BTreeMap<Item, Instant>>);

impl Guard {
    pub(crate) fn refresh(&self, ns: &str, kind: ResourceKind, name: &str) {
        lock(&self.0).insert((ns.into(), kind, name.into()), Instant::now());
    }

    pub(crate) fn forget(&self, ns: &str, kind: ResourceKind, name: &str) {
        lock(&self.0).remove(&(ns.to_string(), kind, name.to_string()));
    }

    pub(crate) fn forget_all(&self, ns: &str, items: &BTreeSet<(ResourceKind, String)>) {
        let mut fresh = lock(&self.0);
        if fresh.is_empty() {
            return;
        }
        for (kind, name) in items {
            fresh.remove(&(ns.to_string(), *kind, name.clone()));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// What is protected in a namespace now; what is too old is dropped.
    pub(crate) fn items(&self, ns: &str) -> Vec<(ResourceKind, String)> {
        let mut fresh = lock(&self.0);
        fresh.retain(|_, since| since.elapsed() < FRESH);
        fresh
            .keys()
            .filter(|(namespace, _, _)| namespace == ns)
            .map(|(_, kind, name)| (*kind, name.clone()))
            .collect()
    }
}
