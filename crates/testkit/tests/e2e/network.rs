//! Who reaches whom: published ports, names, networks apart, and firewalls of others.

use crate::ground::{Ground, fetch, in_sandbox, on_engine};
use testkit::command::{Cmd, DEFAULT_TIMEOUT, Running};
use testkit::engine::{Daemon, gantry_binary};
use testkit::fixtures::busybox::Busybox;
use testkit::leak::LeakCheck;
use testkit::peer::{self, Release};
use testkit::sandbox::{INSIDE_ADDRESS, Net, OUTSIDE_ADDRESS, Sandbox};
use testkit::{random, wait};

/// A container that serves `word` on port 80 as `/page`.
fn serve(ground: &Ground<'_>, options: &[&str], word: &str) -> String {
    let script = format!("mkdir /w; echo {word} > /w/page; exec httpd -f -h /w -p 80");
    ground.start(options, &["sh", "-c", &script])
}

/// A web server on the host outside, which notes who asks.
fn outside_server(sandbox: &Sandbox, port: u16, word: &str) -> Running {
    sandbox.write("/run/www/page", word).unwrap();
    let args = ["httpd", "-f", "-vv", "-p", &port.to_string(), "-h", "/run/www"].map(str::to_owned);
    let server = sandbox.outside("busybox", args).spawn().unwrap();
    let url = format!("http://{OUTSIDE_ADDRESS}:{port}/page");
    fetch(|| sandbox.command("curl", ["-sSf", "--max-time", "5", url.as_str()])).unwrap();
    server
}

/// Fetches or gives up. The first process of a container would not hear the signal of `timeout`.
fn wget(url: &str) -> String {
    format!("timeout 10 wget -qO- {url}; exit $?")
}

/// What a container gets from the outside, which is up already.
fn reach_out(ground: &Ground<'_>, options: &[&str], port: u16) -> Cmd {
    let url = format!("http://{OUTSIDE_ADDRESS}:{port}/page");
    let script = wget(&url);
    let line: Vec<String> = ["run", "--rm"]
        .iter()
        .chain(options)
        .chain(&[ground.reference(), "sh", "-c", &script])
        .map(|&word| word.to_owned())
        .collect();
    ground.daemon.docker(line)
}

/// The container's port is published, and its way out is through this network.
fn is_led_through(ground: &Ground<'_>, name: &str, network: &str, (port, word): (u16, &str)) {
    let path = format!(":{port}/page");
    for host in ["127.0.0.1", INSIDE_ADDRESS] {
        let url = format!("http://{host}{path}");
        let curl = || ground.sandbox.command("curl", ["-sSf", "--max-time", "5", url.as_str()]);
        assert_eq!(fetch(curl).unwrap(), word, "{url} over {network}");
    }
    assert_eq!(ground.fetch(&format!("http://{INSIDE_ADDRESS}{path}")), word);
    let form = format!("{{{{(index .NetworkSettings.Networks \"{network}\").Gateway}}}}");
    let gateway = ground.docker(&["inspect", "-f", &form, name]);
    let routes = ground.docker(&["exec", name, "ip", "route"]);
    assert!(routes.contains(&format!("default via {gateway} ")), "{network}: {routes}");
    let shown = ground.docker(&["port", name, "80/tcp"]);
    assert!(shown.contains(&format!("0.0.0.0:{port}")), "{shown}");
}

fn is_refused(ground: &Ground<'_>, port: u16) -> bool {
    let url = format!("http://127.0.0.1:{port}/page");
    let curl = ground.sandbox.command("curl", ["-s", "--max-time", "5", url.as_str()]);
    curl.output().unwrap().code() == 7
}

