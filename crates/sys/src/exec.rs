//! execve(2) and execveat(2) on argument vectors that were built beforehand.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// A NULL-terminated vector of C strings, ready for execve.
#[derive(Debug)]
pub struct CStrVec {
    strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl CStrVec {
    /// Copies the strings; `None` if one has a NUL inside.
    pub fn new<S: AsRef<[u8]>>(items: impl IntoIterator<Item = S>) -> Option<CStrVec> {
        let strings: Option<Vec<CString>> =
            items.into_iter().map(|s| CString::new(s.as_ref()).ok()).collect();
        let strings = strings?;
        // A CString's bytes are on the heap and stay where they are when the Vec moves.
        let mut pointers: Vec<_> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Some(CStrVec { strings, pointers })
    }

    /// The strings.
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// Replaces the process image; returns only on failure.
pub fn execve(path: &CStr, args: &CStrVec, env: &CStrVec) -> Errno {
    // SAFETY: path is NUL-terminated, both vectors are NULL-terminated arrays of pointers to
    // NUL-terminated strings that the borrowed values own.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    last()
}

/// Replaces the process image by the file that `fd` is open on; returns only on failure.
pub fn fexecve(fd: impl AsFd, args: &CStrVec, env: &CStrVec) -> Errno {
    // SAFETY: as for execve; the empty path is a static C string.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            args.pointers.as_ptr(),
            env.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last()
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
