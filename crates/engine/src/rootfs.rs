//! A look into root file systems: of images, stopped containers and running ones, always through a
//! descriptor of the root and never through a path that an image could bend.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Mode, OFlags},
    io::Errno,
    process::{Pid, PidfdFlags},
};
use store_api::{Mount, Timestamp};
use sys::private_mount::{BindSpec, MountSpec, ReadOnly, TreeSpec, open_bound_tree, open_tree};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::{
    Error, Result,
    container::record::{MountKind, Record},
    pipe::Activity,
    util::unix_nanos,
};

/// A client that lets a transfer stand still for so long gives way to a start or a removal.
const STALLED: Duration = Duration::from_secs(10);
/// Transfers that go on have so long until a start or a removal ends them.
const SETTLE_MOST: Duration = Duration::from_secs(120);
/// What a cancelled transfer may take to close its files.
const CANCEL_GRACE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Opens the tree that `mounts` show. Blocking; the tree goes when the descriptor is closed.
pub(crate) fn open(mounts: &[Mount], scratch: &Path) -> Result<OwnedFd> {
    crate::util::make_dir(scratch)?;
    open_tree(specs(mounts), scratch.to_path_buf())
        .map_err(|e| Error::internal(format!("mount the root file system: {e}")))
}

/// The same with a container's volumes and binds, writable where they are so for the container.
pub(crate) fn open_bound(mounts: &[Mount], record: &Record, scratch: &Path) -> Result<OwnedFd> {
    crate::util::make_dir(scratch)?;
    let binds = record.mounts.iter().filter(|mount| mount.kind != MountKind::Tmpfs).map(|mount| {
        // As the specification of the container has them.
        let recursive = !mount.options.iter().any(|option| option == "bind");
        BindSpec {
            source: mount.source.clone(),
            target: PathBuf::from(&mount.target),
            recursive,
            read_only: match mount.read_only {
                false => ReadOnly::No,
                true if recursive && !mount.read_only_non_recursive => ReadOnly::Tree,
                true => ReadOnly::Mount,
            },
        }
    });
    let spec = TreeSpec {
        mounts: specs(mounts),
        binds: binds.collect(),
        read_only_root: record.host_config.readonly_rootfs,
    };
    open_bound_tree(spec, scratch.to_path_buf())
        .map_err(|e| Error::internal(format!("mount the root file system: {e}")))
}

fn specs(mounts: &[Mount]) -> Vec<MountSpec> {
    let spec = |mount: &Mount| MountSpec {
        kind: mount.kind.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    };
    mounts.iter().map(spec).collect()
}

/// Who has a container's root file system open. A stopped container's is mounted for one user at a
/// time; a running one's, which the container mounted, is shared. A start and a removal wait for all.
#[derive(Default)]
pub(crate) struct Uses {
    lock: Arc<RwLock<()>>,
    active: Mutex<Vec<Weak<Activity>>>,
}

/// Held while a root file system is open.
pub(crate) struct Lease {
    pub(crate) activity: Arc<Activity>,
    _guard: Guard,
}

