//! `conformance [--security] [--no-cgroups] [--long] [--only WORD]… [--as NAME --list FILE…
//! [--skips FILE]] RUNTIME [WORD…]`: looks at the properties of the OCI runtime specification with that runtime (`WORD…` come
//! before its commands), or attacks it, and writes a line of JSON for each. `--only` takes properties
//! whose names contain one of the words, `--long` takes no samples. With lists of known differences it
//! writes, in the end, what is not as listed for NAME, and how many properties hold, on standard error,
//! and only what is not listed counts as failed; a later list overrules an earlier one. What is skipped
//! counts as failed too, unless the list of `--skips` says what the machine lacks for it. It mounts a file system on `/run/conformance` of its mount
//! namespace, so run it in one of its own: `sandbox conformance /usr/sbin/runc`. Exit code 1 if anything
//! failed.
#![allow(clippy::print_stdout)] // its output is its purpose

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use testkit::Result;
use testkit::command::Cmd;
use testkit::oci::{Ground, Outcome, Property, Runtime, Verdict, list, properties, run, security};

const USAGE: &str = "usage: conformance [--security] [--no-cgroups] [--long] [--only WORD]… \
    [--as NAME --list FILE… [--skips FILE]] RUNTIME [WORD…]";
const WORK: &str = "/run/conformance";

struct Wanted {
    properties: Vec<Property>,
    runtime: Runtime,
    long: bool,
    /// The runtime's name in the lists of known differences, and these.
    name: String,
    lists: Vec<String>,
    /// The list of what may be skipped where.
    skips: Option<String>,
}

fn main() -> ExitCode {
    let Some(wanted) = parse(std::env::args().skip(1).collect()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match conformance(wanted) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("conformance: {error:?}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut args: Vec<String>) -> Option<Wanted> {
    let (mut attacks, mut cgroups, mut long) = (false, true, false);
    let (mut only, mut name, mut lists) = (Vec::new(), String::new(), Vec::new());
    let mut skips = None;
    while args.first().is_some_and(|arg| arg.starts_with("--")) {
        match args.remove(0).as_str() {
            "--security" => attacks = true,
            "--no-cgroups" => cgroups = false,
            "--long" => long = true,
            "--only" if !args.is_empty() => only.push(args.remove(0)),
            "--as" if !args.is_empty() => name = args.remove(0),
            "--list" if !args.is_empty() => lists.push(args.remove(0)),
            "--skips" if !args.is_empty() => skips = Some(args.remove(0)),
            _ => return None,
        }
    }
    let mut properties = if attacks { security::all() } else { properties::all() };
    properties.retain(|property| {
        only.is_empty() || only.iter().any(|word| property.name.contains(word.as_str()))
    });
    // A word that no property has would hold without a look at anything.
    (!args.is_empty() && !properties.is_empty()).then_some(Wanted {
        properties,
        runtime: Runtime { argv: args, cgroups },
        long,
        name,
        lists,
        skips,
    })
}

/// Whether nothing failed.
fn conformance(wanted: Wanted) -> Result<bool> {
    if !Path::new(WORK).exists() {
        Cmd::host("mkdir", [WORK]).ok()?;
    }
    Cmd::host("mount", ["-t", "tmpfs", "-o", "mode=755", "conformance", WORK]).ok()?;
    let ground = Ground { runtime: wanted.runtime, work: WORK.into(), long: wanted.long };
    let seen = Mutex::new(Vec::new());
    let tell = |verdict: Verdict| {
        let line = serde_json::json!(verdict);
        println!("{line}");
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(verdict);
    };
    run(&ground, &wanted.properties, &tell);
    tell(nothing_left()?);
    let verdicts = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    if wanted.lists.is_empty() {
        return Ok(verdicts.iter().all(|verdict| verdict.outcome != Outcome::Fail));
    }
    judged(&wanted.name, &wanted.lists, wanted.skips.as_deref(), &verdicts).or_else(|wrong| {
        eprintln!("conformance: the lists of known differences: {wrong}");
        Ok(false)
    })
}

/// Whether everything is as the lists say; what is not goes to standard error.
fn judged(
    name: &str,
    lists: &[String],
    skips: Option<&str>,
    verdicts: &[Verdict],
) -> std::result::Result<bool, String> {
    let text =
        |path: &str| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let texts = lists.iter().map(|path| text(path)).collect::<std::result::Result<Vec<_>, _>>()?;
    let known = list::known(&texts, name)?;
    let skips = list::skips(&skips.map_or(Ok(String::new()), text)?)?;
    let complaints = list::complaints(verdicts, &known, &skips);
    for complaint in &complaints {
        eprintln!("{name}: {complaint}");
    }
    let count = |outcome| verdicts.iter().filter(|verdict| verdict.outcome == outcome).count();
    eprintln!(
        "{name}: {} properties hold, {} do not, {} skipped, {} not as listed",
        count(Outcome::Pass),
        count(Outcome::Fail),
        count(Outcome::Skip),
        complaints.len()
    );
    Ok(complaints.is_empty())
}

/// Once all containers are gone nothing uses their file system: no process, no mount.
fn nothing_left() -> Result<Verdict> {
    let mut verdict = Verdict {
        property: "suite/nothing-left".to_owned(),
        outcome: Outcome::Pass,
        text: String::new(),
        took_ms: 0,
    };
    if Cmd::host("umount", [WORK]).output()?.code() == 0 {
        Cmd::host("rmdir", [WORK]).ok()?;
        return Ok(verdict);
    }
    let processes = Cmd::host("ps", ["-eo", "pid,ppid,args"]).ok()?.text();
    let mounts = Cmd::host("grep", [WORK, "/proc/self/mountinfo"]).output()?.text();
    verdict.outcome = Outcome::Fail;
    verdict.text = format!("{WORK} is in use by one of\n{processes}\n{mounts}");
    Ok(verdict)
}
