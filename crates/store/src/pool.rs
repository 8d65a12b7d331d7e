use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::{Core, error::Result};

/// Short metadata operations at once.
const QUICK: usize = 32;
/// Hashing, extraction and compression at once, at least: they must not starve each other where a
/// client reads a stream that another operation writes.
const HEAVY_MIN: usize = 8;

/// The bounded way from async callers to the store's sync core: two classes, so that long work
/// (extraction, hashing) never keeps a metadata look-up waiting.
#[derive(Clone)]
pub(crate) struct Pool {
    quick: Arc<Semaphore>,
    heavy: Arc<Semaphore>,
}

impl Pool {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            quick: Arc::new(Semaphore::new(QUICK)),
            heavy: Arc::new(Semaphore::new((2 * cores).max(HEAVY_MIN))),
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
