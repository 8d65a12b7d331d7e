//! Whose a cgroup is: a create that was cut short must not take with it what has come to its place since.

use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::{files, freeze};
use crate::error::{Context, Error, Result};
use crate::procfs::ProcFs;

/// The first is root's; the second is there for others on v2 (kernel 5.7).
const MARKS: [&str; 2] = ["trusted.gantry.container", "user.gantry.container"];
/// Longest mark that is read; ours have 32.
const MARK_LIMIT_BYTES: usize = 64;

/// A mark of a new container's: random, so that no other bears it, of whatever root.
pub(crate) fn new_mark() -> Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .ctx("getrandom", || "for the cgroup's mark")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Taken by a container for the directories of its cgroup.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim<'a> {
    /// Of [`new_mark`].
    pub(crate) mark: &'a str,
    /// Directories that were missing before, and that no one else makes for it.
    pub(crate) fresh: &'a [PathBuf],
}

impl Claim<'_> {
    /// Marks a directory that was made (`new`) or found.
    ///
    /// # Errors
    /// [`Error::WrongStatus`] if another has made it since it was looked for.
    pub(super) fn take(&self, dir: &Path, new: bool) -> Result<()> {
        if !new && self.fresh.iter().any(|fresh| fresh == dir) {
            let text = format!("container's cgroup {} was taken meanwhile", dir.display());
            return Err(Error::WrongStatus(text));
        }
        let mark = self.mark.as_bytes();
        let set = |name| rustix::fs::setxattr(dir, name, mark, XattrFlags::empty());
        // If neither is allowed or known to this kernel, nothing is killed by it either.
        let _marked = MARKS.into_iter().any(|name| set(name).is_ok());
        Ok(())
    }
}

/// Whose mark a directory bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Ours,
    Another,
    Unknown,
}

fn owner_of(dir: &Path, mark: &str) -> Owner {
    let mut value = [0; MARK_LIMIT_BYTES];
    for name in MARKS {
        match rustix::fs::getxattr(dir, name, &mut value[..]) {
            Ok(n) if value[..n] == *mark.as_bytes() => return Owner::Ours,
            // Also a longer one.
            Ok(_) | Err(Errno::RANGE) => return Owner::Another,
            Err(_) => {}
        }
    }
    Owner::Unknown
}

/// Whether another container has taken the directory since it was this one's.
pub(crate) fn is_anothers(mark: &str, dir: &Path) -> bool {
    !mark.is_empty() && owner_of(dir, mark) == Owner::Another
}

/// Those of the directories that no container of another runtime, which marks nothing, has taken since: in
/// which no process is the first of its pid namespace. (One without a pid namespace of its own cannot be
/// told.) For a record whose own process has ended.
pub(crate) fn without_another_first(dirs: &[PathBuf], proc: &ProcFs) -> Vec<PathBuf> {
    let is_first = |pid: &i32| {
        let status = proc.read(&format!("{pid}/status")).unwrap_or_default();
        status.lines().find_map(|l| l.strip_prefix("NSpid:")).is_some_and(is_nested_first)
    };
    let is_free = |dir: &&PathBuf| {
        // What cannot be read is not there.
        let processes = super::processes_below(dir).unwrap_or_default();
        !processes.iter().any(is_first)
    };
    dirs.iter().filter(is_free).cloned().collect()
}

/// Of `/proc/PID/status`: the process's number in each pid namespace, the outermost first.
fn is_nested_first(numbers: &str) -> bool {
    let numbers: Vec<&str> = numbers.split_ascii_whitespace().collect();
    numbers.len() > 1 && numbers.last() == Some(&"1")
}

/// Kills what runs in those of the directories that bear the mark: it was left by a hook of a create that
/// came to nothing.
pub(crate) fn kill(mark: &str, dirs: &[PathBuf]) -> Result<()> {
    dirs.iter()
        .filter(|dir| owner_of(dir, mark) == Owner::Ours)
        .map(|dir| freeze::kill_in(dir))
        .fold(Ok(()), Result::and)
}

/// As [`kill`], and removes the directories, but for those that another has marked since.
pub(crate) fn clear(mark: &str, dirs: &[PathBuf]) -> Result<()> {
    let killed = kill(mark, dirs);
    let removed = dirs
        .iter()
        .map(|dir| match owner_of(dir, mark) {
            Owner::Ours => files::remove(dir, super::DEPTH_LIMIT),
            Owner::Another => Ok(()),
            // Made, but not marked before its maker was killed: if it stays in use, it is another's.
            Owner::Unknown => match files::remove(dir, 0) {
                Err(e) if e.errno() == Some(Errno::BUSY) => Ok(()),
                other => other,
            },
        })
        .fold(Ok(()), Result::and);
    killed.and(removed)
}

/// Whether none of the directories is left but what is another's.
pub(crate) fn is_clear(mark: &str, dirs: &[PathBuf]) -> bool {
    dirs.iter().all(|dir| !dir.exists() || owner_of(dir, mark) != Owner::Ours)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_first_of_a_pid_namespace_is_told() {
        for (numbers, first) in [
            ("\t77\t1", true),
            ("\t5\t9\t1", true),
            ("\t1", false),
            ("\t77", false),
            ("\t1\t2", false),
        ] {
            assert_eq!(is_nested_first(numbers), first, "{numbers}");
        }
    }

    #[test]
    fn what_another_makes_or_takes_meanwhile_is_the_others() {
        let ground = tempfile::tempdir().unwrap();
        let dir = ground.path().join("leaf");
        std::fs::create_dir(&dir).unwrap();
        let fresh = [dir.clone()];
        let [ours, others] = [new_mark().unwrap(), new_mark().unwrap()];
        let (ours, others) = (ours.as_str(), others.as_str());
        let claim = Claim { mark: ours, fresh: &fresh };
        let text = claim.take(&dir, false).unwrap_err().to_string();
        assert!(text.contains("leaf was taken meanwhile"), "{text}");
        assert_eq!(owner_of(&dir, ours), Owner::Unknown);
        claim.take(&dir, true).unwrap();
        assert_eq!(owner_of(&dir, ours), Owner::Ours);
        assert!(!is_clear(ours, &fresh) && is_clear(others, &fresh));
        // Found empty, and taken over.
        Claim { mark: others, fresh: &[] }.take(&dir, false).unwrap();
        assert!(is_anothers(ours, &dir) && !is_anothers(others, &dir));
        clear(ours, &fresh).unwrap();
        assert!(dir.exists() && is_clear(ours, &fresh));
        clear(others, &fresh).unwrap();
        assert!(!dir.exists());
    }
}
