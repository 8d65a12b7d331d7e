//! What the container gets of the host: interfaces, its own cgroup, mounts that change afterwards.

use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Bundle, binary, random, text, wait};

/// Runs the runtime in a network namespace that `prepare` has made.
fn in_network(b: &Bundle, prepare: &str) -> std::process::Output {
    b.save();
    let line = format!("set -e; {prepare}; exec {} --root state run {}", binary().display(), b.id);
    let mut sh = Command::new("unshare");
    sh.args(["-n", "sh", "-c", &line]).current_dir(b.dir.path());
    sh.output().unwrap()
}

#[test]
fn interfaces_move_in_with_their_addresses() {
    let third = random() % 250 + 1;
    let mut b = Bundle::new("ip -o addr; ip -o link; cat /sys/class/net/inside/operstate");
    symlink("busybox", b.path("rootfs/bin/ip")).unwrap();
    b.config["linux"]["netDevices"] = json!({"gt0": {"name": "inside"}});
    let prepare = format!(
        "ip link add gt0 type veth peer name gt1; ip addr add 10.9.{third}.3/24 dev gt0; \
         ip link set gt0 up; ip link set gt1 up"
    );
    let o = in_network(&b, &prepare);
    let got = text(&o);
    assert!(o.status.success(), "{got}");
    assert!(got.contains(&format!("inside    inet 10.9.{third}.3/24")), "{got}");
    let line = got.lines().find(|l| l.contains("inside@")).unwrap_or_default();
    assert!(line.contains(",UP"), "{got}");
    assert!(!got.contains("gt0"), "{got}");

    b.config["linux"]["netDevices"] = json!({"absent": {}});
    let got = text(&in_network(&b, "true"));
    assert!(
        got.contains("linux.netDevices: move \\\"absent\\\"") && got.contains("no such device"),
        "{got}"
    );
    b.config["linux"]["netDevices"] = json!({"gt0": {"name": "a/b"}});
    assert!(text(&in_network(&b, "true")).contains("no interface's name"));
    b.config["linux"]["netDevices"] = json!({"gt0": {}});
    let keep = |n: &Value| n["type"] != "network";
    b.config["linux"]["namespaces"].as_array_mut().unwrap().retain(keep);
    assert!(text(&in_network(&b, "true")).contains("needs a network namespace"));
}

/// Also where the process that is made first is outside of the container's pid namespace, and enters its
/// network itself.
#[test]
fn interfaces_move_in_beside_a_shared_pid_namespace() {
    let third = random() % 250 + 1;
    let mut b = Bundle::new("ip -o addr");
    symlink("busybox", b.path("rootfs/bin/ip")).unwrap();
    b.config["linux"]["netDevices"] = json!({"gt0": {"name": "inside"}});
    let place = b.path("pidns");
    for n in b.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if n["type"] == "pid" {
            n["path"] = json!(place);
        }
    }
    let prepare = format!(
        "ip link add gt0 type veth peer name gt1; ip addr add 10.9.{third}.3/24 dev gt0; \
         unshare -pf --kill-child sleep 20 & u=$!; ln -s /proc/$u/ns/pid_for_children pidns; \
         until readlink /proc/$u/ns/pid_for_children > /dev/null && \
         ! [ /proc/$u/ns/pid -ef /proc/$u/ns/pid_for_children ]; do sleep 0.01; done; \
         code=0; {} --root state run {} || code=$?; kill -9 $u; exit $code",
        binary().display(),
        b.id
    );
    let o = in_network(&b, &prepare);
    let got = text(&o);
    assert!(o.status.success(), "{got}");
    assert!(got.contains(&format!("inside    inet 10.9.{third}.3/24")), "{got}");
}

