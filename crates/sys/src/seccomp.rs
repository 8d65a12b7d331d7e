//! seccomp(2).
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

/// `SECCOMP_FILTER_FLAG_TSYNC`.
pub const FLAG_TSYNC: u32 = 1;
/// `SECCOMP_FILTER_FLAG_LOG`.
pub const FLAG_LOG: u32 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`.
pub const FLAG_SPEC_ALLOW: u32 = 1 << 2;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub const FLAG_NEW_LISTENER: u32 = 1 << 3;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
pub const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

const SET_MODE_FILTER: libc::c_uint = 1;

/// One instruction of classic BPF: `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if true.
    pub jt: u8,
    /// Instructions to skip if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

#[repr(C)]
struct Prog {
    len: libc::c_ushort,
    filter: *const Insn,
}

/// Installs a filter on the calling thread; with `FLAG_NEW_LISTENER` gives the listener.
///
/// # Errors
/// The errno of seccomp(2); `E2BIG` for more than 65,535 instructions.
pub fn load(program: &[Insn], flags: u32) -> Result<Option<OwnedFd>, Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::TOOBIG)?;
    let prog = Prog { len, filter: program.as_ptr() };
    // SAFETY: prog describes a live slice of instructions with C layout; the kernel copies it.
    let rc = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const prog) };
    let fd = crate::check(rc)?;
    if flags & FLAG_NEW_LISTENER != 0 {
        // SAFETY: with this flag the kernel returns a new descriptor that nothing else owns.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    if fd != 0 {
        // With TSYNC the kernel returns the id of a thread that could not be synchronised.
        return Err(Errno::SRCH);
    }
    Ok(None)
}
