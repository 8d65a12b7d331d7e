//! ptrace(2): taking hold of another process. What a hostile container does; used by tests.
#![allow(unsafe_code)]

use rustix::io::Errno;

fn ptrace(request: libc::c_uint, pid: i32) -> Result<(), Errno> {
    let null: *mut libc::c_void = std::ptr::null_mut();
    // SAFETY: none of the requests below reads or writes memory of the caller.
    crate::check(unsafe { libc::ptrace(request, pid, null, null) }).map(drop)
}

/// `PTRACE_SEIZE`: becomes the process's tracer, without stopping it.
///
/// # Errors
/// `ESRCH` if there is no such process, `EPERM` if it may not be traced.
pub fn seize(pid: i32) -> Result<(), Errno> {
    ptrace(libc::PTRACE_SEIZE, pid)
}

/// `PTRACE_INTERRUPT`: stops a seized process; then it is to be waited for.
///
/// # Errors
/// The errno of ptrace(2).
pub fn interrupt(pid: i32) -> Result<(), Errno> {
    ptrace(libc::PTRACE_INTERRUPT, pid)
}

/// `PTRACE_DETACH`: lets a stopped process go on.
///
/// # Errors
/// The errno of ptrace(2).
pub fn detach(pid: i32) -> Result<(), Errno> {
    ptrace(libc::PTRACE_DETACH, pid)
}

/// Waits until a traced process stops; false if it has ended instead.
///
/// # Errors
/// The errno of waitpid(2).
pub fn wait_stop(pid: i32) -> Result<bool, Errno> {
    let mut status = 0;
    // SAFETY: status lives across the call.
    crate::check(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }.into())?;
    Ok(libc::WIFSTOPPED(status))
}
