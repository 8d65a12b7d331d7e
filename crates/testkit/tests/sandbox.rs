//! The testkit tested: isolation, life and death of sandboxes, the leak check with a planted leak
//! of each kind, the registry and the peers.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;
use testkit::command::{Cmd, DEFAULT_TIMEOUT};
use testkit::engine::ping;
use testkit::fixtures::busybox::Busybox;
use testkit::leak::{Kind, LeakCheck, Scope, Snapshot, View};
use testkit::peer::{self, Release};
use testkit::registry::{Access, Registry};
use testkit::sandbox::{INSIDE_ADDRESS, Net, OUTSIDE_ADDRESS, Options, Sandbox};
use testkit::{random, wait};

#[test]
fn what_an_engine_writes_stays_inside() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let name = random::name("inside");
    for dir in ["/run", "/etc", "/var/lib", "/var/log", "/var/tmp", "/opt"] {
        let path = format!("{dir}/{name}");
        sandbox.shell(&format!("echo {name} > {path}")).ok().unwrap();
        assert_eq!(sandbox.read(&path).unwrap().trim(), name);
        assert!(!std::path::Path::new(&path).exists(), "{path} is on the machine");
    }
    let denied = sandbox.shell(&format!("touch /usr/{name}")).output().unwrap();
    assert_ne!(denied.code(), 0);
    let script = "mount -t tmpfs x /mnt && ip link add br9 type bridge && nft add table ip t9";
    sandbox.shell(script).ok().unwrap();
    sandbox.shell("mkdir $(find /sys/fs/cgroup -name cgroup.procs -printf '%h/x9 ')").ok().unwrap();
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

#[test]
fn a_sandbox_is_a_machine_of_its_own() {
    let sandbox = Sandbox::new().unwrap();
    assert_eq!(sandbox.command("hostname", [""; 0]).ok().unwrap().text(), sandbox.id());
    let one = sandbox.shell("tr '\\0' ' ' < /proc/1/cmdline").ok().unwrap().text();
    assert!(one.starts_with("tini "), "{one}");
    let groups = sandbox.shell("cut -d: -f3 /proc/self/cgroup | sort -u").ok().unwrap().lines();
    assert!(groups.iter().all(|path| path == "/" || path == "/init"), "{groups:?}");
    let env = sandbox.shell("env | cut -d= -f1 | sort").ok().unwrap().lines();
    assert_eq!(env, ["GANTRY_SANDBOX", "HOME", "LC_ALL", "PATH", "PWD"]);
    let propagation = sandbox.shell("findmnt -no PROPAGATION /").ok().unwrap().text();
    assert_eq!(propagation, "shared");
    let code = random::exit_code();
    assert_eq!(sandbox.shell(&format!("exit {code}")).output().unwrap().code(), code);
}

#[test]
fn orphans_are_reaped_and_die_with_the_sandbox() {
    let sandbox = Sandbox::new().unwrap();
    sandbox.shell("(sleep 0.01 &) ; (setsid sleep 1000 > /dev/null 2>&1 &)").ok().unwrap();
    wait::until("no zombie", DEFAULT_TIMEOUT, || {
        let states = sandbox.shell("ps -eo stat=,comm=").ok().ok()?.lines();
        let zombies = states.iter().any(|line| line.starts_with('Z'));
        (!zombies && states.iter().any(|line| line.ends_with("sleep"))).then_some(())
    })
    .unwrap();
    sandbox.close().unwrap(); // finds marked processes
}

#[test]
fn the_outside_reaches_the_inside_and_nothing_behind_it() {
    let sandbox = Sandbox::new().unwrap();
    let (port, word) = (random::port(), random::token(12));
    sandbox.write(&format!("/run/www/{word}"), &word).unwrap();
    let server = ["httpd", "-f", "-p", &port.to_string(), "-h", "/run/www"].map(str::to_owned);
    let _server = sandbox.command("busybox", server).spawn().unwrap();
    wait::until("httpd", DEFAULT_TIMEOUT, || sandbox.listens(port).then_some(())).unwrap();
    let url = format!("http://{INSIDE_ADDRESS}:{port}/{word}");
    assert_eq!(sandbox.outside("curl", ["-sS", &url]).ok().unwrap().text(), word);
    sandbox.command("ping", ["-c1", "-W2", OUTSIDE_ADDRESS]).ok().unwrap_or_else(|_| {
        sandbox.command("busybox", ["ping", "-c1", "-W2", OUTSIDE_ADDRESS]).ok().unwrap()
    });
    let behind = sandbox.outside("busybox", ["ping", "-c1", "-W1", "172.17.0.2"]).output().unwrap();
    assert_ne!(behind.code(), 0);
}

