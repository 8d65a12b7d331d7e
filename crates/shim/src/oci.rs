//! The OCI runtime: linked, or another program with runc's command line.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use protos::shim::RuncOptions;

use crate::error::{Context, Error, Result};

/// Where the linked runtime keeps its containers unless the options say otherwise; the namespace
/// is appended.
pub const RUNTIME_ROOT: &str = "/run/gantry/runtime";
/// runc's default below containerd.
const RUNC_ROOT: &str = "/run/containerd/runc";
/// Hooks are run in the shim's loop (create, start and delete), where the other containers of a pod wait
/// for them. One that sets no timeout is ended after this, half the time in which the kubelet expects an
/// answer (runtimeRequestTimeout, 2 minutes); runc lets it run on. One that needs more says so by a
/// timeout of its own.
const HOOK_LIMIT: Duration = Duration::from_secs(60);
/// Output and logs of another runtime are read up to this many bytes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// How the new process's streams are made.
#[derive(Debug)]
pub(crate) enum ChildStdio {
    Fds { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    Console,
}

/// A process that the runtime made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) master: Option<OwnedFd>,
}

/// One runtime with its state root.
#[derive(Debug)]
pub(crate) enum Oci {
    Linked(runtime::Options),
    Program(Program),
}

/// Another runtime.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) path: String,
    pub(crate) root: PathBuf,
    pub(crate) systemd_cgroup: bool,
    /// Its log, and pid files.
    pub(crate) bundle: PathBuf,
    /// Prefix of sockets for consoles; short, because socket paths are.
    pub(crate) socket_prefix: PathBuf,
}

impl Oci {
    /// What the options of a Create request ask for.
    pub(crate) fn new(
        options: &RuncOptions,
        namespace: &str,
        bundle: &Path,
        socket_prefix: &Path,
    ) -> Oci {
        let root = |default: &str| {
            let base = if options.root.is_empty() { default } else { &options.root };
            Path::new(base).join(namespace)
        };
        if options.binary_name.is_empty() {
            Oci::Linked(runtime::Options {
                root: root(RUNTIME_ROOT),
                systemd_cgroup: options.systemd_cgroup,
                rootless: None,
                hook_limit: Some(HOOK_LIMIT),
            })
        } else {
            Oci::Program(Program {
                path: options.binary_name.clone(),
                root: root(RUNC_ROOT),
                systemd_cgroup: options.systemd_cgroup,
                bundle: bundle.to_owned(),
                socket_prefix: socket_prefix.to_owned(),
            })
        }
    }

