//! Out-of-memory notices.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Cgroup, files, v1};
use crate::error::{Context, Error, Result};

/// Out-of-memory notice of one container. Poll [`OomWatch::fd`] for reading, then call
/// [`OomWatch::drain`]. It outlives neither the cgroup's removal (then `drain` says false and the
/// caller drops it) nor needs the container to be running.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    dir: PathBuf,
    v2: bool,
    seen: u64,
}

impl OomWatch {
    pub(super) fn new(cgroup: &Cgroup) -> Result<OomWatch> {
        match cgroup {
            Cgroup::V2 { dir } => version_2(dir),
            Cgroup::V1 { dirs, .. } => match v1::dir(dirs, "memory") {
                Some(dir) => version_1(dir),
                None => Err(Error::Unsupported("OOM notices without the memory cgroup".into())),
            },
            Cgroup::None => Err(Error::Unsupported("OOM notices without a cgroup".into())),
        }
    }

    /// The descriptor to poll for reading.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes the notice; true if there was an OOM since the last call.
    ///
    /// # Errors
    /// [`Error::Sys`] if the descriptor cannot be read.
    pub fn drain(&mut self) -> Result<bool> {
        let mut buf = [0u8; 4096];
        let mut any = false;
        loop {
            match rustix::io::read(&self.fd, &mut buf) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(_) => any = true,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).ctx("read", || "OOM notice"),
            }
        }
        if !self.v2 {
            // The kernel also rings when the cgroup is removed.
            return Ok(any && self.dir.exists());
        }
        let now = oom_kills(&self.dir)?;
        let more = now > self.seen;
        self.seen = now;
        Ok(more)
    }
}

fn oom_kills(dir: &Path) -> Result<u64> {
    let text = files::read_optional(dir, "memory.events")?.unwrap_or_default();
    Ok(files::pairs(&text).find(|(k, _)| *k == "oom_kill").map_or(0, |(_, n)| n))
}

fn version_2(dir: &Path) -> Result<OomWatch> {
    let path = dir.join("memory.events");
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let fd = inotify::init(flags).ctx("inotify_init", || path.display().to_string())?;
    inotify::add_watch(&fd, &path, inotify::WatchFlags::MODIFY)
        .ctx("inotify_add_watch", || path.display().to_string())?;
    Ok(OomWatch { fd, dir: dir.to_owned(), v2: true, seen: oom_kills(dir)? })
}

fn version_1(dir: &Path) -> Result<OomWatch> {
    let path = dir.join("memory.oom_control");
    let control = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .ctx("open", || path.display().to_string())?;
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .ctx("eventfd", || path.display().to_string())?;
    let line = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
    files::write(dir, "cgroup.event_control", &line)?;
    Ok(OomWatch { fd, dir: dir.to_owned(), v2: false, seen: 0 })
}
