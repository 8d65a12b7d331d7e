//! exec: one more process in a running container.
//!
//! A short-lived process outside of the container's pid namespace does everything that can be
//! done there: cgroup, namespaces, standard streams. What it makes last, as the caller's child,
//! is the first that the container's processes can see. That one is not dumpable and has no
//! descriptor of the host but its end of the talk; its executable is protected (`selfexe`).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid};
use rustix::thread::sched_setaffinity;
use sys::clone::{self as flag, CloneOptions, clone_process};

use crate::create::{abandon, open_child};
use crate::error::{Context, Error, Result};
use crate::namespaces;
use crate::process::{self, Here, Prepared};
use crate::procfs::ProcFs;
use crate::state::{Container, Status};
use crate::sync::{Message, Sync, send_fd_to};
use crate::{ContainerId, Created, ExecOptions, Options, Stdio, console};

/// What moves into the processes.
struct Job {
    process: Prepared,
    stdio: Stdio,
    proc: ProcFs,
    target: OwnedFd,
    namespaces: u64,
    procs: Vec<OwnedFd>,
    setgroups: bool,
}

/// See [`crate::exec`].
pub(crate) fn exec(opts: &Options, id: &ContainerId, exec: ExecOptions) -> Result<Created> {
    let container = Container::load(opts, id)?;
    match container.status()? {
        Status::Stopped => {
            return Err(Error::WrongStatus("cannot exec in a stopped container".into()));
        }
        Status::Paused if !exec.ignore_paused => {
            return Err(Error::WrongStatus(
                "cannot exec in a paused container (use --ignore-paused to override)".into(),
            ));
        }
        _ => {}
    }
    process::check_terminal(exec.process.terminal, &exec.stdio)?;
    let stopped = || Error::WrongStatus("cannot exec in a stopped container".into());
    let target = container.pidfd()?.ok_or_else(stopped)?;
    let filter = container.filter()?;
    if filter.as_ref().is_some_and(|f| f.notifies()) {
        return Err(Error::Unsupported("exec into a container with seccomp notification".into()));
    }
    let sub = exec.cgroup.as_deref().map(sub_cgroup).transpose()?;
    let record = &container.record;
    let into = match (&sub, record.cgroup.open_v2()?) {
        (None, into) => into,
        (Some(sub), Some(dir)) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Some(
                rustix::fs::openat(&dir, *sub, flags, Mode::empty())
                    .ctx("open cgroup", || (*sub).to_owned())?,
            )
        }
        (Some(_), None) => None,
    };
    let procs = if record.cgroup.is_v2() { Vec::new() } else { record.cgroup.open_procs(sub)? };
    let console_socket = match &exec.stdio {
        Stdio::ConsoleSocket(path) => Some(path.clone()),
        _ => None,
    };
    let proc = ProcFs::open()?;
    let job = Job {
        process: Prepared::new(&exec.process, filter, exec.preserve_fds, &proc)?,
        stdio: exec.stdio,
        proc,
        target,
        namespaces: record.namespaces,
        procs,
        setgroups: record.setgroups,
    };
    let (sync, pid, pidfd) = spawn(job, into)?;
    match drive(&sync, console_socket) {
        Ok(console_master) => {
            finish(&exec.pidfd_socket, &exec.pid_file, pid, &pidfd)?;
            Ok(Created { pid, pidfd, console_master })
        }
        Err(e) => {
            abandon(&pidfd);
            Err(e)
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
        send_fd_to(path, "pidfd", pidfd)?;
    }
    if let Some(path) = pid_file {
        process::write_atomically(path, pid.to_string().as_bytes(), 0o644)?;
    }
    Ok(())
}

/// A path below the container's cgroup; runc's form may start with controllers and a colon.
fn sub_cgroup(path: &str) -> Result<&str> {
    if path.contains(':') {
        return Err(Error::Unsupported(format!("exec --cgroup per controller ({path:?})")));
    }
    let path = path.trim_start_matches('/');
    if path.split('/').any(|p| p == "..") {
        return Err(Error::config("--cgroup", "leads out of the container's cgroup"));
    }
    Ok(path)
}

