//! The six kinds of hooks.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, json, lacks, read, same, want};
use crate::random;
use serde_json::{Value, json};

pub(super) const ALL: &[Property] = &[
    p("hooks/order", order),
    p("hooks/poststart-after-the-program-s-start", poststart_late),
    p("hooks/several-of-a-kind", several),
    p("hooks/state-on-stdin", state),
    p("hooks/status-at-each", statuses),
    p("hooks/create-container-begins-in-the-root", begins_in_root),
    p("hooks/args-and-env", args_env),
    p("hooks/no-environment-of-the-caller", no_env),
    p("hooks/namespaces", namespaces),
    p("hooks/start-container-is-inside", inside),
    p("hooks/create-runtime-sees-the-bundle", sees_bundle),
    p("hooks/prestart-before-the-program", before_program),
    p("hooks/failed-prestart", |g| failed(g, "prestart")),
    p("hooks/failed-create-runtime", |g| failed(g, "createRuntime")),
    p("hooks/failed-create-container", |g| failed(g, "createContainer")),
    p("hooks/failed-start-container", failed_start),
    p("hooks/failed-poststart", failed_poststart),
    p("hooks/failed-poststop", failed_poststop),
    p("hooks/timeout", timeout),
    p("hooks/timeout-is-not-waited-for", no_timeout),
    p("hooks/missing-program", missing),
    p("hooks/poststop-at-delete", poststop),
    p("hooks/namespace-made-ready-by-a-hook", network_ready),
];

/// A hook that runs a line of shell on the host.
fn shell(line: &str) -> Value {
    // One that leaves its input unread may end before the runtime has written it.
    let line =
        if line.contains("$(") { line.to_owned() } else { format!("cat > /dev/null; {line}") };
    json!({"path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/usr/sbin:/usr/bin:/bin"]})
}

const OUTSIDE: [&str; 5] =
    ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

fn order(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "echo program >> /log")?;
    let log = b.root("log").display().to_string();
    for kind in OUTSIDE {
        b.config["hooks"][kind] = json!([shell(&format!("echo {kind} >> {log}"))]);
    }
    b.config["hooks"]["startContainer"] = json!([shell("echo startContainer >> /log")]);
    b.output()?;
    let got = read(&log)?;
    let mut seen: Vec<&str> = got.lines().collect();
    // poststart runs beside the program; when it may begin is another property.
    want(seen.contains(&"poststart"), "poststart", &seen)?;
    seen.retain(|kind| *kind != "poststart");
    let wanted =
        ["prestart", "createRuntime", "createContainer", "startContainer", "program", "poststop"];
    same("order", seen, wanted)
}

/// Not before what comes before the program is done.
fn poststart_late(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let log = b.root("log").display().to_string();
    b.config["hooks"]["startContainer"] = json!([shell("sleep 0.3; echo startContainer >> /log")]);
    b.config["hooks"]["poststart"] = json!([shell(&format!("echo poststart >> {log}"))]);
    b.start()?;
    same("order", read(&log)?, "startContainer\npoststart")
}

/// As runc has it; the specification says nothing of it.
fn begins_in_root(g: &Ground) -> Checked {
    let name = random::name("f");
    let mut b = Bundle::new(g, &format!("cat /{name}"))?;
    b.config["root"]["readonly"] = json!(false);
    b.config["hooks"]["createContainer"] = json!([shell(&format!("echo here > {name}"))]);
    same("written by the hook", b.output()?, "here")
}

fn several(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let log = b.path("log").display().to_string();
    let hooks: Vec<Value> = (0..4).map(|i| shell(&format!("echo {i} >> {log}"))).collect();
    b.config["hooks"]["createRuntime"] = json!(hooks);
    b.output()?;
    same("order", read(&log)?, "0\n1\n2\n3")
}

