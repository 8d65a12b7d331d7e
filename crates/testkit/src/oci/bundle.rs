//! One container: its bundle with a root file system of busybox, its state directory, and the
//! runtime's commands on it.

use super::call::{Call, LIMIT, Pending, Ran};
use super::{Checked, Failure, Ground, json, read, want};
use crate::command::PROGRAM_FILES;
use crate::error::IoContext;
use crate::{Result, random, wait};
use serde_json::{Value, json};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

const BUSYBOX: &str = "/bin/busybox";

/// The applets that scripts use.
const APPLETS: &str = "sh cat id ls sleep mkdir rmdir touch grep stat readlink pwd true false hostname mount \
    umount tty env echo dd ps head tail cut tr wc ip kill sort uname nproc ionice chmod chown ln rm mv od \
    dnsdomainname printenv stty sed awk seq date mknod realpath sha256sum usleep unshare nsenter ipcs xxd";

/// The capabilities that docker gives.
pub const DOCKER_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A bundle and its container. Dropping it deletes the container, by force, and the files.
#[derive(Debug)]
pub struct Bundle<'a> {
    pub ground: &'a Ground,
    pub id: String,
    pub config: Value,
    dir: PathBuf,
    /// Words between the runtime's program and its command.
    pub global: Vec<String>,
    made: bool,
}

