//! cgroups: where a container's are, making and removing them, their processes.
//!
//! Two shapes: v2 alone (`/sys/fs/cgroup` is a cgroup2), and v1, each hierarchy mounted by
//! itself, with or without a v2 hierarchy beside it (hybrid). On a hybrid host the container gets
//! a cgroup in the v2 hierarchy only if a limit needs a controller that lives there.

pub(crate) mod claim;
pub(crate) mod devices;
pub(crate) mod devices_bpf;
mod files;
mod freeze;
mod host;
mod oom;
mod stats;
mod sub;
mod systemd;
mod v1;
mod v2;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(crate) use claim::Claim;
pub(crate) use host::Host;
pub use oom::OomWatch;
pub(crate) use sub::SubCgroup;
pub(crate) use systemd::{Launch, Unit};

use crate::error::{Context, Error, Result, Step};
use crate::spec::{DeviceRule, Resources};

/// v2's limit of processes, as `linux.resources.unified` names it.
const PIDS_MAX: &str = "pids.max";
/// Levels of sub-cgroups that are walked for processes and removal.
const DEPTH_LIMIT: usize = 128;

/// A container's cgroups; part of the state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "version", rename_all = "lowercase")]
pub(crate) enum Cgroup {
    /// The host has none, or may not be used (rootless).
    None,
    /// One directory for every controller.
    V2 { dir: PathBuf },
    /// One directory per hierarchy.
    V1 { dirs: Vec<V1Dir>, unified: Option<PathBuf> },
}

/// A container's directory in one v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct V1Dir {
    /// Base name of the hierarchy's mount point: `cpu`, `cpu,cpuacct`, `systemd`.
    pub(crate) name: String,
    /// `cpu`, `cpuacct`, or `name=systemd`.
    pub(crate) controllers: Vec<String>,
    /// The hierarchy's mount point.
    pub(crate) mount: PathBuf,
    /// The container's cgroup.
    pub(crate) dir: PathBuf,
}

/// What the container may see of it.
#[derive(Debug, Clone)]
pub(crate) enum View {
    None,
    V2 { dir: PathBuf },
    V1 { hierarchies: Vec<ViewHierarchy> },
}

/// One hierarchy for the container's /sys/fs/cgroup.
#[derive(Debug, Clone)]
pub(crate) struct ViewHierarchy {
    /// Directory name.
    pub(crate) name: String,
    /// Empty for the v2 hierarchy of a hybrid host.
    pub(crate) controllers: Vec<String>,
    /// The container's cgroup on the host, if it has one there.
    pub(crate) dir: Option<PathBuf>,
}

impl Cgroup {
    /// Decides where the cgroups go; makes nothing. `path` is `linux.cgroupsPath`: absolute from
    /// the hierarchies' roots, or relative to the caller's own cgroup; empty means the id.
    pub(crate) fn locate(host: &Host, path: &str, id: &str, res: &Resources) -> Result<Cgroup> {
        if path.contains(':') && !path.starts_with('/') {
            return Err(Error::config(
                "linux.cgroupsPath",
                format!(
                    "{path:?} is systemd's form (slice:prefix:name), which goes with --systemd-cgroup"
                ),
            ));
        }
        let path = if path.is_empty() { id } else { path };
        let (absolute, inner) = match path.strip_prefix('/') {
            Some(_) => (true, crate::rootfs::resolve::clean(path)),
            None => (false, crate::rootfs::resolve::clean(path)),
        };
        let inner = inner.strip_prefix("/").unwrap_or(&inner).to_owned();
        if inner.as_os_str().is_empty() {
            return Err(Error::config("linux.cgroupsPath", "is the root cgroup"));
        }
        Ok(match host {
            Host::None => Cgroup::None,
            Host::V2 { mount, own } => {
                // The own cgroup has processes, so it cannot have controllers for children.
                let parent = Path::new(own).parent().unwrap_or(Path::new("/"));
                Cgroup::V2 { dir: host::below(mount, parent, absolute).join(inner) }
            }
            Host::V1 { hierarchies, unified } => {
                let dirs = hierarchies
                    .iter()
                    .map(|h| V1Dir {
                        name: h.name.clone(),
                        controllers: h.controllers.clone(),
                        mount: h.mount.clone(),
                        dir: host::below(&h.mount, Path::new(&h.own), absolute).join(&inner),
                    })
                    .collect::<Vec<_>>();
                let v1_has = |c: &str| dirs.iter().any(|d| d.controllers.iter().any(|n| n == c));
                let needed = !res.unified.is_empty()
                    || (!res.hugepage_limits.is_empty() && !v1_has("hugetlb"))
                    || (!res.rdma.is_empty() && !v1_has("rdma"));
                let unified = match unified {
                    Some((mount, own)) if needed => {
                        Some(host::below(mount, Path::new(own), absolute).join(&inner))
                    }
                    _ => None,
                };
                Cgroup::V1 { dirs, unified }
            }
        })
    }

