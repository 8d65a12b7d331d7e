//! set_mempolicy(2).
#![allow(unsafe_code)]

use rustix::io::Errno;

/// Nodes that a policy can name: the kernel's largest configuration.
pub const NODE_LIMIT: usize = 1024;
const WORD_BITS: usize = 64;

/// Sets the calling thread's memory policy, which its children inherit. `mode` is an `MPOL_*`
/// value with its flags; `nodes` are node numbers below [`NODE_LIMIT`], empty where the mode takes none.
///
/// # Errors
/// The errno of set_mempolicy(2): `EINVAL` for a mode and nodes that do not fit, nodes that are not
/// there or a number that is too large, `ENOSYS` on a kernel without NUMA.
pub fn set_memory_policy(mode: i32, nodes: &[usize]) -> Result<(), Errno> {
    let mut mask = [0u64; NODE_LIMIT / WORD_BITS];
    for node in nodes {
        *mask.get_mut(node / WORD_BITS).ok_or(Errno::INVAL)? |= 1 << (node % WORD_BITS);
    }
    // The kernel takes one bit less than it is told.
    let (pointer, bits) = match nodes {
        [] => (std::ptr::null(), 0),
        _ => (mask.as_ptr(), NODE_LIMIT + 1),
    };
    // SAFETY: the kernel reads NODE_LIMIT bits from mask, which has as many and lives across the
    // call; a null pointer goes with a count of 0.
    crate::check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) }).map(drop)
}
