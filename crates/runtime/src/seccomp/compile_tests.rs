#![allow(clippy::unwrap_used)]

use super::*;
use sys::seccomp::Insn;

fn run(program: &[Insn], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    super::super::ask::answer(program, arch, nr, args).unwrap()
}

fn section(text: &str) -> Seccomp {
    serde_json::from_str(text).unwrap()
}

const X64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

#[test]
fn the_table_is_sorted() {
    assert!(SYSCALLS.is_sorted_by(|a, b| a.0 < b.0));
}

#[test]
fn programs_of_32_bits_on_64_bit_arm() {
    const A64: u32 = 0xc000_00b7;
    const A32: u32 = 0x4000_0028;
    assert!(ARM.is_sorted_by(|a, b| a.0 < b.0));
    let s = section(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_AARCH64","SCMP_ARCH_ARM"],
        "syscalls":[{"names":["read","set_tls","clone3"],"action":"SCMP_ACT_ALLOW"},
                    {"names":["ioctl"],"action":"SCMP_ACT_ALLOW",
                     "args":[{"index":1,"value":7,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let f = compile(&s, Arch::Aarch64).unwrap().unwrap();
    let r = |arch, nr| run(&f.program, arch, nr, [0; 6]);
    assert_eq!((r(A64, 63), r(A64, 3)), (RET_ALLOW, RET_ERRNO | 1));
    assert_eq!((r(A32, 3), r(A32, 63)), (RET_ALLOW, RET_ERRNO | 1));
    // The upper half of an argument does not count there.
    assert_eq!(run(&f.program, A32, 54, [0, 7 | 1 << 32, 0, 0, 0, 0]), RET_ALLOW);
    assert_eq!(run(&f.program, A64, 29, [0, 7 | 1 << 32, 0, 0, 0, 0]), RET_ERRNO | 1);
    assert_eq!(r(A32, 436), RET_ERRNO | 38, "newer than the profile");
    assert_eq!((r(A32, 0xf_0005), r(A32, 0xf_0006)), (RET_ALLOW, RET_ERRNO | 1));
    // Elsewhere there are no such programs.
    let f = compile(&s, Arch::X86_64).unwrap().unwrap();
    assert_eq!(run(&f.program, A32, 3, [0; 6]), RET_KILL_THREAD);
}

#[test]
fn errno_default_allow_list_and_newer_calls() {
    let s = section(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
        "architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
        "syscalls":[{"names":["read","write","no_such_call","statx"],"action":"SCMP_ACT_ALLOW"},
                    {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#,
    );
    let f = compile(&s, Arch::X86_64).unwrap().unwrap();
    let r = |arch, nr| run(&f.program, arch, nr, [0; 6]);
    assert_eq!(r(X64, 0), RET_ALLOW);
    assert_eq!(r(X64, 1), RET_ALLOW);
    assert_eq!(r(X64, 2), RET_ERRNO | 1);
    assert_eq!(r(X64, 332), RET_ALLOW);
    assert_eq!(r(X64, 435), RET_ERRNO | 38);
    assert_eq!(r(X64, 434), RET_ERRNO | 1);
    assert_eq!(r(X64, 436), RET_ERRNO | 38, "newer than the profile");
    assert_eq!(r(X64, X32_BIT), RET_KILL_THREAD, "x32 was not asked for");
    assert_eq!(r(I386, 3), RET_ALLOW);
    assert_eq!(r(I386, 0), RET_ERRNO | 1);
    assert_eq!(r(0xc000_00b7, 0), RET_KILL_THREAD);
}

#[test]
fn x32_has_its_own_numbers() {
    let s = section(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X32"],
        "syscalls":[{"names":["readv"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let f = compile(&s, Arch::X86_64).unwrap().unwrap();
    assert_eq!(run(&f.program, X64, X32_BIT | 515, [0; 6]), RET_ALLOW);
    assert_eq!(run(&f.program, X64, X32_BIT | 19, [0; 6]), RET_ERRNO | 1);
    assert_eq!(run(&f.program, X64, 19, [0; 6]), RET_ALLOW);
}

#[test]
fn every_operator_on_the_edges_of_both_halves() {
    let edges = [
        0u64,
        1,
        0x7fff_ffff,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0001,
        0xffff_ffff_0000_0000,
        u64::MAX - 1,
        u64::MAX,
    ];
    for (op, f) in [
        ("NE", (|a, b, _| a != b) as fn(u64, u64, u64) -> bool),
        ("LT", |a, b, _| a < b),
        ("LE", |a, b, _| a <= b),
        ("EQ", |a, b, _| a == b),
        ("GE", |a, b, _| a >= b),
        ("GT", |a, b, _| a > b),
        ("MASKED_EQ", |a, b, c| a & b == c),
    ] {
        for value in edges {
            for two in [0, value] {
                let s = section(&format!(
                    r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read"],
                    "action":"SCMP_ACT_ALLOW","args":[{{"index":3,"value":{value},"valueTwo":{two},
                    "op":"SCMP_CMP_{op}"}},{{"index":0,"value":7,"op":"SCMP_CMP_EQ"}}]}}]}}"#
                ));
                let filter = compile(&s, Arch::X86_64).unwrap().unwrap();
                for arg in edges {
                    let want = if f(arg, value, two) { RET_ALLOW } else { RET_ERRNO | 1 };
                    let got = run(&filter.program, X64, 0, [7, 0, 0, arg, 0, 0]);
                    assert_eq!(got, want, "{arg:#x} {op} {value:#x} {two:#x}");
                    let other = run(&filter.program, X64, 0, [8, 0, 0, arg, 0, 0]);
                    assert_eq!(other, RET_ERRNO | 1);
                }
            }
        }
    }
}

#[test]
fn an_argument_named_twice_means_or_and_an_unconditional_rule_wins() {
    let s = section(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[
          {"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
        {"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]},
        {"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let f = compile(&s, Arch::X86_64).unwrap().unwrap();
    for (arg, want) in [(0, RET_ALLOW), (8, RET_ALLOW), (1, RET_ERRNO | 1)] {
        assert_eq!(run(&f.program, X64, 135, [arg, 0, 0, 0, 0, 0]), want);
    }
    assert_eq!(run(&f.program, X64, 0, [0; 6]), RET_ALLOW);
}

#[test]
fn far_jumps() {
    // Every second call with a condition of its own: far more than 255 instructions on either side.
    let value = |name: &str| {
        5 + 0x10 * u64::try_from(name.len()).unwrap()
            + 0x100 * u64::from(name.as_bytes()[0])
            + 0x10000 * u64::from(name.as_bytes()[name.len() / 2])
    };
    let names: Vec<String> = SYSCALLS.iter().step_by(2).map(|r| r.0.to_owned()).collect();
    let s = Seccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        architectures: vec!["SCMP_ARCH_X86".into(), "SCMP_ARCH_X32".into()],
        syscalls: names
            .iter()
            .map(|n| crate::spec::SeccompSyscall {
                names: vec![n.clone()],
                action: "SCMP_ACT_ALLOW".into(),
                args: vec![SeccompArg {
                    index: 1,
                    value: value(n),
                    value_two: 0,
                    op: "SCMP_CMP_EQ".into(),
                }],
                ..Default::default()
            })
            .collect(),
        ..Seccomp::default()
    };
    let f = compile(&s, Arch::X86_64).unwrap().unwrap();
    assert!(f.program.len() > 1500);
    for row in SYSCALLS {
        let listed = names.iter().any(|n| n == row.0);
        for (arch, number) in [(X64, row.1), (I386, row.3), (X64, row.2 | X32_BIT)] {
            if number == NONE {
                continue;
            }
            let want = if listed { RET_ALLOW } else { RET_ERRNO | 1 };
            let got = run(&f.program, arch, number, [0, value(row.0), 0, 0, 0, 0]);
            assert!(got == want || !listed && got == RET_ERRNO | ENOSYS, "{row:?} {got:#x}");
            let other = run(&f.program, arch, number, [0, 6, 0, 0, 0, 0]);
            assert!(other != RET_ALLOW, "{row:?}");
        }
    }
}

#[test]
fn the_file_form_round_trips() {
    let s = section(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["kexec_load"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
    );
    let f = compile(&s, Arch::X86_64).unwrap().unwrap();
    assert_eq!(Filter::from_bytes(&f.to_bytes()).unwrap(), f);
    assert!(Filter::from_bytes(b"gantry-bpf-1xxxxyyy").is_err());
    assert_eq!(run(&f.program, X64, 246, [0; 6]), RET_KILL_PROCESS);
    assert_eq!(run(&f.program, X64, 9999, [0; 6]), RET_ALLOW);
}

#[test]
fn notify_needs_a_listener_and_bad_words_are_named() {
    let notify = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#;
    assert!(compile(&section(notify), Arch::X86_64).is_err());
    let mut with = section(notify);
    with.listener_path = "/run/x".into();
    assert!(compile(&with, Arch::X86_64).unwrap().unwrap().notifies());
    let bad = section(r#"{"defaultAction":"SCMP_ACT_PERHAPS"}"#);
    assert!(compile(&bad, Arch::X86_64).unwrap_err().to_string().contains("SCMP_ACT_PERHAPS"));
    assert!(
        compile(&section(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#), Arch::X86_64).unwrap().is_none()
    );
}