/// A container keeps its published ports and its way out as long as one of its networks has one.
#[test]
fn published_ports_follow_the_networks() {
    on_engine(Net::Isolated, |ground| {
        let (port, word, name) = (random::port(), random::token(12), random::name("web"));
        let (first, second) = (&random::name("n"), &random::name("n"));
        let served = (port, word.as_str());
        ground.docker(&["network", "create", first]);
        ground.docker(&["network", "create", second]);
        ground.docker(&["network", "create", "--internal", "inside"]);
        let published = format!("{port}:80");
        serve(ground, &["--name", &name, "--network", "inside", "-p", &published], &word);
        assert!(is_refused(ground, port), "an internal network publishes");
        ground.docker(&["network", "connect", first, &name]);
        is_led_through(ground, &name, first, served);
        ground.docker(&["network", "connect", second, &name]);
        is_led_through(ground, &name, first, served);
        ground.docker(&["network", "disconnect", first, &name]);
        is_led_through(ground, &name, second, served);
        ground.daemon.kill().unwrap();
        ground.daemon.start_again().unwrap();
        is_led_through(ground, &name, second, served);
        ground.docker(&["network", "disconnect", second, &name]);
        assert!(is_refused(ground, port), "the port is still published");
        ground.docker(&["network", "connect", first, &name]);
        is_led_through(ground, &name, first, served);
        ground.docker(&["restart", "-t", "0", &name]);
        is_led_through(ground, &name, first, served);
    });
}

#[test]
fn published_tcp_ports_are_reached_from_everywhere() {
    on_engine(Net::Isolated, |ground| {
        let (port, local, word) = (random::port(), random::port(), random::token(12));
        let (everywhere, only_local) = (format!("{port}:80"), format!("127.0.0.1:{local}:80"));
        let name = random::name("web");
        serve(ground, &["--name", &name, "-p", &everywhere, "-p", &only_local], &word);
        assert_eq!(ground.fetch(&format!("http://{INSIDE_ADDRESS}:{port}/page")), word);
        let from_host = |url: &str| {
            fetch(|| ground.sandbox.command("curl", ["-sSf", "--max-time", "5", url])).unwrap()
        };
        assert_eq!(from_host(&format!("http://127.0.0.1:{port}/page")), word, "loopback");
        assert_eq!(from_host(&format!("http://127.0.0.1:{local}/page")), word, "loopback only");
        assert_eq!(from_host(&format!("http://[::1]:{port}/page")), word, "IPv6 loopback");
        assert_eq!(from_host(&format!("http://{INSIDE_ADDRESS}:{port}/page")), word, "own address");
        let six = format!("http://[2001:db8:100::2]:{port}/page");
        assert_eq!(ground.fetch(&six), word, "IPv6 from outside");
        let hairpin = format!("http://{INSIDE_ADDRESS}:{port}/page");
        let seen = ground.docker(&["exec", &name, "wget", "-qO-", &hairpin]);
        assert_eq!(seen, word, "a container to its own published port");
        let other = ground.docker(&["run", "--rm", ground.reference(), "wget", "-qO-", &hairpin]);
        assert_eq!(other, word, "another container");
        let url = format!("http://{INSIDE_ADDRESS}:{local}/page");
        let refused = ground.sandbox.outside("curl", ["-sS", "--max-time", "2", &url]).output();
        assert_ne!(refused.unwrap().code(), 0, "a port of the loopback is reached from outside");
        assert!(ground.sandbox.listens(port), "the port is not taken");
    });
}

/// Answers each datagram with its content and one more byte; needs only perl-base.
const UDP_ECHO: &str = "use Socket; socket(S, PF_INET, SOCK_DGRAM, 0); \
    bind(S, sockaddr_in($ARGV[0], INADDR_ANY)) or die; print \"bound\\n\"; $| = 1; print \"\"; \
    while (my $from = recv(S, my $data, 2000, 0)) { send(S, \"$data!\", 0, $from) }";
