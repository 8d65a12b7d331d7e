//! docker's json-file log, written by the shim itself.
//!
//! One object a line: `{"log":"…\n","stream":"stdout","attrs":{…},"time":"…"}`. A line of output
//! that is longer than 16 KiB becomes several, of which only the last has a newline in `log`; so
//! does output that ends without one. A file that has reached `max-size` becomes `.1`, `.1`
//! becomes `.2` (or `.1.gz`, `.2.gz`), up to `max-file` files in all.
//!
//! A write that fails (a full disk) never blocks or ends anything: the lines are counted as
//! dropped, a partly written line is cut off again, and the count is written as a line of its
//! own as soon as there is room.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::error::{Context, Result};
use crate::stdio::LogOptions;

/// Longest `log` text of one object, in bytes before escaping (docker's copier buffer).
const LINE_BYTES_MAX: usize = 16 << 10;
/// Encoded lines are written to the file in pieces of about this many bytes.
const BATCH_BYTES: usize = 64 << 10;
/// docker's mode for container logs.
const MODE: u32 = 0o640;

/// Names of the two streams, by index.
pub(crate) const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// An open log.
#[derive(Debug)]
pub(crate) struct JsonLog {
    options: LogOptions,
    /// `None` while the file cannot be opened.
    file: Option<File>,
    size: u64,
    /// Output that has not seen its newline, per stream; at most [`LINE_BYTES_MAX`].
    partial: [Vec<u8>; 2],
    batch: Vec<u8>,
    batch_lines: u64,
    dropped: u64,
    dropped_because: String,
    compressor: Option<Child>,
}

impl JsonLog {
    /// Opens the file for appending, or makes it.
    ///
    /// # Errors
    /// It cannot be opened; later failures are survived.
    pub(crate) fn open(options: LogOptions) -> Result<JsonLog> {
        let file = open_file(&options.path, false)?;
        let size = file.metadata().context("stat", || options.path.display().to_string())?.len();
        Ok(JsonLog {
            options,
            file: Some(file),
            size,
            partial: [Vec::new(), Vec::new()],
            batch: Vec::new(),
            batch_lines: 0,
            dropped: 0,
            dropped_because: String::new(),
            compressor: None,
        })
    }

