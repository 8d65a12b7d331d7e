//! Sizes and times for people, as docker's `go-units` writes them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Go's `%.{digits}g` for values that are not negative.
fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{value:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |s: &str| match s.contains('.') {
        true => s.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => s.to_owned(),
    };
    let digits = i32::try_from(digits).unwrap_or(i32::MAX);
    if exponent < -4 || exponent >= digits {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(mantissa), exponent.abs());
    }
    let decimals = usize::try_from((digits - 1 - exponent).max(0)).unwrap_or(0);
    trim(&format!("{value:.decimals$}"))
}

fn scaled(mut value: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), units[unit])
}

const DECIMAL: [&str; 9] = ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
const BINARY: [&str; 9] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];

/// Loses precision above 2^53, where three digits are shown anyway.
#[allow(clippy::cast_precision_loss)]
fn float(bytes: i64) -> f64 {
    bytes as f64
}

/// `1.23MB`: powers of 1000, three digits.
pub(crate) fn size3(bytes: i64) -> String {
    if bytes < 0 {
        return format!("-{}", size3(bytes.saturating_neg()));
    }
    scaled(float(bytes), 1000.0, &DECIMAL, 3)
}

/// `1.234MB`: powers of 1000, four digits.
pub(crate) fn size4(bytes: i64) -> String {
    if bytes < 0 {
        return format!("-{}", size4(bytes.saturating_neg()));
    }
    scaled(float(bytes), 1000.0, &DECIMAL, 4)
}

/// `1.234MiB`: powers of 1024, four digits.
pub(crate) fn bytes(bytes: i64) -> String {
    scaled(float(bytes.max(0)), 1024.0, &BINARY, 4)
}

/// `About an hour`, `3 weeks`.
pub(crate) fn duration(seconds: i64) -> String {
    let minutes = seconds / 60;
    // Hours are rounded to the nearest one.
    let hours = (seconds + 1800) / 3600;
    match seconds {
        s if s < 1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        s if s < 60 => format!("{s} seconds"),
        _ if minutes == 1 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// Seconds since 1970, now.
pub(crate) fn now() -> i64 {
    Timestamp::now().as_second()
}

/// `3 weeks ago`.
pub(crate) fn ago(unix_seconds: i64) -> String {
    format!("{} ago", duration(now() - unix_seconds))
}

/// `2024-05-01 12:00:00 +0000 UTC`, in the local time zone, as Go prints a time.
pub(crate) fn go_time(unix_seconds: i64) -> String {
    match Timestamp::from_second(unix_seconds) {
        Ok(t) => t.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string(),
        Err(_) => String::new(),
    }
}

/// `2024-05-01T12:00:00+02:00`, in the local time zone.
pub(crate) fn rfc3339(unix_seconds: i64) -> String {
    match Timestamp::from_second(unix_seconds) {
        Ok(t) => {
            let z = t.to_zoned(TimeZone::system());
            let offset = z.strftime("%:z").to_string();
            let offset = if offset == "+00:00" { "Z".to_owned() } else { offset };
            format!("{}{offset}", z.strftime("%Y-%m-%dT%H:%M:%S"))
        }
        Err(_) => String::new(),
    }
}

/// As `rfc3339`, with nine digits of fraction.
pub(crate) fn rfc3339_nano(unix_nanos: i64) -> String {
    match Timestamp::from_nanosecond(i128::from(unix_nanos)) {
        Ok(t) => t
            .to_zoned(TimeZone::system())
            .strftime("%Y-%m-%dT%H:%M:%S.%9f%:z")
            .to_string()
            .replace("+00:00", "Z"),
        Err(_) => String::new(),
    }
}

/// Seconds since 1970 of an RFC 3339 time; `None` for Go's zero time and nonsense.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    let t: Timestamp = text.parse().ok()?;
    (!text.starts_with("0001-01-01T")).then(|| t.as_second())
}

/// A time on the command line as seconds since 1970 with nine decimals: a unix time, a duration
/// back from now, or a date in the local time zone (docker's `GetTimestamp`).
pub(crate) fn timestamp(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    if let Ok(back) = crate::values::duration(text)
        && text != "0"
    {
        let at = Timestamp::now().as_nanosecond() - i128::from(back);
        return Ok(split_nanos(at));
    }
    let fail = || format!("failed to parse value as time or duration: {text:?}");
    let unix = text.split_once('.').unwrap_or((text, ""));
    if !unix.0.is_empty() && [unix.0, unix.1].iter().all(|p| p.bytes().all(|b| b.is_ascii_digit()))
    {
        return Ok(text.to_owned());
    }
    if let Ok(t) = text.parse::<Timestamp>() {
        return Ok(split_nanos(t.as_nanosecond()));
    }
    let full = match text.len() {
        10 => format!("{text}T00:00:00"),
        13 => format!("{text}:00:00"),
        16 => format!("{text}:00"),
        _ => text.to_owned(),
    };
    let date: jiff::civil::DateTime = full.parse().map_err(|_| fail())?;
    let zoned = date.to_zoned(TimeZone::system()).map_err(|_| fail())?;
    Ok(split_nanos(zoned.timestamp().as_nanosecond()))
}

fn split_nanos(nanos: i128) -> String {
    format!("{}.{:09}", nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes() {
        for (n, want) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (4_260_000, "4.26MB"),
            (123_456_789, "123MB"),
            (999_999, "1e+03kB"),
        ] {
            assert_eq!(size3(n), want);
        }
        assert_eq!(size4(123_456_789), "123.5MB");
        assert_eq!(bytes(16_462_000_000), "15.33GiB");
        assert_eq!(bytes(0), "0B");
    }

    #[test]
    fn durations() {
        for (s, want) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86400, "2 weeks"),
            (60 * 86400, "2 months"),
            (730 * 86400, "2 years"),
        ] {
            assert_eq!(duration(s), want, "{s}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(timestamp("1700000000.5").unwrap(), "1700000000.5");
        assert_eq!(timestamp("2024-05-01T00:00:00Z").unwrap(), "1714521600.000000000");
        assert!(timestamp("10m").unwrap().contains('.'));
        assert!(timestamp("2024-05-01").unwrap().ends_with(".000000000"));
        assert!(timestamp("yesterday").is_err());
        assert_eq!(parse_rfc3339("0001-01-01T00:00:00Z"), None);
    }
}
