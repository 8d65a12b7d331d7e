//! Our runtime under engines of others: Debian's podman, Debian's dockerd, Debian's containerd.

use testkit::command::Cmd;
use testkit::engine::{Daemon, gantry_binary};
use testkit::fixtures::busybox::Busybox;
use testkit::leak::LeakCheck;
use testkit::peer::{self, Release};
use testkit::random;
use testkit::sandbox::Sandbox;
use testkit::terminal::Terminal;

/// A directory that is not in the search path, so that an engine's default runtime stays its own.
const PLACE: &str = "/run/runtimes";

/// `/run/runtimes/runc`: our binary under the runtime's name.
fn our_runtime(sandbox: &Sandbox) -> String {
    let script =
        format!("mkdir -p {PLACE}; ln -s {} {PLACE}/runc", gantry_binary().unwrap().display());
    sandbox.shell(&script).ok().unwrap();
    format!("{PLACE}/runc")
}

/// A program that notes how it is called and becomes our runtime.
fn noting_runtime(sandbox: &Sandbox) -> String {
    let runtime = our_runtime(sandbox);
    let script = format!("#!/bin/sh\necho \"$*\" >> {PLACE}/calls\nexec {runtime} \"$@\"\n");
    sandbox.write(&format!("{PLACE}/noting"), script).unwrap();
    sandbox.command("chmod", ["755", &format!("{PLACE}/noting")]).ok().unwrap();
    format!("{PLACE}/noting")
}

fn assert_called(sandbox: &Sandbox, commands: &[&str]) {
    let calls = sandbox.read(&format!("{PLACE}/calls")).unwrap();
    for command in commands {
        let called = calls.lines().any(|line| line.split(' ').any(|word| word == *command));
        assert!(called, "no {command} among the calls:\n{calls}");
    }
}

#[test]
fn podman_runs_containers_with_our_runtime() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let runtime = noting_runtime(&sandbox);
    let image = Busybox::new().unwrap();
    let podman = |args: &[&str]| -> Cmd {
        let line = [
            "--root=/var/lib/podman",
            "--runroot=/run/podman",
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
            &format!("--runtime={runtime}"),
        ]
        .into_iter()
        .chain(args.iter().copied())
        .map(str::to_owned)
        .collect::<Vec<_>>();
        sandbox.command("podman", line)
    };
    // What podman remembers of registries has no option of its own.
    sandbox.command("mount", ["-t", "tmpfs", "cache", "/var/cache"]).ok().unwrap();
    sandbox.write("/run/image.tar", image.oci_archive()).unwrap();
    podman(&["load", "-i", "/run/image.tar"]).ok().unwrap();
    let code = random::exit_code();
    let run = |options: &[&str], command: &[&str]| -> Cmd {
        let fixed = ["run", "--network=none"];
        let line: Vec<&str> = fixed
            .iter()
            .chain(options)
            .chain(&[image.reference.as_str()])
            .chain(command)
            .copied()
            .collect();
        podman(&line)
    };
    let output = run(&["--rm"], &["cat", &image.marker_path]).ok().unwrap();
    assert_eq!(output.text(), image.marker);
    let script = format!("exit {code}");
    assert_eq!(run(&["--rm"], &["sh", "-c", &script]).output().unwrap().code(), code);
    let output = run(&["--rm", "-i"], &["cat"]).stdin(image.marker.clone()).ok().unwrap();
    assert_eq!(output.text(), image.marker);
    let absent = run(&["--rm"], &["/absent"]).output().unwrap();
    assert_eq!(absent.code(), 127, "{}", absent.both());

    let name = random::name("podman");
    let script = format!("trap 'exit {code}' TERM; echo begin; while :; do sleep 0.05; done");
    run(&["-d", "--name", &name], &["sh", "-c", &script]).ok().unwrap();
    let seen = podman(&["exec", &name, "cat", &image.marker_path]).ok().unwrap();
    assert_eq!(seen.text(), image.marker);
    let exec = ["exec", &name, "sh", "-c", &format!("exit {code}")].map(str::to_owned);
    let exec: Vec<&str> = exec.iter().map(String::as_str).collect();
    assert_eq!(podman(&exec).output().unwrap().code(), code);
    podman(&["pause", &name]).ok().unwrap();
    podman(&["unpause", &name]).ok().unwrap();
    podman(&["stop", &name]).ok().unwrap();
    let state = podman(&["inspect", "--format", "{{.State.ExitCode}} {{.OCIRuntime}}", &name]);
    assert_eq!(state.ok().unwrap().text(), format!("{code} {runtime}"));
    assert_eq!(podman(&["logs", &name]).ok().unwrap().text(), "begin");
    podman(&["rm", &name]).ok().unwrap();
    assert_called(&sandbox, &["create", "start", "exec", "kill", "delete"]);
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

