//! Small things that several parts of the engine need: times as docker prints them, random ids,
//! records on disk.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use store_api::Timestamp;

use crate::{Error, Result};

/// Go's `time.RFC3339Nano` in UTC; `None` is Go's zero time.
pub(crate) fn rfc3339(time: Option<Timestamp>) -> String {
    let Some(time) = time else { return api_types::ZERO_TIME.into() };
    let nanos = i32::try_from(time.nanos).unwrap_or(0);
    match jiff::Timestamp::new(time.seconds, nanos) {
        Ok(stamp) => stamp.to_string(),
        Err(_) => api_types::ZERO_TIME.into(),
    }
}

/// Nanoseconds since 1970.
pub(crate) fn unix_nanos(time: Timestamp) -> i64 {
    time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos))
}

/// What `since` and `until` take: seconds with an optional fraction, RFC 3339, or a Go duration
/// before now (moby `timetypes.GetTimestamp`).
pub fn parse_time(text: &str) -> Result<Timestamp> {
    let bad = || Error::invalid(format!("invalid value for time: {text:?}"));
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'-') && !text.contains('T') {
        if let Some((seconds, fraction)) = text.split_once('.') {
            let seconds: i64 = seconds.parse().map_err(|_| bad())?;
            let digits: String = format!("{fraction:0<9}").chars().take(9).collect();
            return Ok(Timestamp { seconds, nanos: digits.parse().map_err(|_| bad())? });
        }
        if let Ok(seconds) = text.parse::<i64>() {
            return Ok(Timestamp { seconds, nanos: 0 });
        }
    }
    if let Ok(stamp) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp {
            seconds: stamp.as_second(),
            nanos: u32::try_from(stamp.subsec_nanosecond()).unwrap_or(0),
        });
    }
    if let Ok(civil) = text.parse::<jiff::civil::DateTime>() {
        let stamp = civil.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| bad())?.timestamp();
        return Ok(Timestamp { seconds: stamp.as_second(), nanos: 0 });
    }
    let back = types::parse_duration(text).map_err(|_| bad())? / 1_000_000_000;
    let now = Timestamp::now();
    Ok(Timestamp { seconds: now.seconds - back, nanos: now.nanos })
}

/// 64 random hexadecimal digits, docker's form of an id. Never all decimal in its first twelve, which
/// a host name could not be.
pub(crate) fn random_id() -> String {
    loop {
        let bytes: [u8; 32] = rand::random();
        let id = hex(&bytes);
        if !id[..12].bytes().all(|b| b.is_ascii_digit()) {
            return id;
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a directory and its parents, mode 0700 for what it makes.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    make_dir_mode(path, 0o700)
}

pub(crate) fn make_dir_mode(path: &Path, mode: u32) -> Result<()> {
    faults::write("directory.make")
        .and_then(|()| fs::DirBuilder::new().recursive(true).mode(mode).create(path))
        .map_err(|e| Error::io("create directory", path, &e))
}

/// How much a record's loss would cost.
/// Bytes that a filter's expression may take when compiled.
const EXPRESSION_BYTES: usize = 1 << 20;

/// Whether a regular expression, as filters have it, is found in a text (moby `filters.Args.Match`); one
/// that is none matches nothing.
pub(crate) fn expression_matches(text: &str, expression: &str) -> bool {
    use regex_automata::nfa::thompson::{Config, pikevm::PikeVM};
    let compiled = PikeVM::builder()
        .thompson(Config::new().nfa_size_limit(Some(EXPRESSION_BYTES)))
        .build(expression);
    match compiled {
        Ok(compiled) => compiled.is_match(&mut compiled.create_cache(), text),
        Err(_) => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Survives a power cut: file and directory are synced.
    Synced,
    /// Survives a crash of the daemon.
    Atomic,
}

/// Replaces a file in one step: a temporary name beside it, then rename.
pub(crate) fn write_file(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    durability: Durability,
) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        faults::write("file.write")?;
        file.write_all(bytes)?;
        if durability == Durability::Synced {
            faults::write("file.sync")?;
            file.sync_data()?;
        }
        faults::write("file.rename")?;
        fs::rename(&temporary, path)?;
        faults::pass("file.renamed");
        match path.parent() {
            // New directories above it are in the same transaction on ext4, xfs and btrfs.
            Some(directory) if durability == Durability::Synced => {
                fs::File::open(directory)?.sync_all()
            }
            _ => Ok(()),
        }
    };
    write().map_err(|e| Error::io("write", path, &e))
}

/// Reads a file of at most `limit_bytes`.
pub(crate) fn read_limited(path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut bytes = Vec::new();
    let file = fs::File::open(path)?;
    file.take(limit_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("over {limit_bytes} bytes"),
        ));
    }
    Ok(bytes)
}

/// All that is in a directory.
///
/// # Errors
/// When it cannot be told, in whole or in part: what is not seen is not gone.
pub(crate) fn list(dir: &Path) -> Result<Vec<fs::DirEntry>> {
    let entries = faults::read("engine.list").and_then(|()| fs::read_dir(dir));
    let entries = entries.and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    entries.map_err(|error| unreadable(dir, &error))
}

/// What is there and cannot be read is not gone, and the daemon does not start without it.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> Error {
    Error::new(
        types::ErrorKind::Unavailable,
        format!(
            "read {}: {error}; nothing was taken for lost: see to the disk, or move what it does not give out of the data root, and start again",
            path.display()
        ),
    )
}

/// Runs blocking work on the pool that tokio bounds.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(format!("a worker of the engine failed: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_that_clients_send() {
        assert_eq!(parse_time("1700000000.5").unwrap().nanos, 500_000_000);
        assert_eq!(parse_time("1700000000").unwrap().seconds, 1_700_000_000);
        assert_eq!(parse_time("2023-11-14T22:13:20Z").unwrap().seconds, 1_700_000_000);
        let back = parse_time("10m").unwrap().seconds;
        assert!((Timestamp::now().seconds - back - 600).abs() <= 1);
        assert!(parse_time("yesterday").is_err());
    }

    #[test]
    fn zero_time_is_gos() {
        assert_eq!(rfc3339(None), "0001-01-01T00:00:00Z");
        let time = Timestamp { seconds: 1_700_000_000, nanos: 120_000_000 };
        assert_eq!(rfc3339(Some(time)), "2023-11-14T22:13:20.12Z");
    }
}
