//! The calls of `containerd.task.v2.Task`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use protos::shim as api;
use rustix::event::epoll::EventFlags;
use rustix::termios::Winsize;

use crate::bundle::{Exit, ShimFile, VERSION};
use crate::error::{Context, Error, Result, ignore};
use crate::forward::Port;
use crate::oci::Oci;
use crate::poll::Kind;
use crate::process::{Container, Io, Process, Stage};
use crate::shim::Shim;
use crate::stdio::StdioTexts;
use crate::streams::{self, Names, Parsed};

/// Containers of one shim; a pod has few.
const CONTAINERS_MAX: usize = 64;
/// Exec'd processes of one container that were not deleted.
const EXECS_MAX: usize = 1024;
/// What an answer to Connect names as the shim's version.
const SHIM_VERSION: &str = env!("CARGO_PKG_VERSION");
const SIGKILL: u32 = 9;

pub(crate) type Answer = Result<Option<Vec<u8>>>;

/// Where a call came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) conn: u64,
    pub(crate) stream: u32,
    /// How long its client waits.
    pub(crate) timeout: Option<Duration>,
}

fn decode<T: Message + Default>(object: &'static str, payload: &[u8]) -> Result<T> {
    T::decode(payload).map_err(|source| Error::Decode { object, source })
}

#[allow(clippy::unnecessary_wraps)]
fn encode(message: &impl Message) -> Answer {
    Ok(Some(message.encode_to_vec()))
}

fn empty() -> Answer {
    Ok(Some(Vec::new()))
}

/// Wait's answer.
pub(crate) fn wait_answer(exit: Exit) -> Vec<u8> {
    api::WaitResponse { exit_status: exit.status, exited_at: Some(exit.at) }.encode_to_vec()
}

/// Options of a Create request, whoever wrote them.
struct CreateOptions {
    runtime: api::RuncOptions,
    ports: Vec<Port>,
}

impl Shim {
    /// Answers a call, or `None` if the answer comes later.
    pub(crate) fn call(&mut self, call: Call, method: &str, payload: &[u8]) -> Answer {
        match method {
            "State" => self.state(&decode("StateRequest", payload)?),
            "Create" => self.create(decode("CreateTaskRequest", payload)?),
            "Start" => self.start(call, &decode("StartRequest", payload)?),
            "Delete" => self.delete(&decode("DeleteRequest", payload)?),
            "Pids" => self.pids(&decode("PidsRequest", payload)?),
            "Pause" => self.pause(&decode::<api::PauseRequest>("PauseRequest", payload)?.id),
            "Resume" => self.resume(&decode::<api::ResumeRequest>("ResumeRequest", payload)?.id),
            "Checkpoint" => Err(Error::unsupported("Checkpoint")),
            "Kill" => self.kill(&decode("KillRequest", payload)?),
            "Exec" => self.exec(decode("ExecProcessRequest", payload)?),
            "ResizePty" => self.resize_pty(&decode("ResizePtyRequest", payload)?),
            "CloseIO" => self.close_io(&decode("CloseIORequest", payload)?),
            "Update" => self.update(&decode("UpdateTaskRequest", payload)?),
            "Wait" => self.wait(call, &decode("WaitRequest", payload)?),
            "Stats" => self.stats(&decode("StatsRequest", payload)?),
            "Connect" => self.connect(&decode("ConnectRequest", payload)?),
            "Shutdown" => {
                // With containers left it is not meant for them (containerd's shim does the same).
                decode::<api::ShutdownRequest>("ShutdownRequest", payload)?;
                if self.containers.is_empty() {
                    self.begin_shutdown();
                }
                empty()
            }
            _ => Err(Error::unsupported(format!("method {method}"))),
        }
    }