/// If they cannot all move, or the container is not made for another reason, they stay with the host, with
/// their addresses, and up.
#[test]
fn interfaces_come_back_if_nothing_comes_of_the_container() {
    let third = random() % 250 + 1;
    let mut b = Bundle::new("true");
    let show = |rest: &str| {
        format!(
            "ip link add gt0 type veth peer name gt1; ip addr add 10.9.{third}.3/24 dev gt0; \
             ip addr add fd00:{third}::3/64 dev gt0 nodad; ip link set gt0 up; ip link set gt1 up; \
             {rest} ip -o link show gt0; ip -o addr show gt0; exit 7"
        )
    };
    let run = format!("{} --root state run {} || true;", binary().display(), b.id);
    let whole = |got: &str| {
        let line = got.lines().find(|l| l.contains(": gt0@")).unwrap_or_default();
        assert!(line.contains(",UP"), "{got}");
        for address in [format!("inet 10.9.{third}.3/24"), format!("inet6 fd00:{third}::3/64")] {
            assert!(got.contains(&address), "{address}: {got}");
        }
    };
    // The second is not there.
    b.config["linux"]["netDevices"] = json!({"gt0": {"name": "inside"}, "gtabsent": {}});
    let got = text(&in_network(&b, &show(&run)));
    assert!(got.contains("move \\\"gtabsent\\\"") && got.contains("no such device"), "{got}");
    whole(&got);

    // The name is taken in the container's namespace, which shows after the move.
    b.config["linux"]["netDevices"] = json!({"gt0": {"name": "lo"}});
    let got = text(&in_network(&b, &show(&run)));
    assert!(got.contains("move \\\"gt0\\\"") && got.contains("file exists"), "{got}");
    whole(&got);

    // What fails comes later: a hook; the process itself, whose namespaces go with it.
    b.config["linux"]["netDevices"] = json!({"gt0": {"name": "inside"}});
    b.config["hooks"]["createRuntime"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", "kill -9 `sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'`; exit 3"]}]);
    let got = text(&in_network(&b, &show(&run)));
    assert!(got.contains("createRuntime hook #0"), "{got}");
    whole(&got);
    b.config["hooks"]["createRuntime"] = json!([]);
    b.config["linux"]["sysctl"] = json!({"net.ipv4.absent": "1"});
    let got = text(&in_network(&b, &show(&run)));
    assert!(got.contains("net.ipv4.absent"), "{got}");
    whole(&got);
    b.config["linux"]["sysctl"] = json!({});

    // A bridge stays in its namespace.
    b.config["linux"]["netDevices"] = json!({"gtb": {}});
    let bridge = format!(
        "ip link add gtb type bridge; ip addr add 10.8.{third}.1/24 dev gtb; ip link set gtb up; \
         ip route add 10.7.{third}.0/24 dev gtb; {run} ip -o link show gtb; ip route; exit 7"
    );
    let got = text(&in_network(&b, &bridge));
    assert!(got.contains("move \\\"gtb\\\"") && got.contains("invalid argument"), "{got}");
    let line = got.lines().find(|l| l.contains(": gtb:")).unwrap_or_default();
    assert!(line.contains(",UP"), "{got}");
    assert!(got.contains(&format!("10.7.{third}.0/24 dev gtb")), "{got}");
}

#[test]
fn a_cgroup_of_its_own_belongs_to_the_containers_root() {
    for writable in [true, false] {
        let base = 100_000 + random() % 100_000;
        let mut b = Bundle::new("mkdir /sys/fs/cgroup/below && echo made; sleep 1000");
        b.wrap = Some("mount -t cgroup2 none /sys/fs/cgroup".into());
        let map = json!([{"containerID": 0, "hostID": base, "size": 65536}]);
        b.config["linux"]["uidMappings"] = map.clone();
        b.config["linux"]["gidMappings"] = map;
        b.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        for m in b.config["mounts"].as_array_mut().unwrap() {
            if m["type"] == "cgroup" && writable {
                m["options"] = json!(["nosuid", "noexec", "nodev", "relatime"]);
            }
        }
        b.start();
        wait(|| !b.out().is_empty(), "the program's output");
        assert_eq!(b.out().contains("made"), writable, "{}", b.out());
        let dir = {
            let path = b.cgroup("unified");
            if path.exists() { path } else { b.cgroup("").components().collect() }
        };
        let owner = |file: &str| std::fs::metadata(dir.join(file)).unwrap().uid();
        let want = if writable { base } else { 0 };
        for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
            assert_eq!(owner(file), want, "{file}");
        }
        assert_eq!(owner("cgroup.freeze"), 0);
    }
}

