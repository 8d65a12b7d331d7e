//! The command line as runc's users know it; what runc 1.1 does is asked where it is installed.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Bundle, binary, random, text};

/// The long names and letters of the flags in a help text.
fn flags(help: &str) -> BTreeSet<String> {
    let options = help.split("OPTIONS:\n").nth(1).unwrap_or_default();
    let lines = options.lines().filter_map(|line| line.strip_prefix("   -"));
    let words = |line: &str| {
        let names = line.split("  ").next().unwrap_or_default().replace(" value", "");
        names.split(", ").map(|n| n.trim_start_matches('-').to_owned()).collect::<Vec<_>>()
    };
    lines.flat_map(words).collect()
}

fn help(program: &std::path::Path, args: &[&str]) -> String {
    let o = Command::new(program).args(args).output().unwrap();
    assert!(o.status.success() && o.stderr.is_empty(), "{args:?}: {}", text(&o));
    String::from_utf8(o.stdout).unwrap()
}

#[test]
fn help_has_runcs_commands_and_flags() {
    let runc = std::path::Path::new("/usr/sbin/runc");
    let own = binary();
    let all = help(&own, &["--help"]);
    for args in [&["-h"][..], &["help"], &["h"], &[]] {
        assert_eq!(help(&own, args), all, "{args:?}");
    }
    let missing = |theirs: &str, ours: &str| {
        let (theirs, ours) = (flags(theirs), flags(ours));
        theirs.difference(&ours).cloned().collect::<Vec<_>>()
    };
    let theirs = help(runc, &["--help"]);
    assert!(flags(&theirs).len() > 8, "{theirs}");
    assert_eq!(missing(&theirs, &all), Vec::<String>::new());
    let names = theirs.split("COMMANDS:\n").nth(1).unwrap().lines();
    let names =
        names.take_while(|l| l.starts_with("   ")).filter_map(|l| l.split([' ', ',']).nth(3));
    let mut count = 0;
    for name in names.filter(|name| *name != "help") {
        let one = help(&own, &[name, "--help"]);
        for args in [["help", name], ["h", name], ["--help", name], [name, "-h"]] {
            assert_eq!(help(&own, &args), one, "{args:?}");
        }
        count += 1;
        // They cannot be carried out.
        if !["checkpoint", "restore"].contains(&name) {
            let theirs = help(runc, &[name, "--help"]);
            assert_eq!(missing(&theirs, &one), Vec::<String>::new(), "{name}");
        }
    }
    assert!(count > 15, "{count}");
}

/// Fails with this exit code; its log line's text.
fn refused(b: &Bundle, args: &[&str], code: i32) -> String {
    let o = b.command(&[&["--log-format", "json"], args].concat()).output().unwrap();
    assert_eq!(o.status.code(), Some(code), "{args:?}: {}", text(&o));
    let line: Value = serde_json::from_slice(&o.stderr).unwrap();
    assert_eq!(line["level"], "error");
    line["msg"].as_str().unwrap().to_owned()
}

#[test]
fn wrong_words_flags_and_commands() {
    let b = Bundle::new("true");
    b.save();
    let word = format!("w{}", random());
    for (args, rule) in [
        (&["list", &word][..], "\"list\" requires exactly 0"),
        (&["features", &word], "\"features\" requires exactly 0"),
        (&["spec", &word, "b"], "\"spec\" requires exactly 0"),
        (&["kill"], "\"kill\" requires a minimum of 1"),
        (&["kill", &b.id, "KILL", &word], "\"kill\" requires a maximum of 2"),
        (&["state"], "\"state\" requires exactly 1"),
        (&["exec"], "\"exec\" requires a minimum of 1"),
    ] {
        assert_eq!(refused(&b, args, 1), format!("{rule} argument(s)"));
    }
    let flag = format!("--{word}");
    let undefined = format!("flag provided but not defined: -{word}");
    assert_eq!(refused(&b, &["exec", &flag, "c", "true"], 1), undefined);
    assert_eq!(refused(&b, &[&flag, "list"], 1), undefined);
    assert_eq!(refused(&b, &[&word], 3), format!("No help topic for '{word}'"));
    assert_eq!(refused(&b, &["help", &word], 3), format!("No help topic for '{word}'"));
    let path = format!("/nope/{word}");
    let o = b.rt(&["--log", &path, "list"]);
    assert_eq!(o.status.code(), Some(1));
    assert!(text(&o).contains(&format!("open {path}: no such file or directory")), "{}", text(&o));
    assert!(b.fails(&["--log", "log", &flag, "list"]).contains(&undefined));
    assert!(std::fs::read_to_string(b.path("log")).unwrap().contains(&undefined));
    // The stage comes first.
    let said = refused(&b, &["exec", "nope", "true"], 255);
    assert_eq!(said, "exec failed: container does not exist: nope");
    std::fs::write(b.path("config.json"), "{").unwrap();
    for command in ["create", "run"] {
        let said = refused(&b, &[command, &b.id], 1);
        assert!(said.starts_with(&format!("runc {command} failed: parse ")), "{said}");
    }
}

