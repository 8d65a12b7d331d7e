//! Makes equal what two runs of the same command cannot help to differ in.
//!
//! Word by word: ids become `<id>`, points in time `<time>`, sizes `<size>`, hardware addresses
//! `<mac>`; then phrases like "2 seconds ago" become `<ago>`, and runs of three spaces and more,
//! whose length follows from the width of such words, become three.

/// What is the same for all runs has been put in place of `words` before (longest first).
pub(crate) fn normalise(text: &str, words: &[(String, &str)]) -> String {
    let mut text = text.replace("\r\n", "\n");
    for (word, name) in words {
        text = text.replace(word, name);
    }
    let mut result = String::with_capacity(text.len());
    for line in text.lines() {
        let line = squeeze(&durations(&times(&tokens(line))));
        result.push_str(line.trim_end());
        result.push('\n');
    }
    result
}

/// Replaces words that stand for themselves: ids, sizes, hardware addresses, RFC 3339 times.
fn tokens(line: &str) -> String {
    let mut result = String::with_capacity(line.len());
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if end == 0 {
            let next = rest.chars().next().map_or(1, char::len_utf8);
            result.push_str(&rest[..next]);
            rest = &rest[next..];
            continue;
        }
        result.push_str(&token(&rest[..end]));
        rest = &rest[end..];
    }
    result
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '+')
}

fn token(word: &str) -> String {
    let core = word.trim_end_matches(['.', ':']);
    let tail = &word[core.len()..];
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let (head, id) =
        core.rsplit_once(':').map_or(("", core), |(_, id)| (&core[..core.len() - id.len()], id));
    if matches!(id.len(), 12 | 64) && hex(id) {
        return format!("{head}<id>{tail}");
    }
    let pairs: Vec<&str> = core.split(':').collect();
    if pairs.len() == 6 && pairs.iter().all(|pair| pair.len() == 2 && hex(pair)) {
        return format!("<mac>{tail}");
    }
    let bytes = core.as_bytes();
    if bytes.len() >= 20 && bytes[4] == b'-' && bytes[10] == b'T' && bytes[13] == b':' {
        return format!("<time>{tail}");
    }
    if is_size(core) { format!("<size>{tail}") } else { word.to_owned() }
}

fn is_size(word: &str) -> bool {
    ["kB", "MB", "GB", "KiB", "MiB", "GiB", "B"].iter().any(|unit| {
        word.strip_suffix(unit).is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        })
    })
}

/// `2026-01-31 12:00:00 +0000 UTC`, in Go's format.
fn times(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let mut result: Vec<&str> = Vec::with_capacity(words.len());
    let mut at = 0;
    while at < words.len() {
        let date = |w: &str| w.len() == 10 && w.bytes().filter(|b| *b == b'-').count() == 2;
        let clock = |w: &str| w.len() >= 8 && w.bytes().filter(|b| *b == b':').count() == 2;
        if at + 3 < words.len() && date(words[at]) && clock(words[at + 1]) {
            result.push("<time>");
            at += 4;
        } else {
            result.push(words[at]);
            at += 1;
        }
    }
    result.join(" ")
}

const UNITS: [&str; 7] = ["second", "minute", "hour", "day", "week", "month", "year"];

/// `About a minute`, `Less than a second`, `5 seconds`, and what comes after: ` ago`.
fn durations(line: &str) -> String {
    let mut text = line.to_owned();
    for opening in ["Less than a ", "About a ", "About an "] {
        for unit in UNITS {
            text = text.replace(&format!("{opening}{unit}"), "<ago>");
        }
    }
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let mut at = 0;
    while at + 1 < words.len() {
        let number = !words[at].is_empty() && words[at].bytes().all(|b| b.is_ascii_digit());
        if number && UNITS.contains(&words[at + 1].trim_end_matches('s')) {
            words[at] = "<ago>".to_owned();
            words.remove(at + 1);
        }
        at += 1;
    }
    words.join(" ").replace("<ago> ago", "<ago>")
}

fn squeeze(line: &str) -> String {
    let mut result = String::with_capacity(line.len());
    let mut spaces = 0;
    for c in line.chars() {
        if c == ' ' {
            spaces += 1;
            if spaces > 3 {
                continue;
            }
        } else {
            spaces = 0;
        }
        result.push(c);
    }
    result
}

#[test]
fn what_varies_is_made_equal_and_nothing_else() {
    let id = "0123456789ab".to_owned();
    let cases = [
        (format!("{id}   x"), "<id>   x\n"),
        (format!("sha256:{}", "ab12".repeat(16)), "sha256:<id>\n"),
        ("2026-11-24T07:04:27.1Z begin".to_owned(), "<time> begin\n"),
        ("2026-11-24 07:04:27 +0000 UTC x".to_owned(), "<time> x\n"),
        ("Up 5 seconds      a".to_owned(), "Up <ago>   a\n"),
        ("Exited (7) Less than a second ago".to_owned(), "Exited (7) <ago>\n"),
        ("About a minute ago".to_owned(), "<ago>\n"),
        ("1.24MB 12B".to_owned(), "<size> <size>\n"),
        ("02:42:ac:11:00:02".to_owned(), "<mac>\n"),
        ("0.0.0.0:80->80/tcp, 10.0.0.1".to_owned(), "0.0.0.0:80->80/tcp, 10.0.0.1\n"),
        ("two  spaces stay".to_owned(), "two  spaces stay\n"),
        ("at HOST-abc".to_owned(), "at <host>\n"),
    ];
    for (text, wanted) in cases {
        assert_eq!(normalise(&text, &[("HOST-abc".to_owned(), "<host>")]), wanted, "{text}");
    }
}
