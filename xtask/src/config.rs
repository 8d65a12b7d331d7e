//! `tidy.toml`.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) const FILE: &str = "xtask/tidy.toml";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) edges: BTreeMap<String, Allowed>,
    pub(crate) ban: Vec<Ban>,
    pub(crate) limits: Limits,
    pub(crate) exempt: Exempt,
    pub(crate) ratchet: Ratchet,
}

/// Which of our crates one may use.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Allowed {
    Some(Vec<String>),
    /// The word "any".
    Any(String),
}

impl Allowed {
    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Self::Some(names) => names.iter().any(|allowed| allowed == name),
            Self::Any(word) => word == "any",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ban {
    pub(crate) crates: Vec<String>,
    pub(crate) reach: Vec<String>,
    pub(crate) reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) file_lines: usize,
    pub(crate) function_lines: usize,
    pub(crate) binary_bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exempt {
    pub(crate) tables: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ratchet {
    pub(crate) files: BTreeMap<String, usize>,
    pub(crate) functions: BTreeMap<String, usize>,
}

impl Config {
    pub(crate) fn read(top: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(top.join(FILE)).with_context(|| format!("read {FILE}"))?;
        toml::from_str(&text).with_context(|| format!("read {FILE}"))
    }

    pub(crate) fn is_table(&self, path: &str) -> bool {
        self.exempt.tables.iter().any(|prefix| path.starts_with(prefix.as_str()))
    }
}
