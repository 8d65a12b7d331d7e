//! Other firewalls: flushes, and chains that drop.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use network::firewall::{
    BridgeNetwork, Desired, Firewall, Proto, PublishedPort, TABLE, Watch, table_name,
};
use network::link::PortFlags;

use crate::bed::{Container, PATIENCE, REFUSED, World, isolated, program, random_port, wait_until};

struct Setup {
    world: World,
    web: Container,
    port: u16,
    firewall: Firewall,
    desired: Desired,
}

fn setup() -> Setup {
    let mut world = World::new();
    let mut bridge = world.bridge("br-a", 2);
    let web = bridge.container(&mut world.route, PortFlags::default());
    let port = random_port();
    web.serve(port);
    world.neighbour.serve(port);
    let published = PublishedPort {
        proto: Proto::Tcp,
        host_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        host_port: port,
        container_ip: IpAddr::V4(web.ip),
        container_port: port,
    };
    let desired = Desired {
        networks: vec![BridgeNetwork::new("br-a", vec![bridge.subnet])],
        ports: [published].into(),
        drop_foreign_forward: false,
    };
    Setup { world, web, port, firewall: Firewall::open(TABLE).unwrap(), desired }
}

impl Setup {
    fn both_ways(&self, patience: Duration) -> (bool, bool) {
        let host = self.world.outside.gateway();
        let inward = self.world.neighbour.ask(host, self.port, patience).is_some();
        let outward = self.web.ask(self.world.neighbour.ip, self.port, patience).is_some();
        (inward, outward)
    }
}