#[test]
fn an_empty_value_is_none() {
    let mut b = Bundle::new("sleep 1000");
    b.config["process"]["cwd"] = json!("/tmp");
    b.save();
    let args = ["create", "-b", "", "--console-socket", "", "--pid-file=", &b.id];
    let out = std::fs::File::create(b.path("out")).unwrap();
    let mut create = b.command(&args);
    create.stdout(out.try_clone().unwrap()).stderr(out);
    assert!(create.status().unwrap().success(), "{}", b.out());
    b.ok(&["start", &b.id]);
    let args = ["exec", "--cwd", "", "-u", "", "--apparmor", "", "--process-label", "", "-p", ""];
    assert_eq!(b.ok(&[&args[..], &[&b.id, "readlink", "/proc/self/cwd"]].concat()), "/tmp\n");
    let said = b.fails(&["exec", "--preserve-fds", "", &b.id, "true"]);
    assert!(said.contains("for flag -preserve-fds: parse error"), "{said}");
}

#[test]
fn signals_to_one_that_was_not_started() {
    for (signal, ends) in
        [("", true), ("TERM", true), ("INT", true), ("HUP", true), ("QUIT", true), ("USR1", false)]
    {
        let b = Bundle::new("sleep 1000");
        b.save();
        let mut create = b.command(&["create", &b.id]);
        create.stdout(Stdio::null()).stderr(Stdio::null());
        assert!(create.status().unwrap().success());
        b.ok(&["kill", &b.id, "0"]);
        b.ok(&["kill", &b.id, signal]);
        match ends {
            true => b.until("stopped"),
            false => assert_eq!(b.state()["status"], "created", "{signal}"),
        }
    }
}

#[test]
fn a_damaged_state_is_told_with_a_way_out() {
    let b = Bundle::new("sleep 1000");
    b.start();
    let path = b.path("state").join(&b.id).join("state.json");
    let good = std::fs::read(&path).unwrap();
    for bad in ["", "{", "null", "[]", "{}"] {
        std::fs::write(&path, bad).unwrap();
        let o = b.rt(&["list", "-q"]);
        let said = String::from_utf8(o.stderr).unwrap();
        assert!(o.status.success() && o.stdout.is_empty(), "{said}");
        assert!(said.starts_with(&format!("load container {} (", b.id)), "{bad}: {said}");
        let said = b.fails(&["delete", "-f", &b.id]);
        let dir = path.parent().unwrap().display().to_string();
        assert!(said.contains(&format!("then remove {dir})")), "{bad}: {said}");
    }
    std::fs::write(&path, good).unwrap();
    assert_eq!(b.ok(&["list", "-q"]), format!("{}\n", b.id));
    let json = b.ok(&["list", "-f", "json"]);
    assert!(json.starts_with('[') && json.ends_with("]\n"), "{json}");
}

