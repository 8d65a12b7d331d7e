//! Flags as Go's command line packages read them: `--name value`, `--name=value`, one or two
//! dashes, flags end at the first other word or at `--`.

use std::collections::BTreeMap;

/// What follows a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing; `=` and a word of Go's for a boolean may.
    Switch,
    /// Any value. An empty one is none, as in runc.
    Value,
    /// A whole number.
    Number,
}

/// A flag of a command.
pub(super) struct Flag {
    /// The first is the key.
    pub(super) names: &'static [&'static str],
    pub(super) kind: Kind,
    /// What it does, in a line; empty: it is not told.
    pub(super) about: &'static str,
}

pub(super) const fn switch(names: &'static [&'static str], about: &'static str) -> Flag {
    Flag { names, kind: Kind::Switch, about }
}

pub(super) const fn value(names: &'static [&'static str], about: &'static str) -> Flag {
    Flag { names, kind: Kind::Value, about }
}

pub(super) const fn number(names: &'static [&'static str], about: &'static str) -> Flag {
    Flag { names, kind: Kind::Number, about }
}

impl Flag {
    /// `--bundle value, -b value`.
    pub(super) fn forms(&self) -> String {
        let after = if self.kind == Kind::Switch { "" } else { " value" };
        let form = |name: &&str| match name.len() {
            1 => format!("-{name}{after}"),
            _ => format!("--{name}{after}"),
        };
        self.names.iter().map(form).collect::<Vec<_>>().join(", ")
    }
}

/// Why a command line is not carried out.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It asks for help.
    Help,
    Wrong(String),
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::Wrong(text)
    }
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

    /// The last value, unless it is empty: then none was given, as in runc.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.last(name).filter(|v| !v.is_empty())
    }

    /// The last value, also an empty one.
    pub(super) fn last(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(|v| v.last()).map(String::as_str)
    }

    pub(super) fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// A value as a number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        match self.value(name) {
            None => Ok(None),
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

/// Parses the flags before the first other word. `--help` and `-h` are flags of every command. What was
/// read before something wrong is in `out`, too.
pub(super) fn parse(args: &[String], groups: &[&[Flag]], out: &mut Parsed) -> Result<(), Refusal> {
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
        let flag = groups.iter().copied().flatten().find(|f| f.names.contains(&name));
        let Some(Flag { names, kind, .. }) = flag else {
            return Err(match name {
                "help" | "h" => Refusal::Help,
                _ => format!("flag provided but not defined: -{name}").into(),
            });
        };
        let value = match (inline, kind) {
            (Some(value), Kind::Switch) if boolean(&value).is_none() => {
                let text = format!("invalid boolean value {value:?} for -{name}: parse error");
                return Err(text.into());
            }
            (Some(value), _) => value,
            (None, Kind::Switch) => "true".to_owned(),
            (None, _) => {
                at += 1;
                args.get(at - 1)
                    .cloned()
                    .ok_or_else(|| format!("flag needs an argument: -{name}"))?
            }
        };
        if *kind == Kind::Number && value.parse::<i64>().is_err() {
            return Err(format!("invalid value {value:?} for flag -{name}: parse error").into());
        }
        out.values.entry(names[0]).or_default().push(value);
    }
    out.rest = args.get(at..).unwrap_or_default().to_vec();
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_forms_and_the_end_of_flags() {
        let flags =
            [value(&["bundle", "b"], "x"), switch(&["detach", "d"], "y"), number(&["n"], "")];
        let parse = |args: &[String]| {
            let mut out = Parsed::default();
            super::parse(args, &[&flags[..1], &flags[1..]], &mut out).map(|()| out)
        };
        let args = |s: &str| s.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let p = parse(&args("-b /x --detach id -d sh")).unwrap();
        assert_eq!((p.value("bundle"), p.is_set("detach")), (Some("/x"), true));
        assert_eq!(p.rest, ["id", "-d", "sh"]);
        let p = parse(&args("--bundle=/y=z -d=false -- -x")).unwrap();
        assert_eq!((p.value("bundle"), p.is_set("detach")), (Some("/y=z"), false));
        assert_eq!(p.rest, ["-x"]);
        for (word, want) in
            [("1", true), ("t", true), ("TRUE", true), ("0", false), ("f", false), ("False", false)]
        {
            let p = parse(&args(&format!("-d --detach={word}"))).unwrap();
            assert_eq!(p.is_set("detach"), want, "{word}");
        }
        for word in ["", "yes", "tRUE", "2", "no"] {
            match parse(&args(&format!("-d={word}"))) {
                Err(Refusal::Wrong(text)) => {
                    assert!(text.contains("for -d: parse error"), "{text}")
                }
                other => panic!("{word}: {other:?}"),
            }
        }
        assert!(parse(&args("--nope")).is_err());
        assert!(parse(&args("-b")).is_err());
        assert!(matches!(parse(&args("-b /x --help")), Err(Refusal::Help)));
        assert_eq!(flags[0].forms(), "--bundle value, -b value");
        for word in ["", "x", "1.5"] {
            let e = parse(&["-n".to_owned(), word.to_owned()]).unwrap_err();
            assert!(matches!(e, Refusal::Wrong(text) if text.contains("for flag -n: parse error")));
        }
        let p = parse(&args("-b /x --bundle= id")).unwrap();
        assert_eq!((p.value("bundle"), p.last("bundle")), (None, Some("")));
        assert_eq!(parse(&args("id --help")).unwrap().rest, ["id", "--help"]);
    }
}