#[test]
fn flushed_rules_come_back() {
    isolated(|| {
        let mut setup = setup();
        setup.firewall.ensure(setup.desired.clone()).unwrap();
        let spare = Firewall::open(TABLE).unwrap();
        let firewall = Arc::new(Mutex::new(std::mem::replace(&mut setup.firewall, spare)));
        let watch = Watch::start(Arc::clone(&firewall), |_| {}).unwrap();
        let table = || {
            let list = program(&["nft", "-s", "list", "table", "inet", "gantry"]);
            list.lines().filter(|l| !l.contains("handle")).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = table();
        let exists = || {
            Command::new("nft")
                .args(["list", "table", "inet", "gantry"])
                .output()
                .unwrap()
                .status
                .success()
        };
        for way in [
            &["nft", "flush", "ruleset"][..],
            &["nft", "delete", "table", "inet", "gantry"],
            &["nft", "flush", "table", "inet", "gantry"],
            &["nft", "flush", "map", "inet", "gantry", "any4"],
            &["nft", "add", "rule", "inet", "gantry", "forward", "drop"],
        ] {
            program(way);
            let took = wait_until("the table is as before", || exists() && table() == before);
            eprintln!("{way:?}: back after {took:?}");
            assert!(took < Duration::from_secs(2));
        }
        assert_eq!(setup.both_ways(PATIENCE), (true, true));
        drop(watch);
        program(&["nft", "flush", "ruleset"]);
        assert!(!exists());
    });
}

const DROPPING: &str = "add table ip f; \
    add chain ip f FORWARD { type filter hook forward priority 0; policy drop; }";

/// Two daemons beside each other, on a host whose other firewalls drop: neither
/// takes anything from the other, whatever it does.
#[test]
fn two_daemons_leave_each_other_alone() {
    isolated(|| {
        let mut first = setup();
        let mut bridge = first.world.bridge("br-b", 3);
        let web = bridge.container(&mut first.world.route, PortFlags::default());
        let port = first.port + 30_000;
        web.serve(port);
        let published = PublishedPort {
            proto: Proto::Tcp,
            host_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            host_port: port,
            container_ip: IpAddr::V4(web.ip),
            container_port: port,
        };
        let desired = Desired {
            networks: vec![BridgeNetwork::new("br-b", vec![bridge.subnet])],
            ports: [published].into(),
            drop_foreign_forward: false,
        };
        program(&["nft", DROPPING]);
        program(&["iptables-legacy", "-P", "FORWARD", "DROP"]);
        let foreign = || {
            let nft = program(&["nft", "-s", "list", "table", "ip", "f"]);
            nft + &program(&["iptables-legacy", "-S", "FORWARD"])
        };
        let untouched = foreign();
        let spare = Firewall::open(TABLE).unwrap();
        let mut one = std::mem::replace(&mut first.firewall, spare);
        assert_eq!(one.ensure(first.desired.clone()).unwrap().blockers, []);
        let alone = foreign();
        let table = |name: &str| program(&["nft", "-s", "list", "table", "inet", name]);
        let (one, two) = (Arc::new(Mutex::new(one)), table_name("other0"));
        let own = table(TABLE);
        let watch = Watch::start(Arc::clone(&one), |_| {}).unwrap();
        let second = Arc::new(Mutex::new(Firewall::open(&two).unwrap()));
        let report = second.lock().unwrap().ensure(desired.clone()).unwrap();
        assert_eq!(report.blockers, []);
        let second_watch = Watch::start(Arc::clone(&second), |_| {}).unwrap();
        let host = first.world.outside.gateway();
        let served = |patience| {
            assert_eq!(first.both_ways(patience), (true, true));
            let inward = first.world.neighbour.ask(host, port, patience).is_some();
            (inward, web.ask(first.world.neighbour.ip, first.port, patience).is_some())
        };
        assert_eq!(served(PATIENCE), (true, true));
        // From one to the other: by what is published, and not directly.
        assert!(first.web.ask(host, port, PATIENCE).is_some());
        assert!(web.ask(host, first.port, PATIENCE).is_some());
        assert_eq!(first.web.ask(web.ip, port, REFUSED), None);
        assert_eq!(web.ask(first.web.ip, first.port, REFUSED), None);
        let both = foreign();
        for bridge in ["br-a", "br-b"] {
            // Two rules of each kind; nft's have the name in their comments too.
            assert_eq!(both.matches(bridge).count(), 6, "{both}");
        }
        // Each may be asserted again, which the other's watch does not undo.
        for firewall in [&one, &second] {
            firewall.lock().unwrap().reassert().unwrap();
            assert_eq!((foreign(), table(TABLE)), (both.clone(), own.clone()));
        }
        program(&["nft", "flush", "ruleset"]);
        wait_until("both tables are back", || {
            let list = program(&["nft", "list", "tables"]);
            list.contains("inet gantry\n") && list.contains("inet gantry-other0\n")
        });
        assert_eq!(served(PATIENCE), (true, true));
        program(&["nft", DROPPING]);
        wait_until("both are let through", || foreign().matches("br-").count() == 12);
        drop(second_watch);
        second.lock().unwrap().remove_all().unwrap();
        assert_eq!(first.both_ways(PATIENCE), (true, true));
        assert_eq!(first.world.neighbour.ask(host, port, REFUSED), None);
        assert_eq!((foreign(), table(TABLE)), (alone, own));
        drop(watch);
        one.lock().unwrap().remove_all().unwrap();
        assert_eq!(foreign(), untouched);
        assert!(!program(&["nft", "list", "tables"]).contains("gantry"));
    });
}

/// A table that another daemon would put back at once is not edited.
#[test]
fn another_daemons_table_that_drops_is_named() {
    isolated(|| {
        let mut setup = setup();
        let mut other = Firewall::open(table_name("other0")).unwrap();
        let desired = Desired { drop_foreign_forward: true, ..Desired::default() };
        other.ensure(desired).unwrap();
        let table = || program(&["nft", "-s", "list", "table", "inet", "gantry-other0"]);
        let before = table();
        let report = setup.firewall.ensure(setup.desired.clone()).unwrap();
        assert_eq!(report.blockers.len(), 1, "{report:?}");
        assert_eq!(report.blockers[0].table, "gantry-other0");
        assert_eq!(table(), before);
    });
}

#[test]
fn a_dropping_nftables_chain_is_opened() {
    isolated(|| {
        let mut setup = setup();
        std::fs::write(
            "/run/rules",
            "table ip filter {\n chain DOCKER-USER { }\n \
             chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }\n}\n\
             table inet firewalld {\n chain filter_FORWARD { type filter hook forward priority filter + 10; \
             ct state established,related accept; ct state invalid drop; reject with icmpx admin-prohibited; }\n}\n\
             table inet harmless {\n chain f { type filter hook forward priority 0; ct state invalid drop; }\n}\n",
        )
        .unwrap();
        program(&["nft", "-f", "/run/rules"]);
        let before = program(&["nft", "list", "ruleset"]);
        assert_eq!(setup.both_ways(REFUSED), (false, false));
        let report = setup.firewall.ensure(setup.desired.clone()).unwrap();
        assert_eq!(report.blockers, []);
        assert_eq!(setup.both_ways(PATIENCE), (true, true));
        let text = program(&["nft", "-a", "list", "chain", "ip", "filter", "FORWARD"]);
        let position =
            |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} not in\n{text}"));
        assert!(position("jump DOCKER-USER") < position("iifname \"br-a\""));
        assert!(text.contains("comment \"gantry in br-a\""));
        assert!(!program(&["nft", "list", "table", "inet", "harmless"]).contains("br-a"));
        // Nothing changes the second time.
        setup.firewall.reassert().unwrap();
        let strip = |t: String| t.split("packets").map(str::to_owned).collect::<Vec<_>>().len();
        assert_eq!(
            strip(program(&["nft", "-a", "list", "chain", "ip", "filter", "FORWARD"])),
            strip(text)
        );
        setup.firewall.remove_all().unwrap();
        assert_eq!(program(&["nft", "list", "ruleset"]), before);
    });
}

