//! The runtime as its callers see it: containers of busybox, run by the command line. Needs root
//! and busybox-static.
#![allow(clippy::unwrap_used)]

mod features;
mod hardening;
mod support;

use std::io::Read;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{Bundle, binary, random, text, wait};

#[test]
fn run_gives_output_and_code_and_leaves_nothing() {
    let (word, code) = (random(), random() % 200 + 1);
    let b = Bundle::new(&format!("echo {word}; hostname; exit {code}"));
    let o = b.run();
    assert_eq!(String::from_utf8_lossy(&o.stdout), format!("{word}\ngantry\n"), "{}", text(&o));
    assert_eq!(o.status.code(), i32::try_from(code).ok());
    assert_eq!(std::fs::read_dir(b.path("state")).unwrap().count(), 0);
    assert!(!b.cgroup("memory").exists());
}

#[test]
fn the_whole_life() {
    let b = Bundle::new("trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done");
    b.save();
    // Not with pipes: the waiting process would keep them open.
    let made = b
        .command(&["create", "--pid-file", "pid", &b.id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    let pid = std::fs::read_to_string(b.path("pid")).unwrap();
    assert_eq!(b.state()["status"], "created");
    assert_eq!(b.state()["pid"].to_string(), pid);
    assert!(b.fails(&["create", &b.id]).contains("already exists"));
    // Nothing of the caller lives on in the waiting process but its streams and the fifo.
    let fds: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|e| std::fs::read_link(e.unwrap().path()).unwrap().display().to_string())
        .collect();
    assert_eq!(fds.len(), 4, "{fds:?}");
    // And its executable cannot be written to, by anybody.
    let e = std::fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/exe")).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(30), "EROFS");
    let starts: Vec<_> = (0..4)
        .map(|_| b.command(&["start", &b.id]).stderr(Stdio::null()).spawn().unwrap())
        .collect();
    let won = starts.into_iter().filter_map(|mut c| c.wait().ok()).filter(|s| s.success()).count();
    assert_eq!(won, 1, "one start wins");
    b.until("running");
    assert!(b.fails(&["delete", &b.id]).contains("is not stopped: running"));
    assert!(b.fails(&["start", &b.id]).contains("already running"));
    let list: Value = serde_json::from_str(&b.ok(&["list", "-f", "json"])).unwrap();
    assert_eq!(list[0]["id"], b.id.as_str());
    b.ok(&["kill", &b.id, "SIGKILL"]);
    b.until("stopped");
    assert!(b.fails(&["kill", &b.id]).contains("container not running"));
    assert!(b.fails(&["exec", &b.id, "true"]).contains("cannot exec in a stopped container"));
    b.ok(&["delete", &b.id]);
    assert!(b.fails(&["state", &b.id]).contains("does not exist"));
}

#[test]
fn exec_codes_words_and_users() {
    let b = Bundle::new("sleep 1000");
    b.start();
    let code = i32::try_from(random() % 200 + 1).unwrap();
    let o = b.rt(&["exec", &b.id, "sh", "-c", &format!("exit {code}")]);
    assert_eq!(o.status.code(), Some(code));
    let words = [
        (
            "foo",
            "exec failed: unable to start container process: exec: \\\"foo\\\": executable file not found in $PATH",
        ),
        ("/x", "exec: \\\"/x\\\": stat /x: no such file or directory"),
        ("/etc/passwd", "exec: \\\"/etc/passwd\\\": permission denied"),
        ("/etc", "exec: \\\"/etc\\\": is a directory"),
    ];
    for (program, want) in words {
        let got = b.fails(&["exec", &b.id, program]);
        assert!(got.contains(want), "{got}");
    }
    let uid = random() % 60_000 + 1;
    let got = b.ok(&["exec", "-u", &format!("{uid}:{uid}"), "-g", "77", &b.id, "id"]);
    assert!(got.contains(&format!("uid={uid} gid={uid}")) && got.contains("77"), "{got}");
    for user in ["4294967296", "2147483648", "-1", "+0", "0:", "1:x"] {
        assert!(b.fails(&["exec", "-u", user, &b.id, "id"]).contains("bad user or group id"));
    }
    let got =
        b.ok(&["exec", "-e", "A=b c", "--cwd", "/tmp", &b.id, "sh", "-c", "echo $A $PWD $HOME"]);
    assert_eq!(got, "b c /tmp /root\n");
    // The last value is the only one.
    let env = ["-e", "TERM=a", "-e", "PATH=/nowhere", "-e", "TERM=b", "-e", "PATH=/bin"];
    let got = b.ok(&[&["exec"], &env[..], &[&b.id, "env"]].concat());
    for (name, want) in [("TERM=", "TERM=b"), ("PATH=", "PATH=/bin")] {
        let found: Vec<&str> = got.lines().filter(|l| l.starts_with(name)).collect();
        assert_eq!(found, [want], "{got}");
    }
    let got = b.fails(&["exec", "-e", "TERM", &b.id, "true"]);
    assert!(got.contains("invalid environment variable"), "{got}");
}

#[test]
fn exec_of_a_bare_process_is_confined_as_the_container() {
    let (files, score) = (random() % 500 + 100, random() % 900 + 1);
    let mut b = Bundle::new("sleep 1000");
    let p = &mut b.config["process"];
    p["oomScoreAdj"] = json!(score);
    p["user"]["umask"] = json!(0o57);
    p["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": files, "soft": files}]);
    for set in ["bounding", "effective", "permitted"] {
        p["capabilities"][set] = json!(["CAP_CHOWN", "CAP_KILL"]);
    }
    b.start();
    let exec = |more: Value| {
        let look = "umask; ulimit -n; cat /proc/self/oom_score_adj; grep CapEff /proc/self/status";
        let mut process = json!({
            "args": ["sh", "-c", look], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
        });
        process.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        std::fs::write(b.path("process.json"), process.to_string()).unwrap();
        b.ok(&["exec", "-p", "process.json", &b.id])
    };
    let bare = exec(json!({}));
    assert_eq!(bare, format!("0057\n{files}\n{score}\nCapEff:\t0000000000000021\n"));
    let own = exec(json!({
        "user": {"uid": 0, "gid": 0, "umask": 0}, "oomScoreAdj": 0, "capabilities": {},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 77}],
    }));
    assert_eq!(own, "0000\n77\n0\nCapEff:\t0000000000000000\n");
}

