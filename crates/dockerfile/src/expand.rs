//! Variable expansion and quote removal in a Dockerfile's words (BuildKit's `shell.Lex`, by behaviour).

use std::collections::BTreeSet;

use crate::glob::{Glob, Style};

/// Bytes of one expanded text. `ENV A=$A$A` doubles per line: this is where it stops.
pub const EXPANDED_BYTES: usize = 1 << 20;
/// Depth of `${a:-${b:-…}}`.
const NESTING: usize = 32;
/// Characters of a value in `${v/pattern/…}`, whose cost is quadratic.
const REPLACE_CHARS: usize = 4096;

/// Why a word cannot be expanded.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExpandError {
    #[error("unexpected end of statement while looking for matching single-quote")]
    SingleQuote,
    #[error("unexpected end of statement while looking for matching double-quote")]
    DoubleQuote,
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    #[error("bad substitution")]
    BadSubstitution,
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    #[error("{name}: {message}")]
    Required { name: String, message: String },
    #[error("expansion is nested more than {NESTING} deep")]
    Nesting,
    #[error("expansion is larger than {EXPANDED_BYTES} bytes")]
    TooLarge,
    #[error("value of {0} is longer than {REPLACE_CHARS} characters: too long to replace in")]
    ReplaceTooLong(String),
}

/// Expands words against one environment and keeps account of the names that were asked for.
pub struct Expander<'a> {
    escape: char,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    used: BTreeSet<String>,
    unset: BTreeSet<String>,
}

struct Scan<'t> {
    chars: &'t [char],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    fn take_if(&mut self, want: char) -> bool {
        let found = self.peek() == Some(want);
        if found {
            self.at += 1;
        }
        found
    }
}

#[derive(Default)]
struct Output {
    text: String,
    words: Vec<String>,
    word: Option<String>,
}

impl Output {
    /// A character outside quotes: blanks end a word.
    fn bare(&mut self, c: char) {
        self.text.push(c);
        if c.is_whitespace() {
            self.words.extend(self.word.take());
        } else {
            self.word.get_or_insert_default().push(c);
        }
    }

    /// Quoted or escaped text: blanks belong to the word.
    fn quoted(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.get_or_insert_default().push_str(text);
    }
}

impl<'a> Expander<'a> {
    /// `escape` is the file's escape character.
    pub fn new(escape: char, lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { escape, lookup, used: BTreeSet::new(), unset: BTreeSet::new() }
    }

    /// Names that were read so far.
    pub fn used(&self) -> &BTreeSet<String> {
        &self.used
    }

    /// Names that were read without a default and had no value.
    pub fn unset(&self) -> &BTreeSet<String> {
        &self.unset
    }

    /// One text: variables replaced, quotes and escapes removed, blanks kept.
    ///
    /// # Errors
    /// [`ExpandError`]
    pub fn text(&mut self, word: &str) -> Result<String, ExpandError> {
        Ok(self.run(word)?.text)
    }

    /// The same, split at blanks that are not quoted; a variable's value is split too.
    ///
    /// # Errors
    /// [`ExpandError`]
    pub fn words(&mut self, line: &str) -> Result<Vec<String>, ExpandError> {
        Ok(self.run(line)?.words)
    }

    /// A heredoc's body: variables replaced and `\$` unescaped; quotes stay.
    ///
    /// # Errors
    /// [`ExpandError`]
    pub fn heredoc(&mut self, content: &str) -> Result<String, ExpandError> {
        let chars: Vec<char> = content.chars().collect();
        let mut scan = Scan { chars: &chars, at: 0 };
        let mut out = String::new();
        while let Some(c) = scan.next() {
            match c {
                '$' => out.push_str(&self.dollar(&mut scan, 0)?),
                c if c == self.escape => match scan.peek() {
                    Some(next) if next == '$' || next == self.escape => {
                        out.push(next);
                        scan.at += 1;
                    }
                    _ => out.push(c),
                },
                c => out.push(c),
            }
            check_size(out.len())?;
        }
        Ok(out)
    }

