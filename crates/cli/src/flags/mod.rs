//! Flags: their tables, and a parser with the rules of docker's command line.
//!
//! clap was tried on paper and left out: pflag's errors (which scripts and people match on), its
//! `--flag=false`, its letters in clusters with values, flags that stop at the first argument and
//! docker's help pages would each have to be rebuilt on top of it, and its setup costs more than
//! everything else that `run` does in this process before connecting.

pub(crate) mod container;
pub(crate) mod image;
pub(crate) mod other;

use std::collections::HashMap;

use crate::values;

/// What a flag's value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Str,
    /// Repeatable.
    List,
    /// Repeatable, and each value is a comma-separated list.
    Slice,
    /// Repeatable `key=value`.
    Map,
    /// `key=value,…`, repeatable.
    StrMap,
    Int,
    Uint16,
    Uint64,
    /// `10`, `10k`, `1.5g`; powers of 1024.
    Bytes,
    /// Go's durations.
    Duration,
    /// Decimal number of CPUs.
    Decimal,
    Ip,
    IpSlice,
    NetSlice,
    Network,
    Mount,
    Ulimit,
    Gpus,
    /// Repeatable `name=value`.
    Filter,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Kind::Bool => "",
            Kind::Str => "string",
            Kind::List => "list",
            Kind::Slice => "strings",
            Kind::Map => "map",
            Kind::StrMap => "stringToString",
            Kind::Int => "int",
            Kind::Uint16 => "uint16",
            Kind::Uint64 => "uint",
            Kind::Bytes => "bytes",
            Kind::Duration => "duration",
            Kind::Decimal => "decimal",
            Kind::Ip => "ip",
            Kind::IpSlice => "ipSlice",
            Kind::NetSlice => "ipNetSlice",
            Kind::Network => "network",
            Kind::Mount => "mount",
            Kind::Ulimit => "ulimit",
            Kind::Gpus => "gpu-request",
            Kind::Filter => "filter",
        }
    }

    /// Refuses a malformed value, in the words of docker's parsers.
    fn check(self, value: &str) -> Result<(), String> {
        match self {
            Kind::Bool => values::boolean(value).map(|_| ()),
            Kind::Int => values::int(value).map(|_| ()),
            Kind::Uint16 => values::uint(value, 16).map(|_| ()),
            Kind::Uint64 => values::uint(value, 64).map(|_| ()),
            Kind::Bytes => values::signed_bytes(value).map(|_| ()),
            Kind::Duration => values::duration(value).map(|_| ()),
            Kind::Decimal => values::nano_cpus(value).map(|_| ()),
            Kind::Ip => values::ip(value).map(|_| ()),
            Kind::IpSlice => value.split(',').try_for_each(|v| values::ip(v.trim()).map(|_| ())),
            Kind::Filter => values::filter(value).map(|_| ()),
            Kind::Ulimit => crate::opts::ulimit(value).map(|_| ()),
            Kind::Mount => crate::opts::mount(value).map(|_| ()),
            Kind::Gpus => crate::opts::gpus(value).map(|_| ()),
            Kind::Network => crate::opts::network_attachment(value).map(|_| ()),
            Kind::StrMap => values::csv(value).and_then(|pairs| {
                pairs.iter().try_for_each(|pair| match pair.contains('=') {
                    true => Ok(()),
                    false => Err(format!("{pair} must be formatted as key=value")),
                })
            }),
            Kind::Str | Kind::List | Kind::Slice | Kind::Map | Kind::NetSlice => Ok(()),
        }
    }
}

/// One flag of a command.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    pub name: &'static str,
    pub short: Option<char>,
    pub kind: Kind,
    pub help: &'static str,
    pub default: &'static str,
    pub hidden: bool,
    pub deprecated: bool,
    /// Needs this minor version of the API; 0 any.
    pub min_api: u16,
    /// Accepted at its default only: it means something on Windows alone.
    pub windows: bool,
}

impl Flag {
    pub(crate) const fn new(name: &'static str, kind: Kind, help: &'static str) -> Flag {
        Flag {
            name,
            short: None,
            kind,
            help,
            default: "",
            hidden: false,
            deprecated: false,
            min_api: 0,
            windows: false,
        }
    }

    pub(crate) const fn short(mut self, letter: char) -> Flag {
        self.short = Some(letter);
        self
    }

