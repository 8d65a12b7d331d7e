//! What others see of this program's command line in `/proc/PID/cmdline`, that is in ps.
#![allow(unsafe_code)]

use std::io;

/// Field numbers of proc(5)'s `stat`, counted from the first one behind the name in parentheses.
const ARG_START: usize = 48 - 3;

/// Leaves the last word out of what `/proc/self/cmdline` shows; [`std::env::args`] still has it.
/// A command line of one word stays as it is.
///
/// # Errors
/// /proc cannot be read, or `EPERM` without CAP_SYS_RESOURCE.
pub fn hide_last_argument() -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let line = std::fs::read("/proc/self/cmdline")?;
    let words = line.strip_suffix(&[0]).unwrap_or(&line);
    let Some(shown) = words.iter().rposition(|byte| *byte == 0) else { return Ok(()) };
    let unknown = || io::Error::other("find the arguments: /proc/self/stat has another form");
    let (_, fields) = stat.rsplit_once(") ").ok_or_else(unknown)?;
    let start: usize =
        fields.split(' ').nth(ARG_START).and_then(|text| text.parse().ok()).ok_or_else(unknown)?;
    let end = start + shown + 1;
    // SAFETY: the address lies inside the area of the arguments, and only tells the kernel how
    // much of that to show; nothing is read or written through it here.
    let rc = unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_ARG_END, end, 0, 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