    fn create(&mut self, request: api::CreateTaskRequest) -> Answer {
        if self.containers.contains_key(&request.id) {
            return Err(Error::exists(&request.id));
        }
        if self.containers.len() == CONTAINERS_MAX {
            return Err(Error::exhausted(format!("more than {CONTAINERS_MAX} containers")));
        }
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(Error::unsupported("Create from a checkpoint"));
        }
        let options = create_options(request.options.as_ref())?;
        let bundle = PathBuf::from(&request.bundle);
        let key = self.fresh_id();
        let ports = self.forwarder.open(&self.poller, key, &options.ports);
        let made = ports.and_then(|()| self.create_in(key, &request, &bundle, &options.runtime));
        let pid = made.inspect_err(|_| {
            self.forwarder.close(&self.poller, key);
            self.undo_create(&request.id, key);
            if !request.rootfs.is_empty() {
                // The reason of the failure is the one to tell.
                drop(crate::rootfs::unmount_all(&bundle.join("rootfs")));
            }
        })?;
        let event = api::TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(api::TaskIo {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            }),
            checkpoint: String::new(),
            pid,
        };
        self.events.publish(&self.poller, "/tasks/create", "TaskCreate", &event);
        encode(&api::CreateTaskResponse { pid })
    }

    /// After a failure past the runtime's own create.
    fn undo_create(&mut self, id: &str, key: u64) {
        if let Some(container) = self.containers.remove(id)
            && let Err(error) = container.oci.delete(id, true)
        {
            self.diagnostics.error(&error.chain());
        }
        if let Some(mut process) = self.processes.remove(&key) {
            self.drop_streams(&mut process.io);
        }
    }

    fn create_in(
        &mut self,
        key: u64,
        request: &api::CreateTaskRequest,
        bundle: &Path,
        options: &api::RuncOptions,
    ) -> Result<u32> {
        let texts = StdioTexts {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let parsed = Parsed::new(&texts)?;
        let oci = Oci::new(options, &self.setup.namespace, bundle, &self.setup.socket);
        let names = Names {
            namespace: &self.setup.namespace,
            container: &request.id,
            uid: options.io_uid,
            gid: options.io_gid,
        };
        let (child, streams) = streams::open(&parsed, texts.terminal, &names)?.split();
        crate::rootfs::mount_all(&request.rootfs, &bundle.join("rootfs"))?;
        let mounted = !request.rootfs.is_empty();
        let file = ShimFile {
            version: VERSION,
            shim_pid: rustix::process::getpid().as_raw_nonzero().get().unsigned_abs(),
            runtime_root: oci.root().to_owned(),
            binary: oci.binary().map(str::to_owned),
            systemd_cgroup: options.systemd_cgroup,
            mounted,
        };
        crate::bundle::write_shim(bundle, &file)?;
        let made = oci.create(&request.id, bundle, child, options)?;
        let container = Container {
            bundle: bundle.to_owned(),
            oci,
            init: key,
            execs: BTreeMap::new(),
            paused: false,
            mounted,
            private_pids: SpecView::of(bundle).has_private_pids(),
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            oom: None,
        };
        let process = Process {
            container: request.id.clone(),
            exec_id: String::new(),
            pid: made.pid,
            pidfd: Some(made.pidfd),
            stage: Stage::Created,
            io: Io { stdin: parsed.stdin(texts.terminal), ..Io::default() },
            texts,
            spec: Vec::new(),
            waiters: Vec::new(),
            gone: false,
        };
        self.containers.insert(request.id.clone(), container);
        self.processes.insert(key, process);
        self.adopt_streams(key, streams, made.master)?;
        self.watch_oom(&request.id, key);
        Ok(made.pid)
    }

    fn watch_oom(&mut self, id: &str, key: u64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(watch) = container.oci.oom_watch(id)
            && self.poller.add(watch.fd(), Kind::Oom, key, EventFlags::IN).is_ok()
        {
            container.oom = Some(watch);
        }
    }

    /// The kernel says something of this container's memory.
    pub(crate) fn on_oom(&mut self, key: u64) {
        let Some(id) = self.processes.get(&key).map(|p| p.container.clone()) else { return };
        let Some(container) = self.containers.get_mut(&id) else { return };
        let Some(watch) = &mut container.oom else { return };
        match watch.drain() {
            Ok(true) => {
                let event = api::TaskOom { container_id: id };
                self.events.publish(&self.poller, "/tasks/oom", "TaskOOM", &event);
            }
            Ok(false) => {}
            Err(error) => {
                self.diagnostics.error(&error.chain());
                self.poller.remove(watch.fd());
                container.oom = None;
            }
        }
    }

    fn exec(&mut self, request: api::ExecProcessRequest) -> Answer {
        if request.exec_id.is_empty() {
            return Err(Error::invalid("exec id is empty"));
        }
        let container = self.container(&request.id)?;
        if container.execs.contains_key(&request.exec_id) || request.exec_id == request.id {
            return Err(Error::exists(&request.exec_id));
        }
        if container.execs.len() == EXECS_MAX {
            return Err(Error::exhausted(format!("more than {EXECS_MAX} execs")));
        }
        if let Some(Stage::Stopped(_)) = self.processes.get(&container.init).map(|p| p.stage) {
            return Err(Error::precondition("cannot exec in a stopped container"));
        }
        let texts = StdioTexts {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let parsed = Parsed::new(&texts)?;
        let spec = request.spec.map(|any| any.value).unwrap_or_default();
        let spec = with_terminal(&spec, texts.terminal)?;
        let key = self.fresh_id();
        let process = Process {
            container: request.id.clone(),
            exec_id: request.exec_id.clone(),
            pid: 0,
            pidfd: None,
            stage: Stage::Created,
            io: Io { stdin: parsed.stdin(texts.terminal), ..Io::default() },
            texts,
            spec,
            waiters: Vec::new(),
            gone: false,
        };
        self.processes.insert(key, process);
        if let Some(container) = self.containers.get_mut(&request.id) {
            container.execs.insert(request.exec_id.clone(), key);
        }
        let event = api::TaskExecAdded { container_id: request.id, exec_id: request.exec_id };
        self.events.publish(&self.poller, "/tasks/exec-added", "TaskExecAdded", &event);
        empty()
    }

    fn delete(&mut self, request: &api::DeleteRequest) -> Answer {
        let key = self.find(&request.id, &request.exec_id)?;
        let is_init = request.exec_id.is_empty();
        match self.process(key)?.stage {
            Stage::Running => {
                return Err(Error::precondition(format!(
                    "cannot delete a {} process",
                    self.stage_name(key)
                )));
            }
            Stage::Created if is_init => self.end_created(&request.id, key)?,
            Stage::Created => self.end_silently(key, 0),
            Stage::Starting => self.cancel_start(key, deleted()),
            Stage::Stopped(_) => {}
        }
        if is_init {
            let container = self.container(&request.id)?;
            container.oci.delete(&request.id, false)?;
            if container.mounted {
                crate::rootfs::unmount_all(&container.bundle.join("rootfs"))?;
            }
        }
        let process = self.process(key)?;
        let exit = process.exit().unwrap_or(Exit { status: 0, at: api::now() });
        let pid = process.pid;
        self.remove_process(&request.id, &request.exec_id, key);
        if is_init {
            let event = api::TaskDelete {
                container_id: request.id.clone(),
                pid,
                exit_status: exit.status,
                exited_at: Some(exit.at),
                id: String::new(),
            };
            self.events.publish(&self.poller, "/tasks/delete", "TaskDelete", &event);
        }
        encode(&api::DeleteResponse { pid, exit_status: exit.status, exited_at: Some(exit.at) })
    }

    /// Kills a first process that was never started, and waits: it has nothing to clean up.
    fn end_created(&mut self, id: &str, key: u64) -> Result<()> {
        let container = self.container(id)?;
        container.oci.delete(id, true)?;
        let process = self.process(key)?;
        let Some(pidfd) = &process.pidfd else { return Ok(()) };
        // ESRCH: it is gone.
        ignore(sys::shim::pidfd_kill(pidfd, SIGKILL.cast_signed()));
        let options = rustix::process::WaitIdOptions::EXITED;
        // The runtime may have reaped it itself.
        ignore(rustix::process::waitid(
            rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(pidfd)),
            options,
        ));
        self.process_ended(key, 128 + SIGKILL);
        Ok(())
    }

    fn remove_process(&mut self, id: &str, exec_id: &str, key: u64) {
        let mut gone = vec![key];
        if exec_id.is_empty() {
            if let Some(container) = self.containers.remove(id) {
                if let Some(watch) = &container.oom {
                    self.poller.remove(watch.fd());
                }
                gone.extend(container.execs.into_values());
            }
            self.forwarder.close(&self.poller, key);
        } else if let Some(container) = self.containers.get_mut(id) {
            container.execs.remove(exec_id);
        }
        for key in gone {
            if let Some(process) = self.processes.get_mut(&key) {
                process.gone = true;
                match process.stage {
                    Stage::Created => self.end_silently(key, 128 + SIGKILL),
                    Stage::Starting => self.cancel_start(key, deleted()),
                    Stage::Running | Stage::Stopped(_) => {}
                }
            }
            self.forget_if_done(key);
        }
    }

    fn state(&mut self, request: &api::StateRequest) -> Answer {
        let key = self.find(&request.id, &request.exec_id)?;
        let container = self.container(&request.id)?;
        let (bundle, paused) = (container.bundle.display().to_string(), container.paused);
        let process = self.process(key)?;
        let (status, exit) = match process.stage {
            Stage::Created | Stage::Starting => (api::status::CREATED, None),
            Stage::Running if paused && process.exec_id.is_empty() => (api::status::PAUSED, None),
            Stage::Running => (api::status::RUNNING, None),
            Stage::Stopped(exit) => (api::status::STOPPED, Some(exit)),
        };
        encode(&api::StateResponse {
            id: if request.exec_id.is_empty() { &request.id } else { &request.exec_id }.clone(),
            bundle,
            pid: process.pid,
            status,
            stdin: process.texts.stdin.clone(),
            stdout: process.texts.stdout.clone(),
            stderr: process.texts.stderr.clone(),
            terminal: process.texts.terminal,
            exit_status: exit.map_or(0, |e| e.status),
            exited_at: exit.map(|e| e.at),
            exec_id: request.exec_id.clone(),
        })
    }

    fn pids(&mut self, request: &api::PidsRequest) -> Answer {
        let container = self.container(&request.id)?;
        let execs: BTreeMap<u32, &String> = container
            .execs
            .iter()
            .filter_map(|(id, key)| Some((self.processes.get(key)?.pid, id)))
            .collect();
        let info = |pid: u32| {
            let exec_id = (*execs.get(&pid)?).clone();
            let details = api::ProcessDetails { exec_id };
            Some(api::pack(api::PROCESS_DETAILS, &details))
        };
        let pids = container.oci.pids(&request.id)?;
        let processes =
            pids.into_iter().map(|pid| api::ProcessInfo { pid, info: info(pid) }).collect();
        encode(&api::PidsResponse { processes })
    }

    fn pause(&mut self, id: &str) -> Answer {
        let key = self.container(id)?.init;
        if self.process(key)?.stage != Stage::Running {
            let text = format!("cannot pause a {} container", self.stage_name(key));
            return Err(Error::precondition(text));
        }
        self.container(id)?.oci.pause(id)?;
        if let Some(container) = self.containers.get_mut(id) {
            container.paused = true;
        }
        let event = api::TaskPaused { container_id: id.to_owned() };
        self.events.publish(&self.poller, "/tasks/paused", "TaskPaused", &event);
        empty()
    }

    fn resume(&mut self, id: &str) -> Answer {
        if !self.container(id)?.paused {
            return Err(Error::precondition("cannot resume a container that is not paused"));
        }
        self.container(id)?.oci.resume(id)?;
        if let Some(container) = self.containers.get_mut(id) {
            container.paused = false;
        }
        let event = api::TaskResumed { container_id: id.to_owned() };
        self.events.publish(&self.poller, "/tasks/resumed", "TaskResumed", &event);
        empty()
    }

    fn kill(&mut self, request: &api::KillRequest) -> Answer {
        let key = self.find(&request.id, &request.exec_id)?;
        let signal = i32::try_from(request.signal)
            .map_err(|_| Error::invalid(format!("signal {}", request.signal)))?;
        let process = self.process(key)?;
        match process.stage {
            Stage::Stopped(_) => return Err(crate::oci::finished()),
            Stage::Created | Stage::Starting if !process.exec_id.is_empty() => {
                return Err(Error::precondition("cannot kill a process that was not started"));
            }
            Stage::Created | Stage::Starting | Stage::Running => {}
        }
        if request.exec_id.is_empty() {
            self.container(&request.id)?.oci.kill(&request.id, signal, request.all)?;
        } else if let Some(pidfd) = &process.pidfd {
            match sys::shim::pidfd_kill(pidfd, signal) {
                Err(rustix::io::Errno::SRCH) => return Err(crate::oci::finished()),
                other => other.context("kill", || request.exec_id.clone())?,
            }
        }
        empty()
    }

    fn resize_pty(&mut self, request: &api::ResizePtyRequest) -> Answer {
        let key = self.find(&request.id, &request.exec_id)?;
        let size = |value: u32| {
            u16::try_from(value).map_err(|_| Error::invalid(format!("terminal size {value}")))
        };
        self.resize(key, size(request.width)?, size(request.height)?)?;
        empty()
    }

    /// Sets the size of a process's terminal, in characters, now or when there is one. Without a
    /// terminal: nothing to do.
    pub(crate) fn resize(&mut self, key: u64, width: u16, height: u16) -> Result<()> {
        let process = self.process(key)?;
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        let Some(master) = &process.io.master else {
            process.io.size = Some(size);
            return Ok(());
        };
        rustix::termios::tcsetwinsize(master, size).context("resize", || "terminal")
    }

    fn close_io(&mut self, request: &api::CloseIoRequest) -> Answer {
        let key = self.find(&request.id, &request.exec_id)?;
        if request.stdin {
            self.close_stdin(key);
        }
        empty()
    }

    fn update(&mut self, request: &api::UpdateTaskRequest) -> Answer {
        let resources = request.resources.as_ref().map(|any| any.value.as_slice());
        let ports = request.annotations.get(api::PORTS_ANNOTATION);
        if resources.is_none() && ports.is_none() {
            return Err(Error::invalid("Update without resources"));
        }
        let container = self.container(&request.id)?;
        if let Some(resources) = resources {
            container.oci.update(&request.id, resources)?;
        }
        if let Some(ports) = ports {
            let owner = container.init;
            let ports = parse_ports(ports.as_bytes())?;
            self.forwarder.close(&self.poller, owner);
            self.forwarder.open(&self.poller, owner, &ports)?;
        }
        empty()
    }

    fn wait(&mut self, call: Call, request: &api::WaitRequest) -> Answer {
        let key = self.find(&request.id, &request.exec_id)?;
        if let Some(exit) = self.process(key)?.exit() {
            return Ok(Some(wait_answer(exit)));
        }
        self.begin_waiting(call.conn)?;
        self.process(key)?.waiters.push((call.conn, call.stream));
        Ok(None)
    }

    fn stats(&mut self, request: &api::StatsRequest) -> Answer {
        let stats = self.container(&request.id)?.oci.stats(&request.id)?;
        encode(&api::StatsResponse { stats: Some(crate::stats::pack(&stats)) })
    }

    fn connect(&mut self, request: &api::ConnectRequest) -> Answer {
        let task_pid = match self.containers.get(&request.id) {
            Some(container) => self.processes.get(&container.init).map_or(0, |p| p.pid),
            None => 0,
        };
        let shim_pid = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
        encode(&api::ConnectResponse { shim_pid, task_pid, version: SHIM_VERSION.to_owned() })
    }

    /// Publishes a process's exit.
    pub(crate) fn publish_exit(&mut self, key: u64, exit: Exit) {
        let Some(process) = self.processes.get(&key) else { return };
        let id = if process.exec_id.is_empty() { &process.container } else { &process.exec_id };
        let event = api::TaskExit {
            container_id: process.container.clone(),
            id: id.clone(),
            pid: process.pid,
            exit_status: exit.status,
            exited_at: Some(exit.at),
        };
        self.events.publish(&self.poller, "/tasks/exit", "TaskExit", &event);
    }

    pub(crate) fn stage_name(&self, key: u64) -> &'static str {
        match self.processes.get(&key).map(|p| p.stage) {
            Some(Stage::Created) => "created",
            Some(Stage::Starting) => "starting",
            Some(Stage::Running) => "running",
            Some(Stage::Stopped(_)) => "stopped",
            None => "deleted",
        }
    }
}