/// dockerd with our runtime as one of several, which its default is not.
fn dockerd_with_our_runtime(release: Release) {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let runtime = noting_runtime(&sandbox);
    let config = serde_json::json!({ "runtimes": { "ours": { "path": runtime } } });
    let mut daemon = peer::dockerd(&sandbox, release, &config).unwrap();
    let image = Busybox::new().unwrap();
    daemon.docker(["load"]).stdin(image.docker_archive()).ok().unwrap();
    use_it(&daemon, &image);
    assert_called(&sandbox, &["create", "start", "exec", "kill", "delete", "pause", "resume"]);
    daemon.stop().unwrap();
    drop(daemon);
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

fn use_it(daemon: &Daemon<'_>, image: &Busybox) {
    let run = |options: &[&str], command: &[&str]| -> Cmd {
        let line: Vec<&str> = ["run", "--runtime=ours"]
            .iter()
            .chain(options)
            .chain(&[image.reference.as_str()])
            .chain(command)
            .copied()
            .collect();
        daemon.docker(line)
    };
    let docker = |args: &[&str]| daemon.docker(args.iter().copied()).ok().unwrap().text();
    let code = random::exit_code();
    let seen = run(&["--rm"], &["cat", &image.marker_path]).ok().unwrap().text();
    assert_eq!(seen, image.marker);
    let script = format!("exit {code}");
    assert_eq!(run(&["--rm"], &["sh", "-c", &script]).output().unwrap().code(), code);
    let absent = run(&["--rm"], &["/absent"]).output().unwrap();
    assert_eq!(absent.code(), 127, "{}", absent.both());
    let limits = run(
        &["--rm", "-m", "33m", "--pids-limit", "44", "-u", "1000:2000", "--read-only"],
        &[
            "sh",
            "-c",
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes; cat /sys/fs/cgroup/pids/pids.max; id -u; touch /x || echo read-only",
        ],
    );
    assert_eq!(limits.ok().unwrap().text(), "34603008\n44\n1000\nread-only");

    let mut shell = Terminal::start(&run(&["--rm", "-it"], &["sh"]), 91, 33).unwrap();
    let seen = shell.wait_for("# ", 0).unwrap();
    shell.type_in("until stty size | grep 91; do :; done\r").unwrap();
    shell.wait_for("33 91\r\n", seen).unwrap();
    shell.type_in(&format!("exit {code}\r")).unwrap();
    assert_eq!(shell.wait().unwrap(), code);

    let name = random::name("ours");
    let script = format!("trap 'exit {code}' TERM; echo begin; while :; do sleep 0.05; done");
    run(&["-d", "--name", &name], &["sh", "-c", &script]).ok().unwrap();
    assert_eq!(docker(&["exec", &name, "cat", &image.marker_path]), image.marker);
    let mut shell = Terminal::start(&daemon.docker(["exec", "-it", &name, "sh"]), 80, 24).unwrap();
    shell.wait_for("# ", 0).unwrap();
    shell.type_in(&format!("exit {code}\r")).unwrap();
    assert_eq!(shell.wait().unwrap(), code);
    docker(&["pause", &name]);
    docker(&["unpause", &name]);
    docker(&["stop", &name]);
    assert_eq!(
        docker(&["inspect", "--format", "{{.State.ExitCode}} {{.HostConfig.Runtime}}", &name]),
        format!("{code} ours")
    );
    docker(&["start", &name]);
    docker(&["rm", "-f", &name]);
    assert_eq!(docker(&["ps", "-aq"]), "");
}

#[test]
fn dockerd_of_bookworm_runs_containers_with_our_runtime() {
    dockerd_with_our_runtime(Release::Bookworm);
}

#[test]
fn dockerd_of_trixie_runs_containers_with_our_runtime() {
    dockerd_with_our_runtime(Release::Trixie);
}

/// The flag that stands in the documentation, without a configuration file and with our binary itself.
#[test]
fn dockerd_takes_our_binary_by_its_flag() {
    let sandbox = Sandbox::new().unwrap();
    let runtime = our_runtime(&sandbox);
    for (name, path) in [("dockerd", "/usr/sbin/dockerd"), ("containerd", "/usr/bin/containerd")] {
        sandbox.link(name, path.as_ref()).unwrap();
    }
    let argv = ["dockerd".to_owned(), format!("--add-runtime=gantry={runtime}")];
    let mut daemon = Daemon::start(&sandbox, argv, "/run/docker.sock").unwrap();
    let image = Busybox::new().unwrap();
    daemon.docker(["load"]).stdin(image.docker_archive()).ok().unwrap();
    let run = ["run", "--rm", "--runtime", "gantry", &image.reference, "cat", &image.marker_path];
    assert_eq!(daemon.docker(run).ok().unwrap().text(), image.marker);
    daemon.stop().unwrap();
    drop(daemon);
    sandbox.close().unwrap();
}

/// containerd's own shim calls what `runc` is in its search path.
#[test]
fn containerd_runs_containers_with_our_runtime() {
    for release in [Release::Bookworm, Release::Trixie] {
        let sandbox = Sandbox::new().unwrap();
        let runtime = noting_runtime(&sandbox);
        sandbox.link("runc", runtime.as_ref()).unwrap();
        let daemon = peer::containerd(&sandbox, release).unwrap();
        let image = Busybox::new().unwrap();
        sandbox.write("/run/image.tar", image.oci_archive()).unwrap();
        sandbox.command("ctr", ["images", "import", "/run/image.tar"]).ok().unwrap();
        let reference = sandbox.command("ctr", ["images", "ls", "-q"]).ok().unwrap().text();
        let name = random::name("ctr");
        let run = ["run", "--rm", &reference, &name, "cat", &image.marker_path].map(str::to_owned);
        assert_eq!(sandbox.command("ctr", run).ok().unwrap().text(), image.marker);
        assert_called(&sandbox, &["create", "start", "delete"]);
        drop(daemon);
        sandbox.close().unwrap();
    }
}
