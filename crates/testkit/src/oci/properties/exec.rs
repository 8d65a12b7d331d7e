//! `exec`: further processes in a container.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, read, same, want};
use crate::random;
use serde_json::{Value, json};

pub(super) const ALL: &[Property] = &[
    p("exec/exit-code-and-streams", streams),
    p("exec/exit-code-of-a-signal", signal),
    p("exec/standard-input", stdin),
    p("exec/namespaces-of-the-container", namespaces),
    p("exec/environment", environment),
    p("exec/cwd", cwd),
    p("exec/cwd-missing", cwd_missing),
    p("exec/user", user),
    p("exec/user-bad", user_bad),
    p("exec/additional-gids", additional_gids),
    p("exec/user-groups-exactly", groups),
    p("exec/capabilities", capabilities),
    p("exec/capabilities-of-another-user", user_capabilities),
    p("exec/no-new-privileges", no_new_privileges),
    p("exec/limits-of-the-container", limits),
    p("exec/process-file", process_file),
    p("exec/process-file-without-a-word-of-rights", process_bare),
    p("exec/process-file-bad", process_bad),
    p("exec/detach-and-pid-file", detach),
    p("exec/descriptors", descriptors),
    p("exec/preserve-fds", preserve_fds),
    p("exec/program-not-in-path", not_in_path),
    p("exec/program-missing", missing),
    p("exec/program-not-executable", not_executable),
    p("exec/program-is-a-directory", directory),
    p("exec/flags-end-at-the-id", flags_end),
    p("exec/no-program", no_program),
    p("exec/created-container", created),
    p("exec/stopped-container", stopped),
    p("exec/paused-container", paused),
    p("exec/ignore-paused", ignore_paused),
    p("exec/unknown-capability", unknown_capability),
    p("exec/many-at-once", many),
    p("exec/cgroup", cgroup),
    p("exec/umask", umask),
    p("exec/oom-score-adj", oom_score_adj),
];

fn running(g: &Ground) -> Checked<Bundle<'_>> {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    Ok(b)
}

fn streams(g: &Ground) -> Checked {
    let b = running(g)?;
    let (out, err, code) = (random::token(9), random::token(9), random::exit_code());
    let script = format!("echo {out}; echo {err} >&2; exit {code}");
    let ran = b.rt(&["exec", &b.id, "sh", "-c", &script])?;
    same("exit code", ran.code, code)?;
    same("stdout", ran.stdout.trim_end(), out.as_str())?;
    same("stderr", ran.stderr.trim_end(), err.as_str())
}

fn signal(g: &Ground) -> Checked {
    let b = running(g)?;
    for number in [9, 15, 10] {
        let ran = b.rt(&["exec", &b.id, "sh", "-c", &format!("kill -{number} $$")])?;
        same("exit code", ran.code, 128 + number)?;
    }
    Ok(())
}

fn stdin(g: &Ground) -> Checked {
    let b = running(g)?;
    let word = random::token(40);
    same("output", b.call(&["exec", &b.id, "cat"]).stdin(word.clone()).go()?.ok()?, word)
}

fn namespaces(g: &Ground) -> Checked {
    let b = running(g)?;
    let pid = b.pid()?;
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let wanted = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap_or_default();
        let path = format!("/proc/self/ns/{kind}");
        let got = b.ok(&["exec", &b.id, "readlink", &path])?;
        same(kind, got.trim_end(), wanted.display().to_string().as_str())?;
    }
    Ok(())
}

fn environment(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["process"]["env"] = json!(["PATH=/bin", "OWN=of the container"]);
    b.start()?;
    let value = random::token(9);
    let given = format!("GIVEN={value} x");
    let got = b.ok(&["exec", "-e", &given, "-e", "OWN=changed", &b.id, "env"])?;
    has("given", &got, &given)?;
    has("path", &got, "PATH=/bin")?;
    // Once: getenv(3) finds the first, many a shell the last.
    let own: Vec<&str> = got.lines().filter(|line| line.starts_with("OWN=")).collect();
    same("changed", own, ["OWN=changed"])
}

