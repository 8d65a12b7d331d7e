//! Places that are longer than the limits: known ones may stay, get shorter, and never grow.

use crate::config::{Config, FILE};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Places over the limit with their lines: `path`, and `path::function`.
#[derive(Debug, Default)]
pub(crate) struct Long {
    pub(crate) files: BTreeMap<String, usize>,
    pub(crate) functions: BTreeMap<String, usize>,
}

pub(crate) fn check(config: &Config, long: &Long) -> Vec<String> {
    let limits = &config.limits;
    let mut complaints = compare("file", limits.file_lines, &config.ratchet.files, &long.files);
    complaints.extend(compare(
        "function",
        limits.function_lines,
        &config.ratchet.functions,
        &long.functions,
    ));
    complaints
}

fn compare(
    what: &str,
    limit: usize,
    known: &BTreeMap<String, usize>,
    found: &BTreeMap<String, usize>,
) -> Vec<String> {
    let mut complaints = Vec::new();
    for (place, lines) in found {
        let allowed = known.get(place).copied().unwrap_or(limit);
        if *lines > allowed {
            complaints
                .push(format!("{place}: this {what} has {lines} lines, at most {allowed} may be"));
        }
    }
    for (place, allowed) in known {
        let lines = found.get(place).copied().unwrap_or(0);
        if lines < *allowed {
            complaints.push(format!(
                "{FILE}: {place} is better than its {allowed}: run `cargo xtask tidy --ratchet`"
            ));
        }
    }
    complaints
}

/// Rewrites the ratchet's tables: known places with the lower of both numbers, gone ones out.
pub(crate) fn lower(top: &Path, config: &Config, long: &Long) -> Result<()> {
    let file = top.join(FILE);
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {FILE}"))?;
    let head = text.find("\n[ratchet.files]").context("tidy.toml has no [ratchet.files]")?;
    let table = |known: &BTreeMap<String, usize>, found: &BTreeMap<String, usize>| -> String {
        known
            .iter()
            .filter_map(|(place, allowed)| Some((place, *found.get(place)?.min(allowed))))
            .map(|(place, lines)| format!("\"{place}\" = {lines}\n"))
            .collect()
    };
    let files = table(&config.ratchet.files, &long.files);
    let functions = table(&config.ratchet.functions, &long.functions);
    let head = &text[..head];
    let text = format!("{head}\n[ratchet.files]\n{files}\n[ratchet.functions]\n{functions}");
    std::fs::write(&file, text).with_context(|| format!("write {FILE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_goes_down() {
        let place = |lines| BTreeMap::from([("a.rs::f".to_owned(), lines)]);
        assert!(compare("function", 70, &place(90), &place(90)).is_empty());
        assert_eq!(compare("function", 70, &place(90), &place(91)).len(), 1);
        assert_eq!(compare("function", 70, &place(90), &place(89)).len(), 1);
        assert_eq!(compare("function", 70, &place(90), &BTreeMap::new()).len(), 1);
        assert_eq!(compare("function", 70, &BTreeMap::new(), &place(71)).len(), 1);
    }
}
