//! exec: one more process in a running container.
//!
//! A short-lived process outside of the container's pid namespace (the joiner) does everything:
//! cgroup, namespaces, streams and terminal, the user with its rights, the filter. What it makes
//! last, as the caller's child, is the first that the container's processes can see, and by then it
//! has nothing that they do not have: no capability beyond the container's, its filter, no
//! descriptor but one end of the talk. That it is not dumpable would not be enough: a container with
//! CAP_SYS_PTRACE may take hold of it all the same (CVE-2016-9962). For the same reason nothing that
//! comes from it is believed: its pid, the terminal and the listener come from the joiner.
//!
//! A filter that forbids what lies between (clone, setsid …) is loaded by the process itself. If
//! there is no no_new_privs either, that one has CAP_SYS_ADMIN for this one call, which a container
//! with such a filter and CAP_SYS_PTRACE could use.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid};
use rustix::thread::sched_setaffinity;
use sys::clone::{self as flag, Child, CloneOptions, clone_process};
use sys::fork::fork_sibling;

use crate::cgroup::SubCgroup;
use crate::error::{Context, Error, Result};
use crate::namespaces;
use crate::process::{self, Here, Prepared, Ready, abandon, open_child};
use crate::procfs::ProcFs;
use crate::state::{Container, Status};
use crate::surroundings::Surroundings;
use crate::sync::{Message, Recipient, Sync, Waited};
use crate::{ContainerId, Created, ExecOptions, Options, Stdio, console, spec};

/// What moves into the processes.
struct Job {
    process: Prepared,
    stdio: Stdio,
    proc: ProcFs,
    target: OwnedFd,
    namespaces: u64,
    procs: Vec<OwnedFd>,
    /// Instead of the one in `procs` if the kernel takes no process there.
    elsewhere: Option<OwnedFd>,
    /// What the cgroup is called in errors.
    place: String,
    surroundings: Surroundings,
}

/// See [`crate::exec`].
pub(crate) fn exec(opts: &Options, id: &ContainerId, mut exec: ExecOptions) -> Result<Created> {
    process::check_preserved(exec.preserve_fds)?;
    let container = Container::load(opts, id)?;
    check_status(container.status()?, exec.ignore_paused)?;
    complete(&mut exec.process, container.spec()?.process.unwrap_or_default());
    process::check_terminal(exec.process.terminal, &exec.stdio)?;
    let target = container.pidfd()?.ok_or_else(|| Error::WrongStatus(STOPPED.into()))?;
    let record = &container.record;
    let sub = SubCgroup::parse(exec.cgroup.as_deref().unwrap_or_default())?;
    let chosen = exec.cgroup.as_deref().filter(|c| !c.is_empty());
    let proc = ProcFs::open()?;
    let process = Prepared::new(&exec.process, container.filter()?, exec.preserve_fds, &proc)?;
    // The first processors are taken before the cgroup is entered, so that it cannot start there.
    let late = process.affinity.initial.is_some();
    let into = if late { None } else { record.cgroup.open_v2_sub(&sub)? };
    let procs = if into.is_some() { Vec::new() } else { record.cgroup.open_procs(&sub)? };
    // Not away from what was asked for by name.
    let may_move = chosen.is_none() && record.cgroup.is_v2();
    let elsewhere = if late && may_move { record.cgroup.open_procs_of(record.pid)? } else { None };
    let console_socket = match &exec.stdio {
        Stdio::ConsoleSocket(path) => Some(path.clone()),
        _ => None,
    };
    let warnings = crate::caps::warnings(exec.process.capabilities.as_ref());
    let job = Job {
        process,
        stdio: exec.stdio,
        proc,
        target,
        namespaces: record.namespaces,
        procs,
        elsewhere,
        place: chosen.map_or("the container's cgroup".to_owned(), |c| format!("--cgroup {c}")),
        surroundings: record.surroundings.clone(),
    };
    let moved = may_move.then_some(|| record.cgroup.open_v2_of(record.pid));
    let patience = Patience {
        container: &container,
        ignore_paused: exec.ignore_paused,
        deadline: Cell::new(Instant::now() + JOIN_LIMIT),
    };
    let Spawned { sync, pid, pidfd, console, listener } = spawn(job, into, moved, &patience)?;
    let result = (|| -> Result<Option<OwnedFd>> {
        if let Some(rdt) = &record.rdt {
            rdt.join(pid)?;
        }
        if let Some(fd) = listener {
            record.send_listener(&fd, "running", pid, &pidfd)?;
        }
        sync.go()?;
        let master = match (&console_socket, console) {
            (Some(path), Some(fd)) => {
                let process = Some(&pidfd);
                Recipient { field: "--console-socket", path, process }.send("/dev/ptmx", &fd)?;
                None
            }
            (_, fd) => fd,
        };
        until_it_runs(&sync, &pidfd, &patience)?;
        finish(&exec.pidfd_socket, &exec.pid_file, pid, &pidfd)?;
        Ok(master)
    })();
    match result {
        Ok(console_master) => Ok(Created { pid, pidfd, console_master, warnings }),
        Err(e) => {
            abandon(&pidfd);
            Err(e)
        }
    }
}

