//! A legacy x_tables table as the kernel gives it, and edits to its FORWARD
//! chain. Pure: bytes in, bytes out.
//!
//! The table is one blob of entries. Built-in chains are ranges of it, from
//! `hook_entry` to the policy entry at `underflow`. A verdict of a standard
//! target that is not negative is an offset into the blob (a jump, or the next
//! entry for "no verdict"), so an insertion moves those behind it.

const FORWARD: usize = 2;
const HOOKS: usize = 5;
/// Header of a match or target: u16 size, 29 bytes name, u8 revision.
const EXT_HEADER: usize = 32;
const STANDARD_TARGET: usize = 40;
const COMMENT_MATCH: usize = EXT_HEADER + COMMENT_LEN;
const IFNAMSIZ: usize = 16;
const ACCEPT: i32 = -2;
const DROP: i32 = -1;
/// xt_comment's text with its terminating zero.
const COMMENT_LEN: usize = 256;
/// A table with more is left alone.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// Where an entry keeps its fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) entry: usize,
    iniface: usize,
    outiface: usize,
    in_mask: usize,
    out_mask: usize,
    /// Length of the match part (`ipt_ip`, `ip6t_ip6`).
    header: usize,
    target_offset: usize,
    next_offset: usize,
    counters: usize,
}

pub(super) const LAYOUT4: Layout = Layout {
    entry: 112,
    iniface: 16,
    outiface: 32,
    in_mask: 48,
    out_mask: 64,
    header: 84,
    target_offset: 88,
    next_offset: 90,
    counters: 96,
};

pub(super) const LAYOUT6: Layout = Layout {
    entry: 168,
    iniface: 64,
    outiface: 80,
    in_mask: 96,
    out_mask: 112,
    header: 136,
    target_offset: 140,
    next_offset: 142,
    counters: 152,
};

/// Direction of an accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    In,
    Out,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) valid_hooks: u32,
    pub(super) hook_entry: [u32; HOOKS],
    pub(super) underflow: [u32; HOOKS],
    pub(super) entries: Vec<u8>,
}

/// The blob does not hold together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

fn u16_at(b: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_ne_bytes(b.get(at..at + 2)?.try_into().ok()?)))
}

fn i32_at(b: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// One entry of the blob.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    offset: usize,
    bytes: &'a [u8],
    target: usize,
}

impl<'a> Entry<'a> {
    fn at(entries: &'a [u8], offset: usize, layout: &Layout) -> Option<Self> {
        let head = entries.get(offset..offset.checked_add(layout.entry)?)?;
        let target = u16_at(head, layout.target_offset)?;
        let next = u16_at(head, layout.next_offset)?;
        if target < layout.entry || next < target + EXT_HEADER || next % 8 != 0 {
            return None;
        }
        let bytes = entries.get(offset..offset.checked_add(next)?)?;
        Some(Self { offset, bytes, target })
    }

    fn target_name(&self) -> &'a [u8] {
        let name = &self.bytes[self.target + 2..self.target + 31];
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        &name[..end]
    }

    /// Verdict of a standard target.
    fn verdict(&self) -> Option<i32> {
        if !self.target_name().is_empty() {
            return None;
        }
        i32_at(self.bytes, self.target + EXT_HEADER)
    }

    /// The name after an ERROR target, which begins a user's chain.
    fn chain_name(&self) -> Option<&'a [u8]> {
        if self.target_name() != b"ERROR" {
            return None;
        }
        let name = self.bytes.get(self.target + EXT_HEADER..)?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        Some(&name[..end])
    }

    fn unconditional(&self, layout: &Layout) -> bool {
        self.target == layout.entry && self.bytes[..layout.header].iter().all(|b| *b == 0)
    }
}

