//! `mounts`: kinds, order, targets, propagation, and the root itself.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, lacks, same, want};
use crate::random;
use serde_json::json;

pub(super) const ALL: &[Property] = &[
    p("mounts/bind-a-directory", bind_directory),
    p("mounts/bind-a-file", bind_file),
    p("mounts/bind-writes-through", bind_writes),
    p("mounts/bind-source-relative-to-the-bundle", bind_relative),
    p("mounts/bind-without-what-is-below", bind_flat),
    p("mounts/rbind-with-what-is-below", bind_deep),
    p("mounts/tmpfs-options", tmpfs),
    p("mounts/tmpfs-over-a-mount", in_order),
    p("mounts/later-covers-earlier", covers),
    p("mounts/target-is-made", target_made),
    p("mounts/target-of-a-file-is-made", target_file_made),
    p("mounts/target-through-a-link-stays-inside", link_inside),
    p("mounts/target-with-dots", dots),
    p("mounts/target-relative", relative_target),
    p("mounts/proc-and-sysfs", proc_sysfs),
    p("mounts/proc-of-the-container", proc_own),
    p("mounts/devpts-of-its-own", devpts),
    p("mounts/cgroup", cgroup),
    p("mounts/tmpcopyup", copy_up),
    p("mounts/propagation-private", |g| propagation(g, "private", "")),
    p("mounts/propagation-shared", |g| propagation(g, "shared", "shared:")),
    p("mounts/propagation-slave", |g| propagation(g, "slave", "master:")),
    p("mounts/propagation-unbindable", |g| propagation(g, "unbindable", "unbindable")),
    p("mounts/propagation-rprivate-below", recursive_private),
    p("mounts/propagation-default", default_propagation),
    p("mounts/slave-sees-later-mounts", slave_sees),
    p("mounts/rootfs-propagation-private", |g| root_propagation(g, "private", "")),
    p("mounts/rootfs-propagation-slave", root_slave),
    p("mounts/rootfs-propagation-shared", |g| root_propagation(g, "shared", "shared:")),
    p("mounts/rootfs-propagation-unbindable", root_unbindable),
    p("mounts/nothing-of-the-host-is-seen", old_root_gone),
    p("mounts/root-read-only", root_read_only),
    p("mounts/root-read-only-leaves-mounts-writable", root_read_only_mounts),
    p("mounts/root-writable", root_writable),
    p("mounts/host-sees-nothing", host_sees_nothing),
    p("mounts/overlay", overlay),
];

fn bind(at: &str, source: &str, options: &[&str]) -> serde_json::Value {
    json!({"destination": at, "type": "bind", "source": source, "options": options})
}

/// The line of mountinfo for this target.
pub(super) fn line<'a>(mountinfo: &'a str, at: &str) -> &'a str {
    let here = |line: &&str| line.split(' ').nth(4) == Some(at);
    mountinfo.lines().rfind(here).unwrap_or_default()
}

fn bind_directory(g: &Ground) -> Checked {
    let (name, word) = (random::token(7), random::token(9));
    let mut b = Bundle::new(g, &format!("cat /in/{name}"))?;
    crate::oci::write(b.path("source").join(&name), &word)?;
    let source = b.path("source").display().to_string();
    b.mount(bind("/in", &source, &["bind"]));
    same("file in it", b.output()?, word)
}

fn bind_file(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b =
        Bundle::new(g, "cat /etc/the.file; grep -c ' /etc/the.file ' /proc/self/mountinfo")?;
    crate::oci::write(b.path("source"), format!("{word}\n"))?;
    let source = b.path("source").display().to_string();
    b.mount(bind("/etc/the.file", &source, &["rbind"]));
    same("file", b.output()?, format!("{word}\n1"))
}

fn bind_writes(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(g, &format!("echo {word} > /in/new"))?;
    crate::oci::write(b.path("source/old"), "")?;
    let source = b.path("source").display().to_string();
    b.mount(bind("/in", &source, &["rbind", "rw"]));
    b.output()?;
    same("file on the host", crate::oci::read(b.path("source/new"))?, word)
}

fn bind_relative(g: &Ground) -> Checked {
    let (name, word) = (random::token(7), random::token(9));
    let mut b = Bundle::new(g, "cat /in")?;
    crate::oci::write(b.path(&name), &word)?;
    b.mount(bind("/in", &name, &["bind"]));
    same("file", b.output()?, word)
}

