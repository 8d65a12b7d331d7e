//! User namespaces and their maps.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, read, same, want};
use crate::random;
use serde_json::json;
use std::os::unix::fs::{MetadataExt, chown};

pub(super) const ALL: &[Property] = &[
    p("user-namespace/maps-as-given", maps),
    p("user-namespace/several-ranges", ranges),
    p("user-namespace/owner-on-the-host", owner),
    p("user-namespace/root-in-it", root),
    p("user-namespace/devices-work", devices),
    p("user-namespace/mounts-are-locked", locked),
    p("user-namespace/exec-joins-it", exec),
    p("user-namespace/joined-by-path", joined),
    p("user-namespace/set-groups", groups),
    p("user-namespace/read-only-root", read_only),
    p("user-namespace/console", console),
    p("user-namespace/idmapped-mount", idmapped),
    p("user-namespace/idmapped-mount-of-its-own-map", own_map),
];

fn base() -> u32 {
    random::number(2..60) * 65_536
}

fn maps(g: &Ground) -> Checked {
    let base = base();
    let mut b = Bundle::new(g, "cat /proc/self/uid_map /proc/self/gid_map")?;
    b.user_namespace(base)?;
    let got = b.output()?;
    let words: Vec<&str> = got.split_whitespace().collect();
    let base = base.to_string();
    same("maps", words, ["0", &base, "65536", "0", &base, "65536"])
}

fn ranges(g: &Ground) -> Checked {
    let base = base();
    let mut b = Bundle::new(g, "cat /proc/self/uid_map")?;
    b.user_namespace(base)?;
    b.config["linux"]["uidMappings"] = json!([
        {"containerID": 0, "hostID": base, "size": 10},
        {"containerID": 100, "hostID": base + 500, "size": 7},
    ]);
    let got: Vec<Vec<String>> = b
        .output()?
        .lines()
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect();
    let wanted = [[0, base, 10], [100, base + 500, 7]].map(|l| l.map(|n| n.to_string()).to_vec());
    same("map", got, wanted)
}

fn owner(g: &Ground) -> Checked {
    let base = base();
    let uid = random::number(1..60_000);
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.user_namespace(base)?;
    b.config["process"]["user"] = json!({"uid": uid, "gid": uid});
    b.start()?;
    let status = read(format!("/proc/{}/status", b.pid()?))?;
    has("ids on the host", &status, &format!("Uid:\t{0}\t{0}\t{0}\t{0}", base + uid))?;
    b.end()
}

fn root(g: &Ground) -> Checked {
    let mut b = Bundle::new(
        g,
        "id -u; id -g; stat -c %u /proc/1 /dev /dev/shm; grep CapEff /proc/self/status",
    )?;
    b.user_namespace(base())?;
    let got = b.output()?;
    let lines: Vec<&str> = got.lines().collect();
    same("ids and owners", &lines[..5.min(lines.len())], ["0", "0", "0", "0", "0"])?;
    want(!got.ends_with("0000000000000000"), "capabilities", got)
}

fn devices(g: &Ground) -> Checked {
    let mut b = Bundle::new(
        g,
        "echo x > /dev/null && head -c 3 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c; ls -l /dev/full",
    )?;
    b.user_namespace(base())?;
    let got = b.output()?;
    want(got.starts_with("3\n4\nc"), "devices", got)
}

fn locked(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "umount /proc/kcore 2>&1; head -c 1 /proc/kcore | wc -c")?;
    b.user_namespace(base())?;
    b.capabilities(&["CAP_SYS_ADMIN"]);
    b.config["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
    let got = b.output()?;
    // In its own mount namespace of the same owner a container may undo; the file stays unreadable.
    want(
        got.ends_with('0') || got.contains("denied") || got.contains("not permitted"),
        "kcore",
        got,
    )
}

fn exec(g: &Ground) -> Checked {
    let base = base();
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.user_namespace(base)?;
    b.start()?;
    let got = b.exec("readlink /proc/self/ns/user; readlink /proc/1/ns/user; id -u")?;
    let lines: Vec<&str> = got.lines().collect();
    same("namespaces", lines.first(), lines.get(1))?;
    same("id", lines.get(2), Some(&"0"))?;
    b.end()
}

