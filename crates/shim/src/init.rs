//! `docker-init`: the first process of a container that was asked for one (`--init`).
//!
//! Runs the command as its only child of its own, passes every signal on to it, reaps whatever the
//! kernel hands to the first process, and ends with the command's exit code (128 and the signal's
//! number where one killed it). A terminal on standard input belongs to the command's process group.
//!
//! One thread, which only waits; nothing is allocated after the start. The program is the one binary,
//! so what counts as memory are the few pages that this module touches.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};
use sys::exec::CStrVec;
use sys::fork::fork_process;

/// The name under which a container starts it.
pub const PROGRAM_NAME: &str = "docker-init";

/// Exit code of a failure of its own, as tini has it.
const FAILURE: i32 = 1;
/// Where commands are looked for without a PATH (execvp(3) of glibc, with the sbin directories).
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SIGCHLD: i32 = 17;
const LAST_SIGNAL: i32 = 64;

/// `docker-init [--] COMMAND [ARGUMENT…]`, without the program's own name. Answers the exit code.
///
/// Must be called before the process has a second thread.
pub fn main(arguments: Vec<OsString>) -> i32 {
    let mut words = arguments.iter().map(|word| word.as_bytes()).peekable();
    words.next_if_eq(&b"--".as_slice());
    let words: Vec<&[u8]> = words.collect();
    let Some(command) = words.first().filter(|word| !word.is_empty()) else {
        eprintln!("{PROGRAM_NAME}: no command is given");
        return FAILURE;
    };
    match run(command, &words) {
        Ok(code) => code,
        Err((operation, errno)) => {
            eprintln!("{PROGRAM_NAME}: {operation}: {errno}");
            FAILURE
        }
    }
}

fn run(command: &[u8], words: &[&[u8]]) -> Result<i32, (&'static str, Errno)> {
    let environment: Vec<Vec<u8>> = std::env::vars_os()
        .map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat())
        .collect();
    let path = std::env::var_os("PATH");
    let candidates = candidates(command, path.as_deref());
    // Arguments and environment come from execve, which knows no zero bytes inside.
    let arguments = CStrVec::new(words).ok_or(("arguments", Errno::INVAL))?;
    let environment = CStrVec::new(environment).ok_or(("environment", Errno::INVAL))?;
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        // In the host's or another container's pid namespace orphans would go past it.
        let own = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(own)).map_err(|e| ("set subreaper", e))?;
    }
    // Blocked before the child is made, so that no signal is lost.
    let signals = sys::process::signal_fd(&handled()).map_err(|e| ("signalfd", e))?;
    let child = fork_process(|| {
        take_terminal();
        sys::process::reset_signals();
        exec(command, &candidates, &arguments, &environment)
    });
    let child = child.map_err(|e| ("start a process", e))?;
    supervise(&signals, child)
}

/// Every signal but those that report a fault of this very process, and the two that cannot be caught.
fn handled() -> Vec<i32> {
    // ILL, TRAP, ABRT, BUS, FPE, KILL, SEGV, STOP, SYS; 32 and 33 belong to libc.
    const LEFT: [i32; 11] = [4, 5, 6, 7, 8, 9, 11, 19, 31, 32, 33];
    (1..=LAST_SIGNAL).filter(|signal| !LEFT.contains(signal)).collect()
}

/// Passes signals on and reaps until the child has ended.
fn supervise(signals: &OwnedFd, child: i32) -> Result<i32, (&'static str, Errno)> {
    // What the terminal sends to a background process; the command gets its own.
    const TTIN: i32 = 21;
    const TTOU: i32 = 22;
    loop {
        match poll(&mut [PollFd::new(signals, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(("poll", error)),
        }
        while let Some(signal) =
            sys::process::read_signal(signals).map_err(|e| ("read a signal", e))?
        {
            match signal {
                SIGCHLD => {
                    if let Some(code) = reap(child) {
                        return Ok(code);
                    }
                }
                TTIN | TTOU => {}
                // It may have ended this moment: its exit code comes with the next SIGCHLD, and until it
                // is waited for the pid is nobody else's.
                signal => drop(sys::process::kill(child, signal)),
            }
        }
    }
}

/// Collects every process that has ended; the child's exit code if it is among them.
fn reap(child: i32) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid.as_raw_nonzero().get() == child {
            code = exit_code(status);
        }
    }
    code
}

fn exit_code(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))
}

/// In the child: a process group of its own, which gets the terminal if there is one.
fn take_terminal() {
    if rustix::process::setpgid(None, None).is_ok() {
        // No terminal, or not this session's: then nothing is to be done. SIGTTOU is blocked here.
        rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid()).ok();
    }
}

/// Where the command may be: itself if it has a slash, else in each directory of PATH.
fn candidates(command: &[u8], path: Option<&OsStr>) -> Vec<CString> {
    let whole = |bytes: Vec<u8>| CString::new(bytes).ok();
    if command.contains(&b'/') {
        return whole(command.to_vec()).into_iter().collect();
    }
    let path = path.map_or(DEFAULT_PATH, OsStr::as_bytes);
    let inside = |dir: &[u8]| {
        let dir = if dir.is_empty() { b"." } else { dir };
        whole([dir, b"/", command].concat())
    };
    path.split(|byte| *byte == b':').filter_map(inside).collect()
}

/// In the child: does not come back but with the exit code of a command that cannot run.
fn exec(command: &[u8], candidates: &[CString], arguments: &CStrVec, environment: &CStrVec) -> i32 {
    let mut failure = Errno::NOENT;
    for path in candidates {
        match sys::exec::execve(path, arguments, environment) {
            Errno::NOENT | Errno::NOTDIR => {}
            // A later directory may have one that may be run (execvp(3)).
            Errno::ACCESS => failure = Errno::ACCESS,
            error => {
                failure = error;
                break;
            }
        }
    }
    let why = failure.to_string();
    // Rust adds the number to the text of the system.
    let why = why.split(" (os error").next().unwrap_or_default();
    eprintln!("{PROGRAM_NAME}: exec {} failed: {why}", String::from_utf8_lossy(command));
    if failure == Errno::NOENT { 127 } else { 126 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_looked_for_as_execvp_does() {
        let names = |command: &str, path: Option<&str>| -> Vec<String> {
            let found = candidates(command.as_bytes(), path.map(OsStr::new));
            found.iter().map(|c| c.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names("sh", Some("/a:/b::")), ["/a/sh", "/b/sh", "./sh", "./sh"]);
        assert_eq!(names("./sh", Some("/a")), ["./sh"]);
        assert_eq!(names("x", None).len(), 6);
    }

    #[test]
    fn faults_of_its_own_are_not_passed_on() {
        let signals = handled();
        for signal in [1, 2, 3, 10, 12, 15, SIGCHLD, 18, 20, 28, 34, 64] {
            assert!(signals.contains(&signal), "{signal}");
        }
        for signal in [9, 11, 19, 32, 33] {
            assert!(!signals.contains(&signal), "{signal}");
        }
    }
}