/// A directory with a mount in it: `source/sub`, which has the file `below`.
fn with_mount_below(b: &Bundle<'_>) -> Checked<MountedBelow> {
    let sub = b.path("source/sub").display().to_string();
    std::fs::create_dir_all(&sub)
        .map_err(|e| crate::oci::Failure::Violated(format!("create {sub}: {e}")))?;
    crate::command::Cmd::host("mount", ["-t", "tmpfs", "below", &sub]).ok()?;
    crate::oci::write(format!("{sub}/below"), "")?;
    Ok(MountedBelow(sub))
}

pub(super) struct MountedBelow(String);

impl Drop for MountedBelow {
    fn drop(&mut self) {
        drop(crate::command::Cmd::host("umount", ["-l", &self.0]).ok());
    }
}

pub(super) fn source_with_mount(b: &Bundle<'_>) -> Checked<(String, MountedBelow)> {
    let below = with_mount_below(b)?;
    Ok((b.path("source").display().to_string(), below))
}

fn bind_flat(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "ls /in/sub")?;
    let (source, _below) = source_with_mount(&b)?;
    b.mount(bind("/in", &source, &["bind"]));
    same("files below", b.output()?, "")
}

fn bind_deep(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "ls /in/sub")?;
    let (source, _below) = source_with_mount(&b)?;
    b.mount(bind("/in", &source, &["rbind"]));
    same("files below", b.output()?, "below")
}

fn tmpfs(g: &Ground) -> Checked {
    let size = random::number(2..60) * 64;
    let mut b = Bundle::new(
        g,
        "stat -c %a:%u:%g /t; grep ' /t ' /proc/self/mountinfo; dd if=/dev/zero of=/t/x bs=64k count=100 2>&1",
    )?;
    let size_option = format!("size={size}k");
    b.mount(json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "noexec", size_option, "mode=1750", "uid=12", "gid=34"]}));
    let ran = b.run()?;
    has("mode and owner", &ran.stdout, "1750:12:34")?;
    has("flags", line(&ran.stdout, "/t"), "nosuid,noexec")?;
    has("size", line(&ran.stdout, "/t"), &size_option)?;
    has("room", &ran.stdout, "No space left on device")
}

fn in_order(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /a/b/c; ls /a/b; grep -c ' /a' /proc/self/mountinfo")?;
    for at in ["/a", "/a/b"] {
        b.mount(json!({"destination": at, "type": "tmpfs", "source": "tmpfs"}));
    }
    same("file and mounts", b.output()?, "c\n2")
}

fn covers(g: &Ground) -> Checked {
    let word = random::token(8);
    let mut b = Bundle::new(g, "cat /in/file")?;
    crate::oci::write(b.path("one/file"), "one")?;
    crate::oci::write(b.path("two/file"), &word)?;
    b.mount(bind("/in", "one", &["rbind"]));
    b.mount(bind("/in", "two", &["rbind"]));
    same("file", b.output()?, word)
}

fn target_made(g: &Ground) -> Checked {
    let at = format!("/{}/deep/er", random::token(7));
    let mut b = Bundle::new(g, &format!("stat -c '%F %a %u' {at}"))?;
    crate::oci::write(b.path("source/x"), "")?;
    b.mount(bind(&at, "source", &["rbind"]));
    same("target", b.output()?, "directory 755 0")?;
    want(b.root(&at).is_dir(), "made in the root file system", at)
}

fn target_file_made(g: &Ground) -> Checked {
    let at = format!("/{}/deep/file", random::token(7));
    let mut b = Bundle::new(g, &format!("cat {at}"))?;
    crate::oci::write(b.path("source"), "content")?;
    b.mount(bind(&at, "source", &["bind"]));
    same("target", b.output()?, "content")?;
    same("file that was made", std::fs::read(b.root(&at)).unwrap_or(vec![1]).len(), 0)
}

fn link_inside(g: &Ground) -> Checked {
    for target in ["/elsewhere", "../../elsewhere", "elsewhere/../elsewhere"] {
        let mut b = Bundle::new(g, "cat /elsewhere/file")?;
        b.directory("/elsewhere")?;
        crate::oci::write(b.path("source/file"), "content")?;
        std::os::unix::fs::symlink(target, b.root("link"))
            .map_err(|e| crate::oci::Failure::Violated(format!("symlink: {e}")))?;
        b.mount(bind("/link", "source", &["rbind"]));
        same("file", b.output()?, "content")?;
    }
    Ok(())
}

fn dots(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "cat /tmp/x/file")?;
    crate::oci::write(b.path("source/file"), "content")?;
    b.mount(bind("/tmp/../../../tmp/./x", "source", &["rbind"]));
    same("file", b.output()?, "content")
}

/// Deprecated, and taken as from the root.
fn relative_target(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "cat /tmp/x/file")?;
    crate::oci::write(b.path("source/file"), "content")?;
    b.mount(bind("tmp/x", "source", &["rbind"]));
    same("file", b.output()?, "content")
}

