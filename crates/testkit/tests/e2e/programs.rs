//! Programs that people run, from Debian's packages: apt, nginx, PostgreSQL. Needs the mirror.

use crate::ground::{Ground, LONG, example, fetch, on_engine};
use testkit::command::DEFAULT_TIMEOUT;
use testkit::sandbox::{INSIDE_ADDRESS, Net};
use testkit::{random, wait};

fn build(ground: &Ground<'_>, name: &str) -> String {
    ground.import_base("debian");
    let tag = random::name(name);
    let context = example(name);
    ground.daemon.docker(["build", "-q", "-t", &tag, &context]).timeout(LONG).ok().unwrap();
    tag
}

#[test]
fn apt_installs_a_package_in_a_container() {
    on_engine(Net::Uplink, |ground| {
        ground.import_base("debian");
        let script = "apt-get update && apt-get install -y --no-install-recommends hello && hello";
        let run = ["run", "--rm", "local/debian", "sh", "-ec", script];
        let output = ground.daemon.docker(run).timeout(LONG).ok().unwrap();
        assert_eq!(output.lines().last().unwrap(), "Hello, world!", "{}", output.both());
    });
}

#[test]
fn apt_works_in_a_user_network() {
    on_engine(Net::Uplink, |ground| {
        ground.import_base("debian");
        let net = random::name("net");
        ground.docker(&["network", "create", &net]);
        let run = ["run", "--rm", "--network", &net, "local/debian", "apt-get", "update"];
        let output = ground.daemon.docker(run).timeout(LONG).ok().unwrap();
        assert!(output.text().contains("Reading package lists"), "{}", output.both());
        assert!(!output.stderr_text().contains("Err:"), "{}", output.both());
        ground.docker(&["network", "rm", &net]);
    });
}

#[test]
fn nginx_serves_from_a_volume_that_outlives_it() {
    on_engine(Net::Uplink, |ground| {
        let tag = build(ground, "nginx");
        let (name, volume, port) = (random::name("nginx"), random::name("pages"), random::port());
        let (publish, mount) = (format!("{port}:80"), format!("{volume}:/var/www/html"));
        let run = ["run", "-d", "--name", &name, "-p", &publish, "-v", &mount, &tag];
        ground.docker(&run);
        let url = format!("http://{INSIDE_ADDRESS}:{port}");
        let page = ground.fetch(&format!("{url}/index.html"));
        assert!(page.contains("serves this page from a volume"), "{page}");
        let word = random::token(16);
        let write = format!("echo {word} > /var/www/html/{word}.html");
        ground.docker(&["exec", &name, "sh", "-c", &write]);
        assert_eq!(ground.fetch(&format!("{url}/{word}.html")), word);
        ground.wait_for_log(&name, &format!("GET /{word}.html"));
        let started = std::time::Instant::now();
        ground.docker(&["stop", "-t", "60", &name]);
        assert!(started.elapsed() < DEFAULT_TIMEOUT, "it did not hear its own stop signal");
        assert_eq!(ground.inspect(&name, "{{.State.ExitCode}}"), "0");
        ground.docker(&["rm", "-v", &name]);
        ground.docker(&run);
        assert_eq!(ground.fetch(&format!("{url}/{word}.html")), word, "after rm");
        ground.docker(&["rm", "-f", &name]);
        ground.docker(&["volume", "rm", &volume]);
    });
}

#[test]
fn postgres_keeps_its_rows_in_a_volume() {
    on_engine(Net::Uplink, |ground| {
        let tag = build(ground, "postgres");
        let (name, volume, port) = (random::name("db"), random::name("rows"), random::port());
        let (word, password) = (random::token(16), random::token(16));
        let (publish, mount) =
            (format!("{port}:5432"), format!("{volume}:/var/lib/postgresql/data"));
        let secret = format!("POSTGRES_PASSWORD={password}");
        let serve =
            ["run", "-d", "--name", &name, "-p", &publish, "-v", &mount, "-e", &secret, &tag];
        // Another container, by the published port of the machine, with the password.
        let ask = |sql: &str| {
            let (port, pass) = (port.to_string(), format!("PGPASSWORD={password}"));
            let args = [
                "run",
                "--rm",
                "-e",
                &pass,
                &tag,
                "psql",
                "-h",
                INSIDE_ADDRESS,
                "-p",
                &port,
                "-U",
                "postgres",
                "-Atqc",
                sql,
            ]
            .map(str::to_owned);
            fetch(|| ground.daemon.docker(args.clone())).unwrap()
        };
        ground.docker(&serve);
        ask(&format!("CREATE TABLE t (w text); INSERT INTO t VALUES ('{word}')"));
        assert_eq!(ask("SELECT w FROM t"), word);
        ground.docker(&["stop", "-t", "60", &name]);
        assert_eq!(ground.inspect(&name, "{{.State.ExitCode}}"), "0");
        ground.docker(&["rm", "-v", &name]);
        ground.docker(&serve);
        assert_eq!(ask("SELECT w FROM t"), word, "after rm");
        let state = wait::until("the log", DEFAULT_TIMEOUT, || {
            let log = ground.shell(&format!("docker logs {name} 2>&1")).ok().ok()?.text();
            log.contains("ready to accept connections").then_some(log)
        });
        assert!(!state.unwrap().contains("not properly shut down"), "it was killed, not stopped");
        ground.docker(&["rm", "-f", &name]);
        ground.docker(&["volume", "rm", &volume]);
    });
}
