//! How long programs are, and how long calls take in them, beside libseccomp's.

use rand::SeedableRng;
use rand::rngs::StdRng;
use runtime::seccomp::{Arch, compile};
use runtime::spec::{Seccomp, SeccompArg, SeccompSyscall};
use sys::seccomp::Insn;

use crate::PROGRAM_LIMIT;
use crate::machine::{Call, check, trace};
use crate::model::{Model, RET_ALLOW, audit};
use crate::oracle::Libseccomp;
use crate::profile;

/// Docker's default profile on x86-64, for a container without further capabilities.
const DOCKER: &str = include_str!("docker.json");
/// Calls that make up most of what a program does.
const COMMON: &str = "read write open openat close stat fstat newfstatat lseek mmap mprotect munmap brk \
    rt_sigaction rt_sigprocmask ioctl pread64 pwrite64 readv writev access poll sched_yield madvise \
    nanosleep getpid socket connect accept accept4 sendto recvfrom sendmsg recvmsg clone vfork execve \
    wait4 fcntl fsync getdents64 futex epoll_wait epoll_ctl epoll_pwait clock_gettime \
    clock_nanosleep exit_group getrandom statx personality";

fn ours(profile: &Seccomp) -> Vec<Insn> {
    compile(profile, Arch::X86_64).unwrap().unwrap().program
}

fn arg(index: u32, op: &str, value: u64, value_two: u64) -> SeccompArg {
    SeccompArg { index, op: format!("SCMP_CMP_{op}"), value, value_two }
}

fn rule(names: &[&str], args: Vec<SeccompArg>) -> SeccompSyscall {
    SeccompSyscall {
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        action: "SCMP_ACT_ALLOW".to_owned(),
        errno_ret: None,
        args,
    }
}

fn allows(syscalls: Vec<SeccompSyscall>) -> Seccomp {
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        architectures: ["X86_64", "X86", "X32"].map(|a| format!("SCMP_ARCH_{a}")).to_vec(),
        syscalls,
        ..Seccomp::default()
    }
}

#[test]
fn dockers_default_profile_is_short_and_quick() {
    let mut peer = Libseccomp::start();
    let profile: Seccomp = serde_json::from_str(DOCKER).unwrap();
    let program = ours(&profile);
    let theirs = peer.both(&profile).unwrap();
    let lengths = theirs.each_ref().map(Vec::len);
    eprintln!("instructions: ours {}, libseccomp's {lengths:?}", program.len());
    assert!(lengths.iter().all(|theirs| 2 * program.len() < *theirs));
    for arch in ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"] {
        let calls = COMMON.split_whitespace().filter_map(|name| {
            let nr = *peer.tables[arch].get(name)?;
            Some((name, Call { arch: audit(arch), nr, args: [0; 6] }))
        });
        let (mut all, mut all_theirs, mut count) = (0, [0; 2], 0);
        for (name, call) in calls {
            let steps = |program| trace(program, &call).unwrap();
            let (answer, mine) = steps(&program);
            assert_eq!(answer, RET_ALLOW, "{arch} {name}");
            assert!(mine <= 16, "{arch} {name}: {mine} instructions");
            let binary = steps(&theirs[1]).1;
            assert!(mine <= binary, "{arch} {name}: {mine} instructions, libseccomp's {binary}");
            all += mine;
            all_theirs = [all_theirs[0] + steps(&theirs[0]).1, all_theirs[1] + binary];
            count += 1;
        }
        eprintln!(
            "{arch}: {count} common calls take {all} instructions, libseccomp's {all_theirs:?}"
        );
    }
}

/// Profiles that say the same of many calls, or much of one.
fn repetitive(names: &[&str]) -> Vec<(&'static str, Seccomp)> {
    let same = || [arg(0, "EQ", 5, 0), arg(1, "MASKED_EQ", 0xf0, 0x10), arg(2, "LE", 1 << 33, 0)];
    let every = |n: usize| -> Vec<&str> { names.iter().copied().step_by(n).collect() };
    let in_turn = (0u64..).zip(names).map(|(n, name)| {
        let [_, second, third] = same();
        rule(&[name], vec![arg(0, "EQ", n % 2, 0), second, third])
    });
    let values = |names: &[&str], count: u64, op| {
        (0..count).map(|v| rule(names, vec![arg(1, op, v * 0x10, 0)])).collect()
    };
    let numbered = |op: &'static str| {
        (0u64..).zip(every(3)).map(move |(n, name)| rule(&[name], vec![arg(0, op, n, 0)]))
    };
    vec![
        (
            "the same conditions on every second call",
            allows(vec![rule(&every(2), same().to_vec())]),
        ),
        ("the same conditions on every call", allows(vec![rule(names, same().to_vec())])),
        ("two sets of conditions, in turn", allows(in_turn.collect())),
        (
            "the same 30 values of an argument, every third call",
            allows(values(&every(3), 30, "EQ")),
        ),
        ("1500 values of one argument", allows(values(&["ioctl"], 1500, "EQ"))),
        ("3500 values of one argument", allows(values(&["ioctl"], 3500, "EQ"))),
        ("a value of its own, every third call", allows(numbered("EQ").collect())),
        ("a limit of its own, every third call", allows(numbered("LE").collect())),
        ("every second call", allows(vec![rule(&every(2), vec![])])),
    ]
}

/// What libseccomp finds room for, ours does.
#[test]
fn programs_share_what_is_the_same() {
    let mut peer = Libseccomp::start();
    let mut rng = StdRng::seed_from_u64(rand::random());
    // The one difference between the tables.
    peer.tables.values_mut().for_each(|table| table.retain(|name, _| name != "uretprobe"));
    let table = peer.tables["SCMP_ARCH_X86_64"].clone();
    let names: Vec<&str> = table.keys().map(String::as_str).collect();
    for (what, profile) in repetitive(&names) {
        let program = ours(&profile);
        check(&program).unwrap();
        let theirs = peer.both(&profile).map(|programs| programs.map(|p| p.len()));
        eprintln!("{what}: {} instructions, libseccomp's {theirs:?}", program.len());
        let limit = theirs.map_or(PROGRAM_LIMIT, |theirs| (theirs[0] * 3 / 2).min(PROGRAM_LIMIT));
        assert!(program.len() <= limit, "{what}: {} instructions", program.len());
        let model = Model::new(&profile, &peer.tables);
        // The model compares all rules with each other.
        let calls = if profile.syscalls.len() > 1000 { 4 } else { 500 };
        for _ in 0..calls {
            let call = profile::call(&mut rng, &profile, &peer.tables);
            let (answer, steps) = trace(&program, &call).unwrap();
            assert_eq!(answer, model.verdict(&call).action, "{what}: {call:x?}");
            // A list of values is searched, unless there is no room for that.
            assert!(steps < 80 || what.starts_with("3500"), "{what}: {steps} for {call:x?}");
        }
    }
}