#[test]
fn an_array_is_no_object_anywhere() {
    let mut b = Bundle::new("true");
    b.config["process"]["user"] = json!([1000, 1000]);
    let said = text(&b.run());
    assert!(
        said.contains("process.user: parse ") && said.contains("cannot unmarshal array"),
        "{said}"
    );
    b.config["process"]["user"] = json!({"uid": 0, "gid": 0});
    b.config["process"]["args"] = json!(["sleep", "1000"]);
    b.start();
    let update = |input: &str| {
        let mut command = b.command(&["update", "-r", "-", &b.id]);
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    for (input, what) in [
        ("[]", "parse standard input: cannot unmarshal array"),
        (r#"{"memory":[]}"#, "memory: parse standard input: cannot unmarshal array"),
        ("{", "parse standard input: EOF"),
    ] {
        let o = update(input);
        assert!(!o.status.success() && text(&o).contains(what), "{input}: {}", text(&o));
    }
    for input in ["null", "{}"] {
        assert!(update(input).status.success(), "{input}");
    }
    std::fs::write(b.path("p.json"), r#"{"args":["true"],"cwd":"/","user":[0,0]}"#).unwrap();
    let said = b.fails(&["exec", "-p", "p.json", &b.id]);
    assert!(said.contains("exec failed: user: parse p.json: cannot unmarshal array"), "{said}");
}

#[test]
fn events_are_of_what_runs_at_intervals_above_zero() {
    let b = Bundle::new("sleep 1000");
    b.start();
    for (interval, words) in [
        ("0", "duration interval must be greater than 0"),
        ("-1s", "duration interval must be greater than 0"),
        ("x", "for flag -interval: parse error"),
        ("5", "for flag -interval: parse error"),
        ("", "for flag -interval: parse error"),
    ] {
        let said = refused(&b, &["events", "--interval", interval, "--stats", &b.id], 1);
        assert!(said.contains(words), "{interval}: {said}");
    }
    b.ok(&["events", "--stats", &b.id]);
    b.ok(&["kill", &b.id, "KILL"]);
    b.until("stopped");
    let said = refused(&b, &["events", "--stats", &b.id], 1);
    assert_eq!(said, format!("container with id {} is not running", b.id));
}

#[test]
fn the_state_that_hooks_get_and_where_they_run() {
    let mut b = Bundle::new("true");
    let out = b.path("hooks");
    let line = format!("{{ echo $0 $(pwd); cat; echo; }} >> {}", out.display());
    let hook = |kind: &str| json!([{"path": "/bin/sh", "args": [kind, "-c", line, kind]}]);
    for kind in ["createRuntime", "createContainer", "poststop"] {
        b.config["hooks"][kind] = hook(kind);
    }
    let bundle = b.path("").display().to_string();
    let bundle = bundle.trim_end_matches('/');
    for annotated in [false, true] {
        if annotated {
            b.config["annotations"] = json!({"a": "b"});
        }
        let ran = text(&b.run());
        let told = std::fs::read_to_string(&out).unwrap_or_else(|e| panic!("{e}: {ran}"));
        std::fs::remove_file(&out).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        for (at, dir, has_pid) in [
            (0, format!("createRuntime {bundle}"), true),
            (2, format!("createContainer {bundle}/rootfs"), true),
            (4, format!("poststop {bundle}"), false),
        ] {
            assert_eq!(lines[at], dir);
            let state: Value = serde_json::from_str(lines[at + 1]).unwrap();
            assert_eq!(state.get("pid").is_some(), has_pid, "{state}");
            assert_eq!(state.get("annotations").is_some(), annotated, "{state}");
        }
    }
}

#[test]
fn debug_tells_what_is_done() {
    let b = Bundle::new("true");
    b.save();
    b.ok(&["--debug", "--log", "log", "--log-format", "json", "run", &b.id]);
    let log = std::fs::read_to_string(b.path("log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let told: Vec<&str> =
        lines.iter().filter(|l| l["level"] == "debug").filter_map(|l| l["msg"].as_str()).collect();
    for what in ["new pid namespace", "at \"/proc\"", "process ", "cgroup ", "started "] {
        assert!(told.iter().any(|line| line.contains(what)), "{what}: {log}");
    }
    std::fs::remove_file(b.path("log")).unwrap();
    b.ok(&["--log", "log", "run", &b.id]);
    assert!(!std::fs::read_to_string(b.path("log")).unwrap().contains("debug"));
}
