//! Corners of a container's life: paused before its start, left by its first process, held up by a hook.

use crate::support::{Bundle, random, wait};

#[test]
fn one_that_was_paused_before_its_start_can_be_resumed() {
    let word = random();
    let b = Bundle::new(&format!("echo {word}; sleep 1000"));
    b.save();
    let out = std::fs::File::create(b.path("out")).unwrap();
    let mut create = b.command(&["create", &b.id]);
    let made = create.stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
    assert!(made.success(), "{}", b.out());
    b.ok(&["pause", &b.id]);
    assert_eq!(b.state()["status"], "paused");
    let got = b.fails(&["start", &b.id]);
    assert!(got.contains("cannot start a container in the paused state"), "{got}");
    let got = b.fails(&["exec", &b.id, "true"]);
    assert!(got.contains("paused container"), "{got}");
    b.ok(&["resume", &b.id]);
    assert_eq!(b.state()["status"], "created");
    b.ok(&["start", &b.id]);
    wait(|| b.out() == format!("{word}\n"), "the program");
    b.ok(&["pause", &b.id]);
    b.ok(&["delete", "-f", &b.id]);
}

#[test]
fn what_has_outlived_the_first_process_is_killed() {
    let mut b = Bundle::new("sleep 1000 & exit 0");
    let namespaces = b.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|n| n["type"] != "pid");
    b.start();
    b.until("stopped");
    let procs = b.cgroup("devices").join("cgroup.procs");
    let left = || std::fs::read_to_string(&procs).unwrap();
    assert_eq!(left().lines().count(), 1);
    assert!(b.fails(&["kill", &b.id, "TERM"]).contains("container not running"));
    b.ok(&["kill", &b.id, "KILL"]);
    wait(|| left().is_empty(), "its end");
    assert!(b.fails(&["kill", &b.id, "KILL"]).contains("container not running"));
    b.ok(&["delete", &b.id]);
}
