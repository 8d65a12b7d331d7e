//! Values on the command line, with the grammars and the error texts of Go's and docker's parsers.

use std::net::IpAddr;

/// Go's `strconv.ParseBool`. The empty string is false.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

/// Go's `strconv.ParseInt(text, 0, 64)`: prefixes `0x`, `0o`, `0b`, `0`. Empty is 0.
pub(crate) fn int(text: &str) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let error = |why: &str| format!("strconv.ParseInt: parsing {text:?}: {why}");
    let (negative, digits) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = radix(digits);
    if digits.starts_with(['+', '-']) {
        return Err(error("invalid syntax"));
    }
    let value = i128::from_str_radix(digits, radix).map_err(|_| error("invalid syntax"))?;
    let value = if negative { -value } else { value };
    i64::try_from(value).map_err(|_| error("value out of range"))
}

fn radix(digits: &str) -> (u32, &str) {
    let lower = digits.to_ascii_lowercase();
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if lower.starts_with(prefix) {
            return (radix, &digits[2..]);
        }
    }
    match digits.len() > 1 && digits.starts_with('0') {
        true => (8, &digits[1..]),
        false => (10, digits),
    }
}

/// An unsigned number of so many bits. Empty is 0.
pub(crate) fn uint(text: &str, bits: u32) -> Result<u64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let error = |why: &str| format!("strconv.ParseUint: parsing {text:?}: {why}");
    let (radix, digits) = radix(text);
    if digits.starts_with(['+', '-']) {
        return Err(error("invalid syntax"));
    }
    let value = u128::from_str_radix(digits, radix).map_err(|_| error("invalid syntax"))?;
    if value >> bits != 0 {
        return Err(error("value out of range"));
    }
    u64::try_from(value).map_err(|_| error("value out of range"))
}

/// `10`, `10b`, `10k`, `10kb`, `10KiB`, `1.5g`; powers of 1024 (docker's `RAMInBytes`).
pub(crate) fn bytes(text: &str) -> Result<i64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let at = text.rfind(|c: char| c.is_ascii_digit() || c == '.').ok_or_else(invalid)? + 1;
    let (number, suffix) = text.split_at(at);
    let number = number.trim();
    let well_formed = number.starts_with(|c: char| c.is_ascii_digit())
        && number.chars().all(|c| c.is_ascii_digit() || c == '.');
    if !well_formed {
        return Err(invalid());
    }
    let value: f64 = number.parse().map_err(|_| invalid())?;
    let suffix = suffix.trim().to_ascii_lowercase();
    let power = match suffix.as_str() {
        "" | "b" => 0,
        _ => {
            let unit = suffix.chars().next().ok_or_else(invalid)?;
            let rest = &suffix[1..];
            if !matches!(rest, "" | "b" | "ib") {
                return Err(format!("invalid suffix: '{suffix}'"));
            }
            1 + "kmgtp".find(unit).ok_or_else(|| format!("invalid suffix: '{suffix}'"))?
        }
    };
    let scale = 1024_f64.powi(i32::try_from(power).unwrap_or(0));
    float_to_i64(value * scale).ok_or_else(invalid)
}

/// As `bytes`, and `-1` for no limit. Empty is 0.
pub(crate) fn signed_bytes(text: &str) -> Result<i64, String> {
    match text {
        "" => Ok(0),
        "-1" => Ok(-1),
        text => bytes(text),
    }
}

#[allow(clippy::cast_possible_truncation)]
fn float_to_i64(value: f64) -> Option<i64> {
    // 2^63 is the first one that does not fit; below it the fraction alone is cut off.
    (value.is_finite() && value.abs() < 9.223_372_036_854_775e18).then_some(value as i64)
}

/// Go's `time.ParseDuration`, in nanoseconds. Empty is 0.
pub(crate) fn duration(text: &str) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    types::parse_duration(text).map_err(|error| error.to_string())
}

