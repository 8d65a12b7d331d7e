//! Lists of known differences: a runtime, a property, and why it does not hold.

use super::{Outcome, Verdict};
use std::collections::BTreeMap;

/// Why a runtime fails a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Not in every run: then that it holds is no complaint either.
    pub sometimes: bool,
    pub reason: String,
}

/// Lines of `RUNTIME PROPERTY [sometimes] REASON…`; each must have a reason.
pub fn parse(text: &str) -> std::result::Result<BTreeMap<(String, String), Known>, String> {
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let mut words = line.split_whitespace().map(str::to_owned).peekable();
        let (Some(runtime), Some(property)) = (words.next(), words.next()) else {
            return Err(format!("not a full line: {line}"));
        };
        let sometimes = words.next_if(|word| word == "sometimes").is_some();
        let reason = words.collect::<Vec<_>>().join(" ");
        if reason.is_empty() {
            return Err(format!("without a reason: {line}"));
        }
        if found.insert((runtime, property), Known { sometimes, reason }).is_some() {
            return Err(format!("twice: {line}"));
        }
    }
    Ok(found)
}

/// What is wrong with these verdicts, given the list.
pub fn complaints(verdicts: &[Verdict], known: &BTreeMap<String, Known>) -> Vec<String> {
    let mut complaints = Vec::new();
    for verdict in verdicts {
        let known = known.get(&verdict.property);
        match (verdict.outcome, known) {
            (Outcome::Fail, None) => {
                complaints.push(format!("{}: {}", verdict.property, verdict.text));
            }
            (Outcome::Pass, Some(known)) if !known.sometimes => {
                complaints.push(format!("listed, but it holds: {}", verdict.property));
            }
            _ => {}
        }
    }
    complaints
}

/// What is known of one runtime by several lists, of which a later one overrules the earlier.
pub fn known(
    lists: &[String],
    runtime: &str,
) -> std::result::Result<BTreeMap<String, Known>, String> {
    let mut found = BTreeMap::new();
    for text in lists {
        let all = parse(text)?.into_iter().filter(|((name, _), _)| name == runtime);
        found.extend(all.map(|((_, property), known)| (property, known)));
    }
    Ok(found)
}
