//! Named and anonymous volumes of the `local` driver: a directory each, with a record beside its data.
//!
//! On disk: `DATA_ROOT/volumes/NAME/{_data,volume.json}`. A volume without a record is still one. What the
//! options of a volume name is mounted on its `_data` while a container uses it (`local`).

mod local;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use api_types::{Filters, Map, Volume, VolumesPruneReport};
use serde::{Deserialize, Serialize};
use store_api::Timestamp;
use types::ErrorKind;

use crate::{
    Engine, Error, Result,
    util::{
        Durability, expression_matches, list, make_dir_mode, random_id, read_limited, rfc3339,
        unreadable, write_file,
    },
};

const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";
/// moby `volume/service/opts`: label filters and more.
const FILTERS: &[&str] = &["dangling", "driver", "label", "name"];
const PRUNE_FILTERS: &[&str] = &["label", "label!", "all"];
const RECORD_FILE: &str = "volume.json";
/// Of a volume that is being removed; no volume's name begins like this.
const TRASH_PREFIX: &str = ".trash-";
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
    state: Arc<Mutex<State>>,
    /// Who uses what is mounted, by the volume's name; only of volumes with options. Held while
    /// something is mounted, which may take long with a server that does not answer. Taken before
    /// `state`.
    mounted: Mutex<Mounted>,
}

type Mounted = BTreeMap<String, BTreeSet<String>>;

#[derive(Default)]
struct State {
    known: BTreeMap<String, VolumeRecord>,
    /// Containers being made that will use a volume and are not to be found yet, by its name.
    held: BTreeMap<String, u32>,
}

/// Keeps a volume from removal until the container that will use it can be found.
pub(crate) struct VolumeHold {
    state: Arc<Mutex<State>>,
    name: String,
}