#[test]
fn bind_sources_below_a_closed_directory_are_the_callers_to_open() {
    use std::os::unix::fs::PermissionsExt;
    let base = 100_000 + random() % 100_000;
    let word = random().to_string();
    let mut b = Bundle::new(
        "cat /in/f; echo; mount -t tmpfs none /in && echo mounted; umount /in; \
         umount /in/covered 2>&1; ls /in/covered; echo x > /in/f",
    );
    let secret = b.path("closed/dir");
    std::fs::create_dir_all(secret.join("covered")).unwrap();
    std::fs::write(secret.join("covered/below"), "").unwrap();
    std::fs::write(secret.join("f"), &word).unwrap();
    std::fs::set_permissions(b.path("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    let map = json!([{"containerID": 0, "hostID": base, "size": 65536}]);
    b.config["linux"]["uidMappings"] = map.clone();
    b.config["linux"]["gidMappings"] = map;
    b.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    for set in ["bounding", "effective", "permitted"] {
        b.config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
    }
    let options = ["rbind", "ro"];
    let m = json!({"destination": "/in", "type": "bind", "source": secret, "options": options});
    b.config["mounts"].as_array_mut().unwrap().push(m);
    std::fs::create_dir(b.path("rootfs/in")).unwrap();
    b.save();
    let seen = b.path("seen");
    // Shared, as systemd has all mounts: what the container mounts must not show there. And what the
    // host has covered must stay so.
    let line = format!(
        "mount --bind {dir} {dir}; mount --make-shared {dir}; mount -t tmpfs none {dir}/covered; \
         touch {dir}/covered/above; {rt} --root state run {id}; \
         grep -c {dir} /proc/self/mountinfo > {seen}",
        dir = secret.display(),
        rt = binary().display(),
        id = b.id,
        seen = seen.display()
    );
    let mut sh = Command::new("unshare");
    let o = sh.args(["-m", "sh", "-c", &line]).current_dir(b.dir.path()).output().unwrap();
    let got = text(&o);
    assert!(got.contains(&format!("{word}\nmounted\n")), "{got}");
    assert!(got.contains("above") && !got.contains("below"), "{got}");
    assert!(got.contains("Invalid argument") && got.contains("Read-only file system"), "{got}");
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), "2\n");
    let last = b.config["mounts"].as_array().unwrap().len() - 1;
    b.config["mounts"][last]["source"] = json!(b.path("closed/absent"));
    let got = text(&b.run());
    let want = "error during container init: error mounting";
    assert!(got.contains(want) && got.contains("no such file or directory"), "{got}");
}

#[test]
fn a_remount_changes_the_file_system_and_copies_come_up_read_only() {
    let mut b = Bundle::new(
        "grep -E ' /(small|full) ' /proc/self/mountinfo; cat /full/f; touch /full/g; touch /small/x",
    );
    let word = random();
    std::fs::create_dir(b.path("rootfs/full")).unwrap();
    std::fs::write(b.path("rootfs/full/f"), format!("{word}\n")).unwrap();
    std::fs::create_dir(b.path("rootfs/small")).unwrap();
    let mounts = b.config["mounts"].as_array_mut().unwrap();
    let tmpfs = |at: &str, options: &[&str]| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options});
    mounts.push(tmpfs("/small", &["size=64k"]));
    mounts.push(tmpfs("/small", &["remount", "size=128k", "noexec"]));
    mounts.push(tmpfs("/full", &["tmpcopyup", "ro"]));
    let got = text(&b.run());
    let line = |at: &str| {
        got.lines().find(|l| l.contains(&format!(" {at} "))).unwrap_or_default().to_owned()
    };
    assert!(line("/small").contains("size=128k") && line("/small").contains("noexec"), "{got}");
    assert!(line("/full").contains(" ro"), "{got}");
    assert!(got.contains(&word.to_string()), "{got}");
    assert_eq!(got.matches("Read-only file system").count(), 1, "{got}");
}

