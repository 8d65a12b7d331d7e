//! The whole daemon, killed at the engine's named points (see the crate `faults`): what a client was
//! told stands, what it was not told is whole or absent, and everything can be done again and removed.

use crate::ground::{Ground, on_engine};
use std::collections::BTreeMap;
use std::time::Duration;
use testkit::engine::Daemon;
use testkit::random;
use testkit::sandbox::Net;
use testkit::wait;

/// How many kills `make test` takes; `FAULTS=N` and `FAULTS=all` take more.
const SAMPLE: usize = 3;
/// The store carries its journal to the disk a second after a change.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
const TRACE: &str = "/run/faults.trace";

/// What a client does, in this order; each line is one call of the docker CLI.
fn steps(word: &str) -> Vec<(&'static str, String)> {
    vec![
        ("volume", format!("docker volume create --label w={word} vol")),
        ("network", format!("docker network create --label w={word} net")),
        (
            "create",
            format!("docker create --name made -v vol:/v \"$I\" sh -c 'echo {word} > /v/f'"),
        ),
        (
            "run",
            format!("docker run --name ran --network net \"$I\" sh -c 'echo {word} > /f; exit 7'"),
        ),
        ("commit", "docker commit ran committed:v1".into()),
        ("delete", "docker create --name gone \"$I\" true && docker rm gone".into()),
        ("volume-gone", "docker volume create vol2 && docker volume rm vol2".into()),
        ("network-gone", "docker network create net2 && docker network rm net2".into()),
    ]
}

fn undo(ground: &Ground<'_>) {
    ground.sh(
        "docker ps -aq | xargs -r docker rm -fv >&2; \
         for n in net net2; do docker network inspect $n > /dev/null 2>&1 && docker network rm $n; done; \
         for v in vol vol2; do docker volume inspect $v > /dev/null 2>&1 && docker volume rm $v; done; \
         docker image inspect committed:v1 > /dev/null 2>&1 && docker rmi committed:v1; true",
    );
}

/// Whether what a step makes is there; half of it is a failure.
fn is_whole(ground: &Ground<'_>, step: &str, word: &str) -> bool {
    let there = |what: &str| ground.shell(&format!("docker {what}")).output().unwrap();
    let label = |what: &str| there(&format!("{what} --format '{{{{.Labels.w}}}}'")).text() == word;
    match step {
        "volume" => label("volume inspect vol"),
        "network" => label("network inspect net"),
        "create" => there("container inspect made").status.success(),
        "run" => {
            let state =
                there("container inspect ran --format '{{.State.Status}} {{.State.ExitCode}}'");
            state.text() == "exited 7" && ground.sh("docker cp ran:/f - | tar -xO") == word
        }
        "commit" => {
            there("image inspect committed:v1").status.success()
                && ground.sh("docker run --rm committed:v1 cat /f") == word
        }
        "delete" => !there("container inspect gone").status.success(),
        "volume-gone" => !there("volume inspect vol2").status.success(),
        "network-gone" => !there("network inspect net2").status.success(),
        other => panic!("{other}"),
    }
}