fn cwd(g: &Ground) -> Checked {
    let b = running(g)?;
    same("cwd", b.ok(&["exec", "--cwd", "/etc", &b.id, "pwd"])?, "/etc\n")?;
    same("cwd of the container", b.ok(&["exec", &b.id, "pwd"])?, "/\n")
}

fn cwd_missing(g: &Ground) -> Checked {
    let b = running(g)?;
    let dir = format!("/{}", random::token(9));
    let ran = b.rt(&["exec", "--cwd", &dir, &b.id, "pwd"])?;
    // It is made, as for the container's own process, or refused by its name.
    if ran.code == 0 {
        same("cwd", ran.line(), dir.as_str())
    } else {
        has("exec", &ran.stderr, &dir)
    }
}

fn user(g: &Ground) -> Checked {
    let b = running(g)?;
    let (uid, gid) = (random::number(1..70_000), random::number(1..70_000));
    let look = ["grep", "-E", "^(Uid|Gid):", "/proc/self/status"];
    for (given, gid) in [(format!("{uid}:{gid}"), gid), (uid.to_string(), 0)] {
        let mut args = vec!["exec", "--user", &given, &b.id];
        args.extend(look);
        let wanted = format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}");
        same("ids", b.ok(&args)?.trim_end(), wanted.as_str())?;
    }
    Ok(())
}

fn user_bad(g: &Ground) -> Checked {
    let b = running(g)?;
    for user in ["4294967296", "-1", "x", "1:x", "99999999999999999999"] {
        b.fails(&["exec", "--user", user, &b.id, "id"])?;
    }
    Ok(())
}

fn groups_line(b: &Bundle<'_>, flags: &[&str]) -> Checked<Vec<String>> {
    let mut args = vec!["exec"];
    args.extend(flags);
    args.extend([b.id.as_str(), "grep", "Groups:", "/proc/self/status"]);
    Ok(b.ok(&args)?.split_whitespace().skip(1).map(str::to_owned).collect())
}

fn additional_gids(g: &Ground) -> Checked {
    let b = running(g)?;
    let (one, two) = (random::number(2..9000), random::number(9000..70_000));
    let got = groups_line(&b, &["-g", &one.to_string(), "-g", &two.to_string()])?;
    for gid in [one, two] {
        want(got.contains(&gid.to_string()), "groups", (gid, &got))?;
    }
    Ok(())
}

fn groups(g: &Ground) -> Checked {
    let b = running(g)?;
    let got = groups_line(&b, &["--user", "1000:1000"])?;
    want(got.iter().all(|gid| gid == "1000"), "groups", got)
}

fn capability_lines(b: &Bundle<'_>, flags: &[&str]) -> Checked<String> {
    let mut args = vec!["exec"];
    args.extend(flags);
    args.extend([b.id.as_str(), "grep", "Cap", "/proc/self/status"]);
    b.ok(&args)
}

fn capabilities(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.capabilities(&["CAP_CHOWN", "CAP_KILL"]);
    b.start()?;
    has("as the container", &capability_lines(&b, &[])?, "CapEff:\t0000000000000021")?;
    let added = capability_lines(&b, &["--cap", "CAP_SYS_PTRACE"])?;
    has("with one more", &added, "CapEff:\t0000000000080021")?;
    has("with one more", &added, "CapInh:\t0000000000000000")
}

fn user_capabilities(g: &Ground) -> Checked {
    let b = running(g)?;
    let got = capability_lines(&b, &["--user", "1000"])?;
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        has(set, &got, &format!("{set}:\t0000000000000000"))?;
    }
    Ok(())
}

fn no_new_privileges(g: &Ground) -> Checked {
    let b = running(g)?;
    let look = |flags: &[&str]| {
        let mut args = vec!["exec"];
        args.extend(flags);
        args.extend([b.id.as_str(), "grep", "NoNewPrivs", "/proc/self/status"]);
        b.ok(&args)
    };
    same("with the flag", look(&["--no-new-privs"])?.trim_end(), "NoNewPrivs:\t1")?;
    same("without", look(&[])?.trim_end(), "NoNewPrivs:\t0")
}

fn limits(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let soft = random::number(50..900);
    b.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": soft, "hard": 1000}]);
    b.start()?;
    same("open files", b.exec("ulimit -n")?, soft.to_string())
}

