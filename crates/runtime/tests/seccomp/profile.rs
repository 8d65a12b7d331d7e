//! Random profiles that make sense, and calls that come close to their rules.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use runtime::spec::{Seccomp, SeccompArg, SeccompSyscall};

use crate::machine::Call;
use crate::model::audit;
use crate::oracle::Tables;

pub(crate) const ACTIONS: [&str; 7] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
pub(crate) const OPS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
const ARCHS: [&str; 3] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
/// Calls of i386 that go through another call as well.
const MULTIPLEXED: [&str; 6] = ["socket", "socketcall", "ipc", "shmget", "accept4", "semtimedop"];

fn one<T: Copy>(rng: &mut StdRng, of: &[T]) -> T {
    *of.choose(rng).unwrap()
}

/// Few different values, so that conditions meet each other.
fn value(rng: &mut StdRng) -> u64 {
    const EDGES: [u64; 11] = [
        0,
        1,
        2,
        7,
        8,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0007,
        u64::MAX,
    ];
    match rng.random_range(0..8) {
        0 => rng.random(),
        1 => u64::from(rng.random::<u32>()),
        2..5 => one(rng, &EDGES[..8]),
        _ => one(rng, &EDGES),
    }
}

fn condition(rng: &mut StdRng) -> SeccompArg {
    let op = one(rng, &OPS);
    let (value, mut value_two) = (value(rng), 0);
    if op == "MASKED_EQ" {
        value_two = match rng.random_range(0..4) {
            0 => self::value(rng),
            1 => 0,
            _ => value & rng.random::<u64>(),
        };
    }
    SeccompArg { index: rng.random_range(0..6), op: format!("SCMP_CMP_{op}"), value, value_two }
}

fn action(rng: &mut StdRng) -> (String, Option<u32>) {
    // The kernel takes 4095 as well, libseccomp does not.
    let action = one(rng, &ACTIONS);
    let errno = rng.random_bool(0.5).then(|| one(rng, &[0, 1, 38, 99, 4094]));
    (action.to_owned(), errno)
}

pub(crate) fn random(rng: &mut StdRng, tables: &Tables) -> Seccomp {
    let (default_action, default_errno_ret) = action(rng);
    let names: Vec<&str> = tables.values().flat_map(|t| t.keys().map(String::as_str)).collect();
    // Calls come again in other rules.
    let mut few: Vec<&str> = (0..rng.random_range(1..10)).map(|_| one(rng, &names)).collect();
    few.extend((0..rng.random_range(0..3)).map(|_| one(rng, &MULTIPLEXED)));
    let rules = match rng.random_range(0..10) {
        0 => rng.random_range(0..2),
        1 => rng.random_range(20..60),
        _ => rng.random_range(1..10),
    };
    let usual = action(rng);
    // Conditions too, together or alone.
    let known: Vec<SeccompArg> = (0..rng.random_range(1..6)).map(|_| condition(rng)).collect();
    let repeats = if rng.random_bool(0.3) { 0.8 } else { 0.0 };
    let syscalls = (0..rules)
        .map(|_| {
            let (action, errno_ret) =
                if rng.random_bool(0.7) { usual.clone() } else { action(rng) };
            let mut called: Vec<String> =
                (0..rng.random_range(1..4)).map(|_| one(rng, &few).to_owned()).collect();
            if rng.random_bool(0.2) {
                let many = if rng.random_bool(0.1) { 400 } else { 40 };
                called.extend((0..many).map(|_| one(rng, &names).to_owned()));
            }
            if rng.random_bool(0.2) {
                called.push(format!("no_such_call_{}", rng.random::<u8>()));
            }
            let args = match rng.random_range(0..4) {
                0 => 0,
                1 => 1,
                _ => rng.random_range(1..4),
            };
            let args = (0..args)
                .map(|_| match rng.random_bool(repeats) {
                    true => known.choose(rng).unwrap().clone(),
                    false => condition(rng),
                })
                .collect();
            SeccompSyscall { names: called, action, errno_ret, args }
        })
        .collect();
    let mut architectures: Vec<String> =
        ARCHS.iter().filter(|_| rng.random_bool(0.6)).map(|a| (*a).to_owned()).collect();
    if rng.random_bool(0.5) {
        architectures.reverse();
    }
    Seccomp { default_action, default_errno_ret, architectures, syscalls, ..Seccomp::default() }
}

