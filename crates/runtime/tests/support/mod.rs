//! A bundle of busybox, the runtime's command line, and their removal.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::{Value, json};

/// One container's bundle, state root and cgroup parent; all gone when dropped.
pub(crate) struct Bundle {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Value,
    pub(crate) id: String,
    parent: String,
    /// Run the runtime below this command (`unshare -m …`).
    pub(crate) wrap: Option<String>,
}

pub(crate) fn random() -> u32 {
    rand::rng().random_range(1_000_000..9_999_999)
}

/// The example binary that cargo builds beside this test.
pub(crate) fn binary() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().parent().unwrap().join("examples/rt")
}

impl Bundle {
    /// `script` is run by busybox sh.
    pub(crate) fn new(script: &str) -> Bundle {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let root = dir.path().join("rootfs");
        for sub in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            std::fs::create_dir_all(root.join(sub)).unwrap();
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
        std::fs::copy(busybox.expect("busybox-static is installed"), root.join("bin/busybox"))
            .unwrap();
        for name in [
            "sh", "cat", "id", "ls", "sleep", "mkdir", "touch", "grep", "stat", "readlink", "true",
            "hostname", "mount", "tty", "env", "echo", "dd", "ps",
        ] {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        let mut bundle = Bundle {
            id: format!("t{}", random()),
            parent: format!("/gantry-test-{}", random()),
            dir,
            config: Value::Null,
            wrap: None,
        };
        let spec = bundle.rt(&["spec", "-b", bundle.path("").to_str().unwrap()]);
        assert!(spec.status.success(), "{spec:?}");
        let text = std::fs::read(bundle.path("config.json")).unwrap();
        bundle.config = serde_json::from_slice(&text).unwrap();
        bundle.config["process"]["terminal"] = json!(false);
        bundle.config["process"]["args"] = json!(["sh", "-c", script]);
        bundle.config["linux"]["cgroupsPath"] = json!(format!("{}/{}", bundle.parent, bundle.id));
        bundle
    }

    pub(crate) fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    pub(crate) fn cgroup(&self, controller: &str) -> PathBuf {
        PathBuf::from(format!("/sys/fs/cgroup/{controller}{}/{}", self.parent, self.id))
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let state = self.path("state");
        let mut command = match &self.wrap {
            None => Command::new(binary()),
            Some(script) => {
                let mut c = Command::new("unshare");
                c.args(["-m", "sh", "-c", &format!("{script}; exec \"$@\""), "sh"]).arg(binary());
                c
            }
        };
        command.arg("--root").arg(state).args(args).current_dir(self.dir.path());
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn rt(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn save(&self) {
        let mut f = std::fs::File::create(self.path("config.json")).unwrap();
        f.write_all(self.config.to_string().as_bytes()).unwrap();
    }

    /// `run`, in the foreground.
    pub(crate) fn run(&self) -> Output {
        self.save();
        self.rt(&["run", &self.id])
    }

    /// create and start; output goes to the file `out`.
    pub(crate) fn start(&self) {
        self.save();
        let out = std::fs::File::create(self.path("out")).unwrap();
        let status = self
            .command(&["create", &self.id])
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .status()
            .unwrap();
        assert!(status.success(), "{}", self.out());
        self.ok(&["start", &self.id]);
    }

    pub(crate) fn out(&self) -> String {
        std::fs::read_to_string(self.path("out")).unwrap()
    }

    /// Succeeds; its stdout.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let o = self.rt(args);
        assert!(o.status.success(), "{args:?}: {}", text(&o));
        String::from_utf8(o.stdout).unwrap()
    }

    /// Fails; its stderr.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let o = self.rt(args);
        assert!(!o.status.success(), "{args:?} succeeded: {}", text(&o));
        String::from_utf8(o.stderr).unwrap()
    }

    pub(crate) fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).unwrap()
    }

    pub(crate) fn until(&self, status: &str) {
        wait(|| self.state()["status"] == status, status);
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let o = self.rt(&["delete", "-f", &self.id]);
        if !std::thread::panicking() {
            assert!(o.status.success(), "{}", text(&o));
        }
        let Ok(mounts) = std::fs::read_dir("/sys/fs/cgroup") else { return };
        for mount in mounts.flatten() {
            let parent = PathBuf::from(format!("{}{}", mount.path().display(), self.parent));
            let left = parent.join(&self.id).exists();
            drop(std::fs::remove_dir(parent.join(&self.id)));
            drop(std::fs::remove_dir(parent));
            assert!(!left || std::thread::panicking(), "a cgroup was left behind");
        }
    }
}

pub(crate) fn text(o: &Output) -> String {
    format!(
        "{} {}{}",
        o.status,
        String::from_utf8_lossy(&o.stdout),
        String::from_utf8_lossy(&o.stderr)
    )
}

/// Waits for a condition, not for a time.
pub(crate) fn wait(mut condition: impl FnMut() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
