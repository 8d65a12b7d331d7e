//! Progress messages of pull, push, load, import and build, in docker's layout.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use api_types::{JsonMessage, ProgressDetail};
use client::JsonLines;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::fmt::units;

/// Output of a quiet build that is kept in case it fails.
const MAX_CAPTURED_BYTES: usize = 64 << 20;

/// Where progress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    Stdout,
    Stderr,
    /// Only errors and results count.
    Nowhere,
}

/// Shows all messages; each `aux` goes to `aux`.
pub(crate) async fn show(
    mut messages: JsonLines<JsonMessage>,
    sink: Sink,
    mut aux: impl FnMut(&JsonMessage, &Value),
) -> Result<()> {
    let terminal = match sink {
        Sink::Stdout => std::io::stdout().is_terminal(),
        Sink::Stderr => std::io::stderr().is_terminal(),
        Sink::Nowhere => false,
    };
    let mut display = Display { terminal, ..Display::default() };
    while let Some(message) = messages.next().await? {
        if let Some(error) = error_of(&message) {
            return Err(error);
        }
        if let Some(value) = &message.aux {
            aux(&message, value);
            continue;
        }
        let text = display.message(&message, crate::term::columns(200), units::now());
        write(sink, &text)?;
    }
    Ok(())
}

/// Keeps what would be shown without a terminal (`build -q`).
pub(crate) async fn capture(
    mut messages: JsonLines<JsonMessage>,
    text: &mut String,
    mut aux: impl FnMut(&JsonMessage, &Value),
) -> Result<()> {
    let mut display = Display::default();
    while let Some(message) = messages.next().await? {
        if let Some(error) = error_of(&message) {
            return Err(error);
        }
        match &message.aux {
            Some(value) => aux(&message, value),
            None => text.push_str(&display.message(&message, 0, 0)),
        }
        if text.len() > MAX_CAPTURED_BYTES {
            return Err("the output of the build is too large to be kept".into());
        }
    }
    Ok(())
}

fn write(sink: Sink, text: &str) -> Result<()> {
    match sink {
        Sink::Stdout => {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::output)
        }
        Sink::Stderr => std::io::stderr().lock().write_all(text.as_bytes()).map_err(Error::output),
        Sink::Nowhere => Ok(()),
    }
}

fn error_of(message: &JsonMessage) -> Option<Error> {
    let (code, text) = match &message.error_detail {
        Some(detail) => (detail.code, detail.message.clone()),
        None if message.error.is_empty() => return None,
        None => (0, message.error.clone()),
    };
    let code = i32::try_from(code).ok().filter(|c| *c != 0).unwrap_or(1);
    Some(Error::Status { code, text })
}

/// The lines on a terminal that can still change.
#[derive(Debug, Default)]
struct Display {
    terminal: bool,
    lines: HashMap<String, usize>,
}

impl Display {
    fn message(&mut self, m: &JsonMessage, columns: usize, now: i64) -> String {
        let mut out = String::new();
        let mut up = 0;
        if !m.id.is_empty() && (m.progress_detail.is_some() || !m.progress.is_empty()) {
            let known = self.lines.len();
            let line = match self.lines.get(&m.id) {
                Some(line) => *line,
                None => {
                    self.lines.insert(m.id.clone(), known);
                    if self.terminal {
                        out.push('\n');
                    }
                    known
                }
            };
            up = self.lines.len() - line;
            if self.terminal {
                push(&mut out, format_args!("\x1b[{up}A"));
            }
        } else {
            // Plain text begins a new block.
            self.lines.clear();
        }
        self.body(m, columns, now, &mut out);
        if self.terminal && !m.id.is_empty() && up > 0 {
            push(&mut out, format_args!("\x1b[{up}B"));
        }
        out
    }

