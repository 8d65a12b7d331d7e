//! A process of a container: checked before it is made, and brought from "root in the right
//! namespaces" to the user's program. The same code for the first process and for exec.

mod attributes;
mod program;

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{
    CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchown, fcntl_setfl, fstat, makedev,
    openat2,
};
use rustix::io::Errno;
use rustix::process::{
    Resource, Rlimit, WaitId, WaitIdOptions, fchdir, getcwd, getegid, geteuid, getgid, getuid,
    umask, waitid,
};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::{
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use sys::exec::CStrVec;

use attributes::{affinity, io_priority, rlimits, scheduler};
use program::{environment, find_program, set_home};

use crate::caps::{self, Sets};
use crate::error::{Context, Error, Result, Step};
use crate::procfs::ProcFs;
use crate::rootfs;
use crate::seccomp::Filter;
use crate::spec;
use crate::sync::Sync;

const DEFAULT_UMASK: u32 = 0o022;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// A checked `process` section.
#[derive(Debug)]
pub(crate) struct Prepared {
    args: CStrVec,
    first: String,
    env: Vec<String>,
    cwd: String,
    user: spec::User,
    groups: Vec<Gid>,
    caps: Sets,
    outside: Outside,
    no_new_privs: bool,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) terminal: bool,
    pub(crate) console_size: Option<spec::ConsoleSize>,
    apparmor: String,
    selinux: String,
    io_priority: Option<(u32, u32)>,
    pub(crate) affinity: Affinity,
    pub(crate) filter: Option<Filter>,
    pub(crate) preserve_fds: u32,
}

/// What somebody outside may have to set for a process.
#[derive(Debug, Default, Clone)]
pub(crate) struct Outside {
    rlimits: Vec<(Resource, Rlimit)>,
    scheduler: Option<sys::process::SchedAttr>,
}

impl Outside {
    /// What the caller does for a process that was made in the container: a scheduling class, which
    /// a process passes on to its children in part only.
    pub(crate) fn settle(&self, pid: i32) -> Result<()> {
        match &self.scheduler {
            Some(attr) => {
                sys::process::set_scheduler(pid, attr).ctx("sched_setattr", || "process.scheduler")
            }
            None => Ok(()),
        }
    }

    /// Sets the limits of a process (0: this one): from outside where that one, in a user namespace,
    /// may not raise its own. `more` processes of the user are allowed for now.
    pub(crate) fn limit(&self, pid: i32, more: u64) -> Result<()> {
        let target = rustix::process::Pid::from_raw(pid);
        for (resource, limit) in &self.rlimits {
            let mut limit = *limit;
            if *resource == Resource::Nproc {
                limit.current = limit.current.map(|n| n.saturating_add(more));
                limit.maximum = limit.maximum.map(|n| n.saturating_add(more));
            }
            rustix::process::prlimit(target, *resource, limit)
                .ctx("prlimit", || format!("{resource:?}"))?;
        }
        Ok(())
    }

    fn processes(&self) -> Option<Rlimit> {
        self.rlimits.iter().find(|(r, _)| *r == Resource::Nproc).map(|(_, limit)| *limit)
    }
}

/// Processors for exec: before and after the process enters the container's cgroup.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    pub(crate) initial: Option<rustix::thread::CpuSet>,
    pub(crate) last: Option<rustix::thread::CpuSet>,
}

