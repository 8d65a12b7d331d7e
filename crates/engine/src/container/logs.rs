//! Reading a container's log: docker's json-file format, which the shim writes. Rotated files are read
//! first, oldest to newest; following wakes on inotify and survives rotation.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use api_types::Map;
use rustix::fs::inotify;
use serde::Deserialize;
use store_api::Timestamp;
use tokio::{io::unix::AsyncFd, sync::watch, task::JoinHandle};

use super::{Container, Progress};
use crate::{
    Engine, Error, Result,
    util::{parse_time, unix_nanos},
};

/// Bytes of one entry: docker splits lines at 16 KiB; escaped, with attributes, this is ample.
const ENTRY_BYTES: usize = 1 << 20;
const CHUNK_BYTES: usize = 64 << 10;
/// Rotated files that are looked for (docker's `max-file` has no limit; nobody has more).
const ROTATED: u32 = 1000;

/// Query of `GET /containers/{id}/logs`.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub stdout: bool,
    pub stderr: bool,
    pub follow: bool,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// `None`: all lines.
    pub tail: Option<u64>,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LogLine {
    /// With its line end, unless the line goes on in the next entry.
    #[serde(rename = "log", default)]
    pub text: String,
    #[serde(rename = "stream", default, deserialize_with = "is_stderr")]
    pub stderr: bool,
    /// RFC 3339 with nanoseconds.
    #[serde(default)]
    pub time: String,
    #[serde(default)]
    pub attrs: Map<String>,
}

fn is_stderr<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(std::borrow::Cow::<str>::deserialize(deserializer)? == "stderr")
}

/// Files that were read, and their next bytes.
type Reading = (LogFiles, Result<Option<Vec<u8>>>);

/// Entries of a log, one after the other.
pub struct LogStream {
    options: LogOptions,
    path: PathBuf,
    /// `None` while a blocking thread has them.
    files: Option<LogFiles>,
    /// Kept here, so that nothing is lost when waiting for it is given up.
    reading: Option<JoinHandle<Reading>>,
    buffer: Vec<u8>,
    /// Start of what is not yet answered in `buffer`.
    start: usize,
    skip: u64,
    watch: Option<AsyncFd<OwnedFd>>,
    progress: watch::Receiver<Progress>,
    _container: Arc<Container>,
}

impl Engine {
    /// Opens a container's log.
    ///
    /// # Errors
    /// `InvalidArgument` unless a stream is chosen; `NotImplemented` for a driver that cannot be read.
    pub fn container_logs(&self, name: &str, options: LogOptions) -> Result<(LogStream, bool)> {
        let container = self.containers.find(name)?;
        if !options.stdout && !options.stderr {
            return Err(Error::invalid("Bad parameters: you must choose at least one stream"));
        }
        let terminal = {
            let record = container.record();
            if record.host_config.log_config.r#type == "none" {
                return Err(Error::not_implemented(
                    "configured logging driver does not support reading: reading a log of driver \"none\"",
                ));
            }
            record.config.tty
        };
        Ok((LogStream::open(container, options)?, terminal))
    }
}

impl LogStream {
    pub(crate) fn open(container: Arc<Container>, options: LogOptions) -> Result<Self> {
        let path = container.log_file();
        let files = LogFiles::new(path.clone(), options.tail);
        let watch = if options.follow { Some(watch_file(&container.dir)?) } else { None };
        Ok(Self {
            options,
            path,
            files: Some(files),
            reading: None,
            buffer: Vec::new(),
            start: 0,
            skip: 0,
            watch,
            progress: container.progress.subscribe(),
            _container: container,
        })
    }

