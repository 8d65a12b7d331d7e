//! From create to delete, and what `state` says on the way.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, read, same, want};
use crate::{random, wait};
use serde_json::{Value, json};
use std::time::Duration;

pub(super) const ALL: &[Property] = &[
    p("lifecycle/run-exit-code-and-streams", run_streams),
    p("lifecycle/run-exit-code-of-a-signal", run_signal),
    p("lifecycle/run-passes-standard-input", run_stdin),
    p("lifecycle/run-removes-the-container", run_removes),
    p("lifecycle/run-detach", run_detach),
    p("lifecycle/create-does-not-start", create_waits),
    p("lifecycle/pid-file", pid_file),
    p("lifecycle/state-fields", state_fields),
    p("lifecycle/state-stopped", state_stopped),
    p("lifecycle/annotations-in-state", annotations),
    p("lifecycle/config-is-read-at-create", config_read_once),
    p("lifecycle/one-start-wins", start_race),
    p("lifecycle/bundle-flag", bundle_flag),
    p("lifecycle/bundle-relative", bundle_relative),
    p("lifecycle/root-path-absolute", absolute_root),
    p("lifecycle/delete-stopped", delete_stopped),
    p("lifecycle/delete-created", delete_created),
    p("lifecycle/delete-force-running", delete_force),
    p("lifecycle/delete-force-unknown", delete_force_unknown),
    p("lifecycle/stops-when-init-ends", init_ends),
    p("lifecycle/init-killed-before-start", killed_before_start),
    p("lifecycle/no-pivot", no_pivot),
    p("lifecycle/many-at-once", many),
];

/// Long beside a start, short beside the wait for one that hangs.
const SOON: Duration = Duration::from_secs(5);

fn run_streams(g: &Ground) -> Checked {
    let (out, err, code) = (random::token(9), random::token(9), random::exit_code());
    let ran = Bundle::new(g, &format!("echo {out}; echo {err} >&2; exit {code}"))?.run()?;
    same("exit code", ran.code, code)?;
    same("stdout", ran.stdout.as_str(), format!("{out}\n").as_str())?;
    same("stderr", ran.stderr.as_str(), format!("{err}\n").as_str())
}

fn run_signal(g: &Ground) -> Checked {
    for signal in [9, 15, 10] {
        let script = format!("sh -c 'kill -{signal} $$'");
        let mut b = Bundle::new(g, &script)?;
        // Process 1 is not killed by itself: here it is one of the host's pid namespace.
        b.without_namespace("pid");
        b.config["process"]["args"] = json!(["sh", "-c", format!("kill -{signal} $$")]);
        same("exit code", b.run()?.code, 128 + signal)?;
    }
    Ok(())
}

fn run_stdin(g: &Ground) -> Checked {
    let word = random::token(40);
    let mut b = Bundle::new(g, "cat")?;
    b.save()?;
    let got = b.call(&["run", &b.id]).stdin(word.clone()).go()?.ok()?;
    same("what cat read", got, word)
}

fn run_removes(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exit 5")?;
    same("exit code", b.run()?.code, 5)?;
    has("state", &b.fails(&["state", &b.id])?, "does not exist")?;
    b.nothing_left()
}

fn run_detach(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(g, &format!("echo {word}; exec sleep 1000"))?;
    b.save()?;
    let mut pending = b.call(&["run", "-d", "--pid-file", "pid", &b.id]).start()?;
    same("exit code", pending.wait_here()?.code, 0)?;
    pending.wait_for(&word)?;
    same("status", b.status()?, "running")?;
    same("pid", read(b.path("pid"))?, b.pid()?.to_string())?;
    b.end()
}

fn create_waits(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /started; exec sleep 1000")?;
    b.create()?;
    same("status", b.status()?, "created")?;
    let program = read(format!("/proc/{}/cmdline", b.pid()?))?;
    want(!program.starts_with("sh\0"), "the program before start", &program)?;
    want(!b.root("started").exists(), "the program has run before start", "")?;
    b.ok(&["start", &b.id])?;
    wait::until("the program's file", Duration::from_secs(9), || {
        b.root("started").exists().then_some(())
    })?;
    same("status", b.status()?, "running")?;
    b.end()
}

fn pid_file(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    let file = b.path("the pid");
    b.create_with(&["--pid-file", &file.display().to_string()])?;
    let data = std::fs::read_to_string(&file).unwrap_or_default();
    same("pid file, all of it", data, b.pid()?.to_string())
}

fn state_fields(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.create()?;
    for status in ["created", "running"] {
        let state = b.state()?;
        same("id", &state["id"], b.id.as_str())?;
        same("status", &state["status"], status)?;
        same("bundle", &state["bundle"], b.path("").display().to_string().trim_end_matches('/'))?;
        want(state["ociVersion"].as_str().is_some_and(|v| v.starts_with("1.")), "version", &state)?;
        let pid = state["pid"].as_u64().unwrap_or(0);
        want(pid > 1 && std::fs::exists(format!("/proc/{pid}")).unwrap_or(false), "pid", pid)?;
        let root = state["rootfs"].as_str().unwrap_or_default();
        same("rootfs", root, b.root("").display().to_string().trim_end_matches('/'))?;
        let created = state["created"].as_str().unwrap_or_default();
        want(created.starts_with("20") && created.ends_with('Z'), "created", created)?;
        if status == "created" {
            b.ok(&["start", &b.id])?;
        }
    }
    b.end()
}

