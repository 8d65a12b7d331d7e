//! Progress messages of pull, push, load, import and build, in docker's layout.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use api_types::{JsonMessage, ProgressDetail};
use client::JsonLines;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::fmt::units;
use crate::rates::Rates;

/// Output of a quiet build that is kept in case it fails.
const MAX_CAPTURED_BYTES: usize = 64 << 20;

/// Columns that the line of the totals needs.
const TOTAL_COLUMNS: usize = 60;
/// Where it stands among the lines: no layer has this id.
const TOTAL: &str = "";

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
    let began = std::time::Instant::now();
    while let Some(message) = messages.next().await? {
        if let Some(error) = error_of(&message) {
            return Err(error);
        }
        if let Some(value) = &message.aux {
            aux(&message, value);
            continue;
        }
        display.elapsed = began.elapsed();
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
    /// On a terminal alone; docker's client shows none.
    rates: Rates,
    /// The totals as they were shown last.
    total: String,
    /// Since the first message.
    elapsed: Duration,
}

impl Display {
    fn message(&mut self, m: &JsonMessage, columns: usize, now: i64) -> String {
        let mut out = String::new();
        let mut up = 0;
        let mut rate = None;
        if !m.id.is_empty() && (m.progress_detail.is_some() || !m.progress.is_empty()) {
            up = self.line(&m.id, &mut out);
            if self.terminal {
                rate = self.rates.note(m, self.elapsed);
            }
        } else {
            // Plain text begins a new block.
            self.lines.clear();
            self.rates = Rates::default();
        }
        let bar = m.progress_detail.as_ref().map(|detail| progress_bar(detail, columns, now, rate));
        self.body(m, bar, &mut out);
        if self.terminal && !m.id.is_empty() && up > 0 {
            push(&mut out, format_args!("\x1b[{up}B"));
        }
        if columns >= TOTAL_COLUMNS {
            self.totals(&mut out);
        }
        out
    }

    /// Goes to a line; answers how far up it is.
    fn line(&mut self, id: &str, out: &mut String) -> usize {
        let known = self.lines.len();
        let line = match self.lines.get(id) {
            Some(line) => *line,
            None => {
                self.lines.insert(id.to_owned(), known);
                if self.terminal {
                    out.push('\n');
                }
                known
            }
        };
        let up = self.lines.len() - line;
        if self.terminal {
            push(out, format_args!("\x1b[{up}A"));
        }
        up
    }

    fn totals(&mut self, out: &mut String) {
        let Some(total) = self.rates.total(self.elapsed) else { return };
        if total != self.total || !self.lines.contains_key(TOTAL) {
            let up = self.line(TOTAL, out);
            push(out, format_args!("\x1b[2K\rtotal: {total}\r\x1b[{up}B"));
            self.total = total;
        }
    }

    fn body(&self, m: &JsonMessage, bar: Option<String>, out: &mut String) {
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

/// `[=====>     ]  1.2MB/3.4MB 512kB/s`. `rate`: bytes per second.
fn progress_bar(p: &ProgressDetail, columns: usize, now: i64, rate: Option<i64>) -> String {
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
    // With a rate beside it a bar of docker's length would not fit into its columns.
    let bar = match columns {
        0..=110 => None,
        111..=122 => Some((filled * 4 / 5, 40)),
        _ => Some((filled, 50)),
    };
    if let Some((filled, cells)) = bar {
        push(&mut out, format_args!("[{}>{}] ", "=".repeat(filled), " ".repeat(cells - filled)));
    }
    if !p.hide_counts {
        match p.units.as_str() {
            "" if p.current > p.total => push(&mut out, format_args!("{:>8}", amount(p.current))),
            "" => push(&mut out, format_args!("{:>8}/{}", amount(p.current), amount(p.total))),
            unit => push(&mut out, format_args!("{}/{} {unit}", p.current, p.total)),
        }
    }
    if let Some(rate) = rate.filter(|_| columns > 60) {
        push(&mut out, format_args!(" {}/s", units::size4(rate)));
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
                 \x1b[1A\x1b[2K\raaa: Downloading [{}>{}]     500B/1kB\r\x1b[1B\
                 \n\x1b[1A\x1b[2K\rtotal: 0 of 1 layer, 500B/1kB\r\x1b[1B",
                "=".repeat(25),
                " ".repeat(25)
            )
        );
    }

    /// What a terminal of 80 columns holds after each message.
    fn screen(text: &str) -> Vec<String> {
        let (mut lines, mut row, mut column) = (vec![String::new()], 0usize, 0usize);
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '\n' => (row, column) = (row + 1, 0),
                '\r' => column = 0,
                '\x1b' => {
                    let end = rest.find(char::is_alphabetic).unwrap();
                    let count = || rest[1..end].parse::<usize>().unwrap();
                    match rest.as_bytes()[end] {
                        b'A' => row -= count(),
                        b'B' => row += count(),
                        b'K' => lines[row].clear(),
                        other => panic!("{other}"),
                    }
                    rest = &rest[end + 1..];
                    continue;
                }
                c => {
                    let line = &mut lines[row];
                    while line.len() < column {
                        line.push(' ');
                    }
                    line.truncate(column);
                    line.push(c);
                    column += 1;
                    assert!(column <= 80, "{line}");
                }
            }
            lines.resize(lines.len().max(row + 1), String::new());
        }
        lines
    }

    #[test]
    fn a_terminal_shows_rates_and_totals() {
        let mut d = Display { terminal: true, ..Display::default() };
        let moving = |id: &str, current: u32| {
            format!(
                r#"{{"status":"Downloading","progressDetail":{{"current":{current},"total":90000000}},"id":"{id}"}}"#
            )
        };
        let other = |id: &str, status: &str| {
            format!(r#"{{"status":"{status}","progressDetail":{{}},"id":"{id}"}}"#)
        };
        let mut text = String::new();
        let mut show = |at: u64, json: &str| {
            d.elapsed = Duration::from_millis(at);
            text += &d.message(&message(json), 80, 0);
            screen(&text)
        };
        show(0, STREAM[0]);
        show(0, &other("aaaaaaaaaaaa", "Pulling fs layer"));
        show(0, &other("bbbbbbbbbbbb", "Pulling fs layer"));
        show(0, &moving("aaaaaaaaaaaa", 0));
        let now = show(2000, &moving("aaaaaaaaaaaa", 46_800_000));
        assert_eq!(
            now[..4],
            [
                "latest: Pulling from library/x",
                "aaaaaaaaaaaa: Downloading   46.8MB/90MB 23.4MB/s",
                "bbbbbbbbbbbb: Pulling fs layer ",
                "total: 0 of 2 layers, 46.8MB/90MB, 23.4MB/s",
            ]
        );
        show(3000, &moving("bbbbbbbbbbbb", 90_000_000));
        show(3000, &other("bbbbbbbbbbbb", "Download complete"));
        show(4000, &other("aaaaaaaaaaaa", "Download complete"));
        show(5000, &other("aaaaaaaaaaaa", "Pull complete"));
        let now = show(5000, STREAM[4]);
        assert_eq!(
            now,
            [
                "latest: Pulling from library/x",
                "aaaaaaaaaaaa: Pull complete ",
                "bbbbbbbbbbbb: Download complete ",
                "total: 2 layers, 90MB in 4.0s, 22.5MB/s",
                "Digest: sha256:1",
                "",
            ]
        );
    }

    #[test]
    fn errors() {
        let m = message(r#"{"errorDetail":{"code":7,"message":"no"},"error":"no"}"#);
        assert!(matches!(error_of(&m), Some(Error::Status { code: 7, .. })));
    }
}
