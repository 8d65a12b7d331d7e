//! Makes the container's process, and talks with it until it is ready.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use sys::clone::{self as flag, Child, CloneOptions, clone_process};

use super::{Caller, Made, Parent, Poststop};
use crate::cgroup::{Cgroup, Claim, Launch, Unit};
use crate::error::{Context, Error, Result};
use crate::exec::JOIN_LIMIT;
use crate::init::{self, Init};
use crate::process::{self, abandon, open_child};
use crate::rdt::{self, Rdt};
use crate::rootfs::mounts::open_source as open_source_here;
use crate::spec::Hook;
use crate::state::DirLock;
use crate::sync::{Message, Recipient, Sync, Waited};
use crate::{Created, hooks, namespaces};

pub(super) fn run_parent(parent: Parent<'_>, init: Init, made: &mut Made) -> Result<Created> {
    let (ours, theirs) = Sync::pair()?;
    let mut parent = parent;
    // v2: the process starts in its cgroup, which must be there then. v1: the directories are
    // made while the process is already mounting; it waits where it needs them.
    // systemd makes a cgroup around a process that is there.
    let early = parent.record.cgroup.is_v2() && parent.unit.is_none();
    let mut into = None;
    // Before anything is made: if this process is killed, `delete` knows what there may be.
    parent.record.save(&made.dir)?;
    if early {
        make_cgroup(&mut parent, made)?;
        into = parent.record.cgroup.open_v2()?;
    }
    parent.outside = init.namespaces.joins(flag::CLONE_NEWPID);
    let mut process = spawn(init, &ours, theirs, into.as_ref(), &made.lock)?;
    match drive(&mut parent, made, &ours, &mut process, !early) {
        Ok(console_master) => {
            let Child { pid, pidfd } = process;
            let warnings = std::mem::take(&mut parent.warnings);
            Ok(Created { pid, pidfd, console_master, warnings })
        }
        Err(e) => {
            abandon(&process.pidfd);
            // The container's life was begun and is at its end.
            let r = parent.record;
            let state = r.hook_state("stopped", 0);
            made.poststop = Some(Poststop { hooks: r.poststop, state, bundle: r.bundle });
            Err(e)
        }
    }
}

fn make_cgroup(parent: &mut Parent<'_>, made: &Made) -> Result<()> {
    let Caller { rootless, host_userns, .. } = parent.caller;
    // A unit's directories are systemd's to make.
    let fresh = if parent.record.unit.is_none() { &made.cgroups[..] } else { &[] };
    let claim = Claim { mark: &made.claim, fresh };
    let rules = host_userns && !rootless;
    parent.record.cgroup.create(&parent.resources, rootless, rules, &claim)?;
    match parent.cgroup_owner {
        Some(uid) => match parent.record.cgroup.delegate(uid) {
            // It stays its caller's.
            Err(e) if rootless && e.errno() == Some(Errno::PERM) => Ok(()),
            other => other,
        },
        None => Ok(()),
    }
}

/// Makes the process: directly, or through one that joins namespaces first and makes it as the
/// caller's child.
///
/// Where a pid namespace is joined, the joining process itself is what comes back: it does the work
/// and makes the container's process at the end, see [`init::run_outside`].
fn spawn(
    init: Init,
    ours: &Sync,
    theirs: Sync,
    into: Option<&OwnedFd>,
    lock: &DirLock,
) -> Result<Child> {
    // The cgroup namespace comes later: its root is the cgroup at the time it is made.
    let new = init.namespaces.new & !init.namespaces.late();
    let offsets = init.spec.linux.as_ref().map(|l| l.time_offsets.clone()).unwrap_or_default();
    if init.namespaces.join.is_empty() && offsets.is_empty() {
        let options = CloneOptions { flags: new, into_cgroup: into.map(AsFd::as_fd) };
        let mut init = Some(init);
        return clone_process(&options, || {
            ours.close_in_child();
            lock.close_in_child();
            init.take().map_or(1, |init| init::run(init, &theirs))
        })
        .ctx("clone3", || "container process");
    }
    let options = CloneOptions { flags: 0, into_cgroup: into.map(AsFd::as_fd) };
    let outside = init.namespaces.joins(flag::CLONE_NEWPID);
    let mut init = Some(init);
    let joiner = clone_process(&options, || {
        ours.close_in_child();
        lock.close_in_child();
        let Some(init) = init.take() else { return 1 };
        match join(init, new, &offsets, &theirs) {
            Ok(()) => 0,
            Err(e) => {
                theirs.failed(&e);
                1
            }
        }
    })
    .ctx("clone3", || "joining process")?;
    drop(theirs);
    let answer = ours.receive();
    if outside && matches!(answer, Ok(Message::Pid(_))) {
        return Ok(joiner);
    }
    process::reap(&joiner.pidfd)?;
    match answer? {
        Message::Pid(pid) => {
            // Our child that nobody has reaped: the pid cannot have been used again.
            let pidfd = open_child(pid)?;
            // Only now may it speak, so that nothing comes before its pid.
            ours.go()?;
            Ok(Child { pid, pidfd })
        }
        Message::Failed(text) => Err(Error::Init(text)),
        _ => Err(Error::Init("joining process died".into())),
    }
}