    fn body(&self, m: &JsonMessage, columns: usize, now: i64, out: &mut String) {
        let bar = m.progress_detail.as_ref().map(|detail| progress_bar(detail, columns, now));
        let mut end = "";
        match &bar {
            Some(_) if self.terminal && m.stream.is_empty() => {
                out.push_str("\x1b[2K\r");
                end = "\r";
            }
            Some(bar) if !bar.is_empty() => return,
            _ => {}
        }
        if !m.id.is_empty() {
            push(out, format_args!("{}: ", m.id));
        }
        if !m.from.is_empty() {
            push(out, format_args!("(from {}) ", m.from));
        }
        match (&bar, m.stream.as_str()) {
            (Some(bar), _) if self.terminal => push(out, format_args!("{} {bar}{end}", m.status)),
            (_, "") if !m.progress.is_empty() => {
                push(out, format_args!("{} {}{end}", m.status, m.progress))
            }
            (_, "") => push(out, format_args!("{}{end}\n", m.status)),
            (_, stream) => push(out, format_args!("{stream}{end}")),
        }
    }
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}

/// `[=====>     ]  1.2MB/3.4MB`.
fn progress_bar(p: &ProgressDetail, columns: usize, now: i64) -> String {
    if p.current <= 0 && p.total <= 0 {
        return String::new();
    }
    let amount = |n: i64| match p.units.as_str() {
        "" => units::size4(n),
        _ => n.to_string(),
    };
    if p.total <= 0 {
        return match p.units.as_str() {
            "" => format!("{:>8}", amount(p.current)),
            unit => format!("{} {unit}", p.current),
        };
    }
    let filled =
        usize::try_from((p.current.saturating_mul(50) / p.total).clamp(0, 50)).unwrap_or(0);
    let mut out = String::new();
    if columns > 110 {
        push(&mut out, format_args!("[{}>{}] ", "=".repeat(filled), " ".repeat(50 - filled)));
    }
    if !p.hide_counts {
        match p.units.as_str() {
            "" if p.current > p.total => push(&mut out, format_args!("{:>8}", amount(p.current))),
            "" => push(&mut out, format_args!("{:>8}/{}", amount(p.current), amount(p.total))),
            unit => push(&mut out, format_args!("{}/{} {unit}", p.current, p.total)),
        }
    }
    if columns > 50 && p.current > 0 && p.start > 0 && filled < 50 {
        let elapsed = now - p.start;
        let left = elapsed.saturating_mul(p.total - p.current) / p.current;
        push(&mut out, format_args!(" {left}s"));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(json: &str) -> JsonMessage {
        serde_json::from_str(json).unwrap()
    }

    const STREAM: [&str; 5] = [
        r#"{"status":"Pulling from library/x","id":"latest"}"#,
        r#"{"status":"Pulling fs layer","progressDetail":{},"id":"aaa"}"#,
        r#"{"status":"Downloading","progressDetail":{"current":500,"total":1000},"progress":"[==]","id":"aaa"}"#,
        r#"{"status":"Pull complete","progressDetail":{},"id":"aaa"}"#,
        r#"{"status":"Digest: sha256:1"}"#,
    ];

    #[test]
    fn plain() {
        let mut d = Display::default();
        let text: String = STREAM.iter().map(|m| d.message(&message(m), 200, 0)).collect();
        assert_eq!(
            text,
            "latest: Pulling from library/x\naaa: Pulling fs layer\naaa: Pull complete\nDigest: sha256:1\n"
        );
    }

    #[test]
    fn terminal() {
        let mut d = Display { terminal: true, ..Display::default() };
        let text: String = STREAM[..3].iter().map(|m| d.message(&message(m), 200, 0)).collect();
        assert_eq!(
            text,
            format!(
                "latest: Pulling from library/x\n\n\x1b[1A\x1b[2K\raaa: Pulling fs layer \r\x1b[1B\
                 \x1b[1A\x1b[2K\raaa: Downloading [{}>{}]     500B/1kB\r\x1b[1B",
                "=".repeat(25),
                " ".repeat(25)
            )
        );
    }

    #[test]
    fn errors() {
        let m = message(r#"{"errorDetail":{"code":7,"message":"no"},"error":"no"}"#);
        assert!(matches!(error_of(&m), Some(Error::Status { code: 7, .. })));
    }
}
