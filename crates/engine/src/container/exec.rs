//! Commands started in a running container.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api_types::{ExecCreate, ExecInspect, ExecProcessConfig, ExecStart};
use bytes::Bytes;
use serde_json::Value;
use store_api::{Any, Event, ExecTask, Exit, ProcessId, Stdio};
use tokio::sync::watch;

use super::{
    AttachSession, Container,
    attach::{InputEnd, Wanted, session},
    merge,
    record::{Record, Status},
    spec, users,
};
use crate::{
    Engine, Error, Result,
    detach::DetachKeys,
    rootfs,
    util::{blocking, random_id},
};

/// How containerd marks the specification of a process in JSON.
const PROCESS_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Execs that a container keeps; the oldest that ended are forgotten first.
const EXECS: usize = 1024;
/// Exit code of a command that was not even tried, as dockerd has it.
const CANNOT_START: i64 = 126;

/// An exec's state.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Created,
    /// Claimed by the one request that may start it.
    Starting,
    Running {
        pid: u32,
    },
    Ended {
        code: i64,
    },
}

pub(crate) struct Exec {
    id: String,
    container_id: String,
    request: ExecCreate,
    stage: Mutex<Stage>,
    ended: watch::Sender<bool>,
}

impl Exec {
    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn process(&self) -> ProcessId {
        ProcessId::exec(self.container_id.as_str(), self.id.as_str())
    }

    /// Takes the right to start it.
    ///
    /// # Errors
    /// `Conflict`, and nothing changes, when another has or had it.
    fn claim(&self) -> Result<()> {
        let mut stage = self.stage();
        let state = match *stage {
            Stage::Created => {
                *stage = Stage::Starting;
                return Ok(());
            }
            Stage::Starting | Stage::Running { .. } => "is already running",
            Stage::Ended { .. } => "has already run",
        };
        Err(Error::conflict(format!("exec command {} {state}", self.id)))
    }

    /// Ends one that did not start, unless its end is known already.
    fn fail(&self, code: i64) {
        let mut stage = self.stage();
        if !matches!(*stage, Stage::Ended { .. }) {
            *stage = Stage::Ended { code };
        }
        drop(stage);
        self.ended.send_replace(true);
    }

    pub(crate) fn id_if_live(&self) -> Option<String> {
        (!matches!(*self.stage(), Stage::Ended { .. })).then(|| self.id.clone())
    }
}

impl Engine {
    pub fn exec_create(self: &Arc<Self>, name: &str, request: ExecCreate) -> Result<String> {
        let container = self.containers.find(name)?;
        running(&container.snapshot(), name)?;
        if request.cmd.0.is_empty() {
            return Err(Error::invalid("No exec command specified"));
        }
        DetachKeys::parse(&request.detach_keys)?;
        for entry in &request.env {
            if entry.is_empty() || entry.starts_with('=') {
                return Err(Error::invalid(format!("invalid environment variable: {entry}")));
            }
        }
        let id = random_id();
        let action = format!("exec_create: {}", event_text(&request));
        let exec = Arc::new(Exec {
            id: id.clone(),
            container_id: container.id.to_string(),
            request,
            stage: Mutex::new(Stage::Created),
            ended: watch::channel(false).0,
        });
        {
            let mut execs = container.execs.lock().unwrap_or_else(PoisonError::into_inner);
            if execs.len() >= EXECS {
                execs.retain(|_, exec| exec.id_if_live().is_some());
            }
            if execs.len() >= EXECS {
                return Err(Error::conflict(format!(
                    "container {} has {EXECS} execs, no more are kept",
                    container.id
                )));
            }
            execs.insert(id.clone(), exec);
        }
        self.exec_event(&container, &action, &id, None);
        Ok(id)
    }

    fn find_exec(&self, id: &str) -> Result<(Arc<Container>, Arc<Exec>)> {
        for container in self.containers.all() {
            let execs = container.execs.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(exec) = execs.get(id).cloned() {
                drop(execs);
                return Ok((container, exec));
            }
        }
        Err(Error::not_found(format!("No such exec instance: {id}")))
    }

