//! A machine within the machine, for one engine under test.
//!
//! Mount, pid, network, uts, ipc and cgroup namespaces of its own. Private: `/run`, `/var/lib`,
//! `/var/log`, `/var/tmp`, `/opt`, and `/etc` (changes go to an upper layer). `/tmp` is the
//! machine's; all else is the machine's, read-only. So default paths and default ports can be used
//! by many tests at once.
//!
//! ```text
//!   test ── pipe ──▶ outer.sh        (machine: makes and removes cgroups and the work directory)
//!                      └─ unshare ── inner.sh = process 1, becomes tini ── cat, reads the pipe
//!   test ── enter.sh ── nsenter ── the command
//! ```
//! The pipe is the life line: when its writing end closes, for whatever reason, `cat` ends, tini
//! ends, the kernel kills all that is in the pid namespace, and `outer.sh` cleans up.
//!
//! Network: `eth0` 198.51.100.2/24 (2001:db8:100::2/64) leads by a veth to the namespace `outside`,
//! which has 198.51.100.1 and no route to anything behind the sandbox: what comes there from a
//! container has been masqueraded, and what connects from there comes from another host.
//! [`Net::Uplink`] adds a user-mode NAT (slirp4netns) to what the machine reaches.

use crate::command::{Cmd, DEFAULT_TIMEOUT};
use crate::error::IoContext;
use crate::leak::{Scope, Snapshot, View};
use crate::{Error, Result, random, wait};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;

/// The address of the sandbox's `eth0`: where the outside finds published ports.
pub const INSIDE_ADDRESS: &str = "198.51.100.2";
/// The host on the other end of `eth0`.
pub const OUTSIDE_ADDRESS: &str = "198.51.100.1";
/// The search path in a sandbox; `/run/bin` is the sandbox's own and comes first.
pub const SANDBOX_PATH: &str =
    "/run/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// In the name of every sandbox, its cgroups and its work directory.
pub const NAME_PREFIX: &str = "gantry-test";
/// In the environment of all that is run in a sandbox, so that a leaked process is known by it.
pub const MARK: &str = "GANTRY_SANDBOX";

/// Longest wait for the end of a sandbox: killing it is quick, removing a big data root is not.
const END_LIMIT: Duration = Duration::from_secs(60);

/// What is at the other end of the sandbox's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Net {
    /// The `outside` namespace, and nothing behind it.
    #[default]
    Isolated,
    /// As `Isolated`, and a default route to what the machine reaches, for package registries.
    Uplink,
    /// The machine's own network namespace. Only for tests that check its state themselves.
    Host,
}

#[derive(Debug, Clone, Default)]
pub struct Options {
    pub net: Net,
    /// Leaves `/` private; else it is shared, as systemd makes it on users' machines.
    pub private_root: bool,
}

/// A running sandbox. `close` ends it and reports what it left on the machine; dropping it does the
/// same and panics about it.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    work: PathBuf,
    init_pid: u32,
    hierarchies: Vec<Hierarchy>,
    outer: Child,
    life_line: Option<ChildStdin>,
}

#[derive(Debug, Clone)]
struct Hierarchy {
    version: &'static str,
    /// The cgroup on the machine in which the sandbox's is made: that of this process.
    parent: PathBuf,
    mount_point: PathBuf,
    options: String,
}

impl Sandbox {
    pub fn new() -> Result<Self> {
        Self::with(&Options::default())
    }

    pub fn with_uplink() -> Result<Self> {
        Self::with(&Options { net: Net::Uplink, ..Options::default() })
    }

    pub fn with(options: &Options) -> Result<Self> {
        let id = random::name(NAME_PREFIX);
        let base = std::env::var_os("GANTRY_TEST_DIR").map_or("/var/tmp".into(), PathBuf::from);
        let work = base.join(&id);
        std::fs::create_dir_all(&work).context("create", work.display())?;
        let hierarchies = own_hierarchies()?;
        write_work_files(&work, &hierarchies)?;
        let stderr = tempfile::tempfile().context("create", "a temporary file")?;
        let mut outer = std::process::Command::new("/bin/sh")
            .arg(work.join("outer.sh"))
            .env_clear()
            .env("PATH", SANDBOX_PATH)
            .env("SANDBOX_ID", &id)
            .env("SANDBOX_WORK", &work)
            .env("SANDBOX_NET", options.net.name())
            .env("SANDBOX_PROPAGATION", if options.private_root { "private" } else { "shared" })
            .env(MARK, &id)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone().context("duplicate", "a descriptor")?)
            .process_group(0)
            .spawn()
            .context("start", "sandbox")?;
        let life_line = outer.stdin.take();
        match read_ready(&mut outer) {
            Some(init_pid) => Ok(Self { id, work, init_pid, hierarchies, outer, life_line }),
            None => {
                drop(life_line);
                let status = outer.wait().context("wait for", "sandbox")?;
                Err(Error::Failed {
                    command: format!("sandbox {id}"),
                    status: status.to_string(),
                    output: read_all(stderr),
                })
            }
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The machine's pid of the sandbox's process 1.
    pub fn init_pid(&self) -> u32 {
        self.init_pid
    }

    /// A path of the sandbox as the machine can open it: files, and unix sockets as well. Symbolic
    /// links in it are followed on the machine, so say `/run/x`, not `/var/run/x`.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        let relative = inside.strip_prefix("/").unwrap_or(inside);
        Path::new("/proc").join(self.init_pid.to_string()).join("root").join(relative)
    }

