//! The installed docker CLI against our engine, as a user would sit before it.

use crate::ground::{LONG, assert_in_order, example, fetch, foreign, on_engine};
use std::time::Duration;
use testkit::command::DEFAULT_TIMEOUT;
use testkit::registry::{Access, Registry};
use testkit::sandbox::{INSIDE_ADDRESS, Net};
use testkit::terminal::Terminal;
use testkit::{random, wait};

#[test]
fn version_and_info_tell_of_this_machine() {
    on_engine(Net::Isolated, |ground| {
        let client = ground.docker(&["version", "--format", "{{.Client.Version}}"]);
        assert!(client.starts_with("28."), "the docker CLI is {client}");
        let server = ground.docker(&["version", "--format", "{{json .Server}}"]);
        let server: serde_json::Value = serde_json::from_str(&server).unwrap();
        let uname = |flag| ground.sandbox.command("uname", [flag]).ok().unwrap().text();
        assert_eq!(server["KernelVersion"], uname("-r"));
        assert_eq!(server["Os"], "linux");
        let api: Vec<u32> =
            server["ApiVersion"].as_str().unwrap().split('.').map(|n| n.parse().unwrap()).collect();
        assert!(api >= vec![1, 44], "API {api:?}");
        let info = ground.docker(&["info", "--format", "{{json .}}"]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["Name"], ground.sandbox.id());
        assert_eq!(info["KernelVersion"], uname("-r"));
        assert_eq!(info["Images"], 1);
        assert_eq!(info["Containers"], 0);
        let processors = ground.sandbox.command("nproc", ["--all"]).ok().unwrap().text();
        assert_eq!(info["NCPU"].to_string(), processors);
        assert!(info["ServerErrors"].is_null(), "{info}");
        ground.start(&[], &["sleep", "1000"]);
        let running = ground.docker(&["info", "--format", "{{.ContainersRunning}}"]);
        assert_eq!(running, "1");
        let text = ground.docker(&["info"]);
        assert_in_order(&text, &["Server:", " Containers: 1", "  Running: 1", " Images: 1"]);
    });
}

#[test]
fn a_shell_on_a_terminal() {
    on_engine(Net::Isolated, |ground| {
        let columns = u16::try_from(random::number(60..200)).unwrap();
        let (word, code) = (random::token(8), random::exit_code());
        let name = random::name("shell");
        let args = ["run", "--rm", "-it", "--name", &name, ground.reference(), "sh"];
        let command = ground.daemon.docker(args).env("TERM", "xterm");
        let mut shell = Terminal::start(&command, columns, 37).unwrap();
        let mut seen = shell.wait_for("/ # ", 0).unwrap();
        // The size may come a moment after the start, as the CLI sends it then.
        shell.type_in("until [ \"$(stty size)\" != '0 0' ]; do :; done; stty size\r").unwrap();
        seen = shell.wait_for(&format!("37 {columns}\r\n"), seen).unwrap();
        shell.resize(columns + 7, 41).unwrap();
        shell.type_in("while stty size | grep -q ^37; do :; done; stty size\r").unwrap();
        seen = shell.wait_for(&format!("41 {}\r\n", columns + 7), seen).unwrap();
        shell.type_in("tty; echo $TERM\r").unwrap();
        seen = shell.wait_for("/dev/pts/0\r\nxterm\r\n", seen).unwrap();
        shell.type_in(&format!("echo b''egin; sleep 1000; echo {word}-$?\r")).unwrap();
        seen = shell.wait_for("begin\r\n", seen).unwrap();
        shell.type_in("\x03").unwrap();
        seen = shell.wait_for("^C", seen).unwrap();
        shell.type_in(&format!("echo s''till {word}\r")).unwrap();
        shell.wait_for(&format!("still {word}\r\n"), seen).unwrap();
        shell.type_in(&format!("exit {code}\r")).unwrap();
        assert_eq!(shell.wait().unwrap(), code);
        assert_eq!(ground.docker(&["ps", "-aq"]), "", "--rm");
    });
}

