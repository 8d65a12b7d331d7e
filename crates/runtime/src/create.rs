//! create: everything is found out and checked, then the process is made (module `launch`).

mod launch;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags, mknodat};
use rustix::io::Errno;
use sys::clone as flag;

use launch::run_parent;

use crate::cgroup::{Cgroup, Host, Unit, claim};
use crate::error::{Context, Error, Result};
use crate::init::Init;
use crate::namespaces::{self, Namespaces};
use crate::netdev::{Given, NetDevices};
use crate::process::{self, Outside, Prepared};
use crate::procfs::ProcFs;
use crate::rdt::{self, Rdt};
use crate::seccomp::{self, Arch};
use crate::spec::{Linux, Resources, Spec};
use crate::state::{self, CONFIG, Container, DirLock, FIFO, FILTER, Record, Unfinished};
use crate::surroundings::Surroundings;
use crate::{ContainerId, CreateOptions, Created, Options, Stdio, caps, hooks, rootfs, sysctl};

/// See [`crate::create`].
pub(crate) fn create(opts: &Options, id: &ContainerId, create: CreateOptions) -> Result<Created> {
    process::check_preserved(create.preserve_fds)?;
    let mut made = Made::begin(opts, id)?;
    match create_in(&mut made, opts, id, create, run_parent) {
        Err(e) => made.undo(Err(e)),
        made => made,
    }
}

/// What must go away again if create fails.
struct Made {
    dir: PathBuf,
    /// Held until all is done: by it others see whether a create goes on.
    lock: DirLock,
    /// Its mark on them, see [`claim`].
    claim: String,
    /// Directories of the cgroup that were not there before.
    cgroups: Vec<PathBuf>,
    unit: Option<Unit>,
    rdt: Option<Rdt>,
    network: Option<Given>,
    /// The container's life was begun: what is run when it is gone.
    poststop: Option<Poststop>,
}

/// poststop hooks, with the state that they read and their directory.
struct Poststop {
    hooks: Vec<crate::spec::Hook>,
    state: Vec<u8>,
    bundle: PathBuf,
}

impl Made {
    fn begin(opts: &Options, id: &ContainerId) -> Result<Made> {
        /// Only a `delete` that looks at the new directory is waited for.
        const LOCK_LIMIT: Duration = Duration::from_secs(10);
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            let dir = state_dir(opts, id)?;
            match DirLock::take(&dir, LOCK_LIMIT)? {
                Some(lock) if is_empty(&dir)? => {
                    return Ok(Made {
                        dir,
                        lock,
                        claim: claim::new_mark()?,
                        cgroups: Vec::new(),
                        unit: None,
                        rdt: None,
                        network: None,
                        poststop: None,
                    });
                }
                // Ours was deleted before it was locked, and this one is another create's.
                Some(_) => return Err(Error::Exists(id.to_string())),
                None if Instant::now() < deadline => {}
                None => {
                    let text = format!("{} is deleted again and again", dir.display());
                    return Err(Error::WrongStatus(text));
                }
            }
        }
    }

    /// The error that is under way counts; with it is told which of the host's interfaces are lost. If
    /// something cannot be removed, the record stays, by which `delete` finds it again; poststop hooks are
    /// left to it then. Otherwise they are run as `delete` runs them: last, without the lock.
    fn undo<T>(self, failed: Result<T>) -> Result<T> {
        let failed = match &self.network {
            Some(given) => given.take_back_after(failed),
            None => failed,
        };
        // First: systemd would wait for those that do not heed its SIGTERM.
        let killed = claim::kill(&self.claim, &self.cgroups);
        let unit = self.unit.as_ref().map_or(Ok(()), Unit::stop);
        let rdt = self.rdt.as_ref().map_or(Ok(()), Rdt::delete);
        let cgroups = killed.and(claim::clear(&self.claim, &self.cgroups));
        if unit.is_ok() && rdt.is_ok() && cgroups.is_ok() {
            drop(std::fs::remove_dir_all(&self.dir));
            drop(self.lock);
            if let Some(p) = &self.poststop {
                // The error under way counts.
                drop(hooks::run_all("poststop", &p.hooks, &p.state, Some(&p.bundle)));
            }
        }
        failed
    }
}

fn is_empty(dir: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(dir).ctx("read", || dir.display().to_string())?;
    Ok(entries.next().is_none())
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
        Err(Errno::EXIST) => return Err(Error::Exists(exists(opts, id, &dir))),
        other => other.ctx("mkdir", || dir.display().to_string())?,
    }
    Ok(dir)
}

