//! The daemon that a client starts when there is none.

use rustix::process::Signal;
use std::time::Duration;
use testkit::command::{Cmd, DEFAULT_TIMEOUT};
use testkit::engine::{gantry_binary, ping};
use testkit::leak::{Kind, LeakCheck, SETTLE, Scope, View};
use testkit::random;
use testkit::sandbox::Sandbox;
use testkit::wait;

const SOCKET: &str = "/run/gantry/gantry.sock";

/// A sandbox with `gantry` in its search path and no daemon.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new().unwrap();
    sandbox.link("gantry", &gantry_binary().unwrap()).unwrap();
    sandbox
}

/// Our client, with nothing said about a host.
fn gantry(sandbox: &Sandbox, args: &[&str]) -> Cmd {
    sandbox.command("gantry", args.iter().copied())
}

/// The pids, in the sandbox, of the daemons that run.
fn daemons(sandbox: &Sandbox) -> Vec<String> {
    let list =
        sandbox.shell("ps -eo pid=,args= | grep -E '(gantry|exe) daemon' | grep -v grep || :");
    let lines = list.ok().unwrap().lines();
    lines.iter().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn the_first_command_starts_it_and_a_stop_ends_it() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = sandbox();
    let scope = Scope::sandbox().only([Kind::Process, Kind::Mount, Kind::Cgroup, Kind::Socket]);
    let before = sandbox.snapshot(&scope).unwrap();
    let hello = gantry(&sandbox, &["run", "--rm", "gantry/hello"]).ok().unwrap();
    assert!(hello.text().to_lowercase().contains("works"), "{}", hello.both());
    assert!(!hello.held_open, "the daemon holds the outputs of the client that started it");
    assert_eq!(ping(&sandbox.path(SOCKET)).unwrap(), 200);
    let running = daemons(&sandbox);
    assert_eq!(running.len(), 1, "{running:?}");
    let pid = &running[0];
    let of = |what: &str| sandbox.shell(what).ok().unwrap().text();
    let session = of(&format!("ps -o sid= -p {pid}"));
    assert_eq!(session.trim(), pid, "not in a session of its own");
    assert_eq!(of(&format!("readlink /proc/{pid}/cwd")), "/");
    assert_eq!(of(&format!("sed -n 's/^Umask:\\t//p' /proc/{pid}/status")), "0022");
    let environment = of(&format!("tr '\\0' '\\n' < /proc/{pid}/environ"));
    assert!(!environment.contains("HOME=/run/home"), "the user's environment: {environment}");
    for fd in ["0", "1", "2"] {
        let target = of(&format!("readlink /proc/{pid}/fd/{fd}"));
        assert!(!target.starts_with("pipe:"), "{fd} is the client's {target}");
    }
    let again = gantry(&sandbox, &["run", "--rm", "gantry/hello"]).ok().unwrap();
    assert!(again.text().to_lowercase().contains("works"), "{}", again.both());
    assert_eq!(daemons(&sandbox), running, "a second daemon, or another one");
    sandbox.command("kill", [pid]).ok().unwrap();
    let left = before.compare(View::Sandbox(&sandbox), SETTLE).unwrap();
    assert!(left.is_empty(), "{left}");
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

#[test]
fn ten_clients_at_once_start_one() {
    let sandbox = sandbox();
    let clients: Vec<_> = (0..10)
        .map(|_| gantry(&sandbox, &["version", "--format", "{{.Server.Os}}"]).spawn().unwrap())
        .collect();
    for client in clients {
        let output = client.wait(DEFAULT_TIMEOUT).unwrap();
        assert_eq!((output.code(), output.text().as_str()), (0, "linux"), "{}", output.both());
    }
    let running = daemons(&sandbox);
    assert_eq!(running.len(), 1, "{running:?}");
    sandbox.close().unwrap();
}

#[test]
fn it_starts_again_after_a_kill_and_finds_its_containers() {
    let sandbox = sandbox();
    let image = testkit::fixtures::busybox::Busybox::new().unwrap();
    let load = gantry(&sandbox, &["load"]).stdin(image.docker_archive());
    load.ok().unwrap();
    let name = random::name("box");
    gantry(&sandbox, &["run", "-d", "--name", &name, &image.reference, "sleep", "1000"])
        .ok()
        .unwrap();
    let first = daemons(&sandbox);
    sandbox.command("kill", ["-9", &first[0]]).ok().unwrap();
    let seen = gantry(&sandbox, &["exec", &name, "cat", &image.marker_path]).ok().unwrap();
    assert_eq!(seen.text(), image.marker);
    let second = daemons(&sandbox);
    assert_eq!(second.len(), 1, "{second:?}");
    assert_ne!(first, second);
    gantry(&sandbox, &["rm", "-f", &name]).ok().unwrap();
    sandbox.close().unwrap();
}

/// Where a host was named, nothing is started.
#[test]
fn a_named_host_is_not_replaced_by_a_daemon_of_ours() {
    let sandbox = sandbox();
    let absent = format!("unix:///run/{}.sock", random::token(8));
    let output = gantry(&sandbox, &["ps"]).env("DOCKER_HOST", &absent).output().unwrap();
    assert_eq!(output.code(), 1, "{}", output.both());
    assert!(output.stderr_text().contains(&absent), "{}", output.both());
    let output = gantry(&sandbox, &["-H", &absent, "ps"]).output().unwrap();
    assert_eq!(output.code(), 1, "{}", output.both());
    assert_eq!(daemons(&sandbox), [""; 0]);
    sandbox.close().unwrap();
}

/// Who is not root is told so.
#[test]
fn another_user_is_told_what_to_do() {
    let sandbox = sandbox();
    let args = ["--reuid=65534", "--regid=65534", "--clear-groups", "gantry", "ps"];
    let output = sandbox.command("setpriv", args).env("HOME", "/run/tmp").output().unwrap();
    assert_eq!(output.code(), 1, "{}", output.both());
    let text = output.stderr_text();
    assert!(text.contains("root") || text.contains("sudo"), "{text}");
    assert_eq!(daemons(&sandbox), [""; 0]);
    sandbox.close().unwrap();
}

/// It ends by itself when nobody needs it: not before the container's end, and not long after.
#[test]
fn it_ends_when_nothing_runs() {
    let sandbox = sandbox();
    // Minutes by default; a test cannot wait that long.
    sandbox.write("/etc/gantry/daemon.json", r#"{ "idle-timeout": 1 }"#).unwrap();
    let idle = |args: &[&str]| gantry(&sandbox, args);
    let image = testkit::fixtures::busybox::Busybox::new().unwrap();
    idle(&["load"]).stdin(image.docker_archive()).ok().unwrap();
    let code = random::exit_code().to_string();
    let script = format!("sleep 4; exit {code}");
    idle(&["run", "-d", "--name", "four", &image.reference, "sh", "-c", &script]).ok().unwrap();
    let first = daemons(&sandbox);
    assert_eq!(first.len(), 1);
    wait::until("the end of the idle daemon", DEFAULT_TIMEOUT + Duration::from_secs(30), || {
        daemons(&sandbox).is_empty().then_some(())
    })
    .unwrap();
    let state = idle(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "four"]);
    assert_eq!(state.ok().unwrap().text(), format!("exited {code}"));
    assert_ne!(daemons(&sandbox), first, "a new daemon has answered");
    sandbox.close().unwrap();
}

/// What the daemon's state file says, when it says that a daemon is ready.
fn ready(sandbox: &Sandbox) -> Option<String> {
    let note = sandbox.shell("cat /run/gantry/gantry.lock 2> /dev/null || :").ok().ok()?.text();
    note.contains(" ready ").then_some(note)
}

/// A client that comes while a daemon that was started by hand is on its way waits for that one; the
/// other way round, the client's daemon gives way. Never do both fail, and one is left.
#[test]
fn a_daemon_by_hand_has_the_last_word() {
    let sandbox = sandbox();
    for clients in [1, 4] {
        let daemon = gantry(&sandbox, &["daemon"]).spawn().unwrap();
        let clients: Vec<_> =
            (0..clients).map(|_| gantry(&sandbox, &["ps", "-q"]).spawn().unwrap()).collect();
        for client in clients {
            let output = client.wait(DEFAULT_TIMEOUT).unwrap();
            assert_eq!(output.code(), 0, "{}", output.both());
        }
        wait::until("the daemon by hand", DEFAULT_TIMEOUT, || {
            ready(&sandbox).filter(|note| note.contains(" service "))
        })
        .unwrap_or_else(|error| panic!("{error}: {}", daemon.stderr_so_far()));
        assert_eq!(daemons(&sandbox).len(), 1);
        daemon.signal(Signal::TERM).unwrap();
        let output = daemon.wait(DEFAULT_TIMEOUT).unwrap();
        assert_eq!(output.code(), 0, "{}", output.both());
    }
    sandbox.close().unwrap();
}

#[test]
fn one_on_demand_gives_way_when_its_clients_are_done() {
    let sandbox = sandbox();
    let events = gantry(&sandbox, &["events"]).spawn().unwrap();
    let note = wait::until("a daemon", DEFAULT_TIMEOUT, || ready(&sandbox)).unwrap();
    assert!(note.contains(" on-demand "), "{note}");
    wait::until("its client", DEFAULT_TIMEOUT, || {
        let sockets = sandbox.shell("grep -c /run/gantry/gantry.sock /proc/net/unix || :");
        (sockets.ok().ok()?.text().trim().parse::<u32>().ok()? > 1).then_some(())
    })
    .unwrap();
    let refused = gantry(&sandbox, &["daemon"]).output().unwrap();
    assert_eq!(refused.code(), 1, "{}", refused.both());
    assert!(refused.stderr_text().contains("still has clients"), "{}", refused.both());
    events.signal(Signal::INT).unwrap();
    events.wait(DEFAULT_TIMEOUT).unwrap();
    let daemon = gantry(&sandbox, &["daemon"]).spawn().unwrap();
    wait::until("the daemon by hand", DEFAULT_TIMEOUT, || {
        ready(&sandbox).filter(|note| note.contains(" service "))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", daemon.stderr_so_far()));
    daemon.signal(Signal::TERM).unwrap();
    assert_eq!(daemon.wait(DEFAULT_TIMEOUT).unwrap().code(), 0);
    sandbox.close().unwrap();
}

/// Whatever keeps it from being ready, its client says what and where more is to be read.
#[test]
fn a_start_that_fails_tells_its_reason() {
    let sandbox = sandbox();
    let failed = |why: &str| {
        let output = gantry(&sandbox, &["ps"]).output().unwrap();
        assert_eq!(output.code(), 1, "{}", output.both());
        let text = output.stderr_text();
        assert!(text.contains(why) && text.contains("/var/log/gantry.log"), "{text}");
        assert!(!text.contains("connection reset"), "{text}");
        assert_eq!(daemons(&sandbox), [""; 0]);
    };
    let key = random::token(8);
    sandbox.write("/etc/gantry/daemon.json", format!("{{ \"{key}\": 1 }}")).unwrap();
    failed(&key);
    sandbox.write("/etc/gantry/daemon.json", "{}").unwrap();
    // Found out only when it has its sockets.
    sandbox.write("/var/lib/gantry/containers", "no directory").unwrap();
    failed("/var/lib/gantry/containers");
    sandbox.shell("rm /var/lib/gantry/containers").ok().unwrap();
    gantry(&sandbox, &["ps"]).ok().unwrap();
    sandbox.close().unwrap();
}

#[test]
fn a_restart_policy_is_answered_with_how_to_enable_the_service() {
    let sandbox = sandbox();
    let create = gantry(&sandbox, &["create", "--restart", "always", "gantry/hello"]).ok().unwrap();
    let warnings = create.stderr_text();
    assert_eq!(warnings.matches("systemctl enable").count(), 1, "{warnings}");
    let create = gantry(&sandbox, &["create", "--restart", "no", "gantry/hello"]).ok().unwrap();
    assert!(!create.stderr_text().contains("systemctl"), "{}", create.stderr_text());
    sandbox.close().unwrap();
}

/// The host's shutdown, by the command that its unit runs: containers get their own signals, and are
/// not held back from starting at the next boot.
#[test]
fn containers_stop_with_the_host() {
    let sandbox = sandbox();
    let image = testkit::fixtures::busybox::Busybox::new().unwrap();
    gantry(&sandbox, &["load"]).stdin(image.docker_archive()).ok().unwrap();
    let code = random::exit_code().to_string();
    let script = format!("trap 'exit {code}' USR2; echo set; while :; do sleep 0.1; done");
    let start = |name: &str, policy: &str| {
        let options = ["run", "-d", "--stop-signal=USR2", "--stop-timeout=60", "--name", name];
        let options = [&options[..], &["--restart", policy, &image.reference]].concat();
        gantry(&sandbox, &[&options[..], &["sh", "-c", &script]].concat()).ok().unwrap();
        wait::until("its trap", DEFAULT_TIMEOUT, || {
            let logs = gantry(&sandbox, &["logs", name]).ok().ok()?;
            logs.text().contains("set").then_some(())
        })
        .unwrap();
    };
    let state = |name: &str| {
        let format = "{{.State.Status}} {{.State.ExitCode}}";
        gantry(&sandbox, &["inspect", "--format", format, name]).ok().unwrap().text()
    };
    let stop = || gantry(&sandbox, &["daemon", "--stop-containers"]).ok().unwrap();
    start("once", "no");
    start("ever", "unless-stopped");
    stop();
    assert_eq!(daemons(&sandbox), [""; 0], "the daemon ends with its containers");
    assert_eq!(state("once"), format!("exited {code}"));
    wait::until("the container that was not stopped by hand", DEFAULT_TIMEOUT, || {
        state("ever").starts_with("running").then_some(())
    })
    .unwrap();
    // The same where no daemon runs.
    gantry(&sandbox, &["rm", "-f", "ever"]).ok().unwrap();
    start("later", "no");
    sandbox.command("kill", ["-9", &daemons(&sandbox)[0]]).ok().unwrap();
    stop();
    assert_eq!(daemons(&sandbox), [""; 0]);
    assert_eq!(state("later"), format!("exited {code}"));
    stop();
    gantry(&sandbox, &["rm", "later", "once"]).ok().unwrap();
    sandbox.close().unwrap();
}
