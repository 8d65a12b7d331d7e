//! `process`: what is run, as whom, with what.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, read, same, skip, want};
use crate::random;
use serde_json::{Value, json};

pub(super) const ALL: &[Property] = &[
    p("process/args-as-they-are", args),
    p("process/args-found-in-path-of-the-config", path_lookup),
    p("process/program-with-a-slash-from-cwd", relative_program),
    p("process/env-exactly", env),
    p("process/env-home", env_home),
    p("process/cwd", cwd),
    p("process/cwd-is-made", cwd_made),
    p("process/cwd-of-another-user", cwd_user),
    p("process/user", user),
    p("process/additional-gids", additional_gids),
    p("process/no-groups-of-the-caller", no_groups),
    p("process/umask", umask),
    p("process/umask-default", umask_default),
    p("process/no-new-privileges", no_new_privileges),
    p("process/rlimits", rlimits),
    p("process/rlimits-inherited-otherwise", rlimits_inherited),
    p("process/oom-score-adj", oom_score_adj),
    p("process/oom-score-adj-unset", oom_score_adj_unset),
    p("process/descriptors", descriptors),
    p("process/preserve-fds", preserve_fds),
    p("process/listen-fds", listen_fds),
    p("process/session-leader", session),
    p("process/signals-as-at-boot", signals),
    p("process/first-process", first),
    p("process/not-dumpable-before-start", dumpable),
    p("process/personality", personality),
    p("process/personality-unknown", personality_unknown),
    p("process/scheduler-batch", scheduler_batch),
    p("process/scheduler-other-nice", scheduler_nice),
    p("process/scheduler-fifo", scheduler_fifo),
    p("process/scheduler-unknown", scheduler_unknown),
    p("process/io-priority", io_priority),
    p("process/exec-cpu-affinity", cpu_affinity),
    p("process/memory-policy", memory_policy),
];

fn args(g: &Ground) -> Checked {
    let word = random::token(6);
    let given = ["", " a  b ", "line\nbreak", "\"'$HOME\\", "ünï©ode", "-x", &word];
    let mut b = Bundle::new(g, "")?;
    let mut args = vec!["sh", "-c", "printf '<%s>' \"$0\" \"$@\""];
    args.extend(given);
    b.config["process"]["args"] = json!(args);
    let wanted: String = given.iter().map(|arg| format!("<{arg}>")).collect();
    same("arguments", b.output()?, wanted)
}

fn path_lookup(g: &Ground) -> Checked {
    let (name, one, two) = (random::token(7), random::token(7), random::token(7));
    let mut b = Bundle::new(g, "")?;
    b.file(&format!("{one}/{name}"), "#!/bin/sh\necho one\n", 0o644)?;
    b.file(&format!("{two}/{name}"), "#!/bin/sh\necho two\n", 0o755)?;
    b.config["process"]["args"] = json!([name]);
    // The first is not executable, so that it is not the one.
    b.config["process"]["env"] = json!([format!("PATH=/none:/{one}:/{two}:/bin")]);
    same("output", b.output()?, "two")
}

fn relative_program(g: &Ground) -> Checked {
    let (dir, name) = (random::token(7), random::token(7));
    let mut b = Bundle::new(g, "")?;
    b.file(&format!("{dir}/{name}"), "#!/bin/sh\necho here\n", 0o755)?;
    b.config["process"]["cwd"] = json!(format!("/{dir}"));
    b.config["process"]["args"] = json!([format!("./{name}")]);
    same("output", b.output()?, "here")
}

fn env(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    let given = [
        "PATH=/bin".to_owned(),
        "HOME=/elsewhere".to_owned(),
        format!("A_{}={}", random::token(5), random::token(9)),
        "EMPTY=".to_owned(),
        "MANY=a=b=c".to_owned(),
        "SPACES= x  y ".to_owned(),
    ];
    b.config["process"]["args"] = json!(["env"]);
    b.config["process"]["env"] = json!(given);
    let mut seen: Vec<String> =
        b.run()?.ok()?.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect();
    let mut wanted = given.to_vec();
    seen.sort();
    wanted.sort();
    same("environment", seen, wanted)
}

fn env_home(g: &Ground) -> Checked {
    for (uid, home) in [(0, "/root"), (1000, "/home/user"), (4321, "/")] {
        let mut b = Bundle::new(g, "echo $HOME")?;
        b.config["process"]["user"]["uid"] = json!(uid);
        same("HOME", b.output()?, home)?;
    }
    Ok(())
}

