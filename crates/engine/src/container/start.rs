use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use store_api::{Any, CreateTask, ProcessId, RuntimeInfo, Stdio, Timestamp};
use types::ErrorKind;

use super::{
    Container, initfile,
    record::{Ended, Record, Status},
    spec,
    users::{self, User},
};
use crate::{
    Engine, Error, Result, config::OWN_RUNTIME, leftovers::layer_is_lost, rootfs, util::blocking,
    volume::NewVolume,
};

/// How containerd marks a runtime specification in JSON.
const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// How containerd marks runc's options.
const OPTIONS_URL: &str = "containerd.runc.v1.Options";
/// How long the process of a start that failed may take to be gone.
const UNDO_WAIT: Duration = Duration::from_secs(10);

/// Who starts a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartBy {
    /// A user, or the daemon when it starts itself: what the restart policy has counted is over.
    Request,
    /// The restart policy, after a run that ended.
    Policy,
}

impl Engine {
    /// Starts a container; `NotModified` if it runs already.
    pub async fn container_start(self: &Arc<Self>, name: &str) -> Result<()> {
        let container = self.containers.find(name)?;
        let _lifecycle = container.lock_live(name).await?;
        let status = container.record().status.clone();
        match status {
            Status::Running { paused: true, .. } => {
                return Err(Error::conflict(
                    "cannot start a paused container, try unpause instead",
                ));
            }
            Status::Running { .. } => {
                return Err(Error::not_modified("the container is already started"));
            }
            Status::Dead { .. } => {
                return Err(Error::conflict(
                    "container is marked for removal and cannot be started",
                ));
            }
            _ => {}
        }
        container.cancel_restart.notify_waiters();
        self.start_locked(&container, StartBy::Request).await
    }

    /// Starts with the lifecycle lock held; cleans up after a failure.
    pub(crate) async fn start_locked(
        self: &Arc<Self>,
        container: &Arc<Container>,
        by: StartBy,
    ) -> Result<()> {
        let started = self.try_start(container, by).await;
        let started = started.map_err(|error| port_taken(error, &container.snapshot()));
        if let Err(error) = &started {
            self.abandon_start(container, error).await;
        }
        started
    }

    async fn try_start(self: &Arc<Self>, container: &Arc<Container>, by: StartBy) -> Result<()> {
        let id = container.id.as_str();
        if by == StartBy::Request {
            container.update(Record::forget_policy)?;
        }
        container.rootfs.settle("started").await?;
        container.oom_killed.store(false, std::sync::atomic::Ordering::Relaxed);
        self.networks.set_up(self, container).await?;
        faults::pass("start.network");
        self.take_host_name(container)?;
        let record = container.snapshot();
        let upstreams = self.write_files(container, &record)?;
        self.networks.start_dns(container, &record, upstreams).await?;
        self.mount_volumes(&record, id).await?;
        let user = self.prepare_root(&record).await?;
        self.mount_shm(&record)?;
        faults::pass("start.mounted");
        let spec = self.container_spec(container, &record, user)?;
        let volatile = record.host_config.auto_remove;
        self.put_store_record(&record, &spec, (id, volatile)).await?;
        faults::pass("start.recorded");
        let pid = self
            .services
            .tasks
            .create(CreateTask {
                container_id: id.into(),
                rootfs: Vec::new(),
                stdio: stdio(container, &record)?,
                options: self.runtime_options(&record)?,
                ports: self.networks.shim_ports(container)?,
            })
            .await
            .map_err(create_failed)?;
        faults::pass("start.task");
        self.connect_pending(container, &record).await;
        self.services.tasks.start(&ProcessId::init(id)).await.map_err(create_failed)?;
        faults::pass("start.started");
        let started_at = Timestamp::now();
        container.update(|record| {
            record.status = Status::Running { pid, started_at, paused: false };
            record.volumes_filled = true;
        })?;
        if record.host_config.network_mode == "bridge" {
            self.refresh_links_to(container);
        }
        self.volume_use_events(&record, true);
        self.container_event(container, "start");
        self.watch_exit(container.clone());
        self.start_health(container);
        Ok(())
    }