    fn run(&mut self, text: &str) -> Result<Output, ExpandError> {
        let chars: Vec<char> = text.chars().collect();
        let mut scan = Scan { chars: &chars, at: 0 };
        let mut out = self.until(&mut scan, None, false, 0)?;
        out.words.extend(out.word.take());
        Ok(out)
    }

    /// Reads up to `stop` (consumed) or, without one, to the end.
    fn until(
        &mut self,
        scan: &mut Scan<'_>,
        stop: Option<char>,
        pattern: bool,
        depth: usize,
    ) -> Result<Output, ExpandError> {
        if depth > NESTING {
            return Err(ExpandError::Nesting);
        }
        let mut out = Output::default();
        while let Some(c) = scan.next() {
            check_size(out.text.len())?;
            match c {
                c if Some(c) == stop => return Ok(out),
                '\'' => out.quoted(&single_quoted(scan)?),
                '"' => {
                    let text = self.double_quoted(scan, depth)?;
                    out.quoted(&text);
                }
                '$' => {
                    let value = self.dollar(scan, depth)?;
                    value.chars().for_each(|c| out.bare(c));
                }
                c if c == self.escape => match scan.next() {
                    Some(next) if pattern => out.quoted(&format!("\\{next}")),
                    Some(next) => out.quoted(next.encode_utf8(&mut [0; 4])),
                    None => {}
                },
                '\\' if pattern => out.quoted("\\\\"),
                c => out.bare(c),
            }
        }
        if stop.is_some() { Err(ExpandError::MissingBrace) } else { Ok(out) }
    }