impl Table {
    fn walk(&self, layout: &Layout) -> Result<Vec<Entry<'_>>, Malformed> {
        let mut offset = 0;
        let mut all = Vec::new();
        while offset < self.entries.len() {
            let entry = Entry::at(&self.entries, offset, layout).ok_or(Malformed)?;
            offset += entry.bytes.len();
            all.push(entry);
        }
        Ok(all)
    }

    /// How many entries there are.
    pub(super) fn count(&self, layout: &Layout) -> Result<usize, Malformed> {
        self.walk(layout).map(|all| all.len())
    }

    fn forward<'a>(&self, all: &'a [Entry<'a>]) -> impl Iterator<Item = &'a Entry<'a>> + use<'a> {
        let (first, last) = (index(self.hook_entry[FORWARD]), index(self.underflow[FORWARD]));
        all.iter().filter(move |e| e.offset >= first && e.offset < last)
    }

    /// How FORWARD denies what no rule matches, if it does.
    pub(super) fn denies(&self, layout: &Layout) -> Result<Option<&'static str>, Malformed> {
        let all = self.walk(layout)?;
        let policy = all
            .iter()
            .find(|e| e.offset == index(self.underflow[FORWARD]))
            .and_then(Entry::verdict)
            .ok_or(Malformed)?;
        if policy == DROP {
            return Ok(Some("drop"));
        }
        let rejects = self.forward(&all).any(|e| {
            e.unconditional(layout) && (e.verdict() == Some(DROP) || e.target_name() == b"REJECT")
        });
        Ok(rejects.then_some("reject"))
    }

    /// The accepts with this comment, in order: ours.
    pub(super) fn ours(
        &self,
        layout: &Layout,
        comment: &str,
    ) -> Result<Vec<(Direction, String)>, Malformed> {
        let all = self.walk(layout)?;
        Ok(self.forward(&all).filter_map(|e| our_accept(e.bytes, layout, comment)).collect())
    }

    /// The table with exactly these accepts of ours, and for each of its
    /// entries the position that it had before (none for a new one).
    pub(super) fn with_accepts(
        &self,
        layout: &Layout,
        comment: &str,
        wanted: &[(Direction, String)],
    ) -> Result<(Self, Vec<Option<usize>>), Malformed> {
        let all = self.walk(layout)?;
        let at = self.place(&all, layout);
        let added: Vec<u8> = wanted
            .iter()
            .flat_map(|(direction, name)| new_accept(layout, comment, *direction, name))
            .collect();
        let mut table = Self { entries: Vec::new(), ..self.clone() };
        let mut origin = Vec::new();
        let mut moved = Vec::new();
        for (position, entry) in all.iter().enumerate() {
            if entry.offset == at {
                origin.resize(origin.len() + wanted.len(), None);
                table.entries.extend_from_slice(&added);
            }
            moved.push((entry.offset, table.entries.len()));
            let in_forward = self.forward(std::slice::from_ref(entry)).next().is_some();
            if !in_forward || our_accept(entry.bytes, layout, comment).is_none() {
                table.entries.extend_from_slice(entry.bytes);
                origin.push(Some(position));
            }
        }
        let new_offset = |old: usize| -> Result<usize, Malformed> {
            let found = moved.binary_search_by_key(&old, |(o, _)| *o).map_err(|_| Malformed)?;
            // A way into FORWARD at the place of insertion leads to the new entries.
            let behind = if old == at { added.len() } else { 0 };
            Ok(moved[found].1 - behind)
        };
        table.relocate(layout, new_offset)?;
        for hook in 0..HOOKS {
            if self.valid_hooks & (1 << hook) == 0 {
                continue;
            }
            let entry = new_offset(index(self.hook_entry[hook]))?;
            table.hook_entry[hook] = u32::try_from(entry).map_err(|_| Malformed)?;
            let policy = index(self.underflow[hook]);
            let behind = if policy == at { added.len() } else { 0 };
            table.underflow[hook] =
                u32::try_from(new_offset(policy)? + behind).map_err(|_| Malformed)?;
        }
        Ok((table, origin))
    }

    /// Rewrites jumps; only entries that were there before have any.
    fn relocate(
        &mut self,
        layout: &Layout,
        new_offset: impl Fn(usize) -> Result<usize, Malformed>,
    ) -> Result<(), Malformed> {
        let mut changes = Vec::new();
        for entry in self.walk(layout)? {
            if let Some(old) = entry.verdict().and_then(|v| usize::try_from(v).ok()) {
                let new = i32::try_from(new_offset(old)?).map_err(|_| Malformed)?;
                changes.push((entry.offset + entry.target + EXT_HEADER, new));
            }
        }
        for (at, verdict) in changes {
            self.entries[at..at + 4].copy_from_slice(&verdict.to_ne_bytes());
        }
        Ok(())
    }

    /// Where our accepts go: the head of FORWARD, or behind its jump to
    /// DOCKER-USER.
    fn place(&self, all: &[Entry<'_>], layout: &Layout) -> usize {
        let head = index(self.hook_entry[FORWARD]);
        let Some(chain) = all.iter().find(|e| e.chain_name() == Some(b"DOCKER-USER")) else {
            return head;
        };
        let first_rule = chain.offset + chain.bytes.len();
        let jump = self.forward(all).find(|e| {
            e.unconditional(layout)
                && e.verdict().and_then(|v| usize::try_from(v).ok()) == Some(first_rule)
        });
        jump.map_or(head, |e| e.offset + e.bytes.len())
    }

    /// The counters of the entries are outside: clears them in the blob, as
    /// the kernel sets its own.
    pub(super) fn clear_counters(&mut self, layout: &Layout) -> Result<(), Malformed> {
        let offsets: Vec<usize> = self.walk(layout)?.iter().map(|e| e.offset).collect();
        for offset in offsets {
            let at = offset + layout.counters;
            self.entries[at..at + 16].fill(0);
        }
        Ok(())
    }
}

