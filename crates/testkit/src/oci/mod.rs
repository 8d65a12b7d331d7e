//! A conformance suite for OCI runtimes: any program with runc's command line is driven with bundles
//! made on the way, and held against the runtime specification one property at a time, from inside
//! the container where that is where it shows.
//!
//! ```text
//!   test ── sandbox ── conformance RUNTIME ── threads ── property ── bundle ── RUNTIME create, start …
//! ```
//! The program `conformance` is run in a sandbox (or a virtual machine) and writes one line of JSON
//! for each property; the test holds what failed against the list of known differences. Inputs are
//! random. What a property cannot look at here is skipped, with the reason.

pub mod bundle;
pub mod call;
pub mod elf;
pub mod list;
pub mod properties;
pub mod security;

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The program under test.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Its path and the words that come before any other.
    pub argv: Vec<String>,
    /// Bundles ask for cgroups. Without it, what needs them is skipped.
    pub cgroups: bool,
}

/// What a property stands on.
#[derive(Debug, Clone)]
pub struct Ground {
    pub runtime: Runtime,
    /// A directory on a file system that allows devices and set-user-id files.
    pub work: PathBuf,
    /// As many rounds as an attack may need, where a sample is enough otherwise.
    pub long: bool,
}

/// Why a property does not hold.
#[derive(Debug)]
pub enum Failure {
    /// It was seen not to hold.
    Violated(String),
    /// It cannot be looked at here.
    Skipped(String),
    /// The suite itself stumbled.
    Suite(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Suite(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violated(text) | Self::Skipped(text) => f.write_str(text),
            Self::Suite(error) => write!(f, "{error:?}"),
        }
    }
}

/// What a look at a property gives.
pub type Checked<T = ()> = std::result::Result<T, Failure>;

/// One property: its name (area, a slash, what) and how it is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Property {
    pub name: &'static str,
    pub check: fn(&Ground) -> Checked,
}

/// What came out, as the program `conformance` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub property: String,
    pub outcome: Outcome,
    /// What was seen instead, or why it was skipped.
    pub text: String,
    pub took_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Pass,
    Fail,
    Skip,
}

/// Looks at all these properties, as many at once as there are processors and one more, and tells each
/// verdict as it comes.
pub fn run(ground: &Ground, properties: &[Property], tell: &(dyn Fn(Verdict) + Sync)) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get() + 1);
    let tell = Mutex::new(tell);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(property) = properties.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = look(ground, property);
                    (tell.lock().unwrap_or_else(std::sync::PoisonError::into_inner))(verdict);
                }
            });
        }
    });
}

fn look(ground: &Ground, property: &Property) -> Verdict {
    let begin = std::time::Instant::now();
    let (outcome, text) = match (property.check)(ground) {
        Ok(()) => (Outcome::Pass, String::new()),
        Err(Failure::Skipped(why)) => (Outcome::Skip, why),
        Err(failure) => (Outcome::Fail, failure.to_string()),
    };
    let took_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    Verdict { property: property.name.to_owned(), outcome, text, took_ms }
}

/// Whether it holds; `seen` is for the message.
pub fn want(holds: bool, what: &str, seen: impl fmt::Debug) -> Checked {
    if holds { Ok(()) } else { Err(Failure::Violated(format!("{what}: {seen:?}"))) }
}

/// Whether two are the same.
pub fn same<A: PartialEq<B> + fmt::Debug, B: fmt::Debug>(
    what: &str,
    seen: A,
    wanted: B,
) -> Checked {
    if seen == wanted {
        return Ok(());
    }
    Err(Failure::Violated(format!("{what}: {seen:?}, wanted {wanted:?}")))
}

/// Whether a text contains another.
pub fn has(what: &str, text: &str, wanted: &str) -> Checked {
    if text.contains(wanted) {
        return Ok(());
    }
    Err(Failure::Violated(format!("{what}: {text:?} has no {wanted:?}")))
}

/// Whether a text does not contain another.
pub fn lacks(what: &str, text: &str, unwanted: &str) -> Checked {
    if !text.contains(unwanted) {
        return Ok(());
    }
    Err(Failure::Violated(format!("{what}: {text:?} has {unwanted:?}")))
}

/// The property cannot be looked at.
pub fn skip<T>(why: impl Into<String>) -> Checked<T> {
    Err(Failure::Skipped(why.into()))
}

/// A text as JSON.
pub fn json(text: &str) -> Checked<serde_json::Value> {
    serde_json::from_str(text).map_err(|_| Failure::Violated(format!("not JSON: {text:?}")))
}

/// A file of the machine, without white space at its end.
pub fn read(path: impl AsRef<Path>) -> Checked<String> {
    let path = path.as_ref();
    match std::fs::read(path) {
        Ok(data) => Ok(String::from_utf8_lossy(&data).trim_end().to_owned()),
        Err(error) => Err(Failure::Violated(format!("read {}: {error}", path.display()))),
    }
}

/// Writes a file of the machine and makes its directory.
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
    use crate::error::IoContext;
    let path = path.as_ref();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).context("create", dir.display())?;
    }
    std::fs::write(path, content).context("write", path.display())
}
