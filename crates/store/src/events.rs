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

/// Bounded broadcast. Publishing never blocks; a subscriber that does not keep up is cut off. Filters,
/// which are clients' own and may be slow, are looked at without a lock.
#[derive(Clone, Default)]
pub struct EventBus(Arc<Mutex<Subscribers>>);

#[derive(Default)]
struct Subscribers {
    /// In the order in which they came.
    all: Vec<Arc<Subscriber>>,
    /// Of the next one.
    number: u64,
}

struct Subscriber {
    /// Higher than that of all who came before, whether they are still there or not: what was found of one
    /// must not be taken for another's.
    number: u64,
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

    /// Sends to every subscriber of the namespace. All get events in the same order, and those of calls
    /// that come one after the other in that of the calls.
    pub fn send(&self, envelope: Envelope) {
        self.send_to(&envelope, |subscriber| {
            subscriber.namespace.as_ref().is_none_or(|ns| *ns == envelope.namespace)
                && subscriber.filters.matches(&EventFields(&envelope))
        });
    }

    fn send_to(&self, envelope: &Envelope, wants: impl Fn(&Subscriber) -> bool) {
        let all = lock(&self.0).all.clone();
        let wanted: Vec<_> = all.into_iter().filter(|subscriber| wants(subscriber)).collect();
        // Both are in the order in which they came.
        let mut wanted = wanted.iter().peekable();
        lock(&self.0).all.retain(|subscriber| {
            while wanted.next_if(|wanted| wanted.number < subscriber.number).is_some() {}
            match wanted.next_if(|wanted| wanted.number == subscriber.number) {
                Some(_) => subscriber.queue.try_send(envelope.clone()).is_ok(),
                None => !subscriber.queue.is_closed(),
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
        subscribers.all.retain(|subscriber| !subscriber.queue.is_closed());
        if subscribers.all.len() >= SUBSCRIBERS {
            return Err(Error::Api(store_api::Error::new(
                types::ErrorKind::ResourceExhausted,
                format!("{SUBSCRIBERS} subscribers listen to events already"),
            )));
        }
        let number = subscribers.number;
        subscribers.number += 1;
        let namespace = namespace.map(Into::into);
        subscribers.all.push(Arc::new(Subscriber { number, namespace, filters, queue }));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;

    use super::*;

    fn envelope(name: &str) -> Envelope {
        let event = Event::ImageDelete { name: name.into() };
        Envelope { timestamp: Timestamp::now(), namespace: "here".into(), event }
    }

    #[test]
    fn filters_are_looked_at_without_the_lock() {
        let bus = EventBus::default();
        let mut all = bus.subscribe(None, &[]).unwrap();
        let mut none = bus.subscribe(Some("there"), &[]).unwrap();
        let mut some = bus.subscribe(Some("here"), &["event.name==b".into()]).unwrap();
        let looked = Cell::new(0);
        bus.send_to(&envelope("a"), |subscriber| {
            assert!(bus.0.try_lock().is_ok(), "the bus is locked");
            looked.set(looked.get() + 1);
            subscriber.namespace.is_none()
        });
        assert_eq!(looked.get(), 3);
        assert!(none.try_recv().is_err());
        bus.send(envelope("b"));
        for name in ["a", "b"] {
            assert_eq!(all.try_recv().unwrap().event, envelope(name).event);
        }
        assert_eq!(some.try_recv().unwrap().event, envelope("b").event);
        assert!(some.try_recv().is_err() && none.try_recv().is_err());
        // Who is gone makes room, and who comes while filters are looked at gets what comes later.
        drop(all);
        let late = std::cell::RefCell::new(None);
        bus.send_to(&envelope("c"), |_| {
            late.borrow_mut().get_or_insert_with(|| bus.subscribe(None, &[]).unwrap());
            true
        });
        let mut late = late.into_inner().unwrap();
        assert!(late.try_recv().is_err());
        bus.send(envelope("d"));
        assert_eq!(late.try_recv().unwrap().event, envelope("d").event);
    }

    /// One who goes while filters are looked at, and one who comes in its place.
    #[test]
    fn what_one_wanted_another_does_not_get() {
        let bus = EventBus::default();
        let old = std::cell::RefCell::new(Some(bus.subscribe(Some("here"), &[]).unwrap()));
        let new = std::cell::RefCell::new(None);
        bus.send_to(&envelope("a"), |_| {
            drop(old.take());
            new.borrow_mut().get_or_insert_with(|| bus.subscribe(Some("there"), &[]).unwrap());
            true
        });
        assert!(new.into_inner().unwrap().try_recv().is_err(), "an event of another namespace");
    }
}
