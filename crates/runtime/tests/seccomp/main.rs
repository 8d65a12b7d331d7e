//! The seccomp compiler against libseccomp on random profiles and calls, and on profiles that make
//! no sense. Needs the library that `scripts/deps` unpacks, and python3.
//!
//! `FUZZ_SECONDS` is how long each test goes on (default: a short sample), `FUZZ_SEED` where it
//! begins; a failure names the seed of its own case.
#![allow(clippy::unwrap_used)]

mod machine;
mod model;
mod oracle;
mod profile;
mod sizes;
mod wild;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use runtime::seccomp::{Arch, compile};
use runtime::spec::Seccomp;
use sys::seccomp::Insn;

use machine::{Call, run};
use model::{Model, RET_ALLOW, RET_ERRNO, Verdict};
use oracle::{Libseccomp, Refusal};

/// The kernel's limit for a program (`BPF_MAXINSNS`).
pub(crate) const PROGRAM_LIMIT: usize = 4096;

/// Runs `case` with one seed after the other, until the time is up.
fn fuzz(name: &str, mut case: impl FnMut(u64, &mut StdRng)) {
    let number = |key: &str| std::env::var(key).ok().map(|v| v.parse::<u64>().expect("a number"));
    let first = number("FUZZ_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let time = number("FUZZ_SECONDS").map_or(Duration::from_secs(2), Duration::from_secs);
    eprintln!("{name}: FUZZ_SEED={first}");
    let (start, mut seed) = (Instant::now(), first);
    while seed == first || start.elapsed() < time {
        case(seed, &mut StdRng::seed_from_u64(seed));
        seed += 1;
    }
    eprintln!("{name}: {} cases", seed - first);
}

/// The program, as far as the kernel looks at it, can be loaded.
#[track_caller]
fn loadable(program: &[Insn], seed: u64) {
    assert!(program.len() <= PROGRAM_LIMIT, "FUZZ_SEED={seed}: {} instructions", program.len());
    if let Err(problem) = machine::check(program) {
        panic!("FUZZ_SEED={seed}: {problem}");
    }
}

fn json(profile: &Seccomp) -> String {
    serde_json::to_string(profile).unwrap()
}

/// What libseccomp's programs answer, with runc's addition for calls newer than the profile.
fn answers(programs: &[Vec<Insn>; 2], verdict: &Verdict, call: &Call) -> [u32; 2] {
    let ask = |p| if verdict.newer { RET_ERRNO | 38 } else { run(p, call).unwrap() };
    [ask(&programs[0]), ask(&programs[1])]
}

fn differs(peer: &mut Libseccomp, profile: &Seccomp, call: &Call) -> bool {
    let Ok(programs) = peer.both(profile) else { return false };
    let verdict = Model::new(profile, &peer.tables).verdict(call);
    let theirs = answers(&programs, &verdict, call);
    theirs != [verdict.action; 2]
        && !theirs.iter().any(|t| verdict.may_differ(&theirs, *t).is_some())
}

#[test]
fn fuzz_verdicts_are_libseccomps() {
    let mut peer = Libseccomp::start();
    // The one difference between the tables, see below.
    for table in peer.tables.values_mut() {
        table.remove("uretprobe");
    }
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut equal, mut allowed, mut longest) = (0u64, 0u64, usize::MAX);
    let (mut refused, mut endless) = (0u64, 0u64);
    fuzz("verdicts", |seed, rng| {
        let profile = profile::random(rng, &peer.tables);
        let programs = match peer.both(&profile) {
            Ok(programs) => programs,
            Err(Refusal::Endless) => {
                endless += 1;
                return;
            }
            Err(Refusal::Contradiction) => {
                // Here the first of the rules counts.
                let first = profile.syscalls.first().map(|r| (&r.action, r.errno_ret));
                let plain =
                    profile.syscalls.iter().all(|r| Some((&r.action, r.errno_ret)) == first);
                assert!(!plain, "FUZZ_SEED={seed}: libseccomp refuses {}", json(&profile));
                refused += 1;
                return;
            }
        };
        let ours = match compile(&profile, Arch::X86_64) {
            Ok(Some(ours)) => ours,
            Ok(None) => {
                assert!(profile.default_action == "SCMP_ACT_ALLOW", "FUZZ_SEED={seed}");
                return;
            }
            Err(e) => {
                assert!(e.to_string().contains("the kernel takes 4096"), "FUZZ_SEED={seed}: {e}");
                let theirs = programs[0].len();
                assert!(2 * theirs > PROGRAM_LIMIT, "FUZZ_SEED={seed}: libseccomp needs {theirs}");
                longest = longest.min(programs[0].len());
                return;
            }
        };
        loadable(&ours.program, seed);
        let model = Model::new(&profile, &peer.tables);
        for _ in 0..200 {
            let call = profile::call(rng, &profile, &peer.tables);
            let got = run(&ours.program, &call).unwrap();
            let verdict = model.verdict(&call);
            let theirs = answers(&programs, &verdict, &call);
            let text = || format!("FUZZ_SEED={seed}: {call:x?}\n{}", json(&profile));
            assert_eq!(got, verdict.action, "ours against the specification: {}", text());
            if let Some(reason) = theirs.iter().find_map(|t| verdict.may_differ(&theirs, *t)) {
                *reasons.entry(reason).or_default() += 1;
            } else if theirs == [got; 2] {
                equal += 1;
                allowed += u64::from(got == RET_ALLOW);
            } else {
                let small = profile::shrink(profile.clone(), |p| differs(&mut peer, p, &call));
                panic!(
                    "ours {got:#x}, libseccomp's {theirs:#x?}: {}\nin short: {}",
                    text(),
                    json(&small)
                );
            }
        }
    });
    eprintln!("{equal} equal ({allowed} of them allowed); different as explained: {reasons:?}");
    eprintln!("libseccomp: {refused} profiles contradict themselves, {endless} without an end");
    eprintln!("its shortest program where ours is too long: {longest}");
    // What is compared at all; a short sample says little about it.
    if equal > 30_000 {
        let different: u64 = reasons.values().sum();
        assert!(different * 20 < equal, "too little is compared: {equal} equal, {reasons:?}");
        assert!(allowed * 50 > equal, "almost nothing is allowed: {allowed} of {equal}");
    }
}

