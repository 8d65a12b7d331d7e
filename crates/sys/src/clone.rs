//! clone3(2) as a fork: the child has a copy of the memory and runs a closure.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `CLONE_PARENT`: the child's parent is the caller's parent.
pub const CLONE_PARENT: u64 = 0x8000;
/// `CLONE_NEWTIME`: the child is in a new time namespace.
pub const CLONE_NEWTIME: u64 = 0x80;
/// `CLONE_NEWNS`.
pub const CLONE_NEWNS: u64 = 0x0002_0000;
/// `CLONE_NEWCGROUP`.
pub const CLONE_NEWCGROUP: u64 = 0x0200_0000;
/// `CLONE_NEWUTS`.
pub const CLONE_NEWUTS: u64 = 0x0400_0000;
/// `CLONE_NEWIPC`.
pub const CLONE_NEWIPC: u64 = 0x0800_0000;
/// `CLONE_NEWUSER`.
pub const CLONE_NEWUSER: u64 = 0x1000_0000;
/// `CLONE_NEWPID`.
pub const CLONE_NEWPID: u64 = 0x2000_0000;
/// `CLONE_NEWNET`.
pub const CLONE_NEWNET: u64 = 0x4000_0000;

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What [`clone_process`] takes.
#[derive(Debug, Default)]
pub struct CloneOptions<'a> {
    /// `CLONE_NEW*` and `CLONE_PARENT`; nothing that shares memory.
    pub flags: u64,
    /// cgroup v2 directory in which the child starts (kernel 5.7).
    pub into_cgroup: Option<BorrowedFd<'a>>,
}

/// The new process, from its maker's side.
#[derive(Debug)]
pub struct Child {
    /// Pid in the caller's pid namespace.
    pub pid: i32,
    /// The same process.
    pub pidfd: OwnedFd,
}

/// Makes a process that runs `child` and then exits with the code it returns.
///
/// The calling process must have one thread only: the child may otherwise wait for ever for a
/// lock (malloc's, say) that another thread held. Memory is copied, descriptors are shared as
/// after fork(2), destructors of the caller's frames do not run in the child. The exit signal is
/// SIGCHLD (with `CLONE_PARENT`: the caller's own exit signal).
///
/// # Errors
/// The errno of clone3(2).
pub fn clone_process(
    options: &CloneOptions<'_>,
    child: impl FnOnce() -> i32,
) -> Result<Child, rustix::io::Errno> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is a plain struct of integers, for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = options.flags | CLONE_PIDFD;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    // clone3 refuses an exit signal together with CLONE_PARENT.
    if options.flags & CLONE_PARENT == 0 {
        args.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    }
    if let Some(fd) = options.into_cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(fd.as_raw_fd().unsigned_abs());
    }
    // SAFETY: args outlives the call and has the size given. No CLONE_VM, so the child runs on a
    // copy of this stack and of all memory, exactly as after fork(2); it never returns from this
    // function (panics abort in this workspace, and _exit runs no handlers of the parent).
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        0 => {
            let code = child();
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(code) }
        }
        -1 => {
            let error = io::Error::last_os_error();
            Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::INVAL))
        }
        pid => Ok(Child {
            // The kernel's pids end at 2^22.
            pid: i32::try_from(pid).unwrap_or(i32::MAX),
            // SAFETY: on success the kernel has stored a new descriptor that nothing else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}