impl Drop for VolumeHold {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = state.held.get_mut(&self.name) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.held.remove(&self.name);
            }
        }
    }
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
        for entry in list(&root)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Of others, as `lost+found`.
            if validate_name(&name).is_err() {
                continue;
            }
            let data = entry.path().join("_data");
            let record = load(&entry.path(), name.clone());
            // What is mounted there may have outlived the daemon, and its server be gone: that is not asked.
            let is_mountable = record.as_ref().is_ok_and(|record| !record.options.is_empty());
            let is_volume = is_mountable
                || match fs::metadata(&data) {
                    Ok(metadata) => metadata.is_dir(),
                    Err(error) if is_gone(&error) => false,
                    Err(error) => {
                        tracing::warn!(volume = %name, %error, "a volume's data cannot be looked at");
                        true
                    }
                };
            if is_volume {
                known.insert(name, record?);
            }
        }
        let state = State { known, ..State::default() };
        Ok(Self { root, state: Arc::new(Mutex::new(state)), mounted: Mutex::default() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mounted(&self) -> std::sync::MutexGuard<'_, Mounted> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn data_dir(&self, name: &str) -> PathBuf {
        self.root.join(name).join("_data")
    }

    /// Makes a volume, or answers the one that is there.
    pub(crate) fn create(&self, new: NewVolume) -> Result<VolumeRecord> {
        self.create_held(new).map(|(record, _)| record)
    }

    /// The same for a container that is being made: the volume stays while the hold does.
    pub(crate) fn create_held(&self, new: NewVolume) -> Result<(VolumeRecord, VolumeHold)> {
        if !matches!(new.driver.as_str(), "" | "local") {
            return Err(Error::not_found(format!(
                "error looking up volume plugin {0}: plugin \"{0}\" not found",
                new.driver
            )));
        }
        local::parse(&new.options)?;
        let name = if new.name.is_empty() { random_id() } else { new.name };
        validate_name(&name)?;
        let mut state = self.lock();
        if let Some(have) = state.known.get(&name) {
            let have = have.clone();
            return Ok((have, self.hold(&mut state, name)));
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
        // An anonymous volume is no more lasting than its container.
        let durability = if new.anonymous { Durability::Atomic } else { Durability::Synced };
        write_record(&dir, &record, durability)?;
        state.known.insert(name.clone(), record.clone());
        Ok((record, self.hold(&mut state, name)))
    }

    fn hold(&self, state: &mut State, name: String) -> VolumeHold {
        let count = state.held.entry(name.clone()).or_default();
        *count = count.saturating_add(1);
        VolumeHold { state: self.state.clone(), name }
    }

    pub(crate) fn get(&self, name: &str) -> Result<VolumeRecord> {
        self.lock()
            .known
            .get(name)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("get {name}: no such volume")))
    }

    pub(crate) fn all(&self) -> Vec<VolumeRecord> {
        self.lock().known.values().cloned().collect()
    }

    /// Mounts what stands behind these volumes, for a user of them; once for all users.
    ///
    /// # Errors
    /// When one cannot be mounted: those before it are the user's, who gives them back.
    pub(crate) fn mount<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        user: &str,
    ) -> Result<()> {
        for name in names {
            let Ok(record) = self.get(name) else { continue };
            let Some(mount) = local::parse(&record.options)? else { continue };
            let dir = self.data_dir(name);
            let mut mounted = self.mounted();
            if mounted.get(name).is_none_or(BTreeSet::is_empty) {
                // Left by a daemon that ended in between.
                local::unmount(&dir)?;
                mount.mount(&dir).map_err(|error| {
                    let place = dir.display();
                    Error {
                        message: format!("error while mounting volume '{place}': {error}"),
                        ..error
                    }
                })?;
            }
            mounted.entry(name.to_owned()).or_default().insert(user.to_owned());
        }
        Ok(())
    }

    /// A container that ran on while no daemon did uses what is mounted.
    pub(crate) fn adopt_mounts<'a>(&self, names: impl IntoIterator<Item = &'a str>, user: &str) {
        let mut mounted = self.mounted();
        for name in names {
            if self.get(name).is_ok_and(|record| !record.options.is_empty()) {
                mounted.entry(name.to_owned()).or_default().insert(user.to_owned());
            }
        }
    }

    /// Whether there may be something for [`Volumes::unmount`] to do; does not wait.
    fn may_have_mounted(&self, user: &str) -> bool {
        let mounted = self.mounted.try_lock();
        mounted.map_or(true, |mounted| mounted.values().any(|users| users.contains(user)))
    }

    /// Unmounts what nobody else uses.
    pub(crate) fn unmount(&self, user: &str) {
        let mut mounted = self.mounted();
        let mut unused = Vec::new();
        mounted.retain(|name, users| {
            let was_last = users.remove(user) && users.is_empty();
            if was_last {
                unused.push(name.clone());
            }
            !was_last
        });
        for name in unused {
            self.unmount_or_log(&name);
        }
    }

    fn unmount_or_log(&self, name: &str) {
        if let Err(error) = local::unmount(&self.data_dir(name)) {
            tracing::warn!(volume = %name, %error, "a volume stays mounted");
        }
    }

    /// Removes a volume that nobody uses: neither a container that `users` finds nor one being made.
    fn remove(&self, name: &str, users: impl FnOnce() -> Vec<String>) -> Result<()> {
        let mut mounted = self.mounted();
        let mut state = self.lock();
        let users = if state.held.contains_key(name) {
            vec!["a container that is being created".into()]
        } else {
            users()
        };
        if !users.is_empty() {
            return Err(Error::conflict(format!(
                "remove {name}: volume is in use - [{}]",
                users.join(", ")
            )));
        }
        let dir = self.root.join(name);
        // What is mounted belongs to others.
        local::unmount(&dir.join("_data"))?;
        mounted.remove(name);
        // Out of sight in one step; emptied afterwards, so that a crash leaves no half volume.
        let trash = self.root.join(format!("{TRASH_PREFIX}{}", random_id()));
        match faults::write("volume.remove").and_then(|()| fs::rename(&dir, &trash)) {
            Ok(()) => faults::pass("volume.removed"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove volume", &dir, &error)),
        }
        state.known.remove(name);
        drop(state);
        sys::tree::remove(&trash).map_err(|errno| Error::io("empty", &trash, &errno.into()))
    }
}

