//! What one build holds in the store, and gives back at its end: a lease, active snapshots, views.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use store_api::{
    Descriptor, DiffRequest, Labels, Mount, Resource, ResourceKind, Services, media_type,
};
use types::Digest;

use crate::{
    cache::Layer,
    error::{Error, Result},
    files,
    hashes::Memo,
    select::Root,
};

pub(crate) const GC_ROOT: &str = "containerd.io/gc.root";
/// Marks what a build has in progress with the build's id.
pub(crate) const BUILD: &str = "io.gantry.build";
/// The store keeps what has this label out of its records on disk.
const VOLATILE: &str = "gantry.io/volatile";
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

pub(crate) struct Session {
    pub(crate) services: Services,
    pub(crate) id: String,
    /// A directory of this build's own.
    pub(crate) scratch: PathBuf,
    /// Empty: where trees are mounted for a moment.
    mount_point: PathBuf,
    lease: String,
    active: Mutex<BTreeSet<String>>,
    views: tokio::sync::Mutex<BTreeMap<String, Arc<Root>>>,
}

pub(crate) const LEASE_PREFIX: &str = "gantry-build-";

/// The lease that holds one cached result.
pub(crate) fn lease_of(key: &str) -> String {
    format!("{LEASE_PREFIX}{key}")
}

impl Session {
    pub(crate) async fn open(services: Services, tmp: PathBuf) -> Result<Self> {
        let id = files::random_hex(16);
        let scratch = tmp.join(&id);
        let mount_point = scratch.join("mnt");
        files::private_dir(&mount_point).map_err(Error::io("create", &mount_point))?;
        let lease = format!("gantry-build-run-{id}");
        let labels = Labels::from([(BUILD.to_string(), id.clone())]);
        services.leases.create(&lease, labels).await.map_err(Error::store("create lease"))?;
        let active = Mutex::default();
        let views = tokio::sync::Mutex::default();
        Ok(Self { services, id, scratch, mount_point, lease, active, views })
    }

    /// Keeps something from being collected until the build ends.
    pub(crate) async fn pin(&self, kind: ResourceKind, id: impl Into<String>) -> Result<()> {
        let resource = Resource { kind, id: id.into() };
        let added = self.services.leases.add_resource(&self.lease, resource).await;
        added.map_err(Error::store("protect what the build needs"))
    }

    fn labels(&self) -> Labels {
        let now = jiff::Timestamp::now().to_string();
        Labels::from([(GC_ROOT.to_string(), now), (BUILD.to_string(), self.id.clone())])
    }

    /// The same for what the build alone needs: it is never synced, and gone when the host is.
    fn passing(&self) -> Labels {
        let mut labels = self.labels();
        labels.insert(VOLATILE.into(), "true".into());
        labels
    }