const STOPPED: &str = "cannot exec in a stopped container";

fn check_status(status: Status, ignore_paused: bool) -> Result<()> {
    let why = match status {
        Status::Stopped => STOPPED,
        Status::Creating => "cannot exec in a container that is being created",
        Status::Paused if !ignore_paused => {
            "cannot exec in a paused container (use --ignore-paused to override)"
        }
        _ => return Ok(()),
    };
    Err(Error::WrongStatus(why.into()))
}

/// Gives the process what confines the container's own one, where it does not say it itself: as runc's
/// newInitConfig and nsexec do. An absent `noNewPrivileges` means false there, too.
fn complete(process: &mut spec::Process, own: spec::Process) {
    fn or<T>(mine: &mut Option<T>, own: Option<T>) {
        *mine = mine.take().or(own);
    }
    for (mine, own) in [
        (&mut process.apparmor_profile, own.apparmor_profile),
        (&mut process.selinux_label, own.selinux_label),
    ] {
        if mine.is_empty() {
            *mine = own;
        }
    }
    if process.rlimits.is_empty() {
        process.rlimits = own.rlimits;
    }
    or(&mut process.capabilities, own.capabilities);
    or(&mut process.oom_score_adj, own.oom_score_adj);
    or(&mut process.user.umask, own.user.umask);
    or(&mut process.scheduler, own.scheduler);
    or(&mut process.io_priority, own.io_priority);
    or(&mut process.exec_cpu_affinity, own.exec_cpu_affinity);
}

/// How long a process may take on its way into the container; a program on a file system that does
/// not answer, or a container that stops what joins it, must not hold up the caller for ever.
pub(crate) const JOIN_LIMIT: Duration = Duration::from_secs(30);

struct Patience<'a> {
    container: &'a Container,
    ignore_paused: bool,
    /// For all of it: a process that is held, or that says things without end, gains no time.
    deadline: Cell<Instant>,
}

impl Patience<'_> {
    /// Waits for a message; `false` if the process has ended without one.
    fn wait(&self, sync: &Sync, pidfd: &OwnedFd) -> Result<bool> {
        loop {
            match sync.wait(pidfd, self.deadline.get())? {
                Waited::Message => return Ok(true),
                Waited::Ended => return Ok(false),
                Waited::TimeOver => {}
            }
            let is_paused = self.container.record.cgroup.is_frozen()?;
            if !is_paused || !self.ignore_paused {
                let why = if is_paused { "is paused" } else { "may hold it (ptrace)" };
                let limit = JOIN_LIMIT.as_secs();
                let text = format!("it did not get through within {limit} s: the container {why}");
                return Err(Error::Init(text));
            }
            // It was asked for: it goes on when the container does.
            self.deadline.set(Instant::now() + JOIN_LIMIT);
        }
    }
}

fn finish(
    pidfd_socket: &Option<PathBuf>,
    pid_file: &Option<PathBuf>,
    pid: i32,
    pidfd: &OwnedFd,
) -> Result<()> {
    if let Some(path) = pidfd_socket {
        // Also of a program that has ended meanwhile.
        Recipient { field: "--pidfd-socket", path, process: None }.send("pidfd", pidfd)?;
    }
    if let Some(path) = pid_file {
        process::write_atomically(path, pid.to_string().as_bytes(), 0o644)?;
    }
    Ok(())
}

