//! Checks and chores of the source tree.
//!
//! `cargo xtask tidy [--ratchet] [--binary FILE]` holds the tree against `xtask/tidy.toml` and
//! `deny.toml`: edges between crates, licences, lengths of files and functions, forbidden words of
//! code, and that the built binary is static.
#![allow(clippy::print_stdout)] // its output is its purpose

mod binary;
mod config;
mod edges;
mod licences;
mod prose;
mod ratchet;
mod source;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &[&str]) -> Result<ExitCode> {
    let Some(("tidy", mut rest)) = args.split_first().map(|(name, rest)| (*name, rest)) else {
        bail!("usage: cargo xtask tidy [--ratchet] [--binary FILE]");
    };
    let (mut lower, mut binary) = (false, None);
    while let Some((option, after)) = rest.split_first() {
        rest = after;
        match (*option, rest.split_first()) {
            ("--ratchet", _) => lower = true,
            ("--binary", Some((file, after))) => {
                binary = Some(PathBuf::from(file));
                rest = after;
            }
            _ => bail!("unknown or incomplete option {option}"),
        }
    }
    tidy(lower, binary)
}

fn tidy(lower: bool, binary: Option<PathBuf>) -> Result<ExitCode> {
    let top = top();
    let config = config::Config::read(&top)?;
    let metadata = metadata(&top)?;
    let files = source::files(&top)?;

    let mut complaints = edges::check(&config, &metadata)?;
    complaints.extend(licences::check(&top, &metadata)?);
    complaints.extend(source::check_words(&files));
    complaints.extend(prose::check(&top)?);
    let long = source::long_places(&config, &files);
    if lower {
        ratchet::lower(&top, &config, &long)?;
    }
    complaints.extend(ratchet::check(&config::Config::read(&top)?, &long));
    let binary = binary.or_else(|| binary::last_built(&top));
    match &binary {
        Some(file) => complaints.extend(binary::check(file, &config)?),
        None => println!("tidy: skipped 1 check: no binary is built"),
    }

    complaints.sort();
    for complaint in &complaints {
        println!("{complaint}");
    }
    let count = files.len();
    if complaints.is_empty() {
        println!("tidy: {count} source files, all in order");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("tidy: {} complaints over {count} source files", complaints.len());
        Ok(ExitCode::FAILURE)
    }
}

fn top() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or_else(|| own.to_path_buf(), Path::to_path_buf)
}

/// What cargo knows of the packages and what they use on Linux. What other systems would need is not
/// fetched.
fn metadata(top: &Path) -> Result<serde_json::Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .args(["--filter-platform", "aarch64-unknown-linux-gnu"])
        .current_dir(top)
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("read what cargo metadata printed")
}
