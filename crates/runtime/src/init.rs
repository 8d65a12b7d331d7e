//! The container's first process, from clone3 to the user's program.
//!
//! It runs in the container's namespaces with all rights, then gives them up step by step. Nobody
//! else is in its pid namespace meanwhile; where the container joins one, see [`run_outside`]. Until
//! it execs it is not dumpable. (Its executable is protected as well, see the module `selfexe`.)

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid, umask};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use sys::clone as flag;
use sys::fork::fork_sibling;

use crate::error::{Context, Error, Result, Step};
use crate::namespaces::Namespaces;
use crate::process::{Here, Prepared, Ready};
use crate::procfs::ProcFs;
use crate::rootfs;
use crate::spec::Spec;
use crate::surroundings::Surroundings;
use crate::sync::Sync;
use crate::{Stdio, console, hooks, netdev, start, sysctl};

/// Makes the state document for a status and a pid.
type HookState = Box<dyn Fn(&str, i32) -> Vec<u8>>;

/// Everything that the process needs, found out before it was made.
pub(crate) struct Init {
    pub(crate) spec: Spec,
    pub(crate) process: Prepared,
    pub(crate) root: rootfs::Plan,
    pub(crate) namespaces: Namespaces,
    pub(crate) stdio: Stdio,
    pub(crate) proc: ProcFs,
    /// Read end of exec.fifo (open for both, so that the open does not block).
    pub(crate) fifo: OwnedFd,
    /// State for hooks that run in the container, with this status.
    pub(crate) hook_state: HookState,
    pub(crate) surroundings: Surroundings,
    /// The caller is no root: it writes the id maps of a process whose files it must own.
    pub(crate) ordinary_caller: bool,
}

/// Runs in the new process. Comes back only with an exit code for a failure.
pub(crate) fn run(init: Init, sync: &Sync) -> i32 {
    let result = set_up(init, sync, false).and_then(|(mut ready, fifo, mut start)| {
        start.prepare();
        // Copies of the caller's descriptors must not live on here, or pipes and sockets of other
        // containers would never see their end.
        ready.tidy(&[sync.as_fd(), fifo.as_fd()])?;
        if ready.is_urgent() {
            ready.load_and_tell(sync)?;
        }
        sync.ready()?;
        Ok((ready, fifo, start))
    });
    match result {
        Ok((ready, fifo, start)) => wait_and_exec(ready, &fifo, &start, sync),
        Err(e) => {
            sync.failed(&e);
            1
        }
    }
}

/// As [`run`], where the container shares a pid namespace that others are in already: in a process
/// outside of it, which makes the container's process last, as the caller's child. Until then they
/// cannot see it; then it has nothing that the container does not have. See the module `exec`.
pub(crate) fn run_outside(init: Init, sync: &Sync) -> Result<()> {
    let terminal = init.process.terminal;
    let (mut ready, fifo, start) = set_up(init, sync, true)?;
    ready.tidy(&[sync.as_fd(), fifo.as_fd()])?;
    let early = ready.is_urgent() || start.hooks.is_empty();
    if early && ready.passes_making() {
        ready.load_and_tell(sync)?;
    }
    let mut inside = Some((ready, fifo, start));
    let pid = fork_sibling(|| {
        let Some((mut ready, fifo, mut start)) = inside.take() else { return 1 };
        start.prepare();
        match come_inside(&mut ready, terminal, sync) {
            Ok(()) => wait_and_exec(ready, &fifo, &start, sync),
            Err(e) => {
                sync.failed(&e);
                1
            }
        }
    })
    .ctx("clone", || "container process")?;
    sync.pid(pid)
}

fn come_inside(ready: &mut Ready, terminal: bool, sync: &Sync) -> Result<()> {
    sync.wait_go()?;
    ready.limit_processes()?;
    setsid().ctx("setsid", || "container process")?;
    if terminal {
        console::control()?;
    }
    if ready.is_urgent() {
        ready.check_no_listener()?;
        drop(ready.load()?);
    }
    sync.ready()
}

/// startContainer hooks, and what makes their state.
struct Start {
    hooks: Vec<crate::spec::Hook>,
    state: HookState,
    /// Made by [`Start::prepare`].
    text: Vec<u8>,
}

impl Start {
    /// In the container's process, before its filter may forbid what this takes.
    fn prepare(&mut self) {
        if !self.hooks.is_empty() {
            self.text = (self.state)("created", own_pid());
        }
    }
}

