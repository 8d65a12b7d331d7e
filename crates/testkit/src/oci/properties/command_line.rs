//! The command line itself: version, help, unknown words, `spec`, `features`, `list`.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, json, read, same, want};
use crate::random;
use serde_json::{Value, json};

pub(super) const ALL: &[Property] = &[
    p("command-line/version", version),
    p("command-line/help", help),
    p("command-line/unknown-command", unknown_command),
    p("command-line/unknown-flag", unknown_flag),
    p("command-line/flag-forms", flag_forms),
    p("command-line/too-few-words", too_few),
    p("command-line/too-many-words", too_many),
    p("command-line/empty-values", empty_values),
    p("command-line/spec", spec),
    p("command-line/spec-refuses-to-overwrite", spec_again),
    p("command-line/spec-runs", spec_runs),
    p("command-line/spec-rootless", spec_rootless),
    p("command-line/list", list),
    p("command-line/list-quiet", list_quiet),
    p("command-line/list-empty", list_empty),
    p("command-line/features", features),
    p("command-line/features-mount-options", features_mounts),
    p("command-line/checkpoint-fails-plainly", checkpoint),
];

fn version(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    for flag in ["--version", "-v"] {
        let said = b.ok(&[flag])?;
        has("version", &said, " version ")?;
        let spec = said.lines().find(|line| line.starts_with("spec: 1."));
        want(spec.is_some(), "the specification's version", &said)?;
    }
    Ok(())
}

fn help(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    for args in [&["--help"][..], &["-h"], &["help"], &["create", "--help"], &["exec", "-h"]] {
        want(!b.ok(args)?.is_empty(), "help", args)?;
    }
    for command in ["create", "start", "state", "kill", "delete", "exec", "run", "update", "events"]
    {
        has("help", &b.ok(&["--help"])?, command)?;
    }
    Ok(())
}

fn unknown_command(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let name = random::token(7);
    let ran = b.rt(&[&name])?;
    want(ran.code != 0, "exit code", ran.to_string())?;
    has("words", &format!("{}{}", ran.stdout, ran.stderr), &name)
}

fn unknown_flag(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let flag = random::token(7);
    let ran = b.rt(&["create", &format!("--{flag}"), "x"])?;
    want(ran.code != 0, "exit code", ran.to_string())?;
    let said = format!("{}{}", ran.stdout, ran.stderr);
    has("words", &said, &format!("flag provided but not defined: -{flag}"))
}

fn flag_forms(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.save()?;
    let ran = b.call(&["run", "-detach=true", "--pid-file=pid", "--", &b.id]).go()?;
    same("exit code", ran.code, 0)?;
    same("pid file", read(b.path("pid"))?, b.pid()?.to_string())?;
    b.end()
}

fn too_few(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    for args in [&["create"][..], &["start"], &["state"], &["kill"], &["exec", "x"], &["delete"]] {
        let ran = b.rt(args)?;
        want(ran.code != 0, "exit code", (args, ran.to_string()))?;
    }
    Ok(())
}

fn too_many(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let word = random::token(7);
    for args in [&["list", &word][..], &["spec", &word], &["kill", "x", "KILL", &word]] {
        let ran = b.rt(args)?;
        want(ran.code != 0, "exit code", (args, ran.to_string()))?;
    }
    want(!b.path("config.json").exists(), "nothing written", "config.json")
}

/// An empty value is none.
fn empty_values(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.config["process"]["cwd"] = json!("/tmp");
    b.create_with(&["--pid-file", "", "--console-socket", ""])?;
    b.ok(&["start", &b.id])?;
    let args = ["exec", "--cwd", "", "-u", "", "--apparmor", "", "--process-label", ""];
    let got = b.ok(&[&args[..], &[&b.id, "readlink", "/proc/self/cwd"]].concat())?;
    same("working directory", got.trim(), "/tmp")?;
    b.end()
}

fn spec(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    b.ok(&["spec", "-b", &b.path("").display().to_string()])?;
    let config = json(&read(b.path("config.json"))?)?;
    same("args", &config["process"]["args"], &json!(["sh"]))?;
    same("terminal", &config["process"]["terminal"], true)?;
    same("root", &config["root"], &json!({"path": "rootfs", "readonly": true}))?;
    want(config["linux"]["maskedPaths"].as_array().is_some_and(|l| l.len() > 5), "masks", "")?;
    let kinds: Vec<&str> = config["linux"]["namespaces"]
        .as_array()
        .map(|list| list.iter().filter_map(|n| n["type"].as_str()).collect())
        .unwrap_or_default();
    for kind in ["pid", "network", "ipc", "uts", "mount"] {
        want(kinds.contains(&kind), "namespaces", &kinds)?;
    }
    Ok(())
}

fn spec_again(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    b.ok(&["spec"])?;
    let first = read(b.path("config.json"))?;
    has("spec", &b.fails(&["spec"])?, "exist")?;
    same("config.json", read(b.path("config.json"))?, first)
}

