//! The tasks service of one namespace.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use prost::Message as _;
use protos::shim as api;
use store_api::{
    Any, Container, CreateTask, Error, Event, ExecTask, Exit, Metrics, Mount, Process, ProcessId,
    ProcessInfo, ProcessStatus, Result, Tasks,
};
use types::ErrorKind;

use super::{
    Inner, ShimManager,
    bundle::{self, TaskFile},
    launch::{self, Launch},
    metrics, no_process,
    task::{self, Stage, Task},
    ttrpc::Client,
};

/// Calls that run hooks or mount may take their time.
const SLOW_LIMIT: Duration = Duration::from_secs(300);
/// All others.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a shim that was told to end may keep its connection.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Handle {
    pub(super) manager: Arc<ShimManager>,
    pub(super) namespace: String,
}

impl Handle {
    fn inner(&self) -> &Arc<Inner> {
        &self.manager.inner
    }

    fn task(&self, id: &str) -> Result<Arc<Task>> {
        self.inner().task(&self.namespace, id)
    }

    /// The task, and the exec id that the shim knows a process under.
    fn find(&self, process: &ProcessId) -> Result<(Arc<Task>, String)> {
        let task = self.task(&process.container_id)?;
        let exec_id = process.exec_id.clone().unwrap_or_default();
        if !task.lock().processes.contains_key(&exec_id) {
            return Err(no_process(&exec_id));
        }
        Ok((task, exec_id))
    }
}

#[async_trait]
impl Tasks for Handle {
    async fn create(&self, request: CreateTask) -> Result<u32> {
        let inner = self.inner();
        let id = request.container_id.clone();
        check_id(&id)?;
        let container = inner.host.container(&self.namespace, &id).await?;
        let key = (self.namespace.clone(), id.clone());
        {
            let mut tasks = inner.lock();
            if tasks.contains_key(&key) {
                return Err(Error::already_exists("task", &id));
            }
            tasks.insert(key, None);
        }
        let reserved = Reserved { inner, namespace: &self.namespace, id: &id };
        let stdio = request.stdio.clone();
        let (task, rootfs) = create(inner, &self.namespace, &container, request).await?;
        inner.insert(&task);
        std::mem::forget(reserved);
        let pid = task.lock().file.pid;
        let bundle = task.bundle.display().to_string();
        let created = Event::TaskCreate { container_id: id, bundle, rootfs, stdio, pid };
        task.publish(&*inner.host, created);
        task.watch(&inner.host, "");
        inner.watch_shim(&task);
        Ok(pid)
    }

    async fn start(&self, process: &ProcessId) -> Result<u32> {
        let (task, exec_id) = self.find(process)?;
        let client = task.client()?;
        {
            let mut state = task.lock();
            let known = state.processes.get_mut(&exec_id).ok_or_else(|| no_process(&exec_id))?;
            if known.stage != Stage::Created || known.exit().is_some() {
                let text = format!("process {} was started already", process.container_id);
                return Err(Error::new(ErrorKind::FailedPrecondition, text));
            }
            known.stage = Stage::Starting;
        }
        let host = &*self.inner().host;
        let request = api::StartRequest { id: task.id.clone(), exec_id: exec_id.clone() };
        match client.call::<api::StartResponse>("Start", &request, Some(SLOW_LIMIT)).await {
            Ok(answer) => {
                task.record_start(host, &exec_id, answer.pid);
                if !exec_id.is_empty() {
                    task.watch(&self.inner().host, &exec_id);
                }
                Ok(answer.pid)
            }
            Err(error) => {
                task.record_start_failure(host, &exec_id);
                Err(error)
            }
        }
    }

    async fn delete(&self, process: &ProcessId) -> Result<(u32, Exit)> {
        let (task, exec_id) = self.find(process)?;
        if exec_id.is_empty() {
            delete_task(self.inner(), &task).await
        } else {
            delete_exec(self.inner(), &task, &exec_id).await
        }
    }

