//! Lists of known differences: a runtime, a property, and why it does not hold; and the list of what
//! cannot be looked at everywhere: a property, and what the machine has to have for it.

use super::{Outcome, Verdict};
use std::collections::BTreeMap;
use std::path::Path;

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

/// Where a property may be skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// A property, or an area and `/*`.
    pub property: String,
    /// With this path the property has to be looked at; with `absent`, without it.
    pub path: String,
    pub absent: bool,
    pub reason: String,
}

impl Skip {
    fn is_of(&self, property: &str) -> bool {
        match self.property.strip_suffix('*') {
            Some(area) => property.starts_with(area),
            None => property == self.property,
        }
    }

    /// The machine has what the property needs.
    fn is_met(&self) -> bool {
        Path::new(&self.path).exists() != self.absent
    }
}

/// Lines of `PROPERTY PATH REASON…` or `PROPERTY !PATH REASON…`.
///
/// # Errors
///
/// A line that is not of this form, as text.
pub fn skips(text: &str) -> std::result::Result<Vec<Skip>, String> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let (Some(property), Some(need)) = (words.next(), words.next()) else {
            return Err(format!("not a full line: {line}"));
        };
        let path = need.trim_start_matches('!').to_owned();
        let reason = words.collect::<Vec<_>>().join(" ");
        if reason.is_empty() || !path.starts_with('/') {
            return Err(format!("not PROPERTY, an absolute path and a reason: {line}"));
        }
        let (property, absent) = (property.to_owned(), need.starts_with('!'));
        found.push(Skip { property, path, absent, reason });
    }
    Ok(found)
}

/// What is wrong with a skip: that it is not in the list, or that the machine, which is looked at anew
/// here, has all that the property needs.
fn skipped(verdict: &Verdict, skips: &[Skip]) -> Option<String> {
    let mine: Vec<&Skip> = skips.iter().filter(|skip| skip.is_of(&verdict.property)).collect();
    if mine.iter().any(|skip| !skip.is_met()) {
        return None;
    }
    let needs: Vec<String> = mine
        .iter()
        .map(|skip| format!("{} is {}", skip.path, if skip.absent { "absent" } else { "there" }))
        .collect();
    let why = if needs.is_empty() { "no line allows it".to_owned() } else { needs.join(", ") };
    Some(format!("skipped, but {why}: {}: {}", verdict.property, verdict.text))
}

/// What is wrong with these verdicts, given the lists.
pub fn complaints(
    verdicts: &[Verdict],
    known: &BTreeMap<String, Known>,
    skips: &[Skip],
) -> Vec<String> {
    let mut complaints = Vec::new();
    for verdict in verdicts {
        let known = known.get(&verdict.property);
        match (verdict.outcome, known) {
            (Outcome::Skip, _) => complaints.extend(skipped(verdict, skips)),
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