    /// Again, from what `shim.json` says.
    pub(crate) fn from_file(file: &crate::bundle::ShimFile, bundle: &Path) -> Oci {
        match &file.binary {
            None => Oci::Linked(runtime::Options {
                root: file.runtime_root.clone(),
                systemd_cgroup: file.systemd_cgroup,
                rootless: None,
                hook_limit: Some(HOOK_LIMIT),
            }),
            Some(path) => Oci::Program(Program {
                path: path.clone(),
                root: file.runtime_root.clone(),
                systemd_cgroup: file.systemd_cgroup,
                bundle: bundle.to_owned(),
                socket_prefix: bundle.join("console"),
            }),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        match self {
            Oci::Linked(options) => &options.root,
            Oci::Program(program) => &program.root,
        }
    }

    pub(crate) fn binary(&self) -> Option<&str> {
        match self {
            Oci::Linked(_) => None,
            Oci::Program(program) => Some(&program.path),
        }
    }

    pub(crate) fn create(
        &self,
        id: &str,
        bundle: &Path,
        stdio: ChildStdio,
        options: &RuncOptions,
    ) -> Result<Made> {
        match self {
            Oci::Linked(linked) => {
                let create = runtime::CreateOptions {
                    stdio: linked_stdio(stdio),
                    no_pivot: options.no_pivot_root,
                    no_new_keyring: options.no_new_keyring,
                    ..runtime::CreateOptions::new(bundle)
                };
                runtime::create(linked, &container_id(id)?, create)
                    .map_err(|e| Error::runtime("create", &e))
                    .and_then(made)
            }
            Oci::Program(program) => {
                let mut arguments: Vec<OsString> =
                    vec!["create".into(), "--bundle".into(), bundle.into()];
                if options.no_pivot_root {
                    arguments.push("--no-pivot".into());
                }
                if options.no_new_keyring {
                    arguments.push("--no-new-keyring".into());
                }
                program.launch("create", arguments, stdio, id, 0)
            }
        }
    }

    pub(crate) fn start(&self, id: &str) -> Result<()> {
        match self {
            Oci::Linked(linked) => {
                runtime::start(linked, &container_id(id)?).map_err(|e| Error::runtime("start", &e))
            }
            Oci::Program(program) => program.run("start", &["start", id]).map(drop),
        }
    }

    /// `process`: the OCI process object as JSON. `number`: one that no other call has.
    pub(crate) fn exec(
        &self,
        id: &str,
        process: &[u8],
        stdio: ChildStdio,
        number: u64,
    ) -> Result<Made> {
        match self {
            Oci::Linked(linked) => {
                let process = serde_json::from_slice(process)
                    .map_err(|source| Error::Json { object: "process".into(), source })?;
                let exec = runtime::ExecOptions {
                    process,
                    stdio: linked_stdio(stdio),
                    pid_file: None,
                    pidfd_socket: None,
                    preserve_fds: 0,
                    cgroup: None,
                    ignore_paused: false,
                };
                runtime::exec(linked, &container_id(id)?, exec)
                    .map_err(|e| Error::runtime("exec", &e))
                    .and_then(made)
            }
            Oci::Program(program) => {
                let file = program.bundle.join(format!("process.{number}.json"));
                crate::bundle::write_atomic(&file, process)?;
                let arguments =
                    vec!["exec".into(), "--detach".into(), "--process".into(), (&file).into()];
                let made = program.launch("exec", arguments, stdio, id, number);
                // The bundle's end is theirs at the latest.
                for file in [file, program.log(number), program.pid_file(number)] {
                    drop(std::fs::remove_file(file));
                }
                made
            }
        }
    }

    pub(crate) fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        match self {
            Oci::Linked(linked) => match runtime::kill(linked, &container_id(id)?, signal, all) {
                Err(e) if is_finished(&e.chain()) => Err(finished()),
                other => other.map_err(|e| Error::runtime("kill", &e)),
            },
            Oci::Program(program) => {
                let signal = signal.to_string();
                let mut arguments = vec!["kill"];
                if all {
                    arguments.push("--all");
                }
                arguments.extend([id, &signal]);
                match program.run("kill", &arguments) {
                    Err(e) if is_finished(&e.chain()) => Err(finished()),
                    other => other.map(drop),
                }
            }
        }
    }

    /// Not there any more is success.
    pub(crate) fn delete(&self, id: &str, force: bool) -> Result<()> {
        match self {
            Oci::Linked(linked) => match runtime::delete(linked, &container_id(id)?, force) {
                Err(runtime::Error::NotFound(_)) => Ok(()),
                other => other.map_err(|e| Error::runtime("delete", &e)),
            },
            Oci::Program(program) => {
                let arguments: &[&str] =
                    if force { &["delete", "--force", id] } else { &["delete", id] };
                match program.run("delete", arguments) {
                    Err(e) if e.chain().contains("does not exist") => Ok(()),
                    other => other.map(drop),
                }
            }
        }
    }

    pub(crate) fn pause(&self, id: &str) -> Result<()> {
        match self {
            Oci::Linked(linked) => {
                runtime::pause(linked, &container_id(id)?).map_err(|e| Error::runtime("pause", &e))
            }
            Oci::Program(program) => program.run("pause", &["pause", id]).map(drop),
        }
    }

    pub(crate) fn resume(&self, id: &str) -> Result<()> {
        match self {
            Oci::Linked(linked) => runtime::resume(linked, &container_id(id)?)
                .map_err(|e| Error::runtime("resume", &e)),
            Oci::Program(program) => program.run("resume", &["resume", id]).map(drop),
        }
    }

