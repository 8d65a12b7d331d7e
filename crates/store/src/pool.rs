use std::{cell::RefCell, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
};

use crate::{Core, error::Result};

/// Short metadata operations at once.
const QUICK: usize = 32;
/// Hashing, extraction and compression at once, at least: they must not starve each other where a
/// client reads a stream that another operation writes.
const HEAVY_MIN: usize = 8;
/// And at most: with [`QUICK`] it is less than the daemon's blocking threads, so that none waits in
/// the runtime's queue for one that waits for it.
const HEAVY_MAX: usize = 24;

/// Operations at once that go at a client's pace. They have threads of their own.
const TRANSFERS: usize = 256;
/// Address space of such a thread's stack, bytes; the kernel gives memory to what is touched of it.
const STACK_BYTES: usize = 2 << 20;

thread_local! {
    /// What a transfer's thread gives back while it waits for its client.
    static TURN: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

/// A transfer's place among the heavy operations.
struct Turn {
    heavy: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    handle: Handle,
}

/// The bounded way from async callers to the store's sync core: two classes, so that long work
/// (extraction, hashing) never keeps a metadata look-up waiting.
#[derive(Clone)]
pub(crate) struct Pool {
    quick: Arc<Semaphore>,
    heavy: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
}

impl Pool {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            quick: Arc::new(Semaphore::new(QUICK)),
            heavy: Arc::new(Semaphore::new((2 * cores).clamp(HEAVY_MIN, HEAVY_MAX))),
            transfers: Arc::new(Semaphore::new(TRANSFERS)),
        }
    }

    pub(crate) async fn quick<T: Send + 'static>(
        &self,
        core: &Arc<Core>,
        work: impl FnOnce(&Arc<Core>) -> Result<T> + Send + 'static,
    ) -> store_api::Result<T> {
        run(&self.quick, core, work).await
    }

    pub(crate) async fn heavy<T: Send + 'static>(
        &self,
        core: &Arc<Core>,
        work: impl FnOnce(&Arc<Core>) -> Result<T> + Send + 'static,
    ) -> store_api::Result<T> {
        run(&self.heavy, core, work).await
    }

    /// Heavy work that reads or writes a client's stream: on a thread of its own, and among the heavy
    /// operations only while it does not wait for the client (see [`for_client`]).
    ///
    /// # Errors
    /// `Unavailable` beyond [`TRANSFERS`], and those of `work`.
    pub(crate) async fn transfer<T: Send + 'static>(
        &self,
        core: &Arc<Core>,
        work: impl FnOnce(&Arc<Core>) -> Result<T> + Send + 'static,
    ) -> store_api::Result<T> {
        let slot = Arc::clone(&self.transfers).try_acquire_owned().map_err(|_| {
            store_api::Error::new(
                types::ErrorKind::Unavailable,
                format!("too many transfers at once: {TRANSFERS} clients send or take images"),
            )
        })?;
        let turn = Turn { heavy: Arc::clone(&self.heavy), permit: None, handle: Handle::current() };
        let core = Arc::clone(core);
        let (sender, answer) = oneshot::channel();
        std::thread::Builder::new()
            .name("store-transfer".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let _slot = slot;
                // Where the store asks for the runtime.
                let handle = turn.handle.clone();
                let _runtime = handle.enter();
                TURN.set(Some(turn));
                take_turn();
                let result = work(&core);
                drop(TURN.take());
                drop(sender.send(result));
            })
            .map_err(|e| {
                store_api::Error::internal(format!("start a thread for a transfer: {e}"))
            })?;
        match answer.await {
            Ok(result) => result.map_err(Into::into),
            Err(_) => Err(store_api::Error::internal("the thread of a transfer failed")),
        }
    }
}

/// Takes a transfer's place among the heavy operations, waiting for it; nothing on other threads.
fn take_turn() {
    let waiting = TURN.with_borrow(|turn| {
        let turn = turn.as_ref()?;
        Some((turn.handle.clone(), Arc::clone(&turn.heavy)))
    });
    let Some((handle, heavy)) = waiting else { return };
    // The semaphore is never closed; without a permit the work would go on all the same.
    let permit = handle.block_on(heavy.acquire_owned()).ok();
    TURN.with_borrow_mut(|turn| {
        if let Some(turn) = turn {
            turn.permit = permit;
        }
    });
}

/// Waits for a client: a transfer is not among the heavy operations meanwhile.
pub(crate) fn for_client<T>(wait: impl FnOnce() -> T) -> T {
    TURN.with_borrow_mut(|turn| turn.as_mut().map(|turn| turn.permit.take()));
    let waited = wait();
    take_turn();
    waited
}

async fn run<T: Send + 'static>(
    semaphore: &Arc<Semaphore>,
    core: &Arc<Core>,
    work: impl FnOnce(&Arc<Core>) -> Result<T> + Send + 'static,
) -> store_api::Result<T> {
    let permit = Arc::clone(semaphore)
        .acquire_owned()
        .await
        .map_err(|_| store_api::Error::internal("the store is shutting down"))?;
    let core = Arc::clone(core);
    let outcome = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work(&core)
    })
    .await;
    match outcome {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(store_api::Error::internal("the store is shutting down")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_transfer_that_waits_for_its_client_keeps_nobody() {
        let heavy = Arc::new(Semaphore::new(1));
        let (client, stalled) = std::sync::mpsc::channel::<()>();
        let turn = Turn { heavy: heavy.clone(), permit: None, handle: Handle::current() };
        let transfer = std::thread::spawn(move || {
            TURN.set(Some(turn));
            take_turn();
            for_client(|| stalled.recv().unwrap());
            TURN.with_borrow(|turn| turn.as_ref().unwrap().permit.is_some())
        });
        let permit = heavy.acquire().await.unwrap();
        client.send(()).unwrap();
        drop(permit);
        let joined = tokio::task::spawn_blocking(move || transfer.join().unwrap());
        assert!(joined.await.unwrap(), "it has its turn again");
        // Elsewhere it changes nothing.
        assert_eq!(for_client(|| 7), 7);
    }
}
