//! mount_setattr(2), which rustix lacks.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// `MOUNT_ATTR_RDONLY`.
pub const ATTR_RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`.
pub const ATTR_NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`.
pub const ATTR_NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`.
pub const ATTR_NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR__ATIME`: the mask of the three access time values.
pub const ATTR_ATIME_MASK: u64 = 0x70;
/// `MOUNT_ATTR_RELATIME`, a value of the atime field.
pub const ATTR_RELATIME: u64 = 0x0;
/// `MOUNT_ATTR_NOATIME`, a value of the atime field.
pub const ATTR_NOATIME: u64 = 0x10;
/// `MOUNT_ATTR_STRICTATIME`, a value of the atime field.
pub const ATTR_STRICTATIME: u64 = 0x20;
/// `MOUNT_ATTR_NODIRATIME`.
pub const ATTR_NODIRATIME: u64 = 0x80;
/// `MOUNT_ATTR_IDMAP`.
pub const ATTR_IDMAP: u64 = 0x0010_0000;
/// `MOUNT_ATTR_NOSYMFOLLOW`.
pub const ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

/// What is changed on a mount.
#[derive(Debug, Default, Clone, Copy)]
pub struct MountAttr<'a> {
    /// `ATTR_*` to set.
    pub set: u64,
    /// `ATTR_*` to clear (first).
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 to leave it.
    pub propagation: u64,
    /// User namespace whose mapping the mount gets, with `ATTR_IDMAP`.
    pub userns: Option<BorrowedFd<'a>>,
    /// The whole tree, not the one mount.
    pub recursive: bool,
}

#[repr(C)]
struct RawAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the mount that `fd` is the root of (kernel 5.12).
///
/// # Errors
/// The errno of mount_setattr(2).
pub fn mount_setattr(fd: impl AsFd, attr: &MountAttr<'_>) -> Result<(), Errno> {
    mount_setattr_at(fd, c"", attr)
}

/// Changes the mount whose root is `path` below `fd` (empty: `fd` itself).
///
/// # Errors
/// The errno of mount_setattr(2).
pub fn mount_setattr_at(fd: impl AsFd, path: &CStr, attr: &MountAttr<'_>) -> Result<(), Errno> {
    let raw = RawAttr {
        attr_set: attr.set,
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: attr.userns.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if attr.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the kernel reads `size` bytes of raw, which lives across the call; path is a C string.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const raw,
            size_of::<RawAttr>(),
        )
    };
    crate::check(rc).map(drop)
}
