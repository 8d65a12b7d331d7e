//! The same steps by other people's engines, with one OCI runtime after another below them, and what
//! comes out compared: ours with Debian's runc, and with Debian's crun.
//!
//! ```text
//!   step ── podman │ docker CLI ─ dockerd │ ctr ─ containerd ── /run/runtimes/runc ──▶ gantry │ runc │ crun
//! ```
//! The steps are in `engines.steps` and `engines-ctr.steps`, the differences that there may be in
//! `engines-differences.txt`. crun refuses cgroups of both versions side by side, so that for all of them
//! the v2 hierarchy is out of sight; v2 alone is the virtual machine's.
//!
//! Without `CONFORMANCE_LONG=1` a random sample of the steps is run; `ENGINES_ONLY="WORD…"` takes the
//! steps of these names instead.

use crate::compare::{self, Outcome, Place, STEP_LIMIT};
use crate::normalise::normalise;
use std::collections::BTreeMap;
use testkit::engine::{Daemon, gantry_binary};
use testkit::fixtures::busybox::Busybox;
use testkit::leak::LeakCheck;
use testkit::peer::{self, Release};
use testkit::sandbox::Sandbox;
use testkit::{Error, random};

const STEPS: &str = include_str!("engines.steps");
const CTR_STEPS: &str = include_str!("engines-ctr.steps");
const PRELUDE: &str = include_str!("engines.sh");
const LISTED: &str = include_str!("engines-differences.txt");

/// Where a step finds its files.
const DIR: &str = "/run/engines";
/// The runtime under test has the same name whichever it is, because engines and errors tell it.
const RUNTIME: &str = "/run/runtimes/runc";
const PEERS: [&str; 2] = ["runc", "crun"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Podman,
    Dockerd,
    Dockerd26,
    /// With the identifiers of all containers mapped.
    DockerdRemapped,
    Containerd,
}

const ENGINES: [Engine; 5] = [
    Engine::Podman,
    Engine::Dockerd,
    Engine::Dockerd26,
    Engine::DockerdRemapped,
    Engine::Containerd,
];

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Dockerd => "dockerd",
            Self::Dockerd26 => "dockerd-26",
            Self::DockerdRemapped => "dockerd-remapped",
            Self::Containerd => "containerd",
        }
    }

    /// What ours is compared with: crun 1.8 refuses the specification's version in dockerd 26's bundles.
    fn peers(self) -> &'static [&'static str] {
        if self == Self::Dockerd26 { &PEERS[..1] } else { &PEERS }
    }

    /// How many steps a sample has.
    fn sample(self) -> usize {
        match self {
            Self::DockerdRemapped => 3,
            _ => 7,
        }
    }

    fn steps(self) -> Vec<Step> {
        if self == Self::Containerd {
            return steps(CTR_STEPS);
        }
        let mine = |step: &Step| match self {
            Self::DockerdRemapped => step.engines.contains(&self.name()),
            Self::Dockerd26 => step.engines.is_empty() || step.engines.contains(&"dockerd"),
            _ => step.engines.is_empty() || step.engines.contains(&self.name()),
        };
        steps(STEPS).into_iter().filter(mine).collect()
    }
}

#[derive(Debug, Clone)]
struct Step {
    name: &'static str,
    /// Those that run it; none stands for all.
    engines: Vec<&'static str>,
    script: &'static str,
}

fn steps(text: &'static str) -> Vec<Step> {
    let parts = text.split("\n== ").skip(1);
    let step = |part: &'static str| {
        let (head, script) = part.split_once('\n').unwrap();
        let mut words = head.split_whitespace();
        Step { name: words.next().unwrap(), engines: words.collect(), script: script.trim() }
    };
    parts.map(step).collect()
}

/// The steps of this run.
fn chosen(engine: Engine) -> Vec<Step> {
    let mut steps = engine.steps();
    if let Ok(only) = std::env::var("ENGINES_ONLY") {
        steps.retain(|step| only.split_whitespace().any(|word| word == step.name));
        return steps;
    }
    if std::env::var_os("CONFORMANCE_LONG").is_none() {
        while steps.len() > engine.sample() {
            let last = u32::try_from(steps.len()).unwrap();
            steps.swap_remove(usize::try_from(random::number(0..last)).unwrap());
        }
        let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
        eprintln!("{}: ENGINES_ONLY=\"{}\"", engine.name(), names.join(" "));
    }
    steps
}

/// Random words that all runs share, as variables for the steps.
fn words(image: &Busybox) -> Vec<(&'static str, String)> {
    vec![
        ("M", image.marker_path.clone()),
        ("W", random::token(8)),
        ("C", random::name("box")),
        ("CODE", random::exit_code().to_string()),
        ("D", DIR.to_owned()),
        ("CG", "/sys/fs/cgroup".to_owned()),
        ("RT", RUNTIME.to_owned()),
        ("NET", "--network=none".to_owned()),
        ("DOCKER_CLI_HINTS", "false".to_owned()),
        ("NO_COLOR", "1".to_owned()),
    ]
}

