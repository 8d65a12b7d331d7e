use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use store_api::{Progress, ProgressSender, ProgressState};
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

/// Tells one client how a transfer goes. Changes of state always arrive, amounts when there is room.
pub(crate) struct Reporter {
    sender: ProgressSender,
}

impl Reporter {
    pub(crate) fn new(sender: ProgressSender) -> Self {
        Self { sender }
    }

    /// Reports to nobody.
    pub(crate) fn silent() -> Self {
        Self::new(tokio::sync::mpsc::channel(1).0)
    }

    /// A change of state, from a blocking thread. A client that is gone is no error.
    pub(crate) fn state(&self, subject: &Subject, state: ProgressState, message: &str) {
        let progress = make(subject, state, 0, message);
        if crate::pool::for_client(|| self.sender.blocking_send(progress)).is_err() {
            tracing::trace!("nobody listens to the progress any more");
        }
    }

    /// The same from a task.
    pub(crate) async fn tell(&self, subject: &Subject, state: ProgressState, message: &str) {
        let progress = make(subject, state, 0, message);
        if self.sender.send(progress).await.is_err() {
            tracing::trace!("nobody listens to the progress any more");
        }
    }

    /// A meter for one state of one subject.
    pub(crate) fn meter<'a>(&'a self, subject: &'a Subject, state: ProgressState) -> Meter<'a> {
        Meter { reporter: self, subject, state, last: Mutex::new(None) }
    }
}

pub(crate) struct Meter<'a> {
    reporter: &'a Reporter,
    subject: &'a Subject,
    state: ProgressState,
    last: Mutex<Option<Instant>>,
}

impl Meter<'_> {
    pub(crate) fn at(&self, current: u64) {
        let mut last = lock(&self.last);
        if last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        let progress = make(self.subject, self.state, current, "");
        if self.reporter.sender.try_send(progress).is_err() {
            tracing::trace!("no room for an amount of progress");
        }
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
