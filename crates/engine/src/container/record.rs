//! A container's record: what was asked for, what came of it, and its state, in two JSON files that are
//! the truth across restarts of the daemon.
//!
//! `gantry.json` is the whole record as of the container's creation or of the last change of what was
//! asked for; it is synced, and nothing that happens by itself touches it. `state.json` is what changes
//! with every run, replaced without a sync. A power cut may take it or leave it empty: then nobody knows
//! how the last run ended, and the container counts as exited with 255.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use api_types::{Config, EndpointSettings, HostConfig, PortMap};
use serde::{Deserialize, Serialize};
use store_api::{Descriptor, Timestamp};
use types::{ContainerId, Digest};

use crate::{
    Error, Result,
    util::{Durability, read_limited, unreadable, write_file},
};

/// Raised when a record of an older version cannot be read as it is.
const VERSION: u32 = 1;
/// Bytes of a record; the create body's limit with room for what the engine adds.
const LIMIT_BYTES: u64 = 16 << 20;
const RECORD_FILE: &str = "gantry.json";
const STATE_FILE: &str = "state.json";

/// How a container's last run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) code: i64,
    pub(crate) at: Timestamp,
    pub(crate) oom: bool,
    /// Why it did not start, or empty.
    pub(crate) error: String,
}

/// A container's state, whole. Docker's booleans are derived from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    Created,
    Running {
        pid: u32,
        started_at: Timestamp,
        paused: bool,
    },
    /// Ended, and about to be started again by its restart policy.
    Restarting {
        started_at: Timestamp,
        ended: Ended,
    },
    Exited {
        started_at: Option<Timestamp>,
        ended: Ended,
    },
    /// Removal failed half-way; it can be tried again.
    Dead {
        ended: Option<Ended>,
    },
}

impl Status {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            // A first start that failed: docker leaves the state as it was.
            Self::Created | Self::Exited { started_at: None, .. } => "created",
            Self::Running { paused: false, .. } => "running",
            Self::Running { paused: true, .. } => "paused",
            Self::Restarting { .. } => "restarting",
            Self::Exited { .. } => "exited",
            Self::Dead { .. } => "dead",
        }
    }

    /// Has a process (docker counts one that is about to restart as running).
    pub(crate) fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Restarting { .. })
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Self::Running { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    pub(crate) fn ended(&self) -> Option<&Ended> {
        match self {
            Self::Created | Self::Running { .. } => None,
            Self::Restarting { ended, .. } | Self::Exited { ended, .. } => Some(ended),
            Self::Dead { ended } => ended.as_ref(),
        }
    }

    pub(crate) fn started_at(&self) -> Option<Timestamp> {
        match self {
            Self::Created | Self::Dead { .. } => None,
            Self::Running { started_at, .. } | Self::Restarting { started_at, .. } => {
                Some(*started_at)
            }
            Self::Exited { started_at, .. } => *started_at,
        }
    }
}

/// The image that a container was made from, fixed at its creation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageUse {
    /// The image's id: digest of the manifest or index.
    pub(crate) id: Digest,
    pub(crate) target: Descriptor,
    /// The platform's manifest.
    pub(crate) manifest: Descriptor,
    /// Name of the topmost layer's snapshot; `None` for an image without layers.
    pub(crate) parent: Option<Digest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MountKind {
    Bind,
    Volume,
    Tmpfs,
}

/// A mount that the container gets, after defaults and images' VOLUMEs are settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountUse {
    pub(crate) kind: MountKind,
    /// Volume name, or empty.
    pub(crate) name: String,
    /// Host path; for a volume below its mountpoint.
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
    pub(crate) propagation: String,
    /// Mode text as docker's inspect shows it (`z`, `ro`, …).
    pub(crate) mode: String,
    /// tmpfs options; for binds `rbind` or `bind`.
    pub(crate) options: Vec<String>,
    /// The volume was made for this container alone and goes with `rm -v`.
    pub(crate) anonymous: bool,
    /// Do not fill an empty volume from the image.
    pub(crate) no_copy: bool,
    /// A path inside the volume.
    pub(crate) subpath: String,
    /// Given as an entry of `Mounts`, not of `Binds`.
    pub(crate) from_mounts: bool,
    /// A read-only bind leaves mounts below it writable.
    pub(crate) read_only_non_recursive: bool,
}

