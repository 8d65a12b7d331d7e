//! Keys of steps from what goes into them, and why a key is not the one of last time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use types::Digest;

use crate::{hashes, select};

/// Values longer than this are kept as a fingerprint only.
const VALUE_BYTES: usize = 200;
/// Files named in one reason.
const FILES_NAMED: usize = 3;
/// Values of build arguments that are remembered at most.
const VALUES_KNOWN: usize = 4096;

/// Everything that a step's result depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inputs {
    pub(crate) instruction: String,
    /// Chain id of the layers below; empty for none.
    pub(crate) parent: String,
    /// Build arguments in scope.
    #[serde(default)]
    pub(crate) args: BTreeMap<String, String>,
    /// Environment of the command.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// User, working directory, shell, network, platform and the like, by the words used in reasons.
    #[serde(default)]
    pub(crate) settings: BTreeMap<String, String>,
    /// Content of the files it copies or mounts; empty for none.
    #[serde(default)]
    pub(crate) files: String,
}

impl Inputs {
    /// The step's key, 64 hexadecimal digits.
    pub(crate) fn key(&self) -> String {
        // Maps are sorted, so equal inputs have equal JSON; strings in maps always serialise.
        let json = serde_json::to_vec(self).unwrap_or_default();
        Digest::sha256([b"gantry-step-1\n".as_slice(), &json].concat()).hex().to_string()
    }

    /// The same with values replaced by fingerprints where they may be secret or are long: what is
    /// kept on disk. Of build arguments all: nobody else writes them down.
    pub(crate) fn redacted(&self, salt: &str) -> Self {
        let args = self.args.iter().map(|(name, value)| (name.clone(), hide(name, value, salt)));
        let env = self.env.iter().map(|(name, value)| (name.clone(), redact(name, value, salt)));
        Self { args: args.collect(), env: env.collect(), ..self.clone() }
    }
}

/// Values of build arguments by their fingerprints, so that reasons can name them for as long as the
/// daemon lives; never on disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(Arc<Mutex<HashMap<String, String>>>);

impl Memory {
    /// Learns the values of `inputs`, but for those that look secret or are long.
    pub(crate) fn learn(&self, inputs: &Inputs, salt: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in &inputs.args {
            let plain = redact(name, value, salt);
            if plain.starts_with('=') {
                if known.len() >= VALUES_KNOWN {
                    known.clear();
                }
                known.insert(hide(name, value, salt), plain);
            }
        }
    }

    /// Redacted inputs with the values that are known.
    pub(crate) fn recall(&self, redacted: &Inputs) -> Inputs {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inputs = redacted.clone();
        for value in inputs.args.values_mut() {
            if let Some(plain) = known.get(value) {
                value.clone_from(plain);
            }
        }
        inputs
    }
}

fn hide(name: &str, value: &str, salt: &str) -> String {
    let digest = Digest::sha256(format!("{salt}\n{name}\n{value}"));
    format!("#{}", &digest.hex()[..24])
}

fn redact(name: &str, value: &str, salt: &str) -> String {
    if !dockerfile::checks::looks_secret(name) && value.len() <= VALUE_BYTES {
        return format!("={value}");
    }
    hide(name, value, salt)
}

/// A redacted value in quotes, or no more than that it is another.
fn shown(value: &str) -> Option<String> {
    value.strip_prefix('=').map(|plain| format!("{plain:?}"))
}

/// What is known of the step below.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parent {
    /// `the base image alpine`, `the parent step 3/7 (COPY . .)`
    pub(crate) name: String,
}

/// A step of an earlier build.
pub(crate) struct Earlier<'a> {
    /// Redacted.
    pub(crate) inputs: &'a Inputs,
    pub(crate) manifest: Option<String>,
}

/// Why a step has to run, in words, from its redacted inputs and those of its predecessor.
pub(crate) fn reason(
    now: &Inputs,
    manifest: Option<&str>,
    parent: &Parent,
    earlier: Option<&Earlier<'_>>,
) -> String {
    let Some(earlier) = earlier else { return "never built before".into() };
    let old = earlier.inputs;
    let mut causes = Vec::new();
    if old.instruction != now.instruction {
        causes.push(format!("the instruction changed (it was: {})", clip(&old.instruction)));
    }
    values("build argument", &old.args, &now.args, &mut causes);
    if old.files != now.files {
        let named = match (&earlier.manifest, manifest) {
            (Some(old), Some(new)) => select::differences(old, new, FILES_NAMED),
            _ => Vec::new(),
        };
        if named.is_empty() {
            causes.push("the files that it reads changed".into());
        } else {
            causes.push(named.join(", "));
        }
    }
    values("variable", &old.env, &now.env, &mut causes);
    values("", &old.settings, &now.settings, &mut causes);
    if old.parent != now.parent {
        causes.push(format!("{} changed", parent.name));
    }
    if causes.is_empty() {
        return "its cached result was removed".into();
    }
    causes.join("; ")
}

fn values(
    what: &str,
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    causes: &mut Vec<String>,
) {
    let label = |name: &str| if what.is_empty() { name.into() } else { format!("{what} {name}") };
    for (name, value) in new {
        match old.get(name) {
            Some(before) if before == value => {}
            Some(before) => {
                let (from, to) = match (shown(before), shown(value)) {
                    (Some(from), Some(to)) => (from, to),
                    _ if what.is_empty() => (format!("{before:?}"), format!("{value:?}")),
                    _ => {
                        causes.push(format!("{} changed", label(name)));
                        continue;
                    }
                };
                causes.push(format!("{} changed from {from} to {to}", label(name)));
            }
            None => causes.push(format!("{} is new", label(name))),
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        causes.push(format!("{} is gone", label(name)));
    }
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

/// A short name for anything, by its parts.
pub(crate) fn fingerprint(parts: &[&str]) -> String {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    use sha2::Digest as _;
    hashes::hex(&sha2::Sha256::digest(&bytes))
}
