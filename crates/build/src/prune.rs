//! Upkeep of the cache: what it holds, removing from it, and cleaning up after a killed build.

use std::collections::BTreeSet;

use store_api::{Labels, Timestamp};
use types::Digest;

use crate::{
    Builder,
    api::{CacheEntry, PruneRequest, Pruned},
    cache::Record,
    error::{Error, Result},
    files,
    session::{BUILD, GC_ROOT, LEASE_PREFIX, blocking, lease_of},
};

/// Inputs of pruned results that are kept for explanations.
const TOMBSTONES: usize = 5_000;
/// States of stages that are remembered beyond a prune: an empty file each.
const STATES: usize = 5_000;
/// Places in Dockerfiles under which steps are remembered.
const SLOTS: usize = 20_000;
/// Remembered hashes of what a step selected from a stage or a context; each may take megabytes.
const HASHES: usize = 500;

impl Builder {
    /// Removes what a build left that was killed. Call it before the first build.
    ///
    /// # Errors
    /// The store's, or of the builder's own directory.
    pub async fn recover(&self) -> Result<()> {
        let filters = [format!("labels.\"{BUILD}\"")];
        let marked = |labels: &Labels| labels.contains_key(BUILD);
        let snapshots = &self.services.snapshots;
        let gone = Labels::from([(GC_ROOT.into(), String::new()), (BUILD.into(), String::new())]);
        let keys = [format!("labels.{GC_ROOT}"), format!("labels.{BUILD}")];
        let found = snapshots.list(&filters).await.map_err(Error::store("list snapshots"))?;
        for info in found.into_iter().filter(|info| marked(&info.labels)) {
            let done = if info.kind == store_api::SnapshotKind::Committed {
                snapshots.update(&info.name, gone.clone(), &keys).await.map(drop)
            } else {
                snapshots.remove(&info.name).await
            };
            done.map_err(Error::store(format!("clean up snapshot {}", info.name)))?;
        }
        let content = &self.services.content;
        let found = content.list(&filters).await.map_err(Error::store("list content"))?;
        for info in found.into_iter().filter(|info| marked(&info.labels)) {
            let updated = content.update(&info.digest, gone.clone(), &keys).await;
            updated.map_err(Error::store(format!("clean up {}", info.digest)))?;
        }
        let leases = &self.services.leases;
        let found = leases.list(&filters).await.map_err(Error::store("list leases"))?;
        for lease in found.into_iter().filter(|lease| marked(&lease.labels)) {
            leases.delete(&lease.id, false).await.map_err(Error::store("delete lease"))?;
        }
        // Of results whose record was not written any more, or was removed already.
        let found = leases.list(&[]).await.map_err(Error::store("list leases"))?;
        for lease in found {
            let key = lease.id.strip_prefix(LEASE_PREFIX);
            let kept = |key| self.cache.get(key).is_some_and(|record| !record.pruned);
            if key.is_some_and(|key| !kept(key)) {
                match leases.delete(&lease.id, false).await {
                    Err(error) if !error.is_not_found() => {
                        return Err(Error::store("delete lease")(error));
                    }
                    _ => {}
                }
            }
        }
        self.trim(false).await?;
        let tmp = self.cache.dir("tmp");
        blocking(move || {
            files::remove_tree(&tmp).map_err(Error::io("remove", &tmp))?;
            files::private_dir(&tmp).map_err(Error::io("create", tmp))
        })
        .await
    }

    /// What the cache holds.
    ///
    /// # Errors
    /// The store's, or of the builder's own directory.
    pub async fn usage(&self) -> Result<Vec<CacheEntry>> {
        let records = self.records().await?;
        let shared = self.layers_of_images().await?;
        let mut entries: Vec<CacheEntry> = records
            .into_iter()
            .filter(|record| !record.pruned)
            .map(|record| CacheEntry {
                in_use: self.locks.is_held(&record.key),
                shared: is_shared(&record, &shared),
                id: record.key,
                parent: Some(record.inputs.parent).filter(|parent| !parent.is_empty()),
                kind: "regular".into(),
                description: record.description,
                bytes: record.bytes,
                created: record.created,
                last_used: record.last_used,
                uses: record.uses,
            })
            .collect();
        let mounts = self.cache.dir("mounts");
        entries.extend(blocking(move || cache_mounts(&mounts)).await?);
        for entry in entries.iter_mut().filter(|entry| entry.kind != "regular") {
            entry.in_use = self.locks.unless_used(&entry.id, || ()).is_none();
        }
        Ok(entries)
    }