/// `elsewhere` finds the cgroup to take if the kernel takes no process in `into`.
fn spawn(
    job: Job,
    into: Option<OwnedFd>,
    elsewhere: Option<impl FnOnce() -> Result<Option<OwnedFd>>>,
    patience: &Patience<'_>,
) -> Result<Spawned> {
    let (ours, theirs) = Sync::pair()?;
    let place = job.place.clone();
    let mut job = Some(job);
    let mut launch = |into: Option<&OwnedFd>| {
        let options = CloneOptions { flags: 0, into_cgroup: into.map(AsFd::as_fd) };
        clone_process(&options, || {
            ours.close_in_child();
            let Some(job) = job.take() else { return 1 };
            match join(job, &theirs) {
                Ok(()) => 0,
                Err(e) => {
                    theirs.failed(&e);
                    1
                }
            }
        })
    };
    let joiner = match (launch(into.as_ref()), elsewhere) {
        // A container that has made cgroups of its own with controllers (systemd inside): v2 has
        // no processes beside those. Its first process is where it may be.
        (Err(Errno::BUSY | Errno::OPNOTSUPP), Some(elsewhere)) if into.is_some() => {
            launch(elsewhere()?.as_ref())
        }
        (other, _) => other,
    }
    .ctx("clone3", || format!("joining process (into {place})"))?;
    drop(theirs);
    let joined = until_made(&ours, &joiner, patience);
    if joined.is_err() {
        // Killed if it still lives.
        abandon(&joiner.pidfd);
    } else {
        process::reap(&joiner.pidfd)?;
    }
    let (pid, console, listener) = joined?;
    let pidfd = open_child(pid)?;
    let settled = job.as_ref().map_or(Ok(()), |job| job.process.outside().settle(pid));
    if let Err(e) = settled {
        abandon(&pidfd);
        return Err(e);
    }
    Ok(Spawned { sync: ours, pid, pidfd, console, listener })
}

/// The container's process, which waits to be let go, and what the joiner has sent.
struct Spawned {
    sync: Sync,
    pid: i32,
    pidfd: OwnedFd,
    console: Option<OwnedFd>,
    /// The seccomp listener.
    listener: Option<OwnedFd>,
}

/// The joiner's messages, up to the pid. What others send (the process that it has made, in the
/// hands of the container) does not count.
fn until_made(
    sync: &Sync,
    joiner: &Child,
    patience: &Patience<'_>,
) -> Result<(i32, Option<OwnedFd>, Option<OwnedFd>)> {
    let (mut console, mut listener) = (None, None);
    loop {
        if !patience.wait(sync, &joiner.pidfd)? {
            return Err(Error::Init("joining process died".into()));
        }
        let (message, sender) = sync.receive_with_sender()?;
        match message {
            Message::End => return Err(Error::Init("joining process died".into())),
            _ if sender != joiner.pid => {}
            Message::Pid(pid) => return Ok((pid, console, listener)),
            Message::Console(fd) => console = Some(fd),
            Message::Listener(handle) => {
                listener = Some(handle.take(&joiner.pidfd)?);
                sync.go()?;
            }
            Message::Failed(text) => return Err(Error::Init(text)),
            // What only a container's first process tells.
            Message::Hooks | Message::Ready => {}
            Message::Source(_) | Message::Opened(_) | Message::Refused(_) => {}
        }
    }
}

/// In the process outside of the pid namespace.
fn join(job: Job, sync: &Sync) -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).ctx("prctl", || "dumpable")?;
    if let Some(cpus) = &job.process.affinity.initial {
        sched_setaffinity(None, cpus).ctx("sched_setaffinity", || "execCPUAffinity.initial")?;
    }
    for file in &job.procs {
        match (rustix::io::write(file, b"0"), &job.elsewhere) {
            (Err(Errno::BUSY | Errno::OPNOTSUPP), Some(other)) => rustix::io::write(other, b"0"),
            (written, _) => written,
        }
        .ctx("add process to cgroup", || job.place.as_str())?;
    }
    if let Some(cpus) = &job.process.affinity.last {
        sched_setaffinity(None, cpus).ctx("sched_setaffinity", || "execCPUAffinity.final")?;
    }
    if let Some(score) = job.process.oom_score_adj {
        job.proc.write("self/oom_score_adj", score.to_string().as_bytes())?;
    }
    // Here, because in a user namespace raising a limit is not allowed. This process is one more.
    job.process.outside().limit(0, 1)?;
    process::connect_stdio(&job.stdio)?;
    namespaces::enter_those_of(&job.target, job.namespaces)?;
    if job.namespaces & flag::CLONE_NEWUSER != 0 {
        let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
        rustix::thread::set_thread_res_gid(gid, gid, gid).ctx("setgid", || "0")?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).ctx("setuid", || "0")?;
    }
    job.surroundings.take_on(&job.proc)?;
    if job.process.terminal {
        open_terminal(&job.process, sync)?;
    }
    let Job { process, proc, target, procs, elsewhere, stdio, .. } = job;
    let terminal = process.terminal;
    let here = Here { limits: None, scheduler: false };
    let mut ready = process.finalize(&proc, here)?;
    // Nothing of the host may be seen through /proc/<pid>/fd of the process to come.
    ready.tidy(&[sync.as_fd()])?;
    // Closed above, by number.
    std::mem::forget((proc, target, procs, elsewhere, stdio));
    if ready.passes_making() {
        ready.load_and_tell(sync)?;
    }
    let mut ready = Some(ready);
    let pid = fork_sibling(|| {
        let Some(ready) = ready.take() else { return 1 };
        let Err(e) = become_program(ready, terminal, sync);
        sync.failed(&e);
        1
    })
    .ctx("clone", || "exec process")?;
    sync.pid(pid)
}

