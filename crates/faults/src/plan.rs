use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write as _},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use rustix::{io::Errno, process::Signal};

const UNREAD: u8 = 0;
const IDLE: u8 = 1;
const PLANNED: u8 = 2;

/// Whether there is a plan to look at.
static STATE: AtomicU8 = AtomicU8::new(UNREAD);
static PLAN: Mutex<Option<Plan>> = Mutex::new(None);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Step,
    Write,
    Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Fail(Errno),
}

#[derive(Debug, PartialEq, Eq)]
struct Fault {
    name: String,
    nth: u64,
    /// And every pass after that.
    on: bool,
    action: Action,
}

#[derive(Default)]
struct Plan {
    faults: Vec<Fault>,
    /// Passes by name; of all under `*`, of writes under `*w`, of reads under `*r`.
    passes: HashMap<String, u64>,
    trace: Option<File>,
    fired: u64,
}

/// Lets faults happen in this process from now on, in place of those before; the passes are counted anew.
///
/// # Errors
/// What is wrong with `spec`, which has the form of `GANTRY_FAULT`.
pub fn arm(spec: &str) -> Result<(), String> {
    let faults = parse(spec)?;
    *lock() = Some(Plan { faults, ..Plan::default() });
    STATE.store(PLANNED, Ordering::Release);
    Ok(())
}

/// No more faults; answers how many have happened since [`arm`].
pub fn disarm() -> u64 {
    STATE.store(IDLE, Ordering::Release);
    lock().take().map_or(0, |plan| plan.fired)
}

/// How many faults have happened since [`arm`].
pub fn fired() -> u64 {
    lock().as_ref().map_or(0, |plan| plan.fired)
}

#[inline]
pub(crate) fn at(name: &str, place: Place) -> Option<io::Error> {
    match STATE.load(Ordering::Relaxed) {
        IDLE => None,
        _ => planned(name, place),
    }
}

#[cold]
fn planned(name: &str, place: Place) -> Option<io::Error> {
    let mut plan = lock();
    if plan.is_none() && STATE.load(Ordering::Acquire) == UNREAD {
        *plan = from_environment();
        STATE.store(if plan.is_some() { PLANNED } else { IDLE }, Ordering::Release);
    }
    let action = plan.as_mut()?.passed(name, place)?;
    drop(plan);
    match action {
        Action::Fail(errno) => Some(errno.into()),
        Action::Kill => {
            let killed = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
            assert!(killed.is_ok(), "a process may always kill itself: {killed:?}");
            loop {
                std::thread::park();
            }
        }
    }
}

fn lock() -> MutexGuard<'static, Option<Plan>> {
    PLAN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The plan that the environment has. A wrong one ends the process: a test that plans nothing must not
/// pass.
fn from_environment() -> Option<Plan> {
    let spec = std::env::var("GANTRY_FAULT").unwrap_or_default();
    let trace = std::env::var_os("GANTRY_FAULT_TRACE");
    if spec.is_empty() && trace.is_none() {
        return None;
    }
    let faults = match parse(&spec) {
        Ok(faults) => faults,
        Err(error) => panic!("GANTRY_FAULT: {error}"),
    };
    let open = |path: std::ffi::OsString| {
        let file = File::options().append(true).create(true).open(&path);
        file.unwrap_or_else(|error| panic!("GANTRY_FAULT_TRACE {}: {error}", path.display()))
    };
    Some(Plan { faults, trace: trace.map(open), ..Plan::default() })
}

fn parse(spec: &str) -> Result<Vec<Fault>, String> {
    let one = |text: &str| {
        let wrong = || format!("{text:?} is not of the form NAME:N[+]:ACTION");
        let [name, count, action] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(wrong());
        };
        let (count, on) = count.strip_suffix('+').map_or((count, false), |count| (count, true));
        let nth = count.parse().map_err(|_| wrong())?;
        let action = match action {
            "kill" => Action::Kill,
            "enospc" => Action::Fail(Errno::NOSPC),
            "eio" => Action::Fail(Errno::IO),
            "emfile" => Action::Fail(Errno::MFILE),
            _ => return Err(wrong()),
        };
        Ok(Fault { name: name.into(), nth, on, action })
    };
    spec.split(',').filter(|text| !text.is_empty()).map(one).collect()
}

impl Plan {
    fn passed(&mut self, name: &str, place: Place) -> Option<Action> {
        let names = match place {
            Place::Step => &[name, "*"][..],
            Place::Write => &[name, "*", "*w"][..],
            Place::Read => &[name, "*", "*r"][..],
        };
        for name in names {
            *self.passes.entry((*name).to_string()).or_default() += 1;
        }
        if let Some(trace) = &mut self.trace {
            let kind = match place {
                Place::Step => 'p',
                Place::Write => 'w',
                Place::Read => 'r',
            };
            // One write for each, so that the lines of several threads do not mix.
            if let Err(error) = trace.write_all(format!("{kind} {name}\n").as_bytes()) {
                panic!("GANTRY_FAULT_TRACE: {error}");
            }
        }
        let here = self.faults.iter().find(|fault| {
            let passes = self.passes.get(&fault.name).copied().unwrap_or(0);
            let due = if fault.on { passes >= fault.nth } else { passes == fault.nth };
            let fits = fault.action == Action::Kill || place != Place::Step;
            names.contains(&fault.name.as_str()) && due && fits
        })?;
        self.fired += 1;
        Some(here.action)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn plan(spec: &str) -> Plan {
        Plan { faults: parse(spec).unwrap(), ..Plan::default() }
    }

    #[test]
    fn the_nth_pass_of_a_name() {
        let mut plan = plan("a:2:enospc,b:1+:eio");
        assert_eq!(plan.passed("a", Place::Write), None);
        assert_eq!(plan.passed("a", Place::Write), Some(Action::Fail(Errno::NOSPC)));
        assert_eq!(plan.passed("a", Place::Write), None);
        for _ in 0..3 {
            assert_eq!(plan.passed("b", Place::Write), Some(Action::Fail(Errno::IO)));
        }
        assert_eq!(plan.fired, 4);
    }

    #[test]
    fn a_step_only_dies() {
        let mut one = plan("a:1+:enospc,*:3:kill");
        assert_eq!(one.passed("a", Place::Step), None);
        assert_eq!(one.passed("b", Place::Write), None);
        assert_eq!(one.passed("c", Place::Step), Some(Action::Kill));
        let mut writes = plan("*w:2:emfile");
        assert_eq!(writes.passed("a", Place::Write), None);
        assert_eq!(writes.passed("b", Place::Step), None);
        assert_eq!(writes.passed("c", Place::Read), None);
        assert_eq!(writes.passed("d", Place::Write), Some(Action::Fail(Errno::MFILE)));
        let mut reads = plan("*r:2:eio");
        assert_eq!(reads.passed("a", Place::Read), None);
        assert_eq!(reads.passed("b", Place::Write), None);
        assert_eq!(reads.passed("c", Place::Read), Some(Action::Fail(Errno::IO)));
    }

    #[test]
    fn what_is_no_plan_is_refused() {
        for spec in ["a", "a:1", "a:x:kill", "a:1:die", "a:1:kill:x", ":"] {
            assert!(parse(spec).is_err(), "{spec}");
        }
        assert_eq!(parse("").unwrap(), Vec::new());
    }
}
