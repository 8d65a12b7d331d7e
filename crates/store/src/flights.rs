//! The same work in flight is done once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{db::lock, unpack::Slots};

/// The same work in flight is done once: who comes second waits for the first and then finds the work
/// done.
#[derive(Default)]
pub(crate) struct Flights {
    alone: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Layers that are made ahead of their turn.
    pub(crate) layers: Slots,
}

impl Flights {
    /// Runs `work` while nobody else runs work of the same name.
    pub(crate) fn alone<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let mine = Arc::clone(lock(&self.alone).entry(name.to_string()).or_default());
        let guard: MutexGuard<'_, ()> = lock(&mine);
        let value = work();
        drop(guard);
        let mut flights = lock(&self.alone);
        // The map's and this one: nobody waits.
        if Arc::strong_count(&mine) == 2 {
            flights.remove(name);
        }
        // While the map is locked: of two that leave, the second finds itself alone.
        drop(mine);
        drop(flights);
        value
    }
}

/// The same for async work.
#[derive(Clone, Default)]
pub(crate) struct AsyncFlights(Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>);

/// A place in the queue for one name: its entry goes with the last.
struct Place {
    name: String,
    flights: AsyncFlights,
    /// There until it is dropped.
    mine: Option<Arc<tokio::sync::Mutex<()>>>,
}

/// Held while the work is done.
pub(crate) struct Flight {
    // Dropped in this order: the guard holds a reference of its own.
    _guard: tokio::sync::OwnedMutexGuard<()>,
    _place: Place,
}

impl AsyncFlights {
    /// Waits until nobody else does work of that name. A caller that gives up leaves nothing behind.
    pub(crate) async fn enter(&self, name: &str) -> Flight {
        let mine = Arc::clone(lock(&self.0).entry(name.to_string()).or_default());
        let lock = Arc::clone(&mine);
        let place = Place { name: name.into(), flights: self.clone(), mine: Some(mine) };
        let guard = lock.lock_owned().await;
        Flight { _guard: guard, _place: place }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut flights = lock(&self.flights.0);
        // The map's and this one. The future of a wait that is given up was dropped before this.
        let mine = self.mine.take();
        if mine.as_ref().is_some_and(|mine| Arc::strong_count(mine) == 2) {
            flights.remove(&self.name);
        }
        // While the map is locked: of two that leave, the second finds itself alone.
        drop(mine);
        drop(flights);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn entries(flights: &AsyncFlights) -> usize {
        lock(&flights.0).len()
    }

    #[test]
    fn a_wait_that_is_given_up_leaves_no_entry() {
        let flights = AsyncFlights::default();
        let mut context = Context::from_waker(Waker::noop());
        let first = {
            let mut entering = pin!(flights.enter("layer"));
            match entering.as_mut().poll(&mut context) {
                Poll::Ready(flight) => flight,
                Poll::Pending => panic!("nobody else is there"),
            }
        };
        // It outlives who has the place, and is given up only then.
        let mut second = Box::pin(flights.enter("layer"));
        assert!(second.as_mut().poll(&mut context).is_pending(), "two at once");
        assert_eq!(entries(&flights), 1);
        drop(first);
        assert_eq!(entries(&flights), 1, "somebody waits");
        drop(second);
        assert_eq!(entries(&flights), 0, "an entry stays");
    }
}
