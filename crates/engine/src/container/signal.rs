use crate::{Error, Result};

/// Names and numbers of Linux signals on x86-64 and arm64 (signal(7)).
const SIGNALS: &[(&str, u32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

pub(crate) const SIGKILL: u32 = 9;
pub(crate) const SIGTERM: u32 = 15;
const SIGRTMIN: u32 = 34;
const SIGRTMAX: u32 = 64;

/// A signal by number or name, with or without `SIG` (moby `signal.ParseSignal`).
pub(crate) fn parse(text: &str) -> Result<u32> {
    let bad = || Error::invalid(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<u32>() {
        return if (1..=SIGRTMAX).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest[1..].parse::<u32>().ok() };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        (rest.is_empty() || rest.starts_with('+'))
            .then(|| offset(rest).and_then(|n| SIGRTMIN.checked_add(n)))
            .flatten()
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        (rest.is_empty() || rest.starts_with('-'))
            .then(|| offset(rest).and_then(|n| SIGRTMAX.checked_sub(n)))
            .flatten()
    } else {
        None
    };
    number.filter(|n| (SIGRTMIN..=SIGRTMAX).contains(n)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGKILL", 9),
            ("sigint", 2),
            ("1", 1),
            ("RTMIN+3", 37),
            ("SIGRTMAX-14", 50),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in [
            "",
            "0",
            "65",
            "SIGFOO",
            "RTMIN+99",
            "RTMIN3",
            "RTMIN+4294967295",
            "RTMAX-4294967295",
            "-9",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
