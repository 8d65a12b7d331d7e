//! `linux.intelRdt`: cache and memory bandwidth classes, through the resctrl file system.
//!
//! A container is in the class that `closID` names, or in one of its own, named by its id. What this
//! runtime has made it removes again: the class if it was not there, and the monitoring group.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::procfs::ProcFs;
use crate::spec::IntelRdt;

/// Names in the file system's root that are no classes.
const RESERVED: [&str; 3] = ["info", "mon_data", "mon_groups"];

/// A container's class; part of the state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rdt {
    class: PathBuf,
    /// Made by this runtime, or `planned` to be.
    own: bool,
    monitor: Option<PathBuf>,
    /// From [`Rdt::plan`] until [`Rdt::make`]: what is there may be another's.
    #[serde(default)]
    planned: bool,
}

/// Where the host has resctrl mounted.
///
/// # Errors
/// [`Error::Config`] with `field` if it has not.
pub(crate) fn root(proc: &ProcFs, field: &'static str) -> Result<PathBuf> {
    mount_point(&proc.read("self/mountinfo")?).ok_or_else(|| {
        Error::config(
            field,
            "the host has no resctrl file system (a processor without RDT, or not mounted: mount -t resctrl resctrl /sys/fs/resctrl)",
        )
    })
}

fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?;
        (kind == "resctrl").then(|| left.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

impl Rdt {
    /// Finds out which class it is, and what is to be made; makes nothing.
    pub(crate) fn plan(root: &Path, id: &str, spec: &IntelRdt) -> Result<Rdt> {
        let name = if spec.clos_id.is_empty() { id } else { &spec.clos_id };
        let class = match name {
            "/" => root.to_owned(),
            name if name.contains('/')
                || [".", ".."].contains(&name)
                || RESERVED.contains(&name) =>
            {
                return Err(Error::config(
                    "linux.intelRdt.closID",
                    format!("{name:?} is no name of a class"),
                ));
            }
            name => root.join(name),
        };
        let there = class.exists();
        if !there && schemata(spec).is_empty() && !spec.clos_id.is_empty() {
            return Err(Error::config(
                "linux.intelRdt.closID",
                format!("{} does not exist, and no schemata say how to make it", class.display()),
            ));
        }
        let monitor = class.join("mon_groups").join(id);
        if spec.enable_monitoring && monitor.exists() {
            let problem = format!("{} is there already, another's", monitor.display());
            return Err(Error::config("linux.intelRdt.enableMonitoring", problem));
        }
        let monitor = spec.enable_monitoring.then_some(monitor);
        Ok(Rdt { class, own: !there, monitor, planned: true })
    }

    /// Makes what is missing, and sets what the spec says of the class. What others have made in the
    /// meantime is theirs, and not removed by [`Rdt::delete`].
    pub(crate) fn make(&mut self, spec: &IntelRdt) -> Result<()> {
        let (own, monitor) = (std::mem::take(&mut self.own), self.monitor.take());
        self.planned = false;
        self.own = own && make(&self.class)?;
        self.write_schemata(&schemata(spec))?;
        if let Some(dir) = monitor {
            if !make(&dir)? {
                let problem = format!("{} is there already, another's", dir.display());
                return Err(Error::config("linux.intelRdt.enableMonitoring", problem));
            }
            self.monitor = Some(dir);
        }
        Ok(())
    }

    fn write_schemata(&self, lines: &str) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        write(&self.class.join("schemata"), lines)
    }

    /// Puts a process into the class; its children follow.
    pub(crate) fn join(&self, pid: i32) -> Result<()> {
        write(&self.class.join("tasks"), &pid.to_string())?;
        match &self.monitor {
            Some(dir) => write(&dir.join("tasks"), &pid.to_string()),
            None => Ok(()),
        }
    }

    /// Changes the class of a container that runs.
    pub(crate) fn update(&self, spec: &IntelRdt) -> Result<()> {
        self.write_schemata(&schemata(spec))
    }

    /// Removes what was made for the container; of what was only planned, that in which nothing runs.
    /// What is gone already is fine.
    pub(crate) fn delete(&self) -> Result<()> {
        let own = self.own.then_some(&self.class);
        for dir in self.monitor.iter().chain(own) {
            if self.planned && has_tasks(dir)? {
                continue;
            }
            match rustix::fs::rmdir(dir) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e).ctx("rmdir", || dir.display().to_string()),
            }
        }
        Ok(())
    }
}

/// The kernel lets a class go that has tasks, and moves them to the default one.
fn has_tasks(dir: &Path) -> Result<bool> {
    let path = dir.join("tasks");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let read = rustix::fs::open(&path, flags, Mode::empty())
        .and_then(|fd| rustix::io::read(&fd, &mut [0u8; 1]));
    match read {
        Ok(n) => Ok(n > 0),
        Err(Errno::NOENT | Errno::NODEV) => Ok(false),
        Err(e) => Err(e).ctx("read", || path.display().to_string()),
    }
}

/// Lines for the schemata file.
fn schemata(spec: &IntelRdt) -> String {
    let older = [spec.l3_cache_schema.as_str(), spec.mem_bw_schema.as_str()];
    let all =
        older.into_iter().flat_map(str::lines).chain(spec.schemata.iter().map(String::as_str));
    all.filter(|l| !l.trim().is_empty()).map(|l| format!("{l}\n")).collect()
}

