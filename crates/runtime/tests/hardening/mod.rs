//! What a hostile container, image or caller must not get.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Bundle, binary, random, text};

/// A container with CAP_SYS_PTRACE that runs `script`; it has the program `seizer`.
fn hostile(script: &str) -> Bundle {
    let mut b = Bundle::new(script);
    let seizer = binary().parent().unwrap().join("seizer");
    std::fs::copy(seizer, b.path("rootfs/bin/seizer")).unwrap();
    for set in ["bounding", "effective", "permitted"] {
        let caps = b.config["process"]["capabilities"][set].as_array_mut().unwrap();
        caps.push(json!("CAP_SYS_PTRACE"));
    }
    b.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    });
    b
}

/// The lines of `seizer`: none has more than the first, its own.
fn assert_nothing_gained(out: &str) {
    let mask = |s: &str| u64::from_str_radix(s, 16).unwrap();
    let mut lines = out.lines().filter(|l| *l != "done");
    let own: Vec<&str> = lines.next().unwrap().split(' ').collect();
    let (own_bound, own_have) = (mask(own[0]), mask(own[1]));
    assert_eq!(own[2], "2", "{out}");
    for line in lines {
        let [_, bound, have, seccomp, fds] = line.splitn(5, ' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        assert_eq!((mask(bound) & !own_bound, mask(have) & !own_have), (0, 0), "{line}");
        assert_eq!(seccomp, "2", "{line}");
        // One end of a socket pair, and a container's wait for its start; no file, no directory.
        let fine = |l: &str| l.is_empty() || l.starts_with("socket:") || l.contains("/exec.fifo");
        let host = fds.split(',').filter(|l| !fine(l));
        assert_eq!(host.collect::<Vec<_>>(), Vec::<&str>::new(), "{line}");
    }
}

#[test]
fn a_tracer_inside_gets_nothing_from_processes_that_join() {
    const SEIZED: usize = 40;
    for no_new_privs in [true, false] {
        let mut b = hostile(&format!("exec seizer {SEIZED}"));
        b.config["process"]["noNewPrivileges"] = json!(no_new_privs);
        b.start();
        for _ in 0..20 * SEIZED {
            if b.out().contains("done") {
                break;
            }
            // May fail: it is being played with.
            drop(b.rt(&["exec", &b.id, "true"]));
        }
        let out = b.out();
        assert!(out.lines().count() > SEIZED / 2, "it got hold of some: {out}");
        assert_nothing_gained(&out);
    }
}

#[test]
fn a_tracer_inside_cannot_hold_the_caller_of_exec() {
    let began = Instant::now();
    // Until it is quick enough.
    let (got, took) = loop {
        assert!(began.elapsed().as_secs() < 240, "it never gets hold of one that joins");
        let b = hostile("exec seizer 1 hold");
        b.start();
        crate::support::wait(|| !b.out().is_empty(), "the tracer");
        if let Some(held) = until_held(&b) {
            break held;
        }
    };
    assert!(got.contains("it did not get through within 30 s"), "{got}");
    assert!(took.as_secs() < 60);
}

/// What is said of a process that was held on its way, and after what time; `None` if the one that the
/// tracer got hold of was through: then it is the container's own, and its caller waits for it.
fn until_held(b: &Bundle) -> Option<(String, Duration)> {
    let limit = Instant::now() + Duration::from_secs(120);
    while Instant::now() < limit {
        let since = Instant::now();
        let mut exec = b.command(&["exec", &b.id, "true"]);
        let mut exec = exec.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while exec.try_wait().unwrap().is_none() {
            assert!(since.elapsed().as_secs() < 90, "{}", b.out());
            if b.out().lines().count() > 1 && !b.out().contains("socket:") {
                b.ok(&["kill", &b.id, "KILL"]);
                exec.wait().unwrap();
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if b.out().contains("socket:") {
            return Some((text(&exec.wait_with_output().unwrap()), since.elapsed()));
        }
    }
    None
}

#[test]
fn a_tracer_inside_gets_nothing_from_containers_that_join_its_pids() {
    const SEIZED: usize = 10;
    let first = hostile(&format!("exec seizer {SEIZED}"));
    first.start();
    let pid = first.state()["pid"].clone();
    for _ in 0..10 * SEIZED {
        if first.out().contains("done") {
            break;
        }
        let mut second = hostile("true");
        for ns in second.config["linux"]["namespaces"].as_array_mut().unwrap() {
            if ns["type"] == "pid" {
                ns["path"] = json!(format!("/proc/{pid}/ns/pid"));
            }
        }
        drop(second.run());
    }
    let out = first.out();
    assert!(out.lines().count() > SEIZED / 2, "it got hold of some: {out}");
    assert_nothing_gained(&out);
}

#[test]
fn a_container_in_anothers_pids_has_its_terminal_hooks_and_pid() {
    let first = Bundle::new("sleep 1000");
    first.start();
    let pid = first.state()["pid"].clone();
    let mut b =
        Bundle::new("echo pid $$; grep -E 'NSpid|Seccomp:' /proc/self/status; cat /tmp/hook");
    for ns in b.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if ns["type"] == "pid" {
            ns["path"] = json!(format!("/proc/{pid}/ns/pid"));
        }
    }
    b.config["root"]["readonly"] = json!(false);
    b.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NPROC", "soft": 50, "hard": 60}]);
    b.config["hooks"]["startContainer"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "read s; echo \"$s\" > /tmp/hook"]}]);
    b.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO"}]});
    let got = text(&b.run());
    let own = got.split("pid ").nth(1).unwrap().lines().next().unwrap().to_owned();
    assert!(got.contains("Seccomp:\t2") && got.contains(&format!("\"pid\":{own},")), "{got}");
}