/// What a container has on a network while it runs, and what it asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) settings: EndpointSettings,
    /// Name of the interface inside; empty while not attached.
    pub(crate) ifname: String,
    pub(crate) host_ifname: String,
    /// The running container's default route and its published ports are on this network.
    #[serde(default)]
    pub(crate) gateway: bool,
    /// The address that was asked for; the settings have the one that it has.
    #[serde(default)]
    pub(crate) wanted_mac: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) id: ContainerId,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) image: ImageUse,
    /// With the image's defaults merged in.
    pub(crate) config: Config,
    pub(crate) host_config: HostConfig,
    pub(crate) path: String,
    pub(crate) args: Vec<String>,
    pub(crate) mounts: Vec<MountUse>,
    /// By network name.
    pub(crate) networks: BTreeMap<String, Attachment>,
    /// As published while running.
    pub(crate) ports: PortMap,
    pub(crate) status: Status,
    pub(crate) restart_count: u32,
    /// Stopped by a user: `unless-stopped` leaves it so when the daemon starts.
    pub(crate) manually_stopped: bool,
    /// Started at least once, so that empty volumes were filled.
    pub(crate) volumes_filled: bool,
}

/// What of a record changes by itself, run by run: the content of `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    status: Status,
    restart_count: u32,
    manually_stopped: bool,
    volumes_filled: bool,
    /// The names that come with another's network.
    hostname: String,
    domainname: String,
    networks: BTreeMap<String, Attachment>,
    ports: PortMap,
}

/// What a new record starts from.
pub(crate) struct NewRecord {
    pub(crate) id: ContainerId,
    pub(crate) name: String,
    pub(crate) image: ImageUse,
    pub(crate) config: Config,
    pub(crate) host_config: HostConfig,
    pub(crate) mounts: Vec<MountUse>,
    pub(crate) networks: BTreeMap<String, Attachment>,
}

impl Record {
    /// Names of the volumes that it uses.
    pub(crate) fn volume_names(&self) -> impl Iterator<Item = &str> {
        let volumes = self.mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
        volumes.map(|mount| mount.name.as_str())
    }

    pub(crate) fn new(new: NewRecord) -> Self {
        let mut words = Vec::new();
        words.extend(new.config.entrypoint.iter().flat_map(|list| list.0.iter().cloned()));
        words.extend(new.config.cmd.iter().flat_map(|list| list.0.iter().cloned()));
        let mut words = words.into_iter();
        Self {
            version: VERSION,
            id: new.id,
            name: new.name,
            created: Timestamp::now(),
            image: new.image,
            path: words.next().unwrap_or_default(),
            args: words.collect(),
            config: new.config,
            host_config: new.host_config,
            mounts: new.mounts,
            networks: new.networks,
            ports: PortMap::new(),
            status: Status::Created,
            restart_count: 0,
            manually_stopped: false,
            volumes_filled: false,
        }
    }

