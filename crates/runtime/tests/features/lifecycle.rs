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

/// What is typed for a program that does not read waits; signals and output do not.
#[test]
fn a_paste_that_nobody_reads_holds_up_nothing() {
    use std::io::Write;
    let mut b = Bundle::new("trap 'exit 9' TERM; while :; do echo up; sleep 0.05; done");
    b.config["process"]["terminal"] = serde_json::json!(true);
    b.save();
    let out = std::fs::File::create(b.path("out")).unwrap();
    let mut run = b.command(&["run", &b.id]);
    run.stdin(std::process::Stdio::piped()).stdout(out.try_clone().unwrap()).stderr(out);
    let mut run = run.spawn().unwrap();
    let mut stdin = run.stdin.take().unwrap();
    // Ends with the runtime.
    let paste = std::thread::spawn(move || while stdin.write_all(&[b'x'; 8192]).is_ok() {});
    wait(|| b.out().matches("up").count() > 20, "its output");
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut code = None;
    let ended = || {
        code = run.try_wait().unwrap();
        code.is_some()
    };
    wait(ended, "its end");
    paste.join().unwrap();
    assert_eq!(code.unwrap().code(), Some(9), "{}", b.out());
}

/// Nor does a terminal that takes only some of it, and who waits for what is left can be told to end.
#[test]
fn a_terminal_that_stands_still_holds_up_no_signal() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let mut options = std::fs::OpenOptions::new();
    let slave = options.read(true).write(true).open(name).unwrap();
    let mut b = Bundle::new(
        "trap 'exit 9' TERM; while :; do echo some; done & while :; do sleep 0.05; done",
    );
    b.config["process"]["terminal"] = serde_json::json!(true);
    b.save();
    let mut run = b.command(&["run", &b.id]);
    let mut run = run.stdout(slave).spawn().unwrap();
    let full = || {
        let (mut held, mut looks) = (0, 0);
        wait(
            || {
                let now = rustix::io::ioctl_fionread(&master).unwrap();
                looks = if now > 0 && now == held { looks + 1 } else { 0 };
                held = now;
                looks > 50
            },
            "a full terminal",
        );
    };
    full();
    // Room again, for less than is there to be written.
    for _ in 0..3 {
        rustix::io::read(&master, &mut [0; 600]).unwrap();
        full();
    }
    let pid = rustix::process::Pid::from_child(&run);
    let term = || rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    term();
    b.until("stopped");
    assert!(run.try_wait().unwrap().is_none(), "what it has printed is not taken yet");
    term();
    let mut code = None;
    let ended = || {
        code = run.try_wait().unwrap();
        code.is_some()
    };
    wait(ended, "its end");
    assert_eq!(code.unwrap().code(), Some(9));
    b.fails(&["state", &b.id]);
}

/// Neither does output that nobody takes.
#[test]
fn output_that_nobody_reads_holds_up_no_signal() {
    use std::io::Read;
    let word = random();
    let mut b = Bundle::new(&format!(
        "trap 'exit 9' TERM; while :; do echo {word}; done & while :; do sleep 0.05; done"
    ));
    b.config["process"]["terminal"] = serde_json::json!(true);
    b.save();
    let mut run = b.command(&["run", &b.id]);
    let mut run = run.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdout = run.stdout.take().unwrap();
    let (mut held, mut looks) = (0, 0);
    let grows_no_more = || {
        let now = rustix::io::ioctl_fionread(&stdout).unwrap();
        looks = if now > 0 && now == held { looks + 1 } else { 0 };
        held = now;
        looks > 50
    };
    wait(grows_no_more, "a full pipe");
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    b.until("stopped");
    let mut all = Vec::new();
    stdout.read_to_end(&mut all).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(9));
    let line = format!("{word}\r\n");
    let all = String::from_utf8(all).unwrap();
    assert!(all.len() > 4096 && all.starts_with(&line), "{}", all.len());
    assert!(all.lines().all(|l| l.is_empty() || word.to_string().starts_with(l)));
}
