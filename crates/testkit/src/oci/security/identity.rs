//! S12 to S18, as far as they are the runtime's: who the container is, and what it reaches.

use super::ground::{failed, naive};
use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::call::Call;
use crate::oci::{Checked, Ground, Property, has, json, lacks, read, same, skip, want};
use crate::random;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, socket};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub(super) const ALL: &[Property] = &[
    p("S12/no-inheritable-and-no-ambient-capability", capabilities),
    p("S12/bites", capabilities_bite),
    p("S13/exec-users-that-are-no-numbers", exec_users),
    p("S13/config-users-that-are-no-numbers", config_users),
    p("S13/a-name-that-is-a-number", number_name),
    p("S13/bites", users_bite),
    p("S14/passwd-and-group-without-end", endless_files),
    p("S14/bites", endless_files_bite),
    p("S15/rootless-without-a-cgroup-namespace", rootless_cgroups),
    p("S15/bites", rootless_cgroups_bite),
    p("S16/no-abstract-socket", abstract_sockets),
    p("S16/bites", abstract_sockets_bite),
    p("S18/default-paths", default_paths),
    p("S18/bites", default_paths_bite),
];

const SETS: &str = "grep -E '^Cap(Inh|Amb)' /proc/self/status";
const NONE: &str = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000";

fn capabilities(g: &Ground) -> Checked {
    for uid in [0, random::number(1..60_000)] {
        let mut b = Bundle::new(g, &format!("{SETS}; exec sleep 1000"))?;
        b.config["process"]["user"] = json!({"uid": uid, "gid": uid});
        let pending = b.start()?;
        pending.wait_for("CapAmb")?;
        same("run", pending.stdout().trim_end(), NONE)?;
        for flags in [&[][..], &["--cap", "CAP_NET_ADMIN"], &["--user", "1000"], &["--user", "0"]] {
            let mut args = vec!["exec"];
            args.extend(flags);
            args.extend([b.id.as_str(), "sh", "-c", SETS]);
            same("exec", b.ok(&args)?.trim_end(), NONE)?;
        }
        b.end()?;
    }
    Ok(())
}

/// Where they are asked for they are there, and seen.
fn capabilities_bite(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, SETS)?;
    for set in ["bounding", "permitted", "effective", "inheritable", "ambient"] {
        b.config["process"]["capabilities"][set] = json!(["CAP_CHOWN"]);
    }
    let wanted = "CapInh:\t0000000000000001\nCapAmb:\t0000000000000001";
    same("sets", b.output()?, wanted)
}

/// Numbers that do not fit, and what is no number: refused, or exactly that user.
const USERS: [(&str, Option<u32>); 9] = [
    ("2147483648", Some(2_147_483_648)),
    ("4294967295", None),
    ("4294967296", None),
    ("18446744073709551616", None),
    ("-1", None),
    ("+0", None),
    ("1000:", None),
    ("0x0", None),
    ("", None),
];

fn exec_users(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["process"]["user"] = json!({"uid": 77, "gid": 77});
    b.start()?;
    for (user, exact) in USERS {
        let ran = b.rt(&["exec", &format!("--user={user}"), &b.id, "id", "-u"])?;
        let allowed = match exact {
            Some(uid) => ran.code != 0 || ran.line() == uid.to_string(),
            // An empty flag is none.
            None => ran.code != 0 || (user.is_empty() && ran.line() == "77"),
        };
        want(allowed, "exec", (user, ran.to_string()))?;
    }
    let ran = b.rt(&["exec", "--user=1000:2000", &b.id, "sh", "-c", "id -u; id -g; id -G"])?;
    same("ids and groups", ran.line(), "1000\n2000\n2000")?;
    b.end()
}

fn config_users(g: &Ground) -> Checked {
    for uid in ["4294967296", "-1", "\"0\"", "1.5", "18446744073709551616", "4294967295"] {
        for field in ["uid", "gid"] {
            let mut b = Bundle::new(g, "touch /started")?;
            b.save()?;
            let text = b
                .config
                .to_string()
                .replace(&format!("\"{field}\":0"), &format!("\"{field}\":{uid}"));
            want(text.contains(uid), "the config has it", uid)?;
            crate::oci::write(b.path("config.json"), text)?;
            let ran = b.rt(&["run", &b.id])?;
            want(ran.code != 0, "run", (field, uid, ran.to_string()))?;
            want(!b.root("started").exists(), "it ran", (field, uid))?;
            b.nothing_left()?;
        }
    }
    Ok(())
}

/// The image's passwd file has a user "1000" whose uid is 0.
fn number_name(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "id -u; id -g")?;
    b.file("etc/passwd", "root:x:0:0::/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\n", 0o644)?;
    b.file("etc/group", "root:x:0:\n1000:x:0:\n", 0o644)?;
    b.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    same("run", b.output()?, "1000\n1000")?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.file("etc/passwd", "root:x:0:0::/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\n", 0o644)?;
    b.start()?;
    same("exec", b.ok(&["exec", "--user", "1000:1000", &b.id, "id", "-u"])?, "1000\n")?;
    b.end()
}