const UDP_ASK: &str = "use Socket; socket(S, PF_INET, SOCK_DGRAM, 0); \
    connect(S, sockaddr_in($ARGV[1], inet_aton($ARGV[0]))) or die; send(S, $ARGV[2], 0); \
    alarm 2; defined(recv(S, my $data, 2000, 0)) or die; print $data";

#[test]
fn published_udp_ports_answer() {
    on_engine(Net::Isolated, |ground| {
        let (port, word) = (random::port(), random::token(12));
        let name = random::name("udp");
        let publish = format!("{port}:53/udp");
        ground.start(&["--name", &name, "-p", &publish], &["sleep", "1000"]);
        let pid = ground.inspect(&name, "{{.State.Pid}}");
        // The image has no UDP server, so that one of the machine joins the container's network.
        let join = ["-t", &pid, "-n", "perl", "-e", UDP_ECHO, "53"];
        let _server = ground.sandbox.command("nsenter", join).spawn().unwrap();
        let ask = |cmd: &dyn Fn(&str, Vec<String>) -> Cmd, address: &str| {
            let args = ["-e", UDP_ASK, address, &port.to_string(), &word].map(str::to_owned);
            let answer = wait::until_ok("an answer by UDP", DEFAULT_TIMEOUT, || {
                cmd("perl", args.to_vec()).ok()
            });
            assert_eq!(answer.unwrap().text(), format!("{word}!"), "{address}");
        };
        ask(&|program, args| ground.sandbox.outside(program, args), INSIDE_ADDRESS);
        ask(&|program, args| ground.sandbox.command(program, args), "127.0.0.1");
        assert_eq!(
            ground.docker(&["port", &name, "53/udp"]).lines().next().unwrap(),
            format!("0.0.0.0:{port}")
        );
    });
}

#[test]
fn names_resolve_in_user_networks_and_nowhere_else() {
    on_engine(Net::Isolated, |ground| {
        let (one, two, word) = (random::name("net"), random::name("net"), random::token(12));
        ground.docker(&["network", "create", &one]);
        ground.docker(&["network", "create", &two]);
        let (name, alias) = (random::name("server"), random::name("alias"));
        let id =
            serve(ground, &["--name", &name, "--network", &one, "--network-alias", &alias], &word);
        let get = |network: &str, host: &str| {
            let url = format!("http://{host}/page");
            let script = wget(&url);
            let line =
                ["run", "--rm", "--network", network, ground.reference(), "sh", "-c", &script];
            ground.daemon.docker(line)
        };
        for host in [&name, &alias, &id[..12].to_owned()] {
            assert_eq!(fetch(|| get(&one, host)).unwrap(), word, "by {host}");
        }
        assert_ne!(get(&two, &name).output().unwrap().code(), 0, "a name of another network");
        assert_ne!(
            get("bridge", &name).output().unwrap().code(),
            0,
            "a name on the default bridge"
        );
        let address = ground.inspect(
            &name,
            &format!("{{{{(index .NetworkSettings.Networks \"{one}\").IPAddress}}}}"),
        );
        assert_eq!(get(&one, &address).ok().unwrap().text(), word, "by address");
        assert_ne!(get(&two, &address).output().unwrap().code(), 0, "networks are not apart");
        assert_ne!(get("bridge", &address).output().unwrap().code(), 0, "the bridge is not apart");
        ground.docker(&["network", "connect", &two, &name]);
        assert_eq!(fetch(|| get(&two, &name)).unwrap(), word, "after connect");
        ground.docker(&["network", "disconnect", &one, &name]);
        assert_ne!(get(&one, &name).output().unwrap().code(), 0, "after disconnect");
        ground.docker(&["rm", "-f", &name]);
        ground.docker(&["network", "rm", &one, &two]);
    });
}

