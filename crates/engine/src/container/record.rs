//! A container's record: what was asked for, what came of it, and its state. One JSON file per
//! container; the file is the truth across restarts of the daemon.

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
    util::{Durability, read_limited, write_file},
};

/// Raised when a record of an older version cannot be read as it is.
const VERSION: u32 = 1;
/// Bytes of a record; the create body's limit with room for what the engine adds.
const LIMIT_BYTES: u64 = 16 << 20;

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

    pub(crate) fn load(file: &Path) -> Result<Self> {
        let bytes = read_limited(file, LIMIT_BYTES).map_err(|e| Error::io("read", file, &e))?;
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

    pub(crate) fn save(&self, file: &Path, durability: Durability) -> Result<()> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::internal(format!("encode record of {}: {e}", self.id)))?;
        write_file(file, &bytes, 0o600, durability)
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
