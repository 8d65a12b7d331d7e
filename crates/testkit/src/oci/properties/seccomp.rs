//! `linux.seccomp`, asked with programs of single system calls.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::elf::{self, Arg, SysCall, call, text};
use crate::oci::{Checked, Ground, Property, has, same, want};
use crate::random;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use std::os::unix::net::UnixListener;

pub(super) const ALL: &[Property] = &[
    p("seccomp/errno", errno),
    p("seccomp/errno-default-is-eperm", errno_default),
    p("seccomp/default-action-errno", default_errno),
    p("seccomp/default-action-errno-by-number", default_errno_ret),
    p("seccomp/kill-thread", |g| killed(g, "SCMP_ACT_KILL")),
    p("seccomp/kill-process", |g| killed(g, "SCMP_ACT_KILL_PROCESS")),
    p("seccomp/trap", |g| killed(g, "SCMP_ACT_TRAP")),
    p("seccomp/log-allows", log),
    p("seccomp/trace-without-a-tracer", trace),
    p("seccomp/arguments", arguments),
    p("seccomp/arguments-masked", masked),
    p("seccomp/arguments-upper-half", upper_half),
    p("seccomp/arguments-all-have-to-fit", all_arguments),
    p("seccomp/arguments-twice-are-alternatives", same_argument),
    p("seccomp/two-rules-for-one-call", two_rules),
    p("seccomp/unknown-calls-are-left-out", unknown_call),
    p("seccomp/32-bit-calls", old_calls),
    p("seccomp/32-bit-without-the-architecture", no_old_calls),
    p("seccomp/x32-calls", x32),
    p("seccomp/allow-with-errno-ret-is-refused", allow_errno),
    p("seccomp/flags", flags),
    p("seccomp/flags-unknown", flag_unknown),
    p("seccomp/with-no-new-privileges", with_no_new_privileges),
    p("seccomp/exec-has-it", exec),
    p("seccomp/status", status),
    p("seccomp/notify", notify),
    p("seccomp/new-call-numbers", new_calls),
];

const GETPID: u64 = 39;
const GETUID: u64 = 102;
const MKDIR: u64 = 83;
const GETPGRP: u64 = 111;

/// A container that makes these calls under this filter.
fn asked(g: &Ground, filter: Value, calls: &[SysCall]) -> Checked<crate::oci::call::Ran> {
    let mut b = Bundle::new(g, "")?;
    b.file("probe", elf::x86_64(calls), 0o755)?;
    b.config["process"]["args"] = json!(["/probe"]);
    b.config["linux"]["seccomp"] = filter;
    Ok(b.run()?)
}

fn answers(g: &Ground, filter: Value, calls: &[SysCall]) -> Checked<Vec<i64>> {
    let ran = asked(g, filter, calls)?;
    want(ran.code == 0, "the program", ran.to_string())?;
    Ok(elf::results(&ran.raw, true))
}

fn rule(names: &[&str], action: &str, errno: Option<u32>) -> Value {
    let mut rule = json!({"names": names, "action": action});
    if let Some(errno) = errno {
        rule["errnoRet"] = json!(errno);
    }
    rule
}

fn allow_but(rules: &[Value]) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": rules})
}

fn number() -> (u32, i64) {
    let errno = random::number(1..133);
    (errno, -i64::from(errno))
}

fn errno(g: &Ground) -> Checked {
    let (errno, answer) = number();
    let filter = allow_but(&[rule(&["getuid"], "SCMP_ACT_ERRNO", Some(errno))]);
    same("answers", answers(g, filter, &[call(GETUID, &[]), call(GETPID, &[])])?, [answer, 1])
}

fn errno_default(g: &Ground) -> Checked {
    let filter = allow_but(&[rule(&["getuid"], "SCMP_ACT_ERRNO", None)]);
    same("answers", answers(g, filter, &[call(GETUID, &[])])?, [-1])
}

/// What a static program and the runtime itself need between the filter and the program.
const NEEDED: [&str; 30] = [
    "read",
    "write",
    "close",
    "execve",
    "exit",
    "exit_group",
    "futex",
    "fcntl",
    "openat",
    "open",
    "fstat",
    "newfstatat",
    "rt_sigreturn",
    "rt_sigaction",
    "rt_sigprocmask",
    "mmap",
    "munmap",
    "brk",
    "sigaltstack",
    "gettid",
    "getpid",
    "tgkill",
    "prctl",
    "nanosleep",
    "epoll_pwait",
    "epoll_ctl",
    "madvise",
    "mprotect",
    "readlinkat",
    "stat",
];