/// One call is answered with errno 99, all others go through.
pub(crate) fn only(name: &str, arch: &str) -> Seccomp {
    Seccomp {
        default_action: "SCMP_ACT_ALLOW".to_owned(),
        architectures: vec![arch.to_owned()],
        syscalls: vec![SeccompSyscall {
            names: vec![name.to_owned()],
            action: "SCMP_ACT_ERRNO".to_owned(),
            errno_ret: Some(99),
            args: Vec::new(),
        }],
        ..Seccomp::default()
    }
}

/// All of these with so many conditions.
pub(crate) fn conditions(names: &[&String], count: u32) -> Seccomp {
    let arg =
        |index, value| SeccompArg { index, op: "SCMP_CMP_EQ".to_owned(), value, value_two: 0 };
    // Values of its own, so that no two calls share a decision.
    let call = |(value, name): (u64, &&String)| SeccompSyscall {
        names: vec![(*name).clone()],
        action: "SCMP_ACT_ALLOW".to_owned(),
        errno_ret: None,
        args: (0..count).map(|index| arg(index, value)).collect(),
    };
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        syscalls: (0..).zip(names).map(call).collect(),
        ..Seccomp::default()
    }
}

/// A call that the profile is likely to speak of, with arguments close to what it compares with.
pub(crate) fn call(rng: &mut StdRng, profile: &Seccomp, tables: &Tables) -> Call {
    let arch = one(rng, &ARCHS);
    let rule = profile.syscalls.choose(rng);
    let named =
        rule.and_then(|r| r.names.choose(rng)).and_then(|name| tables[arch].get(name)).copied();
    let base = if arch == "SCMP_ARCH_X32" { 0x4000_0000 } else { 0 };
    let nr = match (rng.random_range(0..20), named) {
        (0, _) => base + rng.random_range(0..600),
        (1, _) => one(rng, &[u32::MAX, u32::MAX - 1, base + 0xfff, 0x3fff_ffff, 0x8000_0000]),
        (2, Some(n)) => n + 1,
        (3, _) if arch == "SCMP_ARCH_X86" => one(rng, &[102, 117]),
        (_, Some(n)) => n,
        (_, None) => base + rng.random_range(0..600),
    };
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = value(rng);
    }
    for c in profile.syscalls.iter().flat_map(|r| &r.args) {
        if rng.random_bool(0.1) {
            close(rng, c, &mut args);
        }
    }
    for c in rule.iter().flat_map(|r| &r.args) {
        if rng.random_bool(0.9) {
            close(rng, c, &mut args);
        }
    }
    if nr == 102 || nr == 117 {
        args[0] = rng.random_range(0..26);
    }
    let audit =
        if rng.random_bool(0.02) { one(rng, &[0xc000_00b7, 0, 0x4000_0028]) } else { audit(arch) };
    if arch == "SCMP_ARCH_X86" {
        // What the kernel hands over of a 32-bit register.
        args = args.map(|a| a & u64::from(u32::MAX));
    }
    Call { arch: audit, nr, args }
}

fn close(rng: &mut StdRng, c: &SeccompArg, args: &mut [u64; 6]) {
    let slot = &mut args[usize::try_from(c.index).unwrap()];
    let exact = if c.op.ends_with("MASKED_EQ") {
        c.value_two | rng.random::<u64>() & !c.value
    } else {
        c.value
    };
    *slot = match rng.random_range(0..8) {
        0 => exact.wrapping_add(1),
        1 => exact.wrapping_sub(1),
        2 => exact ^ (1 << 32),
        3 => exact & u64::from(u32::MAX),
        _ => exact,
    };
}

/// Takes out of the profile what it does not need to be as `wrong` says.
pub(crate) fn shrink(profile: Seccomp, mut wrong: impl FnMut(&Seccomp) -> bool) -> Seccomp {
    let mut best = profile;
    loop {
        let mut smaller = Vec::new();
        for r in 0..best.syscalls.len() {
            smaller.push(edited(&best, |p| drop(p.syscalls.remove(r))));
            for n in 0..best.syscalls[r].names.len() {
                smaller.push(edited(&best, |p| drop(p.syscalls[r].names.remove(n))));
            }
            for a in 0..best.syscalls[r].args.len() {
                smaller.push(edited(&best, |p| drop(p.syscalls[r].args.remove(a))));
            }
        }
        match smaller.into_iter().find(&mut wrong) {
            Some(p) => best = p,
            None => return best,
        }
    }
}

fn edited(profile: &Seccomp, edit: impl FnOnce(&mut Seccomp)) -> Seccomp {
    let mut out = profile.clone();
    edit(&mut out);
    out
}
