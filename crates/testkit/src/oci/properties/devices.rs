//! `linux.devices`, the default ones, and who may use them.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, same, skip, want};
use crate::random;
use serde_json::json;

pub(super) const ALL: &[Property] = &[
    p("devices/default-nodes", default_nodes),
    p("devices/default-links", default_links),
    p("devices/node-as-given", node),
    p("devices/block-node", block),
    p("devices/fifo", fifo),
    p("devices/outside-dev", outside_dev),
    p("devices/default-mode", default_mode),
    p("devices/over-a-bind-of-dev", bound_dev),
    p("devices/no-console-without-a-terminal", no_console),
    p("devices/cgroup-denies", denied),
    p("devices/cgroup-allows", allowed),
    p("devices/cgroup-read-only", read_only),
    p("devices/cgroup-rules-in-order", in_order),
    p("devices/cgroup-all", all),
    p("devices/cgroup-list", list),
];

fn default_nodes(g: &Ground) -> Checked {
    let mut b = Bundle::new(
        g,
        "for d in null zero full random urandom tty; do stat -c '%n %F %a %t:%T %u:%g' /dev/$d; done",
    )?;
    let wanted: String = [
        ("null", "1:3"),
        ("zero", "1:5"),
        ("full", "1:7"),
        ("random", "1:8"),
        ("urandom", "1:9"),
        ("tty", "5:0"),
    ]
    .iter()
    .map(|(name, number)| format!("/dev/{name} character special file 666 {number} 0:0\n"))
    .collect();
    same("nodes", b.output()?, wanted.trim_end())
}

fn default_links(g: &Ground) -> Checked {
    let mut b = Bundle::new(
        g,
        "cd /dev; readlink fd; readlink stdin; readlink stdout; readlink stderr; readlink ptmx",
    )?;
    let wanted = "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx";
    same("links", b.output()?, wanted)
}

fn node(g: &Ground) -> Checked {
    let (minor, uid, gid) =
        (random::number(0..255), random::number(1..999), random::number(1..999));
    let mode = random::number(0..0o1000);
    let path = format!("/dev/{}", random::token(7));
    let mut b = Bundle::new(g, &format!("stat -c '%F %a %t:%T %u:%g' {path}"))?;
    b.config["linux"]["devices"] = json!([{"path": path, "type": "c", "major": 240, "minor": minor,
        "fileMode": mode, "uid": uid, "gid": gid}]);
    let wanted = format!("character special file {mode:o} f0:{minor:x} {uid}:{gid}");
    same("node", b.output()?, wanted)
}

fn block(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "stat -c '%F %a %t:%T' /dev/disk")?;
    b.config["linux"]["devices"] =
        json!([{"path": "/dev/disk", "type": "b", "major": 240, "minor": 17, "fileMode": 0o600}]);
    same("node", b.output()?, "block special file 600 f0:11")
}

fn fifo(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "stat -c '%F %a' /dev/pipe")?;
    b.config["linux"]["devices"] = json!([{"path": "/dev/pipe", "type": "p", "fileMode": 0o640}]);
    same("node", b.output()?, "fifo 640")
}

fn outside_dev(g: &Ground) -> Checked {
    let path = format!("/{}/null", random::token(7));
    let mut b = Bundle::new(g, &format!("stat -c '%F %t:%T' {path}; echo x > {path}"))?;
    b.config["linux"]["devices"] = json!([{"path": path, "type": "c", "major": 1, "minor": 3,
        "fileMode": 0o666}]);
    same("node", b.output()?, "character special file 1:3")
}

fn default_mode(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "stat -c '%a %u:%g' /dev/x")?;
    b.config["linux"]["devices"] = json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}]);
    let got = b.output()?;
    has("owner", &got, "0:0")
}

