//! Start: of a container's first process, and of exec'd ones, which a helper makes.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use prost::Message;
use protos::shim as api;
use rustix::event::epoll::EventFlags;

use crate::bundle::Exit;
use crate::error::{Error, Result};
use crate::helper::{Abandoned, Helper};
use crate::oci::{ChildStdio, Made};
use crate::poll::Kind;
use crate::process::Stage;
use crate::service::{Answer, Call, wait_answer};
use crate::shim::Shim;
use crate::streams::{self, AdoptedStreams, Names, Parsed};

/// How long an exec may take to get to its program, unless its client waits less.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an abandoned helper may take to end before it is killed.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(1);
/// Exits of unknown processes that are kept while helpers work; the oldest goes first.
const STRAYS_MAX: usize = 1024;
/// Status of an exec that could not be started.
const START_FAILED: u32 = 255;

/// An exec that is on its way to its program.
pub(crate) struct Starting {
    helper: Helper,
    call: Call,
    streams: AdoptedStreams,
    deadline: Instant,
}

/// Everything of helpers.
#[derive(Default)]
pub(crate) struct Starts {
    /// By the key of the process that they make.
    working: std::collections::BTreeMap<u64, Starting>,
    abandoned: Vec<(Abandoned, Instant)>,
    /// (pid, status) of children that nobody knew when they ended: a program that is over before
    /// the loop came to hear of its start.
    strays: Vec<(u32, u32)>,
}

impl Starts {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let working = self.working.values().map(|s| s.deadline);
        working.chain(self.abandoned.iter().map(|(_, at)| *at)).min()
    }
}

impl Shim {
    pub(crate) fn start(&mut self, call: Call, request: &api::StartRequest) -> Answer {
        let key = self.find(&request.id, &request.exec_id)?;
        if self.process(key)?.stage != Stage::Created {
            let text = format!("cannot start a {} process", self.stage_name(key));
            return Err(Error::precondition(text));
        }
        if !request.exec_id.is_empty() {
            self.begin_start(call, key)?;
            return Ok(None);
        }
        self.container(&request.id)?.oci.start(&request.id)?;
        let process = self.process(key)?;
        process.stage = Stage::Running;
        let pid = process.pid;
        let event = api::TaskStart { container_id: request.id.clone(), pid };
        self.events.publish(&self.poller, "/tasks/start", "TaskStart", &event);
        Ok(Some(api::StartResponse { pid }.encode_to_vec()))
    }

    fn begin_start(&mut self, call: Call, key: u64) -> Result<()> {
        self.begin_waiting(call.conn)?;
        let begun = self.start_helper(key);
        let (helper, streams) = begun.inspect_err(|_| {
            self.cancel_waiting(call.conn);
            self.end_silently(key, START_FAILED);
        })?;
        let timeout = call.timeout.map_or(START_TIMEOUT, |t| t.min(START_TIMEOUT));
        let deadline = Instant::now() + timeout;
        self.starts.working.insert(key, Starting { helper, call, streams, deadline });
        if let Some(process) = self.processes.get_mut(&key) {
            process.stage = Stage::Starting;
        }
        Ok(())
    }

    fn start_helper(&mut self, key: u64) -> Result<(Helper, AdoptedStreams)> {
        let process =
            self.processes.get(&key).ok_or_else(|| Error::not_found("process does not exist"))?;
        let container = self.container(&process.container)?;
        let parsed = Parsed::new(&process.texts)?;
        let names = Names {
            namespace: &self.setup.namespace,
            container: &process.container,
            uid: container.io_uid,
            gid: container.io_gid,
        };
        let opened = streams::open(&parsed, process.texts.terminal, &names)?;
        let (child, streams) = opened.split();
        let keep = match &child {
            ChildStdio::Fds { stdin, stdout, stderr } => {
                vec![stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()]
            }
            ChildStdio::Console => Vec::new(),
        };
        let helper = Helper::start(&keep, || {
            container.oci.exec(&process.container, &process.spec, child, key)
        })?;
        self.poller.add(helper.talk(), Kind::Helper, key, EventFlags::IN)?;
        Ok((helper, streams))
    }

    /// A helper says something.
    pub(crate) fn on_helper(&mut self, key: u64) {
        let Some(starting) = self.starts.working.get(&key) else { return };
        if let Some(made) = starting.helper.receive() {
            self.end_start(key, made);
        }
    }