#[test]
fn nothing_that_the_container_mounts_shows_on_the_host() {
    for (word, wanted) in [
        ("private", None),
        ("rprivate", None),
        ("slave", None),
        ("rslave", Some("master:")),
        ("shared", Some("shared:")),
        ("rshared", Some("shared:")),
        ("unbindable", Some("unbindable")),
    ] {
        let mut b = Bundle::new("grep -E '^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ / ' /proc/self/mountinfo");
        // A host whose mounts are all shared, as systemd makes them; the rootfs is a mount of its own.
        let mounts = b.path("mounts");
        let prepare = format!(
            "mount --make-rshared /; mount --bind {root} {root}; mount --make-shared {root}; \
             trap 'cat /proc/self/mountinfo > {mounts}' EXIT",
            root = b.path("rootfs").display(),
            mounts = mounts.display()
        );
        b.config["linux"]["rootfsPropagation"] = json!(word);
        b.save();
        let line = format!("{prepare}; {} --root state run {}", binary().display(), b.id);
        let mut sh = Command::new("unshare");
        sh.args(["-m", "sh", "-c", &line]).current_dir(b.dir.path());
        let o = sh.output().unwrap();
        let got = text(&o);
        assert!(o.status.success(), "{word}: {got}");
        let marks = ["shared:", "master:", "unbindable"];
        let has = marks.iter().filter(|m| got.contains(**m)).copied().collect::<Vec<_>>();
        let want: Vec<&str> = wanted.iter().copied().collect();
        assert_eq!(has, want, "{word}: {got}");
        let after = std::fs::read_to_string(&mounts).unwrap();
        let inside = format!("{}/", b.path("rootfs").display());
        assert!(!after.contains(&inside), "{word}: {after}");
    }
}

#[test]
fn the_loopback_of_a_new_network_namespace_is_up() {
    let b = Bundle::new("ip -o addr show lo");
    symlink("busybox", b.path("rootfs/bin/ip")).unwrap();
    assert!(text(&b.run()).contains("127.0.0.1/8"), "{}", text(&b.run()));
}

#[test]
fn what_cannot_be_granted_or_known_is_passed_over_where_runc_does() {
    let mut b = Bundle::new("grep Cap /proc/self/status");
    let sets = b.config["process"]["capabilities"].as_object_mut().unwrap();
    sets.insert("ambient".into(), sets["permitted"].clone());
    sets.remove("inheritable");
    b.config["linux"]["seccomp"] = json!({});
    let m = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
        "options": ["", "iversion", "size=1m"]});
    b.config["mounts"].as_array_mut().unwrap().push(m);
    let got = text(&b.run());
    assert!(got.starts_with("exit status: 0"), "{got}");
    assert!(got.contains("CapAmb:\t0000000000000000"), "{got}");
    assert!(got.contains("can't raise ambient capability CAP_KILL"), "{got}");
}

#[test]
fn what_is_no_specification_is_told_by_its_name() {
    let refused = |change: &dyn Fn(&mut serde_json::Value), want: &str| {
        let mut b = Bundle::new("true");
        change(&mut b.config);
        let got = text(&b.run());
        assert!(got.starts_with("exit status: 1") && got.contains(want), "{want}: {got}");
    };
    let limit = |area: &'static str, value: serde_json::Value| {
        move |c: &mut serde_json::Value| c["linux"]["resources"][area] = value.clone()
    };
    refused(&limit("memory", json!({"limit": 4096})), "OOM-killed (memory limit too low?)");
    refused(&limit("cpu", json!({"shares": 1})), "the minimum allowed cpu-shares is 2");
    let most = "the maximum allowed cpu-shares is 262144";
    refused(&limit("cpu", json!({"shares": 1_000_000_000_000_u64})), most);
    let seccomp = |value: serde_json::Value| {
        move |c: &mut serde_json::Value| c["linux"]["seccomp"] = value.clone()
    };
    let section = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_FOO"]});
    refused(&seccomp(section), "string SCMP_ARCH_FOO is not a valid arch for seccomp");
    let section = json!({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]});
    refused(&seccomp(section), "linux.seccomp.defaultAction");
    let effective = |c: &mut serde_json::Value| {
        c["process"]["capabilities"]["effective"] = json!(["CAP_KILL", "CAP_CHOWN"]);
        c["process"]["capabilities"]["permitted"] = json!(["CAP_KILL"]);
    };
    refused(&effective, "process.capabilities.effective: not permitted: CAP_CHOWN");
    let own = |c: &mut serde_json::Value| {
        let list = c["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|ns| ns["type"] != "mount");
        list.push(json!({"type": "mount", "path": "/proc/self/ns/mnt"}));
    };
    refused(&own, "is the runtime's own mount namespace");
    let none = |c: &mut serde_json::Value| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "mount");
    };
    refused(&none, "linux.namespaces: has no mount namespace: the container's mounts would be the");
}

