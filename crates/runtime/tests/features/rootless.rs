//! Without root: a user namespace of an ordinary user's.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Bundle, binary, random, text};

/// The runtime as this user, with a copy of the binary that it may read.
fn rt(b: &Bundle, uid: u32, args: &[&str]) -> Output {
    Command::new(b.path("rt"))
        .arg("--root")
        .arg(b.path("own/state"))
        .args(args)
        .current_dir(b.path("own"))
        .uid(uid)
        .gid(uid)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn bundle(script: &str, uid: u32) -> Bundle {
    let b = Bundle::new(script);
    // By another program: a descriptor for writing that a child of another test has makes it busy.
    let copied = Command::new("cp").arg(binary()).arg(b.path("rt")).status().unwrap();
    assert!(copied.success());
    let own = b.path("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::rename(b.path("rootfs"), own.join("rootfs")).unwrap();
    for dir in [own.clone(), own.join("rootfs")] {
        chown(&dir, Some(uid), Some(uid)).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let o = rt(&b, uid, &["spec", "--rootless"]);
    assert!(o.status.success(), "{}", text(&o));
    b
}

fn change(b: &Bundle, f: impl FnOnce(&mut Value)) {
    let path = b.path("own/config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    f(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
}

/// As `runc spec --rootless` writes it: with cgroups mounted, of which the user may make none.
#[test]
fn an_ordinary_user_has_containers_without_a_cgroup_namespace() {
    let uid = 20_000 + random() % 10_000;
    let b = bundle("", uid);
    change(&b, |c| {
        c["process"]["terminal"] = json!(false);
        c["process"]["args"] = json!(["sh", "-c", "echo runs; ls /sys/fs/cgroup/*"]);
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "cgroup");
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.retain(|m| m["destination"] != "/sys/fs/cgroup");
        mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}));
    });
    let o = rt(&b, uid, &["run", "--no-new-keyring", &b.id]);
    assert!(o.stdout.starts_with(b"runs\n"), "{}", text(&o));
    assert!(!text(&o).contains("cgroup.procs") && !text(&o).contains("tasks"), "{}", text(&o));
}

#[test]
fn an_ordinary_user_has_containers() {
    let uid = 20_000 + random() % 10_000;
    let b = bundle("", uid);
    change(&b, |c| {
        c["process"]["terminal"] = json!(false);
        c["process"]["args"] = json!(["sh", "-c", "id -u; cat /proc/self/uid_map; hostname"]);
    });
    let o = rt(&b, uid, &["run", "--no-new-keyring", &b.id]);
    let got = String::from_utf8_lossy(&o.stdout).into_owned();
    assert!(o.status.success(), "{}", text(&o));
    assert!(got.starts_with("0\n") && got.contains(&format!("{uid}          1")), "{}", text(&o));

    // A whole life, and a process that joins.
    change(&b, |c| c["process"]["args"] = json!(["sleep", "1000"]));
    let line = format!(
        "exec {} --root state run -d {} >out 2>&1 </dev/null",
        b.path("rt").display(),
        b.id
    );
    let mut sh = Command::new("sh");
    sh.args(["-c", &line]).current_dir(b.path("own")).uid(uid).gid(uid);
    let status = sh.status().unwrap();
    let out = std::fs::read_to_string(b.path("own/out")).unwrap();
    assert!(status.success(), "{out}");
    let o = rt(&b, uid, &["exec", &b.id, "id", "-u"]);
    assert_eq!(String::from_utf8_lossy(&o.stdout), "0\n", "{}", text(&o));
    let got = text(&rt(&b, uid, &["exec", "--cgroup", "x", &b.id, "id", "-u"]));
    assert!(got.contains("--cgroup: the container has no cgroup"), "{got}");
    let o = rt(&b, uid, &["delete", "-f", &b.id]);
    assert!(o.status.success(), "{}", text(&o));
}

#[test]
fn a_user_namespace_without_setgroups_is_joined() {
    let mut other = Command::new("unshare")
        .args(["--user", "--map-root-user", "sleep", "1000"])
        .spawn()
        .unwrap();
    let pid = other.id();
    let setgroups = || std::fs::read_to_string(format!("/proc/{pid}/setgroups")).unwrap();
    let maps = || std::fs::read_to_string(format!("/proc/{pid}/gid_map")).unwrap();
    crate::support::wait(
        || setgroups() == "deny\n" && maps().trim().ends_with(" 1"),
        "the namespace",
    );
    let mut b = Bundle::new("id -u; cat /proc/self/setgroups");
    let list = b.config["linux"]["namespaces"].as_array_mut().unwrap();
    list.push(json!({"type": "user", "path": format!("/proc/{pid}/ns/user")}));
    // Of the host's cgroups and its mqueue nothing can be mounted there.
    let plain = |m: &Value| m["type"] != "cgroup" && m["type"] != "mqueue";
    b.config["mounts"].as_array_mut().unwrap().retain(plain);
    for m in b.config["mounts"].as_array_mut().unwrap() {
        let options = m["options"].as_array_mut();
        options.into_iter().for_each(|o| o.retain(|o| o != "gid=5"));
    }
    let o = b.run();
    assert_eq!(String::from_utf8_lossy(&o.stdout), "0\ndeny\n", "{}", text(&o));
    b.config["process"]["user"]["additionalGids"] = json!([7]);
    let got = text(&b.run());
    assert!(got.contains("process.user.additionalGids: cannot be set"), "{got}");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn ids_that_are_not_the_users_need_the_helpers() {
    let uid = 30_000 + random() % 10_000;
    let b = bundle("", uid);
    change(&b, |c| {
        c["process"]["terminal"] = json!(false);
        c["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1},
            {"containerID": 1, "hostID": 700_000, "size": 10}]);
    });
    let o = rt(&b, uid, &["run", &b.id]);
    let got = text(&o);
    assert!(!o.status.success(), "{got}");
    assert!(got.contains("linux.uidMappings") && got.contains("/etc/subuid"), "{got}");
}