#[test]
fn no_capability_is_inheritable_or_ambient_unless_asked_for() {
    let b = Bundle::new("sleep 1000");
    b.start();
    let caps = |args: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(args);
        all.extend([b.id.as_str(), "grep", "Cap", "/proc/self/status"]);
        b.ok(&all)
    };
    for (args, effective) in [
        (&[][..], "0000000020000420"),
        (&["-c", "CAP_NET_ADMIN"], "0000000020001420"),
        (&["-u", "1000"], "0000000000000000"),
    ] {
        let got = caps(args);
        assert!(got.contains("CapInh:\t0000000000000000"), "{got}");
        assert!(got.contains("CapAmb:\t0000000000000000"), "{got}");
        assert!(got.contains(&format!("CapEff:\t{effective}")), "{args:?} {got}");
    }
    let mut b = Bundle::new("grep Cap /proc/self/status");
    let set = json!(["CAP_CHOWN"]);
    for name in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
        b.config["process"]["capabilities"][name] = set.clone();
    }
    b.config["process"]["user"]["uid"] = json!(1000);
    let got = text(&b.run());
    assert_eq!(got.matches("0000000000000001").count(), 5, "{got}");
}

#[test]
fn a_working_directory_never_leads_out() {
    let b = Bundle::new("sleep 1000");
    b.start();
    let rt = |extra: &str, args: &str| {
        let line = format!("exec {} --root state {args} {extra}", binary().display());
        let mut c = std::process::Command::new("sh");
        c.args(["-c", &line]).current_dir(b.dir.path()).stdin(Stdio::null()).output().unwrap()
    };
    for fd in 3..20 {
        let open = format!("{fd}</");
        let o = rt(&open, &format!("exec --cwd /proc/self/fd/{fd} {} ls", b.id));
        assert!(!o.status.success(), "{fd}: {}", text(&o));
    }
    // Only the streams (and ls's own) are inside.
    let o = rt("9</ 7</etc", &format!("exec {} ls /proc/self/fd", b.id));
    assert_eq!(String::from_utf8_lossy(&o.stdout), "0\n1\n2\n3\n", "{}", text(&o));
    let mut c = Bundle::new("ls");
    c.config["process"]["cwd"] = json!("/proc/self/fd/9");
    c.save();
    let line = format!("exec {} --root state run {} 9</", binary().display(), c.id);
    let o = std::process::Command::new("sh")
        .args(["-c", &line])
        .current_dir(c.dir.path())
        .output()
        .unwrap();
    assert!(!o.status.success(), "{}", text(&o));
    let mut c = Bundle::new("echo $PWD");
    c.config["process"]["cwd"] = json!("/made/on/the way");
    c.config["root"]["readonly"] = json!(false);
    assert_eq!(String::from_utf8_lossy(&c.run().stdout), "/made/on/the way\n");
}

