//! What the program is started with, and where it is: environment, home, search path.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, accessat, fstat, statat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::procfs;

/// Largest /etc/passwd of an image that is searched for a home directory.
const PASSWD_LIMIT_BYTES: usize = 1 << 20;

/// `NAME=value` once per name, the last value: getenv(3) would find the first. (runc's prepareEnv.)
pub(super) fn environment(list: &[String]) -> Result<Vec<String>> {
    let bad = |problem: String| Error::config("process.env", problem);
    let mut seen = HashSet::with_capacity(list.len());
    let mut out = Vec::with_capacity(list.len() + 1);
    for entry in list.iter().rev() {
        match entry.split_once('=') {
            None => return Err(bad(format!("invalid environment variable: {entry:?}"))),
            Some(("", _)) => {
                return Err(bad(format!("environment variable name can't be empty: {entry:?}")));
            }
            Some((name, _)) if entry.contains('\0') => {
                return Err(bad(format!("environment variable {name:?} contains a NUL byte")));
            }
            Some((name, _)) => {
                if seen.insert(name) {
                    out.push(entry.clone());
                }
            }
        }
    }
    out.reverse();
    Ok(out)
}

/// Adds HOME where it is missing or empty.
pub(super) fn set_home(env: &mut Vec<String>, uid: u32) {
    let home = || format!("HOME={}", home_of(uid));
    match env.iter_mut().find(|e| e.starts_with("HOME=")) {
        Some(empty) if empty == "HOME=" => *empty = home(),
        Some(_) => {}
        None => env.push(home()),
    }
}

/// The user's home by the container's own passwd file; "/" if that does not say.
fn home_of(uid: u32) -> String {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let text = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok().and_then(|fd| {
        let regular = FileType::from_raw_mode(fstat(&fd).ok()?.st_mode) == FileType::RegularFile;
        regular.then(|| procfs::read_bytes(&fd, PASSWD_LIMIT_BYTES).ok()).flatten()
    });
    let text = String::from_utf8_lossy(text.as_deref().unwrap_or_default()).into_owned();
    for line in text.lines() {
        let mut fields = line.split(':').skip(2);
        if fields.next().and_then(|u| u.parse::<u32>().ok()) == Some(uid)
            && let Some(home) = fields.nth(2).filter(|h| !h.is_empty())
        {
            return home.to_owned();
        }
    }
    "/".to_owned()
}

/// Finds the program as a shell (and Go's LookPath, whose words clients match on) would.
pub(super) fn find_program(name: &str, env: &[String]) -> Result<CString> {
    let c =
        |path: &[u8]| CString::new(path).map_err(|_| Error::config("process.args", "NUL inside"));
    let fail = |why: String| Error::Exec(format!("exec: {name:?}: {why}"));
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => c(name.as_bytes()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                Err(fail(format!("stat {name}: no such file or directory")))
            }
            Err(Errno::ISDIR) => Err(fail("is a directory".into())),
            Err(_) => Err(fail("permission denied".into())),
        };
    }
    let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    for dir in path.split(':').filter(|_| !path.is_empty()) {
        let full = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        if executable(&full).is_err() {
            continue;
        }
        if !full.is_absolute() {
            return Err(fail("cannot run executable found relative to current directory".into()));
        }
        return c(full.as_os_str().as_bytes());
    }
    Err(fail("executable file not found in $PATH".into()))
}

fn executable(path: impl AsRef<Path>) -> Result<(), Errno> {
    let path = path.as_ref();
    let stat = statat(rustix::fs::CWD, path, AtFlags::empty())?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?;
    // root passes access(2) for a file that nobody may execute, but not execve(2).
    if stat.st_mode & 0o111 == 0 { Err(Errno::ACCESS) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_value_of_a_name_counts() {
        let env =
            |list: &[&str]| environment(&list.iter().map(|e| e.to_string()).collect::<Vec<_>>());
        let got = env(&["A=1", "B=", "A=2", "AB=x", "C=3=4", "A=", "B=5=6"]).unwrap();
        assert_eq!(got, ["AB=x", "C=3=4", "A=", "B=5=6"]);
        for wrong in ["A", "", "=x", "A=\0"] {
            assert!(env(&["A=1", wrong, "A=2"]).is_err(), "{wrong:?}");
        }
        let mut got = env(&["HOME=/a", "HOME="]).unwrap();
        set_home(&mut got, u32::MAX);
        assert_eq!(got, ["HOME=/"]);
        set_home(&mut got, 0);
        assert_eq!(got, ["HOME=/"]);
    }

    #[test]
    fn words_of_a_failed_search() {
        let env = vec!["PATH=/nowhere:/etc".to_owned()];
        let text = |n: &str| find_program(n, &env).unwrap_err().to_string();
        assert_eq!(text("foo"), "exec: \"foo\": executable file not found in $PATH");
        assert_eq!(text("/x/y"), "exec: \"/x/y\": stat /x/y: no such file or directory");
        assert_eq!(text("/etc"), "exec: \"/etc\": is a directory");
        assert_eq!(text("/etc/passwd"), "exec: \"/etc/passwd\": permission denied");
        assert_eq!(text("passwd"), "exec: \"passwd\": executable file not found in $PATH");
        let env = vec!["PATH=/usr/bin:/bin".to_owned()];
        assert!(find_program("sh", &env).unwrap().to_bytes().ends_with(b"/sh"));
    }
}