impl Volumes {
    /// Makes records for volumes that have none or a damaged one, and removes those that hold nothing
    /// and that nobody uses: their creation was cut off. Empties what a cut off removal left.
    fn settle(&self, used: impl Fn(&str) -> bool) -> Result<()> {
        let entries = fs::read_dir(&self.root).map_err(|e| Error::io("list", &self.root, &e))?;
        for entry in entries.flatten() {
            let (dir, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let known = self.get(&name).ok();
            let is_mounted = self.mounted().contains_key(&name);
            if !is_mounted && known.as_ref().is_some_and(|record| !record.options.is_empty()) {
                self.unmount_or_log(&name);
            }
            let settled = match known {
                _ if name.starts_with(TRASH_PREFIX) => {
                    let remove =
                        || sys::tree::remove(&dir).map_err(|e| Error::io("empty", &dir, &e.into()));
                    local::unmount(&dir.join("_data")).and_then(|()| remove())
                }
                Some(record) => self.settle_one(&dir, &record, used(&name)),
                None => Ok(()),
            };
            if let Err(error) = settled {
                tracing::warn!(volume = %name, %error, "a volume was not brought in order");
            }
        }
        Ok(())
    }

    fn settle_one(&self, dir: &Path, record: &VolumeRecord, used: bool) -> Result<()> {
        let (name, path) = (&record.name, dir.join(RECORD_FILE));
        match read_limited(&path, RECORD_LIMIT_BYTES) {
            Ok(bytes) if parse(&bytes, name).is_some() => return Ok(()),
            Ok(_) => {
                let aside = dir.join(format!("{RECORD_FILE}.damaged"));
                fs::rename(&path, &aside).map_err(|e| Error::io("rename", &path, &e))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let data = dir.join("_data");
                let mut held = fs::read_dir(&data).map_err(|e| Error::io("list", &data, &e))?;
                if held.next().is_none() && !used {
                    tracing::info!(volume = %name, "an empty volume without a record is removed");
                    return self.remove(name, Vec::new);
                }
            }
            Err(error) => return Err(Error::io("read", &path, &error)),
        }
        tracing::info!(volume = %name, "a volume gets a new record");
        write_record(dir, record, Durability::Synced)
    }
}

fn parse(bytes: &[u8], name: &str) -> Option<VolumeRecord> {
    serde_json::from_slice(bytes).ok().filter(|record: &VolumeRecord| record.name == name)
}

fn write_record(dir: &Path, record: &VolumeRecord, durability: Durability) -> Result<()> {
    let bytes = serde_json::to_vec(record)
        .map_err(|e| Error::internal(format!("encode volume {}: {e}", record.name)))?;
    write_file(&dir.join(RECORD_FILE), &bytes, 0o600, durability)
}

/// When a directory without a record was last changed: not before it was made.
fn changed(dir: &Path) -> Timestamp {
    use std::os::unix::fs::MetadataExt as _;
    let seconds = fs::symlink_metadata(dir).map_or(0, |metadata| metadata.mtime());
    Timestamp { seconds, nanos: 0 }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn load(dir: &Path, name: String) -> Result<VolumeRecord> {
    let path = dir.join(RECORD_FILE);
    let bytes = match read_limited(&path, RECORD_LIMIT_BYTES) {
        Err(error) if is_gone(&error) || error.kind() == std::io::ErrorKind::FileTooLarge => None,
        other => Some(other.map_err(|error| unreadable(&path, &error))?),
    };
    Ok(match bytes.and_then(|bytes| parse(&bytes, &name)) {
        Some(record) => record,
        None => {
            tracing::warn!(volume = %name, "a volume's record is missing or damaged; its data is kept");
            VolumeRecord {
                version: 1,
                name,
                created: changed(dir),
                labels: Map::new(),
                options: Map::new(),
            }
        }
    })
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

    /// Brings the volumes in order that a daemon's death left half made or half removed. Call it once
    /// every container is known.
    pub(crate) async fn settle_volumes(self: &Arc<Self>) {
        let engine = self.clone();
        let settled = crate::util::blocking(move || {
            engine.volumes.settle(|name| !engine.volume_users(name).is_empty())
        });
        if let Err(error) = settled.await {
            tracing::warn!(%error, "volumes were not brought in order");
        }
    }

    /// Mounts what stands behind the volumes of a container, for `user`; [`Engine::unmount_volumes`]
    /// gives it back, after a failure as well.
    pub(crate) async fn mount_volumes(
        self: &Arc<Self>,
        record: &crate::container::record::Record,
        user: &str,
    ) -> Result<()> {
        let names: Vec<String> = record.volume_names().map(str::to_owned).collect();
        if names.is_empty() {
            return Ok(());
        }
        let (engine, user) = (self.clone(), user.to_owned());
        let mount = move || engine.volumes.mount(names.iter().map(String::as_str), &user);
        crate::util::blocking(mount).await
    }

    pub(crate) async fn unmount_volumes(self: &Arc<Self>, user: &str) {
        if !self.volumes.may_have_mounted(user) {
            return;
        }
        let (engine, user) = (self.clone(), user.to_owned());
        let unmounted = crate::util::blocking(move || {
            engine.volumes.unmount(&user);
            Ok(())
        });
        if let Err(error) = unmounted.await {
            tracing::warn!(%error, "volumes stay mounted");
        }
    }

    /// Ids of the containers that use a volume.
    pub(crate) fn volume_users(&self, name: &str) -> Vec<String> {
        let uses = |container: &Arc<crate::container::Container>| {
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
                    || filters.get("name").any(|want| expression_matches(&volume.name, want)))
                && dangling.is_none_or(|want| self.volume_users(&volume.name).is_empty() == want)
        });
        Ok(volumes.iter().map(|volume| self.volume_shape(volume)).collect())
    }

