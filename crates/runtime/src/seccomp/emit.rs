//! A [`Graph`] as classic BPF.
//!
//! The program is made from its end, children before the nodes that lead to them, because jumps
//! only go forward. A node is up to three instructions: load a word, mask it, test it. Who comes
//! with the word in the register already jumps past the load. A conditional jump reaches 255
//! instructions; where it has to go farther it goes over an unconditional one, and to a copy where
//! an answer is what it goes to.

use std::collections::BTreeMap;

use sys::seccomp::Insn;

use super::graph::{Compare, Graph, Id, Node, Test, Word};

const LD_ABS: u16 = 0x20;
const AND_K: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// How far a conditional jump reaches, less the two instructions that may come between.
const NEAR: usize = 255 - 2;

/// The ways into a node that are used by others than those who have its word in the register.
#[derive(Debug, Clone, Copy, Default)]
struct Needs {
    load: bool,
    mask: bool,
    /// The node is part of the program.
    reached: bool,
}

/// Where a node's instructions are, counted from the end of the program.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    load: usize,
    mask: usize,
    test: usize,
}

struct Emitter<'a> {
    graph: &'a Graph,
    /// From the end.
    code: Vec<Insn>,
    places: Vec<Place>,
    /// For a place: the nearest instruction that goes there, or does the same.
    hops: BTreeMap<usize, usize>,
}

/// The program that begins with the node `root`.
pub(super) fn emit(graph: &Graph, root: Id) -> Vec<Insn> {
    let needs = needs(graph, root);
    let mut out = Emitter {
        graph,
        code: Vec::new(),
        places: vec![Place::default(); graph.len()],
        hops: BTreeMap::new(),
    };
    for id in order(graph, root) {
        out.node(id, needs[id]);
    }
    out.code.reverse();
    out.code
}

/// Who has to load what.
fn needs(graph: &Graph, root: Id) -> Vec<Needs> {
    let mut needs = vec![Needs::default(); graph.len()];
    needs[root] = Needs { load: true, mask: true, reached: true };
    // A node leads to earlier ones only: all that lead to one come before it here.
    for id in (0..=root).rev() {
        if !needs[id].reached {
            continue;
        }
        let Node::Branch { test, yes, no } = graph.node(id) else { continue };
        for to in [yes, no] {
            needs[to].reached = true;
            if let Node::Branch { test: next, .. } = graph.node(to) {
                needs[to].load |= !has(test.word, next.word) && !can_mask(test.word, next.word);
                needs[to].mask |= !has(test.word, next.word);
            }
        }
    }
    needs
}

/// The register has what the next test looks at.
fn has(register: Word, next: Word) -> bool {
    register == next
}

/// The register has the whole of the word.
fn can_mask(register: Word, next: Word) -> bool {
    register == Word::whole(next.offset)
}

/// The nodes below `root` in the order of emission: the last comes first in the program. What is
/// likelier comes right behind its test: a value that is equal, a number that is low.
fn order(graph: &Graph, root: Id) -> Vec<Id> {
    let mut out = Vec::new();
    let mut seen = vec![false; graph.len()];
    let mut stack = vec![(root, false)];
    while let Some((id, below)) = stack.pop() {
        if below {
            out.push(id);
            continue;
        }
        if std::mem::replace(&mut seen[id], true) {
            continue;
        }
        stack.push((id, true));
        if let Node::Branch { test, yes, no } = graph.node(id) {
            // What is put on the stack last is emitted first, and ends up farther away.
            let [near, far] = if test.compare == Compare::Equal { [yes, no] } else { [no, yes] };
            stack.extend([(near, false), (far, false)]);
        }
    }
    out
}

impl Emitter<'_> {
    fn node(&mut self, id: Id, needs: Needs) {
        let (test, yes, no) = match self.graph.node(id) {
            Node::Answer(action) => {
                let at = self.push(RET, action, 0, 0);
                self.places[id] = Place { load: at, mask: at, test: at };
                return;
            }
            Node::Branch { test, yes, no } => (test, yes, no),
        };
        let [yes, no] = [yes, no].map(|to| self.way(test.word, to));
        // Where both have to go over another instruction, the second moves the first away by one.
        let [yes, no] = [yes, no].map(|to| self.near(to));
        let Test { word, compare, value } = test;
        let code = match compare {
            Compare::Equal => JEQ,
            Compare::Above => JGT,
            Compare::AtLeast => JGE,
        };
        let at = self.code.len();
        let [jt, jf] = [yes, no].map(|to| u8::try_from(at - to - 1).expect("near, see NEAR"));
        let test = self.push(code, value, jt, jf);
        let mut place = Place { load: test, mask: test, test };
        if word.mask != u32::MAX && needs.mask {
            place.mask = self.push(AND_K, word.mask, 0, 0);
            place.load = place.mask;
        }
        if needs.load {
            place.load = self.push(LD_ABS, word.offset, 0, 0);
        }
        self.places[id] = place;
    }

    /// Where to enter a node that has been emitted.
    fn way(&self, register: Word, to: Id) -> usize {
        let place = self.places[to];
        match self.graph.node(to) {
            Node::Branch { test, .. } if has(register, test.word) => place.test,
            Node::Branch { test, .. } if can_mask(register, test.word) => place.mask,
            _ => place.load,
        }
    }

    /// An instruction that a conditional jump reaches from here, and that goes to `to`.
    fn near(&mut self, to: usize) -> usize {
        let reaches = |from: usize, at: usize| from - at - 1 <= NEAR;
        let here = self.code.len();
        if reaches(here, to) {
            return to;
        }
        if let Some(hop) = self.hops.get(&to).copied().filter(|hop| reaches(here, *hop)) {
            return hop;
        }
        let target = self.code[to];
        let hop = if target.code == RET {
            self.push(RET, target.k, 0, 0)
        } else {
            let by = u32::try_from(here - to - 1).unwrap_or(u32::MAX);
            self.push(JA, by, 0, 0)
        };
        self.hops.insert(to, hop);
        hop
    }

    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> usize {
        self.code.push(Insn { code, jt, jf, k });
        self.code.len() - 1
    }
}