/// Runs the steps until one fails; those that were acknowledged.
fn run_steps(ground: &Ground<'_>, word: &str) -> Vec<&'static str> {
    let mut done = Vec::new();
    for (name, script) in steps(word) {
        let code = ground.shell(&script).output().unwrap().code();
        if code != if name == "run" { 7 } else { 0 } {
            break;
        }
        done.push(name);
    }
    done
}

/// The daemon with a plan in its environment.
fn with_plan(ground: &mut Ground<'_>, name: &str, value: &str) {
    ground.daemon.stop().ok();
    let argv = ["env", &format!("{name}={value}"), "gantry", "daemon"].map(str::to_owned);
    ground.daemon = Daemon::start(ground.sandbox, argv, "/run/gantry/gantry.sock").unwrap();
}

#[test]
fn killed_at_every_point_of_a_containers_life() {
    on_engine(Net::Isolated, |ground| {
        let word = random::token(12);
        with_plan(ground, "GANTRY_FAULT_TRACE", TRACE);
        let before = ground.sh(&format!("wc -l < {TRACE}")).parse::<usize>().unwrap();
        assert_eq!(run_steps(ground, &word).len(), steps(&word).len(), "a step fails by itself");
        let trace = ground.sh(&format!("cat {TRACE}"));
        undo(ground);
        let mut counts = BTreeMap::<&str, usize>::new();
        let mut passes = Vec::new();
        for (i, line) in trace.lines().enumerate() {
            let name = line.split_once(' ').unwrap().1;
            let nth = counts.entry(name).or_default();
            *nth += 1;
            if i >= before {
                passes.push(format!("{name}:{nth}"));
            }
        }
        let count = match std::env::var("FAULTS").as_deref() {
            Ok("all") => passes.len(),
            Ok(number) => number.parse().unwrap(),
            Err(_) => SAMPLE,
        };
        let mut killed = 0;
        for _ in 0..count.min(passes.len()) {
            let last = u32::try_from(passes.len()).unwrap();
            let pass = passes.swap_remove(usize::try_from(random::number(0..last)).unwrap());
            eprintln!("killed at {pass}");
            with_plan(ground, "GANTRY_FAULT", &format!("{pass}:kill"));
            let done = run_steps(ground, &word);
            killed += usize::from(done.len() < steps(&word).len());
            ground.daemon.kill().ok();
            ground.daemon = Daemon::gantry(ground.sandbox, &[]).unwrap();
            for step in done {
                assert!(is_whole(ground, step, &word), "{step} was acknowledged, kill at {pass}");
            }
            undo(ground);
            assert_eq!(run_steps(ground, &word).len(), steps(&word).len(), "kill at {pass}");
            undo(ground);
        }
        assert!(killed > 0, "no kill was reached");
    });
}

/// The host dies, and all that was written to files has reached the disk, while the store had not yet
/// carried its journal there: what was created in the last second can be used, what was removed stays
/// away. Cuts that lose more are `make power-loss`.
#[test]
fn the_journal_goes_with_the_host() {
    on_engine(Net::Isolated, |ground| {
        let code = random::exit_code();
        let journal = ground.sandbox.path("/run/gantry/containerd/journal");
        ground.sh("docker run --name ran \"$I\" true");
        // Its first frame, with the boot's id, is all that is in it: the rest is in the database.
        wait::until("the journal to be carried to the disk", SETTLE_LIMIT, || {
            std::fs::metadata(&journal).is_ok_and(|file| file.len() == 44).then_some(())
        })
        .unwrap();
        ground.sh(&format!("docker rm ran; docker create --name made \"$I\" sh -c 'exit {code}'"));
        ground.daemon.kill().unwrap();
        std::fs::remove_file(&journal).unwrap();
        ground.daemon = Daemon::gantry(ground.sandbox, &[]).unwrap();
        assert_eq!(ground.shell("docker start -a made").output().unwrap().code(), code);
        assert!(!ground.shell("docker inspect ran").output().unwrap().status.success());
        ground.daemon.stop().unwrap();
        let found = ground.sh("gantry containerd fsck");
        assert!(found.contains("found: 0"), "{found}");
        ground.daemon = Daemon::gantry(ground.sandbox, &[]).unwrap();
    });
}

/// A writable layer whose record is lost in another way than by a power cut: it is not taken for an empty
/// one, but kept as long as the store keeps it, and the container does not start.
#[test]
fn a_lost_layer_is_not_made_anew() {
    on_engine(Net::Isolated, |ground| {
        let word = random::token(12);
        let store = "/var/lib/gantry/store";
        let journal = ground.sandbox.path("/run/gantry/containerd/journal");
        ground.sh(&format!("docker run --name ran \"$I\" sh -c 'echo {word} > /kept'"));
        // This one the store knows by its layer alone.
        ground.sh(&format!(
            "docker create --name made \"$I\" true
             echo {word} > /run/kept; docker cp /run/kept made:/kept"
        ));
        wait::until("the journal to be carried to the disk", SETTLE_LIMIT, || {
            std::fs::metadata(&journal).is_ok_and(|file| file.len() == 44).then_some(())
        })
        .unwrap();
        ground.daemon.stop().unwrap();
        let kept = format!("grep -rlF {word} {store}/snapshots | grep -o '.*/snapshots/[0-9]*'");
        let before = ground.sh(&kept);
        assert_eq!(before.lines().count(), 2, "{before}");
        ground.sh(&format!(
            "rm {store}/meta.db {}; for d in $({kept}); do echo x > $d/record.json; done",
            "/run/gantry/containerd/journal"
        ));
        ground.daemon = Daemon::gantry(ground.sandbox, &[]).unwrap();
        for name in ["ran", "made"] {
            let output = ground.shell(&format!("docker start {name}")).output().unwrap();
            let said = output.both();
            assert!(!output.status.success() && said.contains("containerd fsck"), "{name}: {said}");
        }
        let aside = ground.sh(&format!("grep -rlF {word} {store}/damaged"));
        assert_eq!(aside.lines().count(), 2, "{aside}");
        ground.daemon.stop().unwrap();
        let found = ground.shell("gantry containerd fsck").output().unwrap().both();
        for name in ground.sh(&format!("ls {store}/damaged")).lines() {
            assert!(found.contains(name), "{name} is not told: {found}");
        }
        ground.daemon = Daemon::gantry(ground.sandbox, &[]).unwrap();
        ground.sh("docker rm ran made");
    });
}

/// What others put among the engine's and the store's files, and a volume whose server is gone, are no
/// reason not to start, and are left alone.
#[test]
fn strays_stop_no_start() {
    on_engine(Net::Isolated, |ground| {
        let word = random::token(12);
        let root = "/var/lib/gantry";
        ground.sh(&format!(
            "docker volume create kept; docker volume create --opt type=tmpfs --opt device=t lost
             docker run --name ran -v kept:/v \"$I\" sh -c 'echo {word} > /v/f'"
        ));
        ground.daemon.stop().unwrap();
        // A link to itself cannot be looked at, as what a dead server has.
        ground.sh(&format!(
            "for d in containers networks volumes store/snapshots; do
                 mkdir {root}/$d/lost+found; echo x > {root}/$d/.stray
             done
             mkdir {root}/networks/x.json
             rmdir {root}/volumes/lost/_data; ln -s _data {root}/volumes/lost/_data
             mkdir {root}/volumes/strange; ln -s _data {root}/volumes/strange/_data
             echo x > {root}/containers/$(printf %064d 0)
             mkfifo {root}/store/records/images/fifo.json"
        ));
        ground.daemon = Daemon::gantry(ground.sandbox, &[]).unwrap();
        assert_eq!(ground.sh("docker run --rm -v kept:/v \"$I\" cat /v/f"), word);
        let volumes = ground.sh("docker volume ls -q");
        for volume in ["kept", "lost", "strange"] {
            assert!(volumes.lines().any(|line| line == volume), "{volumes}");
        }
        assert_eq!(ground.sh("docker ps -a --format '{{.Names}}'"), "ran");
        for dir in ["containers", "networks", "volumes"] {
            ground.sh(&format!("test -d {root}/{dir}/lost+found && test -f {root}/{dir}/.stray"));
        }
        ground.sh(&format!(
            "docker rm ran; rm {root}/volumes/lost/_data {root}/volumes/strange/_data; mkdir {root}/volumes/lost/_data
             docker volume rm lost; rm -r {root}/volumes/strange; docker volume rm kept"
        ));
    });
}