#[test]
fn a_detached_server_from_start_to_removal() {
    on_engine(Net::Isolated, |ground| {
        let (name, port, word) = (random::name("web"), random::port(), random::token(12));
        let publish = format!("{port}:80");
        let serve = format!(
            "trap 'echo farewell; kill %1; exit 0' TERM; mkdir /www; echo {word} > /www/page; \
             httpd -f -vv -h /www -p 80 & echo ready; while :; do wait; done"
        );
        let id = ground.start(&["--name", &name, "-p", &publish], &["sh", "-c", &serve]);
        ground.wait_for_log(&name, "ready");
        let follow = ground.daemon.docker(["logs", "-f", &name]).spawn().unwrap();
        follow.wait_for_stdout("ready").unwrap();
        let page = ground.fetch(&format!("http://{INSIDE_ADDRESS}:{port}/page"));
        assert_eq!(page, word);
        wait::until_ok("the request in the followed log", DEFAULT_TIMEOUT, || {
            let seen = follow.stderr_so_far();
            if seen.contains("url:/page") { Ok(()) } else { Err(seen) }
        })
        .unwrap();
        let line = ground.docker(&["ps"]);
        assert_in_order(
            &line,
            &[
                "CONTAINER ID   IMAGE",
                &id[..12],
                ground.reference(),
                "Up ",
                &format!("0.0.0.0:{port}->80/tcp"),
                &name,
            ],
        );
        let command = ground.daemon.docker(["exec", "-it", &name, "sh"]);
        let mut shell = Terminal::start(&command, 80, 24).unwrap();
        let seen = shell.wait_for("# ", 0).unwrap();
        shell.type_in("cat /www/page; readlink /proc/self/fd/0\r").unwrap();
        shell.wait_for(&format!("{word}\r\n/dev/pts/0\r\n"), seen).unwrap();
        let code = random::exit_code();
        shell.type_in(&format!("exit {code}\r")).unwrap();
        assert_eq!(shell.wait().unwrap(), code);
        assert_eq!(ground.docker(&["stop", &name]), name);
        let followed = follow.wait(DEFAULT_TIMEOUT).unwrap();
        assert_eq!(followed.code(), 0);
        assert_in_order(&followed.text(), &["ready", "farewell"]);
        let state = ground.inspect(&name, "{{.State.Status}} {{.State.ExitCode}}");
        assert_eq!(state, "exited 0");
        assert_eq!(ground.docker(&["ps", "-q"]), "");
        assert_in_order(&ground.docker(&["ps", "-a"]), &["Exited (0)", &name]);
        assert!(!ground.sandbox.listens(port), "the port is still taken");
        assert_eq!(ground.docker(&["rm", &name]), name);
        assert_eq!(ground.docker(&["ps", "-aq"]), "");
    });
}

#[test]
fn images_are_listed_with_what_they_hold() {
    on_engine(Net::Isolated, |ground| {
        let (repository, tag) = ground.reference().rsplit_once(':').unwrap();
        let listed = ground.docker(&["images"]);
        assert_in_order(&listed, &["REPOSITORY", "TAG", "IMAGE ID", repository, tag]);
        let marker = ground.docker(&[
            "image",
            "inspect",
            "--format",
            "{{index .Config.Labels \"marker\"}}",
            ground.reference(),
        ]);
        assert_eq!(marker, ground.image.marker);
        let content =
            ground.docker(&["run", "--rm", ground.reference(), "cat", &ground.image.marker_path]);
        assert_eq!(content, ground.image.marker);
    });
}

/// Needs the package mirror: the first stage installs a compiler.
#[test]
fn the_example_is_built_and_serves() {
    on_engine(Net::Uplink, |ground| {
        ground.import_base("tiny");
        ground.import_base("debian");
        let context = "/run/tmp/hello";
        ground.sh(&format!("cp -r {} {context}", example("hello")));
        let tag = random::name("hello");
        let build = || {
            let built = ground.daemon.docker(["build", "-t", &tag, context]).timeout(LONG).ok();
            built.unwrap().text()
        };
        let first = build();
        assert_in_order(&first, &["FROM local/debian", "gcc", &format!("tagged {tag}:latest")]);
        let again = build();
        assert!(!again.contains("Running in") && !again.contains("Cache miss"), "{again}");
        let cached = again.lines().filter(|line| line.contains("Using cache")).count();
        assert!(cached > 5, "not from the cache:\n{again}");
        let word = random::token(12);
        ground.sh(&format!("echo {word} >> {context}/greeting.txt"));
        let changed = build();
        let mut reasons = changed.lines().filter(|line| line.contains("Cache miss"));
        let told = reasons.next().is_some_and(|line| line.contains("greeting.txt"));
        assert!(told || foreign(), "no reason is told:\n{changed}");
        assert!(changed.contains("Using cache"), "nothing from the cache:\n{changed}");
        let port = random::port();
        ground.docker(&["run", "-d", "-p", &format!("{port}:8080"), &tag]);
        let page = ground.fetch(&format!("http://{INSIDE_ADDRESS}:{port}/"));
        assert!(page.contains(&word), "{page}");
    });
}