fn spawn(job: Job, into: Option<OwnedFd>) -> Result<(Sync, i32, OwnedFd)> {
    let (ours, theirs) = Sync::pair()?;
    let options = CloneOptions { flags: 0, into_cgroup: into.as_ref().map(AsFd::as_fd) };
    let mut job = Some(job);
    let joiner = clone_process(&options, || {
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
    .ctx("clone3", || "joining process")?;
    drop(theirs);
    let answer = ours.receive();
    process::reap(&joiner.pidfd)?;
    match answer? {
        Message::Pid(pid) => {
            let pidfd = open_child(pid)?;
            ours.go()?;
            Ok((ours, pid, pidfd))
        }
        Message::Failed(text) => Err(Error::Init(text)),
        _ => Err(Error::Init("joining process died".into())),
    }
}

/// In the process outside of the pid namespace.
fn join(job: Job, sync: &Sync) -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).ctx("prctl", || "dumpable")?;
    if let Some(cpus) = &job.process.affinity.initial {
        sched_setaffinity(None, cpus).ctx("sched_setaffinity", || "execCPUAffinity.initial")?;
    }
    for file in &job.procs {
        rustix::io::write(file, b"0").ctx("add process to cgroup", || "exec")?;
    }
    if let Some(cpus) = &job.process.affinity.last {
        sched_setaffinity(None, cpus).ctx("sched_setaffinity", || "execCPUAffinity.final")?;
    }
    if let Some(score) = job.process.oom_score_adj {
        job.proc.write("self/oom_score_adj", score.to_string().as_bytes())?;
    }
    let in_userns = job.namespaces & flag::CLONE_NEWUSER != 0;
    if in_userns {
        // Inside, raising a limit is not allowed.
        job.process.limit(0)?;
    }
    process::connect_stdio(&job.stdio)?;
    namespaces::enter_those_of(&job.target, job.namespaces)?;
    if in_userns {
        let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
        rustix::thread::set_thread_res_gid(gid, gid, gid).ctx("setgid", || "0")?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).ctx("setuid", || "0")?;
    }
    let options = CloneOptions { flags: flag::CLONE_PARENT, into_cgroup: None };
    let mut job = Some(job);
    let child = clone_process(&options, || {
        let Some(job) = job.take() else { return 1 };
        match become_program(job, in_userns, sync) {
            Ok(never) => match never {},
            Err(e) => {
                sync.failed(&e);
                1
            }
        }
    })
    .ctx("clone3", || "exec process")?;
    sync.pid(child.pid)
}

/// In the container's process.
fn become_program(job: Job, in_userns: bool, sync: &Sync) -> Result<std::convert::Infallible> {
    // Nothing of the host may be seen through /proc/<pid>/fd: descriptors of the caller go first.
    // What is still needed is the talk and procfs (for labels), which the container has anyway.
    let Job { process, proc, target, procs, stdio, setgroups, .. } = job;
    let first = 3 + i32::try_from(process.preserve_fds).unwrap_or(0);
    sys::process::close_from_except(first, &[sync.as_fd().as_raw_fd(), proc.as_fd().as_raw_fd()])
        .ctx("close_range", || "descriptors")?;
    // Closed above, by number.
    std::mem::forget((target, procs, stdio));
    setsid().ctx("setsid", || "exec process")?;
    sync.wait_go()?;
    if process.terminal {
        let root = rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ctx("open", || "/")?;
        let (master, slave) = console::open(root.as_fd(), process.console_size.as_ref())?;
        sync.console(&master)?;
        console::take(&slave)?;
    }
    let here = Here {
        in_userns,
        setgroups,
        make_cwd: false,
        listener: &|_| Err(Error::Unsupported("seccomp notification in exec".into())),
    };
    let ready = process.finalize(&proc, here)?;
    Err(match ready.exec() {
        Error::Sys { op: "exec", object, source } => {
            let source = Error::Sys { op: "exec", object, source };
            Error::Exec(source.chain())
        }
        other => other,
    })
}

/// Until the program runs (the talk's end closes on exec) or fails.
fn drive(sync: &Sync, console_socket: Option<PathBuf>) -> Result<Option<OwnedFd>> {
    let mut master = None;
    loop {
        match sync.receive()? {
            Message::Console(fd) => match &console_socket {
                Some(path) => send_fd_to(path, "/dev/ptmx", &fd)?,
                None => master = Some(fd),
            },
            Message::Failed(text) => return Err(Error::Init(text)),
            Message::End => break,
            _ => {}
        }
    }
    // End of file also comes from a death without a word (a filter that kills); the exit status,
    // which the caller gets anyway, says so.
    Ok(master)
}
