//! The same commands by two clients on two engines, and what comes out compared.
//!
//! ```text
//!                docker CLI 28 ──client-dockerd── our client     on Debian's dockerd
//!                      │
//!                   engine
//!                      │
//!                docker CLI 28 ──────client────── our client     on our engine
//! ```
//! The commands are in `compare.steps`, the differences that there may be in `differences.txt`.

use crate::normalise::normalise;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use testkit::engine::{Daemon, gantry_binary};
use testkit::fixtures::busybox::Busybox;
use testkit::leak::LeakCheck;
use testkit::peer::{self, Release};
use testkit::registry::{Access, Registry};
use testkit::sandbox::Sandbox;
use testkit::{Error, random};

const STEPS: &str = include_str!("compare.steps");
const LISTED: &str = include_str!("differences.txt");

/// Docker's containers take up to ten seconds to stop; more than this is a hang.
pub(crate) const STEP_LIMIT: Duration = Duration::from_secs(40);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Ours,
    Dockerd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Ours,
    Docker,
}

/// What a step gave, made comparable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) step: &'static str,
    pub(crate) exit: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Where two runs differ: pair, step, stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) pair: String,
    pub(crate) step: String,
    pub(crate) stream: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.pair, self.step, self.stream)
    }
}

/// Names and scripts, in their order.
pub(crate) fn steps(text: &'static str) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    for part in text.split("\n== ").skip(1) {
        let (name, script) = part.split_once('\n').unwrap();
        found.push((name.trim(), script.trim()));
    }
    found
}

/// Random words that all runs share, as variables for the steps.
fn words(image: &Busybox) -> Vec<(&'static str, String)> {
    vec![
        ("I", image.reference.clone()),
        ("M", image.marker_path.clone()),
        ("W", random::token(8)),
        ("C", random::name("box")),
        ("N", random::name("net")),
        ("V", random::name("vol")),
        ("B", random::name("built")),
        ("CODE", random::exit_code().to_string()),
        ("P", random::port().to_string()),
        ("DOCKER_CLI_HINTS", "false".to_owned()),
        ("NO_COLOR", "1".to_owned()),
    ]
}

