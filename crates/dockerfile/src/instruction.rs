//! What instructions say, before variables are replaced.

use serde::{Deserialize, Serialize};

use crate::expand::{ExpandError, Expander};

/// Lines of a file, from 1, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    pub start: u32,
    pub end: u32,
}

/// A heredoc with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter, which is also the file's name for COPY and ADD.
    pub name: String,
    /// The body as written, each line with its newline.
    pub content: String,
    /// Variables are replaced (the delimiter was not quoted).
    pub expand: bool,
    /// `<<-`: leading tabs are dropped.
    pub strip_tabs: bool,
}

impl Heredoc {
    /// The body without leading tabs where `<<-` asks for it.
    pub fn text(&self) -> String {
        if !self.strip_tabs {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// Shell form or exec form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Shell(String),
    Exec(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg {
    pub name: String,
    pub default: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunNetwork {
    #[default]
    Default,
    None,
    Host,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    pub heredocs: Vec<Heredoc>,
    /// Values of `--mount`, as written; see [`crate::mount::parse`].
    pub mounts: Vec<String>,
    pub network: RunNetwork,
    /// `--security=insecure`
    pub insecure: bool,
    pub devices: Vec<String>,
}

/// What RUN executes once heredocs are put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunForm {
    /// For the stage's shell.
    Shell(String),
    Exec(Vec<String>),
    /// A sole heredoc with a `#!` line: a file to execute.
    Script {
        name: String,
        content: String,
    },
}

impl Run {
    /// BuildKit's rules: a sole heredoc is the script itself; with other text the line and its
    /// heredocs are given to the shell as they stand.
    pub fn form(&self) -> RunForm {
        let line = match &self.command {
            Command::Exec(args) => return RunForm::Exec(args.clone()),
            Command::Shell(line) => line,
        };
        match self.heredocs.as_slice() {
            [] => RunForm::Shell(line.clone()),
            [only]
                if line.trim().starts_with("<<") && !line.trim().contains(char::is_whitespace) =>
            {
                let content = only.text();
                if content.starts_with("#!") {
                    RunForm::Script { name: only.name.clone(), content }
                } else {
                    RunForm::Shell(content)
                }
            }
            several => {
                let mut text = format!("{line}\n");
                for heredoc in several {
                    text.push_str(&heredoc.content);
                    text.push_str(&heredoc.name);
                    text.push('\n');
                }
                RunForm::Shell(text)
            }
        }
    }
}

/// ADD's own flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddOptions {
    pub keep_git_dir: bool,
    pub checksum: Option<String>,
    /// `None`: local archives yes, URLs no.
    pub unpack: Option<bool>,
}

/// COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Paths and patterns, without heredocs.
    pub sources: Vec<String>,
    pub heredocs: Vec<Heredoc>,
    pub dest: String,
    /// Stage, index, named context or image; never expanded.
    pub from: Option<String>,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    pub link: bool,
    pub parents: bool,
    pub exclude: Vec<String>,
    /// `Some`: it is ADD.
    pub add: Option<AddOptions>,
}

/// Times in nanoseconds; `None`: not given, the default of whoever runs the check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthTimes {
    pub interval: Option<i64>,
    pub timeout: Option<i64>,
    pub start_period: Option<i64>,
    pub start_interval: Option<i64>,
    pub retries: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    None,
    Command { command: Command, times: HealthTimes },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    Run(Run),
    Copy(Transfer),
    Add(Transfer),
    Env(Vec<(String, String)>),
    Arg(Vec<Arg>),
    Label(Vec<(String, String)>),
    Workdir(String),
    User(String),
    Cmd(Command),
    Entrypoint(Command),
    /// Ports as written: `80`, `80/tcp`, `8000-8010/udp`.
    Expose(Vec<String>),
    Volume(Vec<String>),
    Shell(Vec<String>),
    StopSignal(String),
    Healthcheck(Healthcheck),
    /// The trigger's text.
    Onbuild(String),
    Maintainer(String),
}

impl Instruction {
    /// The word in upper case.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Run(_) => "RUN",
            Self::Copy(_) => "COPY",
            Self::Add(_) => "ADD",
            Self::Env(_) => "ENV",
            Self::Arg(_) => "ARG",
            Self::Label(_) => "LABEL",
            Self::Workdir(_) => "WORKDIR",
            Self::User(_) => "USER",
            Self::Cmd(_) => "CMD",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Expose(_) => "EXPOSE",
            Self::Volume(_) => "VOLUME",
            Self::Shell(_) => "SHELL",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Onbuild(_) => "ONBUILD",
            Self::Maintainer(_) => "MAINTAINER",
        }
    }

    /// Replaces variables and removes quotes, in the instructions where docker does so: not in RUN,
    /// CMD, ENTRYPOINT, SHELL, HEALTHCHECK, ONBUILD and MAINTAINER, nor in `--from`. ARG is left to
    /// the caller, as each default sees the arguments before it.
    ///
    /// # Errors
    /// [`ExpandError`]
    pub fn expand(&self, expander: &mut Expander<'_>) -> Result<Self, ExpandError> {
        Ok(match self {
            Self::Copy(transfer) => Self::Copy(transfer.expand(expander)?),
            Self::Add(transfer) => Self::Add(transfer.expand(expander)?),
            Self::Env(pairs) => Self::Env(expand_pairs(pairs, expander)?),
            Self::Label(pairs) => Self::Label(expand_pairs(pairs, expander)?),
            Self::Workdir(path) => Self::Workdir(expander.text(path)?),
            Self::User(user) => Self::User(expander.text(user)?),
            Self::StopSignal(signal) => Self::StopSignal(expander.text(signal)?),
            Self::Expose(ports) => {
                let mut out = Vec::new();
                for port in ports {
                    out.extend(expander.words(port)?);
                }
                Self::Expose(out)
            }
            Self::Volume(paths) => Self::Volume(expand_all(paths, expander)?),
            Self::Run(_)
            | Self::Arg(_)
            | Self::Cmd(_)
            | Self::Entrypoint(_)
            | Self::Shell(_)
            | Self::Healthcheck(_)
            | Self::Onbuild(_)
            | Self::Maintainer(_) => self.clone(),
        })
    }
}

impl Transfer {
    fn expand(&self, expander: &mut Expander<'_>) -> Result<Self, ExpandError> {
        let mut out = self.clone();
        out.sources = expand_all(&self.sources, expander)?;
        out.exclude = expand_all(&self.exclude, expander)?;
        out.dest = expander.text(&self.dest)?;
        for field in [&mut out.chown, &mut out.chmod].into_iter().flatten() {
            *field = expander.text(field)?;
        }
        for heredoc in &mut out.heredocs {
            heredoc.content = heredoc.text();
            heredoc.strip_tabs = false;
            if heredoc.expand {
                heredoc.content = expander.heredoc(&heredoc.content)?;
            }
        }
        if let Some(checksum) = out.add.as_mut().and_then(|add| add.checksum.as_mut()) {
            *checksum = expander.text(checksum)?;
        }
        Ok(out)
    }
}

fn expand_all(texts: &[String], expander: &mut Expander<'_>) -> Result<Vec<String>, ExpandError> {
    texts.iter().map(|text| expander.text(text)).collect()
}

fn expand_pairs(
    pairs: &[(String, String)],
    expander: &mut Expander<'_>,
) -> Result<Vec<(String, String)>, ExpandError> {
    pairs.iter().map(|(name, value)| Ok((expander.text(name)?, expander.text(value)?))).collect()
}
