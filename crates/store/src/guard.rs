use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
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

thread_local! {
    /// The operation that this thread works for right now.
    static OPERATION: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What garbage collection leaves alone although no record leads to it.
///
/// Fresh: content and snapshots that were made (or looked for) just now and not named yet. The moment
/// a record leads there, this protection ends and the record's begins; where an [`Operation`] of the
/// store made it, it ends as well if that fails. Pinned: what an operation works on right now, whatever
/// happens to records meanwhile.
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
    fresh: BTreeMap<Item, Fresh>,
    /// How many operations work on it.
    pinned: BTreeMap<Item, usize>,
    /// The number of the last operation.
    operations: u64,
}

impl State {
    /// No longer in flight: a record leads there, or it is gone. Other operations still count on it.
    fn forget(&mut self, ns: &str, kind: ResourceKind, name: &str) {
        let item = (ns.to_string(), kind, name.to_string());
        if let Some(fresh) = self.fresh.get_mut(&item) {
            fresh.drop_own();
            if fresh.operations.is_empty() {
                self.fresh.remove(&item);
            }
        }
    }
}

/// Who keeps something; nobody does when both are empty.
#[derive(Default)]
struct Fresh {
    /// Those that ask for it by calls of their own, until then.
    until: Option<Instant>,
    /// Operations of the store under way.
    operations: BTreeSet<u64>,
}

impl Fresh {
    /// What was asked for by a call, and by the operation that goes on here. Others' stays.
    fn drop_own(&mut self) {
        self.until = None;
        if let Some(operation) = OPERATION.get() {
            self.operations.remove(&operation);
        }
    }

    fn lasts(&self, now: Instant) -> bool {
        !self.operations.is_empty() || self.until.is_some_and(|until| until > now)
    }
}

impl Guard {
    /// Held from the look at what is protected until what is not is gone from the records.
    pub(crate) fn sweeping(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn refresh(&self, ns: &str, kind: ResourceKind, name: &str) {
        let _gate = self.0.gate.read().unwrap_or_else(PoisonError::into_inner);
        let mut state = lock(&self.0.state);
        let fresh = state.fresh.entry((ns.into(), kind, name.into())).or_default();
        match OPERATION.get() {
            Some(operation) => drop(fresh.operations.insert(operation)),
            None => fresh.until = Some(Instant::now() + FRESH),
        }
    }

    /// Begins an operation.
    pub(crate) fn operation(&self) -> Operation {
        let mut state = lock(&self.0.state);
        state.operations += 1;
        let (guard, id) = (self.clone(), state.operations);
        Operation(Arc::new(Running { guard, id, succeeded: AtomicBool::new(false) }))
    }

    /// Keeps what an image led to that has just lost its name.
    pub(crate) fn linger(&self, ns: &str, items: BTreeSet<(ResourceKind, String)>) {
        let until = Some(Instant::now() + UNNAMED);
        let mut state = lock(&self.0.state);
        for (kind, name) in items {
            // Also where it was protected for longer: it has had a name.
            let fresh = state.fresh.entry((ns.into(), kind, name)).or_default();
            fresh.drop_own();
            fresh.until = until;
        }
    }

    /// When the next protection ends by itself.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        lock(&self.0.state).fresh.values().filter_map(|fresh| fresh.until).min()
    }

    pub(crate) fn forget(&self, ns: &str, kind: ResourceKind, name: &str) {
        lock(&self.0.state).forget(ns, kind, name);
    }

    pub(crate) fn forget_all(&self, ns: &str, items: &BTreeSet<(ResourceKind, String)>) {
        let mut state = lock(&self.0.state);
        for (kind, name) in items {
            state.forget(ns, *kind, name);
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
        state.fresh.retain(|_, fresh| fresh.lasts(now));
        state
            .fresh
            .keys()
            .chain(state.pinned.keys())
            .filter(|(namespace, _, _)| namespace == ns)
            .map(|(_, kind, name)| (*kind, name.clone()))
            .collect()
    }

    pub(crate) fn is_pinned(&self, ns: &str, kind: ResourceKind, name: &str) -> bool {
        lock(&self.0.state).pinned.contains_key(&(ns.to_string(), kind, name.to_string()))
    }

    /// The protection of what an operation works on, which ends when it is dropped.
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

/// Work of the store itself, of one or more steps on whatever threads: a pull, a load. What it made or
/// looked for stays as fresh as a client's if it [succeeds](Operation::succeeded). Else it alone keeps
/// nothing from when the last copy of this is dropped, which those of its steps that still run have.
#[derive(Clone)]
pub(crate) struct Operation(Arc<Running>);

struct Running {
    guard: Guard,
    id: u64,
    succeeded: AtomicBool,
}

impl Operation {
    /// Runs a step on this thread.
    pub(crate) fn run<T>(&self, step: impl FnOnce() -> T) -> T {
        let _turn = Turn(OPERATION.replace(Some(self.0.id)));
        step()
    }

    pub(crate) fn succeeded(&self) {
        self.0.succeeded.store(true, Ordering::Relaxed);
    }
}

/// The operation that the thread goes on with.
struct Turn(Option<u64>);

impl Drop for Turn {
    fn drop(&mut self) {
        OPERATION.set(self.0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let until = self.succeeded.load(Ordering::Relaxed).then(|| Instant::now() + FRESH);
        for fresh in lock(&self.guard.0.state).fresh.values_mut() {
            if fresh.operations.remove(&self.id) {
                fresh.until = fresh.until.max(until);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_keeps_what_others_forget() {
        let guard = Guard::default();
        let is_kept = || !guard.items("n").is_empty();
        let (first, second) = (guard.operation(), guard.operation());
        let refresh = || guard.refresh("n", ResourceKind::Content, "blob");
        let forget = || guard.forget("n", ResourceKind::Content, "blob");
        first.run(refresh);
        second.run(refresh);
        // A client removes the image that had it, and the second has named what it made.
        forget();
        second.run(forget);
        second.succeeded();
        drop(second);
        assert!(is_kept());
        let gone = BTreeSet::from([(ResourceKind::Content, "blob".to_string())]);
        guard.forget_all("n", &gone);
        assert!(is_kept());
        first.run(forget);
        assert!(!is_kept());
    }
}
