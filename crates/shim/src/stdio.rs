//! Where a process's streams go: the forms of `stdin`, `stdout` and `stderr` in Create and Exec.
//!
//! Output: empty (`/dev/null`); a path or `fifo://PATH`; `file://PATH`;
//! `binary://PROGRAM?key=value`; `gantry://none`;
//! `gantry://json-file/PATH?max-size=BYTES&max-file=N&compress=BOOL&attrs=JSON`.
//! Input: empty; a path or `fifo://PATH`; `gantry://attach[?once=true]`.
//! Paths and values of URLs are percent-decoded.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// Longest accepted stream text, in bytes; a path is at most 4096, the rest is options.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// The texts of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct StdioTexts {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Where standard input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Null,
    Fifo(PathBuf),
    /// Attached clients; with `once`, closed when the first client that had it goes.
    Attach {
        once: bool,
    },
}

/// Where an output stream goes beside attached clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// `/dev/null`; nothing is read.
    Null,
    /// Attached clients only.
    Clients,
    Fifo(PathBuf),
    File(PathBuf),
    JsonFile(LogOptions),
    Binary {
        program: PathBuf,
        arguments: Vec<String>,
    },
}

/// docker's options of the json-file driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) path: PathBuf,
    /// Bytes after which a file is full; `None`: never.
    pub(crate) max_size: Option<u64>,
    /// Files that are kept, the current one included; at least 1.
    pub(crate) max_file: u32,
    /// gzip the files that are full.
    pub(crate) compress: bool,
    /// JSON object that every line has as `attrs`: labels, environment, tag.
    pub(crate) attrs: Option<String>,
}

impl Input {
    pub(crate) fn parse(text: &str) -> Result<Input> {
        check_length("stdin", text)?;
        if text.is_empty() {
            return Ok(Input::Null);
        }
        if let Some(path) = plain_or_fifo(text)? {
            return Ok(Input::Fifo(path));
        }
        if let Some(rest) = text.strip_prefix("gantry://attach") {
            let mut once = false;
            for (key, value) in query(rest.strip_prefix('?').unwrap_or(rest))? {
                match key.as_str() {
                    "once" => once = boolean("stdin once", &value)?,
                    _ => return Err(unknown_option("stdin", &key)),
                }
            }
            return Ok(Input::Attach { once });
        }
        Err(Error::unsupported(format!("stdin {text:?}")))
    }
}

impl Output {
    /// `stream` is `stdout` or `stderr`, for errors.
    pub(crate) fn parse(stream: &'static str, text: &str) -> Result<Output> {
        check_length(stream, text)?;
        if text.is_empty() {
            return Ok(Output::Null);
        }
        if let Some(path) = plain_or_fifo(text)? {
            return Ok(Output::Fifo(path));
        }
        let (head, tail) = text.split_once('?').unwrap_or((text, ""));
        if head == "gantry://none" && tail.is_empty() {
            return Ok(Output::Clients);
        }
        if let Some(path) = head.strip_prefix("gantry://json-file") {
            return log_options(stream, path, tail).map(Output::JsonFile);
        }
        if let Some(path) = head.strip_prefix("file://") {
            return Ok(Output::File(absolute(stream, path)?));
        }
        if let Some(path) = head.strip_prefix("binary://") {
            // containerd: each key is an argument, followed by its value unless that is empty.
            let mut arguments = Vec::new();
            for (key, value) in query(tail)? {
                arguments.push(key);
                if !value.is_empty() {
                    arguments.push(value);
                }
            }
            return Ok(Output::Binary { program: absolute(stream, path)?, arguments });
        }
        Err(Error::unsupported(format!("{stream} {text:?}")))
    }
}