fn run(
    engine: Engine,
    client: Client,
    image: &Busybox,
    words: &[(&'static str, String)],
) -> Vec<Outcome> {
    let sandbox = Sandbox::new().unwrap();
    let daemon = match engine {
        Engine::Ours => Daemon::gantry(&sandbox, &[]).unwrap(),
        Engine::Dockerd => {
            peer::dockerd(&sandbox, Release::Bookworm, &serde_json::Value::Null).unwrap()
        }
    };
    if client == Client::Ours {
        sandbox.link("docker", &gantry_binary().unwrap()).unwrap();
    }
    let plain = Registry::start(&sandbox, Access::Plain).unwrap();
    let secured = Registry::start(&sandbox, Access::Secured).unwrap();
    sandbox.write("/run/compare/image.tar", image.docker_archive()).unwrap();
    let replaced = [
        (plain.address.clone(), "<registry>"),
        (secured.address.clone(), "<secured>"),
        (sandbox.id().to_owned(), "<host>"),
        (daemon.docker_host(), "<docker-host>"),
        (secured.user.clone(), "<user>"),
    ];
    let mut outcomes = Vec::new();
    for (step, script) in steps(STEPS) {
        let mut command = daemon
            .client("sh", ["-c", script])
            .env("R", &plain.address)
            .env("S", &secured.address)
            .env("U", &secured.user)
            .env("PW", &secured.password)
            .cwd("/run/compare")
            .timeout(STEP_LIMIT);
        for (name, value) in words {
            command = command.env(name, value);
        }
        outcomes.push(match command.output() {
            Ok(output) => Outcome {
                step,
                exit: output.code().to_string(),
                stdout: normalise(&String::from_utf8_lossy(&output.stdout), &replaced),
                stderr: normalise(&String::from_utf8_lossy(&output.stderr), &replaced),
            },
            Err(Error::Timeout { output, .. }) => {
                let stdout = normalise(&output, &replaced);
                Outcome { step, exit: "hangs".to_owned(), stdout, stderr: String::new() }
            }
            Err(error) => panic!("{step}: {error:?}"),
        });
    }
    drop((plain, secured, daemon));
    sandbox.close().unwrap();
    outcomes
}

/// Each place where the two differ, with both texts.
pub(crate) fn differences(
    pair: &str,
    one: &[Outcome],
    other: &[Outcome],
) -> BTreeMap<Place, String> {
    assert_eq!(one.len(), other.len());
    let mut found = BTreeMap::new();
    for (a, b) in one.iter().zip(other) {
        let streams = [
            ("exit", &a.exit, &b.exit),
            ("stdout", &a.stdout, &b.stdout),
            ("stderr", &a.stderr, &b.stderr),
        ];
        for (stream, left, right) in streams {
            if left != right {
                let place = Place {
                    pair: pair.to_owned(),
                    step: a.step.to_owned(),
                    stream: stream.to_owned(),
                };
                found.insert(
                    place,
                    format!("{}{}", only_in(left, right, "  < "), only_in(right, left, "  > ")),
                );
            }
        }
    }
    found
}

/// The lines of `text` that `other` does not have; all of them, if it is not the lines that differ.
fn only_in(text: &str, other: &str, prefix: &str) -> String {
    let there: Vec<&str> = other.lines().collect();
    let mut lines: Vec<&str> = text.lines().filter(|line| !there.contains(line)).collect();
    if lines.is_empty() && other.lines().all(|line| text.lines().any(|own| own == line)) {
        lines = text.lines().collect();
    }
    lines.iter().map(|line| format!("{prefix}{line}\n")).collect()
}

/// The places in the list; every line must have a reason, and a step that there is.
pub(crate) fn listed(text: &str) -> BTreeMap<Place, String> {
    let mut found = BTreeMap::new();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    for line in lines {
        let mut fields = line.split_whitespace();
        let mut next = || fields.next().unwrap_or_else(|| panic!("not a full line: {line}"));
        let place =
            Place { pair: next().to_owned(), step: next().to_owned(), stream: next().to_owned() };
        let reason = fields.collect::<Vec<_>>().join(" ");
        assert!(!reason.is_empty(), "without a reason: {line}");
        assert!(found.insert(place, reason).is_none(), "twice: {line}");
    }
    found
}

/// What is wrong with this run, given the list: differences that are not in it, and lines of it that
/// do not hold any more.
pub(crate) fn complaints(
    found: &BTreeMap<Place, String>,
    listed: &BTreeMap<Place, String>,
) -> Vec<String> {
    let unlisted = found
        .iter()
        .filter(|(place, _)| !listed.contains_key(place))
        .map(|(place, texts)| format!("not listed: {place}\n{texts}"));
    let stale = listed
        .keys()
        .filter(|place| !found.contains_key(place))
        .map(|place| format!("listed, but does not differ any more: {place}"));
    unlisted.chain(stale).collect()
}

/// Runs the steps twice at once, and holds what differs against the list.
fn compare(pair: &str, one: (Engine, Client), other: (Engine, Client)) {
    let leak = LeakCheck::new().unwrap();
    let image = Busybox::new().unwrap();
    let words = words(&image);
    let [one, other] = [one, other]
        .map(|(engine, client)| {
            let (image, words) = (image.clone(), words.clone());
            std::thread::spawn(move || run(engine, client, &image, &words))
        })
        .map(|thread| thread.join().unwrap());
    let found = differences(pair, &one, &other);
    let mut listed = listed(LISTED);
    listed.retain(|place, _| place.pair == pair);
    let complaints = complaints(&found, &listed);
    assert!(complaints.is_empty(), "{}\n{} in all", complaints.join("\n"), complaints.len());
    leak.finish().unwrap();
}

#[test]
fn both_clients_on_our_engine() {
    compare("client", (Engine::Ours, Client::Docker), (Engine::Ours, Client::Ours));
}

#[test]
fn both_clients_on_dockerd() {
    compare("client-dockerd", (Engine::Dockerd, Client::Docker), (Engine::Dockerd, Client::Ours));
}

#[test]
fn the_docker_client_on_both_engines() {
    compare("engine", (Engine::Dockerd, Client::Docker), (Engine::Ours, Client::Docker));
}

#[test]
fn listed_steps_exist_and_have_names_of_their_own() {
    let names: Vec<&str> = steps(STEPS).into_iter().map(|(name, _)| name).collect();
    for (at, name) in names.iter().enumerate() {
        assert!(!names[..at].contains(name), "two steps are called {name}");
    }
    for place in listed(LISTED).keys() {
        assert!(names.contains(&place.step.as_str()), "no such step: {place}");
        assert!(["client", "client-dockerd", "engine"].contains(&place.pair.as_str()), "{place}");
        assert!(["exit", "stdout", "stderr"].contains(&place.stream.as_str()), "{place}");
    }
}

/// The comparison itself, with a planted difference and a line that does not hold.
#[test]
fn a_planted_difference_is_caught() {
    let outcome = |exit: &str| Outcome {
        step: "planted",
        exit: exit.to_owned(),
        stdout: "same\n".to_owned(),
        stderr: String::new(),
    };
    let found = differences("client", &[outcome("0")], &[outcome("1")]);
    let caught = complaints(&found, &BTreeMap::new());
    assert_eq!(caught, ["not listed: client planted exit\n  < 0\n  > 1\n"]);
    let list = "client planted exit for a good reason\n";
    assert!(complaints(&found, &listed(list)).is_empty());
    let same = differences("client", &[outcome("0")], &[outcome("0")]);
    assert_eq!(complaints(&same, &listed(list)).len(), 1);
}
