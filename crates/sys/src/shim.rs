//! What a shim needs beyond rustix: signals by number through a pidfd, programs started with
//! extra descriptors, a closed and cleared process to start from.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;

/// pidfd_send_signal(2) with any signal number, real-time ones too.
///
/// # Errors
/// The errno: `ESRCH` once the process was reaped, `EINVAL` for no signal.
pub fn pidfd_kill(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    // SAFETY: the descriptor is borrowed and open; the info pointer may be null.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    crate::check(rc).map(drop)
}

/// Closes every descriptor from 3 on, whoever opened it.
///
/// For the first lines of a program, before it has opened anything: nothing may own them.
///
/// # Errors
/// The errno of close_range(2), other than `ENOSYS` (kernels before 5.9 keep them).
pub fn close_inherited() -> Result<(), Errno> {
    // SAFETY: no pointers. That nothing in this program owns the descriptors is the caller's
    // promise, and a broken one can only make later calls fail with EBADF.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    match crate::check(rc) {
        Err(Errno::NOSYS) => Ok(()),
        other => other.map(drop),
    }
}

/// Empties the environment.
///
/// # Errors
/// More than one thread runs: environ could be read at this moment.
pub fn clear_environment() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("clear the environment: more than one thread"));
    }
    // SAFETY: this is the only thread (checked above), so nobody reads environ meanwhile.
    unsafe { libc::clearenv() };
    Ok(())
}

/// Lets the program have `fds` as descriptors 3, 4, 5, … beside its standard streams.
pub fn pass_fds(command: &mut Command, fds: Vec<OwnedFd>) {
    let first = 3;
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe calls
    // (fcntl, dup2), without allocation; `fds` is moved into it, so they are open.
    unsafe {
        command.pre_exec(move || {
            // First out of the way of the numbers that are about to be taken.
            let mut high = [-1i32; 8];
            for (slot, fd) in high.iter_mut().zip(&fds) {
                *slot = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 64);
                if *slot < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            for (number, fd) in (first..).zip(high.iter().take(fds.len())) {
                if libc::dup2(*fd, number) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}
