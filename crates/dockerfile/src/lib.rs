//! Dockerfiles as text: what they say, not what is done about it.
//!
//! Owns: the parser (directives, continuations, heredocs, all instructions and their flags), variable
//! expansion, build checks, the `.dockerignore` language, Go's path patterns. Does not own: any I/O,
//! any meaning of paths on disk, images, or the order in which steps run (`build` does).
//! No state, locks, tasks or files.

pub mod checks;
mod error;
pub mod expand;
pub mod glob;
pub mod ignore;
mod instruction;
mod lines;
pub mod mount;
mod parse;
#[cfg(test)]
mod tests;
mod words;

pub use error::{ParseError, ParseErrorKind, Suggestion};
pub use instruction::{
    AddOptions, Arg, Command, HealthTimes, Healthcheck, Heredoc, Instruction, Lines, Run, RunForm,
    RunNetwork, Transfer,
};
pub use lines::{FILE_BYTES, INSTRUCTIONS};
pub use parse::{exposed_ports, parse, parse_trigger};

/// Parser directives at the top of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    pub syntax: Option<String>,
    /// `\` or a backtick.
    pub escape: char,
    /// The value of `check=`, as written.
    pub check: Option<String>,
}

impl Default for Directives {
    fn default() -> Self {
        Self { syntax: None, escape: '\\', check: None }
    }
}

/// An instruction and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    pub instruction: Instruction,
    pub lines: Lines,
    /// The logical line, continuations joined: what docker prints after `Step n/m :`.
    pub text: String,
    /// The instruction's word as written.
    pub keyword: String,
}

/// FROM and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// In lower case: stage names have no case.
    pub name: Option<String>,
    pub written_name: Option<String>,
    pub as_word: Option<String>,
    /// Not yet expanded.
    pub base: String,
    /// Not yet expanded.
    pub platform: Option<String>,
    pub lines: Lines,
    pub text: String,
    pub keyword: String,
    pub instructions: Vec<Located>,
}

/// A parsed Dockerfile. It has at least one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    pub directives: Directives,
    /// ARG instructions before the first FROM.
    pub global_args: Vec<Located>,
    pub stages: Vec<Stage>,
    /// Lines that are blank inside a continuation.
    pub blank_continuations: Vec<u32>,
}

impl Dockerfile {
    /// The index of the stage that `name` means, by name or by number, among the first `before`.
    pub fn stage_before(&self, name: &str, before: usize) -> Option<usize> {
        let earlier = &self.stages[..before.min(self.stages.len())];
        let lower = name.to_lowercase();
        if let Some(index) = earlier.iter().rposition(|stage| stage.name.as_deref() == Some(&lower))
        {
            return Some(index);
        }
        name.parse::<usize>().ok().filter(|index| *index < earlier.len())
    }
}
