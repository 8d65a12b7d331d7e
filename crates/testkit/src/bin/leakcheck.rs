//! `leakcheck snapshot FILE` before a run, `leakcheck compare FILE` after it: exit 0 when the machine
//! is as it was, 1 with the difference otherwise, 2 on any other failure. `--ignore WORD` (with
//! `snapshot`, repeatable) leaves out what contains the word.
#![allow(clippy::print_stdout)] // its output is its purpose

use std::process::ExitCode;
use testkit::leak::{SETTLE, Scope, Snapshot, View};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["snapshot", file, rest @ ..] => snapshot(file, rest),
        ["compare", file] => compare(file),
        _ => Err("usage: leakcheck snapshot FILE [--ignore WORD]… | compare FILE".to_owned()),
    };
    result.unwrap_or_else(|message| {
        eprintln!("leakcheck: {message}");
        ExitCode::from(2)
    })
}

fn snapshot(file: &str, options: &[&str]) -> Result<ExitCode, String> {
    let mut scope = Scope::machine().ignoring(file);
    for pair in options.chunks(2) {
        match pair {
            ["--ignore", word] => scope = scope.ignoring(*word),
            _ => return Err(format!("unknown: {}", pair.join(" "))),
        }
    }
    let seen = Snapshot::take(View::Machine, &scope).map_err(|error| format!("{error:?}"))?;
    let text = serde_json::to_string(&seen).map_err(|error| format!("{file}: {error}"))?;
    std::fs::write(file, text).map_err(|error| format!("{file}: {error}"))?;
    Ok(ExitCode::SUCCESS)
}

fn compare(file: &str) -> Result<ExitCode, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let before: Snapshot =
        serde_json::from_str(&text).map_err(|error| format!("{file}: {error}"))?;
    let difference = before.compare(View::Machine, SETTLE).map_err(|error| format!("{error:?}"))?;
    if difference.is_empty() {
        println!("leakcheck: the machine is as it was");
        return Ok(ExitCode::SUCCESS);
    }
    print!("leakcheck: the machine is not as it was\n{difference}");
    Ok(ExitCode::FAILURE)
}
