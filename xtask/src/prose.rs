//! Texts, comments and scripts speak of the project, not of how or where it is made.

use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// FNV-1a hashes of words that no text of this tree has: names of tools and of people's machines.
/// Hashes, so that this file does not have them either.
const WORDS: [u64; 9] = [
    0x2391_9480_3edf_98f7,
    0x2524_b426_1996_11b3,
    0x7f7a_7547_86a6_64b8,
    0x8a1b_8f4a_0a91_3503,
    0xa113_d274_5d70_6ce3,
    0x125b_6919_1db9_4ab8,
    0x2ffb_778d_fae5_4384,
    0xd4c8_0b5a_1bd0_7e8e,
    0x04dc_2554_6038_2976,
];

const ENDINGS: [&str; 8] = ["rs", "md", "toml", "sh", "yaml", "yml", "service", "proto"];

pub(crate) fn check(top: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(top)
        .output()
        .context("run git ls-files")?;
    let mut complaints = Vec::new();
    for path in String::from_utf8_lossy(&output.stdout).lines() {
        let name = path.rsplit('/').next().unwrap_or(path);
        let known = name.rsplit_once('.').is_none_or(|(_, ending)| ENDINGS.contains(&ending));
        // Not text, or gone: nothing to read in it.
        let Some(text) = known.then(|| std::fs::read_to_string(top.join(path)).ok()).flatten()
        else {
            continue;
        };
        for (index, line) in text.lines().enumerate() {
            complaints.extend(faults(line).map(|fault| format!("{path}:{}: {fault}", index + 1)));
        }
    }
    Ok(complaints)
}

fn faults(line: &str) -> impl Iterator<Item = String> {
    let lower = line.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    let named = words
        .filter(|word| WORDS.contains(&fnv1a(word.as_bytes())))
        .map(|word| format!("speaks of {word:?}, which is no part of the project"));
    let issue = lower
        .split("issue ")
        .skip(1)
        .any(|rest| rest.trim_start_matches('#').starts_with(|first: char| first.is_ascii_digit()));
    let issue = issue.then(|| "names an issue by its number".to_owned());
    named.chain(issue).collect::<Vec<_>>().into_iter()
}

fn fnv1a(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_an_issue_is_found() {
        let line = ["see issue", "17"].join(" ");
        assert_eq!(faults(&line).count(), 1);
        assert_eq!(faults("an issue of fifteen words").count(), 0);
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