fn cwd(g: &Ground) -> Checked {
    let dir = format!("/{}/a b", random::token(7));
    let mut b = Bundle::new(g, "")?;
    b.directory(&dir)?;
    b.config["process"]["args"] = json!(["readlink", "/proc/self/cwd"]);
    b.config["process"]["cwd"] = json!(dir);
    same("working directory", b.output()?, dir)
}

/// As runc does it.
fn cwd_made(g: &Ground) -> Checked {
    let dir = format!("/{}/deep/er", random::token(7));
    let mut b = Bundle::new(g, "pwd")?;
    b.config["process"]["cwd"] = json!(dir);
    same("working directory", b.output()?, dir)
}

fn cwd_user(g: &Ground) -> Checked {
    let uid = random::number(2000..60_000);
    let mut b = Bundle::new(g, "pwd")?;
    b.directory("/closed")?;
    let path = b.root("closed");
    std::os::unix::fs::chown(&path, Some(uid), Some(uid)).map_err(|e| failed("chown", &e))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&path, mode).map_err(|e| failed("chmod", &e))?;
    b.config["process"]["user"] = json!({"uid": uid, "gid": uid});
    b.config["process"]["cwd"] = json!("/closed");
    same("working directory", b.output()?, "/closed")
}

fn failed(what: &str, error: &std::io::Error) -> crate::oci::Failure {
    crate::oci::Failure::Violated(format!("{what}: {error}"))
}

fn user(g: &Ground) -> Checked {
    let (uid, gid) = (random::number(1..70_000), random::number(1..70_000));
    let mut b = Bundle::new(g, "grep -E '^(Uid|Gid):' /proc/self/status")?;
    b.config["process"]["user"] = json!({"uid": uid, "gid": gid});
    let wanted = format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}");
    same("all four ids", b.output()?, wanted)
}

fn additional_gids(g: &Ground) -> Checked {
    let mut gids: Vec<u32> = (0..5).map(|_| random::number(1..70_000)).collect();
    let mut b = Bundle::new(g, "grep Groups: /proc/self/status")?;
    b.config["process"]["user"]["additionalGids"] = json!(gids);
    gids.sort_unstable();
    gids.dedup();
    let mut seen: Vec<u32> =
        b.output()?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    seen.retain(|&gid| gid != 0);
    seen.dedup();
    same("groups", seen, gids)
}

fn no_groups(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "grep Groups: /proc/self/status")?;
    b.config["process"]["user"] = json!({"uid": 7, "gid": 8});
    b.save()?;
    let mut argv = ["setpriv", "--groups", "4321,4322"].map(str::to_owned).to_vec();
    argv.extend(g.runtime.argv.clone());
    argv.extend(["--root", "state", "run", &b.id].map(str::to_owned));
    let got = crate::oci::call::Call::new(&b.path(""), argv).go()?.ok()?;
    let groups: Vec<&str> = got.split_whitespace().skip(1).filter(|gid| *gid != "8").collect();
    want(groups.is_empty(), "groups of the caller", groups)
}

fn umask(g: &Ground) -> Checked {
    let mask = random::number(0..0o1000);
    let mut b = Bundle::new(g, "grep Umask: /proc/self/status")?;
    b.config["process"]["user"]["umask"] = json!(mask);
    same("umask", b.output()?, format!("Umask:\t{mask:04o}"))
}

fn umask_default(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "grep Umask: /proc/self/status")?;
    b.save()?;
    let mut argv = ["sh", "-c", "umask 077; exec \"$@\"", "sh"].map(str::to_owned).to_vec();
    argv.extend(g.runtime.argv.clone());
    argv.extend(["--root", "state", "run", &b.id].map(str::to_owned));
    let got = crate::oci::call::Call::new(&b.path(""), argv).go()?;
    same("umask", got.ok()?.trim_end(), "Umask:\t0022")
}

fn no_new_privileges(g: &Ground) -> Checked {
    for (given, wanted) in [(Some(true), 1), (Some(false), 0), (None, 0)] {
        let mut b = Bundle::new(g, "grep NoNewPrivs: /proc/self/status")?;
        b.config["process"]["noNewPrivileges"] = json!(given);
        same("NoNewPrivs", b.output()?, format!("NoNewPrivs:\t{wanted}"))?;
    }
    Ok(())
}

/// A line of /proc/self/limits: soft and hard.
fn limit(text: &str, name: &str) -> Vec<String> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(|rest| rest.split_whitespace().take(2).map(str::to_owned).collect())
        .unwrap_or_default()
}