fn proc_sysfs(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/mountinfo"]);
    let got = b.output()?;
    for (at, kind, flags) in [
        ("/proc", " proc ", "nosuid,nodev,noexec"),
        ("/sys", " sysfs ", "ro,nosuid,nodev,noexec"),
        ("/dev/shm", " tmpfs ", "nosuid,nodev,noexec"),
        ("/dev/mqueue", " mqueue ", "nosuid,nodev,noexec"),
    ] {
        has(at, line(&got, at), kind)?;
        has(at, line(&got, at), flags)?;
    }
    Ok(())
}

fn proc_own(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "ls /proc | grep -c '^[0-9]'; ls /sys/class/net")?;
    same("processes and links", b.output()?.lines().next_back(), Some("lo"))
}

fn devpts(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "ls /dev/pts; stat -c %a /dev/pts/ptmx; readlink /dev/ptmx")?;
    same("content", b.output()?, "ptmx\n666\npts/ptmx")
}

fn cgroup(g: &Ground) -> Checked {
    if !g.runtime.cgroups {
        return crate::oci::skip("without cgroups");
    }
    let mut b = Bundle::new(
        g,
        "ls /sys/fs/cgroup; mkdir /sys/fs/cgroup/x /sys/fs/cgroup/pids/x 2>&1; cat /proc/self/cgroup",
    )?;
    b.namespace(json!({"type": "cgroup"}));
    b.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}));
    let ran = b.run()?;
    if std::path::Path::new("/sys/fs/cgroup/memory").is_dir() {
        for name in ["memory", "pids", "cpu", "devices", "freezer"] {
            want(ran.stdout.lines().any(|line| line == name), name, &ran.stdout)?;
        }
    } else {
        has("files of v2", &ran.stdout, "cgroup.procs")?;
    }
    has("mkdir", &ran.stdout, "Read-only file system")
}

fn copy_up(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(
        g,
        "cat /full/sub/f; stat -c %a:%u /full/sub/f; readlink /full/l; touch /full/new; stat -c %a /full",
    )?;
    b.file("full/sub/f", format!("{word}\n"), 0o640)?;
    let owned = std::os::unix::fs::chown(b.root("full/sub/f"), Some(77), Some(77));
    want(owned.is_ok(), "chown", owned)?;
    drop(std::os::unix::fs::symlink("sub/f", b.root("full/l")));
    b.mount(json!({"destination": "/full", "type": "tmpfs", "source": "tmpfs",
        "options": ["tmpcopyup", "mode=755"]}));
    same("content", b.output()?, format!("{word}\n640:77\nsub/f\n755"))?;
    want(!b.root("full/new").exists(), "writes go to the tmpfs", "")
}

fn optional_fields(line: &str) -> String {
    let fields: Vec<&str> = line.split(' ').skip(6).take_while(|field| *field != "-").collect();
    fields.join(" ")
}

fn propagation(g: &Ground, kind: &str, wanted: &str) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/mountinfo"]);
    crate::oci::write(b.path("source/x"), "")?;
    // Shared on the host, so that there is a group to be a slave of.
    let source = b.path("source").display().to_string();
    let mount = |words: &[&str]| {
        crate::command::Cmd::host("mount", words.iter().map(|w| (*w).to_owned())).ok()
    };
    mount(&["--bind", &source, &source])?;
    let mut look = || -> Checked<String> {
        mount(&["--make-shared", &source])?;
        if kind == "shared" || kind == "slave" {
            b.config["linux"]["rootfsPropagation"] = json!(kind);
        }
        b.mount(bind("/in", &source, &["rbind", kind]));
        b.output()
    };
    let got = look();
    crate::command::Cmd::host("umount", ["-l", &source]).ok()?;
    let got = got?;
    let fields = optional_fields(line(&got, "/in"));
    match wanted {
        "" => same("fields of a private mount", fields, ""),
        _ => has("fields", &fields, wanted),
    }
}

fn recursive_private(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/mountinfo"]);
    let (source, _below) = source_with_mount(&b)?;
    b.mount(bind("/in", &source, &["rbind", "rprivate"]));
    let got = b.output()?;
    for at in ["/in", "/in/sub"] {
        want(!line(&got, at).is_empty(), "mount", at)?;
        same("fields", optional_fields(line(&got, at)), "")?;
    }
    Ok(())
}

/// Without a word about it nothing goes back to the host.
fn default_propagation(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/mountinfo"]);
    lacks("mounts", &b.output()?, " shared:")
}

