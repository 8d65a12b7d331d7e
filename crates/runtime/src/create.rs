//! create and start.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, mknodat};
use rustix::io::Errno;
use sys::clone::{self as flag, Child, CloneOptions, clone_process};

use crate::cgroup::{self, Cgroup, Host, Launch, Unit};
use crate::error::{Context, Error, Result};
use crate::exec::JOIN_LIMIT;
use crate::init::{self, Init};
use crate::namespaces::{self, Namespaces};
use crate::netdev::NetDevices;
use crate::process::{self, Prepared};
use crate::procfs::ProcFs;
use crate::rdt::{self, Rdt};
use crate::seccomp::{self, Arch};
use crate::spec::{Linux, Resources, Spec};
use crate::state::{self, CONFIG, Container, FIFO, FILTER, Record, Status};
use crate::surroundings::Surroundings;
use crate::sync::{Message, Sync, Waited, send_fd_to};
use crate::{ContainerId, CreateOptions, Created, Options, Stdio, caps, hooks, rootfs, sysctl};

/// See [`crate::create`].
pub(crate) fn create(opts: &Options, id: &ContainerId, create: CreateOptions) -> Result<Created> {
    process::check_preserved(create.preserve_fds)?;
    let dir = state_dir(opts, id)?;
    let mut made = Made { dir, cgroups: Vec::new(), unit: None, rdt: None };
    let result = create_in(&mut made, opts, id, create, run_parent);
    if result.is_err() {
        made.undo();
    }
    result
}

/// What must go away again if create fails.
struct Made {
    dir: PathBuf,
    /// Directories of the cgroup that were not there before.
    cgroups: Vec<PathBuf>,
    unit: Option<Unit>,
    rdt: Option<Rdt>,
}

impl Made {
    /// The error that is under way counts; what cannot be removed is found again by `delete`.
    fn undo(&self) {
        if let Some(unit) = &self.unit {
            drop(unit.stop());
        }
        if let Some(rdt) = &self.rdt {
            drop(rdt.delete());
        }
        drop(cgroup::remove_all(&self.cgroups));
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

fn state_dir(opts: &Options, id: &ContainerId) -> Result<PathBuf> {
    let dir = opts.root.join(id.as_str());
    let make = || rustix::fs::mkdir(&dir, Mode::from_raw_mode(0o700));
    match make() {
        Err(Errno::NOENT) => {
            std::fs::create_dir_all(&opts.root).ctx("mkdir", || opts.root.display().to_string())?;
            rustix::fs::chmod(&opts.root, Mode::from_raw_mode(0o711))
                .ctx("chmod", || opts.root.display().to_string())?;
            make().ctx("mkdir", || dir.display().to_string())?;
        }
        Err(Errno::EXIST) => return Err(Error::Exists(id.to_string())),
        other => other.ctx("mkdir", || dir.display().to_string())?,
    }
    Ok(dir)
}

/// Who makes the container.
#[derive(Debug, Clone, Copy)]
struct Caller {
    /// Not root.
    ordinary: bool,
    /// In the host's user namespace. Below it the kernel allows no device nodes and rules.
    host_userns: bool,
    /// cgroups that may not be written are done without.
    rootless: bool,
}

impl Caller {
    fn new(opts: &Options, proc: &ProcFs) -> Result<Caller> {
        let ordinary = !rustix::process::geteuid().is_root();
        let own_map = proc.read("self/uid_map")?;
        let host_userns = own_map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
        let rootless = opts.rootless.unwrap_or(ordinary || !host_userns);
        Ok(Caller { ordinary, host_userns, rootless })
    }
}

/// What the caller keeps while the process sets itself up.
struct Parent<'a> {
    proc: ProcFs,
    record: Record,
    linux: Linux,
    resources: Resources,
    hooks: crate::spec::Hooks,
    caller: Caller,
    new_userns: bool,
    /// The caller sets the process's limits.
    limits: bool,
    /// The process that comes back from [`spawn`] is not yet the container's.
    outside: bool,
    prepared: Prepared,
    net_devices: NetDevices,
    /// See [`Created::warnings`].
    warnings: Vec<String>,
    /// Who owns the container's cgroup: its root, where it may change it.
    cgroup_owner: Option<u32>,
    create: &'a CreateOptionsRest,
    oom_score_adj: Option<i32>,
}

/// [`CreateOptions`] without what moves into the child.
struct CreateOptionsRest {
    pid_file: Option<PathBuf>,
    pidfd_socket: Option<PathBuf>,
    console_socket: Option<PathBuf>,
}

impl CreateOptionsRest {
    fn new(create: &CreateOptions) -> CreateOptionsRest {
        CreateOptionsRest {
            pid_file: create.pid_file.clone(),
            pidfd_socket: create.pidfd_socket.clone(),
            console_socket: match &create.stdio {
                Stdio::ConsoleSocket(path) => Some(path.clone()),
                _ => None,
            },
        }
    }
}

impl<'a> Parent<'a> {
    /// For an ordinary container; what a user namespace changes is set after.
    fn new(
        spec: &Spec,
        linux: Linux,
        record: Record,
        create: &'a CreateOptionsRest,
        caller: Caller,
        prepared: Prepared,
    ) -> Result<Parent<'a>> {
        Ok(Parent {
            proc: ProcFs::open()?,
            resources: linux.resources.clone().unwrap_or_default(),
            hooks: spec.hooks.clone(),
            caller,
            new_userns: false,
            limits: false,
            outside: false,
            prepared,
            net_devices: NetDevices::parse(&linux.net_devices)?,
            cgroup_owner: None,
            warnings: caps::warnings(spec.process.as_ref().and_then(|p| p.capabilities.as_ref())),
            oom_score_adj: spec.process.as_ref().and_then(|p| p.oom_score_adj),
            linux,
            record,
            create,
        })
    }
}