    /// Starts an exec. Attached unless `Detach`: the session's output ends with the process. Why a command
    /// does not start is told an attached client in its stream, as dockerd does, whose clients expect
    /// the stream in any case.
    pub async fn exec_start(
        self: &Arc<Self>,
        id: &str,
        start: ExecStart,
    ) -> Result<Option<AttachSession>> {
        let (container, exec) = self.find_exec(id)?;
        running(&container.snapshot(), container.id.as_str())?;
        exec.claim()?;
        let detach = start.detach;
        let error = match self.start_exec(&container, &exec, start).await {
            Ok(session) => return Ok(session),
            Err(error) => error,
        };
        exec.fail(CANNOT_START);
        if detach {
            return Err(error);
        }
        let (session, backend) = session(exec.request.tty);
        let text = Bytes::from(format!("{}\r\n", error.message));
        // There is room for one, and its receiver is in `session`.
        drop(backend.output.try_send(super::Output::Stdout(text)));
        Ok(Some(session))
    }

    async fn start_exec(
        self: &Arc<Self>,
        container: &Arc<Container>,
        exec: &Arc<Exec>,
        start: ExecStart,
    ) -> Result<Option<AttachSession>> {
        let record = container.snapshot();
        let request = &exec.request;
        let keys = DetachKeys::parse(&request.detach_keys)?;
        let process = self.exec_process(&record, request, start.console_size).await?;
        let attached = !start.detach;
        let none = || "gantry://none".to_string();
        let stdio = Stdio {
            stdin: if attached && request.attach_stdin {
                "gantry://attach?once=true".into()
            } else {
                String::new()
            },
            stdout: none(),
            stderr: if request.tty { String::new() } else { none() },
            terminal: request.tty,
        };
        let task = ExecTask {
            container_id: exec.container_id.clone(),
            exec_id: exec.id.clone(),
            process: Any { type_url: PROCESS_URL.into(), value: Bytes::from(process.to_string()) },
            stdio,
        };
        self.services.tasks.exec(task).await.map_err(exec_failed)?;
        let wanted = Wanted {
            stdin: attached && request.attach_stdin,
            stdout: attached && request.attach_stdout,
            stderr: attached && request.attach_stderr,
            input_end: if request.tty { InputEnd::Leaves } else { InputEnd::Closes },
            // Without a terminal the bytes of the keys are input like any others.
            detach: request.tty.then_some(keys),
        };
        let started = self.start_exec_task(container, exec, attached.then_some(wanted)).await;
        if started.is_err() {
            // What is left of it in the store would count against the container's execs.
            self.undo_task(&exec.process()).await;
        }
        started
    }

    /// Starts the store's exec, connected before anything runs where there is a client.
    async fn start_exec_task(
        self: &Arc<Self>,
        container: &Arc<Container>,
        exec: &Arc<Exec>,
        wanted: Option<Wanted>,
    ) -> Result<Option<AttachSession>> {
        let request = &exec.request;
        let client = match wanted {
            Some(wanted) => Some((self.connect(&exec.process(), &wanted).await?, wanted)),
            None => None,
        };
        let pid = match self.services.tasks.start(&exec.process()).await {
            Ok(pid) => pid,
            Err(error) => {
                let error = exec_failed(error);
                *exec.stage() = Stage::Ended { code: exit_code(&error.message) };
                return Err(error);
            }
        };
        *exec.stage() = Stage::Running { pid };
        let action = format!("exec_start: {}", event_text(request));
        self.exec_event(container, &action, &exec.id, None);
        let session = client.map(|(connection, wanted)| {
            let (session, backend) = session(request.tty);
            let ended = Some(exec.ended.subscribe());
            self.pump(container.clone(), connection, backend, wanted, ended);
            session
        });
        self.watch_exec(container.clone(), exec.clone());
        Ok(session)
    }

    fn watch_exec(self: &Arc<Self>, container: Arc<Container>, exec: Arc<Exec>) {
        let engine = self.clone();
        tokio::spawn(async move {
            let process = exec.process();
            let ask = || engine.services.tasks.wait(&process);
            let exit = super::exit::ask_for_exit(ask, tokio::time::sleep, &process).await;
            let code = exit.map_or(255, |Exit { status, .. }| i64::from(status));
            *exec.stage() = Stage::Ended { code };
            exec.ended.send_replace(true);
            if let Err(error) = engine.services.tasks.delete(&exec.process()).await
                && !error.is_not_found()
            {
                tracing::debug!(exec = %exec.id, %error, "an exec was not deleted");
            }
            engine.exec_event(&container, "exec_die", &exec.id, Some(code));
        });
    }

