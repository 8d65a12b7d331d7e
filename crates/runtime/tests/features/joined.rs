//! What processes that join share with the first: execution domain, memory policy, keyring,
//! sub-cgroups, seccomp listeners.

use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

use crate::support::{Bundle, random, text};

#[test]
fn the_execution_domain_and_the_memory_policy_hold_for_all() {
    let mut b = Bundle::new("uname -m; cat /proc/self/numa_maps; sleep 1000");
    std::os::unix::fs::symlink("busybox", b.path("rootfs/bin/uname")).unwrap();
    b.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    let numa = std::path::Path::new("/proc/self/numa_maps").exists();
    if numa {
        b.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    }
    b.start();
    crate::support::wait(|| !b.out().is_empty(), "the program's output");
    let inside = b.ok(&["exec", &b.id, "sh", "-c", "uname -m; cat /proc/self/numa_maps"]);
    for got in [b.out(), inside] {
        assert!(got.starts_with("i686\n") || got.starts_with("armv8l\n"), "{got}");
        assert!(!numa || got.contains("bind:0"), "{got}");
    }
    for (field, value) in [
        ("mode", json!({"mode": "MPOL_NEAR"})),
        ("nodes", json!({"mode": "MPOL_BIND", "nodes": "0-"})),
        ("flags", json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_X"]})),
    ] {
        let mut b = Bundle::new("true");
        b.config["linux"]["memoryPolicy"] = value;
        let got = text(&b.run());
        assert!(got.contains(&format!("linux.memoryPolicy.{field}")), "{got}");
    }
}

/// The serial numbers of the session keyrings that a process says it has.
fn keyrings(listing: &str) -> Vec<String> {
    let ours = listing.lines().filter(|l| l.contains("_ses."));
    ours.map(|l| format!("{} {}", &l[..8], l.rsplit("_ses.").next().unwrap())).collect()
}

#[test]
fn all_are_in_the_containers_session_keyring() {
    assert!(std::path::Path::new("/proc/keys").exists(), "a kernel with keyrings");
    let mut b = Bundle::new("cat /proc/keys; echo; sleep 1000");
    // What a process sees there are the keys that it possesses.
    b.config["linux"]["maskedPaths"].as_array_mut().unwrap().retain(|p| p != "/proc/keys");
    b.start();
    crate::support::wait(|| b.out().ends_with("\n\n"), "the program's output");
    let own =
        |list: Vec<String>| list.into_iter().filter(|k| k.contains(&b.id)).collect::<Vec<_>>();
    let first = own(keyrings(&b.out()));
    let joined = own(keyrings(&b.ok(&["exec", &b.id, "cat", "/proc/keys"])));
    assert_eq!((first.len(), &joined), (1, &first), "{}", b.out());
}

#[test]
fn a_process_joins_sub_cgroups_of_single_controllers() {
    let b = Bundle::new("sleep 1000");
    b.start();
    let sub = format!("sub{}", random());
    let dir = b.cgroup("pids").join(&sub);
    std::fs::create_dir(&dir).unwrap();
    let show = |args: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(args);
        all.extend([b.id.as_str(), "cat", "/proc/self/cgroup"]);
        b.rt(&all)
    };
    let lines = |o: &std::process::Output| {
        String::from_utf8_lossy(&o.stdout).lines().filter(|l| l.ends_with(&sub)).count()
    };
    let o = show(&["--cgroup", &format!("pids:/{sub}")]);
    assert_eq!(lines(&o), 1, "{}", text(&o));
    let o = show(&["--cgroup", &format!("nothing:{sub}")]);
    assert!(text(&o).contains("unknown controller nothing"), "{}", text(&o));
    assert!(text(&show(&["--cgroup", "../x"])).contains("leads out"), "no way out");
    assert!(show(&["--cgroup", "/"]).status.success());
    std::fs::remove_dir(&dir).unwrap();
}

#[test]
fn a_sub_cgroup_that_takes_no_process_is_an_error() {
    let mut b = Bundle::new("sleep 1000");
    b.wrap = Some("mount -t cgroup2 none /sys/fs/cgroup".into());
    b.start();
    let dir = {
        let path = b.cgroup("unified");
        if path.exists() { path } else { b.cgroup("").components().collect() }
    };
    // Below a threaded cgroup one that is not threaded is no place for anything.
    let name = format!("s{}", random());
    std::fs::create_dir_all(dir.join(&name).join("t")).unwrap();
    std::fs::write(dir.join(&name).join("t/cgroup.type"), "threaded").unwrap();
    let place = format!("{name}/t/u");
    std::fs::create_dir(dir.join(&place)).unwrap();
    for affinity in [false, true] {
        let process = json!({"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
            "execCPUAffinity": if affinity { json!({"initial": "0"}) } else { json!({}) }});
        std::fs::write(b.path("p.json"), process.to_string()).unwrap();
        let exec = |place: &[&str]| {
            let args = [&["exec", "-p", "p.json"], place, &[&b.id]].concat();
            b.rt(&args)
        };
        let got = text(&exec(&["--cgroup", &place]));
        assert!(got.starts_with("exit status: 255") && got.contains(&place), "{got}");
        assert!(exec(&["--cgroup", &name]).status.success());
        assert!(exec(&[]).status.success());
    }
}

