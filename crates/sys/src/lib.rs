//! The only unsafe code of the workspace: system calls that rustix lacks, behind safe functions.
//!
//! Owns: nothing but wrappers; each module names the calls it wraps. Does not own: policy, state,
//! retries. On-disk layout, locks, tasks, channels: none.

pub mod bpf;
pub mod clone;
pub mod exec;
pub mod fork;
pub mod heap;
pub mod mempolicy;
pub mod mount;
pub mod netns;
pub mod overlay;
pub mod packet;
pub mod private_mount;
pub mod process;
pub mod seccomp;
pub mod shim;
pub mod title;
pub mod trace;
pub mod tree;

/// A raw system call's answer as a Result.
pub(crate) fn check(rc: libc::c_long) -> Result<i32, rustix::io::Errno> {
    if rc == -1 {
        let error = std::io::Error::last_os_error();
        return Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::INVAL));
    }
    i32::try_from(rc).map_err(|_| rustix::io::Errno::RANGE)
}