fn new_record(
    id: &ContainerId,
    spec: &Spec,
    bundle: &Path,
    namespaces: &Namespaces,
    cgroup: Cgroup,
    caller: Caller,
    no_new_keyring: bool,
) -> Result<Record> {
    let mut record = Record::new(id, spec);
    let linux = spec.linux.as_ref().ok_or_else(|| Error::config("linux", "is missing"))?;
    let keyring = (!no_new_keyring).then(|| format!("_ses.{id}"));
    let label = spec.process.as_ref().map(|p| p.selinux_label.as_str()).unwrap_or_default();
    record.surroundings = Surroundings::new(linux, keyring, label)?;
    record.bundle = bundle.to_owned();
    record.rootfs = root_path(bundle, spec)?;
    record.namespaces = namespaces.all();
    record.own_pidns = namespaces.new & flag::CLONE_NEWPID != 0;
    record.setgroups = !caller.ordinary
        || !namespaces.has(flag::CLONE_NEWUSER)
        || namespaces::maps_other_groups(linux);
    record.cgroup = cgroup;
    Ok(record)
}

/// Finds out and checks everything that can be before there is a process, which `run` makes.
fn create_in(
    made: &mut Made,
    opts: &Options,
    id: &ContainerId,
    create: CreateOptions,
    run: impl FnOnce(Parent<'_>, Init, &mut Made) -> Result<Created>,
) -> Result<Created> {
    let proc = ProcFs::open()?;
    let caller = Caller::new(opts, &proc)?;
    let bundle = std::fs::canonicalize(&create.bundle)
        .ctx("open bundle", || create.bundle.display().to_string())?;
    let (mut spec, bytes) = state::parse_spec(&bundle.join(CONFIG))?;
    hand_on(&mut spec, &create, &made.dir)?;
    let linux = check(&spec)?;
    let resources = linux.resources.clone().unwrap_or_default();
    let process = spec.process.as_ref().ok_or_else(|| Error::config("process", "is missing"))?;
    process::check_terminal(process.terminal, &create.stdio)?;
    let filter = match &linux.seccomp {
        Some(section) => seccomp::compile(section, Arch::NATIVE)?,
        None => None,
    };
    if let Some(filter) = &filter {
        process::write_atomically(&made.dir.join(FILTER), &filter.to_bytes(), 0o600)?;
    }
    process::write_atomically(&made.dir.join(CONFIG), &bytes, 0o600)?;
    let namespaces = Namespaces::parse(&linux.namespaces)?;
    check_userns(&linux, &namespaces)?;
    linux.sysctl.keys().try_for_each(|key| sysctl::check(key, &namespaces))?;

    let host = Host::detect(&proc)?;
    let (unit, path) = place(opts, id, &linux.cgroups_path, caller)?;
    let cgroup = Cgroup::locate(&host, &path, id.as_str(), &resources)?;
    made.cgroups = cgroup.check_free()?;
    let mut record =
        new_record(id, &spec, &bundle, &namespaces, cgroup, caller, create.no_new_keyring)?;
    record.unit = unit;

    let rest = CreateOptionsRest::new(&create);
    let own = Prepared::new(process, None, 0, &proc)?;
    let mut parent = Parent::new(&spec, linux, record.clone(), &rest, caller, own)?;
    parent.new_userns = namespaces.new & flag::CLONE_NEWUSER != 0;
    if parent.linux.intel_rdt.is_some() {
        rdt::root(&parent.proc, "linux.intelRdt")?;
    }
    check_net_devices(&parent.net_devices, &namespaces, caller)?;
    parent.cgroup_owner = cgroup_owner(&spec, &namespaces);
    parent.limits = namespaces.has(flag::CLONE_NEWUSER);
    let fifo = make_fifo(&made.dir)?;
    let prepared = Prepared::new(process, filter, create.preserve_fds, &proc)?;
    let init = Init {
        root: root_plan(&bundle, &spec, &namespaces, &record, &host, caller, &create, &proc)?,
        process: prepared,
        namespaces,
        stdio: create.stdio,
        proc,
        fifo,
        hook_state: Box::new(move |status, pid| record.hook_state(status, pid)),
        surroundings: parent.record.surroundings.clone(),
        ordinary_caller: caller.ordinary,
        setgroups: parent.record.setgroups,
        spec,
    };
    run(parent, init, made)
}

/// systemd's unit, if it is to make the cgroup, and the cgroup's path.
fn place(
    opts: &Options,
    id: &ContainerId,
    path: &str,
    caller: Caller,
) -> Result<(Option<Unit>, String)> {
    if !opts.systemd_cgroup {
        return Ok((None, path.to_owned()));
    }
    let user = caller.ordinary || !caller.host_userns;
    let unit = Unit::parse(path, id.as_str(), user)?;
    let path = unit.path()?;
    Ok((Some(unit), path))
}

/// Adds to the spec what the caller's own service manager gave it for the container.
fn hand_on(spec: &mut Spec, create: &CreateOptions, dir: &Path) -> Result<()> {
    /// Where the container finds it; runc's place.
    const INSIDE: &str = "/run/notify";
    let mut env = Vec::new();
    if create.listen_fds > 0 {
        // The first process: pid 1 in its pid namespace.
        env.extend([format!("LISTEN_FDS={}", create.listen_fds), "LISTEN_PID=1".to_owned()]);
    }
    if create.notify {
        let file = dir.join(crate::NOTIFY_FILE);
        let (Some(place), Some(name)) = (file.parent(), file.file_name()) else { return Ok(()) };
        rustix::fs::mkdir(place, Mode::from_raw_mode(0o755))
            .ctx("mkdir", || place.display().to_string())?;
        env.push(format!("NOTIFY_SOCKET={INSIDE}/{}", name.to_string_lossy()));
        let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned);
        spec.mounts.push(crate::spec::Mount {
            destination: INSIDE.to_owned(),
            kind: "bind".to_owned(),
            source: place.display().to_string(),
            options: options.to_vec(),
            ..Default::default()
        });
    }
    if let Some(process) = spec.process.as_mut() {
        process.env.extend(env);
    }
    Ok(())
}

