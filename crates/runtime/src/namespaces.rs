//! Namespaces of the spec: which are new, which are joined, and id maps.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{ThreadNameSpaceType, move_into_link_name_space};
use sys::clone as flag;

use crate::error::{Context, Error, Result, Step};
use crate::procfs::ProcFs;
use crate::spec::{IdMapping, Linux, Namespace, TimeOffset};

/// (the spec's word, flag, name in /proc/PID/ns), in the order in which they are joined: the user
/// namespace first, for it gives the rights over the others.
pub(crate) const KINDS: [(&str, u64, &str); 8] = [
    ("user", flag::CLONE_NEWUSER, "user"),
    ("cgroup", flag::CLONE_NEWCGROUP, "cgroup"),
    ("ipc", flag::CLONE_NEWIPC, "ipc"),
    ("uts", flag::CLONE_NEWUTS, "uts"),
    ("network", flag::CLONE_NEWNET, "net"),
    ("pid", flag::CLONE_NEWPID, "pid"),
    ("time", flag::CLONE_NEWTIME, "time"),
    ("mount", flag::CLONE_NEWNS, "mnt"),
];

/// Parsed `linux.namespaces`.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` of those that are made.
    pub(crate) new: u64,
    /// Those that are joined, in order.
    pub(crate) join: Vec<Join>,
}

/// One that is joined.
#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) flag: u64,
    pub(crate) path: PathBuf,
    pub(crate) fd: OwnedFd,
}

impl Namespaces {
    pub(crate) fn parse(list: &[Namespace]) -> Result<Namespaces> {
        let bad = |problem: String| Error::config("linux.namespaces", problem);
        let mut out = Namespaces::default();
        let mut seen = 0;
        for ns in list {
            let (_, flag, _) = KINDS
                .iter()
                .find(|(word, _, _)| *word == ns.kind)
                .ok_or_else(|| bad(format!("namespace {:?} does not exist", ns.kind)))?;
            if seen & flag != 0 {
                return Err(bad(format!("{:?} is there twice", ns.kind)));
            }
            seen |= flag;
            match &ns.path {
                Some(path) if !path.as_os_str().is_empty() => {
                    // Nothing else that is there by mistake, such as a fifo, may make the open wait.
                    let flags =
                        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
                    let fd = rustix::fs::open(path, flags, Mode::empty())
                        .ctx("open namespace", || path.display().to_string())
                        .step(|| "linux.namespaces.path")?;
                    out.join.push(Join { flag: *flag, path: path.clone(), fd });
                }
                _ => out.new |= flag,
            }
        }
        let order = |f: u64| KINDS.iter().position(|(_, k, _)| *k == f);
        out.join.sort_by_key(|j| order(j.flag));
        out.check()?;
        out.check_mount_namespace()?;
        Ok(out)
    }

    fn check(&self) -> Result<()> {
        // runc and crun mount into the host's then, where it stays when the container is gone, and runc
        // changes how the host's mounts propagate.
        if !self.has(flag::CLONE_NEWNS) {
            let problem = "has no mount namespace: the container's mounts would be the host's; \
                           add {\"type\": \"mount\"}";
            return Err(Error::config("linux.namespaces", problem));
        }
        Ok(())
    }

    /// A container that joins the runtime's own, or the host's, would make its root the host's.
    fn check_mount_namespace(&self) -> Result<()> {
        let Some(joined) = self.join.iter().find(|j| j.flag == flag::CLONE_NEWNS) else {
            return Ok(());
        };
        let path = || joined.path.display().to_string();
        let other = rustix::fs::fstat(&joined.fd).ctx("stat", path)?;
        for (whose, ns) in [("runtime's own", "/proc/self/ns/mnt"), ("host's", "/proc/1/ns/mnt")] {
            // An ordinary user may not look at the second, nor enter it.
            let Ok(known) = rustix::fs::stat(ns) else { continue };
            if (known.st_dev, known.st_ino) == (other.st_dev, other.st_ino) {
                let problem = format!("{} is the {whose} mount namespace", path());
                return Err(Error::config("linux.namespaces.path", problem));
            }
        }
        Ok(())
    }

    pub(crate) fn has(&self, flag: u64) -> bool {
        self.new & flag != 0 || self.joins(flag)
    }

    /// Those of the new ones that the process makes itself, later: the cgroup namespace, whose root
    /// is the cgroup that its maker is in, and with a new user namespace the ipc namespace, whose
    /// message queue file system belongs to its maker.
    pub(crate) fn late(&self) -> u64 {
        let ipc = if self.new & flag::CLONE_NEWUSER != 0 { flag::CLONE_NEWIPC } else { 0 };
        self.new & (flag::CLONE_NEWCGROUP | ipc)
    }

    pub(crate) fn joins(&self, flag: u64) -> bool {
        self.join.iter().any(|j| j.flag == flag)
    }

    /// All flags, new and joined: what exec joins.
    pub(crate) fn all(&self) -> u64 {
        self.join.iter().fold(self.new, |a, j| a | j.flag)
    }

    /// Enters those that are joined; in an intermediate process.
    pub(crate) fn enter(&self) -> Result<()> {
        for j in &self.join {
            // 0: the kernel takes the kind from the descriptor, and we know it from the spec; the
            // kind is checked by asking for it.
            set_ns(&j.fd, j.flag).ctx("setns", || j.path.display().to_string())?;
        }
        Ok(())
    }
}

