//! Go's duration texts, which docker's flags, filters and HEALTHCHECK have.

/// Why a text is no duration, in the words of Go's `time.ParseDuration`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    #[error("time: missing unit in duration {0:?}")]
    NoUnit(String),
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    Unit { text: String, unit: String },
}

/// Nanoseconds of a text like `1h2m3.5s`, `-300ms` or `0` (Go's `time.ParseDuration`).
///
/// # Errors
/// What is no such text, or does not fit.
pub fn parse_duration(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.into());
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        if number.is_empty() {
            return Err(invalid());
        }
        let unit = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(DurationError::NoUnit(text.into())),
            unit => return Err(DurationError::Unit { text: text.into(), unit: unit.into() }),
        };
        let scaled = scaled(number, unit).ok_or_else(invalid)?;
        total = total.checked_add(scaled).ok_or_else(invalid)?;
        rest = tail;
    }
    Ok(if negative { -total } else { total })
}

fn scaled(number: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.chars() {
        place /= 10;
        total = total.checked_add(i64::from(digit.to_digit(10)?).checked_mul(place)?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_as_go_has_them() {
        for (text, want) in [
            ("0", 0),
            ("1h2m3.5s", 3_723_500_000_000),
            ("1.5h", 5_400_000_000_000),
            ("300ms", 300_000_000),
            ("2us", 2_000),
            (".5s", 500_000_000),
            ("-1s", -1_000_000_000),
        ] {
            assert_eq!(parse_duration(text).unwrap(), want, "{text}");
        }
        for bad in ["", "-", "1", "s", "1x", "1s2", ".", "1.s.", "1.2.3s", "99999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        let text = parse_duration("1s2").unwrap_err().to_string();
        assert_eq!(text, "time: missing unit in duration \"1s2\"");
    }
}
