//! The spec's section, in libseccomp's and runc's reading, to a program.
//!
//! What runc does and is kept here: names that no table has are skipped; a rule whose action is
//! the default action is skipped; an unconditional rule outweighs conditional ones for the same
//! call; conditions on the same argument twice become rules of their own (or, not and); numbers
//! above the highest that the profile names answer ENOSYS, so that libc falls back when a call is
//! newer than the profile; another architecture kills the thread.

use std::collections::{BTreeMap, BTreeSet};

use sys::seccomp as kernel;

use super::Filter;
use super::emit::emit;
use super::graph::{Compare, Graph, Id, Test, Word};
use super::rules::{
    Chains, Cond, Decision, OFFSET_ARCH, OFFSET_NR, Op, Range, Rule, decide, extend, gaps, search,
};
use super::tables::{NONE, SYSCALLS};
use super::tables_arm::{ARM, PRIVATE};
use crate::error::{Error, Result};
use crate::spec::{Seccomp, SeccompArg};

const RET_KILL_THREAD: u32 = 0;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
pub(super) const RET_LOG: u32 = 0x7ffc_0000;
pub(super) const RET_ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// Largest errno that the kernel takes in a filter.
const ERRNO_LIMIT: u32 = 4095;
const X32_BIT: u32 = 0x4000_0000;
/// What a tracer puts in place of a call's number to skip the call.
const NO_CALL: u32 = u32::MAX;
/// How much sooner calls of the other architectures are found than x32's, which nobody makes.
const WEIGHT: u32 = 64;
/// Instructions that the kernel takes in one filter (`BPF_MAXINSNS`).
const PROGRAM_LIMIT: usize = 4096;

/// An architecture whose calls are filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// i386 programs on x86-64.
    X86,
    /// x86-64 with 32-bit pointers.
    X32,
    /// 64-bit Arm.
    Aarch64,
    /// 32-bit programs on 64-bit Arm.
    Arm,
}

impl Arch {
    /// What this program is built for.
    pub const NATIVE: Arch =
        if cfg!(target_arch = "aarch64") { Arch::Aarch64 } else { Arch::X86_64 };

    pub(super) fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    pub(super) fn number(self, name: &str) -> Option<u32> {
        if self == Arch::Arm {
            return Some(ARM[ARM.binary_search_by(|row| row.0.cmp(name)).ok()?].1);
        }
        let row = &SYSCALLS[SYSCALLS.binary_search_by(|row| row.0.cmp(name)).ok()?];
        let number = match self {
            Arch::X86_64 => row.1,
            Arch::X32 => row.2,
            Arch::X86 => row.3,
            Arch::Aarch64 | Arch::Arm => row.4,
        };
        (number != NONE).then_some(number)
    }
}

/// Architecture names of the specification that have a table here.
pub fn known_archs() -> &'static [&'static str] {
    &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]
}

/// Action names.
pub fn known_actions() -> &'static [&'static str] {
    &[
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_LOG",
        "SCMP_ACT_NOTIFY",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_TRAP",
    ]
}

/// Operator names.
pub fn known_operators() -> &'static [&'static str] {
    &[
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_LE",
        "SCMP_CMP_LT",
        "SCMP_CMP_MASKED_EQ",
        "SCMP_CMP_NE",
    ]
}

/// Filter flag names.
pub fn known_flags() -> &'static [&'static str] {
    &[
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ]
}

