//! What a profile says about a call, decided plainly: rule by rule, in 64-bit arithmetic. And where
//! libseccomp may say something else.

use runtime::spec::{Seccomp, SeccompArg};

use crate::machine::Call;
use crate::oracle::Tables;

pub(crate) const RET_ERRNO: u32 = 0x0005_0000;
pub(crate) const RET_ALLOW: u32 = 0x7fff_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_KILL: u32 = 0;
const X32_BIT: u32 = 0x4000_0000;

pub(crate) fn audit(arch: &str) -> u32 {
    if arch == "SCMP_ARCH_X86" { 0x4000_0003 } else { 0xc000_003e }
}

/// The kernel's value of an action. Without `errnoRet` it is EPERM, as in runc.
pub(crate) fn action(name: &str, errno: Option<u32>) -> u32 {
    match name.strip_prefix("SCMP_ACT_").unwrap() {
        "ALLOW" => RET_ALLOW,
        "ERRNO" => RET_ERRNO | errno.unwrap_or(1),
        "KILL" | "KILL_THREAD" => RET_KILL,
        "KILL_PROCESS" => 0x8000_0000,
        "LOG" => RET_LOG,
        "TRACE" => RET_TRACE | errno.unwrap_or(1),
        "TRAP" => 0x0003_0000,
        other => panic!("{other}"),
    }
}

pub(crate) struct Model<'a> {
    profile: &'a Seccomp,
    tables: &'a Tables,
    default: u32,
}

pub(crate) struct Verdict {
    pub(crate) action: u32,
    /// The number is above all that the profile names.
    pub(crate) newer: bool,
    /// Actions of all rules that hold for the call, in order.
    matching: Vec<u32>,
    /// Actions of all rules for the call whose conditions exclude nothing.
    vacuous: Vec<u32>,
    /// More than 32 bits are compared in a call of x32.
    wide_x32: bool,
    /// Actions of all rules for the call, if one of them fails after its first comparison (of a
    /// half of an argument) and another rule looks at one of the same arguments.
    stale: Vec<u32>,
    /// Actions of all rules for the call, if two of them make opposite conditions.
    opposite: Vec<u32>,
    /// Actions of conditional rules for what goes through this call of i386 as well.
    muxed: Vec<u32>,
}

impl Verdict {
    /// Why libseccomp may answer with `theirs`, one of `both` its answers, where that is not ours.
    pub(crate) fn may_differ(&self, both: &[u32; 2], theirs: u32) -> Option<&'static str> {
        if theirs == self.action {
            return None;
        }
        if self.wide_x32 {
            // The kernel hands a call of x32 all 64 bits of its registers, and so they are compared.
            // libseccomp takes x32 for a 32-bit architecture and looks at the lower half alone.
            return Some("x32 arguments have 64 bits");
        }
        let differ = self.matching.iter().any(|a| *a != self.action);
        if differ && self.matching.contains(&theirs) || self.vacuous.contains(&theirs) {
            // Rules with different actions hold for one call. Here the profile's first one counts;
            // libseccomp goes by the order of its own tree (argument, operator, value).
            return Some("rules contradict each other");
        }
        if self.muxed.contains(&theirs) {
            // socketcall has the arguments behind a pointer, ipc has them in another order. A
            // condition cannot be held against them: here it counts for the direct call alone, and
            // `socketcall` and `ipc` are what the profile says of these names. libseccomp compares
            // the arguments of `socketcall` itself.
            return Some("conditions do not reach through socketcall and ipc");
        }
        if both[0] != both[1] && both.contains(&self.action) {
            // Seen with x32 beside x86-64: one program compares the number before it is loaded.
            return Some("libseccomp's programs contradict each other");
        }
        if self.stale.contains(&theirs) {
            // libseccomp 2.6 tests `arg1 < 100 && arg2 == 7` and then, where arg1 holds and arg2 does
            // not, goes on to `arg1 >= 50` with arg2 still in the register. The same with `arg3 <= 0`
            // and the upper half in `arg3 >= 0x38ce2ede424dbfaf`.
            return Some("libseccomp goes on with another word in the register");
        }
        if self.opposite.contains(&theirs) {
            // With `arg4 != 8` and `arg0 == 8 && arg4 == 8` libseccomp 2.6 answers the default action
            // where the second holds.
            return Some("libseccomp confuses a condition with its opposite");
        }
        None
    }
}