#[test]
fn ids_that_mean_no_change_are_refused() {
    let bad = u32::MAX;
    for (field, value) in
        [("uid", json!(bad)), ("gid", json!(bad)), ("additionalGids", json!([1, bad]))]
    {
        let mut b = Bundle::new("id");
        b.config["process"]["user"][field] = value;
        let got = text(&b.run());
        assert!(got.contains("4294967295 is no id") && !got.contains("uid="), "{got}");
    }
    let mut b = Bundle::new("ls -ln /dev");
    b.config["linux"]["devices"] = json!([{"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600, "uid": bad, "gid": 0}]);
    let got = text(&b.run());
    assert!(got.contains("4294967295 is no id"), "{got}");
    // The largest that is one.
    let mut b = Bundle::new("id -u");
    b.config["process"]["user"]["uid"] = json!(bad - 1);
    assert!(text(&b.run()).contains("4294967294"));
}

#[test]
fn a_filter_is_loaded_with_a_right_that_is_not_in_force() {
    let mut b = Bundle::new("grep -E 'Cap(Eff|Prm)|Seccomp:' /proc/self/status");
    for set in ["bounding", "permitted"] {
        let caps = b.config["process"]["capabilities"][set].as_array_mut().unwrap();
        caps.push(json!("CAP_SYS_ADMIN"));
    }
    b.config["process"]["user"]["uid"] = json!(random() % 60_000 + 1);
    b.config["process"]["noNewPrivileges"] = json!(false);
    b.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO"}]});
    let got = text(&b.run());
    assert!(got.contains("Seccomp:\t2") && got.contains("CapEff:\t0000000000000000"), "{got}");
}

#[test]
fn a_missing_working_directory_is_made_below_a_read_only_root() {
    let mut b = Bundle::new("echo $PWD; touch here");
    b.config["process"]["cwd"] = json!("/made/before");
    b.config["root"]["readonly"] = json!(true);
    let got = text(&b.run());
    assert!(got.contains("/made/before\n") && got.contains("Read-only file system"), "{got}");
}

#[test]
fn without_a_section_there_are_no_capabilities() {
    let mut b = Bundle::new("grep Cap /proc/self/status");
    b.config["process"].as_object_mut().unwrap().remove("capabilities");
    let got = text(&b.run());
    assert_eq!(got.matches("0000000000000000").count(), 5, "{got}");
}

#[test]
fn preserved_descriptors_are_the_callers_and_nothing_else() {
    let fds = |b: &Bundle, args: &str, shell: &str| {
        let line = format!("exec {} --root state {args} {shell}", binary().display());
        let mut c = std::process::Command::new("bash");
        c.args(["-c", &line]).current_dir(b.dir.path()).stdin(std::process::Stdio::null());
        c.output().unwrap()
    };
    let b = Bundle::new("ls /proc/self/fd; cat <&3");
    b.save();
    let word = random().to_string();
    std::fs::write(b.path("word"), &word).unwrap();
    for command in ["run", "create"] {
        for count in [1, 2, 7, 4_294_967_295_u32] {
            let o = fds(&b, &format!("{command} --preserve-fds {count} {}", b.id), "3<&- 4<&-");
            let got = text(&o);
            assert!(!o.status.success() && got.contains("--preserve-fds: "), "{got}");
        }
    }
    let got = text(&fds(&b, &format!("run --preserve-fds 1 {}", b.id), "3<word"));
    assert!(got.contains("0\n1\n2\n3\n4\n") && got.contains(&word), "{got}");
    let b = Bundle::new("sleep 1000");
    b.start();
    let exec = |n: u32| format!("exec --preserve-fds {n} {} ls /proc/self/fd", b.id);
    let o = fds(&b, &exec(1), "3<&-");
    assert!(text(&o).contains("file descriptor 3 is not open"), "{}", text(&o));
    let o = fds(&b, &exec(1), "3</etc/passwd 5</etc");
    assert_eq!(String::from_utf8_lossy(&o.stdout), "0\n1\n2\n3\n4\n", "{}", text(&o));
}

#[test]
fn sysctls_of_the_host_are_refused() {
    let panic = std::fs::read_to_string("/proc/sys/kernel/panic").unwrap();
    let mut b =
        Bundle::new("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni");
    b.config["linux"]["sysctl"] =
        json!({"net.ipv4.ip_unprivileged_port_start": "7", "kernel/shmmni": "77"});
    assert!(text(&b.run()).contains("7\n77\n"));
    b.config["linux"]["sysctl"] = json!({"kernel.panic": "7"});
    let got = text(&b.run());
    assert!(got.contains("\\\"kernel.panic\\\" is not in a separate kernel namespace"), "{got}");
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/panic").unwrap(), panic);
    b.config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}]);
    b.config.as_object_mut().unwrap().remove("hostname");
    for (key, want) in [
        ("net.ipv4.ip_forward", "not allowed in host network namespace"),
        ("kernel.shmmax", "is not allowed in the hosts ipc namespace"),
        ("kernel.domainname", "is not in a separate kernel namespace"),
    ] {
        b.config["linux"]["sysctl"] = json!({ key: "1" });
        let got = text(&b.run());
        assert!(got.contains(want), "{got}");
    }
}