    /// `resources`: the OCI `linux.resources` object as JSON.
    pub(crate) fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        match self {
            Oci::Linked(linked) => {
                let resources = serde_json::from_slice(resources)
                    .map_err(|source| Error::Json { object: "resources".into(), source })?;
                runtime::update(linked, &container_id(id)?, &resources)
                    .map_err(|e| Error::runtime("update", &e))
            }
            Oci::Program(program) => {
                let file = program.bundle.join("resources.json");
                crate::bundle::write_atomic(&file, resources)?;
                let file = file.display().to_string();
                program.run("update", &["update", "--resources", &file, id]).map(drop)
            }
        }
    }

    pub(crate) fn pids(&self, id: &str) -> Result<Vec<u32>> {
        match self {
            Oci::Linked(linked) => {
                let pids = runtime::pids(linked, &container_id(id)?)
                    .map_err(|e| Error::runtime("ps", &e))?;
                Ok(pids.into_iter().filter_map(|pid| u32::try_from(pid).ok()).collect())
            }
            Oci::Program(program) => {
                let output = program.run("ps", &["ps", "--format", "json", id])?;
                serde_json::from_slice(&output)
                    .map_err(|source| Error::Json { object: "output of ps".into(), source })
            }
        }
    }

    pub(crate) fn stats(&self, id: &str) -> Result<runtime::Stats> {
        match self {
            Oci::Linked(linked) => {
                runtime::stats(linked, &container_id(id)?).map_err(|e| Error::runtime("stats", &e))
            }
            Oci::Program(program) => {
                Err(Error::unsupported(format!("Stats of containers run by {}", program.path)))
            }
        }
    }

    /// `None` where the runtime or the host's cgroups offer none.
    pub(crate) fn oom_watch(&self, id: &str) -> Option<runtime::OomWatch> {
        match self {
            Oci::Linked(linked) => runtime::oom_watch(linked, &container_id(id).ok()?).ok(),
            Oci::Program(_) => None,
        }
    }
}

/// containerd's answer to a signal for what has ended.
pub(crate) fn finished() -> Error {
    Error::not_found("process already finished: not found")
}

fn is_finished(text: &str) -> bool {
    ["process already finished", "no such process", "container not running", "does not exist"]
        .iter()
        .any(|words| text.contains(words))
}

fn container_id(id: &str) -> Result<runtime::ContainerId> {
    runtime::ContainerId::new(id).map_err(|e| Error::invalid(e.chain()))
}

fn linked_stdio(stdio: ChildStdio) -> runtime::Stdio {
    match stdio {
        ChildStdio::Fds { stdin, stdout, stderr } => runtime::Stdio::Fds { stdin, stdout, stderr },
        ChildStdio::Console => runtime::Stdio::Console,
    }
}

fn made(created: runtime::Created) -> Result<Made> {
    let pid = u32::try_from(created.pid)
        .map_err(|_| Error::invalid(format!("pid {} from the runtime", created.pid)))?;
    Ok(Made { pid, pidfd: created.pidfd, master: created.console_master })
}

