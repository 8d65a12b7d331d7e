//! Taking one logical line apart: flags, quoted words, JSON arrays.

use crate::error::ParseErrorKind;

/// Flags (`--name=value`, quotes and escapes removed) in front of the arguments, and the rest.
pub(crate) fn flags(line: &str, escape: char) -> (Vec<String>, &str) {
    let mut found = Vec::new();
    let mut rest = line.trim_start();
    while rest.starts_with("--") {
        let (word, tail) = flag_word(rest, escape);
        rest = tail.trim_start();
        if word == "--" {
            break;
        }
        found.push(word);
    }
    (found, rest)
}

fn flag_word(line: &str, escape: char) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => return (word, &line[at..]),
            ('"' | '\'', None) => quote = Some(c),
            (c, open) if c == escape && open != Some('\'') => {
                word.extend(chars.next().map(|(_, c)| c));
            }
            (c, _) => word.push(c),
        }
    }
    (word, "")
}

/// Splits at blanks outside quotes; quotes and escapes stay in the words.
pub(crate) fn split_raw(line: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => {
                quote = None;
                word.push(c);
            }
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, open) if c == escape && open != Some('\'') => {
                word.push(c);
                word.extend(chars.next());
            }
            (c, open) => {
                if open.is_none() && matches!(c, '"' | '\'') {
                    quote = Some(c);
                }
                word.push(c);
            }
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// A JSON array of strings; `None` if the text is not JSON at all (it is then shell text).
pub(crate) fn json_array(text: &str) -> Result<Option<Vec<String>>, ParseErrorKind> {
    let text = text.trim();
    if !text.starts_with('[') {
        return Ok(None);
    }
    match serde_json::from_str::<Vec<serde_json::Value>>(text) {
        Err(_) => Ok(None),
        Ok(values) => values
            .into_iter()
            .map(|value| match value {
                serde_json::Value::String(text) => Ok(text),
                _ => Err(ParseErrorKind::JsonStrings),
            })
            .collect::<Result<Vec<String>, _>>()
            .map(Some),
    }
}

/// `k=v k2="v 2"`, or the old `k the rest`. Answers the pairs and whether the old form was used.
pub(crate) fn pairs(
    command: &'static str,
    line: &str,
    escape: char,
) -> Result<(Vec<(String, String)>, bool), ParseErrorKind> {
    let words = split_raw(line, escape);
    let Some(first) = words.first() else {
        return Err(ParseErrorKind::AtLeastOne(command));
    };
    if !first.contains('=') {
        let (name, value) = line
            .trim()
            .split_once(char::is_whitespace)
            .ok_or(ParseErrorKind::TwoArguments(command))?;
        return Ok((vec![(name.into(), value.trim_start().into())], true));
    }
    let pairs = words
        .iter()
        .map(|word| {
            let (name, value) =
                word.split_once('=').ok_or_else(|| ParseErrorKind::NoEquals(word.clone()))?;
            if name.is_empty() {
                return Err(ParseErrorKind::BlankName(command));
            }
            Ok((name.to_string(), value.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok((pairs, false))
}

/// Fields of a comma-separated value; a field in double quotes may hold commas.
pub(crate) fn csv(text: &str) -> Vec<String> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields
}