/// And what runtimes do with privileges, should they load it early.
const PRIVILEGED: [&str; 25] = [
    "getcwd",
    "fstatfs",
    "statfs",
    "getdents64",
    "close_range",
    "pipe2",
    "clone",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "lstat",
    "capget",
    "capset",
    "setuid",
    "setgid",
    "setgroups",
    "chdir",
    "fchdir",
    "getppid",
    "execveat",
    "statx",
    "faccessat2",
    "faccessat",
    "sched_yield",
];

fn deny_but(errno: Option<u32>) -> Value {
    let names: Vec<&str> = NEEDED.into_iter().chain(PRIVILEGED).collect();
    let mut filter = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [rule(&names, "SCMP_ACT_ALLOW", None)]});
    if let Some(errno) = errno {
        filter["defaultErrnoRet"] = json!(errno);
    }
    filter
}

fn default_errno(g: &Ground) -> Checked {
    let calls = [call(GETPGRP, &[]), call(GETPID, &[])];
    same("answers", answers(g, deny_but(None), &calls)?, [-1, 1])
}

fn default_errno_ret(g: &Ground) -> Checked {
    let (errno, answer) = number();
    let calls = [call(GETPGRP, &[]), call(GETPID, &[])];
    same("answers", answers(g, deny_but(Some(errno)), &calls)?, [answer, 1])
}

fn killed(g: &Ground, action: &str) -> Checked {
    let mut b = Bundle::new(g, "/probe; echo code $?")?;
    b.file("probe", elf::x86_64(&[call(GETUID, &[])]), 0o755)?;
    // Not a call of the shell or of the runtime.
    b.file("probe", elf::x86_64(&[call(172, &[0])]), 0o755)?; // iopl
    b.config["linux"]["seccomp"] = allow_but(&[rule(&["iopl"], action, None)]);
    has("SIGSYS", &b.output()?, "code 159")
}

fn log(g: &Ground) -> Checked {
    let filter = allow_but(&[rule(&["getuid"], "SCMP_ACT_LOG", None)]);
    same("answers", answers(g, filter, &[call(GETUID, &[])])?, [0])
}

/// The kernel gives ENOSYS then.
fn trace(g: &Ground) -> Checked {
    let filter = allow_but(&[rule(&["getuid"], "SCMP_ACT_TRACE", Some(1))]);
    same("answers", answers(g, filter, &[call(GETUID, &[])])?, [-38])
}

/// Does `value OP wanted` hold for unsigned numbers?
fn holds(op: &str, value: u64, wanted: u64) -> bool {
    match op {
        "SCMP_CMP_EQ" => value == wanted,
        "SCMP_CMP_NE" => value != wanted,
        "SCMP_CMP_LT" => value < wanted,
        "SCMP_CMP_LE" => value <= wanted,
        "SCMP_CMP_GT" => value > wanted,
        _ => value >= wanted,
    }
}

fn arguments(g: &Ground) -> Checked {
    for op in
        ["SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_GT", "SCMP_CMP_GE"]
    {
        let index = random::number(0..6);
        let wanted = u64::from(random::number(5..4_000_000_000));
        // getuid looks at none of its arguments.
        let mut values = vec![wanted, wanted - 1, wanted + 1, 0, u64::MAX, wanted + (1 << 33)];
        values.push(u64::from(random::number(0..4_000_000_000)));
        let calls: Vec<SysCall> = values
            .iter()
            .map(|&value| {
                let mut args = [0; 6];
                args[usize::try_from(index).expect("below six")] = value;
                call(GETUID, &args)
            })
            .collect();
        let mut with = rule(&["getuid"], "SCMP_ACT_ERRNO", Some(99));
        with["args"] = json!([{"index": index, "value": wanted, "op": op}]);
        let wanted_answers: Vec<i64> =
            values.iter().map(|&value| if holds(op, value, wanted) { -99 } else { 0 }).collect();
        let what = format!("{op} {wanted} at {index} for {values:?}");
        same(&what, answers(g, allow_but(&[with]), &calls)?, wanted_answers)?;
    }
    Ok(())
}

fn masked(g: &Ground) -> Checked {
    let mask = u64::from(random::number(1..u32::MAX)) << random::number(0..20);
    let wanted = u64::from(random::number(1..u32::MAX)) & mask;
    let values = [wanted, wanted | !mask, wanted ^ (mask & mask.wrapping_neg()), !0, 0];
    let calls: Vec<SysCall> = values.iter().map(|&v| call(GETUID, &[0, v])).collect();
    let mut with = rule(&["getuid"], "SCMP_ACT_ERRNO", Some(99));
    with["args"] =
        json!([{"index": 1, "value": mask, "valueTwo": wanted, "op": "SCMP_CMP_MASKED_EQ"}]);
    let wanted_answers: Vec<i64> =
        values.iter().map(|&v| if v & mask == wanted { -99 } else { 0 }).collect();
    let what = format!("mask {mask:#x}, wanted {wanted:#x}, {values:x?}");
    same(&what, answers(g, allow_but(&[with]), &calls)?, wanted_answers)
}