fn process(args: &Value) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"})
}

fn process_file(g: &Ground) -> Checked {
    let b = running(g)?;
    let (word, uid) = (random::token(9), random::number(1..60_000));
    let mut process = process(&json!([
        "sh",
        "-c",
        "echo $WORD; pwd; id -u; id -G; umask; grep -E 'NoNew|CapEff' /proc/self/status"
    ]));
    process["user"] = json!({"uid": uid, "gid": 5, "additionalGids": [66], "umask": 7});
    process["env"] = json!(["PATH=/bin", format!("WORD={word}")]);
    process["cwd"] = json!("/tmp");
    process["noNewPrivileges"] = json!(true);
    crate::oci::write(b.path("p.json"), process.to_string())?;
    for flag in ["-p", "--process"] {
        let got = b.ok(&["exec", flag, "p.json", &b.id])?;
        let wanted = format!("{word}\n/tmp\n{uid}\n5 66\n0007\n");
        has("output", &got, &wanted)?;
        has("privileges", &got, "NoNewPrivs:\t1")?;
        has("capabilities", &got, "CapEff:\t0000000000000000")?;
    }
    Ok(())
}

/// What the process does not say of itself it has from the container.
fn process_bare(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let score = random::number(500..1000);
    b.config["process"]["oomScoreAdj"] = json!(score);
    for set in ["bounding", "effective", "permitted"] {
        b.config["process"]["capabilities"][set] = json!(["CAP_CHOWN", "CAP_KILL"]);
    }
    b.start()?;
    let look = "cat /proc/self/oom_score_adj; grep CapEff /proc/self/status";
    crate::oci::write(b.path("p.json"), process(&json!(["sh", "-c", look])).to_string())?;
    let got = b.ok(&["exec", "-p", "p.json", &b.id])?;
    same("output", got.as_str(), format!("{score}\nCapEff:\t0000000000000021\n").as_str())
}

fn process_bad(g: &Ground) -> Checked {
    let b = running(g)?;
    for (field, value) in [("cwd", json!("tmp")), ("args", json!([]))] {
        let mut process = process(&json!(["true"]));
        process[field] = value;
        crate::oci::write(b.path("p.json"), process.to_string())?;
        b.fails(&["exec", "-p", "p.json", &b.id])?;
    }
    crate::oci::write(b.path("p.json"), "{")?;
    b.fails(&["exec", "-p", "p.json", &b.id]).map(drop)
}

fn detach(g: &Ground) -> Checked {
    let b = running(g)?;
    let word = random::token(9);
    let script = format!("echo {word} > /tmp/word; exec sleep 777");
    b.ok(&["exec", "-d", "--pid-file", "e.pid", &b.id, "sh", "-c", &script])?;
    let pid = read(b.path("e.pid"))?;
    crate::wait::until("the program", crate::oci::call::LIMIT, || {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .ok()
            .filter(|line| line.starts_with(b"sleep\x00777"))
    })?;
    same("file", read(b.root("tmp/word"))?, word)?;
    b.end()
}

fn descriptors(g: &Ground) -> Checked {
    let b = running(g)?;
    let exec = b.call(&["exec", &b.id, "ls", "/proc/self/fd"]);
    let got = exec.redirects("9</ 7</etc 3</dev/null").go()?.ok()?;
    let fds: Vec<&str> = got.split_whitespace().collect();
    same("descriptors, the last is that of ls", fds, ["0", "1", "2", "3"])
}

fn preserve_fds(g: &Ground) -> Checked {
    let b = running(g)?;
    let word = random::token(9);
    crate::oci::write(b.path("one"), &word)?;
    let exec = b.call(&[
        "exec",
        "--preserve-fds",
        "1",
        &b.id,
        "sh",
        "-c",
        "cat <&3; ls /proc/$$/fd; true",
    ]);
    let got = exec.redirects("3<one 4</ 5</").go()?.ok()?;
    has("what was read", &got, &word)?;
    want(!got.contains("\n4\n") && !got.contains("\n5\n"), "further descriptors", got)
}