#[test]
fn containers_reach_out_under_the_machines_address() {
    on_engine(Net::Isolated, |ground| {
        let (port, word) = (random::port(), random::token(12));
        let server = outside_server(ground.sandbox, port, &word);
        let before = server.stderr_so_far().matches(INSIDE_ADDRESS).count();
        assert_eq!(reach_out(ground, &[], port).ok().unwrap().text(), word);
        wait::until_ok("the request from the machine's address", DEFAULT_TIMEOUT, || {
            let log = server.stderr_so_far();
            if log.matches(INSIDE_ADDRESS).count() > before { Ok(()) } else { Err(log) }
        })
        .unwrap();
        let log = server.stderr_so_far();
        assert!(!log.contains("172.17."), "not masqueraded: {log}");
        let net = random::name("net");
        ground.docker(&["network", "create", &net]);
        assert_eq!(reach_out(ground, &["--network", &net], port).ok().unwrap().text(), word);
        let inner = random::name("inner");
        ground.docker(&["network", "create", "--internal", &inner]);
        let inside = reach_out(ground, &["--network", &inner], port).output().unwrap();
        assert_ne!(inside.code(), 0, "an internal network leads out");
        let none = reach_out(ground, &["--network", "none"], port).output().unwrap();
        assert_ne!(none.code(), 0, "no network leads out");
        assert_eq!(reach_out(ground, &["--network", "host"], port).ok().unwrap().text(), word);
        ground.docker(&["network", "rm", &net, &inner]);
    });
}

/// Firewalls that drop what is forwarded, set by others before our engine starts and after: the
/// container reaches out all the same, or the engine says what blocks.
fn a_firewall_that_drops(rule: &str, name_of_it: &[&str]) {
    let leak = LeakCheck::new().unwrap();
    for at_start in [true, false] {
        let sandbox = Sandbox::new().unwrap();
        let set = || sandbox.shell(rule).ok().unwrap();
        if at_start {
            set();
        }
        let run = |ground: &mut Ground<'_>| {
            let (port, word) = (random::port(), random::token(12));
            let _server = outside_server(&sandbox, port, &word);
            let publish_port = random::port();
            let publish = format!("{publish_port}:80");
            if !at_start {
                assert_eq!(reach_out(ground, &[], port).ok().unwrap().text(), word);
                set();
            }
            let out = wait::until_ok("the way out", DEFAULT_TIMEOUT, || {
                let output = reach_out(ground, &[], port).output().unwrap();
                let info = ground.docker(&["info"]);
                let told = |text: &str| name_of_it.iter().all(|word| text.contains(word));
                if output.text() == word || told(&info) || told(&output.stderr_text()) {
                    Ok(output.text() == word)
                } else {
                    Err(output.both() + &info)
                }
            });
            if out.unwrap() {
                serve(ground, &["-p", &publish], &word);
                let page = ground.fetch(&format!("http://{INSIDE_ADDRESS}:{publish_port}/page"));
                assert_eq!(page, word, "a published port behind the firewall");
            }
            if !at_start {
                // What the test has set, so that the look at what the engine left does not see it.
                sandbox.shell("iptables -P FORWARD ACCEPT; iptables-legacy -P FORWARD ACCEPT; nft delete table inet other 2> /dev/null || :").ok().unwrap();
            }
        };
        if at_start {
            in_sandbox(&sandbox, run);
        } else {
            // Tables exist before the look, for the same reason.
            sandbox.shell("iptables -S > /dev/null; iptables-legacy -S > /dev/null; iptables -P FORWARD ACCEPT; iptables-legacy -P FORWARD ACCEPT").ok().unwrap();
            in_sandbox(&sandbox, run);
        }
        sandbox.close().unwrap();
    }
    leak.finish().unwrap();
}

#[test]
fn an_iptables_nft_policy_of_drop() {
    a_firewall_that_drops("iptables-nft -P FORWARD DROP", &["FORWARD"]);
}

#[test]
fn an_iptables_legacy_policy_of_drop() {
    a_firewall_that_drops("iptables-legacy -P FORWARD DROP", &["FORWARD"]);
}