    /// Whether the process that ended was a helper.
    pub(crate) fn helper_ended(&mut self, pid: u32) -> bool {
        self.starts.abandoned.retain(|(helper, _)| !helper.is(pid));
        let found = self.starts.working.iter().find(|(_, s)| s.helper.is(pid));
        let Some((key, starting)) = found else { return false };
        let key = *key;
        // It has either said something, or died.
        let made = starting.helper.receive().unwrap_or_else(|| {
            Err(Error::Runtime { operation: "exec", text: "the helper process died".into() })
        });
        self.end_start(key, made);
        true
    }

    /// A child has ended that is nobody's, as far as is known now.
    pub(crate) fn note_stray(&mut self, pid: u32, status: u32) {
        if self.starts.working.is_empty() {
            return;
        }
        if self.starts.strays.len() == STRAYS_MAX {
            self.starts.strays.remove(0);
        }
        self.starts.strays.push((pid, status));
    }

    fn end_start(&mut self, key: u64, made: Result<Made>) {
        let Some(starting) = self.starts.working.remove(&key) else { return };
        self.poller.remove(starting.helper.talk());
        let pid = made.as_ref().map_or(0, |made| made.pid);
        let started = made.and_then(|made| self.started(key, starting.streams, made));
        if started.is_err() {
            self.end_silently(key, START_FAILED);
        }
        let answer = started.map(|()| api::StartResponse { pid }.encode_to_vec());
        self.end_call(&starting.call, "Start", answer);
        let over = self.starts.strays.iter().find(|(stray, _)| *stray == pid).copied();
        if self.starts.working.is_empty() {
            self.starts.strays = Vec::new();
        }
        if let Some((pid, status)) = over.filter(|(pid, _)| *pid != 0) {
            self.on_exit(pid, status);
        }
    }

    fn started(&mut self, key: u64, streams: AdoptedStreams, made: Made) -> Result<()> {
        let process = self.process(key)?;
        process.pid = made.pid;
        process.pidfd = Some(made.pidfd);
        process.spec = Vec::new();
        process.stage = Stage::Running;
        let event = api::TaskExecStarted {
            container_id: process.container.clone(),
            exec_id: process.exec_id.clone(),
            pid: made.pid,
        };
        self.adopt_streams(key, streams, made.master)?;
        self.events.publish(&self.poller, "/tasks/exec-started", "TaskExecStarted", &event);
        Ok(())
    }

    /// Gives up an exec that is being started, and answers its Start.
    pub(crate) fn cancel_start(&mut self, key: u64, error: Error) {
        let Some(starting) = self.starts.working.remove(&key) else { return };
        self.poller.remove(starting.helper.talk());
        let at = Instant::now() + ABANDONED_TIMEOUT;
        self.starts.abandoned.push((starting.helper.abandon(), at));
        self.end_silently(key, START_FAILED);
        self.end_call(&starting.call, "Start", Err(error));
    }

    pub(crate) fn on_start_deadlines(&mut self, now: Instant) {
        let (over, left) =
            std::mem::take(&mut self.starts.abandoned).into_iter().partition(|(_, at)| *at <= now);
        self.starts.abandoned = left;
        let over: Vec<(Abandoned, Instant)> = over;
        over.into_iter().for_each(|(helper, _)| helper.kill());
        let due = |s: &Starting| s.deadline <= now;
        let due: Vec<u64> =
            self.starts.working.iter().filter(|(_, s)| due(s)).map(|(key, _)| *key).collect();
        for key in due {
            // It may just have been in time.
            self.on_helper(key);
            let text = "the program was not reached in time: the container stopped or blocks the \
                        process that joins it"
                .to_owned();
            self.cancel_start(key, Error::Runtime { operation: "exec", text });
        }
    }

    /// Ends a process that never ran: nobody but its clients is told.
    pub(crate) fn end_silently(&mut self, key: u64, status: u32) {
        if let Some(process) = self.processes.get_mut(&key) {
            process.stage = Stage::Stopped(Exit { status, at: api::now() });
            process.spec = Vec::new();
            for (conn, stream) in std::mem::take(&mut process.waiters) {
                let answer = wait_answer(Exit { status, at: api::now() });
                self.end_waiting(conn, stream, Ok(answer));
            }
        }
        self.close_input_of_ended(key);
        self.after_drain(key);
    }
}