#[test]
fn hostile_images_are_refused_or_contained() {
    // /proc and /sys as links.
    for dir in ["proc", "sys"] {
        let b = Bundle::new("true");
        std::fs::remove_dir(b.path("rootfs").join(dir)).unwrap();
        symlink("tmp", b.path("rootfs").join(dir)).unwrap();
        let got = text(&b.run());
        assert!(got.contains("must be mounted on ordinary directory"), "{got}");
    }
    // A volume over /proc or inside it.
    for at in ["/proc", "/proc/self", "/proc/sys/kernel"] {
        let mut b = Bundle::new("true");
        let m = json!({"destination": at, "type": "bind", "source": b.path("rootfs/tmp"), "options": ["rbind"]});
        b.config["mounts"].as_array_mut().unwrap().push(m);
        let got = text(&b.run());
        assert!(got.contains("cannot be mounted because"), "{got}");
    }
    // /dev leads out of the root; no mount covers it.
    let mut b = Bundle::new("true");
    let canary = b.path("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::remove_dir(b.path("rootfs/dev")).unwrap();
    symlink("../canary", b.path("rootfs/dev")).unwrap();
    let keep = |m: &Value| !m["destination"].as_str().unwrap().starts_with("/dev");
    b.config["mounts"].as_array_mut().unwrap().retain(keep);
    let o = b.run();
    assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 0, "{}", text(&o));
    assert!(o.status.success() && b.path("rootfs/canary/null").exists(), "{}", text(&o));
    // A mount target through a link out of the root.
    let mut b = Bundle::new("cat /out/f");
    symlink("/../../canary", b.path("rootfs/out")).unwrap();
    std::fs::create_dir(b.path("canary")).unwrap();
    std::fs::write(b.path("src"), "in\n").unwrap();
    let m = json!({"destination": "/out/f", "type": "bind", "source": b.path("src"), "options": ["bind"]});
    b.config["mounts"].as_array_mut().unwrap().push(m);
    assert_eq!(String::from_utf8_lossy(&b.run().stdout), "in\n");
    assert_eq!(std::fs::read_dir(b.path("canary")).unwrap().count(), 0);
}

#[test]
fn masks_read_only_paths_and_the_root_hold() {
    let b = Bundle::new(
        "stat -c %t:%T /proc/kcore /proc/keys; ls /sys/firmware /proc/acpi; \
         echo x > /file; echo 1 > /proc/sys/kernel/pid_max; mkdir /sys/fs/cgroup/x; cat /proc/keys",
    );
    let o = b.run();
    let out = String::from_utf8_lossy(&o.stdout).into_owned();
    let err = String::from_utf8_lossy(&o.stderr).into_owned();
    assert!(
        out.lines().filter(|l| l.contains(':') && !l.starts_with('/')).all(|l| l == "1:3"),
        "{out}"
    );
    assert_eq!(err.matches("Read-only file system").count(), 3, "{err}");
}

#[test]
fn masks_lead_to_nothing_of_the_hosts() {
    // The mode is the one that it has: should this be the host's device, it stays as it is.
    let b = Bundle::new("stat -c %d /dev/null /proc/keys; chmod 666 /proc/keys");
    let o = b.run();
    let out = String::from_utf8_lossy(&o.stdout).into_owned();
    let devices: Vec<&str> = out.lines().collect();
    assert_eq!(devices.len(), 2, "{}", text(&o));
    assert_eq!(devices[0], devices[1]);
    assert!(String::from_utf8_lossy(&o.stderr).contains("Read-only file system"), "{}", text(&o));
}

