use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard},
    time::{Duration, Instant},
};

use store_api::ResourceKind;

use crate::db::lock;

/// How long something new is kept that neither a record nor a lease ever named: longer than any pull,
/// build or upload takes between making content and naming it.
const FRESH: Duration = Duration::from_secs(24 * 3600);
/// How long an image stays whose name was given to another: time to give it a new one.
const UNNAMED: Duration = Duration::from_secs(60);

type Item = (String, ResourceKind, String);

/// What garbage collection leaves alone although no record leads to it.
///
/// Fresh: content and snapshots that were made (or looked for) just now and not named yet. The moment
/// a record leads there, this protection ends and the record's begins. Pinned: what an operation of
/// the store itself works on right now, whatever happens to records meanwhile.
#[derive(Clone, Default)]
pub(crate) struct Guard(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// Written while garbage collection marks and sweeps: who protects something afterwards sees what
    /// it took. Before `state`, after [`crate::Core::blobs`].
    gate: RwLock<()>,
}

#[derive(Default)]
struct State {
    /// Until when.
    fresh: BTreeMap<Item, Instant>,
    /// How many operations work on it.
    pinned: BTreeMap<Item, usize>,
}

impl Guard {
    /// Held from the look at what is protected until what is not is gone from the records.
    pub(crate) fn sweeping(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn refresh(&self, ns: &str, kind: ResourceKind, name: &str) {
        let _gate = self.0.gate.read().unwrap_or_else(PoisonError::into_inner);
        lock(&self.0.state).fresh.insert((ns.into(), kind, name.into()), Instant::now() + FRESH);
    }

    /// Keeps what an image led to that has just lost its name.
    pub(crate) fn linger(&self, ns: &str, items: BTreeSet<(ResourceKind, String)>) {
        let until = Instant::now() + UNNAMED;
        let mut state = lock(&self.0.state);
        for (kind, name) in items {
            // Also where it was protected for longer: it has had a name.
            state.fresh.insert((ns.into(), kind, name), until);
        }
    }

    /// When the next protection ends by itself.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        lock(&self.0.state).fresh.values().min().copied()
    }

    pub(crate) fn forget(&self, ns: &str, kind: ResourceKind, name: &str) {
        lock(&self.0.state).fresh.remove(&(ns.to_string(), kind, name.to_string()));
    }

    pub(crate) fn forget_all(&self, ns: &str, items: &BTreeSet<(ResourceKind, String)>) {
        let mut state = lock(&self.0.state);
        for (kind, name) in items {
            state.fresh.remove(&(ns.to_string(), *kind, name.clone()));
        }
    }

    /// Is nothing fresh?
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0.state).fresh.is_empty()
    }

    /// What is protected in a namespace now; what is too old is dropped.
    pub(crate) fn items(&self, ns: &str) -> Vec<(ResourceKind, String)> {
        let mut state = lock(&self.0.state);
        let now = Instant::now();
        state.fresh.retain(|_, until| *until > now);
        state
            .fresh
            .keys()
            .chain(state.pinned.keys())
            .filter(|(namespace, _, _)| namespace == ns)
            .map(|(_, kind, name)| (*kind, name.clone()))
            .collect()
    }

    /// The protection of one operation, which ends when it is dropped.
    pub(crate) fn pins(&self, ns: &str) -> Pins {
        Pins { guard: self.clone(), ns: ns.into(), items: Mutex::new(Vec::new()) }
    }
}

/// Pin first and look then whether the thing is there: nothing can come between.
pub(crate) struct Pins {
    guard: Guard,
    ns: String,
    items: Mutex<Vec<Item>>,
}

impl Pins {
    pub(crate) fn add(&self, kind: ResourceKind, name: impl std::fmt::Display) {
        let item = (self.ns.clone(), kind, name.to_string());
        let _gate = self.guard.0.gate.read().unwrap_or_else(PoisonError::into_inner);
        *lock(&self.guard.0.state).pinned.entry(item.clone()).or_default() += 1;
        lock(&self.items).push(item);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = lock(&self.guard.0.state);
        for item in lock(&self.items).drain(..) {
            if let Some(count) = state.pinned.get_mut(&item) {
                *count -= 1;
                if *count == 0 {
                    state.pinned.remove(&item);
                }
            }
        }
    }
}
