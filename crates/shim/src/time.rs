//! Times as Go's `time.RFC3339Nano` writes them, in UTC.

use protos::Timestamp;

/// Seconds and nanoseconds since 1970 as text: `2024-02-29T23:59:59.5Z`, trailing zeroes of the
/// fraction left out.
pub(crate) fn rfc3339_nano(time: &Timestamp) -> String {
    const DAY_SECONDS: i64 = 86_400;
    let days = time.seconds.div_euclid(DAY_SECONDS);
    let second = time.seconds.rem_euclid(DAY_SECONDS);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if time.nanos > 0 {
        let fraction = format!("{:09}", time.nanos);
        text.push('.');
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last of its year; an era is 400
/// years, 146,097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468; // days from 0000-03-01 to 1970-01-01
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, nanos: i32) -> String {
        rfc3339_nano(&Timestamp { seconds, nanos })
    }

    #[test]
    fn known_moments() {
        assert_eq!(at(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399, 500_000_000), "2000-02-28T23:59:59.5Z");
        assert_eq!(at(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(at(1_709_251_199, 120), "2024-02-29T23:59:59.00000012Z");
        assert_eq!(at(4_102_444_800, 0), "2100-01-01T00:00:00Z");
    }
}
