//! What others see of this program's command line in `/proc/PID/cmdline`, that is in ps.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;

/// Fields of proc(5)'s `stat`, counted from the first one behind the name in parentheses.
const ARG_START: usize = 48 - 3;
const ARG_END: usize = 49 - 3;

/// Shows `words` as the command line, in the place where the real one lies; the rest of it is
/// filled up with NUL, which ps leaves out. [`std::env::args`] changes with it: read it before.
///
/// # Errors
/// `InvalidInput` if the words are longer than the command line was; /proc cannot be used.
pub fn set(words: &[&str]) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let unknown = || io::Error::other("find the arguments: /proc/self/stat has another form");
    let (_, fields) = stat.rsplit_once(") ").ok_or_else(unknown)?;
    let field = |number: usize| -> io::Result<u64> {
        let text = fields.split(' ').nth(number);
        text.and_then(|text| text.trim().parse().ok()).ok_or_else(unknown)
    };
    let (start, end) = (field(ARG_START)?, field(ARG_END)?);
    let room = end.checked_sub(start).and_then(|n| usize::try_from(n).ok()).ok_or_else(unknown)?;
    let mut text: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
    if text.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    text.resize(room, 0);
    // The program's own memory, by the way that needs no pointer to it.
    OpenOptions::new().write(true).open("/proc/self/mem")?.write_all_at(&text, start)
}