/// The id, and the way out where it is only the rest of a create that was killed.
fn exists(opts: &Options, id: &ContainerId, dir: &Path) -> String {
    let rest = match Container::load(opts, id) {
        Ok(container) => container.is_cut_short(),
        Err(Error::NotFound(_)) => state::is_locked(dir).is_ok_and(|locked| locked == Some(false)),
        Err(_) => false,
    };
    if rest { format!("{id} (its create was cut short: delete it first)") } else { id.to_string() }
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
    /// To be made by systemd.
    unit: Option<Unit>,
    linux: Linux,
    resources: Resources,
    hooks: crate::spec::Hooks,
    caller: Caller,
    new_userns: bool,
    /// The caller sets the process's limits.
    limits: bool,
    /// The process that comes back from [`spawn`] is not yet the container's.
    outside: bool,
    outside_work: Outside,
    net_devices: NetDevices,
    /// The specification's, where the process may need the caller for some.
    mounts: Vec<crate::spec::Mount>,
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
        prepared: &Prepared,
    ) -> Result<Parent<'a>> {
        Ok(Parent {
            proc: ProcFs::open()?,
            unit: None,
            resources: linux.resources.clone().unwrap_or_default(),
            hooks: spec.hooks.clone(),
            caller,
            new_userns: false,
            limits: false,
            outside: false,
            outside_work: prepared.outside().clone(),
            net_devices: NetDevices::parse(&linux.net_devices)?,
            cgroup_owner: None,
            mounts: Vec::new(),
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
    hooks::limit(&mut spec.hooks, opts.hook_limit);
    hand_on(&mut spec, &create, &made.dir)?;
    let mut linux = check(&spec)?;
    if let Some(resources) = &mut linux.resources {
        spec.settle(resources);
    }
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
    check_userns(&spec, &linux, &namespaces)?;
    linux.sysctl.keys().try_for_each(|key| sysctl::check(key, &namespaces))?;

    let host = Host::detect(&proc)?;
    let (unit, path) = place(opts, id, &linux.cgroups_path, caller)?;
    let cgroup = Cgroup::locate(&host, &path, id.as_str(), &resources)?;
    made.cgroups = cgroup.check_free()?;
    let mut record = new_record(id, &spec, &bundle, &namespaces, cgroup, create.no_new_keyring)?;
    record.unfinished = Some(Unfinished { cgroups: made.cgroups.clone() });
    record.claim = made.claim.clone();

    let rest = CreateOptionsRest::new(&create);
    let prepared = Prepared::new(process, filter, create.preserve_fds, &proc)?;
    let mut parent = Parent::new(&spec, linux, record.clone(), &rest, caller, &prepared)?;
    parent.unit = unit;
    parent.new_userns = namespaces.new & flag::CLONE_NEWUSER != 0;
    if parent.linux.intel_rdt.is_some() {
        rdt::root(&parent.proc, "linux.intelRdt")?;
    }
    check_net_devices(&parent.net_devices, &namespaces, caller)?;
    parent.cgroup_owner = cgroup_owner(&spec, &namespaces);
    if namespaces.has(flag::CLONE_NEWUSER) {
        parent.limits = true;
        parent.mounts = spec.mounts.clone();
    }
    let fifo = make_fifo(&made.dir)?;
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
    spec.check_version()?;
    let linux = spec.linux.clone().ok_or_else(|| Error::config("linux", "is missing"))?;
    if !linux.mount_label.is_empty() && !Path::new("/sys/fs/selinux").exists() {
        return Err(Error::config("linux.mountLabel", "selinux is not enabled on the host"));
    }
    rootfs::check(spec)?;
    Ok(linux)
}

fn check_userns(spec: &Spec, linux: &Linux, namespaces: &Namespaces) -> Result<()> {
    let new = namespaces.new & flag::CLONE_NEWUSER != 0;
    if new && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) {
        return Err(Error::config(
            "linux.uidMappings",
            "user namespaces enabled, but no uid or gid mappings found",
        ));
    }
    // It shows a pid namespace, and takes rights over the user namespace that owns that one.
    if new && namespaces.joins(flag::CLONE_NEWPID) && spec.mounts.iter().any(|m| m.kind == "proc") {
        return Err(Error::config(
            "mounts",
            "a new user namespace has no rights over a joined pid namespace, and cannot mount its proc: \
             bind /proc, or join that namespace's user namespace",
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

/// The program's user, as the host knows it, if it is to have its cgroup for itself: it has a cgroup
/// namespace of its own, and sees its cgroup writable (config-linux.md, "Cgroup ownership"). `None`
/// also for the host's root, whose it is anyway, and in a user namespace whose mapping is not in the
/// specification.
fn cgroup_owner(spec: &Spec, namespaces: &Namespaces) -> Option<u32> {
    let writable = spec.mounts.iter().any(|m| {
        m.source == "cgroup"
            && rootfs::resolve::clean(&m.destination) == Path::new("/sys/fs/cgroup")
            && rootfs::options::parse(&m.options).one.set & sys::mount::ATTR_RDONLY == 0
    });
    if !writable || namespaces.new & flag::CLONE_NEWCGROUP == 0 {
        return None;
    }
    let user = spec.process.as_ref()?.user.uid;
    if !namespaces.has(flag::CLONE_NEWUSER) {
        return Some(user).filter(|user| *user != 0);
    }
    let maps = &spec.linux.as_ref()?.uid_mappings;
    maps.iter().find_map(|m| {
        let offset = user.checked_sub(m.container_id).filter(|offset| *offset < m.size)?;
        m.host_id.checked_add(offset)
    })
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

#[cfg(test)]
#[path = "fuzz/create.rs"]
mod fuzz;