/// Debian's runc cuts such numbers: its 4294967296 is root.
fn users_bite(g: &Ground) -> Checked {
    let mut theirs = g.clone();
    theirs.runtime.argv = vec!["/usr/sbin/runc".to_owned()];
    if !std::path::Path::new(&theirs.runtime.argv[0]).exists() {
        return skip("no runc");
    }
    let mut b = Bundle::new(&theirs, "exec sleep 1000")?;
    b.config["process"]["user"] = json!({"uid": 77, "gid": 77});
    b.start()?;
    same("exec", b.ok(&["exec", "--user", "4294967296", &b.id, "id", "-u"])?, "0\n")?;
    b.end()
}

/// Peak memory in KiB of `run`, and what it took. busybox's time takes the kernel's KiB for pages.
fn measured(b: &mut Bundle<'_>) -> Checked<(u64, Duration)> {
    b.save()?;
    let mut argv = ["busybox", "time", "-f", "%M", "-o", "peak"].map(str::to_owned).to_vec();
    argv.extend(b.ground.runtime.argv.clone());
    argv.extend(["--root", "state", "run", &b.id].map(str::to_owned));
    let begin = Instant::now();
    Call::new(&b.path(""), argv).go()?;
    let took = begin.elapsed();
    let text = read(b.path("peak"))?;
    let peak = text.split_whitespace().last().and_then(|word| word.parse::<u64>().ok());
    Ok((peak.unwrap_or(u64::MAX) / 4, took))
}

/// In place of passwd and group: a sparse file, one line without end, a FIFO.
fn hostile_files(b: &Bundle<'_>, kind: &str) -> Checked {
    for name in ["etc/passwd", "etc/group"] {
        let path = b.root(name);
        std::fs::remove_file(&path).map_err(failed("remove"))?;
        match kind {
            "fifo" => {
                let path = path.display().to_string();
                crate::command::Cmd::host("mkfifo", [path]).ok()?;
            }
            "device" => {
                let path = path.display().to_string();
                crate::command::Cmd::host("mknod", [path.as_str(), "c", "1", "5"]).ok()?;
            }
            _ => {
                let file = std::fs::File::create(&path).map_err(failed("create"))?;
                file.set_len(5 << 30).map_err(failed("grow"))?;
            }
        }
    }
    Ok(())
}

fn endless_files(g: &Ground) -> Checked {
    let quick = |script: &str| -> Checked<Bundle<'_>> {
        let mut b = Bundle::new(g, script)?;
        // Without a HOME the runtime looks for one.
        b.config["process"]["env"] = json!(["PATH=/bin"]);
        Ok(b)
    };
    let (usual, _) = measured(&mut quick("true")?)?;
    for kind in ["sparse", "fifo", "device"] {
        let mut b = quick("true")?;
        hostile_files(&b, kind)?;
        let (peak, took) = measured(&mut b)?;
        want(took < Duration::from_secs(2), "time", (kind, took))?;
        want(peak < usual + (16 << 10), "memory in KiB", (kind, peak, usual))?;
        b.nothing_left()?;
        let mut b = quick("exec sleep 1000")?;
        b.start()?;
        hostile_files(&b, kind)?;
        let begin = Instant::now();
        b.rt(&["exec", "--user", "1000", &b.id, "true"])?;
        want(begin.elapsed() < Duration::from_secs(2), "time of exec", (kind, begin.elapsed()))?;
        b.end()?;
    }
    Ok(())
}

/// Who just reads them does not come back.
fn endless_files_bite(g: &Ground) -> Checked {
    for kind in ["sparse", "fifo", "device"] {
        let b = Bundle::new(g, "true")?;
        hostile_files(&b, kind)?;
        let ran = naive(&b, "timeout 0.3 sh -c 'tr a b < rootfs/etc/passwd > /dev/null'; echo $?")?;
        same(kind, ran.line(), "124")?;
    }
    Ok(())
}

fn rootless_cgroups(g: &Ground) -> Checked {
    if !g.runtime.cgroups {
        return skip("without cgroups");
    }
    for options in [&["ro"][..], &[]] {
        let mut b = Bundle::new(
            g,
            "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do [ -e $d/cgroup.procs ] && mkdir $d/made && echo made in $d; done; true",
        )?;
        b.user_namespace(random::number(2..60) * 65_536)?;
        b.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": options}));
        let ran = b.run()?;
        lacks("cgroups", &ran.stdout, "made in")?;
        b.nothing_left()?;
    }
    Ok(())
}