    /// Makes the directories and sets the limits, but for that of processes, see
    /// [`Cgroup::limit_processes`]. With `rootless`, hierarchies that may not be
    /// written are left out, if no limit needs them.
    pub(crate) fn create(
        &mut self,
        resources: &Resources,
        rootless: bool,
        device_rules: bool,
        claim: &Claim<'_>,
    ) -> Result<()> {
        match self {
            Cgroup::None => {
                if resources_wanted(resources) && !rootless {
                    return Err(Error::config("linux.resources", "the host has no cgroups"));
                }
                return Ok(());
            }
            Cgroup::V2 { dir } => match v2::make(dir).and_then(|new| claim.take(dir, new)) {
                Err(e) if rootless && denied(&e) && !resources_wanted(resources) => {
                    *self = Cgroup::None;
                    return Ok(());
                }
                other => other?,
            },
            Cgroup::V1 { dirs, unified } => {
                let mut failed = None;
                let make = |d: &V1Dir| v1::make(d).and_then(|new| claim.take(&d.dir, new));
                dirs.retain(|d| match make(d) {
                    Ok(()) => true,
                    Err(e) => {
                        if !(rootless && denied(&e)) {
                            failed.get_or_insert(e);
                        }
                        false
                    }
                });
                if let Some(e) = failed {
                    return Err(e);
                }
                if let Some(dir) = unified {
                    let new = v2::make(dir)?;
                    claim.take(dir, new)?;
                }
            }
        }
        self.set(&without_processes(resources))?;
        if device_rules {
            self.set_devices(resources)?;
        }
        Ok(())
    }

    /// Sets the limit of processes: once the container's process is there, for the ones that make it count,
    /// too.
    pub(crate) fn limit_processes(&self, resources: &Resources) -> Result<()> {
        let by_name = resources.unified.get_key_value(PIDS_MAX);
        let limits = Resources {
            pids: resources.pids.clone(),
            unified: by_name
                .map(|(file, value)| (file.clone(), value.clone()))
                .into_iter()
                .collect(),
            ..Resources::default()
        };
        match self {
            Cgroup::None => Ok(()),
            _ if limits == Resources::default() => Ok(()),
            _ => self.set(&limits),
        }
    }

    /// Writes every limit that is given.
    pub(crate) fn set(&self, resources: &Resources) -> Result<()> {
        match self {
            Cgroup::None if resources_wanted(resources) => {
                Err(Error::config("linux.resources", "the container has no cgroup"))
            }
            Cgroup::None => Ok(()),
            Cgroup::V2 { dir } => v2::set(dir, resources),
            Cgroup::V1 { dirs, unified } => v1::set(dirs, unified.as_deref(), resources),
        }
        .step(|| "error setting cgroup config")
    }

    /// Sets the device rules: once, when the container is made.
    fn set_devices(&self, resources: &Resources) -> Result<()> {
        let rules = devices::effective(&resources.devices)?;
        match self {
            Cgroup::None => Ok(()),
            Cgroup::V2 { dir } => devices_bpf::apply(dir, &rules),
            Cgroup::V1 { dirs, .. } => v1::set_devices(dirs, &rules),
        }
        .step(|| "error setting device rules")
    }

    /// Changes the device rules of a container that runs.
    pub(crate) fn change_devices(&self, now: &[DeviceRule], new: &[DeviceRule]) -> Result<()> {
        let (now, new) = (devices::effective(now)?, devices::effective(new)?);
        match self {
            Cgroup::None => {
                Err(Error::config("linux.resources.devices", "the container has no cgroup"))
            }
            Cgroup::V2 { dir } => devices_bpf::apply(dir, &new),
            Cgroup::V1 { dirs, .. } => v1::set_devices(dirs, &devices::transition(&now, &new)),
        }
        .step(|| "error setting device rules")
    }

    /// Gives the v2 cgroup to the container's root: the directory and the files that the kernel names
    /// for that. Limits stay the host's.
    pub(crate) fn delegate(&self, uid: u32) -> Result<()> {
        match self {
            Cgroup::V2 { dir } => v2::delegate(dir, uid),
            _ => Ok(()),
        }
    }

