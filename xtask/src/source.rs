//! Rules that hold line by line in Rust sources, and the lengths of files and functions.
//!
//! A small scanner, not a parser: comments and the insides of strings and characters are blanked, so
//! that braces can be counted and words looked for. Tests are known by their place (`tests/`,
//! `benches/`, `tests.rs`, `*_test.rs`, `*_tests.rs`) or by `#[cfg(test)]` before a module.

use crate::config::Config;
use crate::ratchet::Long;
use anyhow::{Context, Result};
use std::path::Path;

pub(crate) struct Source {
    /// From the top of the tree.
    pub(crate) path: String,
    /// The code: same lines and columns as the file.
    code: String,
    /// For each line whether it belongs to tests.
    is_test: Vec<bool>,
}

pub(crate) fn files(top: &Path) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for dir in ["crates", "bins", "xtask"] {
        walk(top, &top.join(dir), &mut found)?;
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(top: &Path, dir: &Path, found: &mut Vec<Source>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                walk(top, &path, found)?;
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("read {}", path.display()))?;
            let shown = path.strip_prefix(top).unwrap_or(&path).display().to_string();
            found.push(Source::new(shown, &text));
        }
    }
    Ok(())
}

impl Source {
    fn new(path: String, text: &str) -> Self {
        let code = blank(text);
        let name = path.rsplit('/').next().unwrap_or_default();
        let whole = path.split('/').any(|part| ["tests", "benches", "fuzz"].contains(&part))
            || name == "tests.rs"
            || name.ends_with("_test.rs")
            || name.ends_with("_tests.rs");
        let mut is_test = vec![whole; code.lines().count()];
        let mut from = 0;
        while let Some(found) = code[from..].find("#[cfg(test)]") {
            let start = from + found;
            from = start + 1;
            let end = block_end(&code, start).unwrap_or(code.len());
            let (first, last) = (line_of(&code, start), line_of(&code, end));
            is_test.iter_mut().take(last + 1).skip(first).for_each(|test| *test = true);
        }
        Self { path, code, is_test }
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        let numbered = self.code.lines().enumerate();
        numbered.map(|(index, line)| {
            (index + 1, line, self.is_test.get(index).copied().unwrap_or(false))
        })
    }

    /// Name, first line and number of lines of each function that has a body.
    fn functions(&self) -> Vec<(String, usize, usize)> {
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(at) = next_word(&self.code, "fn", from) {
            from = at + 2;
            let name: String = self.code[from..]
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if name.is_empty() {
                continue; // a type, `fn(u8)`
            }
            if let Some(end) = block_end(&self.code, from) {
                let (first, last) = (line_of(&self.code, at), line_of(&self.code, end));
                found.push((name, first + 1, last - first + 1));
            }
        }
        found
    }
}

/// Words that have no place in code, with the reason.
pub(crate) fn check_words(files: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        let in_sys = file.path.starts_with("crates/sys/");
        for (number, line, test) in file.lines() {
            let mut complain = |text: &str| {
                complaints.push(format!("{}:{number}: {text}", file.path));
            };
            if !in_sys && next_word(line, "unsafe", 0).is_some() {
                complain("unsafe code belongs into crates/sys");
            }
            if line.contains("#[ignore") {
                complain("an ignored test is no test; make what cannot run here a counted skip");
            }
            if !test && line.contains(".unwrap()") {
                complain("say with expect() why it cannot fail, or return the error");
            }
            for word in ["todo!", "unimplemented!", "dbg!"] {
                if line.contains(word) {
                    complain(&format!("{word} is not finished work"));
                }
            }
        }
    }
    complaints
}

pub(crate) fn long_places(config: &Config, files: &[Source]) -> Long {
    let mut long = Long::default();
    for file in files.iter().filter(|file| !config.is_table(&file.path)) {
        let lines = file.lines().filter(|(_, _, test)| !test).count();
        if lines > config.limits.file_lines {
            long.files.insert(file.path.clone(), lines);
        }
        for (name, first, lines) in file.functions() {
            let test = file.is_test.get(first - 1).copied().unwrap_or(false);
            if !test && lines > config.limits.function_lines {
                let entry = long.functions.entry(format!("{}::{name}", file.path)).or_default();
                *entry = lines.max(*entry);
            }
        }
    }
    long
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].bytes().filter(|byte| *byte == b'\n').count()
}

/// Where `word` stands alone at or after `from`.
fn next_word(text: &str, word: &str, mut from: usize) -> Option<usize> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    while let Some(found) = text.get(from..)?.find(word) {
        let start = from + found;
        let end = start + word.len();
        let before = text[..start].chars().next_back();
        let after = text[end..].chars().next();
        if !before.is_some_and(part) && !after.is_some_and(part) {
            return Some(start);
        }
        from = end;
    }
    None
}