/// What the specification demands, and what is not offered.
fn check(spec: &Spec) -> Result<Linux> {
    let linux = spec.linux.clone().ok_or_else(|| Error::config("linux", "is missing"))?;
    if !linux.mount_label.is_empty() && !Path::new("/sys/fs/selinux").exists() {
        return Err(Error::config("linux.mountLabel", "selinux is not enabled on the host"));
    }
    rootfs::check(spec)?;
    Ok(linux)
}

fn check_userns(linux: &Linux, namespaces: &Namespaces) -> Result<()> {
    let new = namespaces.new & flag::CLONE_NEWUSER != 0;
    if new && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) {
        return Err(Error::config(
            "linux.uidMappings",
            "user namespaces enabled, but no uid or gid mappings found",
        ));
    }
    if !linux.time_offsets.is_empty() && namespaces.new & flag::CLONE_NEWTIME == 0 {
        return Err(Error::config("linux.timeOffsets", "needs a new time namespace"));
    }
    Ok(())
}

fn check_net_devices(list: &NetDevices, namespaces: &Namespaces, caller: Caller) -> Result<()> {
    let bad = |problem: &str| Err(Error::config("linux.netDevices", problem));
    match (list.is_empty(), namespaces.has(flag::CLONE_NEWNET), caller.ordinary) {
        (true, ..) => Ok(()),
        (_, false, _) => bad("needs a network namespace in linux.namespaces"),
        (.., true) => bad("only root may move interfaces out of its namespace"),
        _ => Ok(()),
    }
}

