//! Which cgroup hierarchies this host has, and where the calling process is in them.

use std::path::{Path, PathBuf};

use rustix::fs::statfs;

use crate::error::{Context, Result};
use crate::procfs::ProcFs;

const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
/// Where cgroups are mounted.
pub(super) const BASE: &str = "/sys/fs/cgroup";

/// The host's hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    None,
    V2 { mount: PathBuf, own: String },
    V1 { hierarchies: Vec<Hierarchy>, unified: Option<(PathBuf, String)> },
}

/// One v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) name: String,
    pub(crate) controllers: Vec<String>,
    pub(crate) mount: PathBuf,
    /// The caller's own cgroup, below the mount's root.
    pub(crate) own: String,
}

impl Host {
    pub(crate) fn detect(proc: &ProcFs) -> Result<Host> {
        let stat = match statfs(BASE) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => return Ok(Host::None),
            Err(e) => return Err(e).ctx("statfs", || BASE),
        };
        let own = proc.read("self/cgroup")?;
        if u64::try_from(stat.f_type) == Ok(CGROUP2_SUPER_MAGIC) {
            return Ok(Host::V2 { mount: BASE.into(), own: own_path(&own, &[]) });
        }
        Ok(parse(&proc.read("self/mountinfo")?, &own))
    }
}

/// A directory of the hierarchy: from its root, or below the caller's own.
pub(super) fn below(mount: &Path, own: &Path, absolute: bool) -> PathBuf {
    if absolute { mount.to_owned() } else { mount.join(own.strip_prefix("/").unwrap_or(own)) }
}

fn parse(mountinfo: &str, own: &str) -> Host {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    let mut unified = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let kind = right.next().unwrap_or_default();
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        let options = right.nth(1).unwrap_or_default();
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next().unwrap_or("/"), left.next().unwrap_or_default());
        let mount = PathBuf::from(point);
        let name = match mount.file_name() {
            Some(n) => n.to_string_lossy().into_owned(),
            None => continue,
        };
        if kind == "cgroup2" {
            unified.get_or_insert((mount, relative(&own_path(own, &[]), root)));
            continue;
        }
        let controllers = controllers(options);
        // The same hierarchy mounted twice counts once.
        if hierarchies.iter().any(|h| h.controllers == controllers) || controllers.is_empty() {
            continue;
        }
        let own = relative(&own_path(own, &controllers), root);
        hierarchies.push(Hierarchy { name, controllers, mount, own });
    }
    if hierarchies.is_empty() && unified.is_none() {
        return Host::None;
    }
    Host::V1 { hierarchies, unified }
}

fn controllers(options: &str) -> Vec<String> {
    const NOT_CONTROLLERS: [&str; 6] =
        ["rw", "ro", "xattr", "noprefix", "clone_children", "favordynmods"];
    options
        .split(',')
        .filter(|o| !NOT_CONTROLLERS.contains(o) && !o.starts_with("release_agent"))
        .filter(|o| !o.contains('=') || o.starts_with("name="))
        .map(str::to_owned)
        .collect()
}

/// The path of the line of /proc/self/cgroup for these controllers; none: the v2 line.
fn own_path(text: &str, controllers: &[String]) -> String {
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, names, path) = (parts.next(), parts.next(), parts.next());
        let (Some(names), Some(path)) = (names, path) else { continue };
        let matches = match controllers.first() {
            None => names.is_empty(),
            Some(first) => names.split(',').any(|n| n == first),
        };
        if matches {
            return path.to_owned();
        }
    }
    "/".to_owned()
}

/// A path as it is under a mount of a sub-tree (a container that sees only its own part).
fn relative(path: &str, root: &str) -> String {
    if root == "/" {
        return path.to_owned();
    }
    match path.strip_prefix(root) {
        Some("") => "/".to_owned(),
        Some(rest) => rest.to_owned(),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separate_and_shared_hierarchies_and_the_hybrid() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            33 31 0:30 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,release_agent=/x,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "3:cpuacct,cpu:/a\n2:memory:/docker/x/sub\n1:name=systemd:/s\n0::/u\n";
        let Host::V1 { hierarchies, unified } = parse(mountinfo, own) else { panic!("not v1") };
        let got: Vec<_> = hierarchies.iter().map(|h| (h.name.as_str(), h.own.as_str())).collect();
        assert_eq!(got, [("cpu,cpuacct", "/a"), ("memory", "/sub"), ("systemd", "/s")]);
        assert_eq!(hierarchies[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(hierarchies[2].controllers, ["name=systemd"]);
        assert_eq!(unified, Some(("/sys/fs/cgroup/unified".into(), "/u".to_owned())));
        let at = below(Path::new("/m"), Path::new("/a/b"), false);
        assert_eq!(at, Path::new("/m/a/b"));
        assert_eq!(below(Path::new("/m"), Path::new("/a/b"), true), Path::new("/m"));
    }
}
