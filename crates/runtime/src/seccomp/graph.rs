//! Decisions as a graph: every test and every answer is there once, whoever leads to it.
//!
//! Nodes are made from the end: first the answers, then the tests that lead to them. What is the
//! same (same test, same ways on) is the same node, so that calls with the same conditions, rules
//! with the same tail and architectures with the same rules share it.

use std::collections::BTreeMap;

/// A node of a [`Graph`].
pub(super) type Id = usize;

/// What a test looks at: a 32-bit word of `struct seccomp_data`, and the bits of it that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Word {
    pub(super) offset: u32,
    pub(super) mask: u32,
}

impl Word {
    pub(super) const fn whole(offset: u32) -> Word {
        Word { offset, mask: u32::MAX }
    }
}

/// How a word is compared, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Compare {
    Equal,
    Above,
    AtLeast,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Test {
    pub(super) word: Word,
    pub(super) compare: Compare,
    pub(super) value: u32,
}

impl Test {
    pub(super) fn new(word: Word, compare: Compare, value: u32) -> Test {
        Test { word, compare, value }
    }

    /// The answer, where it is the same for every call.
    fn constant(self) -> Option<bool> {
        let mask = self.word.mask;
        match self.compare {
            Compare::Equal if self.value & !mask != 0 => Some(false),
            Compare::Equal if mask == 0 => Some(true),
            Compare::Above if self.value >= mask => Some(false),
            Compare::AtLeast if self.value > mask => Some(false),
            Compare::AtLeast if self.value == 0 => Some(true),
            _ => None,
        }
    }

    /// The answer, given the answer of another test.
    fn given(self, known: Test, holds: bool) -> Option<bool> {
        if self.word != known.word {
            return None;
        }
        // The word is in this range, ends included, or (for "not equal") is not this value.
        let (low, high) = match (known.compare, holds) {
            (Compare::Equal, true) => (known.value, known.value),
            (Compare::Equal, false) => {
                let same = self.compare == Compare::Equal && self.value == known.value;
                return same.then_some(false);
            }
            (Compare::Above, true) => (known.value.checked_add(1)?, u32::MAX),
            (Compare::Above, false) => (0, known.value),
            (Compare::AtLeast, true) => (known.value, u32::MAX),
            (Compare::AtLeast, false) => (0, known.value.checked_sub(1)?),
        };
        let value = self.value;
        match self.compare {
            Compare::Equal if low == high => Some(low == value),
            Compare::Equal => (value < low || value > high).then_some(false),
            Compare::Above if low > value => Some(true),
            Compare::Above => (high <= value).then_some(false),
            Compare::AtLeast if low >= value => Some(true),
            Compare::AtLeast => (high < value).then_some(false),
        }
    }
}

/// An answer, or a test and the ways on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    /// A `SECCOMP_RET_*` value.
    Answer(u32),
    Branch {
        test: Test,
        yes: Id,
        no: Id,
    },
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    /// A node leads to earlier ones only.
    nodes: Vec<Node>,
    ids: BTreeMap<Node, Id>,
}

impl Graph {
    pub(super) fn node(&self, id: Id) -> Node {
        self.nodes[id]
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn answer(&mut self, action: u32) -> Id {
        self.add(Node::Answer(action))
    }

    /// `if test { yes } else { no }`, without tests whose answer is known.
    pub(super) fn branch(&mut self, test: Test, yes: Id, no: Id) -> Id {
        match test.constant() {
            Some(true) => return yes,
            Some(false) => return no,
            None => {}
        }
        let (yes, no) = (self.after(test, true, yes), self.after(test, false, no));
        if yes == no { yes } else { self.add(Node::Branch { test, yes, no }) }
    }

    /// Where `to` leads to when the answer of `test` is known.
    fn after(&self, test: Test, holds: bool, to: Id) -> Id {
        let mut at = to;
        while let Node::Branch { test: next, yes, no } = self.nodes[at] {
            match next.given(test, holds) {
                Some(true) => at = yes,
                Some(false) => at = no,
                None => break,
            }
        }
        at
    }

    fn add(&mut self, node: Node) -> Id {
        let next = self.nodes.len();
        let id = *self.ids.entry(node).or_insert(next);
        if id == next {
            self.nodes.push(node);
        }
        id
    }
}