    /// The v2 directory, for CLONE_INTO_CGROUP.
    pub(crate) fn open_v2(&self) -> Result<Option<OwnedFd>> {
        let Cgroup::V2 { dir } = self else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(dir, flags, Mode::empty())
            .ctx("open", || dir.display().to_string())
            .map(Some)
    }

    /// As [`Cgroup::open_v2`], for a sub-cgroup.
    pub(crate) fn open_v2_sub(&self, sub: &SubCgroup) -> Result<Option<OwnedFd>> {
        let Cgroup::V2 { dir } = self else { return Ok(None) };
        let dir = dir.join(sub.unified()?);
        Cgroup::V2 { dir }.open_v2()
    }

    /// The v2 cgroup that a process of the container is in.
    pub(crate) fn open_v2_of(&self, pid: i32) -> Result<Option<OwnedFd>> {
        match self.v2_of(pid)? {
            Some(dir) => Cgroup::V2 { dir }.open_v2(),
            None => Ok(None),
        }
    }

    fn v2_of(&self, pid: i32) -> Result<Option<PathBuf>> {
        let Cgroup::V2 { dir } = self else { return Ok(None) };
        let text = crate::procfs::ProcFs::open()?.read(&format!("{pid}/cgroup"))?;
        let path = text.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default();
        let found = Path::new(host::BASE).join(path);
        if !found.starts_with(dir) {
            return Err(Error::config(
                "container",
                format!("its first process has left its cgroup for {}", found.display()),
            ));
        }
        Ok(Some(found))
    }

    /// Puts a process into every directory that [`Cgroup::open_v2`] does not stand for.
    pub(crate) fn attach(&self, pid: i32) -> Result<()> {
        for file in self.open_procs(&SubCgroup::default())? {
            rustix::io::write(&file, pid.to_string().as_bytes())
                .ctx("add process to cgroup", || pid.to_string())?;
        }
        Ok(())
    }

    /// cgroup.procs of every v1 directory (and the hybrid's v2 one), open for writing.
    pub(crate) fn open_procs(&self, sub: &SubCgroup) -> Result<Vec<OwnedFd>> {
        let dirs: Vec<PathBuf> = match self {
            _ if self.dirs().is_empty() && *sub != SubCgroup::default() => {
                return Err(Error::config("--cgroup", "the container has no cgroup"));
            }
            Cgroup::None => Vec::new(),
            Cgroup::V2 { dir } => vec![dir.join(sub.unified()?)],
            Cgroup::V1 { dirs, unified } => {
                let known: Vec<&[String]> = dirs.iter().map(|d| d.controllers.as_slice()).collect();
                if let Some(name) = sub.unknown(&known) {
                    return Err(Error::config("--cgroup", format!("unknown controller {name}")));
                }
                let v1 = dirs.iter().map(|d| d.dir.join(sub.of(&d.controllers)));
                v1.chain(unified.as_ref().map(|dir| dir.join(sub.of(&[])))).collect()
            }
        };
        dirs.iter().map(|dir| open_procs_file(dir)).collect()
    }

    /// cgroup.procs of the v2 cgroup that a process of the container is in.
    pub(crate) fn open_procs_of(&self, pid: i32) -> Result<Option<OwnedFd>> {
        self.v2_of(pid)?.map(|dir| open_procs_file(&dir)).transpose()
    }

    /// One directory that has every process of the container.
    pub(crate) fn main_dir(&self) -> Option<&Path> {
        match self {
            Cgroup::None => None,
            Cgroup::V2 { dir } => Some(dir),
            Cgroup::V1 { dirs, .. } => ["devices", "freezer", "memory", "pids"]
                .iter()
                .find_map(|c| v1::dir(dirs, c))
                .or(dirs.first().map(|d| d.dir.as_path())),
        }
    }

    /// Every process in the cgroup and below.
    pub(crate) fn processes(&self) -> Result<Vec<i32>> {
        self.main_dir().map_or(Ok(Vec::new()), processes_below)
    }

