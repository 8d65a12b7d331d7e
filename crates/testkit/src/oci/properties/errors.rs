//! What is refused, with which words, and that nothing is left.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, same, want};
use crate::random;
use serde_json::json;

pub(super) const ALL: &[Property] = &[
    p("errors/unknown-container", unknown_container),
    p("errors/id-in-use", id_in_use),
    p("errors/bad-ids", bad_ids),
    p("errors/start-running", start_running),
    p("errors/start-stopped", start_stopped),
    p("errors/delete-running", delete_running),
    p("errors/kill-stopped", kill_stopped),
    p("errors/kill-unknown-signal", kill_unknown),
    p("errors/no-config", no_config),
    p("errors/config-not-json", config_not_json),
    p("errors/config-wrong-type", config_wrong_type),
    p("errors/config-array-for-an-object", config_array),
    p("errors/args-empty", args_empty),
    p("errors/cwd-relative", cwd_relative),
    p("errors/cwd-empty", cwd_empty),
    p("errors/rootfs-missing", rootfs_missing),
    p("errors/program-not-in-path", not_in_path),
    p("errors/program-missing", program_missing),
    p("errors/program-not-executable", not_executable),
    p("errors/program-is-a-directory", program_directory),
    p("errors/interpreter-missing", interpreter_missing),
    p("errors/failed-create-leaves-nothing", failed_create),
    p("errors/namespace-twice", namespace_twice),
    p("errors/namespace-unknown", namespace_unknown),
    p("errors/namespace-path-missing", namespace_path),
    p("errors/hostname-of-the-host", hostname_host),
    p("errors/sysctl-outside-namespaces", sysctl_host),
    p("errors/sysctl-without-namespace", sysctl_namespace),
    p("errors/rlimit-unknown", rlimit_unknown),
    p("errors/rlimit-twice", rlimit_twice),
    p("errors/user-mappings-missing", mappings_missing),
    p("errors/mount-source-missing", mount_source),
    p("errors/mount-type-unknown", mount_type),
    p("errors/device-type-unknown", device_type),
    p("errors/seccomp-action-unknown", seccomp_action),
    p("errors/seccomp-architecture-unknown", seccomp_architecture),
    p("errors/seccomp-notify-without-a-listener", notify_nowhere),
    p("errors/rdt-without-resctrl", rdt),
    p("errors/log-json", log_json),
    p("errors/log-text", log_text),
];

fn unknown_container(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let none = random::name("none");
    for command in [&["state"][..], &["start"], &["kill"], &["delete"], &["pause"], &["resume"]] {
        let mut args = command.to_vec();
        args.push(&none);
        has(command[0], &b.fails(&args)?, "does not exist")?;
    }
    has("exec", &b.fails(&["exec", &none, "true"])?, "does not exist")
}

fn id_in_use(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.create()?;
    has("create", &b.fails(&["create", &b.id])?, "already exists")?;
    has("run", &b.fails(&["run", &b.id])?, "already exists")?;
    same("status of the first", b.status()?, "created")?;
    b.ok(&["start", &b.id])?;
    b.end()
}

fn bad_ids(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.save()?;
    for id in ["", "..", ".", "a/b", "../x", "a b", "a\nb", "ä", "a*"] {
        let ran = b.rt(&["create", id])?;
        if ran.code == 0 {
            b.ok(&["delete", "--force", id])?;
        }
        want(ran.code != 0 && !ran.stderr.is_empty(), "create", (id, ran.to_string()))?;
    }
    // And these are good.
    for id in ["a.b", "A_b-c+d", "0"] {
        same("exit code", b.rt(&["run", &format!("{id}{}", random::token(4))])?.code, 0)?;
    }
    b.nothing_left()
}

fn start_running(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.start()?;
    let said = b.fails(&["start", &b.id])?;
    has("start", &said, "cannot start an already running container")?;
    b.end()
}

fn start_stopped(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.start()?;
    b.until("stopped")?;
    has("start", &b.fails(&["start", &b.id])?, "cannot start a container that has stopped")?;
    b.ok(&["delete", &b.id]).map(drop)
}

fn delete_running(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.start()?;
    let said = b.fails(&["delete", &b.id])?;
    has(
        "delete",
        &said,
        &format!("cannot delete container {} that is not stopped: running", b.id),
    )?;
    same("status", b.status()?, "running")?;
    b.end()
}

fn kill_stopped(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.start()?;
    b.until("stopped")?;
    has("kill", &b.fails(&["kill", &b.id, "KILL"])?, "container not running")
}