#[test]
fn a_table_of_another_firewall_that_drops() {
    let rule = "nft 'add table inet other; \
                add chain inet other barrier { type filter hook forward priority 10; policy drop; }'";
    a_firewall_that_drops(rule, &["barrier"]);
}

/// Debian's dockerd in the same network: it sets DROP, has 172.17.0.0/16, and works on.
#[test]
fn beside_a_running_dockerd() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    // dockerd drops what is forwarded where it is dockerd that has switched forwarding on.
    sandbox.shell("sysctl -qw net.ipv4.ip_forward=0").ok().unwrap();
    let mut other = peer::dockerd(&sandbox, Release::Bookworm, &serde_json::Value::Null).unwrap();
    let policy =
        sandbox.shell("iptables -S FORWARD; iptables-legacy -S FORWARD").ok().unwrap().text();
    assert!(policy.contains("-P FORWARD DROP"), "{policy}");
    let image = Busybox::new().unwrap();
    other.docker(["load"]).stdin(image.docker_archive()).ok().unwrap();
    // So that what it makes for its first container is there before ours is looked at.
    other.docker(["run", "--rm", &image.reference, "true"]).ok().unwrap();
    in_sandbox(&sandbox, |ground| {
        let (port, word) = (random::port(), random::token(12));
        let _server = outside_server(&sandbox, port, &word);
        assert_eq!(reach_out(ground, &[], port).ok().unwrap().text(), word, "ours");
        let published = random::port();
        serve(ground, &["-p", &format!("{published}:80")], &word);
        assert_eq!(ground.fetch(&format!("http://{INSIDE_ADDRESS}:{published}/page")), word);
        let url = format!("http://{OUTSIDE_ADDRESS}:{port}/page");
        let theirs = ["run", "--rm", &image.reference, "wget", "-qO-", &url];
        assert_eq!(other.docker(theirs).ok().unwrap().text(), word, "theirs, beside ours");
    });
    other.stop().unwrap();
    drop(other);
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

/// Somebody flushes all rules: they come back, as does the way out.
#[test]
fn rules_come_back_after_a_flush() {
    on_engine(Net::Isolated, |ground| {
        let (port, word) = (random::port(), random::token(12));
        let _server = outside_server(ground.sandbox, port, &word);
        assert_eq!(reach_out(ground, &[], port).ok().unwrap().text(), word);
        ground.sandbox.shell("nft flush ruleset").ok().unwrap();
        let seen = fetch(|| reach_out(ground, &[], port)).unwrap();
        assert_eq!(seen, word);
    });
}

/// Command line of a daemon with everything of its own, below this directory. Its default bridge is
/// that of every daemon, if there are no more `args`.
fn own_places(dir: &str, args: &[&str]) -> Vec<String> {
    [
        "gantry",
        "daemon",
        "--data-root",
        &format!("{dir}/data"),
        "--exec-root",
        &format!("{dir}/exec"),
    ]
    .into_iter()
    .chain(["--pidfile", &format!("{dir}/pid"), "-H", &format!("unix://{dir}/gantry.sock")])
    .chain(args.iter().copied())
    .map(str::to_owned)
    .collect()
}

fn second_engine<'a>(sandbox: &'a Sandbox, dir: &str, args: &[&str]) -> Daemon<'a> {
    sandbox.shell(&format!("mkdir -p {dir}")).ok().unwrap();
    Daemon::start(sandbox, own_places(dir, args), &format!("{dir}/gantry.sock")).unwrap()
}

/// A daemon that has to end at its start, and what it says.
fn refused(sandbox: &Sandbox, line: &[String]) -> String {
    sandbox.link("gantry", &gantry_binary().unwrap()).unwrap();
    let output = sandbox.command(&line[0], line[1..].iter().cloned()).output().unwrap();
    assert_ne!(output.code(), 0, "the daemon has started: {}", output.both());
    output.stderr_text()
}