fn join(
    init: Init,
    new: u64,
    offsets: &std::collections::BTreeMap<String, crate::spec::TimeOffset>,
    sync: &Sync,
) -> Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).ctx("prctl", || "dumpable")?;
    init.namespaces.enter()?;
    let mut new = new;
    if !offsets.is_empty() {
        // Offsets can be set only while nobody is in the namespace: made here, entered by the
        // child. As the process is root and not dumpable, its own proc files are root's.
        sys::process::unshare(flag::CLONE_NEWTIME).ctx("unshare", || "time namespace")?;
        namespaces::write_time_offsets(&init.proc, offsets)?;
        new &= !flag::CLONE_NEWTIME;
    }
    if init.namespaces.joins(flag::CLONE_NEWPID) {
        sys::process::unshare(new).ctx("unshare", || "linux.namespaces")?;
        // It is where interfaces are to go. (Its number in its own pid namespace is of no use.)
        sync.pid(0)?;
        return init::run_outside(init, sync);
    }
    let options = CloneOptions { flags: new | flag::CLONE_PARENT, into_cgroup: None };
    let mut init = Some(init);
    let child = clone_process(&options, || {
        let Some(init) = init.take().filter(|_| sync.wait_go().is_ok()) else { return 1 };
        init::run(init, sync)
    })
    .ctx("clone3", || "container process")?;
    sync.pid(child.pid)
}

/// The caller's side of the talk, until the process is ready; the pty's master, if the caller
/// gets it.
fn drive(
    parent: &mut Parent<'_>,
    made: &mut Made,
    sync: &Sync,
    process: &mut Child,
    cgroup_later: bool,
) -> Result<Option<OwnedFd>> {
    parent.record.pid = process.pid;
    settle(parent, made, process, cgroup_later)?;
    // From now on it may outlive this process.
    parent.record.save(&made.dir)?;
    sync.go()?;
    let (mut master, mut listener) = (None, None);
    // Set once an agent has the listener: it may answer none of the calls that are left to be made.
    let mut deadline = None;
    loop {
        if let Some(deadline) = deadline
            && sync.wait(&process.pidfd, deadline)? == Waited::TimeOver
        {
            return Err(held_up());
        }
        let (message, sender) = sync.receive_with_sender()?;
        match message {
            Message::End => {
                let code = process::reap(&process.pidfd)?;
                return Err(died(&parent.record.cgroup, code));
            }
            // From the process that was made inside, in the hands of others that are there.
            _ if sender != process.pid => {}
            Message::Hooks => {
                run_hooks(parent, process)?;
                sync.go()?;
            }
            Message::Console(fd) => match &parent.create.console_socket {
                Some(path) => {
                    let process = Some(&process.pidfd);
                    Recipient { field: "--console-socket", path, process }
                        .send("/dev/ptmx", &fd)?;
                }
                None => master = Some(fd),
            },
            Message::Listener(handle) => {
                let fd = handle.take(&process.pidfd)?;
                match parent.outside {
                    // The process that it is for is still to be made.
                    true => listener = Some(fd),
                    false => {
                        let Child { pid, pidfd } = &*process;
                        parent.record.send_listener(&fd, "creating", *pid, pidfd)?;
                        deadline = Some(Instant::now() + JOIN_LIMIT);
                    }
                }
                sync.go()?;
            }
            Message::Ready => break,
            Message::Failed(text) => return Err(Error::Init(text)),
            Message::Pid(pid) if parent.outside => {
                hand_over(parent, made, sync, process, pid, listener)?;
                break;
            }
            Message::Source(index) => {
                sync.answer(open_source(parent, process, index, &made.lock)?)?;
            }
            Message::Pid(_) | Message::Opened(_) | Message::Refused(_) => {}
        }
    }
    conclude(parent, made, process)?;
    Ok(master)
}

