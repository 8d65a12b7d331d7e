//! From words to a command: lookup, flags, argument counts, help.

use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;

use crate::config::{self, Config};
use crate::ctx::{Ctx, note};
use crate::error::{Error, Result};
use crate::flags::{self, FlagSets, Matches};
use crate::tree::{GROUPS, Group, TOP, UNSUPPORTED};
use crate::{Hooks, plugins};

pub(crate) type Run =
    for<'a> fn(&'a Ctx, Matches) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// How many arguments a command takes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Count {
    None,
    Exact(usize),
    AtLeast(usize),
    AtMost(usize),
    Between(usize, usize),
}

/// One command. It can appear at several places of the tree.
pub(crate) struct Cmd {
    pub(crate) name: &'static str,
    pub(crate) aliases: &'static [&'static str],
    /// What follows the name in the usage line.
    pub(crate) usage: &'static str,
    pub(crate) about: &'static str,
    /// All full names, without the program's; empty if there is only one.
    pub(crate) also: &'static [&'static str],
    pub(crate) flags: FlagSets,
    pub(crate) count: Count,
    /// Flags end at the first argument.
    pub(crate) stop_at_first: bool,
    pub(crate) hidden: bool,
    pub(crate) run: Run,
}

fn usage_error(path: &str, usage: &str, text: &str, code: i32, hint: &str) -> Error {
    let usage = format!("{path} {usage}");
    let text = format!(
        "{text}\n\nUsage:  {}\n\n{hint} '{path} --help' for more information",
        usage.trim_end()
    );
    Error::Status { code, text }
}

impl Count {
    fn check(self, prog: &str, path: &str, usage: &str, given: usize) -> Result<()> {
        let plural = |n: usize| if n == 1 { "argument" } else { "arguments" };
        let (ok, text, hint) = match self {
            Count::None => (given == 0, "accepts no arguments".to_owned(), "Run"),
            Count::Exact(n) => (given == n, format!("requires {n} {}", plural(n)), "Run"),
            Count::AtLeast(n) => {
                (given >= n, format!("requires at least {n} {}", plural(n)), "See")
            }
            Count::AtMost(n) => (given <= n, format!("requires at most {n} {}", plural(n)), "Run"),
            Count::Between(a, b) => (
                (a..=b).contains(&given),
                format!("requires at least {a} and at most {b} {}", plural(b)),
                "Run",
            ),
        };
        match ok {
            true => Ok(()),
            false => Err(usage_error(path, usage, &format!("{prog}: '{path}' {text}"), 1, hint)),
        }
    }
}

static GLOBAL: FlagSets = &[
    flags::other::GLOBAL,
    &[flags::Flag::new("version", flags::Kind::Bool, "Print version information and quit")
        .short('v')],
];

/// The name we were called by: that of docker, or our own.
fn program(argv0: &str) -> String {
    let name = argv0.rsplit('/').next().unwrap_or(argv0);
    if name == "docker" { "docker".to_owned() } else { "gantry".to_owned() }
}

/// Runs a whole command line.
pub(crate) async fn run(
    words: Vec<String>,
    hooks: Hooks,
    lookup: Option<client::Lookup>,
) -> Result<()> {
    let mut words = words.into_iter();
    let argv0 = words.next().unwrap_or_default();
    let prog = program(&argv0);
    let words: Vec<String> = words.collect();
    let global = flags::parse(GLOBAL, words.iter().cloned(), true)
        .map_err(|text| usage_error(&prog, "[OPTIONS] COMMAND [ARG...]", &text, 125, "Run"))?;
    // Taken for its form alone: this client has no log.
    let level = global.text("log-level");
    let levels = ["panic", "fatal", "error", "warn", "warning", "info", "debug", "trace"];
    if !levels.contains(&level.to_ascii_lowercase().as_str()) {
        return Err(Error::Invalid(format!("unable to parse logging level: {level}")));
    }
    let dir = global.given("config").map_or_else(config::default_dir, Into::into);
    let (config, warning) = Config::load(dir);
    if let Some(warning) = warning {
        note(&warning);
    }
    let ctx = Ctx::new(prog, global, config, hooks, lookup);
    if ctx.global.flag("version") {
        return ctx.line(&crate::commands::version::line(&ctx));
    }
    let rest = ctx.global.args.clone();
    if ctx.global.help || rest.is_empty() {
        let page = top_help(&ctx.prog, &plugins::list(&ctx.config.borrow()), 80);
        return show_help(&ctx, &page, ctx.global.help);
    }
    dispatch(&ctx, &argv0, &words, rest).await
}

