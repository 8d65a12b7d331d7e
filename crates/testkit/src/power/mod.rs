//! Power loss: what an engine wrote to its disk, request by request, cut at many places.
//!
//! A virtual machine (`scripts/vm`) does a work-load of random commands ([`plan`]) on a disk whose
//! writes qemu records ([`log`]). Before and after each command the guest writes a mark of 4096 bytes
//! behind the file system, past the page cache and without a flush, so that the marks stand among the
//! writes in the log and make nothing durable. A cut at a request then tells which commands had been
//! acknowledged, which one was under way, and which disks the cut may leave; on such a disk an engine is
//! started and looked over ([`check`]).
//!
//! What has to be there: the outcome of a command for which durability was promised (`docs/store.md`,
//! "What survives"), and with an image all that came before it; of the others when the store has
//! carried its journal to the disk and the file system has had its interval.

pub mod check;
pub mod guest;
pub mod log;
pub mod plan;

use crate::Result;
use log::{Cut, Log, Loss};
use plan::{Durable, Object, Plan, State};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Bytes of the file system; the marks lie behind it.
pub const FS_BYTES: u64 = 512 << 20;
/// Bytes of the whole disk.
pub const DISK_BYTES: u64 = FS_BYTES + (1 << 20);
/// How every mark begins.
pub const MARK: &str = "gantry-power-loss";
/// Bytes of a mark that are read.
const MARK_BYTES: usize = 64;

/// What the guest said at a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The index of the request in the log.
    pub entry: usize,
    /// The index of the command in the plan.
    pub command: usize,
    /// It was acknowledged; else it begins.
    pub acknowledged: bool,
}

/// All marks, in order.
///
/// # Errors
/// When the log cannot be read, or something else is written behind the file system.
pub fn marks(log: &Log) -> Result<Vec<Mark>> {
    let mut marks = Vec::new();
    for (i, entry) in log.entries.iter().enumerate() {
        if entry.at < FS_BYTES || entry.bytes == 0 {
            continue;
        }
        let data = log.data(i, MARK_BYTES)?;
        let text = String::from_utf8_lossy(&data).trim_end_matches(' ').to_owned();
        let fields: Vec<&str> = text.split_whitespace().collect();
        let mark = match fields[..] {
            [MARK, kind @ ("begin" | "done"), command] => command
                .parse()
                .ok()
                .map(|command| Mark { entry: i, command, acknowledged: kind == "done" }),
            _ => None,
        };
        marks.push(mark.ok_or_else(|| crate::Error::Parse {
            what: format!("request {i} of the log"),
            wanted: "a mark",
            found: text,
        })?);
    }
    Ok(marks)
}

/// How far the guest was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// So many commands were acknowledged.
    pub acknowledged: usize,
    /// The next one had begun.
    pub under_way: bool,
}

impl Progress {
    /// That at a cut in front of request `entries`.
    pub fn at(marks: &[Mark], entries: usize) -> Self {
        match marks.iter().take_while(|mark| mark.entry < entries).last() {
            None => Self { acknowledged: 0, under_way: false },
            Some(mark) => Self {
                acknowledged: mark.command + usize::from(mark.acknowledged),
                under_way: !mark.acknowledged,
            },
        }
    }
}

/// The states in which an object may be found; more than one where nothing was promised.
pub fn allowed(plan: &Plan, progress: Progress, object: &Object) -> Vec<Option<State>> {
    let mut states = vec![None];
    for command in &plan.commands[..progress.acknowledged] {
        for effect in command.effects.iter().filter(|effect| effect.object == *object) {
            if matches!(command.durable, Durable::All | Durable::Itself) {
                states.clear();
            }
            states.push(effect.state.clone());
        }
        if command.durable == Durable::All {
            states.drain(..states.len() - 1);
        }
    }
    if let Some(command) = plan.commands.get(progress.acknowledged).filter(|_| progress.under_way) {
        let effects = command.effects.iter().filter(|effect| effect.object == *object);
        states.extend(effects.map(|effect| effect.state.clone()));
    }
    states
}

/// So many cuts, seeded: half of them right behind an acknowledgement, the others anywhere; each with
/// all that was not flushed, with nothing, or with a part of it.
pub fn choose(log: &Log, marks: &[Mark], seed: u64, count: usize) -> Vec<Cut> {
    let mut rng = StdRng::seed_from_u64(seed);
    let acknowledged: Vec<usize> =
        marks.iter().filter(|mark| mark.acknowledged).map(|mark| mark.entry + 1).collect();
    let cuts = (0..count).map(|i| {
        let entries = match acknowledged.choose(&mut rng) {
            Some(entry) if i % 2 == 0 => *entry,
            _ => rng.random_range(0..=log.entries.len()),
        };
        let loss = match rng.random_range(0..5) {
            0 | 1 => Loss::All,
            2 => Loss::Nothing,
            _ => Loss::Some(rng.random()),
        };
        Cut { entries, loss }
    });
    cuts.collect()
}

#[cfg(test)]
mod tests {
    use super::plan::{Command, Effect};
    use super::*;

    fn command(durable: Durable, object: &Object, state: Option<State>) -> Command {
        let effects = vec![Effect { object: object.clone(), state }];
        Command { what: String::new(), script: String::new(), durable, effects }
    }

    #[test]
    fn what_is_allowed_follows_from_what_was_promised() {
        let (image, volume) = (Object::Image("i".into()), Object::Volume("v".into()));
        let there = || Some(State::default());
        let mut settle = command(Durable::All, &image, None);
        settle.effects.clear();
        let plan = Plan {
            seed: 0,
            commands: vec![
                command(Durable::All, &image, there()),
                command(Durable::Itself, &volume, there()),
                command(Durable::Later, &image, None),
                settle,
                command(Durable::Later, &volume, None),
            ],
        };
        let at = |acknowledged, under_way, object| {
            allowed(&plan, Progress { acknowledged, under_way }, object)
        };
        assert_eq!(at(0, false, &image), [None]);
        assert_eq!(at(0, true, &image), [None, there()]);
        assert_eq!(at(1, true, &image), [there()]);
        assert_eq!(at(1, true, &volume), [None, there()]);
        assert_eq!(at(2, true, &image), [there(), None]);
        assert_eq!(at(3, true, &image), [there(), None], "not settled yet");
        assert_eq!(at(4, false, &image), [None]);
        assert_eq!(at(5, false, &volume), [there(), None]);
        let marks = [(3, 0, false), (9, 0, true), (12, 1, false)]
            .map(|(entry, command, acknowledged)| Mark { entry, command, acknowledged });
        let progress = |entries| Progress::at(&marks, entries);
        assert_eq!(progress(3), Progress { acknowledged: 0, under_way: false });
        assert_eq!(progress(4), Progress { acknowledged: 0, under_way: true });
        assert_eq!(progress(10), Progress { acknowledged: 1, under_way: false });
        assert_eq!(progress(13), Progress { acknowledged: 1, under_way: true });
    }
}