fn rlimits(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/limits"]);
    let mut wanted = Vec::new();
    let mut given = Vec::new();
    for (kind, name) in [
        ("RLIMIT_NOFILE", "Max open files"),
        ("RLIMIT_CORE", "Max core file size"),
        ("RLIMIT_CPU", "Max cpu time"),
        ("RLIMIT_MEMLOCK", "Max locked memory"),
        ("RLIMIT_SIGPENDING", "Max pending signals"),
        ("RLIMIT_NPROC", "Max processes"),
    ] {
        let (soft, hard) = (random::number(100..900), random::number(900..1900));
        given.push(json!({"type": kind, "soft": soft, "hard": hard}));
        wanted.push((name, vec![soft.to_string(), hard.to_string()]));
    }
    b.config["process"]["rlimits"] = Value::Array(given);
    let got = b.output()?;
    for (name, values) in wanted {
        same(name, limit(&got, name), values)?;
    }
    Ok(())
}

fn rlimits_inherited(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/limits"]);
    let ours = read("/proc/self/limits")?;
    let got = b.output()?;
    for name in ["Max open files", "Max stack size", "Max core file size", "Max processes"] {
        same(name, limit(&got, name), limit(&ours, name))?;
    }
    Ok(())
}

fn oom_score_adj(g: &Ground) -> Checked {
    let score = random::number(500..1000);
    let mut b = Bundle::new(g, "cat /proc/self/oom_score_adj")?;
    b.config["process"]["oomScoreAdj"] = json!(score);
    same("oom_score_adj", b.output()?, score.to_string())
}

fn oom_score_adj_unset(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "cat /proc/self/oom_score_adj")?;
    same("oom_score_adj", b.output()?, read("/proc/self/oom_score_adj")?)
}

fn descriptors(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["ls", "/proc/self/fd"]);
    b.save()?;
    let got = b.call(&["run", &b.id]).redirects("9</ 7</etc 3</dev/null").go()?.ok()?;
    let fds: Vec<&str> = got.split_whitespace().collect();
    same("descriptors, the last is that of ls", fds, ["0", "1", "2", "3"])
}

fn preserve_fds(g: &Ground) -> Checked {
    let (one, two) = (random::token(9), random::token(9));
    let mut b = Bundle::new(
        g,
        "cat <&3; cat <&4; [ ! -e /proc/$$/fd/5 ] && [ ! -e /proc/$$/fd/6 ] && echo none",
    )?;
    b.save()?;
    crate::oci::write(b.path("one"), &one)?;
    crate::oci::write(b.path("two"), &two)?;
    let run = b.call(&["run", "--preserve-fds", "2", &b.id]);
    let got = run.redirects("3<one 4<two 5</ 6</").go()?;
    has("what was read", &got.stdout, &format!("{one}{two}"))?;
    want(got.stdout.trim_end().ends_with("none"), "further descriptors", got.to_string())
}

fn listen_fds(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(g, "echo $LISTEN_FDS $LISTEN_PID; cat <&3")?;
    b.save()?;
    crate::oci::write(b.path("one"), &word)?;
    let line = "export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\" 3<one 4</";
    let mut argv = ["sh", "-c", line, "sh"].map(str::to_owned).to_vec();
    argv.extend(g.runtime.argv.clone());
    argv.extend(["--root", "state", "run", &b.id].map(str::to_owned));
    let got = crate::oci::call::Call::new(&b.path(""), argv).go()?.ok()?;
    same("variables and what was read", got.as_str(), format!("1 1\n{word}").as_str())
}

fn session(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/stat"]);
    let got = b.output()?;
    let fields: Vec<&str> = got.split_whitespace().collect();
    same("group and session", &fields[4..6], ["1", "1"])
}

fn signals(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["grep", "-E", "^Sig(Blk|Ign|Cgt):", "/proc/self/status"]);
    let got = b.output()?;
    // What the caller ignores stays ignored, as after any exec.
    let look = ["grep", "SigIgn:", "/proc/self/status"].map(str::to_owned).to_vec();
    let ignored = crate::oci::call::Call::new(&b.path(""), look).go()?.ok()?;
    let none = "\t0000000000000000";
    same("signals", got, format!("SigBlk:{none}\n{}\nSigCgt:{none}", ignored.trim_end()))
}

fn first(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "echo $$ $PPID; ls -d /proc/[0-9]*")?;
    same("pid, parent, processes", b.output()?, "1 0\n/proc/1")
}

/// Nothing of the same user can look into the process that becomes the container.
fn dumpable(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.config["process"]["user"] = json!({"uid": 4242, "gid": 4242});
    b.create()?;
    let pid = b.pid()?;
    let look = format!("ls -l /proc/{pid}/fd /proc/{pid}/exe; cat /proc/{pid}/maps");
    let argv =
        ["setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups", "sh", "-c", &look];
    let call = crate::oci::call::Call::new(&b.path(""), argv.map(str::to_owned).to_vec());
    let got = call.go()?;
    want(!got.stdout.contains("->") && !got.stdout.contains("heap"), "seen", got.to_string())
}

