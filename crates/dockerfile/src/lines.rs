//! Lines of a file: directives, comments, continuations and heredocs.

use std::borrow::Cow;

use crate::{
    Directives, Heredoc, Lines,
    error::{ParseError, ParseErrorKind},
    expand::Expander,
};

/// Bytes of a Dockerfile.
pub const FILE_BYTES: usize = 8 << 20;
/// Instructions of a Dockerfile.
pub const INSTRUCTIONS: usize = 10_000;

/// One instruction as text, its continuation lines joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logical {
    pub(crate) text: String,
    pub(crate) lines: Lines,
    pub(crate) heredocs: Vec<Heredoc>,
    /// First of the blank lines inside a continuation.
    pub(crate) blank_inside: Option<u32>,
}

/// What a file says before it is taken apart.
pub(crate) struct Split {
    pub(crate) directives: Directives,
    pub(crate) logical: Vec<Logical>,
}

struct Reader<'t> {
    lines: Vec<&'t str>,
    at: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Option<&'t str> {
        let line = self.lines.get(self.at)?;
        self.at += 1;
        Some(line)
    }

    /// The number of the line read last, from 1.
    fn number(&self) -> u32 {
        u32::try_from(self.at).unwrap_or(u32::MAX)
    }
}

pub(crate) fn split(text: &str) -> Result<Split, ParseError> {
    let whole = |kind| ParseError { lines: Lines { start: 0, end: 0 }, kind };
    if text.len() > FILE_BYTES {
        return Err(whole(ParseErrorKind::TooLarge(FILE_BYTES)));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> =
        text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let directives = directives(&lines)?;
    let mut reader = Reader { lines, at: 0 };
    let mut logical = Vec::new();
    while let Some(line) = reader.next() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let start = reader.number();
        let one = read_logical(&mut reader, line, start, directives.escape)?;
        if !one.text.trim().is_empty() {
            logical.push(one);
        }
        if logical.len() > INSTRUCTIONS {
            return Err(whole(ParseErrorKind::TooMany(INSTRUCTIONS)));
        }
    }
    if logical.is_empty() {
        return Err(whole(ParseErrorKind::Empty));
    }
    Ok(Split { directives, logical })
}

/// Joins continuation lines after the first, then reads the heredocs that the line announces.
fn read_logical(
    reader: &mut Reader<'_>,
    first: &str,
    start: u32,
    escape: char,
) -> Result<Logical, ParseError> {
    let (part, mut complete) = without_continuation(first, escape);
    let mut text = part.into_owned();
    let mut blank_inside = None;
    while !complete {
        let Some(line) = reader.next() else { break };
        let trimmed = line.trim_start();
        if trimmed.starts_with('#') {
            continue;
        }
        if trimmed.is_empty() {
            blank_inside.get_or_insert(reader.number());
            continue;
        }
        let (part, end) = without_continuation(line, escape);
        text.push_str(&part);
        complete = end;
    }
    let text = text.trim().to_string();
    let mut heredocs = announced(&text, escape);
    for heredoc in &mut heredocs {
        if !read_heredoc(reader, heredoc) {
            let lines = Lines { start, end: reader.number() };
            return Err(ParseError { lines, kind: ParseErrorKind::UnterminatedHeredoc });
        }
    }
    Ok(Logical { text, lines: Lines { start, end: reader.number() }, heredocs, blank_inside })
}

/// Reads the body up to its delimiter; false when the file ends first.
fn read_heredoc(reader: &mut Reader<'_>, heredoc: &mut Heredoc) -> bool {
    while let Some(line) = reader.next() {
        let end = if heredoc.strip_tabs { line.trim_start_matches('\t') } else { line };
        if end == heredoc.name {
            return true;
        }
        heredoc.content.push_str(line);
        heredoc.content.push('\n');
    }
    false
}

/// The line without its continuation character, and whether it ends here.
fn without_continuation(line: &str, escape: char) -> (Cow<'_, str>, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        // A doubled escape character is an escaped one.
        Some(rest) if !rest.ends_with(escape) => (rest.into(), false),
        _ => (line.into(), true),
    }
}

/// The heredocs that a line starts: only RUN, COPY and ADD (and ONBUILD before them) can.
fn announced(text: &str, escape: char) -> Vec<Heredoc> {
    let mut words = text.splitn(2, char::is_whitespace);
    let command = words.next().unwrap_or_default().to_ascii_uppercase();
    let rest = words.next().unwrap_or_default().trim_start();
    match command.as_str() {
        "ONBUILD" => return announced(rest, escape),
        "RUN" | "COPY" | "ADD" if rest.contains("<<") => {}
        _ => return Vec::new(),
    }
    let after_flags = crate::words::flags(rest, escape).1;
    if after_flags.starts_with('[')
        && serde_json::from_str::<Vec<String>>(after_flags.trim()).is_ok()
    {
        return Vec::new();
    }
    crate::words::split_raw(after_flags, escape)
        .iter()
        .filter_map(|word| heredoc_word(word, escape))
        .collect()
}

/// `<<EOF`, `<<-EOF`, `3<<"EOF"`.
pub(crate) fn heredoc_word(word: &str, escape: char) -> Option<Heredoc> {
    let word = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = word.strip_prefix("<<")?;
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let nothing = |_: &str| None;
    let mut expander = Expander::new(escape, &nothing);
    let mut words = expander.words(&rest.replace('$', &format!("{escape}$"))).ok()?;
    let name = words.pop().filter(|name| words.is_empty() && !name.is_empty())?;
    let expand = name == rest;
    Some(Heredoc { name, content: String::new(), expand, strip_tabs })
}

fn directives(lines: &[&str]) -> Result<Directives, ParseError> {
    let mut found = Directives::default();
    let mut seen: Vec<String> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        if index == 0 && line.starts_with("#!") {
            continue;
        }
        let Some((key, value)) = directive(line) else { break };
        let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let fail = |kind| ParseError { lines: Lines { start: number, end: number }, kind };
        if seen.contains(&key) {
            return Err(fail(ParseErrorKind::DuplicateDirective(key)));
        }
        match key.as_str() {
            "syntax" => found.syntax = Some(value.into()),
            "check" => found.check = Some(value.into()),
            "escape" => {
                found.escape = match value {
                    "\\" => '\\',
                    "`" => '`',
                    other => return Err(fail(ParseErrorKind::Escape(other.into()))),
                }
            }
            _ => break,
        }
        seen.push(key);
    }
    Ok(found)
}

/// `# key = value`
fn directive(line: &str) -> Option<(String, &str)> {
    let (key, value) = line.strip_prefix('#')?.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let letters = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.bytes().all(|b| b.is_ascii_alphanumeric());
    (letters && !value.is_empty()).then(|| (key.to_ascii_lowercase(), value))
}