/// A decimal number times `scale`, cut to an integer.
fn scaled(number: &str, scale: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || whole.len() > 18 {
        return None;
    }
    let mut value = if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()? * scale };
    let fraction = &fraction[..fraction.len().min(18)];
    if !fraction.is_empty() {
        let power = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        value += fraction.parse::<i128>().ok()? * scale / power;
    }
    Some(value)
}

/// A decimal number of CPUs, in billionths. Empty is 0.
pub(crate) fn nano_cpus(text: &str) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let invalid = || format!("failed to parse {text} as a rational number");
    let number = text.strip_prefix('+').unwrap_or(text);
    if number.starts_with('-') || !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(invalid());
    }
    let fraction = number.split_once('.').map_or("", |(_, f)| f).trim_end_matches('0');
    if fraction.len() > 9 {
        return Err("value is too precise".to_owned());
    }
    let value = scaled(number, 1_000_000_000).ok_or_else(invalid)?;
    i64::try_from(value).map_err(|_| invalid())
}

/// An address without brackets.
pub(crate) fn ip(text: &str) -> Result<Option<IpAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("failed to parse IP: {text:?}"))
}

/// `name=value`; the name is lower-cased and trimmed.
pub(crate) fn filter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| "bad format of filter (expected name=value)".to_owned())?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

/// `key=value`; without `=` the value is empty.
pub(crate) fn key_value(text: &str) -> (String, String) {
    match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (text.to_owned(), String::new()),
    }
}

/// One line of comma-separated values, with quotes as RFC 4180 has them.
pub(crate) fn csv(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut fields = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        let mut field = String::new();
        if chars.peek() == Some(&'"') {
            chars.next();
            loop {
                match chars.next() {
                    Some('"') if chars.peek() == Some(&'"') => {
                        chars.next();
                        field.push('"');
                    }
                    Some('"') => break,
                    Some(c) => field.push(c),
                    None => {
                        return Err("parse error: extraneous or missing \" in quoted-field".into());
                    }
                }
            }
            if chars.peek().is_some_and(|c| *c != ',') {
                return Err("parse error: extraneous or missing \" in quoted-field".into());
            }
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                if c == '"' {
                    return Err("parse error: bare \" in non-quoted-field".into());
                }
                field.push(c);
            }
        }
        fields.push(field);
        match chars.next() {
            Some(',') => {}
            _ => return Ok(fields),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("32", 32),
            ("32b", 32),
            ("32k", 32 << 10),
            ("32kb", 32 << 10),
            ("32KiB", 32 << 10),
            ("1.5g", 3 << 29),
            ("2 m", 2 << 20),
            ("1p", 1 << 50),
        ] {
            assert_eq!(bytes(text).unwrap(), want, "{text}");
        }
        for bad in ["", "x", "-5", "5x", "5kx", "1.2.3", "1e3k"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(signed_bytes("-1").unwrap(), -1);
        assert_eq!(bytes("x").unwrap_err(), "invalid size: 'x'");
    }

    #[test]
    fn numbers() {
        assert_eq!(int("0x10").unwrap(), 16);
        assert_eq!(int("-010").unwrap(), -8);
        assert_eq!(int("x").unwrap_err(), "strconv.ParseInt: parsing \"x\": invalid syntax");
        assert!(int("9223372036854775808").is_err());
        assert_eq!(uint("65535", 16).unwrap(), 65535);
        assert!(uint("65536", 16).is_err());
        assert_eq!(nano_cpus("1.5").unwrap(), 1_500_000_000);
        assert_eq!(nano_cpus(".5").unwrap(), 500_000_000);
        assert!(nano_cpus("0.0000000001").is_err());
        assert!(nano_cpus("x").is_err());
    }

    #[test]
    fn comma_separated() {
        assert_eq!(csv("a,b=c,,d").unwrap(), ["a", "b=c", "", "d"]);
        assert_eq!(csv(r#""a,b","c""d""#).unwrap(), ["a,b", "c\"d"]);
        assert!(csv(r#"a"b"#).is_err());
        assert!(csv(r#""a"#).is_err());
    }
}