    pub(crate) const fn default(mut self, value: &'static str) -> Flag {
        self.default = value;
        self
    }

    pub(crate) const fn hidden(mut self) -> Flag {
        self.hidden = true;
        self
    }

    pub(crate) const fn deprecated(mut self) -> Flag {
        self.deprecated = true;
        self
    }

    pub(crate) const fn api(mut self, minor: u16) -> Flag {
        self.min_api = minor;
        self
    }

    pub(crate) const fn windows(mut self) -> Flag {
        self.windows = true;
        self
    }

    fn shown(&self) -> String {
        match self.short {
            Some(letter) => format!("-{letter}, --{}", self.name),
            None => format!("--{}", self.name),
        }
    }
}

/// The flags of one command, in groups so that commands can share some.
pub type FlagSets = &'static [&'static [Flag]];

fn find(sets: FlagSets, name: &str) -> Option<&'static Flag> {
    sets.iter().flat_map(|set| set.iter()).find(|flag| flag.name == name)
}

fn find_short(sets: FlagSets, letter: char) -> Option<&'static Flag> {
    sets.iter().flat_map(|set| set.iter()).find(|flag| flag.short == Some(letter))
}

/// What was given on a command line. Values are already checked against their kinds.
#[derive(Debug, Default, Clone)]
pub struct Matches {
    given: HashMap<&'static str, Vec<String>>,
    sets: FlagSets,
    /// Everything that is no flag.
    pub args: Vec<String>,
    /// `--help` was given; then nothing else counts.
    pub help: bool,
}

impl Matches {
    /// The command has the flag.
    pub(crate) fn has(&self, name: &str) -> bool {
        find(self.sets, name).is_some()
    }

    /// The flag was given.
    pub(crate) fn changed(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// The last value given, or `None`.
    pub(crate) fn given(&self, name: &str) -> Option<&str> {
        self.given.get(name).and_then(|v| v.last()).map(String::as_str)
    }

    /// The last value given, or the default.
    pub(crate) fn text(&self, name: &str) -> &str {
        let default = || find(self.sets, name).map_or("", |flag| flag.default);
        self.given(name).unwrap_or_else(default)
    }

    pub(crate) fn string(&self, name: &str) -> String {
        self.text(name).to_owned()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        values::boolean(self.text(name)).unwrap_or(false)
    }

    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        self.given.get(name).cloned().unwrap_or_default()
    }

    /// All values of a comma-separated, repeatable flag.
    pub(crate) fn slice(&self, name: &str) -> Vec<String> {
        self.list(name).iter().flat_map(|v| values::csv(v).unwrap_or_default()).collect()
    }

    pub(crate) fn int(&self, name: &str) -> i64 {
        values::int(self.text(name)).unwrap_or(0)
    }

    pub(crate) fn given_int(&self, name: &str) -> Option<i64> {
        self.given(name).and_then(|v| values::int(v).ok())
    }

    pub(crate) fn bytes(&self, name: &str) -> i64 {
        values::signed_bytes(self.text(name)).unwrap_or(0)
    }

    /// Nanoseconds.
    pub(crate) fn duration(&self, name: &str) -> i64 {
        values::duration(self.text(name)).unwrap_or(0)
    }

    pub(crate) fn nano_cpus(&self, name: &str) -> i64 {
        values::nano_cpus(self.text(name)).unwrap_or(0)
    }

    /// `key=value` pairs; a key without `=` has an empty value.
    pub(crate) fn map(&self, name: &str) -> api_types::Map<String> {
        self.list(name).iter().map(|pair| values::key_value(pair)).collect()
    }

    pub(crate) fn filters(&self, name: &str) -> api_types::Filters {
        let mut filters = api_types::Filters::default();
        for (key, value) in self.list(name).iter().filter_map(|f| values::filter(f).ok()) {
            filters.add(key, value);
        }
        filters
    }

    /// The flags given whose tables say `windows`, and those newer than the API version.
    pub(crate) fn given_flags(&self) -> impl Iterator<Item = &'static Flag> + '_ {
        let all = self.sets.iter().flat_map(|set| set.iter());
        all.filter(|flag| self.given.contains_key(flag.name))
    }
}

