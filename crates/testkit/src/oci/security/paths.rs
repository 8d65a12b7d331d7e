//! S04 to S11: hostile root file systems, and roots that change while they are worked on.

use super::ground::{Canary, failed, hit_while_swapped, link, naive, raced};
use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, read, same, want};
use crate::random;
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

pub(super) const ALL: &[Property] = &[
    p("S04/swapped-directory-target", swapped_directory),
    p("S04/swapped-file-target", swapped_file),
    p("S04/bites", swapped_bites),
    p("S05/proc-or-sys-is-a-link", proc_link),
    p("S05/mount-over-or-in-proc", over_proc),
    p("S05/bites", proc_link_bites),
    p("S06/null-is-swapped-while-masking", swapped_null),
    p("S06/bites", swapped_null_bites),
    p("S07/console-is-a-link", console_link),
    p("S07/console-is-swapped", swapped_console),
    p("S07/pts-is-swapped", swapped_pts),
    p("S07/bites", console_bites),
    p("S07/pts-bites", pts_bites),
    p("S08/proc-is-swapped-during-writes", swapped_proc),
    p("S08/bites", swapped_proc_bites),
    p("S09/dev-is-a-link", dev_link),
    p("S09/bites", dev_link_bites),
    p("S10/null-leads-to-a-bound-file", null_link),
    p("S10/bites", null_link_bites),
    p("S11/read-only-with-a-hostile-proc", hostile_proc),
    p("S11/bites", hostile_proc_bites),
];

/// So often a container is started while its root changes.
const RUNS: usize = 40;

fn swapped_directory(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let canary = Canary::new(&b)?;
    b.directory("d")?;
    link(&canary.dir, b.root("l"))?;
    b.mount(json!({"destination": "/d/made/deep", "type": "tmpfs", "source": "tmpfs"}));
    crate::oci::write(b.path("source/x"), "")?;
    b.mount(json!({"destination": "/d/sub", "type": "bind", "source": "source",
        "options": ["rbind"]}));
    let pair = (b.root("d"), b.root("l"));
    raced(&mut b, pair, RUNS, |_| canary.unchanged())
}

fn swapped_file(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let canary = Canary::new(&b)?;
    b.directory("d")?;
    link(&canary.dir, b.root("l"))?;
    crate::oci::write(b.path("source"), "")?;
    b.mount(json!({"destination": "/d/new", "type": "bind", "source": "source",
        "options": ["bind"]}));
    b.mount(json!({"destination": "/d/file", "type": "bind", "source": "source",
        "options": ["bind"]}));
    let pair = (b.root("d"), b.root("l"));
    raced(&mut b, pair, RUNS, |_| canary.unchanged())
}

/// A runtime that makes its targets by their names hits what the link leads to.
fn swapped_bites(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let canary = Canary::new(&b)?;
    b.directory("d")?;
    link(&canary.dir, b.root("l"))?;
    let made = b.root("d").join("made");
    let hit = hit_while_swapped(
        (b.root("d"), b.root("l")),
        || {
            // It fails where it is there already.
            drop(std::fs::create_dir(&made));
            Ok(())
        },
        || canary.is_hit(),
    )?;
    want(hit, "the link was never followed", "")
}

fn replace_by_link(b: &Bundle<'_>, name: &str, target: &str) -> Checked {
    std::fs::remove_dir(b.root(name)).map_err(failed("remove"))?;
    link(target, b.root(name))
}

fn proc_link(g: &Ground) -> Checked {
    for name in ["proc", "sys"] {
        for target in ["/x", "x", "../canary", "/tmp/../x"] {
            let mut b = Bundle::new(g, "touch /started")?;
            let canary = Canary::new(&b)?;
            b.directory("x")?;
            replace_by_link(&b, name, target)?;
            b.refused()?;
            canary.unchanged()?;
            want(!b.root("started").exists(), "it ran", (name, target))?;
        }
    }
    Ok(())
}