    async fn exec(&self, request: ExecTask) -> Result<()> {
        let task = self.task(&request.container_id)?;
        check_id(&request.exec_id)?;
        let client = task.client()?;
        let message = api::ExecProcessRequest {
            id: task.id.clone(),
            exec_id: request.exec_id.clone(),
            terminal: request.stdio.terminal,
            stdin: request.stdio.stdin.clone(),
            stdout: request.stdio.stdout.clone(),
            stderr: request.stdio.stderr.clone(),
            spec: Some(any(&request.process)),
        };
        client.call::<()>("Exec", &message, Some(LIMIT)).await?;
        {
            let mut state = task.lock();
            let stdio = request.stdio;
            let added = task::Process::new(0, Stage::Created, stdio.clone());
            state.processes.insert(request.exec_id.clone(), added);
            state.file.execs.insert(request.exec_id.clone(), stdio);
            state.file.write(&task.bundle)?;
        }
        let process = ProcessId::exec(&request.container_id, &request.exec_id);
        task.publish(&*self.inner().host, Event::TaskExecAdded { process });
        Ok(())
    }

    async fn get(&self, process: &ProcessId) -> Result<Process> {
        let (task, exec_id) = self.find(process)?;
        describe(&task, &exec_id).ok_or_else(|| no_process(&exec_id))
    }

    async fn list(&self) -> Result<Vec<Process>> {
        let tasks: Vec<_> = self
            .inner()
            .lock()
            .iter()
            .filter(|((namespace, _), _)| *namespace == self.namespace)
            .filter_map(|(_, task)| task.clone())
            .collect();
        Ok(tasks.iter().filter_map(|task| describe(task, "")).collect())
    }