/// Parses `args` (without the command's name). With `stop_at_first`, everything from the first
/// argument on belongs to the container's command.
pub(crate) fn parse(
    sets: FlagSets,
    args: impl IntoIterator<Item = String>,
    stop_at_first: bool,
) -> Result<Matches, String> {
    let mut m = Matches { sets, ..Matches::default() };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            m.args.extend(args.by_ref());
        } else if let Some(long) = arg.strip_prefix("--") {
            parse_long(&mut m, long, &arg, &mut args)?;
        } else if arg.len() > 1 && arg.starts_with('-') {
            parse_short(&mut m, &arg[1..], &mut args)?;
        } else {
            m.args.push(arg);
            if stop_at_first {
                m.args.extend(args.by_ref());
            }
        }
    }
    Ok(m)
}

fn parse_long(
    m: &mut Matches,
    long: &str,
    arg: &str,
    args: &mut impl Iterator<Item = String>,
) -> Result<(), String> {
    let (name, value) = match long.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (long, None),
    };
    if name.is_empty() || name.starts_with('-') {
        return Err(format!("bad flag syntax: {arg}"));
    }
    let Some(flag) = find(m.sets, name) else {
        if name == "help" {
            m.help = value.is_none_or(|v| values::boolean(&v).unwrap_or(true));
            return Ok(());
        }
        return Err(format!("unknown flag: --{name}"));
    };
    let value = match value {
        Some(value) => value,
        None if flag.kind == Kind::Bool => "true".to_owned(),
        None => args.next().ok_or_else(|| format!("flag needs an argument: --{name}"))?,
    };
    add(m, flag, value)
}

fn parse_short(
    m: &mut Matches,
    cluster: &str,
    args: &mut impl Iterator<Item = String>,
) -> Result<(), String> {
    let mut rest = cluster;
    while let Some(letter) = rest.chars().next() {
        let tail = &rest[letter.len_utf8()..];
        let Some(flag) = find_short(m.sets, letter) else {
            if letter == 'h' {
                m.help = true;
                return Ok(());
            }
            return Err(format!("unknown shorthand flag: '{letter}' in -{rest}"));
        };
        if let Some(value) = tail.strip_prefix('=') {
            return add(m, flag, value.to_owned());
        }
        if flag.kind == Kind::Bool {
            add(m, flag, "true".to_owned())?;
            rest = tail;
            continue;
        }
        let value = match tail {
            "" => args
                .next()
                .ok_or_else(|| format!("flag needs an argument: '{letter}' in -{rest}"))?,
            tail => tail.to_owned(),
        };
        return add(m, flag, value);
    }
    Ok(())
}

fn add(m: &mut Matches, flag: &'static Flag, value: String) -> Result<(), String> {
    flag.kind.check(&value).map_err(|why| {
        format!("invalid argument {value:?} for \"{}\" flag: {why}", flag.shown())
    })?;
    m.given.entry(flag.name).or_default().push(value);
    Ok(())
}

/// The lines of an options section, wrapped at `width` columns.
pub(crate) fn describe(sets: FlagSets, width: usize) -> Vec<String> {
    let mut flags: Vec<&Flag> = sets.iter().flat_map(|set| set.iter()).collect();
    flags.retain(|flag| !flag.hidden && !flag.deprecated);
    flags.sort_by_key(|flag| flag.name);
    let heads: Vec<String> = flags
        .iter()
        .map(|flag| {
            let short = flag.short.map_or("    ".to_owned(), |letter| format!("-{letter}, "));
            let label = flag.kind.label();
            let gap = if label.is_empty() { "" } else { " " };
            format!("  {short}--{}{gap}{label}", flag.name)
        })
        .collect();
    let column = heads.iter().map(|h| h.chars().count()).max().unwrap_or(0) + 3;
    let mut lines = Vec::new();
    for (flag, head) in flags.iter().zip(heads) {
        let mut text = flag.help.to_owned();
        match (flag.kind, flag.default) {
            (_, "") => {}
            (Kind::Str, default) => text.push_str(&format!(" (default {default:?})")),
            (_, default) => text.push_str(&format!(" (default {default})")),
        }
        let mut head = head;
        for line in wrap(&text, width.saturating_sub(column).max(24)) {
            lines.push(format!("{head:<column$}{line}"));
            head.clear();
        }
    }
    lines
}

/// Breaks a text at blanks.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
