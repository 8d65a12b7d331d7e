//! Containers outlive the daemon: its death, its stop, its return.

use crate::ground::{Ground, on_engine};
use std::time::Duration;
use testkit::command::DEFAULT_TIMEOUT;
use testkit::sandbox::{INSIDE_ADDRESS, Net};
use testkit::{random, wait};

/// A line every ten milliseconds, numbered from 1, and an end with a code.
fn counter(lines: u32, code: i32) -> String {
    format!(
        "i=1; while [ $i -le {lines} ]; do echo $i; i=$((i+1)); usleep 10000; done; exit {code}"
    )
}

fn numbers(lines: u32) -> String {
    (1..=lines).map(|n| n.to_string()).collect::<Vec<_>>().join("\n")
}

fn lines_so_far(ground: &Ground<'_>, name: &str) -> usize {
    ground.docker(&["logs", name]).lines().count()
}

fn wait_for_lines(ground: &Ground<'_>, name: &str, lines: usize) {
    wait::until("lines in the log", DEFAULT_TIMEOUT, || {
        (lines_so_far(ground, name) >= lines).then_some(())
    })
    .unwrap();
}

/// Exit code, whole log, and state after the end.
fn assert_ended(ground: &Ground<'_>, name: &str, lines: u32, code: i32) {
    assert_eq!(ground.docker(&["wait", name]), code.to_string());
    assert_eq!(ground.docker(&["logs", name]), numbers(lines), "the log of {name}");
    let state = ground.inspect(name, "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}");
    assert_eq!(state.trim(), format!("exited {code}"));
}

#[test]
fn a_kill_of_the_daemon_loses_no_line_and_no_code() {
    on_engine(Net::Isolated, |ground| {
        let (name, code) = (random::name("count"), random::exit_code());
        let lines = 400 + random::number(0..100);
        ground.start(&["--name", &name], &["sh", "-c", &counter(lines, code)]);
        let pid = ground.inspect(&name, "{{.State.Pid}}");
        wait_for_lines(ground, &name, 50);
        ground.daemon.kill().unwrap();
        assert!(ground.sandbox.path(format!("/proc/{pid}")).exists(), "it died with the daemon");
        ground.daemon.start_again().unwrap();
        assert_eq!(
            ground.inspect(&name, "{{.State.Pid}} {{.State.Running}}"),
            format!("{pid} true")
        );
        assert_ended(ground, &name, lines, code);
    });
}

#[test]
fn an_end_while_no_daemon_is_there_is_known_afterwards() {
    on_engine(Net::Isolated, |ground| {
        let (name, gone) = (random::name("count"), random::name("removed"));
        let (lines, code) = (100 + random::number(0..100), random::exit_code());
        ground.start(&["--name", &name], &["sh", "-c", &counter(lines, code)]);
        ground.start(&["--name", &gone, "--rm"], &["sh", "-c", &counter(lines, code)]);
        let pids = [&name, &gone].map(|name| ground.inspect(name, "{{.State.Pid}}"));
        ground.daemon.kill().unwrap();
        wait::until("the containers' end", DEFAULT_TIMEOUT, || {
            let alive = |pid| ground.sandbox.path(format!("/proc/{pid}")).exists();
            (!pids.iter().any(alive)).then_some(())
        })
        .unwrap();
        ground.daemon.start_again().unwrap();
        assert_ended(ground, &name, lines, code);
        wait::until("the removal of what has --rm", DEFAULT_TIMEOUT, || {
            (!ground.docker(&["ps", "-a", "--format", "{{.Names}}"]).contains(&gone)).then_some(())
        })
        .unwrap();
    });
}

#[test]
fn a_stop_of_the_daemon_leaves_containers_running() {
    on_engine(Net::Isolated, |ground| {
        let (name, code) = (random::name("count"), random::exit_code());
        let lines = 300 + random::number(0..100);
        ground.start(&["--name", &name], &["sh", "-c", &counter(lines, code)]);
        wait_for_lines(ground, &name, 20);
        let stopped = ground.daemon.stop().unwrap();
        assert_eq!(stopped.code(), 0, "{}", stopped.both());
        ground.daemon.start_again().unwrap();
        assert_eq!(ground.inspect(&name, "{{.State.Running}}"), "true");
        let exec = ground.docker(&["exec", &name, "cat", &ground.image.marker_path]);
        assert_eq!(exec, ground.image.marker);
        assert_ended(ground, &name, lines, code);
    });
}

