//! Mutated configurations through the parser and every check, up to the making of a process:
//! nothing panics, nothing takes long or much memory, and each error names a field.
//!
//! `FUZZ_SECONDS` is how long it goes on (default: a short sample), `FUZZ_SEED` where it begins; a
//! failure names the seed of its own case.
#![allow(clippy::unwrap_used)]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

#[path = "config.rs"]
mod config;

/// What one case may take, on a machine that is busy with other things.
const CASE_TIME: Duration = Duration::from_secs(5);
/// What the process's memory may grow by in one case; the largest has some MB of text.
const MEMORY_KIB: u64 = 64 << 10;
/// Nothing was wrong with the configuration.
const GOOD: &str = "a process";

#[test]
fn fuzz_mutated_config() {
    let number = |key: &str| std::env::var(key).ok().map(|v| v.parse::<u64>().expect("a number"));
    let first = number("FUZZ_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>())).max(1);
    let time = number("FUZZ_SECONDS").map_or(Duration::from_secs(2), Duration::from_secs);
    eprintln!("config: FUZZ_SEED={first}");
    let (report, reports) = mpsc::channel();
    // In a thread of its own, so that a case that never ends is told as well.
    let worker = std::thread::spawn(move || {
        let dir = bundle();
        let (start, mut seed) = (Instant::now(), first);
        while seed == first || start.elapsed() < time {
            report.send(seed).unwrap();
            let good = one_case(dir.path(), seed);
            report.send(if good { u64::MAX } else { 0 }).unwrap();
            seed += 1;
        }
    });
    let (mut seed, mut cases, mut good) = (first, 0u64, 0u64);
    loop {
        match reports.recv_timeout(CASE_TIME * 2) {
            Ok(u64::MAX) => (cases, good) = (cases + 1, good + 1),
            Ok(0) => cases += 1,
            Ok(next) => seed = next,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("FUZZ_SEED={seed} does not end"),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(worker.join().is_ok(), "FUZZ_SEED={seed}");
    eprintln!("config: {cases} cases, {good} without an error");
}

fn bundle() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("rootfs")).unwrap();
    mknodat(
        rustix::fs::CWD,
        dir.path().join("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    dir
}

/// Whether there was nothing to say against the configuration.
fn one_case(bundle: &Path, seed: u64) -> bool {
    let text = config::mutated(&mut StdRng::seed_from_u64(seed), bundle);
    let shown = String::from_utf8_lossy(&text[..text.len().min(4000)]).into_owned();
    std::fs::write(bundle.join(CONFIG), &text).unwrap();
    // Forgets the highest use of memory so far, see proc_pid_clear_refs(5).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (memory, start) = (memory_kib("VmRSS:"), Instant::now());
    let result = std::panic::catch_unwind(|| check_all(bundle));
    let (took, grown) = (start.elapsed(), memory_kib("VmHWM:").saturating_sub(memory));
    let Ok(said) = result else { panic!("FUZZ_SEED={seed}: panic for {shown}") };
    assert!(took < CASE_TIME, "FUZZ_SEED={seed}: {took:?} for {shown}");
    assert!(grown < MEMORY_KIB, "FUZZ_SEED={seed}: {grown} KiB for {shown}");
    let short: String = said.chars().take(500).collect();
    assert!(said == GOOD || names_a_field(&said), "FUZZ_SEED={seed}: {short:?} for {shown}");
    said == GOOD
}

/// What `create` says up to where it would make a process.
fn check_all(bundle: &Path) -> String {
    let opts = Options {
        root: bundle.join("state"),
        systemd_cgroup: false,
        rootless: Some(false),
        hook_limit: None,
    };
    let id = ContainerId::new(format!("fuzz-{}", std::process::id())).unwrap();
    let mut made = Made::begin(&opts, &id).unwrap();
    let dir = made.dir.clone();
    let create = CreateOptions::new(bundle);
    let result = create_in(&mut made, &opts, &id, create, |parent, init, _| {
        // What the processes on both sides work out from the spec alone.
        let rules = crate::cgroup::devices::effective(&parent.resources.devices)?;
        drop(crate::cgroup::devices_bpf::compile(&rules));
        init.spec.mounts.iter().for_each(|m| drop(rootfs::options::parse(&m.options)));
        drop((init.hook_state)("creating", 1));
        Err(Error::Unsupported(GOOD.to_owned()))
    });
    std::fs::remove_dir_all(&dir).unwrap();
    match result {
        Err(Error::Unsupported(what)) if what == GOOD => what,
        Err(e) => e.chain(),
        Ok(_) => unreachable!("no process was made"),
    }
}

/// A field's path is in the text, or the place where the text is no JSON. Two texts are runc's, on
/// which engines match.
fn names_a_field(said: &str) -> bool {
    const FIELDS: [&str; 12] = [
        "process",
        "root",
        "hostname",
        "domainname",
        "mounts",
        "hooks",
        "annotations",
        "linux",
        "ociVersion",
        "at line ",
        "executable file not found in $PATH",
        "container's cgroup is not empty",
    ];
    FIELDS.iter().any(|f| said.contains(f))
}

fn memory_kib(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