/// The offset of the brace that closes the first block after `from`; `None` where a semicolon comes
/// first, outside all brackets.
fn block_end(code: &str, from: usize) -> Option<usize> {
    let (mut braces, mut brackets) = (0u32, 0u32);
    for (offset, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets = brackets.saturating_sub(1),
            b';' if braces == 0 && brackets == 0 => return None,
            b'{' => braces += 1,
            b'}' if braces <= 1 => return Some(offset),
            b'}' => braces -= 1,
            _ => {}
        }
    }
    None
}

/// The text with comments and the insides of literals as spaces; line ends stay.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !inside_word(bytes, at) => raw_string_end(bytes, at).unwrap_or(at),
            b'\'' => character_end(text, at).unwrap_or(at),
            _ => at,
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    // Only whole literals and comments were blanked, byte by byte, so this is text still.
    String::from_utf8_lossy(&out).into_owned()
}

fn inside_word(bytes: &[u8], at: usize) -> bool {
    // `br"…"` is a raw string as well, so a single b before does not make a word.
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    match at.checked_sub(1).and_then(|before| bytes.get(before)) {
        Some(b'b') => at >= 2 && bytes.get(at - 2).is_some_and(word),
        before => before.is_some_and(word),
    }
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |found| at + found)
}

fn comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut here) = (0u32, at);
    while here + 1 < bytes.len() {
        match &bytes[here..here + 2] {
            b"/*" => depth += 1,
            b"*/" if depth == 1 => return here + 2,
            b"*/" => depth -= 1,
            _ => {
                here += 1;
                continue;
            }
        }
        here += 2;
    }
    bytes.len()
}

fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut here = at + 1;
    while here < bytes.len() {
        match bytes[here] {
            b'\\' => here += 1,
            b'"' => return here + 1,
            _ => {}
        }
        here += 1;
    }
    bytes.len()
}

/// `r"…"`, `r#"…"#` and so on; `None` if it is something else, as `r#type`.
fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let marks = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(at + 1 + marks) != Some(&b'"') {
        return None;
    }
    let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', marks)).collect();
    let start = at + 2 + marks;
    let found = bytes.get(start..)?.windows(closing.len()).position(|part| part == closing);
    Some(found.map_or(bytes.len(), |found| start + found + closing.len()))
}

/// A character literal; `None` for a lifetime.
fn character_end(text: &str, at: usize) -> Option<usize> {
    let rest = text.get(at + 1..)?;
    let mut characters = rest.char_indices();
    let (_, first) = characters.next()?;
    if first == '\\' {
        let (_, escaped) = characters.next()?;
        let close = rest[1 + escaped.len_utf8()..].find('\'')?;
        return Some(at + 1 + 1 + escaped.len_utf8() + close + 1);
    }
    let (close, mark) = characters.next()?;
    (mark == '\'').then_some(at + 1 + close + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_comments_are_blank() {
        let text = "let a = \"x{\\\"}\"; // {\nlet b = '{'; let c: &'a str = r#\"}\"#; /* { /* } */ */ let d = b'\\'';\n";
        let code = blank(text);
        assert_eq!(code.len(), text.len());
        assert!(!code.contains(['{', '}']), "{code}");
        assert!(code.contains("&'a str"), "{code}");
        assert!(code.contains("let d = b"), "{code}");
    }

    #[test]
    fn functions_have_their_length() {
        let text = "trait T { fn none(&self) -> [u8; 3]; }\nfn one() {}\nfn three(f: fn(u8)) {\n    if true {}\n}\n";
        let source = Source::new("crates/x/src/a.rs".to_owned(), text);
        let found = source.functions();
        assert_eq!(found, [("one".to_owned(), 2, 1), ("three".to_owned(), 3, 3)]);
    }

    #[test]
    fn words_are_found_outside_of_tests_only() {
        let text = "fn a() { x.unwrap(); }\n#[cfg(test)]\nmod tests {\n    fn b() { x.unwrap(); }\n}\nfn c() { x.unwrap(); }\n";
        let found = check_words(&[Source::new("crates/x/src/a.rs".to_owned(), text)]);
        let lines: Vec<&str> = found.iter().filter_map(|line| line.split(':').nth(1)).collect();
        assert_eq!(lines, ["1", "6"]);
        let word = ["un", "safe { }"].concat();
        let found = check_words(&[Source::new("crates/x/tests/a.rs".to_owned(), &word)]);
        assert_eq!(found.len(), 1);
        assert!(check_words(&[Source::new("crates/sys/src/a.rs".to_owned(), &word)]).is_empty());
    }
}