    async fn kill(&self, process: &ProcessId, signal: u32, all: bool) -> Result<()> {
        let (task, exec_id) = self.find(process)?;
        let ended = task.lock().processes.get(&exec_id).is_some_and(|p| p.exit().is_some());
        if ended {
            let text = "process already finished: not found";
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let request = api::KillRequest { id: task.id.clone(), exec_id, signal, all };
        task.client()?.call::<()>("Kill", &request, Some(LIMIT)).await
    }

    async fn resize(&self, process: &ProcessId, width: u16, height: u16) -> Result<()> {
        let (task, exec_id) = self.find(process)?;
        let (width, height) = (width.into(), height.into());
        let request = api::ResizePtyRequest { id: task.id.clone(), exec_id, width, height };
        task.client()?.call::<()>("ResizePty", &request, Some(LIMIT)).await
    }

    async fn close_stdin(&self, process: &ProcessId) -> Result<()> {
        let (task, exec_id) = self.find(process)?;
        let request = api::CloseIoRequest { id: task.id.clone(), exec_id, stdin: true };
        task.client()?.call::<()>("CloseIO", &request, Some(LIMIT)).await
    }

    async fn pids(&self, container_id: &str) -> Result<Vec<ProcessInfo>> {
        let task = self.task(container_id)?;
        let request = api::PidsRequest { id: task.id.clone() };
        let answer: api::PidsResponse = task.client()?.call("Pids", &request, Some(LIMIT)).await?;
        let exec_id = |info: &protos::Any| {
            use prost::Message;
            let details = api::ProcessDetails::decode(&info.value[..]).ok()?;
            (api::is_type(info, api::PROCESS_DETAILS) && !details.exec_id.is_empty())
                .then_some(details.exec_id)
        };
        let list = answer.processes.iter();
        Ok(list
            .map(|p| ProcessInfo { pid: p.pid, exec_id: p.info.as_ref().and_then(exec_id) })
            .collect())
    }

    async fn pause(&self, container_id: &str) -> Result<()> {
        let task = self.task(container_id)?;
        let request = api::PauseRequest { id: task.id.clone() };
        task.client()?.call::<()>("Pause", &request, Some(LIMIT)).await?;
        task.lock().paused = true;
        let container_id = container_id.to_owned();
        task.publish(&*self.inner().host, Event::TaskPaused { container_id });
        Ok(())
    }

    async fn resume(&self, container_id: &str) -> Result<()> {
        let task = self.task(container_id)?;
        let request = api::ResumeRequest { id: task.id.clone() };
        task.client()?.call::<()>("Resume", &request, Some(LIMIT)).await?;
        task.lock().paused = false;
        let container_id = container_id.to_owned();
        task.publish(&*self.inner().host, Event::TaskResumed { container_id });
        Ok(())
    }

    async fn update(&self, container_id: &str, resources: Any) -> Result<()> {
        let task = self.task(container_id)?;
        let resources = Some(any(&resources));
        let id = task.id.clone();
        let request = api::UpdateTaskRequest { id, resources, ..Default::default() };
        task.client()?.call::<()>("Update", &request, Some(LIMIT)).await
    }

    async fn set_ports(&self, container_id: &str, ports: Vec<u8>) -> Result<()> {
        let task = self.task(container_id)?;
        let ports = String::from_utf8(ports)
            .map_err(|_| Error::invalid("published ports that are not JSON"))?;
        let annotations = [(api::PORTS_ANNOTATION.to_owned(), ports)].into();
        let request = api::UpdateTaskRequest { id: task.id.clone(), resources: None, annotations };
        task.client()?.call::<()>("Update", &request, Some(LIMIT)).await
    }

    async fn metrics(&self, container_id: &str) -> Result<Metrics> {
        let task = self.task(container_id)?;
        let request = api::StatsRequest { id: task.id.clone() };
        let answer: api::StatsResponse =
            task.client()?.call("Stats", &request, Some(LIMIT)).await?;
        metrics::parse(answer.stats.as_ref())
    }

    async fn runtime_info(&self, runtime: &str, options: Option<Any>) -> Result<Any> {
        let options = options.as_ref().map(any);
        let info = launch::info(&self.inner().config, runtime, options.as_ref()).await?;
        // What is no such message would only fail at the client.
        api::RuntimeInfo::decode(&info[..])
            .map_err(|error| Error::internal(format!("information of {runtime:?}: {error}")))?;
        Ok(Any { type_url: "containerd.types.RuntimeInfo".to_owned(), value: info.into() })
    }

    async fn wait(&self, process: &ProcessId) -> Result<Exit> {
        let (task, exec_id) = self.find(process)?;
        let exits = task.lock().processes.get(&exec_id).map(task::Process::subscribe);
        drop(task);
        let mut exits = exits.ok_or_else(|| no_process(&exec_id))?;
        let exit = exits.wait_for(Option::is_some).await.map(|exit| *exit);
        exit.ok().flatten().ok_or_else(|| no_process(&exec_id))
    }
}

/// A place for a task that is being made; given up unless it succeeds.
struct Reserved<'a> {
    inner: &'a Inner,
    namespace: &'a str,
    id: &'a str,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.inner.forget(self.namespace, self.id);
    }
}

/// Ids become directory names.
fn check_id(id: &str) -> Result<()> {
    /// containerd's limit for identifiers is 76; docker's container ids have 64.
    const ID_BYTES_MAX: usize = 128;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !first || id.len() > ID_BYTES_MAX || !id.bytes().all(good) {
        return Err(Error::invalid(format!("identifier {id:?} is not valid")));
    }
    Ok(())
}

fn any(any: &Any) -> protos::Any {
    protos::Any { type_url: any.type_url.clone(), value: any.value.to_vec() }
}

fn describe(task: &Task, exec_id: &str) -> Option<Process> {
    let state = task.lock();
    let process = state.processes.get(exec_id)?;
    Some(Process {
        id: task.process_id(exec_id),
        pid: process.pid,
        status: process.status(state.paused && exec_id.is_empty()),
        stdio: process.stdio.clone(),
        exit: process.exit(),
        bundle: task.bundle.display().to_string(),
    })
}

