//! The container's terminal: a pty of its own devpts.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{OFlags, ResolveFlags, fstatfs};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::{Context, Error, Result};
use crate::rootfs::resolve::open_in;
use crate::spec::ConsoleSize;

const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// Master and slave of a new pty. The slave is opened through the master (TIOCGPTPEER), never by
/// a path that the image could have bent.
pub(crate) fn open(root: BorrowedFd<'_>, size: Option<&ConsoleSize>) -> Result<(OwnedFd, OwnedFd)> {
    let name = || "the container's /dev/pts/ptmx";
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = open_in(root, Path::new("/dev/pts/ptmx"), flags, ResolveFlags::empty())
        .ctx("open", name)?;
    let stat = fstatfs(&master).ctx("statfs", name)?;
    if u64::try_from(stat.f_type) != Ok(DEVPTS_SUPER_MAGIC) {
        return Err(Error::config("/dev/pts", "is not a devpts"));
    }
    unlockpt(&master).ctx("unlock", name)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).ctx("open", || "the pty's slave")?;
    if let Some(size) = size {
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, size).ctx("set size of", || "the pty")?;
    }
    Ok((master, slave))
}

/// Makes descriptor 0, a pty's slave, the controlling terminal. The caller has called setsid.
pub(crate) fn control() -> Result<()> {
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
        .ctx("make controlling terminal", || "the pty")
}

/// Puts descriptors into places 0, 1 and 2.
pub(crate) fn connect(
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> Result<()> {
    rustix::stdio::dup2_stdin(stdin).ctx("dup2", || "stdin")?;
    rustix::stdio::dup2_stdout(stdout).ctx("dup2", || "stdout")?;
    rustix::stdio::dup2_stderr(stderr).ctx("dup2", || "stderr")
}