    /// What the container is shown.
    pub(crate) fn view(&self, host: &Host) -> View {
        match (self, host) {
            (Cgroup::V2 { dir }, _) => View::V2 { dir: dir.clone() },
            (Cgroup::V1 { dirs, unified }, Host::V1 { hierarchies, unified: host_unified }) => {
                let mut shown: Vec<ViewHierarchy> = hierarchies
                    .iter()
                    .map(|h| ViewHierarchy {
                        name: h.name.clone(),
                        controllers: h.controllers.clone(),
                        dir: dirs.iter().find(|d| d.name == h.name).map(|d| d.dir.clone()),
                    })
                    .collect();
                // Only a cgroup of the container's own: without one, its root in that hierarchy
                // would be the caller's.
                if let (Some((mount, _)), Some(dir)) = (host_unified, unified) {
                    let name = mount.file_name().unwrap_or_default().to_string_lossy();
                    shown.push(ViewHierarchy {
                        name: name.into_owned(),
                        controllers: Vec::new(),
                        dir: Some(dir.clone()),
                    });
                }
                View::V1 { hierarchies: shown }
            }
            (Cgroup::None, Host::V2 { mount, .. }) => View::V2 { dir: mount.clone() },
            _ => View::None,
        }
    }

    /// Sends a signal to every process, until none is left that has not got it (SIGKILL: until
    /// none is left).
    pub(crate) fn signal_all(&self, signal: i32) -> Result<()> {
        freeze::signal_all(self, signal)
    }

    /// Stops or continues every process; returns when the kernel says it is so.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        freeze::set(self, frozen)
    }

    pub(crate) fn is_frozen(&self) -> Result<bool> {
        freeze::is_frozen(self)
    }

    pub(crate) fn stats(&self) -> Result<crate::Stats> {
        stats::read(self)
    }

    pub(crate) fn oom_watch(&self) -> Result<OomWatch> {
        OomWatch::new(self)
    }

    fn dirs(&self) -> Vec<&Path> {
        match self {
            Cgroup::None => Vec::new(),
            Cgroup::V2 { dir } => vec![dir],
            Cgroup::V1 { dirs, unified } => {
                dirs.iter().map(|d| d.dir.as_path()).chain(unified.as_deref()).collect()
            }
        }
    }

    /// Refuses, in runc's words, a cgroup that is in use by others: it would be taken from them. The
    /// directories that are not there yet: those go again if the container is not made.
    pub(crate) fn check_free(&self) -> Result<Vec<PathBuf>> {
        let field = || "linux.cgroupsPath";
        let count = self.processes().step(field)?.len();
        if count > 0 {
            let text = format!("container's cgroup is not empty: {count} process(es) found");
            return Err(Error::WrongStatus(text));
        }
        if self.is_frozen().step(field)? {
            return Err(Error::WrongStatus("container's cgroup unexpectedly frozen".into()));
        }
        Ok(self.dirs().into_iter().filter(|d| !d.exists()).map(Path::to_owned).collect())
    }

    /// Removes the directories and those below them. What is gone already is fine.
    pub(crate) fn delete(&self) -> Result<()> {
        // As many as can be; the first error.
        let removed = self.dirs().into_iter().map(|dir| files::remove(dir, DEPTH_LIMIT));
        removed.fold(Ok(()), Result::and)
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self, Cgroup::V2 { .. })
    }

    /// Whether none of its directories is left.
    pub(crate) fn is_gone(&self) -> bool {
        self.dirs().iter().all(|dir| !dir.exists())
    }

    /// Whether the directory of its processes is still there.
    pub(crate) fn exists(&self) -> bool {
        self.main_dir().is_some_and(Path::exists)
    }
}

/// What is left for before [`Cgroup::limit_processes`].
fn without_processes(resources: &Resources) -> Resources {
    let mut rest = Resources { pids: None, ..resources.clone() };
    rest.unified.remove(PIDS_MAX);
    rest
}

fn processes_below(dir: &Path) -> Result<Vec<i32>> {
    let mut out = Vec::new();
    files::for_each_below(dir, DEPTH_LIMIT, &mut |dir| {
        let text = files::read(&dir.join("cgroup.procs"))?;
        out.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
        Ok(())
    })?;
    Ok(out)
}

fn open_procs_file(dir: &Path) -> Result<OwnedFd> {
    let path = dir.join("cgroup.procs");
    rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .ctx("open", || path.display().to_string())
}

fn denied(e: &Error) -> bool {
    matches!(e.errno(), Some(Errno::ACCESS | Errno::PERM | Errno::ROFS))
}

/// Whether any limit beside device rules is asked for.
fn resources_wanted(r: &Resources) -> bool {
    let bare = Resources { devices: Vec::new(), ..r.clone() };
    let empty = Resources {
        memory: bare.memory.as_ref().map(|_| Default::default()),
        cpu: bare.cpu.as_ref().map(|_| Default::default()),
        pids: bare.pids.as_ref().map(|_| Default::default()),
        block_io: bare.block_io.as_ref().map(|_| Default::default()),
        ..Resources::default()
    };
    bare != empty
}