    /// Takes output of a stream (0 stdout, 1 stderr).
    pub(crate) fn write(&mut self, stream: usize, mut bytes: &[u8]) {
        let time = crate::time::rfc3339_nano(&protos::shim::now());
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.partial[stream].len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|b| *b == b'\n') {
                Some(at) => {
                    self.line(stream, &bytes[..=at], &time);
                    bytes = &bytes[at + 1..];
                }
                None if window.len() == room => {
                    self.line(stream, window, &time);
                    bytes = &bytes[room..];
                }
                None => {
                    self.partial[stream].extend_from_slice(bytes);
                    bytes = &[];
                }
            }
        }
        self.flush();
    }

    /// The stream has ended: what is left becomes a line without a newline.
    pub(crate) fn end(&mut self, stream: usize) {
        if !self.partial[stream].is_empty() {
            let time = crate::time::rfc3339_nano(&protos::shim::now());
            self.line(stream, &[], &time);
            self.partial[stream] = Vec::new();
        }
        self.flush();
    }

    /// Whether the child with this pid was the log's own compressor.
    pub(crate) fn owns_child(&mut self, pid: u32) -> bool {
        let ours = self.compressor.as_ref().is_some_and(|c| c.id() == pid);
        if ours {
            self.compressor = None;
        }
        ours
    }

    fn line(&mut self, stream: usize, tail: &[u8], time: &str) {
        let before = self.batch.len();
        let mut text = std::mem::take(&mut self.partial[stream]);
        self.batch.extend_from_slice(b"{\"log\":\"");
        if text.is_empty() {
            escape(&mut self.batch, tail);
        } else {
            text.extend_from_slice(tail);
            escape(&mut self.batch, &text);
            text.clear();
            self.partial[stream] = text;
        }
        self.batch.extend_from_slice(b"\",\"stream\":\"");
        self.batch.extend_from_slice(STREAMS[stream].as_bytes());
        self.batch.push(b'"');
        if let Some(attrs) = &self.options.attrs {
            self.batch.extend_from_slice(b",\"attrs\":");
            self.batch.extend_from_slice(attrs.as_bytes());
        }
        self.batch.extend_from_slice(b",\"time\":\"");
        self.batch.extend_from_slice(time.as_bytes());
        self.batch.extend_from_slice(b"\"}\n");
        self.batch_lines += 1;
        let full = self.options.max_size.is_some_and(|max| self.size + len64(before) >= max);
        if full && before > 0 {
            // docker looks before each line: this one belongs into the next file.
            let rest = self.batch.split_off(before);
            self.batch_lines -= 1;
            self.flush();
            self.batch = rest;
            self.batch_lines = 1;
        }
        if self.batch.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.rotate_if_full();
        let mut batch = std::mem::take(&mut self.batch);
        let lines = std::mem::take(&mut self.batch_lines);
        if self.dropped > 0 {
            let note = self.dropped_note();
            if self.append(&note).is_ok() {
                self.dropped = 0;
            }
        }
        if self.dropped > 0 {
            self.dropped += lines;
        } else if let Err(error) = self.append(&batch) {
            self.dropped += lines;
            self.dropped_because = error.to_string();
        }
        // The buffer is kept while output flows, but not a large one.
        batch.clear();
        if batch.capacity() <= LINE_BYTES_MAX {
            self.batch = batch;
        }
    }

    fn dropped_note(&self) -> Vec<u8> {
        let because =
            self.dropped_because.split(" (os error").next().unwrap_or_default().to_lowercase();
        let mut note = b"{\"log\":\"".to_vec();
        escape(
            &mut note,
            format!("gantry: {} log lines dropped: {because}\n", self.dropped).as_bytes(),
        );
        let time = crate::time::rfc3339_nano(&protos::shim::now());
        note.extend_from_slice(b"\",\"stream\":\"stderr\",\"time\":\"");
        note.extend_from_slice(time.as_bytes());
        note.extend_from_slice(b"\"}\n");
        note
    }

    /// All or nothing.
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.file.is_none() {
            let file = append_options().open(&self.options.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        // Somebody may have truncated it since (`: > FILE`, logrotate's copytruncate).
        self.size = file.metadata()?.len();
        match file.write_all(bytes) {
            Ok(()) => {
                self.size += len64(bytes.len());
                Ok(())
            }
            Err(error) => {
                // Readers want whole lines. If even this fails, they skip the damaged one. Never
                // longer than it is: that would fill it with zeroes.
                let keep = file.metadata().map_or(self.size, |now| now.len().min(self.size));
                drop(file.set_len(keep));
                Err(error)
            }
        }
    }

    fn rotate_if_full(&mut self) {
        let Some(max) = self.options.max_size else { return };
        if self.size < max {
            return;
        }
        if let Some(child) = &mut self.compressor {
            match child.try_wait() {
                // Its output would be overtaken: grow a little longer instead.
                Ok(None) => return,
                Ok(Some(_)) | Err(_) => self.compressor = None,
            }
        }
        self.file = None;
        if self.options.max_file > 1 {
            self.shift();
        }
        let truncate = self.options.max_file == 1;
        if let Ok(file) = open_file(&self.options.path, truncate) {
            self.size = file.metadata().map(|m| m.len()).unwrap_or_default();
            self.file = Some(file);
        }
    }

    fn shift(&mut self) {
        let base = &self.options.path;
        // Renames that fail for want of a source are the ordinary case; others lose a rotated
        // file, never the current one.
        for n in (1..self.options.max_file - 1).rev() {
            drop(std::fs::rename(numbered(base, n, false), numbered(base, n + 1, false)));
            drop(std::fs::rename(numbered(base, n, true), numbered(base, n + 1, true)));
        }
        let first = numbered(base, 1, false);
        if std::fs::rename(base, &first).is_ok() && self.options.compress {
            self.compressor = Command::new("/proc/self/exe")
                .env_clear()
                .args([COMPRESS_FLAG.as_ref(), first.as_os_str()])
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn_named()
                .ok();
        }
    }
}

trait SpawnNamed {
    fn spawn_named(&mut self) -> std::io::Result<Child>;
}

impl SpawnNamed for Command {
    /// Under the shim's name, by which the one binary knows its role.
    fn spawn_named(&mut self) -> std::io::Result<Child> {
        use std::os::unix::process::CommandExt;
        self.arg0(crate::PROGRAM_NAME).spawn()
    }
}

/// The shim's internal flag: gzip this file, as a process of its own.
pub(crate) const COMPRESS_FLAG: &str = "-compress-log";

/// Makes `PATH.gz` of `PATH`.
///
/// # Errors
/// Reading or writing; the original stays then.
pub(crate) fn compress(path: &Path) -> Result<()> {
    let name = || path.display().to_string();
    let mut source = File::open(path).context("open", name)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".gz.tmp");
    let temporary = PathBuf::from(temporary);
    let target = open_file(&temporary, true)?;
    let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::default());
    let copied = std::io::copy(&mut source, &mut encoder).and_then(|_| encoder.finish()).map(drop);
    if let Err(error) = copied {
        drop(std::fs::remove_file(&temporary));
        return Err(error).context("compress", name);
    }
    let mut last = path.as_os_str().to_owned();
    last.push(".gz");
    std::fs::rename(&temporary, last).context("rename", name)?;
    std::fs::remove_file(path).context("remove", name)
}