fn personality(g: &Ground) -> Checked {
    for (domain, machine) in [("LINUX32", "i686"), ("LINUX", "x86_64")] {
        let mut b = Bundle::new(g, "uname -m")?;
        b.config["linux"]["personality"] = json!({"domain": domain});
        same("machine", b.output()?, machine)?;
    }
    Ok(())
}

fn personality_unknown(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "uname -m")?;
    let name = random::token(7).to_uppercase();
    b.config["linux"]["personality"] = json!({"domain": name});
    has("run", &b.refused()?, &name)
}

/// nice, real-time priority and policy of a process, from its stat.
fn scheduling(stat: &str) -> Checked<[String; 3]> {
    let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after.split_whitespace().collect();
    let field = |at: usize| fields.get(at - 3).map(|f| (*f).to_owned()).unwrap_or_default();
    Ok([field(19), field(40), field(41)])
}

fn scheduled(g: &Ground, scheduler: Value) -> Checked<[String; 3]> {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/stat"]);
    b.config["process"]["scheduler"] = scheduler;
    scheduling(&b.output()?)
}

fn scheduler_batch(g: &Ground) -> Checked {
    let nice = random::number(1..19);
    let got = scheduled(g, json!({"policy": "SCHED_BATCH", "nice": nice}))?;
    same("nice, priority, policy", got, [nice.to_string(), "0".into(), "3".into()])
}

fn scheduler_nice(g: &Ground) -> Checked {
    let nice = random::number(1..19);
    let got = scheduled(g, json!({"policy": "SCHED_OTHER", "nice": nice}))?;
    same("nice, priority, policy", got, [nice.to_string(), "0".into(), "0".into()])
}

fn scheduler_fifo(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/stat"]);
    // Without a group's real-time budget no process can have this; the root's is looked at.
    b.config["linux"]["resources"] = json!({});
    let priority = random::number(1..90);
    b.config["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": priority, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    let ran = b.run()?;
    if ran.code != 0 && ran.stderr.to_lowercase().contains("operation not permitted") {
        return skip("no real-time budget, or no right to it, on this machine");
    }
    let got = scheduling(&ran.ok()?)?;
    same("priority, policy", &got[1..], [priority.to_string(), "1".into()])
}

fn scheduler_unknown(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let name = format!("SCHED_{}", random::token(5).to_uppercase());
    b.config["process"]["scheduler"] = json!({"policy": name});
    has("run", &b.refused()?, &name)
}

fn io_priority(g: &Ground) -> Checked {
    let number = random::number(0..8);
    for (class, word) in [("IOPRIO_CLASS_BE", "best-effort"), ("IOPRIO_CLASS_IDLE", "idle")] {
        let mut b = Bundle::new(g, "ionice -p 1")?;
        b.config["process"]["ioPriority"] = json!({"class": class, "priority": number});
        let got = b.output()?;
        has("class", &got, word)?;
        if word == "best-effort" {
            has("priority", &got, &format!("prio {number}"))?;
        }
    }
    Ok(())
}

/// `final` is what exec's program has; the container's own processes are as the caller's.
fn cpu_affinity(g: &Ground) -> Checked {
    if std::thread::available_parallelism().map_or(1, std::num::NonZero::get) < 2 {
        return skip("one processor");
    }
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let cpu = random::number(0..2).to_string();
    b.config["process"]["execCPUAffinity"] = json!({"initial": "0-1", "final": cpu});
    b.start()?;
    let got = b.ok(&["exec", &b.id, "grep", "Cpus_allowed_list", "/proc/self/status"])?;
    same("processors of exec", got.trim_end(), format!("Cpus_allowed_list:\t{cpu}").as_str())?;
    let init = read(format!("/proc/{}/status", b.pid()?))?;
    let own = read("/proc/self/status")?;
    let line = |text: &str| {
        text.lines().find(|l| l.starts_with("Cpus_allowed_list")).unwrap_or_default().to_owned()
    };
    same("processors of the container", line(&init), line(&own))?;
    b.end()
}

fn memory_policy(g: &Ground) -> Checked {
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        return skip("no memory policies in this kernel");
    }
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/numa_maps"]);
    b.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    has("policy of the memory", &b.output()?, "bind:0")?;
    let mut b = Bundle::new(g, "true")?;
    b.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_NONSENSE", "nodes": "0"});
    has("run", &b.refused()?, "MPOL_NONSENSE")
}
