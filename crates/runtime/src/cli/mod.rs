//! runc's command line: its commands, flags, outputs and log lines.

mod activation;
mod commands;
mod debug;
mod events;
mod features;
mod flags;
mod foreground;
mod help;
mod manage;
mod run;
mod spec;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use commands::{Command, GLOBAL};
use flags::{Parsed, Refusal, boolean, parse};

use crate::{Error, Options};

/// runc's exit code for a command that there is not.
const NO_SUCH_COMMAND: i32 = 3;
/// Words that ask for help; no word does, too.
const HELP: [&str; 3] = ["help", "h", ""];

/// What a command fails with: one line of text.
pub(crate) enum Failure {
    /// Of the library.
    Runtime(Error),
    /// Of the command line itself.
    Usage(String),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Runtime(e)
    }
}

impl From<String> for Failure {
    fn from(e: String) -> Failure {
        Failure::Usage(e)
    }
}

impl Failure {
    fn text(&self) -> String {
        match self {
            Failure::Runtime(e) => e.chain(),
            Failure::Usage(text) => text.clone(),
        }
    }
}

type Outcome = Result<i32, Failure>;

/// What every command gets.
struct Context {
    options: Options,
    log: Log,
}

/// Where messages go.
struct Log {
    file: Option<PathBuf>,
    json: bool,
    debug: bool,
}

/// Runs the command line (`args` without the program's name); the exit code.
///
/// Errors go to stderr and, with `--log`, as the last line of that file, in runc's form: callers
/// (containerd's shim) read their error text there.
pub fn main(args: Vec<OsString>) -> i32 {
    let args: Vec<String> = args.into_iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let mut global = Parsed::default();
    let read = parse(&args, &[GLOBAL], &mut global);
    // Help and version are there whatever else is wrong.
    if read.is_ok() && global.is_set("version") && !global.is_set("help") {
        return say(&help::version());
    }
    let mut name = global.rest.first().map_or("", String::as_str);
    if read.is_ok() && (global.is_set("help") || HELP.contains(&name)) {
        // What is named behind `help` or `--help`, or all.
        let named = global.rest.iter().find(|word| !HELP.contains(&word.as_str()));
        match named.map(|name| (name, commands::find(name))) {
            None => return say(&help::all()),
            Some((_, Some(command))) => return say(&help::one(command)),
            Some((word, None)) => name = word,
        }
    }
    let log = match Log::new(&global) {
        Ok(log) => log,
        Err(text) => {
            Log { file: None, json: false, debug: false }.error(&text);
            return 1;
        }
    };
    if let Err(Refusal::Wrong(text)) = read {
        log.complain(&text);
        return 1;
    }
    let Some(command) = commands::find(name) else {
        log.complain(&format!("No help topic for '{name}'"));
        return NO_SUCH_COMMAND;
    };
    carry_out(command, &global, log)
}

fn carry_out(command: &Command, global: &Parsed, log: Log) -> i32 {
    let args = global.rest.get(1..).unwrap_or_default();
    let mut parsed = Parsed::default();
    let Some(action) = command.action else {
        if matches!(parse(args, &[], &mut parsed), Err(Refusal::Help)) {
            return say(&help::one(command));
        }
        log.complain(&format!("{} is not offered by this runtime (no CRIU)", command.name));
        return 1;
    };
    let wrong = match parse(args, command.flags, &mut parsed) {
        Err(Refusal::Help) => return say(&help::one(command)),
        Err(Refusal::Wrong(text)) => Some(text),
        Ok(()) => command.wrong_words(parsed.rest.len()),
    };
    if let Some(text) = wrong {
        log.complain(&text);
        return 1;
    }
    let context = match options(global) {
        Ok(options) => Context { options, log },
        Err(text) => {
            log.complain(&text);
            return 1;
        }
    };
    // The others tell more, once they are executed again.
    if command.stage.is_empty() {
        context.log.debug(&format!("{} {:?}", command.name, parsed.rest));
    }
    match action(&context, &parsed) {
        Ok(code) => code,
        Err(failure) => {
            context.log.complain(&format!("{}{}", command.stage, failure.text()));
            command.failed
        }
    }
}

fn options(global: &Parsed) -> Result<Options, String> {
    let rootless = match global.value("rootless") {
        None | Some("auto") => None,
        Some(word) => match boolean(word) {
            Some(rootless) => Some(rootless),
            None => return Err(format!("invalid value {word:?} for flag -rootless")),
        },
    };
    let root = global.value("root").map(PathBuf::from).unwrap_or_else(default_root);
    let systemd_cgroup = global.is_set("systemd-cgroup");
    // runc waits for its hooks, however long they take.
    Ok(Options { root, systemd_cgroup, rootless, hook_limit: None })
}

/// /run/runc's place: what this runtime keeps is its own.
fn default_root() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty());
    match own {
        Some(dir) if !rustix::process::geteuid().is_root() => {
            Path::new(&dir).join("gantry/runtime")
        }
        _ => PathBuf::from("/run/gantry/runtime"),
    }
}

/// The id, which is the only word.
fn one_id(parsed: &Parsed) -> Result<crate::ContainerId, Failure> {
    Ok(crate::ContainerId::new(parsed.rest.first().cloned().unwrap_or_default())?)
}

impl Log {
    fn new(global: &Parsed) -> Result<Log, String> {
        let json = match global.value("log-format") {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => return Err(format!("invalid log-format: {other}")),
        };
        let file = global.value("log").map(PathBuf::from);
        if let Some(path) = &file {
            // Whether it can be written is seen before anything is done. It is opened again for each
            // line: a descriptor of our own must not pass for one that the caller has given.
            append(path).map_err(|source| {
                let object = path.display().to_string();
                Error::Io { op: "open", object, source }.chain()
            })?;
        }
        Ok(Log { file, json, debug: global.is_set("debug") })
    }

    fn error(&self, text: &str) {
        self.line("error", text);
    }

    /// An error, also to whoever reads standard error.
    fn complain(&self, text: &str) {
        self.error(text);
        if self.file.is_some() {
            say_err(text);
        }
    }

    fn warning(&self, text: &str) {
        self.line("warning", text);
    }

    fn debug(&self, text: &str) {
        if self.debug {
            self.line("debug", text);
        }
    }

    /// One line, in logrus's text or JSON form. A log that cannot be written must not hide the
    /// command's own outcome.
    fn line(&self, level: &str, text: &str) {
        let now = crate::state::now();
        // logrus writes whole seconds.
        let time = format!("{}Z", now.split('.').next().unwrap_or_default());
        let line = if self.json {
            let value = serde_json::json!({"level": level, "msg": text, "time": time});
            format!("{value}\n")
        } else {
            format!("time={time:?} level={level} msg={text:?}\n")
        };
        let written = match &self.file {
            Some(path) => append(path).and_then(|mut f| f.write_all(line.as_bytes())),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
        if written.is_err() {
            say_err(text);
        }
    }
}

fn append(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}

/// Writes to stdout; a reader that went away is no failure.
fn say(text: &str) -> i32 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => 1,
        _ => 0,
    }
}

fn say_err(text: &str) {
    // Nowhere is left to report a stderr that cannot be written.
    drop(writeln!(std::io::stderr(), "{text}"));
}