impl Model<'_> {
    pub(crate) fn new<'a>(profile: &'a Seccomp, tables: &'a Tables) -> Model<'a> {
        let default = action(&profile.default_action, profile.default_errno_ret);
        Model { profile, tables, default }
    }

    fn lists(&self, arch: &str) -> bool {
        arch == "SCMP_ARCH_X86_64" || self.profile.architectures.iter().any(|a| a == arch)
    }

    pub(crate) fn verdict(&self, call: &Call) -> Verdict {
        let fixed = |action| Verdict {
            action,
            newer: false,
            matching: vec![],
            vacuous: vec![],
            wide_x32: false,
            stale: vec![],
            opposite: vec![],
            muxed: vec![],
        };
        let arch = match call.arch {
            0x4000_0003 => "SCMP_ARCH_X86",
            // A tracer's "no call" belongs to the native architecture, where x32 is not allowed.
            0xc000_003e
                if call.nr >= X32_BIT && (call.nr != u32::MAX || self.lists("SCMP_ARCH_X32")) =>
            {
                "SCMP_ARCH_X32"
            }
            0xc000_003e => "SCMP_ARCH_X86_64",
            _ => return fixed(RET_KILL),
        };
        if !self.lists(arch) {
            return fixed(RET_KILL);
        }
        // runc's addition to libseccomp's program, which a caller cannot tell from an old kernel.
        let forbids =
            !matches!(self.default, RET_ALLOW | RET_LOG) && self.default & 0xffff_0000 != RET_TRACE;
        let table = &self.tables[arch];
        let highest =
            self.profile.syscalls.iter().flat_map(|r| &r.names).filter_map(|n| table.get(n)).max();
        let newer = call.nr != u32::MAX || arch != "SCMP_ARCH_X86_64";
        if forbids && newer && highest.is_some_and(|h| call.nr > *h) {
            return Verdict { newer: true, ..fixed(RET_ERRNO | 38) };
        }
        self.by_rules(arch, call)
    }

    fn by_rules(&self, arch: &str, call: &Call) -> Verdict {
        let mask = if arch == "SCMP_ARCH_X86" { u64::from(u32::MAX) } else { u64::MAX };
        let mut rules: Vec<(u32, Vec<SeccompArg>)> = Vec::new();
        for rule in &self.profile.syscalls {
            let action = action(&rule.action, rule.errno_ret);
            for name in rule.names.iter().filter(|_| action != self.default) {
                if self.tables[arch].get(name) == Some(&call.nr) {
                    rules.extend(apart(&rule.args).into_iter().map(|conds| (action, conds)));
                }
                // i386 has two ways for these; a rule without conditions counts for both.
                match multiplexed(name) {
                    Some((nr, which))
                        if arch == "SCMP_ARCH_X86" && rule.args.is_empty() && nr == call.nr =>
                    {
                        rules.push((action, vec![first_is(which)]));
                    }
                    _ => {}
                }
            }
        }
        let fulfilled = |plain: bool| {
            rules
                .iter()
                .filter(|(_, conds)| conds.is_empty() == plain)
                .filter(|(_, conds)| conds.iter().all(|c| holds(c, call, mask)))
                .map(|(action, _)| *action)
                .collect::<Vec<u32>>()
        };
        // A rule without conditions outweighs those with.
        let (plain, conditional) = (fulfilled(true), fulfilled(false));
        let matching = if plain.is_empty() { conditional } else { plain };
        // Conditions that exclude nothing are none to libseccomp.
        let nothing = |c: &SeccompArg| c.op.ends_with("MASKED_EQ") && c.value & mask == 0;
        let vacuous = rules.iter().filter(|(_, conds)| conds.iter().all(nothing));
        let vacuous = vacuous.map(|(action, _)| *action).collect();
        let conds = || rules.iter().flat_map(|(_, conds)| conds);
        let wide = |c: &SeccompArg| (c.value | c.value_two | argument(c, call)) >> 32 != 0;
        Verdict {
            action: matching.first().copied().unwrap_or(self.default),
            newer: false,
            matching,
            vacuous,
            wide_x32: arch == "SCMP_ARCH_X32" && conds().any(wide),
            stale: self.stale(&rules, call, mask == u64::MAX, |c| holds(c, call, mask)),
            opposite: self.opposite(&rules, mask),
            muxed: if arch == "SCMP_ARCH_X86" { self.muxed(call) } else { Vec::new() },
        }
    }

    fn muxed(&self, call: &Call) -> Vec<u32> {
        let through = |name: &String| multiplexed(name).is_some_and(|(nr, _)| nr == call.nr);
        self.profile
            .syscalls
            .iter()
            .filter(|rule| !rule.args.is_empty() && rule.names.iter().any(through))
            .map(|rule| action(&rule.action, rule.errno_ret))
            .collect()
    }

    fn opposite(&self, rules: &[(u32, Vec<SeccompArg>)], mask: u64) -> Vec<u32> {
        const PAIRS: [(&str, &str); 3] = [("EQ", "NE"), ("GE", "LT"), ("GT", "LE")];
        let is = |c: &SeccompArg, op| c.op.strip_prefix("SCMP_CMP_") == Some(op);
        let differ = |a: &SeccompArg, b: &SeccompArg| {
            a.index == b.index
                && a.value & mask == b.value & mask
                && PAIRS.iter().any(|(op, other)| is(a, op) && is(b, other))
        };
        let conds = || rules.iter().flat_map(|(_, conds)| conds);
        if !conds().any(|a| conds().any(|b| differ(a, b))) {
            return Vec::new();
        }
        rules.iter().map(|(action, _)| *action).chain([self.default]).collect()
    }

    fn stale(
        &self,
        rules: &[(u32, Vec<SeccompArg>)],
        call: &Call,
        wide: bool,
        holds: impl Fn(&SeccompArg) -> bool,
    ) -> Vec<u32> {
        let half = |conds: &[SeccompArg]| {
            let first = conds.iter().min_by_key(|c| c.index);
            first.is_some_and(|c| wide && upper_decides_not(c, call) || conds.len() > 1 && holds(c))
                && !conds.iter().all(&holds)
        };
        let shares = |at: usize| {
            rules.iter().enumerate().any(|(other, (_, conds))| {
                let same = |c: &SeccompArg| rules[at].1.iter().any(|o| o.index == c.index);
                other != at && conds.iter().any(same)
            })
        };
        if !(0..rules.len()).any(|at| half(&rules[at].1) && shares(at)) {
            return Vec::new();
        }
        rules.iter().map(|(action, _)| *action).chain([self.default]).collect()
    }
}