impl Prepared {
    /// Checks everything that can be checked before a process is made.
    pub(crate) fn new(
        p: &spec::Process,
        filter: Option<Filter>,
        preserve_fds: u32,
        proc: &ProcFs,
    ) -> Result<Prepared> {
        let bad = |field, problem: &str| Error::config(field, problem);
        let first = p.args.first().ok_or_else(|| bad("process.args", "must not be empty"))?.clone();
        if first.is_empty() {
            return Err(Error::Exec("exec: \"\": executable file not found in $PATH".into()));
        }
        if !p.cwd.starts_with('/') {
            return Err(bad("process.cwd", "Cwd must be an absolute path"));
        }
        check_ids(&p.user)?;
        check_labels(p, proc)?;
        Ok(Prepared {
            args: CStrVec::new(&p.args).ok_or_else(|| bad("process.args", "NUL inside"))?,
            first,
            env: environment(&p.env)?,
            cwd: p.cwd.clone(),
            groups: p.user.additional_gids.iter().map(|g| Gid::from_raw(*g)).collect(),
            user: p.user.clone(),
            // Without the section there are none, as in runc.
            caps: p.capabilities.as_ref().map(caps::parse).unwrap_or_default(),
            outside: Outside {
                rlimits: rlimits(&p.rlimits)?,
                scheduler: p.scheduler.as_ref().map(scheduler).transpose()?,
            },
            no_new_privs: p.no_new_privileges,
            oom_score_adj: p.oom_score_adj,
            terminal: p.terminal,
            console_size: p.console_size.clone(),
            apparmor: p.apparmor_profile.clone(),
            selinux: p.selinux_label.clone(),
            io_priority: p.io_priority.as_ref().map(io_priority).transpose()?,
            affinity: affinity(p.exec_cpu_affinity.as_ref())?,
            filter,
            preserve_fds,
        })
    }

    /// What the caller keeps of it, to do it from outside.
    pub(crate) fn outside(&self) -> &Outside {
        &self.outside
    }

    /// Becomes the user, with the user's rights and nothing more, in the working directory, and
    /// finds the program. What is left to do is loading the filter, and [`Ready::exec`].
    pub(crate) fn finalize(self, proc: &ProcFs, here: Here) -> Result<Ready> {
        if let Some(more) = here.limits {
            self.outside.limit(0, more)?;
        }
        if let Some(attr) = self.outside.scheduler.as_ref().filter(|_| here.scheduler) {
            sys::process::set_scheduler(0, attr).ctx("sched_setattr", || "process.scheduler")?;
        }
        if let Some((class, priority)) = self.io_priority {
            sys::process::set_io_priority(class, priority)
                .ctx("ioprio_set", || "process.ioPriority")?;
        }
        self.set_labels(proc)?;
        if self.no_new_privs {
            set_no_new_privs(true).ctx("prctl", || "no_new_privs")?;
        }
        self.give_stdio()?;
        // As root first; a directory that only the user may enter (FUSE, NFS) is tried again.
        let early = match rootfs::working_directory(&self.cwd, false) {
            Ok(cwd) => fchdir(&cwd).map(|()| true).ctx("chdir", || self.cwd.as_str())?,
            Err(Errno::ACCESS) => false,
            Err(e) => return Err(e).ctx("chdir to cwd", || self.cwd_text()),
        };
        let give_up = self.become_user(proc)?;
        if !early {
            rootfs::working_directory(&self.cwd, false)
                .and_then(|cwd| fchdir(&cwd))
                .ctx("chdir to cwd", || self.cwd_text())?;
        }
        verify_cwd()?;
        let mut env = self.env;
        set_home(&mut env, self.user.uid);
        let program = find_program(&self.first, &env)?;
        let kept = 3 + i32::try_from(self.preserve_fds).unwrap_or(0);
        let processes = self.outside.processes();
        sys::process::keep_on_exec(3, self.preserve_fds);
        let env = CStrVec::new(&env).ok_or_else(|| Error::config("process.env", "NUL inside"))?;
        Ok(Ready {
            program,
            args: self.args,
            env,
            terminal: self.terminal,
            processes,
            privileged: !self.no_new_privs,
            filter: self.filter,
            give_up,
            first_fd: kept,
        })
    }

    /// Makes the working directory if it is missing: in the container's root, while that can still
    /// be written.
    pub(crate) fn make_cwd(&self) -> Result<()> {
        match rootfs::working_directory(&self.cwd, true) {
            // One that only the user may enter.
            Ok(_) | Err(Errno::ACCESS) => Ok(()),
            Err(e) => Err(e).ctx("chdir to cwd", || self.cwd_text()),
        }
    }

    fn cwd_text(&self) -> String {
        format!("({:?}) set in config.json failed", self.cwd)
    }