/// Compiles the section. `Ok(None)` if it allows everything anyway.
///
/// # Errors
/// [`Error::Config`] for an action, operator, architecture or flag that does not exist, a NOTIFY
/// without `listenerPath`, an argument index above 5, an errno above 4095, more rules than the
/// kernel's largest program has room for.
pub fn compile(section: &Seccomp, native: Arch) -> Result<Option<Filter>> {
    if section.default_action.is_empty() && section.syscalls.is_empty() {
        // As no section at all (runc 1.1).
        return Ok(None);
    }
    let field = "linux.seccomp.defaultAction";
    let default = action(field, &section.default_action, section.default_errno_ret)?;
    let archs = architectures(&section.architectures, native)?;
    let rules = rules(section, default)?;
    let notify = default == RET_USER_NOTIF || rules.iter().any(|r| r.action == RET_USER_NOTIF);
    if default == RET_USER_NOTIF {
        return Err(Error::config("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be it"));
    }
    if notify && section.listener_path.is_empty() {
        return Err(Error::config("linux.seccomp.listenerPath", "needed for SCMP_ACT_NOTIFY"));
    }
    let flags = flags(section, notify)?;
    if default == RET_ALLOW && rules.is_empty() {
        return Ok(None);
    }
    let policy = Policy { section, rules: &rules, default };
    // The quicker program, unless it is too long.
    let mut program = policy.program(&archs, Chains { numbers: 1, values: 4 });
    if program.len() > PROGRAM_LIMIT {
        program = policy.program(&archs, Chains { numbers: 32, values: usize::MAX });
    }
    if program.len() > PROGRAM_LIMIT {
        let problem = format!(
            "the rules make a program of {} instructions, the kernel takes {PROGRAM_LIMIT}",
            program.len()
        );
        return Err(Error::config("linux.seccomp.syscalls", problem));
    }
    Ok(Some(Filter { program, flags }))
}

/// One rule of the section for one or more names.
struct Named<'a> {
    names: &'a [String],
    conds: Vec<Cond>,
    action: u32,
}

fn rules(section: &Seccomp, default: u32) -> Result<Vec<Named<'_>>> {
    let mut out = Vec::new();
    for call in &section.syscalls {
        let action = action("linux.seccomp.syscalls.action", &call.action, call.errno_ret)?;
        let conds: Vec<Cond> = call.args.iter().map(condition).collect::<Result<_>>()?;
        if action == default {
            continue;
        }
        let twice = (0..6).any(|i| conds.iter().filter(|c| c.index == i).count() > 1);
        if twice {
            out.extend(conds.iter().map(|c| Named { names: &call.names, conds: vec![*c], action }));
        } else {
            out.push(Named { names: &call.names, conds, action });
        }
    }
    Ok(out)
}

fn condition(arg: &SeccompArg) -> Result<Cond> {
    let op = match arg.op.as_str() {
        "SCMP_CMP_NE" => Op::Ne,
        "SCMP_CMP_LT" => Op::Lt,
        "SCMP_CMP_LE" => Op::Le,
        "SCMP_CMP_EQ" => Op::Eq,
        "SCMP_CMP_GE" => Op::Ge,
        "SCMP_CMP_GT" => Op::Gt,
        "SCMP_CMP_MASKED_EQ" => Op::MaskedEq,
        other => {
            return Err(Error::config(
                "linux.seccomp.syscalls.args.op",
                format!("string {other} is not a valid operator for seccomp"),
            ));
        }
    };
    if arg.index > 5 {
        return Err(Error::config("linux.seccomp.syscalls.args.index", "above 5"));
    }
    // Bits that the mask leaves out do not count on either side.
    let value_two = if op == Op::MaskedEq { arg.value_two & arg.value } else { arg.value_two };
    Ok(Cond { index: arg.index, op, value: arg.value, value_two })
}

fn action(field: &'static str, name: &str, errno: Option<u32>) -> Result<u32> {
    let errno = errno.unwrap_or(EPERM);
    if errno > ERRNO_LIMIT {
        return Err(Error::config("linux.seccomp.errnoRet", format!("{errno} is above 4095")));
    }
    Ok(match name {
        "SCMP_ACT_ALLOW" => RET_ALLOW,
        "SCMP_ACT_ERRNO" => RET_ERRNO | errno,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => RET_KILL_PROCESS,
        "SCMP_ACT_LOG" => RET_LOG,
        "SCMP_ACT_NOTIFY" => RET_USER_NOTIF,
        "SCMP_ACT_TRACE" => RET_TRACE | errno,
        "SCMP_ACT_TRAP" => RET_TRAP,
        other => {
            return Err(Error::config(
                field,
                format!("string {other} is not a valid action for seccomp"),
            ));
        }
    })
}