/// A listener's text, and what its descriptor is.
fn told(listener: &UnixListener) -> (Value, String) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buf = [0u8; 16384];
    let mut parts = [std::io::IoSliceMut::new(&mut buf)];
    let n = recvmsg(&stream, &mut parts, &mut control, RecvFlags::empty()).unwrap().bytes;
    let fd = control.drain().find_map(|m| match m {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let fd = fd.unwrap();
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let link = std::fs::read_link(link).unwrap().display().to_string();
    (serde_json::from_slice(&buf[..n]).unwrap(), link)
}

#[test]
fn every_process_gets_a_seccomp_listener() {
    // With and without a filter that lets a descriptor be sent.
    for forbidden in ["uname", "sendmsg"] {
        let mut b = Bundle::new("ls -l /proc/self/fd; sleep 1000");
        let socket = b.path("listener");
        let listener = UnixListener::bind(&socket).unwrap();
        let word = random().to_string();
        b.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": socket, "listenerMetadata": word,
            "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_NOTIFY"},
                {"names": [forbidden], "action": "SCMP_ACT_ERRNO"}],
        });
        let seen = std::thread::spawn(move || [told(&listener), told(&listener)]);
        b.start();
        b.ok(&["exec", &b.id, "true"]);
        let seen = seen.join().unwrap();
        for (text, link) in &seen {
            assert!(text["metadata"] == word.as_str() && text["fds"] == json!(["seccompFd"]));
            assert_eq!(link, "anon_inode:seccomp notify");
        }
        let [(first, _), (second, _)] = seen;
        assert_eq!(first["state"]["status"], "creating");
        assert_eq!(second["state"]["status"], "running");
        assert_ne!(first["pid"], second["pid"]);
        assert_eq!(first["pid"], second["state"]["pid"]);
        assert_eq!(first["pid"], b.state()["pid"]);
        assert!(!b.out().contains("seccomp"), "{}", b.out());
    }
}

#[test]
fn a_listener_for_a_container_in_anothers_pids_names_its_process() {
    let first = Bundle::new("sleep 1000");
    first.start();
    let pid = first.state()["pid"].clone();
    let mut b = Bundle::new("sleep 1000");
    for ns in b.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if ns["type"] == "pid" {
            ns["path"] = json!(format!("/proc/{pid}/ns/pid"));
        }
    }
    let socket = b.path("listener");
    let listener = UnixListener::bind(&socket).unwrap();
    b.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket,
        "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let seen = std::thread::spawn(move || told(&listener));
    b.start();
    let (text, link) = seen.join().unwrap();
    assert_eq!(text["pid"], b.state()["pid"]);
    assert_eq!(link, "anon_inode:seccomp notify");
}

/// A new user namespace in the pid namespace of others: it has no rights over that one.
#[test]
fn a_new_user_namespace_in_anothers_pids() {
    let first = Bundle::new("sleep 1000");
    first.start();
    let pid = first.state()["pid"].clone();
    let base = 100_000 + random() % 100_000;
    let word = format!("w{base}");
    let mut b = Bundle::new(&format!(
        "cat /proc/self/uid_map; id -u; stat -c %u:%g /tmp/mine; echo {word}; sleep 1000"
    ));
    std::fs::write(b.path("rootfs/tmp/mine"), "").unwrap();
    std::os::unix::fs::chown(b.path("rootfs/tmp/mine"), Some(base), Some(base + 7)).unwrap();
    let namespaces = b.config["linux"]["namespaces"].as_array_mut().unwrap();
    for ns in namespaces.iter_mut().filter(|ns| ns["type"] == "pid") {
        ns["path"] = json!(format!("/proc/{pid}/ns/pid"));
    }
    namespaces.push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": base, "size": 65536}]);
    b.config["linux"]["uidMappings"] = map.clone();
    b.config["linux"]["gidMappings"] = map;
    b.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NPROC", "soft": 50, "hard": 60}]);
    let said = text(&b.run());
    assert!(
        said.contains("mounts: a new user namespace has no rights over a joined pid"),
        "{said}"
    );
    for m in b.config["mounts"].as_array_mut().unwrap().iter_mut().filter(|m| m["type"] == "proc") {
        *m = json!({"destination": "/proc", "source": "/proc", "options": ["rbind"]});
    }
    b.start();
    crate::support::wait(|| b.out().contains(&word), "the program's output");
    let got = b.out();
    let lines: Vec<&str> = got.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["0", &base.to_string(), "65536"]);
    assert_eq!(&lines[1..], ["0", "0:7", &word], "{got}");
    assert_eq!(b.ok(&["exec", &b.id, "id", "-u"]), "0\n");
    let init = b.state()["pid"].clone();
    for (kind, same) in [("pid", true), ("user", false), ("ipc", false), ("mnt", false)] {
        let of = |pid: &Value| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(of(&init) == of(&pid), same, "{kind}");
    }
    b.ok(&["kill", &b.id, "KILL"]);
    b.until("stopped");
    assert_eq!(first.state()["status"], "running");
}
