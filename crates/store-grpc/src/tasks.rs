use std::{borrow::Cow, sync::Arc};

use protos::{
    containerd::types::{self, status as state},
    shim,
};
use store_api::{
    CreateTask, ExecTask, Exit, Process, ProcessId, ProcessInfo, ProcessStatus, Stdio,
    filters::{Fields, Filters},
};
use tonic::{Request, Response, Status};

use crate::{
    context::{Context, status, to_the_end},
    convert::{any_in, mounts_in, required, timestamp, unimplemented},
    metrics::metrics_out,
    services::tasks as api,
};

/// By what metrics are chosen.
struct TaskFields<'a> {
    id: &'a str,
    namespace: &'a str,
}

impl Fields for TaskFields<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => Some(self.id.into()),
            ["namespace"] => Some(self.namespace.into()),
            _ => None,
        }
    }
}

pub(crate) struct Tasks(pub(crate) Arc<Context>);

fn process_id(container_id: String, exec_id: String) -> ProcessId {
    ProcessId { container_id, exec_id: (!exec_id.is_empty()).then_some(exec_id) }
}

fn process_out(process: Process) -> types::Process {
    let id = process.id.exec_id.clone().unwrap_or_else(|| process.id.container_id.clone());
    types::Process {
        container_id: process.id.container_id,
        id,
        pid: process.pid,
        status: match process.status {
            ProcessStatus::Created => state::CREATED,
            ProcessStatus::Running => state::RUNNING,
            ProcessStatus::Stopped => state::STOPPED,
            ProcessStatus::Paused => state::PAUSED,
            ProcessStatus::Pausing => state::PAUSING,
            ProcessStatus::Unknown => state::UNKNOWN,
        },
        stdin: process.stdio.stdin,
        stdout: process.stdio.stdout,
        stderr: process.stdio.stderr,
        terminal: process.stdio.terminal,
        exit_status: process.exit.map_or(0, |exit| exit.status),
        exited_at: process.exit.and_then(|exit| timestamp(exit.exited_at)),
    }
}

fn process_info_out(info: ProcessInfo) -> types::ProcessInfo {
    let details = |exec_id| shim::pack(shim::PROCESS_DETAILS, &shim::ProcessDetails { exec_id });
    types::ProcessInfo { pid: info.pid, info: info.exec_id.map(details) }
}

/// A terminal's lines and columns.
fn cells(count: u32) -> Result<u16, Status> {
    u16::try_from(count).map_err(|_| {
        Status::invalid_argument(format!("a terminal of {count} cells: invalid argument"))
    })
}

impl Tasks {
    async fn delete_process(
        &self,
        headers: &tonic::metadata::MetadataMap,
        process: ProcessId,
    ) -> Result<Response<api::DeleteResponse>, Status> {
        let tasks = self.0.services(headers)?.tasks;
        let id = process.exec_id.clone().unwrap_or_else(|| process.container_id.clone());
        let (pid, exit): (u32, Exit) =
            to_the_end(async move { tasks.delete(&process).await }).await?;
        let exited_at = timestamp(exit.exited_at);
        Ok(Response::new(api::DeleteResponse { id, pid, exit_status: exit.status, exited_at }))
    }
}

