use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use store_api::Namespaces;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

use crate::{
    containers::Containers,
    content::Content,
    context::Context,
    diff::Diff,
    events::Events,
    grpc::{Serve, refuse},
    health::Health,
    images::Images,
    introspection::Introspection,
    leases::Leases,
    namespaces::NamespaceService,
    services as api,
    snapshots::Snapshots,
    streaming::Streaming,
    tasks::Tasks,
    transfer::Transfer,
    version::Version,
};

/// Connections at once: clients hold one each.
const CONNECTIONS_MAX: usize = 1024;
/// Calls at once on one connection. dockerd has one that waits for every process of every container.
const STREAMS_MAX: u32 = 4096;
/// Bytes of a call's headers.
const HEADERS_BYTES_MAX: u32 = 64 << 10;
/// Bytes that may be on the way in one call, and in a connection: a chunk of content fits.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// How long calls that are under way may go on after the shutdown began.
const GRACE: Duration = Duration::from_secs(5);
/// After a failed accept (descriptors ran out).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why serving ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener is none, or was shut down.
    #[error("accept on the store's socket")]
    Accept(#[source] std::io::Error),
}

/// Serves containerd's API on `socket` until `shutdown`; then lets calls that are under way end,
/// for five seconds at most. `clients`: connections open at this moment.
///
/// # Errors
/// The listener cannot accept at all. A lack of descriptors or memory is waited out.
pub async fn serve(
    namespaces: Arc<dyn Namespaces>,
    socket: UnixListener,
    shutdown: CancellationToken,
    clients: Arc<AtomicUsize>,
) -> Result<(), Error> {
    let router = Arc::new(Router::new(&Context::new(namespaces, shutdown.clone())));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let outcome = loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            Some(_) = connections.join_next() => continue,
            accepted = accept(&socket, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let client = Client::new(&clients);
                let (router, shutdown) = (router.clone(), shutdown.clone());
                connections.spawn(async move {
                    connection(stream, router, shutdown).await;
                    drop((client, place));
                });
            }
            Err(error) if is_passing(&error) => {
                tracing::warn!(%error, "accept on the store's socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Err(error) => break Err(Error::Accept(error)),
        }
    };
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        tracing::warn!("calls on the store's socket were cut off at the shutdown");
    }
    outcome
}

type Place = tokio::sync::OwnedSemaphorePermit;

async fn accept(
    socket: &UnixListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(UnixStream, Place)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = socket.accept().await?;
    Ok((stream, place))
}

/// Conditions that go away by themselves.
fn is_passing(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::AGAIN,
    ];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}

/// Counts a connection for as long as it is there.
struct Client(Arc<AtomicUsize>);

impl Client {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(stream: UnixStream, router: Arc<Router>, shutdown: CancellationToken) {
    let service = service_fn(move |request| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.answer(request).await) }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients that are killed leave so; it is no failure of ours.
        tracing::debug!(%error, "connection to the store's socket");
    }
}

/// Why a service is not there; those of containerd's that this store has no part for by name.
fn not_served(service: &str) -> String {
    let text = format!("unknown service {service}");
    match service.strip_prefix("containerd.services.sandbox.v1.") {
        Some(part) => {
            format!("{text}: sandboxes are not implemented, neither their {part} nor the rest")
        }
        None => text,
    }
}

/// Services by name.
struct Router(HashMap<&'static str, Box<dyn Serve>>);

impl Router {
    fn new(context: &Arc<Context>) -> Self {
        let services: Vec<Box<dyn Serve>> = vec![
            Box::new(api::version::VersionServer::new(Version)),
            Box::new(api::health::HealthServer::new(Health(context.clone()))),
            Box::new(api::namespaces::NamespacesServer::new(NamespaceService(context.clone()))),
            Box::new(api::containers::ContainersServer::new(Containers(context.clone()))),
            Box::new(api::content::ContentServer::new(Content(context.clone()))),
            Box::new(api::diff::DiffServer::new(Diff(context.clone()))),
            Box::new(api::events::EventsServer::new(Events(context.clone()))),
            Box::new(api::images::ImagesServer::new(Images(context.clone()))),
            Box::new(api::introspection::IntrospectionServer::new(Introspection(context.clone()))),
            Box::new(api::leases::LeasesServer::new(Leases(context.clone()))),
            Box::new(api::snapshots::SnapshotsServer::new(Snapshots(context.clone()))),
            Box::new(api::streaming::StreamingServer::new(Streaming(context.clone()))),
            Box::new(api::tasks::TasksServer::new(Tasks(context.clone()))),
            Box::new(api::transfer::TransferServer::new(Transfer(context.clone()))),
        ];
        Self(services.into_iter().map(|service| (service.name(), service)).collect())
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let kind = request.headers().get(hyper::header::CONTENT_TYPE);
        let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if request.method() != Method::POST || !is_grpc {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return response;
        }
        let path = request.uri().path().to_owned();
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/'))
        else {
            let text = format!("malformed method name: {path:?}");
            return refuse(Status::unimplemented(text)).await;
        };
        match self.0.get(service) {
            Some(found) => found.serve(method, request.map(Body::new)).await,
            None => {
                let text = not_served(service);
                refuse(Status::unimplemented(text)).await
            }
        }
    }
}