#[test]
fn images_go_to_a_registry_and_come_back() {
    on_engine(Net::Isolated, |ground| {
        let registry = Registry::start(ground.sandbox, Access::Plain).unwrap();
        let target = registry.reference();
        ground.docker(&["tag", ground.reference(), &target]);
        let pushed = ground.docker(&["push", &target]);
        let tag = target.rsplit_once(':').unwrap().1;
        assert_in_order(&pushed, &["The push refers to", &format!("{tag}: digest: sha256:")]);
        ground.docker(&["rmi", &target, ground.reference()]);
        assert_eq!(ground.docker(&["images", "-q"]), "");
        let pulled = ground.docker(&["pull", &target]);
        assert_in_order(&pulled, &["Pulling from", "Pull complete", "Digest: sha256:", &target]);
        let content = ground.docker(&["run", "--rm", &target, "cat", &ground.image.marker_path]);
        assert_eq!(content, ground.image.marker);
        let again = ground.docker(&["pull", &target]);
        assert!(again.contains("Image is up to date"), "{again}");
    });
}

#[test]
fn images_go_to_a_registry_with_tls_and_a_password() {
    on_engine(Net::Isolated, |ground| {
        let registry = Registry::start(ground.sandbox, Access::Secured).unwrap();
        let target = registry.reference();
        ground.docker(&["tag", ground.reference(), &target]);
        let refused = ground.daemon.docker(["push", &target]).output().unwrap();
        assert_eq!(refused.code(), 1);
        let login = ["login", "-u", &registry.user, "--password-stdin", &registry.address];
        let wrong = ground.daemon.docker(login).stdin(random::token(9)).output().unwrap();
        assert_eq!(wrong.code(), 1, "{}", wrong.both());
        let right = ground.daemon.docker(login).stdin(registry.password.clone()).ok().unwrap();
        assert!(right.text().contains("Login Succeeded"), "{}", right.both());
        ground.docker(&["push", &target]);
        ground.docker(&["rmi", &target, ground.reference()]);
        ground.docker(&["pull", &target]);
        let content = ground.docker(&["run", "--rm", &target, "cat", &ground.image.marker_path]);
        assert_eq!(content, ground.image.marker);
    });
}

#[test]
fn files_are_copied_both_ways() {
    on_engine(Net::Isolated, |ground| {
        let (name, word) = (random::name("files"), random::token(20));
        ground.start(&["--name", &name], &["sleep", "1000"]);
        ground.sh(&format!(
            "mkdir -p tree/sub; echo {word} > tree/sub/file; ln -s sub/file tree/link; \
             chmod 640 tree/sub/file; chown 1000:2000 tree/sub/file; head -c 3000000 /dev/urandom > tree/big; \
             docker cp -a tree {name}:/tmp/tree"
        ));
        let inside = "cat /tmp/tree/link; stat -c '%a %u:%g' /tmp/tree/sub/file; readlink /tmp/tree/link; sha256sum < /tmp/tree/big";
        let seen = ground.docker(&["exec", &name, "sh", "-c", inside]);
        let sum = ground.sh("sha256sum < tree/big");
        assert_eq!(seen, format!("{word}\n640 1000:2000\nsub/file\n{sum}"));
        ground.sh(&format!("docker cp {name}:/tmp/tree back; diff -r tree back"));
        let stopped = ground.sh(&format!(
            "docker stop -t 0 {name} > /dev/null; echo late {word} > late; docker cp late {name}:/late; \
             docker cp {name}:/late - | tar -xOf -"
        ));
        assert_eq!(stopped, format!("late {word}"), "from a stopped container");
        let absent =
            ground.daemon.docker(["cp", &format!("{name}:/{word}"), "."]).output().unwrap();
        assert_eq!(absent.code(), 1);
        assert!(absent.stderr_text().contains("Could not find the file"), "{}", absent.both());
    });
}

