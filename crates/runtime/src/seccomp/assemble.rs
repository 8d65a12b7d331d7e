//! Classic BPF: conditions on arguments, and a binary search over the system call number.

use sys::seccomp::Insn;

const LD_ABS: u16 = 0x20;
const AND_K: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// Offset of `nr` in `struct seccomp_data`.
pub(super) const OFFSET_NR: u32 = 0;
/// Offset of `arch` in `struct seccomp_data`.
pub(super) const OFFSET_ARCH: u32 = 4;
/// Offset of `args` in `struct seccomp_data`.
pub(super) const OFFSET_ARGS: u32 = 16;
/// Marks a jump to the end of the rule, before the end is known. A 64-bit comparison takes at most
/// 6 instructions and a rule has at most 6 of them and a return: real jumps stay far below.
const FAIL: u8 = 0xff;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    /// `(argument & value) == value_two`
    MaskedEq,
}

/// One condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cond {
    pub(super) index: u32,
    pub(super) op: Op,
    pub(super) value: u64,
    pub(super) value_two: u64,
}

/// All conditions hold: the action (a `SECCOMP_RET_*` value).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conds: Vec<Cond>,
    pub(super) action: u32,
}

/// What happens to a range of call numbers: the first rule that matches, else the last action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) rules: Vec<Rule>,
    pub(super) otherwise: u32,
}

/// `decision` holds from `start` to the next range's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u32,
    pub(super) decision: Decision,
}

pub(super) fn load(offset: u32) -> Insn {
    Insn { code: LD_ABS, jt: 0, jf: 0, k: offset }
}

pub(super) fn ret(action: u32) -> Insn {
    Insn { code: RET, jt: 0, jf: 0, k: action }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Insn {
    Insn { code, jt, jf, k }
}

/// `if A op k { then } else { otherwise }`, at any distance. `then` must end in a return.
pub(super) fn branch_eq(k: u32, then: Vec<Insn>, otherwise: Vec<Insn>) -> Vec<Insn> {
    // Taken: skip `otherwise`.
    branch(JEQ, k, then, otherwise)
}

/// As [`branch_eq`], for `A >= k`.
pub(super) fn branch_ge(k: u32, then: Vec<Insn>, otherwise: Vec<Insn>) -> Vec<Insn> {
    branch(JGE, k, then, otherwise)
}

fn branch(code: u16, k: u32, then: Vec<Insn>, otherwise: Vec<Insn>) -> Vec<Insn> {
    let mut out = Vec::with_capacity(then.len() + otherwise.len() + 2);
    match u8::try_from(otherwise.len()) {
        Ok(near) => out.push(jump(code, k, near, 0)),
        Err(_) => {
            // Conditional jumps reach 255 instructions; an unconditional one reaches all.
            out.push(jump(code, k, 0, 1));
            let far = u32::try_from(otherwise.len()).unwrap_or(u32::MAX);
            out.push(jump(JA, far, 0, 0));
        }
    }
    out.extend(otherwise);
    out.extend(then);
    out
}

/// The search over sorted ranges, with the call number in A. The first starts at 0.
pub(super) fn search(ranges: &[Range], wide: bool) -> Vec<Insn> {
    match ranges {
        [] => Vec::new(),
        [one] => decide(&one.decision, wide),
        many => {
            let (low, high) = many.split_at(many.len() / 2);
            branch_ge(high[0].start, search(high, wide), search(low, wide))
        }
    }
}

fn decide(decision: &Decision, wide: bool) -> Vec<Insn> {
    let mut out = Vec::new();
    for rule in &decision.rules {
        let start = out.len();
        for cond in &rule.conds {
            compare(&mut out, cond, wide);
        }
        out.push(ret(rule.action));
        let end = out.len();
        for (at, insn) in out.iter_mut().enumerate().skip(start) {
            let to_end = u8::try_from(end - at - 1).unwrap_or(FAIL);
            let conditional = matches!(insn.code, JEQ | JGT | JGE);
            if conditional && insn.jt == FAIL {
                insn.jt = to_end;
            }
            if conditional && insn.jf == FAIL {
                insn.jf = to_end;
            }
        }
    }
    out.push(ret(decision.otherwise));
    out
}

/// Falls through if the condition holds, else jumps to `FAIL`. `wide`: arguments have 64 bits.
fn compare(out: &mut Vec<Insn>, cond: &Cond, wide: bool) {
    let (high, low) = halves(cond.value);
    let (high_two, low_two) = halves(cond.value_two);
    // seccomp_data is in the machine's byte order; both architectures here are little-endian.
    let at_low = load(OFFSET_ARGS + 8 * cond.index);
    let at_high = load(OFFSET_ARGS + 8 * cond.index + 4);
    let (top, last) = match cond.op {
        Op::MaskedEq => {
            if wide {
                out.extend([at_high, jump(AND_K, high, 0, 0), jump(JEQ, high_two, 0, FAIL)]);
            }
            out.extend([at_low, jump(AND_K, low, 0, 0), jump(JEQ, low_two, 0, FAIL)]);
            return;
        }
        // `top`: instructions on the high half; a jump of 2 skips the low half.
        Op::Eq => (vec![jump(JEQ, high, 0, FAIL)], jump(JEQ, low, 0, FAIL)),
        Op::Ne => (vec![jump(JEQ, high, 0, 2)], jump(JEQ, low, FAIL, 0)),
        Op::Ge => (greater(high), jump(JGE, low, 0, FAIL)),
        Op::Gt => (greater(high), jump(JGT, low, 0, FAIL)),
        Op::Le => (less(high), jump(JGT, low, FAIL, 0)),
        Op::Lt => (less(high), jump(JGE, low, FAIL, 0)),
    };
    if wide {
        out.push(at_high);
        out.extend(top);
    }
    out.extend([at_low, last]);
}

/// High half above: holds; equal: the low half decides; below: fails.
fn greater(high: u32) -> Vec<Insn> {
    vec![jump(JGT, high, 3, 0), jump(JEQ, high, 0, FAIL)]
}

/// High half above: fails; equal: the low half decides; below: holds.
fn less(high: u32) -> Vec<Insn> {
    vec![jump(JGT, high, FAIL, 0), jump(JEQ, high, 0, 2)]
}

fn halves(value: u64) -> (u32, u32) {
    let b = value.to_ne_bytes();
    let low = u32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
    let high = u32::from_ne_bytes([b[4], b[5], b[6], b[7]]);
    (high, low)
}
