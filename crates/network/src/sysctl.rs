//! Network sysctls. `/proc/sys/net` shows the namespace of the thread that
//! looks, so everything here acts on the calling thread's; use
//! [`Namespace::run`](crate::ns::Namespace::run) for another.

use std::path::PathBuf;

use crate::error::{Error, file};
use crate::util;

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

/// Reads `key`, written with slashes as below `/proc/sys/net`
/// (`ipv4/ip_forward`; interface names may hold dots). Trailing white space is
/// removed.
///
/// # Errors
/// When the key does not exist or cannot be read.
pub fn read(key: &str) -> Result<String, Error> {
    let path = path(key);
    let text = util::read_text(&path).map_err(file("read", path))?;
    Ok(text.trim_end().to_owned())
}

/// Writes `key`; see [`read`].
///
/// # Errors
/// When the key does not exist, or the kernel refuses the value.
pub fn write(key: &str, value: &str) -> Result<(), Error> {
    let path = path(key);
    util::write_file(&path, value.as_bytes()).map_err(file("write", path))
}

/// Writes `key` unless it has that value already; tells whether it wrote.
///
/// # Errors
/// See [`write`].
pub fn ensure(key: &str, value: &str) -> Result<bool, Error> {
    if read(key)? == value {
        return Ok(false);
    }
    write(key, value)?;
    Ok(true)
}

/// Turns on forwarding, for IPv6 as well if asked. Tells whether something was
/// off before: whoever turns the host into a router answers for what it routes
/// (see `Desired::drop_foreign_forward`).
///
/// # Errors
/// When a key cannot be written.
pub fn enable_ip_forward(ipv6: bool) -> Result<bool, Error> {
    let mut changed = ensure("ipv4/ip_forward", "1")?;
    if ipv6 {
        for name in ["ipv6/conf/default/forwarding", "ipv6/conf/all/forwarding"] {
            changed |= ensure(name, "1")?;
        }
    }
    Ok(changed)
}
