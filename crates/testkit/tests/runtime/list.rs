//! The list of known differences: a runtime, a property, and why it does not hold.

use std::collections::BTreeMap;
use testkit::oci::list::{self, Known, Skip, parse};
use testkit::oci::{Outcome, Verdict};

const LIST: &str = include_str!("differences.txt");
/// What is different where cgroup v2 is all there is, in the virtual machine.
const LIST_V2: &str = include_str!("differences-v2.txt");

/// What the machine has to have for what.
const SKIPS: &str = include_str!("skips.txt");

fn skips() -> Vec<Skip> {
    list::skips(SKIPS).unwrap()
}

/// What is wrong with these verdicts, given what is known of the runtime.
pub(crate) fn complaints(verdicts: &[Verdict], known: &BTreeMap<String, Known>) -> Vec<String> {
    list::complaints(verdicts, known, &skips())
}

/// What is known of one runtime.
pub(crate) fn of(runtime: &str) -> BTreeMap<String, Known> {
    let mut all = parse(LIST).unwrap();
    all.retain(|(name, _), _| name == runtime);
    all.into_iter().map(|((_, property), known)| (property, known)).collect()
}

pub(crate) fn all() -> BTreeMap<(String, String), Known> {
    parse(LIST).unwrap()
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
    for (runtime, property) in all().keys().chain(parse(LIST_V2).unwrap().keys()) {
        assert!(["gantry", "runc", "crun"].contains(&runtime.as_str()), "{runtime}");
        assert!(names.contains(&property.as_str()), "no such property: {property}");
    }
    for skip in skips() {
        let area = skip.property.strip_suffix('*');
        let there = |name: &&str| area.map_or(**name == skip.property, |a| name.starts_with(a));
        assert!(names.iter().any(there), "no such property: {}", skip.property);
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
    assert!(complaints(&[verdict(Outcome::Pass)], &none).is_empty());
    let listed = |line: &str| -> BTreeMap<String, Known> {
        parse(line).unwrap().into_iter().map(|((_, property), known)| (property, known)).collect()
    };
    let always = listed("x a/b for a reason");
    assert!(complaints(&[verdict(Outcome::Fail)], &always).is_empty());
    assert_eq!(complaints(&[verdict(Outcome::Pass)], &always).len(), 1);
    let sometimes = listed("x a/b sometimes for a reason");
    assert!(complaints(&[verdict(Outcome::Pass)], &sometimes).is_empty());
}

/// A skip is a complaint where the machine has what the property needs, and where no line is of it.
#[test]
fn a_skip_without_need_is_complained_about() {
    let verdict = Verdict {
        property: "a/b".to_owned(),
        outcome: Outcome::Skip,
        text: "seen".to_owned(),
        took_ms: 0,
    };
    let complaints = |text: &str| {
        list::complaints(
            std::slice::from_ref(&verdict),
            &BTreeMap::new(),
            &list::skips(text).unwrap(),
        )
    };
    assert_eq!(complaints(""), ["skipped, but no line allows it: a/b: seen"]);
    assert_eq!(complaints("a/c /absent for a reason").len(), 1);
    assert!(complaints("a/b /absent for a reason").is_empty());
    assert!(complaints("a/* /absent for a reason").is_empty());
    assert_eq!(complaints("a/b /proc for a reason"), ["skipped, but /proc is there: a/b: seen"]);
    assert!(complaints("a/b /proc x\na/b /absent for another").is_empty());
    assert!(complaints("a/b !/proc for a reason").is_empty());
    assert_eq!(complaints("a/b !/absent x"), ["skipped, but /absent is absent: a/b: seen"]);
    assert!(list::skips("a/b relative for a reason").is_err() && list::skips("a/b /x").is_err());
}