/// Root of the host may: were it not for the mount and the user, so could the container.
fn rootless_cgroups_bite(g: &Ground) -> Checked {
    if !g.runtime.cgroups {
        return skip("without cgroups");
    }
    let name = random::name("made");
    let mut b = Bundle::new(g, &format!("mkdir /sys/fs/cgroup/pids/{name} && echo made"))?;
    if !std::path::Path::new("/sys/fs/cgroup/pids").is_dir() {
        return skip("no hierarchy pids of v1");
    }
    b.mount(json!({"destination": "/sys/fs/cgroup", "type": "bind", "source": "/sys/fs/cgroup",
        "options": ["rbind", "rw"]}));
    let got = b.output();
    std::fs::remove_dir(format!("/sys/fs/cgroup/pids/{name}")).map_err(failed("remove"))?;
    same("mkdir", got?, "made")
}

/// The abstract sockets of this network namespace that somebody could connect or send to: the kernel
/// gives a name to a pair's end that asks for credentials, too, but that takes nothing from others.
fn abstract_names() -> Checked<BTreeSet<String>> {
    const CONNECTED: &str = "03";
    let text = read("/proc/net/unix")?;
    let name = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let open = fields.get(5).is_some_and(|state| *state != CONNECTED);
        fields.get(7).filter(|name| open && name.starts_with('@')).map(|name| (*name).to_owned())
    };
    Ok(text.lines().filter_map(name).collect())
}

/// In the host's network namespace, through a container's whole life.
fn abstract_sockets(g: &Ground) -> Checked {
    let before = abstract_names()?;
    let look = |when: &str| -> Checked {
        let new: Vec<String> = abstract_names()?.difference(&before).cloned().collect();
        want(new.is_empty(), "abstract sockets", (when, new))
    };
    let mut b = Bundle::new(g, "grep -c @ /proc/net/unix; exec sleep 1000")?;
    b.without_namespace("network");
    b.unmount("/sys");
    b.create()?;
    look("created")?;
    b.ok(&["start", &b.id])?;
    look("running")?;
    let exec = b.call(&["exec", &b.id, "sleep", "0.2"]).start()?;
    for _ in 0..10 {
        look("exec")?;
    }
    exec.wait()?.ok()?;
    b.end()?;
    look("deleted")
}

fn abstract_sockets_bite(_: &Ground) -> Checked {
    let name = random::token(12);
    let before = abstract_names()?;
    let made = socket(AddressFamily::UNIX, SocketType::STREAM, None);
    let made = made.map_err(|error| failed("socket")(error.into()))?;
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes());
    let address = address.map_err(|error| failed("address")(error.into()))?;
    bind(&made, &address).map_err(|error| failed("bind")(error.into()))?;
    let now = abstract_names()?;
    want(now.difference(&before).any(|seen| seen.contains(&name)), "the socket", &now)
}

/// The config that the runtime itself proposes, in a container that walks all of its paths.
fn with_default_paths<'a>(g: &'a Ground, script: &str) -> Checked<(Bundle<'a>, Vec<String>)> {
    let b = Bundle::new(g, "true")?;
    b.ok(&["spec"])?;
    let spec = json(&read(b.path("config.json"))?)?;
    let list = |name: &str| -> Vec<String> {
        let list = spec["linux"][name].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|path| path.as_str().map(str::to_owned)).collect()
    };
    let (masked, read_only) = (list("maskedPaths"), list("readonlyPaths"));
    want(masked.len() > 5 && read_only.len() > 3, "paths", (&masked, &read_only))?;
    let mut all = masked.clone();
    all.extend(read_only.clone());
    let script =
        script.replace("MASKED", &masked.join(" ")).replace("READONLY", &read_only.join(" "));
    let mut b = Bundle::new(g, &script)?;
    b.config["linux"]["maskedPaths"] = json!(masked);
    b.config["linux"]["readonlyPaths"] = json!(read_only);
    Ok((b, all))
}

/// What is masked is empty; what is read-only is another mount, which is so.
const WALK: &str = "for p in MASKED; do \
    if [ -d $p ]; then [ -z \"$(ls -A $p)\" ] || echo full $p; \
    elif [ -e $p ]; then [ -z \"$(head -c 9 $p)\" ] || echo full $p; fi; done; \
    for p in READONLY; do [ ! -e $p ] || grep -q \" $p ro\" /proc/self/mountinfo || echo writable $p; done; \
    find /proc/sys -type f 2>/dev/null | head -n 500 | while read f; do \
    { : >> $f; } 2>/dev/null && echo opened $f; done; echo walked";

fn default_paths(g: &Ground) -> Checked {
    let (mut b, _) = with_default_paths(g, WALK)?;
    std::os::unix::fs::symlink("busybox", b.root("bin/find")).map_err(failed("symlink"))?;
    same("what the walk finds", b.output()?, "walked")
}

fn default_paths_bite(g: &Ground) -> Checked {
    let (mut b, all) = with_default_paths(g, WALK)?;
    std::os::unix::fs::symlink("busybox", b.root("bin/find")).map_err(failed("symlink"))?;
    b.config["linux"]["maskedPaths"] = json!([]);
    b.config["linux"]["readonlyPaths"] = json!([]);
    let got = b.output()?;
    has("full", &got, "full ")?;
    has("writable", &got, "writable ")?;
    want(all.iter().any(|path| got.contains(path)), "paths", got)
}