/// The container's root, as the host knows it, if it is to have its cgroup for itself: it is in a
/// user and a cgroup namespace of its own, and sees its cgroup writable.
fn cgroup_owner(spec: &Spec, namespaces: &Namespaces) -> Option<u32> {
    let own = flag::CLONE_NEWUSER | flag::CLONE_NEWCGROUP;
    let writable = spec.mounts.iter().any(|m| {
        m.kind.starts_with("cgroup")
            && rootfs::options::parse(&m.options).one.set & sys::mount::ATTR_RDONLY == 0
    });
    let maps = &spec.linux.as_ref()?.uid_mappings;
    let root = maps.iter().find(|m| m.container_id == 0 && m.size > 0);
    root.filter(|_| namespaces.new & own == own && writable).map(|m| m.host_id)
}

fn root_path(bundle: &Path, spec: &Spec) -> Result<PathBuf> {
    let root = spec.root.as_ref().ok_or_else(|| Error::config("root", "is missing"))?;
    if root.path.as_os_str().is_empty() {
        return Err(Error::config("root.path", "is empty"));
    }
    let path = bundle.join(&root.path);
    std::fs::canonicalize(&path).ctx("open root.path", || path.display().to_string())
}

#[allow(clippy::too_many_arguments)] // one call, all named alike at both ends
fn root_plan(
    bundle: &Path,
    spec: &Spec,
    namespaces: &Namespaces,
    record: &Record,
    host: &Host,
    caller: Caller,
    create: &CreateOptions,
    proc: &ProcFs,
) -> Result<rootfs::Plan> {
    let linux = spec.linux.as_ref();
    let word = linux.map(|l| l.rootfs_propagation.as_str()).unwrap_or_default();
    let mut sources = Vec::new();
    for m in &spec.mounts {
        sources.push(idmapped(bundle, m, linux, proc)?);
    }
    Ok(rootfs::Plan {
        bundle: bundle.to_owned(),
        rootfs: record.rootfs.clone(),
        in_userns: namespaces.has(flag::CLONE_NEWUSER) || !caller.host_userns,
        cgroupns: namespaces.has(flag::CLONE_NEWCGROUP),
        rootless: caller.rootless,
        no_pivot: create.no_pivot,
        propagation: rootfs::propagation(word)?,
        view: record.cgroup.view(host),
        sources,
    })
}

/// The bind source of a mount with id mapping; the container's own mapping where it names none.
fn idmapped(
    bundle: &Path,
    m: &crate::spec::Mount,
    linux: Option<&Linux>,
    proc: &ProcFs,
) -> Result<Option<OwnedFd>> {
    let options = rootfs::options::parse(&m.options);
    let own = !m.uid_mappings.is_empty() || !m.gid_mappings.is_empty();
    if !options.idmap && !own {
        return Ok(None);
    }
    let (uid, gid) = match (own, linux) {
        (false, Some(l)) => (&l.uid_mappings, &l.gid_mappings),
        _ => (&m.uid_mappings, &m.gid_mappings),
    };
    if uid.is_empty() || gid.is_empty() {
        return Err(Error::config("mounts.uidMappings", "idmap without any mapping"));
    }
    let userns = namespaces::user_namespace(proc, uid, gid)?;
    rootfs::idmapped_source(bundle, m, &userns).map(Some)
}

/// The fifo is opened for both directions: such an open never waits, and a read then waits for
/// the byte that `start` writes.
fn make_fifo(dir: &Path) -> Result<OwnedFd> {
    let path = dir.join(FIFO);
    let name = || path.display().to_string();
    mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .ctx("mkfifo", name)?;
    rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ctx("open", name)
}