/// Where v1 has the controllers, `cgroup2` still is v2.
#[test]
fn a_mount_of_version_2_is_one() {
    for own in [true, false] {
        let mut b = Bundle::new("cat /c/cgroup.procs; ls /c; mkdir /c/x && echo made");
        let list = b.config["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|ns| ns["type"] != "cgroup");
        if own {
            list.push(json!({"type": "cgroup"}));
        }
        // Writable or not: it has no cgroup of its own there.
        let m = json!({"destination": "/c", "type": "cgroup2", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "rw"]});
        b.config["mounts"].as_array_mut().unwrap().push(m);
        let got = text(&b.run());
        assert!(got.contains("cgroup.subtree_control") && !got.contains("memory\n"), "{got}");
        assert!(got.contains("Read-only file system") && !got.contains("made"), "{got}");
    }
}

/// Of the processes that make the container's none counts; and earlier versions mean no limit by 0.
#[test]
fn a_limit_of_no_more_processes_is_one_since_version_1_3() {
    let first = Bundle::new("sleep 1000");
    first.start();
    let pid = first.state()["pid"].clone();
    for joined in [None, Some("network"), Some("pid")] {
        for version in ["1.0.2", "1.3.0"] {
            let script = "sh -c 'exit 0'; echo forked $?";
            let mut b = Bundle::new(script);
            b.config["ociVersion"] = json!(version);
            b.config["linux"]["resources"]["pids"] = json!({"limit": 0});
            for ns in b.config["linux"]["namespaces"].as_array_mut().unwrap() {
                let file = if joined == Some("network") { "net" } else { "pid" };
                if joined.is_some_and(|kind| ns["type"] == kind) {
                    ns["path"] = json!(format!("/proc/{pid}/ns/{file}"));
                }
            }
            let got = text(&b.run());
            let forked = got.contains("forked 0");
            assert_eq!(forked, version == "1.0.2", "{joined:?} {version}: {got}");
            assert!(forked || got.contains("an't fork"), "{joined:?} {version}: {got}");
        }
    }
}

/// A flag is not passed over in silence; engines' files are, whose 0 means nothing.
#[test]
fn an_update_that_says_nothing_before_version_1_3_is_told() {
    let mut b = Bundle::new("sleep 1000");
    b.config["ociVersion"] = json!("1.2.1");
    b.config["linux"]["resources"]["pids"] = json!({"limit": 33});
    b.start();
    std::fs::write(b.path("zero.json"), r#"{"pids":{"limit":0}}"#).unwrap();
    let flag = ["--pids-limit", "0", "--cpu-share", "300"];
    for (args, told) in [(&flag[..], true), (&["-r", "zero.json"], false)] {
        let o = b.rt(&[&["update"], args, &[&b.id]].concat());
        let said = text(&o);
        let warning = said.contains("level=warning msg=\"--pids-limit 0 changes nothing");
        assert!(o.status.success() && warning == told, "{said}");
        let read = |c, file| std::fs::read_to_string(b.cgroup(c).join(file)).unwrap();
        assert_eq!(read("pids", "pids.max"), "33\n");
        assert_eq!(read("cpu", "cpu.shares"), "300\n");
    }
}
