//! containerd's filter language: `name==x`, `labels."a.b"!=v`, `id~=^a`, `labels.k` (is present);
//! a comma joins conditions of one filter, several filters are alternatives, none lets all pass.

use std::borrow::Cow;

use regex_automata::{
    nfa::thompson::{self, pikevm::PikeVM},
    util::syntax,
};

use crate::{Error, Labels, Result};

/// Bytes of one filter: lists are asked for by a few names, not by a program.
const FILTER_BYTES: usize = 64 << 10;
/// Filters of one request; each may be empty.
const FILTERS: usize = 1024;
/// Conditions of one request in all its filters.
const CONDITIONS: usize = 64;
/// Bytes of one request's regular expressions, compiled: hostile ones are refused, not compiled.
const REGEX_BYTES: usize = 1 << 20;

/// Characters of a pattern that an error shows.
const SHOWN: usize = 64;

/// Answers the fields of what is filtered, by path: `["labels", "a.b"]`.
pub trait Fields {
    /// The value of a field, if there is such a field.
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>>;
}

/// The label whose name a path has after `labels`. containerd joins the rest by dots.
pub fn label<'a>(labels: &'a Labels, path: &[&str]) -> Option<Cow<'a, str>> {
    labels.get(&path.join(".")).map(|value| Cow::Borrowed(value.as_str()))
}

/// Alternatives of conditions that must all hold.
#[derive(Debug)]
pub struct Filters(Vec<Vec<Condition>>);

#[derive(Debug)]
struct Condition {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Box<PikeVM>),
}

impl Filters {
    /// # Errors
    /// `InvalidArgument`, naming the filter and the place in it; `ResourceExhausted` beyond
    /// 64 conditions, or regular expressions of 1 MiB when compiled, in all filters together.
    pub fn parse(filters: &[String]) -> Result<Self> {
        if filters.len() > FILTERS {
            return Err(exhausted(format!("{} filters, {FILTERS} at most", filters.len())));
        }
        let mut budget = Budget { conditions: CONDITIONS, regex_bytes: REGEX_BYTES };
        let parsed = filters.iter().map(|text| parse(text, &mut budget));
        parsed.collect::<Result<_>>().map(Self)
    }

    pub fn matches(&self, fields: &impl Fields) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|all| all.iter().all(|condition| condition.holds(fields)))
    }
}

impl Condition {
    fn holds(&self, fields: &impl Fields) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let value = fields.field(&path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == wanted.as_str()),
            Test::NotEqual(wanted) => value.is_none_or(|value| value != wanted.as_str()),
            Test::Matches(regex) => value.is_some_and(|value| {
                let mut cache = regex.create_cache();
                regex.is_match(&mut cache, value.as_bytes())
            }),
        }
    }
}

/// What the filters of one request may still have.
struct Budget {
    conditions: usize,
    /// Of compiled regular expressions.
    regex_bytes: usize,
}

fn exhausted(text: String) -> Error {
    Error::new(types::ErrorKind::ResourceExhausted, text)
}