    fn set_labels(&self, proc: &ProcFs) -> Result<()> {
        if !self.apparmor.is_empty() {
            let value = format!("exec {}", self.apparmor);
            let newer = proc.openat("self/attr/apparmor/exec", OFlags::WRONLY);
            let file = newer.is_ok();
            drop(newer);
            let path = if file { "self/attr/apparmor/exec" } else { "self/attr/exec" };
            proc.write(path, value.as_bytes()).step(|| "apply apparmor profile")?;
        }
        if !self.selinux.is_empty() {
            proc.write("self/attr/exec", self.selinux.as_bytes()).step(|| "apply SELinux label")?;
        }
        Ok(())
    }

    /// Gives the standard streams to the user, so that /dev/stdout can be opened again. The null
    /// device belongs to everyone, and is the container's own instead: through a descriptor of the
    /// host's, the container's root could change its mode and owner.
    fn give_stdio(&self) -> Result<()> {
        let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let replace: [fn(OwnedFd) -> Result<(), Errno>; 3] = [
            |fd| rustix::stdio::dup2_stdin(&fd),
            |fd| rustix::stdio::dup2_stdout(&fd),
            |fd| rustix::stdio::dup2_stderr(&fd),
        ];
        for (fd, replace) in streams.into_iter().zip(replace) {
            let Ok(stat) = fstat(fd) else { continue };
            if is_null(&stat) {
                if let Some(own) = own_null()? {
                    replace(own).ctx("dup2", || "/dev/null")?;
                }
                continue;
            }
            if stat.st_uid == self.user.uid {
                continue;
            }
            match fchown(fd, Some(Uid::from_raw(self.user.uid)), None) {
                // An owner that has no meaning there, or a file that cannot have one.
                Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
                Err(e) => return Err(e).ctx("chown", || "standard stream"),
            }
        }
        Ok(())
    }

    /// The sets to go down to once the filter is loaded, if that needs more than them: without
    /// no_new_privs loading takes CAP_SYS_ADMIN.
    fn become_user(&self, proc: &ProcFs) -> Result<Option<Sets>> {
        umask(Mode::from_raw_mode(self.user.umask.unwrap_or(DEFAULT_UMASK) & 0o7777));
        caps::bound(&self.caps)?;
        set_keep_capabilities(true).ctx("prctl", || "keep capabilities")?;
        self.set_ids(proc)?;
        set_keep_capabilities(false).ctx("prctl", || "keep capabilities")?;
        let extra = match &self.filter {
            Some(_) if !self.no_new_privs => CAP_SYS_ADMIN & !self.caps.effective,
            _ => 0,
        };
        caps::set(&self.caps, extra)?;
        caps::ambient(&self.caps)?;
        Ok((extra != 0).then_some(self.caps))
    }

    fn set_ids(&self, proc: &ProcFs) -> Result<()> {
        if !setgroups_denied(proc)? {
            set_thread_groups(&self.groups).ctx("setgroups", || format!("{:?}", self.groups))?;
        } else if !self.groups.is_empty() {
            return Err(Error::config(
                "process.user.additionalGids",
                "cannot be set: the user namespace has setgroups denied, as rootless ones have",
            ));
        }
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        set_thread_res_gid(gid, gid, gid).ctx("setgid", || self.user.gid.to_string())?;
        set_thread_res_uid(uid, uid, uid).ctx("setuid", || self.user.uid.to_string())?;
        if (getuid(), geteuid(), getgid(), getegid()) != (uid, uid, gid, gid) {
            return Err(Error::config("process.user", "the kernel did not set these ids"));
        }
        Ok(())
    }
}

