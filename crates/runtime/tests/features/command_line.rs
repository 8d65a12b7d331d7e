//! What is read on the command line, and how its commands end.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::json;

use crate::support::{Bundle, random, text, wait};

#[test]
fn events_end_when_nobody_reads_them() {
    let b = Bundle::new("sleep 1000");
    b.start();
    // Go's longest duration is as good as any.
    for interval in ["1h", "2562047h47m16.854775807s"] {
        let mut command = b.command(&["events", "--interval", interval, &b.id]);
        let mut events = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(events.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("\"stats\""), "{line}");
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait(|| events.try_wait().unwrap().is_some(), "events end");
        }));
        if ended.is_err() {
            events.kill().unwrap();
        }
        assert!(events.wait().unwrap().success() && ended.is_ok(), "--interval {interval}");
    }
    let said = b.fails(&["events", "--interval", "99999999999999999m", &b.id]);
    assert!(said.contains("parse error"), "{said}");
}

#[test]
fn flags_without_a_value_take_gos_words_for_one() {
    let b = Bundle::new("echo in");
    b.save();
    let said = b.fails(&["run", "-d=xyz", &b.id]);
    assert!(said.contains("invalid boolean value \\\"xyz\\\" for -d: parse error"), "{said}");
    // In the foreground: it is gone afterwards.
    assert_eq!(b.ok(&["run", "--no-pivot=0", "-d=f", "--detach=False", &b.id]), "in\n");
    assert!(b.fails(&["state", &b.id]).contains("does not exist"));
}

#[test]
fn a_console_socket_is_for_a_process_that_is_left_alone() {
    let words = "cannot use console socket if runc will not detach or allocate tty";
    let mut b = Bundle::new("sleep 1000");
    b.config["process"]["terminal"] = json!(true);
    b.save();
    let said = b.fails(&["run", "--console-socket", "none", &b.id]);
    assert!(said.contains(words), "{said}");
    b.config["process"]["terminal"] = json!(false);
    b.start();
    let said = b.fails(&["exec", "-t", "--console-socket", "none", &b.id, "true"]);
    assert!(said.contains(words), "{said}");
}

#[test]
fn numbers_of_exec_and_update() {
    let b = Bundle::new("sleep 1000");
    b.start();
    for gid in ["+5", "-5", " 5", "5 ", "2147483648", ""] {
        let said = b.fails(&["exec", "-g", gid, &b.id, "true"]);
        assert!(said.contains("bad user or group id"), "{gid:?}: {said}");
    }
    let tenths = random() % 9 + 11;
    let memory = format!("{}.{}g", tenths / 10, tenths % 10);
    b.ok(&["update", "--memory", &memory, &b.id]);
    let want = u64::from(tenths) * (1 << 30) / 10 / 4096 * 4096;
    let limit = std::fs::read_to_string(b.cgroup("memory").join("memory.limit_in_bytes")).unwrap();
    assert_eq!(limit.trim(), want.to_string(), "{memory}");
}

#[test]
fn a_device_rule_says_which_access_it_means() {
    let mut b = Bundle::new("true");
    b.config["linux"]["resources"]["devices"] =
        json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1}]);
    let said = text(&b.run());
    assert!(said.contains("device access at 1 field cannot be empty"), "{said}");
}

#[test]
fn a_spec_of_another_major_version_is_refused() {
    let mut b = Bundle::new("echo in");
    b.config["ociVersion"] = json!("9.9");
    let said = text(&b.run());
    assert!(said.contains("ociVersion: \\\"9.9\\\" is not supported"), "{said}");
    b.config["ociVersion"] = json!("1.99.0");
    assert!(text(&b.run()).contains("in\n"));
}

/// `vm.memfd_noexec=2` allows no other files in memory; there is none before Linux 6.3.
#[test]
fn what_a_hook_reads_cannot_be_executed() {
    let known = std::path::Path::new("/proc/sys/vm/memfd_noexec").exists();
    let mode = if known { 666 } else { 777 };
    let mut b = Bundle::new("true");
    let line = "stat -L -c %a /proc/self/fd/0 >&2; exit 1";
    b.config["hooks"]["prestart"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", line]}]);
    let said = text(&b.run());
    assert!(said.contains(&format!("stdout: , stderr: {mode}")), "{said}");
}