/// Every call that libseccomp knows has the same number here, on every architecture.
#[test]
fn tables_are_libseccomps() {
    /// The kernel's table has uretprobe for programs of 64 bits alone.
    const WITHOUT: &[(&str, &str)] = &[("SCMP_ARCH_X32", "uretprobe")];
    let peer = Libseccomp::start();
    let mut wrong = Vec::new();
    for (arch, table) in &peer.tables {
        for (name, number) in table {
            let profile = profile::only(name, arch);
            let program = compile(&profile, Arch::X86_64).unwrap().map(|f| f.program);
            let call = Call { arch: model::audit(arch), nr: *number, args: [0; 6] };
            let hit = program.is_some_and(|p| run(&p, &call).unwrap() == RET_ERRNO | 99);
            if !hit && !WITHOUT.contains(&(arch, name)) {
                wrong.push(format!("{arch} {name} {number}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn fuzz_profiles_that_make_no_sense() {
    let (mut good, mut bad) = (0u64, 0u64);
    fuzz("profiles", |seed, rng| {
        let profile = wild::random(rng);
        let start = Instant::now();
        match compile(&profile, Arch::X86_64) {
            Ok(filter) => {
                good += 1;
                filter.inspect(|f| loadable(&f.program, seed));
            }
            Err(e) => {
                bad += 1;
                let text = e.chain();
                assert!(text.starts_with("linux.seccomp"), "FUZZ_SEED={seed}: {text}");
                assert!(text.len() < 4000, "FUZZ_SEED={seed}: {text}");
            }
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "FUZZ_SEED={seed}: {took:?}");
    });
    eprintln!("{good} compiled, {bad} refused");
}

/// The kernel takes no program of more than 4096 instructions; it would say no more than `EINVAL`.
#[test]
fn a_profile_that_is_too_long_is_refused_with_its_field() {
    let peer = Libseccomp::start();
    let names: Vec<&String> = peer.tables["SCMP_ARCH_X86_64"].keys().collect();
    let e = compile(&profile::conditions(&names, 4), Arch::X86_64).unwrap_err().chain();
    assert!(e.starts_with("linux.seccomp.syscalls: ") && e.contains("4096"), "{e}");
    let short = compile(&profile::conditions(&names[..50], 4), Arch::X86_64).unwrap().unwrap();
    loadable(&short.program, 0);
}