fn parse(text: &str, budget: &mut Budget) -> Result<Vec<Condition>> {
    if text.len() > FILTER_BYTES {
        return Err(Error::invalid(format!("a filter is longer than {FILTER_BYTES} bytes")));
    }
    let mut parser = Parser { text, rest: text };
    let mut conditions = Vec::new();
    if text.trim().is_empty() {
        return Ok(conditions);
    }
    loop {
        budget.conditions = budget.conditions.checked_sub(1).ok_or_else(|| {
            exhausted(format!(
                "the filters have more than {CONDITIONS} conditions: ask for less at once"
            ))
        })?;
        conditions.push(parser.condition(budget)?);
        match parser.rest.strip_prefix(',') {
            Some(rest) => parser.rest = rest,
            None if parser.rest.is_empty() => return Ok(conditions),
            None => return Err(parser.error("a comma or the end")),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl Parser<'_> {
    fn error(&self, expected: &str) -> Error {
        let at = self.text.len() - self.rest.len();
        Error::invalid(format!("filter {:?}: expected {expected} at byte {at}", self.text))
    }

    fn condition(&mut self, budget: &mut Budget) -> Result<Condition> {
        let mut path = vec![self.word()?];
        self.skip_spaces();
        while let Some(rest) = self.rest.strip_prefix('.') {
            self.rest = rest;
            path.push(self.word()?);
            self.skip_spaces();
        }
        let end = self.rest.find(|c| !matches!(c, '=' | '!' | '~')).unwrap_or(self.rest.len());
        let (operator, rest) = self.rest.split_at(end);
        if !matches!(operator, "" | "==" | "!=" | "~=") {
            return Err(self.error("one of the operators ==, != and ~="));
        }
        self.rest = rest;
        let test = match operator {
            "" => return Ok(Condition { path, test: Test::Present }),
            "==" => Test::Equal(self.value()?),
            "!=" => Test::NotEqual(self.value()?),
            _ => Test::Matches(Box::new(self.regex(budget)?)),
        };
        self.skip_spaces();
        Ok(Condition { path, test })
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn word(&mut self) -> Result<String> {
        self.skip_spaces();
        if self.rest.starts_with('"') {
            return self.quoted('"');
        }
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-' && c != '/')
            .unwrap_or(self.rest.len());
        if end == 0 {
            return Err(self.error("a field"));
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word.to_string())
    }

    /// A text in double quotes, or one without spaces up to the next comma. containerd takes a
    /// leading `/` for a quote; here a path needs no quotes.
    fn value(&mut self) -> Result<String> {
        self.skip_spaces();
        if self.rest.starts_with('"') {
            return self.quoted('"');
        }
        let end = self.rest.find(|c: char| c == ',' || c.is_whitespace());
        let (value, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        if value.is_empty() {
            return Err(self.error("a value"));
        }
        self.rest = rest;
        Ok(value.to_string())
    }

    fn regex(&mut self, budget: &mut Budget) -> Result<PikeVM> {
        self.skip_spaces();
        let pattern = match self.rest.chars().next() {
            Some(quote @ ('"' | '|')) => self.quoted(quote)?,
            // `/a/b/` is a quoted pattern; `/tasks/exit` a plain one.
            Some('/') if self.rest.len() > 1 && self.rest.ends_with('/') => self.quoted('/')?,
            _ => self.value()?,
        };
        let limit = thompson::Config::new().utf8(false).nfa_size_limit(Some(budget.regex_bytes));
        let regex = PikeVM::builder()
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(limit)
            .build(&pattern)
            .map_err(|error| match error.size_limit() {
                Some(_) => exhausted(format!(
                    "the filters' regular expressions take more than {REGEX_BYTES} bytes when \
                     compiled: {:?} is too much",
                    pattern.chars().take(SHOWN).collect::<String>()
                )),
                None => Error::invalid(format!("filter {:?}: {error}", self.text)),
            })?;
        budget.regex_bytes = budget.regex_bytes.saturating_sub(regex.get_nfa().memory_usage());
        Ok(regex)
    }

    /// A Go string in double quotes, with its escapes; in a pattern's other quotes a backslash is
    /// only taken away before the quote itself.
    fn quoted(&mut self, quote: char) -> Result<String> {
        let mut bytes = Vec::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.rest = &self.rest[at + c.len_utf8()..];
                return String::from_utf8(bytes).map_err(|_| self.error("text in UTF-8"));
            }
            if c != '\\' {
                push(&mut bytes, c);
                continue;
            }
            let Some((_, c)) = chars.next() else { break };
            if c == quote {
                push(&mut bytes, c);
            } else if quote != '"' {
                push(&mut bytes, '\\');
                push(&mut bytes, c);
            } else {
                let more = chars.by_ref().map(|(_, c)| c);
                escape(&mut bytes, c, more).ok_or_else(|| self.error("an escape of Go's"))?;
            }
        }
        Err(self.error("a closing quote"))
    }
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// What `\c` stands for in a Go string; `\x` and octal digits are bytes, `\u` and `\U` characters.
fn escape(bytes: &mut Vec<u8>, c: char, more: impl Iterator<Item = char>) -> Option<()> {
    let digits = |first: u32, radix: u32, count: usize, more: &mut dyn Iterator<Item = char>| {
        (0..count).try_fold(first, |sum, _| {
            sum.checked_mul(radix)?.checked_add(more.next()?.to_digit(radix)?)
        })
    };
    let mut more = more;
    let simple = match c {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' => b'\\',
        '0'..='7' => u8::try_from(digits(c.to_digit(8)?, 8, 2, &mut more)?).ok()?,
        'x' => u8::try_from(digits(0, 16, 2, &mut more)?).ok()?,
        'u' => return char::from_u32(digits(0, 16, 4, &mut more)?).map(|c| push(bytes, c)),
        'U' => return char::from_u32(digits(0, 16, 8, &mut more)?).map(|c| push(bytes, c)),
        _ => return None,
    };
    bytes.push(simple);
    Some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Thing(crate::Labels);

    impl Fields for Thing {
        fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
            match path {
                ["name"] => Some("docker.io/library/alpine:3".into()),
                ["labels", rest @ ..] => label(&self.0, rest),
                _ => None,
            }
        }
    }

    fn passes(filters: &[&str]) -> bool {
        let labels = [("a.b", "x y"), ("plain", "")].map(|(k, v)| (k.to_string(), v.to_string()));
        let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
        Filters::parse(&filters).unwrap().matches(&Thing(labels.into()))
    }

    #[test]
    fn the_language() {
        assert!(passes(&[]));
        assert!(passes(&["name==docker.io/library/alpine:3"]));
        assert!(passes(&[r#"name=="docker.io/library/alpine:3""#]));
        assert!(!passes(&["name==alpine"]));
        assert!(passes(&[r#"labels."a.b"=="x y""#, "name==no"]));
        assert!(passes(&["labels.a.b"]));
        assert!(passes(&["labels.plain"]));
        assert!(!passes(&["labels.none"]));
        assert!(passes(&["labels.none!=x"]));
        assert!(!passes(&["labels.plain,labels.none"]));
        assert!(passes(&["name~=alpine:[0-9]$,labels.plain"]));
        assert!(passes(&["name~=|^docker\\.io/|"]));
        assert!(passes(&["name~=/^docker\\.io\\/lib/"]));
        assert!(!passes(&["name~=^library"]));
        assert!(passes(&[r#" labels . "a.b" == "x y" , name != no "#]));
        assert!(passes(&[r#"name=="docker.io/library/alpine\x3a3""#]));
        assert!(passes(&[r#"labels."a.b"=="\u0078\040y""#]));
    }

    #[test]
    fn one_budget_for_all_filters_of_a_request() {
        let refused = |filters: Vec<String>| {
            let error = Filters::parse(&filters).unwrap_err();
            assert_eq!(error.kind, types::ErrorKind::ResourceExhausted, "{error}");
            error.to_string()
        };
        let large = "name~=((a{90}){90}){2}".to_string();
        assert!(Filters::parse(std::slice::from_ref(&large)).is_ok());
        let error = refused(vec![large.clone(); 64]);
        assert!(error.contains("1048576 bytes") && error.contains("a{90}"), "{error}");
        let error = refused(vec![vec![large; 60].join(",")]);
        assert!(error.contains("1048576 bytes"), "{error}");
        let many = |count: usize| (0..count).map(|n| format!("name==n{n}")).collect::<Vec<_>>();
        assert!(Filters::parse(&many(64)).is_ok());
        assert!(Filters::parse(&[many(64).join(",")]).is_ok());
        assert!(refused(many(65)).contains("64 conditions"));
        assert!(refused(vec![many(65).join(",")]).contains("64 conditions"));
        assert!(refused(vec![String::new(); 1025]).contains("1025 filters"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "==x",
            "a.==x",
            "name~=(",
            "labels.\"x==y",
            "a b",
            "name~=((a{900}){900}){900}",
            "name===x",
            "name=x",
            "name==",
            "name!=,x",
            "name~=",
            "name==\"a\"b",
            "name==a b",
            "name,,",
        ] {
            assert!(Filters::parse(&[text.to_string()]).is_err(), "{text}");
        }
    }
}