/// Help that was asked for is output; where a command is missing, it is a note.
fn show_help(ctx: &Ctx, page: &str, asked: bool) -> Result<()> {
    match asked {
        true => ctx.out(page),
        false => {
            ctx.note(page.trim_end_matches('\n'));
            Ok(())
        }
    }
}

async fn dispatch(ctx: &Ctx, argv0: &str, all: &[String], mut rest: Vec<String>) -> Result<()> {
    let name = rest.remove(0);
    if name == "help" {
        return help_command(ctx, &rest);
    }
    if let Some((name, cmd)) = TOP.iter().find(|(n, _)| *n == name) {
        return invoke(ctx, format!("{} {name}", ctx.prog), cmd, rest).await;
    }
    if let Some(group) = GROUPS.iter().find(|g| g.name == name) {
        return in_group(ctx, group, rest).await;
    }
    if UNSUPPORTED.contains(&name.as_str()) {
        return Err(Error::Invalid(format!("{p}: '{p} {name}' is not supported", p = ctx.prog)));
    }
    if let Some(plugin) = plugins::find(&ctx.config.borrow(), &name) {
        return plugins::execute(ctx, argv0, &plugin, all);
    }
    let prog = &ctx.prog;
    Err(Error::Invalid(format!(
        "{prog}: unknown command: {prog} {name}\n\nRun '{prog} --help' for more information"
    )))
}

async fn in_group(ctx: &Ctx, group: &'static Group, mut words: Vec<String>) -> Result<()> {
    let path = format!("{} {}", ctx.prog, group.name);
    let m = flags::parse(&[], words.iter().cloned(), true)
        .map_err(|text| usage_error(&path, "COMMAND", &text, 125, "Run"))?;
    if m.help || m.args.is_empty() {
        return show_help(ctx, &group_help(&ctx.prog, group), m.help);
    }
    words = m.args;
    let name = words.remove(0);
    let cmd = group.commands.iter().find(|c| c.name == name || c.aliases.contains(&name.as_str()));
    match cmd {
        Some(cmd) => invoke(ctx, format!("{path} {}", cmd.name), cmd, words).await,
        None => Err(usage_error(
            &path,
            "",
            &format!("{}: unknown command: {path} {name}", ctx.prog),
            1,
            "Run",
        )),
    }
}

async fn invoke(ctx: &Ctx, path: String, cmd: &'static Cmd, words: Vec<String>) -> Result<()> {
    let m = flags::parse(cmd.flags, words, cmd.stop_at_first)
        .map_err(|text| usage_error(&path, cmd.usage, &text, 125, "Run"))?;
    if m.help {
        return ctx.out(&command_help(&ctx.prog, &path, cmd, crate::term::columns(80)));
    }
    cmd.count.check(&ctx.prog, &path, cmd.usage, m.args.len())?;
    ctx.path.replace(path);
    check_trust(&m)?;
    check_flags(ctx, &m).await?;
    (cmd.run)(ctx, m).await
}

/// Images are taken unsigned. Whoever asks for signatures, by flag or by `DOCKER_CONTENT_TRUST` (docker CLI
/// 28 `trust.Enabled`), must not get an image that nobody checked.
fn check_trust(m: &Matches) -> Result<()> {
    const FLAG: &str = "disable-content-trust";
    if !m.has(FLAG) {
        return Ok(());
    }
    let by_environment = std::env::var("DOCKER_CONTENT_TRUST").is_ok_and(|value| {
        !matches!(value.as_str(), "" | "0" | "f" | "F" | "false" | "False" | "FALSE")
    });
    let wanted = if m.changed(FLAG) { !m.flag(FLAG) } else { by_environment };
    if wanted {
        return Err(Error::Invalid(
            "content trust is not supported: images' signatures cannot be checked (unset \
             DOCKER_CONTENT_TRUST, or give --disable-content-trust, to go on without)"
                .into(),
        ));
    }
    Ok(())
}

/// Flags that the engine is too old for, or that only exist on Windows.
async fn check_flags(ctx: &Ctx, m: &Matches) -> Result<()> {
    for flag in m.given_flags() {
        let name = flag.name;
        if flag.windows {
            return Err(Error::Invalid(format!(
                "\"--{name}\" is only supported on a Docker daemon running on windows, but the Docker daemon is running on linux"
            )));
        }
        if flag.deprecated {
            note(&format!("Flag --{name} has been deprecated"));
        }
        if flag.min_api > 0 {
            let version = ctx.client()?.api_version().await?;
            if !version.at_least(flag.min_api) {
                return Err(Error::Invalid(format!(
                    "\"--{name}\" requires API version 1.{}, but the Docker daemon API version is {version}",
                    flag.min_api
                )));
            }
        }
    }
    Ok(())
}