#[test]
fn events_tell_what_happens() {
    on_engine(Net::Isolated, |ground| {
        let (name, code) = (random::name("event"), random::exit_code());
        let format = "{{.Type}} {{.Action}} {{index .Actor.Attributes \"name\"}} {{index .Actor.Attributes \"exitCode\"}}";
        // A stream from the beginning of time, so that nothing is missed while it connects.
        let args = ["events", "--since", "0", "--filter", "type=container", "--format", format];
        let mut stream = ground.daemon.docker(args).spawn().unwrap();
        let script = format!("exit {code}");
        let run = ["run", "--rm", "--name", &name, ground.reference(), "sh", "-c", &script];
        assert_eq!(ground.daemon.docker(run).output().unwrap().code(), code);
        let seen = stream.wait_for_stdout(&format!("container destroy {name}")).unwrap();
        assert_in_order(
            &seen,
            &[
                format!("container create {name}"),
                format!("container attach {name}"),
                format!("container start {name}"),
                format!("container die {name} {code}"),
                format!("container destroy {name}"),
            ],
        );
        assert!(!stream.has_ended().unwrap());
    });
}

/// Ten megabytes through attach, exec and logs, each byte at its place.
#[test]
fn much_output_arrives_whole() {
    on_engine(Net::Isolated, |ground| {
        let lines = 200_000 + random::number(0..1000);
        let script = format!("seq 1 {lines}");
        let wanted = ground.sh(&format!("seq 1 {lines} | sha256sum"));
        let name = random::name("much");
        let sum =
            ground.sh(&format!("docker run --name {name} \"$I\" sh -c '{script}' | sha256sum"));
        assert_eq!(sum, wanted, "run");
        assert_eq!(ground.sh(&format!("docker logs {name} | sha256sum")), wanted, "logs");
        let echoed = ground.sh(&format!("{script} | docker run --rm -i \"$I\" cat | sha256sum"));
        assert_eq!(echoed, wanted, "stdin");
        ground.start(&["--name", "sleeper"], &["sleep", "1000"]);
        let echoed = ground.sh(&format!("{script} | docker exec -i sleeper cat | sha256sum"));
        assert_eq!(echoed, wanted, "exec");
        let last = ground.docker(&["logs", "--tail", "2", &name]);
        assert_eq!(last, format!("{}\n{lines}", lines - 1));
    });
}

/// A container that ignores the polite signal is killed after its time, and the code says so.
#[test]
fn stop_kills_what_does_not_listen() {
    on_engine(Net::Isolated, |ground| {
        let name = random::name("deaf");
        ground.start(
            &["--name", &name],
            &["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"],
        );
        ground.wait_for_log(&name, "deaf");
        let stop = ground.daemon.docker(["stop", "-t", "1", &name]);
        stop.timeout(Duration::from_secs(30)).ok().unwrap();
        assert_eq!(ground.inspect(&name, "{{.State.ExitCode}} {{.State.OOMKilled}}"), "137 false");
    });
}

/// A web server's file becomes an image, and goes into one; a step is made anew when it changed.
#[test]
fn what_a_web_server_has_is_imported_and_added() {
    on_engine(Net::Isolated, |ground| {
        let (port, word, other) = (random::port(), random::token(12), random::token(12));
        let url = format!("http://127.0.0.1:{port}");
        ground.sandbox.write("/run/www/file", &word).unwrap();
        ground.sh("tar -cf /run/www/root.tar -C /run/www file");
        let port = port.to_string();
        let line = ["httpd", "-f", "-p", port.as_str(), "-h", "/run/www"];
        let _server = ground.sandbox.command("busybox", line).spawn().unwrap();
        let first = format!("{url}/file");
        fetch(|| ground.sandbox.command("curl", ["-sSf", first.as_str()])).unwrap();
        ground.docker(&["import", &format!("{url}/root.tar"), "local/imported"]);
        let base = ground.reference();
        let file = format!(
            "FROM {base}\nADD {url}/file /dir/\nADD {url}/file /name\n\
             COPY --from=local/imported file /imported\n"
        );
        ground.sandbox.write("/run/added/Dockerfile", &file).unwrap();
        let build = "DOCKER_BUILDKIT=0 docker build -t local/added /run/added";
        ground.sh(build);
        let cat = ["run", "--rm", "local/added", "cat", "/dir/file", "/name", "/imported"];
        assert_eq!(ground.docker(&cat).matches(&word).count(), 3);
        assert_eq!(ground.sh(build).matches("Using cache").count(), 3);
        ground.sandbox.write("/run/www/file", &other).unwrap();
        ground.sh(build);
        assert_eq!(ground.docker(&["run", "--rm", "local/added", "cat", "/name"]), other);
        let file = format!("FROM scratch\nADD {url}/none /\n");
        ground.sandbox.write("/run/added/Dockerfile", &file).unwrap();
        let failed = ground.shell(build).output().unwrap();
        assert!(failed.code() != 0 && failed.both().contains("404"), "{}", failed.both());
    });
}
