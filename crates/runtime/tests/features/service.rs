//! What a service manager hands on, hooks at the end of a life, updates, and figures.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use serde_json::{Value, json};

use crate::support::{Bundle, binary, random, text, wait};

#[test]
fn sockets_of_the_service_manager_reach_the_program() {
    let word = random();
    let mut b = Bundle::new("echo $LISTEN_FDS $LISTEN_PID; cat <&3; ls /proc/self/fd");
    b.config["root"]["readonly"] = json!(false);
    b.save();
    std::fs::write(b.path("data"), format!("{word}\n")).unwrap();
    let line = format!(
        "LISTEN_PID=$$ LISTEN_FDS=1 exec {} --root state run {} 3<data",
        binary().display(),
        b.id
    );
    let o = std::process::Command::new("sh").args(["-c", &line]).current_dir(b.dir.path()).output();
    let o = o.unwrap();
    let got = String::from_utf8_lossy(&o.stdout).into_owned();
    assert!(got.starts_with(&format!("1 1\n{word}\n")), "{}", text(&o));
    // Another process's sockets are not ours to pass on.
    let line = line.replace("LISTEN_PID=$$", "LISTEN_PID=1");
    let o = std::process::Command::new("sh").args(["-c", &line]).current_dir(b.dir.path()).output();
    let o = o.unwrap();
    assert!(String::from_utf8_lossy(&o.stdout).starts_with("\n"), "{}", text(&o));
}

