//! The list of known differences: a runtime, a property, and why it does not hold.

use std::collections::BTreeMap;
pub(crate) use testkit::oci::list::complaints;
use testkit::oci::list::{Known, parse};
use testkit::oci::{Outcome, Verdict};

const LIST: &str = include_str!("differences.txt");
/// What is different where cgroup v2 is all there is, in the virtual machine.
const LIST_V2: &str = include_str!("differences-v2.txt");

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
        parse(line).unwrap().into_iter().map(|((_, property), known)| (property, known)).collect()
    };
    let always = listed("x a/b for a reason");
    assert!(complaints(&[verdict(Outcome::Fail)], &always).is_empty());
    assert_eq!(complaints(&[verdict(Outcome::Pass)], &always).len(), 1);
    let sometimes = listed("x a/b sometimes for a reason");
    assert!(complaints(&[verdict(Outcome::Pass)], &sometimes).is_empty());
}
