//! Shims and the store's life: finding those that run when the store starts, and clearing up after
//! those that died.

use std::{path::Path, sync::Arc, time::Duration};

use protos::shim as api;
use store_api::{Result, Timestamp};

use super::{
    Inner, bundle,
    bundle::TaskFile,
    launch::Launch,
    task::{Process, Stage, Task, exit},
    ttrpc::Client,
};
use crate::found;

/// A shim that listens answers at once; one that is stopped or hangs is not waited for.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Status of a process whose shim died with it (containerd's value: 128 + SIGKILL).
const KILLED: u32 = 137;

impl Inner {
    /// Takes over every task in the state directory.
    ///
    /// # Errors
    /// When it cannot be told which there are, before any is taken over: one that is not seen would count
    /// as ended, and what belongs to it would go.
    pub(super) async fn adopt_all(self: &Arc<Self>) -> Result<()> {
        let root = self.config.state_dir.join(bundle::DIRECTORY);
        let mut all = Vec::new();
        for namespace in entries(&root)? {
            for id in entries(&root.join(&namespace))? {
                found::content(&bundle::task_file(&root.join(&namespace).join(&id)))?;
                all.push((namespace.clone(), id));
            }
        }
        let mut found = tokio::task::JoinSet::new();
        for (namespace, id) in all {
            let inner = self.clone();
            found.spawn(async move {
                if let Err(error) = inner.adopt(&namespace, &id).await {
                    tracing::warn!(namespace, task = id, %error, "adopt task");
                }
            });
        }
        while found.join_next().await.is_some() {}
        Ok(())
    }

    async fn adopt(self: &Arc<Self>, namespace: &str, id: &str) -> Result<()> {
        let path = self.bundle(namespace, id);
        let Some(file) = TaskFile::read(&path)? else {
            // A create that got no further than this.
            return bundle::remove(&path);
        };
        let created = file.pid != 0;
        let client = connect(&file.socket).await;
        let task = Task::new(namespace, id, path, file);
        if let Some(client) = client {
            if self.adopt_live(&task, client).await? {
                return Ok(());
            }
        } else if created {
            self.restore(&task);
            self.insert(&task);
            self.bury(&task).await;
            return Ok(());
        }
        // A shim without a container: Create never succeeded.
        dismiss(&task).await;
        self.clean_up(&task).await;
        bundle::remove(&task.bundle)
    }

    fn restore(&self, task: &Task) {
        let mut state = task.lock();
        let first = Process::new(state.file.pid, Stage::Running, state.file.stdio.clone());
        state.processes.insert(String::new(), first);
    }