fn state_stopped(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exit 3")?;
    b.start()?;
    b.until("stopped")?;
    let state = b.state()?;
    want(state["pid"].as_u64().unwrap_or(0) == 0, "pid of a stopped container", &state)?;
    same("id", &state["id"], b.id.as_str())
}

fn annotations(g: &Ground) -> Checked {
    let (key, value) = (format!("org.example.{}", random::token(5)), random::token(12));
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.config["annotations"] = json!({&key: &value, "other": ""});
    b.create()?;
    same("annotation", &b.state()?["annotations"][&key], value.as_str())
}

fn config_read_once(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(g, &format!("echo {word}"))?;
    let pending = b.create()?;
    b.config["process"]["args"] = json!(["echo", "changed"]);
    b.config["annotations"] = json!({"changed": "yes"});
    b.save()?;
    b.ok(&["start", &b.id])?;
    b.until("stopped")?;
    same("output", pending.stdout().trim_end(), word.as_str())?;
    same("annotations", &b.state()?["annotations"]["changed"], &Value::Null)
}

fn start_race(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.create()?;
    let starts: Vec<_> =
        (0..3).map(|_| b.call(&["start", &b.id]).limit(SOON).start()).collect::<Result<_, _>>()?;
    let mut won = 0;
    for start in starts {
        won += usize::from(start.wait()?.code == 0);
    }
    same("starts that succeeded", won, 1)?;
    b.end()
}

fn bundle_flag(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(g, &format!("echo {word}"))?;
    b.save()?;
    for flag in ["-b", "--bundle"] {
        let path = b.path("");
        let elsewhere = b.call(&["run", flag, &path.display().to_string(), &b.id]);
        same("output", elsewhere.redirects("</dev/null").go()?.ok()?.trim_end(), word.as_str())?;
    }
    Ok(())
}

fn bundle_relative(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.save()?;
    let name = b.id.clone();
    same("exit code", b.call(&["create", "-b", &format!("../{name}"), &b.id]).go()?.code, 0)?;
    let bundle = b.path("").display().to_string();
    same("bundle", &b.state()?["bundle"], bundle.trim_end_matches('/'))
}

fn absolute_root(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(g, "cat /elsewhere")?;
    b.file("elsewhere", &word, 0o644)?;
    let moved = b.path(&random::token(7));
    std::fs::rename(b.root(""), &moved).map_err(|e| crate::Error::Io {
        operation: "move",
        object: moved.display().to_string(),
        source: e,
    })?;
    b.config["root"]["path"] = json!(moved);
    same("output", b.output()?, word)
}

fn delete_stopped(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.start()?;
    b.until("stopped")?;
    b.ok(&["delete", &b.id])?;
    b.nothing_left()?;
    has("second delete", &b.fails(&["delete", &b.id])?, "does not exist")
}

/// As runc does it: a container that was never started goes without force.
fn delete_created(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.create()?;
    let pid = b.pid()?;
    b.ok(&["delete", &b.id])?;
    b.nothing_left()?;
    want(!std::path::Path::new(&format!("/proc/{pid}/root/bin")).exists(), "it lives", pid)
}

fn delete_force(g: &Ground) -> Checked {
    for flag in ["--force", "-f"] {
        let mut b = Bundle::new(g, "trap '' TERM; while :; do sleep 0.05; done")?;
        b.start()?;
        b.ok(&["delete", flag, &b.id])?;
        b.nothing_left()?;
    }
    Ok(())
}

fn delete_force_unknown(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    b.ok(&["delete", "--force", &random::name("none")]).map(drop)
}

fn init_ends(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000 & exit 0")?;
    b.start()?;
    b.until("stopped")?;
    b.ok(&["delete", &b.id])?;
    b.nothing_left()
}

fn killed_before_start(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /started")?;
    b.create()?;
    b.ok(&["kill", &b.id, "KILL"])?;
    b.until("stopped")?;
    b.fails(&["start", &b.id])?;
    want(!b.root("started").exists(), "the program has run", "")?;
    b.ok(&["delete", &b.id])?;
    b.nothing_left()
}

fn no_pivot(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "ls /; echo $$; ls /proc/1/root/")?;
    b.save()?;
    let got = b.call(&["run", "--no-pivot", &b.id]).go()?.ok()?;
    has("the container's /", &got, "bin")?;
    same("host directories", got.contains("boot\n"), false)
}

fn many(g: &Ground) -> Checked {
    let mut bundles = (0..6)
        .map(|_| Bundle::new(g, &format!("echo {}", random::token(8))))
        .collect::<Result<Vec<_>, _>>()?;
    let mut running = Vec::new();
    for b in &mut bundles {
        b.save()?;
        let word = b.config["process"]["args"][2].as_str().unwrap_or_default()[5..].to_owned();
        running.push((word, b.call(&["run", &b.id]).start()?));
    }
    for (word, pending) in running {
        same("output", pending.wait()?.ok()?.trim_end(), word.as_str())?;
    }
    Ok(())
}