/// Whether the user namespace that this process is in has setgroups(2) denied, see
/// user_namespaces(7).
fn setgroups_denied(proc: &ProcFs) -> Result<bool> {
    match proc.read("self/setgroups") {
        Ok(text) => Ok(text.trim() == "deny"),
        // A kernel without user namespaces.
        Err(e) if e.errno() == Some(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// What [`Prepared::finalize`] does, and does not.
pub(crate) struct Here {
    /// Set the process's limits, with so many processes more; see [`Outside::limit`].
    pub(crate) limits: Option<u64>,
    /// Set its scheduling class.
    pub(crate) scheduler: bool,
}

/// Ready to exec, but for the filter.
pub(crate) struct Ready {
    program: CString,
    args: CStrVec,
    env: CStrVec,
    terminal: bool,
    /// RLIMIT_NPROC, if it is set.
    processes: Option<Rlimit>,
    /// There is no no_new_privs.
    privileged: bool,
    filter: Option<Filter>,
    /// What [`Prepared::become_user`] left.
    give_up: Option<Sets>,
    /// Descriptors from here on are not for the program.
    first_fd: i32,
}

/// Those that a Go program ends with: SIGHUP, SIGINT, SIGQUIT, SIGTERM.
const ENDING: [i32; 4] = [1, 2, 3, 15];

impl Ready {
    /// Whether the filter cannot wait until the program is executed: more rights than the program
    /// is to have are kept for it, or its listener is to go to the caller.
    pub(crate) fn is_urgent(&self) -> bool {
        self.filter.as_ref().is_some_and(|f| self.privileged || f.notifies())
    }

    /// A filter with a listener that is still to be loaded by a process which the container can take
    /// hold of: what that one says of descriptors is not believed.
    pub(crate) fn check_no_listener(&self) -> Result<()> {
        if self.filter.as_ref().is_some_and(Filter::notifies) {
            let problem =
                "with SCMP_ACT_NOTIFY forbids what joining needs (clone, setsid, write …)";
            return Err(Error::config("linux.seccomp", problem));
        }
        Ok(())
    }

    /// Loads the filter, if there is one that is not loaded yet, and gives up the right to.
    pub(crate) fn load(&mut self) -> Result<Option<OwnedFd>> {
        let Some(filter) = self.filter.take() else { return Ok(None) };
        let listener = filter.load()?;
        self.give_up_right()?;
        Ok(listener)
    }

    fn give_up_right(&mut self) -> Result<()> {
        self.give_up.take().map_or(Ok(()), |sets| caps::set(&sets, 0))
    }

    /// As [`Ready::load`]; the caller gets the listener before this returns, and has it alone. Until
    /// then nobody answers: no call is made that the filter may leave to the listener.
    pub(crate) fn load_and_tell(&mut self, sync: &Sync) -> Result<()> {
        let Some(filter) = self.filter.take() else { return Ok(()) };
        let socket = u64::from(sync.as_fd().as_raw_fd().unsigned_abs());
        let passes = |call| filter.passes(call, [socket, 0, 0, 0, 0, 0]);
        let whole = passes("sendmsg");
        if filter.notifies() && !whole && !passes("write") {
            let problem = "with SCMP_ACT_NOTIFY must allow write or sendmsg: \
                           else its listener cannot be handed over";
            return Err(Error::config("linux.seccomp", problem));
        }
        if let Some(listener) = filter.load()? {
            sync.listener(&listener, whole)?;
            sync.wait_go()?;
        }
        self.give_up_right()
    }

    /// Whether the filter can be loaded before the process is made that executes the program: it
    /// lets through what lies between, in both.
    pub(crate) fn passes_making(&self) -> bool {
        /// The same number on every architecture with a table here.
        const TIOCSCTTY: u64 = 0x540e;
        let Some(filter) = &self.filter else { return true };
        let call =
            |name: &str, first: u64, second: u64| filter.passes(name, [first, second, 0, 0, 0, 0]);
        call("clone", sys::fork::FORK_SIBLING_FLAGS, 0)
            && ["write", "read", "close", "setsid", "execve", "exit_group"]
                .iter()
                .all(|name| call(name, 0, 0))
            && (!self.terminal || call("ioctl", 0, TIOCSCTTY))
            && (self.processes.is_none() || call("prlimit64", 0, 0))
            && (self.give_up.is_none() || call("capset", 0, 0))
    }

    /// Takes back what [`Outside::limit`] has allowed for now.
    pub(crate) fn limit_processes(&self) -> Result<()> {
        match self.processes {
            Some(limit) => rustix::process::setrlimit(Resource::Nproc, limit)
                .ctx("setrlimit", || "RLIMIT_NPROC"),
            None => Ok(()),
        }
    }

    /// The last that is done before the filter may be in force: descriptors and signals. What the
    /// program is not to have is closed, but for `keep`, which its execution closes.
    pub(crate) fn tidy(&self, keep: &[BorrowedFd<'_>]) -> Result<()> {
        let keep: Vec<i32> = keep.iter().map(AsRawFd::as_raw_fd).collect();
        sys::process::close_from_except(self.first_fd, &keep)
            .ctx("close_range", || "descriptors")?;
        sys::process::cloexec_from(u32::try_from(self.first_fd).unwrap_or(3))
            .ctx("close_range", || "descriptors")?;
        sys::process::reset_signals();
        // Until the program is executed `kill` ends it, as it ends runc's process, a Go program.
        sys::process::exit_on(&ENDING);
        Ok(())
    }

    /// Loads the filter, if it is still to be loaded, and executes the program. Returns only the
    /// error.
    pub(crate) fn exec(mut self) -> Error {
        if let Err(e) = self.load() {
            return e;
        }
        let source = sys::exec::execve(&self.program, &self.args, &self.env);
        Error::Sys { op: "exec", object: self.program.to_string_lossy().into_owned(), source }
    }
}

/// Waits for the end of a child and takes its status.
pub(crate) fn reap(pidfd: &OwnedFd) -> Result<i32> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(s)) => {
                let code = s.exit_status().unwrap_or(0);
                return Ok(s.terminating_signal().map_or(code, |n| 128 + n));
            }
            Ok(None) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e).ctx("wait for", || "child process"),
        }
    }
}