fn help_command(ctx: &Ctx, words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match help_page(&ctx.prog, &words) {
        Some(page) => ctx.out(&page),
        None => Err(Error::Invalid(format!("unknown help topic: {}", words.join(" ")))),
    }
}

pub(crate) fn help_page(prog: &str, path: &[&str]) -> Option<String> {
    match path {
        [] => Some(top_help(prog, &[], 80)),
        [name] => match TOP.iter().find(|(n, _)| n == name) {
            Some((_, cmd)) => Some(command_help(prog, &format!("{prog} {name}"), cmd, 80)),
            None => GROUPS.iter().find(|g| g.name == *name).map(|g| group_help(prog, g)),
        },
        [group, name] => {
            let group = GROUPS.iter().find(|g| g.name == *group)?;
            let cmd =
                group.commands.iter().find(|c| c.name == *name || c.aliases.contains(name))?;
            Some(command_help(prog, &format!("{prog} {} {}", group.name, cmd.name), cmd, 80))
        }
        _ => None,
    }
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}

fn command_help(prog: &str, path: &str, cmd: &Cmd, columns: usize) -> String {
    let usage = format!("{path} {}", cmd.usage);
    let mut out = format!("Usage:  {}\n\n{}\n", usage.trim_end(), cmd.about);
    if !cmd.also.is_empty() {
        let names: Vec<String> = cmd.also.iter().map(|name| format!("{prog} {name}")).collect();
        push(&mut out, format_args!("\nAliases:\n  {}\n", names.join(", ")));
    }
    let lines = flags::describe(cmd.flags, columns.saturating_sub(1));
    if !lines.is_empty() {
        push(&mut out, format_args!("\nOptions:\n{}\n", lines.join("\n")));
    }
    out
}

fn group_help(prog: &str, group: &Group) -> String {
    let mut out =
        format!("Usage:  {prog} {} COMMAND\n\n{}\n\nCommands:\n", group.name, group.about);
    let shown: Vec<&&Cmd> = group.commands.iter().filter(|c| !c.hidden).collect();
    let rows: Vec<(&str, &str)> = shown.iter().map(|c| (c.name, c.about)).collect();
    list(&mut out, &rows);
    push(
        &mut out,
        format_args!(
            "\nRun '{prog} {} COMMAND --help' for more information on a command.\n",
            group.name
        ),
    );
    out
}

fn list(out: &mut String, rows: &[(&str, &str)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(11);
    for (name, about) in rows {
        let about = about.lines().next().unwrap_or_default();
        push(out, format_args!("  {name:<width$} {about}\n"));
    }
}

fn top_help(prog: &str, plugins: &[plugins::Plugin], columns: usize) -> String {
    const COMMON: [&str; 12] = [
        "run", "exec", "ps", "build", "pull", "push", "images", "login", "logout", "search",
        "version", "info",
    ];
    let mut out = format!(
        "Usage:  {prog} [OPTIONS] COMMAND\n\nA container engine: builds, distributes and runs containers\n\nCommon Commands:\n"
    );
    let about = |name: &str| TOP.iter().find(|(n, _)| *n == name).map_or("", |(_, c)| c.about);
    list(&mut out, &COMMON.map(|name| (name, about(name))));
    out.push_str("\nManagement Commands:\n");
    let mut groups: Vec<(&str, &str)> = GROUPS.iter().map(|g| (g.name, g.about)).collect();
    let described: Vec<(String, &str)> =
        plugins.iter().map(|p| (format!("{}*", p.name), p.description.as_str())).collect();
    groups.extend(described.iter().map(|(name, about)| (name.as_str(), *about)));
    groups.sort_unstable();
    list(&mut out, &groups);
    out.push_str("\nCommands:\n");
    let mut others: Vec<(&str, &str)> = TOP
        .iter()
        .filter(|(name, cmd)| !cmd.hidden && !COMMON.contains(name))
        .map(|(name, cmd)| (*name, cmd.about))
        .collect();
    others.sort_unstable();
    list(&mut out, &others);
    let lines = flags::describe(GLOBAL, columns.saturating_sub(1));
    push(&mut out, format_args!("\nGlobal Options:\n{}\n", lines.join("\n")));
    push(
        &mut out,
        format_args!("\nRun '{prog} COMMAND --help' for more information on a command.\n"),
    );
    out
}
