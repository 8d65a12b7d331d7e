//! Image builds.
//!
//! Owns: the graph of stages, keys of steps and the reasons why a step runs again, the build cache,
//! execution of COPY, ADD, WORKDIR and RUN on snapshots, the image's configuration and manifest.
//! Does not own: the language (`dockerfile`), layers and images (the store, through `store-api`),
//! containers and networks of RUN and pulls (the [`Host`], which the engine is).
//!
//! On disk, below the builder's root (0700; see `cache.rs`): records and manifests of steps, slots,
//! remembered hashes, cache mounts, and one directory per running build.
//! In the store: one lease per cached result (`gantry-build-KEY`), one per running build; work in
//! progress carries `containerd.io/gc.root` and `io.gantry.build`.
//!
//! Locks: an async lock per step key, so that the same step runs once; per image name while it is
//! resolved; per cache mount with `sharing=locked`. A step's lock is held while it runs and never
//! while another stage is waited for.
//! Tasks: one per needed stage. Channels: the caller's events; 64 pieces of a command's output.
//! Cancellation is cooperative: every stage ends by itself and everything is given back.

mod api;
mod build;
mod cache;
mod config;
mod context;
mod copy;
mod error;
mod export;
mod files;
mod graph;
mod hashes;
mod key;
mod print;
mod prune;
mod run;
mod select;
mod session;
mod stage;
mod stubs;
#[cfg(test)]
mod tests;
mod transfer;
mod tree;
mod users;
mod vars;

use std::{path::PathBuf, sync::Arc};

use store_api::Services;
use tokio::sync::mpsc;

pub use api::{
    Base, BaseRequest, BuildEvent, BuildRequest, Built, CacheEntry, Context, DANGLING_PREFIX,
    FetchRequest, Fetched, Host, Limits, Output, PruneRequest, Pruned, RunOptions, RunStep,
    StdStream, StepMount, StepMountSource, Ulimit,
};
pub use error::{Error, Result};
pub use tokio_util::sync::CancellationToken;

/// Builds images, and keeps the cache between builds.
pub struct Builder {
    services: Services,
    host: Arc<dyn Host>,
    cache: cache::Cache,
    locks: Arc<build::Locks>,
}

impl Builder {
    /// `root` is made if it is missing. One process uses it at a time.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn new(services: Services, host: Arc<dyn Host>, root: PathBuf) -> Result<Self> {
        let cache = cache::Cache::open(&root)?;
        Ok(Self { services, host, cache, locks: Arc::default() })
    }

    /// Builds one image. Text for the client goes to `events`, which is bounded by its maker: a reader
    /// that stops slows the build. `cancel` ends it early, with everything given back.
    ///
    /// # Errors
    /// [`Error`] in docker's words.
    pub async fn build(
        &self,
        request: BuildRequest,
        events: mpsc::Sender<BuildEvent>,
        cancel: CancellationToken,
    ) -> Result<Built> {
        let session = session::Session::open(self.services.clone(), self.cache.dir("tmp")).await?;
        let session = Arc::new(session);
        let result = self.build_in(request, events, cancel, session.clone()).await;
        for error in session.close().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "after a build");
        }
        result
    }
}