    /// Reads a container's record from its directory.
    ///
    /// # Errors
    /// A `gantry.json` that is missing, damaged, or of a newer version. A damaged `state.json` is none.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let mut record = Self::load_definition(&dir.join(RECORD_FILE))?;
        let file = dir.join(STATE_FILE);
        let state = match read_limited(&file, LIMIT_BYTES) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(record),
            Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                Err(error.to_string())
            }
            // It may run, and its data must not go because of a disk that does not answer.
            Err(error) => return Err(unreadable(&file, &error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        };
        match state {
            Ok(state) => record.put_state(state),
            Err(error) => {
                tracing::warn!(file = %file.display(), error, "how a container's last run ended is lost");
                record.lose_state();
            }
        }
        Ok(record)
    }

    fn load_definition(file: &Path) -> Result<Self> {
        let bytes = match read_limited(file, LIMIT_BYTES) {
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound
                        | std::io::ErrorKind::NotADirectory
                        | std::io::ErrorKind::FileTooLarge
                ) =>
            {
                return Err(Error::io("read", file, &error));
            }
            other => other.map_err(|error| unreadable(file, &error))?,
        };
        let record: Self = serde_json::from_slice(&bytes).map_err(|e| {
            Error::internal(format!("container record {} is damaged: {e}", file.display()))
        })?;
        if record.version > VERSION {
            return Err(Error::internal(format!(
                "container record {} has version {}, this engine knows up to {VERSION}",
                file.display(),
                record.version
            )));
        }
        Ok(record)
    }

    /// Writes the whole record: at creation, and when what was asked for has changed. A container that
    /// goes with its run (`--rm`) is not worth a sync.
    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        let auto_remove = self.host_config.auto_remove;
        let durability = if auto_remove { Durability::Atomic } else { Durability::Synced };
        self.write(&dir.join(RECORD_FILE), self, durability)
    }

    /// Takes back that there is such a container: what is left of it goes at the next start, if not now.
    pub(crate) fn forget(dir: &Path) -> Result<()> {
        let file = dir.join(RECORD_FILE);
        match faults::write("record.forget").and_then(|()| std::fs::remove_file(&file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &file, &error))
            }
            _ => Ok(()),
        }
    }

    /// Writes what differs from `before`, which is what the files have.
    pub(crate) fn save_changes(&self, before: &Self, dir: &Path) -> Result<()> {
        if !self.same_definition(before) {
            self.save(dir)?;
        }
        let state = self.state();
        if state == before.state() {
            return Ok(());
        }
        self.write(&dir.join(STATE_FILE), &state, Durability::Atomic)
    }

    fn write(&self, file: &Path, value: &impl Serialize, durability: Durability) -> Result<()> {
        let bytes = serde_json::to_vec(value)
            .map_err(|e| Error::internal(format!("encode record of {}: {e}", self.id)))?;
        write_file(file, &bytes, 0o600, durability)
    }

    fn state(&self) -> State {
        State {
            status: self.status.clone(),
            restart_count: self.restart_count,
            manually_stopped: self.manually_stopped,
            volumes_filled: self.volumes_filled,
            hostname: self.config.hostname.clone(),
            domainname: self.config.domainname.clone(),
            networks: self.networks.clone(),
            ports: self.ports.clone(),
        }
    }

    /// Which networks there are was asked for, and stays.
    fn put_state(&mut self, mut state: State) {
        self.status = state.status;
        self.restart_count = state.restart_count;
        self.manually_stopped = state.manually_stopped;
        self.volumes_filled = state.volumes_filled;
        self.config.hostname = state.hostname;
        self.config.domainname = state.domainname;
        for (name, attachment) in &mut self.networks {
            if let Some(known) = state.networks.remove(name) {
                *attachment = known;
            }
        }
        self.ports = state.ports;
    }

    fn lose_state(&mut self) {
        let ended = Ended { code: 255, at: Timestamp::now(), oom: false, error: String::new() };
        self.status = Status::Exited { started_at: Some(self.created), ended };
        // It ran, or there would be no state.
        self.volumes_filled = true;
        self.ports.clear();
    }

    /// Whether all that is not [`State`] is the same.
    fn same_definition(&self, other: &Self) -> bool {
        let mut other = other.clone();
        other.put_state(self.state());
        *self == other
    }

    pub(crate) fn is_paused(&self) -> bool {
        matches!(self.status, Status::Running { paused: true, .. })
    }

    /// Of a running container.
    pub(crate) fn set_paused(&mut self, pause: bool) {
        if let Status::Running { paused, .. } = &mut self.status {
            *paused = pause;
        }
    }

    /// What a start that is not the restart policy's begins with (moby `ResetRestartManager`).
    pub(crate) fn forget_policy(&mut self) {
        self.manually_stopped = false;
        self.restart_count = 0;
    }

    /// Its own network namespace, no host's and no other container's.
    pub(crate) fn has_own_network(&self) -> bool {
        let mode = self.host_config.network_mode.as_str();
        mode != "host" && !mode.starts_with("container:")
    }

    pub(crate) fn hostname(&self) -> String {
        if self.config.hostname.is_empty() {
            self.id.short().to_string()
        } else {
            self.config.hostname.clone()
        }
    }

    /// Attributes of this container's events.
    pub(crate) fn attributes(&self) -> api_types::Map<String> {
        let mut attributes = self.config.labels.clone();
        attributes.insert("image".into(), self.config.image.clone());
        attributes.insert("name".into(), self.name.clone());
        attributes
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    fn descriptor() -> Descriptor {
        serde_json::from_value(serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{}", "a".repeat(64)),
            "size": 1,
        }))
        .unwrap()
    }

    pub(in super::super) fn record() -> Record {
        let attachment = Attachment {
            settings: EndpointSettings::default(),
            ifname: String::new(),
            host_ifname: String::new(),
            gateway: false,
            wanted_mac: String::new(),
        };
        Record::new(NewRecord {
            id: crate::util::random_id().parse().unwrap(),
            name: "some".into(),
            image: ImageUse {
                id: descriptor().digest.clone(),
                target: descriptor(),
                manifest: descriptor(),
                parent: None,
            },
            config: Config::default(),
            host_config: HostConfig::default(),
            mounts: Vec::new(),
            networks: BTreeMap::from([("bridge".into(), attachment)]),
        })
    }

    #[test]
    fn runs_leave_the_synced_record_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let created = record();
        created.save(dir).unwrap();
        assert_eq!(Record::load(dir).unwrap(), created);
        let file = || fs::metadata(dir.join(RECORD_FILE)).unwrap().ino();
        let inode = file();
        let mut running = created.clone();
        running.status = Status::Running { pid: 7, started_at: Timestamp::now(), paused: false };
        running.restart_count = 3;
        running.volumes_filled = true;
        running.config.hostname = "of-another".into();
        running.networks.get_mut("bridge").unwrap().settings.ip_address = "172.17.0.2".into();
        running.save_changes(&created, dir).unwrap();
        assert_eq!(file(), inode);
        assert_eq!(Record::load(dir).unwrap(), running);
        // What was asked for goes into it, with all that is known.
        let mut changed = running.clone();
        changed.name = "other".into();
        changed.networks.clear();
        changed.save_changes(&running, dir).unwrap();
        assert_ne!(file(), inode);
        assert_eq!(Record::load(dir).unwrap(), changed);
    }

    /// Of one that cannot be read nobody knows that it has ended: with `--rm` it would be removed.
    #[test]
    fn what_cannot_be_read_is_not_lost() {
        for file in [RECORD_FILE, STATE_FILE] {
            let dir = tempfile::tempdir().unwrap();
            record().save(dir.path()).unwrap();
            let path = dir.path().join(file);
            if path.exists() {
                fs::remove_file(&path).unwrap();
            }
            // Reading it fails, and not for its absence.
            fs::create_dir(&path).unwrap();
            let error = Record::load(dir.path()).unwrap_err();
            assert_eq!(error.kind, types::ErrorKind::Unavailable);
            assert!(error.message.contains(path.to_str().unwrap()), "{error:?}");
        }
    }

    #[test]
    fn a_lost_state_is_an_unknown_end() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let created = record();
        created.save(dir).unwrap();
        for damage in [&b""[..], b"{\"status\":", b"\0\0\0\0"] {
            fs::write(dir.join(STATE_FILE), damage).unwrap();
            let loaded = Record::load(dir).unwrap();
            assert_eq!(loaded.status.ended().unwrap().code, 255);
            assert_eq!(loaded.status.name(), "exited");
            assert_eq!(loaded.name, created.name);
        }
        fs::remove_file(dir.join(STATE_FILE)).unwrap();
        assert_eq!(Record::load(dir).unwrap().status, Status::Created);
        fs::write(dir.join(RECORD_FILE), b"").unwrap();
        assert!(Record::load(dir).is_err());
    }
}
