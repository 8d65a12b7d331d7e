//! Patterns over paths, matched in time linear in pattern × text: hostile patterns cannot blow up.

/// Which pattern language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Go's `path/filepath.Match`: `*`, `?`, `[a-z]`, `[^a]`, `\x`; `*` and `?` stop at a slash.
    Match,
    /// moby's patternmatcher: as [`Style::Match`], and `**` for any number of directories.
    Ignore,
    /// The shell's `${x#pattern}`: `*` and `?` match any character, nothing else is special.
    Shell,
}

/// The pattern is not well-formed (Go's `filepath.ErrBadPattern`).
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("syntax error in pattern {0:?}")]
pub struct BadPattern(pub String);

/// A compiled pattern. It matches whole texts only.
#[derive(Clone, Debug)]
pub struct Glob {
    tokens: Vec<Token>,
    wild: bool,
}

#[derive(Clone, Debug)]
enum Token {
    Char(char),
    /// One character that is not a slash.
    One,
    /// Any characters but slashes.
    Many,
    /// One character of all.
    Any,
    /// Any characters, slashes too.
    All,
    /// The optional entry of [`Token::DirsLoop`], which follows.
    DirsStart,
    /// Any characters that end in a slash.
    DirsLoop,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// # Errors
    /// [`BadPattern`] for an unclosed or empty class or a trailing backslash.
    pub fn compile(pattern: &str, style: Style) -> Result<Self, BadPattern> {
        let chars: Vec<char> = pattern.chars().collect();
        let bad = || BadPattern(pattern.into());
        let mut tokens = Vec::with_capacity(chars.len());
        let mut wild = false;
        let mut at = 0;
        while at < chars.len() {
            let c = chars[at];
            at += 1;
            match (c, style) {
                ('\\', _) => {
                    tokens.push(Token::Char(*chars.get(at).ok_or_else(bad)?));
                    at += 1;
                }
                ('*', Style::Ignore) if chars.get(at) == Some(&'*') => {
                    at += 1;
                    if chars.get(at) == Some(&'/') {
                        at += 1;
                    }
                    if at == chars.len() {
                        tokens.push(Token::All);
                    } else {
                        tokens.extend([Token::DirsStart, Token::DirsLoop]);
                    }
                    wild = true;
                }
                ('*', Style::Shell) => tokens.push(Token::All),
                ('?', Style::Shell) => tokens.push(Token::Any),
                ('*', _) => tokens.push(Token::Many),
                ('?', _) => tokens.push(Token::One),
                ('[', Style::Match | Style::Ignore) => {
                    let (class, next) = class(&chars, at).ok_or_else(bad)?;
                    tokens.push(class);
                    at = next;
                }
                (c, _) => tokens.push(Token::Char(c)),
            }
            wild |= matches!(c, '*' | '?' | '[');
        }
        Ok(Self { tokens, wild })
    }

    /// Does it hold anything but literal characters?
    pub fn is_wild(&self) -> bool {
        self.wild
    }

    /// The text that it stands for, if it holds only literal characters.
    pub fn literal(&self) -> Option<String> {
        self.tokens
            .iter()
            .map(|token| match token {
                Token::Char(c) => Some(*c),
                _ => None,
            })
            .collect()
    }

    pub fn matches(&self, text: &str) -> bool {
        let states = self.run(text);
        states.last() == Some(&true)
    }

    /// Could a longer text that starts with `prefix` match?
    pub fn matches_beyond(&self, prefix: &str) -> bool {
        self.run(prefix).iter().any(|alive| *alive)
    }

    /// Byte lengths of all prefixes of `text` that match, ascending.
    pub fn prefix_ends(&self, text: &str) -> Vec<usize> {
        let mut now = self.start();
        let mut ends = Vec::new();
        let accepted = |states: &[bool]| states.last() == Some(&true);
        if accepted(&now) {
            ends.push(0);
        }
        for (at, c) in text.char_indices() {
            now = self.advance(&now, c);
            if accepted(&now) {
                ends.push(at + c.len_utf8());
            }
            if !now.contains(&true) {
                break;
            }
        }
        ends
    }

    /// The pattern that matches the reversed text. Only for [`Style::Shell`], whose tokens have no
    /// direction.
    #[must_use]
    pub(crate) fn reversed(&self) -> Self {
        Self { tokens: self.tokens.iter().rev().cloned().collect(), wild: self.wild }
    }

    fn start(&self) -> Vec<bool> {
        let mut states = vec![false; self.tokens.len() + 1];
        states[0] = true;
        self.close(&mut states);
        states
    }

    fn advance(&self, now: &[bool], c: char) -> Vec<bool> {
        let mut next = vec![false; self.tokens.len() + 1];
        for (at, token) in self.tokens.iter().enumerate() {
            if now[at] {
                step(token, c, at, &mut next);
            }
        }
        self.close(&mut next);
        next
    }

    /// Which positions of the pattern are reachable after `text`; the last one is acceptance.
    fn run(&self, text: &str) -> Vec<bool> {
        text.chars().fold(self.start(), |now, c| self.advance(&now, c))
    }

    /// Adds the positions that need no character. They only lie ahead, so one pass is enough.
    fn close(&self, states: &mut [bool]) {
        for (at, token) in self.tokens.iter().enumerate() {
            if states[at] {
                match token {
                    Token::Many | Token::All => states[at + 1] = true,
                    Token::DirsStart => {
                        states[at + 1] = true;
                        states[at + 2] = true;
                    }
                    _ => {}
                }
            }
        }
    }
}

fn step(token: &Token, c: char, at: usize, next: &mut [bool]) {
    match token {
        Token::Char(want) => next[at + 1] |= *want == c,
        Token::One => next[at + 1] |= c != '/',
        Token::Any => next[at + 1] = true,
        Token::Many => next[at] |= c != '/',
        Token::All => next[at] = true,
        Token::DirsStart => {}
        Token::DirsLoop => {
            next[at] = true;
            next[at + 1] |= c == '/';
        }
        Token::Class { negated, ranges } => {
            let inside = ranges.iter().any(|(low, high)| (*low..=*high).contains(&c));
            next[at + 1] |= inside != *negated;
        }
    }
}

/// Reads a class after its `[`; answers it and the position after its `]`.
fn class(chars: &[char], mut at: usize) -> Option<(Token, usize)> {
    let negated = chars.get(at) == Some(&'^');
    if negated {
        at += 1;
    }
    let mut ranges = Vec::new();
    loop {
        if chars.get(at) == Some(&']') && !ranges.is_empty() {
            return Some((Token::Class { negated, ranges }, at + 1));
        }
        let (low, next) = class_char(chars, at)?;
        at = next;
        let mut high = low;
        if chars.get(at) == Some(&'-') {
            (high, at) = class_char(chars, at + 1)?;
        }
        ranges.push((low, high));
    }
}

fn class_char(chars: &[char], at: usize) -> Option<(char, usize)> {
    match chars.get(at)? {
        '-' | ']' => None,
        '\\' => Some((*chars.get(at + 1)?, at + 2)),
        c => Some((*c, at + 1)),
    }
}

/// Go's `path.Clean`: no empty, `.` or resolvable `..` components; `.` for nothing.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(last) if *last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".into(),
        (false, false) => joined,
    }
}
