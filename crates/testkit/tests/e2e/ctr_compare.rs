//! containerd's own client on Debian's containerd and on our store, and what comes out compared.
//!
//! ```text
//!     ctr 1.6 ── containerd 1.6 of bookworm     ctr 1.7 ── containerd 1.7 of trixie
//!        │                                         │
//!        └────── our store                         └────── our store
//! ```
//! The commands are in `ctr.steps` and `ctr_transfer.steps`, the differences that there may be in `ctr_differences.txt`.

use crate::compare::{Outcome, complaints, differences, listed, steps};
use crate::normalise::normalise;
use serde_json::json;
use std::time::Duration;
use testkit::engine::{Daemon, gantry_binary};
use testkit::fixtures::busybox::Busybox;
use testkit::fixtures::digest;
use testkit::fixtures::oci::{INDEX_TYPE, Image, Layer, MANIFEST_TYPE, architecture};
use testkit::fixtures::tar::TarStream;
use testkit::leak::LeakCheck;
use testkit::peer::{self, Release};
use testkit::registry::{Access, Registry};
use testkit::sandbox::Sandbox;
use testkit::{Error, random};

const STEPS: &str = include_str!("ctr.steps");
const TRANSFERS: &str = include_str!("ctr_transfer.steps");
const LISTED: &str = include_str!("ctr_differences.txt");
const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where the steps work.
const DIR: &str = "/run/compare";
/// More than this is a hang.
const STEP_LIMIT: Duration = Duration::from_secs(40);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    Ours,
    Containerd,
}