    /// Undoes a start that failed and records why.
    async fn abandon_start(self: &Arc<Self>, container: &Arc<Container>, error: &Error) {
        self.undo_task(&ProcessId::init(container.id.as_str())).await;
        self.networks.tear_down(self, container).await;
        self.unmount_shm(&container.id);
        self.unmount_volumes(container.id.as_str()).await;
        let code = start_exit_code(&error.message);
        let ended = Ended { code, at: Timestamp::now(), oom: false, error: error.message.clone() };
        let restarting = matches!(container.record().status, Status::Restarting { .. });
        // docker wakes who waits for the next exit only when a restart failed: a first start has a caller,
        // who is told.
        container.update_end(
            |record| {
                record.status = Status::Exited { started_at: record.status.started_at(), ended };
            },
            |_| container.fail_pending(&error.message),
            u64::from(restarting),
        );
        let auto_remove = container.record().host_config.auto_remove;
        if auto_remove && let Err(error) = self.remove_locked(container, true).await {
            tracing::warn!(container = %container.id, %error, "a container that did not start stays");
        }
    }

    /// Ends and deletes a task that is not to be, whatever it has come to. What is left is logged.
    pub(crate) async fn undo_task(&self, process: &ProcessId) {
        let tasks = &self.services.tasks;
        let id = &process.container_id;
        match tasks.kill(process, super::signal::SIGKILL, true).await {
            Ok(()) => {
                if tokio::time::timeout(UNDO_WAIT, tasks.wait(process)).await.is_err() {
                    tracing::warn!(container = %id, "a process does not die");
                }
            }
            // No process: one that ended, or an exec that was not started.
            Err(cause) => tracing::debug!(container = %id, %cause, "there was nothing to kill"),
        }
        if let Err(cause) = tasks.delete(process).await
            && !cause.is_not_found()
        {
            tracing::warn!(container = %id, %cause, "the task of a start that failed stays");
        }
    }

    /// Looks up the user, and fills empty volumes on the first start.
    async fn prepare_root(self: &Arc<Self>, record: &Record) -> Result<User> {
        let id = record.id.as_str();
        let snapshots = &self.services.snapshots;
        // A layer below it may be missing as well, which the error tells.
        if snapshots.stat(id).await.is_err_and(|error| error.is_not_found()) {
            return Err(Error::new(ErrorKind::DataLoss, layer_is_lost(id)));
        }
        let mounts = snapshots.mounts(id).await?;
        let scratch = self.config.exec_root.join("mounts");
        let fill = !record.volumes_filled;
        let record = record.clone();
        let engine = self.clone();
        // Before they are filled: one may be gone.
        for mount in record.mounts.iter().filter(|mount| !mount.name.is_empty()) {
            self.volumes.create(NewVolume { name: mount.name.clone(), ..NewVolume::default() })?;
        }
        blocking(move || {
            let root = rootfs::open(&mounts, &scratch)?;
            if fill {
                rootfs::mark_as_container(&root)?;
                engine.fill_volumes(&root, &record)?;
            }
            users::resolve(&root, &record.config.user, &record.host_config.group_add)
        })
        .await
    }

    /// The user of a step that runs on a snapshot of the builder's.
    pub(crate) async fn user_on(self: &Arc<Self>, key: &str, record: &Record) -> Result<User> {
        let mounts = self.services.snapshots.mounts(key).await?;
        let scratch = self.config.exec_root.join("mounts");
        let text = record.config.user.clone();
        blocking(move || {
            let root = rootfs::open(&mounts, &scratch)?;
            users::resolve(&root, &text, &[])
        })
        .await
    }

