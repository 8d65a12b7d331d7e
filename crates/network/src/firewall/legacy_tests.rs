#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

const COMMENT: &str = "gantry-other0";

/// A standard entry with this verdict.
fn standard(layout: &Layout, verdict: i32, marked: u8) -> Vec<u8> {
    let mut entry = vec![0u8; layout.entry + STANDARD_TARGET];
    entry[0] = marked;
    put16(&mut entry, layout.target_offset, layout.entry);
    put16(&mut entry, layout.next_offset, layout.entry + STANDARD_TARGET);
    put16(&mut entry, layout.entry, STANDARD_TARGET);
    let at = layout.entry + EXT_HEADER;
    entry[at..at + 4].copy_from_slice(&verdict.to_ne_bytes());
    entry
}

fn put16(entry: &mut [u8], at: usize, value: usize) {
    entry[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap().to_ne_bytes());
}

fn error(layout: &Layout, name: &str) -> Vec<u8> {
    let size = EXT_HEADER + 32;
    let mut entry = vec![0u8; layout.entry + size];
    put16(&mut entry, layout.target_offset, layout.entry);
    put16(&mut entry, layout.next_offset, layout.entry + size);
    put16(&mut entry, layout.entry, size);
    entry[layout.entry + 2..layout.entry + 7].copy_from_slice(b"ERROR");
    let at = layout.entry + EXT_HEADER;
    entry[at..at + name.len()].copy_from_slice(name.as_bytes());
    entry
}

/// A filter table: INPUT with `input` rules, FORWARD with `forward` rules of
/// which each jumps to the user chain, OUTPUT, and the user chain.
fn table(layout: &Layout, input: usize, forward: usize, user: &str, policy: i32) -> Table {
    let rule = layout.entry + STANDARD_TARGET;
    let error_len = layout.entry + EXT_HEADER + 32;
    let user_start = rule * (input + 1 + forward + 1 + 1) + error_len;
    let mut entries = Vec::new();
    let mut hook_entry = [0u32; HOOKS];
    let mut underflow = [0u32; HOOKS];
    for (hook, rules) in [(1, input), (2, forward), (3, 0)] {
        hook_entry[hook] = u32::try_from(entries.len()).unwrap();
        for n in 0..rules {
            let verdict = i32::try_from(user_start).unwrap();
            let marked = if user == "DOCKER-USER" { 0 } else { u8::try_from(n + 1).unwrap() };
            entries.extend(standard(layout, verdict, marked));
        }
        underflow[hook] = u32::try_from(entries.len()).unwrap();
        entries.extend(standard(layout, if hook == 2 { policy } else { ACCEPT }, 0));
    }
    entries.extend(error(layout, user));
    assert_eq!(entries.len(), user_start);
    entries.extend(standard(layout, -5, 0));
    entries.extend(error(layout, "ERROR"));
    Table { valid_hooks: 0b01110, hook_entry, underflow, entries }
}

fn wanted(names: &[&str]) -> Vec<(Direction, String)> {
    names
        .iter()
        .flat_map(|n| [(Direction::In, (*n).to_owned()), (Direction::Out, (*n).to_owned())])
        .collect()
}

#[test]
fn policy_and_last_rule() {
    assert_eq!(table(&LAYOUT4, 0, 0, "x", DROP).denies(&LAYOUT4), Ok(Some("drop")));
    assert_eq!(table(&LAYOUT6, 2, 3, "x", ACCEPT).denies(&LAYOUT6), Ok(None));
}

#[test]
fn behind_the_jump_to_docker_user() {
    let old = table(&LAYOUT4, 1, 2, "DOCKER-USER", DROP);
    let (new, origin) = old.with_accepts(&LAYOUT4, COMMENT, &wanted(&["br0"])).unwrap();
    // INPUT rule, its policy, the first jump, then ours.
    assert_eq!(origin[..6], [Some(0), Some(1), Some(2), None, None, Some(3)]);
    assert_eq!(new.ours(&LAYOUT4, COMMENT).unwrap(), wanted(&["br0"]));
}

proptest! {
    #[test]
    fn adding_and_taking_back_is_nothing(
        input in 0usize..4, forward in 0usize..4, six: bool, docker: bool,
        names in proptest::collection::vec("[a-z][a-z0-9]{0,14}", 0..4),
    ) {
        let layout = if six { LAYOUT6 } else { LAYOUT4 };
        let old = table(&layout, input, forward, if docker { "DOCKER-USER" } else { "mine" }, DROP);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let wanted = wanted(&names);
        let (new, origin) = old.with_accepts(&layout, COMMENT, &wanted).unwrap();
        prop_assert_eq!(new.ours(&layout, COMMENT).unwrap(), wanted.clone());
        prop_assert_eq!(origin.len(), new.count(&layout).unwrap());
        prop_assert_eq!(new.denies(&layout), Ok(Some("drop")));
        // Every jump still leads to the first rule of the user's chain.
        let all = new.walk(&layout).unwrap();
        let chain = all.iter().find(|e| e.chain_name().is_some()).unwrap();
        let start = i32::try_from(chain.offset + chain.bytes.len()).unwrap();
        for entry in &all {
            if let Some(verdict) = entry.verdict().filter(|v| *v >= 0) {
                prop_assert_eq!(verdict, start);
            }
        }
        // Again with the same is the same, and with none the old table.
        prop_assert_eq!(&new.with_accepts(&layout, COMMENT, &wanted).unwrap().0, &new);
        prop_assert_eq!(new.with_accepts(&layout, COMMENT, &[]).unwrap().0, old);
    }

    #[test]
    fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0u32..700) {
        let table = Table { valid_hooks: 0b01110, hook_entry: [at; 5], underflow: [at; 5], entries: bytes };
        table.with_accepts(&LAYOUT4, COMMENT, &wanted(&["br0"])).ok();
        table.denies(&LAYOUT4).ok();
    }
}
