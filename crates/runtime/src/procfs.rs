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

    /// The process's start time in clock ticks since boot: with the pid, its identity.
    pub(crate) fn start_time(&self, pid: i32) -> Result<Option<u64>> {
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
        let text = String::from_utf8_lossy(&buf[..n]);
        // The name is in parentheses and may hold anything; field 3 follows the last one.
        let mut rest =
            text.rsplit_once(')').map(|(_, r)| r).unwrap_or_default().split_ascii_whitespace();
        let state = rest.next().unwrap_or("X");
        if state.starts_with(['Z', 'X']) {
            return Ok(None);
        }
        Ok(rest.nth(18).and_then(|t| t.parse().ok()))
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