fn flags(section: &Seccomp, notify: bool) -> Result<u32> {
    let mut flags = 0;
    for name in &section.flags {
        flags |= match name.as_str() {
            // The process has one thread when the filter is loaded: nothing to synchronise.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => kernel::FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => kernel::FLAG_SPEC_ALLOW,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" if notify => kernel::FLAG_WAIT_KILLABLE_RECV,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 0,
            other => {
                return Err(Error::config(
                    "linux.seccomp.flags",
                    format!("seccomp flag {other:?} is not known"),
                ));
            }
        };
    }
    if section.flags.is_empty() {
        // runc's default where the profile is silent.
        flags |= kernel::FLAG_SPEC_ALLOW;
    }
    if notify {
        flags |= kernel::FLAG_NEW_LISTENER;
    }
    Ok(flags)
}

/// The native architecture first, then those named that this kernel can run and we have tables of.
fn architectures(names: &[String], native: Arch) -> Result<Vec<Arch>> {
    let mut out = vec![native];
    for name in names {
        let arch = match name.strip_prefix("SCMP_ARCH_") {
            Some("X86_64") => Arch::X86_64,
            Some("X86") => Arch::X86,
            Some("X32") => Arch::X32,
            Some("AARCH64") => Arch::Aarch64,
            Some("ARM") if native == Arch::Aarch64 => Arch::Arm,
            // Without a table their calls stay in the "other architecture" case: killed.
            Some(
                "ARM" | "MIPS" | "MIPS64" | "MIPS64N32" | "MIPSEL" | "MIPSEL64" | "MIPSEL64N32"
                | "PPC" | "PPC64" | "PPC64LE" | "S390" | "S390X" | "PARISC" | "PARISC64"
                | "RISCV64" | "LOONGARCH64" | "M68K" | "SH" | "SHEB",
            ) => continue,
            _ => {
                return Err(Error::config(
                    "linux.seccomp.architectures",
                    format!("string {name} is not a valid arch for seccomp"),
                ));
            }
        };
        if !out.contains(&arch) {
            out.push(arch);
        }
    }
    Ok(out)
}

/// What is to be compiled.
struct Policy<'a> {
    section: &'a Seccomp,
    rules: &'a [Named<'a>],
    default: u32,
}

