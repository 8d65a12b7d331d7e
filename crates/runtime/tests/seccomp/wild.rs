//! Profiles that nobody would write: unknown words, numbers out of range, far too many rules.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use runtime::spec::{Seccomp, SeccompArg, SeccompSyscall};

use crate::profile::{ACTIONS, OPS};

const NAMES: [&str; 24] = [
    "read",
    "write",
    "openat",
    "clone",
    "clone3",
    "socket",
    "socketcall",
    "ipc",
    "shmget",
    "statx",
    "personality",
    "futex",
    "futex_time64",
    "epoll_pwait2",
    "fchmodat2",
    "cachestat",
    "bpf",
    "keyctl",
    "ioctl",
    "mount",
    "_llseek",
    "rt_sigreturn",
    "set_tls",
    "arch_prctl",
];

/// A word of the list, or, rarely, one that is none.
fn word(rng: &mut StdRng, prefix: &str, list: &[&str], wrong: f64) -> String {
    if !rng.random_bool(wrong) {
        return format!("{prefix}{}", list.choose(rng).unwrap());
    }
    match rng.random_range(0..5) {
        0 => String::new(),
        1 => prefix.to_owned(),
        2 => format!("{prefix}{}", list.choose(rng).unwrap().to_lowercase()),
        3 => (0..rng.random_range(1..200)).map(|_| rng.random::<char>()).collect(),
        _ => format!("{prefix}\0{}", rng.random::<u32>()),
    }
}

fn errno(rng: &mut StdRng, wrong: f64) -> Option<u32> {
    match rng.random_range(0..4) {
        0 => None,
        1 if rng.random_bool(wrong) => Some(rng.random()),
        _ => Some(rng.random_range(0..4096)),
    }
}

pub(crate) fn random(rng: &mut StdRng) -> Seccomp {
    // Half of them with some mistake, so that the other half gets far.
    let wrong = if rng.random_bool(0.5) { 0.05 } else { 0.0 };
    let rules = match rng.random_range(0..20) {
        0 => rng.random_range(500..5000),
        1..4 => rng.random_range(50..500),
        _ => rng.random_range(0..20),
    };
    let actions: Vec<&str> =
        ACTIONS.iter().map(|a| a.strip_prefix("SCMP_ACT_").unwrap()).chain(["NOTIFY"]).collect();
    let syscalls = (0..rules)
        .map(|_| SeccompSyscall {
            names: (0..rng.random_range(0..6)).map(|_| word(rng, "", &NAMES, wrong)).collect(),
            action: word(rng, "SCMP_ACT_", &actions, wrong / 10.0),
            errno_ret: errno(rng, wrong),
            args: (0..rng.random_range(0..8))
                .map(|_| SeccompArg {
                    index: if rng.random_bool(wrong) {
                        rng.random()
                    } else {
                        rng.random_range(0..6)
                    },
                    op: word(rng, "SCMP_CMP_", &OPS, wrong / 10.0),
                    value: rng.random(),
                    value_two: rng.random(),
                })
                .collect(),
        })
        .collect();
    const ARCHS: [&str; 8] = ["X86_64", "X86", "X32", "AARCH64", "ARM", "MIPS", "RISCV64", "S390X"];
    const FLAGS: [&str; 4] = ["LOG", "SPEC_ALLOW", "TSYNC", "WAIT_KILLABLE_RECV"];
    Seccomp {
        default_action: word(rng, "SCMP_ACT_", &actions, wrong),
        default_errno_ret: errno(rng, wrong),
        architectures: (0..rng.random_range(0..6))
            .map(|_| word(rng, "SCMP_ARCH_", &ARCHS, wrong))
            .collect(),
        flags: (0..rng.random_range(0..3))
            .map(|_| word(rng, "SECCOMP_FILTER_FLAG_", &FLAGS, wrong))
            .collect(),
        listener_path: if rng.random_bool(0.8) { "/run/l".into() } else { String::new() },
        syscalls,
        ..Seccomp::default()
    }
}