/// A program that becomes the runtime `name`.
fn runtime_script(name: &str) -> String {
    let program = match name {
        "gantry" => gantry_binary().unwrap().display().to_string(),
        "runc" => "/usr/sbin/runc".to_owned(),
        "crun" => "/usr/bin/crun".to_owned(),
        lossy => lossy.to_owned(),
    };
    format!("mkdir -p /run/runtimes; ln -s {program} {RUNTIME}")
}

/// What steps find in their directory.
fn files(sandbox: &Sandbox) {
    let write = |name: &str, content: &str, mode: &str| {
        let path = format!("{DIR}/{name}");
        sandbox.write(&path, content).unwrap();
        sandbox.command("chmod", [mode, &path]).ok().unwrap();
    };
    write("prelude", PRELUDE, "644");
    write("text", "root:x:0:0:a text:/root:/bin/sh\n", "644");
    write("script", "#!/bin/sh\nfor a; do echo \"<$a>\"; done\n", "755");
    write("script-absent", "#!/absent/interpreter\n", "755");
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 11},
            {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["sethostname"], "action": "SCMP_ACT_KILL"},
        ],
    });
    write("seccomp.json", &profile.to_string(), "644");
    let tell = format!(
        "#!/bin/sh\nstate=$(tr -d ' \\n')\necho \"$1 $(echo $state | grep -o '\"status\":\"[a-z]*\"') \
         $(echo $state | grep -c '\"bundle\":\"/')\" >> {DIR}/hooked\n"
    );
    write("tell", &tell, "755");
    write("refuse", "#!/bin/sh\necho the hook says no >&2\nexit 3\n", "755");
    let hook = |program: &str, stage: &str| {
        serde_json::json!({
            "version": "1.0.0",
            "hook": {"path": format!("{DIR}/{program}"), "args": [program, stage]},
            "when": {"always": true},
            "stages": [stage],
        })
        .to_string()
    };
    for stage in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        write(&format!("hooks.d/{stage}.json"), &hook("tell", stage), "644");
    }
    write("hooks-bad.d/one.json", &hook("refuse", "createRuntime"), "644");
}

const PODMAN: &str = "podman --root=/var/lib/podman --runroot=/run/podman --cgroup-manager=cgroupfs \
    --events-backend=file --runtime=/run/runtimes/runc";

/// v2 out of sight, and a /dev/null of the sandbox's own: crun gives the one that it gets as a standard
/// stream to the container's user.
const GROUND: &str = "umount /sys/fs/cgroup/unified 2> /dev/null || :; mkdir /run/own; \
    mount -t tmpfs -o mode=755 own /run/own; mknod -m 666 /run/own/null c 1 3; \
    mount --bind /run/own/null /dev/null";

/// Starts the engine and makes the image known to it: its daemon, its client, the image's name there.
fn start<'a>(
    engine: Engine,
    sandbox: &'a Sandbox,
    image: &Busybox,
) -> (Option<Daemon<'a>>, &'static str, String) {
    let dockerd = |release, remapped: bool| {
        let mut config = serde_json::json!({
            "runtimes": { "tested": { "path": RUNTIME } },
            "default-runtime": "tested",
        });
        if remapped {
            let lines = "echo remapped:x:100000:100000::/:/bin/false >> /etc/passwd; \
                echo remapped:x:100000: >> /etc/group; \
                echo remapped:100000:5000 | tee /etc/subuid > /etc/subgid";
            sandbox.shell(lines).ok().unwrap();
            config["userns-remap"] = "remapped".into();
        }
        let daemon = peer::dockerd(sandbox, release, &config).unwrap();
        daemon.docker(["load"]).stdin(image.docker_archive()).ok().unwrap();
        (Some(daemon), "docker", image.reference.clone())
    };
    match engine {
        Engine::Dockerd => dockerd(Release::Bookworm, false),
        Engine::Dockerd26 => dockerd(Release::Trixie, false),
        Engine::DockerdRemapped => dockerd(Release::Bookworm, true),
        Engine::Podman => {
            // What podman remembers of registries has no option of its own.
            sandbox.command("mount", ["-t", "tmpfs", "cache", "/var/cache"]).ok().unwrap();
            sandbox.write("/run/image.tar", image.oci_archive()).unwrap();
            sandbox.shell(&format!("{PODMAN} load -q -i /run/image.tar")).ok().unwrap();
            (None, PODMAN, image.reference.clone())
        }
        Engine::Containerd => {
            let daemon = peer::containerd(sandbox, Release::Bookworm).unwrap();
            sandbox.write("/run/image.tar", image.oci_archive()).unwrap();
            sandbox.command("ctr", ["images", "import", "/run/image.tar"]).ok().unwrap();
            let name = sandbox.command("ctr", ["images", "ls", "-q"]).ok().unwrap().text();
            (Some(daemon), "ctr", name)
        }
    }
}

