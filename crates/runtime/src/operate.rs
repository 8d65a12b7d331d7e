//! What is done to a container that exists: signals, pause, limits, removal, listing.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::cgroup::claim;
use crate::error::{Context, Error, Result};
use crate::hooks;
use crate::spec::{IntelRdt, Resources};
use crate::state::{self, Container, DirLock, Record, State, Status};
use crate::sync::SEND_LIMIT;
use crate::{ContainerId, Options};

const SIGKILL: i32 = 9;
/// How long a killed process may take to end before delete gives up.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long another operation may hold the container: a create whose process was killed may be at a
/// socket that nobody reads.
const LOCK_LIMIT: Duration = SEND_LIMIT.saturating_add(Duration::from_secs(5));

pub(crate) fn kill(opts: &Options, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
    let container = Container::load(opts, id)?;
    let not_running = || Error::WrongStatus("container not running".into());
    let r = &container.record;
    if all && r.unfinished.is_some() {
        // Its cgroup may have been there before, with others' processes.
        let why = match container.is_cut_short() {
            true => "whose create was cut short: delete it",
            false => "that is being created",
        };
        let text = format!("cannot signal all processes of container {id} {why}");
        return Err(Error::WrongStatus(text));
    }
    if all && is_taken(r) {
        return Err(not_running());
    }
    if all {
        // Also when the first process is gone and others are left in a shared pid namespace.
        return r.cgroup.signal_all(signal);
    }
    let pidfd = container.pidfd()?;
    let has_cgroup = r.unfinished.is_none() && r.cgroup.exists() && !is_taken(r);
    if signal == SIGKILL && !r.own_pidns && has_cgroup {
        // The first process may be gone, and others not.
        if pidfd.is_none() && r.cgroup.processes().is_ok_and(|left| left.is_empty()) {
            return Err(not_running());
        }
        return r.cgroup.signal_all(signal);
    }
    let pidfd = pidfd.ok_or_else(not_running)?;
    match sys::process::pidfd_kill(&pidfd, signal) {
        Err(Errno::SRCH) => return Err(not_running()),
        other => other.ctx("kill", || format!("{id} with signal {signal}"))?,
    }
    // A v1 freezer holds back even SIGKILL.
    if signal == SIGKILL && !r.cgroup.is_v2() && r.cgroup.is_frozen()? {
        r.cgroup.freeze(false)?;
    }
    Ok(())
}

/// What went wrong with poststop hooks is for a log: the container is gone all the same.
pub(crate) fn delete(opts: &Options, id: &ContainerId, force: bool) -> Result<Vec<Error>> {
    let gone = || if force { Ok(Vec::new()) } else { Err(Error::NotFound(id.to_string())) };
    let Some(lock) = lock(opts, id, force)? else { return gone() };
    let container = match Container::load_locked(opts, id, &lock) {
        Err(Error::NotFound(_)) => {
            // The rest of a create that was killed at its very beginning. Without `force` it still is
            // no container, as in runc.
            let dir = opts.root.join(id.as_str());
            std::fs::remove_dir_all(&dir).ctx("remove", || dir.display().to_string())?;
            return gone();
        }
        other => other?,
    };
    match container.status()? {
        Status::Stopped if !container.is_cut_short() => {}
        Status::Stopped | Status::Created => end(&container)?,
        _ if force => end(&container)?,
        status => return Err(running(id, status)),
    }
    let (is_gone, result) = destroy(&container);
    // The id may be another's while hooks run, as in runc. They run once: at the delete that succeeds.
    drop(lock);
    let r = &container.record;
    // A life that never began has no end.
    let hooks: &[_] = if is_gone && r.pid != 0 { &r.poststop } else { &[] };
    let warnings = hooks::run_all("poststop", hooks, &r.hook_state("stopped", 0), Some(&r.bundle));
    result.map(|()| warnings)
}