    /// False: the shim knows no such container.
    async fn adopt_live(self: &Arc<Self>, task: &Arc<Task>, client: Client) -> Result<bool> {
        let client = Arc::new(client);
        let ask = |exec_id: &str| {
            let request = api::StateRequest { id: task.id.clone(), exec_id: exec_id.to_owned() };
            let client = client.clone();
            async move {
                client.call::<api::StateResponse>("State", &request, Some(CONNECT_LIMIT)).await
            }
        };
        let first = match ask("").await {
            Ok(answer) => answer,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        let (execs, stdio, told) = {
            let state = task.lock();
            (state.file.execs.clone(), state.file.stdio.clone(), state.file.exit_told)
        };
        let mut answers = vec![(String::new(), stdio, first)];
        for (exec_id, stdio) in execs {
            if let Ok(answer) = ask(&exec_id).await {
                answers.push((exec_id, stdio, answer));
            }
        }
        {
            let mut state = task.lock();
            state.client = Some(client);
            for (exec_id, stdio, answer) in &answers {
                let stage = match answer.status {
                    api::status::CREATED => Stage::Created,
                    _ => Stage::Running,
                };
                state.paused |= answer.status == api::status::PAUSED;
                let process = Process::new(answer.pid, stage, stdio.clone());
                state.processes.insert(exec_id.clone(), process);
            }
            state.file.execs.retain(|id, _| answers.iter().any(|(known, ..)| known == id));
        }
        self.insert(task);
        for (exec_id, _, answer) in answers {
            if answer.status == api::status::STOPPED {
                let ended = exit(answer.exit_status, answer.exited_at);
                if exec_id.is_empty() && told {
                    task.restore_exit(ended);
                } else {
                    task.record_exit(&*self.host, &exec_id, ended);
                }
            } else if answer.status != api::status::CREATED || exec_id.is_empty() {
                task.watch(&self.host, &exec_id);
            }
        }
        self.watch_shim(task);
        Ok(true)
    }

    /// Clears up when the shim's connection ends without a Delete.
    pub(super) fn watch_shim(self: &Arc<Self>, task: &Arc<Task>) {
        let Ok(client) = task.client() else { return };
        let (weak, known) = (Arc::downgrade(self), Arc::downgrade(task));
        task.spawn(async move {
            client.closed().await;
            drop(client);
            let (Some(inner), Some(task)) = (weak.upgrade(), known.upgrade()) else { return };
            let lost = {
                let mut state = task.lock();
                !state.deleting && state.client.take().is_some()
            };
            if lost {
                tracing::warn!(namespace = task.namespace, task = task.id, "shim is gone");
                inner.bury(&task).await;
            }
        });
    }

    /// The shim is gone: ends what it left running, and tells how everything ended. The task stays,
    /// stopped, until it is deleted, so that its exit is not lost.
    pub(super) async fn bury(&self, task: &Task) {
        let recorded = bundle::read_exit(&task.bundle).ok().flatten().map(|(_, exit)| exit);
        let cleaned = self.clean_up(task).await;
        let ended = recorded.or(cleaned).unwrap_or_else(|| exit(KILLED, None));
        let (told, execs) = {
            let state = task.lock();
            let execs: Vec<String> =
                state.processes.keys().filter(|id| !id.is_empty()).cloned().collect();
            (state.file.exit_told, execs)
        };
        for exec_id in execs {
            let killed = store_api::Exit { status: KILLED, exited_at: Timestamp::now() };
            task.record_exit(&*self.host, &exec_id, killed);
        }
        if told {
            task.restore_exit(ended);
        } else {
            task.record_exit(&*self.host, "", ended);
        }
    }

    /// The shim's `delete` action; what it says of the exit.
    pub(super) async fn clean_up(&self, task: &Task) -> Option<store_api::Exit> {
        let program = task.lock().file.program.clone();
        let launch = Launch {
            config: &self.config,
            namespace: &task.namespace,
            id: &task.id,
            bundle: &task.bundle,
            program: program.as_deref(),
        };
        match launch.delete().await {
            Ok(answer) => Some(exit(answer.exit_status, answer.exited_at)),
            Err(error) => {
                tracing::warn!(task = task.id, %error, "clean up after a shim");
                None
            }
        }
    }
}

/// Ends a shim that has no container. One that is not heard ends by itself after a while.
async fn dismiss(task: &Task) {
    let socket = task.lock().file.socket.clone();
    let Some(client) = connect(&socket).await else { return };
    let request = api::ShutdownRequest { id: task.id.clone(), now: true };
    let answer = client.call::<()>("Shutdown", &request, Some(CONNECT_LIMIT)).await;
    if let Err(error) = answer {
        // It may be gone before it has answered.
        tracing::debug!(task = task.id, %error, "a shim did not confirm its end");
    }
}

async fn connect(socket: &Path) -> Option<Client> {
    if socket.as_os_str().is_empty() {
        return None;
    }
    tokio::time::timeout(CONNECT_LIMIT, Client::connect(socket)).await.ok()?.ok()
}

fn entries(directory: &Path) -> Result<Vec<String>> {
    let entries = found::entries(directory)?.into_iter();
    Ok(entries.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
