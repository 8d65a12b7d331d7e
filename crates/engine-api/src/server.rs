//! Connections, versions, dispatch.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use api_types::ApiVersion;
use engine::Engine;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::task::JoinSet;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    body::{Body, drain},
    containers,
    error::{ApiError, Reply, empty},
    images,
    listen::{Accepted, Bound},
    networks,
    request::{Context, Query, decode},
    route::{self, Route},
    streams, system,
};

/// How long a client may take for a request's head (dockerd's ReadHeaderTimeout).
const HEAD_WAIT: Duration = Duration::from_secs(5 * 60);
/// How long requests that go on may take once the daemon ends.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long operations that were begun may take then: cut off in the middle, a container would be half
/// made.
const LAST_OPERATIONS: Duration = Duration::from_secs(10);
/// Connections at once, a listener; more wait in the socket's queue.
const CONNECTIONS: usize = 4096;
/// Pause after an accept that failed, for want of descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves clients until `shutdown`; then the sockets' files go, and requests that go on get two seconds.
/// `clients` is the number of connections that are open, hijacked ones included.
pub async fn serve(
    engine: Arc<Engine>,
    listeners: Vec<Bound>,
    shutdown: CancellationToken,
    clients: Arc<AtomicUsize>,
) {
    let mut accepting = JoinSet::new();
    let operations = TaskTracker::new();
    for listener in listeners {
        let server = Server {
            engine: engine.clone(),
            shutdown: shutdown.clone(),
            clients: clients.clone(),
            operations: operations.clone(),
        };
        accepting.spawn(server.accept(listener));
    }
    while accepting.join_next().await.is_some() {}
    operations.close();
    if tokio::time::timeout(LAST_OPERATIONS, operations.wait()).await.is_err() {
        tracing::warn!(unfinished = operations.len(), "operations are cut off");
    }
}

