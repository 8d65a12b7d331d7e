//! Rules on arguments, and ranges of numbers, as tests of a [`Graph`].

use super::graph::{Compare, Graph, Id, Test, Word};

/// Offset of `nr` in `struct seccomp_data`.
pub(super) const OFFSET_NR: u32 = 0;
/// Offset of `arch` in `struct seccomp_data`.
pub(super) const OFFSET_ARCH: u32 = 4;
/// Offset of `args` in `struct seccomp_data`.
pub(super) const OFFSET_ARGS: u32 = 16;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cond {
    pub(super) index: u32,
    pub(super) op: Op,
    pub(super) value: u64,
    pub(super) value_two: u64,
}

/// All conditions hold (each of another argument): the action (a `SECCOMP_RET_*` value).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conds: Vec<Cond>,
    pub(super) action: u32,
}

/// What happens to a call: the first rule that matches, else the last action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) rules: Vec<Rule>,
    pub(super) otherwise: u32,
}

/// From `start` to the next range's start it goes on at `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u32,
    pub(super) to: Id,
    /// How much it counts that this range is found soon.
    pub(super) weight: u32,
}

/// Up to how many single values are tested one after the other; above it, the search halves what
/// is left. Long chains make programs shorter and slower.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chains {
    /// Among call numbers.
    pub(super) numbers: usize,
    /// Among values of an argument.
    pub(super) values: usize,
}

/// What a rule needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// The test has this answer.
    Half(Test, bool),
    /// A condition that both halves of an argument decide, but not one after the other.
    Both(Cond),
}

/// The decision's first test. `wide`: arguments have 64 bits.
pub(super) fn decide(graph: &mut Graph, decision: &Decision, wide: bool, chains: Chains) -> Id {
    let mut to = graph.answer(decision.otherwise);
    for run in decision.rules.chunk_by(|a, b| a.action == b.action).rev() {
        let action = graph.answer(run[0].action);
        // The order of rules with the same action is free: those with the same beginning share it.
        let mut paths: Vec<Vec<Step>> = run.iter().map(|rule| steps(rule, wide)).collect();
        paths.sort();
        paths.dedup();
        to = any(graph, &paths, 0, [action, to], chains);
    }
    to
}

/// The rule's conditions in the order of arguments, upper halves first.
fn steps(rule: &Rule, wide: bool) -> Vec<Step> {
    let mut conds = rule.conds.clone();
    conds.sort();
    let mut out = Vec::with_capacity(2 * conds.len());
    for cond in &conds {
        let (high, low) = halves(cond.value);
        let (at_high, at_low) = words(cond.index);
        let half = |compare, holds| Step::Half(Test::new(at_low, compare, low), holds);
        match cond.op {
            Op::Eq => {
                if wide {
                    out.push(Step::Half(Test::new(at_high, Compare::Equal, high), true));
                }
                out.push(half(Compare::Equal, true));
            }
            Op::MaskedEq => {
                let (high_two, low_two) = halves(cond.value_two);
                let masked = |word: Word, mask, value| {
                    Step::Half(Test::new(Word { mask, ..word }, Compare::Equal, value), true)
                };
                // A half of which nothing counts is not looked at.
                if wide && high != 0 {
                    out.push(masked(at_high, high, high_two));
                }
                if low != 0 {
                    out.push(masked(at_low, low, low_two));
                }
            }
            _ if wide => out.push(Step::Both(*cond)),
            Op::Ne => out.push(half(Compare::Equal, false)),
            Op::Ge => out.push(half(Compare::AtLeast, true)),
            Op::Gt => out.push(half(Compare::Above, true)),
            Op::Le => out.push(half(Compare::Above, false)),
            Op::Lt => out.push(half(Compare::AtLeast, false)),
        }
    }
    out
}

/// `ends[0]` if all the steps of one of the paths, from `depth` on, go well, else `ends[1]`. The
/// paths are sorted, and the same up to `depth`, which is 12 at most.
fn any(graph: &mut Graph, paths: &[Vec<Step>], depth: usize, ends: [Id; 2], chains: Chains) -> Id {
    let [good, mut bad] = ends;
    // The shortest is the first.
    if paths.first().is_some_and(|path| path.len() == depth) {
        return good;
    }
    let groups: Vec<&[Vec<Step>]> = paths.chunk_by(|a, b| a[depth] == b[depth]).collect();
    let value_of = |group: &&[Vec<Step>]| match group[0][depth] {
        Step::Half(test, true) if test.compare == Compare::Equal => Some(test),
        _ => None,
    };
    let word_of = |group: &&[Vec<Step>]| value_of(group).map(|test| test.word);
    for run in groups.chunk_by(|a, b| word_of(a).is_some() && word_of(a) == word_of(b)).rev() {
        // Of different values of one word no two hold: where one fails later on, none is left.
        let ends = [good, bad];
        let to: Vec<Id> =
            run.iter().map(|group| any(graph, group, depth + 1, ends, chains)).collect();
        bad = match word_of(&run[0]) {
            Some(word) => {
                let values = run.iter().filter_map(value_of).map(|test| test.value);
                search(graph, word, &gaps(values.zip(to), bad, 1), chains.values)
            }
            None => hold(graph, run[0][0][depth], to[0], bad),
        };
    }
    bad
}