fn refused(g: &Ground, program: &str, wanted: &str) -> Checked {
    let b = running(g)?;
    let said = b.fails(&["exec", &b.id, program])?.replace('\\', "");
    let wanted =
        format!("exec failed: unable to start container process: exec: \"{program}\": {wanted}");
    has("exec", &said, &wanted)?;
    b.end()
}

fn not_in_path(g: &Ground) -> Checked {
    refused(g, &random::token(9), "executable file not found in $PATH")
}

fn missing(g: &Ground) -> Checked {
    let program = format!("/{}", random::token(9));
    refused(g, &program, &format!("stat {program}: no such file or directory"))
}

fn not_executable(g: &Ground) -> Checked {
    refused(g, "/etc/passwd", "permission denied")
}

fn directory(g: &Ground) -> Checked {
    refused(g, "/etc", "is a directory")
}

fn flags_end(g: &Ground) -> Checked {
    let b = running(g)?;
    same("output", b.ok(&["exec", &b.id, "echo", "-d", "--user"])?, "-d --user\n")
}

fn no_program(g: &Ground) -> Checked {
    let b = running(g)?;
    let ran = b.rt(&["exec", &b.id])?;
    want(ran.code != 0, "exec", ran.to_string())
}

fn created(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /started")?;
    b.create()?;
    let word = random::token(8);
    same("output", b.ok(&["exec", &b.id, "echo", &word])?.trim_end(), word.as_str())?;
    want(!b.root("started").exists(), "the container's program has run", "")?;
    same("status", b.status()?, "created")
}

fn stopped(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.start()?;
    b.until("stopped")?;
    has("exec", &b.fails(&["exec", &b.id, "true"])?, "cannot exec in a stopped container")
}

fn paused(g: &Ground) -> Checked {
    super::manage::needs_freezer(g)?;
    let b = running(g)?;
    b.ok(&["pause", &b.id])?;
    has("exec", &b.fails(&["exec", &b.id, "true"])?, "cannot exec in a paused container")?;
    b.ok(&["resume", &b.id])?;
    b.end()
}

fn ignore_paused(g: &Ground) -> Checked {
    super::manage::needs_freezer(g)?;
    let b = running(g)?;
    b.ok(&["pause", &b.id])?;
    let word = random::token(8);
    let pending = b.call(&["exec", "--ignore-paused", &b.id, "echo", &word]).start()?;
    // It waits in the frozen cgroup, or runs, and goes on with the container.
    std::thread::yield_now();
    b.ok(&["resume", &b.id])?;
    same("output", pending.wait()?.ok()?.trim_end(), word.as_str())?;
    b.end()
}

fn unknown_capability(g: &Ground) -> Checked {
    let b = running(g)?;
    let name = format!("CAP_{}", random::token(6).to_uppercase());
    let ran = b.rt(&["exec", "--cap", &name, &b.id, "true"])?;
    has("its name is told", &ran.stderr, &name)
}

fn many(g: &Ground) -> Checked {
    let b = running(g)?;
    let mut started = Vec::new();
    for _ in 0..8 {
        let word = random::token(8);
        started.push((b.call(&["exec", &b.id, "echo", &word]).start()?, word));
    }
    for (pending, word) in started {
        same("output", pending.wait()?.ok()?.trim_end(), word.as_str())?;
    }
    b.end()
}

/// In a cgroup below the container's.
fn cgroup(g: &Ground) -> Checked {
    super::manage::needs_freezer(g)?;
    let b = running(g)?;
    let below = b.cgroup("pids").join("below");
    if std::fs::create_dir(&below).is_err() {
        return crate::oci::skip("no controller pids of v1");
    }
    let got = b.ok(&["exec", "--cgroup", "pids:below", &b.id, "cat", "/proc/self/cgroup"]);
    drop(std::fs::remove_dir(&below));
    has("its cgroup", &got?, &format!("pids:/conformance-{}/below", b.id))?;
    b.end()
}

fn umask(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["process"]["user"]["umask"] = json!(0o27);
    b.start()?;
    same("umask", b.exec("umask")?, "0027")
}

fn oom_score_adj(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let score = random::number(500..1000);
    b.config["process"]["oomScoreAdj"] = json!(score);
    b.start()?;
    same("score", b.exec("cat /proc/self/oom_score_adj")?, score.to_string())
}