fn slave_sees(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let source = b.path("source").display().to_string();
    crate::oci::write(b.path("source/sub/x"), "")?;
    let mount = |words: &[&str]| {
        crate::command::Cmd::host("mount", words.iter().map(|w| (*w).to_owned())).ok()
    };
    mount(&["--bind", &source, &source])?;
    let mut look = || -> Checked<String> {
        mount(&["--make-shared", &source])?;
        b.config["linux"]["rootfsPropagation"] = json!("rslave");
        b.mount(bind("/in", &source, &["rbind", "rslave"]));
        b.start()?;
        mount(&["-t", "tmpfs", "later", &format!("{source}/sub")])?;
        let got = b.exec("grep -c ' /in/sub ' /proc/self/mountinfo");
        crate::command::Cmd::host("umount", ["-l", &format!("{source}/sub")]).ok()?;
        got
    };
    let got = look();
    crate::command::Cmd::host("umount", ["-l", &source]).ok()?;
    same("later mounts", got?, "1")
}

fn root_propagation(g: &Ground, kind: &str, wanted: &str) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/mountinfo"]);
    b.config["linux"]["rootfsPropagation"] = json!(kind);
    let got = b.output()?;
    let fields = optional_fields(line(&got, "/"));
    match wanted {
        "" => same("fields of a private root", fields, ""),
        _ => has("fields of the root", &fields, wanted),
    }
}

/// Whether there is a master depends on the host; a group of its own there is not.
fn root_slave(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/mountinfo"]);
    b.config["linux"]["rootfsPropagation"] = json!("slave");
    let got = b.output()?;
    lacks("fields of the root", &optional_fields(line(&got, "/")), "shared:")
}

fn root_unbindable(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "mount --bind / /tmp 2>&1; mount --bind /proc /tmp && echo proc")?;
    b.capabilities(&["CAP_SYS_ADMIN"]);
    b.config["linux"]["rootfsPropagation"] = json!("unbindable");
    let got = b.output()?;
    has("bind of the root", &got, "Invalid argument")?;
    has("bind of another", &got, "proc")
}

fn old_root_gone(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/mountinfo"]);
    let got = b.output()?;
    same("mount points", got.lines().count(), 7)?;
    for line in got.lines() {
        let at = line.split(' ').nth(4).unwrap_or_default();
        let known = ["/", "/proc", "/dev", "/dev/pts", "/sys", "/dev/mqueue", "/dev/shm"];
        want(known.contains(&at), "a mount point", line)?;
    }
    Ok(())
}

fn root_read_only(g: &Ground) -> Checked {
    let mut b =
        Bundle::new(g, "touch /x 2>&1; echo y > /etc/passwd; head -n 1 /proc/self/mountinfo")?;
    b.config["root"]["readonly"] = json!(true);
    let ran = b.run()?;
    has("touch", &ran.stdout, "Read-only file system")?;
    has("the shell", &ran.stderr, "Read-only file system")?;
    has("mount", &ran.stdout, " / ro")
}

fn root_read_only_mounts(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /dev/shm/x /in/x && echo done")?;
    b.config["root"]["readonly"] = json!(true);
    b.directory("in")?;
    crate::oci::write(b.path("source/y"), "")?;
    b.mount(bind("/in", "source", &["rbind"]));
    same("writes", b.output()?, "done")
}

fn root_writable(g: &Ground) -> Checked {
    let name = random::token(8);
    let mut b = Bundle::new(g, &format!("touch /{name}"))?;
    b.output()?;
    want(b.root(&name).exists(), "the file on the host", name)
}

fn host_sees_nothing(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let before = crate::oci::read("/proc/self/mountinfo")?;
    b.start()?;
    let now = crate::oci::read("/proc/self/mountinfo")?;
    let new: Vec<&str> =
        now.lines().filter(|line| line.contains(&b.id) && !before.contains(line)).collect();
    want(new.is_empty(), "mounts on the host", new)?;
    b.end()
}

fn overlay(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(g, &format!("cat /over/low; echo {word} > /over/high"))?;
    crate::oci::write(b.path("low/low"), "low\n")?;
    crate::oci::write(b.path("up/x"), "")?;
    crate::oci::write(b.path("work/x"), "")?;
    drop(std::fs::remove_file(b.path("work/x")));
    let [low, up, work] = ["low", "up", "work"].map(|name| b.path(name).display().to_string());
    b.mount(json!({"destination": "/over", "type": "overlay", "source": "overlay",
        "options": [format!("lowerdir={low}"), format!("upperdir={up}"), format!("workdir={work}")]}));
    same("file below", b.output()?, "low")?;
    same("file above", crate::oci::read(b.path("up/high"))?, word)
}
