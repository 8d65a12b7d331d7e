//! What is read on the command line, and how its commands end.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{Bundle, wait};

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