async fn create(
    inner: &Arc<Inner>,
    namespace: &str,
    container: &Container,
    request: CreateTask,
) -> Result<(Arc<Task>, Vec<Mount>)> {
    let id = &container.id;
    let spec = container
        .spec
        .as_ref()
        .map(|spec| spec.value.clone())
        .ok_or_else(|| Error::invalid(format!("container {id} has no runtime spec")))?;
    let program = launch::program(&container.runtime.name)?;
    let options = request.options.as_ref().or(container.runtime.options.as_ref()).map(any);
    let options = shim_options(inner, program.as_deref(), options, &request.ports)?;
    let rootfs = rootfs(inner, namespace, container, &request.rootfs).await?;
    let path = inner.bundle(namespace, id);
    bundle::create(&path, &spec)?;
    let file = TaskFile::new(program, request.stdio.clone());
    let task = Task::new(namespace, id, path, file);
    let made = create_in(inner, &task, &request, &rootfs, options).await;
    if made.is_err() {
        // The failure itself is told; the shim's own delete clears what it may have left.
        let client = task.lock().client.take();
        if let Some(client) = client {
            shut_down(&client, id).await;
        }
        inner.clean_up(&task).await;
        if let Err(error) = bundle::remove(&task.bundle) {
            tracing::warn!(task = id, %error, "remove the bundle of a failed create");
        }
    }
    made.map(|()| (task, rootfs))
}

async fn create_in(
    inner: &Inner,
    task: &Arc<Task>,
    request: &CreateTask,
    rootfs: &[Mount],
    options: Option<protos::Any>,
) -> Result<()> {
    let mut file = task.lock().file.clone();
    // Before the shim is started, so that one without a container is found again.
    file.write(&task.bundle)?;
    let launch = Launch {
        config: &inner.config,
        namespace: &task.namespace,
        id: &task.id,
        bundle: &task.bundle,
        program: file.program.as_deref(),
    };
    let socket: PathBuf = launch.start(options.as_ref()).await?;
    file.socket.clone_from(&socket);
    file.write(&task.bundle)?;
    let client = Arc::new(Client::connect(&socket).await?);
    {
        let mut state = task.lock();
        state.file = file.clone();
        state.client = Some(client.clone());
    }
    let message = api::CreateTaskRequest {
        id: task.id.clone(),
        bundle: task.bundle.display().to_string(),
        rootfs: rootfs.iter().map(mount_out).collect(),
        terminal: request.stdio.terminal,
        stdin: request.stdio.stdin.clone(),
        stdout: request.stdio.stdout.clone(),
        stderr: request.stdio.stderr.clone(),
        options,
        ..Default::default()
    };
    let answer = client.call::<api::CreateTaskResponse>("Create", &message, Some(SLOW_LIMIT)).await;
    let pid = answer
        .map_err(|e| Error::new(e.kind, format!("failed to create shim task: {}", e.message)))?
        .pid;
    file.pid = pid;
    file.write(&task.bundle)?;
    let mut state = task.lock();
    let first = task::Process::new(pid, Stage::Created, request.stdio.clone());
    state.processes.insert(String::new(), first);
    state.file = file;
    Ok(())
}

/// The runtime's options, with what our own shim is told beside them.
fn shim_options(
    inner: &Inner,
    program: Option<&Path>,
    options: Option<protos::Any>,
    ports: &[u8],
) -> Result<Option<protos::Any>> {
    use prost::Message;
    if let Some(program) = program {
        if !ports.is_empty() {
            let what = format!("published ports through {}", program.display());
            return Err(Error::not_implemented(what));
        }
        return Ok(options);
    }
    let mut runtime = match &options {
        None => api::RuncOptions::default(),
        Some(any) if api::is_type(any, api::RUNC_OPTIONS) => {
            api::RuncOptions::decode(&any.value[..])
                .map_err(|error| Error::invalid(format!("runtime options: {error}")))?
        }
        Some(any) => {
            let what = format!("runtime options of type {:?}", any.type_url);
            return Err(Error::not_implemented(what));
        }
    };
    if runtime.root.is_empty() && runtime.binary_name.is_empty() {
        runtime.root = inner.config.runtime_root.display().to_string();
    }
    let ours = api::GantryOptions {
        runtime: Some(api::pack(api::RUNC_OPTIONS, &runtime)),
        ports: ports.to_vec(),
    };
    Ok(Some(api::pack(api::GANTRY_OPTIONS, &ours)))
}

