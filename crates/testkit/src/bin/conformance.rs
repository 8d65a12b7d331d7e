//! `conformance [--security] [--no-cgroups] [--long] [--only WORD] RUNTIME [WORD…]`: looks at the
//! properties of the OCI runtime specification with that runtime (`WORD…` come before its commands), or
//! attacks it, and writes a line of JSON for each. `--only` takes properties whose names contain the
//! word, `--long` takes no samples. It mounts a file system on `/run/conformance` of its mount
//! namespace, so run it in one of its own: `sandbox conformance /usr/sbin/runc`. Exit code 1 if anything
//! failed.
#![allow(clippy::print_stdout)] // its output is its purpose

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use testkit::Result;
use testkit::command::Cmd;
use testkit::oci::{Ground, Outcome, Property, Runtime, Verdict, properties, run, security};

const USAGE: &str =
    "usage: conformance [--security] [--no-cgroups] [--long] [--only WORD] RUNTIME [WORD…]";
const WORK: &str = "/run/conformance";

struct Wanted {
    properties: Vec<Property>,
    runtime: Runtime,
    long: bool,
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
    let (mut attacks, mut cgroups, mut long, mut only) = (false, true, false, None);
    while args.first().is_some_and(|arg| arg.starts_with("--")) {
        match args.remove(0).as_str() {
            "--security" => attacks = true,
            "--no-cgroups" => cgroups = false,
            "--long" => long = true,
            "--only" if !args.is_empty() => only = Some(args.remove(0)),
            _ => return None,
        }
    }
    let mut properties = if attacks { security::all() } else { properties::all() };
    properties.retain(|property| only.as_ref().is_none_or(|word| property.name.contains(word)));
    (!args.is_empty()).then_some(Wanted {
        properties,
        runtime: Runtime { argv: args, cgroups },
        long,
    })
}

/// Whether nothing failed.
fn conformance(wanted: Wanted) -> Result<bool> {
    if !Path::new(WORK).exists() {
        Cmd::host("mkdir", [WORK]).ok()?;
    }
    Cmd::host("mount", ["-t", "tmpfs", "-o", "mode=755", "conformance", WORK]).ok()?;
    let ground = Ground { runtime: wanted.runtime, work: WORK.into(), long: wanted.long };
    let failed = AtomicBool::new(false);
    let tell = |verdict: Verdict| {
        failed.fetch_or(verdict.outcome == Outcome::Fail, Ordering::Relaxed);
        let line = serde_json::json!(verdict);
        println!("{line}");
    };
    run(&ground, &wanted.properties, &tell);
    tell(nothing_left()?);
    Ok(!failed.into_inner())
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
