//! The daemon and the host's cgroup hierarchies: whose it is in, and the parent of all containers.

use std::path::{Path, PathBuf};

/// Mount points of hierarchies (proc_pid_mountinfo(5)).
fn mounts() -> Vec<PathBuf> {
    parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn parse(mountinfo: &str) -> Vec<PathBuf> {
    let one = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        let point = before.split(' ').nth(4)?;
        (kind == "cgroup" || kind == "cgroup2").then(|| point.into())
    };
    mountinfo.lines().filter_map(one).collect()
}

/// Moves this process out of the cgroups of whoever started it, into the topmost.
pub(crate) fn leave() {
    for dir in mounts() {
        // Where it may not, it stays where it was: nothing else depends on it.
        drop(std::fs::write(dir.join("cgroup.procs"), std::process::id().to_string()));
    }
}

/// Removes the parent of all containers where it has no children and no processes. The kernel
/// refuses to remove any other.
pub(crate) fn remove_empty(parent: &Path) {
    let relative = parent.strip_prefix("/").unwrap_or(parent);
    for dir in mounts() {
        drop(std::fs::remove_dir(dir.join(relative)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found() {
        let text = "24 1 0:22 / /proc rw - proc proc rw\n\
            30 25 0:26 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n\
            31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\nrubbish\n";
        let wanted = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(parse(text), wanted);
    }
}
