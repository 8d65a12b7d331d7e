//! fork(2), for a process inside a container: seccomp profiles let it through where they refuse
//! clone3, whose flags they cannot see.
#![allow(unsafe_code)]

use rustix::io::Errno;

/// Makes a process that runs `child` and then exits with the code it returns; answers its pid.
///
/// The calling process must have one thread only: the child may otherwise wait for ever for a lock
/// that another thread held. The pid stays the child's until the caller has waited for it.
///
/// # Errors
/// The errno of fork(2).
pub fn fork_process(child: impl FnOnce() -> i32) -> Result<i32, Errno> {
    // SAFETY: no preconditions in a process of one thread, as the caller promises; the child runs on a
    // copy of all memory and never returns from this function (panics abort in this workspace, and
    // _exit runs no handlers of the parent).
    match unsafe { libc::fork() } {
        0 => {
            let code = child();
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(code) }
        }
        pid => crate::check(pid.into()),
    }
}

/// Makes a process as [`fork_process`] does, but as a child of the caller's parent: by clone(2) with
/// `CLONE_PARENT` and nothing else, which seccomp profiles let through. Answers its pid, as it is in
/// the caller's pid namespace.
///
/// The same conditions hold; whoever is the parent waits for it. Its exit signal is the caller's own.
///
/// # Errors
/// The errno of clone(2).
pub fn fork_sibling(child: impl FnOnce() -> i32) -> Result<i32, Errno> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: no CLONE_VM and no stack of its own: as after fork(2) the child runs on a copy of all
    // memory, and it never returns from this function. Pointers that flags would make the kernel use
    // are null.
    match unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) } {
        0 => {
            let code = child();
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(code) }
        }
        pid => crate::check(pid),
    }
}

/// The flags of [`fork_sibling`]'s clone(2), for whoever asks a filter about it.
pub const FORK_SIBLING_FLAGS: u64 = 0x8000 | 17;
