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

#[test]
fn all_are_in_the_containers_session_keyring() {
    let b = Bundle::new("sleep 1000");
    b.start();
    let Ok(keys) = std::fs::read_to_string("/proc/keys") else { return };
    drop(keys);
    // /proc/keys is masked inside; the host's shows who has which.
    let got = std::fs::read_to_string("/proc/keys").unwrap();
    let name = format!("_ses.{}", b.id);
    let before = got.lines().filter(|l| l.contains(&name)).count();
    b.ok(&["exec", &b.id, "true"]);
    let got = std::fs::read_to_string("/proc/keys").unwrap();
    let after = got.lines().filter(|l| l.contains(&name)).count();
    assert!(after <= before, "exec made a keyring of its own");
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
fn every_process_gets_a_seccomp_listener() {
    let mut b = Bundle::new("sleep 1000");
    let socket = b.path("listener");
    let listener = UnixListener::bind(&socket).unwrap();
    let word = random().to_string();
    b.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": socket, "listenerMetadata": word,
        "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let seen = std::thread::spawn(move || {
        (0..2)
            .map(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut text = String::new();
                std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
                serde_json::from_str(&text).unwrap()
            })
            .collect::<Vec<Value>>()
    });
    b.start();
    b.ok(&["exec", &b.id, "true"]);
    let seen = seen.join().unwrap();
    assert!(
        seen.iter().all(|s| s["metadata"] == word.as_str() && s["fds"] == json!(["seccompFd"]))
    );
    assert_eq!(seen[0]["state"]["status"], "creating");
    assert_eq!(seen[1]["state"]["status"], "running");
    assert_ne!(seen[0]["pid"], seen[1]["pid"]);
    assert_eq!(seen[0]["pid"], seen[1]["state"]["pid"]);
}
