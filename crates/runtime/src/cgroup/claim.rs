//! Whose a cgroup is: a create that was cut short must not take with it what has come to its place since.

use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::{files, freeze};
use crate::error::{Error, Result};

/// The first is root's; the second is there for others on v2 (kernel 5.7).
const MARKS: [&str; 2] = ["trusted.gantry.container", "user.gantry.container"];
/// Longest value of an extended attribute (xattr(7)).
const VALUE_LIMIT_BYTES: usize = 64 << 10;

/// Taken by a container for the directories of its cgroup.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim<'a> {
    /// The container's state directory, which is its mark.
    pub(crate) owner: &'a Path,
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
        let owner = self.owner.as_os_str().as_encoded_bytes();
        let set = |mark| rustix::fs::setxattr(dir, mark, owner, XattrFlags::empty());
        // If neither is allowed or known to this kernel, nothing is killed by it either.
        let _marked = MARKS.into_iter().any(|mark| set(mark).is_ok());
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

fn owner_of(dir: &Path, owner: &Path) -> Owner {
    let mut value = vec![0; VALUE_LIMIT_BYTES];
    for mark in MARKS {
        match rustix::fs::getxattr(dir, mark, &mut value[..]) {
            Ok(n) if value[..n] == *owner.as_os_str().as_encoded_bytes() => return Owner::Ours,
            Ok(_) => return Owner::Another,
            Err(_) => {}
        }
    }
    Owner::Unknown
}

/// Kills what runs in those of the directories that bear `owner`'s mark: it was left by a hook of a
/// create that came to nothing.
pub(crate) fn kill(owner: &Path, dirs: &[PathBuf]) -> Result<()> {
    dirs.iter()
        .filter(|dir| owner_of(dir, owner) == Owner::Ours)
        .map(|dir| freeze::kill_in(dir))
        .fold(Ok(()), Result::and)
}

/// As [`kill`], and removes the directories, but for those that another has marked since.
pub(crate) fn clear(owner: &Path, dirs: &[PathBuf]) -> Result<()> {
    let killed = kill(owner, dirs);
    let removed = dirs
        .iter()
        .map(|dir| match owner_of(dir, owner) {
            Owner::Ours => files::remove(dir, super::DEPTH_LIMIT),
            Owner::Another => Ok(()),
            // Made, but not marked before its maker was killed: if it is in use, it is another's.
            Owner::Unknown => match files::remove_unused(dir) {
                Err(e) if e.errno() == Some(Errno::BUSY) => Ok(()),
                other => other,
            },
        })
        .fold(Ok(()), Result::and);
    killed.and(removed)
}

/// Whether none of the directories is left but what is another's.
pub(crate) fn is_clear(owner: &Path, dirs: &[PathBuf]) -> bool {
    dirs.iter().all(|dir| !dir.exists() || owner_of(dir, owner) != Owner::Ours)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_another_makes_or_takes_meanwhile_is_the_others() {
        let ground = tempfile::tempdir().unwrap();
        let dir = ground.path().join("leaf");
        std::fs::create_dir(&dir).unwrap();
        let fresh = [dir.clone()];
        let [ours, others] = ["/run/a/1", "/run/b/1"].map(Path::new);
        let claim = Claim { owner: ours, fresh: &fresh };
        let text = claim.take(&dir, false).unwrap_err().to_string();
        assert!(text.contains("leaf was taken meanwhile"), "{text}");
        assert_eq!(owner_of(&dir, ours), Owner::Unknown);
        claim.take(&dir, true).unwrap();
        assert_eq!(owner_of(&dir, ours), Owner::Ours);
        assert!(!is_clear(ours, &fresh) && is_clear(others, &fresh));
        // Found empty, and taken over.
        Claim { owner: others, fresh: &[] }.take(&dir, false).unwrap();
        assert_eq!(owner_of(&dir, ours), Owner::Another);
        clear(ours, &fresh).unwrap();
        assert!(dir.exists() && is_clear(ours, &fresh));
        clear(others, &fresh).unwrap();
        assert!(!dir.exists());
    }
}