#[test]
fn null_streams_are_the_containers_own() {
    let look = "stat -L -c %d /dev/null /proc/self/fd/0 /proc/self/fd/2";
    let same = |out: &std::process::Output| {
        let out = String::from_utf8_lossy(&out.stdout).into_owned();
        let devices: Vec<&str> = out.lines().collect();
        assert_eq!(devices.len(), 3, "{out}");
        assert!(devices.iter().all(|device| *device == devices[0]), "{out}");
    };
    let output = |b: &Bundle, words: &[&str]| {
        let mut command = b.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.output().unwrap()
    };
    let b = Bundle::new(look);
    b.save();
    same(&output(&b, &["run", &b.id]));
    let b = Bundle::new("sleep 1000");
    b.save();
    let made = b
        .command(&["create", &b.id])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    b.ok(&["start", &b.id]);
    same(&output(&b, &["exec", &b.id, "/bin/sh", "-c", look]));
    b.ok(&["delete", "--force", &b.id]);
}

#[test]
fn the_binary_survives_an_entry_point_that_is_itself() {
    let before = std::fs::read(binary()).unwrap();
    let mut b = Bundle::new("");
    std::fs::write(b.path("rootfs/evil"), "#!/proc/self/exe\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(b.path("rootfs/evil"), mode).unwrap();
    b.config["process"]["args"] = json!(["/evil"]);
    let o = b.run();
    assert!(!o.status.success(), "{}", text(&o));
    // Another process of the container, with all rights over the first.
    let mut b = Bundle::new(
        "cp=0; for i in 1 2 3 4 5 6 7 8; do (echo bad > /proc/$$/exe) 2>/dev/null && cp=1; done; echo $cp; sleep 1000",
    );
    let all: Vec<&str> = vec!["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"];
    for set in ["bounding", "effective", "permitted"] {
        b.config["process"]["capabilities"][set] = json!(all);
    }
    b.start();
    let watcher = b
        .command(&["exec", &b.id, "sh", "-c",
            "while :; do for p in /proc/[0-9]*; do readlink $p/exe; echo x 2>/dev/null > $p/exe; done; done"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut watcher = watcher.unwrap();
    for _ in 0..50 {
        b.ok(&["exec", &b.id, "true"]);
    }
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    assert_eq!(std::fs::read(binary()).unwrap(), before);
}

#[test]
fn seccomp_in_the_kernel() {
    for no_new_privs in [true, false] {
        let mut b = Bundle::new(
            "mkdir /tmp/a; echo $?; touch /tmp/b; echo $?; grep Seccomp: /proc/self/status",
        );
        b.config["root"]["readonly"] = json!(false);
        b.config["process"]["noNewPrivileges"] = json!(no_new_privs);
        b.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["mkdir", "mkdirat", "surely_not_a_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}],
        });
        let o = b.run();
        let got = text(&o);
        assert!(got.contains("Disk quota exceeded"), "{got}");
        assert!(String::from_utf8_lossy(&o.stdout).contains("1\n0\nSeccomp:\t2"), "{got}");
    }
    // Deny by default: the filter is loaded last, so that little beside the program's own calls
    // is needed; and exec gets it as well.
    let mut b = Bundle::new("sleep 1000");
    b.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    });
    b.start();
    let got = b.ok(&["exec", &b.id, "grep", "Seccomp:", "/proc/self/status"]);
    assert_eq!(got, "Seccomp:\t2\n");
}

