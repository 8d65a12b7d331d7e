//! `power-loss plan DIR [--seed N] [--rounds N]`: writes a work-load for a virtual machine into DIR/files.
//!
//! `power-loss check DIR [--seed N] [--cuts N] [--at CUT]… [--jobs N]`: cuts the log of that machine's
//! disk, DIR/log, at N places, and looks at an engine on each of the disks; CUT repeats one of them, as
//! a failure prints it. DIR/disk is the disk as it was at first. See `scripts/power-loss`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use testkit::power::check::{Bench, Case};
use testkit::power::log::{Cut, Log};
use testkit::power::{choose, guest, marks};
use testkit::{Result, random};

const USAGE: &str = "usage: power-loss plan DIR [--seed N] [--rounds N]
       power-loss check DIR [--seed N] [--cuts N] [--at CUT]… [--jobs N]";
/// More failures are not waited for.
const FAILURES: usize = 5;

struct Wanted {
    what: String,
    dir: PathBuf,
    seed: u64,
    rounds: usize,
    cuts: usize,
    at: Vec<Cut>,
    jobs: usize,
}

fn main() -> ExitCode {
    let Some(wanted) = parse(std::env::args().skip(1).collect()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let outcome = match wanted.what.as_str() {
        "plan" => guest::write(&wanted.dir.join("files"), wanted.seed, wanted.rounds).map(|plan| {
            eprintln!("power-loss: {} commands, seed {}", plan.commands.len(), wanted.seed);
            true
        }),
        _ => check(&wanted),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("power-loss: {error:?}");
            ExitCode::from(125)
        }
    }
}

fn parse(args: Vec<String>) -> Option<Wanted> {
    let mut args = args.into_iter();
    let what = args.next().filter(|what| what == "plan" || what == "check")?;
    let mut wanted = Wanted {
        what,
        dir: args.next()?.into(),
        seed: u64::from(random::number(0..u32::MAX)),
        rounds: 1,
        cuts: 10,
        at: Vec::new(),
        jobs: 2,
    };
    while let Some(option) = args.next() {
        let value = args.next()?;
        match option.as_str() {
            "--seed" => wanted.seed = value.parse().ok()?,
            "--rounds" => wanted.rounds = value.parse().ok()?,
            "--cuts" => wanted.cuts = value.parse().ok()?,
            "--jobs" => wanted.jobs = value.parse().ok()?,
            "--at" => wanted.at.push(Cut::parse(&value)?),
            _ => return None,
        }
    }
    Some(wanted)
}

/// Whether every cut was survived.
fn check(wanted: &Wanted) -> Result<bool> {
    let (files, disk) = (wanted.dir.join("files"), wanted.dir.join("disk"));
    let plan = guest::read_plan(&files)?;
    let log = Log::open(&wanted.dir.join("log"))?;
    let marks = marks(&log)?;
    let cuts = match wanted.at.is_empty() {
        true => choose(&log, &marks, wanted.seed, wanted.cuts),
        false => wanted.at.clone(),
    };
    eprintln!(
        "power-loss: {} requests, {} marks; {} cuts, seed {}",
        log.entries.len(),
        marks.len(),
        cuts.len(),
        wanted.seed
    );
    let case = Case { plan: &plan, log: &log, marks: &marks, files: &files, disk: &disk };
    let queue = Mutex::new(cuts.iter().rev().copied().collect::<Vec<_>>());
    let failed = Mutex::new(Vec::new());
    let broken: Vec<Result<()>> = std::thread::scope(|scope| {
        let jobs = 0..wanted.jobs.clamp(1, cuts.len().max(1));
        let jobs: Vec<_> = jobs.map(|_| scope.spawn(|| work(&case, &queue, &failed))).collect();
        jobs.into_iter().map(|job| job.join().expect("it does not panic")).collect()
    });
    let failed = failed.into_inner().expect("no thread has panicked");
    for error in broken {
        error?;
    }
    eprintln!("power-loss: {} cuts, {} failed", cuts.len(), failed.len());
    if !failed.is_empty() {
        let at: Vec<String> = failed.iter().map(|cut: &Cut| format!("--at {cut}")).collect();
        eprintln!("power-loss: again: power-loss check {} {}", wanted.dir.display(), at.join(" "));
    }
    Ok(failed.is_empty())
}

/// Takes cuts until none is left.
fn work(case: &Case<'_>, queue: &Mutex<Vec<Cut>>, failed: &Mutex<Vec<Cut>>) -> Result<()> {
    let next = || queue.lock().expect("no thread panics with it").pop();
    let mut bench = Bench::new(case)?;
    while let Some(cut) = next() {
        if let Err(error) = bench.check(cut) {
            eprintln!("power-loss: cut {cut}: {error:?}");
            let mut failed = failed.lock().expect("no thread panics with it");
            failed.push(cut);
            if failed.len() >= FAILURES {
                queue.lock().expect("no thread panics with it").clear();
            }
            drop(failed);
            // It may have all kinds of things mounted.
            bench.close()?;
            bench = Bench::new(case)?;
        }
    }
    bench.close()
}
