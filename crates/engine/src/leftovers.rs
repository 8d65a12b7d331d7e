//! What a daemon that was killed left half made or half removed.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use store_api::ProcessId;
use types::ContainerId;

use crate::{
    Engine,
    builds::CONTEXT_PREFIX,
    container::{CONTAINER_LABEL, Container, dir_of, record::Record, snapshot_labels},
    error::chain,
    util::blocking,
};

/// A container's first start may be so long after its creation for a power cut to have taken the records of
/// both: the store carries them to the disk every second, unless the disk is slow.
const CUT_OFF_SECONDS: i64 = 10;

/// Why a container does not start whose writable layer the store does not know.
pub(crate) fn layer_is_lost(id: &str) -> String {
    format!(
        "the writable layer of container {id} is lost: stop the daemon, and `gantry containerd fsck` tells what is left of it before the next start removes that; then remove the container"
    )
}

impl Engine {
    /// Ends the steps of builds that were cut off, and removes what those builds had received. Call it
    /// before the builder removes the snapshots that the steps run on.
    pub(crate) async fn end_cut_off_builds(&self) {
        for dir in entries(&self.config.exec_root.join("build")) {
            let name = dir.file_name().and_then(|name| name.to_str());
            let Some(id) = name.filter(|name| name.parse::<ContainerId>().is_ok()) else {
                continue;
            };
            tracing::info!(step = id, "a step of a build that was cut off is ended");
            self.undo_task(&ProcessId::init(id)).await;
            if let Err(error) = self.services.containers.delete(id).await
                && !error.is_not_found()
            {
                tracing::warn!(step = id, %error, "a step's record was left behind");
            }
            if let Err(error) = std::fs::remove_dir_all(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "a step's directory was left behind");
            }
        }
        for file in entries(&self.config.data_root.join("tmp")) {
            let name = file.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(CONTEXT_PREFIX))
                && let Err(error) = std::fs::remove_file(&file)
            {
                tracing::warn!(file = %file.display(), %error, "a build context stays");
            }
        }
    }

    /// Removes from the store the containers of this engine that it has no directory for: a power cut
    /// undid their removal there, and not here.
    pub(crate) async fn remove_orphaned_containers(&self) {
        let filters = [format!("labels.\"{CONTAINER_LABEL}\"")];
        let containers = match self.services.containers.list(&filters).await {
            Ok(containers) => containers,
            Err(error) => {
                tracing::warn!(%error, "the store's containers were not looked through");
                return;
            }
        };
        for container in containers {
            let Ok(id) = container.id.parse::<ContainerId>() else { continue };
            let dir = dir_of(&self.config.data_root, &id);
            let gone = std::fs::symlink_metadata(&dir)
                .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            if !gone || container.labels.get(CONTAINER_LABEL) != Some(&container.id) {
                continue;
            }
            tracing::info!(container = %id, "what the store has of a container that is gone is removed");
            self.undo_task(&ProcessId::init(id.as_str())).await;
            if let Err(error) = self.services.containers.delete(id.as_str()).await {
                tracing::warn!(container = %id, %error, "the store's record of a container stays");
            }
        }
    }

    /// Removes containers' snapshots that neither this engine nor the store has a container for. The
    /// store does not collect them.
    pub(crate) async fn remove_orphaned_snapshots(&self) {
        let filters = [format!("labels.\"{CONTAINER_LABEL}\"")];
        let snapshots = match self.services.snapshots.list(&filters).await {
            Ok(snapshots) => snapshots,
            Err(error) => {
                tracing::warn!(%error, "snapshots were not looked through");
                return;
            }
        };
        for info in snapshots {
            let Ok(id) = info.name.parse::<ContainerId>() else { continue };
            let dir = dir_of(&self.config.data_root, &id);
            let gone = std::fs::symlink_metadata(&dir)
                .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            let recorded = self.services.containers.get(id.as_str()).await;
            let unknown = recorded.is_err_and(|error| error.is_not_found());
            if !gone || !unknown || info.labels.get(CONTAINER_LABEL) != Some(&info.name) {
                continue;
            }
            tracing::info!(container = %id, "the snapshot of a container that is gone is removed");
            if let Err(error) = self.services.snapshots.remove(id.as_str()).await {
                tracing::warn!(container = %id, %error, "a snapshot stays");
            }
        }
    }

    /// Makes writable layers anew for containers that a power cut has left without: their own record is on
    /// the disk when they are created, the store's of their snapshot a second later, and the power can go in
    /// between. What was written in that second is lost with it. A layer that was lost in any other way is
    /// not made anew: an empty one would take the place of what can still be saved.
    pub(crate) async fn renew_snapshots(&self, containers: &[Arc<Container>]) {
        for container in containers {
            let record = container.snapshot();
            let id = record.id.as_str();
            let missing = self.services.snapshots.stat(id).await;
            // Those that go with their run have gone.
            if record.host_config.auto_remove || !missing.is_err_and(|error| error.is_not_found()) {
                continue;
            }
            if let Err(why) = self.was_cut_off(&record).await {
                tracing::error!(container = id, why, "{}", layer_is_lost(id));
                continue;
            }
            // Layers are made of their blobs at the first use, and may have gone with it.
            let extras = &self.services.extras;
            let unpacked = extras.unpack(&record.image.manifest, None).await;
            let parent = record.image.parent.as_ref().map(ToString::to_string);
            let labels = snapshot_labels(&record.id);
            let prepared = match unpacked {
                Ok(_) => self.services.snapshots.prepare(id, parent.as_deref(), labels).await,
                Err(error) => Err(error),
            };
            match prepared {
                Ok(_) => tracing::warn!(
                    container = id,
                    "the writable layer was lost, as by a power cut just after the container's creation; it is empty now"
                ),
                Err(error) => {
                    tracing::warn!(container = id, %error, "the writable layer is lost");
                }
            }
        }
    }

    /// Did the power go before the store had anything of a container on the disk, and is nothing of its
    /// layer there?
    ///
    /// # Errors
    /// What speaks against it.
    async fn was_cut_off(&self, record: &Record) -> Result<(), String> {
        // Made at the first start, and durable no later than what the process wrote a second after that.
        match self.services.containers.get(record.id.as_str()).await {
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.to_string()),
            Ok(_) => return Err("the store has a record of the container".into()),
        }
        let ran_late = record
            .status
            .started_at()
            .is_some_and(|at| at.seconds.saturating_sub(record.created.seconds) > CUT_OFF_SECONDS);
        if ran_late || record.restart_count > 0 {
            return Err("it has run long after it was created".into());
        }
        match self.services.extras.unrecorded_snapshots().await {
            Ok(0) => Ok(()),
            Ok(n) => Err(format!("the store has {n} snapshots of which it has lost the records")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Removes a container's directory without a record: its creation or its removal was cut off.
    ///
    /// Answers whether it was such a directory. One with a record that cannot be read is none: it is kept.
    pub(crate) async fn removed_half(&self, dir: &Path) -> bool {
        let missing = std::fs::symlink_metadata(dir.join("gantry.json"))
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let Some(id) = dir.file_name().and_then(|name| name.to_str()).filter(|_| missing) else {
            return false;
        };
        tracing::info!(container = id, "what was left of a container is removed");
        for removed in
            [self.services.containers.delete(id).await, self.services.snapshots.remove(id).await]
        {
            if let Err(error) = removed
                && !error.is_not_found()
            {
                tracing::warn!(container = id, %error, "what was left of a container stays");
                return true;
            }
        }
        if let Err(error) = std::fs::remove_dir_all(dir) {
            tracing::warn!(dir = %dir.display(), %error, "a directory stays");
        }
        true
    }

    /// Removes network namespaces that belong to no container that runs.
    pub(crate) async fn remove_stale_namespaces(&self, containers: &[Arc<Container>]) {
        let dir = self.config.exec_root.join("netns");
        let used: BTreeSet<String> = containers
            .iter()
            .filter(|container| container.record().status.pid().is_some())
            .map(|container| container.id.short().to_string())
            .collect();
        let removed = blocking(move || {
            let Ok(entries) = std::fs::read_dir(&dir) else { return Ok(()) };
            for entry in entries.flatten() {
                if entry.file_name().to_str().is_some_and(|name| used.contains(name)) {
                    continue;
                }
                if let Err(error) = network::ns::remove(&entry.path()) {
                    let error = chain(&error);
                    tracing::warn!(file = %entry.path().display(), error, "a network namespace stays");
                }
            }
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::warn!(%error, "network namespaces were not looked through");
        }
    }
}

/// What a directory holds; nothing if it is not there.
fn entries(dir: &Path) -> Vec<PathBuf> {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(dir = %dir.display(), %error, "a directory was not looked through");
            }
            Vec::new()
        }
    }
}
