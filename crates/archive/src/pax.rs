//! PAX extended headers (POSIX.1-2001 pax, "pax Extended Header") and the vendor keywords in use.

use std::{collections::BTreeMap, ffi::OsString, os::unix::ffi::OsStringExt};

use crate::{
    entry::{Chunk, Time},
    error::Problem,
};

/// What an extended header says about an entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) linkpath: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) mtime: Option<Time>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) user: Option<Vec<u8>>,
    pub(crate) group: Option<Vec<u8>>,
    pub(crate) xattrs: BTreeMap<OsString, Vec<u8>>,
    pub(crate) sparse: PaxSparse,
}

/// GNU tar's sparse keywords, formats 0.0, 0.1 and 1.0 (GNU tar manual, "PAX Format").
#[derive(Clone, Debug, Default)]
pub(crate) struct PaxSparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `GNU.sparse.realsize`.
    pub(crate) real_size: Option<u64>,
    pub(crate) blocks: Option<u64>,
    /// 0.1: the map; 0.0: filled by repeated offset and numbytes.
    pub(crate) chunks: Option<Vec<Chunk>>,
    /// 0.0: an offset whose numbytes has not come yet.
    offset: Option<u64>,
}

impl PaxSparse {
    pub(crate) fn is_used(&self) -> bool {
        self.major.is_some()
            || self.minor.is_some()
            || self.name.is_some()
            || self.real_size.is_some()
            || self.blocks.is_some()
            || self.chunks.is_some()
            || self.offset.is_some()
    }
}

impl Pax {
    /// Takes the records of one extended header; later records win, an empty value unsets.
    pub(crate) fn parse(&mut self, mut data: &[u8], chunks_max: usize) -> Result<(), Problem> {
        while !data.is_empty() {
            let (record, rest) = Record::split(data)?;
            self.set(record.key, record.value, chunks_max)?;
            data = rest;
        }
        if self.sparse.offset.is_some() {
            return Err(Problem::Sparse);
        }
        Ok(())
    }

    /// The settings of a global header; they are defaults for later entries.
    pub(crate) fn parse_global(&mut self, data: &[u8]) -> Result<(), Problem> {
        self.parse(data, 0)?;
        if self.path.is_some() {
            return Err(Problem::PaxGlobal("path"));
        }
        if self.linkpath.is_some() {
            return Err(Problem::PaxGlobal("linkpath"));
        }
        if self.size.is_some() {
            return Err(Problem::PaxGlobal("size"));
        }
        if self.sparse.is_used() {
            return Err(Problem::PaxGlobal("a sparse map"));
        }
        if !self.xattrs.is_empty() {
            return Err(Problem::PaxGlobal("an extended attribute"));
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], chunks_max: usize) -> Result<(), Problem> {
        match key {
            b"path" => self.path = optional_text(value)?,
            b"linkpath" => self.linkpath = optional_text(value)?,
            b"uname" => self.user = optional_text(value)?,
            b"gname" => self.group = optional_text(value)?,
            b"size" => self.size = optional(value, decimal)?,
            b"uid" => self.uid = optional(value, decimal)?,
            b"gid" => self.gid = optional(value, decimal)?,
            b"mtime" => self.mtime = optional(value, time)?,
            // Bytes as they are is what this reader does in any case.
            b"hdrcharset" => {}
            _ => {
                if let Some(rest) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.set(rest, value, chunks_max);
                }
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    return self.set_xattr(name.to_vec(), value.to_vec());
                }
                if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = percent_decode(name)?;
                    let value = base64_decode(value)?;
                    return self.set_xattr(name, value);
                }
                // atime, ctime, comment, and keywords of others describe nothing kept here.
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), Problem> {
        if name.is_empty() || name.contains(&0) {
            return Err(Problem::Pax);
        }
        self.xattrs.insert(OsString::from_vec(name), value);
        Ok(())
    }
}

impl PaxSparse {
    fn set(&mut self, key: &[u8], value: &[u8], chunks_max: usize) -> Result<(), Problem> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = optional_text(value)?,
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"numblocks" => self.blocks = Some(decimal(value)?),
            b"offset" => {
                if self.offset.replace(decimal(value)?).is_some() {
                    return Err(Problem::Sparse);
                }
            }
            b"numbytes" => {
                let offset = self.offset.take().ok_or(Problem::Sparse)?;
                self.push(Chunk { offset, len: decimal(value)? }, chunks_max)?;
            }
            b"map" => {
                self.chunks = Some(Vec::new());
                let mut numbers = value.split(|b| *b == b',');
                while let Some(offset) = numbers.next() {
                    let len = numbers.next().ok_or(Problem::Sparse)?;
                    let chunk = Chunk { offset: decimal(offset)?, len: decimal(len)? };
                    self.push(chunk, chunks_max)?;
                }
            }
            _ => return Err(Problem::Sparse),
        }
        Ok(())
    }

    fn push(&mut self, chunk: Chunk, chunks_max: usize) -> Result<(), Problem> {
        let chunks = self.chunks.get_or_insert_default();
        if chunks.len() >= chunks_max {
            return Err(Problem::Range("number of sparse chunks"));
        }
        chunks.push(chunk);
        Ok(())
    }
}

struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Record<'a> {
    /// Splits `LENGTH KEY=VALUE\n` off; the value may hold anything, zero bytes included.
    fn split(data: &'a [u8]) -> Result<(Self, &'a [u8]), Problem> {
        let space = data.iter().take(20).position(|b| *b == b' ').ok_or(Problem::Pax)?;
        let len = usize::try_from(decimal(&data[..space])?).map_err(|_| Problem::Pax)?;
        let body = data.get(space + 1..len).ok_or(Problem::Pax)?;
        let body = body.strip_suffix(b"\n").ok_or(Problem::Pax)?;
        let equals = body.iter().position(|b| *b == b'=').ok_or(Problem::Pax)?;
        let (key, value) = (&body[..equals], &body[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err(Problem::Pax);
        }
        Ok((Self { key, value }, &data[len..]))
    }
}

fn optional<T>(
    value: &[u8],
    parse: impl Fn(&[u8]) -> Result<T, Problem>,
) -> Result<Option<T>, Problem> {
    if value.is_empty() { Ok(None) } else { parse(value).map(Some) }
}

fn optional_text(value: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
    if value.contains(&0) {
        return Err(Problem::NulInName);
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// Unsigned decimal digits only, below 2^63.
pub(crate) fn decimal(value: &[u8]) -> Result<u64, Problem> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Problem::Pax);
    }
    let number = value
        .iter()
        .try_fold(0u64, |n, d| n.checked_mul(10)?.checked_add(u64::from(d - b'0')))
        .filter(|n| *n <= i64::MAX.unsigned_abs());
    number.ok_or(Problem::Range("number in the extended header"))
}

/// Decimal seconds with an optional fraction, negative before 1970. Digits below a nanosecond
/// are cut off towards the past, as GNU tar does.
fn time(value: &[u8]) -> Result<Time, Problem> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match digits.iter().position(|b| *b == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &b""[..]),
    };
    let secs = i64::try_from(decimal(whole)?).map_err(|_| Problem::Range("mtime"))?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(Problem::Pax);
    }
    let mut nanos = 0u32;
    for i in 0..9 {
        nanos = nanos * 10 + u32::from(fraction.get(i).map_or(0, |d| d - b'0'));
    }
    if !negative {
        return Ok(Time { secs, nanos });
    }
    let rest = fraction.get(9..).is_some_and(|more| more.iter().any(|d| *d != b'0'));
    let nanos = nanos + u32::from(rest);
    if nanos == 0 {
        return Ok(Time { secs: -secs, nanos: 0 });
    }
    let secs = (-secs).checked_sub(1).ok_or(Problem::Range("mtime"))?;
    Ok(Time { secs, nanos: 1_000_000_000 - nanos })
}

fn percent_decode(name: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let hex = rest.get(..2).and_then(|h| std::str::from_utf8(h).ok()).ok_or(Problem::Pax)?;
        out.push(u8::from_str_radix(hex, 16).map_err(|_| Problem::Pax)?);
        rest = &rest[2..];
    }
    Ok(out)
}

/// base64 with or without padding, as libarchive writes it.
fn base64_decode(text: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0u32);
    for byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return Err(Problem::Pax),
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from((bits >> count) & 0xff).expect("masked to a byte"));
        }
    }
    Ok(out)
}

/// Appends one record.
pub(crate) fn write_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts itself: grow it until it is stable.
    let body = key.len() + value.len() + 3;
    let mut len = body;
    loop {
        let with_digits = body + len.to_string().len();
        if with_digits == len {
            break;
        }
        len = with_digits;
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The text of a time for a record.
pub(crate) fn time_text(time: Time) -> String {
    let fraction = |nanos: u32| {
        if nanos == 0 {
            String::new()
        } else {
            format!(".{nanos:09}").trim_end_matches('0').to_owned()
        }
    };
    if time.secs < 0 && time.nanos > 0 {
        let whole = (time.secs + 1).unsigned_abs();
        return format!("-{whole}{}", fraction(1_000_000_000 - time.nanos));
    }
    format!("{}{}", time.secs, fraction(time.nanos))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn records_count_themselves() {
        for len in 0..1200 {
            let mut out = Vec::new();
            write_record(&mut out, b"k", &vec![b'v'; len]);
            let (record, rest) = Record::split(&out).unwrap();
            assert_eq!((record.key, record.value.len(), rest.len()), (&b"k"[..], len, 0));
        }
    }

    #[test]
    fn times_round_trip() {
        for t in [(0, 0), (5, 1), (-1, 0), (-1, 1), (-1, 999_999_999), (-7, 500_000_000)] {
            let t = Time { secs: t.0, nanos: t.1 };
            assert_eq!(time(time_text(t).as_bytes()).unwrap(), t, "{}", time_text(t));
        }
        assert_eq!(time(b"1.1234567899").unwrap(), Time { secs: 1, nanos: 123_456_789 });
        assert!(time(b"1e5").is_err());
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in ["", "5 a\n", "6 a=b", "99 a=b\n", "x a=b\n", "6 =bb\n", "-6 a=b\n"] {
            if !bad.is_empty() {
                assert!(Pax::default().parse(bad.as_bytes(), 10).is_err(), "{bad:?}");
            }
        }
        assert_eq!(base64_decode(b"aGk=").unwrap(), b"hi");
        assert_eq!(percent_decode(b"user.%61b").unwrap(), b"user.ab");
    }
}