#[test]
fn twenty_kills_in_a_row() {
    on_engine(Net::Isolated, |ground| {
        let (name, code) = (random::name("count"), random::exit_code());
        let lines = 6000;
        let script = format!("trap 'exit {code}' TERM; {}", counter(lines, 0));
        ground.start(&["--name", &name], &["sh", "-c", &script]);
        let mut seen = 0;
        for _ in 0..20 {
            ground.daemon.kill().unwrap();
            ground.daemon.start_again().unwrap();
            wait_for_lines(ground, &name, seen + 1);
            seen = lines_so_far(ground, &name);
            assert_eq!(ground.inspect(&name, "{{.State.Running}} {{.RestartCount}}"), "true 0");
        }
        ground.docker(&["stop", &name]);
        assert_eq!(ground.inspect(&name, "{{.State.ExitCode}}"), code.to_string());
        let log = ground.docker(&["logs", &name]);
        let last = u32::try_from(log.lines().count()).unwrap();
        assert_eq!(log, numbers(last));
    });
}

/// Twenty kills at random moments of a client's work: what it was told stands, nothing is half there.
#[test]
fn kills_in_the_middle_of_work() {
    on_engine(Net::Isolated, |ground| {
        for round in 0..20 {
            let (name, code) = (format!("round-{round}"), random::exit_code());
            let script = format!("exit {code}");
            let args = ["run", "--name", &name, ground.reference(), "sh", "-c", &script];
            let client = ground.daemon.docker(args).spawn().unwrap();
            // Anywhere between before the request and after the end; nothing depends on where.
            std::thread::sleep(Duration::from_millis(u64::from(random::number(0..300))));
            ground.daemon.kill().unwrap();
            let told = client.wait(DEFAULT_TIMEOUT).unwrap().code();
            ground.daemon.start_again().unwrap();
            let known = ground.docker(&["ps", "-a", "--format", "{{.Names}}"]);
            let known = known.lines().any(|line| line == name);
            assert!(known || told != code, "told of {code}, yet the container is gone");
            if known {
                let waited = ground.inspect(&name, "{{.State.Status}}");
                assert!(
                    ["created", "running", "exited"].contains(&waited.as_str()),
                    "{name} is {waited}"
                );
                ground.docker(&["rm", "-f", &name]);
            }
        }
        let last =
            ground.docker(&["run", "--rm", ground.reference(), "cat", &ground.image.marker_path]);
        assert_eq!(last, ground.image.marker);
    });
}

#[test]
fn ports_and_connections_outlive_the_daemon() {
    on_engine(Net::Isolated, |ground| {
        let (name, port, word) = (random::name("web"), random::port(), random::token(12));
        let serve =
            format!("mkdir /w; echo {word} > /w/page; httpd -h /w; exec nc -ll -p 7 -e cat");
        let ports = [format!("{port}:80"), format!("{}:7", port + 1)];
        ground.start(&["--name", &name, "-p", &ports[0], "-p", &ports[1]], &["sh", "-c", &serve]);
        let url = format!("http://{INSIDE_ADDRESS}:{port}/page");
        assert_eq!(ground.fetch(&url), word);
        let nc = ["nc", INSIDE_ADDRESS, &(port + 1).to_string()].map(str::to_owned);
        let mut connection = ground.sandbox.outside("busybox", nc).open_stdin().spawn().unwrap();
        connection.write(b"before\n").unwrap();
        connection.wait_for_stdout("before\n").unwrap();
        ground.daemon.kill().unwrap();
        connection.write(b"while away\n").unwrap();
        connection.wait_for_stdout("while away\n").unwrap();
        assert_eq!(ground.fetch(&url), word, "a new connection while no daemon is there");
        ground.daemon.start_again().unwrap();
        connection.write(b"after\n").unwrap();
        connection.wait_for_stdout("after\n").unwrap();
        assert_eq!(ground.fetch(&url), word);
        assert_eq!(
            ground.docker(&["port", &name, "80/tcp"]).lines().next().unwrap(),
            format!("0.0.0.0:{port}")
        );
        connection.close_stdin();
        let taken = ["run", "--rm", "-p", &ports[0], ground.reference(), "true"];
        let refused = ground.daemon.docker(taken).output().unwrap();
        assert_eq!(refused.code(), 125, "{}", refused.both());
        assert!(refused.stderr_text().contains("port is already allocated"), "{}", refused.both());
        ground.docker(&["rm", "-f", &name]);
        assert!(!ground.sandbox.listens(port));
    });
}

#[test]
fn names_networks_volumes_and_images_outlive_the_daemon() {
    on_engine(Net::Isolated, |ground| {
        let (net, volume, word) = (random::name("net"), random::name("vol"), random::token(12));
        ground.docker(&["network", "create", &net]);
        ground.docker(&["volume", "create", "--label", &format!("w={word}"), &volume]);
        let server = random::name("server");
        let serve = format!("echo {word} > /data/page; exec httpd -f -h /data");
        let data = format!("{volume}:/data");
        ground.start(&["--name", &server, "--network", &net, "-v", &data], &["sh", "-c", &serve]);
        ground.daemon.kill().unwrap();
        ground.daemon.start_again().unwrap();
        let script = format!("until wget -qO- http://{server}/page; do usleep 50000; done");
        let run = ["run", "--rm", "--network", &net, ground.reference(), "sh", "-c", &script];
        assert_eq!(ground.docker(&run), word);
        assert_eq!(
            ground.docker(&["volume", "inspect", "--format", "{{.Labels.w}}", &volume]),
            word
        );
        ground.docker(&["rm", "-f", &server]);
        ground.docker(&["network", "rm", &net]);
        ground.docker(&["volume", "rm", &volume]);
    });
}