fn spec_runs(g: &Ground) -> Checked {
    let word = random::token(8);
    let mut b = Bundle::new(g, "true")?;
    b.ok(&["spec"])?;
    let cgroup = b.config["linux"]["cgroupsPath"].clone();
    b.config = json(&read(b.path("config.json"))?)?;
    b.config["process"]["terminal"] = json!(false);
    b.config["process"]["args"] = json!(["echo", word]);
    b.config["linux"]["cgroupsPath"] = cgroup;
    same("output", b.output()?, word)
}

fn spec_rootless(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    b.ok(&["spec", "--rootless"])?;
    let config = json(&read(b.path("config.json"))?)?;
    let kinds = config["linux"]["namespaces"].to_string();
    has("namespaces", &kinds, "user")?;
    lacks_network(&kinds)?;
    same("mapped", &config["linux"]["uidMappings"][0]["containerID"], 0)?;
    same("mapped", &config["linux"]["uidMappings"][0]["size"], 1)
}

fn lacks_network(kinds: &str) -> Checked {
    crate::oci::lacks("namespaces", kinds, "network")
}

fn list(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.create()?;
    let all = json(&b.ok(&["list", "--format", "json"])?)?;
    let entry = &all[0];
    same("id", &entry["id"], b.id.as_str())?;
    same("status", &entry["status"], "created")?;
    same("pid", &entry["pid"], b.pid()?)?;
    same("owner", &entry["owner"], "root")?;
    let bundle = b.path("").display().to_string();
    same("bundle", &entry["bundle"], bundle.trim_end_matches('/'))?;
    let table = b.ok(&["list"])?;
    let heads: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    same("heads", heads, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"])?;
    let line = table.lines().nth(1).unwrap_or_default().to_owned();
    want(line.starts_with(&b.id) && line.contains("created"), "line", &line)
}

fn list_quiet(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.create()?;
    let second = random::name("d");
    if let Some(path) = b.config["linux"]["cgroupsPath"].as_str() {
        b.config["linux"]["cgroupsPath"] = json!(format!("{path}-2"));
        b.save()?;
    }
    same("exit code", b.call(&["create", &second]).go()?.code, 0)?;
    let listed = b.ok(&["list", "-q"]);
    b.ok(&["delete", "-f", &second])?;
    same("list -q", listed?, format!("{}\n{second}\n", b.id))
}

fn list_empty(g: &Ground) -> Checked {
    let b = Bundle::new(g, "true")?;
    let all = b.ok(&["list", "-f", "json"])?;
    want(["null", "[]"].contains(&all.trim()), "an empty list", &all)?;
    same("list -q", b.ok(&["list", "-q"])?, "")
}

fn document(g: &Ground) -> Checked<Value> {
    json(&Bundle::new(g, "true")?.ok(&["features"])?)
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().map(|l| l.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

fn features(g: &Ground) -> Checked {
    let document = document(g)?;
    for field in ["ociVersionMin", "ociVersionMax"] {
        want(document[field].as_str().is_some_and(|v| v.starts_with("1.")), field, &document)?;
    }
    for kind in
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    {
        want(names(&document["hooks"]).contains(&kind), "hooks", kind)?;
    }
    let linux = &document["linux"];
    for kind in ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"] {
        want(names(&linux["namespaces"]).contains(&kind), "namespaces", kind)?;
    }
    want(names(&linux["capabilities"]).contains(&"CAP_CHOWN"), "capabilities", linux)?;
    for field in ["v1", "v2"] {
        same("cgroup", &linux["cgroup"][field], true)?;
    }
    let seccomp = &linux["seccomp"];
    same("seccomp", &seccomp["enabled"], true)?;
    for (field, name) in [
        ("actions", "SCMP_ACT_ERRNO"),
        ("actions", "SCMP_ACT_KILL_PROCESS"),
        ("actions", "SCMP_ACT_NOTIFY"),
        ("operators", "SCMP_CMP_MASKED_EQ"),
        ("archs", "SCMP_ARCH_X86_64"),
    ] {
        want(names(&seccomp[field]).contains(&name), "seccomp", (field, name))?;
    }
    Ok(())
}

fn features_mounts(g: &Ground) -> Checked {
    let document = document(g)?;
    let known = names(&document["mountOptions"]);
    for option in
        ["bind", "rbind", "ro", "rw", "nosuid", "noexec", "nodev", "rprivate", "rslave", "rro"]
    {
        want(known.contains(&option), "mount options", option)?;
    }
    let mut sorted = known.clone();
    sorted.sort_unstable();
    sorted.dedup();
    same("sorted, each once", known, sorted)
}

/// It is either done or refused, and a container that cannot be saved goes on.
fn checkpoint(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "sleep 1000")?;
    b.start()?;
    if !std::path::Path::new("/usr/sbin/criu").exists() {
        b.fails(&["checkpoint", &b.id])?;
        b.fails(&["restore", &random::name("r")])?;
        same("status", b.status()?, "running")?;
    }
    b.end()
}