enum Guard {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

/// An open root file system; closed before its lease ends.
pub(crate) struct Tree {
    root: OwnedFd,
    pub(crate) lease: Lease,
}

impl Tree {
    pub(crate) fn new(root: OwnedFd, lease: Lease) -> Self {
        Self { root, lease }
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Uses {
    fn lease(&self, guard: Guard) -> Lease {
        let activity = Arc::new(Activity::default());
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.retain(|other| other.strong_count() > 0);
        active.push(Arc::downgrade(&activity));
        Lease { activity, _guard: guard }
    }

    pub(crate) async fn share(&self) -> Lease {
        let guard = self.lock.clone().read_owned().await;
        self.lease(Guard::Shared { _guard: guard })
    }

    /// `None` while another has it open.
    pub(crate) fn take(&self) -> Option<Lease> {
        let guard = self.lock.clone().try_write_owned().ok()?;
        Some(self.lease(Guard::Alone { _guard: guard }))
    }

    /// Waits until nobody has it open; someone may have it again afterwards.
    pub(crate) async fn free(&self) {
        drop(self.lock.write().await);
    }

    /// Waits until nobody has it open, and ends what stands still for [`STALLED`] or takes longer than
    /// [`SETTLE_MOST`]. The caller holds the lifecycle lock, so that nobody opens it anew.
    ///
    /// # Errors
    /// `Conflict` when something does not end even so.
    pub(crate) async fn settle(&self, what: &str) -> Result<()> {
        self.settle_within(what, SETTLE_MOST, CANCEL_GRACE).await
    }

    async fn settle_within(&self, what: &str, most: Duration, grace: Duration) -> Result<()> {
        let began = tokio::time::Instant::now();
        let taken = self.lock.write();
        tokio::pin!(taken);
        loop {
            if tokio::time::timeout(LOOK_AGAIN, &mut taken).await.is_ok() {
                return Ok(());
            }
            let late = began.elapsed() > most;
            for activity in self.active() {
                if late || activity.stalled() >= STALLED {
                    activity.cancel(what);
                }
            }
            if began.elapsed() > most + grace {
                return Err(Error::conflict(format!(
                    "the container's files are being copied and it cannot be {what} meanwhile"
                )));
            }
        }
    }

    fn active(&self) -> Vec<Arc<Activity>> {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Makes `/.dockerenv`, by which programs see that they run in a container.
pub(crate) fn mark_as_container(root: &impl AsFd) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // One name right below the root: nothing on the way can be a link.
    match rustix::fs::openat(root, ".dockerenv", flags, Mode::from_raw_mode(0o755)) {
        Ok(_) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(Error::internal(format!("make /.dockerenv: {error}"))),
    }
}

/// A container's first process, as its record knows it.
#[derive(Clone, Debug)]
pub(crate) struct InitProcess {
    pid: u32,
    id: String,
    started_at: Timestamp,
}

impl InitProcess {
    /// `None` for a container that does not run.
    pub(crate) fn of(record: &Record) -> Option<Self> {
        let pid = record.status.pid()?;
        let started_at = record.status.started_at()?;
        Some(Self { pid, id: record.id.to_string(), started_at })
    }

    /// The root of the process.
    ///
    /// # Errors
    /// `Conflict` when the process is gone or its number is another's by now.
    pub(crate) fn open_root(&self) -> Result<OwnedFd> {
        let gone = || Error::conflict(format!("container {} is not running", self.id));
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        // While this process lives, which is asked at the end, its number is no other's.
        let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => return Err(gone()),
            Err(error) => {
                return Err(Error::internal(format!("watch process {}: {error}", self.pid)));
            }
        };
        let path = PathBuf::from(format!("/proc/{}/root", self.pid));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty());
        let ours = self.is_the_containers();
        if !alive(&process)? || !ours {
            return Err(gone());
        }
        root.map_err(|e| Error::io("open", &path, &e.into()))
    }

    /// Never the daemon's own mounts; and in the container's cgroup or, where it has none, from before
    /// the container was noted as started.
    fn is_the_containers(&self) -> bool {
        let mounts_of = |process: &str| {
            let stat = rustix::fs::stat(format!("/proc/{process}/ns/mnt"));
            stat.map(|stat| (stat.st_dev, stat.st_ino)).ok()
        };
        let pid = self.pid.to_string();
        let (Some(theirs), Some(own)) = (mounts_of(&pid), mounts_of("self")) else { return false };
        if theirs == own {
            return false;
        }
        let read = |name: &str| -> Option<String> {
            let mut text = String::new();
            let file = File::open(format!("/proc/{pid}/{name}")).ok()?;
            file.take(PROC_BYTES).read_to_string(&mut text).ok()?;
            Some(text)
        };
        if read("cgroup").is_some_and(|text| text.contains(&self.id)) {
            return true;
        }
        let Some(began) = read("stat").as_deref().and_then(started_nanos) else { return false };
        began <= unix_nanos(self.started_at).saturating_add(CLOCK_SLACK_NANOS)
    }
}

/// Bytes of a file of procfs that are read.
const PROC_BYTES: u64 = 64 << 10;
/// Start times have a hundredth of a second, and clocks are corrected.
const CLOCK_SLACK_NANOS: i64 = 1_000_000_000;

/// When a process began, in nanoseconds since 1970, by its `/proc/PID/stat` (proc(5), field 22).
fn started_nanos(stat: &str) -> Option<i64> {
    let after_name = stat.get(stat.rfind(')')? + 1..)?;
    let ticks: i64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    let per_second = i64::try_from(rustix::param::clock_ticks_per_second()).ok()?;
    let nanos = |time: rustix::time::Timespec| time.tv_sec * 1_000_000_000 + time.tv_nsec;
    let now = nanos(rustix::time::clock_gettime(rustix::time::ClockId::Realtime));
    let up = nanos(rustix::time::clock_gettime(rustix::time::ClockId::Boottime));
    Some(now - up + ticks * (1_000_000_000 / per_second))
}

/// A pidfd can be read once its process ended.
fn alive(process: &OwnedFd) -> Result<bool> {
    let mut watched = [PollFd::new(process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        match rustix::event::poll(&mut watched, Some(&now)) {
            Ok(ended) => return Ok(ended == 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::internal(format!("watch a process: {error}"))),
        }
    }
}

/// Opens a path inside a root; symbolic links are followed inside it, magic ones not at all.
pub(crate) fn open_in(root: &impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let relative = path.trim_start_matches('/');
    sys::private_mount::open_in_root(root, Path::new(relative), flags)
}

/// Reads a regular file of at most `limit_bytes` inside a root; `None` when there is none.
pub(crate) fn read_in(root: &impl AsFd, path: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_in(root, path, flags) {
        Ok(file) => File::from(file),
        Err(
            rustix::io::Errno::NOENT
            | rustix::io::Errno::NOTDIR
            | rustix::io::Errno::LOOP
            | rustix::io::Errno::NXIO,
        ) => return Ok(None),
        Err(error) => return Err(Error::internal(format!("open {path} in the image: {error}"))),
    };
    let meta = file.metadata().map_err(|e| Error::internal(format!("look at {path}: {e}")))?;
    if !meta.is_file() {
        return Err(Error::invalid(format!("{path} in the image is not a regular file")));
    }
    if meta.len() > limit_bytes {
        return Err(Error::invalid(format!(
            "{path} in the image has {} bytes, at most {limit_bytes} are read",
            meta.len()
        )));
    }
    let mut bytes = Vec::new();
    file.take(limit_bytes)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::internal(format!("read {path} in the image: {e}")))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_in_the_daemons_mounts_is_no_containers() {
        let mut process = InitProcess {
            pid: std::process::id(),
            id: crate::util::random_id(),
            started_at: Timestamp { seconds: i64::MAX / 2_000_000_000, nanos: 0 },
        };
        assert_eq!(process.open_root().unwrap_err().kind, types::ErrorKind::Conflict);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        process.pid = child.id();
        assert_eq!(process.open_root().unwrap_err().kind, types::ErrorKind::Conflict);
    }

    #[test]
    fn start_times() {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let ago = unix_nanos(Timestamp::now()) - started_nanos(&stat).unwrap();
        assert!((-CLOCK_SLACK_NANOS..3600 * 1_000_000_000).contains(&ago), "{ago}");
    }

    #[tokio::test]
    async fn a_start_waits_for_what_goes_on_and_ends_what_stands_still() {
        let uses = Arc::new(Uses::default());
        uses.settle("started").await.unwrap();
        let lease = uses.take().unwrap();
        assert!(uses.take().is_none());
        let waiting = tokio::spawn({
            let uses = uses.clone();
            async move { uses.settle("started").await }
        });
        tokio::time::sleep(LOOK_AGAIN * 2).await;
        assert!(!waiting.is_finished());
        drop(lease);
        waiting.await.unwrap().unwrap();
        let lease = uses.share().await;
        let error = uses.settle_within("removed", LOOK_AGAIN, LOOK_AGAIN).await.unwrap_err();
        assert!(lease.activity.is_cancelled());
        assert_eq!(error.kind, types::ErrorKind::Conflict);
    }
}