fn upper_half(g: &Ground) -> Checked {
    let wanted = (u64::from(random::number(1..u32::MAX)) << 32) | 7;
    let values = [wanted, 7, wanted & !0xffff_ffff, wanted + (1 << 32)];
    let calls: Vec<SysCall> = values.iter().map(|&v| call(GETUID, &[v])).collect();
    let mut with = rule(&["getuid"], "SCMP_ACT_ERRNO", Some(99));
    with["args"] = json!([{"index": 0, "value": wanted, "op": "SCMP_CMP_EQ"}]);
    same("answers", answers(g, allow_but(&[with]), &calls)?, [-99, 0, 0, 0])
}

fn all_arguments(g: &Ground) -> Checked {
    let mut with = rule(&["getuid"], "SCMP_ACT_ERRNO", Some(99));
    with["args"] = json!([
        {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"},
        {"index": 2, "value": 9, "op": "SCMP_CMP_GT"},
    ]);
    let calls = [[5, 0, 10], [5, 0, 9], [4, 0, 10], [4, 0, 1]].map(|args| call(GETUID, &args));
    same("answers", answers(g, allow_but(&[with]), &calls)?, [-99, 0, 0, 0])
}

/// As runc has it: what is said of the same argument in one rule are alternatives.
fn same_argument(g: &Ground) -> Checked {
    let mut with = rule(&["getuid"], "SCMP_ACT_ERRNO", Some(99));
    with["args"] = json!([
        {"index": 1, "value": 5, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"},
    ]);
    let calls = [5, 9, 7].map(|value| call(GETUID, &[0, value]));
    same("answers", answers(g, allow_but(&[with]), &calls)?, [-99, -99, 0])
}

fn two_rules(g: &Ground) -> Checked {
    let with = |value: u64, errno: u32| {
        let mut with = rule(&["getuid"], "SCMP_ACT_ERRNO", Some(errno));
        with["args"] = json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
        with
    };
    let calls = [7, 8, 9].map(|value| call(GETUID, &[value]));
    let filter = allow_but(&[with(7, 77), with(8, 88)]);
    same("answers", answers(g, filter, &calls)?, [-77, -88, 0])
}

fn unknown_call(g: &Ground) -> Checked {
    let name = random::token(12);
    let filter = allow_but(&[rule(&[&name, "getuid"], "SCMP_ACT_ERRNO", Some(99))]);
    same("answers", answers(g, filter, &[call(GETUID, &[])])?, [-99])
}

fn old(g: &Ground, filter: Value, calls: &[SysCall]) -> Checked<crate::oci::call::Ran> {
    let mut b = Bundle::new(g, "/probe; echo code $? >&2")?;
    b.file("probe", elf::i386(calls), 0o755)?;
    b.config["linux"]["seccomp"] = filter;
    Ok(b.run()?)
}

fn runs_old_programs(g: &Ground) -> Checked {
    let ran = old(g, Value::Null, &[call(20, &[])])?;
    if ran.stderr.contains("code 0") { Ok(()) } else { crate::oci::skip("no 32-bit programs here") }
}

fn old_calls(g: &Ground) -> Checked {
    runs_old_programs(g)?;
    let mut filter = allow_but(&[rule(&["mkdir", "getuid32"], "SCMP_ACT_ERRNO", Some(99))]);
    filter["architectures"] = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    let mkdir = SysCall { number: 39, args: vec![text("/made"), Arg::Number(0o755)] };
    let ran = old(g, filter, &[mkdir, call(199, &[]), call(20, &[])])?;
    let got = elf::results(&ran.raw, false);
    same("answers", &got[..2.min(got.len())], [-99, -99])
}

/// A program of another architecture than those named dies, so that no call slips by.
fn no_old_calls(g: &Ground) -> Checked {
    runs_old_programs(g)?;
    let filter = allow_but(&[rule(&["mkdir"], "SCMP_ACT_ERRNO", Some(99))]);
    let mkdir = SysCall { number: 39, args: vec![text("/made"), Arg::Number(0o755)] };
    let ran = old(g, filter, &[mkdir])?;
    has("its end", &ran.stderr, "code 159")
}

/// The same call by its x32 number is not a way around.
fn x32(g: &Ground) -> Checked {
    let filter = allow_but(&[rule(&["mkdir"], "SCMP_ACT_ERRNO", Some(99))]);
    let mkdir = |number| SysCall { number, args: vec![text("/made"), Arg::Number(0o755)] };
    let mut b = Bundle::new(g, "/probe >/dev/null; [ ! -d /made ] && echo none")?;
    b.file("probe", elf::x86_64(&[mkdir(MKDIR | 0x4000_0000)]), 0o755)?;
    b.config["linux"]["seccomp"] = filter;
    same("directories", b.output()?, "none")
}

fn allow_errno(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let bad = rule(&["getuid"], "SCMP_ACT_ALLOW", Some(5));
    b.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [bad]});
    b.refused().map(drop)
}

