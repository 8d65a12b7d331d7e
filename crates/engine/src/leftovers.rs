//! What a daemon that was killed left half made or half removed.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use crate::{Engine, container::Container, error::chain, util::blocking};

impl Engine {
    /// Removes a container's directory without a record: its creation or its removal was cut off.
    ///
    /// Answers whether it was such a directory. One with a record that cannot be read is none: it is kept.
    pub(crate) async fn removed_half(&self, dir: &Path) -> bool {
        let missing = std::fs::symlink_metadata(dir.join("gantry.json"))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
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