/// Without ids, those that are part of a longer word too, such as a cgroup's name.
fn comparable(text: &str, replaced: &[(String, &str)]) -> String {
    const ID: usize = 64;
    let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let (mut result, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.as_bytes().windows(ID).position(|run| run.iter().all(hex)) {
        result.push_str(&rest[..at]);
        result.push_str("<id>");
        rest = &rest[at + ID..];
    }
    normalise(&(result + rest), replaced)
}

/// All steps with one runtime, in a sandbox of its own. `runtime` is a script that makes it.
fn run(
    engine: Engine,
    runtime: &str,
    image: &Busybox,
    words: &[(&'static str, String)],
    steps: &[Step],
) -> Vec<Outcome> {
    let sandbox = Sandbox::new().unwrap();
    sandbox.shell(GROUND).ok().unwrap();
    sandbox.shell(runtime).ok().unwrap();
    files(&sandbox);
    let (daemon, client, image) = start(engine, &sandbox, image);
    let (init, unmask) = match engine {
        Engine::Podman => ("--init --init-path=/usr/bin/tini-static", "unmask=ALL"),
        _ => ("--init", "systempaths=unconfined"),
    };
    let replaced = [(sandbox.id().to_owned(), "<host>")];
    let mut outcomes = Vec::new();
    for step in steps {
        let script = format!(". {DIR}/prelude\ntrap clear_up EXIT\n{}\n", step.script);
        let mut command = sandbox
            .command("sh", ["-c", &script])
            .env("ENGINE", client)
            .env("I", &image)
            .env("INIT", init)
            .env("UNMASK", unmask)
            .cwd("/run/tmp")
            .timeout(STEP_LIMIT);
        if engine != Engine::Containerd {
            command = command.env("DOCKER_HOST", "unix:///run/docker.sock");
        }
        for (name, value) in words {
            command = command.env(name, value);
        }
        outcomes.push(match command.output() {
            Ok(output) => Outcome {
                step: step.name,
                exit: output.code().to_string(),
                stdout: comparable(&String::from_utf8_lossy(&output.stdout), &replaced),
                stderr: comparable(&String::from_utf8_lossy(&output.stderr), &replaced),
            },
            Err(Error::Timeout { output, .. }) => {
                let stdout = comparable(&output, &replaced);
                Outcome { step: step.name, exit: "hangs".to_owned(), stdout, stderr: String::new() }
            }
            Err(error) => panic!("{}: {error:?}", step.name),
        });
    }
    drop(daemon);
    sandbox.close().unwrap();
    outcomes
}

/// The list for these steps of one engine; a line that names no engine is of all that have the step. A
/// reason that begins with "sometimes" is of what differs now and then, so it is here if it was `found`.
fn known(
    engine: Engine,
    steps: &[Step],
    found: &BTreeMap<Place, String>,
) -> BTreeMap<Place, String> {
    let mut known = BTreeMap::new();
    for (mut place, reason) in compare::listed(LISTED) {
        if !place.pair.contains('/') {
            place.pair = format!("{}/{}", engine.name(), place.pair);
        }
        let (of, peer) = place.pair.split_once('/').unwrap();
        let here = of == engine.name() && engine.peers().contains(&peer);
        let now = !reason.starts_with("sometimes ") || found.contains_key(&place);
        if here && now && steps.iter().any(|step| step.name == place.step) {
            assert!(!known.contains_key(&place), "listed twice: {place}");
            known.insert(place, reason);
        }
    }
    known
}

/// Runs the steps with ours and with the peers at once: where they differ.
fn once(engine: Engine, steps: &[Step]) -> BTreeMap<Place, String> {
    let image = Busybox::new().unwrap();
    let words = words(&image);
    let start = |name: &str| {
        let (image, words, steps) = (image.clone(), words.clone(), steps.to_vec());
        let script = runtime_script(name);
        std::thread::spawn(move || run(engine, &script, &image, &words, &steps))
    };
    let ours = start("gantry");
    let theirs: Vec<_> = engine.peers().iter().map(|name| (name, start(name))).collect();
    let ours = ours.join().unwrap();
    let mut found = BTreeMap::new();
    for (name, theirs) in theirs {
        let pair = format!("{}/{name}", engine.name());
        found.extend(compare::differences(&pair, &theirs.join().unwrap(), &ours));
    }
    found
}

/// The steps of which the list and what was found say different things.
fn doubtful(
    steps: &[Step],
    found: &BTreeMap<Place, String>,
    known: &BTreeMap<Place, String>,
) -> Vec<Step> {
    let unlike = |step: &&Step| {
        let of = |map: &BTreeMap<Place, String>| -> Vec<Place> {
            map.keys().filter(|place| place.step == step.name).cloned().collect()
        };
        of(found) != of(known)
    };
    steps.iter().filter(unlike).cloned().collect()
}

/// Holds what differs against the list. What does not agree with it is asked once more, and told: engines
/// lose an output or a race now and then, ctr does so with the output of a short program.
fn compare(engine: Engine) {
    let leak = LeakCheck::new().unwrap();
    let mut steps = chosen(engine);
    let mut found = once(engine, &steps);
    eprintln!(
        "{}: {} steps, each with {} runtimes; {} differences, {} of them listed",
        engine.name(),
        steps.len(),
        engine.peers().len() + 1,
        found.len(),
        found.keys().filter(|place| known(engine, &steps, &found).contains_key(place)).count()
    );
    let doubtful = doubtful(&steps, &found, &known(engine, &steps, &found));
    if !doubtful.is_empty() {
        let first = compare::complaints(&found, &known(engine, &steps, &found));
        steps = doubtful;
        found = once(engine, &steps);
        eprintln!("asked again, because at first it was so:\n{}", first.join("\n"));
    }
    let complaints = compare::complaints(&found, &known(engine, &steps, &found));
    assert!(complaints.is_empty(), "{}\n{} in all", complaints.join("\n"), complaints.len());
    leak.finish().unwrap();
}

#[test]
fn podman() {
    compare(Engine::Podman);
}

#[test]
fn dockerd_of_bookworm() {
    compare(Engine::Dockerd);
}

#[test]
fn dockerd_of_trixie() {
    compare(Engine::Dockerd26);
}

#[test]
fn dockerd_with_mapped_ids() {
    compare(Engine::DockerdRemapped);
}

#[test]
fn containerd() {
    compare(Engine::Containerd);
}

#[test]
fn listed_steps_exist_and_have_names_of_their_own() {
    let names_of = |text| steps(text).into_iter().map(|step| step.name).collect::<Vec<_>>();
    for names in [names_of(STEPS), names_of(CTR_STEPS)] {
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "two steps are called {name}");
        }
    }
    for step in steps(STEPS) {
        for engine in &step.engines {
            assert!(ENGINES.iter().any(|known| known.name() == *engine), "{}: {engine}", step.name);
        }
    }
    for place in compare::listed(LISTED).keys() {
        let (engine, runtime) = place.pair.split_once('/').unwrap_or(("", &place.pair));
        let there = ENGINES.iter().any(|known| {
            (engine.is_empty() || known.name() == engine)
                && known.steps().iter().any(|step| step.name == place.step)
        });
        assert!(there && PEERS.contains(&runtime), "{place}");
        assert!(["exit", "stdout", "stderr"].contains(&place.stream.as_str()), "{place}");
    }
}

/// A runtime that loses one field of config.json on the way differs from one that does not, in the
/// step of that field and in no other.
#[test]
fn a_lost_field_is_caught() {
    let fields = [
        ("oomScoreAdj", "oom-score"),
        ("rlimits", "rlimits"),
        ("noNewPrivileges", "no-new-privileges"),
        ("hostname", "hostname"),
        ("maskedPaths", "masked-and-read-only-paths"),
    ];
    let at = usize::try_from(random::number(0..5)).unwrap();
    let (field, name) = fields[at];
    let lossy = format!(
        "mkdir -p /run/runtimes\ncat > {RUNTIME} <<'END'\n#!/bin/sh\n\
         for word; do [ \"$last\" != --bundle ] || bundle=$word; last=$word; done\n\
         [ ! -f \"$bundle/config.json\" ] || sed -i 's/\"{field}\":/\"lost\":/' \"$bundle/config.json\"\n\
         exec /usr/sbin/runc \"$@\"\nEND\nchmod 755 {RUNTIME}"
    );
    let image = Busybox::new().unwrap();
    let words = words(&image);
    let wanted = [name, "run-output"];
    let mut steps = Engine::Podman.steps();
    steps.retain(|step| wanted.contains(&step.name));
    let [honest, lossy] = [runtime_script("runc"), lossy]
        .map(|script| run(Engine::Podman, &script, &image, &words, &steps));
    let found = compare::differences("podman/runc", &honest, &lossy);
    assert!(!found.is_empty(), "nothing differs without {field}");
    assert!(found.keys().all(|place| place.step == name), "{found:?}");
}