/// Every state that the hooks were given.
fn states(b: &mut Bundle<'_>) -> Checked<Vec<(String, Value)>> {
    let log = b.path("log").display().to_string();
    for kind in OUTSIDE {
        b.config["hooks"][kind] = json!([shell(&format!("echo \"{kind} $(cat)\" >> {log}"))]);
    }
    b.output()?;
    let text = read(&log)?;
    let mut found = Vec::new();
    for line in text.lines() {
        let (kind, state) = line.split_once(' ').unwrap_or_default();
        found.push((kind.to_owned(), json(state)?));
    }
    Ok(found)
}

fn state(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let word = random::token(9);
    b.config["annotations"] = json!({"org.example.word": word});
    let bundle = b.path("").display().to_string();
    let found = states(&mut b)?;
    same("hooks", found.len(), OUTSIDE.len())?;
    for (kind, state) in found {
        same(&kind, &state["id"], b.id.as_str())?;
        same(&kind, &state["bundle"], bundle.trim_end_matches('/'))?;
        same(&kind, &state["annotations"]["org.example.word"], word.as_str())?;
        want(state["ociVersion"].as_str().is_some_and(|v| v.starts_with("1.")), &kind, &state)?;
        // As seen from where the hook runs: createContainer hooks are in the container's namespaces.
        match kind.as_str() {
            "poststop" => {}
            "createContainer" => same(&kind, &state["pid"], 1)?,
            _ => want(state["pid"].as_u64().is_some_and(|pid| pid > 1), &kind, &state)?,
        }
    }
    Ok(())
}

fn statuses(g: &Ground) -> Checked {
    for (kind, state) in states(&mut Bundle::new(g, "sleep 0.3")?)? {
        let wanted = match kind.as_str() {
            "poststart" => "running",
            "poststop" => "stopped",
            _ => "creating",
        };
        same(&kind, &state["status"], wanted)?;
    }
    Ok(())
}

fn args_env(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let log = b.path("log").display().to_string();
    let (word, value) = (random::token(6), random::token(6));
    let line = format!("echo \"$0 $1 $2 $VALUE\" > {log}");
    b.config["hooks"]["createRuntime"] = json!([{"path": "/bin/sh",
        "args": ["sh", "-c", line, "zero", word, "a b"], "env": [format!("VALUE={value}")]}]);
    b.output()?;
    same("what it saw", read(&log)?, format!("zero {word} a b {value}"))
}

fn no_env(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let log = b.path("log").display().to_string();
    b.config["hooks"]["createRuntime"] = json!([{"path": "/usr/bin/env", "args": ["env"]},
        {"path": "/bin/sh", "args": ["sh", "-c", format!("/usr/bin/env > {log}")]}]);
    b.save()?;
    b.call(&["run", &b.id]).env("OF_THE_CALLER", "1").go()?.ok()?;
    lacks("environment", &read(&log)?, "OF_THE_CALLER")
}

fn namespaces(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "readlink /proc/self/ns/mnt; readlink /proc/self/ns/net")?;
    let log = b.path("log").display().to_string();
    for kind in OUTSIDE {
        let line = format!(
            "echo {kind} $(readlink /proc/self/ns/net) $(readlink /proc/self/ns/mnt) >> {log}"
        );
        b.config["hooks"][kind] = json!([shell(&line)]);
    }
    let got = b.output()?;
    let net = got.lines().nth(1).unwrap_or_default().to_owned();
    let host = std::fs::read_link("/proc/self/ns/net").unwrap_or_default().display().to_string();
    for line in read(&log)?.lines() {
        let wanted = if line.starts_with("createContainer") { &net } else { &host };
        has("network namespace", line, wanted)?;
        if line.starts_with("createContainer") {
            has("mount namespace", line, got.lines().next().unwrap_or_default())?;
        }
    }
    Ok(())
}

/// It finds its program in the container's root, after the pivot.
fn inside(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "cat /seen")?;
    let name = random::token(8);
    b.file(&name, "#!/bin/sh\ncat > /state; echo hook $$ > /seen\n", 0o755)?;
    b.config["hooks"]["startContainer"] = json!([{"path": format!("/{name}")}]);
    has("what it wrote", &b.output()?, "hook ")?;
    same("state", &json(&read(b.root("state"))?)?["id"], b.id.as_str())
}