/// A pty of the container's: its master goes to the caller, its slave becomes the streams.
fn open_terminal(process: &Prepared, sync: &Sync) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).ctx("open", || "/")?;
    let (master, slave) = console::open(root.as_fd(), process.console_size.as_ref())?;
    sync.console(&master)?;
    console::connect(slave.as_fd(), slave.as_fd(), slave.as_fd())
}

/// In the container's process, which the container can take hold of.
fn become_program(ready: Ready, terminal: bool, sync: &Sync) -> Result<std::convert::Infallible> {
    sync.wait_go()?;
    ready.limit_processes()?;
    setsid().ctx("setsid", || "exec process")?;
    if terminal {
        console::control()?;
    }
    ready.check_no_listener()?;
    Err(match ready.exec() {
        Error::Sys { op: "exec", object, source } => {
            let source = Error::Sys { op: "exec", object, source };
            Error::Exec(source.chain())
        }
        other => other,
    })
}

/// Until the program runs (the talk's end closes on exec) or fails.
fn until_it_runs(sync: &Sync, pidfd: &OwnedFd, patience: &Patience<'_>) -> Result<()> {
    while patience.wait(sync, pidfd)? {
        match sync.receive()? {
            Message::Failed(text) => return Err(Error::Init(text)),
            Message::End => break,
            // Nothing else is expected from there.
            _ => {}
        }
    }
    // End of file also comes from a death without a word (a filter that kills); the exit status,
    // which the caller gets anyway, says so.
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_confined_as_the_containers_own() {
        let full = r#"{"args":["a"],"cwd":"/a","env":["A=a"],"terminal":true,"noNewPrivileges":true,
            "user":{"uid":1,"gid":2,"umask":63},"apparmorProfile":"p","selinuxLabel":"l",
            "capabilities":{"bounding":["CAP_CHOWN"]},"oomScoreAdj":7,
            "rlimits":[{"type":"RLIMIT_CORE","hard":1,"soft":1}],
            "scheduler":{"policy":"SCHED_BATCH"},"ioPriority":{"class":"IOPRIO_CLASS_BE","priority":3},
            "execCPUAffinity":{"initial":"0","final":"0"}}"#;
        let own: spec::Process = serde_json::from_str(full).unwrap();
        let mut process: spec::Process =
            serde_json::from_str(r#"{"args":["b"],"cwd":"/b","user":{"uid":3,"gid":4}}"#).unwrap();
        complete(&mut process, own.clone());
        let mut want = own.clone();
        (want.args, want.cwd, want.env) = (vec!["b".into()], "/b".into(), Vec::new());
        (want.terminal, want.no_new_privileges) = (false, false);
        (want.user.uid, want.user.gid) = (3, 4);
        assert_eq!(process, want);
        // What it says itself stays.
        let mut said = own.clone();
        (said.apparmor_profile, said.selinux_label) = ("q".into(), "m".into());
        (said.user.umask, said.oom_score_adj) = (Some(0), Some(0));
        said.capabilities = Some(spec::Capabilities::default());
        said.rlimits[0].hard = 2;
        (said.scheduler, said.io_priority) = (Some(Default::default()), Some(Default::default()));
        said.exec_cpu_affinity = Some(Default::default());
        let mut process = said.clone();
        complete(&mut process, own);
        assert_eq!(process, said);
    }
}
