//! Build checks: advice on what works but should be written otherwise.

use std::collections::BTreeSet;

use crate::{Command, Dockerfile, Instruction, Located, Stage, expand::Expander};

/// One finding. The rule names are those of docker's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub rule: &'static str,
    pub message: String,
    /// First line of the instruction.
    pub line: u32,
}

/// Rules left out by the `check` directive, and whether findings fail the build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    pub skip: Vec<String>,
    pub skip_all: bool,
    pub error: bool,
}

impl CheckOptions {
    /// Reads `skip=A,B;error=true` or `skip=all`.
    pub fn parse(text: &str) -> Self {
        let mut options = Self::default();
        for part in text.split(';') {
            match part.trim().split_once('=') {
                Some(("skip", "all")) => options.skip_all = true,
                Some(("skip", rules)) => {
                    options.skip.extend(rules.split(',').map(|rule| rule.trim().to_string()));
                }
                Some(("error", value)) => options.error = value == "true",
                _ => {}
            }
        }
        options
    }
}

/// Platform arguments that a stage may declare without a default.
const PLATFORM_ARGS: &[&str] = &[
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDARCH",
    "BUILDVARIANT",
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETARCH",
    "TARGETVARIANT",
    "TARGETSTAGE",
];

/// Checks a file; the rules that need an image or a context are not among these.
pub fn check(file: &Dockerfile) -> Vec<Warning> {
    let options = file.directives.check.as_deref().map(CheckOptions::parse).unwrap_or_default();
    if options.skip_all {
        return Vec::new();
    }
    let mut found = Vec::new();
    file_rules(file, &mut found);
    stage_rules(file, &mut found);
    for stage in &file.stages {
        instruction_rules(stage, file, &mut found);
        repeated(stage, &mut found);
    }
    found.retain(|warning| !options.skip.iter().any(|skip| skip == warning.rule));
    found.sort_by_key(|warning| warning.line);
    found
}

fn warn(found: &mut Vec<Warning>, rule: &'static str, line: u32, message: String) {
    found.push(Warning { rule, message, line });
}

fn file_rules(file: &Dockerfile, found: &mut Vec<Warning>) {
    for line in &file.blank_continuations {
        let message = "Empty continuation line found in a multi-line instruction".to_string();
        warn(found, "NoEmptyContinuation", *line, message);
    }
    let keywords: Vec<(&str, u32)> = file
        .stages
        .iter()
        .flat_map(|stage| {
            let own = stage.instructions.iter().map(|one| (one.keyword.as_str(), one.lines.start));
            std::iter::once((stage.keyword.as_str(), stage.lines.start)).chain(own)
        })
        .collect();
    let upper = keywords.iter().filter(|(word, _)| word.to_uppercase() == *word).count();
    let lower = keywords.iter().filter(|(word, _)| word.to_lowercase() == *word).count();
    let want_upper = upper >= lower;
    for (word, line) in keywords {
        let wanted = if want_upper { word.to_uppercase() } else { word.to_lowercase() };
        if word != wanted {
            let case = if want_upper { "uppercase" } else { "lowercase" };
            let message =
                format!("Command '{word}' should match the case of the command majority ({case})");
            warn(found, "ConsistentInstructionCasing", line, message);
        }
    }
}

fn stage_rules(file: &Dockerfile, found: &mut Vec<Warning>) {
    let mut seen = BTreeSet::new();
    let globals: BTreeSet<&str> = file
        .global_args
        .iter()
        .filter_map(|one| match &one.instruction {
            Instruction::Arg(args) => Some(args.iter().map(|arg| arg.name.as_str())),
            _ => None,
        })
        .flatten()
        .chain(PLATFORM_ARGS.iter().copied())
        .collect();
    for stage in &file.stages {
        let line = stage.lines.start;
        if let (Some(name), Some(written)) = (&stage.name, &stage.written_name) {
            if name != written {
                let message = format!("Stage name '{written}' should be lowercase");
                warn(found, "StageNameCasing", line, message);
            }
            if matches!(name.as_str(), "scratch" | "context") {
                let message =
                    format!("Stage name should not use the same name as reserved stage \"{name}\"");
                warn(found, "ReservedStageName", line, message);
            }
            if !seen.insert(name.clone()) {
                let message =
                    format!("Duplicate stage name {name:?}, stage names should be unique");
                warn(found, "DuplicateStageName", line, message);
            }
        }
        if let Some(word) = &stage.as_word
            && (word.to_uppercase() == *word) != (stage.keyword.to_uppercase() == stage.keyword)
        {
            let message = format!("'{word}' and '{}' keywords' casing do not match", stage.keyword);
            warn(found, "FromAsCasing", line, message);
        }
        match stage.platform.as_deref() {
            Some("$TARGETPLATFORM" | "${TARGETPLATFORM}") => {
                let message = "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior".to_string();
                warn(found, "RedundantTargetPlatform", line, message);
            }
            Some(text) if !text.contains('$') => {
                let message =
                    format!("FROM --platform flag should not use constant value \"{text}\"");
                warn(found, "FromPlatformFlagConstDisallowed", line, message);
            }
            _ => {}
        }
        for name in names_in(&stage.base, file.directives.escape) {
            if !globals.contains(name.as_str()) {
                let message = format!("FROM argument '{name}' is not declared");
                warn(found, "UndefinedArgInFrom", line, message);
            }
        }
    }
}