#[test]
fn an_uplink_reaches_the_package_mirror_and_changes_nothing_on_the_machine() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::with_uplink().unwrap();
    let uri = Cmd::host(
        "apt-get",
        ["indextargets", "--format", "$(REPO_URI)dists/$(RELEASE)/InRelease", "Origin: Debian"],
    )
    .ok()
    .unwrap()
    .lines();
    let head =
        sandbox.command("curl", ["-sSfI", "--max-time", "30", uri[0].as_str()]).ok().unwrap();
    assert!(head.text().contains("200"), "{}", head.text());
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

#[test]
fn a_host_network_is_the_machines() {
    let sandbox = Sandbox::with(&Options { net: Net::Host, ..Options::default() }).unwrap();
    let inside = sandbox.command("readlink", ["/proc/self/ns/net"]).ok().unwrap().text();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(inside, own.display().to_string());
}

#[test]
fn a_killed_test_leaves_nothing() {
    // The outer half is what a test process holds; it sees end-of-file when the test is killed.
    // Here a sandbox's life line is cut without its `close`.
    let sandbox = Sandbox::new().unwrap();
    let id = sandbox.id().to_owned();
    let groups: Vec<PathBuf> =
        ["memory", "pids", ""].iter().filter_map(|c| sandbox.cgroup(c)).collect();
    assert!(groups.iter().any(|group| group.exists()));
    Cmd::host("kill", ["-9", &sandbox.init_pid().to_string()]).ok().unwrap();
    wait::until("removal of the cgroups and files", DEFAULT_TIMEOUT, || {
        let files = std::path::Path::new("/var/tmp").join(&id).exists();
        (!files && groups.iter().all(|group| !group.exists())).then_some(())
    })
    .unwrap();
}

/// Plants one leak of each kind in a sandbox and looks whether just that is found.
#[test]
fn each_planted_leak_is_caught() {
    let sandbox = Sandbox::new().unwrap();
    let name = random::token(9);
    let group = sandbox.cgroup("pids").or_else(|| sandbox.cgroup("")).unwrap();
    let port = random::port().to_string();
    sandbox.shell("iptables-legacy -t filter -L > /dev/null").ok().unwrap(); // loads the table
    let plants = [
        (Kind::Mount, format!("mkdir -p /run/m && mount -t tmpfs {name} /run/m"), name.clone()),
        (Kind::Cgroup, String::new(), name.clone()),
        (Kind::NetworkNamespace, format!("ip netns add {name}"), name.clone()),
        (Kind::Link, format!("ip link add {name} type bridge"), name.clone()),
        (
            Kind::Route,
            "ip route add 203.0.113.0/24 via 198.51.100.1".to_owned(),
            "007100CB".to_owned(),
        ),
        (Kind::Nftables, format!("nft add table ip {name}"), name.clone()),
        (Kind::Iptables, "iptables-legacy -P FORWARD DROP".to_owned(), "FORWARD DROP".to_owned()),
        (
            Kind::Sysctl,
            "sysctl -qw net.ipv4.ip_forward=$((1 - $(cat /proc/sys/net/ipv4/ip_forward)))"
                .to_owned(),
            "ip_forward = ".to_owned(),
        ),
        (Kind::File, format!("touch /var/lib/{name}"), name.clone()),
    ];
    for (kind, script, wanted) in plants {
        let scope = Scope::sandbox().only([kind]);
        let before = sandbox.snapshot(&scope).unwrap();
        assert!(before.compare(View::Sandbox(&sandbox), Duration::ZERO).unwrap().is_empty());
        match kind {
            Kind::Cgroup => std::fs::create_dir(group.join(&name)).unwrap(),
            _ => drop(sandbox.shell(&script).ok().unwrap()),
        }
        let found = before.compare(View::Sandbox(&sandbox), Duration::ZERO).unwrap();
        assert!(
            found.appeared.iter().any(|(k, line)| *k == kind && line.contains(&wanted)),
            "{kind}: {found}"
        );
    }
    let scope = Scope::sandbox().only([Kind::Process, Kind::Socket]);
    let before = sandbox.snapshot(&scope).unwrap();
    let _nc = sandbox.command("busybox", ["nc", "-l", "-p", &port]).spawn().unwrap();
    let found = wait::until("the socket to be seen", DEFAULT_TIMEOUT, || {
        let found = before.compare(View::Sandbox(&sandbox), Duration::ZERO).ok()?;
        found.to_string().contains(&format!(":{port}")).then_some(found)
    })
    .unwrap();
    assert!(found.to_string().contains("process: "), "{found}");
}

/// On the machine itself: a process with a sandbox's mark is known wherever it runs.
#[test]
fn a_marked_process_on_the_machine_is_caught() {
    let scope = Scope::machine().only([Kind::Process]);
    let before = Snapshot::take(View::Machine, &scope).unwrap();
    let mark = random::name("gantry-test");
    let mut sleep =
        Cmd::host("sleep", ["1000"]).env("GANTRY_SANDBOX", &mark).open_stdin().spawn().unwrap();
    wait::until("the process to be seen", DEFAULT_TIMEOUT, || {
        let found = before.difference(&Snapshot::take(View::Machine, &scope).ok()?);
        found.to_string().contains(&mark).then_some(())
    })
    .unwrap();
    sleep.close_stdin();
}

