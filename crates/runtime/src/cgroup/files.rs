//! Reading, writing and removing cgroup files and directories.

use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Result};
use crate::procfs;

/// Largest cgroup file that is read (cgroup.procs of a very full cgroup).
const READ_LIMIT_BYTES: usize = 8 << 20;

pub(super) fn write(dir: &Path, file: &str, value: &str) -> Result<()> {
    let path = dir.join(file);
    rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|fd| rustix::io::write(&fd, value.as_bytes()))
        .map(drop)
        .ctx("write", || format!("{value:?} to {}", path.display()))
}

pub(super) fn read(path: &Path) -> Result<String> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|fd| procfs::read_text(&fd, READ_LIMIT_BYTES))
        .ctx("read", || path.display().to_string())
}

/// A file that may be missing (an older kernel, another configuration).
pub(super) fn read_optional(dir: &Path, file: &str) -> Result<Option<String>> {
    match read(&dir.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.errno(), Some(Errno::NOENT | Errno::OPNOTSUPP | Errno::NODEV)) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// A number, `max` being `u64::MAX`; 0 if the file is missing.
pub(super) fn number(dir: &Path, file: &str) -> Result<u64> {
    let text = read_optional(dir, file)?.unwrap_or_default();
    let text = text.trim();
    Ok(if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) })
}

/// `key value` lines.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|l| {
        let (key, value) = l.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// Calls `f` with the directory and every one below, parents first. Ones that vanish are fine.
pub(super) fn for_each_below(
    dir: &Path,
    depth: usize,
    f: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    match f(dir) {
        Err(e) if matches!(e.errno(), Some(Errno::NOENT | Errno::NODEV)) => return Ok(()),
        other => other?,
    }
    if depth == 0 {
        return Ok(());
    }
    for sub in subdirectories(dir)? {
        for_each_below(&sub, depth - 1, f)?;
    }
    Ok(())
}

fn subdirectories(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let name = || dir.display().to_string();
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.ctx("read", name)?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.ctx("read", name)?;
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            out.push(entry.path());
        }
    }
    Ok(out)
}

/// Makes the directory and its parents; `true` if it was missing.
pub(super) fn make(dir: &Path) -> Result<bool> {
    match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(Errno::NOENT) => {
            if let Some(parent) = dir.parent() {
                make(parent)?;
            }
            match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
                Ok(()) => Ok(true),
                Err(Errno::EXIST) => Ok(false),
                Err(e) => Err(e).ctx("mkdir", || dir.display().to_string()),
            }
        }
        Err(e) => Err(e).ctx("mkdir", || dir.display().to_string()),
    }
}

/// rmdir, with those below first. The kernel says EBUSY for a moment after the last process of a
/// cgroup has been reaped: that is waited for, with growing pauses, about two seconds in all.
pub(super) fn remove(dir: &Path, depth: usize) -> Result<()> {
    /// Pauses of 1, 2, 4 … 1024 ms.
    const TRIES: u32 = 11;
    for n in 0..TRIES {
        match sweep(dir, depth) {
            Err(e) if matches!(e.errno(), Some(Errno::BUSY | Errno::INTR)) => {}
            other => return other,
        }
        std::thread::sleep(Duration::from_millis(1 << n));
    }
    sweep(dir, depth)
}

/// One attempt at every directory, those below first.
fn sweep(dir: &Path, depth: usize) -> Result<()> {
    let mut below = Ok(());
    if depth > 0 {
        for sub in subdirectories(dir)? {
            let swept = sweep(&sub, depth - 1);
            if below.is_ok() {
                below = swept;
            }
        }
    }
    // If one below is left, that one is what is to be told.
    below?;
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e).ctx("rmdir", || dir.display().to_string()),
    }
}
