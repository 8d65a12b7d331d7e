//! The layers of one image are made at once: helpers make each one's files where nobody sees them, and
//! what commits them does so in order.
//!
//! A layer that several images have is made once: all of them share its [`Slot`].

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use store_api::UnpackedImage;
use types::Digest;

use super::{growth::Growth, staged::Staged};
use crate::{
    Core,
    db::lock,
    error::{Error, Result},
};

/// Helpers for all images together, however many cores there are: each is a thread of its own, which
/// may wait for a download or for a layer below. None is a thread of the runtime, on which downloads
/// write what they wait for. In memory each has the window of a decompressor ([`WINDOW_BYTES`] at most)
/// and the names of its layer.
const HELPERS: usize = 8;
/// Of these for one image at most.
const OF_ONE_IMAGE: usize = 4;
/// Of these for one image whose layers are extracted from blobs that are here: one inflates while another's
/// files are made.
const EXTRACT_HERE: usize = 2;
/// Window of a helper's decompressor at most, bytes: `zstd -19` asks for 8 MiB, `xz -6` for 9 MiB with
/// its state. A layer that asks for more is made in its turn. All helpers together: 128 MiB.
pub(super) const WINDOW_BYTES: u64 = 16 << 20;
/// Between two looks of who waits: whoever changes something tells, this is for what nobody told.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How the core of an image's layers is held.
pub(crate) trait CoreRef: Deref<Target = Core> + Sync {
    /// Removes what will not be committed, wherever the caller runs.
    fn discard(&self, staged: Vec<Staged>);
}

impl CoreRef for &Core {
    fn discard(&self, staged: Vec<Staged>) {
        staged.iter().for_each(|staged| self.discard_staged(staged));
    }
}

impl CoreRef for Arc<Core> {
    /// On a thread of its own: the caller may be a task, and this renames and unmounts.
    fn discard(&self, staged: Vec<Staged>) {
        let core = Self::clone(self);
        let staged = Arc::new(staged);
        let theirs = Arc::clone(&staged);
        let discard = move || theirs.iter().for_each(|staged| core.discard_staged(staged));
        if std::thread::Builder::new().name("store-discard".into()).spawn(discard).is_err() {
            staged.iter().for_each(|staged| self.discard_staged(staged));
        }
    }
}

/// Layers that are being made, by namespace and chain id, and the number of helpers.
#[derive(Default)]
pub(crate) struct Slots {
    all: Mutex<HashMap<String, Arc<Slot>>>,
    helpers: AtomicUsize,
    /// How often something was committed, removed or given up.
    moved: Mutex<u64>,
    wake: Condvar,
}

/// One layer that is being made.
#[derive(Default)]
struct Slot {
    state: Mutex<SlotState>,
    changed: Condvar,
    /// The same for who waits without a thread.
    moved: tokio::sync::Notify,
    /// Somebody's turn to commit it has come since it was begun: what is below it was there then.
    is_due: AtomicBool,
}

#[derive(Default)]
enum SlotState {
    #[default]
    Idle,
    /// Somebody makes it: of a download, where there is one.
    Working(Option<Arc<Growth>>),
    Ready(Staged),
}

impl Slots {
    /// Takes helpers, `wanted` at most; none is an answer too.
    fn helpers(&self, wanted: usize) -> Helpers<'_> {
        let wanted = wanted.min(OF_ONE_IMAGE);
        let mut count = 0;
        let taken = self.helpers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| {
            count = wanted.min(HELPERS.saturating_sub(busy));
            Some(busy + count)
        });
        debug_assert!(taken.is_ok(), "the update always answers");
        Helpers { slots: self, count }
    }

    /// Tells those who wait for a layer below theirs.
    pub(crate) fn tell(&self) {
        let mut moved = lock(&self.moved);
        *moved = moved.wrapping_add(1);
        self.wake.notify_all();
    }

    /// Waits until `done` answers something; no lock is held while it looks.
    fn wait_until<T>(&self, done: impl Fn() -> Result<Option<T>>) -> Result<T> {
        loop {
            let seen = *lock(&self.moved);
            if let Some(value) = done()? {
                return Ok(value);
            }
            let moved = lock(&self.moved);
            if *moved == seen {
                drop(self.wake.wait_timeout(moved, LOOK_AGAIN));
            }
        }
    }
}

/// Helpers that were taken; given back when dropped.
struct Helpers<'a> {
    slots: &'a Slots,
    count: usize,
}