    /// The mounts of an active snapshot, asked for anew each time that it is mounted.
    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let mounts = self.services.snapshots.mounts(key).await;
        mounts.map_err(Error::store("mounts of a snapshot"))
    }

    fn active(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A writable snapshot on `parent`.
    pub(crate) async fn prepare(&self, parent: Option<&Digest>) -> Result<(String, Vec<Mount>)> {
        let key = format!("gantry-build-{}", files::random_hex(16));
        let parent = parent.map(Digest::to_string);
        self.active().insert(key.clone());
        let snapshots = &self.services.snapshots;
        let mounts = snapshots.prepare(&key, parent.as_deref(), self.passing()).await;
        Ok((key, mounts.map_err(Error::store("prepare a snapshot"))?))
    }

    pub(crate) async fn discard(&self, key: &str) -> Result<()> {
        let removed = self.services.snapshots.remove(key).await;
        self.active().remove(key);
        match removed {
            Err(error) if !error.is_not_found() => {
                Err(Error::store(format!("remove snapshot {key}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes a layer of what `key` holds beyond `parent`, and commits it under its chain id.
    pub(crate) async fn commit(&self, key: &str, parent: Option<&Digest>) -> Result<Layer> {
        let (descriptor, diff_id) = self.diff(key, parent).await?;
        let chain_id = match parent {
            None => diff_id.clone(),
            Some(parent) => Digest::sha256(format!("{parent} {diff_id}")),
        };
        let name = chain_id.to_string();
        self.pin(ResourceKind::Snapshot, &name).await?;
        match self.services.snapshots.commit(&name, key, self.labels()).await {
            Ok(()) => {
                self.active().remove(key);
            }
            // The same layer on the same parent was made before.
            Err(error) if error.is_already_exists() => self.discard(key).await?,
            Err(error) => return Err(Error::store("commit a snapshot")(error)),
        }
        Ok(Layer { chain_id, diff_id, descriptor })
    }

    async fn diff(&self, key: &str, parent: Option<&Digest>) -> Result<(Descriptor, Digest)> {
        let snapshots = &self.services.snapshots;
        let upper = self.mounts(key).await?;
        let view = format!("gantry-build-{}", files::random_hex(16));
        let parent = parent.map(Digest::to_string);
        self.active().insert(view.clone());
        let lower = snapshots.view(&view, parent.as_deref(), self.passing()).await;
        let lower = lower.map_err(Error::store("view of a snapshot"))?;
        let request = DiffRequest {
            lower,
            upper,
            media_type: media_type::OCI_LAYER_GZIP.into(),
            reference: format!("gantry-build-{}", files::random_hex(16)),
            labels: self.labels(),
            clamp_mtime: None,
        };
        let made = self.services.diffs.diff(request).await;
        self.discard(&view).await?;
        let descriptor = made.map_err(Error::store("make a layer"))?;
        self.pin(ResourceKind::Content, descriptor.digest.to_string()).await?;
        let label = match descriptor.annotations.get(UNCOMPRESSED) {
            Some(label) => Some(label.clone()),
            None => {
                let info = self.services.content.info(&descriptor.digest).await;
                let mut labels = info.map_err(Error::store("look up a layer"))?.labels;
                labels.remove(UNCOMPRESSED)
            }
        };
        let diff_id = label.and_then(|text| text.parse().ok()).ok_or_else(|| {
            Error::Invalid(format!("layer {} comes without its diff id", descriptor.digest))
        })?;
        let plain = Descriptor::new(&descriptor.media_type, descriptor.digest, descriptor.size);
        Ok((plain, diff_id))
    }

    /// Puts a layer that was made on nothing onto `parent`, if it is not there yet; the result's lease
    /// holds the snapshot too.
    pub(crate) async fn stack(&self, key: &str, layer: &Layer, parent: &Digest) -> Result<Layer> {
        let chain_id = Digest::sha256(format!("{parent} {}", layer.diff_id));
        let stacked = Layer { chain_id, ..layer.clone() };
        let name = stacked.chain_id.to_string();
        self.pin(ResourceKind::Snapshot, &name).await?;
        if self.is_present(&stacked).await? {
            self.hold(key, &stacked).await?;
            return Ok(stacked);
        }
        let (active, mounts) = self.prepare(Some(parent)).await?;
        let applied = self.services.diffs.apply(&layer.descriptor, &mounts).await;
        applied.map_err(Error::store("put a layer onto another"))?;
        match self.services.snapshots.commit(&name, &active, self.labels()).await {
            Ok(()) => {
                self.active().remove(&active);
            }
            Err(error) if error.is_already_exists() => self.discard(&active).await?,
            Err(error) => return Err(Error::store("commit a snapshot")(error)),
        }
        self.hold(key, &stacked).await?;
        Ok(stacked)
    }

    /// Gives a result its own lease, then takes the marks of work in progress away.
    pub(crate) async fn hold(&self, key: &str, layer: &Layer) -> Result<()> {
        let lease = lease_of(key);
        let leases = &self.services.leases;
        match leases.create(&lease, Labels::new()).await {
            Err(error) if !error.is_already_exists() => {
                return Err(Error::store("create lease")(error));
            }
            _ => {}
        }
        for (kind, id) in [
            (ResourceKind::Content, layer.descriptor.digest.to_string()),
            (ResourceKind::Snapshot, layer.chain_id.to_string()),
        ] {
            let added = leases.add_resource(&lease, Resource { kind, id }).await;
            added.map_err(Error::store("protect a cached layer"))?;
        }
        let gone = Labels::from([(GC_ROOT.into(), String::new()), (BUILD.into(), String::new())]);
        let keys = [format!("labels.{GC_ROOT}"), format!("labels.{BUILD}")];
        let chain = layer.chain_id.to_string();
        let updated = self.services.snapshots.update(&chain, gone.clone(), &keys).await;
        updated.map_err(Error::store("release a snapshot"))?;
        let updated = self.services.content.update(&layer.descriptor.digest, gone, &keys).await;
        updated.map_err(Error::store("release a layer"))?;
        Ok(())
    }

    /// Are a cached result's layer and snapshot still there?
    pub(crate) async fn is_present(&self, layer: &Layer) -> Result<bool> {
        self.pin(ResourceKind::Snapshot, layer.chain_id.to_string()).await?;
        self.pin(ResourceKind::Content, layer.descriptor.digest.to_string()).await?;
        let found = |result: store_api::Result<()>| match result {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(Error::store("look up a cached layer")(error)),
        };
        let chain = layer.chain_id.to_string();
        let snapshot = self.services.snapshots.stat(&chain).await.map(drop);
        let content = self.services.content.info(&layer.descriptor.digest).await.map(drop);
        Ok(found(snapshot)? && found(content)?)
    }

    /// The files of a stage or image, to read from. Its view lasts until the build ends.
    pub(crate) async fn view(&self, chain: Option<&Digest>, name: &str) -> Result<Arc<Root>> {
        let id = chain.map(Digest::to_string).unwrap_or_default();
        let mut views = self.views.lock().await;
        if let Some(root) = views.get(&id) {
            return Ok(root.clone());
        }
        let fd = match chain {
            None => {
                let empty = self.scratch.join("empty");
                files::private_dir(&empty).map_err(Error::io("create", &empty))?;
                std::fs::File::open(&empty).map_err(Error::io("open", &empty))?.into()
            }
            Some(_) => {
                let key = format!("gantry-build-{}", files::random_hex(16));
                self.active().insert(key.clone());
                let snapshots = &self.services.snapshots;
                let mounts = snapshots.view(&key, Some(&id), self.passing()).await;
                self.open_tree(mounts.map_err(Error::store("view of a snapshot"))?).await?
            }
        };
        let ignore = dockerfile::ignore::Matcher::default();
        let root = Arc::new(Root { fd, ignore, memo: Memo::open(None), stage: Some(name.into()) });
        views.insert(id, root.clone());
        Ok(root)
    }

    /// A descriptor of what the mounts show, seen by nobody else and gone when it is closed.
    pub(crate) async fn open_tree(&self, mounts: Vec<Mount>) -> Result<OwnedFd> {
        let scratch = self.mount_point.clone();
        blocking(move || {
            if let [mount] = mounts.as_slice()
                && mount.kind == "bind"
            {
                let dir = std::fs::File::open(&mount.source);
                return dir.map(Into::into).map_err(Error::io("open", &mount.source));
            }
            let convert = |mount: Mount| sys::private_mount::MountSpec {
                kind: mount.kind,
                source: mount.source,
                options: mount.options,
            };
            let specs = mounts.into_iter().map(convert).collect();
            sys::private_mount::open_tree(specs, scratch.clone())
                .map_err(Error::io("mount a snapshot on", scratch))
        })
        .await
    }

    /// Gives everything back. What fails is told together; nothing is left out.
    pub(crate) async fn close(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        self.views.lock().await.clear();
        let keys: Vec<String> = self.active().iter().cloned().collect();
        for key in keys {
            errors.extend(self.discard(&key).await.err());
        }
        if let Err(error) = self.services.leases.delete(&self.lease, false).await
            && !error.is_not_found()
        {
            errors.push(Error::store("delete lease")(error));
        }
        let scratch = self.scratch.clone();
        let removed =
            blocking(move || files::remove_tree(&scratch).map_err(Error::io("remove", &scratch)));
        errors.extend(removed.await.err());
        errors
    }
}

/// Runs sync work where it may take its time.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::Task)?
}