#[test]
fn readiness_is_passed_on_to_the_service_manager() {
    let b = Bundle::new("echo $NOTIFY_SOCKET; stat -c '%F %a' /run/notify/notify.sock; sleep 1000");
    std::fs::create_dir(b.path("rootfs/run")).unwrap();
    std::fs::create_dir(b.path("rootfs/run/notify")).unwrap();
    b.save();
    let manager = UnixDatagram::bind(b.path("manager")).unwrap();
    let out = std::fs::File::create(b.path("out")).unwrap();
    let mut child = b
        .command(&["run", "-d", &b.id])
        .env("NOTIFY_SOCKET", b.path("manager"))
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap();
    wait(|| b.out().lines().count() == 2, "the program's output");
    assert_eq!(b.out(), "/run/notify/notify.sock\nsocket 777\n");
    // As the program would: first something else, then that it is ready.
    let inside = b.path("state").join(&b.id).join("notify/notify.sock");
    let program = UnixDatagram::unbound().unwrap();
    program.send_to(b"STATUS=x\nMAINPID=1\n", &inside).unwrap();
    program.send_to(b"STATUS=y\nREADY=1\nMAINPID=1\n", &inside).unwrap();
    let mut buf = [0u8; 256];
    let n = manager.recv(&mut buf).unwrap();
    let pid = b.state()["pid"].clone();
    assert_eq!(String::from_utf8_lossy(&buf[..n]), format!("READY=1\nMAINPID={pid}\n"));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_manager_that_is_gone_and_a_socket_that_was_left_stop_nothing() {
    let code = i32::try_from(random() % 200 + 1).unwrap();
    let b =
        Bundle::new(&format!("while [ ! -e /run/notify/go ]; do sleep 0.05; done; exit {code}"));
    std::fs::create_dir_all(b.path("rootfs/run/notify")).unwrap();
    b.save();
    let spawn = |args: &[&str]| {
        let mut command = b.command(args);
        command.env("NOTIFY_SOCKET", b.path("gone")).stdout(std::process::Stdio::null());
        command.stderr(std::fs::File::create(b.path("out")).unwrap()).spawn().unwrap()
    };
    let place = b.path("state").join(&b.id).join("notify");
    // In the foreground.
    let mut child = spawn(&["run", &b.id]);
    let ready =
        || UnixDatagram::unbound().unwrap().send_to(b"READY=1\n", place.join("notify.sock"));
    wait(|| ready().is_ok(), "the socket");
    wait(|| b.out().contains("readiness was not passed on"), "the warning");
    assert_eq!(b.state()["status"], "running");
    std::fs::write(place.join("go"), "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(code), "{}", b.out());
    // A start that was killed after it had bound the socket.
    assert!(spawn(&["create", &b.id]).wait().unwrap().success(), "{}", b.out());
    drop(UnixDatagram::bind(place.join("notify.sock")).unwrap());
    let mut child = spawn(&["start", &b.id]);
    wait(|| ready().is_ok(), "the socket");
    assert!(child.wait().unwrap().success(), "{}", b.out());
    assert!(b.out().contains("level=warning") && b.state()["status"] == "running", "{}", b.out());
    // One that is not the one leaves the container's socket alone.
    let before = std::fs::metadata(place.join("notify.sock")).unwrap().ino();
    assert!(!spawn(&["start", &b.id]).wait().unwrap().success());
    assert_eq!(std::fs::metadata(place.join("notify.sock")).unwrap().ino(), before);
}

/// As programs do that go to the background, or that log to the console from time to time.
#[test]
fn a_terminal_that_is_closed_costs_nothing_and_may_be_opened_again() {
    let word = random();
    let mut b = Bundle::new(&format!(
        "exec < /dev/null > /dev/null 2>&1; touch /tmp/closed; \
         until [ -e /tmp/go ]; do sleep 0.02; done; echo {word} > /dev/console"
    ));
    b.config["root"]["readonly"] = json!(false);
    b.config["process"]["terminal"] = json!(true);
    b.save();
    let out = std::fs::File::create(b.path("out")).unwrap();
    let mut run = b.command(&["run", &b.id]).stdout(out).spawn().unwrap();
    wait(|| b.path("rootfs/tmp/closed").exists(), "the program's sign");
    // In ticks of 10 ms.
    let used = || {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", run.id())).unwrap();
        let fields = text.rsplit(") ").next().unwrap();
        let times = fields.split(' ').skip(11).take(2);
        times.map(|t| t.parse::<u64>().unwrap()).sum::<u64>()
    };
    let (before, since) = (used(), std::time::Instant::now());
    wait(|| since.elapsed() > std::time::Duration::from_millis(500), "half a second");
    let ticks = used() - before;
    std::fs::write(b.path("rootfs/tmp/go"), "").unwrap();
    assert!(run.wait().unwrap().success());
    assert!(b.out().contains(&word.to_string()), "{}", b.out());
    assert!(ticks < 15, "{ticks} ticks");
}

#[test]
fn poststop_hooks_run_whatever_happened_and_spoil_nothing() {
    let mut b = Bundle::new("true");
    let log = b.path("log");
    let note = |word: &str, code: u8| {
        let line = format!("echo {word} >> {}; exit {code}", log.display());
        json!({"path": "/bin/sh", "args": ["sh", "-c", line]})
    };
    b.config["hooks"]["poststop"] = json!([note("first", 3), note("second", 0)]);
    let o = b.run();
    assert!(o.status.success(), "{}", text(&o));
    let said = text(&o);
    assert!(said.contains("level=warning") && said.contains("poststop hook #0"), "{said}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "first\nsecond\n");
    // A create that fails on its way is a life as well.
    b.config["hooks"]["createRuntime"] = json!([note("made", 9)]);
    assert!(!b.run().status.success());
    let all = "first\nsecond\nmade\nfirst\nsecond\n";
    assert_eq!(std::fs::read_to_string(&log).unwrap(), all);
}

#[test]
fn poststop_hooks_run_once_and_when_the_container_is_gone() {
    let mut b = Bundle::new("sleep 1000");
    let (log, go) = (b.path("log"), b.path("go"));
    let line = format!(
        "ls -d {} >> {log} 2>&1; until [ -e {go} ]; do sleep 0.02; done",
        b.path("state").join(&b.id).display(),
        log = log.display(),
        go = go.display(),
    );
    b.config["hooks"]["poststop"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", line]}]);
    b.config["hooks"]["poststop"][0]["env"] = json!(["PATH=/bin:/usr/bin"]);
    b.start();
    let mut delete = b.command(&["delete", "-f", &b.id]).spawn().unwrap();
    wait(|| log.exists(), "the hook");
    // Nobody has to wait for the hook.
    b.ok(&["delete", "-f", &b.id]);
    std::fs::write(&go, "").unwrap();
    assert!(delete.wait().unwrap().success());
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
}

#[test]
fn device_rules_change_with_an_update() {
    let mut b = Bundle::new("sleep 1000");
    // FUSE's, which no default rule allows.
    b.config["linux"]["devices"] =
        json!([{"path": "/dev/own", "type": "c", "major": 10, "minor": 229}]);
    b.start();
    let open = || b.rt(&["exec", &b.id, "sh", "-c", ": < /dev/own"]).status.success();
    assert!(!open());
    let update = |devices: Value| {
        std::fs::write(b.path("r.json"), json!({"devices": devices}).to_string()).unwrap();
        b.ok(&["update", "-r", "r.json", &b.id]);
    };
    let none = b.config["linux"]["resources"]["devices"].clone();
    update(
        json!([none[0], {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]),
    );
    assert!(open());
    update(none);
    assert!(!open());
    assert!(b.rt(&["exec", &b.id, "sh", "-c", ": < /dev/null"]).status.success());
}

#[test]
fn figures_and_processes_in_runcs_shape() {
    let b = Bundle::new("sleep 1000");
    b.start();
    let line: Value = serde_json::from_str(&b.ok(&["events", "--stats", &b.id])).unwrap();
    let data = &line["data"];
    assert_eq!(line["type"], "stats");
    assert!(data["cpuset"]["cpus"].as_array().is_some_and(|c| !c.is_empty()), "{data}");
    for at in ["/memory/kernelTCP/failcnt", "/memory/swap", "/cpu/usage/percpu_user", "/intel_rdt"]
    {
        assert!(data.pointer(at).is_some(), "{at}: {data}");
    }
    let got = b.ok(&["ps", &b.id, "-o", "pid,args"]);
    let pid = b.state()["pid"].to_string();
    let lines: Vec<&str> = got.lines().collect();
    assert!(lines[0].trim_start().starts_with("PID"), "{got}");
    assert!(lines.len() == 2 && lines[1].contains(&pid) && lines[1].contains("sleep"), "{got}");
    // A failed exec has a code of its own.
    assert_eq!(b.rt(&["exec", &b.id, "/nothing"]).status.code(), Some(255));
    let warned = b.rt(&["create", "-d", "x"]);
    assert!(text(&warned).contains("flag provided but not defined: -d"), "{}", text(&warned));
}

#[test]
fn what_is_left_out_and_what_is_wrong_is_told_by_name() {
    let mut b = Bundle::new("true");
    let name = format!("CAP_T{}", random());
    b.config["process"]["capabilities"]["bounding"].as_array_mut().unwrap().push(json!(name));
    let o = b.run();
    let got = text(&o);
    assert!(o.status.success() && got.contains("level=warning") && got.contains(&name), "{got}");
    b.config["process"]["user"]["uid"] = json!("zero");
    let got = text(&b.run());
    assert!(got.contains("process.user.uid: parse") && got.contains("invalid type"), "{got}");
}

#[test]
fn a_filter_that_forbids_what_the_runtime_does_reaches_the_program() {
    let code = i32::try_from(random() % 200 + 1).unwrap();
    for no_new_privs in [true, false] {
        let mut b = Bundle::new(&format!("exit {code}"));
        b.config["process"]["noNewPrivileges"] = json!(no_new_privs);
        b.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["getrandom", "openat", "clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                {"names": ["close_range", "setsid", "fcntl"], "action": "SCMP_ACT_KILL_PROCESS"},
            ],
        });
        let o = b.run();
        assert_eq!(o.status.code(), Some(code), "{}", text(&o));
    }
}

#[test]
fn poststart_hooks_come_after_the_programs_start() {
    let mut b = Bundle::new("true");
    b.config["root"]["readonly"] = json!(false);
    b.config["hooks"]["startContainer"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "sleep 0.3; echo first > /tmp/hook"]}]);
    let inside = b.path("rootfs/tmp/hook");
    let line = format!("cat {} > {}", inside.display(), b.path("seen").display());
    b.config["hooks"]["poststart"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", line]}]);
    let o = b.run();
    assert!(o.status.success(), "{}", text(&o));
    assert_eq!(std::fs::read_to_string(b.path("seen")).unwrap(), "first\n");
}
