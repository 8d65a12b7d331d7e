//! Flags as Go's command line packages read them: `--name value`, `--name=value`, one or two
//! dashes, flags end at the first other word or at `--`.

use std::collections::BTreeMap;

/// A flag: its names (the first is the key), and whether a value follows.
pub(super) struct Flag(pub(super) &'static [&'static str], pub(super) bool);

/// Why a command line is not carried out.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It asks what the flags are: these, a line each.
    Help(String),
    Wrong(String),
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::Wrong(text)
    }
}

/// A line for each flag.
fn help(flags: &[Flag]) -> String {
    let mut text = String::new();
    for Flag(names, takes_value) in flags {
        let names: Vec<String> = names
            .iter()
            .map(|name| if name.len() == 1 { format!("-{name}") } else { format!("--{name}") })
            .collect();
        let value = if *takes_value { " value" } else { "" };
        text.push_str(&format!("   {}{value}\n", names.join(", ")));
    }
    text
}

/// What was given.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    values: BTreeMap<&'static str, Vec<String>>,
    /// The words after the flags.
    pub(super) rest: Vec<String>,
}

impl Parsed {
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.value(name).is_some_and(|v| v != "false")
    }

    /// The last value.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(|v| v.last()).map(String::as_str)
    }

    pub(super) fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// A value as a number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        match self.value(name) {
            None | Some("") => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| format!("invalid value {text:?} for flag -{name}")),
        }
    }
}

/// Parses the flags before the first other word. `--help` and `-h` are flags of every command.
pub(super) fn parse(args: &[String], flags: &[Flag]) -> Result<Parsed, Refusal> {
    let mut out = Parsed::default();
    let mut at = 0;
    while let Some(arg) = args.get(at) {
        at += 1;
        if arg == "--" {
            break;
        }
        let Some(name) = arg.strip_prefix('-').filter(|n| !n.is_empty()) else {
            at -= 1;
            break;
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        let (name, inline) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let Some(Flag(names, takes_value)) = flags.iter().find(|f| f.0.contains(&name)) else {
            return Err(match name {
                "help" | "h" => Refusal::Help(help(flags)),
                _ => format!("flag provided but not defined: -{name}").into(),
            });
        };
        let value = match (inline, takes_value) {
            (Some(value), _) => value,
            (None, false) => "true".to_owned(),
            (None, true) => {
                at += 1;
                args.get(at - 1)
                    .cloned()
                    .ok_or_else(|| format!("flag needs an argument: -{name}"))?
            }
        };
        out.values.entry(names[0]).or_default().push(value);
    }
    out.rest = args.get(at..).unwrap_or_default().to_vec();
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_forms_and_the_end_of_flags() {
        let flags = [Flag(&["bundle", "b"], true), Flag(&["detach", "d"], false)];
        let args = |s: &str| s.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let p = parse(&args("-b /x --detach id -d sh"), &flags).unwrap();
        assert_eq!((p.value("bundle"), p.is_set("detach")), (Some("/x"), true));
        assert_eq!(p.rest, ["id", "-d", "sh"]);
        let p = parse(&args("--bundle=/y=z -d=false -- -x"), &flags).unwrap();
        assert_eq!((p.value("bundle"), p.is_set("detach")), (Some("/y=z"), false));
        assert_eq!(p.rest, ["-x"]);
        assert!(parse(&args("--nope"), &flags).is_err());
        assert!(parse(&args("-b"), &flags).is_err());
        let lines = match parse(&args("-b /x --help"), &flags) {
            Err(Refusal::Help(lines)) => lines,
            other => panic!("{other:?}"),
        };
        assert_eq!(lines, "   --bundle, -b value\n   --detach, -d\n");
        assert_eq!(parse(&args("id --help"), &flags).unwrap().rest, ["id", "--help"]);
    }
}
