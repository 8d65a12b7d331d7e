use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use store_api::{Progress, ProgressSender, ProgressState};
use tokio::sync::Notify;
use types::Digest;

use crate::db::lock;

/// Between two reports of the same state of one blob: more cannot be seen.
const INTERVAL: Duration = Duration::from_millis(100);

/// What is being reported on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) digest: Option<Digest>,
    pub(crate) diff_id: Option<Digest>,
    pub(crate) is_layer: bool,
    /// Bytes; 0: unknown.
    pub(crate) total: u64,
}

/// Steps that wait for a client before earlier ones of the same subject make room.
const QUEUE: usize = 256;

/// Tells one client how a transfer goes. It never waits for the client: of what a slow one has not
/// taken only the latest step of each subject is kept beyond [`QUEUE`].
pub(crate) struct Reporter {
    /// `None`: nobody listens.
    outbox: Option<Arc<Outbox>>,
}

#[derive(Default)]
struct Outbox {
    queue: Mutex<Queue>,
    wake: Notify,
    /// The state of each blob that moves, and when it was last told how far it is.
    told: Mutex<HashMap<Option<Digest>, (ProgressState, Instant)>>,
}

#[derive(Default)]
struct Queue {
    steps: VecDeque<Progress>,
    /// Nothing more comes.
    ended: bool,
    /// The client went away.
    gone: bool,
}

impl Outbox {
    /// The body of the task that waits for the client. It ends when all is told or the client is gone.
    async fn forward(&self, sender: ProgressSender) {
        loop {
            let (step, ended) = {
                let mut queue = lock(&self.queue);
                (queue.steps.pop_front(), queue.ended)
            };
            match step {
                Some(step) => {
                    if sender.send(step).await.is_err() {
                        let mut queue = lock(&self.queue);
                        queue.gone = true;
                        queue.steps.clear();
                        return;
                    }
                }
                None if ended => return,
                None => self.wake.notified().await,
            }
        }
    }

    fn put(&self, step: Progress, is_amount: bool) {
        let mut queue = lock(&self.queue);
        if queue.gone {
            return;
        }
        let same = |other: &Progress| other.digest == step.digest;
        if is_amount
            && let Some(last) = queue.steps.iter_mut().rev().find(|other| same(other))
            && last.state == step.state
        {
            *last = step;
            return;
        }
        if queue.steps.len() >= QUEUE
            && let Some(earlier) = queue.steps.iter().position(same)
        {
            queue.steps.remove(earlier);
        }
        queue.steps.push_back(step);
        drop(queue);
        self.wake.notify_one();
    }
}

impl Reporter {
    /// Call it in a runtime: a task waits for the client.
    pub(crate) fn new(sender: ProgressSender) -> Self {
        let outbox = Arc::new(Outbox::default());
        let mine = Arc::clone(&outbox);
        tokio::spawn(async move { mine.forward(sender).await });
        Self { outbox: Some(outbox) }
    }

    /// Reports to nobody.
    pub(crate) fn silent() -> Self {
        Self { outbox: None }
    }

    /// A change of state. A client that is gone is no error.
    pub(crate) fn state(&self, subject: &Subject, state: ProgressState, message: &str) {
        if let Some(outbox) = &self.outbox {
            outbox.put(make(subject, state, 0, message), false);
        }
    }

    /// How far a subject has come in a state, in bytes; told once in a while.
    pub(crate) fn amount(&self, subject: &Subject, state: ProgressState, current: u64) {
        let Some(outbox) = &self.outbox else { return };
        {
            let mut told = lock(&outbox.told);
            let last = told.get(&subject.digest);
            if last.is_some_and(|(of, at)| *of == state && at.elapsed() < INTERVAL) {
                return;
            }
            told.insert(subject.digest.clone(), (state, Instant::now()));
        }
        outbox.put(make(subject, state, current, ""), true);
    }

    /// A subject has come to the end of a state, whatever was told of it before.
    pub(crate) fn full(&self, subject: &Subject, state: ProgressState) {
        if let Some(outbox) = &self.outbox {
            outbox.put(make(subject, state, subject.total, ""), true);
        }
    }

    /// A meter for one state of one subject.
    pub(crate) fn meter<'a>(&'a self, subject: &'a Subject, state: ProgressState) -> Meter<'a> {
        Meter { reporter: self, subject, state }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(outbox) = &self.outbox {
            lock(&outbox.queue).ended = true;
            outbox.wake.notify_one();
        }
    }
}

pub(crate) struct Meter<'a> {
    reporter: &'a Reporter,
    subject: &'a Subject,
    state: ProgressState,
}

impl Meter<'_> {
    pub(crate) fn at(&self, current: u64) {
        self.reporter.amount(self.subject, self.state, current);
    }
}

fn make(subject: &Subject, state: ProgressState, current: u64, message: &str) -> Progress {
    Progress {
        digest: subject.digest.clone(),
        diff_id: subject.diff_id.clone(),
        is_layer: subject.is_layer,
        state,
        current,
        total: subject.total,
        message: message.into(),
    }
}
