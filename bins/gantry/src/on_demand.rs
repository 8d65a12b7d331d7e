//! The daemon that a client starts when none runs.
//!
//! ```text
//! client ── flock EXEC_ROOT/on-demand.lock ──▶ winner: starts `gantry daemon --on-demand`
//!   others wait for the lock, then find       (through systemd where that runs), waits until
//!   the socket                                 the socket takes connections, unlocks
//! ```
//! A daemon that is starting or ending has its locks already, or still: it is waited for. Its socket
//! appears when it answers, so that it takes connections means that it is ready.
//!
//! The daemon has a session of its own, a clean environment, `/` as its directory, no descriptors
//! of the client's, and is out of the client's cgroup. It writes to [`LOG`], and ends by itself.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::Persona;
use crate::daemon::locks::{self, Note, Stage};

/// Where a daemon without a service manager writes.
const LOG: &str = "/var/log/gantry.log";
/// A longer log becomes [`LOG`]`.1` at the next start.
const LOG_LIMIT_BYTES: u64 = 10 << 20;
const LOCK: &str = "/run/gantry/on-demand.lock";
/// How long a daemon may take until it listens: on a busy disk, with many containers to adopt.
const START_LIMIT: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Of a failed daemon's log as much is read for its last line.
const TAIL_LIMIT_BYTES: u64 = 64 << 10;
/// The search path of a daemon that nobody gave one.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What of the client's environment counts for the daemon: how it reaches registries.
const KEPT: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];
/// systemd runs (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";
/// Places of units, in systemd.unit(5)'s order.
const UNIT_DIRS: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "Cannot connect to the Docker daemon at unix://{}. Is the docker daemon running?\n\
         It starts by itself when root calls: use sudo, or name another engine with -H or DOCKER_HOST",
        .0.display()
    )]
    NotRoot(PathBuf),
    #[error("start the daemon: {op} {}", path.display())]
    File { op: &'static str, path: PathBuf, source: std::io::Error },
    #[error("start the daemon: run {program}")]
    Run { program: String, source: std::io::Error },
    #[error("the daemon does not start: {0}")]
    Ended(String),
    #[error("the daemon does not listen at {} after {} s; its log is {}", socket.display(), START_LIMIT.as_secs(), log)]
    Late { socket: PathBuf, log: String },
    #[error("the daemon that is starting or ending (process {pid}) does not listen at {} after {} s", socket.display(), START_LIMIT.as_secs())]
    OtherLate { socket: PathBuf, pid: u32 },
    #[error(
        "a daemon runs (process {pid}) and does not listen at unix://{}, but at {addresses}: name that with -H or DOCKER_HOST",
        socket.display()
    )]
    Elsewhere { socket: PathBuf, pid: u32, addresses: String },
}

/// Makes sure that a daemon listens at the socket.
///
/// # Errors
/// Words for the user.
pub(crate) fn ensure(persona: Persona, socket: &Path) -> Result<(), String> {
    start(persona, socket).map_err(|error| crate::chain(&error))
}

fn start(persona: Persona, socket: &Path) -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot(socket.into()));
    }
    let _lock = lock(Path::new(LOCK))?;
    let others = Others::of(persona);
    let until = Instant::now() + START_LIMIT;
    if listens(socket) || others.wait(socket, until)? {
        return Ok(());
    }
    // What the user's shell left open (pipes, mostly) must not stay open with the daemon.
    if let Err(error) = sys::process::cloexec_from(3) {
        return Err(Error::File { op: "close", path: "descriptors".into(), source: error.into() });
    }
    let mut daemon = match by_systemd(persona) {
        Some(daemon) => daemon,
        None => by_ourselves(persona)?,
    };
    daemon.wait(socket, &others)
}

