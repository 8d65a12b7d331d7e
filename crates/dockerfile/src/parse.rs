//! From logical lines to instructions.

use crate::{
    AddOptions, Arg, Command, Dockerfile, HealthTimes, Healthcheck, Instruction, Lines, Located,
    Run, RunNetwork, Stage, Transfer,
    error::{ParseError, ParseErrorKind, Suggestion},
    expand::Expander,
    lines::{self, Logical},
    words,
};

type Result<T> = std::result::Result<T, ParseErrorKind>;

const COMMANDS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The flags of one instruction, checked against those it knows.
struct Flags {
    given: Vec<(String, Option<String>)>,
}

/// How a flag may be given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FlagKind {
    Text,
    Bool,
    Many,
}

impl Flags {
    fn read(words: Vec<String>, known: &[(&'static str, FlagKind)]) -> Result<Self> {
        let mut given: Vec<(String, Option<String>)> = Vec::new();
        for word in words {
            let (name, value) = match word[2..].split_once('=') {
                Some((name, value)) => (name.to_string(), Some(value.to_string())),
                None => (word[2..].to_string(), None),
            };
            let Some((_, kind)) = known.iter().find(|(known, _)| *known == name) else {
                let names: Vec<&'static str> = known.iter().map(|(name, _)| *name).collect();
                let near = Suggestion::nearest(&name, &names);
                return Err(ParseErrorKind::UnknownFlag(name, near));
            };
            if *kind != FlagKind::Many && given.iter().any(|(other, _)| *other == name) {
                return Err(ParseErrorKind::DuplicateFlag(name));
            }
            if *kind != FlagKind::Bool && value.is_none() {
                return Err(ParseErrorKind::FlagValue(name));
            }
            given.push((name, value));
        }
        Ok(Self { given })
    }

    fn text(&self, name: &str) -> Option<String> {
        self.given.iter().find(|(given, _)| given == name).and_then(|(_, value)| value.clone())
    }

    fn many(&self, name: &str) -> Vec<String> {
        let mine = self.given.iter().filter(|(given, _)| given == name);
        mine.filter_map(|(_, value)| value.clone()).collect()
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>> {
        let Some((_, value)) = self.given.iter().find(|(given, _)| given == name) else {
            return Ok(None);
        };
        match value.as_deref() {
            None | Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(ParseErrorKind::FlagBool(name.into(), other.into())),
        }
    }
}

/// Reads a whole Dockerfile.
///
/// # Errors
/// The first [`ParseError`], in docker's words, with its lines.
pub fn parse(text: &str) -> std::result::Result<Dockerfile, ParseError> {
    let split = lines::split(text)?;
    let escape = split.directives.escape;
    let mut file = Dockerfile {
        directives: split.directives,
        global_args: Vec::new(),
        stages: Vec::new(),
        blank_continuations: Vec::new(),
    };
    for logical in split.logical {
        file.blank_continuations.extend(logical.blank_inside);
        let lines = logical.lines;
        add(&mut file, &logical, escape).map_err(|kind| ParseError { lines, kind })?;
    }
    if file.stages.is_empty() {
        let lines = Lines { start: 0, end: 0 };
        return Err(ParseError { lines, kind: ParseErrorKind::NoStage });
    }
    Ok(file)
}

fn add(file: &mut Dockerfile, logical: &Logical, escape: char) -> Result<()> {
    let (command, rest) = command(&logical.text);
    let upper = command.to_ascii_uppercase();
    if upper == "FROM" {
        file.stages.push(stage(rest, logical, command, escape)?);
        return Ok(());
    }
    let instruction = instruction(&upper, rest, logical, escape)?;
    let located = Located {
        instruction,
        lines: logical.lines,
        text: logical.text.clone(),
        keyword: command.to_string(),
    };
    match file.stages.last_mut() {
        Some(stage) => stage.instructions.push(located),
        None if matches!(located.instruction, Instruction::Arg(_)) => {
            file.global_args.push(located);
        }
        None => return Err(ParseErrorKind::NoStage),
    }
    Ok(())
}

/// Reads the trigger of an ONBUILD as the instruction that it becomes in the child.
///
/// # Errors
/// [`ParseError`] without lines.
pub fn parse_trigger(text: &str, escape: char) -> std::result::Result<Located, ParseError> {
    let lines = Lines { start: 0, end: 0 };
    let fail = |kind| ParseError { lines, kind };
    let text = text.trim().to_string();
    let (word, rest) = command(&text);
    let upper = word.to_ascii_uppercase();
    check_trigger(&upper).map_err(fail)?;
    let logical = Logical { text: text.clone(), lines, heredocs: Vec::new(), blank_inside: None };
    let instruction = instruction(&upper, rest, &logical, escape).map_err(fail)?;
    Ok(Located { instruction, lines, keyword: word.to_string(), text: text.clone() })
}

fn command(text: &str) -> (&str, &str) {
    match text.split_once(char::is_whitespace) {
        Some((command, rest)) => (command, rest.trim()),
        None => (text, ""),
    }
}

fn stage(rest: &str, logical: &Logical, keyword: &str, escape: char) -> Result<Stage> {
    let (flags, rest) = words::flags(rest, escape);
    let flags = Flags::read(flags, &[("platform", FlagKind::Text)])?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (base, as_word, name) = match words.as_slice() {
        [base] => (*base, None, None),
        [base, word, name] if word.eq_ignore_ascii_case("as") => (*base, Some(*word), Some(*name)),
        _ => return Err(ParseErrorKind::From),
    };
    let written_name = name.map(str::to_string);
    let name = name.map(stage_name).transpose()?;
    Ok(Stage {
        name,
        written_name,
        as_word: as_word.map(str::to_string),
        base: base.into(),
        platform: flags.text("platform"),
        lines: logical.lines,
        text: logical.text.clone(),
        keyword: keyword.to_string(),
        instructions: Vec::new(),
    })
}

fn stage_name(name: &str) -> Result<String> {
    let lower = name.to_lowercase();
    let valid = lower.starts_with(|c: char| c.is_ascii_lowercase())
        && lower
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
    if valid { Ok(lower) } else { Err(ParseErrorKind::StageName(name.into())) }
}

fn instruction(upper: &str, rest: &str, logical: &Logical, escape: char) -> Result<Instruction> {
    let (flag_words, args) = words::flags(rest, escape);
    let no_flags = || Flags::read(flag_words.clone(), &[]);
    Ok(match upper {
        "RUN" => Instruction::Run(run(flag_words, args, logical)?),
        "COPY" => Instruction::Copy(transfer("COPY", flag_words, args, logical, escape)?),
        "ADD" => Instruction::Add(transfer("ADD", flag_words, args, logical, escape)?),
        "HEALTHCHECK" => Instruction::Healthcheck(healthcheck(flag_words, args)?),
        "ONBUILD" => Instruction::Onbuild(onbuild(rest, logical)?),
        // These have no flags: what looks like one is part of the text.
        "ENV" => Instruction::Env(words::pairs("ENV", rest, escape)?.0),
        "LABEL" => Instruction::Label(words::pairs("LABEL", rest, escape)?.0),
        "ARG" => Instruction::Arg(args_of(rest, escape)?),
        "MAINTAINER" => Instruction::Maintainer(one("MAINTAINER", rest)?),
        "CMD" => {
            no_flags()?;
            Instruction::Cmd(shell_or_exec(args)?)
        }
        "ENTRYPOINT" => {
            no_flags()?;
            if args.is_empty() {
                return Err(ParseErrorKind::AtLeastOne("ENTRYPOINT"));
            }
            Instruction::Entrypoint(shell_or_exec(args)?)
        }
        "WORKDIR" => Instruction::Workdir(one("WORKDIR", rest)?),
        "USER" => Instruction::User(one("USER", rest)?),
        "STOPSIGNAL" => Instruction::StopSignal(one("STOPSIGNAL", rest)?),
        "EXPOSE" => Instruction::Expose(some("EXPOSE", rest)?),
        "VOLUME" => Instruction::Volume(volumes(rest)?),
        "SHELL" => match words::json_array(args)? {
            Some(words) if words.is_empty() => return Err(ParseErrorKind::AtLeastOne("SHELL")),
            Some(words) => Instruction::Shell(words),
            None if args.is_empty() => return Err(ParseErrorKind::AtLeastOne("SHELL")),
            None => return Err(ParseErrorKind::ShellJson),
        },
        other => {
            let near = Suggestion::nearest(other, COMMANDS);
            // As it is written.
            let (word, _) = command(&logical.text);
            return Err(ParseErrorKind::UnknownInstruction(word.into(), near));
        }
    })
}

fn one(command: &'static str, rest: &str) -> Result<String> {
    if rest.is_empty() { Err(ParseErrorKind::ExactlyOne(command)) } else { Ok(rest.into()) }
}

fn some(command: &'static str, rest: &str) -> Result<Vec<String>> {
    let words: Vec<String> = rest.split_whitespace().map(str::to_string).collect();
    if words.is_empty() { Err(ParseErrorKind::AtLeastOne(command)) } else { Ok(words) }
}

fn volumes(rest: &str) -> Result<Vec<String>> {
    let paths = match words::json_array(rest)? {
        Some(paths) => paths,
        None => rest.split_whitespace().map(str::to_string).collect(),
    };
    if paths.is_empty() {
        return Err(ParseErrorKind::AtLeastOne("VOLUME"));
    }
    if paths.iter().any(|path| path.trim().is_empty()) {
        return Err(ParseErrorKind::BlankName("VOLUME"));
    }
    Ok(paths)
}

fn shell_or_exec(args: &str) -> Result<Command> {
    Ok(match words::json_array(args)? {
        Some(words) => Command::Exec(words),
        None => Command::Shell(args.into()),
    })
}

fn args_of(rest: &str, escape: char) -> Result<Vec<Arg>> {
    let words = words::split_raw(rest, escape);
    if words.is_empty() {
        return Err(ParseErrorKind::AtLeastOne("ARG"));
    }
    let arg = |word: &String| {
        let (name, default) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => (word.as_str(), None),
        };
        if name.is_empty() {
            return Err(ParseErrorKind::BlankName("ARG"));
        }
        Ok(Arg { name: name.into(), default })
    };
    words.iter().map(arg).collect()
}

fn run(flags: Vec<String>, args: &str, logical: &Logical) -> Result<Run> {
    let flags = Flags::read(
        flags,
        &[
            ("mount", FlagKind::Many),
            ("network", FlagKind::Text),
            ("security", FlagKind::Text),
            ("device", FlagKind::Many),
        ],
    )?;
    let command = shell_or_exec(args)?;
    if matches!(&command, Command::Shell(line) if line.is_empty()) {
        return Err(ParseErrorKind::AtLeastOne("RUN"));
    }
    let word = |flag, value| ParseErrorKind::FlagWord { command: "RUN", flag, value };
    let network = match flags.text("network").as_deref() {
        None | Some("default") => RunNetwork::Default,
        Some("none") => RunNetwork::None,
        Some("host") => RunNetwork::Host,
        Some(other) => return Err(word("network", other.into())),
    };
    let insecure = match flags.text("security").as_deref() {
        None | Some("sandbox") => false,
        Some("insecure") => true,
        Some(other) => return Err(word("security", other.into())),
    };
    let mounts = flags.many("mount");
    for mount in mounts.iter().filter(|mount| !mount.contains('$')) {
        crate::mount::parse(mount, &mut Expander::new('\\', &|_| None))?;
    }
    let devices = flags.many("device");
    let heredocs = logical.heredocs.clone();
    Ok(Run { command, heredocs, mounts, network, insecure, devices })
}

fn transfer(
    command: &'static str,
    flags: Vec<String>,
    args: &str,
    logical: &Logical,
    escape: char,
) -> Result<Transfer> {
    let mut known = vec![
        ("chown", FlagKind::Text),
        ("chmod", FlagKind::Text),
        ("link", FlagKind::Bool),
        ("exclude", FlagKind::Many),
    ];
    let is_add = command == "ADD";
    if is_add {
        known.extend([
            ("keep-git-dir", FlagKind::Bool),
            ("checksum", FlagKind::Text),
            ("unpack", FlagKind::Bool),
        ]);
    } else {
        known.extend([("from", FlagKind::Text), ("parents", FlagKind::Bool)]);
    }
    let flags = Flags::read(flags, &known)?;
    let mut words = match words::json_array(args)? {
        Some(words) => words,
        None => args.split_whitespace().map(str::to_string).collect(),
    };
    let dest = words.pop().ok_or(ParseErrorKind::AtLeastOne(command))?;
    if words.is_empty() {
        return Err(ParseErrorKind::NoDestination(command));
    }
    if lines::heredoc_word(&dest, escape).is_some() && !logical.heredocs.is_empty() {
        return Err(ParseErrorKind::NoDestination(command));
    }
    if !logical.heredocs.is_empty() {
        words.retain(|word| lines::heredoc_word(word, escape).is_none());
    }
    let add = AddOptions {
        keep_git_dir: flags.boolean("keep-git-dir")?.unwrap_or(false),
        checksum: flags.text("checksum"),
        unpack: flags.boolean("unpack")?,
    };
    Ok(Transfer {
        sources: words,
        heredocs: logical.heredocs.clone(),
        dest,
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.boolean("link")?.unwrap_or(false),
        parents: flags.boolean("parents")?.unwrap_or(false),
        exclude: flags.many("exclude"),
        add: is_add.then_some(add),
    })
}

fn healthcheck(flags: Vec<String>, args: &str) -> Result<Healthcheck> {
    const NAMES: [&str; 4] = ["interval", "timeout", "start-period", "start-interval"];
    let mut known: Vec<(&'static str, FlagKind)> =
        NAMES.iter().map(|name| (*name, FlagKind::Text)).collect();
    known.push(("retries", FlagKind::Text));
    let flags = Flags::read(flags, &known)?;
    let (kind, rest) = command(args);
    match kind.to_ascii_uppercase().as_str() {
        "" => return Err(ParseErrorKind::AtLeastOne("HEALTHCHECK")),
        "NONE" if rest.is_empty() => return Ok(Healthcheck::None),
        "NONE" => return Err(ParseErrorKind::HealthNone),
        "CMD" => {}
        _ => return Err(ParseErrorKind::HealthType(kind.into())),
    }
    let command = shell_or_exec(rest)?;
    let empty = match &command {
        Command::Shell(line) => line.is_empty(),
        Command::Exec(words) => words.is_empty(),
    };
    if empty {
        return Err(ParseErrorKind::HealthCommand);
    }
    let time = |name: &'static str| health_time(&flags, name);
    let retries = flags
        .text("retries")
        .map(|text| match text.parse::<i32>() {
            Ok(number) if number >= 0 => Ok(i64::from(number)),
            _ => Err(ParseErrorKind::Retries(text)),
        })
        .transpose()?;
    let times = HealthTimes {
        interval: time(NAMES[0])?,
        timeout: time(NAMES[1])?,
        start_period: time(NAMES[2])?,
        start_interval: time(NAMES[3])?,
        retries,
    };
    Ok(Healthcheck::Command { command, times })
}

fn health_time(flags: &Flags, name: &'static str) -> Result<Option<i64>> {
    let Some(text) = flags.text(name) else { return Ok(None) };
    match types::parse_duration(&text) {
        Err(_) => Err(ParseErrorKind::Duration(name, text)),
        Ok(nanos) if nanos != 0 && nanos < 1_000_000 => Err(ParseErrorKind::ShortDuration(name)),
        Ok(nanos) => Ok(Some(nanos)),
    }
}

fn onbuild(rest: &str, logical: &Logical) -> Result<String> {
    let (word, _) = command(rest);
    let upper = word.to_ascii_uppercase();
    if upper.is_empty() {
        return Err(ParseErrorKind::AtLeastOne("ONBUILD"));
    }
    check_trigger(&upper)?;
    if !logical.heredocs.is_empty() {
        return Err(ParseErrorKind::OnbuildHeredoc);
    }
    Ok(rest.into())
}

fn check_trigger(upper: &str) -> Result<()> {
    match upper {
        "ONBUILD" => Err(ParseErrorKind::OnbuildChain),
        "FROM" | "MAINTAINER" => Err(ParseErrorKind::OnbuildTrigger(upper.into())),
        known if COMMANDS.contains(&known) => Ok(()),
        other => {
            let near = Suggestion::nearest(other, COMMANDS);
            Err(ParseErrorKind::UnknownInstruction(other.into(), near))
        }
    }
}

/// Ports of an expanded EXPOSE, one by one, as an image's configuration has them: `80/tcp`.
///
/// # Errors
/// [`ParseErrorKind::Port`] with the word.
pub fn exposed_ports(words: &[String]) -> Result<Vec<String>> {
    let mut ports = Vec::new();
    for word in words {
        let bad = || ParseErrorKind::Port(word.clone());
        let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
        // A host's part is no business of an image's: docker drops it (go-connections `ParsePortSpec`).
        let range = range.rsplit(':').next().unwrap_or(range);
        let protocol = protocol.to_ascii_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(bad());
        }
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let first: u16 = first.parse().map_err(|_| bad())?;
        let last: u16 = last.parse().map_err(|_| bad())?;
        if first > last {
            return Err(bad());
        }
        ports.extend((first..=last).map(|port| format!("{port}/{protocol}")));
    }
    Ok(ports)
}
