//! poststart hooks, and what else is to be said of a program's start.

use std::process::Stdio;

use serde_json::json;

use crate::support::{Bundle, text, wait};

/// Has a poststart hook that makes the file `after`; made, not started.
fn created(script: &str, start_container: Option<&str>) -> Bundle {
    let mut b = Bundle::new(script);
    b.config["root"]["readonly"] = json!(false);
    b.config["hooks"]["poststart"] =
        json!([{"path": "/usr/bin/touch", "args": ["touch", b.path("after")]}]);
    if let Some(line) = start_container {
        b.config["hooks"]["startContainer"] = json!([{
            "path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/bin"],
        }]);
    }
    b.save();
    let mut create = b.command(&["create", &b.id]);
    let made = create.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(made.success());
    b
}

fn is_not_started(b: &Bundle, said: &str, why: &str) {
    let start = "msg=\"unable to start container process: ";
    assert!(said.contains(&format!("{start}{why}")), "{said}");
    assert!(!b.path("after").exists(), "the poststart hook has run");
    b.until("stopped");
}

#[test]
fn a_program_that_was_not_executed_is_told_and_has_no_poststart_hooks() {
    let b = created("true", Some("echo why; exit 3"));
    let why = "error running startContainer hook #0: exit status 3, stdout: why, stderr: ";
    is_not_started(&b, &b.fails(&["start", &b.id]), why);

    let b = created("true", None);
    std::fs::remove_file(b.path("rootfs/bin/busybox")).unwrap();
    is_not_started(&b, &b.fails(&["start", &b.id]), "exec /bin/sh: no such file or directory");
}

/// Whether `start` sees it as a zombie, or only when its parent has waited for it.
#[test]
fn a_process_that_is_killed_on_its_way_has_no_poststart_hooks() {
    use rustix::process::{Pid, Signal, kill_process};
    for late in [false, true] {
        let b = created("true", Some("touch /tmp/hook; exec sleep 1000"));
        let pid = b.state()["pid"].to_string();
        let mut start = b.command(&["start", &b.id]);
        let start = start.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        wait(|| b.path("rootfs/tmp/hook").exists(), "the startContainer hook");
        let signal = |signal| kill_process(Pid::from_child(&start), signal).unwrap();
        if late {
            signal(Signal::STOP);
        }
        b.ok(&["kill", &b.id, "KILL"]);
        let stat = format!("/proc/{pid}/stat");
        wait(|| std::fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z ")), "its end");
        signal(Signal::CONT);
        let said = text(&start.wait_with_output().unwrap());
        is_not_started(&b, &said, "its process ended before the program was executed");
    }
}

#[test]
fn a_program_that_has_ended_at_once_has_its_poststart_hooks() {
    for _ in 0..20 {
        let b = created("exit 255", Some("exit 0"));
        b.ok(&["start", &b.id]);
        assert!(b.path("after").exists());
    }
}

/// In the foreground the runtime itself has blocked what it passes on.
#[test]
fn no_signal_is_blocked_in_a_hook() {
    let mut b = Bundle::new("true");
    let kinds = ["createRuntime", "poststart", "poststop"];
    for kind in kinds {
        b.config["hooks"][kind] = json!([{
            "path": "/bin/cp", "args": ["cp", "/proc/self/status", b.path(kind)],
        }]);
    }
    let o = b.run();
    assert!(o.status.success(), "{}", text(&o));
    for kind in kinds {
        let status = std::fs::read_to_string(b.path(kind)).unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000\n"), "{kind}: {status}");
    }
}