#[test]
fn a_cgroup_of_others_is_neither_taken_nor_removed() {
    let mut b = Bundle::new("true");
    let dir = b.cgroup("pids");
    std::fs::create_dir_all(&dir).unwrap();
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(dir.join("cgroup.procs"), other.id().to_string()).unwrap();
    // The processes of a container are those in its devices cgroup.
    let main = b.cgroup("devices");
    std::fs::create_dir_all(&main).unwrap();
    std::fs::write(main.join("cgroup.procs"), other.id().to_string()).unwrap();
    let got = text(&b.run());
    assert!(got.contains("container's cgroup is not empty: 1 process(es) found"), "{got}");
    assert!(main.exists() && other.try_wait().unwrap().is_none());
    other.kill().unwrap();
    other.wait().unwrap();
    let frozen = b.cgroup("freezer");
    std::fs::create_dir_all(&frozen).unwrap();
    std::fs::write(frozen.join("freezer.state"), "FROZEN").unwrap();
    let got = text(&b.run());
    assert!(got.contains("container's cgroup unexpectedly frozen"), "{got}");
    std::fs::write(frozen.join("freezer.state"), "THAWED").unwrap();
    // A failed create leaves what it found, and nothing else.
    b.config["process"]["args"] = json!(["/no/such/program"]);
    let got = text(&b.run());
    assert!(got.contains("no such file"), "{got}");
    assert!(main.exists() && !b.cgroup("memory").exists());
    for found in [dir, main, frozen] {
        std::fs::remove_dir(found).unwrap();
    }
}

#[test]
fn deep_cgroups_go_in_good_time() {
    let b = Bundle::new("sleep 1000");
    b.start();
    let mut dir = b.cgroup("devices");
    for _ in 0..40 {
        dir.push("d");
    }
    std::fs::create_dir_all(&dir).unwrap();
    // One that nobody may remove: a foreign process in the deepest.
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(dir.join("cgroup.procs"), other.id().to_string()).unwrap();
    let began = std::time::Instant::now();
    let got = b.fails(&["delete", "-f", &b.id]);
    assert!(got.contains("rmdir") && began.elapsed().as_secs() < 15, "{got}");
    other.kill().unwrap();
    other.wait().unwrap();
}

/// While the process itself has its listener nobody answers what is left to that one.
#[test]
fn a_filter_that_leaves_the_runtimes_own_calls_to_its_listener_holds_up_nobody() {
    let cases: [(&[&str], &str); 2] = [
        (&["write", "sendmsg"], "must allow write or sendmsg"),
        // Answered with ENOSYS as soon as the listener is closed.
        (&["capset"], "capset"),
    ];
    for (calls, want) in cases {
        let mut b = Bundle::new("true");
        let socket = b.path("listener");
        let listener = UnixListener::bind(&socket).unwrap();
        b.config["process"]["noNewPrivileges"] = json!(false);
        b.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket,
            "syscalls": [{"names": calls, "action": "SCMP_ACT_NOTIFY"}],
        });
        b.save();
        // A descriptor that is not asked for is closed by the read.
        std::thread::spawn(move || {
            listener.accept().and_then(|(mut stream, _)| stream.read_exact(&mut [0]))
        });
        let errors = std::fs::File::create(b.path("errors")).unwrap();
        let mut create =
            b.command(&["create", &b.id]).stdout(Stdio::null()).stderr(errors).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let ended = loop {
            if let Some(status) = create.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() > deadline {
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if ended.is_none() {
            create.kill().unwrap();
            create.wait().unwrap();
        }
        let said = std::fs::read_to_string(b.path("errors")).unwrap();
        assert!(ended.is_some_and(|status| !status.success()), "{calls:?}: {ended:?} {said}");
        assert!(said.contains(want), "{calls:?}: {said}");
    }
}

/// What a protected program starts is not protected by that: it does not take itself for it, and can
/// protect itself.
#[test]
fn a_program_that_a_protected_one_starts_protects_itself() {
    let protected = binary().parent().unwrap().join("protected");
    let o = Command::new(&protected).arg(&protected).arg("env").output().unwrap();
    assert!(o.status.success(), "{}", text(&o));
    assert!(!String::from_utf8_lossy(&o.stdout).contains("_GANTRY"), "{}", text(&o));
}