    /// The sandbox's cgroup on the machine in the hierarchy of `controller` (v1), or that of v2.
    pub fn cgroup(&self, controller: &str) -> Option<PathBuf> {
        self.hierarchies
            .iter()
            .find(|h| match controller {
                "" => h.version == "v2",
                _ => h.options.split(',').any(|option| option == controller),
            })
            .map(|h| h.parent.join(&self.id))
    }

    /// All cgroups of the sandbox, one in each hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|h| h.parent.join(&self.id)).collect()
    }

    /// A program in the sandbox. Its environment is `PATH`, `HOME` (`/run/home`) and `LC_ALL`.
    pub fn command<A: Into<String>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Cmd {
        self.command_on("inside", program, args)
    }

    /// A program on the other host of the sandbox's network (same files, same processes).
    pub fn outside<A: Into<String>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Cmd {
        self.command_on("outside", program, args)
    }

    /// `sh -c SCRIPT` in the sandbox.
    pub fn shell(&self, script: &str) -> Cmd {
        self.command("sh", ["-c", script])
    }

    fn command_on<A: Into<String>>(
        &self,
        net: &str,
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Cmd {
        let script = self.work.join("enter.sh");
        let work = self.work.display();
        let prefix = [
            "/usr/bin/env".to_owned(),
            format!("SANDBOX_ID={}", self.id),
            format!("{MARK}={}", self.id),
            "/bin/sh".to_owned(),
            script.display().to_string(),
            self.init_pid.to_string(),
            work.to_string(),
            net.to_owned(),
        ];
        let env = [
            ("PATH", SANDBOX_PATH),
            ("HOME", "/run/home"),
            ("LC_ALL", "C.UTF-8"),
            (MARK, self.id.as_str()),
        ];
        Cmd::host(program, args).behind(
            prefix.to_vec(),
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        )
    }

    /// Makes `name` in the sandbox's search path lead to `target`, before the machine's own.
    pub fn link(&self, name: &str, target: &Path) -> Result<()> {
        let link = self.path("/run/bin").join(name);
        drop(std::fs::remove_file(&link)); // a former link of this name
        std::os::unix::fs::symlink(target, &link).context("link", link.display())
    }

    pub fn read(&self, path: &str) -> Result<String> {
        std::fs::read_to_string(self.path(path)).context("read", path)
    }

    /// Writes a file in the sandbox and makes its directory.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let file = self.path(path);
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir).context("create", dir.display())?;
        }
        std::fs::write(&file, content).context("write", path)
    }

    /// Lets docker's CLI in this sandbox find the plugins `compose` and `buildx` of Debian trixie.
    /// With buildx in sight, `docker build` becomes `docker buildx build`.
    pub fn enable_cli_plugins(&self) -> Result<()> {
        let plugins = crate::trixie("usr/libexec/docker/cli-plugins")?;
        let config = serde_json::json!({ "cliPluginsExtraDirs": [plugins] });
        self.write("/run/home/.docker/config.json", config.to_string())
    }

    /// Whether a process in the sandbox listens on this tcp port.
    pub fn listens(&self, port: u16) -> bool {
        let wanted = format!(":{port:04X}");
        ["tcp", "tcp6"].iter().any(|file| {
            let table = format!("/proc/{}/net/{file}", self.init_pid);
            std::fs::read_to_string(table).is_ok_and(|text| {
                text.lines().any(|line| {
                    let fields: Vec<&str> = line.split_whitespace().collect();
                    fields.get(1).is_some_and(|local| local.ends_with(&wanted))
                        && fields.get(3) == Some(&"0A")
                })
            })
        })
    }

    /// The state of the sandbox, to be compared with a later one: what did the engine leave?
    pub fn snapshot(&self, scope: &Scope) -> Result<Snapshot> {
        Snapshot::take(View::Sandbox(self), scope)
    }

    /// Ends all that runs in it and checks that nothing is left on the machine.
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.life_line.take().is_none() {
            return Ok(());
        }
        let ended = wait::until("end of the sandbox", END_LIMIT, || {
            matches!(self.outer.try_wait(), Ok(Some(_))).then_some(())
        });
        let mut left: Vec<String> = Vec::new();
        if let Err(error) = ended {
            left.push(error.to_string());
        }
        left.extend(self.cgroups().iter().filter(|c| c.exists()).map(|c| format!("{c:?}")));
        if self.work.exists() {
            left.push(format!("{:?}", self.work));
        }
        left.extend(crate::leak::marked_processes(&self.id));
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::Leak { what: format!("sandbox {}", self.id), difference: left.join("\n") })
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let result = self.end();
        if !std::thread::panicking() {
            result.expect("a sandbox leaves nothing on the machine");
        }
    }
}