impl Drop for Helpers<'_> {
    fn drop(&mut self) {
        self.slots.helpers.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Who makes a layer. What was not handed over when this is dropped can be begun by others.
pub(crate) struct Turn<'a>(&'a Slot);

impl Turn<'_> {
    /// Hands over what was made, unless its bytes were `rejected` meanwhile: then it is given back.
    fn ready(self, staged: Staged, rejected: impl FnOnce() -> bool) -> Option<Staged> {
        let mut state = lock(&self.0.state);
        // Who rejects says so first and looks here then.
        if rejected() {
            return Some(staged);
        }
        *state = SlotState::Ready(staged);
        None
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        if matches!(*state, SlotState::Working(_)) {
            *state = SlotState::Idle;
        }
        drop(state);
        self.0.wake();
    }
}

/// What a layer's turn finds.
pub(crate) enum Found<'a> {
    /// It was made ahead, and is to be committed.
    Staged(Staged, Turn<'a>),
    /// It is to be made now. `None`: another image's download makes it too, and is not waited for.
    Nothing(Option<Turn<'a>>),
}

impl Slot {
    /// Begins, unless it is begun or done.
    fn begin(&self, growth: Option<Arc<Growth>>) -> Option<Turn<'_>> {
        let mut state = lock(&self.state);
        if !matches!(*state, SlotState::Idle) {
            return None;
        }
        *state = SlotState::Working(growth);
        self.is_due.store(false, Ordering::Release);
        Some(Turn(self))
    }

    /// Takes back what was made of a blob.
    fn take_back(&self, of: &Digest) -> Option<Staged> {
        let mut state = lock(&self.state);
        match std::mem::take(&mut *state) {
            SlotState::Ready(staged) if staged.blob() == Some(of) => Some(staged),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Lets those look again who wait for it.
    fn wake(&self) {
        // Not between their look and their wait.
        drop(lock(&self.state));
        self.changed.notify_all();
        self.moved.notify_waiters();
    }

    /// Has somebody, for whom what is below is there, to wait for who makes it? Not where this is another
    /// image's download, nor where the caller is `stopped`. `tell` is called before the first wait.
    fn is_awaited(&self, state: &SlotState, stopped: impl Fn() -> bool, tell: impl Fn()) -> bool {
        let SlotState::Working(growth) = state else { return false };
        if growth.as_ref().is_some_and(|growth| growth.is_open()) || stopped() {
            return false;
        }
        // It has all that it needs: its bytes, and what is below it, or learns that this is gone.
        if !self.is_due.swap(true, Ordering::AcqRel) {
            tell();
        }
        true
    }

    /// Takes what was made, for whom what is below is there. Who makes it is waited for, unless the caller
    /// is `stopped`; `tell` is called before.
    fn take(&self, stopped: impl Fn() -> bool, tell: impl Fn()) -> Found<'_> {
        let mut state = lock(&self.state);
        while self.is_awaited(&state, &stopped, &tell) {
            let waited = self.changed.wait_timeout(state, LOOK_AGAIN);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        match std::mem::take(&mut *state) {
            SlotState::Idle => {
                *state = SlotState::Working(None);
                Found::Nothing(Some(Turn(self)))
            }
            SlotState::Ready(staged) => {
                *state = SlotState::Working(None);
                Found::Staged(staged, Turn(self))
            }
            working @ SlotState::Working(_) => {
                *state = working;
                Found::Nothing(None)
            }
        }
    }
}

/// Where a layer's bytes come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// The blob that is here.
    Blob,
    /// A download that goes on.
    Download(Arc<Growth>),
}

#[derive(Default)]
struct Layer {
    source: Option<Source>,
    /// It needs no helper (any more).
    taken: bool,
}

#[derive(Default)]
struct State {
    layers: Vec<Layer>,
    failed: Option<Error>,
}

/// The layers of one image on their way.
pub(crate) struct Ahead<C: CoreRef> {
    pub(super) core: C,
    pub(super) ns: String,
    pub(super) image: UnpackedImage,
    slots: Vec<Arc<Slot>>,
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
    /// Wakes who waits for a failure.
    failure: tokio::sync::Notify,
}

impl<C: CoreRef> Ahead<C> {
    /// `have`: so many layers from below are there already.
    pub(crate) fn new(core: C, ns: &str, image: &UnpackedImage, have: usize) -> Self {
        let mut all = lock(&core.flights.layers.all);
        let slot = |chain_id| Arc::clone(all.entry(name(ns, chain_id)).or_default());
        let slots = image.chain_ids.iter().map(slot).collect();
        drop(all);
        let layers =
            (0..image.layers.len()).map(|i| Layer { source: None, taken: i < have }).collect();
        Self {
            core,
            ns: ns.into(),
            image: image.clone(),
            slots,
            state: Mutex::new(State { layers, failed: None }),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
            failure: tokio::sync::Notify::new(),
        }
    }

    /// The bytes of a layer are here, or come.
    pub(crate) fn comes(&self, i: usize, source: Source) {
        lock(&self.state).layers[i].source = Some(source);
        self.changed.notify_all();
    }

    /// How many helpers are worth having. Extracted layers get one, which works while they download.
    pub(crate) fn helpers_wanted(&self) -> usize {
        let open = lock(&self.state).layers.iter().filter(|layer| !layer.taken).count();
        match () {
            () if self.core.disk.copies => 0,
            () if !self.core.disk.packed.is_enabled() => open.min(1),
            () => open,
        }
    }

    /// The same where all blobs are here. One layer alone is made by who commits it; who commits several waits
    /// for helpers most of the time.
    fn helpers_wanted_here(&self) -> usize {
        match lock(&self.state).layers.iter().filter(|layer| !layer.taken).count() {
            0 | 1 => 0,
            _ if self.core.disk.copies => 0,
            open if !self.core.disk.packed.is_enabled() => open.min(EXTRACT_HERE),
            open => open,
        }
    }

    /// The body of a helper: makes layers until there is none left. `tell`: a layer's bytes that were
    /// read, while nothing else of it moves.
    pub(crate) fn help(&self, tell: &(dyn Fn(usize, u64) + Sync)) {
        while let Some((i, source)) = self.next() {
            let downloading = match &source {
                Source::Blob => None,
                Source::Download(growth) => Some(Arc::clone(growth)),
            };
            let Some(turn) = self.slots[i].begin(downloading) else { continue };
            if self.is_there(i) {
                continue;
            }
            let tell = |bytes| {
                if self.is_here(i) {
                    tell(i, bytes);
                }
            };
            match (self.stage(i, &source, &tell), &source) {
                // What cannot be expressed may be what was not sent right.
                (Ok(None | Some(Staged::MustExtract)) | Err(_), Source::Download(_)) => {
                    drop(turn);
                    self.again(i);
                }
                // Its turn comes.
                (Ok(None), Source::Blob) => {}
                (Ok(Some(staged)), source) => {
                    let rejected =
                        || matches!(source, Source::Download(growth) if growth.is_rejected());
                    if let Some(staged) = turn.ready(staged, rejected) {
                        self.core.discard_staged(&staged);
                        self.again(i);
                    }
                }
                (Err(_), Source::Blob) if self.is_stopped() => {}
                (Err(error), Source::Blob) => {
                    drop(turn);
                    self.judge(i, error);
                }
            }
        }
    }

    /// Is the layer's blob here?
    fn is_here(&self, i: usize) -> bool {
        matches!(lock(&self.state).layers[i].source, Some(Source::Blob))
    }

    /// Is layer `i`, whose blob has this digest, another thing than its tar?
    pub(crate) fn is_compressed(&self, i: usize, blob: &Digest) -> bool {
        self.image.diff_ids[i] != *blob
    }

    /// Is the layer committed? A failure to look is met by who commits it.
    fn is_there(&self, i: usize) -> bool {
        let chain_id = self.image.chain_ids[i].to_string();
        self.core.has_snapshot(&self.ns, &chain_id).unwrap_or(false)
    }

    /// The lowest layer that waits for a helper; waits for one to come.
    fn next(&self) -> Option<(usize, Source)> {
        let mut state = lock(&self.state);
        loop {
            if self.is_stopped() || state.layers.iter().all(|layer| layer.taken) {
                return None;
            }
            let waits = |layer: &&mut Layer| !layer.taken && layer.source.is_some();
            let found = state.layers.iter_mut().enumerate().find(|(_, layer)| waits(layer));
            if let Some((i, Layer { source: Some(source), taken })) = found {
                *taken = true;
                return Some((i, source.clone()));
            }
            // Every layer comes, is taken by who commits it, or is given up with all.
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing came of what was read of a download; its blob is read when that is verified.
    fn again(&self, i: usize) {
        let mut state = lock(&self.state);
        let layer = &mut state.layers[i];
        if matches!(layer.source, Some(Source::Download(_))) {
            layer.source = None;
        }
        layer.taken = false;
        drop(state);
        self.changed.notify_all();
    }

    /// The download of layer `i` has ended and is not its blob: nothing that was made of it is kept.
    pub(crate) fn reject(&self, i: usize, download: &Growth) {
        download.reject();
        if let Some(staged) = self.slots[i].take_back(&self.image.layers[i].digest) {
            self.core.discard(vec![staged]);
            self.again(i);
        }
    }

    /// An error that the image itself has, or that says that there is no room, ends all at once. Any
    /// other may be gone in the layer's turn; a damaged blob is met then, and may be downloaded again.
    fn judge(&self, i: usize, error: Error) {
        let error = self.core.blame(&self.image.layers[i].digest, error);
        let is_final = match &error {
            error if error.is_full_disk() || error.is_too_large() => true,
            Error::Archive { source, .. } => source.io().is_none(),
            error => error.is_data_loss() && self.is_blob_whole(i),
        };
        if !is_final {
            let error = store_api::Error::from(error);
            tracing::debug!(layer = i, error = %error, "a layer was not made ahead");
            return;
        }
        lock(&self.state).failed.get_or_insert(error);
        self.stop();
        self.failure.notify_waiters();
        self.failure.notify_one();
    }

    fn is_blob_whole(&self, i: usize) -> bool {
        let digest = &self.image.layers[i].digest;
        self.core.has_whole_content(&self.ns, digest).unwrap_or(false)
    }

    /// What a helper found wrong, once.
    pub(crate) fn failure(&self) -> Option<Error> {
        lock(&self.state).failed.take()
    }

    /// Ends when a helper has found something wrong.
    pub(crate) async fn failed(&self) -> Error {
        loop {
            if let Some(error) = self.failure() {
                return error;
            }
            self.failure.notified().await;
        }
    }

    /// It is layer `i`'s turn: no helper begins it any more, one that has begun it is waited for.
    pub(crate) fn take(&self, i: usize) -> Found<'_> {
        self.is_turn_of(i);
        self.slots[i].take(|| self.is_stopped(), || self.core.flights.layers.tell())
    }

    /// The wait of [`Ahead::take`] without a thread, which then finds nobody at work, as a rule.
    pub(crate) async fn made(&self, i: usize) {
        self.is_turn_of(i);
        let slot = &self.slots[i];
        let tell = || self.core.flights.layers.tell();
        loop {
            let mut moved = std::pin::pin!(slot.moved.notified());
            // From here on it is told of everything that happens after the look.
            moved.as_mut().enable();
            if !slot.is_awaited(&lock(&slot.state), || self.is_stopped(), tell) {
                return;
            }
            // Either way there is another look.
            tokio::time::timeout(LOOK_AGAIN, moved).await.ok();
        }
    }

    fn is_turn_of(&self, i: usize) {
        lock(&self.state).layers[i].taken = true;
        self.changed.notify_all();
    }

    /// Helpers end at their next look.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        let state = lock(&self.state);
        for layer in &state.layers {
            if let Some(Source::Download(growth)) = &layer.source {
                growth.break_off();
            }
        }
        drop(state);
        self.changed.notify_all();
        self.slots.iter().for_each(|slot| slot.wake());
        self.core.flights.layers.tell();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Waits until what layer `i` stands on is there, or all is given up.
    ///
    /// # Errors
    /// `NotFound` when it was there and is gone.
    pub(super) fn wait_for_parent(&self, i: usize, parent: &Digest) -> Result<()> {
        let name = parent.to_string();
        self.core.flights.layers.wait_until(|| {
            if self.is_stopped() {
                return Err(given_up());
            }
            // In this order: once the layer is due, what is below it has been there.
            let is_due = self.slots[i].is_due.load(Ordering::Acquire);
            if self.core.has_snapshot(&self.ns, &name)? {
                return Ok(Some(()));
            }
            if is_due {
                return Err(Error::not_found("parent snapshot", &name));
            }
            Ok(None)
        })
    }

    /// Leaves the slots; what nobody else wants of them is the caller's to discard.
    fn leave(&mut self) -> Vec<Staged> {
        let mut unwanted = Vec::new();
        let slots = std::mem::take(&mut self.slots);
        for (slot, chain_id) in slots.into_iter().zip(&self.image.chain_ids) {
            let mut all = lock(&self.core.flights.layers.all);
            // The map's and this one: no other image has the layer.
            if Arc::strong_count(&slot) == 2 {
                all.remove(&name(&self.ns, chain_id));
                let state = std::mem::take(&mut *lock(&slot.state));
                if let SlotState::Ready(staged) = state {
                    unwanted.push(staged);
                }
            }
            // While the map is locked: of two that leave, the second finds itself alone.
            drop(slot);
            drop(all);
        }
        unwanted
    }
}

pub(super) fn given_up() -> Error {
    Error::Api(store_api::Error::new(types::ErrorKind::Cancelled, "the unpacking was given up"))
}

fn name(ns: &str, chain_id: &Digest) -> String {
    format!("{ns} {chain_id}")
}

impl<C: CoreRef> Drop for Ahead<C> {
    fn drop(&mut self) {
        let unwanted = self.leave();
        if !unwanted.is_empty() {
            self.core.discard(unwanted);
        }
    }
}

impl Core {
    /// Works on an image's layers with as many helpers as are free, until `work` has ended.
    pub(super) fn with_helpers<T>(
        &self,
        ahead: &Ahead<&Self>,
        tell: &(dyn Fn(usize, u64) + Sync),
        work: impl FnOnce() -> T,
    ) -> T {
        let helpers = self.flights.layers.helpers(ahead.helpers_wanted_here());
        std::thread::scope(|scope| {
            for _ in 0..helpers.count {
                let builder = std::thread::Builder::new().name("store-unpack".into());
                // Without it the others do its work.
                if let Err(error) = builder.spawn_scoped(scope, || ahead.help(tell)) {
                    tracing::debug!(error = %error, "no thread for a layer");
                }
            }
            let outcome = work();
            ahead.stop();
            outcome
        })
    }
}

/// One helper's place, also of one that never came to run.
struct Helper(Arc<Ahead<Arc<Core>>>);

impl Helper {
    fn of(ahead: &Arc<Ahead<Arc<Core>>>) -> Self {
        ahead.core.flights.layers.helpers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(ahead))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.core.flights.layers.helpers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Helpers of a pull, on threads of their own; they end with the last layer, or when the pull is dropped.
pub(crate) struct Crew {
    pub(crate) ahead: Arc<Ahead<Arc<Core>>>,
    /// Ends when all of them have.
    working: tokio::sync::mpsc::Receiver<()>,
}

impl Crew {
    /// Takes the helpers that are free; `tell` as for [`Ahead::help`]. Call it in a runtime.
    pub(crate) fn start(
        ahead: Ahead<Arc<Core>>,
        tell: impl Fn(usize, u64) + Send + Sync + 'static,
    ) -> Self {
        let ahead = Arc::new(ahead);
        let (end, working) = tokio::sync::mpsc::channel(1);
        let helpers = ahead.core.flights.layers.helpers(ahead.helpers_wanted());
        let tell = Arc::new(tell);
        for _ in 0..helpers.count {
            let (helper, tell, end) = (Helper::of(&ahead), Arc::clone(&tell), end.clone());
            let runtime = tokio::runtime::Handle::current();
            let work = move || {
                // Dropped last, when it holds nothing of the store any more.
                let _end = end;
                let _runtime = runtime.enter();
                helper.0.help(&*tell);
                drop(tell);
                drop(helper);
            };
            // Without it the others do its work.
            if let Err(error) = std::thread::Builder::new().name("store-unpack".into()).spawn(work)
            {
                tracing::debug!(error = %error, "no thread for a layer");
            }
        }
        drop(helpers);
        Self { ahead, working }
    }

    /// Waits for the helpers, which have nothing to do any more, and removes what was not committed.
    pub(crate) async fn end(mut self) {
        self.ahead.stop();
        // Nothing is sent: it ends with the last sender.
        while self.working.recv().await.is_some() {}
        let ahead = Arc::clone(&self.ahead);
        drop(self);
        let leave = move || {
            // Who still has it discards.
            let Some(mut ahead) = Arc::into_inner(ahead) else { return };
            ahead.leave().iter().for_each(|staged| ahead.core.discard_staged(staged));
        };
        // The runtime ends where this fails, and the next start of the store removes it.
        tokio::task::spawn_blocking(leave).await.ok();
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.ahead.stop();
    }
}

#[cfg(test)]
mod tests;
