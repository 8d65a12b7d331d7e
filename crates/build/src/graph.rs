//! Which stages a target needs, and how its steps are counted.

use std::collections::BTreeSet;

use dockerfile::{Dockerfile, Instruction, Located, expand::Expander, mount::MountKind};

use crate::{
    error::{Error, Result},
    vars::Globals,
};

/// What a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BaseOf {
    Scratch,
    Stage(usize),
    Image(String),
}

/// The stages of a file with their bases known, and those that count.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) target: usize,
    pub(crate) bases: Vec<BaseOf>,
    pub(crate) needed: BTreeSet<usize>,
    /// Number of each needed stage's FROM.
    first_step: Vec<usize>,
    pub(crate) total: usize,
}

impl Plan {
    /// # Errors
    /// An unknown target, a base without a name, references to later stages.
    pub(crate) fn new(file: &Dockerfile, target: Option<&str>, globals: &Globals) -> Result<Self> {
        let target = target_index(file, target)?;
        let mut bases = Vec::with_capacity(file.stages.len());
        for (index, stage) in file.stages.iter().enumerate() {
            let name = globals.expand_from(&stage.base, stage.lines.start)?;
            bases.push(match name.as_str() {
                "" => return Err(Error::BlankBase(stage.base.clone())),
                name => match file.stage_before(name, index).filter(|_| !is_number(name)) {
                    Some(earlier) => BaseOf::Stage(earlier),
                    None if name.eq_ignore_ascii_case("scratch") => BaseOf::Scratch,
                    None => BaseOf::Image(name.into()),
                },
            });
        }
        let mut needed = BTreeSet::new();
        let mut pending = vec![target];
        while let Some(index) = pending.pop() {
            if !needed.insert(index) {
                continue;
            }
            if let BaseOf::Stage(base) = bases[index] {
                pending.push(base);
            }
            for located in &file.stages[index].instructions {
                for from in references(located, file.directives.escape) {
                    pending.extend(stage_of(file, &from, index)?);
                }
            }
        }
        let mut first_step = vec![0; file.stages.len()];
        let mut total = 0;
        for index in &needed {
            first_step[*index] = total + 1;
            total += 1 + file.stages[*index].instructions.len();
        }
        Ok(Self { target, bases, needed, first_step, total })
    }

    /// `Step n/m` of an instruction; 0 is FROM. `None` in a stage that only a trigger called for.
    pub(crate) fn number(&self, stage: usize, instruction: usize) -> Option<usize> {
        self.needed.contains(&stage).then(|| self.first_step[stage] + instruction)
    }
}

fn is_number(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_digit())
}

fn target_index(file: &Dockerfile, target: Option<&str>) -> Result<usize> {
    let count = file.stages.len();
    match target.filter(|target| !target.is_empty()) {
        None => Ok(count - 1),
        Some(target) => {
            file.stage_before(target, count).ok_or_else(|| Error::NoTarget(target.into()))
        }
    }
}

/// The earlier stage that a `from` names; `None` if it names an image.
///
/// # Errors
/// [`Error::LaterStage`] for a number that is not an earlier stage's.
pub(crate) fn stage_of(file: &Dockerfile, from: &str, before: usize) -> Result<Option<usize>> {
    match file.stage_before(from, before) {
        Some(index) => Ok(Some(index)),
        None if is_number(from) => Err(Error::LaterStage(from.into())),
        None => Ok(None),
    }
}

/// The `from` of a COPY and of a RUN's mounts.
pub(crate) fn references(located: &Located, escape: char) -> Vec<String> {
    match &located.instruction {
        Instruction::Copy(transfer) | Instruction::Add(transfer) => {
            transfer.from.iter().cloned().collect()
        }
        Instruction::Run(run) => {
            let nothing = |_: &str| Some(String::from("x"));
            let mut expander = Expander::new(escape, &nothing);
            let mounts = run.mounts.iter();
            mounts
                .filter_map(|text| match dockerfile::mount::parse(text, &mut expander).ok()?.kind {
                    MountKind::Bind { from, .. } => from,
                    MountKind::Cache(cache) => cache.from,
                    _ => None,
                })
                .collect()
        }
        _ => Vec::new(),
    }
}