impl<'a> Bundle<'a> {
    /// A container that runs `script` by busybox's shell.
    pub fn new(ground: &'a Ground, script: &str) -> Result<Self> {
        let id = random::name("c");
        let dir = ground.work.join(&id);
        let root = dir.join("rootfs");
        for sub in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            std::fs::create_dir_all(root.join(sub)).context("create", root.display())?;
        }
        let lock = PROGRAM_FILES.write().unwrap_or_else(PoisonError::into_inner);
        std::fs::copy(BUSYBOX, root.join("bin/busybox")).context("copy", BUSYBOX)?;
        drop(lock);
        for name in APPLETS.split_whitespace() {
            symlink("busybox", root.join("bin").join(name)).context("link", name)?;
        }
        let users = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
        super::write(root.join("etc/passwd"), users)?;
        super::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")?;
        let mut config = default_config(script);
        if ground.runtime.cgroups {
            config["linux"]["cgroupsPath"] = json!(format!("/conformance-{id}"));
        }
        Ok(Self { ground, id, config, dir, global: Vec::new(), made: false })
    }

    /// A path in the bundle's directory.
    pub fn path(&self, sub: &str) -> PathBuf {
        self.dir.join(sub)
    }

    /// A path in the root file system, of which nothing is a link.
    pub fn root(&self, sub: &str) -> PathBuf {
        self.dir.join("rootfs").join(sub.trim_start_matches('/'))
    }

    /// A file in the root file system.
    pub fn file(&self, sub: &str, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let path = self.root(sub);
        let _lock = PROGRAM_FILES.write().unwrap_or_else(PoisonError::into_inner);
        super::write(&path, content)?;
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, mode).context("chmod", path.display())
    }

    /// A directory in the root file system.
    pub fn directory(&self, sub: &str) -> Result<()> {
        std::fs::create_dir_all(self.root(sub)).context("create", sub)
    }

    /// The container's cgroup in a hierarchy of v1, as it was asked for.
    pub fn cgroup(&self, controller: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(controller).join(format!("conformance-{}", self.id))
    }

    /// A file of the container's cgroup; skipped where this machine does not have it.
    pub fn limit(&self, controller: &str, file: &str) -> Checked<String> {
        let above = Path::new("/sys/fs/cgroup").join(controller);
        let path = self.cgroup(controller).join(file);
        if !above.is_dir() {
            return super::skip(format!("no cgroup controller {controller} of v1"));
        }
        if self.cgroup(controller).is_dir() && !path.exists() {
            return super::skip(format!("no {file} on this kernel"));
        }
        read(path)
    }

    pub fn mount(&mut self, entry: Value) {
        self.config["mounts"].as_array_mut().expect("the mounts are a list").push(entry);
    }

    /// The mounts without those whose destination is this or below it.
    pub fn unmount(&mut self, destination: &str) {
        let below = format!("{destination}/");
        self.config["mounts"].as_array_mut().expect("the mounts are a list").retain(|mount| {
            let at = mount["destination"].as_str().unwrap_or_default();
            at != destination && !at.starts_with(&below)
        });
    }

    pub fn namespace(&mut self, entry: Value) {
        let kind = entry["type"].clone();
        let list = self.config["linux"]["namespaces"].as_array_mut();
        let list = list.expect("the namespaces are a list");
        list.retain(|namespace| namespace["type"] != kind);
        list.push(entry);
    }

    pub fn without_namespace(&mut self, kind: &str) {
        let list = self.config["linux"]["namespaces"].as_array_mut();
        list.expect("the namespaces are a list").retain(|namespace| namespace["type"] != kind);
    }

    /// A user namespace whose root is `base`, with 65536 ids.
    pub fn user_namespace(&mut self, base: u32) -> Result<()> {
        self.namespace(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": base, "size": 65536}]);
        self.config["linux"]["uidMappings"] = map.clone();
        self.config["linux"]["gidMappings"] = map;
        // A new file system of this kind wants its ids in the namespace.
        self.unmount("/dev/mqueue");
        let up = [self.dir.as_path(), self.ground.work.as_path()];
        for dir in up {
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(dir, mode).context("chmod", dir.display())?;
        }
        Ok(())
    }

    /// Every capability of these names in all sets but the ambient and inheritable.
    pub fn capabilities(&mut self, names: &[&str]) {
        for set in ["bounding", "effective", "permitted"] {
            self.config["process"]["capabilities"][set] = json!(names);
        }
    }

    /// Writes config.json.
    pub fn save(&mut self) -> Result<()> {
        self.made = true;
        super::write(self.path("config.json"), self.config.to_string())
    }

    /// The runtime with these words.
    pub fn call(&self, args: &[&str]) -> Call {
        let mut argv = self.ground.runtime.argv.clone();
        argv.extend(["--root".to_owned(), self.path("state").display().to_string()]);
        argv.extend(self.global.iter().cloned());
        argv.extend(args.iter().map(|&arg| arg.to_owned()));
        Call::new(&self.dir, argv)
    }

    pub fn rt(&self, args: &[&str]) -> Result<Ran> {
        self.call(args).go()
    }

    pub fn ok(&self, args: &[&str]) -> Checked<String> {
        self.rt(args)?.ok()
    }

    pub fn fails(&self, args: &[&str]) -> Checked<String> {
        self.rt(args)?.fails()
    }

    /// `run` in the foreground.
    pub fn run(&mut self) -> Result<Ran> {
        self.save()?;
        self.rt(&["run", &self.id])
    }

    /// `run`, which has to end well; what the container wrote.
    pub fn output(&mut self) -> Checked<String> {
        Ok(self.run()?.ok()?.trim_end().to_owned())
    }

    /// `run`, which has to fail, and to leave nothing; what it says.
    pub fn refused(&mut self) -> Checked<String> {
        let said = self.run()?.fails()?;
        self.nothing_left()?;
        Ok(said)
    }

    /// `create`; the outputs are those of the container as well.
    pub fn create(&mut self) -> Checked<Pending> {
        self.create_with(&[])
    }

    pub fn create_with(&mut self, flags: &[&str]) -> Checked<Pending> {
        self.save()?;
        let mut args = vec!["create"];
        args.extend(flags);
        args.push(&self.id);
        let mut pending = self.call(&args).start()?;
        let ran = pending.wait_here()?;
        want(ran.code == 0, "create", ran.to_string())?;
        Ok(pending)
    }

    /// `create` and `start`.
    pub fn start(&mut self) -> Checked<Pending> {
        let pending = self.create()?;
        self.ok(&["start", &self.id])?;
        Ok(pending)
    }

    /// A shell in the container, by `exec`, which has to end well.
    pub fn exec(&self, script: &str) -> Checked<String> {
        Ok(self.ok(&["exec", &self.id, "sh", "-c", script])?.trim_end().to_owned())
    }

    pub fn state(&self) -> Checked<Value> {
        json(&self.ok(&["state", &self.id])?)
    }

    pub fn status(&self) -> Checked<String> {
        Ok(self.state()?["status"].as_str().unwrap_or_default().to_owned())
    }

    pub fn pid(&self) -> Checked<u32> {
        let state = self.state()?;
        let pid = state["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.ok_or_else(|| Failure::Violated(format!("no pid in the state {state}")))
    }

    /// Waits for this status.
    pub fn until(&self, status: &str) -> Checked {
        let seen = wait::until_ok(&format!("status {status}"), LIMIT, || match self.status() {
            Ok(seen) if seen == status => Ok(()),
            Ok(seen) => Err(seen),
            Err(failure) => Err(failure.to_string()),
        });
        seen.map_err(|error| Failure::Violated(error.to_string()))
    }

    /// Kills it, waits for its end and deletes it.
    pub fn end(&self) -> Checked {
        self.ok(&["kill", &self.id, "KILL"])?;
        self.until("stopped")?;
        self.ok(&["delete", &self.id])?;
        self.nothing_left()
    }

    /// No state, no cgroup.
    pub fn nothing_left(&self) -> Checked {
        let left: Vec<PathBuf> = std::fs::read_dir(self.path("state"))
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        want(left.is_empty(), "left in the state directory", &left)?;
        let cgroups = cgroups_named(&format!("conformance-{}", self.id));
        want(cgroups.is_empty(), "cgroups left", &cgroups)
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        if self.made {
            // What is gone already need not be deleted.
            drop(self.rt(&["delete", "--force", &self.id]));
        }
        for cgroup in cgroups_named(&format!("conformance-{}", self.id)) {
            drop(std::fs::remove_dir(cgroup));
        }
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// The cgroups of this name right below the hierarchies' roots.
pub fn cgroups_named(name: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir("/sys/fs/cgroup") else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path().join(name)).collect();
    found.push(Path::new("/sys/fs/cgroup").join(name));
    // Where no hierarchy is mounted a runtime may have made a plain directory.
    found.retain(|path| rustix::fs::statfs(path).is_ok_and(|fs| CGROUP_MAGIC.contains(&fs.f_type)));
    found
}

/// The kinds of file system that the hierarchies of v1 and v2 are, from magic.h.
const CGROUP_MAGIC: [i64; 2] = [0x27_e0eb, 0x6367_7270];

/// Docker's usual config, without seccomp, with a writable root.
pub fn default_config(script: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", script],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": DOCKER_CAPABILITIES,
                "effective": DOCKER_CAPABILITIES,
                "permitted": DOCKER_CAPABILITIES,
            },
        },
        "root": {"path": "rootfs"},
        "hostname": random::name("host"),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        ],
        "linux": {
            "resources": {"devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "access": "m"},
                {"allow": true, "type": "b", "access": "m"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
                {"allow": true, "type": "c", "major": 5, "minor": 0, "access": "rwm"},
            ]},
            "namespaces": [
                {"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "pid"},
                {"type": "ipc"},
            ],
        },
    })
}