fn over_proc(g: &Ground) -> Checked {
    for at in ["/proc", "/proc/self", "/proc/sys/kernel", "/proc/1/attr", "/proc/self/../sys"] {
        let mut b = Bundle::new(g, "touch /started")?;
        crate::oci::write(b.path("volume/x"), "")?;
        b.mount(json!({"destination": at, "type": "bind", "source": "volume",
            "options": ["rbind"]}));
        b.refused()?;
        want(!b.root("started").exists(), "it ran", at)?;
    }
    Ok(())
}

/// mount(8) follows the link, on the host.
fn proc_link_bites(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let canary = Canary::new(&b)?;
    replace_by_link(&b, "proc", "../canary")?;
    let line = "mount -t proc proc rootfs/proc && ls canary/self/status";
    let ran = naive(&b, &format!("unshare -m sh -c '{line}'"))?;
    has("procfs at the link's target", &ran.stdout, "canary/self/status")?;
    canary.unchanged()
}

/// A root whose /dev is the image's, with `null` and a link to a file of procfs beside it.
fn with_own_dev<'a>(g: &'a Ground, script: &str) -> Checked<Bundle<'a>> {
    let mut b = Bundle::new(g, script)?;
    b.unmount("/dev");
    let null = b.root("dev/null").display().to_string();
    crate::command::Cmd::host("mknod", ["-m", "666", &null, "c", "1", "3"]).ok()?;
    // Of the container's network namespace, so that nothing of the machine is touched.
    link("/proc/sys/net/ipv4/ip_forward", b.root("dev/evil"))?;
    Ok(b)
}

fn swapped_null(g: &Ground) -> Checked {
    let script = "stat -c %t:%T /proc/keys; echo 1 > /proc/keys; cat /proc/sys/net/ipv4/ip_forward";
    let mut b = with_own_dev(g, script)?;
    b.config["linux"]["maskedPaths"] = json!(["/proc/keys"]);
    let pair = (b.root("dev/null"), b.root("dev/evil"));
    raced(&mut b, pair, RUNS, |ran| {
        // It may fail; a container that runs has the device, and the other file is as it was.
        want(ran.stdout.is_empty() || ran.line() == "1:3\n0", "the mask", ran.to_string())
    })
}

/// mount(8) binds whatever the name leads to.
fn swapped_null_bites(g: &Ground) -> Checked {
    let b = with_own_dev(g, "true")?;
    let line = "mount --bind rootfs/dev/evil rootfs/etc/group && stat -c %t:%T:%s rootfs/etc/group";
    let ran = naive(&b, &format!("unshare -m sh -c '{line}'"))?;
    has("a mask that is no device", &ran.stdout, "0:0:0")
}

fn console_link(g: &Ground) -> Checked {
    for with_dev in [true, false] {
        let mut b =
            Bundle::new(g, "echo pwned > /dev/console; chmod 777 /dev/console; sleep 0.01")?;
        let canary = Canary::new(&b)?;
        if !with_dev {
            b.unmount("/dev");
        }
        for target in [canary.file().display().to_string(), "../../canary/file".to_owned()] {
            link(&target, b.root("dev/console"))?;
            drop(crate::oci::properties::session(&mut b));
            drop(b.rt(&["delete", "--force", &b.id]));
            canary.unchanged()?;
            drop(std::fs::remove_file(b.root("dev/console")));
            drop(std::fs::remove_file(b.path("c.sock")));
        }
    }
    Ok(())
}

fn swapped_console(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "echo pwned > /dev/console")?;
    let canary = Canary::new(&b)?;
    b.unmount("/dev");
    b.file("dev/console", "", 0o600)?;
    link(canary.file(), b.root("dev/evil"))?;
    let pair = (b.root("dev/console"), b.root("dev/evil"));
    raced_terminals(&mut b, &canary, pair)
}