impl Program {
    fn command(&self, number: u64) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .args(["--log-format", "json"])
            .arg("--log")
            .arg(self.log(number))
            .arg("--root")
            .arg(&self.root);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.stdin(Stdio::null());
        // It passes on to the container's program what it finds blocked.
        sys::process::unblock_signals_in(&mut command);
        command
    }

    /// Calls with different numbers may run at the same time.
    fn log(&self, number: u64) -> PathBuf {
        match number {
            0 => self.bundle.join("log.json"),
            n => self.bundle.join(format!("log.{n}.json")),
        }
    }

    fn pid_file(&self, number: u64) -> PathBuf {
        self.bundle.join(format!("program.{number}.pid"))
    }

    fn run(&self, operation: &'static str, arguments: &[&str]) -> Result<Vec<u8>> {
        // Absent is as good as removed.
        drop(std::fs::remove_file(self.log(0)));
        let mut child = self
            .command(0)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("execute", || self.path.clone())?;
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(OUTPUT_BYTES_MAX)
                .read_to_end(&mut output)
                .context("read the output of", || self.path.clone())?;
        }
        let status = child.wait().context("wait for", || self.path.clone())?;
        if status.success() { Ok(output) } else { Err(self.failure(operation, &status, 0)) }
    }

    fn failure(
        &self,
        operation: &'static str,
        status: &std::process::ExitStatus,
        number: u64,
    ) -> Error {
        let log = crate::bundle::read_limited(&self.log(number), OUTPUT_BYTES_MAX);
        let log = log.ok().flatten().unwrap_or_default();
        let said = log.split(|b| *b == b'\n').rev().find_map(|line| {
            let line: serde_json::Value = serde_json::from_slice(line).ok()?;
            (line.get("level")?.as_str()? == "error")
                .then(|| line.get("msg").and_then(|m| m.as_str()).map(str::to_owned))?
        });
        let text = said.unwrap_or_else(|| format!("{}: {status}", self.path));
        Error::Runtime { operation, text }
    }

    fn launch(
        &self,
        operation: &'static str,
        mut arguments: Vec<OsString>,
        stdio: ChildStdio,
        id: &str,
        number: u64,
    ) -> Result<Made> {
        let pid_file = self.pid_file(number);
        arguments.extend(["--pid-file".into(), pid_file.clone().into()]);
        // Absent unless an earlier attempt failed.
        drop(std::fs::remove_file(self.log(number)));
        let mut command = self.command(number);
        let console = match stdio {
            ChildStdio::Fds { stdin, stdout, stderr } => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
                None
            }
            ChildStdio::Console => {
                let mut path = self.socket_prefix.as_os_str().to_owned();
                path.push(format!(".{number}"));
                let path = PathBuf::from(path);
                drop(std::fs::remove_file(&path));
                let listener = std::os::unix::net::UnixListener::bind(&path)
                    .context("bind", || path.display().to_string())?;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
                    .context("chmod", || path.display().to_string())?;
                arguments.extend(["--console-socket".into(), path.clone().into()]);
                command.stdout(Stdio::null()).stderr(Stdio::null());
                Some((listener, path))
            }
        };
        arguments.push(id.into());
        let status = command.args(&arguments).status().context("execute", || self.path.clone());
        drop(command);
        let master = match &console {
            Some((listener, path)) if matches!(&status, Ok(s) if s.success()) => {
                let master = receive_master(listener);
                drop(std::fs::remove_file(path));
                Some(master?)
            }
            Some((_, path)) => {
                drop(std::fs::remove_file(path));
                None
            }
            None => None,
        };
        let status = status?;
        if !status.success() {
            return Err(self.failure(operation, &status, number));
        }
        let text = std::fs::read_to_string(&pid_file)
            .context("read", || pid_file.display().to_string())?;
        let pid: i32 = text.trim().parse().unwrap_or_default();
        let handle = rustix::process::Pid::from_raw(pid)
            .ok_or_else(|| Error::invalid(format!("pid file of {}: {text:?}", self.path)))?;
        let pidfd = rustix::process::pidfd_open(handle, rustix::process::PidfdFlags::empty())
            .context("pidfd_open", || pid.to_string())?;
        Ok(Made { pid: pid.unsigned_abs(), pidfd, master })
    }
}

fn receive_master(listener: &std::os::unix::net::UnixListener) -> Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    // The runtime has ended: what it sent is there, or never comes.
    listener.set_nonblocking(true).context("fcntl", || "console socket")?;
    let (socket, _) = listener.accept().context("accept", || "console socket")?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let mut slices = [std::io::IoSliceMut::new(&mut name)];
    recvmsg(&socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
        .context("recvmsg", || "console socket")?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.ok_or_else(|| Error::invalid("the runtime sent no terminal to the console socket"))
}