/// A short name for a bridge.
fn bridge_name() -> String {
    format!("b{}", random::token(8)).to_lowercase()
}

/// The subnets of a daemon's default network, and the bridges of the sandbox with their addresses.
fn subnet(daemon: &Daemon<'_>) -> String {
    let template = "{{(index .IPAM.Config 0).Subnet}}";
    daemon.docker(["network", "inspect", "-f", template, "bridge"]).ok().unwrap().text()
}

fn filter(sandbox: &Sandbox) -> String {
    sandbox.shell("iptables-nft -S FORWARD; iptables-legacy -S FORWARD").ok().unwrap().text()
}

/// Two engines beside each other behind firewalls that drop. The second one comes, serves, is killed,
/// comes back and goes, and nothing of that disturbs the first; in the end nothing of either is left.
#[test]
fn two_engines_beside_each_other() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let drops = "iptables-nft -P FORWARD DROP; iptables-legacy -P FORWARD DROP";
    sandbox.shell(drops).ok().unwrap();
    let untouched = filter(&sandbox);
    in_sandbox(&sandbox, |ground| {
        let (ours, theirs) = (random::token(12), random::token(12));
        let (port, their_port, outer) = (random::port(), random::port(), random::port());
        let _server = outside_server(&sandbox, outer, &ours);
        serve(ground, &["-p", &format!("{port}:80")], &ours);
        let url = |port: u16| format!("http://{INSIDE_ADDRESS}:{port}/page");
        assert_eq!(ground.fetch(&url(port)), ours);
        let alone = filter(&sandbox);
        let bridge = bridge_name();
        let dir = format!("/run/{}", random::name("second"));
        let mut second = second_engine(&sandbox, &dir, &["--bridge", &bridge]);
        assert_ne!(subnet(&second), subnet(&ground.daemon));
        second.docker(["load"]).stdin(ground.image.docker_archive()).ok().unwrap();
        let script = format!("mkdir /w; echo {theirs} > /w/page; exec httpd -f -h /w -p 80");
        let publish = format!("{their_port}:80");
        let reference = ground.reference();
        let run = ["run", "-d", "--name", "web", "-p", &publish, reference, "sh", "-c", &script];
        second.docker(run).ok().unwrap();
        let both_serve = || {
            assert_eq!(ground.fetch(&url(port)), ours, "the first engine's port");
            assert_eq!(ground.fetch(&url(their_port)), theirs, "the second engine's port");
        };
        both_serve();
        let get = |port: u16| {
            ["run", "--rm", reference, "sh", "-c", &wget(&url(port))].map(str::to_owned)
        };
        assert_eq!(second.docker(get(port)).ok().unwrap().text(), ours, "from one to the other");
        assert_eq!(ground.daemon.docker(get(their_port)).ok().unwrap().text(), theirs);
        let out = format!("http://{OUTSIDE_ADDRESS}:{outer}/page");
        let out = ["run", "--rm", reference, "sh", "-c", &wget(&out)].map(str::to_owned);
        assert_eq!(second.docker(out).ok().unwrap().text(), ours, "out");
        second.kill().unwrap();
        both_serve();
        second.start_again().unwrap();
        both_serve();
        second.docker(["rm", "-f", "web"]).ok().unwrap();
        second.stop().unwrap();
        assert_eq!(ground.fetch(&url(port)), ours, "after the end of the second");
        assert_eq!(filter(&sandbox), alone);
        let left = sandbox.shell("nft list ruleset; ip link").ok().unwrap().text();
        assert!(!left.contains(&bridge), "{left}");
    });
    assert_eq!(filter(&sandbox), untouched);
    let left = sandbox.shell("nft list tables; ip link").ok().unwrap().text();
    assert!(!left.contains("gantry"), "{left}");
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