    pub(crate) fn container_spec(
        &self,
        container: &Container,
        record: &Record,
        user: User,
    ) -> Result<Value> {
        let host = &record.host_config;
        let pid_of = |mode: &str| -> Result<Option<u32>> {
            let Some(other) = mode.strip_prefix("container:") else { return Ok(None) };
            let other = self.containers.find(other)?;
            let pid = other.record().status.pid();
            if std::ptr::eq(mode, host.ipc_mode.as_str()) {
                shareable(&other)?;
            }
            pid.map(Some).ok_or_else(|| {
                Error::conflict(format!(
                    "cannot join namespaces of a non running container: {}",
                    other.id
                ))
            })
        };
        let parent = if host.resources.cgroup_parent.is_empty() {
            &self.config.cgroup_parent
        } else {
            &host.resources.cgroup_parent
        };
        let parent = if parent.is_empty() { "/gantry" } else { parent.trim_end_matches('/') };
        let init = host.init.unwrap_or(self.config.init);
        let init = if init { Some(self.init_program()?) } else { None };
        spec::build(&spec::SpecInput {
            record,
            user,
            files: &self.files_dir(container, record)?,
            network_namespace: self.networks.namespace_path(self, record)?,
            ipc_pid: pid_of(&host.ipc_mode)?,
            shm: self.shm_source(record)?,
            pid_pid: pid_of(&host.pid_mode)?,
            cgroup_path: format!("{parent}/{}", record.id),
            cgroup_v2: self.facts.cgroup_v2,
            cgroupns_private: host.cgroupns_mode == "private",
            default_shm_bytes: self.config.default_shm_bytes,
            default_ulimits: &self.config.default_ulimits,
            no_new_privileges: self.config.no_new_privileges,
            init,
            link_env: self.link_env(record)?,
        })
    }

    /// The store's record of the container, made at its first start and replaced at each later one.
    pub(crate) async fn put_store_record(
        &self,
        record: &Record,
        spec: &Value,
        (snapshot_key, volatile): (&str, bool),
    ) -> Result<()> {
        let value = serde_json::to_vec(spec)
            .map_err(|e| Error::internal(format!("encode specification of {}: {e}", record.id)))?;
        let now = Timestamp::now();
        let mut labels =
            store_api::Labels::from([(super::CONTAINER_LABEL.into(), record.id.to_string())]);
        if volatile {
            labels.insert("gantry.io/volatile".into(), "true".into());
        }
        let container = store_api::Container {
            id: record.id.to_string(),
            labels,
            image: record.config.image.clone(),
            runtime: RuntimeInfo { name: "io.containerd.gantry.v2".into(), options: None },
            spec: Some(Any { type_url: SPEC_URL.into(), value: Bytes::from(value) }),
            snapshotter: self.services.snapshots.name().into(),
            snapshot_key: snapshot_key.into(),
            created_at: now,
            updated_at: now,
            extensions: std::collections::BTreeMap::new(),
            sandbox_id: String::new(),
        };
        match self.services.containers.create(container.clone()).await {
            Err(error) if error.is_already_exists() => {
                let patch =
                    store_api::ContainerPatch { container, field_paths: vec!["spec".into()] };
                self.services.containers.update(patch).await?;
            }
            other => drop(other?),
        }
        Ok(())
    }

    /// Options for the shim where another OCI runtime than ours was asked for.
    fn runtime_options(&self, record: &Record) -> Result<Option<Any>> {
        let name = &record.host_config.runtime;
        let runtime = self.config.runtimes.get(name).cloned().unwrap_or_default();
        if runtime.path.is_empty() || name == OWN_RUNTIME {
            return Ok(None);
        }
        if !runtime.arguments.is_empty() {
            return Err(Error::not_implemented(format!("runtimeArgs of runtime \"{name}\"")));
        }
        let options = json!({ "BinaryName": runtime.path });
        Ok(Some(Any {
            type_url: format!("{OPTIONS_URL}+json"),
            value: Bytes::from(options.to_string()),
        }))
    }

    /// The program that `--init` puts first: the daemon's `--init-path`, else a copy of this one.
    fn init_program(&self) -> Result<std::path::PathBuf> {
        if let Some(path) = &self.config.init_path {
            return Ok(path.clone());
        }
        let mut known = self.init_copy.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let own = std::path::Path::new("/proc/self/exe");
        initfile::copy_of(own, &self.config.data_root.join("init"), &mut known)
    }
}

/// A port that is taken, in dockerd 29's words, which name the endpoint.
fn port_taken(error: Error, record: &Record) -> Error {
    if !error.message.starts_with("Bind for") {
        return error;
    }
    let ids = record.networks.values().map(|attachment| attachment.settings.endpoint_id.as_str());
    let endpoint = ids.into_iter().find(|id| !id.is_empty()).unwrap_or(record.id.as_str());
    Error::new(
        error.kind,
        format!(
            "failed to set up container networking: driver failed programming external connectivity on endpoint {} ({endpoint}): {}",
            record.name, error.message
        ),
    )
}

