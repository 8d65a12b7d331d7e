//! The socket on which shims report events: containerd's ttrpc service `Events.Forward`.
//!
//! What the store does itself (create, start, exec, delete, pause, resume) it publishes itself, in
//! order with its answers; of the shims' own events only exits and out-of-memory notices are news.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use prost::Message;
use protos::shim as api;
use protos::ttrpc::{self, HEADER_BYTES, Header};
use store_api::{Any, Envelope, Error, Event, Result, Timestamp};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use types::ErrorKind;

use super::{Inner, bundle, task};

/// Shims that are connected at once; each has one connection.
const CONNECTIONS_MAX: usize = 8192;
/// After a failed accept (descriptors ran out).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Topics that the store publishes itself.
const OWN_TOPICS: [&str; 7] = [
    "/tasks/create",
    "/tasks/start",
    "/tasks/delete",
    "/tasks/exec-added",
    "/tasks/exec-started",
    "/tasks/paused",
    "/tasks/resumed",
];

/// Binds the socket (0600) in place of one that a dead store left.
pub(super) fn bind(path: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(bundle::failed("remove", path, &error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(|e| bundle::failed("listen on", path, &e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| bundle::failed("chmod", path, &e))?;
    Ok(listener)
}

/// Serves until aborted or until the manager is gone. Events wait until `ready` says that all tasks
/// are known.
pub(super) fn serve(
    listener: UnixListener,
    inner: Weak<Inner>,
    ready: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (inner, ready) = (inner.clone(), ready.clone());
                    tokio::spawn(async move {
                        connection(stream, inner, ready).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept on the events socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

async fn connection(mut stream: UnixStream, inner: Weak<Inner>, mut ready: watch::Receiver<bool>) {
    let own = rustix::process::geteuid().as_raw();
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own) {
        return;
    }
    if ready.wait_for(|ready| *ready).await.is_err() {
        return;
    }
    while let Some((head, body)) = super::ttrpc::read_frame(&mut stream).await {
        let Some(inner) = inner.upgrade() else { return };
        let status = match answer(&inner, head, &body) {
            Ok(()) => None,
            Err(error) => Some(ttrpc::Status {
                code: error.kind.grpc_code(),
                message: error.message,
                details: Vec::new(),
            }),
        };
        drop(inner);
        let response = ttrpc::Response { status, payload: Vec::new() };
        let Some(frame) = ttrpc::frame(head.stream, ttrpc::TYPE_RESPONSE, &response) else {
            return;
        };
        debug_assert!(frame.len() >= HEADER_BYTES);
        if stream.write_all(&frame).await.is_err() {
            return;
        }
    }
}

fn answer(inner: &Inner, head: Header, body: &[u8]) -> Result<()> {
    let bad = |error| Error::invalid(format!("decode event: {error}"));
    let request = ttrpc::Request::decode(body).map_err(bad)?;
    if head.kind != ttrpc::TYPE_REQUEST
        || request.service != api::EVENTS_SERVICE
        || request.method != "Forward"
    {
        let text = format!("{}/{} is not served here", request.service, request.method);
        return Err(Error::new(ErrorKind::NotImplemented, text));
    }
    let forward = api::ForwardRequest::decode(&request.payload[..]).map_err(bad)?;
    let envelope = forward.envelope.ok_or_else(|| Error::invalid("event without envelope"))?;
    take(inner, envelope)
}

fn take(inner: &Inner, envelope: api::EventEnvelope) -> Result<()> {
    let bad = |error| Error::invalid(format!("decode event: {error}"));
    if OWN_TOPICS.contains(&envelope.topic.as_str()) {
        return Ok(());
    }
    let event = envelope.event.unwrap_or_default();
    let told = match envelope.topic.as_str() {
        "/tasks/exit" => {
            let exit = api::TaskExit::decode(&event.value[..]).map_err(bad)?;
            let exec_id = if exit.id == exit.container_id { "" } else { &exit.id };
            // A task or exec that is not known has told its exit before it was deleted.
            if let Ok(known) = inner.task(&envelope.namespace, &exit.container_id) {
                // The shim of an earlier run of the container may tell late, as after an absence of the
                // store's: that exit is not this task's.
                let pid = known.lock().processes.get(exec_id).map(|process| process.pid);
                if pid.is_some_and(|pid| pid != 0 && exit.pid != 0 && pid != exit.pid) {
                    tracing::debug!(
                        task = known.id,
                        pid = exit.pid,
                        "the exit of an earlier process"
                    );
                    return Ok(());
                }
                let ended = task::exit(exit.exit_status, exit.exited_at);
                known.record_exit(&*inner.host, exec_id, ended);
            }
            return Ok(());
        }
        "/tasks/oom" => {
            let oom = api::TaskOom::decode(&event.value[..]).map_err(bad)?;
            Event::TaskOom { container_id: oom.container_id }
        }
        _ => Event::Foreign {
            topic: envelope.topic,
            event: Any { type_url: event.type_url, value: event.value.into() },
        },
    };
    let timestamp = envelope.timestamp.map_or_else(Timestamp::now, |at| Timestamp {
        seconds: at.seconds,
        nanos: u32::try_from(at.nanos).unwrap_or(0),
    });
    inner.host.publish(Envelope { timestamp, namespace: envelope.namespace, event: told });
    Ok(())
}
