//! What attacks share: files of the host that must stay as they are, somebody who swaps files while the
//! runtime works, and a naive program that joins a container.

use crate::oci::bundle::Bundle;
use crate::oci::call::{Call, Ran};
use crate::oci::{Checked, Failure, same, want};
use crate::{Result, random};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// So many swaps an attack has to go through.
pub(super) const SWAPS: u64 = 10_000;

pub(super) fn failed(what: &str) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |error| Failure::Violated(format!("{what}: {error}"))
}

pub(super) fn link(target: impl AsRef<Path>, at: impl AsRef<Path>) -> Checked {
    std::os::unix::fs::symlink(target, at).map_err(failed("symlink"))
}

/// A directory of the host, beside the container's root.
pub(super) struct Canary {
    pub(super) dir: PathBuf,
    before: Vec<String>,
}

impl Canary {
    pub(super) fn new(b: &Bundle<'_>) -> Checked<Self> {
        let dir = b.path("canary");
        crate::oci::write(dir.join("file"), random::token(20))?;
        crate::oci::write(dir.join("sub/file"), random::token(20))?;
        let mode = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(dir.join("file"), mode).map_err(failed("chmod"))?;
        let before = manifest(&dir)?;
        Ok(Self { dir, before })
    }

    pub(super) fn file(&self) -> PathBuf {
        self.dir.join("file")
    }

    pub(super) fn unchanged(&self) -> Checked {
        same("the host's files", manifest(&self.dir)?, self.before.clone())
    }

    /// What the attack wants.
    pub(super) fn is_hit(&self) -> bool {
        manifest(&self.dir).is_ok_and(|now| now != self.before)
    }
}

/// Path, mode, owner and content of everything, and the mounts on it.
fn manifest(dir: &Path) -> Checked<Vec<String>> {
    let mut lines = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let meta = std::fs::symlink_metadata(&path).map_err(failed("stat"))?;
        let content =
            if meta.is_file() { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
        let content = String::from_utf8_lossy(&content).into_owned();
        let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
        lines.push(format!("{} {mode:o} {uid}:{gid} {content}", path.display()));
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).map_err(failed("list"))?;
            left.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    let mounts = crate::oci::read("/proc/self/mountinfo")?;
    let here = dir.display().to_string();
    lines.extend(mounts.lines().filter(|line| line.contains(&here)).map(str::to_owned));
    lines.sort();
    Ok(lines)
}

/// Swaps two names over and over, as a container does that shares a volume.
pub(super) struct Racer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Racer {
    pub(super) fn new(one: PathBuf, two: PathBuf) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                // The other side has to get a word in, on a machine of two processors.
                std::thread::yield_now();
            }
        });
        Self { stop, count, thread: Some(thread) }
    }

    pub(super) fn swaps(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does nothing that panics.
            drop(thread.join());
        }
    }
}

/// Runs the container again and again while `one` and `two` are swapped, at least `times` and until
/// there were enough swaps; `look` judges each run.
pub(super) fn raced(
    b: &mut Bundle<'_>,
    (one, two): (PathBuf, PathBuf),
    times: usize,
    mut look: impl FnMut(&Ran) -> Checked,
) -> Checked {
    b.save()?;
    let racer = Racer::new(one, two);
    let mut done = 0;
    while done < times || (racer.swaps() < SWAPS && done < times * 20) {
        let ran = b.rt(&["run", &b.id])?;
        look(&ran)?;
        if ran.code != 0 {
            // What was made when it failed is its own affair, but no container may be left.
            b.nothing_left()?;
        }
        done += 1;
    }
    want(racer.swaps() >= SWAPS, "swaps", racer.swaps())
}

/// Does `attempt` over and over while the two are swapped, until `hit`: whether it was.
pub(super) fn hit_while_swapped(
    (one, two): (PathBuf, PathBuf),
    mut attempt: impl FnMut() -> Checked,
    hit: impl Fn() -> bool,
) -> Checked<bool> {
    let _racer = Racer::new(one, two);
    for _ in 0..3000 {
        attempt()?;
        if hit() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A program that joins a container as it should not be done: with what it has open, and visible from
/// the first moment.
pub(super) fn naive_join(b: &Bundle<'_>, redirects: &str, words: &[&str]) -> Checked<Call> {
    let pid = b.pid()?.to_string();
    let mut argv = ["nsenter", "-t", &pid, "-p", "-m", "--"].map(str::to_owned).to_vec();
    argv.extend(words.iter().map(|&word| word.to_owned()));
    Ok(Call::new(&b.path(""), argv).redirects(redirects))
}

/// A line of shell on the host, as a naive runtime would do things.
pub(super) fn naive(b: &Bundle<'_>, line: &str) -> Result<Ran> {
    let argv = ["sh", "-c", line].map(str::to_owned).to_vec();
    Call::new(&b.path(""), argv).go()
}
