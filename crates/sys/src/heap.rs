//! glibc's allocator: mallopt(3), malloc_trim(3).
#![allow(unsafe_code)]

/// Lets all threads share at most `count` arenas. By default each thread may get its own, and what
/// a thread frees stays in its arena: a daemon with many short-lived threads keeps memory that way.
/// To be called before there is a second thread. Without glibc nothing happens.
pub fn limit_arenas(count: u16) {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; an unknown parameter or value is refused and changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, libc::c_int::from(count));
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// Gives free memory of the allocator back to the kernel. Without glibc nothing happens.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; the allocator's own lock is taken.
    unsafe {
        libc::malloc_trim(0);
    }
}
