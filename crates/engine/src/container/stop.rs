//! Stop, kill, restart, pause, rename, update.

use std::{sync::Arc, time::Duration};

use api_types::{UpdateBody, UpdateResponse};
use bytes::Bytes;
use store_api::{Any, ProcessId};

use super::{
    Container, StartBy,
    create::check_restart_policy,
    record::Status,
    signal::{self, SIGKILL},
    spec,
};
use crate::{Engine, Error, Result};

/// How long a killed process may take to be gone before stop reports a failure.
const KILL_WAIT: Duration = Duration::from_secs(10);

impl Engine {
    /// Stops a container: its stop signal, then SIGKILL after the timeout (seconds; -1 waits without
    /// end, `None` is the container's own).
    pub async fn container_stop(
        self: &Arc<Self>,
        name: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<()> {
        let container = self.containers.find(name)?;
        // A start that is under way comes first.
        let lifecycle = container.lock_live(name).await?;
        if !container.record().status.is_running() {
            return Err(Error::not_modified("the container is already stopped"));
        }
        drop(lifecycle);
        self.stop_running(&container, signal, timeout).await?;
        self.container_event(&container, "stop");
        Ok(())
    }

    pub(crate) async fn stop_running(
        self: &Arc<Self>,
        container: &Arc<Container>,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<()> {
        let own = container.record().config.stop_signal.clone();
        let signal = match signal.filter(|text| !text.is_empty()) {
            Some(text) => signal::parse(text)?,
            None if own.is_empty() => signal::SIGTERM,
            None => signal::parse(&own)?,
        };
        if !self.hold_back(container).await? {
            return Ok(());
        }
        let timeout = self.stop_timeout(container, timeout);
        let sent = self.signal(container, signal, true).await;
        let patience = match (&sent, timeout) {
            (Ok(()), timeout) => timeout,
            // docker waits two seconds where the signal itself failed.
            (Err(_), _) => Some(Duration::from_secs(2)),
        };
        if wait_stopped(container, patience).await {
            return Ok(());
        }
        self.signal(container, SIGKILL, true).await?;
        if wait_stopped(container, Some(KILL_WAIT)).await {
            return Ok(());
        }
        Err(Error::internal(format!(
            "cannot stop container: {}: it is still running {} s after SIGKILL",
            container.id,
            KILL_WAIT.as_secs()
        )))
    }

    /// How long after its stop signal a container is killed: what is asked for, else its own, else the
    /// daemon's timeout. `None`: never.
    pub(crate) fn stop_timeout(
        &self,
        container: &Container,
        asked: Option<i64>,
    ) -> Option<Duration> {
        asked
            .or(container.record().config.stop_timeout)
            .map_or(Some(self.config.default_stop_timeout), |seconds| {
                u64::try_from(seconds).ok().map(Duration::from_secs)
            })
    }

    /// Marks a container as stopped by hand. Answers whether it has a process; one that was only about
    /// to restart is stopped by this alone, one that was removed meanwhile is stopped already.
    async fn hold_back(&self, container: &Arc<Container>) -> Result<bool> {
        let _lifecycle = container.lifecycle.lock().await;
        if container.is_removed() {
            return Ok(false);
        }
        container.cancel_restart.notify_waiters();
        // A full disk keeps nobody from stopping what fills it.
        container.update_or_log(|record| {
            // The host's shutdown is nobody's hand: `unless-stopped` starts again.
            record.manually_stopped |= !self.is_shutting_down();
            if let Status::Restarting { started_at, ended } = record.status.clone() {
                record.status = Status::Exited { started_at: Some(started_at), ended };
            }
        });
        Ok(container.record().status.is_running())
    }

    /// Sends a signal; where it is meant to end the container (`ends`), a frozen one is thawed to act on
    /// it. The lifecycle lock must not be held.
    async fn signal(&self, container: &Container, signal: u32, ends: bool) -> Result<()> {
        let init = ProcessId::init(container.id.as_str());
        let sent = self.services.tasks.kill(&init, signal, false).await;
        let sent = sent.inspect(|()| self.kill_event(container, signal));
        if ends && container.record().is_paused() {
            let _lifecycle = container.lifecycle.lock().await;
            // On cgroup v1 a runtime thaws what it kills. Whether it ends is what counts.
            if container.record().is_paused()
                && let Err(error) = self.thaw(container).await
            {
                tracing::debug!(container = %container.id, %error, "a signalled container was not thawed");
            }
        }
        match sent {
            // It ended by itself meanwhile.
            Err(error) if error.is_not_found() => Ok(()),
            other => Ok(other?),
        }
    }

    /// Ends a pause, with the lifecycle lock held.
    async fn thaw(&self, container: &Container) -> Result<()> {
        self.services.tasks.resume(container.id.as_str()).await?;
        container.update_or_log(|record| record.set_paused(false));
        self.container_event(container, "unpause");
        Ok(())
    }

    /// Every signal that the engine sends is told, those of stop and removal too.
    pub(super) fn kill_event(&self, container: &Container, signal: u32) {
        let mut attributes = container.record().attributes();
        attributes.insert("signal".into(), signal.to_string());
        self.events.publish("container", "kill", container.id.as_str(), attributes);
    }

    /// Sends a signal; empty is SIGKILL.
    pub async fn container_kill(self: &Arc<Self>, name: &str, signal: &str) -> Result<()> {
        let container = self.containers.find(name)?;
        let number = if signal.is_empty() { Ok(SIGKILL) } else { signal::parse(signal) };
        let number = number.map_err(|error| {
            Error::new(error.kind, format!("cannot kill container: {name}: {}", error.message))
        })?;
        let stop_signal = container.record().config.stop_signal.clone();
        let stop_signal = signal::parse(&stop_signal).unwrap_or(signal::SIGTERM);
        let ends = number == SIGKILL || number == stop_signal;
        {
            let _lifecycle = container.lock_live(name).await?;
            if container.record().status.pid().is_none() {
                return Err(Error::conflict(format!(
                    "cannot kill container: {name}: container {} is not running",
                    container.id
                )));
            }
            if ends {
                container.update_or_log(|record| record.manually_stopped = true);
            }
        }
        self.signal(&container, number, ends).await?;
        if number == SIGKILL && !wait_stopped(&container, Some(KILL_WAIT)).await {
            return Err(Error::internal(format!(
                "cannot kill container: {name}: tried to kill container, but did not receive an exit event"
            )));
        }
        Ok(())
    }

    pub async fn container_restart(
        self: &Arc<Self>,
        name: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<()> {
        let container = self.containers.find(name)?;
        // One that goes with its run (`--rm`) stays for the next.
        let _hold = container.hold_for_restart();
        // A start that is under way comes first.
        let lifecycle = container.lock_live(name).await?;
        let running = container.record().status.is_running();
        drop(lifecycle);
        if running {
            self.stop_running(&container, signal, timeout).await?;
            self.container_event(&container, "stop");
        }
        let _lifecycle = container.lock_live(name).await?;
        // A copy: the record's lock must not be held while it starts.
        let status = container.record().status.clone();
        match status {
            Status::Running { .. } => {}
            Status::Dead { .. } => {
                return Err(Error::conflict(
                    "container is marked for removal and cannot be started",
                ));
            }
            _ => {
                self.start_locked(&container, StartBy::Request).await?;
            }
        }
        self.container_event(&container, "restart");
        Ok(())
    }

    pub async fn container_pause(&self, name: &str) -> Result<()> {
        self.freeze(name, true).await
    }

    pub async fn container_unpause(&self, name: &str) -> Result<()> {
        self.freeze(name, false).await
    }

    async fn freeze(&self, name: &str, pause: bool) -> Result<()> {
        let container = self.containers.find(name)?;
        let _lifecycle = container.lock_live(name).await?;
        let id = container.id.as_str();
        match (&container.record().status, pause) {
            (Status::Running { paused: false, .. }, true)
            | (Status::Running { paused: true, .. }, false) => {}
            (Status::Running { .. }, true) => {
                return Err(Error::conflict(format!("Container {id} is already paused")));
            }
            (Status::Running { .. }, false) => {
                return Err(Error::conflict(format!("Container {id} is not paused")));
            }
            _ => return Err(Error::conflict(format!("container {id} is not running"))),
        }
        if !pause {
            return self.thaw(&container).await;
        }
        self.services.tasks.pause(id).await?;
        container.update(|record| record.set_paused(true))?;
        self.container_event(&container, "pause");
        Ok(())
    }

    pub async fn container_rename(&self, name: &str, new_name: &str) -> Result<()> {
        let container = self.containers.find(name)?;
        let _lifecycle = container.lock_live(name).await?;
        let new_name = new_name.strip_prefix('/').unwrap_or(new_name);
        if new_name.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        types::validate_name(new_name)
            .map_err(|error| Error::invalid(format!("Error when allocating new name: {error}")))?;
        let old = container.record().name.clone();
        if old == new_name {
            return Err(Error::invalid(format!(
                "Renaming a container with the same name as its current name: {new_name}"
            )));
        }
        self.containers.reserve_name(new_name, &container.id).map_err(|error| {
            Error::new(error.kind, format!("Error when allocating new name: {}", error.message))
        })?;
        if let Err(error) = container.update(|record| record.name = new_name.into()) {
            self.containers.release_name(new_name, &container.id);
            return Err(error);
        }
        self.containers.release_name(&old, &container.id);
        self.networks.renamed(&container.snapshot());
        let mut attributes = container.record().attributes();
        attributes.insert("oldName".into(), format!("/{old}"));
        self.events.publish("container", "rename", container.id.as_str(), attributes);
        Ok(())
    }

    /// Changes limits and restart policy, also of a running container.
    pub async fn container_update(&self, name: &str, body: UpdateBody) -> Result<UpdateResponse> {
        let container = self.containers.find(name)?;
        let _lifecycle = container.lock_live(name).await?;
        let record = container.snapshot();
        if matches!(record.status, Status::Dead { .. }) {
            return Err(Error::conflict(format!(
                "Cannot update container {}: container is marked for removal and cannot be \"update\"",
                record.id
            )));
        }
        let mut host = record.host_config.clone();
        let new = &body.resources;
        if !body.restart_policy.name.is_empty() {
            check_restart_policy(&body.restart_policy)?;
            if record.host_config.auto_remove && body.restart_policy.name != "no" {
                return Err(Error::conflict(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container",
                ));
            }
            host.restart_policy = body.restart_policy.clone();
        }
        refuse_fixed(new)?;
        // moby `container.(*Container).UpdateContainer`.
        if new.memory != 0 && new.memory_swap == 0 && new.memory > host.resources.memory_swap {
            return Err(Error::conflict(
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
            ));
        }
        merge_limits(&mut host.resources, new);
        super::validate::ranges(&host, super::online_cpus())?;
        let (memory, memory_swap) = (host.resources.memory, host.resources.memory_swap);
        if memory_swap > 0 && memory > memory_swap {
            return Err(Error::invalid(
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ));
        }
        let resources = spec::resources(&host.resources, self.facts.cgroup_v2)?;
        if record.status.pid().is_some() && !resources.is_empty() {
            let value = serde_json::to_vec(&resources)
                .map_err(|e| Error::internal(format!("encode limits of {}: {e}", record.id)))?;
            let resources = Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
                value: Bytes::from(value),
            };
            self.services.tasks.update(record.id.as_str(), resources).await?;
        }
        container.update(|record| record.host_config = host)?;
        self.container_event(&container, "update");
        Ok(UpdateResponse::default())
    }
}

/// Limits that a container has from its creation on.
fn refuse_fixed(new: &api_types::Resources) -> Result<()> {
    for (given, name) in [
        (!new.blkio_weight_device.is_empty(), "BlkioWeightDevice"),
        (!new.blkio_device_read_bps.is_empty(), "BlkioDeviceReadBps"),
        (!new.blkio_device_write_bps.is_empty(), "BlkioDeviceWriteBps"),
        (!new.blkio_device_read_iops.is_empty(), "BlkioDeviceReadIOps"),
        (!new.blkio_device_write_iops.is_empty(), "BlkioDeviceWriteIOps"),
        (!new.devices.is_empty(), "Devices"),
        (!new.device_cgroup_rules.is_empty(), "DeviceCgroupRules"),
        (!new.device_requests.is_empty(), "DeviceRequests"),
        (new.kernel_memory != 0, "KernelMemory"),
        (new.kernel_memory_tcp != 0, "KernelMemoryTCP"),
        (new.memory_swappiness.is_some_and(|s| s >= 0), "MemorySwappiness"),
        (new.oom_kill_disable == Some(true), "OomKillDisable"),
        (!new.ulimits.is_empty(), "Ulimits"),
        (!new.cgroup_parent.is_empty(), "CgroupParent"),
    ] {
        if given {
            return Err(Error::not_implemented(format!("changing {name} of a container")));
        }
    }
    Ok(())
}

/// What is given replaces; what is zero or empty stays.
fn merge_limits(have: &mut api_types::Resources, new: &api_types::Resources) {
    macro_rules! take {
        ($($field:ident),*) => { $(if new.$field != 0 { have.$field = new.$field; })* };
    }
    take!(
        cpu_shares,
        memory,
        memory_swap,
        memory_reservation,
        cpu_period,
        cpu_quota,
        cpu_realtime_period,
        cpu_realtime_runtime,
        blkio_weight
    );
    if new.nano_cpus != 0 {
        have.nano_cpus = new.nano_cpus;
        have.cpu_period = 0;
        have.cpu_quota = 0;
    }
    if !new.cpuset_cpus.is_empty() {
        have.cpuset_cpus.clone_from(&new.cpuset_cpus);
    }
    if !new.cpuset_mems.is_empty() {
        have.cpuset_mems.clone_from(&new.cpuset_mems);
    }
    if new.pids_limit.is_some_and(|limit| limit != 0) {
        have.pids_limit = new.pids_limit;
    }
}

/// Waits until the container has no process. `None`: without bound. Answers whether it came true.
pub(crate) async fn wait_stopped(container: &Container, patience: Option<Duration>) -> bool {
    let mut progress = container.progress.subscribe();
    let stopped = progress.wait_for(|progress| !progress.running || progress.removed);
    match patience {
        Some(patience) => tokio::time::timeout(patience, stopped).await.is_ok(),
        None => stopped.await.is_ok(),
    }
}
