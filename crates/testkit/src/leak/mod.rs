//! What is on the machine, or in a sandbox, and what has changed between two looks.
//!
//! Looked at ([`Kind`]): mounts, cgroups, network namespaces, links and routes, nftables and legacy
//! iptables, listening sockets, processes, sysctls of forwarding, and the files of chosen
//! directories.
//!
//! Teardown ends a little after the command that asked for it, so a comparison waits: it looks until
//! nothing differs, or until its time is over.

mod look;

use crate::sandbox::{NAME_PREFIX, Sandbox};
use crate::{Error, Result, wait};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use look::marked_processes;

/// How long a difference may take to go away.
pub const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Mount,
    Cgroup,
    NetworkNamespace,
    Link,
    Route,
    Nftables,
    Iptables,
    Socket,
    Process,
    Sysctl,
    File,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Mount,
        Self::Cgroup,
        Self::NetworkNamespace,
        Self::Link,
        Self::Route,
        Self::Nftables,
        Self::Iptables,
        Self::Socket,
        Self::Process,
        Self::Sysctl,
        Self::File,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mount => "mount",
            Self::Cgroup => "cgroup",
            Self::NetworkNamespace => "network namespace",
            Self::Link => "link",
            Self::Route => "route",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Socket => "socket",
            Self::Process => "process",
            Self::Sysctl => "sysctl",
            Self::File => "file",
        })
    }
}

/// What to look at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scope {
    pub kinds: BTreeSet<Kind>,
    /// Directories whose files count, to any depth.
    pub dirs: Vec<PathBuf>,
    /// Names of programs whose processes count. On the machine all others are not ours to judge,
    /// except for those that carry a sandbox's mark. Empty: every process counts.
    pub programs: Vec<String>,
    /// What contains one of these words does not count.
    pub ignore: Vec<String>,
}

impl Scope {
    /// Everything, for a machine on which nothing but the tests runs: before and after a whole run.
    pub fn machine() -> Self {
        Self {
            kinds: Kind::ALL.into(),
            dirs: ["/run", "/etc", "/var/lib", "/var/tmp", "/opt", "/root/.docker"]
                .map(PathBuf::from)
                .into(),
            programs: PROGRAMS.map(str::to_owned).into(),
            ignore: Vec::new(),
        }
    }

    /// For one test on a machine where others run beside it: what belongs to a sandbox does not
    /// count (each sandbox checks that itself), nor do files and sockets that no engine makes.
    pub fn test() -> Self {
        let mut scope = Self::machine();
        scope.dirs = ["/run/gantry", "/etc/gantry", "/var/lib/gantry", "/root/.docker"]
            .map(PathBuf::from)
            .into();
        scope.kinds.remove(&Kind::Socket);
        scope.kinds.remove(&Kind::NetworkNamespace);
        scope.ignore.push(NAME_PREFIX.to_owned());
        scope
    }

    /// Everything in a sandbox: what an engine leaves there after its containers are removed.
    pub fn sandbox() -> Self {
        Self {
            kinds: Kind::ALL.into(),
            dirs: ["/run", "/etc", "/var/lib", "/var/tmp"].map(PathBuf::from).into(),
            programs: Vec::new(),
            ignore: Vec::new(),
        }
    }

    #[must_use]
    pub fn without(mut self, kind: Kind) -> Self {
        self.kinds.remove(&kind);
        self
    }

    #[must_use]
    pub fn only(mut self, kinds: impl IntoIterator<Item = Kind>) -> Self {
        self.kinds = kinds.into_iter().collect();
        self
    }

    #[must_use]
    pub fn ignoring(mut self, word: impl Into<String>) -> Self {
        self.ignore.push(word.into());
        self
    }

    #[must_use]
    pub fn dirs(mut self, dirs: impl IntoIterator<Item = PathBuf>) -> Self {
        self.dirs = dirs.into_iter().collect();
        self
    }
}

/// Programs of engines and of this testkit, by the 15 bytes that the kernel keeps of a name.
const PROGRAMS: [&str; 16] = [
    "gantry",
    "dockerd",
    "containerd",
    "containerd-shim",
    "runc",
    "crun",
    "conmon",
    "docker-proxy",
    "docker-registry",
    "slirp4netns",
    "tini",
    "busybox",
    "docker",
    "docker-compose",
    "podman",
    "qemu-system-x86",
];