/// Kills a process that is not to be. It may be dead already; it is waited for in any case, but not
/// for ever: a tracer inside the container can keep a dead process from its parent, and a file system
/// that does not answer a living one.
pub(crate) fn abandon(pidfd: &OwnedFd) {
    const LIMIT: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(1);
    let _dead_already = sys::process::pidfd_kill(pidfd, 9);
    let deadline = Instant::now() + LIMIT;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    while Instant::now() < deadline {
        match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(None) | Err(Errno::INTR) => std::thread::sleep(PAUSE),
            Ok(Some(_)) | Err(_) => return,
        }
    }
}

/// A pidfd of a child that has not been waited for.
pub(crate) fn open_child(pid: i32) -> Result<OwnedFd> {
    let pid_ = rustix::process::Pid::from_raw(pid).ok_or(Errno::SRCH).ctx("pidfd_open", || "0")?;
    rustix::process::pidfd_open(pid_, rustix::process::PidfdFlags::empty())
        .ctx("pidfd_open", || pid.to_string())
}

/// The kernel's own word for "outside of your root" is a path that does not start with a slash.
fn verify_cwd() -> Result<()> {
    let cwd = getcwd(Vec::new()).map_err(|e| match e {
        Errno::NOENT => Error::config(
            "process.cwd",
            "current working directory is outside of container mount namespace root -- possible container breakout detected",
        ),
        source => Error::Sys { op: "getcwd", object: "process.cwd".into(), source },
    })?;
    if !cwd.as_bytes().starts_with(b"/") {
        return Err(Error::config(
            "process.cwd",
            "current working directory is not absolute -- possible container breakout detected",
        ));
    }
    Ok(())
}

/// To the kernel this number means "leave it as it is": as an id it would be the runtime's own, root.
pub(crate) const NO_ID: u32 = u32::MAX;

/// Whether the caller has so many descriptors from 3 on. Asked before the runtime opens anything:
/// its own descriptors would take the free numbers and end up in the container. If all are open,
/// they cannot.
pub(crate) fn check_preserved(count: u32) -> Result<()> {
    let end = i32::try_from(count).ok().and_then(|n| n.checked_add(3)).ok_or_else(|| {
        Error::config("--preserve-fds", format!("{count} descriptors: there are not so many"))
    })?;
    match (3..end).find(|fd| !sys::process::is_open(*fd)) {
        Some(fd) => {
            Err(Error::config("--preserve-fds", format!("file descriptor {fd} is not open")))
        }
        None => Ok(()),
    }
}

fn check_ids(user: &spec::User) -> Result<()> {
    for (field, ids) in [
        ("process.user.uid", &[user.uid][..]),
        ("process.user.gid", &[user.gid]),
        ("process.user.additionalGids", &user.additional_gids),
    ] {
        if ids.contains(&NO_ID) {
            return Err(Error::config(field, format!("{NO_ID} is no id")));
        }
    }
    Ok(())
}

