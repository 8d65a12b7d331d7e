//! What is done with running containers: kill, pause, update, events, ps.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, json, read, same, skip, want};
use crate::random;
use serde_json::{Value, json};
use std::path::Path;

pub(super) const ALL: &[Property] = &[
    p("manage/kill-is-term", kill_term),
    p("manage/kill-signals-by-name-and-number", kill_signals),
    p("manage/kill-zero-asks", kill_zero),
    p("manage/kill-before-the-start", kill_created),
    p("manage/kill-all", kill_all),
    p("manage/kill-a-shared-pid-namespace", kill_shared),
    p("manage/kill-paused", kill_paused),
    p("manage/pause-stops-and-resume-continues", pause),
    p("manage/pause-twice", pause_twice),
    p("manage/pause-stopped", pause_stopped),
    p("manage/delete-force-paused", delete_paused),
    p("manage/update-by-flags", update_flags),
    p("manage/update-by-file", update_file),
    p("manage/update-by-stdin", update_stdin),
    p("manage/update-keeps-the-rest", update_rest),
    p("manage/update-bad", update_bad),
    p("manage/update-stopped", update_stopped),
    p("manage/update-size-words", update_sizes),
    p("manage/events-stats", events_stats),
    p("manage/events-interval", events_interval),
    p("manage/events-oom", events_oom),
    p("manage/ps-table", ps_table),
    p("manage/ps-json", ps_json),
    p("manage/ps-arguments", ps_arguments),
];

pub(super) fn needs_freezer(g: &Ground) -> Checked {
    if g.runtime.cgroups { Ok(()) } else { skip("without cgroups") }
}

fn traps<'a>(g: &'a Ground, names: &[&str]) -> Checked<(Bundle<'a>, crate::oci::call::Pending)> {
    let traps: String =
        names.iter().map(|name| format!("trap 'echo got-{name}' {name}; ")).collect();
    let mut b = Bundle::new(g, &format!("{traps} echo ready; while :; do sleep 0.02; done"))?;
    let pending = b.start()?;
    pending.wait_for("ready")?;
    Ok((b, pending))
}

fn kill_term(g: &Ground) -> Checked {
    let (b, pending) = traps(g, &["TERM"])?;
    b.ok(&["kill", &b.id])?;
    pending.wait_for("got-TERM")?;
    b.end()
}

fn kill_signals(g: &Ground) -> Checked {
    let (b, pending) = traps(g, &["HUP", "INT", "USR1", "USR2", "WINCH", "CONT"])?;
    for (word, name) in [
        ("HUP", "HUP"),
        ("SIGINT", "INT"),
        ("10", "USR1"),
        ("sigusr2", "USR2"),
        ("winch", "WINCH"),
        ("18", "CONT"),
    ] {
        b.ok(&["kill", &b.id, word])?;
        pending.wait_for(&format!("got-{name}"))?;
    }
    b.end()
}

/// kill(2): signal 0 only says whether there is somebody.
fn kill_zero(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.start()?;
    b.ok(&["kill", &b.id, "0"])?;
    same("status", b.status()?, "running")?;
    b.ok(&["kill", &b.id, "KILL"])?;
    b.until("stopped")?;
    b.fails(&["kill", &b.id, "0"])?;
    b.ok(&["delete", &b.id]).map(drop)
}

/// What waits for its start is the runtime's own, and to be ended like any other.
fn kill_created(g: &Ground) -> Checked {
    for signal in ["", "TERM", "INT", "HUP"] {
        let mut b = Bundle::new(g, "sleep 1000")?;
        b.create()?;
        b.ok(&["kill", &b.id, signal])?;
        b.until("stopped")?;
        b.ok(&["delete", &b.id])?;
    }
    Ok(())
}

fn kill_all(g: &Ground) -> Checked {
    needs_freezer(g)?;
    for flag in ["--all", "-a"] {
        let mut b = Bundle::new(g, "sleep 1000 & exec sleep 1000")?;
        b.start()?;
        b.ok(&["kill", flag, &b.id, "KILL"])?;
        b.until("stopped")?;
        b.ok(&["delete", &b.id])?;
    }
    Ok(())
}

