//! An engine in a sandbox with one image in it, and the look at what is left of it in the end.
//!
//! With `E2E_ENGINE=bookworm` or `trixie` in the environment the engine is that Debian's dockerd: what
//! is asserted here of ours is seen to hold for it, which proves the tests. (It leaves more behind,
//! does not outlive itself and has another socket for ctr, so that not all tests can pass on it.)

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use testkit::command::{Cmd, DEFAULT_TIMEOUT};
use testkit::engine::Daemon;
use testkit::fixtures::busybox::Busybox;
use testkit::leak::{Kind, LeakCheck, SETTLE, Scope, View};
use testkit::peer::{self, Release};
use testkit::sandbox::{Net, Options, Sandbox};
use testkit::{Result, source_dir, wait};

/// What a test stands on.
pub(crate) struct Ground<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) daemon: Daemon<'a>,
    /// Loaded already.
    pub(crate) image: Busybox,
}

/// Runs `test` on a new engine, and then looks for what it left.
pub(crate) fn on_engine(net: Net, test: impl FnOnce(&mut Ground<'_>)) {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::with(&Options { net, ..Options::default() }).unwrap();
    in_sandbox(&sandbox, test);
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

/// Like [`on_engine`], in a sandbox that the test has prepared.
pub(crate) fn in_sandbox(sandbox: &Sandbox, test: impl FnOnce(&mut Ground<'_>)) {
    let before = sandbox.snapshot(&left_behind()).unwrap();
    let daemon = engine(sandbox);
    let image = Busybox::new().unwrap();
    let mut ground = Ground { sandbox, daemon, image };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let loaded = ground.daemon.docker(["load"]).stdin(ground.image.docker_archive()).ok();
        let loaded = loaded.unwrap().text();
        assert!(loaded.contains(&ground.image.reference), "{loaded}");
        test(&mut ground);
        ground.remove_containers();
        ground.daemon.stop().unwrap();
    }));
    if let Err(cause) = outcome {
        eprintln!("the daemon's log:\n{}", tail(&ground.daemon.log(), 60));
        resume_unwind(cause);
    }
    let mut left = before.compare(View::Sandbox(sandbox), SETTLE).unwrap();
    // The empty parents of the containers' cgroups.
    left.appeared.retain(|(kind, what)| {
        *kind != Kind::Cgroup || !(what.ends_with("/gantry") || what.ends_with("/moby"))
    });
    if !left.is_empty() && !foreign() {
        eprintln!("the daemon's log:\n{}", tail(&ground.daemon.log(), 60));
        panic!("the engine has left in its sandbox:\n{left}");
    }
}

/// The engine is not ours, and need not do what only ours does.
pub(crate) fn foreign() -> bool {
    std::env::var_os("E2E_ENGINE").is_some()
}

fn engine(sandbox: &Sandbox) -> Daemon<'_> {
    let release = match std::env::var("E2E_ENGINE").as_deref() {
        Ok("bookworm") => Release::Bookworm,
        Ok("trixie") => Release::Trixie,
        _ => return Daemon::gantry(sandbox, &[]).unwrap(),
    };
    peer::dockerd(sandbox, release, &serde_json::json!({ "live-restore": true })).unwrap()
}

/// An engine without containers and without a daemon may leave its files, and forwarding switched on,
/// as dockerd does. Its bridge and its rules, those in other firewalls as well, go with it.
fn left_behind() -> Scope {
    Scope::sandbox().without(Kind::File).without(Kind::Sysctl)
}