fn sees_bundle(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "cat /by-hook")?;
    let word = random::token(8);
    let file = b.root("by-hook").display().to_string();
    b.config["hooks"]["createRuntime"] = json!([shell(&format!("echo {word} > {file}"))]);
    same("file", b.output()?, word)
}

fn before_program(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "echo program >> /log; exec sleep 1000")?;
    let log = b.root("log").display().to_string();
    b.config["hooks"]["prestart"] = json!([shell(&format!("sleep 0.2; echo hook >> {log}"))]);
    b.create()?;
    same("after create", read(&log)?, "hook")?;
    b.ok(&["start", &b.id]).map(drop)
}

fn failed(g: &Ground, kind: &str) -> Checked {
    let (code, word) = (random::exit_code(), random::token(9));
    let mut b = Bundle::new(g, "touch /started")?;
    b.config["hooks"][kind] = json!([shell(&format!("echo {word} >&2; exit {code}"))]);
    let said = b.refused()?;
    has("its code", &said, &code.to_string())?;
    has("its words", &said, &word)?;
    want(!b.root("started").exists(), "the program has run", "")
}

fn failed_start(g: &Ground) -> Checked {
    let code = random::exit_code();
    let mut b = Bundle::new(g, "touch /started")?;
    b.config["hooks"]["startContainer"] = json!([shell(&format!("exit {code}"))]);
    let ran = b.run()?;
    want(ran.code != 0, "exit code", ran.to_string())?;
    want(!b.root("started").exists(), "the program has run", "")?;
    b.nothing_left()
}

/// Since 1.3 the specification wants the container stopped and the error told.
fn failed_poststart(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["hooks"]["poststart"] = json!([shell("exit 7")]);
    b.create()?;
    let said = b.fails(&["start", &b.id])?;
    has("start", &said, "poststart")?;
    b.until("stopped").or_else(|_| has("state", &b.fails(&["state", &b.id])?, "does not exist"))
}

fn failed_poststop(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let log = b.path("log").display().to_string();
    b.config["hooks"]["poststop"] = json!([shell("exit 7"), shell(&format!("echo on > {log}"))]);
    b.start()?;
    b.until("stopped")?;
    b.ok(&["delete", &b.id])?;
    b.nothing_left()?;
    same("the hook after it", read(&log)?, "on")
}

fn timeout(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.config["hooks"]["createRuntime"] =
        json!([{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]);
    let begin = std::time::Instant::now();
    has("run", &b.refused()?, "hook ran past specified timeout of 1.0s")?;
    want(begin.elapsed().as_secs() < 10, "seconds", begin.elapsed())
}

fn no_timeout(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.config["hooks"]["createRuntime"] =
        json!([{"path": "/bin/true", "args": ["true"], "timeout": 1000}]);
    b.output().map(drop)
}

fn missing(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let path = format!("/{}", random::token(9));
    b.config["hooks"]["createRuntime"] = json!([{"path": path}]);
    has("run", &b.refused()?, &path)
}

fn poststop(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let log = b.path("log").display().to_string();
    b.config["hooks"]["poststop"] = json!([shell(&format!("echo \"$(cat)\" >> {log}"))]);
    b.start()?;
    b.ok(&["kill", &b.id, "KILL"])?;
    b.until("stopped")?;
    want(!std::path::Path::new(&log).exists(), "it has run before delete", "")?;
    b.ok(&["delete", &b.id])?;
    let state = json(&read(&log)?)?;
    same("id", &state["id"], b.id.as_str())
}

/// As container networks do it: the hook enters the namespace of the state's pid.
fn network_ready(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "ip link show made0 | head -n 1")?;
    let line = "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
                nsenter -t $pid -n ip link add made0 type veth peer name made1";
    b.config["hooks"]["createRuntime"] = json!([shell(line)]);
    has("the link", &b.output()?, "made0")
}