    fn double_quoted(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<String, ExpandError> {
        let mut text = String::new();
        loop {
            check_size(text.len())?;
            match scan.next().ok_or(ExpandError::DoubleQuote)? {
                '"' => return Ok(text),
                '$' => text.push_str(&self.dollar(scan, depth)?),
                c if c == self.escape => {
                    let next = scan.next().ok_or(ExpandError::DoubleQuote)?;
                    if next != '"' && next != '$' && next != self.escape {
                        text.push(c);
                    }
                    text.push(next);
                }
                c => text.push(c),
            }
        }
    }

    /// After a `$`.
    fn dollar(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<String, ExpandError> {
        if !scan.take_if('{') {
            let name = name(scan);
            return Ok(if name.is_empty() {
                "$".into()
            } else {
                let value = self.get(&name);
                if value.is_none() {
                    self.unset.insert(name);
                }
                value.unwrap_or_default()
            });
        }
        let name = name(scan);
        if name.is_empty() {
            return Err(match scan.peek() {
                Some(_) => ExpandError::BadSubstitution,
                None => ExpandError::MissingBrace,
            });
        }
        self.braced(scan, name, depth)
    }

    /// After `${name`.
    fn braced(
        &mut self,
        scan: &mut Scan<'_>,
        name: String,
        depth: usize,
    ) -> Result<String, ExpandError> {
        let value = self.get(&name);
        let first = scan.next().ok_or(ExpandError::MissingBrace)?;
        match first {
            '}' => {
                if value.is_none() {
                    self.unset.insert(name);
                }
                Ok(value.unwrap_or_default())
            }
            ':' => {
                let modifier = scan.next().ok_or(ExpandError::MissingBrace)?;
                if !"+-?".contains(modifier) {
                    return Err(ExpandError::Modifier(format!(":{modifier}")));
                }
                let word = self.until(scan, Some('}'), false, depth + 1)?.text;
                let value = value.filter(|value| !value.is_empty());
                choose(&name, value, modifier, word, "is not allowed to be empty or unset")
            }
            '+' | '-' | '?' => {
                let word = self.until(scan, Some('}'), false, depth + 1)?.text;
                choose(&name, value, first, word, "is not allowed to be unset")
            }
            '#' | '%' => {
                let greedy = scan.take_if(first);
                let pattern = self.until(scan, Some('}'), true, depth + 1)?.text;
                Ok(trim(&value.unwrap_or_default(), &pattern, first == '%', greedy))
            }
            '/' => {
                let all = scan.take_if('/');
                let pattern = self.until(scan, Some('/'), true, depth + 1)?.text;
                let with = self.until(scan, Some('}'), false, depth + 1)?.text;
                replace(&name, &value.unwrap_or_default(), &pattern, &with, all)
            }
            other => Err(ExpandError::Modifier(other.into())),
        }
    }

    fn get(&mut self, name: &str) -> Option<String> {
        self.used.insert(name.to_string());
        (self.lookup)(name)
    }
}

fn check_size(len: usize) -> Result<(), ExpandError> {
    if len > EXPANDED_BYTES { Err(ExpandError::TooLarge) } else { Ok(()) }
}

fn single_quoted(scan: &mut Scan<'_>) -> Result<String, ExpandError> {
    let mut text = String::new();
    loop {
        match scan.next().ok_or(ExpandError::SingleQuote)? {
            '\'' => return Ok(text),
            c => text.push(c),
        }
    }
}

/// A variable's name, a positional number, or one of the shell's special parameters.
fn name(scan: &mut Scan<'_>) -> String {
    let mut name = String::new();
    match scan.peek() {
        Some(c) if c.is_ascii_digit() => {
            while let Some(c) = scan.peek().filter(char::is_ascii_digit) {
                name.push(c);
                scan.at += 1;
            }
        }
        Some(c) if "@*#?-!$".contains(c) => {
            name.push(c);
            scan.at += 1;
        }
        _ => {
            while let Some(c) = scan.peek().filter(|c| c.is_alphanumeric() || *c == '_') {
                name.push(c);
                scan.at += 1;
            }
        }
    }
    name
}

fn choose(
    name: &str,
    value: Option<String>,
    modifier: char,
    word: String,
    refusal: &str,
) -> Result<String, ExpandError> {
    match (modifier, value) {
        ('+', Some(_)) => Ok(word),
        ('+', None) => Ok(String::new()),
        (_, Some(value)) => Ok(value),
        ('-', None) => Ok(word),
        (_, None) => Err(ExpandError::Required {
            name: name.into(),
            message: if word.is_empty() { refusal.into() } else { word },
        }),
    }
}

fn trim(value: &str, pattern: &str, suffix: bool, greedy: bool) -> String {
    let Ok(glob) = Glob::compile(pattern, Style::Shell) else { return value.into() };
    if suffix {
        let reversed: String = value.chars().rev().collect();
        let kept = cut(&reversed, &glob.reversed(), greedy);
        return kept.chars().rev().collect();
    }
    cut(value, &glob, greedy).into()
}

fn cut<'v>(value: &'v str, glob: &Glob, greedy: bool) -> &'v str {
    let ends = glob.prefix_ends(value);
    let end = if greedy { ends.last() } else { ends.first() };
    &value[end.copied().unwrap_or(0)..]
}

fn replace(
    name: &str,
    value: &str,
    pattern: &str,
    with: &str,
    all: bool,
) -> Result<String, ExpandError> {
    let Ok(glob) = Glob::compile(pattern, Style::Shell) else { return Ok(value.into()) };
    if value.chars().nth(REPLACE_CHARS).is_some() {
        return Err(ExpandError::ReplaceTooLong(name.into()));
    }
    let mut out = String::new();
    let mut rest = value;
    let mut done = false;
    while let Some(c) = rest.chars().next() {
        let end = if done { None } else { glob.prefix_ends(rest).last().copied() };
        match end {
            Some(end) if end > 0 => {
                out.push_str(with);
                rest = &rest[end..];
                done = !all;
            }
            _ => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        check_size(out.len())?;
    }
    Ok(out)
}
