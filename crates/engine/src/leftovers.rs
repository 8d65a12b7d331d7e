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
    container::{CONTAINER_LABEL, Container, dir_of, snapshot_labels},
    error::chain,
    util::blocking,
};

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

    /// Makes writable layers anew for containers that have none: their own record is on the disk when
    /// they are created, the store's of their snapshot a second later, and a power cut can come in
    /// between. What was written in that second is lost with it.
    pub(crate) async fn renew_snapshots(&self, containers: &[Arc<Container>]) {
        for container in containers {
            let record = container.snapshot();
            let id = record.id.as_str();
            let missing = self.services.snapshots.stat(id).await;
            // Those that go with their run have gone.
            if record.host_config.auto_remove || !missing.is_err_and(|error| error.is_not_found()) {
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