fn run_parent(parent: Parent<'_>, init: Init, made: &mut Made) -> Result<Created> {
    let (ours, theirs) = Sync::pair()?;
    let mut parent = parent;
    // v2: the process starts in its cgroup, which must be there then. v1: the directories are
    // made while the process is already mounting; it waits where it needs them.
    // systemd makes a cgroup around a process that is there.
    let early = parent.record.cgroup.is_v2() && parent.record.unit.is_none();
    let mut into = None;
    if early {
        make_cgroup(&mut parent)?;
        into = parent.record.cgroup.open_v2()?;
    }
    parent.outside = init.namespaces.joins(flag::CLONE_NEWPID);
    let mut process = spawn(init, &ours, theirs, into.as_ref())?;
    match drive(&mut parent, made, &ours, &mut process, !early) {
        Ok(console_master) => {
            let Child { pid, pidfd } = process;
            let warnings = std::mem::take(&mut parent.warnings);
            Ok(Created { pid, pidfd, console_master, warnings })
        }
        Err(e) => {
            abandon(&process.pidfd);
            // The container's life was begun and is at its end; the error under way counts.
            let r = &parent.record;
            let state = r.hook_state("stopped", 0);
            drop(hooks::run_all("poststop", &r.poststop, &state, Some(&r.bundle)));
            Err(e)
        }
    }
}

fn make_cgroup(parent: &mut Parent<'_>) -> Result<()> {
    let device_rules = parent.caller.host_userns && !parent.caller.rootless;
    let result =
        parent.record.cgroup.create(&parent.resources, parent.caller.rootless, device_rules);
    result?;
    match parent.cgroup_owner {
        Some(uid) => parent.record.cgroup.delegate(uid),
        None => Ok(()),
    }
}

/// Kills a process that is not to be. It may be dead already; it is waited for in any case.
pub(crate) fn abandon(pidfd: &OwnedFd) {
    let _dead_already = sys::process::pidfd_kill(pidfd, 9);
    drop(process::reap(pidfd));
}