#[test]
fn a_chain_that_turns_up_later_is_opened() {
    isolated(|| {
        let mut setup = setup();
        setup.firewall.ensure(setup.desired.clone()).unwrap();
        let spare = Firewall::open(TABLE).unwrap();
        let firewall = Arc::new(Mutex::new(std::mem::replace(&mut setup.firewall, spare)));
        let watch = Watch::start(Arc::clone(&firewall), |_| {}).unwrap();
        program(&["nft", "add", "table", "ip", "late"]);
        program(&[
            "nft",
            "add",
            "chain",
            "ip",
            "late",
            "f",
            "{ type filter hook forward priority 5; policy drop; }",
        ]);
        wait_until("the chain is opened", || setup.both_ways(REFUSED) == (true, true));
        program(&["iptables-legacy", "-P", "FORWARD", "DROP"]);
        wait_until("the legacy chain is opened", || setup.both_ways(REFUSED) == (true, true));
        assert!(program(&["iptables-legacy", "-S", "FORWARD"]).contains("-i br-a"));
        drop(watch);
    });
}

#[test]
fn a_dropping_legacy_chain_is_opened() {
    isolated(|| {
        let mut setup = setup();
        for words in [
            &["-N", "MINE"][..],
            &["-A", "MINE", "-s", "203.0.113.0/24", "-j", "DROP"],
            &["-A", "MINE", "-j", "RETURN"],
            &["-A", "INPUT", "-i", "lo", "-j", "ACCEPT"],
            &["-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"],
            &["-A", "FORWARD", "-j", "MINE"],
            &["-A", "OUTPUT", "-p", "tcp", "--dport", "1", "-j", "MINE"],
            &["-P", "FORWARD", "DROP"],
        ] {
            program(&[&["iptables-legacy", "-w"], words].concat());
        }
        // A packet through the rules, so that there are counts to keep.
        assert_eq!(setup.both_ways(REFUSED), (false, false));
        let rules = || program(&["iptables-legacy-save", "-t", "filter", "-c"]);
        let counted = |text: String| -> Vec<String> {
            text.lines()
                .filter(|l| !l.starts_with('#') && !l.contains("gantry"))
                .map(str::to_owned)
                .collect()
        };
        let before = counted(rules());
        let report = setup.firewall.ensure(setup.desired.clone()).unwrap();
        assert_eq!(report.blockers, []);
        let text = rules();
        assert!(
            text.contains("-A FORWARD -i br-a -m comment --comment gantry -j ACCEPT"),
            "{text}"
        );
        assert!(
            text.contains("-A FORWARD -o br-a -m comment --comment gantry -j ACCEPT"),
            "{text}"
        );
        assert_eq!(
            counted(text),
            before,
            "other rules, their order and their counts are as before"
        );
        assert_eq!(setup.both_ways(PATIENCE), (true, true));
        let once = rules().lines().count();
        setup.firewall.reassert().unwrap();
        assert_eq!(rules().lines().count(), once);
        // iptables itself can go on with the table.
        program(&[
            "iptables-legacy",
            "-w",
            "-I",
            "FORWARD",
            "1",
            "-s",
            "203.0.113.9",
            "-j",
            "DROP",
        ]);
        program(&["iptables-legacy", "-w", "-D", "FORWARD", "1"]);
        setup.firewall.remove_all().unwrap();
        let without = |text: Vec<String>| -> Vec<String> {
            text.iter().map(|l| l.split(']').next_back().unwrap().trim().to_owned()).collect()
        };
        assert!(!rules().contains("gantry"));
        assert_eq!(without(counted(rules())), without(before));
    });
}

