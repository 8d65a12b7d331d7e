//! One look at each kind of thing. Nothing here changes anything: no program is run that would
//! load a table or a module.

use super::{Kind, Scope, View};
use crate::command::Cmd;
use crate::error::IoContext;
use crate::sandbox::{MARK, NAME_PREFIX};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

type Lines = BTreeSet<String>;

pub(super) fn look(view: View<'_>, kind: Kind, scope: &Scope) -> Result<Option<Lines>> {
    match kind {
        Kind::Mount => mounts(view).map(Some),
        Kind::Cgroup => cgroups(view).map(Some),
        Kind::NetworkNamespace => network_namespaces(view).map(Some),
        Kind::Link => links(view).map(Some),
        Kind::Route => routes(view).map(Some),
        Kind::Nftables => nftables(view),
        Kind::Iptables => iptables(view),
        Kind::Socket => sockets(view).map(Some),
        Kind::Process => processes(view, scope).map(Some),
        Kind::Sysctl => sysctls(view).map(Some),
        Kind::File => files(view, &scope.dirs).map(Some),
    }
}

impl View<'_> {
    /// /proc of a process in the view's mount and network namespaces.
    fn proc(self, file: &str) -> PathBuf {
        match self {
            Self::Machine => Path::new("/proc/self").join(file),
            Self::Sandbox(sandbox) => {
                Path::new("/proc").join(sandbox.init_pid().to_string()).join(file)
            }
        }
    }

    fn root(self, path: &Path) -> PathBuf {
        match self {
            Self::Machine => path.to_path_buf(),
            Self::Sandbox(sandbox) => sandbox.path(path),
        }
    }

    fn command(self, program: &str, args: &[&str]) -> Cmd {
        match self {
            Self::Machine => Cmd::host(program, args.iter().copied()),
            Self::Sandbox(sandbox) => sandbox.command(program, args.iter().copied()),
        }
    }
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    std::fs::read_to_string(path).context("read", path.display())
}

/// Mount point, root, type and source; not the ids, which differ each time.
fn mounts(view: View<'_>) -> Result<Lines> {
    let text = read(view.proc("mountinfo"))?;
    let mut lines = Lines::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = left.split(' ').collect();
        let (Some(root), Some(point)) = (fields.get(3), fields.get(4)) else { continue };
        let mut right = right.split(' ');
        let fs_type = right.next().unwrap_or_default();
        let source = right.next().unwrap_or_default();
        // The same mount twice on one point is one more leak.
        let mut text = format!("{point} {fs_type} {source} {root}");
        while lines.contains(&text) {
            text.push_str(" (once more)");
        }
        lines.insert(text);
    }
    Ok(lines)
}

fn cgroups(view: View<'_>) -> Result<Lines> {
    let roots = match view {
        View::Sandbox(sandbox) => sandbox.cgroups(),
        View::Machine => read("/proc/self/mountinfo")?
            .lines()
            .filter(|line| line.contains(" - cgroup"))
            .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
            .collect(),
    };
    let mut lines = Lines::new();
    for root in roots {
        walk(&root, &mut |path, is_dir| {
            if is_dir {
                lines.insert(path.display().to_string());
            }
        });
    }
    Ok(lines)
}

/// Calls back for all below `dir`. What vanishes during the walk is passed over; symbolic links are
/// not followed.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path, bool)) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let is_dir = entry.file_type().is_ok_and(|file_type| file_type.is_dir());
        visit(&entry.path(), is_dir);
        if is_dir {
            walk(&entry.path(), visit);
        }
    }
}

/// A process as the machine sees it.
struct Process {
    pid: u32,
    /// Its memory is gone: it ends, or waits to be reaped.
    dead: bool,
    name: String,
    start_ticks: String,
    dir: PathBuf,
}

/// User processes; kernel threads, which have no executable and are children of kthreadd, are not.
fn all_processes() -> Result<Vec<Process>> {
    let entries = std::fs::read_dir("/proc").context("list", "/proc")?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end at any moment: then there is nothing to say about it.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let name = head.split_once('(').map_or("", |(_, name)| name).to_owned();
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let (Some(parent), Some(start)) = (fields.get(1), fields.get(19)) else { continue };
        if *parent != "2" && pid != 2 {
            let command_line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(Process {
                pid,
                dead: command_line.is_empty(),
                name,
                start_ticks: (*start).to_owned(),
                dir: entry.path(),
            });
        }
    }
    Ok(found)
}

fn namespace_of(process_dir: &Path, name: &str) -> Option<String> {
    let link = std::fs::read_link(process_dir.join("ns").join(name)).ok()?;
    Some(link.display().to_string())
}

fn mark_of(process_dir: &Path) -> Option<String> {
    let environ = std::fs::read(process_dir.join("environ")).ok()?;
    environ.split(|byte| *byte == 0).find_map(|entry| {
        let entry = std::str::from_utf8(entry).ok()?;
        entry.strip_prefix(MARK)?.strip_prefix('=').map(str::to_owned)
    })
}