/// The step's tests.
fn hold(graph: &mut Graph, step: Step, yes: Id, no: Id) -> Id {
    let cond = match step {
        Step::Half(test, true) => return graph.branch(test, yes, no),
        Step::Half(test, false) => return graph.branch(test, no, yes),
        Step::Both(cond) => cond,
    };
    let (high, low) = halves(cond.value);
    let (at_high, at_low) = words(cond.index);
    let equal = Test::new(at_high, Compare::Equal, high);
    let above = Test::new(at_high, Compare::Above, high);
    let mut half = |compare, yes, no| graph.branch(Test::new(at_low, compare, low), yes, no);
    // The answer where the upper half is above, where it is equal, and where it is below.
    let (above_to, equal_to, below_to) = match cond.op {
        Op::Ne => (yes, half(Compare::Equal, no, yes), yes),
        Op::Ge => (yes, half(Compare::AtLeast, yes, no), no),
        Op::Gt => (yes, half(Compare::Above, yes, no), no),
        Op::Le => (no, half(Compare::Above, no, yes), yes),
        Op::Lt => (no, half(Compare::AtLeast, no, yes), yes),
        // These are steps of their own.
        Op::Eq | Op::MaskedEq => return no,
    };
    let rest = graph.branch(equal, equal_to, below_to);
    if above_to == below_to { rest } else { graph.branch(above, above_to, rest) }
}

/// All values of a word: those of `cases` (ascending), and what is between them.
pub(super) fn gaps(
    cases: impl IntoIterator<Item = (u32, Id)>,
    otherwise: Id,
    weight: u32,
) -> Vec<Range> {
    let mut out = Vec::new();
    let mut next = Some(0);
    for (value, to) in cases {
        if let Some(start) = next.filter(|next| *next < value) {
            extend(&mut out, Range { start, to: otherwise, weight });
        }
        extend(&mut out, Range { start: value, to, weight });
        next = value.checked_add(1);
    }
    if let Some(start) = next {
        extend(&mut out, Range { start, to: otherwise, weight });
    }
    out
}

/// Adds a range behind all others; it becomes part of the last one if they go to the same place.
pub(super) fn extend(ranges: &mut Vec<Range>, range: Range) {
    if ranges.last().is_none_or(|last| last.to != range.to) {
        ranges.push(range);
    }
}

/// The search for a value of the word among sorted ranges, of which the first counts from 0.
pub(super) fn search(graph: &mut Graph, word: Word, ranges: &[Range], chain: usize) -> Id {
    part(graph, word, ranges, u64::from(u32::MAX) + 1, chain)
}

/// As [`search`], for a word that is known to be below `end`, and in these ranges.
fn part(graph: &mut Graph, word: Word, ranges: &[Range], end: u64, chain: usize) -> Id {
    let [first, .., last] = ranges else {
        return ranges[0].to;
    };
    // Single values among what is else the same.
    let width = |at: usize| {
        let next = ranges.get(at + 1).map_or(end, |next| u64::from(next.start));
        next - u64::from(ranges[at].start)
    };
    let usual = (0..ranges.len()).max_by_key(|at| width(*at)).map_or(first.to, |at| ranges[at].to);
    let singles = || (0..ranges.len()).filter(|at| ranges[*at].to != usual);
    if singles().count() <= chain && singles().all(|at| width(at) == 1) {
        return singles().rev().fold(usual, |no, at| {
            let Range { start, to, .. } = ranges[at];
            graph.branch(Test::new(word, Compare::Equal, start), to, no)
        });
    }
    let at = middle(ranges).min(ranges.len() - 1).max(1);
    let (low, high) = ranges.split_at(at);
    let start = high.first().unwrap_or(last).start;
    let yes = part(graph, word, high, end, chain);
    let no = part(graph, word, low, u64::from(start), chain);
    graph.branch(Test::new(word, Compare::AtLeast, start), yes, no)
}

/// Where both sides weigh the same, as far as possible.
fn middle(ranges: &[Range]) -> usize {
    let total: u64 = ranges.iter().map(|range| u64::from(range.weight)).sum();
    let mut left = 0;
    for (at, range) in ranges.iter().enumerate() {
        let with = left + u64::from(range.weight);
        if 2 * with >= total {
            // With this range on the left, or without it.
            return if with + left > total { at } else { at + 1 };
        }
        left = with;
    }
    ranges.len() / 2
}

/// The words of an argument's upper and lower half.
fn words(index: u32) -> (Word, Word) {
    // seccomp_data is in the machine's byte order; both architectures here are little-endian.
    let low = OFFSET_ARGS + 8 * index;
    (Word::whole(low + 4), Word::whole(low))
}

fn halves(value: u64) -> (u32, u32) {
    let b = value.to_ne_bytes();
    let low = u32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
    let high = u32::from_ne_bytes([b[4], b[5], b[6], b[7]]);
    (high, low)
}