impl api::Tasks for Tasks {
    async fn create(
        &self,
        request: Request<api::CreateTaskRequest>,
    ) -> Result<Response<api::CreateTaskResponse>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let request = request.into_inner();
        if request.checkpoint.is_some() {
            return Err(unimplemented("a task from a checkpoint"));
        }
        if !request.runtime_path.is_empty() {
            let text = format!("a runtime path for one task ({:?})", request.runtime_path);
            return Err(unimplemented(text));
        }
        let container_id = request.container_id.clone();
        let new = CreateTask {
            container_id: request.container_id,
            rootfs: mounts_in(request.rootfs)?,
            stdio: Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            options: request.options.map(any_in),
            ports: Vec::new(),
        };
        let pid = to_the_end(async move { tasks.create(new).await }).await?;
        Ok(Response::new(api::CreateTaskResponse { container_id, pid }))
    }

    async fn start(
        &self,
        request: Request<api::StartRequest>,
    ) -> Result<Response<api::StartResponse>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let request = request.into_inner();
        let process = process_id(request.container_id, request.exec_id);
        let pid = to_the_end(async move { tasks.start(&process).await }).await?;
        Ok(Response::new(api::StartResponse { pid }))
    }

    async fn delete(
        &self,
        request: Request<api::DeleteTaskRequest>,
    ) -> Result<Response<api::DeleteResponse>, Status> {
        let process = ProcessId::init(&request.get_ref().container_id);
        self.delete_process(request.metadata(), process).await
    }

    async fn delete_process(
        &self,
        request: Request<api::DeleteProcessRequest>,
    ) -> Result<Response<api::DeleteResponse>, Status> {
        let (container_id, exec_id) =
            (request.get_ref().container_id.clone(), request.get_ref().exec_id.clone());
        self.delete_process(request.metadata(), process_id(container_id, exec_id)).await
    }

    async fn get(
        &self,
        request: Request<api::GetRequest>,
    ) -> Result<Response<api::GetResponse>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let request = request.into_inner();
        let process = process_id(request.container_id, request.exec_id);
        let found = tasks.get(&process).await.map_err(status)?;
        Ok(Response::new(api::GetResponse { process: Some(process_out(found)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListTasksRequest>,
    ) -> Result<Response<api::ListTasksResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        if !request.get_ref().filter.is_empty() {
            return Err(unimplemented("a filter for tasks"));
        }
        let all = services.tasks.list().await.map_err(status)?;
        let tasks = all.into_iter().map(process_out).collect();
        Ok(Response::new(api::ListTasksResponse { tasks }))
    }

    async fn kill(&self, request: Request<api::KillRequest>) -> Result<Response<()>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let request = request.into_inner();
        let (signal, all) = (request.signal, request.all);
        let process = process_id(request.container_id, request.exec_id);
        to_the_end(async move { tasks.kill(&process, signal, all).await }).await?;
        Ok(Response::new(()))
    }

    async fn exec(
        &self,
        request: Request<api::ExecProcessRequest>,
    ) -> Result<Response<()>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let request = request.into_inner();
        if request.exec_id.is_empty() {
            return Err(Status::invalid_argument("exec id cannot be empty: invalid argument"));
        }
        let exec = ExecTask {
            container_id: request.container_id,
            exec_id: request.exec_id,
            process: any_in(required("process spec", request.spec)?),
            stdio: Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        };
        to_the_end(async move { tasks.exec(exec).await }).await?;
        Ok(Response::new(()))
    }

    async fn resize_pty(
        &self,
        request: Request<api::ResizePtyRequest>,
    ) -> Result<Response<()>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let request = request.into_inner();
        let (width, height) = (cells(request.width)?, cells(request.height)?);
        let process = process_id(request.container_id, request.exec_id);
        tasks.resize(&process, width, height).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn close_io(
        &self,
        request: Request<api::CloseIoRequest>,
    ) -> Result<Response<()>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let request = request.into_inner();
        let process = process_id(request.container_id, request.exec_id);
        if request.stdin {
            tasks.close_stdin(&process).await.map_err(status)?;
        }
        Ok(Response::new(()))
    }

    async fn pause(&self, request: Request<api::PauseTaskRequest>) -> Result<Response<()>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let id = request.into_inner().container_id;
        to_the_end(async move { tasks.pause(&id).await }).await?;
        Ok(Response::new(()))
    }

    async fn resume(
        &self,
        request: Request<api::ResumeTaskRequest>,
    ) -> Result<Response<()>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let id = request.into_inner().container_id;
        to_the_end(async move { tasks.resume(&id).await }).await?;
        Ok(Response::new(()))
    }

    async fn list_pids(
        &self,
        request: Request<api::ListPidsRequest>,
    ) -> Result<Response<api::ListPidsResponse>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let all = tasks.pids(&request.get_ref().container_id).await.map_err(status)?;
        let processes = all.into_iter().map(process_info_out).collect();
        Ok(Response::new(api::ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<api::CheckpointTaskRequest>,
    ) -> Result<Response<api::CheckpointTaskResponse>, Status> {
        self.0.services(request.metadata())?;
        Err(unimplemented("checkpointing a task"))
    }

    async fn update(
        &self,
        request: Request<api::UpdateTaskRequest>,
    ) -> Result<Response<()>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let request = request.into_inner();
        if !request.annotations.is_empty() {
            return Err(unimplemented("an update of a task with annotations"));
        }
        let resources = any_in(required("resources", request.resources)?);
        let id = request.container_id;
        to_the_end(async move { tasks.update(&id, resources).await }).await?;
        Ok(Response::new(()))
    }

    async fn metrics(
        &self,
        request: Request<api::MetricsRequest>,
    ) -> Result<Response<api::MetricsResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let filters = Filters::parse(&request.get_ref().filters).map_err(status)?;
        let mut metrics = Vec::new();
        let mut failure = None;
        for task in services.tasks.list().await.map_err(status)? {
            let id = task.id.container_id;
            if !filters.matches(&TaskFields { id: &id, namespace: &services.namespace }) {
                continue;
            }
            match services.tasks.metrics(&id).await {
                Ok(sample) => metrics.push(types::Metric {
                    timestamp: timestamp(sample.timestamp),
                    data: Some(metrics_out(&sample)),
                    id,
                }),
                // It ended meanwhile.
                Err(error) if error.is_not_found() => {}
                Err(error) => failure = Some(error),
            }
        }
        // Figures that there are go before those that cannot be had; alone, these are told.
        if let (true, Some(error)) = (metrics.is_empty(), failure) {
            return Err(status(error));
        }
        Ok(Response::new(api::MetricsResponse { metrics }))
    }

    async fn wait(
        &self,
        request: Request<api::WaitRequest>,
    ) -> Result<Response<api::WaitResponse>, Status> {
        let tasks = self.0.services(request.metadata())?.tasks;
        let request = request.into_inner();
        let process = process_id(request.container_id, request.exec_id);
        let exit = self.0.until_shutdown(tasks.wait(&process)).await?;
        let exited_at = timestamp(exit.exited_at);
        Ok(Response::new(api::WaitResponse { exit_status: exit.status, exited_at }))
    }
}
