//! Help, from the table of commands.

use super::commands::{ALL, Command, GLOBAL};
use super::flags::Flag;

/// How this program is called.
fn program() -> String {
    let name = std::env::args_os().next().map(std::path::PathBuf::from);
    let name = name.as_deref().and_then(|p| p.file_name()).unwrap_or_default().to_string_lossy();
    match &*name {
        "" => "runc".to_owned(),
        "gantry" => "gantry runtime".to_owned(),
        name => name.to_owned(),
    }
}

/// The first lines of `--version`.
pub(super) fn version() -> String {
    let (own, spec) = (env!("CARGO_PKG_VERSION"), crate::spec::OCI_VERSION);
    format!("gantry-runtime version {own}\nspec: {spec}\n")
}

pub(super) fn all() -> String {
    let program = program();
    let mut commands: Vec<_> = ALL.iter().map(|c| (c.name.to_owned(), c.about)).collect();
    commands.push(("help, h".to_owned(), "show the commands, or help for one of them"));
    format!(
        "NAME:\n   {program} - runs containers of the Open Container Initiative\n\n\
         USAGE:\n   {program} [global options] command [command options] [arguments...]\n\n\
         VERSION:\n   {version}\nCOMMANDS:\n{commands}\nGLOBAL OPTIONS:\n{flags}",
        version =
            version().replacen("gantry-runtime version ", "", 1).replace("\nspec", "\n   spec"),
        commands = columns(commands),
        flags = flags(&[GLOBAL]),
    )
}

pub(super) fn one(command: &Command) -> String {
    let Command { name, about, usage, more, .. } = command;
    let program = program();
    let mut text =
        format!("NAME:\n   {program} {name} - {about}\n\nUSAGE:\n   {program} {name} {usage}");
    text.truncate(text.trim_end().len());
    text.push('\n');
    if !more.is_empty() {
        text.push_str(&format!("\nDESCRIPTION:\n   {}\n", more.replace('\n', "\n   ")));
    }
    if !command.flags.is_empty() {
        text.push_str(&format!("\nOPTIONS:\n{}", flags(command.flags)));
    }
    text
}

/// A line for each flag that is not hidden.
fn flags(groups: &[&[Flag]]) -> String {
    let shown = groups.iter().copied().flatten().filter(|flag| !flag.about.is_empty());
    columns(shown.map(|flag| (flag.forms(), flag.about)).collect())
}

fn columns(rows: Vec<(String, &str)>) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, about)| format!("   {name:width$}  {about}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_flag_is_told() {
        let text = all();
        for command in ALL {
            assert!(text.contains(&format!("   {}", command.name)), "{text}");
            assert!(!command.about.is_empty(), "{}", command.name);
            let told = one(command);
            for flag in command.flags.iter().copied().flatten() {
                let line = told.lines().any(|l| l.trim_start().starts_with(&flag.forms()));
                assert_eq!(line, !flag.about.is_empty(), "{}: {}", command.name, flag.forms());
            }
        }
        assert!(text.contains("--systemd-cgroup") && text.contains("--help, -h"), "{text}");
    }
}
