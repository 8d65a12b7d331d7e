//! One daemon per pid file, data root and exec root.
//!
//! The files are locked with flock(2) as long as the daemon runs: what a killed daemon leaves is
//! recognised by the lock that nobody holds, not by a process id, which another may have by now.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

/// A pid is a few digits.
const PID_LIMIT_BYTES: u64 = 64;
/// Pause between attempts for a lock that its holder is about to give up.
const AGAIN: Duration = Duration::from_millis(20);

/// A locked file with our pid in it.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
    path: PathBuf,
}

/// Takes the pid file, waiting up to `patience` for a daemon that is ending.
///
/// # Errors
/// Another daemon, ours or a real dockerd, is running.
pub(crate) fn pid_file(path: &Path, patience: Duration) -> anyhow::Result<Held> {
    let parent = path.parent().context("a pid file needs a directory")?;
    make_dir(parent, 0o711)?;
    let until = Instant::now() + patience;
    loop {
        match take(path, 0o644)? {
            Ok(held) => return Ok(held),
            Err(_) if Instant::now() < until => std::thread::sleep(AGAIN),
            Err(pid) => {
                bail!(
                    "process with PID {pid} is still running: ensure it is not running or delete {}",
                    path.display()
                );
            }
        }
    }
}

/// Takes a directory of the daemon's (`what`), which is made with `mode` if it is missing.
///
/// # Errors
/// Another daemon uses it.
pub(crate) fn directory(
    what: &str,
    root: &Path,
    mode: u32,
    patience: Duration,
) -> anyhow::Result<Held> {
    make_dir(root, mode)?;
    let until = Instant::now() + patience;
    loop {
        match take(&root.join("gantry.lock"), 0o600)? {
            Ok(held) => return Ok(held),
            Err(_) if Instant::now() < until => std::thread::sleep(AGAIN),
            Err(pid) => {
                bail!("the {what} {} is in use by another daemon, process {pid}", root.display())
            }
        }
    }
}

fn make_dir(path: &Path, mode: u32) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("create {}", path.display()))
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
    let mut text = String::new();
    (&file).take(PID_LIMIT_BYTES).read_to_string(&mut text).with_context(what)?;
    let pid = text.trim().to_owned();
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
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| write!(file, "{}", std::process::id()))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(Ok(Held { file, path: path.into() }))
}

/// A real dockerd does not lock its pid file.
fn is_foreign_daemon(pid: &str) -> bool {
    let Ok(number) = pid.parse::<u32>() else { return false };
    number != std::process::id()
        && std::fs::read_to_string(format!("/proc/{number}/comm"))
            .is_ok_and(|name| name.trim_end() == "dockerd")
}

impl Held {
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

    #[test]
    fn one_holder_at_a_time_and_stale_files_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/x.pid");
        std::fs::create_dir(dir.path().join("run")).unwrap();
        // Process 1 runs, and is no daemon.
        std::fs::write(&path, "1").unwrap();
        let held = pid_file(&path, Duration::ZERO).unwrap();
        let own = std::process::id().to_string();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), own);
        let error = pid_file(&path, Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("process with PID {own} is still running")), "{error}");
        held.remove();
        assert!(!path.exists());
        pid_file(&path, Duration::ZERO).unwrap().remove();
    }

    #[test]
    fn a_directory_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        let held = directory("data root", &root, 0o710, Duration::ZERO).unwrap();
        assert_eq!(std::fs::metadata(&root).unwrap().mode() & 0o777, 0o710);
        let error = directory("data root", &root, 0o710, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("in use by another daemon"), "{error}");
        drop(held);
        drop(directory("data root", &root, 0o710, Duration::ZERO).unwrap());
    }
}
