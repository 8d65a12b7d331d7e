//! One daemon per pid file, data root and exec root.
//!
//! The files are locked with flock(2) as long as the daemon runs: what a killed daemon leaves is
//! recognised by the lock that nobody holds, not by a process id, which another may have by now.
//! The exec root's file also says how far its daemon is, see [`Note`].

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

/// A pid, two words and the addresses of a daemon.
const TEXT_LIMIT_BYTES: u64 = 4096;
/// Pause between attempts for a lock that its holder is about to give up.
const AGAIN: Duration = Duration::from_millis(20);
/// Who asks whether a lock is held has it for an instant, see [`holder`].
const ASKED: Duration = Duration::from_millis(200);
/// How long a daemon that is to give way may take: until its clients are done, and its own end.
const GIVES_WAY: Duration = Duration::from_secs(10);
/// How long a daemon that a client starts waits for the one before it to end.
const PREDECESSOR: Duration = Duration::from_secs(10);
/// Asks a daemon that was started on demand to end as soon as no client is connected.
pub(crate) const GIVE_WAY: i32 = rustix::process::Signal::USR1.as_raw();
/// The lock in a root.
const FILE: &str = "gantry.lock";

/// A locked file with our pid in it.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
    path: PathBuf,
}

/// How far a daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Starting,
    /// It listens everywhere.
    Ready,
    Ending,
}

/// What a daemon says of itself in the exec root's lock: `PID STAGE KIND ADDRESS…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) pid: u32,
    /// A pid alone: it has taken the lock just now.
    pub(crate) stage: Stage,
    pub(crate) on_demand: bool,
    /// Where it listens, once it does.
    pub(crate) addresses: Vec<String>,
}

impl Note {
    fn text(&self) -> String {
        let stage = match self.stage {
            Stage::Starting => "starting",
            Stage::Ready => "ready",
            Stage::Ending => "ending",
        };
        let kind = if self.on_demand { "on-demand" } else { "service" };
        let mut text = format!("{} {stage} {kind}", self.pid);
        for address in &self.addresses {
            text.push(' ');
            text.push_str(address);
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let stage = match words.next() {
            Some("ready") => Stage::Ready,
            Some("ending") => Stage::Ending,
            _ => Stage::Starting,
        };
        let on_demand = words.next() == Some("on-demand");
        Some(Self { pid, stage, on_demand, addresses: words.map(str::to_owned).collect() })
    }
}

/// The lock file of an exec root.
pub(crate) fn of_exec_root(exec_root: &Path) -> PathBuf {
    exec_root.join(FILE)
}

/// What the holder of a lock says of itself; `None`: nobody holds it. A look takes the lock for an
/// instant, which is why daemons try for longer than that.
pub(crate) fn holder(path: &Path) -> Option<Note> {
    let mut file = File::open(path).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared) != Err(rustix::io::Errno::WOULDBLOCK) {
        return None;
    }
    Note::parse(&read(&mut file).ok()?)
}

/// What a daemon does about one that has its locks.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    /// A client started us: we wait for a daemon that ends. Otherwise we ask one that a client
    /// started to give way.
    pub(crate) on_demand: bool,
    pub(crate) exec_root: PathBuf,
}

impl Manner {
    /// Tries for a lock as long as that makes sense; `Err` has the words for its holder.
    fn take(
        &self,
        path: &Path,
        mode: u32,
        held_by: impl Fn(&str) -> String,
    ) -> anyhow::Result<Held> {
        let patience = if self.on_demand { PREDECESSOR } else { ASKED };
        let mut until = Instant::now() + patience;
        let mut asked = None;
        loop {
            let pid = match take(path, mode)? {
                Ok(held) => return Ok(held),
                Err(pid) => pid,
            };
            // Whoever started us has the other one to talk to.
            if self.on_demand && self.is_ready(&pid) {
                bail!(held_by(&pid));
            }
            if !self.on_demand && asked.is_none() && self.ask(&pid) {
                asked = Some(pid.clone());
                until = Instant::now() + GIVES_WAY;
            }
            if Instant::now() < until {
                std::thread::sleep(AGAIN);
            } else if asked.as_ref() == Some(&pid) {
                bail!(
                    "the daemon that a client started on demand (process {pid}) still has clients: \
                     start again when they are done, or end it with `kill {pid}` (containers go on)"
                );
            } else {
                bail!(held_by(&pid));
            }
        }
    }

    fn is_ready(&self, pid: &str) -> bool {
        holder(&of_exec_root(&self.exec_root))
            .is_some_and(|note| note.stage == Stage::Ready && note.pid.to_string() == pid)
    }

    /// Asks the holder to give way, if it is one that does.
    fn ask(&self, pid: &str) -> bool {
        let Some(note) = holder(&of_exec_root(&self.exec_root)) else { return false };
        if !note.on_demand || note.pid.to_string() != pid {
            return false;
        }
        let asked =
            i32::try_from(note.pid).is_ok_and(|pid| sys::process::kill(pid, GIVE_WAY).is_ok());
        if asked {
            tracing::info!(pid, "a daemon that a client started on demand is asked to give way");
        }
        asked
    }
}

/// Takes the pid file.
///
/// # Errors
/// Another daemon, ours or a real dockerd, is running.
pub(crate) fn pid_file(path: &Path, manner: &Manner) -> anyhow::Result<Held> {
    let parent = path.parent().context("a pid file needs a directory")?;
    make_dir(parent, 0o711)?;
    manner.take(path, 0o644, |pid| {
        format!(
            "process with PID {pid} is still running: ensure it is not running or delete {}",
            path.display()
        )
    })
}

