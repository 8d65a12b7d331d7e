//! The list of known differences: a runtime, a property, and why it does not hold.

use std::collections::BTreeMap;
use testkit::oci::{Outcome, Verdict};

const LIST: &str = include_str!("differences.txt");

/// Why a runtime fails a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Not in every run: then that it holds is no complaint either.
    pub(crate) sometimes: bool,
    pub(crate) reason: String,
}

/// What is known of one runtime.
pub(crate) fn of(runtime: &str) -> BTreeMap<String, Known> {
    let mut all = parse(LIST);
    all.retain(|(name, _), _| name == runtime);
    all.into_iter().map(|((_, property), known)| (property, known)).collect()
}

pub(crate) fn all() -> BTreeMap<(String, String), Known> {
    parse(LIST)
}

/// Lines of `RUNTIME PROPERTY [sometimes] REASON…`; each must have a reason.
fn parse(text: &str) -> BTreeMap<(String, String), Known> {
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let mut words = line.split_whitespace().map(str::to_owned).peekable();
        let mut next = || words.next().unwrap_or_else(|| panic!("not a full line: {line}"));
        let place = (next(), next());
        let sometimes = words.next_if(|word| word == "sometimes").is_some();
        let reason = words.collect::<Vec<_>>().join(" ");
        assert!(!reason.is_empty(), "without a reason: {line}");
        assert!(found.insert(place, Known { sometimes, reason }).is_none(), "twice: {line}");
    }
    found
}

/// What is wrong with these verdicts, given the list.
pub(crate) fn complaints(verdicts: &[Verdict], known: &BTreeMap<String, Known>) -> Vec<String> {
    let mut complaints = Vec::new();
    for verdict in verdicts {
        let known = known.get(&verdict.property);
        match (verdict.outcome, known) {
            (Outcome::Fail, None) => {
                complaints.push(format!("{}: {}", verdict.property, verdict.text))
            }
            (Outcome::Pass, Some(known)) if !known.sometimes => {
                complaints.push(format!("listed, but it holds: {}", verdict.property));
            }
            _ => {}
        }
    }
    complaints
}

#[test]
fn differences_are_of_properties_that_there_are() {
    let mut names: Vec<&str> =
        testkit::oci::properties::all().iter().map(|property| property.name).collect();
    names.extend(testkit::oci::security::all().iter().map(|property| property.name));
    names.extend(crate::attacks::names());
    names.sort_unstable();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1], "two properties of one name");
    }
    names.push("suite/nothing-left");
    for (runtime, property) in all().keys() {
        assert!(["gantry", "runc", "crun"].contains(&runtime.as_str()), "{runtime}");
        assert!(names.contains(&property.as_str()), "no such property: {property}");
    }
}

#[test]
fn an_unlisted_failure_and_a_stale_line_are_complained_about() {
    let verdict = |outcome| Verdict {
        property: "a/b".to_owned(),
        outcome,
        text: "seen".to_owned(),
        took_ms: 0,
    };
    let none = BTreeMap::new();
    assert_eq!(complaints(&[verdict(Outcome::Fail)], &none), ["a/b: seen"]);
    assert!(complaints(&[verdict(Outcome::Pass), verdict(Outcome::Skip)], &none).is_empty());
    let listed = |line: &str| -> BTreeMap<String, Known> {
        parse(line).into_iter().map(|((_, property), known)| (property, known)).collect()
    };
    let always = listed("x a/b for a reason");
    assert!(complaints(&[verdict(Outcome::Fail)], &always).is_empty());
    assert_eq!(complaints(&[verdict(Outcome::Pass)], &always).len(), 1);
    let sometimes = listed("x a/b sometimes for a reason");
    assert!(complaints(&[verdict(Outcome::Pass)], &sometimes).is_empty());
}