/// Answer to the Start of what is deleted meanwhile.
fn deleted() -> Error {
    Error::precondition("the process was deleted before its program was reached")
}

fn create_options(any: Option<&protos::Any>) -> Result<CreateOptions> {
    let mut options = CreateOptions { runtime: api::RuncOptions::default(), ports: Vec::new() };
    let Some(any) = any else { return Ok(options) };
    if api::is_type(any, api::GANTRY_OPTIONS) {
        let ours: api::GantryOptions = decode("gantry.shim.v1.Options", &any.value)?;
        if let Some(runtime) = &ours.runtime {
            options.runtime = runc_options(runtime)?;
        }
        options.ports = parse_ports(&ours.ports)?;
        return Ok(options);
    }
    options.runtime = runc_options(any)?;
    Ok(options)
}

fn parse_ports(text: &[u8]) -> Result<Vec<Port>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(text).map_err(|source| Error::Json { object: "ports".into(), source })
}

pub(crate) fn runc_options(any: &protos::Any) -> Result<api::RuncOptions> {
    if any.type_url.is_empty() && any.value.is_empty() {
        return Ok(api::RuncOptions::default());
    }
    if !api::is_type(any, api::RUNC_OPTIONS) {
        return Err(Error::unsupported(format!("options of type {}", any.type_url)));
    }
    decode("containerd.runc.v1.Options", &any.value)
}

