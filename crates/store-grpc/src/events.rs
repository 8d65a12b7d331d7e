use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use protos::{containerd::notices, shim};
use store_api::{Envelope, Event, EventStream, Exit, Mount, ProcessId, Stdio};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    context::{Context, status},
    convert::{any_in, any_out, required, size_out, timestamp},
    grpc::BoxStream,
    services::events as api,
};

/// Whose services subscribe to the events of all namespaces; containerd's default.
const ANY_NAMESPACE: &str = "default";

pub(crate) struct Events(pub(crate) Arc<Context>);

impl api::Events for Events {
    async fn publish(&self, request: Request<api::PublishRequest>) -> Result<Response<()>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        let event = any_in(required("event", request.event)?);
        services.events.publish(&request.topic, event).await.map_err(status)?;
        Ok(Response::new(()))
    }

    /// An event of a shim or a plugin, in the namespace that it names itself.
    async fn forward(&self, request: Request<api::ForwardRequest>) -> Result<Response<()>, Status> {
        let envelope = required("envelope", request.into_inner().envelope)?;
        let services = self.0.namespaces.open(&envelope.namespace).map_err(status)?;
        let event = any_in(required("event", envelope.event)?);
        services.events.publish(&envelope.topic, event).await.map_err(status)?;
        Ok(Response::new(()))
    }

    /// Events of all namespaces, as containerd has it; clients filter by namespace.
    async fn subscribe(
        &self,
        request: Request<api::SubscribeRequest>,
    ) -> Result<Response<BoxStream<api::Envelope>>, Status> {
        let services = self.0.namespaces.open(ANY_NAMESPACE).map_err(status)?;
        let filters = &request.get_ref().filters;
        let events = services.events.subscribe(filters, true).await.map_err(status)?;
        let snapshotter = services.snapshots.name().to_owned();
        let listening = Listening { events, snapshotter, shutdown: self.0.shutdown.clone() };
        Ok(Response::new(stream::try_unfold(listening, Listening::next).boxed()))
    }
}

struct Listening {
    events: EventStream,
    snapshotter: String,
    shutdown: CancellationToken,
}

impl Listening {
    async fn next(mut self) -> Result<Option<(api::Envelope, Self)>, Status> {
        tokio::select! {
            next = self.events.recv() => match next {
                Some(envelope) => Ok(Some((envelope_out(envelope, &self.snapshotter), self))),
                None => Err(Status::resource_exhausted(
                    "the subscriber did not keep up with the events and was cut off",
                )),
            },
            () = self.shutdown.cancelled() => {
                Err(Status::unavailable("the store is shutting down"))
            }
        }
    }
}

fn envelope_out(envelope: Envelope, snapshotter: &str) -> api::Envelope {
    api::Envelope {
        timestamp: timestamp(envelope.timestamp),
        namespace: envelope.namespace,
        topic: envelope.event.topic().to_owned(),
        event: Some(event_out(envelope.event, snapshotter.to_owned())),
    }
}