    pub async fn volume_remove(self: &Arc<Self>, name: &str, force: bool) -> Result<()> {
        if let Err(error) = self.volumes.get(name) {
            return if force { Ok(()) } else { Err(error) };
        }
        let (engine, owned) = (self.clone(), name.to_string());
        crate::util::blocking(move || {
            engine.volumes.remove(&owned, || engine.volume_users(&owned))
        })
        .await?;
        self.volume_event("destroy", name);
        Ok(())
    }

    /// Since API 1.42 only anonymous volumes, unless the filter `all` says otherwise.
    pub async fn volume_prune(
        self: &Arc<Self>,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_volume_stays_while_a_container_that_will_use_it_is_made() {
        let dir = std::env::temp_dir().join(random_id());
        let volumes = Volumes::open(&dir).unwrap();
        let new = || NewVolume { name: "data".into(), ..NewVolume::default() };
        let (record, hold) = volumes.create_held(new()).unwrap();
        let (_, second) = volumes.create_held(new()).unwrap();
        drop(hold);
        assert_eq!(volumes.remove("data", Vec::new).unwrap_err().kind, ErrorKind::Conflict);
        drop(second);
        let user = || vec!["a-container".to_string()];
        assert_eq!(volumes.remove("data", user).unwrap_err().kind, ErrorKind::Conflict);
        assert!(volumes.data_dir(&record.name).is_dir());
        volumes.remove("data", Vec::new).unwrap();
        assert!(volumes.get("data").is_err() && !volumes.data_dir("data").exists());
        fs::remove_dir_all(&dir).unwrap();
    }

    /// A volume's options and data do not go because of a disk that does not give its record.
    #[test]
    fn a_record_that_cannot_be_read_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volumes/kept");
        fs::create_dir_all(root.join("_data")).unwrap();
        // Reading it fails, and not for its absence.
        fs::create_dir(root.join(RECORD_FILE)).unwrap();
        let error = Volumes::open(dir.path()).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains(root.join(RECORD_FILE).to_str().unwrap()), "{error:?}");
    }

    #[test]
    fn volumes_without_a_record_get_one_or_go() {
        let dir = std::env::temp_dir().join(random_id());
        let root = dir.join("volumes");
        for name in ["full", "empty", "used", "damaged", ".trash-1"] {
            fs::create_dir_all(root.join(name).join("_data")).unwrap();
        }
        for name in ["full", ".trash-1"] {
            fs::write(root.join(name).join("_data/f"), "precious").unwrap();
        }
        fs::write(root.join("damaged").join(RECORD_FILE), "{").unwrap();
        let volumes = Volumes::open(&dir).unwrap();
        volumes.settle(|name| name == "used").unwrap();
        for name in ["full", "used", "damaged"] {
            let bytes = fs::read(root.join(name).join(RECORD_FILE)).unwrap();
            assert_eq!(parse(&bytes, name), Some(volumes.get(name).unwrap()));
        }
        assert_eq!(fs::read(root.join("full/_data/f")).unwrap(), b"precious");
        assert_eq!(fs::read(root.join("damaged/volume.json.damaged")).unwrap(), b"{");
        assert!(volumes.get("empty").is_err());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 3);
        fs::remove_dir_all(&dir).unwrap();
    }
}
