//! Named and anonymous volumes of the `local` driver: a directory each, with a record beside its data.
//!
//! On disk: `DATA_ROOT/volumes/NAME/{_data,volume.json}`. A volume without a record is still one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use api_types::{Filters, Map, Volume, VolumesPruneReport};
use serde::{Deserialize, Serialize};
use store_api::Timestamp;
use types::ErrorKind;

use crate::{
    Engine, Error, Result,
    util::{Durability, make_dir_mode, random_id, read_limited, rfc3339, write_file},
};

const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";
/// moby `volume/service/opts`: label filters and more.
const FILTERS: &[&str] = &["dangling", "driver", "label", "name"];
const PRUNE_FILTERS: &[&str] = &["label", "label!", "all"];
const RECORD_LIMIT_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug, Default)]
pub(crate) struct NewVolume {
    /// Empty: 64 random hexadecimal digits.
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) labels: Map<String>,
    pub(crate) options: Map<String>,
    pub(crate) anonymous: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    version: u32,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) labels: Map<String>,
    pub(crate) options: Map<String>,
}

pub(crate) struct Volumes {
    root: PathBuf,
    known: Mutex<BTreeMap<String, VolumeRecord>>,
}

/// moby `volume/local.(*Root).validateName`: at least two characters, so that a drive letter or a
/// mistyped path is not taken for one.
pub(crate) fn validate_name(name: &str) -> Result<()> {
    types::validate_name(name).map_err(|_| {
        Error::invalid(format!(
            "create {name}: \"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
        ))
    })
}

impl Volumes {
    pub(crate) fn open(data_root: &Path) -> Result<Self> {
        let root = data_root.join("volumes");
        make_dir_mode(&root, 0o701)?;
        let mut known = BTreeMap::new();
        let entries = fs::read_dir(&root).map_err(|e| Error::io("list", &root, &e))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if validate_name(&name).is_err() || !entry.path().join("_data").is_dir() {
                continue;
            }
            known.insert(name.clone(), load(&entry.path(), name));
        }
        Ok(Self { root, known: Mutex::new(known) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, VolumeRecord>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn data_dir(&self, name: &str) -> PathBuf {
        self.root.join(name).join("_data")
    }

    /// Makes a volume, or answers the one that is there.
    pub(crate) fn create(&self, new: NewVolume) -> Result<VolumeRecord> {
        if !matches!(new.driver.as_str(), "" | "local") {
            return Err(Error::not_found(format!(
                "error looking up volume plugin {0}: plugin \"{0}\" not found",
                new.driver
            )));
        }
        if let Some(option) = new.options.keys().next() {
            // A mount of its own behind a volume (type, o, device) is not built yet.
            return Err(Error::not_implemented(format!("volume option \"{option}\"")));
        }
        let name = if new.name.is_empty() { random_id() } else { new.name };
        validate_name(&name)?;
        let mut known = self.lock();
        if let Some(have) = known.get(&name) {
            return Ok(have.clone());
        }
        let mut labels = new.labels;
        if new.anonymous {
            labels.insert(ANONYMOUS_LABEL.into(), String::new());
        }
        let record = VolumeRecord {
            version: 1,
            name: name.clone(),
            created: Timestamp::now(),
            labels,
            options: new.options,
        };
        let dir = self.root.join(&name);
        make_dir_mode(&dir, 0o701)?;
        make_dir_mode(&dir.join("_data"), 0o755)?;
        let bytes = serde_json::to_vec(&record)
            .map_err(|e| Error::internal(format!("encode volume {name}: {e}")))?;
        // An anonymous volume is no more lasting than its container.
        let durability = if new.anonymous { Durability::Atomic } else { Durability::Synced };
        write_file(&dir.join("volume.json"), &bytes, 0o600, durability)?;
        known.insert(name, record.clone());
        Ok(record)
    }

    pub(crate) fn get(&self, name: &str) -> Result<VolumeRecord> {
        let known = self.lock();
        known
            .get(name)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("get {name}: no such volume")))
    }

    pub(crate) fn all(&self) -> Vec<VolumeRecord> {
        self.lock().values().cloned().collect()
    }

    fn remove(&self, name: &str) -> Result<()> {
        let mut known = self.lock();
        let dir = self.root.join(name);
        // Out of sight in one step; emptied afterwards, so that a crash leaves no half volume.
        let trash = self.root.join(format!(".trash-{}", random_id()));
        match fs::rename(&dir, &trash) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove volume", &dir, &error)),
        }
        known.remove(name);
        drop(known);
        match fs::remove_dir_all(&trash) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("empty", &trash, &error))
            }
            _ => Ok(()),
        }
    }
}

fn load(dir: &Path, name: String) -> VolumeRecord {
    let record = read_limited(&dir.join("volume.json"), RECORD_LIMIT_BYTES)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<VolumeRecord>(&bytes).ok());
    match record {
        Some(record) if record.name == name => record,
        _ => {
            tracing::warn!(volume = %name, "a volume's record is missing or damaged; its data is kept");
            VolumeRecord {
                version: 1,
                name,
                created: Timestamp::default(),
                labels: Map::new(),
                options: Map::new(),
            }
        }
    }
}