fn kill_unknown(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.start()?;
    for signal in ["NOSUCH", "SIGNOSUCH", "sigx"] {
        has("kill", &b.fails(&["kill", &b.id, signal])?, "unknown signal")?;
    }
    same("status", b.status()?, "running")
}

fn no_config(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let said = b.fails(&["create", &b.id])?;
    has("create", &said, "config.json")
}

fn config_not_json(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    crate::oci::write(b.path("config.json"), "{\"ociVersion\": ")?;
    b.fails(&["create", &b.id])?;
    b.nothing_left()
}

fn config_wrong_type(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.config["process"]["user"]["uid"] = json!("zero");
    has("the field", &b.refused()?, "uid")
}

fn config_array(g: &Ground) -> Checked {
    for (path, value) in [
        ("/process/user", json!([1000, 1000])),
        ("/root", json!(["rootfs"])),
        ("/mounts/0", json!(["/proc"])),
    ] {
        let mut b = Bundle::new(g, "true")?;
        if let Some(field) = b.config.pointer_mut(path) {
            *field = value;
        }
        b.refused()?;
    }
    Ok(())
}

fn args_empty(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.config["process"]["args"] = json!([]);
    let said = b.refused()?;
    has("the field", &said, "args")?;
    has("the cause", &said, "must not be empty")
}

fn cwd_relative(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.config["process"]["cwd"] = json!("tmp");
    has("run", &b.refused()?.to_lowercase(), "cwd must be an absolute path")
}

fn cwd_empty(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.config["process"]["cwd"] = json!("");
    has("the field", &b.refused()?.to_lowercase(), "cwd")
}

fn rootfs_missing(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let name = random::token(9);
    b.config["root"]["path"] = json!(name);
    has("run", &b.refused()?, &name)
}

fn not_in_path(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    let name = random::token(9);
    b.config["process"]["args"] = json!([name]);
    let wanted = format!("exec: \"{name}\": executable file not found in $PATH");
    has("run", &b.refused()?.replace('\\', ""), &wanted)
}

fn program_missing(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    let name = format!("/bin/{}", random::token(9));
    b.config["process"]["args"] = json!([name]);
    let wanted = format!("exec: \"{name}\": stat {name}: no such file or directory");
    has("run", &b.refused()?.replace('\\', ""), &wanted)
}

fn not_executable(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["/etc/passwd"]);
    has("run", &b.refused()?.replace('\\', ""), "exec: \"/etc/passwd\": permission denied")
}

fn program_directory(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["/etc"]);
    has("run", &b.refused()?.replace('\\', ""), "exec: \"/etc\": is a directory")
}

/// What the kernel refuses shows at start, with its words.
fn interpreter_missing(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.file("script", "#!/no/such/interpreter\n", 0o755)?;
    b.config["process"]["args"] = json!(["/script"]);
    let ran = b.run()?;
    want(ran.code != 0, "exit code", ran.to_string())?;
    has("run", &ran.stderr.to_lowercase(), "no such file or directory")
}

fn failed_create(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let word = random::token(9);
    b.mount(json!({"destination": "/x", "type": "bind", "source": format!("/{word}"), "options": ["bind"]}));
    b.save()?;
    has("create", &b.fails(&["create", &b.id])?, &word)?;
    b.nothing_left()?;
    let mounts = read_mounts()?;
    want(!mounts.contains(&b.id), "a mount is left", mounts)
}

fn read_mounts() -> Checked<String> {
    crate::oci::read("/proc/self/mountinfo")
}

fn namespace_twice(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let list = b.config["linux"]["namespaces"].as_array_mut();
    list.expect("a list").push(json!({"type": "ipc"}));
    has("run", &b.refused()?, "ipc")
}

fn namespace_unknown(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let name = random::token(6);
    b.namespace(json!({"type": name}));
    has("run", &b.refused()?, &name)
}

fn namespace_path(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let path = format!("/run/{}", random::token(9));
    b.namespace(json!({"type": "network", "path": path}));
    has("run", &b.refused()?.to_lowercase(), "no such file or directory")
}

fn hostname_host(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.without_namespace("uts");
    has("run", &b.refused()?, "unable to set hostname without a private UTS namespace")
}

fn sysctl_host(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    // The value that it has: a runtime that does not refuse changes nothing.
    let value = crate::oci::read("/proc/sys/kernel/panic")?;
    b.config["linux"]["sysctl"] = json!({"kernel.panic": value});
    let said = b.refused()?.replace('\\', "");
    has("run", &said, "sysctl \"kernel.panic\" is not in a separate kernel namespace")
}