fn append_options() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true).mode(MODE);
    options
}

fn open_file(path: &Path, truncate: bool) -> Result<File> {
    let name = || path.display().to_string();
    let file = append_options().open(path).context("open", name)?;
    if truncate {
        file.set_len(0).context("truncate", name)?;
    }
    Ok(file)
}

fn numbered(base: &Path, n: u32, gzip: bool) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(format!(".{n}"));
    if gzip {
        name.push(".gz");
    }
    PathBuf::from(name)
}

fn len64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Appends text as the inside of a JSON string, as Go's encoder writes it: `<`, `>`, `&`, U+2028
/// and U+2029 escaped, bytes that are not UTF-8 replaced.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                    out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        // Go replaces every byte that does not decode, not every sequence.
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(path: &Path) -> LogOptions {
        LogOptions { path: path.into(), max_size: None, max_file: 1, compress: false, attrs: None }
    }

    fn read(path: &Path) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| {
                let v: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(v["time"].as_str().unwrap().ends_with('Z'));
                (v["stream"].as_str().unwrap().into(), v["log"].as_str().unwrap().into())
            })
            .collect()
    }

    #[test]
    fn lines_and_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c-json.log");
        let mut log = JsonLog::open(options(&path)).unwrap();
        log.write(0, b"one\ntw");
        log.write(1, b"e<&\xff\n");
        log.write(0, b"o\n");
        let long = "x".repeat(LINE_BYTES_MAX + 5);
        log.write(0, long.as_bytes());
        log.write(0, b"\nend");
        log.end(0);
        log.end(1);
        let lines = read(&path);
        let out = |s: &str| ("stdout".to_owned(), s.to_owned());
        assert_eq!(
            lines,
            [
                out("one\n"),
                ("stderr".into(), "e<&\u{fffd}\n".into()),
                out("two\n"),
                out(&"x".repeat(LINE_BYTES_MAX)),
                out("xxxxx\n"),
                out("end"),
            ]
        );
        assert!(std::fs::read_to_string(&path).unwrap().contains(r"e\u003c\u0026\ufffd\n"));
    }

    #[test]
    fn rotation_keeps_the_newest_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let mut log =
            JsonLog::open(LogOptions { max_size: Some(300), max_file: 3, ..options(&path) })
                .unwrap();
        for n in 0..200 {
            log.write(0, format!("line {n}\n").as_bytes());
        }
        let mut seen = Vec::new();
        for name in ["l.2", "l.1", "l"] {
            seen.extend(read(&dir.path().join(name)).into_iter().map(|(_, text)| text));
        }
        assert!(!dir.path().join("l.3").exists());
        let first = 200 - seen.len();
        let expected: Vec<_> = (first..200).map(|n| format!("line {n}\n")).collect();
        assert_eq!(seen, expected);
        assert!(seen.len() > 5);
    }

    #[test]
    fn one_big_write_is_rotated_line_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let mut log =
            JsonLog::open(LogOptions { max_size: Some(200), max_file: 500, ..options(&path) })
                .unwrap();
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        log.write(0, text.as_bytes());
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let size = entry.unwrap().metadata().unwrap().len();
            assert!(size < 300, "{size}");
        }
    }

    #[test]
    fn a_file_truncated_by_others_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let mut log =
            JsonLog::open(LogOptions { max_size: Some(400), max_file: 2, ..options(&path) })
                .unwrap();
        for n in 0..20 {
            log.write(0, format!("line {n}\n").as_bytes());
            std::fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        }
        log.write(0, b"last\n");
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!(log.size, length);
        assert_eq!(read(&path).len(), 1);
        // Its size is what counts for rotation, not what was written over time.
        assert!(!dir.path().join("l.1").exists());
    }

    #[test]
    fn full_disk_counts_and_says_so() {
        let mut log = JsonLog::open(options(Path::new("/dev/full"))).unwrap();
        log.write(0, b"a\nb\n");
        log.write(0, b"c\n");
        assert_eq!(log.dropped, 3);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        log.options.path = path.clone();
        log.file = None;
        log.write(0, b"d\n");
        let lines = read(&path);
        assert_eq!(lines[0].1, "gantry: 3 log lines dropped: no space left on device\n");
        assert_eq!(lines[1].1, "d\n");
    }

    #[test]
    fn compressing_replaces_the_file() {
        use std::io::Read;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.1");
        std::fs::write(&path, "hello").unwrap();
        compress(&path).unwrap();
        assert!(!path.exists());
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(dir.path().join("l.1.gz")).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "hello");
    }
}
