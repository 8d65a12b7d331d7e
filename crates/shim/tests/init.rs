//! `docker-init` as a process: exit codes, signals, orphans.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

fn program() -> PathBuf {
    // Cargo builds examples next to the directory of test programs.
    let deps = std::env::current_exe().unwrap();
    deps.parent().unwrap().parent().unwrap().join("examples/docker-init")
}

fn start(words: &[&str]) -> Child {
    Command::new(program())
        .arg("--")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn code(words: &[&str]) -> i32 {
    start(words).wait_with_output().unwrap().status.code().unwrap()
}

fn line(child: &mut Child) -> (String, BufReader<std::process::ChildStdout>) {
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (line.trim().to_string(), reader)
}

fn send(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn ends_as_the_command_does() {
    let wanted = i32::from(rand::random::<u8>());
    assert_eq!(code(&["sh", "-c", &format!("exit {wanted}")]), wanted);
    assert_eq!(code(&["sh", "-c", "kill -KILL $$"]), 128 + 9);
    assert_eq!(code(&["/bin/no such command"]), 127);
    assert_eq!(code(&["no-such-command"]), 127);
    assert_eq!(code(&["/etc/passwd"]), 126);
    assert_eq!(code(&[]), 1);
}

#[test]
fn passes_signals_on() {
    let script = "trap 'echo usr1; exit 7' USR1; echo ready; while :; do sleep 0.05; done";
    let mut child = start(&["sh", "-c", script]);
    let (ready, mut rest) = line(&mut child);
    assert_eq!(ready, "ready");
    send(&child, rustix::process::Signal::USR1);
    let mut text = String::new();
    rest.read_to_string(&mut text).unwrap();
    assert_eq!(text, "usr1\n");
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn signals_act_on_the_command_as_by_default() {
    let mut child = start(&["sh", "-c", "echo ready; exec sleep 1000"]);
    assert_eq!(line(&mut child).0, "ready");
    send(&child, rustix::process::Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
fn reaps_orphans_while_the_command_runs() {
    // The inner shell ends at once and leaves its child to the init.
    let script = "sh -c 'sleep 0.05 & echo $!'; read stop";
    let mut child = start(&["sh", "-c", script]);
    let (orphan, _rest) = line(&mut child);
    let stat = format!("/proc/{orphan}");
    // Ends when the orphan is gone, not only dead; the test's own limit is the harness's.
    while std::path::Path::new(&stat).exists() {
        std::thread::yield_now();
    }
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