/// A bridge is one daemon's. Another one is told so, as long as the first runs or its containers do;
/// what a killed one has left unused is taken over.
#[test]
fn a_bridge_has_one_engine() {
    on_engine(Net::Isolated, |ground| {
        let sandbox = ground.sandbox;
        let dir = format!("/run/{}", random::name("second"));
        sandbox.shell(&format!("mkdir -p {dir}")).ok().unwrap();
        let line = own_places(&dir, &[]);
        let word = random::token(12);
        let port = random::port();
        let name = random::name("web");
        serve(ground, &["--name", &name, "-p", &format!("{port}:80")], &word);
        // An address of IPv6 is tentative until nobody has answered for it.
        let seen = "ip -o addr | sed 's/ tentative//'; nft -s list ruleset";
        let state = || sandbox.shell(seen).ok().unwrap().text();
        let before = state();
        let told = refused(sandbox, &line);
        assert!(told.contains("bridge gantry0 belongs to another gantry daemon"), "{told}");
        assert!(told.contains("--bridge NAME"), "{told}");
        ground.daemon.kill().unwrap();
        let told = refused(sandbox, &line);
        assert!(told.contains("gantry0") && told.contains("containers are on it"), "{told}");
        assert!(told.contains("--bridge NAME"), "{told}");
        assert_eq!(state(), before, "the refused daemon has changed something");
        ground.daemon.start_again().unwrap();
        assert_eq!(ground.fetch(&format!("http://{INSIDE_ADDRESS}:{port}/page")), word);
        ground.docker(&["rm", "-f", &name]);
        ground.daemon.kill().unwrap();
        let mut second = second_engine(sandbox, &dir, &[]);
        second.docker(["load"]).stdin(ground.image.docker_archive()).ok().unwrap();
        second.docker(["run", "--rm", ground.reference(), "true"]).ok().unwrap();
        let socket = "unix:///run/gantry/gantry.sock";
        let told = refused(sandbox, &["gantry", "daemon", "-H", socket].map(str::to_owned));
        assert!(told.contains("bridge gantry0 belongs to another gantry daemon"), "{told}");
        second.stop().unwrap();
        ground.daemon.start_again().unwrap();
    });
}

/// Settings of the default bridge change between two starts: not while containers are on it.
#[test]
fn the_default_bridge_changes_only_when_it_is_unused() {
    on_engine(Net::Isolated, |ground| {
        let sandbox = ground.sandbox;
        let (port, word) = (random::port(), random::token(12));
        let name = random::name("web");
        serve(ground, &["--name", &name, "-p", &format!("{port}:80")], &word);
        let page = format!("http://{INSIDE_ADDRESS}:{port}/page");
        assert_eq!(ground.fetch(&page), word);
        let bridge = bridge_name();
        let bip = format!("10.{}.7.1/24", port % 200 + 10);
        let changes = [vec!["--bridge", &bridge], vec!["--bip", &bip], vec!["--bridge", "none"]];
        ground.daemon.stop().unwrap();
        for change in &changes {
            let line: Vec<String> =
                ["gantry", "daemon"].iter().chain(change).map(|&word| word.to_owned()).collect();
            let told = refused(sandbox, &line);
            assert!(told.contains("containers run on the bridge gantry0"), "{change:?}: {told}");
        }
        ground.daemon.start_again().unwrap();
        assert_eq!(ground.fetch(&page), word, "the refused starts have cut the container off");
        ground.docker(&["rm", "-f", &name]);
        // Killed, so that the old bridge and its rules are there.
        ground.daemon.kill().unwrap();
        for (change, seen) in changes.iter().zip([bridge.as_str(), &bip, "gantry/"]) {
            let mut changed = Daemon::gantry(sandbox, change).unwrap();
            let state = || sandbox.shell("ip -o addr; nft list tables").ok().unwrap().text();
            assert!(state().contains(seen), "{change:?}: {}", state());
            let run = ["run", "--rm", "--network", "none", ground.reference(), "true"];
            changed.docker(run).ok().unwrap();
            let count = |what: &str| state().matches(what).count();
            assert_eq!(count("table inet"), 1, "{change:?}: {}", state());
            assert!(change[0] == "--bip" || count("gantry0") == 0, "{change:?}: {}", state());
            changed.kill().unwrap();
        }
        ground.daemon.start_again().unwrap();
        let state = sandbox.shell("ip -o addr; nft list tables").ok().unwrap().text();
        assert_eq!(state.matches("table inet").count(), 1, "{state}");
        assert!(!state.contains(&bridge) && !state.contains(&bip), "{state}");
    });
}

