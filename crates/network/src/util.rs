//! Small file and randomness helpers on rustix.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::rand::{GetRandomFlags, getrandom};

/// No file read here (procfs, resolv.conf) is meant to be larger.
const MAX_FILE_BYTES: usize = 1 << 20;

/// Reads a whole small file; [`io::ErrorKind::FileTooLarge`] above 1 MiB.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut out = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        let n = rustix::io::retry_on_intr(|| rustix::io::read(&fd, &mut chunk[..]))?;
        if n == 0 {
            return Ok(out);
        }
        out.extend_from_slice(&chunk[..n]);
        if out.len() > MAX_FILE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}

/// Like [`read_file`], as text with invalid bytes replaced.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read_file(path)?).into_owned())
}

/// Writes `data` to an existing file in one write (sysctls).
pub(crate) fn write_file(path: &Path, data: &[u8]) -> io::Result<()> {
    let fd = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let n = rustix::io::retry_on_intr(|| rustix::io::write(&fd, data))?;
    if n == data.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// `N` random bytes.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    let mut filled = 0;
    while filled < N {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
    }
    Ok(bytes)
}