    /// Removes cached results and cache mounts, least recently used first; layers that only the cache
    /// held are collected by the store afterwards.
    ///
    /// # Errors
    /// The store's, or of the builder's own directory. What was removed until then stays removed.
    pub async fn prune(&self, request: PruneRequest) -> Result<Pruned> {
        let mut entries = self.usage().await?;
        entries.sort_by_key(|entry| entry.last_used);
        let mut left: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let now = Timestamp::now().seconds;
        let mut pruned = Pruned::default();
        for entry in entries {
            if request.keep_bytes > 0 && left <= request.keep_bytes {
                break;
            }
            let idle = u64::try_from(now - entry.last_used.seconds).unwrap_or(0);
            let fresh = request.unused_for.is_some_and(|limit| idle < limit.as_secs());
            if fresh || entry.in_use || (entry.shared && !request.all) {
                continue;
            }
            if !self.remove_entry(&entry).await? {
                continue;
            }
            left = left.saturating_sub(entry.bytes);
            pruned.bytes += entry.bytes;
            pruned.ids.push(entry.id);
        }
        self.drop_tombstones().await?;
        let everything = request.all && request.keep_bytes == 0 && request.unused_for.is_none();
        self.trim(everything).await?;
        Ok(pruned)
    }

    /// Forgets what is remembered for speed and for reasons, but for the newest.
    async fn trim(&self, everything: bool) -> Result<()> {
        let cache = self.cache.clone();
        let keep = move |limit: usize| if everything { 0 } else { limit };
        blocking(move || {
            cache.forget("states", keep(STATES))?;
            cache.forget("slots", keep(SLOTS))?;
            cache.forget("hashes", keep(HASHES))
        })
        .await
    }

    /// Whether it was there to be removed: a cache mount may be in use by now.
    async fn remove_entry(&self, entry: &CacheEntry) -> Result<bool> {
        if entry.kind != "regular" {
            let dir = self.cache.dir("mounts").join(&entry.id);
            let trash = self.cache.dir("tmp").join(format!("trash-{}", files::random_hex(16)));
            // Out of the way in one step, while no command can begin to use it.
            let moved = self.locks.unless_used(&entry.id, || std::fs::rename(&dir, &trash));
            return match moved {
                None => Ok(false),
                Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
                Some(Err(error)) => Err(Error::io("remove", dir)(error)),
                Some(Ok(())) => {
                    let remove =
                        move || files::remove_tree(&trash).map_err(Error::io("remove", trash));
                    blocking(remove).await.map(|()| true)
                }
            };
        }
        let lock = self.locks.get(&entry.id);
        let _once = lock.lock().await;
        if let Some(record) = self.cache.get(&entry.id) {
            self.cache.forget_result(record)?;
        }
        match self.services.leases.delete(&lease_of(&entry.id), false).await {
            Err(error) if !error.is_not_found() => Err(Error::store("delete lease")(error)),
            _ => Ok(true),
        }
    }

    async fn drop_tombstones(&self) -> Result<()> {
        let records = self.records().await?;
        let mut tombs: Vec<&Record> = records.iter().filter(|record| record.pruned).collect();
        tombs.sort_by_key(|record| record.last_used);
        let surplus = tombs.len().saturating_sub(TOMBSTONES);
        tombs.iter().take(surplus).try_for_each(|record| self.cache.remove(&record.key))
    }

    async fn records(&self) -> Result<Vec<Record>> {
        let cache = self.cache.clone();
        blocking(move || cache.all()).await
    }

    /// Digests of the layers of all images that are here.
    async fn layers_of_images(&self) -> Result<BTreeSet<Digest>> {
        let images = self.services.images.list(&[]).await.map_err(Error::store("list images"))?;
        let mut layers = BTreeSet::new();
        for image in images {
            // An image without content on this machine holds no layers here.
            if let Ok(found) = self.services.extras.resolve_image(&image.target, None).await {
                layers.extend(found.layers.into_iter().map(|layer| layer.digest));
            }
        }
        Ok(layers)
    }
}

fn is_shared(record: &Record, layers: &BTreeSet<Digest>) -> bool {
    record.layer.as_ref().is_some_and(|layer| layers.contains(&layer.descriptor.digest))
}

/// RUN's cache mounts, with what their files take.
fn cache_mounts(dir: &std::path::Path) -> Result<Vec<CacheEntry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read directory", dir))? {
        let entry = entry.map_err(Error::io("read directory", dir))?;
        let path = entry.path();
        let id = std::fs::read_to_string(path.join("id")).unwrap_or_default();
        let created = stamp(&path.join("id"));
        entries.push(CacheEntry {
            id: entry.file_name().to_string_lossy().into_owned(),
            parent: None,
            kind: "exec.cachemount".into(),
            description: format!("cache mount {id}"),
            in_use: false,
            shared: false,
            bytes: size_of(&path, 0),
            created,
            last_used: stamp(&path.join("used")).max(created),
            uses: 1,
        });
    }
    Ok(entries)
}

fn stamp(path: &std::path::Path) -> Timestamp {
    use std::os::unix::fs::MetadataExt as _;
    let seconds = std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.mtime());
    Timestamp { seconds, nanos: 0 }
}

/// Bytes that a tree takes on disk; what vanishes meanwhile counts nothing.
fn size_of(path: &std::path::Path, depth: usize) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return 0 };
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() && depth < crate::tree::DEPTH {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        bytes += entries.map(|entry| size_of(&entry.path(), depth + 1)).sum::<u64>();
    }
    bytes
}