#[test]
fn registries_serve_skopeo() {
    let sandbox = Sandbox::new().unwrap();
    let image = Busybox::new().unwrap();
    sandbox.write("/run/image.tar", image.oci_archive()).unwrap();
    for access in [Access::Plain, Access::Secured] {
        let registry = Registry::start(&sandbox, access).unwrap();
        let target = format!("docker://{}", registry.reference());
        let options: Vec<String> = match access {
            Access::Plain => vec!["--tls-verify=false".to_owned()],
            Access::Secured => vec![
                format!("--creds={}:{}", registry.user, registry.password),
                format!("--cert-dir=/etc/docker/certs.d/{}", registry.address),
            ],
        };
        let copy = ["copy", "--insecure-policy", "oci-archive:/run/image.tar"].map(str::to_owned);
        let dest_options = options.iter().map(|o| o.replacen("--", "--dest-", 1));
        let args: Vec<String> =
            copy.into_iter().chain(dest_options).chain([target.clone()]).collect();
        sandbox.command("skopeo", args).ok().unwrap();
        let inspect = ["inspect".to_owned(), "--format={{.Digest}}".to_owned()];
        let args: Vec<String> =
            inspect.into_iter().chain(options).chain([target.clone()]).collect();
        let digest = sandbox.command("skopeo", args).ok().unwrap().text();
        assert_eq!(digest, image.image.manifest_digest());
        if access == Access::Secured {
            let bare = sandbox.command("skopeo", ["inspect", "--tls-verify=false", &target]);
            assert_ne!(bare.output().unwrap().code(), 0, "no credentials, yet let in");
        }
    }
}

#[test]
fn the_debian_base_is_made_once_and_kept() {
    let tar = testkit::fixtures::debian::rootfs_tar().unwrap();
    let made = std::fs::metadata(&tar).unwrap().modified().unwrap();
    let path = tar.display().to_string();
    let version = Cmd::host("tar", ["-xOf", path.as_str(), "./etc/debian_version"]).ok().unwrap();
    assert!(version.text().starts_with("12."), "{}", version.text());
    let again = testkit::fixtures::debian::rootfs_tar().unwrap();
    assert_eq!(std::fs::metadata(again).unwrap().modified().unwrap(), made);
}

/// The whole ground under real engines: what is written here for ours must hold for them.
#[test]
fn debians_dockerd_runs_containers_in_a_sandbox() {
    for release in [Release::Bookworm, Release::Trixie] {
        let leak = LeakCheck::new().unwrap();
        let sandbox = Sandbox::new().unwrap();
        let mut daemon = peer::dockerd(&sandbox, release, &serde_json::Value::Null).unwrap();
        assert_eq!(ping(&daemon.socket_path()).unwrap(), 200);
        let image = Busybox::new().unwrap();
        daemon.docker(["load"]).stdin(image.docker_archive()).ok().unwrap();
        let (name, port) = (random::name("web"), random::port());
        let publish = format!("{port}:80");
        let serve = ["run", "-d", "--name", &name, "-p", &publish, &image.reference];
        daemon.docker(serve.into_iter().chain(["httpd", "-f", "-h", "/"])).ok().unwrap();
        let url = format!("http://{INSIDE_ADDRESS}:{port}{}", image.marker_path);
        let page = wait::until_ok("the page", DEFAULT_TIMEOUT, || {
            sandbox.outside("curl", ["-sSf", "--max-time", "5", &url]).ok()
        });
        assert_eq!(page.unwrap().text(), image.marker);
        let code = random::exit_code();
        let exit = ["run", "--rm", &image.reference, "sh", "-c", &format!("exit {code}")]
            .map(str::to_owned);
        assert_eq!(daemon.docker(exit).output().unwrap().code(), code);
        daemon.docker(["rm", "-f", &name]).ok().unwrap();
        daemon.stop().unwrap();
        drop(daemon);
        sandbox.close().unwrap();
        leak.finish().unwrap();
    }
}

#[test]
fn debians_containerd_runs_a_container_in_a_sandbox() {
    for release in [Release::Bookworm, Release::Trixie] {
        let sandbox = Sandbox::new().unwrap();
        let _daemon = peer::containerd(&sandbox, release).unwrap();
        let image = Busybox::new().unwrap();
        sandbox.write("/run/image.tar", image.oci_archive()).unwrap();
        sandbox.command("ctr", ["images", "import", "/run/image.tar"]).ok().unwrap();
        let names = sandbox.command("ctr", ["images", "ls", "-q"]).ok().unwrap().text();
        assert!(names.contains(&image.reference), "{names}");
        let name = random::name("ctr");
        let run =
            ["run", "--rm", names.as_str(), &name, "cat", &image.marker_path].map(str::to_owned);
        assert_eq!(sandbox.command("ctr", run).ok().unwrap().text(), image.marker);
    }
}
