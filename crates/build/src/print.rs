//! Output of stages that run side by side, told one stage after the other.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::BuildEvent;

/// Bytes kept of a stage whose turn has not come; what is more is counted, not kept.
const WAITING_BYTES: usize = 8 << 20;

/// Sends the events of the first unfinished stage at once and keeps those of the others.
pub(crate) struct Printer {
    events: mpsc::Sender<BuildEvent>,
    /// A build that ends early does not wait for a reader.
    failed: CancellationToken,
    state: Mutex<State>,
}

struct State {
    front: usize,
    stages: Vec<Slot>,
}

#[derive(Default)]
struct Slot {
    done: bool,
    waiting: Vec<BuildEvent>,
    bytes: usize,
    dropped: usize,
}

/// One stage's way to the printer.
#[derive(Clone)]
pub(crate) struct Voice {
    printer: Arc<Printer>,
    stage: usize,
}

impl Printer {
    /// `silent` stages are not waited for.
    pub(crate) fn new(
        events: mpsc::Sender<BuildEvent>,
        failed: CancellationToken,
        stages: usize,
        silent: impl Fn(usize) -> bool,
    ) -> Arc<Self> {
        let stages =
            (0..stages).map(|index| Slot { done: silent(index), ..Slot::default() }).collect();
        Arc::new(Self { events, failed, state: Mutex::new(State { front: 0, stages }) })
    }

    pub(crate) fn voice(self: &Arc<Self>, stage: usize) -> Voice {
        Voice { printer: self.clone(), stage }
    }

    /// Sends past all stages: for the lines around them.
    pub(crate) async fn plain(&self, event: BuildEvent) {
        // Who reads no more cancels the build by its token; nothing is lost here.
        tokio::select! {
            biased;
            _sent = self.events.send(event) => {}
            () = self.failed.cancelled() => {}
        }
    }

    async fn say(&self, stage: usize, event: BuildEvent) {
        let mut state = self.state.lock().await;
        self.advance(&mut state).await;
        let front = state.front;
        let Some(slot) = state.stages.get_mut(stage) else { return };
        if stage <= front {
            self.plain(event).await;
            return;
        }
        let size = match &event {
            BuildEvent::Stream(text) => text.len(),
            _ => 256,
        };
        if slot.bytes + size > WAITING_BYTES {
            slot.dropped += size;
            return;
        }
        slot.bytes += size;
        slot.waiting.push(event);
    }

    async fn finish(&self, stage: usize) {
        let mut state = self.state.lock().await;
        if let Some(slot) = state.stages.get_mut(stage) {
            slot.done = true;
        }
        self.advance(&mut state).await;
    }

    /// Moves past finished stages, and tells what the next one has kept.
    async fn advance(&self, state: &mut State) {
        loop {
            let front = state.front;
            let Some(slot) = state.stages.get_mut(front) else { return };
            for event in std::mem::take(&mut slot.waiting) {
                self.plain(event).await;
            }
            if std::mem::take(&mut slot.dropped) > 0 {
                let text =
                    format!("[output of this stage beyond {WAITING_BYTES} bytes is left out]\n");
                self.plain(BuildEvent::Stream(text)).await;
            }
            if !slot.done {
                return;
            }
            state.front += 1;
        }
    }
}

impl Voice {
    pub(crate) async fn event(&self, event: BuildEvent) {
        self.printer.say(self.stage, event).await;
    }

    pub(crate) async fn text(&self, text: impl Into<String>) {
        self.event(BuildEvent::Stream(text.into())).await;
    }

    /// The stage has nothing more to say.
    pub(crate) async fn finish(&self) {
        self.printer.finish(self.stage).await;
    }
}