/// Kills at random moments of a build: neither the next build nor a prune takes a layer from a container,
/// and nothing stays of the builds.
#[test]
fn containers_keep_their_layers_over_a_killed_build() {
    on_engine(Net::Isolated, |ground| {
        let (created, exited, word) =
            (random::name("created"), random::name("exited"), random::token(12));
        let mark = format!("echo {word} > /mark; cat /mark");
        ground.docker(&["create", "--name", &created, ground.reference(), "sh", "-c", &mark]);
        let leave = format!("echo {word} > /left");
        ground.docker(&["run", "--name", &exited, ground.reference(), "sh", "-c", &leave]);
        ground.sh(
            "mkdir ctx; head -c 100000 /dev/urandom > ctx/junk; \
             printf 'FROM %s\\nRUN echo a > /a\\nRUN sleep 0.2; echo b > /b\\n' \"$I\" > ctx/Dockerfile",
        );
        let build = "DOCKER_BUILDKIT=0 docker build --no-cache -q ctx";
        for _ in 0..5 {
            let client = ground.shell(build).spawn().unwrap();
            // Anywhere in the build; nothing depends on where.
            std::thread::sleep(Duration::from_millis(u64::from(random::number(50..700))));
            ground.daemon.kill().unwrap();
            client.wait(DEFAULT_TIMEOUT).unwrap();
            ground.daemon.start_again().unwrap();
            ground.sh(build);
            ground.docker(&["builder", "prune", "-af"]);
            ground.docker(&["image", "prune", "-f"]);
            let copied = ground.sh(&format!("docker cp {exited}:/left - | tar -xO"));
            assert_eq!(copied, word);
        }
        let run = ground.docker(&["start", "-a", &created]);
        assert_eq!(run, word);
        let contexts = ground.sandbox.path("/var/lib/gantry/tmp");
        assert_eq!(std::fs::read_dir(contexts).unwrap().count(), 0, "build contexts are left");
        let steps = ground.sandbox.path("/run/gantry/build");
        assert_eq!(std::fs::read_dir(steps).unwrap().count(), 0, "steps are left");
    });
}

/// Volumes with a file system of their own behind them: shared while one container runs, kept over a
/// kill, away when nobody uses them, and what was mounted outlives the volume.
#[test]
fn volumes_with_options_are_mounted_while_they_are_used() {
    on_engine(Net::Isolated, |ground| {
        let (word, name) = (random::token(12), random::name("user"));
        ground.sandbox.write("/run/precious/file", &word).unwrap();
        ground.sh("docker volume create -o type=tmpfs -o device=tmpfs -o o=size=1m shared-memory");
        ground.sh("docker volume create -o type=none -o device=/run/precious -o o=bind,ro outside");
        let volumes = ["-v", "shared-memory:/m", "-v", "outside:/o"];
        let line: Vec<&str> = ["--name", &name].into_iter().chain(volumes).collect();
        ground.start(&line, &["sleep", "1000"]);
        let seen =
            "cat /o/file && ! touch /o/new && df -k /m | grep -qw 1024 && cp /o/file /m/kept";
        assert_eq!(ground.docker(&["exec", &name, "sh", "-c", seen]), word);
        ground.daemon.kill().unwrap();
        ground.daemon.start_again().unwrap();
        let read = ["run", "--rm", "-v", "shared-memory:/m", ground.reference(), "cat", "/m/kept"];
        assert_eq!(ground.docker(&read), word, "the two do not share it");
        let mounted = || ground.sandbox.shell("grep -c /_data /proc/self/mountinfo");
        assert_eq!(mounted().ok().unwrap().text(), "2");
        ground.docker(&["rm", "-f", &name]);
        assert_eq!(mounted().output().unwrap().text(), "0", "volumes stay mounted");
        let lost = ["run", "--rm", "-v", "shared-memory:/m", ground.reference(), "ls", "/m"];
        assert_eq!(ground.docker(&lost), "", "memory outlives its users");
        let created = random::name("created");
        ground.docker(&["create", "--name", &created, "-v", "outside:/o", ground.reference()]);
        let copied = ground.sh(&format!("docker cp {created}:/o/file - | tar -xO"));
        assert_eq!(copied, word);
        ground.docker(&["rm", &created]);
        ground.docker(&["volume", "rm", "outside", "shared-memory"]);
        assert_eq!(ground.sh("cat /run/precious/file"), word);
    });
}