fn listens(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Daemons that nobody of the clients has started, by their locks.
struct Others {
    pid_file: PathBuf,
    exec_root: PathBuf,
}

impl Others {
    fn of(persona: Persona) -> Self {
        let (pid_file, exec_root) = crate::daemon::usual_places(persona);
        Self { pid_file, exec_root: locks::of_exec_root(&exec_root) }
    }

    /// The daemon that has the locks. The pid file is taken before the exec root.
    fn holder(&self) -> Option<Note> {
        locks::holder(&self.exec_root).or_else(|| locks::holder(&self.pid_file))
    }

    /// Waits as long as there is one: `true` when it listens at the socket, `false` when there is none.
    fn wait(&self, socket: &Path, until: Instant) -> Result<bool, Error> {
        let mut pause = FIRST_PAUSE;
        while let Some(note) = self.holder() {
            if listens(socket) {
                return Ok(true);
            }
            elsewhere(&note, socket)?;
            if Instant::now() >= until {
                return Err(Error::OtherLate { socket: socket.into(), pid: note.pid });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(listens(socket))
    }
}

/// It is ready, and so will never listen at the socket. To be called when that was looked for after
/// the note was read.
fn elsewhere(note: &Note, socket: &Path) -> Result<(), Error> {
    if note.stage != Stage::Ready {
        return Ok(());
    }
    let addresses = note.addresses.join(" ");
    Err(Error::Elsewhere { socket: socket.into(), pid: note.pid, addresses })
}

/// Waits for the lock: whoever has it is starting the daemon.
fn lock(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::File { op: "lock", path: path.into(), source };
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o711).create(parent).map_err(failed)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    flock(&file, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    Ok(file)
}

/// A daemon that was started and may not listen yet.
struct Starting {
    child: Child,
    /// The program ends once the daemon is ready, and is not the daemon.
    is_launcher: bool,
    /// Its log, and how long it was before.
    log: Option<(PathBuf, u64)>,
}

impl Starting {
    fn wait(&mut self, socket: &Path, others: &Others) -> Result<(), Error> {
        let until = Instant::now() + START_LIMIT;
        let mut pause = FIRST_PAUSE;
        loop {
            let note = locks::holder(&others.exec_root);
            if listens(socket) {
                return Ok(());
            }
            if let Some(note) = note {
                elsewhere(&note, socket)?;
            }
            let ended = self.child.try_wait().ok().flatten();
            if let Some(status) = ended.filter(|s| !(self.is_launcher && s.success())) {
                // A daemon of another start may have been quicker.
                if others.wait(socket, until)? {
                    return Ok(());
                }
                return Err(Error::Ended(self.last_words(&status.to_string())));
            }
            if Instant::now() >= until {
                return Err(Error::Late { socket: socket.into(), log: self.log_name() });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn log_name(&self) -> String {
        match &self.log {
            Some((path, _)) => path.display().to_string(),
            None => "in the journal (journalctl -u gantry)".into(),
        }
    }

    fn last_words(&self, status: &str) -> String {
        let words = self.log.as_ref().and_then(|(path, start)| complaint(path, *start).ok()?);
        let words = words.unwrap_or_else(|| status.to_owned());
        format!("{words}\nIts log is {}", self.log_name())
    }
}

/// The last error that was written since, else the last line.
fn complaint(path: &Path, start: u64) -> std::io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let start = start.max(file.metadata()?.len().saturating_sub(TAIL_LIMIT_BYTES));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_LIMIT_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = || text.lines().rev().filter(|line| !line.trim().is_empty());
    let is_error =
        |line: &&str| line.contains(" level=error ") || line.contains("\"level\":\"error\"");
    let line = lines().find(is_error).or_else(|| lines().next());
    Ok(line.map(message))
}

/// What a line of the log says, without its time and level.
fn message(line: &str) -> String {
    let said = line.split_once(" msg=\"").map(|(_, said)| said);
    let Some(said) = said else { return line.to_owned() };
    let mut text = String::new();
    let mut chars = said.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(c) => text.push(c),
                None => {}
            },
            c => text.push(c),
        }
    }
    text
}

/// The name to call the daemon by, and its arguments.
fn command_line(persona: Persona) -> (&'static str, &'static [&'static str]) {
    match persona {
        Persona::Gantry => ("gantry", &["daemon", "--on-demand"]),
        Persona::Docker => ("dockerd", &["--on-demand"]),
    }
}

/// This program's file; by another way if it was replaced since it was started.
fn executable() -> PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| "/proc/self/exe".into())
}

fn by_ourselves(persona: Persona) -> Result<Starting, Error> {
    let path = Path::new(LOG);
    let (log, length) = open_log(path)?;
    let clone = || {
        let duplicate = log.try_clone();
        duplicate.map_err(|source| Error::File { op: "open", path: path.into(), source })
    };
    let (name, args) = command_line(persona);
    let program = executable();
    let child = Command::new(&program)
        .arg0(name)
        .args(args)
        .env_clear()
        .envs(environment())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(clone()?)
        .stderr(clone()?)
        .spawn()
        .map_err(|source| Error::Run { program: program.display().to_string(), source })?;
    Ok(Starting { child, is_launcher: false, log: Some((path.into(), length)) })
}

fn environment() -> impl Iterator<Item = (&'static str, OsString)> {
    let kept = KEPT.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    kept.chain([("PATH", SEARCH_PATH.into())])
}

fn open_log(path: &Path) -> Result<(File, u64), Error> {
    let failed = |source| Error::File { op: "open", path: path.into(), source };
    let open = || OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    let log = open().map_err(failed)?;
    let length = log.metadata().map_err(failed)?.len();
    if length <= LOG_LIMIT_BYTES {
        return Ok((log, length));
    }
    std::fs::rename(path, path.with_extension("log.1")).map_err(failed)?;
    Ok((open().map_err(failed)?, 0))
}

/// Where systemd runs, the daemon is a unit: the one that was installed, else a passing one. `None`:
/// not there, or it does not want to.
fn by_systemd(persona: Persona) -> Option<Starting> {
    if !Path::new(SYSTEMD).is_dir() {
        return None;
    }
    let installed = persona == Persona::Gantry
        && UNIT_DIRS.iter().any(|dir| Path::new(dir).join("gantry.service").exists());
    let mut command = if installed {
        let mut command = Command::new("systemctl");
        command.args(["start", "gantry.service"]);
        command
    } else {
        passing_unit(persona)
    };
    let child = command
        .env_clear()
        .envs(environment())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut starting = Starting { child, is_launcher: true, log: None };
    // Both wait for READY=1. A failure (no bus in a container, say) means: without systemd.
    starting.child.wait().ok().filter(|status| status.success())?;
    Some(starting)
}

fn passing_unit(persona: Persona) -> Command {
    /// As in the unit that is shipped.
    const PROPERTIES: [&str; 5] = [
        "KillMode=process",
        "Delegate=yes",
        "TasksMax=infinity",
        "LimitNOFILE=infinity",
        "OOMScoreAdjust=-500",
    ];
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--collect", "--unit=gantry", "--service-type=notify"]);
    command.args(PROPERTIES.iter().map(|property| format!("--property={property}")));
    for (name, value) in environment() {
        let mut setting = OsString::from(format!("--setenv={name}="));
        setting.push(value);
        command.arg(setting);
    }
    let (_, args) = command_line(persona);
    if persona == Persona::Docker {
        // systemd-run has no way to give a program another name.
        command.args(["/bin/sh", "-c", "exec -a dockerd \"$0\" \"$@\""]);
    }
    command.arg(executable()).args(args);
    command
}

/// What the daemon does first when it was started so: leaves the client's session and cgroup.
pub(crate) fn settle_in() {
    // Refused to the leader of a session: then it has its own already, as under systemd.
    rustix::process::setsid().ok();
    if Path::new(SYSTEMD).is_dir() {
        return;
    }
    crate::cgroups::leave();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_error_of_this_start_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "old\n").unwrap();
        assert_eq!(complaint(&path, 4).unwrap(), None);
        std::fs::write(&path, "old\nfirst\nlast\n\n").unwrap();
        assert_eq!(complaint(&path, 4).unwrap().as_deref(), Some("last"));
        let lines = [
            r#"time="T" level=error msg="old""#,
            r#"time="T" level=error msg="failed: \"x\": no space" path=/x"#,
            r#"time="T" level=info msg="Daemon shutdown complete""#,
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let wanted = r#"failed: "x": no space"#;
        assert_eq!(complaint(&path, 4).unwrap().as_deref(), Some(wanted));
    }

    #[test]
    fn a_daemon_that_has_its_locks_is_waited_for() {
        use std::os::unix::net::UnixListener;
        let dir = tempfile::tempdir().unwrap();
        let exec_root = dir.path().to_owned();
        let manner = locks::Manner { on_demand: true, exec_root: exec_root.clone() };
        let socket = dir.path().join("s.sock");
        let pid_file = dir.path().join("pid");
        let others = Others { pid_file, exec_root: locks::of_exec_root(&exec_root) };
        let until = Instant::now() + START_LIMIT;
        assert!(!others.wait(&socket, until).unwrap());
        let held = locks::directory("exec root", &exec_root, 0o711, &manner).unwrap();
        let late = others.wait(&socket, Instant::now());
        assert!(matches!(late, Err(Error::OtherLate { .. })), "{late:?}");
        let other = socket.clone();
        let listening = std::thread::spawn(move || UnixListener::bind(other).unwrap());
        assert!(others.wait(&socket, until).unwrap());
        drop(listening.join().unwrap());
        let note = Note {
            pid: std::process::id(),
            stage: Stage::Ready,
            on_demand: false,
            addresses: vec!["unix:///elsewhere".into()],
        };
        held.tell(&note);
        let error = others.wait(&socket, until).unwrap_err().to_string();
        assert!(error.contains("but at unix:///elsewhere"), "{error}");
    }

    #[test]
    fn long_logs_are_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gantry.log");
        let file = File::create(&path).unwrap();
        file.set_len(LOG_LIMIT_BYTES + 1).unwrap();
        assert_eq!(open_log(&path).unwrap().1, 0);
        assert_eq!(path.metadata().unwrap().len(), 0);
        assert!(dir.path().join("gantry.log.1").exists());
    }

    #[test]
    fn the_lock_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/lock");
        let held = lock(&path).unwrap();
        let other = File::open(&path).unwrap();
        let taken = flock(&other, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(taken, Err(rustix::io::Errno::WOULDBLOCK));
        drop(held);
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}