fn check_labels(p: &spec::Process, proc: &ProcFs) -> Result<()> {
    if !p.apparmor_profile.is_empty() && !Path::new("/sys/kernel/security/apparmor").exists() {
        return Err(Error::config(
            "process.apparmorProfile",
            "apparmor is not enabled on the host",
        ));
    }
    if !p.selinux_label.is_empty() && !proc.read("filesystems")?.contains("selinuxfs") {
        return Err(Error::config("process.selinuxLabel", "selinux is not enabled on the host"));
    }
    Ok(())
}

/// Writes a file whole and atomically: a reader sees the old one or the new one. Nobody can prepare
/// the name under which it is written, and nothing stays there after a failure.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let name = || path.display().to_string();
    let mut number = [0; 8];
    getrandom(&mut number, GetRandomFlags::empty()).ctx("getrandom", name)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}.tmp", u64::from_ne_bytes(number)));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&temporary, flags, Mode::from_raw_mode(mode)).ctx("create", name)?;
    let written = File::from(fd).write_all(bytes).ctx("write", name);
    let done = written.and_then(|()| rustix::fs::rename(&temporary, path).ctx("rename", name));
    if done.is_err() {
        let _first_error_counts = rustix::fs::unlink(&temporary);
    }
    done
}

fn is_null(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(1, 3)
}

/// The null device of the container that this process is in; `None` if it has none. What stands
/// there may be anything: nothing is followed or waited for, and what was opened is looked at.
fn own_null() -> Result<Option<OwnedFd>> {
    let flags =
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS;
    let Ok(fd) = openat2(CWD, c"/dev/null", flags, Mode::empty(), resolve) else {
        return Ok(None);
    };
    let stat = fstat(&fd).ctx("stat", || "/dev/null")?;
    if !is_null(&stat) {
        return Ok(None);
    }
    fcntl_setfl(&fd, OFlags::empty()).ctx("fcntl", || "/dev/null")?;
    Ok(Some(fd))
}

/// Descriptors 0, 1, 2 from the caller's choice. Consumed before anything of the container is
/// near.
pub(crate) fn connect_stdio(stdio: &crate::Stdio) -> Result<()> {
    if let crate::Stdio::Fds { stdin, stdout, stderr } = stdio {
        // Numbers below 3 would be overwritten on the way.
        let high = |fd: BorrowedFd<'_>| {
            rustix::io::fcntl_dupfd_cloexec(fd, 3).ctx("dup", || "standard stream")
        };
        let (a, b, c) = (high(stdin.as_fd())?, high(stdout.as_fd())?, high(stderr.as_fd())?);
        crate::console::connect(a.as_fd(), b.as_fd(), c.as_fd())?;
    }
    Ok(())
}

/// The terminal wish of the spec and the caller's offer must fit.
pub(crate) fn check_terminal(terminal: bool, stdio: &crate::Stdio) -> Result<()> {
    let console = matches!(stdio, crate::Stdio::Console | crate::Stdio::ConsoleSocket(_));
    match (terminal, console) {
        (true, false) => Err(Error::config(
            "process.terminal",
            "cannot allocate tty if runc will detach without setting console socket",
        )),
        (false, true) => Err(Error::config(
            "process.terminal",
            "cannot use console socket if runc will not detach or allocate tty",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_written_through_no_link_and_leaves_nothing_when_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> =
                dir.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("victim"), "as it was").unwrap();
        let guess = format!("pid.{}.tmp", std::process::id());
        std::os::unix::fs::symlink("victim", at(&guess)).unwrap();
        write_atomically(&at("pid"), b"1", 0o600).unwrap();
        write_atomically(&at("pid"), b"23", 0o600).unwrap();
        assert_eq!(std::fs::read(at("pid")).unwrap(), b"23");
        assert_eq!(std::fs::read(at("victim")).unwrap(), b"as it was");
        let before = names();
        assert_eq!(before.len(), 3, "{before:?}");
        // A directory cannot be replaced by a file.
        std::fs::create_dir(at("directory")).unwrap();
        write_atomically(&at("directory"), b"1", 0o600).unwrap_err();
        std::fs::remove_dir(at("directory")).unwrap();
        assert_eq!(names(), before);
    }
}