/// A /dev of the host stays as it is.
fn bound_dev(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "ls -A /dev")?;
    crate::oci::write(b.path("dev/mine"), "")?;
    let null = b.path("dev/null").display().to_string();
    crate::command::Cmd::host("mknod", ["-m", "666", &null, "c", "1", "3"]).ok()?;
    b.unmount("/dev");
    b.mount(json!({"destination": "/dev", "type": "bind", "source": "dev", "options": ["rbind"]}));
    same("content", b.output()?, "mine\nnull")?;
    let left = std::fs::read_dir(b.path("dev")).map(Iterator::count).unwrap_or(0);
    same("files in the host's", left, 2)
}

fn no_console(g: &Ground) -> Checked {
    same("console", Bundle::new(g, "ls /dev/console 2>/dev/null; echo on")?.output()?, "on")
}

fn needs_cgroups(g: &Ground) -> Checked {
    if g.runtime.cgroups { Ok(()) } else { skip("without cgroups") }
}

fn denied(g: &Ground) -> Checked {
    needs_cgroups(g)?;
    // kmsg: a device that every kernel has, and no default rule allows.
    let mut b = Bundle::new(g, "head -c 1 /dev/kmsg")?;
    b.config["linux"]["devices"] =
        json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}]);
    let got = b.run()?.stderr;
    has("reading", &got, "/dev/kmsg: Operation not permitted")
}

fn rule(access: &str, major: u32, minor: Option<u32>) -> serde_json::Value {
    json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": access})
}

/// FUSE: not one of the nodes that runtimes allow by themselves, and anybody may open it.
fn own_device() -> serde_json::Value {
    json!([{"path": "/dev/own", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}])
}

fn rules(b: &mut Bundle<'_>, rules: &[serde_json::Value]) {
    let list = b.config["linux"]["resources"]["devices"].as_array_mut();
    list.expect("a list").extend(rules.iter().cloned());
}

fn allowed(g: &Ground) -> Checked {
    needs_cgroups(g)?;
    let mut b = Bundle::new(g, "head -c 5 /dev/full | wc -c")?;
    rules(&mut b, &[rule("rwm", 1, Some(7))]);
    same("bytes", b.output()?, "5")
}

fn read_only(g: &Ground) -> Checked {
    needs_cgroups(g)?;
    // Not one of the nodes that runtimes allow by themselves.
    let mut b = Bundle::new(g, "echo x > /dev/own; head -c 0 /dev/own && echo read")?;
    b.config["linux"]["devices"] = own_device();
    rules(&mut b, &[rule("r", 10, Some(229))]);
    let ran = b.run()?;
    has("writing", &ran.stderr, "Operation not permitted")?;
    same("reading", ran.line(), "read")
}

fn in_order(g: &Ground) -> Checked {
    needs_cgroups(g)?;
    let mut b = Bundle::new(g, "head -c 0 /dev/own && echo read")?;
    b.config["linux"]["devices"] = own_device();
    let mut deny = rule("r", 10, Some(229));
    deny["allow"] = json!(false);
    rules(&mut b, &[rule("rw", 10, Some(229)), deny]);
    has("reading", &b.run()?.stderr, "Operation not permitted")
}

fn all(g: &Ground) -> Checked {
    needs_cgroups(g)?;
    let mut b = Bundle::new(g, "head -c 0 /dev/own && echo read")?;
    b.config["linux"]["devices"] = own_device();
    b.config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    same("reading", b.output()?, "read")
}

fn list(g: &Ground) -> Checked {
    needs_cgroups(g)?;
    let (major, minor) = (random::number(100..240), random::number(0..250));
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    rules(&mut b, &[rule("rw", major, Some(minor)), rule("r", 77, None)]);
    b.start()?;
    let got = b.limit("devices", "devices.list")?;
    for line in [format!("c {major}:{minor} rw"), "c 77:* r".to_owned(), "c 1:3 rwm".to_owned()] {
        want(got.lines().any(|seen| seen == line), "rule", (&line, &got))?;
    }
    want(!got.contains("a *:*"), "everything is allowed", got)?;
    b.end()
}
