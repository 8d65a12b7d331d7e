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
        self.value(name).and_then(boolean) == Some(true)
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

/// The words of Go's `strconv.ParseBool`.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A decimal number without a sign (`1`, `1.5`, `.5`, `1.`) times a unit, cut to a whole number.
/// `None` if it is no such number, or too large.
pub(super) fn decimal_times(text: &str, unit: i64) -> Option<i64> {
    /// What lies further behind the point is less than one of any unit here.
    const FRACTION_DIGITS: usize = 18;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || whole.len() + fraction.len() == 0 {
        return None;
    }
    let number = |s: &str| if s.is_empty() { Some(0) } else { s.parse::<i128>().ok() };
    let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS)];
    let scale = 10i128.pow(u32::try_from(fraction.len()).ok()?);
    let unit = i128::from(unit);
    let part = number(fraction)?.checked_mul(unit)? / scale;
    i64::try_from(number(whole)?.checked_mul(unit)?.checked_add(part)?).ok()
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
            (Some(value), false) if boolean(&value).is_none() => {
                let text = format!("invalid boolean value {value:?} for -{name}: parse error");
                return Err(text.into());
            }
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
        for (word, want) in
            [("1", true), ("t", true), ("TRUE", true), ("0", false), ("f", false), ("False", false)]
        {
            let p = parse(&args(&format!("-d --detach={word}")), &flags).unwrap();
            assert_eq!(p.is_set("detach"), want, "{word}");
        }
        for word in ["", "yes", "tRUE", "2", "no"] {
            match parse(&args(&format!("-d={word}")), &flags) {
                Err(Refusal::Wrong(text)) => {
                    assert!(text.contains("for -d: parse error"), "{text}")
                }
                other => panic!("{word}: {other:?}"),
            }
        }
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
