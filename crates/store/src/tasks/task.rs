//! One task as the store knows it: its processes, their exits, and its shim.
//!
//! A process's exit comes twice: as the shim's forwarded event, and as the answer to Wait. The first
//! to come is recorded and published, the other is nothing new. Wait's answer gives the event a
//! moment's precedence, because events arrive in order (an out-of-memory notice before the exit).

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use store_api::{Envelope, Error, Event, Exit, ProcessId, ProcessStatus, Result, Stdio, Timestamp};
use tokio::{sync::watch, task::AbortHandle};
use types::ErrorKind;

use super::{TaskHost, bundle, bundle::TaskFile, ttrpc::Client};

/// How long Wait's answer leaves the word to the forwarded event.
const EVENT_PRECEDENCE: Duration = Duration::from_millis(500);

/// Where a process is, as far as the store has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Created,
    /// Start was called and not answered: an exit that comes now is published after the start.
    Starting,
    Running,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) stage: Stage,
    pub(super) stdio: Stdio,
    /// Came while starting; not yet published.
    held: Option<Exit>,
    exit: watch::Sender<Option<Exit>>,
}

pub(super) struct State {
    /// By exec id; the first process is `""`.
    pub(super) processes: BTreeMap<String, Process>,
    pub(super) file: TaskFile,
    pub(super) paused: bool,
    /// `None`: the shim is gone.
    pub(super) client: Option<Arc<Client>>,
    /// Delete is under way or done: the shim's end is no accident.
    pub(super) deleting: bool,
}

pub(super) struct Task {
    pub(super) namespace: String,
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) state: Mutex<State>,
    /// What runs for this task in the background; ends with it.
    watchers: Mutex<Vec<AbortHandle>>,
}

impl Drop for Task {
    fn drop(&mut self) {
        for watcher in self.watchers.get_mut().unwrap_or_else(PoisonError::into_inner) {
            watcher.abort();
        }
    }
}