fn joined(g: &Ground) -> Checked {
    let base = base();
    let mut first = Bundle::new(g, "exec sleep 1000")?;
    first.user_namespace(base)?;
    first.start()?;
    let pid = first.pid()?;
    let mut b = Bundle::new(g, "readlink /proc/self/ns/user; id -u")?;
    b.user_namespace(base)?;
    b.namespace(json!({"type": "user", "path": format!("/proc/{pid}/ns/user")}));
    let linux = b.config["linux"].as_object_mut().expect("an object");
    linux.remove("uidMappings");
    linux.remove("gidMappings");
    for kind in ["network", "ipc", "uts"] {
        let name = if kind == "network" { "net" } else { kind };
        b.namespace(json!({"type": kind, "path": format!("/proc/{pid}/ns/{name}")}));
    }
    b.config.as_object_mut().expect("an object").remove("hostname");
    let wanted = std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap_or_default();
    same("namespace and id", b.output()?, format!("{}\n0", wanted.display()))?;
    first.end()
}

fn groups(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "cat /proc/self/setgroups; grep Groups /proc/self/status")?;
    b.user_namespace(base())?;
    b.config["process"]["user"]["additionalGids"] = json!([17]);
    let got = b.output()?;
    has("setgroups", &got, "allow")?;
    has("groups", &got, "17")
}

fn read_only(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /x 2>&1; mount -o remount,rw,bind / 2>&1; touch /y 2>&1")?;
    b.user_namespace(base())?;
    b.config["root"]["readonly"] = json!(true);
    let ran = b.run()?;
    has("writes", &ran.stdout, "/x: Read-only file system")?;
    has("writes", &ran.stdout, "/y: Read-only file system")
}

fn console(g: &Ground) -> Checked {
    let base = base();
    let mut b = Bundle::new(g, "stat -c %u /dev/console $(tty)")?;
    b.user_namespace(base)?;
    let got = super::terminal::session(&mut b, "")?;
    has("owners", &got, "0\r\n0")
}

/// A directory of the host that belongs to another user, mounted so that it is the container's.
fn idmapped(g: &Ground) -> Checked {
    let base = base();
    let mut b = Bundle::new(g, "stat -c %u:%g /data/file; touch /data/new; stat -c %u /data/new")?;
    b.user_namespace(base)?;
    let uid = random::number(1..6000);
    b.directory("/data")?;
    crate::oci::write(b.path("data/file"), "x")?;
    for path in ["data", "data/file"] {
        chown(b.path(path), Some(uid), Some(uid + 1))
            .map_err(|error| crate::oci::Failure::Violated(format!("chown: {error}")))?;
    }
    let map = json!([{"containerID": 0, "hostID": base, "size": 65536}]);
    b.mount(json!({"destination": "/data", "type": "bind", "source": b.path("data"),
        "options": ["rbind"], "uidMappings": map, "gidMappings": map}));
    let got = b.output()?;
    let first = got.lines().next().unwrap_or_default();
    same("owner inside", first, format!("{uid}:{}", uid + 1).as_str())?;
    let owner = std::fs::metadata(b.path("data/new")).map(|meta| meta.uid()).unwrap_or(u32::MAX);
    same("owner of a new file on the host", owner, 0)
}

/// With the option and a map of the mount's own, without a user namespace.
fn own_map(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "stat -c %u:%g /data/file")?;
    let (uid, shown) = (random::number(1..6000), random::number(6000..12_000));
    crate::oci::write(b.path("data/file"), "x")?;
    chown(b.path("data/file"), Some(uid), Some(uid))
        .map_err(|error| crate::oci::Failure::Violated(format!("chown: {error}")))?;
    let map = json!([{"containerID": uid, "hostID": shown, "size": 1}]);
    b.mount(json!({"destination": "/data", "type": "bind", "source": b.path("data"),
        "options": ["rbind", "idmap"], "uidMappings": map, "gidMappings": map}));
    same("owner inside", b.output()?, format!("{shown}:{shown}"))
}