#[test]
fn user_namespaces_time_offsets_and_joined_namespaces() {
    let base = 100_000 + random() % 100_000;
    let mut b = Bundle::new(
        "cat /proc/self/uid_map; id -u; echo x > /dev/null && ls -ln /dev | grep mqueue; stat -c %u /proc/self/stat /dev/mqueue",
    );
    b.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": base, "size": 65536}]);
    b.config["linux"]["uidMappings"] = map.clone();
    b.config["linux"]["gidMappings"] = map;
    let o = b.run();
    let got = String::from_utf8_lossy(&o.stdout).into_owned();
    assert!(got.contains(&format!("{base}      65536")), "{}", text(&o));
    assert!(got.ends_with("0\n0\n"), "{}", text(&o));

    let mut b = Bundle::new("cat /proc/uptime");
    b.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    b.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 50_000_000}});
    let got = text(&b.run());
    let up: f64 =
        got.split_whitespace().find_map(|w| w.parse().ok().filter(|n: &f64| *n > 1e6)).unwrap();
    assert!(up > 50_000_000.0, "{got}");

    // A second container in the first one's pid, network and ipc namespaces.
    let first = Bundle::new("sleep 1000");
    first.start();
    let pid = first.state()["pid"].clone();
    let mut second = Bundle::new("sleep 2000 & sleep 3000");
    for ns in second.config["linux"]["namespaces"].as_array_mut().unwrap() {
        let kind = match ns["type"].as_str().unwrap() {
            "network" => "net",
            kind @ ("pid" | "ipc") => kind,
            _ => continue,
        };
        ns["path"] = json!(format!("/proc/{pid}/ns/{kind}"));
    }
    second.start();
    wait(|| first.ok(&["exec", &first.id, "ps"]).contains("sleep 2000"), "the second's process");
    second.ok(&["kill", &second.id, "KILL"]);
    second.until("stopped");
    wait(|| !first.ok(&["exec", &first.id, "ps"]).contains("sleep 2000"), "all are killed");
    assert_eq!(first.state()["status"], "running");
}

