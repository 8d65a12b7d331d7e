use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::db::lock;

/// The same work in flight is done once: who comes second waits for the first and then finds the work
/// done.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<String, Arc<Mutex<()>>>>);

impl Flights {
    /// Runs `work` while nobody else runs work of the same name.
    pub(crate) fn alone<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let mine = Arc::clone(lock(&self.0).entry(name.to_string()).or_default());
        let guard: MutexGuard<'_, ()> = lock(&mine);
        let value = work();
        drop(guard);
        let mut flights = lock(&self.0);
        // The map's and this one: nobody waits.
        if Arc::strong_count(&mine) == 2 {
            flights.remove(name);
        }
        value
    }
}

/// The same for async work.
#[derive(Clone, Default)]
pub(crate) struct AsyncFlights(Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>);

/// Held while the work is done.
pub(crate) struct Flight {
    name: String,
    flights: AsyncFlights,
    mine: Arc<tokio::sync::Mutex<()>>,
    guard: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl AsyncFlights {
    pub(crate) async fn enter(&self, name: &str) -> Flight {
        let mine = Arc::clone(lock(&self.0).entry(name.to_string()).or_default());
        let guard = Arc::clone(&mine).lock_owned().await;
        Flight { name: name.into(), flights: self.clone(), mine, guard: Some(guard) }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // The guard holds a reference of its own.
        self.guard = None;
        let mut flights = lock(&self.flights.0);
        if Arc::strong_count(&self.mine) == 2 {
            flights.remove(&self.name);
        }
    }
}