/// Makes the process: directly, or through one that joins namespaces first and makes it as the
/// caller's child.
///
/// Where a pid namespace is joined, the joining process itself is what comes back: it does the work
/// and makes the container's process at the end, see [`init::run_outside`].
fn spawn(init: Init, ours: &Sync, theirs: Sync, into: Option<&OwnedFd>) -> Result<Child> {
    // The cgroup namespace comes later: its root is the cgroup at the time it is made.
    let new = init.namespaces.new & !init.namespaces.late();
    let offsets = init.spec.linux.as_ref().map(|l| l.time_offsets.clone()).unwrap_or_default();
    if init.namespaces.join.is_empty() && offsets.is_empty() {
        let options = CloneOptions { flags: new, into_cgroup: into.map(AsFd::as_fd) };
        let mut init = Some(init);
        return clone_process(&options, || {
            ours.close_in_child();
            init.take().map_or(1, |init| init::run(init, &theirs))
        })
        .ctx("clone3", || "container process");
    }
    let options = CloneOptions { flags: 0, into_cgroup: into.map(AsFd::as_fd) };
    let outside = init.namespaces.joins(flag::CLONE_NEWPID);
    let mut init = Some(init);
    let joiner = clone_process(&options, || {
        ours.close_in_child();
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
    if outside {
        return Ok(joiner);
    }
    let answer = ours.receive();
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

/// A pidfd of a child that has not been waited for.
pub(crate) fn open_child(pid: i32) -> Result<OwnedFd> {
    let pid_ = rustix::process::Pid::from_raw(pid).ok_or(Errno::SRCH).ctx("pidfd_open", || "0")?;
    rustix::process::pidfd_open(pid_, rustix::process::PidfdFlags::empty())
        .ctx("pidfd_open", || pid.to_string())
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
    sync.go()?;
    let mut master = None;
    loop {
        let (message, sender) = sync.receive_with_sender()?;
        match message {
            Message::End => {
                let code = process::reap(&process.pidfd)?;
                return Err(Error::Init(format!("container init exited with status {code}")));
            }
            // From the process that was made inside, in the hands of others that are there.
            _ if sender != process.pid => {}
            Message::Hooks => {
                parent.record.save(&made.dir)?;
                let state = parent.record.hook_state("creating", process.pid);
                let dir = Some(parent.record.bundle.as_path());
                hooks::run("prestart", &parent.hooks.prestart, &state, dir)?;
                hooks::run("createRuntime", &parent.hooks.create_runtime, &state, dir)?;
                sync.go()?;
            }
            Message::Console(fd) => match &parent.create.console_socket {
                Some(path) => send_fd_to(path, "/dev/ptmx", &fd)?,
                None => master = Some(fd),
            },
            Message::Listener(number) => {
                let pid = process.pid;
                parent.record.send_listener(&process.pidfd, number, "creating", pid)?;
                sync.go()?;
            }
            Message::Ready => break,
            Message::Failed(text) => return Err(Error::Init(text)),
            Message::Pid(pid) if parent.outside => {
                hand_over(parent, sync, process, pid)?;
                break;
            }
            Message::Pid(_) => {}
        }
    }
    parent.record.save(&made.dir)?;
    if let Some(path) = &parent.create.pidfd_socket {
        send_fd_to(path, "pidfd", &process.pidfd)?;
    }
    if let Some(path) = &parent.create.pid_file {
        process::write_atomically(path, process.pid.to_string().as_bytes(), 0o644)?;
    }
    Ok(master)
}

/// From the process that has done the work to the one that it has made inside, up to its readiness;
/// nothing but that is believed from it.
fn hand_over(parent: &mut Parent<'_>, sync: &Sync, process: &mut Child, pid: i32) -> Result<()> {
    let worker = std::mem::replace(&mut process.pidfd, open_child(pid)?);
    process.pid = pid;
    process::reap(&worker)?;
    parent.record.pid = pid;
    parent.record.start_time = parent.proc.start_time(pid)?.unwrap_or(0);
    parent.prepared.settle(pid)?;
    sync.go()?;
    loop {
        match sync.wait(&process.pidfd, Some(JOIN_LIMIT))? {
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
        if let Some(unit) = &parent.record.unit {
            let r = &parent.record;
            made.unit = Some(unit.clone());
            let launch =
                Launch { id: &r.id, pid, v2: r.cgroup.is_v2(), annotations: &r.annotations };
            unit.start(&launch, &parent.resources)?;
        }
        make_cgroup(parent)?;
        parent.record.cgroup.attach(pid)?;
    }
    parent.net_devices.give(pid, &process.pidfd)?;
    if let Some(spec) = &parent.linux.intel_rdt {
        let root = rdt::root(&parent.proc, "linux.intelRdt")?;
        let class = Rdt::create(&root, &parent.record.id, spec)?;
        made.rdt = Some(class.clone());
        class.join(pid)?;
        parent.record.rdt = Some(class);
    }
    if parent.limits {
        parent.prepared.limit(pid, u64::from(parent.outside))?;
    }
    if let Some(score) = parent.oom_score_adj {
        parent.proc.write(&format!("{pid}/oom_score_adj"), score.to_string().as_bytes())?;
    }
    Ok(())
}

/// Waits until the process has let go of its end of the fifo: startContainer hooks are done, and the
/// program is executed (or the process has ended).
fn until_executed(fifo: &OwnedFd) -> Result<(), Errno> {
    loop {
        // Errors are told without being asked for.
        let mut fds = [PollFd::new(fifo, PollFlags::empty())];
        match poll(&mut fds, None) {
            Ok(_) if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// See [`crate::start`].
pub(crate) fn start(opts: &Options, id: &ContainerId) -> Result<()> {
    let container = Container::load(opts, id)?;
    // One start at a time; a killed one lets go, and leaves a container that can still be started.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = rustix::fs::open(&container.dir, flags, Mode::empty())
        .and_then(|fd| flock(&fd, FlockOperation::LockExclusive).map(|()| fd))
        .ctx("lock", || container.dir.display().to_string())?;
    match container.status()? {
        Status::Created => {}
        Status::Stopped => {
            return Err(Error::WrongStatus("cannot start a container that has stopped".into()));
        }
        _ => {
            return Err(Error::WrongStatus("cannot start an already running container".into()));
        }
    }
    let path = container.dir.join(FIFO);
    let name = || path.display().to_string();
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NXIO) => {
            return Err(Error::WrongStatus("cannot start a container that has stopped".into()));
        }
        Err(e) => return Err(e).ctx("open", name),
    };
    rustix::io::write(&fifo, b"0").ctx("write", name)?;
    // A fifo without a reader says the same: the process has gone on.
    rustix::fs::unlink(&path).ctx("unlink", name)?;
    drop(lock);
    let r = &container.record;
    if !r.poststart.is_empty() {
        until_executed(&fifo).ctx("wait", || "for the program's start")?;
        let state = r.hook_state("running", r.pid);
        if let Err(e) = hooks::run("poststart", &r.poststart, &state, Some(&r.bundle)) {
            // Since 1.3 of the specification a failed poststart hook stops the container.
            if let Some(pidfd) = container.pidfd()? {
                sys::process::pidfd_kill(&pidfd, 9).ctx("kill", || r.pid.to_string())?;
            }
            return Err(e);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "fuzz/create.rs"]
mod fuzz;
