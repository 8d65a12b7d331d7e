//! The suite on each runtime.

use crate::list;
use std::time::Duration;
use testkit::engine::gantry_binary;
use testkit::leak::{LeakCheck, SETTLE, Scope, View};
use testkit::oci::{Outcome, Verdict};
use testkit::random;
use testkit::sandbox::Sandbox;

/// It takes some tens of seconds on a small machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(280);

/// Runs the suite, with `flags`, on `runtime` in a sandbox of its own, after `before` in it; checks
/// that nothing is left.
pub(crate) fn suite(before: &str, flags: &[&str], runtime: &[String]) -> Vec<Verdict> {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let scope = Scope::sandbox();
    let first = sandbox.snapshot(&scope).unwrap();
    let script = format!("{before}\nexec \"$@\"");
    let mut words = vec!["-c", &script, "sh", env!("CARGO_BIN_EXE_conformance")];
    words.extend(flags);
    words.extend(runtime.iter().map(String::as_str));
    let output = sandbox.command("sh", words).timeout(LIMIT).output().unwrap();
    assert!(output.code() < 2, "the suite has not come to its end: {}", output.stderr_text());
    let verdicts: Vec<Verdict> =
        output.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ended = verdicts.last().is_some_and(|verdict| verdict.property == "suite/nothing-left");
    assert!(ended, "the suite has not come to its end: {}", output.stderr_text());
    // What a runtime left in use is in the verdict already.
    let clean =
        verdicts.iter().all(|v| v.outcome != Outcome::Fail || v.property != "suite/nothing-left");
    if clean && before.is_empty() {
        let left = first.compare(View::Sandbox(&sandbox), SETTLE).unwrap();
        assert!(left.is_empty(), "left in the sandbox:\n{left}");
    }
    sandbox.close().unwrap();
    leak.finish().unwrap();
    verdicts
}

pub(crate) fn ours() -> Vec<String> {
    match std::env::var("CONFORMANCE_RUNTIME") {
        Ok(line) => line.split_whitespace().map(str::to_owned).collect(),
        Err(_) => vec![gantry_binary().unwrap().display().to_string(), "runtime".to_owned()],
    }
}

/// Under which name the lists have it: another one's is that of the file which it is in the end,
/// whatever links lead to it.
pub(crate) fn our_name() -> String {
    if std::env::var_os("CONFORMANCE_RUNTIME").is_none() {
        return "gantry".to_owned();
    }
    let path = std::fs::canonicalize(&ours()[0]).unwrap();
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn conforms(name: &str, verdicts: &[Verdict]) {
    let count = |outcome| verdicts.iter().filter(|verdict| verdict.outcome == outcome).count();
    let known = list::of(name);
    let listed = verdicts
        .iter()
        .filter(|verdict| verdict.outcome == Outcome::Fail && known.contains_key(&verdict.property))
        .count();
    eprintln!(
        "{name}: {} properties hold, {} do not, of which {listed} are listed, {} skipped",
        count(Outcome::Pass),
        count(Outcome::Fail),
        count(Outcome::Skip)
    );
    for verdict in verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Skip) {
        eprintln!("skipped: {}: {}", verdict.property, verdict.text);
    }
    let complaints = list::complaints(verdicts, &known);
    assert!(complaints.is_empty(), "{}\n{} in all", complaints.join("\n"), complaints.len());
}

#[test]
fn our_runtime() {
    conforms(&our_name(), &suite("", &[], &ours()));
}

#[test]
fn debians_runc() {
    conforms("runc", &suite("", &[], &["/usr/sbin/runc".to_owned()]));
}

/// crun refuses a host that has v2 with controllers beside v1: so v2 is taken out of its sight. And it
/// gives the /dev/null that is a standard stream to the container's user: so that is one of its own.
#[test]
fn debians_crun() {
    let hide = "umount /sys/fs/cgroup/unified 2>/dev/null || :; mkdir /run/own; \
        mount -t tmpfs -o mode=755 own /run/own; mknod -m 666 /run/own/null c 1 3; \
        mount --bind /run/own/null /dev/null";
    conforms("crun", &suite(hide, &[], &["/usr/bin/crun".to_owned()]));
}

/// A runtime that loses one field of config.json on the way is found out by that field's property.
#[test]
fn a_lost_field_is_caught() {
    let fields = [
        ("umask", "process/umask"),
        ("oomScoreAdj", "process/oom-score-adj"),
        ("hostname", "namespaces/hostname"),
        ("readonlyPaths", "paths/read-only"),
        ("maskedPaths", "paths/masked-file"),
        ("rlimits", "process/rlimits"),
        ("annotations", "lifecycle/annotations-in-state"),
    ];
    let at = usize::try_from(random::number(0..7)).unwrap();
    let (field, property) = fields[at];
    let wrapper = format!(
        "mkdir -p /run/lossy\ncat > /run/lossy/runc <<'END'\n#!/bin/sh\n\
         [ ! -f config.json ] || sed -i 's/\"{field}\":/\"lost\":/' config.json\n\
         exec /usr/sbin/runc \"$@\"\nEND\nchmod 755 /run/lossy/runc"
    );
    let honest = suite("", &["--only", property], &["/usr/sbin/runc".to_owned()]);
    let lossy = suite(&wrapper, &["--only", property], &["/run/lossy/runc".to_owned()]);
    let outcome = |verdicts: &[Verdict]| {
        verdicts.iter().find(|verdict| verdict.property == property).unwrap().outcome
    };
    assert_eq!(outcome(&honest), Outcome::Pass, "{property} with runc");
    assert_eq!(outcome(&lossy), Outcome::Fail, "{property} without {field}");
}
