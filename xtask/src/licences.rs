//! Licences and banned packages, from the lists in `deny.toml`, for machines without cargo-deny.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

pub(crate) fn check(top: &Path, metadata: &Value) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(top.join("deny.toml")).context("read deny.toml")?;
    let deny: toml::Value = toml::from_str(&text).context("read deny.toml")?;
    let list = |table: &str, key: &str| -> Vec<&toml::Value> {
        let found = deny.get(table).and_then(|t| t.get(key)).and_then(toml::Value::as_array);
        found.into_iter().flatten().collect()
    };
    let allowed: Vec<&str> =
        list("licenses", "allow").into_iter().filter_map(toml::Value::as_str).collect();
    let banned: Vec<&str> =
        list("bans", "deny").into_iter().filter_map(|ban| ban.get("crate")?.as_str()).collect();
    let packages = metadata.get("packages").and_then(Value::as_array);
    let mut complaints = Vec::new();
    for package in packages.context("cargo metadata has no packages")? {
        let name = package.get("name").and_then(Value::as_str).unwrap_or("?");
        let licence = package.get("license").and_then(Value::as_str).unwrap_or("");
        if !satisfied(licence, &allowed) {
            complaints.push(format!("licence: {name} is under {licence:?}, which is not allowed"));
        }
        if banned.contains(&name) {
            complaints.push(format!("licence: {name} is banned in deny.toml"));
        }
    }
    Ok(complaints)
}

/// Whether an SPDX expression can be met by the allowed licences: some alternative of each part.
/// An old-style `/` means OR.
fn satisfied(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut position = 0;
    let value = any_of(&words, &mut position, allowed);
    value && position == words.len()
}

fn any_of(words: &[&str], position: &mut usize, allowed: &[&str]) -> bool {
    let mut value = all_of(words, position, allowed);
    while words.get(*position) == Some(&"OR") {
        *position += 1;
        value |= all_of(words, position, allowed);
    }
    value
}

fn all_of(words: &[&str], position: &mut usize, allowed: &[&str]) -> bool {
    let mut value = one(words, position, allowed);
    while words.get(*position) == Some(&"AND") {
        *position += 1;
        value &= one(words, position, allowed);
    }
    value
}

fn one(words: &[&str], position: &mut usize, allowed: &[&str]) -> bool {
    let Some(word) = words.get(*position) else { return false };
    *position += 1;
    if *word == "(" {
        let value = any_of(words, position, allowed);
        *position += 1; // the closing one
        return value;
    }
    if words.get(*position) == Some(&"WITH") {
        let exception = words.get(*position + 1).copied().unwrap_or_default();
        *position += 2;
        return allowed.contains(&format!("{word} WITH {exception}").as_str());
    }
    allowed.contains(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_judged_as_spdx_means_them() {
        let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"];
        for good in [
            "MIT",
            "GPL-3.0 OR MIT",
            "Apache-2.0/MIT",
            "ISC AND (GPL-2.0 OR MIT)",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-2.0", "Apache-2.0"] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }
}