async fn rootfs(
    inner: &Inner,
    namespace: &str,
    container: &Container,
    given: &[Mount],
) -> Result<Vec<Mount>> {
    if given.is_empty() && !container.snapshot_key.is_empty() {
        let (snapshotter, key) = (&container.snapshotter, &container.snapshot_key);
        inner.host.mounts(namespace, snapshotter, key).await
    } else {
        Ok(given.to_vec())
    }
}

fn mount_out(mount: &Mount) -> api::Mount {
    api::Mount {
        kind: mount.kind.clone(),
        source: mount.source.clone(),
        target: String::new(),
        options: mount.options.clone(),
    }
}

async fn delete_exec(inner: &Inner, task: &Arc<Task>, exec_id: &str) -> Result<(u32, Exit)> {
    let request = api::DeleteRequest { id: task.id.clone(), exec_id: exec_id.to_owned() };
    let client = task.lock().client.clone();
    let deleted = match client {
        Some(client) => {
            let answer: api::DeleteResponse = client.call("Delete", &request, Some(LIMIT)).await?;
            Some((answer.pid, task::exit(answer.exit_status, answer.exited_at)))
        }
        None => None,
    };
    if let Some((pid, exit)) = deleted
        && pid != 0
    {
        // Told before it is forgotten.
        task.record_exit(&*inner.host, exec_id, exit);
    }
    let mut state = task.lock();
    let known = state.processes.remove(exec_id).ok_or_else(|| no_process(exec_id))?;
    state.file.execs.remove(exec_id);
    state.file.write(&task.bundle)?;
    let recorded = known.exit().map(|exit| (known.pid, exit));
    deleted.or(recorded).ok_or_else(|| no_process(exec_id))
}

async fn delete_task(inner: &Arc<Inner>, task: &Arc<Task>) -> Result<(u32, Exit)> {
    let status = {
        let mut state = task.lock();
        let status = state.processes.get("").map_or(ProcessStatus::Unknown, |p| p.status(false));
        if status == ProcessStatus::Running {
            let text = format!(
                "task {} must be stopped before deletion: running: failed precondition",
                task.id
            );
            return Err(Error::new(ErrorKind::FailedPrecondition, text));
        }
        state.deleting = true;
        status
    };
    let undo = |error| {
        task.lock().deleting = false;
        error
    };
    let client = task.lock().client.clone();
    let answer = match &client {
        Some(client) => {
            let request = api::DeleteRequest { id: task.id.clone(), exec_id: String::new() };
            let answer: Result<api::DeleteResponse> =
                client.call("Delete", &request, Some(SLOW_LIMIT)).await;
            match answer {
                Ok(answer) => Some((answer.pid, task::exit(answer.exit_status, answer.exited_at))),
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    // The shim died of it, or just before: nobody else clears up now.
                    inner.bury(task).await;
                    None
                }
                Err(error) => return Err(undo(error)),
            }
        }
        None => None,
    };
    if let Some((_, exit)) = answer {
        task.record_exit(&*inner.host, "", exit);
    }
    let recorded = task.lock().processes.get("").and_then(|p| Some((p.pid, p.exit()?)));
    let (pid, exit) = answer.or(recorded).ok_or_else(|| {
        undo(Error::internal(format!("task {}: {status:?} without an exit", task.id)))
    })?;
    if let Some(client) = &client {
        shut_down(client, &task.id).await;
    }
    task.lock().client = None;
    let path = task.bundle.clone();
    let removed = tokio::task::spawn_blocking(move || bundle::remove(&path)).await;
    removed.map_err(|error| Error::internal(format!("remove bundle: {error}")))??;
    inner.forget(&task.namespace, &task.id);
    let process = task.process_id("");
    task.publish(&*inner.host, Event::TaskDelete { process, pid, exit });
    Ok((pid, exit))
}

/// Tells the shim to end unless it has other containers, and waits a little for it.
async fn shut_down(client: &Client, id: &str) {
    let request = api::ShutdownRequest { id: id.to_owned(), now: false };
    // A shim that ends at once does not answer.
    drop(client.call::<()>("Shutdown", &request, Some(SHUTDOWN_LIMIT)).await);
}