/// Takes a directory of the daemon's (`what`), which is made with `mode` if it is missing.
///
/// # Errors
/// Another daemon uses it.
pub(crate) fn directory(
    what: &str,
    root: &Path,
    mode: u32,
    manner: &Manner,
) -> anyhow::Result<Held> {
    make_dir(root, mode)?;
    manner.take(&root.join(FILE), 0o600, |pid| {
        format!("the {what} {} is in use by another daemon, process {pid}", root.display())
    })
}

fn make_dir(path: &Path, mode: u32) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("create {}", path.display()))
}

fn read(file: &mut File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(TEXT_LIMIT_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// `Err(pid)`: someone else has it.
fn take(path: &Path, mode: u32) -> anyhow::Result<Result<Held, String>> {
    let what = || format!("lock {}", path.display());
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(mode)
        .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0))
        .open(path)
        .with_context(what)?;
    let text = read(&mut file).with_context(what)?;
    let pid = text.split_whitespace().next().unwrap_or_default().to_owned();
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Err(pid)),
        Err(error) => return Err(error).with_context(what),
    }
    // Whoever had it before may have removed it: then we hold a file without a name.
    let same = std::fs::symlink_metadata(path)
        .is_ok_and(|meta| file.metadata().is_ok_and(|own| own.ino() == meta.ino()));
    if !same {
        return Ok(Err(pid));
    }
    if is_foreign_daemon(&pid) {
        return Ok(Err(pid));
    }
    let held = Held { file, path: path.into() };
    match held.write(&std::process::id().to_string()) {
        // The lock counts; the pid is for people.
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            tracing::warn!(file = %path.display(), "no space is left for the process id");
        }
        written => written.with_context(|| format!("write {}", path.display()))?,
    }
    Ok(Ok(held))
}

/// A real dockerd does not lock its pid file.
fn is_foreign_daemon(pid: &str) -> bool {
    let Ok(number) = pid.parse::<u32>() else { return false };
    number != std::process::id()
        && std::fs::read_to_string(format!("/proc/{number}/comm"))
            .is_ok_and(|name| name.trim_end() == "dockerd")
}

impl Held {
    /// Says how far we are, where others look.
    pub(crate) fn tell(&self, note: &Note) {
        if let Err(error) = self.write(&note.text()) {
            tracing::warn!(file = %self.path.display(), %error, "the daemon's state is not told");
        }
    }

    fn write(&self, text: &str) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(text.as_bytes(), 0)
    }

    /// Removes the file, then gives up the lock.
    pub(crate) fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(file = %self.path.display(), %error, "a file is left behind");
        }
        drop(self.file);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn by_hand(dir: &Path) -> Manner {
        Manner { on_demand: false, exec_root: dir.into() }
    }

    #[test]
    fn one_holder_at_a_time_and_stale_files_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let manner = by_hand(dir.path());
        let path = dir.path().join("run/x.pid");
        std::fs::create_dir(dir.path().join("run")).unwrap();
        // Process 1 runs, and is no daemon.
        std::fs::write(&path, "1").unwrap();
        let held = pid_file(&path, &manner).unwrap();
        let own = std::process::id().to_string();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), own);
        let error = pid_file(&path, &manner).unwrap_err().to_string();
        assert!(error.starts_with(&format!("process with PID {own} is still running")), "{error}");
        held.remove();
        assert!(!path.exists());
        pid_file(&path, &manner).unwrap().remove();
    }

    #[test]
    fn a_directory_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let manner = by_hand(dir.path());
        let root = dir.path().join("data");
        let held = directory("data root", &root, 0o710, &manner).unwrap();
        assert_eq!(std::fs::metadata(&root).unwrap().mode() & 0o777, 0o710);
        let error = directory("data root", &root, 0o710, &manner).unwrap_err().to_string();
        assert!(error.contains("in use by another daemon"), "{error}");
        drop(held);
        drop(directory("data root", &root, 0o710, &manner).unwrap());
    }

    #[test]
    fn one_on_demand_does_not_wait_for_the_end_of_one_that_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let held = directory("exec root", dir.path(), 0o711, &by_hand(dir.path())).unwrap();
        let pid = std::process::id();
        held.tell(&Note { pid, stage: Stage::Ready, on_demand: false, addresses: Vec::new() });
        let before = Instant::now();
        let manner = Manner { on_demand: true, exec_root: dir.path().into() };
        directory("exec root", dir.path(), 0o711, &manner).unwrap_err();
        assert!(before.elapsed() < PREDECESSOR / 2);
    }

    #[test]
    fn the_holder_says_how_far_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = of_exec_root(dir.path());
        assert_eq!(holder(&path), None);
        let held = directory("exec root", dir.path(), 0o711, &by_hand(dir.path())).unwrap();
        let pid = std::process::id();
        let mut note =
            Note { pid, stage: Stage::Starting, on_demand: false, addresses: Vec::new() };
        assert_eq!(holder(&path), Some(note.clone()));
        for stage in [Stage::Ready, Stage::Ending, Stage::Starting] {
            note.stage = stage;
            note.on_demand = true;
            note.addresses = vec!["unix:///a".into(), "tcp://127.0.0.1:2375".into()];
            held.tell(&note);
            assert_eq!(holder(&path), Some(note.clone()));
        }
        drop(held);
        assert_eq!(holder(&path), None, "a stale file has no holder");
    }
}
