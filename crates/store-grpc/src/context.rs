//! What every service needs: the store's namespaces, the headers' meaning, errors as statuses.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use store_api::{Error, Namespaces, Resource, Services};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, metadata::MetadataMap};

use crate::streaming::Streams;

/// containerd's headers (`namespaces.GRPCHeader`, `leases.GRPCHeader`).
const NAMESPACE_HEADER: &str = "containerd-namespace";
const LEASE_HEADER: &str = "containerd-lease";
/// Content writes under way in all namespaces: each has a descriptor in the store.
const WRITERS_MAX: usize = 4096;

pub(crate) struct Context {
    pub(crate) namespaces: Arc<dyn Namespaces>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) writers: Writers,
    pub(crate) streams: Streams,
}

impl Context {
    pub(crate) fn new(namespaces: Arc<dyn Namespaces>, shutdown: CancellationToken) -> Arc<Self> {
        let (writers, streams) = (Writers::default(), Streams::default());
        Arc::new(Self { namespaces, shutdown, writers, streams })
    }

    /// The services of the namespace that the call's headers name.
    pub(crate) fn services(&self, headers: &MetadataMap) -> Result<Services, Status> {
        let namespace = header(headers, NAMESPACE_HEADER)?.ok_or_else(|| {
            Status::failed_precondition("namespace is required: failed precondition")
        })?;
        self.namespaces.open(namespace).map_err(status)
    }

    /// Puts what a call is about to write under the lease that its headers name, if any.
    pub(crate) async fn hold(
        &self,
        headers: &MetadataMap,
        services: &Services,
        resource: impl FnOnce() -> Resource + Send,
    ) -> Result<(), Status> {
        let Some(lease) = header(headers, LEASE_HEADER)? else { return Ok(()) };
        services.leases.add_resource(lease, resource()).await.map_err(status)
    }

    /// Takes back what [`Self::hold`] did for something that there will not be.
    pub(crate) async fn release(
        &self,
        headers: &MetadataMap,
        services: &Services,
        resource: impl FnOnce() -> Resource + Send,
    ) -> Result<(), Status> {
        let Some(lease) = header(headers, LEASE_HEADER)? else { return Ok(()) };
        services.leases.delete_resource(lease, resource()).await.map_err(status)
    }

    /// Ends the waiting when the server ends.
    pub(crate) async fn until_shutdown<T>(
        &self,
        work: impl Future<Output = store_api::Result<T>>,
    ) -> Result<T, Status> {
        tokio::select! {
            outcome = work => outcome.map_err(status),
            () = self.shutdown.cancelled() => Err(Status::unavailable("the store is shutting down")),
        }
    }
}

fn header<'a>(headers: &'a MetadataMap, name: &str) -> Result<Option<&'a str>, Status> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str() {
        Ok("") => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Status::invalid_argument(format!("header {name}: not ASCII"))),
    }
}

/// The store's error as containerd's `errdefs.ToGRPC` words it: its class comes last. Clients of containerd
/// 1.x put it there themselves, those of 2.x show what they are sent.
pub(crate) fn status(error: Error) -> Status {
    let code = Code::from(error.kind.grpc_code());
    let class = match code {
        Code::InvalidArgument => "invalid argument",
        Code::NotFound => "not found",
        Code::AlreadyExists => "already exists",
        Code::FailedPrecondition => "failed precondition",
        _ => "",
    };
    let mut message = error.message;
    if !message.ends_with(class) {
        message.push_str(": ");
        message.push_str(class);
    }
    Status::new(code, message)
}

/// Runs to its end even when the client goes away meanwhile.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = store_api::Result<T>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome.map_err(status),
        Err(_) => Err(Status::unavailable("the store is shutting down")),
    }
}

/// The references that are being written: containerd allows one writer each.
#[derive(Clone, Default)]
pub(crate) struct Writers(Arc<Mutex<BTreeMap<Key, Instant>>>);

/// Namespace and reference.
type Key = (String, String);

/// The right to write to a reference, until it is dropped.
pub(crate) struct Lock {
    writers: Writers,
    key: Key,
}

impl Writers {
    pub(crate) fn lock(&self, namespace: &str, reference: &str) -> Result<Lock, Status> {
        let key = (namespace.to_owned(), reference.to_owned());
        let mut writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = writers.get(&key) {
            let text = format!(
                "ref {namespace}/1/{reference} locked for {:?}: unavailable",
                since.elapsed()
            );
            return Err(Status::unavailable(text));
        }
        if writers.len() >= WRITERS_MAX {
            let text = format!("{WRITERS_MAX} writes are under way already");
            return Err(Status::resource_exhausted(text));
        }
        writers.insert(key.clone(), Instant::now());
        Ok(Lock { writers: self.clone(), key })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.writers.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