/// Where to look from.
#[derive(Debug, Clone, Copy)]
pub enum View<'a> {
    Machine,
    Sandbox(&'a Sandbox),
}

/// What was seen in one look.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    scope: Scope,
    /// One line each; a kind that could not be looked at (its tool is missing) is absent.
    seen: BTreeMap<Kind, BTreeSet<String>>,
}

impl Snapshot {
    pub fn take(view: View<'_>, scope: &Scope) -> Result<Self> {
        let mut seen = BTreeMap::new();
        for kind in &scope.kinds {
            if let Some(mut lines) = look::look(view, *kind, scope)? {
                lines.retain(|line| !scope.ignore.iter().any(|word| line.contains(word)));
                seen.insert(*kind, lines);
            }
        }
        Ok(Self { scope: scope.clone(), seen })
    }

    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    pub fn lines(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.seen.get(&kind).into_iter().flatten().map(String::as_str)
    }

    /// What is there now and was not before, and the reverse; but that a process, its socket or its
    /// namespace is gone is no leak. A kind that could not be looked at before counts as empty then.
    pub fn difference(&self, now: &Self) -> Difference {
        let empty = BTreeSet::new();
        let mut difference = Difference::default();
        for kind in &self.scope.kinds {
            let Some(after) = now.seen.get(kind) else { continue };
            let before = self.seen.get(kind).unwrap_or(&empty);
            let added = after.difference(before).map(|line| (*kind, line.clone()));
            difference.appeared.extend(added);
            if matches!(kind, Kind::Process | Kind::Socket | Kind::NetworkNamespace) {
                continue;
            }
            let removed = before.difference(after).map(|line| (*kind, line.clone()));
            difference.vanished.extend(removed);
        }
        difference
    }

    /// Looks again until nothing differs, for at most `settle`.
    pub fn compare(&self, view: View<'_>, settle: Duration) -> Result<Difference> {
        let mut last = Difference::default();
        let mut failure = None;
        let settled = wait::until("an unchanged machine", settle, || {
            match Self::take(view, &self.scope) {
                Ok(now) => last = self.difference(&now),
                Err(error) => failure = Some(error),
            }
            (failure.is_some() || last.is_empty()).then_some(())
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(if settled.is_ok() { Difference::default() } else { last }),
        }
    }
}

/// What two looks differ in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    pub appeared: Vec<(Kind, String)>,
    pub vanished: Vec<(Kind, String)>,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.appeared.is_empty() && self.vanished.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (sign, list) in [("+", &self.appeared), ("-", &self.vanished)] {
            for (kind, line) in list {
                writeln!(f, "{sign} {kind}: {line}")?;
            }
        }
        Ok(())
    }
}

/// Fails a test that changes the machine. Make one at the start of the test and `finish` it at the
/// end; dropping it checks as well, unless the test has failed already.
#[derive(Debug)]
pub struct LeakCheck {
    before: Option<Snapshot>,
}

impl LeakCheck {
    /// Looks at the machine as [`Scope::test`] says.
    pub fn new() -> Result<Self> {
        Self::with(&Scope::test())
    }

    pub fn with(scope: &Scope) -> Result<Self> {
        Ok(Self { before: Some(Snapshot::take(View::Machine, scope)?) })
    }

    pub fn finish(mut self) -> Result<()> {
        self.check()
    }

    fn check(&mut self) -> Result<()> {
        let Some(before) = self.before.take() else { return Ok(()) };
        let mut difference = before.compare(View::Machine, SETTLE)?;
        // Others end on this machine meanwhile; only what a test leaves is its fault.
        let ends_by_itself = |kind| matches!(kind, Kind::Cgroup | Kind::Process | Kind::Socket);
        difference.vanished.retain(|(kind, _)| !ends_by_itself(*kind));
        if difference.is_empty() {
            return Ok(());
        }
        Err(Error::Leak { what: "this test".to_owned(), difference: difference.to_string() })
    }
}

impl Drop for LeakCheck {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check().expect("the machine is as it was before the test");
        }
    }
}