impl Process {
    pub(super) fn new(pid: u32, stage: Stage, stdio: Stdio) -> Self {
        Self { pid, stage, stdio, held: None, exit: watch::channel(None).0 }
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    pub(super) fn status(&self, paused: bool) -> ProcessStatus {
        match (self.exit(), self.stage) {
            (Some(_), _) => ProcessStatus::Stopped,
            (None, Stage::Created | Stage::Starting) => ProcessStatus::Created,
            (None, Stage::Running) if paused => ProcessStatus::Paused,
            (None, Stage::Running) => ProcessStatus::Running,
        }
    }
}

impl Task {
    pub(super) fn new(namespace: &str, id: &str, bundle: PathBuf, file: TaskFile) -> Arc<Self> {
        let state = State {
            processes: BTreeMap::new(),
            file,
            paused: false,
            client: None,
            deleting: false,
        };
        Arc::new(Self {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            bundle,
            state: Mutex::new(state),
            watchers: Mutex::default(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn process_id(&self, exec_id: &str) -> ProcessId {
        let exec_id = (!exec_id.is_empty()).then(|| exec_id.to_owned());
        ProcessId { container_id: self.id.clone(), exec_id }
    }

    pub(super) fn client(&self) -> Result<Arc<Client>> {
        self.lock().client.clone().ok_or_else(|| {
            let text = format!("shim of task {} is gone; the task has ended", self.id);
            Error::new(ErrorKind::FailedPrecondition, text)
        })
    }

    /// Publishes something of this task.
    pub(super) fn publish(&self, host: &dyn TaskHost, event: Event) {
        let (timestamp, namespace) = (Timestamp::now(), self.namespace.clone());
        host.publish(Envelope { timestamp, namespace, event });
    }

    /// Records and publishes an exit, unless it is known.
    pub(super) fn record_exit(&self, host: &dyn TaskHost, exec_id: &str, exit: Exit) {
        let mut state = self.lock();
        let Some(process) = state.processes.get_mut(exec_id) else { return };
        if process.exit().is_some() {
            return;
        }
        if process.stage == Stage::Starting {
            process.held = Some(exit);
            return;
        }
        self.tell_exit(host, &mut state, exec_id, exit);
    }

    /// Start was answered: its event, then an exit that came meanwhile.
    pub(super) fn record_start(&self, host: &dyn TaskHost, exec_id: &str, pid: u32) {
        let mut state = self.lock();
        let Some(process) = state.processes.get_mut(exec_id) else { return };
        process.pid = pid;
        process.stage = Stage::Running;
        let held = process.held.take();
        let event = if exec_id.is_empty() {
            Event::TaskStart { container_id: self.id.clone(), pid }
        } else {
            Event::TaskExecStarted { process: self.process_id(exec_id), pid }
        };
        self.publish(host, event);
        if let Some(exit) = held {
            self.tell_exit(host, &mut state, exec_id, exit);
        }
    }

    /// Start failed: as it was before, but for an exit that came meanwhile.
    pub(super) fn record_start_failure(&self, host: &dyn TaskHost, exec_id: &str) {
        let mut state = self.lock();
        let Some(process) = state.processes.get_mut(exec_id) else { return };
        process.stage = Stage::Created;
        if let Some(exit) = process.held.take() {
            self.tell_exit(host, &mut state, exec_id, exit);
        }
    }

    fn tell_exit(&self, host: &dyn TaskHost, state: &mut State, exec_id: &str, exit: Exit) {
        let Some(process) = state.processes.get(exec_id) else { return };
        let (pid, process_id) = (process.pid, self.process_id(exec_id));
        self.publish(host, Event::TaskExit { process: process_id, pid, exit });
        process.exit.send_replace(Some(exit));
        if exec_id.is_empty() {
            state.file.exit_told = true;
            let written = match bundle::read_exit(&self.bundle) {
                Ok(Some(_)) => state.file.write(&self.bundle),
                _ => bundle::write_exit(&self.bundle, pid, exit)
                    .and_then(|()| state.file.write(&self.bundle)),
            };
            if let Err(error) = written {
                tracing::warn!(task = self.id, %error, "record exit");
            }
        }
    }

    /// Marks an exit as known without telling it again.
    pub(super) fn restore_exit(&self, exit: Exit) {
        if let Some(process) = self.lock().processes.get("") {
            process.exit.send_replace(Some(exit));
        }
    }

    /// Runs something in the background for as long as the task is known. It must not hold the task
    /// itself, or the host: a store that is dropped ends.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| !watcher.is_finished());
        watchers.push(tokio::spawn(work).abort_handle());
    }

    /// Asks the shim for a process's exit, in the background.
    pub(super) fn watch(self: &Arc<Self>, host: &Arc<dyn TaskHost>, exec_id: &str) {
        let Ok(client) = self.client() else { return };
        let (task, host) = (Arc::downgrade(self), Arc::downgrade(host));
        let request =
            protos::shim::WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        self.spawn(async move {
            // An error is the end of the shim, or of the process's record: told by others.
            let answer = client.call::<protos::shim::WaitResponse>("Wait", &request, None).await;
            let Ok(answer) = answer else { return };
            drop(client);
            let exit = exit(answer.exit_status, answer.exited_at);
            let exec_id = request.exec_id;
            let known = task
                .upgrade()
                .and_then(|task| task.lock().processes.get(&exec_id).map(Process::subscribe));
            if let Some(mut known) = known {
                let forwarded = known.wait_for(Option::is_some);
                // Either is an answer: known by now, or not by an event.
                drop(tokio::time::timeout(EVENT_PRECEDENCE, forwarded).await);
            }
            if let (Some(task), Some(host)) = (task.upgrade(), host.upgrade()) {
                task.record_exit(&*host, &exec_id, exit);
            }
        });
    }
}

/// An exit in the seam's terms.
pub(super) fn exit(status: u32, at: Option<protos::Timestamp>) -> Exit {
    let exited_at = at.map_or_else(Timestamp::now, |at| Timestamp {
        seconds: at.seconds,
        nanos: u32::try_from(at.nanos).unwrap_or(0),
    });
    Exit { status, exited_at }
}
