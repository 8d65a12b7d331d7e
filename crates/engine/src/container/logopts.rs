//! Options of the json-file log driver, from docker's words to what the shim is told
//! (moby `daemon/logger/jsonfilelog`, `loggerutils.ParseLogTag`).

use std::fmt::Write;

use serde_json::{Map, Value};

use super::{record::Record, start::parse_size};
use crate::{Error, Result};

/// Files that a log may have; the shim's own limit.
const FILES_MOST: u32 = 1000;

/// What the user set, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    /// Bytes; 0 is no limit.
    max_size: u64,
    max_file: u32,
    compress: bool,
}

/// Refuses options that docker refuses, and those that are not built.
pub(super) fn check(options: &api_types::Map<String>) -> Result<()> {
    parse(options).map(drop)
}

/// The query of the shim's `gantry://json-file` address; empty where nothing is set.
pub(super) fn query(record: &Record) -> Result<String> {
    let config = &record.host_config.log_config.config;
    let options = parse(config)?;
    let mut parts = Vec::new();
    if options.max_size != 0 {
        parts.push(format!("max-size={}", options.max_size));
    }
    if options.max_file != 1 {
        parts.push(format!("max-file={}", options.max_file));
    }
    if options.compress {
        parts.push("compress=true".into());
    }
    let attrs = attributes(record, config)?;
    if !attrs.is_empty() {
        parts.push(format!("attrs={}", encode(&Value::Object(attrs).to_string())));
    }
    Ok(parts.join("&"))
}

fn parse(config: &api_types::Map<String>) -> Result<Options> {
    let failed =
        |why: String| Error::invalid(format!("failed to initialize logging driver: {why}"));
    let mut options = Options { max_file: 1, ..Options::default() };
    for (key, value) in config {
        match key.as_str() {
            "max-size" => options.max_size = parse_size(value).map_err(|e| failed(e.message))?,
            "max-file" => {
                let count: i64 = value
                    .parse()
                    .map_err(|_| failed(format!("max-file {value:?} is not a number")))?;
                if count < 1 {
                    return Err(failed("max-file cannot be less than 1".into()));
                }
                options.max_file =
                    u32::try_from(count)
                        .ok()
                        .filter(|count| *count <= FILES_MOST)
                        .ok_or_else(|| failed(format!("max-file cannot be over {FILES_MOST}")))?;
            }
            "compress" => {
                options.compress = match value.as_str() {
                    "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                    "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                    _ => return Err(failed(format!("compress {value:?} is not true or false"))),
                }
            }
            "labels" | "env" => {}
            "tag" => drop(tag_fields(value)?),
            "mode" => match value.as_str() {
                "" | "blocking" => {}
                "non-blocking" => {
                    return Err(Error::not_implemented("log option \"mode=non-blocking\""));
                }
                other => {
                    return Err(Error::invalid(format!(
                        "logger: logging mode not supported: {other}"
                    )));
                }
            },
            "max-buffer-size" => {
                return Err(Error::invalid(
                    "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
                ));
            }
            "labels-regex" | "env-regex" => {
                return Err(Error::not_implemented(format!("log option \"{key}\"")));
            }
            other => {
                return Err(Error::invalid(format!(
                    "unknown log opt '{other}' for json-file log driver"
                )));
            }
        }
    }
    if options.compress && (options.max_file < 2 || options.max_size == 0) {
        return Err(failed(
            "compress cannot be true when max-file is less than 2 or max-size is not set".into(),
        ));
    }
    Ok(options)
}

/// What every line carries: chosen labels, chosen environment, the tag.
fn attributes(record: &Record, config: &api_types::Map<String>) -> Result<Map<String, Value>> {
    let mut attrs = Map::new();
    let names = |key: &str| config.get(key).map(String::as_str).unwrap_or_default().split(',');
    for name in names("labels") {
        if let Some(value) = record.config.labels.get(name) {
            attrs.insert(name.into(), value.clone().into());
        }
    }
    for name in names("env").filter(|name| !name.is_empty()) {
        let prefix = format!("{name}=");
        let value = record.config.env.iter().find_map(|entry| entry.strip_prefix(&prefix));
        if let Some(value) = value {
            attrs.insert(name.into(), value.into());
        }
    }
    if let Some(template) = config.get("tag").filter(|template| !template.is_empty()) {
        attrs.insert("tag".into(), tag(template, record)?.into());
    }
    Ok(attrs)
}

/// A tag's text and, between `{{` and `}}`, names of fields, in turn.
fn tag_fields(template: &str) -> Result<Vec<(&str, Option<&str>)>> {
    let bad = || Error::not_implemented(format!("log tag template {template:?}"));
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some((text, tail)) = rest.split_once("{{") {
        let (action, tail) = tail.split_once("}}").ok_or_else(bad)?;
        let field = action.trim().strip_prefix('.').ok_or_else(bad)?;
        let known = ["ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName"];
        if !known.contains(&field) {
            return Err(bad());
        }
        pieces.push((text, Some(field)));
        rest = tail;
    }
    pieces.push((rest, None));
    Ok(pieces)
}

fn tag(template: &str, record: &Record) -> Result<String> {
    let mut out = String::new();
    for (text, field) in tag_fields(template)? {
        out.push_str(text);
        match field {
            Some("ID") => out.push_str(record.id.short()),
            Some("FullID") => out.push_str(record.id.as_str()),
            Some("Name") => out.push_str(&record.name),
            Some("ImageID") => out.push_str(record.image.id.short()),
            Some("ImageFullID") => out.push_str(&record.image.id.to_string()),
            Some("ImageName") => out.push_str(&record.config.image),
            Some("DaemonName") => out.push_str("docker"),
            _ => {}
        }
    }
    Ok(out)
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> api_types::Map<String> {
        pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
    }

    #[test]
    fn options_of_docker() {
        let all =
            [("max-size", "10k"), ("max-file", "3"), ("compress", "true"), ("mode", "blocking")];
        let parsed = parse(&options(&all)).unwrap();
        assert_eq!(parsed, Options { max_size: 10 << 10, max_file: 3, compress: true });
        for (pair, text) in [
            (("nope", "1"), "unknown log opt 'nope' for json-file log driver"),
            (("max-file", "0"), "max-file cannot be less than 1"),
            (("max-size", "x"), "invalid size: 'x'"),
            (("compress", "true"), "compress cannot be true when max-file is less than 2"),
            (("mode", "non-blocking"), "\"mode=non-blocking\" is not supported"),
            (("mode", "odd"), "logging mode not supported: odd"),
            (("max-buffer-size", "1m"), "max-buffer-size option is only supported"),
            (("env-regex", "^A"), "\"env-regex\" is not supported"),
            (("tag", "{{range .}}"), "log tag template"),
        ] {
            let error = check(&options(&[pair])).unwrap_err();
            assert!(error.message.contains(text), "{}", error.message);
        }
    }

    #[test]
    fn tags_and_encoding() {
        let pieces = tag_fields("a/{{.Name}}/{{ .ID }}z").unwrap();
        assert_eq!(pieces, [("a/", Some("Name")), ("/", Some("ID")), ("z", None)]);
        assert_eq!(encode("{\"k\": \"ä&\"}"), "%7B%22k%22%3A%20%22%C3%A4%26%22%7D");
    }
}
