//! The engine's events: kept in a ring for `--since`, sent on to whoever listens.
//!
//! What is told of a container, in this order (checked against dockerd 26 with docker's own client;
//! `network …` and `volume …` once for each of its networks and named volumes):
//! - `run --rm`: create, attach, network connect, volume mount, start, network disconnect, volume
//!   unmount, die, destroy; one that does not start: create, attach, network connect, network
//!   disconnect, destroy
//! - `stop`: kill (the stop signal), kill (9, after the timeout), network disconnect, die, stop.
//!   dockerd's stop comes before or after its die, as it happens; here after
//! - `restart`: as stop, then network connect, start, restart
//! - `kill`: kill, and where it ends: network disconnect, die
//! - `rm -f`: kill (9), network disconnect, die, destroy
//! - `exec`: `exec_create: COMMAND ARGUMENTS`, `exec_start: COMMAND ARGUMENTS`, exec_die

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use api_types::{Actor, Event, Filters, Map};
use store_api::Timestamp;
use tokio::sync::broadcast;

use crate::{Error, Result, util::unix_nanos};

/// Events that can be asked for again (moby `events.eventsLimit`).
const RING: usize = 256;
/// Events that a slow listener may be behind before it loses the oldest.
const BEHIND: usize = 4096;

pub(crate) struct EventLog {
    ring: Mutex<VecDeque<Event>>,
    sender: broadcast::Sender<Event>,
}

/// A listener's events: those of the ring that it asked for, then those that come.
pub struct EventSubscription {
    replay: VecDeque<Event>,
    live: broadcast::Receiver<Event>,
    filters: Filters,
    until: Option<Timestamp>,
}

impl EventLog {
    pub(crate) fn new() -> Self {
        Self { ring: Mutex::default(), sender: broadcast::channel(BEHIND).0 }
    }

    pub(crate) fn publish(&self, kind: &str, action: &str, id: &str, attributes: Map<String>) {
        let now = Timestamp::now();
        let status = matches!(kind, "container" | "image");
        let event = Event {
            status: if status { action.into() } else { String::new() },
            id: if status { id.into() } else { String::new() },
            from: match kind {
                "container" => attributes.get("image").cloned().unwrap_or_default(),
                _ => String::new(),
            },
            r#type: kind.into(),
            action: action.into(),
            actor: Actor { id: id.into(), attributes },
            scope: "local".into(),
            time: now.seconds,
            time_nano: unix_nanos(now),
        };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == RING {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        // Nobody listening is no failure.
        drop(self.sender.send(event));
    }

    pub(crate) fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    pub(crate) fn subscribe(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
        // Names of filters that there are not select nothing and hide nothing (moby checks none).
        filters: Filters,
    ) -> Result<EventSubscription> {
        if let (Some(since), Some(until)) = (since, until)
            && since > until
        {
            return Err(Error::invalid("`since` time cannot be after `until` time"));
        }
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.sender.subscribe();
        // With `until` alone docker replays nothing, but with `since` everything after it.
        let replay = match since {
            Some(since) => {
                ring.iter().filter(|event| event.time_nano >= unix_nanos(since)).cloned().collect()
            }
            None => VecDeque::new(),
        };
        Ok(EventSubscription { replay, live, filters, until })
    }
}

impl EventSubscription {
    /// The next event that passes the filters; `None` once `until` is reached.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let event = match self.replay.pop_front() {
                Some(event) => event,
                None => self.next_live().await?,
            };
            if self.until.is_some_and(|until| event.time_nano > unix_nanos(until)) {
                return None;
            }
            if matches(&self.filters, &event) {
                return Some(event);
            }
        }
    }

    async fn next_live(&mut self) -> Option<Event> {
        loop {
            let received = match self.until {
                None => self.live.recv().await,
                Some(until) => {
                    let left = unix_nanos(until).saturating_sub(unix_nanos(Timestamp::now()));
                    let left = std::time::Duration::from_nanos(u64::try_from(left).unwrap_or(0));
                    tokio::time::timeout(left, self.live.recv()).await.ok()?
                }
            };
            match received {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "an events client is too slow and lost events");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

fn matches(filters: &Filters, event: &Event) -> bool {
    let actor = &event.actor;
    let names = |key: &str, kind: &str| {
        !filters.contains(key)
            || (event.r#type == kind
                && filters.get(key).any(|want| {
                    actor.id == want
                        || actor.id.starts_with(want)
                        || actor.attributes.get("name").is_some_and(|name| name == want)
                }))
    };
    let action = || {
        !filters.contains("event")
            || filters
                .get("event")
                .any(|want| event.action == want || event.action.split(':').next() == Some(want))
    };
    let image = || {
        !filters.contains("image")
            || filters.get("image").any(|want| {
                let familiar = |name: &str| name == want || name.split(':').next() == Some(want);
                match event.r#type.as_str() {
                    "image" => {
                        familiar(&actor.id)
                            || actor.attributes.get("name").is_some_and(|name| familiar(name))
                    }
                    "container" => actor.attributes.get("image").is_some_and(|i| familiar(i)),
                    _ => false,
                }
            })
    };
    filters.exact_match("type", &event.r#type)
        && filters.exact_match("scope", &event.scope)
        && action()
        && names("container", "container")
        && names("network", "network")
        && names("volume", "volume")
        && names("daemon", "daemon")
        && names("plugin", "plugin")
        && ["config", "node", "secret", "service"].iter().all(|key| !filters.contains(key))
        && image()
        && filters.match_labels("label", &actor.attributes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> Map<String> {
        pairs.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect()
    }

    #[tokio::test]
    async fn replay_then_live_with_filters() {
        let log = EventLog::new();
        log.publish("container", "start", "abc", attributes(&[("image", "x:1"), ("name", "n")]));
        log.publish("network", "connect", "net", attributes(&[("container", "abc")]));
        let since = Some(Timestamp { seconds: 1, nanos: 0 });
        let filters = Filters::parse(r#"{"container":["n"],"event":["start","die"]}"#).unwrap();
        let mut subscription = log.subscribe(since, None, filters).unwrap();
        assert_eq!(subscription.next().await.unwrap().action, "start");
        log.publish("container", "die", "abc", attributes(&[("name", "n")]));
        assert_eq!(subscription.next().await.unwrap().action, "die");
    }

    #[tokio::test]
    async fn until_ends_the_stream() {
        let log = EventLog::new();
        let until = Some(Timestamp { seconds: 5, nanos: 0 });
        let mut subscription = log.subscribe(None, until, Filters::default()).unwrap();
        assert!(subscription.next().await.is_none());
        assert!(log.subscribe(Some(Timestamp::now()), until, Filters::default()).is_err());
    }

    #[tokio::test]
    async fn times_far_away() {
        let log = EventLog::new();
        let at = |seconds| Some(Timestamp { seconds, nanos: 999_999_999 });
        let mut past = log.subscribe(None, at(i64::MIN), Filters::default()).unwrap();
        assert!(past.next().await.is_none());
        let mut future = log.subscribe(at(i64::MIN), at(i64::MAX), Filters::default()).unwrap();
        log.publish("container", "die", "abc", Map::new());
        assert_eq!(future.next().await.unwrap().action, "die");
    }
}