#[test]
fn legacy_ipv6_and_tables_that_are_not_there() {
    isolated(|| {
        let mut setup = setup();
        setup.firewall.ensure(setup.desired.clone()).unwrap();
        let names = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap();
        assert_eq!(names, "", "no legacy table was brought to life");
        program(&["ip6tables-legacy", "-P", "FORWARD", "DROP"]);
        program(&[
            "ip6tables-legacy",
            "-A",
            "FORWARD",
            "-s",
            "fd00::/8",
            "-p",
            "tcp",
            "--dport",
            "80",
            "-j",
            "ACCEPT",
        ]);
        let before = program(&["ip6tables-legacy", "-S"]);
        let report = setup.firewall.open_others().unwrap();
        assert_eq!(report.blockers, []);
        let text = program(&["ip6tables-legacy", "-S", "FORWARD"]);
        assert!(
            text.contains("-A FORWARD -i br-a -m comment --comment gantry -j ACCEPT"),
            "{text}"
        );
        setup.firewall.remove_all().unwrap();
        assert_eq!(program(&["ip6tables-legacy", "-S"]), before);
    });
}

#[test]
fn what_cannot_be_opened_is_named() {
    isolated(|| {
        let mut setup = setup();
        // A table that its owner's process keeps for itself.
        let mut owner = Command::new("nft")
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = owner.stdin.take().unwrap();
        input
            .write_all(
                b"table inet owned { flags owner; chain f { type filter hook forward priority 3; policy drop; }; }\n",
            )
            .unwrap();
        input.flush().unwrap();
        let listed = || program(&["nft", "list", "chains"]).contains("policy drop");
        wait_until("the owner has its table", listed);
        let report = setup.firewall.ensure(setup.desired.clone()).unwrap();
        let [blocker] = report.blockers.as_slice() else { panic!("{report:?}") };
        assert_eq!(
            (blocker.table.as_str(), blocker.chain.as_str(), blocker.policy),
            ("owned", "f", "drop")
        );
        eprintln!("{blocker}");
        drop(input);
        owner.wait().unwrap();
        wait_until("the table is gone", || !listed());
        assert_eq!(setup.firewall.reassert().unwrap().blockers, []);
    });
}