/// A client while it is counted.
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Arc<Self> {
        counter.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self(counter.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Server {
    engine: Arc<Engine>,
    shutdown: CancellationToken,
    clients: Arc<AtomicUsize>,
    /// What clients have begun: it goes on when they leave.
    operations: TaskTracker,
}

impl Server {
    async fn accept(self, mut listener: Bound) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept(), if connections.len() < CONNECTIONS => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    let counted = Counted::new(&self.clients);
                    connections.spawn(self.clone().connection(accepted, counted));
                }
                Err(error) => {
                    tracing::warn!(address = listener.address(), %error, "a client was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        listener.remove_file();
        let rest = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WORDS, rest).await.is_err() {
            tracing::debug!(address = listener.address(), "requests were cut off");
        }
    }
}

impl Server {
    async fn connection(self, accepted: Accepted, counted: Arc<Counted>) {
        let ready = async {
            let stream = accepted.ready().await?;
            stream.first_byte().await.map(|()| stream)
        };
        let stream = match tokio::time::timeout(HEAD_WAIT, ready).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(%error, "a client was turned away");
                return;
            }
            Err(_) => return,
        };
        let shutdown = self.shutdown.clone();
        let service = service_fn(move |request| {
            let (server, counted) = (self.clone(), counted.clone());
            async move { Ok::<_, Infallible>(server.answer(request, counted).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // Names as Go writes them: scripts look for them with case.
        let http1 = &mut builder.http1();
        http1.title_case_headers(true).timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT);
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(serving);
        let served = tokio::select! {
            served = serving.as_mut() => served,
            () = shutdown.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection broke off");
        }
    }

    async fn answer(&self, request: Request<Incoming>, counted: Arc<Counted>) -> Response<Body> {
        let method = request.method().clone();
        let path = decode(request.uri().path(), false);
        if method == Method::OPTIONS {
            return empty(StatusCode::OK);
        }
        let (version, path) = match split_version(&path) {
            Ok(split) => split,
            Err(error) => return with_headers(&self.engine, error.into_response()),
        };
        let Some((route, name)) = route::find(&method, path) else {
            return ApiError::page_not_found().into_response();
        };
        tracing::debug!(%method, path, ?route, "request");
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let (parts, body) = request.into_parts();
        let mut context = Context {
            engine: self.engine.clone(),
            version,
            parts,
            body: Some(body),
            name,
            query,
            client: counted,
        };
        let path = path.to_owned();
        // A task of its own: the connection's ends with its client, at any await.
        let operation = self.operations.spawn(async move {
            match dispatch(route, &path, &mut context).await {
                Ok(response) => response,
                Err(error) => {
                    let (status, message) = (error.status.as_u16(), &error.message);
                    tracing::debug!(%method, path, status, message, "refused");
                    if let Some(body) = context.body.take() {
                        tokio::spawn(drain(body));
                    }
                    error.into_response()
                }
            }
        });
        let response = operation.await.unwrap_or_else(|error| {
            ApiError::new(types::ErrorKind::Internal, format!("the operation failed: {error}"))
                .into_response()
        });
        with_headers(&self.engine, response)
    }
}

/// `/v1.43/containers/json` is version 1.43 and `/containers/json`.
fn split_version(path: &str) -> Result<(ApiVersion, &str), ApiError> {
    let versioned = path.strip_prefix("/v").and_then(|rest| {
        let end = rest.find('/')?;
        let number = &rest[..end];
        let digits = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        (digits && !number.is_empty()).then(|| (number, &rest[end..]))
    });
    let Some((number, rest)) = versioned else { return Ok((ApiVersion::MAX, path)) };
    let version = ApiVersion::parse(number)
        .ok_or_else(|| ApiError::bad(format!("invalid API version {number:?}")))?;
    if version < ApiVersion::MIN {
        return Err(ApiError::bad(format!(
            "client version {version} is too old. Minimum supported API version is {}, please upgrade \
             your client to a newer version",
            ApiVersion::MIN
        )));
    }
    if version > ApiVersion::MAX {
        return Err(ApiError::bad(format!(
            "client version {version} is too new. Maximum supported API version is {}",
            ApiVersion::MAX
        )));
    }
    Ok((version, rest))
}

fn with_headers(engine: &Engine, mut response: Response<Body>) -> Response<Body> {
    let (version, experimental) = engine.product();
    let headers = response.headers_mut();
    let mut put = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    put("api-version", ApiVersion::MAX.to_string());
    put("docker-experimental", experimental.to_string());
    put("ostype", "linux".into());
    put("server", format!("Docker/{} (linux)", version));
    response
}

/// Streams by their route, everything else by the first part of its path.
async fn dispatch(route: Route, path: &str, context: &mut Context) -> Reply {
    match route {
        Route::ContainerLogs
        | Route::ContainerStats
        | Route::ContainerAttach
        | Route::ContainerAttachWs
        | Route::ContainerWait
        | Route::ExecStart => return streams::dispatch(route, context).await,
        _ => {}
    }
    match path.split('/').nth(1).unwrap_or_default() {
        "containers" | "exec" | "commit" => containers::dispatch(route, context).await,
        "images" | "build" => images::dispatch(route, context).await,
        "networks" | "volumes" => networks::dispatch(route, context).await,
        _ => system::dispatch(route, context).await,
    }
}

/// A module was asked for a route that is not its own; [`dispatch`] is where that would be wrong.
pub(crate) fn misrouted(route: Route) -> Reply {
    Err(ApiError::new(types::ErrorKind::Internal, format!("route {route:?} has no handler")))
}

pub(crate) fn insert(headers: &mut HeaderMap, name: &'static str, value: &'static str) {
    headers.insert(name, HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_in_paths() {
        let split = |path: &'static str| split_version(path).map_err(|e| e.message);
        assert_eq!(split("/v1.41/_ping").unwrap().1, "/_ping");
        assert_eq!(split("/volumes").unwrap(), (ApiVersion::MAX, "/volumes"));
        assert_eq!(split("/version").unwrap().1, "/version");
        assert!(split("/v1.12/info").unwrap_err().contains("too old"));
        assert!(split("/v1.99/info").unwrap_err().contains("too new"));
        assert!(split("/v1/info").unwrap_err().contains("invalid API version"));
    }
}