impl Policy<'_> {
    fn program(&self, archs: &[Arch], chains: Chains) -> Vec<kernel::Insn> {
        let mut graph = Graph::default();
        let mut root = graph.answer(RET_KILL_THREAD);
        for arch in archs.iter().rev().filter(|a| **a != Arch::X32) {
            let mut ranges = self.ranges(&mut graph, *arch, chains);
            if *arch == Arch::X86_64 {
                // x32 calls arrive under the same audit architecture, with a bit in the number.
                ranges.retain(|range| range.start < X32_BIT);
                self.x32(&mut graph, &mut ranges, archs.contains(&Arch::X32), chains);
            }
            let body = search(&mut graph, Word::whole(OFFSET_NR), &ranges, chains.numbers);
            let test = Test::new(Word::whole(OFFSET_ARCH), Compare::Equal, arch.audit());
            root = graph.branch(test, body, root);
        }
        emit(&graph, root)
    }

    /// Adds what happens to x32 calls.
    fn x32(&self, graph: &mut Graph, ranges: &mut Vec<Range>, listed: bool, chains: Chains) {
        if listed {
            let mut table = self.ranges(graph, Arch::X32, chains);
            // What holds at the first of its numbers.
            let first = table.partition_point(|range| range.start <= X32_BIT) - 1;
            table[first].start = X32_BIT;
            table.drain(first..).for_each(|range| extend(ranges, Range { weight: 1, ..range }));
        } else {
            let to = graph.answer(RET_KILL_THREAD);
            extend(ranges, Range { start: X32_BIT, to, weight: 1 });
            let to = graph.answer(self.default);
            extend(ranges, Range { start: NO_CALL, to, weight: 1 });
        }
    }

    /// All numbers of an architecture's calls.
    fn ranges(&self, graph: &mut Graph, arch: Arch, chains: Chains) -> Vec<Range> {
        let wide = !matches!(arch, Arch::X86 | Arch::Arm);
        let calls: Vec<(u32, Id)> = self
            .calls(arch)
            .into_iter()
            .map(|(number, decision)| (number, decide(graph, &decision, wide, chains)))
            .collect();
        let default = graph.answer(self.default);
        let mut ranges = gaps(calls, default, WEIGHT);
        // A profile that forbids by default answers "no such call" for calls newer than itself.
        let forbids =
            !matches!(self.default, RET_ALLOW | RET_LOG) && self.default & RET_TRACE != RET_TRACE;
        if forbids && let Some(highest) = self.highest(arch) {
            let private = ranges.partition_point(|r| r.start < PRIVATE);
            let private = if arch == Arch::Arm { ranges.split_off(private) } else { Vec::new() };
            ranges.retain(|r| r.start <= highest);
            let to = graph.answer(RET_ERRNO | ENOSYS);
            extend(&mut ranges, Range { start: highest + 1, to, weight: WEIGHT });
            private.into_iter().for_each(|range| extend(&mut ranges, range));
        }
        ranges
    }

    /// What is said of each number.
    fn calls(&self, arch: Arch) -> BTreeMap<u32, Decision> {
        let bit = if arch == Arch::X32 { X32_BIT } else { 0 };
        let mut calls: BTreeMap<u32, Decision> = BTreeMap::new();
        let mut settled = BTreeSet::new();
        let mut add = |number: u32, conds: Vec<Cond>, action: u32| {
            if settled.contains(&number) {
                return;
            }
            let entry = calls
                .entry(number)
                .or_insert(Decision { rules: Vec::new(), otherwise: self.default });
            if conds.is_empty() {
                entry.rules.clear();
                entry.otherwise = action;
                settled.insert(number);
            } else {
                entry.rules.push(Rule { conds, action });
            }
        };
        for rule in self.rules {
            for name in rule.names {
                if let Some(number) = arch.number(name) {
                    add(number | bit, rule.conds.clone(), rule.action);
                }
                if arch == Arch::X86
                    && rule.conds.is_empty()
                    && let Some((number, which)) = multiplexed(name)
                {
                    let which = Cond { index: 0, op: Op::Eq, value: which, value_two: 0 };
                    add(number, vec![which], rule.action);
                }
            }
        }
        calls
    }

    /// The highest number of all that the profile names, also where a rule does no more than the
    /// default action.
    fn highest(&self, arch: Arch) -> Option<u32> {
        let bit = if arch == Arch::X32 { X32_BIT } else { 0 };
        let names = self.section.syscalls.iter().flat_map(|call| &call.names);
        let numbers = names.filter_map(|name| arch.number(name));
        numbers.filter(|n| arch != Arch::Arm || *n < PRIVATE).max().map(|n| n | bit)
    }
}

/// i386 calls that older programs make through socketcall(2) and ipc(2); unconditional rules
/// count for both ways, as in libseccomp.
fn multiplexed(name: &str) -> Option<(u32, u64)> {
    const SOCKETCALL: u32 = 102;
    const IPC: u32 = 117;
    const SOCKET_CALLS: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    if let Some(at) = SOCKET_CALLS.iter().position(|n| *n == name) {
        return Some((SOCKETCALL, u64::try_from(at).ok()? + 1));
    }
    let which = match name {
        "semop" => 1,
        "semget" => 2,
        "semctl" => 3,
        "semtimedop" => 4,
        "msgsnd" => 11,
        "msgrcv" => 12,
        "msgget" => 13,
        "msgctl" => 14,
        "shmat" => 21,
        "shmdt" => 22,
        "shmget" => 23,
        "shmctl" => 24,
        _ => return None,
    };
    Some((IPC, which))
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