    fn exec_event(&self, container: &Container, action: &str, id: &str, code: Option<i64>) {
        let mut attributes = container.record().attributes();
        attributes.insert("execID".into(), id.into());
        if let Some(code) = code {
            attributes.insert("exitCode".into(), code.to_string());
        }
        self.events.publish("container", action, container.id.as_str(), attributes);
    }

    /// The process object of the runtime specification.
    async fn exec_process(
        self: &Arc<Self>,
        record: &Record,
        request: &ExecCreate,
        size: Option<[u32; 2]>,
    ) -> Result<Value> {
        let process = rootfs::InitProcess::of(record).ok_or_else(|| not_running(record))?;
        let user_text =
            if request.user.is_empty() { record.config.user.clone() } else { request.user.clone() };
        let groups = record.host_config.group_add.clone();
        let user = blocking(move || {
            let root = process.open_root()?;
            users::resolve(&root, &user_text, &groups)
        })
        .await?;
        let capabilities = if request.privileged {
            spec::all_capabilities()
        } else {
            spec::capabilities(&record.host_config)?
        };
        let mut env = merge::process_env(
            &record.config,
            &record.hostname(),
            // One that ended meanwhile has nothing to tell.
            self.link_env(record).unwrap_or_default(),
        );
        if request.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
            env.push("TERM=xterm".into());
        }
        let mut env = merge::merge_env_over(env, &request.env);
        if !env.iter().any(|entry| entry.starts_with("HOME=")) {
            let home = if user.home.is_empty() { "/" } else { user.home.as_str() };
            env.push(format!("HOME={home}"));
        }
        let cwd = [&request.working_dir, &record.config.working_dir]
            .into_iter()
            .find(|dir| !dir.is_empty())
            .map_or("/", String::as_str);
        if !cwd.starts_with('/') {
            return Err(Error::invalid(format!(
                "the working directory '{cwd}' is invalid, it needs to be an absolute path"
            )));
        }
        spec::process(&spec::ProcessInput {
            host: &record.host_config,
            default_ulimits: &self.config.default_ulimits,
            no_new_privileges: spec::no_new_privileges(
                &record.host_config,
                self.config.no_new_privileges,
            )?,
            user: &user,
            capabilities: &capabilities,
            args: &request.cmd.0,
            env: &env,
            cwd,
            terminal: request.tty,
            console_size: size.or(request.console_size).unwrap_or_default(),
        })
    }

    pub async fn exec_resize(&self, id: &str, width: u16, height: u16) -> Result<()> {
        let (_, exec) = self.find_exec(id)?;
        if !matches!(*exec.stage(), Stage::Running { .. }) {
            return Err(Error::conflict(format!("exec {id} is not running")));
        }
        Ok(self.services.tasks.resize(&exec.process(), width, height).await?)
    }

    pub fn exec_inspect(&self, id: &str) -> Result<ExecInspect> {
        let (_, exec) = self.find_exec(id)?;
        let stage = exec.stage().clone();
        let request = &exec.request;
        let mut words = request.cmd.0.iter().cloned();
        let (pid, code) = match stage {
            Stage::Created | Stage::Starting => (0, None),
            Stage::Running { pid } => (i64::from(pid), None),
            Stage::Ended { code } => (0, Some(code)),
        };
        Ok(ExecInspect {
            id: exec.id.clone(),
            running: matches!(stage, Stage::Starting | Stage::Running { .. }),
            exit_code: code,
            process_config: ExecProcessConfig {
                tty: request.tty,
                entrypoint: words.next().unwrap_or_default(),
                arguments: words.collect(),
                privileged: Some(request.privileged),
                user: request.user.clone(),
            },
            open_stdin: request.attach_stdin,
            open_stderr: request.attach_stderr,
            open_stdout: request.attach_stdout,
            can_remove: matches!(stage, Stage::Ended { .. }),
            container_id: exec.container_id.clone(),
            detach_keys: String::new(),
            pid,
        })
    }

    /// Whether an exec can be started at this moment.
    ///
    /// # Errors
    /// Conflict when its container does not run, or is paused.
    pub fn exec_ready(&self, id: &str) -> Result<()> {
        let (container, exec) = self.find_exec(id)?;
        running(&container.record(), &exec.container_id)
    }

    /// Execs end with their container.
    pub(crate) fn forget_execs(&self, container: &Container) {
        let execs = container.execs.lock().unwrap_or_else(PoisonError::into_inner);
        for exec in execs.values() {
            let mut stage = exec.stage();
            if matches!(*stage, Stage::Running { .. }) {
                *stage = Stage::Ended { code: 137 };
                exec.ended.send_replace(true);
            }
        }
    }

    /// The store's word about a process: out of memory.
    pub(crate) fn on_store_event(&self, event: &Event) {
        let Event::TaskOom { container_id } = event else { return };
        let Ok(container) = self.containers.find(container_id) else { return };
        container.oom_killed.store(true, std::sync::atomic::Ordering::Relaxed);
        self.container_event(&container, "oom");
    }

    /// Runs a command to its end and answers its output, cut at `limit_bytes`, and its exit code; one that
    /// takes longer than `timeout` is killed and answers `None`. Health checks are made of this.
    pub(crate) async fn exec_collect(
        self: &Arc<Self>,
        container: &Arc<Container>,
        request: ExecCreate,
        limit_bytes: usize,
        timeout: Duration,
    ) -> Result<(Vec<u8>, Option<i64>)> {
        let id = self.exec_create(container.id.as_str(), request)?;
        let (_, exec) = self.find_exec(&id)?;
        let mut collected = Vec::new();
        let run = self.run_collecting(&exec, limit_bytes, &mut collected);
        let finished = tokio::time::timeout(timeout, run).await.is_ok();
        if !finished
            && let Err(error) =
                self.services.tasks.kill(&exec.process(), super::signal::SIGKILL, true).await
        {
            tracing::debug!(exec = %exec.id, %error, "a command that took too long was not killed");
        }
        let code = match *exec.stage() {
            Stage::Ended { code } if finished => Some(code),
            _ => None,
        };
        container.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        Ok((collected, code))
    }

    async fn run_collecting(
        self: &Arc<Self>,
        exec: &Exec,
        limit_bytes: usize,
        collected: &mut Vec<u8>,
    ) {
        match self.exec_start(&exec.id, ExecStart::default()).await {
            Ok(Some(mut session)) => {
                while let Some(output) = session.output.recv().await {
                    let (super::Output::Stdout(bytes) | super::Output::Stderr(bytes)) = output
                    else {
                        continue;
                    };
                    let room = limit_bytes.saturating_sub(collected.len()).min(bytes.len());
                    collected.extend_from_slice(&bytes[..room]);
                }
                let mut ended = exec.ended.subscribe();
                // The sender lives in `exec`, which is held here: it cannot be gone.
                drop(ended.wait_for(|ended| *ended).await);
            }
            Ok(None) => {}
            Err(error) => {
                collected.extend_from_slice(error.message.as_bytes());
                exec.fail(exit_code(&error.message));
            }
        }
    }
}