/// Enters one whose kind is known.
pub(crate) fn set_ns(fd: &OwnedFd, flag: u64) -> Result<(), rustix::io::Errno> {
    use rustix::thread::LinkNameSpaceType as T;
    let kind = match flag {
        flag::CLONE_NEWUSER => T::User,
        flag::CLONE_NEWCGROUP => T::ControlGroup,
        flag::CLONE_NEWIPC => T::InterProcessCommunication,
        flag::CLONE_NEWUTS => T::HostNameAndNISDomainName,
        flag::CLONE_NEWNET => T::Network,
        flag::CLONE_NEWPID => T::ProcessID,
        flag::CLONE_NEWTIME => T::Time,
        _ => T::Mount,
    };
    move_into_link_name_space(fd.as_fd(), Some(kind))
}

/// Enters the namespaces of a process (`flags`: which) all at once.
pub(crate) fn enter_those_of(pidfd: &OwnedFd, flags: u64) -> Result<()> {
    let bits = u32::try_from(flags).unwrap_or(0);
    rustix::thread::move_into_thread_name_spaces(
        pidfd.as_fd(),
        ThreadNameSpaceType::from_bits_retain(bits),
    )
    .ctx("setns", || "the container's namespaces")
}

/// Writes the id maps of a process in a new user namespace. An `ordinary` caller (not root) may map
/// its own ids itself; for others there are shadow's newuidmap and newgidmap.
pub(crate) fn write_maps(proc: &ProcFs, pid: i32, linux: &Linux, ordinary: bool) -> Result<()> {
    let (uid, gid) = (&linux.uid_mappings, &linux.gid_mappings);
    if ordinary && !own_only(uid, rustix::process::geteuid().as_raw()) {
        map_helper("newuidmap", "linux.uidMappings", "/etc/subuid", pid, uid)?;
    } else {
        proc.write(&format!("{pid}/uid_map"), map_text(uid).as_bytes())
            .step(|| "write uid map (linux.uidMappings)")?;
    }
    if ordinary && maps_other_groups(linux) {
        return map_helper("newgidmap", "linux.gidMappings", "/etc/subgid", pid, gid);
    }
    if ordinary {
        // An ordinary user may map its own group only after giving up setgroups.
        proc.write(&format!("{pid}/setgroups"), b"deny")?;
    }
    proc.write(&format!("{pid}/gid_map"), map_text(gid).as_bytes())
        .step(|| "write gid map (linux.gidMappings)")
}

fn map_text(maps: &[IdMapping]) -> String {
    maps.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect()
}

fn own_only(maps: &[IdMapping], own: u32) -> bool {
    matches!(maps, [one] if one.host_id == own && one.size == 1)
}

/// Whether more than the caller's own group is mapped: an ordinary caller needs newgidmap then, and
/// the container keeps setgroups.
pub(crate) fn maps_other_groups(linux: &Linux) -> bool {
    !own_only(&linux.gid_mappings, rustix::process::getegid().as_raw())
}

fn map_helper(
    program: &'static str,
    field: &'static str,
    list: &str,
    pid: i32,
    maps: &[IdMapping],
) -> Result<()> {
    let mut command = std::process::Command::new(program);
    command.arg(pid.to_string());
    for m in maps {
        command.args([m.container_id, m.host_id, m.size].map(|n| n.to_string()));
    }
    let way_out =
        format!("an ordinary user needs it for ids other than its own, and lines in {list}");
    sys::process::unblock_signals_in(&mut command);
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .ctx("run", || program)
        .step(|| format!("{field}: {way_out}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::config(field, format!("{program}: {}: {} ({way_out})", output.status, said.trim())))
}

/// A user namespace with these maps and nobody in it, for id-mapped mounts.
pub(crate) fn user_namespace(
    proc: &ProcFs,
    uid: &[IdMapping],
    gid: &[IdMapping],
) -> Result<OwnedFd> {
    let (ours, theirs) = crate::sync::Sync::pair()?;
    let options = flag::CloneOptions { flags: flag::CLONE_NEWUSER, into_cgroup: None };
    let child = flag::clone_process(&options, || {
        ours.close_in_child();
        // Waits until the maker has what it wants, or is gone.
        i32::from(theirs.wait_go().is_err())
    })
    .ctx("clone3", || "for a user namespace")?;
    let linux =
        Linux { uid_mappings: uid.to_vec(), gid_mappings: gid.to_vec(), ..Linux::default() };
    let made = write_maps(proc, child.pid, &linux, false).and_then(|()| {
        let path = format!("/proc/{}/ns/user", child.pid);
        rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .ctx("open namespace", || path)
    });
    ours.go()?;
    crate::process::reap(&child.pidfd)?;
    made
}

/// Sets the clock offsets of the time namespace that this process has unshared for its children.
pub(crate) fn write_time_offsets(
    proc: &ProcFs,
    offsets: &std::collections::BTreeMap<String, TimeOffset>,
) -> Result<()> {
    let mut text = String::new();
    for (clock, offset) in offsets {
        if clock != "monotonic" && clock != "boottime" {
            return Err(Error::config("linux.timeOffsets", format!("clock {clock:?}")));
        }
        text.push_str(&format!("{clock} {} {}\n", offset.secs, offset.nanosecs));
    }
    proc.write("self/timens_offsets", text.as_bytes())
}