/// The process is ready: its record is whole, and those who wait for it are told.
fn conclude(parent: &mut Parent<'_>, made: &Made, process: &Child) -> Result<()> {
    parent.record.unfinished = None;
    parent.record.save(&made.dir)?;
    if let Some(path) = &parent.create.pidfd_socket {
        let pidfd = &process.pidfd;
        let recipient = Recipient { field: "--pidfd-socket", path, process: Some(pidfd) };
        recipient.send("pidfd", pidfd)?;
    }
    if let Some(path) = &parent.create.pid_file {
        process::write_atomically(path, process.pid.to_string().as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Those that come when namespaces and mounts are there.
fn run_hooks(parent: &Parent<'_>, process: &Child) -> Result<()> {
    let r = &parent.record;
    let state = r.hook_state("creating", process.pid);
    let run = |kind, hooks: &[Hook]| {
        hooks::run_for(Some(&process.pidfd), kind, hooks, &state, Some(&r.bundle))
    };
    let ran = run("prestart", &parent.hooks.prestart)
        .and_then(|()| run("createRuntime", &parent.hooks.create_runtime));
    // A hook ends with the process: what that died of counts. Else in runc's words, which engines show.
    let told = |e: Error| Error::Init(format!("error during container init: {}", e.chain()));
    ran.map_err(|e| out_of_memory(&r.cgroup).unwrap_or_else(|| told(e)))
}

/// Opens a bind source that is closed to the container's root: with the caller's rights, but in the
/// process's mount namespace, of which the copy keeps what was locked when it was made (as runc 1.2).
fn open_source(
    parent: &Parent<'_>,
    process: &Child,
    index: i32,
    lock: &DirLock,
) -> Result<Result<OwnedFd, Errno>> {
    let mount = usize::try_from(index).ok().and_then(|index| parent.mounts.get(index));
    let Some(mount) = mount else { return Ok(Err(Errno::ACCESS)) };
    let (ours, theirs) = Sync::pair()?;
    let helper = clone_process(&CloneOptions::default(), || {
        ours.close_in_child();
        lock.close_in_child();
        let there = ThreadNameSpaceType::MOUNT;
        let opened = match move_into_thread_name_spaces(process.pidfd.as_fd(), there) {
            Ok(()) => open_source_here(&parent.record.bundle, mount),
            // An ordinary caller: the process sees what it does.
            Err(_) => Err(Errno::ACCESS),
        };
        theirs.answer(opened).map_or(1, |()| 0)
    })
    .ctx("clone3", || "process that opens a bind source")?;
    drop(theirs);
    let answer = match ours.wait(&process.pidfd, Instant::now() + JOIN_LIMIT) {
        // The helper's end is the end of file.
        Ok(Waited::Message) => ours.receive(),
        Ok(Waited::Ended) => Ok(Message::Refused(Errno::SRCH)),
        Ok(Waited::TimeOver) => Ok(Message::Refused(Errno::TIMEDOUT)),
        Err(e) => Err(e),
    };
    // It may be held by a file system that does not answer.
    abandon(&helper.pidfd);
    match answer? {
        Message::Opened(fd) => Ok(Ok(fd)),
        Message::Refused(errno) => Ok(Err(errno)),
        _ => Err(Error::Init("the process that opens a bind source died".into())),
    }
}

/// The process has ended without a word: its limits may be what it died of.
fn died(cgroup: &Cgroup, code: i32) -> Error {
    let text = || format!("container init exited with status {code}");
    out_of_memory(cgroup).unwrap_or_else(|| Error::Init(text()))
}

/// In runc's words, if something in the cgroup was killed for want of memory.
fn out_of_memory(cgroup: &Cgroup) -> Option<Error> {
    let killed = cgroup.stats().is_ok_and(|stats| stats.memory.oom_kills > 0);
    killed.then(|| Error::Init("container init was OOM-killed (memory limit too low?)".into()))
}

fn held_up() -> Error {
    let text = format!("the agent has held up the start for {} s", JOIN_LIMIT.as_secs());
    Error::config("linux.seccomp.listenerPath", text)
}

/// From the process that has done the work to the one that it has made inside, up to its readiness;
/// nothing but that is believed from it.
fn hand_over(
    parent: &mut Parent<'_>,
    made: &Made,
    sync: &Sync,
    process: &mut Child,
    pid: i32,
    listener: Option<OwnedFd>,
) -> Result<()> {
    let worker = std::mem::replace(&mut process.pidfd, open_child(pid)?);
    process.pid = pid;
    process::reap(&worker)?;
    parent.record.pid = pid;
    parent.record.start_time = parent.proc.start_time(pid)?.unwrap_or(0);
    parent.outside_work.settle(pid)?;
    parent.record.cgroup.limit_processes(&parent.resources)?;
    parent.record.save(&made.dir)?;
    if let Some(fd) = listener {
        parent.record.send_listener(&fd, "creating", pid, &process.pidfd)?;
    }
    sync.go()?;
    let deadline = Instant::now() + JOIN_LIMIT;
    loop {
        match sync.wait(&process.pidfd, deadline)? {
            Waited::Message => {}
            Waited::Ended => return Err(Error::Init("container init died".into())),
            Waited::TimeOver => return Err(Error::Init("it did not get ready in time".into())),
        }
        match sync.receive()? {
            Message::Ready => return Ok(()),
            Message::Failed(text) => return Err(Error::Init(text)),
            Message::End => return Err(Error::Init("container init died".into())),
            _ => {}
        }
    }
}

/// What only the caller can do for the process: identity, id maps, cgroup, limits.
fn settle(
    parent: &mut Parent<'_>,
    made: &mut Made,
    process: &Child,
    cgroup_later: bool,
) -> Result<()> {
    let pid = process.pid;
    parent.record.start_time = parent.proc.start_time(pid)?.unwrap_or(0);
    if parent.new_userns {
        namespaces::write_maps(&parent.proc, pid, &parent.linux, parent.caller.ordinary)?;
    }
    if cgroup_later {
        if let Some(unit) = parent.unit.take() {
            parent.resources = Unit::agreed(&parent.resources);
            let r = &parent.record;
            let launch =
                Launch { id: &r.id, pid, v2: r.cgroup.is_v2(), annotations: &r.annotations };
            let job = unit.start(&launch, &parent.resources)?;
            // Not before systemd has taken it: one of this name may be another's.
            made.unit = Some(unit.clone());
            parent.record.unit = Some(unit.clone());
            parent.record.save(&made.dir)?;
            job.wait()?;
        }
        make_cgroup(parent, made)?;
        parent.record.cgroup.attach(pid)?;
    }
    if !parent.outside {
        parent.record.cgroup.limit_processes(&parent.resources)?;
    }
    made.network = parent.net_devices.give(pid)?;
    if let Some(spec) = &parent.linux.intel_rdt {
        let root = rdt::root(&parent.proc, "linux.intelRdt")?;
        let mut class = Rdt::plan(&root, &parent.record.id, spec)?;
        parent.record.rdt = Some(class.clone());
        parent.record.save(&made.dir)?;
        let result = class.make(spec);
        made.rdt = Some(class.clone());
        parent.record.rdt = Some(class.clone());
        result.and_then(|()| class.join(pid))?;
    }
    if parent.limits {
        parent.outside_work.limit(pid, u64::from(parent.outside))?;
    }
    if let Some(score) = parent.oom_score_adj {
        parent.proc.write(&format!("{pid}/oom_score_adj"), score.to_string().as_bytes())?;
    }
    Ok(())
}