/// `name` is what the user called it.
fn running(record: &Record, name: &str) -> Result<()> {
    match record.status {
        Status::Running { paused: true, .. } => Err(Error::conflict(format!(
            "Container {name} is paused, unpause the container before exec"
        ))),
        Status::Running { .. } => Ok(()),
        Status::Restarting { .. } => Err(Error::conflict(format!(
            "Container {} is restarting, wait until the container is running",
            record.id
        ))),
        _ => Err(not_running(record)),
    }
}

/// A command as events tell it: program, space, arguments (moby `daemon/exec.go`).
fn event_text(request: &ExecCreate) -> String {
    let (program, arguments) = request.cmd.0.split_first().map_or(("", &[][..]), |(p, a)| (p, a));
    format!("{program} {}", arguments.join(" "))
}

fn not_running(record: &Record) -> Error {
    Error::conflict(format!("container {} is not running", record.id))
}

/// dockerd's words around a runtime's failure.
fn exec_failed(error: store_api::Error) -> Error {
    const RUNTIME: &str = "OCI runtime exec failed: ";
    let inner = error.message.strip_prefix(RUNTIME).unwrap_or(&error.message);
    let inner = inner.strip_prefix("exec failed: ").unwrap_or(inner);
    let inner = inner.strip_suffix(": unknown").unwrap_or(inner);
    Error::new(types::ErrorKind::InvalidArgument, format!("{RUNTIME}exec failed: {inner}: unknown"))
}