impl Ground<'_> {
    /// The image's reference.
    pub(crate) fn reference(&self) -> &str {
        &self.image.reference
    }

    /// The docker CLI, which has to succeed; its standard output.
    pub(crate) fn docker(&self, args: &[&str]) -> String {
        self.daemon.docker(args.iter().copied()).ok().unwrap().text()
    }

    /// A shell with `DOCKER_HOST` set, which has to succeed; its standard output.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.shell(script).ok().unwrap().text()
    }

    /// A shell with `DOCKER_HOST` set and the image's name in `$I`, to be run.
    pub(crate) fn shell(&self, script: &str) -> Cmd {
        self.daemon.client("sh", ["-ec", script]).env("I", self.reference()).cwd("/run/tmp")
    }

    /// Starts a container in the background and gives its ID.
    pub(crate) fn start(&self, options: &[&str], command: &[&str]) -> String {
        let args: Vec<&str> = ["run", "-d"]
            .iter()
            .chain(options)
            .chain(&[self.reference()])
            .chain(command)
            .copied()
            .collect();
        let id = self.docker(&args);
        assert_eq!(id.len(), 64, "not an ID: {id}");
        id
    }

    /// One value of `docker inspect`.
    pub(crate) fn inspect(&self, object: &str, template: &str) -> String {
        self.docker(&["inspect", "--format", template, object])
    }

    /// Waits until the container's logs hold `text`, and gives them, stdout and stderr in one.
    pub(crate) fn wait_for_log(&self, container: &str, text: &str) -> String {
        let what = format!("{text:?} in the logs of {container}");
        wait::until_ok(&what, DEFAULT_TIMEOUT, || {
            let logs = self.shell(&format!("docker logs {container} 2>&1")).ok();
            let logs = logs.map_err(|error| error.to_string())?.text();
            if logs.contains(text) { Ok(logs) } else { Err(logs) }
        })
        .unwrap()
    }

    /// The page at this address, fetched from another host as soon as it is served.
    pub(crate) fn fetch(&self, url: &str) -> String {
        fetch(|| self.sandbox.outside("curl", ["-sSf", "--max-time", "5", url])).unwrap()
    }

    /// Makes the image `local/debian` or `local/tiny` known to the engine, from Debian's packages.
    pub(crate) fn import_base(&self, name: &str) {
        let tar = base_tar(name);
        let args = [
            "import",
            "--change",
            "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "--change",
            "CMD [\"/bin/sh\"]",
            &tar.display().to_string(),
            &format!("local/{name}:latest"),
        ]
        .map(str::to_owned);
        self.daemon.docker(args).timeout(LONG).ok().unwrap();
    }

    /// All containers, by force, with their anonymous volumes.
    pub(crate) fn remove_containers(&self) {
        self.sh("ids=$(docker ps -aq); test -z \"$ids\" || docker rm -fv $ids");
        assert_eq!(self.docker(&["ps", "-aq"]), "");
    }
}

/// For what downloads or compiles.
pub(crate) const LONG: std::time::Duration = std::time::Duration::from_secs(600);

/// Asks until there is an answer.
pub(crate) fn fetch(mut request: impl FnMut() -> Cmd) -> Result<String> {
    wait::until_ok("the page", DEFAULT_TIMEOUT, || request().ok().map(|output| output.text()))
}

/// The root file system of a base, made once a machine.
fn base_tar(name: &str) -> PathBuf {
    let debian = testkit::fixtures::debian::rootfs_tar().unwrap();
    let dir = debian.parent().unwrap().to_path_buf();
    if name == "debian" {
        return debian;
    }
    let script = source_dir().join("examples/bases/make-bases.sh").display().to_string();
    let lock = testkit::cache_dir().join("rootfs.lock").display().to_string();
    let keep = dir.display().to_string();
    let args = [lock.as_str(), &script, "--keep", &keep, "--only", name];
    Cmd::host("flock", args).timeout(LONG).ok().unwrap();
    dir.join(format!("{name}.tar"))
}

/// A directory of the source tree, as the sandbox sees it.
pub(crate) fn example(name: &str) -> String {
    source_dir().join("examples").join(name).display().to_string()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Asserts that the parts occur in `text` in this order.
pub(crate) fn assert_in_order(text: &str, parts: &[impl Display]) {
    let mut rest = text;
    for part in parts {
        let part = part.to_string();
        let at = rest.find(&part).unwrap_or_else(|| panic!("no {part:?}, in order, in:\n{text}"));
        rest = &rest[at + part.len()..];
    }
}