fn flags(g: &Ground) -> Checked {
    for flags in [
        &["SECCOMP_FILTER_FLAG_LOG"][..],
        &["SECCOMP_FILTER_FLAG_TSYNC"],
        &["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
    ] {
        let mut filter = allow_but(&[rule(&["getuid"], "SCMP_ACT_ERRNO", Some(99))]);
        filter["flags"] = json!(flags);
        same("answers", answers(g, filter, &[call(GETUID, &[])])?, [-99])?;
    }
    Ok(())
}

fn flag_unknown(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    let flag = format!("SECCOMP_FILTER_FLAG_{}", random::token(5).to_uppercase());
    let mut filter = allow_but(&[rule(&["getuid"], "SCMP_ACT_ERRNO", None)]);
    filter["flags"] = json!([flag]);
    b.config["linux"]["seccomp"] = filter;
    has("run", &b.refused()?, &flag)
}

/// Without a capability to load it, and with calls denied that make a user of root.
fn with_no_new_privileges(g: &Ground) -> Checked {
    for set in [true, false] {
        let mut b = Bundle::new(g, "")?;
        b.file("probe", elf::x86_64(&[call(GETUID, &[]), call(GETPID, &[])]), 0o755)?;
        b.config["process"]["args"] = json!(["/probe"]);
        b.config["process"]["noNewPrivileges"] = json!(set);
        b.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        b.config["linux"]["seccomp"] = allow_but(&[rule(&["getuid"], "SCMP_ACT_ERRNO", Some(99))]);
        let ran = b.run()?;
        same("answers", elf::results(&ran.raw, true), [-99, 1])?;
    }
    Ok(())
}

fn exec(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.file("probe", elf::x86_64(&[call(GETUID, &[])]), 0o755)?;
    b.config["linux"]["seccomp"] = allow_but(&[rule(&["getuid"], "SCMP_ACT_ERRNO", Some(99))]);
    b.start()?;
    same("answers", elf::results(&b.rt(&["exec", &b.id, "/probe"])?.raw, true), [-99])?;
    b.end()
}

fn status(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "grep Seccomp: /proc/self/status")?;
    same("without a filter", b.output()?, "Seccomp:\t0")?;
    b.config["linux"]["seccomp"] = allow_but(&[rule(&["iopl"], "SCMP_ACT_ERRNO", None)]);
    same("with a filter", b.output()?, "Seccomp:\t2")
}

/// The listener's descriptor goes to a socket, with the container's state.
fn notify(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let path = b.path("listener.sock");
    let metadata = random::token(12);
    let mut filter = allow_but(&[rule(&["iopl"], "SCMP_ACT_NOTIFY", None)]);
    filter["listenerPath"] = json!(path);
    filter["listenerMetadata"] = json!(metadata);
    b.config["linux"]["seccomp"] = filter;
    let listener = UnixListener::bind(&path)
        .map_err(|e| crate::oci::Failure::Violated(format!("bind {}: {e}", path.display())))?;
    b.start()?;
    let (stream, _) =
        listener.accept().map_err(|e| crate::oci::Failure::Violated(format!("accept: {e}")))?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 16_384];
    let got = recvmsg(
        &stream,
        &mut [std::io::IoSliceMut::new(&mut data)],
        &mut control,
        RecvFlags::empty(),
    );
    let length = got.map(|message| message.bytes).unwrap_or(0);
    let fds: usize = control
        .drain()
        .map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.count(),
            _ => 0,
        })
        .sum();
    let state = crate::oci::json(&String::from_utf8_lossy(&data[..length]))?;
    same("descriptors", fds, 1)?;
    same("their names", &state["fds"], &json!(["seccompFd"]))?;
    same("metadata", &state["metadata"], metadata.as_str())?;
    same("container", &state["state"]["id"], b.id.as_str())?;
    same("pid", &state["pid"], b.pid()?)?;
    b.end()
}

/// Calls of newer kernels than the library that other runtimes are linked with fail as unknown.
fn new_calls(g: &Ground) -> Checked {
    let calls = [call(1000, &[]), call(GETPID, &[])];
    let got = answers(g, deny_but(None), &calls)?;
    same("a call of the future", got[0], -38)?;
    want(got[1] == 1, "getpid", got)
}