    /// The next entry that the options ask for; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<LogLine>> {
        loop {
            match self.entry().await {
                Ok(Some(line)) => {
                    if self.skip > 0 {
                        self.skip -= 1;
                        continue;
                    }
                    match self.wanted(&line) {
                        Wanted::Yes => return Some(Ok(line)),
                        Wanted::No => {}
                        Wanted::Over => return None,
                    }
                }
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn wanted(&self, line: &LogLine) -> Wanted {
        let options = &self.options;
        if (line.stderr && !options.stderr) || (!line.stderr && !options.stdout) {
            return Wanted::No;
        }
        if options.since.is_none() && options.until.is_none() {
            return Wanted::Yes;
        }
        let Ok(time) = parse_time(&line.time) else { return Wanted::Yes };
        let nanos = unix_nanos(time);
        if options.until.is_some_and(|until| nanos > unix_nanos(until)) {
            return Wanted::Over;
        }
        if options.since.is_some_and(|since| nanos < unix_nanos(since)) {
            return Wanted::No;
        }
        Wanted::Yes
    }

    async fn entry(&mut self) -> Result<Option<LogLine>> {
        loop {
            if let Some(length) = self.buffer[self.start..].iter().position(|b| *b == b'\n') {
                let line = &self.buffer[self.start..self.start + length];
                self.start += length + 1;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                // A torn entry (the host went down while it was written) is passed over.
                match serde_json::from_slice(line) {
                    Ok(line) => return Ok(Some(line)),
                    Err(error) => {
                        tracing::debug!(log = %self.path.display(), %error, "an entry is damaged");
                        continue;
                    }
                }
            }
            if self.buffer.len() - self.start > ENTRY_BYTES {
                return Err(Error::internal(format!(
                    "{}: an entry is longer than {ENTRY_BYTES} bytes",
                    self.path.display()
                )));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Reads more. Answers whether there was more, after waiting for it where the log is followed.
    async fn fill(&mut self) -> Result<bool> {
        self.buffer.drain(..self.start);
        self.start = 0;
        loop {
            // Asked before reading: what is written before the end is in the file by then.
            let ended = !self.progress.borrow().running;
            if let Some(chunk) = self.read_chunk().await? {
                self.buffer.extend_from_slice(&chunk);
                return Ok(true);
            }
            let Some(watch) = &self.watch else { return Ok(false) };
            // Only a running container's log is followed, as with moby (`daemon/logs.go`).
            if ended {
                return Ok(false);
            }
            tokio::select! {
                ready = watch.readable() => {
                    let mut ready = ready.map_err(|e| Error::io("watch", &self.path, &e))?;
                    drain_events(watch.get_ref());
                    ready.clear_ready();
                }
                changed = self.progress.changed() => {
                    if changed.is_err() {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// What comes next in the files, read by a blocking thread; `None` at their end.
    async fn read_chunk(&mut self) -> Result<Option<Vec<u8>>> {
        if self.reading.is_none() {
            let Some(mut files) = self.files.take() else { return Ok(None) };
            self.reading = Some(tokio::task::spawn_blocking(move || {
                let chunk = files.read();
                (files, chunk)
            }));
        }
        let Some(reading) = &mut self.reading else { return Ok(None) };
        let read = reading.await;
        self.reading = None;
        let (mut files, chunk) =
            read.map_err(|e| Error::internal(format!("read {}: {e}", self.path.display())))?;
        self.skip += std::mem::take(&mut files.skip);
        self.files = Some(files);
        chunk
    }
}

/// The files of a log, read one after the other by blocking threads.
struct LogFiles {
    path: PathBuf,
    /// Entries that are wanted, until the files have been looked for.
    wanted: Option<Option<u64>>,
    older: VecDeque<PathBuf>,
    reader: Option<Box<dyn Read + Send>>,
    /// Inode of the file being read, when it is the newest.
    current: Option<u64>,
    /// Entries to pass over before the wanted ones.
    skip: u64,
}

impl LogFiles {
    fn new(path: PathBuf, tail: Option<u64>) -> Self {
        Self {
            path,
            wanted: Some(tail),
            older: VecDeque::new(),
            reader: None,
            current: None,
            skip: 0,
        }
    }

    /// The next bytes; `None` at the end of what there is now.
    fn read(&mut self) -> Result<Option<Vec<u8>>> {
        if let Some(tail) = self.wanted.take() {
            self.find(tail).map_err(|e| Error::io("read", &self.path, &e))?;
        }
        loop {
            if let Some(reader) = &mut self.reader {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read =
                    reader.read(&mut chunk).map_err(|e| Error::io("read", &self.path, &e))?;
                if read > 0 {
                    chunk.truncate(read);
                    return Ok(Some(chunk));
                }
            }
            if !self.next_file()? {
                return Ok(None);
            }
        }
    }

    /// Looks for the files and, where only the last entries are wanted, opens the one that has the first
    /// of them at its place.
    fn find(&mut self, tail: Option<u64>) -> io::Result<()> {
        self.older = rotated(&self.path).into();
        if self.path.exists() {
            self.older.push_back(self.path.clone());
        }
        let Some(mut missing) = tail else { return Ok(()) };
        for index in (0..self.older.len()).rev() {
            let path = &self.older[index];
            let found = match last_entries(path, missing) {
                // Rotated away between listing and opening.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            match found {
                Tail::Fewer(entries) => missing -= entries,
                Tail::From { reader, inode, skip } => {
                    self.current = (*path == self.path).then_some(inode);
                    self.reader = Some(reader);
                    self.skip = skip;
                    self.older.drain(..=index);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Opens the next file: an older one that is left, or the newest after a rotation.
    fn next_file(&mut self) -> Result<bool> {
        let open = |path: &Path| open_log(path).map_err(|e| Error::io("open", path, &e));
        if let Some(path) = self.older.pop_front() {
            let newest = path == self.path;
            match open(&path) {
                Ok((reader, inode)) => {
                    self.reader = Some(reader);
                    self.current = newest.then_some(inode);
                    return Ok(true);
                }
                // Rotated away between listing and opening.
                Err(_) if !path.exists() => return Ok(!self.older.is_empty()),
                Err(error) => return Err(error),
            }
        }
        let Ok(meta) = std::fs::metadata(&self.path) else { return Ok(false) };
        if self.current == Some(meta.ino()) {
            return Ok(false);
        }
        let (reader, inode) = open(&self.path)?;
        self.reader = Some(reader);
        self.current = Some(inode);
        Ok(true)
    }
}

enum Wanted {
    Yes,
    No,
    Over,
}

fn open_log(path: &Path) -> io::Result<(Box<dyn Read + Send>, u64)> {
    let file = File::open(path)?;
    let inode = file.metadata()?.ino();
    if path.extension().is_some_and(|extension| extension == "gz") {
        return Ok((Box::new(archive::decompress(BufReader::new(file))?), inode));
    }
    Ok((Box::new(file), inode))
}

/// `X.3.gz`, `X.2.gz`, `X.1`, oldest first.
fn rotated(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for number in 1..ROTATED {
        let plain = PathBuf::from(format!("{}.{number}", path.display()));
        let packed = PathBuf::from(format!("{}.{number}.gz", path.display()));
        if plain.exists() {
            files.push(plain);
        } else if packed.exists() {
            files.push(packed);
        } else {
            break;
        }
    }
    files.reverse();
    files
}

/// Where the last entries of a log begin.
enum Tail {
    /// The file has only so many.
    Fewer(u64),
    /// In this file, after `skip` entries of what the reader reads.
    From { reader: Box<dyn Read + Send>, inode: u64, skip: u64 },
}

/// Finds the last `wanted` entries of one file: from its end backwards or, where it is packed, by reading
/// it through.
fn last_entries(path: &Path, wanted: u64) -> io::Result<Tail> {
    let count = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'\n').count() as u64;
    let mut chunk = vec![0; CHUNK_BYTES];
    if path.extension().is_some_and(|extension| extension == "gz") {
        let (mut reader, _) = open_log(path)?;
        let mut entries = 0;
        loop {
            match reader.read(&mut chunk)? {
                0 => break,
                read => entries += count(&chunk[..read]),
            }
        }
        if entries < wanted {
            return Ok(Tail::Fewer(entries));
        }
        let (reader, inode) = open_log(path)?;
        return Ok(Tail::From { reader, inode, skip: entries - wanted });
    }
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    let mut position = meta.len();
    let mut entries = 0;
    while position > 0 {
        let length = position.min(CHUNK_BYTES as u64);
        position -= length;
        file.seek(SeekFrom::Start(position))?;
        let part = &mut chunk[..usize::try_from(length).unwrap_or(CHUNK_BYTES)];
        file.read_exact(part)?;
        let here = count(part);
        if entries + here <= wanted {
            entries += here;
            continue;
        }
        // The line end before the first wanted entry is in this part.
        let mut left = wanted - entries;
        for (index, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if left == 0 {
                file.seek(SeekFrom::Start(position + index as u64 + 1))?;
                break;
            }
            left -= 1;
        }
        return Ok(Tail::From { reader: Box::new(file), inode: meta.ino(), skip: 0 });
    }
    if entries < wanted {
        return Ok(Tail::Fewer(entries));
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(Tail::From { reader: Box::new(file), inode: meta.ino(), skip: 0 })
}

fn watch_file(dir: &Path) -> Result<AsyncFd<OwnedFd>> {
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let open = || -> io::Result<AsyncFd<OwnedFd>> {
        let fd = inotify::init(flags)?;
        let wanted = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, dir, wanted)?;
        // Its replacement is unsafe code, which is not this crate's; the descriptor is owned by what is
        // answered and closed with it.
        #[allow(deprecated)]
        AsyncFd::new(fd)
    };
    open().map_err(|e| Error::io("watch", dir, &e))
}

fn drain_events(fd: &OwnedFd) {
    let mut buffer = [0u8; 4096];
    while let Ok(1..) = rustix::io::read(fd, &mut buffer) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tail_of(path: &Path, tail: Option<u64>) -> String {
        let mut files = LogFiles::new(path.to_path_buf(), tail);
        let mut bytes = Vec::new();
        while let Some(chunk) = files.read().unwrap() {
            bytes.extend(chunk);
        }
        let text = String::from_utf8(bytes).unwrap();
        text.split_inclusive('\n').skip(usize::try_from(files.skip).unwrap()).collect()
    }

    #[test]
    fn tail_counts_across_files() {
        let dir = std::env::temp_dir().join(crate::util::random_id());
        std::fs::create_dir(&dir).unwrap();
        let (old, new) = (dir.join("l.1"), dir.join("l"));
        std::fs::write(&old, "1\n2\n3\n").unwrap();
        std::fs::write(&new, "4\n5\n").unwrap();
        let whole = "1\n2\n3\n4\n5\n";
        assert_eq!(tail_of(&new, None), whole);
        for tail in 0..8 {
            let skip = 5usize.saturating_sub(tail);
            let want: String = whole.split_inclusive('\n').skip(skip).collect();
            assert_eq!(tail_of(&new, Some(tail as u64)), want, "{tail}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn tail_of_a_long_file_begins_at_a_line() {
        let dir = std::env::temp_dir().join(crate::util::random_id());
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("l");
        let lines: Vec<String> = (0..20_000)
            .map(|i| format!("{i}{}\n", "x".repeat(rand::random_range(0..40))))
            .collect();
        std::fs::write(&path, lines.concat()).unwrap();
        for tail in [0, 1, 10, 1700, 19_999, 20_000, 20_001] {
            let want = lines[20_000usize.saturating_sub(tail)..].concat();
            assert!(tail_of(&path, Some(tail as u64)) == want, "{tail}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn entries_parse() {
        let line: LogLine = serde_json::from_str(
            r#"{"log":"a\n","stream":"stderr","time":"2023-11-14T22:13:20.5Z"}"#,
        )
        .unwrap();
        assert!(line.stderr);
        assert_eq!(line.text, "a\n");
    }
}
