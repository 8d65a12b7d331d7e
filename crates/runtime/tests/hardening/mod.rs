//! What a hostile container, image or caller must not get.

use serde_json::json;

use crate::support::{Bundle, binary};

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
        // One end of a socket pair at most, never a file or directory.
        let host = fds.split(',').filter(|l| !l.is_empty() && !l.starts_with("socket:"));
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