/// What both runs are given.
struct Given {
    files: Vec<(&'static str, Vec<u8>)>,
    words: Vec<(&'static str, String)>,
    /// What stands for what is random.
    replaced: Vec<(String, &'static str)>,
}

fn given() -> Given {
    let one = Busybox::new().unwrap();
    let full = |name: &str| format!("docker.io/library/{name}");
    let reference = full(&one.reference);
    let three = full(&format!("{}:{}", random::name("three"), random::token(5)));
    let both = full(&format!("{}:{}", random::name("both"), random::token(5)));
    let words = vec![
        ("I", reference.clone()),
        ("L", three.clone()),
        ("X", both.clone()),
        ("M", one.marker_path.clone()),
        ("D", one.image.manifest_digest()),
        ("W", random::token(8)),
        ("C", random::name("box")),
        ("CODE", random::exit_code().to_string()),
    ];
    let files = vec![
        ("one.tar", one.image.oci_archive(&reference)),
        ("docker.tar", one.docker_archive()),
        ("three.tar", three_layers(&one).oci_archive(&three)),
        ("both.tar", both_architectures(&one, &both)),
        ("rootfs.tar", one.rootfs.clone()),
        ("rubbish.tar", random::bytes(2000)),
    ];
    Given { files, words, replaced: Vec::new() }
}

/// The second layer adds, the third replaces and deletes.
fn three_layers(one: &Busybox) -> Image {
    let run = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"], "WorkingDir": "/etc" });
    let second = TarStream::new().dir("opt").file("opt/second", 0o644, one.marker.as_bytes());
    let third = TarStream::new()
        .file("opt/.wh.second", 0o644, b"")
        .file("opt/third", 0o600, one.marker.as_bytes())
        .file("etc/group", 0o644, b"root:x:0:\n");
    Image::new(
        vec![
            Layer::gzipped(one.rootfs.clone()),
            Layer::plain(second.finish()),
            Layer::gzipped(third.finish()),
        ],
        &run,
    )
}

/// An archive of an index with this machine's architecture and with arm64, or amd64 where that is
/// this machine's.
fn both_architectures(one: &Busybox, name: &str) -> Vec<u8> {
    let other = if architecture() == "arm64" { "amd64" } else { "arm64" };
    let mut foreign = three_layers(one);
    let config = String::from_utf8(foreign.config.clone()).unwrap();
    foreign.config = config.replace(architecture(), other).into_bytes();
    foreign.renew_manifest();
    let entry = |image: &Image, arch: &str| {
        json!({
            "mediaType": MANIFEST_TYPE,
            "digest": image.manifest_digest(),
            "size": image.manifest.len(),
            "platform": { "architecture": arch, "os": "linux" },
        })
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [entry(&one.image, architecture()), entry(&foreign, other)],
    })
    .to_string();
    let top = json!({
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [{
            "mediaType": INDEX_TYPE,
            "digest": digest(index.as_bytes()),
            "size": index.len(),
            "annotations": { "io.containerd.image.name": name },
        }],
    });
    let mut files = one.image.oci_files(name);
    files.extend(foreign.oci_files(name));
    files.sort();
    files.dedup_by(|a, b| a.0 == b.0);
    files.retain(|(path, _)| path != "index.json");
    let blob = digest(index.as_bytes()).replace("sha256:", "blobs/sha256/");
    files.extend([
        ("index.json".to_owned(), top.to_string().into_bytes()),
        (blob, index.into_bytes()),
    ]);
    let mut stream = TarStream::new().dir("blobs").dir("blobs/sha256");
    for (path, content) in files {
        stream = stream.file(&path, 0o644, &content);
    }
    stream.finish()
}

fn start(sandbox: &Sandbox, store: Store, release: Release) -> Daemon<'_> {
    match store {
        Store::Containerd => peer::containerd(sandbox, release).unwrap(),
        Store::Ours => {
            peer::use_release(sandbox, release).unwrap();
            sandbox.link("containerd", &gantry_binary().unwrap()).unwrap();
            Daemon::start(sandbox, ["containerd"], SOCKET).unwrap()
        }
    }
}

/// Makes equal what ctr says of the time that things took, and leaves out what it says now and then
/// of its own progress bars when a transfer has ended.
fn settle(text: &str, replaced: &[(String, &str)]) -> String {
    let mut result = String::new();
    for line in normalise(text, replaced).lines() {
        if line.ends_with("error=\"context canceled\"") {
            continue;
        }
        let line = match line.find("elapsed: ") {
            Some(at) => format!("{}elapsed", &line[..at]),
            None => line.to_owned(),
        };
        result.push_str(&line);
        result.push('\n');
    }
    result
}

fn run(store: Store, release: Release, script: &'static str, given: &Given) -> Vec<Outcome> {
    let sandbox = Sandbox::new().unwrap();
    let daemon = start(&sandbox, store, release);
    let plain = Registry::start(&sandbox, Access::Plain).unwrap();
    let secured = Registry::start(&sandbox, Access::Secured).unwrap();
    for (name, content) in &given.files {
        sandbox.write(&format!("{DIR}/{name}"), content).unwrap();
    }
    // ctr speaks plain HTTP to what is called localhost or has a loopback address.
    let by_name = format!("registry.test:{}", secured.port());
    sandbox.shell("echo 127.0.0.1 registry.test >> /etc/hosts").ok().unwrap();
    let hosts = format!(
        "[host.\"https://{}\"]\n  ca = \"{}\"\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n",
        by_name, secured.ca
    );
    sandbox.write(&format!("{DIR}/hosts/{by_name}/hosts.toml"), hosts).unwrap();
    let mut replaced = given.replaced.clone();
    replaced.extend([
        (plain.address.clone(), "<registry>"),
        (by_name.clone(), "<secured>"),
        (secured.user.clone(), "<user>"),
        (secured.ca.clone(), "<ca>"),
        (sandbox.id().to_owned(), "<host>"),
    ]);
    let mut outcomes = Vec::new();
    for (step, script) in steps(script) {
        let mut command = sandbox
            .shell(script)
            .env("R", &plain.address)
            .env("S", &by_name)
            .env("U", &secured.user)
            .env("PW", &secured.password)
            .env("CA", &secured.ca)
            .env("TRIES", if store == Store::Ours { "1" } else { "5" })
            .cwd(DIR)
            .timeout(STEP_LIMIT);
        for (name, value) in &given.words {
            command = command.env(name, value);
        }
        outcomes.push(match command.output() {
            Ok(output) => Outcome {
                step,
                exit: output.code().to_string(),
                stdout: settle(&String::from_utf8_lossy(&output.stdout), &replaced),
                stderr: settle(&String::from_utf8_lossy(&output.stderr), &replaced),
            },
            Err(Error::Timeout { output, .. }) => {
                let stdout = settle(&output, &replaced);
                Outcome { step, exit: "hangs".to_owned(), stdout, stderr: String::new() }
            }
            Err(error) => panic!("{step}: {error:?}"),
        });
    }
    drop((plain, secured, daemon));
    sandbox.close().unwrap();
    if let Some(dir) = std::env::var_os("CTR_TRANSCRIPTS") {
        let text: String = outcomes
            .iter()
            .map(|o| format!("== {} [{}]\n{}--\n{}", o.step, o.exit, o.stdout, o.stderr))
            .collect();
        let file =
            std::path::Path::new(&dir).join(format!("{store:?}-{release:?}-{}", script.len()));
        std::fs::write(file, text).unwrap();
    }
    outcomes
}

/// Runs the steps on both at once, and holds what differs against the list.
fn compare(pair: &str, release: Release, script: &'static str) {
    let leak = LeakCheck::new().unwrap();
    let given = given();
    let (one, other) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| run(Store::Containerd, release, script, &given));
        let ours = run(Store::Ours, release, script, &given);
        (theirs.join().unwrap(), ours)
    });
    let found = differences(pair, &one, &other);
    let mut listed = listed(LISTED);
    listed.retain(|place, _| place.pair == pair);
    let complaints = complaints(&found, &listed);
    assert!(complaints.is_empty(), "{}\n{} in all", complaints.join("\n"), complaints.len());
    leak.finish().unwrap();
}

#[test]
fn ctr_of_bookworm_on_both_stores() {
    compare("1.6", Release::Bookworm, STEPS);
}

#[test]
fn ctr_of_trixie_on_both_stores() {
    compare("1.7", Release::Trixie, STEPS);
}

/// By the transfer service, which ctr 1.7 uses with `--local=false`, and containerd 2 always.
#[test]
fn transfers_of_ctr_on_both_stores() {
    compare("transfer", Release::Trixie, TRANSFERS);
}

#[test]
fn listed_steps_exist_and_have_names_of_their_own() {
    let all = [STEPS, TRANSFERS].map(steps).concat();
    let names: Vec<&str> = all.into_iter().map(|(name, _)| name).collect();
    for (at, name) in names.iter().enumerate() {
        assert!(!names[..at].contains(name), "two steps are called {name}");
    }
    for place in listed(LISTED).keys() {
        assert!(names.contains(&place.step.as_str()), "no such step: {place}");
        assert!(["1.6", "1.7", "transfer"].contains(&place.pair.as_str()), "{place}");
        assert!(["exit", "stdout", "stderr"].contains(&place.stream.as_str()), "{place}");
    }
}