/// Variables in a text that have no default there.
fn names_in(text: &str, escape: char) -> Vec<String> {
    let nothing = |_: &str| None;
    let mut expander = Expander::new(escape, &nothing);
    match expander.text(text) {
        Ok(_) => expander.unset().iter().cloned().collect(),
        Err(_) => Vec::new(),
    }
}

fn instruction_rules(stage: &Stage, file: &Dockerfile, found: &mut Vec<Warning>) {
    let mut shell_set = false;
    let mut workdir_set = false;
    for one in &stage.instructions {
        let line = one.lines.start;
        match &one.instruction {
            Instruction::Shell(_) => shell_set = true,
            Instruction::Cmd(Command::Shell(text))
            | Instruction::Entrypoint(Command::Shell(text))
                if !shell_set && !text.is_empty() =>
            {
                let name = one.instruction.name();
                let message = format!(
                    "JSON arguments recommended for {name} to prevent unintended behavior related to OS signals"
                );
                warn(found, "JSONArgsRecommended", line, message);
            }
            Instruction::Maintainer(_) => {
                let message = "Maintainer instruction is deprecated in favor of using label".into();
                warn(found, "MaintainerDeprecated", line, message);
            }
            Instruction::Workdir(path) => {
                if path.starts_with('/') || path.starts_with('$') {
                    workdir_set = true;
                } else if !workdir_set && file.stage_before(&stage.base, usize::MAX).is_none() {
                    let message = format!(
                        "Relative workdir {path:?} can have unexpected results if the base image changes"
                    );
                    warn(found, "WorkdirRelativePath", line, message);
                }
            }
            Instruction::Env(pairs) => {
                legacy(one, "ENV", found);
                pairs.iter().for_each(|(name, _)| secret(name, "ENV", line, found));
            }
            Instruction::Label(_) => legacy(one, "LABEL", found),
            Instruction::Arg(args) => {
                args.iter().for_each(|arg| secret(&arg.name, "ARG", line, found));
            }
            Instruction::Expose(ports) => ports.iter().for_each(|port| expose(port, line, found)),
            _ => {}
        }
    }
}

fn legacy(one: &Located, name: &'static str, found: &mut Vec<Warning>) {
    let rest = one.text.split_once(char::is_whitespace).map_or("", |(_, rest)| rest).trim();
    let first = rest.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let message = format!(
            "\"{name} key=value\" should be used instead of legacy \"{name} key value\" format"
        );
        warn(found, "LegacyKeyValueFormat", one.lines.start, message);
    }
}

/// Does a name look as if its value were secret? (docker's rule `SecretsUsedInArgOrEnv`.)
pub fn looks_secret(name: &str) -> bool {
    const WORDS: &[&str] = &[
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    let lower = name.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split(['_', '-', '.']).collect();
    parts.iter().any(|part| WORDS.contains(part)) && !parts.contains(&"public")
}

fn secret(name: &str, command: &str, line: u32, found: &mut Vec<Warning>) {
    if looks_secret(name) {
        let message =
            format!("Do not use ARG or ENV instructions for sensitive data ({command} \"{name}\")");
        warn(found, "SecretsUsedInArgOrEnv", line, message);
    }
}

fn expose(port: &str, line: u32, found: &mut Vec<Warning>) {
    if port.contains(':') {
        let message = format!(
            "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
        );
        warn(found, "ExposeInvalidFormat", line, message);
    }
    if let Some((_, protocol)) = port.split_once('/')
        && protocol.to_lowercase() != protocol
    {
        let message =
            format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
        warn(found, "ExposeProtoCasing", line, message);
    }
}

fn repeated(stage: &Stage, found: &mut Vec<Warning>) {
    type Same = fn(&Instruction) -> bool;
    let kinds: [(&str, Same); 3] = [
        ("CMD", |one| matches!(one, Instruction::Cmd(_))),
        ("ENTRYPOINT", |one| matches!(one, Instruction::Entrypoint(_))),
        ("HEALTHCHECK", |one| matches!(one, Instruction::Healthcheck(_))),
    ];
    for (name, same) in kinds {
        let all: Vec<&Located> =
            stage.instructions.iter().filter(|one| same(&one.instruction)).collect();
        let Some((_, earlier)) = all.split_last() else { continue };
        for one in earlier {
            let message = format!(
                "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
            );
            warn(found, "MultipleInstructionsDisallowed", one.lines.start, message);
        }
    }
}