impl Engine {
    fn volume_shape(&self, record: &VolumeRecord) -> Volume {
        Volume {
            created_at: rfc3339(Some(Timestamp { nanos: 0, ..record.created })),
            driver: "local".into(),
            labels: record.labels.clone(),
            mountpoint: self.volumes.data_dir(&record.name).to_string_lossy().into_owned(),
            name: record.name.clone(),
            options: record.options.clone(),
            scope: "local".into(),
            ..Volume::default()
        }
    }

    /// Ids of the containers that use a volume.
    pub(crate) fn volume_users(&self, name: &str) -> Vec<String> {
        let uses = |container: &std::sync::Arc<crate::container::Container>| {
            container.record().mounts.iter().any(|mount| mount.name == name)
        };
        self.containers.all().iter().filter(|c| uses(c)).map(|c| c.id.to_string()).collect()
    }

    pub fn volume_create(&self, body: api_types::VolumeCreate) -> Result<Volume> {
        if body.cluster_volume_spec.is_some() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "cluster volumes need a swarm, which this engine does not offer",
            ));
        }
        let existed = !body.name.is_empty() && self.volumes.get(&body.name).is_ok();
        let record = self.volumes.create(NewVolume {
            anonymous: body.name.is_empty(),
            name: body.name,
            driver: body.driver,
            labels: body.labels,
            options: body.driver_opts,
        })?;
        if !existed {
            self.volume_event("create", &record.name);
        }
        Ok(self.volume_shape(&record))
    }

    pub fn volume_inspect(&self, name: &str) -> Result<Volume> {
        Ok(self.volume_shape(&self.volumes.get(name)?))
    }

    pub fn volume_list(&self, filters: &Filters) -> Result<Vec<Volume>> {
        filters.validate(FILTERS)?;
        let dangling = filters.get_bool("dangling")?;
        let mut volumes = self.volumes.all();
        volumes.retain(|volume| {
            filters.exact_match("driver", "local")
                && filters.match_labels("label", &volume.labels)
                && (!filters.contains("name")
                    || filters.get("name").any(|want| volume.name.contains(want)))
                && dangling.is_none_or(|want| self.volume_users(&volume.name).is_empty() == want)
        });
        Ok(volumes.iter().map(|volume| self.volume_shape(volume)).collect())
    }

    pub async fn volume_remove(self: &std::sync::Arc<Self>, name: &str, force: bool) -> Result<()> {
        if let Err(error) = self.volumes.get(name) {
            return if force { Ok(()) } else { Err(error) };
        }
        let users = self.volume_users(name);
        if !users.is_empty() {
            return Err(Error::conflict(format!(
                "remove {name}: volume is in use - [{}]",
                users.join(", ")
            )));
        }
        let (engine, owned) = (self.clone(), name.to_string());
        crate::util::blocking(move || engine.volumes.remove(&owned)).await?;
        self.volume_event("destroy", name);
        Ok(())
    }

    /// Since API 1.42 only anonymous volumes, unless the filter `all` says otherwise.
    pub async fn volume_prune(
        self: &std::sync::Arc<Self>,
        filters: &Filters,
        all_by_default: bool,
    ) -> Result<VolumesPruneReport> {
        filters.validate(PRUNE_FILTERS)?;
        let all = filters.get_bool("all")?.unwrap_or(all_by_default);
        let mut report = VolumesPruneReport::default();
        for volume in self.volumes.all() {
            let anonymous = volume.labels.contains_key(ANONYMOUS_LABEL);
            let unwanted =
                filters.contains("label!") && filters.match_labels("label!", &volume.labels);
            if (!all && !anonymous)
                || unwanted
                || !filters.match_labels("label", &volume.labels)
                || !self.volume_users(&volume.name).is_empty()
            {
                continue;
            }
            let dir = self.volumes.data_dir(&volume.name);
            let bytes = crate::util::blocking(move || Ok(crate::disk::usage(&dir))).await?;
            if self.volume_remove(&volume.name, false).await.is_ok() {
                report.space_reclaimed += bytes;
                report.volumes_deleted.push(volume.name);
            }
        }
        let reclaimed = Map::from([("reclaimed".into(), report.space_reclaimed.to_string())]);
        self.events.publish("volume", "prune", "", reclaimed);
        Ok(report)
    }

    /// What a container's start and end mean to its volumes.
    pub(crate) fn volume_use_events(
        &self,
        record: &crate::container::record::Record,
        mounted: bool,
    ) {
        for mount in record.mounts.iter().filter(|mount| !mount.name.is_empty()) {
            let mut attributes = Map::from([
                ("driver".to_string(), "local".to_string()),
                ("container".to_string(), record.id.to_string()),
            ]);
            if mounted {
                attributes.insert("destination".into(), mount.target.clone());
                attributes.insert("read/write".into(), (!mount.read_only).to_string());
                attributes.insert("propagation".into(), mount.propagation.clone());
            }
            let action = if mounted { "mount" } else { "unmount" };
            self.events.publish("volume", action, &mount.name, attributes);
        }
    }

    pub(crate) fn volume_event(&self, action: &str, name: &str) {
        let attributes = Map::from([("driver".to_string(), "local".to_string())]);
        self.events.publish("volume", action, name, attributes);
    }
}
