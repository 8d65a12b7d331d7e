//! Freezing, and signals to every process.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::{Cgroup, files, v1};
use crate::error::{Context, Error, Result};

/// How long a freeze may take; one process in an uninterruptible wait can hold it up for ever.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// Rounds of signals: each finds the processes that were forked during the one before.
const SIGNAL_ROUNDS: usize = 32;

pub(super) fn set(cgroup: &Cgroup, frozen: bool) -> Result<()> {
    match cgroup {
        Cgroup::None => Err(Error::config("container", "has no cgroup that could be frozen")),
        Cgroup::V2 { dir } => {
            files::write(dir, "cgroup.freeze", if frozen { "1" } else { "0" })?;
            wait_v2(dir, frozen)
        }
        Cgroup::V1 { dirs, .. } => {
            let dir = v1::dir(dirs, "freezer")
                .ok_or_else(|| Error::Unsupported("pause without the freezer cgroup".into()))?;
            set_v1(dir, frozen)
        }
    }
}

fn wait_v2(dir: &Path, frozen: bool) -> Result<()> {
    let path = dir.join("cgroup.events");
    let name = || path.display().to_string();
    let events = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .ctx("open", name)?;
    let deadline = Instant::now() + FREEZE_LIMIT;
    loop {
        rustix::fs::seek(&events, rustix::fs::SeekFrom::Start(0)).ctx("seek", name)?;
        let text = crate::procfs::read_text(&events, 4096).ctx("read", name)?;
        let now = files::pairs(&text).any(|(k, v)| k == "frozen" && v == 1);
        if now == frozen {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if frozen {
                files::write(dir, "cgroup.freeze", "0")?;
            }
            return Err(Errno::TIMEDOUT).ctx("freeze", || dir.display().to_string());
        }
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL).ctx("poll", name)?;
        // cgroup.events wakes pollers when its text changes.
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).ctx("poll", name),
        }
    }
}

/// The v1 freezer has no notice: its state is read again after short pauses. A freeze that hangs
/// in FREEZING (a fork raced with it) comes through when it is thawed and tried again.
fn set_v1(dir: &Path, frozen: bool) -> Result<()> {
    let want = if frozen { "FROZEN" } else { "THAWED" };
    let deadline = Instant::now() + FREEZE_LIMIT;
    let mut pause = Duration::from_micros(50);
    let mut tries = 0u32;
    loop {
        files::write(dir, "freezer.state", want)?;
        if files::read(&dir.join("freezer.state"))?.trim() == want {
            return Ok(());
        }
        if Instant::now() > deadline {
            if frozen {
                files::write(dir, "freezer.state", "THAWED")?;
            }
            return Err(Errno::TIMEDOUT).ctx("freeze", || dir.display().to_string());
        }
        tries += 1;
        if frozen && tries.is_multiple_of(100) {
            files::write(dir, "freezer.state", "THAWED")?;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

pub(super) fn is_frozen(cgroup: &Cgroup) -> Result<bool> {
    match cgroup {
        Cgroup::None => Ok(false),
        Cgroup::V2 { dir } => {
            let text = files::read_optional(dir, "cgroup.freeze")?.unwrap_or_default();
            Ok(text.trim() == "1")
        }
        Cgroup::V1 { dirs, .. } => match v1::dir(dirs, "freezer") {
            None => Ok(false),
            Some(dir) => {
                let own = files::read_optional(dir, "freezer.self_freezing")?.unwrap_or_default();
                Ok(own.trim() == "1")
            }
        },
    }
}

pub(super) fn signal_all(cgroup: &Cgroup, signal: i32) -> Result<()> {
    let name = || "every process of the container";
    let number = Signal::from_named_raw(signal).ok_or(Errno::INVAL).ctx("kill", name)?;
    if number == Signal::KILL
        && let Cgroup::V2 { dir } = cgroup
    {
        // Kernel 5.14: takes every process at once, those being forked included.
        match files::write(dir, "cgroup.kill", "1") {
            Err(e) if e.errno() == Some(Errno::NOENT) => {}
            other => return other,
        }
    }
    // Frozen processes cannot fork away. Not every host can freeze; rounds do it then.
    let was_frozen = is_frozen(cgroup)?;
    let froze = !was_frozen && set(cgroup, true).is_ok();
    let sent = rounds(|| cgroup.processes(), number);
    if froze || (was_frozen && number == Signal::KILL) {
        set(cgroup, false)?;
    }
    sent
}

/// Kills every process in one directory and below, frozen ones included. One that is gone is fine.
pub(super) fn kill_in(dir: &Path) -> Result<()> {
    match files::write(dir, "cgroup.kill", "1") {
        // v1, a kernel before 5.14, or there is no such directory.
        Err(e) if e.errno() == Some(Errno::NOENT) => {}
        other => return other,
    }
    let killed = rounds(|| super::processes_below(dir), Signal::KILL);
    let thawed = files::for_each_below(dir, super::DEPTH_LIMIT, &mut |dir| {
        for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            match files::write(dir, file, value) {
                Err(e) if matches!(e.errno(), Some(Errno::NOENT | Errno::NODEV)) => {}
                other => other?,
            }
        }
        Ok(())
    });
    killed.and(thawed)
}

fn rounds(processes: impl Fn() -> Result<Vec<i32>>, signal: Signal) -> Result<()> {
    let mut done = std::collections::BTreeSet::new();
    for _ in 0..SIGNAL_ROUNDS {
        let new: Vec<i32> = processes()?.into_iter().filter(|pid| done.insert(*pid)).collect();
        if new.is_empty() {
            return Ok(());
        }
        for pid in new {
            // 0 stands for a process of another pid namespace.
            let Some(target) = Pid::from_raw(pid).filter(|p| p.as_raw_nonzero().get() > 0) else {
                continue;
            };
            match kill_process(target, signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(e) => return Err(e).ctx("kill", || pid.to_string()),
            }
        }
    }
    Ok(())
}
