//! A procfs descriptor, opened and verified before any container file system is near; every read
//! and write of /proc goes through it.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, fstatfs, openat2};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

const PROC_SUPER_MAGIC: u64 = 0x9fa0;
/// Largest procfs file that is read whole: mountinfo and cgroup.procs of big hosts stay below.
const READ_LIMIT_BYTES: usize = 16 << 20;

/// The machine's own procfs.
#[derive(Debug)]
pub(crate) struct ProcFs(OwnedFd);

impl std::os::fd::AsFd for ProcFs {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ProcFs {
    pub(crate) fn open() -> Result<ProcFs> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/proc", flags, Mode::empty()).ctx("open", || "/proc")?;
        let stat = fstatfs(&fd).ctx("statfs", || "/proc")?;
        if u64::try_from(stat.f_type) != Ok(PROC_SUPER_MAGIC) {
            return Err(Error::config("/proc", "is not a procfs"));
        }
        Ok(ProcFs(fd))
    }

    /// Opens below the procfs: never through a mount on top, never through a magic link.
    pub(crate) fn openat(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    pub(crate) fn write(&self, path: &str, value: &[u8]) -> Result<()> {
        self.openat(path, OFlags::WRONLY)
            .and_then(|fd| rustix::io::write(&fd, value))
            .ctx("write", || format!("/proc/{path}"))
            .map(drop)
    }

    pub(crate) fn read(&self, path: &str) -> Result<String> {
        let fd = self.openat(path, OFlags::RDONLY).ctx("open", || format!("/proc/{path}"))?;
        read_text(&fd, READ_LIMIT_BYTES).ctx("read", || format!("/proc/{path}"))
    }

    /// The process's start time in clock ticks since boot: with the pid, its identity. `None` if it has
    /// ended.
    pub(crate) fn start_time(&self, pid: i32) -> Result<Option<u64>> {
        Ok(self.stat(pid)?.filter(|stat| !stat.has_ended).map(|stat| stat.start_time))
    }

    /// Whether the process has executed a program since it was made, also if it has ended and nobody has
    /// waited for it yet. `None` if it is gone, or the pid another's.
    pub(crate) fn has_executed(&self, pid: i32, start_time: u64) -> Result<Option<bool>> {
        /// The kernel's PF_FORKNOEXEC; ps(1) shows it as the flag 1, "forked but didn't exec".
        const FORKED_WITHOUT_EXEC: u64 = 0x40;
        let stat = self.stat(pid)?.filter(|stat| stat.start_time == start_time);
        Ok(stat.map(|stat| stat.flags & FORKED_WITHOUT_EXEC == 0))
    }

    fn stat(&self, pid: i32) -> Result<Option<Stat>> {
        let fd = match self.openat(&format!("{pid}/stat"), OFlags::RDONLY) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e).ctx("open", || format!("/proc/{pid}/stat")),
        };
        let mut buf = [0u8; 1024];
        let n = match rustix::io::read(&fd, &mut buf) {
            Ok(n) => n,
            Err(Errno::SRCH) => return Ok(None),
            Err(e) => return Err(e).ctx("read", || format!("/proc/{pid}/stat")),
        };
        Ok(Stat::parse(&String::from_utf8_lossy(&buf[..n])))
    }
}

/// Of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    /// Field 3: a zombie, or dead.
    has_ended: bool,
    /// Field 9.
    flags: u64,
    /// Field 22.
    start_time: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The name is in parentheses and may hold anything; field 3 follows the last one.
        let mut rest = text.rsplit_once(')')?.1.split_ascii_whitespace();
        Some(Stat {
            has_ended: rest.next()?.starts_with(['Z', 'X']),
            flags: rest.nth(5)?.parse().ok()?,
            start_time: rest.nth(12)?.parse().ok()?,
        })
    }
}

/// Reads a file to its end, up to `limit` bytes (`EFBIG` beyond).
pub(crate) fn read_bytes(fd: impl std::os::fd::AsFd, limit: usize) -> Result<Vec<u8>, Errno> {
    let mut out = Vec::with_capacity(4096);
    loop {
        if out.len() > limit {
            return Err(Errno::FBIG);
        }
        out.reserve(4096);
        match rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut out)) {
            Ok(0) => return Ok(out),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

pub(crate) fn read_text(fd: &OwnedFd, limit: usize) -> Result<String, Errno> {
    String::from_utf8(read_bytes(fd, limit)?).map_err(|_| Errno::ILSEQ)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sys::clone::{CloneOptions, clone_process};

    #[test]
    fn fields_are_counted_from_the_names_end() {
        let text = "7 (a) Z 1 (b) R 1 2 3 4 5 64 7 8 9 10 11 12 13 14 15 16 17 18 1234 20 21\n";
        let want = Stat { has_ended: false, flags: 64, start_time: 1234 };
        assert_eq!(Stat::parse(text), Some(want));
        assert_eq!(Stat::parse("7 (a) R 1 2 3"), None);
    }

    #[test]
    fn a_fork_is_told_from_a_program_until_it_is_waited_for() {
        let proc = ProcFs::open().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let of = |pid| proc.has_executed(pid, proc.stat(pid).unwrap()?.start_time).unwrap();
        assert_eq!(of(own), Some(true));
        assert_eq!(proc.has_executed(own, 1).unwrap(), None);
        let child = clone_process(&CloneOptions::default(), || 3).unwrap();
        assert!(crate::hooks::ended(&child.pidfd, std::time::Duration::from_secs(10)).unwrap());
        assert_eq!((of(child.pid), proc.start_time(child.pid).unwrap()), (Some(false), None));
        assert_eq!(crate::process::reap(&child.pidfd).unwrap(), 3);
        assert_eq!(of(child.pid), None);
        let mut program = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(program.id()).unwrap();
        let pidfd = crate::process::open_child(pid).unwrap();
        assert!(crate::hooks::ended(&pidfd, std::time::Duration::from_secs(10)).unwrap());
        assert_eq!(of(pid), Some(true));
        program.wait().unwrap();
    }
}