fn log_options(stream: &'static str, path: &str, tail: &str) -> Result<LogOptions> {
    let mut options = LogOptions {
        path: absolute(stream, path)?,
        max_size: None,
        max_file: 1,
        compress: false,
        attrs: None,
    };
    for (key, value) in query(tail)? {
        match key.as_str() {
            "max-size" => options.max_size = Some(number(&key, &value)?),
            "max-file" => {
                let count = number(&key, &value)?;
                options.max_file = u32::try_from(count)
                    .ok()
                    .filter(|n| (1..=1000).contains(n))
                    .ok_or_else(|| Error::invalid(format!("max-file {value}: not in 1..1000")))?;
            }
            "compress" => options.compress = boolean(&key, &value)?,
            "attrs" => {
                let attrs: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(&value)
                        .map_err(|source| Error::Json { object: "attrs".into(), source })?;
                if !attrs.is_empty() {
                    options.attrs = Some(serde_json::Value::Object(attrs).to_string());
                }
            }
            _ => return Err(unknown_option(stream, &key)),
        }
    }
    if options.max_size == Some(0) {
        options.max_size = None;
    }
    Ok(options)
}

fn check_length(stream: &str, text: &str) -> Result<()> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::invalid(format!("{stream}: more than {TEXT_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn plain_or_fifo(text: &str) -> Result<Option<PathBuf>> {
    if text.starts_with('/') {
        return Ok(Some(PathBuf::from(text)));
    }
    match text.strip_prefix("fifo://") {
        Some(path) => absolute("fifo", path).map(Some),
        None if text.contains("://") => Ok(None),
        None => Err(Error::invalid(format!("{text:?}: not an absolute path"))),
    }
}

fn absolute(stream: &str, encoded: &str) -> Result<PathBuf> {
    let path = decode(encoded)?;
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Error::invalid(format!("{stream} {path:?}: not an absolute path")));
    }
    Ok(PathBuf::from(path))
}

fn unknown_option(stream: &str, key: &str) -> Error {
    Error::invalid(format!("{stream}: unknown option {key:?}"))
}

fn number(key: &str, value: &str) -> Result<u64> {
    value.parse().map_err(|_| Error::invalid(format!("{key} {value:?}: not a number")))
}

fn boolean(key: &str, value: &str) -> Result<bool> {
    value.parse().map_err(|_| Error::invalid(format!("{key} {value:?}: not true or false")))
}

fn query(text: &str) -> Result<Vec<(String, String)>> {
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode(&key.replace('+', " "))?, decode(&value.replace('+', " "))?))
        })
        .collect()
}

fn decode(text: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let pair = digit(bytes.next()).zip(digit(bytes.next()));
        let value = pair.and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        out.push(value.ok_or_else(|| Error::invalid(format!("{text:?}: bad percent-encoding")))?);
    }
    String::from_utf8(out).map_err(|_| Error::invalid(format!("{text:?}: not UTF-8")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(Output::parse("stdout", "").unwrap(), Output::Null);
        assert_eq!(Output::parse("stdout", "gantry://none").unwrap(), Output::Clients);
        assert_eq!(Output::parse("stdout", "/a b").unwrap(), Output::Fifo("/a b".into()));
        assert_eq!(Output::parse("stdout", "file:///a%20b").unwrap(), Output::File("/a b".into()));
        let log = "gantry://json-file/var/l%3Fg?max-size=10&max-file=3&compress=true\
                   &attrs=%7B%22k%22%3A%22v%22%7D";
        assert_eq!(
            Output::parse("stdout", log).unwrap(),
            Output::JsonFile(LogOptions {
                path: "/var/l?g".into(),
                max_size: Some(10),
                max_file: 3,
                compress: true,
                attrs: Some(r#"{"k":"v"}"#.into()),
            })
        );
        assert_eq!(
            Output::parse("stdout", "binary:///bin/x?a=1&b").unwrap(),
            Output::Binary {
                program: "/bin/x".into(),
                arguments: vec!["a".into(), "1".into(), "b".into()]
            }
        );
        assert_eq!(Input::parse("gantry://attach").unwrap(), Input::Attach { once: false });
        assert_eq!(
            Input::parse("gantry://attach?once=true").unwrap(),
            Input::Attach { once: true }
        );
    }

    #[test]
    fn refusals() {
        for text in ["relative", "file://relative", "gantry://local/x", "npipe://x", "file:///%zz"]
        {
            assert!(Output::parse("stdout", text).is_err(), "{text}");
        }
        for text in ["gantry://json-file/l?max-file=0", "gantry://json-file/l?colour=red"] {
            assert!(Output::parse("stdout", text).is_err(), "{text}");
        }
        assert!(Input::parse("gantry://attach?twice=true").is_err());
    }
}