/// Without a pid namespace of its own, what the container's first process leaves is killed with it.
fn kill_shared(g: &Ground) -> Checked {
    needs_freezer(g)?;
    let seconds = random::number(100_000..900_000).to_string();
    let mut b = Bundle::new(g, &format!("sleep {seconds} & exec sleep {seconds}"))?;
    b.without_namespace("pid");
    b.start()?;
    b.ok(&["kill", "-a", &b.id, "KILL"])?;
    b.until("stopped")?;
    b.ok(&["delete", "-f", &b.id])?;
    b.nothing_left()?;
    let found =
        crate::command::Cmd::host("pgrep", ["-f", &format!("^sleep {seconds}")]).output()?;
    same("processes left", found.text(), "")
}

fn kill_paused(g: &Ground) -> Checked {
    needs_freezer(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    b.ok(&["pause", &b.id])?;
    b.ok(&["kill", &b.id, "KILL"])?;
    b.until("stopped")?;
    b.ok(&["delete", &b.id])?;
    b.nothing_left()
}

fn pause(g: &Ground) -> Checked {
    needs_freezer(g)?;
    let mut b = Bundle::new(g, "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.01; done")?;
    b.start()?;
    let count = || read(b.root("count")).unwrap_or_default();
    crate::wait::until("counting", crate::oci::call::LIMIT, || {
        (count() > "2".into()).then_some(())
    })?;
    b.ok(&["pause", &b.id])?;
    same("status", b.status()?, "paused")?;
    let process = read(format!("/proc/{}/status", b.pid()?))?;
    let state = process.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
    want(state.contains('D') || state.contains('S') || state.contains('t'), "state", state)?;
    let first = count();
    // Five looks of another process take longer than one round of the loop.
    for _ in 0..5 {
        b.state()?;
    }
    same("the count stands still", count(), first.clone())?;
    b.ok(&["resume", &b.id])?;
    same("status", b.status()?, "running")?;
    crate::wait::until("counting", crate::oci::call::LIMIT, || {
        let now = count();
        (!now.is_empty() && now != first).then_some(())
    })?;
    b.end()
}

fn pause_twice(g: &Ground) -> Checked {
    needs_freezer(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    has("resume", &b.fails(&["resume", &b.id])?, "container not paused")?;
    b.ok(&["pause", &b.id])?;
    has("pause", &b.fails(&["pause", &b.id])?, "not running")?;
    same("status", b.status()?, "paused")?;
    b.ok(&["resume", &b.id])?;
    b.end()
}

fn pause_stopped(g: &Ground) -> Checked {
    needs_freezer(g)?;
    let mut b = Bundle::new(g, "true")?;
    b.start()?;
    b.until("stopped")?;
    has("pause", &b.fails(&["pause", &b.id])?, "not running")?;
    b.fails(&["resume", &b.id]).map(drop)
}

fn delete_paused(g: &Ground) -> Checked {
    needs_freezer(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    b.ok(&["pause", &b.id])?;
    b.ok(&["delete", "--force", &b.id])?;
    b.nothing_left()
}

fn updatable(g: &Ground) -> Checked<Bundle<'_>> {
    needs_freezer(g)?;
    if !Path::new("/sys/fs/cgroup/memory").is_dir() {
        return skip("no hierarchies of v1");
    }
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swap": 128 << 20});
    b.config["linux"]["resources"]["cpu"] =
        json!({"shares": 500, "quota": 50_000, "period": 100_000});
    b.config["linux"]["resources"]["pids"] = json!({"limit": 100});
    b.start()?;
    Ok(b)
}

fn update_flags(g: &Ground) -> Checked {
    let b = updatable(g)?;
    let memory = u64::from(random::number(70..200)) << 20;
    let (shares, pids) = (random::number(2..2000), random::number(20..500));
    let (quota, period) = (random::number(20..90) * 1000, random::number(100..400) * 1000);
    let texts = [memory, memory * 2, memory / 2].map(|value| value.to_string());
    let [shares, pids, quota, period] = [shares, pids, quota, period].map(|n| n.to_string());
    b.ok(&[
        "update",
        "--memory",
        &texts[0],
        "--memory-swap",
        &texts[1],
        "--memory-reservation",
        &texts[2],
        "--cpu-share",
        &shares,
        "--cpu-quota",
        &quota,
        "--cpu-period",
        &period,
        "--cpuset-cpus",
        "0",
        "--pids-limit",
        &pids,
        &b.id,
    ])?;
    for (controller, file, wanted) in [
        ("memory", "memory.limit_in_bytes", &texts[0]),
        ("memory", "memory.memsw.limit_in_bytes", &texts[1]),
        ("memory", "memory.soft_limit_in_bytes", &texts[2]),
        ("cpu", "cpu.shares", &shares),
        ("cpu", "cpu.cfs_quota_us", &quota),
        ("cpu", "cpu.cfs_period_us", &period),
        ("cpuset", "cpuset.cpus", &"0".to_owned()),
        ("pids", "pids.max", &pids),
    ] {
        same(file, &b.limit(controller, file)?, wanted)?;
    }
    b.end()
}

fn update_file(g: &Ground) -> Checked {
    let b = updatable(g)?;
    let shares = random::number(2..2000);
    crate::oci::write(b.path("r.json"), json!({"cpu": {"shares": shares}}).to_string())?;
    b.ok(&["update", "-r", "r.json", &b.id])?;
    same("shares", b.limit("cpu", "cpu.shares")?, shares.to_string())?;
    b.end()
}

fn update_stdin(g: &Ground) -> Checked {
    let b = updatable(g)?;
    let limit = random::number(20..500);
    let given = json!({"pids": {"limit": limit}}).to_string();
    b.call(&["update", "--resources", "-", &b.id]).stdin(given).go()?.ok()?;
    same("limit", b.limit("pids", "pids.max")?, limit.to_string())?;
    b.end()
}

fn update_rest(g: &Ground) -> Checked {
    let b = updatable(g)?;
    b.ok(&["update", "--cpu-share", "321", &b.id])?;
    same("memory", b.limit("memory", "memory.limit_in_bytes")?, (64 << 20).to_string())?;
    same("quota", b.limit("cpu", "cpu.cfs_quota_us")?, "50000")?;
    same("pids", b.limit("pids", "pids.max")?, "100")?;
    let devices = b.limit("devices", "devices.list")?;
    want(devices.contains("c 1:3") && !devices.contains("a *:*"), "devices", devices)?;
    b.end()
}

fn update_bad(g: &Ground) -> Checked {
    let b = updatable(g)?;
    for args in [&["--memory", "lots"][..], &["--cpu-share", "many"], &["--memory", "-5x"]] {
        let mut all = vec!["update"];
        all.extend(args);
        all.push(&b.id);
        b.fails(&all)?;
    }
    same("memory", b.limit("memory", "memory.limit_in_bytes")?, (64 << 20).to_string())?;
    b.end()
}

fn update_stopped(g: &Ground) -> Checked {
    needs_freezer(g)?;
    let mut b = Bundle::new(g, "true")?;
    b.start()?;
    b.until("stopped")?;
    b.fails(&["update", "--pids-limit", "20", &b.id]).map(drop)
}

fn update_sizes(g: &Ground) -> Checked {
    let b = updatable(g)?;
    for (word, bytes) in
        [("100m", 100u64 << 20), ("104857600", 100 << 20), ("90000k", 90_000 << 10)]
    {
        b.ok(&["update", "--memory", word, &b.id])?;
        same(word, b.limit("memory", "memory.limit_in_bytes")?, bytes.to_string())?;
    }
    b.end()
}

fn events_stats(g: &Ground) -> Checked {
    needs_freezer(g)?;
    let limit = u64::from(random::number(64..200)) << 20;
    let mut b = Bundle::new(g, "i=0; while [ $i -lt 9000 ]; do i=$((i+1)); done; exec sleep 1000")?;
    b.config["linux"]["resources"]["memory"] = json!({"limit": limit});
    b.config["linux"]["resources"]["pids"] = json!({"limit": 55});
    b.start()?;
    let event = json(&b.ok(&["events", "--stats", &b.id])?)?;
    same("type", &event["type"], "stats")?;
    same("id", &event["id"], b.id.as_str())?;
    let data = &event["data"];
    same("memory limit", &data["memory"]["usage"]["limit"], limit)?;
    want(data["memory"]["usage"]["usage"].as_u64().unwrap_or(0) > 0, "memory", &data["memory"])?;
    want(data["cpu"]["usage"]["total"].as_u64().unwrap_or(0) > 0, "cpu", &data["cpu"])?;
    want(data["pids"]["current"].as_u64().unwrap_or(0) > 0, "pids", &data["pids"])?;
    same("pids limit", &data["pids"]["limit"], 55)?;
    // The figures of memory.stat: of v1 or of v2.
    let raw = &data["memory"]["raw"];
    want(raw["total_rss"].is_u64() || raw["anon"].is_u64(), "raw figures", raw)?;
    want(data["blkio"].is_object(), "blkio", data)?;
    b.end()
}

fn events_interval(g: &Ground) -> Checked {
    needs_freezer(g)?;
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    b.ok(&["events", "--stats", &b.id])?;
    let events = b.call(&["events", "--interval", "100ms", &b.id]).start()?;
    let seen = crate::wait::until("three events", crate::oci::call::LIMIT, || {
        let text = events.stdout();
        (text.matches('\n').count() >= 3).then_some(text)
    })?;
    for line in seen.lines().take(3) {
        same("type", &json(line)?["type"], "stats")?;
    }
    b.ok(&["kill", &b.id, "KILL"])?;
    b.until("stopped")?;
    b.ok(&["delete", &b.id])?;
    // It ends with the container.
    same("exit code", events.wait()?.code, 0)
}

fn events_oom(g: &Ground) -> Checked {
    needs_freezer(g)?;
    let mut b = Bundle::new(
        g,
        "read x < /go; (head -c 60000000 /dev/zero | tail | wc -c); exec sleep 1000",
    )?;
    b.config["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    crate::command::Cmd::host("mkfifo", [b.root("go").display().to_string()]).ok()?;
    b.start()?;
    b.ok(&["events", "--stats", &b.id])?;
    let events = b.call(&["events", "--interval", "100ms", &b.id]).start()?;
    events.wait_for("stats")?;
    // Opening blocks until the container reads.
    crate::command::Cmd::host("sh", ["-c", &format!("echo x > {}", b.root("go").display())])
        .ok()?;
    let seen = events.wait_for("\"type\":\"oom\"")?;
    let line = seen.lines().find(|line| line.contains("\"oom\"")).unwrap_or_default();
    same("id", &json(line)?["id"], b.id.as_str())
}

fn sleeping<'a>(g: &'a Ground, seconds: &str) -> Checked<Bundle<'a>> {
    needs_freezer(g)?;
    let mut b = Bundle::new(g, &format!("sleep {seconds} & exec sleep {seconds}"))?;
    b.start()?;
    let two = || b.exec(&format!("ps | grep -c '[s]leep {seconds}'")).is_ok_and(|n| n == "2");
    crate::wait::until("both processes", crate::oci::call::LIMIT, || two().then_some(()))?;
    Ok(b)
}

fn ps_table(g: &Ground) -> Checked {
    let seconds = random::number(100_000..900_000).to_string();
    let b = sleeping(g, &seconds)?;
    let got = b.ok(&["ps", &b.id])?;
    let heads: Vec<&str> = got.lines().next().unwrap_or_default().split_whitespace().collect();
    want(heads.contains(&"PID") && heads.contains(&"CMD"), "heads", heads)?;
    same("lines", got.lines().filter(|line| line.contains(&seconds)).count(), 2)?;
    has("its pid", &got, &b.pid()?.to_string())?;
    b.end()
}

fn ps_json(g: &Ground) -> Checked {
    let b = sleeping(g, "1000")?;
    for flag in ["-f", "--format"] {
        let got = json(&b.ok(&["ps", flag, "json", &b.id])?)?;
        let pids: Vec<u64> = got
            .as_array()
            .map(|l| l.iter().filter_map(Value::as_u64).collect())
            .unwrap_or_default();
        same("processes", pids.len(), 2)?;
        want(pids.contains(&u64::from(b.pid()?)), "the first", pids)?;
    }
    b.end()
}

fn ps_arguments(g: &Ground) -> Checked {
    let b = sleeping(g, "1000")?;
    let got = b.ok(&["ps", &b.id, "-o", "pid,comm"])?;
    let heads: Vec<&str> = got.lines().next().unwrap_or_default().split_whitespace().collect();
    same("heads", heads, ["PID", "COMMAND"])?;
    same("lines", got.lines().count(), 3)?;
    b.end()
}