fn first_is(value: u64) -> SeccompArg {
    SeccompArg { index: 0, op: "SCMP_CMP_EQ".to_owned(), value, value_two: 0 }
}

/// Two conditions on one argument: each is a rule of its own.
fn apart(args: &[SeccompArg]) -> Vec<Vec<SeccompArg>> {
    let twice = args.iter().enumerate().any(|(i, a)| args[..i].iter().any(|b| a.index == b.index));
    if twice { args.iter().map(|a| vec![a.clone()]).collect() } else { vec![args.to_vec()] }
}

fn argument(c: &SeccompArg, call: &Call) -> u64 {
    call.args[usize::try_from(c.index).unwrap()]
}

fn holds(c: &SeccompArg, call: &Call, mask: u64) -> bool {
    let arg = argument(c, call) & mask;
    let (value, two) = (c.value & mask, c.value_two & mask);
    match c.op.strip_prefix("SCMP_CMP_").unwrap() {
        "NE" => arg != value,
        "LT" => arg < value,
        "LE" => arg <= value,
        "EQ" => arg == value,
        "GE" => arg >= value,
        "GT" => arg > value,
        // Bits of the value that the mask leaves out do not count.
        "MASKED_EQ" => arg & value == two & value,
        other => panic!("{other}"),
    }
}

/// The upper half of the argument leaves open whether the condition holds.
fn upper_decides_not(c: &SeccompArg, call: &Call) -> bool {
    let mask = if c.op.ends_with("MASKED_EQ") { c.value } else { u64::MAX };
    let value = if c.op.ends_with("MASKED_EQ") { c.value_two } else { c.value };
    (argument(c, call) ^ value) & mask & !u64::from(u32::MAX) == 0
}

fn multiplexed(name: &str) -> Option<(u32, u64)> {
    const SOCKET: &str = "socket bind connect listen accept getsockname getpeername socketpair send \
        recv sendto recvfrom shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg";
    const IPC: &str = "semop semget semctl semtimedop - - - - - - msgsnd msgrcv msgget msgctl - - - - \
        - - shmat shmdt shmget shmctl";
    let place = |list: &str| list.split_whitespace().position(|n| n == name);
    let number = |at: usize| u64::try_from(at).unwrap() + 1;
    place(SOCKET).map(|at| (102, number(at))).or_else(|| place(IPC).map(|at| (117, number(at))))
}