fn running(id: &ContainerId, status: Status) -> Error {
    Error::WrongStatus(format!("cannot delete container {id} that is not stopped: {status}"))
}

/// The container's lock; `None` if there is nothing to delete. A create that goes on is waited for if
/// it has only begun, and killed, with `force`, once there is a process by which that can be done.
fn lock(opts: &Options, id: &ContainerId, force: bool) -> Result<Option<DirLock>> {
    /// How often it is looked whether there is such a process now.
    const ROUND: Duration = Duration::from_millis(200);
    let dir = opts.root.join(id.as_str());
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match Container::load(opts, id) {
            Ok(container) => match container.status()? {
                // It takes away what it has made.
                Status::Creating if force => end(&container)?,
                status @ Status::Creating => return Err(running(id, status)),
                _ => {}
            },
            Err(Error::NotFound(_)) if !force && state::is_locked(&dir)? != Some(false) => {
                return Ok(None);
            }
            Err(Error::NotFound(_)) => {}
            Err(e) => return Err(e),
        }
        match DirLock::take(&dir, ROUND) {
            Err(Error::WrongStatus(_)) if Instant::now() < deadline => {}
            other => return other,
        }
    }
}

fn end(container: &Container) -> Result<()> {
    let r = &container.record;
    if let Some(pidfd) = container.pidfd()? {
        match sys::process::pidfd_kill(&pidfd, SIGKILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(e).ctx("kill", || r.pid.to_string()),
        }
        if !r.cgroup.is_v2() && r.cgroup.is_frozen()? {
            r.cgroup.freeze(false)?;
        }
        if !hooks::ended(&pidfd, KILL_LIMIT).ctx("wait for", || r.pid.to_string())? {
            return Err(Error::WrongStatus("container init still running".into()));
        }
    }
    Ok(())
}

/// Removes everything; goes on after an error and gives the first one. Whether the state is gone, too: it
/// goes only when the cgroup is, so that delete can be called again.
fn destroy(container: &Container) -> (bool, Result<()>) {
    let r = &container.record;
    let mut result = Ok(());
    let mut note = |r: Result<()>| {
        if result.is_ok() {
            result = r;
        }
    };
    let unfinished = r.unfinished.as_ref().map(|unfinished| match r.pid {
        // Its own process may be there and not known.
        0 => unfinished.cgroups.clone(),
        _ => claim::without_another_first(&unfinished.cgroups, &container.proc),
    });
    // Before the unit is stopped: systemd would wait for one that does not heed its SIGTERM.
    note(match &unfinished {
        Some(cgroups) => claim::kill(&r.claim, cgroups),
        None => kill_rest(r),
    });
    // A scope of this name is the other container's then.
    let is_anothers = unfinished.as_ref().is_some_and(|cgroups| {
        r.unfinished.as_ref().is_some_and(|all| cgroups.len() < all.cgroups.len())
    });
    if let Some(unit) = r.unit.as_ref().filter(|_| !is_anothers) {
        note(unit.stop());
    }
    let is_gone = match &unfinished {
        // What was there before its create is not its own.
        Some(cgroups) => {
            note(claim::clear(&r.claim, cgroups));
            claim::is_clear(&r.claim, cgroups)
        }
        None if is_taken(r) => true,
        None => {
            note(r.cgroup.delete());
            r.cgroup.is_gone()
        }
    };
    if let Some(rdt) = &r.rdt {
        note(rdt.delete());
    }
    if !is_gone {
        return (false, result);
    }
    let dir = &container.dir;
    let removed = std::fs::remove_dir_all(dir).ctx("remove", || dir.display().to_string());
    (removed.is_ok(), result.and(removed))
}

/// Whether another container has its cgroup now: it was empty, and free to take.
fn is_taken(r: &Record) -> bool {
    r.cgroup.main_dir().is_some_and(|dir| claim::is_anothers(&r.claim, dir))
}