/// The parts of `config.json` that the shim itself looks at.
#[derive(Debug, Default, serde::Deserialize)]
pub(crate) struct SpecView {
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    linux: Option<LinuxView>,
}

#[derive(Debug, Default, serde::Deserialize)]
struct LinuxView {
    #[serde(default)]
    namespaces: Option<Vec<NamespaceView>>,
}

#[derive(Debug, serde::Deserialize)]
struct NamespaceView {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: Option<String>,
}

impl SpecView {
    /// Of a bundle; what cannot be read is the runtime's to complain about.
    pub(crate) fn of(bundle: &Path) -> SpecView {
        let limit = runtime::spec::CONFIG_LIMIT_BYTES;
        let text = crate::bundle::read_limited(&bundle.join("config.json"), limit);
        let text = text.ok().flatten().unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Whether the kernel ends all processes with the first: a new pid namespace is made for it.
    fn has_private_pids(&self) -> bool {
        let namespaces = self.linux.as_ref().and_then(|l| l.namespaces.as_deref());
        namespaces
            .unwrap_or_default()
            .iter()
            .any(|n| n.kind == "pid" && n.path.as_deref().unwrap_or_default().is_empty())
    }
}

/// The request's word on the terminal counts (containerd sets `spec.Terminal = r.Terminal`).
fn with_terminal(spec: &[u8], terminal: bool) -> Result<Vec<u8>> {
    let json = |source| Error::Json { object: "process".into(), source };
    let mut spec: serde_json::Value = serde_json::from_slice(spec).map_err(json)?;
    let object =
        spec.as_object_mut().ok_or_else(|| Error::invalid("process: not a JSON object"))?;
    object.insert("terminal".into(), terminal.into());
    serde_json::to_vec(&spec).map_err(json)
}