/// The sandbox in whose cgroup a process is, for those that an engine gave another environment.
fn sandbox_by_cgroup(process_dir: &Path) -> Option<String> {
    let groups = std::fs::read_to_string(process_dir.join("cgroup")).ok()?;
    let parts = groups.split(['/', '\n']);
    parts.filter(|part| part.starts_with(NAME_PREFIX)).map(str::to_owned).next()
}

/// Processes that were started in the sandbox `id` and still run.
pub(crate) fn marked_processes(id: &str) -> Vec<String> {
    let Ok(processes) = all_processes() else {
        return vec!["processes: /proc cannot be listed".to_owned()];
    };
    processes
        .iter()
        .filter(|process| mark_of(&process.dir).is_some_and(|mark| mark == id))
        .map(|process| format!("process {} {}", process.pid, process.name))
        .collect()
}

/// Those that processes live in, and those that are bound to a file; with who is there.
fn network_namespaces(view: View<'_>) -> Result<Lines> {
    let own = std::fs::read_link(view.proc("ns/net")).context("read", "network namespace")?;
    let own = own.display().to_string();
    let pid_namespace = match view {
        View::Machine => None,
        View::Sandbox(_) => namespace_of(&view.proc(""), "pid"),
    };
    let mut lines = Lines::new();
    let mut known = BTreeSet::from([own]);
    for process in all_processes()? {
        if pid_namespace.is_some() && namespace_of(&process.dir, "pid") != pid_namespace {
            continue;
        }
        let Some(namespace) = namespace_of(&process.dir, "net") else { continue };
        if known.insert(namespace.clone()) {
            lines.insert(format!("{namespace} of process {}", process.name));
        }
    }
    for line in read(view.proc("mountinfo"))?.lines().filter(|line| line.contains(" - nsfs ")) {
        let fields: Vec<&str> = line.split(' ').collect();
        if let (Some(root), Some(point)) = (fields.get(3), fields.get(4))
            && root.starts_with("net:")
        {
            lines.insert(format!("{root} bound to {point}"));
        }
    }
    Ok(lines)
}

fn links(view: View<'_>) -> Result<Lines> {
    let text = read(view.proc("net/dev"))?;
    Ok(text
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':').map(|(name, _)| name.trim().to_owned()))
        .collect())
}

fn routes(view: View<'_>) -> Result<Lines> {
    let text = read(view.proc("net/route"))?;
    Ok(text
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect())
}

/// The rule set without its counters; `None` where the tool is not installed (yet).
fn nftables(view: View<'_>) -> Result<Option<Lines>> {
    if !Path::new("/usr/sbin/nft").exists() {
        return Ok(None);
    }
    let output = view.command("/usr/sbin/nft", &["--stateless", "list", "ruleset"]).ok()?;
    Ok(Some(paths_of_blocks(&output.text())))
}

/// `table ip x { chain y { rule } }` as lines "table ip x / chain y / rule", so that a rule is seen
/// with its place.
fn paths_of_blocks(text: &str) -> Lines {
    let mut lines = Lines::new();
    let mut place: Vec<String> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(head) = line.strip_suffix('{') {
            place.push(head.trim().to_owned());
            lines.insert(place.join(" / "));
        } else if line == "}" {
            place.pop();
        } else if !line.is_empty() {
            let mut text = format!("{} / {line}", place.join(" / "));
            while lines.contains(&text) {
                text.push_str(" (once more)");
            }
            lines.insert(text);
        }
    }
    lines
}

/// Legacy tables, only where they are loaded already: listing them would load them.
fn iptables(view: View<'_>) -> Result<Option<Lines>> {
    let mut lines = Lines::new();
    for (names, program) in [
        ("net/ip_tables_names", "/usr/sbin/iptables-legacy-save"),
        ("net/ip6_tables_names", "/usr/sbin/ip6tables-legacy-save"),
    ] {
        let Ok(tables) = std::fs::read_to_string(view.proc(names)) else { continue };
        if tables.trim().is_empty() {
            continue;
        }
        if !Path::new(program).exists() {
            return Ok(None);
        }
        let output = view.command(program, &[]).ok()?;
        let mut table = String::new();
        for line in output.text().lines().filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('*') {
                table = format!("{names} {name}");
            } else if line != "COMMIT" {
                lines.insert(format!("{table} {}", without_counters(line)));
            }
        }
    }
    Ok(Some(lines))
}

/// `:FORWARD DROP [12:345]` without the brackets.
fn without_counters(line: &str) -> &str {
    line.split_once(" [").map_or(line, |(head, _)| head)
}

/// Listening tcp, bound udp, and listening unix sockets that have a path or an abstract name.
fn sockets(view: View<'_>) -> Result<Lines> {
    const LISTEN: &str = "0A";
    const UDP_UNCONNECTED: &str = "07";
    let mut lines = Lines::new();
    for (file, state) in
        [("tcp", LISTEN), ("tcp6", LISTEN), ("udp", UDP_UNCONNECTED), ("udp6", UDP_UNCONNECTED)]
    {
        let Ok(text) = std::fs::read_to_string(view.proc(&format!("net/{file}"))) else { continue };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let (Some(local), Some(&is)) = (fields.get(1), fields.get(3))
                && is == state
            {
                lines.insert(format!("{file} {}", shown_address(local)?));
            }
        }
    }
    const ACCEPTS: &str = "00010000";
    for line in read(view.proc("net/unix"))?.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let (Some(&flags), Some(path)) = (fields.get(3), fields.get(7))
            && flags == ACCEPTS
        {
            lines.insert(format!("unix {path}"));
        }
    }
    Ok(lines)
}

