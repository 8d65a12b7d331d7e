//! runc's command line: its commands, flags, outputs and log lines.

mod activation;
mod events;
mod features;
mod flags;
mod foreground;
mod manage;
mod run;
mod spec;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use flags::{Flag, Parsed, Refusal, boolean, parse};

use crate::{Error, Options};

const GLOBAL: &[Flag] = &[
    Flag(&["root"], true),
    Flag(&["log"], true),
    Flag(&["log-format"], true),
    Flag(&["debug"], false),
    Flag(&["systemd-cgroup"], false),
    Flag(&["rootless"], true),
    Flag(&["version", "v"], false),
    Flag(&["help", "h"], false),
    // Accepted and without effect in runc, too.
    Flag(&["criu"], true),
];

const COMMANDS: &str = "checkpoint create delete events exec features kill list pause ps restore \
                        resume run spec start state update";

/// What a command fails with: one line of text.
pub(crate) enum Failure {
    /// Of the library.
    Runtime(Error),
    /// Of the command line itself.
    Usage(String),
    /// None: the command's flags are asked for.
    Help(String),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        match refusal {
            Refusal::Help(flags) => Failure::Help(flags),
            Refusal::Wrong(text) => Failure::Usage(text),
        }
    }
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
            Failure::Usage(text) | Failure::Help(text) => text.clone(),
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
    let global = match parse(&args, GLOBAL) {
        Ok(global) => global,
        Err(Refusal::Wrong(text)) => {
            say_err(&text);
            return 1;
        }
        // A flag of the global ones.
        Err(Refusal::Help(_)) => return say(&usage()),
    };
    let log = match Log::new(&global) {
        Ok(log) => log,
        Err(text) => {
            say_err(&text);
            return 1;
        }
    };
    if global.is_set("version") {
        return say(&format!(
            "gantry-runtime version {}\nspec: {}\n",
            env!("CARGO_PKG_VERSION"),
            crate::spec::OCI_VERSION
        ));
    }
    let Some((command, rest)) = global.rest.split_first() else {
        return say(&usage());
    };
    if global.is_set("help") || command == "help" {
        return say(&usage());
    }
    let result =
        context(&global, log).map_err(|(log, e)| (log, Failure::Usage(e))).and_then(|context| {
            match dispatch(&context, command, rest) {
                Ok(code) => Ok(code),
                Err(e) => Err((context.log, e)),
            }
        });
    match result {
        Ok(code) => code,
        Err((_, Failure::Help(flags))) => say(&command_usage(command, &flags)),
        Err((log, failure)) => {
            let text = failure.text();
            log.error(&text);
            if log.file.is_some() {
                say_err(&text);
            }
            // runc's: 1 could be the program's own.
            if command == "exec" { 255 } else { 1 }
        }
    }
}

fn usage() -> String {
    format!("usage: runtime [global options] command [options] [arguments]\ncommands: {COMMANDS}\n")
}

fn command_usage(command: &str, flags: &str) -> String {
    let flags = if flags.is_empty() { "   none\n" } else { flags };
    format!("usage: runtime {command} [command options] [arguments]\noptions:\n{flags}")
}

fn context(global: &Parsed, log: Log) -> Result<Context, (Log, String)> {
    let rootless = match global.value("rootless") {
        None | Some("auto" | "") => None,
        Some(word) => match boolean(word) {
            Some(rootless) => Some(rootless),
            None => return Err((log, format!("invalid value {word:?} for flag -rootless"))),
        },
    };
    let root = global.value("root").map(PathBuf::from).unwrap_or_else(default_root);
    let systemd_cgroup = global.is_set("systemd-cgroup");
    // runc waits for its hooks, however long they take.
    let options = Options { root, systemd_cgroup, rootless, hook_limit: None };
    Ok(Context { options, log })
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

fn dispatch(cx: &Context, command: &str, args: &[String]) -> Outcome {
    match command {
        "create" => run::create(cx, args),
        "run" => run::run(cx, args),
        "start" => run::start(cx, args),
        "exec" => run::exec(cx, args),
        "kill" => manage::kill(cx, args),
        "delete" => manage::delete(cx, args),
        "state" => manage::state(cx, args),
        "list" => manage::list(cx, args),
        "ps" => manage::ps(cx, args),
        "pause" => manage::pause(cx, args),
        "resume" => manage::resume(cx, args),
        "update" => manage::update(cx, args),
        "events" => events::print(cx, args),
        "features" => features::print(args),
        "spec" => spec::write(args),
        "checkpoint" | "restore" => {
            Err(format!("{command} is not offered by this runtime (no CRIU)").into())
        }
        other => Err(format!("No help topic for '{other}'").into()),
    }
}

/// Exactly one id.
fn one_id(parsed: &Parsed, command: &str) -> Result<crate::ContainerId, Failure> {
    match parsed.rest.as_slice() {
        [id] => Ok(crate::ContainerId::new(id.clone())?),
        _ => Err(format!("{command:?} requires exactly 1 argument(s)").into()),
    }
}

impl Log {
    fn new(global: &Parsed) -> Result<Log, String> {
        let json = match global.value("log-format") {
            None | Some("text" | "") => false,
            Some("json") => true,
            Some(other) => return Err(format!("invalid log-format: {other}")),
        };
        let file = global.value("log").filter(|f| !f.is_empty()).map(PathBuf::from);
        Ok(Log { file, json, debug: global.is_set("debug") })
    }

    fn error(&self, text: &str) {
        self.line("error", text);
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
            Some(path) => std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .and_then(|mut f| f.write_all(line.as_bytes())),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
        if written.is_err() {
            say_err(text);
        }
    }
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