/// A daemon that has to leave the packet filter alone, and one without a default bridge, end with
/// nothing left, as others do.
#[test]
fn engines_without_rules_or_bridge_end_clean() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let look = || sandbox.shell("nft -s list ruleset; ip -o link; ip route").ok().unwrap().text();
    let image = Busybox::new().unwrap();
    for args in
        [&["--iptables=false"][..], &["--bridge=none"], &["--bridge=none", "--iptables=false"], &[]]
    {
        let before = look();
        let mut daemon = Daemon::gantry(&sandbox, args).unwrap();
        daemon.docker(["load"]).stdin(image.docker_archive()).ok().unwrap();
        let net = random::name("net");
        daemon.docker(["network", "create", &net]).ok().unwrap();
        daemon.docker(["run", "--rm", "--network", &net, &image.reference, "true"]).ok().unwrap();
        let has_rules = look().contains("table inet gantry");
        assert_eq!(has_rules, !args.contains(&"--iptables=false"), "{args:?}");
        daemon.stop().unwrap();
        assert_eq!(look(), before, "after {args:?}");
        let mut daemon = Daemon::gantry(&sandbox, args).unwrap();
        daemon.docker(["network", "rm", &net]).ok().unwrap();
        daemon.stop().unwrap();
        assert_eq!(look(), before, "after {args:?}, once more");
    }
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

/// An engine's addresses are given to something else while it is away: its default bridge gets others.
#[test]
fn addresses_that_are_in_use_are_not_taken_again() {
    on_engine(Net::Isolated, |ground| {
        let sandbox = ground.sandbox;
        let before = subnet(&ground.daemon);
        ground.daemon.stop().unwrap();
        let bridge = bridge_name();
        let dir = format!("/run/{}", random::name("second"));
        let mut second = second_engine(sandbox, &dir, &["--bridge", &bridge]);
        assert_eq!(subnet(&second), before, "the first pool that is free");
        ground.daemon.start_again().unwrap();
        assert_ne!(subnet(&ground.daemon), before);
        let kept = subnet(&ground.daemon);
        second.stop().unwrap();
        ground.daemon.stop().unwrap();
        ground.daemon.start_again().unwrap();
        assert_eq!(subnet(&ground.daemon), kept, "kept as long as it is free");
    });
}

/// What a start that was cut off leaves of a network goes at the daemon's next start.
#[test]
fn a_namespace_that_nobody_runs_in_goes() {
    on_engine(Net::Isolated, |ground| {
        let (port, word) = (random::port(), random::token(12));
        serve(ground, &["-p", &format!("{port}:80")], &word);
        let left = format!("/run/gantry/netns/{}", random::name("left"));
        let count = || ground.sandbox.shell("ls /run/gantry/netns | wc -l").ok().unwrap().text();
        ground.daemon.kill().unwrap();
        let make = format!("touch {left} && mount --bind /proc/self/ns/net {left}");
        ground.sandbox.shell(&format!("unshare -n sh -c '{make}' && findmnt {left}")).ok().unwrap();
        ground.daemon.start_again().unwrap();
        assert_eq!(count(), "1");
        assert_eq!(ground.fetch(&format!("http://{INSIDE_ADDRESS}:{port}/page")), word);
    });
}