/// moby `daemon/exec.go`: 126 and 127 from the runtime's words.
fn exit_code(message: &str) -> i64 {
    if message.contains("executable file not found") || message.contains("no such file") {
        127
    } else if message.contains("permission denied") || message.contains("not a directory") {
        126
    } else {
        128
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_request_may_start_an_exec() {
        let exec = Exec {
            id: "some".into(),
            container_id: "other".into(),
            request: ExecCreate::default(),
            stage: Mutex::new(Stage::Created),
            ended: watch::channel(false).0,
        };
        let won = std::thread::scope(|scope| {
            let claims: Vec<_> = (0..8).map(|_| scope.spawn(|| exec.claim().is_ok())).collect();
            claims.into_iter().map(|claim| claim.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1);
        // A loser changes nothing.
        assert_eq!(*exec.stage(), Stage::Starting);
        let error = exec.claim().unwrap_err();
        assert_eq!(error.kind, types::ErrorKind::Conflict);
        assert_eq!(error.message, "exec command some is already running");
        exec.fail(127);
        exec.fail(126);
        assert_eq!(*exec.stage(), Stage::Ended { code: 127 });
        assert_eq!(exec.claim().unwrap_err().message, "exec command some has already run");
    }

    #[test]
    fn processes_have_limits_and_privileges_of_the_container_and_the_daemon() {
        let ulimit = |name: &str| api_types::Ulimit { name: name.into(), soft: 7, hard: 8 };
        let mut host = api_types::HostConfig::default();
        host.resources.ulimits = vec![ulimit("nofile")];
        let defaults = [("nproc".to_string(), 1, 2), ("nofile".to_string(), 3, 4)];
        let made = |host: &api_types::HostConfig, daemon: bool| {
            spec::process(&spec::ProcessInput {
                host,
                default_ulimits: &defaults,
                no_new_privileges: spec::no_new_privileges(host, daemon).unwrap(),
                user: &users::User::default(),
                capabilities: &[],
                args: &[],
                env: &[],
                cwd: "/",
                terminal: true,
                console_size: [0, 0],
            })
            .unwrap()
        };
        let process = made(&host, true);
        let limit = |name: &str, soft: u32, hard: u32| serde_json::json!({ "type": name, "soft": soft, "hard": hard });
        let limits = serde_json::json!([limit("RLIMIT_NPROC", 1, 2), limit("RLIMIT_NOFILE", 7, 8)]);
        assert_eq!(process["rlimits"], limits);
        assert_eq!(process["noNewPrivileges"], true);
        assert!(process.get("consoleSize").is_none());
        assert_eq!(made(&host, false)["noNewPrivileges"], false);
        host.security_opt = vec!["no-new-privileges=false".into()];
        assert_eq!(made(&host, true)["noNewPrivileges"], false);
    }

    #[test]
    fn failed_execs_in_dockerds_words() {
        let whole = "OCI runtime exec failed: exec failed: unable to start container process: exec: \"x\": permission denied: unknown";
        for text in [
            "unable to start container process: exec: \"x\": permission denied",
            "OCI runtime exec failed: unable to start container process: exec: \"x\": permission denied",
            whole,
        ] {
            let error = exec_failed(store_api::Error::internal(text));
            assert_eq!(error.message, whole);
            assert_eq!(exit_code(&error.message), 126);
        }
    }

    #[test]
    fn events_tell_program_and_arguments() {
        let text = |words: &[&str]| {
            let words = words.iter().map(|word| (*word).to_string()).collect();
            event_text(&ExecCreate { cmd: api_types::StrSlice(words), ..ExecCreate::default() })
        };
        assert_eq!(text(&["true"]), "true ");
        assert_eq!(text(&["sh", "-c", "a b"]), "sh -c a b");
    }
}