/// Whether others may join a container's IPC namespace.
fn shareable(container: &Container) -> Result<()> {
    let mode = container.record().host_config.ipc_mode.clone();
    if matches!(mode.as_str(), "shareable" | "host") {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "failed to join IPC namespace: container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
        container.id
    )))
}

/// Where the streams go: the log that the shim writes, and attached clients.
fn stdio(container: &Container, record: &Record) -> Result<Stdio> {
    let stdout = if record.host_config.log_config.r#type == "none" {
        "gantry://none".to_string()
    } else {
        let mut url = format!("gantry://json-file{}", container.log_file().display());
        let query = super::logopts::query(record)?;
        if !query.is_empty() {
            url.push('?');
            url.push_str(&query);
        }
        url
    };
    let stdin = match (record.config.open_stdin, record.config.stdin_once) {
        (false, _) => "",
        (true, false) => "gantry://attach",
        (true, true) => "gantry://attach?once=true",
    };
    Ok(Stdio {
        stdin: stdin.into(),
        stderr: if record.config.tty { String::new() } else { stdout.clone() },
        stdout,
        terminal: record.config.tty,
    })
}

/// `10m`, `1g`, `512k`, bytes; -1 is no limit (go-units `RAMInBytes`).
pub(super) fn parse_size(text: &str) -> Result<u64> {
    let bad = || Error::invalid(format!("invalid size: '{text}'"));
    if text == "-1" {
        return Ok(0);
    }
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let number: u64 = lower[..digits].parse().map_err(|_| bad())?;
    let shift = match lower[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    number.checked_shl(shift).filter(|bytes| bytes >> shift == number).ok_or_else(bad)
}

/// dockerd 29's words around a runtime's failure; clients derive 126 and 127 from the inner text.
pub(crate) fn create_failed(error: store_api::Error) -> Error {
    const RUNTIME: &str = "OCI runtime create failed: ";
    let inner = error.message.strip_prefix("failed to create shim task: ");
    let inner = inner.unwrap_or(&error.message);
    let message = if inner.starts_with("Bind for") {
        inner.to_string()
    } else if let Some(text) = inner.strip_prefix(RUNTIME) {
        // Another runtime's words already have what is added to ours.
        let text = text.strip_prefix("runc create failed: ").unwrap_or(text);
        let text = text.strip_suffix(": unknown").unwrap_or(text);
        format!(
            "failed to create task for container: failed to create shim task: {RUNTIME}runc create failed: {text}: unknown"
        )
    } else {
        format!("failed to create task for container: {}", error.message)
    };
    let kind = if start_exit_code(&message) == 128 {
        error.kind
    } else {
        types::ErrorKind::InvalidArgument
    };
    Error::new(kind, message)
}

/// moby `daemon/start.go` `translateContainerdStartErr`.
fn start_exit_code(message: &str) -> i64 {
    let lower = message.to_ascii_lowercase();
    let has = |text: &str| lower.contains(text);
    if has("executable file not found")
        || has("no such file or directory")
        || has("system cannot find the file specified")
    {
        127
    } else if has("permission denied") || has("not a directory") || has("is a directory") {
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
    fn sizes() {
        assert_eq!(parse_size("10m").unwrap(), 10 << 20);
        assert_eq!(parse_size("1GiB").unwrap(), 1 << 30);
        assert_eq!(parse_size("-1").unwrap(), 0);
        for text in ["", "x", "10q", "99999999999999999999", "99999999999g"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn failed_starts_in_dockerds_words() {
        let whole = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: \"x\": permission denied: unknown";
        for text in [
            "failed to create shim task: OCI runtime create failed: unable to start container process: exec: \"x\": permission denied",
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: \"x\": permission denied: unknown",
        ] {
            let error = store_api::Error::new(types::ErrorKind::Internal, text);
            assert_eq!(create_failed(error).message, whole);
        }
        let error = store_api::Error::new(
            types::ErrorKind::Internal,
            "failed to create shim task: no room",
        );
        assert_eq!(
            create_failed(error).message,
            "failed to create task for container: failed to create shim task: no room"
        );
    }

    #[test]
    fn exit_codes_of_failed_starts() {
        assert_eq!(start_exit_code("exec: \"x\": executable file not found in $PATH"), 127);
        assert_eq!(start_exit_code("exec: \"/etc\": permission denied"), 126);
        assert_eq!(start_exit_code("something else"), 128);
    }
}