fn sysctl_namespace(g: &Ground) -> Checked {
    for (kind, name, value) in
        [("network", "net.ipv4.ip_forward", "1"), ("ipc", "kernel.shmmni", "4000")]
    {
        let mut b = Bundle::new(g, "true")?;
        b.without_namespace(kind);
        b.config["linux"]["sysctl"] = json!({name: value});
        has("run", &b.refused()?, name)?;
    }
    Ok(())
}

fn rlimit_unknown(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let name = format!("RLIMIT_{}", random::token(5).to_uppercase());
    b.config["process"]["rlimits"] = json!([{"type": name, "soft": 1, "hard": 1}]);
    has("run", &b.refused()?, &name)
}

fn rlimit_twice(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let limit = json!({"type": "RLIMIT_CORE", "soft": 0, "hard": 0});
    b.config["process"]["rlimits"] = json!([limit.clone(), limit]);
    has("run", &b.refused()?, "RLIMIT_CORE")
}

fn mappings_missing(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.namespace(json!({"type": "user"}));
    has("run", &b.refused()?.to_lowercase(), "map")
}

fn mount_source(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let at = format!("/{}", random::token(6));
    let source = format!("/nothing/{}", random::token(6));
    b.mount(json!({"destination": at, "type": "bind", "source": source, "options": ["rbind"]}));
    let said = b.refused()?;
    has("the source", &said, &source)?;
    has("the cause", &said.to_lowercase(), "no such file or directory")
}

fn mount_type(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let kind = random::token(6);
    let at = format!("/{}", random::token(6));
    b.mount(json!({"destination": at, "type": kind, "source": "none"}));
    let said = b.refused()?;
    has("the place", &said, &at)?;
    has("the cause", &said.to_lowercase(), "no such device")
}

fn device_type(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.config["linux"]["devices"] = json!([{"path": "/dev/x", "type": "q", "major": 1, "minor": 3}]);
    b.refused().map(drop)
}

fn seccomp_action(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let action = format!("SCMP_ACT_{}", random::token(5).to_uppercase());
    b.config["linux"]["seccomp"] = json!({"defaultAction": action});
    has("run", &b.refused()?, &action)
}

fn seccomp_architecture(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let name = format!("SCMP_ARCH_{}", random::token(5).to_uppercase());
    b.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [name],
               "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}]});
    has("run", &b.refused()?, &name)
}

fn notify_nowhere(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": format!("/run/{}", random::token(8)),
        "syscalls": [{"names": ["iopl"], "action": "SCMP_ACT_NOTIFY"}]});
    b.refused().map(drop)
}

fn rdt(g: &Ground) -> Checked {
    if std::path::Path::new("/sys/fs/resctrl/schemata").exists() {
        return crate::oci::skip("this machine has resctrl");
    }
    let mut b = Bundle::new(g, "true")?;
    b.config["linux"]["intelRdt"] = json!({"closID": random::token(6), "l3CacheSchema": "L3:0=f"});
    has("run", &b.refused()?.to_lowercase(), "rdt")
}

/// What a shim reads: the last line of this kind is the message.
fn log_json(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    let name = random::token(9);
    b.config["process"]["args"] = json!([name]);
    let log = b.path("log.json").display().to_string();
    b.global = ["--log", &log, "--log-format", "json"].map(str::to_owned).to_vec();
    b.save()?;
    let said = b.fails(&["create", &b.id])?;
    let text = crate::oci::read(&log)?;
    let last = crate::oci::json(text.lines().last().unwrap_or_default())?;
    same("level", &last["level"], "error")?;
    let message = last["msg"].as_str().unwrap_or_default();
    let cause = format!("exec: \"{name}\": executable file not found in $PATH");
    same(
        "message",
        message,
        format!("runc create failed: unable to start container process: {cause}").as_str(),
    )?;
    want(last["time"].as_str().is_some_and(|time| time.starts_with("20")), "time", &last)?;
    has("stderr", &said.replace('\\', ""), &cause)
}

fn log_text(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.global = ["--log", "log.txt"].map(str::to_owned).to_vec();
    let none = random::name("none");
    let said = b.fails(&["state", &none])?;
    let text = crate::oci::read(b.path("log.txt"))?;
    has("log", &text, "level=error")?;
    has("log", &text, "container does not exist")?;
    has("stderr", &said, "container does not exist")?;
    b.save()
        .map_err(Into::into)
        .and_then(|()| b.fails(&["--log-format", "xml", "state", &none]))
        .map(drop)
}