/// Whether the directory was made; `false`: it is there.
fn make(dir: &Path) -> Result<bool> {
    match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(false),
        Err(Errno::NOSPC) => Err(Error::config(
            "linux.intelRdt",
            format!("{}: the processor has no class (or monitor) left", dir.display()),
        )),
        other => other.ctx("mkdir", || dir.display().to_string()).map(|()| true),
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .and_then(|fd| rustix::io::write(&fd, value.as_bytes()))
        .map(drop)
        .ctx("write linux.intelRdt", || format!("{value:?} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A directory in resctrl's form; the kernel would make the files of new ones.
    fn class(dir: &Path) {
        std::fs::create_dir_all(dir.join("mon_groups")).unwrap();
        for file in ["tasks", "schemata"] {
            std::fs::write(dir.join(file), "").unwrap();
        }
    }

    #[test]
    fn a_class_that_is_there_is_joined_and_stays() {
        let root = tempfile::tempdir().unwrap();
        class(&root.path().join("gold"));
        let spec = IntelRdt {
            clos_id: "gold".into(),
            l3_cache_schema: "L3:0=f;1=f".into(),
            schemata: vec!["MB:0=50".into()],
            ..IntelRdt::default()
        };
        let mut rdt = Rdt::plan(root.path(), "c1", &spec).unwrap();
        rdt.make(&spec).unwrap();
        let read =
            |file: &str| std::fs::read_to_string(root.path().join("gold").join(file)).unwrap();
        assert_eq!(read("schemata"), "L3:0=f;1=f\nMB:0=50\n");
        rdt.join(42).unwrap();
        assert_eq!(read("tasks"), "42");
        rdt.update(&IntelRdt { mem_bw_schema: "MB:0=20".into(), ..IntelRdt::default() }).unwrap();
        assert_eq!(read("schemata"), "MB:0=20\n");
        rdt.delete().unwrap();
        assert!(root.path().join("gold").exists());
    }

    #[test]
    fn what_cannot_be_is_refused_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let create = |clos: &str| {
            let spec = IntelRdt { clos_id: clos.into(), ..IntelRdt::default() };
            Rdt::plan(root.path(), "c1", &spec)
        };
        for bad in ["info", "a/b", ".."] {
            assert!(create(bad).unwrap_err().chain().contains("no name of a class"), "{bad}");
        }
        assert!(create("absent").unwrap_err().chain().contains("does not exist"));
        // A directory without resctrl's files: the write fails, and the directory goes again.
        let spec = IntelRdt { schemata: vec!["L3:0=1".into()], ..IntelRdt::default() };
        let mut rdt = Rdt::plan(root.path(), "c1", &spec).unwrap();
        assert!(rdt.make(&spec).is_err());
        rdt.delete().unwrap();
        assert!(!root.path().join("c1").exists());
        // Without schemata a class of its own is made, with the machine's defaults.
        let mut rdt = Rdt::plan(root.path(), "c1", &IntelRdt::default()).unwrap();
        rdt.make(&IntelRdt::default()).unwrap();
        assert!(root.path().join("c1").exists());
        rdt.delete().unwrap();
        assert!(!root.path().join("c1").exists());
    }

    #[test]
    fn what_others_make_meanwhile_stays() {
        let root = tempfile::tempdir().unwrap();
        let spec = IntelRdt { enable_monitoring: true, ..IntelRdt::default() };
        let plan = || Rdt::plan(root.path(), "c1", &spec).unwrap();
        let (mut late, mut later) = (plan(), plan());
        class(&root.path().join("c1"));
        late.make(&spec).unwrap();
        let e = later.make(&spec).unwrap_err().chain();
        assert!(e.contains("enableMonitoring") && e.contains("another's"), "{e}");
        later.delete().unwrap();
        assert!(root.path().join("c1/mon_groups/c1").exists());
        late.delete().unwrap();
        assert!(!root.path().join("c1/mon_groups/c1").exists());
        assert!(root.path().join("c1/tasks").exists());
    }

    #[test]
    fn what_was_only_planned_goes_if_nothing_runs_there() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("c1");
        let planned = Rdt::plan(root.path(), "c1", &IntelRdt::default()).unwrap();
        // As a state file gives it back, after a create that was killed.
        let planned: Rdt = serde_json::from_str(&serde_json::to_string(&planned).unwrap()).unwrap();
        class(&dir);
        std::fs::write(dir.join("tasks"), "42\n").unwrap();
        planned.delete().unwrap();
        assert!(dir.exists());
        std::fs::remove_dir_all(&dir).unwrap();
        planned.delete().unwrap();
        std::fs::create_dir(&dir).unwrap();
        planned.delete().unwrap();
        assert!(!dir.exists());
        // One that could not be made is not removed, whoever makes it then.
        let spec = IntelRdt::default();
        let mut refused = Rdt::plan(&root.path().join("absent"), "c1", &spec).unwrap();
        assert!(refused.make(&spec).is_err());
        std::fs::create_dir_all(root.path().join("absent/c1")).unwrap();
        refused.delete().unwrap();
        assert!(root.path().join("absent/c1").exists());
    }

    #[test]
    fn where_it_is_mounted() {
        let text = "30 23 0:28 / /sys rw - sysfs sysfs rw\n40 30 0:40 / /sys/fs/resctrl rw shared:1 - resctrl resctrl rw\n";
        assert_eq!(mount_point(text), Some("/sys/fs/resctrl".into()));
        assert_eq!(mount_point("30 23 0:28 / /sys rw - sysfs sysfs rw\n"), None);
    }
}
