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
