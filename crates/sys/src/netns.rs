//! What networking needs beyond rustix: a new network namespace for the calling
//! thread, integer socket options, and the byte-buffer socket options of the
//! legacy x_tables interface.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::thread::UnshareFlags;

/// Moves the calling thread into a new, empty network namespace.
///
/// Only the calling thread moves, and it cannot easily come back: call this on
/// a thread that ends soon after.
///
/// # Errors
/// The errno of unshare(2): EPERM without CAP_SYS_ADMIN, ENOSPC at
/// `user.max_net_namespaces`.
pub fn unshare_net() -> io::Result<()> {
    // SAFETY: unshare_unsafe is unsafe because flags such as CLONE_FILES make
    // descriptors of other threads invalid here; NEWNET touches no descriptor,
    // memory or working directory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

fn option_len(len: usize) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Sets an integer socket option that rustix has no name for, for example
/// `SOL_NETLINK`/`NETLINK_EXT_ACK` or `IPPROTO_IP`/`IP_PKTINFO`.
///
/// # Errors
/// The errno of setsockopt(2).
pub fn set_int_option(fd: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// setsockopt(2) with a plain byte buffer as its value.
///
/// The value must hold no pointers that the kernel would follow; the one
/// option of ours that does is [`xt_replace`].
///
/// # Errors
/// The errno of setsockopt(2).
pub fn set_option(fd: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = option_len(value.len())?;
    // SAFETY: `value` is readable for `len` bytes, which is its own length, and
    // outlives the call; the descriptor is borrowed, so it is open.
    let rc = unsafe {
        libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), len)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// getsockopt(2) into a byte buffer, whose contents are also the input where
/// the option reads one (x_tables takes the table's name so). Returns how many
/// bytes the kernel says it wrote.
///
/// # Errors
/// The errno of getsockopt(2).
pub fn get_option(fd: impl AsFd, level: i32, name: i32, buf: &mut [u8]) -> io::Result<usize> {
    let mut len = option_len(buf.len())?;
    // SAFETY: `buf` is writable for `len` bytes, which is its own length; `len`
    // is a valid socklen_t; both outlive the call.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            buf.as_mut_ptr().cast(),
            std::ptr::from_mut(&mut len),
        )
    };
    if rc == 0 { Ok(usize::try_from(len).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

fn field(buf: &[u8], at: usize) -> Option<usize> {
    let bytes = <[u8; 4]>::try_from(buf.get(at..at + 4)?).ok()?;
    usize::try_from(u32::from_ne_bytes(bytes)).ok()
}

/// Where `struct ipt_replace` (and `ip6t_replace`, which is equal) keeps
/// `size`, `num_counters`, the pointer `counters` and the entries on a 64-bit
/// kernel.
const XT_REPLACE_SIZE: usize = 40;
const XT_REPLACE_ENTRIES: usize = 96;
const XT_REPLACE_NUM_COUNTERS: usize = 84;
const XT_REPLACE_COUNTERS: usize = 88;
/// `sizeof(struct xt_counters)`: packets and bytes.
pub const XT_COUNTERS_LEN: usize = 16;

/// `IPT_SO_SET_REPLACE`/`IP6T_SO_SET_REPLACE`: replaces a table.
///
/// `replace` is the whole `struct ipt_replace` with its entries; the pointer to
/// the counters' buffer is filled in here. The kernel writes the replaced
/// table's counters into `counters`.
///
/// # Errors
/// EINVAL when `counters` is smaller than `num_counters` asks for or `replace`
/// is not as long as its `size` says; else the errno of setsockopt(2) (EAGAIN: the
/// table changed since it was read).
pub fn xt_replace(
    fd: impl AsFd,
    level: i32,
    name: i32,
    replace: &mut [u8],
    counters: &mut [u8],
) -> io::Result<()> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let len = option_len(replace.len())?;
    let wanted = field(replace, XT_REPLACE_NUM_COUNTERS)
        .and_then(|n| n.checked_mul(XT_COUNTERS_LEN))
        .ok_or_else(invalid)?;
    let entries = field(replace, XT_REPLACE_SIZE).ok_or_else(invalid)?;
    let whole = XT_REPLACE_ENTRIES.checked_add(entries).ok_or_else(invalid)?;
    if wanted > counters.len() || whole != replace.len() {
        return Err(invalid());
    }
    let address = (counters.as_mut_ptr() as usize).to_ne_bytes();
    replace
        .get_mut(XT_REPLACE_COUNTERS..XT_REPLACE_COUNTERS + address.len())
        .ok_or_else(invalid)?
        .copy_from_slice(&address);
    // SAFETY: `replace` is readable for its own length, and the entries that the
    // kernel reads by its `size` field were checked to end there. It writes
    // num_counters * 16 bytes to the pointer inside it, which was just set to
    // `counters`, exclusively borrowed and checked above to be that long.
    let rc = unsafe {
        libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, replace.as_ptr().cast(), len)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