/// Kills what has outlived the first process: without a pid namespace of its own the container's other
/// processes; in a unit also what others have put there.
fn kill_rest(r: &Record) -> Result<()> {
    match r.cgroup.exists() && !is_taken(r) && (!r.own_pidns || r.unit.is_some()) {
        true => r.cgroup.signal_all(SIGKILL),
        false => Ok(()),
    }
}

pub(crate) fn pause(opts: &Options, id: &ContainerId) -> Result<()> {
    let container = Container::load(opts, id)?;
    match container.status()? {
        Status::Running | Status::Created => container.record.cgroup.freeze(true),
        status => Err(Error::WrongStatus(format!("container not running: {status}"))),
    }
}

pub(crate) fn resume(opts: &Options, id: &ContainerId) -> Result<()> {
    let container = Container::load(opts, id)?;
    match container.status()? {
        Status::Paused => container.record.cgroup.freeze(false),
        _ => Err(Error::WrongStatus("container not paused".into())),
    }
}

pub(crate) fn update(opts: &Options, id: &ContainerId, resources: &Resources) -> Result<()> {
    let container = Container::load(opts, id)?;
    if container.status()? == Status::Stopped {
        return Err(Error::WrongStatus("container not running".into()));
    }
    let mut resources = resources.clone();
    if resources.pids.as_ref().is_some_and(|pids| pids.limit == Some(0)) {
        container.spec()?.settle(&mut resources);
    }
    let resources = &resources;
    let r = &container.record;
    // systemd forgets the device rules of v1 with every change.
    let forgets = r.unit.is_some() && !r.cgroup.is_v2();
    let now = match resources.devices.is_empty() && !forgets {
        true => Vec::new(),
        false => container.spec()?.linux.and_then(|l| l.resources).unwrap_or_default().devices,
    };
    // Kubernetes' engines send the device rules with every update; most often they are the same.
    let changed = !resources.devices.is_empty() && now != resources.devices;
    match &r.unit {
        Some(unit) => {
            let rules = if changed { &resources.devices } else { &now };
            unit.update(&r.cgroup, resources, rules, changed)?;
        }
        None => r.cgroup.set(resources)?,
    }
    if !changed {
        return Ok(());
    }
    container.record.cgroup.change_devices(&now, &resources.devices)?;
    container.save_devices(&resources.devices)
}

/// Whether an update with these resources leaves the limit of processes as it is, although it says 0; see
/// [`crate::spec::Spec::settle`].
pub(crate) fn skips_pids(opts: &Options, id: &ContainerId, resources: &Resources) -> Result<bool> {
    if resources.pids.as_ref().is_none_or(|pids| pids.limit != Some(0)) {
        return Ok(false);
    }
    let mut settled = resources.clone();
    Container::load(opts, id)?.spec()?.settle(&mut settled);
    Ok(settled.pids.is_none())
}

/// Changes the container's class of cache and memory bandwidth.
pub(crate) fn update_rdt(opts: &Options, id: &ContainerId, rdt: &IntelRdt) -> Result<()> {
    let container = Container::load(opts, id)?;
    match &container.record.rdt {
        Some(class) => class.update(rdt),
        None => Err(Error::config("linux.intelRdt", "the container was made without it")),
    }
}

/// The containers, by id, and why others could not be read.
pub(crate) fn list(opts: &Options) -> Result<(Vec<State>, Vec<Error>)> {
    let name = || opts.root.display().to_string();
    let entries = match std::fs::read_dir(&opts.root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
        other => other.ctx("read", name)?,
    };
    let (mut out, mut unread) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.ctx("read", name)?;
        let id = entry.file_name().into_string().ok().and_then(|n| ContainerId::new(n).ok());
        let Some(id) = id else { continue };
        match Container::load(opts, &id).and_then(|c| c.state()) {
            Ok(state) => out.push(state),
            // It is being made or removed right now.
            Err(Error::NotFound(_)) => {}
            // It must not hide the others.
            Err(e) => unread.push(e),
        }
    }
    out.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((out, unread))
}