/// `0100007F:1F90` as `127.0.0.1:8080`; IPv6 stays in hexadecimal but for its port.
fn shown_address(local: &str) -> Result<String> {
    let bad = || Error::Parse {
        what: "/proc/net".to_owned(),
        wanted: "an address",
        found: local.to_owned(),
    };
    let (address, port) = local.split_once(':').ok_or_else(bad)?;
    let port = u16::from_str_radix(port, 16).map_err(|_| bad())?;
    if address.len() != 8 {
        return Ok(format!("[{address}]:{port}"));
    }
    let raw = u32::from_str_radix(address, 16).map_err(|_| bad())?;
    Ok(format!("{}:{port}", std::net::Ipv4Addr::from(raw.swap_bytes())))
}

fn processes(view: View<'_>, scope: &Scope) -> Result<Lines> {
    let mut lines = Lines::new();
    let inside = match view {
        View::Machine => None,
        View::Sandbox(_) => namespace_of(&view.proc(""), "pid"),
    };
    for process in all_processes()? {
        let mark = mark_of(&process.dir);
        let counts = match (&view, &inside) {
            (View::Sandbox(sandbox), _) => {
                // Containers have pid namespaces of their own: they are known by their cgroup.
                namespace_of(&process.dir, "pid") == inside
                    || std::fs::read_to_string(process.dir.join("cgroup"))
                        .is_ok_and(|groups| groups.contains(sandbox.id()))
            }
            (View::Machine, _) if process.dead => false, // reaping is its parent's business
            (View::Machine, _) => {
                mark.is_some()
                    || scope.programs.is_empty()
                    || scope.programs.contains(&process.name)
            }
        };
        // The commands by which we look ourselves come and go.
        if counts && process.pid != std::process::id() && process.name != "nsenter" {
            let owner = mark.or_else(|| sandbox_by_cgroup(&process.dir));
            let mark = owner.map_or(String::new(), |mark| format!(" of {mark}"));
            let dead = if process.dead { " (dead)" } else { "" };
            let (pid, name, start) = (process.pid, process.name, process.start_ticks);
            lines.insert(format!("{pid} {name}{dead} started at tick {start}{mark}"));
        }
    }
    Ok(lines)
}

/// Settings that engines change in the network namespace they run in.
fn sysctls(view: View<'_>) -> Result<Lines> {
    const NAMES: [&str; 5] = [
        "net/ipv4/ip_forward",
        "net/ipv4/conf/all/forwarding",
        "net/ipv4/conf/all/route_localnet",
        "net/ipv6/conf/all/forwarding",
        "net/bridge/bridge-nf-call-iptables",
    ];
    let mut lines = Lines::new();
    for name in NAMES {
        // /proc/sys shows the network namespace of who opens it: in a sandbox, of a command there.
        let file = format!("/proc/sys/{name}");
        let value = match view {
            View::Machine => std::fs::read_to_string(&file).ok(),
            View::Sandbox(_) => {
                let output = view.command("cat", &[&file]).output()?;
                output.status.success().then(|| output.text())
            }
        };
        if let Some(value) = value {
            lines.insert(format!("{name} = {}", value.trim()));
        }
    }
    Ok(lines)
}

/// Paths, with the size of what lies in /etc, where a change counts as much as a new file. No times.
fn files(view: View<'_>, dirs: &[PathBuf]) -> Result<Lines> {
    let mut lines = Lines::new();
    for dir in dirs {
        let top = view.root(dir);
        walk(&top, &mut |path, is_dir| {
            let Ok(below) = path.strip_prefix(&top) else { return };
            let shown = dir.join(below);
            let mut line = shown.display().to_string();
            if is_dir {
                line.push('/');
            } else if shown.starts_with("/etc") {
                let size = std::fs::symlink_metadata(path).map_or(0, |meta| meta.size());
                line.push_str(&format!(" ({size} bytes)"));
            }
            lines.insert(line);
        });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_shown_as_people_write_them() {
        assert_eq!(shown_address("0100007F:1F90").unwrap(), "127.0.0.1:8080");
        assert!(shown_address("0100007F").is_err());
    }

    #[test]
    fn rules_are_seen_with_their_place() {
        let text = "table ip nat {\n\tchain post {\n\t\ttype nat hook postrouting priority 100;\n\t\tmasquerade\n\t\tmasquerade\n\t}\n}\n";
        let lines = paths_of_blocks(text);
        assert!(lines.contains("table ip nat / chain post / masquerade"));
        assert!(lines.contains("table ip nat / chain post / masquerade (once more)"));
        assert_eq!(lines.len(), 5);
        assert_eq!(without_counters(":FORWARD DROP [12:345]"), ":FORWARD DROP");
    }
}