/// `-i NAME -m comment --comment COMMENT -j ACCEPT`, or with `-o`.
fn new_accept(layout: &Layout, comment: &str, direction: Direction, name: &str) -> Vec<u8> {
    let target = layout.entry + COMMENT_MATCH;
    let next = target + STANDARD_TARGET;
    let mut entry = vec![0u8; next];
    let (at, mask) = match direction {
        Direction::In => (layout.iniface, layout.in_mask),
        Direction::Out => (layout.outiface, layout.out_mask),
    };
    let bytes = &name.as_bytes()[..name.len().min(IFNAMSIZ - 1)];
    entry[at..at + bytes.len()].copy_from_slice(bytes);
    // One byte more than the name: the terminating zero makes it exact.
    entry[mask..mask + bytes.len() + 1].fill(0xff);
    let mut put = |at: usize, value: usize| {
        let value = u16::try_from(value).expect("an entry of ours has some 500 bytes");
        entry[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    };
    put(layout.target_offset, target);
    put(layout.next_offset, next);
    put(layout.entry, COMMENT_MATCH);
    put(target, STANDARD_TARGET);
    entry[layout.entry + 2..layout.entry + 2 + 7].copy_from_slice(b"comment");
    let text = layout.entry + EXT_HEADER;
    let comment = &comment.as_bytes()[..comment.len().min(COMMENT_LEN - 1)];
    entry[text..text + comment.len()].copy_from_slice(comment);
    entry[target + EXT_HEADER..target + EXT_HEADER + 4].copy_from_slice(&ACCEPT.to_ne_bytes());
    entry
}

/// Direction and interface, if the entry is an accept of ours.
fn our_accept(bytes: &[u8], layout: &Layout, comment: &str) -> Option<(Direction, String)> {
    for (direction, at) in [(Direction::In, layout.iniface), (Direction::Out, layout.outiface)] {
        let name = &bytes[at..at + IFNAMSIZ];
        let end = name.iter().position(|b| *b == 0).unwrap_or(IFNAMSIZ);
        let Ok(name) = std::str::from_utf8(&name[..end]) else { continue };
        if name.is_empty() {
            continue;
        }
        let ours = new_accept(layout, comment, direction, name);
        let same = bytes.len() == ours.len()
            && bytes[..layout.header] == ours[..layout.header]
            && bytes[layout.entry..] == ours[layout.entry..];
        if same {
            return Some((direction, name.to_owned()));
        }
    }
    None
}

#[cfg(test)]
#[path = "legacy_tests.rs"]
mod tests;