#[test]
fn limits_pause_and_figures() {
    let mut b = Bundle::new("sleep 1000");
    let limit = (random() % 100 + 64) << 20;
    b.config["linux"]["resources"]["memory"] =
        json!({"limit": limit, "swap": limit, "reservation": limit / 2});
    b.config["linux"]["resources"]["pids"] = json!({"limit": 33});
    b.config["linux"]["resources"]["cpu"] =
        json!({"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"});
    b.start();
    let read =
        |c: &str, f: &str| std::fs::read_to_string(b.cgroup(c).join(f)).unwrap().trim().to_owned();
    assert_eq!(read("memory", "memory.limit_in_bytes"), limit.to_string());
    assert_eq!(read("pids", "pids.max"), "33");
    assert_eq!(read("cpu", "cpu.shares"), "512");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
    assert_eq!(read("cpuset", "cpuset.cpus"), "0");
    assert!(read("devices", "devices.list").contains("c 1:3 rwm"));
    assert!(!read("devices", "devices.list").contains("a *:* rwm"));
    b.ok(&[
        "update",
        "--memory",
        "256m",
        "--memory-swap",
        "512m",
        "--pids-limit",
        "44",
        "--cpu-share",
        "300",
        &b.id,
    ]);
    assert_eq!(read("memory", "memory.limit_in_bytes"), (256u64 << 20).to_string());
    assert_eq!((read("pids", "pids.max"), read("cpu", "cpu.shares")), ("44".into(), "300".into()));
    let said = text(&b.rt(&["update", "--pids-limit", "0", &b.id]));
    assert_eq!(said, "exit status: 0 ");
    assert_eq!(read("pids", "pids.max"), "1", "a limit, as of version 1.3");
    b.ok(&["update", "--pids-limit", "-1", &b.id]);
    b.ok(&["pause", &b.id]);
    assert_eq!(b.state()["status"], "paused");
    assert!(b.fails(&["exec", &b.id, "true"]).contains("paused container"));
    b.ok(&["resume", &b.id]);
    assert!(b.fails(&["resume", &b.id]).contains("not paused"));
    b.ok(&["exec", &b.id, "true"]);
    let pids: Vec<Value> = serde_json::from_str(&b.ok(&["ps", "-f", "json", &b.id])).unwrap();
    assert_eq!(pids, [b.state()["pid"].clone()]);
    let line: Value = serde_json::from_str(&b.ok(&["events", "--stats", &b.id])).unwrap();
    assert_eq!(line["data"]["memory"]["usage"]["limit"], json!(256u64 << 20));
    assert!(line["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    // A paused container is killed all the same.
    b.ok(&["pause", &b.id]);
    b.ok(&["kill", &b.id, "KILL"]);
    b.until("stopped");
}

#[test]
fn an_unknown_limit_fails_and_leaves_nothing() {
    let mut b = Bundle::new("true");
    b.config["linux"]["resources"]["memory"] = json!({"limit": 1 << 20, "swappiness": 101});
    assert!(text(&b.run()).contains("swappiness"));
    assert!(!b.cgroup("memory").exists() && !b.path("state").join(&b.id).exists());
    b.config["linux"]["resources"].as_object_mut().unwrap().remove("memory");
    b.config["linux"]["intelRdt"] = json!({"closID": "x"});
    assert!(text(&b.run()).contains("linux.intelRdt: the host has no resctrl file system"));
    assert!(text(&b.rt(&["checkpoint", &b.id])).contains("not offered"));
}

#[test]
fn hooks_of_all_kinds() {
    let mut b = Bundle::new("true");
    let log = b.path("log");
    let hook = |kind: &str| {
        let line = format!("read s; echo \"{kind} $s\" >> {}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", line], "timeout": 10}])
    };
    for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        b.config["hooks"][kind] = hook(kind);
    }
    b.config["hooks"]["startContainer"] = json!([{"path": "/bin/sh",
        "args": ["sh", "-c", "read s; echo \"startContainer $s\" > /tmp/hook"]}]);
    b.config["root"]["readonly"] = json!(false);
    b.config["annotations"] = json!({"a.b": "c"});
    let o = b.run();
    assert!(o.status.success(), "{}", text(&o));
    let inside = std::fs::read_to_string(b.path("rootfs/tmp/hook")).unwrap();
    assert!(inside.starts_with("startContainer {"), "{inside}");
    let lines = std::fs::read_to_string(&log).unwrap();
    let got: Vec<(String, Value)> = lines
        .lines()
        .map(|l| l.split_once(' ').unwrap())
        .map(|(k, s)| (k.to_owned(), serde_json::from_str(s).unwrap()))
        .collect();
    let kinds: Vec<&str> = got.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(kinds, ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]);
    assert!(got.iter().all(|(_, s)| s["id"] == b.id.as_str() && s["annotations"]["a.b"] == "c"));
    assert_eq!(got[0].1["status"], "creating");
    assert_eq!(got[4].1["status"], "stopped");

    let mut b = Bundle::new("true");
    b.config["hooks"]["createRuntime"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo why not; exit 3"]}]);
    let got = text(&b.run());
    assert!(
        got.contains("runc run failed: unable to start container process: error during container init: error running createRuntime hook #0: exit status 3, stdout: why not, stderr: "),
        "{got}"
    );
    b.config["hooks"]["createRuntime"] =
        json!([{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]);
    assert!(text(&b.run()).contains("hook ran past specified timeout of 1.0s"));
}

#[test]
fn a_terminal_through_the_console_socket() {
    let mut b = Bundle::new("tty; stat -c %F /dev/console; read x; echo got $x");
    b.config["process"]["terminal"] = json!(true);
    b.config["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    b.save();
    let path = b.path("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = b
        .command(&["run", "-d", "--console-socket", path.to_str().unwrap(), &b.id])
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut master = std::fs::File::from(receive_fd(&stream));
    assert!(child.wait().unwrap().success());
    let size = rustix::termios::tcgetwinsize(&master).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (33, 77));
    std::io::Write::write_all(&mut master, b"hello\n").unwrap();
    let (mut got, mut buf) = (String::new(), [0u8; 4096]);
    while let Ok(n @ 1..) = master.read(&mut buf) {
        got.push_str(&String::from_utf8_lossy(&buf[..n]));
    }
    assert!(
        got.contains("/dev/pts/0")
            && got.contains("character special")
            && got.contains("got hello"),
        "{got}"
    );
    assert!(b.fails(&["create", "x"]).contains("cannot allocate tty"));
}

fn receive_fd(stream: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buf = [0u8; 64];
    recvmsg(stream, &mut [std::io::IoSliceMut::new(&mut buf)], &mut control, RecvFlags::empty())
        .unwrap();
    let fd = control.drain().find_map(|m| match m {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.unwrap()
}

#[test]
fn the_log_has_what_engines_look_for() {
    let mut b = Bundle::new("true");
    let name = format!("prog{}", random());
    b.config["process"]["args"] = json!([name]);
    b.save();
    let log = b.path("log.json");
    let o = b.rt(&["--log", log.to_str().unwrap(), "--log-format", "json", "create", &b.id]);
    assert!(!o.status.success());
    let lines = std::fs::read_to_string(log).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    let want = format!(
        "runc create failed: unable to start container process: exec: \"{name}\": executable file not found in $PATH"
    );
    assert_eq!(last["msg"], want);
    assert!(String::from_utf8_lossy(&o.stderr).contains(&want));
    let features: Value = serde_json::from_str(&b.ok(&["features"])).unwrap();
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
}

#[test]
fn mount_options_and_copy_up() {
    let mut b = Bundle::new(
        "cat /full/f; stat -c %a /full/f; echo x > /bound/y; grep -E ' /(full|bound|small) ' /proc/self/mountinfo; ls /rec/proc/version 2>&1",
    );
    std::fs::create_dir(b.path("rootfs/full")).unwrap();
    let word = random().to_string();
    std::fs::write(b.path("rootfs/full/f"), format!("{word}\n")).unwrap();
    std::fs::create_dir(b.path("src")).unwrap();
    let mounts = b.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/full", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "nosuid", "size=1m"]}));
    mounts.push(json!({"destination": "/bound", "type": "bind", "source": "src", "options": ["rbind", "ro", "noexec", "rprivate"]}));
    mounts.push(json!({"destination": "/small", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "noatime", "rnodev"]}));
    b.config["root"]["readonly"] = json!(false);
    let o = b.run();
    let got = text(&o);
    assert!(got.contains(&word) && got.contains("644"), "{got}");
    assert!(got.contains("Read-only file system"), "{got}");
    let line = |at: &str| {
        got.lines().find(|l| l.contains(&format!(" {at} "))).unwrap_or_default().to_owned()
    };
    assert!(line("/bound").contains("ro,noexec"), "{got}");
    assert!(
        line("/small").contains("nodev,noatime") && line("/small").contains("size=64k"),
        "{got}"
    );
    let mut b = Bundle::new("true");
    b.config["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["size=nonsense"]}),
    );
    let got = text(&b.run());
    assert!(got.contains("to rootfs at") && got.contains("size"), "{got}");
}

/// A host that has cgroup v2 alone: a mount namespace in which /sys/fs/cgroup is the cgroup2.
#[test]
fn cgroup_v2_alone() {
    let mut b = Bundle::new(
        "cat /proc/self/cgroup; dd if=/dev/zero of=/dev/null count=1 2>&1; cat /dev/forbidden; exec sleep 1000",
    );
    b.wrap = Some("mount -t cgroup2 none /sys/fs/cgroup".into());
    // Device 1:11 is kmsg, which no default rule allows; any node may be made.
    b.config["linux"]["devices"] =
        json!([{"path": "/dev/forbidden", "type": "c", "major": 1, "minor": 11}]);
    b.start();
    let dir = {
        let path = b.cgroup("unified");
        if path.exists() { path } else { b.cgroup("").components().collect() }
    };
    wait(|| b.out().contains("forbidden"), "the program's output");
    let out = b.out();
    assert!(out.contains("0::/\n") && out.contains("1+0 records"), "{out}");
    assert!(out.contains("forbidden': Operation not permitted"), "{out}");
    let procs = || std::fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().count();
    // Beside it one of the shell's, at most for a while.
    wait(|| procs() == 1, "the first process alone in its cgroup");
    b.ok(&["pause", &b.id]);
    assert_eq!(b.state()["status"], "paused");
    b.ok(&["resume", &b.id]);
    let got = b.ok(&["exec", &b.id, "cat", "/proc/self/cgroup"]);
    assert!(got.contains("0::/\n"), "{got}");
    b.ok(&["kill", "--all", &b.id, "KILL"]);
    b.until("stopped");
    b.ok(&["delete", &b.id]);
    assert!(!dir.exists());
}

#[test]
fn devices_are_what_they_should_be() {
    let mut b = Bundle::new(
        "stat -c '%n %a %t:%T' /dev/null /dev/tty /dev/zero; readlink /dev/ptmx; readlink /dev/fd; stat -c '%u %a' /dev/own",
    );
    b.config["linux"]["devices"] = json!([{"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 12, "gid": 13}]);
    let got = text(&b.run());
    for want in [
        "/dev/null 666 1:3",
        "/dev/tty 666 5:0",
        "/dev/zero 666 1:5",
        "pts/ptmx",
        "/proc/self/fd",
        "12 640",
    ] {
        assert!(got.contains(want), "{want}: {got}");
    }
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}