impl Net {
    fn name(self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
            Self::Uplink => "uplink",
            Self::Host => "host",
        }
    }
}

fn write_work_files(work: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    let lines: String = hierarchies
        .iter()
        .map(|h| {
            let (parent, point) = (h.parent.display(), h.mount_point.display());
            format!("{} {parent} {point} {}\n", h.version, h.options)
        })
        .collect();
    let files = [
        ("hierarchies", lines.as_str()),
        ("outer.sh", include_str!("outer.sh")),
        ("inner.sh", include_str!("inner.sh")),
        ("enter.sh", include_str!("enter.sh")),
    ];
    for (name, content) in files {
        std::fs::write(work.join(name), content).context("write", work.join(name).display())?;
    }
    Ok(())
}

/// Reads the line `ready PID`; `None` where the sandbox ended before.
fn read_ready(outer: &mut Child) -> Option<u32> {
    let stdout = outer.stdout.take()?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        // The receiver may have given up.
        let pid = read.ok().and_then(|_| line.strip_prefix("ready ")?.trim().parse().ok());
        sender.send(pid).ok();
    });
    receiver.recv_timeout(DEFAULT_TIMEOUT).ok().flatten()
}

fn read_all(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    if read.is_ok() { text } else { "its messages could not be read".to_owned() }
}

/// The mounted cgroup hierarchies and this process's place in each.
fn own_hierarchies() -> Result<Vec<Hierarchy>> {
    let memberships =
        std::fs::read_to_string("/proc/self/cgroup").context("read", "/proc/self/cgroup")?;
    let mounts =
        std::fs::read_to_string("/proc/self/mountinfo").context("read", "/proc/self/mountinfo")?;
    let mut found = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let mount = mounts.lines().find_map(|line| cgroup_mount(line, controllers));
        let Some((root, mount_point)) = mount else { continue };
        let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(path);
        found.push(Hierarchy {
            version: if controllers.is_empty() { "v2" } else { "v1" },
            parent: mount_point.join(below.trim_start_matches('/')),
            mount_point,
            options: controllers.to_owned(),
        });
    }
    Ok(found)
}

/// Root and mount point, if this line of mountinfo is the hierarchy of `controllers`.
fn cgroup_mount<'a>(line: &'a str, controllers: &str) -> Option<(&'a str, PathBuf)> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    let (root, mount_point) = (fields.next()?, fields.next()?);
    let (fs_type, rest) = right.split_once(' ')?;
    let options = rest.rsplit(' ').next()?;
    let fits = match fs_type {
        "cgroup2" => controllers.is_empty(),
        "cgroup" => {
            !controllers.is_empty()
                && controllers.split(',').all(|c| options.split(',').any(|option| option == c))
        }
        _ => false,
    };
    fits.then(|| (root, PathBuf::from(mount_point)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_mountinfo() {
        let v1 = "34 31 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct";
        let point = PathBuf::from("/sys/fs/cgroup/cpu");
        assert_eq!(cgroup_mount(v1, "cpu,cpuacct"), Some(("/", point)));
        assert_eq!(cgroup_mount(v1, "memory"), None);
        assert_eq!(cgroup_mount(v1, ""), None);
        let v2 = "41 31 0:38 /a /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(cgroup_mount(v2, ""), Some(("/a", PathBuf::from("/sys/fs/cgroup"))));
    }
}