/// Starts containers with a terminal while the two are swapped.
fn raced_terminals(b: &mut Bundle<'_>, canary: &Canary, (one, two): (PathBuf, PathBuf)) -> Checked {
    let racer = super::ground::Racer::new(one, two);
    for _ in 0..30 {
        // Whether there is a terminal in the end is not the question.
        drop(crate::oci::properties::session(b));
        drop(b.rt(&["delete", "--force", &b.id]));
        drop(std::fs::remove_file(b.path("c.sock")));
        canary.unchanged()?;
    }
    want(racer.swaps() > 100, "swaps", racer.swaps())
}

/// The directory that gets the devpts, and, where there is no devpts, what looks like the terminal.
fn swapped_pts(g: &Ground) -> Checked {
    for with_devpts in [true, false] {
        let mut b = Bundle::new(g, "echo pwned > /dev/pts/0; chmod 777 /dev/pts/0")?;
        let canary = Canary::new(&b)?;
        b.unmount("/dev");
        b.directory("dev/pts")?;
        let pair = if with_devpts {
            b.mount(json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}));
            link(&canary.dir, b.root("dev/evil"))?;
            (b.root("dev/pts"), b.root("dev/evil"))
        } else {
            b.file("dev/pts/0", "", 0o600)?;
            link(canary.file(), b.root("dev/pts/evil"))?;
            (b.root("dev/pts/0"), b.root("dev/pts/evil"))
        };
        raced_terminals(&mut b, &canary, pair)?;
    }
    Ok(())
}

/// mount(8) puts the devpts where the link leads to.
fn pts_bites(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let _canary = Canary::new(&b)?;
    link("../../canary", b.root("dev/pts"))?;
    let line = "mount -t devpts -o newinstance devpts rootfs/dev/pts && ls canary/ptmx";
    let ran = naive(&b, &format!("unshare -m sh -c '{line}'"))?;
    has("a devpts at the link's target", &ran.stdout, "canary/ptmx")
}

fn console_bites(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let canary = Canary::new(&b)?;
    link("../../canary/file", b.root("dev/console"))?;
    let line = "mount --bind /dev/null rootfs/dev/console && stat -c %t:%T canary/file";
    let ran = naive(&b, &format!("unshare -m sh -c '{line}'"))?;
    same("the host's file", ran.line(), "1:3")?;
    canary.unchanged()
}

/// /proc of the root is swapped with a directory that looks like it and leads to the canary.
fn with_false_proc<'a>(g: &'a Ground, script: &str) -> Checked<(Bundle<'a>, Canary)> {
    let b = Bundle::new(g, script)?;
    let canary = Canary::new(&b)?;
    for dir in ["fake/sys/net/ipv4", "fake/self", "fake/1", "fake/thread-self/attr"] {
        b.directory(dir)?;
    }
    for file in ["fake/sys/net/ipv4/ip_forward", "fake/self/oom_score_adj", "fake/1/oom_score_adj"]
    {
        link(canary.file(), b.root(file))?;
    }
    Ok((b, canary))
}

fn swapped_proc(g: &Ground) -> Checked {
    let script = "cat /proc/sys/net/ipv4/ip_forward /proc/self/oom_score_adj";
    let (mut b, canary) = with_false_proc(g, script)?;
    let score = random::number(600..900);
    b.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    b.config["process"]["oomScoreAdj"] = json!(score);
    let wanted = format!("1\n{score}");
    let pair = (b.root("proc"), b.root("fake"));
    raced(&mut b, pair, RUNS, |ran| {
        canary.unchanged()?;
        want(ran.code != 0 || ran.line() == wanted, "the values", ran.to_string())
    })
}

fn swapped_proc_bites(g: &Ground) -> Checked {
    let (b, canary) = with_false_proc(g, "true")?;
    let file = b.root("proc").join("sys/net/ipv4/ip_forward");
    let hit = hit_while_swapped(
        (b.root("proc"), b.root("fake")),
        || {
            // Where the empty directory is in place the file is not there.
            drop(
                std::fs::File::options()
                    .write(true)
                    .open(&file)
                    .map(|mut file| std::io::Write::write_all(&mut file, b"1\n")),
            );
            Ok(())
        },
        || canary.is_hit(),
    )?;
    want(hit, "the canary was never written to", "")
}