/// `outside`: this is not the container's process itself.
fn set_up(init: Init, sync: &Sync, outside: bool) -> Result<(Ready, OwnedFd, Start)> {
    // The maps of a new user namespace are written by the caller, who must own this process's files
    // in /proc if it is not root. Nobody else is in the namespace until then.
    let maps_first = init.ordinary_caller && init.namespaces.new & flag::CLONE_NEWUSER != 0;
    if !maps_first {
        not_dumpable()?;
    }
    umask(Mode::empty());
    if !outside {
        setsid().ctx("setsid", || "container process")?;
    }
    crate::process::connect_stdio(&init.stdio)?;
    let linux = init.spec.linux.as_ref().ok_or_else(|| Error::config("linux", "is missing"))?;

    let gone = std::cell::Cell::new(false);
    let wait_go = || -> Result<()> { if gone.replace(true) { Ok(()) } else { sync.wait_go() } };
    if init.namespaces.has(flag::CLONE_NEWUSER) {
        wait_go()?;
        not_dumpable()?;
        become_root(&init.namespaces)?;
    }
    init.surroundings.take_on(&init.proc)?;
    if init.namespaces.new & flag::CLONE_NEWNET != 0 {
        netdev::loopback_up()?;
    }
    let new_cgroupns = init.namespaces.new & flag::CLONE_NEWCGROUP != 0;
    let entered = std::cell::Cell::new(!new_cgroupns);
    // The namespace's root is the cgroup that the process is in: the caller has put it there.
    let mut cgroup_ready = || -> Result<()> {
        wait_go()?;
        if !entered.replace(true) {
            sys::process::unshare(flag::CLONE_NEWCGROUP).ctx("unshare", || "cgroup namespace")?;
        }
        Ok(())
    };
    let ask_for_source = |index| sync.ask_for_source(index);
    let asks: Option<rootfs::AskForSource<'_>> =
        init.namespaces.has(flag::CLONE_NEWUSER).then_some(&ask_for_source);
    let hooks_ = &init.spec.hooks;
    let built;
    {
        let root = rootfs::build(&init.root, &init.spec, &mut cgroup_ready, asks)?;
        built = finish_root(&init, sync, &wait_go, root)?;
    }
    if !entered.get() {
        wait_go()?;
        sys::process::unshare(flag::CLONE_NEWCGROUP).ctx("unshare", || "cgroup namespace")?;
    }
    wait_go()?;
    names(&init)?;
    for (key, value) in &linux.sysctl {
        sysctl::write(&init.proc, key, value).step(|| format!("write sysctl {key:?}"))?;
    }
    if let Some(slave) = built {
        console::connect(slave.as_fd(), slave.as_fd(), slave.as_fd())?;
        if !outside {
            console::control()?;
        }
    }
    let hooks = hooks_.start_container.clone();
    let start = Start { hooks, state: init.hook_state, text: Vec::new() };
    let more = u64::from(outside);
    let here = Here {
        // In a user namespace it may not raise them: the caller has set them.
        limits: (!init.namespaces.has(flag::CLONE_NEWUSER)).then_some(more),
        scheduler: !outside,
    };
    let ready = init.process.finalize(&init.proc, here)?;
    Ok((ready, init.fifo, start))
}

/// Hooks, the terminal, and entering the root; the pty's slave, if there is one.
fn finish_root(
    init: &Init,
    sync: &Sync,
    wait_go: &dyn Fn() -> Result<()>,
    root: rootfs::Root<'_>,
) -> Result<Option<OwnedFd>> {
    let hooks_ = &init.spec.hooks;
    if !hooks_.prestart.is_empty() || !hooks_.create_runtime.is_empty() {
        wait_go()?;
        sync.hooks()?;
        sync.wait_go()?;
    }
    let mut slave_fd = None;
    if init.process.terminal {
        let (master, slave) = console::open(root.fd(), init.process.console_size.as_ref())?;
        rootfs::bind_console(&root, &slave)?;
        sync.console(&master)?;
        slave_fd = Some(slave);
    }
    if !hooks_.create_container.is_empty() {
        wait_go()?;
        let state = (init.hook_state)("creating", own_pid());
        // As in runc; entering the root leaves it again.
        rustix::process::fchdir(root.fd()).ctx("chdir", || "root.path")?;
        hooks::run("createContainer", &hooks_.create_container, &state, None)?;
    }
    rootfs::enter(&init.root, &root)?;
    init.process.make_cwd()?;
    rootfs::seal(&init.root, &root, &init.spec)?;
    Ok(slave_fd)
}

fn names(init: &Init) -> Result<()> {
    let spec = &init.spec;
    if !spec.hostname.is_empty() {
        need_uts(init, "hostname")?;
        rustix::system::sethostname(spec.hostname.as_bytes())
            .ctx("sethostname", || spec.hostname.as_str())?;
    }
    if !spec.domainname.is_empty() {
        need_uts(init, "domainname")?;
        rustix::system::setdomainname(spec.domainname.as_bytes())
            .ctx("setdomainname", || spec.domainname.as_str())?;
    }
    Ok(())
}

/// In a user namespace whose maps are written: being root is being somebody.
fn become_root(namespaces: &Namespaces) -> Result<()> {
    let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    set_thread_res_gid(gid, gid, gid).ctx("setgid", || "0 in the user namespace")?;
    set_thread_res_uid(uid, uid, uid).ctx("setuid", || "0 in the user namespace")?;
    let ipc = namespaces.late() & flag::CLONE_NEWIPC;
    sys::process::unshare(ipc).ctx("unshare", || "ipc namespace")
}

fn not_dumpable() -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).ctx("prctl", || "dumpable")
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn need_uts(init: &Init, field: &'static str) -> Result<()> {
    if init.namespaces.has(flag::CLONE_NEWUTS) {
        return Ok(());
    }
    Err(Error::config(field, "unable to set hostname without a private UTS namespace"))
}

/// The last stretch: wait for `start`, run startContainer hooks, exec. The caller of create is
/// gone by now; what fails is said on the container's own stderr, and to a `start` that waits. The
/// filter may be in force: beside hooks nothing is done but what every program does at its start.
fn wait_and_exec(ready: Ready, fifo: &OwnedFd, start: &Start, sync: &Sync) -> i32 {
    /// What a program that cannot be executed ends with (runc's code).
    const EXEC_FAILED: i32 = 255;
    // Nothing more is said to the caller.
    sync.close_in_child();
    let result = (|| -> Result<()> {
        start::await_go(fifo)?;
        hooks::run("startContainer", &start.hooks, &start.text, None)?;
        start::await_go(fifo)
    })();
    let error = match result {
        Ok(()) => ready.exec(),
        Err(e) => e,
    };
    let line = format!("{}\n", error.chain());
    // The exit status says the rest.
    let _nobody = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
    start::leave_error(fifo, &error);
    EXEC_FAILED
}
