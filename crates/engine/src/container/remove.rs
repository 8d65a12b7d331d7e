use std::sync::Arc;

use api_types::{ContainersPruneReport, Filters, Map};
use store_api::ProcessId;

use super::{
    Container,
    record::{Record, Status},
    signal::SIGKILL,
    stop::wait_stopped,
};
use crate::{
    Engine, Error, Result,
    util::{blocking, parse_time, unix_nanos},
};

const KILL_WAIT: std::time::Duration = std::time::Duration::from_secs(10);
/// How often a forced removal kills a container that others keep starting.
const FORCE_ROUNDS: usize = 16;
const PRUNE_FILTERS: &[&str] = &["label", "label!", "until"];

/// Flags of `DELETE /containers/{id}`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveOptions {
    /// Kill it first if it runs.
    pub force: bool,
    /// Remove its anonymous volumes too.
    pub volumes: bool,
    /// Remove a legacy link instead of the container.
    pub link: bool,
}

/// Only force removes what runs.
fn refuse_running(container: &Container, force: bool) -> Result<()> {
    let record = container.record();
    if force || !record.status.is_running() {
        return Ok(());
    }
    let (what, hint) = match record.status {
        Status::Running { paused: true, .. } => {
            ("paused", "unpause and then stop the container before removal or force remove")
        }
        Status::Restarting { .. } => {
            ("restarting", "stop the container before removal or force remove")
        }
        _ => ("running", "stop the container before removing or force remove"),
    };
    Err(Error::conflict(format!(
        "cannot remove container \"/{}\": container is {what}: {hint}",
        record.name
    )))
}

impl Engine {
    pub async fn container_remove(
        self: &Arc<Self>,
        name: &str,
        options: RemoveOptions,
    ) -> Result<()> {
        if options.link {
            return Err(Error::not_implemented("removing a link"));
        }
        let container = self.containers.find(name)?;
        for _ in 0..FORCE_ROUNDS {
            refuse_running(&container, options.force)?;
            let lifecycle = container.lifecycle.lock().await;
            if container.is_removed() {
                // `--rm` was quicker.
                return Ok(());
            }
            // A start that was under way may be over now.
            refuse_running(&container, options.force)?;
            if !container.record().status.is_running() {
                return self.remove_locked(&container, options.volumes).await;
            }
            drop(lifecycle);
            self.kill_for_removal(&container).await?;
        }
        Err(Error::conflict(format!(
            "cannot remove container \"/{}\": it was started again meanwhile",
            container.record().name
        )))
    }

    async fn kill_for_removal(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        {
            let _lifecycle = container.lifecycle.lock().await;
            if container.is_removed() {
                return Ok(());
            }
            container.cancel_restart.notify_waiters();
            // Where the disk is full this is what makes room again.
            container.update_or_log(|record| {
                record.manually_stopped = true;
                if let Status::Restarting { started_at, ended } = record.status.clone() {
                    record.status = Status::Exited { started_at: Some(started_at), ended };
                }
            });
            if container.record().status.pid().is_none() {
                return Ok(());
            }
            let paused = matches!(container.record().status, Status::Running { paused: true, .. });
            let init = ProcessId::init(container.id.as_str());
            match self.services.tasks.kill(&init, SIGKILL, true).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                Err(_) => {}
                Ok(()) => self.kill_event(container, SIGKILL),
            }
            // On cgroup v1 a runtime thaws what it kills. Whether it ends is what counts.
            if paused && let Err(error) = self.services.tasks.resume(container.id.as_str()).await {
                tracing::debug!(container = %container.id, %error, "a killed container was not thawed");
            }
        }
        if wait_stopped(container, Some(KILL_WAIT)).await {
            return Ok(());
        }
        Err(Error::internal(format!(
            "cannot remove container \"/{}\": could not kill container: it did not end in {} s",
            container.record().name,
            KILL_WAIT.as_secs()
        )))
    }

    /// Removes a container that has no process, with the lifecycle lock held. Everything is tried; what
    /// fails leaves the container `dead`, to be removed again.
    pub(crate) async fn remove_locked(
        self: &Arc<Self>,
        container: &Arc<Container>,
        volumes: bool,
    ) -> Result<()> {
        container.rootfs.settle("removed").await?;
        let record = container.snapshot();
        let id = record.id.as_str();
        // First, and durable before the store forgets its part: else a power cut could bring it back
        // without what it wrote.
        let dir = container.dir.clone();
        blocking(move || Record::forget(&dir)).await?;
        faults::pass("remove.forgotten");
        let mut failed = Vec::new();
        let mut note = |result: store_api::Result<()>| match result {
            Err(error) if !error.is_not_found() => failed.push(error.message),
            _ => {}
        };
        note(self.services.containers.delete(id).await);
        faults::pass("remove.record");
        note(self.services.snapshots.remove(id).await);
        faults::pass("remove.snapshot");
        if failed.is_empty() {
            let dir = container.dir.clone();
            let state = self.config.exec_root.join("containers").join(id);
            let emptied = blocking(move || {
                for dir in [dir, state] {
                    match std::fs::remove_dir_all(&dir) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                            return Err(Error::io("remove", &dir, &error));
                        }
                        _ => {}
                    }
                }
                Ok(())
            });
            if let Err(error) = emptied.await {
                failed.push(error.message);
            }
        }
        if !failed.is_empty() {
            container.update_or_log(|record| {
                record.status = Status::Dead { ended: record.status.ended().cloned() };
            });
            return Err(Error::internal(format!(
                "unable to remove container {id}: {}",
                failed.join("; ")
            )));
        }
        faults::pass("remove.directory");
        self.containers.remove(&record.id);
        self.networks.forget(&record);
        if volumes {
            for mount in record.mounts.iter().filter(|mount| mount.anonymous) {
                match self.volume_remove(&mount.name, true).await {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::debug!(volume = %mount.name, %error, "an anonymous volume stays");
                    }
                }
            }
        }
        self.events.publish("container", "destroy", id, record.attributes());
        container.progress.send_modify(|progress| {
            progress.running = false;
            progress.removed = true;
        });
        Ok(())
    }

    pub async fn container_prune(
        self: &Arc<Self>,
        filters: &Filters,
    ) -> Result<ContainersPruneReport> {
        filters.validate(PRUNE_FILTERS)?;
        let until = match filters.get("until").next() {
            Some(text) => Some(parse_time(text)?),
            None => None,
        };
        let mut report = ContainersPruneReport::default();
        for container in self.containers.all() {
            let record = container.snapshot();
            let unwanted =
                filters.contains("label!") && filters.match_labels("label!", &record.config.labels);
            if record.status.is_running()
                || unwanted
                || !filters.match_labels("label", &record.config.labels)
                || until.is_some_and(|until| unix_nanos(record.created) > unix_nanos(until))
            {
                continue;
            }
            let (own, _) = self.container_size(&record).await;
            let options = RemoveOptions::default();
            if self.container_remove(record.id.as_str(), options).await.is_ok() {
                report.containers_deleted.push(record.id.to_string());
                report.space_reclaimed += own;
            }
        }
        let reclaimed = Map::from([("reclaimed".into(), report.space_reclaimed.to_string())]);
        self.events.publish("container", "prune", "", reclaimed);
        Ok(report)
    }
}