fn dev_link(g: &Ground) -> Checked {
    for with_mount in [true, false] {
        for kind in ["up", "absolute", "chain"] {
            let mut b = Bundle::new(g, "true")?;
            let canary = Canary::new(&b)?;
            if !with_mount {
                b.unmount("/dev");
            }
            let target = match kind {
                "up" => "../../canary".to_owned(),
                "absolute" => canary.dir.display().to_string(),
                _ => "/one".to_owned(),
            };
            replace_by_link(&b, "dev", &target)?;
            link("two", b.root("one"))?;
            link(&canary.dir, b.root("two"))?;
            b.run()?;
            canary.unchanged()?;
        }
    }
    Ok(())
}

fn dev_link_bites(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let canary = Canary::new(&b)?;
    replace_by_link(&b, "dev", "../canary")?;
    naive(&b, "mknod rootfs/dev/null c 1 3")?;
    want(canary.is_hit(), "no device was made beside the root", "")
}

/// The image's /dev/null leads to a file of the host that is bound into the container.
fn with_null_link(g: &Ground) -> Checked<(Bundle<'_>, Canary)> {
    let mut b = Bundle::new(g, "cat")?;
    let canary = Canary::new(&b)?;
    b.unmount("/dev");
    link("/bound", b.root("dev/null"))?;
    b.file("bound", "", 0o644)?;
    b.mount(json!({"destination": "/bound", "type": "bind", "source": canary.file(),
        "options": ["bind"]}));
    b.config["process"]["user"] = json!({"uid": 1234, "gid": 1234});
    Ok((b, canary))
}

fn null_link(g: &Ground) -> Checked {
    let (mut b, canary) = with_null_link(g)?;
    b.save()?;
    b.call(&["run", &b.id]).stdin("piped").go()?;
    canary.unchanged()?;
    b.call(&["run", &b.id]).go()?;
    canary.unchanged()?;
    let owner = std::fs::metadata(canary.file()).map_err(failed("stat"))?.uid();
    same("owner", owner, 0)
}

fn null_link_bites(g: &Ground) -> Checked {
    let (b, canary) = with_null_link(g)?;
    let line =
        "mount --bind canary/file rootfs/bound && chroot rootfs busybox chown 1234 /dev/null";
    naive(&b, &format!("unshare -m sh -c '{line}'"))?;
    want(canary.is_hit(), "the host's file has its owner still", "")
}

/// An image with files where procfs is looked for.
fn with_files_in_proc(g: &Ground) -> Checked<Bundle<'_>> {
    let b = Bundle::new(g, "touch /x 2>&1; touch /etc/x 2>&1; echo y 2>&1 > /etc/passwd")?;
    b.file("proc/self/mountinfo", "", 0o644)?;
    b.file("proc/self/fd/3", "", 0o644)?;
    b.file("proc/mounts", "", 0o644)?;
    b.directory("proc/thread-self/fd")?;
    Ok(b)
}

fn hostile_proc(g: &Ground) -> Checked {
    for mounted in [true, false] {
        let mut b = with_files_in_proc(g)?;
        b.config["root"]["readonly"] = json!(true);
        if !mounted {
            b.unmount("/proc");
        }
        let ran = b.run()?;
        if ran.stdout.is_empty() && ran.code != 0 && !b.root("x").exists() {
            continue; // refused
        }
        let refused = ran.stdout.matches("ead-only file system").count();
        want(refused >= 2, "refused writes", ran.to_string())?;
        want(!b.root("x").exists(), "a new file", ran.to_string())?;
        has("a user of the image", &read(b.root("etc/passwd"))?, "root")?;
    }
    Ok(())
}

fn hostile_proc_bites(g: &Ground) -> Checked {
    let mut b = with_files_in_proc(g)?;
    b.run()?;
    want(b.root("x").exists(), "a write to a root that is not read-only", "")
}
