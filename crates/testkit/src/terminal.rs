//! A program on a terminal of its own: a real pseudo-terminal, which the test types into and reads.

use crate::command::{Cmd, Collected, PROGRAM_FILES, raw_pid};
use crate::error::IoContext;
use crate::{Error, Result, wait};
use rustix::process::{Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::PoisonError;
use std::time::Duration;

/// A running program whose standard input, output and error are one terminal, and which is the
/// leader of a session that the terminal controls. Dropping it hangs up and kills it.
#[derive(Debug)]
pub struct Terminal {
    shown: String,
    limit: Duration,
    master: File,
    child: Child,
    screen: Collected,
}

impl Terminal {
    /// Starts `command` on a new terminal of this size.
    pub fn start(command: &Cmd, columns: u16, rows: u16) -> Result<Self> {
        let shown = command.shown();
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("open", "a pseudo-terminal")?;
        grantpt(&master).and_then(|()| unlockpt(&master)).context("unlock", "a pseudo-terminal")?;
        let name = ptsname(&master, Vec::new()).context("name", "a pseudo-terminal")?;
        let path = name.to_string_lossy().into_owned();
        let master = File::from(master);
        set_size(&master, columns, rows)?;
        let slave = File::options().read(true).write(true).open(&path).context("open", &path)?;
        let another = || slave.try_clone().context("duplicate", &path);
        // The opened side must not become this process's terminal, but that of the new session.
        let lock = PROGRAM_FILES.read().unwrap_or_else(PoisonError::into_inner);
        let child = command
            .build_behind(&["/usr/bin/setsid", "--ctty", "--wait"], false)
            .stdin(Stdio::from(another()?))
            .stdout(Stdio::from(another()?))
            .stderr(Stdio::from(another()?))
            .spawn()
            .context("start", &shown)?;
        drop(lock);
        let reader = master.try_clone().context("duplicate", "a pseudo-terminal")?;
        let screen = Collected::from(Some(reader));
        Ok(Self { shown, limit: command.limit(), master, child, screen })
    }

    /// All that was shown so far, as it was sent.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.so_far()).into_owned()
    }

    /// Types `text`; `\r` is the return key, `\x03` control-C.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        self.master.write_all(text.as_bytes()).context("type into", &self.shown)
    }

    /// Waits until `text` is shown, after the first `from` bytes, and gives how many bytes were
    /// shown then: the `from` of the next wait.
    pub fn wait_for(&self, text: &str, from: usize) -> Result<usize> {
        wait::until_ok(&format!("{text:?} on the terminal of {}", self.shown), self.limit, || {
            let screen = self.screen.so_far();
            let shown = String::from_utf8_lossy(screen.get(from..).unwrap_or(&[])).into_owned();
            if shown.contains(text) { Ok(screen.len()) } else { Err(format!("{shown:?}")) }
        })
    }

    /// The user drags the window's corner: the kernel tells the programs in it.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        set_size(&self.master, columns, rows)
    }

    /// Waits for the end and gives the exit code (128 and the signal's number after a signal).
    pub fn wait(mut self) -> Result<i32> {
        let status = wait::until(&format!("end of {}", self.shown), self.limit, || {
            self.child.try_wait().ok().flatten()
        });
        match status {
            Ok(status) => Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))),
            Err(_) => Err(Error::Timeout {
                command: self.shown.clone(),
                limit: self.limit,
                output: self.screen(),
            }),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            if let Ok(pid) = raw_pid(self.child.id()) {
                // Gone already is as good as killed.
                kill_process_group(pid, Signal::KILL).ok();
            }
            drop(self.child.wait());
        }
    }
}

fn set_size(master: &File, columns: u16, rows: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).context("set the size of", "a pseudo-terminal")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::random;

    #[test]
    fn a_program_sees_a_terminal_of_the_size_that_was_said() {
        let columns = u16::try_from(random::number(30..200)).unwrap();
        let (code, word) = (random::exit_code(), random::token(8));
        let script = format!(
            "test -t 0 && test -t 1 && stty size < /dev/tty; \
             trap 'stty size; exit {code}' WINCH; echo {word}-; read x; echo \"got $x\"; \
             while :; do sleep 0.05; done"
        );
        let mut terminal = Terminal::start(&Cmd::host("sh", ["-c", &script]), columns, 31).unwrap();
        let seen = terminal.wait_for(&format!("31 {columns}"), 0).unwrap();
        terminal.wait_for(&format!("{word}-"), 0).unwrap();
        terminal.type_in(&format!("{word}\r")).unwrap();
        terminal.wait_for(&format!("got {word}"), seen).unwrap();
        terminal.resize(columns + 1, 32).unwrap();
        terminal.wait_for(&format!("32 {}", columns + 1), seen).unwrap();
        assert_eq!(terminal.wait().unwrap(), code);
    }
}
