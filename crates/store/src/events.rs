//! The event bus: what happens in any namespace, to whoever listens.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex},
};

use store_api::{Envelope, Event, EventStream, Timestamp};
use tokio::sync::mpsc;

use crate::{
    db::lock,
    error::{Error, Result},
    filters::{Fields, Filters},
};

/// Events that may wait for a slow subscriber before it is cut off.
const QUEUE: usize = 4096;
/// Subscribers at once: each holds a queue.
const SUBSCRIBERS: usize = 1024;

/// Bounded broadcast. Publishing never blocks; a subscriber that does not keep up is cut off.
#[derive(Clone, Default)]
pub struct EventBus(Arc<Mutex<Vec<Subscriber>>>);

struct Subscriber {
    /// `None`: every namespace.
    namespace: Option<String>,
    filters: Filters,
    queue: mpsc::Sender<Envelope>,
}

impl EventBus {
    /// Stamps and sends.
    pub fn publish(&self, namespace: &str, event: Event) {
        self.send(Envelope {
            timestamp: Timestamp::now(),
            namespace: namespace.to_string(),
            event,
        });
    }

    /// Sends to every subscriber of the namespace, in the order of the calls.
    pub fn send(&self, envelope: Envelope) {
        lock(&self.0).retain(|subscriber| {
            let wanted = subscriber.namespace.as_ref().is_none_or(|ns| *ns == envelope.namespace)
                && subscriber.filters.matches(&EventFields(&envelope));
            if wanted {
                subscriber.queue.try_send(envelope.clone()).is_ok()
            } else {
                !subscriber.queue.is_closed()
            }
        });
    }

    pub(crate) fn subscribe(
        &self,
        namespace: Option<&str>,
        filters: &[String],
    ) -> Result<EventStream> {
        let filters = Filters::parse(filters)?;
        let (queue, stream) = mpsc::channel(QUEUE);
        let mut subscribers = lock(&self.0);
        subscribers.retain(|subscriber| !subscriber.queue.is_closed());
        if subscribers.len() >= SUBSCRIBERS {
            return Err(Error::Api(store_api::Error::new(
                types::ErrorKind::ResourceExhausted,
                format!("{SUBSCRIBERS} subscribers listen to events already"),
            )));
        }
        subscribers.push(Subscriber { namespace: namespace.map(Into::into), filters, queue });
        Ok(stream)
    }
}

struct EventFields<'a>(&'a Envelope);

impl Fields for EventFields<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["topic"] => Some(self.0.event.topic().into()),
            ["namespace"] => Some(self.0.namespace.as_str().into()),
            ["event", rest @ ..] => event_field(&self.0.event, &rest.join(".")),
            _ => None,
        }
    }
}

/// The fields of containerd's event messages, in their names, that clients filter by.
fn event_field<'a>(event: &'a Event, field: &str) -> Option<Cow<'a, str>> {
    let text = |value: &'a str| Some(Cow::Borrowed(value));
    match (event, field) {
        (
            Event::TaskCreate { container_id, .. }
            | Event::TaskStart { container_id, .. }
            | Event::TaskOom { container_id }
            | Event::TaskPaused { container_id }
            | Event::TaskResumed { container_id },
            "container_id",
        ) => text(container_id),
        (
            Event::TaskExecAdded { process }
            | Event::TaskExecStarted { process, .. }
            | Event::TaskExit { process, .. }
            | Event::TaskDelete { process, .. },
            "container_id",
        ) => text(&process.container_id),
        (Event::TaskExecAdded { process } | Event::TaskExecStarted { process, .. }, "exec_id") => {
            process.exec_id.as_deref().and_then(text)
        }
        (Event::TaskExit { process, .. } | Event::TaskDelete { process, .. }, "id") => {
            text(process.exec_id.as_deref().unwrap_or(&process.container_id))
        }
        (
            Event::ImageCreate { name, .. }
            | Event::ImageUpdate { name, .. }
            | Event::ImageDelete { name }
            | Event::NamespaceCreate { name, .. }
            | Event::NamespaceUpdate { name, .. }
            | Event::NamespaceDelete { name },
            "name",
        ) => text(name),
        (
            Event::ContainerCreate { id, .. }
            | Event::ContainerUpdate { id, .. }
            | Event::ContainerDelete { id },
            "id",
        ) => text(id),
        (Event::ContainerCreate { image, .. } | Event::ContainerUpdate { image, .. }, "image") => {
            text(image)
        }
        (Event::ContainerUpdate { snapshot_key, .. }, "snapshot_key") => text(snapshot_key),
        (Event::ContainerCreate { runtime, .. }, "runtime.name") => text(&runtime.name),
        (Event::TaskCreate { bundle, .. }, "bundle") => text(bundle),
        (Event::SnapshotPrepare { parent, .. }, "parent") => text(parent),
        (Event::SnapshotCommit { name, .. }, "name") => text(name),
        (
            Event::SnapshotPrepare { key, .. }
            | Event::SnapshotCommit { key, .. }
            | Event::SnapshotRemove { key },
            "key",
        ) => text(key),
        (Event::ContentCreate { digest, .. } | Event::ContentDelete { digest }, "digest") => {
            text(digest)
        }
        (
            Event::ImageCreate { labels, .. }
            | Event::ImageUpdate { labels, .. }
            | Event::ContainerUpdate { labels, .. }
            | Event::NamespaceCreate { labels, .. }
            | Event::NamespaceUpdate { labels, .. },
            _,
        ) => labels.get(field.strip_prefix("labels.")?).and_then(|value| text(value)),
        _ => None,
    }
}