/// `snapshotter`: the one that snapshot events are told of.
fn event_out(event: Event, snapshotter: String) -> prost_types::Any {
    match event {
        Event::TaskCreate { container_id, bundle, rootfs, stdio, pid } => {
            task_create(container_id, bundle, rootfs, stdio, pid)
        }
        Event::TaskStart { container_id, pid } => {
            pack("TaskStart", &shim::TaskStart { container_id, pid })
        }
        Event::TaskExecAdded { process } => exec_added(process),
        Event::TaskExecStarted { process, pid } => exec_started(process, pid),
        Event::TaskExit { process, pid, exit } => task_exit(process, pid, exit),
        Event::TaskDelete { process, pid, exit } => task_delete(process, pid, exit),
        Event::TaskOom { container_id } => pack("TaskOOM", &shim::TaskOom { container_id }),
        Event::TaskPaused { container_id } => {
            pack("TaskPaused", &shim::TaskPaused { container_id })
        }
        Event::TaskResumed { container_id } => {
            pack("TaskResumed", &shim::TaskResumed { container_id })
        }
        Event::ImageCreate { name, labels } => {
            pack_image("ImageCreate", &notices::ImageCreate { name, labels })
        }
        Event::ImageUpdate { name, labels } => {
            pack_image("ImageUpdate", &notices::ImageUpdate { name, labels })
        }
        Event::ImageDelete { name } => pack_image("ImageDelete", &notices::ImageDelete { name }),
        Event::ContainerCreate { id, image, runtime } => {
            let options = runtime.options.map(any_out);
            let runtime = Some(notices::ContainerRuntime { name: runtime.name, options });
            pack("ContainerCreate", &notices::ContainerCreate { id, image, runtime })
        }
        Event::ContainerUpdate { id, image, labels, snapshot_key } => {
            let update = notices::ContainerUpdate { id, image, labels, snapshot_key };
            pack("ContainerUpdate", &update)
        }
        Event::ContainerDelete { id } => pack("ContainerDelete", &notices::ContainerDelete { id }),
        Event::SnapshotPrepare { key, parent } => {
            pack("SnapshotPrepare", &notices::SnapshotPrepare { key, parent, snapshotter })
        }
        Event::SnapshotCommit { key, name } => {
            pack("SnapshotCommit", &notices::SnapshotCommit { key, name, snapshotter })
        }
        Event::SnapshotRemove { key } => {
            pack("SnapshotRemove", &notices::SnapshotRemove { key, snapshotter })
        }
        Event::ContentCreate { digest, size } => {
            pack("ContentCreate", &notices::ContentCreate { digest, size: size_out(size) })
        }
        Event::ContentDelete { digest } => {
            pack("ContentDelete", &notices::ContentDelete { digest })
        }
        Event::NamespaceCreate { name, labels } => {
            pack("NamespaceCreate", &notices::NamespaceCreate { name, labels })
        }
        Event::NamespaceUpdate { name, labels } => {
            pack("NamespaceUpdate", &notices::NamespaceUpdate { name, labels })
        }
        Event::NamespaceDelete { name } => {
            pack("NamespaceDelete", &notices::NamespaceDelete { name })
        }
        Event::Foreign { event, .. } => any_out(event),
    }
}

fn pack(name: &str, message: &impl prost::Message) -> prost_types::Any {
    shim::pack(&format!("containerd.events.{name}"), message)
}

fn pack_image(name: &str, message: &impl prost::Message) -> prost_types::Any {
    shim::pack(&format!("containerd.services.images.v1.{name}"), message)
}

/// An exec's id, or the container's own for its first process: containerd's `id`.
fn id(process: &ProcessId) -> String {
    process.exec_id.clone().unwrap_or_else(|| process.container_id.clone())
}

fn task_create(
    container_id: String,
    bundle: String,
    rootfs: Vec<Mount>,
    stdio: Stdio,
    pid: u32,
) -> prost_types::Any {
    let mount = |mount: Mount| shim::Mount {
        kind: mount.kind,
        source: mount.source,
        target: String::new(),
        options: mount.options,
    };
    let message = shim::TaskCreate {
        container_id,
        bundle,
        rootfs: rootfs.into_iter().map(mount).collect(),
        io: Some(shim::TaskIo {
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            terminal: stdio.terminal,
        }),
        checkpoint: String::new(),
        pid,
    };
    pack("TaskCreate", &message)
}

fn exec_added(process: ProcessId) -> prost_types::Any {
    let exec_id = process.exec_id.unwrap_or_default();
    let message = shim::TaskExecAdded { container_id: process.container_id, exec_id };
    pack("TaskExecAdded", &message)
}

fn exec_started(process: ProcessId, pid: u32) -> prost_types::Any {
    let exec_id = process.exec_id.unwrap_or_default();
    let message = shim::TaskExecStarted { container_id: process.container_id, exec_id, pid };
    pack("TaskExecStarted", &message)
}

fn task_exit(process: ProcessId, pid: u32, exit: Exit) -> prost_types::Any {
    let message = shim::TaskExit {
        id: id(&process),
        container_id: process.container_id,
        pid,
        exit_status: exit.status,
        exited_at: timestamp(exit.exited_at),
    };
    pack("TaskExit", &message)
}

/// `id` is that of an exec; containerd's shim leaves it out for the first process.
fn task_delete(process: ProcessId, pid: u32, exit: Exit) -> prost_types::Any {
    let message = shim::TaskDelete {
        id: process.exec_id.unwrap_or_default(),
        container_id: process.container_id,
        pid,
        exit_status: exit.status,
        exited_at: timestamp(exit.exited_at),
    };
    pack("TaskDelete", &message)
}
